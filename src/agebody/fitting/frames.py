"""People of every age from 2D keypoints (SMPLify, AionHMR): images, videos, photographs, several cameras.

One image is a clip of one frame: both functions are one fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.cameras import Camera
from agebody.cameras.camera import expect_camera
from agebody.checks import Weights, expect, expect_labels, read_positive
from agebody.engine.batched import own_precision
from agebody.engine.trees import unflatten, without_gradients
from agebody.files import read_flag
from agebody.fitting.clips import TERMS, Clips, read_start_sd
from agebody.fitting.observed import UNKNOWN_AGE, read_age_prior, read_observed
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.optim.problem import Stage
from agebody.optim.stages import Fit, check_stages, fit_in_batches
from agebody.parameters import BodyParameters, read_start

Number = TypeVar("Number", float | Tensor, float | Tensor | None)

_PLACE = Stage(
    weights={"keypoints": 1 / 16, "depth": 0.0},
    scales={"keypoints": 4.0},
    groups=("global_orient", "body_pose", "transl"),
    max_iterations=8,
    cost_tolerance=1e-2,
)

SMPLIFY = (_PLACE, Stage(max_iterations=120, cost_tolerance=1e-3))
"""Pose and position, then everything. The faster preset, for single images."""

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
"""Pose and position, then everything with weak keypoints and motion, then everything."""


@without_gradients
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
    standard_errors: bool = True,
    batch_size: int = 256,
) -> Fit:
    """Fit bodies to keypoints in images: pose, position, shape and age per person.

    Finds the most probable person: minimizes ``½ Σ c² ρ((x - x_observed) / noise) + ½ |b|² + ½ E(θ) + ...``
    with confidences c, by Levenberg-Marquardt on the points alone, without the mesh. The first stage starts
    from the best of everyday poses seen from all sides, and from the best that faces the opposite way; the
    better result is kept.

    One image determines the size of a person by proportions alone: a child near the camera looks like an
    adult far away. A known age (``age_offset``, ``age_class``, ``years``) or depth resolves this.

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
            of the body's `AgeCurve`, with a standard deviation of 0.05, and within three of these. It
            counts before the class, and ``age_offset`` before both.
        age_prior: mean and standard deviation of the age offset of people whose age is not known, numbers or
            (*batch).
        depth: (*batch) z of the root joint in camera coordinates [m]; NaN where it is not known.
        depth_sd: its standard deviation [m].
        pose_prior: `joint_limits_prior` about a standing person if None.
        start: initial bodies, such as a network's, in place of the everyday poses.
        start_sd: how far the start may be off, which makes it a prior: standard deviations by group
            ("global_orient" and "body_pose" [rad], "betas", "age_offset", "transl" [m]), numbers or tensors
            that broadcast to that part of the start. Groups without one are only a starting point.
        stages: such as `AIONHMR`, or the faster `SMPLIFY`. The terms are "keypoints", "pose", "shape",
            "age", "limits", "hyperextension", "depth", "motion", and "start_betas" and so on.
        standard_errors: whether to compute them, which takes as long as two or three steps.
        batch_size: frames fitted at a time, which bounds memory. Results differ by rounding alone.

    Returns:
        Finite bodies in the world of the camera, and errors [pixels]. People with fewer than four keypoints
        of weight above 0 stay at their start, and do not converge.

    Source: Bogo et al., "Keep it SMPL", ECCV 2016; AionHMR; Pavlakos et al., CVPR 2019 for the robust cost.
    """
    expect_body(body)
    expect_camera(camera, of_fit=True)
    ages = age_offset, age_class, years
    with own_precision(body.device):
        given = read_observed(
            body, keypoints, camera, layout, weights, noise, ages, depth, depth_sd, age_prior
        )
        dims = _Dims(body, keypoints.shape[:-2])
        clips = Clips(body, given, dims.present, 1, None, pose_prior, *dims.read_start(start, start_sd))
        return _fit(clips, dims, stages, standard_errors, batch_size)


@without_gradients
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
    """Fit bodies to keypoints over time: pose and position per frame, one shape and age per clip.

    As `fit_keypoints` in each frame, plus the `Motion` between frames; shape and age count once per clip.
    Frames in which a person is not seen are bridged. Whole clips are solved at once by Levenberg-Marquardt,
    whose normal matrix is a chain of frames (`ChainQuadratic`): the time grows with T, not with its cube.

    The first stage fits every frame alone, from two views that face opposite ways. The clip starts from the
    sequence of these that fits best and moves least, so that no frame faces backwards. The last stage also
    runs from frames that all stages fitted alone, and the cheaper result is kept. Clips that ran out of steps
    have ``report.converged`` false and ``report.stop`` ``Stop.ITERATIONS``.

    - *Photographs* of one person at different times: ``motion_sd=None``.
    - *Several cameras*: ``views=True`` and cameras with a pose, (V, ...) if they are static. A single moment
      is T = 1.

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
    expect_body(body)
    expect_camera(camera, of_fit=True)
    number = len(get_layout(layout))
    times = [None, None] if read_flag("views", views) else [None]
    keypoints = expect("keypoints", keypoints, *times, number, 2)
    if 0 in keypoints.shape[-len(times) - 2 :]:
        raise ValueError(f"keypoints: expected a frame at least, got {tuple(keypoints.shape)}")
    if motion_sd is not None:
        read_positive("motion_sd", motion_sd, "None, or a standard deviation", " [m]", finite=False)
    if depth is not None and views:
        raise ValueError("depth: expected None with views, which determine it")
    batch, seen = keypoints.shape[: -len(times) - 2], keypoints.shape[-len(times) - 2 : -2]
    if age_class is not None:
        expect_labels("age_class", age_class, batch)
        age_class = age_class[(..., *[None] * len(seen))].expand(*batch, *seen)
    ages = _per_image(age_offset, len(seen)), age_class, _per_image(years, len(seen))
    mean, sd = (_per_image(part, len(seen)) for part in read_age_prior(age_prior))
    dims = _Dims(body, batch, seen, lengths)
    with own_precision(body.device):
        given = read_observed(
            body, keypoints, camera, layout, weights, noise, ages, depth, depth_sd, (mean, sd)
        )
        begin = dims.read_start(start, start_sd)
        clips = Clips(body, given, dims.present, math.prod(seen[1:]), motion_sd, pose_prior, *begin)
        return _fit(clips, dims, stages, True, batch_size)


class _Dims:
    """Dimensions of images: (*batch), or of clips (*batch, T) or (*batch, T, V); and frames per clip."""

    def __init__(
        self,
        body: BodyModel,
        batch: torch.Size,
        seen: Sequence[int] = (),
        lengths: Int[Tensor, "*batch"] | None = None,
    ) -> None:
        self.body, self.batch, self.images = body, batch, (*batch, *seen)
        self.frames, self.lead = seen[0] if seen else 1, (*batch, *seen[:1])
        if lengths is None:
            lengths = torch.full((*batch,), self.frames, device=body.device)
        elif not ((expect_labels("lengths", lengths, batch) >= 1) & (lengths <= self.frames)).all():
            raise ValueError(f"lengths: expected 1 to {self.frames}, the number of frames")
        self.lengths = lengths.to(body.device).long().reshape(-1, 1)
        self.frame = torch.arange(self.frames, device=body.device)

    @property
    def present(self) -> Bool[Tensor, "C T"]:
        """Whether each frame belongs to its clip."""
        return self.frame < self.lengths

    def read_start(
        self, start: BodyParameters | None, start_sd: Mapping[str, float | Tensor] | None
    ) -> tuple[BodyParameters | None, dict[str, tuple[Tensor, Tensor]]]:
        """Return the start (C, T, ...), and its estimates and standard deviations by group."""
        if start is not None:
            flat = read_start(self.body, start, self.lead)
            start = flat.map(lambda part: part.unflatten(0, (-1, self.frames)))
        return start, read_start_sd(start, start_sd, self.lead, self.present)


def _fit(clips: Clips, dims: _Dims, stages: Sequence[Stage], standard_errors: bool, batch_size: int) -> Fit:
    """Fit some clips at a time, and restore the dimensions of their images."""
    check_stages(stages, TERMS)
    standard_errors = read_flag("standard_errors", standard_errors)
    device, batch = dims.frame.device, dims.batch
    fit = fit_in_batches(
        lambda rows: clips.take(rows).fit(stages, standard_errors),
        len(dims.lengths),
        batch_size,
        device,
        frames=dims.frames,
    )
    clip = torch.arange(len(dims.lengths), device=device)[:, None]
    frame = dims.frame.minimum(dims.lengths - 1)
    errors = fit.standard_errors and unflatten(fit.standard_errors, batch)
    return Fit(
        unflatten(fit.parameters.map(lambda part: part[clip, frame].flatten(0, 1)), dims.lead),
        unflatten(fit.report, batch),
        fit.error.reshape(dims.images),
        fit.start_error.reshape(dims.images),
        errors and errors._replace(depth=errors.depth.reshape(dims.lead)),
    )


def _per_image(value: Number, dims: int) -> Number:
    """Add dimensions of images to the values of people."""
    return value[(..., *[None] * dims)] if isinstance(value, Tensor) else value
