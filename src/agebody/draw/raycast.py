"""Rays from a camera to bodies, cast by Embree, and the shading of what they hit, in NumPy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from agebody.cameras import Camera
from agebody.draw.meshes import body_colors, dot, read_meshes, to_linear, unit, vertex_normals


def _light_direction(x: float, y: float, z: float) -> Float[np.ndarray, " 3"]:
    return np.array((x, y, z), np.float32) / np.float32(math.hypot(x, y, z))


def _light_color(red: float, green: float, blue: float, strength: float) -> Float[np.ndarray, " 3"]:
    return np.array((red, green, blue), np.float32) * np.float32(strength)


class Lights(NamedTuple):
    """Unit directions to the lights, in camera coordinates (x right, y down, z away), and linear colours."""

    key: Float[np.ndarray, " 3"] = _light_direction(-0.45, -0.70, -0.55)
    key_color: Float[np.ndarray, " 3"] = _light_color(1.02, 0.97, 0.90, 1.05)
    fill: Float[np.ndarray, " 3"] = _light_direction(0.80, -0.20, -0.57)
    fill_color: Float[np.ndarray, " 3"] = _light_color(0.86, 0.93, 1.05, 0.22)
    rim: Float[np.ndarray, " 3"] = _light_direction(0.60, -0.50, 0.62)
    rim_color: Float[np.ndarray, " 3"] = _light_color(1.0, 0.97, 0.94, 0.50)
    sky_color: Float[np.ndarray, " 3"] = _light_color(0.95, 0.98, 1.05, 0.40)
    floor_color: Float[np.ndarray, " 3"] = _light_color(1.05, 0.96, 0.88, 0.22)


STUDIO_LIGHTS = Lights()
UP = _light_direction(0, -1, 0)
KEY_RADIUS = 0.22  # of the key light's disc, as a tangent: soft shadows
GROUND_SHARE = np.array((0.62, 0.38), np.float32)  # of the ambient and the key light, on the ground
REACH = 1.4  # of a shadow [m]: bodies darken what they touch
LIFT = 1.5e-3  # of a ray's start off the surface [m]: more than facets deviate from the curved surface
TILE = 4  # width of the pattern of light rays [pixels]
NEAR = 0.01  # [m]: bodies that reach nearer to the camera may be anywhere in the picture
SUBSAMPLES = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))


class Hits(NamedTuple):
    """Bodies and ground at N points of a picture."""

    position: Float[np.ndarray, "N 3"]
    """Camera coordinates [m]."""
    depth: Float[np.ndarray, " N"]
    """z of the body or the ground [m]; infinite where there is neither."""
    normal: Float[np.ndarray, "N 3"]
    """Smooth unit normal that faces the viewer."""
    color: Float[np.ndarray, "N 3"]
    """Linear albedo."""
    instance: Int[np.ndarray, " N"]
    """Index of the body; -1 on the ground and where there is nothing."""
    triangle: Int[np.ndarray, " N"]
    """Index of the triangle in that body; -1 as in ``instance``."""


class Scene:
    """All bodies as one mesh in camera coordinates, to trace rays in."""

    def __init__(
        self,
        vertices: Any,
        faces: Any,
        colors: Any,
        camera: Camera,
        ground: float | None,
        lights: Lights = STUDIO_LIGHTS,
    ) -> None:
        self.lights = lights
        bodies, triangles = read_meshes(vertices, faces)
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
        scene_type, mesh_type = _load_embree()
        self.embree = scene_type(robust=True)
        if len(self.faces):
            mesh_type(self.embree, self.points, self.faces)

    def window(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns outside of which a picture shows nothing, from whole tiles on."""
        width, height = size
        whole = self.ground is not None or self.lens.distortion is not None
        if whole or not len(self.points) or self.points[:, 2].min() < NEAR:
            return slice(0, height), slice(0, width)
        pixels = self.lens.project(torch.from_numpy(self.points).double()).pixels.numpy()
        sides = np.array(size)
        low = np.clip(pixels.min(0) - TILE, 0, sides - 1).astype(int) // TILE * TILE
        high = np.clip(pixels.max(0) + TILE, low + 1, sides).astype(int)
        (left, top), (right, bottom) = low.tolist(), high.tolist()
        return slice(top, bottom), slice(left, right)

    def trace(self, u: Float[np.ndarray, " N"], v: Float[np.ndarray, " N"]) -> Hits:
        """Return the bodies and ground at image coordinates (u, v) [pixels]."""
        image = torch.from_numpy(np.stack([u, v], axis=1))
        at_depth_one = self.lens.unproject(image, image.new_ones(len(image)))  # so ray lengths are depths
        direction = np.ascontiguousarray(at_depth_one.numpy(), np.float32)
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
        a, b, c = np.moveaxis(self.points[corners], 1, 0)
        # Not Embree's own normals: their sign depends on its version.
        away = dot(np.cross(b - a, c - a), direction[hit]) > 0
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
        return Hits(position, depth, normal, color, instance, triangle)

    def free(
        self,
        origin: Float[np.ndarray, "N 3"],
        direction: Float[np.ndarray, "N 3"],
        reach: Float[np.ndarray, " N"],
    ) -> Bool[np.ndarray, " N"]:
        """Return whether each ray meets no body within its reach [m]."""
        return self.embree.run(origin, direction, reach.astype(np.float32), query="OCCLUDED") < 0


def shade_pixels(
    scene: Scene, size: tuple[int, int], light_rays: int
) -> tuple[Float[np.ndarray, "N 4"], Hits]:
    """Return the linear premultiplied colour of each pixel, row by row, and what its centre shows."""
    place = scene.window(size)
    top, left = (part.start for part in place)
    height, width = shape = tuple(part.stop - part.start for part in place)
    rows, columns = np.divmod(np.arange(width * height), width)
    hits = scene.trace(columns + left + 0.5, rows + top + 0.5)
    light = _sample_light(scene, hits, shape, light_rays)
    color = _shade(hits, light, scene.lights)
    _antialias(color, scene, hits, light, place)

    def whole(part: np.ndarray, empty: float) -> np.ndarray:
        picture = np.full((*size[::-1], *part.shape[1:]), empty, part.dtype)
        picture[place] = part.reshape(*shape, *part.shape[1:])
        return picture.reshape(-1, *part.shape[1:])

    empty = (np.nan, np.inf, 0, 0, -1, -1)  # as rays are that meet nothing
    return whole(color, 0), Hits(*map(whole, hits, empty))


def _sample_light(scene: Scene, hits: Hits, shape: tuple[int, int], rays: int) -> Float[np.ndarray, "N 2"]:
    """Return the shares of the ambient and of the key light that reach each pixel.

    Interleaved sampling (Keller and Heidrich 2001): each pixel of a 4x4 tile samples its own directions, and
    every 4x4 window samples all of them, so the mean over a window is free of noise where the surface is
    flat. Ray lengths are spread up to REACH, so near occluders darken more and shadows fade out.
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
    to_key = scene.lights.key
    tangents, key_tangents = _tangents(normal), _tangents(to_key[None])
    tile = (index // width % TILE) * TILE + index % width % TILE
    facing = np.flatnonzero(normal @ to_key > 0)
    floor = hits.instance[index] < 0
    free = np.zeros((len(index), 2), np.float32)
    for ray in range(rays):
        a, b, c = _sequence(tile * rays + ray)
        reach = REACH * c
        x, y = np.sqrt(b) * np.cos(2 * np.pi * a), np.sqrt(b) * np.sin(2 * np.pi * a)
        sky = _combine(x, y, np.sqrt(1 - b), *tangents, normal)
        free[:, 0] += scene.free(origin, sky, reach)
        key = _combine(KEY_RADIUS * x, KEY_RADIUS * y, np.ones_like(x), *key_tangents, to_key[None])
        free[facing, 1] += scene.free(origin[facing], key[facing], np.where(floor, reach, np.inf)[facing])
    light[index] = free / rays
    for step in (width, 1):
        for first in (-2, -1):  # one window to each side of the pixel; together they are symmetric
            light[index] = _mean_along_line(light, hits, index, range(first, first + TILE), step, width)
    return light


def _mean_along_line(
    light: Float[np.ndarray, "N 2"],
    hits: Hits,
    index: Int[np.ndarray, " M"],
    window: range,
    step: int,
    width: int,
) -> Float[np.ndarray, "M 2"]:
    """Average over pixels of the same surface in a window along a column (step = width) or a row (1)."""
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


def _shade(hits: Hits, light: Float[np.ndarray, "N 2"], lights: Lights) -> Float[np.ndarray, "N 4"]:
    """Return linear colours, premultiplied by alpha; on the ground, alpha is the strength of the shadow."""
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
        lights.key_color * key * np.maximum(toward(lights.key), 0)
        + lights.fill_color * ambient * np.maximum(0.4 + 0.6 * toward(lights.fill), 0)
        + ambient * (sky * lights.sky_color + (1 - sky) * lights.floor_color)
    )
    half = unit(view + lights.key)
    edge = (1 - np.clip(dot(normal, view), 0, 1)[:, None]) ** 3
    gloss = 0.10 * key * np.clip(dot(normal, half), 0, 1)[:, None] ** 20
    rim = lights.rim_color * ambient * edge * np.maximum(0.3 + 0.7 * toward(lights.rim), 0)
    color[body, :3] = albedo * diffuse + gloss + rim * (0.3 + 0.7 * albedo)
    color[body, 3] = 1
    return color


def _antialias(
    color: Float[np.ndarray, "N 4"],
    scene: Scene,
    hits: Hits,
    light: Float[np.ndarray, "N 2"],
    place: tuple[slice, slice],
) -> None:
    """Replace pixels on or beside an outline or a crease by the mean of several samples, in place."""
    top, left = (part.start for part in place)
    _, width = shape = tuple(part.stop - part.start for part in place)
    instance, normal = hits.instance.reshape(shape), hits.normal.reshape(*shape, 3)
    edge = np.zeros(shape, bool)
    for axis in (0, 1):
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(first), tuple(second)
        differs = (instance[a] != instance[b]) | ((dot(normal[a], normal[b]) < 0.8) & (instance[a] >= 0))
        edge[a] |= differs
        edge[b] |= differs
    rows, columns = np.nonzero(_dilate(edge))
    if len(rows) == 0:
        return
    mean = np.zeros((len(rows), 4), np.float32)
    for right, down in SUBSAMPLES:
        sample = scene.trace(columns + left + 0.5 + right, rows + top + 0.5 + down)
        mean += _shade(sample, _nearby_light(light, hits, sample, rows, columns, shape), scene.lights)
    color[rows * width + columns] = mean / len(SUBSAMPLES)


def _nearby_light(
    light: Float[np.ndarray, "N 2"],
    hits: Hits,
    sample: Hits,
    rows: Int[np.ndarray, " M"],
    columns: Int[np.ndarray, " M"],
    shape: tuple[int, int],
) -> Float[np.ndarray, "M 2"]:
    """Return the light of the most similar surface among the 3x3 pixels around each sample."""
    if (light == 1).all():  # no light rays, or nothing shadowed: all surfaces are alike
        return light[: len(rows)]
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


def _dilate(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Add the eight neighbours to a mask: a finger thinner than a pixel is found at its ends only."""
    wide = np.pad(mask, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _load_embree() -> tuple[Any, Any]:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise ImportError(
            'pictures need embreex, which is not installed; pip install "agebody[render]"'
        ) from error
    return EmbreeScene, TriangleMesh


def _stack(arrays: list[np.ndarray], dtype: Any, width: int = 3) -> np.ndarray:
    return np.ascontiguousarray(np.concatenate([np.zeros((0, width)), *arrays]), dtype)


def _sequence(index: Int[np.ndarray, " N"]) -> Float[np.ndarray, "3 N"]:
    """Return evenly spread points of the unit cube (Roberts' R3 sequence)."""
    return np.mod(0.5 + np.outer((0.8191725133961645, 0.6710436067037893, 0.5497004779019703), index), 1)


def _tangents(normal: Float[np.ndarray, "N 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Return two unit vectors that complete each normal to a frame (Duff et al. 2017, equation 1)."""
    x, y, z = normal.T
    sign = np.where(z >= 0, 1, -1).astype(np.float32)
    a = -1 / (sign + z)
    b = x * y * a
    return np.stack([1 + sign * x * x * a, sign * b, -sign * x], 1), np.stack([b, sign + y * y * a, -y], 1)


def _combine(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, e1: np.ndarray, e2: np.ndarray, e3: np.ndarray
) -> np.ndarray:
    return (x[:, None] * e1 + y[:, None] * e2 + z[:, None] * e3).astype(np.float32)
