"""Ages: age classes, growth by the WHO's tables, and the age offset of a body in years."""

from agebody.age.classes import AGE_CLASSES, Ages, age_class, parse_ages
from agebody.age.classes import UNKNOWN as UNKNOWN
from agebody.age.classes import is_number as is_number
from agebody.age.curve import AgeCurve
from agebody.age.growth import Sex as Sex
from agebody.age.growth import (
    median_head_circumference,
    median_stature,
    percentile,
    stature_at_percentile,
    stature_sd,
    z_score,
)

__all__ = [
    "AGE_CLASSES",
    "AgeCurve",
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
