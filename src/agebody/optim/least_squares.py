"""Levenberg-Marquardt for thousands of small nonlinear least-squares problems at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import read_count, read_nonnegative, read_positive
from agebody.engine.batched import own_precision
from agebody.optim.quadratic import Model

_MAX_DAMPING = 1e12
_LITTLE_DAMPING = 1.0  # a step with more damping than this counts as held back


class Stop(IntEnum):
    """Why the solver stopped working on a problem."""

    ITERATIONS = 0
    """The maximum number of iterations was reached."""
    COST = 1
    """A step reduced the cost by less than the tolerance, and no larger reduction was predicted."""
    STEP = 2
    """A step that was not limited by damping was shorter than the tolerance."""
    GRADIENT = 3
    """The gradient of the free variables is zero, to the tolerance."""
    STUCK = 4
    """No step, however short, reduces the cost as predicted: the derivatives are wrong or discontinuous."""
    NOT_FINITE = 5
    """Cost or derivatives are NaN or infinite at the start or at every trial. The solution is the last finite
    point."""


class Solution(NamedTuple):
    """Solutions of a batch of problems."""

    x: Float[Tensor, "B N"]
    """The point of lowest cost, within the bounds; finite wherever the start was."""
    cost: Float[Tensor, " B"]
    """NaN or infinite only where it is so at the start."""
    converged: Bool[Tensor, " B"]
    """Whether ``stop`` is COST, STEP or GRADIENT."""
    iterations: Int[Tensor, " B"]
    """Steps tried."""
    stop: Int[Tensor, " B"]
    """A `Stop` per problem."""


def minimize(
    quadratize: Callable[[Tensor, Tensor], Model],
    start: Float[Tensor, "B N"],
    *,
    lower: Float[Tensor, "*#bounds #N"] | None = None,
    upper: Float[Tensor, "*#bounds #N"] | None = None,
    max_iterations: int = 50,
    cost_tolerance: float = 1e-6,
    step_tolerance: float = 1e-6,
    gradient_tolerance: float = 1e-8,
    damping: float = 1e-3,
    metric: Float[Tensor, "*#metric #N"] | None = None,
) -> Solution:
    """Minimize the cost of each problem, within bounds, by Levenberg-Marquardt.

    Problems are independent: each has its own damping, and leaves the batch when it stops. Runs repeat to the
    bit on one device.

    A step minimizes the quadratic model plus ``damping`` times the diagonal of the normal matrix (Marquardt
    1963); see ``metric``. The damping is raised and lowered by the ratio of actual to predicted reduction
    (Nielsen 1999). Variables at a bound that the gradient pushes against it are fixed; where a step crosses
    further bounds, it is clamped to these, and the step of the other variables solved for once more.

    Args:
        quadratize: ``(x, rows)`` -> a `Quadratic` or `ChainQuadratic` of the problems with the indices
            ``rows`` (b) at x (b, N). One evaluation is one iteration.
        start: initial point, clamped to the bounds.
        lower: lower bounds, -inf where there are none; broadcast to (B, N).
        upper: upper bounds.
        max_iterations: maximum number of steps.
        cost_tolerance: stop after a step that reduces the cost by no more than this fraction, if no larger
            reduction was predicted. The prediction of a step that damping held back is scaled up.
        step_tolerance: stop after a step no longer than this fraction of |x| (plus this fraction of 1), had
            damping not held it back.
        gradient_tolerance: stop where, to first order, a change of any variable by max(|x|, 1) changes the
            cost by no more than this fraction.
        damping: of the first step, above 0.
        metric: inverse variances that a prior gives to variables, 0 for those without; broadcast to (B, N).
            Variables with one are damped in these proportions, as much as the one that the residuals
            determine best. With the diagonal alone, damped steps move poorly determined variables too far
            where there are fewer residuals than variables.
    """
    if start.dim() != 2 or not start.is_floating_point():
        raise ValueError(f"start: expected floats of shape (B, N), got {start.dtype} {tuple(start.shape)}")
    bounds = _read_bounds(start, lower, upper)
    tolerances = _Tolerances(cost_tolerance, step_tolerance, gradient_tolerance)
    for name, number in tolerances._asdict().items():
        read_nonnegative(f"{name}_tolerance", number)
    read_positive("damping", damping)
    read_count("max_iterations", max_iterations)
    with own_precision(start.device):
        metric = None if metric is None else metric.detach().to(start).expand(start.shape)
        return _minimize(quadratize, start.detach(), bounds, metric, tolerances, max_iterations, damping)


class _Tolerances(NamedTuple):
    cost: float
    step: float
    gradient: float


class _Bounds(NamedTuple):
    """(b, N) each."""

    lower: Tensor
    upper: Tensor

    def clamp(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def active(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return which variables are at a bound that the gradient pushes them against."""
        return ((x <= self.lower) & (gradient > 0)) | ((x >= self.upper) & (gradient < 0))


class _Trial(NamedTuple):
    """A step that may be accepted."""

    x: Tensor
    step: Tensor
    predicted: Tensor
    """(b) reduction of the cost by the undamped model."""
    solved: Tensor
    """(b) whether the normal equations had a solution."""


def _minimize(
    quadratize: Callable[[Tensor, Tensor], Model],
    start: Tensor,
    bounds: _Bounds | None,
    metric: Tensor | None,
    tolerances: _Tolerances,
    max_iterations: int,
    damping: float,
) -> Solution:
    final_x = start.clone() if bounds is None else bounds.clamp(start)
    rows = torch.arange(len(start), device=start.device)
    iterations = torch.zeros_like(rows)
    if not len(start):
        return Solution(final_x, final_x.new_zeros(0), iterations.bool(), iterations, iterations)
    model = _evaluate(quadratize, final_x, rows)
    if model.cost.shape != start.shape[:1] or model.gradient.shape != start.shape:
        raise ValueError(
            f"quadratize: expected costs and gradients of {tuple(start.shape)} variables, "
            f"got {tuple(model.cost.shape)} and {tuple(model.gradient.shape)}"
        )
    cost = model.cost.clone()
    flat = _is_flat(final_x, model, bounds, tolerances.gradient)
    stop = torch.where(flat, Stop.GRADIENT, Stop.ITERATIONS)
    stop = torch.where(_is_finite(final_x, model), stop, Stop.NOT_FINITE)

    left = stop == Stop.ITERATIONS
    rows, x, model = rows[left], final_x[left], _select(model, left)
    bounds = bounds and _select(bounds, left)
    metric = None if metric is None else metric[left]
    dampings, growth = torch.full_like(model.cost, damping), torch.full_like(model.cost, 2.0)
    for number in range(1, max_iterations + 1):
        if not len(rows):
            break
        iterations[rows] = number
        trial = _propose(x, model, dampings, bounds, metric)
        found = _evaluate(quadratize, trial.x, rows)
        finite = _is_finite(trial.x, found)
        reduction = torch.where(finite & trial.solved, model.cost - found.cost, -torch.inf)
        accepted = reduction > 0
        reason = _why_stop(x, model.cost, trial, reduction, dampings, tolerances)
        reason = torch.where((reason > 0) & ~finite, Stop.NOT_FINITE, reason)
        dampings, growth = _update_damping(dampings, growth, reduction, trial)

        model = found if accepted.all() else _choose(accepted, found, model)
        x = torch.where(accepted[:, None], trial.x, x)
        flat = accepted & _is_flat(x, model, bounds, tolerances.gradient)
        reason = torch.where(flat, Stop.GRADIENT, reason)
        final_x[rows], cost[rows], stop[rows] = x, model.cost, reason
        left = reason == Stop.ITERATIONS
        if not left.all():
            rows, x, model = rows[left], x[left], _select(model, left)
            dampings, growth = dampings[left], growth[left]
            bounds = bounds and _select(bounds, left)
            metric = None if metric is None else metric[left]
    converged = (stop == Stop.COST) | (stop == Stop.STEP) | (stop == Stop.GRADIENT)
    return Solution(final_x, cost, converged, iterations, stop)


def _propose(
    x: Tensor, model: Model, dampings: Tensor, bounds: _Bounds | None, metric: Tensor | None
) -> _Trial:
    """Return the minimum of the damped model, within the bounds."""
    gradient, diagonal = model.gradient, model.diagonal()
    # Cholesky is invariant to the scales of variables, so only the damping needs them.
    floor = diagonal.amax(-1, keepdim=True) * torch.finfo(x.dtype).eps
    scales = torch.where(floor > 0, diagonal.clamp(min=floor), 1)
    if metric is not None:
        ratios = torch.where(metric > 0, scales / torch.where(metric > 0, metric, 1), 0)
        scales = torch.maximum(scales, ratios.amax(-1, keepdim=True) * metric)
    added = dampings[:, None] * scales
    active = None if bounds is None else bounds.active(x, gradient)
    step = model.solve(-gradient, added, active)
    solved = step.isfinite().all(-1)
    trial = x + torch.where(solved[:, None], step, 0)
    if bounds is not None and active is not None:
        beyond = (trial < bounds.lower) | (trial > bounds.upper)
        some = beyond.any(-1).nonzero()[:, 0]
        trial = bounds.clamp(trial)
        if len(some):  # solve for the other variables, given that these go no further than their bounds
            clamped = torch.where(beyond, trial - x, 0)[some]
            part = _select(model, some)
            target = -gradient[some] - part.product(clamped)
            rest = part.solve(target, added[some], (active | beyond)[some])
            trial[some] = torch.where(rest.isfinite(), x[some] + clamped + rest, trial[some])
            trial = bounds.clamp(trial)
    step = trial - x
    predicted = -(step * (gradient + model.product(step) / 2)).sum(-1)
    return _Trial(trial, step, predicted, solved)


def _update_damping(
    dampings: Tensor, growth: Tensor, reduction: Tensor, trial: _Trial
) -> tuple[Tensor, Tensor]:
    """Return the next damping and the factor by which another failure would raise it (Nielsen 1999)."""
    info = torch.finfo(dampings.dtype)
    accepted = reduction > 0
    ratio = torch.where(accepted, reduction / trial.predicted.clamp(min=info.tiny), 0)
    lowered = dampings * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3)
    # With less damping than this, rounding decides the step where the problem is rank-deficient.
    lowered = lowered.clamp(min=trial.x.shape[-1] * info.eps)
    return torch.where(accepted, lowered, dampings * growth), torch.where(accepted, 2.0, 2 * growth)


def _why_stop(
    x: Tensor, cost: Tensor, trial: _Trial, reduction: Tensor, dampings: Tensor, tolerances: _Tolerances
) -> Tensor:
    """Return a `Stop` per problem; ITERATIONS for those that continue.

    With damping a > b, a step is at least b / a as long as with damping b, and its predicted reduction at
    least b / a as large: both are scaled up before they are compared with the tolerances.
    """
    held_back = (dampings / _LITTLE_DAMPING).clamp(min=1)
    predicted = held_back * trial.predicted
    length = (held_back[:, None] * trial.step).norm(dim=-1)
    short = trial.solved & (length <= tolerances.step * (tolerances.step + x.norm(dim=-1)))
    hidden_by_rounding = trial.solved & (predicted <= torch.finfo(x.dtype).eps * cost)
    little = tolerances.cost * cost
    no_gain = hidden_by_rounding | ((reduction.abs() <= little) & (predicted <= little))
    stuck = ~(reduction > 0) & (dampings > _MAX_DAMPING)
    stop = torch.where(stuck, Stop.STUCK, Stop.ITERATIONS)
    return torch.where(no_gain, Stop.COST, torch.where(short, Stop.STEP, stop))


def _read_bounds(start: Tensor, lower: Tensor | None, upper: Tensor | None) -> _Bounds | None:
    if lower is None and upper is None:
        return None
    found = []
    for name, bound, free in (("lower", lower, -torch.inf), ("upper", upper, torch.inf)):
        bound = start.new_tensor(free) if bound is None else bound.detach().to(start)
        try:
            found.append(bound.expand(start.shape))
        except RuntimeError:
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {tuple(start.shape)}, got {tuple(bound.shape)}"
            ) from None
    if not (found[0] <= found[1]).all():
        raise ValueError("lower: expected numbers that are not above those of upper, and no NaN")
    return _Bounds(*found)


def _evaluate(quadratize: Callable[[Tensor, Tensor], Model], x: Tensor, rows: Tensor) -> Model:
    model: Any = quadratize(x, rows)
    parts = (part if part is None or not part.requires_grad else part.detach() for part in model)
    return type(model)(*parts)


def _is_finite(x: Tensor, model: Model) -> Tensor:
    """Return whether a point and its model are finite. (A normal matrix is, if its diagonal is.)"""
    numbers = torch.cat((x, model.cost[:, None], model.gradient, model.diagonal()), -1)
    return numbers.isfinite().all(-1)


def _is_flat(x: Tensor, model: Model, bounds: _Bounds | None, tolerance: float) -> Tensor:
    """Return whether the gradient of the variables that are not at an active bound is zero."""
    gradient = model.gradient
    gradient = gradient if bounds is None else torch.where(bounds.active(x, gradient), 0, gradient)
    return (gradient * x.abs().clamp(min=1)).abs().amax(-1) <= tolerance * model.cost


def _select(model: Any, rows: Tensor) -> Any:
    return type(model)(*(None if part is None else part[rows] for part in model))


def _choose(mask: Tensor, new: Any, old: Any) -> Any:
    pairs = zip(new, old, strict=True)
    wide = [None if a is None else (mask[(..., *[None] * (a.dim() - 1))], a, b) for a, b in pairs]
    return type(new)(*(None if part is None else torch.where(*part) for part in wide))
