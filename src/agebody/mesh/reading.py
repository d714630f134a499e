"""Read vertices and triangles that other programs wrote: npz, npy, pickle, obj and ply; nothing is run."""

from __future__ import annotations

import codecs
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.assets.asset import AssetError, check_finite, check_indices, check_shape
from agebody.assets.container import PathLike, Unread, naming, read_bytes, read_path, read_raw, to_array

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
            if suffix == ".obj":
                arrays = _read_obj(read_bytes(path))
            elif suffix == ".ply":
                arrays = _read_ply(read_bytes(path))
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
    faces: list[list[int]] = []
    try:
        for line in data.removeprefix(codecs.BOM_UTF8).splitlines():
            kind, *words = line.split() or [b""]
            if kind == b"v":
                vertices.append(words[:3])
            elif kind == b"f":
                corners = [int(word.split(b"/", 1)[0]) for word in words]
                corners = [corner - 1 if corner > 0 else len(vertices) + corner for corner in corners]
                faces += [[corners[0], *corners[i : i + 2]] for i in range(1, len(corners) - 1)]
        places = np.array(vertices, dtype=np.float64) if vertices else None
        return places, np.array(faces, np.int64) if faces else None, None
    except (ValueError, OverflowError, IndexError) as error:
        raise AssetError(f"a damaged obj ({error}); export the mesh again") from None


def _read_ply(data: bytes) -> tuple[Any, Any, Any]:
    from trimesh.exchange.ply import load_ply
    from trimesh.geometry import triangulate_quads

    try:
        found = load_ply(io.BytesIO(data), fix_texture=False, skip_materials=True)
    except Exception as error:  # trimesh raises what it meets
        raise AssetError(f"a damaged ply ({type(error).__name__}); export the mesh again") from None
    faces = found.get("faces")
    return found.get("vertices"), None if faces is None or not len(faces) else triangulate_quads(faces), None
