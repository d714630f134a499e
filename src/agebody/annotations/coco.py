"""COCO's keypoint files: annotations with their images, and lists of results."""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agebody.annotations.people import (
    MAX_PIXELS,
    NAMES_BY_SIZE,
    UNKNOWN,
    Annotations,
    ImageEntry,
    age_class_index,
    fail,
    gather,
    is_file_name,
    map_names,
)
from agebody.keypoints import KeypointLayout

_AGES = ("age_offset", "age_class", "years", "age")


def load_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        AnnotationError: it is none.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        fail(path, "no JSON file")
    except RecursionError:
        fail(path, "lists or objects are nested too deep")
    except ValueError as error:  # Python reads integers of up to 4300 digits
        fail(path, f"cannot be read: {error}")


def read_coco_annotations(
    path: Path, document: dict[str, Any], layout: str | KeypointLayout | None
) -> Annotations:
    """People of a document with ``images``, ``annotations`` and, best, ``categories``.

    Crowds, annotations without labelled keypoints and those of other categories are left out, and counted.
    Ages are read where an annotation has ``age_offset``, ``age_class`` (a name or an index), ``years`` or
    ``age`` (a number of years, or a name).

    Raises:
        AnnotationError: a key is missing or wrong.
    """
    for key in ("images", "annotations"):
        if not isinstance(document.get(key), list):
            fail(path, f"{key}: expected a list, as in COCO's annotations, got {_short(document.get(key))}")
    images = [_image(path, i, entry) for i, entry in enumerate(document["images"])]
    place = _places(path, images)
    names, category = _category(path, document.get("categories"))
    left_out: Counter[str] = Counter()
    rows: list[tuple[int, int, list[float], list[float] | None, tuple[float, int, float]]] = []
    ids: set[int] = set()
    for i, entry in enumerate(document["annotations"]):
        where = _where(path, "annotations", i, entry)
        number = _integer(path, where, entry, "id", i + 1)
        if number in ids:
            fail(path, f"{where}: the id is there twice")
        ids.add(number)
        if category is not None and _integer(path, where, entry, "category_id", category) != category:
            left_out["of another category"] += 1
        elif entry.get("iscrowd"):
            left_out["crowd"] += 1
        elif not any((points := _numbers(path, where, entry, "keypoints"))[2::3]):
            left_out["no labelled keypoint"] += 1
        else:
            named = entry.get("image_id")
            image = (
                place.get(named) if isinstance(named, (int, str)) and not isinstance(named, bool) else None
            )
            if image is None:
                fail(path, f"{where}: image_id {_short(named)} is none of the images")
            rows.append((number, image, points, _box(path, where, entry), _age(path, where, entry)))
    return _annotations(path, rows, images, names, layout, left_out)


def read_coco_results(
    path: Path, listed: list[Any], layout: str | KeypointLayout | None, images: Sequence[str]
) -> Annotations:
    """People of a list of detections, whose images are found by their number or by their name.

    Args:
        path: where the list was read.
        listed: its entries, with ``image_id``, ``keypoints`` and, where there are, ``bbox`` and ages.
        layout: of the keypoints; by their number if None.
        images: names of the files there are. An ``image_id`` is such a name, or the number in one, as in
            ``000000000139.jpg``.

    Raises:
        AnnotationError: a key is missing or wrong, or there is no such image.
    """
    known = {name: name for name in images} | {Path(name).stem: name for name in images}
    known |= {int(stem): name for stem, name in list(known.items()) if stem.isdecimal()}  # pyright: ignore
    place: dict[str, int] = {}
    entries: list[ImageEntry] = []
    rows = []
    left_out: Counter[str] = Counter()
    for i, entry in enumerate(listed):
        where = _where(path, "results", i, entry)
        image = entry.get("file_name", entry.get("image_id"))
        name = known.get(image) if isinstance(image, (int, str)) else None
        if name is None:
            there = f"{len(images)} images, such as {images[0]}" if images else "no images; give their folder"
            fail(path, f"{where}: image_id {_short(image)} is none of them: there are {there}")
        if name not in place:
            place[name] = len(entries)
            entries.append(ImageEntry(name, image, None))
        points = _numbers(path, where, entry, "keypoints")
        if not any(points[2::3]):
            left_out["no labelled keypoint"] += 1
            continue
        rows.append((i + 1, place[name], points, _box(path, where, entry), _age(path, where, entry)))
    return _annotations(path, rows, entries, None, layout, left_out)


def _annotations(
    path: Path,
    rows: list[tuple[int, int, list[float], list[float] | None, tuple[float, int, float]]],
    images: list[ImageEntry],
    names: tuple[str, ...] | None,
    layout: str | KeypointLayout | None,
    left_out: Counter[str],
) -> Annotations:
    size = len(rows[0][2]) // 3 if rows else 17 if names is None else len(names)
    if names is None or len(names) != size:
        names = NAMES_BY_SIZE.get(size)
    if names is None:
        fail(
            path, f"categories: expected the names of the {size} keypoints; only 17, 18, 25 and 44 need none"
        )
    for number, _, points, _, _ in rows:
        if len(points) != 3 * size:
            fail(path, f"id {number}: keypoints: expected {3 * size} numbers, got {len(points)}")
    chosen, index, over = map_names(path, names, layout)
    keypoints, weights = gather(
        path, np.array([row[2] for row in rows], dtype=float).reshape(-1, size, 3), index
    )
    ages = [row[4] for row in rows]
    notes = (f"not points of {chosen.name}, left out: {', '.join(over)}",) if over else ()
    return Annotations(
        path, chosen, tuple(images),
        image=np.array([row[1] for row in rows], dtype=np.int64),
        ids=np.array([row[0] for row in rows], dtype=np.int64),
        keypoints=keypoints,
        weights=weights,
        boxes=np.array([row[3] or [math.nan] * 4 for row in rows], dtype=float).reshape(-1, 4),
        age_offset=np.array([age[0] for age in ages], dtype=float),
        age_class=np.array([age[1] for age in ages], dtype=np.int64),
        years=np.array([age[2] for age in ages], dtype=float),
        left_out=tuple(sorted(left_out.items())),
        notes=notes,
    )  # fmt: skip


def _image(path: Path, i: int, entry: Any) -> ImageEntry:
    where = f"images[{i}]"
    if not isinstance(entry, dict):
        fail(path, f"{where}: expected an object, got {_short(entry)}")
    name, number = entry.get("file_name"), entry.get("id")
    if not isinstance(name, str) or not name:
        fail(path, f"{where}.file_name: expected a name, got {_short(name)}")
    if not is_file_name(name):
        fail(path, f"{where}.file_name: expected a path inside the folder of the images, got {name!r}")
    if not isinstance(number, (int, str)) or isinstance(number, bool):
        fail(path, f"{where}.id: expected an integer or a string, got {_short(number)}")
    size = [entry.get("width"), entry.get("height")]
    if size == [None, None]:
        return ImageEntry(name, number, None)
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MAX_PIXELS for n in size):
        expected = f"two positive integers up to {MAX_PIXELS:.0f}"
        fail(path, f"{where}: width, height: expected {expected}, got {_short(size)}")
    return ImageEntry(name, number, (int(size[0]), int(size[1])))  # pyright: ignore[reportArgumentType]


def _places(path: Path, images: list[ImageEntry]) -> dict[int | str, int]:
    place = {image.id: i for i, image in enumerate(images)}
    if len(place) < len(images):
        twice = next(number for number, count in Counter(image.id for image in images).items() if count > 1)
        fail(path, f"images: id {twice!r} is there more than once")
    return place


def _category(path: Path, categories: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Names of the keypoints, and the id of people; None where the file has no such category."""
    if not isinstance(categories, (list, type(None))):
        fail(path, f"categories: expected a list, got {_short(categories)}")
    found = [one for one in categories or () if isinstance(one, dict)]
    found = [one for one in found if one.get("keypoints")] or [o for o in found if o.get("name") == "person"]
    if len(found) > 1:
        names = ", ".join(str(one.get("name")) for one in found)
        fail(path, f"categories: expected keypoints of one category, that of people, got {names}")
    if not found:
        return None, None
    names = found[0].get("keypoints")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        fail(path, f"categories: keypoints: expected a list of names, got {_short(names)}")
    return tuple(names) if names else None, _integer(path, "categories", found[0], "id", 1)


def _where(path: Path, kind: str, i: int, entry: Any) -> str:
    if not isinstance(entry, dict):
        fail(path, f"{kind}[{i}]: expected an object, got {_short(entry)}")
    return f"{kind}[{i}]" + (f" (id {entry['id']})" if isinstance(entry.get("id"), (int, str)) else "")


def _integer(path: Path, where: str, entry: dict[str, Any], key: str, default: int) -> int:
    value = entry.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        fail(path, f"{where}: {key}: expected an integer, got {_short(value)}")
    return value


def _numbers(path: Path, where: str, entry: dict[str, Any], key: str) -> list[float]:
    values = entry.get(key)
    if values is None or (isinstance(values, list) and not values):
        return []
    if not isinstance(values, list) or not all(map(is_number, values)) or len(values) % 3:
        fail(path, f"{where}: {key}: expected finite numbers x, y, v for each point, got {_short(values)}")
    if not all(map(is_pixel, values)):
        fail(path, f"{where}: {key}: expected pixels up to {MAX_PIXELS:.0f}, got {max(values, key=abs):g}")
    return values


def _box(path: Path, where: str, entry: dict[str, Any]) -> list[float] | None:
    box = entry.get("bbox")
    if box is None or box == []:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_pixel, box)) or min(box[2:]) < 0:
        fail(path, f"{where}: bbox: expected x, y, width, height in pixels, got {_short(box)}")
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def _age(path: Path, where: str, entry: dict[str, Any]) -> tuple[float, int, float]:
    """Age offset, age class and years; at most one of them is known."""
    given = {key: entry[key] for key in _AGES if entry.get(key) not in (None, "")}
    if len(given) > 1:
        fail(path, f"{where}: {' and '.join(given)} all give the age; expected one of them")
    if not given:
        return math.nan, UNKNOWN, math.nan
    ((key, value),) = given.items()
    if key == "age_class" or (key == "age" and isinstance(value, str)):
        index = age_class_index(value)
        if index is None:
            fail(path, f"{where}: {key}: expected adult, teen, kid, baby or 0 to 3, got {_short(value)}")
        return math.nan, index, math.nan
    least, most = (-1, 2) if key == "age_offset" else (0, 150)
    if not is_number(value) or not least <= value <= most:
        fail(path, f"{where}: {key}: expected a number from {least} to {most}, got {_short(value)}")
    return (value, UNKNOWN, math.nan) if key == "age_offset" else (math.nan, UNKNOWN, value)


def is_number(value: Any) -> bool:
    """Whether a float64 holds it."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_pixel(value: Any) -> bool:
    """Whether it is a number that a coordinate in an image can have."""
    return is_number(value) and abs(value) <= MAX_PIXELS


def _short(value: Any) -> str:
    return "nothing" if value is None else reprlib.repr(value)
