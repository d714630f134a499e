"""Kernels of agebody in NVIDIA Warp, each beside the torch operator that calls it.

A leaf package: it imports torch and warp, never `agebody`. The functions of every operator are imported from
its module, for example `agebody_kernels.skinning.linear_blend_skinning`.
"""

from agebody_kernels._interop import warmup
from agebody_kernels.age import REST_SHAPE
from agebody_kernels.age import AgeAnchors as AgeAnchors
from agebody_kernels.closest import clear_sights as clear_sights
from agebody_kernels.closest import closest_triangles as closest_triangles
from agebody_kernels.closest import tree_order as tree_order
from agebody_kernels.collide import colliding_faces as colliding_faces
from agebody_kernels.kinematics import AXIS_ANGLE, MATRIX
from agebody_kernels.kinematics import JointTree as JointTree
from agebody_kernels.regression import REGRESSION
from agebody_kernels.regression import PointWeights as PointWeights
from agebody_kernels.skinning import SKINNING
from agebody_kernels.skinning import SkinningWeights as SkinningWeights
from agebody_kernels.skinning import skin_into as skin_into
from agebody_kernels.winding import inside_meshes as inside_meshes
from agebody_kernels.winding import winding_numbers as winding_numbers

OPERATORS = {operator.name: operator for operator in (REST_SHAPE, AXIS_ANGLE, MATRIX, SKINNING, REGRESSION)}
"""The operators by name; torch knows them as ``torch.ops.agebody.NAME``."""

__all__ = [
    "OPERATORS",
    "warmup",
]
