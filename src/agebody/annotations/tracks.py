"""Tracks of people over the frames of a video."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from agebody.annotations.duplicates import OTHER_SIGMA, similarities
from agebody.annotations.people import People
from agebody.checks import read_count
from agebody.metrics.matching import match
from agebody.metrics.similarity import oks_sigmas

SAME_TRACK = 0.3
"""Least OKS of one person in two frames (MMPose's tracking)."""
LEAP = 0.2
"""Distance of an unexpected move, as a share of the person's size, that makes it less similar by a factor of
exp(-1/2)."""
GAP = 15
"""Longest gap of a track [frames]."""


def frame_numbers(people: People) -> Int[np.ndarray, " N"]:
    """Return which frame each person is in, by `frame_order`."""
    ranks = np.empty(len(people.images), dtype=np.int64)
    ranks[frame_order(people)] = np.arange(len(ranks))
    return ranks[people.image]


def frame_order(people: People) -> list[int]:
    """Return the order of images as frames of a video: by name, numbers in these as numbers."""
    names = [image.name for image in people.images]
    return sorted(range(len(names)), key=lambda i: name_key(names[i]))


def name_key(name: str) -> list[str | int]:
    """Return what to sort names by, so that numbers in them count as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def link_people(people: People, *, gap: int = GAP) -> People:
    """Return people with the number of their track, from 0; tracks of the file stay.

    From frame to frame, people are matched by the similarity of their keypoints (OKS), as many as possible,
    the most similar first. Each is predicted at the last position and at constant velocity, of which the more
    similar counts, so that people who cross keep their tracks. Those who remain unmatched may also have moved
    as a whole, less similar the farther (`LEAP`), so that people who run keep theirs.

    Args:
        people: whose images are frames of one video.
        gap: frames for which a person may be unseen and keep their track.
    """
    read_count("gap", gap)
    if people.tracks is not None and (people.tracks >= 0).all():
        return people
    tracks = np.full(len(people), -1, dtype=np.int64)
    frames = frame_numbers(people)
    sigmas = oks_sigmas(people.layout, default=OTHER_SIGMA)
    speeds = np.zeros((len(people), 2))
    last: list[int] = []  # the row of each track's newest person
    for frame in np.unique(frames):
        rows = np.flatnonzero(frames == frame)
        live = np.array([row for row in last if frame - frames[row] <= gap + 1], dtype=np.int64)
        if len(live):
            ago = (frame - frames[live])[:, None, None]
            seen = people.weights[live] > 0, people.weights[rows] > 0
            alike, leaping = np.zeros((2, len(live), len(rows)))
            for points in (people.keypoints[live] + ago * speeds[live, None], people.keypoints[live]):
                given = points, people.keypoints[rows], *seen
                moves, sizes = _moves(*given)
                leap = np.exp(-np.square(moves).sum(-1) / (2 * np.square(LEAP * sizes)))
                alike = np.maximum(alike, similarities(*given, sigmas))
                leaping = np.maximum(leaping, leap * similarities(*given, sigmas, moves))
            for same in alike, leaping:
                allowed = (same >= SAME_TRACK) & np.isin(live, last)[:, None] & (tracks[rows] < 0)
                pairs = match(
                    torch.from_numpy(1 - same), allowed=torch.from_numpy(allowed), method="hungarian"
                )
                for a, b in zip(pairs.pred.tolist(), pairs.target.tolist(), strict=True):
                    i, j = live[a], rows[b]
                    tracks[j] = tracks[i]
                    last[tracks[i]] = int(j)
                    speeds[j] = moves[a, b] / (frame - frames[i])
        for row in rows[tracks[rows] < 0]:
            tracks[row] = len(last)
            last.append(int(row))
    return replace(people, tracks=tracks)


def _moves(
    one: Float[np.ndarray, "N K 2"],
    other: Float[np.ndarray, "M K 2"],
    seen: Bool[np.ndarray, "N K"],
    other_seen: Bool[np.ndarray, "M K"],
) -> tuple[Float[np.ndarray, "N M 2"], Float[np.ndarray, "N M"]]:
    """Return how far people have moved, the median over the keypoints, which wrong ones do not change.

    Also returns the larger side of the box around the points that both have, or 1.
    """
    both = (seen[:, None] & other_seen)[..., None]
    both[~np.any(both, axis=(2, 3))] = True
    # The median, NaN sorted last: np.nanmedian takes seven times as long for few people.
    moves = np.sort(np.where(both, other - one[:, None], np.nan), axis=2)
    count = both.sum(2, keepdims=True)
    middle = np.concatenate(((count - 1) // 2, count // 2), 2)
    moves = np.take_along_axis(moves, middle, 2).mean(2)
    low = np.where(both, other, np.inf).min(2)
    high = np.where(both, other, -np.inf).max(2)
    return moves, np.maximum((high - low).max(-1), 1)
