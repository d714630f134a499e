"""What is released: photographs, their cameras, and who is in them."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from agebody.cameras import Camera
from agebody.fitting.parameters import BodyParameters

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
PREDICTED = ("AVIF", "JPEG2000", "WEBP")
"""Formats that, where they lose anything, may spread it beyond a block."""


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
    this size, and not the upright one, they hold for the stored one."""
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
    """Whether each block of the format may have been coded as its difference from those before it."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.rgb.shape[1], self.rgb.shape[0]


def read_pixels(path: str | PathLike[str], size: tuple[int, int] | None = None) -> Pixels:
    """The first picture of an image file, upright as its EXIF data say.

    Args:
        path: the file.
        size: width and height that are expected; the picture as it is stored will do, too.

    Raises:
        ReleaseError: the file is no picture of 8 bits a channel, is damaged, or has another size.
        OSError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BITS:
                raise ReleaseError(f"expected 8 bits a channel, got a picture of Pillow's mode {image.mode}")
            blocks, predicted = _coded_blocks(image), image.format in PREDICTED
            turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
            pixels = image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, EOFError) as error:
        raise ReleaseError(f"no picture that can be read ({type(error).__name__})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ReleaseError(f"the picture is damaged: {error}") from None
    upright = pixels if turn is None else pixels.transpose(turn)
    if size not in (None, upright.size, pixels.size):
        raise ReleaseError(f"the fits are for {size} pixels, the picture has {upright.size}")
    if turn is not None and size in (None, upright.size):
        pixels = upright
        blocks = None if blocks is None else blocks.transpose(turn)
    return Pixels(np.asarray(pixels), None if blocks is None else np.asarray(blocks), predicted)


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
            found = np.any(read_pixels(mask).rgb, axis=-1)
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


def _coded_blocks(image: Image.Image) -> Image.Image | None:
    """Ids of the blocks that a JPEG is coded in, one a pixel: those of its most widely sampled channel."""
    sampling = getattr(image, "layer", None)
    if image.format not in ("JPEG", "MPO") or not sampling:
        return None
    across, down = (8 * max(channel[i] for channel in sampling) for i in (1, 2))
    columns, rows = np.arange(image.width) // across, np.arange(image.height) // down
    ids = rows[:, None] * (columns[-1] + 1) + columns
    return Image.fromarray(ids.astype(np.int32))
