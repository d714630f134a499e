"""Shape and age of bodies from their measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import (
    broadcast,
    expect_numbers,
    flatten,
    read_count,
    read_nonnegative,
    read_positive,
    read_range,
)
from agebody.engine.batched import own_precision
from agebody.engine.deform import age_coefficients
from agebody.engine.trees import unflatten
from agebody.measure.definitions import MEASUREMENTS, Definition
from agebody.measure.measurements import Measurements
from agebody.optim.least_squares import minimize
from agebody.optim.quadratic import Quadratic

_BATCH = 128  # bodies at a time, which bounds memory
_SEGMENTS = 2  # that every body is fitted in
_STARTS = 3  # ages per segment that the start is chosen from
_CAUTIOUS = 1.0  # damping of the first step of a fit that is tried again
_IMPROBABLE = 5.0  # standard deviations of a shape beyond which the report names it
_LONGEST = 5.0  # [m]; longer targets are in another unit
_COST_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
_STEP_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


class MeasurementFit(NamedTuple):
    """Bodies fitted to measurements."""

    names: tuple[str, ...]
    """The M measurements."""
    betas: Float[Tensor, "*batch num_betas"]
    age_offset: Float[Tensor, "*batch"]
    achieved: Float[Tensor, "*batch M"]
    """Measurements of these bodies [m]."""
    residual: Float[Tensor, "*batch M"]
    """Achieved minus target [m]; NaN where the weight is 0."""
    met: Bool[Tensor, "*batch M"]
    """Whether the residual is within the tolerance, or the weight is 0."""
    converged: Bool[Tensor, "*batch"]
    """Whether the solver converged before it ran out of iterations."""
    sd: Float[Tensor, "*batch"]
    """Distance of the shape from the mean, |betas| [standard deviations]: how improbable it is."""

    def report(self) -> str:
        """Return one line per target that is not met, and one per improbable shape."""
        missed, far = torch.nonzero(~self.met), torch.nonzero(self.sd > _IMPROBABLE)
        asked = ~self.residual.isnan()
        lines = [f"{int((self.met & asked).sum())} of {int(asked.sum())} measurements met"]
        lines[0] += "; not met:" if len(missed) else ""
        for *body, which in missed.tolist():
            index = (*body, which)
            off, got = 1000 * self.residual[index].item(), 1000 * self.achieved[index].item()
            where = f"body {', '.join(map(str, body))}: " if body else ""
            lines.append(
                f"  {where}{self.names[which]}: asked {got - off:.1f} mm, is {got:.1f} mm ({off:+.1f})"
            )
        for body in far.tolist():
            where = f"body {', '.join(map(str, body))}: " if body else ""
            away = self.sd[tuple(body)].item()
            lines.append(f"  {where}an improbable shape, {away:.1f} standard deviations from the mean")
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
    """Find betas and age offset of bodies with given measurements.

    Minimizes ``Σ_m weight_m ((measured_m - target_m) / sd)² + |b|²``: the most probable bodies, which stay at
    the mean shape where the measurements leave it open. Where targets contradict one another or lie outside
    the shape space, the result is a compromise, and the report lists missed targets. Shapes are not bounded:
    ``sd`` measures how improbable they are.

    Growth changes its direction at each age template. So bodies are fitted by Levenberg-Marquardt between
    the pairs of templates that suit the mean shape best, and between all pairs if a target is missed; the
    best result is kept.

    Args:
        body: any layer, without ``smil``; expressions stay 0. The fit runs in its dtype, on its device.
        targets: name -> value [m], one for all bodies or (*batch).
        age_offset: (*batch) if it is known; found with the betas if None.
        weights: name -> (*batch), 1 if missing. Targets of weight 0 are ignored, even NaN.
        sd: standard deviation of a measurement [m]. With the small default, targets are met as closely as the
            body can; a tape in practice has 0.005 to 0.01, and gives more probable shapes.
        age_bounds: lowest and highest age offset; those of the body's templates if None.
        tolerance: residual up to which a target counts as met [m].
        definitions: of the names; `MEASUREMENTS` if None.
        max_iterations: maximum number of steps.

    Returns:
        Bodies that are detached from the targets.
    """
    read_nonnegative("tolerance", tolerance, "a length", unit=" [m]")
    read_count("max_iterations", max_iterations)
    problem = _Problem(body, targets, weights, age_offset, sd, age_bounds, definitions)
    rows = torch.arange(math.prod(problem.batch), device=body.device)
    with torch.no_grad(), own_precision(body.device):
        found = [problem.solve(part, tolerance, max_iterations) for part in rows.split(_BATCH)]
    betas, age, achieved, converged = (torch.cat(parts) for parts in zip(*found, strict=True))
    counts = problem.weights > 0
    residual = torch.where(counts, achieved - problem.targets, torch.nan)
    met, away = (residual.abs() <= tolerance) | ~counts, betas.norm(dim=-1)
    fit = MeasurementFit(problem.names, betas, age, achieved, residual, met, converged, away)
    return unflatten(fit, problem.batch)


class _Problem:
    """The arguments, in a flat batch."""

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
        expect_body(body, single=True)
        if age_offset is not None and not body.age_anchors:
            raise ValueError("age_offset: this body has one age")
        read_positive("sd", sd, "a length", " [m]")
        if not isinstance(targets, Mapping) or not targets:
            raise ValueError(f"targets: expected at least one measurement by its name, got {targets!r}")
        definitions = MEASUREMENTS if definitions is None else definitions
        weights = {} if weights is None else weights
        for argument, given, known in (("targets", targets, definitions), ("weights", weights, targets)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"{argument}: expected names out of {', '.join(known)}, got {unknown}")
        self.body, self.sd, self.anchors = body, sd, body.age_anchors
        self.names = tuple(targets)

        like = torch.empty((), dtype=body.dtype, device=body.device)

        def read(**given: Any) -> dict[str, Tensor]:
            return {name: expect_numbers(name, value, like).detach() for name, value in given.items()}

        values = read(**{f"targets[{name!r}]": value for name, value in targets.items()})
        shares = read(**{f"weights[{name!r}]": weights.get(name, 1.0) for name in targets})
        known_age = {} if age_offset is None else read(age_offset=age_offset)
        self.batch = broadcast(**{name: v.shape for name, v in {**values, **shares, **known_age}.items()})

        if not all(part.isfinite().all() for part in known_age.values()):
            raise ValueError("age_offset: expected finite numbers")
        self.weights = torch.stack([flatten(v, self.batch, 0) for v in shares.values()], -1)
        self.targets = torch.stack([flatten(v, self.batch, 0) for v in values.values()], -1)
        if not (torch.isfinite(self.weights) & (self.weights >= 0)).all():
            raise ValueError("weights: expected finite numbers of 0 or more")
        self.targets = torch.where(self.weights > 0, self.targets, 0)
        for name, asked, weight in zip(self.names, self.targets.mT, self.weights.mT, strict=True):
            wrong = asked[(weight > 0) & ~((asked > 0) & (asked <= _LONGEST))]
            if len(wrong):
                raise ValueError(
                    f"targets[{name!r}]: expected metres, above 0 and up to {_LONGEST:g}, got {wrong[0]:g}"
                )
        self.age = None if age_offset is None else flatten(known_age["age_offset"], self.batch, 0)
        knots = (0.0, *self.anchors)
        bounds = (min(knots), max(knots)) if age_bounds is None else age_bounds
        low, high = read_range("age_bounds", bounds, "offsets", -math.inf)
        ends = [low, *sorted({knot for knot in knots if low < knot < high}), high]
        self.segments = list(pairwise(ends)) if self.anchors and self.age is None else [(0.0, 0.0)]
        chosen = {name: definitions[name] for name in targets}
        measure = Measurements(body.asset, chosen, dtype=body.dtype, device=body.device)
        # Expressions are no part of the shape, and stay 0.
        expressions = slice(1 + body.num_betas, 1 + body.num_coefficients)
        directions = np.delete(body.identity_directions, expressions, 0)
        directions = torch.from_numpy(directions).to(body.device, body.dtype)
        self.gauges = [(gauge, directions[:, gauge.vertices].flatten(1)) for gauge in measure.all_gauges()]

    def solve(self, rows: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, ...]:
        """Return betas, age offsets, measurements and convergence of some bodies.

        Each is fitted in the two segments that suit its mean shape best, and where it misses a target, again
        in all of them with short first steps.
        """
        ages, misfit = self._start(rows)  # (segments, rows)
        order = misfit.argsort(0)
        best, cost = self._fit(rows, order[:_SEGMENTS], ages, max_iterations)
        values = self._measurements(best)
        missed = torch.where(self.weights[rows] > 0, values - self.targets[rows], 0).abs() > tolerance
        some = missed.any(-1).nonzero()[:, 0]
        if len(some):
            others, other_cost = self._fit(
                rows[some], order[:, some], ages[:, some], max_iterations, damping=_CAUTIOUS
            )
            better = other_cost < cost[some]
            best[some[better]] = others[better]
            values = self._measurements(best)
        return best[:, :-2], best[:, -2], values, best[:, -1] > 0

    def _start(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the age per segment at which the mean shape suits best, and its misfit."""
        low, high = self.targets.new_tensor(self.segments).mT
        shares = torch.linspace(0, 1, _STARTS, dtype=low.dtype, device=low.device)[:, None]
        ages = (low + shares * (high - low)).flatten()  # (starts * segments)
        betas = ages.new_zeros(len(ages), self.body.num_betas)
        values = self._values(self._surfaces(betas, age_coefficients(ages, self.anchors)))
        residual = values[:, None] - self.targets[rows]
        misfit = torch.where(self.weights[rows] > 0, self.weights[rows] * residual**2, 0).sum(-1)
        misfit = misfit.nan_to_num(torch.inf).unflatten(0, (_STARTS, -1))
        least = misfit.min(0)
        segment = torch.arange(len(low), device=low.device)[:, None]
        return ages.view(_STARTS, -1)[least.indices, segment], least.values

    def _fit(
        self, rows: Tensor, segments: Tensor, ages: Tensor, max_iterations: int, damping: float = 1e-3
    ) -> tuple[Tensor, Tensor]:
        """Return the best of fits in some segments: betas, age, whether converged; and its cost."""
        count, (low, high) = len(rows), self.targets.new_tensor(self.segments)[segments.flatten()].mT
        bodies, start_age = rows.repeat(len(segments)), ages.gather(0, segments).flatten()
        if self.age is not None:
            low = high = start_age = self.age[bodies]
        start = torch.cat((start_age.new_zeros(len(bodies), self.body.num_betas), start_age[:, None]), 1)
        lower, upper = (torch.full_like(start, bound) for bound in (-torch.inf, torch.inf))
        lower[:, -1], upper[:, -1] = low, high
        metric = start.new_ones(start.shape[1])
        metric[-1] = 0  # betas are in standard deviations; the age offset has no prior
        prior = torch.eye(len(metric), dtype=start.dtype, device=start.device)[:-1]

        def quadratize(x: Tensor, which: Tensor) -> Quadratic:
            values, jacobian = self._measure(x, low[which], high[which])
            weights = self.weights[bodies[which]]
            root = weights.sqrt() / self.sd
            residuals = root * torch.where(weights > 0, values - self.targets[bodies[which]], 0)
            jacobian = root[..., None] * torch.where((weights > 0)[..., None], jacobian, 0)
            return Quadratic.of(
                torch.cat((residuals, x[:, :-1]), 1),
                torch.cat((jacobian, prior.expand(len(x), -1, -1)), 1),
            )

        found = minimize(
            quadratize,
            start,
            lower=lower,
            upper=upper,
            max_iterations=max_iterations,
            cost_tolerance=_COST_TOLERANCE[start.dtype],
            step_tolerance=_STEP_TOLERANCE[start.dtype],
            damping=damping,
            metric=metric,
        )
        cost, best = found.cost.nan_to_num(torch.inf).view(len(segments), count).min(0)
        best = best * count + torch.arange(count, device=rows.device)
        return torch.cat((found.x[best], found.converged[best, None].to(found.x)), 1), cost

    def _measurements(self, found: Tensor) -> Tensor:
        return self._values(self._surfaces(found[:, :-2], age_coefficients(found[:, -2], self.anchors)))

    def _measure(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return measurements (B, M), and their derivatives by betas and age offset (B, M, N + 1).

        Every gauge has vertices of its own, so one backward pass gives the gradients of all measurements,
        and their products with the directions of the affine rest surface are the Jacobian.
        """
        ends = age_coefficients(torch.stack((low, high)), self.anchors)
        width = (high - low)[:, None]
        growth = (ends[1] - ends[0]) / torch.where(width > 0, width, 1)
        coefficients = ends[0] + (x[:, -1] - low)[:, None] * growth
        with torch.inference_mode(False), torch.enable_grad():
            surfaces = [surface.requires_grad_() for surface in self._surfaces(x[:, :-1], coefficients)]
            values = self._values(surfaces)
            gradients = torch.autograd.grad(values.sum(), surfaces)
        jacobian = torch.stack(
            [
                gradient.flatten(1) @ directions[1:].T
                for gradient, (_, directions) in zip(gradients, self.gauges, strict=True)
            ],
            1,
        )
        by_betas, by_templates = jacobian.split((x.shape[1] - 1, growth.shape[1]), -1)
        return values.detach(), torch.cat((by_betas, by_templates @ growth[..., None]), -1)

    def _surfaces(self, betas: Tensor, growth: Tensor) -> list[Tensor]:
        """Return the vertices of each gauge (B, n, 3) [m]."""
        coefficients = torch.cat((betas.new_ones(len(betas), 1), betas, growth), -1)
        return [(coefficients @ directions).unflatten(-1, (-1, 3)) for _, directions in self.gauges]

    def _values(self, surfaces: list[Tensor]) -> Tensor:
        values = [gauge(own) for (gauge, _), own in zip(self.gauges, surfaces, strict=True)]
        return torch.stack(values, -1)
