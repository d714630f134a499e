"""Functions of numbers, arrays and tensors alike."""

from __future__ import annotations

import reprlib
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.engine.batched import at_least_float32

Number = TypeVar("Number", float, np.ndarray, Tensor)


def special_functions(values: Any) -> Any:
    """Return the special functions of torch or SciPy."""
    if isinstance(values, Tensor):
        return torch.special
    from scipy import special

    return special


def of_one_kind(first: Any, second: Any) -> tuple[Any, Any]:
    """Convert what is given beside a tensor to a tensor of its type; numbers and arrays mix as they are."""
    like = next((x for x in (first, second) if isinstance(x, Tensor)), None)
    if like is None:
        return first, second
    first, second = (
        at_least_float32(
            x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=like.dtype, device=like.device)
        )
        for x in (first, second)
    )
    return first, second


def as_given(value: Any, like: Any, number: type = float) -> Any:
    """Return a tensor or an array if either is given, else a number."""
    kept = isinstance(value, Tensor) or isinstance(like, np.ndarray) or np.ndim(value) > 0
    return value if kept else number(value)


def numbers(values: Any) -> Float[np.ndarray, "*entries"]:
    """Return numbers as an array."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"expected numbers, got {reprlib.repr(values)}") from None


def interpolate(x: Any, nodes: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> Any:
    """Interpolate linearly between (nodes, values), nodes ascending, constant outside them; as np.interp."""
    if not isinstance(x, Tensor):
        return as_given(np.interp(numbers(x), nodes, values), x)
    if not x.is_floating_point():
        raise TypeError(f"expected a tensor of floating point numbers, got {x.dtype}")
    x = at_least_float32(x)
    xs, ys = (torch.as_tensor(part.copy(), dtype=x.dtype, device=x.device) for part in (nodes, values))
    inside = x.clamp(xs[0], xs[-1])[None]  # an index without a dimension stops torch.func.vmap
    right = torch.searchsorted(xs, inside.detach().contiguous()).clamp(1, len(xs) - 1)
    found = ys[right - 1] + (inside - xs[right - 1]) * (ys[right] - ys[right - 1]) / (
        xs[right] - xs[right - 1]
    )
    return found[0]
