"""Mean depths of people in a depth map, and of their bodies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import expect, expect_tensor
from agebody.mesh.closest import visible_vertices

WHISKERS = 1.5
"""Outliers of a depth map are farther from the quartiles than this many interquartile ranges."""
MAX_RESIDUAL = 0.1
"""Largest difference between the relief of a body and that of the depth map [m]."""


class MaskDepths(NamedTuple):
    """Statistics over the pixels of each person on which both depths agree; zero without such pixels."""

    depth: Float[Tensor, "*images P"]
    """Mean of the depth map, in its own unit."""
    rendered_depth: Float[Tensor, "*images P"]
    """Mean depth of the body [m]."""
    spread: Float[Tensor, "*images P"]
    """Standard deviation of the depth map within the person."""
    slope: Float[Tensor, "*images P"]
    """Metres per unit of the depth map, from the relief of the body."""
    correlation: Float[Tensor, "*images P"]
    """Correlation of the two reliefs: the reliability of the slope."""
    pixels: Int[Tensor, "*images P"]
    """Number of pixels."""
    low_depth: Float[Tensor, "*images P"]
    """Mean of the depth map over the lowest tenth of the pixels, near the ground."""
    low_rendered_depth: Float[Tensor, "*images P"]
    """Mean depth of the body over these [m]."""


def mask_depths(
    depth: Float[Tensor, "*images H W"],
    rendered: Float[Tensor, "*images N H W"],
    masks: Bool[Tensor, "*images P H W"],
) -> MaskDepths:
    """Compare a depth map with rendered depths of bodies, person by person.

    Excluded from each mask are pixels without a body, outliers of the depth map (``WHISKERS``), and pixels
    where the relief of the body differs by more than ``MAX_RESIDUAL`` from the scaled relief of the depth
    map. Slope and correlation are computed from differences to the mean of each row of pixels, because depth
    networks tilt the ground.

    Args:
        depth: depth map that grows away from the camera: metres, or the reciprocal of a disparity. NaN,
            infinite and negative pixels count as missing.
        rendered: depth of the bodies, infinite where there is none [m]: one map of all people (N = 1), or
            one per person (N = P).
        masks: pixels of each person.

    Source: the code of DTO (Wang et al. 2025).
    """
    depth = expect("depth", depth, None, None)
    rendered = expect("rendered", rendered, None, None, None)
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks: expected a torch.Tensor of booleans, got {kind}")
    grid = depth[..., None, :, :]
    try:
        shape = torch.broadcast_shapes(grid.shape, rendered.shape, masks.shape)
    except RuntimeError:
        shape = None
    if shape != masks.shape:
        raise ValueError(
            f"masks: expected shape (*images, P, H, W) for depth {tuple(depth.shape)} and rendered "
            f"{tuple(rendered.shape)}, got {tuple(masks.shape)}"
        )
    seen = masks & grid.isfinite() & (grid >= 0) & rendered.isfinite()
    seen = seen & _without_outliers(grid.detach(), seen)
    relief, body = (_from_row_means(map_, seen) for map_ in (grid, rendered))
    slope, correlation = _regression(relief, body)
    agrees = (slope[..., None, None] * relief - body).abs() <= MAX_RESIDUAL
    seen = seen & agrees
    mean, rendered_mean = (_mean(map_, seen) for map_ in (grid, rendered))
    variance = _mean((grid - mean[..., None, None]).square(), seen)
    spread = torch.where(variance > 0, torch.sqrt(torch.where(variance > 0, variance, 1)), 0)
    low = seen & _is_low(seen)
    down = (_mean(map_, low) for map_ in (grid, rendered))
    return MaskDepths(mean, rendered_mean, spread, slope, correlation, seen.sum((-2, -1)), *down)


def surface_depth(
    vertices: Float[Tensor, "*batch V 3"], faces: Int[Tensor, "F 3"]
) -> Float[Tensor, "*batch"]:
    """Return the mean depth of the visible surface of a body [m], weighted by covered image area.

    The mean depth of a rendered body, without a renderer, and differentiable. Occlusion by the body itself
    counts, occlusion by other bodies does not.

    Args:
        vertices: in camera coordinates, in front of the camera [m].
        faces: counter-clockwise from outside.
    """
    seen = visible_vertices(vertices, faces, expect_tensor("vertices", vertices).new_zeros(3))
    corners = vertices[..., faces.long(), :]
    plane = corners[..., :2] / corners[..., 2:]
    first, second = plane[..., 1, :] - plane[..., 0, :], plane[..., 2, :] - plane[..., 0, :]
    covered = torch.relu(first[..., 1] * second[..., 0] - first[..., 0] * second[..., 1])
    covered = covered * seen[..., faces.long()].to(vertices.dtype).mean(-1)
    return (covered * corners[..., 2].mean(-1)).sum(-1) / covered.sum(-1)


def _is_low(seen: Tensor) -> Tensor:
    """Return the rows at or below the 90th percentile of the rows of each mask's pixels, (..., H, 1)."""
    count = seen.sum(-1).cumsum(-1)
    place = 0.9 * (count[..., -1:] - 1).clamp(min=0).double()
    first, second = ((count <= way(place)).sum(-1) for way in (torch.floor, torch.ceil))
    bound = first + (place[..., 0] - place[..., 0].floor()) * (second - first)
    return (torch.arange(seen.shape[-2], device=seen.device) >= bound[..., None])[..., None]


def _without_outliers(grid: Tensor, seen: Tensor) -> Tensor:
    """Return which pixels lie within the whiskers of the values of each mask."""
    ordered = torch.where(seen, grid, torch.inf).flatten(-2).sort(-1).values
    last = (seen.sum((-2, -1)) - 1).clamp(min=0)
    low, high = (
        ordered.gather(-1, (share * last).round().long()[..., None])[..., None] for share in (0.25, 0.75)
    )
    reach = WHISKERS * (high - low)
    return (grid >= low - reach) & (grid <= high + reach)


def _from_row_means(grid: Tensor, seen: Tensor) -> Tensor:
    """Return differences from the mean of each row of pixels; zero outside the mask."""
    inside = torch.where(seen, grid, 0)
    mean = inside.sum(-1) / seen.sum(-1).clamp(min=1)
    return torch.where(seen, grid - mean[..., None], 0)


def _regression(relief: Tensor, body: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and correlation of the body's relief over the map's; zero if either is flat."""
    xx, xy, yy = ((a * b).sum((-2, -1)) for a, b in ((relief, relief), (relief, body), (body, body)))
    flat = (xx <= 0) | (yy <= 0)
    xx, yy = torch.where(flat, 1, xx), torch.where(flat, 1, yy)
    return torch.where(flat, 0, xy / xx), torch.where(flat, 0, xy / torch.sqrt(xx * yy))


def _mean(grid: Tensor, seen: Tensor) -> Tensor:
    return torch.where(seen, grid, 0).sum((-2, -1)) / seen.sum((-2, -1)).clamp(min=1)
