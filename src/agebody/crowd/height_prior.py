"""Priors of stature: by age class, by age in years, and by the age offset of a body."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from agebody.age import AgeCurve, Sex, median_stature, stature_sd
from agebody.age.values import MAX_YEARS, TALLEST
from agebody.checks import (
    expect,
    expect_labels,
    expect_numbers,
    expect_tensor,
    expect_values,
    read_dtype,
    read_nonnegative,
)


class HeightClass(NamedTuple):
    """Mean and standard deviation of the stature of a group of people [m]."""

    name: str
    mean: float
    sd: float


HEIGHT_CLASSES = (
    HeightClass("adult", 1.715, 0.1),
    HeightClass("woman", 1.647, 0.0707),
    HeightClass("man", 1.784, 0.0759),
    HeightClass("under 3", 0.801, 0.126),
    HeightClass("3 to 8", 1.122, 0.12),
    HeightClass("8 to 15", 1.477, 0.156),
)
"""The classes of DTO (Wang et al. 2025). "adult" is also used for unknown sex or age."""
SEXES: tuple[Sex, ...] = get_args(Sex)
"""The sexes by index: neutral (or unknown), female, male."""


def is_stature(heights: Float[Tensor, "*people"]) -> Bool[Tensor, "*people"]:
    """Return whether numbers can be statures in metres."""
    return (heights > 0) & (heights <= TALLEST)


class HeightPrior(NamedTuple):
    """A normal distribution of stature per person [m]."""

    mean: Float[Tensor, "*people"]
    sd: Float[Tensor, "*people"]

    @classmethod
    def of_class(cls, classes: Int[Tensor, "*people"], *, dtype: torch.dtype | None = None) -> HeightPrior:
        """Return the prior of each person's class, an index into ``HEIGHT_CLASSES`` as by `height_class`.

        Args:
            classes: index per person.
            dtype: of the prior; torch's default if None.
        """
        expect_tensor("classes", classes)
        last = len(HEIGHT_CLASSES) - 1
        expect_values(classes=((classes >= 0) & (classes <= last), f"indices from 0 to {last}"))
        rows, dtype = [kind[1:] for kind in HEIGHT_CLASSES], read_dtype(dtype)
        table = torch.tensor(rows, dtype=dtype, device=classes.device)
        return cls(*table[classes].unbind(-1))

    @classmethod
    def of_age(
        cls,
        years: Float[Tensor, "*people"],
        *,
        sex: Int[Tensor, "*people"] | None = None,
        years_sd: float | Float[Tensor, "*#people"] = 0.0,
    ) -> HeightPrior:
        """Return the WHO's median and standard deviation of stature, widened by the uncertainty of the age.

            sd^2 = SD(y)^2 + ((H(y + u) - H(y - u)) / 2)^2,    u = years_sd

        Args:
            years: age [years].
            sex: 0 neutral or unknown, 1 female, 2 male (an index into ``SEXES``); all neutral if None.
            years_sd: u, the standard deviation of the age [years].
        """
        years = expect("years", years)
        years_sd = expect_numbers("years_sd", years_sd, years)
        expect_values(years_sd=(years_sd >= 0, "ages of 0 or more [years]"))
        sexes = None if sex is None else _expect_sex(sex, years)

        def read(table, at: Tensor) -> Tensor:
            if sexes is None:
                return table(at)
            rows = torch.stack([table(at, sex=name) for name in SEXES])
            return rows.gather(0, sexes[None])[0]

        half_range = (read(median_stature, years + years_sd) - read(median_stature, years - years_sd)) / 2
        return cls(read(median_stature, years), torch.hypot(read(stature_sd, years), half_range))

    @classmethod
    def of_age_offset(
        cls,
        age_offset: Float[Tensor, "*people"],
        curve: AgeCurve,
        *,
        sex: Int[Tensor, "*people"] | None = None,
        offset_sd: float = 0.1,
    ) -> HeightPrior:
        """Return the WHO's prior at the age of an age offset of a body.

        Args:
            age_offset: of a fit or a network.
            curve: of the body: ``AgeCurve.from_asset(body.asset)``.
            sex: as in `of_age`.
            offset_sd: standard deviation of the offset; counts by the years that it corresponds to there.
        """
        age_offset = expect("age_offset", age_offset)
        offset_sd = read_nonnegative("offset_sd", offset_sd)
        older, younger = (curve.offset_to_years(age_offset + way) for way in (-offset_sd, offset_sd))
        return cls.of_age(curve.offset_to_years(age_offset), sex=sex, years_sd=(older - younger) / 2)

    def towards(
        self, height: Float[Tensor, "*people"], *, share: float | Float[Tensor, "*#people"] = 0.5
    ) -> HeightPrior:
        """Return the prior with its mean moved by a share of the way to a fitted stature.

        DTO moves the mean of adults half-way, and not at all for children, because networks know adult
        bodies.

        Args:
            height: fitted stature per person [m].
            share: 0 keeps the mean, 1 takes the height; one number, or one per person.
        """
        height = expect("height", height)
        share = expect_numbers("share", share, height)
        expect_values(share=((share >= 0) & (share <= 1), "shares from 0 to 1"))
        return self._replace(mean=self.mean + share * (height - self.mean))


def height_class(
    years: Float[Tensor, "*people"], *, sex: Int[Tensor, "*people"] | None = None
) -> Int[Tensor, "*people"]:
    """Return an index into ``HEIGHT_CLASSES`` per person; adults are 15 years or older, as in DTO.

    Args:
        years: age [years]; NaN (unknown) gives the class of adults.
        sex: as in `HeightPrior.of_age`; only used for adults, because the table does not split children.
    """
    years = expect("years", years)
    stated = years.isnan() | ((years >= 0) & (years < MAX_YEARS))
    expect_values(years=(stated, f"ages from 0 to below {MAX_YEARS:g}, and NaN where unknown"))
    grown = torch.zeros_like(years, dtype=torch.long) if sex is None else _expect_sex(sex, years)
    found = torch.where(years < 15, 5, grown)
    found = torch.where(years < 8, 4, found)
    return torch.where(years < 3, 3, found)


def _expect_sex(sex: Shaped[Tensor, "*people"], people: Tensor) -> Tensor:
    sex = expect_labels("sex", sex, people.shape)
    known = (sex >= 0) & (sex < len(SEXES))
    expect_values(sex=(known, f"indices into SEXES, 0 to {len(SEXES) - 1}"))
    return sex.long()
