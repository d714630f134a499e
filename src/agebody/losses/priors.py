"""Priors without a state: how unlikely a shape is, and hyperextended knees and elbows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_weights,
    read_nonnegative,
    read_rotations,
    reduce,
)

_HINGES = (("left_elbow", 1, 1.0), ("right_elbow", 1, -1.0), ("left_knee", 0, -1.0), ("right_knee", 0, -1.0))
"""Joint, axis (x, y, z) of its hinge, and the sign of turning it backwards."""


def shape_prior(
    betas: Float[Tensor, "*batch S"],
    age_offset: Float[Tensor, "*batch"] | Float[Tensor, "*batch 1"] | None = None,
    *,
    beta_weights: Float[Tensor, " S"] | None = None,
    age_weight: float = 1.0,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return the squared length of the shape coefficients, sum_i w_i b_i^2 + w_a a^2, one entry per body.

    Betas of the SMPL family are standard deviations of people's shapes, so this is the squared Mahalanobis
    distance from the mean person (Bogo et al., ECCV 2016). With the age offset it is the |[b, a]|^2 with
    which AionHMR fits people of all ages; it pulls a towards the adult, at 0.

    Args:
        betas: (*batch, S).
        age_offset: (*batch) or (*batch, 1), appended to the betas; left out if None.
        beta_weights: (S), a weight for each beta, such as Metric-Aware HMR's; 1 if None.
        age_weight: of the age offset.
        weights: broadcast to (*batch).
        reduction: "none" gives (*batch).
    """
    betas = expect("betas", betas, None)
    age_weight = read_nonnegative("age_weight", age_weight)
    weights = expand_weights(weights, betas.shape[:-1])
    squares = apply_mask(betas, weights, 1).square()
    if beta_weights is not None:
        expect_weights(expect("beta_weights", beta_weights, betas.shape[-1]), "beta_weights")
        squares = squares * beta_weights
    terms = squares.sum(-1)
    if age_offset is not None:
        age_offset = expect("age_offset", age_offset)
        if age_offset.dim() == betas.dim() and age_offset.shape[-1] == 1:
            age_offset = age_offset.squeeze(-1)
        if age_offset.shape != betas.shape[:-1]:
            raise ValueError(
                f"age_offset: expected shape {tuple(betas.shape[:-1])}, that of the betas' batch, "
                f"got {tuple(age_offset.shape)}"
            )
        terms = terms + age_weight * apply_mask(age_offset, weights).square()
    return reduce(terms, weights, reduction)


def hyperextension_prior(
    body_pose: Float[Tensor, "*pose"],
    *,
    joint_names: Sequence[str] = SMPL_JOINT_NAMES[1:],
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return SMPLify's penalty of hyperextended knees and elbows per body, sum_i exp(s_i theta_i)^2.

    theta_i is the component of a knee's axis-angle vector about x, or of an elbow's about y, and s_i the sign
    of hyperextension: + for the left elbow, - for the others (angles 55, 58, 12 and 15 of SMPL's 72). Four
    straight limbs cost 4, bent ones less, at 90 degrees 0.17 (Bogo et al., ECCV 2016; SMPLify-X, CVPR 2019).

    Args:
        body_pose: (*batch, J, 3) or flat (*batch, 3 J), axis-angle vectors [rad].
        joint_names: the J joints; the knees and elbows must be among them.
        weights: broadcast to (*batch).
        reduction: "none" gives (*batch).
    """
    pose = _named_pose(body_pose, joint_names)
    weights = expand_weights(weights, pose.shape[:-2])
    terms = _hyperextensions(apply_mask(pose, weights, 2), joint_names).square().sum(-1)
    return reduce(terms, weights, reduction)


def hyperextension_residuals(
    body_pose: Float[Tensor, "*pose"], *, joint_names: Sequence[str] = SMPL_JOINT_NAMES[1:]
) -> Float[Tensor, "*batch 4"]:
    """Return exp(s_i theta_i) of left and right elbow, left and right knee.

    Their squares sum to `hyperextension_prior`.
    """
    return _hyperextensions(_named_pose(body_pose, joint_names), joint_names)


def _named_pose(body_pose: Tensor, joint_names: Sequence[str]) -> Float[Tensor, "*batch J 3"]:
    body_pose = expect("body_pose", body_pose, None)
    return read_rotations("body_pose", body_pose, "axis_angle", len(joint_names), body_pose)


def _hyperextensions(
    pose: Float[Tensor, "*batch J 3"], joint_names: Sequence[str]
) -> Float[Tensor, "*batch 4"]:
    names = tuple(joint_names)
    missing = [name for name, _, _ in _HINGES if name not in names]
    if missing:
        raise ValueError(f"joint_names: expected knees and elbows among them, got no {', '.join(missing)}")
    return torch.exp(torch.stack([sign * pose[..., names.index(joint), i] for joint, i, sign in _HINGES], -1))
