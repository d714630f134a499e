"""Quality flags of fits: the published rules, one column each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float

from agebody.losses import gmof

if TYPE_CHECKING:
    from agebody.pipelines.labels.records import Labels

MIN_KEYPOINTS = 8
"""Least number of keypoints of a person, as in CamSMPLify."""
MIN_CONFIDENCE = 0.3
"""Least confidence of such a keypoint."""
MAX_ERROR = 16.0
"""Mean error below which InfantNet keeps fits [pixels of the image]."""
MAX_BETA = 3.0
"""Largest beta of fits that SPIN keeps."""
BOX_SCALE = 1.2
"""Side of the square crop divided by the longer side of a person's box, usual since HMR."""

_SPIN_CROP, _SPIN_LIMIT = 224, 100.0
_CAM_CROP, _CAM_LIMIT, _CAM_HARD, _CAM_HARD_LIMIT = 768, 30.0, 100.0, 50.0
_CAM_WEIGHT, _CAM_CONFIDENCE = 0.005, 0.7
_ROBUST = 100.0

RULES = {
    "few_keypoints": f"fewer than {MIN_KEYPOINTS} keypoints of confidence {MIN_CONFIDENCE:g}",
    "not_converged": "the fit reached the maximum number of steps, or could not start",
    "infantnet": f"mean reprojection error of {MAX_ERROR:g} px or more",
    "camsmplify": "CamSMPLify's loss of 30 or more, of 50 or more if it started above 100",
    "spin": "SPIN's reprojection loss of 100 or more",
    "betas": f"a beta beyond {MAX_BETA:g}",
}
"""Meaning of each flag."""


def flag_labels(labels: Labels) -> Labels:
    """Return the labels with a flag per rule of ``RULES``, and ``kept`` for people without any flag.

    - *infantnet*: the mean distance of the keypoints, in pixels of the image, is below 16 (InfantNet).
    - *camsmplify*: ``0.005 sum GMoF(dx; 100) + GMoF(dy; 100)`` over keypoints of confidence above 0.7, in a
      crop of 768 pixels, is below 30; below 50 where it was above 100 before the fit (CamSMPLify, in the
      code of CameraHMR, 3DV 2025). Its loss also has dense keypoints and the distance from a network's guess,
      which are missing here, so that the same limit keeps slightly more.
    - *spin*: the mean of ``c^2 (GMoF(dx; 100) + GMoF(dy; 100))`` over keypoints, in a crop of 224 pixels, is
      below 100 (SPIN, ICCV 2019). SPIN counts missing keypoints as zeros; here they are ignored.
    - *betas*: no beta is beyond 3 (SPIN, and AionHMR's loader).
    """
    points, weights = labels.observed[..., :2], labels.observed[..., 2]
    sides = labels.boxes[:, 2:] - labels.boxes[:, :2]
    scale = 1 / (BOX_SCALE * np.maximum(sides.max(1, initial=0), 1))[:, None, None]
    offsets = (labels.keypoints - points) * scale
    final = _camsmplify(offsets, weights)
    # Only the mean error of the start is known: every keypoint is assumed to have it.
    far = np.stack((labels.start_reprojection, np.zeros(len(labels))), -1)[:, None] * scale
    first = _camsmplify(np.broadcast_to(far, offsets.shape), weights)
    flags = {
        "few_keypoints": (weights >= MIN_CONFIDENCE).sum(1) < MIN_KEYPOINTS,
        "not_converged": ~labels.converged,
        "infantnet": ~(labels.reprojection < MAX_ERROR),
        "camsmplify": ~((final < _CAM_LIMIT) | ((first > _CAM_HARD) & (final < _CAM_HARD_LIMIT))),
        "spin": ~(_spin(offsets, weights) < _SPIN_LIMIT),
        "betas": (np.abs(labels.betas) > MAX_BETA).any(1),
    }
    kept: Bool[np.ndarray, " N"] = ~np.any(list(flags.values()), axis=0)
    return replace(labels, flags=flags, kept=kept)


def _spin(offsets: Float[np.ndarray, "N K 2"], weights: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    costs = weights**2 * _robust(_SPIN_CROP * offsets)
    return costs.sum(1) / np.maximum((weights > 0).sum(1), 1)


def _camsmplify(
    offsets: Float[np.ndarray, "N K 2"], weights: Float[np.ndarray, "N K"]
) -> Float[np.ndarray, " N"]:
    return _CAM_WEIGHT * ((weights > _CAM_CONFIDENCE) * _robust(_CAM_CROP * offsets)).sum(1)


def _robust(pixels: Float[np.ndarray, "N K 2"]) -> Float[np.ndarray, "N K"]:
    return gmof(torch.from_numpy(pixels), _ROBUST).sum(-1).numpy()
