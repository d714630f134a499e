"""What is released: photographs, their cameras and their people; and how image files are read."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from agebody.annotations import AnnotationError
from agebody.annotations.photographs import EIGHT_BITS, decode_stored, open_image, to_eight_bits
from agebody.cameras import Camera
from agebody.parameters import BodyParameters

BLOCKED = ("JPEG", "MPO")
"""Formats that encode block by block."""
SMOOTHED = 2
"""Number of blocks on each side from which decoders estimate what a truncated progressive JPEG lacks."""
EXACT = ("BMP", "PNG", "PPM")
"""Lossless formats, in which no pixel depends on others."""
EXACT_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
"""Compressions of TIFF that do the same."""
SHARED_COLORS = ("1", "P", "PA")
"""Modes in which a palette depends on the whole picture, or dithering passes errors on to the next pixel."""


class ReleaseError(AnnotationError):
    """A photograph that must not be released as it is listed; nothing was written."""


Box = tuple[float, float, float, float]
"""Corners (x0, y0, x1, y1) [pixels]."""

Mask = Bool[np.ndarray, "H W"] | str | PathLike[str]
"""True where a person is, or an image file that is not black there."""

Region = Box | Mask
"""A box or a mask; a string is the file of a mask."""


class Person(NamedTuple):
    """Someone in a photograph; pixel coordinates are those of the upright photograph (EXIF orientation)."""

    parameters: BodyParameters | None
    """The fit, without batch dimensions, in the world of the photograph's camera; None without a fit."""
    box: Box | None = None
    """Box around all that is visible of the person, such as that of a detector or of the keypoints."""
    mask: Mask | None = None
    track: str | int | None = None
    """Identity of the person within the sequence of the photograph."""
    points: Float[np.ndarray, "K 2"] | None = None
    """Visible keypoints of the person [pixels], which the region "mask" has to cover."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph and everybody in it. People who are not listed are not hidden."""

    path: str | PathLike[str]
    camera: Camera
    people: tuple[Person, ...] | list[Person]
    size: tuple[int, int] | None = None
    """Width and height [pixels] that camera and people refer to. If the stored picture has this size and the
    upright one has not, they refer to the stored one; if both have it, people are placed in the upright one,
    and their regions in the stored one are hidden, too."""
    sequence: str | int | None = None
    """The video that this is a frame of; frames are listed in order."""
    hide: tuple[Region, ...] | list[Region] = ()
    """What else to hide: people without a fit, crowds, faces on walls, number plates."""


class Pixels(NamedTuple):
    """The colours of a photograph; nothing else of its file is kept."""

    rgb: UInt8[np.ndarray, "H W 3"]
    """Upright."""
    blocks: Int[np.ndarray, "H W"] | None
    """Id of the JPEG block that each pixel was encoded in; None for formats without such blocks."""
    predicted: bool
    """Whether the format may spread traces of a pixel in ways that are not known here."""
    rings: int = 0
    """Number of blocks around its own that a pixel may be smoothed from."""
    other: Image.Transpose | None = None
    """Turn from the stored to the upright picture, if the expected size fits both."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.rgb.shape[1], self.rgb.shape[0]


def read_pixels(path: str | PathLike[str], size: tuple[int, int] | None = None) -> Pixels:
    """Read the first picture of an image file, upright by its EXIF orientation.

    Pixels that are not fully opaque become black: their colours are not meant to be seen. An expected size
    may be that of the upright or of the stored picture.

    Raises:
        ReleaseError: the picture has another size.
        AnnotationError: the file is not a picture of 8 or 16 bits per channel, or is damaged.
        OSError: the file cannot be read.
    """
    with open_image(path) as image:
        blocks, predicted = _coded_blocks(image), not _is_exact(image)
        rings = SMOOTHED if image.info.get("progressive") else 0
        pixels, turn = decode_stored(image, lambda found: _opaque(to_eight_bits(found)))
    upright = pixels if turn is None else pixels.transpose(turn)
    if size not in (None, upright.size, pixels.size):
        raise ReleaseError(f"the fits are for {size} pixels, the picture has {upright.size}")
    other = turn if size == upright.size == pixels.size else None
    if turn is not None and size in (None, upright.size):
        pixels = upright
        blocks = None if blocks is None else blocks.transpose(turn)
    return Pixels(np.asarray(pixels), None if blocks is None else np.asarray(blocks), predicted, rings, other)


def load_mask(mask: Any, size: tuple[int, int], *, empty: bool = True) -> Bool[np.ndarray, "H W"]:
    """Return a mask, an array or a file, of the size of its photograph; it may be empty only if ``empty``."""
    name = "mask" if isinstance(mask, np.ndarray) else str(mask)
    found = mask if isinstance(mask, np.ndarray) else _read_mask_file(mask)
    if found.dtype != np.bool_ or found.shape != (size[1], size[0]):
        raise ReleaseError(
            f"{name}: expected a mask of {size[0]} x {size[1]} pixels, as the photograph has, "
            f"got {found.dtype} of shape {found.shape}"
        )
    if not empty and not found.any():
        raise ReleaseError(f"{name}: the mask is empty")
    return found


def _opaque(image: Image.Image) -> Image.Image:
    """Convert to RGB, with black in place of pixels that are not fully opaque."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = np.array(image.convert("RGBA"))
    rgba[rgba[..., 3] < 255] = 0
    return Image.fromarray(np.ascontiguousarray(rgba[..., :3]))


def _read_mask_file(path: str | PathLike[str]) -> Bool[np.ndarray, "H W"]:
    """Return True where the colour is not black.

    Raises:
        ReleaseError: the image is partly transparent, so that it may not be the colour that shows people, or
            has 16 bits, of which small numbers would be lost.
    """
    with open_image(path) as image:
        if image.mode not in EIGHT_BITS:
            raise ReleaseError(
                f"{path}: expected a mask of 8 bits per channel, got Pillow's mode {image.mode}"
            )
        opacity = image.convert("RGBA").getextrema()[3] if image.has_transparency_data else (255, 255)
        if opacity != (255, 255):
            raise ReleaseError(f"{path}: expected a mask without transparency, black where nobody is")
        colors, turn = decode_stored(image, lambda found: to_eight_bits(found).convert("RGB"))
    return np.any(np.asarray(colors if turn is None else colors.transpose(turn)), axis=-1)


def _is_exact(image: Image.Image) -> bool:
    """Return whether no stored pixel depends on other pixels, except within the blocks of a JPEG."""
    if image.mode in SHARED_COLORS:
        return False
    if image.format in BLOCKED:
        return True
    compression = image.info.get("compression")
    return image.format in EXACT or (image.format == "TIFF" and compression in EXACT_TIFF)


def _coded_blocks(image: Image.Image) -> Image.Image | None:
    """Return the id of the JPEG block of each pixel: those of the channel with the largest blocks."""
    sampling = getattr(image, "layer", None)
    if image.format not in BLOCKED or not sampling:
        return None
    across, down = (8 * max(channel[i] for channel in sampling) for i in (1, 2))
    columns, rows = np.arange(image.width) // across, np.arange(image.height) // down
    ids = rows[:, None] * (columns[-1] + 1) + columns
    return Image.fromarray(ids.astype(np.int32))
