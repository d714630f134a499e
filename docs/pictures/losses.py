"""Losses: values and gradients over residuals, depth order and age offset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agebody.age import AGE_CLASSES
from agebody.draw.meshes import PALETTE
from agebody.draw.pictures import INK
from agebody.losses import age_class_loss, charbonnier, depth_layer_loss, gmof, huber

PAPER, FAINT = "#f3efe9", "#c9c0b5"
WIDTH = 10.0
"""Size of a figure [inches]; the resolution follows from the requested pixels."""


def draw_penalties(path: Path, width: int) -> None:
    """Plot the penalties of a residual, and their gradients."""
    figure, (cost, pull) = _figure("residual / scale", 2, height=3.9)
    residual = torch.linspace(-4, 4, 801, dtype=torch.float64)
    penalties: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "l2": torch.square,
        "l1": torch.abs,
        "huber": lambda r: huber(r, 1.0),
        "charbonnier": lambda r: charbonnier(r, 1.0),
        "gmof": lambda r: gmof(r, 1.0),
    }
    for (name, penalty), color in zip(penalties.items(), _COLORS, strict=False):
        _plot(cost, residual, penalty(residual), color, name)
        _plot(pull, residual, _slope(penalty, residual), color, name)
    cost.set_ylim(0, 6)
    pull.set_ylim(-3, 3)
    cost.set_title("cost")
    pull.set_title("its slope: how hard a residual pulls")
    _legend(figure, cost)
    _save(figure, path, width)


def draw_depth_layers(path: Path, width: int) -> None:
    """Plot the depth-layer loss of two people over the distance of the second behind the first."""
    figure, axes = _figure("depth of the second person behind the first [m]", 2, height=3.9)
    apart = torch.linspace(-2, 2, 1601, dtype=torch.float64)
    people = torch.stack((torch.zeros_like(apart), apart), -1)
    shown = {
        "both in one layer": ((0, 0), 2.2),
        "the second two layers behind": ((0, 2), 6.0),
        "the second one layer behind": ((0, 1), 2.2),
    }
    for axis, form in zip(axes, ("gated", "log"), strict=True):
        for (name, (layers, thickness)), color in zip(shown.items(), _COLORS, strict=False):
            layer = torch.tensor(layers).expand(len(apart), 2)
            costs = depth_layer_loss(people, layer, form=form, reduction="none")[:, 0, 1]
            _plot(axis, apart, _with_gaps(costs), color, name, thickness)
        axis.set_title(f"{form} form")
        axis.set_ylim(-0.03, 2.2)
    _legend(figure, axes[0])
    axes[0].set_ylabel("cost of the pair")
    _save(figure, path, width)


def draw_age_classes(path: Path, width: int) -> None:
    """Plot the age-class loss of each class over the age offset."""
    figure, (axis,) = _figure("age offset", 1, height=3.5)
    offset = torch.linspace(-0.1, 1.1, 1201, dtype=torch.float64)
    for index, (kind, color) in enumerate(zip(AGE_CLASSES, _COLORS, strict=False)):
        labels = torch.full(offset.shape, index)
        costs = age_class_loss(offset, labels, reduction="none")
        _plot(axis, offset, _with_gaps(costs), color, kind.name)
        axis.text(kind.mid, 0.012, kind.name, color=color, ha="center", weight="bold")
    axis.set_ylim(-0.008, 0.3)
    axis.set_xlim(-0.1, 1.1)
    axis.set_ylabel("cost of one person")
    _save(figure, path, width)


_COLORS = tuple(PALETTE[i] for i in (6, 1, 2, 3, 7))


def _figure(xlabel: str, columns: int, *, height: float) -> tuple[Figure, tuple[Axes, ...]]:
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER, layout="constrained")
    axes = tuple(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.set_facecolor(PAPER)
        axis.set_xlabel(xlabel, color=INK)
        axis.tick_params(colors=INK)
        axis.title.set_color(INK)
        axis.yaxis.label.set_color(INK)
        axis.grid(color=FAINT, linewidth=0.5)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
    return figure, axes


def _plot(
    axis: Axes, x: torch.Tensor, y: torch.Tensor, color: str, label: str, thickness: float = 2.2
) -> None:
    axis.plot(x.numpy(), y.numpy(), color=color, linewidth=thickness, label=label, solid_capstyle="butt")


def _with_gaps(costs: torch.Tensor) -> torch.Tensor:
    """Insert NaN at discontinuities, so that no line is drawn there."""
    before = costs.roll(1)
    jumps = ((costs == 0) != (before == 0)) & ((costs - before).abs() > 0.005)
    return torch.where(jumps, torch.nan, costs)


def _legend(figure: Figure, axis: Axes) -> None:
    """Put the legend above all columns."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False,
                  labelcolor=INK)  # fmt: skip


def _slope(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def _save(figure: Figure, path: Path, width: int) -> None:
    figure.savefig(path, dpi=width / WIDTH, pil_kwargs={"optimize": True})


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "penalties.png": (draw_penalties, 1000),
    "depth_layers.png": (draw_depth_layers, 1000),
    "age_classes.png": (draw_age_classes, 1000),
}
"""File name -> function that draws it, and its width [pixels]."""
