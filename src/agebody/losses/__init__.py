"""Losses of human mesh recovery: functions of tensors, and modules where there is state."""

from agebody.losses.age import age_class_loss, age_offset_loss
from agebody.losses.depth import depth_layer_loss, fov_loss, relative_metric_loss
from agebody.losses.keypoints import keypoints_3d_loss, reprojection_loss
from agebody.losses.parameters import (
    METRIC_AWARE_BETA_WEIGHTS,
    betas_loss,
    geodesic_loss,
    rotation_angle,
    rotation_loss,
)
from agebody.losses.robust import Penalty, charbonnier, gmof, huber, penalize
from agebody.losses.temporal import (
    acceleration_loss,
    angular_velocity_loss,
    momentum_loss,
    velocity_loss,
)

__all__ = [
    "METRIC_AWARE_BETA_WEIGHTS",
    "Penalty",
    "acceleration_loss",
    "age_class_loss",
    "age_offset_loss",
    "angular_velocity_loss",
    "betas_loss",
    "charbonnier",
    "depth_layer_loss",
    "fov_loss",
    "geodesic_loss",
    "gmof",
    "huber",
    "keypoints_3d_loss",
    "momentum_loss",
    "penalize",
    "relative_metric_loss",
    "reprojection_loss",
    "rotation_angle",
    "rotation_loss",
    "velocity_loss",
]
