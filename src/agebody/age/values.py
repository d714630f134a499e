"""Functions of numbers, arrays and tensors."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import broadcast, expect, expect_values, floating

Number = TypeVar("Number", float, np.ndarray, Tensor)
MAX_YEARS = 130.0
"""Upper bound of ages [years]; a larger number is a year of birth, or counts months."""
_AGES = f"ages below {MAX_YEARS:g} years, not months"
TALLEST = 5.0
"""Statures above it are in another unit [m]."""

Table = TypeVar("Table", bound=Callable[..., Any])


def constant(table: Table) -> Table:
    """Cache the result of a function; torch.compile takes it as a constant, without tracing."""
    kept: Any = cache(table)

    @wraps(table)
    def call(*args: Any, **options: Any) -> Any:
        return kept(*args, **options)

    # As torch.compiler.assume_constant_result, which imports the compiler.
    vars(call)["_dynamo_marked_constant"] = True
    return call  # pyright: ignore[reportReturnType]


def special_functions(values: Any) -> Any:
    """Return the special functions of torch or SciPy."""
    if isinstance(values, Tensor):
        return torch.special
    from scipy import special

    return special


def of_one_kind(**given: Any) -> tuple[Any, ...]:
    """Convert what is given beside a tensor to a tensor of its type, all else to arrays of numbers."""
    tensors = [x for x in given.values() if isinstance(x, Tensor)]
    like = tensors[0] if tensors else None
    like = None if like is None else floating(like)
    found = {name: x if isinstance(x, Tensor) else numbers(name, x) for name, x in given.items()}
    if like is not None:
        found = {
            name: expect(name, floating(x) if isinstance(x, Tensor) else torch.from_numpy(x).to(like))
            for name, x in found.items()
        }
    broadcast(**{name: x.shape for name, x in found.items()})
    return tuple(found.values())


def as_given(value: Any, like: Any, number: type = float) -> Any:
    """Return a tensor or an array if either is given, else a number."""
    kept = isinstance(value, Tensor) or isinstance(like, np.ndarray) or np.ndim(value) > 0
    return value if kept else number(value)


def numbers(name: str, values: Any) -> Float[np.ndarray, "*entries"]:
    """Return numbers as an array."""
    try:
        found = np.asarray(values)
        if values is None or found.dtype.kind not in "iufO":
            raise TypeError
        return found.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected numbers, got {reprlib.repr(values)}") from None


def at_years(years: Any, nodes: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> Any:
    """Interpolate at ages as `interpolate`; larger numbers than ages are refused, on the CPU."""
    given = years if isinstance(years, Tensor) else torch.from_numpy(numbers("years", years))
    expect_values(wait=False, years=(~(given >= MAX_YEARS), _AGES))
    return interpolate("years", years, nodes, values)


def expect_metres(stature: Any) -> None:
    """Check that statures are not in another unit."""
    given = stature if isinstance(stature, Tensor) else torch.from_numpy(numbers("stature", stature))
    expect_values(stature=(~((given > TALLEST) & given.isfinite()), f"metres, up to {TALLEST:g}"))


def interpolate(name: str, x: Any, nodes: Float[np.ndarray, " N"], values: Float[np.ndarray, " N"]) -> Any:
    """Interpolate linearly between (nodes, values), nodes ascending, constant outside them; as np.interp."""
    if not isinstance(x, Tensor):
        return as_given(np.interp(numbers(name, x), nodes, values), x)
    x = expect(name, floating(x))
    xs, ys = (torch.as_tensor(part.copy(), dtype=x.dtype, device=x.device) for part in (nodes, values))
    inside = x.clamp(xs[0], xs[-1])[None]  # an index without a dimension stops torch.func.vmap
    right = torch.searchsorted(xs, inside.detach().contiguous()).clamp(1, len(xs) - 1)
    found = ys[right - 1] + (inside - xs[right - 1]) * (ys[right] - ys[right - 1]) / (
        xs[right] - xs[right - 1]
    )
    return found[0]
