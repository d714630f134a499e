"""People in images, as files of keypoints describe them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float, Int

from agebody.age import AGE_CLASSES
from agebody.keypoints import LAYOUTS, KeypointLayout, get_layout

MAX_PIXELS = 1e6
"""No image is larger, and no keypoint or box farther out [pixels]: beyond it a file is wrong."""
UNKNOWN = -1
"""Age class of a person of whom it is not known."""

COCO18 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
"""OpenPose's COCO model: 17 keypoints of COCO and the neck."""

NAMES_BY_SIZE = {
    17: LAYOUTS["coco17"].names, 18: COCO18, 25: LAYOUTS["openpose25"].names, 44: LAYOUTS["hmr2_44"].names,
}  # fmt: skip
"""What keypoints without names are, by how many there are."""

_DETECTED = ("coco17", "openpose25")
"""Layouts of detectors, to which names of others are mapped; in those of bodies a "head" is a joint."""


class AnnotationError(ValueError):
    """A file of people is wrong: the message names the file, the entry and what was expected."""


class ImageEntry(NamedTuple):
    """An image that a file of keypoints names."""

    name: str
    """Its file, relative to the folder of the images."""
    id: int | str
    size: tuple[int, int] | None
    """Width and height [pixels]; None where the file does not say."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """People in images, one row each."""

    path: Path
    """Where they were read."""
    layout: KeypointLayout
    images: tuple[ImageEntry, ...]
    """All that the file names, with people or without."""
    image: Int[np.ndarray, " N"]
    """Index into ``images`` of each person."""
    ids: Int[np.ndarray, " N"]
    """Who it is, different for all."""
    keypoints: Float[np.ndarray, "N K 2"]
    """[pixels], finite; zero where the weight is."""
    weights: Float[np.ndarray, "N K"]
    """Confidences from 0 to 1."""
    boxes: Float[np.ndarray, "N 4"]
    """Corners x0, y0, x1, y1 [pixels]; NaN where the file has none."""
    age_offset: Float[np.ndarray, " N"]
    """NaN where the file does not say."""
    age_class: Int[np.ndarray, " N"]
    """Index into ``AGE_CLASSES``; -1 where the file does not say."""
    years: Float[np.ndarray, " N"]
    """NaN where the file does not say."""
    left_out: tuple[tuple[str, int], ...] = ()
    """People whom the file names and who are not here: why, and how many."""
    notes: tuple[str, ...] = ()
    """What a reader of the file should know."""

    def __len__(self) -> int:
        """How many people."""
        return len(self.ids)

    def select(self, rows: slice | Int[np.ndarray, " M"]) -> Annotations:
        """Some of the people; all of the images."""
        names = ("image", "ids", "keypoints", "weights", "boxes", "age_offset", "age_class", "years")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def fail(path: Path, message: str) -> NoReturn:
    """Raise an `AnnotationError` that names the file."""
    raise AnnotationError(f"{path}: {message}")


def is_file_name(name: str) -> bool:
    """Whether a file inside the folder of the images can have this name: a path that does not lead out."""
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts and "\0" not in name


def map_names(
    path: Path, names: Sequence[str], layout: str | KeypointLayout | None
) -> tuple[KeypointLayout, Int[np.ndarray, " K"], tuple[str, ...]]:
    """Which of a file's keypoints are the points of a layout.

    Names are compared without case and separators: "RShoulder", "right shoulder" and "shoulder_r" are one.
    Without a layout, it is that which has just these names, else that of COCO and OpenPose which has most.

    Returns:
        The layout; for each of its points, which of the file's it is, -1 for none; and those of the file's
        names that are left over.

    Raises:
        AnnotationError: fewer than four names are those of the layout, or two names are one.
        ValueError: no layout has that name.
    """
    plain = [plain_name(name) for name in names]
    twice = {name for name in plain if plain.count(name) > 1}
    if twice:
        fail(path, f"keypoints: {', '.join(sorted(twice))} named more than once")
    if layout is None:
        same = [found for found in LAYOUTS.values() if set(found.names) == set(plain)]
        likely = same or sorted(
            (LAYOUTS[name] for name in _DETECTED), key=lambda found: -len(set(found.names) & set(plain))
        )
        chosen = likely[0]
    else:
        chosen = get_layout(layout)
    index = np.array([plain.index(name) if name in plain else -1 for name in chosen.names])
    if (index >= 0).sum() < 4:
        fail(path, f"keypoints: expected names of {chosen.name}, got {', '.join(names) or 'none'}")
    over = tuple(name for name, its in zip(names, plain, strict=True) if its not in chosen.names)
    return chosen, index, over


def plain_name(name: str) -> str:
    """The library's name of a keypoint, however it is written."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    sides = {"l": "left", "r": "right"}
    words = [sides.get(word, word) for word in words]
    words.sort(key=lambda word: word not in ("left", "right"))  # stable: the side comes first
    plain = "_".join(words)
    return {"mid_hip": "pelvis", "midhip": "pelvis"}.get(plain, plain)


def gather(
    path: Path, points: Float[np.ndarray, "N L 3"], index: Int[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, "N K 2"], Float[np.ndarray, "N K"]]:
    """Keypoints and weights in the order of a layout, from (x, y, confidence or visibility).

    COCO's visibility is 0 (not labelled), 1 (labelled, hidden) or 2 (seen): what is labelled weighs 1. A file
    with other third numbers has confidences; more than 1, as some detectors give, counts as 1.

    Raises:
        AnnotationError: a third number is negative.
    """
    third = points[..., 2]
    if (third < 0).any():
        fail(path, f"keypoints: expected confidences of at least 0, got {third.min():g}")
    visibility = bool(np.isin(third, (0, 1, 2)).all())
    weights = (third > 0).astype(float) if visibility else np.minimum(third, 1)
    weights = np.where(index >= 0, weights[:, index], 0)
    return np.where((weights > 0)[..., None], points[:, index, :2], 0), weights


def age_class_index(value: object) -> int | None:
    """Index of an age class by its name or its index; None where there is no such class."""
    names = [kind.name for kind in AGE_CLASSES]
    if isinstance(value, str):
        return names.index(value.lower()) if value.lower() in names else None
    if isinstance(value, int) and not isinstance(value, bool) and UNKNOWN <= value < len(names):
        return value
    return None
