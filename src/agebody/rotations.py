"""Rotations in the four formats that body models use.

Conventions, for the whole library:

- axis-angle: ``(*batch, 3)``, radians, direction is the axis and length the angle;
- matrix: ``(*batch, 3, 3)``, acts on column vectors;
- quaternion: ``(*batch, 4)``, **x, y, z, w**, as in SciPy, roma and Warp; normalised on input;
- rotation_6d: ``(*batch, 6)``, the first two **columns** of the matrix one after the other, as in HMR2
  (Zhou et al., CVPR 2019), orthonormalised by Gram-Schmidt.

Tensors of 16 bits are computed, and returned, in float32.
"""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.engine.batched import Array, BatchedFunction, at_least_float32, building, empty, is_recorded

__all__ = ["axis_angle_to_matrix", "from_matrix", "matrix_to_axis_angle", "mirror", "to_matrix"]

PoseFormat = Literal["axis_angle", "matrix", "quaternion", "rotation_6d"]

ENTRY_SHAPES: dict[str, tuple[int, ...]] = {
    "axis_angle": (3,),
    "matrix": (3, 3),
    "quaternion": (4,),
    "rotation_6d": (6,),
}
"""Shape of one rotation in each format."""


def no_rotation(pose_format: PoseFormat, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the identity rotation, built on the device: a CUDA graph cannot capture a copy from the CPU."""
    if pose_format == "axis_angle":
        return torch.zeros(3, dtype=dtype, device=device)
    identity = torch.eye(4 if pose_format == "quaternion" else 3, dtype=dtype, device=device)
    return {"matrix": identity, "quaternion": identity[-1], "rotation_6d": identity[:2].flatten()}[
        pose_format
    ]


def _read(name: str, value: Any) -> Tensor:
    """Check the shape of rotations in the format of that name; 16 bits become float32."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a torch.Tensor of a floating type, got {kind}")
    entry = ENTRY_SHAPES[name]
    if value.shape[max(value.dim() - len(entry), 0) :] != entry:
        expected = ", ".join(["*batch", *map(str, entry)])
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(value.shape)}")
    return at_least_float32(value)


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return matrices by Rodrigues' formula, with exact first and second derivatives at every angle.

    In the squared angle s = t^2 the matrix is analytic, so no division by a vanishing length is needed:
    ``R = cos(t) I + a(s) [v]x + b(s) v v^T`` with ``a = sin(t) / t`` and ``b = (1 - cos(t)) / t^2``.
    """
    axis_angle = _read("axis_angle", axis_angle)
    return RODRIGUES(None, axis_angle.reshape(-1, 3))[0].reshape(*axis_angle.shape, 3)


def _rodrigues(_: None, v: Tensor) -> tuple[Tensor]:
    s = (v * v).sum(-1, keepdim=True)
    small = s < _SMALL
    t = torch.sqrt(torch.where(small, 1.0, s))
    half = torch.sin(t / 2) / t
    a = torch.where(small, _series(s, _SINE), torch.sin(t) / t)
    b = torch.where(small, _series(s, _VERSINE), 2 * half * half)
    rest = torch.cat((1 - b * s, a * v), -1) @ _BASIS.to(v)
    return (torch.addcmul(rest.unflatten(-1, (3, 3)), (b * v)[:, :, None], v[:, None, :]),)


def _rodrigues_value(_: None, keep: bool, v: Array) -> tuple[tuple[Array], tuple[Array, ...]]:
    """Compute with the components first in memory, so that every step runs along the batch."""
    xp: Any = np if isinstance(v, np.ndarray) else torch
    v = _transpose(v)
    s = (v * v).sum(0)
    t = xp.sqrt(s) + TINY
    half = xp.sin(t / 2) / t
    a, b = xp.sin(t) / t, 2 * half * half
    matrix = constants(v).basis.T @ xp.concatenate((xp.cos(t)[None], a * v))
    matrix += ((b * v)[:, None] * v).reshape(9, -1)
    return (_transpose(matrix).reshape(-1, 3, 3),), (s, a, b) if keep else ()


def _rodrigues_gradient(
    _: None, wants: tuple[bool, ...], kept: tuple[Array, ...], grads: tuple[Array], v: Array
) -> tuple[Array]:
    xp: Any = np if isinstance(v, np.ndarray) else torch
    s, a, b = kept or _rodrigues_value(None, True, v)[1]
    basis, slopes = constants(v)
    v, g = _transpose(v), _transpose(grads[0].reshape(-1, 9))
    # a' = (cos t - a) / 2s and b' = (a / 2 - b) / s, which lose digits as s vanishes.
    series = slopes[0]
    for coefficients in slopes[1:]:
        series = series * s + coefficients
    da = xp.where(s < _SMALL, series[0], (1 - b * s - a) / (2 * s + TINY))
    db = xp.where(s < _SMALL, series[1], (a / 2 - b) / (s + TINY))
    trace, turn = (basis[:1] @ g)[0], basis[1:] @ g
    g = g.reshape(3, 3, -1)
    spread, gathered = (g * v).sum(1), (g * v[:, None]).sum(0)
    along = (turn * v).sum(0) * da + (spread * v).sum(0) * db - trace * a / 2
    return (_transpose(a * turn + b * (spread + gathered) + 2 * along * v),)


def _transpose(array: Array) -> Array:
    found = empty(array, *array.shape[::-1])
    found[...] = array.T
    return found


_BASIS = torch.tensor(
    (
        (1.0, 0, 0, 0, 1, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, -1, 0, 1, 0),
        (0, 0, 1, 0, 0, 0, -1, 0, 0),
        (0, -1, 0, 1, 0, 0, 0, 0, 0),
    )
)
"""Rows: the identity, and the cross products with the three axes."""
_SMALL = 0.0625
"""Squared angle below which series are used: the first term they drop is 4e-17 of the sum."""
_SINE = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(7))
_VERSINE = tuple((-1) ** n / math.factorial(2 * n + 2) for n in range(7))
_SLOPES = torch.tensor([[[n * _SINE[n]], [n * _VERSINE[n]]] for n in range(6, 0, -1)], dtype=torch.float64)
"""Coefficients of the derivatives of the two series, highest power first."""
TINY = 1e-30
"""Added to denominators."""


class _Constants(NamedTuple):
    basis: Array
    slopes: Array


def constants(like: Array) -> _Constants:
    """Return the constants of Rodrigues' formula as arrays of the kind of another."""
    if isinstance(like, np.ndarray):
        return _constants_on(None, like.dtype)
    if is_recorded():
        return _Constants(*(t.to(like.device, like.dtype) for t in (_BASIS, _SLOPES)))
    return _constants_on(like.device, like.dtype)


@functools.cache
def _constants_on(device: torch.device | None, dtype: Any) -> _Constants:
    """Return the constants as tensors on a device, or as NumPy arrays."""
    if device is None:
        return _Constants(*(t.numpy().astype(dtype) for t in (_BASIS, _SLOPES)))
    with building():
        return _Constants(*(t.to(device, dtype) for t in (_BASIS, _SLOPES)))


def _series(x: Array, coefficients: tuple[float, ...]) -> Array:
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value


RODRIGUES = BatchedFunction(1, _rodrigues, _rodrigues_value, _rodrigues_gradient, in_numpy=True)


def inverse_right_jacobian(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return J with ``R(v + J w) = R(v) exp([w]x)`` to first order, for angles up to pi.

    With v = t n, J is ``a I + [v]x / 2 + (1 - a) n n^T``, where a = (t / 2) cot(t / 2). Where t vanishes, so
    does the factor of n.
    """
    angle = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) + TINY
    axis, half = vectors / angle, angle / 2
    a = half / torch.tan(half)
    straight = torch.cat((a, vectors / 2), -1) @ constants(vectors).basis
    return straight.unflatten(-1, (3, 3)) + ((1 - a) * axis)[..., :, None] * axis[..., None, :]


def matrix_to_axis_angle(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Return rotation vectors with angles from 0 to pi [rad]."""
    import roma  # here, because it takes a second: it loads torch's compiler

    return roma.rotmat_to_rotvec(_read("matrix", matrix))


def quaternion_to_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Return matrices of quaternions x, y, z, w of any length; of zeros, the identity."""
    quaternion = _read("quaternion", quaternion)
    nothing = no_rotation("quaternion", quaternion.dtype, quaternion.device)
    quaternion = torch.where(_is_short(quaternion), quaternion + nothing, quaternion)
    x, y, z, w = quaternion.unbind(-1)
    scale = 2 / (quaternion * quaternion).sum(-1)
    rows = (
        1 - scale * (y * y + z * z),
        scale * (x * y - z * w),
        scale * (x * z + y * w),
        scale * (x * y + z * w),
        1 - scale * (x * x + z * z),
        scale * (y * z - x * w),
        scale * (x * z - y * w),
        scale * (y * z + x * w),
        1 - scale * (x * x + y * y),
    )
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Return unit quaternions x, y, z, w; of the two signs, the one roma chooses."""
    import roma

    return roma.rotmat_to_unitquat(_read("matrix", matrix))


def axis_angle_to_quaternion(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """Return unit quaternions x, y, z, w; ``torch.sinc(x)`` is ``sin(pi x) / (pi x)``."""
    angle = axis_angle.norm(dim=-1, keepdim=True)
    return torch.cat((torch.sinc(angle / (2 * math.pi)) / 2 * axis_angle, torch.cos(angle / 2)), -1)


def quaternion_to_axis_angle(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """Return rotation vectors with angles from 0 to pi of unit quaternions x, y, z, w."""
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    axis, cosine = quaternion.split((3, 1), -1)
    sine = axis.norm(dim=-1, keepdim=True)
    straight = sine == 0
    return torch.where(straight, 2, 2 * torch.atan2(sine, cosine) / torch.where(straight, 1, sine)) * axis


def left_multiplication(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return matrices whose product with a quaternion p is the quaternion product ``quaternion p``."""
    x, y, z, w = quaternion.unbind(-1)
    return torch.stack((w, -z, y, x, z, w, -x, y, -y, x, w, z, -x, -y, -z, w), -1).unflatten(-1, (4, 4))


def compose(first: Float[Tensor, "*batch 3"], second: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the rotation vectors of ``R(first) R(second)``, with angles from 0 to pi."""
    turn = left_multiplication(axis_angle_to_quaternion(first))
    return quaternion_to_axis_angle((turn @ axis_angle_to_quaternion(second)[..., None])[..., 0])


def rotation_6d_to_matrix(rotation_6d: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Orthonormalise the two columns and add their cross product (Zhou et al., CVPR 2019, eq. 15).

    Columns without a direction are replaced: a zero first one by the x axis, a second one that is zero or
    parallel to the first by the axis that is farthest from that. So the result is a rotation with finite
    gradients for every input, and zeros give the identity.
    """
    first, second = _read("rotation_6d", rotation_6d).split(3, -1)
    axes = torch.eye(3, dtype=first.dtype, device=first.device)
    first = _normalize(torch.where(_is_short(first), first + axes[0], first))
    across = second - (first * second).sum(-1, keepdim=True) * first
    # Of the axes after the x axis, so that the replacement for zeros is the y axis.
    farthest = axes[first.detach().abs()[..., (1, 2, 0)].argmin(-1)].roll(1, -1)
    replaced = second + farthest - (first * (second + farthest)).sum(-1, keepdim=True) * first
    second = _normalize(torch.where(_is_short(across, second), replaced, across))
    return torch.stack((first, second, torch.linalg.cross(first, second)), -1)


def _is_short(vectors: Tensor, of: Tensor | None = None) -> Bool[Tensor, "*batch 1"]:
    """Return whether vectors are too short for a direction, as such, or as remainders of other vectors."""
    limit = 1e-24
    if of is not None:
        limit = (256 * torch.finfo(of.dtype).eps ** 2 * (of * of).sum(-1, keepdim=True)).clamp(min=limit)
    return (vectors * vectors).sum(-1, keepdim=True) <= limit


def _normalize(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def matrix_to_rotation_6d(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """Return the first column, then the second column."""
    return _read("matrix", matrix)[..., :2].transpose(-1, -2).flatten(-2)


_TO_MATRIX: dict[str, Callable[[Tensor], Tensor]] = {
    "axis_angle": axis_angle_to_matrix,
    "matrix": lambda matrix: _read("matrix", matrix),
    "quaternion": quaternion_to_matrix,
    "rotation_6d": rotation_6d_to_matrix,
}
_FROM_MATRIX: dict[str, Callable[[Tensor], Tensor]] = {
    "axis_angle": matrix_to_axis_angle,
    "matrix": lambda matrix: _read("matrix", matrix),
    "quaternion": matrix_to_quaternion,
    "rotation_6d": matrix_to_rotation_6d,
}


def check_format(pose_format: Any, name: str = "pose_format") -> None:
    """Raise ValueError for an unknown pose format."""
    if not isinstance(pose_format, str) or pose_format not in ENTRY_SHAPES:
        raise ValueError(
            f"{name}: expected one of {', '.join(get_args(PoseFormat))}, got {reprlib.repr(pose_format)}"
        )


def to_matrix(rotation: Tensor, pose_format: PoseFormat) -> Float[Tensor, "*batch 3 3"]:
    """Return the matrices of rotations in any format."""
    check_format(pose_format)
    return _TO_MATRIX[pose_format](rotation)


def from_matrix(matrix: Float[Tensor, "*batch 3 3"], pose_format: PoseFormat) -> Tensor:
    """Return rotations in any format from matrices."""
    check_format(pose_format)
    return _FROM_MATRIX[pose_format](matrix)


def mirror(rotation: Tensor, pose_format: PoseFormat = "axis_angle") -> Tensor:
    """Return rotations in any format as seen in a mirror at x = 0: their axes (x, y, z) become (x, -y, -z).

    A pose is mirrored by these, and by exchanging left and right joints; see `BodyParameters.mirrored`.
    """
    check_format(pose_format)
    rotation = _read(pose_format, rotation)
    across = rotation.new_tensor([-1.0, 1, 1])
    signs = {
        "axis_angle": -across,
        "matrix": across[:, None] * across,
        "quaternion": rotation.new_tensor([1.0, -1, -1, 1]),
        "rotation_6d": matrix_to_rotation_6d(across[:, None] * across),
    }[pose_format]
    return rotation * signs
