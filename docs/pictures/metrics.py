"""Metrics: the effect of each alignment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import agebody
from agebody.draw.meshes import PALETTE
from agebody.draw.pictures import INK
from agebody.metrics import joint_errors, procrustes
from agebody.metrics.alignment import best_scale, root_of
from agebody.people import pose

PAPER, FAINT = "#f3efe9", "#c9c0b5"
LAYOUT = agebody.LAYOUTS["smpl24"]
TILT = 0.35
"""Lean of the prediction to the side [rad]."""
SIZE = 1.18
"""Size of the prediction relative to the truth."""


def draw_alignment(path: Path, width: int) -> None:
    """Draw a prediction over the truth after each alignment, with the remaining error."""
    pred, target = _skeletons()
    pred_root, root = (root_of(x, layout=LAYOUT) for x in (pred, target))
    centered = pred - pred_root + root
    scale = best_scale(pred - pred_root, target - root)
    shown = {
        "as it is": pred,
        "root: MPJPE": centered,
        "root and scale: N-MPJPE": scale * (pred - pred_root) + root,
        "similarity: PA-MPJPE": procrustes(pred, target).apply(pred),
    }
    figure = Figure(figsize=(10, 4.1), facecolor=PAPER, layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        error = joint_errors(points, target, layout=None, reduction="mean").item()
        axes.set_title(f"{title}\n{1e3 * error:.0f} mm", color=INK, fontsize=11, pad=2)
        _draw(axes, target, points)
    figure.get_layout_engine().set(h_pad=0.15)
    figure.savefig(path, dpi=width / 10)


def _skeletons() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a prediction that leans, is too large, displaced and slightly wrong, and the truth."""
    body = agebody.SMPLA(agebody.mannequin(), dtype=torch.float64)

    def joints(name: str) -> torch.Tensor:
        angles = torch.from_numpy(pose(name, body.asset.joint_names))
        return body(global_orient=angles[0], body_pose=angles[1:]).joints

    target = joints("standing")
    wrong = target + 0.35 * (joints("waving") - target)
    turn = agebody.rotations.axis_angle_to_matrix(torch.tensor([0.0, 0.0, TILT], dtype=torch.float64))
    root = root_of(wrong, layout=LAYOUT)
    shift = torch.tensor([0.45, 0.2, 0.0], dtype=torch.float64)
    return SIZE * (wrong - root) @ turn.mT + root + shift, target


def _draw(axes: Axes, target: torch.Tensor, points: torch.Tensor) -> None:
    for start, end in zip(target, points, strict=True):
        axes.plot(*_ends(start, end), color=PALETTE[0], linewidth=0.9, alpha=0.8)
    for skeleton, color, thickness in ((target, FAINT, 4.0), (points, PALETTE[3], 2.0)):
        for i, j in LAYOUT.edges:
            axes.plot(*_ends(skeleton[i], skeleton[j]), color=color, linewidth=thickness,
                      solid_capstyle="round")  # fmt: skip
        axes.scatter(skeleton[:, 0], skeleton[:, 1], s=9, color=color, zorder=3)
    axes.set(aspect="equal", xlim=(-0.55, 0.95), ylim=(-1.22, 0.8))
    axes.axis("off")


def _ends(start: torch.Tensor, end: torch.Tensor) -> tuple[list[float], list[float]]:
    return [start[0].item(), end[0].item()], [start[1].item(), end[1].item()]


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"alignment.png": (draw_alignment, 1000)}
"""File name -> function that draws it, and its width [pixels]."""
