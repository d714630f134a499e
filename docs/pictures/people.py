"""Random people, simulated detections, and the bodies fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import agebody
from agebody.age import age_class
from agebody.body import BodyModel
from agebody.cameras import Camera, box_around, square_box
from agebody.draw import render
from agebody.draw.meshes import PALETTE
from agebody.fitting import fit_keypoints
from agebody.people import People, observe, random_people
from agebody.people.observations import Observations

YEARS = (0.3, 0.9, 2.5, 6.0, 11.0, 35.0)
SEED = 29
COLORS = {"seen": "#1b7f5c", "guessed": "#e39b1f", "wrong": "#c8202f"}


def draw_people(path: Path, width: int) -> None:
    """Draw six people and their keypoints, and below the bodies fitted to these alone."""
    body = agebody.SMPLA(agebody.anny_body())
    people = random_people(body, len(YEARS), ages=torch.tensor(YEARS), seed=SEED, heading=1.2)
    seen = observe(
        body, people, seed=SEED, self_occlusion=True, occluders=0.3, dropped=0.05, stray=0.04, swapped=0.15
    )
    fit = fit_keypoints(
        body,
        seen.keypoints,
        people.camera,
        weights=seen.weights,
        age_class=age_class(people.parameters.age_offset),
    )
    found = people._replace(parameters=fit.parameters)
    side = width // len(YEARS)
    rows = [_row(body, people, people, seen, side, 0), _row(body, found, people, seen, side, 4)]
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows])
    image = Image.new("RGB", (width, sheet.shape[0]), "#f3efe9")
    image.paste(Image.fromarray(sheet))
    image.save(path, optimize=True)


def _row(
    body: BodyModel, shown: People, people: People, seen: Observations, side: int, color: int
) -> list[np.ndarray]:
    vertices = body(shown.parameters).vertices
    tiles = []
    for i in range(len(people.years)):
        box = square_box(box_around(seen.exact[i]), scale=1.45)
        camera = Camera(people.camera.focal[i], people.camera.center[i]).cropped(box, size=(side, side))
        picture = render(
            vertices[i], body.faces, camera, size=(side, side), colors=[PALETTE[color]], light_rays=2
        )
        tile = Image.fromarray(picture.rgba).convert("RGB")
        scale = side / float(box[2] - box[0])
        _mark(tile, (seen.keypoints[i] - box[:2]) * scale, seen, i)
        tiles.append(np.asarray(tile))
    return tiles


def _mark(tile: Image.Image, points: torch.Tensor, seen: Observations, person: int) -> None:
    draw, radius = ImageDraw.Draw(tile), max(1.5, tile.width / 70)
    kinds = zip(seen.wrong[person].tolist(), seen.visible[person].tolist(), strict=True)
    for (x, y), weight, (wrong, visible) in zip(
        points.tolist(), seen.weights[person].tolist(), kinds, strict=True
    ):
        if weight > 0:
            kind = "wrong" if wrong else "seen" if visible else "guessed"
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, fill=COLORS[kind], outline="white")


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"people.png": (draw_people, 1200)}
