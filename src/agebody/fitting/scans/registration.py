"""Fits of bodies to scans and depth images: SMIL's three steps, shape, pose and surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.body import SMIL, BodyModel
from agebody.body.model import expect_body
from agebody.cameras import Camera
from agebody.cameras.camera import expect_camera
from agebody.checks import read_count, read_number, read_positive
from agebody.engine.backend import BackendName, check_backend
from agebody.engine.batched import own_precision
from agebody.files import read_flag
from agebody.fitting.patches import farthest_points
from agebody.fitting.scans.clouds import Cloud, Plane
from agebody.fitting.scans.frames import Frames, read_frames
from agebody.fitting.scans.quality import distances, measure
from agebody.fitting.scans.stages import SMPLIFY_KIDS
from agebody.fitting.scans.start import start_from_images, start_from_landmarks
from agebody.fitting.scans.steps import fit_poses, fit_shape, uses
from agebody.fitting.scans.surface import register_surface
from agebody.fitting.scans.terms import TERMS, ScanTerms
from agebody.fitting.start import mean_pose
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses import MahalanobisPrior, joint_limits_prior
from agebody.mesh.collisions import Exclusions
from agebody.optim.problem import Stage
from agebody.optim.stages import FitReport, check_stages
from agebody.parameters import BodyParameters, read_start


class ScanReport(NamedTuple):
    """The report of a fit to F frames."""

    shape_frames: Int[Tensor, " n"]
    """Frames that determined the shape."""
    shape: FitReport
    """One problem."""
    pose: FitReport
    """One problem per frame."""
    surface: FitReport | None
    """One problem per frame, without costs of single terms; None without surfaces."""
    s2m: Float[Tensor, " F"]
    """Mean distance from the body of the points of the scan nearer than 3 cm [m]; NaN without such points."""
    outliers: Float[Tensor, " F"]
    """Share of the points that are farther; 0 for an empty scan."""
    uncovered: Float[Tensor, " F"]
    """Share of the vertices that the camera would see and that are farther than 3 cm, and the mean
    distance between points of the scan, from the scan; 1 for an empty one."""
    largest_beta: Float[Tensor, " F"]
    """Largest coefficient of the shape, without its sign."""
    surface_s2m: Float[Tensor, " F"] | None
    """``s2m`` of the registered surface [m]."""
    reprojection: Float[Tensor, " F"] | None
    """Mean error of the landmarks of non-zero weight in the image [pixels]; NaN without such landmarks, None
    if no landmarks were given."""
    accepted: Bool[Tensor, " F"]
    """Whether ``s2m`` is below ``max_s2m``, ``outliers`` and ``uncovered`` below 10 %, ``largest_beta`` below
    its bound of 5, and ``reprojection``, if there are landmarks, below 16 pixels (InfantNet's rule). NaN is
    not accepted."""


class ScanFit(NamedTuple):
    """Bodies in F frames."""

    parameters: BodyParameters
    """Of one person: betas and age offset are the same in all frames."""
    vertices: Float[Tensor, "F V 3"]
    """Of the bodies [m]."""
    surface: Float[Tensor, "F V 3"] | None
    """The vertices after moving onto the scan [m]; None if not requested."""
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
    stages: Sequence[Stage] = SMPLIFY_KIDS,
    shape_frames: int = 5,
    rounds: int = 3,
    sample: int = 600,
    surface: bool = True,
    max_s2m: float = 0.003,
    exclude: Exclusions | None = None,
    backend: BackendName = "auto",
) -> ScanFit:
    """Fit one person to a sequence of scans, by the three steps of SMIL (Hesse et al., MICCAI 2018).

    1. *Shape.* One shape, and the pose of each frame, from a few frames (`choose_frames`).
    2. *Pose.* Each frame with the shape fixed. A frame is attracted to the prediction of its joints from the
       two frames before. All frames are solved in parallel, and predictions are renewed in each round; as
       they depend on earlier frames only, the rounds converge to the result of fitting frame after frame.
       Frames of step 1 run through the last stage alone.
    3. *Surface.* A displacement of each vertex towards the scan, smooth over the edges.

    Steps 1 and 2 run through the stages, from wide robust costs and strong priors to narrow and weak ones.
    Step 3 uses the weights of the last stage, but not collisions, because it moves vertices by millimetres.
    Steps 1 and 2 use a sample of the points of each scan; step 3 and the report use all points.

    Args:
        body: a `SMIL`, `SMPL` or `SMPLA` layer.
        scans: one per frame, of the person alone [m], from `Cloud.from_depth` and `Cloud.above`. May be
            empty where there are landmarks.
        camera: one, or one per frame, of the scans and landmarks.
        keypoints: landmarks in the images [pixels].
        weights: their confidences, broadcast to (F, K); landmarks of weight 0 are ignored, even NaN.
        layout: of the landmarks.
        plane: the table, if any.
        start: start of each frame, (F, ...) or () for all; required without landmarks. By default step 1 runs
            from two, a fit to the landmarks in the images, and the mean pose moved onto the landmarks lifted
            to the scans, and the cheaper result is kept.
        age_offset: of a body with ages, if known; otherwise found, between 0 and 1.
        pose_prior: of ``body_pose``; by default `agebody.losses.joint_limits_prior` at the age offset: 1 for
            a `SMIL` body, 0 for other bodies of one age, 0.5 if unknown.
        stages: weights and robust scales by name of a term. Their terms are "s2m", "m2s", "inside", "close",
            "keypoints", "smooth", "pose", "hyperextension", "shape" and "collision".
        shape_frames: number of frames that determine the shape.
        rounds: of each stage, at most; between them, visibility and predictions are recomputed.
        sample: number of points of each scan, and twice the number of vertices, in steps 1 and 2.
        surface: whether to run step 3.
        max_s2m: ``s2m`` of accepted frames is below this [m]: some 1.5 times the noise of the scanner.
        exclude: pairs of faces that are no collision; found if None, which takes seconds. One
            ``Exclusions.of_body(body.asset)`` serves all sequences of a body.
        backend: of the searches for closest points; torch is very slow.
    """
    expect_body(body)
    expect_camera(camera, of_fit=True)
    with torch.inference_mode(False), torch.no_grad(), own_precision(body.device):
        layout = get_layout(layout)
        seen = read_frames(body, scans, camera, keypoints, weights, layout, plane)
        frames = len(seen.points)
        check_stages(stages, TERMS)
        read_count("rounds", rounds, least=1)
        read_count("shape_frames", shape_frames, least=1)
        read_count("sample", sample, least=2)
        surface = read_flag("surface", surface)
        read_positive("max_s2m", max_s2m, "a distance", " [m]", finite=False)
        check_backend(backend)
        if age_offset is not None and not body.age_anchors:
            raise ValueError(f"age_offset: {type(body).__name__} has one age")
        if age_offset is not None:
            age_offset = read_number("age_offset", age_offset)
        known_age = None if age_offset is None else seen.points.new_tensor(age_offset)
        pose_prior = _read_prior(pose_prior, body, age_offset)
        if start is not None:
            starts = [read_start(body, start, (frames,))]
        elif seen.keypoints is not None:
            starts = [
                start_from_landmarks(body, seen, layout, mean_pose(pose_prior, body), known_age),
                start_from_images(body, seen, layout, known_age),
            ]
        else:
            raise ValueError("start: expected parameters, because there are no keypoints, got None")
        if known_age is not None:
            starts = [start._replace(age_offset=known_age.expand(frames)) for start in starts]
        if exclude is None and any(uses(stage, "collision") for stage in stages):
            exclude = Exclusions.of_body(body.asset, backend=backend)
        exclude = exclude and exclude.to(body.device)
        maker = ScanTerms(body, seen, layout, pose_prior, sample=sample, exclude=exclude, backend=backend)
        free_age = bool(body.age_anchors) and age_offset is None
        chosen = choose_frames(maker, starts[-1], shape_frames)
        begin = [start.vector() for start in starts]
        vectors, shape_report = fit_shape(maker, begin, chosen, stages, rounds, free_age)
        vectors, pose_report = fit_poses(maker, vectors, chosen, stages, rounds)
        parameters = BodyParameters.from_vector(vectors, body)
        vertices = body(parameters).vertices
        moved, surface_report = None, None
        if surface:
            moved, surface_report = register_surface(vertices, body.faces, seen, stages[-1], backend=backend)
        quality = measure(maker, parameters, vertices)
        report = ScanReport(
            shape_frames=chosen,
            shape=shape_report,
            pose=pose_report,
            surface=surface_report,
            surface_s2m=None if moved is None else distances(moved, body.faces, seen, backend)[0],
            accepted=quality.excess(max_s2m) < 1,
            **quality._asdict(),
        )
        return ScanFit(parameters, vertices, moved, report)


def choose_frames(maker: ScanTerms, start: BodyParameters, count: int) -> Int[Tensor, " n"]:
    """Choose complete and diverse frames, in ascending order.

    The completeness of a frame is the number of points of its scan, relative to the fullest scan, times the
    confidence of its landmarks, relative to the highest. Candidates are the better half of the frames, or
    ``count`` if that is more. The first is the most complete; each further one differs most from those
    chosen in the directions of the body's axes towards the camera and in the extent of its scan.
    """
    seen = maker.seen
    size = (seen.weights != 0).sum(1).to(start.transl)
    shown = size / size.max().clamp(min=1)
    if seen.confidences is not None:
        sure = seen.confidences.sum(1)
        shown = shown * sure / sure.max().clamp(min=torch.finfo(sure.dtype).tiny)
    best = shown.argsort(descending=True, stable=True)
    best = best[: max(count, (len(best) + 1) // 2)]
    joints = maker.joints_of(start.vector()[best])
    looks = torch.cat(((joints - joints.mean(1, keepdim=True)).flatten(1), _extent(seen, best)), 1)
    return best[farthest_points(looks, count)[0]].sort().values


def _extent(seen: Frames, rows: Int[Tensor, " n"]) -> Float[Tensor, "n 9"]:
    """Return the square roots of the covariance of each scan, with signs [m]."""
    there = (seen.weights[rows] != 0)[..., None]
    points, count = seen.points[rows] * there, there.sum(1, keepdim=True).clamp(min=1)
    points = (points - points.sum(1, keepdim=True) / count) * there
    covariance = points.mT @ points / count
    return (covariance.sign() * covariance.abs().sqrt()).flatten(1)


def _read_prior(
    prior: MahalanobisPrior | None, body: BodyModel, age_offset: float | None
) -> MahalanobisPrior:
    names = body.asset.joint_names[1:]
    if prior is not None:
        if prior.joint_names != names:
            raise ValueError("pose_prior: expected one of this body's joints; use prior.for_joints(...)")
        return prior
    if age_offset is None:
        age_offset = 1.0 if isinstance(body, SMIL) else 0.5 if body.age_anchors else 0.0
    return joint_limits_prior(names, age_offset=age_offset, dtype=body.dtype, device=body.device)
