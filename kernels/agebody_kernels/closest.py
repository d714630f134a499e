"""Nearest triangles and lines of sight, by a tree of bounding boxes that is walked without a stack.

The tree halves a mesh's triangles along the longest axis, again and again, into leaves of equal size. So it
is a complete binary tree that needs no pointers: node i has the children 2 i and 2 i + 1, and the way back up
is arithmetic. A whole batch of trees is built by sorting and searched in one launch, in float32 or float64,
without waiting for the device.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import warp as wp
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, launch, pack_entries

LEAF = 4
"""Triangles per leaf; a power of two."""
FLAT = 1e-12
"""Squared sine of a corner's angle below which a triangle is treated as its three edges."""
EDGE = 1e-6
"""Margin in barycentric coordinates by which triangles are widened, so that no ray passes between two."""


class BoxTree(NamedTuple):
    """Bounding boxes around the triangles of B meshes."""

    triangles: Tensor
    """(B, leaves * LEAF, 3, 3) corners, leaf after leaf; some triangles occur twice, to fill the leaves."""
    faces: Tensor
    """(B, leaves * LEAF) int32, index of each triangle in the mesh's faces."""
    lower: Tensor
    """(B, 2 * leaves, 3) lower corner of each node's box; node 1 is the root, the last half are leaves."""
    upper: Tensor
    """(B, 2 * leaves, 3) upper corner of each node's box."""

    @classmethod
    def build(cls, triangles: Tensor, *, ordered: bool = False) -> "BoxTree":
        """Build the trees of triangles (B, F, 3, 3) with F > 0, which may be in a `tree_order`.

        Triangles that are NaN are left out: no box contains them.
        """
        batch, count = triangles.shape[:2]
        if ordered:
            order = _places(count, triangles.device).expand(batch, -1)
        else:
            centers = triangles[:, :, 0] + triangles[:, :, 1] + triangles[:, :, 2]  # thrice
            order = _sort(centers.nan_to_num_())
        places = order + torch.arange(batch, device=order.device)[:, None] * count
        sorted_ = triangles.reshape(batch * count, 9)[places].unflatten(2, (3, 3))
        a, b, c = sorted_.unbind(2)
        lower = climb(torch.fmin(torch.fmin(a, b), c), torch.fmin).nan_to_num_(math.inf, math.inf, -math.inf)
        upper = climb(torch.fmax(torch.fmax(a, b), c), torch.fmax).nan_to_num_(-math.inf, math.inf, -math.inf)
        return cls(sorted_, order.int(), lower, upper)


def tree_order(triangles: Tensor) -> Tensor:
    """Return the order (B, F) of triangles (B, F, 3, C), F > 0, in the leaves of their tree."""
    middles, (batch, count) = triangles.sum(2), triangles.shape[:2]
    ids = torch.arange(count, device=triangles.device)
    leaves = len(_places(count, ids.device)) // LEAF
    order, nodes = ids.expand(batch, -1), 1
    while nodes < leaves:
        node = ((ids + 1) * nodes - 1) // count  # that each place is in: all have equally many, or one more
        here = middles.take_along_dim(order[..., None], 1)
        index, none = node[:, None].expand(here.shape), here.new_zeros(batch, nodes, here.shape[2])
        lower, upper = (
            none.scatter_reduce(1, index, here, end, include_self=False) for end in ("amin", "amax")
        )
        keys = here.take_along_dim((upper - lower).argmax(-1)[:, node, None], 2)[..., 0]
        rank = keys.argsort(dim=1, stable=True)
        rank = rank.take_along_dim(node[rank].argsort(dim=1, stable=True), 1)
        order, nodes = order.take_along_dim(rank, 1), 2 * nodes
    return order


def closest_triangles(points: Tensor, triangles: Tensor, *, ordered: bool = False) -> Tensor:
    """Return the triangle nearest to each point; of several that are equally near, any.

    Args:
        points: (B, N, 3), float32 or float64.
        triangles: (B, F, 3, 3) corners, of the same type, F > 0. Triangles without area are treated as
            segments or points, those that are NaN are left out; if all are, any may be found.
        ordered: whether they are in a `tree_order`, also one of other places, or some of one. Otherwise
            they are sorted, which takes as long as a search of a thousand points.

    Returns:
        (B, N) int64, indices of triangles.
    """
    found = torch.zeros(points.shape[:2], dtype=torch.int32, device=points.device)
    if found.numel():
        tree = BoxTree.build(triangles, ordered=ordered)
        launch(_KERNELS[points.dtype].closest, tuple(found.shape), pack_entries(points, 1), *tree, found)
    return found.long()


def clear_sights(vertices: Tensor, faces: Tensor, eyes: Tensor) -> Tensor:
    """Return whether no triangle of a mesh, except a vertex's own, is between that vertex and the eye.

    Args:
        vertices: (B, V, 3), float32 or float64.
        faces: (F, 3) integers, F > 0.
        eyes: (B, 3) of the same type.

    Returns:
        (B, V) booleans.
    """
    clear = torch.ones(vertices.shape[:2], dtype=torch.int32, device=vertices.device)
    if clear.numel():
        tree, corners = BoxTree.build(vertices[:, faces.long()]), faces.int().contiguous()
        rows = pack_entries(vertices, 1), corners, pack_entries(eyes, 1)
        launch(_KERNELS[vertices.dtype].sight, tuple(clear.shape), *rows, *tree, clear)
    return clear.bool()


def _sort(middles: Tensor) -> Tensor:
    """Return indices of triangles, leaf after leaf (B, leaves * LEAF), from their centres (B, F, 3)."""
    batch, count = middles.shape[:2]
    places = _places(count, middles.device)
    leaves = len(places) // LEAF
    order = places.expand(batch, -1)
    # Coordinates first, since each step runs along the triangles.
    planes = middles.movedim(-1, 0)[..., places]
    nodes = 1
    while nodes < leaves:
        order, planes = order.reshape(batch * nodes, -1), planes.reshape(3, batch * nodes, -1)
        axis = (planes.amax(-1) - planes.amin(-1)).argmax(0)
        halves = _halve(planes[axis, torch.arange(len(order), device=order.device)])
        order, planes = order.gather(1, halves), planes.gather(2, halves.expand(3, -1, -1))
        nodes *= 2
    return order.reshape(batch, -1)


def _places(count: int, device: torch.device) -> Tensor:
    """Return the triangles of all places (leaves * LEAF) in order, evenly; a leaf repeats its last one."""
    leaves = 1 << max(0, -(-count // LEAF) - 1).bit_length()
    ends = torch.arange(leaves + 1, device=device)[:, None] * count // leaves
    return torch.minimum(ends[:-1] + torch.arange(LEAF, device=device), ends[1:] - 1).flatten()


def _halve(keys: Tensor) -> Tensor:
    """Return for each row of (M, n) an order whose first half holds the smaller keys."""
    if keys.device.type == "cpu":  # where a partial sort exists; elsewhere a full sort is faster
        return torch.from_numpy(np.argpartition(keys.numpy(), keys.shape[1] // 2, axis=1))
    return keys.argsort(dim=1, stable=True)


def climb(values: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the values (B, 2 * leaves, C) of all nodes from those of the triangles (B, leaves * LEAF, C)."""
    levels = [values]
    while levels[-1].shape[1] > 1:
        levels.append(join(levels[-1][:, ::2], levels[-1][:, 1::2]))
    unused = torch.zeros_like(values[:, :1])  # there is no node 0
    return torch.cat((unused, *levels[: LEAF.bit_length() - 2 : -1]), 1)


@wp.func
def next_node(node: int):
    """Return the node after a node and all its descendants, depth first; 0 after the last one."""
    found = wp.int32(node)
    while found % 2 == 1:  # a right child: both children of its parent are done
        found = found // 2
    if found > 0:
        found += 1
    return found


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3 = t.scalar, t.vec3
    zero, one, infinity, flat, edge = scalar(0.0), scalar(1.0), scalar(wp.inf), scalar(FLAT), scalar(EDGE)

    @t.func
    def to_segment(p: vec3, way: vec3):
        """Return the squared distance from p to the segment from the origin to way."""
        length = wp.dot(way, way)
        rest = p
        if length > zero:
            rest = p - wp.clamp(wp.dot(p, way) / length, zero, one) * way
        return wp.dot(rest, rest)

    @t.func
    def to_triangle(p: vec3, a: vec3, b: vec3, c: vec3):
        """Return the squared distance from p to the triangle."""
        ab = b - a
        ac = c - a
        ap = p - a
        normal = wp.cross(ab, ac)
        area = wp.dot(normal, normal)
        inside = wp.bool(False)
        if area > flat * wp.dot(ab, ab) * wp.dot(ac, ac):
            v = wp.dot(wp.cross(ap, ac), normal)
            w = wp.dot(wp.cross(ab, ap), normal)
            inside = v >= zero and w >= zero and v + w <= area
        found = zero
        if inside:
            height = wp.dot(ap, normal)
            found = height * height / area
        else:
            found = wp.min(wp.min(to_segment(ap, ab), to_segment(ap, ac)), to_segment(p - b, c - b))
        return found

    @t.func
    def to_box(p: vec3, lower: vec3, upper: vec3):
        """Return the squared distance from p to the box."""
        x = wp.max(wp.max(lower[0] - p[0], p[0] - upper[0]), zero)
        y = wp.max(wp.max(lower[1] - p[1], p[1] - upper[1]), zero)
        z = wp.max(wp.max(lower[2] - p[2], p[2] - upper[2]), zero)
        return x * x + y * y + z * z

    @t.func
    def meets_box(start: vec3, way: vec3, lower: vec3, upper: vec3):
        """Return whether the segment from start to start + way meets the box."""
        enter = zero
        leave = one
        for i in range(3):
            if way[i] == zero:
                if start[i] < lower[i] or start[i] > upper[i]:
                    leave = scalar(-1.0)
            else:
                near = (lower[i] - start[i]) / way[i]
                far = (upper[i] - start[i]) / way[i]
                enter = wp.max(enter, wp.min(near, far))
                leave = wp.min(leave, wp.max(near, far))
        return enter <= leave

    @t.func
    def meets_triangle(start: vec3, way: vec3, a: vec3, b: vec3, c: vec3):
        """Return whether the segment from start to start + way, without its ends, meets the triangle.

        Source: Moeller and Trumbore, Fast, minimum storage ray-triangle intersection, 1997.
        """
        ab = b - a
        ac = c - a
        across = wp.cross(way, ac)
        determinant = wp.dot(ab, across)
        found = wp.bool(False)
        if determinant != zero:
            from_a = start - a
            lift = wp.cross(from_a, ab)
            u = wp.dot(from_a, across) / determinant
            v = wp.dot(way, lift) / determinant
            reach = wp.dot(ac, lift) / determinant
            found = u >= -edge and v >= -edge and u + v <= one + edge and reach > zero and reach < one
        return found

    @t.kernel
    def closest(
        points: wp.array2d[vec3],
        triangles: wp.array3d[vec3],
        faces: wp.array2d[int],
        lower: wp.array2d[vec3],
        upper: wp.array2d[vec3],
        faces_out: wp.array2d[int],
    ):
        b, n = wp.tid()
        p = points[b, n]
        leaves = lower.shape[1] // 2
        best = infinity
        place = wp.int32(0)
        node = wp.int32(1)
        later = wp.int32(0)  # one bit per level: whether the other child must still be visited
        while node > 0:
            looking = wp.bool(False)  # whether to go further down
            if node >= leaves:
                for i in range((node - leaves) * LEAF, (node - leaves + 1) * LEAF):
                    distance = to_triangle(p, triangles[b, i, 0], triangles[b, i, 1], triangles[b, i, 2])
                    if distance < best:
                        best = distance
                        place = i
            else:
                near = 2 * node
                far = near + 1
                to_near = to_box(p, lower[b, near], upper[b, near])
                to_far = to_box(p, lower[b, far], upper[b, far])
                if to_far < to_near:
                    near, far = far, near
                    to_near, to_far = to_far, to_near
                if to_near < best:
                    looking = True
                    later = 2 * later
                    if to_far < best:
                        later += 1
                    node = near
            while not looking and node > 0:
                while later > 0 and later % 2 == 0:
                    later = later // 2
                    node = node // 2
                if later == 0:
                    node = 0
                else:
                    later -= 1
                    node = wp.where(node % 2 == 0, node + 1, node - 1)
                    looking = to_box(p, lower[b, node], upper[b, node]) < best
        faces_out[b, n] = faces[b, place]

    @t.kernel
    def sight(
        vertices: wp.array2d[vec3],
        corners: wp.array2d[int],
        eyes: wp.array[vec3],
        triangles: wp.array3d[vec3],
        faces: wp.array2d[int],
        lower: wp.array2d[vec3],
        upper: wp.array2d[vec3],
        clear_out: wp.array2d[int],
    ):
        b, v = wp.tid()
        start = vertices[b, v]
        way = eyes[b] - start
        leaves = lower.shape[1] // 2
        clear = wp.int32(1)
        node = wp.int32(1)
        while node > 0:
            down = wp.bool(False)
            if meets_box(start, way, lower[b, node], upper[b, node]):
                if node < leaves:
                    down = True
                else:
                    for i in range((node - leaves) * LEAF, (node - leaves + 1) * LEAF):
                        f = faces[b, i]
                        other = corners[f, 0] != v and corners[f, 1] != v and corners[f, 2] != v
                        if other and meets_triangle(
                            start, way, triangles[b, i, 0], triangles[b, i, 1], triangles[b, i, 2]
                        ):
                            clear = wp.int32(0)
            if clear == 0:
                node = 0
            elif down:
                node = 2 * node
            else:
                node = next_node(node)
        clear_out[b, v] = clear

    return SimpleNamespace(closest=closest, sight=sight)
