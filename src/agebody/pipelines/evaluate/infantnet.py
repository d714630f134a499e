"""InfantNet's table: errors of joints and vertices, by age class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agebody.annotations.people import fail
from agebody.keypoints import LAYOUTS
from agebody.metrics.alignment import root_of, root_points
from agebody.metrics.pose import mpjpe, pa_mpjpe, pve
from agebody.metrics.record import Errors
from agebody.pipelines.evaluate.files import Bodies
from agebody.pipelines.evaluate.pairing import (
    LOST,
    NOBODY,
    clusters_of,
    expect_same_points,
    groups_of,
    notes_of,
    pair,
    rows_of,
    tensor,
)
from agebody.pipelines.evaluate.table import DEFAULT, Column, Intervals, Ratios, Table

_AT_ONCE = 256
"""Bodies whose errors are computed together, which bounds the memory that meshes take."""


def infantnet_table(
    pred: Bodies,
    target: Bodies,
    *,
    layout: str | None = None,
    root: Sequence[str] | None = None,
    intervals: Intervals = DEFAULT,
) -> Table:
    """Return MPJPE and PA-MPJPE, and, if both files have vertices, PVE and PA-PVE, by age class and for all.

    Bodies are told apart by their ids, or by their rows where neither file has ids. The layout is by default
    that of a file, or the only layout with as many points; the root is as of `agebody.metrics.mpjpe`, by
    default the layout's own.
    """
    for people in (pred, target):
        people.get("joints", "needed for MPJPE, and for the root of PVE")
    expect_same_points(pred, target, "joints")
    surface = pred.has("vertices") and target.has("vertices")
    if surface:
        expect_same_points(pred, target, "vertices")
    known = _layout(pred, target, layout)
    if root is not None:
        try:
            root_points(known, root, len(LAYOUTS[known]))
        except ValueError as error:
            fail(target.path, str(error))
    rows = pair(pred, target)
    names = ["MPJPE", "PA-MPJPE", *(["PVE", "PA-PVE"] if surface else [])]
    errors, counted = np.zeros((len(names), target.count)), np.zeros((len(names), target.count), bool)
    found = np.flatnonzero(rows >= 0)
    for start in range(0, len(found), _AT_ONCE):
        people = found[start : start + _AT_ONCE]
        for i, (values, who) in enumerate(_errors(pred, target, rows[people], people, known, root, surface)):
            errors[i, people] = values.numpy()
            counted[i, people] = True if who is None else who.numpy()
    groups, ratios = groups_of(target, rows != NOBODY), Ratios(clusters_of(target))
    for _, members in groups:
        for values, who in zip(errors, counted, strict=True):
            ratios.add_mean(values, who & members)
    columns = tuple(Column(name, "mm") for name in names)
    cells = ratios.cells(intervals)
    notes = notes_of(target, rows)
    rootless = (rows >= 0) & ~counted[0] & counted[1]
    if rootless.any():
        notes += (
            f"{rootless.sum()} people whose root has weight 0 do not count in MPJPE and PVE; see --root",
        )
    return Table("InfantNet", columns, rows_of(groups, rows == LOST, cells), notes)


def _errors(
    pred: Bodies,
    target: Bodies,
    own: np.ndarray,
    true: np.ndarray,
    layout: str,
    root: Sequence[str] | None,
    surface: bool,
) -> list[Errors]:
    """Return the errors of some people, in the order of the columns."""
    joints = tensor(pred.get("joints")[own]), tensor(target.get("joints")[true])
    weights = None if target.joint_weights is None else tensor(target.joint_weights[true])
    errors = [
        mpjpe.errors(*joints, layout=layout, root=root, weights=weights),
        pa_mpjpe.errors(*joints, weights=weights),
    ]
    if surface:
        meshes = tensor(pred.get("vertices")[own]), tensor(target.get("vertices")[true])
        roots = [root_of(points, layout=layout, root=root) for points in joints]
        rooted = None
        if weights is not None:  # a mesh without its root does not count
            seen = weights[:, root_points(layout, root, weights.shape[1])] != 0
            rooted = (seen.all(-1) if root is None else torch.stack(roots).isfinite().all(0).all(-1))[:, None]
            roots = [torch.where(rooted, each, 0) for each in roots]
        errors.append(pve.errors(*meshes, pred_root=roots[0], target_root=roots[1], weights=rooted))
        errors.append(pa_mpjpe.errors(*meshes))
    return errors


def _layout(pred: Bodies, target: Bodies, layout: str | None) -> str:
    size = target.get("joints").shape[1]
    fitting = [name for name, one in LAYOUTS.items() if len(one) == size]
    known = layout or target.layout or pred.layout
    if known is None:
        if len(fitting) != 1:
            guess = f"may be {' or '.join(fitting)}" if fitting else "are of no known layout"
            fail(target.path, f"layout: missing; {size} joints {guess}")
        return fitting[0]
    if known not in fitting:
        fail(target.path, f"joints: expected the {len(LAYOUTS[known])} of {known}, got {size}")
    return known
