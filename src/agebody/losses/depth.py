"""Losses of the relative depths of the people of one image, and of the field of view.

People of an image are in the last dimension, images before it: ``(*batch, P)``, with weight 0 where an image
has fewer than P. Or the people of all images are in one row, and ``image`` holds each one's image. No shape
depends on values, so that both compile, and the host never waits for a device.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_choice,
    expect_labels,
    expect_pair,
    read_nonnegative,
    reduce,
    residual,
)

DepthForm = Literal["gated", "log", "metric-aware"]
"""Whether a pair of two layers stops counting where it is well in order, or never."""


def depth_layer_loss(
    depth: Float[Tensor, "*batch P"],
    layer: Int[Tensor, "*batch P"],
    *,
    image: Int[Tensor, "*batch P"] | None = None,
    weights: Weights = None,
    form: DepthForm = "gated",
    margin: float = 0.3,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return BEV's loss of people whose order in depth is known by layers (Sun et al., CVPR 2022).

    For each pair of people of an image, with ``dz = z_j - z_i`` and ``dl = layer_j - layer_i``:

        dz^2                         in one layer
        log(1 + exp(-sign(dl) dz))   in two

    The gated form, BEV's own, counts a pair of two layers only until it is ``margin`` per layer apart in the
    right order; its value is not continuous there. The log form counts all pairs, and so does that of
    Metric-Aware HMR (Wang et al. 2025), with ``|dz|`` in one layer and one mean over the pairs of all images.

    Args:
        depth: (*batch, P) depths z [m].
        layer: (*batch, P) layers, 0 the nearest; negative numbers, such as -1, are unknown depths.
        image: (*batch, P) number of each person's image; by default all P people are of one image.
        weights: broadcast to (*batch, P). A pair weighs the product of its people.
        form: "gated", "log" or "metric-aware".
        margin: distance per layer at which the gate closes [m].
        reduction: "none" gives (*batch, P, P), zero where j <= i. "mean" is the mean over the pairs that
            count in an image, and then over the images with such a pair; "metric-aware" is over all pairs.
    """
    expect_choice("form", form, get_args(DepthForm))
    margin = read_nonnegative("margin", margin, "a distance", unit=" [m]", finite=False)
    depth = expect("depth", depth, None)
    expect_labels("layer", layer, depth.shape)
    weights = expand_weights(weights, depth.shape)
    known = layer >= 0
    weights = known if weights is None else weights * known
    depth = apply_mask(depth, weights)
    apart, layers = differences(depth), differences(layer)
    ordered = layers.sign() * apart
    equal = apart.abs() if form == "metric-aware" else apart.square()
    terms = torch.where(layers == 0, equal, -functional.logsigmoid(ordered))
    pairs = _pair_weights(weights, image, depth)
    if form == "gated":
        pairs = pairs * ((layers == 0) | (ordered < margin * layers.abs()))
    if reduction == "mean" and form != "metric-aware":
        return _mean_over_images(terms, pairs, _same_image(image, depth))
    return reduce(terms, pairs, reduction)


def relative_metric_loss(
    pred: Float[Tensor, "*batch P"],
    target: Float[Tensor, "*batch P"],
    *,
    image: Int[Tensor, "*batch P"] | None = None,
    weights: Weights = None,
    max_distance: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``log(1 + |dz - dz'|)`` per pair of people of an image with ``|dz'| <= max_distance``.

    Metric-Aware HMR (Wang et al. 2025). The distance in depth between people who stand together depends on
    their size; the depth of the whole group does not matter.

    Args:
        pred: (*batch, P) depths [m].
        target: (*batch, P) depths [m].
        image: as of `depth_layer_loss`.
        weights: as of `depth_layer_loss`.
        max_distance: largest target distance in depth of a pair that counts [m].
        reduction: over pairs of all images. "none" gives (*batch, P, P), zero where j <= i.
    """
    expect("pred", pred, None)
    max_distance = read_nonnegative("max_distance", max_distance, "a distance", unit=" [m]", finite=False)
    pred, target, weights = expect_pair(pred, target, weights)
    apart, expected = differences(apply_mask(pred, weights)), differences(apply_mask(target, weights))
    # NaN is no large distance: the pair counts, so that NaN in a target shows.
    pairs = _pair_weights(weights, image, pred) * ~(expected.abs() > max_distance)
    return reduce(torch.log1p((apart - expected).abs()), pairs, reduction)


def fov_loss(
    pred: Float[Tensor, "*batch"],
    target: Float[Tensor, "*batch"],
    *,
    over_weight: float = 3.0,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return ``v (fov - fov')^2``, with v = ``over_weight`` where the prediction is too large, else 1.

    Metric-Aware HMR (Wang et al. 2025): too wide a view brings everybody too near.

    Args:
        pred: (*batch) fields of view [rad].
        target: the same shape.
        over_weight: v where the prediction is too large.
        weights: broadcast to (*batch): whose camera is known.
        reduction: over images.
    """
    over_weight = read_nonnegative("over_weight", over_weight)
    difference, weights = residual(pred, target, weights)
    terms = difference.square()
    return reduce(torch.where(difference > 0, over_weight * terms, terms), weights, reduction)


def differences(values: Shaped[Tensor, "*batch P"]) -> Shaped[Tensor, "*batch P P"]:
    """Return ``values_j - values_i`` at (i, j)."""
    if not values.is_floating_point():
        values = values.long()  # differences of unsigned ones would wrap
    return values[..., None, :] - values[..., :, None]


def _pair_weights(weights: Tensor | None, image: Any, people: Tensor) -> Float[Tensor, "*batch P P"]:
    """Return the weights of the pairs (i, j), i < j, of people of one image; 0 for all others."""
    count = people.shape[-1]
    once = torch.ones(count, count, dtype=people.dtype, device=people.device).triu(1)
    pairs = once.expand(*people.shape, count)
    if weights is not None:
        weights = weights.to(pairs.dtype)
        pairs = pairs * weights[..., None, :] * weights[..., :, None]
    return pairs * _same_image(image, people)


def _same_image(image: Any, people: Tensor) -> Tensor:
    """Return whether i and j are of one image."""
    if image is None:
        return torch.ones((), dtype=torch.bool, device=people.device).expand(*people.shape, people.shape[-1])
    expect_labels("image", image, people.shape)
    return image[..., None, :] == image[..., :, None]


def _mean_over_images(terms: Tensor, pairs: Tensor, same: Tensor) -> Tensor:
    """Return the weighted mean over the pairs of each image, averaged over the images with such a pair.

    Sums per image are computed at each of its people, and counted at the first of them. So no index is
    sorted, and the number of images is not needed."""
    first = ~same.tril(-1).any(-1)
    sums, totals = (
        (same * per_person[..., None, :]).sum(-1)
        for per_person in (reduce(terms, pairs, "none").sum(-1), pairs.sum(-1))
    )
    means = sums / torch.where(totals == 0, 1, totals)
    return reduce(means, first & (totals != 0), "mean")
