"""Searches on meshes in torch and as operators: intersecting triangles, winding numbers, inside tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import expect, expect_dtype, expect_integers
from agebody.engine.backend import BackendName, choose_search, load_kernels
from agebody.engine.batched import is_traced, is_transformed

ENTRIES = 1 << 18
"""Number of entries that the torch searches process at a time, which bounds their memory."""
BLOCK = 32
"""Number of triangles per block of the torch searches."""
REACH = 2.0
"""A block is approximated as a whole beyond this many of its radii."""


def triangles_meet(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Bool[Tensor, "*batch"]:
    """Return whether two triangles intersect: an edge of one pierces the other.

    Triangles that only touch, or lie in one plane, do not intersect.
    """
    first = expect("first", first, 3, 3)
    second = expect("second", second, 3, 3)
    meet = torch.zeros((), dtype=torch.bool, device=first.device)
    for edges, triangle in ((first, second), (second, first)):
        a, b, c = triangle.unbind(-2)
        normal = torch.linalg.cross(b - a, c - a)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            meet = meet | _pierces(edges[..., i, :], edges[..., j, :], a, b, c, normal)
    return meet


def check_mesh(vertices: Any, faces: Any) -> tuple[Float[Tensor, "*batch V 3"], Int[Tensor, "F 3"]]:
    """Check a mesh and return its faces as int64 on the device of the vertices."""
    vertices = expect("vertices", vertices, None, 3)
    return vertices, expect_faces(faces, vertices.shape[-2]).to(vertices.device)


def expect_faces(faces: Any, num_vertices: int, *, least: int = 0) -> Int[Tensor, "F 3"]:
    """Check the triangles of a mesh with so many vertices, and return them as int64."""
    faces = expect_integers("faces", faces)
    if faces.dim() != 2 or faces.shape[1] != 3 or len(faces) < least:
        some = " with at least one face" if least else ""
        raise ValueError(f"faces: expected shape (F, 3){some}, got {tuple(faces.shape)}")
    # Elsewhere reading them would synchronise, or end a trace; the index itself is checked there.
    if faces.device.type == "cpu" and not is_traced(faces) and not is_transformed():
        expect_ids("faces", faces, num_vertices)
    return faces.long()


def check_points(
    points: Any, vertices: Any, faces: Any
) -> tuple[Float[Tensor, "*batch N 3"], Float[Tensor, "*batch V 3"], Int[Tensor, "F 3"]]:
    """Check points and meshes of the same batch; see `check_mesh`."""
    vertices, faces = check_mesh(vertices, faces)
    points = expect("points", points, None, 3)
    expect_dtype("points", points, vertices, "that of vertices")
    if points.shape[:-2] != vertices.shape[:-2]:
        raise ValueError(
            f"points: expected the batch of the vertices, {tuple(vertices.shape[:-2])}, "
            f"got {tuple(points.shape[:-2])}"
        )
    return points, vertices, faces


def expect_ids(name: str, ids: Tensor, below: int) -> None:
    """Check that ids are from 0 to ``below - 1``."""
    if ids.numel() and not (ids.min() >= 0 and ids.max() < below):
        raise ValueError(f"{name}: expected ids from 0 to {below - 1}, got {ids.min()} to {ids.max()}")


def _pierces(p: Tensor, q: Tensor, a: Tensor, b: Tensor, c: Tensor, normal: Tensor) -> Tensor:
    """Return whether the segment from p to q crosses a triangle, with its ends strictly on opposite sides."""
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
    capacity: int,
    backend: BackendName,
) -> tuple[Tensor, Tensor]:
    """Return keys (B, capacity) of pairs in ascending order, and their numbers (B)."""
    if choose_search(backend, bodies.device) == "warp":
        return load_kernels().colliding_faces(bodies, faces, parts, related, excluded, capacity)
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
    padded = faces.new_full((len(found), capacity), torch.iinfo(torch.int64).max)
    for row, key in zip(padded, found, strict=True):
        row[: len(key)] = key[:capacity]
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
    points: Tensor,
    vertices: Tensor,
    faces: Tensor,
    sets: Tensor,
    meshes: Tensor,
    ordered: bool,
    backend: BackendName,
) -> Tensor:
    """Return (Q, N) for Q queries of a set of points (-1: none) in a mesh."""
    if choose_search(backend, points.device) == "warp":
        rows = points, vertices[:, faces], sets.int(), meshes.int()
        return load_kernels().inside_meshes(*rows, ordered=ordered)
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
    """Return half the sum of the solid angles; distant blocks of triangles are approximated by dipoles."""
    order = _along_a_curve(triangles.mean(1))
    missing = -len(order) % BLOCK
    padding = triangles.new_zeros(missing, 3, 3)  # without area, so without solid angle
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
    """Yield pairs of triangles whose boxes overlap, the smaller id first; blocks are compared first."""
    lower, upper = triangles.amin(1), triangles.amax(1)
    order = _along_a_curve((lower + upper) / 2)
    num_blocks = -(-len(order) // BLOCK)
    missing = num_blocks * BLOCK - len(order)
    # Boxes with their corners swapped overlap with none.
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
    """Return Morton's order, in which neighbours are close: by the bits of the three coordinates in turn."""
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
    """Return half the solid angles of triangles seen from points [sr], positive from inside.

    Coordinates are separate tensors, for speed.
    """
    a, b, c = ([corner[..., i] - points[..., i] for i in range(3)] for corner in triangles.unbind(-2))
    la, lb, lc = (torch.sqrt(_planes_dot(corner, corner)) for corner in (a, b, c))
    across = [b[i - 2] * c[i - 1] - b[i - 1] * c[i - 2] for i in range(3)]
    scale = la * (lb * lc + _planes_dot(b, c)) + _planes_dot(a, b) * lc + _planes_dot(c, a) * lb
    return torch.atan2(_planes_dot(a, across), scale)


def _planes_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _chunks(count: int, entries: int) -> Iterator[slice]:
    """Return slices of rows such that each has about `ENTRIES` entries."""
    step = max(1, ENTRIES // max(entries, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def register(name: str, schema: str, compute: Any, fake: Any) -> Any:
    """Register an operator that compilers do not trace: the number of candidates depends on the data."""
    operator: Any = torch.library.custom_op(f"agebody::{name}", compute, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    return operator


register(
    "colliding_faces",
    "(Tensor bodies, Tensor faces, Tensor parts, Tensor related, Tensor excluded, int capacity, str backend)"
    " -> (Tensor, Tensor)",
    _colliding_faces,
    lambda bodies, faces, parts, related, excluded, capacity, backend: (
        faces.new_empty(bodies.shape[0], capacity),
        parts.new_empty(bodies.shape[0], dtype=torch.int32),
    ),
)
register(
    "winding_numbers",
    "(Tensor points, Tensor vertices, Tensor faces, str backend) -> Tensor",
    _winding_numbers,
    lambda points, *_: points.new_empty(points.shape[:2]),
)
register(
    "inside_meshes",
    "(Tensor points, Tensor vertices, Tensor faces, Tensor sets, Tensor meshes, bool ordered, str backend)"
    " -> Tensor",
    _inside_meshes,
    lambda points, vertices, faces, sets, *_: sets.new_empty(
        sets.shape[0], points.shape[1], dtype=torch.bool
    ),
)
