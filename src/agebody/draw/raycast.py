"""Pictures of bodies without a display or a GPU: rays cast by Embree, shaded in NumPy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from agebody.cameras import Camera
from agebody.draw.meshes import (
    Color,
    body_colors,
    dot,
    finite,
    meshes,
    srgb,
    stand_in_row,
    to_linear,
    unit,
    vertex_normals,
)
from agebody.files import replacing

STUDIO = ("#f3efe9", "#cfc8bf")
"""The default background, from top to bottom."""

INK = "#4a4540"


def _light_direction(x: float, y: float, z: float) -> Float[np.ndarray, " 3"]:
    return np.array((x, y, z), np.float32) / np.float32(math.hypot(x, y, z))


def _light_color(red: float, green: float, blue: float, strength: float) -> Float[np.ndarray, " 3"]:
    return np.array((red, green, blue), np.float32) * np.float32(strength)


# The lights, in camera coordinates (x right, y down, z away from the viewer); colours are linear.
KEY = _light_direction(-0.45, -0.70, -0.55)
FILL = _light_direction(0.80, -0.20, -0.57)
RIM = _light_direction(0.60, -0.50, 0.62)
UP = _light_direction(0, -1, 0)
KEY_COLOR = _light_color(1.02, 0.97, 0.90, 1.05)
FILL_COLOR = _light_color(0.86, 0.93, 1.05, 0.22)
SKY_COLOR = _light_color(0.95, 0.98, 1.05, 0.40)
FLOOR_COLOR = _light_color(1.05, 0.96, 0.88, 0.22)
RIM_COLOR = _light_color(1.0, 0.97, 0.94, 0.50)
KEY_RADIUS = 0.22  # of the key light's disc, as a tangent: soft shadows
GROUND_SHARE = np.array((0.62, 0.38), np.float32)  # of the ambient and the key light, on the ground
REACH = 1.4  # of a shadow in the room [m]: bodies darken what they touch
LIFT = 1.5e-3  # of a ray's start off the surface [m]: more than from a facet to the curve it stands for
TILE = 4  # width of the pattern of light rays [pixels]
LENS = math.radians(11)  # a long lens: bodies at the ends of a row keep their shape
TILT = math.radians(7)  # of a row's camera, from above
SUBSAMPLES = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))


@dataclass(frozen=True, eq=False)
class Picture:
    """A rendered picture, and what each pixel's centre sees. The ground is seen by ``rgba`` alone."""

    rgba: UInt8[np.ndarray, "H W 4"]
    """sRGB colour and straight (not premultiplied) alpha."""
    depth: Float[np.ndarray, "H W"]
    """z in camera coordinates [m]; infinite where no body is."""
    instance: Int[np.ndarray, "H W"]
    """Which of the bodies; -1 where none is."""
    triangle: Int[np.ndarray, "H W"]
    """Which triangle of that body; -1 where none is."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the colours as an image file; its suffix says which format.

        Raises:
            ValueError: the suffix names no format that PIL writes.
            OSError: the file cannot be written.
        """
        path = Path(path)
        image_format = Image.registered_extensions().get(path.suffix.lower())
        if image_format not in Image.SAVE:
            raise ValueError(f"{path}: expected the suffix of an image, such as .png, got {path.suffix!r}")
        image = Image.fromarray(self.rgba)
        with replacing(path) as temporary:
            (image.convert("RGB") if image_format == "JPEG" else image).save(temporary, format=image_format)


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
    """A picture of one or more bodies.

    The lights stand where the camera stands: a soft key light above its left shoulder, a fill light from the
    right, a rim light from behind. The same arguments give the same bytes.

    Args:
        vertices: ``(V, 3)`` for one body, ``(B, V, 3)`` for several, or a sequence of ``(V_i, 3)``; world
            coordinates [m], an array or a tensor.
        faces: ``(F, 3)`` vertex ids that all bodies share, or one such array a body.
        camera: where the picture is taken from. What it projects to (x, y) is drawn in the pixel that covers
            that point, distortion included.
        size: width and height of the picture [pixels].
        colors: one colour a body, or one ``(V_i, 3)`` array a body with a colour for each vertex;
            ``meshes.PALETTE`` in turn by default.
        background: a colour, two colours (top and bottom), an ``(H, W, 3)`` uint8 photograph to draw over, or
            None for a transparent picture.
        ground: height of the ground [m], a plane that is invisible but for the shadows on it; +y is up.
        light_rays: rays for the ambient light of each pixel; they decide how smooth shadows are. 0 for none.

    Raises:
        ImportError: embreex is missing; install ``agebody[render]``.
        ValueError: an argument has the wrong shape or values.
    """
    if light_rays < 0:
        raise ValueError(f"light_rays: expected 0 or more, got {light_rays}")
    if ground is not None and not math.isfinite(ground):
        raise ValueError(f"ground: expected a height in metres, got {ground}")
    width, height = _checked_size(size)
    scene = _Scene(vertices, faces, colors, _checked_camera(camera), ground)
    rows, columns = np.divmod(np.arange(width * height), width)
    hits = scene.trace(columns + 0.5, rows + 0.5)
    light = _light(scene, hits, (height, width), light_rays)
    color = _shade(hits, light)
    _antialias(color, scene, hits, light, (height, width))
    body = hits.instance >= 0
    return Picture(
        rgba=_encode(_over(color.reshape(height, width, 4), background)),
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
    """A picture of bodies side by side on one ground, to one scale, seen by a long lens.

    Args:
        vertices: as in ``render``; each body is moved to its place in the row and onto the ground.
        faces: as in ``render``.
        size: width and height of the picture [pixels].
        spacing: from the middle of one body to the next [m]; by default wide enough for the widest.
        scale: size of the bodies [pixels a metre]; by default as large as the picture allows.
        colors: as in ``render``.
        background: as in ``render``.
        titles: a line or more of text beneath each body.
        text_size: height of the text [pixels].
        light_rays: as in ``render``.

    Raises:
        ImportError: embreex is missing; install ``agebody[render]``.
        ValueError: an argument has the wrong shape or values.
    """
    bodies, triangles = meshes(vertices, faces)
    if not bodies or not all(map(len, bodies)):
        raise ValueError("vertices: expected at least one body, and none of them empty")
    if titles and len(titles) != len(bodies):
        raise ValueError(f"titles: expected one for each of {len(bodies)} bodies, got {len(titles)}")
    extent = np.array([np.ptp(body, axis=0) for body in bodies])
    spacing = 1.15 * float(extent[:, 0].max()) if spacing is None else spacing
    width, height = size
    text_height = 1.4 * text_size * max((title.count("\n") + 1 for title in titles), default=0)
    margin = 0.05 * height
    if scale is None:
        room = height - text_height - 3 * margin
        scale = min(room / float(extent[:, 1].max()), width / (spacing * len(bodies)))
    aim = (height / 2 - text_height - 1.7 * margin) / scale  # height above the ground of the picture's middle
    distance = height / 2 / scale / math.tan(LENS / 2)
    eye = (0, aim + distance * math.sin(TILT), distance * math.cos(TILT))
    stand, target = torch.tensor([eye, (0, aim, 0)], dtype=torch.float64)
    camera = Camera.look_at(stand, target, size=size, fov=LENS)
    standing, places = stand_in_row(bodies, spacing=spacing)
    picture = render(
        standing,
        triangles,
        camera,
        size=size,
        colors=colors,
        background=background,
        ground=0.0,
        light_rays=light_rays,
    )
    for (x, _), title in zip(camera.project(torch.from_numpy(places)).pixels.tolist(), titles, strict=False):
        picture = _written(picture, title, (x, height - text_height - 0.5 * margin), text_size)
    return picture


def contact_sheet(
    pictures: Sequence[Picture],
    *,
    columns: int = 1,
    background: Color | tuple[Color, Color] | None = STUDIO,
    title: str = "",
    title_size: float = 36,
) -> Picture:
    """One picture of many, in a grid, row by row; what is transparent shows the common background.

    Args:
        pictures: what to show; a row is as high as its highest picture, and a column as wide as its widest.
        columns: pictures in a row.
        background: as in ``render``.
        title: a line of text above the grid.
        title_size: height of that line [pixels].

    Raises:
        ValueError: there is no picture or no column.
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
        color[cell] = np.concatenate([_decode(picture.rgba[..., :3]) * alpha, alpha], axis=-1)
        depth[cell] = picture.depth
        instance[cell], triangle[cell] = picture.instance, picture.triangle
    sheet = Picture(_encode(_over(color, background)), depth, instance, triangle)
    return _written(sheet, title, (shape[1] / 2, 0.7 * title_size), title_size) if title else sheet


def _written(picture: Picture, text: str, top: tuple[float, float], size: float) -> Picture:
    """The picture with text centred beneath a point."""
    image = Image.fromarray(picture.rgba)
    ImageDraw.Draw(image).multiline_text(
        top, text, fill=INK, font=ImageFont.load_default(size), anchor="ma", align="center", spacing=size / 4
    )
    return dataclasses.replace(picture, rgba=np.asarray(image))


class _Hits(NamedTuple):
    """What the camera sees through each of N points of the picture."""

    position: Float[np.ndarray, "N 3"]
    """Camera coordinates [m]."""
    depth: Float[np.ndarray, " N"]
    """z of the body or the ground [m]; infinite where neither is."""
    normal: Float[np.ndarray, "N 3"]
    """Smooth unit normal, towards the viewer."""
    color: Float[np.ndarray, "N 3"]
    """Linear albedo."""
    instance: Int[np.ndarray, " N"]
    """-1 on the ground and where nothing is."""
    triangle: Int[np.ndarray, " N"]


class _Scene:
    """All bodies as one mesh in camera coordinates, ready for rays."""

    def __init__(self, vertices: Any, faces: Any, colors: Any, camera: Camera, ground: float | None) -> None:
        bodies, triangles = meshes(vertices, faces)
        self.points = _stack([camera.to_camera(torch.from_numpy(b)).numpy() for b in bodies], np.float32)
        starts = np.cumsum([0, *map(len, bodies)])
        self.faces = _stack([face + start for face, start in zip(triangles, starts, strict=False)], np.int32)
        self.colors = _stack([to_linear(color) for color in body_colors(colors, bodies)], np.float32)
        self.normals = vertex_normals(self.points, self.faces)
        counts = [len(face) for face in triangles]
        self.instance = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.triangle = _stack([np.arange(count)[:, None] for count in counts], np.int32, 1)[:, 0]
        self.lens = camera._replace(rotation=None, translation=None)
        pose = camera.world_to_camera.numpy()
        self.up = pose[:3, 1]  # the world's y axis as the camera sees it
        self.ground = None if ground is None else ground + self.up @ pose[:3, 3]
        scene_type, mesh_type = _embree()
        self.embree = scene_type(robust=True)
        if len(self.faces):
            mesh_type(self.embree, self.points, self.faces)

    def trace(self, u: Float[np.ndarray, " N"], v: Float[np.ndarray, " N"]) -> _Hits:
        """What is seen at image coordinates (u, v) [pixels]."""
        image = torch.from_numpy(np.stack([u, v], axis=1))
        at_one = image.new_ones(len(image))  # so a ray's length is depth
        direction = np.ascontiguousarray(self.lens.unproject(image, at_one).numpy(), np.float32)
        ray = self.embree.run(np.zeros_like(direction), direction, output=True)
        hit = np.flatnonzero(ray["primID"] >= 0)
        face = ray["primID"][hit]
        corners = self.faces[face]
        weights = np.stack([1 - ray["u"] - ray["v"], ray["u"], ray["v"]], axis=1)[hit]
        normal, color = np.zeros_like(direction), np.zeros_like(direction)
        depth = np.full(len(u), np.inf, np.float32)
        instance, triangle = np.full((2, len(u)), -1, np.int32)
        depth[hit] = ray["tfar"][hit]
        smooth = unit(np.einsum("nk,nkc->nc", weights, self.normals[corners]))
        away = dot(ray["Ng"][hit], direction[hit]) > 0
        normal[hit] = np.where(away[:, None], -smooth, smooth)
        color[hit] = np.einsum("nk,nkc->nc", weights, self.colors[corners])
        instance[hit], triangle[hit] = self.instance[face], self.triangle[face]
        if self.ground is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                distance = (self.ground / (direction @ self.up)).astype(np.float32)
            floor = np.flatnonzero((direction @ self.up < 0) & (distance > 0) & (distance < depth))
            depth[floor], normal[floor] = distance[floor], self.up
            instance[floor] = triangle[floor] = -1
        with np.errstate(invalid="ignore"):
            position = direction * depth[:, None]
        return _Hits(position, depth, normal, color, instance, triangle)

    def free(
        self,
        origin: Float[np.ndarray, "N 3"],
        direction: Float[np.ndarray, "N 3"],
        reach: Float[np.ndarray, " N"],
    ) -> Bool[np.ndarray, " N"]:
        """Whether each ray goes as far as its reach [m] without meeting a body."""
        return self.embree.run(origin, direction, reach.astype(np.float32), query="OCCLUDED") < 0


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if int(width) != width or int(height) != height or width < 1 or height < 1:
        raise ValueError(f"size: expected a width and a height of at least one pixel, got {size}")
    return int(width), int(height)


def _checked_camera(camera: Camera) -> Camera:
    """One camera in float64, after its numbers are looked at."""
    parts = {name: part for name, part in camera._asdict().items() if part is not None}
    for name, part in parts.items():
        if part.dim() != (2 if name == "rotation" else 1):
            raise ValueError(
                f"camera.{name}: expected one camera, not a batch, got shape {tuple(part.shape)}"
            )
    one = Camera(**{name: torch.from_numpy(finite(f"camera.{name}", part)) for name, part in parts.items()})
    return Camera.from_matrix(one.intrinsics, one.world_to_camera, distortion=one.distortion)


def _light(scene: _Scene, hits: _Hits, shape: tuple[int, int], rays: int) -> Float[np.ndarray, "N 2"]:
    """Share of the ambient and of the key light that reaches each pixel.

    Interleaved sampling (Keller and Heidrich 2001): each pixel of a 4x4 tile looks in its own directions, and
    every 4x4 window together in all of them, so that the mean over a window has no noise where the surface is
    flat. Rays end at all distances up to REACH: what is near darkens more, and no shadow ends at once.
    """
    light = np.ones((len(hits.depth), 2), np.float32)
    if rays == 0 or len(scene.faces) == 0:
        return light
    _, width = shape
    low, high = scene.points.min(0) - REACH, scene.points.max(0) + REACH
    near = np.isfinite(hits.depth) & ((hits.position > low) & (hits.position < high)).all(1)
    index = np.flatnonzero(near)
    normal = hits.normal[index]
    origin = hits.position[index] + LIFT * normal
    tangents, key_tangents = _tangents(normal), _tangents(KEY[None])
    tile = (index // width % TILE) * TILE + index % width % TILE
    facing = np.flatnonzero(normal @ KEY > 0)
    floor = hits.instance[index] < 0
    free = np.zeros((len(index), 2), np.float32)
    for ray in range(rays):
        a, b, c = _spread(tile * rays + ray)
        reach = REACH * c
        x, y = np.sqrt(b) * np.cos(2 * np.pi * a), np.sqrt(b) * np.sin(2 * np.pi * a)
        sky = _combine(x, y, np.sqrt(1 - b), *tangents, normal)
        free[:, 0] += scene.free(origin, sky, reach)
        key = _combine(KEY_RADIUS * x, KEY_RADIUS * y, np.ones_like(x), *key_tangents, KEY[None])
        free[facing, 1] += scene.free(origin[facing], key[facing], np.where(floor, reach, np.inf)[facing])
    light[index] = free / rays
    for step in (width, 1):
        for first in (-2, -1):  # windows to either side of the pixel: together they are symmetric
            light[index] = _line_mean(light, hits, index, range(first, first + TILE), step, width)
    return light


def _line_mean(
    light: Float[np.ndarray, "N 2"],
    hits: _Hits,
    index: Int[np.ndarray, " M"],
    window: range,
    step: int,
    width: int,
) -> Float[np.ndarray, "M 2"]:
    """Mean over the pixels on the same surface in a window along a column (step = width) or a row (1)."""
    normal, instance, depth = hits.normal[index], hits.instance[index], hits.depth[index]
    total, count = light[index], np.ones((len(index), 1), np.float32)
    for shift in window:
        if shift == 0:
            continue
        other = index + shift * step
        inside = (other >= 0) & (other < len(light)) & ((step != 1) | (other // width == index // width))
        other = np.where(inside, other, index)
        same = inside & (hits.instance[other] == instance) & (dot(hits.normal[other], normal) > 0.8)
        with np.errstate(invalid="ignore"):
            same &= np.abs(hits.depth[other] - depth) < 0.02 * depth
        total += light[other] * same[:, None]
        count += same[:, None]
    return total / count


def _shade(hits: _Hits, light: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 4"]:
    """Linear colour of each sample, premultiplied by its alpha; the ground is its shadow's alpha."""
    color = np.zeros((len(hits.depth), 4), np.float32)
    floor = np.isfinite(hits.depth) & (hits.instance < 0)
    color[floor, 3] = 1 - light[floor] @ GROUND_SHARE
    body = np.flatnonzero(hits.instance >= 0)
    normal, albedo = hits.normal[body], hits.color[body]
    view = unit(-hits.position[body])
    ambient, key = light[body, :1], light[body, 1:]

    def toward(direction: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "N 1"]:
        return (normal @ direction)[:, None]

    sky = 0.5 + 0.5 * toward(UP)
    diffuse = (
        KEY_COLOR * key * np.maximum(toward(KEY), 0)
        + FILL_COLOR * ambient * np.maximum(0.4 + 0.6 * toward(FILL), 0)
        + ambient * (sky * SKY_COLOR + (1 - sky) * FLOOR_COLOR)
    )
    half = unit(view + KEY)
    edge = (1 - np.clip(dot(normal, view), 0, 1)[:, None]) ** 3
    gloss = 0.10 * key * np.clip(dot(normal, half), 0, 1)[:, None] ** 20
    rim = RIM_COLOR * ambient * edge * np.maximum(0.3 + 0.7 * toward(RIM), 0)
    color[body, :3] = albedo * diffuse + gloss + rim * (0.3 + 0.7 * albedo)
    color[body, 3] = 1
    return color


def _antialias(
    color: Float[np.ndarray, "N 4"],
    scene: _Scene,
    hits: _Hits,
    light: Float[np.ndarray, "N 2"],
    shape: tuple[int, int],
) -> None:
    """Give pixels on or beside an outline or a crease the mean colour of several samples in them."""
    _, width = shape
    instance, normal = hits.instance.reshape(shape), hits.normal.reshape(*shape, 3)
    edge = np.zeros(shape, bool)
    for axis in (0, 1):
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(first), tuple(second)
        differs = (instance[a] != instance[b]) | ((dot(normal[a], normal[b]) < 0.8) & (instance[a] >= 0))
        edge[a] |= differs
        edge[b] |= differs
    rows, columns = np.nonzero(_grown(edge))
    if len(rows) == 0:
        return
    mean = np.zeros((len(rows), 4), np.float32)
    for right, down in SUBSAMPLES:
        sample = scene.trace(columns + 0.5 + right, rows + 0.5 + down)
        mean += _shade(sample, _borrowed(light, hits, sample, rows, columns, shape))
    color[rows * width + columns] = mean / len(SUBSAMPLES)


def _borrowed(
    light: Float[np.ndarray, "N 2"],
    hits: _Hits,
    sample: _Hits,
    rows: Int[np.ndarray, " M"],
    columns: Int[np.ndarray, " M"],
    shape: tuple[int, int],
) -> Float[np.ndarray, "M 2"]:
    """Light of the most similar surface among the 3x3 pixels around each sample."""
    height, width = shape
    best, cost = np.zeros(len(rows), int), np.full(len(rows), np.inf)
    for down, right in np.ndindex(3, 3):
        row, column = np.clip(rows + down - 1, 0, height - 1), np.clip(columns + right - 1, 0, width - 1)
        other = row * width + column
        unlike = 1 - dot(hits.normal[other], sample.normal)
        unlike += 4.0 * (hits.instance[other] != sample.instance)
        unlike += 0.1 * (abs(down - 1) + abs(right - 1))
        better = unlike < cost
        best[better], cost[better] = other[better], unlike[better]
    return light[best]


def _grown(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The mask and its eight neighbours: a finger thinner than a pixel shows at its ends only."""
    wide = np.pad(mask, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _embree() -> tuple[Any, Any]:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise ImportError(
            "pictures need embreex, which is not installed; pip install 'agebody[render]'"
        ) from error
    return EmbreeScene, TriangleMesh


def _stack(arrays: list[np.ndarray], dtype: Any, width: int = 3) -> np.ndarray:
    return np.ascontiguousarray(np.concatenate([np.zeros((0, width)), *arrays]), dtype)


def _spread(index: Int[np.ndarray, " N"]) -> Float[np.ndarray, "3 N"]:
    """Points that fill the unit cube evenly (Roberts' R3 sequence)."""
    return np.mod(0.5 + np.outer((0.8191725133961645, 0.6710436067037893, 0.5497004779019703), index), 1)


def _tangents(normal: Float[np.ndarray, "N 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors that complete each normal to a frame (Duff et al. 2017, equation 1)."""
    x, y, z = normal.T
    sign = np.where(z >= 0, 1, -1).astype(np.float32)
    a = -1 / (sign + z)
    b = x * y * a
    return np.stack([1 + sign * x * x * a, sign * b, -sign * x], 1), np.stack([b, sign + y * y * a, -y], 1)


def _combine(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, e1: np.ndarray, e2: np.ndarray, e3: np.ndarray
) -> np.ndarray:
    return (x[:, None] * e1 + y[:, None] * e2 + z[:, None] * e3).astype(np.float32)


def _over(color: Float[np.ndarray, "H W 4"], background: Any) -> Float[np.ndarray, "H W 4"]:
    """A premultiplied picture over its background, linear; straight alpha where there is no background."""
    alpha = color[..., 3:]
    if background is None:
        return np.concatenate([color[..., :3] / np.maximum(alpha, 1e-6), alpha], axis=-1)
    height, width = alpha.shape[:2]
    if isinstance(background, np.ndarray) and background.ndim == 3:
        if background.shape != (height, width, 3) or background.dtype != np.uint8:
            raise ValueError(
                f"background: expected a uint8 image of shape ({height}, {width}, 3), "
                f"got {background.dtype} {background.shape}"
            )
        behind = _decode(background)
    else:
        pair = (
            background if isinstance(background, tuple) and len(background) == 2 else (background, background)
        )
        top, bottom = (srgb("background", end) for end in pair)
        behind = to_linear(top + np.linspace(0, 1, height)[:, None, None] * (bottom - top))
    return np.concatenate(
        [color[..., :3] + (1 - alpha) * behind.astype(np.float32), np.ones_like(alpha)], axis=-1
    )


def _encode(linear: Float[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 4"]:
    value = np.clip(linear, 0, 1)
    rgb = value[..., :3]
    value[..., :3] = np.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return np.rint(value * 255).astype(np.uint8)


def _decode(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    return to_linear(np.arange(256) / 255).astype(np.float32)[pixels]
