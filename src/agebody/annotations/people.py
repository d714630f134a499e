"""People in images, as files of keypoints describe them: one type, and what all readers share."""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from agebody.age import Ages, parse_ages
from agebody.age.classes import AGE_FIELDS
from agebody.annotations.orders import FACE_AND_HANDS, WHOLE_BODY, Order, read_names
from agebody.keypoints import LAYOUTS, KeypointLayout, get_layout

LayoutChoice: TypeAlias = str | KeypointLayout | tuple[str, ...] | None
"""A layout; of several names, the one that has most of a file's points; None chooses by their names."""
MAX_PIXELS = 1e6
"""Largest size of an image and largest coordinate of a keypoint or box [pixels] that files may have."""

_PERCENT, _LARGE = 100, 3
"""Largest percentage; and how many times as large [pixels] both sides of an image are in which coordinates up
to it are more likely percent than pixels of people who are all in one corner."""
_AGE_WORDS = {"age", "ages", "birth", "birthday", "birthdate", "dob", "month", "months"}
_DETECTED = WHOLE_BODY[:2]
"""Layouts of detectors, to which other names are mapped; a "head" of the layouts of bodies is a joint."""


class AnnotationError(ValueError):
    """A file of people is wrong: the message names the file, the entry and what was expected."""


class ImageEntry(NamedTuple):
    """An image that a file of keypoints lists."""

    name: str
    """File name, relative to the folder of the images."""
    id: int | str
    size: tuple[int, int] | None
    """Width and height [pixels]; None where the file does not state them."""


@dataclass(frozen=True, eq=False)
class People:
    """People in images, one row per person."""

    path: Path
    """The file or folder they were read from."""
    layout: KeypointLayout
    images: tuple[ImageEntry, ...]
    """All images of the file, also those without people."""
    image: Int[np.ndarray, " N"]
    """Index into ``images`` per person."""
    ids: Int[np.ndarray, " N"]
    """Different for all people."""
    keypoints: Float[np.ndarray, "N K 2"]
    """[pixels], finite; zero where the weight is zero."""
    weights: Float[np.ndarray, "N K"]
    """Confidences from 0 to 1."""
    boxes: Float[np.ndarray, "N 4"]
    """Corners x0, y0, x1, y1 [pixels]; NaN where the file has no box."""
    ages: Ages
    focal: Float[np.ndarray, " N"] | None = None
    """Focal length of each person's image [pixels], NaN where unknown; None if no file states it."""
    tracks: Int[np.ndarray, " N"] | None = None
    """Number of each person in the images of a video, -1 where unknown; None if no file states it."""
    scores: Float[np.ndarray, " N"] | None = None
    """Detector's score of each person, NaN where unknown; None if no file states it."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Reasons why people of the file are missing here, and how many."""
    notes: tuple[str, ...] = ()
    """What a user of the file should know."""

    def __len__(self) -> int:
        """Return the number of people."""
        return len(self.ids)

    def image_sizes(self) -> Int[np.ndarray, "N 2"]:
        """Return width and height of each person's image [pixels].

        Raises:
            AnnotationError: the size of an image with people is unknown.
        """
        for image in (self.images[i] for i in np.unique(self.image)):
            if image.size is None:
                fail(
                    self.path, f"image {image.name}: its size is unknown; read the file with size= or images="
                )
        return np.array([self.images[i].size for i in self.image], dtype=np.int64).reshape(-1, 2)

    def select(self, rows: slice | Int[np.ndarray, " M"]) -> People:
        """Return some of the people, with all of the images."""
        parts = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, ages=self.ages.select(rows), **parts)


def make_people(
    path: Path,
    points: Float[np.ndarray, "N L 3"],
    names: Sequence[str] | Order,
    layout: LayoutChoice,
    *,
    images: Sequence[ImageEntry],
    image: Any,
    ids: Any = None,
    boxes: Float[np.ndarray, "N 4"] | None = None,
    ages: Ages | None = None,
    focal: Float[np.ndarray, " N"] | None = None,
    tracks: Int[np.ndarray, " N"] | None = None,
    scores: Float[np.ndarray, " N"] | None = None,
    left_out: Sequence[tuple[str, int]] = (),
    notes: Sequence[str] = (),
) -> People:
    """Return people whose keypoints (x, y, confidence or visibility) are mapped to a layout by their names.

    COCO's visibility is 0 (not labelled), 1 (labelled, hidden) or 2 (visible): labelled points get weight 1,
    and so do confidences above 1, which some detectors give. Those a little below 0 count as 0. Arguments
    that are None are unknown; see `map_names` for the layout.

    Raises:
        AnnotationError: the names do not fit the layout.
    """
    count = len(points)
    chosen, index, spare = map_names(path, names, layout)
    weights = np.where(index >= 0, np.clip(points[:, index, 2], 0, 1), 0)
    return People(
        path,
        chosen,
        tuple(images),
        image=np.array(image, dtype=np.int64),
        ids=np.arange(1, count + 1) if ids is None else np.array(ids, dtype=np.int64),
        keypoints=np.where((weights > 0)[..., None], points[:, index, :2], 0),
        weights=weights,
        boxes=np.full((count, 4), math.nan) if boxes is None else _with_size(boxes),
        ages=parse_ages(shape=(count,)) if ages is None else ages,
        focal=focal,
        tracks=None if tracks is None or not (tracks >= 0).any() else tracks,
        scores=None if scores is None or np.isnan(scores).all() else scores,
        left_out=tuple(left_out),
        notes=(*notes, *((f"not points of {chosen.name}, left out: {spare}",) if spare else ())),
    )


def join_people(parts: Sequence[People]) -> People:
    """Return people of one layout as those of one file, with new ids and without tracks."""
    starts = np.cumsum([0, *(len(one.images) for one in parts)])
    left_out: Counter[str] = Counter()
    for one in parts:
        left_out.update(dict(one.left_out))

    def joined(name: str) -> np.ndarray | None:
        """Return an array of all people, NaN of those whose file does not state it; None if none does."""
        values = [getattr(one, name) for one in parts]
        if all(value is None for value in values):
            return None
        filled = (
            np.full(len(one), math.nan) if value is None else value
            for one, value in zip(parts, values, strict=True)
        )
        return np.concatenate([*filled])

    names = ("keypoints", "weights", "boxes", "focal", "scores")
    return replace(
        parts[0],
        images=tuple(image for one in parts for image in one.images),
        image=np.concatenate([one.image + start for one, start in zip(parts, starts, strict=False)]),
        ids=np.arange(1, sum(map(len, parts)) + 1),
        ages=Ages(*(np.concatenate(column) for column in zip(*(one.ages for one in parts), strict=True))),
        tracks=None,
        left_out=tuple(left_out.items()),
        notes=tuple(dict.fromkeys(note for one in parts for note in one.notes)),
        **{name: joined(name) for name in names},
    )


def _with_size(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    """Return boxes, NaN for those of no size, which stand for unknown ones."""
    return np.where((boxes[:, 2:] > boxes[:, :2]).all(1, keepdims=True), boxes, math.nan)


def expect_pixels(found: People) -> People:
    """Return people whose keypoints and boxes are pixels, with a note where they may be percent.

    Raises:
        AnnotationError: all coordinates lie between 0 and 1, or most boxes are far from their keypoints.
    """
    boxed, seen = np.isfinite(found.boxes).all(1), found.weights > 0
    given = {"keypoints": found.keypoints[seen], "boxes": found.boxes[boxed]}
    for name, values in given.items():
        if len(values) and values.min() >= 0 and values.max() <= 1:
            what = "all coordinates lie between 0 and 1, as shares of the image"
            fail(found.path, f"{name}: {what}; expected pixels: x times its width, y times its height")
    low, high = found.boxes[:, None, :2], found.boxes[:, None, 2:]
    near = (found.keypoints >= 2 * low - high) & (found.keypoints <= 2 * high - low)  # a box beside it, too
    both = boxed & seen.any(1)
    apart = both & ~(near.all(-1) & seen).any(1)
    if 2 * apart.sum() > both.sum():
        what = f"{apart.sum()} of {both.sum()} are far from all keypoints of their people"
        fail(found.path, f"boxes: {what}; expected both in pixels of the image")
    values = np.concatenate((found.keypoints[seen].ravel(), found.boxes[boxed].ravel()))
    sides = [side for image in found.images for side in image.size or (0, 0)]
    if is_percent(values, sides):
        whose = f"all coordinates lie between 0 and 100, in images of {min(sides)} pixels or more"
        return replace(found, notes=(*found.notes, f"{whose}: are they percent?"))
    return found


def is_percent(values: Float[np.ndarray, " N"], sides: Sequence[int]) -> bool:
    """Return whether coordinates are more likely percent of images with these sides than pixels."""
    few = bool(len(values) and values.min() >= 0 and values.max() <= _PERCENT)
    return few and min(sides) >= _LARGE * _PERCENT


def fail(path: Path, message: str) -> NoReturn:
    """Raise an `AnnotationError` that names the file."""
    raise AnnotationError(f"{path}: {message}")


def unread_ages(names: Iterable[str]) -> list[str]:
    """Return a note on fields that may be ages and are not read; empty if there are none."""
    spoken = {name: {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)} for name in names}
    unread = sorted({*spoken} - {*AGE_FIELDS, "age"})
    found = [name for name in unread if spoken[name] & _AGE_WORDS]
    return [f"not read as ages: {shorten(found)}; expected {', '.join(AGE_FIELDS)}"] if found else []


def is_file_name(name: str) -> bool:
    """Return whether a name is a relative path that does not lead out of its folder."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False
    parts = Path(name).parts
    legal = "\0" not in name and length < 4096 and all(len(part.encode()) < 256 for part in parts)
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts and legal


def map_names(
    path: Path, names: Sequence[str] | Order, layout: LayoutChoice
) -> tuple[KeypointLayout, Int[np.ndarray, " K"], str]:
    """Find the points of a layout among the keypoints of a file, by their names; see `read_names`.

    If ``layout`` is None, it is the layout of just these names, else COCO's or OpenPose's, whichever has more
    of them.

    Returns:
        The layout, the index of each of its points in the file (-1 for none), and the names of the file that
        are not in the layout.

    Raises:
        AnnotationError: the layout has fewer than four of the names, or a name occurs twice.
    """
    known = isinstance(names, Order)
    said, plain = (names.said, names.names) if known else (names, read_names(names))
    twice = {name for name in plain if name and plain.count(name) > 1}
    if twice:
        fail(path, f"keypoints: expected different names, got {', '.join(sorted(twice))} more than once")
    if layout is None:
        layout = _DETECTED
    if isinstance(layout, tuple):
        known_ones = [found for name, found in LAYOUTS.items() if name in layout or name not in WHOLE_BODY]
        same = [found for found in known_ones if set(found.names) == set(plain)]
        likely = max((LAYOUTS[name] for name in layout), key=lambda one: len(set(one.names) & set(plain)))
        chosen = same[0] if same else likely
    else:
        chosen = get_layout(layout)
    index = np.array([plain.index(name) if name in plain else -1 for name in chosen.names])
    if (index >= 0).sum() < 4:
        fail(path, f"keypoints: expected names of {chosen.name}, got {shorten(said)}")
    left = [(name, its) for name, its in zip(said, plain, strict=True) if its not in chosen.names]
    spare = [name for name, its in left if its not in FACE_AND_HANDS]
    others = len(left) - len(spare)
    if others:
        spare.append(f"{others} points of the face and the hands")
    return chosen, index, shorten(spare) if spare else ""


def shorten(names: Sequence[str], most: int = 8) -> str:
    """Return names as messages list them."""
    more = len(names) - most
    return ", ".join((*names[:most], *((f"{more} more",) if more > 0 else ()))) or "none"


def short(value: Any) -> str:
    """Return a value as error messages show it."""
    return "nothing" if value is None else reprlib.repr(value)
