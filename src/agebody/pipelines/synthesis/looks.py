"""The looks of synthetic people and places: clothes, skin, backgrounds and things in front, at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from agebody.annotations.photographs import read_photograph
from agebody.assets.asset import BodyAsset
from agebody.draw.meshes import to_srgb
from agebody.draw.raycast import STUDIO_LIGHTS, Lights

SKIN = ((0.86, 0.68, 0.58), (0.76, 0.57, 0.45), (0.62, 0.43, 0.32), (0.45, 0.30, 0.22), (0.30, 0.20, 0.15))
"""sRGB colours between which those of skin are drawn."""
HAIR = ((0.10, 0.08, 0.07), (0.25, 0.16, 0.10), (0.45, 0.30, 0.17), (0.72, 0.57, 0.36), (0.60, 0.58, 0.56))
GARMENTS = {
    "shirt": (("spine", "collar", "shoulder"), 0.9),
    "sleeves": (("elbow",), 0.5),
    "trousers": (("pelvis", "hip"), 0.95),
    "trouser legs": (("knee",), 0.6),
    "shoes": (("ankle", "foot"), 0.6),
}
"""Parts of the names of the joints that a garment covers, and how often there is one."""
_HAIR_FROM = 0.55
"""Share of the head's height from which on hair may grow."""
_BARE = 0.03
"""Share of people who wear nothing."""


class Wardrobe:
    """What covers each vertex of a body."""

    def __init__(self, asset: BodyAsset) -> None:
        names = asset.joint_names
        strongest = asset.strongest_joints()
        self.places = asset.template.astype(np.float64)
        self.places /= np.ptp(self.places[:, 1])
        self.covered = {}
        for garment, (parts, _) in GARMENTS.items():
            joints = [i for i, name in enumerate(names) if any(part in name for part in parts)]
            self.covered[garment] = np.isin(strongest, joints)
        head = np.isin(strongest, [i for i, name in enumerate(names) if "head" in name])
        _, y, z = self.places.T
        low, high = (y[head].min(), y[head].max()) if head.any() else (0.0, 1.0)
        height = (y - low) / (high - low)
        front = (z - z[head].mean()) / max(np.ptp(z[head]), 1e-9) if head.any() else z
        self.hair = head & (height - 0.6 * np.maximum(front, 0) > _HAIR_FROM - 0.25 * (front < -0.1))

    def dress(self, rng: np.random.Generator) -> Float[np.ndarray, "V 3"]:
        """Return the sRGB colour of each vertex of a person in random clothes."""
        skin = _between(SKIN, rng) * rng.uniform(0.9, 1.08)
        colors = np.tile(skin, (len(self.places), 1))
        bald = rng.random() < 0.15
        if not bald:
            colors[self.hair] = _between(HAIR, rng)
        if rng.random() < _BARE:
            return np.clip(colors, 0, 1)
        fabric = {}
        for garment, (_, share) in GARMENTS.items():
            worn = rng.random() < share
            base = {"sleeves": "shirt", "trouser legs": "trousers"}.get(garment)
            if not worn or (base is not None and base not in fabric):
                continue
            fabric[garment] = fabric[base] if base else pattern(self.places, rng)
            colors[self.covered[garment]] = fabric[garment][self.covered[garment]]
        return np.clip(colors, 0, 1)


def pattern(places: Float[np.ndarray, "N 3"], rng: np.random.Generator) -> Float[np.ndarray, "N 3"]:
    """Return sRGB colours of a random fabric at points of a body whose height is 1."""
    first, second = _color(rng), _color(rng)
    kind = rng.choice(["plain", "stripes", "checks", "noise"], p=[0.5, 0.2, 0.1, 0.2])
    step = rng.uniform(0.03, 0.12)
    if kind == "stripes":
        share = (places @ _direction(rng) / step) % 1 < rng.uniform(0.3, 0.7)
    elif kind == "checks":
        share = ((places[:, 0] // step + places[:, 1] // step) % 2).astype(bool)
    elif kind == "noise":
        waves = [np.sin(places @ _direction(rng) / step * 3 + rng.uniform(0, 7)) for _ in range(4)]
        share = 0.5 + 0.25 * np.sum(waves, 0).clip(-2, 2)
    else:
        share = np.zeros(len(places))
    return first + share[:, None] * (second - first)


def background(size: tuple[int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Return an abstract background: a wall and a floor, flat shapes, soft noise of several sizes."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    angle = rng.uniform(0, 2 * np.pi)
    share = np.cos(angle) * x + np.sin(angle) * y
    share = (share - share.min()) / max(np.ptp(share), 1e-9)
    color = _color(rng)
    picture = color + share[..., None] * (_color(rng) - color) * rng.uniform(0, 1)
    if rng.random() < 0.7:
        picture[y + rng.normal(0, 0.1) * x > rng.uniform(0.3, 0.9) * y.max()] = _color(rng)
    for _ in range(rng.integers(0, 9)):
        picture[_shape(x, y, rng)] = _color(rng)
    strength, tint = rng.uniform(0, 0.08), rng.uniform(0, 0.6)
    for cells in 2 ** np.arange(2, 7):
        grid = rng.normal(0, 1, (cells, cells, 1)) + tint * rng.normal(0, 1, (cells, cells, 3))
        picture = picture + strength * rng.uniform(0, 1) * _resize(grid, size)
    picture = picture + rng.normal(0, rng.uniform(0, 0.03), picture.shape)
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def photograph(path: Path, size: tuple[int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Return a random part of a photograph, a third of it or more, mirrored in half of the cases."""
    from PIL import Image

    whole = Image.fromarray(read_photograph(path))
    scale = rng.uniform(1 / 3, 1) * min(whole.width / size[0], whole.height / size[1])
    wide, high = scale * size[0], scale * size[1]
    left, top = rng.uniform(0, whole.width - wide), rng.uniform(0, whole.height - high)
    part = whole.resize(size, Image.Resampling.BILINEAR, (left, top, left + wide, top + high))
    return np.array(part)[:, :: 1 if rng.random() < 0.5 else -1].copy()


def lights(rng: np.random.Generator) -> Lights:
    """Return lights whose key light comes from anywhere before or above the people, weak to strong."""
    key = _direction(rng)
    key[1:] = -abs(key[1]) - 0.1, -abs(key[2]) if rng.random() < 0.8 else key[2]
    key /= np.linalg.norm(key)
    warm = np.array((1, 0, -1)) * rng.normal(0, 0.08)
    around = rng.uniform(0.5, 1.5) * (1 - warm)
    strength = rng.uniform(0.3, 1.4) * (1 + warm)
    return Lights(
        key=key.astype(np.float32),
        **{
            name: (getattr(STUDIO_LIGHTS, name) * scale).astype(np.float32)
            for name, scale in {
                "key_color": strength,
                "fill_color": around,
                "rim_color": rng.uniform(0, 1) * np.ones(3),
                "sky_color": around,
                "floor_color": around * rng.uniform(0.3, 1.3),
            }.items()
        },
    )


def occluder(
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"], Float[np.ndarray, "V 3"]]:
    """Return an object of about unit size at the origin, rotated at random: vertices, faces, colours."""
    kind = rng.choice(["box", "ball", "pole"])
    sides, rings = (4, 2) if kind == "box" else (16, 9)
    around = np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / 4
    along = np.linspace(0, np.pi, rings) if kind == "ball" else np.linspace(-1, 1, rings)
    radius = np.maximum(np.sin(along), 1e-3) if kind == "ball" else np.full(rings, 0.7)
    height = -np.cos(along) if kind == "ball" else along
    circle = np.stack((np.cos(around), np.zeros(sides), np.sin(around)), -1)
    rows = circle * radius[:, None, None] + height[:, None, None] * np.array((0.0, 1.0, 0.0))
    points = np.concatenate((rows.reshape(-1, 3), [(0, height[0], 0), (0, height[-1], 0)]))
    i, j = np.arange(rings - 1)[:, None] * sides, np.arange(sides)
    a, b = i + j, i + (j + 1) % sides
    faces = [
        np.stack((a, b, a + sides), -1).reshape(-1, 3),
        np.stack((b, b + sides, a + sides), -1).reshape(-1, 3),
    ]
    last, top = (rings - 1) * sides, rings * sides
    following = (j + 1) % sides
    faces.append(np.stack((following, j, np.full(sides, top)), -1))
    faces.append(np.stack((last + j, last + following, np.full(sides, top + 1)), -1))
    colors = pattern(points, rng)
    stretch = (
        rng.uniform(0.5, 1.5, 3) if kind != "pole" else np.array((0.25, 3.0, 0.25)) * rng.uniform(0.6, 1.5)
    )
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return points * stretch @ turn.T, np.concatenate(faces), np.clip(colors, 0, 1)


def _between(
    colors: tuple[tuple[float, float, float], ...], rng: np.random.Generator
) -> Float[np.ndarray, " 3"]:
    place = rng.uniform(0, len(colors) - 1)
    first = min(int(place), len(colors) - 2)
    ends = np.array(colors[first : first + 2])
    return ends[0] + (place - first) * (ends[1] - ends[0])


def _color(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """Return an sRGB colour; mixing with grey keeps most of them as dull as cloth and walls are."""
    return to_srgb(rng.uniform(0.02, 0.9) * (1 - rng.uniform(0.1, 0.8) * rng.uniform(0, 1, 3)))


def _direction(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    way = rng.normal(size=3)
    return way / np.linalg.norm(way)


def _shape(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the pixels of a turned rectangle or ellipse."""
    angle, (u, v) = rng.uniform(0, np.pi), rng.uniform(0, 1, 2)
    wide, high = rng.uniform(0.03, 0.4, 2)
    a = (np.cos(angle) * (x - u) + np.sin(angle) * (y - v)) / wide
    b = (np.cos(angle) * (y - v) - np.sin(angle) * (x - u)) / high
    return np.maximum(abs(a), abs(b)) < 1 if rng.random() < 0.6 else a * a + b * b < 1


def _resize(grid: Float[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
    from PIL import Image

    def one(channel: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))

    return np.stack([one(grid[..., i]) for i in range(grid.shape[-1])], -1)
