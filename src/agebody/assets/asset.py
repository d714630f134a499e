"""A body model as data: one frozen, validated set of NumPy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import scipy
from jaxtyping import Float, Int

_SMPL_JOINTS = """
pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot
right_foot neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist
right_wrist left_hand right_hand
"""
SMPL_JOINT_NAMES = tuple(_SMPL_JOINTS.split())
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

_FINGERS = tuple(
    f"{finger}{i}" for finger in ("index", "middle", "pinky", "ring", "thumb") for i in (1, 2, 3)
)
HAND_JOINTS = {
    "hand": _FINGERS,
    "left_hand": tuple(f"left_{name}" for name in _FINGERS),
    "right_hand": tuple(f"right_{name}" for name in _FINGERS),
}
"""Finger joints of MANO's hand, and of the hands of SMPL-H and SMPL-X."""

WEIGHT_SUM_TOLERANCE = 1e-3  # moves a vertex by 1 mm per metre from the origin


CONTOUR_TURNS = 79
"""Turns of the head for which a face's contour is tabulated: 0 to 39 degrees, then -1 to -39."""

LARGEST = 1e6
"""Largest number in a body; beyond it, a file is damaged or in a unit below micrometres."""


class AssetError(ValueError):
    """A body file or array that cannot be used. The message names it, the cause, and what to do."""


class Regressor(NamedTuple):
    """Named points that are fixed linear combinations of the vertices of a body."""

    names: tuple[str, ...]
    matrix: scipy.sparse.csr_array
    """(K, V): point k = sum over v of matrix[k, v] * vertex[v]."""


@dataclass(frozen=True)
class Metadata:
    """The origin and licence of a body."""

    name: str = "unnamed"
    kind: str = "custom"
    """Model family: smpl, smil, smplh, smplx, mano, mannequin, anny or custom."""
    topology: str = "custom"
    """Bodies that share a topology share vertex ids: smpl (SMPL, SMIL and SMPL-H), smplx, mano, ..."""
    gender: str = "neutral"
    units: str = "m"
    license: str = "unknown"
    shape_names: tuple[str, ...] = ()
    """One name per shape direction, where the directions have a meaning; empty otherwise. The last ones that
    begin with "expression" are expressions of the face."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """File name -> sha256 of each file that the body was read from."""


def _array(doc: str, dims: tuple[str | int, ...], kind: str, unit: str = "1", **defaults: Any) -> Any:
    return field(metadata={"doc": doc, "dims": dims, "kind": kind, "unit": unit}, **defaults)


@dataclass(frozen=True, eq=False)
class BodyAsset:
    """A body model as data: frozen and validated NumPy arrays.

    Dims: V vertices, F triangles, J joints, S shape directions, A age templates, W weights per vertex,
    H hands (left and right, or one) of D numbers with C principal components, Y turns of the head, L points.
    Floating-point arrays are float32 or float64, as in the source file. Lengths are metres; +y is up, the
    body faces +z, its left is +x.

    The rest surface at betas b and age offset a is ``surface(a) + shapedirs @ b``, where ``surface``
    interpolates linearly between the template, the anchor at offset 0, and ``age_templates[i]``, the anchors
    at ``age_offsets[i]``. SMPL-A (AGORA, CVPR 2021) has one age template, the centred infant, at offset 1.

    Raises:
        AssetError: an array is missing, of the wrong shape or type, not finite, or inconsistent.
    """

    template: Float[np.ndarray, "V 3"] = _array("rest surface at zero betas", ("V", 3), "float", "m")
    faces: Int[np.ndarray, "F 3"] = _array("triangles, counter-clockwise from outside", ("F", 3), "int")
    parents: Int[np.ndarray, " J"] = _array(
        "parent joint of each joint; the root comes first, with -1", ("J",), "int"
    )
    joint_names: tuple[str, ...] = _array("name of each joint", ("J",), "text")
    joint_regressor: scipy.sparse.csr_array = _array(
        "rest joints from the rest surface", ("J", "V"), "sparse"
    )
    skin_joints: Int[np.ndarray, "V W"] = _array("joints that move each vertex", ("V", "W"), "int")
    skin_weights: Float[np.ndarray, "V W"] = _array(
        "weight of each of those joints; non-negative within 1e-6, a row sums to 1", ("V", "W"), "float"
    )
    shapedirs: Float[np.ndarray, "V 3 S"] = _array(
        "displacement for one unit of each beta, then of each expression coefficient",
        ("V", 3, "S"),
        "float",
        "m",
    )
    posedirs: Float[np.ndarray, "V 3 P"] | None = _array(
        "pose blend shapes, P = 9 (J - 1): displacement for one unit of each entry of the row-major "
        "matrices R_j - I of joints 1..J-1",
        ("V", 3, "P"),
        "float",
        "m",
        default=None,
    )
    age_offsets: Float[np.ndarray, " A"] = _array(
        "age offset of each age template, ascending, none 0 (that anchor is the template)",
        ("A",),
        "float",
        default_factory=lambda: np.zeros(0),
    )
    age_templates: Float[np.ndarray, "A V 3"] | None = _array(
        "rest surface at each of those age offsets; None where there are none",
        ("A", "V", 3),
        "float",
        "m",
        default=None,
    )
    hand_means: Float[np.ndarray, "H D"] | None = _array(
        "mean pose of each hand, left before right: axis-angle vectors of its joints",
        ("H", "D"),
        "float",
        "rad",
        default=None,
    )
    hand_components: Float[np.ndarray, "H C D"] | None = _array(
        "principal components of each hand's pose about its mean",
        ("H", "C", "D"),
        "float",
        "rad",
        default=None,
    )
    contour_faces: Int[np.ndarray, "Y L"] | None = _array(
        "triangle of each point of a face's contour, per degree of the head's turn: 0 to 39, then -1 to -39",
        ("Y", "L"),
        "int",
        default=None,
    )
    contour_weights: Float[np.ndarray, "Y L 3"] | None = _array(
        "barycentric coordinates in those triangles", ("Y", "L", 3), "float", default=None
    )
    regressors: Mapping[str, Regressor] = field(
        default_factory=dict,
        metadata={
            "doc": "named sets of keypoints, each regressed from the posed surface",
            "kind": "regressors",
        },
    )
    metadata: Metadata = field(
        default_factory=Metadata, metadata={"doc": "origin and licence", "kind": "metadata"}
    )

    def __post_init__(self) -> None:
        """Normalise dtypes, check every array against the others, and make all of them read-only."""

        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("template", _floats("template", self.template, (None, 3)))
        num_vertices = len(self.template)
        if num_vertices == 0:
            raise AssetError("template: a body needs at least one vertex")
        put("faces", _ints("faces", self.faces, (None, 3), num_vertices))
        put("parents", _parents(self.parents))
        num_joints = len(self.parents)
        put("joint_names", tuple(self.joint_names))
        if len(self.joint_names) != num_joints or len(set(self.joint_names)) != num_joints:
            raise AssetError(
                f"joint_names: expected {num_joints} different names, got {len(self.joint_names)} "
                f"({len(set(self.joint_names))} different)"
            )
        put("joint_regressor", _sparse("joint_regressor", self.joint_regressor, (num_joints, num_vertices)))
        put("skin_weights", _floats("skin_weights", self.skin_weights, (num_vertices, None)))
        put("skin_joints", _ints("skin_joints", self.skin_joints, self.skin_weights.shape, num_joints))
        _check_weights(self.skin_weights)
        put("shapedirs", _floats("shapedirs", self.shapedirs, (num_vertices, 3, None)))
        if self.posedirs is not None:
            put("posedirs", _floats("posedirs", self.posedirs, (num_vertices, 3, 9 * (num_joints - 1))))
        put("age_offsets", _floats("age_offsets", self.age_offsets, (None,)))
        if len(self.age_offsets) and self.age_templates is None:
            raise AssetError("age_templates: missing, although age_offsets names some")
        if self.age_templates is not None:
            if np.any(np.diff(self.age_offsets) <= 0) or np.any(self.age_offsets == 0):
                raise AssetError(
                    f"age_offsets: expected ascending offsets without 0 (the template is the anchor at 0), "
                    f"got {self.age_offsets.tolist()}"
                )
            shape = (len(self.age_offsets), num_vertices, 3)
            put("age_templates", _floats("age_templates", self.age_templates, shape))
        regressors = {name: _regressor(name, sets, num_vertices) for name, sets in self.regressors.items()}
        put("regressors", MappingProxyType(regressors))
        names, num_directions = self.metadata.shape_names, self.shapedirs.shape[2]
        if names and len(names) != num_directions:
            raise AssetError(f"metadata.shape_names: expected {num_directions} names, got {len(names)}")
        hands = [3 * (part.stop - part.start) for name, part in self.pose_parts.items() if "hand" in name]
        shape = (len(hands), hands[0] if hands else 0)
        if self.hand_means is not None:
            put("hand_means", _floats("hand_means", self.hand_means, shape))
        if self.hand_components is not None:
            if self.hand_means is None:
                raise AssetError("hand_means: missing, although there are hand_components")
            shape = (shape[0], None, shape[1])
            put("hand_components", _floats("hand_components", self.hand_components, shape))
        if (self.contour_faces is None) != (self.contour_weights is None):
            raise AssetError("contour_faces, contour_weights: expected both or neither")
        if self.contour_faces is not None:
            shape = (CONTOUR_TURNS, None)
            put("contour_faces", _ints("contour_faces", self.contour_faces, shape, len(self.faces)))
            shape = (*self.contour_faces.shape, 3)
            put("contour_weights", _floats("contour_weights", self.contour_weights, shape))

    @property
    def num_vertices(self) -> int:
        """Number of vertices V."""
        return len(self.template)

    @property
    def num_joints(self) -> int:
        """Number of joints J."""
        return len(self.parents)

    @property
    def num_betas(self) -> int:
        """Number of shape directions, without those of expressions."""
        return self.shapedirs.shape[2] - self.num_expression

    @property
    def num_expression(self) -> int:
        """Number of expression directions, which are the last of the shape directions."""
        names = self.metadata.shape_names
        others = (k for k, name in enumerate(reversed(names)) if not name.startswith("expression"))
        return next(others, len(names))

    @property
    def pose_parts(self) -> dict[str, slice]:
        """Rows in ``body_pose`` of the parts that the body has.

        They are body, jaw, left_eye, right_eye, left_hand and right_hand; of MANO, hand.
        """
        joints = self.joint_names[1:]
        parts: dict[str, slice] = {}
        for name, members in [*HAND_JOINTS.items(), *((n, (n,)) for n in ("jaw", "left_eye", "right_eye"))]:
            first = joints.index(members[0]) if members[0] in joints else 0
            if joints[first : first + len(members)] == members:
                parts[name] = slice(first, first + len(members))
        ordered = sorted(parts.items(), key=lambda part: part[1].start)
        rest = ordered[0][1].start if ordered else len(joints)
        whole = rest + sum(part.stop - part.start for part in parts.values()) == len(joints)
        body = {"body": slice(0, rest if whole else len(joints))} if rest else {}
        return body | (dict(ordered) if whole else {})

    @property
    def has_age(self) -> bool:
        """Whether the body has an age template."""
        return self.age_templates is not None and len(self.age_templates) > 0

    def dense_weights(self) -> Float[np.ndarray, "V J"]:
        """Return the skinning weights with one column per joint."""
        dense = np.zeros((self.num_vertices, self.num_joints), self.skin_weights.dtype)
        np.add.at(dense, (np.arange(self.num_vertices)[:, None], self.skin_joints), self.skin_weights)
        return dense

    def strongest_joints(self) -> Int[np.ndarray, " V"]:
        """Return the joint that moves each vertex most, the first of equals."""
        return self.dense_weights().argmax(1)

    def at_age(self, age_offset: float) -> BodyAsset:
        """Return the body of one age, without age templates: linear between the anchors and beyond them."""
        if self.age_templates is None:
            raise AssetError(f"{self.metadata.name!r} has no age templates")
        age_offset = float(age_offset)
        after = int(np.searchsorted(self.age_offsets, 0))
        knots = np.insert(self.age_offsets.astype(float), after, 0.0)
        surfaces = np.insert(self.age_templates, after, self.template, axis=0)
        i = int(np.clip(np.searchsorted(knots, age_offset) - 1, 0, len(knots) - 2))
        share = (age_offset - knots[i]) / (knots[i + 1] - knots[i])
        template = (1 - share) * surfaces[i] + share * surfaces[i + 1]
        name = f"{self.metadata.name} at age offset {age_offset:g}"
        return self.replace(
            template=template.astype(self.template.dtype),
            age_offsets=np.zeros(0),
            age_templates=None,
            metadata=dataclasses.replace(self.metadata, name=name),
        )

    def __deepcopy__(self, memo: Any) -> BodyAsset:
        """Return the asset itself, which cannot change."""
        return self

    def replace(self, **changes: Any) -> BodyAsset:
        """Return a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a call of the constructor, so that loading validates too."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["regressors"] = dict(self.regressors)
        return _rebuild, (values,)

    def __repr__(self) -> str:
        """Return one line with the sizes."""
        return (
            f"BodyAsset({self.metadata.name!r}, kind={self.metadata.kind!r}, vertices={self.num_vertices}, "
            f"joints={self.num_joints}, betas={self.num_betas}, "
            + (f"expressions={self.num_expression}, " if self.num_expression else "")
            + f"age_offsets={self.age_offsets.tolist()})"
        )


def _rebuild(values: dict[str, Any]) -> BodyAsset:
    return BodyAsset(**values)


def sparse_weights(
    dense: Float[np.ndarray, "V J"],
) -> tuple[Int[np.ndarray, "V W"], Float[np.ndarray, "V W"]]:
    """Return joints and weights of each vertex, largest first, from a matrix with one column per joint.

    W is the largest number of non-zero weights of a vertex; shorter rows end in zeros.
    """
    width = max(1, int(np.count_nonzero(dense, axis=1).max(initial=0)))
    order = np.argsort(-np.abs(dense), axis=1, kind="stable")[:, :width]
    return order.astype(np.int32), np.take_along_axis(dense, order, axis=1)


def expect_asset(value: Any, name: str = "asset") -> BodyAsset:
    """Check that an argument is a `BodyAsset`."""
    if not isinstance(value, BodyAsset):
        layer = isinstance(getattr(value, "asset", None), BodyAsset)
        advice = "give its .asset" if layer else "load_asset reads one from a file"
        raise TypeError(f"{name}: expected a BodyAsset, got {type(value).__name__}; {advice}")
    return value


def check_shape(name: str, got: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    """Raise an `AssetError` where a shape is not the expected one, in which None is any size."""
    if len(got) != len(expected) or any(n not in (None, m) for n, m in zip(expected, got, strict=True)):
        texts = (", ".join("any" if n is None else str(n) for n in shape) for shape in (expected, got))
        raise AssetError("{}: expected shape ({}), got ({})".format(name, *texts))


def check_indices(name: str, value: np.ndarray, below: int) -> None:
    """Raise an `AssetError` where an array has entries other than the integers from 0 to below ``below``."""
    if value.dtype.kind not in "iu":
        raise AssetError(f"{name}: expected integers, got {value.dtype}")
    if value.size and (value.min() < 0 or value.max() >= below):
        raise AssetError(f"{name}: expected indices 0 to {below - 1}, got {value.min()} to {value.max()}")


def check_finite(name: str, value: np.ndarray, *, most: float = LARGEST) -> None:
    """Raise an `AssetError` where an array has entries that are NaN, infinite or beyond ``most``."""
    if not np.isfinite(value).all():
        raise AssetError(f"{name}: {np.count_nonzero(~np.isfinite(value))} entries are NaN or infinite")
    largest = max(float(value.max(initial=0)), -float(value.min(initial=0)))
    if largest > most:
        raise AssetError(f"{name}: expected numbers up to {most:g}, got {largest:g}; the array is damaged")


def _shaped(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise AssetError(f"{name}: expected a NumPy array, got {type(value).__name__}")
    check_shape(name, value.shape, shape)
    return value


def _frozen(array: np.ndarray) -> np.ndarray:
    if array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
        array.flags.writeable = False
    return array


def _floats(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    value = _shaped(name, value, shape)
    if value.dtype not in (np.float32, np.float64):
        raise AssetError(f"{name}: expected float32 or float64, got {value.dtype}")
    check_finite(name, value)
    return _frozen(value)


def _ints(name: str, value: Any, shape: tuple[int | None, ...], below: int) -> np.ndarray:
    value = _shaped(name, value, shape)
    check_indices(name, value, below)
    return _frozen(value.astype(np.int32))


def _parents(value: Any) -> np.ndarray:
    value = _shaped("parents", value, (None,))
    if value.dtype.kind not in "iu":
        raise AssetError(f"parents: expected integers, got {value.dtype}")
    value = value.astype(np.int64)
    if len(value) == 0 or value[0] != -1:
        raise AssetError(f"parents: expected -1 first (the root), got {value[:1].tolist()}")
    wrong = [j for j in range(1, len(value)) if not 0 <= value[j] < j]
    if wrong:
        raise AssetError(
            f"parents: joint {wrong[0]} has parent {value[wrong[0]]}; a parent must come before its child, "
            "so that the tree has no cycle"
        )
    return _frozen(value.astype(np.int32))


def _sparse(name: str, value: Any, shape: tuple[int | None, int]) -> scipy.sparse.csr_array:
    if not scipy.sparse.issparse(value):
        value = scipy.sparse.csr_array(_floats(name, value, shape))
    matrix = scipy.sparse.csr_array(value, copy=True)
    matrix.sum_duplicates()
    check_shape(name, cast(tuple[int, ...], matrix.shape), shape)
    _floats(name, matrix.data, (None,))
    for part in (matrix.data, matrix.indices, matrix.indptr):
        part.flags.writeable = False
    return matrix


def _regressor(name: str, regressor: Regressor, num_vertices: int) -> Regressor:
    matrix = _sparse(f"regressors[{name!r}]", regressor.matrix, (None, num_vertices))
    names = tuple(regressor.names)
    rows = len(matrix.indptr) - 1
    if len(names) != rows or len(set(names)) != len(names):
        raise AssetError(f"regressors[{name!r}]: expected {rows} different names, got {list(names)}")
    return Regressor(names, matrix)


def _check_weights(weights: np.ndarray) -> None:
    if weights.shape[1] == 0:
        raise AssetError("skin_weights: expected at least one weight per vertex")
    if weights.min() < -1e-6:  # rounding of the file's own tools; a vertex moves by less than 1 um per metre
        raise AssetError(f"skin_weights: expected non-negative weights, got {weights.min():.4g}")
    sums = weights.sum(axis=1)
    worst = np.abs(sums - 1).argmax()
    if abs(sums[worst] - 1) > WEIGHT_SUM_TOLERANCE:
        raise AssetError(
            f"skin_weights: the weights of vertex {worst} sum to {sums[worst]:.4g}; "
            f"expected 1 within {WEIGHT_SUM_TOLERANCE:g}"
        )
