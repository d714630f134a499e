"""Recognise a file by its content and read the plain values in it: pickle, npz, npy, torch, safetensors."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from agebody.assets.asset import AssetError
from agebody.assets.unpickle import DTYPE_CODE, loads

PathLike: TypeAlias = str | os.PathLike[str]

MAX_BYTES = 2**31
"""Largest file, packed or unpacked; the largest official files have a quarter of this size."""

WHERE = (
    "SMPL comes from smpl.is.tue.mpg.de, SMPL-X from smpl-x.is.tue.mpg.de, SMPL-H and MANO from "
    "mano.is.tue.mpg.de, the kid templates from agora.is.tue.mpg.de, SMIL from its page at Fraunhofer IOSB "
    "(s.fhg.de/smil), BEV's files from the ROMP project; each needs a free registration"
)

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?)(\w+)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}L?(?:, ?|(?=\))))*)\),? *\}\s*"
)
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_GET_MODEL = "get the model itself, a .pkl or .npz file"
_OBJ_START = rb"(#[^\n]*\n|\s|(mtllib|o|g) [^\n]*\n)*v -?[\d.]"
_OTHERS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (
        rb"(?i)\s*(<!doctype html|<html)",
        "a web page, as a download without a login gives; log in and try again",
    ),
    (rb"Kaydara FBX", f"an FBX scene; {_GET_MODEL}"),
    (rb"glTF", f"a glTF scene, one fixed mesh; {_GET_MODEL}"),
    (rb"(?i)ply\r?\n", f"a PLY mesh, one fixed mesh; {_GET_MODEL}"),
    (_OBJ_START, f"an OBJ mesh, one fixed mesh; {_GET_MODEL}"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a packed archive; unpack it and give the model file in it"),
    (rb"\x89HDF", f"an HDF5 file; {_GET_MODEL}"),
    (rb"\s*[{\[]", f"a JSON text; {_GET_MODEL}"),
)


SAFE_TORCH = (2, 6)
"""The first version whose `torch.load(weights_only=True)` runs no code of the file."""


class Unread(NamedTuple):
    """Stands for an entry that could only be read by running code of the file."""

    reason: str


class RawFile(NamedTuple):
    """The plain content of a file."""

    path: Path
    container: str
    """pickle, npz, npy, torch or safetensors; the content of safetensors is not read here."""
    content: Any
    sha256: str


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Put the file's name before the message of every `AssetError` raised inside."""
    try:
        yield
    except AssetError as error:
        raise AssetError(f"{os.fspath(path)}: {error}") from error


def read_raw(path: PathLike) -> RawFile:
    """Read a file of any container without running anything of it.

    Raises:
        AssetError: the file is missing, unreadable, damaged, hostile, or of another kind.
    """
    path = Path(path)
    data = read_bytes(path)
    container = _container(data)
    read = {"pickle": loads, "npz": _read_npz, "npy": _read_npy, "torch": _read_torch}.get(container)
    content = read(data) if read else None
    return RawFile(path, container, content, hashlib.sha256(data).hexdigest())


def check_version(version: Any, newest: int) -> None:
    """Raise an `AssetError` for a version of a file format that is newer than the newest known one."""
    if isinstance(version, int) and version > newest:
        raise AssetError(f"format version {version}; this agebody reads up to {newest}: install a newer one")


def is_safetensors(path: PathLike) -> bool:
    """Return whether a readable file begins like a safetensors file."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _safetensors_head(file.read(9), path.stat().st_size)
    except OSError:
        return False


def _safetensors_head(head: bytes, size: int) -> bool:
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def read_bytes(path: PathLike) -> bytes:
    """Return the bytes of a file; raise an `AssetError` where it is missing, empty or too large."""
    path = Path(path)
    try:
        if path.is_dir():
            files = sorted(child.name for child in path.iterdir() if child.is_file())
            inside = f"; it holds {', '.join(files[:8])}" if files else "; it holds no files"
            raise AssetError(f"a folder, not a file{inside}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AssetError(f"{size} bytes; no body file is larger than {MAX_BYTES}")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise AssetError(f"no such file. {WHERE}") from error
    except OSError as error:
        raise AssetError(f"cannot be read: {error.strerror or error}") from error
    if not data:
        raise AssetError("the file is empty; download it again")
    return data


def _container(data: bytes) -> str:
    if data.startswith(_NPY_MAGIC):
        return "npy"
    if data.startswith(b"PK"):
        return _zip_container(data)
    if _safetensors_head(data[:9], len(data)):
        return "safetensors"
    if data[2:].startswith(_TORCH_LEGACY):
        return "torch"
    for pattern, what in _OTHERS:
        if re.match(pattern, data[:4096]):
            raise AssetError(f"this is {what}")
    if re.match(rb"\x80[\x02-\x05]|[(c\]}]", data):
        return "pickle"
    raise AssetError("this is not a pickle, npz, npy, torch or safetensors file; download it or get the .pkl")


_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError)
_ZIP_ERRORS = (*_ARCHIVE_ERRORS, RuntimeError, ValueError, KeyError, OSError, MemoryError)


@contextmanager
def _unzipping() -> Iterator[None]:
    try:
        yield
    except AssetError:
        raise
    except _ZIP_ERRORS as error:
        raise AssetError(f"damaged or truncated ({error}); download the file again") from error


def _zip_container(data: bytes) -> str:
    with _unzipping(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES:
        raise AssetError(f"unpacks to {total} bytes; no body file is larger than {MAX_BYTES}")
    names = [entry.filename for entry in entries]
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    shown = ", ".join(names[:8])
    raise AssetError(f"this is a packed archive; unpack it and give the model file in it (it holds {shown})")


def _read_npz(data: bytes) -> dict[str, Any]:
    content: dict[str, Any] = {}
    with _unzipping(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            content[entry.filename.removesuffix(".npy")] = _read_array(archive.read(entry))
    return content


def _read_npy(data: bytes) -> np.ndarray:
    with _unzipping():
        array = _read_array(data)
    if isinstance(array, Unread):
        raise AssetError(array.reason)
    return array


def _read_array(data: bytes) -> np.ndarray | Unread:
    """Read an npy file, whose header NumPy itself would evaluate as Python text."""
    size_bytes = {1: 2, 2: 4, 3: 4}.get(data[6] if len(data) > 8 else 0)
    if size_bytes is None or not data.startswith(_NPY_MAGIC):
        raise AssetError("an array in it is damaged; download the file again")
    start = 8 + size_bytes
    end = start + int.from_bytes(data[8:start], "little")
    header = _NPY_HEADER.fullmatch(data[start:end])
    if header is None:
        return Unread("an array of records, or one with a damaged header")
    order, code, fortran, sizes = (part.decode() for part in header.groups())
    if code == "O":
        return Unread("an object array, which only running its code could read")
    if not DTYPE_CODE.fullmatch(code):
        return Unread(f"an array of dtype {code}, which is neither numbers nor text")
    dtype = np.dtype(order + code)
    shape = tuple(int(size) for size in re.findall(r"\d+", sizes))
    if math.prod(shape) * dtype.itemsize > len(data) - end:
        raise AssetError(f"truncated: the header announces {shape} {dtype}; download the file again")
    array = np.ndarray(shape, dtype, data, end, order="F" if fortran == "True" else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _read_torch(data: bytes) -> Any:
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise AssetError(
            f"a torch file, which torch {torch.__version__} cannot read without a risk of running its code "
            "(CVE-2025-32434); read it with torch 2.6 or later"
        )
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return _arrays(content) if isinstance(content, dict) else content
    except Exception as error:  # torch's reader raises errors of many kinds
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"torch finds no plain tensors in it ({first_line[:200]}). A training checkpoint is not a body; "
            "if this is a body pack, download it again"
        ) from error


def _arrays(content: dict[Any, Any]) -> dict[str, Any]:
    import torch

    return {
        str(key): value.detach().numpy() if isinstance(value, torch.Tensor) else value
        for key, value in content.items()
    }
