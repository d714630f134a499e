"""What a depth map says of each person of an image, beside the depth of the body that was found."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import expect
from agebody.mesh.closest import visible_vertices


class MaskDepths(NamedTuple):
    """Means over the pixels of each person that both depths agree on; zero where a person has none."""

    depth: Float[Tensor, "*images P"]
    """Mean of the depth map, in its own unit."""
    rendered_depth: Float[Tensor, "*images P"]
    """Mean depth of the body [m]."""
    spread: Float[Tensor, "*images P"]
    """Standard deviation of the depth map within the person."""
    slope: Float[Tensor, "*images P"]
    """Metres for a unit of the depth map, by the relief of the person's own body."""
    correlation: Float[Tensor, "*images P"]
    """Of the two reliefs, from -1 to 1: how far the slope can be believed."""
    pixels: Int[Tensor, "*images P"]
    """How many there are."""


def mask_depths(
    depth: Float[Tensor, "*images H W"],
    rendered: Float[Tensor, "*images N H W"],
    masks: Bool[Tensor, "*images P H W"],
    *,
    whiskers: float = 1.5,
    max_residual: float = 0.1,
) -> MaskDepths:
    """Compares a depth map with the depth of bodies drawn over it, person by person.

    Left out of each mask are pixels that see no body, outliers of the depth map (beyond the quartiles by
    ``whiskers`` times the distance between them), and those where the body's relief is off by more than
    ``max_residual`` from what its slope makes of the map's. Slope and correlation are taken along rows of
    pixels, each row from its own mean, because depth networks tilt the ground.

    Args:
        depth: what grows away from the camera: metres, or the reciprocal of a disparity. NaN, infinite and
            negative entries count as missing.
        rendered: depth of the bodies, infinite where none is [m]: one map of all people (N = 1), or one
            each (N = P).
        masks: whose pixels those are.
        whiskers: see above.
        max_residual: see above [m].

    Raises:
        TypeError: a depth is not of a floating type, or masks are no booleans.
        ValueError: shapes do not fit.

    Source: the code of DTO (Wang et al. 2025).
    """
    expect("depth", depth, None, None)
    expect("rendered", rendered, None, None, None)
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks: expected a torch.Tensor of booleans, got {kind}")
    grid = depth[..., None, :, :]
    try:
        shape = torch.broadcast_shapes(grid.shape, rendered.shape, masks.shape)
    except RuntimeError:
        shape = None
    if shape is None or shape != masks.shape:
        raise ValueError(
            f"masks: expected shape (*images, P, H, W) for depth {tuple(depth.shape)} and rendered "
            f"{tuple(rendered.shape)}, got {tuple(masks.shape)}"
        )
    seen = masks & grid.isfinite() & (grid >= 0) & rendered.isfinite()
    seen = seen & _within_whiskers(grid.detach(), seen, whiskers)
    relief, body = (_from_row_means(map_, seen) for map_ in (grid, rendered))
    slope, _ = _slope(relief, body)
    agrees = (slope[..., None, None] * relief - body).abs() <= max_residual
    slope, correlation = _slope(relief, body)
    seen = seen & agrees
    pixels = seen.sum((-2, -1))
    mean, rendered_mean = (_mean(map_, seen) for map_ in (grid, rendered))
    square = _mean((grid - mean[..., None, None]).square(), seen)
    spread = torch.where(square > 0, torch.sqrt(torch.where(square > 0, square, 1)), 0)
    return MaskDepths(mean, rendered_mean, spread, slope, correlation, pixels)


def surface_depth(
    vertices: Float[Tensor, "*batch V 3"], faces: Int[Tensor, "F 3"]
) -> Float[Tensor, "*batch"]:
    """Mean depth of what a camera sees of a body [m]: of its visible triangles, by the pixels they cover.

    As a rendered body's mean depth, without a renderer, and differentiable. A body hides parts of itself;
    that others hide parts of it is not looked at.

    Args:
        vertices: in camera coordinates, in front of the camera [m].
        faces: counter-clockwise from outside.

    Raises:
        TypeError, ValueError: as `agebody.mesh.closest.visible_vertices`.
    """
    seen = visible_vertices(vertices, faces, vertices.new_zeros(3))
    corners = vertices[..., faces.long(), :]
    plane = corners[..., :2] / corners[..., 2:]
    first, second = plane[..., 1, :] - plane[..., 0, :], plane[..., 2, :] - plane[..., 0, :]
    covered = torch.relu(first[..., 1] * second[..., 0] - first[..., 0] * second[..., 1])
    covered = covered * seen[..., faces.long()].to(vertices.dtype).mean(-1)
    return (covered * corners[..., 2].mean(-1)).sum(-1) / covered.sum(-1)


def _within_whiskers(grid: Tensor, seen: Tensor, whiskers: float) -> Tensor:
    """Of each mask, without those that stand far outside of its middle half."""
    ordered = torch.where(seen, grid, torch.inf).flatten(-2).sort(-1).values
    last = (seen.sum((-2, -1)) - 1).clamp(min=0)
    low, high = (
        ordered.gather(-1, (share * last).round().long()[..., None])[..., None] for share in (0.25, 0.75)
    )
    reach = whiskers * (high - low)
    return (grid >= low - reach) & (grid <= high + reach)


def _from_row_means(grid: Tensor, seen: Tensor) -> Tensor:
    """Differences from the mean of each row of pixels; zero outside."""
    inside = torch.where(seen, grid, 0)
    mean = inside.sum(-1) / seen.sum(-1).clamp(min=1)
    return torch.where(seen, grid - mean[..., None], 0)


def _slope(relief: Tensor, body: Tensor) -> tuple[Tensor, Tensor]:
    """Of the body's relief over the map's, and their correlation; zero where either is flat."""
    xx, xy, yy = ((a * b).sum((-2, -1)) for a, b in ((relief, relief), (relief, body), (body, body)))
    flat = (xx <= 0) | (yy <= 0)
    xx, yy = torch.where(flat, 1, xx), torch.where(flat, 1, yy)
    return torch.where(flat, 0, xy / xx), torch.where(flat, 0, xy / torch.sqrt(xx * yy))


def _mean(grid: Tensor, seen: Tensor) -> Tensor:
    return torch.where(seen, grid, 0).sum((-2, -1)) / seen.sum((-2, -1)).clamp(min=1)
