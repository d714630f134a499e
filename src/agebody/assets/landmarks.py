"""Names of the points that regressor sets bring, the surface points of SMPL's topology, and the landmarks."""

COCO17 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
    "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip

SURFACE21_SMPL_VERTICES = {
    "nose": 332, "right_eye": 6260, "left_eye": 2800, "right_ear": 4071, "left_ear": 583,
    "left_big_toe": 3216, "left_small_toe": 3226, "left_heel": 3387,
    "right_big_toe": 6617, "right_small_toe": 6624, "right_heel": 6787,
    "left_thumb": 2746, "left_index": 2319, "left_middle": 2445, "left_ring": 2556, "left_pinky": 2673,
    "right_thumb": 6191, "right_index": 5782, "right_middle": 5905, "right_ring": 6016, "right_pinky": 6133,
}  # fmt: skip
"""Face, feet and finger tips, in the order in which smplx and BEV append them to the 24 joints."""

SURFACE21 = tuple(SURFACE21_SMPL_VERTICES)

EXTRA9 = (
    "right_hip_lsp", "left_hip_lsp", "neck_lsp", "head_top_lsp", "pelvis_mpii", "thorax_mpii",
    "spine_h36m", "jaw_h36m", "head_h36m",
)  # fmt: skip
"""Rows of the regressor that SPIN, HMR and BEV call "extra"."""

J19 = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist",
    "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck_lsp", "head_top_lsp",
    "pelvis_mpii", "thorax_mpii", "spine_h36m", "jaw_h36m", "head_h36m",
)  # fmt: skip
"""Rows of the regressor that HMR2 appends to OpenPose's 25 points."""

H36M17 = (
    "pelvis", "left_hip", "left_knee", "left_ankle", "right_hip", "right_knee", "right_ankle", "spine",
    "neck", "nose", "head", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow",
    "right_wrist",
)  # fmt: skip
"""Rows of ``J_regressor_h36m.npy`` as SPIN and its followers read it: the left leg comes before the right."""

H36M17_BEV = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist",
    "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head", "pelvis",
    "spine", "nose",
)  # fmt: skip
"""The same points in the order of BEV's packs, which follow the order of LSP."""

REGRESSOR_NAMES = {"coco17": COCO17, "surface21": SURFACE21, "extra9": EXTRA9, "j19": J19, "h36m17": H36M17}
"""The regressor sets that layouts know by name, and what their rows are."""

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

LANDMARKS = {
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
} | {
    f"{side}_{name}": text for name, text in _SIDED_LANDMARKS.items() for side in ("left", "right")
}  # fmt: skip
"""The points of the regressor set "landmarks", and where they are on a body in its rest pose.

Most lie on the skin. The levels are where a limb's girth is taken, and lie on its axis.
"""
