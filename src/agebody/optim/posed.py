"""Posed bodies, and the derivatives of their joints and pose blend coefficients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.rotations import axis_angle_to_matrix, right_jacobian


class Turns(NamedTuple):
    """Rotations of joints in the forms that terms of a fit need."""

    vectors: Float[Tensor, "B J 3"]
    """Axis-angle vectors v [rad]."""
    matrices: Float[Tensor, "B J 3 3"]
    jacobians: Float[Tensor, "B J 3 3"]
    """See `right_jacobian`."""

    @classmethod
    def of(cls, vectors: Float[Tensor, "B J 3"]) -> Turns:
        """Return the other forms of axis-angle vectors."""
        return cls(vectors, axis_angle_to_matrix(vectors), right_jacobian(vectors))

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
    _, rotations, inner = pose if isinstance(pose, Turns) else Turns.of(pose)
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
