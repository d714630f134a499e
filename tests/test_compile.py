"""The layers and a network under torch's compilers, exporters and transforms, on a body of real size."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from bodies import random_body
from networks import onnx_outputs

import agebody
from agebody import SMPLA, BodyParameters, nets

TYPES_CHECKED = os.environ.get("AGEBODY_TYPECHECK", "1") == "1"

# torch's compilers and exporters warn about their own parts.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    # A compiler cannot see through a run-time type checker: the Makefile runs this file without it.
    pytest.mark.skipif(TYPES_CHECKED, reason="runs with AGEBODY_TYPECHECK=0, see the Makefile"),
]


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return SMPLA(mannequin_asset, smil=mannequin_asset.at_age(1.0), transition=0.2).eval()


@pytest.fixture(scope="module", params=["torch", "warp"])
def either_body(request, mannequin_asset):
    smil = mannequin_asset.at_age(1.0)
    return SMPLA(mannequin_asset, smil=smil, transition=0.2, backend=request.param).eval()


@pytest.fixture(scope="module")
def plain_body(either_body, mannequin_asset):
    """Without an infant's layer: half the code to compile."""
    return SMPLA(mannequin_asset, backend=either_body.backend).eval()


def arguments(batch, joints=23):
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: 0.4 * torch.randn((batch, *shape), generator=generator)  # noqa: E731
    return {
        "betas": normal(10),
        "body_pose": normal(3 * joints),
        "global_orient": normal(3),
        "transl": normal(3),
        "age_offset": 0.5 + normal(),
    }


def assert_same_bodies(got, expected):
    for a, b in zip(got, expected, strict=True):
        # 4e-6 m: the same sums in another order.
        np.testing.assert_allclose(np.asarray(torch.as_tensor(a).detach()), b.detach(), rtol=0, atol=4e-6)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_without_a_graph_break(either_body, compiler):
    torch._dynamo.reset()
    body, joints = either_body, 23
    if compiler == "inductor":  # whose C++ compiler takes a second for each level of the kinematic tree
        small = random_body(num_vertices=301, parents=(-1, 0, 0, 2, 1), num_betas=10)
        body, joints = SMPLA(small, backend=either_body.backend).eval(), 4
    compiled = torch.compile(body, fullgraph=True, backend=compiler)
    given = {k: v.requires_grad_() for k, v in arguments(3, joints).items()}
    got, expected = compiled(**given), body(**given)
    assert_same_bodies(got, expected)
    inputs = tuple(given.values())
    for a, b in zip(
        torch.autograd.grad(got.vertices.square().mean(), inputs),
        torch.autograd.grad(expected.vertices.square().mean(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["z_score", "percentile", "stature_at_percentile", "median_head_circumference"]
)
@pytest.mark.parametrize("sex", ["neutral", "male"])
def test_compile_growth(name, sex):
    torch._dynamo.reset()
    years = torch.linspace(0, 20, 7, requires_grad=True)
    given = (years,) if name.startswith("median") else (torch.linspace(0.9, 1.2, 7), years)
    function = partial(getattr(agebody.age, name), sex=sex)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*given)
    torch.testing.assert_close(found, function(*given), rtol=0, atol=0, equal_nan=True)
    assert torch.autograd.grad(found.nansum(), years)[0].isfinite().all()


def test_compile_keypoints_and_shaped_bodies(plain_body):
    torch._dynamo.reset()
    body, given = plain_body, arguments(3)
    expected = body.keypoints("coco17", **given)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def points(betas, age_offset, **pose):
        shaped = body.shape(betas=betas, age_offset=age_offset)
        return body.keypoints("coco17", betas=betas, age_offset=age_offset, **pose), shaped(**pose)

    got, posed = points(**given)
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-6)
    assert_same_bodies(posed, body(**given))


def test_compile_before_the_tables_of_a_layout_are_built(mannequin_asset):
    pose = 0.3 * torch.randn(2, 23, 3)

    def points(body, pose):
        output = body(body_pose=pose)
        return body.keypoints("coco17", body_pose=pose), body.regress(
            "h36m17", output.vertices, output.joints
        )

    torch._dynamo.reset()
    found = torch.compile(points, backend="aot_eager")(agebody.SMPL(mannequin_asset), pose)
    expected = points(agebody.SMPL(mannequin_asset), pose)
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-6)


def test_compile_parameters(plain_body):
    torch._dynamo.reset()
    body, given = plain_body, arguments(3)
    given["body_pose"] = given["body_pose"].unflatten(-1, (-1, 3))
    parameters = BodyParameters(**given)
    expected = body.keypoints("coco17", **given)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def points(parameters):
        return body.keypoints("coco17", parameters), body.shape(parameters)(parameters), body(parameters)

    found, posed, output = points(parameters)
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-6)
    assert_same_bodies(posed, body(**given))
    assert_same_bodies(output, body(**given))


def test_compile_in_inference_mode_and_under_transforms(plain_body):
    torch._dynamo.reset()
    body, given = plain_body, arguments(2)
    surface = lambda betas: body(**{**given, "betas": betas}).vertices  # noqa: E731
    energy = lambda betas: surface(betas).square().mean()  # noqa: E731
    compiled = lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")  # noqa: E731
    betas = given["betas"]
    with torch.inference_mode():
        torch.testing.assert_close(compiled(surface)(betas), surface(betas), rtol=0, atol=4e-6)
    torch._dynamo.reset()
    for derivative in (torch.func.grad(energy), lambda b: torch.func.jvp(surface, (b,), (b,))[1]):
        got, expected = compiled(derivative)(betas), derivative(betas)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=4e-6)
        torch._dynamo.reset()


def test_export_for_any_batch(body):
    batch = torch.export.Dim("batch")
    given = arguments(2)
    program = torch.export.export(body, (), given, dynamic_shapes={name: {0: batch} for name in given})
    more = arguments(5)
    assert_same_bodies(program.module()(**more), body(**more))


def test_export_parameters(body):
    given = arguments(2)
    given["body_pose"] = given["body_pose"].unflatten(-1, (-1, 3))
    program = torch.export.export(body, (BodyParameters(**given),))
    assert_same_bodies(program.module()(BodyParameters(**given)), body(**given))


def test_onnx_runs_in_onnxruntime(body, tmp_path):
    import onnxruntime

    batch = torch.export.Dim("batch")
    given = arguments(2)
    program = torch.onnx.export(
        body,
        (),
        kwargs=given,
        dynamo=True,
        verbose=False,
        dynamic_shapes={name: {0: batch} for name in given},
    )
    program.save(tmp_path / "body.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "body.onnx")
    assert {i.name for i in session.get_inputs()} == set(given)
    more = arguments(5)
    got = session.run(None, {name: value.numpy() for name, value in more.items()})
    assert_same_bodies(got, body(**more))


@pytest.fixture
def network():
    torch.manual_seed(0)
    layer = SMPLA(random_body(), pose_format="matrix")
    head = nets.DecoderHead(nets.start_readouts(layer), channels=32, width=48, depth=1, heads=1, condition=3)
    return nets.Regressor(nets.ViT(nets.ViTSize(32, 1, 2), image_size=(64, 48)), head, layer).eval()


def assert_same_predictions(found, expected):
    for part, reference in zip(found, expected[:5], strict=True):
        torch.testing.assert_close(torch.as_tensor(part), reference, rtol=0, atol=4e-6)


def test_a_network_compiles(network):
    torch._dynamo.reset()
    given = torch.randn(2, 3, 64, 64), torch.randn(2, 3)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert_same_predictions(compiled(*given)[:5], network(*given))


def test_a_network_runs_in_onnxruntime(network, tmp_path):
    given, more = ((torch.randn(n, 3, 64, 64), torch.randn(n, 3)) for n in (2, 5))
    assert_same_predictions(onnx_outputs(network, given, more, tmp_path / "network.onnx"), network(*more))


def test_vmap_and_jacrev(body):
    given = arguments(3)
    names = tuple(given)
    one = lambda *values: body(**dict(zip(names, values, strict=True))).vertices  # noqa: E731
    torch.testing.assert_close(
        torch.func.vmap(one)(*given.values()), body(**given).vertices, rtol=0, atol=4e-6
    )
    betas = given["betas"][0]
    points = lambda betas: body.keypoints("coco17", betas=betas)  # noqa: E731
    reverse, forward = torch.func.jacrev(points)(betas), torch.func.jacfwd(points)(betas)
    torch.testing.assert_close(reverse, forward, rtol=1e-4, atol=1e-6)
    rows = torch.stack([torch.autograd.functional.jacobian(points, betas)])[0]
    torch.testing.assert_close(reverse, rows, rtol=1e-4, atol=1e-6)


def test_in_a_network_with_distributed_data_parallel(body, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.head, self.body = torch.nn.Linear(4, 10), body

            def forward(self, x):
                return self.body(betas=self.head(x))

        network = torch.nn.parallel.DistributedDataParallel(Network())
        network(torch.ones(2, 4)).vertices.sum().backward()
        assert network.module.head.weight.grad.abs().sum() > 0
        assert set(network.module.state_dict()) == {"head.weight", "head.bias"}
    finally:
        torch.distributed.destroy_process_group()
