"""The record of a metric, from which its function and its accumulator are made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, ParamSpec

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.checks import Reduction, reduce

P = ParamSpec("P")


class Errors(NamedTuple):
    """One number per entry, and what each weighs."""

    values: Float[Tensor, "*entries"]
    weights: Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None
    """None is 1 everywhere; entries of weight 0 do not count."""

    def reduce(self, reduction: Reduction) -> Float[Tensor, "*left"]:
        """Reduce the values as `agebody.checks.reduce` does; the mean of no entries is NaN."""
        return reduce(self.values, self.weights, reduction, empty=torch.nan)


@dataclass(frozen=True)
class Metric:
    """What is known of a metric."""

    errors: Callable[..., Errors]
    """Takes the arguments of the metric's function, and returns errors that are not reduced."""
    entry: Literal["joint", "person", "frame"]
    """What one error is of."""
    options: tuple[str, ...]
    """Arguments that stay the same over batches."""
    higher_is_better: bool
    unit: str
    """"m" is the unit of the input."""

    def missing(self, given: dict[str, Any]) -> list[str]:
        """Return the options that have no default and are not given."""
        parameters = inspect.signature(self.errors).parameters
        return [
            n for n in self.options if n not in given and parameters[n].default is inspect.Parameter.empty
        ]


METRICS: dict[str, Metric] = {}
"""The metrics that are means of errors, by the names of their functions."""


def metric(
    entry: Literal["joint", "person", "frame"],
    *,
    options: tuple[str, ...] = (),
    higher_is_better: bool = False,
    unit: str = "m",
) -> Callable[[Callable[P, Errors]], Callable[P, Tensor]]:
    """Make the function of a metric from one that returns its errors, and keep the record in `METRICS`.

    The decorated function declares ``reduction`` and need not read it: it returns `Errors`, and its callers
    get these reduced."""

    def make(errors: Callable[P, Errors]) -> Callable[P, Tensor]:
        signature = inspect.signature(errors)
        default = signature.parameters["reduction"].default

        @functools.wraps(errors)
        def reduced(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            reduction: Any = kwargs.get("reduction", default)
            return errors(*args, **kwargs).reduce(reduction)

        reduced.__signature__ = signature.replace(return_annotation="Tensor")  # pyright: ignore
        METRICS[errors.__name__] = Metric(errors, entry, options, higher_is_better, unit)
        return reduced

    return make
