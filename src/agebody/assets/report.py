"""Describe a body file and its problems."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from agebody.assets.asset import AssetError, BodyAsset
from agebody.assets.container import PathLike, naming, read_bytes, read_raw
from agebody.assets.io import FORMAT_VERSION, body_of
from agebody.assets.official import HANDS_FROM, TITLES, extent_problem


@dataclass(frozen=True)
class AssetReport:
    """The report of `inspect_asset`; the sizes are None if the file is not a body."""

    path: str
    variant: str
    """Description of the file, such as "SMPL model (pickle)"."""
    sha256: str | None = None
    num_vertices: int | None = None
    num_faces: int | None = None
    num_joints: int | None = None
    num_betas: int | None = None
    num_expression: int | None = None
    pose_parts: dict[str, int] = field(default_factory=dict)
    """Number of joints of each part of the pose, such as body, jaw and left_hand."""
    num_hand_components: int | None = None
    """Number of principal components of each hand's pose; None without them."""
    has_posedirs: bool | None = None
    dtype: str | None = None
    age_offsets: tuple[float, ...] = ()
    regressors: dict[str, int] = field(default_factory=dict)
    """Number of points of each keypoint regressor."""
    gender: str | None = None
    license: str | None = None
    problems: list[str] = field(default_factory=list)


def inspect_asset(path: PathLike) -> AssetReport:
    """Describe a file: a body with its sizes, or something else, and its problems.

    Raises:
        AssetError: the file does not exist or cannot be read. A file that is not a body gives a report.
    """
    with naming(path):
        sha256 = hashlib.sha256(read_bytes(path)).hexdigest()
    try:
        raw = read_raw(path)
        body = body_of(raw)
        container = raw.container if raw.own is None else f"agebody format {FORMAT_VERSION}"
    except AssetError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return AssetReport(str(path), "not a body", sha256, problems=[reason])
    return describe_body(body, str(path), container, sha256)


def describe_body(body: BodyAsset, path: str, container: str, sha256: str | None = None) -> AssetReport:
    """Return the report of a body, of a file or built in."""
    title = TITLES.get(body.metadata.kind, body.metadata.kind)
    return AssetReport(
        path=path,
        variant=f"{title} model ({container})",
        sha256=sha256,
        num_vertices=body.num_vertices,
        num_faces=len(body.faces),
        num_joints=body.num_joints,
        num_betas=body.num_betas,
        num_expression=body.num_expression,
        pose_parts={name: rows.stop - rows.start for name, rows in body.pose_parts.items()},
        num_hand_components=None if body.hand_components is None else body.hand_components.shape[1],
        has_posedirs=body.posedirs is not None,
        dtype=str(body.template.dtype),
        age_offsets=tuple(body.age_offsets.tolist()),
        regressors={name: len(regressor.names) for name, regressor in body.regressors.items()},
        gender=body.metadata.gender,
        license=body.metadata.license,
        problems=find_problems(body),
    )


def find_problems(body: BodyAsset) -> list[str]:
    """Return the problems of a valid body, in words."""
    problems = [*_number_problems(body), *_mesh_problems(body), *_regressor_problems(body)]
    if body.hand_means is not None and body.hand_means.any():
        problems.append(
            "the mean hand pose is not applied: a zero pose has flat hands, as in smplx with "
            "flat_hand_mean=True; agebody.join_pose adds it"
        )
    elif any("hand" in part for part in body.pose_parts) and body.hand_means is None:
        problems.append(f"no hand means and components (hands_meanl, hands_componentsl): {HANDS_FROM}")
    if not body.has_age and body.metadata.kind not in ("smil", "mano"):
        problems.append("no age template: betas only, so it stays an adult; load it with infant_template=")
    if body.posedirs is None:
        problems.append("no pose blend shapes: joints will lose volume when bent")
    return problems


def _number_problems(body: BodyAsset) -> list[str]:
    problems = []
    arrays = {"template": body.template, "shapedirs": body.shapedirs, "skin_weights": body.skin_weights}
    arrays |= {} if body.posedirs is None else {"posedirs": body.posedirs}
    if len({array.dtype for array in arrays.values()}) > 1:
        mix = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        problems.append(f"mixed precision: {mix}")
    extent = extent_problem(body.template)
    problems += [extent] if extent else []
    drift = np.abs(body.skin_weights.sum(axis=1, dtype=np.float64) - 1)
    if drift.max() > 1e-6:
        count = np.count_nonzero(drift > 1e-6)
        problems.append(f"skinning weights of {count} vertices do not sum to 1, off by {drift.max():.2g}")
    empty = np.flatnonzero(~np.any(body.shapedirs, axis=(0, 1)))
    if len(empty):
        problems.append(f"{len(empty)} of {body.num_betas} shape directions are zero, first {empty[0]}")
    return problems


def _mesh_problems(body: BodyAsset) -> list[str]:
    """Check that each edge occurs once in each direction, as in a closed, consistently oriented mesh."""
    problems = []
    faces = body.faces.astype(np.int64)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forth = np.sort(edges @ np.array([body.num_vertices, 1]))
    back = np.sort(edges @ np.array([1, body.num_vertices]))
    unpaired = np.setdiff1d(forth, back, assume_unique=False)
    if len(unpaired) or len(np.unique(forth)) < len(forth):
        problems.append(f"the mesh is not closed: {len(unpaired)} edges have a face on one side only")
    else:
        a, b, c = (body.template[faces[:, i]] for i in range(3))
        if np.einsum("fi,fi->", a, np.cross(b, c)) < 0:
            problems.append("the faces are inside out: their corners run clockwise, seen from outside")
    unused = body.num_vertices - len(np.unique(faces))
    if unused:
        problems.append(f"{unused} vertices belong to no face")
    return problems


def _regressor_problems(body: BodyAsset) -> list[str]:
    named = {"joint_regressor": (body.joint_names, body.joint_regressor)}
    named |= {f"regressor {name}": regressor for name, regressor in body.regressors.items()}
    problems = []
    for name, (points, matrix) in named.items():
        drift = np.abs(np.asarray(matrix.sum(axis=1)).ravel() - 1)
        wrong = np.flatnonzero(drift > 1e-4)
        if len(wrong):
            problems.append(
                f"{name}: {len(wrong)} rows do not sum to 1, so these points move with the origin; "
                f"{points[wrong[0]]} is off by {drift[wrong[0]]:.2g}"
            )
    return problems
