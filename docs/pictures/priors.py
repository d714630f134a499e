"""Priors: their values as curves and on bodies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

import agebody
from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.draw import lineup
from agebody.draw.meshes import PALETTE
from agebody.draw.pictures import INK
from agebody.losses import MaxMixturePrior, joint_limits, joint_limits_loss, joint_limits_prior
from agebody.losses.priors import hyperextension_residuals
from agebody.people import pose

BODY = SMPL_JOINT_NAMES[1:]


def draw_curves(path: Path, width: int) -> None:
    """Plot a knee under three priors, and the two kinds of mixture."""
    look = {"font.size": 9, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK,
            "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
            "figure.facecolor": "#f3efe9", "axes.facecolor": "#f3efe9"}  # fmt: skip
    with plt.rc_context(look):
        figure, (knee, mixture) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
        _draw_knee(knee)
        _draw_mixture(mixture)
        figure.savefig(path, dpi=width / 9)
        plt.close(figure)


def _draw_knee(axes: plt.Axes) -> None:
    degrees = torch.linspace(-60, 180, 481, dtype=torch.float64)
    knee = BODY.index("left_knee")
    poses = torch.zeros(len(degrees), len(BODY), 3, dtype=torch.float64)
    poses[:, knee, 0] = degrees.deg2rad()
    axes.axvspan(-5, 145, color="#e4ded6", label="an adult's range")
    axes.plot(
        degrees,
        hyperextension_residuals(poses)[:, 2].square(),
        color=PALETTE[0],
        label="hyperextension prior",
    )
    for age, style, who in ((0.0, "-", "adult"), (1.0, ":", "newborn")):
        limits = joint_limits(age_offset=age, dtype=torch.float64)
        cost = 10 * joint_limits_loss(poses, limits, reduction="none")[:, knee]
        axes.plot(degrees, cost, style, color=PALETTE[3], label=f"joint limits, {who}, × 10")
    prior = joint_limits_prior(dtype=torch.float64)
    cost = prior.residuals(poses).square()[:, 3 * knee]
    axes.plot(degrees, cost, color=PALETTE[4], label="normal distribution over the range")
    axes.set(xlabel="knee, from hyper-extended to bent [degrees]", ylabel="cost", ylim=(-0.2, 9))
    axes.set_xticks(range(-60, 181, 30))
    axes.legend(frameon=False, fontsize=8)


def _draw_mixture(axes: plt.Axes) -> None:
    degrees = torch.linspace(-40, 150, 400, dtype=torch.float64)
    means, spreads = torch.tensor([10.0, 85.0]).deg2rad(), torch.tensor([10.0, 20.0]).deg2rad()
    poses = torch.zeros(len(degrees), 1, 3, dtype=torch.float64)
    poses[..., 0] = degrees.deg2rad()[:, None]
    arrays = (
        torch.nn.functional.pad(means[:, None], (0, 2)),
        torch.diag_embed(spreads.square()[:, None].expand(2, 3)),
        torch.tensor([0.6, 0.4]),
    )
    for soft, style in ((False, "-"), (True, "--")):
        prior = MaxMixturePrior(*arrays, ["knee"], soft=soft, dtype=torch.float64)
        label = "soft: the likelihood" if soft else "the cheapest component (SMPLify)"
        axes.plot(
            degrees, prior(poses, reduction="none"), style, color=PALETTE[0 if soft else 4], label=label
        )
    axes.set(xlabel="knee [degrees]", ylabel="energy", ylim=(2, 12))
    axes.legend(frameon=False, fontsize=8, loc="upper center")


def draw_poses(path: Path, width: int) -> None:
    """Draw possible and impossible poses with the values of the priors."""
    shown = {
        "sitting": {},
        "waving": {},
        "knees back": {"left_knee": (-50, 0, 0), "right_knee": (-50, 0, 0)},
        "elbow back": {"right_elbow": (0, -80, 0)},
        "head round": {"head": (0, 110, 0)},
    }
    poses = []
    for name, changes in shown.items():
        full = pose(name if not changes else "standing", SMPL_JOINT_NAMES, heading=0.9)
        for joint, angles in changes.items():
            full[SMPL_JOINT_NAMES.index(joint)] = np.radians(angles)
        poses.append(torch.from_numpy(full))
    full_pose = torch.stack(poses)
    body_pose = full_pose[:, 1:]
    bend = hyperextension_residuals(body_pose).square().sum(-1)
    limits = joint_limits_loss(body_pose, reduction="none").sum(-1)
    normal = joint_limits_prior(dtype=torch.float64)(body_pose, reduction="none")
    titles = [
        f"{name}\nbend {b:.1f}\nlimits {beyond:.1f}\nnormal {n:.0f}"
        for name, b, beyond, n in zip(shown, bend, limits, normal, strict=True)
    ]
    body = agebody.SMPLA(agebody.anny_body())
    vertices = body(body_pose=body_pose.float(), global_orient=full_pose[:, 0].float()).vertices
    possible, impossible = "#9fb8a8", "#d9a58f"
    picture = lineup(
        vertices, body.faces, size=(width, round(0.42 * width)), titles=titles, text_size=width / 60,
        colors=[possible if not changes else impossible for changes in shown.values()],
    )  # fmt: skip
    Image.fromarray(picture.rgba).convert("RGB").save(path, optimize=True)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "prior_curves.png": (draw_curves, 1080),
    "prior_poses.png": (draw_poses, 1100),
}
