"""Winding numbers of points in meshes: exact over all triangles, or by a tree for an inside test."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
import warp as wp
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, launch, pack_entries
from agebody_kernels.closest import LEAF, BoxTree, climb, next_node
from agebody_kernels.collide import first_places

REACH = 2.0
"""Distance, in radii of a tree node, from which all its triangles count as one dipole."""


def winding_numbers(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """Return how often each mesh winds around each of its points: the sum of its solid angles over 4 pi.

    Args:
        points: (B, N, 3), float32 or float64.
        vertices: (B, V, 3), of the same type.
        faces: (F, 3) integers, counter-clockwise from outside.

    Returns:
        (B, N); for a closed mesh 1 inside and 0 outside.

    Source: Jacobson et al., Robust inside-outside segmentation using generalized winding numbers, SIGGRAPH
    2013; van Oosterom and Strackee, The solid angle of a plane triangle, IEEE TBME 1983.
    """
    numbers = points.new_empty(points.shape[:2])
    mesh = pack_entries(vertices, 1), faces.int().contiguous()
    launch(_KERNELS[points.dtype].wind, tuple(numbers.shape), pack_entries(points, 1), *mesh, numbers)
    return numbers


def inside_meshes(
    points: Tensor, triangles: Tensor, sets: Tensor, meshes: Tensor, *, ordered: bool = False
) -> Tensor:
    """Return whether points are inside meshes: within their boxes, and with a winding number above 1/2.

    Distant groups of triangles count as one dipole each, which changes the number by up to about 0.07.

    Args:
        points: (S, N, 3) sets of points, float32 or float64.
        triangles: (M, F, 3, 3) corners of the meshes, of the same type; finite.
        sets: (Q) int32, the set of points of each query; -1 for none.
        meshes: (Q) int32, the mesh of each query.
        ordered: whether triangles are in a `tree_order`, also one of other places.

    Returns:
        (Q, N) booleans.

    Source: Barill et al., Fast winding numbers for soups and clouds, SIGGRAPH 2018, to the first order.
    """
    found = torch.zeros(len(sets), points.shape[1], dtype=torch.bool, device=points.device)
    if found.numel() and triangles.shape[1]:
        tree, kernel = BoxTree.build(triangles, ordered=ordered), _KERNELS[points.dtype].inside
        dipoles = Dipoles.build(tree, triangles.shape[1])
        launch(kernel, tuple(found.shape), pack_entries(points, 1), *tree, *dipoles, sets, meshes, found)
    return found


class Dipoles(NamedTuple):
    """The far field of the triangles in each node of a tree, to first order."""

    counted: Tensor
    """(B, leaves * LEAF) bool, true once for each triangle, false where it only fills a leaf."""
    areas: Tensor
    """(B, 2 * leaves, 3) sums of the triangles' area vectors (normals as long as their areas)."""
    centers: Tensor
    """(B, 2 * leaves, 3) means of the triangles' centres, weighted by area."""
    radii: Tensor
    """(B, 2 * leaves) distance from the centre to the farthest corner of the node's box."""

    @classmethod
    def build(cls, tree: BoxTree, num_faces: int) -> "Dipoles":
        """Build the dipoles of a tree of `num_faces` triangles."""
        places = torch.arange(tree.faces.shape[1], dtype=torch.int32, device=tree.faces.device)
        counted = first_places(tree, num_faces).gather(1, tree.faces.long()) == places
        a, b, c = tree.triangles.unbind(2)
        normals = torch.where(counted[..., None], torch.linalg.cross(b - a, c - a) / 2, 0)
        sizes = normals.norm(dim=-1, keepdim=True)
        areas, sizes, moments = (climb(t, torch.add) for t in (normals, sizes, sizes * (a + b + c) / 3))
        # A node without area has no field, so that any centre will do.
        middle = (tree.lower + tree.upper) / 2
        centers = torch.where(sizes > 0, moments / torch.where(sizes > 0, sizes, 1), middle)
        radii = torch.maximum(tree.upper - centers, centers - tree.lower).norm(dim=-1)
        return cls(counted, areas, centers, radii)


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3 = t.scalar, t.vec3
    # Sums are of half solid angles: 2 pi is one turn.
    reach, half, whole = scalar(REACH), scalar(math.pi), scalar(2.0 * math.pi)

    @t.func
    def half_solid_angle(a: vec3, b: vec3, c: vec3):
        """Return that of a triangle seen from the origin; positive from inside."""
        la = wp.length(a)
        lb = wp.length(b)
        lc = wp.length(c)
        scale = la * lb * lc + wp.dot(a, b) * lc + wp.dot(b, c) * la + wp.dot(c, a) * lb
        return wp.atan2(wp.dot(a, wp.cross(b, c)), scale)

    @t.kernel
    def wind(
        points: wp.array2d[vec3],
        vertices: wp.array2d[vec3],
        faces: wp.array[wp.vec3i],
        numbers_out: wp.array2d[scalar],
    ):
        mesh, n = wp.tid()
        p = points[mesh, n]
        total = scalar(0.0)
        for f in range(faces.shape[0]):
            i = faces[f]
            total += half_solid_angle(
                vertices[mesh, i[0]] - p, vertices[mesh, i[1]] - p, vertices[mesh, i[2]] - p
            )
        numbers_out[mesh, n] = total / whole

    @t.kernel
    def inside(
        points: wp.array2d[vec3],
        triangles: wp.array3d[vec3],
        faces: wp.array2d[int],
        lower: wp.array2d[vec3],
        upper: wp.array2d[vec3],
        counted: wp.array2d[bool],
        areas: wp.array2d[vec3],
        centers: wp.array2d[vec3],
        radii: wp.array2d[scalar],
        sets: wp.array[int],
        meshes: wp.array[int],
        inside_out: wp.array2d[bool],
    ):
        q, n = wp.tid()
        if sets[q] < 0:
            return
        p = points[sets[q], n]
        m = meshes[q]
        low = lower[m, 1]
        high = upper[m, 1]
        within = wp.bool(True)
        for i in range(3):
            within = within and p[i] >= low[i] and p[i] <= high[i]
        if not within:
            return
        leaves = lower.shape[1] // 2
        total = scalar(0.0)  # half solid angles
        node = wp.int32(1)
        while node > 0:
            down = wp.bool(False)
            way = centers[m, node] - p
            distance = wp.length(way)
            if distance > reach * radii[m, node]:
                total += wp.dot(areas[m, node], way) / (scalar(2.0) * distance * distance * distance)
            elif node < leaves:
                down = True
            else:
                for i in range((node - leaves) * LEAF, (node - leaves + 1) * LEAF):
                    if counted[m, i]:
                        total += half_solid_angle(
                            triangles[m, i, 0] - p, triangles[m, i, 1] - p, triangles[m, i, 2] - p
                        )
            if down:
                node = 2 * node
            else:
                node = next_node(node)
        inside_out[q, n] = total > half

    return SimpleNamespace(wind=wind, inside=inside)
