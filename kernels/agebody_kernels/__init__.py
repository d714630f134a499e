"""Kernels of agebody in NVIDIA Warp, each beside the torch operator that calls it."""

from agebody_kernels.skinning import SkinningWeights, linear_blend_skinning

__all__ = ["SkinningWeights", "linear_blend_skinning"]
