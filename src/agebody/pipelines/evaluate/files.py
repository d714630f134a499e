"""Read files of predictions and truths: one npz of plain arrays each, one row per person.

The page "Evaluation" of the documentation describes the arrays; others are ignored. A stated class takes
precedence, as in labels, whose age offset was fitted; among other ages, the order is that of
`agebody.age.parse_ages`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from agebody.age import UNKNOWN, parse_ages
from agebody.age.classes import AGE_FIELDS, AgeError
from agebody.annotations.arrays import Key, read_arrays
from agebody.annotations.people import fail
from agebody.keypoints import LAYOUTS
from agebody.metrics.similarity import CROWDPOSE14

OTHER_LAYOUTS = {"crowdpose14": CROWDPOSE14}

LARGEST = {"joints": 10.0, "vertices": 10.0, "depth": 1000.0}
"""Upper bounds of the size and of the distance of a file's median person [m]."""


def _key(*shape: int | None, kind: str = "number", least: float = -np.inf) -> dict[str, Key]:
    return {"key": Key(shape, kind, least)}


@dataclass(frozen=True, eq=False)
class Bodies:
    """The people of a file, one row per person; fields that the file does not state are None."""

    path: Path
    count: int
    ids: Shaped[np.ndarray, " N"] | None = field(default=None, metadata=_key(kind="id"))
    image_ids: Shaped[np.ndarray, " N"] | None = field(default=None, metadata=_key(kind="id"))
    joints: Float[np.ndarray, "N J 3"] | None = field(default=None, metadata=_key(None, 3))
    joint_weights: Float[np.ndarray, "N J"] | None = field(default=None, metadata=_key(None, least=0))
    layout: str | None = field(default=None, metadata=_key(kind="name"))
    vertices: Float[np.ndarray, "N V 3"] | None = field(default=None, metadata=_key(None, 3))
    keypoints: Float[np.ndarray, "N K 2"] | None = field(default=None, metadata=_key(None, None))
    visible: Bool[np.ndarray, "N K"] | None = None
    keypoint_layout: str | None = field(default=None, metadata=_key(kind="name"))
    depth: Float[np.ndarray, " N"] | None = field(default=None, metadata=_key())
    depth_layers: Int[np.ndarray, " N"] | None = field(
        default=None, metadata=_key(kind="integer", least=UNKNOWN)
    )
    scores: Float[np.ndarray, " N"] | None = field(default=None, metadata=_key())
    areas: Float[np.ndarray, " N"] | None = field(default=None, metadata=_key(least=0))
    boxes: Float[np.ndarray, "N 4"] | None = field(default=None, metadata=_key(4))
    crowd: Bool[np.ndarray, " N"] | None = field(default=None, metadata=_key(kind="flag"))
    valid: Bool[np.ndarray, " N"] | None = field(default=None, metadata=_key(kind="flag"))
    age_classes: Int[np.ndarray, " N"] | None = None

    def has(self, *names: str) -> bool:
        """Return whether the file has all of these fields."""
        return all(getattr(self, name) is not None for name in names)

    def get(self, name: str, why: str = "") -> Any:
        """Return a field that the file must have; where it has not, the error says ``why`` it is needed."""
        found = getattr(self, name)
        if found is None:
            fail(self.path, f"{name}: missing{'; ' if why else ''}{why}")
        return found

    def name_of(self, row: int) -> str:
        """Return how an error names a person."""
        return f"row {row}" if self.ids is None else f"id {self.ids[row]}"


_KEYS = {each.name: each.metadata["key"] for each in fields(Bodies) if each.metadata}
_KEYS |= dict.fromkeys(AGE_FIELDS, Key(kind="age"))


def read_bodies(path: str | Path) -> Bodies:
    """Read and check an npz of predictions or truths. Nothing in the file is unpickled."""
    path = Path(path)
    bodies: dict[str, Any] = read_arrays(path, _KEYS)
    rows = [name for name in bodies if _KEYS[name].kind != "name"]
    if not rows:
        fail(path, f"no key is known; expected some of {', '.join(_KEYS)}")
    count = len(bodies[rows[0]])
    if count == 0:
        fail(path, "expected people, got an empty file")
    for name in rows:
        if 0 in bodies[name].shape[1:]:
            fail(path, f"{name}: expected at least one point per person, got shape {bodies[name].shape}")
    if "ids" in bodies:
        found, counts = np.unique(bodies["ids"], return_counts=True)
        if (counts > 1).any():
            fail(path, f"ids: expected different ids, got {found[counts > 1][0]} more than once")
    ages = {name: bodies.pop(name) for name in AGE_FIELDS if name in bodies}
    if ages:
        try:
            stated = parse_ages(age_class=ages.pop("age_class", None), shape=(count,)).age_class
            others = parse_ages(**ages, shape=(count,)).classes()
            bodies["age_classes"] = np.where(stated != UNKNOWN, stated, others)
        except AgeError as error:
            fail(path, f"{error.name}: {error.problem} (row {error.person})")
    for name in ("layout", "keypoint_layout"):
        if name in bodies:
            known = [*LAYOUTS, *(OTHER_LAYOUTS if name == "keypoint_layout" else ())]
            bodies[name] = str(bodies[name])
            if bodies[name] not in known:
                fail(path, f"{name}: expected one of {', '.join(known)}, got {bodies[name]!r}")
    if "keypoints" in bodies:
        points = bodies["keypoints"]
        if points.shape[-1] not in (2, 3):
            fail(path, f"keypoints: expected shape (N, K, 2) or (N, K, 3), got {points.shape}")
        visible = np.ones(points.shape[:2], bool) if points.shape[-1] == 2 else points[..., 2] != 0
        bodies["keypoints"], bodies["visible"] = points[..., :2], visible
    if {"joints", "joint_weights"} <= bodies.keys():
        shapes = bodies["joints"].shape[:2], bodies["joint_weights"].shape
        if shapes[0] != shapes[1]:
            fail(path, f"joint_weights: expected shape {shapes[0]}, got {shapes[1]}")
    result = Bodies(path, count, **bodies)
    _refuse_gaps(result)
    _refuse_millimetres(result)
    return result


def _refuse_gaps(bodies: Bodies) -> None:
    """Refuse numbers that are not finite, except where the weight is 0."""
    for name in _KEYS:
        values = getattr(bodies, name, None)
        if values is None or isinstance(values, str) or values.dtype.kind != "f":
            continue
        finite = np.isfinite(values)
        weights = {"joints": bodies.joint_weights, "keypoints": bodies.visible}.get(name)
        if weights is not None:
            finite = finite | (weights == 0)[..., None]
        if not finite.all():
            row = int(np.flatnonzero(~finite.reshape(bodies.count, -1).all(1))[0])
            fail(bodies.path, f"{name}: NaN or infinite for {bodies.name_of(row)}")


def _refuse_millimetres(bodies: Bodies) -> None:
    """Refuse lengths that cannot be metres: a millimetre taken for a metre is an error of kilometres."""
    for name, largest in LARGEST.items():
        values = getattr(bodies, name)
        if values is None:
            continue
        if name == "depth":
            sizes, what = np.abs(values), "away"
        else:
            kept = np.isfinite(values).all(-1)
            if name == "joints" and bodies.joint_weights is not None:
                kept &= bodies.joint_weights != 0
            low, high = (np.where(kept[..., None], values, end) for end in (np.inf, -np.inf))
            sizes, what = (high.max(1) - low.min(1)).max(-1), "across"
        size = float(np.median(sizes))
        if size > largest:
            problem = f"expected metres, got people of {size:.4g} {what}, the median; are they millimetres?"
            fail(bodies.path, f"{name}: {problem}")
