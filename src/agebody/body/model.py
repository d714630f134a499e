"""The one implementation of all body layers, and a body whose identity is computed once.

This is one file because both share the private steps from identity to skeleton to surface.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody import rotations
from agebody.assets.asset import BodyAsset, expect_asset
from agebody.assets.container import is_path
from agebody.assets.io import load_asset
from agebody.checks import broadcast, flatten, read_count, read_rotations, read_tensor
from agebody.engine import halfprecision
from agebody.engine.backend import BackendName, WarpSurface, WarpTree, choose_backend, get_parts
from agebody.engine.batched import build, building, own_precision, product
from agebody.engine.exact import read_device
from agebody.engine.identity import RestJoints
from agebody.engine.kinematics import KinematicTree, homogeneous
from agebody.engine.points import ContourTable, LayoutTables, PointRegression
from agebody.engine.surface import PosedSurface
from agebody.keypoints import KeypointLayout, contour_layout, get_layout
from agebody.parameters import BodyParameters
from agebody.rotations import PoseFormat

DEFAULT_NUM_BETAS = 10

DTYPES = (torch.float32, torch.float64)
"""Floating-point types of a layer."""

MOST_TABLES = 64
"""Number of layout tables that a body keeps, which bounds memory when layouts are created repeatedly."""

Made = TypeVar("Made", bound=nn.Module)


def find_asset(asset: Any) -> BodyAsset:
    """Return the asset of a layer's argument: itself, or that of a file."""
    return load_asset(asset) if is_path(asset) else expect_asset(asset)


def usual_expressions(asset: BodyAsset) -> int:
    """Return the number of expression coefficients that layers with expressions use if none is given."""
    return min(DEFAULT_NUM_BETAS, asset.num_expression)


class BodyOutput(NamedTuple):
    """A posed body."""

    vertices: Tensor
    """(*batch, V, 3) [m]."""
    joints: Tensor
    """(*batch, J, 3) [m], the joints of the kinematic tree."""
    joint_transforms: Tensor
    """(*batch, J, 4, 4) world transform of each joint's frame."""
    full_pose: Tensor
    """(*batch, J, 3, 3) rotation of each joint relative to its parent, the root's first."""


class Identity(NamedTuple):
    """A body's shape and age."""

    batch: tuple[int, ...]
    coefficients: Tensor
    """(*batch, C) constant 1, betas, age."""
    rest_joints: Tensor
    """(*batch, J, 3)"""
    corrective_scale: Tensor | None
    """(*batch) factor of the pose blend shapes."""


class Person(NamedTuple):
    """One body, or two bodies to blend."""

    parts: list[tuple[BodyModel, Identity]]
    share: Tensor | None
    """(*batch) share of the second body: True or False, or a number from 0 to 1."""


class _Skeleton(NamedTuple):
    """A posed skeleton over a flat batch B, and what is needed to skin a surface with it."""

    batch: tuple[int, ...]
    coefficients: Tensor
    """(B, C) of the identity"""
    feature: Tensor
    """(B, P) coefficients of the pose blend shapes; P = 0 where the body has none."""
    rotations: Tensor
    """(B, J, 3, 3)"""
    world: Tensor
    """(B, J, 3, 4) joint frames, without the translation"""
    transforms: Tensor
    """(B, J, 3, 4) from the rest pose to the posed body, without the translation"""
    translation: Tensor
    """(B, 3)"""


def _blend(person: Person, tensors: list[Tensor], entry_dims: int) -> Tensor:
    if person.share is None:
        return tensors[0]
    first, second = tensors
    share = person.share[(..., *[None] * entry_dims)]
    return (
        torch.where(share, second, first) if share.dtype == torch.bool else first + share * (second - first)
    )


def _blend_outputs(person: Person, outputs: list[BodyOutput]) -> BodyOutput:
    if person.share is None:
        return outputs[0]
    batch_dims = outputs[0].vertices.dim() - 2
    return BodyOutput(*(_blend(person, [a, b], a.dim() - batch_dims) for a, b in zip(*outputs, strict=True)))


class BodyModel(nn.Module):
    """A body asset as a layer; use `SMPL`, `SMIL` or `SMPLA`.

    Args:
        asset: a `BodyAsset`, or the path of a file for `load_asset`.
        num_betas: shape coefficients to use; the asset's first 10, or all where it has fewer, if not given.
        num_expression: expression coefficients to use, the asset's first ones.
        pose_format: format of ``body_pose`` and ``global_orient`` where a call names none: "axis_angle",
            "matrix", "quaternion" (x, y, z, w) or "rotation_6d".
        backend: "auto", "torch" or "warp".
        dtype: torch.float32 or torch.float64. The arrays are cast from the asset, now and at every
            later change of precision, so that ``.double()`` gives the file's own float64. ``.half()`` and
            ``.bfloat16()``, as of a network that contains the layer, leave its precision as it is.
        device: device of the layer; by default torch's (`torch.device` as a context counts).
        corrective_dtype: multiply the pose blend shapes in 16 bits with sums in float32, in a float32 layer.
            Against float64, over random poses and half turns of every joint, a vertex errs by less than
            0.001 mm in torch.bfloat16 (numbers split in two parts) and 0.05 mm in torch.float16. It is fast
            on GPUs (torch >= 2.8) and gains nothing on CPUs. Second derivatives and compiled layers compute
            in float32.

    Raises:
        AssetError: the file cannot be read.

    The asset's arrays are non-persistent buffers: ``state_dict()`` is empty, so a checkpoint carries no
    licensed data. Under autocast the layer computes in its own dtype. On the device "meta" it has shapes
    alone, and gets its numbers from the asset when it moves to another device, also by ``to_empty``.
    """

    faces: Tensor
    num_joints: int
    """J."""
    num_vertices: int
    """V."""
    backend: Literal["torch", "warp"]
    infant_corrective_scale: float = 1.0
    """Factor of the pose blend shapes at age offset 1, linear from 1 at 0."""
    _of_every_age = False
    """Whether the layer has the ages of its asset."""
    identity: RestJoints
    tree: KinematicTree | WarpTree
    surface: PosedSurface | WarpSurface

    def __init__(
        self,
        asset: BodyAsset | str | os.PathLike[str],
        *,
        num_betas: int | None = None,
        num_expression: int = 0,
        pose_format: PoseFormat = "axis_angle",
        backend: BackendName = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        corrective_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        asset = find_asset(asset)
        whose = asset.metadata.name
        if num_betas is None:
            num_betas = min(DEFAULT_NUM_BETAS, asset.num_betas)
        num_betas = read_count("num_betas", num_betas, asset.num_betas, whose)
        num_expression = read_count("num_expression", num_expression, asset.num_expression, whose)
        rotations.check_format(pose_format)
        _check_dtype(dtype, corrective_dtype)
        self.asset = asset
        self.num_joints, self.num_vertices = asset.num_joints, asset.num_vertices
        self.num_betas, self.num_expression = num_betas, num_expression
        self.pose_format: PoseFormat = pose_format
        self._requested_backend: BackendName = backend
        self.corrective_dtype = corrective_dtype
        self.age_anchors: tuple[float, ...] = tuple(asset.age_offsets.tolist()) if self._of_every_age else ()
        self._contour_points: KeypointLayout | None = None
        self.num_correctives = 0 if asset.posedirs is None else asset.posedirs.shape[2]
        self._pack(dtype, read_device(device) or torch.empty(0).device)

    @property
    def num_coefficients(self) -> int:
        """Number of shape and expression coefficients: what `BodyParameters.betas` holds."""
        return self.num_betas + self.num_expression

    @building()
    def _pack(self, dtype: torch.dtype, device: torch.device) -> None:
        """Build the buffers from the asset's arrays, in one precision."""
        if device.type == "meta":
            self._pack(dtype, torch.device("cpu"))
            super()._apply(lambda tensor: tensor.to(device))
            return
        asset = self.asset
        identity, correctives = self.identity_directions, self.corrective_directions
        self.backend = choose_backend(self._requested_backend, device)
        parts = get_parts(self.backend)
        faces = torch.from_numpy(asset.faces.astype(np.int64)).to(device)
        self.register_buffer("faces", faces, persistent=False)
        self.identity = parts.rest_joints(self.joint_directions, self.age_anchors, dtype=dtype).to(device)
        self.tree = parts.tree(asset.parents.tolist(), self.num_correctives > 0).to(device)
        low = self.corrective_dtype
        self.surface = parts.surface(
            identity if low else np.concatenate((identity, correctives)),
            asset.dense_weights(),
            dtype=dtype,
            correctives=correctives if low else None,
            corrective_dtype=low,
            device=device,
        )
        self.points = nn.ModuleDict()

    @property
    def identity_directions(self) -> Float[np.ndarray, "C V 3"]:
        """Template, then displacements of the vertices per unit of each beta, expression, age template [m].

        With `joint_directions`, `corrective_directions`, `tables` and `for_layout`, this is what code that
        builds on the layer needs to repeat its arithmetic, such as derivatives in closed form.
        """
        asset = self.asset
        used = np.r_[: self.num_betas, asset.num_betas : asset.num_betas + self.num_expression]
        parts = [asset.template[None], asset.shapedirs[:, :, used].transpose(2, 0, 1)]
        if self.age_anchors and asset.age_templates is not None:
            parts.append(asset.age_templates - asset.template)
        return np.concatenate(parts)

    @property
    def joint_directions(self) -> Float[np.ndarray, "C J 3"]:
        """The joints at rest, then their displacement for one unit of each coefficient, in float64 [m]."""
        regressor = self.asset.joint_regressor
        return np.stack([regressor @ part.astype(np.float64) for part in self.identity_directions])

    @property
    def corrective_directions(self) -> Float[np.ndarray, "P V 3"]:
        """Displacement of the vertices for one unit of each pose blend coefficient [m]."""
        asset = self.asset
        if asset.posedirs is None:
            return np.zeros((0, asset.num_vertices, 3), asset.template.dtype)
        return asset.posedirs.transpose(2, 0, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the layer; a new precision or kind of device rebuilds the buffers from the asset."""
        try:
            target = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        except NotImplementedError:  # torch has nothing to copy from the device "meta"
            target = fn(torch.empty(0, dtype=self.dtype, device="cpu"))
        dtype = target.dtype if target.dtype in DTYPES else self.dtype
        if (dtype, target.device.type) != (self.dtype, self.device.type):
            _check_dtype(dtype, self.corrective_dtype)
            self._pack(dtype, target.device)

        def move(tensor: Tensor) -> Tensor:
            """Move a buffer and keep its numbers, which ``to_empty`` and 16 bits would lose."""
            moved = fn(tensor).to(tensor.dtype)
            return moved if moved is tensor or tensor.device.type == "meta" else moved.copy_(tensor)

        for child in self.children():
            child._apply(fn if isinstance(child, BodyModel) else move)
        return super()._apply(move, recurse=False)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the layer's inputs and outputs."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the layer."""
        return self._like.device

    @property
    def _like(self) -> Tensor:
        """A tensor of the layer's dtype and device."""
        return self.identity.directions

    def extra_repr(self) -> str:
        """Return the text that `print` shows."""
        expression = f"num_expression={self.num_expression}, " if self.num_expression else ""
        rest = f"{expression}dtype={self.dtype}, backend={self.backend!r}"
        return f"{self.asset!r}, num_betas={self.num_betas}, {rest}"

    def forward(
        self,
        parameters: BodyParameters | None = None,
        *,
        betas: Tensor | None = None,
        body_pose: Tensor | None = None,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        age_offset: Tensor | float | None = None,
        expression: Tensor | None = None,
        pose_format: PoseFormat | None = None,
    ) -> BodyOutput:
        """Pose the body. Every argument is optional, zero if not given, and broadcasts with the others.

        Args:
            parameters: all arguments at once, in place of those below. Its rotations are axis-angle vectors,
                whatever the layer's pose format is; its age offset is ignored by a body of one age.
            betas: (*batch, num_betas).
            body_pose: (*batch, J - 1, ...) or flat (*batch, (J - 1) * n), rotations of all joints but the
                root relative to their parents, in ``pose_format``.
            global_orient: (*batch, ...) rotation of the root joint, in ``pose_format``. It turns the body
                about its root joint, not about the origin; see `ShapedBody.move`.
            transl: (*batch, 3) [m].
            age_offset: (*batch), or (*batch, 1) with one dimension more than the batch of betas; 0 adult,
                1 infant, not clamped.
            expression: (*batch, num_expression). Without it, ``betas`` may hold both: (*batch, num_betas +
                num_expression).
            pose_format: see the class.
        """
        pose = (body_pose, global_orient, transl, pose_format)
        given, pose = _read(self, parameters, (betas, age_offset, expression), pose)
        with own_precision(self.device):
            person = self._person(*given)
            return _blend_outputs(
                person, [b._output(b._pose(identity, *pose), None) for b, identity in person.parts]
            )

    def keypoints(
        self,
        layout: str | KeypointLayout,
        parameters: BodyParameters | None = None,
        *,
        betas: Tensor | None = None,
        body_pose: Tensor | None = None,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        age_offset: Tensor | float | None = None,
        expression: Tensor | None = None,
        pose_format: PoseFormat | None = None,
    ) -> Tensor:
        """Return the keypoints of a layout, (*batch, K, 3) [m], without the mesh; arguments as in `forward`.

        A point regressed from posed vertices is ``sum_j A_j m_j`` with ``m_j`` affine in the coefficients:
        the ``m_j`` are computed once per layout, so the cost does not depend on the number of vertices.
        """
        pose = (body_pose, global_orient, transl, pose_format)
        given, pose = _read(self, parameters, (betas, age_offset, expression), pose)
        with own_precision(self.device):
            person = self._person(*given)
            return _blend(
                person, [b._keypoints(b._pose(identity, *pose), layout) for b, identity in person.parts], 2
            )

    def face_contour(
        self,
        parameters: BodyParameters | None = None,
        *,
        betas: Tensor | None = None,
        body_pose: Tensor | None = None,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        age_offset: Tensor | float | None = None,
        expression: Tensor | None = None,
        pose_format: PoseFormat | None = None,
    ) -> Tensor:
        """Return the outline of the face as seen from +z, (*batch, 17, 3) [m]; arguments as in `forward`.

        The points slide along the jaw as the head turns about y, in steps of a degree up to 39 to each side;
        the choice has no gradient. They are smplx's with ``use_face_contour=True``. In layouts the contour
        is that of a head that faces +z.
        """
        pose = (body_pose, global_orient, transl, pose_format)
        given, pose = _read(self, parameters, (betas, age_offset, expression), pose)
        with own_precision(self.device):
            person = self._person(*given)
            return _blend(person, [b._contour(b._pose(identity, *pose)) for b, identity in person.parts], 2)

    def _contour(self, skeleton: _Skeleton) -> Tensor:
        if self._contour_points is None:
            self._contour_points = build(contour_layout, self.asset)
        flat = skeleton._replace(batch=skeleton.translation.shape[:1])
        vertices = self._keypoints(flat, self._contour_points)
        table = self.for_layout(self._contour_points, ContourTable)
        points = table(vertices, skeleton.world[:, self.asset.joint_names.index("neck")])
        return points.reshape(*skeleton.batch, *points.shape[1:])

    def regress(self, layout: str | KeypointLayout, vertices: Tensor, joints: Tensor | None = None) -> Tensor:
        """Return the keypoints of a layout, (*batch, K, 3) [m], from an existing mesh.

        From a pose, `keypoints` gives the same without a mesh.

        Args:
            layout: its name, or a layout.
            vertices: (*batch, V, 3) [m], of this body's topology.
            joints: (*batch, J, 3) [m], as in `BodyOutput`; required where points of the layout are joints.
        """
        mesh = read_tensor("vertices", vertices, (self.num_vertices, 3), self._like)
        points = self._made_for(
            layout,
            "mesh",
            lambda found: get_parts(self.backend).mesh_points(
                self.asset, found, dtype=self.dtype, device=self.device
            ),
        )
        if joints is None and points.any_joint:
            raise ValueError(
                f"joints: points of layout {points.layout.name!r} are joints of the body; give them"
            )
        batch = mesh.shape[:-2]
        if joints is not None:
            joints = read_tensor("joints", joints, (self.num_joints, 3), self._like)
            batch = broadcast(vertices=batch, joints=joints.shape[:-2])
            joints = flatten(joints, batch, 2)
        with own_precision(self.device):
            found = points(flatten(mesh, batch, 2), joints)
        return found.reshape(*batch, *found.shape[1:])

    def shape(
        self,
        parameters: BodyParameters | None = None,
        *,
        betas: Tensor | None = None,
        age_offset: Tensor | float | None = None,
        expression: Tensor | None = None,
    ) -> ShapedBody:
        """Fix the identity of the body: it is computed once and can be posed many times.

        Args:
            parameters: betas and age offset at once; its pose is ignored.
            betas: (*batch, num_betas).
            age_offset: (*batch) or (*batch, 1).
            expression: (*batch, num_expression); or after the betas, in ``betas``.
        """
        given, _ = _read(self, parameters, (betas, age_offset, expression), ())
        with own_precision(self.device):
            return ShapedBody(self, self._person(*given))

    def move(
        self, parameters: BodyParameters, rotation: Tensor, translation: Tensor | None = None
    ) -> BodyParameters:
        """Return bodies of which every vertex v is moved to ``rotation @ v + translation``.

        Args:
            parameters: of the bodies.
            rotation: (*batch, 3, 3).
            translation: (*batch, 3) [m].
        """
        global_orient, transl = self.shape(parameters).move(
            rotation,
            translation,
            global_orient=parameters.global_orient,
            transl=parameters.transl,
            pose_format="axis_angle",
        )
        return parameters._replace(global_orient=global_orient, transl=transl)

    def _person(
        self, betas: Tensor | None, age_offset: Tensor | float | None, expression: Tensor | None
    ) -> Person:
        """Return this body with an identity, and in subclasses a second body to blend it with."""
        return Person([(self, self._identity(betas, age_offset, expression))], None)

    def _identity(
        self, betas: Tensor | None, age_offset: Tensor | float | None, expression: Tensor | None = None
    ) -> Identity:
        betas = self._coefficients(betas, expression)
        age = self._age(age_offset, betas.dim() - 1)
        batch = broadcast(betas=betas.shape[:-1], age_offset=age.shape)
        coefficients, rest_joints = self.identity(betas.expand(*batch, -1), age.expand(batch))
        return Identity(batch, coefficients, rest_joints, self.corrective_scale(age))

    def _coefficients(self, betas: Tensor | None, expression: Tensor | None) -> Tensor:
        """Return betas and expression in one tensor, (*batch, num_coefficients)."""
        joined = isinstance(betas, Tensor) and betas.shape[-1:] == (self.num_coefficients,)
        if expression is None and (joined or not self.num_expression):
            return read_tensor("betas", betas, (self.num_coefficients,), self._like)
        empty = isinstance(expression, Tensor) and expression.shape[-1:] == (0,)
        if not (self.num_expression or expression is None or empty):
            raise ValueError(
                f"expression: {type(self).__name__} was made without expressions; use SMPLX, or "
                "num_expression=... of a body that has them"
            )
        betas = read_tensor("betas", betas, (self.num_betas,), self._like)
        expression = read_tensor("expression", expression, (self.num_expression,), self._like)
        batch = broadcast(betas=betas.shape[:-1], expression=expression.shape[:-1])
        return torch.cat((betas.expand(*batch, -1), expression.expand(*batch, -1)), -1)

    def _age(self, age_offset: Tensor | float | None, batch_dims: int) -> Tensor:
        if age_offset is not None and not self.age_anchors:
            raise ValueError(
                f"age_offset: {type(self).__name__} has one age; use SMPLA and a body with age templates "
                "(load_asset(..., infant_template=...), mannequin() or anny_body())"
            )
        age = read_tensor("age_offset", age_offset, (), self._like)
        return age[..., 0] if age.dim() > max(1, batch_dims) and age.shape[-1] == 1 else age

    def corrective_scale(self, age_offset: Tensor) -> Tensor | None:
        """Return the factor of the pose blend shapes at an age offset; None for 1 at every age."""
        scale = self.infant_corrective_scale
        return None if scale == 1 else 1 + (scale - 1) * age_offset

    def _pose(
        self,
        identity: Identity,
        body_pose: Tensor | None,
        global_orient: Tensor | None,
        transl: Tensor | None,
        pose_format: PoseFormat | None,
    ) -> _Skeleton:
        pose_format = self.pose_format if pose_format is None else pose_format
        rotations.check_format(pose_format)
        body = read_rotations("body_pose", body_pose, pose_format, self.num_joints - 1, self._like)
        root = read_rotations("global_orient", global_orient, pose_format, None, self._like)
        translation = read_tensor("transl", transl, (3,), self._like)
        entry = rotations.ENTRY_SHAPES[pose_format]
        batch = broadcast(
            identity=identity.batch,
            body_pose=body.shape[: body.dim() - 1 - len(entry)],
            global_orient=root.shape[: root.dim() - len(entry)],
            transl=translation.shape[:-1],
        )
        pose = torch.cat((flatten(root, batch, len(entry))[:, None], flatten(body, batch, 1 + len(entry))), 1)
        matrices, world, transforms, feature = self.tree.pose(
            pose, pose_format, flatten(identity.rest_joints, batch, 2)
        )
        if self.num_correctives and identity.corrective_scale is not None:
            feature = feature * flatten(identity.corrective_scale[..., None], batch, 1)
        coefficients = flatten(identity.coefficients, batch, 1)
        translation = flatten(translation, batch, 1)
        return _Skeleton(batch, coefficients, feature, matrices, world, transforms, translation)

    def _output(self, skeleton: _Skeleton, base: Tensor | None) -> BodyOutput:
        """Skin the surface; a base surface already includes the identity's coefficients."""
        coefficients = skeleton.feature
        if base is None:
            coefficients = torch.cat((skeleton.coefficients, skeleton.feature), -1)
        vertices = self.surface(coefficients, skeleton.transforms, skeleton.translation, base)
        joints = skeleton.world[..., 3] + skeleton.translation[:, None]
        world = homogeneous(skeleton.world[..., :3], joints)
        output = BodyOutput(vertices, joints, world, skeleton.rotations)
        if len(skeleton.batch) == 1:
            return output
        return BodyOutput(*(t.reshape(*skeleton.batch, *t.shape[1:]) for t in output))

    def _keypoints(self, skeleton: _Skeleton, layout: str | KeypointLayout) -> Tensor:
        regression = self._regression(layout)
        coefficients = torch.cat((skeleton.coefficients, skeleton.feature), -1)
        points = regression(coefficients, skeleton.world, skeleton.transforms, skeleton.translation)
        return points.reshape(*skeleton.batch, *points.shape[1:])

    def tables(self, layout: str | KeypointLayout) -> LayoutTables:
        """Return how the joints carry the points of a layout: computed at first use, then cached.

        Coefficients are those of `identity_directions`, then of `corrective_directions`.
        """
        return self._regression(layout).tables

    def for_layout(self, layout: str | KeypointLayout, kind: Callable[..., Made]) -> Made:
        """Return the module ``kind(body, layout)``: built at first use, then cached and moved with the body.

        Its buffers depend on body and layout alone.
        """
        return self._made_for(layout, kind.__qualname__, lambda found: kind(self, found))

    def _regression(self, layout: str | KeypointLayout) -> PointRegression:
        def make(layout: KeypointLayout) -> PointRegression:
            directions = np.concatenate((self.identity_directions, self.corrective_directions))
            tables = LayoutTables.build(self.asset, layout, directions)
            return PointRegression(self.asset, tables, directions, dtype=self.dtype, device=self.device)

        return self._made_for(layout, "posed", make)

    def _made_for(
        self, layout: str | KeypointLayout, use: str, make: Callable[[KeypointLayout], nn.Module]
    ) -> Any:
        """Return a module per layout, built at first use; the latest ``MOST_TABLES`` are cached."""
        layout = get_layout(layout)
        key, points = f"{use} {id(layout)}", self.points
        # After unpickling or copying, the id in a key may belong to a different object.
        if key not in points or points[key].layout is not layout:
            made = build(make, layout)
            kept = [(name, table) for name, table in points.items() if name != key]
            # A new dictionary, because other threads may be reading the old one.
            self.points = points = nn.ModuleDict(dict([*kept[1 - MOST_TABLES :], (key, made)]))
        return points[key]


class ShapedBody:
    """A body with its identity fixed: made by `BodyModel.shape`, called with poses."""

    def __init__(self, body: BodyModel, person: Person) -> None:
        self.body = body
        self._person = person
        self._bases = [b.surface.rest(flatten(i.coefficients, i.batch, 1)) for b, i in person.parts]

    @property
    def rest_vertices(self) -> Tensor:
        """(*batch, V, 3) [m] surface in the rest pose."""
        parts = zip(self._person.parts, self._bases, strict=True)
        surfaces = [b.surface.vertices(base).reshape(*i.batch, b.num_vertices, 3) for (b, i), base in parts]
        return _blend(self._person, surfaces, 2)

    @property
    def rest_joints(self) -> Tensor:
        """(*batch, J, 3) [m] joints in the rest pose."""
        return _blend(self._person, [identity.rest_joints for _, identity in self._person.parts], 2)

    def __call__(
        self,
        parameters: BodyParameters | None = None,
        *,
        body_pose: Tensor | None = None,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        pose_format: PoseFormat | None = None,
    ) -> BodyOutput:
        """Pose the body; arguments as in `BodyModel.forward`. Of parameters, the identity is ignored."""
        _, pose = _read(self.body, parameters, (), (body_pose, global_orient, transl, pose_format))
        outputs = []
        with own_precision(self.body.device):
            for (body, identity), base in zip(self._person.parts, self._bases, strict=True):
                skeleton = body._pose(identity, *pose)
                if math.prod(identity.batch) != 1:
                    leading = [1] * (len(skeleton.batch) - len(identity.batch))
                    base = base.unflatten(0, (*leading, *identity.batch))
                    base = base.expand(*skeleton.batch, -1).flatten(0, -2)
                outputs.append(body._output(skeleton, base))
            return _blend_outputs(self._person, outputs)

    def keypoints(
        self,
        layout: str | KeypointLayout,
        parameters: BodyParameters | None = None,
        *,
        body_pose: Tensor | None = None,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        pose_format: PoseFormat | None = None,
    ) -> Tensor:
        """Return the keypoints of a layout, (*batch, K, 3) [m], without building the mesh."""
        _, pose = _read(self.body, parameters, (), (body_pose, global_orient, transl, pose_format))
        with own_precision(self.body.device):
            points = [b._keypoints(b._pose(identity, *pose), layout) for b, identity in self._person.parts]
            return _blend(self._person, points, 2)

    def move(
        self,
        rotation: Tensor,
        translation: Tensor | None = None,
        *,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        pose_format: PoseFormat | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the ``global_orient`` and ``transl`` that move the whole posed body rigidly.

        ``global_orient`` turns a body about its root joint, which differs from a rotation
        about the origin by a shift. With the returned values every vertex v becomes
        ``rotation @ v + translation``.

        Args:
            rotation: (*batch, 3, 3).
            translation: (*batch, 3) [m].
            global_orient, transl, pose_format: the current ones.
        """
        body = self.body
        pose_format = body.pose_format if pose_format is None else pose_format
        rotation = read_tensor("rotation", rotation, (3, 3), body._like)
        root = rotations.to_matrix(
            read_rotations("global_orient", global_orient, pose_format, None, body._like), pose_format
        )
        pelvis = self.rest_joints[..., 0, :]
        origin = pelvis + read_tensor("transl", transl, (3,), body._like)
        translation = read_tensor("translation", translation, (3,), body._like)
        moved = product(rotation, origin[..., None])[..., 0] + translation
        return rotations.from_matrix(product(rotation, root), pose_format), moved - pelvis


def _read(
    body: BodyModel, parameters: Any, identity: tuple[Any, ...], pose: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the arguments of identity and of pose: those given by name, or those of the parameters."""
    if parameters is None:
        return identity, pose
    if not isinstance(parameters, BodyParameters):
        raise TypeError(
            f"parameters: expected BodyParameters, got {type(parameters).__name__}; give tensors by name, "
            "as betas=..., body_pose=..."
        )
    if any(argument is not None for argument in (*identity, *pose)):
        raise ValueError("parameters: expected BodyParameters or arguments by name, got both")
    orient, body_pose, betas, age_offset, transl = parameters
    identity = (betas, age_offset if body.age_anchors else None, None)
    return identity, (body_pose, orient, transl, "axis_angle")


def _check_dtype(dtype: torch.dtype, corrective_dtype: torch.dtype | None) -> None:
    if dtype not in DTYPES:
        raise TypeError(
            f"dtype: body layers compute in torch.float32 or torch.float64, got {dtype}; for mixed precision "
            "keep the layer in float32 and use torch.autocast, under which it stays exact"
        )
    if corrective_dtype not in (None, *halfprecision.DTYPES):
        raise TypeError(
            f"corrective_dtype: expected torch.bfloat16, torch.float16 or None, got {corrective_dtype}"
        )
    if corrective_dtype is not None and dtype != torch.float32:
        raise ValueError(f"corrective_dtype: {corrective_dtype} needs a layer of torch.float32, got {dtype}")


def expect_body(value: Any, name: str = "body", *, single: bool = False) -> BodyModel:
    """Check that an argument is a layer; with ``single``, of one body."""
    if not isinstance(value, BodyModel):
        advice = "; make one of it, such as SMPLA(asset)" if isinstance(value, BodyAsset) else ""
        raise TypeError(f"{name}: expected a layer such as SMPLA, got {type(value).__name__}{advice}")
    if single and getattr(value, "infant", None) is not None:
        raise ValueError(f"{name}: expected one body, got two with a switch between them (smil=)")
    return value
