"""Forward kinematics of a joint tree, one step a depth of the tree instead of one a joint."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.rowwise import RowFunction


class KinematicTree(nn.Module):
    """The levels of a joint tree: the joints of each depth, and where their parents stand among those above.

    Args:
        parents: parent of each joint; the root is first, with -1, and parents come before children.
    """

    order: Tensor
    inverse: Tensor
    above: Tensor
    differences: Tensor
    offspring: Tensor

    def __init__(self, parents: Sequence[int]) -> None:
        super().__init__()
        depth = [0] * len(parents)
        for joint, parent in enumerate(parents[1:], start=1):
            depth[joint] = depth[parent] + 1
        order = sorted(range(len(parents)), key=depth.__getitem__)
        place = {joint: i for i, joint in enumerate(order)}
        above = [place[parents[joint]] for joint in order[1:]]
        self.is_sorted = order == list(range(len(parents)))
        starts = [depth[joint] for joint in order]
        bounds = [starts.index(level) for level in range(max(depth) + 1)] + [len(order)]
        self.levels = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        # The parents of a level, where they stand beside one another in the right order.
        self.parents_in_a_row = [
            slice(found[0], found[-1] + 1) if found == list(range(found[0], found[0] + len(found))) else None
            for found in (above[level.start - 1 : level.stop - 1] for level in self.levels[1:])
        ]
        # Row p, column j: whether joint j hangs on joint p.
        offspring = torch.zeros(len(order), len(order))
        offspring[above, torch.arange(1, len(order))] = 1
        differences = torch.eye(len(order)) - offspring.T
        for name, buffer in (
            ("order", torch.tensor(order)),
            ("inverse", torch.tensor([place[joint] for joint in range(len(order))])),
            ("above", torch.tensor([0, *above])),
            ("differences", differences[:, [place[joint] for joint in range(len(order))]]),
            ("offspring", offspring),
        ):
            self.register_buffer(name, buffer, persistent=False)

    def forward(
        self, rotations: Float[Tensor, "B J 3 3"], rest_joints: Float[Tensor, "B J 3"]
    ) -> tuple[Float[Tensor, "B J 3 4"], Float[Tensor, "B J 3 4"]]:
        """World transforms G_j and skinning transforms A_j of every joint.

        ``G_j = G_parent(j) [R_j | J_j - J_parent(j)]``, ``G_0 = [R_0 | J_0]``, and A_j takes the rest pose
        to the posed body: G_j after moving the rest joint to the origin.

        Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 3 and 4.
        """
        world, skinning = _KINEMATICS(self, rotations, rest_joints)
        return world, skinning

    def local(self, rotations: Tensor, rest_joints: Tensor) -> Tensor:
        """(B, J, 4, 4) transform of each joint in its parent's frame, in order of depth."""
        rotations = rotations if self.is_sorted else rotations[:, self.order]
        return homogeneous(rotations, self.differences.to(rest_joints.dtype) @ rest_joints)

    def unsorted(self, tensor: Tensor) -> Tensor:
        """From order of depth back to the order of the joints."""
        return tensor if self.is_sorted else tensor[:, self.inverse]


def homogeneous(
    rotations: Float[Tensor, "*batch 3 3"], translations: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """[R t; 0 1]."""
    pad = torch.nn.functional.pad
    return torch.cat(
        (pad(rotations, (0, 0, 0, 1)), pad(translations[..., None], (0, 0, 0, 1), value=1.0)), -1
    )


def _definition(tree: KinematicTree, rotations: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
    local = tree.local(rotations, rest_joints)
    levels = [local[:, :1, :3]]
    for level, higher in zip(tree.levels[1:], tree.levels, strict=False):
        above = levels[-1].index_select(1, tree.above[level] - higher.start)
        levels.append(above @ local[:, level])
    world = tree.unsorted(torch.cat(levels, 1))
    return world, _skinning(world, rest_joints)


def _skinning(world: Tensor, rest_joints: Tensor) -> Tensor:
    moved = (world[..., :3] * rest_joints[..., None, :]).sum(-1)
    return torch.cat((world[..., :3], (world[..., 3] - moved)[..., None]), -1)


def _value(
    tree: KinematicTree, keep: bool, rotations: Tensor, rest_joints: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Joint by joint in memory, so that a level is one piece and its product needs no copies."""
    batch, num_joints = rest_joints.shape[:2]
    local = tree.local(rotations, rest_joints)
    by_joint = local.transpose(0, 1).reshape(-1, 4, 4)
    world = local.new_empty(num_joints, batch, 3, 4)
    world[0] = local[:, 0, :3]
    rows = world.view(-1, 3, 4)
    for level, in_a_row in zip(tree.levels[1:], tree.parents_in_a_row, strict=True):
        piece = slice(level.start * batch, level.stop * batch)
        if in_a_row is None:
            above = world.index_select(0, tree.above[level]).view(-1, 3, 4)
        else:
            above = rows[in_a_row.start * batch : in_a_row.stop * batch]
        torch.bmm(above, by_joint[piece], out=rows[piece])
    found = tree.unsorted(world.transpose(0, 1)).contiguous()
    skinning = found.clone()
    skinning[..., 3:] -= found[..., :3] @ rest_joints[..., None]
    return (found, skinning), (local, world) if keep else ()


def _gradient(
    tree: KinematicTree,
    wants: tuple[bool, ...],
    kept: tuple[Tensor, ...],
    grads: tuple[Tensor, Tensor],
    rotations: Tensor,
    rest_joints: Tensor,
) -> tuple[Tensor, Tensor]:
    """With M = [G t]: M_child = M_parent L_child, so dM_parent += dM_child L_child^T, level by level."""
    local, world = kept or _value(tree, True, rotations, rest_joints)[1]
    world = world.transpose(0, 1)
    d_world, d_skinning = grads
    if not tree.is_sorted:
        d_world, d_skinning, rest_joints = (t[:, tree.order] for t in (d_world, d_skinning, rest_joints))
    d_moved = d_skinning[..., 3:]
    d_all = d_world + d_skinning
    d_all[..., :3] -= d_moved * rest_joints[..., None, :]
    d_rest = tree.unsorted(-(world[..., :3].mT @ d_moved)[..., 0])
    offspring = tree.offspring.to(world.dtype)
    for level, higher in zip(reversed(tree.levels), reversed(tree.levels[:-1]), strict=False):
        handed_up = (d_all[:, level] @ local[:, level].mT).flatten(2)
        d_all[:, higher] += (offspring[higher, level] @ handed_up).unflatten(2, (3, 4))
    above = world[:, tree.above[1:], :, :3]
    d_local = torch.cat((d_all[:, :1], above.mT @ d_all[:, 1:]), 1)
    d_rest = d_rest + tree.differences.to(world.dtype).mT @ d_local[..., 3]
    return tree.unsorted(d_local[..., :3]), d_rest


_KINEMATICS = RowFunction(2, _definition, _value, _gradient)
