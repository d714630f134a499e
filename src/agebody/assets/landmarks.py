"""Names of the points that regressor sets bring, and the surface points of SMPL's topology."""

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
