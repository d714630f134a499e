"""Losses of motion, for sequences: the dimension of frames is before that of points or joints."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expand_to,
    expand_weights,
    expect,
    expect_values,
    read_number,
    reduce,
)
from agebody.losses.parameters import rotation_angle, visible_matrices
from agebody.losses.robust import Penalty, penalize
from agebody.rotations import PoseFormat


def velocity_loss(
    points: Float[Tensor, "*batch T K D"],
    *,
    times: Float[Tensor, "*times"] | None = None,
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``p(J_t+1 - J_t)``, summed over coordinates, of each point between neighbouring frames.

    AionHMR's fitting takes half of its sum. Given the *difference* of a prediction and its target, it is the
    error of the velocity.

    Args:
        points: (*batch, T, K, D) points [m], or other values that should change slowly.
        times: (*batch, T) or (T,), ascending [s], for residuals that are velocities, also at irregular times.
            By default they are the steps from frame to frame. Seconds of a clock need float64, of which the
            loss has the points' type all the same.
        weights: broadcast to (*batch, T, K). Two frames weigh their product.
        penalty: p, of each coordinate.
        reduction: over (*batch, T - 1, K).
    """
    steps, durations, weights = _steps(points, times, weights)
    return _reduced(steps / durations, consecutive_weights(weights, 2), penalty, reduction)


def acceleration_loss(
    points: Float[Tensor, "*batch T K D"],
    *,
    momentum: float = 1.0,
    times: Float[Tensor, "*times"] | None = None,
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``p(J_t+1 - J_t - m (J_t - J_t-1))`` of each point, summed over its coordinates.

    m = 1 is the acceleration. SMIL's registration (Hesse et al., MICCAI 2018; smplify-kids) takes m = 1/2:
    points move on, but slow down; to fit one frame after the other, detach the two that are done. m = 0 asks
    for rest.

    Args:
        points: (*batch, T, K, D) points [m].
        momentum: m, the share of the last velocity that is expected again.
        times: as of `velocity_loss`: residuals are then accelerations, exact for a constant one at irregular
            times.
        weights: broadcast to (*batch, T, K). Three frames weigh their product.
        penalty: p, of each coordinate.
        reduction: over (*batch, T - 2, K).
    """
    momentum = read_number("momentum", momentum)
    steps, durations, weights = _steps(points, times, weights)
    velocity = steps / durations
    between = (_later(durations) + _earlier(durations)) / 2
    changes = (_later(velocity) - momentum * _earlier(velocity)) / between
    return _reduced(changes, consecutive_weights(weights, 3), penalty, reduction)


def angular_velocity_loss(
    rotations: Float[Tensor, "*shape"],
    *,
    pose_format: PoseFormat = "matrix",
    times: Float[Tensor, "*times"] | None = None,
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``p(t)`` of each joint, with t the angle from each frame's rotation to the next [rad].

    Args:
        rotations: (*batch, T, J, 3, 3), or what the format says in place of the matrices.
        pose_format: format of the rotations.
        times: as of `velocity_loss`, for angular velocities.
        weights: broadcast to (*batch, T, J). Two frames weigh their product.
        penalty: p, of the angle.
        reduction: over (*batch, T - 1, J).
    """
    matrices = visible_matrices("rotations", rotations, pose_format, weights)
    entries = expect("rotations", matrices, None, None, 3, 3).shape[:-2]
    weights = expand_weights(weights, entries)
    angles = rotation_angle(matrices[..., 1:, :, :, :], matrices[..., :-1, :, :, :])
    speeds = angles[..., None] / _durations(matrices[..., 0], times, weights)
    return _reduced(speeds, consecutive_weights(weights, 2), penalty, reduction)


def _steps(points: Tensor, times: Tensor | None, weights: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return steps between frames, (*batch, T - 1, K, D), their durations, and weights, (*batch, T, K)."""
    points = expect("points", points, None, None, None)
    weights = expand_weights(weights, points.shape[:-1])
    points = apply_mask(points, weights, 1)
    return _later(points) - _earlier(points), _durations(points, times, weights), weights


def _durations(points: Tensor, times: Tensor | None, weights: Tensor | None) -> Tensor:
    """Return durations that broadcast to the steps; 1 without times and for steps of weight 0."""
    *batch, frames, _, _ = points.shape
    if times is None:
        return points.new_ones(max(frames - 1, 0), 1, 1)
    times = expand_to("times", expect("times", times), (*batch, frames))[..., None, None]
    durations = _later(times) - _earlier(times)
    both = consecutive_weights(weights, 2)
    durations = durations if both is None else torch.where(both[..., None] != 0, durations, 1)
    if durations.device.type == "cpu":  # elsewhere it would wait for the device
        ascending = (durations > 0) & durations.isfinite()
        expect_values(times=(ascending, f"ascending seconds, which {times.dtype} tells apart"))
    return durations.to(points.dtype)


def _later(frames: Tensor) -> Tensor:
    return frames[..., 1:, :, :]


def _earlier(frames: Tensor) -> Tensor:
    return frames[..., :-1, :, :]


def consecutive_weights(weights: Tensor | None, frames: int) -> Tensor | None:
    """Return the product of the weights of so many consecutive frames."""
    if weights is None:
        return None
    starts = max(weights.shape[-2] - frames + 1, 0)
    product = weights[..., :starts, :]
    for first in range(1, frames):
        product = product * weights[..., first : first + starts, :]
    return product


def _reduced(residuals: Tensor, weights: Tensor | None, penalty: Penalty, reduction: Reduction) -> Tensor:
    return reduce(penalize(residuals, penalty).sum(-1), weights, reduction)
