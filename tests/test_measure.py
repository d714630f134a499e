import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agebody.measure import stature


@given(
    batch=st.lists(st.integers(0, 3), max_size=3),
    vertices=st.integers(1, 20),
    shift=st.floats(-5, 5),
    seed=st.integers(0, 99),
)
def test_stature_is_the_extent_along_y_wherever_the_body_stands(batch, vertices, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    body = torch.rand(*batch, vertices, 3, generator=generator, dtype=torch.float64)
    height = stature(body)
    assert height.shape == tuple(batch)
    y = body[..., 1]
    assert torch.equal(height, y.max(-1).values - y.min(-1).values)
    torch.testing.assert_close(stature(body + shift), height, rtol=0, atol=1e-14 * 10)


def test_the_gradient_is_on_the_highest_and_the_lowest_vertex_and_shared_in_a_tie():
    body = torch.tensor([[0.0, 2, 0], [1, 2, 0], [0, 1, 5], [3, 0, 0]], requires_grad=True)
    height = stature(body)
    height.backward()
    assert height.item() == 2
    assert body.grad is not None
    assert body.grad.tolist() == [[0, 0.5, 0], [0, 0.5, 0], [0, 0, 0], [0, -1, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stature_keeps_the_dtype(dtype):
    assert stature(torch.zeros(4, 7, 3, dtype=dtype)).dtype == dtype
