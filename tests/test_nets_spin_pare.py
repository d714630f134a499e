"""Weights of SPIN and PARE in files: the numbers of their public code, from the same weights."""

import pytest
import torch
from bodies import random_body
from networks import wave
from torch import nn

from agebody import SMPL, AssetError
from agebody.nets import IterativeHead, PartAttentionHead, Regressor, load_checkpoint, start_readouts

BODY = SMPL(random_body(num_vertices=30, parents=(-1, *range(23)), num_betas=10), pose_format="matrix")
STARTS = start_readouts(24, 10)
SIZES = {"pose": 144, "betas": 10, "camera": 3}
MEANS = {"init_pose": (1, 144), "init_shape": (1, 10), "init_cam": (1, 3)}
SPIN = MEANS | {
    "fc1.weight": (1024, 2205),
    "fc1.bias": (1024,),
    "fc2.weight": (1024, 1024),
    "fc2.bias": (1024,),
    **{f"{name}.weight": (size, 1024) for name, size in (("decpose", 144), ("decshape", 10), ("deccam", 3))},
    **{f"{name}.bias": (size,) for name, size in (("decpose", 144), ("decshape", 10), ("deccam", 3))},
}
NORM = ("weight", "bias", "running_mean", "running_var")
PARE = MEANS | {
    "temperature": (),
    **{
        f"{branch}_deconv_layers.{3 * layer}.weight": (128, 128 if layer else 480, 3, 3)
        for branch in ("keypoint", "smpl")
        for layer in range(2)
    },
    **{
        f"{branch}_deconv_layers.{3 * layer + 1}.{name}": (128,)
        for branch in ("keypoint", "smpl")
        for layer in range(2)
        for name in NORM
    },
    "keypoint_final_layer.weight": (25, 128, 1, 1),
    "keypoint_final_layer.bias": (25,),
    "smpl_final_layer.weight": (64, 128, 1, 1),
    "smpl_final_layer.bias": (64,),
    "shape_mlp.weight": (10, 1536),
    "shape_mlp.bias": (10,),
    "cam_mlp.weight": (3, 1536),
    "cam_mlp.bias": (3,),
    "pose_mlp.weight": (1, 6, 128, 24, 1, 1),
}
COUNTS = {
    f"{branch}_deconv_layers.{3 * layer + 1}.num_batches_tracked": torch.tensor(7)
    for branch in ("keypoint", "smpl")
    for layer in range(2)
}


def state(shapes, prefix=""):
    """Weights under published names, from which the public code gave the numbers of the tests below."""
    return {f"{prefix}{name}": wave(name, *shape) for name, shape in shapes.items()}


class Given(nn.Module):
    """A backbone with one weight that gives features whatever it is shown."""

    def __init__(self, features):
        super().__init__()
        self.features = features
        self.conv1 = nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, images):
        return self.features


def close(found, expected):
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), atol=2e-5, rtol=2e-5)


SPIN_ROTATION = (
    0.13341,
    -0.54797,
    -0.82578,
    0.97579,
    -0.07303,
    0.20611,
    -0.17325,
    -0.83330,
    0.52496,
)


@pytest.mark.parametrize("head_prefix", ["", "head."])
def test_spin(tmp_path, head_prefix):
    backbone = "backbone." if head_prefix else ""
    weights = state(SPIN, head_prefix) | {f"{backbone}conv1.weight": torch.ones(2, 3, 1, 1)}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "spin.pt")
    network = Regressor(Given(wave("features", 2, 2048, 1, 1)), IterativeHead(STARTS), BODY)
    found = load_checkpoint(tmp_path / "spin.pt", network=network)
    assert found.left_out == ("epoch",)
    made = found.network(torch.zeros(2, 3, 8, 8))
    close(made.body_pose[1, 4], SPIN_ROTATION)
    close(made.betas[1, :3], (-6.89641, 3.30602, 3.23551))
    close(made.camera[1], (-9.71750, -4.97698, -1.70310))
    assert torch.equal(network.backbone.conv1.weight, torch.ones(2, 3, 1, 1))


PARE_NUMBERS = {
    "no means": (
        (
            0.62398,
            0.09107,
            0.77611,
            -0.12129,
            -0.96985,
            0.21133,
            0.77196,
            -0.22600,
            -0.59413,
        ),
        (-2.41701, -1.92994, -1.07213),
        (-1.93171, -1.30103, 2.64078),
    ),
    "means": (
        (
            0.45617,
            0.38860,
            0.80055,
            -0.14576,
            -0.85482,
            0.49801,
            0.87787,
            -0.34387,
            -0.33330,
        ),
        (-2.96473, -2.36113, -1.38655),
        (-2.93171, -2.13317, 1.97689),
    ),
}


def save_pare(path):
    weights = state(PARE) | COUNTS
    made = {f"model.head.{name}": tensor for name, tensor in weights.items()}
    made["model.backbone.conv1.weight"] = torch.ones(2, 3, 1, 1)
    torch.save({"state_dict": made | {"model.smpl.smpl.v_template": torch.zeros(30, 3)}}, path)


@pytest.mark.parametrize("readouts", PARE_NUMBERS)
def test_pare_with_and_without_its_means(tmp_path, readouts):
    save_pare(tmp_path / "pare.ckpt")
    head = PartAttentionHead(STARTS if readouts == "means" else SIZES)
    network = Regressor(Given(wave("features", 2, 480, 6, 5)), head, BODY)
    found = load_checkpoint(tmp_path / "pare.ckpt", network=network)
    means = () if readouts == "means" else ("head.init_betas", "head.init_body_pose", "head.init_cam")
    assert sorted(found.left_out) == sorted(("smpl.smpl.v_template", "head.temperature", *means))
    made = found.network(torch.zeros(2, 3, 8, 8))
    rotation, betas, camera = PARE_NUMBERS[readouts]
    close(made.body_pose[1, 4], rotation)
    close(made.betas[1, :3], betas)
    close(made.camera[1], camera)
    close(made.extras["parts"][1, 7, 3, 2:], (1.52198, 1.51636, 1.62740))


def test_custom_networks_are_required_by_name(tmp_path):
    save_pare(tmp_path / "pare.ckpt")
    torch.save(state(SPIN), tmp_path / "spin.pt")
    for name, words in (("pare.ckpt", "PartAttentionHead"), ("spin.pt", "IterativeHead")):
        with pytest.raises(ValueError, match=rf"pass network= instead, nets.Regressor\(.*{words}"):
            load_checkpoint(tmp_path / name, BODY)


@pytest.mark.parametrize("name", ["pose_mlp.weight", "shape_mlp.weight", "init_pose"])
def test_other_shapes_are_refused_in_one_line(tmp_path, name):
    weights = {f"head.{n}": t for n, t in (state(PARE) | COUNTS).items()} | {f"head.{name}": torch.zeros(5)}
    torch.save(weights, tmp_path / "pare.pt")
    network = Regressor(nn.Identity(), PartAttentionHead(STARTS), BODY)
    with pytest.raises(AssetError, match=r"pare.pt: tensors whose names or shapes are not those of PARE"):
        load_checkpoint(tmp_path / "pare.pt", network=network)


def test_mismatched_heads_list_their_keys(tmp_path):
    torch.save(state(SPIN), tmp_path / "spin.pt")
    network = Regressor(nn.Identity(), IterativeHead(STARTS, condition=3, width=512), BODY)
    with pytest.raises(AssetError, match=r"do not fit the network: .*of another shape \(.*head.fc1.weight"):
        load_checkpoint(tmp_path / "spin.pt", network=network)


@pytest.mark.parametrize("make", [IterativeHead, PartAttentionHead])
def test_custom_network_round_trip(tmp_path, make):
    networks = [Regressor(Given(torch.zeros(0)), make(STARTS, channels=8), BODY) for _ in range(2)]
    torch.save({"state_dict": networks[0].state_dict()}, tmp_path / "own.pt")
    assert load_checkpoint(tmp_path / "own.pt", network=networks[1]).left_out == ()
    for own, read in zip(*(network.head.state_dict().values() for network in networks), strict=True):
        assert torch.equal(own, read)
