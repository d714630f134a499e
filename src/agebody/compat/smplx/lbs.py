"""smplx's functions for linear blend skinning.

Rotations are exact, where smplx adds 1e-8 to the vector. Batches of 1 broadcast. The ``dtype`` argument of
some smplx versions is accepted and ignored: results have the dtype of the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.compat.smplx.utils import rot_mat_to_euler as rot_mat_to_euler
from agebody.engine.batched import build, own_precision
from agebody.engine.deform import linear_blend_skinning, pose_feature, rest_surface
from agebody.engine.kinematics import KinematicTree, homogeneous
from agebody.engine.points import contour_row
from agebody.rotations import axis_angle_to_matrix

__all__ = [
    "batch_rigid_transform",
    "batch_rodrigues",
    "blend_shapes",
    "find_dynamic_lmk_idx_and_bcoords",
    "lbs",
    "transform_mat",
    "vertices2joints",
    "vertices2landmarks",
]


_F = TypeVar("_F", bound=Callable[..., Any])


def _in_own_precision(function: _F) -> _F:
    """Compute outside of autocast, like the layers: 16 bits put a body millimetres off.

    Of different types, arguments of 16 bits, the output of networks under autocast, are cast to the widest.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        first = next((x for x in values if isinstance(x, Tensor)), None)
        if first is None:
            kinds = ", ".join(type(x).__name__ for x in values) or "nothing"
            raise TypeError(f"{function.__name__}: expected arguments of torch.Tensor, got {kinds}")
        types = [x.dtype for x in values if isinstance(x, Tensor) and x.is_floating_point()]
        widest = reduce(torch.promote_types, types or [torch.float32])

        def cast(x: Any) -> Any:
            return x.to(widest) if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x

        with own_precision(first.device):
            return function(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})

    return wrapped  # pyright: ignore[reportReturnType]


@_in_own_precision
def lbs(
    betas: Float[Tensor, "#B S"],
    pose: Float[Tensor, "#B ..."],
    v_template: Float[Tensor, "*#any V 3"],
    shapedirs: Float[Tensor, "V 3 S"],
    posedirs: Float[Tensor, "P 3*V"],
    J_regressor: Float[Tensor, "J V"],
    parents: Int[Tensor, " J"] | KinematicTree,
    lbs_weights: Float[Tensor, "V J"],
    pose2rot: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B J 3"]]:
    """Return posed vertices and joints [m] of a body given by its arrays, which `BodyAsset` explains.

    The pose is axis-angle (B, J * 3) or (B, J, 3), or with ``pose2rot=False`` matrices (B, J, 3, 3) or
    (B, J, 9). Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 2 to 10.
    """
    rotations = batch_rodrigues(pose.reshape(-1, 3)) if pose2rot else pose
    rotations = rotations.reshape(pose.shape[0], -1, 3, 3)
    v_shaped = v_template + blend_shapes(betas, shapedirs)
    rest_joints = vertices2joints(J_regressor, v_shaped)
    posed_joints, transforms = batch_rigid_transform(rotations, rest_joints, parents)
    v_posed = v_shaped + (pose_feature(rotations) @ posedirs).unflatten(-1, (-1, 3))
    return linear_blend_skinning(v_posed, transforms[..., :3, :], lbs_weights), posed_joints


@_in_own_precision
def vertices2joints(
    J_regressor: Float[Tensor, "K V"], vertices: Float[Tensor, "B V 3"]
) -> Float[Tensor, "B K 3"]:
    """Return points that are fixed linear combinations of vertices."""
    return torch.einsum("kv,bvx->bkx", J_regressor, vertices)


@_in_own_precision
def blend_shapes(betas: Float[Tensor, "B S"], shape_disps: Float[Tensor, "V 3 S"]) -> Float[Tensor, "B V 3"]:
    """Return the displacements of the vertices for shape coefficients."""
    return rest_surface(shape_disps.new_zeros(shape_disps.shape[:2]), shape_disps, betas)


@_in_own_precision
def batch_rodrigues(
    rot_vecs: Float[Tensor, "N 3"], epsilon: float = 1e-8, dtype: torch.dtype | None = None
) -> Float[Tensor, "N 3 3"]:
    """Return the matrices of rotation vectors, exact also at zero; ``epsilon`` is ignored."""
    return axis_angle_to_matrix(rot_vecs)


def transform_mat(R: Float[Tensor, "N 3 3"], t: Float[Tensor, "N 3 1"]) -> Float[Tensor, "N 4 4"]:
    """Return ``[R t; 0 1]``."""
    return homogeneous(R, t[..., 0])


@_in_own_precision
def batch_rigid_transform(
    rot_mats: Float[Tensor, "#B J 3 3"],
    joints: Float[Tensor, "#B J 3"],
    parents: Int[Tensor, " J"] | KinematicTree,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "B J 3"], Float[Tensor, "B J 4 4"]]:
    """Return the posed joints, and the transforms from the rest pose to the posed body."""
    (batch,) = torch.broadcast_shapes(rot_mats.shape[:1], joints.shape[:1])
    tree = tree_of(parents, joints.device)
    world, skinning = tree(rot_mats.expand(batch, -1, -1, -1), joints.expand(batch, -1, -1))
    return world[..., 3], homogeneous(skinning[..., :3], skinning[..., 3])


def tree_of(parents: Any, device: torch.device) -> KinematicTree:
    """Return the tree of a tensor, an array or a list of parents, built once; a tree unchanged."""
    if isinstance(parents, KinematicTree):
        return parents
    numbers = parents.tolist() if isinstance(parents, (Tensor, np.ndarray)) else parents
    return _tree(tuple(map(int, numbers)), device)


@lru_cache(maxsize=32)
def _tree(parents: tuple[int, ...], device: torch.device) -> KinematicTree:
    return build(lambda: KinematicTree(parents).to(device))


@_in_own_precision
def vertices2landmarks(
    vertices: Float[Tensor, "B V 3"],
    faces: Int[Tensor, "F 3"],
    lmk_faces_idx: Int[Tensor, "#B L"],
    lmk_bary_coords: Float[Tensor, "#B L 3"],
) -> Float[Tensor, "B L 3"]:
    """Return points on faces, given by barycentric coordinates."""
    rows = torch.arange(vertices.shape[0], device=vertices.device)[:, None, None]
    corners = vertices[rows, faces[lmk_faces_idx]]
    return (corners * lmk_bary_coords[..., None]).sum(-2)


@_in_own_precision
def find_dynamic_lmk_idx_and_bcoords(
    vertices: Float[Tensor, "B V 3"],
    pose: Tensor,
    dynamic_lmk_faces_idx: Int[Tensor, "Y L"],
    dynamic_lmk_b_coords: Float[Tensor, "Y L 3"],
    neck_kin_chain: Any,
    pose2rot: bool = True,
) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B L 3"]]:
    """Return triangles and barycentric coordinates of a face's contour, by the turn of the neck about y.

    The pose is (B, J * 3) or (B, J, 3), or matrices (B, J, 3, 3); the chain of joints begins with the neck
    and ends with the root.
    """
    chain = torch.as_tensor(neck_kin_chain, device=pose.device)
    entry = (3,) if pose2rot else (3, 3)
    neck = pose.reshape(pose.shape[0], -1, *entry)[:, chain]
    turn, *above = (axis_angle_to_matrix(neck) if pose2rot else neck).unbind(1)
    for rotation in above:
        turn = rotation @ turn
    row = contour_row(turn)
    return dynamic_lmk_faces_idx[row], dynamic_lmk_b_coords[row]
