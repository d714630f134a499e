"""Scans and depth images to bodies: SMIL's three steps, shape, pose and surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.body import SMIL, BodyModel
from agebody.cameras import Camera
from agebody.checks import apply_mask, safe_norm
from agebody.engine.backend import BackendName
from agebody.engine.batched import own_precision
from agebody.fitting.scans.clouds import Cloud, Plane
from agebody.fitting.scans.energy import ScanEnergy
from agebody.fitting.scans.frames import Frames, read_frames
from agebody.fitting.scans.stages import SMPLIFY_KIDS, ScanStage
from agebody.fitting.scans.start import start_from_landmarks
from agebody.fitting.scans.steps import StepReport, fit_poses, fit_shape, step_report
from agebody.fitting.scans.surface import register_surface
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses import MahalanobisPrior, joint_limits_prior
from agebody.mesh.closest import closest_points
from agebody.mesh.collisions import Exclusions
from agebody.parameters import BodyParameters

ACCEPTED = 16.0
"""Mean reprojection error below which InfantNet keeps a frame [px]."""
NEAR = 0.03
"""Distance from the surface up to which a point of a scan counts as the body's in the report [m]."""


class ScanReport(NamedTuple):
    """What became of F frames."""

    shape_frames: Int[Tensor, " n"]
    """The frames that decided on the shape."""
    shape: StepReport
    """One problem."""
    pose: StepReport
    """A problem a frame."""
    surface: StepReport | None
    """A problem a frame; None without surfaces."""
    s2m: Float[Tensor, " F"]
    """Mean distance of the scan's points from the body's surface, of those nearer than 3 cm [m]; NaN where
    there is none."""
    outliers: Float[Tensor, " F"]
    """Share of the scan's points that are farther; 0 of an empty scan."""
    surface_s2m: Float[Tensor, " F"] | None
    """``s2m`` of the registered surface [m]."""
    reprojection: Float[Tensor, " F"] | None
    """Mean distance of the landmarks that weigh something in the image [px]; NaN where none does, None
    without landmarks."""
    accepted: Bool[Tensor, " F"]
    """Whether ``reprojection`` is below 16 px (InfantNet's rule), which NaN is not; without landmarks,
    whether a point of the scan is near the body."""


class ScanFit(NamedTuple):
    """Bodies in F frames."""

    parameters: BodyParameters
    """Of one person: betas and age offset are the same in all frames."""
    vertices: Float[Tensor, "F V 3"]
    """Of the bodies [m]."""
    surface: Float[Tensor, "F V 3"] | None
    """The same vertices, moved onto the scan [m]; None if not asked for."""
    report: ScanReport


def fit_scans(
    body: BodyModel,
    scans: Sequence[Cloud | Float[Tensor, "_ 3"]],
    camera: Camera,
    *,
    keypoints: Float[Tensor, "F K 2"] | None = None,
    weights: Float[Tensor, "*#entries"] | Bool[Tensor, "*#entries"] | None = None,
    layout: str | KeypointLayout = "coco17",
    plane: Plane | None = None,
    start: BodyParameters | None = None,
    age_offset: float | None = None,
    pose_prior: MahalanobisPrior | None = None,
    stages: Sequence[ScanStage] = SMPLIFY_KIDS,
    shape_frames: int = 5,
    rounds: int = 3,
    sample: int = 600,
    surface: bool = True,
    exclude: Exclusions | None = None,
    backend: BackendName = "auto",
) -> ScanFit:
    """One person in a sequence of scans, by the three steps of SMIL (Hesse et al., MICCAI 2018).

    1. *Shape.* From a few frames (`choose_frames`) one shape, and each frame's pose.
    2. *Pose.* Every frame, with the shape held. A frame is drawn to where the two before it foretell its
       joints. All frames are solved beside each other, and what is foretold is found anew in each round: as
       it only ever depends on earlier frames, the rounds end where fitting frame after frame would.
    3. *Surface.* A displacement of each vertex, see `agebody.fitting.scans.surface.register_surface`.

    Steps 1 and 2 go through the stages one after the other, from wide robust costs and strong priors to
    narrow and weak ones; step 3 has the last stage's weights, but for collisions, which it does not look at:
    it moves vertices by millimetres. The points of each scan that are looked at in
    steps 1 and 2 are a sample; step 3 and the report look at all.

    Args:
        body: a `SMIL`, `SMPL` or `SMPLA` layer.
        scans: one a frame, of the person alone [m]: `points_from_depth` and `above_plane` make them. May be
            empty where there are landmarks.
        camera: of all frames, or one a frame: what sees the scans and the landmarks.
        keypoints: landmarks in the images [px].
        weights: their confidences, broadcast to (F, K); those of weight 0 may be NaN.
        layout: what the landmarks are.
        plane: the table; None for none.
        start: where to begin, (F, ...) or () for all frames. Needed where there are no landmarks.
        age_offset: of a body that has ages, if known; otherwise found, between 0 and 1.
        pose_prior: of ``body_pose``; by default `agebody.losses.joint_limits_prior` at the age offset: 1 for
            a `SMIL` body, 0 for another of one age, half way where it is not known.
        stages: weights.
        shape_frames: frames that decide on the shape.
        rounds: of ten evaluations, in each stage, at most.
        sample: points of each scan, and twice the number of vertices, in steps 1 and 2.
        surface: whether to go on to step 3.
        exclude: pairs of faces that are no collision; found if None, which takes seconds. One
            ``Exclusions.of_body(body.asset)`` serves all sequences of a body.
        backend: of the searches for closest points; torch's is very slow.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes do not fit, numbers are not finite or weights below 0, or there is nothing to begin
            with.
    """
    with torch.inference_mode(False), torch.no_grad(), own_precision(body.device):
        layout = get_layout(layout)
        seen = read_frames(body, scans, camera, keypoints, weights, layout, plane)
        frames = len(seen.points)
        if not stages or rounds < 1 or shape_frames < 1 or sample < 2:
            raise ValueError(
                "stages, rounds, shape_frames, sample: expected at least one of each, two of sample"
            )
        if age_offset is not None and not body.age_anchors:
            raise ValueError(f"age_offset: {type(body).__name__} has one age")
        if age_offset is not None and not math.isfinite(age_offset):
            raise ValueError(f"age_offset: expected a finite number, got {age_offset}")
        known_age = None if age_offset is None else seen.points.new_tensor(age_offset)
        pose_prior = _read_prior(pose_prior, body, age_offset)
        if start is not None:
            start = _read_start(start, body, frames)
        elif seen.keypoints is not None:
            rest = _middle(pose_prior, body)
            start = start_from_landmarks(body, seen, layout, rest, known_age)
        else:
            raise ValueError(
                "start: expected parameters to begin with, since there are no keypoints; got None"
            )
        if known_age is not None:
            start = start._replace(age_offset=torch.full_like(start.age_offset, known_age.item()))
        if exclude is None and any(stage.collision for stage in stages):
            exclude = Exclusions.of_body(body.asset, backend=backend)
        exclude = exclude and exclude.to(body.device)
        energy = ScanEnergy(body, seen, layout, pose_prior, sample=sample, exclude=exclude, backend=backend)
        free_age = bool(body.age_anchors) and age_offset is None
        chosen = choose_frames(energy, start, shape_frames)
        vectors, shape_report = fit_shape(energy, start.vector(), chosen, stages, rounds, free_age)
        vectors, pose_report = fit_poses(energy, vectors, stages, rounds)
        parameters = BodyParameters.from_vector(vectors, body)
        vertices = body(parameters).vertices
        moved, surface_report = None, None
        if surface:
            # Skin that touches skin would meet at nearly every step, and hold the whole surface where it is.
            last = stages[-1]._replace(collision=0.0)
            moved, solution = register_surface(vertices, body.faces, seen, last, backend=backend)
            surface_report = step_report([solution], {})
        s2m, outliers = _distances(vertices, energy)
        reprojection = _reprojection(energy, parameters, layout)
        accepted = ~s2m.isnan() if reprojection is None else reprojection < ACCEPTED
        report = ScanReport(
            chosen, shape_report, pose_report, surface_report, s2m, outliers,
            None if moved is None else _distances(moved, energy)[0], reprojection, accepted,
        )  # fmt: skip
        return ScanFit(parameters, vertices, moved, report)


def choose_frames(energy: ScanEnergy, start: BodyParameters, count: int) -> Int[Tensor, " n"]:
    """Frames that show much, and different things, in ascending order.

    A frame shows the points of its scan, as a share of the fullest's, times the confidence of its landmarks,
    as a share of the surest's. Of the better half, but no fewer than are wanted, the first is the one that
    shows most; each further one is that whose camera sees a side of the body (the directions in which the
    body's axes point) and a scan (its extent in them) farthest from those before it.
    """
    seen = energy.seen
    size = (seen.weights != 0).sum(1).to(start.transl)
    shown = size / size.max().clamp(min=1)
    if seen.confidences is not None:
        sure = seen.confidences.sum(1)
        shown = shown * sure / sure.max().clamp(min=torch.finfo(sure.dtype).tiny)
    best = shown.argsort(descending=True, stable=True)
    best = best[: max(count, (len(best) + 1) // 2)]
    joints = energy.joints_of(start.vector()[best])
    spread = _extent(seen, best)
    looks = torch.cat(((joints - joints.mean(1, keepdim=True)).flatten(1), spread), 1)
    chosen = [0]
    while len(chosen) < min(count, len(best)):
        apart = torch.cdist(looks, looks[chosen]).amin(1)
        apart[chosen] = -1
        chosen.append(int(apart.argmax()))
    return best[chosen].sort().values


def _extent(seen: Frames, rows: Int[Tensor, " n"]) -> Float[Tensor, "n 9"]:
    """The covariance of each scan, as a standard deviation would be: in metres."""
    there = (seen.weights[rows] != 0)[..., None]
    points, count = seen.points[rows] * there, there.sum(1, keepdim=True).clamp(min=1)
    points = (points - points.sum(1, keepdim=True) / count) * there
    covariance = points.mT @ points / count
    return (covariance.sign() * covariance.abs().sqrt()).flatten(1)


def _read_start(start: BodyParameters, body: BodyModel, frames: int) -> BodyParameters:
    """One start a frame."""
    try:
        wanted = BodyParameters.zeros(body, frames)
        found = BodyParameters(*(part.expand_as(like) for part, like in zip(start, wanted, strict=True)))
    except RuntimeError as error:
        raise ValueError(
            f"start: expected parameters of this body, for one frame or {frames}: {error}"
        ) from None
    if not found.vector().isfinite().all():
        raise ValueError("start: expected finite numbers")
    return found


def _read_prior(
    prior: MahalanobisPrior | None, body: BodyModel, age_offset: float | None
) -> MahalanobisPrior:
    names = body.asset.joint_names[1:]
    if prior is not None:
        if prior.joint_names != names:
            raise ValueError("pose_prior: expected one of this body's joints, prior.for_joints(...)")
        return prior
    if age_offset is None:
        age_offset = 1.0 if isinstance(body, SMIL) else 0.5 if body.age_anchors else 0.0
    return joint_limits_prior(names, age_offset=age_offset, dtype=body.dtype, device=body.device)


def _middle(prior: MahalanobisPrior, body: BodyModel) -> Float[Tensor, "J 3"]:
    """The likeliest pose; zero in joints that the prior does not know."""
    names = body.asset.joint_names[1:]
    pose = torch.zeros(len(names), 3, dtype=body.dtype, device=body.device)
    known = [names.index(name) for name in prior.arrays.joint_names]
    pose[known] = prior.mean.to(pose).view(-1, 3)
    return pose


def _distances(vertices: Tensor, energy: ScanEnergy) -> tuple[Tensor, Tensor]:
    """Mean distance of near points from the surface [m], NaN without one; and the share of the others."""
    seen = energy.seen
    there = seen.weights != 0
    found = closest_points(seen.points, vertices, energy.body.faces, backend=energy.backend).distance
    near = there & (found < NEAR)
    mean = torch.where(near, found, 0).sum(1) / near.sum(1)
    return mean, (there & ~near).sum(1) / there.sum(1).clamp(min=1)


def _reprojection(energy: ScanEnergy, parameters: BodyParameters, layout: KeypointLayout) -> Tensor | None:
    seen = energy.seen
    if seen.keypoints is None or seen.confidences is None:
        return None
    points = energy.body.keypoints(layout, parameters)
    known = seen.confidences != 0
    error = safe_norm(apply_mask(seen.camera.project(points).pixels - seen.keypoints, known, 1))
    return error.sum(1) / known.sum(1)
