"""Point clouds with normals from depth images, and the table below a body."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.cameras import Camera
from agebody.cameras.camera import expect_camera
from agebody.checks import expect, read_number, read_positive
from agebody.engine.batched import own_precision
from agebody.losses import plane_height

PIXELS = 1 << 16
"""Pixels whose normals are computed together: some 100 MB."""
REACH = 3
"""Normals are fitted to the pixels within this distance in both directions."""
LEAST_SHARE = 0.2
"""Share of the points that must lie on a plane."""
MAX_MEDIAN = 100.0
"""Depth images with a larger median are not in metres."""
MAX_SPREAD = 10.0
"""Points with a larger median distance from their median are probably not in metres."""
BESIDE = 0.5
"""Largest distance from a plane of the points that determine its upper side [m]."""
TRIALS = 300
"""Planes through three random points that are tried."""


class Cloud(NamedTuple):
    """Points of a scan."""

    points: Float[Tensor, "N 3"]
    """In world coordinates [m]."""
    normals: Float[Tensor, "N 3"] | None = None
    """Of length 1, towards the scanner; None if unknown."""

    @classmethod
    def from_depth(
        cls,
        depth: Float[Tensor, "H W"],
        camera: Camera,
        *,
        mask: Bool[Tensor, "H W"] | None = None,
        max_jump: float = 0.03,
    ) -> Cloud:
        """Return world points with normals at the pixel centres of a depth image.

        On a plane the inverse depth is linear in the ray (x, y, 1): ``1 / z = m . (x, y, 1)``, with m along
        the plane's normal. The normal is therefore fitted to the inverse depths of neighbouring pixels by
        least squares, without differences or smoothing. Pixels with few neighbours at a similar depth, which
        cameras make up at the edges of objects, are left out.

        Args:
            depth: z in camera coordinates [m]; pixels that are not finite or not above 0 are holes.
            camera: of this image, without batch dimensions.
            mask: pixels to use, such as the person's; all if None.
            max_jump: largest difference in depth between neighbouring pixels of one surface [m].
        """
        expect_camera(camera)
        depth = expect("depth", depth, None, None)
        if depth.dim() != 2:
            raise ValueError(f"depth: expected one image (H, W), got {tuple(depth.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != depth.shape):
            raise ValueError(
                f"mask: expected booleans {tuple(depth.shape)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if camera.focal.dim() != 1:
            batch = tuple(camera.focal.shape[:-1])
            raise ValueError(f"camera: expected one without batch dimensions, got {batch}; choose camera[i]")
        read_positive("max_jump", max_jump, finite=False)
        valid = depth.isfinite() & (depth > 0)
        if valid.any() and (median := float(depth[valid].median())) > MAX_MEDIAN:
            raise ValueError(
                f"depth: expected metres, got a median of {median:g}; divide millimetres by 1000"
            )
        if mask is not None:
            valid = valid & mask
        row, column = valid.nonzero(as_tuple=True)
        pixels = torch.stack((column, row), -1).to(depth.dtype) + 0.5
        normals, kept = depth.new_zeros(len(row), 3), torch.zeros_like(row, dtype=torch.bool)
        rays = _rays(depth.shape, camera).to(depth)
        for start in range(0, len(row), PIXELS):
            some = slice(start, start + PIXELS)
            normals[some], kept[some] = _normals(depth, valid, rays, row[some], column[some], max_jump)
        if camera.rotation is not None:
            normals = normals @ camera.rotation
        points = camera.unproject(pixels[kept], depth[row, column][kept])
        return cls(points, normals[kept])

    def above(self, plane: Plane, *, margin: float = 0.01, height: float = 1.0) -> Cloud:
        """Return the points above a table.

        Args:
            plane: the table.
            margin: smallest height of points that are kept, above the noise of the table [m].
            height: largest height [m].
        """
        margin = read_number("margin", margin, "a height [m]", finite=False)
        height = read_number("height", height, "a height [m]", finite=False)
        found = plane_height(self.points, plane.normal, plane.offset)
        kept = (found > margin) & (found < height)
        return Cloud(self.points[kept], None if self.normals is None else self.normals[kept])


class Plane(NamedTuple):
    """The plane ``normal . x = offset``, such as a table."""

    normal: Float[Tensor, " 3"]
    """Of length 1, pointing out of the solid."""
    offset: Float[Tensor, ""]
    """[m]"""


def fit_plane(
    points: Cloud | Float[Tensor, "N 3"],
    *,
    towards: Camera | Float[Tensor, " 3"] | None = None,
    tolerance: float = 0.01,
) -> Plane:
    """Fit the plane on which most points lie, such as the table below an infant: RANSAC, then least squares.

    Args:
        points: [m], may include those of the body.
        towards: the camera, or a point on the upper side. If None, the side to which the normals of a `Cloud`
            point, which is that of its camera; without normals, the side with more points within half a
            metre, such as those of the body.
        tolerance: largest distance of a point on the plane [m].
    """
    points, point_normals = points if isinstance(points, Cloud) else (points, None)
    points = expect("points", points, None, 3)
    if points.dim() != 2 or len(points) < 3:
        raise ValueError(f"points: expected shape (N, 3) with at least three, got {tuple(points.shape)}")
    if not points.isfinite().all():
        raise ValueError("points: expected finite points; leave out holes")
    read_positive("tolerance", tolerance, "a length", " [m]")
    if point_normals is not None and point_normals.shape != points.shape:
        got = f"{len(points)} points, and normals of shape {tuple(point_normals.shape)}"
        raise ValueError(f"points: expected a normal for each point of the cloud, got {got}")
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(len(points), (4096,), generator=generator, device="cpu")
    triples = torch.randint(len(points), (3, TRIALS), generator=generator, device="cpu")
    some, (a, b, c) = points[drawn.to(points.device)], points[triples.to(points.device)]
    with own_precision(points.device):
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
                found = f"points: expected a plane, found {len(on)} points on a line, to {tolerance} m"
                raise ValueError(found + _advise_units(points))
            normal = axes[2]
            offset = middle @ normal
        heights = points @ normal - offset
    share = (heights.abs() <= tolerance).to(points.dtype).mean().item()
    if not share >= LEAST_SHARE:
        found = f"points: expected {LEAST_SHARE:.0%} of them on one plane, to {tolerance} m, got {share:.0%}"
        raise ValueError(found + _advise_units(points))
    if towards is not None:
        eye = towards.position if isinstance(towards, Camera) else towards
        if not isinstance(eye, Tensor) or eye.shape != (3,) or not eye.isfinite().all():
            raise ValueError(f"towards: expected a camera, or a point, a finite tensor (3,), got {towards}")
        above = (eye.to(normal) * normal).sum() - offset
    elif point_normals is not None:
        sides = (point_normals[heights.abs() <= tolerance].to(normal) * normal).sum(-1)
        above = sides.nansum() - offset.sign() / 2  # without normals, towards the origin
    else:
        beside = (heights.abs() > tolerance) & (heights.abs() <= BESIDE)
        above = heights[beside].sign().sum() - offset.sign() / 2
    return Plane(normal, offset) if above >= 0 else Plane(-normal, -offset)


def _advise_units(points: Float[Tensor, "N 3"]) -> str:
    """Return what to do if points that lie on no plane are not in metres."""
    spread = float((points - points.median(0).values).norm(dim=-1).median())
    if spread <= MAX_SPREAD:
        return ""
    advice = "are these metres? Divide millimetres by 1000"
    return f"; half of them are {spread:.3g} m and more from the middle one; {advice}"


def _rays(shape: torch.Size, camera: Camera) -> Float[Tensor, "H W 2"]:
    """Return x and y of the ray of each pixel at depth 1, in camera coordinates."""
    height, width = shape
    like = {"dtype": camera.focal.dtype, "device": camera.focal.device}
    rows, columns = torch.arange(height, **like), torch.arange(width, **like)
    pixels = torch.cartesian_prod(rows, columns).flip(-1) + 0.5
    return camera.undistort(pixels).reshape(height, width, 2)


def _normals(
    depth: Tensor, valid: Tensor, rays: Tensor, row: Tensor, column: Tensor, max_jump: float
) -> tuple[Tensor, Tensor]:
    """Return (n, 3) normals in camera coordinates, and which pixels have enough neighbours for one."""
    height, width = depth.shape
    step = torch.arange(-REACH, REACH + 1, device=depth.device)
    rows, columns = row[:, None] + step.repeat_interleave(len(step)), column[:, None] + step.repeat(len(step))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    near, here = depth[rows, columns], depth[row, column]
    same = inside & valid[rows, columns] & ((near - here[:, None]).abs() <= max_jump)
    # Relative to the pixel and in units of the distances of its neighbours' rays, for precision.
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
