"""Standard errors of fits: of age, stature and depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.engine.deform import age_slopes
from agebody.keypoints import joint_layout
from agebody.optim.motion import Motion
from agebody.optim.problem import Problem, Stage, parameter_bounds
from agebody.optim.quadratic import Model
from agebody.optim.state import State, Term
from agebody.parameters import BodyParameters, group_slices


class StandardErrors(NamedTuple):
    """Standard deviations of the estimates, given the observations and the priors.

    They come from the normal matrix of the last step: near the estimate, the cost is half of a squared
    distance in these units. They ignore other minima, such as that of a person who faces the other
    way, and errors that the terms do not model. Infinite where nothing determines the number.
    """

    age_offset: Float[Tensor, "*batch"]
    """0 where it is known."""
    stature: Float[Tensor, "*batch"]
    """[m]"""
    depth: Float[Tensor, "*frames"]
    """Of the root joint, along the axis of the camera, or of the first one [m]."""


def standard_errors(
    body: BodyModel,
    terms: Mapping[str, Term | Motion],
    stage: Stage,
    parameters: BodyParameters,
    axis: Float[Tensor, "C T 3"],
    *,
    present: Bool[Tensor, "C T"] | None = None,
    age_bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    beta_bound: float | Float[Tensor, "C N"] = math.inf,
) -> StandardErrors:
    """Return the standard errors of fitted clips (C), and of the depth in each of their frames (C, T).

    With the normal matrix N and a number's gradient g, the variance is ``gᵀ N⁻¹ g`` (the delta method). What
    of it comes from the variables that frames share counts `Problem.repeats` times. The bounds of the age
    cut its distribution off, and with it what depends on the age: the error is the root mean square distance
    from the estimate within the bounds.

    Args:
        body: the layer.
        terms: as of `fit_bodies`.
        stage: the last one.
        parameters: (C, T, ...) its result.
        axis: directions in the world along which the depth counts.
        present: as of `fit_bodies`.
        age_bounds: as of `fit_bodies`.
        beta_bound: as of `fit_bodies`; what it holds at 0 is known.
    """
    vectors = parameters.vector()
    clips, frames = vectors.shape[:2]
    if present is None:
        present = torch.ones((clips, frames), dtype=torch.bool, device=vectors.device)
    problem = Problem(body, terms, stage, vectors, present)
    x, rows = problem.pack(vectors), torch.arange(clips, device=vectors.device)
    model = problem.quadratize(x, rows)
    low, high = parameter_bounds(body, vectors, age_bounds, beta_bound)
    columns = group_slices(body)["age_offset"].start
    # Nothing tells where a person is in a frame without points, which is no reason to know nothing of others.
    known = problem.pack(low) == problem.pack(high)
    idle = (model.diagonal() == 0) & ~known
    fixed = known | idle
    flat = parameters.map(lambda part: part.flatten(0, 1))
    state = State(body, flat.vector(), torch.arange(clips * frames, device=x.device), problem.free)
    _, by_free = state.points(joint_layout(body.asset.joint_names[0]))
    by_depth = (axis.flatten(0, 1)[..., None] * by_free[:, 0]).sum(-2).unflatten(0, (clips, frames))
    by_stature = vectors.new_zeros(by_depth[:, 0].shape)
    by_age = torch.zeros_like(by_stature)
    by_shape = _stature_gradient(body, flat.map(lambda part: part[::frames]))
    for name, part in by_shape.items():
        if name in problem.free.parts:
            by_stature[:, problem.free.parts[name][0]] = part
    if "age_offset" in problem.free.parts:
        by_age[:, problem.free.parts["age_offset"][0]] = 1

    end = frames * len(problem.own)

    def pack(gradient: Tensor) -> Tensor:
        """Return a gradient by the free variables of the first frame, as one by those of the clip."""
        own = gradient.new_zeros(clips, frames, len(problem.own))
        own[:, 0] = gradient[:, problem.own]
        return torch.cat((own.flatten(1), gradient[:, problem.shared]), 1)

    def split(vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of each frame, (C, T, n), and that of the shared variables, (C, 1, s)."""
        return vector[:, :end].unflatten(1, (frames, len(problem.own))), vector[:, None, end:]

    def by_depths(own: Tensor, shared: Tensor) -> Tensor:
        """Return the products of the depths' gradients with solutions, (C, T)."""
        return (depth_own * own).sum(-1) + (depth_shared * shared).sum(-1)

    whole = [pack(gradient) for gradient in (by_age, by_stature)]
    lost = [((gradient != 0) & idle).any(1, keepdim=True) for gradient in whole]
    age, stature = (torch.where(fixed, 0, gradient) for gradient in whole)
    solved = [model.solve(gradient, torch.zeros_like(x), fixed) for gradient in (age, stature)]
    fixed_own, fixed_shared = split(fixed)
    idle_own, idle_shared = split(idle)
    lost.append(((by_depth[..., problem.own] != 0) & idle_own).any(-1))
    lost[-1] |= ((by_depth[..., problem.shared] != 0) & idle_shared).any(-1)
    depth_own = torch.where(fixed_own, 0, by_depth[..., problem.own])
    depth_shared = torch.where(fixed_shared, 0, by_depth[..., problem.shared])
    depth_solved = model.solve_frames(depth_own, depth_shared, fixed)
    with_age = torch.stack([(gradient * solved[0]).sum(-1) for gradient in (age, stature)], 1)
    with_age = torch.cat((with_age, by_depths(*split(solved[0]))), 1)
    stature_variance = (stature * solved[1]).sum(-1, keepdim=True)
    variance = torch.cat((with_age[:, :1], stature_variance, by_depths(*depth_solved)), 1)
    own = variance[:, :1]
    share = torch.where(own > 0, with_age / torch.where(own > 0, own, 1), 0)
    ends = torch.cat((torch.stack([part[:, end:] for part in solved], -1), depth_solved[1].mT), -1)
    variance = variance + (problem.repeats - 1)[:, None] * _shared_variance(problem, model, ends, fixed)
    own = variance[:, :1]
    cut = _cut_variance(own[:, 0], parameters.age_offset[:, 0], *(b[:, 0, columns] for b in (low, high)))
    variance = variance - share.square() * (own - cut[:, None])
    determined = variance.isfinite() & ~torch.cat(lost, 1)
    sd = torch.where(determined, variance.clamp(min=0).sqrt(), torch.inf)
    return StandardErrors(sd[:, 0], sd[:, 1], sd[:, 2:])


def _shared_variance(
    problem: Problem, model: Model, ends: Float[Tensor, "C s G"], fixed: Bool[Tensor, "C N"]
) -> Float[Tensor, "C G"]:
    """Return the part of the variances of numbers that comes from the variables that frames share.

    With the covariance C = N⁻¹ and a number's ``u = C g``, what the shared variables s tell of it is
    ``u_sᵀ C_ss⁻¹ u_s``. Of these u, ``ends`` are the parts u_s.
    """
    shared = range(fixed.shape[1] - len(problem.shared), fixed.shape[1])
    if not len(shared):
        return ends.sum(1)
    zeros, columns = torch.zeros_like(fixed, dtype=ends.dtype), []
    for number in shared:
        unit = zeros.clone()
        unit[:, number] = 1
        columns.append(model.solve(torch.where(fixed, 0, unit), zeros, fixed)[:, shared])
    covariance = torch.stack(columns, -1) + torch.diag_embed(fixed[:, shared].to(ends))
    return (ends * torch.linalg.solve(covariance, ends)).sum(1)


def _stature_gradient(body: BodyModel, parameters: BodyParameters) -> dict[str, Float[Tensor, "B _"]]:
    """Return the derivatives of the stature by betas and by the age offset.

    At rest, heights of vertices are affine in the coefficients; the stature is that of the highest less that
    of the lowest.
    """
    directions = torch.from_numpy(body.identity_directions[..., 1]).to(body.device, body.dtype)  # (C, V)
    coefficients, _ = body.identity(parameters.betas, parameters.age_offset)
    heights = coefficients @ directions
    by_coefficients = directions.T[heights.argmax(-1)] - directions.T[heights.argmin(-1)]
    by_betas = by_coefficients[:, 1 : 1 + body.num_coefficients]
    if not body.age_anchors:
        return {"betas": by_betas}
    inner, slopes = (torch.from_numpy(part).to(by_betas) for part in age_slopes(body.age_anchors))
    growth = slopes[torch.bucketize(parameters.age_offset.contiguous(), inner, right=True)]
    by_age = (by_coefficients[:, 1 + body.num_coefficients :] * growth).sum(-1, keepdim=True)
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
