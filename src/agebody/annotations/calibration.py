"""Calibrated cameras in files: Pose2Sim's and Anipose's TOML, Qualisys's XML, OpenCV's YAML."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import Float

from agebody.annotations.people import fail, is_file_name, short, shorten
from agebody.cameras import Camera, convert_pixels
from agebody.rotations import axis_angle_to_matrix

FORMATS = "a TOML of Pose2Sim or Anipose, Qualisys's XML (.qca.txt), or a YAML of OpenCV"
SUBPIXELS = 64.0
"""Units of a pixel in which Qualisys states focal lengths and principal points."""
LENS = 8
"""Coefficients of a lens, k1 to k6 with p1 and p2, in OpenCV's order."""
LEAST_FOCAL = 10.0
"""Focal lengths below this are in another unit, such as widths of the image [pixels]."""
MAX_BYTES = 2**26
"""Files beyond this are of another kind."""
MAX_CAMERAS = 1000


class Cameras(NamedTuple):
    """Cameras that see the same people at the same time."""

    names: tuple[str, ...]
    camera: Camera
    """Batch of all cameras (V), from the world of the calibration [m], in float64."""
    sizes: tuple[tuple[int, int] | None, ...]
    """Width and height of the images that were calibrated [pixels]; None where the file does not say."""


class _Stated(NamedTuple):
    """One camera, as a file states it: in OpenCV's terms."""

    name: Any
    size: Any
    matrix: Any
    distortion: Any
    rotation: Any
    """Matrix, or axis times angle."""
    translation: Any


def read_cameras(path: str | Path) -> Cameras:
    """Read calibrated cameras.

    Formats: Pose2Sim's and Anipose's TOML; Qualisys's calibrations (XML, also as ``.qca.txt``), whose
    cameras of markers are left out; EasyMocap's folder of ``intri.yml`` and ``extri.yml``; the result of
    OpenCV's multi-view calibration (YAML), whose cameras are numbered from 0 where it does not name them.
    All but Qualisys's, which is in millimetres, are taken for metres. Principal points move by half a
    pixel, from OpenCV's middle of the first pixel to its corner.

    Raises:
        AnnotationError: the file is of another kind, or something in it is missing or wrong; lenses other
            than OpenCV's with up to eight coefficients, such as fisheyes, are refused.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        stated = list(_read_easymocap(path))
    else:
        if path.stat().st_size > MAX_BYTES:
            fail(path, f"not a calibration; expected {FORMATS}")
        text = path.read_bytes()
        kind = next((read for begins, read in _KINDS if begins.match(text)), _read_toml)
        stated = list(kind(path, text))
    if not 0 < len(stated) <= MAX_CAMERAS:
        fail(path, f"expected 1 to {MAX_CAMERAS} cameras, got {len(stated)}; agebody reads {FORMATS}")
    names = [one.name for one in stated]
    for name in names:
        legal = isinstance(name, str) and name.isprintable() and is_file_name(name)
        if not legal or len(Path(name).parts) > 1:
            fail(path, f"name: expected the name of a camera, for the names of files, got {short(name)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(path, f"expected different names, got {shorten(twice)} more than once")
    parts = [_read_camera(path, one) for one in stated]
    camera = Camera(*(torch.stack(part) for part in zip(*parts, strict=True)))
    return Cameras(tuple(names), camera, tuple(_size(path, one) for one in stated))


def _read_camera(path: Path, one: _Stated) -> tuple[torch.Tensor, ...]:
    """Return focal lengths, principal point, rotation, translation and distortion of one camera."""

    def numbers(what: str, value: Any, *counts: int) -> Float[torch.Tensor, " n"]:
        try:
            found = np.array(value, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, OverflowError):
            found = np.full(1, math.nan)
        if len(found) not in counts or not (np.isfinite(found) & (np.abs(found) < 1e9)).all():
            count = " or ".join(map(str, counts))
            fail(path, f"camera {one.name}: {what}: expected {count} finite numbers, got {short(value)}")
        return torch.from_numpy(found)

    lens = numbers("distortion", one.distortion, 0, *range(2, LENS + 1), 12, 14)
    if lens[LENS:].any():
        fail(path, f"camera {one.name}: distortion: expected no thin prism and no tilt, zeros after k6")
    lens = torch.nn.functional.pad(lens[:LENS], (0, max(LENS - len(lens), 0)))
    turn = numbers("rotation", one.rotation, 3, 9)
    if len(turn) == 3 and turn.norm() > 2.01 * math.pi:
        got = short(one.rotation)
        fail(path, f"camera {one.name}: rotation: expected an axis times an angle in radians, got {got}")
    turn = axis_angle_to_matrix(turn) if len(turn) == 3 else turn.view(3, 3)
    place = numbers("translation", one.translation, 3)
    pose = torch.cat((turn, place[:, None]), 1)
    matrix = numbers("matrix", one.matrix, 9).view(3, 3)
    try:
        camera = Camera.from_matrix(matrix, pose)
    except ValueError as error:
        fail(path, f"camera {one.name}: {error}")
    if (camera.focal < LEAST_FOCAL).any():
        got = " and ".join(f"{side:g}" for side in camera.focal.tolist())
        fail(path, f"camera {one.name}: matrix: expected focal lengths in pixels, got {got}")
    return camera.focal, convert_pixels(camera.center, "opencv", "agebody"), turn, place, lens


def _size(path: Path, one: _Stated) -> tuple[int, int] | None:
    if one.size is None:
        return None
    try:
        width, height = (round(float(side)) for side in one.size)
    except (TypeError, ValueError, OverflowError):
        width = height = 0
    if not (0 < width < 1e6 and 0 < height < 1e6):
        fail(path, f"camera {one.name}: size: expected width and height [pixels], got {short(one.size)}")
    return width, height


# --- Pose2Sim, Anipose

_PARTS = re.compile(rb"[^.]\.")
MAX_PARTS = 16
"""Most dots of a key, for which tomllib takes their number squared in time and memory."""


def _read_toml(path: Path, text: bytes) -> Iterator[_Stated]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        if any(len(_PARTS.findall(piece)) > MAX_PARTS for piece in re.split(rb"[,=\[\]{}\n]", text)):
            raise ValueError
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ValueError):
        fail(path, f"not a calibration; expected {FORMATS}")
    found = {key: one for key, one in document.items() if isinstance(one, dict) and "matrix" in one}
    if not found:
        fail(path, f"no cameras: no table with a matrix; expected {FORMATS}")
    for key, one in found.items():
        missing = [part for part in ("size", "rotation", "translation") if part not in one]
        if missing:
            fail(path, f"[{key}]: expected {', '.join(missing)}, as Pose2Sim writes them")
        if one.get("fisheye"):
            fail(path, f"[{key}]: fisheye lenses are not read; calibrate with OpenCV's usual model")
        yield _Stated(
            *(one.get("name", key), one["size"], one["matrix"], one.get("distortions", [])),
            *(one["rotation"], one["translation"]),
        )


# --- Qualisys


def _read_qualisys(path: Path, text: bytes) -> Iterator[_Stated]:
    """Read axes of cameras (x right, y up, z backward) in rows of the rotation, and places in millimetres."""
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        fail(path, "expected no document type in a calibration")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError):
        fail(path, "not a well-formed XML file")
    if root.tag != "calibration":
        fail(path, f"not a calibration of Qualisys, but <{root.tag[:40]}>; expected {FORMATS}")
    axes = np.diag([1.0, -1.0, -1.0])
    for one in root.iter("camera"):
        name, model = one.get("serial"), one.get("model", "none").lower()
        if one.get("active") == "0" or not ("video" in model or model == "none"):
            continue

        def get(
            child: str, *keys: str, one: Any = one, name: Any = name, default: str = ""
        ) -> Float[np.ndarray, " n"]:
            element = one.find(child)
            if element is None:
                fail(path, f"camera {name}: expected <{child}>")
            values = [element.get(key, default) for key in keys]
            try:
                return np.array(values, dtype=np.float64)
            except ValueError:
                fail(path, f"camera {name}: {child}: expected numbers {', '.join(keys)}, got {short(values)}")

        left, top, right, bottom = get("fov_video", "left", "top", "right", "bottom")
        lens = get("intrinsic", "focalLengthU", "focalLengthV", "centerPointU", "centerPointV") / SUBPIXELS
        skew = get("intrinsic", "skew", default="0")[0]
        turn = get("transform", *(f"r{i}{j}" for i in (1, 2, 3) for j in (1, 2, 3))).reshape(3, 3)
        place = get("transform", "x", "y", "z") / 1000
        turn = axes @ turn
        radial = [f"radialDistortion{i}" for i in (1, 2, 3)]
        k1, k2, k3 = get("intrinsic", *radial, default="0")
        p1, p2 = get("intrinsic", "tangentalDistortion1", "tangentalDistortion2", default="0")
        matrix = [[lens[0], skew, lens[2] - left], [0, lens[1], lens[3] - top], [0, 0, 1]]
        yield _Stated(
            *(name, (right - left + 1, bottom - top + 1), matrix, [k1, k2, p1, p2, k3]),
            *(turn, -turn @ place),
        )


# --- OpenCV


def _read_opencv(path: Path, content: bytes) -> Iterator[_Stated]:
    """Read the result of OpenCV's multi-view calibration."""
    storage = _Storage(path, content)
    matrices, turns, places = (storage.matrix(key) for key in ("Ks", "Rs", "Ts"))
    sizes, models = (storage.matrix(key, optional=True) for key in ("image_sizes", "models"))
    sizes = sizes[..., 0]
    if (models != 0).any():
        fail(path, "models: fisheye lenses are not read; calibrate with OpenCV's usual model")
    count, lenses = len(matrices), storage.matrix("distortions")
    names = storage.names("cam_ids") or [str(i) for i in range(count)]
    parts = (names, turns, places, *([sizes] if sizes.size else []))
    if lenses.size % count or any(len(part) != count for part in parts):
        got = ", ".join(str(len(part)) for part in parts)
        fail(path, f"expected cam_ids, Rs, Ts, image_sizes and distortions of {count} cameras, got {got}")
    for i, lens in enumerate(lenses.reshape(count, -1)):
        yield _Stated(names[i], sizes[i] if sizes.size else None, matrices[i], lens, turns[i], places[i])


def _read_easymocap(folder: Path) -> Iterator[_Stated]:
    """Read the two files of EasyMocap, one of intrinsics and one of extrinsics."""
    inner, outer = folder / "intri.yml", folder / "extri.yml"
    for file in (inner, outer):
        if not file.is_file():
            fail(folder, f"expected intri.yml and extri.yml, of EasyMocap, in a folder; no {file.name}")
    lens, pose = (_Storage(file, file.read_bytes()) for file in (inner, outer))
    for name in lens.names("names"):
        width, height = (lens.matrix(f"{side}_{name}", optional=True) for side in "WH")
        size = np.concatenate((width, height))[:, 0] if width.any() and height.any() else None
        turn = pose.matrix(f"Rot_{name}", optional=True)
        turn = turn if turn.size else pose.matrix(f"R_{name}")
        coefficients = lens.matrix(f"dist_{name}", optional=True)
        yield _Stated(name, size, lens.matrix(f"K_{name}"), coefficients, turn, pose.matrix(f"T_{name}"))


class _Storage:
    """A YAML of OpenCV's ``FileStorage``: names on the left with matrices, lists or numbers.

    OpenCV's own reader is not safe with damaged files: it crashes.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        text = content.decode("utf-8", "replace")
        keys = [*re.finditer(r"^([^\s:%#-][^:\n]*):", text, re.MULTILINE)]
        ends = [key.start() for key in keys[1:]] + [len(text)]
        self.blocks = {key[1]: text[key.end() : end] for key, end in zip(keys, ends, strict=False)}

    def matrix(self, key: str, *, optional: bool = False) -> Float[np.ndarray, "*shape"]:
        """Return a matrix, or a number; empty where there is none and it is optional."""
        block = self.blocks.get(key)
        if block is None and optional:
            return np.zeros((0, 1))
        if block is None:
            fail(self.path, f"{key}: missing; agebody reads {FORMATS}")
        sides = (re.search(rf"\b{side}:\s*\[?([^\]\n]*)", block) for side in ("rows", "cols", "sizes"))
        data = re.search(r"\bdata:\s*\[([^\]]*)", block)
        try:
            shape = [int(one) for side in sides if side for one in side[1].split(",")]
            numbers = block if data is None else data[1]
            return np.array([float(one) for one in numbers.split(",")]).reshape(*shape, -1)
        except (ValueError, OverflowError):
            fail(self.path, f"{key}: expected a matrix of OpenCV's, got {short(' '.join(block.split()))}")

    def names(self, key: str) -> list[str]:
        """Return a list of names, which may be numbers."""
        block = self.blocks.get(key, "").strip().strip("[]")
        parts = re.split(r"\n\s*-|," if block.startswith("-") else r",", block.removeprefix("-"))
        return [name for part in parts if (name := part.strip().strip('"'))]


_KINDS: tuple[tuple[re.Pattern[bytes], Callable[[Path, bytes], Iterator[_Stated]]], ...] = (
    (re.compile(rb"%YAML"), _read_opencv),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<"), _read_qualisys),
)
"""Beginnings of files, and their readers; other files are TOML."""
