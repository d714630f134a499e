"""Who stands before whom: percentage of correct depth relations (PCDR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from agebody.age import AGE_CLASSES
from agebody.checks import Weights, at_least_float32, expect

MISS_PENALTY = 0.3
"""What one missed person adds to the pairs (Relative Human's evaluation code)."""


class DepthRelations(NamedTuple):
    """Counts of depth relations. They add up: over images first, then `rate`."""

    right: Float[Tensor, "*images"]
    """Pairs whose order was found."""
    pairs: Float[Tensor, "*images"]
    """Pairs of people who were found and whose place is known."""
    missed: Float[Tensor, "*images"]
    """People who were not found."""

    def rate(self, *, penalty: float = MISS_PENALTY) -> Float[Tensor, "*images"]:
        """Right ones among all pairs and penalties, right / (pairs + penalty · missed); NaN without pairs."""
        return torch.where(self.pairs > 0, self.right / (self.pairs + penalty * self.missed), torch.nan)

    def sum(self, *dims: int) -> DepthRelations:
        """Added up over these dimensions; over the images if none is given, with one dimension of them."""
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
    """Counts, image by image, how many pairs of people stand in the order that they should.

    Of two people whose target is the same, |dz| < threshold is right; where the target says that one is
    nearer, its depth has to be smaller by more than the threshold (BEV, CVPR 2022). As Relative Human's code
    does, it compares people who were found; those who were not are counted apart.

    Args:
        pred: depth of each person [m], one row an image; pad rows of fewer people and give those weight 0.
        target: depth layers, smaller is nearer; or true depths [m], with ``same_layer``.
        weights: (*images, P), zero for padding and for people whose layer is unknown: they are in no pair,
            NaN or not. What is not zero counts as one.
        missed: (*images, P), true for people whom the prediction did not find. They are in no pair either,
            but count as missed, whatever their weight.
        age_classes: (*images, P), indices into ``AGE_CLASSES``. With them there is a last dimension of the
            result, one entry a class: pairs with either person of that class, and missed people of that
            class.
        threshold: [m].
        same_layer: largest difference of targets that counts as the same; 0 for layers.

    Returns:
        Counts of shape (*images), or (*images, 4) by age class; in float64, so that sums of them are exact.

    Raises:
        TypeError, ValueError: shapes or types do not fit.
    """
    pred = at_least_float32(expect("pred", pred, None))
    for name, given in (("target", target), ("missed", missed), ("age_classes", age_classes)):
        if given is not None and given.shape != pred.shape:
            raise ValueError(f"{name}: expected shape {tuple(pred.shape)}, got {tuple(given.shape)}")
    lost = torch.zeros_like(pred, dtype=torch.bool) if missed is None else missed != 0
    there = ~lost
    if weights is not None:
        try:
            there = there & (weights != 0).expand(pred.shape)
        except RuntimeError:
            raise ValueError(
                f"weights: expected a shape that broadcasts to {tuple(pred.shape)}, "
                f"got {tuple(weights.shape)}"
            ) from None
    depth, layer = torch.where(there, pred, 0), torch.where(there, target, 0)
    closer = depth[..., :, None] - depth[..., None, :]
    order = layer[..., :, None] - layer[..., None, :]
    right = torch.where(
        order.abs() <= same_layer,
        closer.abs() < threshold,
        torch.where(order < 0, closer < -threshold, closer > threshold),
    )
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
    sums = ((counted & right).sum((-2, -1)), counted.sum((-2, -1)), gone.sum(-1))
    return DepthRelations(*(part.double() for part in sums))


def pcdr(
    pred: Float[Tensor, "*images P"],
    target: Num[Tensor, "*images P"],
    *,
    weights: Weights = None,
    missed: Shaped[Tensor, "*images P"] | None = None,
    threshold: float = 0.2,
    same_layer: float = 0.0,
    penalty: float = MISS_PENALTY,
) -> Float[Tensor, ""]:
    """Share of correct depth relations over all images, PCDR_0.2 by default; arguments as of
    `depth_relations`.

        right / (pairs + penalty · missed)

    It is no mean over images: images with more people weigh more. NaN without a pair.
    """
    counts = depth_relations(
        pred, target, weights=weights, missed=missed, threshold=threshold, same_layer=same_layer
    )
    return DepthRelations(*(part.sum() for part in counts)).rate(penalty=penalty)


def pcdr_by_age(
    pred: Float[Tensor, "*images P"],
    target: Num[Tensor, "*images P"],
    age_classes: Int[Tensor, "*images P"],
    *,
    weights: Weights = None,
    missed: Shaped[Tensor, "*images P"] | None = None,
    threshold: float = 0.2,
    same_layer: float = 0.0,
    penalty: float = MISS_PENALTY,
) -> Float[Tensor, " classes"]:
    """PCDR of each of the ``AGE_CLASSES``: of pairs with either person of that class; NaN without such a
    pair.

    Arguments as of `depth_relations`.
    """
    counts = depth_relations(
        pred, target, weights=weights, missed=missed, age_classes=age_classes, threshold=threshold,
        same_layer=same_layer,
    )  # fmt: skip
    return DepthRelations(*(part.flatten(0, -2).sum(0) if part.dim() > 1 else part for part in counts)).rate(
        penalty=penalty
    )
