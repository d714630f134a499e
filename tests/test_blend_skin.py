"""The experimental kernel for blend shapes and skinning, at sizes that do not fill whole tiles."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("warp", reason="the kernels need the extra agebody[warp]")

import blend_skin
from agebody_kernels.skinning import SkinningWeights, linear_blend_skinning
from blend_skin import BLEND_SKIN, FEW, MANY, Directions, blend_and_skin

DTYPES = (torch.float32, torch.float64)
DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))


class Size(NamedTuple):
    batch: int
    coefficients: int
    vertices: int
    joints: int
    width: int


SIZES = {
    "empty": Size(0, 3, 5, 2, 1),
    "one": Size(1, 1, 1, 1, 1),
    "small": Size(3, 4, 5, 3, 2),
    "a tile and one more": Size(MANY[torch.float32] + 1, 33, 33, 7, 3),
    "whole tiles": Size(MANY[torch.float32], 32, 32, 24, 4),
    "few bodies, tiles and one more": Size(FEW + 1, 65, 97, 24, 24),
    "few at most": Size(MANY[torch.float32] // 2, 16, 40, 24, 4),
    "SMPL": Size(2, 218, 6890, 24, 4),
    "SMPL-X": Size(2, 507, 10475, 55, 8),
}
DIFFERENTIATED = ("one", "small", "a tile and one more", "few bodies, tiles and one more")


class Case(NamedTuple):
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    directions: Directions
    weights: SkinningWeights

    @property
    def constants(self):
        return self.directions.matrix, *self.weights

    def __call__(self, *rows):
        return blend_and_skin(*(rows or self.rows), self.directions, self.weights)


def make_case(name: str, dtype: torch.dtype, device: str = "cpu", requires_grad: bool = False) -> Case:
    size, rng = SIZES[name], np.random.default_rng(0)
    # As in a body: a template of about a metre, and small displacements.
    directions = 0.05 * rng.standard_normal((size.coefficients, size.vertices, 3))
    directions[0] = rng.uniform(-1, 1, directions[0].shape)
    joints = np.argsort(rng.random((size.vertices, size.joints)), 1)[:, : size.width]
    weights = rng.random(joints.shape)
    weights /= weights.sum(1, keepdims=True)
    shapes = ((size.batch, size.coefficients), (size.batch, size.joints, 3, 4), (size.batch, 3))
    rows = [torch.from_numpy(rng.standard_normal(shape)).to(device, dtype) for shape in shapes]
    rows[0][:, 0] = 1
    return Case(
        tuple(t.requires_grad_(requires_grad) for t in rows),
        Directions.pack(directions).to(device, dtype),
        SkinningWeights.pack(joints, weights, size.joints).to(device, dtype),
    )


def absolute(case: Case, requires_grad: bool = False) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the reference at absolute values: the sums of the magnitudes of all products."""
    rows = [t.detach().abs().requires_grad_(requires_grad) for t in case.rows]
    return rows, BLEND_SKIN.reference(*rows, *(t.abs() for t in case.constants))[0]


def assert_close_sums(found, expected, magnitudes, terms: int):
    """Compare sums in different orders: each errs by at most eps/2 per term of the sum of magnitudes."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    off = (found - expected).abs()
    assert (off <= terms * torch.finfo(found.dtype).eps * magnitudes).all(), off.max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_value_is_the_reference(name, dtype, device):
    case, size = make_case(name, dtype, device), SIZES[name]
    posed = case()
    assert posed.shape == (size.batch, size.vertices, 3)
    (expected,) = BLEND_SKIN.reference(*case.rows, *case.constants)
    assert_close_sums(posed, expected, absolute(case)[1], size.coefficients + size.width + 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blends_then_skins(dtype):
    """Compared with a product followed by the operator that only skins."""
    name = "few bodies, tiles and one more"
    case, size = make_case(name, dtype), SIZES[name]
    matrix = case.directions.matrix[: size.coefficients, : 3 * size.vertices]
    surface = (case.rows[0] @ matrix).unflatten(1, (-1, 3))
    expected = linear_blend_skinning(surface, *case.rows[1:], case.weights)
    assert_close_sums(case(), expected, absolute(case)[1], size.coefficients + size.width + 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workspace", [blend_skin.WORKSPACE, 1 << 12], ids=["one piece", "pieces"])
@pytest.mark.parametrize("name", ["empty", *DIFFERENTIATED])
def test_gradient_is_the_reference(name, workspace, device, monkeypatch):
    monkeypatch.setattr(blend_skin, "WORKSPACE", workspace)
    case, size = make_case(name, torch.float64, device, requires_grad=True), SIZES[name]
    grad = torch.randn(case().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(
        device
    )
    found = torch.autograd.grad(case(), case.rows, grad)
    expected = torch.autograd.grad(BLEND_SKIN.reference(*case.rows, *case.constants), case.rows, grad)
    rows, magnitude = absolute(case, requires_grad=True)
    magnitudes = torch.autograd.grad(magnitude, rows, grad.abs())
    terms = size.coefficients + size.width + 3 * size.vertices + 4
    for sums in zip(found, expected, magnitudes, strict=True):
        assert_close_sums(*sums, terms)


@pytest.mark.parametrize("wanted", range(3))
def test_each_gradient_alone(wanted):
    case = make_case("small", torch.float64, requires_grad=True)
    alone = torch.autograd.grad(case().square().sum(), case.rows[wanted])[0]
    together = torch.autograd.grad(case().square().sum(), case.rows)[wanted]
    assert torch.equal(alone, together)


def test_derivatives_to_second_order():
    case = make_case("small", torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(case, case.rows)
    assert torch.autograd.gradgradcheck(case, case.rows)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "dtype"), [("empty", torch.float32), ("small", torch.float64)])
def test_operators_keep_torchs_rules(name, dtype, device):
    case = make_case(name, dtype, device, requires_grad=True)
    torch.library.opcheck(torch.ops.agebody.blend_and_skin.default, (*case.rows, *case.constants))
    grad = torch.ones_like(case()).requires_grad_()
    torch.library.opcheck(
        torch.ops.agebody.blend_and_skin_backward.default,
        (grad, *case.rows, *case.constants, [True, False, True]),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["a tile and one more", "SMPL"])
def test_repeats_to_the_bit(name, device):
    case = make_case(name, torch.float32, device, requires_grad=True)

    def run():
        posed = case()
        return posed.detach(), *torch.autograd.grad(posed.square().sum(), case.rows)

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_a_body_does_not_depend_on_its_neighbours():
    """Within tiles of the same size, the results are equal to the bit."""
    case = make_case("a tile and one more", torch.float32)
    others = tuple(t.flip(0) for t in case.rows)
    assert torch.equal(case(*others), case().flip(0))


def test_inputs_of_any_strides():
    case = make_case("small", torch.float64, requires_grad=True)
    strided = (
        case.rows[0].detach().t().contiguous().t(),
        case.rows[1].detach().transpose(2, 3).contiguous().transpose(2, 3),
        case.rows[2].detach().repeat(1, 2)[:, ::2].copy_(case.rows[2].detach()),
    )
    strided = tuple(t.requires_grad_() for t in strided)
    assert not any(t.is_contiguous() for t in strided)
    posed = case(*strided)
    assert torch.equal(posed, case())
    grad = (
        torch.randn(3, 5, 2, dtype=torch.float64)[..., [0, 1, 1]].transpose(0, 1).contiguous().transpose(0, 1)
    )
    for f, e in zip(
        torch.autograd.grad(posed, strided, grad),
        torch.autograd.grad(case(), case.rows, grad.contiguous()),
        strict=True,
    ):
        torch.testing.assert_close(f, e, atol=1e-13, rtol=0)


def test_autocast_leaves_precision_alone():
    case = make_case("small", torch.float32, requires_grad=True)
    expected = torch.autograd.grad(case().square().sum(), case.rows)
    with torch.autocast("cpu", torch.bfloat16):
        posed = case()
        found = torch.autograd.grad(posed.square().sum(), case.rows)
    assert torch.equal(posed, case())
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_compiles_whole():
    case = make_case("small", torch.float32, requires_grad=True)
    compiled = torch.compile(lambda *rows: case(*rows).square().sum(), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*case.rows), case.rows)
    expected = torch.autograd.grad(case().square().sum(), case.rows)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_vmap():
    case = make_case("small", torch.float64)
    single = torch.func.vmap(lambda *row: case(*(t[None] for t in row))[0])
    assert torch.equal(single(*case.rows), case())


def test_mismatches_are_named():
    case = make_case("small", torch.float32)
    coefficients, transforms, translation = case.rows
    with pytest.raises(ValueError, match=r"coefficients: expected \(B, 4\), got \(3, 3\)"):
        case(coefficients[:, 1:], transforms, translation)
    with pytest.raises(TypeError, match=r"directions: expected torch.float32, got torch.float64"):
        blend_and_skin(*case.rows, case.directions.to(dtype=torch.float64), case.weights)
    other = make_case("one", torch.float32)
    with pytest.raises(ValueError, match="weights: expected those of 5 vertices, got 1"):
        blend_and_skin(*case.rows, case.directions, other.weights)
    with pytest.raises(ValueError, match="directions: expected a tensor on cpu, got one on meta"):
        blend_and_skin(*case.rows, case.directions.to("meta"), case.weights)
    with pytest.raises(ValueError, match=r"directions: expected \(C, V, 3\), got \(4, 15\)"):
        Directions.pack(np.zeros((4, 15)))
