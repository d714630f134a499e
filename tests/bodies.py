"""Random bodies, and SMPL's formulas written a second time, one vertex and one joint after the other."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation

from agebody.assets.asset import BodyAsset, Metadata, Regressor, sparse_weights
from agebody.assets.landmarks import CONTOUR17, FACE51, REGRESSOR_NAMES


def random_body(
    *,
    num_vertices: int = 12,
    parents: tuple[int, ...] = (-1, 0, 0, 2),
    num_betas: int = 3,
    age_offsets: tuple[float, ...] = (1.0,),
    posedirs: bool = True,
    seed: int = 0,
) -> BodyAsset:
    """A body of any size with nothing regular about it."""
    rng = np.random.default_rng(seed)
    num_joints = len(parents)

    def mixtures(rows: int, columns: int) -> np.ndarray:
        weights = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.6) + 1e-3
        return weights / weights.sum(axis=1, keepdims=True)

    skin_joints, skin_weights = sparse_weights(mixtures(num_vertices, num_joints))
    age_templates = 0.6 * rng.normal(size=(len(age_offsets), num_vertices, 3)) if age_offsets else None
    return BodyAsset(
        template=rng.normal(size=(num_vertices, 3)),
        faces=rng.integers(0, num_vertices, (2 * num_vertices, 3)),
        parents=np.array(parents),
        joint_names=tuple(f"joint{j}" for j in range(num_joints)),
        joint_regressor=sparse.csr_array(mixtures(num_joints, num_vertices)),
        skin_joints=skin_joints,
        skin_weights=skin_weights,
        shapedirs=0.2 * rng.normal(size=(num_vertices, 3, num_betas)),
        posedirs=0.1 * rng.normal(size=(num_vertices, 3, 9 * (num_joints - 1))) if posedirs else None,
        age_offsets=np.array(age_offsets, dtype=float),
        age_templates=age_templates,
        regressors={
            name: Regressor(points, sparse.csr_array(mixtures(len(points), num_vertices)))
            for name, points in REGRESSOR_NAMES.items()
        },
        metadata=Metadata(name="random"),
    )


def rest_surface(asset: BodyAsset, betas: np.ndarray, age_offset: float) -> np.ndarray:
    """Template at the age offset by `numpy.interp` (inside the anchors), plus betas."""
    vertices = asset.template.astype(float)
    if asset.age_templates is not None:
        knots = np.array([*asset.age_offsets, 0.0])
        order = np.argsort(knots)
        surfaces = np.concatenate((asset.age_templates, asset.template[None]))[order].reshape(len(knots), -1)
        vertices = np.array([np.interp(age_offset, knots[order], column) for column in surfaces.T]).reshape(
            -1, 3
        )
    return vertices + asset.shapedirs[:, :, : len(betas)] @ betas


def pose_body(
    asset: BodyAsset, betas: np.ndarray, rotvecs: np.ndarray, transl: np.ndarray, age_offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Posed vertices (V, 3) and joints (J, 3) in float64; rotation vectors (J, 3)."""
    rest = rest_surface(asset, betas, age_offset)
    joints = asset.joint_regressor @ rest
    matrices = [Rotation.from_rotvec(v).as_matrix() for v in rotvecs]
    feature = np.concatenate([(m - np.eye(3)).ravel() for m in matrices[1:]] or [np.zeros(0)])
    shaped = rest if asset.posedirs is None else rest + asset.posedirs @ feature
    world = []
    for joint, parent in enumerate(asset.parents):
        local = np.eye(4)
        local[:3, :3] = matrices[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0)
        world.append(world[parent] @ local if parent >= 0 else local)
    vertices = np.zeros_like(shaped)
    for v, (weights, movers) in enumerate(zip(asset.skin_weights, asset.skin_joints, strict=True)):
        for weight, j in zip(weights, movers, strict=True):
            vertices[v] += weight * (world[j][:3, :3] @ (shaped[v] - joints[j]) + world[j][:3, 3])
    return vertices + transl, np.array([w[:3, 3] for w in world]) + transl


def with_fingers(asset: BodyAsset, *, expressions: int = 0) -> BodyAsset:
    """SMPL-H's 52 joints, finger tips and a face on a body of SMPL's 24, for fits with hands; no correctives.

    Fingers are chains of points beyond the knuckles, which scale with the hand at every age. Their tips are
    vertices of their own. The points of the face lie around the nose.
    """
    rows = asset.joint_regressor.toarray()
    index = asset.joint_names.index
    skin = asset.dense_weights()
    names, fingers = list(asset.joint_names[:22]), ("index", "middle", "pinky", "ring", "thumb")
    new_rows, parents, tips, carriers = [*rows[:22]], list(asset.parents[:22]), [], []
    for side in ("left", "right"):
        wrist, hand = index(f"{side}_wrist"), index(f"{side}_hand")
        own = np.flatnonzero(skin[:, hand] > 0.5)
        front, back = (own[pick(asset.template[own, 2])] for pick in (np.argmax, np.argmin))
        across = np.zeros(asset.num_vertices)
        across[front], across[back] = 0.25, -0.25
        along = rows[hand] - rows[wrist]
        for place, finger in zip((1.0, 0.3, -1.0, -0.4, 1.2), fingers, strict=True):
            start = 0.3 if finger == "thumb" else 1.0
            for k in range(3):
                parents.append(wrist if k == 0 else len(names) - 1)
                names.append(f"{side}_{finger}{k + 1}")
                new_rows.append(rows[wrist] + (start + 0.3 * k) * along + place * across)
            tips.append(rows[wrist] + (start + 0.9) * along + place * across)
            carriers.append((f"{side}_{finger}", len(names) - 1))
    tips = np.array(tips)
    nose = asset.regressors["surface21"].matrix.toarray()[asset.regressors["surface21"].names.index("nose")]
    distance = np.linalg.norm(asset.template - nose @ asset.template, axis=1)
    rng, near = np.random.default_rng(0), np.argsort(distance)[:60]

    def grown(array: np.ndarray) -> np.ndarray:
        return np.concatenate((array, np.tensordot(tips, array, 1)))

    def wide(matrix: np.ndarray) -> np.ndarray:
        return np.pad(matrix, ((0, 0), (0, len(tips))))

    def sparse_rows(matrix: np.ndarray) -> sparse.csr_array:
        return sparse.csr_array(matrix.astype(asset.template.dtype))

    regressors = {}
    for name, regressor in asset.regressors.items():
        matrix = wide(regressor.matrix.toarray())
        for k, (tip, _) in enumerate(carriers):
            if tip in regressor.names:
                matrix[regressor.names.index(tip)] = np.eye(matrix.shape[1])[asset.num_vertices + k]
        regressors[name] = Regressor(regressor.names, sparse_rows(matrix))
    for name, points in (("face51", FACE51), ("contour17", CONTOUR17)):
        matrix = np.zeros((len(points), asset.num_vertices + len(tips)))
        matrix[:, near] = rng.dirichlet(np.full(len(near), 0.05), len(points))
        regressors[name] = Regressor(points, sparse_rows(matrix))
    weights = np.zeros((asset.num_vertices + len(tips), len(names)))
    weights[: asset.num_vertices, :22] = skin[:, :22]
    for side in ("left", "right"):
        weights[: asset.num_vertices, index(f"{side}_wrist")] += skin[:, index(f"{side}_hand")]
    weights[np.arange(asset.num_vertices, len(weights)), [joint for _, joint in carriers]] = 1
    skin_joints, skin_weights = sparse_weights(weights.astype(asset.template.dtype))
    shapes = grown(asset.shapedirs)
    if expressions:
        moves = np.zeros((len(shapes), 3, expressions))
        moves[near] = 0.004 * rng.normal(size=(len(near), 3, expressions))
        shapes = np.concatenate((shapes, moves), -1)
    shape_names = [f"shape{i}" for i in range(shapes.shape[-1] - expressions)]
    shape_names += [f"expression{i}" for i in range(expressions)]
    return asset.replace(
        template=grown(asset.template),
        parents=np.array(parents),
        joint_names=tuple(names),
        joint_regressor=sparse_rows(wide(np.array(new_rows))),
        skin_joints=skin_joints,
        skin_weights=skin_weights,
        shapedirs=shapes,
        posedirs=None,
        age_templates=None
        if asset.age_templates is None
        else np.stack([grown(t) for t in asset.age_templates]),
        regressors=regressors,
        metadata=Metadata(name=f"{asset.metadata.name} with fingers", shape_names=tuple(shape_names)),
    )
