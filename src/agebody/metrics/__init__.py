"""Metrics: functions of a prediction and the truth, in the units of their input."""

from agebody.metrics.alignment import procrustes, procrustes_align, root_of
from agebody.metrics.average_precision import keypoint_ap
from agebody.metrics.correctness import (
    box_diagonal,
    box_side,
    head_length,
    mpckh,
    pck,
    pck_auc,
    per_joint,
    torso_length,
)
from agebody.metrics.depth import depth_relations, pcdr, pcdr_by_age
from agebody.metrics.matching import detection_scores, match, match_keypoints, nmje, nmve
from agebody.metrics.pose import (
    joint_errors,
    joint_limit_violations,
    mpjae,
    mpjpe,
    n_mpjpe,
    pa_mpjpe,
    pa_pve,
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
    wa_mpjpe,
)

__all__ = [
    "acceleration_error",
    "box_diagonal",
    "box_side",
    "depth_relations",
    "detection_scores",
    "foot_sliding",
    "head_length",
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
    "n_mpjpe",
    "nmje",
    "nmve",
    "oks",
    "oks_sigmas",
    "pa_mpjpe",
    "pa_pve",
    "pcdr",
    "pcdr_by_age",
    "pck",
    "pck_auc",
    "per_joint",
    "procrustes",
    "procrustes_align",
    "pve",
    "root_of",
    "root_trajectory_error",
    "stature_error",
    "torso_length",
    "w_mpjpe",
    "wa_mpjpe",
]
