"""The names of smplx's module of this name: the models, and those that it imports."""

from __future__ import annotations

import os
from typing import Any

from agebody.assets.asset import BodyAsset
from agebody.assets.io import load_asset
from agebody.checks import expect_choice
from agebody.compat.smplx.hands import (
    FLAME,
    MANO,
    SMPLH,
    SMPLX,
    FLAMELayer,
    MANOLayer,
    SMPLHLayer,
    SMPLXLayer,
)
from agebody.compat.smplx.lbs import blend_shapes as blend_shapes
from agebody.compat.smplx.lbs import find_dynamic_lmk_idx_and_bcoords as find_dynamic_lmk_idx_and_bcoords
from agebody.compat.smplx.lbs import lbs as lbs
from agebody.compat.smplx.lbs import vertices2landmarks as vertices2landmarks
from agebody.compat.smplx.model_files import ModelPath, resolve_type
from agebody.compat.smplx.smpl import SMPL, SMPLLayer
from agebody.compat.smplx.utils import Array as Array
from agebody.compat.smplx.utils import FLAMEOutput as FLAMEOutput
from agebody.compat.smplx.utils import MANOOutput as MANOOutput
from agebody.compat.smplx.utils import SMPLHOutput as SMPLHOutput
from agebody.compat.smplx.utils import SMPLOutput as SMPLOutput
from agebody.compat.smplx.utils import SMPLXOutput as SMPLXOutput
from agebody.compat.smplx.utils import Struct as Struct
from agebody.compat.smplx.utils import Tensor as Tensor
from agebody.compat.smplx.utils import find_joint_kin_chain as find_joint_kin_chain
from agebody.compat.smplx.utils import to_np as to_np
from agebody.compat.smplx.utils import to_tensor as to_tensor
from agebody.compat.smplx.vertex_ids import vertex_ids as VERTEX_IDS  # noqa: F401
from agebody.compat.smplx.vertex_joint_selector import VertexJointSelector as VertexJointSelector

ModelOutput = SMPLOutput
"""The name of the output up to smplx 0.1.13, which SPIN and its successors import from here."""

_MODELS: dict[str, tuple[type[SMPL], type[SMPL]]] = {
    "smpl": (SMPL, SMPLLayer),
    "smplh": (SMPLH, SMPLHLayer),
    "smplx": (SMPLX, SMPLXLayer),
    "mano": (MANO, MANOLayer),
    "flame": (FLAME, FLAMELayer),
}


def create(model_path: ModelPath, model_type: str = "smpl", **kwargs: Any) -> Any:
    """Return the model of a file, by its content, or that in the subfolder ``model_type`` of a folder."""
    return _make(0, model_path, model_type, kwargs)


def build_layer(model_path: ModelPath, model_type: str = "smpl", **kwargs: Any) -> Any:
    """Return a layer, such as `SMPLLayer`; see `create`."""
    return _make(1, model_path, model_type, kwargs)


def _make(which: int, model_path: ModelPath, model_type: str, options: dict[str, Any]) -> Any:
    kind = str(model_type).lower()
    if options.get("data_struct") is None:
        model_path = resolve_type(model_path, str(model_type))
        if isinstance(model_path, BodyAsset) or not os.path.isdir(model_path):
            asset = model_path if isinstance(model_path, BodyAsset) else load_asset(model_path)
            kind = asset.metadata.kind if asset.metadata.kind in _MODELS else "smpl"
            if kind == "mano" and not isinstance(model_path, BodyAsset):
                options = {"is_rhand": "RIGHT" in os.path.basename(os.fspath(model_path))} | options
            model_path = asset
    expect_choice("model_type", kind, _MODELS)
    return _MODELS[kind][which](model_path, **options)
