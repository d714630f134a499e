"""The first two steps from scans to bodies: one shape from a few frames, then every frame's pose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.fitting.scans.energy import ScanEnergy
from agebody.fitting.scans.matches import Matches
from agebody.fitting.scans.stages import ScanStage
from agebody.optim.least_squares import ChainQuadratic, Quadratic, Solution, minimize

EVALUATIONS = 10
"""After which visibility is found anew."""
SETTLED = 3
"""Steps of a round after which, if it converged, the next would change little."""
TOLERANCE = 1e-3
"""Share of the cost that a step must gain for another to follow."""


class StepReport(NamedTuple):
    """How one step ended, for each of its problems."""

    converged: Bool[Tensor, " n"]
    iterations: Int[Tensor, " n"]
    """Steps that were tried."""
    stop: Int[Tensor, " n"]
    """An `agebody.optim.least_squares.Stop` each."""
    cost: Float[Tensor, " n"]
    """Half of the energy with the last stage's weights."""
    terms: dict[str, Float[Tensor, " frames"]]
    """What each term adds to it, a frame; empty for the surface."""


def fit_shape(
    energy: ScanEnergy,
    vectors: Float[Tensor, "F P"],
    chosen: Int[Tensor, " n"],
    stages: Sequence[ScanStage],
    rounds: int,
    free_age: bool,
) -> tuple[Float[Tensor, "F P"], StepReport]:
    """Step 1: one problem, in which frames meet in the shape alone.

    Args:
        energy: of all frames.
        vectors: where they begin.
        chosen: the frames that decide.
        stages: one after the other; at least one.
        rounds: of each, at least one.
        free_age: whether the age offset is found, too.

    Returns:
        The vectors, all of them with the new shape, and those of the chosen frames with their poses.
    """
    own, shared = _columns(energy.body, free_age)
    frames = vectors[chosen]
    lower, upper = _age_bounds(frames, len(chosen) * len(own), shared, free_age)

    def spread(x: Tensor) -> Tensor:
        found = frames.clone()
        found[:, own] = x[0, : len(chosen) * len(own)].view(len(chosen), -1)
        found[:, shared] = x[0, len(chosen) * len(own) :]
        return found

    def quadratize(x: Tensor, _: Tensor, stage: ScanStage, matches: Matches) -> ChainQuadratic:
        part = energy.quadratic(spread(x), chosen, stage, matches)
        rows = part.normal[:, own]
        return ChainQuadratic(
            part.cost.sum(0, keepdim=True),
            part.gradient[None, :, own], part.gradient[:, shared].sum(0)[None],
            rows[None, :, :, own], None, rows[None, :, :, shared],
            part.normal[:, shared][:, :, shared].sum(0)[None],
        )  # fmt: skip

    x = torch.cat((frames[:, own].flatten(), frames[:, shared].mean(0)))[None]
    solutions = []
    for stage in stages:
        for _ in range(rounds):
            matches = energy.match(spread(x), chosen, stage)
            solution = minimize(
                lambda x, rows, stage=stage, matches=matches: quadratize(x, rows, stage, matches), x,
                lower=lower, upper=upper, max_iterations=EVALUATIONS, cost_tolerance=TOLERANCE,
            )  # fmt: skip
            x = solution.x
            solutions.append(solution)
            if bool(solution.converged[0]) and int(solution.iterations[0]) <= SETTLED:
                break
    vectors = vectors.clone()
    vectors[chosen] = spread(x)
    vectors[:, shared] = x[:, len(chosen) * len(own) :]
    matches = energy.match(vectors[chosen], chosen, stages[-1])
    return vectors, step_report(solutions, energy.costs(vectors[chosen], chosen, stages[-1], matches))


def fit_poses(
    energy: ScanEnergy, vectors: Float[Tensor, "F P"], stages: Sequence[ScanStage], rounds: int
) -> tuple[Float[Tensor, "F P"], StepReport]:
    """Step 2: a problem a frame, with the shape held; arguments as in `fit_shape`."""
    own, _ = _columns(energy.body, False)
    everyone = torch.arange(len(vectors), device=vectors.device)
    iterations = torch.zeros_like(everyone)
    stop, cost = torch.zeros_like(everyone), vectors.new_zeros(len(vectors))
    converged = torch.zeros_like(everyone, dtype=torch.bool)
    for stage in stages:
        active = everyone
        for _ in range(rounds):
            matches = energy.match(vectors, everyone, stage, energy.joints_of(vectors))

            def quadratize(
                x: Tensor, rows: Tensor, stage: ScanStage = stage, matches: Matches = matches,
                held: Tensor = vectors, active: Tensor = active,
            ) -> Quadratic:  # fmt: skip
                frames = active[rows]
                whole = held[frames].clone()
                whole[:, own] = x
                part = energy.quadratic(whole, frames, stage, matches)
                return Quadratic(part.cost, part.gradient[:, own], part.normal[:, own][:, :, own])

            found = minimize(
                quadratize, vectors[active][:, own], max_iterations=EVALUATIONS, cost_tolerance=TOLERANCE
            )
            vectors = vectors.clone()
            vectors[active[:, None], own] = found.x
            iterations[active] += found.iterations
            stop[active], cost[active], converged[active] = found.stop, found.cost, found.converged
            active = active[~(found.converged & (found.iterations <= SETTLED))]
            if len(active) == 0:
                break
    matches = energy.match(vectors, everyone, stages[-1], energy.joints_of(vectors))
    terms = energy.costs(vectors, everyone, stages[-1], matches)
    return vectors, StepReport(converged, iterations, stop, cost, terms)


def _columns(body: BodyModel, free_age: bool) -> tuple[list[int], list[int]]:
    """Columns of a frame's own parameters, and of the shape that all frames share."""
    angles = 3 * body.num_joints
    age = angles + body.num_betas
    own = [*range(angles), *range(age + 1, age + 4)]
    return own, [*range(angles, age + free_age)]


def _age_bounds(
    like: Tensor, num_own: int, shared: list[int], free_age: bool
) -> tuple[Tensor | None, Tensor | None]:
    if not free_age:
        return None, None
    lower = like.new_full((num_own + len(shared),), -torch.inf)
    upper = -lower
    lower[-1], upper[-1] = 0, 1
    return lower, upper


def step_report(solutions: Sequence[Solution], terms: dict[str, Tensor]) -> StepReport:
    """How problems ended that were solved again and again."""
    last = solutions[-1]
    iterations = torch.stack([solution.iterations for solution in solutions]).sum(0)
    return StepReport(last.converged, iterations, last.stop, last.cost, terms)
