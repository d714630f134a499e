"""How tall people are likely to be: by class, by age in years, by the age offset of a fit."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from agebody.age import AgeCurve, Sex, median_stature, stature_sd
from agebody.checks import expect
from agebody.crowd.values import expect_values


class HeightClass(NamedTuple):
    """A group of people, and how tall they are."""

    name: str
    mean: float
    """[m]"""
    sd: float
    """[m]"""


HEIGHT_CLASSES = (
    HeightClass("adult", 1.715, 0.1),
    HeightClass("woman", 1.647, 0.0707),
    HeightClass("man", 1.784, 0.0759),
    HeightClass("under 3", 0.801, 0.126),
    HeightClass("3 to 8", 1.122, 0.12),
    HeightClass("8 to 15", 1.477, 0.156),
)
"""The classes of DTO (Wang et al. 2025). "adult" is anybody of unknown sex, and of unknown age."""
NUM_ADULT_CLASSES = 3
"""The first so many of them are grown up."""
SEXES: tuple[Sex, ...] = get_args(Sex)
"""Names of the numbers that stand for a sex: neutral (or unknown), female, male."""


class HeightPrior(NamedTuple):
    """A normal distribution of stature for each person."""

    mean: Float[Tensor, "*people"]
    """[m]"""
    sd: Float[Tensor, "*people"]
    """[m]"""

    def towards(
        self, height: Float[Tensor, "*people"], *, share: float | Float[Tensor, "*#people"] = 0.5
    ) -> HeightPrior:
        """With the mean moved by a share of the way to the height that a single-person network gave.

        DTO moves the mean of every adult half-way, and that of no child: networks know grown bodies.

        Args:
            height: of each person's body as it was found [m].
            share: 0 keeps the prior's mean, 1 takes the height; one number, or one a person.
        """
        expect("height", height)
        return self._replace(mean=self.mean + share * (height - self.mean))


def height_class(
    years: Float[Tensor, "*people"], *, sex: Int[Tensor, "*people"] | None = None
) -> Int[Tensor, "*people"]:
    """Index into ``HEIGHT_CLASSES``, adults from 15 years on as DTO has them.

    Args:
        years: age [years]; NaN where it is not known, which gives the class of adults.
        sex: index into ``SEXES``; of adults only, as the table has one row for girls and boys.

    Raises:
        TypeError: ages are not of a floating type, or sexes no integers.
    """
    expect("years", years)
    grown = torch.zeros_like(years, dtype=torch.long) if sex is None else _expect_sex(sex, years)
    found = torch.where(years < 15, 5, grown)
    found = torch.where(years < 8, 4, found)
    return torch.where(years < 3, 3, found)


def prior_of_class(classes: Int[Tensor, "*people"], *, dtype: torch.dtype | None = None) -> HeightPrior:
    """The prior of each person's class, an index into ``HEIGHT_CLASSES``.

    Args:
        classes: such as `height_class` gives.
        dtype: of the prior; torch's default if None.

    Raises:
        ValueError: there is no such class.
    """
    kinds = len(HEIGHT_CLASSES)
    expect_values(classes=((classes >= 0) & (classes < kinds), f"indices from 0 to {kinds - 1}"))
    dtype = torch.get_default_dtype() if dtype is None else dtype
    table = torch.tensor([kind[1:] for kind in HEIGHT_CLASSES], dtype=dtype, device=classes.device)
    return HeightPrior(*table[classes].unbind(-1))


def prior_of_age(
    years: Float[Tensor, "*people"],
    *,
    sex: Int[Tensor, "*people"] | None = None,
    years_sd: float | Float[Tensor, "*#people"] = 0.0,
) -> HeightPrior:
    """Median and standard deviation of stature by the WHO's tables, widened where the age is not certain.

        sd^2 = SD(y)^2 + ((H(y + u) - H(y - u)) / 2)^2,    u = years_sd

    Args:
        years: age [years].
        sex: index into ``SEXES``; all neutral if None.
        years_sd: u, how far the age may be off [years].

    Raises:
        TypeError: ages are not of a floating type, or sexes no integers.
    """
    expect("years", years)
    sexes = None if sex is None else _expect_sex(sex, years)

    def read(table, at: Tensor) -> Tensor:
        if sexes is None:
            return table(at)
        rows = torch.stack([table(at, sex=name) for name in SEXES])
        return rows.gather(0, sexes[None])[0]

    half_range = (read(median_stature, years + years_sd) - read(median_stature, years - years_sd)) / 2
    return HeightPrior(read(median_stature, years), torch.hypot(read(stature_sd, years), half_range))


def prior_of_age_offset(
    age_offset: Float[Tensor, "*people"],
    curve: AgeCurve,
    *,
    sex: Int[Tensor, "*people"] | None = None,
    offset_sd: float = 0.1,
) -> HeightPrior:
    """The WHO's prior at the age for which an age offset of a body stands.

    Args:
        age_offset: of a fit or a network.
        curve: of the body: ``AgeCurve.from_asset(body.asset)``.
        sex: index into ``SEXES``; all neutral if None.
        offset_sd: how far the offset may be off. It counts by the years that it makes there.

    Raises:
        TypeError: offsets are not of a floating type, or sexes no integers.
    """
    expect("age_offset", age_offset)
    older, younger = (curve.offset_to_years(age_offset + way) for way in (-offset_sd, offset_sd))
    return prior_of_age(curve.offset_to_years(age_offset), sex=sex, years_sd=(older - younger) / 2)


def _expect_sex(sex: Shaped[Tensor, "*people"], people: Tensor) -> Tensor:
    if not isinstance(sex, Tensor) or sex.is_floating_point() or sex.dtype == torch.bool:
        kind = sex.dtype if isinstance(sex, Tensor) else type(sex).__name__
        raise TypeError(f"sex: expected a torch.Tensor of integers, indices into SEXES, got {kind}")
    if sex.shape != people.shape:
        raise ValueError(f"sex: expected shape {tuple(people.shape)}, got {tuple(sex.shape)}")
    known = (sex >= 0) & (sex < len(SEXES))
    expect_values(sex=(known, f"indices into SEXES, 0 to {len(SEXES) - 1}"))
    return sex.long()
