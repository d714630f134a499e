"""Conventions of other libraries: axes, pixel centres, and the direction and the side of transforms.

| name | camera axes | centre of the first pixel | transform in its files |
|---|---|---|---|
| "agebody", "colmap" | x right, y down, z forward | 0.5 | world to camera |
| "opencv" | x right, y down, z forward | 0 | world to camera |
| "opengl", "blender" | x right, y up, z backward | | camera to world |
| "pytorch3d" | x left, y up, z forward | 0.5 | world to camera, for row vectors |
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.cameras.camera import Camera, Size, as_size, expect_camera, join_rigid, split_rigid
from agebody.checks import expect, expect_choice

Axes = Literal["agebody", "opencv", "colmap", "opengl", "blender", "pytorch3d"]
"""Conventions of camera axes."""

Pixels = Literal["agebody", "opencv", "colmap", "pytorch3d"]
"""Conventions of pixel coordinates."""

Direction = Literal["world_to_camera", "camera_to_world"]

DOWN, UP, LEFT = (1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)

SIGNS = {
    **dict.fromkeys(("agebody", "opencv", "colmap"), DOWN),
    **dict.fromkeys(("opengl", "blender"), UP),
    "pytorch3d": LEFT,
}
"""Sign of each axis against OpenCV's; all are rotations by half a turn."""

CENTERS: dict[str, float] = {"agebody": 0.5, "opencv": 0.0, "colmap": 0.5, "pytorch3d": 0.5}
"""Coordinates of the centre of the first pixel."""

Value = TypeVar("Value")


def convert_axes(points: Float[Tensor, "*batch 3"], source: Axes, target: Axes) -> Float[Tensor, "*batch 3"]:
    """Convert points in camera coordinates to the axes of another convention."""
    return expect("points", points, 3) * _signs(source, target, points)


def convert_extrinsics(
    matrix: Float[Tensor, "*batch n 4"],
    source: Axes,
    target: Axes,
    *,
    direction: Direction,
    result: Direction | None = None,
) -> Float[Tensor, "*batch 4 4"]:
    """Convert a camera's pose to the camera axes of another convention; the world's axes stay.

    World to camera, rows change sign; camera to world, columns do. One is the inverse of the other,
    [R^T | -R^T t].

    Args:
        matrix: [R | t] for column vectors, (3, 4) or (4, 4).
        source: convention of its camera axes.
        target: convention of the result.
        direction: of the matrix, "world_to_camera" or "camera_to_world".
        result: direction of the result, by default the same.
    """
    result = direction if result is None else result
    for name, given in (("direction", direction), ("result", result)):
        expect_choice(name, given, get_args(Direction))
    rotation, translation = split_rigid("matrix", matrix)
    signs = _signs(source, target, rotation)
    if direction == "world_to_camera":
        rotation, translation = signs[:, None] * rotation, signs * translation
    else:
        rotation = rotation * signs
    if result != direction:
        rotation, translation = rotation.mT, -(rotation * translation[..., None]).sum(-2)
    return join_rigid(rotation, translation)


def convert_pixels(
    points: Float[Tensor, "*batch 2"], source: Pixels, target: Pixels
) -> Float[Tensor, "*batch 2"]:
    """Convert points or a principal point [pixels] to another convention of pixel centres."""
    shift = _known("target", target, CENTERS) - _known("source", source, CENTERS)
    return expect("points", points, 2) + shift


class PyTorch3DCamera(NamedTuple):
    """Arguments of ``pytorch3d.renderer.PerspectiveCameras`` with ``in_ndc=True``, by their names there."""

    R: Float[Tensor, "*batch 3 3"]
    """For row vectors: p_camera = p_world R + T."""
    T: Float[Tensor, "*batch 3"]
    focal_length: Float[Tensor, "*batch 2"]
    """In half of the image's shorter side."""
    principal_point: Float[Tensor, "*batch 2"]
    """In the same unit, from the middle of the image, to the left and up."""


def to_pytorch3d(camera: Camera, size: Size) -> PyTorch3DCamera:
    """Convert a camera to pytorch3d's.

    Args:
        camera: without distortion, which pytorch3d's camera lacks.
        size: width and height of the image [pixels].
    """
    expect_camera(camera)
    if camera.distortion is not None:
        raise ValueError("camera: expected no distortion, which pytorch3d's PerspectiveCameras lacks")
    rotation, translation = split_rigid("camera", camera.world_to_camera)
    signs = _signs("agebody", "pytorch3d", rotation)
    extent = as_size(size, camera.focal)
    half = extent.amin(-1, keepdim=True) / 2
    return PyTorch3DCamera(
        R=rotation.mT * signs,
        T=translation * signs,
        focal_length=camera.focal / half,
        principal_point=(extent / 2 - camera.center) / half,
    )


def from_pytorch3d(camera: PyTorch3DCamera, size: Size) -> Camera:
    """Convert pytorch3d's camera, in NDC, to ours; the inverse of `to_pytorch3d`.

    Args:
        camera: any tuple of (R, T, focal_length, principal_point).
        size: width and height of the image [pixels].
    """
    rotation, translation, focal, principal = camera
    signs = _signs("pytorch3d", "agebody", expect("R", rotation, 3, 3))
    extent = as_size(size, focal)
    half = extent.amin(-1, keepdim=True) / 2
    return Camera(
        focal=expect("focal_length", focal, 2) * half,
        center=extent / 2 - expect("principal_point", principal, 2) * half,
        rotation=(rotation * signs).mT,
        translation=expect("T", translation, 3) * signs,
    )


def _signs(source: str, target: str, like: Tensor) -> Float[Tensor, " 3"]:
    pairs = zip(_known("source", source, SIGNS), _known("target", target, SIGNS), strict=True)
    return torch.tensor([a * b for a, b in pairs], dtype=like.dtype, device=like.device)


def _known(argument: str, name: str, table: dict[str, Value]) -> Value:
    expect_choice(argument, name, table)
    return table[name]
