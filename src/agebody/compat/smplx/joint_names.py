"""Names of the joints in the outputs of SMPL, SMPL-H and SMPL-X, in order."""

from agebody.assets.landmarks import CONTOUR17, FACE51, SURFACE21
from agebody.assets.official import JOINT_NAMES as _JOINT_NAMES

SMPL_JOINT_NAMES = [*_JOINT_NAMES["smpl"], *SURFACE21]
SMPLH_JOINT_NAMES = [*_JOINT_NAMES["smplh"], *SURFACE21]

JOINT_NAMES = [
    *(f"{name}_smplhf" if name.endswith("_eye") else name for name in _JOINT_NAMES["smplx"]),
    *SURFACE21,
    *FACE51,
    *CONTOUR17,
]
"""The 144 points of SMPL-X."""
