"""OpenPose's folders: one file per frame, ``NAME_keypoints.json``, with everyone in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agebody.annotations.coco import load_json
from agebody.annotations.people import (
    MAX_PIXELS,
    NAMES_BY_SIZE,
    ImageEntry,
    People,
    fail,
    is_pixel,
    make_people,
)
from agebody.keypoints import KeypointLayout

SUFFIX = "_keypoints"


def read_openpose(
    path: Path, files: Iterable[Path], layout: str | KeypointLayout | None, images: Sequence[str]
) -> People:
    """Read the people of OpenPose's files, BODY_25 or COCO (18 points), in the order of the files' names.

    Args:
        path: the folder, which errors name.
        files: one per frame.
        layout: to map the points to by their names; by default openpose25.
        images: names of the existing image files. The image of a frame has the frame's name, in any folder;
            without images, the frame's name stands for it.
    """
    stems = {Path(name).stem: name for name in images}
    entries: list[ImageEntry] = []
    people: list[list[float]] = []
    place: list[int] = []
    nobody = 0
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
            if people and len(points) != len(people[0]):
                expected = f"expected {len(people[0])} numbers, as in the other files, got {len(points)}"
                fail(file, f"people[{i}].pose_keypoints_2d: {expected}")
            people.append(points)
            place.append(len(entries) - 1)
    size = len(people[0]) // 3 if people else 25
    if size not in NAMES_BY_SIZE:
        fail(path, f"pose_keypoints_2d: expected 25 points (BODY_25) or 18 (COCO), got {size}")
    return make_people(
        path,
        np.array(people, dtype=float).reshape(-1, size, 3),
        NAMES_BY_SIZE[size],
        layout,
        images=entries,
        image=place,
        left_out=[("no labelled keypoint", nobody)] if nobody else (),
    )


def _points(file: Path, i: int, person: Any) -> list[float]:
    points = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
    if not isinstance(points, list) or not all(map(is_pixel, points)) or len(points) % 3:
        expected = f"finite numbers x, y, c for each point, up to {MAX_PIXELS:.0f} pixels"
        fail(file, f"people[{i}].pose_keypoints_2d: expected {expected}")
    return points
