"""Percentage of correct keypoints: of a length, of a person, of a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import Reduction, Weights, apply_mask, at_least_float32, expect, reduce, safe_norm
from agebody.keypoints import KeypointLayout, get_layout
from agebody.metrics.matching import keypoint_boxes

PCK_3D_THRESHOLD = 0.15
"""The threshold of 3DPCK [m] (Mehta et al., 3DV 2017), and the last one of its area under the curve."""

HEAD_SHARE = 0.143
"""The threshold of mPCKh: a head is about a seventh of a body (Relative Human's evaluation)."""


def pck(
    pred: Float[Tensor, "*batch K D"],
    target: Float[Tensor, "*batch K D"],
    threshold: float,
    *,
    reference: Float[Tensor, "*people"] | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Share of keypoints that are less than a threshold away from the truth.

    Args:
        pred: keypoints, in the image or in space.
        target: the truth, in the same unit.
        threshold: in that unit, or in reference lengths.
        reference: (*batch), one length a person, such as `torso_length`, `head_length`, `box_side` or
            `box_diagonal` of the truth, or () for all; without it the threshold is absolute.
        weights: (*batch, K), which keypoints are there; any weight that is not zero counts as one.
        reduction: "none" gives 0 or 1 a keypoint; see `per_joint` for one number a joint.

    Raises:
        TypeError, ValueError: shapes or types do not fit.
    """
    there = None if weights is None else weights != 0
    errors = _errors(pred, target, there)
    limit = threshold if reference is None else threshold * _expect_reference(reference, pred)[..., None]
    return reduce((errors < limit).to(errors.dtype), there, reduction)


def pck_auc(
    pred: Float[Tensor, "*batch K D"],
    target: Float[Tensor, "*batch K D"],
    *,
    max_threshold: float = PCK_3D_THRESHOLD,
    steps: int = 31,
    reference: Float[Tensor, "*people"] | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Area under the curve of PCK over thresholds: their mean over ``steps`` from 0 to ``max_threshold``.

    The defaults are those of MPI-INF-3DHP (Mehta et al., 3DV 2017): 0 to 150 mm by 5 mm. Arguments as of
    `pck`.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    there = None if weights is None else weights != 0
    errors = _errors(pred, target, there)
    limits = torch.linspace(0, max_threshold, steps, dtype=errors.dtype, device=errors.device)
    if reference is not None:
        limits = limits * _expect_reference(reference, pred)[..., None, None]
    correct = (errors[..., None] < limits).to(errors.dtype).mean(-1)
    return reduce(correct, there, reduction)


def per_joint(terms: Float[Tensor, "*batch K"], *, weights: Weights = None) -> Float[Tensor, " K"]:
    """Mean of each joint over all people, of terms that were not reduced; NaN for a joint that nobody has.

    Args:
        terms: one a joint, such as `pck` with ``reduction="none"``.
        weights: (*batch, K), as of `pck`.
    """
    expect("terms", terms, None)
    there = torch.ones_like(terms) if weights is None else (weights != 0).expand(terms.shape)
    columns = torch.where(there != 0, terms, 0).reshape(-1, terms.shape[-1])
    return columns.sum(0) / there.reshape(columns.shape).sum(0)


def mpckh(
    pred: Float[Tensor, "*batch K 2"],
    target: Float[Tensor, "*batch K 2"],
    *,
    weights: Weights = None,
    threshold: float = HEAD_SHARE,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Mean over people of the share of visible keypoints whose error is below a head's size.

    The head is taken as 0.143 of the diagonal of the box around the visible keypoints of the truth, as in
    Relative Human's evaluation (BEV, CVPR 2022). That code enters people with fewer than two visible
    keypoints as -1 into its mean; here they do not count.

    Args:
        pred: keypoints [pixels].
        target: the truth [pixels].
        weights: (*batch, K), which keypoints of the truth are visible; any weight that is not zero counts as
            one.
        threshold: share of the diagonal.
        reduction: entries are people; "none" gives 0 for those who do not count.

    Raises:
        TypeError, ValueError: shapes or types do not fit.
    """
    pred, target = at_least_float32(expect("pred", pred, None, 2)), at_least_float32(target)
    seen = torch.ones_like(pred[..., 0]) if weights is None else (weights != 0).to(pred.dtype)
    seen = seen.expand(pred.shape[:-1])
    correct = pck(
        pred, target, threshold, reference=box_diagonal(target, weights=seen), weights=seen, reduction="none"
    )
    visible = seen.sum(-1)
    return reduce(correct.sum(-1) / visible.clamp(min=1), visible >= 2, reduction)


def box_diagonal(points: Float[Tensor, "*batch K 2"], *, weights: Weights = None) -> Float[Tensor, "*batch"]:
    """Diagonal of the box around the visible keypoints; NaN without any."""
    boxes = keypoint_boxes(points, weights=weights)
    return safe_norm(boxes[..., 2:] - boxes[..., :2])


def box_side(points: Float[Tensor, "*batch K 2"], *, weights: Weights = None) -> Float[Tensor, "*batch"]:
    """Longer side of the box around the visible keypoints (Yang and Ramanan, TPAMI 2013); NaN without any."""
    boxes = keypoint_boxes(points, weights=weights)
    return (boxes[..., 2:] - boxes[..., :2]).amax(-1)


def torso_length(
    points: Float[Tensor, "*batch K D"], layout: str | KeypointLayout
) -> Float[Tensor, "*batch"]:
    """From the left shoulder to the right hip (Sapp and Taskar, CVPR 2013).

    Raises:
        ValueError: the layout has no such points, or another number of points.
    """
    return _length(points, layout, (("left_shoulder",), ("right_hip",)))


def head_length(points: Float[Tensor, "*batch K D"], layout: str | KeypointLayout) -> Float[Tensor, "*batch"]:
    """From the neck to the top of the head.

    MPII's own PCKh takes 0.6 of the diagonal of an annotated head box instead; pass that as the reference
    where there is one.

    Raises:
        ValueError: the layout has no such points, or another number of points.
    """
    return _length(points, layout, (("neck_lsp", "neck"), ("head_top_lsp", "head_top", "head")))


def _length(points: Tensor, layout: str | KeypointLayout, ends: Sequence[tuple[str, ...]]) -> Tensor:
    layout = get_layout(layout)
    expect("points", points, len(layout), None)
    found = []
    for names in ends:
        index = next((layout.names.index(name) for name in names if name in layout.names), None)
        if index is None:
            raise ValueError(f"layout: {layout.name} has no point named {' or '.join(names)}")
        found.append(index)
    return safe_norm(points[..., found[0], :] - points[..., found[1], :])


def _errors(pred: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    expect("pred", pred, None, None)
    expect("target", target, *pred.shape[-2:])
    return safe_norm(apply_mask(at_least_float32(pred) - at_least_float32(target), weights, entry_dims=1))


def _expect_reference(reference: Tensor, points: Tensor) -> Tensor:
    expect("reference", reference)
    if reference.shape not in ((), points.shape[:-2]):
        raise ValueError(
            f"reference: expected shape {tuple(points.shape[:-2])}, one length a person, or (), "
            f"got {tuple(reference.shape)}"
        )
    return reference
