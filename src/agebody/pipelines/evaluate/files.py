"""Files of predictions and truths: one npz of plain arrays each, one row a person.

| key | shape | |
|---|---|---|
| `ids` | (N,) | who it is: integers or strings, each once in a file |
| `image_ids` | (N,) | in which image: integers or strings |
| `joints` | (N, J, 3) | [m] |
| `joint_weights` | (N, J) | of the truth: joints of weight 0 do not count |
| `layout` | () | what the joints are: a name of `LAYOUTS` |
| `vertices` | (N, V, 3) | [m] |
| `keypoints` | (N, K, 2 or 3) | [pixels]; the third number of the truth says whether it is visible (not 0) |
| `keypoint_layout` | () | what the keypoints are: a name of `LAYOUTS`, or `crowdpose14` |
| `depth` | (N,) | [m] |
| `depth_layers` | (N,) | of the truth: integers, smaller is nearer, -1 unknown |
| `scores` | (N,) | how sure a prediction is |
| `areas` | (N,) | of the truth [pixels²] |
| `boxes` | (N, 4) | of the truth: x, y, width, height [pixels] |
| `crowd` | (N,) | of the truth: true for regions of several people |
| `age_class` | (N,) | of the truth: names (adult, teen, kid, baby) or indices of `AGE_CLASSES`, -1 unknown |
| `age_offset` | (N,) | of the truth, instead: 0 adult, 1 infant; NaN unknown |
| `years` | (N,) | of the truth, instead: age [years], 0 to 150; NaN unknown |

Other keys are left alone.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from agebody.age import AGE_CLASSES, AgeCurve, age_class
from agebody.annotations.people import fail
from agebody.assets.mannequin import mannequin
from agebody.keypoints import LAYOUTS
from agebody.metrics.similarity import CROWDPOSE14

UNKNOWN = -1
"""Age class or depth layer of a person of whom it is not known."""

OTHER_LAYOUTS = {"crowdpose14": CROWDPOSE14}


class _Key(NamedTuple):
    tail: tuple[int | None, ...] = ()
    """Shape after the people; None is any size."""
    kind: str = "number"
    """number, integer, flag, id, label or name."""
    gaps: bool = False
    """Whether NaN may stand in it."""
    least: float = -np.inf
    most: float = np.inf


_KEYS = {
    "ids": _Key(kind="id"),
    "image_ids": _Key(kind="id"),
    "joints": _Key((None, 3)),
    "joint_weights": _Key((None,), least=0),
    "layout": _Key(kind="name"),
    "vertices": _Key((None, 3)),
    "keypoints": _Key((None, None)),
    "keypoint_layout": _Key(kind="name"),
    "depth": _Key(),
    "depth_layers": _Key(kind="integer", least=UNKNOWN),
    "scores": _Key(),
    "areas": _Key(least=0),
    "boxes": _Key((4,)),
    "crowd": _Key(kind="flag"),
    "age_class": _Key(kind="label"),
    "age_offset": _Key(gaps=True),
    "years": _Key(gaps=True, least=0, most=150),
}
_KINDS = {"number": "fiu", "integer": "iu", "flag": "b", "id": "iuUS", "label": "iuUS", "name": "US"}


@dataclass(frozen=True, eq=False)
class People:
    """The people of a file, one row each; what the file does not say is None."""

    path: Path
    count: int
    ids: Shaped[np.ndarray, " N"] | None = None
    image_ids: Shaped[np.ndarray, " N"] | None = None
    joints: Float[np.ndarray, "N J 3"] | None = None
    joint_weights: Float[np.ndarray, "N J"] | None = None
    layout: str | None = None
    vertices: Float[np.ndarray, "N V 3"] | None = None
    keypoints: Float[np.ndarray, "N K 2"] | None = None
    visible: Bool[np.ndarray, "N K"] | None = None
    keypoint_layout: str | None = None
    depth: Float[np.ndarray, " N"] | None = None
    depth_layers: Int[np.ndarray, " N"] | None = None
    scores: Float[np.ndarray, " N"] | None = None
    areas: Float[np.ndarray, " N"] | None = None
    boxes: Float[np.ndarray, "N 4"] | None = None
    crowd: Bool[np.ndarray, " N"] | None = None
    age_classes: Int[np.ndarray, " N"] | None = None

    def has(self, *names: str) -> bool:
        """Whether the file says all of these."""
        return all(getattr(self, name) is not None for name in names)

    def get(self, name: str, why: str = "") -> Any:
        """What the file says of this.

        Raises:
            AnnotationError: nothing; the message says why it is needed.
        """
        found = getattr(self, name)
        if found is None:
            fail(self.path, f"{name}: missing{'; ' if why else ''}{why}")
        return found

    def name_of(self, row: int) -> str:
        """How an error names a person."""
        return f"row {row}" if self.ids is None else f"id {self.ids[row]}"


def read_people(path: str | Path) -> People:
    """Reads and checks an npz of predictions or truths. Nothing in the file is run.

    Raises:
        AnnotationError: it is no npz of plain arrays, or a key has the wrong type, shape or numbers.
        OSError: the file cannot be read.
    """
    path = Path(path)
    arrays = _load(path)
    lengths = {name: len(array) for name, array in arrays.items() if _KEYS[name].kind != "name"}
    if not lengths:
        fail(path, f"no key is known; expected some of {', '.join(_KEYS)}")
    first, count = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != count:
            fail(path, f"{name}: expected {count} people, as in {first}, got {length}")
    if count == 0:
        fail(path, "there is nobody in it")
    if "ids" in arrays:
        _refuse_duplicates(path, arrays["ids"])
    ages = [name for name in ("age_class", "age_offset", "years") if name in arrays]
    if len(ages) > 1:
        fail(path, f"{ages[0]} and {ages[1]} both give ages; expected one of them")
    people: dict[str, Any] = {name: array for name, array in arrays.items() if name not in ages}
    if ages:
        people["age_classes"] = _age_classes(path, ages[0], arrays[ages[0]])
    for name in ("layout", "keypoint_layout"):
        if name in people:
            people[name] = _layout(path, name, str(people[name]))
    if "keypoints" in people:
        people["keypoints"], people["visible"] = _split_keypoints(path, people["keypoints"])
    if {"joints", "joint_weights"} <= people.keys():
        shapes = people["joints"].shape[:2], people["joint_weights"].shape
        if shapes[0] != shapes[1]:
            fail(path, f"joint_weights: expected shape {shapes[0]}, got {shapes[1]}")
    result = People(path, count, **people)
    _refuse_gaps(result)
    return result


def _load(path: Path) -> dict[str, np.ndarray]:
    """The known keys, each of a kind and shape as described."""
    with path.open("rb") as stream:
        try:
            file = np.load(stream, allow_pickle=False)
        except (ValueError, zipfile.BadZipFile, EOFError):
            file = None
        if not isinstance(file, np.lib.npyio.NpzFile):
            fail(path, "no npz file; write one with numpy.savez(path, ids=..., joints=...)")
        known = [name for name in _KEYS if name in file.files]
        return {name: _expect(path, name, _KEYS[name], _read(path, file, name)) for name in known}


_DAMAGES = (
    ValueError, KeyError, EOFError, MemoryError, RecursionError, RuntimeError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile and numpy raise at members that are broken, encrypted, or no arrays."""


def _read(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    damaged = f"{name}: cannot be read; the file is damaged, or was not written by numpy.savez"
    try:
        shape, dtype, size = _header(file, f"{name}.npy")
    except _DAMAGES:
        fail(path, damaged)
    if dtype.hasobject:
        fail(path, f"{name}: Python objects are not loaded; save a plain array")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != size:  # before memory is taken for it
        fail(path, f"{name}: the file is damaged; shape {shape} takes {claimed} bytes, and it has {size}")
    try:
        return file[name]
    except _DAMAGES:
        fail(path, damaged)


def _header(file: np.lib.npyio.NpzFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type that an array's header says, and how many bytes follow it."""
    archive: Any = file.zip
    with archive.open(member) as stream:
        first = np.lib.format.read_magic(stream) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        return shape, dtype, archive.getinfo(member).file_size - stream.tell()


def _expect(path: Path, name: str, key: _Key, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in _KINDS[key.kind]:
        fail(path, f"{name}: expected {_article(key.kind)}, got {array.dtype}")
    shape = () if key.kind == "name" else (None, *key.tail)
    fits = array.ndim == len(shape) and all(
        n is None or n == m for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(["N", *("any" if n is None else str(n) for n in key.tail)]) if shape else ""
        fail(path, f"{name}: expected shape ({expected}), got {array.shape}")
    if 0 in array.shape[1:]:
        fail(path, f"{name}: expected at least one point a person, got shape {array.shape}")
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError:
            fail(path, f"{name}: expected strings in UTF-8")
    if key.kind == "number" and array.dtype.kind != "f":
        array = array.astype(np.float64)
    if key.kind in ("number", "integer"):
        _refuse_out_of_range(path, name, key, array)
    return array


def _refuse_out_of_range(path: Path, name: str, key: _Key, array: np.ndarray) -> None:
    """NaN is left to those who know where it may stand."""
    outside = (array < key.least) | (array > key.most)
    if outside.any():
        most = "" if np.isinf(key.most) else f" and at most {key.most:g}"
        fail(path, f"{name}: expected at least {key.least:g}{most}, got {array[outside][0]:g}")
    if key.gaps and np.isinf(array).any():
        fail(path, f"{name}: infinite")


def _article(kind: str) -> str:
    return {
        "number": "numbers", "integer": "integers", "flag": "booleans", "id": "integers or strings",
        "label": "integers or strings", "name": "a string",
    }[kind]  # fmt: skip


def _refuse_duplicates(path: Path, ids: np.ndarray) -> None:
    found, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        fail(path, f"ids: {found[counts > 1][0]} is there {counts[counts > 1][0]} times")


def _age_classes(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Indices of the age classes, whichever way the ages are given."""
    if name == "age_class":
        names = [kind.name for kind in AGE_CLASSES]
        if values.dtype.kind == "U":
            known = {kind: i for i, kind in enumerate(names)} | {"": UNKNOWN}
            for value in np.unique(values):
                if str(value) not in known:
                    fail(
                        path, f"age_class: expected {', '.join(names)} or an empty string, got {str(value)!r}"
                    )
            return np.array([known[str(value)] for value in values], dtype=np.int64)
        for value in np.unique(values):
            if not UNKNOWN <= value < len(names):
                fail(path, f"age_class: expected 0 to {len(names) - 1} or {UNKNOWN}, got {value}")
        return values.astype(np.int64)
    offsets = values.astype(np.float64)
    if name == "years":
        offsets = AgeCurve.from_asset(mannequin()).years_to_offset(offsets)
    classes = age_class(torch.from_numpy(np.nan_to_num(offsets))).numpy()
    return np.where(np.isnan(values), UNKNOWN, classes)


def _layout(path: Path, name: str, value: str) -> str:
    known = [*LAYOUTS, *(OTHER_LAYOUTS if name == "keypoint_layout" else ())]
    if value not in known:
        fail(path, f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def _split_keypoints(path: Path, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if keypoints.shape[-1] not in (2, 3):
        fail(path, f"keypoints: expected shape (N, K, 2) or (N, K, 3), got {keypoints.shape}")
    points = keypoints[..., :2]
    visible = np.ones(points.shape[:2], bool) if keypoints.shape[-1] == 2 else keypoints[..., 2] != 0
    return points, visible


def _refuse_gaps(people: People) -> None:
    """Every number is finite, save where it does not count."""
    for name in _KEYS:
        values = getattr(people, name, None)
        if values is None or isinstance(values, str) or values.dtype.kind != "f":
            continue
        finite = np.isfinite(values)
        counts = {"joints": people.joint_weights, "keypoints": people.visible}.get(name)
        if counts is not None:
            finite = finite | (counts == 0)[..., None]
        if not finite.all():
            row = int(np.flatnonzero(~finite.reshape(people.count, -1).all(1))[0])
            fail(people.path, f"{name}: NaN or infinite for {people.name_of(row)}")
