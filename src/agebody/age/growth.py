"""Growth of people by the WHO's tables."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.age.values import (
    Number,
    as_given,
    at_years,
    constant,
    expect_metres,
    numbers,
    of_one_kind,
    special_functions,
)
from agebody.checks import expect_choice

Sex = Literal["neutral", "female", "male"]

ADULT_YEARS = 19.0
"""The age at which the WHO's reference ends, and that of a body's adult."""

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


class Growth(NamedTuple):
    """Median and standard deviation of stature [m] at every month from birth to 19 years."""

    years: Float[np.ndarray, " N"]
    median: Float[np.ndarray, " N"]
    sd: Float[np.ndarray, " N"]


@constant
def growth_by_months(sex: Sex, *, step: bool = True) -> Growth:
    """Return the WHO's tables, in which stature falls by 0.7 cm at 24 months.

    Without the step, the third year absorbs it, so that stature only grows.
    """
    if sex == "neutral":
        girl, boy = growth_by_months("female", step=step), growth_by_months("male", step=step)
        half = (boy.median - girl.median) / 2
        spread = np.sqrt((boy.sd**2 + girl.sd**2) / 2 + half**2)  # of the two normal distributions together
        return Growth(boy.years, girl.median + half, spread)
    from scipy.interpolate import PchipInterpolator  # here, because it takes a quarter of a second to import

    months, *columns = np.array(_GROWTH_TABLE.split(), dtype=float).reshape(-1, 5).T
    standing = int(np.flatnonzero(np.diff(months) == 0)[0]) + 1
    years, chosen = months / 12, columns[2:] if sex == "female" else columns[:2]
    every = np.arange(12 * int(ADULT_YEARS) + 1) / 12
    if not step:
        kept = np.delete(np.arange(len(years)), (standing, standing + 1))
        return Growth(every, *(PchipInterpolator(years[kept], part[kept] / 100)(every) for part in chosen))
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
    return Growth(np.concatenate((lying, upright)), median, sd)


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
    expect_choice("sex", sex, get_args(Sex))
    growth = growth_by_months(sex)
    return at_years(years, growth.years, growth.median)


def stature_sd(years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the standard deviation of stature [m] at an age; arguments as of ``median_stature``.

    "neutral" is that of girls and boys together, which exceeds that of either by their difference.
    """
    expect_choice("sex", sex, get_args(Sex))
    growth = growth_by_months(sex)
    return at_years(years, growth.years, growth.sd)


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
    stature, years = of_one_kind(stature=stature, years=years)
    expect_metres(stature)
    return (stature - median_stature(years, sex=sex)) / stature_sd(years, sex=sex)


def percentile(stature: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the percentage of people of an age who are not taller; arguments as of ``z_score``."""
    score: Any = z_score(stature, years, sex=sex)
    return as_given(100 * special_functions(score).ndtr(score), score)


def stature_at_percentile(percentile: Number, years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the stature [m] of a percentile of an age: the inverse of ``percentile``.

    Args:
        percentile: from 0 to 100, whose statures are infinite; NaN outside.
        years: as in ``z_score``.
        sex: "neutral", "female" or "male".
    """
    percentile, years = of_one_kind(percentile=percentile, years=years)
    score = special_functions(percentile).ndtri(percentile / 100)
    return as_given(median_stature(years, sex=sex) + score * stature_sd(years, sex=sex), percentile)


# Median head circumference [cm] (WHO child growth standards 2007) at few ages.
_HEAD_YEARS = (0, 0.5, 1, 2, 5)
_HEAD = {"male": (34.46, 43.34, 46.06, 48.25, 50.74), "female": (33.88, 42.21, 44.89, 47.18, 49.92)}


def median_head_circumference(years: Number, *, sex: Sex = "neutral") -> Number:
    """Return the median head circumference [m] from birth to 5 years, the WHO's range; later NaN.

    The table holds birth, 6 months, 1, 2 and 5 years. They are interpolated by a monotone cubic of the age to
    the power 0.75, along which a head grows more evenly; between birth and 6 months that may err by some mm.
    "neutral" is the mean of the two sexes. Arguments as of ``median_stature``.
    """
    expect_choice("sex", sex, get_args(Sex))
    nodes, values = _head_growth(sex)
    given: Any = years if isinstance(years, Tensor) else numbers("years", years)
    found: Any = at_years(years, nodes, values)
    choose: Any = torch.where if isinstance(found, Tensor) else np.where
    return as_given(choose(given > _HEAD_YEARS[-1], np.nan, found), found)


@constant
def _head_growth(sex: Sex) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return head circumferences [m] by months."""
    years = np.arange(12 * _HEAD_YEARS[-1] + 1) / 12
    if sex == "neutral":
        return years, (_head_growth("female")[1] + _head_growth("male")[1]) / 2
    from scipy.interpolate import PchipInterpolator

    power = 0.75
    curve = PchipInterpolator(np.power(_HEAD_YEARS, power), np.array(_HEAD[sex]) / 100)
    return years, curve(years**power)
