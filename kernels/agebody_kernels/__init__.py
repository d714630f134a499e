"""Kernels of agebody in NVIDIA Warp, each beside the torch operator that calls it.

A leaf package: it imports torch and warp, never `agebody`. The functions of every operator are imported from
its module, for example `agebody_kernels.skinning.linear_blend_skinning`.
"""

from agebody_kernels._interop import warmup
from agebody_kernels.age import REST_SHAPE, AgeAnchors
from agebody_kernels.closest import clear_sights, closest_triangles, tree_order
from agebody_kernels.collide import colliding_faces
from agebody_kernels.kinematics import AXIS_ANGLE, MATRIX, JointTree
from agebody_kernels.regression import REGRESSION, PointWeights
from agebody_kernels.skinning import SKINNING, SkinningWeights, skin_into
from agebody_kernels.winding import inside_meshes, winding_numbers

OPERATORS = {operator.name: operator for operator in (REST_SHAPE, AXIS_ANGLE, MATRIX, SKINNING, REGRESSION)}
"""The operators by name; torch knows them as ``torch.ops.agebody.NAME``."""

__all__ = [
    "OPERATORS",
    "AgeAnchors",
    "JointTree",
    "PointWeights",
    "SkinningWeights",
    "clear_sights",
    "closest_triangles",
    "colliding_faces",
    "inside_meshes",
    "skin_into",
    "tree_order",
    "warmup",
    "winding_numbers",
]
