"""The decoder head of HMR2 and its relatives: names, numbers, contexts."""

import pytest
import torch
from bodies import random_body
from torch import nn

from agebody import SMPLA
from agebody.nets import DecoderHead, Regressor, ViT, ViTSize, start_readouts


def filled(module):
    """Give every tensor of a module numbers that follow from its name and size alone."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            phase = sum(map(ord, name)) % 97
            wave = torch.sin(phase + 1.7 * torch.arange(tensor.numel(), dtype=torch.float64))
            tensor.copy_((wave * tensor[..., :1, :].numel() ** -0.5).reshape(tensor.shape))
    return module.eval()


def names_and_sizes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


PRESETS = {  # tensors, numbers in all
    "hmr2": (114, 39_547_194),
    "aionhmr": (114, 39_548_220),
    "camerahmr": (116, 39_800_210),
    "camerahmr_x": (117, 39_746_234),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_tensors_of_the_published_code(name):
    with torch.device("meta"):
        head = DecoderHead.preset(name)
    sizes = names_and_sizes(head)
    blocks = "transformer.transformer.layers.5"
    assert sizes[f"{blocks}.0.fn.to_qkv.weight"] == (1536, 1024)
    assert sizes[f"{blocks}.1.fn.to_kv.weight"] == (1024, 1280)
    assert sizes[f"{blocks}.2.fn.net.3.bias"] == (1024,)
    assert PRESETS[name] == (len(sizes), sum(p.numel() for p in head.state_dict().values()))


def small_network():
    body = SMPLA(random_body(), pose_format="matrix")
    head = DecoderHead(start_readouts(body), channels=32, width=48, depth=2, heads=2)
    return Regressor(ViT(ViTSize(32, 2, 2), image_size=(64, 48)), head, body)


def test_a_new_network_predicts_an_upright_person_at_rest():
    network = small_network()
    made = network(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(made.camera, torch.tensor([0.9, 0, 0]).expand(2, -1), atol=0.1, rtol=0)
    assert (network.body(**made.arguments()).vertices.isfinite()).all()
    (sum(part.sum() for part in made.arguments().values()) + made.camera.sum()).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert isinstance(network.head, nn.Module)
