"""Forward kinematics of a joint tree, one step a depth of the tree instead of one a joint."""

from __future__ import annotations

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
    parents: Tensor
    slots: Tensor
    offspring: Tensor

    def __init__(self, parents: Sequence[int]) -> None:
        super().__init__()
        depth = [0] * len(parents)
        for joint, parent in enumerate(parents[1:], start=1):
            depth[joint] = depth[parent] + 1
        order = sorted(range(len(parents)), key=depth.__getitem__)
        self.sizes = [depth.count(level) for level in range(max(depth) + 1)]
        self.is_sorted = order == list(range(len(parents)))
        starts = [sum(self.sizes[:level]) for level in range(len(self.sizes))]
        place = {joint: i for i, joint in enumerate(order)}
        above = [max(parents[joint], 0) for joint in order]
        slots = [place[p] - starts[max(depth[joint] - 1, 0)] for joint, p in zip(order, above, strict=True)]
        # Row p, column j: whether joint j hangs on joint p.
        offspring = torch.eye(len(parents))[[place[p] for p in above]].T.contiguous()
        offspring[0, 0] = 0
        for name, values in (("order", order), ("inverse", [place[j] for j in range(len(order))])):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.register_buffer("parents", torch.tensor([max(p, 0) for p in parents]), persistent=False)
        self.register_buffer("slots", torch.tensor(slots), persistent=False)
        self.register_buffer("offspring", offspring, persistent=False)

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
        offsets = rest_joints[:, 1:] - rest_joints[:, self.parents[1:]]
        offsets = torch.cat((rest_joints[:, :1], offsets), 1)
        local = homogeneous(rotations, offsets)
        return local if self.is_sorted else local[:, self.order]

    def unsorted(self, tensor: Tensor) -> Tensor:
        """From order of depth back to the order of the joints."""
        return tensor if self.is_sorted else tensor[:, self.inverse]


def homogeneous(
    rotations: Float[Tensor, "*batch 3 3"], translations: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """[R t; 0 1]."""
    top = torch.cat((rotations, translations[..., None]), -1)
    bottom = torch.eye(4, dtype=top.dtype, device=top.device)[3:].expand(*top.shape[:-2], 1, 4)
    return torch.cat((top, bottom), -2)


def _definition(tree: KinematicTree, rotations: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
    return _transforms(tree, tree.local(rotations, rest_joints), rest_joints)


def _transforms(tree: KinematicTree, local: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
    levels = list(local.split(tree.sizes, dim=1))
    slots = tree.slots.split(tree.sizes)
    levels[0] = levels[0][..., :3, :]
    for i in range(1, len(levels)):
        levels[i] = levels[i - 1].index_select(1, slots[i]) @ levels[i]
    world = tree.unsorted(torch.cat(levels, 1))
    moved = (world[..., :3] * rest_joints[..., None, :]).sum(-1)
    return world, torch.cat((world[..., :3], (world[..., 3] - moved)[..., None]), -1)


def _value(
    tree: KinematicTree, keep: bool, rotations: Tensor, rest_joints: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    local = tree.local(rotations, rest_joints)
    world, skinning = _transforms(tree, local, rest_joints)
    return (world, skinning), (local, world.clone()) if keep else ()


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
    d_world, d_skinning = grads
    d_moved = d_skinning[..., 3:]
    d_all = d_world + d_skinning
    d_all[..., :3] -= d_moved * rest_joints[..., None, :]
    d_rest = -(world[..., :3].mT @ d_moved)[..., 0]

    offspring = tree.offspring.to(world.dtype)
    if not tree.is_sorted:
        world, d_all = world[:, tree.order], d_all[:, tree.order]
    levels = list(d_all.split(tree.sizes, dim=1))
    stop = len(tree.order)
    for i in range(len(levels) - 1, 0, -1):
        start = stop - tree.sizes[i]
        handed_up = (levels[i] @ local[:, start:stop].mT).flatten(2)
        taken = offspring[start - tree.sizes[i - 1] : start, start:stop] @ handed_up
        levels[i - 1] = levels[i - 1] + taken.unflatten(2, (3, 4))
        stop = start
    d_all = torch.cat(levels, 1)
    above = world[:, tree.inverse[tree.parents[tree.order[1:]]], :, :3]
    d_local = torch.cat((d_all[:, :1], above.mT @ d_all[:, 1:]), 1)
    d_offsets = d_local[..., 3]
    d_rest = d_rest + tree.unsorted(d_offsets - offspring @ d_offsets)
    return tree.unsorted(d_local[..., :3]), d_rest


_KINEMATICS = RowFunction(2, _definition, _value, _gradient)
