import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from agebody.losses import (
    acceleration_loss,
    angular_velocity_loss,
    geodesic_loss,
    velocity_loss,
)
from agebody.rotations import axis_angle_to_matrix, from_matrix

few = settings(max_examples=25)
slowing_loss = partial(acceleration_loss, momentum=0.5)
OF_POINTS = (velocity_loss, acceleration_loss, slowing_loss)
seeds = st.integers(0, 2**31)


def track(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def irregular(frames: int, seed: int = 0) -> torch.Tensor:
    """Ascending times, neighbours up to ten times as far apart as others."""
    steps = torch.rand(frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.01 + 0.1 * steps).cumsum(0)


@few
@given(seeds)
def test_against_differences_of_numpy(seed):
    points = track(2, 6, 4, 3, seed=seed)
    array = points.numpy()
    first = (np.diff(array, axis=-3) ** 2).sum(-1)
    second = (np.diff(array, n=2, axis=-3) ** 2).sum(-1)
    np.testing.assert_allclose(velocity_loss(points, reduction="none"), first)
    np.testing.assert_allclose(acceleration_loss(points, reduction="none"), second)


def test_aionhmr_takes_half_of_the_sum():
    joints = track(10, 22, 3)
    expected = 0.5 * sum(
        torch.linalg.norm(joints[t + 1] - joints[t], dim=-1).square().sum() for t in range(9)
    )
    torch.testing.assert_close(0.5 * velocity_loss(joints, reduction="sum"), expected)


def test_smil_expects_half_of_the_last_step_again():
    """||J_t - (J_t-1 + dJ / 2)||^2, of one frame after the two that are done."""
    joints = track(3, 24, 3)
    done, now = joints[:2], joints[2].requires_grad_()
    expected = ((now - (done[1] + (done[1] - done[0]) / 2)) ** 2).sum()
    got = slowing_loss(torch.cat((done, now[None])), reduction="sum")
    torch.testing.assert_close(got, expected)
    (slope,) = torch.autograd.grad(got, now)
    torch.testing.assert_close(slope, 2 * (now - 1.5 * done[1] + 0.5 * done[0]).detach())


def test_momentum_lies_between_rest_and_even_motion():
    points, times = track(7, 2, 3), irregular(7)
    rest = velocity_loss(points[1:], reduction="none")
    torch.testing.assert_close(acceleration_loss(points, momentum=0.0, reduction="none"), rest)
    uniform = times[:, None, None] * track(2, 3) + track(2, 3, seed=1)
    speed = ((uniform[1] - uniform[0]) / (times[1] - times[0])).square().sum(-1)
    between = ((times[2:] - times[:-2]) / 2)[:, None]
    halved = slowing_loss(uniform, times=times, reduction="none")
    torch.testing.assert_close(halved, speed / 4 / between**2)


def test_known_motions_at_irregular_times():
    times = irregular(8)
    speed, change = track(3, 3), track(3, 3, seed=1)
    t = times[:, None, None]
    falling = track(3, 3, seed=2) + speed * t + change * t**2 / 2
    # Of the quadratic, divided differences are exact; of 8 frames there are 6 with neighbours.
    expected = change.square().sum(-1).expand(6, 3)
    torch.testing.assert_close(acceleration_loss(falling, times=times, reduction="none"), expected)
    uniform = speed * t
    expected = speed.square().sum(-1).expand(7, 3)
    torch.testing.assert_close(velocity_loss(uniform, times=times, reduction="none"), expected)
    assert acceleration_loss(uniform, times=times) < 1e-20
    assert velocity_loss(track(1, 3, 3).expand(8, 3, 3), times=times) == 0


@pytest.mark.parametrize("loss", OF_POINTS)
def test_frames_of_even_times_only_change_the_unit(loss):
    points = track(2, 6, 4, 3)
    rate = 30.0
    power = {velocity_loss: 2, acceleration_loss: 4, slowing_loss: 4}[loss]
    torch.testing.assert_close(
        loss(points, times=torch.arange(6).double() / rate), rate**power * loss(points)
    )


@pytest.mark.parametrize("loss", OF_POINTS)
def test_translation_reversal_and_order_of_points_do_not_matter(loss):
    points = track(6, 4, 3)
    torch.testing.assert_close(loss(points + track(3)), loss(points))
    turn = axis_angle_to_matrix(track(3))
    torch.testing.assert_close(loss(points @ turn.T), loss(points))
    torch.testing.assert_close(loss(points[:, [2, 0, 3, 1]]), loss(points))
    if loss is not slowing_loss:
        torch.testing.assert_close(loss(points.flip(0)), loss(points))


@pytest.mark.parametrize("loss", OF_POINTS)
def test_a_lost_frame_takes_its_neighbours_terms_with_it(loss):
    points = track(7, 2, 3).requires_grad_()
    times = irregular(7)
    seen = torch.ones(7, 1, dtype=torch.float64)
    seen[4] = 0
    broken, broken_times = points.clone(), times.clone()
    broken[4], broken_times[4] = torch.nan, torch.nan
    terms = loss(broken, times=broken_times, weights=seen, reduction="none")
    kept = {velocity_loss: [0, 1, 2, 5], acceleration_loss: [0, 1], slowing_loss: [0, 1]}[loss]
    whole = loss(points, times=times, reduction="none")
    torch.testing.assert_close(terms[kept], whole[kept])
    assert terms.count_nonzero() == 2 * len(kept)
    (slope,) = torch.autograd.grad(loss(broken, times=broken_times, weights=seen), points)
    assert slope.isfinite().all()
    # Padding at the end, all of it at one time.
    padded = torch.cat((times[:5], times[4:5].expand(2)))
    seen = (torch.arange(7) < 5)[:, None]
    torch.testing.assert_close(loss(points, times=padded, weights=seen), loss(points[:5], times=times[:5]))


@pytest.mark.parametrize("loss", [*OF_POINTS, angular_velocity_loss])
@pytest.mark.parametrize("frames", [0, 1, 2])
def test_too_few_frames_are_0(loss, frames):
    points = torch.zeros(2, frames, 3, 3)
    if loss is angular_velocity_loss:
        points = points[..., None, :, :] + torch.eye(3)
    assert loss(points) == loss(points, times=torch.arange(float(frames))) == 0
    assert loss(points, weights=torch.ones(frames, 1)) == 0


@few
@given(seeds)
def test_angular_velocity_equals_scipys(seed):
    rotations = Rotation.from_quat(np.random.default_rng(seed).normal(size=(10, 4)))
    matrices = torch.from_numpy(rotations.as_matrix()).reshape(5, 2, 3, 3)
    times = irregular(5, seed)
    expected = [
        [(rotations[2 * t + j].inv() * rotations[2 * t + 2 + j]).magnitude() for j in range(2)]
        for t in range(4)
    ]
    speeds = np.array(expected) / np.diff(times)[:, None]
    got = angular_velocity_loss(matrices, times=times, penalty="l1", reduction="none")
    np.testing.assert_allclose(got, speeds, rtol=1e-10)
    for pose_format in ("axis_angle", "quaternion", "rotation_6d"):
        same = angular_velocity_loss(from_matrix(matrices, pose_format), pose_format=pose_format, times=times)
        assert same.item() == pytest.approx((speeds**2).mean(), rel=1e-6)


def test_even_turning_has_its_rate():
    times = irregular(9)
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    turning = axis_angle_to_matrix(times[:, None, None] * 2.5 * axis)
    got = angular_velocity_loss(turning, times=times, penalty="l1", reduction="none")
    torch.testing.assert_close(got, torch.full((8, 1), 2.5, dtype=torch.float64))
    assert angular_velocity_loss(turning[:1].expand(9, 1, 3, 3)) < 1e-30


def test_angular_velocity_is_the_geodesic_loss_of_neighbours():
    matrices = axis_angle_to_matrix(track(2, 5, 3, 3))
    got = angular_velocity_loss(matrices)
    expected = geodesic_loss(matrices[:, 1:], matrices[:, :-1], penalty="l2")
    torch.testing.assert_close(got, expected)
    assert got < math.pi**2


def test_mistakes_are_named(unchecked):
    for loss in OF_POINTS:
        with pytest.raises(
            ValueError, match=r"points: expected shape \(\*batch, any, any, any\), got \(5, 3\)"
        ):
            loss(torch.zeros(5, 3))
        with pytest.raises(TypeError, match="times: expected a torch.Tensor, got list"):
            loss(torch.zeros(5, 4, 3), times=[0.0, 0.1, 0.2, 0.3, 0.4])
        with pytest.raises(ValueError, match="penalty: expected 'l1'"):
            loss(torch.zeros(5, 4, 3), penalty="l3")
    with pytest.raises(ValueError, match="rotations: expected shape"):
        angular_velocity_loss(torch.zeros(5, 3, 3))
    with pytest.raises(ValueError, match="pose_format: expected one of"):
        angular_velocity_loss(torch.zeros(5, 2, 3, 3), pose_format="euler")


@pytest.mark.parametrize(
    "times", [[0.0, 0, 1], [0.0, 2, 1], [0.0, math.nan, 1], [1.7e9, 1.7e9 + 0.03, 1.7e9 + 0.06]]
)
def test_times_that_do_not_ascend_are_refused(times):
    """Seconds since 1970 are 128 s apart in float32."""
    times = torch.tensor(times)
    for loss in OF_POINTS:
        with pytest.raises(ValueError, match="times: expected ascending seconds, which torch.float32 tells"):
            loss(torch.zeros(3, 2, 3), times=times)
    with pytest.raises(ValueError, match="times: expected ascending seconds"):
        angular_velocity_loss(torch.eye(3).expand(3, 2, 3, 3), times=times)
    lost = torch.tensor([1.0, 0, 1])[:, None]
    assert velocity_loss(torch.zeros(3, 2, 3), times=times, weights=lost) == 0


def test_seconds_of_a_clock_need_their_digits_and_leave_the_type_of_the_points():
    points, seconds = track(6, 2, 3).float(), irregular(6)
    for loss in OF_POINTS:
        found = loss(points, times=1.7e9 + seconds)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(points, times=seconds.float()), rtol=1e-3, atol=0)
