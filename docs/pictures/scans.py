"""Scans: infants on a table seen by a depth camera, and the bodies fitted to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

import agebody
from agebody import BodyParameters
from agebody.cameras import Camera
from agebody.draw import render
from agebody.draw.pictures import INK
from agebody.fitting import Cloud, Plane, fit_plane, fit_scans
from agebody.fitting.scans.frames import read_frames
from agebody.fitting.scans.registration import ScanFit
from agebody.fitting.scans.start import start_from_landmarks
from agebody.keypoints import get_layout
from agebody.losses import joint_limits_prior
from agebody.mesh.closest import closest_points
from agebody.people import pose

PAPER = "#f3efe9"
CLAY = "#d8d0c6"
FAR = 0.02
"""Distance at the end of the colour scale [m]."""
COLORS = LinearSegmentedColormap.from_list("distance", ["#3f7f8c", "#e3c977", "#b2452f"])
SIZE = (160, 120)
SCALE = 4
"""Size of the pictures of the body relative to the depth image."""
POSE = "kicking"


def draw_scans(path: Path, width: int) -> None:
    """Draw a depth image, the body at the start, after two steps, and its surface after the third."""
    depth, view, cloud, start, fit = _example()
    body = _body()
    figure = Figure(figsize=(10, 3.7), dpi=width / 10, facecolor=PAPER)
    axes = figure.subplots(1, 4)
    figure.subplots_adjust(0.005, 0.02, 0.915, 0.9, wspace=0.03)
    axes[0].imshow(depth.numpy(), cmap="bone", interpolation="nearest")
    axes[0].set_title("depth, 2 mm of noise, a hole", color=INK, fontsize=10)
    surface = fit.vertices if fit.surface is None else fit.surface
    for ax, vertices, title in (
        (axes[1], start, "the start, from landmarks"),
        (axes[2], fit.vertices[0], "steps 1 and 2: shape and pose"),
        (axes[3], surface[0], "step 3: the surface"),
    ):
        _draw(ax, vertices, body.faces, cloud, view)
        ax.set_title(title, color=INK, fontsize=10)
    low, high = view.project(cloud).pixels.aminmax(dim=0)
    (left, top), (right, bottom) = (low - 6).tolist(), (high + 6).tolist()
    for ax, scale in zip(axes, (1, SCALE, SCALE, SCALE), strict=True):
        ax.set(xlim=(scale * left, scale * right), ylim=(scale * bottom, scale * top))
        ax.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1000 * FAR), COLORS),
        cax=figure.add_axes((0.925, 0.14, 0.012, 0.64)),
        ticks=(0, 5, 10, 15, 20),
    )
    bar.set_label("distance [mm]", color=INK)
    figure.savefig(path, facecolor=PAPER)


@cache
def _body() -> agebody.SMIL:
    return agebody.SMIL(agebody.mannequin().at_age(1.0))


@cache
def _example() -> tuple[Tensor, Camera, Tensor, Tensor, ScanFit]:
    """Return depth image, camera, point cloud of the infant, initial estimate and fit."""
    body = _body()
    names = body.asset.joint_names
    generator = torch.Generator().manual_seed(3)
    angles = torch.from_numpy(pose(POSE, names, heading=0.9)).float()
    angles[1:] += 0.12 * torch.randn(angles[1:].shape, generator=generator)
    betas = torch.tensor([1.0, -1.0, 0.5, 0, 0, 0, 0, 0, 0, 0])
    truth = BodyParameters.zeros(body, 1)._replace(
        global_orient=angles[None, 0], body_pose=angles[None, 1:], betas=betas[None]
    )
    vertices = body(truth).vertices
    middle = vertices.mean(1)
    middle[:, 1] = vertices[..., 1].amin()
    truth, vertices = truth._replace(transl=-middle), vertices - middle[:, None]
    view = Camera.look_at(
        torch.tensor([0.15, 1.0, 0.25]), torch.tensor([0.0, 0.05, 0.0]), size=SIZE, fov=math.radians(36)
    )
    depth = _depth(vertices[0], body.faces, view)
    depth = depth + 0.002 * torch.randn(depth.shape, generator=generator)
    depth[55:61, 74:82] = torch.nan
    cloud = Cloud.from_depth(depth, view)
    plane = fit_plane(cloud.points, towards=torch.tensor([0.0, 1.0, 0.0]))
    infant = cloud.above(plane)
    landmarks = view.project(body.keypoints("coco17", truth)).pixels
    landmarks = landmarks + torch.randn(landmarks.shape, generator=generator)
    start = _start(body, infant, view, landmarks, plane)
    fit = fit_scans(body, [infant], view, keypoints=landmarks, plane=plane, sample=200, rounds=1)
    return depth, view, infant.points, start, fit


def _start(body: agebody.SMIL, cloud: Cloud, view: Camera, landmarks: Tensor, plane: Plane) -> Tensor:
    layout = get_layout("coco17")
    frames = read_frames(body, [cloud], view, landmarks, None, layout, plane)
    prior = joint_limits_prior(body.asset.joint_names[1:], age_offset=1.0)
    middle = prior.mean.view(-1, 3)
    start = start_from_landmarks(body, frames, layout, middle, None)
    return body(start).vertices[0]


def _depth(vertices: Tensor, faces: Tensor, view: Camera) -> Tensor:
    """Return the depth of the infant and of the table at y = 0."""
    infant = torch.from_numpy(render(vertices, faces, view, size=SIZE, light_rays=0).depth.copy())
    y, x = torch.meshgrid(torch.arange(SIZE[1]) + 0.5, torch.arange(SIZE[0]) + 0.5, indexing="ij")
    pixels = torch.stack((x, y), -1).view(-1, 2)
    ends = view.unproject(pixels, torch.ones(len(pixels)))
    eye = view.to_world(torch.zeros(1, 3))
    table = (eye[:, 1] / (eye - ends)[:, 1]).view(SIZE[1], SIZE[0])
    return torch.minimum(infant, table)


def _draw(ax: Axes, vertices: Tensor, faces: Tensor, cloud: Tensor, view: Camera) -> None:
    near = view.resized(SCALE)
    picture = render(
        vertices, faces, near, size=(SCALE * SIZE[0], SCALE * SIZE[1]), colors=[CLAY],
        background=(PAPER, PAPER),
    )  # fmt: skip
    ax.imshow(picture.rgba)
    cloud = cloud[::2]
    u, v = near.project(cloud).pixels.T.numpy() - 0.5
    distance = closest_points(cloud, vertices, faces).distance.numpy()
    ax.scatter(u, v, c=distance, s=2.2, cmap=COLORS, vmin=0, vmax=FAR, linewidths=0)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"scans.png": (draw_scans, 1000)}
"""File name -> function that draws it, and its width [pixels]."""
