"""Ranges of motion as a term of a fit: angles beyond them, and their derivatives by the pose."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.losses import joint_limits
from agebody.losses.limits import ADULT_RANGES, FADE, share_of_twist
from agebody.optim.posed import Turns
from agebody.optim.state import Block, State


class JointLimitPrior:
    """Angles beyond the joints' ranges of motion, ``½ Σ (excess / sd)²``; see `joint_limits_excess`.

    Ranges are those of the ages; joints without a known range are unlimited. The sd is in radians.
    """

    def __init__(self, body: BodyModel, age_offset: Float[Tensor, " B"], sd: float = 0.1) -> None:
        limits, self.sd = joint_limits(body.asset.joint_names[1:], age_offset=age_offset), sd
        self.frames, order = bone_frames(limits.axes, limits.low)
        self.low, self.high = (bound.take_along_dim(order[None], -1) for bound in limits[1:])

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
        bounds = self.low[state.rows], self.high[state.rows]
        excess, jacobian = excess_and_jacobian(state.turns.joints(slice(1, None)), self.frames, *bounds)
        return state.joint_block(excess / self.sd, jacobian / self.sd)


def bone_frames(axes: Int[Tensor, " J"], like: Tensor) -> tuple[Float[Tensor, "J 3 3"], Int[Tensor, "J 3"]]:
    """Return the axes of joints as rows and by number, the bone's first, the others in cyclic order."""
    order = (axes[:, None] + torch.arange(3, device=axes.device)) % 3
    return torch.eye(3, dtype=like.dtype, device=like.device)[order], order


def excess_and_jacobian(
    pose: Turns, frames: Float[Tensor, "J 3 3"], low: Float[Tensor, "b J 3"], high: Float[Tensor, "b J 3"]
) -> tuple[Float[Tensor, "b J 3"], Float[Tensor, "b J 3 3"]]:
    """Return `joint_limits_excess` and its derivative by each joint's axis-angle vector.

    Limits and results are in the order of `bone_frames`: the twist first.

    With R = S T, a swing after a twist by t about the bone e, a turn ``R' = R [w]x`` in the joint's frame
    is ``T w = J(s) s' + e t'``, where J is the right Jacobian of the swing's vector s. As s and s' lie across
    the bone, s' is ``T w`` along s, and |s| / sin |s| times it across s; t' is it along e, plus
    tan(|s| / 2) times it across s.
    """
    along, first, second = (frames @ pose.jacobians).unbind(-2)  # (b, J, 3)
    entries = (frames @ pose.matrices @ frames.mT)[..., None]
    cosine, right, left = entries[..., 0, :].unbind(-2)  # (b, J, 1); S turns the bone towards these
    sine = torch.hypot(left, right)
    straight = sine == 0  # no swing, or one by 180 degrees, whose axis is arbitrary
    length = torch.where(straight, 1, sine)
    u, v = torch.where(straight, 1, -left / length), right / length
    swing = torch.atan2(sine, cosine)
    _, (_, a, b), (_, c, d) = (row.unbind(-2) for row in entries.unbind(-3))
    twist = torch.atan2(c - b, a + d)  # both are 2 cos^2(swing / 2) times the twist's sine and cosine
    # Along the swing's axis, and across it and the bone, after the twist.
    cos, sin = torch.cos(twist), torch.sin(twist)
    p, q = u * cos + v * sin, v * cos - u * sin
    lengthwise, across = p * first + q * second, p * second - q * first
    stretch = torch.where(straight, 1, swing / sine.clamp(min=LEAST_SINE))
    by_pose = torch.stack(
        (
            along + torch.tan(swing.clamp(max=math.pi - LEAST_SINE) / 2) * across,
            u * lengthwise - (v * stretch) * across,
            v * lengthwise + (u * stretch) * across,
        ),
        -2,
    )
    angles = torch.cat((twist, swing * u, swing * v), -1)
    excess = (angles - high).clamp(min=0) - (low - angles).clamp(min=0)
    jacobian = by_pose * (excess != 0)[..., None]
    there = share_of_twist(cosine)
    fade, slope = there * there * (3 - 2 * there), 6 * there * (there - 1) / (1 + math.cos(FADE))
    jacobian[..., 0, :] = fade * jacobian[..., 0, :] + slope * sine * excess[..., :1] * lengthwise
    excess[..., :1] *= fade
    return excess, jacobian


LEAST_SINE = 1e-3
"""Bounds the derivatives of a swing by nearly 180 degrees, which are infinite there."""
