"""What networks give under autocast, numbers of 16 bits, is compared in float32."""

import pytest
import torch

from agebody import metrics
from agebody.metrics.alignment import best_scale, nearest_rotation, procrustes_align

CASES = {
    "procrustes": metrics.procrustes,
    "procrustes_align": procrustes_align,
    "best_scale": best_scale,
    "nearest_rotation": lambda pred, target: nearest_rotation(pred[..., :3, :]),
    "mpjpe": lambda pred, target: metrics.mpjpe(pred, target, layout="coco17"),
    "n_mpjpe": lambda pred, target: metrics.mpjpe(pred, target, layout="coco17", scale=True),
    "pa_mpjpe": metrics.pa_mpjpe,
    "pve": lambda pred, target: metrics.pve(
        pred, target, pred_root=pred[..., 0, :], target_root=target[..., 0, :]
    ),
    "joint_errors": lambda pred, target: metrics.joint_errors(pred, target, layout="coco17"),
    "stature_error": lambda pred, target: metrics.stature_error(pred[..., 0], target[..., 0]),
    "w_mpjpe": metrics.w_mpjpe,
    "root_trajectory_error": metrics.root_trajectory_error,
    "acceleration_error": metrics.acceleration_error,
    "jitter": lambda pred, target: metrics.jitter(pred),
    "pck": lambda pred, target: metrics.pck(pred, target, 1.5),
    "pck_auc": lambda pred, target: metrics.pck_auc(pred, target, max_threshold=3.0),
    "mpckh": lambda pred, target: metrics.mpckh(pred[..., :2], target[..., :2]),
    "oks": lambda pred, target: metrics.oks(pred[..., :2], target[..., :2], target[..., 0, 0].abs()),
    "depth_relations": lambda pred, target: metrics.depth_relations(pred[..., 0], target[..., 0]),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_sixteen_bits_are_compared_in_float32(name, dtype):
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 4, 17, 3, generator=generator).to(dtype)
    found, expected = CASES[name](pred, target), CASES[name](pred.float(), target.float())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_large_crowds_are_counted():
    """4000 people are 8 million pairs, of which float16 makes infinity."""
    counts = metrics.depth_relations(torch.arange(4000.0), torch.arange(4000))
    assert counts.pairs == 4000 * 3999 // 2
    half = metrics.depth_relations(torch.arange(400.0).half(), torch.arange(400))
    assert half.pairs == half.right == 400 * 399 // 2
