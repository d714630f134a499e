"""People of every age from 2D keypoints (SMPLify, AionHMR), batches at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from agebody.age import AGE_CLASSES, AgeCurve
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.fitting.bodies import Fit, FitReport, Stage, fit_bodies
from agebody.fitting.limits import Limits
from agebody.fitting.parameters import GROUPS, BodyParameters
from agebody.fitting.start import start_from_keypoints
from agebody.fitting.terms import Age, Bend, Depth, PosePrior, Reprojection, Shape, Term, keypoint_jacobian
from agebody.keypoints import KeypointLayout, get_layout
from agebody.least_squares import Method
from agebody.losses import MahalanobisPrior, MaxMixturePrior, joint_limits_prior
from agebody.poses import POSES
from agebody.poses import pose as everyday_pose
from agebody.reduction import Weights, expand_weights, expect, hide

NOISE_SHARE = 0.01
"""Standard deviation of a keypoint, of the larger side of the box around a person's keypoints."""

AGE_SD = 0.05
"""Standard deviation of an age offset that is expected from an age in years."""

UNKNOWN_AGE = (0.2, 0.4)
"""Mean and standard deviation of the age offset of a person of whom nothing is known."""

LEAST_POINTS = 4
"""Keypoints with a weight that a person must have to be fitted."""


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
    Step(1.0, 5.0, GROUPS, 60, 1e-3),
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
    method: Method = "lm",
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
        body: an `SMPLA`, or a layer of one age. Not one with ``smil=``.
        keypoints: (*batch, K, 2) [pixels].
        camera: its tensors broadcast to (*batch); `Camera.guess` where the focal length is not known.
        layout: of the keypoints.
        weights: (*batch, K) confidences, or a mask. What weighs nothing may be NaN.
        noise: standard deviation of keypoints of confidence 1 [pixels], a number or (*batch); 1 % of the
            larger side of the box around a person's keypoints if None.
        age_offset: held at this, a number or (*batch); NaN is not known.
        age_class: (*batch) index into ``AGE_CLASSES``, which bounds the age offset; -1 is not known.
        years: age, a number or (*batch); NaN is not known. The age offset is expected where the body's
            `AgeCurve` puts it, with a standard deviation of a twentieth.
        depth: (*batch) z of the root joint in camera coordinates [m]; NaN is not known.
        depth_sd: its standard deviation [m].
        pose_prior: ours is `joint_limits_prior` about a standing person.
        start: bodies to begin from, such as a network's, in place of those views.
        schedule: the steps.
        method: "lm", or "lbfgs" or "adam", which are there to compare with.
        chunk_size: people that are fitted at a time, which bounds memory. It has no influence on the result
            but for rounding.

    Returns:
        Finite bodies. People with fewer than four keypoints that weigh something are left at their start, and
        their report says so: not converged.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or is no number where it must be one.

    Source: Bogo et al., "Keep it SMPL", ECCV 2016; AionHMR; Pavlakos et al., CVPR 2019 for the robust cost.
    """
    ages = age_offset, age_class, years
    given = _read(body, keypoints, camera, layout, weights, noise, ages, depth, depth_sd)
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    if not schedule:
        raise ValueError("schedule: expected at least one step")
    batch = keypoints.shape[:-2]
    prior = _standing_prior(body) if pose_prior is None else pose_prior
    names = tuple(body.asset.joint_names[1:])
    prior = (prior if prior.joint_names == names else prior.for_joints(names)).to(body.device, body.dtype)
    if start is not None:
        start = BodyParameters(*(
            expect(f"start.{name}", part).expand(*batch, *like.shape[1:]).reshape(-1, *like.shape[1:])
            for (name, part), like in zip(start._asdict().items(), BodyParameters.zeros(body, 1), strict=True)
        ))  # fmt: skip
    people = max(1, math.prod(batch))
    found = []
    for first in range(0, people, chunk_size):
        rows = torch.arange(first, min(first + chunk_size, math.prod(batch)), device=body.device)
        begin = None if start is None else start.map(lambda part, rows=rows: part[rows])
        found.append(_fit(_Problem(body, given.take(rows), prior, method), begin, schedule))
    return _join(found, batch)


class _Given(NamedTuple):
    """What is known of B people."""

    keypoints: Float[Tensor, "B K 2"]
    weights: Float[Tensor, "B K"]
    noise: Float[Tensor, " B"]
    ages: Float[Tensor, "B 4"]
    """Lowest and highest age offset, the one that is expected, and its standard deviation."""
    depth: Float[Tensor, " B"]
    depth_sd: Float[Tensor, " B"]
    camera: Camera
    layout: KeypointLayout

    def take(self, rows: Int[Tensor, " R"]) -> _Given:
        """Some of them, or some of them twice."""
        parts = {name: part[rows] for name, part in self._asdict().items() if isinstance(part, Tensor)}
        return self._replace(camera=self.camera.map(lambda part: part[rows]), **parts)


class _Problem:
    """People to be fitted: their terms, and the stages that a schedule makes of them."""

    def __init__(
        self, body: BodyModel, given: _Given, prior: MahalanobisPrior | MaxMixturePrior, method: Method
    ) -> None:
        self.body, self.given, self.prior = body, given, prior
        self.method: Method = method
        self.low, self.high, self.expected, self.age_sd = given.ages.unbind(-1)
        self.joints = seen_joints(body, given.layout, prior)

    def take(self, rows: Int[Tensor, " R"]) -> _Problem:
        return _Problem(self.body, self.given.take(rows), self.prior, self.method)

    def run(self, schedule: Sequence[Step], start: BodyParameters, *, depth: bool = True) -> Fit:
        stages = self.stages(schedule, depth)
        return fit_bodies(self.body, stages, start, method=self.method, age_range=(self.low, self.high))

    def stages(self, schedule: Sequence[Step], depth: bool) -> list[Stage]:
        body, given = self.body, self.given
        fixed: dict[str, tuple[float, Term]] = {
            "pose": (1.0, PosePrior(self.prior, body)),
            "limits": (1.0, Limits(body, self.expected)),
            "bend": (1.0, Bend(body)),
            "shape": (1.0, Shape()),
            "age": (1.0, Age(self.expected, self.age_sd)),
        }
        if depth and not given.depth.isnan().all():
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

    def views(self, count: int) -> BodyParameters:
        """Starts in the world, (count * B, ...)."""
        given = self.given
        found = start_from_keypoints(
            self.body, given.layout, given.keypoints, given.weights, given.camera, self.expected, count=count
        )
        cameras = given.take(torch.arange(len(given.noise), device=given.noise.device).repeat(count)).camera
        placed = found.parameters.map(lambda part: part.flatten(0, 1))
        if self.joints is not None:
            names = self.body.asset.joint_names[1:]
            unseen = [j for j, name in enumerate(names) if name not in self.joints]
            mean = placed.body_pose.new_zeros(3 * len(names))
            mean[self.prior._columns] = self.prior.mean  # pyright: ignore
            placed.body_pose[:, unseen] = mean.unflatten(0, (-1, 3))[unseen]
        return to_world(self.body, placed, cameras)

    def at_depth(self, parameters: BodyParameters) -> BodyParameters:
        """Where the depth is known, bodies moved there along their rays, and of the age of that size."""
        body, given = self.body, self.given
        if not body.age_anchors or given.depth.isnan().all():
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
        given = self.given
        points = self.body.keypoints(
            given.layout, **parameters.arguments(self.body), pose_format="axis_angle"
        )
        offsets = hide(given.camera.project(points).pixels - given.keypoints, given.weights, 1)
        total = given.weights.sum(-1)
        return (given.weights * offsets.norm(dim=-1)).sum(-1) / torch.where(total > 0, total, 1)


def _fit(problem: _Problem, start: BodyParameters | None, schedule: Sequence[Step]) -> KeypointFit:
    batch = len(problem.given.noise)
    everyone = torch.arange(batch, device=problem.given.noise.device)
    count = 2 if start is None and len(schedule) > 1 else 1
    starts = problem.views(count) if start is None else start
    before = problem.errors(starts.map(lambda part: part[:batch]))
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
    report = report._replace(converged=report.converged & enough, iterations=report.iterations + spent)
    return KeypointFit(parameters, report, problem.errors(parameters), before)


def to_world(body: BodyModel, parameters: BodyParameters, camera: Camera) -> BodyParameters:
    """Bodies in camera coordinates, moved to the world of a camera with a pose."""
    if camera.rotation is None and camera.translation is None:
        return parameters
    shape = {"betas": parameters.betas}
    if body.age_anchors:
        shape["age_offset"] = parameters.age_offset
    rotation = camera.rotation
    if rotation is None:
        rotation = torch.eye(3, dtype=body.dtype, device=body.device).expand(len(parameters.betas), 3, 3)
    place = None if camera.translation is None else -(rotation.mT @ camera.translation[..., None])[..., 0]
    orient, transl = body.shape(**shape).move(
        rotation.mT, place, global_orient=parameters.global_orient, transl=parameters.transl,
        pose_format="axis_angle",
    )  # fmt: skip
    return parameters._replace(global_orient=orient, transl=transl)


def seen_joints(
    body: BodyModel, layout: KeypointLayout, prior: MahalanobisPrior | MaxMixturePrior
) -> list[str] | None:
    """Names of the joints whose rotations move a point, where the prior says nothing of the others by them.

    Those that are seen by nothing, such as the hands of COCO's keypoints, are then best at the prior's mean,
    and are left out. None where the prior makes joints depend on each other: all are free.
    """
    names = body.asset.joint_names
    bent = torch.linspace(-0.5, 0.5, 3 * len(names), dtype=body.dtype, device=body.device).view(1, -1, 3)
    nobody = BodyParameters.zeros(body, 1)
    slopes = keypoint_jacobian(body, layout)(bent, nobody.betas, nobody.age_offset, nobody.transl).pose
    moving = (slopes.abs().amax((0, 1, 2, 4)) > 1e-6)[1:]
    if moving.all() or isinstance(prior, MaxMixturePrior):
        return None
    columns = moving.repeat_interleave(3)[prior._columns]
    if (prior.factor[columns].square().sum(0) * prior.factor[~columns].square().sum(0)).any():
        return None
    return [name for name, moves in zip(names[1:], moving.tolist(), strict=True) if moves]


def _standing_prior(body: BodyModel) -> MahalanobisPrior:
    names = body.asset.joint_names
    mean = None
    if set(POSES["standing"]) <= set(names):
        mean = torch.from_numpy(everyday_pose("standing", names)[1:])
    return joint_limits_prior(names[1:], mean=mean, dtype=body.dtype, device=body.device)


def _join(found: Sequence[KeypointFit], batch: torch.Size) -> KeypointFit:
    """Chunks as one batch."""
    leaves, structure = zip(*(tree_flatten(fit) for fit in found), strict=True)
    whole = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    return tree_unflatten([part.unflatten(0, batch) if batch else part[0] for part in whole], structure[0])


def _read(
    body: BodyModel,
    keypoints: Tensor,
    camera: Camera,
    layout: str | KeypointLayout,
    weights: Tensor | None,
    noise: float | Tensor | None,
    ages: tuple[float | Tensor | None, Tensor | None, float | Tensor | None],
    depth: Tensor | None,
    depth_sd: float | Tensor,
) -> _Given:
    """Arguments, checked and in one batch."""
    layout = get_layout(layout)
    keypoints = expect("keypoints", keypoints, len(layout), 2)
    if (keypoints.dtype, keypoints.device) != (body.dtype, body.device):
        raise TypeError(
            f"keypoints: expected {body.dtype} on {body.device}, as the body, "
            f"got {keypoints.dtype} on {keypoints.device}"
        )
    batch = keypoints.shape[:-2]
    trust = expand_weights(keypoints.new_ones(()) if weights is None else weights, keypoints.shape[:-1])
    assert trust is not None  # as weights were given
    trust = trust.to(keypoints)
    if not (trust >= 0).all() or trust.isinf().any():
        raise ValueError("weights: expected finite numbers from 0 on")
    seen = hide(keypoints, trust, 1)
    if not seen.isfinite().all():
        raise ValueError("keypoints: expected finite pixels where the weights are not zero")
    flat = lambda tensor, *entry: tensor.expand((*batch, *entry)).reshape(-1, *entry)  # noqa: E731
    lens = camera.to(keypoints).expand(*batch)
    lens = lens.map(lambda part: part.reshape(-1, *part.shape[len(batch) :]))
    spread = seen.new_full((1,), torch.inf)
    low = torch.where((trust > 0)[..., None], seen, spread).amin(-2)
    high = torch.where((trust > 0)[..., None], seen, -spread).amax(-2)
    side = (high - low).amax(-1)
    own = torch.where(side > 0, side * NOISE_SHARE, 1).clamp(min=0.1)
    noise = own if noise is None else _numbers("noise", noise, batch, keypoints)
    if not (noise > 0).all():
        raise ValueError("noise: expected a standard deviation above 0 [pixels]")
    spare = keypoints.new_full((), torch.nan)
    known = _numbers("depth", spare if depth is None else depth, batch, keypoints)
    known_sd = _numbers("depth_sd", depth_sd, batch, keypoints)
    if not (known_sd > 0).all():
        raise ValueError("depth_sd: expected a standard deviation above 0 [m]")
    return _Given(
        flat(seen, *seen.shape[-2:]), flat(trust, seen.shape[-2]), flat(noise),
        _read_ages(body, *ages, batch, keypoints).reshape(-1, 4), flat(known), flat(known_sd), lens, layout,
    )  # fmt: skip


def _read_ages(
    body: BodyModel,
    age_offset: float | Tensor | None,
    kinds: Tensor | None,
    years: float | Tensor | None,
    batch: torch.Size,
    like: Tensor,
) -> Float[Tensor, "*batch 4"]:
    """Lowest, highest and expected age offset and its standard deviation: the most that is known counts."""
    if not body.age_anchors:
        if any(known is not None for known in (age_offset, kinds, years)):
            raise ValueError(f"age_offset, age_class, years: {type(body).__name__} has one age; use SMPLA")
        return like.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*batch, 4)
    mean, sd = UNKNOWN_AGE
    found = like.new_tensor([0.0, 1.0, mean, sd]).expand(*batch, 4)
    if kinds is not None:
        if kinds.is_floating_point() or kinds.dtype == torch.bool or kinds.shape != batch:
            raise ValueError(
                f"age_class: expected integers of shape {tuple(batch)}, "
                f"got {kinds.dtype} of {tuple(kinds.shape)}"
            )
        if not ((kinds >= -1) & (kinds < len(AGE_CLASSES))).all():
            raise ValueError(f"age_class: expected -1 to {len(AGE_CLASSES) - 1}")
        rows = like.new_tensor([[k.low, k.high, k.mid, (k.high - k.low) / 2] for k in AGE_CLASSES])
        found = torch.where((kinds >= 0)[..., None], rows[kinds.clamp(min=0)], found)
    if years is not None:
        age = AgeCurve.from_asset(body.asset).years_to_offset(_numbers("years", years, batch, like))
        reach = 3 * AGE_SD
        rows = torch.stack((age - reach, age + reach, age, torch.full_like(age, AGE_SD)), -1)
        found = torch.where(age.isnan()[..., None], found, rows)
    if age_offset is not None:
        age = _numbers("age_offset", age_offset, batch, like)
        rows = torch.stack((age, age, age, torch.ones_like(age)), -1)
        found = torch.where(age.isnan()[..., None], found, rows)
    return found


def _numbers(name: str, value: float | Tensor, batch: torch.Size, like: Tensor) -> Float[Tensor, "*batch"]:
    if not isinstance(value, Tensor):
        return like.new_full(batch, float(value))
    value = expect(name, value).to(like)
    try:
        return value.expand(batch)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {tuple(batch)}, got {tuple(value.shape)}"
        ) from None
