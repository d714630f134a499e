"""Kernels of agebody in NVIDIA Warp, each beside the torch operator that calls it.

A leaf: it imports torch and warp, never `agebody`.
"""

from agebody_kernels.age import REST_SHAPE, AgeAnchors, rest_shape
from agebody_kernels.kinematics import AXIS_ANGLE, MATRIX, JointTree, forward_kinematics
from agebody_kernels.regression import REGRESSION, PointWeights, regress_points
from agebody_kernels.skinning import SKINNING, SkinningWeights, linear_blend_skinning, skin_into

__all__ = [
    "AXIS_ANGLE",
    "MATRIX",
    "REGRESSION",
    "REST_SHAPE",
    "SKINNING",
    "AgeAnchors",
    "JointTree",
    "PointWeights",
    "SkinningWeights",
    "forward_kinematics",
    "linear_blend_skinning",
    "regress_points",
    "rest_shape",
    "skin_into",
]
