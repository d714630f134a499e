"""The names and signatures of the smplx package, implemented with this library.

``import agebody.compat.smplx as smplx`` is the only line to change in code that uses smplx for SMPL, SMPL-H,
SMPL-X or MANO. FLAME can be imported, but not made.
"""

from typing import Any

from agebody.compat.smplx import body_models as body_models
from agebody.compat.smplx import joint_names, lbs, utils, vertex_ids
from agebody.compat.smplx import vertex_joint_selector as vertex_joint_selector
from agebody.compat.smplx.body_models import FLAME as FLAME
from agebody.compat.smplx.body_models import (
    MANO,
    SMPL,
    SMPLH,
    SMPLX,
    MANOLayer,
    SMPLHLayer,
    SMPLLayer,
    SMPLXLayer,
    build_layer,
    create,
)
from agebody.compat.smplx.body_models import FLAMELayer as FLAMELayer
from agebody.compat.smplx.model_files import OFFERED

__all__ = [
    "MANO",
    "SMPL",
    "SMPLH",
    "SMPLX",
    "MANOLayer",
    "SMPLHLayer",
    "SMPLLayer",
    "SMPLXLayer",
    "build_layer",
    "create",
    "joint_names",
    "lbs",
    "utils",
    "vertex_ids",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {OFFERED}")
