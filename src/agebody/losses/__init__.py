"""Losses of human mesh recovery: functions of tensors, and modules where there is state."""

from agebody.losses.adversarial import PoseDiscriminator, adversarial_loss
from agebody.losses.age import age_class_loss, age_offset_loss
from agebody.losses.contact import part_vertices, plane_height, plane_loss
from agebody.losses.depth import depth_layer_loss, fov_loss, relative_metric_loss
from agebody.losses.intersection import person_intersection_loss, self_intersection_loss
from agebody.losses.keypoints import keypoints_3d_loss, reprojection_loss
from agebody.losses.limits import joint_limits, joint_limits_loss, joint_limits_prior
from agebody.losses.objective import LossTerm, Objective
from agebody.losses.parameters import betas_loss, geodesic_loss, rotation_loss
from agebody.losses.pose_priors import MahalanobisPrior, MaxMixturePrior
from agebody.losses.priors import hyperextension_prior, shape_prior
from agebody.losses.published import (
    aionhmr_fitting_objective,
    aionhmr_objective,
    hmr2_objective,
    metric_aware_objective,
    smplify_x_objective,
)
from agebody.losses.robust import charbonnier, gmof, huber, tals
from agebody.losses.surface import mesh_to_scan_loss, scan_to_mesh_loss
from agebody.losses.temporal import acceleration_loss, angular_velocity_loss, velocity_loss

__all__ = [
    "LossTerm",
    "MahalanobisPrior",
    "MaxMixturePrior",
    "Objective",
    "PoseDiscriminator",
    "acceleration_loss",
    "adversarial_loss",
    "age_class_loss",
    "age_offset_loss",
    "aionhmr_fitting_objective",
    "aionhmr_objective",
    "angular_velocity_loss",
    "betas_loss",
    "charbonnier",
    "depth_layer_loss",
    "fov_loss",
    "geodesic_loss",
    "gmof",
    "hmr2_objective",
    "huber",
    "hyperextension_prior",
    "joint_limits",
    "joint_limits_loss",
    "joint_limits_prior",
    "keypoints_3d_loss",
    "mesh_to_scan_loss",
    "metric_aware_objective",
    "part_vertices",
    "person_intersection_loss",
    "plane_height",
    "plane_loss",
    "relative_metric_loss",
    "reprojection_loss",
    "rotation_loss",
    "scan_to_mesh_loss",
    "self_intersection_loss",
    "shape_prior",
    "smplify_x_objective",
    "tals",
    "velocity_loss",
]
