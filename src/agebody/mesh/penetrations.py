"""Points inside meshes, and penetration depths of people.

Inside tests and winding numbers are discrete and have no gradient; penetration depths have one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import apply_mask, expand_weights, expect, flatten, safe_norm
from agebody.engine.backend import BackendName, check_backend
from agebody.engine.trees import unflatten
from agebody.mesh.closest import closest_barycentric, closest_faces, interpolate
from agebody.mesh.search import check_mesh, check_points


class Penetration(NamedTuple):
    """Penetration depths of the people of an image; entry [i, j, v] is of vertex v of i in person j."""

    depth: Float[Tensor, "*batch P P V"]
    """Distance to the surface of person j [m], 0 where the vertex is not inside; differentiable."""
    inside: Bool[Tensor, "*batch P P V"]
    """Whether the vertex is inside person j."""
    face: Int[Tensor, "*batch P P V"]
    """The face of person j that is nearest; -1 where the vertex is not inside."""


class Penetrations(NamedTuple):
    """The K vertices inside other people, in ascending order: a sparse `Penetration`."""

    image: Int[Tensor, " K"]
    """Index in the flattened batch."""
    person: Int[Tensor, " K"]
    """Person of the vertex."""
    other: Int[Tensor, " K"]
    """Person that contains the vertex."""
    vertex: Int[Tensor, " K"]
    face: Int[Tensor, " K"]
    """Nearest face of the other person."""


def winding_number(
    points: Float[Tensor, "*batch N 3"],
    vertices: Float[Tensor, "*batch V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    backend: BackendName = "auto",
) -> Float[Tensor, "*batch N"]:
    """Return how often a mesh winds around each point: the sum of its triangles' solid angles over 4 pi.

    For a closed mesh this is 1 inside, 0 outside, and 2 where the mesh overlaps itself. Near the holes of an
    open mesh it is fractional: points above 1/2 would be inside if a surface closed each hole. On the surface
    it is between the numbers of both sides. All triangles are summed for all points, without gradient.

    Args:
        points: query points [m].
        vertices: of one mesh, or of a batch with the leading dimensions of the points [m].
        faces: triangles, counter-clockwise from outside.
        backend: "auto" is Warp where it is installed.

    Source: Jacobson et al., SIGGRAPH 2013; van Oosterom and Strackee, IEEE TBME 1983.
    """
    points, vertices, faces = check_points(points, vertices, faces)
    numbers = torch.ops.agebody.winding_numbers(
        flatten(points.detach(), None, 2), flatten(vertices.detach(), None, 2), faces, check_backend(backend)
    )
    return numbers.reshape(points.shape[:-1])


def contains(
    vertices: Float[Tensor, "*batch V 3"],
    faces: Int[Tensor, "F 3"],
    points: Float[Tensor, "*batch N 3"],
    *,
    backend: BackendName = "auto",
) -> Bool[Tensor, "*batch N"]:
    """Return whether points are inside a mesh: in its bounding box, with a winding number above 1/2.

    Distant triangles are approximated together, so the winding number has an error of up to 0.07: near the
    holes of an open mesh, the two backends may differ.

    Args:
        vertices: of one mesh, or of a batch with the leading dimensions of the points [m].
        faces: triangles, counter-clockwise from outside.
        points: query points [m].
        backend: "auto" is Warp where it is installed.

    Source: Barill et al., SIGGRAPH 2018.
    """
    points, vertices, faces = check_points(points, vertices, faces)
    meshes = flatten(vertices.detach(), None, 2)
    each = torch.arange(len(meshes), device=meshes.device)
    inside = torch.ops.agebody.inside_meshes(
        flatten(points.detach(), None, 2), meshes, faces, each, each, False, check_backend(backend)
    )
    return inside.reshape(points.shape[:-1])


def penetration(
    vertices: Float[Tensor, "*batch P V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    weights: Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None = None,
    backend: BackendName = "auto",
) -> Penetration:
    """Compute the penetration depths between the people of an image.

    A vertex is inside a person whose winding number there is above 1/2; its depth is the distance to the
    nearest point of that person's surface. Edges that cross without a vertex inside are not found.

    Args:
        vertices: of the P people of each image, in one space [m].
        faces: triangles, the same in all bodies, counter-clockwise from outside.
        weights: broadcast to the people, (*batch, P); people of weight 0 are ignored.
        backend: "warp" searches trees of boxes, "torch" blocks of triangles; "auto" is Warp where it is
            installed.

    Returns:
        A named tuple of (*batch, P, P, V) arrays, whose entries [i, j, v] are of vertex v of person i in
        person j: ``depth`` [m], differentiable; ``inside``; and ``face``, the nearest face of j or -1.
    """
    vertices = expect("vertices", vertices, None, None, 3)
    found = find_penetrations(vertices, faces, weights=weights, backend=backend)
    batch, people = vertices.shape[:-3], vertices.shape[-3]
    shape = (batch.numel(), people, people, vertices.shape[-2])
    where = (found.image, found.person, found.other, found.vertex)
    deep = safe_norm(offsets(vertices, faces, found))
    depth = vertices.new_zeros(shape).index_put(where, deep)
    face = torch.full(shape, -1, device=vertices.device).index_put(where, found.face)
    return unflatten(Penetration(depth, face >= 0, face), batch)


def find_penetrations(
    vertices: Float[Tensor, "*batch P V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    weights: Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None = None,
    ordered: bool = False,
    backend: BackendName = "auto",
) -> Penetrations:
    """Find the vertices that are inside other people; arguments as in `penetration` and `closest_faces`.

    People with a vertex that is not finite are ignored.
    """
    vertices = expect("vertices", vertices, None, None, 3)
    vertices, faces = check_mesh(vertices, faces)
    people = vertices.shape[-3]
    bodies = flatten(vertices.detach(), None, 2)
    present = bodies.isfinite().all(-1).all(-1)
    weights = expand_weights(weights, vertices.shape[:-2])
    if weights is not None:
        present = present & (weights.reshape(-1) != 0)
    bodies = apply_mask(bodies, present, 2)
    person, other = (~torch.eye(people, dtype=torch.bool, device=bodies.device)).nonzero(as_tuple=True)
    first = people * torch.arange(len(bodies) // max(people, 1), device=bodies.device)[:, None]
    sets, targets = (first + person).reshape(-1), (first + other).reshape(-1)
    lower, upper = bodies.amin(1), bodies.amax(1)
    near = ((lower[sets] <= upper[targets]) & (lower[targets] <= upper[sets])).all(-1)
    pairs = (near & present[sets] & present[targets]).nonzero()[:, 0]
    meshes, mesh = targets[pairs].unique(return_inverse=True)
    inside = torch.ops.agebody.inside_meshes(
        bodies, bodies[meshes], faces, sets[pairs], mesh, ordered, check_backend(backend)
    )
    pair, vertex = inside.nonzero(as_tuple=True)
    pair = pairs[pair]
    face = _nearest_faces(bodies, faces, sets[pair], vertex, targets[pair], ordered, backend)
    image, which = pair // max(len(person), 1), pair % max(len(person), 1)
    return Penetrations(image, person[which], other[which], vertex, face)


def offsets(
    vertices: Float[Tensor, "*batch P V 3"], faces: Int[Tensor, "F 3"], found: Penetrations
) -> Float[Tensor, "K 3"]:
    """Return the vectors from the nearest point of the other's surface to each vertex inside [m].

    Differentiable in both.
    """
    people = flatten(vertices, None, 3)
    corners = faces.to(vertices.device).long()[found.face]
    triangles = people[found.image[:, None], found.other[:, None], corners]
    points = people[found.image, found.person, found.vertex]
    return points - interpolate(triangles, closest_barycentric(points, triangles))


def _nearest_faces(
    bodies: Tensor,
    faces: Tensor,
    sets: Tensor,
    vertex: Tensor,
    targets: Tensor,
    ordered: bool,
    backend: BackendName,
) -> Int[Tensor, " K"]:
    """Return the nearest face of a target for each of K vertices; every target is searched once."""
    asked, slot, count = targets.unique(return_inverse=True, return_counts=True)
    order = slot.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[slot[order]]
    if not len(order):
        return rank
    points = bodies.new_zeros(len(asked), int(count.max()), 3)
    points[slot, rank] = bodies[sets, vertex]
    return closest_faces(points, bodies[asked], faces, ordered=ordered, backend=backend)[slot, rank]
