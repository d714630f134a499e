"""OpenPose's folders: a file a frame, ``NAME_keypoints.json``, with everyone in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agebody.annotations.coco import is_pixel, load_json
from agebody.annotations.people import (
    MAX_PIXELS,
    NAMES_BY_SIZE,
    UNKNOWN,
    Annotations,
    ImageEntry,
    fail,
    gather,
    map_names,
)
from agebody.keypoints import KeypointLayout

SUFFIX = "_keypoints"


def read_openpose(
    path: Path, files: Iterable[Path], layout: str | KeypointLayout | None, images: Sequence[str]
) -> Annotations:
    """People of OpenPose's files, BODY_25 or COCO (18 points), in the order of the files' names.

    Args:
        path: what errors name: the folder.
        files: one a frame.
        layout: what to map the points to by name; BODY_25 is openpose25, as is, by default, COCO.
        images: names of the image files there are. A frame's image has its name, in whichever folder; without
            images, the name that the file says stands for it.

    Raises:
        AnnotationError: a file is of another kind, files have different numbers of points, or a frame of the
            images has no file.
        OSError: a file cannot be read.
    """
    stems = {Path(name).stem: name for name in images}
    entries: list[ImageEntry] = []
    people: list[list[float]] = []
    place: list[int] = []
    nobody = 0
    size = 0
    for file in sorted(files):
        document = load_json(file)
        if not isinstance(document, dict) or not isinstance(document.get("people"), list):
            fail(file, "expected OpenPose's output, an object with a list of people")
        stem = file.stem.removesuffix(SUFFIX)
        if images and stem not in stems:
            fail(file, f"no image {stem}.* among the {len(images)} images, such as {images[0]}")
        entries.append(ImageEntry(stems.get(stem, stem), stem, None))
        for i, person in enumerate(document["people"]):
            points = _points(file, i, person)
            if not any(points[2::3]):
                nobody += 1
                continue
            size = size or len(points)
            if len(points) != size:
                fail(file, f"people[{i}].pose_keypoints_2d: expected {size} numbers, got {len(points)}")
            people.append(points)
            place.append(len(entries) - 1)
    size = size // 3 or 25
    if size not in NAMES_BY_SIZE:
        fail(path, f"pose_keypoints_2d: expected 25 points (BODY_25) or 18 (COCO), got {size}")
    chosen, index, over = map_names(path, NAMES_BY_SIZE[size], layout)
    keypoints, weights = gather(path, np.array(people, dtype=float).reshape(-1, size, 3), index)
    count = len(people)
    return Annotations(
        path, chosen, tuple(entries),
        image=np.array(place, dtype=np.int64),
        ids=np.arange(1, count + 1),
        keypoints=keypoints,
        weights=weights,
        boxes=np.full((count, 4), math.nan),
        age_offset=np.full(count, math.nan),
        age_class=np.full(count, UNKNOWN),
        years=np.full(count, math.nan),
        left_out=(("no labelled keypoint", nobody),) if nobody else (),
        notes=(f"not points of {chosen.name}, left out: {', '.join(over)}",) if over else (),
    )  # fmt: skip


def _points(file: Path, i: int, person: Any) -> list[float]:
    points = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
    if not isinstance(points, list) or not all(map(is_pixel, points)) or len(points) % 3:
        expected = f"finite numbers x, y, c for each point, up to {MAX_PIXELS:.0f} pixels"
        fail(file, f"people[{i}].pose_keypoints_2d: expected {expected}")
    return points
