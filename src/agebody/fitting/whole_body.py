"""Hands and faces in fits: noise of their points, and who shows a face."""

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
"""Points of the face that a person must show for an expression to be fitted."""

FACE = frozenset((*FACE51, *CONTOUR17))
"""Names of the points of a face."""
_HANDS = frozenset(LAYOUTS["coco133"].names[91:]) | frozenset(
    HAND_JOINTS["left_hand"] + HAND_JOINTS["right_hand"]
)


def noise_shares(body: BodyModel, layout: KeypointLayout) -> Float[Tensor, " K"]:
    """Return the noise of each point over that of the body's points, which is 1.

    A body without fingers, or with a face that does not move, errs by more than its detector.
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
    face = torch.tensor([name in FACE for name in layout.names], device=seen.device)
    shown = ((seen > 0) & face).flatten(1).sum(1) >= FACE_POINTS
    bounds = seen.new_full((len(seen), body.num_coefficients), BETA_BOUND)
    bounds[:, body.num_betas :] *= shown[:, None]
    return bounds


def prior_alone(body: BodyModel) -> frozenset[str]:
    """Return the joints of hands and face, of whose angles everyday poses say nothing."""
    parts = body.asset.pose_parts
    joints = body.asset.joint_names[1:]
    return frozenset(name for part, rows in parts.items() if part != "body" for name in joints[rows])
