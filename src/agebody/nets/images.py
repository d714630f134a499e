"""Input images of networks: sizes and ranges."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import expect, expect_tensor, expect_values

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
_LARGEST = 10.0
"""Above every normalised value, up to 2.7, and far below 255."""


def normalize_images(images: Tensor) -> Float[Tensor, "*batch 3 H W"]:
    """Return RGB images in the range of networks that were trained on ImageNet.

    Args:
        images: (*batch, 3, H, W) as bytes, 0 to 255, or as floating-point numbers, 0 to 1.

    Returns:
        ``(images - mean) / std`` per channel, in float32 for bytes and 16 bits.
    """
    if expect_tensor("images", images).dtype == torch.uint8:
        images = images.float() / 255
    else:
        images = expect("images", images)
        expect_values(images=((images >= 0) & (images <= 1), "floating-point numbers from 0 to 1, or bytes"))
    images = expect("images", images, 3, None, None)
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return (images - mean) / std


def expect_images(images: Any, *sizes: tuple[int, int]) -> Tensor:
    """Check the type and shape of normalised images, (B, 3, H, W) with (H, W) one of ``sizes``."""
    if not expect_tensor("images", images).is_floating_point():
        raise TypeError(f"images: expected a floating type, got {images.dtype}; see normalize_images")
    if images.dim() != 4 or images.shape[1] != 3 or (sizes and tuple(images.shape[2:]) not in sizes):
        wanted = " or ".join(f"(B, 3, {height}, {width})" for height, width in sizes) or "(B, 3, H, W)"
        raise ValueError(f"images: expected shape {wanted}, got {tuple(images.shape)}")
    return images


def expect_normalized(images: Tensor) -> None:
    """Check that images are normalised, and not from 0 to 255."""
    expect_values(images=(images.detach().abs() <= _LARGEST, "normalised images; see normalize_images"))
