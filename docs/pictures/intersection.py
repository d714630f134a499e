"""Intersecting bodies, before and after the losses have separated them."""

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
from agebody.cameras import Camera
from agebody.draw import render
from agebody.draw.meshes import PALETTE, read_color
from agebody.losses import person_intersection_loss, self_intersection_loss
from agebody.mesh import Exclusions, find_collisions, penetration
from agebody.people import pose

RED = "#c8102e"
BACKGROUND = ("#f3efe9", "#e4ded6")


class Scene(NamedTuple):
    """One cell of the picture."""

    title: str
    vertices: Tensor
    """(P, V, 3)"""
    marked: Tensor
    """(P, V) bool"""
    target: tuple[float, float, float]
    height: float
    """Height of the visible part [m]."""
    heading: float
    """Viewing angle around the bodies, from their front to their left [rad]."""


def draw_push_out(path: Path, width: int) -> None:
    """Draw a hand in a hip, and two intersecting people, before and after a few steps of gradient descent."""
    body = agebody.SMPLA(agebody.anny_body())
    cells = [
        _draw(scene, body.faces, (width // 4, round(0.36 * width)))
        for scene in (*_hand_and_hip(body), *_two_people(body))
    ]
    Image.fromarray(np.concatenate(cells, axis=1)).save(path, optimize=True)


def _hand_and_hip(body: agebody.SMPLA) -> list[Scene]:
    exclude = Exclusions.of_body(body.asset)
    angles = torch.from_numpy(pose("hand on hip", body.asset.joint_names)).float().requires_grad_()
    optimizer = torch.optim.Adam([angles], lr=0.01)
    scenes = []
    for step in range(30):
        vertices = body(global_orient=angles[0], body_pose=angles[1:]).vertices
        loss = self_intersection_loss(vertices, body.faces, exclude=exclude)
        if step == 0 or loss == 0:
            pairs = find_collisions(vertices, body.faces, exclude=exclude).pairs
            marked = torch.zeros(1, len(vertices), dtype=torch.bool)
            marked[0, body.faces[pairs].flatten()] = True
            title = f"{len(pairs)} pairs of triangles" if step == 0 else f"{step} steps later"
            scenes.append(Scene(title, vertices[None].detach(), marked, (0.1, 0.0, 0.0), 0.6, 1.9))
        if loss == 0:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scenes


def _two_people(body: agebody.SMPLA) -> list[Scene]:
    poses = np.stack([pose(name, body.asset.joint_names) for name in ("standing", "at ease")])
    angles = torch.from_numpy(poses).float()
    out = body(global_orient=angles[:, 0], body_pose=angles[:, 1:], age_offset=torch.tensor([0.0, 0.45]))
    people = out.vertices - out.vertices.amin(1, keepdim=True) * torch.tensor([0.0, 1, 0])
    place = torch.tensor([[-0.13, 0, 0], [0.17, 0, 0.05]], requires_grad=True)
    floor = torch.tensor([1.0, 0, 1.0])
    person = torch.arange(2).repeat_interleave(len(body.faces))
    own = Exclusions.of_parts(person, torch.eye(2, dtype=torch.bool))
    optimizer = torch.optim.Adam([place], lr=0.01)
    scenes = []
    for step in range(60):
        vertices = people + (place * floor)[:, None]
        loss = person_intersection_loss(vertices, body.faces)
        if step == 0 or loss == 0:
            deepest = 100 * penetration(vertices, body.faces).depth.max()
            title = f"{deepest:.1f} cm deep" if step == 0 else f"{step} steps later"
            both = torch.cat([body.faces, body.faces + people.shape[1]])
            pairs = find_collisions(vertices.flatten(0, 1), both, exclude=own).pairs
            marked = torch.zeros(2 * people.shape[1], dtype=torch.bool)
            marked[both[pairs].flatten()] = True
            marked = marked.reshape(people.shape[:2])
            scenes.append(Scene(title, vertices.detach(), marked, (0.02, 0.78, 0.0), 2.0, 0.0))
        if loss == 0:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scenes


def _draw(scene: Scene, faces: Tensor, size: tuple[int, int]) -> np.ndarray:
    x, y, z = scene.target
    eye = (x + 6 * math.sin(scene.heading), y, z + 6 * math.cos(scene.heading))
    camera = Camera.look_at(eye, scene.target, size=size, fov=2 * math.atan(scene.height / 12))
    colors = [
        np.where(marked[:, None], read_color("red", RED), read_color("skin", color))
        for marked, color in zip(scene.marked.numpy(), (PALETTE[6], PALETTE[1]), strict=False)
    ]
    picture = render(scene.vertices, faces, camera, size=size, colors=colors, background=BACKGROUND)
    strip = size[0] // 7
    cell = Image.new("RGB", (size[0], size[1] + strip), BACKGROUND[0])
    cell.paste(Image.fromarray(picture.rgba).convert("RGB"), (0, strip))
    ImageDraw.Draw(cell).text(
        (size[0] / 2, strip / 2), scene.title, fill="#4a4540", anchor="mm", font_size=size[0] / 13
    )
    return np.asarray(cell)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"push_out.png": (draw_push_out, 1000)}
"""File name -> function that draws it, and its width [pixels]."""
