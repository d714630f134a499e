"""Hands and faces in fits: priors of their poses, noise of their points, and who shows a face."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import HAND_JOINTS, BodyAsset
from agebody.assets.landmarks import CONTOUR17, FACE51
from agebody.body import BodyModel
from agebody.keypoints import LAYOUTS, KeypointLayout
from agebody.optim.stages import BETA_BOUND

HAND_NOISE, FACE_NOISE = 1 / 3, 1 / 4
"""Noise of points of the hands and of the face, over that of the body's: about the ratios of the mean
standard deviations by which COCO-WholeBody weighs errors (Jin et al., ECCV 2020)."""

FACE_POINTS = 4
"""Points of the face that a person must show for an expression to be fitted."""

_FACE = frozenset((*FACE51, *CONTOUR17))
_HANDS = frozenset(LAYOUTS["coco133"].names[91:]) | frozenset(
    HAND_JOINTS["left_hand"] + HAND_JOINTS["right_hand"]
)

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


def noise_shares(body: BodyModel, layout: KeypointLayout) -> Float[Tensor, " K"]:
    """Return the noise of each point over that of the body's points, which is 1.

    A body without fingers, or with a face that does not move, errs by more than its detector.
    """
    parts = body.asset.pose_parts
    hands, face = any("hand" in name for name in parts), "jaw" in parts or body.num_expression > 0
    shares = [
        HAND_NOISE if hands and name in _HANDS else FACE_NOISE if face and name in _FACE else 1.0
        for name in layout.names
    ]
    return torch.tensor(shares, dtype=body.dtype, device=body.device)


def coarse_weights(
    weights: Float[Tensor, "*batch K"], shares: Float[Tensor, " K"]
) -> Float[Tensor, "*batch K"]:
    """Return the weights of the points that say where a body is: without hands and face, if others are seen.

    Of COCO's 133 points, 110 are of face and hands; a box, or a start, that counts them alike is theirs.
    """
    coarse = torch.where(shares == 1, weights, 0)
    enough = (coarse > 0).sum(-1, keepdim=True) >= FACE_POINTS
    return torch.where(enough, coarse, weights)


def coefficient_bounds(
    body: BodyModel, layout: KeypointLayout, seen: Float[Tensor, "C *points K"]
) -> float | Float[Tensor, "C N"]:
    """Return the largest absolute value of each coefficient: 0 for the expression of who shows no face."""
    if not body.num_expression:
        return BETA_BOUND
    face = torch.tensor([name in _FACE for name in layout.names], device=seen.device)
    shown = ((seen > 0) & face).flatten(1).sum(1) >= FACE_POINTS
    bounds = seen.new_full((len(seen), body.num_coefficients), BETA_BOUND)
    bounds[:, body.num_betas :] *= shown[:, None]
    return bounds


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


def prior_alone(body: BodyModel) -> frozenset[str]:
    """Return the joints of hands and face, of whose angles everyday poses say nothing."""
    parts = body.asset.pose_parts
    joints = body.asset.joint_names[1:]
    return frozenset(name for part, rows in parts.items() if part != "body" for name in joints[rows])


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
