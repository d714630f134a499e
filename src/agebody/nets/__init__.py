"""Networks of human mesh recovery: from the picture of a person, or from keypoints, to a body of any age."""

from agebody.nets.bands import TimeBands
from agebody.nets.checkpoints import Checkpoint, load_checkpoint, read_checkpoint
from agebody.nets.decoder import DecoderHead
from agebody.nets.field_of_view import FieldOfView
from agebody.nets.images import normalize_images
from agebody.nets.interaction import MeshPose, MeshPoseInteraction
from agebody.nets.iterative import IterativeHead
from agebody.nets.lifted_fit import LiftedFit, fit_lifted
from agebody.nets.lifter import Estimate, Lifter
from agebody.nets.part_attention import PartAttentionHead
from agebody.nets.regressor import Prediction, Regressor, read_prediction, start_readouts
from agebody.nets.vit import ViT, ViTSize

__all__ = [
    "Checkpoint",
    "DecoderHead",
    "Estimate",
    "FieldOfView",
    "IterativeHead",
    "LiftedFit",
    "Lifter",
    "MeshPose",
    "MeshPoseInteraction",
    "PartAttentionHead",
    "Prediction",
    "Regressor",
    "TimeBands",
    "ViT",
    "ViTSize",
    "fit_lifted",
    "load_checkpoint",
    "normalize_images",
    "read_checkpoint",
    "read_prediction",
    "start_readouts",
]
