"""From depth images to points on a body: clouds with normals, and the table that the body lies on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.cameras import Camera
from agebody.checks import expect
from agebody.losses import plane_height

PIXELS = 1 << 16
"""Pixels whose surroundings are looked at together: some 100 MB at the default reach."""


class Cloud(NamedTuple):
    """Points of one scan."""

    points: Float[Tensor, "N 3"]
    """In the world [m]."""
    normals: Float[Tensor, "N 3"] | None = None
    """Of length 1, towards the scanner; None where they are not known."""


class Plane(NamedTuple):
    """The plane ``normal . x = offset``, such as a table."""

    normal: Float[Tensor, " 3"]
    """Of length 1, away from what is solid."""
    offset: Float[Tensor, ""]
    """[m]"""


def points_from_depth(
    depth: Float[Tensor, "H W"],
    camera: Camera,
    *,
    mask: Bool[Tensor, "H W"] | None = None,
    reach: int = 3,
    max_jump: float = 0.03,
) -> Cloud:
    """World points at the centres of the pixels of a depth image, with normals.

    Around a pixel whose surface is a plane, the inverse depth is linear in the ray (x, y, 1):
    ``1 / z = m . (x, y, 1)``, with m along the plane's normal. So the normal is fitted to the inverse depths
    of the surroundings by least squares, which needs neither differences nor a smoothed image. Pixels with
    few neighbours at about their own depth, as cameras make up at the edges of things, are left out.

    Args:
        depth: z in camera coordinates [m]; what is not finite or not above 0 is a hole.
        camera: of this image, without batch dimensions.
        mask: pixels that are looked at, such as the person's; all if None.
        reach: the surroundings are the pixels so far off in both directions.
        max_jump: largest step in depth from a pixel to a neighbour on the same surface [m].

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a shape or a number is wrong.
    """
    expect("depth", depth, None, None)
    if depth.dim() != 2:
        raise ValueError(f"depth: expected one image (H, W), got {tuple(depth.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != depth.shape):
        raise ValueError(
            f"mask: expected booleans {tuple(depth.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    if reach < 1 or not max_jump > 0:
        raise ValueError(f"reach, max_jump: expected above 0, got {reach} and {max_jump}")
    valid = depth.isfinite() & (depth > 0)
    if mask is not None:
        valid = valid & mask
    row, column = valid.nonzero(as_tuple=True)
    pixels = torch.stack((column, row), -1).to(depth.dtype) + 0.5
    normals, kept = depth.new_zeros(len(row), 3), torch.zeros_like(row, dtype=torch.bool)
    rays = _rays(depth.shape, camera).to(depth)
    for start in range(0, len(row), PIXELS):
        some = slice(start, start + PIXELS)
        normals[some], kept[some] = _normals(depth, valid, rays, row[some], column[some], reach, max_jump)
    if camera.rotation is not None:
        normals = normals @ camera.rotation
    points = camera.unproject(pixels[kept], depth[row, column][kept])
    return Cloud(points, normals[kept])


def fit_plane(
    points: Float[Tensor, "N 3"],
    *,
    towards: Float[Tensor, " 3"] | None = None,
    tolerance: float = 0.01,
    least_share: float = 0.2,
    trials: int = 300,
    seed: int = 0,
) -> Plane:
    """The plane on which most points lie, such as the table below an infant: RANSAC, then least squares.

    Args:
        points: [m], those of the body among them.
        towards: a point on the upper side, such as the camera's place; the origin if None.
        tolerance: largest distance of a point that lies on the plane [m].
        least_share: share of the points that must lie on it.
        trials: planes through three points that are tried.
        seed: of the choice of those.

    Raises:
        TypeError: the points are no tensor of floats.
        ValueError: they have another shape, are fewer than three or not finite, no plane holds enough of
            them, or those that it holds lie on a line, within the tolerance.
    """
    expect("points", points, None, 3)
    if points.dim() != 2 or len(points) < 3:
        raise ValueError(f"points: expected shape (N, 3) with at least three, got {tuple(points.shape)}")
    if not points.isfinite().all():
        raise ValueError("points: expected finite points; leave out what is a hole")
    generator = torch.Generator().manual_seed(seed)
    some = points[torch.randint(len(points), (4096,), generator=generator).to(points.device)]
    a, b, c = points[torch.randint(len(points), (3, trials), generator=generator).to(points.device)]
    normals = torch.linalg.cross(b - a, c - a)
    normals = normals / normals.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(points.dtype).tiny)
    near = (some @ normals.T - (a * normals).sum(-1)).abs() <= tolerance
    best = int((near.sum(0) * (normals.norm(dim=-1) > 0.5)).argmax())
    normal, offset = normals[best], a[best] @ normals[best]
    for _ in range(3):
        on = points[(points @ normal - offset).abs() <= tolerance]
        middle = on.mean(0)
        _, extent, axes = torch.linalg.svd(on - middle, full_matrices=False)
        if len(on) < 3 or extent[1] <= tolerance * len(on) ** 0.5:
            raise ValueError(f"points: expected a plane, found {len(on)} points on a line, to {tolerance} m")
        normal = axes[2]
        offset = middle @ normal
    share = ((points @ normal - offset).abs() <= tolerance).to(points.dtype).mean().item()
    if not share >= least_share:
        raise ValueError(
            f"points: expected a plane with {least_share:.0%} of the points, found {share:.0%} on one"
        )
    above = -offset if towards is None else towards @ normal - offset
    return Plane(normal, offset) if above >= 0 else Plane(-normal, -offset)


def above_plane(cloud: Cloud, plane: Plane, *, margin: float = 0.01, height: float = 1.0) -> Cloud:
    """The part of a cloud that stands out from a table.

    Args:
        cloud: a scan.
        plane: the table.
        margin: height from which on points are kept, above the noise of the table's [m].
        height: up to which they are kept [m].
    """
    found = plane_height(cloud.points, plane.normal, plane.offset)
    kept = (found > margin) & (found < height)
    normals = None if cloud.normals is None else cloud.normals[kept]
    return Cloud(cloud.points[kept], normals)


def _rays(shape: torch.Size, camera: Camera) -> Float[Tensor, "H W 2"]:
    """x and y of each pixel's ray at depth 1, in camera coordinates."""
    height, width = shape
    lens = camera._replace(rotation=None, translation=None)
    at = lambda count: torch.arange(count, dtype=camera.focal.dtype, device=camera.focal.device) + 0.5  # noqa: E731
    v, u = torch.meshgrid(at(height), at(width), indexing="ij")
    pixels = torch.stack((u, v), -1).reshape(-1, 2)
    return lens.unproject(pixels, torch.ones_like(pixels[:, 0]))[:, :2].reshape(height, width, 2)


def _normals(
    depth: Tensor, valid: Tensor, rays: Tensor, row: Tensor, column: Tensor, reach: int, max_jump: float
) -> tuple[Tensor, Tensor]:
    """(n, 3) normals in camera coordinates towards the camera, and which pixels have enough neighbours."""
    height, width = depth.shape
    step = torch.arange(-reach, reach + 1, device=depth.device)
    rows, columns = row[:, None] + step.repeat_interleave(len(step)), column[:, None] + step.repeat(len(step))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    near, here = depth[rows, columns], depth[row, column]
    same = inside & valid[rows, columns] & ((near - here[:, None]).abs() <= max_jump)
    # About the pixel itself and in steps of its neighbours' rays, so that the sums keep their digits.
    way = (rays[rows, columns] - rays[row, column][:, None]).double()
    size = way.abs().amax((1, 2), keepdim=True)
    design = torch.cat((way / size, torch.ones_like(way[..., :1])), -1) * same[..., None]
    inverse = torch.where(same, 1 / near, 0).double()
    matrix = design.mT @ design + 1e-9 * torch.eye(3, dtype=torch.float64, device=depth.device)
    slope_x, slope_y, level = torch.linalg.solve(matrix, (design * inverse[..., None]).sum(1)).unbind(-1)
    slope = torch.stack((slope_x, slope_y), -1) / size[:, 0]
    away = torch.cat((slope, (level - (slope * rays[row, column]).sum(-1))[:, None]), -1)
    normals = -away / away.norm(dim=-1, keepdim=True)
    return normals.to(depth.dtype), same.sum(1) >= same.shape[1] // 3
