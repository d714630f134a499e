"""Beyond the model: a displacement of every vertex, as smooth as the scan allows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.checks import safe_norm
from agebody.engine.backend import BackendName
from agebody.fitting.scans.frames import Frames, eye_of
from agebody.fitting.scans.stages import ScanStage
from agebody.losses import gmof, plane_height, self_intersection_loss
from agebody.mesh.closest import (
    closest_barycentric,
    closest_faces,
    corners_of,
    interpolate,
    nearest_points,
    rows_of,
    visible_vertices,
)
from agebody.mesh.collisions import Exclusions
from agebody.optim.least_squares import Solution, minimize

STRETCH = 4e6
"""Weight of the mean over edges of the squared difference between the displacements of their ends [1/m^2]: a
bump of 1 cm on 5 cm costs a twentieth of what the scan pays for it, noise of 2 mm several times as much."""
STAY = 1e4
"""Weight of the mean square of the displacements [1/m^2]."""
SLIDE = 0.1
"""Share of the stiffness with which a point of the scan resists motion along the surface, in the model of a
step alone: between point to plane (0) and point to point (1)."""
SWEEPS = 30
"""Steps of conjugate gradients in a step of the solver, at most."""
RESIDUE = 1e-2
"""Share of the right-hand side at which they end."""


class SurfaceModel(NamedTuple):
    """The energy of displacements d (b, V, 3) about one place, to second order, as its parts.

    A scan's point s pulls at the triangle that it is nearest to; vertices are pulled at alone by the scan and
    by the table; edges resist stretching.
    """

    cost: Float[Tensor, " b"]
    vertex_gradient: Float[Tensor, "b V 3"]
    corners: Int[Tensor, "b S 3"]
    barycentric: Float[Tensor, "b S 3"]
    along: Float[Tensor, "b S 3"]
    """Unit vector of the pull."""
    pull: Float[Tensor, "b S"]
    held: Float[Tensor, "b V"]
    """Resistance of a vertex in every direction."""
    pressed: Float[Tensor, "b V"]
    """Resistance along the table's normal."""
    normal: Float[Tensor, "b 3"]
    edges: Int[Tensor, "b E 2"]
    stretch: Float[Tensor, " b"]
    """Of each edge."""

    @property
    def gradient(self) -> Tensor:
        """(b, 3 V)"""
        return self.vertex_gradient.flatten(1)

    def diagonal(self) -> Tensor:
        """Of the normal matrix."""
        share = SLIDE + (1 - SLIDE) * self.along.square()
        own = (self.pull[..., None] * share)[:, :, None] * self.barycentric.square()[..., None]
        total = _add(torch.zeros_like(self.vertex_gradient), self.corners, own)
        ones = self.stretch[:, None, None, None].expand(*self.edges.shape, 1)
        total = total + _add(torch.zeros_like(self.vertex_gradient[..., :1]), self.edges, ones)
        total = total + self.held[..., None] + self.pressed[..., None] * self.normal[:, None].square()
        return total.flatten(1)

    def product(self, vector: Tensor) -> Tensor:
        """The normal matrix times a vector."""
        moved = vector.unflatten(1, (-1, 3))
        at = interpolate(_take(moved, self.corners), self.barycentric)
        along = self.along * (self.along * at).sum(-1, keepdim=True)
        force = self.pull[..., None] * (SLIDE * at + (1 - SLIDE) * along)
        total = self.held[..., None] * moved
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
        least = RESIDUE**2 * energy
        for _ in range(SWEEPS):
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
    stage: ScanStage,
    *,
    stretch: float = STRETCH,
    stay: float = STAY,
    rounds: int = 2,
    exclude: Exclusions | None = None,
    backend: BackendName = "auto",
) -> tuple[Float[Tensor, "F V 3"], Solution]:
    """Fitted surfaces, moved onto their scans: terms of a stage that look at the surface, and its stretching.

        E(d) = E_s2m + E_m2s + E_inside + E_collision + stretch mean_edges |d_i - d_j|^2 + stay mean |d|^2

    What the scanner did not see follows what it saw, and fades.

    Args:
        vertices: of the fitted bodies [m].
        faces: their triangles.
        seen: scans, of which every point counts, and table.
        stage: weights of the terms; landmarks and priors have no say.
        stretch: see above [1/m^2].
        stay: see above [1/m^2].
        rounds: of ten evaluations, between which visibility is found anew.
        exclude: pairs of faces that are no collision.
        backend: of the searches.

    Returns:
        The moved vertices, and how each frame ended.
    """
    moved = torch.zeros_like(vertices)
    eye = eye_of(seen.camera, vertices)
    edges = _edges(faces)
    solution: Solution | None = None
    for _ in range(rounds):
        visible = visible_vertices(vertices + moved, faces, eye, backend=backend)

        def quadratize(x: Tensor, rows: Tensor, visible: Tensor = visible) -> SurfaceModel:
            return _model(
                vertices[rows], x.unflatten(1, (-1, 3)), rows, visible[rows], faces, edges, seen, stage,
                stretch, stay, exclude, backend,
            )  # fmt: skip

        solution = minimize(quadratize, moved.flatten(1), max_iterations=10, cost_tolerance=1e-3)
        moved = solution.x.unflatten(1, (-1, 3))
    if solution is None:
        raise ValueError(f"rounds: expected 1 or more, got {rounds}")
    return vertices + moved, solution


@torch.no_grad()
def _model(
    rest: Tensor, moved: Tensor, rows: Tensor, visible: Tensor, faces: Tensor, edges: Tensor,
    seen: Frames, stage: ScanStage, stretch: float, stay: float, exclude: Exclusions | None,
    backend: BackendName,
) -> SurfaceModel:  # fmt: skip
    count, size = moved.shape[:2]
    mesh = rest + moved
    scan, weights = seen.points[rows], seen.weights[rows]
    among = visible[:, faces].all(-1)
    weights = weights * among.any(-1, keepdim=True)
    face = closest_faces(scan, mesh, faces, among=among, backend=backend)
    triangles = corners_of(mesh, faces, face)
    barycentric = closest_barycentric(scan, triangles)
    away = torch.where((weights != 0)[..., None], interpolate(triangles, barycentric) - scan, 0)
    cost, pull, force = _robust(away, weights, stage.s2m, stage.rho_s2m)
    length = safe_norm(away)[..., None]
    along = away / torch.where(length == 0, 1, length)
    corners = faces[face]
    gradient = _add(torch.zeros_like(mesh), corners, barycentric[..., None] * force[:, :, None])

    nearest = rows_of(scan, nearest_points(mesh, scan, weights=weights, backend=backend))
    counted = (visible & (weights != 0).any(-1, keepdim=True)).to(mesh)
    gap = torch.where((counted != 0)[..., None], mesh - nearest, 0)
    more, held, force = _robust(gap, counted, stage.m2s, stage.rho_m2s)
    cost, gradient = cost + more, gradient + force

    normal, pressed = torch.zeros_like(mesh[:, 0]), torch.zeros_like(mesh[..., 0])
    if seen.plane is not None:
        normal = seen.plane.normal.expand(count, 3)
        depth = plane_height(mesh, seen.plane.normal, seen.plane.offset).clamp(max=0)
        pressed = stage.inside / size * (depth < 0)
        cost = cost + (pressed * depth.square()).sum(1) / 2
        gradient = gradient + (pressed * depth)[..., None] * normal[:, None]

    start, end = _take(moved, edges.expand(count, -1, -1)).unbind(2)
    tension = stretch / len(edges) * (start - end)
    cost = cost + (tension * (start - end)).sum((1, 2)) / 2 + stay / size * moved.square().sum((1, 2)) / 2
    gradient = _add(gradient, edges.expand(count, -1, -1), torch.stack((tension, -tension), 2))
    gradient = gradient + stay / size * moved
    if stage.collision:
        with torch.inference_mode(False), torch.enable_grad():
            free = mesh.detach().clone().requires_grad_()
            met = (
                stage.collision
                / 2
                * self_intersection_loss(free, faces, exclude=exclude, reduction="none", backend=backend)
            )
            (push,) = torch.autograd.grad(met.sum(), free)
        cost, gradient = cost + met.detach(), gradient + push
    return SurfaceModel(
        cost, gradient, corners, barycentric, along, pull, held + stay / size, pressed, normal,
        edges.expand(count, -1, -1), torch.full_like(cost, stretch / len(edges)),
    )  # fmt: skip


def _robust(
    away: Float[Tensor, "b S 3"], weights: Float[Tensor, "b S"], weight: float, rho: float
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b S"], Float[Tensor, "b S 3"]]:
    """Half of the weighted mean of `gmof` of lengths; its curvature along each, and its gradient."""
    weights = weight * weights / (weights != 0).sum(1, keepdim=True).clamp(min=1)
    length = safe_norm(away)
    factor = weights / (1 + (length / rho).square()).square()
    return (weights * gmof(length, rho)).sum(1) / 2, factor, factor[..., None] * away


def _edges(faces: Int[Tensor, "T 3"]) -> Int[Tensor, "E 2"]:
    """Each edge of a mesh once."""
    sides = torch.cat((faces[:, :2], faces[:, 1:], faces[:, ::2]))
    return sides.sort(1).values.unique(dim=0)


def _take(vectors: Float[Tensor, "b V C"], ids: Int[Tensor, "b S K"]) -> Float[Tensor, "b S K C"]:
    return rows_of(vectors, ids.flatten(1)).unflatten(1, ids.shape[1:])


def _add(
    total: Float[Tensor, "b V C"], ids: Int[Tensor, "b S K"], values: Float[Tensor, "b S K C"]
) -> Float[Tensor, "b V C"]:
    """The values added to the rows that they belong to."""
    index = ids.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
    return total.scatter_add(1, index, values.flatten(1, 2))
