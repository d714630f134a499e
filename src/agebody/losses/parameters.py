"""Losses of body parameters: rotations in any format, and betas."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    expand_weights,
    expect,
    expect_dtype,
    expect_weights,
    reduce,
    residual,
    safe_norm,
)
from agebody.engine.batched import product
from agebody.losses.robust import Penalty, penalize
from agebody.rotations import ENTRY_SHAPES, PoseFormat, check_format, no_rotation, to_matrix

METRIC_AWARE_BETA_WEIGHTS = (2.56, 1.28, 0.64, 0.64, 0.32, 0.32, 0.32, 0.32, 0.32, 0.32)
"""Weights of the errors of ten betas in Metric-Aware HMR; ``beta_weights`` takes a tensor of them."""


def rotation_loss(
    pred: Float[Tensor, "*pred_shape"],
    target: Float[Tensor, "*target_shape"],
    *,
    pose_format: PoseFormat = "matrix",
    target_format: PoseFormat | None = None,
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``w |R - R'|_F^2`` per rotation: the sum over the nine entries of the matrices.

    Squared, it is ``8 sin^2(t / 2)`` with t the angle between the two: bounded, and smooth everywhere. HMR2
    (ICCV 2023) sums it; SPIN (ICCV 2019) takes the mean over entries, a ninth of ``"mean"``.

    Args:
        pred: rotations, (*entries, 3, 3) or what the format says. Matrices are used as they are.
        target: rotations, as many.
        pose_format: format of the prediction.
        target_format: format of the target; the prediction's by default.
        weights: broadcast to (*entries): with (B, J) rotations and a label per person, (B, 1).
        penalty: of each entry of the difference.
        reduction: over rotations.
    """
    pred, target, weights = paired_matrices(pred, target, pose_format, target_format, weights)
    return reduce(penalize(pred - target, penalty).sum((-2, -1)), weights, reduction)


def geodesic_loss(
    pred: Float[Tensor, "*pred_shape"],
    target: Float[Tensor, "*target_shape"],
    *,
    pose_format: PoseFormat = "matrix",
    target_format: PoseFormat | None = None,
    weights: Weights = None,
    penalty: Penalty = "l1",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``w p(t)`` per rotation, with t the angle between prediction and target [rad].

    Arguments as of `rotation_loss`, but the penalty p is of the angle.
    """
    pred, target, weights = paired_matrices(pred, target, pose_format, target_format, weights)
    return reduce(penalize(rotation_angle(pred, target), penalty), weights, reduction)


def rotation_angle(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Return the angle between rotations, from 0 to pi [rad], exact at both ends.

    The arc cosine of the trace loses half of the digits at either end, where its gradient is infinite. This
    is the arc tangent of sine and cosine: gradients have the right length at any angle between, and are zero
    at the two ends, where the angle has a kink.
    """
    between = product(first.mT, second)
    twist = between - between.mT
    sine = safe_norm(torch.stack((twist[..., 2, 1], twist[..., 0, 2], twist[..., 1, 0]), -1))
    cosine = between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.atan2(sine, cosine)


def betas_loss(
    pred: Float[Tensor, "*batch N"],
    target: Float[Tensor, "*batch N"],
    *,
    beta_weights: Float[Tensor, " N"] | None = None,
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``w sum_i v_i p(b_i - b'_i)`` per person.

    HMR2 (ICCV 2023) sums over people; SPIN (ICCV 2019) takes the mean over all betas, an N-th of ``"mean"``;
    AionHMR appends the age offset to the betas. Metric-Aware HMR weights the betas by v,
    `METRIC_AWARE_BETA_WEIGHTS`.

    Args:
        pred: (*batch, N) betas.
        target: (*batch, N) betas.
        beta_weights: (N,) v; all 1 by default.
        weights: broadcast to (*batch): who has labels.
        penalty: p, of each beta.
        reduction: over people.
    """
    difference, weights = residual(pred, target, weights, None)
    terms = penalize(difference, penalty)
    if beta_weights is not None:
        beta_weights = expect("beta_weights", beta_weights)
        if beta_weights.shape != pred.shape[-1:]:
            raise ValueError(
                f"beta_weights: expected shape ({pred.shape[-1]},), got {tuple(beta_weights.shape)}"
            )
        expect_weights(beta_weights, "beta_weights")
        terms = terms * beta_weights
    return reduce(terms.sum(-1), weights, reduction)


def visible_matrices(
    name: str, rotations: Any, pose_format: PoseFormat, weights: Tensor | None
) -> Float[Tensor, "*entries 3 3"]:
    """Return matrices of rotations after checking them; no rotation where they have weight 0."""
    check_format(pose_format)
    entry = ENTRY_SHAPES[pose_format]
    rotations = expect(name, rotations, *entry)
    weights = expand_weights(weights, rotations.shape[: rotations.dim() - len(entry)])
    if weights is not None:
        nothing = no_rotation(pose_format, rotations.dtype, rotations.device)
        rotations = torch.where((weights != 0)[(..., *[None] * len(entry))], rotations, nothing)
    return to_matrix(rotations, pose_format)


def paired_matrices(
    pred: Tensor, target: Tensor, pose_format: PoseFormat, target_format: PoseFormat | None, weights: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return matrices of predicted and of as many true rotations by `visible_matrices`, and weights."""
    first = visible_matrices("pred", pred, pose_format, weights)
    if target_format is not None:
        check_format(target_format, "target_format")
    second = visible_matrices("target", target, target_format or pose_format, weights)
    expect_dtype("target", second, first)
    entries = first.shape[:-2]
    if second.shape[:-2] != entries:
        raise ValueError(
            f"target: expected rotations of shape {tuple(entries)}, got {tuple(second.shape[:-2])}"
        )
    return first, second, expand_weights(weights, entries)
