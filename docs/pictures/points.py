"""Bodies from joints, and the same person on another body."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import agebody
from agebody import BodyParameters
from agebody.cameras import Camera
from agebody.draw import render
from agebody.draw.pictures import INK
from agebody.fitting import convert, fit_points
from agebody.keypoints import LAYOUTS
from agebody.people import pose

PAPER = "#f3efe9"
CLAY = "#d8d0c6"
TEAL = "#9fc0c4"
RED = "#b2452f"
SIZE = (420, 760)


def draw_points(path: Path, width: int) -> None:
    """Draw joints of a child and the fitted body; and a child on the free body and on the mannequin."""
    anny, mannequin = (
        agebody.SMPLA(asset, backend="torch") for asset in (agebody.anny_body(), agebody.mannequin())
    )
    torch.manual_seed(0)
    child = _person(mannequin, "cheering", 0.45)
    joints = mannequin(child).joints + 0.01 * torch.randn(24, 3)
    fit = fit_points(mannequin, joints, sd=0.01)
    figure = Figure(figsize=(10, 4.7), dpi=width / 10, facecolor=PAPER)
    axes = figure.subplots(1, 4)
    figure.subplots_adjust(0.0, 0.0, 1, 0.93, wspace=0.0)
    fitted = mannequin(fit.parameters).vertices
    _draw(axes[0], fitted, mannequin.faces, None, "joints, 1 cm of noise", joints)
    _draw(axes[1], fitted, mannequin.faces, CLAY, "the body found", joints)
    girl = _person(anny, "waving", 0.55)
    other = convert(girl, anny, mannequin)
    source = anny(girl).vertices
    found = mannequin(other.parameters).vertices
    _draw(axes[2], source, anny.faces, TEAL, "a child on Anny")
    _draw(axes[3], found, mannequin.faces, CLAY, "the same on the mannequin")
    figure.savefig(path, facecolor=PAPER)


def _person(body: agebody.SMPLA, name: str, age_offset: float) -> BodyParameters:
    angles = torch.from_numpy(pose(name, body.asset.joint_names, heading=0.4)).float()
    betas = torch.zeros(body.num_betas)
    return BodyParameters(angles[0], angles[1:], betas, torch.tensor(age_offset), torch.zeros(3))


def _draw(
    ax: Axes, vertices: Tensor, faces: Tensor, color: str | None, title: str, joints: Tensor | None = None
) -> None:
    low, high = vertices.amin(0), vertices.amax(0)
    if joints is not None:
        low, high = torch.minimum(low, joints.amin(0)), torch.maximum(high, joints.amax(0))
    middle = ((low + high) / 2).tolist()
    camera = Camera.look_at((middle[0], middle[1], 9.0), (middle[0], middle[1], 0.0), size=SIZE, fov=0.175)
    if color is not None:
        picture = render(vertices, faces, camera, size=SIZE, colors=[color], background=(PAPER, PAPER))
        ax.imshow(picture.rgba)
    if joints is not None:
        pixels = camera.project(joints).pixels.numpy() - 0.5
        for edge in LAYOUTS["smpl24"].edges:
            ax.plot(*pixels[np.array(edge)].T, color=RED, lw=1.2)
        ax.scatter(*pixels.T, color=RED, s=14, zorder=3, linewidths=0)
    ax.set(xlim=(0, SIZE[0]), ylim=(SIZE[1], 0), aspect="equal")
    ax.set_title(title, color=INK, fontsize=11)
    ax.set_axis_off()


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"points.png": (draw_points, 1000)}
"""File name -> function that draws it, and its width [pixels]."""
