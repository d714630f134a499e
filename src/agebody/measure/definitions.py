"""Definitions of measurements, as data: heights, distances and girths between named points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Point: TypeAlias = str | tuple[str, ...]
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


def _a2b_of_side(side: str) -> dict[str, Definition]:
    shoulder, elbow, wrist = arm = _sided(side, "shoulder", "elbow", "wrist")
    leg = _sided(side, "hip", "knee", "ankle")
    return {
        "hand length": Distance((f"{side}_wrist_back", f"{side}_fingertip")),
        "arm length": Distance((f"{side}_acromion", f"{side}_wrist_back")),
        "forearm length": Distance((f"{side}_wrist_palm", f"{side}_olecranon")),
        "thigh length": Distance((f"{side}_trochanter", f"{side}_patella")),
        "calf length": Distance((f"{side}_patella", f"{side}_malleolus")),
        "footwidth length": Distance((f"{side}_small_toe_tip", f"{side}_toe_tip")),
        "heel to ball length": Distance((f"{side}_heel", f"{side}_ball")),
        "heel to toe length": Distance((f"{side}_heel", f"{side}_toe_tip")),
        "arm circumference": Girth(f"{side}_upper_arm_level", arm[:2], (shoulder, elbow), tape=True),
        "forearm circumference": Girth(f"{side}_forearm_level", arm, (elbow, wrist), tape=True),
        "thigh circumference": Girth(f"{side}_thigh_level", leg[:2], _UPWARDS, tape=True),
        "calf circumference": Girth(f"{side}_calf_level", leg, _UPWARDS, tape=True),
    }


_UPWARDS = ("pelvis", "spine3")
_A2B_SIDES = {side: _a2b_of_side(side) for side in ("left", "right")}


def _a2b_pairs(kind: str) -> dict[str, Definition]:
    names = [name for name in _A2B_SIDES["left"] if name.endswith(kind)]
    return {f"{side} {name}": _A2B_SIDES[side][name] for name in names for side in ("left", "right")}


A2B_MEASUREMENTS: dict[str, Definition] = {
    "height length": Height("head_top", _both("heel")),
    "shoulder width length": Distance(_both("acromion")),
    "torso height from back length": Height("cervicale", "navel_back"),
    "torso height from front length": Distance(("suprasternale", "navel")),
    "head length": Height("head_top", "cervicale"),
    "midline neck length": Distance(("chin", "suprasternale")),
    "lateral neck length": Height(_both("ear"), "cervicale"),
    **_a2b_pairs("length"),
    "waist circumference": Girth(("navel", "navel_back"), _TRUNK, _UPWARDS, tape=True),
    "chest circumference": Girth(_both("thelion"), _TRUNK, _UPWARDS, tape=True),
    "hip circumference": Girth(_both("buttock"), _TRUNK, _UPWARDS, tape=True),
    "head circumference": Girth("forehead", _HEAD, _UPWARDS, tape=True),
    "neck circumference": Girth("neck_front", ("spine3", *_NECK), ("spine2", "head"), tape=True),
    **_a2b_pairs("circumference"),
}
"""The 36 measurements of A2B (Ludwig et al., CVPR Workshops 2025), named and ordered as in its files.

Kinds, pairs of points, directions of the planes and the tape are those of its public code
(kaulquappe23/a2b_human_mesh). That code takes its points from vertices of SMPL-X; here each is the landmark
of the same name, so values differ by the distance between the two points.
"""
