"""Several people of one image in one space: where each stands, and how tall."""

from agebody.crowd.depths import MaskDepths, mask_depths, surface_depth
from agebody.crowd.height_prior import (
    HEIGHT_CLASSES,
    NUM_ADULT_CLASSES,
    SEXES,
    HeightClass,
    HeightPrior,
    height_class,
    prior_of_age,
    prior_of_age_offset,
    prior_of_class,
)
from agebody.crowd.placement import DISPARITY_MIN_SLOPE, Placement, is_far, place_people
from agebody.crowd.refine import Deviations, Refined, refine_crowd
from agebody.crowd.write_back import WrittenBack, rest_height, write_back

__all__ = [
    "DISPARITY_MIN_SLOPE",
    "HEIGHT_CLASSES",
    "NUM_ADULT_CLASSES",
    "SEXES",
    "Deviations",
    "HeightClass",
    "HeightPrior",
    "MaskDepths",
    "Placement",
    "Refined",
    "WrittenBack",
    "height_class",
    "is_far",
    "mask_depths",
    "place_people",
    "prior_of_age",
    "prior_of_age_offset",
    "prior_of_class",
    "refine_crowd",
    "rest_height",
    "surface_depth",
    "write_back",
]
