"""Read vertices and triangles that other programs wrote: npz, npy, pickle, obj and ply; nothing is run."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.assets.asset import AssetError, check_finite, check_indices, check_shape
from agebody.assets.container import (
    PathLike,
    Unread,
    naming,
    read_bytes,
    read_path,
    read_raw,
    refuse_substitute,
    to_array,
)

VERTICES = ("vertices", "pred_vertices", "verts", "pred_verts", "v")
FACES = ("faces", "f")
"""Names of arrays in the files of SAM 3D Body, HMR2 and others; a body's own triangles are ``f`` as well."""
TRANSLATION = "pred_cam_t"
"""SAM 3D Body's: where a person stands in the camera's coordinates."""
SUFFIXES = (".npz", ".npy", ".pkl", ".safetensors", ".obj", ".ply")


class MeshFile(NamedTuple):
    """Content of a file of meshes, in the order and the unit of the file."""

    vertices: Float[Tensor, "*batch V 3"] | None
    """None where the file has triangles alone."""
    faces: Int[Tensor, "F 3"] | None
    """Polygons as triangles; None where the file has none."""
    transl: Float[Tensor, "*batch 3"] | None
    """What moves the vertices into the camera's coordinates, of SAM 3D Body; None elsewhere."""

    @classmethod
    def from_file(cls, path: PathLike) -> MeshFile:
        """Read meshes of one topology, with the vertices and triangles in the file's own order.

        Arrays are named ``vertices``, ``pred_vertices``, ``verts`` or ``v``, and ``faces`` or ``f``; a list
        of people, each with such arrays, is read as a batch, and so are the outputs of SAM 3D Body.

        Args:
            path: an ``.npz``, ``.npy``, ``.pkl``, ``.safetensors``, ``.obj`` or ``.ply``.

        Raises:
            AssetError: the file is missing, unreadable, damaged, hostile, or of another kind.
        """
        with naming(path):
            suffix = read_path(path).suffix.lower()
            if not read_path(path).exists():
                raise AssetError("no such file")
            if suffix in _TEXTS:
                data = read_bytes(path)
                refuse_substitute(data)
                arrays = _TEXTS[suffix](data)
            elif suffix in SUFFIXES:
                arrays = _named(read_raw(path).content)
            else:
                raise AssetError(f"expected a mesh with the suffix {', '.join(SUFFIXES)}, got {suffix!r}")
            return _checked(*arrays)


def _checked(vertices: Any, faces: Any, transl: Any) -> MeshFile:
    """Return arrays as tensors, after checking that they fit together."""
    if vertices is None and faces is None:
        raise AssetError("holds no vertices")
    if vertices is not None:
        vertices = _numbers("vertices", vertices, "fiu")
        batch = vertices.shape[:-2] if vertices.ndim < 4 else ()
        check_shape("vertices", vertices.shape, (*batch, None, 3))
        check_finite("vertices", vertices)
        if not vertices.size:
            raise AssetError("holds no vertices")
        if transl is not None:
            transl = _numbers(TRANSLATION, transl, "fiu")
            check_shape(TRANSLATION, transl.shape, (*batch, 3))
            check_finite(TRANSLATION, transl)
    if faces is not None:
        faces = _numbers("faces", faces, "iu")
        check_shape("faces", faces.shape, (None, 3))
        check_indices("faces", faces, 2**31 if vertices is None else vertices.shape[-2])
    return MeshFile(
        None if vertices is None else torch.from_numpy(vertices.astype(np.float32)),
        None if faces is None else torch.from_numpy(faces.astype(np.int64)),
        None if vertices is None or transl is None else torch.from_numpy(transl.astype(np.float32)),
    )


def _numbers(name: str, value: Any, kinds: str) -> np.ndarray:
    if isinstance(value, Unread):
        raise AssetError(f"{name}: expected an array of numbers, got {value.reason}")
    array = np.asarray(to_array(value))
    if array.dtype.kind not in kinds:
        raise AssetError(f"{name}: expected {'numbers' if 'f' in kinds else 'integers'}, got {array.dtype}")
    return array


def _named(content: Any) -> tuple[Any, Any, Any]:
    """Return vertices, faces and translation of arrays by name, of people in a list, or of one array."""
    if isinstance(content, np.ndarray):
        return (None, content, None) if content.dtype.kind in "iu" else (content, None, None)
    if isinstance(content, (list, tuple)) and content and all(isinstance(one, Mapping) for one in content):
        people = [_named(one) for one in content]
        if any(vertices is None for vertices, _, _ in people):
            raise AssetError(f"expected arrays {', '.join(VERTICES)} of everybody in the list")
        try:
            vertices = np.stack([_numbers("vertices", one, "fiu") for one, _, _ in people])
            places = [place for _, _, place in people]
            placed = all(place is not None for place in places)
            several = np.stack([_numbers(TRANSLATION, p, "fiu") for p in places]) if placed else None
        except ValueError:
            raise AssetError("expected people of one topology, got arrays of several shapes") from None
        return vertices, people[0][1], several
    if not isinstance(content, Mapping):
        raise AssetError(f"expected arrays, got a {type(content).__name__}")
    vertices, faces = (
        next((content[name] for name in names if name in content), None) for names in (VERTICES, FACES)
    )
    if vertices is None and faces is None:
        shown = ", ".join(sorted(map(str, content))[:12]) or "nothing"
        raise AssetError(f"expected an array {', '.join(VERTICES)}; it holds {shown}")
    return vertices, faces, content.get(TRANSLATION)


def _read_obj(data: bytes) -> tuple[Any, Any, Any]:
    """Read the vertices in the order of the file, which readers for pictures change to map textures."""
    vertices: list[list[bytes]] = []
    polygons: list[list[int]] = []
    try:
        for line in re.sub(rb"\\\r?\n", b" ", data.removeprefix(codecs.BOM_UTF8)).splitlines():
            kind, *words = line.partition(b"#")[0].split() or [b""]
            if kind == b"v":
                vertices.append(words[:3])
            elif kind == b"f":
                corners = [int(word.split(b"/", 1)[0]) for word in words]
                polygons.append([i - 1 if i > 0 else len(vertices) + i for i in corners])
        return np.array(vertices, dtype=np.float64) if vertices else None, _triangulate(polygons), None
    except (ValueError, OverflowError) as error:
        raise AssetError(f"a damaged obj ({error}); export the mesh again") from None


def _triangulate(polygons: Iterable[Sequence[int]]) -> Int[np.ndarray, "F 3"] | None:
    """Return the triangles of polygons, fans around their first corners; None if there are none."""
    faces = [(p[0], *p[i : i + 2]) for p in polygons for i in range(1, len(p) - 1)]
    return np.array(faces, np.int64) if faces else None


_PLY_HEADER = re.compile(rb"ply\s(.*?)\bend_header[ \t]*(?:\r\n|\n|\r)", re.DOTALL)
_PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_PLY_NUMBERS = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4",
    "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip


class _PlyElement(NamedTuple):
    """What the header says of the rows of one kind."""

    name: str
    rows: int
    properties: list[tuple[str, str, str]]
    """Names, types of the lengths of lists, which are empty for single values, and types."""


def _read_ply(data: bytes) -> tuple[Any, Any, Any]:
    """Read vertices, and polygons of any numbers of corners; other elements and properties are skipped."""
    header = _PLY_HEADER.match(data)
    if header is None:
        raise AssetError("a damaged ply, without a header; export the mesh again")
    vertices = faces = None
    try:
        elements, order = _ply_elements(header[1].decode("latin-1"))
        body = data[header.end() :]
        body = body if order else np.array(body.split(), dtype=np.float64).tobytes()
        start = 0
        for element in elements:
            columns, start = _ply_columns(body, start, element)
            if element.name == "vertex" and element.rows:
                vertices = np.stack([np.reshape(columns[axis], -1) for axis in "xyz"], -1)
            elif element.name == "face" and element.rows:
                corners = columns["vertex_indices" if "vertex_indices" in columns else "vertex_index"]
                faces = _triangulate(list(map(int, polygon)) for polygon in corners)
        if body[start:].strip():
            raise ValueError("more data than its header says")
    except (KeyError, ValueError, OverflowError, IndexError) as error:
        raise AssetError(f"a damaged ply ({error}); export the mesh again") from None
    return vertices, faces, None


def _ply_elements(header: str) -> tuple[list[_PlyElement], str]:
    """Return the elements and the order of bytes; numbers of a text, which has none, are read as doubles."""
    elements: list[_PlyElement] = []
    order = ""
    for line in header.splitlines():
        match line.split():
            case ["format", form, _]:
                order = _PLY_ORDERS[form]
            case ["element", name, count]:
                elements.append(_PlyElement(name, int(count), []))
            case ["property", *kinds, name]:
                kinds = [
                    order + _PLY_NUMBERS[kind] if order else "f8" for kind in kinds[-2:] if kind != "list"
                ]
                elements[-1].properties.append((name, "" if len(kinds) < 2 else kinds[0], kinds[-1]))
    return elements, order


def _ply_columns(body: bytes, start: int, element: _PlyElement) -> tuple[dict[str, Any], int]:
    """Return the values of each property, by row, and where the next element begins."""
    place = start

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal place
        if not 0 <= count * np.dtype(kind).itemsize <= len(body) - place:
            raise ValueError("less data than its header says")
        values = np.frombuffer(body, kind, count, place) if count else np.zeros(0, kind)
        place += values.nbytes
        return values

    def take_row() -> list[np.ndarray]:
        return [take(kind, int(take(length, 1)[0]) if length else 1) for _, length, kind in properties]

    properties = element.properties if element.rows else []
    fields: list[Any] = []
    for (name, length, kind), values in zip(properties, take_row(), strict=True):
        fields += [(f"{name} length", length)] * bool(length) + [(name, kind, values.shape)]
    row = np.dtype(fields)
    if element.rows * row.itemsize <= len(body) - start:  # in most files all rows are like the first
        rows = np.frombuffer(body, row, element.rows, start)
        if all(
            (rows[f"{name} length"] == rows[name].shape[1]).all() for name, length, _ in properties if length
        ):
            return {name: rows[name] for name, _, _ in properties}, start + rows.nbytes
    place = start
    columns = zip(*(take_row() for _ in range(element.rows)), strict=True)
    return dict(zip((name for name, _, _ in properties), columns, strict=True)), place


_TEXTS = {".obj": _read_obj, ".ply": _read_ply}
