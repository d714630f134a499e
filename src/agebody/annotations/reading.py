"""Read people from a file or folder of keypoints, whichever kind it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from agebody.annotations.coco import (
    Entries,
    find_order,
    find_people,
    is_id,
    is_size,
    load_json,
    read_images,
    to_corners,
)
from agebody.annotations.duplicates import leave_out, leave_out_duplicates
from agebody.annotations.formats import READ, Format, Frame, find_format, is_annotations
from agebody.annotations.orders import Order, order_by_title
from agebody.annotations.people import (
    MAX_PIXELS,
    AnnotationError,
    ImageEntry,
    LayoutChoice,
    People,
    expect_pixels,
    fail,
    is_file_name,
    make_people,
    short,
    shorten,
    unread_ages,
)
from agebody.annotations.photographs import Photographs, is_content, photograph_size
from agebody.annotations.yolo import YOLO, Unclear
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout, get_layout

_SUFFIX, _PIFPAF, _MMPOSE = "_keypoints", ".predictions", "results_"
_UNLABELLED = "no labelled keypoint"
_MOST_SHARE = 4.0
"""Shares of an image may lie outside of it, and nobody's points are all within this many pixels."""
_UNMISTAKABLE = (23, 26, 33, 133, 136, 137, 308)
"""Numbers of keypoints that only one known order has, besides COCO's 17."""


def read_people(
    path: str | Path,
    *,
    layout: str | KeypointLayout | tuple[str, ...] | None = None,
    images: str | Path | None = None,
    size: tuple[int, int] | None = None,
    annotations: str | Path | None = None,
    boxes_suffice: bool = False,
) -> People:
    """Read people in images with their keypoints.

    Reads the files of COCO and its relatives (annotations and results), OpenPose, AlphaPose, MMPose,
    Ultralytics, MediaPipe and others, and folders with one file per image; see the table of formats in
    `Training labels for children`. Coordinates are kept as the file has them, with (0, 0) at the corner of
    the image. Ages are read from ``age_offset``, ``age_months``, ``years``, ``age_class`` and ``age`` (years,
    or the name of a class); see `agebody.age.parse_ages`. Of detections of one person in one image the best
    is kept.

    Args:
        path: the file or folder.
        layout: of the keypoints; of several names, the one that has most of them. If None, "coco17" or
            "openpose25" by their names or their number, without face and hands: "coco133" and "openpose137"
            have these.
        images: the folder of the images, or one image. Images are found there by the names or numbers that
            the file has for them; sizes that the file does not state are read there. If it is not given, nor
            a size, the images beside the file are used.
        size: width and height of images whose size is stated nowhere else [pixels].
        annotations: COCO annotations with the images that results belong to.
        boxes_suffice: also read people who have a box and no keypoints; these have weight 0.

    Raises:
        AnnotationError: the file is of another kind, or something in it is missing or wrong, or an image is
            not found, or not the only one of its name.
        ValueError: the size is none.
        OSError: a file cannot be read.
    """
    path = Path(path)
    if size is not None:
        if not is_size(size):
            raise ValueError(f"size: expected width and height, two positive integers, got {short(size)}")
        size = (int(size[0]), int(size[1]))
    documents = _load(path)
    photographs = None if images is None else Photographs(Path(images))
    beside = photographs
    if photographs is None and size is None:
        beside = Photographs(path if path.is_dir() else path.parent, deep=False)
    boxes_suffice = read_flag("boxes_suffice", boxes_suffice)
    first = next(iter(documents.values()))
    if len(documents) == 1 and is_annotations(first):
        if annotations is not None:
            fail(path, "expected results, which belong to the annotations, got annotations")
        found, shares = _read_annotations(path, first, layout, boxes_suffice), False
    else:
        known = beside if annotations is None else _Annotated(Path(annotations))
        given = images is not None or annotations is not None
        found, shares = _read_detections(path, documents, layout, known, given, boxes_suffice)
    if photographs is not None:
        found = _find_images(found, photographs)
    found = _with_sizes(found, beside, size)
    if shares:
        scale = found.image_sizes()[:, None]
        found = replace(
            found, keypoints=found.keypoints * scale, boxes=found.boxes * np.tile(scale[:, 0], (1, 2))
        )
    found = expect_pixels(found)
    if boxes_suffice:
        sizes = found.image_sizes()
        beyond = (found.boxes[:, 2:] <= 0) | (found.boxes[:, :2] >= sizes)
        alone = ~(found.weights > 0).any(1)
        found = leave_out(found, np.asarray(beyond.any(1) & alone), "a box outside of the image")
    return found


def _load(path: Path) -> dict[Path, Any]:
    """Return the documents of a file, or of all files of a folder with one per image."""
    if not path.is_dir():
        return {path: _load_file(path)}
    patterns = (f"*{_SUFFIX}.json", "*.json", "*.txt")
    files = next(
        (files for pattern in patterns if (files := sorted(filter(is_content, path.glob(pattern))))), []
    )
    if not files:
        expected = f"one file per image, *{_SUFFIX}.json (OpenPose), *.json or *.txt"
        fail(path, f"expected {expected}, in the folder; there is none")
    return {file: _load_file(file) for file in files}


def _load_file(path: Path) -> Any:
    if path.suffix.lower() != ".txt":
        return load_json(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        fail(path, "not a text file")
    return [(number, _numbers(line)) for number, line in enumerate(lines, start=1) if line.strip()]


def _numbers(line: str) -> list[Any]:
    """Return the words of a line as numbers; other words stay, and are refused as entries are read."""
    found: list[Any] = []
    for word in line.split():
        try:
            found.append(float(word))
        except ValueError:
            found.append(word)
    return found


# --- annotations


def _read_annotations(path: Path, document: dict[str, Any], layout: LayoutChoice, boxes: bool) -> People:
    """Read a document with ``images``, ``annotations`` and, optionally, ``categories``.

    Crowds, annotations without labelled keypoints and those of other categories are left out, and counted.
    """
    images = read_images(path, document)
    entries = Entries(path, "annotations", document.get("annotations"))
    names, categories = find_people(path, document.get("categories"))
    entries.ids()
    left_out: Counter[str] = Counter()

    def keep(kept: Sequence[bool] | Bool[np.ndarray, " N"], reason: str) -> None:
        nonlocal entries
        left_out[reason] += len(entries) - int(np.sum(kept))
        entries = entries.select(kept)

    if categories:
        ids = entries.values("category_id", is_id, "a number or a string", lambda i: categories[0])
        keep([one in categories for one in ids], "of another category")
    keep([not row.get("iscrowd") for row in entries.rows], "crowd")
    points, labelled = _points(entries, boxes)
    keep(labelled, _UNLABELLED)
    place = {image.id: i for i, image in enumerate(images)}
    image = entries.image_indices(place, "the images")
    points = [*compress(points, labelled)]
    return _make(entries, points, names, layout, images, image, left_out, guess=True)


# --- detections


class _Annotated:
    """The images of COCO's annotations, found by their ids or names."""

    def __init__(self, path: Path) -> None:
        document = load_json(path)
        if not is_annotations(document):
            fail(path, "expected COCO annotations, an object with lists of images and annotations")
        self.entries = {image.id: image for image in read_images(path, document)}
        self.names = tuple(image.name for image in self.entries.values())
        self.order, self.categories = find_people(path, document.get("categories"))
        self.path = path

    def matches(self, key: Any) -> list[ImageEntry]:
        """Return the images that an id, or a name with or without its folder, fits."""
        if key in self.entries:
            return [self.entries[key]]
        exact = [image for image in self.entries.values() if image.name == key]
        return exact or [image for image in self.entries.values() if Path(image.name).name == key]

    def describe(self) -> str:
        """Return how many images there are, as error messages say it."""
        return f"{len(self.names)} images in {self.path}"


def _read_detections(
    path: Path,
    documents: dict[Path, Any],
    layout: LayoutChoice,
    known: Photographs | _Annotated | None,
    given: bool,
    boxes: bool,
) -> tuple[People, bool]:
    """Read what detectors write; also return whether coordinates are shares of the images."""
    kind, frames = _frames(path, documents, boxes, layout)
    images: dict[str, ImageEntry] = {}
    numbers: dict[str, int] = {}
    rows: list[Any] = []
    origins: list[tuple[Path, str]] = []
    place: list[int] = []
    canvases: list[Any] = []
    names = next((frame.names for _, frame in frames if frame.names is not None), None)
    counts = Counter(file for file, _ in frames)
    done: Counter[Path] = Counter()
    for file, frame in frames:
        if frame.names is not None and tuple(frame.names) != tuple(names or ()):
            fail(file, "keypoints: expected the same names for all images")
        entry = _find_image(file, frame, done[file], counts[file], known, given)
        pifpaf = kind.name == "OpenPifPaf" and not path.is_dir() and not file.stem.endswith(_PIFPAF)
        if pifpaf and entry.id == entry.name:  # no image is known by the name of the file
            fail(file, "image_id: missing; OpenPifPaf's people of an image are in NAME.predictions.json")
        done[file] += 1
        images.setdefault(entry.name, entry)
        for where, row in frame.people:
            rows.append(row)
            origins.append((file, where))
            place.append(numbers.setdefault(entry.name, len(numbers)))
            canvases.append(frame.size)
        numbers.setdefault(entry.name, len(numbers))
    is_results = kind.name == "COCO's results" or kind.boxes_only
    entries = Entries(path, "results", rows, None if is_results else origins)
    left_out: Counter[str] = Counter()
    categories = entries.values("category_id", is_id, "a number or a string", lambda i: 1)
    of_people = (known.categories if isinstance(known, _Annotated) else []) or [1]
    kept = [category in of_people for category in categories]
    if any(kept):
        left_out["of another category"] = kept.count(False)
        entries = entries.select(kept)
    points, labelled = _points(entries, boxes)
    left_out[_UNLABELLED] = labelled.count(False)
    entries, points = entries.select(labelled), [*compress(points, labelled)]
    place, canvases = ([part[i] for i in entries.places] for part in (place, canvases))
    order = order_by_title(kind.order) if kind.order else names
    if order is None and isinstance(known, _Annotated):
        order = known.order
    listed = list(images.values())
    found = _make(entries, points, order, layout, listed, place, left_out, guess=is_results)
    found, shares = _in_shares(found, kind, canvases)
    return leave_out_duplicates(found), shares


def _points(entries: Entries, boxes: bool) -> tuple[list[Float[np.ndarray, "_ 3"]], list[bool]]:
    """Return the points of each entry, and whether any of them is labelled, or a box suffices."""
    if len(entries) and not boxes and not any(row.get("keypoints") for row in entries.rows):
        only = ", boxes only" if any(row.get("bbox") for row in entries.rows) else ""
        fail(entries.path, f"no keypoints{only}; agebody reads the keypoints of people")
    points = entries.points(MAX_PIXELS)
    boxed = [boxes and bool((row[2:] > 0).all()) for row in entries.boxes()]  # not of NaN or no size
    return points, [box or bool(row[:, 2].any()) for row, box in zip(points, boxed, strict=True)]


def _frames(
    path: Path, documents: dict[Path, Any], boxes: bool, layout: LayoutChoice
) -> tuple[Format, list[tuple[Path, Frame]]]:
    """Return the format of all files, and the images in them."""
    chosen: Format | None = None
    frames: list[tuple[Path, Frame]] = []
    for file, document in documents.items():
        if document == [] or document == {}:  # of an image without people, or results without any
            frames += [(file, Frame(None, []))] if path.is_dir() else []
            continue
        kind = YOLO if file.suffix.lower() == ".txt" else find_format(document)
        if kind is None:
            fail(file, f"not a file of keypoints that agebody knows; it reads {READ}")
        if kind.frames is None or (kind.boxes_only and not boxes):
            fail(file, f"{kind.name}; agebody reads the keypoints of {READ}")
        if chosen is not None and kind is not chosen:
            fail(file, f"{kind.name}; the other files of the folder are of {chosen.name}")
        chosen = kind
        known = layout if isinstance(layout, (str, KeypointLayout)) and kind is YOLO else None
        try:
            its = kind.frames(document) if known is None else kind.frames(document, len(get_layout(known)))
            frames += [(file, frame) for frame in its]
        except Unclear as error:
            fail(file, str(error))
    return chosen or Format("COCO's results", lambda document: True, None), frames


def _find_image(
    file: Path, frame: Frame, number: int, count: int, known: Photographs | _Annotated | None, given: bool
) -> ImageEntry:
    """Return the image of a frame, one of ``count`` in a file; ``given``: the user named the images."""
    key, stem = frame.image, file.stem.removesuffix(_SUFFIX).removesuffix(_PIFPAF)
    where = frame.people[0][0] + ": " if frame.people and frame.people[0][0] else ""
    size = None if frame.size is None else _canvas(file, frame.size)
    if key is False:
        fail(file, f"{where}image_id: missing")
    if key is None and count > 1:
        if known is None or not given:
            return ImageEntry(f"{stem}_{number:06d}", number, size)
        if not isinstance(known, Photographs) or len(known.names) != count:
            fail(file, f"expected one image for each of its {count} frames, got {known.describe()}")
        return ImageEntry(known.names[number], number, None)
    if key is None and isinstance(known, Photographs) and known.one:
        return ImageEntry(known.names[0], stem, None)
    if key is not None and not is_id(key):
        fail(file, f"{where}image_id: expected a name or a number, got {short(key)}")
    found = [] if known is None else known.matches(stem if key is None else key)
    if key is None and known is not None and not found:
        found = known.matches(stem.removeprefix(_MMPOSE))
    if len(found) > 1:
        names = [one if isinstance(one, str) else one.name for one in found]
        fail(file, f"{where}{short(stem if key is None else key)} fits several images: {shorten(names)}")
    if found:
        one = found[0]
        return one if isinstance(one, ImageEntry) else ImageEntry(one, stem if key is None else key, None)
    if key is None and not given:
        return ImageEntry(stem, stem, size)
    if key is None:
        fail(file, f"no image {stem}.* among the {known.describe() if known else 'images'}")
    unknown = known is not None and (given or size is None)
    if unknown or not isinstance(key, str) or not is_file_name(key):
        there = known.describe() if known is not None and known.names else "no images; give their folder"
        fail(file, f"{where}image_id: expected one of the images, got {short(key)}; there are {there}")
    return ImageEntry(Path(key).as_posix(), key, size)


def _canvas(file: Path, size: Any) -> tuple[int, int]:
    if not is_size(size):
        fail(file, f"canvas_width, canvas_height: expected two positive integers, got {short(size)}")
    return int(size[0]), int(size[1])


# --- both


def _make(
    entries: Entries,
    points: list[Float[np.ndarray, "_ 3"]],
    names: Sequence[str] | Order | None,
    layout: LayoutChoice,
    images: Sequence[ImageEntry],
    image: Sequence[int],
    left_out: Counter[str],
    *,
    guess: bool,
) -> People:
    """Return people; ``guess``: whether the format does not say what the keypoints are."""
    stated = names.size if isinstance(names, Order) else 17 if names is None else len(names)
    size = next((len(row) for row in points if len(row)), stated)
    points = [row if len(row) else np.zeros((size, 3)) for row in points]
    order = names if isinstance(names, Order) else find_order(entries.path, size, names)
    if isinstance(order, Order) and points and order.size != size:
        entries.fail(0, f"keypoints: expected the {order.size} points of {order.title}, got {size}")
    stacked = entries.stack(points, size)
    more = (row["attributes"] for row in entries.rows if isinstance(row.get("attributes"), dict))
    notes = unread_ages({*set().union(*entries.rows), *(f"attributes.{key}" for key in set().union(*more))})
    third = stacked[..., 2]
    if (third == 3).any() and np.isin(third, (0, 1, 2, 3)).all():
        stacked[third == 3] = 0  # AI Challenger: 1 visible, 2 hidden, 3 not there
    if isinstance(order, Order) and guess and size not in (17, *_UNMISTAKABLE):
        notes.append(f"{size} keypoints without names are taken for those of {order.title}")
    return make_people(
        entries.path,
        stacked,
        order,
        layout,
        images=images,
        image=image,
        ids=entries.ids(),
        boxes=to_corners(entries.boxes()),
        ages=entries.ages(),
        tracks=entries.tracks(),
        scores=entries.scores(),
        left_out=sorted((+left_out).items()),
        notes=notes,
    )


def _in_shares(found: People, kind: Format, canvases: Sequence[Any]) -> tuple[People, bool]:
    """Return people, and whether their coordinates are shares of the images."""
    seen = found.keypoints[found.weights > 0]
    seen = seen if len(seen) else found.boxes[np.isfinite(found.boxes).all(1)]
    most = float(np.abs(seen).max()) if len(seen) else math.inf
    if not kind.shares:
        return found, False
    if most <= _MOST_SHARE:
        if kind.name.startswith("OpenPose") and seen.min() < 0:
            fail(found.path, "keypoints: coordinates from -1 to 1; run OpenPose with --keypoint_scale 0 or 3")
        return found, True
    if kind is YOLO and len(seen):
        fail(found.path, f"keypoints: expected shares of the image, got {most:g}")
    if any(canvas is not None for canvas in canvases):  # pixels of the image as the detector resized it
        sizes = np.array([_canvas(found.path, canvas or (0, 0)) for canvas in canvases], dtype=float)
        return replace(found, keypoints=found.keypoints / sizes[:, None]), True
    return found, False


def _find_images(found: People, photographs: Photographs) -> People:
    """Return people with the names that their images have in a folder."""
    used = set(found.image.tolist())
    images, missing = list(found.images), []
    sizes: dict[str, tuple[int, int] | None] = {}
    for i, image in enumerate(images):
        matches = photographs.matches(image.name)
        if i in used and len(matches) > 1:
            fail(found.path, f"image {image.name} fits several images: {shorten(matches)}")
        if i in used and not matches:
            missing.append(image.name)
        if len(matches) == 1:
            images[i] = image._replace(name=matches[0])
            if sizes.setdefault(matches[0], image.size) != image.size:
                fail(found.path, f"image {matches[0]} has two sizes, {sizes[matches[0]]} and {image.size}")
    if missing:
        there = f"{photographs.folder} has {photographs.describe()}"
        fail(found.path, f"images: {len(missing)} not found ({shorten(missing, 3)}); {there}")
    return replace(found, images=tuple(images))


def _with_sizes(found: People, photographs: Photographs | None, size: tuple[int, int] | None) -> People:
    """Add the sizes of images that the file does not state; leave out people in unreadable images."""
    entries = [
        image if image.size is not None else _with_size(image, photographs, size, found.path)
        for image in found.images
    ]
    unreadable = np.isin(found.image, [i for i, image in enumerate(entries) if image.size is None])
    return leave_out(replace(found, images=tuple(entries)), unreadable, "in an image that cannot be read")


def _with_size(
    entry: ImageEntry, photographs: Photographs | None, size: tuple[int, int] | None, path: Path
) -> ImageEntry:
    """Return the entry with its size, or without one if the image cannot be read."""
    file = None if photographs is None else photographs.folder / entry.name
    if file is not None and file.is_file():
        try:
            return entry._replace(size=photograph_size(file))
        except AnnotationError:
            return entry
    if size is None:
        missing = "give the images, or a size for all"
        fail(path, f"image {entry.name}: the file does not state its size; {missing}")
    return entry._replace(size=size)
