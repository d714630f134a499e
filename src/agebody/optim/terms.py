"""Terms of the cost of a fit: each gives its cost, gradient and normal matrix."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.cameras import Camera
from agebody.cameras.camera import NEAR, expect_camera
from agebody.checks import apply_mask, expect_choice, read_positive
from agebody.engine.batched import building
from agebody.keypoints import KeypointLayout, get_layout, joint_layout
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.losses.priors import hyperextension_residuals
from agebody.optim.state import Block, State
from agebody.rotations import (
    axis_angle_to_quaternion,
    inverse_right_jacobian,
    left_multiplication,
    quaternion_to_axis_angle,
)

Robust = Literal["gmof", "huber"] | None
"""Cost of a residual: Geman-McClure's, which is bounded; Huber's, linear beyond the robust scale; its square
if None."""


def robust_weights(
    squared: Float[Tensor, "*r"], robust: Robust, scale: Tensor | float
) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
    """Return the robust cost of residuals with these squares, and their weights in least squares.

    Iteratively reweighted least squares: with weight w = d cost / d square, ``w r`` is half of the cost's
    gradient, and ``w JᵀJ`` bounds its curvature from above, so that steps stay safe where residuals are
    large. Costs are those of `agebody.losses.gmof` and `agebody.losses.huber`.
    """
    if robust is None:
        return squared, torch.ones_like(squared)
    limit = scale * scale
    if robust == "gmof":
        share = limit / (limit + squared)
        return share * squared, share.square()
    if robust == "huber":
        far = squared > limit
        size = torch.sqrt(torch.where(far, squared, 1))
        return torch.where(far, scale * (2 * size - scale), squared), torch.where(far, scale / size, 1)
    raise ValueError(f"robust: expected 'gmof', 'huber' or None, got {robust!r}")


def _check_robust(robust: Any, robust_scale: Any) -> float:
    """Check a robust cost, and return its scale as a float."""
    if robust is not None:
        expect_choice("robust", robust, ("gmof", "huber"))
    return read_positive("robust_scale", robust_scale)


class Reprojection:
    """Keypoints in images: ``½ Σ w ρ(|x - x_observed| / unit)`` over coordinates.

    Args:
        layout: of the keypoints.
        keypoints: (B, V, K, 2) observed in V views [pixels].
        weights: (B, V, K); keypoints of weight 0 are ignored, even NaN.
        camera: batch dimensions broadcast to (B, V).
        unit: (B, V), or (B, V, K) for each keypoint, pixels that count as a residual of 1.
        robust: cost of a residual.
        robust_scale: scale of the robust cost, in units.
    """

    def __init__(
        self,
        layout: str | KeypointLayout,
        keypoints: Float[Tensor, "B V K 2"],
        weights: Float[Tensor, "B V K"],
        camera: Camera,
        unit: Float[Tensor, "B V"] | Float[Tensor, "B V K"],
        *,
        robust: Robust = "gmof",
        robust_scale: float = 5.0,
    ) -> None:
        expect_camera(camera)
        self.layout = get_layout(layout)
        self.keypoints, self.weights = apply_mask(keypoints, weights, 1), weights
        self.camera = camera.expand(*keypoints.shape[:2])
        self.unit = unit if unit.dim() == 3 else unit[..., None]
        self.robust: Robust = robust
        self.robust_scale = _check_robust(robust, robust_scale)

    def __call__(self, state: State) -> Block:
        """Return two residuals per keypoint and view."""
        points, derivatives = state.points(self.layout)
        camera = self.camera.map(lambda part: part[state.rows])
        pixels, by_point = project(camera, points[:, None])
        unit = self.unit[state.rows][..., None]
        residuals = (pixels - self.keypoints[state.rows]) / unit
        cost, weights = robust_weights(residuals.square(), self.robust, self.robust_scale)
        confidence = self.weights[state.rows][..., None]
        root = torch.sqrt(weights * confidence)
        jacobian = (by_point * (root / unit)[..., None]) @ derivatives[:, None]  # (b, V, K, 2, F)
        cost = (cost * confidence).flatten(1).sum(1) / 2
        return state.block((root * residuals).flatten(1), jacobian.flatten(1, 3), cost)


class Points:
    """Points in space: ``½ Σ w ρ(|p - p_observed|)`` over distances [m].

    Args:
        layout: of the points.
        points: (B, K, 3) [m].
        weights: (B, K); points of weight 0 are ignored, even NaN.
        robust: cost of a distance.
        robust_scale: scale of the robust cost [m].
    """

    def __init__(
        self,
        layout: str | KeypointLayout,
        points: Float[Tensor, "B K 3"],
        weights: Float[Tensor, "B K"],
        *,
        robust: Robust = None,
        robust_scale: float = 0.1,
    ) -> None:
        self.layout = get_layout(layout)
        self.points, self.weights = apply_mask(points, weights, 1), weights
        self.robust: Robust = robust
        self.robust_scale = _check_robust(robust, robust_scale)

    def __call__(self, state: State) -> Block:
        """Return three residuals per point."""
        points, derivatives = state.points(self.layout)
        residuals = points - self.points[state.rows]
        cost, weights = robust_weights(residuals.square().sum(-1), self.robust, self.robust_scale)
        confidence = self.weights[state.rows]
        root = torch.sqrt(weights * confidence)[..., None]
        jacobian = (root[..., None] * derivatives).flatten(1, 2)
        return state.block((root * residuals).flatten(1), jacobian, (cost * confidence).sum(1) / 2)


class Depth:
    """Depth of the root joint along the camera's axis: ``½ ((z - z_observed) / sd)²``.

    Args:
        depth: (B,) z of the root joint in camera coordinates [m]; NaN where it is not known.
        sd: standard deviation [m].
        camera: batch dimensions broadcast to (B,).
    """

    def __init__(self, depth: Float[Tensor, " B"], sd: float | Tensor, camera: Camera) -> None:
        self.known = ~depth.isnan()
        self.depth = apply_mask(depth, self.known)
        self.sd = torch.as_tensor(sd, dtype=depth.dtype, device=depth.device).expand(depth.shape)
        self.camera = camera.expand(*depth.shape)

    def __call__(self, state: State) -> Block:
        """Return one residual per body."""
        points, derivatives = state.points(joint_layout(state.body.asset.joint_names[0]))
        camera = self.camera.map(lambda part: part[state.rows])
        z = camera.to_camera(points)[:, 0, 2]
        axis = points.new_tensor([0.0, 0.0, 1.0]) if camera.rotation is None else camera.rotation[:, 2]
        root = self.known[state.rows] / self.sd[state.rows]
        jacobian = root[:, None] * (axis[..., None] * derivatives[:, 0]).sum(-2)
        return state.block((root * (z - self.depth[state.rows]))[:, None], jacobian[:, None])


class PosePrior:
    """Energy of a pose prior, ``E(θ) / 2``.

    Args:
        prior: a `MahalanobisPrior`, or a `MaxMixturePrior` that is not soft, over joints of the body.
        body: the layer.
    """

    def __init__(self, prior: MahalanobisPrior | MaxMixturePrior, body: BodyModel) -> None:
        names = tuple(expect_body(body).asset.joint_names[1:])
        prior = prior if prior.joint_names == names else prior.for_joints(names)
        self.prior = prior.to(body.device, body.dtype)
        identity = torch.eye(3 * len(names), dtype=body.dtype, device=body.device)
        columns = self.prior.columns
        if isinstance(self.prior, MaxMixturePrior):
            self._jacobians = (self.prior.whitenings @ identity[columns]) / 2**0.5  # (K, D, 3 J)
        else:
            self._jacobians = (self.prior.factor.mT @ identity[columns])[None]
        self._normals = self._jacobians.mT @ self._jacobians
        variances = self._normals.diagonal(dim1=1, dim2=2)
        if isinstance(self.prior, MahalanobisPrior) and (torch.diag_embed(variances) == self._normals).all():
            self._normals = variances

    def __call__(self, state: State) -> Block | None:
        """Return the residuals of the prior, or of the mixture's component of lowest energy."""
        if "body_pose" not in state.free.parts:
            return None
        pose = state.parameters.body_pose
        if isinstance(self.prior, MaxMixturePrior):
            whitened, energies = self.prior.evaluate_components(self.prior.select_angles(pose))
            chosen = energies.argmin(-1)
            everyone = torch.arange(len(chosen), device=chosen.device)
            residuals, energy = whitened[everyone, chosen] / 2**0.5, energies[everyone, chosen]
            jacobian, normal = self._jacobians[chosen], self._normals[chosen]
        else:
            residuals = self.prior.residuals(pose)
            jacobian, normal, energy = self._jacobians, self._normals, residuals.square().sum(-1)
        return state.pose_block(energy / 2, (residuals[:, None] @ jacobian)[:, 0], normal)


class RestPosePrior:
    """Angles of the pose, ``½ Σ (θ / sd)²``: rotations that nothing else determines stay as at rest.

    Args:
        sd: standard deviation of an angle [rad].
    """

    def __init__(self, sd: float) -> None:
        self.sd = sd

    def __call__(self, state: State) -> Block | None:
        """Return three residuals per joint."""
        pose = state.parameters.body_pose
        return state.scaled_block("body_pose", pose / self.sd, torch.full_like(pose[:1], 1 / self.sd))


class HyperextensionPrior:
    """Hyperextended knees and elbows, ``½ Σ exp(s_i θ_i)²`` (SMPLify); see `hyperextension_prior`."""

    def __init__(self, body: BodyModel) -> None:
        self.signs = _bend_signs(tuple(body.asset.joint_names[1:])).to(body.device, body.dtype)

    @staticmethod
    def applies_to(body: BodyModel) -> bool:
        """Return whether the body has the knees and elbows."""
        return {f"{side}_{joint}" for side in ("left", "right") for joint in ("knee", "elbow")} <= {
            *body.asset.joint_names
        }

    def __call__(self, state: State) -> Block | None:
        """Return four residuals."""
        residuals = torch.exp(state.parameters.body_pose.flatten(1) @ self.signs.mT)
        return state.group_block("body_pose", residuals, residuals[..., None] * self.signs)


@cache
def _bend_signs(names: tuple[str, ...]) -> Float[Tensor, "4 P"]:
    """Return the signs s in ``exp(s θ)``: its derivatives at rest, where it is 1."""
    with building():
        rest = torch.zeros(1, len(names), 3, dtype=torch.float64)
        bend = torch.func.jacrev(lambda pose: hyperextension_residuals(pose, joint_names=names))(rest)
    return bend[0, :, 0].flatten(1)


class ShapePrior:
    """Shape coefficients, ``½ Σ w_i b_i²`` [standard deviations from the mean person]; see `shape_prior`.

    Args:
        weights: (N) per beta; 1 if None.
    """

    def __init__(self, weights: Float[Tensor, " N"] | None = None) -> None:
        self.weights = weights

    def __call__(self, state: State) -> Block | None:
        """Return one residual per beta."""
        betas = state.parameters.betas
        root = torch.ones_like(betas[:1]) if self.weights is None else torch.sqrt(self.weights)[None]
        return state.scaled_block("betas", root * betas, root)


class ParameterPrior:
    """Parameters of one of ``GROUPS`` about given values, ``½ Σ (difference / sd)²``.

    Rotations differ by the axis-angle vector of the rotation from one to the other. Values (B, *entry), as in
    `BodyParameters`, are NaN where a number is not known; standard deviations broadcast to them.
    """

    def __init__(self, group: str, value: Float[Tensor, "*batch"], sd: float | Tensor) -> None:
        self.group, known = group, ~value.isnan()
        self.value = apply_mask(value, known)
        self.inverse_sd = known / torch.as_tensor(sd, dtype=value.dtype, device=value.device)
        joints = {"global_orient": slice(0, 1), "body_pose": slice(1, None)}
        self._joints = joints.get(group)
        if self._joints is not None:
            vectors = value.reshape(len(value), math.prod(value.shape[1:-1]), 3)
            self._inverse = left_multiplication(axis_angle_to_quaternion(-vectors))
            self.inverse_sd = self.inverse_sd.reshape(vectors.shape)

    def __call__(self, state: State) -> Block | None:
        """Return one residual per parameter."""
        if self.group not in state.free.parts:
            return None
        inverse_sd = self.inverse_sd[state.rows]
        if self._joints is None:
            difference = getattr(state.parameters, self.group) - self.value[state.rows]
            return state.scaled_block(self.group, inverse_sd * difference, inverse_sd)
        turns = state.turns.joints(self._joints)
        turned = self._inverse[state.rows] @ turns.quaternions[..., None]
        difference = quaternion_to_axis_angle(turned[..., 0])
        jacobian = inverse_right_jacobian(difference) @ turns.jacobians * inverse_sd[..., None]
        residuals = inverse_sd * difference
        if self.group == "body_pose":
            return state.joint_block(residuals, jacobian)
        return state.group_block(self.group, residuals[:, 0], jacobian[:, 0])


def project(
    camera: Camera, points: Float[Tensor, "*points K 3"]
) -> tuple[Float[Tensor, "*batch K 2"], Float[Tensor, "*batch K 2 3"]]:
    """Return the pixels of world points, as `Camera.project`, and their derivatives by the points."""
    if camera.distortion is None:
        local = camera.to_camera(points)
        inverse, slope = _inverse_depth(local[..., 2])
        focal = camera.focal[..., None, :]
        pixels = focal * local[..., :2] * inverse[..., None] + camera.center[..., None, :]
        across = torch.diag_embed((focal * inverse[..., None]).expand(pixels.shape))
        along = focal * local[..., :2] * slope[..., None]
        by_local = torch.cat((across, along[..., None]), -1)
        rotation = camera.rotation
        return pixels, by_local if rotation is None else by_local @ rotation[..., None, :, :]
    basis = torch.eye(3, dtype=points.dtype, device=points.device)
    columns = [
        torch.func.jvp(lambda p: camera.project(p).pixels, (points,), (axis.expand(points.shape),))[1]
        for axis in basis
    ]
    return camera.project(points).pixels, torch.stack(columns, -1)


def _inverse_depth(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 / z, continued behind the camera as by `Camera.project`, and its derivative."""
    ahead = depth >= NEAR
    inverse = 1 / torch.where(ahead, depth, 2 * NEAR - depth)
    return torch.where(ahead, inverse, 2 / NEAR - inverse), -inverse.square()
