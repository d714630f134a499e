"""Triangles of one mesh that intersect: candidates by a tree of bounding boxes, then an exact test."""

from types import SimpleNamespace

import torch
import warp as wp
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, launch
from agebody_kernels.closest import LEAF, BoxTree, next_node


def colliding_faces(
    vertices: Tensor, faces: Tensor, parts: Tensor, related: Tensor, excluded: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    """Return the pairs of triangles that intersect, each as the key ``first * F + second``, first < second.

    Triangles that share a vertex, that belong to related parts, or that are an excluded pair are left out.

    Args:
        vertices: (B, V, 3), float32 or float64.
        faces: (F, 3) integers.
        parts: (F) int32, the part of each triangle.
        related: (P, P) bool, symmetric: parts whose triangles are not compared.
        excluded: (K) int64, keys of pairs to leave out, ascending.
        capacity: largest number of keys per body.

    Returns:
        (B, capacity) int64 keys, ascending, padded with the largest int64; and (B) int32 numbers of pairs.
        Where that exceeds the capacity, the keys are an arbitrary choice of the pairs.
    """
    batch, last = len(vertices), torch.iinfo(torch.int64).max
    keys = torch.full((batch, capacity), last, dtype=torch.int64, device=vertices.device)
    counts = torch.zeros(batch, dtype=torch.int32, device=vertices.device)
    if batch and len(faces):
        tree = BoxTree.build(vertices[:, faces.long()])
        mesh = first_places(tree, len(faces)), faces.int().contiguous(), parts
        kernel = _KERNELS[vertices.dtype].find
        launch(kernel, tuple(tree.faces.shape), *tree, *mesh, related, excluded, keys, counts)
    # Threads finish in any order; sorted keys do not depend on it.
    return keys.sort(-1).values, counts


def first_places(tree: BoxTree, num_faces: int) -> Tensor:
    """Return the first place of each face in the leaves, (B, F) int32: a face that fills up comes again."""
    places = torch.arange(tree.faces.shape[1], dtype=torch.int32, device=tree.faces.device)
    found = tree.faces.new_zeros(len(tree.faces), num_faces)
    return found.scatter_reduce(
        1, tree.faces.long(), places.expand(tree.faces.shape), "amin", include_self=False
    )


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3 = t.scalar, t.vec3

    @t.func
    def pierces(p: vec3, q: vec3, a: vec3, b: vec3, c: vec3):
        """Return whether the segment from p to q crosses the triangle, strictly from side to side."""
        zero = scalar(0.0)
        normal = wp.cross(b - a, c - a)
        above = wp.dot(normal, p - a)
        below = wp.dot(normal, q - a)
        if not ((above > zero and below < zero) or (above < zero and below > zero)):
            return False
        way = q - p
        u = wp.dot(way, wp.cross(a - p, b - p))
        v = wp.dot(way, wp.cross(b - p, c - p))
        w = wp.dot(way, wp.cross(c - p, a - p))
        return (u >= zero and v >= zero and w >= zero) or (u <= zero and v <= zero and w <= zero)

    @t.func
    def meet(a: vec3, b: vec3, c: vec3, d: vec3, e: vec3, f: vec3):
        return (
            pierces(a, b, d, e, f)
            or pierces(b, c, d, e, f)
            or pierces(c, a, d, e, f)
            or pierces(d, e, a, b, c)
            or pierces(e, f, a, b, c)
            or pierces(f, d, a, b, c)
        )

    @t.func
    def apart(lower: vec3, upper: vec3, other_lower: vec3, other_upper: vec3):
        found = wp.bool(False)
        for i in range(3):
            found = found or lower[i] > other_upper[i] or upper[i] < other_lower[i]
        return found

    @t.func
    def share(a: wp.vec3i, b: wp.vec3i):
        """Return whether two triangles have a vertex in common."""
        found = wp.bool(False)
        for i in range(3):
            found = found or a[i] == b[0] or a[i] == b[1] or a[i] == b[2]
        return found

    @t.func
    def listed(keys: wp.array[wp.int64], key: wp.int64):
        """Return whether sorted keys contain this one."""
        slot = wp.lower_bound(keys, key)
        if slot < keys.shape[0]:
            return keys[slot] == key
        return False

    @t.kernel
    def find(
        triangles: wp.array3d[vec3],
        faces: wp.array2d[int],
        lower: wp.array2d[vec3],
        upper: wp.array2d[vec3],
        first_places: wp.array2d[int],
        corners: wp.array[wp.vec3i],
        parts: wp.array[int],
        related: wp.array2d[bool],
        excluded: wp.array[wp.int64],
        keys_out: wp.array2d[wp.int64],
        counts_out: wp.array[int],
    ):
        body, place = wp.tid()
        own = faces[body, place]
        if first_places[body, own] != place:
            return
        a = triangles[body, place, 0]
        b = triangles[body, place, 1]
        c = triangles[body, place, 2]
        low = wp.min(wp.min(a, b), c)
        high = wp.max(wp.max(a, b), c)
        leaves = lower.shape[1] // 2
        # From its own leaf on to the right, so that every pair is tested once.
        node = leaves + place // LEAF
        while node > 0:
            down = wp.bool(False)
            if not apart(low, high, lower[body, node], upper[body, node]):
                if node < leaves:
                    down = True
                else:
                    for i in range((node - leaves) * LEAF, (node - leaves + 1) * LEAF):
                        other = faces[body, i]
                        if i <= place or first_places[body, other] != i or related[parts[own], parts[other]]:
                            continue
                        d = triangles[body, i, 0]
                        e = triangles[body, i, 1]
                        f = triangles[body, i, 2]
                        if share(corners[own], corners[other]) or not meet(a, b, c, d, e, f):
                            continue
                        key = wp.int64(wp.min(own, other)) * wp.int64(corners.shape[0]) + wp.int64(
                            wp.max(own, other)
                        )
                        if listed(excluded, key):
                            continue
                        slot = wp.atomic_add(counts_out, body, 1)
                        if slot < keys_out.shape[1]:
                            keys_out[body, slot] = key
            if down:
                node = 2 * node
            else:
                node = next_node(node)

    return SimpleNamespace(find=find)
