"""Cameras: from points in the world to pixels, and between the conventions of the field."""

from agebody.cameras.camera import Camera, Projection, focal_to_fov, fov_to_focal
from agebody.cameras.distortion import distort, field_limit, undistort

__all__ = [
    "Camera",
    "Projection",
    "distort",
    "field_limit",
    "focal_to_fov",
    "fov_to_focal",
    "undistort",
]
