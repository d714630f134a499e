"""Random bodies, and SMPL's formulas written a second time, one vertex and one joint after the other."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation

from agebody.assets.asset import BodyAsset, Metadata, Regressor, sparse_weights
from agebody.assets.landmarks import REGRESSOR_NAMES


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
