"""Weights of networks in files: what is read, translated, left out and refused, and that nothing is run."""

import io
import os
import pickle

import pytest
import torch
from bodies import random_body
from safetensors.torch import save_file
from test_nets_decoder import filled, wave

from agebody import SMPL, SMPLA, AssetError
from agebody.losses import PoseDiscriminator
from agebody.nets import DecoderHead, Regressor, ViT, ViTSize, load_checkpoint, read_checkpoint
from agebody.nets.vit import VIT_SIZES
from agebody.rotations import rotation_6d_to_matrix

SMALL = ViTSize(32, 2, 4)
PARENTS = (-1, *range(23))
BODY = random_body(num_vertices=30, parents=PARENTS, num_betas=10)
HMR2_JUDGE = {"D_conv1": (4, 9, 1, 1), "D_conv2": (4, 4, 1, 1), "D_alljoints_fc1": (8, 92)}


class Settings(dict):
    """A class that only the writer of a checkpoint has."""


class Payload:
    """What runs a command where a pickle is obeyed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(autouse=True)
def small_size(monkeypatch):
    monkeypatch.setitem(VIT_SIZES, "small", SMALL)


def network(preset="hmr2", body=None):
    body = SMPLA(BODY, pose_format="matrix") if body is None else body
    head = DecoderHead.preset(preset, channels=32, width=64, depth=2, heads=2)
    return filled(Regressor(ViT(SMALL, image_size=(64, 48)), head, body))


def published(preset="hmr2"):
    """The state of a network under the names of the published code, its body and flags among them."""
    weights = {n.replace("head.", "smpl_head."): t for n, t in network(preset).state_dict().items()}
    return {**weights, "smpl.v_template": torch.zeros(30, 3), "initialized": torch.tensor(False)}


def lightning(state):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    return {
        "epoch": 35,
        "state_dict": state,
        "callbacks": {Settings: {"best": torch.tensor(1.0)}, "ModelCheckpoint": {"size": torch.Size([2])}},
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"cfg": Settings(MODEL=Settings(IMAGE_SIZE=256), LIST=[1, 2])},
    }


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


IMAGES = wave("images", (2, 3, 64, 64)).float()


def assert_same_network(found, expected):
    with torch.no_grad():
        for part, reference in zip(found(IMAGES)[:5], expected(IMAGES)[:5], strict=True):
            torch.testing.assert_close(part, reference, rtol=0, atol=0)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_of_lightning(tmp_path, new):
    path = save(lightning(published()), tmp_path / "epoch=35.ckpt", _use_new_zipfile_serialization=new)
    made = load_checkpoint(path, SMPLA(BODY, pose_format="matrix"))
    assert made.family == "HMR2"
    assert made.discriminator is None
    assert not made.network.training
    beside = ("epoch", "callbacks", "optimizer_states", "hyper_parameters")
    assert made.left_out == ("smpl.v_template", "initialized", *beside)
    assert_same_network(made.network, network())
    assert torch.equal(made.network(IMAGES).age_offset, torch.zeros(2))  # without an age: adults
    made.network(IMAGES).camera.sum().backward()


@pytest.mark.parametrize(
    ("preset", "family"), [("hmr2", "HMR2"), ("aionhmr", "AionHMR"), ("camerahmr", "CameraHMR")]
)
def test_the_head_is_recognised_by_its_weights(tmp_path, preset, family):
    state = published(preset)
    if preset == "camerahmr":  # as the published code has the hands' start: without a leading 1
        state["smpl_head.init_cam"] = state["smpl_head.init_cam"][0]
    made = load_checkpoint(save(state, tmp_path / "a.pth"), SMPLA(BODY, pose_format="matrix"))
    assert made.family == family
    head = network(preset).head
    assert (made.network.head.condition, made.network.head.token_starts) == (
        head.condition,
        head.token_starts,
    )
    assert made.network.head.state_dict().keys() == head.state_dict().keys()


def test_the_form_of_camerahmr_for_smplx_predicts_its_55_joints(tmp_path):
    """Fingers are read apart; jaw and eyes stay at rest, as the public code leaves them."""
    whole = random_body(num_vertices=60, parents=(-1, *range(54)), num_betas=16)
    body = SMPLA(whole, pose_format="matrix", num_betas=16)
    state = published("camerahmr_x")
    path = save({name.replace("smpl_", "smplx_"): part for name, part in state.items()}, tmp_path / "a.pth")
    made = load_checkpoint(path, body)
    assert made.family == "CameraHMR-X"
    assert made.network.head.condition == 3
    with torch.no_grad():
        found = made.network(IMAGES, wave("condition", (2, 3)).float())
        read = network("camerahmr_x", body).head(
            made.network.backbone(IMAGES), wave("condition", (2, 3)).float()
        )
    assert found.extras == {}
    torch.testing.assert_close(found.body_pose[:, 21:24], torch.eye(3).expand(2, 3, 3, 3))
    pose, hands = (rotation_6d_to_matrix(read[n].unflatten(-1, (-1, 6))) for n in ("pose", "hands"))
    torch.testing.assert_close(found.body_pose[:, :21], pose[:, 1:22])
    torch.testing.assert_close(found.body_pose[:, 24:], hands)
    assert body(**found.arguments()).vertices.shape == (2, 60, 3)
    with pytest.raises(AssetError, match="predicts 55 joints and 16 shape numbers; the body has 55 .* 10 or"):
        load_checkpoint(path, SMPLA(whole, pose_format="matrix"))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "model.module."])
def test_own_weights_in_wrappers(tmp_path, wrapper):
    state = {wrapper + name: tensor for name, tensor in network("aionhmr").state_dict().items()}
    made = load_checkpoint(
        save({"model": state, "step": 3}, tmp_path / "a.pth"), SMPLA(BODY, pose_format="matrix")
    )
    assert made.left_out == ("step",)
    assert_same_network(made.network, network("aionhmr"))


def test_weights_of_wrapped_parts_in_a_file_of_deepspeed(tmp_path):
    state = {}
    for name, tensor in network("aionhmr").state_dict().items():
        name = name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.")
        name = name.replace("head.", "_fsdp_wrapped_module.head._orig_mod.", 1)
        state[f"_forward_module.{name}"] = tensor
    state["n_averaged"] = torch.tensor(2)
    made = load_checkpoint(
        save({"module": state, "global_steps": 3}, tmp_path / "a.pt"), SMPLA(BODY, pose_format="matrix")
    )
    assert made.left_out == ("n_averaged", "global_steps")
    assert_same_network(made.network, network("aionhmr"))


def test_safetensors_and_16_bits(tmp_path):
    state = {name: tensor.half() for name, tensor in network("aionhmr").state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    made = load_checkpoint(tmp_path / "a.safetensors", SMPLA(BODY, pose_format="matrix"))
    for name, tensor in made.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_bfloat16(tmp_path, write):
    state = {name: tensor.bfloat16() for name, tensor in network().state_dict().items()}
    write(state, tmp_path / "a.pth")
    made = load_checkpoint(tmp_path / "a.pth", SMPLA(BODY, pose_format="matrix"))
    assert all(torch.equal(t, state[n].float()) for n, t in made.network.state_dict().items())


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("content", "left_out"),
    [
        (lambda own: {"net": own, "epoch": torch.tensor(3)}, ("epoch",)),
        (lambda own: {"ema": own, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}, ("optimizer",)),
        (lambda own: {"model": own, "model_ema": own}, ("model_ema",)),
        (lambda own: under("net.", own), ()),
        (lambda own: {"state_dict": under("model.hmr.", own)}, ()),
        (lambda own: under("net._orig_mod.", own) | {"loss.scale": torch.ones(1)}, ("loss.scale",)),
        (lambda own: under("net.", own | {"smpl.v_template": torch.ones(3)}), ("net.smpl.v_template",)),
        (lambda own: {"net": own, "ema": own}, "weights of several networks, net, ema; save those of one"),
        (
            lambda own: under("student.", own) | under("teacher.", own),
            "weights of several networks, student, teacher; save those of one",
        ),
        (lambda own: own | under("ema_model.module.", own), r"unknown \(.*ema_model"),
    ],
)
def test_weights_of_any_trainer(tmp_path, content, left_out):
    path, body = (
        save(content(network("aionhmr").state_dict()), tmp_path / "a.pth"),
        SMPLA(BODY, pose_format="matrix"),
    )
    if isinstance(left_out, str):
        with pytest.raises(AssetError, match=left_out):
            load_checkpoint(path, body)
    else:
        made = load_checkpoint(path, body)
        assert made.left_out == left_out
        assert_same_network(made.network, network("aionhmr"))


def test_custom_networks_load_their_weights(tmp_path):
    body = SMPL(BODY, pose_format="matrix")
    head = DecoderHead.preset("hmr2", channels=8, width=64, depth=1, heads=1)
    own = filled(Regressor(torch.nn.Conv2d(3, 8, 16, 16), head, body))
    path = save(own.state_dict(), tmp_path / "a.pth")
    with pytest.raises(AssetError, match="a backbone of 0 blocks .* pass network="):
        load_checkpoint(path, body)
    other = Regressor(
        torch.nn.Conv2d(3, 8, 16, 16),
        DecoderHead.preset("hmr2", channels=8, width=64, depth=1, heads=1),
        body,
    )
    made = load_checkpoint(path, network=other)
    assert made.network is other
    assert_same_network(other, own)
    with pytest.raises(ValueError, match="body: expected a body, or else a network"):
        load_checkpoint(path)


def test_the_discriminator_comes_too(tmp_path):
    shapes = {
        "D_conv1": (32, 9, 1, 1),
        "D_conv2": (32, 32, 1, 1),
        "betas_fc1": (11, 11),
        "betas_fc2": (5, 11),
    }
    shapes |= {"betas_out": (1, 5), "D_alljoints_fc1": (1024, 736), "D_alljoints_fc2": (1024, 1024)}
    shapes |= {"D_alljoints_out": (1, 1024), **{f"pose_out.{j}": (1, 32) for j in range(23)}}
    judge = {}
    for name, shape in shapes.items():
        judge[f"{name}.weight"], judge[f"{name}.bias"] = wave(name, shape).float(), torch.zeros(shape[0])
    expected = PoseDiscriminator(23, 11)
    expected.load_state_dict(dict(judge))
    state = published("aionhmr") | {f"discriminator.{name}": tensor for name, tensor in judge.items()}
    made = load_checkpoint(save(state, tmp_path / "a.pth"), SMPLA(BODY, pose_format="matrix"))
    assert made.discriminator.num_betas == 11
    assert all(torch.equal(t, made.discriminator.state_dict()[n]) for n, t in expected.state_dict().items())
    own = {f"discriminator.{name}": t for name, t in PoseDiscriminator(23, 11).state_dict().items()}
    made = load_checkpoint(
        save(published("aionhmr") | own, tmp_path / "own.pth"), SMPLA(BODY, pose_format="matrix")
    )
    assert torch.equal(made.discriminator.joint_weight, own["discriminator.joint_weight"])
    del state["discriminator.D_conv2.bias"]
    with pytest.raises(AssetError, match=r"discriminator: .*joint\.2\.bias"):
        load_checkpoint(save(state, tmp_path / "b.pth"), SMPLA(BODY, pose_format="matrix"))


def drop(*names):
    return lambda state: [state.pop(name) for name in list(state) if any(part in name for part in names)]


def put(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            drop("decpose.weight", "to_q.weight"),
            r"3 missing \(head.decpose.weight, head.transformer.transformer.layers.\*.1.fn.to_q.weight 2x",
        ),
        (drop("decpose", "deccam"), "missing the layers decpose, deccam"),
        (put("smpl_head.more", 2), r"1 unknown \(head.more\)"),
        *(
            (
                lambda state, bias=bias: state.update({"smpl_head.deccam.bias": bias}),
                "1 not of finite numbers",
            )
            for bias in (torch.tensor([0, torch.nan, 0]), torch.zeros(3, dtype=torch.int64))
        ),
        (put("smpl_head.deccam.bias", 4), r"1 of another shape \(head.deccam.bias\)"),
        (put("backbone.pos_embed", 1, 14, 32), r"1 of another shape \(backbone.pos_embed\)"),
        (put("backbone.blocks.2.norm1.bias", 32), "a backbone of 3 blocks of width 32"),
        (drop("smpl_head."), "tensors of a backbone without a head; expected those of HMR2"),
        (drop("smpl_head.", "backbone."), r"tensors of an unknown network \(smpl.v_template"),
    ],
)
def test_mismatched_keys_are_listed_in_one_line(tmp_path, change, words):
    state = published()
    change(state)
    with pytest.raises(AssetError, match=words) as error:
        load_checkpoint(save(state, tmp_path / "a.pth"), SMPLA(BODY, pose_format="matrix"))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            lambda: SMPL(BODY, pose_format="matrix"),
            "AionHMR predicts 24 joints and 11 shape numbers; the body has 24 joints and 10$",
        ),
        (lambda: SMPLA(BODY, pose_format="matrix", num_betas=4), "the body has 24 joints and 4 or 5"),
        (lambda: SMPLA(random_body(), pose_format="matrix"), "the body has 4 joints and 3 or 4"),
        (lambda: SMPLA(BODY), 'expected a layer with pose_format="matrix"'),
    ],
)
def test_a_body_that_does_not_fit(tmp_path, body, words):
    with pytest.raises(ValueError, match=words):
        load_checkpoint(save(published("aionhmr"), tmp_path / "a.pth"), body())


def test_nothing_in_a_file_is_run(tmp_path):
    ran = tmp_path / "ran"
    content = lightning(published()) | {"hyper_parameters": Payload(ran)}
    made = load_checkpoint(save(content, tmp_path / "a.ckpt"), SMPLA(BODY, pose_format="matrix"))
    assert "hyper_parameters" in made.left_out
    content["state_dict"]["smpl_head.deccam.bias"] = Payload(ran)
    with pytest.raises(AssetError, match=r"1 missing \(head.deccam.bias\)"):
        load_checkpoint(save(content, tmp_path / "b.ckpt"), SMPLA(BODY, pose_format="matrix"))
    assert not ran.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)  # which shows that it would
    assert ran.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04nothing", "damaged or truncated"),
        (b"<html>", "a web page"),
        (b'{"metadata": {}, "weight_map": {"a": "b.safetensors"}}', "the index of weights in several files"),
        (b"\x93NUMPY", "not the weights of a network"),
        (pickle.dumps({"a": 1}), "not the weights of a network"),
        (None, "no such file. The weights of HMR2 come with the code of 4D-Humans"),
    ],
)
def test_other_files(tmp_path, content, words):
    path = tmp_path / "a.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AssetError, match=words):
        load_checkpoint(path, SMPLA(BODY, pose_format="matrix"))


@pytest.mark.parametrize("content", [{"epoch": 1}, {"state_dict": {}}, [torch.zeros(1)], torch.zeros(2)])
def test_files_of_torch_without_named_tensors(tmp_path, content):
    with pytest.raises(AssetError, match="holds no tensors by name"):
        read_checkpoint(save(content, tmp_path / "a.pth"))


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_refused(tmp_path, new):
    stream = io.BytesIO()
    torch.save(published(), stream, _use_new_zipfile_serialization=new)
    whole = stream.getvalue()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "a.pth").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(AssetError):
            read_checkpoint(tmp_path / "a.pth")


def test_named_tensors_are_read_as_they_are(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "a": shared[2:],
        "b": shared.reshape(2, 3).mT,
        "c": torch.tensor(3),
        "d": torch.nn.Parameter(shared),
    }
    found = read_checkpoint(save({"state_dict": state}, tmp_path / "a.pth"))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    found["a"].zero_()  # writable, and not shared
    assert found["d"][2] == 2
