"""The shape and age of a body from its measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.body import SMPLA, BodyModel
from agebody.checks import broadcast
from agebody.engine.batched import own_precision
from agebody.engine.deform import age_coefficients
from agebody.measure.definitions import MEASUREMENTS, Definition
from agebody.measure.measurements import Measurements

_CHUNK = 128  # bodies at a time: memory is bounded
_START_AGES = 9
_LONGEST = 5.0  # m: what is longer is in another unit
_BOLD, _CAREFUL = 1e-3, 1.0  # dampings of the first step
_MAX_DAMPING = 1e10
_SMALL_STEP = {torch.float32: 1e-5, torch.float64: 1e-9}
_SMALL_GAIN = {torch.float32: 1e-6, torch.float64: 1e-12}


class MeasurementFit(NamedTuple):
    """Bodies found for given measurements."""

    names: tuple[str, ...]
    """The M measurements that were asked for."""
    betas: Float[Tensor, "*batch num_betas"]
    age_offset: Float[Tensor, "*batch"]
    achieved: Float[Tensor, "*batch M"]
    """What these bodies measure [m]."""
    residual: Float[Tensor, "*batch M"]
    """Achieved minus asked for [m]; 0 where the weight is 0."""
    met: Bool[Tensor, "*batch M"]
    """Whether the residual is within the tolerance."""
    converged: Bool[Tensor, "*batch"]
    """Whether the solver found a minimum before it ran out of iterations."""

    def report(self) -> str:
        """What could not be met, one line each, or that everything was."""
        missed = torch.nonzero(~self.met)
        if not len(missed):
            return f"{self.met.numel()} of {self.met.numel()} measurements met"
        lines = [f"{int(self.met.sum())} of {self.met.numel()} measurements met; not met:"]
        for *body, which in missed.tolist():
            index = (*body, which)
            off, got = 1000 * self.residual[index].item(), 1000 * self.achieved[index].item()
            where = f"body {', '.join(map(str, body))}: " if body else ""
            lines.append(
                f"  {where}{self.names[which]}: asked {got - off:.1f} mm, is {got:.1f} mm ({off:+.1f})"
            )
        return "\n".join(lines)


def fit_measurements(
    body: BodyModel,
    targets: Mapping[str, Tensor | float],
    *,
    age_offset: Tensor | float | None = None,
    weights: Mapping[str, Tensor | float] | None = None,
    sd: float = 1e-4,
    age_bounds: tuple[float, float] | None = None,
    tolerance: float = 1e-3,
    definitions: Mapping[str, Definition] | None = None,
    max_iterations: int = 50,
) -> MeasurementFit:
    """Betas and age offset of the bodies that measure what is asked for.

    The most probable body: it minimises

        sum over m of weight_m ((measured_m - target_m) / sd)^2 + ||betas||^2

    so that what the measurements leave open stays at the mean shape. Where the targets contradict one another
    or lie outside the shape space, the fit is a compromise, and says which are missed and by how much. Solved
    by damped Gauss-Newton steps (Levenberg and Marquardt), each body for itself, the age offset kept within
    bounds and started at the best of several ages. The result is detached from the targets.

    Args:
        body: an `SMPL`, `SMIL` or `SMPLA` layer, without ``smil``; the fit runs in its dtype, on its device.
        targets: name -> value [m], one for all bodies or (*batch).
        age_offset: (*batch) if it is known; found with the betas if not given.
        weights: name -> (*batch), 1 if not given. What weighs nothing is not looked at, NaN or not.
        sd: standard deviation of a measurement's error [m]. With the small default the targets are met as
            far as the body can; a tape in practice has 0.005 to 0.01, and gives more probable shapes.
        age_bounds: lowest and highest age offset; those of the body's templates if not given.
        tolerance: residual up to which a measurement counts as met [m].
        definitions: what the names mean; `MEASUREMENTS` if not given.
        max_iterations: steps at most.

    Raises:
        ValueError: there are no targets, a name is unknown, a target is no length of up to 5 m, a weight is
            not finite, one has a wrong shape, the body has one age and an age offset is given, or it has a
            second, infant body.
    """
    problem = _Problem(body, targets, weights, age_offset, sd, age_bounds, definitions)
    which = torch.arange(problem.size, device=body.device).split(_CHUNK)
    with own_precision(body.device):
        found = [_solve(problem, chunk, tolerance, max_iterations) for chunk in which]
    betas, age, achieved, converged, _ = (torch.cat(parts) for parts in zip(*found, strict=True))
    residual = torch.where(problem.weights > 0, achieved - problem.targets, 0)
    batched = lambda tensor: tensor.reshape((*problem.batch, *tensor.shape[1:]))  # noqa: E731
    return MeasurementFit(
        problem.names,
        *(batched(t) for t in (betas, age, achieved, residual, residual.abs() <= tolerance, converged)),
    )


def _solve(problem: _Problem, rows: Tensor, tolerance: float, max_iterations: int) -> _Solution:
    """Some bodies. Those that miss a target are solved again from several ages, and the best is kept."""
    best = problem.part(rows).solve(_BOLD, max_iterations)
    residual = torch.where(problem.weights[rows] > 0, best.values - problem.targets[rows], 0)
    missed = (residual.abs() > tolerance).any(-1).nonzero()[:, 0]
    if not len(missed):
        return best
    again = problem.part(rows[missed])
    for shift in (0, -1, 1) if again.free_age else (0,):
        other = again.solve(_CAREFUL, max_iterations, shift)
        better = other.cost < best.cost[missed]
        best = _Solution(
            *(old.index_put((missed[better],), new[better]) for new, old in zip(other, best, strict=True))
        )
    return best


class _Problem:
    """What is asked for, over a flat batch."""

    def __init__(
        self,
        body: BodyModel,
        targets: Mapping[str, Tensor | float],
        weights: Mapping[str, Tensor | float] | None,
        age_offset: Tensor | float | None,
        sd: float,
        age_bounds: tuple[float, float] | None,
        definitions: Mapping[str, Definition] | None,
    ) -> None:
        if isinstance(body, SMPLA) and body.infant is not None:
            raise ValueError("body: expected one body; this layer has a second one (smil=) for infants")
        if age_offset is not None and not body.age_anchors:
            raise ValueError("age_offset: this body has one age")
        if not sd > 0:
            raise ValueError(f"sd: expected a length above 0 [m], got {sd}")
        if not targets:
            raise ValueError("targets: expected at least one measurement, got none")
        definitions = MEASUREMENTS if definitions is None else definitions
        weights = {} if weights is None else weights
        for argument, given, known in (("targets", targets, definitions), ("weights", weights, targets)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"{argument}: expected names out of {', '.join(known)}, got {unknown}")
        self.body, self.sd = body, sd
        self.names = tuple(targets)
        read = lambda value: torch.as_tensor(value, dtype=body.dtype, device=body.device).detach()  # noqa: E731
        values = {f"targets[{name!r}]": read(value) for name, value in targets.items()}
        shares = {f"weights[{name!r}]": read(weights.get(name, 1.0)) for name in targets}
        known_age = {} if age_offset is None else {"age_offset": read(age_offset)}
        self.batch = broadcast(**{name: v.shape for name, v in {**values, **shares, **known_age}.items()})
        self.size = math.prod(self.batch)
        flat = lambda tensor: tensor.expand(self.batch).reshape(-1)  # noqa: E731
        self.weights = torch.stack([flat(v) for v in shares.values()], -1)
        self.targets = torch.stack([flat(v) for v in values.values()], -1)
        if not (torch.isfinite(self.weights) & (self.weights >= 0)).all():
            raise ValueError("weights: expected finite numbers of 0 or more")
        self.targets = torch.where(self.weights > 0, self.targets, 0)
        for name, asked, weight in zip(self.names, self.targets.mT, self.weights.mT, strict=True):
            wrong = asked[(weight > 0) & ~((asked > 0) & (asked <= _LONGEST))]
            if len(wrong):
                raise ValueError(
                    f"targets[{name!r}]: expected metres, above 0 and up to {_LONGEST:g}, got {wrong[0]:g}"
                )
        self.age = None if age_offset is None else flat(known_age["age_offset"])
        anchors = (0.0, *body.age_anchors)
        self.bounds = (min(anchors), max(anchors)) if age_bounds is None else age_bounds
        if not self.bounds[0] <= self.bounds[1]:
            raise ValueError(f"age_bounds: expected a lowest and a highest offset, got {self.bounds}")
        chosen = {name: definitions[name] for name in targets}
        measure = Measurements(body.asset, chosen, dtype=body.dtype, device=body.device)
        directions = torch.from_numpy(body.identity_directions).to(body.device, body.dtype)
        self.gauges = [(gauge, directions[:, gauge.vertices].flatten(1)) for gauge in measure.all_gauges()]

    def part(self, rows: Tensor) -> _Solver:
        """The solver of some bodies."""
        age = None if self.age is None else self.age[rows]
        return _Solver(self, self.targets[rows], self.weights[rows], age)


class _Solution(NamedTuple):
    """Bodies found."""

    betas: Tensor
    age: Tensor
    values: Tensor
    converged: Tensor
    cost: Tensor


class _State(NamedTuple):
    """Bodies on the way, and the quadratic model of the objective there."""

    betas: Tensor
    age: Tensor
    cost: Tensor
    gradient: Tensor
    hessian: Tensor
    values: Tensor


class _Solver:
    """Damped Gauss-Newton for a batch of bodies, each with its own damping."""

    def __init__(self, problem: _Problem, targets: Tensor, weights: Tensor, age: Tensor | None) -> None:
        self.problem, self.targets, self.weights, self.age = problem, targets, weights, age
        self.anchors = problem.body.age_anchors
        self.free_age = age is None and bool(self.anchors)
        self.num_betas = problem.body.num_betas

    def solve(self, damping_at_start: float, max_iterations: int, shift: int = 0) -> _Solution:
        """The minimum that each body's steps lead to, from the best of several ages or one beside it."""
        state = self._start(shift)
        damping = torch.full_like(state.cost, damping_at_start)
        done, hold = (torch.zeros_like(state.cost, dtype=torch.bool) for _ in range(2))
        for _ in range(max_iterations):
            if done.all():
                break
            trial, step = self._step(state, damping, hold)
            better = (trial.cost < state.cost) & ~done
            gain = state.cost - trial.cost
            small = (step <= _SMALL_STEP[step.dtype]) | (
                better & (gain <= _SMALL_GAIN[gain.dtype] * state.cost)
            )
            done = done | small | (damping > _MAX_DAMPING)
            state = _State(*(_where(better, new, old) for new, old in zip(trial, state, strict=True)))
            damping = torch.where(better, damping / 5, damping * 4)
            # Growth changes its direction at each age template. There a step may fail for the sake of the age
            # alone, so a failed step is followed by one that leaves it as it is.
            hold = ~better & ~hold
        return _Solution(state.betas, state.age, state.values, done, state.cost)

    def _start(self, shift: int) -> _State:
        betas = self.targets.new_zeros(len(self.targets), self.num_betas)
        if not self.free_age:
            return self._model(betas, betas.new_zeros(len(betas)) if self.age is None else self.age)
        ages = torch.linspace(*self.problem.bounds, _START_AGES).to(betas)
        surfaces = self._surfaces(betas.new_zeros(_START_AGES, self.num_betas), ages)
        residual = self._values(surfaces)[:, None] - self.targets
        misfit = torch.where(self.weights > 0, self.weights * residual**2, 0).sum(-1)
        best = misfit.nan_to_num(torch.inf).argmin(0) + shift
        return self._model(betas, ages[best.clamp(0, _START_AGES - 1)])

    def _step(self, state: _State, damping: Tensor, hold: Tensor) -> tuple[_State, Tensor]:
        """The next body to try, and the largest change in it."""
        gradient, hessian = state.gradient, state.hessian
        low, high = self.problem.bounds
        if self.free_age:  # what pushes against a bound is left out
            slope = gradient[:, -1]
            held = hold | ((state.age <= low) & (slope > 0)) | ((state.age >= high) & (slope < 0))
            keep = torch.ones_like(gradient)
            keep[:, -1] = (~held).to(keep)
            gradient = gradient * keep
            hessian = hessian * keep[:, None] * keep[:, :, None]
        diagonal = hessian.diagonal(dim1=-2, dim2=-1).clamp(min=1)
        damped = hessian + torch.diag_embed(damping[:, None] * diagonal + 1e-9 * diagonal)
        step, _ = torch.linalg.solve_ex(damped, -gradient[..., None])
        step = torch.nan_to_num(step[..., 0], nan=0.0, posinf=0.0, neginf=0.0)
        betas = state.betas + step[:, : self.num_betas]
        age = (state.age + step[:, -1]).clamp(low, high) if self.free_age else state.age
        moved = torch.cat((betas - state.betas, (age - state.age)[:, None]), -1).abs().amax(-1)
        return self._model(betas, age), moved

    def _model(self, betas: Tensor, age: Tensor) -> _State:
        values, jacobian = self._measure(betas, age)
        share = self.weights / self.problem.sd**2
        residual = torch.where(self.weights > 0, values - self.targets, 0)
        weighted = share[..., None] * torch.where((self.weights > 0)[..., None], jacobian, 0)
        cost = (share * residual**2).sum(-1) + (betas**2).sum(-1)
        gradient = (weighted * residual[..., None]).sum(-2)
        hessian = weighted.mT @ jacobian
        gradient[:, : self.num_betas] += betas
        hessian.diagonal(dim1=-2, dim2=-1)[:, : self.num_betas] += 1
        cost = torch.where(torch.isfinite(cost), cost, torch.inf)
        return _State(betas, age, cost, gradient, hessian, values)

    def _measure(self, betas: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Measurements (B, M), and their derivatives by betas and, where it is free, age (B, M, N).

        Every gauge has vertices of its own, so one backward pass gives the gradients of all measurements,
        and their products with the affine rest surface's directions are the Jacobian.
        """
        with torch.enable_grad():
            surfaces = [surface.requires_grad_() for surface in self._surfaces(betas, age)]
            values = self._values(surfaces)
            gradients = torch.autograd.grad(values.sum(), surfaces)
        rows = [
            gradient.flatten(1) @ directions.T
            for gradient, (_, directions) in zip(gradients, self.problem.gauges, strict=True)
        ]
        jacobian = torch.stack(rows, 1)[..., 1:]
        by_betas, by_templates = jacobian[..., : self.num_betas], jacobian[..., self.num_betas :]
        parts = [by_betas]
        if self.free_age:
            growth = lambda offset: age_coefficients(offset, self.anchors)  # noqa: E731
            slope = torch.func.jvp(growth, (age,), (torch.ones_like(age),))[1]
            parts.append((by_templates * slope[:, None]).sum(-1, keepdim=True))
        return values.detach(), torch.cat(parts, -1)

    def _surfaces(self, betas: Tensor, age: Tensor) -> list[Tensor]:
        """The vertices of each gauge, (B, n, 3) [m]."""
        coefficients = torch.cat(
            (torch.ones_like(age)[:, None], betas, age_coefficients(age, self.anchors)), -1
        )
        return [(coefficients @ directions).unflatten(-1, (-1, 3)) for _, directions in self.problem.gauges]

    def _values(self, surfaces: list[Tensor]) -> Tensor:
        values = [gauge(own) for (gauge, _), own in zip(self.problem.gauges, surfaces, strict=True)]
        return torch.stack(values, -1)


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask[(..., *[None] * (new.dim() - 1))], new, old)
