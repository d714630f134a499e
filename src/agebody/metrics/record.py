"""Make the function of a metric, and its mean over batches, from a function of errors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Protocol, cast, runtime_checkable

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


def decided(right: Bool[Tensor, "*entries"], by: Float[Tensor, "*entries"]) -> Float[Tensor, "*entries"]:
    """Return 1 where a decision is right and 0 where it is wrong; NaN where what it was decided by is NaN."""
    return torch.where(by.isnan(), by, right.to(by.dtype))


@runtime_checkable
class Metric(Protocol[P]):
    """A metric that is a mean of errors."""

    errors: Callable[P, Errors]
    """Takes the same arguments, and returns errors that are not reduced."""
    higher_is_better: bool

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Return the reduced errors."""
        ...


def metric(*, higher_is_better: bool = False) -> Callable[[Callable[P, Errors]], Metric[P]]:
    """Make the function of a metric from one that returns its errors.

    NaN in an entry that counts is NaN in its error and in the mean, never 0, "wrong" or left out; a rule of
    the metric may say that it is unknown there, and counts as weight 0.

    The decorated function declares ``reduction`` and need not read it: it returns `Errors`, and its callers
    get these reduced."""

    def make(errors: Callable[P, Errors]) -> Metric[P]:
        signature = inspect.signature(errors)
        default = signature.parameters["reduction"].default

        @functools.wraps(errors)
        def reduced(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            reduction: Any = kwargs.get("reduction", default)
            return errors(*args, **kwargs).reduce(reduction)

        found = cast(Any, reduced)
        found.__signature__ = signature.replace(return_annotation="Tensor")
        found.errors, found.higher_is_better = errors, higher_is_better
        return found

    return make
