"""Fit bodies to the keypoints of files, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.age import parse_ages
from agebody.annotations.calibration import LENS, Cameras
from agebody.annotations.people import People, fail
from agebody.annotations.tracks import frame_numbers
from agebody.annotations.views import view_frames
from agebody.body import BodyModel
from agebody.cameras import Camera, box_around
from agebody.checks import read_count, read_positive, read_share
from agebody.engine.trees import take_rows
from agebody.fitting.frames import AIONHMR, fit_keypoints, fit_sequence
from agebody.fitting.start import to_camera_space
from agebody.keypoints import KeypointLayout, joint_layout
from agebody.measure import stature
from agebody.nets import Lifter, fit_lifted
from agebody.nets.lifter import Estimate
from agebody.optim.least_squares import Stop
from agebody.optim.stages import Fit, FitReport, fit_error
from agebody.optim.standard_errors import StandardErrors
from agebody.parameters import BodyParameters
from agebody.pipelines.labels.quality import SIDES_EXCHANGED, flag_labels
from agebody.pipelines.labels.records import Labels, concatenate_labels

BATCH_SIZE = 256


def fit_annotations(
    body: BodyModel,
    people: People,
    *,
    focal: float | None = None,
    fov: float | None = None,
    age_offset: float | None = None,
    age_class: str | int | None = None,
    years: float | None = None,
    min_confidence: float = 0.0,
    batch_size: int = BATCH_SIZE,
    lifter: Lifter | None = None,
    motion_sd: float | None = None,
    cameras: Cameras | None = None,
    progress: Callable[[int], None] = lambda people: None,
    **options: Any,
) -> Labels:
    """Fit a body to everyone in a file of keypoints, and flag fits that may be wrong.

    Principal points are the middles of the images. Focal lengths and ages of the file take precedence over
    the arguments. Without a focal length, it is CLIFF's guess, the diagonal of the image (`Camera.guess`).

    Args:
        body: the layer; an `SMPLA` for people of all ages.
        people: such as `agebody.annotations.read_people` returns.
        focal: focal length [pixels].
        fov: vertical field of view [rad], instead.
        age_offset: 0 adult, 1 infant.
        age_class: name or index of ``AGE_CLASSES``, instead.
        years: age in years, instead.
        min_confidence: keypoints of less confidence are ignored.
        batch_size: people fitted at a time.
        lifter: fits start at its estimates, which are also a prior of single images; see `fit_lifted`.
        motion_sd: as of `fit_sequence`, from frame to frame [m]: people with the same ``tracks`` are one
            person with one shape and age, fitted over all frames. None fits each image alone.
        cameras: of synchronised views, with ``motion_sd`` and the people of `join_views`: all views of a
            moment show one pose. The labels of each view are in its camera's coordinates.
        progress: called with the number of people done, after each batch.
        options: of `fit_keypoints`, such as its ``pose_prior`` or ``stages``.

    Raises:
        AnnotationError: an age is given and the body has only one, or the size of an image is unknown.
    """
    given = {"age_offset": age_offset, "years": years, "age_class": age_class}
    if focal is not None and fov is not None:
        raise ValueError("focal, fov: expected one of them")
    if focal is not None:
        read_positive("focal", focal, "a length", " [pixels]")
    if motion_sd is not None:
        read_positive("motion_sd", motion_sd, "None, or a standard deviation", " [m]", finite=False)
    read_count("batch_size", batch_size, least=1)
    if cameras is not None and lifter is not None:
        raise ValueError("lifter: expected None with cameras; it estimates single views")
    if cameras is not None and (motion_sd is None or focal is not None or fov is not None):
        raise ValueError("cameras: expected motion_sd with them, and neither focal nor fov")
    if motion_sd is not None and (people.tracks is None or (people.tracks < 0).any()):
        fail(people.path, "tracks: expected a number for everybody, to fit people over time")
    min_confidence = read_share("min_confidence", min_confidence)
    people.image_sizes()
    people = with_ages(body, people, **given)
    people = replace(people, weights=np.where(people.weights >= min_confidence, people.weights, 0))
    rows = np.arange(len(people))
    parts, done = [], 0
    for some in np.split(rows, rows[batch_size::batch_size]) if motion_sd is None else _tracks(people):
        batch = people.select(some)
        camera = people_cameras(body, batch, focal, fov)
        exchanged = np.zeros(len(batch), dtype=bool)
        if motion_sd is None and lifter is not None:
            fit, batch, exchanged = _fit_lifted(body, batch, camera, lifter, **options)
        elif motion_sd is None:
            fit = fit_people(body, batch, camera, **options)
        elif cameras is None:
            one = np.zeros(len(batch), dtype=np.int64), frame_numbers(batch)
            fit = _fit_track(body, batch, camera, *one, lifter, motion_sd=motion_sd, **options)
        else:
            views, frames = view_frames(batch, cameras.names)
            lenses = cameras.camera.to(body.device, body.dtype)
            fit = _fit_track(body, batch, lenses, views, frames, None, motion_sd=motion_sd, **options)
            camera = lenses.map(itemgetter(torch.from_numpy(views)))
            fit = fit._replace(parameters=to_camera_space(body, fit.parameters, camera))
            camera = camera._replace(rotation=None, translation=None)
        made = make_labels(body, batch, camera, fit)
        parts.append(replace(made, flags={SIDES_EXCHANGED: exchanged}))
        done += len(batch)
        progress(done)
    labels = concatenate_labels(parts)
    if motion_sd is not None:
        labels = labels.select(np.argsort(np.concatenate(_tracks(people)), kind="stable"))
    return flag_labels(labels)


def _tracks(people: People) -> list[np.ndarray]:
    """Return the rows of each track, in the order of the frames."""
    assert people.tracks is not None
    order = np.lexsort((frame_numbers(people), people.tracks))
    return np.split(order, np.flatnonzero(np.diff(people.tracks[order])) + 1)


def _fit_track(
    body: BodyModel,
    people: People,
    camera: Camera,
    views: Int[np.ndarray, " N"],
    frames: Int[np.ndarray, " N"],
    lifter: Lifter | None,
    **options: Any,
) -> Fit:
    """Fit one person over time; frames between in which they are not seen are bridged, and left out.

    Args:
        body: the layer.
        people: the person, in the order of the frames in each view.
        camera: of each frame in which one camera sees the person, or with a pose of each view (V).
        views: which camera sees the person.
        frames: at which time.
        lifter: the fit starts at its estimates of single frames of one camera.
        options: of `fit_sequence`.
    """
    first, count = frames.min(), 1 if camera.rotation is None else len(camera.focal)
    seen = frames - first
    _, once = np.unique(seen * count + views, return_index=True)
    if len(once) < len(seen):
        again = np.setdiff1d(np.arange(len(seen)), once)[0]
        fail(people.path, f"{people.images[people.image[again]].name}: the same track twice")
    shape = seen.max() + 1, count, people.keypoints.shape[1]
    points, weights = np.zeros((*shape, 2)), np.zeros(shape)
    points[seen, views], weights[seen, views] = people.keypoints, people.weights
    given: dict[str, Any] = {"layout": people.layout, "weights": _tensor(body, weights)[None]}
    if body.age_anchors:
        known = int(np.argmax(people.ages.known))  # the first that is stated, if any
        given |= _ages(body, people.select(slice(known, known + 1)))
    if camera.rotation is None:
        nearest = torch.arange(shape[0], device=body.device)
        nearest = torch.searchsorted(torch.from_numpy(seen).to(nearest), nearest, right=True) - 1
        if lifter is not None:
            start = lift(lifter, body, people, camera).parameters.map(lambda part: part[nearest][None])
            options = {"start": start, "stages": AIONHMR[1:], **options}
        camera = camera.map(lambda part: part[nearest, None])
    fit = fit_sequence(body, _tensor(body, points)[None], camera, views=True, **given, **options)
    one, there, eye = torch.zeros(len(seen), dtype=torch.long), *map(torch.from_numpy, (seen, views))
    errors = fit.standard_errors
    assert errors is not None
    # The depth's is along the axis of the first camera.
    depth_sd = torch.where(eye.to(body.device) == 0, errors.depth[0, there], torch.nan)
    return Fit(
        fit.parameters.map(lambda part: part[0, there]),
        take_rows(fit.report, one),
        fit.error[0, there, eye],
        fit.start_error[0, there, eye],
        errors._replace(age_offset=errors.age_offset[one], stature=errors.stature[one], depth=depth_sd),
    )


def with_ages(body: BodyModel, people: People, **given: Any) -> People:
    """Return people with the ages of their file, and elsewhere those given.

    Raises:
        AnnotationError: there are ages, and the body has only one.
    """
    ages = people.ages.fill(parse_ages(**given, shape=(len(people),)))
    if not body.age_anchors and ages.known.any():
        name = body.asset.metadata.name
        fail(
            people.path, f"ages are given, and {name} has only one; add an infant template (agebody convert)"
        )
    return replace(people, ages=ages)


def people_cameras(body: BodyModel, people: People, focal: float | None, fov: float | None) -> Camera:
    """Return the camera of each person's image; the focal length of the file counts before the one given."""
    focals = np.full(len(people), math.nan) if people.focal is None else people.focal
    if focal is not None:
        focals = np.where(np.isnan(focals), focal, focals)
    return cameras(_tensor(body, people.image_sizes()), _tensor(body, focals), fov)


def fit_people(body: BodyModel, people: People, camera: Camera, **options: Any) -> Fit:
    """Fit a body to people's keypoints, with their ages; options are those of `fit_keypoints`."""
    points, given = to_tensors(body, people)
    return fit_keypoints(body, points, camera, **given, **options)


def _fit_lifted(
    body: BodyModel, people: People, camera: Camera, lifter: Lifter, **options: Any
) -> tuple[Fit, People, Bool[np.ndarray, " N"]]:
    """Return fits from the lifter, people with the fitted points, and whether their sides were exchanged."""
    points, given = to_tensors(body, people)
    size = _tensor(body, people.image_sizes())
    fit, source = fit_lifted(lifter, body, points, camera, **given, size=size, **options)
    source = source.cpu().numpy()
    rows = np.arange(len(people))[:, None]
    moved = replace(people, keypoints=people.keypoints[rows, source], weights=people.weights[rows, source])
    return fit, moved, (source != np.arange(source.shape[1])).any(1)


def to_tensors(body: BodyModel, people: People) -> tuple[Tensor, dict[str, Any]]:
    """Return people's keypoints, and their layout, weights and ages as arguments of `fit_keypoints`."""
    given: dict[str, Any] = {"layout": people.layout, "weights": _tensor(body, people.weights)}
    if body.age_anchors:
        given |= _ages(body, people)
    return _tensor(body, people.keypoints), given


def lift(lifter: Lifter, body: BodyModel, people: People, camera: Camera) -> Estimate:
    """Return what the lifter sees in people's keypoints."""
    points, given = to_tensors(body, people)
    return lifter.estimate(body, points, camera, **given, size=_tensor(body, people.image_sizes()))


def _ages(body: BodyModel, people: People) -> dict[str, Tensor]:
    return {
        "age_offset": _tensor(body, people.ages.age_offset),
        "years": _tensor(body, people.ages.years),
        "age_class": torch.from_numpy(people.ages.age_class).to(body.device),
    }


def _tensor(body: BodyModel, array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).to(body.device, body.dtype)


def cameras(sizes: Float[Tensor, "N 2"], focals: Float[Tensor, " N"], fov: float | None = None) -> Camera:
    """Return cameras of images; where the focal length is NaN, of a field of view, or guessed."""
    others = (
        Camera.guess(sizes) if fov is None else Camera.from_fov(sizes.new_full(sizes.shape[:1], fov), sizes)
    )
    known = focals[:, None].expand_as(others.focal)
    return others._replace(focal=torch.where(known.isnan(), others.focal, known))


def as_fit(parameters: BodyParameters, error: Float[Tensor, " N"]) -> Fit:
    """Return bodies with given keypoint errors [pixels] as a fit without iterations."""
    none = torch.zeros(len(error), dtype=torch.long)
    report = FitReport(none == 0, none, none, torch.zeros_like(error), {}, none == 0)
    return Fit(parameters, report, error, error)


def _measure(
    body: BodyModel, layout: str | KeypointLayout, parameters: BodyParameters, camera: Camera
) -> dict[str, Any]:
    """Return the fields of labels that are functions of bodies and cameras."""
    with torch.no_grad():
        points = body.keypoints(layout, parameters)
        joints = body.keypoints(joint_layout(*body.asset.joint_names), parameters)
        found = {
            **parameters._asdict(),
            "keypoints": camera.project(points).pixels,
            "joints": joints,
            "depth": joints[:, 0, 2],
            "stature": stature(body.shape(parameters).rest_vertices),
        }
    return {name: part.numpy(force=True) for name, part in found.items()}


def replace_bodies(body: BodyModel, labels: Labels, parameters: BodyParameters, camera: Camera) -> Labels:
    """Return labels with other bodies in camera coordinates, and all that depends on them but the flags."""
    found = _measure(body, labels.keypoint_layout, parameters, camera)
    pixels, observed = map(torch.from_numpy, (found["keypoints"], labels.observed))
    found["reprojection"] = fit_error(pixels, observed[..., :2], observed[..., 2]).numpy()
    return replace(labels, **{name: a.astype(getattr(labels, name).dtype) for name, a in found.items()})


def make_labels(body: BodyModel, people: People, camera: Camera, fit: Fit) -> Labels:
    """Return people and their bodies as labels without flags."""
    weights, lens, report, errors = people.weights, camera.distortion, fit.report, fit.standard_errors
    if errors is None:
        errors = StandardErrors(*[torch.full_like(fit.error, math.nan)] * 3)
    around = box_around(torch.from_numpy(people.keypoints), weights=torch.from_numpy(weights)).numpy()
    return Labels(
        body=body.asset.metadata.name,
        joint_names=tuple(body.asset.joint_names),
        keypoint_layout=people.layout.name,
        ids=people.ids,
        image_ids=np.array([people.images[i].name for i in people.image], dtype=str),
        image_sizes=people.image_sizes(),
        **_measure(body, people.layout, fit.parameters, camera),
        focal=camera.focal.numpy(force=True),
        center=camera.center.numpy(force=True),
        distortion=np.zeros((len(people), LENS)) if lens is None else lens.numpy(force=True),
        observed=np.concatenate((people.keypoints, weights[..., None]), -1),
        boxes=np.where(np.isnan(people.boxes).any(1, keepdims=True), around, people.boxes),
        scores=weights.sum(1) / np.maximum((weights > 0).sum(1), 1),
        reprojection=fit.error.numpy(force=True),
        start_reprojection=fit.start_error.numpy(force=True),
        converged=report.converged.numpy(force=True),
        iterations=report.iterations.numpy(force=True),
        stop=np.array([Stop(reason).name.lower() for reason in report.stop.tolist()], dtype=str),
        cost=report.cost.numpy(force=True),
        terms={name: cost.numpy(force=True) for name, cost in report.terms.items()},
        kept=np.zeros(len(people), dtype=bool),
        age_known=people.ages.known if body.age_anchors else np.ones(len(people), dtype=bool),
        age_class=people.ages.classes(),
        age_offset_sd=errors.age_offset.numpy(force=True),
        stature_sd=errors.stature.numpy(force=True),
        depth_sd=errors.depth.numpy(force=True),
        track=np.full(len(people), -1) if people.tracks is None else people.tracks,
    )
