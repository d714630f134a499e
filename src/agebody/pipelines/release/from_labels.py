"""Photographs and their people, from labels."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from os import PathLike
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Bool, Float

from agebody.body import BodyModel
from agebody.files import read_flag
from agebody.pipelines.labels import Labels
from agebody.pipelines.release.hidden import read_hidden
from agebody.pipelines.release.photos import Box, Person, Photo, Region, ReleaseError, load_mask
from agebody.pipelines.release.regions import fill_box, longer_side


def photos_from_labels(
    labels: Labels,
    images: str | PathLike[str],
    *,
    body: BodyModel,
    masks: str | PathLike[str] | None = None,
    hide: str | PathLike[str] | None = None,
    sequences: bool = False,
) -> list[Photo]:
    """Prepare the input of `write_release` from `agebody.pipelines.labels.Labels`.

    A person that the labels do not keep has no fit. The box of a person contains the box of the label and all
    keypoints of positive weight.

    Args:
        labels: people with their bodies.
        images: the folder of the photographs that the labels name.
        body: the body of the fits.
        masks: a folder with one mask per photograph, of the same name with the suffix .png, black where
            nobody is. The mask of a person is the part of it around the person's box, even if that shows a
            neighbour; a person without any such part has no mask. The whole mask is hidden in any case.
        hide: COCO annotations of all of these photographs, by the same names and with their sizes. A box
            around everything that an entry places is hidden, too, with or without a fit, of a person or not:
            its box, polygons, mask in run lengths and labelled keypoints.
        sequences: the photographs of each folder below ``images`` are the frames of a video, ordered by name.

    Raises:
        ReleaseError: the labels are of another body or have two cameras for one photograph; a mask is missing
            or of two photographs; or not everything in the annotations to hide can be hidden.
        OSError: a file cannot be read.
    """
    if labels.joint_names != tuple(body.asset.joint_names) or labels.body != body.asset.metadata.name:
        raise ReleaseError(f"the labels are of the body {labels.body!r}, not of {body.asset.metadata.name!r}")
    parameters = labels.parameters(body)
    sizes = {
        PurePath(name).as_posix(): (size[0], size[1])
        for name, size in zip(labels.image_ids.tolist(), labels.image_sizes.tolist(), strict=True)
    }
    hidden = {} if hide is None else read_hidden(Path(hide), sizes, Path(images))
    sequences = read_flag("sequences", sequences)
    photos, mask_owners = [], {}
    for name, rows in sorted(labels.by_image().items()):
        size = sizes[PurePath(name).as_posix()]
        for lens in (labels.focal[rows], labels.center[rows], labels.distortion[rows]):
            if (lens != lens[0]).any():
                raise ReleaseError(f"{name}: the labels have two cameras for it, {lens[0]} and another")
        camera = labels.select(rows[:1]).camera().map(itemgetter(0))
        people = [
            Person(
                parameters.map(lambda part, row=row: part[row].clone()) if labels.kept[row] else None,
                _box(labels, row),
                points=_seen(labels, row),
            )
            for row in rows.tolist()
        ]
        others: list[Region] = list(hidden.get(PurePath(name).as_posix(), ()))
        if masks is not None:
            mask = Path(masks, name).with_suffix(".png")
            if mask_owners.setdefault(mask, name) != name:
                raise ReleaseError(f"{mask}: would be the mask of {mask_owners[mask]} and of {name}")
            people, rest = _with_masks(people, mask, size)
            others += rest
        folder = PurePath(name).parent.as_posix()
        photos.append(Photo(Path(images, name), camera, people, size, folder if sequences else None, others))
    return photos


def _box(labels: Labels, row: int) -> Box:
    corners = np.concatenate([_seen(labels, row), labels.boxes[row].reshape(2, 2)])
    x0, y0, x1, y1 = (*corners.min(0).tolist(), *corners.max(0).tolist())
    return x0, y0, x1, y1


def _seen(labels: Labels, row: int) -> Float[np.ndarray, "K 2"]:
    """Return the keypoints of positive weight of a person."""
    return labels.observed[row][labels.observed[row, :, 2] > 0, :2]


def _with_masks(
    people: Sequence[Person], path: Path, size: tuple[int, int]
) -> tuple[list[Person], list[Region]]:
    """Give people their parts of a mask of everybody, and return the rest of it, if any."""
    if not path.is_file():
        raise ReleaseError(f"{path}: the mask does not exist")
    mask = load_mask(path, size)
    rest = mask.copy()
    masked = []
    for person in people:
        assert person.box is not None
        near: Bool[np.ndarray, "H W"] = mask & fill_box(person.box, size, 0.2 * longer_side(person.box))
        masked.append(person._replace(mask=near) if near.any() else person)
        rest &= ~near
    return masked, [rest] if rest.any() else []
