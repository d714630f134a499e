"""Read the shards that training codes of HMR2's family share: images, and lists of the people in them.

A shard is a tar file in which ``KEY.jpg`` and ``KEY.data.pyd``, a pickled list of people, belong together:
what `save_training_shards` and ``agebody synthesize`` write, and 4D-Humans publishes. Nothing of a pickle is
run. People are read by random access, so that the row of each in a training can be computed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from agebody.age import AGE_CLASSES, UNKNOWN
from agebody.annotations.people import AnnotationError
from agebody.assets.asset import AssetError
from agebody.assets.official import JOINT_NAMES
from agebody.assets.unpickle import loads
from agebody.pipelines.labels.samples import PEOPLE, Member, read_members
from agebody.pipelines.labels.training import NUM_BETAS, NUM_EXPRESSION, SCALE_UNIT

_POINTS = 44
JOINTS = JOINT_NAMES["smpl"] + JOINT_NAMES["smplx"][22:]
"""Joints of SMPL, of SMPL-X's face, and of the fingers, the left hand's first."""
_POSES = (
    ("body_pose", 24, "has_body_pose"),
    *((f"{name}_pose", 1, "has_jaw_pose") for name in ("jaw", "leye", "reye")),
    *((f"{side}_hand_pose", 15, f"has_{side}_hand_pose") for side in ("left", "right")),
)
"""Fields of the poses of ``JOINTS``, their numbers of joints, and the fields of their weights."""
WEIGHTS = {name: weight for name, _, weight in _POSES[1:]} | {"expression": "has_expression"}
"""Fields of face and fingers, and the fields of their weights."""


class Person(NamedTuple):
    """One person in an image of a shard; unknown values have weight 0."""

    box: Float[np.ndarray, " 4"]
    """Corners of the box around the person in the image [pixels]."""
    keypoints_2d: Float[np.ndarray, "44 3"]
    """x, y [pixels] and confidence, of "hmr2_44"."""
    keypoints_3d: Float[np.ndarray, "44 4"]
    """In camera coordinates [m], and confidence."""
    pose: Float[np.ndarray, "57 3"]
    """Axis-angle vectors of ``JOINTS``, the root's first; 0 where they are not known."""
    pose_weights: Float[np.ndarray, " 57"]
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
    expression: Float[np.ndarray, " 10"]
    expression_weight: float


def read_people(path: Path, place: Member) -> list[Person]:
    """Return the people of one image.

    Args:
        path: the shard.
        place: of the list.

    Raises:
        AnnotationError: something else is there, or a number that is missing or not finite.
    """
    try:
        found = loads(read_members(path, {PEOPLE: place})[PEOPLE])
    except AssetError as error:
        raise AnnotationError(f"{path}: the list of people at byte {place.start}: {error}") from None
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, dict) for one in found):
        raise AnnotationError(f"{path}: expected a list of people at byte {place.start}")
    return [_read_person(_Fields(path, place.start, one)) for one in found]


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
        """Return an array of one of several lengths."""
        given = np.size(self.fields.get(name, ()))  # pyright: ignore[reportArgumentType]
        return self.numbers(name, given if given in counts else counts[-1])

    def fail(self, name: str, problem: str) -> NoReturn:
        raise AnnotationError(f"{self.path}: a person at byte {self.byte}: {name}: {problem}")


def _read_person(fields: _Fields) -> Person:
    center = fields.numbers("center", 2)
    size = np.broadcast_to(fields.either("scale", 1, 2), (2,)) * np.float32(SCALE_UNIT)
    betas = fields.either("betas", NUM_BETAS, NUM_BETAS + 1)
    known, aged = float(fields.numbers("has_betas")), betas.shape[0] > NUM_BETAS
    kind, unknown = float(fields.numbers("age_class", default=UNKNOWN)), [None, *[0.0] * (len(_POSES) - 1)]
    poses = [(*part, default) for part, default in zip(_POSES, unknown, strict=True)]
    if kind != int(kind) or not UNKNOWN <= kind < len(AGE_CLASSES):
        fields.fail("age_class", f"expected {UNKNOWN} to {len(AGE_CLASSES) - 1}, got {kind:g}")
    person = Person(
        np.concatenate((center - size / 2, center + size / 2)),
        fields.numbers("keypoints_2d", _POINTS, 3),
        fields.numbers("keypoints_3d", _POINTS, 4),
        np.concatenate([fields.numbers(name, count, 3, default=none) for name, count, _, none in poses]),
        np.concatenate([np.full(n, fields.numbers(has, default=none)) for _, n, has, none in poses]),
        betas[:NUM_BETAS],
        known,
        float(betas[NUM_BETAS]) if aged else 0.0,
        float(fields.numbers("has_age", default=known if aged else 0.0)),
        int(kind),
        fields.numbers("focal", 2, default=math.nan),
        fields.numbers("principal_point", 2, default=math.nan),
        fields.numbers("expression", NUM_EXPRESSION, default=0.0),
        float(fields.numbers("has_expression", default=0.0)),
    )
    if not np.isfinite(person.box).all() or not (size > 0).all():
        fields.fail("center, scale", "expected a box of finite numbers and a size above 0")
    return person
