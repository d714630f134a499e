"""Everyday poses by name, for demos and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from agebody.checks import read_number

Angles = tuple[float, float, float]
"""Angles about x, y and z [degrees]; the rotation of the joint is Rx Ry Rz.

From the T-pose, facing +z: a leg flexes forward by -x, a knee flexes by +x, the trunk and head bow by +x and
turn left by +y; the left arm is lowered by -z, then swings forward by -x; the left elbow flexes by -y, the
right by +y.
"""


def _read(table: str) -> dict[str, dict[str, Angles]]:
    """Read poses from lines "name: joint x y z, ..."; "*_joint" is the left one, mirrored on the right."""
    poses: dict[str, dict[str, Angles]] = {}
    for line in table.replace("\n    ", " ").strip().splitlines():
        name, _, joints = line.partition(": ")
        pose = poses[name] = {}
        for joint, *angles in map(str.split, joints.split(", ")):
            x, y, z = map(float, angles)
            left, right = joint.replace("*", "left"), joint.replace("*", "right")
            pose[right], pose[left] = (x, -y, -z), (x, y, z)  # for one joint, the second stays
    return poses


POSES = _read("""
standing: *_shoulder -6 8 -66, *_collar 0 0 -6, *_elbow 0 -20 0, *_hip -2 3 -3, *_knee 5 0 0,
    *_ankle -3 0 0, head 4 8 0, spine3 2 3 0
at ease: *_shoulder 4 14 -68, *_collar 0 0 -6, *_elbow 0 -14 0, pelvis 0 0 3, spine1 0 0 -4, spine2 1 0 -2,
    left_hip -14 10 2, left_knee 22 0 0, left_ankle -6 0 0, right_hip 0 -4 1, head 3 -12 3
hand on hip: pelvis 0 0 -3, spine1 0 0 4, spine2 0 0 2, right_hip -12 -12 -3, right_knee 20 0 0,
    right_ankle -6 0 0, left_hip 0 3 -2, left_shoulder 14 0 -44, left_elbow 0 -24 -92, left_wrist 0 0 24,
    right_shoulder 0 -10 70, right_elbow 0 16 0, head 0 10 -3
walking: left_hip -24 0 -1, left_knee 9 0 0, left_ankle -6 0 0, right_hip 14 0 1, right_knee 26 0 0,
    right_ankle 12 0 0, left_shoulder 22 6 -70, right_shoulder -26 -6 70, left_elbow 0 -18 0,
    right_elbow 0 34 0, spine1 3 -5 0, spine3 1 9 0, head -2 -4 0
waving: right_collar 0 0 -8, right_shoulder -10 0 -32, right_elbow 0 20 -74, right_wrist 0 0 -8,
    left_shoulder -4 10 -68, left_elbow 0 -18 0, spine1 0 0 -3, spine3 0 0 -4, left_hip -6 6 4,
    left_knee 9 0 0, right_hip 0 -4 -2, head 0 -6 -7
cheering: *_shoulder -12 0 50, *_collar 0 0 12, *_elbow 0 -16 26, *_hip -8 4 8, *_knee 14 0 0,
    *_ankle -6 0 0, spine2 -6 0 0, head -10 0 0
running: spine1 8 -6 0, spine3 4 12 0, left_hip -58 0 2, left_knee 70 0 0, left_ankle 4 0 0,
    right_hip 16 0 -2, right_knee 28 0 0, right_ankle 22 0 0, left_shoulder 42 8 -62,
    right_shoulder -38 -8 62, left_elbow 0 -78 0, right_elbow 0 84 0, head -10 -4 0
sitting: *_hip -84 6 24, *_knee 26 0 0, *_ankle 12 0 0, *_shoulder -34 10 -56, *_elbow 0 -30 0,
    spine1 10 0 0, spine2 4 0 0, head -8 14 0
crawling: pelvis 76 0 0, spine1 4 0 4, spine3 -6 0 -4, neck -26 0 0, head -34 8 0, left_shoulder 0 -92 -16,
    right_shoulder 0 66 10, left_elbow 0 -12 0, right_elbow 0 14 0, left_hip -66 0 10, right_hip -92 0 -10,
    left_knee 102 0 0, right_knee 104 0 0, *_ankle 42 0 0, *_wrist 0 0 70
lying: pelvis -90 0 0, *_hip -62 20 34, *_knee 84 0 0, *_ankle -4 0 0, *_shoulder 0 10 24, *_elbow 0 -54 40,
    spine1 8 0 0, head 4 34 0
kicking: pelvis -90 0 0, left_hip -96 10 26, left_knee 58 0 0, right_hip -42 -12 -24, right_knee 44 0 0,
    left_shoulder -16 -44 -16, right_shoulder 0 34 4, left_elbow 0 -54 0, right_elbow 0 62 0, spine1 8 0 0,
    head 8 18 0
""")
"""Poses by name: the angles of some joints."""
MORE_POSES = _read("""
on a chair: *_hip -86 4 6, *_knee 84 0 0, *_shoulder -30 -12 -58, *_elbow 0 -58 0, *_collar 0 0 -4,
    spine1 6 0 0, head 6 0 0
squatting: *_hip -112 14 14, *_knee 118 0 0, *_ankle -18 0 0, *_shoulder -14 -52 -34, *_elbow 0 -30 0,
    spine1 22 0 0, spine2 12 0 0, head -22 0 0
reaching: spine1 14 10 0, spine3 6 12 0, right_shoulder 0 74 12, right_elbow 0 16 0, left_shoulder 8 12 -58,
    left_elbow 0 -34 0, left_hip -18 4 0, left_knee 16 0 0, head -4 -10 0
hands together: *_collar 0 0 -4, *_shoulder -30 -34 -58, *_elbow 0 -96 0, *_hip 0 4 -2, *_knee 4 0 0,
    head 14 0 0
prone: pelvis 84 0 0, *_hip 6 18 16, *_knee 18 0 0, *_ankle 34 0 0, *_shoulder 0 -40 -12, *_elbow 0 -86 0,
    spine3 -14 0 0, neck -24 0 0, head -26 0 0
""")
"""Further everyday poses, which `random_people` blends with those of ``POSES``."""


def pose(name: str, joint_names: Sequence[str], *, heading: float = 0.0) -> Float[np.ndarray, "J 3"]:
    """Return a pose as one axis-angle vector per joint [rad], the root's first.

    Args:
        name: one of ``POSES``.
        joint_names: the joints of the body; those that the pose does not name stay at zero.
        heading: rotation of the whole body to its left, about +y [rad].
    """
    if name not in POSES:
        raise ValueError(f"name: expected one of {', '.join(POSES)}, got {name!r}")
    missing = sorted(set(POSES[name]) - set(joint_names))
    if missing:
        raise ValueError(
            f"joint_names: the pose {name!r} moves {', '.join(missing)}, which this body does not have"
        )
    angles = np.array([POSES[name].get(joint, (0.0, 0.0, 0.0)) for joint in joint_names])
    turns = Rotation.from_euler("XYZ", angles, degrees=True)
    what = "an angle from -2 pi to 2 pi [rad], not degrees"
    heading = read_number("heading", heading, what, -2 * math.pi, 2 * math.pi)
    root = Rotation.from_euler("Y", heading) * turns[0]
    return np.concatenate([root.as_rotvec()[None], turns[1:].as_rotvec()])
