"""Kernels of agebody in NVIDIA Warp, each beside the torch operator that calls it.

A leaf: it imports torch and warp, never `agebody`.
"""

from agebody_kernels._interop import warmup
from agebody_kernels.age import REST_SHAPE, AgeAnchors, rest_shape
from agebody_kernels.blend_skin import BLEND_SKIN, Directions, blend_and_skin
from agebody_kernels.closest import BoxTree, clear_sights, closest_triangles
from agebody_kernels.collide import colliding_faces
from agebody_kernels.kinematics import AXIS_ANGLE, MATRIX, JointTree, forward_kinematics
from agebody_kernels.regression import REGRESSION, PointWeights, regress_points
from agebody_kernels.skinning import SKINNING, SkinningWeights, linear_blend_skinning, skin_into
from agebody_kernels.winding import inside_meshes, winding_numbers

OPERATORS = {
    operator.name: operator for operator in (REST_SHAPE, AXIS_ANGLE, MATRIX, SKINNING, REGRESSION, BLEND_SKIN)
}
"""The operators, which torch knows as ``torch.ops.agebody.NAME``."""

__all__ = [
    "AXIS_ANGLE",
    "BLEND_SKIN",
    "MATRIX",
    "OPERATORS",
    "REGRESSION",
    "REST_SHAPE",
    "SKINNING",
    "AgeAnchors",
    "BoxTree",
    "Directions",
    "JointTree",
    "PointWeights",
    "SkinningWeights",
    "blend_and_skin",
    "clear_sights",
    "closest_triangles",
    "colliding_faces",
    "forward_kinematics",
    "inside_meshes",
    "linear_blend_skinning",
    "regress_points",
    "rest_shape",
    "skin_into",
    "warmup",
    "winding_numbers",
]
