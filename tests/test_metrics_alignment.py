"""Procrustes alignment against SciPy, roma and a loop in NumPy, and where points do not decide."""

import math

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from agebody import LAYOUTS
from agebody.metrics import procrustes
from agebody.metrics.alignment import best_scale, nearest_rotation, procrustes_align, root_of

EXACT = {"rtol": 0, "atol": 1e-11}
"""Of lengths around 1 in float64: a thousand roundings, for points that are far from degenerate."""


def cloud(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def umeyama(points, target, weights, with_scale):
    """One item, by the singular values: the way it is usually written."""
    share = weights / weights.sum()
    x, y = points - share @ points, target - share @ target
    u, s, vt = np.linalg.svd(y.T @ (share[:, None] * x))
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (s * sign).sum() / (share @ (x**2).sum(1)) if with_scale else 1.0
    return scale * points @ rotation.T + share @ target - scale * rotation @ (share @ points)


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("mirrored", [False, True])
def test_equals_singular_values_item_by_item(with_scale, mirrored):
    points, target = cloud(20, 7, seed=1), cloud(20, 7, seed=2) + 3
    if mirrored:
        target = points * torch.tensor([-1.0, 1, 1]) + 0.1 * target
    weights = torch.rand(20, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = procrustes_align(points, target, weights=weights, with_scale=with_scale)
    for i in range(20):
        expected = umeyama(points[i].numpy(), target[i].numpy(), weights[i].numpy(), with_scale)
        torch.testing.assert_close(found[i], torch.from_numpy(expected), **EXACT)


def test_equals_roma_and_scipy():
    points = cloud(5, 9, seed=4)
    target = 1.7 * points @ roma.random_rotmat(5, dtype=torch.float64).mT + 0.3 * cloud(5, 9, seed=5)
    weights = torch.rand(5, 9, dtype=torch.float64) + 0.1
    motion = procrustes(points, target, weights=weights)
    rotation, shift, scale = roma.rigid_points_registration(
        points, target, weights=weights, compute_scaling=True
    )
    for ours, theirs in zip(motion, (rotation, scale, shift), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    for i in range(5):
        centered = [x - weights[i] @ x / weights[i].sum() for x in (target[i], points[i])]
        turn = Rotation.align_vectors(*(x.numpy() for x in centered), weights=weights[i].numpy())[0]
        torch.testing.assert_close(motion.rotation[i], torch.from_numpy(turn.as_matrix()), **EXACT)
        left = (procrustes_align(points[i], target[i]) - target[i]).square().sum()
        size = (target[i] - target[i].mean(0)).square().sum()
        disparity = scipy_procrustes(target[i].numpy(), points[i].numpy())[2]
        assert left / size == pytest.approx(disparity, abs=1e-12)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(), (1,), (3,), (2, 1, 2), (0,)]),
    count=st.integers(4, 8),
    angle=st.sampled_from([0.0, 1e-9, 0.7, math.pi - 1e-9, math.pi]),
    scale=st.floats(1e-3, 1e3),
)
def test_a_similarity_is_recovered(seed, shape, count, angle, scale):
    points = cloud(*shape, count, seed=seed)
    axis = torch.nn.functional.normalize(cloud(seed=seed + 1), dim=-1)
    rotation = roma.rotvec_to_rotmat(angle * axis)
    shift = cloud(seed=seed + 2)
    motion = procrustes(points, scale * points @ rotation.mT + shift)
    assert motion.scale.shape == shape
    # Four points may be nearly flat: their rotation is as good as their second largest extent.
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(motion.rotation, rotation.expand(*shape, 3, 3), **tolerance)
    torch.testing.assert_close(motion.scale / scale, torch.ones(shape, dtype=torch.float64), **tolerance)
    rigid = procrustes(points, points @ rotation.mT + shift, with_scale=False)
    torch.testing.assert_close(rigid.translation, shift.expand(*shape, 3), **tolerance)
    assert (rigid.scale == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotations_are_proper_and_keep_their_type(dtype):
    matrix = cloud(500, 3, dtype=dtype)
    rotation = nearest_rotation(torch.cat((matrix, -matrix, 1e-30 * matrix, 1e30 * matrix)))
    assert rotation.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        torch.linalg.det(rotation), torch.ones(2000, dtype=dtype), rtol=0, atol=16 * eps
    )
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(3, dtype=dtype).expand(2000, 3, 3), rtol=0, atol=16 * eps
    )


def test_float32_is_as_exact_as_its_singular_values():
    points, target = cloud(200, 24, seed=6), cloud(200, 24, seed=7)
    target = points + 0.3 * target
    exact = procrustes_align(points, target)
    # Sums of 24 products of numbers up to 4: a few hundred roundings of 1e-7 at most.
    torch.testing.assert_close(
        procrustes_align(points.float(), target.float()).double(), exact, rtol=0, atol=2e-5
    )


@settings(max_examples=30)
@given(mask=st.lists(st.booleans(), min_size=9, max_size=9).filter(lambda kept: sum(kept) >= 4))
def test_points_of_weight_0_equal_points_left_out(mask):
    kept = torch.tensor(mask)
    points, target = cloud(9, seed=8), cloud(9, seed=9)
    spoilt = [torch.where(kept[:, None], x, torch.nan).requires_grad_() for x in (points, target)]
    motion = procrustes(*spoilt, weights=kept)
    for found, expected in zip(motion, procrustes(points[kept], target[kept]), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    aligned = procrustes_align(*spoilt, weights=kept)
    assert (aligned[~kept] == 0).all()
    for gradient in torch.autograd.grad(aligned.square().sum(), spoilt):
        assert gradient.isfinite().all()
        assert (gradient[~kept] == 0).all()


def test_weights_count_points_and_only_their_ratios_matter():
    points, target = cloud(2, 5, seed=10), cloud(2, 5, seed=11)
    counts = torch.tensor([1, 3, 2, 1, 4])
    repeated = procrustes(
        points.repeat_interleave(counts, 1), target.repeat_interleave(counts, 1), with_scale=True
    )
    for found in (counts.double(), 1e-6 * counts.double().expand(2, 5)):
        for a, b in zip(procrustes(points, target, weights=found), repeated, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_gradients_of_all_orders_and_kinds():
    points, target = cloud(4, seed=12).requires_grad_(), cloud(4, seed=13).requires_grad_()
    weights = torch.tensor([1.0, 0.5, 2, 1], dtype=torch.float64)
    for with_scale in (True, False):

        def aligned(a, b, with_scale=with_scale):
            return procrustes(a, b, weights=weights, with_scale=with_scale).apply(a)

        assert torch.autograd.gradcheck(
            aligned, (points, target), check_forward_ad=True, check_batched_grad=True
        )
    matrix = cloud(3, seed=14).requires_grad_()
    assert torch.autograd.gradgradcheck(nearest_rotation, matrix)
    assert torch.autograd.gradcheck(lambda a: best_scale(a, target), points)


@pytest.mark.parametrize(
    "singular",
    [(3.0, 2.0, 0.0), (3.0, 2.0, -1.0), (2.0, 2.0, 2.0), (2.0, 2.0, 0.0), (1.0, 1.0, -0.5)],
    ids=["planar", "mirrored", "isotropic", "disc", "mirrored disc"],
)
def test_gradients_where_singular_values_meet_but_the_rotation_is_unique(singular):
    turns = roma.random_rotmat(2, dtype=torch.float64)
    matrix = turns[0] @ torch.diag(torch.tensor(singular, dtype=torch.float64)) @ turns[1]
    torch.testing.assert_close(nearest_rotation(matrix), turns[0] @ turns[1], **EXACT)
    assert torch.autograd.gradcheck(nearest_rotation, matrix.requires_grad_())


def line(noise, dtype):
    points = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2, 3])
    return (points + noise * cloud(6, seed=15)).to(dtype)


DEGENERATE = {
    "one point": lambda noise, dtype: 1000 * (1 + noise * cloud(6)).to(dtype),
    "at the origin": lambda noise, dtype: noise * cloud(6, dtype=dtype),
    "line": line,
    "line far away": lambda noise, dtype: line(noise, dtype) + 10,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["exactly", "to a rounding"])
@pytest.mark.parametrize("make", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("which", ["points", "target", "both"])
def test_gradients_are_bounded_for_undetermined_points(make, which, noise, dtype):
    plain = [cloud(6, seed=16, dtype=dtype), cloud(6, seed=17, dtype=dtype)]
    flat = make(noise * torch.finfo(dtype).eps, dtype)
    points = flat if which != "target" else plain[0]
    target = flat.flip(0) if which != "points" else plain[1]
    points, target = points.clone().requires_grad_(), target.clone().requires_grad_()
    motion = procrustes(points, target)
    assert torch.linalg.det(motion.rotation).item() == pytest.approx(1, abs=1e-6)
    errors = (procrustes_align(points, target) - target).norm(dim=-1)
    gradients = torch.autograd.grad(errors.mean(), (points, target))
    # Of a decided alignment of points of this size they are below 1.
    assert max(g.abs().max().item() for g in gradients) < 5


@pytest.mark.parametrize("noise", [0.0, 1e-16])
def test_unrelated_points(noise):
    """Mirrored pairs against equal ones: no rotation is better than another, but for a rounding."""
    points, target = cloud(3, seed=27), cloud(3, seed=28)
    points = (torch.cat((points, -points)) + noise * cloud(6, seed=29)).requires_grad_()
    target = torch.cat((target, target))
    motion = procrustes(points, target, with_scale=False)
    (gradient,) = torch.autograd.grad((motion.rotation * cloud(3, seed=30)).sum(), points)
    assert gradient.abs().max() < 5


def test_undetermined_directions_have_no_gradient_on_a_line():
    """About the line itself the rotation is free: that takes no gradient, however much others would gain."""
    points = line(0.0, torch.float64)
    start = points.clone().requires_grad_()
    motion = procrustes(start, points)
    axis = torch.nn.functional.normalize(points[-1], dim=-1)
    other = cloud(4, seed=18)
    around = torch.linalg.cross(axis.expand(4, 3), other)
    spin = (motion.rotation @ other.mT).mT
    (free,) = torch.autograd.grad((spin * around).sum(), start, retain_graph=True)
    (decided,) = torch.autograd.grad((spin * torch.linalg.cross(cloud(4, seed=19), other)).sum(), start)
    # Turning the line towards `around` may still turn it across: that part is a derivative of order one.
    assert free.norm() < 10
    assert 0.1 < decided.norm() < 10


def test_nan_and_empty():
    points = cloud(2, 5)
    spoilt = points.clone()
    spoilt[0, 1] = torch.nan
    aligned = procrustes_align(spoilt, points)
    assert aligned[0].isnan().all()
    torch.testing.assert_close(aligned[1], points[1], **EXACT)
    assert torch.equal(nearest_rotation(torch.full((3, 3), torch.inf)), torch.eye(3))
    motion = procrustes(points, points + 1, weights=torch.zeros(5))
    assert all(part.isfinite().all() for part in motion)
    assert (best_scale(points, points, weights=torch.zeros(5)) == 1).all()


def test_vmap():
    points, target = cloud(3, 2, 5, seed=20), cloud(3, 2, 5, seed=21)
    found = torch.func.vmap(procrustes_align)(points, target)
    torch.testing.assert_close(found, procrustes_align(points, target), **EXACT)


def test_derivatives_are_the_same_when_compiled(monkeypatch):
    """They do not take a function with a forward mode of its own."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    matrix = cloud(3, seed=25).requires_grad_()
    assert torch.autograd.gradcheck(nearest_rotation, matrix)
    with pytest.raises(RuntimeError, match="forward"), torch.autograd.forward_ad.dual_level():
        nearest_rotation(torch.autograd.forward_ad.make_dual(matrix.detach(), cloud(3)))


def test_best_scale_is_least_squares():
    points, target = cloud(3, 6, seed=22), cloud(3, 6, seed=23)
    weights = torch.rand(3, 6, dtype=torch.float64)
    found = best_scale(points, target, weights=weights)
    for i in range(3):
        root = weights[i].sqrt()[:, None]
        expected = np.linalg.lstsq(
            (root * points[i]).reshape(-1, 1).numpy(), (root * target[i]).flatten().numpy(), rcond=None
        )[0]
        assert found[i].item() == pytest.approx(expected.item(), abs=1e-12)


def test_roots():
    layout = LAYOUTS["coco17"]
    points = cloud(2, 17, seed=24)
    expected = layout.center(points).squeeze(-2)
    for chosen in (
        {"layout": "coco17"},
        {"layout": layout, "root": ("left_hip", "right_hip")},
        {"layout": None, "root": (11, 12)},
        {"layout": None, "root": (-6, -5)},
    ):
        torch.testing.assert_close(root_of(points, **chosen), expected, **EXACT)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda indices: [np.int64(i) for i in indices]])
def test_roots_may_be_arrays_of_indices(kind, unchecked):
    points = cloud(2, 17, seed=24)
    expected = root_of(points, layout=None, root=(11, 12))
    assert torch.equal(root_of(points, layout="coco17", root=kind([11, 12])), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": "smpl24"}, ValueError, "layout: 'smpl24' has 24 points, got 17"),
        ({"layout": "coco"}, ValueError, "layout: expected a KeypointLayout or one of"),
        ({"layout": None}, ValueError, "layout: expected a layout, or root points, got None"),
        (
            {"root": ("pelvis",)},
            ValueError,
            r"root: expected .* of 'coco17', or their names, got \('pelvis',",
        ),
        ({"root": "left_hip"}, ValueError, "root: expected a list of indices of 'coco17'"),
        ({"root": ()}, ValueError, "root: expected a list"),
        ({"root": 0}, ValueError, "root: expected a list of indices of 'coco17', or their names, got 0"),
        ({"root": [0.0]}, ValueError, r"root: expected a list of indices .*, got \[0\.0\]"),
        ({"layout": None, "root": (17,)}, ValueError, "root: expected a list of indices of 17 points"),
        (
            {"layout": None, "root": ("left_hip",)},
            ValueError,
            "root: expected a list of indices of 17 points",
        ),
    ],
)
def test_missing_roots(change, error, message, unchecked):
    with pytest.raises(error, match=message):
        root_of(cloud(17), **{"layout": "coco17"} | change)


def test_wrong_arguments(unchecked):
    points = cloud(5)
    with pytest.raises(TypeError, match="target: expected a torch.Tensor, got list"):
        procrustes(points, points.tolist())
    with pytest.raises(TypeError, match="pred: expected a floating type, got torch.int64"):
        procrustes(points.long(), points)
    with pytest.raises(ValueError, match=r"target: expected shape \(\*batch, 3\), got \(4, 2\)"):
        procrustes(points, points[:4, :2])
    with pytest.raises(ValueError, match=r"target: expected the shape of pred, \(5, 3\), got \(4, 3\)"):
        procrustes(points, points[:4])
    with pytest.raises(ValueError, match=r"weights: "):
        procrustes(points, points, weights=torch.ones(4))
