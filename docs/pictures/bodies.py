"""Bodies: ages, the mannequin, keypoint layouts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw

import agebody
from agebody.cameras import Camera
from agebody.draw import PALETTE, contact_sheet, lineup, render
from agebody.mesh import PARTS_6, PARTS_7, PartMap
from agebody.people import pose
from agebody.pipelines.demo import run_demo


def draw_ages(path: Path, width: int) -> None:
    """Draw the demo's picture, smaller: Anny at six ages."""
    with tempfile.TemporaryDirectory() as folder:
        run_demo(agebody.anny_body(), Path(folder), width=max(width, 1600))
        with Image.open(Path(folder) / "ages.png") as picture:
            size = (width, round(picture.height * width / picture.width))
            picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def draw_mannequin(path: Path, width: int) -> None:
    """Draw the mannequin from adult to infant, then with single betas at +2."""
    body = agebody.SMPLA(agebody.mannequin())
    standing = torch.from_numpy(pose("standing", body.asset.joint_names)).float()
    named = ("stature", "weight", "leg_length", "shoulder_width", "muscularity")
    betas = torch.zeros(len(named), body.num_betas)
    for row, name in enumerate(named):
        betas[row, body.asset.metadata.shape_names.index(name)] = 2
    ages = torch.linspace(0, 1, len(named))
    posed = {"global_orient": standing[0], "body_pose": standing[1:]}
    rows = []
    for output, titles in (
        (body(age_offset=ages, **posed), [f"age offset {age:.2f}" for age in ages.tolist()]),
        (body(betas=betas, **posed), [f"{name} +2" for name in named]),
    ):
        look = {"spacing": 1.0, "scale": width / 5.4, "text_size": width / 65, "background": None}
        size = (width, round(0.42 * width))
        rows.append(lineup(output.vertices, body.faces, size=size, titles=titles, **look))
    _save(contact_sheet(rows).rgba, path)


def draw_keypoints(path: Path, width: int) -> None:
    """Draw four layouts on one body."""
    body = agebody.SMPLA(agebody.anny_body())
    arms = torch.zeros(body.num_joints - 1, 3)
    for side, sign in (("left", -1.0), ("right", 1.0)):
        arms[body.asset.joint_names.index(f"{side}_shoulder") - 1, 2] = sign * 0.6
    shown = ("smpl24", "coco17", "openpose25", "hmr2_44")
    size = (width // len(shown), round(0.36 * width))
    camera = Camera.look_at((0.0, -0.05, 9.0), (0.0, -0.05, 0.0), size=size, fov=0.235)
    vertices = body(body_pose=arms).vertices
    look = {"colors": ["#d8d0c6"], "background": ("#f3efe9", "#e4ded6")}
    picture = render(vertices, body.faces, camera, size=size, **look)
    cells = [
        _with_points(picture.rgba, camera, body, arms, name, color)
        for name, color in zip(shown, np.array(PALETTE)[[0, 3, 4, 5]], strict=True)
    ]
    _save(np.concatenate(cells, axis=1), path)


def draw_parts(path: Path, width: int) -> None:
    """Draw one part per joint, seven and six parts, on an adult and on an infant."""
    body = agebody.SMPLA(agebody.mannequin())
    standing = torch.from_numpy(pose("standing", body.asset.joint_names)).float()
    hues = np.array([ImageColor.getrgb(color) for color in PALETTE]) / 255
    bodies, colors, titles = [], [], []
    for starts, title in ((None, "one per joint"), (PARTS_7, "PARTS_7"), (PARTS_6, "PARTS_6")):
        parts = PartMap.from_joints(body.asset, starts)
        for age in (0.0, 1.0):
            output = body(global_orient=standing[0], body_pose=standing[1:], age_offset=torch.tensor(age))
            bodies.append(output.vertices)
            colors.append(hues[parts.vertices % len(hues)])
            titles.append(title if age == 0 else "")
    size = (width, round(0.42 * width))
    look = {"spacing": 0.75, "scale": width / 4.9, "text_size": width / 55}
    _save(lineup(bodies, body.faces, size=size, colors=colors, titles=titles, **look).rgba, path)


def _with_points(
    rgba: np.ndarray, camera: Camera, body: agebody.SMPLA, arms: torch.Tensor, name: str, color: str
) -> np.ndarray:
    """Draw a layout's points and edges over a picture, at four times the size for antialiasing."""
    layout = agebody.LAYOUTS[name]
    points = camera.project(body.keypoints(layout, body_pose=arms)).pixels.numpy()
    small = Image.fromarray(rgba).convert("RGB")
    large = small.resize([4 * n for n in small.size], Image.Resampling.LANCZOS)
    draw, radius = ImageDraw.Draw(large), 4 * small.width / 75
    dark = tuple(round(0.6 * part) for part in ImageColor.getrgb(color))
    for start, end in layout.edges:
        ends = [tuple(4 * points[i]) for i in (start, end)]
        draw.line(ends, fill=color, width=round(0.7 * radius))
    for x, y in 4 * points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=dark, width=3)
    draw.text((2 * small.width, 4 * 0.03 * small.height), name, fill="#4a4540", anchor="ma",
              font_size=4 * small.width / 14)  # fmt: skip
    return np.asarray(large.resize(small.size, Image.Resampling.LANCZOS))


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).convert("RGB").save(path, optimize=True)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "ages.png": (draw_ages, 1200),
    "keypoints.png": (draw_keypoints, 1000),
    "mannequin.png": (draw_mannequin, 1000),
    "parts.png": (draw_parts, 900),
}
"""File name -> function that draws it, and its width [pixels]."""
