"""The names and signatures of the smplx package for SMPL, implemented with this library.

``import agebody.compat.smplx as smplx`` is the only line to change in code that uses smplx for SMPL. The
names of SMPL-H, SMPL-X, MANO and FLAME can be imported, but nothing can be made of them; `agebody.SMPL` loads
the body of SMPL-H and SMPL-X files.
"""

from typing import Any

from agebody.compat.smplx import body_models as body_models
from agebody.compat.smplx import joint_names, lbs, utils, vertex_ids
from agebody.compat.smplx import vertex_joint_selector as vertex_joint_selector
from agebody.compat.smplx.body_models import FLAME as FLAME
from agebody.compat.smplx.body_models import MANO as MANO
from agebody.compat.smplx.body_models import SMPL, SMPLLayer, build_layer, create
from agebody.compat.smplx.body_models import SMPLH as SMPLH
from agebody.compat.smplx.body_models import SMPLX as SMPLX
from agebody.compat.smplx.body_models import FLAMELayer as FLAMELayer
from agebody.compat.smplx.body_models import MANOLayer as MANOLayer
from agebody.compat.smplx.body_models import SMPLHLayer as SMPLHLayer
from agebody.compat.smplx.body_models import SMPLXLayer as SMPLXLayer
from agebody.compat.smplx.model_files import OFFERED

__all__ = ["SMPL", "SMPLLayer", "build_layer", "create", "joint_names", "lbs", "utils", "vertex_ids"]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {OFFERED}")
