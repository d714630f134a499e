"""From a file or folder of keypoints to people in images, whichever kind it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from agebody.annotations.coco import load_json, read_coco_annotations, read_coco_results
from agebody.annotations.openpose import SUFFIX, read_openpose
from agebody.annotations.people import AnnotationError, Annotations, ImageEntry, fail
from agebody.annotations.photographs import list_photographs, photograph_size
from agebody.keypoints import KeypointLayout


def read_keypoints(
    path: str | Path,
    *,
    layout: str | KeypointLayout | None = None,
    images: str | Path | None = None,
    size: tuple[int, int] | None = None,
) -> Annotations:
    """People in images with their keypoints.

    Reads COCO annotations, COCO results (a list of detections), a folder of OpenPose's ``*_keypoints.json``,
    and one such file. Coordinates are taken as the file has them, with (0, 0) at the image's corner.

    Args:
        path: the file or folder.
        layout: of the keypoints; by their names, or their number, if None.
        images: the folder of the images. COCO results need it, to find out whose ``image_id`` is what; where
            the file does not state the images' sizes, they are read there.
        size: width and height of images whose size nothing else says [pixels].

    Raises:
        AnnotationError: the file is none of these, or something in it is missing or wrong.
        ValueError: there is no such layout.
        OSError: a file cannot be read.
    """
    path = Path(path)
    folder = None if images is None else Path(images)
    names = () if folder is None else list_photographs(folder)
    if path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}.json"))
        if not files:
            fail(path, f"expected OpenPose's files, *{SUFFIX}.json, in the folder")
        found = read_openpose(path, files, layout, names)
    else:
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


def _with_sizes(found: Annotations, folder: Path | None, size: tuple[int, int] | None) -> Annotations:
    """Sizes of images that the file does not state; people in images that cannot be read are left out."""
    entries: list[ImageEntry] = []
    unreadable: list[int] = []
    for i, entry in enumerate(found.images):
        try:
            entries.append(entry if entry.size is not None else _with_size(entry, folder, size, found.path))
        except _Unreadable:
            entries.append(entry)
            unreadable.append(i)
    found = replace(found, images=tuple(entries))
    lost = np.isin(found.image, unreadable)
    if lost.any():
        left_out = dict(found.left_out) | {"in an image that cannot be read": int(lost.sum())}
        found = replace(found.select(np.flatnonzero(~lost)), left_out=tuple(sorted(left_out.items())))
    return found


class _Unreadable(Exception):
    pass


def _with_size(
    entry: ImageEntry, folder: Path | None, size: tuple[int, int] | None, path: Path
) -> ImageEntry:
    if folder is not None and (folder / entry.name).is_file():
        try:
            return entry._replace(size=photograph_size(folder / entry.name))
        except AnnotationError:
            raise _Unreadable from None
    if size is not None:
        return entry._replace(size=size)
    missing = "give the images, or a size for all" if folder is None else f"{folder} has no such image"
    raise AnnotationError(f"{path}: image {entry.name}: the file does not state its size; {missing}")
