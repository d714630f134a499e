"""The table of COCO's ten numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from agebody.metrics.average_precision import KeypointAP, KeypointImage, match_images, summarize
from agebody.pipelines.evaluate.bootstrap import percentiles, resample
from agebody.pipelines.evaluate.table import DEFAULT, Cell, Column, Intervals, Row, Table


class Detections(NamedTuple):
    """Detections and people, from which the AP of keypoints is computed."""

    images: list[KeypointImage]
    spread: Float[np.ndarray, " K"]
    """Twice the standard deviations of the keypoints."""
    notes: tuple[str, ...] = ()


def coco_table(detections: Detections, *, intervals: Intervals = DEFAULT) -> Table:
    """Return AP and AR of keypoints, equal to those of COCO's own evaluation; the bootstrap draws images."""
    pooled = match_images(detections.images, spread=detections.spread)
    values = np.array(summarize(pooled))
    drawn = [np.empty((0, len(values)))]
    for counts in resample(len(detections.images), intervals.resamples, intervals.seed):
        drawn.append(np.array([summarize(pooled, row) for row in counts]))
    people = {name: results.people for name, results in pooled.items()}
    areas = [name.partition("_")[2] or "all" for name in KeypointAP._fields]
    enough = np.array([(people[area] > 0).sum() > 1 for area in areas])
    low, high = percentiles(np.concatenate(drawn), enough)
    cells = tuple(
        Cell(float(value), float(start), float(end), int(people[area].sum()))
        for value, start, end, area in zip(values, low, high, areas, strict=True)
    )
    columns = tuple(Column(name.replace("_", " "), "%") for name in KeypointAP._fields)
    row = Row("all", int(people["all"].sum()), 0, cells)
    return Table("COCO keypoints", columns, (row,), detections.notes)
