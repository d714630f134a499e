"""From keypoints in files to bodies, batch by batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.age import AGE_CLASSES
from agebody.annotations.people import UNKNOWN, AnnotationError, Annotations, age_class_index
from agebody.body import BodyModel
from agebody.cameras import Camera, box_around, convert_box
from agebody.fitting.images import KeypointFit, fit_keypoints
from agebody.keypoints import KeypointLayout
from agebody.optim.least_squares import Stop
from agebody.pipelines.labels.quality import flag_labels
from agebody.pipelines.labels.records import Labels, concatenate_labels

BATCH_SIZE = 256


def fit_annotations(
    body: BodyModel,
    annotations: Annotations,
    *,
    focal: float | Float[np.ndarray, " N"] | None = None,
    fov: float | None = None,
    age_offset: float | None = None,
    age_class: str | int | None = None,
    years: float | None = None,
    min_confidence: float = 0.0,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda people: None,
    **options: Any,
) -> Labels:
    """Fits a body to everyone in a file of keypoints and says whom to trust.

    Cameras look through the middle of their images. Without ``focal`` and ``fov`` the focal length is
    CLIFF's guess, the diagonal of the image (`Camera.guess`).

    Args:
        body: the layer; an `SMPLA` for people of all ages.
        annotations: what `read_keypoints` gives.
        focal: focal length of all images, or of each person's [pixels]; NaN is not known.
        fov: vertical field of view of all images [rad], instead, or of those whose focal length is not known.
        age_offset: of people of whom the file does not say their age.
        age_class: the same, as a name or an index of ``AGE_CLASSES``.
        years: the same [years].
        min_confidence: keypoints below it do not count.
        batch_size: people fitted at a time.
        progress: called with the number of people done, after each batch.
        options: of `fit_keypoints`, such as its ``pose_prior`` or ``schedule``.

    Raises:
        AnnotationError: there is nobody, the file gives ages and the body has only one, or the size of an
            image is unknown.
        ValueError: an argument is out of its range.
    """
    focals = _focals(annotations, focal)
    if fov is not None and not np.isnan(focals).any():
        raise ValueError("focal, fov: expected one of them")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence: expected 0 to 1, got {min_confidence}")
    if not len(annotations):
        why = "; ".join(f"{reason}: {count}" for reason, count in annotations.left_out)
        raise AnnotationError(f"{annotations.path}: there is nobody to fit" + (f" ({why})" if why else ""))
    unsized = [entry.name for entry in annotations.images if entry.size is None]
    if unsized:
        raise AnnotationError(f"{annotations.path}: image {unsized[0]}: its size is not known")
    ages = _Ages(body, annotations, age_offset, age_class, years)
    parts = []
    for first in range(0, len(annotations), batch_size):
        rows = slice(first, min(first + batch_size, len(annotations)))
        parts.append(
            _fit_batch(
                body, annotations.select(rows), ages.of(rows), focals[rows], fov, min_confidence, options
            )
        )
        progress(rows.stop)
    return flag_labels(concatenate_labels(parts))


def _focals(
    annotations: Annotations, focal: float | Float[np.ndarray, " N"] | None
) -> Float[np.ndarray, " N"]:
    """Of each person, NaN where it is not known."""
    if focal is None:
        return np.full(len(annotations), math.nan)
    if isinstance(focal, np.ndarray):
        if focal.shape != (len(annotations),):
            raise ValueError(f"focal: expected shape ({len(annotations)},), got {focal.shape}")
    elif math.isnan(focal):
        raise ValueError(f"focal: expected a length above 0 [pixels], got {focal}")
    focals = np.broadcast_to(np.asarray(focal, dtype=float), len(annotations))
    wrong = ~np.isnan(focals) & ~((focals > 0) & np.isfinite(focals))
    if wrong.any():
        raise ValueError(f"focal: expected a length above 0 [pixels], got {focals[wrong][0]}")
    return focals


class _Ages:
    """What `fit_keypoints` is told of each person's age: the file's, else that of everyone."""

    def __init__(
        self,
        body: BodyModel,
        annotations: Annotations,
        age_offset: float | None,
        age_class: str | int | None,
        years: float | None,
    ) -> None:
        given = {"age_offset": age_offset, "age_class": age_class, "years": years}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: expected one of them")
        kind = UNKNOWN if age_class is None else age_class_index(age_class)
        if kind is None:
            names = ", ".join(known.name for known in AGE_CLASSES)
            raise ValueError(f"age_class: expected {names} or 0 to {len(AGE_CLASSES) - 1}, got {age_class!r}")
        offsets, kinds, ages = annotations.age_offset, annotations.age_class, annotations.years
        silent = np.isnan(offsets) & (kinds == UNKNOWN) & np.isnan(ages)
        if not body.age_anchors:
            if given or not silent.all():
                raise AnnotationError(
                    f"{annotations.path}: ages are given, and {body.asset.metadata.name} has only one; "
                    "add an infant template (agebody convert)"
                )
            self.known: dict[str, np.ndarray] = {}
            return
        if age_offset is not None:
            offsets = np.where(silent, age_offset, offsets)
        if years is not None:
            ages = np.where(silent, years, ages)
        kinds = np.where(silent, kind, kinds)
        known = {"age_offset": offsets, "age_class": kinds, "years": ages}
        some = {"age_offset": ~np.isnan(offsets), "age_class": kinds != UNKNOWN, "years": ~np.isnan(ages)}
        self.known = {name: values for name, values in known.items() if some[name].any()}

    def of(self, rows: slice) -> dict[str, np.ndarray]:
        return {name: values[rows] for name, values in self.known.items()}


def _fit_batch(
    body: BodyModel,
    people: Annotations,
    ages: dict[str, np.ndarray],
    focals: np.ndarray,
    fov: float | None,
    min_confidence: float,
    options: dict[str, Any],
) -> Labels:
    tensor = lambda array: torch.from_numpy(np.array(array)).to(body.device, body.dtype)  # noqa: E731
    sizes = np.array([people.images[i].size for i in people.image])
    camera = cameras(tensor(sizes), tensor(focals), fov)
    weights = np.where(people.weights >= min_confidence, people.weights, 0)
    known = {
        name: torch.from_numpy(values).to(body.device) if name == "age_class" else tensor(values)
        for name, values in ages.items()
    }
    fit = fit_keypoints(
        body,
        tensor(people.keypoints),
        camera,
        layout=people.layout,
        weights=tensor(weights),
        **known,
        **options,
    )
    return _labels(body, people, weights, sizes, camera, fit)


def cameras(sizes: Float[Tensor, "N 2"], focals: Float[Tensor, " N"], fov: float | None = None) -> Camera:
    """Cameras of images of these sizes; where no focal length is known, of a field of view, or guessed."""
    others = (
        Camera.guess(sizes) if fov is None else Camera.from_fov(sizes.new_full(sizes.shape[:1], fov), sizes)
    )
    known = focals[:, None].expand_as(others.focal)
    return others._replace(focal=torch.where(known.isnan(), others.focal, known))


def _labels(
    body: BodyModel,
    people: Annotations,
    weights: np.ndarray,
    sizes: np.ndarray,
    camera: Camera,
    fit: KeypointFit,
) -> Labels:
    with torch.no_grad():
        points = body.keypoints(people.layout, fit.parameters)
        joints = body.keypoints(_joints(tuple(body.asset.joint_names)), fit.parameters)
        seen = camera.project(points).pixels
    array = lambda tensor: tensor.detach().cpu().numpy()  # noqa: E731
    counted = weights > 0
    report = fit.report
    return Labels(
        body=body.asset.metadata.name,
        joint_names=tuple(body.asset.joint_names),
        keypoint_layout=people.layout.name,
        ids=people.ids,
        image_ids=np.array([people.images[i].name for i in people.image]),
        image_sizes=sizes,
        **{name: array(part) for name, part in fit.parameters._asdict().items()},
        focal=array(camera.focal),
        center=array(camera.center),
        observed=np.concatenate((people.keypoints, weights[..., None]), -1),
        keypoints=array(seen),
        joints=array(joints),
        depth=array(joints)[:, 0, 2],
        boxes=_boxes(people, weights),
        scores=weights.sum(1) / np.maximum(counted.sum(1), 1),
        reprojection=array(fit.reprojection),
        start_reprojection=array(fit.start_reprojection),
        converged=array(report.converged),
        iterations=array(report.iterations),
        stop=np.array([Stop(reason).name.lower() for reason in report.stop.tolist()]),
        cost=array(report.cost),
        terms={name: array(cost) for name, cost in report.terms.items()},
        kept=np.zeros(len(people), dtype=bool),
    )


@functools.cache
def _joints(names: tuple[str, ...]) -> KeypointLayout:
    """A body's joints as a layout, one object for each kind of body."""
    return KeypointLayout("joints", names, tuple(("joints", name) for name in names))


def _boxes(people: Annotations, weights: np.ndarray) -> np.ndarray:
    around = box_around(torch.from_numpy(people.keypoints), weights=torch.from_numpy(weights))
    corners = torch.from_numpy(people.boxes)
    return convert_box(
        torch.where(corners.isnan().any(-1, keepdim=True), around, corners), "xyxy", "xywh"
    ).numpy()
