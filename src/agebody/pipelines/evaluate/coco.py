"""COCO's evaluation of keypoints: its files, and the table of its ten numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from agebody.age import is_number
from agebody.annotations.coco import (
    Entries,
    category_keypoints,
    find_order,
    list_categories,
    load_json,
    read_run_lengths,
)
from agebody.annotations.orders import Order
from agebody.annotations.people import fail, short
from agebody.keypoints import LAYOUTS
from agebody.metrics.average_precision import KeypointAP, KeypointImage, match_images, split_images, summarize
from agebody.metrics.similarity import CROWDPOSE14, oks_sigmas
from agebody.pipelines.evaluate.bootstrap import percentiles, resample
from agebody.pipelines.evaluate.table import DEFAULT, Cell, Column, Intervals, Row, Table

BOX_SHARE = 0.53
"""Area of a person over that of the box, where a file has no areas (xtcocotools, for CrowdPose)."""

CROWD_INDICES = {"easy": (-math.inf, 0.2), "medium": (0.2, 0.8), "hard": (0.8, math.inf)}
"""Ranges of the crowd index, from and below (CrowdPose's code; its paper has 0.1 in place of 0.2)."""

_BY_PLACE = {17: LAYOUTS["coco17"].names, 14: CROWDPOSE14}
"""Keypoints whose standard deviations go by their place, as in pycocotools and xtcocotools."""


class Detections(NamedTuple):
    """Detections and people, from which the AP of keypoints is computed."""

    categories: list[list[KeypointImage]]
    """The images, once for each category of objects; all numbers are means over the categories."""
    spread: Float[np.ndarray, " K"]
    """Twice the standard deviations of the keypoints."""
    notes: tuple[str, ...] = ()
    groups: Mapping[str, Bool[np.ndarray, " I"]] = {}
    """Images that have an AP of their own, by its name."""


def coco_table(detections: Detections, *, intervals: Intervals = DEFAULT) -> Table:
    """Return AP and AR of keypoints, equal to those of COCO's own evaluation; the bootstrap draws images."""
    pooled = [match_images(images, spread=detections.spread) for images in detections.categories]
    people = {name: np.sum([each[name].people for each in pooled], axis=0) for name in pooled[0]}
    everything = np.ones(len(detections.categories[0]), np.int64)
    columns = {name: (everything, name.partition("_")[2] or "all") for name in KeypointAP._fields}
    columns |= {name: (chosen.astype(np.int64), "all") for name, chosen in detections.groups.items()}

    def numbers(counts: Int[np.ndarray, " I"]) -> Float[np.ndarray, " S"]:
        kinds = [counts, *(counts * chosen for chosen in detections.groups.values())]
        found = np.array([[summarize(each, kind) for each in pooled] for kind in kinds])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of no category stay NaN
            found = np.nanmean(found, axis=1)
        return np.concatenate((found[0], found[1:, 0]))

    values, drawn = numbers(everything), [np.empty((0, len(columns)))]
    for counts in resample(len(everything), intervals.resamples, intervals.seed):
        drawn.append(np.array([numbers(row) for row in counts]))
    enough = np.array([(people[area] * chosen > 0).sum() > 1 for chosen, area in columns.values()])
    low, high = percentiles(np.concatenate(drawn), enough)
    cells = tuple(
        Cell(float(value), float(start), float(end), int(people[area] @ chosen))
        for value, start, end, (chosen, area) in zip(values, low, high, columns.values(), strict=True)
    )
    row = Row("all", int(people["all"].sum()), 0, cells)
    heads = tuple(Column(name.replace("_", " "), "%") for name in columns)
    return Table("COCO keypoints", heads, (row,), detections.notes)


def read_coco(pred: str | Path, target: str | Path) -> Detections:
    """Read COCO keypoint results and the annotations that they belong to.

    What pycocotools reads counts as there: each category on its own; annotations of unlisted images or
    categories not at all; those whose ``num_keypoints`` is 0 are ignored; of several with one id the last
    counts for each; one whose id is 0 is never found. The size of a detection is that of its box if the first
    result has one, else that of its segmentation, else that of the box around its keypoints.
    """
    pred, target = Path(pred), Path(target)
    document, listed = load_json(target), load_json(pred)
    if not isinstance(document, dict):
        fail(target, "expected COCO annotations, an object with lists of images and annotations")
    if not isinstance(listed, list):
        fail(pred, "expected COCO results, a list of detections")
    notes: list[str] = []
    images = Entries(target, "images", document.get("images"))
    place = _places(images)
    results = Entries(pred, "results", listed)
    where = f"the id of one of the images of {target}"
    found_in = results.values("image_id", lambda value: _is_id(value) and value in place, where, None)
    known = list_categories(target, document.get("categories"))
    truth = Entries(target, "annotations", document.get("annotations"))
    stated = Entries(target, "categories", known).values("id", _is_id, "a number or a string", None)
    used = truth.values("category_id", _is_id, "a number or a string", lambda i: 1)
    kinds = list(dict.fromkeys(stated or used or [1]))
    if document.get("categories") == []:
        notes.append("there are no categories: all count here, and nobody in pycocotools")
    truth = _annotations(truth, place, kinds, notes)
    of_truth, of_results = _categories(truth, kinds), _categories(results, kinds)
    if (of_results < 0).any():
        notes.append(f"{(of_results < 0).sum()} detections of other categories do not count")
    labelled, detected = _keypoints(truth, labelled=True), _keypoints(results, labelled=False)
    size = next((len(one) for one in (*labelled, *detected) if (one[:, 2] > 0).any()), 17)
    people, points = _stack(truth, labelled, size), _stack(results, detected, size)
    visible, scores = people[..., 2] > 0, np.array(results.values("score", _is_real, "a number", None), float)
    crowd, ignored, lost = _what_counts(truth, visible, notes)
    boxes = truth.boxes(strict=False, required=np.asarray(~visible.any(1)))
    areas = _areas(truth, boxes, notes)
    kept = of_results >= 0
    if len(truth) and not any("area" in row for row in truth.rows):
        kept &= (points[..., 2] > 0).any(1)  # xtcocotools leaves out who has no confidence anywhere
    in_truth, in_results = (
        np.array([place[value] for value in values], dtype=np.int64)
        for values in ([row["image_id"] for row in truth.rows], found_in)
    )
    sizes = _result_areas(results)
    categories = [
        split_images(
            points[mine, :, :2],
            scores[mine],
            in_results[mine],
            people[theirs, :, :2],
            areas[theirs],
            in_truth[theirs],
            visible=visible[theirs],
            boxes=boxes[theirs],
            crowd=crowd[theirs],
            ignored=ignored[theirs],
            lost=lost[theirs],
            pred_areas=None if sizes is None else sizes[mine],
            images=np.arange(len(place)),
        )
        for mine, theirs in ((kept & (of_results == kind), of_truth == kind) for kind in range(len(kinds)))
    ]
    empty = sum(not any(len(image.pred) for image in same) for same in zip(*categories, strict=True))
    if empty:
        notes.append(f"{empty} of {len(place)} images have no detection")
    spread = _spread(target, size, known, notes)
    return Detections(categories, spread, tuple(notes), _crowd_groups(images, place))


def _places(images: Entries) -> dict[Any, int]:
    """Return the place of each image's id in their order."""
    ids = set(images.values("id", _is_id, "a number or a string", None))
    if len({isinstance(value, str) for value in ids}) > 1:
        fail(images.path, "images: id: expected numbers or strings, got both")
    return {value: i for i, value in enumerate(sorted(ids))}


def _annotations(truth: Entries, place: Mapping[Any, int], kinds: list[Any], notes: list[str]) -> Entries:
    """Return the annotations of listed images and categories, one row per entry that refers to one."""
    ids = truth.values("id", _is_id, "a number or a string", None)
    within = [_image(row) in place for row in truth.rows]
    if not all(within):
        notes.append(f"{within.count(False)} annotations of images that are not listed do not count")
    kept = np.array(within, dtype=bool) & (_categories(truth, kinds) >= 0)
    last = dict(zip(ids, truth.rows, strict=True))
    if len(last) < len(ids):
        notes.append(f"{len(ids) - len(last)} annotations have the id of a later one, which counts instead")
    # pycocotools goes from image to image, and to the last annotation with each of the ids that it meets.
    order = sorted(np.flatnonzero(kept).tolist(), key=lambda i: place[truth.rows[i]["image_id"]])
    found = Entries(truth.path, truth.name, [last[ids[i]] for i in order])
    found.places = [truth.places[i] for i in order]
    listed = np.array([_image(row) in place for row in found.rows], dtype=bool)
    return found.select(listed & (_categories(found, kinds) >= 0))


def _image(row: dict[str, Any]) -> Any:
    """Return the id of an entry's image; None in place of what cannot be one."""
    value = row.get("image_id")
    return value if _is_id(value) else None


def _categories(entries: Entries, kinds: list[Any]) -> Int[np.ndarray, " N"]:
    """Return the index of each entry's category, -1 where it is null or not listed."""
    only = (lambda i: kinds[0]) if len(kinds) == 1 else None
    found = entries.values("category_id", _is_id, "a number or a string", only)
    stated = [row.get("category_id", value) for row, value in zip(entries.rows, found, strict=True)]
    return np.array([kinds.index(value) if value in kinds else -1 for value in stated], dtype=np.int64)


def _keypoints(entries: Entries, *, labelled: bool) -> list[np.ndarray]:
    """Return x, y and visibility of each entry's points; where labelled, hidden ones are at 0."""
    found = []
    for i, row in enumerate(entries.rows):
        values = row.get("keypoints")
        values = [] if values is None else values
        numbers = isinstance(values, list) and len(values) % 3 == 0 and all(map(_is_numeric, values))
        points = np.array(values if numbers else [0] * 3, dtype=float).reshape(-1, 3)
        if labelled:
            points[~(points[:, 2] > 0)] = 0
        if not numbers or not np.isfinite(points[:, :2]).all():
            entries.fail(i, f"keypoints: expected finite numbers x, y, v for each point, got {short(values)}")
        found.append(points)
    return found


def _stack(entries: Entries, rows: list[np.ndarray], size: int) -> Float[np.ndarray, "N K 3"]:
    """Return the points as one array; people without a visible point may have any number of them."""
    stacked = np.zeros((len(rows), size, 3))
    for i, points in enumerate(rows):
        if len(points) == size:
            stacked[i] = points
        elif entries.name == "results" or (points[:, 2] > 0).any():
            entries.fail(i, f"keypoints: expected {3 * size} numbers, got {points.size}")
    return stacked


def _what_counts(
    truth: Entries, visible: Bool[np.ndarray, "N K"], notes: list[str]
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Return who is a crowd, who is ignored, and who is never found."""
    flags = truth.values(
        "iscrowd", lambda flag: isinstance(flag, bool) or is_number(flag), "0 or 1", lambda i: 0
    )
    crowd = np.array([int(flag) != 0 for flag in flags], dtype=bool)
    seen = np.any(visible, axis=1)
    unseen = [row.get("num_keypoints", seen[i]) == 0 for i, row in enumerate(truth.rows)]
    ignored = np.array(unseen, dtype=bool) | np.array([bool(flag) for flag in flags], dtype=bool)
    lost = np.array([_is_zero(row["id"]) for row in truth.rows], dtype=bool)
    if (lost & ~ignored).any():
        notes.append("the annotation with the id 0 is never found, as in pycocotools; count ids from 1")
    return crowd, ignored, lost


def _areas(truth: Entries, boxes: Float[np.ndarray, "N 4"], notes: list[str]) -> Float[np.ndarray, " N"]:
    """Return the areas of people, from their boxes where the file has none."""
    without = [row.get("area") is None for row in truth.rows]
    if any(without):
        notes.append(f"{sum(without)} annotations have no area: {BOX_SHARE} of their box, as in xtcocotools")
    for i in np.flatnonzero(np.array(without, dtype=bool) & np.isnan(boxes[:, 0])):
        truth.fail(int(i), "area: missing, and bbox, too")
    found = truth.values("area", lambda value: value is None or _is_real(value), "a number", lambda i: None)
    return np.where(without, BOX_SHARE * boxes[:, 2] * boxes[:, 3], np.array(found, dtype=float))


def _result_areas(results: Entries) -> Float[np.ndarray, " N"] | None:
    """Return the sizes of detections by their boxes or segmentations; None without."""
    first = results.rows[0] if results.rows else {}
    if first.get("bbox"):
        boxes = results.boxes(strict=False, required=np.ones(len(results), dtype=bool))
        return boxes[:, 2] * boxes[:, 3]
    if "segmentation" not in first:
        return None
    areas = []
    for i, row in enumerate(results.rows):
        mask = row.get("segmentation")
        lengths = read_run_lengths(mask.get("counts")) if isinstance(mask, dict) else None
        if lengths is None:
            results.fail(i, f"segmentation: expected compressed run lengths, got {short(mask)}")
        areas.append(sum(lengths[1::2]))
    return np.array(areas, dtype=float)


def _spread(
    target: Path, size: int, known: list[dict[str, Any]], notes: list[str]
) -> Float[np.ndarray, " K"]:
    """Return twice the standard deviations of the keypoints."""
    named = [category_keypoints(target, one) for one in known if one.get("keypoints")]
    names = next((one for one in named if one is not None and len(one) == size), None)
    if size in _BY_PLACE:
        if size == 17 and names is not None and tuple(names) != _BY_PLACE[size]:
            notes.append("keypoints have COCO's standard deviations by their place, as in pycocotools")
        names = _BY_PLACE[size]
    order = find_order(target, size, names)
    try:
        return 2 * np.array(oks_sigmas(order.said if isinstance(order, Order) else order))
    except ValueError as error:
        fail(target, f"categories: {error}")


def _crowd_groups(images: Entries, place: Mapping[Any, int]) -> dict[str, Bool[np.ndarray, " I"]]:
    """Return which images are how crowded, where the file says so."""
    if not any("crowdIndex" in row for row in images.rows):
        return {}
    index = np.zeros(len(place))
    for row, value in zip(images.rows, images.values("crowdIndex", is_number, "a number", None), strict=True):
        index[place[row["id"]]] = value
    return {
        f"AP_{name}_crowd": (index >= low) & (index < high) for name, (low, high) in CROWD_INDICES.items()
    }


def _is_id(value: Any) -> bool:
    return isinstance(value, (str, bool)) or is_number(value)


def _is_real(value: Any) -> bool:
    """Return whether a value is a number, infinite or a boolean included."""
    return _is_numeric(value) and value == value


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (bool, float)) or is_number(value)


def _is_zero(value: Any) -> bool:
    try:
        return float(value) == 0
    except ValueError:
        return False
