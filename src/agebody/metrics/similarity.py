"""Object keypoint similarity: how similar predicted keypoints of a person are to the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    broadcast,
    expand_to,
    expand_weights,
    expect,
    expect_values,
    read_positive,
)
from agebody.keypoints import KeypointLayout, get_layout
from agebody.metrics.record import Errors, metric

_COCO_SIGMAS = """
    nose .026    eye .025     ear .035
    shoulder .079    elbow .072    wrist .062    hip .107    knee .087    ankle .089
"""
_CROWDPOSE_SIGMAS = "neck .079   neck_lsp .079   head_top .079   head_top_lsp .079   top_head .079"
_WHOLEBODY_SIGMAS = """
    left_big_toe .068    left_small_toe .066    left_heel .066
    right_big_toe .092   right_small_toe .094   right_heel .094
"""
_WORDS = (_COCO_SIGMAS + _CROWDPOSE_SIGMAS + _WHOLEBODY_SIGMAS).split()
_SIGMAS: dict[str, float] = dict(zip(_WORDS[::2], map(float, _WORDS[1::2]), strict=True))
"""Standard deviations of annotators over the square root of a person's area: COCO; neck and top of the head
of CrowdPose (CVPR 2019); feet of COCO-WholeBody (ECCV 2020), which differ between the sides."""

SPACING = float(np.spacing(1))
"""What COCO adds to areas, so that an area of 0 is similar to the truth alone."""

_LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
CROWDPOSE14 = (*(f"{side}_{name}" for name in _LIMBS for side in ("left", "right")), "head_top", "neck")
"""Names of CrowdPose's points, which Relative Human's evaluation uses, too."""


def oks_sigmas(
    layout: str | KeypointLayout | Sequence[str], *, default: float | None = None
) -> tuple[float, ...]:
    """Return the published standard deviation of each point of a layout, by the point's name.

    Known are COCO's 17 points, neck and top of the head of CrowdPose, and the feet of COCO-WholeBody.

    Args:
        layout: a layout or its name, or the names of the points.
        default: for points that have none, such as the spine.
    """
    if isinstance(layout, (str, KeypointLayout)):
        layout = get_layout(layout).names
    if default is not None:
        default = read_positive("default", default)
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


@metric(higher_is_better=True)
def oks(
    pred: Float[Tensor, "*#batch K 2"],
    target: Float[Tensor, "*#batch K 2"],
    area: Float[Tensor, "*people"],
    *,
    weights: Weights = None,
    sigmas: str | KeypointLayout | tuple[float, ...] | Tensor = "coco17",
    reduction: Reduction = "mean",
) -> Errors:
    """Return the object keypoint similarity (OKS) of predictions and people, 1 for the truth (COCO, 2016).

        mean over visible keypoints of exp(-d² / (2 · area · (2 σ)²))

    It is differentiable. Shapes broadcast: pred[:, None] with target[None] and area[None] give all pairs.

    Args:
        pred: predicted keypoints [pixels].
        target: true keypoints [pixels].
        area: of each person [pixels²], at least 0: COCO's is that of the person's outline. It broadcasts to
            the people or pairs of ``pred`` and ``target``.
        weights: (*batch, K), which true keypoints are visible; any weight other than 0 counts as 1.
        sigmas: a layout with published standard deviations, or one number per keypoint.
        reduction: over people; those without a visible keypoint do not count.
    """
    pred = expect("pred", pred, None, 2)
    target = expect("target", target, pred.shape[-2], 2)
    spread = spread_of(sigmas, pred)
    entries = torch.Size((*broadcast(pred=pred.shape[:-2], target=target.shape[:-2]), pred.shape[-2]))
    weights = expand_weights(weights, entries)
    seen = pred.new_ones(entries) if weights is None else (weights != 0).to(pred.dtype)
    difference = apply_mask(pred - target, seen, entry_dims=1)
    area = expand_to("area", expect("area", area), difference.shape[:-2])
    # Divided before squares are taken: at an area of 0, their gradient would overflow.
    width = spread * torch.sqrt(2 * (area[..., None] + SPACING))
    similarity = torch.exp(-(difference / width[..., None]).square().sum(-1)) * seen
    visible = seen.sum(-1)
    expect_values(area=((area >= 0) | (visible == 0), "areas of at least 0"))
    return Errors(similarity.sum(-1) / visible.clamp(min=1), visible > 0)


def spread_of(sigmas: str | KeypointLayout | tuple[float, ...] | Tensor, points: Tensor) -> Tensor:
    """Return twice the standard deviations, one per keypoint: what COCO's formula squares."""
    if isinstance(sigmas, (str, KeypointLayout)):
        sigmas = oks_sigmas(sigmas)
    spread = 2 * torch.as_tensor(sigmas, dtype=points.dtype, device=points.device)
    if spread.shape != points.shape[-2:-1]:
        raise ValueError(
            f"sigmas: expected {points.shape[-2]}, one per keypoint, got shape {tuple(spread.shape)}"
        )
    return spread
