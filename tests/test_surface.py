"""The surface in blocks against its definition in `agebody.engine.deform`."""

import numpy as np
import pytest
import torch

from agebody import SMPL
from agebody.engine import deform
from agebody.engine.surface import BLOCK, BODIES, PosedSurface


@pytest.mark.parametrize(
    ("num_vertices", "num_joints", "num_coefficients", "batch", "block"),
    [
        (1, 1, 1, 1, BLOCK),
        (10, 2, 3, 2, BLOCK),
        (BLOCK, 3, 4, 2, BLOCK),
        (3 * BLOCK + 7, 5, 7, 3, BLOCK),
        (BLOCK + 1, 24, 11, BODIES + 3, BLOCK),
        (3 * BLOCK + 7, 5, 7, 3, 3 * BLOCK + 7),  # all in one block
        (100, 5, 7, BODIES + 3, 1),
    ],
)
def test_equals_the_definition_in_values_and_gradients(
    num_vertices, num_joints, num_coefficients, batch, block
):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(num_coefficients, num_vertices, 3))
    weights = rng.random((num_vertices, num_joints)) * (rng.random((num_vertices, num_joints)) < 0.5) + 1e-3
    weights /= weights.sum(axis=1, keepdims=True)
    surface = PosedSurface(directions, weights, dtype=torch.float64, block=block)
    shapes = (batch, num_coefficients), (batch, num_joints, 3, 4), (batch, 3)
    inputs = [torch.tensor(rng.normal(size=shape), requires_grad=True) for shape in shapes]
    coefficients, transforms, translation = inputs
    rest = deform.rest_surface(
        torch.zeros(num_vertices, 3, dtype=torch.float64),
        torch.from_numpy(directions.transpose(1, 2, 0).copy()),
        coefficients,
    )
    expected = (
        deform.linear_blend_skinning(rest, transforms, torch.from_numpy(weights)) + translation[:, None]
    )
    got = surface(*inputs)
    # Sums of some twenty terms of order one in float64, and of all vertices in the gradients.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    upstream = torch.tensor(rng.normal(size=got.shape))
    for a, b in zip(
        torch.autograd.grad(got, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_base_surface_and_correctives_of_low_precision(mannequin_asset):
    body = SMPL(mannequin_asset, corrective_dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    betas = torch.randn(3, 10, generator=generator, requires_grad=True)
    pose = 0.3 * torch.randn(3, 69, generator=generator)
    shaped, direct = (
        body.shape(betas=betas)(body_pose=pose).vertices,
        body(betas=betas, body_pose=pose).vertices,
    )
    torch.testing.assert_close(shaped, direct, rtol=0, atol=2e-6)
    a, b = (torch.autograd.grad(v.square().mean(), betas)[0] for v in (shaped, direct))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_one_argument_alone():
    rng = np.random.default_rng(0)
    surface = PosedSurface(rng.normal(size=(2, 40, 3)), np.ones((40, 1)), dtype=torch.float64)
    translation = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    coefficients, transforms = torch.ones(3, 2).double(), torch.ones(3, 1, 3, 4).double()
    (gradient,) = torch.autograd.grad(surface(coefficients, transforms, translation).sum(), translation)
    assert torch.equal(gradient, torch.full_like(gradient, 40))


def test_large_results_equal_small_ones():
    """Results of more than four megabytes lie in memory from elsewhere."""
    rng = np.random.default_rng(0)
    surface = PosedSurface(rng.normal(size=(2, 7000, 3)), np.ones((7000, 1)), dtype=torch.float32)
    inputs = [torch.from_numpy(rng.normal(size=s)).float() for s in ((60, 2), (60, 1, 3, 4), (60, 3))]
    large = surface(*inputs)
    assert large.is_contiguous()
    assert large.dtype == torch.float32
    torch.testing.assert_close(large[:3], surface(*(x[:3] for x in inputs)), rtol=0, atol=1e-5)
