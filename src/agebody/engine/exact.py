"""Modules of constant arrays whose numbers no change of the module loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agebody.engine.batched import building


class ExactBuffers(nn.Module):
    """Constant arrays as non-persistent buffers.

    Another precision is cast from the arrays again, and ``half``, ``bfloat16`` and ``to_empty`` keep the
    numbers: as a layer, the module stays in its precision within a network of 16 bits.
    """

    exact: dict[str, np.ndarray]
    """The arrays, by the names of their buffers."""

    def keep(
        self,
        arrays: Mapping[str, np.ndarray],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """Register arrays as buffers, floating-point ones in a precision."""
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        device = read_device(device)
        own = {name: np.array(array, order="C") for name, array in arrays.items()}
        self.exact = getattr(self, "exact", {}) | own
        with building():
            for name, array in own.items():
                self.register_buffer(name, _cast(array, dtype).to(device), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the arrays."""
        return next(buffer.dtype for buffer in self.buffers(recurse=False) if buffer.is_floating_point())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the buffers, and restore their numbers."""
        before = self.dtype
        super()._apply(fn, recurse)
        dtype = self.dtype if self.dtype in (torch.float32, torch.float64) else before
        for name, array in self.exact.items():
            moved, exact = getattr(self, name), _cast(array, dtype)
            setattr(self, name, moved.to(exact.dtype) if moved.is_meta else exact.to(moved.device))
        return self


def register_constants(
    module: nn.Module, arrays: Mapping[str, np.ndarray], dtype: torch.dtype, device: torch.device
) -> None:
    """Register arrays as non-persistent buffers: floating-point ones in a precision, integers as int64."""
    for name, array in arrays.items():
        kind = dtype if array.dtype.kind == "f" else torch.int64 if array.dtype.kind in "iu" else None
        tensor = torch.from_numpy(np.array(array, order="C")).to(device, kind)
        module.register_buffer(name, tensor, persistent=False)


def read_device(device: Any) -> torch.device | None:
    """Check that tensors can be made on a device; None, torch's own, stays None."""
    try:
        return None if device is None else torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:  # such as: torch was built without CUDA
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that torch has here, such as 'cpu', got {device!r}: {why}"
        ) from None


def _cast(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return a copy as a tensor; only floating-point numbers change their type."""
    tensor = torch.from_numpy(array)
    return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
