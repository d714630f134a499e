"""Cameras: from points in the world to pixels, and between the conventions of the field."""

from agebody.cameras.boxes import box_around, box_condition, convert_box, from_crop, square_box, to_crop
from agebody.cameras.camera import Camera
from agebody.cameras.conventions import (
    convert_axes,
    convert_extrinsics,
    convert_pixels,
    from_pytorch3d,
    to_pytorch3d,
)
from agebody.cameras.distortion import field_limit
from agebody.cameras.torso import torso_translation
from agebody.cameras.weak import bev_to_translation, mahmr_to_translation, project_weak, weak_to_translation

__all__ = [
    "Camera",
    "bev_to_translation",
    "box_around",
    "box_condition",
    "convert_axes",
    "convert_box",
    "convert_extrinsics",
    "convert_pixels",
    "field_limit",
    "from_crop",
    "from_pytorch3d",
    "mahmr_to_translation",
    "project_weak",
    "square_box",
    "to_crop",
    "to_pytorch3d",
    "torso_translation",
    "weak_to_translation",
]
