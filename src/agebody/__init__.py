"""Every SMPL-family body from newborn to adult behind one differentiable layer."""

from agebody.assets.asset import AssetError, BodyAsset, Metadata, Regressor
from agebody.assets.io import load_asset, save_asset
from agebody.body import SMIL, SMPL, SMPLA, BodyModel, BodyOutput, ShapedBody
from agebody.keypoints import LAYOUTS, KeypointLayout

__all__ = [
    "LAYOUTS",
    "SMIL",
    "SMPL",
    "SMPLA",
    "AssetError",
    "BodyAsset",
    "BodyModel",
    "BodyOutput",
    "KeypointLayout",
    "Metadata",
    "Regressor",
    "ShapedBody",
    "load_asset",
    "save_asset",
]
