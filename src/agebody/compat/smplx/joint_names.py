"""Names of the points that SMPL's and SMPL-H's outputs hold, in their order."""

from agebody.assets.landmarks import SURFACE21
from agebody.assets.official import JOINT_NAMES as _JOINT_NAMES

SMPL_JOINT_NAMES = [*_JOINT_NAMES["smpl"], *SURFACE21]
SMPLH_JOINT_NAMES = [*_JOINT_NAMES["smplh"], *SURFACE21]
