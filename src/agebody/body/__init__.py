"""Body models as differentiable layers: the SMPL family over one implementation."""

from agebody.body.layers import MANO as MANO
from agebody.body.layers import SMIL as SMIL
from agebody.body.layers import SMPL as SMPL
from agebody.body.layers import SMPLA as SMPLA
from agebody.body.layers import SMPLH as SMPLH
from agebody.body.layers import SMPLX as SMPLX
from agebody.body.model import BodyModel as BodyModel
from agebody.body.model import BodyOutput as BodyOutput
from agebody.body.model import ShapedBody as ShapedBody
