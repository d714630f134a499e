"""Releases: photographs of people who do not exist, and the released images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

import agebody
from agebody import BodyParameters
from agebody.cameras import Camera
from agebody.draw import Picture, render
from agebody.people import pose
from agebody.pipelines.release import Person, Photo, write_release

SIZE = (720, 480)
"""Size of the room [pixels], before resizing."""
FAMILY = (
    ("walking", 0.35, -0.95, 0.0, (1.2, 0.4)),
    ("waving", 0.0, 0.05, 0.45, (0.0, 0.0)),
    ("sitting", -0.5, 0.75, 0.85, (0.0, 0.0)),
)
"""Pose, heading [rad], position on the floor [m], age offset and first betas of each person."""
CLOTHES = ("#a8503c", "#3f6d8c", "#c8a13a")


def draw_release(path: Path, width: int) -> None:
    """Draw a photograph, and the images that may replace it."""
    body = agebody.SMPLA(agebody.anny_body())
    size = (round(0.72 * width), round(0.48 * width))
    camera = Camera.look_at((0.0, 1.35, 4.3), (0.0, 0.72, 0.0), size=size, fov=0.62)
    people = family(body)
    taken = photograph(body, people, camera, size)
    listed = [
        Person(person, box_of(taken.instance == i), taken.instance == i) for i, person in enumerate(people)
    ]
    tiles = [("the photograph", taken.rgba[..., :3])]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "photograph.png")
        Image.fromarray(taken.rgba).convert("RGB").save(source)
        for title, options in (
            ("blank, whole boxes", {"region": "box"}),
            ("inpaint, from masks", {"background": "inpaint", "region": "mask"}),
            ("none", {"background": "none"}),
        ):
            output = Path(folder, title)
            write_release([Photo(source, camera, listed)], body, output, seed=0, **options)
            shown = "meshes" if title == "none" else "images"
            with Image.open(output / shown / "000001.png") as image:
                tiles.append((title, np.asarray(image)))
    _grid(tiles, width).save(path, optimize=True)


def family(body: agebody.SMPLA) -> list[BodyParameters]:
    """Return people of three ages, on a floor at y = 0."""
    people = []
    for name, heading, x, age, betas in FAMILY:
        angles = torch.from_numpy(pose(name, body.asset.joint_names, heading=heading)).float()
        shape = torch.zeros(body.num_betas)
        shape[: len(betas)] = torch.tensor(betas)
        person = BodyParameters(angles[0], angles[1:], shape, torch.tensor(age), torch.zeros(3))
        with torch.no_grad():
            low = body(person).vertices[:, 1].min()
        people.append(person._replace(transl=torch.stack([torch.tensor(x), -low, torch.tensor(0.0)])))
    return people


def photograph(
    body: agebody.SMPLA, people: list[BodyParameters], camera: Camera, size: tuple[int, int]
) -> Picture:
    """Draw people in a room; each is a body with hair, in clothes of one colour."""
    with torch.no_grad():
        vertices = [body(person).vertices.numpy() for person in people]
        rest = body().vertices.numpy()
    head = rest[:, 1] > rest[:, 1].max() - 0.075
    arms = np.abs(rest[:, 0]) > 0.62
    skin = (rest[:, 1] > rest[:, 1].max() - 0.27) | arms | (rest[:, 1] < rest[:, 1].min() + 0.08)
    colors = []
    for cloth in CLOTHES:
        color = np.tile(np.array(Image.new("RGB", (1, 1), cloth).getpixel((0, 0))) / 255, (len(rest), 1))
        color[skin] = (0.82, 0.62, 0.5)
        color[head] = (0.22, 0.15, 0.11)
        colors.append(color)
    behind = np.asarray(Image.fromarray(room()).resize(size, Image.Resampling.LANCZOS))
    return render(vertices, body.faces, camera, size=size, colors=colors, ground=0.0, background=behind)


def room() -> np.ndarray:
    """Draw a wall with two pictures, a window, and a wooden floor."""
    width, height = SIZE
    image = Image.new("RGB", SIZE, "#d9cdb8")
    draw = ImageDraw.Draw(image)
    horizon = round(0.66 * height)
    draw.rectangle((0, horizon, width, height), fill="#a67f55")
    for i in range(-14, 15):
        x = width / 2 + 26 * i
        draw.line((x, horizon, width / 2 + 110 * i, height), fill="#8d6a45", width=2)
    draw.rectangle((0, horizon - 10, width, horizon), fill="#efe8da")
    draw.rectangle((505, 45, 665, 215), fill="#f6f1e6")
    draw.rectangle((515, 55, 655, 205), fill="#9cc3dc")
    draw.ellipse((530, 130, 640, 270), fill="#6d9a62")
    draw.rectangle((505, 205, 665, 215), fill="#f6f1e6")
    draw.rectangle((505, 215, 665, 272), fill="#d9cdb8")
    draw.line((585, 55, 585, 205), fill="#f6f1e6", width=6)
    draw.rectangle((60, 60, 150, 180), fill="#5b4636")
    draw.rectangle((68, 68, 142, 172), fill="#c9614a")
    draw.ellipse((85, 90, 125, 130), fill="#f1d27a")
    draw.rectangle((330, 55, 425, 125), fill="#5b4636")
    draw.rectangle((337, 62, 418, 118), fill="#3e6f73")
    image = image.filter(ImageFilter.GaussianBlur(1.2))
    grain = np.random.default_rng(0).normal(0, 2, (height, width, 1))
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return simulated keypoints."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _grid(tiles: list[tuple[str, np.ndarray]], width: int) -> Image.Image:
    """Arrange images two by two, with titles."""
    gap, text = width // 80, max(width // 45, 6)
    wide = (width - gap) // 2
    high = round(wide * SIZE[1] / SIZE[0])
    sheet = Image.new("RGB", (width, 2 * (high + 2 * text)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, rgb) in enumerate(tiles):
        left, top = (i % 2) * (wide + gap), (i // 2) * (high + 2 * text)
        draw.text((left + wide / 2, top + text), title, fill="#4a4540", anchor="mm", font_size=text)
        tile = Image.fromarray(rgb).resize((wide, high), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left, top + 2 * text))
    return sheet


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"release.png": (draw_release, 1000)}
"""File name -> function that draws it, and its width [pixels]."""
