"""Networks of human mesh recovery: from the picture of a person, or from keypoints, to a body of any age."""

from agebody.nets.checkpoints import load_checkpoint, read_checkpoint
from agebody.nets.decoder import DecoderHead
from agebody.nets.field_of_view import FieldOfView
from agebody.nets.images import normalize_images
from agebody.nets.interaction import MeshPoseInteraction
from agebody.nets.iterative import IterativeHead
from agebody.nets.lifted_fit import fit_lifted
from agebody.nets.lifter import Lifter
from agebody.nets.part_attention import PartAttentionHead
from agebody.nets.regressor import Prediction, Regressor, read_prediction, start_readouts
from agebody.nets.vit import ViT, ViTSize

__all__ = [
    "DecoderHead",
    "FieldOfView",
    "IterativeHead",
    "Lifter",
    "MeshPoseInteraction",
    "PartAttentionHead",
    "Prediction",
    "Regressor",
    "ViT",
    "ViTSize",
    "fit_lifted",
    "load_checkpoint",
    "normalize_images",
    "read_checkpoint",
    "read_prediction",
    "start_readouts",
]
