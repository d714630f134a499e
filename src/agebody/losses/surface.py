"""Losses between a body's surface and a scan: point clouds of a depth camera or a scanner."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    broadcast,
    expand_weights,
    expect,
    reduce,
    safe_norm,
)
from agebody.engine.backend import BackendName
from agebody.losses.robust import Penalty, penalize
from agebody.mesh.closest import (
    closest_barycentric,
    closest_faces,
    corners_of,
    interpolate,
    nearest_points,
    rows_of,
)


def scan_to_mesh_loss(
    vertices: Float[Tensor, "*#batch V 3"],
    scan: Float[Tensor, "*#batch N 3"],
    faces: Int[Tensor, "F 3"],
    *,
    visible: Bool[Tensor, "*#batch V"] | None = None,
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
    backend: BackendName = "auto",
) -> Float[Tensor, "*left"]:
    """Return ``w_s p(d_s)`` per point s of a scan, with d_s its distance from the nearest triangle (s2m).

    The first half of the data term of SMIL (Hesse et al., MICCAI 2018), where p is `gmof`: points that do not
    belong to the body (a blanket, hands that hold the infant) stop pulling. Differentiable in body and scan,
    as `agebody.mesh.closest_points` is.

    Args:
        vertices: of the body [m].
        scan: points [m]; pad scans of different sizes with points of weight 0.
        faces: vertex ids, the same for all bodies.
        visible: vertices that the scanner could see (`agebody.mesh.visible_vertices`); only triangles
            with three such corners are searched. A body without such a triangle does not count.
        weights: broadcast to (*batch, N).
        penalty: p, of distances [m].
        reduction: over points.
        backend: of the search, as in `agebody.mesh.closest_points`.
    """
    vertices, scan, batch = _read(vertices, scan)
    entries = torch.Size((*batch, scan.shape[-2]))
    weights = expand_weights(weights, entries)
    scan = apply_mask(scan.expand(*entries, 3), weights, 1)
    among = None
    if visible is not None:
        if visible.shape[-1] != vertices.shape[-2]:
            raise ValueError(f"visible: expected {vertices.shape[-2]} vertices, got {visible.shape[-1]}")
        among = visible[..., faces.long()].all(-1)
        weights = _where_any(among, weights, entries)
    face = closest_faces(scan, vertices, faces, among=among, backend=backend)
    corners = apply_mask(corners_of(vertices, faces, face), weights, 2)
    nearest = interpolate(corners, closest_barycentric(scan, corners))
    return reduce(penalize(safe_norm(apply_mask(scan - nearest, weights, 1)), penalty), weights, reduction)


def mesh_to_scan_loss(
    vertices: Float[Tensor, "*#batch V 3"],
    scan: Float[Tensor, "*#batch N 3"],
    *,
    weights: Weights = None,
    scan_weights: Float[Tensor, "*scan_entries"] | Bool[Tensor, "*scan_entries"] | None = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
    backend: BackendName = "auto",
) -> Float[Tensor, "*left"]:
    """Return ``w_v p(d_v)`` per vertex v of a body, with d_v its distance from the nearest scan point (m2s).

    The second half of SMIL's data term: it keeps parts of the body from lying where the scan shows nothing.
    Only what the scanner could see should be drawn to it: give `agebody.mesh.visible_vertices` as weights.

    Args:
        vertices: of the body [m].
        scan: points [m].
        weights: of vertices, broadcast to (*batch, V).
        scan_weights: of scan points, broadcast to (*batch, N); those of weight 0 are ignored. If none is
            left, or the scan is empty, the body does not count.
        penalty: p, of distances [m].
        reduction: over vertices.
        backend: of the search, as in `agebody.mesh.closest_points`.
    """
    vertices, scan, batch = _read(vertices, scan)
    entries = torch.Size((*batch, vertices.shape[-2]))
    weights = expand_weights(weights, entries)
    vertices = apply_mask(vertices.expand(*entries, 3), weights, 1)
    if scan_weights is not None:
        scan_weights = expand_weights(scan_weights, torch.Size((*entries[:-1], scan.shape[-2])))
        weights = _where_any(scan_weights != 0, weights, entries)
    if scan.shape[-2] == 0:  # in place of no points: one of weight 0
        scan, scan_weights = scan.new_zeros(*scan.shape[:-2], 1, 3), scan.new_zeros(1)
        weights = torch.zeros_like(vertices[..., 0])
    found = nearest_points(vertices, scan, weights=scan_weights, backend=backend)
    difference = apply_mask(vertices, weights, 1) - apply_mask(rows_of(scan, found), weights, 1)
    return reduce(penalize(safe_norm(difference), penalty), weights, reduction)


def _read(vertices: Tensor, scan: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return checked points of bodies and scans, and the batch that they broadcast to."""
    vertices, scan = expect("vertices", vertices, None, 3), expect("scan", scan, None, 3)
    return vertices, scan, broadcast(vertices=vertices.shape[:-2], scan=scan.shape[:-2])


def _where_any(mask: Tensor, weights: Tensor | None, entries: torch.Size) -> Tensor:
    """Return the weights of bodies for which the mask holds anywhere; zero for the others."""
    there = mask.any(-1, keepdim=True).expand(entries)
    return there if weights is None else torch.where(there, weights, 0)
