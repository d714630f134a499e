"""Winding numbers of points in meshes: of every triangle, or by a tree where only inside or out is asked."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
import warp as wp
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, entries, launch
from agebody_kernels.closest import LEAF, BoxTree
from agebody_kernels.collide import first_places

REACH = 2.0
"""A node of the tree counts as a whole from so many of its radii on."""


def winding_numbers(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """How often each mesh winds around each of its points: the sum of all triangles' solid angles over 4 pi.

    Args:
        points: (B, N, 3), float32 or float64.
        vertices: (B, V, 3), of the same type.
        faces: (F, 3) integers; counter-clockwise from outside.

    Returns:
        (B, N), for a closed mesh 1 inside and 0 outside.

    Source: Jacobson et al., Robust inside-outside segmentation using generalized winding numbers, SIGGRAPH
    2013; van Oosterom and Strackee, The solid angle of a plane triangle, IEEE TBME 1983.
    """
    numbers = points.new_empty(points.shape[:2])
    launch(
        _KERNELS[points.dtype].wind, tuple(numbers.shape),
        entries(points, 1), entries(vertices, 1), faces.int().contiguous(), numbers,
    )  # fmt: skip
    return numbers


def inside_meshes(points: Tensor, triangles: Tensor, sets: Tensor, meshes: Tensor) -> Tensor:
    """Whether points are inside meshes: within their boxes, and with a winding number above 1/2.

    What is far from a point counts as one dipole, so that the number errs by up to some 0.07.

    Args:
        points: (S, N, 3), sets of points, float32 or float64.
        triangles: (M, F, 3, 3) of meshes, of the same type; finite.
        sets: (Q) int32, the set of points of each question; -1 for none.
        meshes: (Q) int32, the mesh of each question.

    Returns:
        (Q, N) booleans.

    Source: Barill et al., Fast winding numbers for soups and clouds, SIGGRAPH 2018, to the first order.
    """
    found = torch.zeros(len(sets), points.shape[1], dtype=torch.bool, device=points.device)
    if found.numel() and triangles.shape[1]:
        tree = BoxTree.build(triangles)
        launch(
            _KERNELS[points.dtype].inside, tuple(found.shape),
            entries(points, 1), *tree, *Dipoles.build(tree, triangles.shape[1]), sets, meshes, found,
        )  # fmt: skip
    return found


class Dipoles(NamedTuple):
    """What the triangles in each node of a tree look like from afar."""

    counted: Tensor
    """(B, leaves * LEAF) bool: each triangle once."""
    areas: Tensor
    """(B, 2 * leaves, 3), sums of the normals, each as long as its triangle is large."""
    centers: Tensor
    """(B, 2 * leaves, 3), mean of the triangles, weighted by their areas."""
    radii: Tensor
    """(B, 2 * leaves), from there to the farthest corner of the node's box."""

    @classmethod
    def build(cls, tree: BoxTree, num_faces: int) -> "Dipoles":
        """Of a tree with so many faces."""
        places = torch.arange(tree.faces.shape[1], dtype=torch.int32, device=tree.faces.device)
        counted = first_places(tree, num_faces).gather(1, tree.faces.long()) == places
        a, b, c = tree.triangles.unbind(2)
        normals = torch.where(counted[..., None], torch.linalg.cross(b - a, c - a) / 2, 0)
        sizes = normals.norm(dim=-1, keepdim=True)
        areas, sizes, moments = (
            _climb(t.unflatten(1, (-1, LEAF)).sum(2)) for t in (normals, sizes, sizes * (a + b + c) / 3)
        )
        # Where there is no area, nothing is seen from anywhere.
        middle = (tree.lower + tree.upper) / 2
        centers = torch.where(sizes > 0, moments / torch.where(sizes > 0, sizes, 1), middle)
        radii = torch.maximum(tree.upper - centers, centers - tree.lower).norm(dim=-1)
        return cls(counted, areas, centers, radii)


def _climb(leaves: Tensor) -> Tensor:
    """Sums of all nodes (B, 2 n, C), from those of the leaves (B, n, C)."""
    levels = [leaves]
    while levels[-1].shape[1] > 1:
        levels.append(levels[-1].unflatten(1, (-1, 2)).sum(2))
    return torch.cat((torch.zeros_like(leaves[:, :1]), *levels[::-1]), 1)  # there is no node 0


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3 = t.scalar, t.vec3
    reach, half, whole = scalar(REACH), scalar(math.pi), scalar(2.0 * math.pi)  # halves of solid angles

    @t.func
    def half_solid_angle(a: vec3, b: vec3, c: vec3):
        """Of a triangle seen from the origin, positive from inside."""
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
        if not (
            p[0] >= low[0] and p[1] >= low[1] and p[2] >= low[2]
            and p[0] <= high[0] and p[1] <= high[1] and p[2] <= high[2]
        ):  # fmt: skip
            return
        leaves = lower.shape[1] // 2
        total = scalar(0.0)  # of half solid angles
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
                while node % 2 == 1:  # up, as long as both children are done
                    node = node // 2
                if node > 0:
                    node += 1
        inside_out[q, n] = total > half

    return SimpleNamespace(wind=wind, inside=inside)
