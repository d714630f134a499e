"""smplx's SMPL: its arguments, parameters, attributes and outputs, computed by an `agebody.BodyModel`."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from agebody import body
from agebody.assets.asset import BodyAsset
from agebody.assets.io import smpl_arrays
from agebody.assets.official import FILES, JOINT_NAMES, TITLES
from agebody.checks import expect_tensor, read_count
from agebody.compat.smplx.arrays import WatchedArrays
from agebody.compat.smplx.lbs import blend_shapes, lbs
from agebody.compat.smplx.model_files import OFFERED, ModelPath, add_kid_template, read_asset
from agebody.compat.smplx.utils import SMPLOutput, Tensor
from agebody.compat.smplx.vertex_ids import short_name
from agebody.compat.smplx.vertex_joint_selector import VertexJointSelector
from agebody.engine.batched import own_precision
from agebody.keypoints import KeypointLayout
from agebody.rotations import PoseFormat

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
        kwargs: ``use_hands`` and ``use_feet_keypoints``, whether to append finger tips and feet; ``ext``,
            which of several files of a folder to take ("pkl", or "npz" except for SMPL); other options
            are accepted and ignored, as in smplx.

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
    _kind = "smpl"
    _poses: Mapping[str, int] = {"body_pose": 23}
    """Number of joints of each argument of the pose, in the order of the joints."""
    _output: Any = SMPLOutput

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
        names = (field.name for field in dataclasses.fields(self._output))
        self._returned = tuple(name for name in names if name != "transl")
        if age not in ("adult", "kid"):
            raise ValueError(f"age: expected 'adult' or 'kid', got {age!r}")
        if joint_mapper is not None and not callable(joint_mapper):
            raise TypeError(
                f"joint_mapper: expected a function of the joints, got {type(joint_mapper).__name__}"
            )
        asset = read_asset(model_path, data_struct, gender, self._kind, kwargs.get("ext"))
        joints = len(JOINT_NAMES[self._kind])
        if asset.num_joints != joints:
            kind = TITLES.get(asset.metadata.kind, asset.metadata.kind)
            raise ValueError(
                f"model_path: expected {joints} joints, got {asset.num_joints} in {asset.metadata.name!r}, "
                f"which is {kind}; {TITLES[self._kind]} needs {FILES[self._kind]}; {OFFERED}"
            )
        num_betas = min(read_count("num_betas", num_betas), self._available_betas(asset))
        if age == "kid":
            asset = add_kid_template(asset, kid_template_path)
        layer = body.SMPLA if age == "kid" else body.SMPL
        self._layer = layer(asset, num_betas=num_betas, dtype=dtype, **self._layer_options(asset))
        self._num_betas = num_betas + (age == "kid")
        self._file_betas = asset.num_betas  # torch.compile refuses arrays that are views of a file's bytes
        self.gender, self.age = gender, age
        self.dtype, self.batch_size = dtype, read_count("batch_size", batch_size)
        self.joint_mapper = joint_mapper

        self.faces = asset.faces.astype(np.uint32)
        originals = self._originals()
        for name, array in originals.items():
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
            self._make_parameter(name, create, value, width)
        self._watched = [name for name in originals if name != self._common]
        self._watch(self._watched)
        if v_template is not None:
            self.v_template = torch.as_tensor(v_template, dtype=dtype)

    def _make_parameter(self, name: str, create: bool, value: Any, width: int) -> None:
        if create:
            value = torch.zeros(self.batch_size, width) if value is None else value
            if not isinstance(value, (torch.Tensor, np.ndarray, Sequence)) or isinstance(value, str):
                raise TypeError(f"{name}: expected numbers (B, {width}), got {type(value).__name__}")
            default = torch.as_tensor(value)
            self.register_parameter(name, nn.Parameter(default.detach().clone().to(self.dtype)))

    def _layer_options(self, asset: BodyAsset) -> dict[str, Any]:
        """Return options of the layer."""
        return {}

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
    def _replaced(self, number: int = 0) -> set[str]:
        """Return the names of arrays that were replaced or changed since the model was built.

        A compiled model keeps the answer from when it was compiled, and by its number gives it to no other.
        """
        selector = self.vertex_joint_selector
        original = isinstance(selector, VertexJointSelector) and selector.is_original()
        return self._changed(self._watched) | (set() if original else {_SELECTED})

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Ignore the arrays that smplx keeps in its checkpoints."""
        for name in (*self._watched, "faces_tensor", _SELECTED):
            owner, _, leaf = name.rpartition(".")
            left_out = self.get_submodule(owner)._non_persistent_buffers_set
            if prefix + name not in state_dict or leaf not in left_out:
                continue
            saved, own = state_dict.pop(prefix + name), self.get_buffer(name)
            if not own.numel():  # smplx's MANO has vertices to select, and selects none
                continue
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
        given = {"betas": betas, "body_pose": body_pose, "global_orient": global_orient, "transl": transl}
        return self._called(given, return_verts, return_full_pose, pose2rot)

    def _called(
        self, given: dict[str, Tensor | None], return_verts: bool, return_full_pose: bool, pose2rot: bool
    ) -> Any:
        """Fill in the parameters of the model, and pose it."""
        known = {name: self._given(name, value) for name, value in given.items() if name != "transl"}
        transl = getattr(self, "transl", None) if given["transl"] is None else given["transl"]
        pose_format = "axis_angle" if pose2rot else "matrix"
        with own_precision(self._layer.device):
            return self._posed(known | {"transl": transl}, return_verts, return_full_pose, pose_format)

    def _coefficients(self, betas: Tensor) -> Tensor:
        # All of them count: more would be dropped, and the last one is the age offset of age="kid".
        count, whole = self._array("shapedirs").shape[-1], self._file_betas
        cut = f"; smplx takes 10 of the {whole} in the file" if whole > count == 10 else ""
        return rows("betas", betas, count, cut)

    def _given(self, name: str, value: Tensor | None) -> Tensor:
        value = getattr(self, name, None) if value is None else value
        if value is None:
            raise ValueError(f"{name}: expected a tensor, or a model made with create_{name}=True, got None")
        return value

    def _posed(
        self, given: dict[str, Any], return_verts: bool, return_full_pose: bool, pose_format: PoseFormat
    ) -> Any:
        betas, transl, expression = given["betas"], given["transl"], given.get("expression")
        betas = self._coefficients(betas)
        if transl is not None:
            transl = rows("transl", transl, 3).to(self._layer.dtype)  # smplx adds it in place, of any dtype
        if expression is not None:
            expression = rows("expression", expression, self.num_expression_coeffs)
        given = given | self._full_hands(given, pose_format)
        root = _rotations("global_orient", given["global_orient"], 1, pose_format)
        parts = [_rotations(name, given[name], count, pose_format) for name, count in self._poses.items()]
        named = dict(zip(self._poses, parts, strict=True))
        batch = _batch(betas=betas, expression=expression, global_orient=root, **named, transl=transl)
        betas = betas.expand(batch, -1)
        pose = torch.cat([part.expand(batch, *part.shape[1:]) for part in (root, *parts)], 1)
        mean = self._array("pose_mean")
        if mean is not None and pose_format == "axis_angle":
            pose = pose + mean.view(-1, 3)

        vertices: Tensor | None = None
        # A mapper can change the joints in any way, so that it is called before the translation.
        late = transl if self.joint_mapper is not None else None
        replaced, layout = self._replaced(self._number), getattr(self.vertex_joint_selector, "layout", None)
        if not replaced.isdisjoint((*_ARRAYS, "expr_dirs")):
            late = transl
            arrays = {name: self._array(name) for name in _ARRAYS}
            # torch.export makes fake tensors of all arrays, and a compiled model cannot build a tree.
            if replaced.isdisjoint(("parents",)) or isinstance(arrays["parents"], FakeTensor):
                arrays["parents"] = self._layer.tree
            coefficients = betas
            if expression is not None:
                coefficients = torch.cat((betas, expression.expand(batch, -1)), 1)
                arrays["shapedirs"] = torch.cat((arrays["shapedirs"], self._array("expr_dirs")), -1)
            mesh, joints = lbs(coefficients, pose, *arrays.values(), pose2rot=pose_format == "axis_angle")
            vertices, joints = mesh, self._with_landmarks(mesh, joints, pose, pose_format)
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
            if expression is not None:
                arguments["expression"] = expression
            mapped_with_mesh = self._kind == "smplx" and self.joint_mapper is not None
            if return_verts or replaced or layout is None or mapped_with_mesh:
                out = self._layer(**arguments)
                vertices = out.vertices
                joints = self._with_landmarks(out.vertices, out.joints, pose, pose_format)
            else:
                joints = self._layer.keypoints(layout, **arguments)
                if getattr(self, "use_face_contour", False):
                    joints = torch.cat((joints, self._layer.face_contour(**arguments)), 1)

        if self.joint_mapper is not None:
            joints = self._mapped(joints, vertices)
        if late is not None:
            joints = joints + late[:, None]
            vertices = None if vertices is None else vertices + late[:, None]
        flat = pose_format == "axis_angle" and (
            self._kind == "smplx" or given[next(iter(self._poses))].dim() == 2
        )
        returned = {name: value for name, value in given.items() if name in self._returned}
        return self._output(
            vertices=vertices if return_verts else None,
            joints=joints,
            full_pose=(pose.flatten(1) if flat else pose) if return_full_pose else None,
            **returned | {"betas": betas},
        )

    def _full_hands(self, given: dict[str, Any], pose_format: PoseFormat) -> dict[str, Tensor]:
        """Return the angles of hands that are given by components."""
        return {}

    def _with_landmarks(
        self, vertices: Tensor, joints: Tensor, pose: Tensor, pose_format: PoseFormat
    ) -> Tensor:
        """Append the points that are not joints of the skeleton."""
        return self.vertex_joint_selector(vertices, joints)

    def _mapped(self, joints: Tensor, vertices: Tensor | None) -> Tensor:
        assert self.joint_mapper is not None
        return self.joint_mapper(joints)


class SMPLLayer(SMPL):
    """SMPL without parameters, posed by rotation matrices; arguments default to zeros and identities.

    The mean hand pose of the layers with hands is not added.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("betas", "global_orient", "transl", *self._poses):
            if kwargs.get(f"create_{name}"):
                raise ValueError(
                    f"create_{name}: expected False for a layer, which has no parameters, got True"
                )
        names = {"betas", "global_orient", "transl", "expression", "body_pose", *self._poses}
        super().__init__(*args, **kwargs | {f"create_{name}": False for name in names})

    def _called(self, given: Any, return_verts: bool, return_full_pose: bool, pose2rot: bool) -> Any:
        """Fill in zeros and identities, and pose the model by matrices."""
        like, batch = self._array("v_template"), _batch(**given)
        identity = torch.eye(3, dtype=like.dtype, device=like.device).repeat(batch, 1, 1, 1)
        widths = {"betas": self.num_betas, "transl": 3, "expression": self.num_expression_coeffs}
        defaults = {name: like.new_zeros(batch, widths[name]) for name in given if name in widths}
        rotations = {"global_orient": 1, **self._poses}
        defaults |= {name: identity.repeat(1, count, 1, 1) for name, count in rotations.items()}
        known = {name: defaults[name] if value is None else value for name, value in given.items()}
        with own_precision(self._layer.device):
            return self._posed(known, return_verts, return_full_pose, "matrix")


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


def rows(name: str, value: Tensor, width: int, why: str = "") -> Tensor:
    """Check (B, width)."""
    if expect_tensor(name, value).dim() != 2 or value.shape[1] != width:
        raise ValueError(f"{name}: expected shape (B, {width}), got {tuple(value.shape)}{why}")
    return value


def _rotations(name: str, value: Tensor, count: int, pose_format: PoseFormat) -> Tensor:
    """Return rotations (B, count, ...) from any arrangement of their numbers."""
    entry = (3,) if pose_format == "axis_angle" else (3, 3)
    if expect_tensor(name, value).dim() < 2 or math.prod(value.shape[1:]) != count * math.prod(entry):
        kind = "axis-angle" if pose_format == "axis_angle" else "rotation matrices"
        raise ValueError(
            f"{name}: expected {kind} of shape (B, {count}, {', '.join(map(str, entry))}), got "
            f"{tuple(value.shape)}; SMPL takes axis-angle, and, except MANO, matrices with "
            "pose2rot=False; layers such as SMPLLayer and MANOLayer take matrices"
        )
    return value.reshape(value.shape[0], count, *entry)  # len would fix the batch of an export


def _batch(**arguments: Tensor | None) -> int:
    sizes = {n: expect_tensor(n, value).shape[:1] for n, value in arguments.items() if value is not None}
    try:
        return torch.broadcast_shapes((1,), *sizes.values())[0]
    except RuntimeError:
        counts = {name: size[0] for name, size in sizes.items()}
        raise ValueError(f"expected arguments with batches of one size, or of 1, got {counts}") from None
