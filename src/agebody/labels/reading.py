"""From a file or folder of keypoints to people in images, whichever kind it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agebody.keypoints import KeypointLayout
from agebody.labels.annotations import Annotations, ImageEntry, LabelError, fail
from agebody.labels.coco import load_json, read_coco_annotations, read_coco_results
from agebody.labels.openpose import SUFFIX, read_openpose
from agebody.labels.photographs import list_photographs, photograph_size


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
        LabelError: the file is none of these, or something in it is missing or wrong.
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
    return replace(found, images=tuple(_with_size(entry, folder, size, found) for entry in found.images))


def _with_size(
    entry: ImageEntry, folder: Path | None, size: tuple[int, int] | None, found: Annotations
) -> ImageEntry:
    if entry.size is not None:
        return entry
    if folder is not None and (folder / entry.name).is_file():
        return entry._replace(size=photograph_size(folder / entry.name))
    if size is not None:
        return entry._replace(size=size)
    missing = "give the images, or a size for all" if folder is None else f"{folder} has no such image"
    raise LabelError(f"{found.path}: image {entry.name}: the file does not state its size; {missing}")
