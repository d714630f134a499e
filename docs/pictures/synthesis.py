"""Synthetic people, with their masks, parts, depth and keypoints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import agebody
from agebody.pipelines.labels import TrainingShards
from agebody.pipelines.labels.samples import Sample
from agebody.pipelines.synthesis import Recipe, synthesize

COLUMNS = 8
RECIPE = Recipe(count=COLUMNS, people=(1, 3), seed=11)
HUES = (20, 150, 100, 200, 45, 230, 0, 120)
HIDDEN = ("#1b7f5c", "#e39b1f", "#8a50b3", "#c8202f", "#000000")


def draw_synthesis(path: Path, width: int) -> None:
    """Draw images, people and occluders, parts, depth, and keypoints by what hides them."""
    body = agebody.SMPLA(agebody.anny_body(), num_betas=10)
    with tempfile.TemporaryDirectory() as folder:
        synthesize(body, folder, RECIPE)
        samples = list(TrainingShards(folder))
    side = width // COLUMNS
    columns = [
        np.concatenate(
            [np.asarray(tile.resize((side, side), Image.Resampling.LANCZOS)) for tile in _tiles(sample)]
        )
        for sample in samples
    ]
    sheet = np.concatenate(columns, 1)
    Image.fromarray((sheet // 8 * 8 + 4).astype(np.uint8)).save(path, optimize=True)  # noise takes many bytes


def _tiles(sample: Sample) -> list[Image.Image]:
    assert sample.mask is not None
    assert sample.parts is not None
    assert sample.depth is not None
    assert sample.hidden is not None
    picture = Image.fromarray(sample.image)
    grey = np.where(sample.mask > 0, 200, 40)
    people = _tint(sample.mask.astype(int) * (sample.mask < 255) * 3, grey)
    parts = _tint(sample.parts.astype(int), np.full(grey.shape, 40))
    near = np.where(np.isnan(sample.depth), 0, 255 * np.nanmin(sample.depth) / sample.depth)
    depth = Image.fromarray(near.astype(np.uint8)).convert("RGB")
    points = picture.point(lambda value: 128 + value // 2)
    pen = ImageDraw.Draw(points)
    for places, hidden in zip(sample.labels.keypoints, sample.hidden, strict=True):
        for (x, y), why in zip(places, hidden, strict=True):
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=HIDDEN[why])
    return [picture, people, parts, depth, points]


def _tint(numbers: np.ndarray, others: np.ndarray) -> Image.Image:
    """Return numbers from 1 on as hues, and grey where they are 0."""
    hue = np.array(HUES)[numbers % len(HUES)]
    value = np.where(numbers > 0, 255 - 25 * (numbers // len(HUES)), others)
    bands = np.stack((hue, np.where(numbers > 0, 170, 0), value), -1).astype(np.uint8)
    return Image.fromarray(bands, "HSV").convert("RGB")


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"synthesis.png": (draw_synthesis, 960)}
