"""A factorised adversarial prior, trained beside the network: is this the pose and shape of a person?"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.checks import Reduction, Weights, apply_mask, expect, reduce


class PoseDiscriminator(nn.Module):
    """Score a pose and shape: one score per joint, one of all joints together, one of the shape.

    The factorised discriminator of HMR (Kanazawa et al., CVPR 2018, section 3.3), which HMR2 and AionHMR
    train with least squares. Rotations pass through two layers that all joints share; each joint then has its
    own score, which learns that joint's limits, and all joints together have one through two wide layers.

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
        self.num_joints, self.num_betas = num_joints, num_betas
        self.joint = nn.Sequential(*_perceptron(9, joint_features, joint_features), nn.ReLU())
        self.joint_weight = nn.Parameter(torch.empty(num_joints, joint_features))
        self.joint_bias = nn.Parameter(torch.zeros(num_joints))
        nn.init.xavier_uniform_(self.joint_weight)
        self.pose = _perceptron(num_joints * joint_features, pose_features, pose_features, 1)
        self.shape = _perceptron(num_betas, 10, 5, 1)

    def forward(
        self, body_pose: Float[Tensor, "*batch J 3 3"], betas: Float[Tensor, "*batch N"]
    ) -> Float[Tensor, "*batch J+2"]:
        """Return scores of each joint, of the pose, and of the shape; 1 means real, 0 generated.

        Args:
            body_pose: (*batch, J, 3, 3) rotation matrices.
            betas: (*batch, N).
        """
        expect("body_pose", body_pose, self.num_joints, 3, 3)
        expect("betas", betas, self.num_betas)
        features = self.joint(body_pose.flatten(-2))
        joints = (features * self.joint_weight).sum(-1) + self.joint_bias
        return torch.cat((joints, self.pose(features.flatten(-2)), self.shape(betas)), -1)


def generator_loss(
    scores: Float[Tensor, "*batch D"], *, weights: Weights = None, reduction: Reduction = "mean"
) -> Float[Tensor, "*left"]:
    """Return ``sum_d (D_d - 1)^2`` per body: how far the discriminator is from taking it for real.

    Least squares (Mao et al., ICCV 2017), as in HMR (CVPR 2018), eq. 4.

    Args:
        scores: (*batch, D) of bodies that the network generated.
        weights: (*batch).
        reduction: over bodies; HMR2's is "mean".
    """
    expect("scores", scores, None)
    return reduce(_distance(scores, weights, 1.0), weights, reduction)


def discriminator_loss(
    made: Float[Tensor, "*batch D"], real: Float[Tensor, "*others D"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "*left"]:
    """Return ``sum_d (D_d(real) - 1)^2 + D_d(made)^2``, which trains the discriminator (HMR, CVPR 2018, eq.
    5).

    Args:
        made: (*batch, D) scores of bodies that the network generated. Detach these bodies from the network.
        real: (*others, D) scores of recorded bodies.
        reduction: "mean" or "sum", over each of the two sets.
    """
    expect("made", made, None)
    expect("real", real, None)
    if reduction == "none":
        raise ValueError("reduction: expected 'mean' or 'sum', got 'none'; made and real bodies are no pairs")
    return reduce(_distance(real, None, 1.0), None, reduction) + reduce(
        _distance(made, None, 0.0), None, reduction
    )


def _perceptron(*widths: int) -> nn.Sequential:
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _distance(scores: Tensor, weights: Tensor | None, aim: float) -> Tensor:
    return (apply_mask(scores, weights, 1) - aim).square().sum(-1)
