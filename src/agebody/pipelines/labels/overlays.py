"""Draw fits over their photographs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from agebody.annotations.videos import write_video
from agebody.body import BodyModel
from agebody.draw import render
from agebody.draw.meshes import PALETTE
from agebody.keypoints import KeypointLayout, get_layout
from agebody.pipelines.labels.records import Labels

OBSERVED, FITTED, REJECTED = "#ffd23f", "#ffffff", "#e5383b"
"""Colours of observed keypoints, of those of the body, and of bodies that are not kept."""
OPACITY = 0.72
"""Opacity of bodies over the photograph."""
IN_VIDEOS = {"max_side": 640, "light_rays": 0}
"""How frames of videos and of cameras are drawn: without shadows, which take a quarter of the time."""


def draw_overlay(
    body: BodyModel,
    labels: Labels,
    photograph: UInt8[np.ndarray, "H W 3"],
    *,
    max_side: int = 900,
    light_rays: int = 2,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw two pictures side by side: a photograph with the observed keypoints, and with the bodies over it.

    On the right, observed keypoints are yellow and those of the bodies white; bodies that are not kept are
    red. Photographs with a side of more than ``max_side`` pixels are drawn smaller;
    ``light_rays`` of `render` are fewer where speed matters.
    """
    from PIL import Image

    height, width = photograph.shape[:2]
    if len(labels) and (labels.image_sizes != (width, height)).any():
        raise ValueError(
            f"photograph: expected {labels.image_sizes[0, 0]} x {labels.image_sizes[0, 1]} pixels, "
            f"got {width} x {height}"
        )
    scale = min(1.0, max_side / max(width, height))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.HAMMING, reducing_gap=1.5))
    stretch = np.array(size) / (width, height)
    layout = get_layout(labels.keypoint_layout)
    seen, weights = labels.observed[..., :2] * stretch, labels.observed[..., 2]
    before = Image.fromarray(small)
    after = Image.fromarray(_with_bodies(body, labels, small, stretch, light_rays))
    for picture in (before, after):
        for points, weight in zip(seen, weights, strict=True):
            _draw(picture, layout, points, weight, OBSERVED)
    for points in labels.keypoints * stretch:
        _draw(after, layout, points, np.ones(len(points)), FITTED, dots=False)
    gap = np.full((size[1], 6, 3), 255, np.uint8)
    return np.concatenate((np.asarray(before), gap, np.asarray(after)), 1)


def draw_video(
    path: Path,
    body: BodyModel,
    labels: Labels,
    frames: Iterable[tuple[str, UInt8[np.ndarray, "H W 3"]]],
    rate: float,
) -> int:
    """Write a video of overlays, with one colour per person; return the number of frames."""
    pictures = (
        draw_overlay(body, labels.select(labels.image_ids == name), image, **IN_VIDEOS)
        for name, image in frames
    )
    return write_video(path, pictures, rate)


def body_colors(labels: Labels) -> list[str]:
    """Return the colour of each person: the same in all frames of a track, red if the body is not kept."""
    numbers = np.where(labels.track >= 0, labels.track, np.arange(len(labels)))
    return [
        PALETTE[i % len(PALETTE)] if kept else REJECTED for i, kept in zip(numbers, labels.kept, strict=True)
    ]


def _with_bodies(
    body: BodyModel,
    labels: Labels,
    photograph: UInt8[np.ndarray, "H W 3"],
    stretch: Float[np.ndarray, " 2"],
    light_rays: int,
) -> UInt8[np.ndarray, "H W 3"]:
    if not len(labels):
        return photograph
    parameters = labels.parameters(body)
    with torch.no_grad():
        vertices = body(parameters).vertices.cpu().numpy()
    colors = body_colors(labels)
    camera = labels.camera().map(lambda part: part[0].double()).resized(torch.from_numpy(stretch))
    faces = body.faces.cpu().numpy()
    height, width = photograph.shape[:2]
    look = {"colors": colors, "background": photograph, "light_rays": light_rays}
    drawn = render(vertices, faces, camera, size=(width, height), **look).rgba[..., :3]
    mixed = OPACITY * drawn + (1 - OPACITY) * photograph.astype(float)
    return np.where((drawn != photograph).any(-1, keepdims=True), np.rint(mixed), photograph).astype(np.uint8)


def _draw(
    picture: Any,
    layout: KeypointLayout,
    points: Float[np.ndarray, "K 2"],
    weights: Float[np.ndarray, " K"],
    color: str,
    dots: bool = True,
) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    unit = max(max(picture.size) / 450, 1)
    # Points far outside the picture are invisible and would take time to draw.
    near = (np.abs(points) < 10 * max(picture.size)).all(1) & (weights > 0)
    for i, j in layout.edges:
        if near[i] and near[j]:
            draw.line([tuple(points[i]), tuple(points[j])], fill=color, width=round(unit))
    radius = unit * (1.8 if dots else 1.2)
    for x, y in points[near]:
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=color if dots else None, outline=color
        )
