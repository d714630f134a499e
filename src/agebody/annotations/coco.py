"""COCO's keypoint files: annotations with their images, and lists of results."""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float, Int

from agebody.age import AgeError, Ages, is_number, parse_ages
from agebody.annotations.people import (
    MAX_PIXELS,
    NAMES_BY_SIZE,
    ImageEntry,
    People,
    fail,
    is_file_name,
    make_people,
)
from agebody.keypoints import KeypointLayout

_UNLABELLED = "no labelled keypoint"


def load_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        AnnotationError: the file is not JSON.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        fail(path, "not a JSON file")
    except RecursionError:
        fail(path, "lists or objects are nested too deep")
    except ValueError as error:  # Python reads integers of up to 4300 digits
        fail(path, f"cannot be read: {error}")


class Entries:
    """A list of objects in a COCO file, whose values are checked as they are read. Errors name the entry."""

    def __init__(self, path: Path, name: str, listed: Any) -> None:
        """Check that ``listed`` is a list of objects; ``name`` is what errors call it."""
        self.path, self.name = path, name
        if not isinstance(listed, list):
            fail(path, f"{name}: expected a list, as in COCO's files, got {short(listed)}")
        self.rows: list[dict[str, Any]] = listed
        self.places = list(range(len(listed)))
        for i, row in enumerate(listed):
            if not isinstance(row, dict):
                fail(path, f"{name}[{i}]: expected an object, got {short(row)}")

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.rows)

    def select(self, kept: Sequence[bool] | np.ndarray) -> Entries:
        """Return some of the entries, which keep their numbers in the file."""
        found = Entries(
            self.path, self.name, [row for row, keep in zip(self.rows, kept, strict=True) if keep]
        )
        found.places = [place for place, keep in zip(self.places, kept, strict=True) if keep]
        return found

    def fail(self, i: int, problem: str) -> NoReturn:
        """Raise an `AnnotationError` that names an entry."""
        number = self.rows[i].get("id")
        known = f" (id {number})" if isinstance(number, (int, str)) else ""
        fail(self.path, f"{self.name}[{self.places[i]}]{known}: {problem}")

    def values(
        self, key: str, is_valid: Callable[[Any], bool], expected: str, default: Callable[[int], Any] | None
    ) -> list[Any]:
        """Return one checked value per entry; without a default it must be there."""
        found = []
        for i, row in enumerate(self.rows):
            if key not in row and default is None:
                self.fail(i, f"{key}: missing")
            value = row[key] if key in row or default is None else default(i)
            if not is_valid(value):
                self.fail(i, f"{key}: expected {expected}, got {short(value)}")
            found.append(value)
        return found

    def integers(self, key: str, default: Callable[[int], int] | None = None) -> Int[np.ndarray, " N"]:
        """Return integers of 64 bits."""
        return np.array(self.values(key, _is_integer, "an integer of 64 bits", default), dtype=np.int64)

    def numbers(self, key: str, least: float = -math.inf) -> Float[np.ndarray, " N"]:
        """Return finite numbers."""
        expected = "a number" if least == -math.inf else f"a number of at least {least:g}"
        valid = self.values(key, lambda value: is_number(value) and value >= least, expected, None)
        return np.array(valid, dtype=float)

    def ids(self, default: Callable[[int], int] | None = None) -> Int[np.ndarray, " N"]:
        """Return the ids of the entries, which must be different."""
        found = self.integers("id", default)
        first = np.unique(found, return_index=True)[1]
        if len(first) < len(found):
            i = int(np.setdiff1d(np.arange(len(found)), first)[0])
            self.fail(i, f"id: expected different ids, got {found[i]} more than once")
        return found

    def image_indices(self, place: dict[Any, int], what: str) -> list[int]:
        """Return ``place`` of the ``image_id`` of each entry; ``what`` describes the images."""
        expected = f"an integer or string that is the id of one of {what}"
        return [
            place[value]
            for value in self.values(
                "image_id", lambda value: _is_id(value) and value in place, expected, None
            )
        ]

    def keypoints(self, limit: float = math.inf) -> list[list[float]]:
        """Return x, y, v per point, up to ``limit`` [pixels]; an empty list where an entry has no points."""
        for i, row in enumerate(self.rows):
            values = row.get("keypoints")
            if values is None:
                continue
            if not isinstance(values, list) or not all(map(is_number, values)) or len(values) % 3:
                self.fail(
                    i, f"keypoints: expected finite numbers x, y, v for each point, got {short(values)}"
                )
            if values and abs(most := max(values, key=abs)) > limit:
                self.fail(i, f"keypoints: expected pixels up to {limit:.0f}, got {most:g}")
        return [row.get("keypoints") or [] for row in self.rows]

    def stack_keypoints(self, size: int, limit: float = math.inf) -> Float[np.ndarray, "N K 3"]:
        """Return the keypoints as one array of ``size`` points per entry."""
        rows = self.keypoints(limit)
        for i, row in enumerate(rows):
            if len(row) != 3 * size:
                self.fail(i, f"keypoints: expected {3 * size} numbers, got {len(row)}")
        return np.array(rows, dtype=float).reshape(-1, size, 3)

    def boxes(self, *, strict: bool = True, required: bool = False) -> Float[np.ndarray, "N 4"]:
        """Return boxes (x, y, width, height) as the file has them [pixels], NaN where there is none.

        Args:
            strict: refuse negative sizes and numbers that are not pixels of any image.
            required: refuse entries without a box.
        """
        limit, least = (MAX_PIXELS, 0.0) if strict else (math.inf, -math.inf)
        found = np.full((len(self), 4), math.nan)
        for i, row in enumerate(self.rows):
            box = row.get("bbox")
            if not required and (box is None or box == []):
                continue
            if (
                not isinstance(box, list)
                or len(box) != 4
                or not all(map(is_number, box))
                or (max(map(abs, box)) > limit or min(box[2:]) < least)
            ):
                self.fail(i, f"bbox: expected x, y, width, height in pixels, got {short(box)}")
            found[i] = box
        return found

    def ages(self) -> Ages:
        """Return ages of ``age_offset``, ``years``, ``age_class`` and ``age`` (years, or a class by name)."""
        columns: dict[str, list[Any]] = {"age_offset": [], "years": [], "age_class": []}
        for row in self.rows:
            age = row.get("age")
            years, name = (None, age) if isinstance(age, str) else (age, None)
            columns["age_offset"].append(row.get("age_offset"))
            columns["years"].append(years if row.get("years") in (None, "") else row["years"])
            columns["age_class"].append(name if row.get("age_class") in (None, "") else row["age_class"])
        try:
            return parse_ages(**columns, shape=(len(self),))
        except AgeError as error:
            stated = self.rows[error.person].get(error.name) not in (None, "")
            self.fail(error.person, f"{error.name if stated else 'age'}: {error.problem}")


def to_corners(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    """Convert boxes from (x, y, width, height) to corners (x0, y0, x1, y1)."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def read_coco_annotations(
    path: Path, document: dict[str, Any], layout: str | KeypointLayout | None
) -> People:
    """Read the people of a document with ``images``, ``annotations`` and, optionally, ``categories``.

    Crowds, annotations without labelled keypoints and those of other categories are left out, and counted.
    """
    images = _read_images(path, document)
    entries = Entries(path, "annotations", document.get("annotations"))
    names, category = _find_category(path, document.get("categories"))
    ids = entries.ids(lambda i: i + 1)
    left_out: Counter[str] = Counter()

    def keep(kept: Sequence[bool] | np.ndarray, reason: str) -> None:
        nonlocal entries, ids
        left_out[reason] += len(entries) - int(np.sum(kept))
        entries, ids = entries.select(kept), ids[np.asarray(kept, dtype=bool)]

    if category is not None:
        keep(entries.integers("category_id", lambda i: category) == category, "of another category")
    keep([not row.get("iscrowd") for row in entries.rows], "crowd")
    keep([any(row[2::3]) for row in entries.keypoints(MAX_PIXELS)], _UNLABELLED)
    place = {image.id: i for i, image in enumerate(images)}
    image = entries.image_indices(place, "the images")
    return _make(path, entries, names, layout, images=images, image=image, ids=ids, left_out=left_out)


def read_coco_results(
    path: Path, listed: list[Any], layout: str | KeypointLayout | None, images: Sequence[str]
) -> People:
    """Read the people of a list of detections, whose images are found by their number or by their name.

    Args:
        path: the file.
        listed: its entries, with ``image_id``, ``keypoints`` and, optionally, ``bbox`` and ages.
        layout: of the keypoints; if None, found by their number.
        images: names of the existing files. An ``image_id`` is such a name, or the number in one, as in
            ``000000000139.jpg``.
    """
    known: dict[Any, str] = {name: name for name in images} | {Path(name).stem: name for name in images}
    known |= {int(stem): name for stem, name in known.items() if stem.isdecimal()}
    entries = Entries(path, "results", listed)
    place: dict[str, int] = {}
    found: list[ImageEntry] = []
    for i, row in enumerate(entries.rows):
        image: Any = row.get("file_name", row.get("image_id"))
        name = known.get(image) if _is_id(image) else None
        if name is None:
            there = f"{len(images)} images, such as {images[0]}" if images else "no images; give their folder"
            entries.fail(i, f"image_id: expected one of the images, got {short(image)}; there are {there}")
        if place.setdefault(name, len(found)) == len(found):
            found.append(ImageEntry(name, image, None))
    labelled = [any(row[2::3]) for row in entries.keypoints(MAX_PIXELS)]
    left_out = Counter({_UNLABELLED: labelled.count(False)})
    entries = entries.select(labelled)
    image = [place[known[row.get("file_name", row.get("image_id"))]] for row in entries.rows]
    ids = np.array(entries.places, dtype=np.int64) + 1
    return _make(path, entries, None, layout, images=found, image=image, ids=ids, left_out=left_out)


def read_coco_boxes(path: Path) -> tuple[list[ImageEntry], list[int], Float[np.ndarray, "N 4"]]:
    """Read the boxes of all annotations, of people or not.

    Returns:
        The images, the index of the image of each box, and the boxes (x0, y0, x1, y1) [pixels].

    Raises:
        AnnotationError: the file does not hold COCO annotations with a box each.
        OSError: it cannot be read.
    """
    document = load_json(path)
    if not isinstance(document, dict):
        fail(path, "expected COCO annotations, an object with lists of images and annotations")
    images = _read_images(path, document)
    entries = Entries(path, "annotations", document.get("annotations"))
    place = {image.id: i for i, image in enumerate(images)}
    boxes = to_corners(entries.boxes(required=True))
    return images, entries.image_indices(place, "the images"), boxes


def keypoint_names(path: Path, size: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of ``size`` keypoints: those of the file if it has as many, else by their number."""
    found = tuple(names) if names is not None and len(names) == size else NAMES_BY_SIZE.get(size)
    if found is None:
        known = ", ".join(map(str, NAMES_BY_SIZE))
        fail(path, f"categories: expected the names of the {size} keypoints; only {known} need none")
    return found


def category_keypoints(path: Path, category: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the keypoints of a category; None where it has none."""
    names = category.get("keypoints")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        fail(path, f"categories: keypoints: expected a list of names, got {short(names)}")
    return tuple(names) if names else None


def list_categories(path: Path, categories: Any) -> list[dict[str, Any]]:
    """Return the categories of a file, of which there may be none."""
    if not isinstance(categories, (list, type(None))):
        fail(path, f"categories: expected a list, got {short(categories)}")
    return [one for one in categories or () if isinstance(one, dict)]


def short(value: Any) -> str:
    """Return a value as error messages show it."""
    return "nothing" if value is None else reprlib.repr(value)


def _make(
    path: Path,
    entries: Entries,
    names: Sequence[str] | None,
    layout: str | KeypointLayout | None,
    *,
    images: list[ImageEntry],
    image: list[int],
    ids: np.ndarray,
    left_out: Counter[str],
) -> People:
    rows = entries.keypoints()
    size = len(rows[0]) // 3 if rows else 17 if names is None else len(names)
    names = keypoint_names(path, size, names)
    return make_people(
        path,
        entries.stack_keypoints(size),
        names,
        layout,
        images=images,
        image=image,
        ids=ids,
        boxes=to_corners(entries.boxes()),
        ages=entries.ages(),
        left_out=sorted((+left_out).items()),
    )


def _read_images(path: Path, document: dict[str, Any]) -> list[ImageEntry]:
    entries = Entries(path, "images", document.get("images"))
    expected = "a path inside the folder of the images"
    names = entries.values(
        "file_name", lambda name: isinstance(name, str) and is_file_name(name), expected, None
    )
    ids = entries.values("id", _is_id, "an integer or a string", None)
    twice = [number for number, count in Counter(ids).items() if count > 1]
    if twice:
        fail(path, f"images: expected different ids, got {twice[0]!r} more than once")
    found = []
    for i, row in enumerate(entries.rows):
        size: list[Any] = [row.get("width"), row.get("height")]
        if size != [None, None] and not all(_is_integer(n) and 0 < n <= MAX_PIXELS for n in size):
            expected = f"two positive integers up to {MAX_PIXELS:.0f}"
            entries.fail(i, f"width, height: expected {expected}, got {short(size)}")
        found.append(ImageEntry(names[i], ids[i], None if size == [None, None] else (size[0], size[1])))
    return found


def _find_category(path: Path, categories: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Return the names of the keypoints and the id of people, each None where the file does not state it."""
    listed = list_categories(path, categories)
    found = [one for one in listed if one.get("keypoints")] or [
        o for o in listed if o.get("name") == "person"
    ]
    if len(found) > 1:
        names = ", ".join(str(one.get("name")) for one in found)
        fail(path, f"categories: expected keypoints of one category, that of people, got {names}")
    if not found:
        return None, None
    number = Entries(path, "categories", found).integers("id", lambda i: 1)
    return category_keypoints(path, found[0]), int(number[0])


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_id(value: Any) -> bool:
    return _is_integer(value) or isinstance(value, str)
