"""Losses of the age offset, from a class or from a number."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.age import AGE_CLASSES
from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_labels,
    reduce,
    residual,
)
from agebody.losses.robust import Penalty, penalize


def age_offset_loss(
    pred: Float[Tensor, "*batch"],
    target: Float[Tensor, "*batch"],
    *,
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``w p(a - a')`` per person. BEV (Sun et al., CVPR 2022) adds twice this to `age_class_loss`.

    Args:
        pred: (*batch) age offsets.
        target: the same shape.
        weights: broadcast to (*batch): whose age offset is known.
        penalty: p.
        reduction: over people.
    """
    difference, weights = residual(pred, target, weights)
    return reduce(penalize(difference, penalty), weights, reduction)


def age_class_loss(
    age_offset: Float[Tensor, "*batch"],
    age_class: Int[Tensor, "*batch"],
    *,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return BEV's loss of people whose age is known only by its class (Sun et al., CVPR 2022).

    ``a^2`` for adults; for the others ``(a - mid)^2`` where a lies outside ``low < a <= high``, and 0 inside:
    see `agebody.age.AGE_CLASSES`.

    Args:
        age_offset: (*batch).
        age_class: (*batch) index into ``AGE_CLASSES``; any other number, such as -1, is an unknown age.
        weights: broadcast to (*batch).
        reduction: over people. "mean" is the sum of the means per class, so that a few babies among many
            adults count; a class without people adds nothing. BEV's public code divides by the number of all
            people instead, of known age or not: ``age_class_loss(..., reduction="none").mean()``.
    """
    age_offset = expect("age_offset", age_offset)
    expect_labels("age_class", age_class, age_offset.shape)
    known = (age_class >= 0) & (age_class < len(AGE_CLASSES))
    given = expand_weights(weights, age_offset.shape)
    weights = known if given is None else given * known
    age_offset = apply_mask(age_offset, weights)
    members = [age_class == index for index in range(len(AGE_CLASSES))]
    terms = torch.zeros_like(age_offset)
    for kind, of_class in zip(AGE_CLASSES, members, strict=True):
        inside = (age_offset > kind.low) & (age_offset <= kind.high)
        wrong = of_class if kind.name == "adult" else of_class & ~inside
        terms = torch.where(wrong, (age_offset - kind.mid).square(), terms)
    if reduction == "mean":
        return torch.stack([reduce(terms, weights * of_class, "mean") for of_class in members]).sum()
    return reduce(terms, weights, reduction)
