"""Nonlinear least squares for thousands of small problems at once, each converging or failing alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.engine.rowwise import own_precision

Method = Literal["lm", "lbfgs", "adam"]
"""Levenberg-Marquardt, which needs the normal matrix; limited-memory BFGS and Adam, which do not."""

_DAMPING_LIMIT = 1e12
_LITTLE_DAMPING = 1.0  # above it a step is taken to be held back
_LENGTH_LIMIT = 1e-12  # share of a quasi-Newton step at which a line search is given up
_ARMIJO = 1e-4
_PATIENCE = 50  # steps of Adam without a gain before its rate is halved
_RATE_LIMIT = 1e-3  # share of the learning rate at which Adam ends
_RISE = 0.1  # share of the least cost by which it may then be above that


class Stop(IntEnum):
    """Why a problem was left."""

    ITERATIONS = 0
    """The iterations ran out."""
    COST = 1
    """A step gained less than the tolerance, and no more was to be expected."""
    STEP = 2
    """A step that nothing held back was shorter than the tolerance."""
    GRADIENT = 3
    """The gradient is zero, to the tolerance, as far as the bounds let it be followed."""
    STUCK = 4
    """No step, however short, gains what the derivatives promise: they are wrong, or have a jump here."""
    NOT_FINITE = 5
    """Cost or derivatives are NaN or infinite at the start, or wherever a step leads. The last finite place
    is kept."""


@runtime_checkable
class Model(Protocol):
    """What is known of b problems at one place: their costs, to second order, over N variables each.

    A NamedTuple of tensors with the batch first, or None. Levenberg-Marquardt runs on these methods alone.
    """

    @property
    def cost(self) -> Tensor:
        """(b)"""
        ...

    def slope(self) -> Float[Tensor, "b N"]:
        """The gradient."""
        ...

    def diagonal(self) -> Float[Tensor, "b N"]:
        """Of the normal matrix."""
        ...

    def product(self, vector: Float[Tensor, "b N"]) -> Float[Tensor, "b N"]:
        """The normal matrix times a vector."""
        ...

    def solve(
        self, target: Float[Tensor, "b N"], added: Float[Tensor, "b N"], held: Bool[Tensor, "b N"] | None
    ) -> Float[Tensor, "b N"]:
        """p with (normal + diag(added)) p = target over the variables not held, 0 in those that are.

        Where that matrix is not positive definite, p is NaN.
        """
        ...


class Quadratic(NamedTuple):
    """Costs of b problems of N variables, to second order."""

    cost: Float[Tensor, " b"]
    """Half of the sum of the squared residuals r."""
    gradient: Float[Tensor, "b N"]
    """Jᵀr"""
    normal: Float[Tensor, "b N N"] | None = None
    """JᵀJ; "lbfgs" and "adam" do not look at it."""

    def slope(self) -> Tensor:
        """The gradient."""
        return self.gradient

    def diagonal(self) -> Tensor:
        """Of the normal matrix."""
        return self._normal().diagonal(dim1=-2, dim2=-1)

    def product(self, vector: Tensor) -> Tensor:
        """The normal matrix times a vector."""
        return (self._normal() @ vector[..., None])[..., 0]

    def solve(self, target: Tensor, added: Tensor, held: Tensor | None) -> Tensor:
        """See `Model`."""
        if held is not None:
            target, added = torch.where(held, 0, target), torch.where(held, 1, added)
        matrix = _pin(self._normal(), held, held)
        matrix.diagonal(dim1=-2, dim2=-1).add_(added)
        factor, sound = _factor(matrix)
        found = _backward(factor, _forward(factor, target[..., None]))[..., 0]
        return torch.where(sound[:, None], found, torch.nan)

    def _normal(self) -> Tensor:
        if self.normal is None:
            raise ValueError("quadratize: expected a normal matrix for method 'lm', got None")
        return self.normal


class ChainQuadratic(NamedTuple):
    """Costs of b chains of T frames, to second order.

    Each frame has n variables of its own, tied to those of the next frame, and all frames share s variables.
    As one vector of T n + s: frame after frame, then what is shared. The normal matrix is block tridiagonal
    with a border, and a step costs as much as T times a problem of n variables.
    """

    cost: Float[Tensor, " b"]
    gradient: Float[Tensor, "b T n"]
    shared_gradient: Float[Tensor, "b s"]
    blocks: Float[Tensor, "b T n n"]
    """Each frame's own normal matrix."""
    coupling: Float[Tensor, "b T-1 n n"] | None
    """Frame by next frame; None where frames meet only in what all share."""
    border: Float[Tensor, "b T n s"]
    """By the variables of a frame and those shared."""
    shared: Float[Tensor, "b s s"]
    """Of what is shared."""

    def slope(self) -> Tensor:
        """The gradient, (b, T n + s)."""
        return self._join(self.gradient, self.shared_gradient)

    def diagonal(self) -> Tensor:
        """Of the normal matrix, (b, T n + s)."""
        return self._join(self.blocks.diagonal(dim1=-2, dim2=-1), self.shared.diagonal(dim1=-2, dim2=-1))

    def product(self, vector: Tensor) -> Tensor:
        """The normal matrix times a vector, (b, T n + s)."""
        own, shared = (part[..., None] for part in self._split(vector))
        frames = self.blocks @ own + self.border @ shared[:, None]
        if self.coupling is not None:
            frames[:, :-1] += self.coupling @ own[:, 1:]
            frames[:, 1:] += self.coupling.mT @ own[:, :-1]
        return self._join(frames[..., 0], ((self.border.mT @ own).sum(1) + self.shared @ shared)[..., 0])

    def solve(self, target: Tensor, added: Tensor, held: Tensor | None) -> Tensor:
        """By block Cholesky along the frames, and the Schur complement of what is shared. See `Model`."""
        if held is not None:
            target, added = torch.where(held, 0, target), torch.where(held, 1, added)
        fixed, fixed_shared = (None, None) if held is None else self._split(held)
        extra, extra_shared = self._split(added)
        goal, goal_shared = self._split(target)
        beside = None if fixed_shared is None else fixed_shared[:, None]
        border, blocks = _pin(self.border, fixed, beside), _pin(self.blocks, fixed, fixed)
        blocks.diagonal(dim1=-2, dim2=-1).add_(extra)
        schur = _pin(self.shared, fixed_shared, fixed_shared)
        schur.diagonal(dim1=-2, dim2=-1).add_(extra_shared)
        coupling = self.coupling
        if coupling is not None and fixed is not None:
            coupling = _pin(coupling, fixed[:, :-1], fixed[:, 1:])

        sides = torch.cat((border, goal[..., None]), -1)
        factors, links, sides, sound = _factor_chain(blocks, coupling, sides)
        by_border, by_goal = sides[..., :-1], sides[..., -1:]
        schur = schur - (by_border.mT @ by_border).sum(1)
        top, sound_top = _factor(schur)
        rest = goal_shared[..., None] - (by_border.mT @ by_goal).sum(1)
        shared = _backward(top, _forward(top, rest))
        own = _solve_back(factors, links, by_goal - by_border @ shared[:, None])
        found = self._join(own[..., 0], shared[..., 0])
        return torch.where((sound & sound_top)[:, None], found, torch.nan)

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        frames, own = self.gradient.shape[1:]
        return vector[:, : frames * own].unflatten(1, (frames, own)), vector[:, frames * own :]

    def _join(self, own: Tensor, shared: Tensor) -> Tensor:
        return torch.cat((own.flatten(1), shared), 1)


class SolverState(NamedTuple):
    """What a method remembers of the problems that are not done."""

    method: str
    rows: Int[Tensor, " b"]
    """Their numbers."""
    x: Float[Tensor, "b N"]
    """Where the next step starts; with "adam" not the best place that was seen."""
    memory: tuple[Tensor, ...]


class Solution(NamedTuple):
    """Where problems ended."""

    x: Float[Tensor, "B N"]
    """The cheapest place that was seen, within the bounds; never NaN where the start was not."""
    cost: Float[Tensor, " B"]
    """There; NaN or infinite only where it is so at the start."""
    converged: Bool[Tensor, " B"]
    """Whether ``stop`` is COST, STEP or GRADIENT."""
    iterations: Int[Tensor, " B"]
    """Steps that were tried, those before a resumption among them."""
    stop: Int[Tensor, " B"]
    """A `Stop` each."""
    state: SolverState
    """Of the problems whose iterations ran out."""


class Progress(NamedTuple):
    """What ``on_iteration`` is told after a step was tried: of the problems that were not yet left."""

    rows: Int[Tensor, " b"]
    """Their numbers."""
    x: Float[Tensor, "b N"]
    cost: Float[Tensor, " b"]
    stop: Int[Tensor, " b"]
    """ITERATIONS for those that go on."""


def minimize(
    quadratize: Callable[[Tensor, Tensor], Model],
    start: Float[Tensor, "B N"],
    *,
    method: Method = "lm",
    lower: Float[Tensor, "*#bounds #N"] | None = None,
    upper: Float[Tensor, "*#bounds #N"] | None = None,
    max_iterations: int = 50,
    cost_tolerance: float = 1e-6,
    step_tolerance: float = 1e-6,
    gradient_tolerance: float = 1e-8,
    damping: float = 1e-3,
    history: int = 10,
    learning_rate: float = 0.05,
    resume: Solution | None = None,
    on_iteration: Callable[[Progress], None] | None = None,
) -> Solution:
    """Minimises the cost of each problem, within bounds.

    Problems do not see each other: each has its own damping or step length, and leaves the batch when it is
    done. Runs repeat to the bit on one device, and a problem's path does not depend on its neighbours as far
    as ``quadratize`` and the matrix products of the device give a row the same bits in every batch.

    - "lm": steps of the quadratic model plus ``damping`` times the diagonal of the normal matrix (Marquardt
      1963), raised and lowered by how much of the promised gain came true (Nielsen 1999). What the model
      pushes against a bound is held there, and the others' step is found once more without it.
    - "lbfgs": two-loop recursion over the last ``history`` steps (Nocedal and Wright, algorithm 7.4), held
      to the bounds, with backtracking until the gain is a share of that promised (Armijo).
    - "adam": Kingma and Ba 2015, each step clamped to the bounds. The rate is halved after 50 steps without a
      gain of ``cost_tolerance``, and the problem left when it is a thousandth, at a minimum or not.

    Args:
        quadratize: ``(x, rows)`` -> a `Quadratic` or `ChainQuadratic` of the problems with the numbers
            ``rows`` (b) at x (b, N). One evaluation is one iteration.
        start: where problems start; moved to the nearest place within the bounds.
        method: see above.
        lower: least values, -inf where there are none; broadcast to (B, N).
        upper: largest values.
        max_iterations: steps at most, of this call.
        cost_tolerance: a step that gains no more than this share of the cost is the last, if no more was
            promised either: of a step that was held back, by damping or on a line, by as much the more.
        step_tolerance: so is one no longer than this share of |x| (plus this share of 1), had it not been
            held back.
        gradient_tolerance: so is the one after which, to first order, a change of any variable by
            max(|x|, 1) changes the cost by no more than this share.
        damping: of the first step, above 0.
        history: steps that "lbfgs" remembers.
        learning_rate: of "adam".
        resume: an earlier solution of the same problems by the same method. Goes on as if that had not
            stopped, with the problems whose iterations ran out; ``start`` gives no more than the shape.
        on_iteration: called after each step.

    Raises:
        ValueError: shapes do not fit, bounds cross or are NaN, a number is not what is said here, there is no
            such method, "lm" got no normal matrix, or what is resumed lies outside the bounds.
    """
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    if start.dim() != 2 or not start.is_floating_point():
        raise ValueError(f"start: expected floats of shape (B, N), got {start.dtype} {tuple(start.shape)}")
    box = _read_bounds(start, lower, upper)
    if resume is not None and (resume.state.method != method or resume.x.shape != start.shape):
        raise ValueError(
            f"resume: expected a solution by '{method}' for {tuple(start.shape)}, "
            f"got one by '{resume.state.method}' for {tuple(resume.x.shape)}"
        )
    tolerances = _Tolerances(cost_tolerance, step_tolerance, gradient_tolerance)
    for name, number in tolerances._asdict().items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}_tolerance: expected a number of 0 or more, got {number}")
    for name, number in (("damping", damping), ("learning_rate", learning_rate)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: expected a number above 0, got {number}")
    for name, number, least in (("max_iterations", max_iterations, 0), ("history", history, 1)):
        if number < least:
            raise ValueError(f"{name}: expected {least} or more, got {number}")
    if resume is not None and box is not None:
        rows, x = resume.state.rows, resume.state.x
        if not (box.contains(resume.x).all() and _Box(box.lower[rows], box.upper[rows]).contains(x).all()):
            raise ValueError("resume: expected a solution within the bounds")
    stepper: _Stepper
    if method == "lm":
        stepper = _LevenbergMarquardt(tolerances, damping)
    elif method == "lbfgs":
        stepper = _LBFGS(tolerances, history)
    else:
        stepper = _Adam(tolerances, learning_rate)
    with own_precision(start.device):
        if resume is None:
            found, model = _begin(quadratize, start, box, stepper, tolerances)
        else:
            found, (_, rows, x, _) = resume, resume.state
            model = _evaluate(quadratize, x, rows) if len(rows) else None
        return _go_on(quadratize, found, model, box, stepper, tolerances, max_iterations, on_iteration)


class _Tolerances(NamedTuple):
    cost: float
    step: float
    gradient: float


class _Box(NamedTuple):
    """Bounds, (b, N)."""

    lower: Tensor
    upper: Tensor

    def clamp(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def contains(self, x: Tensor) -> Tensor:
        """Whether a variable is within; NaN is taken for so."""
        return ~((x < self.lower) | (x > self.upper))

    def holds(self, x: Tensor, slope: Tensor) -> Tensor:
        """What is at a bound that the gradient pushes it against."""
        return ((x <= self.lower) & (slope > 0)) | ((x >= self.upper) & (slope < 0))


class _Trial(NamedTuple):
    """A step that may be taken."""

    x: Tensor
    move: Tensor
    """What x differs by."""
    promise: Tensor
    """(b) the gain that is expected of it."""
    solved: Tensor
    """(b) whether there is a step."""


class _Verdict(NamedTuple):
    """What is made of a step once its cost is known."""

    taken: Tensor
    memory: tuple[Tensor, ...]
    stop: Tensor
    """ITERATIONS where the problem goes on."""


@runtime_checkable
class _Stepper(Protocol):
    """How a method goes from place to place. Its memory is tensors that begin with the problems under way."""

    method: str

    def begin(self, x: Tensor, model: Model) -> tuple[Tensor, ...]:
        """The memory at the start."""
        ...

    def propose(self, x: Tensor, model: Model, memory: tuple[Tensor, ...], box: _Box | None) -> _Trial:
        """Where to go next."""
        ...

    def judge(
        self, x: Tensor, model: Model, memory: tuple[Tensor, ...], trial: _Trial, found: Model, sound: Tensor
    ) -> _Verdict:
        """Whether to go there, given what was found and whether it is finite."""
        ...


def _begin(
    quadratize: Callable[[Tensor, Tensor], Model],
    start: Tensor,
    box: _Box | None,
    stepper: _Stepper,
    tolerances: _Tolerances,
) -> tuple[Solution, Model | None]:
    """The start as a solution after no iteration, and the model of the problems that go on."""
    x = start.detach().clone() if box is None else box.clamp(start.detach())
    rows = torch.arange(len(x), device=x.device)
    if not len(x):
        nothing = torch.zeros_like(rows)
        state = SolverState(stepper.method, rows, x, ())
        return Solution(x, x.new_zeros(0), nothing.bool(), nothing, nothing, state), None
    model = _evaluate(quadratize, x, rows)
    if model.cost.shape != x.shape[:1] or model.slope().shape != x.shape:
        raise ValueError(
            f"quadratize: expected costs and gradients of {tuple(x.shape)} variables, "
            f"got {tuple(model.cost.shape)} and {tuple(model.slope().shape)}"
        )
    sound = _sound(x, model, stepper)
    rest = _at_rest(x, model, box, tolerances)
    stop = torch.where(sound, torch.where(rest, Stop.GRADIENT, Stop.ITERATIONS), Stop.NOT_FINITE)
    left = stop == Stop.ITERATIONS
    going = _select(model, left)
    state = SolverState(stepper.method, rows[left], x[left], stepper.begin(x[left], going))
    return Solution(x, model.cost, _converged(stop), torch.zeros_like(rows), stop, state), going


def _go_on(
    quadratize: Callable[[Tensor, Tensor], Model],
    found: Solution,
    model: Any,
    box: _Box | None,
    stepper: _Stepper,
    tolerances: _Tolerances,
    max_iterations: int,
    on_iteration: Callable[[Progress], None] | None,
) -> Solution:
    best, best_cost, iterations, stop = (
        t.clone() for t in (found.x, found.cost, found.iterations, found.stop)
    )
    _, rows, x, memory = found.state
    box = box and _Box(box.lower[rows], box.upper[rows])
    for _ in range(max_iterations):
        if not len(rows):
            break
        iterations[rows] += 1
        trial = stepper.propose(x, model, memory, box)
        there = _evaluate(quadratize, trial.x, rows)
        taken, memory, ended = stepper.judge(x, model, memory, trial, there, _sound(trial.x, there, stepper))
        model = there if taken.all() else _choose(taken, there, model)
        x = _where(taken, trial.x, x)
        ended = torch.where(taken & _at_rest(x, model, box, tolerances), Stop.GRADIENT, ended)
        better = model.cost < best_cost[rows]
        best[rows] = _where(better, x, best[rows])
        best_cost[rows] = torch.where(better, model.cost, best_cost[rows])
        stop[rows] = ended
        if on_iteration is not None:
            on_iteration(Progress(rows, x, model.cost, ended))
        left = ended == Stop.ITERATIONS
        if not left.all():
            rows, x, model = rows[left], x[left], _select(model, left)
            memory = tuple(part[left] for part in memory)
            box = box and _Box(box.lower[left], box.upper[left])
    state = SolverState(stepper.method, rows, x, memory)
    return Solution(best, best_cost, _converged(stop), iterations, stop, state)


class _LevenbergMarquardt:
    """Memory: (b) damping, and what it is multiplied by should the next step fail."""

    method = "lm"

    def __init__(self, tolerances: _Tolerances, damping: float) -> None:
        self.tolerances, self.damping = tolerances, damping

    def begin(self, x: Tensor, model: Model) -> tuple[Tensor, ...]:
        """See `_Stepper`."""
        return torch.full_like(model.cost, self.damping), torch.full_like(model.cost, 2.0)

    def propose(self, x: Tensor, model: Model, memory: tuple[Tensor, ...], box: _Box | None) -> _Trial:
        """The minimum of the damped model, within the bounds."""
        slope, diagonal = model.slope(), model.diagonal()
        # Cholesky does not mind how variables are scaled; only what is added must have their scales.
        floor = diagonal.amax(-1, keepdim=True) * torch.finfo(x.dtype).eps
        added = memory[0][:, None] * torch.where(floor > 0, diagonal.clamp(min=floor), 1)
        held = None if box is None else box.holds(x, slope)
        step = model.solve(-slope, added, held)
        solved = step.isfinite().all(-1)
        there = x + torch.where(solved[:, None], step, 0)
        if box is not None and held is not None:
            beyond = (there < box.lower) | (there > box.upper)
            some = beyond.any(-1).nonzero()[:, 0]
            there = box.clamp(there)
            if len(some):  # the others' step, given that these go no further than their bounds
                fixed = torch.where(beyond, there - x, 0)[some]
                part = _select(model, some)
                rest = part.solve(-slope[some] - part.product(fixed), added[some], (held | beyond)[some])
                there[some] = torch.where(rest.isfinite(), x[some] + fixed + rest, there[some])
                there = box.clamp(there)
        move = there - x
        promise = -(move * (slope + model.product(move) / 2)).sum(-1)
        return _Trial(there, move, promise, solved)

    def judge(
        self, x: Tensor, model: Model, memory: tuple[Tensor, ...], trial: _Trial, found: Model, sound: Tensor
    ) -> _Verdict:
        """Taken if it gains anything."""
        damping, growth = memory
        info = torch.finfo(x.dtype)
        gain = torch.where(sound & trial.solved, model.cost - found.cost, -torch.inf)
        better = gain > 0
        ratio = torch.where(better, gain / trial.promise.clamp(min=info.tiny), 0)
        calmer = damping * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3)
        # A step of less damping than this is decided by rounding where the problem is rank-deficient.
        calmer = calmer.clamp(min=x.shape[-1] * info.eps)
        memory = torch.where(better, calmer, damping * growth), torch.where(better, 2.0, 2 * growth)

        # With damping a > b, a step is at least b / a as long as with b, and promises at least b / a as much.
        held_back = (damping / _LITTLE_DAMPING).clamp(min=1)
        promise = held_back * trial.promise
        short = trial.solved & _short(x, held_back[:, None] * trial.move, self.tolerances)
        unseen = trial.solved & (promise <= info.eps * model.cost)  # a gain that rounding would hide
        little = self.tolerances.cost * model.cost
        reached = unseen | ((gain.abs() <= little) & (promise <= little))
        stuck = ~better & (damping > _DAMPING_LIMIT)
        stop = _reasons((stuck, Stop.STUCK), (short, Stop.STEP), (reached, Stop.COST))
        return _Verdict(better, memory, torch.where((stop > 0) & ~sound, Stop.NOT_FINITE, stop))


class _LBFGS:
    """Memory: (b, m, N) steps and the gradient's changes along them, the latest last; (b) step length."""

    method = "lbfgs"

    def __init__(self, tolerances: _Tolerances, history: int) -> None:
        self.tolerances, self.history = tolerances, history

    def begin(self, x: Tensor, model: Model) -> tuple[Tensor, ...]:
        """See `_Stepper`."""
        nothing = x.new_zeros(len(x), self.history, x.shape[1])
        return nothing, nothing.clone(), torch.ones_like(model.cost)

    def propose(self, x: Tensor, model: Model, memory: tuple[Tensor, ...], box: _Box | None) -> _Trial:
        """Along the quasi-Newton direction of what no bound holds."""
        steps, changes, length = memory
        slope = model.slope()
        if box is not None:
            held = box.holds(x, slope)
            slope = torch.where(held, 0, slope)
            steps, changes = (torch.where(held[:, None], 0, part) for part in (steps, changes))
        there = x + length[:, None] * _quasi_newton(slope, steps, changes)
        there = there if box is None else box.clamp(there)
        move = there - x
        return _Trial(there, move, -(move * slope).sum(-1), torch.ones_like(length, dtype=torch.bool))

    def judge(
        self, x: Tensor, model: Model, memory: tuple[Tensor, ...], trial: _Trial, found: Model, sound: Tensor
    ) -> _Verdict:
        """Taken if it gains its share; shorter otherwise, by the parabola through what is known."""
        steps, changes, length = memory
        gain = torch.where(sound, model.cost - found.cost, -torch.inf)
        taken = (gain > 0) & (gain >= _ARMIJO * trial.promise)
        shrink = (trial.promise / (2 * (trial.promise - gain))).nan_to_num(0.5).clamp(0.1, 0.5)
        change = found.slope() - model.slope()
        kept = taken & _bends_up(trial.move, change)
        push = lambda past, new: _where(kept, torch.cat((past[:, 1:], new[:, None]), 1), past)  # noqa: E731
        memory = push(steps, trial.move), push(changes, change), torch.where(taken, 1.0, length * shrink)

        little = self.tolerances.cost * model.cost
        # To first order the whole step promises twice what its minimum would gain.
        reached = taken & (gain <= little) & (trial.promise / (2 * length) <= little)
        short = _short(x, trial.move / length[:, None], self.tolerances)
        stuck = ~taken & (length < _LENGTH_LIMIT)
        stop = _reasons((stuck, Stop.STUCK), (short, Stop.STEP), (reached, Stop.COST))
        return _Verdict(taken, memory, torch.where((stop > 0) & ~sound, Stop.NOT_FINITE, stop))


class _Adam:
    """Memory: (b, N) mean gradient and mean square; (b) steps, rate, least cost and steps since it fell."""

    method = "adam"

    def __init__(self, tolerances: _Tolerances, learning_rate: float) -> None:
        self.tolerances, self.learning_rate = tolerances, learning_rate

    def begin(self, x: Tensor, model: Model) -> tuple[Tensor, ...]:
        """See `_Stepper`."""
        zero = torch.zeros_like(model.cost)
        rate = torch.full_like(zero, self.learning_rate)
        return torch.zeros_like(x), torch.zeros_like(x), zero, rate, model.cost, zero

    def propose(self, x: Tensor, model: Model, memory: tuple[Tensor, ...], box: _Box | None) -> _Trial:
        """A step of about the rate in every variable."""
        mean, square, count, rate, *_ = self._learn(model, memory)
        size = (square / (1 - 0.999 ** count[:, None])).sqrt() + torch.finfo(x.dtype).tiny ** 0.5
        there = x - rate[:, None] * mean / (1 - 0.9 ** count[:, None]) / size
        there = there if box is None else box.clamp(there)
        move = there - x
        return _Trial(there, move, -(move * model.slope()).sum(-1), torch.ones_like(rate, dtype=torch.bool))

    def judge(
        self, x: Tensor, model: Model, memory: tuple[Tensor, ...], trial: _Trial, found: Model, sound: Tensor
    ) -> _Verdict:
        """Taken wherever it leads, unless it is not finite there."""
        mean, square, count, rate, least, since = self._learn(model, memory)
        fell = sound & (found.cost < least * (1 - self.tolerances.cost))
        since = torch.where(fell, 0, since + 1)
        slower = ~sound | (since >= _PATIENCE)
        rate = torch.where(slower, rate / 2, rate)
        least = torch.where(sound & (found.cost < least), found.cost, least)
        memory = mean, square, count, rate, least, torch.where(slower, 0, since)
        slow = rate < _RATE_LIMIT * self.learning_rate
        # Steps along the gradient that have led upwards: it is not the cost's.
        risen = model.cost > least * (1 + _RISE)
        stop = _reasons((slow, Stop.COST), (slow & risen, Stop.STUCK))
        return _Verdict(sound, memory, torch.where((stop > 0) & ~sound, Stop.NOT_FINITE, stop))

    @staticmethod
    def _learn(model: Model, memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mean, square, count, *rest = memory
        slope = model.slope()
        return 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope.square(), count + 1, *rest


def _quasi_newton(slope: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """The two-loop recursion; steepest descent, of length 1 at most, where nothing is remembered."""
    products = _dot(steps, changes)
    used = _bends_up(steps, changes)
    inverse = torch.where(used, 1 / torch.where(used, products, 1), 0)
    direction, shares = slope, []
    for i in range(steps.shape[1] - 1, -1, -1):
        shares.append(inverse[:, i] * _dot(steps[:, i], direction))
        direction = direction - shares[-1][:, None] * changes[:, i]
    steepest = 1 / slope.norm(dim=-1).clamp(min=1)
    scale = steepest
    for i in range(steps.shape[1]):
        scale = torch.where(used[:, i], products[:, i] / _dot(changes[:, i], changes[:, i]), scale)
    direction = scale[:, None] * direction
    for i, share in enumerate(reversed(shares)):
        direction = (
            direction + (share - inverse[:, i] * _dot(changes[:, i], direction))[:, None] * steps[:, i]
        )
    downhill = (_dot(direction, slope) > 0) & direction.isfinite().all(-1)
    return -_where(downhill, direction, steepest[:, None] * slope)


def _bends_up(step: Tensor, change: Tensor) -> Tensor:
    """Whether the cost is curved upwards along a step, for certain."""
    limit = torch.finfo(step.dtype).eps * step.norm(dim=-1) * change.norm(dim=-1)
    return _dot(step, change) > limit


def _read_bounds(start: Tensor, lower: Tensor | None, upper: Tensor | None) -> _Box | None:
    if lower is None and upper is None:
        return None
    bounds = []
    for name, bound, free in (("lower", lower, -torch.inf), ("upper", upper, torch.inf)):
        bound = start.new_tensor(free) if bound is None else bound.detach().to(start)
        try:
            bounds.append(bound.expand(start.shape))
        except RuntimeError:
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {tuple(start.shape)}, got {tuple(bound.shape)}"
            ) from None
    if not (bounds[0] <= bounds[1]).all():
        raise ValueError("lower: expected numbers that are not above those of upper, and none that is NaN")
    return _Box(*bounds)


def _evaluate(quadratize: Callable[[Tensor, Tensor], Model], x: Tensor, rows: Tensor) -> Model:
    model: Any = quadratize(x, rows)
    return type(model)(*(None if part is None else part.detach() for part in model))


def _sound(x: Tensor, model: Model, stepper: _Stepper) -> Tensor:
    """Whether a place and what is used of its model is finite. (A normal matrix is, if its diagonal is.)"""
    sound = x.isfinite().all(-1) & model.cost.isfinite() & model.slope().isfinite().all(-1)
    return sound & model.diagonal().isfinite().all(-1) if stepper.method == "lm" else sound


def _at_rest(x: Tensor, model: Model, box: _Box | None, tolerances: _Tolerances) -> Tensor:
    slope = model.slope()
    slope = slope if box is None else torch.where(box.holds(x, slope), 0, slope)
    return (slope * x.abs().clamp(min=1)).abs().amax(-1) <= tolerances.gradient * model.cost


def _short(x: Tensor, move: Tensor, tolerances: _Tolerances) -> Tensor:
    return move.norm(dim=-1) <= tolerances.step * (tolerances.step + x.norm(dim=-1))


def _converged(stop: Tensor) -> Tensor:
    return (stop == Stop.COST) | (stop == Stop.STEP) | (stop == Stop.GRADIENT)


def _reasons(*reasons: tuple[Tensor, Stop]) -> Tensor:
    """The last reason that holds, ITERATIONS if none does."""
    found = torch.full_like(reasons[0][0], Stop.ITERATIONS, dtype=torch.int64)
    for holds, why in reasons:
        found = torch.where(holds, why, found)
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask[(..., *[None] * (new.dim() - 1))], new, old)


def _select(model: Any, which: Tensor) -> Any:
    return type(model)(*(None if part is None else part[which] for part in model))


def _choose(mask: Tensor, new: Any, old: Any) -> Any:
    return type(new)(*(None if a is None else _where(mask, a, b) for a, b in zip(new, old, strict=True)))


def _pin(matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """A copy, with zeros in the rows and columns that are held."""
    if rows is None or columns is None:
        return matrix.clone()
    return torch.where(rows[..., None] | columns[..., None, :], 0, matrix)


def _factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """U with UᵀU = matrix, and whether there is one. (On the CPU torch finds the upper factor the faster.)"""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=True)
    return factor, info == 0


def _forward(factor: Tensor, sides: Tensor) -> Tensor:
    """The inverse of Uᵀ times the sides."""
    return torch.linalg.solve_triangular(factor.mT, sides, upper=False)


def _backward(factor: Tensor, sides: Tensor) -> Tensor:
    """The inverse of U times the sides."""
    return torch.linalg.solve_triangular(factor, sides, upper=True)


def _factor_chain(
    blocks: Tensor, coupling: Tensor | None, sides: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """U with UᵀU the block tridiagonal matrix, by diagonals; Uᵀ's inverse times the sides; success."""
    if coupling is None:
        factors, sound = _factor(blocks)
        return factors, None, _forward(factors, sides), sound.all(1)
    factors, links, solved, flags = [], [], [], []
    block, side = blocks[:, 0], sides[:, 0]
    for t in range(blocks.shape[1]):
        factor, sound = _factor(block)
        factors.append(factor)
        flags.append(sound)
        solved.append(_forward(factor, side))
        if t + 1 < blocks.shape[1]:
            link = _forward(factor, coupling[:, t])
            links.append(link)
            block = blocks[:, t + 1] - link.mT @ link
            side = sides[:, t + 1] - link.mT @ solved[-1]
    links = torch.stack(links, 1) if links else coupling
    return torch.stack(factors, 1), links, torch.stack(solved, 1), torch.stack(flags, 1).all(1)


def _solve_back(factors: Tensor, links: Tensor | None, sides: Tensor) -> Tensor:
    """The inverse of the chain's U times the sides."""
    if links is None:
        return _backward(factors, sides)
    found = [_backward(factors[:, -1], sides[:, -1])]
    for t in range(factors.shape[1] - 2, -1, -1):
        found.append(_backward(factors[:, t], sides[:, t] - links[:, t] @ found[-1]))
    return torch.stack(found[::-1], 1)
