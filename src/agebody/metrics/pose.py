"""Errors of pose, shape and stature: one number per person.

The error of a person is the weighted mean of the distances of their points. People are then reduced: the mean
runs over those who have a point of any weight. Lengths are in the unit of the input, which is metres in this
library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    at_least_float32,
    expect,
    expect_pair,
    read_nonnegative,
    safe_norm,
)
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout
from agebody.losses.limits import JointLimits, joint_limits_excess
from agebody.losses.parameters import paired_matrices, rotation_angle
from agebody.metrics.alignment import best_scale, procrustes_align, read_points, root_points
from agebody.metrics.record import Errors, decided, metric
from agebody.rotations import PoseFormat

Layout = str | KeypointLayout | None
Root = Sequence[str] | Sequence[int] | None


@metric()
def mpjpe(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    layout: Layout,
    root: Root = None,
    scale: bool = False,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the mean per-joint position error (MPJPE) after moving both roots to the origin.

    Args:
        pred: predicted points.
        target: true points.
        layout: of the points, or its name; None for points without a layout.
        root: names of the points whose mean is the root, or their indices; by default the layout's own.
            ``("left_hip", "right_hip")`` is common, too. Without layout and root, points are compared in
            place.
        scale: whether to scale each prediction about its root by the best factor first (N-MPJPE).
        weights: confidences or a mask, broadcast to (*batch, K). A person whose layout's root has weight 0
            does not count. A root that is named may have weight 0: it is then not part of the mean, as
            Human3.6M's pelvis beside the 14 points of LSP, and who has no finite one does not count.
        reduction: over people.

    Source: Ionescu et al., Human3.6M, IEEE TPAMI 36(7), 2014; N-MPJPE: Rhodin et al., ECCV 2018.
    """
    pred, target, weights = _root_aligned(pred, target, layout, root, weights)
    if read_flag("scale", scale):
        pred = best_scale(pred, target, weights=weights)[..., None, None] * apply_mask(pred, weights, 1)
    return mean_over_points(point_distances(pred, target, weights), weights)


@metric()
def pa_mpjpe(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the mean per-joint position error after aligning each person by `procrustes` (PA-MPJPE).

    The similarity minimises squared distances, so this may exceed `mpjpe` by a little.

    Args:
        pred: predicted points; of vertices, the error is PA-PVE. EMDB's code moves vertices by the alignment
            of the joints instead: apply the `procrustes` of these.
        target: true points.
        weights: (*batch, K), of the alignment and of the mean.
        reduction: over people.
    """
    pred, target, weights = read_points(pred, target, weights)
    aligned = procrustes_align(pred, target, weights=weights)
    return mean_over_points(point_distances(aligned, target, weights), weights)


@metric()
def pve(
    pred: Float[Tensor, "*batch V 3"],
    target: Float[Tensor, "*batch V 3"],
    *,
    pred_root: Float[Tensor, "*batch 3"] | None,
    target_root: Float[Tensor, "*batch 3"] | None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the mean per-vertex error (PVE) after moving both roots to the origin.

    Args:
        pred: predicted vertices.
        target: true vertices.
        pred_root: root joint, such as ``joints[..., 0, :]`` or `root_of` some keypoints; None for both roots
            compares the vertices in place.
        target_root: root joint of the target.
        weights: (*batch, V).
        reduction: over people.

    Source: Pavlakos et al., Learning to estimate 3D human pose and shape from a single color image, CVPR
        2018."""
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


@metric()
def joint_errors(
    pred: Float[Tensor, "*batch K 3"],
    target: Float[Tensor, "*batch K 3"],
    *,
    layout: Layout,
    root: Root = None,
    weights: Weights = None,
    reduction: Reduction = "none",
) -> Errors:
    """Return the distance of each joint after moving both roots to the origin, of which `mpjpe` is the mean.

    Arguments as there, but the entries are joints, (*batch, K): ``reduction="mean"`` is the mean over all
    joints that count, as in MMPose, where people of few joints weigh less. For the errors that another
    alignment leaves, align first and give no root.
    """
    pred, target, weights = _root_aligned(pred, target, layout, root, weights)
    return Errors(point_distances(pred, target, weights), weights)


@metric()
def stature_error(
    pred: Float[Tensor, "*batch"],
    target: Float[Tensor, "*batch"],
    *,
    relative: bool = False,
    signed: bool = False,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the error of stature, absolute by default.

    Args:
        pred: statures [m]; of bodies in their rest pose, `agebody.measure.stature` of the vertices.
        target: true statures [m].
        relative: as a fraction of the true stature.
        signed: the difference, above 0 for people who are predicted too tall, as in AionHMR's tables.
        weights: (*batch).
        reduction: over people.
    """
    pred, target, weights = expect_pair(pred, target, weights)
    errors = apply_mask(pred, weights) - apply_mask(target, weights)
    errors = errors if read_flag("signed", signed) else errors.abs()
    if read_flag("relative", relative):
        errors = errors / (target if weights is None else torch.where(weights != 0, target, 1))
    return Errors(errors, weights)


@metric()
def mpjae(
    pred: Float[Tensor, "*pred_shape"],
    target: Float[Tensor, "*target_shape"],
    *,
    pose_format: PoseFormat = "matrix",
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the mean per-joint angular error (MPJAE): the angle between predicted and true rotations [rad].

    Args:
        pred: (*batch, J, 3, 3) rotations, or what the format says; of the joints to their parents, or, as in
            the 3DPW challenge, to the camera.
        target: (*batch, J, 3, 3) true rotations.
        pose_format: format of both.
        weights: confidences or a mask, broadcast to (*batch, J).
        reduction: over people.

    Source: von Marcard et al., Recovering accurate 3D human pose in the wild, ECCV 2018.
    """
    first, second, weights = paired_matrices(pred, target, pose_format, None, weights)
    expect("pred", first, None, 3, 3)
    return mean_over_points(rotation_angle(first, second), weights)


@metric()
def joint_limit_violations(
    body_pose: Float[Tensor, "*pose"],
    limits: JointLimits | None = None,
    *,
    pose_format: PoseFormat = "axis_angle",
    tolerance: float = 0.0,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the share of joints that are beyond their range of motion.

    HSMR (Xia et al., CVPR 2025) counts elbows and knees, with tolerances of 10, 20 and 30 degrees.

    Args:
        body_pose: (*batch, J, 3) rotations, or what the format says.
        limits: of the J joints, from `agebody.losses.joint_limits`; those of SMPL's 23 for adults if None.
        pose_format: format of the pose.
        tolerance: by how much an angle may exceed its limit [rad].
        weights: (*batch, J), which joints count.
        reduction: over joints.
    """
    tolerance = read_nonnegative("tolerance", tolerance, "an angle", finite=False)
    excess = joint_limits_excess(body_pose, limits, pose_format=pose_format, weights=weights).abs().amax(-1)
    return Errors(decided(excess > tolerance, excess), weights)


def mean_over_points(distances: Float[Tensor, "*batch K"], weights: Tensor | None) -> Errors:
    """Return the weighted mean over each person's points; people without any do not count."""
    if weights is None:
        return Errors(distances.mean(-1), None)
    given = weights.to(distances.dtype)
    counted = (given != 0).any(-1)
    weighted = torch.where(given != 0, distances * given, 0).sum(-1)
    return Errors(weighted / torch.where(counted, given.sum(-1), 1), counted)


def point_distances(pred: Tensor, target: Tensor, weights: Tensor | None) -> Float[Tensor, "*batch K"]:
    """Return the distances between points; 0 where they have weight 0."""
    return safe_norm(apply_mask(pred, weights, 1) - apply_mask(target, weights, 1))


def _root_aligned(
    pred: Tensor, target: Tensor, layout: Layout, root: Root, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Move both roots to the origin, and set the weights of people to 0 who have none."""
    pred, target, weights = read_points(pred, target, weights)
    if layout is None and root is None:
        return pred, target, weights
    points = root_points(layout, root, pred.shape[-2])
    origins = [x[..., points, :] for x in (pred, target)]
    if weights is not None:
        known = weights[..., points] != 0
        if root is not None:
            known = known | (origins[0].isfinite() & origins[1].isfinite()).all(-1)
        weights = weights * known.all(-1, keepdim=True)
    pred, target = (
        x - origin.mean(-2, keepdim=True) for x, origin in zip((pred, target), origins, strict=True)
    )
    return pred, target, weights
