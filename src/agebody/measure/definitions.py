"""Definitions of measurements, as data: heights, distances and girths between named points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Marked:
    """The mean of landmarks, or of vertices where the body is SMPL-X.

    So published measurements keep their own points on the body for which they were made. A landmark that an
    asset provides takes precedence over the vertices.
    """

    landmarks: tuple[str, ...]
    smplx_vertices: tuple[int, ...]


Point: TypeAlias = str | Marked | tuple[str | Marked, ...]
"""A landmark or a joint by name, or the mean of several."""

TOP, GROUND = "top", "ground"
"""The heights of a body's highest and lowest vertex, whichever they are."""


@dataclass(frozen=True)
class Height:
    """Height of one point above another, along +y."""

    upper: Point = TOP
    lower: Point = GROUND


@dataclass(frozen=True)
class Distance:
    """Length of the straight lines from point to point."""

    points: tuple[Point, ...]


@dataclass(frozen=True)
class Girth:
    """Length around a part of the body, in a plane."""

    at: Point
    """A point in the plane."""
    parts: tuple[str, ...]
    """The joints that move the part; only triangles that they move are cut."""
    along: tuple[Point, Point] | None = None
    """Two points whose direction is the plane's normal; None for a horizontal plane."""
    tape: bool = False
    """Measured as by a tight tape, which bridges hollows, instead of along the skin."""


Definition: TypeAlias = Height | Distance | Girth

_TRUNK = ("pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar", "left_hip", "right_hip")
_HEAD = ("head",)
_NECK = ("neck", "head")


def _sided(side: str, *joints: str) -> tuple[str, ...]:
    return tuple(f"{side}_{joint}" for joint in joints)


def _of_side(side: str) -> dict[str, Definition]:
    hip, knee, ankle = _sided(side, "hip", "knee", "ankle")
    shoulder, elbow, wrist = _sided(side, "shoulder", "elbow", "wrist")
    arm, leg = (shoulder, elbow, wrist), (hip, knee, ankle)
    return {
        "upper_arm_length": Distance((shoulder, elbow)),
        "forearm_length": Distance((elbow, wrist)),
        "hand_length": Distance((wrist, f"{side}_fingertip")),
        "thigh_length": Distance((hip, knee)),
        "shank_length": Distance((knee, ankle)),
        "foot_length": Distance((f"{side}_heel", f"{side}_toe_tip")),
        "upper_arm_circumference": Girth(f"{side}_upper_arm_level", arm[:2], (shoulder, elbow)),
        "forearm_circumference": Girth(f"{side}_forearm_level", arm, (elbow, wrist)),
        "wrist_circumference": Girth(f"{side}_wrist_level", arm, (elbow, wrist)),
        "thigh_circumference": Girth(f"{side}_thigh_level", leg[:2], (hip, knee)),
        "calf_circumference": Girth(f"{side}_calf_level", leg, (knee, ankle)),
        "ankle_circumference": Girth(f"{side}_ankle_level", leg, (knee, ankle)),
    }


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for side in ("left", "right") for name in names)


_ARM = ("fingertip", "wrist", "elbow", "shoulder")
_ARM_SPAN = (*_sided("left", *_ARM), *_sided("right", *reversed(_ARM)))

MEASUREMENTS: dict[str, Definition] = {
    "stature": Height(),
    "sitting_height": Height("head_top", "crotch"),
    "head_height": Height("head_top", "chin"),
    "crotch_height": Height("crotch", GROUND),
    "arm_span": Distance(_ARM_SPAN),
    "shoulder_breadth": Distance(_both("acromion")),
    "hip_breadth": Distance(_both("trochanter")),
    "head_circumference": Girth("forehead", _HEAD, tape=True),
    "neck_circumference": Girth("neck_level", _NECK, ("neck", "head"), tape=True),
    "chest_circumference": Girth(_both("thelion"), _TRUNK, tape=True),
    "waist_circumference": Girth(("navel", "navel_back"), _TRUNK, tape=True),
    "hip_circumference": Girth(_both("buttock"), _TRUNK, tape=True),
    **{f"{side}_{name}": what for side in ("left", "right") for name, what in _of_side(side).items()},
}
"""The measurements by name, 36 of them; sides are the body's own.

Sitting height is measured from the crotch, at the height of a seat; arm span along the bones, so that it is
that of the T-pose however the arms are held.
"""


# Vertices of SMPL-X at which A2B's code has its points, left and right; facts of its anthro/measurements/
# measure.py, which gives both calves one vertex.
_A2B_VERTICES = {
    "head_top": (8976,),
    "forehead": (1980,),
    "chin": (8793,),
    "neck_front": (8940,),
    "cervicale": (5484,),
    "suprasternale": (5519,),
    "navel": (5939,),
    "navel_back": (5941,),
    "ear": (6, 616),
    "acromion": (4442, 7218),
    "wrist_back": (4823, 7559),
    "wrist_palm": (4713, 7449),
    "olecranon": (4273, 7017),
    "thelion": (3572, 8340),
    "trochanter": (3958, 6706),
    "buttock": (5949, 5949),
    "patella": (3673, 6434),
    "malleolus": (5880, 8574),
    "heel": (8846, 8635),
    "toe_tip": (5770, 8463),
    "small_toe_tip": (5780, 8474),
    "ball": (5904, 8598),
    "upper_arm_level": (4042, 6788),
    "forearm_level": (4530, 7266),
    "thigh_level": (3577, 6338),
    "calf_level": (3732, 3732),
}
_A2B_FINGERS = {"left": (5058, 5169), "right": (7794, 7905)}  # tips of the middle and the ring finger


def _a2b(landmark: str, *sides: str) -> Marked:
    """Return a point of A2B: of the middle, of one side, or the mean of both."""
    vertices = _A2B_VERTICES[landmark]
    if not sides:
        return Marked((landmark,), vertices)
    chosen = tuple(vertices[("left", "right").index(side)] for side in sides)
    return Marked(tuple(f"{side}_{landmark}" for side in sides), chosen)


def _a2b_of_side(side: str) -> dict[str, Definition]:
    shoulder, elbow, wrist = arm = _sided(side, "shoulder", "elbow", "wrist")
    leg = _sided(side, "hip", "knee", "ankle")
    return {
        "hand length": Distance(
            (_a2b("wrist_back", side), Marked((f"{side}_fingertip",), _A2B_FINGERS[side]))
        ),
        "arm length": Distance((_a2b("acromion", side), _a2b("wrist_back", side))),
        "forearm length": Distance((_a2b("wrist_palm", side), _a2b("olecranon", side))),
        "thigh length": Distance((_a2b("trochanter", side), _a2b("patella", side))),
        "calf length": Distance((_a2b("patella", side), _a2b("malleolus", side))),
        "footwidth length": Distance((_a2b("small_toe_tip", side), _a2b("toe_tip", side))),
        "heel to ball length": Distance((_a2b("heel", side), _a2b("ball", side))),
        "heel to toe length": Distance((_a2b("heel", side), _a2b("toe_tip", side))),
        "arm circumference": Girth(_a2b("upper_arm_level", side), arm[:2], (shoulder, elbow), tape=True),
        "forearm circumference": Girth(_a2b("forearm_level", side), arm, (elbow, wrist), tape=True),
        "thigh circumference": Girth(_a2b("thigh_level", side), leg[:2], _UPWARDS, tape=True),
        "calf circumference": Girth(_a2b("calf_level", side), leg, _UPWARDS, tape=True),
    }


_UPWARDS = ("pelvis", "spine3")
_A2B_SIDES = {side: _a2b_of_side(side) for side in ("left", "right")}


def _a2b_pairs(kind: str) -> dict[str, Definition]:
    names = [name for name in _A2B_SIDES["left"] if name.endswith(kind)]
    return {f"{side} {name}": _A2B_SIDES[side][name] for name in names for side in ("left", "right")}


A2B_MEASUREMENTS: dict[str, Definition] = {
    "height length": Height(_a2b("head_top"), _a2b("heel", "left", "right")),
    "shoulder width length": Distance((_a2b("acromion", "left"), _a2b("acromion", "right"))),
    "torso height from back length": Height(_a2b("cervicale"), _a2b("navel_back")),
    "torso height from front length": Distance((_a2b("suprasternale"), _a2b("navel"))),
    "head length": Height(_a2b("head_top"), _a2b("cervicale")),
    "midline neck length": Distance((_a2b("chin"), _a2b("suprasternale"))),
    "lateral neck length": Height(_a2b("ear", "left", "right"), _a2b("cervicale")),
    **_a2b_pairs("length"),
    "waist circumference": Girth((_a2b("navel"), _a2b("navel_back")), _TRUNK, _UPWARDS, tape=True),
    "chest circumference": Girth(_a2b("thelion", "left", "right"), _TRUNK, _UPWARDS, tape=True),
    "hip circumference": Girth(_a2b("buttock", "left", "right"), _TRUNK, _UPWARDS, tape=True),
    "head circumference": Girth(_a2b("forehead"), _HEAD, _UPWARDS, tape=True),
    "neck circumference": Girth(_a2b("neck_front"), ("spine3", *_NECK), ("spine2", "head"), tape=True),
    **_a2b_pairs("circumference"),
}
"""The 36 measurements of A2B (Ludwig et al., CVPR Workshops 2025), named and ordered as in its files.

Kinds, pairs of points, directions of the planes and the tape are those of its public code
(kaulquappe23/a2b_human_mesh), and on SMPL-X so are its points, which are vertices. On other bodies each is
the landmark of that name, so values differ by the distance between the two points.
"""
