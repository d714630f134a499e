"""Recognise a file by its content and read the plain values in it: pickle, npz, npy, torch, safetensors."""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy

from agebody.assets.asset import AssetError
from agebody.assets.own_files import OwnFile
from agebody.assets.unpickle import (
    DTYPE_CODE,
    Parsed,
    load_torch_stream,
    loads,
    parse,
    parse_torch_stream,
    widen_bfloat16,
)

Array: TypeAlias = Any
"""A NumPy array, a torch tensor or a SciPy sparse matrix."""
PathLike: TypeAlias = str | os.PathLike[str]

MAX_BYTES = 2**30
"""Largest file, packed or unpacked; the largest official files have half of this size."""

MAX_HEADER = 2**24
"""Longest JSON header of a safetensors file; in memory it can be twenty times as long."""

WHERE = (
    "SMPL comes from smpl.is.tue.mpg.de, SMPL-X from smpl-x.is.tue.mpg.de, SMPL-H and MANO from "
    "mano.is.tue.mpg.de, the kid templates from agora.is.tue.mpg.de, SMIL from its page at Fraunhofer IOSB "
    "(s.fhg.de/smil), BEV's files from the ROMP project; each needs a free registration"
)

_NPY_MAGIC = b"\x93NUMPY"
MOST_TEXT = 200
"""Number of characters of another library's error to repeat."""
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?)(\w{1,16})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}L?(?:, ?|(?=\)))){0,32})\),? *\}\s*"
)
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_GET_MODEL = "get the model itself, a .pkl or .npz file, or a network's weights, .ckpt, .pt or .safetensors"
_OBJ_START = rb"(#[^\n]*\n|\s|(mtllib|o|g) [^\n]*\n)*v -?[\d.]"
_SUBSTITUTES = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|!--|\?xml)",
        "a web page, as a download without a login gives; log in and try again",
    ),
    (
        rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|[\s\S]{257}ustar",
        "a packed archive; unpack it and give the file in it",
    ),
    (
        rb"x[\x01\x5e\x9c\xda]",
        "packed by zlib, as joblib.dump does; read it with joblib.load and save its arrays as .npz",
    ),
)
_OTHERS = (
    (rb"Kaydara FBX", f"an FBX scene; {_GET_MODEL}"),
    (rb"glTF", f"a glTF scene, one fixed mesh; {_GET_MODEL}"),
    (rb"(?i)ply\r?\n", f"a PLY mesh, one fixed mesh; {_GET_MODEL}"),
    (_OBJ_START, f"an OBJ mesh, one fixed mesh; {_GET_MODEL}"),
    (rb"\x89HDF|MATLAB [57]", f"a MATLAB or HDF5 file; {_GET_MODEL}"),
    (rb"PAR1|ARROW1|SQLite format", f"a table; {_GET_MODEL}"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF|%PDF", f"a picture, a video or a document; {_GET_MODEL}"),
    (rb"BLENDER|PXR-USDC|#usda|solid ", f"a scene or a mesh; {_GET_MODEL}"),
    (rb'\s*{[\s\S]*"weight_map"', "the index of weights in several files; save all as one .safetensors file"),
    (rb"\s*[{\[]", f"a JSON text; {_GET_MODEL}"),
)


class Unread(NamedTuple):
    """Replaces an entry that could only be read by running code of the file."""

    reason: str


class RawFile(NamedTuple):
    """The plain content of a file."""

    path: Path
    container: str
    """pickle, npz, npy, torch or safetensors."""
    content: Any
    data: bytes
    own: OwnFile | None = None
    """The description of a file that this library wrote."""

    @property
    def sha256(self) -> str:
        """Return the checksum of the file."""
        return hashlib.sha256(self.data).hexdigest()


def read_path(path: Any) -> Path:
    """Return a path, ``~`` as the user's folder; raise an `AssetError` for what is not a path."""
    try:
        return Path(os.path.expanduser(os.fsdecode(path)))
    except TypeError:
        raise AssetError(f"expected the path of a file, got a {type(path).__name__}") from None


def is_path(value: Any) -> bool:
    """Return whether a value names a file."""
    return isinstance(value, (str, bytes, os.PathLike))


def to_array(value: Any) -> Any:
    """Return an array, tensor, nested list or chumpy object as an array; a SciPy sparse matrix unchanged."""
    if scipy.sparse.issparse(value) or isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return value.detach().cpu().to_dense().numpy()
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        with suppress(ValueError):
            return np.array(value)
    raise AssetError(f"expected an array, or the path of a file, got a {type(value).__name__}")


@contextmanager
def naming(path: Any) -> Iterator[None]:
    """Put the file's name before the message of every `AssetError` raised inside."""
    try:
        yield
    except AssetError as error:
        raise AssetError(f"{os.fsdecode(path) if is_path(path) else 'path'}: {error}") from error


def read_raw(path: Any) -> RawFile:
    """Read a file of any container without running anything of it.

    Raises:
        AssetError: the file is missing, unreadable, damaged, hostile, or of another kind.
    """
    path = read_path(path)
    data = read_bytes(path)
    container = _container(data)
    content = _READERS[container](data)
    header = _safetensors_header(data) if container == "safetensors" else {}
    own = OwnFile(header, data) if isinstance(header.get("__metadata__"), dict) else None
    return RawFile(path, container, content, data, own)


def _safetensors_head(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) >= 9 and head[8:9] == b"{" and length <= min(size - 8, MAX_HEADER)


@contextmanager
def _readable(path: Path, where: str) -> Iterator[int]:
    """Give the size of a file; raise an `AssetError` where it is missing, empty or cannot be read."""
    try:
        if path.is_dir():
            files = sorted(child.name for child in path.iterdir() if child.is_file())
            inside = f"; it holds {', '.join(files[:8])}" if files else "; it holds no files"
            raise AssetError(f"a folder, not a file{inside}")
        if path.exists() and not path.is_file():
            raise AssetError("a pipe or a device, not a file; save its content as a file")
        size = path.stat().st_size
        if not size:
            raise AssetError("the file is empty; download it again")
        yield size
    except FileNotFoundError as error:
        raise AssetError(f"no such file. {where}") from error
    except AssetError:
        raise
    except (OSError, ValueError) as error:  # ValueError for a name with a null byte
        raise AssetError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_bytes(path: Any) -> bytes:
    """Return the bytes of a file; raise an `AssetError` where it is missing, empty or too large."""
    path = read_path(path)
    with _readable(path, WHERE) as size:
        if size > MAX_BYTES:
            raise AssetError(f"{size} bytes; no body file is larger than {MAX_BYTES}")
        return path.read_bytes()


def _container(data: bytes) -> str:
    if data.startswith(_NPY_MAGIC):
        return "npy"
    if data.startswith(b"PK"):
        return _zip_container(data)
    if _safetensors_head(data[:9], len(data)):
        return "safetensors"
    if data[2:].startswith(_TORCH_LEGACY):
        return "torch"
    refuse_substitute(data, _OTHERS)
    if re.match(rb"\x80[\x02-\x05]|[(c\]}]", data):
        return "pickle"
    raise AssetError("this is not a pickle, npz, npy, torch or safetensors file; download it or get the .pkl")


def refuse_substitute(data: bytes, others: Iterable[tuple[bytes, str]] = ()) -> None:
    """Raise an `AssetError` for files that replace the wanted one, such as the page of a failed download."""
    for pattern, what in (*_SUBSTITUTES, *others):
        if re.match(pattern, data[:4096]):
            raise AssetError(f"this is {what}")


_ERRORS: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError)
_ERRORS += (ValueError, KeyError, OSError, OverflowError, MemoryError)
"""What zipfile and NumPy raise at damaged entries."""


@contextmanager
def _unzipping() -> Iterator[None]:
    try:
        yield
    except AssetError:
        raise
    except _ERRORS as error:
        what = str(error)[:MOST_TEXT]  # a zip's error repeats a name, which may be most of the file
        raise AssetError(f"damaged or truncated ({what}); download the file again") from error


def _zip_container(data: bytes) -> str:
    with _unzipping(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES:
        raise AssetError(f"unpacks to {total} bytes; no body file is larger than {MAX_BYTES}")
    names = [entry.filename for entry in entries]
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    _expect_torch(names)
    return "torch"


def _expect_torch(names: list[str]) -> None:
    """Raise an `AssetError` for the entries of an archive that torch did not save."""
    if any("/code/" in name for name in names):
        raise AssetError(f"this is a compiled torch program; {_GET_MODEL}")
    if not any(name.endswith("data.pkl") for name in names):
        shown = ", ".join(names[:8])
        raise AssetError(
            f"this is a packed archive; unpack it and give the model file in it (it holds {shown})"
        )


class Archive(Mapping[str, Any]):
    """The entries of a zip file, each read and checked by its checksum when it is asked for."""

    def __init__(
        self, stream: io.BufferedIOBase, read: Callable[[bytes], Any] = bytes, suffix: str = ""
    ) -> None:
        with _unzipping():
            self._archive = zipfile.ZipFile(stream)
        self._entries = {e.filename.removesuffix(suffix): e for e in self._archive.infolist()}
        self._read = read

    def __getitem__(self, name: str) -> Any:
        """Read an entry; nothing is cached."""
        entry = self._entries[name]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise AssetError(f"{name} is packed by a method that no body file uses; save the file again")
        with _unzipping():
            return self._read(self._archive.read(entry))

    def size(self, name: str) -> int:
        """Return the number of bytes of an entry, unpacked."""
        return self._entries[name].file_size

    def __contains__(self, name: object) -> bool:
        """Return whether there is such an entry, without reading it."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the entries."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)


def _read_npz(data: bytes) -> Mapping[str, Any]:
    return Archive(io.BytesIO(data), read_array, ".npy")


def _read_npy(data: bytes) -> Any:
    with _unzipping():
        content = read_array(data)
    if isinstance(content, Unread):
        raise AssetError(content.reason)
    return content


def read_array(data: bytes, *, objects: bool = True) -> Any:
    """Read an npy file, whose header NumPy itself would evaluate as Python text.

    An array of objects is a pickle: with ``objects``, the object in it is returned, or a list of several.
    """
    size_bytes = {1: 2, 2: 4, 3: 4}.get(data[6] if len(data) > 8 else 0)
    if size_bytes is None or not data.startswith(_NPY_MAGIC):
        raise AssetError("an array in it is damaged; download the file again")
    start = 8 + size_bytes
    end = start + int.from_bytes(data[8:start], "little")
    header = _NPY_HEADER.fullmatch(data[start:end])
    if header is None:
        return Unread("an array of records, or one with a damaged header")
    order, code, fortran, sizes = (part.decode() for part in header.groups())
    if code == "O" and not objects:
        return Unread("Python objects are not loaded; save a plain array")
    if code == "O":
        try:
            return loads(data[end:])
        except AssetError as error:
            return Unread(f"an array of objects that cannot be read ({error})")
    if not DTYPE_CODE.fullmatch(code):
        return Unread(f"an array of dtype {code}, which is neither numbers nor text")
    dtype = np.dtype(order + code)
    shape = tuple(int(size) for size in re.findall(r"\d+", sizes))
    if math.prod(shape) * dtype.itemsize > len(data) - end:
        raise AssetError(f"truncated: the header announces {shape} {dtype}; download the file again")
    array = np.ndarray(shape, dtype, data, end, order="F" if fortran == "True" else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _read_torch(data: bytes) -> Any:
    """Read a file of torch, without torch: tensors name storages, which are entries of a zip file."""
    try:
        if not data.startswith(b"PK"):
            return load_torch_stream(data)
        return _parse_torch_zip(io.BytesIO(data)).resolve(size=len(data))
    except (AssetError, ValueError) as error:
        raise AssetError(f"{error} (a torch file; a training checkpoint is not a body)") from error


def _parse_torch_zip(stream: io.BufferedIOBase, *, lenient: bool = False) -> Parsed:
    archive = Archive(stream)
    pickled = min((name for name in archive if name.endswith("data.pkl")), key=len)
    folder = pickled.removesuffix("data.pkl")
    if archive.get(f"{folder}byteorder", b"little") != b"little":
        raise AssetError("a torch file of a big-endian machine; save it on another one")
    parsed = parse(io.BytesIO(archive[pickled]), lenient=lenient)
    return parsed._replace(read_storage=lambda key: archive.get(f"{folder}data/{key}", b""))


@contextmanager
def opened_tensors(path: Any, where: str) -> Iterator[tuple[Iterator[tuple[str, Any]], tuple[str, ...]]]:
    """Open the weights of a network, of torch or safetensors, and run nothing of the file.

    Yields the arrays by name, read one by one, and the names of the other entries. The file is not read as a
    whole, because it can be larger than the memory. ``where`` such files come from is for the error of a
    missing one.
    """
    path = read_path(path)
    with _readable(path, where) as size, path.open("rb") as stream:
        head = stream.read(4096)
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # stays open while an array needs it
        if head.startswith(b"PK"):
            with _unzipping():
                entries = zipfile.ZipFile(stream).infolist()
            _expect_torch([entry.filename for entry in entries])
            if sum(entry.file_size for entry in entries) > 4 * size + 2**26:
                raise AssetError("unpacks to many times its own size; it was not opened")
            yield _parse_torch_zip(stream, lenient=True).tensors(size=size)
        elif _safetensors_head(head[:9], size):
            yield _read_safetensors(data), ()
        elif _container(head) == "torch":
            yield parse_torch_stream(data, size, lenient=True).tensors(size=size)
        else:
            raise AssetError("these are not the weights of a network, a file of torch or safetensors")


_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2",
    "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8", "BF16": "<u2",
}  # fmt: skip


def _read_safetensors(data: bytes | mmap.mmap) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a safetensors file, which share the memory of its bytes; bfloat16 as float32."""
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in _safetensors_header(data).items():
        match entry:
            case _ if name == "__metadata__":
                continue
            case {"dtype": str() as dtype, "shape": [*shape], "data_offsets": [int() as begin, int() as end]}:
                pass
            case _:
                raise AssetError(f"{name}: damaged description; get or save the file again")
        code = _SAFETENSORS.get(dtype)
        if code is None:
            yield name, Unread(f"an array of {dtype}, which NumPy does not have")
            continue
        if not all(type(n) is int and n >= 0 for n in shape) or not 0 <= begin <= end <= len(data) - start:
            raise AssetError(f"{name}: truncated or damaged; get or save the file again")
        if math.prod(shape) * np.dtype(code).itemsize != end - begin or len(shape) > 32:
            raise AssetError(f"{name}: {end - begin} bytes do not fill {shape} {dtype}; get the file again")
        if dtype == "BF16":
            yield name, widen_bfloat16(data[start + begin : start + end]).reshape(shape)
            continue
        array = np.ndarray(shape, code, data, start + begin)
        yield name, array if array.flags.aligned else array.copy()


def _safetensors_header(data: bytes | mmap.mmap) -> dict[str, Any]:
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (ValueError, RecursionError) as error:
        raise AssetError(f"damaged header ({error}); get or save the file again") from error
    if not isinstance(header, dict):
        raise AssetError("damaged header; get or save the file again")
    return header


_READERS: dict[str, Callable[[bytes], Any]] = {
    "pickle": loads,
    "npz": _read_npz,
    "npy": _read_npy,
    "torch": _read_torch,
    "safetensors": lambda data: dict(_read_safetensors(data)),
}
