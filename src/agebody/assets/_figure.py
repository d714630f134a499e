"""The mannequin in numbers: an adult's shapes and mesh rows, and the rulers that turn it into an infant.

Lengths are metres, angles degrees. The adult stands with the soles at y = 0 in a T-pose, facing +z; only
the left half (x >= 0) is described. Proportions follow ANSUR II (adult) and the WHO standards (infant).
"""

from __future__ import annotations

from typing import NamedTuple


class Knot(NamedTuple):
    """One mark of a ruler: where a limb passes in the adult and in the infant, and how thick it is there."""

    adult: tuple[float, float, float]
    infant: tuple[float, float, float]
    scale: tuple[float, float]
    """Infant over adult size across the limb, along the two axes that are left, in the order x, y, z."""


RULERS: dict[str, tuple[int, tuple[Knot, ...]]] = {
    "spine": (1, (
        Knot((0, 0.825, 0), (0, 0.176, 0), (0.350, 0.43)),    # crotch
        Knot((0, 0.900, 0), (0, 0.199, 0), (0.345, 0.425)),    # hips
        Knot((0, 1.060, 0), (0, 0.250, 0), (0.405, 0.475)),    # waist
        Knot((0, 1.250, 0), (0, 0.318, 0), (0.385, 0.465)),    # nipples
        Knot((0, 1.400, 0), (0, 0.375, 0), (0.360, 0.44)),    # shoulders
        Knot((0, 1.455, 0), (0, 0.398, 0), (0.540, 0.54)),    # neck
        Knot((0, 1.498, 0), (0, 0.413, 0), (0.560, 0.58)),    # chin
        Knot((0, 1.535, 0), (0, 0.430, 0), (0.570, 0.60)),    # mouth
        Knot((0, 1.575, 0), (0, 0.4455, 0), (0.590, 0.61)),   # base of the nose
        Knot((0, 1.610, 0), (0, 0.459, 0), (0.600, 0.62)),    # eyes
        Knot((0, 1.640, 0), (0, 0.474, 0), (0.675, 0.645)),    # brow
        Knot((0, 1.720, 0), (0, 0.534, 0), (0.690, 0.650)),    # top of the head
    )),
    "arm": (0, (
        Knot((0.000, 1.40, -0.015), (0.000, 0.372, -0.005), (0.38, 0.42)),
        Knot((0.175, 1.40, -0.015), (0.0645, 0.372, -0.005), (0.37, 0.38)),  # shoulder
        Knot((0.300, 1.40, -0.015), (0.098, 0.372, -0.005), (0.41, 0.41)),
        Knot((0.435, 1.40, -0.015), (0.133, 0.372, -0.005), (0.42, 0.42)),  # elbow
        Knot((0.500, 1.40, -0.015), (0.153, 0.372, -0.005), (0.42, 0.42)),
        Knot((0.685, 1.40, -0.010), (0.203, 0.372, -0.004), (0.48, 0.41)),  # wrist
        Knot((0.780, 1.40, 0.000), (0.236, 0.372, 0.000), (0.50, 0.39)),    # knuckles
        Knot((0.868, 1.40, 0.000), (0.266, 0.372, 0.000), (0.50, 0.39)),    # finger tip
    )),
    "leg": (1, (
        Knot((0.100, 0.000, -0.030), (0.048, 0.000, -0.009), (0.37, 0.325)),  # sole
        Knot((0.100, 0.075, -0.030), (0.048, 0.024, -0.009), (0.40, 0.36)),   # ankle
        Knot((0.100, 0.345, -0.010), (0.046, 0.080, -0.004), (0.42, 0.41)),
        Knot((0.100, 0.485, 0.000), (0.044, 0.106, 0.000), (0.42, 0.41)),     # knee
        Knot((0.099, 0.690, 0.000), (0.040, 0.146, 0.000), (0.41, 0.41)),
        Knot((0.092, 0.825, 0.000), (0.036, 0.178, 0.000), (0.38, 0.41)),     # crotch
        Knot((0.085, 0.900, 0.000), (0.034, 0.199, 0.000), (0.37, 0.42)),     # hip
    )),
}  # fmt: skip


class Shape(NamedTuple):
    """An ellipsoid swept from ``a`` to ``b``, radii ``ra`` to ``rb``, melted into what comes before it."""

    part: str
    ruler: str
    a: tuple[float, float, float]
    ra: tuple[float, float, float]
    b: tuple[float, float, float]
    rb: tuple[float, float, float]
    blend: float
    """Width of the melt; a negative one carves the shape out instead."""
    infant: float = 1.0
    """Extra size of the infant's."""


Point = tuple[float, float, float]


def _cone(a: Point, ra: Point, b: Point, rb: Point, blend: float, infant: float = 1.0) -> Shape:
    return Shape("", "", a, ra, b, rb, blend, infant)


def _ball(a: Point, ra: Point, blend: float, infant: float = 1.0) -> Shape:
    return _cone(a, ra, a, ra, blend, infant)


def _of(part: str, ruler: str, *shapes: Shape) -> list[Shape]:
    return [shape._replace(part=part, ruler=ruler) for shape in shapes]


SHAPES: tuple[Shape, ...] = (
    *_of("torso", "spine",
        _cone((0, 0.912, -0.008), (0.15, 0.075, 0.098), (0, 0.99, 0), (0.138, 0.08, 0.092), 0.05),  # pelvis
        _cone((0, 1.04, 0), (0.132, 0.09, 0.09), (0, 1.16, 0), (0.129, 0.08, 0.094), 0.12),  # waist
        _cone((0, 1.22, 0), (0.131, 0.09, 0.098), (0, 1.31, -0.01), (0.128, 0.09, 0.094), 0.1),  # ribs
        _ball((0, 1.03, 0.03), (0.095, 0.1, 0.055), 0.06, 1.25),                  # belly
        _ball((0.066, 1.29, 0.05), (0.072, 0.062, 0.042), 0.05, 0.8),             # pectoral
        _ball((0.102, 1.275, -0.025), (0.048, 0.105, 0.064), 0.06, 0.8),          # latissimus
        _ball((0.072, 1.335, -0.066), (0.065, 0.075, 0.036), 0.04, 0.8),          # shoulder blade
        _ball((0.072, 0.897, -0.056), (0.078, 0.078, 0.066), 0.035),              # buttock
        _ball((0.116, 0.9, -0.002), (0.05, 0.1, 0.068), 0.06),                    # hip
    ),
    *_of("torso", "arm",
        # collar bone
        _cone((0.02, 1.382, -0.012), (0.06, 0.05, 0.06), (0.15, 1.393, -0.016), (0.05, 0.04, 0.047), 0.05),
        # trapezius
        _cone((0.015, 1.455, -0.03), (0.035, 0.04, 0.04),
              (0.12, 1.413, -0.026), (0.03, 0.022, 0.03), 0.05, 0.6),
    ),
    *_of("neck", "spine",
        _cone((0, 1.4, -0.028), (0.054, 0.05, 0.058), (0, 1.54, -0.006), (0.049, 0.05, 0.055), 0.04),  # neck
        # sternomastoid
        _cone((0.012, 1.405, 0.024), (0.013, 0.02, 0.013),
              (0.044, 1.53, -0.015), (0.014, 0.02, 0.016), 0.03, 0.6),
    ),
    *_of("head", "spine",
        _ball((0, 1.636, -0.006), (0.0755, 0.084, 0.097), 0.03),                  # cranium
        _ball((0, 1.585, 0.03), (0.06, 0.075, 0.062), 0.04, 1.03),                # face
        _ball((0, 1.538, 0.044), (0.05, 0.034, 0.046), 0.03, 1.18),               # jaw
        _ball((0, 1.544, 0.07), (0.034, 0.026, 0.023), 0.03),                     # muzzle
        _ball((0.044, 1.548, 0.016), (0.018, 0.022, 0.03), 0.025, 1.15),          # angle of the jaw
        _ball((0, 1.514, 0.08), (0.02, 0.016, 0.015), 0.025, 0.85),               # chin
        _ball((0.042, 1.566, 0.062), (0.022, 0.024, 0.022), 0.03, 1.25),          # cheek
        # brow
        _cone((0.01, 1.632, 0.082), (0.016, 0.009, 0.012),
              (0.042, 1.634, 0.066), (0.014, 0.008, 0.014), 0.02, 0.5),
        _ball((0.032, 1.609, 0.098), (0.019, 0.013, 0.014), -0.015, 0.9),         # eye socket
        _ball((0.031, 1.608, 0.076), (0.0135, 0.0115, 0.0135), 0.003, 1.1),       # eye
        # nose
        _cone((0, 1.618, 0.086), (0.008, 0.01, 0.009), (0, 1.574, 0.107), (0.011, 0.01, 0.011), 0.012, 0.85),
        _ball((0.012, 1.569, 0.095), (0.009, 0.008, 0.011), 0.008, 0.9),          # nostril
        _ball((0, 1.547, 0.09), (0.022, 0.007, 0.01), 0.006),                     # upper lip
        _ball((0, 1.533, 0.088), (0.019, 0.008, 0.01), 0.006),                    # lower lip
        _ball((0, 1.54, 0.104), (0.026, 0.0025, 0.014), -0.004, 0.7),             # mouth
        _ball((0.074, 1.598, -0.012), (0.012, 0.03, 0.018), 0.01, 1.2),           # ear
    ),
    *_of("arm", "arm",
        # deltoid
        _cone((0.165, 1.399, -0.016), (0.055, 0.043, 0.048),
              (0.25, 1.399, -0.015), (0.05, 0.042, 0.042), 0.05),
        # upper arm
        _cone((0.22, 1.4, -0.015), (0.03, 0.042, 0.042), (0.42, 1.4, -0.015), (0.03, 0.033, 0.034), 0.03),
        _ball((0.31, 1.402, 0.005), (0.085, 0.032, 0.03), 0.03, 0.95),            # biceps
        _ball((0.285, 1.397, -0.036), (0.085, 0.033, 0.028), 0.03, 0.95),         # triceps
        # forearm
        _cone((0.45, 1.4, -0.014), (0.03, 0.03, 0.032), (0.68, 1.4, -0.01), (0.02, 0.021, 0.028), 0.04),
        _ball((0.505, 1.4, -0.012), (0.075, 0.033, 0.037), 0.03),                 # its extensors
    ),
    *_of("hand", "arm",
        # palm
        _cone((0.69, 1.4, -0.008), (0.02, 0.018, 0.027), (0.765, 1.4, 0), (0.022, 0.014, 0.042), 0.02),
        # ball of the thumb
        _cone((0.705, 1.393, 0.02), (0.02, 0.013, 0.014), (0.735, 1.39, 0.04), (0.018, 0.012, 0.013), 0.015),
    ),
    *_of("leg", "leg",
        # thigh
        _cone((0.096, 0.87, 0), (0.079, 0.05, 0.084), (0.099, 0.53, 0.004), (0.054, 0.05, 0.058), 0.04),
        _ball((0.104, 0.69, 0.028), (0.06, 0.18, 0.05), 0.04, 0.97),              # quadriceps
        _ball((0.095, 0.69, -0.026), (0.06, 0.17, 0.048), 0.04, 0.97),            # hamstrings
        _ball((0.08, 0.745, 0), (0.062, 0.09, 0.062), 0.03),                      # adductors
        _ball((0.1, 0.49, 0.008), (0.051, 0.065, 0.051), 0.03, 0.93),             # knee
        _ball((0.101, 0.492, 0.048), (0.024, 0.032, 0.018), 0.025, 0.5),          # kneecap
        _cone((0.1, 0.43, 0), (0.047, 0.05, 0.05), (0.1, 0.1, -0.028), (0.033, 0.03, 0.039), 0.03),  # shin
        _ball((0.112, 0.345, -0.03), (0.042, 0.115, 0.044), 0.03, 1.03),          # outer calf
        _ball((0.084, 0.335, -0.03), (0.036, 0.105, 0.042), 0.03, 1.03),          # inner calf
    ),
    *_of("foot", "leg",
        _ball((0.1, 0.078, -0.03), (0.037, 0.022, 0.024), 0.015, 0.8),            # ankle bones
        _ball((0.1, 0.034, -0.062), (0.031, 0.035, 0.034), 0.03),                 # heel
        # foot
        _cone((0.1, 0.05, -0.02), (0.034, 0.042, 0.045), (0.106, 0.026, 0.085), (0.045, 0.024, 0.04), 0.03),
    ),
)  # fmt: skip

PARTS = {
    "head": ("neck", "head", "torso"),
    "torso": ("torso", "neck", "leg"),
    "arm": ("torso", "arm"),
    "hand": ("arm", "hand"),
    "leg": ("torso", "leg"),
    "foot": ("leg", "foot"),
    "joined": ("torso", "neck", "leg", "arm"),
}
"""Region of the mesh -> the parts whose shapes it follows."""


JOINED = {"torso": "joined", "arm": "joined"}
"""The regions that follow all the parts together where they meet."""


class Digit(NamedTuple):
    """A finger or toe: its bone, and its half thickness and half width at both ends."""

    region: str
    ruler: str
    root: tuple[float, float, float]
    tip: tuple[float, float, float]
    thick: tuple[float, float]
    wide: tuple[float, float]
    columns: int = 2


FINGERS = (
    Digit("index", "arm", (0.772, 1.4, 0.0315), (0.858, 1.397, 0.043), (0.0095, 0.0078), (0.0098, 0.008)),
    Digit("middle", "arm", (0.776, 1.401, 0.0105), (0.868, 1.398, 0.0125), (0.0095, 0.0078), (0.0098, 0.008)),
    Digit("ring", "arm", (0.772, 1.4, -0.0105), (0.858, 1.397, -0.0165), (0.0092, 0.0075), (0.0095, 0.0078)),
    Digit("pinky", "arm", (0.764, 1.399, -0.0305), (0.832, 1.396, -0.044), (0.0085, 0.0068), (0.0086, 0.007)),
)
THUMB = Digit("thumb", "arm", (0.735, 1.39, 0.042), (0.788, 1.384, 0.08), (0.011, 0.0075), (0.0115, 0.0085))
TOES = (
    Digit("big_toe", "leg", (0.08, 0.02, 0.118), (0.083, 0.016, 0.16), (0.0155, 0.0115), (0.0165, 0.013), 4),
    Digit(
        "second_toe", "leg", (0.1045, 0.018, 0.118), (0.106, 0.012, 0.157), (0.0125, 0.0085), (0.0085, 0.0075)
    ),
    Digit("third_toe", "leg", (0.1205, 0.017, 0.113), (0.122, 0.011, 0.149), (0.0115, 0.008), (0.008, 0.007)),
    Digit(
        "fourth_toe", "leg", (0.1355, 0.016, 0.105), (0.137, 0.01, 0.138), (0.0105, 0.0075), (0.0078, 0.0068)
    ),
    Digit("small_toe", "leg", (0.1495, 0.015, 0.093), (0.15, 0.01, 0.123), (0.01, 0.0075), (0.008, 0.007)),
)

TRUNK_ANGLES = tuple(7.5 * i for i in range(25))
FACE_ANGLES = (
    0, 4, 8, 12.5, 17, 22, 27, 33, 39, 45, 52, 59, 67, 75, 83, 89, 95, 101, 108, 116, 126, 138, 151, 165, 180,
)  # fmt: skip
"""Directions of the 25 columns of half the trunk and half the head: 0 front, 90 left, 180 back."""


class TrunkRow(NamedTuple):
    """A row of the trunk or head: rays from the axis through a tilted ellipse."""

    rows: int
    """How many rows lead up to this one; those before it are interpolated."""
    axis: tuple[float, float]
    """(y, z) that the rays leave from."""
    front: float
    side: float
    back: float
    """Height of the ellipse there."""
    radius: float
    aspect: float
    """Width over depth of the ellipse."""
    face: float
    """0: columns at TRUNK_ANGLES, 1: at FACE_ANGLES."""


TRUNK_ROWS = (
    TrunkRow(1, (0.90, 0.00), 0.835, 0.955, 0.830, 0.110, 1.4, 0),   # leg line
    TrunkRow(11, (1.08, 0.00), 1.080, 1.080, 1.080, 0.110, 1.4, 0),  # waist
    TrunkRow(8, (1.30, 0.00), 1.270, 1.335, 1.290, 0.110, 1.4, 0),   # arm pit
    TrunkRow(6, (1.38, 0.00), 1.375, 1.460, 1.430, 0.110, 1.4, 0),   # acromion
    TrunkRow(4, (1.41, -0.02), 1.415, 1.475, 1.480, 0.060, 1.0, 0.3),  # base of the neck
    TrunkRow(2, (1.47, -0.01), 1.455, 1.500, 1.515, 0.055, 1.0, 0.6),
    TrunkRow(2, (1.515, 0.00), 1.490, 1.525, 1.545, 0.060, 1.0, 1),  # under the chin
    TrunkRow(2, (1.545, 0.01), 1.503, 1.540, 1.560, 0.085, 0.9, 1),  # chin
    TrunkRow(4, (1.57, 0.01), 1.538, 1.565, 1.575, 0.100, 0.8, 1),   # mouth
    TrunkRow(3, (1.59, 0.01), 1.564, 1.582, 1.595, 0.100, 0.8, 1),   # base of the nose
    TrunkRow(5, (1.61, 0.01), 1.608, 1.612, 1.615, 0.100, 0.8, 1),   # eyes
    TrunkRow(3, (1.63, 0.01), 1.632, 1.632, 1.635, 0.100, 0.8, 1),   # brow
    TrunkRow(5, (1.64, 0.00), 1.710, 1.705, 1.705, 0.066, 0.9, 1),   # crown
)  # fmt: skip
HEAD_FROM_ROW = 28
"""Rows from here on follow the head's shapes."""
ARM_HOLE_ROW, ARM_HOLE_COLUMN = 19, 10
"""Where the arm leaves the trunk: 6 rows up and 4 columns back from here."""


class LimbRow(NamedTuple):
    """A row of an arm or leg: rays from the bone through an ellipse that may tilt and square up."""

    rows: int
    center: tuple[float, float, float]
    wide: float
    """Half width of the ellipse along the flat of the hand or foot; its half thickness counts 1."""
    box: float = 0.0
    """0: columns evenly round, 1: evenly along the flat."""
    tilt: float = 0.0
    """Leg: rotation of the row's plane about x, which brings its front up."""
    lift: float = 0.0
    """Leg: how much higher the outside is than the bone. Arm: how much further out the underside is."""


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
)  # fmt: skip
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
)  # fmt: skip
HAND_FROM_ROW = 22
THUMB_HOLE_ROW = 26
"""The thumb leaves the front of the palm between this row and the second after it."""

DIGIT_ROWS = ((0.12, 0.0), (0.36, 0.0), (0.60, 0.0), (0.83, 0.0), (1.00, 0.10), (1.00, 1.1))
"""Rows of a finger: the fraction of its bone, and how far the rays lean towards the tip."""
TOE_ROWS = ((0.30, 0.0), (1.00, 0.0), (1.00, 1.1))

SPINE_JOINTS = {
    "pelvis": (0.930, -0.005), "spine1": (1.030, -0.020), "spine2": (1.140, -0.025),
    "spine3": (1.210, -0.025), "neck": (1.440, -0.030), "head": (1.530, 0.000),
}  # fmt: skip
"""Height and depth of the joints in the middle plane."""
SPINE_PASSES = {
    "spine1": (0.950, 1.070, 0.0), "spine2": (1.070, 1.180, 0.0), "spine3": (1.150, 1.270, 0.0),
    "neck": (1.405, 1.480, 0.4), "head": (1.500, 1.555, 0.5),
}  # fmt: skip
"""Where the weight passes from the bone below: from and to which height, and how much it falls with depth."""

NOSE, HEAD_TOP = (0.0, 1.570, 0.120), (0.0, 1.720, 0.0)
LANDMARKS = {"eye": (0.031, 1.608, 0.090), "ear": (0.086, 1.598, -0.012), "heel": (0.100, 0.020, -0.100)}
