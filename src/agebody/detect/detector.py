"""The protocol of detectors, and their result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8

from agebody.annotations.duplicates import OTHER_SIGMA, find_duplicates, similarities
from agebody.annotations.orders import read_names
from agebody.cameras import box_around
from agebody.metrics.matching import box_iou
from agebody.metrics.similarity import oks_sigmas

SAME_PERSON = 0.6
"""Object keypoint similarity above which detections at two sizes are one person. Files have a higher
threshold, since their detectors have merged detections already."""

CROP_SCALE = 1.2
"""Size of a person's box over that of the keypoints, which begin below the top of the head."""

LEAST_CONFIDENCE = 0.2
"""Smallest confidence of keypoints that are seen: a person's box is drawn around these."""

SAME_BOX, SAME_SEEN = 0.6, 0.3
"""Intersection over union of boxes, and similarity of the keypoints that both detections see, above which
they are one person even if each sees another half of the body. On videos of two people who touch, detections
of one person have at least 0.79 and 0.36, those of two people at most 0.40 and 0.59."""


class DetectorError(ValueError):
    """A detector cannot be used: the message says which, why, and what to do."""


class Detections(NamedTuple):
    """The people that a detector finds in one image, which may include duplicates."""

    keypoints: Float[np.ndarray, "N K 3"]
    """x, y [pixels] with (0, 0) at the corner of the image, and confidences from 0 to 1."""
    boxes: Float[np.ndarray, "N 4"]
    """Corners x0, y0, x1, y1 [pixels]."""
    scores: Float[np.ndarray, " N"]
    """Score of each person, from 0 to 1."""

    def merged(self, names: Sequence[str]) -> Detections:
        """Return the detections without duplicates: the best one per person."""
        order = np.argsort(-self.scores, kind="stable")
        points, weights = self.keypoints[order, :, :2], self.keypoints[order, :, 2]
        sigmas = oks_sigmas(read_names(names), default=OTHER_SIGMA)
        some, sure, boxes = weights > 0.1, weights >= LEAST_CONFIDENCE, torch.from_numpy(self.boxes[order])
        same = similarities(points, points, some, some, sigmas) > SAME_PERSON
        alike = similarities(points, points, sure, sure, sigmas, shared=True) > SAME_SEEN
        same |= alike & (box_iou(boxes, boxes).numpy() > SAME_BOX)
        again = find_duplicates(same)
        return self.select(np.sort(order[~again]))

    @classmethod
    def join(cls, parts: Sequence[Detections]) -> Detections:
        """Return the people of several detections of one image, one after the other."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def select(self, rows: np.ndarray) -> Detections:
        """Return some of the people."""
        return Detections(*(part[rows] for part in self))


@runtime_checkable
class Detector(Protocol):
    """Finds people in an image: any callable with the names of its keypoints."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the keypoints, as COCO, OpenPose or a `KeypointLayout` has them; others are left out."""
        ...

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Return the people of an upright RGB image."""
        ...


def boxes_of(keypoints: Float[np.ndarray, "N K 3"]) -> Float[np.ndarray, "N 4"]:
    """Return the boxes of people: a fifth larger than that of keypoints of a confidence of at least .2.

    Where no keypoint has that, all count.
    """
    sure = keypoints[..., 2] >= LEAST_CONFIDENCE
    sure |= ~sure.any(1, keepdims=True)
    points, weights = torch.from_numpy(keypoints[..., :2]), torch.from_numpy(sure)
    return box_around(points, weights=weights, scale=CROP_SCALE).numpy()
