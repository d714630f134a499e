"""Images with their labels and maps in tar shards of webdataset: the layout, a writer and a reader.

Per image, files of one name and these suffixes follow each other:

| suffix | |
|---|---|
| `.jpg` | the image |
| `.data.pyd` | the people for the training code of HMR2 and AionHMR, pickled; nothing of it is run |
| `.labels.json` | the people as `Labels`: each array as nested lists; ``hidden``, where it is known |
| `.mask.png` | per pixel 0 for nobody, 1 for the first person of the labels, and so on; 255 for an occluder |
| `.parts.png` | per pixel 0 for nobody, else 1 + the number of the part of the body |
| `.depth.png` | z in millimetres, 16 bits; 0 where it is unknown |

Maps are optional; synthetic people have them. Tar files have no checksums of contents, so those of an image's
files are in the PAX header of the first one, and are checked where there are any.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from agebody.annotations.arrays import Key, expect_array
from agebody.annotations.people import AnnotationError, fail
from agebody.annotations.photographs import to_eight_bits
from agebody.annotations.shards import Shards, find_shards
from agebody.pipelines.labels.records import ABOUT, Labels, concatenate_labels, find_key

OCCLUDER = 255
"""Pixels of masks that show something in front of people."""
HIDDEN_BY = ("visible", "own body", "another person", "occluder", "outside the image")
"""Meanings of the numbers in ``Sample.hidden``."""
_HIDDEN = Key((None,), "integer", least=0)
_ABOUT, _CHECKSUMS = "agebody.synthesis", "agebody.crc32"
IMAGE, PEOPLE, LABELS = "jpg", "data.pyd", "labels.json"
_MAPS = {"mask": "mask.png", "parts": "parts.png", "depth": "depth.png"}
_ALIASES = {"jpeg": IMAGE, "png": IMAGE}
"""Other suffixes of the image, which HMR2's code takes as well."""


class Member(NamedTuple):
    """Place of a file in a shard."""

    start: int
    """First byte."""
    size: int
    checksum: int = -1
    """CRC-32, or -1 if the shard does not state it."""


class Sample(NamedTuple):
    """An image of a shard, its people and its maps."""

    name: str
    """The same as in the labels' ``image_ids``."""
    image: UInt8[np.ndarray, "H W 3"]
    labels: Labels
    """One row per person of the image."""
    hidden: Int[np.ndarray, "N K"] | None = None
    """Index into ``HIDDEN_BY`` per keypoint of the labels."""
    mask: UInt8[np.ndarray, "H W"] | None = None
    """0 for nobody, n for row n - 1 of the labels, ``OCCLUDER`` for what is in front of people."""
    parts: UInt8[np.ndarray, "H W"] | None = None
    """0 for nobody, else 1 + the part of the body."""
    depth: Float[np.ndarray, "H W"] | None = None
    """z [m]; NaN where it is unknown."""


class TrainingShards:
    """The images of tar shards by their number: a data set for `torch.utils.data.DataLoader`.

    The shards are those of `save_training_shards` and `synthesize`. Opening them reads the names of their
    files; images are read when they are asked for, in any order and by any number of workers. Nothing is
    unpickled.

    Args:
        shards: a folder, whose ``*.tar`` are read ordered by name, or the files.

    Raises:
        AnnotationError: a file is no such shard, or damaged, or there are none.
        OSError: a file cannot be read.
    """

    def __init__(self, shards: Shards) -> None:
        self.paths = find_shards(shards, ".tar")
        self._members = [
            (number, members)
            for number, path in enumerate(self.paths)
            for members in index_shard(path, (IMAGE, LABELS)).values()
        ]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._members)

    def __getitem__(self, index: int) -> Sample:
        """Return an image with its people and maps."""
        shard, members = self._members[index]
        path = self.paths[shard]
        data = read_members(path, members)
        labels, hidden = read_labels(path, data[LABELS])
        maps: dict[str, Any] = {
            name: decode_image(path, data[suffix]) for name, suffix in _MAPS.items() if suffix in data
        }
        if "depth" in maps:
            millimetres = maps["depth"].astype(np.float32)
            maps["depth"] = np.where(millimetres > 0, millimetres / np.float32(1000), np.float32(np.nan))
        image = decode_image(path, data[IMAGE], "RGB")
        return Sample(str(labels.image_ids[0]), image, labels, hidden, **maps)

    def __iter__(self) -> Iterator[Sample]:
        """Yield all images in their order."""
        return (self[i] for i in range(len(self)))

    def labels(self) -> Labels:
        """Return the labels of all images, without reading an image.

        Raises:
            AnnotationError: labels are damaged, or of several bodies or layouts.
        """
        parts = []
        for shard, members in self._members:
            path = self.paths[shard]
            parts.append(read_labels(path, read_members(path, members, LABELS)[LABELS])[0])
        try:
            return concatenate_labels(parts)
        except ValueError as error:
            raise AnnotationError(f"{self.paths[0].parent}: {error}") from None


def open_shard(path: Path, about: dict[str, Any]) -> tarfile.TarFile:
    """Return a new shard to write to, which states what it was made with in its PAX header."""
    stated = {_ABOUT: json.dumps(about)}
    return tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=stated)


def read_about(path: Path) -> dict[str, Any]:
    """Return the settings that a shard states; empty if it states none."""
    index_shard(path, ())
    with tarfile.open(path, "r:") as tar:
        tar.next()
        text = tar.pax_headers.get(_ABOUT, "{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fail(path, f"{_ABOUT}: expected a JSON object in the header")
    return found


def add_sample(
    tar: tarfile.TarFile,
    key: str,
    image: bytes,
    labels: Labels,
    pickled: bytes,
    *,
    hidden: Int[np.ndarray, "N K"] | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write an image to a shard.

    Args:
        tar: the shard.
        key: name of the image's files, without a dot.
        image: a JPEG file.
        labels: the people of the image.
        pickled: the same people for the training code of HMR2.
        hidden: see `Sample`.
        maps: ``mask`` and ``parts`` as in `Sample`, ``depth`` in millimetres.
    """
    files = {IMAGE: image, PEOPLE: pickled, LABELS: write_labels(labels, hidden)}
    files |= {_MAPS[name]: encode(values, "PNG") for name, values in (maps or {}).items()}
    add_files(tar, key, files)


def add_files(tar: tarfile.TarFile, key: str, files: Mapping[str, bytes]) -> None:
    """Write the files of an image to a shard, by suffix, the image first."""
    stated = " ".join(f"{suffix}={zlib.crc32(data):08x}" for suffix, data in files.items())
    for suffix, data in files.items():
        entry = tarfile.TarInfo(f"{key}.{suffix}")  # without times and owners: equal data give equal bytes
        entry.size = len(data)
        entry.pax_headers = {_CHECKSUMS: stated} if suffix == IMAGE else {}
        tar.addfile(entry, io.BytesIO(data))


def encode(values: np.ndarray, kind: str, quality: int = 95) -> bytes:
    """Return an image file: JPEG of a quality, or PNG."""
    from PIL import Image

    stream = io.BytesIO()
    options = {"quality": quality} if kind == "JPEG" else {"compress_level": 3}
    Image.fromarray(values).save(stream, format=kind, **options)
    return stream.getvalue()


def write_labels(labels: Labels, hidden: Int[np.ndarray, "N K"] | None) -> bytes:
    """Return the labels of an image as the shard's JSON."""
    found: dict[str, Any] = {name: getattr(labels, name) for name in ABOUT}
    arrays = labels.arrays() | ({} if hidden is None else {"hidden": hidden})
    found["people"] = {name: _to_list(array) for name, array in arrays.items()}
    return json.dumps(found, separators=(",", ":")).encode()


def _to_list(array: np.ndarray) -> list[Any]:
    """Return nested lists; single precision with nine digits, which identify its numbers."""
    if array.dtype != np.float32:
        return array.tolist()
    flat = np.array([float(f"{number:.9g}") for number in array.ravel().tolist()])
    return flat.reshape(array.shape).tolist()


def read_labels(path: Path, data: bytes) -> tuple[Labels, Int[np.ndarray, "N K"] | None]:
    """Return the labels of an image of a shard, and ``hidden`` of `Sample`."""
    damaged = f"{LABELS}: not the labels of a shard, or damaged ones"
    try:
        stated = json.loads(data)
        people = dict(stated["people"])
        about = {name: expect_array(path, name, key, np.array(stated[name])) for name, key in ABOUT.items()}
    except (ValueError, TypeError, KeyError, RecursionError):
        fail(path, damaged)
    arrays = {}
    for name, rows in people.items():
        key = _HIDDEN if name == "hidden" else find_key(name)
        if key is None:
            continue
        try:
            array = np.array(rows)
        except ValueError:
            fail(path, f"{LABELS}: {name}: expected lists of one length")
        array = array.astype(int) if key.kind == "integer" and not array.size else array
        arrays[name] = expect_array(path, f"{LABELS}: {name}", key, array)
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        fail(path, damaged)
    hidden = arrays.pop("hidden", None)
    return Labels.from_arrays(path, arrays, about), hidden


def read_members(path: Path, members: Mapping[str, Member], *only: str) -> dict[str, bytes]:
    """Return some files of an image by suffix, or all of them."""
    found = {}
    with path.open("rb") as stream:
        for name in only or members:
            start, size, checksum = members[name]
            stream.seek(start)
            found[name] = stream.read(size)
            if checksum >= 0 and zlib.crc32(found[name]) != checksum:
                fail(path, f"the {name} at byte {start} is damaged: it does not give its checksum")
    return found


@contextmanager
def opened(path: Path, data: bytes) -> Iterator[Any]:
    """Yield a JPEG or PNG of a shard, opened but not loaded; errors in the block name the shard."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            yield image
    except Exception as error:  # almost any type, by format and version of Pillow
        raise AnnotationError(f"{path}: an image is damaged: {type(error).__name__}: {error}") from None


def decode_image(path: Path, data: bytes, mode: str | None = None) -> np.ndarray:
    """Return the pixels of a JPEG or PNG of a shard; with a mode, those of 8 bits per channel."""
    with opened(path, data) as image:
        return np.array(image if mode is None else to_eight_bits(image).convert(mode))


def index_shard(path: Path, needed: Sequence[str]) -> dict[str, dict[str, Member]]:
    """Return, by the name of each image of a shard, the places of its files by suffix.

    Every image must have the ``needed`` suffixes.
    """
    found: dict[str, dict[str, Member]] = {}
    checksums: dict[str, dict[str, int]] = {}
    with path.open("rb") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for entry in filter(tarfile.TarInfo.isreg, tar):
                    folder, slash, name = entry.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    key, suffix = folder + slash + stem, suffix.lower()
                    if stem:  # else a hidden file, as other systems add
                        found.setdefault(key, {})[_ALIASES.get(suffix, suffix)] = Member(
                            entry.offset_data, entry.size
                        )
                    if stated := entry.pax_headers.get(_CHECKSUMS):
                        pairs = (pair.partition("=") for pair in stated.split())
                        checksums[key] = {suffix: int(digits, 16) for suffix, _, digits in pairs}
                end = stream.seek(tar.offset)
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            fail(path, f"not a tar file, or a damaged one: {error}")
        rest = iter(partial(stream.read, 1 << 20), b"")
        if (first := next(rest, None)) is None:  # zeros end every tar file
            fail(path, "the file is damaged: it ends too early")
        if any(chunk.strip(b"\0") for chunk in itertools.chain((first,), rest)):
            fail(path, f"the file is damaged, or several in one: unexpected data at byte {end} or after it")
    for key, members in found.items():
        missing = [suffix for suffix in needed if suffix not in members]
        if missing:
            fail(path, f"{key}: expected an image and its labels; there is no {key}.{missing[0]}")
        for suffix, checksum in checksums.get(key, {}).items():
            if suffix not in members:
                fail(path, f"the file is damaged: there is no {key}.{suffix}")
            members[suffix] = members[suffix]._replace(checksum=checksum)
    return found
