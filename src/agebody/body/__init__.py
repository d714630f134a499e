"""Body models as differentiable layers: the SMPL family over one implementation."""

from agebody.body.layers import MANO, SMIL, SMPL, SMPLA, SMPLH, SMPLX
from agebody.body.model import BodyModel, BodyOutput, ShapedBody

__all__ = ["MANO", "SMIL", "SMPL", "SMPLA", "SMPLH", "SMPLX", "BodyModel", "BodyOutput", "ShapedBody"]
