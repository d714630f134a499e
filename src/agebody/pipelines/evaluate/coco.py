"""Read COCO's keypoint results and annotations for COCO's evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agebody.annotations.coco import (
    Entries,
    category_keypoints,
    keypoint_names,
    list_categories,
    load_json,
)
from agebody.annotations.people import fail
from agebody.metrics.average_precision import split_images
from agebody.metrics.similarity import oks_sigmas
from agebody.pipelines.evaluate.average_precision import Detections


def read_coco(pred: str | Path, target: str | Path) -> Detections:
    """Read COCO keypoint results and the annotations that they belong to.

    As in COCO's evaluation, detections in an image without people count as wrong, those of other categories
    do not count, and the size of a detection is that of its box where the results have boxes, else that of
    the box around its keypoints.

    Raises:
        AnnotationError: a file is of another kind, a key is missing or wrong, or a result belongs to an
            unknown image.
        OSError: a file cannot be read.
    """
    pred, target = Path(pred), Path(target)
    document, listed = load_json(target), load_json(pred)
    if not isinstance(document, dict):
        fail(target, "expected COCO annotations, an object with lists of images and annotations")
    if not isinstance(listed, list):
        fail(pred, "expected COCO results, a list of detections")
    ids = np.unique(Entries(target, "images", document.get("images")).integers("id")).tolist()
    place = {number: i for i, number in enumerate(ids)}
    truth = Entries(target, "annotations", document.get("annotations"))
    truth.ids()
    truth_images = truth.image_indices(place, "the images")
    category = _only_category(truth)
    results, notes = Entries(pred, "results", listed), []
    if category is not None:
        results = results.select(results.integers("category_id", lambda i: 1) == category)
    if len(results) < len(listed):
        notes.append(f"{len(listed) - len(results)} detections of other categories do not count")
    first = [*truth.keypoints()[:1], *results.keypoints()[:1]]
    size = next((len(row) // 3 for row in first if row), 17)
    of_people = [
        one for one in list_categories(target, document.get("categories")) if one.get("id") == category
    ]
    names = keypoint_names(target, size, category_keypoints(target, of_people[0]) if of_people else None)
    try:
        spread = 2 * np.array(oks_sigmas(names))
    except ValueError as error:
        fail(target, f"categories: {error}")
    boxes = (
        results.boxes(strict=False, required=True) if results.rows and results.rows[0].get("bbox") else None
    )
    people = truth.stack_keypoints(size)
    split = split_images(
        results.stack_keypoints(size)[..., :2],
        results.numbers("score"),
        np.array(results.image_indices(place, f"the images of {target}"), dtype=np.int64),
        people[..., :2],
        truth.numbers("area", least=0),
        np.array(truth_images, dtype=np.int64),
        visible=people[..., 2] > 0,
        boxes=truth.boxes(strict=False, required=True),
        crowd=np.array([bool(row.get("iscrowd")) for row in truth.rows], dtype=bool),
        pred_areas=None if boxes is None else boxes[:, 2] * boxes[:, 3],
        images=np.arange(len(place)),
    )
    empty = sum(len(image.pred) == 0 for image in split)
    if empty:
        notes.append(f"{empty} of {len(place)} images have no detection")
    return Detections(split, spread, tuple(notes))


def _only_category(truth: Entries) -> int | None:
    """Return the category of all entries; None without entries."""
    categories = sorted(set(truth.integers("category_id", lambda i: 1).tolist()))
    if len(categories) > 1:
        fail(truth.path, f"{truth.name}: expected one category, that of people, got {categories}")
    return categories[0] if categories else None
