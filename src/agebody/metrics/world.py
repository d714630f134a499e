"""Errors of motion: trajectories in the world, accelerations, jitter.

Points are (*batch, T, K, 3), frames before points; the entries that are reduced are frames. What `pose` says
of people holds here for frames: the error of one is the weighted mean over its points.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import Reduction, Weights, apply_mask, at_least_float32, expand_weights, expect, safe_norm
from agebody.metrics.alignment import procrustes, read_points
from agebody.metrics.pose import Errors, mean_over_points, point_distances

SEGMENT = 100
"""Frames that are aligned together (SLAHMR, WHAM, TRAM and GVHMR)."""


def w_mpjpe(
    pred: Float[Tensor, "*batch T K 3"],
    target: Float[Tensor, "*batch T K 3"],
    *,
    segment: int | None = SEGMENT,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """World MPJPE: each segment moved by the similarity that fits its first two frames.

    Segments follow one another from the first frame; the last may be shorter. The first two frames of one are
    the first two with weight. Published evaluations drop invalid frames before they cut segments: to match
    them to the digit, drop them, too.

    Args:
        pred: the points that were found, in any world.
        target: where they are.
        segment: frames that are aligned together; None for all.
        weights: confidences or a mask, broadcast to (*batch, T, K); of frames, ``mask[..., None]``.
        reduction: over frames.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.

    Ye et al., SLAHMR, CVPR 2023; Shin et al., WHAM, CVPR 2024. Both include the scale.
    """
    return w_mpjpe_errors(pred, target, segment=segment, weights=weights).reduce(reduction)


def wa_mpjpe(
    pred: Float[Tensor, "*batch T K 3"],
    target: Float[Tensor, "*batch T K 3"],
    *,
    segment: int | None = SEGMENT,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """World-aligned MPJPE: each segment moved by the similarity that fits all of its frames.

    Arguments and sources as of `w_mpjpe`.
    """
    return wa_mpjpe_errors(pred, target, segment=segment, weights=weights).reduce(reduction)


def root_trajectory_error(
    pred: Float[Tensor, "*batch T 3"],
    target: Float[Tensor, "*batch T 3"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Distance of the root after one rigid motion of the trajectory, over the length of the true path (RTE).

    Papers print it in per cent. Where the true root does not move, it is infinite.

    Args:
        pred: root positions that were found, in any world of the same scale.
        target: where the root is.
        weights: of the frames, broadcast to (*batch, T); the path runs straight over frames without weight.
        reduction: over frames.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.

    Shin et al., WHAM, CVPR 2024.
    """
    return root_trajectory_errors(pred, target, weights=weights).reduce(reduction)


def acceleration_error(
    pred: Float[Tensor, "*batch T K 3"],
    target: Float[Tensor, "*batch T K 3"],
    *,
    fps: float | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Length of the difference of the accelerations ``x[t - 1] - 2 x[t] + x[t + 1]``.

    Args:
        pred: the points that were found.
        target: where they are.
        fps: frames a second, for m/s²; None for m/frame², as many papers have it (in mm).
        weights: broadcast to (*batch, T, K). Three frames weigh their product.
        reduction: over the T - 2 frames that have two neighbours.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.

    Kanazawa et al., Learning 3D human dynamics from video, CVPR 2019.
    """
    return acceleration_errors(pred, target, fps=fps, weights=weights).reduce(reduction)


def jitter(
    points: Float[Tensor, "*batch T K 3"],
    *,
    fps: float | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Length of the third difference of the motion: of a prediction, to be compared with that of the truth.

    Args:
        points: (*batch, T, K, 3).
        fps: frames a second, for m/s³ (papers print 10 m/s³); None for m/frame³.
        weights: broadcast to (*batch, T, K). Four frames weigh their product.
        reduction: over T - 3 frames.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.

    Yi et al., TransPose, ACM TOG 40(4), 2021.
    """
    return jitter_errors(points, fps=fps, weights=weights).reduce(reduction)


def w_mpjpe_errors(
    pred: Tensor, target: Tensor, *, segment: int | None = SEGMENT, weights: Tensor | None = None
) -> Errors:
    """`w_mpjpe` before it is reduced."""
    return _aligned_by_segments(pred, target, segment, weights, first=2)


def wa_mpjpe_errors(
    pred: Tensor, target: Tensor, *, segment: int | None = SEGMENT, weights: Tensor | None = None
) -> Errors:
    """`wa_mpjpe` before it is reduced."""
    return _aligned_by_segments(pred, target, segment, weights, first=None)


def root_trajectory_errors(pred: Tensor, target: Tensor, *, weights: Tensor | None = None) -> Errors:
    """`root_trajectory_error` before it is reduced."""
    pred, target, weights = read_points(pred, target, weights)
    motion = procrustes(pred, target, weights=weights, with_scale=False)
    distances = point_distances(motion.apply(apply_mask(pred, weights, 1)), target, weights)
    path = safe_norm(_without_gaps(target, weights).diff(dim=-2)).sum(-1, keepdim=True)
    return Errors(distances / path, None if weights is None else weights != 0)


def acceleration_errors(
    pred: Tensor, target: Tensor, *, fps: float | None = None, weights: Tensor | None = None
) -> Errors:
    """`acceleration_error` before it is reduced."""
    pred, target, weights = read_points(pred, target, weights, 2)
    difference = apply_mask(pred, weights, 1) - apply_mask(target, weights, 1)
    return _lengths_of_differences(difference, 2, fps, weights)


def jitter_errors(points: Tensor, *, fps: float | None = None, weights: Tensor | None = None) -> Errors:
    """`jitter` before it is reduced."""
    expect("points", points, None, None, 3)
    points, weights = at_least_float32(points), expand_weights(weights, points.shape[:-1])
    return _lengths_of_differences(apply_mask(points, weights, 1), 3, fps, weights)


def _aligned_by_segments(
    pred: Tensor, target: Tensor, segment: int | None, weights: Tensor | None, first: int | None
) -> Errors:
    """Errors after each segment is moved by what fits its first frames, or all."""
    pred, target, weights = read_points(pred, target, weights, 2)
    if segment is not None and segment < 1:
        raise ValueError(f"segment: expected at least one frame, got {segment}")
    *batch, frames, points = pred.shape[:-1]
    segment = max(1, frames if segment is None else min(segment, frames))
    given = pred.new_ones(pred.shape[:-1]) if weights is None else weights.to(pred.dtype)
    padding = -frames % segment

    def cut(x: Tensor) -> Tensor:
        """(*batch, T, K, ...) to (*batch, segments, frames, K, ...), the last one filled up with zeros."""
        filler = x.new_zeros(*batch, padding, *x.shape[len(batch) + 1 :])
        return torch.cat((x, filler), len(batch)).unflatten(len(batch), (-1, segment))

    pred, target, given = cut(pred), cut(target), cut(given)
    fitted = given
    if first is not None:
        seen = (given != 0).any(-1)
        fitted = given * (seen & (seen.cumsum(-1) <= first))[..., None]
    motion = procrustes(pred.flatten(-3, -2), target.flatten(-3, -2), weights=fitted.flatten(-2))
    moved = motion.apply(apply_mask(pred, given, 1).flatten(-3, -2)).unflatten(-2, (segment, points))
    errors = mean_over_points(point_distances(moved, target, given), given)
    counted = None if weights is None else (given != 0).any(-1).flatten(-2)[..., :frames]
    return Errors(errors.values.flatten(-2)[..., :frames], counted)


def _lengths_of_differences(x: Tensor, order: int, fps: float | None, weights: Tensor | None) -> Errors:
    rate = 1.0 if fps is None else float(fps) ** order
    lengths = rate * safe_norm(x.diff(n=order, dim=-3))
    if weights is not None:
        given = weights.to(x.dtype)
        weights = given.unfold(-2, order + 1, 1).prod(-1) if given.shape[-2] > order else given[..., :0, :]
    return mean_over_points(lengths, weights)


def _without_gaps(points: Float[Tensor, "*batch T 3"], weights: Tensor | None) -> Float[Tensor, "*batch T 3"]:
    """Points of frames without weight are those of the last frame with, or of the first such frame."""
    if weights is None or not points.shape[-2]:
        return points
    seen = weights != 0
    frames = torch.arange(points.shape[-2], device=points.device)
    last = torch.where(seen, frames, 0).cummax(-1).values
    first = seen.to(torch.uint8).argmax(-1, keepdim=True)
    source = torch.maximum(last, first)
    return apply_mask(points, weights, 1).gather(-2, source[..., None].expand(points.shape))
