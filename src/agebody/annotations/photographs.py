"""Photographs in which keypoints lie: list them, and read their sizes and pixels upright."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from agebody.annotations.people import AnnotationError, People
from agebody.engine.backend import is_installed

HEIC = (".heic", ".heif", ".hif")
"""Suffixes of photographs of phones, which are read with pillow-heif."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", *HEIC)
"""Suffixes of image files."""

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by content: Pillow decodes them itself; for EPS it starts a program."""
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of Pillow that convert to RGB without any choice."""

_CONVERT = "convert it to JPEG first, as by `magick photo.heic photo.jpg`"
_AVIF = ".avif"
_CONTENT = {
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "AVIF": rb"....ftypavi",
    "JPEG XL": rb"\xff\x0a|....JXL ",
}
"""Beginnings of other formats, which photographs are sometimes renamed from, by suffix alone."""
_LEAST_35MM, _MOST_35MM = 4, 5000
"""Focal lengths that lenses have [mm on 35 mm film]; cameras write others, as 65535, for unknown ones."""
_EXIF_IFD, _FOCAL_LENGTH_35MM = 0x8769, 41989
_DIAGONAL_35MM = math.hypot(36, 24)
"""Diagonal of 35 mm film, to which cameras convert their focal lengths [mm]."""
_EXIF_ORIENTATION = 274
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation -> Pillow's ``Transpose`` from the stored to the upright picture."""
_INVERSE = {2: 4, 4: 2}
"""Turns by 90 and 270 degrees; all others are their own inverse."""
_BITS_PER_SAMPLE = 258
_EXACT_16_BITS = 257
"""65535 / 255."""


class Photographs:
    """The image files of a folder and its subfolders, which are found by the names that files have for them.

    Args:
        path: a folder, or one image.
        deep: whether to look in subfolders.

    Raises:
        AnnotationError: the path is neither.
    """

    def __init__(self, path: Path, *, deep: bool = True) -> None:
        refused = _refused()
        if path.is_file() and path.suffix.lower() in refused:
            raise AnnotationError(f"{path}: {path.suffix[1:].upper()} is not read; {_advice(path.suffix)}")
        self.one = path.is_file() and path.suffix.lower() in SUFFIXES
        if not self.one and not path.is_dir():
            raise AnnotationError(f"{path}: expected a folder of images, or an image")
        self.folder = path.parent if self.one else path
        files = [path] if self.one else [*filter(is_content, path.rglob("*") if deep else path.glob("*"))]
        self.unread = sum(file.suffix.lower() in refused for file in files)
        suffixes = set(SUFFIXES) - set(refused)
        found = (file for file in files if file.suffix.lower() in suffixes and file.is_file())
        self.names = tuple(sorted(file.relative_to(self.folder).as_posix() for file in found))
        self._known: dict[Any, list[str]] = {}
        self._alike: dict[str, list[str]] = {}
        for name in self.names:
            stem = Path(name).stem
            digits = re.search(r"[0-9]+$", stem)
            keys = {Path(name).name, stem, *((int(digits[0]),) if digits else ())}
            for key in keys:
                self._known.setdefault(key, []).append(name)
                if isinstance(key, str):
                    self._alike.setdefault(_alike(key), []).append(name)
        self._all = set(self.names)

    def matches(self, key: Any) -> list[str]:
        """Return the names, relative to the folder, of the images that a name or a number fits.

        A name may have more or fewer folders than there are, or no suffix. A number is the one with which the
        name of an image ends, as in ``COCO_val2014_000000000192.jpg``. Case matters where two names differ
        only by it.
        """
        if not isinstance(key, str):
            return self._known.get(key, []) if not isinstance(key, bool) else []
        for written in (key, key.replace("\\", "/")):
            parts = Path(written).parts
            if not parts:
                return []
            if Path(written).as_posix() in self._all:
                return [Path(written).as_posix()]
            found = self._known.get(parts[-1]) or self._alike.get(_alike(parts[-1]), [])
            found = [name for name in found if Path(name).name == parts[-1]] or found  # a.jpg, not a.jpg.png
            shared = [_shared_end(parts, Path(name).parts) for name in found]
            if found:
                return [name for name, count in zip(found, shared, strict=True) if count == max(shared)]
        return self._known.get(int(key), []) if len(key) < 20 and key.isascii() and key.isdecimal() else []

    def describe(self) -> str:
        """Return how many images there are, as error messages say it."""
        count = f"{len(self.names)} images" + (f", such as {self.names[0]}" if self.names else "")
        kinds = [suffix for suffix in (HEIC[0], _AVIF) if suffix in _refused()]
        what = f"{self.unread} in {' or '.join(suffix[1:].upper() for suffix in kinds)}"
        return count + (f", and {what}, which is not read; {_advice(kinds[0])}" if self.unread else "")


def _alike(name: str) -> str:
    """Return a key that is equal for names that some systems identify: any case, composed accents or not."""
    return unicodedata.normalize("NFC", name).casefold()


def is_photographs(path: Path) -> bool:
    """Return whether a path is a photograph, or a folder with photographs and no files of keypoints."""
    if path.is_dir():
        kept = any(filter(is_content, (*path.glob("*.json"), *path.glob("*.txt"))))
        return not kept and bool(Photographs(path).names)
    return path.is_file() and path.suffix.lower() in (*SUFFIXES, _AVIF)


def _refused() -> tuple[str, ...]:
    """Return the suffixes of phones' photographs that cannot be read here."""
    return (_AVIF,) if is_installed("pillow_heif") else (*HEIC, _AVIF)


def _advice(suffix: str) -> str:
    return _CONVERT + (', or pip install "agebody[heic]"' if suffix.lower() in HEIC else "")


def is_content(path: Path) -> bool:
    """Return whether a file is neither an overlay of labels nor macOS's of attributes, ``._photo.jpg``."""
    overlay = path.parent.name == "overlays" and (path.parent.parent / "labels.npz").exists()
    return not (overlay or path.name.startswith("._"))


def _shared_end(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Return how many parts at the end of two paths are the same, at least the file."""
    pairs = zip(reversed(first[:-1]), reversed(second[:-1]), strict=False)
    return 1 + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@contextmanager
def open_image(path: str | PathLike[str], formats: tuple[str, ...] = FORMATS) -> Iterator[Any]:
    """Yield an opened image of one of some formats; errors at damaged files, in the block too, name them.

    Raises:
        AnnotationError: the file is of another format, damaged, or has too many pixels.
        OSError: it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(2, "the image does not exist", str(path))
    with Path(path).open("rb") as file:
        head = file.read(16)
    kind = next((name for name, start in _CONTENT.items() if re.match(start, head, re.DOTALL)), "")
    if formats is FORMATS and kind == "HEIC" and HEIC[0] not in _refused():
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
        formats = (*formats, "HEIF")  # which it turns upright itself
    try:
        with warnings.catch_warnings():  # of odd metadata; and too many pixels are an error, at twice as many
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats) as image:
                yield image
    except (AnnotationError, MemoryError):
        raise
    except UnidentifiedImageError:
        expected = f"expected {', '.join(formats)}"
        unread = kind and "HEIF" not in formats
        why = f"{kind}, which is not read; {_advice(f'.{kind}')}" if unread else expected
        raise AnnotationError(f"{path}: not an image that can be read; {why}") from None
    except OSError as error:
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from None
        raise AnnotationError(f"{path}: the image is damaged: {error}") from None
    except Exception as error:  # almost any type, by format and version of Pillow
        raise AnnotationError(f"{path}: the image is damaged: {type(error).__name__}: {error}") from None


def find_turn(image: Any) -> Any:
    """Return Pillow's turn from the stored to the upright picture by EXIF; None for none, or a wrong one."""
    from PIL import Image

    found = image.getexif().get(_EXIF_ORIENTATION)
    turn = _TURNS.get(found) if isinstance(found, int) else None
    return None if turn is None else Image.Transpose(turn)


def decode_stored(image: Any, convert: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return the picture as it is stored, converted, and its turn to the upright one."""
    turn = find_turn(image)
    pixels = convert(image)
    if turn is not None and image.format == "TIFF":  # which Pillow turns itself as it is decoded
        pixels = pixels.transpose(_INVERSE.get(turn, turn))
    return pixels, turn


def to_eight_bits(image: Any) -> Any:
    """Return an image with 8 bits per channel; 16 bits of grey are divided by 257."""
    from PIL import Image

    if image.mode in EIGHT_BITS:
        return image.convert("LA") if image.mode == "La" else image  # which converts to that alone
    grey = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] if image.format == "TIFF" else 16
    if not grey or bits != 16:
        kind = {"F": "32-bit floats", "I": "32-bit integers"}.get(image.mode, f"{bits} bits, {image.mode}")
        raise AnnotationError(
            f"{image.filename}: expected 8 or 16 bits per channel, got {kind}; convert the image first"
        )
    return Image.fromarray(np.rint(np.asarray(image) / _EXACT_16_BITS).astype(np.uint8))


def photograph_size(path: Path) -> tuple[int, int]:
    """Return width and height of a photograph from its header, with its EXIF orientation applied."""
    with open_image(path) as image:
        width, height = image.size
        turned = find_turn(image) in (2, 4, 5, 6) and image.format != "TIFF"
        return (height, width) if turned else (width, height)


def exif_focal(image: Any) -> float:
    """Return the focal length of an image by EXIF's FocalLengthIn35mmFilm [pixels]; NaN if it has none.

    That is the focal length on film of 36 x 24 mm with the same diagonal angle of view (CIPA DCG-001). It is
    wrong for a photograph that was cropped.
    """
    found = image.getexif().get_ifd(_EXIF_IFD).get(_FOCAL_LENGTH_35MM)
    known = isinstance(found, int) and _LEAST_35MM <= found <= _MOST_35MM
    return found * math.hypot(*image.size) / _DIAGONAL_35MM if known else math.nan


def read_photograph(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Return a photograph in the orientation in which its keypoints were annotated.

    Detectors and viewers apply the EXIF orientation of a photograph; some annotations were made without it.
    Of the two, the one with the stated size is returned; without one, the upright one. Opacity is ignored, as
    OpenCV and detectors do.

    Raises:
        AnnotationError: the file is not an image, or has another size.
        OSError: it cannot be read.
    """
    with open_image(path) as image:
        stored, turn = decode_stored(image, lambda found: to_eight_bits(found).convert("RGB"))
    shown = stored if turn is None else stored.transpose(turn)
    for candidate in (shown, stored):
        if size is None or candidate.size == tuple(size):
            return np.array(candidate)
    raise AnnotationError(
        f"{path}: the image has {shown.width} x {shown.height} pixels, "
        f"the annotations are of {size[0]} x {size[1]}"  # pyright: ignore[reportOptionalSubscript]
    )


def is_upright_jpeg(path: Path) -> bool:
    """Return whether a file is a JPEG of one picture, in grey or colour, that is stored upright."""
    with open_image(path) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and find_turn(image) is None


def read_exif_focals(found: People, images: Path) -> People:
    """Return people with the focal lengths of their photographs where no file states one, and notes.

    One of the notes is of photographs of another size than stated, whose focal lengths are not read.
    ``images`` is their folder, or one of them.
    """
    folder = images.parent if images.is_file() else images
    focal = np.full(len(found), math.nan) if found.focal is None else found.focal.copy()
    exif = np.full(len(found.images), math.nan)
    others = []
    for i in np.unique(found.image[np.isnan(focal)]):
        name, size = found.images[i][0], found.images[i].size
        # Damaged images are reported where they are needed.
        with suppress(AnnotationError, OSError), open_image(folder / name) as image:
            if size not in (None, image.size, *([image.size[::-1]] if find_turn(image) is not None else [])):
                others.append(
                    f"{name}, of {image.width} x {image.height} pixels and not {size[0]} x {size[1]}"
                )
            else:
                exif[i] = exif_focal(image)
    read = int(np.isfinite(exif).sum())
    focal = np.where(np.isnan(focal), exif[found.image], focal)
    guessed = len(np.unique(found.image[np.isnan(focal)]))
    notes = []
    if others:
        whose = f"{len(others)} of {len(found.images)} images have other sizes than the file states"
        notes.append(f"{whose}, such as {others[0]}: are these the images of the keypoints?")
    if read:
        whose = f"{read} of {len(found.images)} images are from their EXIF"
        notes.append(f"focal lengths of {whose}; --focal overrides them")
    if guessed:
        whose = f"{guessed} of {len(found.images)} images are guessed to be their diagonals"
        notes.append(f"focal lengths of {whose}; give --focal or --fov")
    return replace(found, focal=focal if read else found.focal, notes=(*found.notes, *notes))
