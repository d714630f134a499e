"""ViTPose's backbone and the decoder head of HMR2 and its relatives: names, numbers, contexts."""

import math

import pytest
import torch
from bodies import random_body

from agebody import SMPLA, nets, rotations
from agebody.nets import DecoderHead, Regressor, ViT, ViTSize, start_readouts


def wave(name, shape):
    """Return numbers without structure that follow from a name and a shape alone, in float64."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(sum(map(ord, name)) + 0.37 * places * places).reshape(shape)


def filled(module):
    """Give every tensor of a module a wave of its name, divided by the root of what one output sums up."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            fan_in = tensor[0].numel() if tensor.dim() > 1 and len(tensor) > 1 else 1
            tensor.copy_(wave(name, tensor.shape) / fan_in**0.5)
    return module.eval()


SMALL = ViTSize(32, 2, 4, 0.1)
PUBLISHED = {
    "hmr2": (
        (114, 39_547_194),
        {
            "orient": (0.95029857, 7.54756294),
            "pose": (-0.84931494, 207.86411481),
            "betas": (1.91214548, 43.48215311),
            "camera": (1.59249761, 34.36997051),
        },
    ),
    "aionhmr": (
        (114, 39_548_220),
        {
            "orient": (0.95029857, 7.54756294),
            "pose": (-0.84931494, 207.86411481),
            "betas": (2.52905255, 48.28384272),
            "camera": (1.59249761, 34.36997051),
        },
    ),
    "camerahmr": (
        (116, 39_800_210),
        {
            "orient": (0.93108451, 7.88031602),
            "pose": (-0.8033662, 204.45177512),
            "betas": (1.79493527, 39.67067711),
            "camera": (2.18173205, 35.33553823),
            "keypoints": (1.86453803, 281.44555594),
        },
    ),
    "camerahmr_x": (
        (117, 39_746_234),
        {
            "orient": (0.97795531, 7.56944083),
            "pose": (-0.89364045, 190.61162401),
            "hands": (0.86132611, 132.63022446 + 137.00027268),
            "betas": (-2.01449761, 73.8253884),
            "camera": (1.55304347, 34.20414456),
        },
    ),
}
"""Tensors and numbers of the published code, and, with all tensors and inputs filled with waves, of its small
networks the last number and the sum of sizes."""


def summary(tensor):
    return tensor.flatten()[-1].item(), tensor.abs().sum().item()


def small_head(name):
    return DecoderHead.preset(name, channels=32, width=64, depth=2, heads=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_of_a_head_are_those_of_the_published_code(name):
    with torch.device("meta"):
        head = DecoderHead.preset(name)
    state = head.state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == PUBLISHED[name][0]
    layer = "transformer.transformer.layers.5"
    for part, shape in {
        "transformer.to_token_embedding.weight": (1024, {"camerahmr": 160, "camerahmr_x": 3}.get(name, 1)),
        "transformer.pos_embedding": (1, 1, 1024),
        f"{layer}.0.norm.weight": (1024,),
        f"{layer}.0.fn.to_qkv.weight": (1536, 1024),
        f"{layer}.0.fn.to_out.0.bias": (1024,),
        f"{layer}.1.fn.to_kv.weight": (1024, 1280),
        f"{layer}.1.fn.to_q.weight": (512, 1024),
        f"{layer}.1.fn.to_out.0.weight": (1024, 512),
        f"{layer}.2.fn.net.0.weight": (1024, 1024),
        f"{layer}.2.fn.net.3.weight": (1024, 1024),
        "decpose.weight": (150 if name == "camerahmr_x" else 144, 1024),
        "init_body_pose": (1, 150 if name == "camerahmr_x" else 144),
        "init_cam": (1, 3),
    }.items():
        assert state[part].shape == shape, part
    assert ("deckp.bias" in state) == (name == "camerahmr")
    assert ("dechandpose.bias" in state) == (name == "camerahmr_x")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_of_a_head_are_those_of_the_published_code(name):
    head = filled(small_head(name).double())
    condition = wave("condition", (2, 3)) if head.condition else None
    found = head(wave("features", (2, 32, 4, 3)), condition)
    matrices = {n: rotations.rotation_6d_to_matrix(found.pop(n).unflatten(-1, (-1, 6))) for n in ("pose",)}
    if "hands" in found:
        matrices["hands"] = rotations.rotation_6d_to_matrix(found.pop("hands").unflatten(-1, (-1, 6)))
    body = matrices["pose"][:, 1:22] if name == "camerahmr_x" else matrices["pose"][:, 1:]
    found |= matrices | {"orient": matrices["pose"][:, 0], "pose": body}
    expected = PUBLISHED[name][1]
    assert found.keys() == expected.keys()
    for part, numbers in expected.items():
        assert summary(found[part]) == pytest.approx(numbers, abs=2e-6), part  # 1e-8 per number printed


def test_the_numbers_of_the_backbone_are_those_of_the_published_code():
    backbone = filled(ViT(SMALL, image_size=(64, 48)).double())
    assert len(backbone.state_dict()) == 29
    features = backbone(wave("images", (2, 3, 64, 64)))
    assert features.shape == (2, 32, 4, 3)
    found = [features[0, 0, 0, 0], features[-1, -1, -1, -1], features.abs().sum()]
    found.append((features * wave("images", features.shape)).sum())
    expected = [-0.32837963, -0.07817546, 593.6964716, -4.68641795]
    torch.testing.assert_close(
        torch.stack(found), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize(
    ("size", "numbers"), [("S", 21_663_744), ("B", 85_794_816), ("L", 303_296_512), ("H", 630_912_000)]
)
def test_the_sizes_of_the_backbone(size, numbers):
    with torch.device("meta"):
        backbone = ViT(size)
    state = backbone.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == numbers
    if size == "H":
        assert len(state) == 389  # with the 114 of a head: HMR2's 503
        for name, shape in {
            "pos_embed": (1, 193, 1280),
            "patch_embed.proj.weight": (1280, 3, 16, 16),
            "blocks.31.norm1.weight": (1280,),
            "blocks.31.attn.qkv.bias": (3840,),
            "blocks.31.attn.proj.weight": (1280, 1280),
            "blocks.31.norm2.bias": (1280,),
            "blocks.31.mlp.fc1.weight": (5120, 1280),
            "blocks.31.mlp.fc2.weight": (1280, 5120),
            "last_norm.bias": (1280,),
        }.items():
            assert state[name].shape == shape


def small_network(**changes):
    body = SMPLA(random_body(), pose_format="matrix")
    head = DecoderHead(start_readouts(body), channels=32, width=48, depth=2, heads=2, **changes)
    return Regressor(ViT(SMALL, image_size=(64, 48)), head, body)


def test_a_new_network_predicts_an_upright_person_at_rest():
    network = small_network()
    made = network(torch.randn(2, 3, 64, 48))
    upright = torch.diag(torch.tensor([1.0, -1, -1]))
    torch.testing.assert_close(made.global_orient, upright.expand(2, 3, 3), atol=0.1, rtol=0)
    torch.testing.assert_close(made.body_pose, torch.eye(3).expand(2, 3, 3, 3), atol=0.1, rtol=0)
    torch.testing.assert_close(made.camera, torch.tensor([0.9, 0, 0]).expand(2, 3), atol=0.1, rtol=0)
    (sum(part.sum() for part in made.arguments().values()) + made.camera.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_of_a_square_crop_the_middle_columns_are_taken():
    backbone = filled(ViT(SMALL, image_size=(64, 48)))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(images), backbone(images[..., 8:-8]))


def test_tokens_in_a_row_are_as_good_as_a_map():
    head, features = filled(small_head("hmr2")), torch.randn(2, 32, 4, 3)
    found, again = head(features), head(features.flatten(2).mT)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_a_path_is_dropped_for_some_people_in_training_alone():
    torch.manual_seed(0)
    backbone = filled(ViT(ViTSize(32, 2, 4, 0.5), image_size=(64, 48)))
    block, tokens = backbone.blocks[1], torch.randn(1, 5, 32).expand(64, 5, 32)
    block.mlp["fc2"].weight.data.zero_(), block.mlp["fc2"].bias.data.zero_()  # leaves the attention's path
    whole = block(tokens) - tokens
    update = block.train()(tokens) - tokens
    kept = (update.flatten(1) != 0).any(1)
    assert 16 < kept.sum() < 48
    torch.testing.assert_close(update[kept], 2 * whole[kept])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (torch.zeros(1, 3, 48, 64), ValueError, r"images: expected shape \(B, 3, 64, 48\)"),
        (torch.zeros(1, 1, 64, 48), ValueError, "images: expected shape"),
        (torch.zeros(3, 64, 48), ValueError, "images: expected shape"),
        (torch.zeros(1, 3, 64, 48, dtype=torch.uint8), TypeError, "images: expected a floating type"),
        (torch.full((1, 3, 64, 48), 200.0), ValueError, "images: expected normalised images"),
        (torch.full((1, 3, 64, 48), torch.nan), ValueError, "images: expected normalised images"),
        ([], TypeError, "images"),
    ],
)
def test_wrong_images_are_refused(given, error, words, unchecked):
    with pytest.raises(error, match=words):
        ViT(SMALL, image_size=(64, 48))(given)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ViT("G"), "size: expected one of S, B, L, H"),
        (lambda: ViT(ViTSize(30, 1, 4)), "size: expected a width"),
        (lambda: ViT(ViTSize(32, 1, 0)), "size: expected a width"),
        (lambda: ViT((32, 1, 2)), "size: expected one of S, B, L, H.* or a ViTSize"),
        (
            lambda: ViT(SMALL, image_size=224),
            "image_size: expected height and width, multiples of 16, got 224",
        ),
        (lambda: ViT(SMALL, image_size=(60, 48)), "image_size: expected height and width, multiples of 16"),
        (lambda: ViT(SMALL, image_size=(48, 64))(torch.zeros(1, 3, 48, 48)), r"shape \(B, 3, 48, 64\)"),
        (lambda: small_head("hmr2")([[0.0]]), "features: expected a torch.Tensor, got list"),
        (lambda: Regressor(ViT(SMALL), small_head("hmr2"), None), "body: expected a layer .*got NoneType"),
        (lambda: DecoderHead.preset("hmr"), "name: expected one of hmr2"),
        (lambda: DecoderHead({"pose": 6}, token_starts=("pose",)), "token_starts"),
        (lambda: small_head("hmr2")(torch.zeros(2, 31, 4, 3)), r"features: expected shape \(B, 32, h, w\)"),
        (lambda: small_head("hmr2")(torch.zeros(2, 32)), "features: expected shape"),
        (lambda: small_head("hmr2")(torch.zeros(2, 32, 4, 3), torch.zeros(2, 3)), "condition: expected None"),
        (
            lambda: small_head("camerahmr")(torch.zeros(2, 32, 4, 3)),
            r"condition: expected shape \(2, 3\), got None",
        ),
        (
            lambda: small_head("camerahmr")(torch.zeros(2, 32, 4, 3), torch.zeros(2, 4)),
            "condition: expected shape",
        ),
        (
            lambda: small_head("camerahmr")(torch.zeros(2, 32, 4, 3), torch.zeros(1, 3)),
            r"condition: expected shape \(2, 3\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, words, unchecked):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_images_are_normalised_by_their_type():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    found = nets.normalize_images(pixels)
    torch.testing.assert_close(found, nets.normalize_images(pixels / 255))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(found, ((pixels / 255).movedim(1, -1) - mean).div(std).movedim(-1, 1))
    with pytest.raises(ValueError, match="images: expected floating-point numbers from 0 to 1, or bytes"):
        nets.normalize_images(pixels.float())
    with pytest.raises(ValueError, match="images: expected shape"):
        nets.normalize_images(pixels.movedim(1, -1))
    with pytest.raises(TypeError, match="images: expected a floating type"):
        nets.normalize_images(pixels.long())


def test_under_autocast():
    network = small_network().eval()
    images = torch.randn(2, 3, 64, 48)
    expected = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images)
    for part, reference in zip(found.arguments().values(), expected.arguments().values(), strict=True):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, reference, atol=0.02, rtol=0.02)
