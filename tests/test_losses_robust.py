from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody.losses import charbonnier, gmof, huber, reprojection_loss, tals
from agebody.losses.robust import penalize

few = settings(max_examples=25)
ROBUST = {"gmof": gmof, "huber": huber, "charbonnier": charbonnier}
each = pytest.mark.parametrize("penalty", ROBUST.values(), ids=ROBUST)
residuals = st.floats(-1e6, 1e6).filter(lambda r: abs(r) > 1e-100 or r == 0)
scales = st.floats(1e-3, 1e3)


def slope(penalty, residual: torch.Tensor) -> torch.Tensor:
    residual = residual.detach().requires_grad_()
    return torch.autograd.grad(penalty(residual).sum(), residual)[0]


@few
@given(residuals, scales)
def test_gmof_is_its_formula(residual, rho):
    r, s = Fraction(residual), Fraction(rho)
    exact = s**2 * r**2 / (s**2 + r**2)
    got = gmof(torch.tensor(residual, dtype=torch.float64), rho).item()
    # Seven operations, each of which rounds once; below 1e-300 the squares underflow.
    assert got == pytest.approx(float(exact), rel=8 * 2**-53, abs=1e-300)


def test_gmof_saturates_at_rho_squared_and_is_half_of_it_at_rho():
    rho = 100.0
    far = torch.tensor([1e9, -1e9], dtype=torch.float64)
    torch.testing.assert_close(gmof(far, rho), torch.full_like(far, rho**2))
    assert gmof(torch.tensor(rho), rho) == pytest.approx(rho**2 / 2, rel=4 * 2**-23)
    assert gmof(torch.tensor(3.0), torch.tensor(4.0)) == pytest.approx(9 * 16 / 25)


def test_gmof_pulls_most_at_rho_over_root_three_and_then_lets_go():
    rho = 2.0
    residual = torch.linspace(0, 20, 20001, dtype=torch.float64)
    pull = slope(partial(gmof, rho=rho), residual)
    torch.testing.assert_close(pull, 2 * residual / (1 + (residual / rho) ** 2) ** 2)
    assert residual[pull.argmax()] == pytest.approx(rho / 3**0.5, abs=1e-3)  # the step of the grid
    assert (pull[residual > rho].diff() < 0).all()


@few
@given(residuals, scales)
def test_huber_is_twice_torchs(residual, delta):
    r = torch.tensor(residual, dtype=torch.float64)
    expected = 2 * torch.nn.functional.huber_loss(r, torch.zeros_like(r), delta=delta)
    torch.testing.assert_close(huber(r, delta), expected)


@few
@given(residuals, scales)
def test_charbonnier_is_its_formula(residual, epsilon):
    # As the difference of two lengths; sixteen digits of it are left only where it is computed with thirty.
    r, e = np.longdouble(residual), np.longdouble(epsilon)
    exact = 2 * e * (np.sqrt(r * r + e * e) - e)
    lost = 2 * e * (abs(r) + e) * np.finfo(np.longdouble).eps * 4
    got = charbonnier(torch.tensor(residual, dtype=torch.float64), epsilon).item()
    assert got == pytest.approx(float(exact), rel=1e-15, abs=float(lost))


@each
@few
@given(scale=scales)
def test_near_zero_all_are_the_square_and_beyond_they_are_less(penalty, scale):
    small = scale * torch.tensor([-1e-5, 1e-7, 1e-3], dtype=torch.float64)
    # What follows the square is of relative order (r / scale)^2.
    torch.testing.assert_close(penalty(small, scale), small**2, rtol=2e-6, atol=0)
    large = scale * torch.tensor([-3.0, 2.0, 50.0], dtype=torch.float64)
    assert (penalty(large, scale) < large**2).all()


@each
def test_symmetric_rising_and_flat_at_zero(penalty):
    function = lambda r: penalty(r, 0.5)  # noqa: E731
    residual = torch.linspace(0, 5, 101, dtype=torch.float64)
    assert torch.equal(function(residual), function(-residual))
    assert (function(residual).diff() > 0).all()
    assert function(residual)[0] == 0
    assert slope(function, residual)[0] == 0
    some = (residual[::20] + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(function, some)
    assert torch.autograd.gradgradcheck(function, some)


@each
@few
@given(scale=scales, factor=scales)
def test_a_change_of_unit_changes_the_cost_by_its_square(penalty, scale, factor):
    residual = torch.tensor([-3.0, 0.2, 1.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(
        penalty(factor * residual, factor * scale), factor**2 * penalty(residual, scale), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("penalty", [huber, charbonnier])
def test_an_outlier_pulls_no_more_than_a_residual_of_the_scale(penalty):
    residual = torch.tensor([-1e8, 1e8], dtype=torch.float64)
    torch.testing.assert_close(slope(lambda r: penalty(r, 3.0), residual), 6 * residual.sign())


def test_penalize_by_name_and_by_function():
    residual = torch.tensor([-2.0, 0.0, 3.0])
    assert penalize(residual, "l1").tolist() == [2, 0, 3]
    assert penalize(residual, "l2").tolist() == [4, 0, 9]
    assert torch.equal(penalize(residual, torch.cos), residual.cos())


def test_unknown_penalty(unchecked):
    with pytest.raises(ValueError, match="penalty: expected 'l1', 'l2' or a function of residuals, got 'l3'"):
        penalize(torch.zeros(1), "l3")  # pyright: ignore


@pytest.mark.parametrize("penalty", [gmof, charbonnier])
def test_large_residuals_do_not_overflow_in_sixteen_bits(penalty):
    residual = torch.tensor([0.0, 2.0, 3.0, 300.0, -2000.0])
    expected = penalty(residual, 10.0)
    torch.testing.assert_close(penalty(residual.half(), 10.0).float(), expected, rtol=5e-3, atol=0)


def test_tals_scales_points_nearer_than_their_threshold():
    pred = torch.tensor([[0.3, 0.4], [0.3, 0.4], [0.0, 0.1], [float("nan"), 0.0]], requires_grad=True)
    threshold = torch.tensor([0.49, 0.51, 0.0, 1.0])
    loss = partial(reprojection_loss, pred, torch.zeros(4, 2), weights=torch.tensor([1.0, 1, 2, 0]))
    costs = loss(penalty=partial(tals, threshold=threshold, scale=0.1), reduction="none")
    torch.testing.assert_close(costs, torch.tensor([0.7, 0.07, 0.2, 0.0]))
    mean = loss(penalty=partial(tals, threshold=0.6, scale=0.1))
    assert mean.item() == pytest.approx((0.07 + 0.07 + 0.02) / 4)  # nearer points still count in full
    mean.backward()
    torch.testing.assert_close(pred.grad, torch.tensor([[1.0, 1], [1, 1], [0, 2], [0, 0]]) * 0.1 / 4)


def test_tals_is_that_of_the_public_code_at_the_root_of_its_threshold():
    """There a confidence times the squared distance is compared."""
    generator = torch.Generator().manual_seed(0)
    pred, confidences = torch.rand(6, 44, 2, generator=generator), torch.rand(6, 44, generator=generator)
    limits = 0.3 * torch.rand(44, generator=generator)
    near = confidences * pred.square().sum(-1) <= limits
    assert 0.2 < near.float().mean() < 0.8
    expected = (confidences[..., None] * pred * torch.where(near, 0.05, 1.0)[..., None]).sum()
    found = reprojection_loss(
        pred,
        torch.zeros_like(pred),
        weights=confidences,
        penalty=partial(tals, threshold=(limits / confidences).sqrt()),
        reduction="sum",
    )
    torch.testing.assert_close(found, expected)


@each
@pytest.mark.parametrize(
    "kind", [np.uint8, np.int8, np.float32, lambda n: torch.tensor(n, dtype=torch.uint8)]
)
def test_a_scale_of_any_type_of_number_is_that_number(penalty, kind, unchecked):
    """100 * 100 is no number of 8 bits."""
    residual = torch.tensor([3.0, 50.0, 1000.0])
    torch.testing.assert_close(penalty(residual, kind(100)), penalty(residual, 100.0))


@each
@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_lengths_are_refused(penalty, scale, unchecked):
    with pytest.raises(ValueError, match="(rho|delta|epsilon): expected a finite number above 0, got"):
        penalty(torch.ones(2), scale)
