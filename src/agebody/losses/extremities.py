"""Priors of the poses of hands and faces: what fits expect of them, and random people have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agebody.assets.asset import BodyAsset

_LARGEST_SD, _LEAST_SD, _DECAY = 0.8, 0.05, 8.6
"""Standard deviations of the components of hand poses [rad]: the first, the least, and the number of
components over which they fall to 1 / e. Files have components without variances; with these, an angle has
0.26 rad, six components hold three quarters of the variance, and 15 nearly all of it."""
_FINGER_CURL = 0.35
"""Angle of each joint of a relaxed finger [rad], where a body has no mean of its hands' poses."""
_FINGER_SD, _THUMB_SD = (0.12, 0.15, 0.5), (0.3, 0.3, 0.3)
"""Standard deviations of twist, spread and bend of a joint [rad], where a body has no components."""
_FACE_SD = {"jaw": (0.2, 0.05, 0.05), "left_eye": (0.2,) * 3, "right_eye": (0.2,) * 3}
"""Standard deviations of the angles of joints of the face about rest [rad]."""


def extremity_priors(asset: BodyAsset) -> Iterator[tuple[tuple[str, ...], np.ndarray, np.ndarray]]:
    """Yield joints of hands and face, the mean of their angles (D,) and a factor of its precision (D, R)."""
    joints = asset.joint_names[1:]
    hands = [name for name in asset.pose_parts if "hand" in name]
    for name, rows in asset.pose_parts.items():
        members = joints[rows]
        if name in _FACE_SD:
            yield members, np.zeros(3), np.diag(1 / np.array(_FACE_SD[name]))
        elif name in hands:
            which = hands.index(name)
            means, components = asset.hand_means, asset.hand_components
            mean = _relaxed(members) if means is None else means[which].astype(np.float64)
            if components is None:
                sd = [_THUMB_SD if "thumb" in joint else _FINGER_SD for joint in members]
                factor = np.diag(1 / np.array(sd).ravel())
            else:
                factor = _factor(components[which].astype(np.float64))
            yield members, mean, factor


def _relaxed(members: tuple[str, ...]) -> np.ndarray:
    """Return fingers that are slightly bent, in the T-pose with palms down: about z, from side to side."""
    pose = np.zeros((len(members), 3))
    for row, joint in zip(pose, members, strict=True):
        side = joint.partition("_")[0]
        row[2] = {"left": -1.0, "right": 1.0}.get(side, 0.0) * _FINGER_CURL * ("thumb" not in joint)
    return pose.ravel()


def _factor(components: np.ndarray) -> np.ndarray:
    """Return a factor of the precision of poses that are mostly sums of a few components."""
    axes = components / np.linalg.norm(components, axis=1, keepdims=True).clip(np.finfo(float).tiny)
    sd = _LARGEST_SD * np.exp(-np.arange(len(axes)) / _DECAY)
    covariance = axes.T @ np.diag(np.maximum(sd**2 - _LEAST_SD**2, 0)) @ axes
    covariance += _LEAST_SD**2 * np.eye(axes.shape[1])
    return np.linalg.inv(np.linalg.cholesky(covariance)).T
