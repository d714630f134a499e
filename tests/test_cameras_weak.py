"""Weak-perspective cameras that a network trains: every scale has a gradient that leads back."""

import pytest
import torch

from agebody.cameras import (
    Camera,
    bev_to_translation,
    mahmr_to_translation,
    project_weak,
    weak_to_translation,
)

CAMERA = Camera(torch.tensor([1000.0, 1000.0]), torch.tensor([500.0, 400.0]))
BOX = torch.tensor([300.0, 200.0, 524.0, 424.0])
POINTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 0.5, 0.15])
WEAK = torch.tensor([0.9, 0.05, -0.1])
SCALES = [-6.0, -1.0, -0.05, 0.0, 0.01, 5.0, 20.0]


def loss(weak, box=BOX):
    target = project_weak(POINTS, WEAK, box, CAMERA).pixels
    return ((project_weak(POINTS, weak, box, CAMERA).pixels - target) / 224).abs().sum(-1).mean(-1)


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_recovers_from_any_start(scale):
    weak = torch.tensor([scale, 0.0, 0.0], requires_grad=True)
    for step in range(400):
        (gradient,) = torch.autograd.grad(loss(weak), weak)
        with torch.no_grad():
            weak -= (1 - step / 400) * gradient
    torch.testing.assert_close(weak.detach(), WEAK, rtol=0, atol=0.01)


def test_gradients_per_person_are_bounded():
    weak = torch.tensor([[scale, 0.0, 0.0] for scale in SCALES], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(weak, BOX[None]).sum(), weak)
    lengths = gradient.norm(dim=-1)
    assert lengths.isfinite().all()
    # 20 is a face at 4 cm from the camera; all others are of the size of a usual person's.
    assert lengths[:-1].max() < 2 * lengths[SCALES.index(0.01)]
    assert lengths.max() < 10 * lengths[SCALES.index(0.01)]


def test_equals_projecting_from_the_translation():
    weak = torch.tensor([[0.9, 0.05, -0.1], [0.02, 3.0, 1.0], [4.0, 0.0, 0.1]], dtype=torch.float64)
    camera, box, points = CAMERA.to(torch.float64), BOX.double(), POINTS.double()
    found = project_weak(points, weak, box, camera, size=(1000, 800))
    moved = points + weak_to_translation(weak, box, camera)[:, None]
    expected = camera.project(moved, size=(1000, 800))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("scale", [-1e3, -0.05, 0.0, 1e-9, 0.0099, 0.01, 0.5])
def test_translations_are_in_front_of_the_camera_for_every_scale(scale):
    for convert in (
        lambda weak: weak_to_translation(weak, BOX, CAMERA),
        lambda weak: bev_to_translation(weak),
    ):
        weak = torch.tensor([scale, 0.1, -0.2], requires_grad=True)
        translation = convert(weak)
        (gradient,) = torch.autograd.grad(translation.sum(), weak)
        assert translation.isfinite().all()
        assert gradient.isfinite().all()
        assert translation[2] > 0
        (by_depth,) = torch.autograd.grad(convert(weak)[2], weak)
        assert by_depth[0] < 0  # nearer as it grows


def test_mismatches_are_named():
    with pytest.raises(ValueError, match=r"batch dimensions do not broadcast: points \(3,\), weak \(4,\)"):
        project_weak(POINTS.expand(3, -1, -1), WEAK.expand(4, -1), BOX, CAMERA)
    with pytest.raises(TypeError, match="weak: expected torch.float32, that of points, got torch.float64"):
        project_weak(POINTS, WEAK.double(), BOX, CAMERA)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cam: bev_to_translation(cam, fov=60.0), "fov: expected an angle between 0 and pi"),
        (lambda cam: bev_to_translation(cam, epsilon=-1.0), "epsilon: expected a number of 0 or more"),
        (lambda cam: mahmr_to_translation(cam, cam[..., 0], resolution=0.0), "resolution: expected a side"),
    ],
)
def test_options_of_published_cameras_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3))
