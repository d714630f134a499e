"""How keypoints move with the pose and identity of a body: values and derivatives, without the mesh."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.body import BodyModel
from agebody.deform import age_coefficients, pose_feature
from agebody.keypoints import KeypointLayout, get_layout


class KeypointDerivatives(NamedTuple):
    """Points of a layout and their derivatives. That by the translation is the identity."""

    points: Float[Tensor, "B K 3"]
    """[m]"""
    pose: Float[Tensor, "B K 3 J 3"]
    """By each joint's axis-angle vector, the root's first [m/rad]."""
    betas: Float[Tensor, "B K 3 N"]
    age_offset: Float[Tensor, "B K 3"]


class KeypointJacobian(nn.Module):
    """Keypoints of one layout on one body, with analytic derivatives in axis-angle pose, betas and age offset.

    A turn of joint j moves what hangs on it about its centre: ``dp = w x (p - t_j)``, with p's share of points
    that several joints carry. The rest is linear: ``sum_j A_j m_j`` in the moments, the joints' places in the
    betas, both with the pose held.

    Args:
        body: of one part: an `SMPLA` that hands over to an infant body is two.
        layout: the points.

    Raises:
        ValueError: the body consists of two.
    """

    pair_joints: Tensor
    moments: Tensor
    masses: Tensor
    is_joint: Tensor
    joints: Tensor
    carried: Tensor
    below: Tensor
    path: Tensor
    parents: Tensor
    rest_steps: Tensor
    rest_moves: Tensor
    joint_masses: Tensor

    def __init__(self, body: BodyModel, layout: str | KeypointLayout) -> None:
        super().__init__()
        if getattr(body, "infant", None) is not None:
            raise ValueError("body: expected one body, got two with a switch between them (smil=)")
        self.body, self.layout = [body], get_layout(layout)  # a list: the body is no part of this module
        asset = body.asset
        parents = asset.parents.astype(np.int64)
        num_joints, num_points = len(parents), len(self.layout)
        path = np.eye(num_joints)  # path[i, j]: j is i or one of those above it
        for joint in range(1, num_joints):
            path[joint] += path[parents[joint]]
        joints, regressor = self.layout.resolve(asset)
        rows = regressor.toarray().astype(np.float64)
        weights = asset.dense_weights().astype(np.float64)
        directions = np.concatenate((body._identity_directions(), body._corrective_directions())).astype(np.float64)
        touched = (rows != 0).astype(float) @ (weights != 0) > 0
        width = max(1, int(touched.sum(1).max()))
        pair_joints = np.zeros((num_points, width), dtype=np.int64)
        moments = np.zeros((num_points, width, 3, len(directions)))
        masses = np.zeros((num_points, width))
        for point in range(num_points):
            used = np.flatnonzero(rows[point])
            for slot, joint in enumerate(np.flatnonzero(touched[point])):
                share = rows[point, used] * weights[used, joint]
                pair_joints[point, slot] = joint
                masses[point, slot] = share.sum()
                moments[point, slot] = np.einsum("v,cvx->xc", share, directions[:, used])
        rest = np.stack([asset.joint_regressor @ d.astype(np.float64) for d in body._identity_directions()])
        steps = rest.copy()
        steps[:, 1:] -= rest[:, parents[1:]]
        joint_masses = np.zeros((num_points, num_joints))
        np.add.at(joint_masses, (np.arange(num_points)[:, None], pair_joints), masses)
        for name, array in {
            "pair_joints": pair_joints, "moments": moments, "masses": masses, "is_joint": joints >= 0,
            "joints": np.maximum(joints, 0), "below": path.T[:, pair_joints].transpose(1, 2, 0), "path": path,
            "parents": np.maximum(parents, 0), "rest_steps": steps[1:], "rest_moves": rest[1:],
            "joint_masses": joint_masses,
        }.items():  # fmt: skip
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            dtype = body.dtype if tensor.is_floating_point() else tensor.dtype
            self.register_buffer(name, tensor.to(body.device, dtype), persistent=False)
        self.any_joint = bool((joints >= 0).any())

    def forward(
        self,
        pose: Float[Tensor, "B J 3"],
        betas: Float[Tensor, "B N"],
        age_offset: Float[Tensor, "B"],
        transl: Float[Tensor, "B 3"],
    ) -> KeypointDerivatives:
        """Points and derivatives; the pose in axis-angle, the root first [rad]."""
        body = self.body[0]
        identity, rest_joints = body.identity(betas, age_offset)
        rotations, world, transforms = body.tree.pose(pose, "axis_angle", rest_joints)
        feature = pose_feature(rotations) if body.num_correctives else identity[:, :0]
        scale = body._corrective_scale(age_offset)
        coefficients = torch.cat((identity, feature if scale is None else scale[:, None] * feature), -1)

        turned, centers = world[..., :3], world[..., 3]
        movers = transforms[:, self.pair_joints]  # (B, K, P, 3, 4)
        # (B, K, 3, 3 P) of rotations side by side, by (K, 3 P, C) of moments below each other.
        wide = movers[..., :3].transpose(2, 3).flatten(-2)
        local = torch.einsum("kpxc,bc->bkpx", self.moments, coefficients)
        moved = (movers[..., :3] @ local[..., None])[..., 0] + movers[..., 3] * self.masses[..., None]
        by_coefficient = torch.einsum("bkxm,kmc->bkxc", wide, self.moments.flatten(1, 2))

        points = moved.sum(2)
        carried = torch.einsum("kpj,bkpx->bkjx", self.below, moved)
        mass = torch.einsum("kpj,kp->kj", self.below, self.masses)
        if self.any_joint:
            at_joint = centers[:, self.joints]
            points = torch.where(self.is_joint[:, None], at_joint, points)
            above = self.path[self.joints]
            carried = torch.where(self.is_joint[:, None, None], above[..., None] * at_joint[:, :, None], carried)
            mass = torch.where(self.is_joint[:, None], above, mass)
        levers = carried - mass[..., None] * centers[:, None]  # (B, K, J, 3)
        axes = turned @ right_jacobian(pose)  # columns: world axes of a change of each component
        by_pose = torch.linalg.cross(axes.mT[:, None], levers[..., None, :]).permute(0, 1, 4, 2, 3)

        split = identity.shape[1]
        steps = torch.einsum("bjxy,cjy->bjxc", turned[:, self.parents], self.rest_steps)
        steps[:, 0] = self.rest_steps[:, 0].T
        center_moves = torch.einsum("ij,bjxc->bixc", self.path, steps)
        frame_moves = center_moves - torch.einsum("bjxy,cjy->bjxc", turned, self.rest_moves)
        by_identity = by_coefficient[..., 1:split] + torch.einsum("kj,bjxc->bkxc", self.joint_masses, frame_moves)
        if self.any_joint:
            by_identity = torch.where(self.is_joint[:, None, None], center_moves[:, self.joints], by_identity)

        count = betas.shape[-1]
        by_age = torch.zeros_like(points)
        if body.age_anchors:
            slopes = age_slopes(age_offset, body.age_anchors)
            by_age = (by_identity[..., count:] * slopes[:, None, None]).sum(-1)
        if body.num_correctives:
            by_feature = by_coefficient[..., split:]
            if scale is not None:
                unscaled = torch.einsum("bkxc,bc->bkx", by_feature, feature)
                by_age = by_age + (body._corrective_scale(torch.ones_like(age_offset)) - 1)[:, None, None] * unscaled
                by_feature = by_feature * scale[:, None, None, None]
            by_pose = by_pose.clone()
            by_pose[..., 1:, :] += torch.einsum(
                "bkxjn,bjnc->bkxjc", by_feature.unflatten(-1, (-1, 9)), _feature_by_pose(rotations[:, 1:], pose[:, 1:])
            )
        return KeypointDerivatives(points + transl[:, None], by_pose, by_identity[..., :count], by_age)


def right_jacobian(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """J with ``R(v + dv) = R(v) exp([J dv]x)`` to first order: ``I - b [v]x + c [v]x^2``.

    b = (1 - cos t) / t^2 and c = (t - sin t) / t^3 with t = |v|; by series near zero.
    """
    squared = (vectors * vectors).sum(-1, keepdim=True)[..., None]
    small = squared < 0.0625
    t = torch.sqrt(torch.where(small, 1.0, squared))
    b = torch.where(small, _series(squared, 2), 2 * torch.sin(t / 2) ** 2 / (t * t))
    c = torch.where(small, _series(squared, 3), (t - torch.sin(t)) / (t * t * t))
    cross = _cross_matrix(vectors)
    identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return identity - b * cross + c * (cross @ cross)


def age_slopes(age_offset: Float[Tensor, "B"], anchors: tuple[float, ...]) -> Float[Tensor, "B A"]:
    """Derivatives of `age_coefficients`, those of the piece above at an anchor."""
    return torch.func.jvp(
        lambda age: age_coefficients(age, anchors), (age_offset,), (torch.ones_like(age_offset),)
    )[1]


def _feature_by_pose(
    rotations: Float[Tensor, "B J 3 3"], vectors: Float[Tensor, "B J 3"]
) -> Float[Tensor, "B J 9 3"]:
    """Derivatives of the rotations' entries, row by row: ``dR = R [J dv]x``."""
    turns = _cross_matrix(right_jacobian(vectors).mT)  # (B, J, 3, 3, 3): one matrix a component of dv
    return (rotations[:, :, None] @ turns).flatten(-2).mT


def _cross_matrix(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))


def _series(squared: Tensor, first: int) -> Tensor:
    """``sum_n (-s)^n / (2 n + first)!``, to 1e-17 for s below 1/16."""
    total = torch.zeros_like(squared)
    for n in range(6, -1, -1):
        total = total * squared + (-1) ** n / math.factorial(2 * n + first)
    return total
