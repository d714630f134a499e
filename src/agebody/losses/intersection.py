"""Losses of bodies that intersect themselves or one another; their gradients push apart what intersects."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_choice,
    flatten,
    read_positive,
    reduce,
    safe_norm,
)
from agebody.engine.backend import BackendName
from agebody.mesh.collisions import Exclusions, find_collisions
from agebody.mesh.penetrations import find_penetrations, offsets

DepthForm = Literal["squared", "linear"]


def self_intersection_loss(
    vertices: Float[Tensor, "*batch V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    exclude: Exclusions | None = None,
    sigma: float = 1e-4,
    max_collisions: int | None = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    backend: BackendName = "auto",
) -> Float[Tensor, "*left"]:
    """Penalise triangles of one body that intersect, each pair by the cones on both.

        sum over pairs (s, t) of  sum over corners v of t: Psi_s(v)^2  +  sum over corners v of s: Psi_t(v)^2

    with `conic_distance_field` Psi. The pairs are searched at every call, and have no gradient.

    Args:
        vertices: (*batch, V, 3) [m].
        faces: triangles, counter-clockwise from outside.
        exclude: pairs that do not count, such as `agebody.mesh.Exclusions.of_body` finds.
        sigma: height of the cones [m].
        max_collisions: as in `agebody.mesh.find_collisions`.
        weights: broadcast to (*batch).
        reduction: "none" gives (*batch).
        backend: of the search.

    Raises:
        RuntimeError: a body has more pairs than ``max_collisions``.

    Source: Tzionas et al., Capturing hands in action using discriminative salient points and physics
    simulation, IJCV 2016; sigma of SMPLify-X (Pavlakos et al., CVPR 2019).
    """
    vertices = expect("vertices", vertices, None, 3)
    weights = expand_weights(weights, vertices.shape[:-2])
    vertices = apply_mask(vertices, weights, 2)
    faces = faces.to(vertices.device)
    found = find_collisions(
        vertices, faces, exclude=exclude, max_collisions=max_collisions, backend=backend
    ).pairs
    bodies, pairs = flatten(vertices, None, 2), flatten(found, None, 2)
    body, row = (pairs[..., 0] >= 0).nonzero(as_tuple=True)
    first, second = (bodies[body[:, None], faces[pairs[body, row, side]]] for side in (0, 1))
    fields = torch.cat(
        [conic_distance_field(second, first, sigma), conic_distance_field(first, second, sigma)], -1
    )
    terms = _not_finite(bodies).index_put((body,), (fields * fields).sum(-1), accumulate=True)
    return reduce(terms.reshape(vertices.shape[:-2]), weights, reduction)


def person_intersection_loss(
    vertices: Float[Tensor, "*batch P V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    weights: Weights = None,
    form: DepthForm = "squared",
    reduction: Reduction = "mean",
    backend: BackendName = "auto",
) -> Float[Tensor, "*left"]:
    """Penalise people of one image that intersect, by the depth of each of their vertices in the other.

        L_ij = sum over vertices v of i inside j of  d_j(v)^2  or  d_j(v)

    with the distance d_j(v) from v to the surface of j. The gradient moves v outward, along the normal of j
    where that is smooth, and the nearest point of j by as much the other way. The linear form is CRMH's,
    without its grid of 32^3 distances; its sum over P^2 is CRMH's loss.

    Args:
        vertices: (*batch, P, V, 3) of the P people of each image in one space [m].
        faces: triangles, counter-clockwise from outside, the same in all bodies.
        weights: broadcast to (*batch, P). A pair weighs the product of its people.
        form: "squared" or "linear".
        reduction: "none" gives (*batch, P, P) terms L_ij. "mean" is over the ordered pairs of two people.
        backend: of the search.

    Source: Jiang et al., Coherent reconstruction of multiple humans from a single image, CVPR 2020.
    """
    expect_choice("form", form, get_args(DepthForm))
    vertices = expect("vertices", vertices, None, None, 3)
    people = vertices.shape[-3]
    weights = expand_weights(weights, vertices.shape[:-2])
    vertices = apply_mask(vertices, weights, 2)
    found = find_penetrations(vertices, faces, weights=weights, backend=backend)
    offset = offsets(vertices, faces, found)
    depth = (offset * offset).sum(-1) if form == "squared" else safe_norm(offset)
    nothing = _not_finite(vertices)
    terms = flatten(nothing[..., None] + nothing[..., None, :], None, 2)
    terms = terms.index_put((found.image, found.person, found.other), depth, accumulate=True)
    others = ~torch.eye(people, dtype=torch.bool, device=vertices.device)
    pairs = others if weights is None else others * weights[..., None] * weights[..., None, :]
    return reduce(terms.reshape(*vertices.shape[:-3], people, people), pairs, reduction)


def conic_distance_field(
    points: Float[Tensor, "*#batch N 3"], triangles: Float[Tensor, "*#batch 3 3"], sigma: float = 1e-4
) -> Float[Tensor, "*batch N"]:
    """Return how far points have come into the cone on each triangle.

    The cone stands on the circle through the corners, with centre o and radius r, along the triangle's normal
    n; it ends sigma above and widens below. With ``x = n . (p - o)`` and the distance l from the axis,

        Phi = l / (r (1 - x / sigma))
        Upsilon = 0                                                            x >= sigma
                  -(1 - 2 sigma) / (4 sigma^2) x^2 - x / (2 sigma) + (3 - 2 sigma) / 4
                  1 - sigma - x                                                x <= -sigma
        Psi = ((1 - Phi) Upsilon)^2  where Phi < 1 and x < sigma, else 0

    It has no unit: x is a number of metres. With a sigma far below a metre, Psi is nearly (1 + depth)^2
    behind the triangle and 0 in front of it. A triangle without area has no cone.

    Args:
        points: (*batch, N, 3) [m].
        triangles: (*batch, 3, 3) corners, counter-clockwise from outside [m].
        sigma: height of the cone [m], positive.

    Source: Tzionas et al., IJCV 2016: its penetration term, with all derivatives of the cones as well.
    """
    points = expect("points", points, None, 3)
    triangles = expect("triangles", triangles, 3, 3)
    read_positive("sigma", sigma, "a length")
    last = triangles[..., 2, :]
    a, b = triangles[..., 0, :] - last, triangles[..., 1, :] - last
    normal = torch.linalg.cross(a, b)
    squared = _dot(normal, normal)
    flat = squared == 0
    squared = torch.where(flat, 1, squared)
    towards = _dot(a, a)[..., None] * b - _dot(b, b)[..., None] * a
    center = last + torch.linalg.cross(towards, normal) / (2 * squared[..., None])
    size = torch.sqrt(squared)[..., None]
    radius = (safe_norm(a) * safe_norm(b) * safe_norm(a - b))[..., None] / (2 * size)
    normal = normal / size
    way = points - center[..., None, :]
    x = _dot(way, normal[..., None, :])
    off_axis = safe_norm(way - x[..., None] * normal[..., None, :])
    below = (x < sigma) & ~flat[..., None]
    x = torch.where(below, x, 0)
    reach = torch.where(below, radius * (1 - x / sigma), 1)
    quadratic = -(1 - 2 * sigma) / (4 * sigma**2) * x * x - x / (2 * sigma) + (3 - 2 * sigma) / 4
    upsilon = torch.where(x <= -sigma, 1 - sigma - x, quadratic)
    inside = below & (off_axis < reach)
    return torch.where(inside, (1 - off_axis / reach) * upsilon, 0) ** 2


def _not_finite(vertices: Float[Tensor, "*batch V 3"]) -> Float[Tensor, "*batch"]:
    """Return zeros; NaN for a body with NaN vertices, which no search finds, lest it pass for a good one."""
    return (0 * vertices).sum((-2, -1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)
