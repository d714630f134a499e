"""Relative Human's table: order in depth, keypoints in the image, and detection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from agebody.age import AGE_CLASSES, UNKNOWN
from agebody.annotations.people import fail
from agebody.metrics.average_precision import split_images
from agebody.metrics.correctness import mpckh
from agebody.metrics.depth import MISS_PENALTY, depth_relations
from agebody.metrics.similarity import oks_sigmas
from agebody.pipelines.evaluate.coco import Detections, coco_table
from agebody.pipelines.evaluate.files import OTHER_LAYOUTS, Bodies
from agebody.pipelines.evaluate.pairing import (
    LOST,
    NOBODY,
    clusters_of,
    expect_same_points,
    groups_of,
    match_images,
    notes_of,
    pair,
    rows_of,
    tensor,
)
from agebody.pipelines.evaluate.table import DEFAULT, Column, Intervals, Ratios, Row, Table

THRESHOLD = 0.2
"""Threshold of PCDR_0.2, and of true depths that count as equal [m]."""


def relative_human_tables(
    pred: Bodies, target: Bodies, *, published: bool = False, intervals: Intervals = DEFAULT
) -> tuple[Table, Table]:
    """Return PCDR_0.2 and, with keypoints, mPCKh, by age class and for all; and a table of detection.

    The second table has precision, recall and F1, and, where the truth has areas and the predictions have
    scores, AP and AR. People are paired by ids if both files have them, else by keypoints.

    Args:
        pred: predictions.
        target: the truth.
        published: compute as the public evaluation code does. Its boxes of people include hidden keypoints,
            at (-2, -2), so that more people are missed; found people with fewer than two visible keypoints
            enter the mean of mPCKh as -1; and precision, recall and F1, rounded to two decimals, take the
            number of predictions for that of people.
        intervals: options of the bootstrap.
    """
    pred.get("depth", "needed for PCDR")
    target.get("image_ids", "needed to know who is in one image")
    by_ids = pred.has("ids") and target.has("ids")
    rule = "relative-human-published" if published else "relative-human"
    rows = pair(pred, target) if by_ids else match_images(pred, target, rule)
    groups, ratios = groups_of(target, rows != NOBODY), Ratios(clusters_of(target))
    relations = _relations(pred, target, rows)
    keypoints = _right_keypoints(pred, target, rows, published)
    for name, members in groups:
        right, pairs, missed = relations[name]
        # Without a pair there is no rate, however many were missed.
        below = pairs + MISS_PENALTY * missed if pairs.any() else pairs
        ratios.add(right, below, int(pairs.sum()))
        if keypoints is not None:
            ratios.add_mean(keypoints[0], keypoints[1] & members)
    columns = (Column("PCDR", "%"), *([] if keypoints is None else [Column("mPCKh", "%")]))
    cells = ratios.cells(intervals)
    name = "Relative Human" + published * ", as published"
    table = Table(name, columns, rows_of(groups, rows == LOST, cells), notes_of(target, rows))
    return table, _detection_table(pred, target, rows, published, intervals)


def _relations(
    pred: Bodies, target: Bodies, rows: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return right, pairs and missed of each row of the table, per image."""
    if target.has("depth_layers"):
        place = target.get("depth_layers")
        known, same_layer = place != UNKNOWN, 0.0
    else:
        place = target.get("depth", "needed for PCDR, or depth_layers")
        known, same_layer = np.ones(target.count, bool), THRESHOLD
    clusters = clusters_of(target)
    images = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])

    def padded(values: np.ndarray) -> torch.Tensor:
        """Return values of people in one row per image, filled up with zeros."""
        return pad_sequence([torch.from_numpy(values[people]) for people in images], batch_first=True)

    depth = np.zeros(target.count)
    depth[rows >= 0] = pred.get("depth")[rows[rows >= 0]]
    ages = np.full(target.count, UNKNOWN) if target.age_classes is None else target.age_classes
    points = padded(depth), padded(place.astype(np.float64))
    given: dict[str, Any] = {
        "weights": padded((rows != NOBODY) & known),
        "missed": padded(rows == LOST),
        "threshold": THRESHOLD,
        "same_layer": same_layer,
    }
    everyone = depth_relations(*points, **given)
    by_age = depth_relations(*points, age_classes=padded(ages), **given)
    found = {kind.name: _arrays(part[:, i] for part in by_age) for i, kind in enumerate(AGE_CLASSES)}
    return found | {"all": _arrays(everyone)}


def _arrays(parts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, pairs, missed = (part.numpy() for part in parts)
    return right, pairs, missed


def _right_keypoints(
    pred: Bodies, target: Bodies, rows: np.ndarray, published: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the share of right keypoints per person, and who counts; None without keypoints."""
    if not (pred.has("keypoints") and target.has("keypoints")):
        return None
    expect_same_points(pred, target, "keypoints")
    values, counted = np.zeros(target.count), np.zeros(target.count, bool)
    found = np.flatnonzero(rows >= 0)
    visible = target.get("visible")[found]
    if published:
        visible = visible & (target.get("keypoints")[found] > -1).all(-1)
    points = tensor(pred.get("keypoints")[rows[found]]), tensor(target.get("keypoints")[found])
    values[found] = mpckh(*points, weights=torch.from_numpy(visible), reduction="none")
    counted[found] = visible.sum(1) >= 2
    if published:
        values[found] = np.where(counted[found], values[found], -1)
        counted[found] = True
    return values, counted


def _detection_table(
    pred: Bodies, target: Bodies, rows: np.ndarray, published: bool, intervals: Intervals
) -> Table:
    """Return precision, recall and F1, and AP where the files allow it."""
    ratios = Ratios(clusters_of(target))
    matched, missed = ratios.per_cluster(rows >= 0), ratios.per_cluster(rows == LOST)
    by_ids = pred.has("ids") and target.has("ids")
    spare = np.empty(0, np.int64) if by_ids else np.setdiff1d(np.arange(pred.count), rows[rows >= 0])
    images = np.unique(target.get("image_ids"))
    false = np.zeros(len(matched))
    if len(spare):
        false = np.bincount(np.searchsorted(images, pred.get("image_ids")[spare]), minlength=len(matched))
    right = matched + false - missed if published else matched
    ratios.add(right, right + false, int((matched + false).sum()))
    ratios.add(right, right + missed, int((matched + missed).sum()))
    ratios.add(2 * right, 2 * right + false + missed, int((matched + false + missed).sum()))
    columns = [Column(name, "%") for name in ("precision", "recall", "F1")]
    cells = ratios.cells(intervals)
    if published:
        cells = [cell._replace(value=round(cell.value, 2)) for cell in cells]
    detections = _detections(pred, target, images)
    if isinstance(detections, str):
        notes = (f"no AP: {detections}",)
    else:
        numbers = coco_table(detections, intervals=intervals)
        columns, cells, notes = [*columns, *numbers.columns], [*cells, *numbers.rows[0].cells], numbers.notes
    row = Row("all", int((rows != NOBODY).sum()), int((rows == LOST).sum()), tuple(cells))
    return Table("Detection" + published * ", as published", tuple(columns), (row,), notes)


def _detections(pred: Bodies, target: Bodies, images: np.ndarray) -> Detections | str:
    """Return the input of AP, or the reason why there is none."""
    needed = ((pred, ("keypoints", "image_ids", "scores")), (target, ("keypoints", "areas")))
    for people, names in needed:
        for name in names:
            if not people.has(name):
                return f"{people.path.name} has no {name}"
    size = target.get("keypoints").shape[1]
    layout = target.keypoint_layout or pred.keypoint_layout or {17: "coco17", 14: "crowdpose14"}.get(size)
    if layout is None:
        return f"{target.path.name} has no keypoint_layout"
    try:
        sigmas = oks_sigmas(OTHER_LAYOUTS.get(layout, layout))
    except ValueError as error:
        return str(error)
    if len(sigmas) != size:
        fail(target.path, f"keypoints: expected the {len(sigmas)} of {layout}, got {size}")
    split = split_images(
        pred.get("keypoints"),
        pred.get("scores"),
        pred.get("image_ids"),
        target.get("keypoints"),
        target.get("areas"),
        target.get("image_ids"),
        visible=target.visible,
        boxes=target.boxes,
        crowd=target.crowd,
        ignored=_ignored(target),
        images=images,
    )
    return Detections([split], 2 * np.array(sigmas))


def _ignored(target: Bodies) -> np.ndarray | None:
    """Return who is ignored; None for the default rule."""
    if target.valid is None:
        return None
    crowd = np.zeros(target.count, bool) if target.crowd is None else target.crowd
    return ~target.valid | crowd | ~target.get("visible").any(1)
