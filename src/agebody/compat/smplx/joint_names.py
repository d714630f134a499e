"""Names of the joints in the outputs of SMPL, SMPL-H and SMPL-X, in order."""

from agebody.assets.landmarks import SURFACE21
from agebody.assets.official import JOINT_NAMES as _JOINT_NAMES

SMPL_JOINT_NAMES = [*_JOINT_NAMES["smpl"], *SURFACE21]
SMPLH_JOINT_NAMES = [*_JOINT_NAMES["smplh"], *SURFACE21]


def _numbered(name: str, *numbers: int) -> list[str]:
    return [f"{name}{number}" for number in numbers]


_FACE = [
    *_numbered("right_eye_brow", 1, 2, 3, 4, 5),
    *_numbered("left_eye_brow", 5, 4, 3, 2, 1),
    *_numbered("nose", 1, 2, 3, 4),
    *("right_nose_2", "right_nose_1", "nose_middle", "left_nose_1", "left_nose_2"),
    *_numbered("right_eye", 1, 2, 3, 4, 5, 6),
    *_numbered("left_eye", 4, 3, 2, 1, 6, 5),
    *(*_numbered("right_mouth_", 1, 2, 3), "mouth_top", *_numbered("left_mouth_", 3, 2, 1, 5, 4)),
    *("mouth_bottom", *_numbered("right_mouth_", 4, 5), *_numbered("right_lip_", 1, 2), "lip_top"),
    *(*_numbered("left_lip_", 2, 1, 3), "lip_bottom", "right_lip_3"),
    *(
        *_numbered("right_contour_", *range(1, 9)),
        "contour_middle",
        *_numbered("left_contour_", *range(8, 0, -1)),
    ),
]
"""The 68 points of a face (iBUG 300-W), of which SMPL-X's eyes are told apart by a suffix."""

JOINT_NAMES = [
    *(f"{name}_smplhf" if name.endswith("_eye") else name for name in _JOINT_NAMES["smplx"]),
    *SURFACE21,
    *_FACE,
]
"""The 144 points of SMPL-X."""
