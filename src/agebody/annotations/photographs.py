"""Photographs in which keypoints lie: list them, and read their sizes and pixels upright."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from agebody.annotations.people import AnnotationError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of image files."""

_EXIF_ORIENTATION = 274
_QUARTER_TURNS = (5, 6, 7, 8)
_DAMAGES = (OSError, SyntaxError, ValueError, EOFError)
"""What Pillow raises at files that are damaged, or not images."""


def list_photographs(folder: Path) -> tuple[str, ...]:
    """Return the image files in a folder and its subfolders, sorted, as paths relative to it.

    Raises:
        AnnotationError: the path is not a folder.
    """
    if not folder.is_dir():
        raise AnnotationError(f"{folder}: expected a folder of images")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found))


def photograph_size(path: Path) -> tuple[int, int]:
    """Return width and height of a photograph from its header, with its EXIF orientation applied.

    Raises:
        AnnotationError: the file is not an image.
        OSError: it cannot be read.
    """
    with _open(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _QUARTER_TURNS else (width, height)


def read_photograph(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Return a photograph in the orientation in which its keypoints were annotated.

    Detectors and viewers apply the EXIF orientation of a photograph; some annotations were made without it.
    Of the two, the one with the stated size is returned.

    Args:
        path: the image.
        size: width and height that the annotations state; None for the upright photograph.

    Raises:
        AnnotationError: the file is not an image, or has another size.
        OSError: it cannot be read.
    """
    from PIL import ImageOps

    with _open(path) as image:
        try:
            stored = image.convert("RGB")
            shown = ImageOps.exif_transpose(image).convert("RGB")
        except _DAMAGES as error:
            raise AnnotationError(f"{path}: the image is damaged: {error}") from None
    for candidate in (shown, stored):
        if size is None or candidate.size == tuple(size):
            return np.array(candidate)
    raise AnnotationError(
        f"{path}: the image has {shown.width} x {shown.height} pixels, "
        f"the annotations are of {size[0]} x {size[1]}"  # pyright: ignore[reportOptionalSubscript]
    )


def is_upright(path: Path) -> bool:
    """Return whether an image is stored upright.

    Raises:
        AnnotationError: the file is not an image.
        OSError: it cannot be read.
    """
    with _open(path) as image:
        return _orientation(image) == 1


def _open(path: Path) -> Any:
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(2, "the image does not exist", str(path))
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise AnnotationError(f"{path}: {error}") from None
    except _DAMAGES:
        raise AnnotationError(f"{path}: not an image that can be read") from None


def _orientation(image: Any) -> int:
    found = image.getexif().get(_EXIF_ORIENTATION, 1)
    return found if found in range(1, 9) else 1
