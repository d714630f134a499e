"""Every SMPL-family body from newborn to adult behind one differentiable layer."""

from agebody import age, cameras, crowd, fitting, losses, measure, metrics, people, rotations
from agebody.assets.anny import anny_body
from agebody.assets.asset import AssetError, BodyAsset, Metadata, Regressor
from agebody.assets.io import export_smpl_npz, export_smpl_pkl, load_asset, save_asset
from agebody.assets.mannequin import mannequin
from agebody.assets.report import AssetReport, inspect_asset
from agebody.body import SMIL, SMPL, SMPLA, BodyModel, BodyOutput, ShapedBody
from agebody.keypoints import LAYOUTS, KeypointLayout
from agebody.parameters import BodyParameters

__version__ = "0.1.0"

__all__ = [
    "LAYOUTS",
    "SMIL",
    "SMPL",
    "SMPLA",
    "AssetError",
    "AssetReport",
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
    "export_smpl_npz",
    "export_smpl_pkl",
    "fitting",
    "inspect_asset",
    "load_asset",
    "losses",
    "mannequin",
    "measure",
    "metrics",
    "people",
    "rotations",
    "save_asset",
]
