"""Paths in object stores, such as S3, with the methods of local paths."""

from __future__ import annotations

import errno
import glob
import importlib
import os
import re
from pathlib import Path
from typing import Any, TypeGuard

AnyPath = str | os.PathLike[str]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of an address, of whose two slashes `Path` keeps one."""


def to_path(path: AnyPath) -> Path:
    """Return a local path, or one of a store by its address, such as ``s3://bucket/folder``.

    A path of a store has `Path`'s methods; `replacing` and `make_folder` of `agebody.files` take it, too.

    Raises:
        ImportError: what reads the store is not installed.
        ValueError: no such store is known.
    """
    if is_stored(path) or not _is_address(path):
        return path if is_stored(path) else Path(path)
    address = _address(path)
    try:
        upath: Any = importlib.import_module("upath")
        found = upath.UPath(address, use_listings_cache=False)  # others write to it meanwhile
        _ = found.fs
    except ImportError as error:
        reason = str(error) if "upath" not in str(error) else "universal-pathlib is missing"
        raise ImportError(
            f'{address}: {reason}; pip install "agebody[stores]" brings that of s3://'
        ) from error
    except ValueError as error:
        raise ValueError(f"{address}: expected a path, or the address of a store ({error})") from None
    return found


def find_paths(pattern: Path) -> list[Path]:
    """Return the paths that match a pattern with ``*``, local or in a store."""
    if is_stored(pattern):
        return [to_path(pattern.fs.unstrip_protocol(name)) for name in pattern.fs.glob(pattern.path)]
    return [Path(name) for name in glob.glob(str(pattern))]


def is_stored(path: Any) -> TypeGuard[Any]:
    """Return whether a path is of a store, from `to_path`."""
    return hasattr(path, "fs")


def _is_address(path: AnyPath) -> bool:
    scheme = _SCHEME.match(os.fspath(path))
    return scheme is not None and not Path(scheme[0]).is_dir()


def _address(path: AnyPath) -> str:
    return re.sub(":/+", "://", os.fspath(path), count=1)


def refuse_address(path: AnyPath) -> None:
    """Refuse ``s3://bucket/name``, which would become a folder ``s3:``."""
    if _is_address(path):
        reason = "expected a path of this machine; copy the files to or from the store yourself"
        raise OSError(errno.EINVAL, reason, _address(path))
