"""Ranges of motion as a term of a fit: angles beyond them, and their derivatives by the pose."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.losses import joint_limits
from agebody.losses.limits import ADULT_RANGES, FADE, JointLimits, angles_and_cosine, beyond, share_of_twist
from agebody.optim.posed import Turns
from agebody.optim.state import Block, State


class JointLimitPrior:
    """Angles beyond the joints' ranges of motion, ``½ Σ (excess / sd)²``; see `joint_limits_excess`.

    Args:
        body: the layer; joints without a known range are unlimited.
        age_offset: (B,) ages whose ranges apply.
        sd: angle that counts as a residual of 1 [rad].
    """

    def __init__(self, body: BodyModel, age_offset: Float[Tensor, " B"], sd: float = 0.1) -> None:
        self.limits, self.sd = joint_limits(body.asset.joint_names[1:], age_offset=age_offset), sd

    @staticmethod
    def applies_to(body: BodyModel) -> bool:
        """Return whether the body has joints with known ranges."""
        return bool(set(body.asset.joint_names[1:]) & set(ADULT_RANGES))

    def __call__(self, state: State) -> Block | None:
        """Return three residuals per joint.

        They depend on this joint's three angles alone: the normal matrix is block diagonal.
        """
        if "body_pose" not in state.free.parts:
            return None
        axes, low, high = self.limits
        limits = JointLimits(axes, low[state.rows], high[state.rows])
        excess, jacobian = excess_and_jacobian(state.turns.joints(slice(1, None)), limits)
        return state.joint_block(excess / self.sd, jacobian / self.sd)


def excess_and_jacobian(
    pose: Turns, limits: JointLimits
) -> tuple[Float[Tensor, "b J 3"], Float[Tensor, "b J 3 3"]]:
    """Return `joint_limits_excess` and its derivative by each joint's axis-angle vector.

    With R = S T, a swing after a twist by t about the bone e, a turn ``R' = R [w]x`` in the joint's frame
    is ``T w = J(s) s' + e t'``, where J is the right Jacobian of the swing's vector s. As s and s' lie across
    the bone, s' is ``T w`` along s, and |s| / sin |s| times it across s; t' is it along e, plus
    tan(|s| / 2) times it across s.
    """
    axes = limits.axes
    angles, cosine = angles_and_cosine(pose.matrices, axes)
    xyz = torch.arange(3, device=axes.device)
    order = ((axes[:, None] + xyz) % 3)[None]
    back = ((xyz - axes[:, None]) % 3)[None]
    along, first, second = pose.jacobians.take_along_dim(order[..., None], -2).unbind(-2)  # (b, J, 3)
    twist, s, t = angles.take_along_dim(order, -1)[..., None].unbind(-2)  # (b, J, 1)
    first, second = (
        torch.cos(twist) * first - torch.sin(twist) * second,
        torch.sin(twist) * first + torch.cos(twist) * second,
    )
    swing = torch.hypot(s, t)
    straight = swing == 0
    u, v = torch.where(straight, 1, s / swing), torch.where(straight, 0, t / swing)
    lengthwise, across = u * first + v * second, u * second - v * first
    sine = torch.sin(swing)
    stretch = torch.where(straight, 1, swing / sine.clamp(min=LEAST_SINE))
    by_pose = torch.stack(
        (
            along + torch.tan(swing.clamp(max=math.pi - LEAST_SINE) / 2) * across,
            u * lengthwise - v * stretch * across,
            v * lengthwise + u * stretch * across,
        ),
        -2,
    )
    by_pose = by_pose.take_along_dim(back[..., None], -2)

    excess = beyond(angles, limits)
    jacobian = by_pose * (excess != 0)[..., None]
    there = share_of_twist(cosine)
    fade = there * there * (3 - 2 * there)
    by_swing = 6 * there * (there - 1) * sine[..., 0] / (1 + math.cos(FADE))
    is_twist = xyz == axes[:, None]
    fading = (by_swing[..., None] * excess)[..., None] * lengthwise[..., None, :]
    jacobian = torch.where(is_twist[..., None], fade[..., None, None] * jacobian + fading, jacobian)
    return torch.where(is_twist, fade[..., None] * excess, excess), jacobian


LEAST_SINE = 1e-3
"""Bounds the derivatives of a swing by nearly 180 degrees, which are infinite there."""
