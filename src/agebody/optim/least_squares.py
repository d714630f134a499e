"""Levenberg-Marquardt for thousands of small nonlinear least-squares problems at once.

Models, solver and chain elimination are one algorithm, so they share one file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.engine.batched import own_precision

_MAX_DAMPING = 1e12
_LITTLE_DAMPING = 1.0  # a step with more damping than this counts as held back


class Stop(IntEnum):
    """Why the solver stopped working on a problem."""

    ITERATIONS = 0
    """The maximum number of iterations was reached."""
    COST = 1
    """A step reduced the cost by less than the tolerance, and no larger reduction was predicted; or several
    in a row did, as many as ``patience``."""
    STEP = 2
    """A step that damping did not hold back was shorter than the tolerance."""
    GRADIENT = 3
    """The gradient of the free variables is zero, to the tolerance."""
    STUCK = 4
    """No step, however short, reduces the cost as predicted: the derivatives are wrong, or jump here."""
    NOT_FINITE = 5
    """Cost or derivatives are NaN or infinite at the start, or wherever a step leads. The solution is the
    last finite point."""


@runtime_checkable
class Model(Protocol):
    """Costs of b problems of N variables at one point, to second order.

    A NamedTuple of tensors with the batch first, or None. `minimize` uses these members alone.
    """

    @property
    def cost(self) -> Tensor:
        """(b)"""
        ...

    @property
    def gradient(self) -> Tensor:
        """(b, N)"""
        ...

    def diagonal(self) -> Float[Tensor, "b N"]:
        """Return the diagonal of the normal matrix."""
        ...

    def product(self, vector: Float[Tensor, "b N"]) -> Float[Tensor, "b N"]:
        """Return the normal matrix times a vector."""
        ...

    def solve(
        self, target: Float[Tensor, "b N"], damping: Float[Tensor, "b N"], fixed: Bool[Tensor, "b N"] | None
    ) -> Float[Tensor, "b N"]:
        """Return p with ``(normal + diag(damping)) p = target`` over the variables that are not fixed.

        p is 0 in fixed variables, and NaN where the matrix is not positive definite.
        """
        ...


class Quadratic(NamedTuple):
    """Costs of b problems of N variables, to second order."""

    cost: Float[Tensor, " b"]
    """Half of the sum of the squared residuals r."""
    gradient: Float[Tensor, "b N"]
    """Jᵀr"""
    normal: Float[Tensor, "b N N"]
    """JᵀJ"""

    @classmethod
    def of(
        cls,
        residuals: Float[Tensor, "b M"],
        jacobian: Float[Tensor, "#b M N"],
        cost: Float[Tensor, " b"] | None = None,
    ) -> Quadratic:
        """Return the quadratic of residuals and their Jacobian; ``cost`` replaces half of their squares."""
        cost = residuals.square().sum(-1) / 2 if cost is None else cost
        normal = (jacobian.mT @ jacobian).expand(len(residuals), -1, -1)
        return cls(cost, (residuals[:, None] @ jacobian)[:, 0], normal)

    def diagonal(self) -> Tensor:
        """See `Model`."""
        return self.normal.diagonal(dim1=-2, dim2=-1)

    def product(self, vector: Tensor) -> Tensor:
        """See `Model`."""
        return (self.normal @ vector[..., None])[..., 0]

    def solve(self, target: Tensor, damping: Tensor, fixed: Tensor | None) -> Tensor:
        """See `Model`; by Cholesky decomposition."""
        if fixed is not None:
            target, damping = torch.where(fixed, 0, target), torch.where(fixed, 1, damping)
        matrix = _zero_fixed(self.normal, fixed, fixed)
        matrix.diagonal(dim1=-2, dim2=-1).add_(damping)
        factor, definite = _factor(matrix)
        solution = _solve_upper(factor, _solve_lower(factor, target[..., None]))[..., 0]
        return torch.where(definite[:, None], solution, torch.nan)

    def solve_frames(self, own: Tensor, shared: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """See `ChainQuadratic.solve_frames`; of one frame that shares nothing."""
        return self.solve(own[:, 0], torch.zeros_like(own[:, 0]), fixed)[:, None], shared


class ChainQuadratic(NamedTuple):
    """Costs of b chains of T frames, to second order.

    Each frame has n variables of its own, coupled to those of the next frame, and all frames share s
    variables. As one vector of N = T n + s: frame after frame, then the shared variables. The normal matrix
    is block tridiagonal with a border, and a step costs as much as T problems of n variables.
    """

    cost: Float[Tensor, " b"]
    frame_gradient: Float[Tensor, "b T n"]
    shared_gradient: Float[Tensor, "b s"]
    blocks: Float[Tensor, "b T n n"]
    """Normal matrix of each frame."""
    coupling: Float[Tensor, "b T-1 n n"] | None
    """Frame by next frame; None where frames are coupled by the shared variables alone."""
    border: Float[Tensor, "b T n s"]
    """Variables of a frame by shared variables."""
    shared: Float[Tensor, "b s s"]
    """Normal matrix of the shared variables."""

    @property
    def gradient(self) -> Tensor:
        """(b, T n + s)"""
        return self._join(self.frame_gradient, self.shared_gradient)

    def diagonal(self) -> Tensor:
        """See `Model`."""
        return self._join(self.blocks.diagonal(dim1=-2, dim2=-1), self.shared.diagonal(dim1=-2, dim2=-1))

    def product(self, vector: Tensor) -> Tensor:
        """See `Model`."""
        own, shared = (part[..., None] for part in self._split(vector))
        frames = self.blocks @ own + self.border @ shared[:, None]
        if self.coupling is not None:
            frames[:, :-1] += self.coupling @ own[:, 1:]
            frames[:, 1:] += self.coupling.mT @ own[:, :-1]
        return self._join(frames[..., 0], ((self.border.mT @ own).sum(1) + self.shared @ shared)[..., 0])

    def solve(self, target: Tensor, damping: Tensor, fixed: Tensor | None) -> Tensor:
        """See `Model`; by block Cholesky along the frames, and the Schur complement of what is shared."""
        target = target if fixed is None else torch.where(fixed, 0, target)
        own_target, shared_target = self._split(target)
        factors, links, sides, schur_factor, definite = self._factor(own_target[..., None], damping, fixed)
        by_border, by_target = sides[..., :-1], sides[..., -1:]
        rest = shared_target[..., None] - (by_border.mT @ by_target).sum(1)
        shared = _solve_upper(schur_factor, _solve_lower(schur_factor, rest))
        own = _solve_chain_upper(factors, links, by_target - by_border @ shared[:, None])
        solution = self._join(own[..., 0], shared[..., 0])
        return torch.where(definite[:, None], solution, torch.nan)

    def solve_frames(
        self, own: Float[Tensor, "b T n"], shared: Float[Tensor, "b T s"], fixed: Bool[Tensor, "b N"]
    ) -> tuple[Float[Tensor, "b T n"], Float[Tensor, "b T s"]]:
        """Return, for a target of each frame, the solution's part in that frame and in the shared variables.

        The target of frame t is ``own[:, t]`` there, 0 in other frames, and ``shared[:, t]``. All together
        cost as much as one `solve`: what a frame's solution does elsewhere is not computed.
        With A = UᵀU the matrix of the frames, the diagonal blocks of its inverse are
        ``F⁻¹ (1 + L Z Lᵀ) F⁻ᵀ``, of U's blocks F and L in a row and the next frame's Z.
        """
        zeros = torch.zeros_like(fixed, dtype=own.dtype)
        factors, links, by_border, schur_factor, definite = self._factor(
            own[..., None][..., :0], zeros, fixed
        )
        border = _solve_chain_upper(factors, links, by_border)
        unit = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
        whitened = _solve_lower(factors, own[..., None])
        if links is not None:
            lower = _solve_lower(factors, unit.expand_as(factors))
            block, found = torch.zeros_like(factors[:, 0]), []
            for t in range(own.shape[1] - 1, -1, -1):
                link = links[:, t] if t < links.shape[1] else torch.zeros_like(block)
                middle = unit + link @ block @ link.mT
                found.append(middle @ whitened[:, t])
                block = lower[:, t].mT @ middle @ lower[:, t]
            whitened = torch.stack(found[::-1], 1)
        rest = shared - (border.mT @ own[..., None])[..., 0]
        shared = _solve_upper(schur_factor, _solve_lower(schur_factor, rest.mT)).mT
        own = (_solve_upper(factors, whitened) - border @ shared[..., None])[..., 0]
        known = definite[:, None, None]
        return torch.where(known, own, torch.nan), torch.where(known, shared, torch.nan)

    def _factor(
        self, sides: Float[Tensor, "b T n _"], damping: Tensor, fixed: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Return U's two diagonals, U⁻ᵀ times border and sides, the factor of the Schur complement."""
        damping = damping if fixed is None else torch.where(fixed, 1, damping)
        fixed_own, fixed_shared = (None, None) if fixed is None else self._split(fixed)
        own_damping, shared_damping = self._split(damping)
        fixed_columns = None if fixed_shared is None else fixed_shared[:, None]
        border = _zero_fixed(self.border, fixed_own, fixed_columns)
        blocks = _zero_fixed(self.blocks, fixed_own, fixed_own)
        blocks.diagonal(dim1=-2, dim2=-1).add_(own_damping)
        schur = _zero_fixed(self.shared, fixed_shared, fixed_shared)
        schur.diagonal(dim1=-2, dim2=-1).add_(shared_damping)
        coupling = self.coupling
        if coupling is not None and fixed_own is not None:
            coupling = _zero_fixed(coupling, fixed_own[:, :-1], fixed_own[:, 1:])

        factors, links, sides, definite = _factor_chain(blocks, coupling, torch.cat((border, sides), -1))
        by_border = sides[..., : border.shape[-1]]
        schur_factor, schur_definite = _factor(schur - (by_border.mT @ by_border).sum(1))
        return factors, links, sides, schur_factor, definite & schur_definite

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        frames, own = self.frame_gradient.shape[1:]
        return vector[:, : frames * own].unflatten(1, (frames, own)), vector[:, frames * own :]

    def _join(self, own: Tensor, shared: Tensor) -> Tensor:
        return torch.cat((own.flatten(1), shared), 1)


class Solution(NamedTuple):
    """Where the problems ended."""

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
    patience: int | None = None,
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
        start: where to begin; clamped to the bounds.
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
            determine best. With the diagonal alone, damped steps prefer variables that residuals hardly
            see, and move those far where there are fewer residuals than variables.
        patience: stop, too, after so many steps in a row that each reduced the cost by no more than the
            tolerance, whatever was predicted; for costs with kinks, whose models promise too much.
    """
    if start.dim() != 2 or not start.is_floating_point():
        raise ValueError(f"start: expected floats of shape (B, N), got {start.dtype} {tuple(start.shape)}")
    bounds = _read_bounds(start, lower, upper)
    tolerances = _Tolerances(cost_tolerance, step_tolerance, gradient_tolerance)
    for name, number in tolerances._asdict().items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}_tolerance: expected a number of 0 or more, got {number}")
    if not 0 < damping < math.inf:
        raise ValueError(f"damping: expected a number above 0, got {damping}")
    if max_iterations < 0:
        raise ValueError(f"max_iterations: expected 0 or more, got {max_iterations}")
    if patience is not None and patience < 1:
        raise ValueError(f"patience: expected 1 or more, or None, got {patience}")
    with own_precision(start.device):
        metric = None if metric is None else metric.detach().to(start).expand(start.shape)
        wait = math.inf if patience is None else patience
        return _minimize(
            quadratize, start.detach(), bounds, metric, tolerances, max_iterations, damping, wait
        )


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

    def select(self, rows: Tensor) -> _Bounds:
        return _Bounds(self.lower[rows], self.upper[rows])


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
    patience: float,
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
    bounds = bounds and bounds.select(left)
    metric = None if metric is None else metric[left]
    dampings, growth = torch.full_like(model.cost, damping), torch.full_like(model.cost, 2.0)
    idle = torch.zeros_like(rows)
    for _ in range(max_iterations):
        if not len(rows):
            break
        iterations[rows] += 1
        trial = _propose(x, model, dampings, bounds, metric)
        found = _evaluate(quadratize, trial.x, rows)
        finite = _is_finite(trial.x, found)
        reduction = torch.where(finite & trial.solved, model.cost - found.cost, -torch.inf)
        accepted = reduction > 0
        reason = _why_stop(x, model.cost, trial, reduction, dampings, tolerances)
        reason = torch.where((reason > 0) & ~finite, Stop.NOT_FINITE, reason)
        idle = torch.where(reduction > tolerances.cost * model.cost, 0, idle + 1)
        reason = torch.where((reason == Stop.ITERATIONS) & (idle >= patience), Stop.COST, reason)
        dampings, growth = _update_damping(dampings, growth, reduction, trial)

        model = found if accepted.all() else _choose(accepted, found, model)
        x = torch.where(accepted[:, None], trial.x, x)
        flat = accepted & _is_flat(x, model, bounds, tolerances.gradient)
        reason = torch.where(flat, Stop.GRADIENT, reason)
        final_x[rows], cost[rows], stop[rows] = x, model.cost, reason
        left = reason == Stop.ITERATIONS
        if not left.all():
            rows, x, model = rows[left], x[left], _select(model, left)
            dampings, growth, idle = dampings[left], growth[left], idle[left]
            bounds = bounds and bounds.select(left)
            metric = None if metric is None else metric[left]
    converged = (stop == Stop.COST) | (stop == Stop.STEP) | (stop == Stop.GRADIENT)
    return Solution(final_x, cost, converged, iterations, stop)


def _propose(
    x: Tensor, model: Model, dampings: Tensor, bounds: _Bounds | None, metric: Tensor | None
) -> _Trial:
    """Return the minimum of the damped model, within the bounds."""
    gradient, diagonal = model.gradient, model.diagonal()
    # Cholesky is indifferent to the scales of variables; only what is added must have these scales.
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
    """Return a `Stop` per problem, ITERATIONS for those that go on.

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
    return type(model)(*(None if part is None else part.detach() for part in model))


def _is_finite(x: Tensor, model: Model) -> Tensor:
    """Return whether a point and its model are finite. (A normal matrix is, if its diagonal is.)"""
    finite = x.isfinite().all(-1) & model.cost.isfinite() & model.gradient.isfinite().all(-1)
    return finite & model.diagonal().isfinite().all(-1)


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


def _zero_fixed(matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Return a copy with zeros in the rows and columns of fixed variables."""
    if rows is None or columns is None:
        return matrix.clone()
    return torch.where(rows[..., None] | columns[..., None, :], 0, matrix)


def _factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return U with UᵀU = matrix, and success. (On the CPU, torch finds the upper factor faster.)"""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=True)
    return factor, info == 0


def _solve_lower(factor: Tensor, sides: Tensor) -> Tensor:
    """Return the inverse of Uᵀ times the right-hand sides."""
    return torch.linalg.solve_triangular(factor.mT, sides, upper=False)


def _solve_upper(factor: Tensor, sides: Tensor) -> Tensor:
    """Return the inverse of U times the right-hand sides."""
    return torch.linalg.solve_triangular(factor, sides, upper=True)


def _factor_chain(
    blocks: Tensor, coupling: Tensor | None, sides: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the block bidiagonal U with UᵀU the block tridiagonal matrix, by its two diagonals.

    Also returns the inverse of Uᵀ times the right-hand sides, and success.
    """
    if coupling is None:
        factors, definite = _factor(blocks)
        return factors, None, _solve_lower(factors, sides), definite.all(1)
    factors, links, solved, flags = [], [], [], []
    block, side = blocks[:, 0], sides[:, 0]
    for t in range(blocks.shape[1]):
        factor, definite = _factor(block)
        factors.append(factor)
        flags.append(definite)
        solved.append(_solve_lower(factor, side))
        if t + 1 < blocks.shape[1]:
            link = _solve_lower(factor, coupling[:, t])
            links.append(link)
            block = blocks[:, t + 1] - link.mT @ link
            side = sides[:, t + 1] - link.mT @ solved[-1]
    links = torch.stack(links, 1) if links else coupling
    return torch.stack(factors, 1), links, torch.stack(solved, 1), torch.stack(flags, 1).all(1)


def _solve_chain_upper(factors: Tensor, links: Tensor | None, sides: Tensor) -> Tensor:
    """Return the inverse of the chain's U times the right-hand sides."""
    if links is None:
        return _solve_upper(factors, sides)
    found = [_solve_upper(factors[:, -1], sides[:, -1])]
    for t in range(factors.shape[1] - 2, -1, -1):
        found.append(_solve_upper(factors[:, t], sides[:, t] - links[:, t] @ found[-1]))
    return torch.stack(found[::-1], 1)
