"""Linear blend skinning with sparse weights: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 2."""

import itertools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import warp as wp
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, launch, moved, pack_entries
from agebody_kernels._operator import Operator

BODIES = 4
"""Bodies per thread: each thread skins one vertex in so many bodies."""
SEGMENT = 512
"""Weights of one joint that one block sums; joints with more weights have several segments."""


class SkinningWeights(NamedTuple):
    """Skinning weights, sorted by vertex, and sorted by joint for gradients.

    W is the largest number of joints per vertex, N the number of non-zero weights.
    """

    joints: Tensor
    """(W, V) int32, joints that move each vertex, by descending weight."""
    weights: Tensor
    """(W, V) their weights; zeros fill the columns of vertices with fewer joints."""
    moved: Tensor
    """(N) int32, vertices that each joint moves, grouped by joint."""
    shares: Tensor
    """(N) their weights."""
    segments: Tensor
    """(S + 1) int32, where in ``moved`` the segments start."""
    owners: Tensor
    """(J + 1) int32, where the segments of each joint start."""

    @classmethod
    def pack(cls, joints: np.ndarray, weights: np.ndarray, num_joints: int) -> "SkinningWeights":
        """Pack joints and weights, both (V, W); entries of weight 0 are left out.

        Raises:
            ValueError: a joint does not exist, a weight is not finite, or the shapes differ.
        """
        if joints.shape != weights.shape or joints.ndim != 2:
            raise ValueError(
                f"joints, weights: expected the same shape (V, W), got {joints.shape}, {weights.shape}"
            )
        if joints.size and not (joints.min() >= 0 and joints.max() < num_joints):
            raise ValueError(f"joints: expected 0 to {num_joints - 1}, got {joints.min()} to {joints.max()}")
        if not np.isfinite(weights).all():
            raise ValueError("weights: expected finite numbers")
        vertex, slot = np.nonzero(weights)
        order = np.argsort(joints[vertex, slot], kind="stable")
        vertex, slot = vertex[order], slot[order]
        bounds = np.searchsorted(joints[vertex, slot], np.arange(num_joints + 1))
        segments, owners = [0], [0]
        for start, end in itertools.pairwise(bounds.tolist()):
            segments += [*range(start + SEGMENT, end, SEGMENT), end] if end > start else []
            owners.append(len(segments) - 1)
        # The largest weights first, so that a thread can stop at the first zero.
        by_weight = np.argsort(-np.abs(weights), axis=1, kind="stable")
        return cls(
            _int32(np.take_along_axis(joints, by_weight, 1).T),
            torch.from_numpy(np.ascontiguousarray(np.take_along_axis(weights, by_weight, 1).T)),
            _int32(vertex),
            torch.from_numpy(weights[vertex, slot]),
            _int32(np.array(segments)),
            _int32(np.array(owners)),
        )

    to = moved


def linear_blend_skinning(
    vertices: Tensor, transforms: Tensor, translation: Tensor, weights: SkinningWeights
) -> Tensor:
    """Return ``v_i' = sum over j of w_ij A_j v_i + t``, differentiable to any order in its three tensors.

    Args:
        vertices: (B, V, 3) [m].
        transforms: (B, J, 3, 4) skinning transforms A.
        translation: (B, 3) [m].
        weights: the skinning weights w, in the same floating type and on the same device.

    Returns:
        (B, V, 3) [m].

    Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 2.
    """
    return SKINNING(vertices, transforms, translation, *weights)[0]


def _int32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32))


def _reference(
    vertices: Tensor, transforms: Tensor, translation: Tensor, joints: Tensor, weights: Tensor, *_: Tensor
):
    rows = transforms.flatten(-2)  # (B, J, 12)
    blended = sum(w[:, None] * rows[:, j] for j, w in zip(joints, weights, strict=True))
    blended = blended.unflatten(-1, (3, 4))
    return ((blended[..., :3] @ vertices[..., None])[..., 0] + blended[..., 3] + translation[:, None],)


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3, mat34 = t.scalar, t.vec3, t.mat34

    blends = wp.types.matrix((3, 4 * BODIES), scalar)

    # The blended transforms of one vertex in several bodies, side by side: its weights and joints are read
    # once, and the loads of the bodies' transforms do not wait for one another.
    @t.func
    def blend(
        transforms: wp.array2d[mat34],
        joints: wp.array2d[int],
        weights: wp.array2d[scalar],
        first: int,
        v: int,
    ):
        total = blends()
        for k in range(weights.shape[0]):
            w = weights[k, v]
            if w == scalar(0.0):
                break
            j = joints[k, v]
            for i in range(BODIES):
                if first + i < transforms.shape[0]:
                    m = transforms[first + i, j]
                    for r in range(3):
                        for c in range(4):
                            total[r, 4 * i + c] += w * m[r, c]
        return total

    @t.kernel
    def skin(
        vertices: wp.array2d[vec3],
        transforms: wp.array2d[mat34],
        translation: wp.array[vec3],
        joints: wp.array2d[int],
        weights: wp.array2d[scalar],
        posed_out: wp.array2d[vec3],
    ):
        group, v = wp.tid()
        first = group * BODIES
        m = blend(transforms, joints, weights, first, v)
        for i in range(BODIES):
            b = first + i
            if b < vertices.shape[0]:
                x = vertices[b, v]
                posed = translation[b]
                for r in range(3):
                    posed[r] += (
                        m[r, 4 * i] * x[0] + m[r, 4 * i + 1] * x[1] + m[r, 4 * i + 2] * x[2] + m[r, 4 * i + 3]
                    )
                posed_out[b, v] = posed

    @t.kernel
    def unskin(
        grad: wp.array2d[vec3],
        transforms: wp.array2d[mat34],
        joints: wp.array2d[int],
        weights: wp.array2d[scalar],
        d_vertices_out: wp.array2d[vec3],
    ):
        group, v = wp.tid()
        first = group * BODIES
        m = blend(transforms, joints, weights, first, v)
        for i in range(BODIES):
            b = first + i
            if b < grad.shape[0]:
                g = grad[b, v]
                d_vertex = vec3()
                for c in range(3):
                    d_vertex[c] = m[0, 4 * i + c] * g[0] + m[1, 4 * i + c] * g[1] + m[2, 4 * i + c] * g[2]
                d_vertices_out[b, v] = d_vertex

    # The gradient of A_j is the sum over i of w_ij g_i (v_i, 1)^T: first per segment, then per joint.
    @t.kernel
    def sum_segments(
        grad: wp.array2d[vec3],
        vertices: wp.array2d[vec3],
        moved: wp.array[int],
        shares: wp.array[scalar],
        segments: wp.array[int],
        partial_out: wp.array2d[mat34],
    ):
        b, s, lane = wp.tid()
        total = mat34()
        for i in range(segments[s] + lane, segments[s + 1], wp.block_dim()):
            v = moved[i]
            g = shares[i] * grad[b, v]
            x = vertices[b, v]
            for r in range(3):
                total[r, 0] += g[r] * x[0]
                total[r, 1] += g[r] * x[1]
                total[r, 2] += g[r] * x[2]
                total[r, 3] += g[r]
        # A tree over the threads of one block: the same order in every run.
        wp.tile_store(partial_out[b], wp.tile_reduce(wp.add, wp.tile(total, preserve_type=True)), offset=s)

    @t.kernel
    def sum_joints(partial: wp.array2d[mat34], owners: wp.array[int], d_transforms_out: wp.array2d[mat34]):
        b, j = wp.tid()
        total = mat34()
        for s in range(owners[j], owners[j + 1]):
            total += partial[b, s]
        d_transforms_out[b, j] = total

    return SimpleNamespace(skin=skin, unskin=unskin, sum_segments=sum_segments, sum_joints=sum_joints)


def _value(
    vertices: Tensor, transforms: Tensor, translation: Tensor, joints: Tensor, weights: Tensor, *_: Tensor
):
    posed = torch.empty(vertices.shape, dtype=vertices.dtype, device=vertices.device)
    return (skin_into(posed, vertices, transforms, translation, joints, weights),)


def skin_into(
    posed_out: Tensor,
    vertices: Tensor,
    transforms: Tensor,
    translation: Tensor,
    joints: Tensor,
    weights: Tensor,
) -> Tensor:
    """Write the value of `linear_blend_skinning` to an existing tensor, without a gradient."""
    rows = pack_entries(vertices, 1), pack_entries(transforms, 2), pack_entries(translation, 1)
    grid = _groups(vertices), vertices.shape[1]
    launch(_KERNELS[vertices.dtype].skin, grid, *rows, joints, weights, posed_out)
    return posed_out


def _groups(tensor: Tensor) -> int:
    return -(-tensor.shape[0] // BODIES)


def _gradient(
    wants, grads, vertices, transforms, translation, joints, weights, moved, shares, segments, owners
):
    kernels, grad = _KERNELS[vertices.dtype], pack_entries(grads[0], 1)
    batch, num_joints = transforms.shape[:2]
    d_vertices = d_transforms = None
    if wants[0]:
        d_vertices = torch.empty_like(vertices, memory_format=torch.contiguous_format)
        grid, packed = (_groups(vertices), vertices.shape[1]), pack_entries(transforms, 2)
        launch(kernels.unskin, grid, grad, packed, joints, weights, d_vertices)
    if wants[1]:
        num_segments = len(segments) - 1
        partial = transforms.new_empty(batch, num_segments, 3, 4)
        grid, packed = (batch, num_segments), pack_entries(vertices, 1)
        launch(kernels.sum_segments, grid, grad, packed, moved, shares, segments, partial, tiled=True)
        d_transforms = transforms.new_empty(batch, num_joints, 3, 4)
        launch(kernels.sum_joints, (batch, num_joints), partial, owners, d_transforms)
    return d_vertices, d_transforms, grad.sum(1) if wants[2] else None


SKINNING = Operator(
    "linear_blend_skinning",
    rows=("vertices", "transforms", "translation"),
    constants=tuple(f"Tensor {name}" for name in SkinningWeights._fields),
    num_outputs=1,
    reference=_reference,
    value=_value,
    gradient=_gradient,
    shapes=lambda vertices, *_: (vertices.shape,),
    row_shapes=lambda joints, weights, moved, shares, segments, owners: (
        (joints.shape[1], 3),
        (owners.shape[0] - 1, 3, 4),
        (3,),
    ),
)
