"""Bodies fitted to terms, stage by stage, thousands at once and each for itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.engine.rowwise import own_precision
from agebody.optim.least_squares import Quadratic, minimize
from agebody.optim.terms import State, Term, Unknowns
from agebody.parameters import GROUPS, BodyParameters, group_slices

BETA_RANGE = 5.0
"""Largest size of a beta."""


class Stage(NamedTuple):
    """One step of a schedule."""

    terms: Mapping[str, tuple[float, Term]]
    """By name: a weight of its cost, and the term."""
    groups: Sequence[str] = GROUPS
    """Which parameters are free; see `Unknowns`."""
    joints: Sequence[str] | None = None
    """Which joints of the pose are; all if None."""
    max_iterations: int = 30
    cost_tolerance: float = 1e-4
    """Share of the cost that a step must gain for the stage to go on."""
    damping: float = 1e-2
    """Of the first step; see `minimize`."""


class FitReport(NamedTuple):
    """How fits ended, one entry a body."""

    converged: Bool[Tensor, "*batch"]
    """Whether the last stage came to rest, rather than running out of iterations."""
    iterations: Int[Tensor, "*batch"]
    """Steps tried, of all stages."""
    stop: Int[Tensor, "*batch"]
    """Why the last stage ended, a `Stop`."""
    cost: Float[Tensor, "*batch"]
    """Of the last stage."""
    terms: dict[str, Float[Tensor, "*batch"]]
    """What each term of the last stage contributes to it."""


class Fit(NamedTuple):
    """Bodies, and how they were found."""

    parameters: BodyParameters
    report: FitReport


def fit_bodies(
    body: BodyModel,
    stages: Sequence[Stage],
    start: BodyParameters,
    *,
    age_range: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    beta_range: float = BETA_RANGE,
) -> Fit:
    """Minimises the terms of each stage in turn, from where the stage before it ended.

    Args:
        body: the layer.
        stages: at least one. Terms are of the bodies of ``start``.
        start: (B, ...), finite.
        age_range: lowest and highest age offset, numbers or (B,).
        beta_range: largest size of a beta.

    Returns:
        Bodies with finite parameters: one whose residuals are not finite is left where it was, and says so.

    Raises:
        ValueError: there are no stages, a stage names groups or joints that there are not, or the start is
            of another shape.
    """
    if not stages:
        raise ValueError("stages: expected at least one")
    for name, (weight, _) in (item for stage in stages for item in stage.terms.items()):
        if not 0 <= weight < math.inf:
            raise ValueError(f"stages: expected weights from 0 on, got {weight} of {name!r}")
    if not start.vector().isfinite().all():
        raise ValueError("start: expected finite numbers")
    with torch.no_grad(), own_precision(body.device):
        vector = start.vector().detach()
        low, high = _bounds(body, vector, age_range, beta_range)
        rows = torch.arange(len(vector), device=vector.device)
        vector = torch.minimum(torch.maximum(vector, low), high)
        iterations = torch.zeros_like(rows)
        for stage in stages:
            unknowns = Unknowns(body, stage.groups, stage.joints)
            vector = torch.cat((_shortest(vector[:, :3]), vector[:, 3:]), 1)
            columns = unknowns.columns

            def quadratize(
                x: Tensor,
                rows: Tensor,
                stage: Stage = stage,
                unknowns: Unknowns = unknowns,
                whole: Tensor = vector,
            ) -> Quadratic:
                guess = whole[rows].index_copy(1, unknowns.columns, x)
                return add_terms(stage.terms, State(body, guess, rows, unknowns))[0]

            solution = minimize(
                quadratize, vector[:, columns], lower=low[:, columns], upper=high[:, columns],
                max_iterations=stage.max_iterations, cost_tolerance=stage.cost_tolerance,
            )  # fmt: skip
            vector = vector.index_copy(1, columns, solution.x)
            iterations = iterations + solution.iterations
        unknowns = Unknowns(body, stages[-1].groups, stages[-1].joints)
        costs = add_terms(stages[-1].terms, State(body, vector, rows, unknowns))[1]
        report = FitReport(solution.converged, iterations, solution.stop, solution.cost, costs)  # pyright: ignore[reportPossiblyUnboundVariable]
        return Fit(BodyParameters.from_vector(vector, body), report)


def add_terms(
    terms: Mapping[str, tuple[float, Term]], state: State
) -> tuple[Quadratic, dict[str, Float[Tensor, " b"]]]:
    """The sum of weighted terms, and the cost of each."""
    batch, size = len(state.rows), len(state.unknowns)
    like = state.parameters.betas
    cost, gradient = like.new_zeros(batch), like.new_zeros(batch, size)
    normal = like.new_zeros(batch, size, size)
    costs = {}
    for name, (weight, term) in terms.items():
        block = term(state) if weight else None
        if block is None:
            continue
        costs[name] = weight * block.cost
        cost += costs[name]
        gradient[:, block.where].add_(block.gradient, alpha=weight)
        normal[:, block.where, block.where].add_(block.normal, alpha=weight)
    return Quadratic(cost, gradient, normal), costs


def _bounds(
    body: BodyModel, vector: Tensor, ages: tuple[float | Tensor, float | Tensor], beta_range: float
) -> tuple[Tensor, Tensor]:
    expected = (len(vector), group_slices(body)["transl"].stop)
    if vector.shape != expected:
        raise ValueError(
            f"start: expected parameters (B, {expected[1]}) of this body, got {tuple(vector.shape)}"
        )
    low, high = torch.full_like(vector, -torch.inf), torch.full_like(vector, torch.inf)
    slices = group_slices(body)
    low[:, slices["betas"]], high[:, slices["betas"]] = -beta_range, beta_range
    if body.age_anchors:
        for bound, age in zip((low, high), ages, strict=True):
            bound[:, slices["age_offset"]] = torch.as_tensor(
                age, dtype=vector.dtype, device=vector.device
            ).expand(len(vector))[:, None]
    return low, high


def _shortest(vectors: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    """The same rotations by axis-angle vectors no longer than pi."""
    angle = vectors.norm(dim=-1, keepdim=True)
    turns = torch.round(angle / (2 * torch.pi))
    return vectors * (1 - turns * 2 * torch.pi / torch.where(turns > 0, angle, 1))
