"""COCO's keypoint files: annotations with their images, and a list of results."""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agebody.annotations.people import fail
from agebody.assets.landmarks import COCO17
from agebody.metrics.average_precision import split_images
from agebody.metrics.similarity import CROWDPOSE14, oks_sigmas
from agebody.pipelines.evaluate.average_precision import Detections


def read_coco(pred: str | Path, target: str | Path) -> Detections:
    """Reads COCO keypoint results and the annotations that they are of.

    As in COCO's evaluation, detections in an image without people count as wrong, those of other categories
    do not count, and the size of a detection is that of its box where the results have boxes, of its
    keypoints where not.

    Raises:
        AnnotationError: a file is not of that kind, a key is missing or wrong, or a result is of an unknown
            image.
        OSError: a file cannot be read.
    """
    results, truth = _Entries(Path(pred), "results"), _Entries(Path(target), "annotations")
    document = _load(truth.path)
    if not isinstance(document, dict) or not all(
        isinstance(document.get(key), list) for key in ("images", "annotations")
    ):
        fail(truth.path, "expected COCO annotations, an object with lists of images and annotations")
    listed = _load(results.path)
    if not isinstance(listed, list):
        fail(results.path, "expected COCO results, a list of detections")
    images = np.unique(_Entries(truth.path, "images", document["images"]).column("id", int))
    truth.entries = document["annotations"]
    truth.refuse_duplicates("id")
    truth.refuse_unknown("image_id", images, "the images")
    category = truth.only_category()
    results.entries = listed
    if category is not None:
        of = results.categories()
        results.entries = [entry for entry, its in zip(listed, of, strict=True) if its == category]
    results.refuse_unknown("image_id", images, f"the images of {truth.path}")
    size = truth.size() or results.size() or 17
    people, found = truth.keypoints(size), results.keypoints(size)
    split = split_images(
        found[..., :2],
        results.column("score", float),
        results.column("image_id", int),
        people[..., :2],
        truth.areas(),
        truth.column("image_id", int),
        visible=people[..., 2] > 0,
        boxes=truth.boxes(),
        crowd=np.array([bool(one.get("iscrowd", 0)) for one in truth.entries], dtype=bool),
        pred_areas=results.boxes()[:, 2:].prod(1) if results.has_boxes() else None,
        images=images,
    )
    notes = []
    if len(results.entries) < len(listed):
        notes.append(f"{len(listed) - len(results.entries)} detections of other categories do not count")
    empty = sum(len(image.pred) == 0 for image in split)
    if empty:
        notes.append(f"{empty} of {len(images)} images have no detection")
    spread = 2 * np.array(_sigmas(truth.path, document.get("categories"), category, size))
    return Detections(split, spread, tuple(notes))


@dataclass
class _Entries:
    """A list of objects in a file, whose values are checked as they are read."""

    path: Path
    name: str
    entries: list[Any] = field(default_factory=list)

    def values(self, key: str, *default: Any) -> list[Any]:
        for i, entry in enumerate(self.entries):
            if not isinstance(entry, dict) or (key not in entry and not default):
                fail(self.path, f"{self.name}[{i}].{key}: missing")
        return [entry.get(key, *default) for entry in self.entries]

    def column(self, key: str, kind: type[int] | type[float], *default: Any) -> np.ndarray:
        values = self.values(key, *default)
        is_kind, expected = (
            (_is_integer, "an integer of 64 bits") if kind is int else (_is_number, "a number")
        )
        for i, value in enumerate(values):
            if not is_kind(value):
                fail(self.path, f"{self.name}[{i}].{key}: expected {expected}, got {reprlib.repr(value)}")
        return np.array(values, dtype=kind)

    def areas(self) -> np.ndarray:
        areas = self.column("area", float)
        if (areas < 0).any():
            i = int(np.argmax(areas < 0))
            fail(self.path, f"{self.name}[{i}].area: expected at least 0, got {areas[i]:g}")
        return areas

    def categories(self) -> list[int]:
        """Of each; 1, COCO's people, where it says none."""
        return self.column("category_id", int, 1).tolist()

    def lists(self, key: str, size: int) -> np.ndarray:
        values = self.values(key)
        for i, row in enumerate(values):
            if not isinstance(row, list) or not all(map(_is_number, row)):
                fail(self.path, f"{self.name}[{i}].{key}: expected a list of finite numbers")
            if len(row) != size:
                fail(self.path, f"{self.name}[{i}].{key}: expected {size} numbers, got {len(row)}")
        return np.array(values, dtype=np.float64).reshape(-1, size)

    def keypoints(self, size: int) -> np.ndarray:
        return self.lists("keypoints", 3 * size).reshape(-1, size, 3)

    def boxes(self) -> np.ndarray:
        return self.lists("bbox", 4)

    def has_boxes(self) -> bool:
        """Decided by the first, as pycocotools does."""
        return bool(self.entries) and bool(self.entries[0].get("bbox"))

    def size(self) -> int:
        """How many keypoints the first has; 0 without any."""
        first = self.values("keypoints")[:1]
        return len(first[0]) // 3 if first and isinstance(first[0], list) else 0

    def only_category(self) -> int | None:
        """The category of all; None without entries."""
        categories = sorted(set(self.categories()))
        if len(categories) > 1:
            fail(self.path, f"{self.name}: expected one category, that of people, got {categories}")
        return categories[0] if categories else None

    def refuse_duplicates(self, key: str) -> None:
        values, counts = np.unique(self.column(key, int), return_counts=True)
        if (counts > 1).any():
            first = int(np.argmax(counts > 1))
            fail(self.path, f"{self.name}: {key} {values[first]} is there {counts[first]} times")

    def refuse_unknown(self, key: str, known: np.ndarray, what: str) -> None:
        unknown = np.setdiff1d(self.column(key, int), known)
        if len(unknown):
            fail(self.path, f"{self.name}: {key} {unknown[0]} is none of {what}")


def _is_number(value: Any) -> bool:
    """Whether a float64 holds it."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _is_integer(value: Any) -> bool:
    """Whether an int64 holds it."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        fail(path, "no JSON file")
    except RecursionError:
        fail(path, "lists or objects are nested too deep")
    except ValueError as error:  # Python reads integers of up to 4300 digits
        fail(path, f"cannot be read: {error}")


def _sigmas(path: Path, categories: Any, category: int | None, size: int) -> tuple[float, ...]:
    """By the names of the keypoints where the file has them, by their number where not."""
    if not isinstance(categories, (list, type(None))):
        fail(path, f"categories: expected a list, got {reprlib.repr(categories)}")
    listed = [one for one in categories or () if isinstance(one, dict) and one.get("id") == category]
    names = listed[0].get("keypoints") if listed else None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        fail(path, f"categories: keypoints: expected a list of names, got {reprlib.repr(names)}")
    if names is None or len(names) != size:
        names = {17: COCO17, 14: CROWDPOSE14}.get(size)
    if names is None:
        fail(path, f"categories: expected the names of the {size} keypoints; only 17 and 14 need none")
    try:
        return oks_sigmas(names)
    except ValueError as error:
        fail(path, f"categories: {error}")
