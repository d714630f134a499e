"""Modules that detect changes of their arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SMALL = 64
_NUMBERS = count()


class WatchedArrays(nn.Module):
    """A module that detects when one of its arrays is replaced or written to, in whatever way.

    A tensor counts the writes to it, but not those through ``.data`` or NumPy. These are possible only after
    the array was read as an attribute, so from then on it is compared with a copy at every call. Before, only
    its identity and its count of writes are checked, which costs nothing.
    """

    _arrays: Mapping[str, tuple[Tensor, int]] = {}
    """Intact arrays with the number of writes to them, minus those to `_common`."""
    _common = ""
    """An array that is never written to alone: its writes are broadcasts of DistributedDataParallel."""

    def _put(self, name: str, array: np.ndarray, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):  # tensors made in inference mode cannot be trained through later
            value = torch.from_numpy(np.array(array, order="C"))
            value = value.to(torch.empty(0).device, dtype)  # which a device context sets, also in torch 2.5
            self.register_buffer(name, value, persistent=False)

    def _originals(self) -> dict[str, np.ndarray]:
        """Return the arrays that the module was built with, under their names."""
        raise NotImplementedError

    def _watch(self, names: Iterable[str]) -> None:
        """Record the present state of these arrays as the one that the module was built with."""
        arrays = {name: value for name in names if (value := self._array(name)) is not None}
        common = _writes(self._array(self._common))
        self._arrays = {name: (array, _writes(array) - common) for name, array in arrays.items()}
        self._handed: set[str] = set()
        self._number = next(_NUMBERS)  # read by what is compiled, lest another module's graph be taken
        self._copies = {n: a.detach().clone() for n, a in arrays.items() if a.numel() <= _SMALL}
        self._answer: set[str] | None = None
        self._is_copy = False

    def __getattr__(self, name: str) -> Any:
        """Return an array, and keep a copy of its values."""
        if name in self._arrays and not torch.compiler.is_compiling():
            if name not in self._copies and self._is_untouched(name):
                self._copies[name] = self._arrays[name][0].detach().clone()
            self._handed.add(name)
        return super().__getattr__(name)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Any:
        """Return all arrays, and keep copies of their values."""
        for name in self._arrays:
            getattr(self, name)
        return super().named_buffers(*args, **kwargs)

    def _array(self, name: str) -> Any:
        """Return an array without counting it as read; None where it was deleted."""
        for place in (self._buffers, self._parameters, self.__dict__):
            if name in place:
                return place[name]
        return None

    def _is_untouched(self, name: str) -> bool:
        array, writes = self._arrays[name]
        now = self._array(name)
        if now is not array or now.requires_grad:
            return False
        return _writes(now) - _writes(self._array(self._common)) == writes

    def _is_intact(self, name: str) -> bool:
        if name not in self._handed and self._is_untouched(name):
            return True
        now, copy = self._array(name), self._copies.get(name)
        if not isinstance(now, Tensor) or now.requires_grad:
            return False
        if now.is_meta:
            return self._is_untouched(name)
        return copy is not None and _same(now, copy)

    def _changed(self, names: Iterable[str]) -> set[str]:
        """Return which of these arrays were replaced or changed since the module was built.

        On a GPU, an array that was read is compared there, and the call waits for the result; while a CUDA
        graph is recorded, the result is that of the previous call.
        """
        if self._answer is not None and (self._is_copy or _is_recording()):
            return self._answer
        self._answer = {name for name in names if name not in self._arrays or not self._is_intact(name)}
        return self._answer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the module; intact arrays get the numbers they were built with, in the new precision."""
        intact = self._arrays.keys() - self._changed(self._arrays)
        super()._apply(fn, recurse)
        for name, array in self._originals().items():
            now = self._array(name)
            if now is None or now.is_meta or name not in {*intact, self._common}:
                continue
            original = torch.from_numpy(np.array(array, order="C")).to(now)
            if not _same(now, original):
                self._buffers[name] = original
        self._watch(intact)
        return self

    def _replicate_for_data_parallel(self) -> Any:
        """Return a replica that keeps the result of this module, because its arrays are new tensors."""
        self._changed(self._arrays)
        replica: Any = super()._replicate_for_data_parallel()
        replica._is_copy = True
        return replica

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the names of intact arrays: copies have new tensors."""
        return {**self.__dict__, "_arrays": self._arrays.keys() - self._changed(self._arrays), "_copies": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Record the new tensors."""
        super().__setstate__(state)
        self._watch(state["_arrays"])


def _is_recording() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _writes(tensor: Tensor | None) -> int:
    """Return how often a tensor was changed; 0 for one made in inference mode, which has no counter."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    try:
        return torch.equal(a, b.to(a.device))
    except RuntimeError:  # a tensor of torch.func, whose numbers nobody can look at
        return False
