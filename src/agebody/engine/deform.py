"""Reference implementation of the surface in plain torch, which every faster path is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def age_coefficients(
    age_offset: Float[Tensor, "*batch"], anchors: Sequence[float]
) -> Float[Tensor, "*batch A"]:
    """Return the weights of the differences (age template - template), piecewise linear between the anchors.

    Args:
        age_offset: 0 adult, 1 infant; outside the anchors, extrapolated linearly.
        anchors: ascending offsets of the age templates, none of them 0: that anchor is the template.

    Returns:
        With one anchor at 1 (SMPL-A; Patel et al., CVPR 2021) the age offset itself.
    """
    knots = sorted([0.0, *anchors])
    slots = {anchor: slot for slot, anchor in enumerate(anchors)}
    weights = [torch.zeros_like(age_offset) for _ in anchors]
    for i, (low, high) in enumerate(itertools.pairwise(knots)):
        lower = -inf if i == 0 else low
        upper = inf if i == len(knots) - 2 else high
        # Not clamp: at a knot its gradient would count both pieces; here it is that of the piece above.
        inside = torch.where(age_offset < lower, lower, torch.where(age_offset < upper, age_offset, upper))
        progress = (inside - min(max(0.0, lower), upper)) / (high - low)
        if high in slots:
            weights[slots[high]] = weights[slots[high]] + progress
        if low in slots:
            weights[slots[low]] = weights[slots[low]] - progress
    if not weights:
        return age_offset.new_zeros((*age_offset.shape, 0))
    return torch.stack(weights, -1)


def age_slopes(
    anchors: Sequence[float],
) -> tuple[Float[np.ndarray, " inner"], Float[np.ndarray, "pieces A"]]:
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
