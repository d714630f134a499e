"""Registration of a surface to a scan: a smooth displacement of every vertex beyond the body model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from agebody.checks import apply_mask, safe_norm
from agebody.engine.backend import BackendName
from agebody.fitting.scans.frames import Frames, order_points
from agebody.losses import plane_height
from agebody.mesh.closest import (
    closest_barycentric,
    closest_faces,
    corners_of,
    interpolate,
    nearest_points,
    order_faces,
    rows_of,
    visible_vertices,
)
from agebody.optim.least_squares import minimize
from agebody.optim.problem import Stage
from agebody.optim.stages import FitReport
from agebody.optim.terms import robust_weights

STRETCH = 4e6
"""Weight of the mean over edges of the squared difference between the displacements of their ends [1/m^2]: a
bump of 1 cm on 5 cm costs a twentieth of what the scan pays for it, noise of 2 mm several times as much."""
STAY = 1e4
"""Weight of the mean square of the displacements [1/m^2]."""
SLIDE = 0.1
"""Share of the stiffness with which a point of the scan resists motion along the surface, in the model of a
step only: between point to plane (0) and point to point (1)."""
CG_STEPS = 30
"""Largest number of steps of conjugate gradients per step of the solver."""
CG_TOLERANCE = 1e-2
"""Relative residual at which conjugate gradients stop."""
ROUNDS = 2
"""Between rounds of ten evaluations, visibility is recomputed."""


class SurfaceModel(NamedTuple):
    """Energy of displacements d (b, V, 3) at one point, to second order, as its parts.

    A `agebody.optim.quadratic.Model`. A point s of the scan attracts the triangle nearest to it; scan and
    table attract vertices; edges resist stretching.
    """

    cost: Float[Tensor, " b"]
    vertex_gradient: Float[Tensor, "b V 3"]
    corners: Int[Tensor, "b S 3"]
    barycentric: Float[Tensor, "b S 3"]
    along: Float[Tensor, "b S 3"]
    """Unit vector of the attraction by a point of the scan."""
    pull: Float[Tensor, "b S"]
    """Stiffness along it."""
    isotropic: Float[Tensor, "b V"]
    """Stiffness of a vertex in every direction."""
    pressed: Float[Tensor, "b V"]
    """Stiffness of a vertex along the normal of the table."""
    normal: Float[Tensor, "b 3"]
    pullers: Int[Tensor, "b 3S"]
    """The points of the scan that attract each vertex, vertex after vertex."""
    shares: Float[Tensor, "b 3S"]
    """Barycentric coordinates of the vertex in them."""
    first_puller: Int[Tensor, "b V"]
    """Index of the first one of each vertex."""
    neighbours: Int[Tensor, "b 2E"]
    """The vertices that share an edge with each vertex, vertex after vertex."""
    first_neighbour: Int[Tensor, "b V"]
    stretch: Float[Tensor, " b"]
    """Stiffness of each edge."""

    @property
    def gradient(self) -> Tensor:
        """(b, 3 V)"""
        return self.vertex_gradient.flatten(1)

    def diagonal(self) -> Tensor:
        """See `agebody.optim.quadratic.Model`."""
        share = SLIDE + (1 - SLIDE) * self.along.square()
        pull = self.pull[..., None] * share
        total = _sum_rows(pull, self.pullers, self.first_puller, self.shares.square())
        ones = torch.ones_like(total)
        total = total + self.stretch[:, None, None] * _sum_rows(ones, self.neighbours, self.first_neighbour)
        total = total + self.isotropic[..., None]
        return (total + self.pressed[..., None] * self.normal[:, None].square()).flatten(1)

    def product(self, vector: Tensor) -> Tensor:
        """See `agebody.optim.quadratic.Model`."""
        moved = vector.unflatten(1, (-1, 3))
        at = interpolate(rows_of(moved, self.corners.flatten(1)).unflatten(1, (-1, 3)), self.barycentric)
        along = self.along * (self.along * at).sum(-1, keepdim=True)
        force = self.pull[..., None] * (SLIDE * at + (1 - SLIDE) * along)
        total = _sum_rows(force, self.pullers, self.first_puller, self.shares)
        total = total + self.isotropic[..., None] * moved
        total = total + self.pressed[..., None] * self.normal[:, None] * (moved @ self.normal[..., None])
        tension = _tension(moved, self.neighbours, self.first_neighbour)
        return (total + self.stretch[:, None, None] * tension).flatten(1)

    def solve(self, target: Tensor, damping: Tensor, fixed: Tensor | None) -> Tensor:
        """By conjugate gradients, scaled by the diagonal; see `agebody.optim.quadratic.Model`."""
        if fixed is not None:
            raise ValueError("lower, upper: expected none for a surface")
        scale = self.diagonal() + damping
        found, residual = torch.zeros_like(target), target
        direction = residual / scale
        energy = (residual * direction).sum(1, keepdim=True)
        least = CG_TOLERANCE**2 * energy
        for _ in range(CG_STEPS):
            going = energy > least
            if not going.any():
                break
            image = self.product(direction) + damping * direction
            length = torch.where(
                going, energy / torch.where(going, (direction * image).sum(1, keepdim=True), 1), 0
            )
            found, residual = found + length * direction, residual - length * image
            scaled = residual / scale
            new = (residual * scaled).sum(1, keepdim=True)
            direction = torch.where(
                going, scaled + new / torch.where(going, energy, 1) * direction, direction
            )
            energy = torch.where(going, new, energy)
        return found


def register_surface(
    vertices: Float[Tensor, "F V 3"],
    faces: Int[Tensor, "T 3"],
    seen: Frames,
    stage: Stage,
    *,
    backend: BackendName = "auto",
) -> tuple[Float[Tensor, "F V 3"], FitReport]:
    """Move fitted surfaces onto their scans (step 3).

        E(d) = E_s2m + E_m2s + E_inside + STRETCH mean_edges |d_i - d_j|^2 + STAY mean |d|^2

    Unseen parts follow their neighbours, with decreasing displacement. Collisions do not count: where skin
    touches skin, nearly every step would make triangles intersect, and nothing would move.

    Args:
        vertices: of the fitted bodies [m].
        faces: of the bodies.
        seen: scans, of which all points count, and table.
        stage: weights and scales of "s2m", "m2s" and "inside"; others are ignored.
        backend: of the searches.

    Returns:
        The moved vertices, and a report per frame without costs of single terms.
    """
    eye, moved = seen.camera.position, torch.zeros_like(vertices)
    faces = order_faces(vertices, faces, backend=backend)
    points, weights = order_points(seen.points, seen.weights, backend)
    edges, seen = edges_of(faces), seen._replace(points=points, weights=weights)
    solutions = []
    for _ in range(ROUNDS):
        visible = visible_vertices(vertices + moved, faces, eye, backend=backend)
        energy = SurfaceEnergy(vertices, faces, edges, visible, seen, stage, backend)
        found = minimize(energy.quadratize, moved.flatten(1), max_iterations=10, cost_tolerance=1e-2)
        moved = found.x.unflatten(1, (-1, 3))
        solutions.append(found)
    last = solutions[-1]
    iterations = torch.stack([found.iterations for found in solutions]).sum(0)
    return vertices + moved, FitReport(last.converged, iterations, last.stop, last.cost, {}, last.converged)


class SurfaceEnergy(NamedTuple):
    """Energy of the displacements of F surfaces, for fixed visibility."""

    vertices: Float[Tensor, "F V 3"]
    faces: Int[Tensor, "T 3"]
    edges: Int[Tensor, "E 2"]
    visible: Bool[Tensor, "F V"]
    seen: Frames
    stage: Stage
    backend: BackendName

    @torch.no_grad()
    def quadratize(self, x: Float[Tensor, "b N"], rows: Int[Tensor, " b"]) -> SurfaceModel:
        """Return the model of some frames at displacements (b, 3 V)."""
        moved, visible, faces, seen = x.unflatten(1, (-1, 3)), self.visible[rows], self.faces, self.seen
        count, size = moved.shape[:2]
        mesh = self.vertices[rows] + moved
        scan, weights = seen.points[rows], seen.weights[rows]
        shown = visible[:, faces].all(-1)
        weights = weights * shown.any(-1, keepdim=True)
        face = closest_faces(scan, mesh, faces, among=shown, ordered=True, backend=self.backend)
        triangles = corners_of(mesh, faces, face)
        barycentric = closest_barycentric(scan, triangles)
        away = apply_mask(interpolate(triangles, barycentric) - scan, weights, 1)
        cost, pull, force = self._robust(away, weights, "s2m")
        length = safe_norm(away)[..., None]
        along = away / torch.where(length == 0, 1, length)
        corners = faces[face]
        entries, first_puller = _group(corners.flatten(1), size)
        pullers, shares = entries // 3, barycentric.flatten(1).gather(1, entries)
        gradient = _sum_rows(force, pullers, first_puller, shares)

        nearest = nearest_points(mesh, scan, weights=weights, ordered=True, backend=self.backend)
        nearest = rows_of(scan, nearest)
        counted = (visible & (weights != 0).any(-1, keepdim=True)).to(mesh)
        more, isotropic, force = self._robust(apply_mask(mesh - nearest, counted, 1), counted, "m2s")
        cost, gradient = cost + more, gradient + force

        normal, pressed = torch.zeros_like(mesh[:, 0]), torch.zeros_like(mesh[..., 0])
        if seen.plane is not None:
            normal = seen.plane.normal.expand(count, 3)
            depth = plane_height(mesh, seen.plane.normal, seen.plane.offset).clamp(max=0)
            pressed = self.stage.weights.get("inside", 1.0) / size * (depth < 0)
            cost = cost + (pressed * depth.square()).sum(1) / 2
            gradient = gradient + (pressed * depth)[..., None] * normal[:, None]

        start, end = torch.cat((self.edges, self.edges.flip(1))).T[:, None]
        entries, first_neighbour = (part.expand(count, -1) for part in _group(start, size))
        neighbours = end.expand(count, -1).gather(1, entries)
        stay, stretch = STAY / size, STRETCH / len(self.edges)
        tension = stretch * _tension(moved, neighbours, first_neighbour) + stay * moved
        cost, gradient = cost + (tension * moved).sum((1, 2)) / 2, gradient + tension
        return SurfaceModel(
            cost=cost,
            vertex_gradient=gradient,
            corners=corners,
            barycentric=barycentric,
            along=along,
            pull=pull,
            isotropic=isotropic + stay,
            pressed=pressed,
            normal=normal,
            pullers=pullers,
            shares=shares,
            first_puller=first_puller,
            neighbours=neighbours,
            first_neighbour=first_neighbour,
            stretch=torch.full_like(cost, stretch),
        )

    def _robust(
        self, away: Float[Tensor, "b S 3"], weights: Float[Tensor, "b S"], name: str
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b S"], Float[Tensor, "b S 3"]]:
        """Return half of the weighted mean of the robust costs of lengths, their stiffness and gradient."""
        weight, scale = self.stage.weights.get(name, 1.0), self.stage.scales.get(name, 1.0)
        weights = weight * weights / (weights != 0).sum(1, keepdim=True).clamp(min=1)
        cost, robust = robust_weights(away.square().sum(-1), "gmof", scale)
        return (weights * cost).sum(1) / 2, weights * robust, (weights * robust)[..., None] * away


def edges_of(faces: Int[Tensor, "T 3"]) -> Int[Tensor, "E 2"]:
    """Return each edge of a mesh once."""
    sides = torch.cat((faces[:, :2], faces[:, 1:], faces[:, ::2]))
    return sides.sort(1).values.unique(dim=0)


def _group(ids: Int[Tensor, "b K"], count: int) -> tuple[Int[Tensor, "b K"], Int[Tensor, "b V"]]:
    """Return the entries ordered by id, and the index of the first one of each id."""
    ids, order = ids.sort(1)
    return order, torch.searchsorted(ids, torch.arange(count, device=ids.device).repeat(len(ids), 1))


def _sum_rows(
    table: Float[Tensor, "b R C"],
    rows: Int[Tensor, "b K"],
    first: Int[Tensor, "b V"],
    weights: Float[Tensor, "b K"] | None = None,
) -> Float[Tensor, "b V C"]:
    """Return weighted sums of groups of rows, given the first index of each: a sparse matrix product."""
    frame = torch.arange(len(table), device=table.device)[:, None]
    bags = (rows + table.shape[1] * frame).flatten(), (first + rows.shape[1] * frame).flatten()
    shares = None if weights is None else weights.flatten()
    found = nn.functional.embedding_bag(
        bags[0], table.flatten(0, 1), bags[1], mode="sum", per_sample_weights=shares
    )
    return found.unflatten(0, first.shape)


def _tension(moved: Float[Tensor, "b V 3"], neighbours: Tensor, first: Tensor) -> Float[Tensor, "b V 3"]:
    """Return the sum of the differences of each vertex from its neighbours."""
    counts = first.diff(append=torch.full_like(first[:, :1], neighbours.shape[1]))
    return counts[..., None] * moved - _sum_rows(moved, neighbours, first)
