"""Ages: the classes of the field, growth by the WHO's tables, and the age offset of a body in years."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from agebody.assets.asset import AssetError, BodyAsset

Sex = Literal["neutral", "female", "male"]
Number = TypeVar("Number", float, np.ndarray, Tensor)

ADULT_YEARS = 19.0
"""The age at which the WHO's reference ends and a body is its adult."""


class AgeClass(NamedTuple):
    """A range of age offsets, ``low < a <= high``, and the offset that stands for it."""

    name: str
    low: float
    mid: float
    high: float


AGE_CLASSES = (
    AgeClass("adult", -0.05, 0.0, 0.15),
    AgeClass("teen", 0.15, 0.3, 0.45),
    AgeClass("kid", 0.45, 0.6, 0.75),
    AgeClass("baby", 0.75, 0.9, 1.0),
)
"""The age classes of BEV (CVPR 2022) and of its data set, Relative Human."""


def age_class(age_offset: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """Index into ``AGE_CLASSES`` of each age offset; the first and the last class are open outwards."""
    highs = age_offset.new_tensor([kind.high for kind in AGE_CLASSES[:-1]])
    return torch.bucketize(age_offset, highs)


# Median and standard deviation of stature [cm] (WHO child growth standards 2006, WHO reference 2007).
_YEARS = (0, 1 / 12, 0.25, 0.5, 0.75, 1, 1.5, *range(2, 20))
_MALE = (
    (49.88, 54.7, 61.4, 67.6, 72.0, 75.7, 82.3, 87.8, 96.1, 103.3, 110.0, 116.0, 121.7, 127.3, 132.6, 137.8,
     143.1, 149.1, 156.0, 163.2, 169.0, 172.9, 175.2, 176.1, 176.5),
    (1.89, 1.95, 2.04, 2.14, 2.24, 2.38, 2.70, 3.05, 3.71, 4.19, 4.63, 4.93, 5.29, 5.65, 6.01, 6.37,
     6.73, 7.09, 7.43, 7.69, 7.80, 7.77, 7.64, 7.47, 7.30),
)  # fmt: skip
_FEMALE = (
    (49.15, 53.6, 59.8, 65.8, 70.1, 74.0, 80.7, 86.4, 95.1, 102.7, 109.4, 115.1, 120.8, 126.6, 132.5, 138.6,
     145.0, 151.2, 156.4, 159.8, 161.7, 162.5, 162.9, 163.1, 163.2),
    (1.86, 1.95, 2.10, 2.27, 2.42, 2.57, 2.90, 3.23, 3.81, 4.31, 4.76, 5.12, 5.47, 5.80, 6.11, 6.40,
     6.65, 6.84, 6.94, 6.94, 6.88, 6.79, 6.69, 6.61, 6.54),
)  # fmt: skip


class _Growth(NamedTuple):
    """Median and standard deviation of stature [m] at every month from birth to 19 years."""

    years: Float[np.ndarray, " N"]
    median: Float[np.ndarray, " N"]
    sd: Float[np.ndarray, " N"]


@cache
def _growth(sex: Sex) -> _Growth:
    years = np.arange(12 * int(ADULT_YEARS) + 1) / 12
    if sex == "neutral":
        girl, boy = _growth("female"), _growth("male")
        half = (boy.median - girl.median) / 2
        spread = np.sqrt((boy.sd**2 + girl.sd**2) / 2 + half**2)  # of the two normal distributions together
        return _Growth(years, girl.median + half, spread)
    if sex not in ("female", "male"):
        raise ValueError(f"sex: expected 'neutral', 'female' or 'male', got {sex!r}")
    median, sd = (
        PchipInterpolator(_YEARS, np.array(row) / 100)(years)
        for row in (_FEMALE if sex == "female" else _MALE)
    )
    return _Growth(years, median, sd)


def median_stature(years: Number, *, sex: Sex = "neutral") -> Number:
    """Median stature [m] at an age, constant from 19 years on.

    The WHO's tables, joined by a monotone cubic (Fritsch and Carlson 1980) and read linearly between months.
    Below and at 24 months the WHO measures length, lying, and above it height, standing, which is 0.7 cm less
    for the same child; the third year absorbs that step. "neutral" is the mean of the two sexes.

    Args:
        years: age [years]; a number, an array or a tensor (differentiable). Before birth counts as birth.
        sex: "neutral", "female" or "male".

    Raises:
        ValueError: the sex is none of these.
    """
    growth = _growth(sex)
    return _interpolate(years, growth.years, growth.median)


def stature_sd(years: Number, *, sex: Sex = "neutral") -> Number:
    """Standard deviation of stature [m] at an age; arguments as of ``median_stature``.

    "neutral" is that of girls and boys together, which exceeds that of either by their difference.
    """
    growth = _growth(sex)
    return _interpolate(years, growth.years, growth.sd)


def z_score(stature: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """How many standard deviations a stature is above the median of its age.

    The WHO's distributions of stature are normal (L = 1), so the score is ``(stature - median) / sd``. Girls
    and boys together are not quite normal; "neutral" takes them so, which errs by less than 1 percentile in
    children and 3 in adults.

    Args:
        stature: [m]; numbers, arrays or tensors, differentiable, and broadcast with the years.
        years: age [years], of any of these kinds. From 19 years on, that of 19.
        sex: "neutral", "female" or "male".

    Raises:
        ValueError: the sex is none of these.
    """
    stature, years = _of_one_kind(stature, years)
    return (stature - median_stature(years, sex=sex)) / stature_sd(years, sex=sex)


def percentile(stature: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """Percentage of people of an age who are not taller, from 0 to 100; arguments as of ``z_score``."""
    score: Any = z_score(stature, years, sex=sex)
    normal: Any = torch.special.ndtr if isinstance(score, Tensor) else special.ndtr
    return _as_given(100 * normal(score), score)


def stature_at_percentile(percentile: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """Stature [m] that a percentage of people of an age do not exceed: the inverse of ``percentile``.

    Args:
        percentile: from 0 to 100, whose statures are infinite; beyond them NaN.
        years: as in ``z_score``.
        sex: "neutral", "female" or "male".
    """
    percentile, years = _of_one_kind(percentile, years)
    normal: Any = torch.special.ndtri if isinstance(percentile, Tensor) else special.ndtri
    score = normal(percentile / 100)
    return _as_given(median_stature(years, sex=sex) + score * stature_sd(years, sex=sex), percentile)


# Median head circumference [cm] (WHO child growth standards 2007) at few ages.
_HEAD_YEARS = (0, 0.5, 1, 2, 5)
_HEAD = {"male": (34.46, 43.34, 46.06, 48.25, 50.74), "female": (33.88, 42.21, 44.89, 47.18, 49.92)}


def median_head_circumference(years: Number, *, sex: Sex = "neutral") -> Number:
    """Median head circumference [m] from birth to 5 years; NaN later, where the WHO's standard ends.

    The table holds birth, 6 months, 1, 2 and 5 years. They are joined by a monotone cubic of the age to the
    power 0.75, along which a head grows more evenly; between birth and 6 months that may err by some mm.
    "neutral" is the mean of the two sexes.

    Args:
        years: age [years]; a number, an array or a tensor (differentiable). Before birth counts as birth.
        sex: "neutral", "female" or "male".

    Raises:
        ValueError: the sex is none of these.
    """
    nodes, values = _head_growth(sex)
    found: Any = _interpolate(years, nodes, values)
    choose: Any = torch.where if isinstance(found, Tensor) else np.where
    return _as_given(choose(years > nodes[-1], np.nan, found), found)


@cache
def _head_growth(sex: Sex) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Head circumference [m] by months."""
    years = np.arange(12 * _HEAD_YEARS[-1] + 1) / 12
    if sex == "neutral":
        return years, (_head_growth("female")[1] + _head_growth("male")[1]) / 2
    if sex not in _HEAD:
        raise ValueError(f"sex: expected 'neutral', 'female' or 'male', got {sex!r}")
    bend = 0.75
    curve = PchipInterpolator(np.power(_HEAD_YEARS, bend), np.array(_HEAD[sex]) / 100)
    return years, curve(years**bend)


@dataclass(frozen=True, eq=False)
class AgeCurve:
    """Age in years against the age offset of one body, through stature.

    No one has published such a map, and it depends on the body: the adult and the infant that a file brings
    decide what offset 0.5 looks like. So the body's own stature at each offset is measured (zero betas), and
    set equal to the WHO's median stature at an age, adapted to how tall this body is as an adult:

        target(y) = WHO(y) (1 + (H(0) / WHO(19) - 1) g(y)),   g(y) = (WHO(y) - WHO(0)) / (WHO(19) - WHO(0))

    with H(a) the body's stature at offset a. Offset 0 is thus every body's adult, from 19 years on; a body
    whose adult is 2 % taller than the median is less so as a child, and a newborn of median length; and there
    are no jumps. Newborns shorter than the youngest template lie beyond its offset, on the same line.

    The curve is tabulated by months, linear between them, so that both directions invert each other exactly.
    """

    years: Float[np.ndarray, " N"]
    """Ages from 0 to 19, ascending."""
    offsets: Float[np.ndarray, " N"]
    """Age offset at each of those ages, descending to 0."""
    statures: Float[np.ndarray, " N"]
    """Stature at each of those ages [m]."""

    @classmethod
    def from_asset(cls, asset: BodyAsset, *, sex: Sex | None = None) -> AgeCurve:
        """The curve of a body.

        Args:
            asset: the body; of a layer, its ``asset``.
            sex: which of the WHO's tables; the asset's gender by default.

        Raises:
            AssetError: the body has no template younger than its adult, or does not shrink towards the young.
        """
        if sex is None:
            sex = asset.metadata.gender if asset.metadata.gender in ("female", "male") else "neutral"  # pyright: ignore
        offsets, heights = _heights(asset)
        growth = _growth(sex)
        birth, adult = growth.median[0], growth.median[-1]
        tall = heights[0] / adult - 1
        target = growth.median * (1 + tall * (growth.median - birth) / (adult - birth))
        slope = (heights[-1] - heights[-2]) / (offsets[-1] - offsets[-2])
        beyond = np.minimum(target - heights[-1], 0) / slope
        curve = np.interp(target, heights[::-1], offsets[::-1]) + beyond
        if not (np.diff(curve) < 0).all():
            raise AssetError(
                f"{asset.metadata.name}: an adult of {heights[0]:.3f} m is too far from people's stature to "
                "have ages; are its units metres?"
            )
        return cls(growth.years, curve, target)

    def years_to_offset(self, years: Number) -> Number:
        """Age offset at an age [years]: a number, an array or a tensor (differentiable).

        0 from 19 years on; before birth counts as birth.
        """
        return _interpolate(years, self.years, self.offsets)

    def offset_to_years(self, age_offset: Number) -> Number:
        """Age [years] at an age offset: a number, an array or a tensor (differentiable).

        19 at and below offset 0, where a body is grown; 0 at and beyond the newborn's.
        """
        return _interpolate(age_offset, self.offsets[::-1], self.years[::-1])

    def years_to_stature(self, years: Number) -> Number:
        """Stature of this body, of mean shape, at an age [years], in metres."""
        return _interpolate(years, self.years, self.statures)

    def offset_to_stature(self, age_offset: Number) -> Number:
        """Stature of this body, of mean shape, at an age offset [m]; held beyond birth and 19 years."""
        return _interpolate(age_offset, self.offsets[::-1], self.statures[::-1])

    def stature_to_offset(self, stature: Number) -> Number:
        """Age offset at which this body, of mean shape, is so tall [m]; inverts `offset_to_stature`."""
        return _interpolate(stature, self.statures, self.offsets)


def _heights(asset: BodyAsset) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Stature over the age offsets from 0 up, ever smaller."""
    young = asset.age_offsets > 0
    if asset.age_templates is None or not young.any():
        raise AssetError(
            f"{asset.metadata.name}: has no infant template, so its age cannot change; "
            "load it with one: load_asset(..., infant_template=...)"
        )
    anchors = np.concatenate([[0.0], asset.age_offsets[young]])
    levels = np.concatenate([asset.template[None, :, 1], asset.age_templates[young, :, 1]]).astype(np.float64)
    # The highest vertex may change on the way from one anchor to the next: look at points between them, too.
    offsets = np.unique(np.concatenate([np.linspace(a, b, 9) for a, b in pairwise(anchors)]))
    right = np.clip(np.searchsorted(anchors, offsets), 1, len(anchors) - 1)
    share = ((offsets - anchors[right - 1]) / (anchors[right] - anchors[right - 1]))[:, None]
    heights = np.ptp(levels[right - 1] + share * (levels[right] - levels[right - 1]), axis=1)
    if not (np.diff(heights) < 0).all():
        raise AssetError(
            f"{asset.metadata.name}: expected a body that shrinks as its age offset grows, "
            f"got statures {np.round(heights, 3).tolist()} m at {np.round(offsets, 3).tolist()}"
        )
    return offsets, heights


def _of_one_kind(first: Any, second: Any) -> tuple[Any, Any]:
    """What is given beside a tensor, as a tensor of its type; numbers and arrays suit one another."""
    like = next((x for x in (first, second) if isinstance(x, Tensor)), None)
    if like is None:
        return first, second
    first, second = (
        x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=like.dtype, device=like.device)
        for x in (first, second)
    )
    return first, second


def _as_given(value: Any, like: Any) -> Any:
    """A tensor or an array where there is one, else a number."""
    kept = isinstance(value, Tensor) or isinstance(like, np.ndarray) or np.ndim(value) > 0
    return value if kept else float(value)


def _interpolate(x: Any, nodes: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> Any:
    """Piecewise linear through (nodes, values), nodes ascending, constant outside them; as np.interp."""
    if not isinstance(x, Tensor):
        return _as_given(np.interp(x, nodes, values), x)
    if not x.is_floating_point():
        raise TypeError(f"expected a tensor of floating point numbers, got {x.dtype}")
    xs, ys = (torch.as_tensor(part.copy(), dtype=x.dtype, device=x.device) for part in (nodes, values))
    inside = x.clamp(xs[0], xs[-1])[None]  # an index without a dimension stops torch.func.vmap
    right = torch.searchsorted(xs, inside.detach().contiguous()).clamp(1, len(xs) - 1)
    found = ys[right - 1] + (inside - xs[right - 1]) * (ys[right] - ys[right - 1]) / (
        xs[right] - xs[right - 1]
    )
    return found[0]
