"""Layers with kernels equal layers with torch: values, derivatives and all features."""

import copy
import pickle
import warnings

import pytest
import torch
from bodies import random_body
from devices import DEVICES
from roundings import assert_close, assert_equal
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

pytest.importorskip("warp", reason="the kernels need the extra agebody[warp]")

from agebody import SMIL, SMPL, SMPLA, rotations
from agebody.engine import backend
from agebody.engine.backend import choose_backend

DOUBLE = torch.float64
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(DOUBLE, id="float64")]
on_devices = pytest.mark.parametrize("device", DEVICES)

ROUNDINGS = 100
"""Roundings on the longest path through a layer: a product of 40 terms, 4 joints in a row, 4 weights."""
OF_DERIVATIVES = 1000
"""First and second derivatives: that path backwards, and once more, with sums over all coordinates."""

ADULT = random_body(num_vertices=20)
INFANT = random_body(num_vertices=20, age_offsets=(), num_betas=2, seed=3)
BODIES = {
    "SMPL": lambda **o: SMPL(ADULT, **o),
    "SMPL without betas": lambda **o: SMPL(ADULT, num_betas=0, **o),
    "SMPL without correctives": lambda **o: SMPL(random_body(posedirs=False), **o),
    "SMPL of one joint": lambda **o: SMPL(random_body(parents=(-1,)), **o),
    "SMIL": lambda **o: SMIL(INFANT, **o),
    "SMPLA": lambda **o: SMPLA(ADULT, **o),
    "SMPLA of four anchors": lambda **o: SMPLA(random_body(age_offsets=(-0.5, 0.4, 1.0)), **o),
    "SMPLA with scaled correctives": lambda **o: SMPLA(ADULT, infant_corrective_scale=0.35, **o),
    "SMPLA with a switch": lambda **o: SMPLA(ADULT, smil=INFANT, infant_threshold=0.5, **o),
    "SMPLA with a transition": lambda **o: SMPLA(
        ADULT, smil=INFANT, infant_threshold=0.5, transition=1.0, **o
    ),
}
DIFFERENTIATED = ("SMPL without correctives", "SMPLA", "SMPLA with a transition")


ALL_BATCHES = [(), (1,), (2, 3), (2, 1, 2), (0,), (2, 0)]


def both(name, dtype=DOUBLE, device="cpu"):
    """Return the layer with kernels, and with torch."""
    layers = [BODIES[name](backend=b, dtype=dtype, device=device) for b in ("warp", "torch")]
    assert [layer.backend for layer in layers] == ["warp", "torch"]
    return layers


def arguments(body, batch=(2, 3), *, pose_format="axis_angle", seed=0):
    """Return random arguments of every kind."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        numbers = torch.randn((*batch, *shape), generator=generator, dtype=DOUBLE)
        return numbers.to(body.device, body.dtype)

    def turns(*shape):
        matrices = rotations.axis_angle_to_matrix(normal(*shape, 3))
        return rotations.from_matrix(matrices, pose_format)

    given = {
        "betas": normal(body.num_betas),
        "body_pose": turns(body.num_joints - 1),
        "global_orient": turns(),
        "transl": normal(3),
    }
    return given | ({"age_offset": 0.5 + 0.4 * normal()} if body.age_anchors else {})


def pose_of(given):
    return {name: given[name] for name in ("body_pose", "global_orient", "transl")}


def identity_of(given):
    return {name: given[name] for name in ("betas", "age_offset") if name in given}


class TestValues:
    @on_devices
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", BODIES)
    def test_every_body(self, name, dtype, device):
        ours, theirs = both(name, dtype, device)
        given = arguments(ours)
        assert_close(ours(**given), theirs(**given), ROUNDINGS, dtype)

    @on_devices
    @pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 4e-6), (DOUBLE, 1e-14)])
    def test_a_body_of_real_size(self, mannequin_asset, dtype, atol, device):
        """4e-6 m: about thirty roundings of a metre in float32; in float64 that would be 7e-15."""
        smil = mannequin_asset.at_age(1.0)
        ours, theirs = (
            SMPLA(mannequin_asset, smil=smil, transition=0.2, backend=b, dtype=dtype, device=device)
            for b in ("warp", "torch")
        )
        given = {k: 0.5 * v for k, v in arguments(ours, (5,)).items()}
        for a, b in zip(ours(**given), theirs(**given), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=atol)

    @on_devices
    @pytest.mark.parametrize("pose_format", ["axis_angle", "matrix", "quaternion", "rotation_6d"])
    def test_every_pose_format(self, pose_format, device):
        ours, theirs = both("SMPLA", device=device)
        given = arguments(ours, pose_format=pose_format)
        expected = theirs(**given, pose_format=pose_format)
        assert_close(ours(**given, pose_format=pose_format), expected, ROUNDINGS, DOUBLE)
        flat = given | {"body_pose": given["body_pose"].flatten(2)}
        assert_equal(ours(**flat, pose_format=pose_format), ours(**given, pose_format=pose_format))

    @on_devices
    @pytest.mark.parametrize("name", ["SMPLA", "SMPLA with a switch"])
    @pytest.mark.parametrize("batch", ALL_BATCHES)
    def test_every_batch(self, name, batch, device):
        ours, theirs = both(name, device=device)
        given = arguments(ours, batch)
        found = ours(**given)
        assert found.vertices.shape == (*batch, 20, 3)
        assert_close(found, theirs(**given), ROUNDINGS, DOUBLE)

    @on_devices
    def test_arguments_broadcast_and_may_be_left_out(self, device):
        ours, theirs = both("SMPLA with a transition", device=device)
        given = arguments(ours)
        given |= {"betas": given["betas"][:1, :1], "transl": given["transl"][0, 0], "age_offset": 0.6}
        assert_close(ours(**given), theirs(**given), ROUNDINGS, DOUBLE)
        assert_close(ours(), theirs(), ROUNDINGS, DOUBLE)
        for name, value in given.items():
            assert_close(ours(**{name: value}), theirs(**{name: value}), ROUNDINGS, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("people", [(), (1,), (3,), (2, 1), (2, 3)])
    @pytest.mark.parametrize("name", ["SMPLA", "SMPLA with a transition"])
    def test_shaped_bodies(self, name, people, device):
        ours, theirs = both(name, device=device)
        who, how = identity_of(arguments(ours, people)), pose_of(arguments(ours, seed=1))
        shaped, expected = ours.shape(**who), theirs.shape(**who)
        assert_close(shaped(**how), expected(**how), ROUNDINGS, DOUBLE)
        assert_close(
            (shaped.rest_vertices, shaped.rest_joints, shaped.keypoints("coco17", **how)),
            (expected.rest_vertices, expected.rest_joints, expected.keypoints("coco17", **how)),
            ROUNDINGS, DOUBLE,
        )  # fmt: skip

    @on_devices
    @pytest.mark.parametrize("layout", ["smpl24", "coco17", "h36m17"])
    def test_keypoints_with_and_without_the_mesh(self, layout, mannequin_asset, device):
        ours, theirs = (
            SMPLA(mannequin_asset, backend=b, dtype=DOUBLE, device=device) for b in ("warp", "torch")
        )
        given = arguments(ours, (3,))
        expected = theirs.keypoints(layout, **given)
        out = ours(**given)
        found = ours.keypoints(layout, **given), ours.regress(layout, out.vertices, out.joints)
        assert_close(found, (expected, expected), ROUNDINGS, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("identities", [(), (5,)])
    def test_bodies_go_by_in_pieces(self, identities, device, monkeypatch):
        """Where no gradient is wanted, so many at a time; else all at once."""
        ours, _ = both("SMPLA", device=device)
        who, how = identity_of(arguments(ours, identities)), pose_of(arguments(ours, (5,), seed=1))
        how["transl"].requires_grad_()
        whole = ours.shape(**who)(**how), ours(**who, **how)
        monkeypatch.setattr(backend, "BODIES", 2)
        with torch.no_grad():
            pieces = ours.shape(**who)(**how), ours(**who, **how)
        for found, expected in zip(pieces, whole, strict=True):
            assert expected.vertices.requires_grad
            assert not found.vertices.requires_grad
            # A product of two rows may add up in another order than one of five.
            assert_close(found, expected, ROUNDINGS, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
    def test_correctives_of_16_bits(self, low, device, mannequin_asset):
        ours, theirs = (
            SMPLA(mannequin_asset, corrective_dtype=low, backend=b, device=device) for b in ("warp", "torch")
        )
        given = {k: 0.5 * v for k, v in arguments(ours, (3,)).items()}
        given["betas"].requires_grad_()
        who, how = identity_of(given), pose_of(given)
        expected = theirs(**given).vertices
        (gradient,) = torch.autograd.grad(expected.square().mean(), given["betas"])
        with torch.no_grad():
            pieces = ours(**given).vertices, ours.shape(**who)(**how).vertices
        for found in (ours(**given).vertices, ours.shape(**who)(**how).vertices, *pieces):
            # The same rounded factors, whose products all sum in float32.
            torch.testing.assert_close(found, expected, rtol=0, atol=4e-6)
            if found.requires_grad:
                (again,) = torch.autograd.grad(found.square().mean(), given["betas"])
                assert_close((again,), (gradient,), OF_DERIVATIVES, torch.float32)


class TestDerivatives:
    @staticmethod
    def scalar_of(body, names):
        """A curved function of all outputs."""

        def function(*values):
            out = body(**dict(zip(names, values, strict=True)))
            return sum((o.square().mean() + torch.sin(o).mean()) for o in out)

        return function

    @on_devices
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", BODIES)
    def test_gradient_of_every_argument(self, name, dtype, device):
        ours, theirs = both(name, dtype, device)
        names, values = zip(*arguments(ours).items(), strict=True)
        values = [v.requires_grad_() for v in values]
        found, expected = (
            torch.autograd.grad(self.scalar_of(body, names)(*values), values, materialize_grads=True)
            for body in (ours, theirs)
        )
        assert_close(found, expected, OF_DERIVATIVES, dtype)

    @on_devices
    @pytest.mark.parametrize("name", DIFFERENTIATED)
    @pytest.mark.parametrize("scale", [0.0, 1.0], ids=["at zero", "anywhere"])
    def test_second_derivative_in_every_argument(self, name, scale, device):
        ours, theirs = both(name, device=device)
        names, values = zip(*arguments(ours, (2,)).items(), strict=True)
        values = [(scale * v).requires_grad_() for v in values]

        def second(body):
            value = self.scalar_of(body, names)(*values)
            first = torch.autograd.grad(value, values, create_graph=True)
            total = sum((g * torch.cos(g + 1)).sum() for g in first)
            return torch.autograd.grad(total, values)

        assert_close(second(ours), second(theirs), OF_DERIVATIVES, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("name", DIFFERENTIATED)
    @pytest.mark.parametrize("mode", ["jacrev", "jacfwd", "hessian"])
    def test_torch_func(self, name, mode, device):
        ours, theirs = both(name, device=device)
        names, values = zip(*arguments(ours, ()).items(), strict=True)
        transform = getattr(torch.func, mode)
        found, expected = (
            transform(self.scalar_of(body, names), tuple(range(len(names))))(*values)
            for body in (ours, theirs)
        )
        flat = torch.utils._pytree.tree_leaves
        assert_close(flat(found), flat(expected), OF_DERIVATIVES, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("backend", ["warp", "torch"])
    def test_all_ways_to_higher_derivatives_agree(self, backend, device):
        body = BODIES["SMPLA"](backend=backend, dtype=DOUBLE, device=device)
        names, values = zip(*arguments(body, ()).items(), strict=True)
        point = torch.cat([value.reshape(-1) for value in values])
        along = torch.cos(torch.arange(len(point), dtype=DOUBLE, device=device))
        zero = torch.zeros((), dtype=DOUBLE, device=device)

        def function(x):
            parts = x.split([value.numel() for value in values])
            shaped = (part.reshape(value.shape) for part, value in zip(parts, values, strict=True))
            return self.scalar_of(body, names)(*shaped)

        forward, reverse = torch.func.jacfwd, torch.func.jacrev
        expected = reverse(reverse(function))(point)
        for found in (
            forward(forward(function))(point),
            torch.func.hessian(function)(point),
            torch.autograd.functional.hessian(function, point, vectorize=True),
        ):
            assert_close((found,), (expected,), OF_DERIVATIVES, DOUBLE)
        line = lambda t: function(point + t * along)  # noqa: E731
        thirds = [
            forward(forward(forward(line)))(zero),
            forward(reverse(forward(line)))(zero),
            reverse(reverse(reverse(line)))(zero),
        ]
        assert_close(thirds[:2], thirds[2:] * 2, OF_DERIVATIVES, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("name", DIFFERENTIATED)
    @pytest.mark.parametrize("batch", [(3,), (0,)])
    def test_gradients_that_autograd_batches(self, name, batch, device):
        for body in both(name, device=device):
            given = {key: value.requires_grad_() for key, value in arguments(body, batch).items()}
            out = body(**given).vertices
            pulls = torch.randn(5, *out.shape, dtype=DOUBLE, device=device)
            found = torch.autograd.grad(out, list(given.values()), pulls, True, is_grads_batched=True)
            rows = [torch.autograd.grad(out, list(given.values()), pull, True) for pull in pulls]
            assert_close(found, [torch.stack(parts) for parts in zip(*rows, strict=True)], ROUNDINGS, DOUBLE)
            jacobian = torch.func.jacrev(lambda b, body=body: body.keypoints("h36m17", betas=b))
            betas = given["betas"].detach()
            assert jacobian(betas).shape == (*batch, 17, 3, *betas.shape)

    @on_devices
    @pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")  # of the kernels' reference
    @pytest.mark.parametrize("name", DIFFERENTIATED)
    def test_vmap_over_networks_with_bodies(self, name, device):
        """As ensembles are run: each network has a body of its own, whose buffers are stacked."""
        for body in both(name, device=device):
            given = arguments(body, (2,))
            bodies = [copy.deepcopy(body) for _ in range(3)]
            for layer, factor in zip(bodies, (1.0, 0.9, 1.1), strict=True):
                layer.identity.directions.mul_(factor)
            state = torch.func.stack_module_state(bodies)
            call = lambda s, body=body, given=given: torch.func.functional_call(body, s, (), given)  # noqa: E731
            found = torch.func.vmap(call)(state)
            for i, layer in enumerate(bodies):
                assert_close([part[i] for part in found], layer(**given), ROUNDINGS, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("name", DIFFERENTIATED)
    def test_vmap_and_gradients_per_sample(self, name, device):
        ours, theirs = both(name, device=device)
        names, values = zip(*arguments(ours, (3,)).items(), strict=True)
        one = lambda body: lambda *v: body(**dict(zip(names, v, strict=True))).vertices  # noqa: E731
        assert_close((torch.func.vmap(one(ours))(*values),), (one(theirs)(*values),), ROUNDINGS, DOUBLE)
        found, expected = (
            torch.func.vmap(torch.func.grad(self.scalar_of(body, names), (0, 1)))(*values)
            for body in (ours, theirs)
        )
        assert_close(found, expected, OF_DERIVATIVES, DOUBLE)

    @on_devices
    def test_keypoints_of_a_mesh(self, device):
        ours, theirs = both("SMPLA", device=device)
        mesh = torch.randn(2, 12, 3, dtype=DOUBLE)[:, torch.arange(20) % 12].to(device).requires_grad_()
        for order in (1, 2):
            derivatives = []
            for body in (ours, theirs):
                value = body.regress("h36m17", mesh).square().square().sum()
                for _ in range(order):
                    (value,) = torch.autograd.grad(value.sum(), mesh, create_graph=True)
                derivatives.append(value)
            assert_close(derivatives[:1], derivatives[1:], OF_DERIVATIVES, DOUBLE)

    @on_devices
    def test_gradients_repeat_to_the_bit(self, device, mannequin_asset):
        body = SMPLA(mannequin_asset, backend="warp", device=device)
        given = {k: v.requires_grad_() for k, v in arguments(body, (5,)).items()}

        def run():
            out = body(**given)
            return *out, *torch.autograd.grad(out.vertices.square().sum(), list(given.values()))

        first = run()
        for _ in range(3):
            assert_equal(run(), first)


class TestModule:
    @on_devices
    @pytest.mark.parametrize("name", ["SMPLA", "SMPLA with a switch"])
    def test_copies(self, name, device):
        body, _ = both(name, device=device)
        given = arguments(body)
        expected = body(**given)
        body.keypoints("coco17", **given)
        for copied in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
            assert copied.backend == "warp"
            assert_equal(copied(**given), expected)

    def test_a_checkpoint_carries_nothing(self):
        body, _ = both("SMPLA with a switch")
        body.regress("h36m17", body().vertices)
        assert body.state_dict() == {}
        assert list(body.parameters()) == []

    @on_devices
    def test_double_is_the_files_own_precision(self, device):
        body, _ = both("SMPLA with a transition", torch.float32, device)
        exact, _ = both("SMPLA with a transition", DOUBLE, device)
        given = arguments(exact)
        single = body(**{k: v.float() for k, v in given.items()})
        assert_equal(body.double()(**given), exact(**given))
        assert_equal(body.float()(**{k: v.float() for k, v in given.items()}), single)

    @on_devices
    def test_autocast_leaves_precision_alone(self, device):
        body, _ = both("SMPLA with a transition", torch.float32, device)
        given = {k: v.requires_grad_() for k, v in arguments(body).items()}

        def gradient(out):
            return torch.autograd.grad(out.vertices.square().sum(), list(given.values()))

        expected = body(**given)
        with torch.autocast(device, torch.bfloat16):
            found = body(**given)
        assert_equal(found, expected)
        assert_equal(gradient(found), gradient(expected))  # outside, as torch asks for


class TestChoice:
    def test_auto_is_torch_on_the_cpu_and_warp_on_cuda(self):
        assert SMPL(ADULT).backend == "torch"
        assert choose_backend("auto", torch.device("cpu")) == "torch"
        assert choose_backend("auto", torch.device("cuda")) == "warp"
        assert choose_backend("torch", torch.device("cuda")) == "torch"

    def test_warp_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(backend, "has_warp", lambda: False)
        with pytest.raises(ImportError, match=r'pip install "agebody\[warp\]", or use backend='):
            SMPL(ADULT, backend="warp")
        with pytest.raises(ImportError, match=r"agebody\[warp\]"):
            backend.load_kernels()
        assert SMPL(ADULT).backend == "torch"
        with pytest.warns(UserWarning, match=r"on CUDA are computed by torch.*agebody\[warp\]"):
            assert choose_backend("auto", torch.device("cuda")) == "torch"
        assert choose_backend("torch", torch.device("cuda")) == "torch"

    def test_devices_that_kernels_do_not_run_on(self):
        body = SMPL(ADULT, backend="warp", device="meta")  # on its way to another device
        assert body().vertices.device.type == "meta"
        assert body.to_empty(device="cpu").backend == "warp"
        with pytest.raises(ValueError, match="run on cpu and cuda, got mps; use backend='torch'"):
            choose_backend("warp", torch.device("mps"))
        assert choose_backend("auto", torch.device("mps")) == "torch"

    def test_no_such_backend(self, unchecked):
        with pytest.raises(ValueError, match="backend: expected one of auto, torch, warp, got 'jax'"):
            SMPL(ADULT, backend="jax")

    def test_layers_show_their_backend(self):
        assert "backend='warp'" in repr(both("SMPL")[0])
        assert "backend='torch'" in repr(both("SMPL")[1])


@pytest.mark.cuda
class TestOnCuda:
    """Behaviour that only a CUDA device shows."""

    @pytest.fixture
    def body(self):
        return SMPLA(ADULT, smil=INFANT, transition=0.3).cuda()

    def test_a_layer_changes_its_backend_on_the_way(self):
        body = SMPLA(ADULT)
        given = arguments(body)
        expected = body(**given)
        assert body.cuda().backend == "warp"
        found = body(**{k: v.cuda() for k, v in given.items()})
        assert_close([o.cpu() for o in found], expected, ROUNDINGS, torch.float32)
        assert body.cpu().backend == "torch"
        assert_equal(body(**given), expected)

    def test_values_and_gradients_are_captured_and_replayed_with_new_data(self, body):
        start = arguments(body, (4,))
        given = {k: v.clone().requires_grad_() for k, v in start.items()}

        def run():
            out = body(**given)
            return *out, *torch.autograd.grad(out.vertices.square().mean(), list(given.values()))

        self.capture_and_compare(run, given, start)

    @torch.no_grad()
    @pytest.mark.parametrize("missing", ["nothing", "identity", "pose"])
    def test_values_are_captured_with_arguments_left_out(self, body, missing):
        start = arguments(body, (4,))
        left_out = {"nothing": {}, "identity": identity_of(start), "pose": pose_of(start)}[missing]
        given = {k: v.clone() for k, v in start.items() if k not in left_out}
        self.capture_and_compare(lambda: tuple(body(**given)), given, start)

    @staticmethod
    def capture_and_compare(run, given, start):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = run()
        for factor in (0.5, -1.0):
            with torch.no_grad():
                for name, value in given.items():
                    value.copy_(factor * start[name])
            graph.replay()
            assert_close(held, run(), OF_DERIVATIVES, torch.float32)

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says once that it sees not all
    @pytest.mark.parametrize("differentiated", [False, True])
    def test_the_host_does_not_wait(self, body, differentiated):
        given = {k: v.requires_grad_(differentiated) for k, v in arguments(body, (4,)).items()}

        def run():
            out = body(**given)
            if differentiated:
                torch.autograd.grad(out.vertices.square().mean(), list(given.values()))

        run()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_another_stream(self, body):
        given = arguments(body, (4,))
        expected = body(**given)
        late = {k: torch.zeros_like(v) for k, v in given.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)  # some 50 ms
            for name, value in given.items():
                late[name].copy_(value)
            found = body(**late)
        torch.cuda.current_stream().wait_stream(side)
        assert_close(found, expected, ROUNDINGS, torch.float32)


class TestWhatFollowsOperations:
    """Tools that record, fake or repeat the operations of a layer."""

    @pytest.fixture(params=["warp", "torch"])
    def layer(self, request):
        return SMPLA(ADULT, backend=request.param, dtype=DOUBLE)

    def test_checkpointing(self, layer):
        given = arguments(layer, (3,))
        betas = given.pop("betas").requires_grad_()
        surface = lambda betas: layer(betas=betas, **given).vertices  # noqa: E731
        once = torch.autograd.grad(surface(betas).square().sum(), betas)
        again = checkpoint(surface, betas, use_reentrant=False)
        assert_equal(torch.autograd.grad(again.square().sum(), betas), once)

    def test_fake_tensors(self, layer):
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            out = layer(body_pose=torch.empty(5, 3 * (layer.num_joints - 1), dtype=DOUBLE))
        assert out.vertices.shape == (5, layer.num_vertices, 3)

    def test_a_traced_graph_follows_its_inputs(self, layer):
        surface = lambda pose: layer(body_pose=pose).vertices  # noqa: E731
        poses = torch.randn(2, 4, 3 * (layer.num_joints - 1), dtype=DOUBLE)
        with torch.no_grad():
            graph = make_fx(surface)(poses[0])
            assert_close([graph(poses[1])], [surface(poses[1])], ROUNDINGS, DOUBLE)

    def test_backward_inside_autocast(self):
        """Over kernels every product of a layer is its own; torch advises against a backward pass there."""
        layer = SMPLA(ADULT, backend="warp")
        given = {name: value.requires_grad_() for name, value in arguments(layer, (3,)).items()}

        def gradients():
            return torch.autograd.grad(layer(**given).vertices.square().sum(), tuple(given.values()))

        expected = gradients()
        with torch.autocast("cpu", torch.bfloat16):
            assert_equal(gradients(), expected)

    def test_built_in_inference_mode(self, layer):
        with torch.inference_mode():
            built = SMPLA(ADULT, backend=layer.backend, dtype=DOUBLE)
        given = {name: value.requires_grad_() for name, value in arguments(layer, (2,)).items()}
        found, expected = (
            torch.autograd.grad(body(**given).vertices.square().sum(), tuple(given.values()))
            for body in (built, layer)
        )
        assert_equal(found, expected)


def test_warnings_of_a_first_product_in_a_backward_pass_are_not_errors():
    """Only CUDA says it, once, and to whichever of our functions asks for the product."""
    message = "Attempting to run cuBLAS, but there was no current CUDA context! Attempting to set the primary"
    warnings.warn_explicit(message, UserWarning, "batched.py", 1, module="agebody.engine.batched")


@pytest.mark.parametrize("low", [None, torch.bfloat16, torch.float16])
def test_rows_of_products_begin_at_16_bytes(monkeypatch, low):
    """CUDA has slower products, of 16 bits by far, for matrices whose rows begin elsewhere."""
    body = SMPLA(random_body(num_vertices=21), backend="warp", corrective_dtype=low)
    assert 3 * body.num_vertices % 4
    multiply, matrices = torch.addmm, [body.surface.directions]
    if low is not None:
        matrices.append(body.surface.correctives)

    def watched(*factors, out):
        matrices.append(out)
        return multiply(*factors, out=out)

    monkeypatch.setattr(torch, "addmm", watched)
    body(**arguments(body, (3,)))
    assert len(matrices) == (2 if low is None else 4)
    assert not any(matrix.stride(0) * matrix.element_size() % 16 for matrix in matrices)


@pytest.mark.parametrize("differentiated", [False, True])
def test_a_template_reaches_a_product_as_one_row(monkeypatch, differentiated):
    """CUDA adds a row within the product; a matrix takes a pass over the whole result more."""
    body = SMPLA(ADULT, backend="warp")
    given = {k: v.requires_grad_(differentiated) for k, v in arguments(body, (3,)).items()}
    multiply, shapes = torch.addmm, []

    def watched(base, *factors, **options):
        shapes.append(base.shape)
        return multiply(base, *factors, **options)

    monkeypatch.setattr(torch, "addmm", watched)
    body(**given)
    assert shapes == [(3 * body.num_vertices,)]


@pytest.mark.parametrize("name", ["SMPL without correctives", "SMPL"])
def test_only_bodies_with_pose_blend_shapes_compute_their_feature(name, monkeypatch):
    """On CUDA its operations are launches, which are what small batches cost."""
    body, _ = both(name)
    calls = []
    feature = backend.pose_feature
    monkeypatch.setattr(backend, "pose_feature", lambda matrices: calls.append(1) or feature(matrices))
    body(**arguments(body))
    assert len(calls) == (body.num_correctives > 0)
