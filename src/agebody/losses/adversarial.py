"""A factorised adversarial prior, trained beside the network: is this the pose and shape of a person?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.checks import Reduction, Weights, apply_mask, expand_weights, expect, read_sizes, reduce
from agebody.files import read_flag


class PoseDiscriminator(nn.Module):
    """Score a pose and shape: one score per joint, one of the shape, one of all joints together.

    The factorised discriminator of HMR (Kanazawa et al., CVPR 2018, section 3.3), which HMR2 and AionHMR
    train with least squares. Rotations pass through two layers that all joints share; each joint then has its
    own score, which learns that joint's limits, and all joints together have one through two wide layers. The
    shape has layers of ``num_betas``, 5 and 1 units. Weights begin Xavier-uniform, biases at zero.

    `load_state_dict` takes HMR2's weights too, under their own names (``D_conv1.weight``, ...).

    Args:
        num_joints: judged rotations, without the root's.
        num_betas: judged shape coefficients; 11 for AionHMR, where the age offset is the last.
        joint_features: width of the shared layers.
        pose_features: width of the layers that see all joints.
    """

    def __init__(
        self,
        num_joints: int = 23,
        num_betas: int = 10,
        *,
        joint_features: int = 32,
        pose_features: int = 1024,
    ) -> None:
        super().__init__()
        read_sizes(num_joints=num_joints, joint_features=joint_features)
        read_sizes(pose_features=pose_features, num_betas=num_betas)
        self.num_joints, self.num_betas = num_joints, num_betas
        self.joint = nn.Sequential(*_perceptron(9, joint_features, joint_features), nn.ReLU())
        self.joint_weight = nn.Parameter(torch.empty(num_joints, joint_features))
        self.joint_bias = nn.Parameter(torch.zeros(num_joints))
        self.pose = _perceptron(num_joints * joint_features, pose_features, pose_features, 1)
        self.shape = _perceptron(num_betas, num_betas, 5, 1)
        for layer in (*self.joint, *self.pose, *self.shape):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        bound = (6 / (joint_features + 1)) ** 0.5  # Xavier's for one layer of one unit per joint
        nn.init.uniform_(self.joint_weight, -bound, bound)

    def forward(
        self, body_pose: Float[Tensor, "*batch J 3 3"], betas: Float[Tensor, "*batch N"]
    ) -> Float[Tensor, "*batch J+2"]:
        """Return scores of each joint, of the shape, and of the pose; 1 means real, 0 generated.

        Args:
            body_pose: (*batch, J, 3, 3) rotation matrices.
            betas: (*batch, N).
        """
        dtype = self.joint_bias.dtype
        body_pose = expect("body_pose", body_pose, self.num_joints, 3, 3).to(dtype)
        betas = expect("betas", betas, self.num_betas).to(dtype)
        features = self.joint(body_pose.flatten(-2))
        joints = (features * self.joint_weight).sum(-1) + self.joint_bias
        return torch.cat((joints, self.shape(betas), self.pose(features.flatten(-2))), -1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Rename the weights of HMR2's discriminator, which sees all joints feature by feature."""
        if f"{prefix}D_conv1.weight" in state_dict:
            for part in ("weight", "bias"):
                rows = [f"{prefix}pose_out.{j}.{part}" for j in range(self.num_joints)]
                if all(row in state_dict for row in rows):
                    state_dict[f"{prefix}joint_{part}"] = torch.cat([state_dict.pop(row) for row in rows])
                for theirs, own in _HMR2.items():
                    if f"{prefix}{theirs}.{part}" in state_dict:
                        value = state_dict.pop(f"{prefix}{theirs}.{part}")
                        state_dict[f"{prefix}{own}.{part}"] = value.flatten(1) if value.dim() > 1 else value
            wide = f"{prefix}pose.0.weight"
            if wide in state_dict and state_dict[wide].shape[1] % self.num_joints == 0:
                by_feature = state_dict[wide].unflatten(1, (-1, self.num_joints))
                state_dict[wide] = by_feature.transpose(1, 2).flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


_HMR2 = {
    "D_conv1": "joint.0",
    "D_conv2": "joint.2",
    "betas_fc1": "shape.0",
    "betas_fc2": "shape.2",
    "betas_out": "shape.4",
    "D_alljoints_fc1": "pose.0",
    "D_alljoints_fc2": "pose.2",
    "D_alljoints_out": "pose.4",
}
"""HMR2's names of the layers; its ``pose_out`` is a list of layers, one per joint."""


def adversarial_loss(
    scores: Float[Tensor, "*batch D"], real: bool, *, weights: Weights = None, reduction: Reduction = "mean"
) -> Float[Tensor, "*left"]:
    """Return ``sum_d (D_d - real)^2`` per body: how far scores are from calling it real, or generated.

    Least squares (Mao et al., ICCV 2017), as in HMR (CVPR 2018), eq. 4 and 5. The network learns from
    ``adversarial_loss(made, True)`` with the scores of its bodies; the discriminator from
    ``adversarial_loss(recorded, True) + adversarial_loss(made, False)``, with these bodies detached.

    Args:
        scores: (*batch, D) of a discriminator.
        real: what the scores should say.
        weights: (*batch).
        reduction: over bodies; HMR2's is "mean".
    """
    scores = expect("scores", scores, None)
    weights = expand_weights(weights, scores.shape[:-1])
    goal = float(read_flag("real", real))
    return reduce((apply_mask(scores, weights, 1) - goal).square().sum(-1), weights, reduction)


def _perceptron(*widths: int) -> nn.Sequential:
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
