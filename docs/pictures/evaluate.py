"""Evaluation: the tolerances of keypoint metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import agebody
from agebody.cameras import Camera
from agebody.draw import render
from agebody.draw.meshes import PALETTE
from agebody.draw.pictures import INK
from agebody.metrics import oks_sigmas, reference_length
from agebody.people import pose

PAPER = "#f3efe9"
SIZE = 520, 640
AGES = {"adult": 0.0, "kid": 0.6, "baby": 1.0}


def draw_tolerance(path: Path, width: int) -> None:
    """Draw bodies of three ages with the distances up to which OKS and mPCKh accept a keypoint."""
    body = agebody.SMPLA(agebody.mannequin())
    angles = torch.tensor(pose("standing", body.asset.joint_names)).float()
    given = {"global_orient": angles[0], "body_pose": angles[1:]}
    offsets = torch.tensor(list(AGES.values()))
    vertices = body(age_offset=offsets, **given).vertices
    points = body.keypoints("coco17", age_offset=offsets, **given)
    camera = Camera.look_at((0.0, 0.88, 9.0), (0.0, 0.88, 0.0), size=SIZE, fov=0.21)
    figure = Figure(figsize=(10, 4.9), facecolor=PAPER, layout="constrained")
    for axes, name, surface, joints in zip(
        figure.subplots(1, len(AGES)), AGES, vertices, points, strict=True
    ):
        shift = torch.tensor([0.0, surface[:, 1].min().item(), 0.0])  # on one ground
        picture = render(surface - shift, body.faces, camera, size=SIZE, colors=["#d8d0c6"], background=PAPER)
        pixels = camera.project(joints - shift).pixels
        area = (picture.instance >= 0).sum()  # as COCO counts it
        axes.imshow(picture.rgba, extent=(0, SIZE[0], SIZE[1], 0))
        for (x, y), sigma in zip(pixels.tolist(), oks_sigmas("coco17"), strict=True):
            # exp(-d² / (2 area (2 σ)²)) = 1/2
            radius = 2 * sigma * math.sqrt(2 * math.log(2) * area)
            axes.add_patch(Circle((x, y), radius, facecolor=PALETTE[3], alpha=0.45, linewidth=0))
            axes.plot(x, y, ".", color=INK, markersize=2)
        head = 0.143 * reference_length(pixels, "box_diagonal").item()
        axes.add_patch(Circle(pixels[9].tolist(), head, fill=False, edgecolor=PALETTE[0], linewidth=1.4))
        axes.text(SIZE[0] / 2, 22, name, color=INK, fontsize=12, ha="center")
        axes.set(xlim=(50, SIZE[0] - 50), ylim=(SIZE[1], 0))
        axes.axis("off")
    figure.savefig(path, dpi=width / 10)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"tolerance.png": (draw_tolerance, 1000)}
"""File name -> function that draws it, and its width [pixels]."""
