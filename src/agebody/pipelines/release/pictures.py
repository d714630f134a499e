"""Picture files that hold colours and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from agebody.pipelines.release.photos import ReleaseError

JPEG_QUALITY = 92
CLIP_SIDE = 640
"""Longer side of a clip at most [pixels]."""


def save_picture(path: Path, rgb: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write a .png or .jpg from an array, which has no metadata to take along."""
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if path.suffix == ".jpg":
        image.save(path, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(path, "PNG")


def save_clip(path: Path, frames: Sequence[Path], fps: float) -> None:
    """Write an animated WebP of picture files.

    Raises:
        ReleaseError: the pictures are not of one size.
    """
    images: list[Image.Image] = []
    size: tuple[int, int] | None = None
    for frame in frames:
        with Image.open(frame) as image:
            image.load()
            if size not in (None, image.size):
                raise ReleaseError(
                    f"the frames of a sequence: expected one size, got {size} and {image.size} [pixels]"
                )
            size = image.size
            image.thumbnail((CLIP_SIDE, CLIP_SIDE), Image.Resampling.LANCZOS)
            images.append(image.convert("RGB"))
    first, *rest = images
    first.save(
        path, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=80
    )
