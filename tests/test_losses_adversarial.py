"""The factorised discriminator and its least squares."""

import pytest
import torch

from agebody.losses.adversarial import PoseDiscriminator, discriminator_loss, generator_loss
from agebody.rotations import axis_angle_to_matrix


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return PoseDiscriminator(num_joints=4, num_betas=11, joint_features=8, pose_features=16).double()


def sample(count, *, num_joints=4, num_betas=11, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return axis_angle_to_matrix(spread * draw(count, num_joints, 3)), draw(count, num_betas)


def test_each_joint_is_judged_alone(discriminator):
    pose, betas = sample(5)
    scores = discriminator(pose, betas)
    assert scores.shape == (5, 6)
    other = pose.clone()
    other[:, 2] = torch.eye(3, dtype=torch.float64)
    changed = (discriminator(other, betas) != scores).any(0)
    assert changed.tolist() == [False, False, True, False, True, False]
    assert (discriminator(pose, betas + 1) != scores).any(0).tolist() == [False] * 5 + [True]
    torch.testing.assert_close(discriminator(pose[3], betas[3]), scores[3])


def test_joints_have_scores_of_their_own(discriminator):
    pose, betas = sample(1)
    same = pose[:, :1].expand(-1, 4, -1, -1)
    assert len(set(discriminator(same, betas)[0, :4].tolist())) == 4


def test_hmr_has_25_scores():
    assert PoseDiscriminator()(torch.eye(3).expand(2, 23, 3, 3), torch.zeros(2, 10)).shape == (2, 25)


def test_losses_are_least_squares():
    made, real = torch.rand(3, 6), torch.rand(5, 6)
    assert generator_loss(made).item() == pytest.approx(((made - 1) ** 2).sum().item() / 3)
    expected = (made**2).sum() / 3 + ((real - 1) ** 2).sum() / 5
    assert discriminator_loss(made, real).item() == pytest.approx(expected.item())
    assert generator_loss(torch.ones(2, 6)) == 0
    assert discriminator_loss(torch.zeros(2, 6), torch.ones(4, 6)) == 0
    kept = torch.tensor([1.0, 0.0, 1.0])
    spoilt = made.clone()
    spoilt[1] = torch.nan
    torch.testing.assert_close(
        generator_loss(spoilt, weights=kept, reduction="sum"), generator_loss(made[[0, 2]], reduction="sum")
    )


def test_it_learns_to_tell_bodies_apart():
    torch.manual_seed(0)
    judge = PoseDiscriminator(num_joints=4, num_betas=10)
    optimizer = torch.optim.Adam(judge.parameters(), lr=3e-3)
    real, made = ([t.float() for t in sample(64, num_betas=10, spread=s, seed=1)] for s in (0.1, 1.5))
    for _ in range(60):
        optimizer.zero_grad()
        loss = discriminator_loss(judge(*made), judge(*real))
        loss.backward()
        optimizer.step()
    assert judge(*real)[:, :5].mean() > judge(*made)[:, :5].mean() + 0.5


@pytest.mark.usefixtures("unchecked")
def test_errors(discriminator):
    pose, betas = sample(2)
    with pytest.raises(ValueError, match=r"body_pose: expected shape \(\*batch, 4, 3, 3\)"):
        discriminator(pose[:, :3], betas)
    with pytest.raises(ValueError, match=r"betas: expected shape \(\*batch, 11\), got \(2, 10\)"):
        discriminator(pose, betas[:, :10])
    with pytest.raises(ValueError, match="reduction"):
        discriminator_loss(torch.ones(2, 3), torch.ones(2, 3), reduction="none")
