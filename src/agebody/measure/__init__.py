"""Differentiable measurements of a body."""

from agebody.measure.definitions import A2B_MEASUREMENTS, MEASUREMENTS, Distance, Girth, Height
from agebody.measure.landmarks import find_landmarks
from agebody.measure.measurements import Measurements, stature
from agebody.measure.sections import plane_section, section_length

__all__ = [
    "A2B_MEASUREMENTS",
    "MEASUREMENTS",
    "Distance",
    "Girth",
    "Height",
    "Measurements",
    "find_landmarks",
    "plane_section",
    "section_length",
    "stature",
]
