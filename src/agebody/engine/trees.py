"""Batches of nested tuples and dictionaries of tensors: some rows of each, and batch dimensions restored.

Leaves that are not tensors, such as None, are kept as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import tree_map

Tree = TypeVar("Tree")
Given = ParamSpec("Given")


def without_gradients(function: Callable[Given, Tree]) -> Callable[Given, Tree]:
    """Run a function in inference mode, whose calls cost a sixth less than without gradients alone.

    What it returns is copied, since tensors of inference mode could not be used in training later.
    """

    @functools.wraps(function)
    def run(*args: Given.args, **options: Given.kwargs) -> Tree:
        with torch.inference_mode():
            found = function(*args, **options)
        return tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, found)

    return run


def take_rows(tree: Tree, rows: Tensor | slice) -> Tree:
    """Return some rows of each tensor."""
    return tree_map(lambda part: part[rows] if isinstance(part, Tensor) else part, tree)


def put_rows(tree: Tree, rows: Tensor, new: Tree) -> Tree:
    """Return the tree with these rows replaced by those of another, which has no others."""

    def put(old: Any, part: Any) -> Any:
        return old.index_put((rows,), part) if isinstance(old, Tensor) else old

    return tree_map(put, tree, new)


def where_rows(mask: Bool[Tensor, " B"], new: Tree, old: Tree) -> Tree:
    """Return the rows of ``new`` where the mask is set, and of ``old`` elsewhere."""

    def choose(part: Any, other: Any) -> Any:
        if not isinstance(part, Tensor):
            return other
        return torch.where(mask[(..., *[None] * (part.dim() - 1))], part, other)

    return tree_map(choose, new, old)


def unflatten(tree: Tree, batch: Sequence[int]) -> Tree:
    """Restore the batch dimensions of flat tensors."""

    def restore(part: Any) -> Any:
        return part.reshape((*batch, *part.shape[1:])) if isinstance(part, Tensor) else part

    return tree_map(restore, tree)
