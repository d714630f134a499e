"""The names and signatures of the smplx package for SMPL, implemented with this library.

``import agebody.compat.smplx as smplx`` is the only line to change in code that uses smplx for SMPL. SMPL-H,
SMPL-X, MANO and FLAME are not offered; `agebody.SMPL` loads the body of SMPL-H and SMPL-X files.
"""

from typing import Any

from agebody.compat.smplx import joint_names, lbs, utils, vertex_ids
from agebody.compat.smplx.body_models import SMPL, SMPLLayer, build_layer, create
from agebody.compat.smplx.model_files import OFFERED

__all__ = ["SMPL", "SMPLLayer", "build_layer", "create", "joint_names", "lbs", "utils", "vertex_ids"]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {OFFERED}")
