"""A factorised prior that is trained beside the network: is this pose, this shape one of a person?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.checks import Reduction, Weights, apply_mask, expect, reduce


class PoseDiscriminator(nn.Module):
    """Scores of one pose and shape: one for each joint, one for all together, one for the shape.

    The factorised discriminator of HMR (Kanazawa et al., CVPR 2018, section 3.3), which HMR2 and AionHMR
    train with least squares. Rotations pass through two layers that all joints share; each joint then has a
    score of its own, from which it learns that joint's limits, and all joints together have one by way of
    two wide layers.

    Args:
        num_joints: rotations that are judged, the root's not among them.
        num_betas: shape coefficients that are judged; 11 for AionHMR, where the age offset is the last.
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
        self.joint = nn.Sequential(
            nn.Linear(9, joint_features), nn.ReLU(), nn.Linear(joint_features, joint_features), nn.ReLU()
        )
        self.joint_weight = nn.Parameter(torch.empty(num_joints, joint_features))
        self.joint_bias = nn.Parameter(torch.zeros(num_joints))
        nn.init.xavier_uniform_(self.joint_weight)
        self.pose = nn.Sequential(
            nn.Linear(num_joints * joint_features, pose_features), nn.ReLU(),
            nn.Linear(pose_features, pose_features), nn.ReLU(),
            nn.Linear(pose_features, 1),
        )  # fmt: skip
        self.shape = nn.Sequential(
            nn.Linear(num_betas, 10), nn.ReLU(), nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1)
        )

    def forward(
        self, body_pose: Float[Tensor, "*batch J 3 3"], betas: Float[Tensor, "*batch N"]
    ) -> Float[Tensor, "*batch J+2"]:
        """Scores: of each joint, of the pose, of the shape. 1 is meant to say real, 0 made up.

        Args:
            body_pose: (*batch, J, 3, 3) rotation matrices.
            betas: (*batch, N).

        Raises:
            ValueError: there are other numbers of joints or betas than it was made for.
        """
        expect("body_pose", body_pose, self.num_joints, 3, 3)
        expect("betas", betas, self.num_betas)
        features = self.joint(body_pose.flatten(-2))
        joints = (features * self.joint_weight).sum(-1) + self.joint_bias
        return torch.cat((joints, self.pose(features.flatten(-2)), self.shape(betas)), -1)


def generator_loss(
    scores: Float[Tensor, "*batch D"], *, weights: Weights = None, reduction: Reduction = "mean"
) -> Float[Tensor, "*left"]:
    """``sum_d (D_d - 1)^2`` for each body: how far the discriminator is from taking it for real.

    Least squares (Mao et al., ICCV 2017), as in HMR (CVPR 2018), eq. 4.

    Args:
        scores: (*batch, D) of bodies that the network made.
        weights: (*batch).
        reduction: over bodies; HMR2's is "mean".
    """
    expect("scores", scores, None)
    return reduce(_distance(scores, weights, 1.0), weights, reduction)


def discriminator_loss(
    made: Float[Tensor, "*batch D"], real: Float[Tensor, "*others D"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "*left"]:
    """``sum_d (D_d(real) - 1)^2 + D_d(made)^2``: what the discriminator learns from (HMR, CVPR 2018, eq. 5).

    Args:
        made: (*batch, D) scores of bodies that the network made. Detach them from the network.
        real: (*others, D) scores of recorded ones.
        reduction: "mean" or "sum", over each of the two sets.

    Raises:
        ValueError: the reduction is "none": the two sets have no pairs.
    """
    expect("made", made, None)
    expect("real", real, None)
    if reduction == "none":
        raise ValueError("reduction: expected 'mean' or 'sum', got 'none'; made and real bodies are no pairs")
    return reduce(_distance(real, None, 1.0), None, reduction) + reduce(
        _distance(made, None, 0.0), None, reduction
    )


def _distance(scores: Tensor, weights: Tensor | None, aim: float) -> Tensor:
    return (apply_mask(scores, weights, 1) - aim).square().sum(-1)
