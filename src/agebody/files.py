"""Atomic file writing: a file appears complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` when the block succeeds and is deleted when it fails.

    It is in the folder of ``path``, with the same suffix; links are followed to their target.

    Raises:
        IsADirectoryError: the path is a folder.
        FileNotFoundError: its folder does not exist.
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the folder cannot be written in.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder; add a file name", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"the folder {target.parent} does not exist; create it first", str(path)
        )
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "the file exists; pass overwrite=True to replace it", str(path))
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(6)}{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        reason = f"cannot write in the folder {target.parent} ({error.strerror})"
        raise type(error)(error.errno, reason, str(path)) from None
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_npz(arrays: Mapping[str, Any], path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write named arrays or tensors to a compressed ``.npz``, atomically.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"{path}: expected the suffix .npz, got {Path(path).suffix!r}")
    values = {
        name: value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        for name, value in arrays.items()
    }
    for name, value in values.items():
        if value.dtype == object:
            got = type(arrays[name]).__name__
            raise ValueError(f"{name}: expected an array of numbers or text, got {got}")
    with replacing(path, overwrite=overwrite) as temporary:
        np.savez_compressed(temporary, **values)  # pyright: ignore[reportArgumentType]
