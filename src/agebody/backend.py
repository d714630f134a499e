"""Which implementation computes a body: one place decides, and says why where it cannot."""

from __future__ import annotations

from typing import Literal, get_args

BackendName = Literal["auto", "torch", "warp"]


def choose_backend(backend: str) -> Literal["torch"]:
    """The implementation that a name stands for; ``"auto"`` is the fastest one there is.

    Raises:
        ValueError: the name is no backend's.
        ImportError: the backend is known, but not a part of what is installed.
    """
    if backend not in get_args(BackendName):
        raise ValueError(f"backend: expected one of {', '.join(get_args(BackendName))}, got {backend!r}")
    if backend == "warp":
        raise ImportError(
            "backend='warp': this version of agebody comes without Warp kernels; use backend='torch'"
        )
    return "torch"
