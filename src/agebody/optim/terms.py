"""What a fit minimises: terms of bodies, each with its cost, gradient and normal matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.cameras.camera import NEAR
from agebody.checks import apply_mask
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.losses.priors import hyperextension_residuals
from agebody.optim.jacobian import KeypointDerivatives, KeypointJacobian
from agebody.parameters import GROUPS, BodyParameters, group_slices

Robust = Literal["gmof", "huber"] | None
"""What a residual costs beyond its scale: no more than a bound (Geman-McClure), linearly more (Huber), or
its square."""


class Unknowns:
    """The variables of a stage: some groups of a body's parameters, and of the pose all joints or some.

    Args:
        body: the layer.
        groups: which of ``GROUPS``; a body of one age has no age offset, and one without betas none of these.
        joints: names of joints whose rotations are free; all of the pose if None.

    Raises:
        ValueError: there is no such group or joint, or nothing is free.
    """

    def __init__(
        self, body: BodyModel, groups: Sequence[str] = GROUPS, joints: Sequence[str] | None = None
    ) -> None:
        unknown = sorted(set(groups) - set(GROUPS))
        if unknown:
            raise ValueError(f"groups: expected some of {', '.join(GROUPS)}, got {', '.join(unknown)}")
        slices = group_slices(body)
        self.size = slices["transl"].stop
        """P, of all parameters."""
        names = body.asset.joint_names[1:]
        astray = sorted(set(joints or ()) - set(names))
        if astray:
            raise ValueError(f"joints: expected some of {', '.join(names)}, got {', '.join(astray)}")
        columns: list[int] = []
        self.parts: dict[str, tuple[slice, Tensor | None]] = {}
        """Of each free group: where it stands among the free variables, and which of its entries these are;
        None where it is all of them."""
        for name in GROUPS:
            entries = list(range(slices[name].stop - slices[name].start))
            if name == "body_pose" and joints is not None:
                entries = [3 * j + i for j, joint in enumerate(names) if joint in joints for i in range(3)]
            if name not in groups or not entries or (name == "age_offset" and not body.age_anchors):
                continue
            size = slices[name].stop - slices[name].start
            chosen = None if len(entries) == size else torch.tensor(entries, device=body.device)
            self.parts[name] = (slice(len(columns), len(columns) + len(entries)), chosen)
            columns += [slices[name].start + entry for entry in entries]
        if not columns:
            raise ValueError("groups: expected at least one that this body has")
        self.columns = torch.tensor(columns, device=body.device)
        """(F,) where they stand in a vector of all parameters."""

    def __len__(self) -> int:
        """F."""
        return len(self.columns)


class Block(NamedTuple):
    """A term's part of the least-squares problem, over consecutive free variables."""

    cost: Float[Tensor, " b"]
    """Half of the sum of its squared residuals, each at its robust cost."""
    where: slice
    gradient: Float[Tensor, "b G"]
    normal: Float[Tensor, "#b G G"]


@runtime_checkable
class Term(Protocol):
    """A term of the bodies that it was made for."""

    def __call__(self, state: State) -> Block | None:
        """At a guess; None where it depends on nothing that is free."""
        ...


class State:
    """Bodies at one guess, and what several terms need of them.

    Args:
        body: the layer.
        vector: (b, P) all parameters.
        rows: (b,) which bodies of the batch these are.
        unknowns: what is free.
    """

    def __init__(
        self, body: BodyModel, vector: Float[Tensor, "b P"], rows: Int[Tensor, " b"], unknowns: Unknowns
    ) -> None:
        self.body, self.rows, self.unknowns = body, rows, unknowns
        self.parameters = BodyParameters.from_vector(vector, body)
        self._points: dict[int, tuple[Tensor, Tensor]] = {}

    def points(self, layout: KeypointLayout) -> tuple[Float[Tensor, "b K 3"], Float[Tensor, "b K 3 F"]]:
        """A layout's points and their derivatives by the free variables, computed once."""
        if id(layout) not in self._points:
            p = self.parameters
            pose = torch.cat((p.global_orient[:, None], p.body_pose), 1)
            found = keypoint_jacobian(self.body, layout)(pose, p.betas, p.age_offset, p.transl)
            self._points[id(layout)] = found.points, self.by_unknowns(found)
        return self._points[id(layout)]

    def by_unknowns(self, found: KeypointDerivatives) -> Float[Tensor, "b K 3 F"]:
        """Derivatives of points side by side, those by the translation among them."""
        derivatives, unknowns = by_all(found), self.unknowns
        whole = len(unknowns) == unknowns.size
        return derivatives if whole else derivatives.index_select(-1, unknowns.columns)

    def block(self, residuals: Float[Tensor, "b M"], jacobian: Float[Tensor, "b M F"]) -> Block:
        """Residuals that depend on everything."""
        gradient = (jacobian.mT @ residuals[..., None])[..., 0]
        return Block(_half_square(residuals), slice(0, len(self.unknowns)), gradient, jacobian.mT @ jacobian)

    def group_block(
        self, group: str, residuals: Float[Tensor, "b M"], jacobian: Float[Tensor, "#b M G"]
    ) -> Block | None:
        """Residuals that depend on one group of parameters; None where it is not free."""
        if group not in self.unknowns.parts:
            return None
        where, entries = self.unknowns.parts[group]
        if entries is not None:
            jacobian = jacobian[..., entries]
        gradient = (residuals[:, None] @ jacobian)[:, 0]
        return Block(_half_square(residuals), where, gradient, jacobian.mT @ jacobian)


def by_all(found: KeypointDerivatives) -> Float[Tensor, "b K 3 P"]:
    """Derivatives of points by all parameters, in the order of `BodyParameters.vector`."""
    by_transl = torch.eye(3, dtype=found.points.dtype, device=found.points.device)
    by_transl = by_transl.expand(*found.points.shape, 3)
    return torch.cat((found.pose.flatten(-2), found.betas, found.age_offset[..., None], by_transl), -1)


def keypoint_jacobian(body: BodyModel, layout: str | KeypointLayout) -> KeypointJacobian:
    """The derivatives of a layout on a body, made at the first use and kept with the layer."""
    return body.for_layout(layout, KeypointJacobian)


def robust_weights(
    squared: Float[Tensor, "*r"], robust: Robust, scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Cost of residuals with these squares, and the weight with which least squares has the same gradient.

    Iteratively reweighted least squares: with weight w = d cost / d square, ``w r`` is half of the cost's
    gradient, and ``w JᵀJ`` bounds its curvature from above: steps stay sound where residuals are large.
    """
    if robust is None:
        return squared, torch.ones_like(squared)
    limit = scale * scale
    if robust == "gmof":
        share = limit / (limit + squared)
        return share * squared, share.square()
    if robust == "huber":
        size = torch.sqrt(torch.where(squared > limit, squared, 1))
        far = squared > limit
        return torch.where(far, scale * (2 * size - scale), squared), torch.where(far, scale / size, 1)
    raise ValueError(f"robust: expected 'gmof', 'huber' or None, got {robust!r}")


class Reprojection:
    """Keypoints in images, in pixels over a unit of each person: ``½ Σ w ρ(|x − x_observed| / unit)``.

    Args:
        layout: of the points.
        keypoints: (B, V, K, 2) where they are in each of V views [pixels].
        weights: (B, V, K); what weighs nothing may be NaN.
        camera: its tensors' batch dimensions broadcast to (B, V).
        unit: (B, V) pixels that count as a residual of 1.
        robust: cost of a coordinate's residual; "gmof" on each coordinate as in SMPLify-X.
        scale: of the robust cost, in units.
    """

    def __init__(
        self,
        layout: str | KeypointLayout,
        keypoints: Float[Tensor, "B V K 2"],
        weights: Float[Tensor, "B V K"],
        camera: Camera,
        unit: Float[Tensor, "B V"],
        *,
        robust: Robust = "gmof",
        scale: float = 100.0,
    ) -> None:
        self.layout = get_layout(layout)
        self.keypoints, self.weights = apply_mask(keypoints, weights, 1), weights
        self.camera = camera.expand(*keypoints.shape[:2])
        self.unit, self.scale = unit, scale
        self.robust: Robust = robust

    def __call__(self, state: State) -> Block:
        """Over x and y of each point in each view."""
        points, by_unknowns = state.points(self.layout)
        camera = self.camera.map(lambda part: part[state.rows])
        pixels, by_point = project(camera, points[:, None])
        unit = self.unit[state.rows][..., None, None]
        residuals = (pixels - self.keypoints[state.rows]) / unit
        cost, weights = robust_weights(residuals.square(), self.robust, self.scale)
        trust = self.weights[state.rows][..., None]
        root = torch.sqrt(weights * trust)
        jacobian = (by_point * (root / unit)[..., None]) @ by_unknowns[:, None]  # (b, V, K, 2, F)
        block = state.block((root * residuals).flatten(1), jacobian.flatten(1, 3))
        return block._replace(cost=(cost * trust).flatten(1).sum(1) / 2)


class Points:
    """Points in space: ``½ Σ w ρ(|p − p_observed|)`` over their distances [m].

    Args:
        layout: of the points.
        points: (B, K, 3) [m].
        weights: (B, K); what weighs nothing may be NaN.
        robust: cost of a distance.
        scale: of the robust cost [m].
    """

    def __init__(
        self,
        layout: str | KeypointLayout,
        points: Float[Tensor, "B K 3"],
        weights: Float[Tensor, "B K"],
        *,
        robust: Robust = None,
        scale: float = 0.1,
    ) -> None:
        self.layout = get_layout(layout)
        self.points, self.weights = apply_mask(points, weights, 1), weights
        self.scale = scale
        self.robust: Robust = robust

    def __call__(self, state: State) -> Block:
        """Over the coordinates of each point."""
        points, by_unknowns = state.points(self.layout)
        residuals = points - self.points[state.rows]
        cost, weights = robust_weights(residuals.square().sum(-1), self.robust, self.scale)
        trust = self.weights[state.rows]
        root = torch.sqrt(weights * trust)[..., None]
        block = state.block((root * residuals).flatten(1), (root[..., None] * by_unknowns).flatten(1, 2))
        return block._replace(cost=(cost * trust).sum(1) / 2)


class Depth:
    """Where a person stands along the camera's axis: ``½ ((z − z_observed) / sd)²`` of the root joint.

    Args:
        depth: (B,) z of the root joint in camera coordinates [m]; NaN where it is not known.
        sd: its standard deviation [m].
        camera: batch dimensions broadcast to (B,).
    """

    def __init__(self, depth: Float[Tensor, " B"], sd: float | Tensor, camera: Camera) -> None:
        self.known = ~depth.isnan()
        self.depth, self.sd = (
            apply_mask(depth, self.known),
            torch.as_tensor(sd, dtype=depth.dtype, device=depth.device).expand(depth.shape),
        )
        self.camera = camera.expand(*depth.shape)

    def __call__(self, state: State) -> Block:
        """One residual a body."""
        points, by_unknowns = state.points(root_layout(state.body.asset.joint_names[0]))
        camera = self.camera.map(lambda part: part[state.rows])
        z = camera.to_camera(points)[:, 0, 2]
        axis = points.new_tensor([0.0, 0.0, 1.0]) if camera.rotation is None else camera.rotation[:, 2]
        root = self.known[state.rows] / self.sd[state.rows]
        jacobian = (axis[..., None] * by_unknowns[:, 0]).sum(-2)
        return state.block(
            (root * (z - self.depth[state.rows]))[:, None], (root[:, None] * jacobian)[:, None]
        )


@cache
def root_layout(joint: str) -> KeypointLayout:
    """One joint, as a layout."""
    return KeypointLayout("root", (joint,), (("joints", joint),))


class PosePrior:
    """The energy of a pose prior, ``E(θ) / 2`` for each body.

    Args:
        prior: a `MahalanobisPrior`, or a `MaxMixturePrior` that is not soft, over the body's joints.

    Raises:
        ValueError: the prior's joints are not those of the body's pose.
    """

    def __init__(self, prior: MahalanobisPrior | MaxMixturePrior, body: BodyModel) -> None:
        names = tuple(body.asset.joint_names[1:])
        self.prior = (prior if prior.joint_names == names else prior.for_joints(names)).to(
            body.device, body.dtype
        )
        identity = torch.eye(3 * len(names), dtype=body.dtype, device=body.device)
        columns = self.prior.columns
        if isinstance(self.prior, MaxMixturePrior):
            self._slopes = (self.prior.whitenings @ identity[columns]) / 2**0.5  # (K, D, 3 J)
        else:
            self._slopes = (self.prior.factor.mT @ identity[columns])[None]
        self._normals = self._slopes.mT @ self._slopes

    def __call__(self, state: State) -> Block | None:
        """The mixture's cheapest component, where it is one."""
        if "body_pose" not in state.unknowns.parts:
            return None
        where, entries = state.unknowns.parts["body_pose"]
        pose = state.parameters.body_pose
        if isinstance(self.prior, MaxMixturePrior):
            whitened, energies = self.prior.evaluate_components(self.prior.select_angles(pose))
            chosen = energies.argmin(-1)
            everyone = torch.arange(len(chosen), device=chosen.device)
            residuals, energy = whitened[everyone, chosen] / 2**0.5, energies[everyone, chosen]
            slopes, normal = self._slopes[chosen], self._normals[chosen]
        else:
            residuals = self.prior.residuals(pose)
            slopes, normal, energy = self._slopes, self._normals, residuals.square().sum(-1)
        gradient = (residuals[:, None] @ slopes)[:, 0]
        if entries is not None:
            gradient, normal = gradient[:, entries], normal[:, entries][:, :, entries]
        return Block(energy / 2, where, gradient, normal)


class Bend:
    """Knees and elbows bent backwards, ``½ Σ exp(s_i θ_i)²`` (SMPLify); see `hyperextension_prior`."""

    def __init__(self, body: BodyModel) -> None:
        self.names = tuple(body.asset.joint_names[1:])
        # exp(s θ) is 1 at rest: the angles that it reads show themselves by their slopes.
        rest = torch.zeros(1, len(self.names), 3, dtype=body.dtype, device=body.device)
        slopes = torch.func.jacrev(self._residuals)(rest)  # (1, 4, 1, J, 3)
        self.slopes = slopes[0, :, 0].flatten(1)

    @staticmethod
    def fits(body: BodyModel) -> bool:
        """Whether the body has the knees and elbows."""
        return {f"{side}_{joint}" for side in ("left", "right") for joint in ("knee", "elbow")} <= {
            *body.asset.joint_names
        }

    def _residuals(self, pose: Tensor) -> Tensor:
        return hyperextension_residuals(pose, joint_names=self.names)

    def __call__(self, state: State) -> Block | None:
        """Four residuals."""
        residuals = self._residuals(state.parameters.body_pose)
        return state.group_block("body_pose", residuals, residuals[..., None] * self.slopes)


class Shape:
    """Shape coefficients, ``½ Σ w_i b_i²``: standard deviations from the mean person; see `shape_prior`.

    Args:
        weights: (N) of each beta; 1 if None.
    """

    def __init__(self, weights: Float[Tensor, " N"] | None = None) -> None:
        self.weights = weights

    def __call__(self, state: State) -> Block | None:
        """As many residuals as betas."""
        betas = state.parameters.betas
        root = torch.ones_like(betas[0] if len(betas) else betas.new_ones(betas.shape[-1]))
        root = root if self.weights is None else torch.sqrt(self.weights)
        return state.group_block("betas", root * betas, torch.diag(root)[None])


class Age:
    """The age offset, ``½ ((a − a_expected) / sd)²``.

    Args:
        expected: (B,); NaN where nothing is known.
        sd: standard deviation, a number or (B,).
    """

    def __init__(self, expected: Float[Tensor, " B"], sd: float | Tensor) -> None:
        self.known = ~expected.isnan()
        self.expected = apply_mask(expected, self.known)
        self.sd = torch.as_tensor(sd, dtype=expected.dtype, device=expected.device).expand(expected.shape)

    def __call__(self, state: State) -> Block | None:
        """One residual."""
        slope = self.known[state.rows] / self.sd[state.rows]
        residual = slope * (state.parameters.age_offset - self.expected[state.rows])
        return state.group_block("age_offset", residual[:, None], slope[:, None, None])


def project(
    camera: Camera, points: Float[Tensor, "*points K 3"]
) -> tuple[Float[Tensor, "*batch K 2"], Float[Tensor, "*batch K 2 3"]]:
    """Pixels of world points, as by `Camera.project`, and their derivatives by the points."""
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
    columns = []
    for axis in basis:
        pixels, column = torch.func.jvp(  # pyright: ignore[reportAssignmentType]
            lambda p: camera.project(p).pixels, (points,), (axis.expand(points.shape),)
        )
        columns.append(column)
    return pixels, torch.stack(columns, -1)  # pyright: ignore[reportPossiblyUnboundVariable]


def _inverse_depth(depth: Tensor) -> tuple[Tensor, Tensor]:
    """As `Camera.project` continues it, and its derivative."""
    ahead = depth >= NEAR
    inverse = 1 / torch.where(ahead, depth, 2 * NEAR - depth)
    return torch.where(ahead, inverse, 2 / NEAR - inverse), -inverse.square()


def _half_square(residuals: Float[Tensor, "b M"]) -> Float[Tensor, " b"]:
    return residuals.square().sum(-1) / 2
