"""Triangles that meet, and points inside meshes: of one body with itself, of people with one another.

Pairs of triangles, vertices inside a body and winding numbers are discrete and have no gradient. Depths of
penetration have one; `agebody.losses` makes penalties of both.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.assets.asset import BodyAsset
from agebody.checks import apply_mask, expect, safe_norm
from agebody.engine.backend import BackendName, choose_search, load_kernels
from agebody.mesh.closest import closest_barycentric, closest_faces, interpolate

TOUCHING_PARTS = (
    ("spine3", "left_shoulder"),
    ("spine3", "right_shoulder"),
    ("spine2", "left_shoulder"),
    ("spine2", "right_shoulder"),
    ("left_hip", "right_hip"),
    ("neck", "jaw"),
)
"""Parts, named by their joints, that touch in ordinary poses: what SMPLify-X leaves out."""

ROOM = 1024
"""Pairs a body for which there is room at first; with more of them the search runs once more."""
ENTRIES = 1 << 18
"""Numbers that one step of torch's paths works on: it bounds their memory."""
BLOCK = 32
"""Triangles that torch's searches first look at as one."""
REACH = 2.0
"""Such a block counts as a whole from so many of its radii on."""


class Collisions(NamedTuple):
    """Pairs of triangles that meet."""

    pairs: Int[Tensor, "*batch M 2"]
    """Ids of two faces, the smaller first, in ascending order; -1 beyond what a body has."""
    num_pairs: Int[Tensor, "*batch"]
    """How many pairs each body has."""


class Penetration(NamedTuple):
    """How deep the people of an image are in one another: entry [i, j, v] is of vertex v of i in j."""

    depth: Float[Tensor, "*batch P P V"]
    """Distance to the surface of person j [m], 0 where the vertex is not inside; differentiable."""
    inside: Bool[Tensor, "*batch P P V"]
    """Whether the vertex is inside person j."""
    face: Int[Tensor, "*batch P P V"]
    """The face of person j that is nearest; -1 where the vertex is not inside."""


class Penetrations(NamedTuple):
    """The K vertices inside other people, in ascending order: `Penetration` without what is empty."""

    image: Int[Tensor, " K"]
    """Which image of the flattened batch."""
    person: Int[Tensor, " K"]
    """Whose vertex."""
    other: Int[Tensor, " K"]
    """In whom."""
    vertex: Int[Tensor, " K"]
    face: Int[Tensor, " K"]
    """The other's face that is nearest."""


@dataclass(frozen=True, eq=False)
class Exclusions:
    """Pairs of triangles whose meeting is no collision. Those that share a vertex never count anyway.

    Made by `of_body`, `of_parts` or `of_pairs`.
    """

    parts: Int[Tensor, " F"]
    """The part of each face."""
    related: Bool[Tensor, "N N"]
    """Parts whose faces are not compared; symmetric."""
    keys: Int[Tensor, " K"]
    """Single pairs, as ``first * F + second`` with first < second; ascending."""

    @classmethod
    def of_parts(cls, parts: Int[Tensor, " F"], related: Bool[Tensor, "N N"]) -> Exclusions:
        """From the part of each face and a table of the parts that are not compared."""
        _expect_ints("parts", parts)
        if parts.dim() != 1:
            raise ValueError(f"parts: expected shape (F), got {tuple(parts.shape)}")
        if related.dtype != torch.bool:
            raise TypeError(f"related: expected booleans, got {related.dtype}")
        if related.dim() != 2 or not torch.equal(related, related.mT):
            raise ValueError(f"related: expected a symmetric table (N, N), got {tuple(related.shape)}")
        _expect_ids("parts", parts, len(related))
        return cls(parts.int(), related, torch.zeros(0, dtype=torch.int64, device=parts.device))

    @classmethod
    def of_pairs(cls, pairs: Int[Tensor, "*batch 2"], num_faces: int) -> Exclusions:
        """From pairs of faces, such as the collisions of another pose; what is -1 is left out."""
        parts = torch.zeros(num_faces, dtype=torch.int32, device=pairs.device)
        return cls.of_parts(parts, torch.zeros(1, 1, dtype=torch.bool, device=pairs.device)).and_pairs(pairs)

    @classmethod
    def of_body(
        cls,
        asset: BodyAsset,
        *,
        within: int = 1,
        touching: Iterable[tuple[str, str]] = TOUCHING_PARTS,
        rest: bool = True,
        backend: BackendName = "auto",
    ) -> Exclusions:
        """What a body's own skin does in ordinary poses, and what its file brings along.

        A face belongs to the joint that moves it most. Faces of one joint, of joints that are neighbours in
        the kinematic tree and of parts that touch anyway are not compared.

        Args:
            asset: the body.
            within: joints that are so many bones apart are neighbours.
            touching: pairs of joints' names; those that the body lacks are left out.
            rest: also leave out the pairs of faces that meet in the rest pose, at any age.
            backend: finds those.

        Source: the filter of SMPLify-X (Pavlakos et al., CVPR 2019).
        """
        faces = torch.from_numpy(np.array(asset.faces))
        parts = torch.from_numpy(asset.dense_weights()[asset.faces].sum(1).argmax(1))
        excluded = cls.of_parts(parts, _related(asset, within, touching))
        if rest:
            shapes = [asset.template, *([] if asset.age_templates is None else asset.age_templates)]
            vertices = torch.from_numpy(np.stack(shapes))
            excluded = excluded.and_pairs(
                find_collisions(vertices, faces, exclude=excluded, backend=backend).pairs
            )
        return excluded

    def and_pairs(self, pairs: Int[Tensor, "*batch 2"]) -> Exclusions:
        """With further pairs of faces; errors as in `of_pairs`."""
        _expect_ints("pairs", pairs)
        if pairs.shape[-1:] != (2,):
            raise ValueError(f"pairs: expected shape (*batch, 2), got {tuple(pairs.shape)}")
        pairs = pairs.reshape(-1, 2).long()
        pairs = pairs[(pairs >= 0).all(-1)].sort(-1).values
        _expect_ids("pairs", pairs, len(self.parts))
        keys = pairs[:, 0] * len(self.parts) + pairs[:, 1]
        return replace(self, keys=torch.cat([self.keys, keys]).unique())

    def to(self, device: torch.device | str) -> Exclusions:
        """On another device."""
        return Exclusions(self.parts.to(device), self.related.to(device), self.keys.to(device))


def find_collisions(
    vertices: Float[Tensor, "*batch V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    exclude: Exclusions | None = None,
    max_collisions: int | None = None,
    backend: BackendName = "auto",
) -> Collisions:
    """The pairs of triangles of each mesh that pass through one another.

    Triangles that share a vertex are left out; so are those that only touch or lie in one plane. What is not
    finite meets nothing.

    Args:
        vertices: of one mesh or of a batch [m].
        faces: triangles, the same in all meshes.
        exclude: pairs that do not count.
        max_collisions: room for so many pairs a body, which makes the size of the result fixed; by default
            there is as much room as is needed.
        backend: "warp" searches a hierarchy of boxes, "torch" blocks of them; "auto" takes Warp where it is
            installed.

    Raises:
        RuntimeError: a body has more than ``max_collisions`` pairs. Nothing is left out in silence.
    """
    faces = _check_mesh(vertices, faces)
    batch = vertices.shape[:-2]
    bodies = flatten_batch(vertices.detach(), 2)
    if exclude is None:
        exclude = Exclusions.of_pairs(faces.new_zeros(0, 2), len(faces))
    elif len(exclude.parts) != len(faces):
        raise ValueError(f"exclude: expected one of {len(faces)} faces, got one of {len(exclude.parts)}")
    exclude = exclude.to(bodies.device)
    if max_collisions is not None and max_collisions < 0:
        raise ValueError(f"max_collisions: expected 0 or more, got {max_collisions}")
    find = functools.partial(
        torch.ops.agebody.colliding_faces,
        *(bodies, faces, exclude.parts, exclude.related, exclude.keys),
        backend=backend,
    )
    keys, count = find(room=ROOM if max_collisions is None else max_collisions)
    most = int(count.max()) if len(count) else 0
    if max_collisions is None:
        if most > keys.shape[1]:
            keys, count = find(room=most)
        keys = keys[:, :most]
    elif most > max_collisions:
        raise RuntimeError(
            f"max_collisions: body {int(count.argmax())} of the batch has {most} pairs of triangles "
            f"that meet, and there is room for {max_collisions}"
        )
    empty = torch.arange(keys.shape[1], device=keys.device) >= count[:, None]
    pairs = torch.stack([keys // len(faces), keys % len(faces)], -1).masked_fill(empty[..., None], -1)
    return Collisions(pairs.reshape(*batch, *pairs.shape[1:]), count.reshape(batch))


def triangles_meet(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Bool[Tensor, "*batch"]:
    """Whether two triangles pass through one another: an edge of one pierces the other.

    Triangles that only touch, or lie in one plane, do not meet.

    Args:
        first: three corners each.
        second: likewise.
    """
    expect("first", first, 3, 3)
    expect("second", second, 3, 3)
    meet = torch.zeros((), dtype=torch.bool, device=first.device)
    for edges, triangle in ((first, second), (second, first)):
        a, b, c = triangle.unbind(-2)
        normal = torch.linalg.cross(b - a, c - a)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            meet = meet | _pierces(edges[..., i, :], edges[..., j, :], a, b, c, normal)
    return meet


def winding_number(
    points: Float[Tensor, "*batch N 3"],
    vertices: Float[Tensor, "*batch V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    backend: BackendName = "auto",
) -> Float[Tensor, "*batch N"]:
    """How often a mesh winds around each point: the sum of the triangles' solid angles over 4 pi.

    For a closed mesh that is 1 inside, 0 outside, and 2 where it is inside itself twice. An open mesh has
    fractions near its holes: above 1/2 is what one would call inside if each hole were closed by a skin. On
    the surface itself the number is between the two sides'. Every triangle is looked at for every point.
    There is no gradient.

    Args:
        points: where to ask [m].
        vertices: of one mesh or of a batch, whose leading dimensions are those of the points [m].
        faces: triangles, counter-clockwise from outside.
        backend: "auto" takes Warp where it is installed.

    Source: Jacobson et al., SIGGRAPH 2013; van Oosterom and Strackee, IEEE TBME 1983.
    """
    faces = _check_points(points, vertices, faces)
    numbers = torch.ops.agebody.winding_numbers(
        flatten_batch(points.detach(), 2), flatten_batch(vertices.detach(), 2), faces, backend
    )
    return numbers.reshape(points.shape[:-1])


def contains(
    vertices: Float[Tensor, "*batch V 3"],
    faces: Int[Tensor, "F 3"],
    points: Float[Tensor, "*batch N 3"],
    *,
    backend: BackendName = "auto",
) -> Bool[Tensor, "*batch N"]:
    """Whether points are inside a mesh: in the box around it, and with a winding number above 1/2.

    Arguments and errors are those of `winding_number`. What is far away is summed up, so that the number errs
    by up to some 0.07: near the holes of an open mesh the two backends may differ.

    Source: Barill et al., SIGGRAPH 2018.
    """
    faces = _check_points(points, vertices, faces)
    meshes = flatten_batch(vertices.detach(), 2)
    each = torch.arange(len(meshes), device=meshes.device)
    inside = torch.ops.agebody.inside_meshes(
        flatten_batch(points.detach(), 2), meshes, faces, each, each, backend
    )
    return inside.reshape(points.shape[:-1])


def penetration(
    vertices: Float[Tensor, "*batch P V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    weights: Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None = None,
    backend: BackendName = "auto",
) -> Penetration:
    """How deep the people of an image are in one another.

    A vertex is inside a person where the mesh winds around it more than 1/2; its depth is the distance to the
    nearest point of that person's surface. Where edges cross and no vertex is inside, nothing is seen.

    Args:
        vertices: of the P people of each image, in one space [m].
        faces: triangles, the same in all bodies, counter-clockwise from outside.
        weights: broadcast to the people, (*batch, P); a person of weight 0 is not there.
        backend: "warp" searches hierarchies of boxes, "torch" compares all; "auto" takes Warp where it is
            installed.
    """
    found = find_penetrations(vertices, faces, weights=weights, backend=backend)
    batch, people = vertices.shape[:-3], vertices.shape[-3]
    shape = (batch.numel(), people, people, vertices.shape[-2])
    where = (found.image, found.person, found.other, found.vertex)
    deep = safe_norm(offsets(vertices, faces, found))
    depth = vertices.new_zeros(shape).index_put(where, deep)
    face = torch.full(shape, -1, device=vertices.device).index_put(where, found.face)
    return Penetration(*(t.reshape(*batch, *shape[1:]) for t in (depth, face >= 0, face)))


def find_penetrations(
    vertices: Float[Tensor, "*batch P V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    weights: Float[Tensor, "*entries"] | Bool[Tensor, "*entries"] | None = None,
    backend: BackendName = "auto",
) -> Penetrations:
    """The vertices that are inside other people; arguments and errors as in `penetration`.

    A person with a vertex that is not finite is in nobody, and nobody in that person.
    """
    expect("vertices", vertices, None, None, 3)
    faces = _check_mesh(vertices, faces)
    people = vertices.shape[-3]
    bodies = flatten_batch(vertices.detach(), 2)
    present = bodies.isfinite().all(-1).all(-1)
    if weights is not None:
        present = present & (_expand("weights", weights, vertices.shape[:-2]).reshape(-1) != 0)
    bodies = apply_mask(bodies, present, 2)
    person, other = (~torch.eye(people, dtype=torch.bool, device=bodies.device)).nonzero(as_tuple=True)
    first = people * torch.arange(len(bodies) // max(people, 1), device=bodies.device)[:, None]
    sets, targets = (first + person).reshape(-1), (first + other).reshape(-1)
    sets = torch.where(present[sets] & present[targets], sets, -1)
    inside = torch.ops.agebody.inside_meshes(bodies, bodies, faces, sets, targets, backend)
    pair, vertex = inside.nonzero(as_tuple=True)
    face = _nearest_faces(bodies, faces, sets[pair], vertex, targets[pair], backend)
    image, which = pair // max(len(person), 1), pair % max(len(person), 1)
    return Penetrations(image, person[which], other[which], vertex, face)


def offsets(
    vertices: Float[Tensor, "*batch P V 3"], faces: Int[Tensor, "F 3"], found: Penetrations
) -> Float[Tensor, "K 3"]:
    """From the nearest point of the other's surface to each vertex inside; differentiable in both [m]."""
    people = flatten_batch(vertices, 3)
    corners = faces.to(vertices.device).long()[found.face]
    triangles = people[found.image[:, None], found.other[:, None], corners]
    points = people[found.image, found.person, found.vertex]
    return points - interpolate(triangles, closest_barycentric(points, triangles))


def _nearest_faces(
    bodies: Tensor, faces: Tensor, sets: Tensor, vertex: Tensor, targets: Tensor, backend: BackendName
) -> Int[Tensor, " K"]:
    """The face of a target that is nearest to a vertex, K times; every target is searched once."""
    asked, slot, count = targets.unique(return_inverse=True, return_counts=True)
    order = slot.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[slot[order]]
    if not len(order):
        return rank
    points = bodies.new_zeros(len(asked), int(count.max()), 3)
    points[slot, rank] = bodies[sets, vertex]
    return closest_faces(points, bodies[asked], faces, backend=backend)[slot, rank]


def flatten_batch(tensor: Tensor, dims: int) -> Tensor:
    """With one dimension before the last ones, whether there are none or any of them is empty."""
    return tensor.reshape(tensor.shape[:-dims].numel(), *tensor.shape[-dims:])


def _pierces(p: Tensor, q: Tensor, a: Tensor, b: Tensor, c: Tensor, normal: Tensor) -> Tensor:
    """Whether the segment from p to q passes through a triangle, strictly from side to side."""
    above, below = _dot(normal, p - a), _dot(normal, q - a)
    crosses = ((above > 0) & (below < 0)) | ((above < 0) & (below > 0))
    way = q - p
    turns = [_dot(way, torch.linalg.cross(start - p, end - p)) for start, end in ((a, b), (b, c), (c, a))]
    lowest = torch.minimum(torch.minimum(turns[0], turns[1]), turns[2])
    highest = torch.maximum(torch.maximum(turns[0], turns[1]), turns[2])
    return crosses & ((lowest >= 0) | (highest <= 0))


def _colliding_faces(
    bodies: Tensor,
    faces: Tensor,
    parts: Tensor,
    related: Tensor,
    excluded: Tensor,
    room: int,
    backend: BackendName,
) -> tuple[Tensor, Tensor]:
    """Keys (B, room) of pairs in ascending order, and how many there are (B); body by body."""
    if choose_search(backend, bodies.device) == "warp":
        return load_kernels().colliding_faces(bodies, faces, parts, related, excluded, room)
    found = []
    for body in bodies:
        triangles = body[faces]
        keys = [torch.zeros(0, dtype=torch.int64, device=bodies.device)]
        for first, second in _candidates(triangles):
            apart = ~related[parts[first], parts[second]]
            shared = (faces[first][:, :, None] == faces[second][:, None, :]).flatten(1).any(1)
            first, second = (side[apart & ~shared] for side in (first, second))
            meet = triangles_meet(triangles[first], triangles[second])
            keys.append(first[meet] * len(faces) + second[meet])
        key = torch.cat(keys).sort().values
        found.append(key[~torch.isin(key, excluded)])
    count = torch.tensor([len(key) for key in found], dtype=torch.int32, device=bodies.device)
    padded = faces.new_full((len(found), room), torch.iinfo(torch.int64).max)
    for row, key in zip(padded, found, strict=True):
        row[: len(key)] = key[:room]
    return padded, count


def _winding_numbers(points: Tensor, vertices: Tensor, faces: Tensor, backend: BackendName) -> Tensor:
    if choose_search(backend, points.device) == "warp":
        return load_kernels().winding_numbers(points, vertices, faces)
    numbers = points.new_zeros(points.shape[:-1])
    for number, some, triangles in zip(numbers, points, vertices[:, faces], strict=True):
        for part in _chunks(len(some), 4 * len(faces)):
            number[part] = _half_solid_angles(some[part, None], triangles).sum(-1) / (2 * torch.pi)
    return numbers


def _inside_meshes(
    points: Tensor, vertices: Tensor, faces: Tensor, sets: Tensor, meshes: Tensor, backend: BackendName
) -> Tensor:
    """(Q, N) for questions of a set of points (-1 for none) and a mesh."""
    if choose_search(backend, points.device) == "warp":
        return load_kernels().inside_meshes(points, vertices[:, faces], sets.int(), meshes.int())
    lower, upper = vertices.amin(1), vertices.amax(1)
    inside = torch.zeros(len(sets), points.shape[1], dtype=torch.bool, device=points.device)
    for row, some, mesh in zip(inside, sets, meshes, strict=True):
        if some >= 0:
            asked = points[some]
            near = ((asked >= lower[mesh]) & (asked <= upper[mesh])).all(-1).nonzero()[:, 0]
            row[near] = _half_of_all_angles(asked[near], vertices[mesh][faces]) > torch.pi
    return inside


def _half_of_all_angles(
    points: Float[Tensor, "N 3"], triangles: Float[Tensor, "F 3 3"]
) -> Float[Tensor, " N"]:
    """Half the sum of the solid angles; a block of triangles far from a point counts as one dipole."""
    order = _along_a_curve(triangles.mean(1))
    missing = -len(order) % BLOCK
    padding = triangles.new_zeros(missing, 3, 3)  # without area, they have no angle
    blocks = torch.cat([triangles[order], padding]).unflatten(0, (-1, BLOCK))
    a, b, c = blocks.unbind(2)
    normals = torch.linalg.cross(b - a, c - a) / 2
    sizes = normals.norm(dim=-1, keepdim=True)
    total = sizes.sum(1)
    centers = (sizes * (a + b + c) / 3).sum(1) / torch.where(total > 0, total, 1)
    seen = (sizes > 0)[..., None] * (blocks - centers[:, None, None])
    radii = seen.norm(dim=-1).flatten(1).amax(1)
    angles = points.new_zeros(len(points))
    for part in _chunks(len(points), 3 * len(blocks)):
        way = centers - points[part, None]
        distance = way.norm(dim=-1)
        far = distance > REACH * radii
        dipole = _dot(way, normals.sum(1)) / (2 * torch.where(far, distance, 1) ** 3)
        angles[part] = torch.where(far, dipole, 0).sum(1)
        point, block = (~far).nonzero(as_tuple=True)
        point = point + part.start
        for some in _chunks(len(point), 4 * BLOCK):
            near = _half_solid_angles(points[point[some], None], blocks[block[some]])
            angles.index_add_(0, point[some], near.sum(1))
    return angles


def _candidates(triangles: Float[Tensor, "F 3 3"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of triangles whose boxes overlap, the smaller id first; first by blocks, then one by one."""
    lower, upper = triangles.amin(1), triangles.amax(1)
    order = _along_a_curve((lower + upper) / 2)
    num_blocks = -(-len(order) // BLOCK)
    missing = num_blocks * BLOCK - len(order)
    # Boxes that are inside out overlap with none.
    lower, upper = (
        torch.cat([corner[order], corner.new_full((missing, 3), fill)]).unflatten(0, (num_blocks, BLOCK))
        for corner, fill in ((lower, torch.inf), (upper, -torch.inf))
    )
    order = torch.cat([order, order.new_zeros(missing)]).unflatten(0, (num_blocks, BLOCK))
    whole = (lower.amin(1), upper.amax(1))
    near = (whole[0][:, None] <= whole[1]) & (whole[0] <= whole[1][:, None])
    left, right = near.all(-1).triu().nonzero(as_tuple=True)
    for part in _chunks(len(left), 3 * BLOCK * BLOCK):
        i, j = left[part], right[part]
        overlap = (lower[i][:, :, None] <= upper[j][:, None]) & (lower[j][:, None] <= upper[i][:, :, None])
        pair, row, column = overlap.all(-1).nonzero(as_tuple=True)
        once = (i[pair] != j[pair]) | (row < column)
        first, second = order[i[pair], row][once], order[j[pair], column][once]
        yield torch.minimum(first, second), torch.maximum(first, second)


def _along_a_curve(points: Float[Tensor, "F 3"]) -> Int[Tensor, " F"]:
    """An order in which neighbours are close: Morton's, by the bits of the three coordinates in turn."""
    points = points.nan_to_num()
    low, high = points.amin(0), points.amax(0)
    cells = ((points - low) / torch.where(high > low, high - low, 1) * 1023).long()
    code = torch.zeros_like(cells[:, 0])
    for bit, axis in itertools.product(range(10), range(3)):
        code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort()


def _half_solid_angles(
    points: Float[Tensor, "*#batch 3"], triangles: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Of triangles seen from points [sr], positive from inside. In planes, for speed."""
    a, b, c = ([corner[..., i] - points[..., i] for i in range(3)] for corner in triangles.unbind(-2))
    la, lb, lc = (torch.sqrt(_planes_dot(corner, corner)) for corner in (a, b, c))
    across = [b[i - 2] * c[i - 1] - b[i - 1] * c[i - 2] for i in range(3)]
    scale = la * (lb * lc + _planes_dot(b, c)) + _planes_dot(a, b) * lc + _planes_dot(c, a) * lb
    return torch.atan2(_planes_dot(a, across), scale)


def _planes_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _related(asset: BodyAsset, within: int, touching: Iterable[tuple[str, str]]) -> Bool[Tensor, "J J"]:
    steps = np.eye(asset.num_joints, dtype=bool)
    child = np.arange(1, asset.num_joints)
    steps[child, asset.parents[1:]] = steps[asset.parents[1:], child] = True
    related = np.linalg.matrix_power(steps, within)
    for pair in touching:
        if set(pair) <= set(asset.joint_names):
            i, j = (asset.joint_names.index(name) for name in pair)
            related[i, j] = related[j, i] = True
    return torch.from_numpy(related)


def _check_mesh(vertices: Any, faces: Any) -> Int[Tensor, "F 3"]:
    """The faces as int64 beside the vertices."""
    expect("vertices", vertices, None, 3)
    if vertices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"vertices: expected float32 or float64, got {vertices.dtype}")
    _expect_ints("faces", faces)
    if faces.dim() != 2 or faces.shape[1] != 3:
        raise ValueError(f"faces: expected shape (F, 3), got {tuple(faces.shape)}")
    _expect_ids("faces", faces, vertices.shape[-2])
    return faces.to(vertices.device).long()


def _check_points(points: Any, vertices: Any, faces: Any) -> Int[Tensor, "F 3"]:
    faces = _check_mesh(vertices, faces)
    expect("points", points, None, 3)
    if points.dtype != vertices.dtype:
        raise TypeError(f"points: expected {vertices.dtype}, as the vertices, got {points.dtype}")
    if points.shape[:-2] != vertices.shape[:-2]:
        raise ValueError(
            f"points: expected the batch of the vertices, {tuple(vertices.shape[:-2])}, "
            f"got {tuple(points.shape[:-2])}"
        )
    return faces


def _expect_ints(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")


def _expect_ids(name: str, ids: Tensor, below: int) -> None:
    if ids.numel() and not (ids.min() >= 0 and ids.max() < below):
        raise ValueError(f"{name}: expected ids from 0 to {below - 1}, got {ids.min()} to {ids.max()}")


def _expand(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    try:
        return tensor.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {tuple(shape)}, got {tuple(tensor.shape)}"
        ) from None


def _chunks(count: int, entries: int) -> Iterator[slice]:
    """Parts of so many rows that each has about `ENTRIES` entries."""
    step = max(1, ENTRIES // max(entries, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _register(name: str, schema: str, compute: Any, fake: Any) -> None:
    """What no compiler looks into: how many candidates a search meets depends on the data."""
    operator: Any = torch.library.custom_op(f"agebody::{name}", compute, mutates_args=(), schema=schema)
    operator.register_fake(fake)


_register(
    "colliding_faces",
    "(Tensor bodies, Tensor faces, Tensor parts, Tensor related, Tensor excluded, int room, str backend)"
    " -> (Tensor, Tensor)",
    _colliding_faces,
    lambda bodies, faces, parts, related, excluded, room, backend: (
        faces.new_empty(bodies.shape[0], room),
        parts.new_empty(bodies.shape[0], dtype=torch.int32),
    ),
)
_register(
    "winding_numbers",
    "(Tensor points, Tensor vertices, Tensor faces, str backend) -> Tensor",
    _winding_numbers,
    lambda points, *_: points.new_empty(points.shape[:2]),
)
_register(
    "inside_meshes",
    "(Tensor points, Tensor vertices, Tensor faces, Tensor sets, Tensor meshes, str backend) -> Tensor",
    _inside_meshes,
    lambda points, vertices, faces, sets, *_: sets.new_empty(
        sets.shape[0], points.shape[1], dtype=torch.bool
    ),
)
