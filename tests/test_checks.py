"""Weights and reductions, which all losses and metrics share."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agebody.checks import apply_mask, expect, read_count, read_positive, reduce, safe_norm

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(shapes, st.integers(0, 2**31))
def test_mean_divides_by_the_sum_of_weights(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    terms = torch.rand(shape, generator=generator, dtype=torch.float64)
    weights = torch.randint(0, 3, shape, generator=generator).double()
    kept = [(t * w).item() for t, w in zip(terms.flatten(), weights.flatten(), strict=True) if w]
    assert reduce(terms, weights, "sum").item() == pytest.approx(sum(kept))
    mean = sum(kept) / (weights.sum().item() or 1)
    assert reduce(terms, weights, "mean").item() == pytest.approx(mean)
    assert reduce(terms, 0.25 * weights, "mean").item() == pytest.approx(mean)
    torch.testing.assert_close(reduce(terms, weights, "none"), terms * weights)
    torch.testing.assert_close(reduce(terms, weights != 0, "sum"), terms[weights != 0].sum())
    full = terms.mean() if terms.numel() else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(reduce(terms, None, "mean"), full)


def test_weights_broadcast_to_the_entries():
    terms, weights = torch.ones(4, 3), torch.tensor([0.0, 1.0, 2.0])
    assert reduce(terms, weights, "sum") == 12
    assert reduce(terms, weights, "mean") == 1
    assert reduce(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), "mean") == 1.5
    assert reduce(terms, torch.tensor([True, False, False, True])[:, None], "mean") == 1


def test_hidden_entries_reach_neither_value_nor_gradient():
    values = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [torch.inf, 3.0]], requires_grad=True)
    weights = torch.tensor([2.0, 0.0, 0.0])
    total = reduce(apply_mask(values, weights, 1).square().sum(-1), weights, "mean")
    assert total == 5
    total.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0, 4.0], [0.0, 0.0], [0.0, 0.0]]
    assert apply_mask(values, None) is values


def test_no_entry_counts():
    values = torch.ones(3, requires_grad=True)
    total = reduce(values, torch.zeros(3), "mean")
    assert total == 0
    total.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 0, 0]
    for terms, weights in (
        (torch.ones(3), torch.zeros(3)),
        (torch.ones(0), None),
        (torch.ones(0), torch.ones(0)),
    ):
        assert reduce(terms, weights, "mean") == reduce(terms, weights, "sum", empty=torch.nan) == 0
        assert reduce(terms, weights, "mean", empty=torch.nan).isnan()


def test_16_bits_hold_the_sum_of_many_weights():
    """70 000 has no place in float16, and above 2048 it does not count by ones."""
    for dtype in (torch.float16, torch.bfloat16):
        assert reduce(torch.ones(70_001), torch.ones(70_001, dtype=dtype), "mean") == 1
        terms = torch.tensor([1.0, 0.0], dtype=dtype).repeat(1500)
        assert reduce(terms, torch.ones(3000, dtype=dtype), "mean").dtype == torch.float32
        assert reduce(terms, torch.ones(3000, dtype=dtype), "mean") == 0.5


def test_safe_norm():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    lengths = safe_norm(vectors)
    assert lengths.tolist() == [5, 0]
    lengths.sum().backward()
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, vectors.new_tensor([[0.6, 0.8], [0, 0]]))
    inside = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(safe_norm, (inside,))
    assert torch.autograd.gradgradcheck(safe_norm, (inside,))


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match="reduction: expected one of none, mean, sum, got 'avg'"):
        reduce(torch.ones(2), None, "avg")  # pyright: ignore
    with pytest.raises(ValueError, match=r"weights: expected a shape that .* to \(2, 3\), got \(2,\)"):
        reduce(torch.ones(2, 3), torch.ones(2), "sum")
    with pytest.raises(ValueError, match=r"points: expected shape \(\*batch, any, 3\), got \(4, 2\)"):
        expect("points", torch.ones(4, 2), None, 3)
    with pytest.raises(ValueError, match=r"points: expected shape \(\*batch, any, 3\), got \(3,\)"):
        expect("points", torch.ones(3), None, 3)
    with pytest.raises(TypeError, match="points: expected a floating type, got torch.int64"):
        expect("points", torch.ones(4, 3).long(), None, 3)
    with pytest.raises(TypeError, match="points: expected a torch.Tensor, got list"):
        expect("points", [1.0], 3)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2), torch.tensor(2.0)])
def test_positive_numbers_are_those_of_any_type(value):
    assert read_positive("x", value) == 2


@pytest.mark.parametrize(
    "value", [0, -1.0, math.nan, math.inf, "2", True, None, [1.0], np.ones(2), torch.ones(2)]
)
def test_other_numbers_are_refused_in_one_line(value):
    with pytest.raises(ValueError, match=r"^x: expected a length above 0 \[m\], got .+") as refusal:
        read_positive("x", value, "a length", " [m]")
    assert "\n" not in str(refusal.value)
    if value is not math.inf:
        with pytest.raises(ValueError, match="x"):
            read_positive("x", value, finite=False)


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True, None])
def test_counts_below_the_least_are_refused(value):
    with pytest.raises(ValueError, match="^x: expected a whole number of 1 or more, got"):
        read_count("x", value, least=1)
    assert read_count("x", np.int64(1), least=1) == 1
    assert read_positive("x", math.inf, finite=False) == math.inf
