"""How far two ways to the same numbers may be apart."""

from collections.abc import Iterable

import torch
from torch import Tensor


def assert_equal(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """To the bit."""
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


def assert_close(
    found: Iterable[Tensor], expected: Iterable[Tensor], roundings: float, dtype: torch.dtype
) -> None:
    """Off by so many roundings, in a floating type, of the largest number of each tensor."""
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        largest = float(e.detach().abs().max()) if e.numel() else 0.0
        atol = roundings * torch.finfo(dtype).eps * largest
        torch.testing.assert_close(f.to(e), e, rtol=0, atol=atol)
