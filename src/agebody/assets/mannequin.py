"""The built-in body: SMPL's skeleton and size, made from numbers alone.

The figure's tables are in ``_figure``, the way from tables to a mesh in ``_sweep``; here the mesh becomes a
body that bends, changes shape and grows.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from agebody.assets import _figure as figure
from agebody.assets import _sweep as sweep
from agebody.assets.asset import (
    SMPL_JOINT_NAMES,
    SMPL_PARENTS,
    BodyAsset,
    Metadata,
    Regressor,
    sparse_weights,
)
from agebody.assets.landmarks import REGRESSOR_NAMES

DENSITY = 1010.0
"""Of a human body [kg/m^3]."""

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
"""The shape directions, and how much one unit, a standard deviation, adds."""

ADULT_STATURE, HEAD_GIRTH = 1.72, 0.57
"""[m]"""

BEND_LOSS = math.sqrt(2.0) - 1.0
"""Share of its distance from the joint that linear blending takes from a vertex half way at 90 degrees: there
the mean of two rotations is shorter by cos 45, and 1 / cos 45 = 1 + BEND_LOSS."""

FULLNESS = {"elbow": 1.0, "knee": 1.0, "shoulder": 0.2}
"""How much of that loss is given back; half at the other joints, where the flesh folds instead."""


class _Half:
    """The left half of the body: fields are computed here and mirrored, so that both sides are equal."""

    def __init__(self) -> None:
        self.net = sweep.net()
        self.adult = sweep.surface(self.net, infant=False)
        self.infant = sweep.surface(self.net, infant=True)
        self.size = len(self.net.seam)
        free = np.flatnonzero(~self.net.seam)
        twin = np.arange(self.size)
        twin[free] = self.size + np.arange(len(free))
        self.twin = np.concatenate([twin, free])
        """(V,) each vertex's mirror image."""
        self.free = free

    def mirrored(self, field: Float[np.ndarray, "3 H"]) -> Float[np.ndarray, "V 3"]:
        """A vector field on the whole body."""
        return np.concatenate([field, field[:, self.free] * np.array([[-1.0], [1.0], [1.0]])], axis=1).T

    def quads(self) -> Int[np.ndarray, "Q 4"]:
        """All quads of the body."""
        return np.concatenate([self.net.quads, self.twin[self.net.quads[:, ::-1]]])

    def faces(self) -> Int[np.ndarray, "F 3"]:
        """All triangles of the body."""
        left = np.concatenate([self.net.quads[:, [0, 1, 2]], self.net.quads[:, [0, 2, 3]]])
        return np.concatenate([left, self.twin[left[:, ::-1]]])


def _ramp(x: Float[np.ndarray, "*n"], low: float, high: float) -> Float[np.ndarray, "*n"]:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _bump(x: Float[np.ndarray, "*n"], low: float, middle: float, high: float) -> Float[np.ndarray, "*n"]:
    """1 at the middle, falling smoothly to 0 at both ends."""
    return np.where(x < middle, _ramp(x, low, middle), 1.0 - _ramp(x, middle, high))


def _limb(half: _Half, limb: str) -> np.ndarray:
    """Which vertices of the half belong to the arm or the leg."""
    regions = [i for i, name in enumerate(half.net.regions) if name not in ("head", "torso")]
    return np.isin(half.net.region, [i for i in regions if sweep.ruler_of(half.net.regions[i]) == limb])


# Points ---------------------------------------------------------------------------------------------------


class _Points:
    """Rows of regressors, dense: a (V,) vector each, non-negative and with sum 1."""

    def __init__(self, half: _Half) -> None:
        self.half = half
        self.vertices = half.mirrored(half.adult)
        both = lambda ids: np.unique(np.concatenate([ids, half.twin[ids]]))  # noqa: E731
        rows = [row[row >= 0] for row in half.net.rings["trunk"]]
        self.around = [both(row[::4]) for row in rows]
        self.front = [both(row[:5:2]) for row in rows]
        self.back = [both(row[-5::2]) for row in rows]

    def mean(self, ids: np.ndarray) -> np.ndarray:
        """The middle of some vertices."""
        row = np.zeros(len(self.vertices))
        row[ids] = 1.0 / len(ids)
        return row

    def nearest(self, point: tuple[float, float, float], count: int = 4) -> np.ndarray:
        """The middle of the vertices nearest to a point of the adult's."""
        x, y, z = (self.vertices - np.array(point)).T
        return self.mean(np.argsort(x * x + y * y + z * z, kind="stable")[:count])

    def position(self, row: np.ndarray) -> np.ndarray:
        """Where a row lies on the adult."""
        ids = np.flatnonzero(row)
        return np.array([math.fsum(row[ids] * self.vertices[ids, i]) for i in range(3)])

    def flipped(self, row: np.ndarray) -> np.ndarray:
        """The same point on the other side."""
        return row[self.half.twin]

    def blend(self, a: np.ndarray, b: np.ndarray, axis: int, value: float) -> np.ndarray:
        """The point between a and b that has this coordinate on the adult; the nearer end beyond them."""
        low, high = self.position(a)[axis], self.position(b)[axis]
        t = min(max((value - low) / (high - low), 0.0), 1.0)
        return (1.0 - t) * a + t * b

    def along(self, rings: list[np.ndarray], axis: int, value: float) -> np.ndarray:
        """The middle of a limb where its coordinate along the axis has this value."""
        rings = [ring[ring >= 0] for ring in rings]
        at = [math.fsum(self.vertices[ring, axis]) / len(ring) for ring in rings]
        outside = [max(min(a, b) - value, value - max(a, b), 0.0) for a, b in pairwise(at)]
        k = outside.index(min(outside))
        return self.blend(self.mean(rings[k]), self.mean(rings[k + 1]), axis, value)

    def trunk(self, y: float, z: float) -> np.ndarray:
        """A point in the middle plane of the trunk or head."""
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
    rows = rows | {
        "right_hip_lsp": rows["right_hip"], "left_hip_lsp": rows["left_hip"], "neck_lsp": trunk(1.435, -0.01),
        "head_top_lsp": rows["head_top"], "pelvis_mpii": rows["pelvis"], "thorax_mpii": trunk(1.39, -0.01),
        "spine_h36m": trunk(1.17, -0.01), "jaw_h36m": trunk(1.53, 0.03), "head_h36m": trunk(1.63, 0.0),
    }  # fmt: skip
    h36m = rows | {"spine": rows["spine_h36m"], "neck": rows["thorax_mpii"], "head": rows["head_h36m"]}
    tables = dict.fromkeys(REGRESSOR_NAMES, rows) | {"h36m17": h36m}
    return {
        name: Regressor(names, sparse.csr_array(np.stack([tables[name][row] for row in names])))
        for name, names in REGRESSOR_NAMES.items()
    }


# Skinning -------------------------------------------------------------------------------------------------


def _chain(share: dict[str, np.ndarray], taken: np.ndarray, bones: list[tuple[str, np.ndarray]]) -> None:
    """Give a limb its part of every vertex; each bone hands on to the next as far as the second item says."""
    for name in share:
        share[name] = share[name] * (1.0 - taken)
    for name, handed_on in bones:
        share[name] = share[name] + taken * (1.0 - handed_on)
        taken = taken * handed_on


def _skin(half: _Half) -> Float[np.ndarray, "V J"]:
    """Weights that pass from bone to bone across each joint, evened out over the mesh; at most 4 a vertex."""
    x, y, z = half.adult
    none = np.zeros(half.size)
    share: dict[str, np.ndarray] = dict.fromkeys(SMPL_JOINT_NAMES, none)
    passes = {name: _ramp(y + lean * z, low, high) for name, (low, high, lean) in figure.SPINE_PASSES.items()}
    _chain(share, np.ones(half.size), list(zip(["pelvis", *passes], [*passes.values(), none], strict=True)))

    arm = _limb(half, "arm")
    collar = np.where(arm, 1.0, _ramp(x, 0.025, 0.120) * _ramp(y, 1.26, 1.37) * (1.0 - _ramp(y, 1.45, 1.50)))
    shoulder = _ramp(x, 0.125, 0.225) * np.where(arm, 1.0, _ramp(y, 1.28, 1.38))
    _chain(share, collar, [
        ("left_collar", shoulder), ("left_shoulder", _ramp(x, 0.393, 0.477)),
        ("left_elbow", _ramp(x, 0.660, 0.712)), ("left_wrist", _ramp(x, 0.750, 0.795)), ("left_hand", none),
    ])  # fmt: skip

    groin = 0.830 + 0.50 * np.minimum(x, 0.16)
    toes = np.where(_limb(half, "leg") & (y < 0.08), _ramp(z, 0.075, 0.115), 0.0)
    _chain(share, 1.0 - _ramp(y - groin, -0.065, 0.065), [
        ("left_hip", 1.0 - _ramp(y, 0.430, 0.545)), ("left_knee", 1.0 - _ramp(y - 0.4 * z, 0.070, 0.130)),
        ("left_ankle", toes), ("left_foot", none),
    ])  # fmt: skip
    across = share["left_hip"] * (0.5 - 0.5 * _ramp(x, 0.0, 0.03))  # both thighs hold the middle
    share["left_hip"], share["right_hip"] = share["left_hip"] - across, across

    swap = [SMPL_JOINT_NAMES.index(_other_side(name)) for name in SMPL_JOINT_NAMES]
    dense = np.stack([share[name] for name in SMPL_JOINT_NAMES], axis=1)
    dense = _diffused(np.concatenate([dense, dense[half.free][:, swap]]), half)
    dense = 0.5 * (dense + dense[half.twin][:, swap])
    dense = np.where((dense > np.sort(dense, axis=1)[:, -5:-4]) & (dense > 2e-3), dense, 0.0)
    return dense / _row_sum(dense)


def _other_side(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"left": "right_", "right": "left_"}[side] + rest if side in ("left", "right") else name


def _row_sum(dense: np.ndarray) -> np.ndarray:
    """Sum over the last axis in a fixed order."""
    total = dense[..., :1]
    for j in range(1, dense.shape[-1]):
        total = total + dense[..., j : j + 1]
    return total


def _diffused(dense: np.ndarray, half: _Half, steps: int = 4) -> np.ndarray:
    around = sweep.neighbours(half.quads(), len(dense))
    for _ in range(steps):
        total = dense
        for k in range(around.shape[1]):
            total = total + dense[around[:, k]]
        dense = total / (around.shape[1] + 1)
    return dense


def _posedirs(
    vertices: Float[np.ndarray, "V 3"], joints: Float[np.ndarray, "J 3"], weights: Float[np.ndarray, "V J"]
) -> Float[np.ndarray, "V 3 P"]:
    """Give back the roundness that linear blending takes from a bent joint.

    A vertex that a joint's rotation R moves with weight w lies, once blended, at (1 - w) r + w R r from the
    joint. Across the axis that is shorter than r, most at w = 1/2. (I - sym R) r = (1 - cos) r_across for a
    rotation about any axis, so adding BEND_LOSS * 4 w (1 - w) (I - sym R) r lengthens it again. That is
    linear in R - I, nothing at rest, right at 90 degrees and two thirds of the loss at 120.
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
    """One displacement field a name of SHAPE_SD, on the left half and mirrored."""
    p = half.adult
    x, y, z = p
    normal = _soft_normals(half)
    of = lambda *names: sum((weights[:, SMPL_JOINT_NAMES.index(n)] for n in names), np.zeros(half.size))  # noqa: E731
    head, neck, torso = (
        of("head"),
        of("neck"),
        of("pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar"),
    )
    upper_arm, forearm = of("left_shoulder"), of("left_elbow")
    thigh, shin = of("left_hip", "right_hip"), of("left_knee")
    soft = torso + 0.5 * neck + 0.12 * head + 0.5 * upper_arm + 0.35 * forearm + 0.75 * thigh + 0.4 * shin
    to_side = lambda width: np.stack([width, 0 * width, 0 * width])  # noqa: E731
    upward = lambda height: np.stack([0 * height, height, 0 * height])  # noqa: E731
    girth = 1.0 / (2.0 * math.pi)

    fat = soft + torso * _bump(y, 0.85, 1.04, 1.22) * (0.35 + 0.65 * _ramp(z, -0.05, 0.08))
    fields = {
        "stature": (p - mean[:, None]) / ADULT_STATURE,
        "weight": fat * normal / (DENSITY * 2.0 * _flux(fat * normal, half)),
        "leg_length": upward(np.clip(np.minimum((y - 0.07) / 0.81, (1.36 - y) / 0.48), 0.0, 1.0)),
        "shoulder_width": to_side(0.5 * _ramp(x, 0.0, 0.17) * _ramp(y, 1.08, 1.36) * (1.0 - head - neck)),
        "hip_width": to_side(0.5 * _ramp(x, 0.0, 0.15) * _bump(y, 0.50, 0.90, 1.06)),
        "chest": girth * torso * _bump(y, 1.10, 1.27, 1.42) * normal,
        "waist": girth * torso * _bump(y, 0.90, 1.07, 1.24) * normal,
        "arm_length": to_side(np.clip((x - 0.175) / (0.685 - 0.175), 0.0, 1.0)),
        "head_size": (p - np.array([[0.0], [1.54], [0.0]])) * _ramp(y + 0.5 * z, 1.49, 1.56) / HEAD_GIRTH,
        "muscularity": normal * (
            upper_arm * _bump(x, 0.15, 0.28, 0.43) + 0.8 * forearm * _bump(x, 0.43, 0.51, 0.66)
            + torso * _bump(y, 1.12, 1.30, 1.46) + thigh * _bump(y, 0.50, 0.70, 0.90)
            + 0.8 * shin * _bump(y, 0.12, 0.34, 0.47) - 0.6 * torso * _bump(y, 0.94, 1.05, 1.16)
        ),
    }  # fmt: skip
    return np.stack([half.mirrored(SHAPE_SD[name] * fields[name]) for name in SHAPE_SD], axis=2)


def _soft_normals(half: _Half, steps: int = 3) -> Float[np.ndarray, "3 H"]:
    """Normals averaged over the neighbourhood: fat does not deepen the folds."""
    around, normal = half.net.around, sweep.normals(half.adult, half.net.quads)
    for _ in range(steps):
        total = normal
        for k in range(around.shape[1]):
            total = total + normal[:, around[:, k]]
        normal = total / (around.shape[1] + 1)
        normal[0, half.net.seam] = 0.0
    return normal


def _flux(field: Float[np.ndarray, "3 H"], half: _Half) -> float:
    """Volume that the half body gains when its vertices move by the field."""
    p, q = half.adult, half.net.quads
    d, e = p[:, q[:, 2]] - p[:, q[:, 0]], p[:, q[:, 3]] - p[:, q[:, 1]]
    area = 0.5 * np.stack([d[1] * e[2] - d[2] * e[1], d[2] * e[0] - d[0] * e[2], d[0] * e[1] - d[1] * e[0]])
    flow = 0.25 * (field[:, q[:, 0]] + field[:, q[:, 1]] + field[:, q[:, 2]] + field[:, q[:, 3]])
    return math.fsum((flow[0] * area[0] + flow[1] * area[1] + flow[2] * area[2]).tolist())


def _centroid(vertices: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, " 3"]:
    return np.array([math.fsum(column) / len(vertices) for column in vertices.T.tolist()])


@cache
def mannequin() -> BodyAsset:
    """The built-in body: no file, no download, no licence to accept.

    It has SMPL's 24 joints, joint order and numbers of vertices (6890) and faces (13776), but a mesh of its
    own, so that SMPL's vertex ids mean nothing on it. The adult is 1.72 m tall; age offset 1 is an infant of
    0.534 m (the WHO's length at one month). Both are centred on the mean of their vertices, as SMPL-A centres
    its infant. A unit of each beta is a standard deviation of what ``metadata.shape_names`` says; their sizes
    stand in ``SHAPE_SD``. All arrays are float32 and the same to the last bit on every machine.

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
        joint_regressor=sparse.csr_array(regressor.astype(np.float32)),
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
