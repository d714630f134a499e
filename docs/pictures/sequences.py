"""Sequences: a clip fitted frame by frame, and as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import agebody
from agebody import BodyParameters
from agebody.cameras import Camera
from agebody.draw import render
from agebody.draw.pictures import INK
from agebody.fitting import fit_keypoints, fit_sequence
from agebody.people import pose

PAPER = "#f3efe9"
ROWS = {"each frame alone": "#c98d7f", "the clip as a whole": "#9fc0c4", "the truth": "#d8d0c6"}
FRAMES = 12
SHOWN = (0, 2, 4, 5, 6, 8, 10)
UNSEEN = (5, 6)
APART = 1.25  # m between the bodies drawn


def draw_sequence(path: Path, width: int) -> None:
    """Draw the bodies of every other frame from the side; the camera was in front of them."""
    body = agebody.SMPLA(agebody.mannequin())
    truth = _walk(body)
    camera = Camera.look_at((0.0, 0.2, 3.2), (0.0, 0.0, 0.0), size=(960, 720), fov=0.75)
    generator = torch.Generator().manual_seed(2)
    points = body.keypoints("coco17", truth)
    pixels = camera.project(points).pixels
    pixels = pixels + 2 * torch.randn(pixels.shape, generator=generator)
    weights = (torch.rand(FRAMES, 17, generator=generator) > 0.25).float()
    weights[UNSEEN, :] = 0
    known = {"weights": weights, "noise": 2.0, "age_offset": 0.4}
    found = (
        fit_keypoints(body, pixels, camera, **known).parameters,
        fit_sequence(body, pixels, camera, **known).parameters,
        truth,
    )
    figure = Figure(figsize=(10, 7.0), dpi=width / 10, facecolor=PAPER)
    axes = figure.subplots(3, 1)
    figure.subplots_adjust(0.0, 0.03, 1, 0.96, hspace=0.08)
    for axis, (title, color), parameters in zip(axes, ROWS.items(), found, strict=True):
        picture, columns = _row(body, parameters, color)
        axis.imshow(picture)
        axis.set_axis_off()
        axis.text(picture.shape[1] / 2, -4, title, ha="center", va="bottom", color=INK, fontsize=10)
        if axis is axes[-1]:
            for frame, column in zip(SHOWN, columns, strict=True):
                text = f"{frame + 1}, not seen" if frame in UNSEEN else f"{frame + 1}"
                axis.text(column, picture.shape[0] + 4, text, ha="center", va="top", color=INK, fontsize=9)
    figure.savefig(path, facecolor=PAPER)


def _walk(body: agebody.SMPLA) -> BodyParameters:
    """Return a child who walks past and lifts the arms."""
    time = torch.arange(FRAMES) / FRAMES
    names = body.asset.joint_names
    start, end = (torch.from_numpy(pose(kind, names)[1:]).float() for kind in ("walking", "cheering"))
    share = (0.5 - 0.5 * torch.cos(math.pi * time))[:, None, None]
    zero = torch.zeros_like(time)
    return BodyParameters(
        torch.stack((zero, 0.9 - 0.8 * time, zero), -1),
        (1 - share) * start + share * end,
        torch.zeros(FRAMES, 10),
        torch.full((FRAMES,), 0.4),
        torch.stack((0.8 * time - 0.4, zero, zero), -1),
    )


def _row(body: agebody.SMPLA, parameters: BodyParameters, color: str) -> tuple[np.ndarray, list[float]]:
    """Render bodies side by side from their left, roots in a line, and return the roots in the picture."""
    some = parameters.map(lambda part: part[list(SHOWN)])
    out = body(some)
    places = torch.zeros(len(SHOWN), 3)
    places[:, 2] = -APART * (torch.arange(len(SHOWN)) - (len(SHOWN) - 1) / 2)
    vertices = out.vertices - out.joints[:, :1] + places[:, None]
    size = 1000, 215
    focal = size[0] / (APART * (len(SHOWN) + 0.3)) * 20
    camera = Camera.look_at(
        (20.0, 0.0, 0.0), (0.0, 0.0, 0.0), size=size, fov=2 * math.atan(size[1] / 2 / focal)
    )
    picture = render(
        vertices, body.faces, camera, size=size, colors=[color] * len(SHOWN), background=(PAPER, PAPER)
    )
    return picture.rgba, camera.project(places).pixels[:, 0].tolist()


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"sequence.png": (draw_sequence, 1200)}
"""File name -> function that draws it, and its width [pixels]."""
