import math

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from agebody.losses import betas_loss, geodesic_loss, rotation_loss
from agebody.losses.parameters import METRIC_AWARE_BETA_WEIGHTS, rotation_angle
from agebody.rotations import ENTRY_SHAPES, axis_angle_to_matrix, from_matrix

few = settings(max_examples=25)
FORMATS = tuple(ENTRY_SHAPES)
ANGLES = (0.0, 1e-12, 1e-8, 1e-4, 0.1, 1.0, 2.0, 3.0, math.pi - 1e-4, math.pi - 1e-8, math.pi)
AXIS = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
seeds = st.integers(0, 2**31)


def rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniformly distributed matrices."""
    generator = np.random.default_rng(seed)
    matrices = Rotation.from_quat(generator.normal(size=(math.prod(shape), 4))).as_matrix()
    return torch.from_numpy(matrices).reshape(*shape, 3, 3)


@few
@given(seeds)
def test_angle_equals_scipys_and_romas(seed):
    first, second = rotations(20, seed=seed), rotations(20, seed=seed + 1)
    angle = rotation_angle(first, second)
    expected = (Rotation.from_matrix(first.numpy()).inv() * Rotation.from_matrix(second.numpy())).magnitude()
    # A matrix is a rotation to some 1e-16, and so is the angle.
    np.testing.assert_allclose(angle, expected, rtol=0, atol=1e-14)
    # roma's arc cosine loses half of the digits where the angle is small.
    torch.testing.assert_close(angle, roma.rotmat_geodesic_distance(first, second), rtol=0, atol=1e-7)
    torch.testing.assert_close(rotation_angle(second, first), angle, rtol=0, atol=1e-14)
    turn = rotations(seed=seed + 2)
    for left, right in ((turn @ first, turn @ second), (first @ turn, second @ turn)):
        torch.testing.assert_close(rotation_angle(left, right), angle, rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 4e-7), (torch.float64, 1e-15)])
def test_angle_is_exact_from_zero_to_pi(angle, dtype, rounding):
    frame = rotations(seed=3)
    turned = frame @ axis_angle_to_matrix(angle * AXIS)
    # Sums of three products of numbers up to 1: a few roundings, at both ends as between.
    assert rotation_angle(frame.to(dtype), turned.to(dtype)).item() == pytest.approx(
        angle, rel=0, abs=rounding
    )


@pytest.mark.parametrize("angle", [1e-8, 1e-4, 0.1, 1.0, 3.0, math.pi - 1e-4, math.pi - 1e-6])
@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_geodesic_gradient_is_the_axis(angle, penalty):
    """Turning on about the axis adds to the angle what it turns; turning about others adds nothing."""
    target = rotations(seed=5)
    tangent = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    pred = target @ axis_angle_to_matrix(angle * AXIS) @ axis_angle_to_matrix(tangent)
    loss = geodesic_loss(pred, target, penalty=penalty)
    (slope,) = torch.autograd.grad(loss, tangent)
    size = 1 if penalty == "l1" else 2 * angle
    # The axis is known from sines and therefore, near both ends, to a rounding divided by the distance to it.
    known = 1e-15 / min(angle, math.pi - angle)
    torch.testing.assert_close(slope, size * AXIS, rtol=0, atol=size * 4 * known + 1e-15)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("pose_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_is_lost_or_explodes(angle, pose_format, dtype):
    target = rotations(seed=5)
    pred = from_matrix(target @ axis_angle_to_matrix(angle * AXIS), pose_format).to(dtype)
    for loss in (geodesic_loss, rotation_loss):
        leaf = pred.detach().requires_grad_()
        value = loss(leaf, target.to(dtype), pose_format=pose_format, target_format="matrix")
        (slope,) = torch.autograd.grad(value, leaf)
        assert slope.isfinite().all()
        # 8 sin^2(t / 2) changes by at most 4 dt, and a quaternion turns by twice what it is changed; the
        # other formats by no more than once.
        assert slope.norm() < 8.001


def test_equal_rotations_do_not_pull():
    pred = rotations(10).requires_grad_()
    (slope,) = torch.autograd.grad(geodesic_loss(pred, pred.detach(), penalty="l2"), pred)
    assert slope.abs().max() < 1e-15
    same = torch.eye(3).requires_grad_()
    assert (torch.autograd.grad(geodesic_loss(same, torch.eye(3)), same)[0] == 0).all()


def test_frobenius_is_a_function_of_the_angle():
    first, second = rotations(50), rotations(50, seed=1)
    expected = 8 * torch.sin(rotation_angle(first, second) / 2) ** 2
    torch.testing.assert_close(rotation_loss(first, second, reduction="none"), expected)


@pytest.mark.parametrize("pose_format", FORMATS)
@pytest.mark.parametrize("target_format", FORMATS)
@pytest.mark.parametrize("loss", [rotation_loss, geodesic_loss])
def test_formats_are_ways_to_write_the_same(pose_format, target_format, loss):
    first, second = rotations(2, 5), rotations(2, 5, seed=1)
    got = loss(
        from_matrix(first, pose_format), from_matrix(second, target_format), pose_format=pose_format,
        target_format=target_format, reduction="none",
    )  # fmt: skip
    assert got.shape == (2, 5)
    torch.testing.assert_close(got, loss(first, second, reduction="none"))
    if pose_format == target_format:
        same = loss(
            from_matrix(first, pose_format), from_matrix(second, pose_format), pose_format=pose_format
        )
        torch.testing.assert_close(same, loss(first, second))


def test_hmr2_and_spin_sum_and_average_entries():
    pred, target = rotations(4, 24), rotations(4, 24, seed=1)
    has_pose = torch.tensor([True, False, True, True])
    mse = torch.nn.functional.mse_loss
    summed = mse(pred[has_pose], target[has_pose], reduction="sum")
    torch.testing.assert_close(
        rotation_loss(pred, target, weights=has_pose[:, None], reduction="sum"), summed
    )
    averaged = mse(pred[has_pose], target[has_pose])
    torch.testing.assert_close(rotation_loss(pred, target, weights=has_pose[:, None]) / 9, averaged)
    pred, target = torch.randn(4, 10), torch.randn(4, 10)
    torch.testing.assert_close(
        betas_loss(pred, target, weights=has_pose, reduction="sum"),
        mse(pred[has_pose], target[has_pose], reduction="sum"),
    )
    torch.testing.assert_close(
        betas_loss(pred, target, weights=has_pose) / 10, mse(pred[has_pose], target[has_pose])
    )
    torch.testing.assert_close(
        betas_loss(pred, target, penalty="l1", reduction="sum"), (pred - target).abs().sum()
    )


def test_metric_aware_weights_of_betas():
    assert (2.56, 1.28, 0.64, 0.64, *6 * (0.32,)) == METRIC_AWARE_BETA_WEIGHTS
    beta_weights = torch.tensor(METRIC_AWARE_BETA_WEIGHTS, dtype=torch.float64)
    unit = torch.eye(10, dtype=torch.float64)
    terms = betas_loss(3 * unit, 0 * unit, beta_weights=beta_weights, reduction="none")
    torch.testing.assert_close(terms, 9 * beta_weights)
    assert betas_loss(unit, 0 * unit, beta_weights=beta_weights) == pytest.approx(7.04 / 10)


@pytest.mark.parametrize("loss", [rotation_loss, geodesic_loss])
@few
@given(seeds)
def test_a_step_down_the_gradient_turns_towards_the_target(loss, seed):
    formats = {"pose_format": "rotation_6d", "target_format": "matrix"}
    matrix, target = rotations(seed=seed), rotations(seed=seed + 1)
    if rotation_angle(matrix, target) > math.pi - 1e-2:
        return  # there is hardly a slope at the top
    pred = from_matrix(matrix, "rotation_6d").requires_grad_()
    value = loss(pred, target, **formats)
    (slope,) = torch.autograd.grad(value, pred)
    assert loss(pred - 1e-5 * slope, target, **formats) < value


def test_mistakes_are_named(unchecked):
    flat = torch.zeros(2, 69)
    for message, arguments, options in (
        ("pose_format: expected one of axis_angle", (torch.eye(3), torch.eye(3)), {"pose_format": "euler"}),
        ("target_format: expected one of axis", (torch.eye(3), torch.eye(3)), {"target_format": "euler"}),
        (r"pred: expected shape \(\*batch, 3\), got \(2, 69\)", (flat, flat), {"pose_format": "axis_angle"}),
        (r"target: expected shape \(\*batch, 3, 3\)", (torch.eye(3), torch.zeros(3)), {}),
        (r"target: expected rotations of shape \(2,\), got \(\)", (torch.zeros(2, 3, 3), torch.eye(3)), {}),
    ):  # fmt: skip
        for loss in (rotation_loss, geodesic_loss):
            with pytest.raises(ValueError, match=message):
                loss(*arguments, **options)
    betas = torch.zeros(2, 10)
    with pytest.raises(ValueError, match=r"beta_weights: expected shape \(10,\), got \(9,\)"):
        betas_loss(betas, betas, beta_weights=torch.ones(9))
    with pytest.raises(TypeError, match="beta_weights: expected a torch.Tensor, got tuple"):
        betas_loss(betas, betas, beta_weights=METRIC_AWARE_BETA_WEIGHTS)  # pyright: ignore
