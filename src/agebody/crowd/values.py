"""Refusal of values that no people can have, where they can be looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from agebody.engine.rowwise import is_transformed


def expect_values(**expected: tuple[Tensor, str]) -> None:
    """Refuse arguments with wrong values, at the cost of waiting for the device once.

    Where a function is compiled, or within a transform of torch.func, there are no values to look at.

    Args:
        expected: by the name of the argument, where it is right, and what is expected there.

    Raises:
        ValueError: an argument is not right everywhere.
    """
    if torch.compiler.is_compiling() or is_transformed():
        return
    right = torch.stack([good.all() for good, _ in expected.values()]).tolist()
    for (name, (_, what)), good in zip(expected.items(), right, strict=True):
        if not good:
            raise ValueError(f"{name.replace('__', '.')}: expected {what}")
