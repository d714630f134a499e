"""What callers give to a body: checked once, at the edge, and brought to the shapes that layers work on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from agebody.rotations import ENTRY_SHAPES, PoseFormat, no_rotation


def read_tensor(name: str, value: Tensor | None, entry: tuple[int, ...], like: Tensor) -> Tensor:
    """One argument, (*batch, *entry), in the dtype and on the device of another tensor; zeros if not given.

    Raises:
        TypeError, ValueError: it is no tensor, or one of another dtype, device or shape.
    """
    if value is None:
        return torch.zeros(entry, dtype=like.dtype, device=like.device)
    value = _checked(name, value, like)
    if not _ends_with(value.shape, entry):
        raise ValueError(f"{name}: expected shape {_expected(entry)}, got {tuple(value.shape)}")
    return value


def read_rotations(
    name: str, value: Tensor | None, pose_format: PoseFormat, count: int | None, like: Tensor
) -> Tensor:
    """Rotations (*batch, count, *entry), or (*batch, *entry) where count is None; no rotation if not given.

    Raises:
        TypeError, ValueError: as in `read_tensor`.
    """
    entry = ENTRY_SHAPES[pose_format]
    several = entry if count is None else (count, *entry)
    if value is None:
        return no_rotation(pose_format, like.dtype, like.device).expand(several)
    value = _checked(name, value, like)
    if not _ends_with(value.shape, several):
        if count is None or value.dim() == 0 or value.shape[-1] != math.prod(several):
            flat = "" if count is None else f" or {_expected((math.prod(several),))}"
            raise ValueError(
                f"{name}: expected shape {_expected(several)}{flat} for pose_format={pose_format!r}, "
                f"got {tuple(value.shape)}"
            )
        value = value.unflatten(-1, several)
    return value


def broadcast(**batches: tuple[int, ...]) -> tuple[int, ...]:
    """The batch that all broadcast to.

    Raises:
        ValueError: there is none.
    """
    shapes = [tuple(shape) for shape in batches.values() if shape] or [()]
    if not torch.compiler.is_compiling() and all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    try:
        return tuple(torch.broadcast_shapes(*batches.values()))
    except RuntimeError:
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in batches.items())
        raise ValueError(f"batch dimensions do not broadcast: {listed}") from None


def flatten(tensor: Tensor, batch: tuple[int, ...], entry_dims: int) -> Tensor:
    """(*some batch, *entry) as (B, *entry), broadcast to the whole batch."""
    if len(batch) == 1 and not torch.compiler.is_compiling() and tensor.shape[:-entry_dims] == batch:
        return tensor
    entry = tensor.shape[tensor.dim() - entry_dims :]
    return tensor.expand(*batch, *entry).reshape(math.prod(batch), *entry)


def _checked(name: str, value: Any, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    # Half precision, as networks under autocast give it, goes up without loss; nothing else is cast.
    if value.dtype not in (like.dtype, torch.float16, torch.bfloat16):
        raise TypeError(f"{name}: expected {like.dtype}, the layer's dtype, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(
            f"{name}: expected a tensor on {like.device}, where the layer is, got {value.device}"
        )
    return value if value.dtype == like.dtype else value.to(like.dtype)


def _ends_with(shape: tuple[int, ...], entry: tuple[int, ...]) -> bool:
    # From the last dimension on: a batch that may have any size is then never compared with a number.
    pairs = zip(reversed(shape), reversed(entry), strict=False)
    return len(shape) >= len(entry) and all(n == m for n, m in pairs)


def _expected(entry: tuple[int, ...]) -> str:
    return "(" + ", ".join(["*batch", *map(str, entry)]) + ")"
