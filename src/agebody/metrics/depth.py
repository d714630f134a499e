"""Depth relations between people: PCDR and PCOD."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor

from agebody.age import AGE_CLASSES
from agebody.checks import Reduction, Weights, expand_weights, expect, expect_tensor, read_nonnegative
from agebody.losses.depth import differences
from agebody.metrics.record import Errors, decided, metric

MISS_PENALTY = 0.3
"""What one missed person adds to the pairs (Relative Human's evaluation code)."""
LENGTH = "a length"
_MISSED_DEPTH = 100.0
"""Depth of a missed person in SMAP's code [m]."""


class DepthRelations(NamedTuple):
    """Counts of depth relations; add them over images, then call `rate`."""

    right: Float[Tensor, "*images"]
    """Pairs in the correct order."""
    pairs: Float[Tensor, "*images"]
    """Pairs of people who were found and whose depth is known."""
    missed: Float[Tensor, "*images"]
    """People who were not found."""

    def rate(self, *, penalty: float = MISS_PENALTY) -> Float[Tensor, "*images"]:
        """Return right / (pairs + penalty · missed); NaN without pairs."""
        return torch.where(self.pairs > 0, self.right / (self.pairs + penalty * self.missed), torch.nan)

    def sum(self, *dims: int) -> DepthRelations:
        """Return the sums over these dimensions, by default the first."""
        return DepthRelations(*(part.sum(dims or (0,)) for part in self))


def depth_relations(
    pred: Float[Tensor, "*images P"],
    target: Num[Tensor, "*images P"],
    *,
    weights: Weights = None,
    missed: Shaped[Tensor, "*images P"] | None = None,
    age_classes: Int[Tensor, "*images P"] | None = None,
    threshold: float = 0.2,
    same_layer: float = 0.0,
) -> DepthRelations:
    """Count per image how many pairs of people are in the correct order of depth.

    For two people of equal target, |dz| < threshold is correct; where the target of one is nearer, its depth
    has to be smaller by more than the threshold (BEV, CVPR 2022). As Relative Human's code does, it compares
    people who were found, and counts those who were not apart.

    Args:
        pred: depth of each person [m], one row per image; pad rows of fewer people, with weight 0.
        target: depth layers, smaller is nearer; or true depths [m], with ``same_layer``. Negative layers,
            such as -1, and NaN are unknown: these people are in no pair.
        weights: (*images, P), zero for padding and for other people who are in no pair. Any weight other than
            0 counts as 1.
        missed: (*images, P), true for people whom the prediction did not find. They are in no pair either,
            but count as missed, whatever their weight.
        age_classes: (*images, P), indices into ``AGE_CLASSES``. With them the result has a last dimension,
            one entry per class: pairs with either person of that class, and missed people of that class.
        threshold: [m].
        same_layer: largest difference of targets that counts as equal; 0 for layers.

    Returns:
        Counts of shape (*images), or (*images, 4) by age class; in float64, so that sums of them are exact.
    """
    threshold = read_nonnegative("threshold", threshold, LENGTH, finite=False)
    same_layer = read_nonnegative("same_layer", same_layer, LENGTH, finite=False)
    pred, lost, known = _read_people(pred, target, weights, missed, age_classes)
    there = known & ~lost
    if not (same_layer and target.is_floating_point()):  # depths may be negative, such as those from a root
        there = there & (target >= 0)
    depth, layer = torch.where(there, pred, 0), torch.where(there, target, 0)
    farther, order = differences(depth), differences(layer)
    in_order = torch.where(order > 0, farther, -farther) > threshold
    right = decided(torch.where(order.abs() <= same_layer, farther.abs() < threshold, in_order), farther)
    people = pred.shape[-1]
    above = torch.ones(people, people, dtype=torch.bool, device=pred.device).triu(1)
    pairs = there[..., :, None] & there[..., None, :] & above
    if age_classes is None:
        counted, gone = pairs, lost
    else:
        kinds = torch.arange(len(AGE_CLASSES), device=pred.device)
        is_of = age_classes[..., None, :] == kinds[:, None]  # (*images, classes, P)
        counted = pairs[..., None, :, :] & (is_of[..., :, None] | is_of[..., None, :])
        right, gone = right[..., None, :, :], lost[..., None, :] & is_of
    sums = (torch.where(counted, right, 0).sum((-2, -1)), counted.sum((-2, -1)), gone.sum(-1))
    return DepthRelations(*(part.double() for part in sums))


def pcdr(
    pred: Float[Tensor, "*images P"],
    target: Num[Tensor, "*images P"],
    *,
    weights: Weights = None,
    missed: Shaped[Tensor, "*images P"] | None = None,
    age_classes: Int[Tensor, "*images P"] | None = None,
    threshold: float = 0.2,
    same_layer: float = 0.0,
    penalty: float = MISS_PENALTY,
) -> Float[Tensor, "*classes"]:
    """Return the share of correct depth relations over all images, PCDR_0.2 by default.

        right / (pairs + penalty · missed)

    It is not a mean over images: images with more people weigh more. NaN without a pair. Arguments as of
    `depth_relations`, and ``penalty``, what one missed person adds to the pairs. With ``age_classes``, one
    share per class is returned: of the pairs with either person of that class.
    """
    penalty = read_nonnegative("penalty", penalty)
    counts = depth_relations(
        pred,
        target,
        weights=weights,
        missed=missed,
        age_classes=age_classes,
        threshold=threshold,
        same_layer=same_layer,
    )
    entry = () if age_classes is None else (len(AGE_CLASSES),)
    return DepthRelations(*(part.reshape(-1, *entry).sum(0) for part in counts)).rate(penalty=penalty)


@metric(higher_is_better=True)
def pcod(
    pred: Float[Tensor, "*images P"],
    target: Float[Tensor, "*images P"],
    *,
    weights: Weights = None,
    missed: Shaped[Tensor, "*images P"] | None = None,
    threshold: float = 0.3,
    reduction: Reduction = "mean",
) -> Errors:
    """Return the percentage of correct ordinal depth relations (PCOD), as a share of all pairs of people.

    A pair is right if both depths order it alike, or if both differ by less than the threshold. SMAP's code
    puts people who were not found at 100 m, so that they are beyond all others, and takes the mean of one
    share per film.

    Args:
        pred: depth of each person's root [m], one row per image; pad rows of fewer people, with weight 0.
        target: true depths [m]; NaN is unknown.
        weights: (*images, P), zero for people who are in no pair. Any weight other than 0 counts as 1.
        missed: (*images, P), true for people whom the prediction did not find.
        threshold: [m].
        reduction: over pairs, of which an image has P (P - 1) / 2: the first person with all others, then the
            second with those who follow.

    Source: Zhen et al., SMAP, ECCV 2020.
    """
    threshold = read_nonnegative("threshold", threshold, LENGTH, finite=False)
    pred, lost, known = _read_people(pred, target, weights, missed, None)
    first, second = torch.triu_indices(pred.shape[-1], pred.shape[-1], 1, device=pred.device)
    depths = torch.where(lost, _MISSED_DEPTH, pred), expect("target", target)
    by_pred, by_target = (x[..., first] - x[..., second] for x in (torch.where(known, x, 0) for x in depths))
    alike = torch.maximum(by_pred.abs(), by_target.abs()) < threshold
    right = (by_pred.sign() * by_target.sign() > 0) | alike
    return Errors(decided(right, by_pred), known[..., first] & known[..., second])


def _read_people(
    pred: Tensor,
    target: Tensor,
    weights: Weights,
    missed: Tensor | None,
    age_classes: Tensor | None,
) -> tuple[Float[Tensor, "*images P"], Bool[Tensor, "*images P"], Bool[Tensor, "*images P"]]:
    """Return depths, who was missed, and whose depth is known and counts."""
    pred, known = expect("pred", pred, None), ~expect_tensor("target", target).isnan()
    for name, given in (("target", target), ("missed", missed), ("age_classes", age_classes)):
        if given is not None and expect_tensor(name, given).shape != pred.shape:
            raise ValueError(f"{name}: expected shape {tuple(pred.shape)}, got {tuple(given.shape)}")
    lost = torch.zeros_like(pred, dtype=torch.bool) if missed is None else missed != 0
    weights = expand_weights(weights, pred.shape)
    return pred, lost, known if weights is None else known & (weights != 0)
