"""Bodies fitted to terms, stage by stage: single bodies, and clips of frames that share shape and age."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from agebody.body import BodyModel
from agebody.checks import apply_mask
from agebody.engine.batched import own_precision
from agebody.engine.deform import age_slopes
from agebody.optim.least_squares import ChainQuadratic, Quadratic, Solution, minimize
from agebody.optim.motion import Motion, Moves
from agebody.optim.terms import Block, FreeVariables, State, Term, root_layout
from agebody.parameters import GROUPS, BodyParameters, group_slices

BETA_BOUND = 5.0
"""Largest absolute value of a beta."""


class Stage(NamedTuple):
    """One stage of a fit: how much each term counts, and what is free."""

    weights: Mapping[str, float] = {}
    """By name of a term, a factor of its cost: 1 if missing, 0 leaves it out."""
    scales: Mapping[str, float] = {}
    """By name of a term, a factor of its robust scale: 1 if missing."""
    groups: Sequence[str] = GROUPS
    """Which parameters are free; see `FreeVariables`."""
    joints: Sequence[str] | None = None
    """Which joints of the pose are free; all if None."""
    max_iterations: int = 30
    cost_tolerance: float = 1e-4
    """Fraction of the cost by which a step must reduce it for the stage to go on."""


class FitReport(NamedTuple):
    """How fits ended; per body, or per clip."""

    converged: Bool[Tensor, "*batch"]
    """Whether the last stage converged, rather than running out of iterations."""
    iterations: Int[Tensor, "*batch"]
    """Steps tried, over all stages and starts."""
    stop: Int[Tensor, "*batch"]
    """Why the last stage ended, a `Stop`."""
    cost: Float[Tensor, "*batch"]
    """Cost of the last stage."""
    terms: dict[str, Float[Tensor, "*batch"]]
    """Part of each term in it."""


class StandardErrors(NamedTuple):
    """Standard deviations of what was estimated, given the observations and the priors.

    They come from the normal matrix of the last step: near the estimate, the cost is half of a squared
    distance in these units. They do not know of other minima, such as that of a person who faces the other
    way, nor of errors that the terms do not describe. Infinite where nothing determines the number.
    """

    age_offset: Float[Tensor, "*batch"]
    """0 where it is known."""
    stature: Float[Tensor, "*batch"]
    """[m]"""
    depth: Float[Tensor, "*frames"]
    """Of the root joint, along the axis of the camera, or of the first one [m]."""


class Fit(NamedTuple):
    """Bodies fitted to observations."""

    parameters: BodyParameters
    """The bodies."""
    report: FitReport
    """How the fits ended."""
    error: Float[Tensor, "*observed"]
    """Mean distance between the points found and observed, weighted by confidence: [pixels] in images, [m] in
    space. 0 where no point counts."""
    start_error: Float[Tensor, "*observed"]
    """The same before the first step."""
    standard_errors: StandardErrors | None = None
    """How well size and depth are known; None if they were not asked for, as of points in space."""


def fit_bodies(
    body: BodyModel,
    terms: Mapping[str, Term | Motion],
    stages: Sequence[Stage],
    start: BodyParameters,
    *,
    present: Bool[Tensor, "C T"] | None = None,
    age_bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    beta_bound: float = BETA_BOUND,
) -> tuple[BodyParameters, FitReport]:
    """Minimize the weighted sum of terms, each stage from where the one before it ended.

    Bodies are independent, or come as clips whose frames share betas and age offset, and meet in a `Motion`
    besides. A term that depends on betas and age offset alone counts once per clip.

    Args:
        body: the layer.
        terms: by name; made for the bodies of ``start`` in one flat batch.
        stages: at least one.
        start: (B, ...) bodies, or (C, T, ...) clips, finite. Clips begin at the mean shape of their frames.
        present: frames that belong to each clip, the first ones; all if None.
        age_bounds: lowest and highest age offset, numbers or (B,) or (C,).
        beta_bound: largest absolute value of a beta.

    Returns:
        Finite parameters in the shape of ``start``, and a report per body or clip. A body whose residuals are
        not finite stays where it was.
    """
    _check_stages(terms, stages)
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
        low, high = _bounds(body, vectors, age_bounds, beta_bound)
        vectors = _share_shape(body, vectors, present)
        vectors = torch.minimum(torch.maximum(vectors, low), high)
        iterations = torch.zeros_like(present[:, 0], dtype=torch.int64)
        for stage in stages[:-1]:
            vectors = _shortest(body, vectors)
            problem = _Problem(body, terms, stage, vectors, present)
            solution = _minimize(problem, stage, vectors, low, high)
            vectors = problem.unpack(solution.x)
            iterations = iterations + solution.iterations
        stage, vectors = stages[-1], _shortest(body, vectors)
        problem = _Problem(body, terms, stage, vectors, present)
        solution = _minimize(problem, stage, vectors, low, high)
        vectors = problem.unpack(solution.x)
        iterations = iterations + solution.iterations
        turned = _joint_angles(body, vectors)[..., 1:].flatten(1).amax(1) > math.pi
        if turned.any():  # go on from the same rotations by shorter vectors, which cost less
            rows = turned.nonzero()[:, 0]
            again = _minimize(problem, stage, _shortest(body, vectors), low, high, rows)
            pairs = zip(solution, again, strict=True)
            solution = Solution(*(old.index_copy(0, rows, new) for old, new in pairs))
            vectors = problem.unpack(solution.x)
            iterations = iterations.index_add(0, rows, again.iterations)
        costs = problem.costs(solution.x)
        report = FitReport(solution.converged, iterations, solution.stop, solution.cost, costs)
        return BodyParameters.from_vector(vectors.reshape(*batch, expected), body), report


def _minimize(
    problem: _Problem,
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


def standard_errors(
    body: BodyModel,
    terms: Mapping[str, Term | Motion],
    stage: Stage,
    parameters: BodyParameters,
    axis: Float[Tensor, "C T 3"],
    *,
    present: Bool[Tensor, "C T"] | None = None,
    age_bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
) -> StandardErrors:
    """Return the standard errors of fitted clips (C), and of the depth in each of their frames (C, T).

    With the normal matrix N and a number's gradient g, the variance is ``gᵀ N⁻¹ g`` (the delta method). The
    bounds of the age cut its distribution off, and with it what depends on the age: the error is the root
    mean square distance from the estimate within the bounds.

    Args:
        body: the layer.
        terms: as of `fit_bodies`.
        stage: the last one.
        parameters: (C, T, ...) its result.
        axis: directions in the world along which the depth counts.
        present: as of `fit_bodies`.
        age_bounds: as of `fit_bodies`.
    """
    vectors = parameters.vector()
    clips, frames = vectors.shape[:2]
    if present is None:
        present = torch.ones((clips, frames), dtype=torch.bool, device=vectors.device)
    problem = _Problem(body, terms, stage, vectors, present)
    x, rows = problem.pack(vectors), torch.arange(clips, device=vectors.device)
    model = problem.quadratize(x, rows)
    low, high = _bounds(body, vectors, age_bounds, math.inf)
    columns = group_slices(body)["age_offset"].start
    fixed = problem.pack(low) == problem.pack(high)
    flat = parameters.map(lambda part: part.flatten(0, 1))
    state = State(body, flat.vector(), torch.arange(clips * frames, device=x.device), problem.free)
    _, by_free = state.points(root_layout(body.asset.joint_names[0]))
    by_depth = (axis.flatten(0, 1)[..., None] * by_free[:, 0]).sum(-2).unflatten(0, (clips, frames))
    by_stature = vectors.new_zeros(by_depth[:, 0].shape)
    by_age = torch.zeros_like(by_stature)
    by_shape = _stature_gradient(body, flat.map(lambda part: part[::frames]))
    for name, part in by_shape.items():
        if name in problem.free.parts:
            by_stature[:, problem.free.parts[name][0]] = part
    if "age_offset" in problem.free.parts:
        by_age[:, problem.free.parts["age_offset"][0]] = 1

    def pack(gradient: Tensor, frame: int) -> Tensor:
        """Return a gradient by the free variables of a frame, as one by those of the clip."""
        own = gradient.new_zeros(clips, problem.frames, len(problem.own))
        own[:, frame] = gradient[:, problem.own]
        return torch.cat((own.flatten(1), gradient[:, problem.shared]), 1)

    gradients = [pack(by_age, 0), pack(by_stature, 0), *(pack(by_depth[:, t], t) for t in range(frames))]
    gradients = [torch.where(fixed, 0, gradient) for gradient in gradients]
    solved = [model.solve(gradient, torch.zeros_like(x), fixed) for gradient in gradients]
    variance = torch.stack([(g * s).sum(-1) for g, s in zip(gradients, solved, strict=True)], -1)
    with_age = torch.stack([(g * solved[0]).sum(-1) for g in gradients], -1)
    own = variance[:, :1]
    share = torch.where(own > 0, with_age / torch.where(own > 0, own, 1), 0)
    cut = _cut_variance(own[:, 0], parameters.age_offset[:, 0], *(b[:, 0, columns] for b in (low, high)))
    variance = variance - share.square() * (own - cut[:, None])
    sd = torch.where(variance.isfinite(), variance.clamp(min=0).sqrt(), torch.inf)
    return StandardErrors(sd[:, 0], sd[:, 1], sd[:, 2:])


def _stature_gradient(body: BodyModel, parameters: BodyParameters) -> dict[str, Float[Tensor, "B _"]]:
    """Return the derivatives of the stature by betas and by the age offset.

    At rest, heights of vertices are affine in the coefficients; the stature is that of the highest less that
    of the lowest.
    """
    directions = torch.from_numpy(body.identity_directions[..., 1]).to(body.device, body.dtype)  # (C, V)
    coefficients, _ = body.identity(parameters.betas, parameters.age_offset)
    heights = coefficients @ directions
    by_coefficients = directions.T[heights.argmax(-1)] - directions.T[heights.argmin(-1)]
    by_betas = by_coefficients[:, 1 : 1 + body.num_betas]
    if not body.age_anchors:
        return {"betas": by_betas}
    inner, slopes = (torch.from_numpy(part).to(by_betas) for part in age_slopes(body.age_anchors))
    growth = slopes[torch.bucketize(parameters.age_offset.contiguous(), inner, right=True)]
    by_age = (by_coefficients[:, 1 + body.num_betas :] * growth).sum(-1, keepdim=True)
    return {"betas": by_betas, "age_offset": by_age}


def _cut_variance(variance: Tensor, mode: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the mean squared distance from the mode of a normal distribution, within bounds."""
    widest = 100 * (high - low).double()  # beyond, it is uniform
    sd = variance.double().sqrt().nan_to_num(math.inf).minimum(widest)
    unit = torch.where(sd > 0, sd, 1)
    ends = [((bound - mode) / unit).clamp(-40, 40) for bound in (low, high)]
    density = [torch.exp(-end.square() / 2) / math.sqrt(2 * math.pi) for end in ends]
    mass = torch.special.ndtr(ends[1]) - torch.special.ndtr(ends[0])
    lost = (ends[1] * density[1] - ends[0] * density[0]) / torch.where(mass > 0, mass, 1)
    return (sd.square() * (1 - lost)).clamp(min=0).to(variance)


class _Problem:
    """The least-squares problem of one stage.

    The variables of a clip are those of each frame, then the shared ones. A single body is a clip of one
    frame that shares nothing.
    """

    def __init__(
        self,
        body: BodyModel,
        terms: Mapping[str, Term | Motion],
        stage: Stage,
        vectors: Float[Tensor, "C T P"],
        present: Bool[Tensor, "C T"],
    ) -> None:
        self.body, self.vectors, self.present = body, vectors, present
        self.free = FreeVariables(body, stage.groups, stage.joints)
        self.frames = vectors.shape[1]
        self.motion: tuple[str, float, Motion] | None = None
        self.terms: list[tuple[str, float, Term]] = []
        for name, term in terms.items():
            weight = stage.weights.get(name, 1.0)
            if not weight:
                continue
            if isinstance(term, Motion):
                self.motion = (name, weight, term) if self.frames > 1 else None
            else:
                self.terms.append((name, weight, _scaled(term, stage.scales.get(name, 1.0))))
        every = torch.arange(len(self.free), device=vectors.device)
        self.shape = self.free.shape_slice() if self.frames > 1 else slice(0, 0)
        self.shared = every[self.shape]
        self.own = torch.cat((every[: self.shape.start], every[self.shape.stop :]))

    def pack(self, vectors: Float[Tensor, "C t P"]) -> Float[Tensor, "C N"]:
        """Return the variables of clips; the shared ones are read from the first frame."""
        free = vectors[..., self.free.columns].expand(-1, self.frames, -1)
        return torch.cat((free[..., self.own].flatten(1), free[:, 0, self.shared]), 1)

    def unpack(self, x: Float[Tensor, "b N"], rows: Tensor | None = None) -> Float[Tensor, "b T P"]:
        """Return all parameters of clips, or of those with the indices ``rows``."""
        vectors = self.vectors if rows is None else self.vectors[rows]
        split = self.frames * len(self.own)
        own, shared = x[:, :split].unflatten(1, (self.frames, -1)), x[:, None, split:]
        vectors = vectors.index_copy(-1, self.free.columns[self.own], own)
        columns = self.free.columns[self.shared]
        return vectors.index_copy(-1, columns, shared.expand(-1, self.frames, -1))

    def quadratize(self, x: Tensor, rows: Tensor) -> Quadratic | ChainQuadratic:
        """Return the weighted sum of the terms of some clips; see `minimize`."""
        state = self._state(x, rows)
        by_frame, by_clip = [], []
        for _, weight, block in self._blocks(state):
            if self._per_clip(block):
                first = Quadratic(*(part[:: self.frames] for part in block.quadratic))
                by_clip.append((weight, Block(first, block.where)))
            else:
                by_frame.append((weight, block))
        frames = add_blocks(by_frame, len(state.rows), len(self.free), x)
        if self.frames == 1:
            return frames
        clips = add_blocks(by_clip, len(rows), len(self.free), x)
        present = self.present[rows]
        cost, gradient, normal = (
            apply_mask(part.unflatten(0, present.shape), present, part.dim() - 1) for part in frames
        )
        by_own, by_shared = normal[..., self.own, :], (normal.sum(1) + clips.normal)[:, self.shared]
        model = ChainQuadratic(
            cost.sum(1) + clips.cost,
            gradient[..., self.own],
            (gradient.sum(1) + clips.gradient)[:, self.shared],
            by_own[..., self.own],
            None,
            by_own[..., self.shared],
            by_shared[..., self.shared],
        )
        if self.motion is None:
            return model
        _, weight, motion = self.motion
        return self._add_motion(model, motion.moves(state, present), weight)

    def costs(self, x: Tensor) -> dict[str, Float[Tensor, " C"]]:
        """Return the part of each term in the cost."""
        state = self._state(x, torch.arange(len(x), device=x.device))
        found = {}
        for name, weight, block in self._blocks(state):
            by_frame = weight * block.quadratic.cost.view_as(self.present)
            found[name] = (
                by_frame[:, 0] if self._per_clip(block) else apply_mask(by_frame, self.present).sum(1)
            )
        if self.motion is not None:
            name, weight, motion = self.motion
            found[name] = weight * motion.moves(state, self.present).residuals.square().sum((1, 2)) / 2
        return found

    def _state(self, x: Tensor, rows: Tensor) -> State:
        vectors = self.unpack(x, rows)
        bodies = rows[:, None] * self.frames + torch.arange(self.frames, device=x.device)
        return State(self.body, vectors.flatten(0, 1), bodies.flatten(), self.free)

    def _blocks(self, state: State) -> Iterator[tuple[str, float, Block]]:
        for name, weight, term in self.terms:
            block = term(state)
            if block is not None:
                yield name, weight, block

    def _per_clip(self, block: Block) -> bool:
        """Return whether a block depends on shared variables alone."""
        shape, where = self.shape, block.where
        return shape.start <= where.start and where.stop <= shape.stop

    def _add_motion(self, model: ChainQuadratic, moves: Moves, weight: float) -> ChainQuadratic:
        """Add the motion: coupling of consecutive frames, and of both with the shared variables."""
        root = weight**0.5
        residuals, before, after = (root * part for part in moves)
        first, second = before[..., self.own], after[..., self.own]
        drift = (after - before)[..., self.shared]
        model.frame_gradient[:, :-1] -= _row_product(residuals, first)
        model.frame_gradient[:, 1:] += _row_product(residuals, second)
        model.blocks[:, :-1] += first.mT @ first
        model.blocks[:, 1:] += second.mT @ second
        model.border[:, :-1] -= first.mT @ drift
        model.border[:, 1:] += second.mT @ drift
        return model._replace(
            cost=model.cost + residuals.square().sum((1, 2)) / 2,
            shared_gradient=model.shared_gradient + _row_product(residuals, drift).sum(1),
            coupling=-(first.mT @ second),
            shared=model.shared + (drift.mT @ drift).sum(1),
        )


def add_blocks(blocks: Iterable[tuple[float, Block]], batch: int, size: int, like: Tensor) -> Quadratic:
    """Return the weighted sum of blocks, over all free variables."""
    total = Quadratic(like.new_zeros(batch), like.new_zeros(batch, size), like.new_zeros(batch, size, size))
    for weight, (quadratic, where) in blocks:
        total.cost.add_(quadratic.cost, alpha=weight)
        total.gradient[:, where].add_(quadratic.gradient, alpha=weight)
        total.normal[:, where, where].add_(quadratic.normal, alpha=weight)
    return total


def join_fits(fits: Sequence[Fit], batch: Sequence[int]) -> Fit:
    """Return fits of parts of a flat batch as one, with the batch dimensions restored."""
    parts = [tree_flatten(fit) for fit in fits]
    leaves = zip(*(leaves for leaves, _ in parts), strict=True)
    whole = [None if part[0] is None else torch.cat(part) for part in leaves]
    whole = [None if part is None else part.reshape((*batch, *part.shape[1:])) for part in whole]
    return tree_unflatten(whole, parts[0][1])


def select_rows(mask: Bool[Tensor, " B"], new: Tensor, old: Tensor) -> Tensor:
    """Return the rows of ``new`` where the mask is set, and of ``old`` elsewhere."""
    return torch.where(mask[(..., *[None] * (new.dim() - 1))], new, old)


def _check_stages(terms: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    if not stages:
        raise ValueError("stages: expected at least one")
    for stage in stages:
        unknown = sorted(({*stage.weights} | {*stage.scales}) - {*terms})
        if unknown:
            raise ValueError(
                f"stages: expected names of terms ({', '.join(terms)}), got {', '.join(unknown)}"
            )
        for name, weight in stage.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"stages: expected weights of 0 or more, got {weight} of {name!r}")
        for name, scale in stage.scales.items():
            if not 0 < scale < math.inf:
                raise ValueError(f"stages: expected scales above 0, got {scale} of {name!r}")
            if not hasattr(terms[name], "robust_scale"):
                raise ValueError(f"stages: expected scales of terms with a robust cost, got one of {name!r}")


def _scaled(term: Any, scale: float) -> Term:
    """Return the same term with its robust scale multiplied."""
    if scale == 1:
        return term
    found = copy.copy(term)
    found.robust_scale = scale * term.robust_scale
    return found


def _bounds(
    body: BodyModel,
    like: Float[Tensor, "C T P"],
    ages: tuple[float | Tensor, float | Tensor],
    beta_bound: float,
) -> tuple[Float[Tensor, "C 1 P"], Float[Tensor, "C 1 P"]]:
    """Return lower and upper bounds of all parameters."""
    low, high = torch.full_like(like[:, :1], -torch.inf), torch.full_like(like[:, :1], torch.inf)
    slices = group_slices(body)
    low[..., slices["betas"]], high[..., slices["betas"]] = -beta_bound, beta_bound
    if body.age_anchors:
        for bound, age in zip((low, high), ages, strict=True):
            age = torch.as_tensor(age, dtype=like.dtype, device=like.device)
            bound[:, 0, slices["age_offset"]] = age.expand(len(like))[:, None]
    return low, high


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


def _row_product(residuals: Tensor, jacobian: Tensor) -> Tensor:
    return (residuals[..., None, :] @ jacobian)[..., 0, :]
