"""Errors of motion against a loop in NumPy, and motions whose derivatives are known."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody.metrics import (
    acceleration_error,
    foot_sliding,
    jitter,
    mrpe,
    pa_mpjpe,
    root_trajectory_error,
    w_mpjpe,
)

EXACT = {"rtol": 0, "atol": 1e-11}
"""Of lengths of some metres in float64."""
wa_mpjpe = partial(w_mpjpe, align="all")
ALIGNED = {"first_two": (w_mpjpe, 2), "all": (wa_mpjpe, None)}


def motion(*shape, frames, points=5, seed=0):
    """A random walk of a random figure, and a prediction of it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    walk = 0.1 * normal(*shape, frames, 1, 3).cumsum(-3)
    target = walk + normal(*shape, 1, points, 3) + 0.1 * normal(*shape, frames, points, 3)
    return target + 0.05 * normal(*target.shape), target


def moved(points, target, chosen):
    """By the similarity that fits chosen points best."""
    x, y = points[chosen].reshape(-1, 3), target[chosen].reshape(-1, 3)
    u, s, vt = np.linalg.svd((y - y.mean(0)).T @ (x - x.mean(0)))
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    scale = (s * signs).sum() / ((x - x.mean(0)) ** 2).sum()
    return scale * (points - x.mean(0)) @ (u * signs @ vt).T + y.mean(0)


def in_segments(pred, target, segment, first):
    errors = []
    for start in range(0, len(pred), segment):
        p, t = pred[start : start + segment], target[start : start + segment]
        errors.append(np.linalg.norm(moved(p, t, slice(first)) - t, axis=-1).mean(-1))
    return np.concatenate(errors)


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize(("frames", "segment"), [(250, 100), (100, 100), (7, 3), (5, 100), (6, None), (4, 1)])
def test_equals_a_loop(name, frames, segment):
    metric, first = ALIGNED[name]
    pred, target = motion(2, frames=frames, seed=frames)
    options = {} if segment == 100 else {"segment": segment}  # which is the default
    each = metric(pred, target, reduction="none", **options)
    expected = [
        in_segments(p.numpy(), t.numpy(), segment or frames, first) for p, t in zip(pred, target, strict=True)
    ]
    torch.testing.assert_close(each, torch.from_numpy(np.stack(expected)), **EXACT)
    torch.testing.assert_close(metric(pred, target, **options), each.mean())


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize(
    ("frames", "bounds"),
    [
        (9, [0, 4, 8]),
        (10, [0, 4, 9]),
        (11, [0, 4, 10]),
        (12, [0, 4, 8]),
        (5, [0, 4]),
        (8, [0, 4]),
        (7, [0, 6]),
    ],
)
def test_the_last_segment_may_include_the_rest(name, frames, bounds):
    """As TRAM's loop: range(0, frames - 4, 4) starts; where fewer than 8 are left, the end is frames - 1."""
    metric, first = ALIGNED[name]
    expected_bounds = []
    for start in range(0, frames - 4, 4):
        expected_bounds.append((start, frames - 1 if start + 8 > frames else start + 4))
    assert expected_bounds == list(pairwise(bounds))
    pred, target = motion(frames=frames, seed=frames)
    expected = np.concatenate(
        [in_segments(pred[a:b].numpy(), target[a:b].numpy(), b - a, first) for a, b in pairwise(bounds)]
    )
    assert metric(pred, target, segment=4, rest="joined").item() == pytest.approx(expected.mean(), rel=1e-12)
    each = metric(pred, target, segment=4, rest="joined", reduction="none")
    np.testing.assert_allclose(each[: bounds[-1]], expected, rtol=1e-12)
    assert each.shape == (frames,)
    seen = torch.ones(frames, 1)
    torch.testing.assert_close(
        metric(pred, target, segment=4, rest="joined", weights=seen), each[: bounds[-1]].mean()
    )


@settings(max_examples=8)
@given(mask=st.lists(st.booleans(), min_size=9, max_size=9).filter(any), seed=st.integers(0, 99))
def test_frames_of_weight_0_equal_frames_left_out(mask, seed):
    kept = torch.tensor(mask)
    pred, target = motion(frames=9, seed=seed)
    spoilt = [torch.where(kept[:, None, None], x, torch.nan).requires_grad_() for x in (pred, target)]
    roots = [x[:, 0] for x in spoilt]
    cases = [
        (lambda a, b, **kw: w_mpjpe(a, b, segment=None, **kw), spoilt, kept[:, None]),
        (lambda a, b, **kw: wa_mpjpe(a, b, segment=None, **kw), spoilt, kept[:, None]),
    ]
    if sum(mask) > 1:  # one place is no path
        cases.append((root_trajectory_error, roots, kept))
    for metric, arguments, weights in cases:
        each = metric(*arguments, weights=weights, reduction="none")
        alone = metric(*(x[kept] for x in arguments), reduction="none")
        torch.testing.assert_close(each[kept], alone, **EXACT)
        assert (each[~kept] == 0).all()
        torch.testing.assert_close(metric(*arguments, weights=weights), alone.mean(), **EXACT)
        for gradient in torch.autograd.grad(each.sum(), spoilt):
            assert gradient.isfinite().all()


def test_segments_without_weights():
    pred, target = motion(frames=9)
    kept = torch.arange(9) >= 3
    spoilt = torch.where(kept[:, None, None], pred, torch.nan).requires_grad_()
    each = w_mpjpe(spoilt, target, segment=3, weights=kept[:, None], reduction="none")
    torch.testing.assert_close(each[3:], w_mpjpe(pred[3:], target[3:], segment=3, reduction="none"), **EXACT)
    assert (each[:3] == 0).all()
    assert torch.autograd.grad(each.sum(), spoilt)[0].isfinite().all()


@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10), shape=st.sampled_from([(), (2,), (2, 1), (0,)]))
def test_invariances(seed, scale, shape):
    pred, target = motion(*shape, frames=8, seed=seed)
    turn = roma.rotvec_to_rotmat(torch.randn(3, dtype=torch.float64))
    other = scale * pred @ turn.mT + 5
    for metric in (w_mpjpe, wa_mpjpe):
        before = metric(pred, target, reduction="none")
        assert before.shape == (*shape, 8)
        torch.testing.assert_close(metric(other, target, reduction="none"), before, rtol=1e-9, atol=1e-9)
        same = metric(scale * target, target @ turn.mT, reduction="none")
        torch.testing.assert_close(same, torch.zeros_like(before), **EXACT)
    roots = (pred[..., 0, :], target[..., 0, :])
    before = root_trajectory_error(*roots, reduction="none")
    rigid = root_trajectory_error(roots[0] @ turn.mT + 5, roots[1], reduction="none")
    torch.testing.assert_close(rigid, before, rtol=1e-9, atol=1e-9)
    both = root_trajectory_error(scale * roots[0], scale * roots[1], reduction="none")
    torch.testing.assert_close(both, before, rtol=1e-9, atol=1e-9)


def test_alignment_per_frame_equals_pa_mpjpe():
    pred, target = motion(frames=6)
    torch.testing.assert_close(wa_mpjpe(pred, target, segment=1), pa_mpjpe(pred, target))


def test_a_root_that_does_not_move_has_an_infinite_error_and_no_gradient(unchecked):
    pred, target = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 3)
    target[0] = 0.0
    errors = root_trajectory_error(pred, target, reduction="none")
    assert errors[0].isposinf().all()
    (gradient,) = torch.autograd.grad(errors[1].sum(), pred, retain_graph=True)
    assert gradient[1].isfinite().all()
    assert (gradient[0] == 0).all()
    assert root_trajectory_error(target[:1], target[:1]).isposinf()


def test_root_trajectory_error_equals_roma():
    pred, target = (x[:, 0] for x in motion(frames=30, seed=3))
    turn, shift = roma.rigid_points_registration(pred, target)
    path = (target[1:] - target[:-1]).norm(dim=-1).sum()
    expected = (pred @ turn.mT + shift - target).norm(dim=-1) / path
    torch.testing.assert_close(root_trajectory_error(pred, target, reduction="none"), expected, **EXACT)


def polynomial(order, coefficient, fps, frames=6):
    """One point whose derivative of that order is constant, along x."""
    time = torch.arange(frames, dtype=torch.float64) / fps
    x = coefficient * time**order / (2 if order == 2 else 6)
    return torch.stack((x, 3 * time, -time), -1)[:, None]


def test_derivatives_in_seconds_and_frames():
    for fps in (1.0, 25.0, 30.0):
        falling, straight = polynomial(2, 9.81, fps), polynomial(2, 0.0, fps)
        each = acceleration_error(falling, straight, fps=fps, reduction="none")
        torch.testing.assert_close(each, torch.full((4,), 9.81, dtype=torch.float64), rtol=1e-9, atol=0)
        found = acceleration_error(falling, straight)
        torch.testing.assert_close(found * fps**2, each[0], rtol=1e-9, atol=0)
        each = jitter(polynomial(3, 5.0, fps), fps=fps, reduction="none")
        torch.testing.assert_close(each, torch.full((3,), 5.0, dtype=torch.float64), rtol=1e-9, atol=0)
        assert jitter(falling, fps=fps).item() == pytest.approx(0, abs=1e-9)
        torch.testing.assert_close(jitter(polynomial(3, 5.0, fps)) * fps**3, each[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("order", "metric"), [(2, acceleration_error), (3, lambda a, b, **kw: jitter(a - b, **kw))]
)
def test_a_frame_of_weight_0_excludes_its_neighbours(order, metric):
    pred, target = motion(2, frames=9)
    weights = torch.ones(2, 9, 5)
    weights[0, 4], weights[1, :, 2] = 0, 0
    spoilt = [torch.where(weights[..., None] > 0, x, torch.nan).requires_grad_() for x in (pred, target)]
    each = metric(*spoilt, weights=weights, reduction="none")
    plain = metric(pred, target, reduction="none")
    touched = torch.zeros(9 - order, dtype=torch.bool)
    touched[4 - order : 5] = True
    torch.testing.assert_close(each[0], torch.where(touched, 0, plain[0]))
    other = [0, 1, 3, 4]
    without = metric(pred[1][:, other], target[1][:, other], reduction="none")
    torch.testing.assert_close(each[1], without)
    value = metric(*spoilt, weights=weights)
    torch.testing.assert_close(value, torch.cat((plain[0][~touched], without)).mean())
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, spoilt))


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_too_short(frames):
    pred, target = motion(2, frames=frames)
    for weights in (None, torch.ones(2, frames, 5)):
        each = acceleration_error(pred, target, weights=weights, reduction="none")
        assert each.shape == (2, 0)
        assert acceleration_error(pred, target, weights=weights).isnan()
        assert w_mpjpe(pred, target, weights=weights, reduction="none").shape == (2, frames)


def test_gradients():
    pred, target = motion(frames=4, points=2)
    pred.requires_grad_()
    for metric in (
        lambda a: w_mpjpe(a, target, segment=3),
        lambda a: wa_mpjpe(a, target, segment=3),
        lambda a: root_trajectory_error(a[:, 0], target[:, 0]),
        lambda a: acceleration_error(a, target, fps=2),
        jitter,
    ):
        assert torch.autograd.gradcheck(metric, pred)


def test_wrong_arguments(unchecked):
    pred, target = motion(frames=5)
    for fps in (0, 0.0, -30, float("nan"), float("inf")):  # 0 would be a perfect score
        with pytest.raises(ValueError, match="fps: expected a number above 0"):
            acceleration_error(pred, target, fps=fps)
        with pytest.raises(ValueError, match="fps: expected a number above 0"):
            jitter(pred, fps=fps)
    with pytest.raises(ValueError, match="rest: expected one of short, joined, got 'long'"):
        w_mpjpe(pred, target, rest="long")
    with pytest.raises(ValueError, match="pred: expected more than the 100 frames of a segment, got"):
        wa_mpjpe(pred, target, rest="joined")
    with pytest.raises(ValueError, match="segment: expected a whole number of 1 or more, got 0"):
        w_mpjpe(pred, target, segment=0)
    with pytest.raises(ValueError, match=r"pred: expected shape \(\*batch, any, any, 3\), got \(5, 3\)"):
        acceleration_error(pred[:, 0], target[:, 0])
    with pytest.raises(
        ValueError, match=r"weights: expected a shape that broadcasts to \(5, 5\), got \(6, 1\)"
    ):
        wa_mpjpe(pred, target, weights=torch.ones(6, 1))


def test_feet_slide_where_the_true_ones_rest():
    target = torch.zeros(4, 2, 3).double()
    target[2:, 0, 0] = 0.5  # one foot steps once
    pred = target.clone()
    pred[:, :, 2] += 0.003 * torch.arange(4)[:, None]
    assert foot_sliding(pred, target).item() == pytest.approx(0.003)
    each = foot_sliding(pred, target, reduction="none")
    assert each.shape == (3, 2)
    assert each[1, 0] == 0
    assert foot_sliding(pred, target + torch.arange(4)[:, None, None]).isnan()


def test_roots_are_compared_as_they_are():
    pred, target = torch.tensor([[[0.0, 0, 3], [1, 1, 1]], [[0, 0, 4], [1, 1, 1]]]).double()
    assert mrpe(pred, target).item() == 0.5
    assert mrpe(pred, target, weights=torch.tensor([1.0, 0])).item() == 1


@pytest.mark.parametrize("which", ["pred", "target"])
def test_unknown_points_of_feet_do_not_rest(which):
    """A number that leaves out what is NaN without a weight of 0 would be one of other people."""
    feet = {"pred": torch.zeros(4, 2, 3), "target": torch.zeros(4, 2, 3)}
    feet[which][1, 0] = torch.nan
    assert foot_sliding(**feet).isnan()
    assert foot_sliding(**feet, weights=(torch.arange(2) != 0).float()) == 0
    with pytest.raises(ValueError, match="threshold: expected a distance above 0, got 0"):
        foot_sliding(**feet, threshold=0)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int64])
@pytest.mark.parametrize("value", [16, 100])
def test_weights_of_integers_do_not_overflow(kind, value, unchecked):
    """16 * 16 and 100 * 100 * 100 are no numbers of 8 bits."""
    pred, target = motion(frames=8)
    weights = torch.where(torch.arange(5) < 4, value, 0).expand(8, 5)
    for metric in (acceleration_error, partial(foot_sliding, threshold=1.0), w_mpjpe):
        found, expected = (metric(pred, target, weights=w) for w in (weights.to(kind), weights.double()))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found, metric(pred, target, weights=weights != 0))
    torch.testing.assert_close(jitter(pred, weights=weights.to(kind)), jitter(pred, weights=weights != 0))
