"""smplx's bodies with hands and faces, and its hand, over the SMPL of this package."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from agebody.assets.asset import AssetError, BodyAsset
from agebody.assets.io import smpl_arrays
from agebody.assets.landmarks import FACE51
from agebody.assets.official import FILES
from agebody.checks import read_count
from agebody.compat.smplx.lbs import find_dynamic_lmk_idx_and_bcoords, vertices2landmarks
from agebody.compat.smplx.model_files import OFFERED, ModelPath
from agebody.compat.smplx.smpl import SMPL, SMPLLayer, rows
from agebody.compat.smplx.utils import MANOOutput, SMPLHOutput, SMPLXOutput, Tensor, find_joint_kin_chain
from agebody.engine.batched import product
from agebody.parameters import hand_bases
from agebody.rotations import PoseFormat


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
        asset = self._layer.asset
        if asset.hand_components is not None:  # as NumPy arrays, also of a model that does not use them
            hands = [name for name in asset.pose_parts if "hand" in name]
            for name, components in zip(hands, asset.hand_components[:, :num_pca_comps], strict=True):
                setattr(self, f"np_{name}_components", components)
        width = num_pca_comps if use_pca else 45
        self._make_parameter("left_hand_pose", create_left_hand_pose, left_hand_pose, width)
        self._make_parameter("right_hand_pose", create_right_hand_pose, right_hand_pose, width)

    def _originals(self) -> dict[str, np.ndarray]:
        asset = self._layer.asset
        count = self.num_pca_comps if self.use_pca else None
        bases = hand_bases(asset, count, self.flat_hand_mean, "num_pca_comps")
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
                value = rows(f"{name}_pose", given[f"{name}_pose"], components.shape[0])
                found[f"{name}_pose"] = product(value.to(components.dtype), components)
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


class SMPLHLayer(SMPLLayer, SMPLH):
    """SMPL-H without parameters, posed by rotation matrices; the mean hand pose is not added."""


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
        wanted = read_count("num_expression_coeffs", self._num_expression)
        return {"num_expression": min(wanted, self.EXPRESSION_SPACE_DIM, asset.num_expression)}

    def _originals(self) -> dict[str, np.ndarray]:
        asset = self._layer.asset
        arrays, file = super()._originals(), smpl_arrays(asset)
        names = ["lmk_faces_idx", "lmk_bary_coords"]
        if self.use_face_contour:
            names += ["dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords"]
        missing = [name for name in names if name not in file]
        if missing:
            raise AssetError(f"{asset.metadata.name}: {missing[0]} missing; get {FILES['smplx']}")
        if self.use_face_contour:
            chain = find_joint_kin_chain(self.NECK_IDX, asset.parents.tolist())
            arrays["neck_kin_chain"] = np.array(chain, np.int64)
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
            found = find_dynamic_lmk_idx_and_bcoords(
                vertices, pose, *tables, self._array("neck_kin_chain"), pose2rot=pose_format == "axis_angle"
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


class SMPLXLayer(SMPLLayer, SMPLX):
    """SMPL-X without parameters, posed by rotation matrices; the mean hand pose is not added."""

    def _called(self, given: Any, return_verts: bool, return_full_pose: bool, pose2rot: bool) -> Any:
        output = super()._called(given, return_verts, return_full_pose, pose2rot)
        transl = given["transl"]
        output.transl = output.betas.new_zeros(output.betas.shape[0], 3) if transl is None else transl
        return output


class MANO(SMPLH):
    """MANO with smplx's arguments: a hand whose root is the wrist.

    Left and right are two files. The shape directions of ``MANO_LEFT.pkl`` are used as they are; code that
    corrects their sign (``model.shapedirs[:, 0, :] *= -1``) works.

    Args:
        model_path: as in `SMPL`; in a folder, ``MANO_RIGHT.pkl`` or ``MANO_LEFT.pkl``.
        is_rhand: whether to take the right hand from a folder; for a file, its name decides.
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
        if isinstance(model_path, (str, os.PathLike)) and not os.path.isdir(model_path):
            is_rhand = "RIGHT" in os.path.basename(os.fspath(model_path))
        self.is_rhand = is_rhand
        kwargs["use_pca"] = kwargs.get("use_pca", True) and kwargs.get("num_pca_comps", 6) != 45
        gender = kwargs.get("gender", "neutral")
        kwargs["gender"] = "right" if self.is_rhand else "left"  # the file to take from a folder
        kwargs |= {"create_left_hand_pose": False, "create_right_hand_pose": False}
        super().__init__(model_path, **kwargs)
        self.gender = gender
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


class MANOLayer(SMPLLayer, MANO):
    """MANO without parameters, posed by rotation matrices; the mean hand pose is not added."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(prefix + "body_pose", None)  # a parameter of smplx's layer that nothing uses
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FLAME(SMPL):
    """The name of FLAME; making one raises NotImplementedError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"FLAME is not offered; {OFFERED}")


class FLAMELayer(FLAME):
    """See `FLAME`."""
