"""Forward kinematics of a joint tree, one step per depth of the tree instead of one per joint."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.engine.batched import Array, BatchedFunction, constant, empty, matmul
from agebody.engine.deform import pose_feature
from agebody.rotations import RODRIGUES, PoseFormat, constants, to_matrix


class KinematicTree(nn.Module):
    """The levels of a joint tree: the joints of each depth, and the positions of their parents.

    Args:
        parents: parent of each joint; the root is first, with -1, and parents come before children.
        correctives: whether a body has pose blend shapes; without, `pose` gives an empty feature.
    """

    order: Tensor
    above: Tensor
    differences: Tensor

    def __init__(self, parents: Sequence[int], correctives: bool = True) -> None:
        super().__init__()
        self.correctives = correctives
        depth = ancestors(parents).sum(1).tolist()
        order = sorted(range(len(parents)), key=depth.__getitem__)
        place = {joint: i for i, joint in enumerate(order)}
        self.is_sorted = order == list(range(len(parents)))
        self.above_list = [0, *(place[parents[joint]] for joint in order[1:])]
        starts = [[depth[joint] for joint in order].index(level) for level in sorted(set(depth))]
        self.levels = [slice(*pair) for pair in itertools.pairwise([*starts, len(order)])]
        # The parents of a level as a slice, where they are consecutive.
        self.parents_in_a_row = [
            slice(found[0], found[-1] + 1) if found == list(range(found[0], found[0] + len(found))) else None
            for found in (self.above_list[level] for level in self.levels[1:])
        ]
        differences = torch.eye(len(order))
        differences[torch.arange(1, len(order)), self.above_list[1:]] -= 1
        for name, buffer in (
            ("order", torch.tensor(order)),
            ("above", torch.tensor(self.above_list)),
            ("differences", differences),
        ):
            self.register_buffer(name, buffer, persistent=False)

    def forward(
        self, rotations: Float[Tensor, "B J 3 3"], rest_joints: Float[Tensor, "B J 3"]
    ) -> tuple[Float[Tensor, "B J 3 4"], Float[Tensor, "B J 3 4"]]:
        """Return the world transforms G_j and skinning transforms A_j of every joint.

        ``G_j = G_parent(j) [R_j | J_j - J_parent(j)]``, ``G_0 = [R_0 | J_0]``, and A_j takes the rest pose
        to the posed body: G_j after moving the rest joint to the origin.

        Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 3 and 4.
        """
        world, skinning = _KINEMATICS(self, rotations, rest_joints)
        return world, skinning

    def pose(
        self, pose: Float[Tensor, "B J ..."], pose_format: PoseFormat, rest_joints: Float[Tensor, "B J 3"]
    ) -> tuple[
        Float[Tensor, "B J 3 3"], Float[Tensor, "B J 3 4"], Float[Tensor, "B J 3 4"], Float[Tensor, "B P"]
    ]:
        """Return a pose of any format as matrices, the results of `forward`, and the `pose_feature`."""
        if pose_format == "axis_angle":
            *found, feature = _POSE(self, pose, rest_joints)
            return *found, feature if self.correctives else feature[:, :0]  # pyright: ignore
        matrices = to_matrix(pose, pose_format)
        feature = pose_feature(matrices) if self.correctives else matrices.new_empty(len(matrices), 0)
        return matrices, *self(matrices, rest_joints), feature

    def to_sorted(self, array: Array) -> Array:
        """Reorder (B, J, ...) in the order of the joints to (J, B, ...) in order of depth."""
        array = array.swapaxes(0, 1)
        return array if self.is_sorted else array[constant(self.order, array)]

    def from_sorted(self, array: Array) -> Array:
        """Invert `to_sorted`, into a new array."""
        found = empty(array, array.shape[1], array.shape[0], *array.shape[2:])
        found[:, ... if self.is_sorted else constant(self.order, array)] = array.swapaxes(0, 1)
        return found


def ancestors(parents: Sequence[int] | np.ndarray) -> Float[np.ndarray, "J J"]:
    """Return 1 at [i, j] where joint j is i or above it, else 0."""
    found = np.eye(len(parents))
    for joint in range(1, len(parents)):
        found[joint] += found[parents[joint]]
    return found


def homogeneous(
    rotations: Float[Tensor, "*batch 3 3"], translations: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """Return [R t; 0 1]."""
    top = torch.cat((rotations, translations[..., None]), -1)
    bottom = torch.eye(4, dtype=top.dtype, device=top.device)[3:]
    return torch.cat((top, bottom.expand(*top.shape[:-2], 1, 4)), -2)


def _definition(tree: KinematicTree, rotations: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
    rest = rest_joints[:, tree.order]
    local = homogeneous(rotations[:, tree.order], tree.differences.to(rest.dtype) @ rest)
    levels = [local[:, :1, :3]]
    for level, higher in zip(tree.levels[1:], tree.levels, strict=False):
        above = levels[-1].index_select(1, tree.above[level] - higher.start)
        levels.append(above @ local[:, level])
    world = torch.cat(levels, 1).index_select(1, tree.order.argsort())
    moved = (world[..., :3] * rest_joints[..., None, :]).sum(-1)
    return world, torch.cat((world[..., :3], (world[..., 3] - moved)[..., None]), -1)


def _value(
    tree: KinematicTree, keep: bool, rotations: Array, rest_joints: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    """Compute with the joints first in memory, so that a level is contiguous."""
    batch, num_joints = rest_joints.shape[:2]
    above, rest = constant(tree.above, rotations), tree.to_sorted(rest_joints)
    local = empty(rotations, num_joints, batch, 4, 4)
    local[..., :3, :3] = tree.to_sorted(rotations)
    local[:1, :, :3, 3] = rest[:1]
    local[1:, :, :3, 3] = rest[1:] - rest[above[1:]]
    local[..., 3, :3] = 0
    local[..., 3, 3] = 1
    world = empty(rotations, num_joints, batch, 3, 4)
    world[0] = local[0, :, :3]
    multiply: Any = np.matmul if isinstance(world, np.ndarray) else torch.matmul
    for level, in_a_row in zip(tree.levels[1:], tree.parents_in_a_row, strict=True):
        parents = world[above[level] if in_a_row is None else in_a_row]
        multiply(parents, local[level], out=world[level])
    found = tree.from_sorted(world)
    skinning = tree.from_sorted(world)
    skinning[..., 3:] -= found[..., :3] @ rest_joints[..., None]
    return (found, skinning), (local, world) if keep else ()


def _gradient(
    tree: KinematicTree,
    wants: tuple[bool, ...],
    kept: tuple[Array, ...],
    grads: tuple[Array, Array],
    rotations: Array,
    rest_joints: Array,
) -> tuple[Array, Array]:
    """Go up the levels: M_child = M_parent L_child, so dM_parent += dM_child L_child^T."""
    local, world = kept or _value(tree, True, rotations, rest_joints)[1]
    rest = tree.to_sorted(rest_joints)
    d_skinning = tree.to_sorted(grads[1])
    d_all = tree.to_sorted(grads[0]) + d_skinning
    d_all[..., :3] -= d_skinning[..., 3:] * rest[..., None, :]
    for level, in_a_row in zip(reversed(tree.levels[1:]), reversed(tree.parents_in_a_row), strict=True):
        handed_up = d_all[level] @ local[level].swapaxes(-1, -2)
        if in_a_row is not None:
            d_all[in_a_row] += handed_up
        else:  # one child after the other, in a fixed order
            for child, parent in enumerate(tree.above_list[level]):
                d_all[parent] += handed_up[child]
    d_local = empty(d_all, *d_all.shape)
    d_local[0] = d_all[0]
    d_local[1:] = world[constant(tree.above, world)[1:], :, :, :3].swapaxes(-1, -2) @ d_all[1:]
    d_offsets = d_local[..., 3]
    differences = constant(tree.differences, world)
    d_rest = matmul(differences.T, d_offsets.reshape(len(d_offsets), -1)).reshape(d_offsets.shape)
    d_rest = d_rest - (world[..., :3].swapaxes(-1, -2) @ d_skinning[..., 3:])[..., 0]
    return tree.from_sorted(d_local[..., :3]), tree.from_sorted(d_rest)


def _pose_definition(tree: KinematicTree, vectors: Tensor, rest_joints: Tensor) -> tuple[Tensor, ...]:
    matrices = RODRIGUES.definition(None, vectors.flatten(0, 1))[0].reshape(*vectors.shape, 3)
    return matrices, *_definition(tree, matrices, rest_joints), pose_feature(matrices)


def _pose_value(
    tree: KinematicTree, keep: bool, vectors: Array, rest_joints: Array
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Compute Rodrigues' formula, kinematics and pose feature in one call, for little overhead."""
    (matrices,), kept = RODRIGUES.value(None, keep, vectors.reshape(-1, 3))
    matrices = matrices.reshape(*vectors.shape, 3)
    transforms, also_kept = _value(tree, keep, matrices, rest_joints)
    feature = matrices[:, 1:] - constants(vectors).basis[0].reshape(3, 3)
    return (matrices, *transforms, feature.reshape(feature.shape[0], 9 * feature.shape[1])), (
        *also_kept,
        *kept,
    )


def _pose_gradient(
    tree: KinematicTree,
    wants: tuple[bool, ...],
    kept: tuple[Array, ...],
    grads: tuple[Array, ...],
    vectors: Array,
    rest_joints: Array,
) -> tuple[Array, Array]:
    d_matrices, *d_transforms, d_feature = grads
    kept = kept or _pose_value(tree, True, vectors, rest_joints)[1]
    d_posed, d_rest = _gradient(
        tree, wants, kept[:2], (d_transforms[0], d_transforms[1]), vectors, rest_joints
    )
    d_posed += d_matrices
    d_posed[:, 1:] += d_feature.reshape(d_posed[:, 1:].shape)
    found = RODRIGUES.gradient(None, wants, kept[2:], (d_posed.reshape(-1, 3, 3),), vectors.reshape(-1, 3))
    return found[0].reshape(vectors.shape), d_rest  # pyright: ignore


_KINEMATICS = BatchedFunction(2, _definition, _value, _gradient, in_numpy=True)
_POSE = BatchedFunction(4, _pose_definition, _pose_value, _pose_gradient, in_numpy=True)
