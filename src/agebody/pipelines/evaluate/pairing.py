"""Pair the people of two files, and group them by image and age."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from agebody.age import AGE_CLASSES, UNKNOWN
from agebody.annotations.people import fail
from agebody.metrics.matching import match_keypoints
from agebody.pipelines.evaluate.files import Bodies
from agebody.pipelines.evaluate.table import Cell, Row

LOST, NOBODY = -1, -2
"""Replace the row of a prediction: the person has none, or is ignored."""

AGE_ROWS = tuple(reversed([kind.name for kind in AGE_CLASSES]))
"""Rows of a table by age, from the youngest; a row of all follows."""


def pair(pred: Bodies, target: Bodies) -> np.ndarray:
    """Return the row of each person's prediction by id, or the same row if neither file has ids; else `LOST`.

    `NOBODY` for people who are not valid.

    Raises:
        AnnotationError: a prediction belongs to nobody, only one file has ids, or they have two types.
    """
    if pred.has("ids") != target.has("ids"):
        without, other = (pred, target) if target.has("ids") else (target, pred)
        fail(without.path, f"ids: missing; {other.path} has them")
    if not pred.has("ids"):
        if pred.count != target.count:
            fail(
                pred.path,
                f"expected {target.count} people, as in {target.path}, got {pred.count}; "
                "with ids in both files some may be missing",
            )
        return np.where(_valid(target), np.arange(target.count), NOBODY)
    _expect_known(pred, target, "ids", "is nobody")
    row = {value: i for i, value in enumerate(pred.get("ids").tolist())}
    found = np.array([row.get(value, LOST) for value in target.get("ids").tolist()], dtype=np.int64)
    return np.where(_valid(target), found, NOBODY)


def match_images(pred: Bodies, target: Bodies, rule: str = "relative-human") -> np.ndarray:
    """Return the row of each person's prediction by keypoints per image, by a rule of `MATCHING_RULES`.

    `LOST` where there is none; `NOBODY` for people who are not valid or without a visible keypoint.

    Raises:
        AnnotationError: a file lacks images or keypoints, or a prediction is in an unknown image.
    """
    why = "needed to tell people apart, as not both files have ids"
    mine, theirs = pred.get("keypoints", why), target.get("keypoints", why)
    images = pred.get("image_ids", why), target.get("image_ids", why)
    expect_same_points(pred, target, "keypoints")
    _expect_known(pred, target, "image_ids", "is no image")
    visible, valid = target.get("visible"), _valid(target)
    rows = np.where(visible.any(1), LOST, NOBODY)
    for image in np.unique(images[1]):
        found, here = (
            np.flatnonzero(images[0] == image),
            np.flatnonzero((images[1] == image) & (rows == LOST)),
        )
        if len(found) and len(here):
            matches = match_keypoints(
                tensor(mine[found]),
                tensor(theirs[here]),
                weights=torch.from_numpy(visible[here]),
                rule=rule,
                valid=torch.from_numpy(valid[here]),
            )
            rows[here[matches.target.numpy()]] = found[matches.pred.numpy()]
    return np.where(valid, rows, NOBODY)


def _valid(target: Bodies) -> np.ndarray:
    return np.ones(target.count, bool) if target.valid is None else target.valid


def expect_same_points(pred: Bodies, target: Bodies, name: str) -> None:
    """Check that both files have equally many points per person, of one layout where both state it."""
    sizes = [people.get(name).shape[1] for people in (pred, target)]
    if sizes[0] != sizes[1]:
        fail(pred.path, f"{name}: expected {sizes[1]} a person, as in {target.path}, got {sizes[0]}")
    stated = {"joints": "layout", "keypoints": "keypoint_layout"}.get(name)
    if stated is not None and pred.has(stated) and target.has(stated):
        mine, theirs = pred.get(stated), target.get(stated)
        if mine != theirs:
            fail(pred.path, f"{stated}: expected {theirs!r}, as in {target.path}, got {mine!r}")


def clusters_of(target: Bodies) -> np.ndarray:
    """Return the cluster of each person for the bootstrap: the image, or else the person."""
    if target.image_ids is None:
        return np.arange(target.count)
    return np.unique(target.image_ids, return_inverse=True)[1].reshape(-1)


def groups_of(target: Bodies, counted: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the groups of a table: names, and which of the counted people belong to them."""
    groups = [("all", counted)]
    if target.age_classes is not None:
        index = {kind.name: i for i, kind in enumerate(AGE_CLASSES)}
        groups = [(name, counted & (target.age_classes == index[name])) for name in AGE_ROWS] + groups
    return groups


def rows_of(groups: Iterable[tuple[str, np.ndarray]], lost: np.ndarray, cells: list[Cell]) -> tuple[Row, ...]:
    """Return the rows of a table from all its cells, row by row."""
    groups = list(groups)
    width = len(cells) // len(groups)
    return tuple(
        Row(name, int(who.sum()), int((who & lost).sum()), tuple(cells[width * i : width * (i + 1)]))
        for i, (name, who) in enumerate(groups)
    )


def notes_of(target: Bodies, rows: np.ndarray) -> tuple[str, ...]:
    """Return notes for readers of the table."""
    notes = []
    if (rows == LOST).any():
        notes.append(
            f"{(rows == LOST).sum()} of {target.count} people have no prediction; errors are of the others"
        )
    invalid = ~_valid(target)
    if invalid.any():
        notes.append(f"{invalid.sum()} people are not valid and do not count")
    unseen = (rows == NOBODY) & ~invalid
    if unseen.any():
        notes.append(f"{unseen.sum()} people without a visible keypoint cannot be matched and do not count")
    if target.age_classes is not None and (target.age_classes == UNKNOWN).any():
        notes.append(f"{(target.age_classes == UNKNOWN).sum()} people of unknown age count in all only")
    return tuple(notes)


def tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor in double precision."""
    return torch.from_numpy(array.astype(np.float64))


def _expect_known(pred: Bodies, target: Bodies, name: str, what: str) -> None:
    mine, theirs = pred.get(name), target.get(name)
    if (mine.dtype.kind == "U") != (theirs.dtype.kind == "U"):
        kinds = ["strings" if ids.dtype.kind == "U" else "integers" for ids in (theirs, mine)]
        fail(pred.path, f"{name}: expected {kinds[0]}, as in {target.path}, got {kinds[1]}")
    unknown: list[Any] = np.setdiff1d(mine, theirs).tolist()
    if unknown:
        more = f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else ""
        fail(pred.path, f"{name}: {unknown[0]} {what} of {target.path}{more}")
