"""Errors of pose, shape and stature: one number a person.

The error of a person is the weighted mean of the distances of their points: with confidences of 0.5
everywhere it is the same as with 1. Then people are reduced: ``"none"`` gives one number each, ``"mean"``
and ``"sum"`` run over those who have a point of any weight; the others are 0 in ``"none"``. Lengths are in
the unit of the input, which is metres in this library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    at_least_float32,
    expand_weights,
    expect,
    expect_pair,
    reduce,
    safe_norm,
)
from agebody.keypoints import KeypointLayout
from agebody.metrics.alignment import best_scale, procrustes_align, read_points, root_points

Layout = str | KeypointLayout | None
Root = Sequence[str] | Sequence[int] | None


class Errors(NamedTuple):
    """One number an entry, before they are reduced."""

    values: Float[Tensor, "*entries"]
    counted: Bool[Tensor, "*entries"] | None
    """Which of them count; None for all."""

    def reduce(self, reduction: Reduction) -> Float[Tensor, "*left"]:
        """As `agebody.checks.reduce`."""
        return reduce(self.values, self.counted, reduction)


def mpjpe(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    layout: Layout,
    root: Root = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Mean per-joint position error, after both roots are moved to the origin.

    Args:
        pred: the points that were found.
        target: where they are.
        layout: what the points are, or its name; None where no layout says so.
        root: names of the points whose mean is the root, by default the layout's own, or their indices;
            ``("left_hip", "right_hip")`` is usual, too. With neither layout nor root the points are compared
            where they are.
        weights: confidences or a mask, broadcast to (*batch, K). Someone whose root points do not all have
            weight does not count.
        reduction: over people.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.

    Ionescu et al., Human3.6M, IEEE TPAMI 36(7), 2014.
    """
    return mpjpe_errors(pred, target, layout=layout, root=root, weights=weights).reduce(reduction)


def n_mpjpe(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    layout: Layout,
    root: Root = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """`mpjpe` of the prediction scaled about its root by the factor that suits each person best.

    Arguments as there. Rhodin et al., Unsupervised geometry-aware representation for 3D human pose
    estimation, ECCV 2018.
    """
    return n_mpjpe_errors(pred, target, layout=layout, root=root, weights=weights).reduce(reduction)


def pa_mpjpe(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Mean per-joint position error after the similarity of `procrustes`, a person each.

    The similarity minimises squared distances, so this may exceed `mpjpe`, if by little.

    Args:
        pred: the points that were found.
        target: where they are.
        weights: (*batch, K), of the fit and of the mean.
        reduction: over people.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    return pa_mpjpe_errors(pred, target, weights=weights).reduce(reduction)


def pve(
    pred: Float[Tensor, "*batch V 3"],
    target: Float[Tensor, "*batch V 3"],
    *,
    pred_root: Float[Tensor, "*batch 3"] | None,
    target_root: Float[Tensor, "*batch 3"] | None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Mean per-vertex error, after both roots are moved to the origin.

    Args:
        pred: the vertices that were found.
        target: where they are.
        pred_root: the root joint, such as ``joints[..., 0, :]`` or `root_of` some keypoints; None for both
            roots leaves the vertices where they are.
        target_root: the same of the target.
        weights: (*batch, V).
        reduction: over people.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.

    Pavlakos et al., Learning to estimate 3D human pose and shape from a single color image, CVPR 2018.
    """
    errors = pve_errors(pred, target, pred_root=pred_root, target_root=target_root, weights=weights)
    return errors.reduce(reduction)


def pa_pve(
    pred: Float[Tensor, "*batch V 3"],
    target: Float[Tensor, "*batch V 3"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """`pa_mpjpe` of vertices: the similarity is fitted to the vertices themselves."""
    return pa_mpjpe_errors(pred, target, weights=weights).reduce(reduction)


def joint_errors(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    layout: Layout,
    root: Root = None,
    weights: Weights = None,
    reduction: Reduction = "none",
) -> Float[Tensor, "*left"]:
    """Distance of each joint after both roots are moved to the origin: what `mpjpe` is the mean of.

    Arguments as there, but the entries are joints, (*batch, K), and reduced as those of every loss.
    For what is left after another alignment, align first and give no root.
    """
    distances, weights = _root_aligned_distances(pred, target, layout, root, weights)
    return reduce(distances, weights, reduction)


def stature_error(
    pred: Float[Tensor, "*batch"],
    target: Float[Tensor, "*batch"],
    *,
    relative: bool = False,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """How far a stature is off.

    Args:
        pred: statures [m]; of bodies in their rest pose, `agebody.measure.stature` of the vertices.
        target: true statures [m].
        relative: as a fraction of the true stature.
        weights: (*batch), of the people.
        reduction: over people.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    return stature_errors(pred, target, relative=relative, weights=weights).reduce(reduction)


def mpjpe_errors(
    pred: Tensor, target: Tensor, *, layout: Layout, root: Root = None, weights: Tensor | None = None
) -> Errors:
    """`mpjpe` before it is reduced."""
    return mean_over_points(*_root_aligned_distances(pred, target, layout, root, weights))


def n_mpjpe_errors(
    pred: Tensor, target: Tensor, *, layout: Layout, root: Root = None, weights: Tensor | None = None
) -> Errors:
    """`n_mpjpe` before it is reduced."""
    pred, target, weights = _root_aligned(pred, target, layout, root, weights)
    scaled = best_scale(pred, target, weights=weights)[..., None, None] * apply_mask(pred, weights, 1)
    return mean_over_points(point_distances(scaled, target, weights), weights)


def pa_mpjpe_errors(pred: Tensor, target: Tensor, *, weights: Tensor | None = None) -> Errors:
    """`pa_mpjpe` before it is reduced."""
    pred, target, weights = read_points(pred, target, weights)
    aligned = procrustes_align(pred, target, weights=weights)
    return mean_over_points(point_distances(aligned, target, weights), weights)


def pve_errors(
    pred: Tensor,
    target: Tensor,
    *,
    pred_root: Tensor | None,
    target_root: Tensor | None,
    weights: Tensor | None = None,
) -> Errors:
    """`pve` before it is reduced."""
    pred, target, weights = read_points(pred, target, weights)
    if pred_root is None or target_root is None:
        if pred_root is not target_root:
            missing = "pred_root" if pred_root is None else "target_root"
            raise ValueError(f"{missing}: expected the root of both or of none, got None")
        return mean_over_points(point_distances(pred, target, weights), weights)
    for name, given in (("pred_root", pred_root), ("target_root", target_root)):
        if expect(name, given, 3).shape[:-1] != pred.shape[:-2]:
            raise ValueError(f"{name}: expected shape {(*pred.shape[:-2], 3)}, got {tuple(given.shape)}")
    shift = (at_least_float32(pred_root) - at_least_float32(target_root))[..., None, :]
    return mean_over_points(point_distances(apply_mask(pred, weights, 1) - shift, target, weights), weights)


def stature_errors(
    pred: Tensor, target: Tensor, *, relative: bool = False, weights: Tensor | None = None
) -> Errors:
    """`stature_error` before it is reduced."""
    weights = expand_weights(weights, expect_pair(pred, target))
    pred, target = at_least_float32(pred), at_least_float32(target)
    errors = (apply_mask(pred, weights) - apply_mask(target, weights)).abs()
    if relative:
        errors = errors / (target if weights is None else torch.where(weights != 0, target, 1))
    return Errors(errors, None if weights is None else weights != 0)


def mean_over_points(distances: Float[Tensor, "*batch K"], weights: Tensor | None) -> Errors:
    """Weighted mean over each person's points; people without any do not count."""
    if weights is None:
        return Errors(distances.mean(-1), None)
    given = weights.to(distances.dtype)
    counted = (given != 0).any(-1)
    weighed = torch.where(given != 0, distances * given, 0).sum(-1)
    return Errors(weighed / torch.where(counted, given.sum(-1), 1), counted)


def point_distances(pred: Tensor, target: Tensor, weights: Tensor | None) -> Float[Tensor, "*batch K"]:
    """Between points that weigh something; 0 for the others."""
    return safe_norm(apply_mask(pred, weights, 1) - apply_mask(target, weights, 1))


def _root_aligned_distances(
    pred: Tensor, target: Tensor, layout: Layout, root: Root, weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    pred, target, weights = _root_aligned(pred, target, layout, root, weights)
    return point_distances(pred, target, weights), weights


def _root_aligned(
    pred: Tensor, target: Tensor, layout: Layout, root: Root, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both with their roots at the origin, and the weights without people who do not show theirs."""
    pred, target, weights = read_points(pred, target, weights)
    if layout is None and root is None:
        return pred, target, weights
    points = root_points(layout, root, pred.shape[-2])
    if weights is not None:
        weights = weights * (weights[..., points] != 0).all(-1, keepdim=True)
    pred, target = (x - x[..., points, :].mean(-2, keepdim=True) for x in (pred, target))
    return pred, target, weights
