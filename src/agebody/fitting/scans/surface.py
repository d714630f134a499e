"""Registration of a surface to a scan: a smooth displacement of every vertex beyond the body model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import apply_mask, safe_norm
from agebody.engine.backend import BackendName
from agebody.fitting.scans.frames import Frames, eye_of
from agebody.losses import plane_height
from agebody.mesh.closest import (
    closest_barycentric,
    closest_faces,
    corners_of,
    interpolate,
    nearest_points,
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

    A `agebody.optim.least_squares.Model`. A point s of the scan attracts the triangle nearest to it; scan and
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
    edges: Int[Tensor, "b E 2"]
    stretch: Float[Tensor, " b"]
    """Stiffness of each edge."""

    @property
    def gradient(self) -> Tensor:
        """(b, 3 V)"""
        return self.vertex_gradient.flatten(1)

    def diagonal(self) -> Tensor:
        """See `agebody.optim.least_squares.Model`."""
        share = SLIDE + (1 - SLIDE) * self.along.square()
        own = (self.pull[..., None] * share)[:, :, None] * self.barycentric.square()[..., None]
        total = _add(torch.zeros_like(self.vertex_gradient), self.corners, own)
        ones = self.stretch[:, None, None, None].expand(*self.edges.shape, 1)
        total = total + _add(torch.zeros_like(self.vertex_gradient[..., :1]), self.edges, ones)
        total = total + self.isotropic[..., None] + self.pressed[..., None] * self.normal[:, None].square()
        return total.flatten(1)

    def product(self, vector: Tensor) -> Tensor:
        """See `agebody.optim.least_squares.Model`."""
        moved = vector.unflatten(1, (-1, 3))
        at = interpolate(_take(moved, self.corners), self.barycentric)
        along = self.along * (self.along * at).sum(-1, keepdim=True)
        force = self.pull[..., None] * (SLIDE * at + (1 - SLIDE) * along)
        total = self.isotropic[..., None] * moved
        total = total + self.pressed[..., None] * self.normal[:, None] * (moved @ self.normal[..., None])
        total = _add(total, self.corners, self.barycentric[..., None] * force[:, :, None])
        start, end = _take(moved, self.edges).unbind(2)
        tension = self.stretch[:, None, None] * (start - end)
        return _add(total, self.edges, torch.stack((tension, -tension), 2)).flatten(1)

    def solve(self, target: Tensor, damping: Tensor, fixed: Tensor | None) -> Tensor:
        """By conjugate gradients, scaled by the diagonal; see `agebody.optim.least_squares.Model`."""
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

    What the scanner did not see follows what it saw, and fades. Collisions do not count: where skin touches
    skin, nearly every step would make triangles intersect, and all would stay where it is.

    Args:
        vertices: of the fitted bodies [m].
        faces: of the bodies.
        seen: scans, of which all points count, and table.
        stage: weights and scales of "s2m", "m2s" and "inside"; others are ignored.
        backend: of the searches.

    Returns:
        The moved vertices, and a report per frame without costs of single terms.
    """
    edges, eye, moved = edges_of(faces), eye_of(seen.camera, vertices), torch.zeros_like(vertices)
    solutions = []
    for _ in range(ROUNDS):
        visible = visible_vertices(vertices + moved, faces, eye, backend=backend)
        energy = SurfaceEnergy(vertices, faces, edges, visible, seen, stage, backend)
        found = minimize(energy.quadratize, moved.flatten(1), max_iterations=10, cost_tolerance=1e-3)
        moved = found.x.unflatten(1, (-1, 3))
        solutions.append(found)
    last = solutions[-1]
    iterations = torch.stack([found.iterations for found in solutions]).sum(0)
    return vertices + moved, FitReport(last.converged, iterations, last.stop, last.cost, {})


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
        among = visible[:, faces].all(-1)
        weights = weights * among.any(-1, keepdim=True)
        face = closest_faces(scan, mesh, faces, among=among, backend=self.backend)
        triangles = corners_of(mesh, faces, face)
        barycentric = closest_barycentric(scan, triangles)
        away = apply_mask(interpolate(triangles, barycentric) - scan, weights, 1)
        cost, pull, force = self._robust(away, weights, "s2m")
        length = safe_norm(away)[..., None]
        along = away / torch.where(length == 0, 1, length)
        corners = faces[face]
        gradient = _add(torch.zeros_like(mesh), corners, barycentric[..., None] * force[:, :, None])

        nearest = rows_of(scan, nearest_points(mesh, scan, weights=weights, backend=self.backend))
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

        edges, stay = self.edges.expand(count, -1, -1), STAY / size
        start, end = _take(moved, edges).unbind(2)
        tension = STRETCH / len(self.edges) * (start - end)
        cost = cost + (tension * (start - end)).sum((1, 2)) / 2 + stay * moved.square().sum((1, 2)) / 2
        gradient = _add(gradient, edges, torch.stack((tension, -tension), 2)) + stay * moved
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
            edges=edges,
            stretch=torch.full_like(cost, STRETCH / len(self.edges)),
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


def _take(vectors: Float[Tensor, "b V C"], ids: Int[Tensor, "b S K"]) -> Float[Tensor, "b S K C"]:
    return rows_of(vectors, ids.flatten(1)).unflatten(1, ids.shape[1:])


def _add(
    total: Float[Tensor, "b V C"], ids: Int[Tensor, "b S K"], values: Float[Tensor, "b S K C"]
) -> Float[Tensor, "b V C"]:
    """Add values to the rows with their ids."""
    index = ids.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
    return total.scatter_add(1, index, values.flatten(1, 2))
