"""Bands of time and the interaction of joints with markers: what they keep, compute, learn and refuse."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from bodies import random_body
from networks import onnx_outputs
from torch import nn

from agebody import SMPL, SMPLA
from agebody.mesh import MarkerSet
from agebody.nets import MeshPoseInteraction
from agebody.nets.bands import TimeBands, haar_join, haar_split

ASSET = random_body(num_vertices=20)
BODIES = {
    "every age": lambda: SMPLA(ASSET),
    "adult": lambda: SMPL(random_body(num_vertices=20, age_offsets=()), pose_format="matrix"),
}
RNG = np.random.default_rng(0)
WEIGHTS = RNG.dirichlet(np.ones(6), 20)
IDS = np.array([3, 0, 7, 11, 19, 5])
LAYOUT = "coco17"


def markers():
    return MarkerSet(IDS, WEIGHTS, [f"marker_{i}" for i in range(6)])


def make(frames=5, body=None, **options):
    torch.manual_seed(0)
    body = BODIES["every age"]() if body is None else body
    sizes: dict[str, Any] = {"features": 7, "frames": frames, "width": 8, "depth": 1, "blocks": 2, "heads": 2}
    return MeshPoseInteraction(body, markers(), LAYOUT, **(sizes | options))


def clip(batch=2, frames=5, coordinates=2):
    gen = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, frames, 7, generator=gen),
        torch.randn(batch, frames, 17, coordinates, generator=gen),
    )


@pytest.mark.parametrize("frames", range(1, 9))
def test_bands_reconstruct_their_signal(frames):
    signal = torch.randn(2, 3, frames, 4, dtype=torch.float64)
    low, high = haar_split(signal)
    assert (low.shape[-2], high.shape[-2]) == (math.ceil(frames / 2), frames // 2)
    torch.testing.assert_close(haar_join(low, high), signal, rtol=0, atol=1e-15)
    if frames % 2 == 0:  # orthogonal
        torch.testing.assert_close(low.square().sum() + high.square().sum(), signal.square().sum())


def test_a_clip_of_one_frame_or_none():
    assert TimeBands(8, 1)(torch.zeros(2, 1, 8)).shape == (2, 1, 8)
    assert TimeBands(8, 6)(torch.zeros(0, 6, 8)).shape == (0, 6, 8)
    assert make(frames=1)(*clip(frames=1)).vertices.isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: haar_split(torch.zeros(3)), "signal: expected shape"),
        (lambda: haar_join(torch.zeros(2, 3), torch.zeros(2, 4)), "high: expected 3 channels"),
        (lambda: TimeBands(8, 6)(torch.zeros(1, 5, 8)), "features: expected shape"),
        (lambda: TimeBands(8, 6)(torch.zeros(6, 8)), r"features: expected shape \(B, T, C\)"),
    ],
)
def test_wrong_signals_are_refused(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()


def test_bands_of_known_signals():
    low, high = haar_split(torch.ones(5, 1))
    torch.testing.assert_close(low, torch.full((3, 1), math.sqrt(2)))
    assert torch.equal(high, torch.zeros(2, 1))
    low, high = haar_split(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
    assert torch.equal(low, torch.zeros(2, 1))
    torch.testing.assert_close(high, torch.full((2, 1), math.sqrt(2)))
    with pytest.raises(ValueError, match="high: expected 3 frames"):
        haar_join(torch.zeros(3, 1), torch.zeros(1, 1))


def test_the_fast_band_does_not_reach_attention():
    """A signal that alternates is 0 in the low band: the slow part then adds the same to every clip."""
    bands = TimeBands(8, 6)
    alternating = torch.randn(2, 1, 8) * torch.tensor([1.0, -1.0]).repeat(3)[:, None]
    with torch.no_grad():
        slow = haar_split(bands(alternating))[0]
    torch.testing.assert_close(slow[0], slow[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "options", [{}, {"parallel": False, "bands": False}, {"coordinates": 3, "frames": 4}]
)
def test_of_the_middle_frame_or_of_every_one(body, options):
    network = make(body=BODIES[body](), **options).eval()
    frames = options.get("frames", 5)
    given = clip(frames=frames, coordinates=options.get("coordinates", 2))
    one, every = network(*given), network(*given, every=True)
    for single, several in zip(one[:3], every[:3], strict=True):
        torch.testing.assert_close(several[:, frames // 2], single, atol=1e-5, rtol=1e-5)
    assert [tuple(part.shape) for part in one] == [(2, 17, 3), (2, 6, 3), (2, 20, 3), (2, frames, 17, 3)]
    expected = torch.einsum("vk,bkx->bvx", torch.from_numpy(WEIGHTS).float(), one.markers)
    torch.testing.assert_close(one.vertices, expected)


def test_parallel_updates_use_the_previous_tokens():
    """Markers see the joints' tokens from before the block, or, one after the other, their update."""
    for parallel in (True, False):
        network = make(parallel=parallel)
        tokens, feature = (torch.randn(2, 17, 8), torch.randn(2, 6, 8)), torch.randn(2, 8)
        block = cast(nn.ModuleList, network.interaction[0])
        joints, found = network._interact(block, tokens, feature)
        with torch.no_grad():
            for part in block[0].parameters():
                part.zero_()
        other_joints, other = network._interact(block, tokens, feature)
        assert not torch.allclose(other_joints, joints)
        assert torch.equal(other, found) == parallel


def test_checkpoints_hold_weights_and_no_body_data():
    network = make()
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    other = make()
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(*clip()), network(*clip()))


def test_every_parameter_learns_and_the_loss_falls():
    network = make()
    target = torch.randn(2, 20, 3)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        made = network(*clip())
        loss = (made.vertices - target).square().mean() + made.lifted.square().mean()
        loss = loss + (made.joints - 0.3).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    still = [name for name, part in network.named_parameters() if part.grad is None or not part.grad.any()]
    assert still == []


def test_gradients_are_those_of_differences():
    network = make().double()
    features, joints = (part.double() for part in clip(batch=1))
    features.requires_grad_()
    torch.autograd.gradcheck(lambda x: network(x, joints).vertices.sum((0, 1)), (features,), atol=1e-6)


def test_autocast_and_16_bits_keep_the_mesh_precise():
    network = make()
    with torch.autocast("cpu", torch.bfloat16):
        made = network(*clip())
    assert made.vertices.dtype == torch.float32
    expected = torch.einsum("vk,bkx->bvx", torch.from_numpy(WEIGHTS).float(), made.markers.float())
    torch.testing.assert_close(made.vertices, expected)


def test_compiled(unchecked):
    network = make().eval()
    expected = network(*clip(3))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*clip(3)), expected, atol=1e-5, rtol=1e-4)


def test_onnx_with_any_number_of_clips(tmp_path, unchecked):
    network, given = make(blocks=1).eval(), clip(5)
    found = onnx_outputs(network, clip(3), given, tmp_path / "network.onnx")
    for part, reference in zip(found, network(*given), strict=True):
        torch.testing.assert_close(part, reference, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinates": 4}, "coordinates: expected 2 or 3, got 4"),
        ({"frames": 0}, "frames"),
        ({"heads": 3}, "heads: expected a divisor of the width 8"),
        ({"heads": 0}, "heads: expected a whole number of 1 or more"),
        (
            {"body": SMPL(random_body(num_vertices=12, age_offsets=()))},
            "markers: expected those of a body of 12",
        ),
    ],
)
def test_wrong_sizes_of_the_network_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (clip(frames=4), r"features: expected shape \(\*batch, 5, 7\), got \(2, 4, 7\)"),
        ((clip()[0], clip(coordinates=3)[1]), "joints: expected shape"),
        ([part[0] for part in clip()], r"features: expected one batch dimension, got shape \(5, 7\)"),
    ],
)
def test_clips_of_another_size_are_refused(given, words, unchecked):
    with pytest.raises(ValueError, match=words):
        make()(*given)
