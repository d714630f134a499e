"""Read people from a file or folder of keypoints, whichever kind it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from agebody.annotations.coco import load_json, read_coco_annotations, read_coco_results
from agebody.annotations.openpose import SUFFIX, read_openpose
from agebody.annotations.people import AnnotationError, ImageEntry, People, fail
from agebody.annotations.photographs import list_photographs, photograph_size
from agebody.keypoints import KeypointLayout


def read_people(
    path: str | Path,
    *,
    layout: str | KeypointLayout | None = None,
    images: str | Path | None = None,
    size: tuple[int, int] | None = None,
) -> People:
    """Read people in images with their keypoints.

    Reads COCO annotations, COCO results (a list of detections), a folder of OpenPose's ``*_keypoints.json``,
    and one such file. Coordinates are kept as the file has them, with (0, 0) at the corner of the image. Ages
    are read from ``age_offset``, ``years``, ``age_class`` and ``age`` (years, or the name of a class); see
    `agebody.age.parse_ages`.

    Args:
        path: the file or folder.
        layout: of the keypoints; if None, found by their names or their number.
        images: the folder of the images. COCO results need it to find the image of each ``image_id``; sizes
            of images that the file does not state are read there.
        size: width and height of images whose size is stated nowhere else [pixels].

    Raises:
        AnnotationError: the file is of another kind, or something in it is missing or wrong.
        OSError: a file cannot be read.
    """
    path = Path(path)
    folder = None if images is None else Path(images)
    names = () if folder is None else list_photographs(folder)
    if path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}.json"))
        if not files:
            fail(path, f"expected OpenPose's files, *{SUFFIX}.json, in the folder")
        return _with_sizes(read_openpose(path, files, layout, names), folder, size)
    document = load_json(path)
    if isinstance(document, list):
        found = read_coco_results(path, document, layout, names)
    elif isinstance(document, dict) and "people" in document:
        found = read_openpose(path, [path], layout, names)
    elif isinstance(document, dict):
        found = read_coco_annotations(path, document, layout)
    else:
        fail(path, "expected COCO's annotations or results, or OpenPose's output")
    return _with_sizes(found, folder, size)


def _with_sizes(found: People, folder: Path | None, size: tuple[int, int] | None) -> People:
    """Add the sizes of images that the file does not state; leave out people in unreadable images."""
    entries = [
        image if image.size is not None else _with_size(image, folder, size, found.path)
        for image in found.images
    ]
    unreadable = np.isin(found.image, [i for i, image in enumerate(entries) if image.size is None])
    found = replace(found, images=tuple(entries))
    if unreadable.any():
        left_out = dict(found.left_out) | {"in an image that cannot be read": int(unreadable.sum())}
        found = replace(found.select(np.flatnonzero(~unreadable)), left_out=tuple(sorted(left_out.items())))
    return found


def _with_size(
    entry: ImageEntry, folder: Path | None, size: tuple[int, int] | None, path: Path
) -> ImageEntry:
    """Return the entry with its size, or without one if the image cannot be read."""
    if folder is not None and (folder / entry.name).is_file():
        try:
            return entry._replace(size=photograph_size(folder / entry.name))
        except AnnotationError:
            return entry
    if size is None:
        missing = "give the images, or a size for all" if folder is None else f"{folder} has no such image"
        fail(path, f"image {entry.name}: the file does not state its size; {missing}")
    return entry._replace(size=size)
