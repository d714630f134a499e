"""Labels of people in images: everything that is known of each person, as one record and one file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from agebody.age import UNKNOWN, age_class
from agebody.annotations.arrays import Key, read_arrays
from agebody.annotations.calibration import LENS
from agebody.annotations.coco import to_corners
from agebody.annotations.people import MAX_PIXELS, fail, is_file_name
from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.files import save_npz
from agebody.keypoints import LAYOUTS
from agebody.parameters import BodyParameters

TERM, FLAG = "term_", "flag_"
"""Prefixes of the costs and flags in files."""

ABOUT = {"body": Key(kind="name"), "joint_names": Key(kind="names"), "keypoint_layout": Key(kind="name")}
"""Fields that are the same for all people."""


def _row(shape: tuple[int | None, ...] = (), kind: str = "number", missing: Any = None) -> dict[str, Any]:
    """Describe a field with one row per person: its `Key`, and its value for files that lack it."""
    return {"key": Key(shape, kind), "missing": missing}


@dataclass(frozen=True, eq=False)
class Labels:
    """People in images with their bodies, one row per person: NumPy arrays, in camera coordinates.

    ``labels.parameters(body)`` are in the coordinates of a camera of ``focal`` and ``center``, with OpenCV's
    axes.
    """

    body: str
    """Name of the body."""
    joint_names: tuple[str, ...]
    keypoint_layout: str
    """Name of the layout of ``observed`` and ``keypoints``."""
    ids: Int[np.ndarray, " N"] = field(metadata=_row(kind="integer"))
    image_ids: Shaped[np.ndarray, " N"] = field(metadata=_row(kind="text"))
    """File name of the image."""
    image_sizes: Int[np.ndarray, "N 2"] = field(metadata=_row((2,), "integer"))
    """Width and height [pixels]."""
    global_orient: Float[np.ndarray, "N 3"] = field(metadata=_row((3,)))
    """Axis-angle vector [rad]."""
    body_pose: Float[np.ndarray, "N R 3"] = field(metadata=_row((None, 3)))
    """Axis-angle vectors of all joints except the root [rad]."""
    betas: Float[np.ndarray, "N S"] = field(metadata=_row((None,)))
    age_offset: Float[np.ndarray, " N"] = field(metadata=_row())
    transl: Float[np.ndarray, "N 3"] = field(metadata=_row((3,)))
    """[m]"""
    focal: Float[np.ndarray, "N 2"] = field(metadata=_row((2,)))
    """[pixels]"""
    center: Float[np.ndarray, "N 2"] = field(metadata=_row((2,)))
    """Principal point [pixels]."""
    distortion: Float[np.ndarray, "N 8"] = field(metadata=_row((LENS,), missing=np.zeros(LENS)))
    """Lens distortion in OpenCV's order; zeros for none."""
    observed: Float[np.ndarray, "N K 3"] = field(metadata=_row((None, 3)))
    """Keypoints that the body was fitted to: x, y [pixels] and weight."""
    keypoints: Float[np.ndarray, "N K 2"] = field(metadata=_row((None, 2)))
    """Keypoints of the body [pixels]."""
    joints: Float[np.ndarray, "N J 3"] = field(metadata=_row((None, 3)))
    """Joints of the body, in camera coordinates [m]."""
    depth: Float[np.ndarray, " N"] = field(metadata=_row())
    """z of the root joint [m]."""
    boxes: Float[np.ndarray, "N 4"] = field(metadata=_row((4,)))
    """Corners x0, y0, x1, y1 [pixels] of the annotated box, or of the box around the observed keypoints.
    Files hold x, y, width, height."""
    scores: Float[np.ndarray, " N"] = field(metadata=_row())
    """Mean weight of the observed keypoints."""
    reprojection: Float[np.ndarray, " N"] = field(metadata=_row())
    """Weighted mean distance between observed and fitted keypoints, NaN without any [pixels]."""
    start_reprojection: Float[np.ndarray, " N"] = field(metadata=_row())
    """The same before the fit [pixels]."""
    converged: Bool[np.ndarray, " N"] = field(metadata=_row(kind="flag"))
    iterations: Int[np.ndarray, " N"] = field(metadata=_row(kind="integer"))
    stop: Shaped[np.ndarray, " N"] = field(metadata=_row(kind="text"))
    """Why the fit ended."""
    cost: Float[np.ndarray, " N"] = field(metadata=_row())
    kept: Bool[np.ndarray, " N"] = field(metadata=_row(kind="flag"))
    """Whether the person has no flag of ``RULES``."""
    age_known: Bool[np.ndarray, " N"] = field(metadata=_row(kind="flag", missing=True))
    """Whether the age was stated, in years, as a class or as an offset; true for a body of one age."""
    age_class: Int[np.ndarray, " N"] = field(metadata=_row(kind="integer", missing=UNKNOWN))
    """Index into ``AGE_CLASSES`` of the class that was stated, or that of the stated age; -1 if none was."""
    age_offset_sd: Float[np.ndarray, " N"] = field(metadata=_row(missing=math.nan))
    """Standard error of the age offset, as `StandardErrors`."""
    stature: Float[np.ndarray, " N"] = field(metadata=_row(missing=math.nan))
    """Height of the body in its rest pose [m]."""
    stature_sd: Float[np.ndarray, " N"] = field(metadata=_row(missing=math.nan))
    """Its standard error [m]."""
    depth_sd: Float[np.ndarray, " N"] = field(metadata=_row(missing=math.nan))
    """Standard error of the depth [m]."""
    track: Int[np.ndarray, " N"] = field(metadata=_row(kind="integer", missing=-1))
    """Number of the person in the frames of a video, -1 where unknown."""
    terms: dict[str, Float[np.ndarray, " N"]] = field(default_factory=dict)
    """Contribution of each term of the fit to the cost."""
    flags: dict[str, Bool[np.ndarray, " N"]] = field(default_factory=dict)
    """Whether each rule of ``RULES``, or of ``NOTES``, applies."""

    def __len__(self) -> int:
        """Return the number of people."""
        return len(self.ids)

    def parameters(self, body: BodyModel) -> BodyParameters:
        """Return the people's parameters as tensors of the type and device of a layer."""
        parts = (getattr(self, name) for name in BodyParameters._fields)
        return BodyParameters(
            *(torch.from_numpy(np.array(part)).to(body.device, body.dtype) for part in parts)
        )

    def classes(self) -> Int[np.ndarray, " N"]:
        """Return the index of each person's age class: the stated one, or else that of the age offset."""
        return np.where(self.age_class != UNKNOWN, self.age_class, age_class(np.asarray(self.age_offset)))

    def camera(self) -> Camera:
        """Return the camera of each person's image."""
        focal, center = torch.from_numpy(self.focal), torch.from_numpy(self.center)
        lens = torch.from_numpy(self.distortion).to(focal) if self.distortion.any() else None
        return Camera(focal, center, distortion=lens)

    def select(self, rows: slice | Int[np.ndarray, " M"] | Bool[np.ndarray, " N"]) -> Labels:
        """Return some of the people."""
        return _with_rows(self, {name: values[rows] for name, values in _arrays(self).items()})

    def by_image(self) -> dict[str, Int[np.ndarray, " M"]]:
        """Return the rows of each image, in the order in which the images first occur."""
        names, first, image = np.unique(self.image_ids, return_index=True, return_inverse=True)
        rows = np.split(np.argsort(image, kind="stable"), np.cumsum(np.bincount(image))[:-1])
        return {str(names[i]): rows[i] for i in np.argsort(first)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a file, one row per person; boxes are x, y, width, height."""
        corners = self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]
        return {**_arrays(self), "boxes": np.concatenate(corners, 1)}

    @classmethod
    def from_arrays(cls, path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Labels:
        """Return labels from the arrays of a file, and from the fields ``ABOUT`` all people.

        Raises:
            AnnotationError: something is missing, or wrong: names, sizes, or numbers that are not finite.
        """
        count = len(arrays.get("ids", ()))
        arrays = {
            **{name: np.full((count, *np.shape(value)), value) for name, value in LATER.items()},
            **arrays,
        }
        missing = [name for name in (*ABOUT, *ROWS) if name not in {**about, **arrays}]
        if missing:
            what = "not a file of labels" if len(missing) > 3 else "the file of labels is not complete"
            fail(path, f"{what}; it has no {', '.join(missing[:3])}")
        if str(about["keypoint_layout"]) not in LAYOUTS:
            fail(
                path, f"keypoint_layout: expected one of {', '.join(LAYOUTS)}, got {about['keypoint_layout']}"
            )
        rows: dict[str, Any] = {name: arrays[name] for name in ROWS}
        blank = cls(
            str(about["body"]), tuple(map(str, about["joint_names"])), str(about["keypoint_layout"]), **rows
        )
        found = _with_rows(blank, {**arrays, "boxes": to_corners(arrays["boxes"])})
        _check(path, found)
        return found

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write an ``.npz`` of plain arrays, whole or not at all; `load_labels` reads it.

        It is also a file of predictions for ``agebody evaluate``.

        Raises:
            FileExistsError: the file exists and ``overwrite`` is false.
            OSError: the file cannot be written.
        """
        about: dict[str, Any] = {name: getattr(self, name) for name in ABOUT}
        if self.joint_names == SMPL_JOINT_NAMES:
            about["layout"] = "smpl24"
        save_npz({**self.arrays(), **about}, path, overwrite=overwrite)


ROWS = {each.name: each.metadata["key"] for each in fields(Labels) if each.metadata}
"""Fields with one row per person."""

LATER = {
    each.name: each.metadata["missing"] for each in fields(Labels) if each.metadata.get("missing") is not None
}
"""Fields that older files lack, and their values there."""


def find_key(name: str) -> Key | None:
    """Return the key of an array in files of labels; None of others, which are ignored."""
    return Key() if name.startswith(TERM) else Key(kind="flag") if name.startswith(FLAG) else ROWS.get(name)


def _check(path: Path, labels: Labels) -> None:
    """Refuse arrays that do not belong together, and images that a folder cannot have."""
    joints, points = len(labels.joint_names), len(LAYOUTS[labels.keypoint_layout].names)
    sizes = {"body_pose": joints - 1, "joints": joints, "observed": points, "keypoints": points}
    for name, size in sizes.items():
        if getattr(labels, name).shape[1] != size:
            fail(path, f"{name}: expected {size} per person, got {getattr(labels, name).shape[1]}")
    for name in (*BodyParameters._fields, "focal", "center", "distortion", "observed", "boxes"):
        if not np.isfinite(getattr(labels, name)).all():
            fail(path, f"{name}: expected finite numbers")
    if (labels.focal <= 0).any() or not ((labels.image_sizes > 0) & (labels.image_sizes <= MAX_PIXELS)).all():
        fail(path, f"focal, image_sizes: expected pixels above 0, sizes up to {MAX_PIXELS:.0f}")
    names, first, image = np.unique(labels.image_ids, return_index=True, return_inverse=True)
    for name in names.tolist():
        if not is_file_name(name):
            fail(path, f"image_ids: expected paths inside the folder of the images, got {name!r}")
    other = (labels.image_sizes != labels.image_sizes[first][image]).any(1)
    if other.any():
        row = int(np.flatnonzero(other)[0])
        name, one = str(labels.image_ids[row]), labels.image_sizes[first][image][row]
        fail(
            path, f"image_sizes: {name} has two sizes, {one.tolist()} and {labels.image_sizes[row].tolist()}"
        )


def _arrays(labels: Labels) -> dict[str, np.ndarray]:
    """Return all arrays of labels, with the names that costs and flags have in files."""
    found = {name: getattr(labels, name) for name in ROWS}
    found |= {TERM + name: values for name, values in labels.terms.items()}
    return found | {FLAG + name: values for name, values in labels.flags.items()}


def _with_rows(labels: Labels, rows: Mapping[str, np.ndarray]) -> Labels:
    """Return the labels with other arrays; the inverse of `_arrays`."""
    terms, flags = (
        {name.removeprefix(start): values for name, values in rows.items() if name.startswith(start)}
        for start in (TERM, FLAG)
    )
    return replace(labels, **{name: rows[name] for name in ROWS}, terms=terms, flags=flags)


def concatenate_labels(parts: list[Labels]) -> Labels:
    """Return labels of one body and layout, one after the other; terms that a part lacks are 0 there."""
    if not parts:
        raise ValueError("parts: expected at least one")
    first = parts[0]
    for part in parts[1:]:
        for name in ABOUT:
            if getattr(part, name) != getattr(first, name):
                got = f"{getattr(first, name)} and {getattr(part, name)}"
                raise ValueError(f"parts: expected one {name}, got {got}")
    terms = dict.fromkeys(name for part in parts for name in part.terms)
    parts = [
        replace(part, terms={name: part.terms.get(name, np.zeros(len(part))) for name in terms})
        for part in parts
    ]
    rows = [_arrays(part) for part in parts]
    return _with_rows(first, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def load_labels(path: str | PathLike[str]) -> Labels:
    """Read a file that `Labels.save` wrote. Nothing in it is unpickled.

    Raises:
        AnnotationError: the file is of another kind, incomplete or damaged.
        OSError: it cannot be read.
    """

    def refuse(names: Collection[str]) -> str:
        about = ", ".join(ABOUT)
        return "" if {*ABOUT} & {*names} else f"not a file of labels; it has no {about}"

    prefixes = {TERM: Key(), FLAG: Key(kind="flag")}
    arrays = read_arrays(Path(path), {**ABOUT, **ROWS}, prefixes, refuse=refuse)
    about = {name: arrays.pop(name) for name in ABOUT if name in arrays}
    return Labels.from_arrays(Path(path), arrays, about)
