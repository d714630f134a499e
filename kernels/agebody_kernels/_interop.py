"""The bridge between torch and Warp: kernels per floating type, lazy start, no copies, torch's stream."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import warp as wp
from torch import Tensor

BLOCK_DIM = 128
"""Threads per block on CUDA. One number for all kernels, so that each module is compiled once."""

_PATIENCE = 1.0
"""Seconds of loading kernels after which a message is printed."""

Constants = TypeVar("Constants", bound=tuple[Any, ...])

_SCALARS = {torch.float32: wp.float32, torch.float64: wp.float64}


class Types(NamedTuple):
    """The types and decorators that kernels of one floating type are written with."""

    scalar: Any
    vec3: Any
    mat33: Any
    mat34: Any
    kernel: Callable[..., Any]
    """Decorator of kernels."""
    func: Callable[..., Any]
    """Decorator of functions that kernels call."""


class KernelSet:
    """The kernels that a definition makes for float32 and for float64, each in a Warp module of its own.

    Args:
        define: takes `Types` and returns a namespace of kernels.
    """

    sets: ClassVar[list[KernelSet]] = []
    """All kernel sets of the imported modules."""

    def __init__(self, define: Callable[[Types], SimpleNamespace]) -> None:
        self.name = define.__module__
        self._kernels = {}
        self._modules = {}
        for dtype, scalar in _SCALARS.items():
            module = wp.get_module(f"{self.name}.{scalar.__name__}")
            module.options["enable_backward"] = False  # gradients are kernels of their own
            types = Types(
                scalar,
                vec3=wp.types.vector(3, scalar),
                mat33=wp.types.matrix((3, 3), scalar),
                mat34=wp.types.matrix((3, 4), scalar),
                kernel=functools.partial(wp.kernel, module=module),
                func=functools.partial(wp.func, module=module),
            )
            self._kernels[dtype] = define(types)
            self._modules[dtype] = module
        self.sets.append(self)

    def __getitem__(self, dtype: torch.dtype) -> SimpleNamespace:
        """Return the kernels of one floating type."""
        return self._kernels[dtype]

    def module(self, dtype: torch.dtype) -> wp.Module:
        """Return the Warp module of one floating type."""
        return self._modules[dtype]

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the kernels from Warp's cache, or compile them, unless they are loaded already."""
        _load(self._modules[dtype], _warp_device(device), announce=False)


def warmup(
    device: torch.device | str,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    *,
    progress: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Compile all kernels before their first use. Warp keeps them in its cache, for later processes too.

    Args:
        device: the device that the kernels will run on.
        dtypes: floating types to compile for.
        progress: called with the name of each module before it is compiled.

    Returns:
        Seconds per module, by name; short where the module was cached or loaded before.

    Raises:
        TypeError: a type is neither float32 nor float64.
        RuntimeError: Warp does not run on the device.
    """
    device = torch.empty(0, device=device).device  # with its number
    seconds = {}
    for dtype in dtypes:
        if dtype not in _SCALARS:
            raise TypeError(f"dtypes: expected float32 or float64, got {dtype}")
        for kernels in KernelSet.sets:
            name = kernels.module(dtype).name
            if progress is not None:
                progress(name)
            start = time.perf_counter()
            kernels.load(device, dtype)
            seconds[name] = time.perf_counter() - start
    return seconds


def launch(kernel: wp.Kernel, dim: int | Sequence[int], *arguments: Any, tiled: bool = False) -> None:
    """Launch a kernel on the device of its tensors, on torch's current stream.

    Args:
        kernel: one kernel of a `KernelSet`.
        dim: number of threads; with ``tiled`` number of blocks.
        arguments: tensors and numbers, in the kernel's order. Tensors are read through their strides; only
            the dimensions that make up a vector or a matrix must be contiguous.
        tiled: whether each element of ``dim`` is a block of threads that work together.

    Raises:
        ValueError: the tensors are on different devices.
    """
    given = list(zip(kernel.adj.args, arguments, strict=True))
    device = next(value.device for _, value in given if isinstance(value, Tensor))
    for parameter, value in given:
        # Warp is given addresses, which it cannot check.
        if isinstance(value, Tensor) and value.device != device:
            raise ValueError(
                f"{kernel.key}, {parameter.label}: expected a tensor on {device}, got one on {value.device}"
            )
    if 0 in (dim if isinstance(dim, Sequence) else (dim,)):
        return
    packed = [
        wp.from_torch(_with_short_strides(a), dtype=p.type.dtype, requires_grad=False, return_ctype=True)
        if isinstance(a, Tensor)
        else a
        for p, a in given
    ]
    launcher = wp.launch_tiled if tiled else wp.launch
    # Warp makes the device of a launch the current one and leaves it so.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        warp_device = _warp_device(device)
        _load(kernel.module, warp_device)
        stream = _stream(device) if device.type == "cuda" else None
        launcher(kernel, dim=dim, inputs=packed, device=warp_device, stream=stream, block_dim=BLOCK_DIM)


def _with_short_strides(tensor: Tensor) -> Tensor:
    """Return a tensor whose strides in bytes fit in 32 bits, as Warp needs them."""
    tensor = tensor.detach()
    longest = max(tensor.stride(), default=0) * tensor.element_size()
    return tensor if longest < 1 << 31 else tensor.contiguous()


def pack_entries(tensor: Tensor, dims: int) -> Tensor:
    """Return the tensor with its last dimensions contiguous, as kernels need vectors (1) and matrices (2)."""
    stride = 1
    for size, step in zip(tensor.shape[: -dims - 1 : -1], tensor.stride()[::-1], strict=False):
        if step != stride:
            return tensor.contiguous()
        stride *= size
    return tensor


@functools.cache
def _start() -> None:
    with _LOCK, _quiet():
        wp.init()


@functools.cache
def _warp_device(device: torch.device) -> Any:
    _start()
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(
            f"Warp kernels run on cpu and cuda tensors, got {device}; use backend='torch' there"
        )
    if device.type == "cuda" and not wp.is_cuda_available():
        raise RuntimeError(
            f"Warp {wp.config.version} finds no CUDA device, although torch does ({device}): the driver is "
            "too old for this build of Warp, or Warp was built without CUDA. Update the NVIDIA driver, "
            "install an older warp-lang, or use backend='torch'"
        )
    return wp.device_from_torch(device)


def _stream(device: torch.device) -> Any:
    """Return torch's current stream as a Warp stream; the default stream has the handle 0."""
    handle = torch.cuda.current_stream(device).cuda_stream
    key = (device.index, handle)
    if key not in _STREAMS:
        with _LOCK:
            _STREAMS.setdefault(key, wp.Stream(_warp_device(device), cuda_stream=handle))
    return _STREAMS[key]


_LOCK = threading.RLock()
_LOADED: set[tuple[int, str]] = set()
_STREAMS: dict[tuple[int | None, int], Any] = {}


def _load(module: Any, device: Any, *, announce: bool = True) -> None:
    key = (id(module), device.alias)
    if key in _LOADED:
        return
    if device.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{module.name}: kernels cannot be loaded while a CUDA graph is captured; make the same call "
            "once before the capture"
        )
    note = _announced(f"agebody: compiling {module.name} for {device.alias}")
    with _LOCK, _quiet(), note if announce else contextlib.nullcontext():
        # On the CPU Warp launches blocks of one thread, and would compile a second variant for them.
        wp.load_module(module, device=device, block_dim=BLOCK_DIM if device.is_cuda else 1)
    _LOADED.add(key)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Warp's greeting and reports off standard output, which belongs to the program."""
    level, wp.config.log_level = wp.config.log_level, max(wp.config.log_level, wp.LOG_WARNING)
    try:
        yield
    finally:
        wp.config.log_level = level


@contextlib.contextmanager
def _announced(message: str) -> Iterator[None]:
    """Print the message on standard error if the block takes longer than `_PATIENCE`."""
    note = f"{message} (once; `agebody warmup` does it ahead)"
    timer = threading.Timer(_PATIENCE, lambda: print(note, file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def moved(
    constants: Constants, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Constants:
    """Return a copy of a NamedTuple of constants on another device or in another floating type."""
    parts = (
        part.to(device, dtype if part.is_floating_point() else None) if isinstance(part, Tensor) else part
        for part in constants
    )
    return type(constants)(*parts)
