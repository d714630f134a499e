"""Percentage of correct keypoints: of a length, of a person, of a head."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    at_least_float32,
    expand_weights,
    expect,
    expect_choice,
    expect_pair,
    read_count,
    read_nonnegative,
    safe_norm,
)
from agebody.keypoints import KeypointLayout, get_layout
from agebody.metrics.matching import keypoint_boxes
from agebody.metrics.record import Errors, decided, metric

PCK_3D_THRESHOLD = 0.15
"""The threshold of 3DPCK [m] (Mehta et al., 3DV 2017), and the last one of its area under the curve."""

Reference = Literal["torso", "head", "box_side", "box_diagonal"]

_ENDS = {
    "torso": (("left_shoulder",), ("right_hip",)),
    "head": (("neck_lsp", "neck"), ("head_top_lsp", "head_top", "head")),
}
"""The names of the points at both ends of a length, the first that a layout has."""

HEAD_SHARE = 0.143
"""The threshold of mPCKh: a head is about a seventh of a body (Relative Human's evaluation)."""


@metric(higher_is_better=True)
def pck(
    pred: Float[Tensor, "*batch K D"],
    target: Float[Tensor, "*batch K D"],
    threshold: float,
    *,
    reference: Float[Tensor, "*people"] | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the share of keypoints that are less than a threshold away from the truth (PCK).

    The code of PoseTrack and 3DPW also counts a distance equal to the threshold.

    Args:
        pred: predicted keypoints, in the image or in space.
        target: true keypoints, in the same unit.
        threshold: in that unit, or in reference lengths.
        reference: (*batch), one length per person, such as `reference_length` of the truth, or () for all;
            None takes the threshold as absolute. People whose reference is NaN or not above 0 do not count.
        weights: (*batch, K), which keypoints count; any weight other than 0 counts as 1.
        reduction: "none" gives 0 or 1 per keypoint; see `per_joint` for one number per joint.
    """
    threshold = read_nonnegative("threshold", threshold, "a number", finite=False)
    errors, length, counted = _relative(pred, target, reference, weights)
    return Errors(decided(errors < threshold * length, errors), counted)


@metric(higher_is_better=True)
def pck_auc(
    pred: Float[Tensor, "*batch K D"],
    target: Float[Tensor, "*batch K D"],
    *,
    max_threshold: float = PCK_3D_THRESHOLD,
    steps: int = 31,
    reference: Float[Tensor, "*people"] | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the area under the curve of `pck`: its mean over thresholds from 0 to ``max_threshold``.

    The defaults are those of MPI-INF-3DHP (Mehta et al., 3DV 2017): 0 to 150 mm by 5 mm. Other arguments as
    of `pck`."""
    max_threshold = read_nonnegative("max_threshold", max_threshold)
    read_count("steps", steps, least=1)
    errors, length, counted = _relative(pred, target, reference, weights)
    limits = torch.linspace(0, max_threshold, steps, dtype=errors.dtype, device=errors.device)
    right = errors[..., None] < limits * length[..., None]
    return Errors(decided(right, errors[..., None].expand(right.shape)).mean(-1), counted)


def per_joint(terms: Float[Tensor, "*batch K"], *, weights: Weights = None) -> Float[Tensor, " K"]:
    """Return the mean of each joint over all people; NaN for a joint without any.

    Args:
        terms: one per joint, such as `pck` with ``reduction="none"``.
        weights: (*batch, K), which terms count; any weight other than 0 counts as 1.
    """
    terms = expect("terms", terms, None)
    weights = expand_weights(weights, terms.shape)
    counted = torch.ones_like(terms) if weights is None else weights != 0
    columns = torch.where(counted != 0, terms, 0).reshape(-1, terms.shape[-1])
    return columns.sum(0) / counted.reshape(columns.shape).sum(0)


@metric(higher_is_better=True)
def mpckh(
    pred: Float[Tensor, "*batch K 2"],
    target: Float[Tensor, "*batch K 2"],
    *,
    weights: Weights = None,
    threshold: float = HEAD_SHARE,
    reduction: Reduction = "mean",
) -> Errors:
    """Return mPCKh: per person, the share of visible keypoints with an error below a head's size.

    The head is taken as 0.143 of the diagonal of the box around the visible keypoints of the truth, as in
    Relative Human's evaluation (BEV, CVPR 2022). That code enters people with fewer than two visible
    keypoints as -1 into its mean; here they do not count.

    Args:
        pred: predicted keypoints [pixels].
        target: true keypoints [pixels].
        weights: (*batch, K), which true keypoints are visible; any weight other than 0 counts as 1.
        threshold: share of the diagonal.
        reduction: over people.
    """
    expect("pred", pred, None, 2)
    pred, target, weights = expect_pair(pred, target, weights, 2)
    seen = torch.ones_like(pred[..., 0]) if weights is None else (weights != 0).to(pred.dtype)
    diagonal = reference_length(target, "box_diagonal", weights=seen)
    correct = pck(pred, target, threshold, reference=diagonal, weights=seen, reduction="none")
    visible = seen.sum(-1)
    return Errors((correct.sum(-1) + 0 * diagonal) / visible.clamp(min=1), visible >= 2)


def reference_length(
    points: Float[Tensor, "*batch K D"],
    kind: Reference,
    *,
    layout: str | KeypointLayout | None = None,
    weights: Weights = None,
) -> Float[Tensor, "*batch"]:
    """Return a length of each person that `pck` may refer to.

    - "torso": from the left shoulder to the right hip (Sapp and Taskar, CVPR 2013).
    - "head": from the neck to the top of the head. MPII's own PCKh takes 0.6 of the diagonal of an annotated
      head box instead; give that as the reference where there is one.
    - "box_side", "box_diagonal": the longer side (Yang and Ramanan, TPAMI 2013) and the diagonal of the box
      around the visible keypoints in the image.

    Args:
        points: (*batch, K, D), of the truth.
        kind: which length.
        layout: of the points, or its name, for "torso" and "head".
        weights: (*batch, K), which points are visible: give those of `pck`. NaN where an end has weight 0, or
            for a box without points.
    """
    expect_choice("kind", kind, get_args(Reference))
    if kind in ("box_side", "box_diagonal"):
        boxes = keypoint_boxes(points, weights=weights)
        size = boxes[..., 2:] - boxes[..., :2]
        return size.amax(-1) if kind == "box_side" else safe_norm(size)
    if layout is None:
        raise ValueError(f"layout: expected that of the points for kind={kind!r}, got None")
    layout = get_layout(layout)
    points = expect("points", points, len(layout), None)
    weights = expand_weights(weights, points.shape[:-1])
    found = []
    for names in _ENDS[kind]:
        index = next((layout.names.index(name) for name in names if name in layout.names), None)
        if index is None:
            raise ValueError(f"layout: {layout.name} has no point named {' or '.join(names)}")
        found.append(index)
    points = apply_mask(at_least_float32(points), weights, entry_dims=1)
    length = safe_norm(points[..., found[0], :] - points[..., found[1], :])
    return length if weights is None else torch.where((weights[..., found] != 0).all(-1), length, torch.nan)


def _relative(
    pred: Tensor, target: Tensor, reference: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the error of each keypoint, the length that it is compared with, and which keypoints count."""
    expect("pred", pred, None, None)
    pred, target, weights = expect_pair(pred, target, weights, None)
    difference, counted = pred - target, None if weights is None else weights != 0
    length = difference.new_ones(())
    if reference is not None:
        if expect("reference", reference).shape not in ((), pred.shape[:-2]):
            raise ValueError(
                f"reference: expected shape {tuple(pred.shape[:-2])}, one length per person, or (), "
                f"got {tuple(reference.shape)}"
            )
        length = reference[..., None]
        known = (length > 0).expand(difference.shape[:-1])
        counted = known if counted is None else counted & known
    return safe_norm(apply_mask(difference, counted, entry_dims=1)), length, counted
