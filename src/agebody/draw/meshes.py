"""The input of pictures and mesh files: bodies as arrays, with normals and colours."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import ImageColor

Color: TypeAlias = str | Sequence[float] | np.ndarray
"""An sRGB colour: a name or hex code that PIL knows ("#c98a72"), or three numbers from 0 to 1."""

PALETTE = ("#c98a72", "#d3b06f", "#97a883", "#7c9fa6", "#8a90b3", "#a98598", "#a3968a", "#b9785a")
"""Default colours of bodies, in turn: clay, ochre, sage, lagoon, slate, mauve, stone, terracotta."""


def read_meshes(
    vertices: Any, faces: Any
) -> tuple[list[Float[np.ndarray, "_ 3"]], list[Int[np.ndarray, "_ 3"]]]:
    """Return the vertices (float64) and the faces of each body.

    Args:
        vertices: ``(V, 3)``, ``(B, V, 3)`` or a sequence of ``(V_i, 3)``, as arrays or tensors.
        faces: ``(F, 3)`` for all bodies, or one such array per body.
    """
    bodies = [read_finite(f"vertices[{i}]", body) for i, body in enumerate(_split(vertices))]
    triangles = [to_numpy(face) for face in _split(faces)]
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
    """Move bodies side by side along x, centred, onto the ground y = 0; return them and their places.

    The ``spacing`` is from the middle of one body to the next [m], ``depth`` the z of the row [m].
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
    """Return the sRGB colour of each vertex, from one colour or one array per body, or from the palette."""
    if colors is None:
        colors = [PALETTE[i % len(PALETTE)] for i in range(len(bodies))]
    if len(colors) != len(bodies):
        raise ValueError(f"colors: expected one for each of {len(bodies)} bodies, got {len(colors)}")
    values = [read_color(f"colors[{i}]", color) for i, color in enumerate(colors)]
    for i, (value, body) in enumerate(zip(values, bodies, strict=True)):
        if value.shape not in ((3,), body.shape):
            raise ValueError(f"colors[{i}]: expected shape (3,) or {body.shape}, got {value.shape}")
    return [np.broadcast_to(value, body.shape) for value, body in zip(values, bodies, strict=True)]


def read_color(name: str, color: Color) -> Float[np.ndarray, "*N 3"]:
    """Return a colour, or an array of colours, as sRGB from 0 to 1; errors begin with ``name``."""
    if isinstance(color, str):
        try:
            return np.array(ImageColor.getrgb(color)[:3]) / 255
        except ValueError:
            raise ValueError(f"{name}: expected a colour's name or hex code, got {one_line(color)}") from None
    value = read_finite(name, color)
    if value.shape[-1:] != (3,) or value.min(initial=0) < 0 or value.max(initial=0) > 1:
        raise ValueError(f"{name}: expected red, green and blue from 0 to 1, got {one_line(color)}")
    return value


def to_linear(srgb: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """Convert sRGB from 0 to 1 to linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """Convert linear light from 0 to 1 to sRGB; the inverse of `to_linear`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def pixels_to_linear(pixels: UInt8[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N 3"]:
    """Convert 8-bit sRGB to linear light."""
    return to_linear(np.arange(256) / 255)[pixels]


def vertex_normals(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "V 3"]:
    """Return the unit, area-weighted mean normal of the triangles around each vertex; zero without any."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    total = [np.bincount(faces.ravel(), np.repeat(normal[:, i], 3), len(vertices)) for i in range(3)]
    return unit(np.stack(total, axis=1).astype(vertices.dtype))


def unit(vector: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Scale vectors to length 1; zero stays zero."""
    length = np.sqrt(dot(vector, vector))[..., None]
    return vector / np.maximum(length, np.finfo(vector.dtype).tiny)


def dot(a: Float[np.ndarray, "*N 3"], b: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N"]:
    """Return the scalar product of each pair of vectors."""
    return np.einsum("...c,...c->...", a, b)


def read_finite(name: str, value: Any) -> np.ndarray:
    """Return an array or tensor as float64; errors begin with ``name``."""
    array = np.asarray(to_numpy(value), np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(array))} entries are NaN or infinite")
    return array


def to_numpy(value: Any) -> np.ndarray:
    """Return an array, or a tensor from any device, as an array."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16


def one_line(value: Any) -> str:
    """Return a value as error messages show it."""
    return " ".join(reprlib.repr(value).split())


def _split(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    value = to_numpy(value)
    return list(value) if value.ndim > 2 else [value]
