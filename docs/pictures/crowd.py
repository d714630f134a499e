"""People of one image before and after they are placed in one space: camera view and top view."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import agebody
from agebody.age import AgeCurve
from agebody.cameras import Camera
from agebody.crowd import HeightPrior, place_people, rest_height, surface_depth
from agebody.draw import render
from agebody.draw.meshes import PALETTE
from agebody.people import pose

BACKGROUND = ("#f3efe9", "#e4ded6")
INK = "#4a4540"
GROUND = 1.35
"""Height of the camera [m]."""
LAST = 7.4
"""Depth range of the top view [m]."""


class Person(NamedTuple):
    """The scene."""

    years: float
    place: tuple[float, float]
    """x and z [m]"""
    pose: str
    heading: float


PEOPLE = (
    Person(34, (-1.05, 4.2), "at ease", 0.3),
    Person(6, (-0.35, 3.4), "waving", 0.1),
    Person(1.2, (0.25, 2.9), "sitting", -0.3),
    Person(30, (0.85, 3.6), "hand on hip", -0.3),
    Person(11, (0.75, 5.2), "standing", 0.0),
)


def draw_crowd(path: Path, width: int) -> None:
    """Draw fits that assume 1.7 m for everybody, and the same people after DTO."""
    body = agebody.SMPLA(agebody.anny_body())
    truth, height = _scene(body)
    wrong = 1.7 / height
    fitted = truth * wrong[:, None, None]
    z, depth = surface_depth(fitted, body.faces), surface_depth(truth, body.faces)
    years = torch.tensor([person.years for person in PEOPLE])
    placed = place_people(0.3 * depth + 0.7, z, height * wrong, HeightPrior.of_age(years))
    cells = [
        ("the image", _front(truth, body.faces, width)),
        ("all 1.7 m tall: from above", _top(fitted, body.faces, width)),
        ("after DTO", _top(fitted * placed.scale[:, None, None], body.faces, width)),
        ("the truth", _top(truth, body.faces, width)),
    ]
    _joined(cells, width).save(path, optimize=True)


def _scene(body: agebody.SMPLA) -> tuple[Tensor, Tensor]:
    """Return vertices in camera coordinates, and statures."""
    curve = AgeCurve.from_asset(body.asset)
    people, heights = [], []
    for person in PEOPLE:
        angles = torch.from_numpy(pose(person.pose, body.asset.joint_names, heading=person.heading)).float()
        age = torch.tensor(float(curve.years_to_offset(person.years)))
        vertices = body(global_orient=angles[0], body_pose=angles[1:], age_offset=age).vertices
        vertices = vertices * torch.tensor((1.0, -1.0, -1.0))  # y down, z away from the camera
        x, z = person.place
        middle = vertices.mean(0)
        vertices = vertices + torch.tensor((x - middle[0], GROUND - vertices[:, 1].max(), z - middle[2]))
        people.append(vertices)
        heights.append(rest_height(body, torch.zeros(body.num_betas), age))
    return torch.stack(people), torch.stack(heights)


def _front(vertices: Tensor, faces: Tensor, width: int) -> np.ndarray:
    size = round(0.4 * width), round(0.34 * width)
    camera = Camera.from_fov(math.radians(52), size)
    camera = camera._replace(center=camera.center * torch.tensor((1.0, 0.88)))  # more of the ground
    return render(vertices, faces, camera, size=size, background=BACKGROUND).rgba


def _top(vertices: Tensor, faces: Tensor, width: int) -> np.ndarray:
    size = round(0.2 * width), round(0.34 * width)
    distance = 100.0
    fov = 2 * math.atan(LAST / 2 / distance)
    camera = Camera.look_at(
        (0.0, -distance, LAST / 2), (0.0, 0.0, LAST / 2), size=size, fov=fov, up=(0.0, 0.0, 1.0)
    )
    colors = PALETTE[: len(vertices)]
    picture = Image.fromarray(
        render(vertices, faces, camera, size=size, colors=colors, background=BACKGROUND).rgba
    )
    draw = ImageDraw.Draw(picture)
    scale = size[1] / LAST
    for metres in range(1, int(LAST) + 1):
        y = size[1] - metres * scale
        draw.line((0, y, 0.05 * size[0], y), fill=INK)
        draw.text((0.07 * size[0], y), f"{metres} m", fill=INK, anchor="lm", font_size=0.012 * width)
    half = size[0] / 2
    draw.polygon(
        [
            (half, size[1]),
            (half - 0.012 * width, size[1] - 0.02 * width),
            (half + 0.012 * width, size[1] - 0.02 * width),
        ],
        outline=INK,
    )
    return np.asarray(picture)


def _joined(cells: list[tuple[str, np.ndarray]], width: int) -> Image.Image:
    strip = round(0.03 * width)
    height = max(cell.shape[0] for _, cell in cells)
    sheet = Image.new("RGB", (width, height + strip), BACKGROUND[0])
    draw = ImageDraw.Draw(sheet)
    left = 0
    for title, cell in cells:
        sheet.paste(Image.fromarray(cell).convert("RGB"), (left, strip))
        draw.text(
            (left + cell.shape[1] / 2, strip / 2), title, fill=INK, anchor="mm", font_size=0.016 * width
        )
        left += cell.shape[1]
    return sheet


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"crowd.png": (draw_crowd, 1100)}
"""File name -> function that draws it, and its width [pixels]."""
