"""Read the shards that training codes of HMR2's family share: images, and lists of the people in them.

A shard is a tar file in which ``KEY.jpg`` and ``KEY.data.pyd``, a pickled list of people, belong together:
what `save_training_shards` and ``agebody synthesize`` write, and 4D-Humans publishes. Nothing of a pickle is
run. People are found at random access, so that which one is where in a training is a matter of counting.
"""

from __future__ import annotations

import glob
import math
import os
import tarfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from agebody.age import AGE_CLASSES, UNKNOWN
from agebody.annotations.people import AnnotationError
from agebody.assets.asset import AssetError
from agebody.assets.unpickle import loads

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_PEOPLE = ".data.pyd"
_SCALE_UNIT = 200.0
"""Unit of boxes in shards, since HMR [pixels]."""
_POINTS, _BETAS = 44, 10
_LARGEST = 1 << 28
"""Most bytes of one image or list of people."""


class Person(NamedTuple):
    """One person in an image, as a shard has it; weights are 0 for what is not known."""

    box: Float[np.ndarray, " 4"]
    """Corners of the box around the person in the image [pixels]."""
    keypoints_2d: Float[np.ndarray, "44 3"]
    """x, y [pixels] and confidence, of "hmr2_44"."""
    keypoints_3d: Float[np.ndarray, "44 4"]
    """In camera coordinates [m], and confidence."""
    pose: Float[np.ndarray, "24 3"]
    """Axis-angle vectors, the root's first."""
    pose_weight: float
    betas: Float[np.ndarray, " 10"]
    betas_weight: float
    age_offset: float
    age_weight: float
    age_class: int
    """Index into ``AGE_CLASSES``, -1 if it is not known."""
    focal: Float[np.ndarray, " 2"]
    """Of the image's camera [pixels], NaN if it is not known."""
    principal_point: Float[np.ndarray, " 2"]
    """[pixels], NaN if it is not known."""


class Places(NamedTuple):
    """Where the images of shards and the lists of their people are, one row per image."""

    shard: np.ndarray
    """Index of the file."""
    parts: np.ndarray
    """(N, 4) first byte and size of the image, and of the people."""
    extras: list[dict[str, tuple[int, int]]]
    """First byte and size of the other files of the image, by suffix."""


def find_shards(shards: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    """Return the tar files of a folder, of a pattern, or of a list, sorted by name.

    Raises:
        AnnotationError: there are none.
    """
    several = [shards] if isinstance(shards, (str, PathLike)) else list(shards)
    found: list[Path] = []
    for one in several:
        path = Path(one)
        if path.is_dir():
            found += path.glob("*.tar")
        else:
            found += [path] if path.is_file() else map(Path, glob.glob(str(one)))
    if not found:
        raise AnnotationError(f"{os.fspath(several[0]) if several else shards}: no shards (*.tar) are there")
    return sorted(set(found))


def find_places(paths: Sequence[Path]) -> Places:
    """Return where everything is, from the headers of the tar files alone.

    Raises:
        AnnotationError: a file is no tar file, is cut short, or has people without their image.
        OSError: it cannot be read.
    """
    shard, parts, extras = [], [], []
    for i, path in enumerate(paths):
        groups: dict[str, dict[str, tuple[int, int]]] = {}
        length = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as tar:
                for entry in tar:
                    folder, name = os.path.split(entry.name)
                    stem, dot, suffix = name.partition(".")
                    if not entry.isreg() or not stem:
                        continue
                    if entry.offset_data + entry.size > length:
                        raise AnnotationError(f"{path}: the shard is cut short at {entry.name}")
                    its = groups.setdefault(f"{folder}/{stem}", {})
                    its[(dot + suffix).lower()] = entry.offset_data, entry.size
        except tarfile.TarError as error:
            raise AnnotationError(f"{path}: not an uncompressed tar file, or damaged: {error}") from None
        for key, its in groups.items():
            image = next((its[suffix] for suffix in IMAGE_SUFFIXES if suffix in its), None)
            if _PEOPLE not in its:
                continue
            if image is None:
                raise AnnotationError(
                    f"{path}: {key.lstrip('/')} has people but no image; expected {IMAGE_SUFFIXES[0]}"
                )
            shard.append(i)
            parts.append((*image, *its[_PEOPLE]))
            extras.append({k: v for k, v in its.items() if k not in (*IMAGE_SUFFIXES, _PEOPLE)})
        if not groups:
            raise AnnotationError(f"{path}: the shard is empty")
    if not parts:
        raise AnnotationError(f"{paths[0]}: no image has people ({_PEOPLE}) beside it")
    return Places(np.array(shard, np.int32), np.array(parts, np.int64), extras)


def read_bytes(path: Path, place: tuple[int, int]) -> bytes:
    """Return a part of a file."""
    first, size = place
    if size > _LARGEST:
        raise AnnotationError(f"{path}: a part of {size} bytes; expected at most {_LARGEST}")
    with path.open("rb") as file:
        file.seek(first)
        found = file.read(size)
    if len(found) != size:
        raise AnnotationError(f"{path}: the shard is cut short")
    return found


def read_people(path: Path, place: tuple[int, int]) -> list[Person]:
    """Return the people of one image.

    Raises:
        AnnotationError: something else is there, or a number that is missing or not finite.
    """
    try:
        found = loads(read_bytes(path, place))
    except AssetError as error:
        raise AnnotationError(f"{path}: the list of people at byte {place[0]}: {error}") from None
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, dict) for one in found):
        raise AnnotationError(f"{path}: expected a list of people at byte {place[0]}")
    return [_read_person(_Fields(path, place[0], one)) for one in found]


class _Fields:
    """The numbers of one person, checked."""

    def __init__(self, path: Path, byte: int, fields: dict[str, Any]) -> None:
        self.path, self.byte, self.fields = path, byte, fields

    def numbers(self, name: str, *shape: int, default: float | None = None) -> np.ndarray:
        if name not in self.fields:
            if default is None:
                self.fail(name, "is missing")
            return np.full(shape, default, np.float32)
        try:
            found = np.array(self.fields[name], np.float32)
        except (TypeError, ValueError):
            self.fail(name, "is not numbers")
        if found.size != math.prod(shape):
            self.fail(name, f"expected shape {shape}, got {found.shape}")
        return found.reshape(shape)

    def either(self, name: str, *counts: int) -> np.ndarray:
        """Return numbers of which there may be several counts."""
        given = np.size(self.fields.get(name, ()))  # pyright: ignore[reportArgumentType]
        return self.numbers(name, given if given in counts else counts[-1])

    def fail(self, name: str, problem: str) -> NoReturn:
        raise AnnotationError(f"{self.path}: a person at byte {self.byte}: {name}: {problem}")


def _read_person(fields: _Fields) -> Person:
    center = fields.numbers("center", 2)
    size = np.broadcast_to(fields.either("scale", 1, 2), (2,)) * np.float32(_SCALE_UNIT)
    betas = fields.either("betas", _BETAS, _BETAS + 1)
    known, aged = float(fields.numbers("has_betas")), betas.shape[0] > _BETAS
    kind = float(fields.numbers("age_class", default=UNKNOWN))
    if kind != int(kind) or not UNKNOWN <= kind < len(AGE_CLASSES):
        fields.fail("age_class", f"expected {UNKNOWN} to {len(AGE_CLASSES) - 1}, got {kind:g}")
    person = Person(
        np.concatenate((center - size / 2, center + size / 2)),
        fields.numbers("keypoints_2d", _POINTS, 3),
        fields.numbers("keypoints_3d", _POINTS, 4),
        fields.numbers("body_pose", 24, 3),
        float(fields.numbers("has_body_pose")),
        betas[:_BETAS],
        known,
        float(betas[_BETAS]) if aged else 0.0,
        float(fields.numbers("has_age", default=known if aged else 0.0)),
        int(kind),
        fields.numbers("focal", 2, default=math.nan),
        fields.numbers("principal_point", 2, default=math.nan),
    )
    if not np.isfinite(person.box).all() or not (size > 0).all():
        fields.fail("center, scale", "expected a box of finite numbers and a size above 0")
    return person
