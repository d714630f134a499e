"""The table of COCO's ten numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from agebody.metrics.average_precision import KeypointAP, KeypointImage, match_images, summarize
from agebody.pipelines.evaluate.bootstrap import percentiles, resample
from agebody.pipelines.evaluate.table import DEFAULT, Cell, Column, Intervals, Row, Table


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
