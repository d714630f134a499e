"""Posed bodies, and the derivatives of their joints and pose blend coefficients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.rotations import TINY, constants


class Turns(NamedTuple):
    """Rotations of joints in the forms that terms of a fit need."""

    vectors: Float[Tensor, "B J 3"]
    """Axis-angle vectors v [rad]."""
    quaternions: Float[Tensor, "B J 4"]
    """x, y, z, w."""
    matrices: Float[Tensor, "B J 3 3"]
    jacobians: Float[Tensor, "B J 3 3"]
    """Right Jacobians J, with ``R(v + dv) = R(v) exp([J dv]x)`` to first order."""

    @classmethod
    def of(cls, vectors: Float[Tensor, "B J 3"]) -> Turns:
        """Return the other forms of axis-angle vectors v = t n.

        ``R = cos t I + sin t [n]x + (1 - cos t) n n^T``, and J, its mean over the angles from 0 to -t, is
        ``sin t / t I - (1 - cos t) / t [n]x + (1 - sin t / t) n n^T`` (Forster et al., "On-Manifold
        Preintegration", T-RO 2017, eq. 8). Where t vanishes, so do the factors of n.
        """
        angle = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) + TINY
        axis, half = vectors / angle, angle / 2
        sine, half_sine = torch.sin(angle), torch.sin(half)
        mean, versine = sine / angle, 2 * half_sine * half_sine
        turn = torch.cat((1 - versine, sine * axis), -1)
        mean_turn = torch.cat((mean, (versine / -angle) * axis), -1)
        straight = torch.stack((turn, mean_turn)) @ constants(vectors).basis
        squares = (axis[..., :, None] * axis[..., None, :]).flatten(-2)
        found = torch.addcmul(straight, torch.stack((versine, 1 - mean)), squares).unflatten(-1, (3, 3))
        return cls(vectors, torch.cat((half_sine * axis, torch.cos(half)), -1), *found.unbind())

    def joints(self, which: slice) -> Turns:
        """Select some of the joints."""
        return Turns(*(part[:, which] for part in self))


class PosedBodies(NamedTuple):
    """Posed bodies, with derivatives of joints and pose blend coefficients."""

    coefficients: Float[Tensor, "B C"]
    """Coefficients of the identity, then of the pose blend shapes."""
    turned: Float[Tensor, "B J 3 3"]
    """Rotation of each joint's frame in the world."""
    centers: Float[Tensor, "B J 3"]
    transforms: Float[Tensor, "B J 3 4"]
    """From the rest pose to the pose."""
    axes: Float[Tensor, "B J 3 3"]
    """Columns: world axes of the rotation by a change of each component of a joint's vector."""
    feature_changes: Float[Tensor, "B M 3 9"] | None
    """Derivative of a joint's 9 pose blend coefficients by its vector, without the root."""
    feature_growth: Float[Tensor, "B F"] | None
    """Derivative of the pose blend coefficients by the age offset, if they depend on it."""


def pose_bodies(
    body: BodyModel, pose: Tensor | Turns, betas: Tensor, age_offset: Tensor, *, changes: bool
) -> PosedBodies:
    """Pose bodies; ``changes`` includes the derivatives of the pose blend coefficients."""
    coefficients, rest_joints = body.identity(betas, age_offset)
    _, _, rotations, inner = pose if isinstance(pose, Turns) else Turns.of(pose)
    _, world, transforms, feature = body.tree.pose(rotations, "matrix", rest_joints)
    turned = world[..., :3]
    feature_changes, growth = None, None
    if body.num_correctives:
        scale = body.corrective_scale(age_offset)
        if changes:
            # dR = R [w]x with w = J dv: each row of R, crossed with w.
            columns = inner[:, 1:].mT[:, :, :, None]
            feature_changes = torch.linalg.cross(rotations[:, 1:, None], columns).flatten(-2)
        if scale is not None:
            if feature_changes is not None:
                growth = feature * (body.infant_corrective_scale - 1)
                feature_changes = feature_changes * scale[:, None, None, None]
            feature = feature * scale[:, None]
        coefficients = torch.cat((coefficients, feature), -1)
    return PosedBodies(
        coefficients, turned, world[..., 3], transforms, turned @ inner, feature_changes, growth
    )
