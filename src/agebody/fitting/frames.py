"""People of every age from 2D keypoints (SMPLify, AionHMR): images, videos, photographs, several cameras.

One image is a clip of one frame: both functions are one fit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from agebody.age import AgeCurve
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.checks import Weights, expect, expect_labels
from agebody.engine.batched import own_precision
from agebody.fitting.observed import (
    MIN_POINTS,
    UNKNOWN_AGE,
    Observed,
    pose_prior_of,
    read_observed,
    seen_joints,
)
from agebody.fitting.start import follow_frames, move_to_rays, starts_in_world
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.optim.limits import JointLimitPrior
from agebody.optim.motion import JOINTS, Motion, skeleton_length
from agebody.optim.stages import (
    Fit,
    FitReport,
    Stage,
    StandardErrors,
    fit_bodies,
    join_fits,
    select_rows,
    standard_errors,
)
from agebody.optim.terms import (
    AgePrior,
    Depth,
    HyperextensionPrior,
    PosePrior,
    Reprojection,
    ShapePrior,
    StartPrior,
    Term,
)
from agebody.parameters import GROUPS, BodyParameters, read_start

Number = TypeVar("Number", float | Tensor, float | Tensor | None)

TERMS = (
    *("keypoints", "pose", "shape", "age", "limits", "hyperextension", "depth", "motion"),
    *(f"start_{group}" for group in GROUPS),
)
"""Names of the terms, for the weights of stages."""

_PLACE = Stage(
    weights={"keypoints": 1 / 16, "depth": 0.0},
    scales={"keypoints": 4.0},
    groups=("global_orient", "body_pose", "transl"),
    max_iterations=8,
    cost_tolerance=1e-2,
)

SMPLIFY = (_PLACE, Stage(max_iterations=120, cost_tolerance=1e-3))
"""Pose and place, then everything. The faster preset, for single images."""

AIONHMR = (
    _PLACE,
    Stage(
        weights={"keypoints": 1 / 4, "motion": 1 / 10},
        scales={"keypoints": 2.0},
        max_iterations=30,
        cost_tolerance=1e-3,
    ),
    Stage(max_iterations=150, cost_tolerance=1e-3),
)
"""Pose and place, then everything with loose keypoints and motion, then everything."""


def fit_keypoints(
    body: BodyModel,
    keypoints: Float[Tensor, "*batch K 2"],
    camera: Camera,
    *,
    layout: str | KeypointLayout = "coco17",
    weights: Weights = None,
    noise: float | Tensor | None = None,
    age_offset: float | Tensor | None = None,
    age_class: Int[Tensor, "*batch"] | None = None,
    years: float | Tensor | None = None,
    age_prior: tuple[float | Tensor, float | Tensor] = UNKNOWN_AGE,
    depth: Float[Tensor, "*batch"] | None = None,
    depth_sd: float | Tensor = 0.01,
    pose_prior: MahalanobisPrior | MaxMixturePrior | None = None,
    start: BodyParameters | None = None,
    start_sd: Mapping[str, float | Tensor] | None = None,
    stages: Sequence[Stage] = AIONHMR,
    batch_size: int = 256,
) -> Fit:
    """Fit bodies to keypoints in images: pose, place, shape and age per person.

    Finds the most probable person: minimizes ``½ Σ c² ρ((x - x_observed) / noise) + ½ |b|² + ½ E(θ) + ...``
    with confidences c, by Levenberg-Marquardt on the points alone, without the mesh. The first stage begins
    at the best of everyday poses seen from all sides, and at the best that faces the opposite way; the better
    of both results goes on.

    One image tells the size of a person through proportions alone: a child near by looks like an adult far
    away. Knowledge of the age (``age_offset``, ``age_class``, ``years``) or of the depth decides it.

    Args:
        body: an `SMPLA`, or a layer of one age; without ``smil=``. Terms of joints that it lacks, such as
            SMPL's ranges of motion, are left out.
        keypoints: (*batch, K, 2) [pixels].
        camera: batch dimensions broadcast to (*batch); `Camera.guess` where the focal length is not known.
        layout: of the keypoints.
        weights: (*batch, K) confidences, or a mask. Keypoints of weight 0 are ignored, even NaN.
        noise: standard deviation of keypoints of confidence 1 [pixels], a number or (*batch); if None, 1 % of
            the larger side of the box around a person's keypoints.
        age_offset: fixed value, a number or (*batch); NaN where it is not known.
        age_class: (*batch) index into ``AGE_CLASSES``, which bounds the age offset; -1 where it is not known.
        years: age, a number or (*batch); NaN where it is not known. The age offset is expected at the value
            of the body's `AgeCurve`, with a standard deviation of 0.05, and within three of these.
        age_prior: mean and standard deviation of the age offset of people whose age is not known, numbers or
            (*batch).
        depth: (*batch) z of the root joint in camera coordinates [m]; NaN where it is not known.
        depth_sd: its standard deviation [m].
        pose_prior: `joint_limits_prior` about a standing person if None.
        start: initial bodies, such as a network's, in place of the everyday poses.
        start_sd: how far the start may be off, which makes it evidence: standard deviations by group
            ("global_orient" and "body_pose" [rad], "betas", "age_offset", "transl" [m]), numbers or tensors
            that broadcast to that part of the start. Groups without one are only where the fit begins.
        stages: such as `AIONHMR`, or the faster `SMPLIFY`. The terms are "keypoints", "pose", "shape",
            "age", "limits", "hyperextension", "depth", "motion", and "start_betas" and so on.
        batch_size: frames fitted at a time, which bounds memory. Results differ by rounding alone.

    Returns:
        Finite bodies in the world of the camera, and errors [pixels]. People with fewer than four keypoints
        of weight above 0 stay at their start, and do not converge.

    Source: Bogo et al., "Keep it SMPL", ECCV 2016; AionHMR; Pavlakos et al., CVPR 2019 for the robust cost.
    """
    ages = age_offset, age_class, years
    with torch.no_grad(), own_precision(body.device):
        given = read_observed(
            body, keypoints, camera, layout, weights, noise, ages, depth, depth_sd, age_prior
        )
        batch = keypoints.shape[:-2]
        if start is not None:
            start = read_start(body, start, batch).map(lambda part: part[:, None])
        alone = torch.ones_like(given.noise, dtype=torch.bool)[:, None]
        evidence = _read_start_sd(start, start_sd, (*batch, 1), alone)
        clips = _Clips(body, given, alone, 1, None, pose_prior, evidence)
        fit = _fit_in_batches(clips, stages, start, batch_size)
        fit = fit._replace(parameters=fit.parameters.map(lambda part: part[:, 0]))
        fit = fit._replace(error=fit.error[:, 0, 0], start_error=fit.start_error[:, 0, 0])
        assert fit.standard_errors is not None
        depth = fit.standard_errors.depth[:, 0]
        fit = fit._replace(standard_errors=fit.standard_errors._replace(depth=depth))
        return join_fits([fit], batch)


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
    age_prior: tuple[float | Tensor, float | Tensor] = UNKNOWN_AGE,
    depth: Float[Tensor, "*frames"] | None = None,
    depth_sd: float | Tensor = 0.01,
    pose_prior: MahalanobisPrior | MaxMixturePrior | None = None,
    start: BodyParameters | None = None,
    start_sd: Mapping[str, float | Tensor] | None = None,
    stages: Sequence[Stage] = AIONHMR,
    batch_size: int = 256,
) -> Fit:
    """Fit bodies to keypoints over time: pose and place per frame, one shape and age per clip.

    As `fit_keypoints` in each frame, plus the `Motion` between frames; shape and age count once per clip.
    Frames in which a person is not seen are bridged. Whole clips are solved at once by Levenberg-Marquardt,
    whose normal matrix is a chain of frames (`ChainQuadratic`): the time grows with T, not with its cube.

    The first stage fits every frame alone, from two views that face opposite ways. The sequence of these that
    fits best and moves least is where the clip starts, so that no frame is left facing backwards. The last
    stage also runs from frames that all stages fitted alone, and the cheaper result is kept.
    Of clips that ran out of steps, ``report.converged`` is false and ``report.stop`` is ``Stop.ITERATIONS``.

    - *Photographs* of one person at different times: ``motion_sd=None``.
    - *Several cameras*: ``views=True`` and cameras with a pose, (V, ...) if they stand still. One moment is
      T = 1.

    Args:
        body: as in `fit_keypoints`.
        keypoints: (*batch, T, K, 2), or with ``views`` (*batch, T, V, K, 2) [pixels].
        camera: batch dimensions broadcast to (*batch, T), or to (*batch, T, V).
        layout: of the keypoints.
        weights: broadcast to the keypoints; 0 where a point, or the whole person, is not seen.
        views: whether the keypoints have a dimension of cameras that see the same moment.
        lengths: (*batch) frames per clip, if they differ; later frames are ignored, and get the body of the
            last.
        motion_sd: standard deviation of a coordinate of a joint's move from frame to frame [m], of an adult;
            None if frames are independent. The default weighs keypoints against motion as AionHMR does for
            a person 700 pixels tall.
        noise: standard deviation of keypoints [pixels], broadcast to (*batch, T) or (*batch, T, V).
        age_offset, age_class, years, age_prior: per person, (*batch); as in `fit_keypoints`.
        depth: (*batch, T) z of the root joint in camera coordinates [m]; not with ``views``.
        depth_sd: its standard deviation [m], broadcast to (*batch, T).
        pose_prior: as in `fit_keypoints`.
        start: (*batch, T, ...) initial bodies. The shape is the mean over the frames.
        start_sd: as in `fit_keypoints`; betas and age offset count once per clip.
        stages: as in `fit_keypoints`. The first one fits frames alone, unless a start is given.
        batch_size: frames fitted at a time, at least one clip.

    Returns:
        Finite bodies (*batch, T, ...) with equal betas and age offset in all frames, a report per clip
        (*batch), and errors (*batch, T) or (*batch, T, V) [pixels]. Clips in which no frame shows four
        keypoints do not converge.

    Source: AionHMR; Ye et al., "Decoupling Human and Camera Motion", CVPR 2023 (SLAHMR).
    """
    number = len(get_layout(layout))
    dims = 4 if views else 3
    keypoints = expect("keypoints", keypoints)
    if keypoints.dim() < dims or keypoints.shape[-2:] != (number, 2) or 0 in keypoints.shape[-dims:]:
        shape = f"(*batch, T, {'V, ' if views else ''}{number}, 2)"
        raise ValueError(f"keypoints: expected shape {shape}, got {tuple(keypoints.shape)}")
    if motion_sd is not None and not motion_sd > 0:
        raise ValueError(f"motion_sd: expected a standard deviation above 0 [m], or None, got {motion_sd}")
    if depth is not None and views:
        raise ValueError("depth: expected None with views, which determine it")
    batch, frames = keypoints.shape[:-dims], keypoints.shape[-dims]
    seen = keypoints.shape[-dims:-2]  # (T,) or (T, V)
    if age_class is not None:
        expect_labels("age_class", age_class, batch)
        age_class = age_class[(..., *[None] * len(seen))].expand(*batch, *seen)
    ages = _per_image(age_offset, len(seen)), age_class, _per_image(years, len(seen))
    mean, sd = (_per_image(part, len(seen)) for part in age_prior)
    counts = _read_lengths(lengths, batch, frames, body.device)
    with torch.no_grad(), own_precision(body.device):
        given = read_observed(
            body, keypoints, camera, layout, weights, noise, ages, depth, depth_sd, (mean, sd)
        )
        if start is not None:
            flat = read_start(body, start, (*batch, frames))
            start = flat.map(lambda part: part.unflatten(0, (-1, frames)))
        present = torch.arange(frames, device=body.device) < counts[:, None]
        evidence = _read_start_sd(start, start_sd, (*batch, frames), present)
        clips = _Clips(body, given, present, math.prod(seen) // frames, motion_sd, pose_prior, evidence)
        fit = _fit_in_batches(clips, stages, start, batch_size)
        last = torch.arange(frames, device=body.device).minimum(counts[:, None] - 1)
        clip = torch.arange(len(counts), device=body.device)[:, None]
        fit = fit._replace(parameters=fit.parameters.map(lambda part: part[clip, last]))
        images = len(counts), *seen
        fit = fit._replace(error=fit.error.reshape(images), start_error=fit.start_error.reshape(images))
        return join_fits([fit], batch)


def _fit_in_batches(
    clips: _Clips, stages: Sequence[Stage], start: BodyParameters | None, batch_size: int
) -> Fit:
    """Return fits (C, T, ...), with errors (C, T, V)."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if not stages:
        raise ValueError("stages: expected at least one")
    count, frames = clips.present.shape
    found = []
    for rows in torch.arange(count, device=clips.present.device).split(max(1, batch_size // frames)):
        begin = None if start is None else start.map(lambda part, rows=rows: part[rows])
        found.append(clips.take(rows).fit(stages, begin))
    return join_fits(found, (count,))


class _Clips:
    """C clips of T frames, seen by V cameras."""

    def __init__(
        self,
        body: BodyModel,
        given: Observed,
        present: Bool[Tensor, "C T"],
        views: int,
        motion_sd: float | None,
        pose_prior: MahalanobisPrior | MaxMixturePrior | None,
        evidence: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.evidence = evidence or {}
        """By group of parameters, (C, T, ...) estimates and their standard deviations."""
        self.body, self.views, self.motion_sd = body, views, motion_sd
        self.present = present
        """Frames that belong to each clip."""
        counted = present.flatten().repeat_interleave(views)
        self.given = given._replace(weights=given.weights * counted[:, None])
        """Flat over clips, frames and views."""
        self.prior = pose_prior_of(body, pose_prior)
        self.joints = seen_joints(body, given.layout, self.prior)

    def take(self, rows: Int[Tensor, " R"]) -> _Clips:
        """Return the clips with these indices, which may repeat."""
        found = copy.copy(self)
        images = torch.arange(len(self.given.noise), device=rows.device)
        images = images.view(len(self.present), self.present.shape[1] * self.views)
        found.given, found.present = self.given.take(images[rows].flatten()), self.present[rows]
        found.evidence = {name: (value[rows], sd[rows]) for name, (value, sd) in self.evidence.items()}
        return found

    def fit(self, stages: Sequence[Stage], start: BodyParameters | None) -> Fit:
        """Fit the clips from a start (C, T, ...), or from everyday poses seen from both sides.

        The last stage is also run from a second start, and the cheaper result kept: from what was given, as
        stages of other weights may lead away from it; for clips, from their frames fitted alone.
        """
        spent = torch.zeros_like(self.present[:, 0], dtype=torch.int64)
        first, second, rest = start, None, stages
        if start is None or first is None:
            alone = len(stages) > 1
            if self.present.shape[1] > 1:
                second, spent = self._frames_alone(stages)
            first, start, steps = self._start(stages[:alone])
            rest, spent = stages[alone:], spent + steps
        elif len(stages) > 1:
            second = start
        terms = self.terms()
        if self.motion_sd is not None and self.present.shape[1] > 1:
            terms["motion"] = Motion(self.body, self.motion_sd)
        ages = self._frame_ages()[:, 0]
        bounds = ages[:, 0], ages[:, 1]
        parameters, report = self._run(terms, rest, start, bounds, self.present)
        if second is not None:
            others, other_report = self._run(terms, stages[-1:], second, bounds, self.present)
            cheaper = other_report.cost < report.cost
            spent = spent + torch.where(cheaper, report.iterations, other_report.iterations)
            parameters = BodyParameters(*map(partial(select_rows, cheaper), others, parameters))
            report = tree_map(partial(select_rows, cheaper), other_report, report)
        seen = self._visible().any(1)
        parameters = BodyParameters(*map(partial(select_rows, seen), parameters, first))
        report = report._replace(converged=report.converged & seen, iterations=report.iterations + spent)
        errors = self._standard_errors(terms, stages[-1], parameters)
        return Fit(parameters, report, self._errors(parameters), self._errors(first), errors)

    def _frames_alone(self, stages: Sequence[Stage]) -> tuple[BodyParameters, Int[Tensor, " C"]]:
        """Return fits of single frames (C, T, ...), each unseen one that of the nearest, and their steps."""
        apart = copy.copy(self)
        apart.present, apart.motion_sd = torch.ones_like(self.present).flatten()[:, None], None
        fit = apart.fit(stages, None)
        clips, frames = self.present.shape
        frame, _ = follow_frames(self.given.noise.new_zeros(clips, frames, 1), None, self._visible())
        clip = torch.arange(clips, device=frame.device)[:, None]
        found = fit.parameters.map(lambda part: part[:, 0].unflatten(0, (clips, frames))[clip, frame])
        return found, fit.report.iterations.view(clips, frames).amax(1)

    def terms(self) -> dict[str, Term | Motion]:
        """Return the terms of frames, flat over (C, T)."""
        given, body = self.given, self.body
        keypoints, weights, noise = map(self._by_frame, (given.keypoints, given.weights, given.noise))
        expected, sd = given.ages[:: self.views, 2:].unbind(-1)
        camera = given.camera.map(self._by_frame)
        found: dict[str, Term | Motion] = {
            "keypoints": Reprojection(given.layout, keypoints, weights.square(), camera, noise),
            "pose": PosePrior(self.prior, body),
            "shape": ShapePrior(),
            "age": AgePrior(expected, sd),
        }
        if JointLimitPrior.applies_to(body):
            found["limits"] = JointLimitPrior(body, expected)
        if HyperextensionPrior.applies_to(body):
            found["hyperextension"] = HyperextensionPrior(body)
        for group, parts in self.evidence.items():
            found[f"start_{group}"] = StartPrior(group, *(part.flatten(0, 1) for part in parts))
        if given.has_depth:
            found["depth"] = Depth(given.depth, given.depth_sd, given.camera)
        return found

    def _run(
        self,
        terms: dict[str, Term | Motion],
        stages: Sequence[Stage],
        start: BodyParameters,
        age_bounds: tuple[Tensor, Tensor],
        present: Tensor | None = None,
    ) -> tuple[BodyParameters, FitReport]:
        """Fit bodies by stages, without terms that there are not, and with joints that move keypoints."""
        used = self._stages(terms, stages)
        return fit_bodies(self.body, terms, used, start, present=present, age_bounds=age_bounds)

    def _stages(self, terms: dict[str, Term | Motion], stages: Sequence[Stage]) -> list[Stage]:
        used = []
        for stage in stages:
            unknown = sorted({*stage.weights, *stage.scales} - {*TERMS})
            if unknown:
                known = ", ".join(TERMS)
                raise ValueError(f"stages: expected names of terms ({known}), got {', '.join(unknown)}")
            weights = {name: weight for name, weight in stage.weights.items() if name in terms}
            joints = self.joints if stage.joints is None else stage.joints
            used.append(stage._replace(weights=weights, joints=joints))
        return used

    def _standard_errors(
        self, terms: dict[str, Term | Motion], stage: Stage, parameters: BodyParameters
    ) -> StandardErrors:
        """Return standard errors, infinite for people who are not seen; the depth is the first camera's."""
        camera, ages = self.given.camera.map(self._by_frame), self._frame_ages()[:, 0]
        axis = parameters.transl.new_tensor([0.0, 0.0, 1.0]).expand(parameters.transl.shape)
        if camera.rotation is not None:
            axis = camera.rotation[:, 0, 2].view_as(axis)
        (used,) = self._stages(terms, [stage])
        bounds = ages[:, 0], ages[:, 1]
        found = standard_errors(
            self.body, terms, used, parameters, axis, present=self.present, age_bounds=bounds
        )
        known = bounds[0] == bounds[1]
        seen = self._visible().any(1)
        return StandardErrors(
            torch.where(seen | known, found.age_offset, torch.inf),
            torch.where(seen, found.stature, torch.inf),
            torch.where(seen[:, None], found.depth, torch.inf),
        )

    def _start(self, stages: Sequence[Stage]) -> tuple[BodyParameters, BodyParameters, Int[Tensor, " C"]]:
        """Return the best views (C, T, ...), the starts of whole clips, and the steps that finding them took.

        Each frame is fitted alone from two views that face opposite ways; of the results, those that follow
        from one another are taken.
        """
        count, (clips, frames) = 2, self.present.shape
        given = self.given
        confidence = self._by_frame(given.weights).sum(-1)
        every = torch.arange(len(confidence), device=confidence.device)
        best_view = given.take(every * self.views + confidence.argmax(-1))
        starts = starts_in_world(self.body, best_view, self.prior, self.joints, count)
        if self.views > 1:
            camera = given.camera.map(self._by_frame)
            seen = self._by_frame(given.keypoints), self._by_frame(given.weights)
            starts = move_to_rays(self.body, given.layout, *seen, camera, starts)
        first = starts.map(lambda part: part[: clips * frames].unflatten(0, (clips, frames)))
        cost, spent = (
            torch.zeros_like(starts.age_offset),
            torch.zeros_like(self.present[:, 0], dtype=torch.int64),
        )
        if stages:
            twice = self.take(torch.arange(clips, device=every.device).repeat(count))
            low, high = twice._frame_ages()[..., :2].flatten(0, 1).unbind(-1)
            starts, report = self._run(twice.terms(), stages, starts, (low, high))
            cost = report.cost
            spent = report.iterations.unflatten(0, (count, clips, frames)).amax(2).sum(0)

        def split(part: Tensor) -> Tensor:
            return part.unflatten(0, (count, clips, frames)).movedim(0, 2)  # (C, T, count, ...)

        joints, sd = None, self.motion_sd
        if sd is not None and frames > 1:
            places = self.body.keypoints(JOINTS, starts)
            size = skeleton_length(self.body.shape(starts).keypoints(JOINTS)) / skeleton_length(
                self.body.keypoints(JOINTS)
            )
            # As in the term, a clip has one size.
            joints = split(places) / (sd * split(size).mean((1, 2)))[:, None, None, None, None]
        frame, which = follow_frames(split(cost), joints, self._visible())
        clip = torch.arange(clips, device=frame.device)[:, None]
        chosen = starts.map(lambda part: split(part)[clip, frame, which])
        return first, self._at_depth(chosen), spent

    def _at_depth(self, parameters: BodyParameters) -> BodyParameters:
        """Move bodies along their rays to where the depth is known, with the age of that size."""
        body, given = self.body, self.given
        if not body.age_anchors or not given.has_depth:
            return parameters
        flat = parameters.map(lambda part: part.flatten(0, 1))
        pelvis = body.shape(flat).rest_joints[:, 0]
        place = (pelvis + flat.transl)[:, None]
        growth = given.depth / given.camera.to_camera(place)[:, 0, 2]
        growth = torch.where(growth.isfinite() & (growth > 0), growth, 1)
        curve = AgeCurve.from_asset(body.asset)
        low, high = given.ages[:, :2].unbind(-1)
        age = curve.stature_to_offset(curve.offset_to_stature(flat.age_offset) * growth).clamp(low, high)
        age = torch.where(growth == 1, flat.age_offset, age)
        eye = given.camera.position[:, None]
        place = (eye + (place - eye) * growth[:, None, None])[:, 0]
        pelvis = body.shape(flat._replace(age_offset=age)).rest_joints[:, 0]
        moved = flat._replace(age_offset=age, transl=place - pelvis)
        return moved.map(lambda part: part.unflatten(0, self.present.shape))

    def _visible(self) -> Bool[Tensor, "C T"]:
        """Return whether a frame shows enough points to be fitted alone."""
        count = (self._by_frame(self.given.weights) > 0).sum((1, 2))
        return (count >= MIN_POINTS).view_as(self.present)

    def _errors(self, parameters: BodyParameters) -> Float[Tensor, "C T V"]:
        """Return mean distances of keypoints, weighted by confidence [pixels]."""
        flat = parameters.map(lambda part: part.flatten(0, 1))
        points = self.body.keypoints(self.given.layout, flat)
        return self.given.errors(points.repeat_interleave(self.views, 0)).view(
            *self.present.shape, self.views
        )

    def _by_frame(self, part: Tensor) -> Tensor:
        """Return something of images (C T V, ...) as (C T, V, ...)."""
        return part.unflatten(0, (-1, self.views))

    def _frame_ages(self) -> Float[Tensor, "C T 4"]:
        return self.given.ages[:: self.views].view(*self.present.shape, 4)


def _read_start_sd(
    start: BodyParameters | None,
    start_sd: Mapping[str, float | Tensor] | None,
    batch: Sequence[int],
    present: Bool[Tensor, "C T"],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the start (C, T, ...) as evidence: estimates and standard deviations by group."""
    if start_sd is None:
        return {}
    if start is None:
        raise ValueError("start_sd: expected a start that it is about, got none")
    unknown = sorted(set(start_sd) - {*GROUPS})
    if unknown:
        raise ValueError(f"start_sd: expected some of {', '.join(GROUPS)}, got {', '.join(unknown)}")
    found = {}
    share = present / present.sum(1, keepdim=True)
    for name, sd in start_sd.items():
        value = getattr(start, name)
        entry = value.shape[2:]
        sd = torch.as_tensor(sd, dtype=value.dtype, device=value.device).detach()
        if not ((sd > 0) & sd.isfinite()).all():
            raise ValueError(f"start_sd[{name!r}]: expected standard deviations above 0")
        try:
            sd = sd.expand((*batch, *entry)).reshape(value.shape)
        except RuntimeError:
            raise ValueError(
                f"start_sd[{name!r}]: expected a shape that broadcasts to {(*batch, *entry)}, "
                f"got {tuple(sd.shape)}"
            ) from None
        if name in ("betas", "age_offset"):  # of the clip: the mean of its frames
            mean = (share[(..., *[None] * len(entry))] * value).sum(1, keepdim=True)
            value = mean.expand(value.shape)
        found[name] = value, sd
    return found


def _per_image(value: Number, dims: int) -> Number:
    """Return something of each person with dimensions for their images."""
    return value[(..., *[None] * dims)] if isinstance(value, Tensor) else value


def _read_lengths(
    lengths: Tensor | None, batch: torch.Size, frames: int, device: torch.device
) -> Int[Tensor, " C"]:
    if lengths is None:
        return torch.full((math.prod(batch),), frames, device=device)
    expect_labels("lengths", lengths, batch)
    if not ((lengths >= 1) & (lengths <= frames)).all():
        raise ValueError(f"lengths: expected 1 to {frames}, the number of frames")
    return lengths.to(device).long().reshape(-1)
