"""Quality flags of fits: the published rules, one column each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from agebody.age import AGE_CLASSES, UNKNOWN, age_class
from agebody.fitting.observed import MIN_POINTS, NOISE_SHARE
from agebody.keypoints import get_layout
from agebody.losses import gmof
from agebody.optim.stages import MAX_ERROR

if TYPE_CHECKING:
    from agebody.pipelines.labels.records import Labels

MIN_KEYPOINTS = 8
"""Least number of keypoints of a person, as in CamSMPLify."""
MIN_CONFIDENCE = 0.3
"""Least confidence of such a keypoint."""
MAX_BETA = 3.0
"""Largest beta of fits that SPIN keeps."""
MIN_SIZE = 32.0
"""Smallest extent of a person's keypoints [pixels]; COCO annotates none of people below 32 x 32."""
MIN_DISTANCE = 0.7
"""Smallest distance in statures, 1.2 m for an adult. Nearer, everything depends on the exact focal length."""
MIN_WIDTH = NOISE_SHARE
"""Smallest standard deviation of keypoints across the line through them, as a share of their extent: the
noise of one. Bodies fit a line well, and tell nothing of who was there. Side views have 0.025."""
SURE_STATURE = 0.03
"""Relative standard error of a stature up to which the size is known, as with several cameras."""
ALIKE = 0.1
"""Mean distance of the keypoints of two detections of one person, as a share of their extent."""
LIMBS = {
    f"{side} {limb}": (f"{side}_{joint}", f"{side}_{end}")
    for side in ("left", "right")
    for limb, joint, end in (("arm", "elbow", "wrist"), ("leg", "knee", "ankle"))
}
"""Keypoints without which a limb is not seen."""
SIDES_EXCHANGED = "sides_exchanged"
"""Flag that is set by the fit."""
PREDICTED = "predicted"
"""``stop`` of a body that is a network's prediction, without a fit."""
BOX_SCALE = 1.2
"""Side of the square crop divided by the longer side of a person's box, usual since HMR."""

_SPIN_CROP, _SPIN_LIMIT = 224, 100.0
_CAM_CROP, _CAM_LIMIT, _CAM_HARD, _CAM_HARD_LIMIT = 768, 30.0, 100.0, 50.0
_CAM_WEIGHT, _CAM_CONFIDENCE = 0.005, 0.7
_ROBUST = 100.0

RULES = {
    "few_keypoints": f"fewer than {MIN_KEYPOINTS} keypoints of confidence {MIN_CONFIDENCE:g}",
    "too_small": f"keypoints within less than {MIN_SIZE:g} pixels, or on a line",
    "duplicate": "keypoints where somebody's of a higher score are",
    "not_converged": "the fit reached the maximum of steps, could not start, or ended behind the camera",
    "infantnet": f"mean reprojection error of {100 * MAX_ERROR:.1f} % of the box or more (16 px of 480)",
    "camsmplify": "CamSMPLify's loss of 30 or more, of 50 or more if it started above 100",
    "spin": "SPIN's reprojection loss of 100 or more",
    "betas": f"a beta beyond {MAX_BETA:g}",
}
"""Meaning of each flag of people who are not kept."""
NOTES = {
    "age_unknown": "no age was given, two standard errors span several age classes, and size is a guess",
    "age_bound": "the age offset is at the bound of the class that was given",
    "too_near": f"a distance of less than {MIN_DISTANCE:g} statures, where perspective is strong",
    "unseen_limb": f"no elbow or wrist, or knee or ankle, of confidence {MIN_CONFIDENCE:g}: a guessed pose",
    "outside_picture": "keypoints outside the picture",
    SIDES_EXCHANGED: "left and right of the arms or legs were exchanged: the body fits them better",
}
"""Meaning of each flag of people who are kept, if they have no other."""


def flag_labels(labels: Labels) -> Labels:
    """Return labels with a flag per rule of ``RULES`` and ``NOTES``; those without any of ``RULES`` are kept.

    - *infantnet*: the mean distance of the keypoints is below 16 pixels (InfantNet), scaled to the person.
    - *camsmplify*: ``0.005 sum GMoF(dx; 100) + GMoF(dy; 100)`` over keypoints of confidence above 0.7, in a
      crop of 768 pixels, is below 30; below 50 where it was above 100 before the fit (CamSMPLify, in the
      code of CameraHMR, 3DV 2025). Its loss also has dense keypoints and the distance from a network's guess,
      which are missing here, so that the same limit keeps slightly more.
    - *spin*: the mean of ``c^2 (GMoF(dx; 100) + GMoF(dy; 100))`` over keypoints, in a crop of 224 pixels, is
      below 100 (SPIN, ICCV 2019). SPIN counts missing keypoints as zeros; here they are ignored.
    - *betas*: no beta is beyond 3 (SPIN, and AionHMR's loader).
    - *age_unknown*: without an age, proportions are the only evidence of size in one image, and often do not
      even distinguish children from adults. The flag is not raised where the standard error is small.
    """
    points, weights = labels.observed[..., :2], labels.observed[..., 2]
    sides = labels.boxes[:, 2:] - labels.boxes[:, :2]
    scale = 1 / (BOX_SCALE * np.maximum(sides.max(1, initial=0), 1))[:, None, None]
    offsets = (labels.keypoints - points) * scale
    final = _camsmplify(offsets, weights)
    # Only the mean error of the start is known: every keypoint is assumed to have it.
    far = np.stack((labels.start_reprojection, np.zeros(len(labels))), -1)[:, None] * scale
    first = _camsmplify(np.broadcast_to(far, offsets.shape), weights)
    counted = weights > 0
    low = np.where(counted[..., None], points, np.inf).min(1, initial=np.inf)
    high = np.where(counted[..., None], points, -np.inf).max(1, initial=-np.inf)
    size = np.maximum(high - low, 0).max(1)
    boxed = (labels.stop == PREDICTED) & ~counted.any(1)  # predicted from a box, without keypoints
    size = np.where(boxed, sides.max(1, initial=0), size)
    flags = {
        "few_keypoints": ((weights >= MIN_CONFIDENCE).sum(1) < MIN_KEYPOINTS) & ~boxed,
        "too_small": ~(size >= MIN_SIZE) | ((_width(points, counted) < MIN_WIDTH * size) & ~boxed),
        "duplicate": _duplicates(labels, np.where(size > 0, size, 1)),
        "not_converged": ~labels.converged,
        "infantnet": counted.any(1)
        & ~(labels.reprojection < MAX_ERROR * np.maximum(sides.max(1, initial=0), 1)),
        "camsmplify": ~((final < _CAM_LIMIT) | ((first > _CAM_HARD) & (final < _CAM_HARD_LIMIT))),
        "spin": ~(_spin(offsets, weights) < _SPIN_LIMIT),
        "betas": (np.abs(labels.betas) > MAX_BETA).any(1),
        "age_unknown": ~labels.age_known
        & _spans_classes(labels.age_offset, labels.age_offset_sd)
        & ~(labels.stature_sd < SURE_STATURE * labels.stature),
        "age_bound": _at_bound(labels.age_offset, labels.age_class) & (labels.age_offset_sd != 0),
        "too_near": labels.depth < MIN_DISTANCE * labels.stature,
        "unseen_limb": _unseen_limbs(labels, weights >= MIN_CONFIDENCE),
        "outside_picture": (counted & ~_inside(labels)).any(1),
        SIDES_EXCHANGED: labels.flags.get(SIDES_EXCHANGED, np.zeros(len(labels), dtype=bool)),
    }
    kept: Bool[np.ndarray, " N"] = ~np.any([flags[name] for name in RULES], axis=0)
    return replace(labels, flags=flags, kept=kept)


def _spans_classes(ages: Float[np.ndarray, " N"], sd: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Return whether the ages within two standard errors are of several classes; not where there is none."""
    low, high = (age_class(torch.from_numpy(ages + way * sd)).numpy() for way in (-2, 2))
    return (low != high) & ~np.isnan(sd)


def _at_bound(ages: Float[np.ndarray, " N"], kinds: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    bounds = np.array([(kind.low, kind.high) for kind in AGE_CLASSES])[np.maximum(kinds, 0)]
    return np.logical_and(kinds != UNKNOWN, (np.abs(ages[:, None] - bounds) < 1e-3).any(1))


def _width(points: Float[np.ndarray, "N K 2"], counted: Bool[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    """Return the standard deviation of points across the line through them [pixels]."""
    count = np.maximum(counted.sum(1), 1)[:, None]
    shown = np.where(counted[..., None], points, 0)
    offsets = np.where(counted[..., None], points - (shown.sum(1) / count)[:, None], 0)
    return np.linalg.svd(offsets, compute_uv=False)[:, 1] / np.sqrt(count[:, 0])


def _inside(labels: Labels) -> Bool[np.ndarray, "N K"]:
    points = labels.observed[..., :2]
    return np.all((points >= 0) & (points <= labels.image_sizes[:, None]), axis=-1)


def _unseen_limbs(labels: Labels, sure: Bool[np.ndarray, "N K"]) -> Bool[np.ndarray, " N"]:
    """Return whether a limb of which the layout has points shows none of them inside the picture."""
    names = get_layout(labels.keypoint_layout).names
    limbs = [[names.index(name) for name in ends if name in names] for ends in LIMBS.values()]
    seen = sure & _inside(labels)  # detectors give hidden keypoints a small confidence, and a place
    found = np.zeros(len(labels), dtype=bool)
    for limb in filter(None, limbs):
        found |= ~seen[:, limb].any(1)
    return found


def _duplicates(labels: Labels, size: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Return who is detected in the place of a person with a higher score in the same image."""
    points, weights = labels.observed[..., :2], labels.observed[..., 2] > 0
    found = np.zeros(len(labels), dtype=bool)
    _, image = np.unique(labels.image_ids, return_inverse=True)
    order = np.lexsort((-labels.scores, image))
    for rows in np.split(order, np.flatnonzero(np.diff(image[order])) + 1):
        for rank, row in enumerate(rows):
            better = rows[:rank][~found[rows[:rank]]]
            both = weights[better] & weights[row]
            apart = np.linalg.norm(np.where(both[..., None], points[better] - points[row], 0), axis=-1)
            count = both.sum(1)
            mean = apart.sum(1) / np.maximum(count, 1)
            found[row] = ((count >= MIN_POINTS) & (mean < ALIKE * size[row])).any()
    return found


def _spin(offsets: Float[np.ndarray, "N K 2"], weights: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " N"]:
    costs = weights**2 * _robust(_SPIN_CROP * offsets)
    return costs.sum(1) / np.maximum((weights > 0).sum(1), 1)


def _camsmplify(
    offsets: Float[np.ndarray, "N K 2"], weights: Float[np.ndarray, "N K"]
) -> Float[np.ndarray, " N"]:
    return _CAM_WEIGHT * ((weights > _CAM_CONFIDENCE) * _robust(_CAM_CROP * offsets)).sum(1)


def _robust(pixels: Float[np.ndarray, "N K 2"]) -> Float[np.ndarray, "N K"]:
    return gmof(torch.from_numpy(pixels), _ROBUST).sum(-1).numpy()
