"""Pictures of bodies, drawn without a display or a GPU."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from agebody.cameras import Camera
from agebody.cameras.camera import expect_camera
from agebody.checks import read_count, read_number, read_positive
from agebody.draw.meshes import (
    Color,
    one_line,
    pixels_to_linear,
    read_color,
    read_finite,
    read_meshes,
    stand_in_row,
    to_linear,
    to_numpy,
    to_srgb,
)
from agebody.draw.raycast import Scene, shade_pixels
from agebody.files import replacing

STUDIO = ("#f3efe9", "#cfc8bf")
"""The default background, from top to bottom."""
INK = "#4a4540"
"""The colour of text."""
LENS = math.radians(11)  # a long lens: bodies at the ends of a row keep their shape
TILT = math.radians(7)  # of the camera of a row, from above


@dataclass(frozen=True, eq=False)
class Picture:
    """A rendered picture, and what the centre of each pixel shows; only ``rgba`` shows the ground."""

    rgba: UInt8[np.ndarray, "H W 4"]
    """sRGB colour and straight (not premultiplied) alpha."""
    depth: Float[np.ndarray, "H W"]
    """z in camera coordinates [m]; infinite without a body."""
    instance: Int[np.ndarray, "H W"]
    """Index of the body; -1 without one."""
    triangle: Int[np.ndarray, "H W"]
    """Index of the triangle in that body; -1 without one."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the colours to an image file; its suffix sets the format.

        Raises:
            OSError: the file cannot be written.
        """
        path = Path(path)
        image_format = Image.registered_extensions().get(path.suffix.lower())
        if image_format not in Image.SAVE:
            raise ValueError(f"{path}: expected the suffix of an image, such as .png, got {path.suffix!r}")
        image = Image.fromarray(self.rgba)
        with replacing(path) as temporary:
            (image.convert("RGB") if image_format == "JPEG" else image).save(temporary, format=image_format)

    def _repr_png_(self) -> bytes:
        """Return the colours as PNG: notebooks show a picture by itself."""
        file = io.BytesIO()
        Image.fromarray(self.rgba).save(file, "PNG")
        return file.getvalue()


def render(
    vertices: Any,
    faces: Any,
    camera: Camera,
    *,
    size: tuple[int, int],
    colors: Sequence[Color] | None = None,
    background: Color | tuple[Color, Color] | UInt8[np.ndarray, "H W 3"] | None = STUDIO,
    ground: float | None = None,
    light_rays: int = 4,
) -> Picture:
    """Draw one or more bodies.

    The lights move with the camera: a soft key light from above left, a fill light from the right, a rim
    light from behind. The same arguments give the same bytes.

    Args:
        vertices: ``(V, 3)`` for one body, ``(B, V, 3)`` for several, or a sequence of ``(V_i, 3)``; world
            coordinates [m], an array or a tensor.
        faces: ``(F, 3)`` vertex ids that all bodies share, or one such array per body.
        camera: one camera. A point that it projects to (x, y) is drawn in the pixel that covers (x, y),
            distortion included.
        size: width and height of the picture [pixels].
        colors: one colour per body, or one ``(V_i, 3)`` array per body with a colour for each vertex;
            ``PALETTE`` in turn by default.
        background: a colour, two colours (top and bottom), an ``(H, W, 3)`` uint8 photograph to draw over, or
            None for a transparent picture.
        ground: height of the ground [m], a plane that shows only the shadows on it; +y is up.
        light_rays: rays per pixel for ambient light and shadows; more are smoother, 0 leaves shadows out.

    Raises:
        ImportError: embreex is missing; install ``agebody[render]``.
    """
    expect_camera(camera)
    read_count("light_rays", light_rays)
    if ground is not None:
        ground = read_number("ground", ground, "a height in metres")
    width, height = _read_size(size)
    scene = Scene(vertices, faces, colors, _read_camera(camera), ground)
    color, hits = shade_pixels(scene, (width, height), light_rays)
    body = hits.instance >= 0
    return Picture(
        rgba=encode_pixels(add_background(color.reshape(height, width, 4), background)),
        depth=np.where(body, hits.depth, np.inf).astype(np.float32).reshape(height, width),
        instance=hits.instance.reshape(height, width),
        triangle=np.where(body, hits.triangle, -1).reshape(height, width),
    )


def lineup(
    vertices: Any,
    faces: Any,
    *,
    size: tuple[int, int] = (1600, 500),
    spacing: float | None = None,
    scale: float | None = None,
    colors: Sequence[Color] | None = None,
    background: Color | tuple[Color, Color] | None = STUDIO,
    titles: Sequence[str] = (),
    text_size: float = 20,
    light_rays: int = 4,
) -> Picture:
    """Draw bodies side by side on the ground, at one scale, through a long lens.

    Args:
        vertices: as in ``render``; each body is moved to its place in the row and onto the ground.
        faces: as in ``render``.
        size: width and height of the picture [pixels].
        spacing: from the middle of one body to the next [m]; by default wide enough for the widest.
        scale: size of the bodies [pixels per metre]; by default as large as the picture allows.
        colors: as in ``render``.
        background: as in ``render``.
        titles: one or more lines of text beneath each body.
        text_size: height of the text [pixels].
        light_rays: as in ``render``.

    Raises:
        ImportError: embreex is missing; install ``agebody[render]``.
    """
    bodies, triangles = read_meshes(vertices, faces)
    if not bodies or not all(map(len, bodies)):
        raise ValueError("vertices: expected at least one body, and none of them empty")
    if titles and len(titles) != len(bodies):
        raise ValueError(f"titles: expected one for each of {len(bodies)} bodies, got {len(titles)}")
    extent = np.array([np.ptp(body, axis=0) for body in bodies])
    spacing = 1.15 * float(extent[:, 0].max()) if spacing is None else spacing
    width, height = size = _read_size(size)
    for name, value in (("spacing", spacing), ("scale", scale), ("text_size", text_size)):
        if value is not None or name == "text_size":
            read_positive(name, value)
    text_height = 1.4 * text_size * max((title.count("\n") + 1 for title in titles), default=0)
    margin = 0.05 * height
    if scale is None:
        room = height - text_height - 3 * margin
        if room <= 0:
            raise ValueError(f"size, text_size: expected room above the titles, got {size} and {text_size}")
        scale = width / (spacing * len(bodies))
        scale = room / max(float(extent[:, 1].max()), room / scale)
    aim = (height / 2 - text_height - 1.7 * margin) / scale  # height above the ground of the picture's middle
    distance = height / 2 / scale / math.tan(LENS / 2)
    eye = (0, aim + distance * math.sin(TILT), distance * math.cos(TILT))
    stand, target = torch.tensor([eye, (0, aim, 0)], dtype=torch.float64)
    camera = Camera.look_at(stand, target, size=size, fov=LENS)
    standing, places = stand_in_row(bodies, spacing=spacing)
    look = {"colors": colors, "background": background, "light_rays": light_rays}
    picture = render(standing, triangles, camera, size=size, ground=0.0, **look)
    for (x, _), title in zip(camera.project(torch.from_numpy(places)).pixels.tolist(), titles, strict=False):
        picture = _add_text(picture, title, (x, height - text_height - 0.5 * margin), text_size)
    return picture


def contact_sheet(
    pictures: Sequence[Picture],
    *,
    columns: int = 1,
    background: Color | tuple[Color, Color] | None = STUDIO,
    title: str = "",
    title_size: float = 36,
) -> Picture:
    """Join pictures in a grid, row by row; a common background shows through transparent pixels.

    Args:
        pictures: a row is as high as its highest picture, and a column as wide as its widest.
        columns: number of pictures per row.
        background: as in ``render``.
        title: a line of text above the grid.
        title_size: height of that line [pixels].
    """
    if not pictures or columns < 1:
        raise ValueError(
            f"pictures, columns: expected at least one of each, got {len(pictures)} and {columns}"
        )
    sizes = np.zeros((-(-len(pictures) // columns) * columns, 2), int)
    sizes[: len(pictures)] = [picture.depth.shape for picture in pictures]
    grid = sizes.reshape(-1, columns, 2)
    top = round(2 * title_size) if title else 0
    rows = np.cumsum([top, *grid[..., 0].max(1)])
    lefts = np.cumsum([0, *grid[..., 1].max(0)])
    shape = (rows[-1], lefts[-1])
    color = np.zeros((*shape, 4), np.float32)
    depth = np.full(shape, np.inf, np.float32)
    instance, triangle = np.full((2, *shape), -1, np.int32)
    for i, picture in enumerate(pictures):
        row, left = rows[i // columns], lefts[i % columns]
        cell = np.s_[row : row + sizes[i, 0], left : left + sizes[i, 1]]
        alpha = picture.rgba[..., 3:] / np.float32(255)
        color[cell] = np.concatenate(
            [pixels_to_linear(picture.rgba[..., :3]).astype(np.float32) * alpha, alpha], axis=-1
        )
        depth[cell] = picture.depth
        instance[cell], triangle[cell] = picture.instance, picture.triangle
    sheet = Picture(encode_pixels(add_background(color, background)), depth, instance, triangle)
    return _add_text(sheet, title, (shape[1] / 2, 0.7 * title_size), title_size) if title else sheet


def _add_text(picture: Picture, text: str, top: tuple[float, float], size: float) -> Picture:
    """Return the picture with text centred beneath a point."""
    image = Image.fromarray(picture.rgba)
    ImageDraw.Draw(image).multiline_text(
        top, text, fill=INK, font=ImageFont.load_default(size), anchor="ma", align="center", spacing=size / 4
    )
    return dataclasses.replace(picture, rgba=np.asarray(image))


def _read_size(size: tuple[int, int]) -> tuple[int, int]:
    sides = np.asarray(size)
    whole = sides.shape == (2,) and sides.dtype.kind in "iuf" and (sides >= 1) & (sides < 2**31)
    if not np.all(whole) or (sides % 1).any():
        raise ValueError(f"size: expected a width and a height of at least one pixel, got {size}")
    return int(sides[0]), int(sides[1])


def _read_camera(camera: Camera) -> Camera:
    """Return the camera in float64, after a check of its shapes and numbers."""
    parts = {name: part for name, part in camera._asdict().items() if part is not None}
    for name, part in parts.items():
        if part.dim() != (2 if name == "rotation" else 1):
            raise ValueError(
                f"camera.{name}: expected one camera, not a batch, got shape {tuple(part.shape)}"
            )
    one = Camera(
        **{name: torch.from_numpy(read_finite(f"camera.{name}", part)) for name, part in parts.items()}
    )
    return Camera.from_matrix(one.intrinsics, one.world_to_camera, distortion=one.distortion)


def add_background(color: Float[np.ndarray, "H W 4"], background: Any) -> Float[np.ndarray, "H W 4"]:
    """Put a linear premultiplied picture over its background; without one, return straight alpha."""
    alpha = color[..., 3:]
    if background is None:
        return np.concatenate([color[..., :3] / np.maximum(alpha, 1e-6), alpha], axis=-1)
    height, width = alpha.shape[:2]
    if not isinstance(background, (str, tuple, list)):
        background = to_numpy(background)
    if isinstance(background, np.ndarray) and background.ndim > 1:
        if background.shape != (height, width, 3) or background.dtype != np.uint8:
            raise ValueError(
                f"background: expected a uint8 image of shape ({height}, {width}, 3), "
                f"got {background.dtype} {background.shape}"
            )
        behind = pixels_to_linear(background)
    else:
        two = isinstance(background, (tuple, list)) and len(background) == 2
        top, bottom = (read_color("background", end) for end in (background if two else [background] * 2))
        if top.shape != (3,) or bottom.shape != (3,):
            raise ValueError(f"background: expected one colour, or two, got {one_line(background)}")
        behind = to_linear(top + np.linspace(0, 1, height)[:, None, None] * (bottom - top))
    mixed = color[..., :3] + (1 - alpha) * behind.astype(np.float32)
    return np.concatenate([mixed, np.ones_like(alpha)], axis=-1)


def encode_pixels(linear: Float[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 4"]:
    """Return a picture with straight alpha as 8-bit sRGB."""
    value = np.clip(linear, 0, 1)
    value[..., :3] = to_srgb(value[..., :3])
    return np.rint(value * 255).astype(np.uint8)
