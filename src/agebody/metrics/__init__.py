"""How far a prediction is from the truth: functions of tensors, in the units of their input."""

from agebody.metrics.alignment import (
    Similarity,
    best_scale,
    nearest_rotation,
    procrustes,
    procrustes_align,
    root_of,
)
from agebody.metrics.pose import joint_errors, mpjpe, n_mpjpe, pa_mpjpe, pa_pve, pve, stature_error
from agebody.metrics.world import acceleration_error, jitter, root_trajectory_error, w_mpjpe, wa_mpjpe

__all__ = [
    "Similarity",
    "acceleration_error",
    "best_scale",
    "jitter",
    "joint_errors",
    "mpjpe",
    "n_mpjpe",
    "nearest_rotation",
    "pa_mpjpe",
    "pa_pve",
    "procrustes",
    "procrustes_align",
    "pve",
    "root_of",
    "root_trajectory_error",
    "stature_error",
    "w_mpjpe",
    "wa_mpjpe",
]
