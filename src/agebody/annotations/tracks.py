"""Tracks: who in one frame of a video is who in the next."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int

from agebody.annotations.doubles import OTHER_SIGMA, similarities
from agebody.annotations.people import People
from agebody.metrics.matching import match
from agebody.metrics.similarity import oks_sigmas

SAME_TRACK = 0.3
"""OKS from which somebody in two frames can be one person (MMPose's tracking)."""
GAP = 15
"""Frames for which somebody may be unseen and still be the same person."""


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
    the most similar first. A person may have stayed where they were last seen, or have gone on as before,
    whichever is more similar: so people who cross keep their tracks.

    Args:
        people: whose images are frames of one video.
        gap: frames for which somebody may be unseen and still be the same person.
    """
    if gap < 0:
        raise ValueError(f"gap: expected at least 0, got {gap}")
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
            same = np.maximum.reduce(
                [
                    similarities(points, people.keypoints[rows], *seen, sigmas)
                    for points in (people.keypoints[live], people.keypoints[live] + ago * speeds[live, None])
                ]
            )
            pairs = match(
                torch.from_numpy(1 - same), allowed=torch.from_numpy(same >= SAME_TRACK), method="hungarian"
            )
            for i, j in zip(live[pairs.pred.numpy()], rows[pairs.target.numpy()], strict=True):
                tracks[j] = tracks[i]
                last[tracks[i]] = int(j)
                speeds[j] = _speed(people, int(i), int(j)) / (frame - frames[i])
        for row in rows[tracks[rows] < 0]:
            tracks[row] = len(last)
            last.append(int(row))
    return replace(people, tracks=tracks)


def _speed(people: People, i: int, j: int) -> Float[np.ndarray, " 2"]:
    """Return how far a person has moved: the median over the keypoints, which wrong ones do not change."""
    both = (people.weights[i] > 0) & (people.weights[j] > 0)
    moves = people.keypoints[j] - people.keypoints[i]
    return np.median(moves[both], axis=0) if both.any() else np.zeros(2)
