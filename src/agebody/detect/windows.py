"""Crops of an image as networks take them: resized, padded and rotated; and their points in the image."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

UNCHANGED = torch.eye(2, 3)


class Window(NamedTuple):
    """A rectangle of an image, which is resampled to the input of a network."""

    center: tuple[float, float]
    """[pixels of the image]"""
    scale: float
    """Pixels of the picture per pixel of the image."""
    size: tuple[int, int]
    """Width and height of the picture [pixels]."""
    angle: float = 0.0
    """Angle from the image's x axis to the picture's, clockwise [rad]."""

    @classmethod
    def around(cls, box: Float[np.ndarray, " 4"], size: tuple[int, int], scale: float = 1.0) -> Window:
        """Return the smallest window of a picture's shape about a box (corners), enlarged by a factor."""
        low, high = box[:2], box[2:]
        sides = np.maximum(high - low, 1) * scale
        x, y = ((low + high) / 2).tolist()
        return cls((x, y), float((np.array(size) / sides).min()), size)

    def cut(self, image: UInt8[np.ndarray, "H W 3"], fill: int = 0) -> UInt8[np.ndarray, "h w 3"]:
        """Return the picture, smoothed where it is smaller than the image."""
        from PIL import Image

        whole, scale, center = Image.fromarray(image), self.scale, np.array(self.center)
        if scale < 1:  # Pillow's transform does not smooth, its resize does
            width, height = (max(round(side * scale), 1) for side in whole.size)
            center = center * (width / whole.width, height / whole.height)
            whole, scale = whole.resize((width, height), Image.Resampling.BILINEAR), 1.0
        cos, sin = math.cos(self.angle) / scale, math.sin(self.angle) / scale
        x, y = np.array(self.size) / 2
        turn = (cos, -sin, center[0] - cos * x + sin * y, sin, cos, center[1] - sin * x - cos * y)
        colors = (fill, fill, fill)
        cut = whole.transform(
            self.size, Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR, fillcolor=colors
        )
        return np.asarray(cut)

    def to_image(self, points: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 2"]:
        """Return points of the picture as points of the image."""
        x, y = np.moveaxis((points - np.array(self.size) / 2) / self.scale, -1, 0)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.stack((cos * x - sin * y, sin * x + cos * y), -1) + self.center


def letterbox(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Window:
    """Return the window that shows a whole image at its upper left, the rest filled."""
    height, width = image.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    return Window((size[0] / 2 / scale, size[1] / 2 / scale), scale, size)


def crop_image(
    image: Any,
    box: Float[Tensor, " 4"],
    size: tuple[int, int],
    back: Float[Tensor, "2 3"] = UNCHANGED,
    *,
    nearest: bool = False,
) -> UInt8[np.ndarray, "H W *channels"]:
    """Return the crop of an image in one resampling; black outside of it.

    Of a crop that is smaller than its box, the image is first reduced by a whole factor, for JPEG in its
    decoder, so that fine patterns do not alias.

    Args:
        image: Pillow's, opened; not necessarily loaded.
        box: square around the person in the changed image [pixels].
        size: width and height of the crop [pixels]. If these differ, the box is as high, or as wide, as the
            longer, and the crop shows its middle.
        back: affine map from the changed image to the given one.
        nearest: take the nearest pixel, for labels.
    """
    from PIL import Image

    (width, height), back = size, back.to(box)
    step = float(box[2] - box[0]) / max(size)
    low = (box[:2] + box[2:]) / 2 - torch.tensor([width, height]) * (step / 2)
    # From pixels of the crop to those of the given image.
    linear = back[:, :2] * step
    offset = back[:, :2] @ low + back[:, 2]
    if not nearest:
        factor = max(1, int(float(torch.linalg.det(linear).abs().sqrt())))
        before = image.size
        image.draft("RGB", (before[0] // factor, before[1] // factor))
        done = 1 << round(math.log2(before[0] / image.size[0]))  # the decoder halves, up to three times
        image = image.convert("RGB")
        rest = factor // done
        image = image.reduce(rest) if rest > 1 else image
        linear, offset = linear / (done * max(rest, 1)), offset / (done * max(rest, 1))
    data = torch.cat((linear, offset[:, None]), -1).flatten().tolist()
    resample = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(image.transform((width, height), Image.Transform.AFFINE, data, resample))
