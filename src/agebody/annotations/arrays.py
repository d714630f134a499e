"""Read npz files of plain arrays, one row per person: nothing is unpickled, sizes are checked first."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agebody.annotations.people import fail
from agebody.assets.asset import AssetError
from agebody.assets.container import Archive, Unread, read_array, refuse_substitute


class Key(NamedTuple):
    """Shape and type that an array of a file must have."""

    shape: tuple[int | None, ...] | None = ()
    """After the rows; None is any size, or any shape."""
    kind: str = "number"
    """One of ``KINDS``. Of a name, or several names, there is one per file, not per row."""
    least: float = -np.inf
    whole: bool = False
    """Whether there is one per file, and ``shape`` is that of the array."""

    @property
    def dims(self) -> tuple[int | None, ...] | None:
        """Shape of the array; None is any."""
        named = {"name": (), "names": (None,)}.get(self.kind)
        if named is not None or self.shape is None:
            return named
        return self.shape if self.whole else (None, *self.shape)

    @property
    def by_row(self) -> bool:
        """Whether the array has one entry per row."""
        return not (self.whole or self.kind in ("name", "names"))


MAX_TEXT = 4096
"""Longest string, as the longest path: NumPy takes that much for each row of an array."""

FREE_BYTES, LARGEST_RATIO = 64 << 20, 200
"""Limits of the memory that the values of a file may take: so many bytes, or so many times its size."""

KINDS = {
    "number": ("fiu", "numbers"),
    "integer": ("iu", "integers"),
    "flag": ("b", "booleans"),
    "id": ("iuUS", "integers or strings"),
    "age": ("fiuUS", "numbers or strings"),
    "text": ("US", "strings"),
    "name": ("US", "a string"),
    "names": ("US", "strings"),
}
"""Types of arrays (NumPy's kinds), and what error messages call them."""


_SAVE = "load it with the program that wrote it, and save its arrays with numpy.savez"
_OTHERS = (
    (rb"PK", "this one is damaged or truncated; get or write it again"),
    (rb"$", "this one is empty; get or write it again"),
    (rb"\x80[\x02-\x05]", f"this is a pickle; {_SAVE}"),
    (rb"\x93NUMPY", "this is a single array, npy; save it under its name with numpy.savez"),
    (rb"\s*[{\[]", "this is a JSON text"),
)
"""Beginnings of files that are not npz, and what they are."""


def _what_else(head: bytes) -> str:
    """Return what a file that is not an npz file is, after a semicolon, where that is known."""
    found = next((f"; {what}" for start, what in _OTHERS if re.match(start, head)), "")
    if not found:
        try:
            refuse_substitute(head)
        except AssetError as error:
            return f"; {error}"
    return found


def read_arrays(
    path: Path,
    keys: Mapping[str, Key],
    prefixes: Mapping[str, Key] | None = None,
    *,
    rows: str = "people",
    written_by: str = "agebody fit or numpy.savez writes it",
    refuse: Callable[[Collection[str]], str] = lambda names: "",
) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file whose keys are known; others are ignored.

    Numbers are floats, text is decoded.

    Args:
        path: the file.
        keys: keys to read, by name.
        prefixes: keys of all names that begin so.
        rows: what errors call the rows.
        written_by: how errors say where such a file comes from.
        refuse: returns what is wrong with a file of another kind, by the names of its arrays.
    """
    if path.is_dir():
        inside = ", ".join(sorted(child.name for child in path.glob("*.npz"))[:8]) or "no .npz"
        fail(path, f"a folder, not a file; it holds {inside}")
    with path.open("rb") as stream:
        try:
            archive = Archive(stream, partial(read_array, objects=False), ".npy")
        except AssetError:
            stream.seek(0)
            fail(path, f"not an npz file, as {written_by}{_what_else(stream.read(4096))}")
        if any(name.endswith("data.pkl") for name in archive):
            fail(path, f"not an npz file, as {written_by}; this is a file of torch; {_SAVE}")
        if wrong := refuse([*archive]):
            fail(path, wrong)
        started = {
            name: key for start, key in (prefixes or {}).items() for name in archive if name.startswith(start)
        }
        known = {name: key for name, key in {**keys, **started}.items() if name in archive}
        if sum(map(archive.size, known)) > FREE_BYTES + LARGEST_RATIO * path.stat().st_size:
            fail(path, f"a damaged npz file: its arrays would take {LARGEST_RATIO} times its size")
        found = {
            name: expect_array(path, name, key, _read(path, f"{name}: ", lambda name=name: archive[name]))
            for name, key in known.items()
        }
    counts = {name: len(array) for name, array in found.items() if known[name].by_row}
    first = next(iter(counts), "")
    for name, count in counts.items():
        if count != counts[first]:
            fail(path, f"{name}: expected {counts[first]} {rows}, as in {first}, got {count}")
    return found


def read_npy(path: Path) -> np.ndarray:
    """Return the array of an npy file."""
    return _read(path, "", lambda: read_array(path.read_bytes(), objects=False))


def _read(path: Path, where: str, read: Callable[[], Any]) -> np.ndarray:
    """Return an array in memory of its own."""
    try:
        found = read()
    except AssetError as error:
        fail(path, f"{where}cannot be read ({error})")
    if isinstance(found, Unread):
        fail(path, f"{where}{found.reason}")
    if found.dtype.kind in "US" and found.dtype.itemsize > 4 * MAX_TEXT:
        fail(path, f"{where}expected strings of up to {MAX_TEXT} characters, got {found.dtype}")
    return np.array(found)


def expect_array(path: Path, name: str, key: Key, array: np.ndarray) -> np.ndarray:
    """Return the array of a key with its type and shape checked, text decoded, and numbers as floats."""
    types, expected = KINDS[key.kind]
    if array.dtype.kind not in types:
        fail(path, f"{name}: expected {expected}, got {array.dtype}")
    shape = key.dims
    if shape is not None and not (
        array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    ):
        sizes = ["N" if n is None and not i else "any" if n is None else str(n) for i, n in enumerate(shape)]
        fail(path, f"{name}: expected shape ({', '.join(sizes)}), got {array.shape}")
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError:
            fail(path, f"{name}: expected strings in UTF-8")
    if key.kind == "number" and array.dtype.kind != "f":
        array = array.astype(np.float64)
    if key.kind in ("number", "integer") and (array < key.least).any():
        fail(path, f"{name}: expected at least {key.least:g}, got {array[array < key.least][0]:g}")
    return array
