"""The factorised discriminator and its least squares."""

import pytest
import torch

from agebody.losses.adversarial import PoseDiscriminator, adversarial_loss
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
    assert changed.tolist() == [False, False, True, False, False, True]
    assert (discriminator(pose, betas + 1) != scores).any(0).tolist() == [False] * 4 + [True, False]
    torch.testing.assert_close(discriminator(pose[3], betas[3]), scores[3])


def test_joints_have_scores_of_their_own(discriminator):
    pose, betas = sample(1)
    same = pose[:, :1].expand(-1, 4, -1, -1)
    assert len(set(discriminator(same, betas)[0, :4].tolist())) == 4


def test_hmr_has_25_scores():
    assert PoseDiscriminator()(torch.eye(3).expand(2, 23, 3, 3), torch.zeros(2, 10)).shape == (2, 25)


class OneLayerAtATime(torch.nn.Module):
    """The discriminator of HMR2, by its published description: convolutions, and one layer per joint."""

    def __init__(self, num_joints, num_betas):
        super().__init__()
        linear = torch.nn.Linear
        self.D_conv1, self.D_conv2 = torch.nn.Conv2d(9, 32, 1), torch.nn.Conv2d(32, 32, 1)
        self.pose_out = torch.nn.ModuleList(linear(32, 1) for _ in range(num_joints))
        self.betas_fc1, self.betas_fc2 = linear(num_betas, num_betas), linear(num_betas, 5)
        self.betas_out = linear(5, 1)
        self.D_alljoints_fc1, self.D_alljoints_fc2 = linear(32 * num_joints, 1024), linear(1024, 1024)
        self.D_alljoints_out = linear(1024, 1)

    def forward(self, pose, betas):
        joints = pose.flatten(2).transpose(1, 2)[..., None]
        joints = self.D_conv2(self.D_conv1(joints).relu()).relu()
        each = [layer(joints[:, :, j, 0]) for j, layer in enumerate(self.pose_out)]
        shape = self.betas_out(self.betas_fc2(self.betas_fc1(betas).relu()).relu())
        wide = self.D_alljoints_fc2(self.D_alljoints_fc1(joints.flatten(1)).relu()).relu()
        return torch.cat([*each, shape, self.D_alljoints_out(wide)], 1)


@pytest.mark.parametrize("num_betas", [10, 11])
def test_published_weights_give_the_published_scores(num_betas):
    torch.manual_seed(0)
    published = torch.nn.ModuleDict({"discriminator": OneLayerAtATime(23, num_betas)}).double()
    own = torch.nn.ModuleDict({"discriminator": PoseDiscriminator(23, num_betas)}).double()
    own.load_state_dict(published.state_dict(), strict=True)
    pose, betas = sample(3, num_joints=23, num_betas=num_betas)
    expected = published["discriminator"](pose, betas)
    torch.testing.assert_close(own["discriminator"](pose, betas), expected)
    again = PoseDiscriminator(23, num_betas).double()
    again.load_state_dict(own["discriminator"].state_dict())
    torch.testing.assert_close(again(pose, betas), expected)
    with pytest.raises(RuntimeError, match=r"size mismatch.*shape"):
        PoseDiscriminator(23, 9).load_state_dict(published["discriminator"].state_dict())
    missing = published["discriminator"].state_dict()
    del missing["D_conv2.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*joint\.2\.weight"):
        again.load_state_dict(missing)


def test_layers_begin_as_published():
    """Xavier-uniform weights, bounded by sqrt(6 / (inputs + outputs)), and biases at zero."""
    torch.manual_seed(0)
    judge = PoseDiscriminator(23, 11)
    assert [tuple(p.shape) for n, p in judge.named_parameters() if n.startswith("shape")] == [
        (11, 11), (11,), (5, 11), (5,), (1, 5), (1,),
    ]  # fmt: skip
    for name, parameter in judge.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
            continue
        outputs = 1 if name == "joint_weight" else parameter.shape[0]
        bound = (6 / (parameter.shape[1] + outputs)) ** 0.5
        assert (0.8 if parameter.numel() > 50 else 0.1) * bound < parameter.abs().max() <= bound, name


def discriminator_loss(made, real):
    return adversarial_loss(made, False) + adversarial_loss(real, True)


def test_losses_are_least_squares():
    made, real = torch.rand(3, 6), torch.rand(5, 6)
    assert adversarial_loss(made, True).item() == pytest.approx(((made - 1) ** 2).sum().item() / 3)
    expected = (made**2).sum() / 3 + ((real - 1) ** 2).sum() / 5
    assert discriminator_loss(made, real).item() == pytest.approx(expected.item())
    assert adversarial_loss(torch.ones(2, 6), True) == 0
    assert discriminator_loss(torch.zeros(2, 6), torch.ones(4, 6)) == 0
    kept = torch.tensor([1.0, 0.0, 1.0])
    spoilt = made.clone()
    spoilt[1] = torch.nan
    torch.testing.assert_close(
        adversarial_loss(spoilt, True, weights=kept, reduction="sum"),
        adversarial_loss(made[[0, 2]], True, reduction="sum"),
    )


def test_discriminator_learns_to_separate():
    torch.manual_seed(0)
    judge = PoseDiscriminator(num_joints=4, num_betas=10)
    optimizer = torch.optim.Adam(judge.parameters(), lr=3e-3)
    real, made = ([t.float() for t in sample(64, num_betas=10, spread=s, seed=1)] for s in (0.1, 1.5))
    for _ in range(60):
        optimizer.zero_grad()
        loss = discriminator_loss(judge(*made), judge(*real))
        loss.backward()
        optimizer.step()
    poses = [0, 1, 2, 3, 5]
    assert judge(*real)[:, poses].mean() > judge(*made)[:, poses].mean() + 0.5


@pytest.mark.usefixtures("unchecked")
def test_errors(discriminator):
    pose, betas = sample(2)
    with pytest.raises(ValueError, match=r"body_pose: expected shape \(\*batch, 4, 3, 3\)"):
        discriminator(pose[:, :3], betas)
    with pytest.raises(ValueError, match=r"betas: expected shape \(\*batch, 11\), got \(2, 10\)"):
        discriminator(pose, betas[:, :10])
    with pytest.raises(ValueError, match="reduction"):
        adversarial_loss(torch.ones(2, 3), True, reduction="all")
