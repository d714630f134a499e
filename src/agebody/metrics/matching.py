"""Matching of predictions to the people of one image, and scores of a matching.

It is not differentiable, and runs on the CPU.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import (
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_choice,
    expect_tensor,
    read_nonnegative,
    read_share,
    safe_norm,
)
from agebody.files import read_flag

Method = Literal["greedy", "hungarian"]


class Matches(NamedTuple):
    """Which predictions of an image are which of its people."""

    pred: Int[Tensor, " M"]
    """Indices of the matched predictions."""
    target: Int[Tensor, " M"]
    """Index of the person of each matched prediction."""
    false_positives: Int[Tensor, " A"]
    """Predictions without a person."""
    missed: Int[Tensor, " B"]
    """People without a prediction."""


class MatchingRule(NamedTuple):
    """How `match_keypoints` matches predictions to people."""

    distance: Literal["mean", "spectral"] = "mean"
    """See `keypoint_distances`."""
    min_iou: float = 0.0
    """Least overlap of the boxes around the keypoints."""
    pixel: float = 0.0
    """See `box_iou`."""
    method: Method = "greedy"
    """See `match`."""
    stop_early: bool = False
    """See `match`."""
    hidden: float | None = None
    """Where boxes place keypoints that are not visible, in both coordinates; None leaves them out."""


MATCHING_RULES = {
    "mean": MatchingRule(),
    "hungarian": MatchingRule(method="hungarian"),
    "agora": MatchingRule("spectral", min_iou=0.1, pixel=1.0, stop_early=True),
    "relative-human": MatchingRule("spectral", min_iou=0.05, pixel=1.0, stop_early=True),
    "relative-human-published": MatchingRule("spectral", min_iou=0.05, pixel=1.0, stop_early=True, hidden=-2),
}
"""The rules by name. "agora" and "relative-human-published" are those of the public evaluation code of AGORA
(CVPR 2021) and Relative Human (CVPR 2022). In the latter, the boxes of people include keypoints that are not
visible, which that code puts at (-2, -2); "relative-human" leaves these out."""


def keypoint_distances(
    pred: Float[Tensor, "P K D"],
    target: Float[Tensor, "T K D"],
    *,
    weights: Weights = None,
    distance: Literal["mean", "spectral"] = "mean",
) -> Float[Tensor, "P T"]:
    """Return distances of predictions' keypoints from people's; infinite without a visible keypoint.

    NaN where a visible keypoint or its prediction is not finite. Weights are confidences or a mask of the
    people's keypoints. "mean" is the weighted mean of the keypoints' distances; "spectral" the largest
    singular value of the K x D matrix of differences, which the code of AGORA and Relative Human computes.
    """
    pred, target = _expect_people(pred, target)
    expect_choice("distance", distance, ("mean", "spectral"))
    seen = _visibility(target, weights)
    difference = apply_mask(pred[:, None] - target[None], seen, entry_dims=1)
    if distance == "spectral":
        visible = (seen != 0)[..., None]
        difference = torch.where(visible, difference, 0)
        known = difference.isfinite().all(-1).all(-1)
        norms = torch.linalg.matrix_norm(torch.where(known[..., None, None], difference, 0), ord=2)
        result = torch.where(known, norms, torch.nan)
    else:
        result = (safe_norm(difference) * seen).sum(-1) / seen.sum(-1)
    return torch.where((seen != 0).any(-1), result, torch.inf)


def keypoint_boxes(
    points: Float[Tensor, "*batch K 2"], *, weights: Weights = None
) -> Float[Tensor, "*batch 4"]:
    """Return boxes (x0, y0, x1, y1) around the keypoints of any weight; NaN without one."""
    points = expect("points", points, None, 2)
    seen = (_visibility(points, weights) != 0)[..., None]
    low = torch.where(seen, points, torch.inf).amin(-2)
    high = torch.where(seen, points, -torch.inf).amax(-2)
    return torch.where(seen.any(-2), torch.cat([low, high], -1), torch.nan)


def box_iou(
    pred: Float[Tensor, "P 4"], target: Float[Tensor, "T 4"], *, pixel: float = 0.0
) -> Float[Tensor, "P T"]:
    """Return the intersection over union of boxes (x0, y0, x1, y1); 0 for a box that is NaN or has no area.

    ``pixel`` is added to every width and height: 1 where coordinates name pixels, not points, as in AGORA's
    code.
    """
    pred = expect("pred", pred, 4)
    target = expect("target", target, 4)
    low = torch.maximum(pred[:, None, :2], target[None, :, :2])
    high = torch.minimum(pred[:, None, 2:], target[None, :, 2:])
    shared = (high - low + pixel).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + pixel).prod(-1) for boxes in (pred, target)]
    iou = shared / (areas[0][:, None] + areas[1][None] - shared)
    return torch.where(shared > 0, iou, 0)


def match(
    cost: Float[Tensor, "P T"],
    *,
    allowed: Bool[Tensor, "P T"] | None = None,
    method: Method = "greedy",
    stop_early: bool = False,
    valid: Bool[Tensor, " T"] | None = None,
) -> Matches:
    """Match the predictions of an image to its people, one to one, greedily or at the least total cost.

    Args:
        cost: of each prediction for each person. Pairs of infinite or NaN cost are never matched.
        allowed: pairs that may be matched; all by default.
        method: "greedy" repeatedly takes the cheapest free pair; ties by index. "hungarian" matches as many
            pairs as possible, at the least total cost.
        stop_early: greedy only: a pair that is not allowed, met on the way, uses up one prediction, and the
            matching ends once all are used up. The code of AGORA and Relative Human does so, which loses some
            people in crowds; it serves to compare with published numbers.
        valid: false for people who do not count, as in AGORA: they are never matched or missed, and a
            prediction that comes to one of them is free to be matched to another person.

    Returns:
        The pairs, in the order of the predictions, and the unmatched.
    """
    cost = expect("cost", cost, None, None)
    if cost.dim() != 2:
        raise ValueError(f"cost: expected shape (P, T), got {tuple(cost.shape)}")
    for name, given, shape in (("allowed", allowed, cost.shape), ("valid", valid, cost.shape[1:])):
        if given is not None and expect_tensor(name, given).shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(given.shape)}")
    expect_choice("method", method, get_args(Method))
    if read_flag("stop_early", stop_early) and method != "greedy":
        raise ValueError(f"stop_early: expected method='greedy', got {method!r}")
    costs = cost.detach().cpu().double().numpy()
    free = np.ones(costs.shape, bool) if allowed is None else allowed.bool().cpu().numpy()
    counted = np.ones(costs.shape[1], bool) if valid is None else valid.bool().cpu().numpy()
    if method == "hungarian":
        found = _assign_all(costs, free & counted)
    else:
        found = _assign_greedily(costs, free, counted, stop_early)
    pairs = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
    everybody = np.arange(costs.shape[0]), np.flatnonzero(counted)
    left = [np.setdiff1d(each, pairs[:, i]) for i, each in enumerate(everybody)]
    return Matches(*(torch.from_numpy(part.copy()) for part in (pairs[:, 0], pairs[:, 1], *left)))


def _assign_greedily(
    cost: np.ndarray, allowed: np.ndarray, counted: np.ndarray, stop_early: bool
) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    used = 0
    taken_pred, taken_target = set(), set()
    for flat in np.argsort(cost, axis=None, kind="stable"):
        pred, target = divmod(int(flat), cost.shape[1])
        full = len(taken_target) == cost.shape[1] or used >= cost.shape[0]
        if full or not np.isfinite(cost[pred, target]):
            break
        if not allowed[pred, target]:
            used += stop_early
            if stop_early and not counted[target]:
                taken_target.add(target)
        elif pred not in taken_pred and target not in taken_target and not counted[target]:
            taken_target.add(target)
        elif pred not in taken_pred and target not in taken_target:
            pairs.append((pred, target))
            taken_pred.add(pred)
            taken_target.add(target)
            used += 1
    return pairs


def _assign_all(cost: np.ndarray, allowed: np.ndarray) -> list[tuple[int, int]]:
    possible = allowed & np.isfinite(cost)
    if not possible.any():
        return []
    # A forbidden pair costs more than all others together, so the assignment has as few as possible.
    scale = np.abs(cost[possible]).max() or 1.0
    forbidden = 2.0 * (min(cost.shape) + 1)
    from scipy.optimize import linear_sum_assignment  # here, because it takes long to import

    rows, columns = linear_sum_assignment(np.where(possible, cost / scale, forbidden))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if possible[i, j]]


def match_keypoints(
    pred: Float[Tensor, "P K 2"],
    target: Float[Tensor, "T K 2"],
    *,
    weights: Weights = None,
    rule: str | MatchingRule = "relative-human",
    valid: Bool[Tensor, " T"] | None = None,
) -> Matches:
    """Match the predictions of an image to its people by their keypoints in the image.

    The cheapest pairs come first, and the boxes around the keypoints have to overlap. Of the people only
    visible keypoints count; of the predictions all, for the box.

    Args:
        pred: keypoints of the predictions [pixels].
        target: keypoints of the people [pixels].
        weights: (T, K), which of these are visible.
        rule: a name of `MATCHING_RULES`, or a rule of your own.
        valid: false for people who do not count; see `match`.
    """
    if not isinstance(rule, MatchingRule):
        expect_choice("rule", rule, MATCHING_RULES)
        rule = MATCHING_RULES[rule]
    cost = keypoint_distances(pred, target, weights=weights, distance=rule.distance)
    shown = target
    if rule.hidden is not None and weights is not None:
        shown = torch.where((expand_weights(weights, target.shape[:-1]) != 0)[..., None], target, rule.hidden)
        weights = None
    boxes = keypoint_boxes(pred), keypoint_boxes(shown, weights=weights)
    overlap = box_iou(*boxes, pixel=rule.pixel)
    return match(
        cost, allowed=overlap >= rule.min_iou, method=rule.method, stop_early=rule.stop_early, valid=valid
    )


class DetectionScores(NamedTuple):
    """Share of predictions that are people, share of people that were found, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def detection_scores(matched: int, false_positives: int, missed: int) -> DetectionScores:
    """Return precision, recall and their harmonic mean F1 from counts over a data set.

    NaN where the denominator is 0: precision without predictions, recall without people, F1 without both.
    """
    for name, count in {"matched": matched, "false_positives": false_positives, "missed": missed}.items():
        read_nonnegative(name, count, "a count")

    def share(part: float, whole: float) -> float:
        return part / whole if whole else float("nan")

    return DetectionScores(
        share(matched, matched + false_positives),
        share(matched, matched + missed),
        share(matched, matched + 0.5 * (false_positives + missed)),
    )


def normalized_error(error: float, f1: float) -> float:
    """Return AGORA's normalised error: NMJE of an MPJPE, NMVE of a PVE, in the unit of the error.

    As in AGORA's code (CVPR 2021), F1 is first rounded to two decimals. Infinite where it is then 0.

    Args:
        error: mean over the matched people.
        f1: of the matching, as of `detection_scores`.
    """
    if not (isinstance(f1, float) and math.isnan(f1)):
        f1 = read_share("f1", f1)
    rounded = round(f1, 2)
    return error / rounded if rounded else float("inf")


def _expect_people(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    pred = expect("pred", pred, None, None, None)
    target = expect("target", target, None, *pred.shape[-2:])
    for name, tensor in (("pred", pred), ("target", target)):
        if tensor.dim() != 3:
            raise ValueError(f"{name}: expected shape (people, keypoints, dims), got {tuple(tensor.shape)}")
    return pred, target


def _visibility(points: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weights of the keypoints in the points' dtype."""
    given = expand_weights(weights, points.shape[:-1])
    return torch.ones_like(points[..., 0]) if given is None else given.to(points.dtype)
