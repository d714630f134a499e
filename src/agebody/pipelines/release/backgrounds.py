"""What takes the place of people's pixels. Nothing here reads one of them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, UInt8

from agebody.draw.meshes import to_linear

Background = Literal["blank", "inpaint", "none"]
"""What bodies are drawn over: the photograph with people's regions in its mean colour, the photograph with
people's regions painted from what is around them, or nothing of the photograph at all."""

PLAIN = (243, 239, 233)
"""The colour behind bodies where nothing of a photograph is shown."""
MIDDLE = (128, 128, 128)
"""The colour of a photograph that is one region all over."""
RADIUS = 5
"""Of the neighbourhood from which a pixel is inpainted [pixels]."""


def blank(rgb: UInt8[np.ndarray, "H W 3"], region: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """A copy whose region has the mean colour of all else."""
    painted = rgb.copy()
    outside = rgb[~region]
    painted[region] = np.rint(outside.mean(0, dtype=np.float64)) if len(outside) else MIDDLE
    return painted


def inpaint(rgb: UInt8[np.ndarray, "H W 3"], region: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """A copy whose region continues what is around it (Telea, Journal of Graphics Tools 2004; OpenCV's).

    The region is blanked first, so that no detail of the method can carry a person's pixel over.

    Raises:
        ImportError: OpenCV is missing; install ``agebody[release]``.
    """
    cv2 = load_opencv()
    blanked = blank(rgb, region)
    if not region.any() or region.all():
        return blanked
    return cv2.inpaint(blanked, region.astype(np.uint8), RADIUS, cv2.INPAINT_TELEA)


def over(
    rgba: UInt8[np.ndarray, "H W 4"], background: UInt8[np.ndarray, "H W 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture with straight alpha over another; what it does not cover stays bit for bit."""
    result = background.copy()
    edge = (rgba[..., 3] > 0) & (rgba[..., 3] < 255)
    result[rgba[..., 3] == 255] = rgba[rgba[..., 3] == 255][:, :3]
    alpha = rgba[edge][:, 3:] / 255
    light = alpha * _linear(rgba[edge][:, :3]) + (1 - alpha) * _linear(background[edge])
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    result[edge] = np.rint(255 * encoded)
    return result


def plain(size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of one colour."""
    return np.broadcast_to(np.array(PLAIN, np.uint8), (size[1], size[0], 3))


def load_opencv() -> Any:
    """The module ``cv2``.

    Raises:
        ImportError: OpenCV is missing; install ``agebody[release]``.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "inpainting needs OpenCV, which is not installed; pip install 'agebody[release]'"
        ) from error
    return cv2


def _linear(rgb: UInt8[np.ndarray, "N 3"]) -> np.ndarray:
    return to_linear(np.arange(256) / 255)[rgb]
