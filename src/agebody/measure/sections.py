"""Plane sections of a mesh: the outline's length, and that of a tape around it, differentiable."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import broadcast, expect, expect_dtype, expect_values, read_count, safe_norm
from agebody.engine.batched import own_precision
from agebody.mesh.closest import rows_of
from agebody.mesh.search import expect_faces

TAPE_DIRECTIONS = 240


class Section(NamedTuple):
    """The segments that a plane cuts from a mesh: one per triangle, in no order.

    Seen against the normal, the segments of a closed mesh run around its inside counter-clockwise, and every
    point where the plane meets an edge is the start of one segment and the end of another.
    """

    starts: Float[Tensor, "*batch K 3"]
    """[m]; zero for unused places."""
    ends: Float[Tensor, "*batch K 3"]
    """[m]; zero for unused places."""
    cut: Bool[Tensor, "*batch K"]
    """Which of the K places are used."""


def plane_section(
    vertices: Float[Tensor, "*#batch V 3"],
    faces: Int[Tensor, "F 3"],
    origin: Float[Tensor, "*#batch 3"],
    normal: Float[Tensor, "*#batch 3"],
    *,
    capacity: int | None = None,
) -> Section:
    """Return the segments in which a plane intersects triangles.

    The cut triangles are searched for every body, in tensors of fixed size: nothing is read from the device.
    The points are differentiable in the vertices and in the plane.

    Args:
        vertices: [m]; bodies and planes broadcast.
        faces: corners of the triangles, counter-clockwise from outside.
        origin: a point of the plane [m].
        normal: its direction, of any length but zero. A vertex in the plane counts as above it.
        capacity: K, the largest number of segments; that of the triangles by default. A body with more gets
            NaN.
    """
    vertices = expect("vertices", vertices, None, 3)
    origin = expect("origin", origin, 3)
    normal = expect("normal", normal, 3)
    expect_values(wait=False, normal=((normal != 0).any(-1), "vectors of any length but zero"))
    faces = expect_faces(faces, vertices.shape[-2], least=1)
    batch = broadcast(vertices=vertices.shape[:-2], origin=origin.shape[:-1], normal=normal.shape[:-1])
    vertices = vertices.expand(*batch, -1, -1)
    height = ((vertices - origin[..., None, :]) * normal[..., None, :]).sum(-1)
    side = height >= 0
    first, second, third = (side.index_select(-1, corner) for corner in faces.unbind(-1))
    is_cut = (first != second) | (first != third)
    capacity = len(faces) if capacity is None else min(read_count("capacity", capacity, least=1), len(faces))
    triangles, cut = _first(is_cut, capacity)

    corners = faces[triangles]
    corner_height = height.gather(-1, corners.flatten(-2)).unflatten(-1, (-1, 3))
    above = corner_height >= 0
    a, b, c = above.unbind(-1)
    lone = torch.where(a == b, 2, torch.where(a == c, 1, 0))
    turned = (lone[..., None] + torch.arange(3, device=lone.device)) % 3
    corners, corner_height = corners.gather(-1, turned), corner_height.gather(-1, turned)
    corner = rows_of(vertices, corners.flatten(-2)).unflatten(-2, (-1, 3))
    # The edges from the lone corner to the next and to the one before it, in the triangle's orientation.
    onward, back = (_crossing(corner, corner_height, cut, other) for other in (1, 2))
    lone_above = above.gather(-1, lone[..., None])
    starts = torch.where(lone_above, onward, back)
    ends = torch.where(lone_above, back, onward)
    overfull = (is_cut.sum(-1) > capacity)[..., None, None]
    starts, ends = (torch.where(overfull, torch.nan, points) for points in (starts, ends))
    return Section(starts, ends, cut)


def section_length(
    section: Section, *, tape: Float[Tensor, "*#batch 3"] | None = None
) -> Float[Tensor, "*batch"]:
    """Return the length of a section's outline, or of a tight tape around it [m].

    Args:
        section: closed outlines; without a tape, the length is the sum over all of them.
        tape: normal of the section's plane, for the perimeter of the convex hull. The hull's corners are the
            points that are farthest in one of ``TAPE_DIRECTIONS`` directions of the plane. A corner at which
            the tape turns by less than the step between them, 1.5 degrees, may be skipped, which shortens the
            tape by less than 1e-4 of itself, and by about 1e-6 on bodies.
    """
    if tape is not None:
        return _tape_length(section, tape)
    return safe_norm(section.ends - section.starts).sum(-1)


def gap(section: Section) -> Float[Tensor, "*batch"]:
    """Return how far a section's segments are from closing [m]: 0 for outlines without a gap."""
    return (section.ends - section.starts).sum(-2).norm(dim=-1)


def _tape_length(section: Section, normal: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*batch"]:
    normal = expect("tape", normal, 3)
    expect_dtype("tape", normal, section.starts, "that of the section")
    across, along = plane_axes(normal.detach())
    # Unused places repeat the first point, so that they add no corner.
    points = torch.where(section.cut[..., None], section.starts, section.starts[..., :1, :])
    flat = torch.stack([(points.detach() * axis[..., None, :]).sum(-1) for axis in (across, along)], -1)
    angles = torch.arange(TAPE_DIRECTIONS, dtype=points.dtype, device=points.device)
    angles = angles * (2 * math.pi / TAPE_DIRECTIONS)
    with own_precision(points.device):
        reach = torch.stack([angles.cos(), angles.sin()], -1) @ flat.mT
    farthest = reach.argmax(-1)
    corners = rows_of(points, farthest)
    return safe_norm(corners - corners.roll(1, -2)).sum(-1)


def _first(mask: Bool[Tensor, "*batch F"], count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the first ``count`` true entries, and which of these places are used."""
    rank = mask.cumsum(-1, dtype=torch.int32)
    place = torch.where(mask & (rank <= count), rank - 1, count).long()
    index = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    chosen = torch.zeros(*mask.shape[:-1], count + 1, dtype=index.dtype, device=mask.device)
    chosen = chosen.scatter(-1, place, index)[..., :count]
    return chosen, torch.arange(count, device=mask.device) < rank[..., -1:]


def _crossing(
    corner: Float[Tensor, "*batch K 3 3"],
    height: Float[Tensor, "*batch K 3"],
    cut: Bool[Tensor, "*batch K"],
    other: int,
) -> Float[Tensor, "*batch K 3"]:
    """Return the intersection of the plane with the edge from the first corner to another; else zero."""
    drop = torch.where(cut, height[..., 0] - height[..., other], 1)
    share = (height[..., 0] / drop)[..., None]
    start = corner[..., 0, :]
    return torch.where(cut[..., None], start + share * (corner[..., other, :] - start), 0)


def plane_axes(normal: Float[Tensor, "*batch 3"]) -> tuple[Tensor, Tensor]:
    """Return two orthogonal unit vectors in the plane."""
    x, _, z = normal.unbind(-1)
    level = torch.where(x.abs() < z.abs(), 0, 1)
    across = torch.linalg.cross(
        normal, torch.stack([1 - level, torch.zeros_like(level), level], -1).to(normal)
    )
    across = across / across.norm(dim=-1, keepdim=True)
    along = torch.linalg.cross(normal / normal.norm(dim=-1, keepdim=True), across)
    return across, along
