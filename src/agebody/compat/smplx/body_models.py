"""smplx's SMPL: its arguments, parameters, attributes and outputs, computed by an `agebody.BodyModel`."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from agebody import body
from agebody.assets.asset import BodyAsset
from agebody.assets.io import smpl_arrays
from agebody.assets.official import TITLES
from agebody.checks import expect_tensor
from agebody.compat.smplx.arrays import WatchedArrays
from agebody.compat.smplx.lbs import blend_shapes, lbs, tree_of
from agebody.compat.smplx.lbs import find_dynamic_lmk_idx_and_bcoords as find_dynamic_lmk_idx_and_bcoords
from agebody.compat.smplx.lbs import vertices2landmarks as vertices2landmarks
from agebody.compat.smplx.model_files import OFFERED, ModelPath, add_kid_template, read_asset, resolve_type
from agebody.compat.smplx.utils import Array as Array
from agebody.compat.smplx.utils import FLAMEOutput as FLAMEOutput
from agebody.compat.smplx.utils import MANOOutput as MANOOutput
from agebody.compat.smplx.utils import SMPLHOutput as SMPLHOutput
from agebody.compat.smplx.utils import SMPLOutput, Tensor
from agebody.compat.smplx.utils import SMPLXOutput as SMPLXOutput
from agebody.compat.smplx.utils import Struct as Struct
from agebody.compat.smplx.utils import find_joint_kin_chain as find_joint_kin_chain
from agebody.compat.smplx.utils import to_np as to_np
from agebody.compat.smplx.utils import to_tensor as to_tensor
from agebody.compat.smplx.vertex_ids import short_name
from agebody.compat.smplx.vertex_ids import vertex_ids as VERTEX_IDS  # noqa: F401
from agebody.compat.smplx.vertex_joint_selector import VertexJointSelector
from agebody.keypoints import KeypointLayout
from agebody.rotations import PoseFormat

ModelOutput = SMPLOutput
"""The name of the output up to smplx 0.1.13, which SPIN and its successors import from here."""

_ARRAYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights")
_SELECTED = "vertex_joint_selector.extra_joints_idxs"


class SMPL(WatchedArrays):
    """SMPL with smplx's arguments: parameters with default values, and 21 vertices appended to the joints.

    Args:
        model_path: any file that `agebody.load_asset` reads, a folder with ``SMPL_NEUTRAL.pkl`` (or .npz or
            .safetensors) or the official ``basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl``, or a `BodyAsset`.
        kid_template_path: ``smpl_kid_template.npy`` or a SMIL model, for ``age="kid"``; not needed if the
            body has an infant template.
        data_struct: the entries of a model file as attributes, instead of a file.
        create_betas: whether to make a parameter for the argument of that name, the default of later calls;
            likewise ``create_global_orient``, ``create_body_pose`` and ``create_transl``.
        betas: initial value of that parameter, zeros by default; likewise ``global_orient``, ``body_pose``
            and ``transl``.
        num_betas: number of shape coefficients: at most 10, or 300 if the file has as many. With
            ``age="kid"`` the age offset follows as one more: 0 adult, 1 infant.
        dtype: torch.float32 or torch.float64.
        batch_size: batch size of the parameters.
        joint_mapper: called with the joints (B, 45, 3) before translation; its result is returned instead.
        gender: gender of the file to take from a folder.
        age: "adult" or "kid" (SMPL-A; AGORA, CVPR 2021).
        vertex_ids: vertex of each appended point, under the names of `vertex_ids`. By default the vertex with
            the largest weight in each of the body's surface points: SMPL's ids on SMPL.
        v_template: (V, 3) rest surface [m] in place of the file's.
        kwargs: ``use_hands`` and ``use_feet_keypoints``, whether to append finger tips and feet; other
            options are accepted and ignored, as in smplx.

    Raises:
        AssetError: the file cannot be read, or the folder has none of that gender.

    The arrays of the model are attributes under smplx's names, as non-persistent buffers: a checkpoint holds
    only the parameters. A checkpoint of smplx loads with ``strict=True``; its arrays are ignored.

    An array that is replaced or changed, in whatever way (``model.v_template = ...``,
    ``model.v_template.data += ...``), is used, at the speed of `lbs.lbs`.
    """

    _common = "faces_tensor"

    NUM_JOINTS = 23
    NUM_BODY_JOINTS = 23
    SHAPE_SPACE_DIM = 300

    v_template: Tensor
    shapedirs: Tensor
    posedirs: Tensor
    J_regressor: Tensor
    parents: Tensor
    lbs_weights: Tensor
    faces_tensor: Tensor

    def __init__(
        self,
        model_path: ModelPath,
        kid_template_path: str | os.PathLike[str] = "",
        data_struct: Any = None,
        create_betas: bool = True,
        betas: Any = None,
        num_betas: int = 10,
        create_global_orient: bool = True,
        global_orient: Any = None,
        create_body_pose: bool = True,
        body_pose: Any = None,
        create_transl: bool = True,
        transl: Any = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 1,
        joint_mapper: Callable[[Tensor], Tensor] | None = None,
        gender: str = "neutral",
        age: str = "adult",
        vertex_ids: Mapping[str, int] | None = None,
        v_template: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if age not in ("adult", "kid"):
            raise ValueError(f"age: expected 'adult' or 'kid', got {age!r}")
        asset = read_asset(model_path, data_struct, gender)
        if asset.num_joints != self.NUM_BODY_JOINTS + 1:
            kind = TITLES.get(asset.metadata.kind, asset.metadata.kind)
            raise ValueError(
                f"model_path: expected {self.NUM_BODY_JOINTS + 1} joints, got {asset.num_joints} in "
                f"{asset.metadata.name!r}, which is {kind}; {OFFERED}"
            )
        num_betas = min(num_betas, self._available_betas(asset))
        if age == "kid":
            asset = add_kid_template(asset, kid_template_path)
        layer = body.SMPLA if age == "kid" else body.SMPL
        self._layer = layer(asset, num_betas=num_betas, dtype=dtype)
        self._num_betas = num_betas + (age == "kid")
        self.gender, self.age = gender, age
        self.dtype, self.batch_size = dtype, batch_size
        self.joint_mapper = joint_mapper

        self.faces = asset.faces.astype(np.uint32)
        for name, array in self._originals().items():
            self._put(name, array, torch.long if array.dtype.kind == "i" else dtype)

        if vertex_ids is None:
            vertex_ids = _vertex_ids(asset)
        self.vertex_joint_selector = VertexJointSelector(vertex_ids=vertex_ids, **kwargs)
        self.vertex_joint_selector.layout = _layout(asset, self.vertex_joint_selector.ids)

        for name, create, value, width in (
            ("betas", create_betas, betas, self.num_betas),
            ("global_orient", create_global_orient, global_orient, 3),
            ("body_pose", create_body_pose, body_pose, 3 * self.NUM_BODY_JOINTS),
            ("transl", create_transl, transl, 3),
        ):
            if create:
                default = torch.zeros(batch_size, width) if value is None else torch.as_tensor(value)
                self.register_parameter(name, nn.Parameter(default.detach().clone().to(dtype)))

        self._watch(_ARRAYS)
        if v_template is not None:
            self.v_template = torch.as_tensor(v_template, dtype=dtype)

    def _available_betas(self, asset: BodyAsset) -> int:
        """Apply smplx's rule: a shape space smaller than the full one has 10 coefficients."""
        full = asset.num_betas >= self.SHAPE_SPACE_DIM
        return self.SHAPE_SPACE_DIM if full else min(10, asset.num_betas)

    def _originals(self) -> dict[str, np.ndarray]:
        """Return the arrays of the body under smplx's names and in its shapes."""
        asset, num_betas = self._layer.asset, self._layer.num_betas
        arrays = smpl_arrays(asset)
        shapedirs = asset.shapedirs[..., :num_betas]
        if self.age == "kid" and asset.age_templates is not None:
            infant = asset.age_templates[0] - asset.template
            shapedirs = np.concatenate((shapedirs, infant[..., None]), axis=2)
        return {
            "faces_tensor": asset.faces.astype(np.int64),
            "v_template": arrays["v_template"],
            "shapedirs": shapedirs,
            "posedirs": arrays["posedirs"].reshape(3 * asset.num_vertices, -1).T,
            "J_regressor": arrays["J_regressor"],
            "parents": asset.parents.astype(np.int64),
            "lbs_weights": arrays["weights"],
        }

    @torch.compiler.assume_constant_result
    def _replaced(self) -> set[str]:
        """Return the names of arrays that were replaced or changed since the model was built.

        A compiled model keeps the answer from when it was compiled.
        """
        selector = self.vertex_joint_selector
        original = isinstance(selector, VertexJointSelector) and selector.is_original()
        return self._changed(_ARRAYS) | (set() if original else {_SELECTED})

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Ignore the arrays that smplx keeps in its checkpoints."""
        for name in (*_ARRAYS, "faces_tensor", _SELECTED):
            owner, _, leaf = name.rpartition(".")
            left_out = self.get_submodule(owner)._non_persistent_buffers_set
            if prefix + name not in state_dict or leaf not in left_out:
                continue
            saved, own = state_dict.pop(prefix + name), self.get_buffer(name)
            if saved.shape != own.shape or not torch.allclose(saved.to(own), own):
                body_name = self._layer.asset.metadata.name
                warnings.warn(
                    f"{prefix}{name}: the checkpoint was written with another body than this model's, "
                    f"{body_name!r}, which is kept; to reproduce its results, make the model with that body",
                    stacklevel=2,
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def num_betas(self) -> int:
        """Number of shape coefficients, including the age offset of ``age="kid"``."""
        return self._num_betas

    @property
    def num_expression_coeffs(self) -> int:
        """Number of expression coefficients: SMPL has none."""
        return 0

    def name(self) -> str:
        """Return the name of the model."""
        return "SMPL"

    @torch.no_grad()
    def reset_params(self, **params_dict: Any) -> None:
        """Set parameters by name, and the others to zero."""
        for name, parameter in self.named_parameters():
            parameter.copy_(torch.as_tensor(params_dict.get(name, 0)))

    def get_num_verts(self) -> int:
        """Return the number of vertices V."""
        return self._array("v_template").shape[0]

    def get_num_faces(self) -> int:
        """Return the number of faces F."""
        return self.faces.shape[0]

    def extra_repr(self) -> str:
        """Return the text that `print` shows."""
        return f"gender={self.gender!r}, age={self.age!r}, num_betas={self.num_betas}"

    def forward_shape(self, betas: Tensor | None = None) -> SMPLOutput:
        """Return the rest surface of a shape, as ``vertices`` and ``v_shaped``."""
        betas = self._coefficients(self._given("betas", betas))
        v_shaped = self._array("v_template") + blend_shapes(betas, self._array("shapedirs"))
        return SMPLOutput(vertices=v_shaped, betas=betas, v_shaped=v_shaped)

    def forward(
        self,
        betas: Tensor | None = None,
        body_pose: Tensor | None = None,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        return_verts: bool = True,
        return_full_pose: bool = False,
        pose2rot: bool = True,
        **kwargs: Any,
    ) -> SMPLOutput:
        """Return the posed body. Arguments default to the model's parameters; batches of 1 broadcast.

        Args:
            betas: (B, num_betas).
            body_pose: (B, 69) or (B, 23, 3) axis-angle, or (B, 23, 3, 3) matrices.
            global_orient: (B, 3) or (B, 1, 3), or (B, 1, 3, 3).
            transl: (B, 3) [m].
            return_verts: whether to return vertices. Without them the mesh is not computed.
            return_full_pose: whether to return the whole pose.
            pose2rot: whether the pose is axis-angle; matrices if False.
            kwargs: accepted and ignored, as in smplx.

        Returns:
            ``vertices`` (B, V, 3), ``joints`` (B, 45, 3) unless mapped, the arguments, and ``full_pose``.
        """
        return self._posed(
            self._given("betas", betas),
            self._given("body_pose", body_pose),
            self._given("global_orient", global_orient),
            getattr(self, "transl", None) if transl is None else transl,
            return_verts,
            return_full_pose,
            "axis_angle" if pose2rot else "matrix",
        )

    def _coefficients(self, betas: Tensor) -> Tensor:
        # All of them count: more would be dropped, and the last one is the age offset of age="kid".
        return _rows("betas", betas, self._array("shapedirs").shape[-1])

    def _given(self, name: str, value: Tensor | None) -> Tensor:
        value = getattr(self, name, None) if value is None else value
        if value is None:
            raise ValueError(f"{name}: expected a tensor, or a model made with create_{name}=True, got None")
        return value

    def _posed(
        self,
        betas: Tensor,
        body_pose: Tensor,
        global_orient: Tensor,
        transl: Tensor | None,
        return_verts: bool,
        return_full_pose: bool,
        pose_format: PoseFormat,
    ) -> SMPLOutput:
        betas = self._coefficients(betas)
        transl = None if transl is None else _rows("transl", transl, 3)
        root = _rotations("global_orient", global_orient, 1, pose_format)
        others = _rotations("body_pose", body_pose, self.NUM_BODY_JOINTS, pose_format)
        batch = _batch(betas=betas, global_orient=root, body_pose=others, transl=transl)
        betas = betas.expand(batch, -1)
        pose = torch.cat([part.expand(batch, *part.shape[1:]) for part in (root, others)], 1)

        vertices: Tensor | None = None
        # A mapper can change the joints in any way, so that it is called before the translation.
        late = transl if self.joint_mapper is not None else None
        replaced, layout = self._replaced(), getattr(self.vertex_joint_selector, "layout", None)
        if not replaced.isdisjoint(_ARRAYS):
            late = transl
            arrays = {name: self._array(name) for name in _ARRAYS}
            if isinstance(arrays["parents"], FakeTensor):  # as torch.export makes of all arrays
                arrays["parents"] = self._layer.asset.parents
                with _disable_current_modes():
                    tree_of(arrays["parents"], betas.device)
            vertices, joints = lbs(betas, pose, *arrays.values(), pose2rot=pose_format == "axis_angle")
            joints = self.vertex_joint_selector(vertices, joints)
        else:
            arguments: dict[str, Any] = {
                "betas": betas[:, : self._layer.num_betas],
                "body_pose": pose[:, 1:],
                "global_orient": pose[:, 0],
                "transl": None if late is not None else transl,
                "pose_format": pose_format,
            }
            if self.age == "kid":
                arguments["age_offset"] = betas[:, -1]
            if return_verts or replaced or layout is None:
                out = self._layer(**arguments)
                vertices, joints = out.vertices, self.vertex_joint_selector(out.vertices, out.joints)
            else:
                joints = self._layer.keypoints(layout, **arguments)

        if self.joint_mapper is not None:
            joints = self.joint_mapper(joints)
        if late is not None:
            joints = joints + late[:, None]
            vertices = None if vertices is None else vertices + late[:, None]
        flat = pose_format == "axis_angle" and body_pose.dim() == 2
        return SMPLOutput(
            vertices=vertices if return_verts else None,
            joints=joints,
            full_pose=(pose.flatten(1) if flat else pose) if return_full_pose else None,
            global_orient=global_orient,
            betas=betas,
            body_pose=body_pose,
        )


class SMPLLayer(SMPL):
    """SMPL without parameters, posed by rotation matrices; arguments default to zeros and identities."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = ("betas", "global_orient", "body_pose", "transl")
        super().__init__(*args, **{f"create_{name}": False for name in names}, **kwargs)

    def forward(
        self,
        betas: Tensor | None = None,
        body_pose: Tensor | None = None,
        global_orient: Tensor | None = None,
        transl: Tensor | None = None,
        return_verts: bool = True,
        return_full_pose: bool = False,
        pose2rot: bool = False,
        **kwargs: Any,
    ) -> SMPLOutput:
        """Return the posed body; arguments as in `SMPL.forward`, rotations always as matrices."""
        like = self._array("v_template")
        batch = _batch(betas=betas, body_pose=body_pose, global_orient=global_orient, transl=transl)
        identity = torch.eye(3, dtype=like.dtype, device=like.device).repeat(batch, 1, 1, 1)
        return self._posed(
            like.new_zeros(batch, self.num_betas) if betas is None else betas,
            identity.repeat(1, self.NUM_BODY_JOINTS, 1, 1) if body_pose is None else body_pose,
            identity if global_orient is None else global_orient,
            like.new_zeros(batch, 3) if transl is None else transl,
            return_verts,
            return_full_pose,
            "matrix",
        )


class _NotOffered:
    """A model of smplx under whose name nothing can be made: imports and annotations work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kind = next(cls.__name__ for cls in type(self).__mro__ if cls.__module__ == __name__)
        raise NotImplementedError(f"{kind} is not offered; {OFFERED}")


class SMPLH(_NotOffered, SMPL):
    """The name of SMPL-H; making one raises NotImplementedError."""


class SMPLHLayer(SMPLH):
    """See `SMPLH`."""


class SMPLX(SMPLH):
    """The name of SMPL-X; making one raises NotImplementedError."""


class SMPLXLayer(SMPLX):
    """See `SMPLX`."""


class MANO(_NotOffered, SMPL):
    """The name of MANO; making one raises NotImplementedError."""


class MANOLayer(MANO):
    """See `MANO`."""


class FLAME(_NotOffered, SMPL):
    """The name of FLAME; making one raises NotImplementedError."""


class FLAMELayer(FLAME):
    """See `FLAME`."""


def create(model_path: ModelPath, model_type: str = "smpl", **kwargs: Any) -> SMPL:
    """Return SMPL from a file, or from a folder with a folder ``smpl`` in it; options as of `SMPL`."""
    return SMPL(resolve_type(model_path, model_type), **kwargs)


def build_layer(model_path: ModelPath, model_type: str = "smpl", **kwargs: Any) -> SMPLLayer:
    """Return an `SMPLLayer`; see `create`."""
    return SMPLLayer(resolve_type(model_path, model_type), **kwargs)


def _vertex_ids(asset: BodyAsset) -> dict[str, int] | None:
    points = asset.regressors.get("surface21")
    if points is None:
        return None
    vertices = np.asarray(points.matrix.toarray().argmax(axis=1))
    return {short_name(name): int(vertex) for name, vertex in zip(points.names, vertices, strict=True)}


def _layout(asset: BodyAsset, vertices: list[int]) -> KeypointLayout:
    """Return joints and vertices as a keypoint layout, to compute them without the mesh."""
    picked = np.zeros((len(vertices), asset.num_vertices))
    picked[range(len(vertices)), vertices] = 1
    points = KeypointLayout.from_regressor(picked, [f"vertex{k}" for k in range(len(vertices))], name="smplx")
    joints = tuple(("joints", name) for name in asset.joint_names)
    return dataclasses.replace(
        points, names=asset.joint_names + points.names, sources=joints + points.sources
    )


def _rows(name: str, value: Tensor, width: int) -> Tensor:
    """Check (B, width)."""
    if expect_tensor(name, value).dim() != 2 or value.shape[1] != width:
        raise ValueError(f"{name}: expected shape (B, {width}), got {tuple(value.shape)}")
    return value


def _rotations(name: str, value: Tensor, count: int, pose_format: PoseFormat) -> Tensor:
    """Return rotations (B, count, ...) from any arrangement of their numbers."""
    entry = (3,) if pose_format == "axis_angle" else (3, 3)
    if expect_tensor(name, value).dim() < 2 or math.prod(value.shape[1:]) != count * math.prod(entry):
        kind = "axis-angle" if pose_format == "axis_angle" else "rotation matrices"
        raise ValueError(
            f"{name}: expected {kind} of shape (B, {count}, {', '.join(map(str, entry))}), got "
            f"{tuple(value.shape)}; SMPL takes axis-angle, and matrices with pose2rot=False, SMPLLayer "
            "matrices"
        )
    return value.reshape(value.shape[0], count, *entry)  # len would fix the batch of an export


def _batch(**arguments: Tensor | None) -> int:
    sizes = {n: expect_tensor(n, value).shape[:1] for n, value in arguments.items() if value is not None}
    try:
        return torch.broadcast_shapes((1,), *sizes.values())[0]
    except RuntimeError:
        counts = {name: size[0] for name, size in sizes.items()}
        raise ValueError(f"expected arguments with batches of one size, or of 1, got {counts}") from None
