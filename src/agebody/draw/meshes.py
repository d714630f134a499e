"""What pictures and files are made of: bodies as arrays, their normals and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from PIL import ImageColor

Color: TypeAlias = str | Sequence[float] | np.ndarray
"""A colour as sRGB: a name or hex code that PIL knows ("#c98a72"), or three numbers from 0 to 1."""

PALETTE = ("#c98a72", "#d3b06f", "#97a883", "#7c9fa6", "#8a90b3", "#a98598", "#a3968a", "#b9785a")
"""Colours given to bodies in turn: clay, ochre, sage, lagoon, slate, mauve, stone, terracotta."""


def meshes(vertices: Any, faces: Any) -> tuple[list[Float[np.ndarray, "_ 3"]], list[Int[np.ndarray, "_ 3"]]]:
    """Vertices (float64) and faces of each body.

    Args:
        vertices: ``(V, 3)``, ``(B, V, 3)`` or a sequence of ``(V_i, 3)``, as arrays or tensors.
        faces: ``(F, 3)`` for all bodies, or one such array a body.

    Raises:
        ValueError: a shape, a dtype, a number or a vertex id is wrong.
    """
    bodies = [finite(f"vertices[{i}]", body) for i, body in enumerate(_per_body(vertices))]
    triangles = [to_numpy(face) for face in _per_body(faces)]
    if len(triangles) == 1:
        triangles = triangles * len(bodies)
    if len(triangles) != len(bodies):
        raise ValueError(
            f"faces: expected one array, or one for each of {len(bodies)} bodies, got {len(triangles)}"
        )
    for i, (body, face) in enumerate(zip(bodies, triangles, strict=True)):
        if body.ndim != 2 or body.shape[1] != 3:
            raise ValueError(f"vertices[{i}]: expected shape (V, 3), got {body.shape}")
        if face.ndim != 2 or face.shape[1] != 3 or face.dtype.kind not in "iu":
            raise ValueError(f"faces[{i}]: expected integers of shape (F, 3), got {face.dtype} {face.shape}")
        if face.size and (face.min() < 0 or face.max() >= len(body)):
            raise ValueError(
                f"faces[{i}]: expected ids from 0 to {len(body) - 1}, got {face.min()} to {face.max()}"
            )
    return bodies, triangles


def stand_in_row(
    bodies: Sequence[Float[np.ndarray, "_ 3"]], *, spacing: float, depth: float = 0.0
) -> tuple[list[Float[np.ndarray, "_ 3"]], Float[np.ndarray, "B 3"]]:
    """Bodies moved to stand side by side along x, centred, on the ground y = 0; and the place of each.

    Args:
        bodies: vertices of each, at least one [m].
        spacing: from the middle of one body to the next [m].
        depth: z of the row [m].
    """
    places = np.zeros((len(bodies), 3))
    places[:, 0] = (np.arange(len(bodies)) - (len(bodies) - 1) / 2) * spacing
    places[:, 2] = depth
    standing = []
    for body, place in zip(bodies, places, strict=True):
        low, high = body.min(0), body.max(0)
        standing.append(body + place - [(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    return standing, places


def body_colors(
    colors: Sequence[Color] | None, bodies: Sequence[Float[np.ndarray, "_ 3"]]
) -> list[Float[np.ndarray, "_ 3"]]:
    """sRGB of each vertex of each body: the palette in turn, or one colour or one array a body.

    Raises:
        ValueError: there is not one entry a body, or one is no colour.
    """
    if colors is None:
        colors = [PALETTE[i % len(PALETTE)] for i in range(len(bodies))]
    if len(colors) != len(bodies):
        raise ValueError(f"colors: expected one for each of {len(bodies)} bodies, got {len(colors)}")
    values = [srgb(f"colors[{i}]", color) for i, color in enumerate(colors)]
    for i, (value, body) in enumerate(zip(values, bodies, strict=True)):
        if value.shape not in ((3,), body.shape):
            raise ValueError(f"colors[{i}]: expected shape (3,) or {body.shape}, got {value.shape}")
    return [np.broadcast_to(value, body.shape) for value, body in zip(values, bodies, strict=True)]


def srgb(name: str, color: Color) -> Float[np.ndarray, "*N 3"]:
    """A colour, or an array of them, as numbers from 0 to 1; ``name`` is what an error calls it.

    Raises:
        ValueError: it is no colour.
    """
    if isinstance(color, str):
        try:
            return np.array(ImageColor.getrgb(color)[:3]) / 255
        except ValueError:
            raise ValueError(f"{name}: expected a colour's name or hex code, got {color!r}") from None
    value = finite(name, color)
    if value.shape[-1:] != (3,) or value.min(initial=0) < 0 or value.max(initial=0) > 1:
        raise ValueError(f"{name}: expected red, green and blue from 0 to 1, got {color!r}")
    return value


def to_linear(srgb: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """Linear light of an sRGB colour (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def vertex_normals(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "V 3"]:
    """Unit mean of the normals of the triangles around each vertex, weighted by area; zero where none is."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    total = [np.bincount(faces.ravel(), np.repeat(normal[:, i], 3), len(vertices)) for i in range(3)]
    return unit(np.stack(total, axis=1).astype(vertices.dtype))


def unit(vector: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Vectors of length 1; zero stays zero."""
    length = np.sqrt(dot(vector, vector))[..., None]
    return vector / np.maximum(length, np.finfo(vector.dtype).tiny)


def dot(a: Float[np.ndarray, "*N 3"], b: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N"]:
    """Scalar product of each pair of vectors."""
    return np.einsum("...c,...c->...", a, b)


def finite(name: str, value: Any) -> np.ndarray:
    """An array or tensor as float64; ``name`` is what an error calls it.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    array = np.asarray(to_numpy(value), np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(array))} entries are NaN or infinite")
    return array


def _per_body(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    value = to_numpy(value)
    return list(value) if value.ndim > 2 else [value]


def to_numpy(value: Any) -> np.ndarray:
    """An array, or a tensor from any device, as an array."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
