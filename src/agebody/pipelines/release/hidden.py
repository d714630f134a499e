"""Regions of annotations, to be hidden: all of them, or the file is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from agebody.age import is_number
from agebody.annotations.coco import read_run_lengths
from agebody.annotations.people import AnnotationError, is_file_name, is_percent
from agebody.pipelines.release.photos import Box, ReleaseError

MIN_SIDE = 2.0
"""Least side of what is hidden [pixels]; boxes in shares of a picture are smaller."""
MIN_INSIDE = 0.5
"""Least share of a box in its picture; boxes of another picture or size reach out of it."""

_BOX = re.compile("(?i).*box(es)?(_.*)?")
"""Names of boxes, and of the values beside them, such as their scores."""
_POINTS = re.compile("(?!num_).*(keypoints|kpts)(_2d)?")
"""Names of keypoints: of COCO, and of what COCO-WholeBody and OpenPose add for face, hands and feet."""
_UNREAD = re.compile(
    "(?i)(?!dp_).*(contours?|joints|landmarks?|masks?|points|polygons?|segments|segms)(_2d)?"
)
"""Names of further places, in forms that differ; DensePose's, ``dp_masks``, lie inside the box."""
_OTHER_BOX = re.compile("(?i).*box.*(cx|cy|cent|norm|rel|(?<!x)yx).*")
"""Names of boxes that say that they are about their centre, in shares, or y first."""


def read_hidden(path: Path, sizes: Mapping[str, tuple[int, int]], folder: Path) -> dict[str, list[Box]]:
    """Return boxes around everything that COCO annotations place in photographs, of people or not.

    A box contains all boxes of the entry, such as ``bbox``, ``bbox_head`` and ``boxes``, its polygons or its
    mask in run lengths, and its labelled keypoints, with those of face, hands and feet.

    Args:
        path: the annotations.
        sizes: width and height of each photograph by its name.
        folder: of the photographs; entries on others of its files are ignored.

    Raises:
        ReleaseError: the file is not such a file, lacks a photograph, states another size of one or none,
            has no entry of them, one that belongs to no photograph, one that is not clearly a place in its
            picture, or one with a place in a field that is not read.
        OSError: the file cannot be read.
    """
    document = _load(path)
    names: dict[str, str] = {}
    for i, image in enumerate(_objects(path, document, "images")):
        where = f"{path}: images[{i}]"
        number = _number(where, image, "id")
        name = image.get("file_name")
        if not isinstance(name, str) or not is_file_name(name):
            raise ReleaseError(f"{where}: file_name: expected a path inside the folder of the photographs")
        if number in names:
            raise ReleaseError(f"{where}: id: expected different ids, got {number} more than once")
        names[number] = name = PurePath(name).as_posix()
        stated = image.get("width"), image.get("height")
        if name in sizes and stated != sizes[name]:
            got = "no size" if None in stated else f"{stated[0]} x {stated[1]} pixels"
            expected = f"{sizes[name][0]} x {sizes[name][1]}"
            raise ReleaseError(f"{where}: {name} has {got}, in the labels {expected}")
    found: dict[str, list[Box]] = {name: [] for name in names.values() if name in sizes}
    for name in sizes:
        if name not in found:
            raise ReleaseError(
                f"{path}: no image is named {name} as in the labels, so nothing of it would be hidden"
            )
    for i, entry in enumerate(_objects(path, document, "annotations")):
        where = f"{path}: annotations[{i}]"
        name = names.get(_number(where, entry, "image_id"))
        if name is None:
            raise ReleaseError(f"{where}: image_id: expected the id of one of the images")
        if name in found:
            found[name].append(_place(where, entry, sizes[name]))
        elif not _is_another(folder, name, sizes):
            raise ReleaseError(
                f"{where}: {name} is none of the photographs; names must be those of the labels, letter by "
                "letter"
            )
    corners = [corner for boxes in found.values() for box in boxes for corner in box]
    if not corners:
        raise ReleaseError(f"{path}: no annotation is of the photographs of the labels, so it hides nobody")
    if is_percent(np.array(corners), [side for size in sizes.values() for side in size]):
        raise ReleaseError(
            f"{path}: all places lie between 0 and 100, as percent of the pictures; expected pixels"
        )
    return found


def _load(path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ReleaseError(
                f"{path}: an object has a key more than once: {', '.join(dict.fromkeys(found))}"
            )
        return found

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=unique)
    except AnnotationError:
        raise
    except (ValueError, RecursionError):
        raise ReleaseError(f"{path}: not a JSON file that can be read") from None


def _objects(path: Path, document: Any, name: str) -> list[dict[str, Any]]:
    listed = document.get(name) if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ReleaseError(f"{path}: expected COCO annotations, an object with a list of objects {name!r}")
    return listed


def _number(where: str, entry: Mapping[str, Any], key: str) -> str:
    """Return an id as text, so that 1 and "1" are one."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ReleaseError(f"{where}: {key}: expected an integer or a string")
    return str(value)


def _is_another(folder: Path, name: str, sizes: Mapping[str, Any]) -> bool:
    """Return whether there is such a file that is none of the photographs under another name."""
    path = folder / name
    if not path.is_file():
        return False
    return not any((folder / other).is_file() and path.samefile(folder / other) for other in sizes)


def _place(where: str, entry: Mapping[str, Any], size: tuple[int, int]) -> Box:
    """Return a box around all that an entry places."""
    corners: list[np.ndarray] = []
    for key, box in _boxes(entry):
        expected = "x0, y0, x1, y1" if "xyxy" in key.lower() else "x, y, width, height"
        numbers = _numbers(f"{where}: {key}", box, lambda count: count == 4, expected)
        low, size_or_high = numbers[:2], numbers[2:]
        high = size_or_high if "xyxy" in key.lower() else low + size_or_high
        corners += [np.array([low, high])]
        if (high - low).min() < MIN_SIDE:
            least = f"{expected} in pixels, a side of {MIN_SIDE:g} at least"
            raise ReleaseError(f"{where}: {key}: expected {least}, got {box}")
    corners += _outline(f"{where}: segmentation", entry.get("segmentation"), size)
    for key, points in entry.items():
        if _POINTS.fullmatch(key) and points not in (None, []):
            numbers = _numbers(f"{where}: {key}", points, lambda count: count % 3 == 0, "x, y, v per point")
            corners.append(numbers.reshape(-1, 3)[numbers.reshape(-1, 3)[:, 2] > 0, :2])
        elif (
            (_UNREAD.fullmatch(key) or _OTHER_BOX.fullmatch(key))
            and isinstance(points, (list, dict, str))
            and points
        ):
            raise ReleaseError(
                f"{where}: {key}: not read; give this place as a box, keypoints or segmentation"
            )
    corners = [points for points in corners if len(points)]
    if not corners:
        raise ReleaseError(f"{where}: neither a box nor an outline says what to hide")
    low, high = (np.concatenate(corners).min(0), np.concatenate(corners).max(0))
    inside = np.prod(np.clip(np.minimum(high, size) - np.maximum(low, 0), 0, None))
    if (high - low).min() < MIN_SIDE or inside < MIN_INSIDE * np.prod(high - low):
        raise ReleaseError(
            f"{where}: a place of {np.round(low, 2).tolist()} to {np.round(high, 2).tolist()} is not in the "
            f"picture of {size[0]} x {size[1]} pixels, or not in pixels; is it of another picture or size?"
        )
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _boxes(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and numbers of each box of an entry; those of parts that are not labelled are zeros."""
    for key, value in entry.items():
        if not _BOX.fullmatch(key) or _OTHER_BOX.fullmatch(key) or value in (None, []):
            continue
        several = isinstance(value, list) and all(isinstance(one, list) for one in value)
        for box in value if several else [value]:
            beside = not key.endswith("box") and not (isinstance(box, list) and len(box) >= 4)
            if not beside and not (key != "bbox" and box == [0, 0, 0, 0]):  # beside: a score, a number
                yield key, box


def _numbers(where: str, values: Any, fits: Any, expected: str) -> Float[np.ndarray, " N"]:
    if not isinstance(values, list) or not fits(len(values)) or not all(map(is_number, values)):
        raise ReleaseError(f"{where}: expected {expected} in pixels")
    return np.array(values, dtype=float)


def _outline(where: str, outline: Any, size: tuple[int, int]) -> list[Float[np.ndarray, "N 2"]]:
    """Return points around polygons, or around a mask in run lengths."""
    if outline in (None, []):
        return []
    if isinstance(outline, dict):
        return [_mask_corners(where, outline, size)]
    polygons = outline if isinstance(outline, list) and isinstance(outline[0], list) else [outline]
    expected = "polygons of x, y, or a mask in run lengths,"
    enough = [
        _numbers(where, each, lambda count: count >= 6 and count % 2 == 0, expected) for each in polygons
    ]
    return [points.reshape(-1, 2) for points in enough]


def _mask_corners(where: str, mask: Mapping[str, Any], size: tuple[int, int]) -> Float[np.ndarray, "N 2"]:
    """Return two corners around a mask in run lengths, which go by columns and begin outside of the mask."""
    width, height = size
    counts: Any = mask.get("counts")
    if isinstance(counts, str):
        counts = read_run_lengths(counts)
    valid = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if mask.get("size") != [height, width] or not valid or sum(counts) != width * height:
        raise ReleaseError(f"{where}: expected a mask in run lengths of {width} x {height} pixels")
    ends = np.cumsum(np.array(counts, dtype=np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1  # of the runs inside the mask
    first, last = first[: len(last)][last >= first[: len(last)]], last[last >= first[: len(last)]]
    if not len(first):
        return np.zeros((0, 2))
    columns = first // height, last // height
    one = columns[0] == columns[1]
    rows = np.where(one, first % height, 0), np.where(one, last % height, height - 1)
    low, high = (columns[0].min(), rows[0].min()), (columns[1].max() + 1, rows[1].max() + 1)
    return np.array([low, high], dtype=float)
