"""One person in many images, with one shape and age: videos, photographs, several cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.cameras.distortion import undistort
from agebody.checks import Weights, apply_mask, expect, expect_labels
from agebody.engine.rowwise import own_precision
from agebody.fitting.images import SCHEDULE, Step
from agebody.fitting.observed import LEAST_POINTS, Observed, pose_prior_of, read_observed, seen_joints
from agebody.fitting.start import starts_in_world
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.optim.least_squares import ChainQuadratic, minimize
from agebody.optim.limits import Limits
from agebody.optim.stages import BETA_RANGE, FitReport, Stage, add_terms, fit_bodies
from agebody.optim.terms import Age, Bend, Depth, PosePrior, Reprojection, Shape, State, Term, Unknowns
from agebody.parameters import GROUPS, BodyParameters, group_slices, read_start

JOINTS = get_layout("smpl24")
"""The points whose motion is smooth."""

HEAD = JOINTS.names.index("head")
ANKLES = [JOINTS.names.index(name) for name in ("left_ankle", "right_ankle")]


class MotionStep(NamedTuple):
    """One step of the schedule of `fit_sequence`, in which everything is free."""

    noise: float
    """Standard deviation of keypoints, in multiples of the ``noise`` of a call."""
    robust: float
    """Scale of Geman-McClure's cost, in multiples of the same."""
    motion: float
    """Standard deviation of motion, in multiples of the ``motion_sd`` of a call."""
    max_iterations: int


MOTION_SCHEDULE = (MotionStep(2.0, 12.0, 10**0.5, 15), MotionStep(1.0, 6.0, 1.0, 50))
"""AionHMR's: the second step weighs the smoothness ten times as much as the first."""


class SequenceFit(NamedTuple):
    """People found in clips."""

    parameters: BodyParameters
    """(*batch, T, ...) in the world of the cameras; betas and age offset are the same in all frames."""
    report: FitReport
    """One entry a clip, (*batch)."""
    reprojection: Float[Tensor, "*images"]
    """Mean distance of the keypoints that count, weighted by confidence [pixels]; 0 where none counts.
    (*batch, T), or (*batch, T, V) of several views."""


def fit_sequence(
    body: BodyModel,
    keypoints: Float[Tensor, "*frames K 2"],
    camera: Camera,
    *,
    layout: str | KeypointLayout = "coco17",
    weights: Weights = None,
    views: bool = False,
    lengths: Int[Tensor, "*batch"] | None = None,
    motion_sd: float | None = 0.1,
    noise: float | Tensor | None = None,
    age_offset: float | Tensor | None = None,
    age_class: Int[Tensor, "*batch"] | None = None,
    years: float | Tensor | None = None,
    depth: Float[Tensor, "*frames"] | None = None,
    depth_sd: float | Tensor = 0.01,
    pose_prior: MahalanobisPrior | MaxMixturePrior | None = None,
    start: BodyParameters | None = None,
    start_schedule: Sequence[Step] = SCHEDULE[:-1],
    schedule: Sequence[MotionStep] = MOTION_SCHEDULE,
    chunk_size: int = 256,
) -> SequenceFit:
    """Bodies of people over time: a pose and a place in each frame, one shape and age for all of them.

    To what `fit_keypoints` minimises in each frame comes the motion ``½ Σ |J_t+1 - J_t|² / (sd · size)²`` of
    all joints in the world (AionHMR, SLAHMR), where the size is that of the skeleton, an adult's being 1. In
    metres alone, motion would be the less the smaller and nearer the person is, which an image cannot tell.
    Shape and age are counted once a clip. A frame in which a person is not seen is bridged.

    Solved by Levenberg-Marquardt on whole clips, whose normal matrix is a chain of frames (`ChainQuadratic`):
    the time grows with T, not its cube.

    Every frame is fitted alone at first, from two views that face opposite ways; the sequence of these that
    sees the person best and moves least is where the clip starts, so that single frames are not left facing
    backwards.

    - *Photographs* of one person at different times: ``motion_sd=None``.
    - *Several cameras*: ``views=True`` and cameras with a pose, (V, ...) if they stand still. One moment is
      T = 1.

    Args:
        body: as in `fit_keypoints`.
        keypoints: (*batch, T, K, 2), or with ``views`` (*batch, T, V, K, 2) [pixels].
        camera: its tensors broadcast to (*batch, T), or to (*batch, T, V).
        layout: of the keypoints.
        weights: broadcast to the keypoints; 0 where a point, or the whole person, is not seen.
        views: whether the keypoints have a dimension of cameras that see the same moment.
        lengths: (*batch) frames of each clip, should they differ; what comes after is not looked at, and gets
            the body of the last.
        motion_sd: standard deviation of a coordinate of a joint's move from frame to frame [m], of an adult;
            None for frames that are independent of one another. The default weighs keypoints against motion
            as AionHMR does for a person 700 pixels tall.
        noise: standard deviation of keypoints [pixels], broadcast to (*batch, T) or (*batch, T, V).
        age_offset: of each person, as in `fit_keypoints`.
        age_class: likewise.
        years: likewise.
        depth: (*batch, T) z of the root joint in camera coordinates [m]; not with ``views``.
        depth_sd: its standard deviation [m], broadcast to (*batch, T).
        pose_prior: as in `fit_keypoints`.
        start: (*batch, T, ...) bodies to begin from. The shape is the mean over the frames.
        start_schedule: of the frames alone, with one shape.
        schedule: of the whole.
        chunk_size: frames that are fitted at a time, and at least one clip.

    Returns:
        Finite bodies. Of clips in which no frame shows four keypoints the report says that they have not
        converged.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or is no number where it must be one.

    Source: AionHMR; Ye et al., "Decoupling Human and Camera Motion", CVPR 2023 (SLAHMR).
    """
    number = len(get_layout(layout))
    dims = 4 if views else 3
    expect("keypoints", keypoints)
    if keypoints.dim() < dims or keypoints.shape[-2:] != (number, 2) or 0 in keypoints.shape[-dims:]:
        shape = f"(*batch, T, {'V, ' if views else ''}{number}, 2)"
        raise ValueError(f"keypoints: expected shape {shape}, got {tuple(keypoints.shape)}")
    if motion_sd is not None and not motion_sd > 0:
        raise ValueError(f"motion_sd: expected a standard deviation above 0 [m], or None, got {motion_sd}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    if not schedule:
        raise ValueError("schedule: expected at least one step")
    if depth is not None and views:
        raise ValueError("depth: expected None with views, which know it")
    batch, frames = keypoints.shape[:-dims], keypoints.shape[-dims]
    seen = keypoints.shape[-dims:-2]  # (T,) or (T, V)
    if age_class is not None:
        expect_labels("age_class", age_class, batch)
        age_class = age_class[(..., *[None] * len(seen))].expand(*batch, *seen)
    ages = _each(age_offset, len(seen)), age_class, _each(years, len(seen))
    counts = _read_lengths(lengths, batch, frames, body.device)
    with torch.no_grad(), own_precision(body.device):
        given = read_observed(body, keypoints, camera, layout, weights, noise, ages, depth, depth_sd)
        prior = pose_prior_of(body, pose_prior)
        if start is not None:
            start = read_start(body, start, (*batch, frames)).map(
                lambda part: part.unflatten(0, (-1, frames))
            )
        clips, each = math.prod(batch), math.prod(seen)
        step = max(1, chunk_size // frames)
        found = []
        for first in range(0, max(1, clips), step):
            rows = torch.arange(first, min(first + step, clips), device=body.device)
            images = (rows[:, None] * each + torch.arange(each, device=body.device)).flatten()
            shape = frames, each // frames
            problem = _Clips(body, given.take(images), shape, counts[rows], motion_sd, prior)
            if start is None:
                begin = problem.start(start_schedule)
            else:
                begin = start.map(lambda part, rows=rows: part[rows])
            found.append(problem.run(schedule, begin))
        return _join(found, batch, seen)


class _Clips:
    """C clips of T frames, each seen by V cameras."""

    def __init__(
        self,
        body: BodyModel,
        given: Observed,
        shape: tuple[int, int],
        lengths: Int[Tensor, " C"],
        motion_sd: float | None,
        prior: MahalanobisPrior | MaxMixturePrior,
    ) -> None:
        self.body, self.prior, self.motion_sd = body, prior, motion_sd
        self.frames, self.views = shape  # T, V
        self.lengths = lengths
        self.inside = torch.arange(self.frames, device=body.device) < lengths[:, None]  # (C, T)
        inside = self.inside.flatten().repeat_interleave(self.views)
        self.given = given._replace(weights=given.weights * inside[:, None])
        self.first = torch.arange(len(lengths), device=body.device) * self.frames * self.views
        self.limits = given.ages[self.first].unbind(-1)
        """(C) lowest and highest age offset, the expected one and its standard deviation"""
        self.joints = seen_joints(body, given.layout, prior)

    def terms(self, noise: float, robust: float, *, depth: bool = True) -> dict[str, tuple[float, Term]]:
        """Of each frame alone, over (C T)."""
        given, views = self.given, self.views
        by_frame = lambda part: part.unflatten(0, (-1, views))  # noqa: E731
        camera = given.camera.map(by_frame)
        found: dict[str, tuple[float, Term]] = {
            "keypoints": (noise**-2, Reprojection(
                given.layout, by_frame(given.keypoints), by_frame(given.weights.square()), camera,
                by_frame(given.noise), scale=robust,
            )),
            "pose": (1.0, PosePrior(self.prior, self.body)),
        }  # fmt: skip
        if Limits.fits(self.body):
            found["limits"] = (1.0, Limits(self.body, given.ages[::views, 2]))
        if Bend.fits(self.body):
            found["bend"] = (1.0, Bend(self.body))
        if depth and given.has_depth:
            found["depth"] = (1.0, Depth(given.depth, given.depth_sd, given.camera))
        return found

    def visible(self) -> Tensor:
        """(C, T) whether a frame shows enough points to be fitted alone."""
        count = (self.given.weights > 0).sum(-1).unflatten(0, (-1, self.views)).sum(-1)
        return (count >= LEAST_POINTS).unflatten(0, (-1, self.frames))

    def start(self, schedule: Sequence[Step]) -> BodyParameters:
        """Frames fitted alone, and of their two ways to face the ones that follow from one another."""
        trust = self.given.weights.sum(-1).unflatten(0, (-1, self.views))
        best = trust.argmax(-1) + torch.arange(len(trust), device=trust.device) * self.views
        count = 2
        starts = starts_in_world(self.body, self.given.take(best), self.prior, self.joints, count)
        if self.views > 1:
            starts = self._recentre(starts, count)
        low, high, *_ = self.given.ages[:: self.views].repeat(count, 1).unbind(-1)
        cost = starts.transl.new_zeros(len(starts.transl))
        if schedule:
            twice = self._repeated(count)
            stages = [
                Stage(
                    twice.terms(step.noise, step.robust, depth=False),
                    step.groups,
                    self.joints,
                    max_iterations=step.max_iterations,
                    cost_tolerance=step.cost_tolerance,
                )
                for step in schedule
            ]
            starts, report = fit_bodies(self.body, stages, starts, age_range=(low, high))
            cost = report.cost
        split = lambda part: part.unflatten(0, (count, -1, self.frames)).movedim(0, 2)  # noqa: E731
        costs, candidates = split(cost), starts.map(split)  # (C, T, count, ...)
        joints = None
        if self.motion_sd is not None:
            places = self.body.keypoints(JOINTS, starts)
            shaped = self.body.shape(starts).keypoints(JOINTS)
            size = _length(shaped) / _length(self.body.keypoints(JOINTS))
            # As in the term, a clip has one size.
            joints = split(places) / split(size).mean((1, 2))[:, None, None, None, None]
        frame, which = self._follow(costs, joints)
        clip = torch.arange(len(frame), device=costs.device)[:, None]
        return candidates.map(lambda part: part[clip, frame, which])

    def _follow(
        self, costs: Float[Tensor, "C T S"], joints: Float[Tensor, "C T S J 3"] | None
    ) -> tuple[Int[Tensor, "C T"], Int[Tensor, "C T"]]:
        """For each frame the nearest that shows enough, and which of its candidates follow from one another.

        Each frame's own best where there are no joints [m, of an adult] to tell how far they move.
        """
        everyone = torch.arange(self.frames, device=costs.device)
        frames, chosen = everyone.repeat(len(costs), 1), costs.argmin(-1)
        for clip, shown in enumerate(self.visible()):
            at = shown.nonzero()[:, 0] if shown.any() else everyone[:1]
            nearest = (everyone[:, None] - at).abs().argmin(1)
            frames[clip] = at[nearest]
            path = chosen[clip, at]
            if joints is not None and self.motion_sd is not None:
                own, places = (part[clip, at].double().cpu().numpy() for part in (costs, joints))
                path = torch.from_numpy(_best_path(own, places, at.cpu().numpy(), self.motion_sd)).to(path)
            chosen[clip] = path[nearest]
        return frames, chosen

    def run(self, schedule: Sequence[MotionStep], start: BodyParameters) -> SequenceFit:
        """The whole clips."""
        body = self.body
        unknowns = Unknowns(body, GROUPS, self.joints)
        vector = start.vector()  # (C, T, P)
        chain = _Chain(self, unknowns, vector)
        share = self.inside / self.lengths[:, None]
        mean = (share[..., None] * vector).sum(1, keepdim=True)
        x = chain.join(torch.where(chain.is_shared, mean, vector)[..., unknowns.columns])
        bound = torch.full_like(vector[:, :1], torch.inf)
        slices = group_slices(body)
        bound[..., slices["betas"]] = BETA_RANGE
        low, high = -bound, bound
        if body.age_anchors:
            low[..., slices["age_offset"]] = self.limits[0][:, None, None]
            high[..., slices["age_offset"]] = self.limits[1][:, None, None]
        lower, upper = (chain.join(part.expand(vector.shape)[..., unknowns.columns]) for part in (low, high))
        iterations = torch.zeros_like(self.lengths)
        for step in schedule:
            chain.set_terms(step)
            solution = minimize(
                chain.quadratize, x, lower=lower, upper=upper,
                max_iterations=step.max_iterations, cost_tolerance=1e-4, damping=1e-2,
            )  # fmt: skip
            x, iterations = solution.x, iterations + solution.iterations
        vector = vector.index_copy(-1, unknowns.columns, chain.split(x))
        last = torch.arange(self.frames, device=body.device).minimum(self.lengths[:, None] - 1)
        vector = vector.gather(1, last[..., None].expand_as(vector))
        parameters = BodyParameters.from_vector(vector, body)
        converged = solution.converged & self.visible().any(1)  # pyright: ignore[reportPossiblyUnboundVariable]
        report = FitReport(converged, iterations, solution.stop, solution.cost, chain.costs(x))  # pyright: ignore[reportPossiblyUnboundVariable]
        return SequenceFit(parameters, report, self.errors(parameters))

    def errors(self, parameters: BodyParameters) -> Float[Tensor, "C T V"]:
        """Mean distances of keypoints that count [pixels]."""
        points = self.body.keypoints(self.given.layout, parameters)
        found = self.given.errors(points.flatten(0, 1).repeat_interleave(self.views, 0))
        return found.unflatten(0, (-1, self.frames, self.views))

    def _repeated(self, count: int) -> _Clips:
        rows = torch.arange(len(self.given.noise), device=self.body.device).repeat(count)
        shape = self.frames, self.views
        return _Clips(
            self.body, self.given.take(rows), shape, self.lengths.repeat(count), self.motion_sd, self.prior,
        )  # fmt: skip

    def _recentre(self, starts: BodyParameters, count: int) -> BodyParameters:
        """Starts moved to where the rays of several cameras meet, in frames where two see the same points."""
        given = self.given
        by_frame = lambda part: part.unflatten(0, (-1, self.views))  # noqa: E731
        meet, trust = triangulate(
            by_frame(given.keypoints), by_frame(given.weights), given.camera.map(by_frame)
        )
        own = self.body.keypoints(given.layout, starts)
        meet, trust = meet.repeat(count, 1, 1), trust.repeat(count, 1)
        total = trust.sum(-1, keepdim=True)
        shift = (trust[..., None] * (meet - own)).sum(1) / torch.where(total > 0, total, 1)
        return starts._replace(transl=starts.transl + shift)


class _Chain:
    """The least-squares problem of clips, with the variables of frames before those that are shared."""

    def __init__(self, clips: _Clips, unknowns: Unknowns, base: Float[Tensor, "C T P"]) -> None:
        self.clips, self.unknowns, self.base = clips, unknowns, base
        shared = [
            i
            for name in ("betas", "age_offset")
            if name in unknowns.parts
            for i in range(*unknowns.parts[name][0].indices(len(unknowns)))
        ]
        device = unknowns.columns.device
        self.shared = torch.tensor(shared, device=device, dtype=torch.int64)
        self.own = torch.tensor([i for i in range(len(unknowns)) if i not in shared], device=device)
        slices = group_slices(clips.body)
        self.is_shared = torch.zeros(unknowns.size, dtype=torch.bool, device=device)
        if clips.motion_sd is not None:
            self.adult = _length(clips.body.keypoints(JOINTS))
        self.is_shared[slices["betas"]] = self.is_shared[slices["age_offset"]] = True

    def set_terms(self, step: MotionStep) -> None:
        """What is minimised from here on."""
        clips = self.clips
        self.by_frame = clips.terms(step.noise, step.robust)
        _, _, expected, sd = clips.limits
        self.by_clip: dict[str, tuple[float, Term]] = {
            "shape": (1.0, Shape()),
            "age": (1.0, Age(expected, sd)),
        }
        self.motion_sd = math.inf if clips.motion_sd is None else clips.motion_sd * step.motion

    def join(self, free: Float[Tensor, "C T F"]) -> Float[Tensor, "C N"]:
        """Free variables of frames as one vector; what is shared is read in the first."""
        return torch.cat((free[..., self.own].flatten(1), free[:, 0, self.shared]), 1)

    def split(self, x: Float[Tensor, "C N"]) -> Float[Tensor, "C T F"]:
        """The inverse of `join`."""
        frames, split = self.clips.frames, self.clips.frames * len(self.own)
        own, shared = x[:, :split].unflatten(1, (frames, -1)), x[:, None, split:].expand(-1, frames, -1)
        order = torch.cat((self.own, self.shared))
        return torch.cat((own, shared), -1)[..., torch.argsort(order)]

    def quadratize(self, x: Tensor, rows: Tensor) -> ChainQuadratic:
        """See `minimize`."""
        own, shared = self.own, self.shared
        state, inside = self._state(x, rows), self.clips.inside[rows]
        found, _ = add_terms(self.by_frame, state)
        more, _ = add_terms(self.by_clip, self._first(x, rows))
        cost, gradient, normal = (
            apply_mask(part.unflatten(0, (-1, self.clips.frames)), inside, part.dim() - 1)
            for part in (found.cost, found.gradient, found.normal)
        )
        rows_own, rows_shared = normal[..., own, :], (normal.sum(1) + more.normal)[:, shared]
        model = ChainQuadratic(
            cost.sum(1) + more.cost, gradient[..., own], (gradient.sum(1) + more.gradient)[:, shared],
            rows_own[..., own], None, rows_own[..., shared], rows_shared[..., shared],
        )  # fmt: skip
        return model if math.isinf(self.motion_sd) else self._add_motion(model, *self._motion(state, inside))

    def costs(self, x: Tensor) -> dict[str, Tensor]:
        """What each term contributes, (C)."""
        rows = torch.arange(len(x), device=x.device)
        state, inside = self._state(x, rows), self.clips.inside
        found = add_terms(self.by_frame, state)[1]
        found = {name: apply_mask(cost.view_as(inside), inside).sum(1) for name, cost in found.items()}
        if not math.isinf(self.motion_sd):
            moves, _, _ = self._motion(state, inside)
            found["motion"] = moves.square().flatten(1).sum(1) / 2
        return {**found, **add_terms(self.by_clip, self._first(x, rows))[1]}

    def _state(self, x: Tensor, rows: Tensor) -> State:
        frames = self.clips.frames
        free = self.split(x).flatten(0, 1)
        whole = self.base[rows].flatten(0, 1).index_copy(1, self.unknowns.columns, free)
        images = (rows[:, None] * frames + torch.arange(frames, device=x.device)).flatten()
        return State(self.clips.body, whole, images, self.unknowns)

    def _first(self, x: Tensor, rows: Tensor) -> State:
        """The first frame of each clip, for terms of what is shared."""
        free = self.split(x)[:, 0]
        whole = self.base[rows, 0].index_copy(1, self.unknowns.columns, free)
        return State(self.clips.body, whole, rows, self.unknowns)

    def _motion(self, state: State, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, T - 1, M) moves of joints, in standard deviations, and (b, T - 1, M, F) slopes of both ends."""
        points, slopes = state.points(JOINTS)
        size, size_slopes = self._size(state)
        scale = (size * self.motion_sd)[:, None, None]
        places = points.flatten(1).unflatten(0, (-1, self.clips.frames))
        slopes = slopes.flatten(1, 2).unflatten(0, (-1, self.clips.frames)) / scale[..., None]
        both = inside[:, 1:]  # clips end, but do not begin, early
        moves = apply_mask(places.diff(dim=1), both, 1) / scale
        before, after = (apply_mask(part, both, 2) for part in (slopes[:, :-1], slopes[:, 1:]))
        return moves, before, after - moves[..., None] * (size_slopes / size[:, None])[:, None, None]

    def _size(self, state: State) -> tuple[Float[Tensor, " b"], Float[Tensor, "b F"]]:
        """From the ankles to the head at rest, as a share of the mean adult's, and its slopes."""
        first = state.parameters.map(lambda part: part[:: self.clips.frames])
        still = BodyParameters.zeros(self.clips.body, len(first.betas))
        still = still._replace(betas=first.betas, age_offset=first.age_offset)
        rows = state.rows[:: self.clips.frames]
        points, slopes = State(self.clips.body, still.vector(), rows, self.unknowns).points(JOINTS)
        axis = points[:, HEAD] - points[:, ANKLES].mean(1)
        length = axis.norm(dim=-1)
        by_shape = ((axis / length[:, None])[:, None] @ (slopes[:, HEAD] - slopes[:, ANKLES].mean(1)))[:, 0]
        by_shape = by_shape.index_fill(1, self.own, 0)
        return length / self.adult, by_shape / self.adult

    def _add_motion(
        self, model: ChainQuadratic, moves: Tensor, before: Tensor, after: Tensor
    ) -> ChainQuadratic:
        cost, gradient, shared_gradient, blocks, _, border, corner = model
        first, second = before[..., self.own], after[..., self.own]
        drift = (after - before)[..., self.shared]
        gradient[:, :-1] -= _product(first, moves)
        gradient[:, 1:] += _product(second, moves)
        blocks[:, :-1] += first.mT @ first
        blocks[:, 1:] += second.mT @ second
        border[:, :-1] -= first.mT @ drift
        border[:, 1:] += second.mT @ drift
        return ChainQuadratic(
            cost + moves.square().flatten(1).sum(1) / 2,
            gradient,
            shared_gradient + _product(drift, moves).sum(1),
            blocks,
            -(first.mT @ second),
            border,
            corner + (drift.mT @ drift).sum(1),
        )


def triangulate(
    keypoints: Float[Tensor, "*batch V K 2"], weights: Float[Tensor, "*batch V K"], camera: Camera
) -> tuple[Float[Tensor, "*batch K 3"], Float[Tensor, "*batch K"]]:
    """Where rays of several cameras come nearest to one another, and how far to trust it.

    The least sum of squared distances from the rays, each weighed by its confidence.

    Args:
        keypoints: (*batch, V, K, 2) [pixels], finite.
        weights: (*batch, V, K).
        camera: its tensors have the batch dimensions (*batch, V).

    Returns:
        Points in the world [m], and their confidence: the sum of the weights, 0 where fewer than two cameras
        see the point or their rays are parallel.
    """
    image = (keypoints - camera.center[..., None, :]) / camera.focal[..., None, :]
    if camera.distortion is not None:
        image = undistort(image, camera.distortion)
    rays = torch.cat((image, torch.ones_like(image[..., :1])), -1)
    origin = torch.zeros_like(rays[..., :1, :])
    if camera.translation is not None:
        origin = origin - camera.translation[..., None, :]
    if camera.rotation is not None:
        rays, origin = rays @ camera.rotation, origin @ camera.rotation
    rays = rays / rays.norm(dim=-1, keepdim=True)
    across = torch.eye(3, dtype=rays.dtype, device=rays.device) - rays[..., None] * rays[..., None, :]
    normal = (weights[..., None, None] * across).sum(-4)
    target = (weights[..., None] * (across @ origin[..., None])[..., 0]).sum(-3)
    trust = weights.sum(-2)
    # The smallest eigenvalue is about trust times the squared sine of half of the angle between the rays.
    apart = torch.linalg.eigvalsh(normal)[..., 0] > 1e-4 * trust
    sound = ((weights > 0).sum(-2) >= 2) & apart
    eye = torch.eye(3, dtype=rays.dtype, device=rays.device)
    points = torch.linalg.solve(torch.where(sound[..., None, None], normal, eye), target[..., None])[..., 0]
    return torch.where(sound[..., None], points, 0), torch.where(sound, trust, 0)


def _best_path(costs: np.ndarray, joints: np.ndarray, times: np.ndarray, sd: float) -> np.ndarray:
    """Which of S candidates of each frame make up the cheapest sequence (Viterbi).

    Args:
        costs: (T, S).
        joints: (T, S, J, 3) [m].
        times: (T) numbers of the frames.
        sd: of a joint's move from one frame number to the next [m].
    """
    moves = joints[1:, None] - joints[:-1, :, None]  # (T - 1, from, to, J, 3)
    spread = sd**2 * np.diff(times)[:, None, None]
    links = np.square(moves).sum((-2, -1)) / (2 * spread)
    total, back = costs[0], []
    for own, link in zip(costs[1:], links, strict=True):
        through = total[:, None] + link
        back.append(through.argmin(0))
        total = through.min(0) + own
    path = [int(total.argmin())]
    for came_from in reversed(back):
        path.append(int(came_from[path[-1]]))
    return np.array(path[::-1])


def _length(joints: Float[Tensor, "*batch J 3"]) -> Float[Tensor, "*batch"]:
    """From the ankles to the head [m]."""
    return (joints[..., HEAD, :] - joints[..., ANKLES, :].mean(-2)).norm(dim=-1)


def _product(slopes: Tensor, residuals: Tensor) -> Tensor:
    return (residuals[..., None, :] @ slopes)[..., 0, :]


def _each(value: float | Tensor | None, dims: int) -> float | Tensor | None:
    """Something of each person, for each of their images."""
    return value[(..., *[None] * dims)] if isinstance(value, Tensor) else value


def _read_lengths(
    lengths: Tensor | None, batch: torch.Size, frames: int, device: torch.device
) -> Int[Tensor, " C"]:
    if lengths is None:
        return torch.full((math.prod(batch),), frames, device=device)
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a torch.Tensor of integers, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.dtype == torch.bool or lengths.shape != batch:
        raise ValueError(
            f"lengths: expected integers of shape {tuple(batch)}, got {lengths.dtype}, {tuple(lengths.shape)}"
        )
    if not ((lengths >= 1) & (lengths <= frames)).all():
        raise ValueError(f"lengths: expected 1 to {frames}, as there are frames")
    return lengths.to(device).long().reshape(-1)


def _join(found: Sequence[SequenceFit], batch: torch.Size, seen: torch.Size) -> SequenceFit:
    """Chunks as one batch."""
    whole = lambda *parts: torch.cat(parts).unflatten(0, batch) if batch else parts[0][0]  # noqa: E731
    reports = [fit.report for fit in found]
    terms = {name: whole(*(report.terms[name] for report in reports)) for name in reports[0].terms}
    errors = whole(*(fit.reprojection for fit in found))
    return SequenceFit(
        BodyParameters(*map(whole, *(fit.parameters for fit in found))),
        FitReport(
            *(whole(*(report[i] for report in reports)) for i in range(len(FitReport._fields) - 1)),
            terms=terms,
        ),
        errors.reshape(*batch, *seen),
    )
