"""Object keypoint similarity: how like a person's keypoints a prediction's are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import Reduction, Weights, apply_mask, at_least_float32, expect, reduce
from agebody.keypoints import KeypointLayout, get_layout

# Standard deviations of annotators over the square root of a person's area: COCO; neck and top of the head
# CrowdPose (CVPR 2019); feet COCO-WholeBody (ECCV 2020), which gives other values for each side.
_SIGMAS = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062,
    "hip": 0.107, "knee": 0.087, "ankle": 0.089,
    "neck": 0.079, "neck_lsp": 0.079, "head_top": 0.079, "head_top_lsp": 0.079, "top_head": 0.079,
    "left_big_toe": 0.068, "left_small_toe": 0.066, "left_heel": 0.066,
    "right_big_toe": 0.092, "right_small_toe": 0.094, "right_heel": 0.094,
}  # fmt: skip


CROWDPOSE14 = (
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
    "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head_top", "neck",
)  # fmt: skip
"""Names of CrowdPose's points, which Relative Human's evaluation uses, too."""


def oks_sigmas(
    layout: str | KeypointLayout | Sequence[str], *, default: float | None = None
) -> tuple[float, ...]:
    """The published standard deviation of each point of a layout, by the point's name.

    COCO's 17 points, neck and top of the head of CrowdPose, feet of COCO-WholeBody.

    Args:
        layout: a layout or its name, or the names of the points.
        default: for points that have none, such as the spine.

    Raises:
        ValueError: a point has none and there is no default.
    """
    if isinstance(layout, (str, KeypointLayout)):
        layout = get_layout(layout).names
    sigmas = []
    for name in layout:
        side = name.removeprefix("left_").removeprefix("right_")
        sigmas.append(_SIGMAS.get(name, _SIGMAS.get(side, default)))
    without = [name for name, sigma in zip(layout, sigmas, strict=True) if sigma is None]
    if without:
        raise ValueError(
            f"layout: no standard deviation is published for {', '.join(without)}; pass default="
        )
    return tuple(sigmas)


def oks(
    pred: Float[Tensor, "*#batch K 2"],
    target: Float[Tensor, "*#batch K 2"],
    area: Float[Tensor, "*people"],
    *,
    weights: Weights = None,
    sigmas: str | KeypointLayout | tuple[float, ...] | Tensor = "coco17",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Object keypoint similarity of predictions and people, 1 for the truth (COCO, 2016).

        mean over visible keypoints of exp(-d² / (2 · area · (2 σ)²))

    It is differentiable. Shapes broadcast: pred[:, None] with target[None] and area[None] give all pairs.

    Args:
        pred: keypoints [pixels].
        target: the truth [pixels].
        area: of each person [pixels²]: COCO's is that of the person's outline. It broadcasts to the people
            or pairs that ``pred`` and ``target`` have.
        weights: (*batch, K), which keypoints of the truth are visible. Any weight that is not zero counts as
            one.
        sigmas: a layout with published standard deviations, or one number a keypoint.
        reduction: entries are people; those without a visible keypoint do not count, and are 0 in "none".

    Raises:
        TypeError, ValueError: shapes or types do not fit, or the layout lacks standard deviations.
    """
    expect("pred", pred, None, 2)
    expect("target", target, pred.shape[-2], 2)
    pred, target = at_least_float32(pred), at_least_float32(target)
    spread = spread_of(sigmas, pred)
    seen = torch.ones_like(target[..., 0]) if weights is None else (weights != 0).to(pred.dtype)
    difference = apply_mask(pred - target, seen, entry_dims=1)
    seen = seen.expand(difference.shape[:-1])
    area = _expand_area(area, difference.shape[:-2])
    squared = (difference * difference).sum(-1)
    likeness = torch.exp(-squared / (2 * spread**2 * area[..., None])) * seen
    visible = seen.sum(-1)
    return reduce(likeness.sum(-1) / visible.clamp(min=1), visible > 0, reduction)


def _expand_area(area: Tensor, people: torch.Size) -> Tensor:
    try:
        return at_least_float32(expect("area", area)).expand(people)
    except RuntimeError:
        raise ValueError(
            f"area: expected a shape that broadcasts to {tuple(people)}, one a person, "
            f"got {tuple(area.shape)}"
        ) from None


def spread_of(sigmas: str | KeypointLayout | tuple[float, ...] | Tensor, points: Tensor) -> Tensor:
    """Twice the standard deviations, one a keypoint, which is what COCO's formula squares.

    Raises:
        ValueError: there is not one for each of the points, or the layout lacks some.
    """
    if isinstance(sigmas, (str, KeypointLayout)):
        sigmas = oks_sigmas(sigmas)
    spread = 2 * torch.as_tensor(sigmas, dtype=points.dtype, device=points.device)
    if spread.shape != points.shape[-2:-1]:
        raise ValueError(f"sigmas: expected {points.shape[-2]}, one a keypoint, got {tuple(spread.shape)}")
    return spread
