"""Read the files in which SMPL-family models are published.

The files share SMPL's entry names (Loper 2015) and differ in their additions: SMPL, SMIL, SMPL-H, SMPL-X and
MANO as pickle or npz, BEV's and ROMP's packs as torch files, HMR's copy with its own regressor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeGuard

import numpy as np
import scipy
from jaxtyping import Float, Int

from agebody.assets.asset import (
    CONTOUR_TURNS,
    HAND_JOINTS,
    SMPL_JOINT_NAMES,
    SMPL_PARENTS,
    AssetError,
    BodyAsset,
    Metadata,
    Regressor,
    check_finite,
    check_indices,
    check_shape,
    sparse_weights,
)
from agebody.assets.container import RawFile, Unread
from agebody.assets.landmarks import (
    CONTOUR17,
    FACE51,
    H36M17_BEV,
    J19,
    REGRESSOR_NAMES,
    SURFACE21,
    SURFACE_VERTICES,
    TIPS5,
)

_BODY22 = SMPL_JOINT_NAMES[:22]
_HANDS = HAND_JOINTS["left_hand"] + HAND_JOINTS["right_hand"]
JOINT_NAMES = {
    "smpl": SMPL_JOINT_NAMES,
    "smil": SMPL_JOINT_NAMES,
    "smplh": _BODY22 + _HANDS,
    "smplx": (*_BODY22, "jaw", "left_eye", "right_eye", *_HANDS),
    "mano": ("wrist", *HAND_JOINTS["hand"]),
}
"""Joint names of each model family, in the order of its files."""

_COCOPLUS19 = (*J19[:14], "nose", "left_eye", "right_eye", "left_ear", "right_ear")
TITLES = {"smpl": "SMPL", "smil": "SMIL", "smplh": "SMPL-H", "smplx": "SMPL-X", "mano": "MANO"}
"""The model families as they are written."""

FILES = {
    "smpl": "SMPL_NEUTRAL.pkl (smpl.is.tue.mpg.de)",
    "smil": "smil_web.pkl (s.fhg.de/smil)",
    "smplh": "SMPLH_female.pkl (mano.is.tue.mpg.de) or AMASS's smplh/neutral/model.npz",
    "smplx": "SMPLX_NEUTRAL.npz (smpl-x.is.tue.mpg.de)",
    "mano": "MANO_RIGHT.pkl (mano.is.tue.mpg.de)",
}
"""The file to get for each family, and where from."""

_BARYCENTRIC = 0.01  # tolerance for sums of barycentric coordinates
_TOPOLOGIES = {6890: "smpl", 10475: "smplx", 778: "mano"}
_MANO_LICENSE = "MANO and SMPL-H model licence: non-commercial research (mano.is.tue.mpg.de)"
_LICENSES = {
    "smpl": "SMPL model licence: non-commercial research (smpl.is.tue.mpg.de)",
    "smil": "SMIL model licence: non-commercial research (s.fhg.de/smil)",
    "smplx": "SMPL-X model licence: non-commercial research (smpl-x.is.tue.mpg.de)",
    "smplh": _MANO_LICENSE,
    "mano": _MANO_LICENSE,
}
_KID_LICENSE = "AGORA kid template: non-commercial research (agora.is.tue.mpg.de)"
GENDERS = ("neutral", "female", "male")
_REQUIRED = ("v_template", "f", "kintree_table", "J_regressor", "weights", "shapedirs")
_EXTENTS = 0.1, 3.0
"""Smallest and largest template [m], of a hand and of an adult, each with room."""
_INFANT_BELOW = 1.0
"""Stature [m] below which a template of SMPL's layout is SMIL's (0.53 m) and not an adult's (1.7 m)."""

_ALL_LENGTHS = "convert all lengths of the file"
_GET_MODEL = "get the model file (.pkl or .npz)"
HANDS_FROM = (
    "SMPLH_female.pkl and SMPLH_male.pkl of mano.is.tue.mpg.de and every SMPL-X file have them, AMASS's "
    "SMPL-H files do not"
)
_NUM_EXPRESSIONS = {400: 100, 20: 10}  # of SMPL-X's shape directions, the last ones


def read_body(raw: RawFile, *, gender: str | None = None) -> BodyAsset:
    """Return the body in a file with SMPL's entry names; its gender is in the file's name if None.

    Raises:
        AssetError: the file is not a body, or its arrays are inconsistent. This and the other messages of
            this module do not name the file; the caller does.
    """
    content = _unwrapped(raw.content)
    if not _has_entries(content):
        raise AssetError(what_it_is(raw))
    entry = _Entries(content)
    template = entry.floats("v_template", (None, 3))
    num_vertices = len(template)
    parents = _parents(entry.indices("kintree_table"))
    num_joints = len(parents)
    posedirs = None
    if "posedirs" in content:
        posedirs = _freeze(_posedirs(entry.floats("posedirs"), num_vertices, num_joints))
    weights = entry.floats("weights", (num_vertices, num_joints))
    skin_joints, skin_weights = sparse_weights(weights)
    kind = _kind(parents, num_vertices, template)
    _check_template(kind, template)
    shapedirs = entry.floats("shapedirs", (num_vertices, 3, None))
    moved, extent = np.abs(shapedirs[..., :1]).max(initial=0), np.ptp(template, axis=0).max()
    if kind != "custom" and moved > extent:
        raise AssetError(f"shapedirs: a beta of 1 moves a vertex by {moved:.3g} m; {_ALL_LENGTHS}")
    ages: dict[str, Any] = {}
    if "smpla_shapedirs" in content:
        infant = template + entry.floats("smpla_shapedirs", (num_vertices, 3, None))[..., -1]
        ages = {"age_offsets": np.ones(1, template.dtype), "age_templates": _freeze(infant[None])}
    return BodyAsset(
        template=_freeze(template),
        faces=entry.indices("f"),
        parents=parents,
        joint_names=JOINT_NAMES.get(kind) or tuple(f"joint{j}" for j in range(num_joints)),
        joint_regressor=entry.matrix("J_regressor", (num_joints, num_vertices)),
        skin_joints=_freeze(skin_joints),
        skin_weights=_freeze(skin_weights),
        shapedirs=_freeze(shapedirs),
        posedirs=posedirs,
        regressors=_regressors(entry, num_vertices, template.dtype),
        **_hands(entry, kind),
        **_contour(entry),
        metadata=Metadata(
            name=raw.path.stem,
            kind=kind,
            topology=_TOPOLOGIES.get(num_vertices, "custom") if kind != "custom" else "custom",
            gender=gender or _gender(raw),
            license=_LICENSES.get(kind, "unknown"),
            shape_names=_shape_names(kind, shapedirs.shape[2]),
            sources={raw.path.name: raw.sha256},
        ),
        **ages,
    )


def _has_entries(content: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(content, Mapping) and all(key in content for key in _REQUIRED)


def _unwrapped(content: Any) -> Any:
    """Return the entries of a body that are the only thing in a file, as ``np.savez(path, entries)`` does."""
    if isinstance(content, (Mapping, list, tuple)) and len(content) == 1:
        (inside,) = content.values() if isinstance(content, Mapping) else content
        return inside if _has_entries(inside) else content
    return content


def kid_license(raw: RawFile) -> str:
    """Return the licence of a file of vertices, by its name."""
    return _KID_LICENSE if "kid_template" in raw.path.name else "unknown"


def with_infant(body: BodyAsset, infant: np.ndarray, license: str = "unknown") -> BodyAsset:
    """Return the body with an infant template as its age anchor at offset 1, centred as in SMPL-A.

    The anchor is ``infant - infant.mean(axis=0)`` (AGORA, CVPR 2021); the adult template is not centred.

    Raises:
        AssetError: the topologies differ, the template is an adult's, or the body has an age template.
    """
    if body.has_age:
        raise AssetError(
            f"{body.metadata.name} brings its own age templates (offsets {body.age_offsets.tolist()}); "
            "omit infant_template"
        )
    if not isinstance(infant, np.ndarray) or infant.dtype.kind != "f":
        kind = getattr(infant, "dtype", type(infant).__name__)
        raise AssetError(f"expected an array of floating-point vertices, got {kind}")
    if infant.shape != body.template.shape:
        advice = {
            6890: "SMPL and SMPL-H need smpl_kid_template.npy or a SMIL model",
            10475: "SMPL-X needs smplx_kid_template.npy",
        }.get(body.num_vertices, "it must have the body's own vertices")
        given = {6890: "SMPL's", 10475: "SMPL-X's"}.get(len(infant) if infant.ndim else 0, "unknown")
        raise AssetError(
            f"an infant template of shape {infant.shape} ({given} topology) does not fit a body of "
            f"{body.num_vertices} vertices; {advice}"
        )
    _check_template(body.metadata.kind, infant)
    stature = float(np.ptp(infant[:, 1]))
    if body.metadata.kind != "custom" and stature >= _INFANT_BELOW:
        raise AssetError(
            f"this is {stature:.2f} m tall, an adult; as infant template give smpl_kid_template.npy (AGORA) "
            "or a SMIL model (smil_web.pkl)"
        )
    centred = (infant - infant.mean(axis=0)).astype(body.template.dtype)
    return body.replace(
        age_offsets=np.ones(1, body.template.dtype),
        age_templates=_freeze(centred[None]),
        metadata=dataclasses.replace(
            body.metadata, license=f"{body.metadata.license}; infant template: {license}"
        ),
    )


def extent_problem(template: np.ndarray) -> str | None:
    """Return what is wrong with the size of a template in metres, or None."""
    extent = float(np.ptp(template, axis=0).max(initial=0))
    if _EXTENTS[0] <= extent <= _EXTENTS[1]:
        return None
    return "the template measures {:.4g}; in metres a body measures {:g} to {:g}".format(extent, *_EXTENTS)


def _check_template(kind: str, template: np.ndarray) -> None:
    """Raise an `AssetError` for a template of another unit, such as millimetres, or that lies down."""
    check_finite("template", template)
    problem = None if kind == "custom" else extent_problem(template)
    if problem:
        raise AssetError(f"{problem}; {_ALL_LENGTHS}")
    _, height, depth = np.ptp(template, axis=0)
    if kind not in ("custom", "mano") and depth > height:
        raise AssetError(
            f"the template measures {height:.2f} m along y and {depth:.2f} m along z, so that it lies down; "
            "turn its y axis up, in all arrays of the file"
        )


def read_regressor(name: str, raw: RawFile) -> Regressor:
    """Return the keypoint regressor in a file that holds one matrix, dense or sparse."""
    content = raw.content
    if isinstance(content, Mapping) and len(content) == 1:
        (content,) = content.values()
    if isinstance(content, Unread):
        raise AssetError(content.reason)
    return named_regressor(name, content)


def named_regressor(name: str, matrix: Any) -> Regressor:
    """Return a matrix with one row per point as a regressor, with the point names of the set of that name."""
    if not (isinstance(matrix, np.ndarray) or scipy.sparse.issparse(matrix)) or matrix.ndim != 2:
        raise AssetError(
            f"regressors[{name!r}]: expected a matrix of shape (points, vertices), got "
            f"{getattr(matrix, 'shape', type(matrix).__name__)}"
        )
    known = REGRESSOR_NAMES | {"face51": FACE51, "contour17": CONTOUR17, "tips5": TIPS5}
    points = known.get(name) or tuple(f"{name}_{k}" for k in range(matrix.shape[0]))
    if len(points) != matrix.shape[0]:
        raise AssetError(
            f"regressors[{name!r}]: expected {len(points)} rows ({points[0]}, ... {points[-1]}), got shape "
            f"{matrix.shape}; if it is another set of points, give it another name"
        )
    return Regressor(points, scipy.sparse.csr_array(matrix))


def what_it_is(raw: RawFile) -> str:
    """Say what a file that is not a body holds, and what to get instead."""
    content = raw.content
    if isinstance(content, np.ndarray):
        owner = {6890: "SMPL", 10475: "SMPL-X"}.get(content.shape[0] if content.ndim else 0)
        if owner and content.shape[1:] == (3,):
            return (
                f"this is a set of vertices for {owner}, such as a kid template, not a body; give it as "
                f"infant_template beside a {owner} model"
            )
        if content.ndim == 2 and content.shape[1] in _TOPOLOGIES:
            return f"this is a matrix of shape {content.shape}, such as a regressor; give it in regressors"
        return f"this is a single array of shape {content.shape}, not a body; {_GET_MODEL}"
    if not isinstance(content, Mapping):
        return f"this holds a {type(content).__name__}, not a body; {_GET_MODEL}"
    keys = {str(key) for key in content}
    if {"means", "covars"} <= keys:
        return "this is a Gaussian mixture pose prior (of SMPLify), not a body; get the model file itself"
    if {"mean", "prec"} <= keys:
        return "this is SMIL's pose prior, not a body; the body is in smil_web.pkl"
    if keys & {"state_dict", "model", "model_state_dict", "optimizer", "epoch"}:
        return "this is a training checkpoint of a network, not a body; get the model file it was trained on"
    if keys & {"poses", "body_pose", "trans", "global_orient"}:
        return f"this is a motion or a set of fitted parameters, not a body; {_GET_MODEL}"
    if "skin_template_v" in keys or "skel_template_v" in keys:
        return "this is a SKEL model, which has other joints and pose parameters; get an SMPL model"
    missing = [key for key in _REQUIRED if key not in keys]
    shown = ", ".join(sorted(keys)[:12]) or "nothing"
    return f"this is not a body: {', '.join(missing)} missing; it holds {shown}; {_GET_MODEL}"


class _Entries:
    """The entries of a file, checked for their types."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    def array(self, name: str) -> np.ndarray:
        value = self.content[name]
        if isinstance(value, Unread):
            raise AssetError(f"{name} is {value.reason}; get the original file from the model's site")
        if isinstance(value, list) and value:
            with suppress(ValueError):  # lists of different lengths
                value = np.array(value)
        if not isinstance(value, np.ndarray) or value.dtype == object:
            raise AssetError(f"{name}: expected an array, got {type(self.content[name]).__name__}")
        return value

    def floats(self, name: str, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
        value = self.array(name)
        if value.dtype == np.float16:
            value = value.astype(np.float32)
        if value.dtype.kind != "f":
            raise AssetError(f"{name}: expected floating-point numbers, got {value.dtype}")
        if shape:
            check_shape(name, value.shape, shape)
        return value

    def indices(self, name: str) -> np.ndarray:
        """Return whole numbers, which BEV's packs store as floats."""
        value = self.array(name)
        if value.dtype.kind == "f":
            if not (np.isfinite(value).all() and np.array_equal(value, np.rint(value))):
                raise AssetError(f"{name}: expected whole numbers, got fractions or NaN")
        elif value.dtype.kind not in "iu":
            raise AssetError(f"{name}: expected whole numbers, got {value.dtype}")
        return value.astype(np.int64)  # 2^64 - 1, which uint64 makes of -1, becomes -1 again

    def matrix(self, name: str, shape: tuple[int | None, int]) -> scipy.sparse.csr_array:
        value = self.content[name]
        if scipy.sparse.issparse(value) and value.dtype == np.float16:
            value = value.astype(np.float32)
        if not scipy.sparse.issparse(value):
            value = self.floats(name, (None, None))
        check_shape(name, value.shape, shape)
        return scipy.sparse.csr_array(value)


def _parents(table: np.ndarray) -> Int[np.ndarray, " J"]:
    """Return parents from SMPL's table (2, J) or BEV's row (J,).

    The parent of the root is -1 or no joint: 2^32 - 1 in SMPL's files, 2^32 where they became float32.
    """
    if table.ndim == 0 or table.shape[-1] == 0 or table.shape[:-1] not in ((), (2,)):
        raise AssetError(f"kintree_table: expected shape (2, joints) or (joints,), got {table.shape}")
    parents = table if table.ndim == 1 else table[0]
    num_joints = len(parents)
    if table.ndim == 2 and not np.array_equal(table[1], np.arange(num_joints)):
        raise AssetError(f"kintree_table: expected joints 0 to {num_joints - 1} in order in its second row")
    if 0 < parents[0] < num_joints:
        raise AssetError(f"kintree_table: expected the root first, got parent {parents[0]} of joint 0")
    return np.concatenate([[-1], parents[1:]])


def _posedirs(posedirs: np.ndarray, num_vertices: int, num_joints: int) -> Float[np.ndarray, "V 3 P"]:
    """Return pose blend shapes (V, 3, P), from SMPL's array of that shape or BEV's (P, 3V)."""
    num_features = 9 * (num_joints - 1)
    if posedirs.shape == (num_features, 3 * num_vertices):
        return np.ascontiguousarray(posedirs.reshape(num_features, num_vertices, 3).transpose(1, 2, 0))
    if posedirs.shape != (num_vertices, 3, num_features):
        if posedirs.shape[-1] == 4 * (num_joints - 1) + 1:
            raise AssetError("this is a STAR model, posed by quaternions; get an SMPL model")
        check_shape(f"posedirs for {num_joints} joints", posedirs.shape, (num_vertices, 3, num_features))
    return posedirs


def _kind(parents: np.ndarray, num_vertices: int, template: np.ndarray) -> str:
    num_joints = len(parents)
    if (num_joints, num_vertices) == (5, 5023):
        raise AssetError("this is a FLAME head, not a body; get SMPL, SMIL, SMPL-H or SMPL-X")
    if num_joints == len(SMPL_PARENTS) and np.array_equal(parents, SMPL_PARENTS):
        return "smil" if np.ptp(template[:, 1]) < _INFANT_BELOW else "smpl"
    return {52: "smplh", 55: "smplx", 16: "mano"}.get(num_joints, "custom")


def _gender(raw: RawFile) -> str:
    """Read the gender from SMPL_FEMALE, basicmodel_m_lbs_..., or AMASS's folders smplh/female/model.npz."""
    words = re.split(r"[\W_]+", raw.path.stem.lower())  # also of "SMPL_FEMALE (1).pkl"
    letters = {gender[0] for gender in GENDERS}.intersection(words)
    for gender in GENDERS:
        if gender in words or gender[0] in letters or gender == raw.path.parent.name.lower():
            return gender
    return "neutral"


def _shape_names(kind: str, num_betas: int) -> tuple[str, ...]:
    """Return names of SMPL-X's shape directions, of which the last are expressions; else no names."""
    num_expressions = _NUM_EXPRESSIONS.get(num_betas, 0) if kind == "smplx" else 0
    if not num_expressions:
        return ()
    betas = (f"beta{i}" for i in range(num_betas - num_expressions))
    return (*betas, *(f"expression{i}" for i in range(num_expressions)))


def _regressors(entry: _Entries, num_vertices: int, dtype: np.dtype) -> dict[str, Regressor]:
    """Return surface points by vertex id, and the regressors in BEV's packs and HMR's copy."""
    regressors: dict[str, Regressor] = {}
    if "extra_joints_index" in entry.content:
        vertices = entry.indices("extra_joints_index")
        check_shape("extra_joints_index", vertices.shape, (len(SURFACE21),))
        check_indices("extra_joints_index", vertices, num_vertices)
        regressors["surface21"] = Regressor(SURFACE21, _surface_points(vertices, num_vertices, dtype))
    elif num_vertices in SURFACE_VERTICES:
        points = SURFACE_VERTICES[num_vertices]
        matrix = _surface_points(np.array(list(points.values())), num_vertices, dtype)
        regressors["surface21" if len(points) == len(SURFACE21) else "tips5"] = Regressor(
            tuple(points), matrix
        )
    if "lmk_faces_idx" in entry.content:
        shape = (len(FACE51),)
        faces, weights = _on_faces(entry, "lmk_faces_idx", "lmk_bary_coords", shape)
        regressors["face51"] = Regressor(FACE51, _face_points(entry, faces, weights, num_vertices))
    if "dynamic_lmk_faces_idx" in entry.content:
        faces, weights = (table[0] for table in _contour(entry).values())
        regressors["contour17"] = Regressor(CONTOUR17, _face_points(entry, faces, weights, num_vertices))
    if "J_regressor_extra9" in entry.content:
        matrix = entry.matrix("J_regressor_extra9", (None, num_vertices))
        regressors["extra9"] = named_regressor("extra9", matrix)
    if "J_regressor_h36m17" in entry.content:
        matrix = entry.matrix("J_regressor_h36m17", (len(H36M17_BEV), num_vertices))
        regressors["h36m17"] = Regressor(H36M17_BEV, matrix)
    if "cocoplus_regressor" in entry.content:
        matrix = entry.matrix("cocoplus_regressor", (None, num_vertices))
        num_points = len(matrix.indptr) - 1
        if num_points not in (14, 19):
            raise AssetError(f"cocoplus_regressor: expected 14 or 19 rows, got {num_points}")
        regressors[f"cocoplus{num_points}"] = Regressor(_COCOPLUS19[:num_points], matrix)
    return regressors


def _surface_points(vertices: np.ndarray, num_vertices: int, dtype: np.dtype) -> scipy.sparse.csr_array:
    ones, rows = np.ones(len(vertices), dtype), np.arange(len(vertices))
    return scipy.sparse.csr_array((ones, (rows, vertices)), shape=(len(vertices), num_vertices))


def _face_points(
    entry: _Entries, faces: np.ndarray, weights: np.ndarray, num_vertices: int
) -> scipy.sparse.csr_array:
    """Return points in triangles, by barycentric coordinates."""
    rows = np.repeat(np.arange(len(faces)), 3)
    corners = entry.indices("f")[faces].ravel()
    return scipy.sparse.csr_array((weights.ravel(), (rows, corners)), shape=(len(faces), num_vertices))


def _on_faces(
    entry: _Entries, faces: str, weights: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return triangles and barycentric coordinates of the points of a face."""
    if weights not in entry.content:
        raise AssetError(f"{weights}: missing, although there is {faces}; get the original file")
    triangles, coordinates = entry.indices(faces), entry.floats(weights, (*shape, 3))
    check_shape(faces, triangles.shape, shape)
    check_indices(faces, triangles, len(entry.array("f")))
    off = np.abs(coordinates.sum(-1) - 1).max()
    if not off < _BARYCENTRIC:
        raise AssetError(
            f"{weights}: expected barycentric coordinates, of sum 1, got sums that are {off:.2g} off"
        )
    return triangles, coordinates


def _contour(entry: _Entries) -> dict[str, np.ndarray]:
    """Return the contour of SMPL-X's face, whose points depend on the turn of the head."""
    if "dynamic_lmk_faces_idx" not in entry.content:
        return {}
    shape = (CONTOUR_TURNS, len(CONTOUR17))
    found = _on_faces(entry, "dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords", shape)
    return dict(zip(("contour_faces", "contour_weights"), found, strict=True))


def _hands(entry: _Entries, kind: str) -> dict[str, np.ndarray]:
    """Return means and principal components of the hands; SMPL-H files for AMASS have none."""
    sides = {"smplh": "lr", "smplx": "lr", "mano": ("",)}.get(kind, "")
    found: dict[str, np.ndarray] = {}
    for name, field, shape in (
        ("hands_mean", "hand_means", (3 * len(HAND_JOINTS["hand"]),)),
        ("hands_components", "hand_components", (None, 3 * len(HAND_JOINTS["hand"]))),
    ):
        names = [name + side for side in sides]
        given = {name: entry.floats(name) for name in names if name in entry.content}
        arrays = {name: array for name, array in given.items() if array.size}  # empty: the file has none
        if not arrays:
            continue
        if len(arrays) < len(names):
            missing = next(name for name in names if name not in arrays)
            raise AssetError(f"{missing}: missing, although there is {next(iter(arrays))}")
        first = next(iter(arrays.values()))
        for name, array in arrays.items():
            check_shape(name, array.shape, shape)
            check_shape(name, array.shape, first.shape)
        found[field] = np.stack([*arrays.values()])
    return found


def _freeze(array: np.ndarray) -> np.ndarray:
    """Make an array read-only if possible, so that the asset does not copy it."""
    if array.flags.c_contiguous and array.flags.writeable:
        array.flags.writeable = False
    return array
