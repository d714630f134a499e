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
from agebody.assets.asset import AssetError, BodyAsset
from agebody.assets.io import load_asset, smpl_arrays
from agebody.assets.landmarks import FACE51
from agebody.assets.official import FILES, JOINT_NAMES, TITLES
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
from agebody.engine.batched import own_precision
from agebody.keypoints import KeypointLayout
from agebody.parameters import hand_bases
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
        if age not in ("adult", "kid"):
            raise ValueError(f"age: expected 'adult' or 'kid', got {age!r}")
        asset = read_asset(model_path, data_struct, gender, self._kind)
        joints = len(JOINT_NAMES[self._kind])
        if asset.num_joints != joints:
            kind = TITLES.get(asset.metadata.kind, asset.metadata.kind)
            raise ValueError(
                f"model_path: expected {joints} joints, got {asset.num_joints} in {asset.metadata.name!r}, "
                f"which is {kind}; {TITLES[self._kind]} needs {FILES[self._kind]}; {OFFERED}"
            )
        num_betas = min(num_betas, self._available_betas(asset))
        if age == "kid":
            asset = add_kid_template(asset, kid_template_path)
        layer = body.SMPLA if age == "kid" else body.SMPL
        self._layer = layer(asset, num_betas=num_betas, dtype=dtype, **self._layer_options(asset))
        self._num_betas = num_betas + (age == "kid")
        self.gender, self.age = gender, age
        self.dtype, self.batch_size = dtype, batch_size
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
            default = torch.zeros(self.batch_size, width) if value is None else torch.as_tensor(value)
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
    def _replaced(self) -> set[str]:
        """Return the names of arrays that were replaced or changed since the model was built.

        A compiled model keeps the answer from when it was compiled.
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
        return self._posed(known | {"transl": transl}, return_verts, return_full_pose, pose_format)

    def _from_matrices(
        self, given: dict[str, Tensor | None], return_verts: bool, return_full_pose: bool
    ) -> Any:
        """Fill in zeros and identities, and pose the model by matrices."""
        like, batch = self._array("v_template"), _batch(**given)
        identity = torch.eye(3, dtype=like.dtype, device=like.device).repeat(batch, 1, 1, 1)
        widths = {"betas": self.num_betas, "transl": 3, "expression": self.num_expression_coeffs}
        defaults = {name: like.new_zeros(batch, widths[name]) for name in given if name in widths}
        rotations = {"global_orient": 1, **self._poses}
        defaults |= {name: identity.repeat(1, count, 1, 1) for name, count in rotations.items()}
        known = {name: defaults[name] if value is None else value for name, value in given.items()}
        return self._posed(known, return_verts, return_full_pose, "matrix")

    def _coefficients(self, betas: Tensor) -> Tensor:
        # All of them count: more would be dropped, and the last one is the age offset of age="kid".
        return _rows("betas", betas, self._array("shapedirs").shape[-1])

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
        transl = None if transl is None else _rows("transl", transl, 3)
        if expression is not None:
            expression = _rows("expression", expression, self.num_expression_coeffs)
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
        replaced, layout = self._replaced(), getattr(self.vertex_joint_selector, "layout", None)
        if not replaced.isdisjoint((*_ARRAYS, "expr_dirs")):
            late = transl
            arrays = {name: self._array(name) for name in _ARRAYS}
            if isinstance(arrays["parents"], FakeTensor):  # as torch.export makes of all arrays
                arrays["parents"] = self._layer.asset.parents
                with _disable_current_modes():
                    tree_of(arrays["parents"], betas.device)
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
        fields = {field.name for field in dataclasses.fields(self._output)}
        returned = {name: value for name, value in given.items() if name in fields and name != "transl"}
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
        given = {"betas": betas, "body_pose": body_pose, "global_orient": global_orient, "transl": transl}
        return self._from_matrices(given, return_verts, return_full_pose)


class SMPLH(SMPL):
    """SMPL-H with smplx's arguments: those of `SMPL`, and these.

    Args:
        model_path: as in `SMPL`; in a folder, ``SMPLH_NEUTRAL.pkl`` or .npz.
        args: positional arguments of `SMPL`.
        create_left_hand_pose: whether to make that parameter; likewise ``create_right_hand_pose``.
        left_hand_pose: its initial value, zeros by default; likewise ``right_hand_pose``.
        use_pca: whether hands are given by principal components, (B, num_pca_comps), instead of angles.
        num_pca_comps: number of components.
        flat_hand_mean: whether a hand of zeros is flat; if False, it has the file's mean pose.
        kwargs: options of `SMPL`.
    """

    NUM_BODY_JOINTS = 21
    NUM_HAND_JOINTS = 15
    NUM_JOINTS = 51
    _kind = "smplh"
    _poses: Mapping[str, int] = {"body_pose": 21, "left_hand_pose": 15, "right_hand_pose": 15}
    _output: Any = SMPLHOutput

    def __init__(
        self,
        model_path: ModelPath,
        *args: Any,
        create_left_hand_pose: bool = True,
        left_hand_pose: Any = None,
        create_right_hand_pose: bool = True,
        right_hand_pose: Any = None,
        use_pca: bool = True,
        num_pca_comps: int = 6,
        flat_hand_mean: bool = False,
        **kwargs: Any,
    ) -> None:
        self.use_pca, self.num_pca_comps, self.flat_hand_mean = use_pca, num_pca_comps, flat_hand_mean
        super().__init__(model_path, *args, **kwargs)
        width = num_pca_comps if use_pca else 45
        self._make_parameter("left_hand_pose", create_left_hand_pose, left_hand_pose, width)
        self._make_parameter("right_hand_pose", create_right_hand_pose, right_hand_pose, width)

    def _originals(self) -> dict[str, np.ndarray]:
        asset = self._layer.asset
        bases = hand_bases(asset, self.num_pca_comps if self.use_pca else None, self.flat_hand_mean)
        arrays, pose_mean = super()._originals(), np.zeros((asset.num_joints, 3))
        for name, (mean, components) in bases.items():
            arrays[f"{name}_mean"] = np.zeros(45) if mean is None else mean
            pose_mean[1:][asset.pose_parts[name]] = arrays[f"{name}_mean"].reshape(-1, 3)
            if components is not None:
                arrays[f"{name}_components"] = components
        return arrays | {"pose_mean": pose_mean.ravel()}

    def _full_hands(self, given: dict[str, Any], pose_format: PoseFormat) -> dict[str, Tensor]:
        if not self.use_pca or pose_format == "matrix":
            return {}
        found = {}
        for name in ("hand", "left_hand", "right_hand"):
            if f"{name}_pose" in given:
                components = self._array(f"{name}_components")
                value = _rows(f"{name}_pose", given[f"{name}_pose"], components.shape[0])
                with own_precision(value.device):
                    found[f"{name}_pose"] = value.to(components.dtype) @ components
        return found

    def name(self) -> str:
        """Return the name of the model."""
        return "SMPL+H"

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        betas: Tensor | None = None,
        global_orient: Tensor | None = None,
        body_pose: Tensor | None = None,
        left_hand_pose: Tensor | None = None,
        right_hand_pose: Tensor | None = None,
        transl: Tensor | None = None,
        return_verts: bool = True,
        return_full_pose: bool = False,
        pose2rot: bool = True,
        **kwargs: Any,
    ) -> SMPLHOutput:
        """Return the posed body; arguments as in `SMPL.forward`, hands (B, num_pca_comps) or (B, 45)."""
        given = {
            "betas": betas, "global_orient": global_orient, "body_pose": body_pose,
            "left_hand_pose": left_hand_pose, "right_hand_pose": right_hand_pose, "transl": transl,
        }  # fmt: skip
        return self._called(given, return_verts, return_full_pose, pose2rot)


class SMPLHLayer(SMPLH):
    """SMPL-H without parameters, posed by rotation matrices; the mean hand pose is not added."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = ("betas", "global_orient", "transl", *self._poses)
        super().__init__(*args, **{f"create_{name}": False for name in names}, **kwargs)

    def _called(self, given: Any, return_verts: bool, return_full_pose: bool, pose2rot: bool) -> Any:
        return self._from_matrices(given, return_verts, return_full_pose)


class SMPLX(SMPLH):
    """SMPL-X with smplx's arguments: those of `SMPLH`, and these.

    Args:
        model_path: as in `SMPL`; in a folder, ``SMPLX_NEUTRAL.npz`` or .pkl.
        args: positional arguments of `SMPL`.
        num_expression_coeffs: number of expression coefficients: at most 100, 10 in older files.
        create_expression: whether to make that parameter; likewise ``create_jaw_pose``, ``create_leye_pose``
            and ``create_reye_pose``.
        expression: its initial value, zeros by default; likewise ``jaw_pose``, ``leye_pose``, ``reye_pose``.
        use_face_contour: whether the contour of the face follows the other points: 144 instead of 127.
        kwargs: options of `SMPLH`.
    """

    NUM_FACE_JOINTS = 3
    NUM_JOINTS = 54
    EXPRESSION_SPACE_DIM = 100
    NECK_IDX = 12
    _kind = "smplx"
    _poses: Mapping[str, int] = {
        "body_pose": 21, "jaw_pose": 1, "leye_pose": 1, "reye_pose": 1, "left_hand_pose": 15,
        "right_hand_pose": 15,
    }  # fmt: skip
    _output: Any = SMPLXOutput

    def __init__(
        self,
        model_path: ModelPath,
        *args: Any,
        num_expression_coeffs: int = 10,
        create_expression: bool = True,
        expression: Any = None,
        create_jaw_pose: bool = True,
        jaw_pose: Any = None,
        create_leye_pose: bool = True,
        leye_pose: Any = None,
        create_reye_pose: bool = True,
        reye_pose: Any = None,
        use_face_contour: bool = False,
        **kwargs: Any,
    ) -> None:
        self._num_expression, self.use_face_contour = num_expression_coeffs, use_face_contour
        super().__init__(model_path, *args, **kwargs)
        for name, create, value, width in (
            ("jaw_pose", create_jaw_pose, jaw_pose, 3),
            ("leye_pose", create_leye_pose, leye_pose, 3),
            ("reye_pose", create_reye_pose, reye_pose, 3),
            ("expression", create_expression, expression, self.num_expression_coeffs),
        ):
            self._make_parameter(name, create, value, width)
        selector = self.vertex_joint_selector
        if selector.layout is not None:
            face = tuple(("face51", point) for point in FACE51)
            names, sources = selector.layout.names + FACE51, selector.layout.sources + face
            selector.layout = dataclasses.replace(selector.layout, names=names, sources=sources)

    @property
    def num_expression_coeffs(self) -> int:
        """Number of expression coefficients."""
        return self._layer.num_expression

    def _layer_options(self, asset: BodyAsset) -> dict[str, Any]:
        return {"num_expression": min(self._num_expression, self.EXPRESSION_SPACE_DIM, asset.num_expression)}

    def _originals(self) -> dict[str, np.ndarray]:
        asset = self._layer.asset
        arrays, file = super()._originals(), smpl_arrays(asset)
        names = ["lmk_faces_idx", "lmk_bary_coords"]
        if self.use_face_contour:
            names += ["dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords"]
        missing = [name for name in names if name not in file]
        if missing:
            raise AssetError(f"{asset.metadata.name}: {missing[0]} missing; get {FILES['smplx']}")
        first = asset.num_betas
        arrays["expr_dirs"] = asset.shapedirs[..., first : first + self._layer.num_expression]
        return arrays | {name: file[name] for name in names}

    def _with_landmarks(
        self, vertices: Tensor, joints: Tensor, pose: Tensor, pose_format: PoseFormat
    ) -> Tensor:
        faces, weights = self._array("lmk_faces_idx"), self._array("lmk_bary_coords")
        parts = [super()._with_landmarks(vertices, joints, pose, pose_format)]
        parts.append(vertices2landmarks(vertices, self._array("faces_tensor"), faces[None], weights[None]))
        if self.use_face_contour:
            tables = self._array("dynamic_lmk_faces_idx"), self._array("dynamic_lmk_bary_coords")
            chain = find_joint_kin_chain(self.NECK_IDX, self._layer.asset.parents.tolist())
            found = find_dynamic_lmk_idx_and_bcoords(
                vertices, pose, *tables, chain, pose2rot=pose_format == "axis_angle"
            )
            parts.append(vertices2landmarks(vertices, self._array("faces_tensor"), *found))
        return torch.cat(parts, 1)

    def _mapped(self, joints: Tensor, vertices: Tensor | None) -> Tensor:
        mapper: Any = self.joint_mapper
        return mapper(joints=joints, vertices=vertices)

    def name(self) -> str:
        """Return the name of the model."""
        return "SMPL-X"

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        betas: Tensor | None = None,
        global_orient: Tensor | None = None,
        body_pose: Tensor | None = None,
        left_hand_pose: Tensor | None = None,
        right_hand_pose: Tensor | None = None,
        transl: Tensor | None = None,
        expression: Tensor | None = None,
        jaw_pose: Tensor | None = None,
        leye_pose: Tensor | None = None,
        reye_pose: Tensor | None = None,
        return_verts: bool = True,
        return_full_pose: bool = False,
        pose2rot: bool = True,
        return_shaped: bool = True,
        **kwargs: Any,
    ) -> SMPLXOutput:
        """Return the posed body; arguments as in `SMPLH.forward`, jaw and eyes (B, 3), expression (B, E)."""
        given = {
            "betas": betas, "global_orient": global_orient, "body_pose": body_pose,
            "left_hand_pose": left_hand_pose, "right_hand_pose": right_hand_pose, "transl": transl,
            "expression": expression, "jaw_pose": jaw_pose, "leye_pose": leye_pose, "reye_pose": reye_pose,
        }  # fmt: skip
        output = self._called(given, return_verts, return_full_pose, pose2rot)
        if return_shaped and not isinstance(self, SMPLXLayer):
            output.v_shaped = self.forward_shape(output.betas).v_shaped
        return output


class SMPLXLayer(SMPLX):
    """SMPL-X without parameters, posed by rotation matrices; the mean hand pose is not added."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = ("betas", "global_orient", "transl", "expression", *self._poses)
        super().__init__(*args, **{f"create_{name}": False for name in names}, **kwargs)

    def _called(self, given: Any, return_verts: bool, return_full_pose: bool, pose2rot: bool) -> Any:
        output = self._from_matrices(given, return_verts, return_full_pose)
        transl = given["transl"]
        output.transl = output.betas.new_zeros(output.betas.shape[0], 3) if transl is None else transl
        return output


class MANO(SMPLH):
    """MANO with smplx's arguments: a hand whose root is the wrist.

    Left and right are two files. The shape directions of ``MANO_LEFT.pkl`` are used as they are; code that
    mends their sign (``model.shapedirs[:, 0, :] *= -1``) works.

    Args:
        model_path: as in `SMPL`; in a folder, ``MANO_RIGHT.pkl`` or ``MANO_LEFT.pkl``.
        is_rhand: which of them; of a file, its name says it.
        create_hand_pose: whether to make that parameter.
        hand_pose: its initial value, zeros by default.
        kwargs: options of `SMPLH`.
    """

    NUM_BODY_JOINTS = 1
    NUM_JOINTS = 16
    _kind = "mano"
    _poses: Mapping[str, int] = {"hand_pose": 15}
    _output: Any = MANOOutput

    def __init__(
        self,
        model_path: ModelPath,
        is_rhand: bool = True,
        *,
        create_hand_pose: bool = True,
        hand_pose: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model_path, BodyAsset) and not os.path.isdir(model_path):
            is_rhand = "RIGHT" in os.path.basename(os.fspath(model_path))
        self.is_rhand = is_rhand
        kwargs["use_pca"] = kwargs.get("use_pca", True) and kwargs.get("num_pca_comps", 6) != 45
        kwargs["gender"] = "right" if self.is_rhand else "left"
        super().__init__(model_path, create_left_hand_pose=False, create_right_hand_pose=False, **kwargs)
        self._make_parameter(
            "hand_pose", create_hand_pose, hand_pose, self.num_pca_comps if self.use_pca else 45
        )

    def name(self) -> str:
        """Return the name of the model."""
        return "MANO"

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        betas: Tensor | None = None,
        global_orient: Tensor | None = None,
        hand_pose: Tensor | None = None,
        transl: Tensor | None = None,
        return_verts: bool = True,
        return_full_pose: bool = False,
        **kwargs: Any,
    ) -> MANOOutput:
        """Return the posed hand; the pose (B, num_pca_comps) or (B, 45)."""
        given = {"betas": betas, "global_orient": global_orient, "hand_pose": hand_pose, "transl": transl}
        return self._called(given, return_verts, return_full_pose, True)


class MANOLayer(MANO):
    """MANO without parameters, posed by rotation matrices; the mean hand pose is not added."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = ("betas", "global_orient", "transl", "body_pose", "hand_pose")
        super().__init__(*args, **{f"create_{name}": False for name in names}, **kwargs)

    def _called(self, given: Any, return_verts: bool, return_full_pose: bool, pose2rot: bool) -> Any:
        return self._from_matrices(given, return_verts, return_full_pose)


class FLAME(SMPL):
    """The name of FLAME; making one raises NotImplementedError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"FLAME is not offered; {OFFERED}")


class FLAMELayer(FLAME):
    """See `FLAME`."""


_MODELS: dict[str, tuple[type[SMPL], type[SMPL]]] = {
    "smpl": (SMPL, SMPLLayer),
    "smplh": (SMPLH, SMPLHLayer),
    "smplx": (SMPLX, SMPLXLayer),
    "mano": (MANO, MANOLayer),
    "flame": (FLAME, FLAMELayer),
}


def create(model_path: ModelPath, model_type: str = "smpl", **kwargs: Any) -> Any:
    """Return the model of a file, which its content tells, or of the folder ``model_type`` in a folder."""
    return _make(0, model_path, model_type, kwargs)


def build_layer(model_path: ModelPath, model_type: str = "smpl", **kwargs: Any) -> Any:
    """Return a layer, such as `SMPLLayer`; see `create`."""
    return _make(1, model_path, model_type, kwargs)


def _make(which: int, model_path: ModelPath, model_type: str, options: dict[str, Any]) -> Any:
    kind = model_type.lower()
    if options.get("data_struct") is None:
        model_path = resolve_type(model_path, model_type)
        if isinstance(model_path, BodyAsset) or not os.path.isdir(model_path):
            asset = model_path if isinstance(model_path, BodyAsset) else load_asset(model_path)
            kind = asset.metadata.kind if asset.metadata.kind in _MODELS else "smpl"
            if kind == "mano" and not isinstance(model_path, BodyAsset):
                options = {"is_rhand": "RIGHT" in os.path.basename(os.fspath(model_path))} | options
            model_path = asset
    if kind not in _MODELS:
        raise ValueError(f"model_type: expected one of {', '.join(_MODELS)}, got {model_type!r}")
    return _MODELS[kind][which](model_path, **options)


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
