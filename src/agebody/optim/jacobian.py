"""Derivatives of points of a body by its pose and identity, in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.engine.batched import own_precision
from agebody.engine.deform import age_slopes
from agebody.engine.exact import register_constants
from agebody.engine.kinematics import ancestors
from agebody.engine.points import identity_moves, lever_sums
from agebody.engine.trees import take_rows
from agebody.keypoints import KeypointLayout, get_layout
from agebody.optim.posed import PosedBodies, Turns, pose_bodies


class KeypointDerivatives(NamedTuple):
    """Points and their derivatives."""

    points: Float[Tensor, "B K 3"]
    """[m]"""
    pose: Float[Tensor, "B K 3 J 3"]
    """By the axis-angle vector of each joint, the root's first [m/rad]."""
    betas: Float[Tensor, "B K 3 N"]
    age_offset: Float[Tensor, "B K 3"]
    """0 for a body of one age."""
    transl: Float[Tensor, "B K"]
    """By the translation: this times the identity matrix, 1 unless a regressor's row has another sum."""


class SurfaceRows(NamedTuple):
    """Points, and the derivatives of each along one direction."""

    points: Float[Tensor, "B S 3"]
    """[m]"""
    rows: Float[Tensor, "B S P"]
    """By all parameters, in the order of `BodyParameters.vector`."""


class _Derivatives(nn.Module):
    """Common base of keypoints and surface: the body, and the slopes of its age coefficients."""

    age_knots: Tensor
    age_slopes: Tensor

    def __init__(self, body: BodyModel) -> None:
        super().__init__()
        expect_body(body, single=True)
        self._body = [body]  # in a list, so that it is not a submodule
        knots, slopes = age_slopes(body.age_anchors)
        register_constants(self, {"age_knots": knots, "age_slopes": slopes}, body.dtype, body.device)

    @property
    def body(self) -> BodyModel:
        """The layer."""
        return self._body[0]

    def _by_age(
        self, age_offset: Float[Tensor, " B"], by_templates: Float[Tensor, "B K D A"]
    ) -> Float[Tensor, "B K D"]:
        """Return the derivative by the age offset, given those by the age coefficients."""
        if len(self.age_slopes) == 0:
            return by_templates.sum(-1)
        slopes = self.age_slopes[torch.bucketize(age_offset.contiguous(), self.age_knots, right=True)]
        return (by_templates @ slopes[:, None, :, None])[..., 0]


class KeypointJacobian(_Derivatives):
    """Keypoints of one layout on one body, with their derivatives by axis-angle pose, betas and age offset.

    A rotation by w about the centre t_j of a joint moves the part of p below it by ``dp = w x (p - t_j)``.
    For a fixed pose, points are affine in the coefficients of the identity, and their derivatives by these
    are linear in the rotations: one product with a constant matrix. Pose blend shapes change the moments,
    which adds ``sum_i R_i dm_i``. No mesh is computed.

    Precision and device of the layer are fixed here. An `SMPLA` with a second, infant body is refused.

    Raises:
        AssetError: the body lacks what the layout needs.
    """

    pair_joints: Tensor
    masses: Tensor
    moments: Tensor
    row_sums: Tensor
    sums: Tensor
    levers: Tensor
    moves: Tensor
    root_moves: Tensor
    order: Tensor

    def __init__(self, body: BodyModel, layout: str | KeypointLayout) -> None:
        super().__init__(body)
        self.layout = get_layout(layout)
        tables, parents = body.tables(self.layout), body.asset.parents
        order = np.argsort(tables.counts, kind="stable")  # in which the points have their pairs
        sums, levers, hanging = lever_sums(parents, tables)
        moves, root_moves = identity_moves(parents, tables, hanging, body.joint_directions)
        arrays = {
            "pair_joints": tables.pair_joints,
            "masses": tables.masses[:, None],
            "moments": tables.moments.reshape(len(tables.moments), -1),
            "row_sums": tables.row_sums[None],
            "sums": sums,
            "levers": levers[order].reshape(-1, sums.shape[1]),
            "moves": moves,
            "root_moves": root_moves,
            "order": np.argsort(order),
        }
        register_constants(self, arrays, body.dtype, body.device)
        self._groups = list(_groups(tables.counts[order]))
        self._in_order = bool((order == np.arange(len(order))).all())

    def forward(
        self,
        pose: Float[Tensor, "B J 3"] | Turns,
        betas: Float[Tensor, "B N"],
        age_offset: Float[Tensor, " B"],
        transl: Float[Tensor, "B 3"],
    ) -> KeypointDerivatives:
        """Return points and derivatives.

        Args:
            pose: axis-angle vectors of all joints, the root's first [rad].
            betas: as many as the body uses.
            age_offset: ignored by a body of one age.
            transl: [m].
        """
        body = self.body
        with own_precision(body.device):
            motion = pose_bodies(body, pose, betas, age_offset, changes=bool(self._groups))
            batch, num_points, num_pairs = len(betas), len(self.layout), len(self.pair_joints)
            num_joints, count = body.num_joints, betas.shape[-1]
            movers = motion.transforms.index_select(1, self.pair_joints)
            turned = movers[..., :3]
            local = (motion.coefficients @ self.moments).view(batch, num_pairs, 3, 1)
            moved = (turned @ local)[..., 0] + movers[..., 3] * self.masses
            places = torch.cat((moved, motion.centers), 1).mT.reshape(3 * batch, num_pairs + num_joints)
            points = (places @ self.sums.mT).view(batch, 3, num_points).mT
            points = points + transl[:, None] * self.row_sums[..., None]

            arms = (places @ self.levers.mT).view(batch, 3, num_points, num_joints, 1)
            arms = arms.expand(-1, -1, -1, -1, 3).reshape(batch, 3, num_points, 3 * num_joints)
            axes = motion.axes.transpose(1, 2).reshape(batch, 3, 1, 3 * num_joints)
            by_pose = _cross(axes, arms)
            if motion.feature_changes is not None:
                self._add_correctives(by_pose, motion.feature_changes, turned)
            if not self._in_order:
                by_pose = by_pose.index_select(1, self.order)

            rotations = motion.turned.transpose(1, 2).reshape(3 * batch, 3 * num_joints)
            by_identity = (rotations @ self.moves).view(batch, 3, self.moves.shape[1]) + self.root_moves
            by_identity = by_identity.view(batch, 3, num_points, count + len(body.age_anchors)).transpose(
                1, 2
            )
            by_age = self._by_age(age_offset, by_identity[..., count:])
            if motion.feature_growth is not None:
                local = motion.feature_growth @ self.moments[-body.num_correctives :]
                grown = (turned @ local.view(batch, num_pairs, 3, 1))[..., 0]
                by_age = by_age + self.sums[:, :num_pairs] @ grown
            by_pose = by_pose.view(batch, num_points, 3, num_joints, 3)
            by_transl = self.row_sums.expand(batch, -1)
            return KeypointDerivatives(points, by_pose, by_identity[..., :count], by_age, by_transl)

    def _add_correctives(
        self,
        by_pose: Float[Tensor, "B K 3 P"],
        changes: Float[Tensor, "B M 3 9"],
        turned: Float[Tensor, "B Q 3 3"],
    ) -> None:
        """Add the effect of the pose blend shapes, in place, to points in the order of their pairs."""
        batch, num_moving = changes.shape[:2]
        moments = self.moments[-9 * num_moving :].view(num_moving, 9, self.moments.shape[1])
        changes = changes.transpose(0, 1).reshape(num_moving, 3 * batch, 9)
        for points, pairs, width in self._groups:
            num = points.stop - points.start
            moves = torch.bmm(changes, moments[:, :, 3 * pairs.start : 3 * pairs.stop])
            moves = moves.view(num_moving, batch, 3, 3 * width * num).permute(1, 3, 0, 2)
            moves = moves.reshape(batch * num, 3 * width, 3 * num_moving)
            rotations = turned[:, pairs].unflatten(1, (num, width)).transpose(2, 3)
            found = torch.bmm(rotations.reshape(batch * num, 3, 3 * width), moves)
            by_pose[:, points, :, 3:] += found.view(batch, num, 3, 3 * num_moving)


class SurfaceJacobian(_Derivatives):
    """Points on the surface of one body, each fixed on its triangle, with their derivatives.

    Args:
        body: as in `KeypointJacobian`.
    """

    directions: Tensor
    corrective_directions: Tensor
    skin_joints: Tensor
    skin_weights: Tensor
    above: Tensor
    parents: Tensor
    rest_moves: Tensor

    def __init__(self, body: BodyModel) -> None:
        super().__init__(body)
        asset = body.asset
        rows = 3 * asset.num_vertices
        arrays = {
            "skin_joints": asset.skin_joints,
            "skin_weights": asset.skin_weights,
            "directions": body.identity_directions.transpose(1, 2, 0).reshape(rows, -1),
            "corrective_directions": body.corrective_directions.transpose(1, 2, 0).reshape(rows, -1),
            "above": ancestors(asset.parents),
            "parents": asset.parents[1:],
            "rest_moves": body.joint_directions[1:],
        }
        register_constants(self, arrays, body.dtype, body.device)

    def posed(
        self,
        pose: Float[Tensor, "B J 3"] | Turns,
        betas: Float[Tensor, "B N"],
        age_offset: Float[Tensor, " B"],
        transl: Float[Tensor, "B 3"],
    ) -> PosedSurface:
        """Return the posed bodies, which all their points share; arguments as in `KeypointJacobian`."""
        with own_precision(self.body.device):
            motion = pose_bodies(self.body, pose, betas, age_offset, changes=True)
            # A joint's place shifts the frames below it by (R_parent - R_j) rest_j.
            still = torch.eye(3, dtype=betas.dtype, device=betas.device).expand(len(betas), 1, 3, 3)
            parents = torch.cat((still, motion.turned[:, self.parents]), 1)
            frame_moves = torch.einsum("bjxy,cjy->bjxc", parents - motion.turned, self.rest_moves)
            identity, feature = motion.coefficients.tensor_split((self.directions.shape[1],), 1)
            rest = torch.addmm(identity @ self.directions.mT, feature, self.corrective_directions.mT)
            rest = rest.unflatten(1, (-1, 3))
            return PosedSurface(motion, frame_moves, rest, betas.shape[-1], age_offset, transl)

    def rows(
        self,
        posed: PosedSurface,
        corners: Int[Tensor, "B S n"],
        shares: Float[Tensor, "B S n"] | None = None,
        *,
        along: Float[Tensor, "B S 3"],
    ) -> SurfaceRows:
        """Return points, and the derivative of each along its own direction, as in point-to-plane distances.

        Args:
            posed: bodies of `posed`, which may serve several sets of points.
            corners: the vertices of which each point is a weighted sum, such as those of its triangle.
            shares: their weights, of any sum; 1 if None.
            along: direction of each point, a constant.
        """
        shares = torch.ones_like(corners, dtype=along.dtype) if shares is None else shares
        with own_precision(self.body.device):
            parts = [
                self._piece(*take_rows((posed, corners, shares, along), rows))
                for rows in _pieces(len(corners), corners.shape[1])
            ]
            return parts[0] if len(parts) == 1 else SurfaceRows(*map(torch.cat, zip(*parts, strict=True)))

    def _piece(
        self,
        posed: PosedSurface,
        corners: Int[Tensor, "B S n"],
        shares: Float[Tensor, "B S n"],
        along: Float[Tensor, "B S 3"],
    ) -> SurfaceRows:
        """Compute `rows` for a piece of the batch that fits into memory."""
        motion, frame_moves, num_betas = posed.motion, posed.frame_moves, posed.num_betas
        batch, num_points, n = corners.shape
        turned, points, carried = self._carry(posed, corners, shares)
        mass = carried[..., 3, :]
        levers = carried[..., :3, :] - mass[..., None, :] * motion.centers.mT[:, None]
        # n (w x l) = w (l x n)
        by_pose = torch.einsum(
            "bsxj,bjxc->bsjc", torch.linalg.cross(levers, along[..., None], dim=2), motion.axes
        )

        row = along[:, :, None]
        pulled = (row @ turned.transpose(2, 3).flatten(-2)).view(-1, 3 * n)  # along, in the rest pose
        entries = (3 * corners[..., None] + torch.arange(3, device=corners.device)).view(-1, 3 * n)

        def contract(directions: Tensor) -> Tensor:
            found = nn.functional.embedding_bag(entries, directions, per_sample_weights=pulled, mode="sum")
            return found.view(batch, num_points, directions.shape[1])

        moves = (mass @ frame_moves.flatten(2)).view(batch, num_points, 3, frame_moves.shape[-1])
        by_identity = contract(self.directions)[..., 1:] + (row @ moves)[:, :, 0]
        by_age = self._by_age(posed.age_offset, by_identity[:, :, None, num_betas:])
        if motion.feature_changes is not None:
            by_feature = contract(self.corrective_directions)
            changes = by_feature.unflatten(-1, (-1, 9))
            by_pose[..., 1:, :] += torch.einsum("bsjm,bjcm->bsjc", changes, motion.feature_changes)
            if motion.feature_growth is not None:
                by_age = by_age + by_feature @ motion.feature_growth[..., None]
        mass = shares.sum(-1, keepdim=True)
        parts = by_pose.flatten(-2), by_identity[..., :num_betas], by_age, along * mass
        return SurfaceRows(points + posed.transl[:, None] * mass, torch.cat(parts, -1))

    def _carry(
        self, posed: PosedSurface, corners: Int[Tensor, "B S n"], shares: Float[Tensor, "B S n"]
    ) -> tuple[Float[Tensor, "B S n 3 3"], Float[Tensor, "B S 3"], Float[Tensor, "B S 4 J"]]:
        """Return points without the translation, and the part of each that moves with each joint.

        Returns:
            The linear part of the blended transform of each corner, times its weight; the points; and for
            each joint the sums of the weighted places below it, and of their weights.
        """
        (batch, num_points, n), width = corners.shape, self.skin_joints.shape[1]
        num_joints, num_vertices = self.body.num_joints, self.body.num_vertices
        everyone = torch.arange(batch, device=corners.device)[:, None]
        rest = posed.rest.reshape(-1, 3)
        rest = rest.index_select(0, (corners.flatten(1) + num_vertices * everyone).flatten())
        rest = rest.view(batch, num_points, n, 1, 3, 1)

        flat = corners.flatten()
        joints = self.skin_joints.index_select(0, flat)
        weights = self.skin_weights.index_select(0, flat) * shares.reshape(-1, 1)
        frames = posed.motion.transforms.reshape(batch * num_joints, 12)
        places = joints.view(batch, num_points * n * width) + num_joints * everyone
        movers = frames.index_select(0, places.flatten())
        movers = (movers * weights.view(-1, 1)).view(batch, num_points, n, width, 3, 4)
        moved = movers[..., 3]
        for axis in range(3):
            moved = torch.addcmul(moved, movers[..., axis], rest[..., axis, :])
        above = self.above.index_select(0, joints.flatten()).view(batch, num_points, n * width, num_joints)
        weighed = torch.cat((moved, weights.view(batch, num_points, n, width, 1)), -1)
        weighed = weighed.view(batch, num_points, n * width, 4)
        return movers[..., :3].sum(3), weighed[..., :3].sum(2), weighed.mT @ above


class PosedSurface(NamedTuple):
    """B posed bodies, from which the derivatives of their points are computed."""

    motion: PosedBodies
    frame_moves: Float[Tensor, "B J 3 I"]
    """Derivatives of the translation of each joint's transform by the identity."""
    rest: Float[Tensor, "B V 3"]
    """Vertices in the rest pose, with pose blend shapes [m]."""
    num_betas: int
    age_offset: Float[Tensor, " B"]
    transl: Float[Tensor, "B 3"]


def _cross(
    first: Float[Tensor, "B 3 *#rest"], second: Float[Tensor, "B 3 *#rest"]
) -> Float[Tensor, "B K 3 P"]:
    """Return the cross product over the second dimension, as the third dimension."""
    columns = []
    for x in range(3):
        y, z = (x + 1) % 3, (x + 2) % 3
        columns.append(torch.addcmul(first[:, y] * second[:, z], first[:, z], second[:, y], value=-1))
    return torch.stack(columns, 2)


def _groups(counts: np.ndarray) -> Iterator[tuple[slice, slice, int]]:
    """Yield the points that have the same number of pairs, their pairs, and that number."""
    first_pair = 0
    for width in np.unique(counts[counts > 0]):
        points = slice(int(np.searchsorted(counts, width)), int(np.searchsorted(counts, width, side="right")))
        last_pair = first_pair + int(width) * (points.stop - points.start)
        yield points, slice(first_pair, last_pair), int(width)
        first_pair = last_pair


def _pieces(batch: int, entries: int) -> Iterator[slice]:
    """Yield pieces of the batch of at most ``ENTRIES`` entries, and of at least one body."""
    step = max(1, ENTRIES // max(entries, 1))
    for first in range(0, max(batch, 1), step):
        yield slice(first, first + step)


ENTRIES = 8192
"""Points of one piece: about 40 MB."""
