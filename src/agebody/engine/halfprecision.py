"""Matrix products of 16-bit factors with sums in float32: half the memory, with a known error.

A float16 number is one factor. A bfloat16 number has 8 significant bits, too few for a body, so a number
is split in two, ``high = bfloat16(x)`` and ``low = bfloat16(x - high)``, and ``x y`` becomes
``high high + low high + high low``: one product of three times the length, with the accuracy of 16 bits.

Processors without such arithmetic multiply the same 16-bit numbers in float32: the same products exactly,
and sums that differ only in their order.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)


def factor(matrix: Float[Tensor, "K N"], dtype: torch.dtype) -> Float[Tensor, "PK N"]:
    """Prepare a constant right factor for the products below.

    Args:
        matrix: in float32 or float64. For float16 it must stay below 65504, and values below 6e-8 are lost.
        dtype: torch.float16, or torch.bfloat16, for which the rows ``[high; high; low]`` are kept.
    """
    if dtype not in DTYPES:
        raise TypeError(f"dtype: expected torch.bfloat16 or torch.float16, got {dtype}")
    if dtype == torch.float16:
        return matrix.to(dtype)
    high, low = _split(matrix)
    return torch.cat((high, high, low))


def product(
    x: Float[Tensor, "M K"],
    factor: Float[Tensor, "PK N"],
    *,
    base: Float[Tensor, "M N"] | None = None,
    out: Float[Tensor, "M N"] | None = None,
) -> Float[Tensor, "M N"]:
    """Return ``x @ matrix`` in float32, for the matrix given to `factor`; x within float16's range.

    Args:
        x: left factor.
        factor: right factor, of `factor`.
        base: is added.
        out: the result is written here; it may be the base.
    """
    if factor.dtype == torch.float16:
        return _multiply(x.to(factor.dtype), factor, base, out)
    high, low = _split(x)
    return _multiply(torch.cat((high, low, high), 1), factor, base, out)


def transposed_product(x: Float[Tensor, "M N"], factor: Float[Tensor, "PK N"]) -> Float[Tensor, "M K"]:
    """Return ``x @ matrix.T`` in float32, the gradient of `product`; x may have any magnitude."""
    if factor.dtype == torch.float16:
        largest = x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return _multiply((x / largest).to(factor.dtype), factor.T) * largest
    high, low = _split(x)
    size = length(factor)
    by_high, by_low = _multiply(high, factor[size:].T).split(size, 1)
    return by_high + by_low + _multiply(low, factor[:size].T)


def length(factor: Float[Tensor, "PK N"]) -> int:
    """Return K, the number of rows of the matrix given to `factor`."""
    return len(factor) if factor.dtype == torch.float16 else len(factor) // 3


def matrix(factor: Float[Tensor, "PK N"]) -> Float[Tensor, "K N"]:
    """Return the rounded matrix that a factor represents, in float32."""
    if factor.dtype == torch.float16:
        return factor.float()
    high, _, low = factor.float().chunk(3)
    return high + low


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16()
    return high, (x - high).bfloat16()


def _multiply(a: Tensor, b: Tensor, base: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    if not a.is_cuda:
        a, b = a.float(), b.float()
        return torch.mm(a, b, out=out) if base is None else torch.addmm(base, a, b, out=out)
    if _TORCH < (2, 8):
        raise RuntimeError(
            "corrective_dtype: on CUDA this needs torch >= 2.8 (products of 16-bit factors with a float32 "
            f"result), this is {torch.__version__}; install a newer torch or leave corrective_dtype out"
        )
    if base is None:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    if _TORCH < (2, 11):  # older ones add only what has 16 bits, too
        return torch.add(base, torch.mm(a, b, out_dtype=torch.float32), out=out)
    return torch.addmm(base, a, b, out_dtype=torch.float32, out=out)


_TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
