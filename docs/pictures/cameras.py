"""Cameras: the axes of each convention, and crops compared with the full frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

import agebody
from agebody.cameras import Camera, box_around, convert_axes, square_box
from agebody.draw import render
from agebody.people import pose

PAPER, INK, GLASS = "#f3efe9", "#4a4540", "#7c9fa6"
COLORS = {"x": "#c0523f", "y": "#5f8a4b", "z": "#3f6fa8"}


def draw_axes(path: Path, width: int) -> None:
    """Draw a camera with the axes of three conventions, seen from behind, right and above."""
    conventions = {
        "agebody": "agebody, OpenCV, COLMAP",
        "opengl": "OpenGL, Blender",
        "pytorch3d": "PyTorch3D",
    }
    figure, cells = plt.subplots(1, 3, figsize=(10, 3.2), facecolor=PAPER)
    for axes, (name, title) in zip(cells, conventions.items(), strict=True):
        _draw_camera(axes)
        directions = convert_axes(torch.eye(3), name, "agebody").numpy()  # pyright: ignore
        for label, direction in zip("xyz", directions, strict=True):
            _arrow(axes, direction, label)
        axes.set_title(title, color=INK, fontsize=13)
        axes.set(xlim=(-1.15, 1.85), ylim=(-1.1, 1.4), aspect="equal")
        axes.axis("off")
    figure.subplots_adjust(0.005, 0.02, 0.995, 0.88, 0.02)
    _save(figure, path, width)


def _seen(points: np.ndarray) -> np.ndarray:
    """Project points (right, down, forward) into the drawing."""
    back = np.array([0.62, -0.48, -0.62])
    back /= np.linalg.norm(back)
    right = np.cross(back, [0, -1, 0])
    right /= -np.linalg.norm(right)
    up = np.cross(right, back)
    up *= -np.sign(up[1])
    return np.asarray(points, float) @ np.stack([right, up], -1)


def _draw_camera(axes: Axes) -> None:
    """Draw the viewing frustum, its image with the first pixel marked, and the viewing direction."""
    w, h, far = 0.72, 0.48, 1.5
    corners = np.array([[-w, -h, far], [w, -h, far], [w, h, far], [-w, h, far]])
    axes.add_patch(Polygon(_seen(corners), facecolor=GLASS, edgecolor=INK, alpha=0.35, zorder=1))
    for corner in corners:
        axes.plot(*_seen(np.array([[0, 0, 0], corner])).T, color=INK, lw=0.8, alpha=0.6, zorder=1)
    pixel = np.array([[-w, -h, far], [-w + 0.2, -h, far], [-w + 0.2, -h + 0.2, far], [-w, -h + 0.2, far]])
    axes.add_patch(Polygon(_seen(pixel), facecolor=INK, edgecolor="none", zorder=2))
    axes.annotate(
        "first pixel", _seen(pixel.mean(0)), _seen(pixel.mean(0)) + np.array([0.6, 0.1]),
        color=INK, fontsize=9, va="center", arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.7},
    )  # fmt: skip


def _arrow(axes: Axes, direction: np.ndarray, label: str) -> None:
    color = COLORS[label]
    tip = _seen(0.85 * direction)
    axes.annotate(
        "", tip, (0, 0), zorder=4, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2.6, "shrinkA": 0}
    )
    axes.text(
        *_seen(1.02 * direction), label, color=color, fontsize=14, weight="bold", ha="center", va="center"
    )
    axes.plot(0, 0, "o", color=INK, ms=4, zorder=5)


def draw_crops(path: Path, width: int) -> None:
    """Draw three people in one pose in an image, and their crops, where they seem to face other ways."""
    body = agebody.SMPLA(agebody.mannequin())
    standing = torch.from_numpy(pose("standing", body.asset.joint_names)).float()
    places = torch.tensor([[-2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    vertices = body(global_orient=standing[0], body_pose=standing[1:], transl=places).vertices
    height = round(0.4 * width)
    camera = Camera.look_at((0.0, 0.1, 2.2), (0.0, 0.1, 0.0), size=(width, height), fov=1.18)
    boxes = square_box(box_around(camera.project(vertices).pixels), scale=1.04)
    look = {"colors": ["#c98a72", "#97a883", "#7c9fa6"], "light_rays": 2}
    full = render(vertices, body.faces, camera, size=(width, height), **look)
    side = round(0.3 * width)
    crops = [
        render(vertices, body.faces, camera.cropped(box, size=(side, side)), size=(side, side), **look).rgba
        for box in boxes
    ]
    figure = plt.figure(figsize=(10, 7.75), facecolor=PAPER)
    top = figure.add_axes((0, 1 - 4 / 7.75, 1, 4 / 7.75))
    top.imshow(full.rgba, extent=(0, width, height, 0))
    for box, color in zip(boxes.tolist(), look["colors"], strict=True):
        top.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, ec=color, lw=2))
    top.plot(*camera.center.tolist(), "+", color=INK, ms=14, mew=1.5)
    caption = "the full frame: three people who face the same way; + is the camera's axis"
    top.text(width / 2, 0.045 * height, caption, color=INK, fontsize=11, ha="center", va="top")
    top.set(xlim=(0, width), ylim=(height, 0))
    top.axis("off")
    for i, (crop, color) in enumerate(zip(crops, look["colors"], strict=True)):
        cell = figure.add_axes((0.025 + 0.325 * i, 0.065, 0.3, 3 / 7.75))
        cell.imshow(crop)
        cell.set(xticks=[], yticks=[])
        for spine in cell.spines.values():
            spine.set(color=color, linewidth=2)
        offset = (boxes[i].view(2, 2).mean(0) - camera.center)[0] / camera.focal[0]
        angle = abs(math.degrees(math.atan(offset)))
        cell.set_xlabel(f"crop, {angle:.0f}° off the axis", color=INK, fontsize=11)
    _save(figure, path, width)


def _save(figure: plt.Figure, path: Path, width: int) -> None:
    figure.savefig(path, dpi=width / 10, facecolor=PAPER, pil_kwargs={"optimize": True})
    plt.close(figure)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "camera_axes.png": (draw_axes, 1000),
    "crops.png": (draw_crops, 1000),
}
"""File name -> function that draws it, and its width [pixels]."""
