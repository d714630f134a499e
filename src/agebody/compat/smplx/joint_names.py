"""Names of the joints in the outputs of SMPL and SMPL-H, in order."""

from agebody.assets.landmarks import SURFACE21
from agebody.assets.official import JOINT_NAMES as _JOINT_NAMES

SMPL_JOINT_NAMES = [*_JOINT_NAMES["smpl"], *SURFACE21]
SMPLH_JOINT_NAMES = [*_JOINT_NAMES["smplh"], *SURFACE21]
