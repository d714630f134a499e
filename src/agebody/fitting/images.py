"""People of every age from 2D keypoints (SMPLify, AionHMR), batches at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from agebody.age import AgeCurve
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.checks import Weights
from agebody.engine.rowwise import own_precision
from agebody.fitting.observed import LEAST_POINTS, Observed, pose_prior_of, read_observed, seen_joints
from agebody.fitting.start import starts_in_world
from agebody.keypoints import KeypointLayout
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.optim.limits import Limits
from agebody.optim.stages import Fit, FitReport, Stage, fit_bodies
from agebody.optim.terms import Age, Bend, Depth, PosePrior, Reprojection, Shape, Term
from agebody.parameters import GROUPS, BodyParameters, read_start


class Step(NamedTuple):
    """One step of the schedule of `fit_keypoints`."""

    noise: float
    """Standard deviation of keypoints, in multiples of the ``noise`` of a call: how little they count yet."""
    robust: float
    """Scale of Geman-McClure's cost, in multiples of the same."""
    groups: Sequence[str]
    max_iterations: int
    cost_tolerance: float
    """Share of the cost that a step must gain for this one to go on."""


SCHEDULE = (
    Step(4.0, 20.0, ("global_orient", "body_pose", "transl"), 8, 1e-2),
    Step(1.0, 5.0, GROUPS, 120, 1e-3),
)
"""Pose and place, then all of the body. After the first step the better start goes on."""


class KeypointFit(NamedTuple):
    """People found in images."""

    parameters: BodyParameters
    """In the world of the camera."""
    report: FitReport
    reprojection: Float[Tensor, "*batch"]
    """Mean distance of the keypoints that count, weighted by confidence [pixels]."""
    start_reprojection: Float[Tensor, "*batch"]
    """The same before the first step [pixels]."""


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
    depth: Float[Tensor, "*batch"] | None = None,
    depth_sd: float | Tensor = 0.01,
    pose_prior: MahalanobisPrior | MaxMixturePrior | None = None,
    start: BodyParameters | None = None,
    schedule: Sequence[Step] = SCHEDULE,
    chunk_size: int = 256,
) -> KeypointFit:
    """Bodies whose keypoints project onto those seen: pose, place, shape and age of each person alone.

    The most probable person: ``½ Σ c² ρ((x − x_seen) / noise) + ½ |b|² + ½ E(θ) + ...``, minimised by
    Levenberg-Marquardt on the points alone, without the mesh, in two steps: pose and place, then everything.
    It starts from the best of everyday poses seen from all sides, and from the best that faces another way;
    after the first step the better of both goes on.

    From one image the size of a person is known only as far as proportions tell it: a child near by shows
    like an adult far away. What is known of age (``age_offset``, ``age_class``, ``years``) or of depth
    decides it.

    Args:
        body: an `SMPLA`, or a layer of one age. Not one with ``smil=``. What is said of joints that it has
            not, such as SMPL's ranges of motion, is left out.
        keypoints: (*batch, K, 2) [pixels].
        camera: its tensors broadcast to (*batch); `Camera.guess` where the focal length is not known.
        layout: of the keypoints.
        weights: (*batch, K) confidences, or a mask. What weighs nothing may be NaN.
        noise: standard deviation of keypoints of confidence 1 [pixels], a number or (*batch); 1 % of the
            larger side of the box around a person's keypoints if None.
        age_offset: held at this, a number or (*batch); NaN is not known.
        age_class: (*batch) index into ``AGE_CLASSES``, which bounds the age offset; -1 is not known.
        years: age, a number or (*batch); NaN is not known. The age offset is expected where the body's
            `AgeCurve` puts it, with a standard deviation of 0.05, and held within three of these.
        depth: (*batch) z of the root joint in camera coordinates [m]; NaN is not known.
        depth_sd: its standard deviation [m].
        pose_prior: ours is `joint_limits_prior` about a standing person.
        start: bodies to begin from, such as a network's, in place of those views.
        schedule: the steps.
        chunk_size: people that are fitted at a time, which bounds memory. It has no influence on the result
            but for rounding.

    Returns:
        Finite bodies. People with fewer than four keypoints that weigh something are left at their start, and
        their report says so: not converged.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or is no number where it must be one.

    Source: Bogo et al., "Keep it SMPL", ECCV 2016; AionHMR; Pavlakos et al., CVPR 2019 for the robust cost.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    if not schedule:
        raise ValueError("schedule: expected at least one step")
    ages = age_offset, age_class, years
    with torch.no_grad(), own_precision(body.device):
        given = read_observed(body, keypoints, camera, layout, weights, noise, ages, depth, depth_sd)
        prior = pose_prior_of(body, pose_prior)
        batch = keypoints.shape[:-2]
        if start is not None:
            start = read_start(body, start, batch)
        people = math.prod(batch)
        found = []
        for first in range(0, max(1, people), chunk_size):
            rows = torch.arange(first, min(first + chunk_size, people), device=body.device)
            begin = None if start is None else start.map(lambda part, rows=rows: part[rows])
            found.append(_fit(_Problem(body, given.take(rows), prior), begin, schedule))
        return _join(found, batch)


class _Problem:
    """People to be fitted: their terms, and the stages that a schedule makes of them."""

    def __init__(self, body: BodyModel, given: Observed, prior: MahalanobisPrior | MaxMixturePrior) -> None:
        self.body, self.given, self.prior = body, given, prior
        self.low, self.high, self.expected, self.age_sd = given.ages.unbind(-1)
        self.joints = seen_joints(body, given.layout, prior)

    def take(self, rows: Int[Tensor, " R"]) -> _Problem:
        return _Problem(self.body, self.given.take(rows), self.prior)

    def run(self, schedule: Sequence[Step], start: BodyParameters, *, depth: bool = True) -> Fit:
        stages = self.stages(schedule, depth)
        return fit_bodies(self.body, stages, start, age_range=(self.low, self.high))

    def stages(self, schedule: Sequence[Step], depth: bool) -> list[Stage]:
        body, given = self.body, self.given
        fixed: dict[str, tuple[float, Term]] = {
            "pose": (1.0, PosePrior(self.prior, body)),
            "shape": (1.0, Shape()),
            "age": (1.0, Age(self.expected, self.age_sd)),
        }
        if Limits.fits(body):
            fixed["limits"] = (1.0, Limits(body, self.expected))
        if Bend.fits(body):
            fixed["bend"] = (1.0, Bend(body))
        if depth and given.has_depth:
            fixed["depth"] = (1.0, Depth(given.depth, given.depth_sd, given.camera))
        return [
            Stage(
                {"keypoints": (step.noise**-2, self.reprojection(step.robust)), **fixed},
                step.groups,
                self.joints,
                max_iterations=step.max_iterations,
                cost_tolerance=step.cost_tolerance,
            )
            for step in schedule
        ]

    def reprojection(self, robust: float) -> Reprojection:
        given = self.given
        return Reprojection(
            given.layout, given.keypoints[:, None], given.weights.square()[:, None],
            given.camera.map(lambda part: part[:, None]), given.noise[:, None], scale=robust,
        )  # fmt: skip

    def at_depth(self, parameters: BodyParameters) -> BodyParameters:
        """Where the depth is known, bodies moved there along their rays, and of the age of that size."""
        body, given = self.body, self.given
        if not body.age_anchors or not given.has_depth:
            return parameters
        pelvis = body.shape(betas=parameters.betas, age_offset=parameters.age_offset).rest_joints[:, 0]
        place = (pelvis + parameters.transl)[:, None]
        growth = given.depth / given.camera.to_camera(place)[:, 0, 2]
        growth = torch.where(growth.isfinite() & (growth > 0), growth, 1)
        curve = AgeCurve.from_asset(body.asset)
        age = curve.stature_to_offset(curve.offset_to_stature(parameters.age_offset) * growth)
        age = torch.where(growth == 1, parameters.age_offset, age.clamp(self.low, self.high))
        eye = given.camera.position[:, None]
        place = (eye + (place - eye) * growth[:, None, None])[:, 0]
        pelvis = body.shape(betas=parameters.betas, age_offset=age).rest_joints[:, 0]
        return parameters._replace(age_offset=age, transl=place - pelvis)

    def errors(self, parameters: BodyParameters) -> Float[Tensor, " B"]:
        """Mean distances of keypoints that count [pixels]."""
        return self.given.errors(self.body.keypoints(self.given.layout, parameters))


def _fit(problem: _Problem, start: BodyParameters | None, schedule: Sequence[Step]) -> KeypointFit:
    batch = len(problem.given.noise)
    everyone = torch.arange(batch, device=problem.given.noise.device)
    count = 2 if start is None and len(schedule) > 1 else 1
    starts = start
    if starts is None:
        starts = starts_in_world(problem.body, problem.given, problem.prior, problem.joints, count)
    first = starts.map(lambda part: part[:batch])
    trials = len(schedule) - 1 if count > 1 else 0
    spent = torch.zeros_like(everyone)
    if trials:
        both = problem.take(everyone.repeat(count))
        tried = both.run(schedule[:trials], starts, depth=False)
        best = tried.report.cost.unflatten(0, (count, batch)).argmin(0) * batch + everyone
        starts = problem.at_depth(tried.parameters.map(lambda part: part[best]))
        spent = tried.report.iterations.unflatten(0, (count, batch)).sum(0)
    parameters, report = problem.run(schedule[trials:], starts)
    enough = (problem.given.weights > 0).sum(-1) >= LEAST_POINTS
    parameters = BodyParameters(
        *(torch.where(enough[(..., *[None] * (new.dim() - 1))], new, old)
          for new, old in zip(parameters, first, strict=True))
    )  # fmt: skip
    report = report._replace(converged=report.converged & enough, iterations=report.iterations + spent)
    return KeypointFit(parameters, report, problem.errors(parameters), problem.errors(first))


def _join(found: Sequence[KeypointFit], batch: torch.Size) -> KeypointFit:
    """Chunks as one batch."""
    leaves, structure = zip(*(tree_flatten(fit) for fit in found), strict=True)
    whole = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    return tree_unflatten([part.unflatten(0, batch) if batch else part[0] for part in whole], structure[0])
