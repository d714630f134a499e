"""Penalties of residuals. All except absolute values are the square near zero, not half of it."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import (
    expand_to,
    expect,
    expect_numbers,
    expect_values,
    read_nonnegative,
    read_positive,
)

Penalty = Literal["l1", "l2"] | Callable[[Tensor], Tensor]
"""``"l1"`` is the absolute value, ``"l2"`` the square, elementwise; or a function of residuals that returns a
tensor of their shape, such as ``functools.partial(gmof, rho=100.0)``."""


def penalize(residual: Float[Tensor, "*shape"], penalty: Penalty) -> Float[Tensor, "*shape"]:
    """Return the cost of each residual."""
    if callable(penalty):
        return penalty(residual)
    if not isinstance(penalty, str) or penalty not in ("l1", "l2"):
        given = reprlib.repr(penalty)
        raise ValueError(f"penalty: expected 'l1', 'l2' or a function of residuals, got {given}")
    if penalty == "l1":
        return residual.abs()
    return residual.square()


def gmof(residual: Float[Tensor, "*shape"], rho: float | Tensor) -> Float[Tensor, "*shape"]:
    """Return Geman and McClure's cost, ``rho^2 r^2 / (rho^2 + r^2)``, which is bounded by rho^2.

    SMPLify-X (Pavlakos et al., CVPR 2019) on coordinates of keypoints; SMIL (Hesse et al., MICCAI 2018) on
    distances of scan points, where rho is called sigma.

    Args:
        residual: any shape and unit.
        rho: residual at which the cost is half of its bound, in the same unit; positive.
    """
    residual = expect("residual", residual)
    rho = _scale("rho", rho, residual)
    share = residual / rho  # first, because rho^2 r^2 may overflow
    return rho * rho * (share / torch.hypot(share, torch.ones_like(share))).square()


def huber(residual: Float[Tensor, "*shape"], delta: float | Tensor) -> Float[Tensor, "*shape"]:
    """Return Huber's cost, twice `torch.nn.HuberLoss`: ``r^2`` up to ``|r| = delta``, then linear.

    Beyond, it is ``2 delta |r| - delta^2`` (Huber 1964).

    The gradient of an outlier stays that of a residual delta; it is bounded, but does not vanish.

    Args:
        residual: any shape and unit.
        delta: where the square ends, in the same unit; positive.
    """
    size = expect("residual", residual).abs()
    delta = _scale("delta", delta, size)
    return torch.where(size <= delta, size.square(), delta * (2 * size - delta))


def charbonnier(residual: Float[Tensor, "*shape"], epsilon: float | Tensor) -> Float[Tensor, "*shape"]:
    """Return ``2 epsilon (sqrt(r^2 + epsilon^2) - epsilon)``: Huber's cost, with a gradient without a kink.

    Charbonnier et al. 1994, scaled to ``r^2`` near zero.

    Args:
        residual: any shape and unit.
        epsilon: about where the square ends, in the same unit; positive.
    """
    residual = expect("residual", residual)
    epsilon = _scale("epsilon", epsilon, residual)
    # As a quotient, because the difference of the two loses all digits of a small residual.
    share = residual / epsilon
    return 2 * epsilon * epsilon * share * (share / (torch.hypot(share, torch.ones_like(share)) + 1))


def tals(
    residual: Float[Tensor, "*shape D"], threshold: float | Tensor, scale: float = 0.05
) -> Float[Tensor, "*shape D"]:
    """Return ``|r|`` for points farther away than the threshold, and ``scale |r|`` for nearer ones.

    The threshold-adaptive loss scaling of TokenHMR (Dwivedi et al., CVPR 2024): below the error that even the
    true body has under a wrong camera, 2D keypoints would bend the pose, and have little weight. It differs
    from weights of that size, by whose sum a mean is divided. The public code compares c d^2, a confidence
    times the squared distance, with its table of thresholds t: give sqrt(t / c).

    Args:
        residual: differences of points in D coordinates.
        threshold: distance, in the same unit; one, or one per point.
        scale: of the cost of nearer points.
    """
    residual = expect("residual", residual, None)
    distance = residual.detach().norm(dim=-1)
    limit = expand_to("threshold", expect_numbers("threshold", threshold, residual), distance.shape)
    expect_values(threshold=(limit >= 0, "distances of 0 or more"), wait=False)
    size = residual.abs()
    scale = read_nonnegative("scale", scale)
    return torch.where((distance > limit)[..., None], size, scale * size)


def _scale(name: str, value: float | Tensor, like: Tensor) -> float | Tensor:
    """Return a scale as a floating-point number, as squares of small integer types overflow."""
    if not isinstance(value, Tensor):
        return read_positive(name, value, "a finite number")
    expect_values(**{name: ((value > 0) & (value < torch.inf), "finite numbers above 0")}, wait=False)
    return expand_to(name, value.to(like), like.shape)
