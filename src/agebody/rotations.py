"""Rotations in the four formats that body models are driven with.

Conventions, for the whole library:

- axis-angle: ``(*batch, 3)``, radians, direction is the axis and length the angle;
- matrix: ``(*batch, 3, 3)``, acts on column vectors;
- quaternion: ``(*batch, 4)``, **x, y, z, w**, as in SciPy, roma and Warp; normalised when it is read;
- rotation_6d: ``(*batch, 6)``, the first two **columns** of the matrix one after the other, as in HMR2
  (Zhou et al., CVPR 2019), orthonormalised by Gram-Schmidt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import roma
import torch
from jaxtyping import Float
from torch import Tensor

PoseFormat = Literal["axis_angle", "matrix", "quaternion", "rotation_6d"]

ENTRY_SHAPES: dict[str, tuple[int, ...]] = {
    "axis_angle": (3,),
    "matrix": (3, 3),
    "quaternion": (4,),
    "rotation_6d": (6,),
}
"""Shape of one rotation in each format."""


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rodrigues' formula, exact with all its derivatives up to the second at zero rotation.

    Written in the squared angle, of which the matrix is an analytic function, so that nothing is
    divided by a vanishing length: ``R = cos(t) I + sinc(t) [v]x + (1 - cos(t)) / t^2 v v^T``.
    """
    squared = (axis_angle * axis_angle).sum(-1, keepdim=True)
    sinc, versine = _angle_functions(squared)
    x, y, z = (sinc * axis_angle).unbind(-1)
    cosine = (1 - versine * squared)[..., 0]
    skew = torch.stack((cosine, -z, y, z, cosine, -x, -y, x, cosine), -1).unflatten(-1, (3, 3))
    return skew + (versine * axis_angle)[..., :, None] * axis_angle[..., None, :]


def _angle_functions(squared: Tensor) -> tuple[Tensor, Tensor]:
    """sin(t)/t and (1 - cos t)/t^2 as functions of t^2."""
    # The series' first dropped term is 4e-17 of the result here, below the spacing of float64.
    small = squared < 0.0625
    angle = torch.sqrt(torch.where(small, torch.ones_like(squared), squared))
    half = torch.sin(angle / 2) / angle
    series_s = _polynomial(squared, (1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800))
    series_v = _polynomial(
        squared, (1 / 2, -1 / 24, 1 / 720, -1 / 40320, 1 / 3628800, -1 / 479001600, 1 / 87178291200)
    )
    return (
        torch.where(small, series_s, torch.sin(angle) / angle),
        torch.where(small, series_v, 2 * half * half),
    )


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def matrix_to_axis_angle(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Rotation vector of an angle from 0 to pi."""
    return roma.rotmat_to_rotvec(matrix)


def quaternion_to_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Matrix of a quaternion x, y, z, w of any non-zero length."""
    x, y, z, w = quaternion.unbind(-1)
    scale = 2 / (quaternion * quaternion).sum(-1)
    rows = (
        1 - scale * (y * y + z * z), scale * (x * y - z * w), scale * (x * z + y * w),
        scale * (x * y + z * w), 1 - scale * (x * x + z * z), scale * (y * z - x * w),
        scale * (x * z - y * w), scale * (y * z + x * w), 1 - scale * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion x, y, z, w; of the two signs, the one roma chooses."""
    return roma.rotmat_to_unitquat(matrix)


def rotation_6d_to_matrix(rotation_6d: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Gram-Schmidt on the two columns; the third is their cross product (Zhou et al., CVPR 2019, eq. 15)."""
    first, second = rotation_6d[..., :3], rotation_6d[..., 3:]
    first = first / first.norm(dim=-1, keepdim=True)
    second = second - (first * second).sum(-1, keepdim=True) * first
    second = second / second.norm(dim=-1, keepdim=True)
    return torch.stack((first, second, torch.linalg.cross(first, second)), -1)


def matrix_to_rotation_6d(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """First column, then second column."""
    return matrix[..., :2].mT.flatten(-2)


_TO_MATRIX: dict[str, Callable[[Tensor], Tensor]] = {
    "axis_angle": axis_angle_to_matrix,
    "matrix": lambda matrix: matrix,
    "quaternion": quaternion_to_matrix,
    "rotation_6d": rotation_6d_to_matrix,
}
_FROM_MATRIX: dict[str, Callable[[Tensor], Tensor]] = {
    "axis_angle": matrix_to_axis_angle,
    "matrix": lambda matrix: matrix,
    "quaternion": matrix_to_quaternion,
    "rotation_6d": matrix_to_rotation_6d,
}


def check_format(pose_format: str) -> None:
    """Raises ValueError for a name that is no pose format."""
    if pose_format not in ENTRY_SHAPES:
        raise ValueError(f"pose_format: expected one of {', '.join(get_args(PoseFormat))}, got {pose_format!r}")


def to_matrix(rotation: Tensor, pose_format: PoseFormat) -> Float[Tensor, "*batch 3 3"]:
    """Matrices of rotations in any format."""
    check_format(pose_format)
    return _TO_MATRIX[pose_format](rotation)


def from_matrix(matrix: Float[Tensor, "*batch 3 3"], pose_format: PoseFormat) -> Tensor:
    """Rotations in any format from matrices."""
    check_format(pose_format)
    return _FROM_MATRIX[pose_format](matrix)
