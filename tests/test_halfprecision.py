"""Products of 16-bit factors: their accuracy alone, and in millimetres on a body."""

import math
from types import SimpleNamespace

import pytest
import torch

from agebody import SMPL
from agebody.engine import halfprecision

DTYPES = [torch.bfloat16, torch.float16]
ROUNDING = {torch.bfloat16: 2.0**-16, torch.float16: 2.0**-11}
"""Largest relative error of one factor: half a unit of its last place, or of its low part's."""


def random_product(dtype):
    generator = torch.Generator().manual_seed(0)
    x, matrix = (torch.randn(shape, generator=generator) for shape in ((5, 40), (40, 60)))
    return x, matrix, halfprecision.factor(matrix, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
class TestProducts:
    def test_a_product_errs_by_the_rounding_of_its_factors(self, dtype):
        x, matrix, factor = random_product(dtype)
        got = halfprecision.product(x, factor)
        assert got.dtype == torch.float32
        # Both factors are rounded; bfloat16 also drops low * low, of 2^-16; float32 sums 40 terms.
        bound = (3 * ROUNDING[dtype] + 40 * 2**-24) * (x.abs() @ matrix.abs()).double()
        assert ((got.double() - x.double() @ matrix.double()).abs() <= bound).all()

    @pytest.mark.parametrize("scale", [1e-20, 1.0, 1e10])
    def test_the_transposed_product_does_so_at_every_scale(self, dtype, scale):
        x, matrix, factor = random_product(dtype)
        x = scale * torch.randn(5, 60, generator=torch.Generator().manual_seed(1))
        got = halfprecision.transposed_product(x, factor)
        # float16 rounds a row's small entries at 2^-25 of its largest.
        size = x.abs().amax(1, keepdim=True) if dtype == torch.float16 else x.abs()
        bound = (3 * ROUNDING[dtype] + 60 * 2**-24) * (size.expand_as(x) @ matrix.T.abs()).double()
        assert ((got.double() - x.double() @ matrix.T.double()).abs() <= bound).all()

    def test_zero_rows_stay_zero(self, dtype):
        _, _, factor = random_product(dtype)
        assert not halfprecision.transposed_product(torch.zeros(2, 60), factor).any()

    def test_matrix_is_the_rounded_input(self, dtype):
        _, matrix, factor = random_product(dtype)
        assert halfprecision.length(factor) == len(matrix)
        torch.testing.assert_close(halfprecision.matrix(factor), matrix, rtol=ROUNDING[dtype], atol=2.0**-25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"dtype: expected torch.bfloat16 or torch.float16, got torch\."):
        halfprecision.factor(torch.zeros(2, 3), dtype)


def poses():
    """Random poses of 0.3 and 1 radian a joint, and half turns of every joint about random axes."""
    normal = torch.randn(3, 16, 23, 3, generator=torch.Generator().manual_seed(0))
    turns = math.pi * torch.nn.functional.normalize(normal[2], dim=-1)
    return {"0.3 rad": 0.3 * normal[0], "1 rad": normal[1], "half turns": turns}


@pytest.fixture(scope="module")
def exact(mannequin_asset):
    return SMPL(mannequin_asset, dtype=torch.float64)


@pytest.mark.parametrize("name", list(poses()))
@pytest.mark.parametrize(("dtype", "bound_mm"), [(torch.bfloat16, 0.01), (torch.float16, 0.1)])
def test_vertices_of_a_body_err_by_less_than_a_tenth_of_a_millimetre(
    mannequin_asset, exact, dtype, bound_mm, name
):
    """Measured at 0.3 rad, 1 rad and half turns: bfloat16 0.0003, 0.0006, 0.0007 mm, which is what float32
    errs by; float16 0.009, 0.021, 0.039 mm.
    """
    pose = poses()[name]
    got = SMPL(mannequin_asset, corrective_dtype=dtype)(body_pose=pose).vertices.double()
    error_mm = 1e3 * float((got - exact(body_pose=pose.double()).vertices).norm(dim=-1).max())
    assert error_mm < bound_mm


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_a_body_err_by_less_than_a_rounding(mannequin_asset, exact, dtype):
    """Of the largest entry: errors of 6890 vertices mostly cancel (measured 8e-7 and 7e-6)."""
    low = SMPL(mannequin_asset, corrective_dtype=dtype)
    for pose in poses().values():
        upstream = torch.randn(16, 6890, 3, generator=torch.Generator().manual_seed(1))
        a, b = (
            torch.autograd.grad(body(body_pose=p).vertices, p, upstream.to(p.dtype))[0]
            for body, p in ((low, pose.clone().requires_grad_()), (exact, pose.double().requires_grad_()))
        )
        assert float((a.double() - b).abs().max()) < ROUNDING[dtype] * float(b.abs().max())


def test_the_definition_multiplies_by_the_same_matrix(mannequin_asset):
    """Second derivatives and compiled layers use it: float32 times what the 16-bit factor stands for."""
    low, full = SMPL(mannequin_asset, corrective_dtype=torch.bfloat16), SMPL(mannequin_asset)
    direction = poses()["1 rad"][0]
    second = [
        torch.func.hessian(lambda t, body=body: body(body_pose=t * direction).vertices[::500].square().sum())(
            torch.tensor(1.0)
        )
        for body in (low, full)
    ]
    # 2^-16 of the correctives, of which the vertices move by centimetres, against a body of a metre.
    torch.testing.assert_close(second[0], second[1], rtol=1e-5, atol=0)


def test_a_layer_of_float64_is_refused(mannequin_asset):
    with pytest.raises(
        ValueError, match=r"corrective_dtype: torch\.bfloat16 needs a layer of torch\.float32"
    ):
        SMPL(mannequin_asset, dtype=torch.float64, corrective_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("version", "called"),
    [((2, 7), None), ((2, 8), ["mm", "add"]), ((2, 10), ["mm", "add"]), ((2, 11), ["addmm"])],
)
def test_products_on_cuda_add_the_base_themselves_where_torch_can(monkeypatch, unchecked, version, called):
    """Calls that reach torch, with stand-ins for tensors on CUDA."""
    seen = []

    def record(name):
        return lambda *arguments, **options: seen.append((name, options)) or name

    factor = SimpleNamespace(is_cuda=True)
    for name in ("mm", "add", "addmm"):
        monkeypatch.setattr(torch, name, record(name))
    monkeypatch.setattr(halfprecision, "_TORCH", version)
    if called is None:
        with pytest.raises(RuntimeError, match=r"corrective_dtype: on CUDA this needs torch >= 2\.8"):
            halfprecision._multiply(factor, factor, "base", "out")
        return
    assert halfprecision._multiply(factor, factor, "base", "out") == called[-1]
    assert [name for name, _ in seen] == called
    assert seen[0][1]["out_dtype"] == torch.float32
    assert seen[-1][1]["out"] == "out"
