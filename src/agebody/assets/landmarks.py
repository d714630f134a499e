"""Point names of the known regressor sets, vertices of SMPL's surface points, and landmarks."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COCO17 = _names("""
nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist
right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle
""")

SURFACE21 = _names("""
nose right_eye left_eye right_ear left_ear
left_big_toe left_small_toe left_heel right_big_toe right_small_toe right_heel
left_thumb left_index left_middle left_ring left_pinky
right_thumb right_index right_middle right_ring right_pinky
""")
"""Face, feet and finger tips, in the order in which smplx and BEV append them to the 24 joints."""

_FACE_VERTICES = (332, 6260, 2800, 4071, 583)
_FEET_VERTICES = (3216, 3226, 3387, 6617, 6624, 6787)
_HAND_VERTICES = (2746, 2319, 2445, 2556, 2673, 6191, 5782, 5905, 6016, 6133)
SURFACE21_SMPL_VERTICES = dict(zip(SURFACE21, _FACE_VERTICES + _FEET_VERTICES + _HAND_VERTICES, strict=True))
"""Vertex of each of these points in SMPL's topology."""

_FACE_VERTICES_X = (9120, 9929, 9448, 616, 6)
_FEET_VERTICES_X = (5770, 5780, 8846, 8463, 8474, 8635)
_HAND_VERTICES_X = (5361, 4933, 5058, 5169, 5286, 8079, 7669, 7794, 7905, 8022)
TIPS5 = _names("thumb index middle ring pinky")
SURFACE_VERTICES = {
    6890: SURFACE21_SMPL_VERTICES,
    10475: dict(zip(SURFACE21, _FACE_VERTICES_X + _FEET_VERTICES_X + _HAND_VERTICES_X, strict=True)),
    778: dict(zip(TIPS5, (744, 320, 443, 554, 671), strict=True)),
}
"""Vertex of each surface point by the number of vertices: SMPL and SMPL-H, SMPL-X, and MANO's finger tips."""

FACE51 = _names("""
right_eye_brow1 right_eye_brow2 right_eye_brow3 right_eye_brow4 right_eye_brow5
left_eye_brow5 left_eye_brow4 left_eye_brow3 left_eye_brow2 left_eye_brow1
nose1 nose2 nose3 nose4 right_nose_2 right_nose_1 nose_middle left_nose_1 left_nose_2
right_eye1 right_eye2 right_eye3 right_eye4 right_eye5 right_eye6
left_eye4 left_eye3 left_eye2 left_eye1 left_eye6 left_eye5
right_mouth_1 right_mouth_2 right_mouth_3 mouth_top left_mouth_3 left_mouth_2 left_mouth_1
left_mouth_5 left_mouth_4 mouth_bottom right_mouth_4 right_mouth_5
right_lip_1 right_lip_2 lip_top left_lip_2 left_lip_1 left_lip_3 lip_bottom right_lip_3
""")
"""Points 17 to 67 of the iBUG 300-W face, which SMPL-X gives by barycentric coordinates."""

CONTOUR17 = (
    *(f"right_contour_{i}" for i in range(1, 9)),
    "contour_middle",
    *(f"left_contour_{i}" for i in range(8, 0, -1)),
)
"""Points 0 to 16 of that face, from the right ear along the jaw to the left ear."""

EXTRA9 = _names("""
right_hip_lsp left_hip_lsp neck_lsp head_top_lsp pelvis_mpii thorax_mpii spine_h36m jaw_h36m head_h36m
""")
"""Rows of the regressor that SPIN, HMR and BEV call "extra"."""

_LSP12 = _names("""
right_ankle right_knee right_hip left_hip left_knee left_ankle
right_wrist right_elbow right_shoulder left_shoulder left_elbow left_wrist
""")
J19 = _LSP12 + EXTRA9[2:]
"""Rows of the regressor that HMR2 appends to OpenPose's 25 points."""

H36M17 = _names("""
pelvis left_hip left_knee left_ankle right_hip right_knee right_ankle spine neck nose head left_shoulder
left_elbow left_wrist right_shoulder right_elbow right_wrist
""")
"""Rows of ``J_regressor_h36m.npy`` as SPIN and its followers read it: the left leg comes before the right."""

H36M17_BEV = (*_LSP12, "neck", "head", "pelvis", "spine", "nose")
"""The same points in the order of BEV's packs, which is that of LSP."""

REGRESSOR_NAMES = {"coco17": COCO17, "surface21": SURFACE21, "extra9": EXTRA9, "j19": J19, "h36m17": H36M17}
"""The regressor sets that keypoint layouts know by name, and the points in their rows."""

_SIDED_LANDMARKS = {
    "ear": "the head's point farthest to that side",
    "acromion": "top of the shoulder, just outwards of its joint",
    "wrist_back": "above the wrist joint, on the back of the hand's side",
    "wrist_palm": "below the wrist joint, on the palm's side",
    "olecranon": "behind the elbow joint",
    "fingertip": "the hand's point farthest from the elbow (dactylion)",
    "thelion": "front of the chest at the height of the nipples",
    "trochanter": "the hip's point farthest to that side",
    "buttock": "the seat's rearmost point on that side",
    "patella": "in front of the knee joint",
    "malleolus": "outwards of the ankle joint",
    "heel": "the foot's rearmost point (pternion)",
    "toe_tip": "the foot's foremost point (acropodion)",
    "small_toe_tip": "the forefoot's point farthest outwards and forwards",
    "ball": "the sole beneath the toes' joint",
    "upper_arm_level": "on the bone, half way down the upper arm",
    "forearm_level": "on the bone, where the forearm is thickest",
    "wrist_level": "on the bone, where the wrist is thinnest",
    "thigh_level": "a quarter of the way from the crotch to the knee joint",
    "calf_level": "on the bone, where the calf is thickest",
    "ankle_level": "on the bone, where the shank is thinnest",
}

_MIDDLE_LANDMARKS = {
    "head_top": "highest point of the head (vertex)",
    "forehead": "front of the head where it is widest, above the brows",
    "chin": "lowest point of the chin, in front (menton)",
    "cervicale": "back of the neck at the height of its joint (C7)",
    "neck_front": "front of the neck where it is thinnest",
    "neck_level": "middle of the neck where it is thinnest",
    "suprasternale": "front of the trunk, half way between the heights of the neck's and the collars' joints",
    "navel": "front of the trunk, 0.36 of the way up from the crotch to the suprasternale (omphalion)",
    "navel_back": "back of the trunk at the navel's height",
    "crotch": "lowest point of the trunk between the legs",
}

LANDMARKS = _MIDDLE_LANDMARKS | {
    f"{side}_{name}": text for name, text in _SIDED_LANDMARKS.items() for side in ("left", "right")
}
"""The points of the regressor set "landmarks", and their places on a body in its rest pose.

Most lie on the skin. The levels, where the girth of a limb is measured, lie on its axis.
"""
