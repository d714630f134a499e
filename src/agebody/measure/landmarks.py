"""Anthropometric landmarks, found on the rest surface by rays from joints and by extreme points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float, Int

from agebody.assets.asset import AssetError, BodyAsset, Regressor, expect_asset
from agebody.assets.landmarks import LANDMARKS
from agebody.measure.sections import gap, plane_section, section_length

LANDMARK_SET = "landmarks"
"""Name of the regressor set in which an asset may provide its own landmarks."""

# Heights of the navel and the nipples between the crotch and the suprasternale: of men's and women's mean
# heights in ANSUR II (Gordon et al. 2014), in statures .603 and .725 between .481 and .818.
_NAVEL_SHARE, _NIPPLE_SHARE = 0.36, 0.72
_THELION_SHARE = 0.55  # of the shoulder joint's distance from the middle plane
_ACROMION_SHARE = 0.08  # of the way from the shoulder's joint to the elbow's
_FOREHEAD_RANGE = (0.6, 0.8)  # of the way from the chin to the top of the head: above the brows
_SAMPLES = 21
_TIE = 1e-5  # m: tolerance for vertices at the same distance, and for closed outlines
_CAPACITY = 1024  # triangles of a part that a plane may cut: a few hundred in meshes of 30 000


class _Stretch(NamedTuple):
    """Range on a limb in which its thickest or thinnest place is searched."""

    start: str
    end: str
    low: float
    high: float
    """From the first joint (0) to the second (1)."""
    thickest: bool


_NECK = _Stretch("neck", "head", 0.0, 1.0, False)
_LEVELS = {
    "forearm_level": _Stretch("elbow", "wrist", 0.1, 0.5, True),
    "wrist_level": _Stretch("elbow", "wrist", 0.8, 1.0, False),
    "calf_level": _Stretch("knee", "ankle", 0.1, 0.5, True),
    "ankle_level": _Stretch("knee", "ankle", 0.7, 1.0, False),
}

_FOUND: WeakKeyDictionary[BodyAsset, Regressor] = WeakKeyDictionary()


def find_landmarks(asset: BodyAsset) -> Regressor:
    """Find the points of `LANDMARKS` on a body, as linear combinations of its vertices; cached per asset.

    They are searched on the template, by geometry alone: rays from the joints to the skin, extreme points of
    a body part, thickest and thinnest places of a limb. Tied to vertices, they follow every shape and age.
    Landmarks in the asset's regressor set ``"landmarks"`` are used as they are, so that single points can be
    placed by hand::

        asset.replace(regressors={**asset.regressors, "landmarks": Regressor(("navel",), matrix)})

    The rest pose must be upright, facing +z with +y up, legs down; arms may be at any angle to the side.

    Raises:
        AssetError: the body lacks a needed joint, or a landmark cannot be found.
    """
    if expect_asset(asset) not in _FOUND:
        _FOUND[asset] = _find(asset)
    return _FOUND[asset]


class Parts:
    """The parts of a body, by the joints that move them."""

    def __init__(self, asset: BodyAsset) -> None:
        self._faces = asset.faces
        self._names = asset.joint_names
        self._parents = asset.parents
        self._weights = asset.dense_weights()

    def vertices(self, joints: Sequence[str]) -> Bool[np.ndarray, " V"]:
        """Return which vertices these joints move more than all others together."""
        return self._weights[:, [self._names.index(name) for name in joints]].sum(1) > 0.5

    def faces(self, joints: Sequence[str]) -> Int[np.ndarray, "_ 3"]:
        """Return the triangles with such a vertex."""
        return self._faces[self.vertices(joints)[self._faces].any(1)]

    def below(self, joint: str) -> tuple[str, ...]:
        """Return a joint and all its descendants."""
        found = np.zeros(len(self._names), bool)
        found[self._names.index(joint)] = True
        for child, parent in enumerate(self._parents[1:], start=1):
            found[child] |= found[parent]
        return tuple(name for name, is_below in zip(self._names, found, strict=True) if is_below)


def _find(asset: BodyAsset) -> Regressor:
    own = asset.regressors.get(LANDMARK_SET)
    brought = {} if own is None else rows_by_name(own)
    rows = brought if set(LANDMARKS) <= set(brought) else {**_Finder(asset).rows(), **brought}
    names = (*LANDMARKS, *(name for name in rows if name not in LANDMARKS))
    return Regressor(names, scipy.sparse.csr_array(np.stack([rows[name] for name in names])))


Row = Float[np.ndarray, " V"]


def rows_by_name(points: Regressor) -> dict[str, Row]:
    """Return the row of each point, dense."""
    return dict(zip(points.names, points.matrix.toarray(), strict=True))


class _Finder:
    """Searches for landmarks on one template."""

    def __init__(self, asset: BodyAsset) -> None:
        sided = ("hip", "knee", "ankle", "foot", "collar", "shoulder", "elbow", "wrist")
        needed = [f"{side}_{name}" for side in ("left", "right") for name in sided]
        needed += ["pelvis", "spine1", "spine2", "spine3", "neck", "head"]
        missing = [name for name in needed if name not in asset.joint_names]
        if missing:
            raise AssetError(
                f"{asset.metadata.name}: landmarks are found from SMPL's joints, and it has no "
                f"{', '.join(missing)}; bring landmarks as the regressor set {LANDMARK_SET!r}"
            )
        self.name = asset.metadata.name
        self.parts = Parts(asset)
        self.vertices = asset.template.astype(np.float64)
        self.joint_rows = rows_by_name(Regressor(asset.joint_names, asset.joint_regressor))
        self.joints = {name: row @ self.vertices for name, row in self.joint_rows.items()}
        self.middle = self.joints["pelvis"][0]

    def rows(self) -> dict[str, Row]:
        """Return the row of each landmark."""
        rows = {**self._head(), **self._trunk()}
        crotch = rows["crotch"]
        for side, sign in (("left", 1.0), ("right", -1.0)):
            sided = {**self._arm(side), **self._leg(side, sign), **self._hip(side, sign, crotch)}
            sided["ear"] = self._extreme(self.head, (sign, 0, 0))
            sided["thelion"] = self._front(
                self._level(rows, _NIPPLE_SHARE),
                _THELION_SHARE * (self.joints[f"{side}_shoulder"][0] - self.middle),
            )
            rows |= {f"{side}_{name}": row for name, row in sided.items()}
        return rows

    @cached_property
    def head(self) -> tuple[str, ...]:
        return self.parts.below("head")

    @cached_property
    def trunk(self) -> tuple[str, ...]:
        sided = tuple(f"{side}_{name}" for side in ("left", "right") for name in ("hip", "collar"))
        return ("pelvis", "spine1", "spine2", "spine3", "neck", *sided)

    def _head(self) -> dict[str, Row]:
        top = self._extreme(self.head, (0, 1, 0))
        chin = self._extreme(self.head, (0, -1, 1))
        low, high = (self._at(row)[1] for row in (chin, top))
        levels = low + np.linspace(*_FOREHEAD_RANGE, _SAMPLES) * (high - low)
        middle = self.vertices[self.parts.vertices(self.head)].mean(0)
        girths = self._girths(self.head, levels[:, None] * [0, 1, 0], (0, 1, 0), tape=True)
        widest = levels[np.nanargmax(girths)]
        neck = ("neck", *self.head)
        neck_level = self._along(_NECK, neck)
        axis = self.joints["head"] - self.joints["neck"]
        return {
            "head_top": top,
            "chin": chin,
            "forehead": self._ray(np.array([middle[0], widest, middle[2]]), (0, 0, 1), self.head),
            "neck_level": neck_level,
            "neck_front": self._ray(self._at(neck_level), (0, -axis[2], axis[1]), ("spine3", *neck)),
            "cervicale": self._ray(self.joints["neck"], (0, 0, -1), ("spine3", *neck)),
        }

    def _trunk(self) -> dict[str, Row]:
        joints = self.joints
        collars = (joints["left_collar"][1] + joints["right_collar"][1]) / 2
        rows = {
            "crotch": self._ray(joints["pelvis"], (0, -1, 0), self.trunk),
            "suprasternale": self._front((joints["neck"][1] + collars) / 2),
        }
        navel = self._level(rows, _NAVEL_SHARE)
        return rows | {"navel": self._front(navel), "navel_back": self._front(navel, direction=-1)}

    def _level(self, rows: dict[str, Row], share: float) -> float:
        """Return a height between the crotch and the suprasternale."""
        low, high = (self._at(rows[name])[1] for name in ("crotch", "suprasternale"))
        return low + share * (high - low)

    def _front(self, y: float, x: float = 0.0, direction: int = 1) -> Row:
        """Return the skin of the trunk in front of the spine, or behind it, at a height."""
        spine = np.array([self.joints[name] for name in ("pelvis", "spine1", "spine2", "spine3", "neck")])
        return self._ray(
            np.array([self.middle + x, y, np.interp(y, spine[:, 1], spine[:, 2])]),
            (0, 0, direction),
            self.trunk,
        )

    def _arm(self, side: str) -> dict[str, Row]:
        shoulder, elbow, wrist = (self.joints[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        hand = self.parts.below(f"{side}_wrist")
        arm = (f"{side}_shoulder", f"{side}_elbow", *hand)
        acromion = shoulder + _ACROMION_SHARE * (elbow - shoulder)
        return {
            "acromion": self._ray(acromion, (0, 1, 0), (f"{side}_collar", f"{side}_shoulder", "spine3")),
            "wrist_back": self._ray(wrist, (0, 1, 0), arm),
            "wrist_palm": self._ray(wrist, (0, -1, 0), arm),
            "olecranon": self._ray(elbow, (0, 0, -1), arm),
            "fingertip": self._extreme(hand, wrist - elbow),
            "upper_arm_level": self._between(f"{side}_shoulder", f"{side}_elbow", 0.5),
            **self._levels(side, arm, ("forearm_level", "wrist_level")),
        }

    def _hip(self, side: str, sign: float, crotch: Row) -> dict[str, Row]:
        floor = self._at(crotch)[1]
        seat = (self.vertices[:, 1] >= floor) & (sign * (self.vertices[:, 0] - self.middle) > _TIE)
        seat &= self.vertices[:, 1] <= self.joints["spine1"][1]
        hip = ("pelvis", f"{side}_hip")
        return {
            "trochanter": self._extreme(hip, (sign, 0, 0), among=seat),
            "buttock": self._extreme(hip, (0, 0, -1), among=seat),
            "thigh_level": 0.75 * crotch + 0.25 * self.joint_rows[f"{side}_knee"],
        }

    def _leg(self, side: str, sign: float) -> dict[str, Row]:
        knee, ankle, ball = (self.joints[f"{side}_{name}"] for name in ("knee", "ankle", "foot"))
        foot = self.parts.below(f"{side}_ankle")
        leg = (f"{side}_hip", f"{side}_knee", *foot)
        return {
            "patella": self._ray(knee, (0, 0, 1), leg),
            "malleolus": self._ray(ankle, (sign, 0, 0), leg),
            "heel": self._extreme(foot, (0, 0, -1)),
            "toe_tip": self._extreme(foot, (0, 0, 1)),
            "small_toe_tip": self._extreme(foot, (sign, 0, 1)),
            "ball": self._ray(ball, (0, -1, 0), foot),
            **self._levels(side, leg, ("calf_level", "ankle_level")),
        }

    def _levels(self, side: str, part: Sequence[str], names: Sequence[str]) -> dict[str, Row]:
        return {name: self._along(_LEVELS[name], part, prefix=f"{side}_") for name in names}

    def _at(self, row: Row) -> Float[np.ndarray, " 3"]:
        return row @ self.vertices

    def _between(self, start: str, end: str, share: float) -> Row:
        return (1 - share) * self.joint_rows[start] + share * self.joint_rows[end]

    def _along(self, stretch: _Stretch, part: Sequence[str], *, prefix: str = "") -> Row:
        """Return the place where a limb is thickest or thinnest."""
        start, end = prefix + stretch.start, prefix + stretch.end
        bone = self.joints[end] - self.joints[start]
        shares = np.linspace(stretch.low, stretch.high, _SAMPLES)
        girths = self._girths(part, self.joints[start] + shares[:, None] * bone, bone)
        if np.isnan(girths).all():
            raise self._lost(f"no plane between {start} and {end} cuts {', '.join(part)} all around")
        choose = np.nanargmax if stretch.thickest else np.nanargmin
        return self._between(start, end, shares[choose(girths)])

    def _girths(
        self,
        part: Sequence[str],
        origins: Float[np.ndarray, "N 3"],
        normal: Sequence[float] | np.ndarray,
        *,
        tape: bool = False,
    ) -> Float[np.ndarray, " N"]:
        """Return a part's girths in parallel planes; NaN where the section is not closed."""
        faces = self.parts.faces(part)
        used = np.unique(faces)
        local = torch.from_numpy(np.searchsorted(used, faces))
        across = torch.from_numpy(np.array(normal, float))
        surface = torch.from_numpy(self.vertices[used])
        section = plane_section(surface, local, torch.from_numpy(origins), across, capacity=_CAPACITY)
        length = section_length(section, tape=across if tape else None)
        return torch.where(gap(section) > _TIE, torch.nan, length).numpy()

    def _extreme(
        self,
        part: Sequence[str],
        direction: Sequence[float] | np.ndarray,
        *,
        among: Bool[np.ndarray, " V"] | None = None,
    ) -> Row:
        """Return the vertex of a part that is farthest in a direction; the mean of ties."""
        inside = self.parts.vertices(part)
        inside = inside if among is None else inside & among
        if not inside.any():
            raise self._lost(f"no vertex belongs to {', '.join(part)}")
        reach = self.vertices @ (np.array(direction) / np.linalg.norm(direction))
        best = inside & (reach >= reach[inside].max() - _TIE)
        return best / best.sum()

    def _ray(self, origin: np.ndarray, direction: Sequence[float], part: Sequence[str]) -> Row:
        """Return where a ray from inside the body last leaves a part (Möller and Trumbore 1997)."""
        faces = self.parts.faces(part)
        a, b, c = (self.vertices[faces[:, i]] for i in range(3))
        ray = np.array(direction, float)
        across = np.cross(ray, c - a)
        volume = ((b - a) * across).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            from_a = origin - a
            u = (from_a * across).sum(1) / volume
            turned = np.cross(from_a, b - a)
            v = turned @ ray / volume
            distance = ((c - a) * turned).sum(1) / volume
        slack = 1e-6  # for a ray in the plane of symmetry, which runs along edges
        hit = (u >= -slack) & (v >= -slack) & (u + v <= 1 + slack) & (distance > 0)
        if not hit.any():
            raise self._lost(f"no skin of {', '.join(part)} is hit from {np.round(origin, 3)} along {ray}")
        last = np.flatnonzero(hit)[distance[hit].argmax()]
        row = np.zeros(len(self.vertices))
        row[faces[last]] = (1 - u[last] - v[last], u[last], v[last])
        return row

    def _lost(self, why: str) -> AssetError:
        return AssetError(
            f"{self.name}: a landmark cannot be found: {why}; is its rest pose upright, facing "
            f"+z? Else bring landmarks as the regressor set {LANDMARK_SET!r}"
        )
