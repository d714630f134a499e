"""The mannequin in numbers: shapes and mesh rows of an adult, and the rulers that turn it into an infant.

Lengths are metres, angles degrees. The adult stands with the soles at y = 0 in a T-pose, facing +z; only
the left half (x >= 0) is described. Proportions follow ANSUR II (adult) and the WHO standards (infant).
"""

from __future__ import annotations

from typing import NamedTuple

Point = tuple[float, ...]


def _sections(table: str) -> list[tuple[list[str], list[tuple[str, list[float]]]]]:
    """Return the words of each heading of a table, and the name and numbers of each indented row below."""
    sections = []
    for line in table.strip().splitlines():
        name, *words = line.split()
        if line.startswith(" "):
            sections[-1][1].append((name, [float(word) for word in words]))
        else:
            sections.append(([name, *words], []))
    return sections


class Knot(NamedTuple):
    """One mark of a ruler: where a limb passes in the adult and in the infant, and how thick it is there."""

    adult: Point
    infant: Point
    scale: Point
    """Infant over adult size across the limb, along the two other axes, in the order x, y, z."""


RULERS = {
    name: ("xyz".index(axis), [Knot(tuple(n[:3]), tuple(n[3:6]), tuple(n[6:])) for _, n in rows])
    for (name, axis), rows in _sections("""
spine y
    crotch     0 0.825 0  0 0.176 0   0.35 0.43
    hips       0 0.9 0    0 0.199 0   0.345 0.425
    waist      0 1.06 0   0 0.25 0    0.405 0.475
    nipples    0 1.25 0   0 0.318 0   0.385 0.465
    shoulders  0 1.4 0    0 0.375 0   0.36 0.44
    neck       0 1.455 0  0 0.398 0   0.54 0.54
    chin       0 1.498 0  0 0.413 0   0.56 0.58
    mouth      0 1.535 0  0 0.43 0    0.57 0.6
    nose_base  0 1.575 0  0 0.4455 0  0.59 0.61
    eyes       0 1.61 0   0 0.459 0   0.6 0.62
    brow       0 1.64 0   0 0.474 0   0.675 0.645
    head_top   0 1.72 0   0 0.534 0   0.69 0.65
arm x
    middle      0.0 1.4 -0.015    0.0 0.372 -0.005     0.38 0.42
    shoulder    0.175 1.4 -0.015  0.0645 0.372 -0.005  0.37 0.38
    upper_arm   0.3 1.4 -0.015    0.098 0.372 -0.005   0.41 0.41
    elbow       0.435 1.4 -0.015  0.133 0.372 -0.005   0.42 0.42
    forearm     0.5 1.4 -0.015    0.153 0.372 -0.005   0.42 0.42
    wrist       0.685 1.4 -0.01   0.203 0.372 -0.004   0.48 0.41
    knuckles    0.78 1.4 0.0      0.236 0.372 0.0      0.5 0.39
    finger_tip  0.868 1.4 0.0     0.266 0.372 0.0      0.5 0.39
leg y
    sole    0.1 0.0 -0.03    0.048 0.0 -0.009    0.37 0.325
    ankle   0.1 0.075 -0.03  0.048 0.024 -0.009  0.4 0.36
    calf    0.1 0.345 -0.01  0.046 0.08 -0.004   0.42 0.41
    knee    0.1 0.485 0.0    0.044 0.106 0.0     0.42 0.41
    thigh   0.099 0.69 0.0   0.04 0.146 0.0      0.41 0.41
    crotch  0.092 0.825 0.0  0.036 0.178 0.0     0.38 0.41
    hip     0.085 0.9 0.0    0.034 0.199 0.0     0.37 0.42
""")
}
"""Axis of each ruler, and its knots: a point of the adult, the same point of the infant, two scales."""


class Shape(NamedTuple):
    """An ellipsoid swept from ``a`` to ``b``, radii ``ra`` to ``rb``, blended with the shapes before it."""

    part: str
    ruler: str
    a: Point
    ra: Point
    b: Point
    rb: Point
    blend: float
    """Width of the blend; a negative one carves the shape out instead."""
    infant: float = 1.0
    """Factor of the infant's radii."""


def _shapes(table: str) -> list[Shape]:
    """Read parts and their rulers; rows of ``a ra b rb blend [infant]``, or ``a ra blend [infant]``."""
    shapes = []
    for (part, ruler), rows in _sections(table):
        for _, n in rows:
            if len(n) < 9:  # not swept
                n = [*n[:6], *n]
            a, ra, b, rb = (tuple(n[i : i + 3]) for i in (0, 3, 6, 9))
            shapes.append(Shape(part, ruler, a, ra, b, rb, *n[12:]))
    return shapes


SHAPES = _shapes("""
torso spine
    pelvis          0 0.912 -0.008  0.15 0.075 0.098  0 0.99 0  0.138 0.08 0.092  0.05
    waist           0 1.04 0  0.132 0.09 0.09  0 1.16 0  0.129 0.08 0.094  0.12
    ribs            0 1.22 0  0.131 0.09 0.098  0 1.31 -0.01  0.128 0.09 0.094  0.1
    belly           0 1.03 0.03  0.095 0.1 0.055  0.06 1.25
    pectoral        0.066 1.29 0.05  0.072 0.062 0.042  0.05 0.8
    latissimus      0.102 1.275 -0.025  0.048 0.105 0.064  0.06 0.8
    shoulder_blade  0.072 1.335 -0.066  0.065 0.075 0.036  0.04 0.8
    buttock         0.072 0.897 -0.056  0.078 0.078 0.066  0.035
    hip             0.116 0.9 -0.002  0.05 0.1 0.068  0.06
torso arm
    collar_bone  0.02 1.382 -0.012  0.06 0.05 0.06  0.15 1.393 -0.016  0.05 0.04 0.047  0.05
    trapezius    0.015 1.455 -0.03  0.035 0.04 0.04  0.12 1.413 -0.026  0.03 0.022 0.03  0.05 0.6
neck spine
    neck           0 1.4 -0.028  0.054 0.05 0.058  0 1.54 -0.006  0.049 0.05 0.055  0.04
    sternomastoid  0.012 1.405 0.024  0.013 0.02 0.013  0.044 1.53 -0.015  0.014 0.02 0.016  0.03 0.6
head spine
    cranium     0 1.636 -0.006  0.0755 0.084 0.097  0.03
    face        0 1.585 0.03  0.06 0.075 0.062  0.04 1.03
    jaw         0 1.538 0.044  0.05 0.034 0.046  0.03 1.18
    muzzle      0 1.544 0.07  0.034 0.026 0.023  0.03
    jaw_angle   0.044 1.548 0.016  0.018 0.022 0.03  0.025 1.15
    chin        0 1.514 0.08  0.02 0.016 0.015  0.025 0.85
    cheek       0.042 1.566 0.062  0.022 0.024 0.022  0.03 1.25
    brow        0.01 1.632 0.082  0.016 0.009 0.012  0.042 1.634 0.066  0.014 0.008 0.014  0.02 0.5
    eye_socket  0.032 1.609 0.098  0.019 0.013 0.014  -0.015 0.9
    eye         0.031 1.608 0.076  0.0135 0.0115 0.0135  0.003 1.1
    nose        0 1.618 0.086  0.008 0.01 0.009  0 1.574 0.107  0.011 0.01 0.011  0.012 0.85
    nostril     0.012 1.569 0.095  0.009 0.008 0.011  0.008 0.9
    upper_lip   0 1.547 0.09  0.022 0.007 0.01  0.006
    lower_lip   0 1.533 0.088  0.019 0.008 0.01  0.006
    mouth       0 1.54 0.104  0.026 0.0025 0.014  -0.004 0.7
    ear         0.074 1.598 -0.012  0.012 0.03 0.018  0.01 1.2
arm arm
    deltoid    0.165 1.399 -0.016  0.055 0.043 0.048  0.25 1.399 -0.015  0.05 0.042 0.042  0.05
    upper_arm  0.22 1.4 -0.015  0.03 0.042 0.042  0.42 1.4 -0.015  0.03 0.033 0.034  0.03
    biceps     0.31 1.402 0.005  0.085 0.032 0.03  0.03 0.95
    triceps    0.285 1.397 -0.036  0.085 0.033 0.028  0.03 0.95
    forearm    0.45 1.4 -0.014  0.03 0.03 0.032  0.68 1.4 -0.01  0.02 0.021 0.028  0.04
    extensors  0.505 1.4 -0.012  0.075 0.033 0.037  0.03
hand arm
    palm        0.69 1.4 -0.008  0.02 0.018 0.027  0.765 1.4 0  0.022 0.014 0.042  0.02
    thumb_ball  0.705 1.393 0.02  0.02 0.013 0.014  0.735 1.39 0.04  0.018 0.012 0.013  0.015
leg leg
    thigh       0.096 0.87 0  0.079 0.05 0.084  0.099 0.53 0.004  0.054 0.05 0.058  0.04
    quadriceps  0.104 0.69 0.028  0.06 0.18 0.05  0.04 0.97
    hamstrings  0.095 0.69 -0.026  0.06 0.17 0.048  0.04 0.97
    adductors   0.08 0.745 0  0.062 0.09 0.062  0.03
    knee        0.1 0.49 0.008  0.051 0.065 0.051  0.03 0.93
    kneecap     0.101 0.492 0.048  0.024 0.032 0.018  0.025 0.5
    shin        0.1 0.43 0  0.047 0.05 0.05  0.1 0.1 -0.028  0.033 0.03 0.039  0.03
    outer_calf  0.112 0.345 -0.03  0.042 0.115 0.044  0.03 1.03
    inner_calf  0.084 0.335 -0.03  0.036 0.105 0.042  0.03 1.03
foot leg
    ankle_bones  0.1 0.078 -0.03  0.037 0.022 0.024  0.015 0.8
    heel         0.1 0.034 -0.062  0.031 0.035 0.034  0.03
    foot         0.1 0.05 -0.02  0.034 0.042 0.045  0.106 0.026 0.085  0.045 0.024 0.04  0.03
""")

PARTS = {
    "head": ("neck", "head", "torso"),
    "torso": ("torso", "neck", "leg"),
    "arm": ("torso", "arm"),
    "hand": ("arm", "hand"),
    "leg": ("torso", "leg"),
    "foot": ("leg", "foot"),
    "joined": ("torso", "neck", "leg", "arm"),
}
"""Region of the mesh -> the parts whose shapes form its surface."""

JOINED = {"torso": "joined", "arm": "joined"}
"""Regions that follow all these parts together where they meet."""


class Digit(NamedTuple):
    """A finger or toe: its bone, and its half thickness and half width at both ends."""

    region: str
    ruler: str
    root: Point
    tip: Point
    thick: Point
    wide: Point
    columns: int = 2


_DIGITS = [
    Digit(name, ruler, tuple(n[:3]), tuple(n[3:6]), tuple(n[6:8]), tuple(n[8:10]), *map(int, n[10:]))
    for (ruler,), rows in _sections("""
arm
    index   0.772 1.4 0.0315     0.858 1.397 0.043    0.0095 0.0078  0.0098 0.008
    middle  0.776 1.401 0.0105   0.868 1.398 0.0125   0.0095 0.0078  0.0098 0.008
    ring    0.772 1.4 -0.0105    0.858 1.397 -0.0165  0.0092 0.0075  0.0095 0.0078
    pinky   0.764 1.399 -0.0305  0.832 1.396 -0.044   0.0085 0.0068  0.0086 0.007
    thumb   0.735 1.39 0.042     0.788 1.384 0.08     0.011 0.0075   0.0115 0.0085
leg
    big_toe     0.08 0.02 0.118     0.083 0.016 0.16   0.0155 0.0115  0.0165 0.013   4
    second_toe  0.1045 0.018 0.118  0.106 0.012 0.157  0.0125 0.0085  0.0085 0.0075
    third_toe   0.1205 0.017 0.113  0.122 0.011 0.149  0.0115 0.008   0.008 0.007
    fourth_toe  0.1355 0.016 0.105  0.137 0.01 0.138   0.0105 0.0075  0.0078 0.0068
    small_toe   0.1495 0.015 0.093  0.15 0.01 0.123    0.01 0.0075    0.008 0.007
""")
    for name, n in rows
]
FINGERS, THUMB, TOES = _DIGITS[:4], _DIGITS[4], _DIGITS[5:]

TRUNK_ANGLES = tuple(7.5 * i for i in range(25))
_FACE_ANGLES = "0 4 8 12.5 17 22 27 33 39 45 52 59 67 75 83 89 95 101 108 116 126 138 151 165 180"
FACE_ANGLES = tuple(float(angle) for angle in _FACE_ANGLES.split())
"""Directions of the 25 columns of half the trunk and half the head: 0 front, 90 left, 180 back."""


class TrunkRow(NamedTuple):
    """A row of the trunk or head: rays from the axis through a tilted ellipse."""

    rows: int
    """Number of rows up to this one from the one before; those between are interpolated."""
    axis: Point
    """Origin (y, z) of the rays."""
    front: float
    side: float
    back: float
    """Height of the ellipse in front, at the side, at the back."""
    radius: float
    aspect: float
    """Width over depth of the ellipse."""
    face: float
    """0: columns at TRUNK_ANGLES, 1: at FACE_ANGLES."""


TRUNK_ROWS = (
    TrunkRow(1, (0.90, 0.00), 0.835, 0.955, 0.830, 0.110, 1.4, 0),  # leg line
    TrunkRow(11, (1.08, 0.00), 1.080, 1.080, 1.080, 0.110, 1.4, 0),  # waist
    TrunkRow(8, (1.30, 0.00), 1.270, 1.335, 1.290, 0.110, 1.4, 0),  # arm pit
    TrunkRow(6, (1.38, 0.00), 1.375, 1.460, 1.430, 0.110, 1.4, 0),  # acromion
    TrunkRow(4, (1.41, -0.02), 1.415, 1.475, 1.480, 0.060, 1.0, 0.3),  # base of the neck
    TrunkRow(2, (1.47, -0.01), 1.455, 1.500, 1.515, 0.055, 1.0, 0.6),
    TrunkRow(2, (1.515, 0.00), 1.490, 1.525, 1.545, 0.060, 1.0, 1),  # under the chin
    TrunkRow(2, (1.545, 0.01), 1.503, 1.540, 1.560, 0.085, 0.9, 1),  # chin
    TrunkRow(4, (1.57, 0.01), 1.538, 1.565, 1.575, 0.100, 0.8, 1),  # mouth
    TrunkRow(3, (1.59, 0.01), 1.564, 1.582, 1.595, 0.100, 0.8, 1),  # base of the nose
    TrunkRow(5, (1.61, 0.01), 1.608, 1.612, 1.615, 0.100, 0.8, 1),  # eyes
    TrunkRow(3, (1.63, 0.01), 1.632, 1.632, 1.635, 0.100, 0.8, 1),  # brow
    TrunkRow(5, (1.64, 0.00), 1.710, 1.705, 1.705, 0.066, 0.9, 1),  # crown
)
HEAD_FROM_ROW = 28
"""The first row that belongs to the head."""
ARM_HOLE_ROW, ARM_HOLE_COLUMN = 19, 10
"""Corner of the hole for the arm, which is 6 rows high and 4 columns wide."""


class LimbRow(NamedTuple):
    """A row of an arm or leg: rays from the bone through an ellipse that can be tilted and made square."""

    rows: int
    center: Point
    wide: float
    """Half width of the ellipse along the flat of the hand or foot, over its half thickness."""
    box: float = 0.0
    """0: columns evenly around the limb, 1: evenly along the flat."""
    tilt: float = 0.0
    """Leg: rotation of the row's plane about x, which raises its front."""
    lift: float = 0.0
    """Leg: height of the outer side above the bone. Arm: how much further out the underside is."""


LEG_ROWS = (
    LimbRow(1, (0.090, 0.850, 0.000), 1.0, lift=0.050),
    LimbRow(5, (0.098, 0.700, 0.000), 1.0, lift=0.008),
    LimbRow(5, (0.100, 0.540, 0.004), 1.0),
    LimbRow(6, (0.100, 0.430, 0.004), 1.0),
    LimbRow(7, (0.100, 0.130, -0.028), 1.0),
    LimbRow(2, (0.100, 0.096, -0.034), 1.0, tilt=12),
    LimbRow(3, (0.100, 0.063, -0.017), 1.0, tilt=40),
    LimbRow(3, (0.100, 0.042, 0.012), 1.0, 0.1, tilt=70),
    LimbRow(2, (0.101, 0.035, 0.046), 1.3, 0.4, tilt=90),
    LimbRow(3, (0.106, 0.025, 0.088), 1.7, 1.0, tilt=94),
    LimbRow(1, (0.112, 0.019, 0.104), 1.8, 1.0, tilt=94),
)
FOOT_FROM_ROW = 24

ARM_ROWS = (
    LimbRow(1, (0.170, 1.400, -0.015), 1.0, lift=0.022),
    LimbRow(3, (0.235, 1.400, -0.015), 1.0, lift=0.008),
    LimbRow(6, (0.385, 1.400, -0.015), 1.0),
    LimbRow(6, (0.485, 1.400, -0.015), 1.0),
    LimbRow(6, (0.650, 1.400, -0.010), 1.2),
    LimbRow(3, (0.692, 1.400, -0.008), 1.5, 0.1),
    LimbRow(2, (0.716, 1.400, -0.004), 2.0, 0.6),
    LimbRow(3, (0.765, 1.400, 0.000), 2.8, 1.0),
)
HAND_FROM_ROW = 22
THUMB_HOLE_ROW = 26
"""First of the two rows of the hole for the thumb in the front of the palm."""

DIGIT_ROWS = ((0.12, 0.0), (0.36, 0.0), (0.60, 0.0), (0.83, 0.0), (1.00, 0.10), (1.00, 1.1))
"""Rows of a finger: the fraction of its bone, and how far the rays lean towards the tip."""
TOE_ROWS = ((0.30, 0.0), (1.00, 0.0), (1.00, 1.1))

SPINE_JOINTS = {
    "pelvis": (0.930, -0.005),
    "spine1": (1.030, -0.020),
    "spine2": (1.140, -0.025),
    "spine3": (1.210, -0.025),
    "neck": (1.440, -0.030),
    "head": (1.530, 0.000),
}
"""Height y and depth z of the joints in the middle plane."""
SPINE_PASSES = {
    "spine1": (0.950, 1.070, 0.0),
    "spine2": (1.070, 1.180, 0.0),
    "spine3": (1.150, 1.270, 0.0),
    "neck": (1.405, 1.480, 0.4),
    "head": (1.500, 1.555, 0.5),
}
"""Heights between which the skinning weight passes from the bone below, and their slope in z."""

NOSE, HEAD_TOP = (0.0, 1.570, 0.120), (0.0, 1.720, 0.0)
LANDMARKS = {"eye": (0.031, 1.608, 0.090), "ear": (0.086, 1.598, -0.012), "heel": (0.100, 0.020, -0.100)}
