"""What is released: photographs, their cameras, and who is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from agebody.cameras import Camera
from agebody.parameters import BodyParameters

ORIENTATION = 0x0112
"""The tag of EXIF that says how a stored picture has to be turned."""
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
"""Modes of Pillow that become RGB without a choice of ours."""
BLOCKED = ("JPEG", "MPO")
"""Formats that code block by block."""
SMOOTHED = 2
"""By how many blocks on each side decoders estimate what a progressive JPEG that was cut short lacks."""
EXACT = ("BMP", "PNG", "PPM")
"""Formats that keep every pixel as it is, and so tell of it nowhere else."""
EXACT_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
"""Compressions of TIFF that do, too."""
SHARED_COLORS = ("1", "P", "PA")
"""Modes in which colours are chosen for the whole picture, or their errors passed on to the next pixel."""


class ReleaseError(ValueError):
    """Something that must not be released as it is; nothing was written."""


Box = tuple[float, float, float, float]
"""Corners (x0, y0, x1, y1) [pixels]."""

Mask = Bool[np.ndarray, "H W"] | str | PathLike[str]
"""True where somebody is; or an image file that is not black there."""

Region = Box | Mask
"""Either; a string is a mask's file."""


class Person(NamedTuple):
    """Someone in a photograph. Pixels are those of the upright photograph, EXIF's orientation applied."""

    parameters: BodyParameters | None
    """The fit, without batch dimensions, in the world of the photograph's camera; None if there is none."""
    box: Box | None = None
    """Around all that was seen of the person, such as a detector's box or the keypoints'."""
    mask: Mask | None = None
    track: str | int | None = None
    """Who this is among the people of the photograph's sequence."""
    points: Float[np.ndarray, "K 2"] | None = None
    """Keypoints that were seen of the person [pixels], which the region "mask" has to cover."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph and everybody in it. Who is not listed is not hidden."""

    path: str | PathLike[str]
    camera: Camera
    people: tuple[Person, ...] | list[Person]
    size: tuple[int, int] | None = None
    """Width and height [pixels] for which camera and people hold. Where only the picture as it is stored has
    this size, and not the upright one, they hold for the stored one; where both have it, people are placed in
    the upright one, and what they would hide of the stored one is hidden, too."""
    sequence: str | int | None = None
    """The video that this is a frame of; frames are in the order in which they are listed."""
    hide: tuple[Region, ...] | list[Region] = ()
    """What else is to be hidden: people whom nobody fitted, crowds, faces on walls, number plates."""


class Pixels(NamedTuple):
    """A photograph as colours alone: nothing else of its file is kept."""

    rgb: UInt8[np.ndarray, "H W 3"]
    """Upright."""
    blocks: Int[np.ndarray, "H W"] | None
    """Which block of a JPEG each pixel was coded in; None where the format has no such blocks."""
    predicted: bool
    """Whether the format may spread what is in one place over others, in ways that are not known here."""
    rings: int = 0
    """How many blocks around its own a pixel may be smoothed from."""
    other: Image.Transpose | None = None
    """What turns labels of the stored picture upright, where by their size they could be labels of either."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.rgb.shape[1], self.rgb.shape[0]


def read_pixels(path: str | PathLike[str], size: tuple[int, int] | None = None) -> Pixels:
    """The first picture of an image file, upright as its EXIF data say.

    Pixels that are not fully opaque are black: their colours are not meant to be seen.

    Args:
        path: the file.
        size: width and height that are expected; the picture as it is stored will do, too.

    Raises:
        ReleaseError: the file is no picture of 8 bits a channel, is damaged, or has another size.
        OSError: it cannot be read.
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
    """A mask in which somebody is, from an array or a file.

    Raises:
        ReleaseError: it has another size than the photograph, or nobody is in it.
        OSError: the file cannot be read.
    """
    found = load_mask(mask, size)
    if not found.any():
        raise ReleaseError(f"{_name(mask)}: nobody is in the mask")
    return found


def load_mask(mask: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """A mask from an array or a file, in which nobody may be.

    Raises:
        ReleaseError: it has another size than the photograph.
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
    """An image file that is open, and Pillow's many errors as one.

    Raises:
        ReleaseError: the file is no picture of 8 bits a channel, or is damaged.
        OSError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BITS:
                raise ReleaseError(f"expected 8 bits a channel, got a picture of Pillow's mode {image.mode}")
            yield image
    except (ReleaseError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        if isinstance(error, UnidentifiedImageError):
            raise ReleaseError("no picture that can be read") from None
        raise ReleaseError(f"the picture is damaged: {error}") from None
    except Exception as error:  # damage shows as almost any type, by format and version of Pillow
        raise ReleaseError(f"no picture that can be read ({type(error).__name__}: {error})") from None


def _opaque(image: Image.Image) -> Image.Image:
    """Colours of pixels that hide nothing, black elsewhere."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = np.array(_with_alpha(image))
    rgba[rgba[..., 3] < 255] = 0
    return Image.fromarray(np.ascontiguousarray(rgba[..., :3]))


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # converts to nothing but LA
        image = image.convert("LA")
    return image.convert("RGBA")


def _read_mask_file(path: str | PathLike[str]) -> Bool[np.ndarray, "H W"]:
    """True where a picture's colour is not black, however opaque it is."""
    with _decoding(path) as image:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        colors = image.convert("RGB")
    return np.any(np.asarray(colors if turn is None else colors.transpose(turn)), axis=-1)


def _is_exact(image: Image.Image) -> bool:
    """Whether no pixel of a picture depends on what was in the place of another."""
    if image.mode in SHARED_COLORS:
        return False
    if image.format in BLOCKED:
        return True  # each within its blocks
    compression = image.info.get("compression")
    return image.format in EXACT or (image.format == "TIFF" and compression in EXACT_TIFF)


def _coded_blocks(image: Image.Image) -> Image.Image | None:
    """Ids of the blocks that a JPEG is coded in, one a pixel: those of its most widely sampled channel."""
    sampling = getattr(image, "layer", None)
    if image.format not in BLOCKED or not sampling:
        return None
    across, down = (8 * max(channel[i] for channel in sampling) for i in (1, 2))
    columns, rows = np.arange(image.width) // across, np.arange(image.height) // down
    ids = rows[:, None] * (columns[-1] + 1) + columns
    return Image.fromarray(ids.astype(np.int32))
