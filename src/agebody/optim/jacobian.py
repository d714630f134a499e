"""How points of a body move with its pose and identity: values and derivatives, in closed form."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from agebody.body import SMPLA, BodyModel
from agebody.engine.deform import pose_feature
from agebody.engine.rowwise import own_precision
from agebody.keypoints import KeypointLayout, get_layout


class KeypointDerivatives(NamedTuple):
    """Points and their derivatives. That by the translation is the identity."""

    points: Float[Tensor, "B K 3"]
    """[m]"""
    pose: Float[Tensor, "B K 3 J 3"]
    """By each joint's axis-angle vector, the root's first [m/rad]."""
    betas: Float[Tensor, "B K 3 N"]
    age_offset: Float[Tensor, "B K 3"]
    """0 where the body has one age."""


class SurfaceRows(NamedTuple):
    """Points, and the derivatives of their places along one direction each."""

    points: Float[Tensor, "B S 3"]
    """[m]"""
    rows: Float[Tensor, "B S P"]
    """By all parameters, in the order of `BodyParameters.vector`."""


class _Derivatives(nn.Module):
    """What both share: the body, and how its age templates' weights change with the age offset."""

    age_knots: Tensor
    age_slopes: Tensor

    def __init__(self, body: BodyModel) -> None:
        super().__init__()
        if getattr(body, "infant", None) is not None:
            raise ValueError("body: expected one body, got two with a switch between them (smil=)")
        self._body = [body]  # in a list: it is no part of this module
        knots, slopes = _age_slopes(body.age_anchors)
        self._register(age_knots=knots, age_slopes=slopes)

    @property
    def body(self) -> BodyModel:
        """The layer whose points these are."""
        return self._body[0]

    def _register(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            tensor = torch.tensor(array)
            dtype = self.body.dtype if tensor.is_floating_point() else torch.int64
            self.register_buffer(name, tensor.to(self.body.device, dtype), persistent=False)

    def _by_age(
        self, age_offset: Float[Tensor, " B"], by_templates: Float[Tensor, "B K D A"]
    ) -> Float[Tensor, "B K D"]:
        """By the age offset, from derivatives by the weights of the age templates."""
        if len(self.age_slopes) == 0:
            return by_templates.sum(-1)
        slopes = self.age_slopes[torch.bucketize(age_offset.contiguous(), self.age_knots, right=True)]
        return (by_templates @ slopes[:, None, :, None])[..., 0]


class KeypointJacobian(_Derivatives):
    """Keypoints of one layout on one body, with their derivatives in axis-angle pose, betas and age offset.

    A turn w of joint j moves what it carries about its centre, ``dp = w x (p - t_j)``, with the share of p
    that hangs on j. With the pose held, points are linear in the coefficients of the identity, and their
    derivatives by these linear in the rotations: one product with a constant. A pose blend shape adds what
    it does to the moments, ``sum_i R_i m_i``. No mesh is made.

    Args:
        body: the layer, in the precision and on the device that it has now. It is of one part: an `SMPLA`
            that hands over to an infant body is two.
        layout: the points.

    Raises:
        ValueError: the body consists of two.
        AssetError: the body lacks what the layout needs.
    """

    pair_joints: Tensor
    masses: Tensor
    moments: Tensor
    sums: Tensor
    levers: Tensor
    moves: Tensor
    root_moves: Tensor
    order: Tensor

    def __init__(self, body: BodyModel, layout: str | KeypointLayout) -> None:
        super().__init__(body)
        self.layout = get_layout(layout)
        asset = body.asset
        joints, regressor = self.layout.resolve(asset)
        used = np.unique(regressor.indices)
        rows = regressor[:, used].toarray().astype(np.float64)
        weights = asset.dense_weights()[used].astype(np.float64)
        directions = np.concatenate((body._identity_directions(), body._corrective_directions()))
        directions = directions[:, used].astype(np.float64)

        # Points in order of how many joints move them, so that those alike stand side by side.
        moved_by = (rows != 0).astype(float) @ (weights != 0) > 0
        order = np.argsort(moved_by.sum(1), kind="stable")
        place, joint = np.nonzero(moved_by[order])
        point = order[place]
        pair_weights = rows[point] * weights[:, joint].T
        masses = pair_weights.sum(1)
        moments = np.einsum("pv,cvx->cpx", pair_weights, directions)
        sums, levers, hanging = _sums(asset.parents, joints, point, joint, masses)
        moves, root_moves = _identity_moves(
            asset.parents, joints, point, joint, moments, hanging, _rest_joints(body)
        )
        self._register(
            pair_joints=joint, masses=masses[:, None], moments=moments.reshape(len(moments), -1),
            sums=sums, levers=levers[order].reshape(-1, sums.shape[1]), moves=moves, root_moves=root_moves,
            order=np.argsort(order),
        )  # fmt: skip
        self._groups = list(_groups(moved_by.sum(1)[order]))
        self._in_order = bool((order == np.arange(len(order))).all())

    def forward(
        self,
        pose: Float[Tensor, "B J 3"],
        betas: Float[Tensor, "B N"],
        age_offset: Float[Tensor, " B"],
        transl: Float[Tensor, "B 3"],
    ) -> KeypointDerivatives:
        """Points and derivatives.

        Args:
            pose: axis-angle vectors of all joints, the root's first [rad].
            betas: as many as the body uses.
            age_offset: not looked at where the body has one age.
            transl: [m].
        """
        body = self.body
        with own_precision(body.device):
            motion = _move(body, pose, betas, age_offset, changes=bool(self._groups))
            batch, num_points, num_pairs = len(pose), len(self.layout), len(self.pair_joints)
            num_joints, count = body.num_joints, betas.shape[-1]
            movers = motion.transforms.index_select(1, self.pair_joints)
            turned = movers[..., :3]
            local = (motion.coefficients @ self.moments).view(batch, num_pairs, 3, 1)
            moved = (turned @ local)[..., 0] + movers[..., 3] * self.masses
            places = torch.cat((moved, motion.centers), 1).mT.reshape(3 * batch, num_pairs + num_joints)
            points = (places @ self.sums.mT).view(batch, 3, num_points).mT + transl[:, None]

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
            return KeypointDerivatives(points, by_pose, by_identity[..., :count], by_age)

    def _add_correctives(
        self,
        by_pose: Float[Tensor, "B K 3 P"],
        changes: Float[Tensor, "B M 3 9"],
        turned: Float[Tensor, "B Q 3 3"],
    ) -> None:
        """Adds what the pose blend shapes do to the points, which stand in order of their pairs."""
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
    """Points of the surface of one body, each held fixed on its triangle, with their derivatives.

    Args:
        body: as in `KeypointJacobian`.

    Raises:
        ValueError: the body consists of two.
    """

    faces: Tensor
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
        by_vertex = lambda directions: directions.transpose(1, 2, 0).reshape(3 * asset.num_vertices, -1)  # noqa: E731
        self._register(
            faces=asset.faces, skin_joints=asset.skin_joints, skin_weights=asset.skin_weights,
            directions=by_vertex(body._identity_directions()),
            corrective_directions=by_vertex(body._corrective_directions()),
            above=_above(asset.parents), parents=asset.parents[1:], rest_moves=_rest_joints(body)[1:],
        )  # fmt: skip

    def forward(
        self,
        pose: Float[Tensor, "B J 3"],
        betas: Float[Tensor, "B N"],
        age_offset: Float[Tensor, " B"],
        transl: Float[Tensor, "B 3"],
        faces: Int[Tensor, "B S"] | None = None,
        barycentric: Float[Tensor, "B S 3"] | None = None,
        *,
        vertices: Int[Tensor, "B S"] | None = None,
        correctives: bool = True,
    ) -> KeypointDerivatives:
        """Points and derivatives.

        Args:
            pose: axis-angle vectors of all joints, the root's first [rad].
            betas: as many as the body uses.
            age_offset: not looked at where the body has one age.
            transl: [m].
            faces: the triangle of each point.
            barycentric: its share of each corner; it need not sum to 1.
            vertices: the points, in place of ``faces`` and ``barycentric``.
            correctives: whether derivatives count the change of the pose blend shapes. Without it they are
                approximate and cheaper; points are exact in any case.

        Raises:
            ValueError: neither or both of ``faces`` with ``barycentric`` and ``vertices`` are given.
        """
        corners, shares = self._corners(faces, barycentric, vertices, pose)
        axes = torch.eye(3, dtype=pose.dtype, device=pose.device).expand(*corners.shape[:2], 3, 3)
        found = self._find(pose, betas, age_offset, corners, shares, axes, correctives)
        return found._replace(points=found.points + transl[:, None])

    def rows(
        self,
        pose: Float[Tensor, "B J 3"],
        betas: Float[Tensor, "B N"],
        age_offset: Float[Tensor, " B"],
        transl: Float[Tensor, "B 3"],
        faces: Int[Tensor, "B S"] | None = None,
        barycentric: Float[Tensor, "B S 3"] | None = None,
        *,
        along: Float[Tensor, "B S 3"],
        vertices: Int[Tensor, "B S"] | None = None,
        correctives: bool = True,
    ) -> SurfaceRows:
        """Points, and what moves each along its own direction: rows of point-to-plane distances.

        The product of ``along`` with the whole derivative, in a third of its time and memory.

        Args:
            pose: as in `forward`, and so are all others.
            betas: see there.
            age_offset: see there.
            transl: see there.
            faces: see there.
            barycentric: see there.
            along: direction of each point, held fixed.
            vertices: see there.
            correctives: see there.

        Raises:
            ValueError: as in `forward`.
        """
        corners, shares = self._corners(faces, barycentric, vertices, pose)
        found = self._find(pose, betas, age_offset, corners, shares, along[:, :, None], correctives)
        parts = found.pose[:, :, 0].flatten(-2), found.betas[:, :, 0], found.age_offset, along
        return SurfaceRows(found.points + transl[:, None], torch.cat(parts, -1))

    def _corners(
        self, faces: Tensor | None, barycentric: Tensor | None, vertices: Tensor | None, like: Tensor
    ) -> tuple[Int[Tensor, "B S n"], Float[Tensor, "B S n"]]:
        """The vertices that make up each point, and the share of each."""
        given = faces is not None, barycentric is not None, vertices is not None
        if given == (False, False, True):
            assert vertices is not None
            return vertices[..., None], torch.ones_like(vertices[..., None], dtype=like.dtype)
        if given != (True, True, False):
            raise ValueError("faces: expected faces with barycentric, or vertices alone")
        assert faces is not None
        assert barycentric is not None
        return self.faces[faces], barycentric

    def _find(
        self,
        pose: Tensor,
        betas: Tensor,
        age_offset: Tensor,
        corners: Tensor,
        shares: Tensor,
        along: Float[Tensor, "B S D 3"],
        correctives: bool,
    ) -> KeypointDerivatives:
        """Points without the translation, and their derivatives along D directions each."""
        body = self.body
        with own_precision(body.device):
            motion = _move(body, pose, betas, age_offset, changes=correctives)
            # What a joint's place adds to the frames below it: (R_parent - R_j) rest_j.
            still = torch.eye(3, dtype=pose.dtype, device=pose.device).expand(len(pose), 1, 3, 3)
            parents = torch.cat((still, motion.turned[:, self.parents]), 1)
            frame_moves = torch.einsum("bjxy,cjy->bjxc", parents - motion.turned, self.rest_moves)
            parts = [
                self._find_piece(
                    motion.of(bodies), frame_moves[bodies], betas.shape[-1], age_offset[bodies],
                    corners[bodies], shares[bodies], along[bodies],
                )
                for bodies in _pieces(len(pose), corners.shape[1] * along.shape[2])
            ]  # fmt: skip
            if len(parts) == 1:
                return parts[0]
            return KeypointDerivatives(*map(torch.cat, zip(*parts, strict=True)))

    def _find_piece(
        self,
        motion: _Motion,
        frame_moves: Float[Tensor, "B J 3 I"],
        num_betas: int,
        age_offset: Tensor,
        corners: Int[Tensor, "B S n"],
        shares: Float[Tensor, "B S n"],
        along: Float[Tensor, "B S D 3"],
    ) -> KeypointDerivatives:
        """Of bodies of which there are few enough to be worked on together."""
        batch, num_points, n = corners.shape
        turned, points, carried = self._carry(motion, corners, shares)
        mass = carried[..., 3, :]
        levers = carried[..., :3, :] - mass[..., None, :] * motion.centers.mT[:, None]
        # n (w x l) = w (l x n)
        torques = torch.linalg.cross(levers[:, :, None], along[..., None], dim=3)
        by_pose = torch.einsum("bsdxj,bjxc->bsdjc", torques, motion.axes)

        pulled = along @ turned.transpose(2, 3).flatten(-2)  # (B, S, D, 3 n): along, in the rest pose
        entries = (3 * corners[..., None] + torch.arange(3, device=corners.device)).flatten(2)
        entries = entries[:, :, None].expand(pulled.shape).reshape(-1, 3 * n)
        pulled = pulled.reshape(-1, 3 * n)

        def contract(directions: Tensor) -> Tensor:
            found = nn.functional.embedding_bag(entries, directions, per_sample_weights=pulled, mode="sum")
            return found.view(*along.shape[:3], directions.shape[1])

        moves = (mass @ frame_moves.flatten(2)).view(batch, num_points, 3, frame_moves.shape[-1])
        by_identity = contract(self.directions)[..., 1:] + along @ moves
        by_age = self._by_age(age_offset, by_identity[..., num_betas:])
        if motion.feature_changes is not None:
            by_feature = contract(self.corrective_directions)
            by_pose[..., 1:, :] += torch.einsum(
                "bsdjm,bjcm->bsdjc", by_feature.unflatten(-1, (-1, 9)), motion.feature_changes
            )
            if motion.feature_growth is not None:
                by_age = by_age + (by_feature @ motion.feature_growth[:, None, :, None])[..., 0]
        return KeypointDerivatives(points, by_pose, by_identity[..., :num_betas], by_age)

    def _carry(
        self, motion: _Motion, corners: Int[Tensor, "B S n"], shares: Float[Tensor, "B S n"]
    ) -> tuple[Float[Tensor, "B S n 3 3"], Float[Tensor, "B S 3"], Float[Tensor, "B S 4 J"]]:
        """Points, and what of them hangs on the joints.

        Returns:
            the linear part of each corner's blended transform, times its share; the points; and of each
            joint what of the point it carries, as the sum of weighed places and their weight.
        """
        (batch, num_points, n), width = corners.shape, self.skin_joints.shape[1]
        num_joints, num_vertices = self.body.num_joints, self.body.num_vertices
        everyone = torch.arange(batch, device=corners.device)[:, None]
        identity, feature = motion.coefficients.tensor_split((self.directions.shape[1],), 1)
        surface = torch.addmm(identity @ self.directions.mT, feature, self.corrective_directions.mT)
        rest = surface.view(-1, 3).index_select(0, (corners.flatten(1) + num_vertices * everyone).flatten())
        rest = rest.view(batch, num_points, n, 1, 3, 1)

        flat = corners.flatten()
        joints = self.skin_joints.index_select(0, flat)
        weights = self.skin_weights.index_select(0, flat) * shares.reshape(-1, 1)
        frames = motion.transforms.reshape(batch * num_joints, 12)
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


class _Motion(NamedTuple):
    """Bodies in a pose, and how their parts move."""

    coefficients: Float[Tensor, "B C"]
    """Of the identity, then of the pose blend shapes."""
    turned: Float[Tensor, "B J 3 3"]
    """Rotation of each joint's frame in the world."""
    centers: Float[Tensor, "B J 3"]
    transforms: Float[Tensor, "B J 3 4"]
    """From the rest pose to the posed body."""
    axes: Float[Tensor, "B J 3 3"]
    """Columns: world axes about which a change of each component of a joint's vector turns."""
    feature_changes: Float[Tensor, "B M 3 9"] | None
    """By each component of a joint's vector, the root's apart: of the coefficients that this joint has."""
    feature_growth: Float[Tensor, "B F"] | None
    """Derivative of these coefficients by the age offset, where there is one."""

    def of(self, bodies: slice) -> _Motion:
        """Some of the bodies."""
        parts = (None if part is None else part[bodies] for part in self)
        return _Motion(*cast(tuple[Tensor, ...], tuple(parts)))


def _move(body: BodyModel, pose: Tensor, betas: Tensor, age_offset: Tensor, *, changes: bool) -> _Motion:
    """With what changes the pose blend shapes, or without."""
    coefficients, rest_joints = body.identity(betas, age_offset)
    rotations, world, transforms = body.tree.pose(pose, "axis_angle", rest_joints)
    turned, inner = world[..., :3], right_jacobian(pose)
    feature_changes, growth = None, None
    if body.num_correctives:
        feature, scale = pose_feature(rotations), body._corrective_scale(age_offset)
        if changes:
            # dR = R [w]x with w = J dv: each row of R, crossed with w.
            columns = inner[:, 1:].mT[:, :, :, None]
            feature_changes = torch.linalg.cross(rotations[:, 1:, None], columns).flatten(-2)
        if scale is not None:
            assert isinstance(body, SMPLA)
            if feature_changes is not None:
                growth = feature * (body.infant_corrective_scale - 1)
                feature_changes = feature_changes * scale[:, None, None, None]
            feature = feature * scale[:, None]
        coefficients = torch.cat((coefficients, feature), -1)
    return _Motion(coefficients, turned, world[..., 3], transforms, turned @ inner, feature_changes, growth)


def right_jacobian(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """J with ``R(v + dv) = R(v) exp([J dv]x)`` to first order: ``a I - b [v]x + c v v^T``.

    With t = |v|: a = sin t / t, b = (1 - cos t) / t^2, c = (1 - a) / t^2, which is a series near zero.
    """
    squared = (vectors * vectors).sum(-1, keepdim=True)
    t = torch.sqrt(squared + torch.finfo(vectors.dtype).tiny)
    half = torch.sin(t / 2) / t
    a = torch.sin(t) / t
    c = torch.where(squared < 0.0625, _series(squared), (1 - a) / (t * t))
    straight = torch.cat((a, (-2 * half * half) * vectors), -1) @ _spread(vectors.dtype, vectors.device)
    return straight.unflatten(-1, (3, 3)) + (c * vectors)[..., :, None] * vectors[..., None, :]


def _age_slopes(anchors: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Inner knots of `age_coefficients`, and its derivatives between them, (pieces, A)."""
    knots = sorted([0.0, *anchors])
    slopes = np.zeros((len(knots) - 1, len(knots)))
    for piece, (low, high) in enumerate(itertools.pairwise(knots)):
        slopes[piece, piece : piece + 2] = -1 / (high - low), 1 / (high - low)
    return np.array(knots[1:-1]), slopes[:, [knots.index(anchor) for anchor in anchors]]


def _cross(
    first: Float[Tensor, "B 3 *#rest"], second: Float[Tensor, "B 3 *#rest"]
) -> Float[Tensor, "B K 3 P"]:
    """The cross product over the second dimension, which comes out third."""
    columns = []
    for x in range(3):
        y, z = (x + 1) % 3, (x + 2) % 3
        columns.append(torch.addcmul(first[:, y] * second[:, z], first[:, z], second[:, y], value=-1))
    return torch.stack(columns, 2)


def _rest_joints(body: BodyModel) -> np.ndarray:
    """(I, J, 3) in float64: at rest, and its change with each coefficient of the identity."""
    directions = body._identity_directions().astype(np.float64)
    return np.stack([body.asset.joint_regressor @ direction for direction in directions])


def _above(parents: np.ndarray) -> np.ndarray:
    """(J, J): 1 at [i, j] where j is i or above it."""
    found = np.eye(len(parents))
    for joint in range(1, len(parents)):
        found[joint] += found[parents[joint]]
    return found


def _sums(
    parents: np.ndarray, joints: np.ndarray, point: np.ndarray, joint: np.ndarray, masses: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How points and levers are summed from the moved moments of Q pairs and the centres of J joints.

    Args:
        parents: of the joints.
        joints: (K,) which joint each point is, or -1.
        point: (Q,) of each pair.
        joint: (Q,) of each pair.
        masses: (Q,) of each pair.

    Returns:
        (K, Q + J) for the points; (K, J, Q + J) for the lever of each point about each joint, from the
        joint's centre to what hangs on it; and (K, J) how much that weighs.
    """
    above, num_points, num_pairs = _above(parents), len(joints), len(point)
    sums = np.zeros((num_points, num_pairs + len(parents)))
    sums[point, np.arange(num_pairs)] = 1
    levers = np.zeros((num_points, *above.shape[:1], sums.shape[1]))
    levers[point, :, np.arange(num_pairs)] = above[joint]
    hanging = np.zeros((num_points, len(parents)))
    np.add.at(hanging, point, masses[:, None] * above[joint])
    for k in np.flatnonzero(joints >= 0):
        sums[k, num_pairs + joints[k]] = 1
        hanging[k] = above[joints[k]]
        levers[k, :, num_pairs + joints[k]] = hanging[k]
    each = np.arange(len(parents))
    levers[:, each, num_pairs + each] -= hanging
    return sums, levers, hanging


def _identity_moves(
    parents: np.ndarray, joints: np.ndarray, point: np.ndarray, joint: np.ndarray,
    moments: np.ndarray, hanging: np.ndarray, rest: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Derivatives of points by coefficients of the identity, as a linear map of the joints' rotations.

    By the rest surface ``sum_i R_i m_i``, and by the rest joints ``sum_j h_j (R_parent(j) - R_j) rest_j``,
    where h_j of a point hangs on j: what the joint's place adds to the frames below it.

    Returns:
        (3 J, K I) and, what is no product with a rotation, (3, K I).
    """
    count = len(rest) - 1
    moves = np.zeros((len(parents), 3, len(joints), count))
    for pair, (k, j) in enumerate(zip(point, joint, strict=True)):
        moves[j, :, k] += moments[1 : count + 1, pair].T
    for k in np.flatnonzero(joints >= 0):
        moves[joints[k], :, k] += rest[1:, joints[k]].T
    places = np.einsum("kj,cjx->jxkc", hanging, rest[1:])
    moves -= places
    for j, parent in enumerate(parents[1:], start=1):
        moves[parent] += places[j]
    return moves.reshape(3 * len(parents), -1), places[0].reshape(3, -1)


def _groups(counts: np.ndarray) -> Iterator[tuple[slice, slice, int]]:
    """Of ascending numbers of pairs a point: which points have one number, their pairs, and the number."""
    first_pair = 0
    for width in np.unique(counts[counts > 0]):
        points = slice(int(np.searchsorted(counts, width)), int(np.searchsorted(counts, width, side="right")))
        last_pair = first_pair + int(width) * (points.stop - points.start)
        yield points, slice(first_pair, last_pair), int(width)
        first_pair = last_pair


def _pieces(batch: int, entries: int) -> Iterator[slice]:
    """Bodies to be worked on together: as many as memory of a bounded size is for, and one at least."""
    step = max(1, ENTRIES // max(entries, 1))
    for first in range(0, max(batch, 1), step):
        yield slice(first, first + step)


ENTRIES = 8192
"""Points times directions that are worked on together: about 40 MB."""


@functools.cache
def _spread(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "4 9"]:
    """What makes ``a I + [u]x`` of (a, u)."""
    turns = -np.cross(np.eye(3)[:, None], np.eye(3))
    return torch.from_numpy(np.concatenate((np.eye(3)[None], turns)).reshape(4, 9)).to(device, dtype)


def _series(squared: Tensor) -> Tensor:
    """``(t - sin t) / t^3 = sum_n (-s)^n / (2 n + 3)!`` with s = t^2, to 1e-17 for s below 1/16."""
    total = torch.full_like(squared, -1 / math.factorial(13))
    for n in range(4, -1, -1):
        total = (-1) ** n / math.factorial(2 * n + 3) + total * squared
    return total
