"""Predict bodies of people in photographs with a network, and refine them by a fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from agebody.annotations.people import AnnotationError, People, fail
from agebody.annotations.photographs import read_photograph
from agebody.body import BodyModel
from agebody.cameras import Camera, box_around, box_condition, square_box, weak_to_translation
from agebody.checks import read_count
from agebody.detect.windows import crop_image
from agebody.files import read_flag
from agebody.fitting.observed import MIN_POINTS
from agebody.nets import Regressor, normalize_images
from agebody.optim.stages import Fit, fit_error
from agebody.parameters import BodyParameters
from agebody.pipelines.labels.fitting import (
    as_fit,
    fit_people,
    make_labels,
    people_cameras,
    to_tensors,
    with_ages,
)
from agebody.pipelines.labels.quality import BOX_SCALE, PREDICTED, flag_labels
from agebody.pipelines.labels.records import Labels, concatenate_labels

START_SD: dict[str, float] = {"global_orient": 0.2, "body_pose": 0.2, "betas": 0.5, "age_offset": 0.1}
"""Standard deviations of a network's prediction, as the prior of a fit that refines it [rad, 1]."""


def predict_annotations(
    network: Regressor,
    body: BodyModel,
    people: People,
    images: str | Path,
    *,
    crop_size: tuple[int, int] | None = None,
    focal: float | None = None,
    fov: float | None = None,
    age_offset: float | None = None,
    age_class: str | int | None = None,
    years: float | None = None,
    refine: bool = False,
    start_sd: Mapping[str, float] = START_SD,
    batch_size: int = 32,
    unreadable: Callable[[str, Exception], None] | None = None,
    progress: Callable[[int], None] = lambda people: None,
    **options: Any,
) -> Labels:
    """Predict everyone's body from a crop of their photograph, and flag predictions that may be wrong.

    Crops are square about the person's box, or about the keypoints where there is none, widened to the shape
    of the network's input. Its weak-perspective camera becomes a translation in the camera of the whole image
    (`weak_to_translation`), and a head with a condition of three numbers gets the position of the crop
    (`box_condition`, CLIFF).

    Args:
        network: in evaluation mode, such as `agebody.nets.load_checkpoint` returns.
        body: the layer of the labels, of the same body as that of the network.
        people: people, as from `agebody.detect.detect_people`; they may have boxes alone.
        images: the folder of the photographs, or one.
        crop_size: height and width of the crops [pixels]; by default ``network.backbone.image_size``, such as
            that of a `ViT`.
        focal: focal length [pixels] of images for which none is known.
        fov: vertical field of view [rad], instead.
        age_offset: 0 adult, 1 infant, of people without an age in the file; ages count in the refinement.
        age_class: name or index of ``AGE_CLASSES``, instead.
        years: age in years, instead.
        refine: fit the body to the keypoints, with the prediction as a prior.
        start_sd: how far the network may be off, see `fit_keypoints`.
        batch_size: people predicted at a time.
        unreadable: called with the name of an image that cannot be read, and the error; its people are left
            out. Without it, such an image is an error.
        progress: called with the number of people done.
        options: options of `fit_keypoints`, for the refinement.

    Raises:
        AnnotationError: there is nobody, the size of an image is unknown, or an image cannot be read.
        ValueError: the network needs another condition, or its body is another.
    """
    if not len(people):
        fail(people.path, "there is nobody to predict")
    read_count("batch_size", batch_size, least=1)
    refine = read_flag("refine", refine)
    theirs, ours = network.body.asset, body.asset
    counts = [(layer.num_betas, layer.num_expression) for layer in (network.body, body)]
    if theirs.joint_names != ours.joint_names or counts[0] != counts[1]:
        raise ValueError(f"body: expected that of the network, {theirs.metadata.name}")
    size = crop_size_of(network) if crop_size is None else crop_size
    people = with_ages(body, people, age_offset=age_offset, age_class=age_class, years=years)
    squares = square_box(torch.from_numpy(_boxes(people)), crop=(size[1], size[0]))
    cuts = _crops(people, Path(images), squares, size, unreadable)
    parts, order = [], []
    for batch in iter(lambda: [*itertools.islice(cuts, batch_size)], []):
        rows = np.array([row for row, _ in batch])
        some = people.select(rows)
        camera = people_cameras(body, some, focal, fov)
        box = squares[rows].to(body.device, body.dtype)
        crops = torch.from_numpy(np.stack([crop for _, crop in batch])).to(body.device).movedim(-1, 1)
        found = predict_parameters(network, normalize_images(crops).to(body.dtype), box, camera)
        predicted = np.ones(len(some), dtype=bool)
        if refine:
            sds = {name: sd for name, sd in start_sd.items() if body.age_anchors or name != "age_offset"}
            fit = fit_people(body, some, camera, start=found, start_sd=sds, **options)
            predicted = (some.weights > 0).sum(1) < MIN_POINTS  # they stay at their start
        else:
            fit = _as_fit(body, some, camera, found)
        part = make_labels(body, some, camera, fit)
        ends = {"stop": np.where(predicted, PREDICTED, part.stop), "converged": predicted | part.converged}
        parts.append(replace(part, **ends))
        order += rows.tolist()
        progress(len(order))
    if not parts:
        fail(Path(images), "no image can be read")
    return flag_labels(concatenate_labels(parts).select(np.argsort(order)))


def crop_size_of(network: Regressor) -> tuple[int, int]:
    """Return height and width of a network's input [pixels]."""
    size = getattr(network.backbone, "image_size", None)
    if size is None:
        raise ValueError("crop_size: expected height and width, for the backbone has no image_size")
    return size


def _boxes(people: People) -> Float[np.ndarray, "N 4"]:
    """Return everyone's box, around the keypoints where the file has none."""
    around = box_around(
        torch.from_numpy(people.keypoints), weights=torch.from_numpy(people.weights), scale=BOX_SCALE
    )
    found = np.where(np.isnan(people.boxes).any(1, keepdims=True), around.numpy(), people.boxes)
    return np.concatenate((found[:, :2], np.maximum(found[:, 2:], found[:, :2] + 1)), 1)


def _crops(
    people: People,
    images: Path,
    squares: Float[Tensor, "N 4"],
    size: tuple[int, int],
    unreadable: Callable[[str, Exception], None] | None,
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Yield the row and the crop of everyone whose image can be read, image by image."""
    from PIL import Image

    folder = images.parent if images.is_file() else images
    for i in np.unique(people.image):
        entry = people.images[i]
        try:
            picture = read_photograph(folder / entry.name, entry.size)
        except (AnnotationError, OSError) as error:
            if unreadable is None:
                raise
            unreadable(entry.name, error)
            continue
        for row in np.flatnonzero(people.image == i).tolist():
            yield row, crop_image(Image.fromarray(picture), squares[row], (size[1], size[0]))


def predict_parameters(
    network: Regressor, images: Float[Tensor, "B 3 H W"], box: Float[Tensor, "B 4"], camera: Camera
) -> BodyParameters:
    """Return the bodies that a network predicts from crops, in the camera coordinates of their images.

    The network is in evaluation mode; if its head has a condition of three numbers, it gets `box_condition`.
    The images are the normalised middles of the boxes; the camera is that of the whole images.
    """
    condition = getattr(network.head, "condition", 0)
    if condition not in (0, 3):
        raise ValueError(f"network: expected a condition of 3 numbers, those of the box, got {condition}")
    with torch.no_grad():
        found = network(images, box_condition(box, camera) if condition else None)
        if not all(part.isfinite().all() for part in (*found.arguments().values(), found.camera)):
            raise ValueError("network: expected finite predictions; its weights do not fit what it sees")
        transl = weak_to_translation(found.camera, box, camera)
        return found.parameters(transl)


def _as_fit(body: BodyModel, people: People, camera: Camera, parameters: BodyParameters) -> Fit:
    """Return predictions as a fit without iterations."""
    with torch.no_grad():
        pixels = camera.project(body.keypoints(people.layout, parameters)).pixels
    observed, given = to_tensors(body, people)
    return as_fit(parameters, fit_error(pixels, observed, given["weights"]))
