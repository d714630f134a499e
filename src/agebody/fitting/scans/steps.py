"""The first two steps of a fit to scans: one shape from a few frames, then the pose of each frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.engine.trees import take_rows
from agebody.fitting.scans.terms import TERMS, Matches, ScanTerms
from agebody.optim.problem import Stage
from agebody.optim.stages import FitReport, fit_bodies
from agebody.parameters import GROUPS, BodyParameters, group_slices

POSE = ("global_orient", "body_pose", "transl")
SETTLED = 3
"""A round that converges within this many steps is the last of its stage: the next would change little."""
APART = 0.03
"""Distance of a joint beyond which two results differ [m]."""
CHUNK = 64
"""Frames whose poses are solved together."""


def fit_shape(
    scans: ScanTerms,
    starts: Sequence[Float[Tensor, "F P"]],
    chosen: Int[Tensor, " n"],
    stages: Sequence[Stage],
    rounds: int,
    free_age: bool,
) -> tuple[Float[Tensor, "F P"], FitReport]:
    """Fit one shape and the poses of a few frames (step 1): one problem, whose frames share the shape alone.

    All stages run from each start, and the cheapest result is kept. Where two agree before the last
    stage, which is the most expensive, only the cheaper one is continued.

    Args:
        scans: maker of the terms.
        starts: vectors of all frames, one or more.
        chosen: the frames that determine the shape.
        stages: at least one.
        rounds: of each stage, at most; between them, visibility is recomputed.
        free_age: whether the age offset is free.

    Returns:
        All vectors with the new shape, those of the chosen frames with their poses; a report of one problem.
    """
    groups = [group for group in GROUPS if free_age or group != "age_offset"]

    def run(found: Tensor, stages: Sequence[Stage]) -> tuple[Tensor, list[FitReport]]:
        reports = []
        for stage in stages:
            for _ in range(rounds):
                matches = scans.match(found, chosen, collisions=uses(stage, "collision"))
                found, report = _solve(scans, found[None], chosen, matches, stage, groups)
                found = found[0]
                reports.append(report)
                if _is_settled(report).all():
                    break
        return found, reports

    def cost(each: tuple[Tensor, Tensor, list[FitReport]]) -> float:
        return float(each[2][-1].cost[0]) if each[2] else 0.0

    begun = sorted([(start, *run(start[chosen], stages[:-1])) for start in starts], key=cost)
    joints = [scans.joints_of(found) for _, found, _ in begun]
    ended = []
    for number, (start, found, reports) in enumerate(begun):
        if number == 0 or (joints[number] - joints[0]).norm(dim=-1).max() > APART:
            found, more = run(found, stages[-1:])
            ended.append((start, found, reports + more))
    vectors, found, reports = min(ended, key=cost)
    vectors = vectors.clone()
    vectors[chosen] = found
    slices = group_slices(scans.body)
    shape = slice(slices["betas"].start, slices["age_offset"].stop if free_age else slices["betas"].stop)
    vectors[:, shape] = found[0, shape]
    iterations = torch.stack([report.iterations for report in reports]).sum(0)
    return vectors, reports[-1]._replace(iterations=iterations)


def fit_poses(
    scans: ScanTerms,
    vectors: Float[Tensor, "F P"],
    chosen: Int[Tensor, " n"],
    stages: Sequence[Stage],
    rounds: int,
) -> tuple[Float[Tensor, "F P"], FitReport]:
    """Fit the pose of each frame with its shape fixed (step 2); arguments and results as of `fit_shape`.

    The chosen frames have their poses already, and run through the last stage alone.
    """
    vectors, everyone = vectors.clone(), torch.arange(len(vectors), device=vectors.device)
    zero, costs = torch.zeros_like(everyone), torch.zeros_like(vectors[:, 0])
    total = FitReport(zero.bool(), zero.clone(), zero.clone(), costs, {}, zero.bool())
    others = everyone[~torch.isin(everyone, chosen)]
    for number, stage in enumerate(stages, 1):
        active = everyone if number == len(stages) else others
        for _ in range(rounds if len(active) else 0):
            joints = scans.joints_of(vectors)
            matches = scans.match(vectors, everyone, collisions=uses(stage, "collision"), joints=joints)
            unsettled = []
            for rows in active.split(CHUNK):
                part = take_rows(matches, rows)
                vectors[rows], report = _solve(scans, vectors[rows], rows, part, stage, POSE)
                total.iterations[rows] += report.iterations
                total.converged[rows], total.accepted[rows] = report.converged, report.accepted
                total.stop[rows], total.cost[rows] = report.stop, report.cost
                for name in {*total.terms, *report.terms}:
                    term = total.terms.setdefault(name, torch.zeros_like(costs))
                    term[rows] = report.terms.get(name, 0.0)
                unsettled.append(rows[~_is_settled(report)])
            active = torch.cat(unsettled)
            if len(active) == 0:
                break
    return vectors, total


def _is_settled(report: FitReport) -> Bool[Tensor, " n"]:
    """Return whether a round is the last of its stage: one of few steps."""
    return report.converged & (report.iterations <= SETTLED)


def uses(stage: Stage, name: str) -> bool:
    """Return whether a term has a weight in a stage."""
    return stage.weights.get(name, 1.0) != 0


def _solve(
    scans: ScanTerms,
    vectors: Float[Tensor, "*clip b P"],
    rows: Int[Tensor, " b"],
    matches: Matches,
    stage: Stage,
    groups: Sequence[str],
) -> tuple[Float[Tensor, "*clip b P"], FitReport]:
    """Fit frames for one round, each alone, or all as one clip (1, b, P)."""
    terms = scans.make(rows, matches)
    found, report = fit_bodies(
        scans.body,
        terms,
        [stage._replace(groups=[group for group in stage.groups if group in groups])],
        BodyParameters.from_vector(vectors, scans.body),
        age_bounds=(0.0, 1.0) if "age_offset" in groups else (-math.inf, math.inf),
        repeated=1.0,  # in InfantNet's objective, the prior of the shape counts in each frame, as other terms
        names=TERMS,
    )
    return found.vector(), report
