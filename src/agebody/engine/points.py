"""Keypoints of a posed body: from the joints that carry them, without a mesh, and from an existing mesh."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from agebody.assets.asset import BodyAsset
from agebody.engine.batched import Array, BatchedFunction, constant, empty, matmul, product
from agebody.engine.exact import register_constants
from agebody.engine.kinematics import ancestors
from agebody.keypoints import KeypointLayout


class LayoutTables(NamedTuple):
    """The K points of a layout on one body, and how its joints carry them, in float64.

    A point of the surface is ``sum_v r_v sum_j w_vj A_j p_v``: r is its row of the regressor, w the skinning
    weights, A_j = [R_j t_j] the skinning transforms, and ``p_v = sum_c c_c d_cv`` the rest surface, affine in
    the coefficients c of directions d. Summed over the vertices first, one pair per point and joint is left:

        point = sum_j R_j m_j + mu_j t_j,   m_j = sum_v r_v w_vj p_v,   mu_j = sum_v r_v w_vj

    The body's translation is added to every vertex, so a point has it ``sum_v r_v`` times: regressors from
    papers have rows whose sums differ from 1 by up to some percent.

    The pairs of a point are consecutive, and points with fewer pairs come first.
    """

    layout: KeypointLayout
    joints: Int[np.ndarray, "K M"]
    """The joints of which each point is the mean; -1 for points of the surface."""
    regressor: scipy.sparse.csr_array
    """(K, V) regressor of the points of the surface; empty rows for joints."""
    row_sums: Float[np.ndarray, " K"]
    """How often each point has the body's translation: the sum of its row, 1 for joints."""
    pair_points: Int[np.ndarray, " Q"]
    pair_joints: Int[np.ndarray, " Q"]
    masses: Float[np.ndarray, " Q"]
    """mu of each pair."""
    moments: Float[np.ndarray, "C Q 3"]
    """m of each pair, for one unit of each coefficient."""

    @classmethod
    def build(
        cls, asset: BodyAsset, layout: KeypointLayout, directions: Float[np.ndarray, "C V 3"]
    ) -> LayoutTables:
        """Sum over the vertices, once per body and layout.

        Args:
            asset: the body.
            layout: the points.
            directions: displacement of the vertices for one unit of each coefficient.

        Raises:
            AssetError: the body lacks what the layout needs.
        """
        joints, regressor = layout.resolve(asset)
        used = np.unique(regressor.indices)
        rows = regressor[:, used].astype(np.float64)
        weights = asset.dense_weights()[used].astype(np.float64)
        carried = (rows != 0).astype(float) @ (weights != 0) > 0
        order = np.argsort(carried.sum(1), kind="stable")
        place, joint = np.nonzero(carried[order])
        point = order[place]
        shares = scipy.sparse.csr_array(rows[point].multiply(weights[:, joint].T))
        at_used = directions[:, used].astype(np.float64).transpose(1, 0, 2)
        moments = shares @ at_used.reshape(len(used), 3 * len(directions))
        moments = np.ascontiguousarray(moments.reshape(len(point), len(directions), 3).transpose(1, 0, 2))
        row_sums = np.where(joints[:, 0] < 0, np.asarray(rows.sum(1)).ravel(), 1)
        masses = np.asarray(shares.sum(1)).ravel()
        return cls(layout, joints, regressor, row_sums, point, joint, masses, moments)

    @property
    def counts(self) -> Int[np.ndarray, " K"]:
        """Number of pairs of each point."""
        return np.bincount(self.pair_points, minlength=len(self.layout))


class PointRegression(nn.Module):
    """The points of one layout from the joints of a posed body, by the sums of `LayoutTables`.

    A point with fewer vertices than pairs, such as a finger tip, is summed over its skinned vertices instead.
    Both are sums of *carriers* ``R p + mu t``, with [R t] a blend of the skinning transforms and p affine in
    the coefficients, of which ``directions`` are the displacements of the vertices: a pair has the transform
    of one joint and its moment, a vertex its blended transform, its rest position and mu = 1. All is computed
    with the carriers last in memory, in three products.
    """

    row_sums: Tensor
    moments: Tensor
    masses: Tensor
    blend: Tensor
    sums: Tensor
    joints: Tensor
    is_joint: Tensor

    def __init__(
        self,
        asset: BodyAsset,
        tables: LayoutTables,
        directions: Float[np.ndarray, "C V 3"],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.tables, self.layout = tables, tables.layout
        joints, rows = tables.joints, tables.regressor
        by_vertex = np.diff(rows.indptr) < tables.counts
        used = np.unique(rows[by_vertex].indices)
        pairs = np.flatnonzero(~by_vertex[tables.pair_points])
        moments = np.concatenate((directions[:, used], tables.moments[:, pairs]), 1)
        blend = np.concatenate(
            (asset.dense_weights()[used], np.eye(asset.num_joints)[tables.pair_joints[pairs]])
        )
        at_vertices = rows[:, used].toarray() * by_vertex[:, None]
        of_pairs = np.eye(len(joints))[tables.pair_points[pairs]].T
        arrays = {
            "row_sums": tables.row_sums[:, None],
            "moments": moments.swapaxes(1, 2).reshape(len(directions), -1),
            "masses": np.concatenate((np.ones(len(used)), tables.masses[pairs])),
            "blend": blend.T,
            "sums": np.concatenate((at_vertices, of_pairs), 1).T,
            "joints": np.maximum(joints, 0),
            "is_joint": joints[:, :1] >= 0,
        }
        register_constants(self, arrays, dtype, device)
        self.any_joint, self.any_surface = bool((joints >= 0).any()), len(tables.masses) > 0

    def forward(
        self,
        coefficients: Float[Tensor, "B C"],
        world: Float[Tensor, "B J 3 4"],
        transforms: Float[Tensor, "B J 3 4"],
        translation: Float[Tensor, "B 3"],
    ) -> Float[Tensor, "B K 3"]:
        """Return the points [m], given the joints' frames and skinning transforms."""
        points = translation[:, None] * self.row_sums
        if self.any_surface:
            points = points + _CARRIED(self, coefficients, transforms)[0]
        if self.any_joint:
            posed = mean_of_joints(world[..., 3], self.joints)
            points = points + (torch.where(self.is_joint, posed, 0) if self.any_surface else posed)
        return points

    def constants_like(self, like: Array) -> tuple[Array, ...]:
        """Return moments, blend, masses and sums as arrays of the kind of another."""
        return tuple(constant(part, like) for part in (self.moments, self.blend, self.masses, self.sums))


def _carried(regression: PointRegression, coefficients: Tensor, transforms: Tensor) -> tuple[Tensor]:
    """Return the points of the surface (B, K, 3), without the translation."""
    return _carried_value(regression, False, coefficients, transforms)[0]


def _carried_value(
    regression: PointRegression, keep: bool, coefficients: Array, transforms: Array
) -> tuple[tuple[Array], tuple[Array, ...]]:
    moments, blend, masses, sums = regression.constants_like(coefficients)
    batch = coefficients.shape[0]
    joints, pairs = blend.shape
    rest = matmul(coefficients, moments).reshape(batch, 1, 3, pairs)
    rows = transforms.swapaxes(1, 2).swapaxes(2, 3).reshape(12 * batch, joints)
    blended = matmul(rows, blend).reshape(batch, 3, 4, pairs)
    moved = (blended[:, :, :3] * rest).sum(2) + blended[:, :, 3] * masses
    points = matmul(moved.reshape(3 * batch, pairs), sums).reshape(batch, 3, sums.shape[1]).swapaxes(1, 2)
    return (points,), (rest, blended) if keep else ()


def _carried_gradient(
    regression: PointRegression,
    wants: tuple[bool, ...],
    kept: tuple[Array, ...],
    grads: tuple[Array],
    coefficients: Array,
    transforms: Array,
) -> tuple[Array | None, Array | None]:
    moments, blend, masses, sums = regression.constants_like(coefficients)
    rest, blended = kept or _carried_value(regression, True, coefficients, transforms)[1]
    batch = coefficients.shape[0]
    joints, pairs = blend.shape
    d_points = grads[0].swapaxes(1, 2).reshape(3 * batch, sums.shape[1])
    d_moved = matmul(d_points, sums.T).reshape(batch, 3, 1, pairs)
    d_coefficients = d_transforms = None
    if wants[0]:
        d_rest = (d_moved * blended[:, :, :3]).sum(1).reshape(batch, 3 * pairs)
        d_coefficients = matmul(d_rest, moments.T)
    if wants[1]:
        d_blended = empty(blended, *blended.shape)
        d_blended[:, :, :3] = d_moved * rest
        d_blended[:, :, 3] = d_moved[:, :, 0] * masses
        d_rows = matmul(d_blended.reshape(12 * batch, pairs), blend.T)
        d_transforms = d_rows.reshape(batch, 3, 4, joints).swapaxes(2, 3).swapaxes(1, 2)
    return d_coefficients, d_transforms


_CARRIED = BatchedFunction(1, _carried, _carried_value, _carried_gradient, in_numpy=True)


class ContourTable(nn.Module):
    """The contour of a face among the vertices of `contour_layout`, by the turn of the neck about y.

    Rows 0 to 39 are turns of as many degrees, rows 40 to 78 turns of -1 to -39; a head that turns farther has
    the outermost. Source: the contour of FLAME, as SMPL-X takes it over (smplx, ``use_face_contour``).
    """

    corners: Tensor
    weights: Tensor

    def __init__(self, body: Any, layout: KeypointLayout) -> None:
        super().__init__()
        self.layout, asset = layout, body.asset
        corners = asset.faces[asset.contour_faces]
        places = np.searchsorted(np.unique(corners), corners)
        arrays = {"corners": places, "weights": asset.contour_weights}
        register_constants(self, arrays, body.dtype, body.device)

    def forward(
        self, vertices: Float[Tensor, "B U 3"], neck: Float[Tensor, "B 3 4"]
    ) -> Float[Tensor, "B L 3"]:
        """Return the contour [m], given the vertices and the frame of the neck."""
        row = contour_row(neck)
        corners = self.corners[row]
        picked = vertices.gather(1, corners.flatten(1)[..., None].expand(-1, -1, 3))
        return (picked.unflatten(1, corners.shape[1:]) * self.weights[row][..., None]).sum(-2)


def contour_row(neck: Float[Tensor, "B 3 _"]) -> Int[Tensor, " B"]:
    """Return the row of `ContourTable` for the rotation of a neck in the world."""
    level = (neck[:, 0, 0].square() + neck[:, 1, 0].square()).sqrt()
    turn = torch.atan2(neck[:, 2, 0], level) * (180 / math.pi)  # ONNX has no rad2deg
    degrees = turn.clamp(-39, 39).round().long()
    return torch.where(degrees < 0, 39 - degrees, degrees)


class MeshPoints(nn.Module):
    """The points of one layout from the posed vertices of one body, and from its joints."""

    vertices: Tensor
    weights: Tensor
    joints: Tensor
    is_joint: Tensor

    def __init__(
        self, asset: BodyAsset, layout: KeypointLayout, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.layout = layout
        joints, self.regressor = layout.resolve(asset)
        used = np.unique(self.regressor.indices)
        arrays = {
            "vertices": used,
            "weights": self.regressor[:, used].toarray(),
            "joints": np.maximum(joints, 0),
            "is_joint": joints[:, :1] >= 0,
        }
        register_constants(self, arrays, dtype, device)
        self.any_joint = bool((joints >= 0).any())

    def forward(
        self, vertices: Float[Tensor, "B V 3"], joints: Float[Tensor, "B J 3"] | None
    ) -> Float[Tensor, "B K 3"]:
        """Return the points [m]; joints are ignored if the layout has none."""
        points = self.from_surface(vertices)
        if self.any_joint and joints is not None:
            points = torch.where(self.is_joint, mean_of_joints(joints, self.joints), points)
        return points

    def from_surface(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B K 3"]:
        """Return the weighted sums of vertices; zero where a point is a joint."""
        return product(self.weights, vertices[:, self.vertices])


def mean_of_joints(places: Shaped[Tensor, "B J *D"], joints: Int[Tensor, "K M"]) -> Shaped[Tensor, "B K *D"]:
    """Return the means of M joints each, of what is given per joint."""
    found = places[:, joints]
    return found[:, :, 0] if joints.shape[1] == 1 else found.mean(2)


def lever_sums(parents: np.ndarray, tables: LayoutTables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how points and levers are summed from the moved moments of Q pairs and the centres of J joints.

    Returns:
        (K, Q + J) for the points; (K, J, Q + J) for the lever of each point about each joint, from the
        joint's centre to what hangs on it; and (K, J), the mass that hangs on it.
    """
    joints, point, joint = tables.joints, tables.pair_points, tables.pair_joints
    above, num_points, num_pairs = ancestors(parents), len(joints), len(point)
    sums = np.zeros((num_points, num_pairs + len(parents)))
    sums[point, np.arange(num_pairs)] = 1
    levers = np.zeros((num_points, *above.shape[:1], sums.shape[1]))
    levers[point, :, np.arange(num_pairs)] = above[joint]
    hanging = np.zeros((num_points, len(parents)))
    np.add.at(hanging, point, tables.masses[:, None] * above[joint])
    share = 1 / joints.shape[1]
    for k, joint in zip(*np.nonzero(joints >= 0), strict=True):
        j = joints[k, joint]
        sums[k, num_pairs + j] += share
        hanging[k] += share * above[j]
        levers[k, :, num_pairs + j] += share * above[j]
    each = np.arange(len(parents))
    levers[:, each, num_pairs + each] -= hanging
    return sums, levers, hanging


def identity_moves(
    parents: np.ndarray, tables: LayoutTables, hanging: np.ndarray, rest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the derivatives of points by the I coefficients of the identity, linear in the rotations.

    The rest surface adds ``sum_i R_i m_i``. The rest joints add ``sum_j h_j (R_parent(j) - R_j) rest_j``,
    where h_j is the point's mass at or below joint j: a joint's position shifts the frames below it.

    Returns:
        (3 J, K I), to be multiplied by the rotations, and the constant part (3, K I).
    """
    joints, pairs = tables.joints, zip(tables.pair_points, tables.pair_joints, strict=True)
    count = len(rest) - 1
    moves = np.zeros((len(parents), 3, len(joints), count))
    for pair, (k, j) in enumerate(pairs):
        moves[j, :, k] += tables.moments[1 : count + 1, pair].T
    for k, joint in zip(*np.nonzero(joints >= 0), strict=True):
        j = joints[k, joint]
        moves[j, :, k] += rest[1:, j].T / joints.shape[1]
    places = np.einsum("kj,cjx->jxkc", hanging, rest[1:])
    moves -= places
    for j, parent in enumerate(parents[1:], start=1):
        moves[parent] += places[j]
    return moves.reshape(3 * len(parents), -1), places[0].reshape(3, -1)
