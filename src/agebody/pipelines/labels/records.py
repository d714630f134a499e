"""Labels of people in images: what is known of each, as one file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from agebody.annotations.people import fail
from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.files import save_npz
from agebody.keypoints import LAYOUTS

TERM, FLAG = "term_", "flag_"
"""What names of the costs and flags begin with in a file."""

_SHAPES = {
    "ids": (), "image_ids": (), "image_sizes": (2,), "global_orient": (3,), "body_pose": (None, 3),
    "betas": (None,), "age_offset": (), "transl": (3,), "focal": (2,), "center": (2,), "observed": (None, 3),
    "keypoints": (None, 2), "joints": (None, 3), "depth": (), "boxes": (4,), "scores": (),
    "reprojection": (), "start_reprojection": (), "converged": (), "iterations": (), "stop": (), "cost": (),
    "kept": (),
}  # fmt: skip
"""Of one person's entry; None is any size."""


@dataclass(frozen=True, eq=False)
class Labels:
    """People in images with their bodies, one row each: arrays of NumPy, in camera coordinates.

    ``body(global_orient=..., body_pose=..., betas=..., age_offset=..., transl=...)`` in axis-angle is the
    person before a camera of ``focal`` and ``center``, with OpenCV's axes.
    """

    body: str
    """Name of the body."""
    joint_names: tuple[str, ...]
    """Of the body."""
    keypoint_layout: str
    """Name of the layout of ``observed`` and ``keypoints``."""
    ids: Int[np.ndarray, " N"]
    image_ids: Shaped[np.ndarray, " N"]
    """File name of the image."""
    image_sizes: Int[np.ndarray, "N 2"]
    """Width and height [pixels]."""
    global_orient: Float[np.ndarray, "N 3"]
    body_pose: Float[np.ndarray, "N R 3"]
    """Of all joints but the root."""
    betas: Float[np.ndarray, "N S"]
    age_offset: Float[np.ndarray, " N"]
    transl: Float[np.ndarray, "N 3"]
    """[m]"""
    focal: Float[np.ndarray, "N 2"]
    """[pixels]"""
    center: Float[np.ndarray, "N 2"]
    """Principal point [pixels]."""
    observed: Float[np.ndarray, "N K 3"]
    """Keypoints that the body was fitted to: x, y [pixels] and weight."""
    keypoints: Float[np.ndarray, "N K 2"]
    """Those of the body [pixels]."""
    joints: Float[np.ndarray, "N J 3"]
    """Of the body, in camera coordinates [m]."""
    depth: Float[np.ndarray, " N"]
    """z of the root joint [m]."""
    boxes: Float[np.ndarray, "N 4"]
    """x, y, width, height [pixels]: the file's, or that around the observed keypoints."""
    scores: Float[np.ndarray, " N"]
    """Mean weight of the keypoints."""
    reprojection: Float[np.ndarray, " N"]
    """Mean distance of the keypoints, weighted [pixels]."""
    start_reprojection: Float[np.ndarray, " N"]
    """The same before the fit [pixels]."""
    converged: Bool[np.ndarray, " N"]
    iterations: Int[np.ndarray, " N"]
    stop: Shaped[np.ndarray, " N"]
    """Why the fit ended."""
    cost: Float[np.ndarray, " N"]
    kept: Bool[np.ndarray, " N"]
    """No rule says that something is wrong."""
    terms: dict[str, Float[np.ndarray, " N"]] = field(default_factory=dict)
    """What each term of the fit contributes to the cost."""
    flags: dict[str, Bool[np.ndarray, " N"]] = field(default_factory=dict)
    """What is wrong with a person, by the rule that says so."""

    def __len__(self) -> int:
        """How many people."""
        return len(self.ids)

    def select(self, rows: slice | Int[np.ndarray, " M"] | Bool[np.ndarray, " N"]) -> Labels:
        """Some of the people."""
        parts = {name: getattr(self, name)[rows] for name in _SHAPES}
        parts |= {
            name: {key: values[rows] for key, values in getattr(self, name).items()}
            for name in ("terms", "flags")
        }
        return replace(self, **parts)

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write an ``.npz`` of plain arrays, whole or not at all; `load_labels` reads it.

        It is, at the same time, a file of predictions for ``agebody evaluate``.

        Raises:
            ValueError: the suffix is not .npz.
            FileExistsError: the file exists and ``overwrite`` is false.
            OSError: the file cannot be written.
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _SHAPES}
        arrays["body"], arrays["joint_names"] = np.array(self.body), np.array(self.joint_names)
        arrays["keypoint_layout"] = np.array(self.keypoint_layout)
        if self.joint_names == SMPL_JOINT_NAMES:
            arrays["layout"] = np.array("smpl24")
        arrays |= {TERM + name: values for name, values in self.terms.items()}
        arrays |= {FLAG + name: values for name, values in self.flags.items()}
        save_npz(arrays, path, overwrite=overwrite)


def concatenate_labels(parts: list[Labels]) -> Labels:
    """Labels made with one body and layout, one after the other.

    Raises:
        ValueError: there are none, or they are of different bodies or layouts.
    """
    if not parts:
        raise ValueError("parts: expected at least one")
    first = parts[0]
    for part in parts[1:]:
        for name in ("body", "joint_names", "keypoint_layout"):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(
                    f"parts: expected one {name}, got {getattr(first, name)} and {getattr(part, name)}"
                )
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _SHAPES
    }
    for name in ("terms", "flags"):
        keys = getattr(first, name)
        joined[name] = {key: np.concatenate([getattr(part, name)[key] for part in parts]) for key in keys}
    return replace(first, **joined)


def load_labels(path: str | PathLike[str]) -> Labels:
    """Reads a file that `Labels.save` wrote. Nothing in it is run.

    Raises:
        AnnotationError: it is no such file.
        OSError: it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as stream:
        try:
            file = np.load(stream, allow_pickle=False)
            arrays = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else {}
        except (ValueError, zipfile.BadZipFile, EOFError, KeyError):
            arrays = {}
    names = ("body", "joint_names", "keypoint_layout")
    missing = [name for name in (*names, *_SHAPES) if name not in arrays]
    if missing:
        what = "no file of labels" if len(missing) > 3 else "the file of labels is not complete"
        fail(path, f"{what}; it has no {', '.join(missing[:3])}")
    count = len(arrays["ids"])
    for name, shape in _SHAPES.items():
        got = arrays[name].shape
        if (
            len(got) != 1 + len(shape)
            or got[0] != count
            or any(n is not None and n != m for n, m in zip(shape, got[1:], strict=True))
        ):
            fail(path, f"{name}: expected shape ({', '.join(['N', *map(_any, shape)])}), got {got}")
    if str(arrays["keypoint_layout"]) not in LAYOUTS:
        fail(path, f"keypoint_layout: expected one of {', '.join(LAYOUTS)}, got {arrays['keypoint_layout']}")
    known = {entry.name for entry in fields(Labels)}
    return Labels(
        **{
            name: arrays[name] for name in known - {"terms", "flags", *names}
        },
        body=str(arrays["body"]),
        joint_names=tuple(map(str, arrays["joint_names"])),
        keypoint_layout=str(arrays["keypoint_layout"]),
        terms={name.removeprefix(TERM): array for name, array in arrays.items() if name.startswith(TERM)},
        flags={name.removeprefix(FLAG): array for name, array in arrays.items() if name.startswith(FLAG)},
    )  # fmt: skip


def _any(size: int | None) -> str:
    return "any" if size is None else str(size)
