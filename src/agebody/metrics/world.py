"""Errors of motion: trajectories in the world, accelerations, jitter.

Points are (*batch, T, K, 3), frames before points; the entries that are reduced are frames. The error of a
frame is the weighted mean over its points."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_choice,
    read_count,
    read_positive,
    safe_norm,
)
from agebody.losses.temporal import consecutive_weights
from agebody.metrics.alignment import procrustes, read_points
from agebody.metrics.pose import mean_over_points, point_distances
from agebody.metrics.record import Errors, metric

SEGMENT = 100
"""Frames that are aligned together (SLAHMR, WHAM, TRAM and GVHMR)."""

Fitted = Literal["first_two", "all"]
"""The frames of a segment that its alignment fits."""

Rest = Literal["short", "joined"]
"""What becomes of the frames after the last whole segment."""


@metric()
def w_mpjpe(
    pred: Float[Tensor, "*batch T K 3"],
    target: Float[Tensor, "*batch T K 3"],
    *,
    align: Fitted = "first_two",
    segment: int | None = SEGMENT,
    rest: Rest = "short",
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the world MPJPE (W-MPJPE, WA-MPJPE): each segment is aligned by a similarity.

    Segments follow one another from the first frame. The first two frames of a segment are the first two of
    any weight. Published evaluations drop invalid frames before cutting segments: to match them to the digit,
    drop these frames, too.

    Args:
        pred: predicted points, in any world.
        target: true points.
        align: the frames that the similarity fits: "first_two" of each segment for W-MPJPE, "all" for the
            world-aligned WA-MPJPE.
        segment: frames that are aligned together; None for all.
        rest: "short": the frames after the last whole segment are a shorter one, as in WHAM and GVHMR.
            "joined": the last segment includes them, as in TRAM, whose code leaves out the last frame, or
            the last segment if no frames are left.
        weights: confidences or a mask, broadcast to (*batch, T, K); of frames, ``mask[..., None]``.
        reduction: over frames.

    Source: Ye et al., SLAHMR, CVPR 2023; Shin et al., WHAM, CVPR 2024. Both include the scale.
    """
    expect_choice("align", align, get_args(Fitted))
    first = 2 if align == "first_two" else None
    return _aligned_by_segments(pred, target, segment, rest, weights, first)


@metric()
def root_trajectory_error(
    pred: Float[Tensor, "*batch T 3"],
    target: Float[Tensor, "*batch T 3"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the distance of the rigidly aligned root over the length of the true path (RTE).

    Papers print it in per cent. It is infinite where the true root does not move.

    Args:
        pred: predicted root positions, in any world of the same scale.
        target: true root positions.
        weights: broadcast to (*batch, T); the path is straight over frames of weight 0.
        reduction: over frames.

    Source: Shin et al., WHAM, CVPR 2024.
    """
    pred, target, weights = read_points(pred, target, weights)
    motion = procrustes(pred, target, weights=weights, with_scale=False)
    distances = point_distances(motion.apply(apply_mask(pred, weights, 1)), target, weights)
    path = safe_norm(_without_gaps(target, weights).diff(dim=-2)).sum(-1, keepdim=True)
    if weights is not None:
        path = torch.where((weights != 0).any(-1, keepdim=True), path, 1)
    still = path == 0  # the gradient of a division would be NaN
    return Errors(torch.where(still, torch.inf, distances / torch.where(still, 1, path)), weights)


@metric()
def mrpe(
    pred: Float[Tensor, "*batch 3"],
    target: Float[Tensor, "*batch 3"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the mean root position error (MRPE): the distance of the root in camera coordinates, unaligned.

    Args:
        pred: predicted root positions.
        target: true root positions.
        weights: broadcast to (*batch).
        reduction: over people.

    Source: Moon et al., Camera distance-aware top-down approach for 3D multi-person pose estimation, ICCV
        2019.
    """
    pred, target, weights = read_points(pred, target, weights, 0)
    return Errors(point_distances(pred, target, weights), weights)


@metric()
def foot_sliding(
    pred: Float[Tensor, "*batch T K 3"],
    target: Float[Tensor, "*batch T K 3"],
    *,
    threshold: float = 0.01,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return by how much points of the feet move from frame to frame while the true ones rest.

    Args:
        pred: predicted points of the feet, in the world.
        target: true points.
        threshold: a true point rests if it moves less from frame to frame.
        weights: broadcast to (*batch, T, K). Two frames weigh their product.
        reduction: over the T - 1 steps of all points that rest.

    Source: Shin et al., WHAM, CVPR 2024, with four vertices of the soles.
    """
    pred, target, weights = read_points(pred, target, weights, 2)
    read_positive("threshold", threshold, "a distance", finite=False)
    moved, true = (safe_norm(apply_mask(x, weights, 1).diff(dim=-3)) for x in (pred, target))
    moved, rests = torch.where(true.isnan(), true, moved), (~(true >= threshold)).to(moved.dtype)
    both = consecutive_weights(weights, 2)
    return Errors(moved, rests if both is None else rests * both)


@metric()
def acceleration_error(
    pred: Float[Tensor, "*batch T K 3"],
    target: Float[Tensor, "*batch T K 3"],
    *,
    fps: float | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the length of the difference of the accelerations ``x[t - 1] - 2 x[t] + x[t + 1]``.

    Args:
        pred: predicted points.
        target: true points.
        fps: frames per second, for m/s²; None for m/frame², as in many papers (there in mm).
        weights: broadcast to (*batch, T, K). Three frames weigh their product.
        reduction: over the T - 2 frames that have two neighbours. WHAM and TRAM leave out the first and the
            last of these, GVHMR does not.

    Source: Kanazawa et al., Learning 3D human dynamics from video, CVPR 2019.
    """
    pred, target, weights = read_points(pred, target, weights, 2)
    difference = apply_mask(pred, weights, 1) - apply_mask(target, weights, 1)
    return _lengths_of_differences(difference, 2, fps, weights)


@metric()
def jitter(
    points: Float[Tensor, "*batch T K 3"],
    *,
    fps: float | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the length of the third difference of a motion, to be compared with that of the truth.

    EMDB's code sets pelvis, ankles, feet, wrists and hands to 0 and keeps them in the mean, so it prints
    15/24 of that of the other points, averaged over films.

    Args:
        points: (*batch, T, K, 3).
        fps: frames per second, for m/s³ (papers print 10 m/s³); None for m/frame³.
        weights: broadcast to (*batch, T, K). Four frames weigh their product.
        reduction: over T - 3 frames.

    Source: Yi et al., TransPose, ACM TOG 40(4), 2021.
    """
    points = expect("points", points, None, None, 3)
    weights = expand_weights(weights, points.shape[:-1])
    return _lengths_of_differences(apply_mask(points, weights, 1), 3, fps, weights)


def _aligned_by_segments(
    pred: Tensor, target: Tensor, segment: int | None, rest: Rest, weights: Tensor | None, first: int | None
) -> Errors:
    """Return the errors after aligning each segment by its first frames of any weight, or by all."""
    pred, target, weights = read_points(pred, target, weights, 2)
    if segment is not None:
        read_count("segment", segment, least=1)
    expect_choice("rest", rest, get_args(Rest))
    if rest == "joined" and segment is not None:
        frames, given = pred.shape[-3], pred.new_ones(pred.shape[:-1]) if weights is None else weights
        if frames <= segment:
            raise ValueError(f"pred: expected more than the {segment} frames of a segment, got {frames}")
        start = (frames - 1) // segment * segment - segment
        end = start + segment if frames % segment == 0 else frames - 1
        parts = [
            _aligned_by_segments(
                pred[..., rows, :, :], target[..., rows, :, :], size, "short", given[..., rows, :], first
            )
            for rows, size in ((slice(0, start), segment), (slice(start, end), None))
        ]
        left = pred.new_zeros(*pred.shape[:-3], frames - end)
        values, counted = (torch.cat([*both, left], -1) for both in zip(*parts, strict=True))
        return Errors(values, counted)
    *batch, frames, points = pred.shape[:-1]
    segment = max(1, frames if segment is None else min(segment, frames))
    given = pred.new_ones(pred.shape[:-1]) if weights is None else weights.to(pred.dtype)
    padding = -frames % segment

    def cut(x: Tensor) -> Tensor:
        """Cut (*batch, T, K, ...) into (*batch, segments, frames, K, ...), the last one zero-padded."""
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
    rate = 1.0 if fps is None else read_positive("fps", fps) ** order
    lengths = rate * safe_norm(x.diff(n=order, dim=-3))
    return mean_over_points(lengths, consecutive_weights(weights, order + 1))


def _without_gaps(points: Float[Tensor, "*batch T 3"], weights: Tensor | None) -> Float[Tensor, "*batch T 3"]:
    """Replace points of frames of weight 0 by those of the last frame before that counts, or of the first."""
    if weights is None or not points.shape[-2]:
        return points
    seen = weights != 0
    frames = torch.arange(points.shape[-2], device=points.device)
    last = torch.where(seen, frames, 0).cummax(-1).values
    first = seen.to(torch.uint8).argmax(-1, keepdim=True)
    source = torch.maximum(last, first)
    return apply_mask(points, weights, 1).gather(-2, source[..., None].expand(points.shape))
