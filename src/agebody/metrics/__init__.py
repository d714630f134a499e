"""Metrics: functions of a prediction and the truth, in the units of their input."""

from agebody.metrics.alignment import procrustes
from agebody.metrics.average_precision import keypoint_ap
from agebody.metrics.correctness import mpckh, pck, pck_auc, per_joint, reference_length
from agebody.metrics.depth import depth_relations, pcdr, pcod
from agebody.metrics.matching import detection_scores, match, match_keypoints, normalized_error
from agebody.metrics.pose import (
    joint_errors,
    joint_limit_violations,
    mpjae,
    mpjpe,
    pa_mpjpe,
    pve,
    stature_error,
)
from agebody.metrics.similarity import oks, oks_sigmas
from agebody.metrics.world import (
    acceleration_error,
    foot_sliding,
    jitter,
    mrpe,
    root_trajectory_error,
    w_mpjpe,
)

__all__ = [
    "acceleration_error",
    "depth_relations",
    "detection_scores",
    "foot_sliding",
    "jitter",
    "joint_errors",
    "joint_limit_violations",
    "keypoint_ap",
    "match",
    "match_keypoints",
    "mpckh",
    "mpjae",
    "mpjpe",
    "mrpe",
    "normalized_error",
    "oks",
    "oks_sigmas",
    "pa_mpjpe",
    "pcdr",
    "pck",
    "pck_auc",
    "pcod",
    "per_joint",
    "procrustes",
    "pve",
    "reference_length",
    "root_trajectory_error",
    "stature_error",
    "w_mpjpe",
]
