"""Entries of COCO's keypoint files, and of all formats in COCO's terms, with one check of their values."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Float, Int

from agebody.age import AGE_CLASSES, Ages, is_number, parse_ages
from agebody.age.classes import AGE_FIELDS, AgeError
from agebody.age.values import MAX_YEARS
from agebody.annotations.orders import FEET6, PARTS, Order, order_by_size, sizes_without_names
from agebody.annotations.people import MAX_PIXELS, ImageEntry, fail, is_file_name, short, shorten
from agebody.checks import MOST_SURE

_COCO_PARTS, _OPENPOSE_PARTS = tuple(PARTS)[:4], tuple(PARTS)[4:]
_TRACKS = ("track_id", "idx", "person_id")
"""Keys of the number of a person in a video: of COCO and PoseTrack, AlphaPose, OpenPose."""

_OTHERS = (
    (rb"\s*\Z", "an empty one"),
    (rb"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (rb"(?i)\s*<(!doctype|html)", "a web page"),
    (rb"\x1f\x8b|\xfd7zXZ|BZh|7z\xbc\xaf|\x28\xb5\x2f\xfd", "a packed one; unpack it first"),
    (
        rb"PK\x03\x04|\x93NUMPY|\x80[\x02-\x05]|PAR1",
        "one of arrays, as npz or pickle; write the keypoints as COCO's JSON",
    ),
    (rb"\x89HDF", "HDF5, as of DeepLabCut or SLEAP; write the keypoints as COCO's JSON"),
    (rb"MATLAB ", "MATLAB's arrays; write the keypoints as COCO's JSON"),
    (rb"\s*<[?a-zA-Z]", "XML, as of CVAT; export COCO's JSON"),
    (rb"%YAML", "YAML, as of OpenPose's older versions; write the keypoints as COCO's JSON"),
    (rb"[^\s\[{\"][^\n]{0,4096},[^\n]{0,4096}\n", "a table; write the keypoints as COCO's JSON"),
    (rb"\s*\{[^\n]*\}\r?\n\s*\{", "lines of JSON; join them to one list, as by `jq -s . FILE`"),
    (rb"\s*[\[{]", "a damaged one, or not in UTF-8"),
)
"""Magic bytes of files that are not JSON, and their kinds."""
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{0,20})?")
_MOST_NEGATIVE = -1.0
"""Heatmaps give confidences slightly below 0; lower numbers are no confidences."""


def load_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    data = path.read_bytes()
    try:
        return json.loads(data)  # UTF-8, 16 or 32, with or without a byte order mark
    except (json.JSONDecodeError, UnicodeDecodeError):
        what = next((what for start, what in _OTHERS if re.match(start, data)), "")
        fail(path, f"not a JSON file{what and ', but '}{what}")
    except RecursionError:
        fail(path, "lists or objects are nested too deep")
    except ValueError as error:  # Python reads integers of up to 4300 digits
        fail(path, f"cannot be read: {error}")


def read_run_lengths(text: Any) -> list[int] | None:
    """Return the lengths of runs of pixels outside and inside a mask, in turn, from COCO's compressed form.

    Six bits a letter, of which five are of a number, the least first, and the sixth says that more follow;
    from the fourth number on each is the difference from the last but one (``rleFrString`` of cocoapi). None
    for what is not such text, or not complete.
    """
    if not isinstance(text, str):
        return None
    found: list[int] = []
    number = shift = 0
    for letter in text:
        bits = ord(letter) - ord("0")
        if not 0 <= bits < 64 or shift > 60:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) and 1 << shift
            found.append(number + (found[-2] if len(found) > 2 else 0))
            number = shift = 0
    return None if shift else found


class Entries:
    """A list of objects in COCO's terms, whose values are checked as they are read. Errors name the entry.

    Args:
        path: the file.
        name: what errors call the list.
        listed: the list.
        origins: file and place of each entry, where they are not places in the list of ``path``.
    """

    def __init__(
        self, path: Path, name: str, listed: Any, origins: Sequence[tuple[Path, str]] | None = None
    ) -> None:
        """Check that ``listed`` is a list of objects."""
        self.path, self.name, self.origins = path, name, origins
        if not isinstance(listed, list):
            fail(path, f"{name}: expected a list, as in COCO's files, got {short(listed)}")
        self.rows: list[dict[str, Any]] = listed
        self.places = list(range(len(listed)))
        for i, row in enumerate(listed):
            if not isinstance(row, dict):
                place = (path, f"{name}[{i}]") if origins is None else origins[i]
                fail(place[0], f"{place[1]}: expected an object, got {short(row)}")

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.rows)

    def select(self, kept: Sequence[bool] | np.ndarray) -> Entries:
        """Return some of the entries; errors still name their numbers in the file."""
        rows = [row for row, keep in zip(self.rows, kept, strict=True) if keep]
        found = Entries(self.path, self.name, rows, self.origins and [self.origins[0]] * len(rows))
        found.origins = self.origins
        found.places = [place for place, keep in zip(self.places, kept, strict=True) if keep]
        return found

    def fail(self, i: int, problem: str) -> NoReturn:
        """Raise an `AnnotationError` that names an entry."""
        if self.origins is not None:
            path, where = self.origins[self.places[i]]
            fail(path, f"{where}: {problem}" if where else problem)
        number = self.rows[i].get("id")
        known = f" (id {short(number)})" if isinstance(number, (int, float, str)) else ""
        fail(self.path, f"{self.name}[{self.places[i]}]{known}: {problem}")

    def values(
        self, key: str, is_valid: Callable[[Any], bool], expected: str, default: Callable[[int], Any] | None
    ) -> list[Any]:
        """Return one checked value per entry; without a default it must be there."""
        found = []
        for i, row in enumerate(self.rows):
            value = row.get(key)
            if key not in row and default is None:
                self.fail(i, f"{key}: missing")
            if value is None and default is not None:
                value = default(i)
            if not is_valid(value):
                self.fail(i, f"{key}: expected {expected}, got {short(value)}")
            found.append(value)
        return found

    def ids(self) -> Int[np.ndarray, " N"]:
        """Return the ids of the entries, which must be different; places, if not all ids are integers."""
        found = self.values("id", is_id, "a number or a string", lambda i: self.places[i] + 1)
        first = {value: i for i, value in reversed(list(enumerate(found)))}
        if len(first) < len(found):
            i = next(i for i, value in enumerate(found) if first[value] != i)
            self.fail(i, f"id: expected different ids, got {short(found[i])} more than once")
        if not all(map(is_integer, found)):
            found = [place + 1 for place in self.places]
        return np.array([int(value) for value in found], dtype=np.int64)

    def tracks(self) -> Int[np.ndarray, " N"]:
        """Return the number of each person in a video, -1 where there is none."""
        found = []
        for row in self.rows:
            value: Any = next((row[key] for key in _TRACKS if row.get(key) is not None), -1)
            while isinstance(value, list) and len(value) == 1:
                value = value[0]
            number: Any = value if is_integer(value) else -1
            found.append(max(int(number), -1))
        return np.array(found, dtype=np.int64)

    def scores(self) -> Float[np.ndarray, " N"]:
        """Return the score of each person, NaN where it is not stated."""
        found: list[Any] = [_number_in(row.get("score")) for row in self.rows]
        return np.array([float(one) if is_number(one) else math.nan for one in found])

    def image_indices(self, place: dict[Any, int], what: str) -> list[int]:
        """Return ``place`` of the ``image_id`` of each entry; ``what`` describes the images."""
        expected = f"a number or string that is the id of one of {what}"
        valid = self.values("image_id", lambda value: is_id(value) and value in place, expected, None)
        return [place[value] for value in valid]

    def points(self, limit: float) -> list[Float[np.ndarray, "_ 3"]]:
        """Return x, y, v of the points; no points where an entry has none.

        Where v is 0, coordinates may be missing, and are 0 then. At (0, 0) are points that were not found,
        whatever v is. ``PARTS``, such as COCO-WholeBody's feet, are appended to the body; of face and hands,
        all or none.

        Args:
            limit: largest coordinate where v is not 0 [pixels].
        """
        found = [self._points(i, "keypoints", limit) for i in range(len(self))]
        keys = {key for row in self.rows for key in PARTS if row.get(key)}
        whole = [group for group in (_COCO_PARTS, _OPENPOSE_PARTS) if keys & {*group}]
        for parts in whole:
            if parts is _OPENPOSE_PARTS and any(len(points) not in (0, 25) for points in found):
                continue  # hands and faces beside another body than BODY_25 have no layout
            used = parts if keys & {*parts[-2:]} or "face_kpts" in keys else parts[:1]
            for i, points in enumerate(found):
                if len(points):
                    found[i] = np.concatenate((points, *(self._part(i, key, limit) for key in used)))
        return found

    def _part(self, i: int, key: str, limit: float) -> Float[np.ndarray, "_ 3"]:
        points = self._points(i, key, limit)
        if len(points) not in (0, PARTS[key]):
            self.fail(i, f"{key}: expected {3 * PARTS[key]} numbers, got {3 * len(points)}")
        return points if len(points) else np.zeros((PARTS[key], 3))

    def _points(self, i: int, key: str, limit: float) -> Float[np.ndarray, "_ 3"]:
        values = self.rows[i].get(key)
        if values is None or values == []:
            return np.zeros((0, 3))
        if isinstance(values, list) and all(isinstance(one, (list, tuple)) for one in values):
            values = [number for one in values for number in (one if len(one) == 3 else [one])]
        expected = "expected finite numbers x, y, v for each point"
        if not isinstance(values, list) or len(values) % 3:
            count = f"{len(values)} numbers" if isinstance(values, list) else short(values)
            self.fail(i, f"{key}: {expected}, got {count}")
        points = np.zeros(len(values))
        if set(map(type, values)) <= {int, float} and all(map(math.isfinite, map(_as_float, values))):
            points = np.array(values, dtype=float)
        else:
            for k, value in enumerate(values):
                v = values[k - k % 3 + 2]
                absent = _is_gap(value) and (_is_gap(v) or (is_number(v) and v <= 0))
                if absent and (k % 3 < 2 or all(map(_is_gap, values[k - 2 : k]))):
                    continue
                if not is_number(value):
                    self.fail(
                        i, f"{key}: {expected}, got {short(value)} for {'xyv'[k % 3]} of point {k // 3}"
                    )
                points[k] = value
        points = points.reshape(-1, 3)
        low = points[:, 2] <= _MOST_NEGATIVE
        if low.any():
            k = int(np.flatnonzero(low)[0])
            self.fail(i, f"{key}: expected confidences of at least 0, got {points[k, 2]:g} for point {k}")
        if (most := points[:, 2].max(initial=0)) > MOST_SURE:
            scale = 100 if most <= 100 else 255
            self.fail(
                i, f"{key}: expected confidences from 0 to 1, got {most:g}; divide them all, as by {scale}"
            )
        points[:, 2] = np.maximum(points[:, 2], 0)
        points[~points[:, :2].any(1), 2] = 0  # Ultralytics moves those of confidences below 0.5 there
        far = (np.abs(points[:, :2]) > limit) & (points[:, 2:] > 0)
        if far.any():
            self.fail(i, f"{key}: expected pixels up to {limit:.0f}, got {points[:, :2][far][0]:g}")
        return points

    def stack(self, points: list[Float[np.ndarray, "_ 3"]], size: int) -> Float[np.ndarray, "N K 3"]:
        """Return points as one array of ``size`` per entry."""
        for i, row in enumerate(points):
            if len(row) != size:
                self.fail(i, f"keypoints: expected {3 * size} numbers, got {3 * len(row)}")
        return np.array(points, dtype=float).reshape(-1, size, 3)

    def boxes(
        self, *, strict: bool = True, required: Bool[np.ndarray, " N"] | None = None
    ) -> Float[np.ndarray, "N 4"]:
        """Return boxes (x, y, width, height) as the file has them [pixels], NaN where there is none.

        Args:
            strict: refuse negative sizes and numbers that are not pixels of any image.
            required: which entries must have a box.
        """
        limit, least = (MAX_PIXELS, 0.0) if strict else (math.inf, -math.inf)
        found = np.full((len(self), 4), math.nan)
        for i, row in enumerate(self.rows):
            box = row.get("bbox")
            if box in (None, []) and not (required is not None and required[i]):
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
        """Return ages of `AGE_FIELDS`, and of ``age`` (years, or a class by name).

        Years and months may be decimal numbers in strings, as files have them that were tables before.
        """
        columns: dict[str, list[Any]] = {name: [] for name in AGE_FIELDS}
        for row in self.rows:
            age = _number_in(row.get("age"))
            others = {"age_class": age} if isinstance(age, str) else {"years": age}
            for name, found in columns.items():
                value = others.get(name) if row.get(name) in (None, "") else row[name]
                found.append(_number_in(value) if name in ("age_months", "years") else value)
        try:
            return parse_ages(**columns, shape=(len(self),))
        except AgeError as error:
            stated = self.rows[error.person].get(error.name) not in (None, "")
            if stated:
                self.fail(error.person, f"{error.name}: {error.problem}")
            kinds = ", ".join(kind.name for kind in AGE_CLASSES)
            expected = f"expected years from 0 to below {MAX_YEARS:g}, {kinds}"
            self.fail(error.person, f"age: {expected}, got {short(self.rows[error.person].get('age'))}")


def to_corners(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    """Convert boxes from (x, y, width, height) to corners (x0, y0, x1, y1)."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def find_order(path: Path, size: int, names: Sequence[str] | None) -> tuple[str, ...] | Order:
    """Return the names of ``size`` keypoints: those of the file if it has as many, else a known order."""
    if names is not None:
        for known in (tuple(names), (*names, *FEET6)):
            if len(known) == size:
                return known
    order = order_by_size(size)
    if order is None:
        expected = f"expected the names of the {size} keypoints"
        fail(path, f"categories: {expected}; only {sizes_without_names()} need none")
    return order


def category_keypoints(path: Path, category: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the keypoints of a category; None where it has none."""
    names = category.get("keypoints")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        fail(path, f"categories: keypoints: expected a list of names, got {short(names)}")
    return tuple(names) if names else None


def list_categories(path: Path, categories: Any) -> list[dict[str, Any]]:
    """Return the categories of a file; they may be missing."""
    if not isinstance(categories, (list, type(None))):
        fail(path, f"categories: expected a list, got {short(categories)}")
    return [one for one in categories or () if isinstance(one, dict)]


def find_people(path: Path, categories: Any) -> tuple[tuple[str, ...] | None, list[Any]]:
    """Return the names of the keypoints of people, and the ids of their categories; none if not stated.

    Several categories with the same keypoints are all people, such as children and adults. Of categories with
    different ones, people are those called "person".
    """
    listed = list_categories(path, categories)
    with_points = [one for one in listed if one.get("keypoints")]
    called = [one for one in with_points or listed if str(one.get("name")).lower() in ("person", "people")]
    names = {category_keypoints(path, one) for one in with_points}
    found = with_points if len(names) == 1 else called
    if len(found) != 1 and len(names) > 1:
        titles = shorten([str(one.get("name")) for one in with_points])
        fail(path, f"categories: expected keypoints of one category, that of people, got {titles}")
    ids = Entries(path, "categories", found).values("id", is_id, "a number or a string", lambda i: 1)
    return (category_keypoints(path, found[0]) if found else None), ids


def read_images(path: Path, document: dict[str, Any]) -> list[ImageEntry]:
    """Read the images of COCO's annotations."""
    entries = Entries(path, "images", document.get("images"))
    for row in entries.rows:  # of an absolute path, the image is found by its end
        if isinstance(row.get("file_name"), str):
            row["file_name"] = row["file_name"].lstrip("/")
    names = entries.values(
        "file_name",
        lambda name: isinstance(name, str) and is_file_name(name),
        "a path inside the folder of the images",
        None,
    )
    ids = entries.values("id", is_id, "a number or a string", None)
    twice = [number for number, count in Counter(ids).items() if count > 1]
    if twice:
        fail(path, f"images: expected different ids, got {twice[0]!r} more than once")
    found, sizes = [], {}
    for i, row in enumerate(entries.rows):
        size: list[Any] = [row.get("width"), row.get("height")]
        if size != [None, None] and not is_size(size):
            expected = f"two positive integers up to {MAX_PIXELS:.0f}"
            entries.fail(i, f"width, height: expected {expected}, got {short(size)}")
        known = None if size == [None, None] else (int(size[0]), int(size[1]))
        name = Path(names[i]).as_posix()
        if sizes.setdefault(name, known) != known:
            entries.fail(i, f"file_name: {name} has two sizes, {sizes[name]} and {known}")
        found.append(ImageEntry(name, ids[i], known))
    return found


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer of 64 bits, or a float that equals one."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**63
    return isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63


def is_size(value: Any) -> bool:
    """Return whether a value is a width and a height of an image [pixels]."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(is_integer(n) and 0 < n <= MAX_PIXELS for n in value)


def is_id(value: Any) -> bool:
    """Return whether a value can be the id of an image, an annotation or a category."""
    return isinstance(value, str) or (is_number(value) and (isinstance(value, float) or is_integer(value)))


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _number_in(value: Any) -> Any:
    """Convert a string of decimal digits to a number; return anything else unchanged."""
    return float(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value


def _is_gap(value: Any) -> bool:
    """Return whether a value is a placeholder of a missing number."""
    return value is None or (isinstance(value, float) and math.isnan(value))
