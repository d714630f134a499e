"""Duplicates: several detections of one person in one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from agebody.annotations.people import People
from agebody.metrics.similarity import oks_sigmas

SAME_PERSON = 0.9
"""OKS of two detections from which they are one person (MMPose, HRNet)."""
OTHER_SIGMA = 0.1
"""Standard deviation of keypoints for which none is published."""


def leave_out_duplicates(found: People) -> People:
    """Leave out duplicates: detections whose OKS with a better one in one image is above ``SAME_PERSON``."""
    if len(np.unique(found.image)) == len(found):
        return found
    sums = found.weights.sum(1)
    scores = sums if found.scores is None else np.where(np.isnan(found.scores), sums, found.scores)
    sigmas = oks_sigmas(found.layout, default=OTHER_SIGMA)
    again = np.zeros(len(found), dtype=bool)
    order = np.lexsort((-scores, found.image))
    for rows in np.split(order, np.flatnonzero(np.diff(found.image[order])) + 1):
        points, seen = found.keypoints[rows], found.weights[rows] > 0
        again[rows] = find_duplicates(similarities(points, points, seen, seen, sigmas) > SAME_PERSON)
    return leave_out(found, again, "the same person again")


def find_duplicates(same: Bool[np.ndarray, "N N"]) -> Bool[np.ndarray, " N"]:
    """Return which detections of one image are of a person whom a better one that is kept has.

    Args:
        same: which two are one person; the detections are ordered from the best.
    """
    again = np.zeros(len(same), dtype=bool)
    for i, row in enumerate(same):
        again[i] = (row[:i] & ~again[:i]).any()
    return again


def similarities(
    one: Float[np.ndarray, "N K 2"],
    other: Float[np.ndarray, "M K 2"],
    seen: Bool[np.ndarray, "N K"],
    other_seen: Bool[np.ndarray, "M K"],
    sigmas: Sequence[float],
    shifts: Float[np.ndarray, "N M 2"] | None = None,
    *,
    shared: bool = False,
) -> Float[np.ndarray, "N M"]:
    """Return the object keypoint similarity of detections, in units of the larger of both people.

    Points that only one of both has count as different, or not if ``shared``. The ones are moved by
    ``shifts`` to the others.
    """
    spread = 2 * np.array(sigmas)
    area = [_areas(one, seen)[:, None], _areas(other, other_seen)]
    moved = one[:, None] if shifts is None else one[:, None] + shifts[:, :, None]
    squares = np.square(moved - other).sum(-1)
    scale = 2 * np.maximum(*area)[..., None] * spread**2 + np.spacing(1)
    both = seen[:, None] & other_seen
    either = both if shared else seen[:, None] | other_seen
    return (np.exp(-squares / scale) * both).sum(-1) / np.maximum(either.sum(-1), 1)


def _areas(points: Float[np.ndarray, "N K 2"], seen: Bool[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    low = np.where(seen[..., None], points, math.inf).min(1, initial=math.inf)
    high = np.where(seen[..., None], points, -math.inf).max(1, initial=-math.inf)
    return np.prod(np.maximum(high - low, 0), axis=1)


def leave_out(found: People, rows: Bool[np.ndarray, " N"], reason: str) -> People:
    """Return people without some of them, with the reason and their number."""
    if not rows.any():
        return found
    left_out = dict(found.left_out) | {reason: int(rows.sum())}
    return replace(found.select(np.flatnonzero(~rows)), left_out=tuple(sorted(left_out.items())))
