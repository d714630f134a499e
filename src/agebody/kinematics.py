"""Forward kinematics of a joint tree, one step a depth of the tree instead of one a joint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class KinematicTree(nn.Module):
    """The levels of a joint tree: joints in order of depth, and where the parents of each level stand.

    Args:
        parents: parent of each joint; the root is first, with -1, and parents come before children.
    """

    order: Tensor
    inverse: Tensor
    parents: Tensor
    parent_slots: Tensor

    def __init__(self, parents: Sequence[int]) -> None:
        super().__init__()
        depth = [0] * len(parents)
        for joint, parent in enumerate(parents[1:], start=1):
            depth[joint] = depth[parent] + 1
        levels = [[j for j, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]
        self.sizes = [len(level) for level in levels]
        order = torch.tensor([joint for level in levels for joint in level])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", torch.argsort(order), persistent=False)
        self.register_buffer("parents", torch.tensor([max(p, 0) for p in parents]), persistent=False)
        slots = [0] + [
            above.index(parents[joint])
            for above, level in zip(levels, levels[1:], strict=False)
            for joint in level
        ]
        self.register_buffer("parent_slots", torch.tensor(slots), persistent=False)

    def forward(
        self, rotations: Float[Tensor, "*batch J 3 3"], rest_joints: Float[Tensor, "*batch J 3"]
    ) -> Float[Tensor, "*batch J 4 4"]:
        """World transform of every joint: G_j = G_parent(j) [R_j | J_j - J_parent(j)], G_0 = [R_0 | J_0].

        Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 3 and 4.
        """
        parents = rest_joints.index_select(-2, self.parents)
        offsets = torch.cat((rest_joints[..., :1, :], (rest_joints - parents)[..., 1:, :]), -2)
        local = homogeneous(rotations, offsets).index_select(-3, self.order)
        levels = list(local.split(self.sizes, dim=-3))
        slots = self.parent_slots.split(self.sizes)
        for i in range(1, len(levels)):
            levels[i] = levels[i - 1].index_select(-3, slots[i]) @ levels[i]
        return torch.cat(levels, -3).index_select(-3, self.inverse)


def homogeneous(
    rotations: Float[Tensor, "*batch 3 3"], translations: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """[R t; 0 1]."""
    top = torch.cat((rotations, translations[..., None]), -1)
    bottom = top.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(*top.shape[:-2], 1, 4)
    return torch.cat((top, bottom), -2)


def skinning_transforms(
    world: Float[Tensor, "*batch J 4 4"], rest_joints: Float[Tensor, "*batch J 3"]
) -> Float[Tensor, "*batch J 3 4"]:
    """A_j: from the rest pose to the posed body, G_j with the rest joint taken to its place."""
    rotations = world[..., :3, :3]
    moved = (rotations * rest_joints[..., None, :]).sum(-1)
    return torch.cat((rotations, (world[..., :3, 3] - moved)[..., None]), -1)
