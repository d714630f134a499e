"""Load, save and export bodies."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy

from agebody.assets.asset import AssetError, BodyAsset, Metadata, Regressor, check_shape
from agebody.assets.container import Array, PathLike, RawFile, Unread, is_path, naming, read_raw, to_array
from agebody.assets.official import (
    GENDERS,
    kid_license,
    named_regressor,
    read_body,
    read_regressor,
    with_infant,
)
from agebody.assets.own_files import read_names, write_own_file
from agebody.files import check_suffix, replacing

FORMAT_VERSION = 3
HEADER_KEY = "agebody"
"""The entry of the safetensors ``__metadata__``: JSON text with everything that is not an array."""
SPARSE_PARTS = {"data": "float", "indices": "int", "indptr": "int"}
"""The arrays of a compressed sparse row matrix; each is stored under ``<matrix name>.<part>``."""
_TYPES = {"float": ("float32", "float64"), "int": ("int32",)}


def load_asset(
    path: PathLike | bytes,
    *,
    infant_template: PathLike | Array | None = None,
    regressors: Mapping[str, PathLike | Array] | None = None,
    gender: str | None = None,
) -> BodyAsset:
    """Read a body from any file of the SMPL family, or from one that `save_asset` wrote.

    Files are recognised by content, not by name: SMPL v1.0.0 and v1.1.0, SMIL, SMPL-H, SMPL-X and MANO as
    pickle or npz, the packs of BEV and ROMP (``SMPLA_NEUTRAL.pth``, ``smil_packed_info.pth``), HMR's copy.
    Nothing in a file is run, and ``chumpy`` is not needed. Arrays keep the precision of the file.

    Args:
        path: the file; ``~`` is the user's folder.
        infant_template: turns an adult body into SMPL-A (AGORA, CVPR 2021): ``smpl_kid_template.npy``, a SMIL
            model file, or vertices (V, 3) [m] as an array or a tensor. They are centred and become the age
            anchor at offset 1.
        regressors: keypoint regressors to attach, each a file (npy, npz, pickle) or a matrix (K, V), which
            may be a tensor or sparse. The names ``j19``, ``extra9``, ``h36m17`` and ``coco17`` are those of
            the known sets (HMR2's ``SMPL_to_J19.pkl``, SPIN's ``J_regressor_extra.npy`` and
            ``J_regressor_h36m.npy``, COCO).
        gender: ``neutral``, ``female`` or ``male``; read from the file's name if None.

    Raises:
        AssetError: a file is missing, unreadable, damaged, hostile, or of the wrong kind. The message names
            the file, its kind, and what to do.
    """
    if gender not in (None, *GENDERS):
        raise ValueError(f"gender: expected one of {GENDERS}, got {gender!r}")
    if not (
        regressors is None
        or (isinstance(regressors, Mapping) and all(isinstance(n, str) for n in regressors))
    ):
        raise TypeError(
            f"regressors: expected a dict of names and files or matrices, got {type(regressors).__name__}"
        )
    with naming(path):
        body = body_of(read_raw(path), gender=gender)
    if infant_template is not None:
        body = add_infant(body, infant_template)
    for name, source in (regressors or {}).items():
        body = _add_regressor(body, name, source)
    return body


def body_of(raw: RawFile, *, gender: str | None = None) -> BodyAsset:
    """Return the body in a file of `save_asset` or of the SMPL family; arguments of `read_body`."""
    if raw.own is None or HEADER_KEY not in raw.own.header["__metadata__"]:
        return read_body(raw, gender=gender)
    body = _read_own(raw)
    return body.replace(metadata=dataclasses.replace(body.metadata, gender=gender)) if gender else body


def save_asset(asset: BodyAsset, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a body in this library's format: a safetensors file, described in ``assets_spec/``.

    The file is written completely or not at all: an interrupted save leaves an existing file unchanged.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        OSError: the file cannot be written there.
    """
    header: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    for field in dataclasses.fields(asset):
        value = getattr(asset, field.name)
        if value is None:
            continue
        match field.metadata["kind"]:
            case "float" | "int":
                tensors[field.name] = value
            case "sparse":
                tensors |= _parts(field.name, value)
            case "text":
                header[field.name] = list(value)
            case "regressors":
                header[field.name] = {name: list(regressor.names) for name, regressor in value.items()}
                for name, regressor in value.items():
                    tensors |= _parts(f"{field.name}.{name}", regressor.matrix)
            case "metadata":
                header[field.name] = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
                header[field.name]["sources"] = dict(value.sources)
    write_own_file(tensors, HEADER_KEY, FORMAT_VERSION, header, path, overwrite=overwrite)


def export_smpl(asset: BodyAsset, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a body with SMPL's entry names, as an ``.npz`` or ``.pkl`` file; errors as in `save_asset`.

    `smplx.SMPL` opens the pickle, without chumpy. It takes an npz file as
    ``smplx.SMPL("", data_struct=smplx.utils.Struct(**np.load(path)))``. The format has no age templates and
    no keypoint regressors; save an age template beside it with
    ``np.save("smpl_kid_template.npy", asset.age_templates[-1])``.
    """
    suffix = check_suffix(path, ".npz", ".pkl")
    arrays: dict[str, Any] = smpl_arrays(asset)
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        if suffix == ".npz":
            np.savez(file, **arrays)
        else:
            pickle.dump(arrays, file, protocol=2)


def add_infant(body: BodyAsset, infant: Any) -> BodyAsset:
    """Return the body with an infant template: an array, or the file of a kid template or of SMIL."""
    if not is_path(infant):
        with naming("infant_template"):
            return with_infant(body, to_array(infant))
    with naming(infant):
        raw = read_raw(infant)
        if isinstance(raw.content, np.ndarray):
            grown = with_infant(body, raw.content, kid_license(raw))
        else:
            infant_body = body_of(raw)
            grown = with_infant(body, infant_body.template, infant_body.metadata.license)
        return _with_source(grown, raw.path.name, raw.sha256)


def _add_regressor(body: BodyAsset, name: str, source: Any) -> BodyAsset:
    if not is_path(source):
        return body.replace(regressors={**body.regressors, name: named_regressor(name, to_array(source))})
    with naming(source):
        raw = read_raw(source)
        body = body.replace(regressors={**body.regressors, name: read_regressor(name, raw)})
        return _with_source(body, raw.path.name, raw.sha256)


def _with_source(body: BodyAsset, name: str, sha256: str) -> BodyAsset:
    sources = {**body.metadata.sources, name: sha256}
    return body.replace(metadata=dataclasses.replace(body.metadata, sources=sources))


def _parts(name: str, matrix: scipy.sparse.csr_array) -> dict[str, np.ndarray]:
    values = {part: getattr(matrix, part) for part in SPARSE_PARTS}
    return {
        f"{name}.{part}": value if part == "data" else value.astype(np.int32)
        for part, value in values.items()
    }


def _read_own(raw: RawFile) -> BodyAsset:
    """Return the body in a file of `save_asset`, which must have all that one has, and nothing else."""
    assert raw.own is not None
    texts = raw.own.description(HEADER_KEY, FORMAT_VERSION, unchecked=1)
    assert texts is not None
    left = {name: texts[name] for name in texts if name not in ("format_version", "sha256")} | raw.content
    values: dict[str, Any] = {}
    for field in dataclasses.fields(BodyAsset):
        name, kind = field.name, field.metadata["kind"]
        match kind:
            case "float" | "int":
                absent = (field.default, field.default_factory) == (dataclasses.MISSING, dataclasses.MISSING)
                if name in left or absent:
                    values[name] = _take_array(left, name, kind, field.metadata["dims"])
            case "sparse":
                values[name] = _matrix(left, name, len(values["template"]))
            case "text":
                values[name] = read_names(name, left.pop(name, None))
            case "regressors":
                names = {
                    key: read_names(f"{name}.{key}", its) for key, its in _take(left, name, dict).items()
                }
                values[name] = {
                    key: Regressor(points, _matrix(left, f"{name}.{key}", len(values["template"])))
                    for key, points in names.items()
                }
            case "metadata":
                values[name] = _read_metadata(_take(left, name, dict))
    if left:
        raise AssetError(f"{next(iter(left))}: not an entry of a body; get or save the file again")
    return BodyAsset(**values)


def _take(left: dict[str, Any], name: str, kind: type) -> Any:
    """Remove an entry of a file, and return it."""
    value = left.pop(name, None)
    if not isinstance(value, kind):
        expected = "an array" if kind is np.ndarray else "a JSON object"
        got = value.reason if isinstance(value, Unread) else "nothing" if value is None else repr(value)[:80]
        raise AssetError(f"{name}: expected {expected}, got {got}; get or save the file again")
    return value


def _take_array(left: dict[str, Any], name: str, kind: str, dims: Iterable[str | int]) -> np.ndarray:
    value = _take(left, name, np.ndarray)
    if str(value.dtype) not in _TYPES[kind]:
        expected = " or ".join(_TYPES[kind])
        raise AssetError(f"{name}: expected {expected}, got {value.dtype}; get or save the file again")
    check_shape(name, value.shape, tuple(dim if isinstance(dim, int) else None for dim in dims))
    return value


def _read_metadata(texts: dict[str, Any]) -> Metadata:
    known = [field.name for field in dataclasses.fields(Metadata)]
    if {*texts} != {*known}:
        got = ", ".join(texts)
        raise AssetError(f"metadata: expected {', '.join(known)}, got {got}; get or save the file again")
    sources = _take(texts, "sources", dict)
    shape_names = read_names("shape_names", texts.pop("shape_names"))
    if not all(isinstance(text, str) for text in (*texts.values(), *sources.values())):
        raise AssetError("metadata: expected texts; get or save the file again")
    return Metadata(**texts, shape_names=shape_names, sources=sources)


def _matrix(left: dict[str, Any], name: str, num_columns: int) -> scipy.sparse.csr_array:
    parts = (_take_array(left, f"{name}.{part}", kind, "N") for part, kind in SPARSE_PARTS.items())
    data, indices, indptr = parts
    try:
        matrix = scipy.sparse.csr_array((data, indices, indptr), shape=(len(indptr) - 1, num_columns))
        matrix.check_format(full_check=True)
    except (ValueError, IndexError) as error:
        raise AssetError(f"{name}: not a sparse matrix ({error}); get or save the file again") from error
    return matrix


def smpl_arrays(asset: BodyAsset) -> dict[str, np.ndarray]:
    """Return a body under SMPL's entry names, as in its v1.0.0 files; hands and face as in SMPL-X's."""
    num_features = 9 * (asset.num_joints - 1)
    posedirs = asset.posedirs
    if posedirs is None:
        posedirs = np.zeros((asset.num_vertices, 3, num_features), asset.template.dtype)
    parents = asset.parents.astype(np.uint32)  # the parent of the root becomes 2^32 - 1, as in SMPL
    others: dict[str, np.ndarray] = {}
    for name, hands in (("hands_mean", asset.hand_means), ("hands_components", asset.hand_components)):
        sides = ("",) if "hand" in asset.pose_parts else ("l", "r")
        others |= (
            {} if hands is None else {name + side: hand for side, hand in zip(sides, hands, strict=True)}
        )
    if "face51" in asset.regressors:
        names = ("lmk_faces_idx", "lmk_bary_coords")
        others |= dict(zip(names, _in_triangles(asset.regressors["face51"].matrix, asset.faces), strict=True))
    if asset.contour_faces is not None and asset.contour_weights is not None:
        others |= {
            "dynamic_lmk_faces_idx": asset.contour_faces.astype(np.int64),
            "dynamic_lmk_bary_coords": asset.contour_weights,
        }
    return others | {
        "v_template": asset.template,
        "f": asset.faces.astype(np.uint32),
        "shapedirs": asset.shapedirs,
        "posedirs": posedirs,
        "J_regressor": asset.joint_regressor.toarray(),
        "J": asset.joint_regressor @ asset.template,
        "weights": asset.dense_weights(),
        "kintree_table": np.stack([parents, np.arange(asset.num_joints, dtype=np.uint32)]),
        "bs_style": np.array("lbs"),
        "bs_type": np.array("lrotmin"),
    }


def _in_triangles(matrix: scipy.sparse.csr_array, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the triangle of each point, and its barycentric coordinates there."""
    found, coordinates = [], []
    for row in range(len(matrix.indptr) - 1):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        share = dict(zip(matrix.indices[part].tolist(), matrix.data[part], strict=True))
        inside = np.isin(faces, [corner for corner, weight in share.items() if weight]).sum(1)
        found.append(inside.argmax())
        coordinates.append([share.get(corner, 0.0) for corner in faces[found[-1]].tolist()])
    return np.array(found), np.array(coordinates, matrix.dtype)
