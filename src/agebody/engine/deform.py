"""Reference implementation of the surface in plain torch, which every faster path is compared with."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.engine.batched import building, is_traced


def age_coefficients(
    age_offset: Float[Tensor, "*batch"], anchors: Sequence[float]
) -> Float[Tensor, "*batch A"]:
    """Return the weights of the differences (age template - template), piecewise linear between the anchors.

    Anchors are the ascending offsets of the age templates; an anchor at 0 is the template and not among them.
    Outside of them weights are extrapolated linearly. With one anchor at 1 (SMPL-A; Patel et al., CVPR 2021)
    they are the age offset itself.
    """
    if not anchors:
        return age_offset.new_zeros((*age_offset.shape, 0))
    make = _age_pieces if is_traced(age_offset) else _kept_age_pieces
    low, high, start, width, steps = make(tuple(anchors), age_offset.device, age_offset.dtype)
    age = age_offset[..., None]
    # Not clamp: at a knot its gradient would count both pieces; here it is that of the piece above.
    inside = torch.where(age < low, low, torch.where(age < high, age, high))
    return (((inside - start) / width)[..., None] * steps).sum(-2)


def _age_pieces(anchors: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the ends of the pieces between knots, the ends nearest to 0, the widths, and the signs (pieces,
    A) with which the progress in a piece counts in the weights."""
    knots = sorted([0.0, *anchors])
    pairs = list(itertools.pairwise(knots))
    low, high = [-inf, *knots[1:-1]], [*knots[1:-1], inf]
    start = [min(max(0.0, lower), upper) for lower, upper in zip(low, high, strict=True)]
    width = [upper - lower for lower, upper in pairs]
    steps = [[float((anchor == upper) - (anchor == lower)) for anchor in anchors] for lower, upper in pairs]
    return tuple(torch.tensor(part, dtype=dtype, device=device) for part in (low, high, start, width, steps))


@functools.cache
def _kept_age_pieces(
    anchors: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    with building():
        return _age_pieces(anchors, device, dtype)


def age_slopes(anchors: Sequence[float]) -> tuple[Float[np.ndarray, " inner"], Float[np.ndarray, "pieces A"]]:
    """Return the inner knots of `age_coefficients`, and its derivatives in the pieces between them."""
    knots = sorted([0.0, *anchors])
    slopes = np.zeros((len(knots) - 1, len(knots)))
    for piece, (low, high) in enumerate(itertools.pairwise(knots)):
        slopes[piece, piece : piece + 2] = -1 / (high - low), 1 / (high - low)
    return np.array(knots[1:-1]), slopes[:, [knots.index(anchor) for anchor in anchors]]


def rest_surface(
    template: Float[Tensor, "V 3"],
    directions: Float[Tensor, "V 3 C"],
    coefficients: Float[Tensor, "*batch C"],
) -> Float[Tensor, "*batch V 3"]:
    """Return ``template + directions @ coefficients``, for shape, age and pose blend shapes."""
    return template + torch.einsum("vxc,...c->...vx", directions, coefficients)


def pose_feature(rotations: Float[Tensor, "*batch J 3 3"]) -> Float[Tensor, "*batch P"]:
    """Return vec(R_j - I) of joints 1..J-1, row-major: the pose blend coefficients (SMPL, eq. 9)."""
    identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return (rotations[..., 1:, :, :] - identity).flatten(-3)


def linear_blend_skinning(
    vertices: Float[Tensor, "*batch V 3"],
    transforms: Float[Tensor, "*batch J 3 4"],
    weights: Float[Tensor, "V J"],
) -> Float[Tensor, "*batch V 3"]:
    """Return ``v_i = sum_j w_ij A_j v_i`` (SMPL, eq. 2)."""
    # Columns of each vertex's transform, vertices last: every product then runs along vertices.
    a, b, c, d = (transforms.mT.flatten(-2).mT @ weights.mT).unflatten(-2, (4, 3)).unbind(-3)
    x, y, z = vertices.mT[..., None, :].unbind(-3)
    return (a * x + b * y + c * z + d).mT.contiguous()
