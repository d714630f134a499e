"""What losses start from: arguments checked, and differences in which masked entries are nothing."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.reduction import expect, hide


def expand_weights(weights: Any, entries: torch.Size) -> Tensor | None:
    """The weights, one an entry; None stays None.

    Raises:
        TypeError: they are no tensor.
        ValueError: they do not broadcast to the entries.
    """
    if weights is None:
        return None
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights: expected a torch.Tensor or None, got {type(weights).__name__}")
    try:
        return weights.expand(entries)
    except RuntimeError:
        raise ValueError(
            f"weights: expected a shape that broadcasts to {tuple(entries)}, got {tuple(weights.shape)}"
        ) from None


def expect_pair(pred: Any, target: Any, *entry: int | None) -> torch.Size:
    """Checks two tensors of one shape, ``(*entries, *entry)``, and gives the shape of the entries.

    Nothing is broadcast: ``(B, 1)`` against ``(B,)`` would be B x B differences, and nobody means that.

    Raises:
        TypeError: one is no tensor of a floating type.
        ValueError: the shape of one does not end so, or they have different shapes.
    """
    expect("pred", pred, *entry)
    expect("target", target, *entry)
    if pred.shape != target.shape:
        raise ValueError(
            f"target: expected the shape of pred, {tuple(pred.shape)}, got {tuple(target.shape)}"
        )
    return pred.shape[: pred.dim() - len(entry)]


def expect_labels(name: str, labels: Any, entries: torch.Size) -> Int[Tensor, "*entries"]:
    """Checks integers, one an entry.

    Raises:
        TypeError: it is no tensor of integers.
        ValueError: it has another shape.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: expected a torch.Tensor of integers, got {kind}")
    if labels.shape != entries:
        raise ValueError(f"{name}: expected shape {tuple(entries)}, got {tuple(labels.shape)}")
    return labels


def residual(
    pred: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    weights: Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None,
    *entry: int | None,
) -> tuple[Float[Tensor, "*shape"], Tensor | None]:
    """``pred - target``, zero in entries that weigh nothing, and the weights, one an entry.

    Args:
        pred: (*entries, *entry).
        target: the same shape.
        weights: broadcast to the entries.
        entry: sizes of the dimensions of one entry; None stands for any.

    Raises:
        TypeError: an argument is no tensor of a floating type.
        ValueError: shapes do not fit.
    """
    weights = expand_weights(weights, expect_pair(pred, target, *entry))
    # To hide the difference is enough: the gradient of a difference does not depend on what was subtracted.
    return hide(pred - target, weights, len(entry)), weights
