"""Nonlinear least squares for thousands of small problems at once, each converging or failing alone."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Linearized = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(x, rows)`` -> residuals (b, M) and Jacobian (b, M, N) of the problems with these numbers, at x (b, N)."""


class Stop(IntEnum):
    """Why a problem was left."""

    ITERATIONS = 0
    """The iterations ran out."""
    COST = 1
    """A step gained less than the tolerance."""
    STEP = 2
    """A step was shorter than the tolerance."""
    GRADIENT = 3
    """The gradient is zero, to the tolerance, as far as the bounds let it be followed."""
    STUCK = 4
    """No step, however short, gains anything: what is computed has reached its precision."""
    NOT_FINITE = 5
    """Residuals or derivatives at the start are NaN or infinite; the start is returned."""


class Solution(NamedTuple):
    """Where problems ended."""

    x: Float[Tensor, "B N"]
    cost: Float[Tensor, "B"]
    """Half of the sum of the squared residuals."""
    converged: Bool[Tensor, "B"]
    iterations: Int[Tensor, "B"]
    """Steps that were tried."""
    stop: Int[Tensor, "B"]
    """A `Stop` each."""


def levenberg_marquardt(
    linearize: Linearized,
    start: Float[Tensor, "B N"],
    *,
    lower: Float[Tensor, "*#bounds N"] | None = None,
    upper: Float[Tensor, "*#bounds N"] | None = None,
    max_iterations: int = 50,
    cost_tolerance: float = 1e-6,
    step_tolerance: float = 1e-6,
    gradient_tolerance: float = 1e-8,
    damping: float = 1e-3,
) -> Solution:
    """Minimises half the sum of squared residuals of each problem, within bounds.

    Levenberg 1944 and Marquardt 1963, damped by the diagonal of JᵀJ, with Nielsen's rule (1999): the damping
    follows how well the linear model foretold the gain. Variables at a bound that the gradient would push
    beyond it are held for the step; others are clamped. Problems that are done leave the batch. The same
    start gives the same end, to the bit on one device, and nothing that is returned is NaN unless the start is.

    Args:
        linearize: residuals and their Jacobian. A trial that is not finite counts as one that gains nothing.
        start: (B, N).
        lower: bounds, broadcast to (B, N).
        upper: bounds.
        max_iterations: steps to be tried.
        cost_tolerance: share of the cost.
        step_tolerance: length, as a share of that of x.
        gradient_tolerance: largest entry of the gradient.
        damping: of the first step.

    Raises:
        ValueError: shapes do not fit, or a lower bound is above its upper one.
    """
    x, lower, upper = _read(start, lower, upper)
    batch = len(x)
    everyone = torch.arange(batch, device=x.device)
    residuals, jacobian = linearize(x, everyone)
    cost = _half_square(residuals)
    finite = cost.isfinite() & jacobian.flatten(1).isfinite().all(1)
    stop = torch.where(finite, Stop.ITERATIONS, Stop.NOT_FINITE)
    iterations = torch.zeros_like(stop)
    active = everyone[finite]
    state = _State(x[active], cost[active], *_normal(jacobian[active], residuals[active]),
                   x.new_full((len(active),), damping), x.new_full((len(active),), 2.0))  # fmt: skip
    for _ in range(max_iterations):
        if len(active) == 0:
            break
        low, high = lower[active], upper[active]
        iterations[active] += 1
        step, model_gain, free_gradient = _step(state, low, high)
        trial = state.x + step
        trial_residuals, trial_jacobian = linearize(trial, active)
        trial_cost = _half_square(trial_residuals)
        sound = trial_cost.isfinite() & trial_jacobian.flatten(1).isfinite().all(1)
        gain = torch.where(sound, state.cost - trial_cost, -torch.inf)
        better = gain > 0
        at_rest = free_gradient.abs().amax(-1) <= gradient_tolerance
        short = step.norm(dim=-1) <= step_tolerance * (step_tolerance + state.x.norm(dim=-1))
        reached = better & (gain <= cost_tolerance * state.cost)

        ratio = torch.where(better, gain / model_gain.clamp(min=torch.finfo(x.dtype).tiny), 0)
        calmer = state.damping * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3)
        stuck = ~better & (state.damping > 1e12)
        normal, gradient = _normal(trial_jacobian, trial_residuals)
        pick = lambda new, old: torch.where(better[(..., *[None] * (new.dim() - 1))], new, old)  # noqa: E731
        state = _State(
            pick(trial, state.x), pick(trial_cost, state.cost), pick(normal, state.normal),
            pick(gradient, state.gradient),
            torch.where(better, calmer, state.damping * state.growth),
            torch.where(better, 2.0, 2 * state.growth),
        )  # fmt: skip
        reason = torch.full_like(stop[active], -1)
        for condition, why in (
            (stuck, Stop.STUCK), (short, Stop.STEP), (reached, Stop.COST), (at_rest, Stop.GRADIENT),
        ):  # fmt: skip
            reason = torch.where(condition, why, reason)
        x[active], cost[active] = state.x, state.cost
        done = reason >= 0
        stop[active[done]] = reason[done]
        active, state = active[~done], _State(*(part[~done] for part in state))
    converged = (stop == Stop.COST) | (stop == Stop.STEP) | (stop == Stop.GRADIENT) | (stop == Stop.STUCK)
    return Solution(x, cost, converged, iterations, stop)


class _State(NamedTuple):
    x: Tensor
    cost: Tensor
    normal: Tensor
    """JᵀJ"""
    gradient: Tensor
    """Jᵀr"""
    damping: Tensor
    growth: Tensor


def _step(state: _State, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A damped step within the bounds, what the linear model expects of it, and the gradient that is free."""
    held = ((state.x <= lower) & (state.gradient > 0)) | ((state.x >= upper) & (state.gradient < 0))
    gradient = torch.where(held, 0, state.gradient)
    diagonal = state.normal.diagonal(dim1=-2, dim2=-1)
    floor = diagonal.amax(-1, keepdim=True) * torch.finfo(state.x.dtype).eps
    scale = diagonal.clamp(min=floor) + (floor == 0)
    matrix = torch.where(held[:, None] | held[:, :, None], 0, state.normal)
    extra = state.damping[:, None] * scale + held * scale
    matrix = matrix + torch.diag_embed(extra)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    step = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    step = torch.where((failed == 0)[:, None] & step.isfinite(), step, 0)
    step = torch.minimum(torch.maximum(state.x + step, lower), upper) - state.x
    along = (state.normal @ step[..., None])[..., 0]
    expected = -(step * (state.gradient + along / 2)).sum(-1)
    return step, expected, gradient


def _normal(jacobian: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    return jacobian.mT @ jacobian, (jacobian.mT @ residuals[..., None])[..., 0]


def _half_square(residuals: Tensor) -> Tensor:
    return residuals.square().sum(-1) / 2


def _read(start: Tensor, lower: Tensor | None, upper: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if start.dim() != 2:
        raise ValueError(f"start: expected shape (B, N), got {tuple(start.shape)}")
    low = torch.full_like(start, -torch.inf) if lower is None else lower.expand(start.shape)
    high = torch.full_like(start, torch.inf) if upper is None else upper.expand(start.shape)
    if (low > high).any():
        raise ValueError("lower: expected bounds that are not above the upper ones")
    return torch.minimum(torch.maximum(start.detach().clone(), low), high), low, high
