"""Age in years against the age offset of one body."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import get_args
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float

from agebody.age.growth import Sex, growth_by_months
from agebody.age.values import Number, at_years, expect_metres, interpolate
from agebody.assets.asset import AssetError, BodyAsset, expect_asset
from agebody.checks import expect_choice


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
        """Return the curve of a body; computed once.

        Args:
            asset: the body; of a layer, its ``asset``.
            sex: which of the WHO's tables; the asset's gender by default.

        Raises:
            AssetError: the body has no template younger than its adult, or does not shrink towards the young.
        """
        expect_asset(asset)
        if sex is None:
            sex = asset.metadata.gender if asset.metadata.gender in ("female", "male") else "neutral"  # pyright: ignore
        expect_choice("sex", sex, get_args(Sex))
        known = _CURVES.setdefault(asset, {})
        if sex in known:
            return known[sex]
        offsets, heights = _heights(asset)
        growth = growth_by_months(sex, step=False)
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
        known[sex] = cls(growth.years, curve, target)
        return known[sex]

    def years_to_offset(self, years: Number) -> Number:
        """Return the age offset at an age [years]: a number, an array or a tensor (differentiable).

        0 from 19 years on; ages before birth are clamped to 0.
        """
        return at_years(years, self.years, self.offsets)

    def offset_to_years(self, age_offset: Number) -> Number:
        """Return the age [years] at an age offset: a number, an array or a tensor (differentiable).

        19 at and below offset 0, where a body is grown; 0 at and beyond the newborn's.
        """
        return interpolate("age_offset", age_offset, self.offsets[::-1], self.years[::-1])

    def years_to_stature(self, years: Number) -> Number:
        """Return the stature of this body, of mean shape, at an age [years], in metres."""
        return at_years(years, self.years, self.statures)

    def offset_to_stature(self, age_offset: Number) -> Number:
        """Return the stature of this body's mean shape at an age offset [m]; constant beyond birth and 19."""
        return interpolate("age_offset", age_offset, self.offsets[::-1], self.statures[::-1])

    def stature_to_offset(self, stature: Number) -> Number:
        """Return the age offset at which this body's mean shape has a stature [m]."""
        expect_metres(stature)
        return interpolate("stature", stature, self.statures, self.offsets)


_CURVES: WeakKeyDictionary[BodyAsset, dict[str, AgeCurve]] = WeakKeyDictionary()


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
