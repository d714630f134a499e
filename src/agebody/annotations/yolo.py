"""Lines of YOLO-pose, whose meaning follows from their length and their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from agebody.annotations.formats import Format, Frame, triples
from agebody.annotations.orders import ORDERS


class _Row(NamedTuple):
    """How a line of YOLO-pose is read after its class and box: points of 2 or 3 numbers, a score, a track."""

    size: int
    dims: int
    ends: tuple[str, ...]
    """What follows the points: "score", "track"."""

    @property
    def length(self) -> int:
        """Number of numbers after the box."""
        return self.size * self.dims + len(self.ends)

    def __str__(self) -> str:
        """Return a description for messages."""
        return f"{self.size} points of {self.dims} numbers{''.join(f', a {end}' for end in self.ends)}"

    def end(self, values: Sequence[float]) -> dict[str, float]:
        """Return what follows the points of a line, by name."""
        return dict(zip(self.ends, values[5 + self.size * self.dims :], strict=False))

    def points(self, values: Sequence[float]) -> list[Sequence[float]]:
        """Return the points of a line."""
        first = range(5, 5 + self.size * self.dims, self.dims)
        return [values[i : i + self.dims] for i in first]

    def fits(self, values: Sequence[float]) -> bool:
        """Return whether the confidences, scores and tracks have valid values."""
        points = self.points(values)
        third = [point[2] for point in points] if self.dims == 3 else []
        end = self.end(values)
        score, track = end.get("score", 0.0), end.get("track", 0.0)
        flags = all(0 <= v <= 1 for v in third) or all(v in (0, 1, 2) for v in third)
        near = all(-0.5 <= share <= 1.5 for point in points for share in point[:2])  # of the image
        return flags and near and 0 <= score <= 1 and track >= 0 and track == int(track)

    def in_boxes(self, lines: Sequence[Sequence[float]]) -> float:
        """Return the share of the points that lie in the boxes of their lines, or slightly outside."""
        inside: list[bool] = []
        for values in lines:
            x, y, width, height = values[1:5]
            for px, py, *v in self.points(values):
                near = abs(px - x) <= 0.6 * width and abs(py - y) <= 0.6 * height
                inside += [near] if v != [0] else []
        return sum(inside) / max(len(inside), 1)


_IN_BOXES = 0.8
"""Least share of the points that lie in the boxes if the lines are read correctly."""
_ENDS = ((), ("track",), ("score",), ("score", "track"))
"""What may follow the points. One whole number in all lines is a track: detectors are never as sure as 1."""
_ULTRALYTICS = (17, 3)
"""Points of Ultralytics' own models, and numbers of each."""


class Unclear(ValueError):
    """The meaning of a file is ambiguous."""


def _yolo(lines: Any, size: int | None = None) -> Iterator[Frame]:
    """Read lines of class, box and points, of which there are ``size`` if lines have several meanings."""
    numbers = [values for _, values in lines if all(map(_is_finite, values))]
    lengths = {len(values) for values in numbers if len(values) > 5}
    rows = {n: _find_row([values for values in numbers if len(values) == n], size) for n in lengths}
    people = []
    for number, values in lines:
        if len(values) < 5:
            raise Unclear(f"line {number}: expected a class, a box and points, between spaces")
        row, box, entry = rows.get(len(values)), values[1:5], {"keypoints": values[5:]}
        if row is not None and all(map(_is_finite, values)):
            if values[0] < 0 or values[0] != int(values[0]):
                raise Unclear(f"line {number}: expected the whole number of a class first, got {values[0]:g}")
            points = [list(point) for point in row.points(values)]
            end = row.end(values)
            flat = [value for point in points for value in point]
            points = flat if row.dims == 3 else triples(points)
            entry = {"keypoints": points, "score": end.get("score"), "track_id": end.get("track")}
        if len(box) == 4 and all(isinstance(value, float) for value in box):
            x, y, width, height = box
            entry["bbox"] = [x - width / 2, y - height / 2, width, height]
        people.append((f"line {number}", entry))
    yield Frame(None, people)


def _find_row(lines: list[list[float]], size: int | None) -> _Row | None:
    """Return how lines of one length are read; None if no form fits."""
    count, sizes = len(lines[0]) - 5, sorted({order.size for order in ORDERS})
    every = [_Row(size, dims, ends) for size in sizes for dims in (3, 2) for ends in _ENDS]
    found = [row for row in every if row.length == count]
    found = [row for row in found if all(map(row.fits, lines))] or found[-1:]  # to be refused as it is
    found = [row for row in found if row.size == size] or found
    found = [*{row[:2]: row for row in reversed(found)}.values()][::-1]  # the first of the same points
    if len(found) > 1:
        likely = [row for row in found if row.in_boxes(lines) >= _IN_BOXES]
        found = [row for row in likely if (row.size, row.dims) == _ULTRALYTICS] or likely or found
    if len(found) > 1:
        several = " or ".join(map(str, found))
        raise Unclear(f"lines of {count + 5} numbers may have {several}; give the layout of the points")
    return found[0] if found else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


YOLO = Format("YOLO-pose", lambda lines: True, _yolo, shares=True)
"""Text files, one line per person."""
