"""The built-in body: regressors, skinning, pose and shape directions of the mesh that `mesh` makes."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import scipy
from jaxtyping import Float, Int

from agebody.assets.asset import (
    SMPL_JOINT_NAMES,
    SMPL_PARENTS,
    BodyAsset,
    Metadata,
    Regressor,
    sparse_weights,
)
from agebody.assets.landmarks import REGRESSOR_NAMES
from agebody.assets.mannequin import figure, mesh

DENSITY = 1010.0
"""Density of a human body [kg/m^3]."""

SHAPE_SD = {
    "stature": 0.069,  # m, everything in proportion
    "weight": 12.0,  # kg of fat
    "leg_length": 0.030,  # m, at the expense of the trunk
    "shoulder_width": 0.018,  # m, between the acromions
    "hip_width": 0.020,  # m
    "chest": 0.060,  # m of girth
    "waist": 0.080,  # m of girth
    "arm_length": 0.030,  # m, shoulder to wrist
    "head_size": 0.016,  # m of circumference
    "muscularity": 0.005,  # m at the thickest muscles
}
"""The shape directions, and how much one unit (a standard deviation) adds."""

ADULT_STATURE, HEAD_GIRTH = 1.72, 0.57
"""[m]"""

BEND_LOSS = math.sqrt(2.0) - 1.0
"""Relative loss of distance from the joint by linear blending, for equal weights of two bones at 90 degrees:
the mean of the two rotated vectors is shorter by cos 45, and 1 / cos 45 = 1 + BEND_LOSS."""

FULLNESS = {"elbow": 1.0, "knee": 1.0, "shoulder": 0.2}
"""Share of that loss that is restored; half at the other joints, where the flesh folds instead."""


class _Half:
    """The left half of the body. Fields are computed on it and mirrored, so that both sides are equal."""

    def __init__(self) -> None:
        self.net = mesh.net()
        self.adult = mesh.surface(self.net, infant=False)
        self.infant = mesh.surface(self.net, infant=True)
        self.size = len(self.net.seam)
        free = np.flatnonzero(~self.net.seam)
        mirror = np.arange(self.size)
        mirror[free] = self.size + np.arange(len(free))
        self.mirror = np.concatenate([mirror, free])
        """(V,) mirror image of each vertex."""
        self.free = free

    def mirrored(self, field: Float[np.ndarray, "3 H"]) -> Float[np.ndarray, "V 3"]:
        """Return a vector field on the whole body."""
        return np.concatenate([field, field[:, self.free] * np.array([[-1.0], [1.0], [1.0]])], axis=1).T

    def quads(self) -> Int[np.ndarray, "Q 4"]:
        return np.concatenate([self.net.quads, self.mirror[self.net.quads[:, ::-1]]])

    def faces(self) -> Int[np.ndarray, "F 3"]:
        left = np.concatenate([self.net.quads[:, [0, 1, 2]], self.net.quads[:, [0, 2, 3]]])
        return np.concatenate([left, self.mirror[left[:, ::-1]]])


def _ramp(x: Float[np.ndarray, "*n"], low: float, high: float) -> Float[np.ndarray, "*n"]:
    """Return 0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _bump(x: Float[np.ndarray, "*n"], low: float, middle: float, high: float) -> Float[np.ndarray, "*n"]:
    """Return 1 at the middle, falling smoothly to 0 at both ends."""
    return np.where(x < middle, _ramp(x, low, middle), 1.0 - _ramp(x, middle, high))


def _limb(half: _Half, limb: str) -> np.ndarray:
    """Return which vertices of the half belong to the arm or the leg."""
    regions = [i for i, name in enumerate(half.net.regions) if name not in ("head", "torso")]
    return np.isin(half.net.region, [i for i in regions if mesh.ruler_of(half.net.regions[i]) == limb])


# Points ---------------------------------------------------------------------------------------------------


class _Points:
    """Rows of regressors: dense vectors (V,), non-negative, with sum 1."""

    def __init__(self, half: _Half) -> None:
        self.half = half
        self.vertices = half.mirrored(half.adult)
        rows = [row[row >= 0] for row in half.net.rings["trunk"]]
        self.around = [self.both(row[::4]) for row in rows]
        self.front = [self.both(row[:5:2]) for row in rows]
        self.back = [self.both(row[-5::2]) for row in rows]

    def both(self, ids: np.ndarray) -> np.ndarray:
        return np.unique(np.concatenate([ids, self.half.mirror[ids]]))

    def mean(self, ids: np.ndarray) -> np.ndarray:
        row = np.zeros(len(self.vertices))
        row[ids] = 1.0 / len(ids)
        return row

    def nearest(self, point: tuple[float, float, float], count: int = 4) -> np.ndarray:
        """Return the mean of the vertices nearest to a point of the adult."""
        x, y, z = (self.vertices - np.array(point)).T
        return self.mean(np.argsort(x * x + y * y + z * z, kind="stable")[:count])

    def position(self, row: np.ndarray) -> np.ndarray:
        ids = np.flatnonzero(row)
        return np.array([math.fsum(row[ids] * self.vertices[ids, i]) for i in range(3)])

    def flipped(self, row: np.ndarray) -> np.ndarray:
        return row[self.half.mirror]

    def blend(self, a: np.ndarray, b: np.ndarray, axis: int, value: float) -> np.ndarray:
        """Return the point between a and b with this coordinate on the adult; the nearer end beyond them."""
        low, high = self.position(a)[axis], self.position(b)[axis]
        t = min(max((value - low) / (high - low), 0.0), 1.0)
        return (1.0 - t) * a + t * b

    def along(self, rings: list[np.ndarray], axis: int, value: float) -> np.ndarray:
        """Return the middle of a limb where its coordinate along the axis has this value."""
        rings = [ring[ring >= 0] for ring in rings]
        at = [math.fsum(self.vertices[ring, axis]) / len(ring) for ring in rings]
        outside = [max(min(a, b) - value, value - max(a, b), 0.0) for a, b in pairwise(at)]
        k = outside.index(min(outside))
        return self.blend(self.mean(rings[k]), self.mean(rings[k + 1]), axis, value)

    def trunk(self, y: float, z: float) -> np.ndarray:
        """Return a point in the middle plane of the trunk or head."""
        middle = self.along(self.around, 1, y)
        end = self.back if z < self.position(middle)[2] else self.front
        return self.blend(middle, self.along(end, 1, y), 2, z)


def _joint_rows(points: _Points) -> dict[str, np.ndarray]:
    rings = points.half.net.rings
    arm, leg = ([ring[::2] for ring in rings[limb]] for limb in ("arm", "leg"))
    rows = {name: points.trunk(*figure.SPINE_JOINTS[name]) for name in figure.SPINE_JOINTS}
    rows["left_hip"] = points.blend(
        points.mean(rings["trunk"][0][[0, -1]]), points.along(leg[:4], 1, 0.865), 0, 0.085
    )
    rows["left_knee"] = points.along(leg, 1, 0.487)
    rows["left_ankle"] = points.along(leg, 1, 0.088)
    rows["left_foot"] = points.along(leg[figure.FOOT_FROM_ROW :], 2, 0.085)
    rows["left_shoulder"] = points.along(arm[:4], 0, 0.178)
    rows["left_collar"] = points.blend(points.trunk(1.38, -0.02), rows["left_shoulder"], 0, 0.070)
    rows["left_elbow"] = points.along(arm, 0, 0.435)
    rows["left_wrist"] = points.along(arm, 0, 0.685)
    rows["left_hand"] = points.along(arm[figure.HAND_FROM_ROW :], 0, 0.760)
    for name in [name for name in rows if name.startswith("left_")]:
        rows["right_" + name.removeprefix("left_")] = points.flipped(rows[name])
    return rows


def _surface_rows(points: _Points) -> dict[str, np.ndarray]:
    rings = points.half.net.rings
    rows = {"left_" + name: points.nearest(point) for name, point in figure.LANDMARKS.items()}
    for digit in (*figure.FINGERS, figure.THUMB, figure.TOES[0], figure.TOES[-1]):
        rows["left_" + digit.region] = points.mean(rings[digit.region][-1])
    for name in list(rows):
        rows["right_" + name.removeprefix("left_")] = points.flipped(rows[name])
    rows["nose"] = points.nearest(figure.NOSE, 1)
    rows["head_top"] = points.nearest(figure.HEAD_TOP)
    return rows


def _regressors(points: _Points, rows: dict[str, np.ndarray]) -> dict[str, Regressor]:
    trunk = points.trunk
    same = {"right_hip_lsp": "right_hip", "left_hip_lsp": "left_hip", "head_top_lsp": "head_top"}
    rows = rows | {name: rows[other] for name, other in (same | {"pelvis_mpii": "pelvis"}).items()}
    rows |= {"neck_lsp": trunk(1.435, -0.01), "thorax_mpii": trunk(1.39, -0.01)}
    rows |= {"spine_h36m": trunk(1.17, -0.01), "jaw_h36m": trunk(1.51, 0.02), "head_h36m": trunk(1.63, 0.0)}
    # What Human3.6M's skeleton calls the nose lies in the jaw, half way from the neck to the head's middle.
    h36m = rows | {
        "spine": rows["spine_h36m"],
        "neck": rows["thorax_mpii"],
        "nose": rows["jaw_h36m"],
        "head": rows["head_h36m"],
    }
    tables = dict.fromkeys(REGRESSOR_NAMES, rows) | {"h36m17": h36m}
    return {
        name: Regressor(names, scipy.sparse.csr_array(np.stack([tables[name][row] for row in names])))
        for name, names in REGRESSOR_NAMES.items()
    }


# Skinning -------------------------------------------------------------------------------------------------


def _chain(share: dict[str, np.ndarray], taken: np.ndarray, bones: list[tuple[str, np.ndarray]]) -> None:
    """Give a limb its part of every vertex, ``taken``; each bone passes the given part on to the next one."""
    for name in share:
        share[name] = share[name] * (1.0 - taken)
    for name, passed_on in bones:
        share[name] = share[name] + taken * (1.0 - passed_on)
        taken = taken * passed_on


def _skin(half: _Half) -> Float[np.ndarray, "V J"]:
    """Return weights that pass from bone to bone at joints, smoothed over the mesh; at most 4 per vertex."""
    x, y, z = half.adult
    none = np.zeros(half.size)
    share: dict[str, np.ndarray] = dict.fromkeys(SMPL_JOINT_NAMES, none)
    passes = {name: _ramp(y + lean * z, low, high) for name, (low, high, lean) in figure.SPINE_PASSES.items()}
    _chain(share, np.ones(half.size), list(zip(["pelvis", *passes], [*passes.values(), none], strict=True)))

    arm = _limb(half, "arm")
    collar = np.where(arm, 1.0, _ramp(x, 0.025, 0.120) * _ramp(y, 1.26, 1.37) * (1.0 - _ramp(y, 1.45, 1.50)))
    shoulder = _ramp(x, 0.125, 0.225) * np.where(arm, 1.0, _ramp(y, 1.28, 1.38))
    elbow, wrist, hand = _ramp(x, 0.393, 0.477), _ramp(x, 0.660, 0.712), _ramp(x, 0.750, 0.795)
    bones = ["left_collar", "left_shoulder", "left_elbow", "left_wrist", "left_hand"]
    _chain(share, collar, list(zip(bones, [shoulder, elbow, wrist, hand, none], strict=True)))

    groin = 0.830 + 0.50 * np.minimum(x, 0.16)
    toes = np.where(_limb(half, "leg") & (y < 0.08), _ramp(z, 0.075, 0.115), 0.0)
    knee, ankle = 1.0 - _ramp(y, 0.430, 0.545), 1.0 - _ramp(y - 0.4 * z, 0.070, 0.130)
    bones = ["left_hip", "left_knee", "left_ankle", "left_foot"]
    leg = 1.0 - _ramp(y - groin, -0.065, 0.065)
    _chain(share, leg, list(zip(bones, [knee, ankle, toes, none], strict=True)))
    across = share["left_hip"] * (0.5 - 0.5 * _ramp(x, 0.0, 0.03))  # the middle belongs to both thighs
    share["left_hip"], share["right_hip"] = share["left_hip"] - across, across

    swap = [SMPL_JOINT_NAMES.index(_other_side(name)) for name in SMPL_JOINT_NAMES]
    dense = np.stack([share[name] for name in SMPL_JOINT_NAMES], axis=1)
    dense = _diffused(np.concatenate([dense, dense[half.free][:, swap]]), half)
    dense = 0.5 * (dense + dense[half.mirror][:, swap])
    dense = np.where((dense > np.sort(dense, axis=1)[:, -5:-4]) & (dense > 2e-3), dense, 0.0)
    return dense / _row_sum(dense)


def _other_side(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"left": "right_", "right": "left_"}[side] + rest if side in ("left", "right") else name


def _row_sum(dense: np.ndarray) -> np.ndarray:
    """Return the sum over the last axis, in a fixed order."""
    total = dense[..., :1]
    for j in range(1, dense.shape[-1]):
        total = total + dense[..., j : j + 1]
    return total


def _diffused(dense: np.ndarray, half: _Half) -> np.ndarray:
    around, values = mesh.neighbours(half.quads(), len(dense)), dense.T
    for _ in range(4):
        values = mesh.add_neighbours(values, values, around) / (around.shape[1] + 1)
    return values.T


def _posedirs(
    vertices: Float[np.ndarray, "V 3"], joints: Float[np.ndarray, "J 3"], weights: Float[np.ndarray, "V J"]
) -> Float[np.ndarray, "V 3 P"]:
    """Return pose directions that restore the roundness which linear blending takes from a bent joint.

    A vertex at r from a joint that moves it with rotation R and weight w is blended to (1 - w) r + w R r.
    Across the axis that is shorter than r, most at w = 1/2. For a rotation about any axis
    (I - sym R) r = (1 - cos) r_across, so that adding BEND_LOSS * 4 w (1 - w) (I - sym R) r lengthens it
    again. This is linear in R - I, zero at rest, exact at 90 degrees, and two thirds of the loss at 120.
    """
    below = weights.copy()
    for joint in range(len(SMPL_PARENTS) - 1, 0, -1):
        below[:, SMPL_PARENTS[joint]] += below[:, joint]
    out = np.zeros((len(vertices), 3, len(SMPL_PARENTS) - 1, 3, 3), np.float32)
    for joint in range(1, len(SMPL_PARENTS)):
        w = np.clip(below[:, joint], 0.0, 1.0)
        gain = -BEND_LOSS * FULLNESS.get(SMPL_JOINT_NAMES[joint].split("_")[-1], 0.5) * 4.0 * w * (1.0 - w)
        moved = np.flatnonzero(gain < -1e-4)
        r = gain[moved, None] * (vertices[moved] - joints[joint])
        for i in range(3):
            for k in range(3):
                out[moved, i, joint - 1, i, k] += 0.5 * r[:, k]
                out[moved, i, joint - 1, k, i] += 0.5 * r[:, k]
    return out.reshape(len(vertices), 3, -1)


# Shape ----------------------------------------------------------------------------------------------------


def _shapedirs(
    half: _Half, weights: Float[np.ndarray, "H J"], mean: np.ndarray
) -> Float[np.ndarray, "V 3 S"]:
    """Return one displacement field per name of SHAPE_SD, computed on the left half and mirrored."""
    p = half.adult
    x, y, z = p
    normal = _soft_normals(half)

    def of(*names: str) -> np.ndarray:
        return sum((weights[:, SMPL_JOINT_NAMES.index(name)] for name in names), np.zeros(half.size))

    def along(axis: int, amount: np.ndarray) -> np.ndarray:
        return np.stack([amount if i == axis else 0 * amount for i in range(3)])

    head, neck, upper_arm, forearm = of("head"), of("neck"), of("left_shoulder"), of("left_elbow")
    torso = of("pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar")
    thigh, shin = of("left_hip", "right_hip"), of("left_knee")
    soft = torso + 0.5 * neck + 0.12 * head + 0.5 * upper_arm + 0.35 * forearm + 0.75 * thigh + 0.4 * shin
    girth = 1.0 / (2.0 * math.pi)
    fat = soft + torso * _bump(y, 0.85, 1.04, 1.22) * (0.35 + 0.65 * _ramp(z, -0.05, 0.08))
    muscle = upper_arm * _bump(x, 0.15, 0.28, 0.43) + 0.8 * forearm * _bump(x, 0.43, 0.51, 0.66)
    muscle = muscle + torso * _bump(y, 1.12, 1.30, 1.46) + thigh * _bump(y, 0.50, 0.70, 0.90)
    muscle = muscle + 0.8 * shin * _bump(y, 0.12, 0.34, 0.47) - 0.6 * torso * _bump(y, 0.94, 1.05, 1.16)
    fields = {
        "stature": (p - mean[:, None]) / ADULT_STATURE,
        "weight": fat * normal / (DENSITY * 2.0 * _flux(fat * normal, half)),
        "leg_length": along(1, np.clip(np.minimum((y - 0.07) / 0.81, (1.36 - y) / 0.48), 0.0, 1.0)),
        "shoulder_width": along(0, 0.5 * _ramp(x, 0.0, 0.17) * _ramp(y, 1.08, 1.36) * (1.0 - head - neck)),
        "hip_width": along(0, 0.5 * _ramp(x, 0.0, 0.15) * _bump(y, 0.50, 0.90, 1.06)),
        "chest": girth * torso * _bump(y, 1.10, 1.27, 1.42) * normal,
        "waist": girth * torso * _bump(y, 0.90, 1.07, 1.24) * normal,
        "arm_length": along(0, np.clip((x - 0.175) / (0.685 - 0.175), 0.0, 1.0)),
        "head_size": (p - np.array([[0.0], [1.54], [0.0]])) * _ramp(y + 0.5 * z, 1.49, 1.56) / HEAD_GIRTH,
        "muscularity": normal * muscle,
    }
    return np.stack([half.mirrored(SHAPE_SD[name] * fields[name]) for name in SHAPE_SD], axis=2)


def _soft_normals(half: _Half) -> Float[np.ndarray, "3 H"]:
    """Return normals averaged over the neighbourhood, so that fat does not deepen the folds."""
    around, normal = half.net.around, mesh.normals(half.adult, half.net.quads)
    for _ in range(3):
        normal = mesh.add_neighbours(normal, normal, around) / (around.shape[1] + 1)
        normal[0, half.net.seam] = 0.0
    return normal


def _flux(field: Float[np.ndarray, "3 H"], half: _Half) -> float:
    """Return the volume that the half body gains when its vertices move by the field."""
    q = half.net.quads
    area = 0.5 * mesh.double_areas(half.adult, q)
    flow = 0.25 * (field[:, q[:, 0]] + field[:, q[:, 1]] + field[:, q[:, 2]] + field[:, q[:, 3]])
    return math.fsum((flow[0] * area[0] + flow[1] * area[1] + flow[2] * area[2]).tolist())


def _centroid(vertices: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, " 3"]:
    return np.array([math.fsum(column) / len(vertices) for column in vertices.T.tolist()])


@cache
def mannequin() -> BodyAsset:
    """Return the built-in body: no file, no download, no licence to accept.

    It has SMPL's 24 joints, joint order and numbers of vertices (6890) and faces (13776), but a mesh of its
    own, so that SMPL's vertex ids have no meaning on it. The adult is 1.72 m tall; age offset 1 is an infant
    of 0.534 m (WHO's length at one month). Both are centred on the mean of their vertices, as SMPL-A centres
    its infant. One unit of each beta is one standard deviation of the quantity in ``metadata.shape_names``;
    ``SHAPE_SD`` lists them. All arrays are float32 and the same to the last bit on every machine.

    Returns:
        The body; the same object at every call.
    """
    half = _Half()
    points = _Points(half)
    rows = _joint_rows(points) | _surface_rows(points)
    regressor = np.stack([rows[name] for name in SMPL_JOINT_NAMES])
    weights = _skin(half)
    adult, infant = points.vertices, half.mirrored(half.infant)
    joints = np.stack([points.position(row) for row in regressor])
    skin_joints, skin_weights = sparse_weights(weights)
    return BodyAsset(
        template=(adult - _centroid(adult)).astype(np.float32),
        faces=half.faces(),
        parents=np.array(SMPL_PARENTS),
        joint_names=SMPL_JOINT_NAMES,
        joint_regressor=scipy.sparse.csr_array(regressor.astype(np.float32)),
        skin_joints=skin_joints,
        skin_weights=skin_weights.astype(np.float32),
        shapedirs=_shapedirs(half, weights[: half.size], _centroid(adult)).astype(np.float32),
        posedirs=_posedirs(adult, joints, weights),
        age_offsets=np.ones(1, np.float32),
        age_templates=(infant - _centroid(infant)).astype(np.float32)[None],
        regressors=_regressors(points, rows),
        metadata=Metadata(
            name="mannequin",
            kind="mannequin",
            topology="mannequin",
            license="Apache-2.0",
            shape_names=tuple(SHAPE_SD),
        ),
    )
