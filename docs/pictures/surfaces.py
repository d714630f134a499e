"""Surfaces: a scan and the body fitted to it, and a body lying on a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

import agebody
from agebody import losses
from agebody.cameras import Camera
from agebody.draw import render
from agebody.draw.pictures import INK
from agebody.mesh import closest as proximity
from agebody.people import pose

PAPER = "#f3efe9"
CLAY = "#d8d0c6"
FAR = 0.05
"""Distance at the end of the colour scale [m]."""
COLORS = LinearSegmentedColormap.from_list("distance", ["#3f7f8c", "#e3c977", "#b2452f"])
EYE = (0.0, 0.0, 3.0)


def draw_surfaces(path: Path, width: int) -> None:
    """Draw distances of a scan before and after a fit, and heights above a table."""
    body = agebody.SMPLA(agebody.mannequin())
    figure = Figure(figsize=(10, 4.3), dpi=width / 10, facecolor=PAPER)
    before, after, table = figure.subplots(1, 3, width_ratios=(1, 1, 2.4))
    figure.subplots_adjust(0.01, 0.02, 0.91, 0.93, wspace=0.04)
    scan, start, fitted = _fit(body)
    for ax, vertices, title in ((before, start, "scan and first guess"), (after, fitted, "after 60 steps")):
        _draw_scan(ax, vertices, body.faces, scan)
        ax.set_title(title, color=INK, fontsize=11)
    _draw_table(table, body)
    table.set_title("height above the table, from the side", color=INK, fontsize=11)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 100 * FAR), COLORS), cax=figure.add_axes((0.925, 0.2, 0.015, 0.6))
    )
    bar.set_label("distance [cm]", color=INK)
    figure.savefig(path, facecolor=PAPER)


def _fit(body: agebody.SMPLA) -> tuple[Tensor, Tensor, Tensor]:
    """Return a scan of a child, the initial body, and the body after some steps of Adam."""
    torch.manual_seed(0)
    eye = torch.tensor(EYE)
    standing = torch.from_numpy(pose("standing", body.asset.joint_names)).float()[1:]
    betas = torch.zeros(body.num_betas)
    betas[1] = 1.5
    with torch.no_grad():
        child = body(
            age_offset=torch.tensor(0.45), betas=betas, body_pose=standing,
            transl=torch.tensor([0.05, -0.02, 0.04]),
        ).vertices  # fmt: skip
    scan = child[proximity.visible_vertices(child, body.faces, eye)][::4]
    scan = scan + 0.003 * torch.randn_like(scan)
    sizes = {"age_offset": (), "betas": (10,), "transl": (3,)}
    free = {name: torch.zeros(size, requires_grad=True) for name, size in sizes.items()}
    optimizer = torch.optim.Adam(free.values(), lr=0.05)
    robust = partial(losses.gmof, rho=0.1)
    start = visible = None
    for step in range(60):
        vertices = body(**free, body_pose=standing).vertices
        start = vertices.detach() if start is None else start
        if step % 10 == 0:
            visible = proximity.visible_vertices(vertices.detach(), body.faces, eye)
        energy = losses.scan_to_mesh_loss(vertices, scan, body.faces, visible=visible, penalty=robust)
        energy = energy + losses.mesh_to_scan_loss(vertices, scan, weights=visible, penalty=robust)
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
    assert start is not None
    return scan, start, body(**free, body_pose=standing).vertices.detach()


def _draw_scan(ax: Axes, vertices: Tensor, faces: Tensor, scan: Tensor) -> None:
    size = (400, 740)
    camera = Camera.look_at((0, -0.15, 9), (0, -0.15, 0), size=size, fov=0.21)
    picture = render(vertices, faces, camera, size=size, colors=[CLAY], background=(PAPER, PAPER))
    ax.imshow(picture.rgba)
    u, v = camera.project(scan).pixels.T.numpy() - 0.5
    distance = proximity.closest_points(scan, vertices, faces).distance.numpy()
    ax.scatter(u, v, c=distance, s=1.3, cmap=COLORS, vmin=0, vmax=FAR, linewidths=0)
    ax.set_axis_off()


def _draw_table(ax: Axes, body: agebody.SMPLA) -> None:
    """Return an infant on its back with lifted legs; the table is below y = 0."""
    names = body.asset.joint_names[1:]
    bent = torch.from_numpy(pose("standing", body.asset.joint_names)).float()[1:]
    for side in ("left", "right"):
        bent[names.index(f"{side}_hip"), 0] = -1.3
        bent[names.index(f"{side}_knee"), 0] = 1.5
    lying = {
        "body_pose": bent,
        "global_orient": torch.tensor([-math.pi / 2, 0, 0]),
        "age_offset": torch.tensor(1.0),
    }
    up, level = torch.tensor([0.0, 1, 0]), torch.tensor(0.0)
    back = losses.part_vertices(body.asset, "trunk", facing=(0, 0, -1))
    with torch.no_grad():
        vertices = body(**lying).vertices
        vertices[:, 1] -= vertices[back, 1].quantile(0.15)
        height = losses.plane_height(vertices, up, level)
    colors = COLORS(Normalize(0, FAR)(height.abs().numpy()))[:, :3]
    low, high = vertices.amin(0), vertices.amax(0)
    middle = ((low + high) / 2).tolist()
    size = (1000, 740)
    camera = Camera.look_at((9.0, middle[1], middle[2]), (0.0, middle[1], middle[2]), size=size, fov=0.06)
    picture = render(vertices, body.faces, camera, size=size, colors=[colors], background=(PAPER, PAPER))
    ax.imshow(picture.rgba)
    line = camera.project(torch.tensor([[0.0, 0.0, middle[2]]])).pixels[0, 1].item() - 0.5
    ax.axhspan(line, size[1], color=CLAY, alpha=0.45, lw=0)
    ax.axhline(line, color=INK, lw=1)
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
    ax.set_axis_off()


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"surfaces.png": (draw_surfaces, 1000)}
"""File name -> function that draws it, and its width [pixels]."""
