"""Errors of pose against a loop in NumPy, and what they must not depend on."""

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody import LAYOUTS, SMPLA
from agebody.measure import stature
from agebody.metrics import (
    joint_errors,
    joint_limit_violations,
    mpjae,
    mpjpe,
    pa_mpjpe,
    procrustes,
    pve,
    stature_error,
)
from agebody.metrics.alignment import root_of
from agebody.rotations import axis_angle_to_matrix

EXACT = {"rtol": 0, "atol": 1e-12}
"""Of errors around 1 in float64: a few thousand roundings."""
METRICS = {
    "mpjpe": lambda a, b, **kw: mpjpe(a, b, layout="coco17", **kw),
    "mpjpe where they are": lambda a, b, **kw: mpjpe(a, b, layout=None, **kw),
    "n_mpjpe": lambda a, b, **kw: mpjpe(a, b, layout="coco17", scale=True, **kw),
    "pa_mpjpe": pa_mpjpe,
    "pve": lambda a, b, **kw: pve(a, b, pred_root=a[..., 0, :], target_root=b[..., 0, :], **kw),
}


def cloud(*shape, seed=0):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(name, pred, target, weights):
    """One person in NumPy; points without weight are left out, and so is who has no hips."""
    hips = [11, 12]
    if name in ("mpjpe", "n_mpjpe"):
        if (weights[hips] == 0).any():
            return None
        pred, target = pred - pred[hips].mean(0), target - target[hips].mean(0)
    if name == "pve":
        pred, target = pred - pred[0], target - target[0]
    kept = weights > 0
    if not kept.any():
        return None
    pred, target, weights = pred[kept], target[kept], weights[kept]
    if name == "n_mpjpe":
        pred = pred * (weights[:, None] * pred * target).sum() / (weights[:, None] * pred * pred).sum()
    if name.startswith("pa"):
        x, y = (p - np.average(p, axis=0, weights=weights) for p in (pred, target))
        u, s, vt = np.linalg.svd((weights[:, None] * y).T @ x)
        signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
        scale = (s * signs).sum() / (weights[:, None] * x * x).sum()
        pred, target = scale * x @ (u * signs @ vt).T, y
    return np.average(np.linalg.norm(pred - target, axis=1), weights=weights)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_a_loop(name, masked):
    pred, target = cloud(6, 17, seed=1), cloud(6, 17, seed=2)
    weights = torch.ones(6, 17, dtype=torch.float64)
    if masked:
        weights = torch.rand(6, 17, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        weights[0, 3:9], weights[1, 11], weights[2] = 0, 0, 0
    given = {"weights": weights} if masked else {}
    spoilt = [torch.where(weights[..., None] > 0, x, torch.nan) for x in (pred, target)]
    if name == "pve":  # its roots are given, here by the first point
        spoilt = [torch.where((weights > 0)[..., None] | (torch.arange(17) == 0)[:, None], x, torch.nan)
                  for x in (pred, target)]  # fmt: skip
    expected = [by_hand(name, *(x[i].numpy() for x in (pred, target, weights))) for i in range(6)]
    assert (None in expected) == masked
    each = METRICS[name](*spoilt, reduction="none", **given)
    torch.testing.assert_close(each, torch.tensor([e or 0.0 for e in expected], dtype=torch.float64), **EXACT)
    counted = [e for e in expected if e is not None]
    assert METRICS[name](*spoilt, **given).item() == pytest.approx(np.mean(counted), abs=1e-12)
    assert METRICS[name](*spoilt, reduction="sum", **given).item() == pytest.approx(sum(counted), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_masked_nan_reaches_no_gradient(name):
    weights = torch.ones(4, 17)
    weights[0, 5], weights[1, 12], weights[2] = 0, 0, 0
    keep = (weights > 0)[..., None]
    if name == "pve":
        keep = keep | (torch.arange(17) == 0)[:, None]
    pred, target = (torch.where(keep, cloud(4, 17, seed=s), torch.nan).requires_grad_() for s in (4, 5))
    value = METRICS[name](pred, target, weights=weights)
    for gradient in torch.autograd.grad(value, (pred, target)):
        assert gradient.isfinite().all()
        assert (gradient[2] == 0).all()
        assert gradient[3].any()


@pytest.mark.parametrize("name", METRICS)
def test_gradients(name):
    pred, target = cloud(17, seed=6).requires_grad_(), cloud(17, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(METRICS[name], (pred, target))
    same = target.detach()
    assert METRICS[name](same, same).item() == pytest.approx(0, abs=1e-12)


def test_no_gradient_at_the_truth():
    target = cloud(3, 17, seed=8)
    pred = target.clone().requires_grad_()
    for name in ("mpjpe", "mpjpe where they are", "pve"):
        (gradient,) = torch.autograd.grad(METRICS[name](pred, target), pred)
        assert (gradient == 0).all()


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(), (1,), (2, 3), (0,)]),
    scale=st.floats(0.01, 100),
)
def test_invariances(seed, shape, scale):
    pred, target = cloud(*shape, 17, seed=seed), cloud(*shape, 17, seed=seed + 1)
    shift, turn = cloud(seed=seed + 2), roma.rotvec_to_rotmat(cloud(seed=seed + 3))
    roomy = {"rtol": 1e-9, "atol": 1e-9}

    def each(name, a, b):
        found = METRICS[name](a, b, reduction="none")
        assert found.shape == shape
        return found

    for name in METRICS:
        before = each(name, pred, target)
        # Both in another frame of reference, and in another unit.
        both = [scale * x @ turn.mT + shift for x in (pred, target)]
        torch.testing.assert_close(each(name, *both), scale * before, **roomy)
        if name != "mpjpe where they are":
            torch.testing.assert_close(each(name, pred + shift, target), before, **roomy)
    hips = root_of(pred, layout="coco17")[..., None, :]
    for name, moved in (
        ("n_mpjpe", scale * (pred - hips) + shift),
        ("pa_mpjpe", scale * pred @ turn.mT + shift),
    ):
        torch.testing.assert_close(each(name, moved, target), each(name, pred, target), **roomy)


def test_confidences_only_compare():
    pred, target = cloud(3, 17, seed=9), cloud(3, 17, seed=10)
    weights = torch.rand(3, 17) + 0.1
    for metric in METRICS.values():
        torch.testing.assert_close(
            metric(pred, target, weights=0.25 * weights), metric(pred, target, weights=weights)
        )


def test_mpjpe_is_the_mean_of_joint_errors():
    pred, target = cloud(5, 17, seed=11), cloud(5, 17, seed=12)
    each = joint_errors(pred, target, layout="coco17")
    assert each.shape == (5, 17)
    torch.testing.assert_close(each.mean(-1), mpjpe(pred, target, layout="coco17", reduction="none"))
    mask = torch.rand(5, 17, generator=torch.Generator().manual_seed(13)) > 0.3
    mask[:, 11:13] = True
    found = joint_errors(pred, target, layout="coco17", weights=mask, reduction="mean")
    torch.testing.assert_close(found, each[mask].mean())
    aligned = procrustes(pred, target).apply(pred)
    torch.testing.assert_close(joint_errors(aligned, target, layout=None).mean(), pa_mpjpe(pred, target))


def test_roots_by_name():
    pred, target = cloud(2, 24, seed=14), cloud(2, 24, seed=15)
    by_name = mpjpe(pred, target, layout="smpl24", root=("left_hip", "right_hip"))
    torch.testing.assert_close(by_name, mpjpe(pred, target, layout=None, root=(1, 2)))
    torch.testing.assert_close(by_name, mpjpe(pred, target, layout=LAYOUTS["smpl24"], root=[1, 2]))
    assert by_name != mpjpe(pred, target, layout="smpl24")


def test_on_bodies(mannequin_asset):
    body = SMPLA(mannequin_asset)
    turn = torch.tensor([0.0, 1.0, 0.0])
    child = body(age_offset=torch.tensor([0.0, 0.5]))
    same = body(age_offset=torch.tensor([0.0, 0.5]), global_orient=turn, transl=turn)
    assert pa_mpjpe(same.vertices, child.vertices) < 1e-5  # of 1.7 m in float32
    roots = {"pred_root": same.joints[:, 0], "target_root": child.joints[:, 0]}
    assert pve(same.vertices, child.vertices, **roots) > 0.05
    grown = body(age_offset=torch.tensor([0.0, 0.2])).vertices
    found = stature_error(stature(grown), stature(child.vertices), reduction="none")
    assert found[0] == 0
    assert 0.1 < found[1] < 0.6


def test_stature_error():
    pred, target = torch.tensor([1.0, 1.9, torch.nan]), torch.tensor([0.8, 2.0, torch.nan])
    seen = torch.tensor([True, True, False])
    torch.testing.assert_close(stature_error(pred, target, weights=seen), torch.tensor(0.15))
    found = stature_error(pred, target, weights=seen, relative=True, reduction="none")
    torch.testing.assert_close(found, torch.tensor([0.25, 0.05, 0.0]))
    leaves = (pred.clone().requires_grad_(), target.clone().requires_grad_())
    value = stature_error(*leaves, weights=seen, relative=True)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, leaves))
    # The true stature times 1.1, 1.2, ...: in float64 the fractions come back to the last digits.
    target = torch.linspace(0.5, 2, 4, dtype=torch.float64)
    shares = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)
    found = stature_error(target * (1 + shares), target, relative=True, reduction="none")
    torch.testing.assert_close(found, shares.abs(), rtol=0, atol=1e-15)


def test_no_people_are_nan():
    pred, target = cloud(3, 17), cloud(3, 17)
    for metric in METRICS.values():
        assert metric(pred, target, weights=torch.zeros(17)).isnan()


def test_unmasked_nan_stays_nan():
    pred, target = cloud(3, 17, seed=16), cloud(3, 17, seed=17)
    pred[1, 4] = torch.nan
    for metric in METRICS.values():
        found = metric(pred, target, reduction="none")
        assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: mpjpe(a, b[..., :5, :], layout=None), "target: expected the shape of pred"),
        (lambda a, b: mpjpe(a, b, layout="smpl24"), "layout: 'smpl24' has 24 points, got 17"),
        (lambda a, b: pa_mpjpe(a, b, reduction="median"), "reduction: expected one of none, mean, sum"),
        (
            lambda a, b: pa_mpjpe(a, b, weights=torch.ones(3)),
            r"weights: .* broadcasts to \(2, 17\), got \(3,\)",
        ),
        (
            lambda a, b: pve(a, b, pred_root=a[:, 0], target_root=None),
            "target_root: expected the root of both",
        ),
        (
            lambda a, b: pve(a, b, pred_root=a[:, 0], target_root=b[0, 0]),
            r"target_root: .*\(2, 3\), got \(3,\)",
        ),
        (lambda a, b: stature_error(a[..., 0], b[..., 0, 0]), "target: expected the shape of pred"),
    ],
)
def test_wrong_arguments(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(cloud(2, 17), cloud(2, 17))


def test_the_alignment_is_said(unchecked):
    with pytest.raises(TypeError, match="layout"):
        mpjpe(cloud(2, 17), cloud(2, 17))


def test_signed_stature_errors():
    pred, true = torch.tensor([[1.8, 0.9, 1.0], [1.7, 1.0, 1.0]]).double()
    assert stature_error(pred, true, signed=True, reduction="none").tolist() == pytest.approx(
        [0.1, -0.1, 0.0]
    )
    assert stature_error(pred, true, signed=True).item() == pytest.approx(0, abs=1e-7)
    assert stature_error(pred, true).item() == pytest.approx(0.2 / 3)
    relative = stature_error(pred, true, signed=True, relative=True, reduction="none")
    assert relative.tolist() == pytest.approx([0.1 / 1.7, -0.1, 0.0])


@pytest.mark.parametrize("pose_format", ["axis_angle", "matrix"])
def test_angles_between_rotations(pose_format):
    pred = torch.tensor([[[0.3, 0, 0], [0, 0.1, 0]], [[0, 0, 0], [0, 0, 1]]], dtype=torch.float64)
    target = torch.zeros(2, 2, 3).double()
    if pose_format == "matrix":
        pred, target = (axis_angle_to_matrix(part) for part in (pred, target))
    found = mpjae(pred, target, pose_format=pose_format, reduction="none")
    np.testing.assert_allclose(found, [0.2, 0.5], rtol=1e-12)


def test_joints_beyond_their_limits():
    pose = torch.zeros(2, 23, 3).double()
    pose[1, 3] = torch.tensor([-1.0, 0, 0])  # a knee bent forwards
    assert joint_limit_violations(pose).item() == pytest.approx(1 / 46)
    assert joint_limit_violations(pose, tolerance=1.2) == 0
    assert joint_limit_violations(pose, reduction="none")[1, 3] == 1


def test_joints_of_unknown_poses_violate_no_limits_and_keep_none():
    pose = torch.full((2, 23, 3), torch.nan)
    assert joint_limit_violations(pose).isnan()
    pose[0] = 0
    assert joint_limit_violations(pose, weights=torch.tensor([[1.0], [0]])) == 0
    with pytest.raises(ValueError, match="tolerance: expected an angle of 0 or more, got -1"):
        joint_limit_violations(pose, tolerance=-1)
