"""Interface of the terms of a fit: free variables, the current state, blocks of a quadratic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.keypoints import KeypointLayout
from agebody.optim.jacobian import KeypointDerivatives, KeypointJacobian, PosedSurface, SurfaceJacobian
from agebody.optim.posed import Turns
from agebody.optim.quadratic import Quadratic
from agebody.parameters import GROUPS, BodyParameters, group_slices


class FreeVariables:
    """The free variables of a stage: groups of a body's parameters, and all or some joints of the pose.

    Of the ``groups``, out of ``GROUPS``, those that the body lacks are left out, such as the age offset of a
    body of one age. ``joints`` are the names of those that are free; all if None.
    """

    def __init__(
        self, body: BodyModel, groups: Sequence[str] = GROUPS, joints: Sequence[str] | None = None
    ) -> None:
        expect_body(body)
        unknown = sorted(set(groups) - set(GROUPS))
        if unknown:
            raise ValueError(f"groups: expected some of {', '.join(GROUPS)}, got {', '.join(unknown)}")
        names = body.asset.joint_names[1:]
        unknown = sorted(set(joints or ()) - set(names))
        if unknown:
            raise ValueError(f"joints: expected some of {', '.join(names)}, got {', '.join(unknown)}")
        slices = group_slices(body)
        self.size = slices["transl"].stop
        """P, the number of all parameters."""
        self.parts: dict[str, tuple[slice, Tensor | None]] = {}
        """By free group, its slice of the free variables, and indices of its free parameters (None: all)."""
        columns: list[int] = []
        for name in GROUPS:
            size = slices[name].stop - slices[name].start
            entries = list(range(size))
            if name == "body_pose" and joints is not None:
                entries = [3 * j + i for j, joint in enumerate(names) if joint in joints for i in range(3)]
            if name not in groups or not entries or (name == "age_offset" and not body.age_anchors):
                continue
            chosen = None if len(entries) == size else torch.tensor(entries, device=body.device)
            self.parts[name] = (slice(len(columns), len(columns) + len(entries)), chosen)
            columns += [slices[name].start + entry for entry in entries]
        if not columns:
            raise ValueError("groups: expected at least one that this body has")
        self.columns = torch.tensor(columns, device=body.device)
        """(F,) columns of the free variables in a vector of all parameters."""

    def __len__(self) -> int:
        """F."""
        return len(self.columns)

    def shape_slice(self) -> slice:
        """Return the slice of betas and age offset among the free variables; they are adjacent."""
        found = [self.parts[name][0] for name in ("betas", "age_offset") if name in self.parts]
        return slice(found[0].start, found[-1].stop) if found else slice(0, 0)


class Block(NamedTuple):
    """A term's quadratic, over consecutive free variables; see `Quadratic`."""

    cost: Float[Tensor, " b"]
    gradient: Float[Tensor, "b G"]
    normal: Float[Tensor, "b G G"] | Float[Tensor, "b J 3 3"] | Float[Tensor, "b G"]
    """The normal matrix, or its blocks along the diagonal, one per joint, or its diagonal; all else is 0."""
    where: slice


@runtime_checkable
class Term(Protocol):
    """A term of the cost, for the batch of bodies that it was made for.

    A term with a robust cost has an attribute ``robust_scale``, which the ``scales`` of a `Stage` multiply.
    """

    def __call__(self, state: State) -> Block | None:
        """Evaluate the term; None if it depends on no free variable."""
        ...


class State:
    """Bodies at one iterate of the optimization, with cached results that several terms use.

    Args:
        body: the layer.
        vector: (b, P) all parameters.
        rows: (b,) indices of these bodies in the batch.
        free: the free variables.
    """

    def __init__(
        self, body: BodyModel, vector: Float[Tensor, "b P"], rows: Int[Tensor, " b"], free: FreeVariables
    ) -> None:
        expect_body(body)
        self.body, self.rows, self.free = body, rows, free
        self.parameters = BodyParameters.from_vector(vector, body)
        self._points: dict[int, tuple[Tensor, Tensor]] = {}
        self._posed: PosedSurface | None = None

    @cached_property
    def turns(self) -> Turns:
        """Rotations of all joints, the root's first."""
        return Turns.of(torch.cat((self.parameters.global_orient[:, None], self.parameters.body_pose), 1))

    def points(self, layout: KeypointLayout) -> tuple[Float[Tensor, "b K 3"], Float[Tensor, "b K 3 F"]]:
        """Return a layout's points and their derivatives by the free variables; cached."""
        if id(layout) not in self._points:
            p = self.parameters
            found = keypoint_jacobian(self.body, layout)(self.turns, p.betas, p.age_offset, p.transl)
            derivatives = by_all(found)
            if len(self.free) < self.free.size:
                derivatives = derivatives.index_select(-1, self.free.columns)
            self._points[id(layout)] = found.points, derivatives
        return self._points[id(layout)]

    def posed(self, surface: SurfaceJacobian) -> PosedSurface:
        """Return the posed bodies, which the derivatives of all surface points share; cached."""
        if self._posed is None:
            p = self.parameters
            self._posed = surface.posed(self.turns, p.betas, p.age_offset, p.transl)
        return self._posed

    @cached_property
    def vertices(self) -> Float[Tensor, "b V 3"]:
        """Vertices of the bodies [m]."""
        return self.body(self.parameters).vertices

    def block(
        self,
        residuals: Float[Tensor, "b M"],
        jacobian: Float[Tensor, "b M F"],
        cost: Float[Tensor, " b"] | None = None,
    ) -> Block:
        """Return the block of residuals that depend on all free variables; see `Quadratic.of`."""
        return Block(*Quadratic.of(residuals, jacobian, cost), slice(0, len(self.free)))

    def group_block(
        self, group: str, residuals: Float[Tensor, "b M"], jacobian: Float[Tensor, "#b M G"]
    ) -> Block | None:
        """Return the block of residuals that depend on one group of parameters; None if it is not free."""
        if group not in self.free.parts:
            return None
        where, entries = self.free.parts[group]
        if entries is not None:
            jacobian = jacobian[..., entries]
        return Block(*Quadratic.of(residuals, jacobian), where)

    def scaled_block(
        self, group: str, residuals: Float[Tensor, "*batch"], scales: Float[Tensor, "*#batch"]
    ) -> Block | None:
        """Return the block of residuals ``scale (parameter - constant)``, as `group_block`."""
        if group not in self.free.parts:
            return None
        where, entries = self.free.parts[group]
        residuals, scales = (
            part.reshape(len(part), math.prod(part.shape[1:])) for part in (residuals, scales)
        )
        cost, gradient, normal = residuals.square().sum(1) / 2, residuals * scales, scales * scales
        if entries is not None:
            gradient, normal = gradient[:, entries], normal[:, entries]
        return Block(cost, gradient, normal, where)

    def pose_block(
        self,
        cost: Float[Tensor, " b"],
        gradient: Float[Tensor, "b G"],
        normal: Float[Tensor, "#b G G"] | Float[Tensor, "#b G"],
    ) -> Block:
        """Return the block of a term of the pose, which is free, from its derivatives by all joints."""
        where, entries = self.free.parts["body_pose"]
        if entries is not None:
            gradient, normal = gradient[:, entries], normal[:, entries]
            normal = normal if normal.dim() == 2 else normal[..., entries]
        return Block(cost, gradient, normal, where)

    def joint_block(self, residuals: Float[Tensor, "b J 3"], jacobian: Float[Tensor, "b J 3 3"]) -> Block:
        """Return the block of residuals of joints, each of which depends only on its own three angles."""
        where, entries = self.free.parts["body_pose"]
        cost = residuals.square().sum((1, 2)) / 2
        if entries is not None:
            joints = entries[::3] // 3
            residuals, jacobian = residuals[:, joints], jacobian[:, joints]
        gradient = (residuals[..., None, :] @ jacobian).flatten(1)
        return Block(cost, gradient, jacobian.mT @ jacobian, where)


def by_all(found: KeypointDerivatives) -> Float[Tensor, "b K 3 P"]:
    """Return derivatives of points by all parameters, in the order of `BodyParameters.vector`."""
    by_transl = torch.eye(3, dtype=found.points.dtype, device=found.points.device)
    by_transl = (found.transl[..., None, None] * by_transl).expand(*found.points.shape, 3)
    return torch.cat((found.pose.flatten(-2), found.betas, found.age_offset[..., None], by_transl), -1)


def keypoint_jacobian(body: BodyModel, layout: str | KeypointLayout) -> KeypointJacobian:
    """Return the Jacobian of a layout on a body; made at first use and cached on the layer."""
    return body.for_layout(layout, KeypointJacobian)
