"""Hands and faces in fits: noise of their points, and the visibility of faces."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import HAND_JOINTS
from agebody.assets.landmarks import CONTOUR17, FACE51
from agebody.body import BodyModel
from agebody.keypoints import LAYOUTS, KeypointLayout
from agebody.optim.stages import BETA_BOUND

HAND_NOISE, FACE_NOISE = 1 / 3, 1 / 4
"""Noise of points of the hands and of the face, over that of the body's: about the ratios of the mean
standard deviations by which COCO-WholeBody weighs errors (Jin et al., ECCV 2020)."""

FACE_POINTS = 4
"""Minimum number of visible points of the face for fitting an expression."""

FACE = frozenset((*FACE51, *CONTOUR17))
"""Names of the points of a face."""
_HANDS = frozenset(LAYOUTS["coco133"].names[91:]) | frozenset(
    HAND_JOINTS["left_hand"] + HAND_JOINTS["right_hand"]
)


def noise_shares(body: BodyModel, layout: KeypointLayout) -> Float[Tensor, " K"]:
    """Return the noise of each point over that of the body's points, which is 1.

    For a body without fingers, or with a rigid face, the model's error exceeds the detector's.
    """
    parts = body.asset.pose_parts
    hands, face = any("hand" in name for name in parts), "jaw" in parts or body.num_expression > 0
    shares = [
        HAND_NOISE if hands and name in _HANDS else FACE_NOISE if face and name in FACE else 1.0
        for name in layout.names
    ]
    return torch.tensor(shares, dtype=body.dtype, device=body.device)


def coarse_weights(
    weights: Float[Tensor, "*batch K"], shares: Float[Tensor, " K"]
) -> Float[Tensor, "*batch K"]:
    """Return weights without those of hands and face, if enough other points are visible.

    Of COCO's 133 points, 110 are of face and hands, and would dominate boxes and starts.
    """
    coarse = torch.where(shares == 1, weights, 0)
    enough = (coarse > 0).sum(-1, keepdim=True) >= FACE_POINTS
    return torch.where(enough, coarse, weights)


def coefficient_bounds(
    body: BodyModel, layout: KeypointLayout, seen: Float[Tensor, "C *points K"]
) -> float | Float[Tensor, "C N"]:
    """Return the largest absolute value of each coefficient: 0 for the expression without a visible face."""
    if not body.num_expression:
        return BETA_BOUND
    face = torch.tensor([name in FACE for name in layout.names], device=seen.device)
    shown = ((seen > 0) & face).flatten(1).sum(1) >= FACE_POINTS
    bounds = seen.new_full((len(seen), body.num_coefficients), BETA_BOUND)
    bounds[:, body.num_betas :] *= shown[:, None]
    return bounds


def prior_alone(body: BodyModel) -> frozenset[str]:
    """Return the joints of hands and face, which the everyday poses leave at rest."""
    parts = body.asset.pose_parts
    joints = body.asset.joint_names[1:]
    return frozenset(name for part, rows in parts.items() if part != "body" for name in joints[rows])
