"""Ages: age classes, growth by the WHO's tables, and the age offset of a body in years."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.assets.asset import AssetError, BodyAsset
from agebody.engine.batched import at_least_float32

__all__ = [
    "ADULT_YEARS",
    "AGE_CLASSES",
    "MAX_YEARS",
    "AgeClass",
    "AgeCurve",
    "AgeError",
    "Ages",
    "age_class",
    "median_head_circumference",
    "median_stature",
    "parse_ages",
    "percentile",
    "stature_at_percentile",
    "stature_sd",
    "z_score",
]

Sex = Literal["neutral", "female", "male"]
Number = TypeVar("Number", float, np.ndarray, Tensor)

ADULT_YEARS = 19.0
"""The age at which the WHO's reference ends, and that of a body's adult."""


class AgeClass(NamedTuple):
    """A range of age offsets, ``low < a <= high``, and a representative offset."""

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


def age_class(age_offset: Any) -> Any:
    """Return the index into ``AGE_CLASSES`` of each age offset, -1 for NaN; the first and the last class are
    open outwards.

    Offsets are compared in at most float32, so that an offset on a bound has the same class from a number, a
    tensor or a file of any precision.

    Args:
        age_offset: a number, an array or a tensor of any shape.

    Returns:
        An int, an array or a tensor of integers, as given.
    """
    if isinstance(age_offset, Tensor):
        offsets = age_offset
    else:
        offsets = torch.as_tensor(np.array(age_offset))
    offsets = offsets.float() if offsets.dtype not in (torch.float16, torch.bfloat16) else offsets
    highs = offsets.new_tensor([kind.high for kind in AGE_CLASSES[:-1]])
    found = torch.where(offsets.isnan(), UNKNOWN, torch.bucketize(offsets, highs))
    return found if isinstance(age_offset, Tensor) else _as_given(found.numpy(), age_offset, int)


MAX_YEARS = 130.0
"""Ages are below it. Nobody has become so old: a larger number is a year of birth, or counts months."""
UNKNOWN = -1
"""Age class of a person whose class is unknown."""


class AgeError(ValueError):
    """An age that cannot be: which argument and which person, and what was expected."""

    def __init__(self, name: str, person: int, problem: str) -> None:
        """Keep the parts, so that a reader of files can say where the age stands."""
        super().__init__(f"{name}: {problem}")
        self.name, self.person, self.problem = name, person, problem


class Ages(NamedTuple):
    """Ages of people as they are stated, at most one of the three numbers per person."""

    age_offset: Float[np.ndarray, "*people"]
    """0 adult, 1 infant; NaN where unknown."""
    years: Float[np.ndarray, "*people"]
    """NaN where unknown."""
    age_class: Int[np.ndarray, "*people"]
    """Index into ``AGE_CLASSES``, ``UNKNOWN`` where unknown."""

    @property
    def known(self) -> Bool[np.ndarray, "*people"]:
        """Whether the age of each person is stated."""
        return ~np.isnan(self.age_offset) | ~np.isnan(self.years) | (self.age_class != UNKNOWN)

    def select(self, rows: Any) -> Ages:
        """Return the ages of some of the people."""
        return Ages(*(part[rows] for part in self))

    def fill(self, other: Ages) -> Ages:
        """Return these ages, and the other ones where these are unknown."""
        return Ages(*(np.where(self.known, mine, theirs) for mine, theirs in zip(self, other, strict=True)))

    def classes(self, curve: AgeCurve) -> Int[np.ndarray, "*people"]:
        """Return the index of everyone's age class; years become an age offset by the curve of a body."""
        offsets = np.where(np.isnan(self.years), self.age_offset, curve.years_to_offset(self.years))
        found = age_class(torch.from_numpy(offsets)).numpy()
        return np.where(np.isnan(offsets), self.age_class, found)


def parse_ages(
    *, age_offset: Any = None, years: Any = None, age_class: Any = None, shape: tuple[int, ...] | None = None
) -> Ages:
    """Check ages of people and keep one per person: the rule of all files, arguments and commands.

    Each argument may be one value or a list, an array or a tensor of values. None, NaN and empty strings are
    unknown. Where a person has several ages, the age offset counts before the years, and these before the
    class.

    Args:
        age_offset: finite numbers; 0 adult, 1 infant.
        years: ages from 0 to below ``MAX_YEARS``.
        age_class: names of ``AGE_CLASSES``, in lower or upper case, or their indices; ``UNKNOWN`` is unknown.
        shape: of the people; by default the one that the arguments broadcast to.

    Raises:
        AgeError: a value is out of its range or not a number; the error says of which person.
    """
    names = ", ".join(kind.name for kind in AGE_CLASSES)
    parsed = {
        "age_offset": _parse("age_offset", age_offset, _offset, "a finite number"),
        "years": _parse("years", years, _years, f"a number from 0 to below {MAX_YEARS:g}"),
        "age_class": _parse("age_class", age_class, _class_index, f"{names} or 0 to {len(AGE_CLASSES) - 1}"),
    }
    shape = np.broadcast_shapes(*(part.shape for part in parsed.values())) if shape is None else shape
    for name, part in parsed.items():
        try:
            parsed[name] = np.broadcast_to(part, shape)
        except ValueError:
            expected = f"a shape that broadcasts to {tuple(shape)}"
            raise ValueError(f"{name}: expected {expected}, got {part.shape}") from None
    offsets, years, kinds = parsed.values()
    years = np.where(np.isnan(offsets), years, np.nan)
    kinds = np.where(np.isnan(offsets) & np.isnan(years) & ~np.isnan(kinds), kinds, UNKNOWN)
    return Ages(offsets.copy(), years, kinds.astype(np.int64))


def _parse(
    name: str, values: Any, read: Callable[[Any], float | None], expected: str
) -> Float[np.ndarray, "*people"]:
    """Return numbers, NaN where unknown. ``read`` returns None for a value that cannot be."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    elif isinstance(values, (list, tuple)):  # of anything: NumPy would look for a common type
        values = np.fromiter(values, dtype=object, count=len(values))
    array = np.array(values, dtype=object) if np.isscalar(values) or values is None else np.asarray(values)
    found = np.full(array.size, np.nan)
    for person, value in enumerate(array.ravel().tolist()):
        unknown = value is None or (isinstance(value, str) and not value) or value != value
        number = np.nan if unknown else read(value)
        if number is None:
            raise AgeError(name, person, f"expected {expected}, got {reprlib.repr(value)}")
        found[person] = number
    return found.reshape(array.shape)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite real number that a float64 holds; booleans are not numbers."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _offset(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _years(value: Any) -> float | None:
    return float(value) if is_number(value) and 0 <= value < MAX_YEARS else None


def _class_index(value: Any) -> float | None:
    names = [kind.name for kind in AGE_CLASSES]
    if isinstance(value, str):
        return names.index(value.lower()) if value.lower() in names else None
    if isinstance(value, Integral) and not isinstance(value, bool) and UNKNOWN <= int(value) < len(names):
        return np.nan if value == UNKNOWN else float(value)
    return None


_GROWTH_TABLE = """
  0  49.88 1.89  49.15 1.86
  1   54.7 1.95   53.7 1.95
  3   61.4 2.04   59.8 2.10
  6   67.6 2.14   65.7 2.27
  9     72 2.24   70.1 2.42
 12   75.7 2.38     74 2.57
 18   82.3 2.70   80.7 2.90
 24   87.8 3.05   86.4 3.23
 24   87.1 3.06   85.7 3.23
 30   91.9 3.41   90.7 3.53
 36   96.1 3.71   95.1 3.81
 48  103.3 4.19  102.7 4.31
 60    110 4.63  109.4 4.76
 72    116 4.93  115.1 5.12
 84  121.7 5.29  120.8 5.47
 96  127.3 5.65  126.6 5.80
108  132.6 6.01  132.5 6.11
120  137.8 6.37  138.6 6.40
132  143.1 6.73    145 6.65
144  149.1 7.09  151.2 6.84
156    156 7.43  156.4 6.94
168  163.2 7.69  159.8 6.94
180    169 7.80  161.7 6.88
192  172.9 7.77  162.5 6.79
204  175.2 7.64  162.9 6.69
216  176.1 7.47  163.1 6.61
228  176.5 7.30  163.2 6.54
"""
"""Months, then median and standard deviation of stature [cm] of males and of females (WHO child growth
standards 2006, WHO reference 2007). Up to the first row of 24 months children lie, from the second on they
stand."""


class _Growth(NamedTuple):
    """Median and standard deviation of stature [m] at every month from birth to 19 years."""

    years: Float[np.ndarray, " N"]
    median: Float[np.ndarray, " N"]
    sd: Float[np.ndarray, " N"]


@cache
def _growth(sex: Sex, *, step: bool = True) -> _Growth:
    """Return the WHO's tables, in which stature falls by 0.7 cm at 24 months.

    Without the step, the third year absorbs it, so that stature only grows.
    """
    if sex == "neutral":
        girl, boy = _growth("female", step=step), _growth("male", step=step)
        half = (boy.median - girl.median) / 2
        spread = np.sqrt((boy.sd**2 + girl.sd**2) / 2 + half**2)  # of the two normal distributions together
        return _Growth(boy.years, girl.median + half, spread)
    if sex not in ("female", "male"):
        raise ValueError(f"sex: expected 'neutral', 'female' or 'male', got {sex!r}")
    from scipy.interpolate import PchipInterpolator  # here, because it takes a quarter of a second to import

    months, *columns = np.array(_GROWTH_TABLE.split(), dtype=float).reshape(-1, 5).T
    standing = int(np.flatnonzero(np.diff(months) == 0)[0]) + 1
    years, chosen = months / 12, columns[2:] if sex == "female" else columns[:2]
    every = np.arange(12 * int(ADULT_YEARS) + 1) / 12
    if not step:
        kept = np.delete(np.arange(len(years)), (standing, standing + 1))
        return _Growth(every, *(PchipInterpolator(years[kept], part[kept] / 100)(every) for part in chosen))
    lying, upright = every[every <= years[standing]], every[every >= years[standing]]
    median, sd = (
        np.concatenate(
            [
                PchipInterpolator(years[part], column[part] / 100)(at)
                for part, at in ((slice(standing), lying), (slice(standing, None), upright))
            ]
        )
        for column in chosen
    )
    lying[-1] -= 1e-6  # years: two ages that float32 still tells apart
    return _Growth(np.concatenate((lying, upright)), median, sd)


def median_stature(years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the median stature [m] at an age, constant from 19 years on.

    The WHO's tables, interpolated by a monotone cubic (Fritsch and Carlson 1980) and linearly between months.
    Before 24 months the WHO measures length, lying, and from then on height, standing, which is 0.7 cm less
    for the same child. "neutral" is the mean of the two sexes.

    Args:
        years: age [years]; a number, an array or a tensor (differentiable). Ages before birth are clamped to
            0.
        sex: "neutral", "female" or "male".
    """
    growth = _growth(sex)
    return _interpolate(years, growth.years, growth.median)


def stature_sd(years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the standard deviation of stature [m] at an age; arguments as of ``median_stature``.

    "neutral" is that of girls and boys together, which exceeds that of either by their difference.
    """
    growth = _growth(sex)
    return _interpolate(years, growth.years, growth.sd)


def z_score(stature: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """Return how many standard deviations a stature is above the median of its age.

    The WHO's distributions of stature are normal (L = 1), so the score is ``(stature - median) / sd``. Girls
    and boys together are not quite normal; "neutral" assumes it, which errs by less than 1 percentile in
    children and 3 in adults.

    Args:
        stature: [m]; numbers, arrays or tensors, differentiable, and broadcast with the years.
        years: age [years], as of ``median_stature``.
        sex: "neutral", "female" or "male".
    """
    stature, years = _of_one_kind(stature, years)
    return (stature - median_stature(years, sex=sex)) / stature_sd(years, sex=sex)


def percentile(stature: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the percentage of people of an age who are not taller, from 0 to 100; arguments as of
    ``z_score``."""
    score: Any = z_score(stature, years, sex=sex)
    return _as_given(100 * _special(score).ndtr(score), score)


def stature_at_percentile(percentile: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the stature [m] that a percentage of people of an age do not exceed: the inverse of
    ``percentile``.

    Args:
        percentile: from 0 to 100, whose statures are infinite; NaN outside.
        years: as in ``z_score``.
        sex: "neutral", "female" or "male".
    """
    percentile, years = _of_one_kind(percentile, years)
    score = _special(percentile).ndtri(percentile / 100)
    return _as_given(median_stature(years, sex=sex) + score * stature_sd(years, sex=sex), percentile)


# Median head circumference [cm] (WHO child growth standards 2007) at few ages.
_HEAD_YEARS = (0, 0.5, 1, 2, 5)
_HEAD = {"male": (34.46, 43.34, 46.06, 48.25, 50.74), "female": (33.88, 42.21, 44.89, 47.18, 49.92)}


def median_head_circumference(years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the median head circumference [m] from birth to 5 years; NaN later, where the WHO's standard
    ends.

    The table holds birth, 6 months, 1, 2 and 5 years. They are interpolated by a monotone cubic of the age to
    the power 0.75, along which a head grows more evenly; between birth and 6 months that may err by some mm.
    "neutral" is the mean of the two sexes. Arguments as of ``median_stature``.
    """
    nodes, values = _head_growth(sex)
    found: Any = _interpolate(years, nodes, values)
    choose: Any = torch.where if isinstance(found, Tensor) else np.where
    return _as_given(choose(years > nodes[-1], np.nan, found), found)


@cache
def _head_growth(sex: Sex) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return head circumferences [m] by months."""
    years = np.arange(12 * _HEAD_YEARS[-1] + 1) / 12
    if sex == "neutral":
        return years, (_head_growth("female")[1] + _head_growth("male")[1]) / 2
    if sex not in _HEAD:
        raise ValueError(f"sex: expected 'neutral', 'female' or 'male', got {sex!r}")
    from scipy.interpolate import PchipInterpolator

    power = 0.75
    curve = PchipInterpolator(np.power(_HEAD_YEARS, power), np.array(_HEAD[sex]) / 100)
    return years, curve(years**power)


@dataclass(frozen=True, eq=False)
class AgeCurve:
    """Age in years against the age offset of one body, through stature.

    No such map is published, and it depends on the body: the adult and the infant of a file decide the shape
    at offset 0.5. So the body's own stature at each offset is measured (zero betas), and set equal to the
    WHO's median stature at an age, adapted to the height of this body as an adult:

        target(y) = WHO(y) (1 + (H(0) / WHO(19) - 1) g(y)),   g(y) = (WHO(y) - WHO(0)) / (WHO(19) - WHO(0))

    with H(a) the body's stature at offset a. Offset 0 is thus every body's adult, from 19 years on; a body
    whose adult is 2 % taller than the median is less so as a child, and a newborn of median length; and there
    are no jumps: the third year absorbs the WHO's step from lying to standing. Newborns shorter than the
    youngest template have a greater offset, on the same line.

    The curve is tabulated by months and linear between them, so that both directions invert each other
    exactly.
    """

    years: Float[np.ndarray, " N"]
    """Ages from 0 to 19, ascending."""
    offsets: Float[np.ndarray, " N"]
    """Age offset at each of these ages, descending to 0."""
    statures: Float[np.ndarray, " N"]
    """Stature at each of these ages [m]."""

    @classmethod
    def from_asset(cls, asset: BodyAsset, *, sex: Sex | None = None) -> AgeCurve:
        """Compute the curve of a body.

        Args:
            asset: the body; of a layer, its ``asset``.
            sex: which of the WHO's tables; the asset's gender by default.

        Raises:
            AssetError: the body has no template younger than its adult, or does not shrink towards the young.
        """
        if sex is None:
            sex = asset.metadata.gender if asset.metadata.gender in ("female", "male") else "neutral"  # pyright: ignore
        offsets, heights = _heights(asset)
        growth = _growth(sex, step=False)
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
        """Return the age offset at an age [years]: a number, an array or a tensor (differentiable).

        0 from 19 years on; ages before birth are clamped to 0.
        """
        return _interpolate(years, self.years, self.offsets)

    def offset_to_years(self, age_offset: Number) -> Number:
        """Return the age [years] at an age offset: a number, an array or a tensor (differentiable).

        19 at and below offset 0, where a body is grown; 0 at and beyond the newborn's.
        """
        return _interpolate(age_offset, self.offsets[::-1], self.years[::-1])

    def years_to_stature(self, years: Number) -> Number:
        """Return the stature of this body, of mean shape, at an age [years], in metres."""
        return _interpolate(years, self.years, self.statures)

    def offset_to_stature(self, age_offset: Number) -> Number:
        """Return the stature of this body, of mean shape, at an age offset [m]; constant beyond birth and 19
        years."""
        return _interpolate(age_offset, self.offsets[::-1], self.statures[::-1])

    def stature_to_offset(self, stature: Number) -> Number:
        """Return the age offset at which this body, of mean shape, has a stature [m]; inverts
        `offset_to_stature`."""
        return _interpolate(stature, self.statures, self.offsets)


def _heights(asset: BodyAsset) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return statures over the age offsets from 0 up, descending."""
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


def _special(values: Any) -> Any:
    """Return the special functions of torch or SciPy."""
    if isinstance(values, Tensor):
        return torch.special
    from scipy import special

    return special


def _of_one_kind(first: Any, second: Any) -> tuple[Any, Any]:
    """Convert what is given beside a tensor to a tensor of its type; numbers and arrays mix as they are."""
    like = next((x for x in (first, second) if isinstance(x, Tensor)), None)
    if like is None:
        return first, second
    first, second = (
        at_least_float32(
            x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=like.dtype, device=like.device)
        )
        for x in (first, second)
    )
    return first, second


def _as_given(value: Any, like: Any, number: type = float) -> Any:
    """Return a tensor or an array if either is given, else a number."""
    kept = isinstance(value, Tensor) or isinstance(like, np.ndarray) or np.ndim(value) > 0
    return value if kept else number(value)


def _interpolate(x: Any, nodes: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> Any:
    """Interpolate linearly between (nodes, values), nodes ascending, constant outside them; as np.interp."""
    if not isinstance(x, Tensor):
        return _as_given(np.interp(x, nodes, values), x)
    if not x.is_floating_point():
        raise TypeError(f"expected a tensor of floating point numbers, got {x.dtype}")
    x = at_least_float32(x)
    xs, ys = (torch.as_tensor(part.copy(), dtype=x.dtype, device=x.device) for part in (nodes, values))
    inside = x.clamp(xs[0], xs[-1])[None]  # an index without a dimension stops torch.func.vmap
    right = torch.searchsorted(xs, inside.detach().contiguous()).clamp(1, len(xs) - 1)
    found = ys[right - 1] + (inside - xs[right - 1]) * (ys[right] - ys[right - 1]) / (
        xs[right] - xs[right - 1]
    )
    return found[0]
