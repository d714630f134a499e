"""What is released: photographs, their cameras and their people; and how image files are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from agebody.annotations import AnnotationError
from agebody.cameras import Camera
from agebody.parameters import BodyParameters

ORIENTATION = 0x0112
"""EXIF tag of the turn from the stored to the upright picture."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of Pillow that convert to RGB without any choice."""
BLOCKED = ("JPEG", "MPO")
"""Formats that encode block by block."""
SMOOTHED = 2
"""Number of blocks on each side from which decoders estimate what a truncated progressive JPEG lacks."""
EXACT = ("BMP", "PNG", "PPM")
"""Formats that keep every pixel exactly, and so hold no trace of it elsewhere."""
EXACT_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
"""Compressions of TIFF that do the same."""
SHARED_COLORS = ("1", "P", "PA")
"""Modes in which a palette depends on the whole picture, or dithering passes errors on to the next pixel."""


class ReleaseError(AnnotationError):
    """A photograph that must not be released as it is listed; nothing was written."""


Box = tuple[float, float, float, float]
"""Corners (x0, y0, x1, y1) [pixels]."""

Mask = Bool[np.ndarray, "H W"] | str | PathLike[str]
"""True where somebody is, or an image file that is not black there."""

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

    Pixels that are not fully opaque become black: their colours are not meant to be seen.

    Args:
        path: the file.
        size: expected width and height, of the upright or of the stored picture.

    Raises:
        ReleaseError: the file is not a picture of 8 bits per channel, is damaged, or has another size.
        OSError: the file cannot be read.
    """
    with _decoding(path) as image:
        blocks, predicted = _coded_blocks(image), not _is_exact(image)
        rings = SMOOTHED if image.info.get("progressive") else 0
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        pixels = _opaque(image)
    upright = pixels if turn is None else pixels.transpose(turn)
    if size not in (None, upright.size, pixels.size):
        raise ReleaseError(f"the fits are for {size} pixels, the picture has {upright.size}")
    other = turn if size == upright.size == pixels.size else None
    if turn is not None and size in (None, upright.size):
        pixels = upright
        blocks = None if blocks is None else blocks.transpose(turn)
    return Pixels(np.asarray(pixels), None if blocks is None else np.asarray(blocks), predicted, rings, other)


def read_mask(mask: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Read a mask as `load_mask` does, and refuse an empty one.

    Raises:
        ReleaseError: the mask is empty, or has another size than the photograph.
        OSError: the file cannot be read.
    """
    found = load_mask(mask, size)
    if not found.any():
        raise ReleaseError(f"{_name(mask)}: the mask is empty")
    return found


def load_mask(mask: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Read a mask, which may be empty, from an array or a file.

    Raises:
        ReleaseError: the mask has another size than the photograph.
        OSError: the file cannot be read.
    """
    found = mask
    if not isinstance(mask, np.ndarray):
        try:
            found = _read_mask_file(mask)
        except ReleaseError as error:
            raise ReleaseError(f"{_name(mask)}: {error}") from None
    if not isinstance(found, np.ndarray) or found.dtype != np.bool_ or found.shape != (size[1], size[0]):
        raise ReleaseError(
            f"{_name(mask)}: expected a mask of {size[0]} x {size[1]} pixels, as the photograph has, "
            f"got {found.dtype} of shape {found.shape}"
        )
    return found


def _name(mask: Any) -> str:
    return "mask" if isinstance(mask, np.ndarray) else str(mask)


@contextmanager
def _decoding(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file, and turn Pillow's many errors into ReleaseError."""
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BITS:
                raise ReleaseError(f"expected 8 bits per channel, got Pillow's mode {image.mode}")
            yield image
    except (ReleaseError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        if isinstance(error, UnidentifiedImageError):
            raise ReleaseError("expected an image file") from None
        raise ReleaseError(f"the picture is damaged: {error}") from None
    except Exception as error:  # damaged files raise almost any type, by format and version of Pillow
        raise ReleaseError(f"expected an image file ({type(error).__name__}: {error})") from None


def _opaque(image: Image.Image) -> Image.Image:
    """Convert to RGB, with black in place of pixels that are not fully opaque."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # which converts to LA only
        image = image.convert("LA")
    rgba = np.array(image.convert("RGBA"))
    rgba[rgba[..., 3] < 255] = 0
    return Image.fromarray(np.ascontiguousarray(rgba[..., :3]))


def _read_mask_file(path: str | PathLike[str]) -> Bool[np.ndarray, "H W"]:
    """Return True where the colour is not black, whatever its opacity."""
    with _decoding(path) as image:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        colors = image.convert("RGB")
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
