"""Bodies fitted to terms, stage by stage: single bodies, and clips of frames that share shape and age."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import apply_mask, read_count, read_nonnegative, read_positive, read_share
from agebody.engine.batched import own_precision
from agebody.optim.least_squares import Solution, minimize
from agebody.optim.motion import Motion
from agebody.optim.problem import REPEATED, Problem, Stage, parameter_bounds
from agebody.optim.standard_errors import StandardErrors
from agebody.optim.state import Term
from agebody.parameters import BodyParameters, group_slices

BETA_BOUND = 5.0
"""Largest absolute value of a beta."""
MAX_ERROR = 16.0 / 480
"""Mean error below which InfantNet keeps fits, 16 pixels, over the longer side of a box of 480 pixels: pixels
alone would be strict with large photographs, and loose with small people."""
MAX_LIMITS = 4.5
"""Cost of angles beyond the ranges of motion of a body that is accepted: three standard deviations in all."""


class FitReport(NamedTuple):
    """How fits ended; per body, or per clip."""

    converged: Bool[Tensor, "*batch"]
    """Whether the last stage converged, rather than running out of iterations; false, too, where a keypoint
    that was seen ends behind its camera, or nearer than 0.1 m."""
    iterations: Int[Tensor, "*batch"]
    """Steps tried, over all stages and starts."""
    stop: Int[Tensor, "*batch"]
    """Why the last stage ended, a `Stop`."""
    cost: Float[Tensor, "*batch"]
    """Cost of the last stage."""
    terms: dict[str, Float[Tensor, "*batch"]]
    """Part of each term in it."""
    accepted: Bool[Tensor, "*batch"]
    """Whether the fit converged, to a probable person who is where the observations are: with a mean error
    below 3.3 % of the extent of the observed points (InfantNet's 16 pixels for a box of 480), no beta at its
    bound of 5, and a cost of the "limits" of joints, if it has this term, below 4.5 per frame. Errors that
    bodies can follow pass, such as a mirrored image. Of `fit_bodies`, without an error."""

    def accept(
        self,
        betas: Float[Tensor, "*batch N"],
        frames: int | Int[Tensor, "*batch"] = 1,
        error: float | Float[Tensor, "*batch"] = 0.0,
    ) -> FitReport:
        """Return the report with ``accepted``; the error is relative to the extent of the observed points."""
        limits = self.terms.get("limits", torch.zeros_like(self.cost)) < MAX_LIMITS * frames
        probable = limits & (betas.abs() < BETA_BOUND - 1e-3).all(-1)
        near = torch.zeros_like(self.cost) + error < MAX_ERROR
        return self._replace(accepted=self.converged & probable & near)


class Fit(NamedTuple):
    """Bodies fitted to observations."""

    parameters: BodyParameters
    """The bodies."""
    report: FitReport
    """How the fits ended."""
    error: Float[Tensor, "*observed"]
    """Mean distance between the points found and observed, weighted by confidence: [pixels] in images, [m] in
    space. NaN where no point counts."""
    start_error: Float[Tensor, "*observed"]
    """The same before the first step."""
    standard_errors: StandardErrors | None = None
    """Uncertainty of age, stature and depth; None if not requested, and for points in space."""


def fit_error(
    found: Float[Tensor, "*batch K D"],
    observed: Float[Tensor, "*batch K D"],
    weights: Float[Tensor, "*batch K"],
) -> Float[Tensor, "*batch"]:
    """Return mean distances between points, weighted by confidence; NaN where no point counts."""
    distances = apply_mask(found - observed, weights, 1).norm(dim=-1)
    return (weights * distances).sum(-1) / weights.sum(-1)


def fit_bodies(
    body: BodyModel,
    terms: Mapping[str, Term | Motion],
    stages: Sequence[Stage],
    start: BodyParameters,
    *,
    present: Bool[Tensor, "C T"] | None = None,
    age_bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    beta_bound: float | Float[Tensor, "C N"] = BETA_BOUND,
    repeated: float = REPEATED,
    names: Collection[str] = (),
) -> tuple[BodyParameters, FitReport]:
    """Minimize the weighted sum of terms, each stage from where the one before it ended.

    Bodies are independent, or frames of clips, which share betas and age offset and may be coupled by a
    `Motion`. A term of betas and age offset alone counts 1 + ``repeated`` (T - 1) times per clip.

    Args:
        body: the layer.
        terms: by name; made for the bodies of ``start`` in one flat batch.
        stages: at least one.
        start: (B, ...) bodies, or (C, T, ...) clips, finite. Clips start from the mean shape of their frames.
        present: frames that belong to each clip, the first ones; all if None.
        age_bounds: lowest and highest age offset, numbers or (B,) or (C,).
        beta_bound: largest absolute value of a beta, or of each coefficient (B, N) or (C, N); 0 fixes it.
        repeated: share of the variance of errors that the frames of a clip have in common.
        names: of terms that stages may name although they are missing here.

    Returns:
        Finite parameters in the shape of ``start``, and a report per body or clip. A body whose residuals are
        not finite stays where it was.
    """
    expect_body(body)
    repeated = read_share("repeated", repeated)
    check_stages(stages, (*terms, *(name for name in names if name not in terms)), terms)
    vectors = start.vector().detach()
    expected = group_slices(body)["transl"].stop
    if vectors.dim() not in (2, 3) or vectors.shape[-1] != expected:
        raise ValueError(
            f"start: expected (B, ...) or (C, T, ...) of {expected} parameters, got {tuple(vectors.shape)}"
        )
    if not vectors.isfinite().all():
        raise ValueError("start: expected finite numbers")
    batch = vectors.shape[:-1]
    vectors = vectors if len(batch) == 2 else vectors[:, None]
    if present is None:
        present = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    with torch.no_grad(), own_precision(body.device):
        low, high = parameter_bounds(body, vectors, age_bounds, beta_bound)
        vectors = _share_shape(body, vectors, present)
        vectors = torch.minimum(torch.maximum(vectors, low), high)
        iterations = torch.zeros_like(present[:, 0], dtype=torch.int64)
        for stage in stages[:-1]:
            vectors = _shortest(body, vectors)
            problem = Problem(body, terms, stage, vectors, present, repeated)
            solution = _minimize(problem, stage, vectors, low, high)
            vectors = problem.unpack(solution.x)
            iterations = iterations + solution.iterations
        stage, vectors = stages[-1], _shortest(body, vectors)
        problem = Problem(body, terms, stage, vectors, present, repeated)
        solution = _minimize(problem, stage, vectors, low, high)
        vectors = problem.unpack(solution.x)
        iterations = iterations + solution.iterations
        turned = _joint_angles(body, vectors)[..., 1:].flatten(1).amax(1) > math.pi
        if turned.any():  # continue from the same rotations as shorter vectors, whose cost is lower
            rows = turned.nonzero()[:, 0]
            again = _minimize(problem, stage, _shortest(body, vectors), low, high, rows)
            pairs = zip(solution, again, strict=True)
            solution = Solution(*(old.index_copy(0, rows, new) for old, new in pairs))
            vectors = problem.unpack(solution.x)
            iterations = iterations.index_add(0, rows, again.iterations)
        costs = problem.costs(solution.x)
        ends = solution.converged, iterations, solution.stop, solution.cost, costs
        betas = vectors[:, 0, group_slices(body)["betas"]]
        report = FitReport(*ends, solution.converged).accept(betas, present.sum(1))
        return BodyParameters.from_vector(vectors.reshape(*batch, expected), body), report


def _minimize(
    problem: Problem,
    stage: Stage,
    vectors: Float[Tensor, "C T P"],
    low: Float[Tensor, "C 1 P"],
    high: Float[Tensor, "C 1 P"],
    rows: Int[Tensor, " R"] | None = None,
) -> Solution:
    """Solve the problem of a stage for all clips, or for those with the indices ``rows``."""
    rows = torch.arange(len(vectors), device=vectors.device) if rows is None else rows
    start, lower, upper = (problem.pack(part)[rows] for part in (vectors, low, high))
    return minimize(
        lambda x, some: problem.quadratize(x, rows[some]),
        start,
        lower=lower,
        upper=upper,
        max_iterations=stage.max_iterations,
        cost_tolerance=stage.cost_tolerance,
    )


def fit_in_batches(
    fit: Callable[[Int[Tensor, " R"]], Fit],
    count: int,
    batch_size: int,
    device: torch.device,
    *,
    frames: int = 1,
) -> Fit:
    """Return ``count`` fits by a function of indices, at most ``batch_size`` frames at a time."""
    read_count("batch_size", batch_size, least=1)
    each = torch.arange(count, device=device).split(max(1, batch_size // frames))
    parts = [tree_flatten(fit(rows)) for rows in each]
    leaves = zip(*(leaves for leaves, _ in parts), strict=True)
    whole = [None if part[0] is None else torch.cat(part) for part in leaves]
    return tree_unflatten(whole, parts[0][1])


def check_stages(
    stages: Sequence[Stage], names: Collection[str], terms: Mapping[str, Any] | None = None
) -> None:
    """Check the names, weights and scales of stages; scales need a robust cost in ``terms``."""
    if not isinstance(stages, Sequence) or not all(isinstance(stage, Stage) for stage in stages):
        raise TypeError(f"stages: expected a list of Stage, got {reprlib.repr(stages)}")
    if not stages:
        raise ValueError("stages: expected at least one")
    for stage in stages:
        read_count("stages: max_iterations", stage.max_iterations)
        read_nonnegative("stages: cost_tolerance", stage.cost_tolerance)
        for name, given in (("weights", stage.weights), ("scales", stage.scales)):
            if not isinstance(given, Mapping):
                raise TypeError(f"stages: expected {name} by the names of terms, got {reprlib.repr(given)}")
        unknown = sorted({*stage.weights, *stage.scales} - {*names})
        if unknown:
            raise ValueError(
                f"stages: expected names of terms ({', '.join(names)}), got {', '.join(unknown)}"
            )
        for name, weight in stage.weights.items():
            read_nonnegative("stages", weight, "a weight", f" of {name!r}")
        for name, scale in stage.scales.items():
            read_positive("stages", scale, f"a scale of {name!r}")
            if terms and name in terms and not hasattr(terms[name], "robust_scale"):
                raise ValueError(f"stages: expected scales of terms with a robust cost, got one of {name!r}")


def _share_shape(
    body: BodyModel, vectors: Float[Tensor, "C T P"], present: Bool[Tensor, "C T"]
) -> Float[Tensor, "C T P"]:
    """Return clips with the mean betas and age offset of their frames in each of them."""
    if vectors.shape[1] == 1:
        return vectors
    slices = group_slices(body)
    shape = slice(slices["betas"].start, slices["age_offset"].stop)
    share = present / present.sum(1, keepdim=True)
    vectors = vectors.clone()
    vectors[..., shape] = (share[..., None] * vectors[..., shape]).sum(1, keepdim=True)
    return vectors


def _shortest(body: BodyModel, vectors: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch P"]:
    """Return the same rotations of all joints by axis-angle vectors no longer than pi."""
    angle = _joint_angles(body, vectors)[..., None]
    turns = torch.round(angle / (2 * torch.pi))
    factor = 1 - turns * 2 * torch.pi / torch.where(turns > 0, angle, 1)
    end = 3 * body.num_joints
    turned = (vectors[..., :end].unflatten(-1, (-1, 3)) * factor).flatten(-2)
    return torch.cat((turned, vectors[..., end:]), -1)


def _joint_angles(body: BodyModel, vectors: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch J"]:
    """Return the angles of all joints' rotations, the root's first."""
    return vectors[..., : 3 * body.num_joints].unflatten(-1, (-1, 3)).norm(dim=-1)
