"""All people of one image in one metric space: their depths, positions and statures."""

from agebody.crowd.depths import mask_depths, surface_depth
from agebody.crowd.height_prior import HeightPrior, height_class
from agebody.crowd.placement import is_far, place_people
from agebody.crowd.refine import refine_crowd
from agebody.crowd.rescaling import rescale, rest_height
from agebody.crowd.scene import Deviations

__all__ = [
    "Deviations",
    "HeightPrior",
    "height_class",
    "is_far",
    "mask_depths",
    "place_people",
    "refine_crowd",
    "rescale",
    "rest_height",
    "surface_depth",
]
