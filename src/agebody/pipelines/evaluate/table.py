"""Tables: rows of people, columns of numbers, each with its confidence interval and its sample size.

Lengths are metres and shares are fractions; printing scales them by the unit of the column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from agebody.pipelines.evaluate.bootstrap import ratio_intervals


class Column(NamedTuple):
    """A column of a table."""

    name: str
    unit: str
    """Unit of printed numbers: mm or %."""

    @property
    def scale(self) -> float:
        """Factor from the numbers of the table to that unit."""
        return {"mm": 1e3, "%": 1e2}[self.unit]


class Cell(NamedTuple):
    """A number of a table, NaN without data."""

    value: float
    low: float
    """Lower end of the interval, NaN without one."""
    high: float
    n: int
    """Number of people, pairs or detections."""


class Row(NamedTuple):
    """Numbers of one age class, or of all people."""

    name: str
    people: int
    """Number of people in the truth."""
    missed: int
    """Number of these without a prediction."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table of an evaluation."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, at: tuple[str, str]) -> Cell:
        """Return the cell of a row and a column, by name."""
        row = next(row for row in self.rows if row.name == at[0])
        return row.cells[[column.name for column in self.columns].index(at[1])]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in metres and fractions; None without a number."""
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
    """Options of the bootstrap."""

    resamples: int = 1000
    """Number of resamples; 0 for no intervals."""
    seed: int = 0


DEFAULT = Intervals()


class Ratios:
    """Collect cells that are ratios of sums over images, and compute them together."""

    def __init__(self, clusters: np.ndarray) -> None:
        """Take the index of each person's image."""
        self.count = int(clusters.max()) + 1
        self.clusters = clusters
        self._ratios: list[tuple[np.ndarray, np.ndarray, int]] = []

    def add_mean(self, values: np.ndarray, counted: np.ndarray) -> None:
        """Add a mean over the counted people."""
        above = np.bincount(self.clusters, np.where(counted, values, 0), self.count)
        self.add(above, self.per_cluster(counted), int(counted.sum()))

    def add(self, above: np.ndarray, below: np.ndarray, n: int) -> None:
        """Add a ratio of sums, given per image."""
        self._ratios.append((above, below, n))

    def per_cluster(self, members: np.ndarray) -> np.ndarray:
        """Return the number of these people per image."""
        return np.bincount(self.clusters, members, self.count)

    def cells(self, intervals: Intervals) -> list[Cell]:
        """Return the cells in the order in which they were added."""
        tops, bottoms, numbers = zip(*self._ratios, strict=True)
        above, below = np.stack(tops, 1), np.stack(bottoms, 1)
        low, high = ratio_intervals(above, below, resamples=intervals.resamples, seed=intervals.seed)
        sums = zip(above.sum(0), below.sum(0), strict=True)
        values = [float(a / b) if b > 0 else math.nan for a, b in sums]
        return [
            Cell(value, float(start), float(end), n)
            for value, start, end, n in zip(values, low, high, numbers, strict=True)
        ]


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
