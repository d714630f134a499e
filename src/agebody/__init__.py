"""Every SMPL-family body from newborn to adult behind one differentiable layer."""

import importlib
from typing import TYPE_CHECKING, Any

from agebody import age, cameras, losses, measure, metrics, rotations
from agebody.assets.asset import AssetError, BodyAsset, Metadata, Regressor
from agebody.assets.io import export_smpl, load_asset, save_asset
from agebody.assets.mannequin import mannequin
from agebody.assets.report import inspect_asset
from agebody.body import MANO, SMIL, SMPL, SMPLA, SMPLH, SMPLX, BodyModel, BodyOutput, ShapedBody
from agebody.keypoints import LAYOUTS, KeypointLayout
from agebody.parameters import BodyParameters, join_pose, split_pose

if TYPE_CHECKING:
    from agebody import crowd, fitting, nets, people
    from agebody.assets.anny import anny_body

__version__ = "0.2.0"

__all__ = [
    "LAYOUTS",
    "MANO",
    "SMIL",
    "SMPL",
    "SMPLA",
    "SMPLH",
    "SMPLX",
    "AssetError",
    "BodyAsset",
    "BodyModel",
    "BodyOutput",
    "BodyParameters",
    "KeypointLayout",
    "Metadata",
    "Regressor",
    "ShapedBody",
    "age",
    "anny_body",
    "cameras",
    "crowd",
    "export_smpl",
    "fitting",
    "inspect_asset",
    "join_pose",
    "load_asset",
    "losses",
    "mannequin",
    "measure",
    "metrics",
    "nets",
    "people",
    "rotations",
    "save_asset",
    "split_pose",
]


def __getattr__(name: str) -> Any:
    """Import what takes long to import at its first use."""
    if name in ("crowd", "fitting", "nets", "people"):
        return importlib.import_module(f"agebody.{name}")
    if name == "anny_body":
        return importlib.import_module("agebody.assets.anny").anny_body
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is public, imported yet or not, for completion."""
    return [*__all__, "__version__"]
