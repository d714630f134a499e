"""Clips of a person in images: the terms and starts of a fit, the second start, and its result."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from agebody.age import AgeCurve
from agebody.age.values import TALLEST
from agebody.body import BodyModel
from agebody.checks import expand_to, expect_numbers
from agebody.engine.trees import take_rows, where_rows
from agebody.fitting.observed import MIN_POINTS, FreePose, Observed, pose_prior_of, seen_joints
from agebody.fitting.start import follow_frames, move_to_rays, starts_in_world
from agebody.fitting.whole_body import coefficient_bounds
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.optim.limits import JointLimitPrior
from agebody.optim.motion import Motion, moving_joints, skeleton_length
from agebody.optim.problem import Stage
from agebody.optim.stages import Fit, FitReport, fit_bodies
from agebody.optim.standard_errors import StandardErrors, standard_errors
from agebody.optim.state import Term
from agebody.optim.terms import (
    Depth,
    HyperextensionPrior,
    ParameterPrior,
    PosePrior,
    Reprojection,
    ShapePrior,
)
from agebody.parameters import GROUPS, BodyParameters

TERMS = (
    *("keypoints", "pose", "shape", "age", "limits", "hyperextension", "depth", "motion"),
    *(f"start_{group}" for group in GROUPS),
)
"""Names of the terms, for the weights of stages."""


class Clips:
    """C clips of T frames, seen by V cameras."""

    def __init__(
        self,
        body: BodyModel,
        given: Observed,
        present: Bool[Tensor, "C T"],
        views: int,
        motion_sd: float | None,
        pose_prior: MahalanobisPrior | MaxMixturePrior | None,
        start: BodyParameters | None = None,
        evidence: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.start = start
        """(C, T, ...), or None for everyday poses seen from both sides."""
        self.evidence = evidence or {}
        """By group of parameters, (C, T, ...) estimates and their standard deviations."""
        self.body, self.views, self.motion_sd = body, views, motion_sd
        self.present = present
        """Frames that belong to each clip."""
        counted = present.flatten().repeat_interleave(views)
        self.given = given._replace(weights=given.weights * counted[:, None])
        """Flat over clips, frames and views."""
        if pose_prior is None:
            known = body.for_layout(given.layout, FreePose)
            self.prior, self.joints, self._pose_term = known.prior, known.joints, known.term
        else:
            self.prior = pose_prior_of(body, pose_prior)
            self.joints = seen_joints(body, given.layout, self.prior)
            self._pose_term = PosePrior(self.prior, body)

    def take(self, rows: Int[Tensor, " R"]) -> Clips:
        """Return the clips with these indices, which may repeat."""
        found = copy.copy(self)
        images = torch.arange(len(self.given.depth), device=rows.device)
        images = images.view(len(self.present), self.present.shape[1] * self.views)
        found.given, found.present = take_rows(self.given, images[rows].flatten()), self.present[rows]
        found.start, found.evidence = take_rows((self.start, self.evidence), rows)
        return found

    def fit(self, stages: Sequence[Stage], standard_errors: bool = True) -> Fit:
        """Fit the clips.

        The last stage is also run from a second start, and the cheaper result kept: the given one, as
        stages of other weights may lead away from it; for clips, their frames fitted alone.
        """
        spent = torch.zeros_like(self.present[:, 0], dtype=torch.int64)
        second, rest = None, stages
        if self.start is not None:
            first = start = self.start
            if len(stages) > 1:
                second = start
        else:
            if self.present.shape[1] > 1:
                second, spent = self._frames_alone(stages)
            alone = len(stages) > 1
            first, start, steps = self._start(stages[:alone])
            rest, spent = stages[alone:], spent + steps
        terms = self.terms()
        if self.motion_sd is not None and self.present.shape[1] > 1:
            terms["motion"] = Motion(self.body, self.motion_sd)
        parameters, report = self._run(terms, rest, start)
        if second is not None:
            others, other_report = self._run(terms, stages[-1:], second)
            cheaper = other_report.cost < report.cost
            spent = spent + torch.where(cheaper, report.iterations, other_report.iterations)
            parameters = where_rows(cheaper, others, parameters)
            report = where_rows(cheaper, other_report, report)
        seen = self._visible().any(1)
        parameters = where_rows(seen, parameters, first)
        (error, ahead), (start_error, _) = self._compare(parameters, first)
        ahead = (ahead.all(2) | ~self.present).all(1)
        spent = spent + report.iterations
        report = report._replace(converged=report.converged & seen & ahead, iterations=spent)
        shares = error / self.given.extent().view_as(error)
        report = report.accept(parameters.betas[:, 0], self.present.sum(1), shares.nanmean((1, 2)))
        errors = self._standard_errors(terms, stages[-1], parameters) if standard_errors else None
        return Fit(parameters, report, error, start_error, errors)

    def _frames_alone(self, stages: Sequence[Stage]) -> tuple[BodyParameters, Int[Tensor, " C"]]:
        """Return fits of single frames (C, T, ...), invisible ones as the nearest visible, and the steps."""
        apart = copy.copy(self)
        apart.present, apart.motion_sd = torch.ones_like(self.present).flatten()[:, None], None
        fit = apart.fit(stages, standard_errors=False)
        clips, frames = self.present.shape
        frame, _ = follow_frames(self.given.depth.new_zeros(clips, frames, 1), None, self._visible())
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
            "pose": self._pose_term,
            "shape": ShapePrior(),
            "age": ParameterPrior("age_offset", expected, sd),
        }
        if JointLimitPrior.applies_to(body):
            found["limits"] = JointLimitPrior(body, expected)
        if HyperextensionPrior.applies_to(body):
            found["hyperextension"] = HyperextensionPrior(body)
        for group, parts in self.evidence.items():
            found[f"start_{group}"] = ParameterPrior(group, *(part.flatten(0, 1) for part in parts))
        if given.has_depth:
            found["depth"] = Depth(given.depth, given.depth_sd, given.camera)
        return found

    def _run(
        self, terms: dict[str, Term | Motion], stages: Sequence[Stage], start: BodyParameters
    ) -> tuple[BodyParameters, FitReport]:
        """Fit clips (C, T, ...), or all frames alone (C T, ...); joints that move no keypoint are fixed."""
        used = [self._of_seen_joints(stage) for stage in stages]
        return fit_bodies(self.body, terms, used, start, names=TERMS, **self._bounds(start))

    def _bounds(self, bodies: BodyParameters) -> dict[str, Any]:
        """Return the frames that are present, and bounds of age and coefficients, of clips or of frames."""
        seen = self.given.weights.unflatten(0, (*self.present.shape, self.views))
        largest = coefficient_bounds(self.body, self.given.layout, seen)
        ages = self.given.ages[:: self.views].view(*self.present.shape, 4)
        if bodies.betas.dim() == 3:
            bounds = ages[:, 0, 0], ages[:, 0, 1]
            return {"present": self.present, "age_bounds": bounds, "beta_bound": largest}
        if isinstance(largest, Tensor):
            largest = largest.repeat_interleave(self.present.shape[1], 0)
        return {"age_bounds": ages.flatten(0, 1)[:, :2].unbind(-1), "beta_bound": largest}

    def _of_seen_joints(self, stage: Stage) -> Stage:
        return stage if stage.joints is not None else stage._replace(joints=self.joints)

    def _standard_errors(
        self, terms: dict[str, Term | Motion], stage: Stage, parameters: BodyParameters
    ) -> StandardErrors:
        """Return standard errors, infinite for invisible people; the depth is that of the first camera."""
        camera, bounds = self.given.camera.map(self._by_frame), self._bounds(parameters)
        axis = parameters.transl.new_tensor([0.0, 0.0, 1.0]).expand(parameters.transl.shape)
        if camera.rotation is not None:
            axis = camera.rotation[:, 0, 2].view_as(axis)
        used = self._of_seen_joints(stage)
        found = standard_errors(self.body, terms, used, parameters, axis, **bounds)
        low, high = bounds["age_bounds"]
        known, seen = low == high, self._visible().any(1)
        return StandardErrors(
            torch.where(seen | known, found.age_offset, torch.inf),
            torch.where(seen, found.stature, torch.inf),
            torch.where(seen[:, None], found.depth, torch.inf),
        )

    def _start(self, stages: Sequence[Stage]) -> tuple[BodyParameters, BodyParameters, Int[Tensor, " C"]]:
        """Return the best views (C, T, ...), the starts of whole clips, and the number of steps.

        Each frame is fitted alone from two views that face opposite ways; the start is the sequence of
        results of least cost and motion.
        """
        count, (clips, frames) = 2, self.present.shape
        given = self.given
        confidence = self._by_frame(given.weights).sum(-1)
        every = torch.arange(len(confidence), device=confidence.device)
        best_view = take_rows(given, every * self.views + confidence.argmax(-1))
        starts = starts_in_world(self.body, best_view, self.prior, self.joints, count)
        if self.views > 1:
            camera = given.camera.map(self._by_frame)
            seen = self._by_frame(given.keypoints), self._by_frame(given.weights)
            starts = move_to_rays(self.body, given.layout, *seen, camera, starts)
        first = starts.map(lambda part: part[: clips * frames].unflatten(0, (clips, frames)))
        cost = torch.zeros_like(starts.age_offset)
        spent = torch.zeros_like(self.present[:, 0], dtype=torch.int64)
        if stages:
            twice = self.take(torch.arange(clips, device=every.device).repeat(count))
            starts, report = twice._run(twice.terms(), stages, starts)
            cost = report.cost
            spent = report.iterations.unflatten(0, (count, clips, frames)).amax(2).sum(0)

        def split(part: Tensor) -> Tensor:
            return part.unflatten(0, (count, clips, frames)).movedim(0, 2)  # (C, T, count, ...)

        joints, sd = None, self.motion_sd
        if sd is not None and frames > 1:
            layout, shares = moving_joints(self.body)
            places = self.body.keypoints(layout, starts) * shares[:, None]
            size = skeleton_length(self.body.shape(starts).keypoints(layout)) / skeleton_length(
                self.body.keypoints(layout)
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
        statures = (curve.offset_to_stature(flat.age_offset) * growth).clamp(max=TALLEST)
        age = curve.stature_to_offset(statures).clamp(low, high)
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

    def _compare(self, *bodies: BodyParameters) -> list[tuple[Tensor, Tensor]]:
        """Return for each of several results what `Observed.compare` does, (C, T, V) each."""
        flat = BodyParameters(*(torch.cat(parts).flatten(0, 1) for parts in zip(*bodies, strict=True)))
        points = self.body.keypoints(self.given.layout, flat).repeat_interleave(self.views, 0)
        images = (*self.present.shape, self.views)
        found = map(self.given.compare, points.tensor_split(len(bodies)))
        return [(error.view(images), ahead.view(images)) for error, ahead in found]

    def _by_frame(self, part: Tensor) -> Tensor:
        """Group entries of images (C T V, ...) by frame, (C T, V, ...)."""
        return part.unflatten(0, (-1, self.views))


def read_start_sd(
    start: BodyParameters | None,
    start_sd: Mapping[str, float | Tensor] | None,
    batch: Sequence[int],
    present: Bool[Tensor, "C T"],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the start (C, T, ...) as a prior: estimates and standard deviations by group."""
    if start_sd is None:
        return {}
    if start is None:
        raise ValueError("start_sd: expected start, too, got none")
    if not isinstance(start_sd, Mapping):
        got = type(start_sd).__name__
        raise TypeError(f"start_sd: expected a dictionary of standard deviations by group, got {got}")
    unknown = sorted(set(start_sd) - {*GROUPS})
    if unknown:
        raise ValueError(f"start_sd: expected some of {', '.join(GROUPS)}, got {', '.join(unknown)}")
    found = {}
    share = present / present.sum(1, keepdim=True)
    for name, sd in start_sd.items():
        value = getattr(start, name)
        entry = value.shape[2:]
        sd = expect_numbers(f"start_sd[{name!r}]", sd, value).detach()
        if not ((sd > 0) & sd.isfinite()).all():
            raise ValueError(f"start_sd[{name!r}]: expected standard deviations above 0")
        sd = expand_to(f"start_sd[{name!r}]", sd, (*batch, *entry)).reshape(value.shape)
        if name in ("betas", "age_offset"):  # of the clip: the mean of its frames
            mean = (share[(..., *[None] * len(entry))].to(value) * value).sum(1, keepdim=True)
            value = mean.expand(value.shape)
        found[name] = value, sd
    return found
