"""Every operator of the kernels: against its reference implementation, and under all of torch's transforms.

The reference implementation is compared with the definition in `agebody`. A line of `kernel_cases.CASES` is
one operator at one size.
"""

import functools
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from devices import DEVICES

pytest.importorskip("warp", reason="the kernels need the extra agebody[warp]")

from agebody_kernels import _interop
from agebody_kernels._interop import pack_entries
from agebody_kernels.age import REST_SHAPE, AgeAnchors, rest_shape
from agebody_kernels.closest import clear_sights
from agebody_kernels.kinematics import AXIS_ANGLE, JointTree, forward_kinematics
from agebody_kernels.regression import PointWeights, regress_points
from agebody_kernels.skinning import SEGMENT, SkinningWeights, linear_blend_skinning
from kernel_cases import ANGLES, CASES, DERIVED, DOUBLE, FORK, OPCHECKED, SMALL, Case
from roundings import assert_close, assert_equal
from scipy import sparse

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(DOUBLE, id="float64")]
on_devices = pytest.mark.parametrize("device", DEVICES)
in_dtypes = pytest.mark.parametrize("dtype", DTYPES)


NONDETERMINISM = {"cpu": 0.0, "cuda": 1e-12}
"""Tolerance of derivatives beyond the first: those of the references, where torch adds with atomics."""


@functools.cache
def _case(name: str) -> Case:
    return CASES[name]()


def make_case(name: str, device: str = "cpu", dtype: torch.dtype = DOUBLE) -> Case:
    return _case(name).to(device, dtype)


def cotangents(outputs, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(o.shape, generator=generator, dtype=DOUBLE).to(o) for o in outputs)


def value_and_gradient(function, case):
    """Return outputs, then the gradients for random cotangents, the same in every precision."""
    rows = case.leaves()
    outputs = function(*rows)
    grads = torch.autograd.grad(outputs, rows, cotangents(outputs), materialize_grads=True)
    return *(o.detach() for o in outputs), *grads


class TestAgainstTheReference:
    @on_devices
    @in_dtypes
    @pytest.mark.parametrize("name", CASES)
    def test_values_and_gradients(self, name, dtype, device):
        case = make_case(name, device, dtype)
        exact = case.to(device, DOUBLE)
        expected = value_and_gradient(exact.reference, exact)
        found = value_and_gradient(case, case)
        assert all(f.dtype == dtype and f.device.type == device for f in found)
        assert all(f.is_contiguous() for f in found[: case.operator.num_outputs])
        assert_close(found, expected, case.roundings, dtype)
        assert_close(value_and_gradient(case.reference, case), expected, case.roundings, dtype)

    @pytest.mark.parametrize("name", CASES)
    def test_the_reference_is_the_definition(self, name):
        case = make_case(name)
        found = value_and_gradient(case.reference, case)
        assert_close(found, value_and_gradient(case.definition, case), case.roundings, DOUBLE)

    @on_devices
    @pytest.mark.parametrize("name", SMALL)
    def test_each_gradient_and_each_output_alone(self, name, device):
        case = make_case(name, device)
        rows = case.leaves()
        outputs = case(*rows)
        grads = cotangents(outputs)
        together = torch.autograd.grad(outputs, rows, grads, retain_graph=True)
        for i, row in enumerate(rows):
            alone = torch.autograd.grad(outputs, row, grads, retain_graph=True)
            assert_equal(alone, together[i : i + 1])
        references = case.reference(*rows)
        for found, reference, grad in zip(outputs, references, grads, strict=True):
            assert_close(
                torch.autograd.grad(found, rows, grad, retain_graph=True, materialize_grads=True),
                torch.autograd.grad(reference, rows, grad, retain_graph=True, materialize_grads=True),
                case.roundings, DOUBLE,
            )  # fmt: skip

    @on_devices
    @pytest.mark.parametrize("name", SMALL)
    def test_second_derivatives_in_float32(self, name, device):
        """They are those of the reference implementation, taken through the operator of the gradient."""

        def second(case, function):
            rows = case.leaves()
            outputs = function(*rows)
            first = torch.autograd.grad(outputs, rows, cotangents(outputs), create_graph=True)
            total = sum((f * c).sum() for f, c in zip(first, cotangents(first, seed=2), strict=True))
            if not total.requires_grad:  # the function is linear
                return [torch.zeros_like(row) for row in rows]
            return torch.autograd.grad(total, rows, materialize_grads=True)

        case = make_case(name, device, torch.float32)
        exact = case.to(device, DOUBLE)
        # Twice the way of a first derivative.
        assert_close(second(case, case), second(exact, exact.reference), 2 * case.roundings, torch.float32)


class TestDerivatives:
    """Compared with finite differences in float64."""

    @on_devices
    @pytest.mark.parametrize("name", DERIVED)
    def test_first(self, name, device):
        case = make_case(name, device)
        assert torch.autograd.gradcheck(case, case.leaves())

    @on_devices
    @pytest.mark.parametrize("name", DERIVED)
    def test_second(self, name, device):
        case = make_case(name, device)
        # All rows at once of a batch whose rows do not see each other would be mostly zeros: two will do.
        rows = tuple(t[-2:].detach().requires_grad_() for t in case.leaves())
        grads = cotangents(case(*rows))
        assert torch.autograd.gradgradcheck(case, rows, grads, nondet_tol=NONDETERMINISM[device])

    @pytest.mark.parametrize("angle", ANGLES)
    def test_second_at_singular_angles(self, angle):
        tree = JointTree.build([-1])
        axis = torch.tensor([2.0, -1.0, 2.0], dtype=DOUBLE) / 3
        vector = (angle * axis).reshape(1, 1, 3).requires_grad_()
        rest = torch.zeros(1, 1, 3, dtype=DOUBLE)
        rotation = lambda v: AXIS_ANGLE(v, rest, *tree)[0]  # noqa: E731
        assert torch.autograd.gradcheck(rotation, vector)
        assert torch.autograd.gradgradcheck(rotation, vector)

    @on_devices
    @in_dtypes
    def test_second_derivative_at_zero_is_the_published_one(self, dtype, device):
        tree = JointTree.build([-1]).to(device)
        rest = torch.zeros(1, 1, 3, dtype=dtype, device=device)
        corner = lambda v: AXIS_ANGLE(v.reshape(1, 1, 3), rest, *tree)[0][0, 0, 0, 0]  # noqa: E731
        expected = torch.diag(torch.tensor([0.0, -1.0, -1.0], dtype=dtype, device=device))
        zero = torch.zeros(3, dtype=dtype, device=device)
        assert torch.equal(torch.autograd.functional.hessian(corner, zero), expected)

    def test_a_chain_of_half_turns(self):
        """Where quaternions and logarithms would lose their way."""
        parents = list(range(-1, 5))
        vectors = torch.zeros(1, 6, 3, dtype=DOUBLE)
        vectors[0, :, 1] = math.pi
        rest = torch.zeros(1, 6, 3, dtype=DOUBLE)
        rest[0, :, 0] = torch.arange(6)
        _, world, _ = forward_kinematics(vectors, rest, JointTree.build(parents))
        # Each half turn leads back: the joints are at 0, -1, 0, -1, ...
        expected = torch.tensor([0.0, -1, 0, -1, 0, -1], dtype=DOUBLE)
        torch.testing.assert_close(world[0, :, 0, 3], expected, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("knot", [-0.5, 0.0, 0.2])
    def test_at_a_knot_the_slope_is_that_of_the_piece_above(self, knot):
        ages = AgeAnchors.build((-0.5, 0.2, 1.0))
        directions = torch.eye(4, dtype=DOUBLE)
        shape = lambda a: rest_shape(a.new_zeros(1, 0), a, directions, ages)[0]  # noqa: E731
        slope = lambda a: torch.autograd.functional.jacobian(shape, torch.tensor([a], dtype=DOUBLE))  # noqa: E731
        torch.testing.assert_close(slope(knot), slope(knot + 0.01), rtol=1e-12, atol=0)
        assert not torch.allclose(slope(knot), slope(knot - 0.01)) or knot == -0.5  # the end piece goes on

    @on_devices
    @in_dtypes
    def test_a_switch_at_a_threshold_that_no_floating_type_holds(self, dtype, device):
        """BEV's 0.8: the age offset that rounds to it is not above it, in either type."""
        ages = AgeAnchors.build((1.0,), num_infant_betas=0, threshold=0.8).to(device, dtype)
        limit = torch.tensor([0.8], dtype=dtype, device=device)
        above = torch.nextafter(limit, limit + 1)
        age = torch.cat((limit, above))
        betas, directions = age.new_zeros(2, 0), age.new_ones(3, 1)
        for coefficients, _ in (
            rest_shape(betas, age, directions, ages),
            REST_SHAPE.reference(betas, age, directions, *ages),
        ):
            assert coefficients[:, -1].tolist() == [0, 1]


class TestOperators:
    """The rules that torch has for operators."""

    @on_devices
    @pytest.mark.parametrize("name", [*OPCHECKED, *(n for n in CASES if " of no body" in n)])
    def test_opcheck(self, name, device):
        case = make_case(name, device)
        rows = case.leaves()
        operator = getattr(torch.ops.agebody, case.operator.name)
        torch.library.opcheck(operator.default, (*rows, *case.constants))

    @on_devices
    @pytest.mark.parametrize("name", OPCHECKED)
    def test_opcheck_of_the_gradient(self, name, device):
        case = make_case(name, device)
        rows = case.leaves()
        operator = getattr(torch.ops.agebody, f"{case.operator.name}_backward").default
        grads = tuple(g.requires_grad_() for g in cotangents(case(*rows)))
        torch.library.opcheck(operator, (*grads, *rows, *case.constants, [True] * len(rows)))
        for i in range(len(rows)):
            wants = [j == i for j in range(len(rows))]
            checks = ("test_schema", "test_faketensor")
            torch.library.opcheck(operator, (*grads, *rows, *case.constants, wants), test_utils=checks)

    @on_devices
    @pytest.mark.parametrize("name", CASES)
    def test_repeats_to_the_bit(self, name, device):
        case = make_case(name, device, torch.float32)
        first = value_and_gradient(case, case)
        for _ in range(2):
            assert_equal(value_and_gradient(case, case), first)

    @on_devices
    @pytest.mark.parametrize("name", ["skinning of SMPL", "vectors of SMPL", "rest shape of SMPL-A"])
    def test_a_body_does_not_depend_on_its_neighbours(self, name, device):
        case = make_case(name, device, torch.float32)
        turned = case._replace(rows=tuple(t.flip(0) for t in case.rows))
        assert_equal([o.flip(0) for o in turned()], case())
        assert_equal([o[0] for o in case(*(t[:1] for t in case.rows))], [o[0] for o in case()])

    @on_devices
    @pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
    @pytest.mark.parametrize("name", SMALL)
    def test_inputs_and_gradients_of_any_strides(self, name, layout, device):
        def arrange(tensor):
            if layout == "transposed":
                return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat_interleave(2)[::2]
            if layout == "sliced":
                return torch.stack((tensor, torch.full_like(tensor, math.nan)), -1)[..., 0]
            return tensor[:1].expand_as(tensor)

        case = make_case(name, device)
        rows = tuple(arrange(t.detach()) for t in case.rows)
        assert not any(t.is_contiguous() for t in rows if t.shape[-1] > 1)
        strided = tuple(t.requires_grad_() for t in rows)
        plain = tuple(t.detach().contiguous().clone().requires_grad_() for t in rows)
        found, expected = case(*strided), case(*plain)
        assert_equal(found, expected)
        grads = tuple(arrange(g) for g in cotangents(expected))
        assert_close(
            torch.autograd.grad(found, strided, grads),
            torch.autograd.grad(expected, plain, [g.contiguous() for g in grads]),
            case.roundings, DOUBLE,
        )  # fmt: skip

    @on_devices
    @pytest.mark.parametrize("name", SMALL)
    def test_compiles_whole_for_any_batch(self, name, device):
        torch._dynamo.reset()
        case = make_case(name, device, torch.float32)
        compiled = torch.compile(case.__call__, fullgraph=True, backend="aot_eager", dynamic=True)
        for repeats in (1, 3):
            larger = case._replace(rows=tuple(torch.cat([t] * repeats) for t in case.rows))
            assert_equal(value_and_gradient(compiled, larger), value_and_gradient(larger, larger))

    @on_devices
    @pytest.mark.parametrize("name", SMALL)
    def test_vmap(self, name, device):
        case = make_case(name, device)
        single = lambda *row: tuple(o[0] for o in case(*(t[None] for t in row)))  # noqa: E731
        assert_equal(torch.func.vmap(single)(*case.rows), case())
        # The first alone, beside others that all of them share.
        first, *others = case.rows
        shared = torch.func.vmap(single, in_dims=(0, *[None] * len(others)))(first, *(t[0] for t in others))
        assert_equal(shared, case(first, *(t[:1].expand_as(t) for t in others)))

    @on_devices
    @pytest.mark.parametrize("name", SMALL)
    def test_batched_gradients(self, name, device):
        case = make_case(name, device)
        rows = case.leaves()
        outputs = case(*rows)
        several = tuple(torch.stack((g, 2 * g)) for g in cotangents(outputs))
        found = torch.autograd.grad(outputs, rows, several, is_grads_batched=True, retain_graph=True)
        once = torch.autograd.grad(outputs, rows, cotangents(outputs))
        assert_close(found, [torch.stack((g, 2 * g)) for g in once], case.roundings, DOUBLE)

    @pytest.mark.parametrize("name", SMALL)
    def test_derivatives_of_torch_func_are_refused(self, name):
        """torch has none for its custom operators; layers, which go around them, do."""
        case = make_case(name)
        with pytest.raises(RuntimeError, match="setup_context"):
            torch.func.jacrev(case)(*case.rows)

    @pytest.mark.parametrize("name", SMALL)
    def test_forward_mode_is_refused(self, name):
        """Left to torch, it would give zeros."""
        case = make_case(name)
        with pytest.raises(NotImplementedError, match="forward-mode derivatives stop at this operator"):
            torch.func.jvp(case, case.rows, case.rows)

    @pytest.mark.parametrize("name", SMALL)
    def test_vmap_over_nothing(self, name):
        case = make_case(name)
        none = tuple(t.new_empty(0, *t.shape) for t in case.rows)
        assert [o.shape for o in torch.func.vmap(case)(*none)] == [(0, *o.shape) for o in case(*case.rows)]

    def test_vmap_over_the_body_is_refused(self):
        case = make_case("regression, small")
        over = lambda values: case.operator(*case.rows, case.constants[0], values, *case.constants[2:])[0]  # noqa: E731
        with pytest.raises(ValueError, match="vmap over the body's constants"):
            torch.func.vmap(over)(case.constants[1].repeat(2, 1))

    @on_devices
    @pytest.mark.parametrize("name", SMALL)
    def test_autocast_leaves_precision_alone(self, name, device):
        case = make_case(name, device, torch.float32)
        expected = value_and_gradient(case, case)
        with torch.autocast(device, torch.bfloat16):
            assert_equal(value_and_gradient(case, case), expected)


class TestInput:
    @pytest.mark.parametrize("name", SMALL)
    def test_types(self, name):
        case = make_case(name)
        first, *others = case.rows
        label = case.operator.rows[0]
        for half in (torch.float16, torch.bfloat16):
            with pytest.raises(TypeError, match=f"{label}: expected float32 or float64, got {half}"):
                case(first.to(half), *(t.to(half) for t in others))
        with pytest.raises(TypeError, match="expected torch.float32, got torch.float64"):
            case(first.float(), *others)

    @pytest.mark.parametrize("name", SMALL)
    def test_devices(self, name):
        case = make_case(name)
        first, *others = case.rows
        with pytest.raises(ValueError, match="expected a tensor on meta, got one on cpu"):
            case(first.to("meta"), *others)
        elsewhere = case.to("meta", DOUBLE)
        with pytest.raises(ValueError, match="expected a tensor on cpu, got one on meta"):
            case._replace(constants=elsewhere.constants)()

    @pytest.mark.parametrize("name", [n for n in SMALL if "regression" not in n])
    def test_batches(self, name):
        case = make_case(name)
        for i, label in enumerate(case.operator.rows[1:], start=1):
            rows = list(case.rows)
            rows[i] = rows[i][1:]
            with pytest.raises(ValueError, match=f"{label}: expected a batch of {len(rows[0])}, got"):
                case(*rows)

    @pytest.mark.parametrize("name", SMALL)
    def test_sizes_that_are_not_the_bodys(self, name):
        case = make_case(name)
        for i, label in enumerate(case.operator.rows):
            rows = list(case.rows)
            rows[i] = torch.stack((rows[i], rows[i]), 1)
            with pytest.raises(ValueError, match=rf"{label}: expected shape \(B"):
                case(*rows)
            if rows[i].dim() > 3:
                rows[i] = case.rows[i].repeat(1, 2, *[1] * (rows[i].dim() - 3))
                with pytest.raises(ValueError, match=rf"{label}: expected shape \(B"):
                    case(*rows)

    @pytest.mark.parametrize("name", ["skinning, small", "rest shape off its knots", "regression, small"])
    def test_a_constant_that_wants_a_gradient_is_refused(self, name):
        case = make_case(name)
        wanting = tuple(
            c.clone().requires_grad_() if isinstance(c, torch.Tensor) and c.is_floating_point() else c
            for c in case.constants
        )
        with pytest.raises(ValueError, match="has no gradient"):
            case._replace(constants=wanting)()

    def test_wrappers_equal_operators(self):
        assert_equal([forward_kinematics(*_rows("vectors, small"), JointTree.build(FORK))[1]],
                     [make_case("vectors, small")()[1]])  # fmt: skip
        matrices, *others = forward_kinematics(*_rows("matrices, small"), JointTree.build(FORK))
        assert matrices is make_case("matrices, small").rows[0]
        assert_equal(others, make_case("matrices, small")())
        for name, function, kind in (
            ("skinning, small", linear_blend_skinning, SkinningWeights),
            ("regression, small", regress_points, PointWeights),
        ):
            case = make_case(name)
            assert_equal([function(*case.rows, kind(*case.constants))], case())
        case = make_case("rest shape off its knots")
        directions, *ages = case.constants
        assert_equal(rest_shape(*case.rows, directions, AgeAnchors(*ages)), case())

    def test_strides_that_vectors_and_matrices_must_have(self):
        matrices = torch.zeros(2, 3, 4, 4)
        assert pack_entries(matrices[:, ::2], 2).data_ptr() == matrices.data_ptr()
        assert pack_entries(matrices[..., :3], 2).is_contiguous()
        assert pack_entries(matrices.mT, 2).is_contiguous()


def _rows(name):
    return make_case(name).rows


class TestBodies:
    """The packed forms of a body's constants."""

    def test_skinning_weights_by_vertex_and_by_joint(self):
        joints = np.array([[0, 2], [2, 0], [2, 1]])
        weights = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
        packed = SkinningWeights.pack(joints, weights, 4)
        assert packed.joints.T.tolist() == [[2, 0], [2, 0], [2, 1]]  # the largest weight first
        assert packed.weights.T.tolist() == [[0.75, 0.25], [1, 0], [0.5, 0.5]]
        assert packed.moved.tolist() == [0, 2, 0, 1, 2]
        assert packed.shares.tolist() == [0.25, 0.5, 0.75, 1, 0.5]
        assert packed.segments.tolist() == [0, 1, 2, 5]
        assert packed.owners.tolist() == [0, 1, 2, 3, 3]

    def test_a_joint_with_many_vertices_has_segments(self):
        count = 2 * SEGMENT + 1
        packed = SkinningWeights.pack(np.zeros((count, 1), int), np.ones((count, 1)), 2)
        assert packed.segments.tolist() == [0, SEGMENT, 2 * SEGMENT, count]
        assert packed.owners.tolist() == [0, 3, 3]

    def test_invalid_skinning_weights_are_named(self):
        with pytest.raises(ValueError, match=r"the same shape \(V, W\), got \(2, 1\), \(2, 2\)"):
            SkinningWeights.pack(np.zeros((2, 1), int), np.ones((2, 2)), 3)
        with pytest.raises(ValueError, match="joints: expected 0 to 2, got 0 to 3"):
            SkinningWeights.pack(np.array([[0], [3]]), np.ones((2, 1)), 3)
        with pytest.raises(ValueError, match="joints: expected 0 to 2, got -1 to 1"):
            SkinningWeights.pack(np.array([[-1], [1]]), np.ones((2, 1)), 3)

    def test_joint_tree(self):
        tree = JointTree.build((-1, 0, 0, 2))
        assert tree.parents == tree.above.tolist() == [-1, 0, 0, 2]
        assert tree.paths.tolist() == [0, 0, 1, 0, 2, 0, 2, 3]
        assert tree.path_starts.tolist() == [0, 1, 3, 5, 8]
        assert tree.children.tolist() == [1, 2, 3]
        assert tree.child_starts.tolist() == [0, 2, 2, 3, 3]

    @pytest.mark.parametrize("parents", [[], [0], [-1, 1], [-1, 2, 0], [-1, -1], [-1, 0, 5]])
    def test_invalid_joint_trees(self, parents):
        with pytest.raises(ValueError, match="parents: expected -1, then"):
            JointTree.build(parents)

    def test_age_anchors(self):
        ages = AgeAnchors.build((-0.5, 0.2, 1.0))
        assert ages.knots.tolist() == [-0.5, 0, 0.2, 1]
        assert ages.slots.tolist() == [0, -1, 1, 2]
        for anchors in ((0.0, 1.0), (1.0, 0.5), (0.5, 0.5)):
            with pytest.raises(ValueError, match="anchors: expected ascending age offsets other than 0"):
                AgeAnchors.build(anchors)
        with pytest.raises(ValueError, match=r"transition: expected a width of 0 or more, got -0\.1"):
            AgeAnchors.build((1.0,), transition=-0.1)

    def test_point_weights_of_a_dense_and_of_a_sparse_matrix(self):
        dense = np.array([[0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
        packed = PointWeights.pack(dense)
        assert packed.vertices.tolist() == [1, 2, 0, 2]
        assert packed.values.tolist() == [0.5, 0.5, 1, 2]
        assert packed.starts.tolist() == [0, 2, 2, 4]
        assert packed.points.tolist() == [2, 0, 0, 2]
        assert packed.values_by_vertex.tolist() == [1, 0.5, 0.5, 2]
        assert packed.starts_by_vertex.tolist() == [0, 1, 2, 4]


def test_warp_keeps_standard_output_clean(tmp_path):
    """Warp greets and reports on standard output while it starts and compiles."""
    code = (
        "import numpy, torch, agebody_kernels.regression as k;"
        "weights = k.PointWeights.pack(numpy.ones((1, 1)));"
        "print(k.regress_points(torch.ones(1, 1, 3).double(), weights).sum().item())"
    )
    environment = os.environ | {"WARP_CACHE_PATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert any(tmp_path.iterdir())  # it did compile
    assert result.stdout == "3.0\n"


@pytest.mark.cuda
class TestOnCuda:
    """Behaviour that only a CUDA device shows, forward and backward."""

    @pytest.mark.parametrize("name", [n for n in CASES if " of no body" not in n])
    def test_graphs_are_captured_and_replayed_with_new_data(self, name):
        case = make_case(name, "cuda", torch.float32)
        rows = case.leaves()

        def run():
            outputs = case(*rows)
            return *outputs, *torch.autograd.grad(outputs, rows, grads, materialize_grads=True)

        grads = cotangents(case())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = run()
        for factor in (0.5, -1.5):
            with torch.no_grad():
                for row, start in zip(rows, case.rows, strict=True):
                    row.copy_(factor * start)
            graph.replay()
            assert_close(held, run(), case.roundings, torch.float32)

    @pytest.mark.parametrize("own", [False, True], ids=["default stream", "another stream"])
    @pytest.mark.parametrize("name", SMALL)
    def test_streams(self, name, own):
        """Work is put where torch's current stream is: behind a copy that comes late."""
        case = make_case(name, "cuda", torch.float32)
        expected = value_and_gradient(case, case)
        grads = cotangents(case())
        rows = tuple(torch.zeros_like(t).requires_grad_() for t in case.rows)
        side = torch.cuda.Stream() if own else torch.cuda.default_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)  # some 50 ms
            with torch.no_grad():
                for row, data in zip(rows, case.rows, strict=True):
                    row.copy_(data)
            outputs = case(*rows)
            found = (*outputs, *torch.autograd.grad(outputs, rows, grads, materialize_grads=True))
        torch.cuda.current_stream().wait_stream(side)
        assert_close(found, expected, case.roundings, torch.float32)

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says once that it sees not all
    @pytest.mark.parametrize("name", SMALL)
    def test_the_host_does_not_wait(self, name):
        case = make_case(name, "cuda", torch.float32)
        rows, grads = case.leaves(), cotangents(case())
        torch.autograd.grad(case(*rows), rows, grads)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.autograd.grad(case(*rows), rows, grads)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
    def test_the_current_device_stays(self):
        case = make_case("skinning, small", "cuda:1")
        assert torch.cuda.current_device() == 0
        assert_close(case(), make_case("skinning, small")(), case.roundings, DOUBLE)
        assert torch.cuda.current_device() == 0

    def test_tensors_of_two_devices_are_refused(self):
        case = make_case("skinning, small", "cuda")
        first, *others = case.rows
        with pytest.raises(ValueError, match="transforms: expected a tensor on cpu, got one on cuda:0"):
            case(first.cpu(), *others)


def test_gradients_of_permuted_matrices_are_contiguous():
    tree = JointTree.build([-1, 0, 1, 0, 3])
    permuted = torch.randn(5, 4, 3, 3, dtype=DOUBLE).transpose(0, 1).requires_grad_()
    rest = torch.randn(4, 5, 3, dtype=DOUBLE)
    _, world, _ = forward_kinematics(permuted, rest, tree)
    (grad,) = torch.autograd.grad(world.sum(), permuted)
    operator = torch.ops.agebody.forward_kinematics_of_matrices_backward
    found = operator(world, world, permuted.detach(), rest, *tree, [True, True])[0]
    assert grad.shape == permuted.shape
    assert found.is_contiguous()


def test_tensors_on_two_devices_are_refused():
    """Also by functions that are not operators and launch directly."""
    vertices, faces = torch.randn(1, 3, 3), torch.tensor([[0, 1, 2]])
    with pytest.raises(ValueError, match="sight, eyes: expected a tensor on cpu, got one on meta"):
        clear_sights(vertices, faces, torch.zeros(1, 3, device="meta"))


def test_kernels_are_not_loaded_during_a_capture(monkeypatch):
    """There CUDA allows no loading, and a capture that fails leaves its stream unusable."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    module = SimpleNamespace(name="kernels")
    with pytest.raises(RuntimeError, match="kernels: .*make the same call once before the capture"):
        _interop._load(module, SimpleNamespace(alias="cuda:0", is_cuda=True))


def test_strides_beyond_two_gibibytes():
    """Warp stores strides in 32 bits. Memory that is never touched is not allocated."""
    weights = SkinningWeights.pack(np.zeros((2, 1), int), np.ones((2, 1)), 1).to(dtype=torch.float32)
    far = torch.empty(2, 600_000_000)[:, :6].unflatten(1, (2, 3))
    far.copy_(torch.arange(12.0).view(2, 2, 3))
    transforms = torch.eye(3, 4).expand(2, 1, 3, 4)
    posed = linear_blend_skinning(far, transforms, torch.zeros(2, 3), weights)
    assert torch.equal(posed, far)


def test_weights_below_zero_count():
    weights = SkinningWeights.pack(np.array([[0, 1, 0]]), np.array([[-0.5, 1.5, 0.0]]), 2)
    vertices, transforms = torch.randn(3, 1, 3, dtype=DOUBLE), torch.randn(3, 2, 3, 4, dtype=DOUBLE)
    blended = -0.5 * transforms[:, 0] + 1.5 * transforms[:, 1]
    expected = (blended[..., :3] @ vertices.mT + blended[..., 3:]).mT
    got = linear_blend_skinning(vertices, transforms, torch.zeros(3, 3, dtype=DOUBLE), weights)
    torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match="weights: expected finite numbers"):
        SkinningWeights.pack(np.array([[0]]), np.array([[np.nan]]), 1)


def test_an_infant_has_no_more_betas_than_are_given():
    ages = AgeAnchors.build((1.0,), num_infant_betas=5).to(dtype=torch.float32)
    with pytest.raises(ValueError, match="num_infant_betas: expected at most 2"):
        rest_shape(torch.zeros(1, 2), torch.zeros(1), torch.zeros(10, 3), ages)


def test_a_regressor_stays_as_it_is():
    unsorted = sparse.csr_array((np.ones(2), np.array([3, 1]), np.array([0, 2])), shape=(1, 4))
    for array in (unsorted.data, unsorted.indices, unsorted.indptr):
        array.flags.writeable = False
    packed = PointWeights.pack(unsorted)
    assert packed.vertices.tolist() == [1, 3]
    assert unsorted.indices.tolist() == [3, 1]
