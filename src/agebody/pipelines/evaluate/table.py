"""What a table is: rows of people, columns of numbers, each with its interval and how many it is of.

Lengths are metres and shares are of one; whoever prints a table scales them by its column's unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from agebody.pipelines.evaluate.bootstrap import ratio_intervals


class Column(NamedTuple):
    """A number of a table."""

    name: str
    unit: str
    """What it is printed in: mm or %."""

    @property
    def scale(self) -> float:
        """From the table's numbers to that unit."""
        return {"mm": 1e3, "%": 1e2}[self.unit]


class Cell(NamedTuple):
    """A number, NaN where there is nobody to compute it of."""

    value: float
    low: float
    """Lower end of its interval, NaN without one."""
    high: float
    n: int
    """How many people, pairs or detections it is of."""


class Row(NamedTuple):
    """One age class, or all."""

    name: str
    people: int
    """In the truth."""
    missed: int
    """Of those, without a prediction."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """What came out."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, at: tuple[str, str]) -> Cell:
        """The cell of a row and a column, by name."""
        row = next(row for row in self.rows if row.name == at[0])
        return row.cells[[column.name for column in self.columns].index(at[1])]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in metres and shares of one; None where there is no number."""
        units = {"mm": "m", "%": "share"}
        rows = []
        for row in self.rows:
            cells = {
                column.name: {
                    "value": _plain(cell.value),
                    "interval": None if math.isnan(cell.low) else [cell.low, cell.high],
                    "n": cell.n,
                }
                for column, cell in zip(self.columns, row.cells, strict=True)
            }
            rows.append({"name": row.name, "people": row.people, "missed": row.missed, "cells": cells})
        return {
            "table": self.name,
            "columns": [{"name": column.name, "unit": units[column.unit]} for column in self.columns],
            "rows": rows,
            "notes": list(self.notes),
        }


class Intervals(NamedTuple):
    """How confidence intervals are made."""

    resamples: int = 1000
    """0 for none."""
    seed: int = 0


DEFAULT = Intervals()


class Ratios:
    """Cells that are ratios of sums over images: collected first, computed together."""

    def __init__(self, clusters: np.ndarray) -> None:
        """Takes the index of each person's image."""
        self.count = int(clusters.max()) + 1
        self.clusters = clusters
        self._above: list[np.ndarray] = []
        self._below: list[np.ndarray] = []
        self._n: list[int] = []

    def add_mean(self, values: np.ndarray, counted: np.ndarray) -> None:
        """A mean over the people who count."""
        above = np.bincount(self.clusters, np.where(counted, values, 0), self.count)
        self.add(above, self.per_cluster(counted), int(counted.sum()))

    def add(self, above: np.ndarray, below: np.ndarray, n: int) -> None:
        """A ratio of sums, given image by image."""
        self._above.append(above)
        self._below.append(below)
        self._n.append(n)

    def per_cluster(self, members: np.ndarray) -> np.ndarray:
        """How many of these people each image has."""
        return np.bincount(self.clusters, members, self.count)

    def cells(self, intervals: Intervals) -> list[Cell]:
        """In the order in which they were added."""
        above, below = np.stack(self._above, 1), np.stack(self._below, 1)
        low, high = ratio_intervals(above, below, resamples=intervals.resamples, seed=intervals.seed)
        sums = zip(above.sum(0), below.sum(0), strict=True)
        values = [float(a / b) if b > 0 else math.nan for a, b in sums]
        return [
            Cell(value, float(start), float(end), n)
            for value, start, end, n in zip(values, low, high, self._n, strict=True)
        ]


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
