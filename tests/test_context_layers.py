"""Layers under other devices, default types, 16-bit networks and tracing: the same numbers, or an error."""

import copy
import io

import pytest
import torch
from bodies import random_body
from model_files import small_smplx
from torch import nn
from torch.nn import functional as F

from agebody import SMPL, SMPLA, SMPLX, join_pose, rotations, split_pose

POSE = 0.3 * torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
ASSET = random_body()
LAYERS = {
    "one body": lambda **options: SMPL(ASSET, **options),
    "hands and face": lambda **options: SMPLX(small_smplx(), **options),
    "two bodies": lambda **options: SMPLA(ASSET, smil=ASSET.at_age(1.0), **options),
}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


def outputs(body, pose=POSE):
    if not isinstance(body, SMPLX):
        return (*body(body_pose=pose), body.keypoints("coco17", body_pose=pose))
    # Fingers and an expression by the same numbers, and the contour of a face that turns.
    joined = join_pose(body.asset, left_hand=pose[:, :6], jaw=pose[:, 6:], num_hand_components=6)
    given = {"body_pose": joined, "expression": F.pad(pose, (0, 1)), "age_offset": pose[:, 0]}
    given["global_orient"] = pose[:, 3:6]
    points = body.keypoints("smplh52", **given), body.face_contour(**given)
    return (*points, *split_pose(body.asset, joined).values())


def in_default_type(make):
    try:
        torch.set_default_dtype(torch.float64)
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


def on_meta(make):
    with torch.device("meta"):
        return make()


def under_inference(make):
    with torch.inference_mode():
        return make().double().float()


def inside(change):
    """A network with the layer in it, changed as a whole; the rest of it changes."""

    def changed(make):
        network = nn.Sequential(make(), nn.Linear(2, 2))
        change(network)
        return network[0]

    return changed


WAYS = {
    "half": inside(lambda network: network.half()),
    "bfloat16": inside(lambda network: network.bfloat16()),
    "to(bfloat16)": inside(lambda network: network.to(torch.bfloat16)),
    "to_empty": inside(lambda network: network.to_empty(device="cpu")),
    "share_memory": inside(lambda network: network.share_memory()),
    "double, half, float": lambda make: make().double().half().float(),
    "default type": in_default_type,
    "meta device, to_empty": lambda make: nn.Sequential(on_meta(make)).to_empty(device="cpu")[0],
    "meta device, to": lambda make: on_meta(make).to("cpu"),
    "to meta and back": lambda make: make().to("meta").cpu(),
    "meta in double": lambda make: make(device="meta").double().float().to("cpu"),
    "copy of meta": lambda make: copy.deepcopy(make(device="meta")).to("cpu"),
    "inference mode": under_inference,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_has_its_numbers_however_it_was_made_and_moved(make, way):
    body = WAYS[way](make)
    assert (body.dtype, body.device.type, body.faces.device.type) == (torch.float32, "cpu", "cpu")
    pose = POSE.clone().requires_grad_()
    found = outputs(body, pose)
    torch.testing.assert_close(found, outputs(make()), rtol=0, atol=0)
    found[0].sum().backward()


@pytest.mark.parametrize("change", ["half", "bfloat16"])
def test_a_network_becomes_16_bit_wholly_around_a_layer(change):
    network = nn.Sequential(nn.Linear(2, 2), SMPL(ASSET), nn.Linear(2, 2))
    getattr(network, change)()
    assert {p.dtype for p in network.parameters()} == {getattr(torch, change.replace("half", "float16"))}
    assert network[1].dtype == torch.float32


def test_on_the_meta_device_shapes_are_the_same(make):
    body = on_meta(make)
    assert {buffer.device.type for buffer in body.buffers()} == {"meta"}
    found = outputs(body, POSE.to("meta"))
    assert [part.shape for part in found] == [part.shape for part in outputs(make())]
    assert {part.device.type for part in found} == {"meta"}
    assert body.double().dtype == torch.float64
    assert body.device.type == "meta"


# torch advises against both, and warns of every decision by a shape.
legacy = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


@legacy
@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_a_traced_layer_depends_on_its_input(make, backend, unchecked):  # sizes are tensors while tracing
    if backend == "warp" and make is LAYERS["hands and face"]:
        pytest.skip("the kernels are those of one body, and 55 joints take them seconds on the CPU")
    body = make(backend=backend)
    traced = torch.jit.trace(lambda pose: outputs(body, pose), torch.zeros_like(POSE))
    # Definition against fast path, or against kernels: some roundings of coordinates of about 3 m.
    torch.testing.assert_close(traced(POSE), outputs(body), rtol=0, atol=5e-6)
    torch.testing.assert_close(traced(POSE), outputs(make()), rtol=0, atol=5e-6)


class _Network(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, pose):
        return outputs(self.body, pose)


@legacy
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_onnx_by_tracing(make, unchecked):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, file = _Network(make()), io.BytesIO()
    torch.onnx.export(network, (torch.zeros(2, 9),), file, dynamo=False, input_names=["pose"])
    found = onnxruntime.InferenceSession(file.getvalue()).run(None, {"pose": POSE.numpy()})
    for part, expected in zip(found, network(POSE), strict=True):
        torch.testing.assert_close(torch.from_numpy(part), expected, rtol=0, atol=5e-6)


def test_a_layer_has_its_gradients_after_an_export(make):
    """Constants that the export is the first to use are real ones."""
    rotations._constants_on.cache_clear()
    body, pose = make(), POSE.clone().requires_grad_()
    torch.export.export(_Network(body), (POSE,))
    torch.testing.assert_close(outputs(body, pose), outputs(make()), rtol=0, atol=0)
    found = torch.autograd.grad(outputs(body, pose)[0].sum(), pose)
    torch.testing.assert_close(
        found, torch.autograd.grad(outputs(make(), pose)[0].sum(), pose), rtol=0, atol=0
    )
