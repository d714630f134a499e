"""The photographs that keypoints lie in: which there are, how large, and which way up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from agebody.annotations.people import AnnotationError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of image files."""

_EXIF_ORIENTATION = 274
_QUARTER_TURNS = (5, 6, 7, 8)
_DAMAGES = (OSError, SyntaxError, ValueError, EOFError)
"""What Pillow raises at files that are damaged, or no images."""


def list_photographs(folder: Path) -> tuple[str, ...]:
    """Image files in a folder and those below it, sorted: paths relative to it.

    Raises:
        AnnotationError: it is no folder.
    """
    if not folder.is_dir():
        raise AnnotationError(f"{folder}: expected a folder of images")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found))


def photograph_size(path: Path) -> tuple[int, int]:
    """Width and height as the photograph is shown, its EXIF orientation applied, from the header alone.

    Raises:
        AnnotationError: it is no image.
        OSError: it is not there.
    """
    with _open(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _QUARTER_TURNS else (width, height)


def read_photograph(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """A photograph the way up in which its keypoints lie.

    Detectors and viewers turn a photograph as its EXIF orientation says; some annotations were made without.
    Of the two, the one is taken that has the size which the annotations state.

    Args:
        path: of the image.
        size: width and height that the annotations state; None is the photograph as it is shown.

    Raises:
        AnnotationError: it is no image, or has another size.
        OSError: it is not there.
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
    """Whether an image is stored the way up in which it is shown.

    Raises:
        AnnotationError: it is no image.
        OSError: it is not there.
    """
    with _open(path) as image:
        return _orientation(image) == 1


def _open(path: Path) -> Any:
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(2, "no such image", str(path))
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise AnnotationError(f"{path}: {error}") from None
    except _DAMAGES:
        raise AnnotationError(f"{path}: no image that can be read") from None


def _orientation(image: Any) -> int:
    found = image.getexif().get(_EXIF_ORIENTATION, 1)
    return found if found in range(1, 9) else 1
