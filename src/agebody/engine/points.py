"""Keypoints of a posed body: without its mesh, as points carried by joints; and from a mesh that is there."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.assets.asset import BodyAsset
from agebody.keypoints import KeypointLayout


class PointRegression(nn.Module):
    """The points of one layout on one body: posed joints, and ``sum_j A_j m_j`` for points of the surface.

    A point is ``sum_v r_v sum_j w_vj A_j p_v`` with the rest surface p affine in the coefficients. So is
    ``m_j = sum_v r_v w_vj p_v``, made here once for every pair of a point and a joint that moves it.

    Args:
        asset: the body.
        layout: the points.
        directions: (C, V, 3) displacement for one unit of each coefficient.
        dtype: floating type of the arrays.
        device: where they live.
    """

    moments: Tensor
    masses: Tensor
    sums: Tensor
    pair_joints: Tensor
    joints: Tensor
    is_joint: Tensor

    def __init__(
        self,
        asset: BodyAsset,
        layout: KeypointLayout,
        directions: np.ndarray,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.layout = layout
        joints, regressor = layout.resolve(asset)
        used = np.unique(regressor.indices)
        rows = regressor[:, used].toarray().astype(np.float64)
        weights = asset.dense_weights()[used].astype(np.float64)
        point, joint = np.nonzero((rows != 0).astype(float) @ (weights != 0))
        pair_weights = rows[point] * weights[:, joint].T
        sums = np.zeros((len(layout), len(point)))
        sums[point, np.arange(len(point))] = 1
        for name, array in (
            ("moments", np.einsum("pv,cvx->cpx", pair_weights, directions[:, used].astype(np.float64))),
            ("masses", pair_weights.sum(1)[:, None]),
            ("sums", sums),
            ("pair_joints", joint),
            ("joints", np.maximum(joints, 0)),
            ("is_joint", (joints >= 0)[:, None]),
        ):
            tensor = torch.from_numpy(array)
            tensor = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            self.register_buffer(name, tensor, persistent=False)
        self.any_joint, self.any_surface = bool((joints >= 0).any()), len(point) > 0

    def forward(
        self,
        coefficients: Float[Tensor, "B C"],
        world: Float[Tensor, "B J 3 4"],
        transforms: Float[Tensor, "B J 3 4"],
        translation: Float[Tensor, "B 3"],
    ) -> Float[Tensor, "B K 3"]:
        """The points [m], from the joints' frames and skinning transforms."""
        points = translation[:, None]
        if self.any_surface:
            moments = (coefficients @ self.moments.flatten(1)).unflatten(-1, (-1, 3, 1))
            movers = transforms[:, self.pair_joints]
            moved = (movers[..., :3] @ moments)[..., 0] + movers[..., 3] * self.masses
            points = points + self.sums @ moved
        if self.any_joint:
            posed = world[:, self.joints, :, 3]
            points = points + (torch.where(self.is_joint, posed, 0) if self.any_surface else posed)
        return points.expand(-1, len(self.layout), -1)


class MeshPoints(nn.Module):
    """The points of one layout from the posed vertices of one body, and from its joints.

    Args:
        asset: the body.
        layout: the points.
        dtype: floating type of the arrays.
        device: where they live.
    """

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
        for name, array in (
            ("vertices", used.astype(np.int64)),
            ("weights", self.regressor[:, used].toarray()),
            ("joints", np.maximum(joints, 0)),
            ("is_joint", (joints >= 0)[:, None]),
        ):
            tensor = torch.from_numpy(array)
            tensor = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            self.register_buffer(name, tensor, persistent=False)
        self.any_joint = bool((joints >= 0).any())

    def forward(
        self, vertices: Float[Tensor, "B V 3"], joints: Float[Tensor, "B J 3"] | None
    ) -> Float[Tensor, "B K 3"]:
        """The points [m]; joints are not looked at where the layout has none."""
        points = self.from_surface(vertices)
        if self.any_joint and joints is not None:
            points = torch.where(self.is_joint, joints[:, self.joints], points)
        return points

    def from_surface(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B K 3"]:
        """Points that are weighted sums of vertices; zero where a point is a joint."""
        return self.weights @ vertices[:, self.vertices]
