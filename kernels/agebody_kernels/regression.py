"""Points as sparse weighted sums of vertices: the joints of a regressor, the keypoints of a layout."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import warp as wp
from scipy import sparse
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, launch, moved, pack_entries
from agebody_kernels._operator import Operator


class PointWeights(NamedTuple):
    """A sparse regressor (K, V), sorted by point, and sorted by vertex for gradients.

    N is the number of its non-zero weights.
    """

    vertices: Tensor
    """(N) int32, vertices of each point, grouped by point."""
    values: Tensor
    """(N) their weights."""
    starts: Tensor
    """(K + 1) int32, where the group of each point starts."""
    points: Tensor
    """(N) int32, points of each vertex, grouped by vertex."""
    values_by_vertex: Tensor
    """(N) their weights."""
    starts_by_vertex: Tensor
    """(V + 1) int32, where the group of each vertex starts."""

    @classmethod
    def pack(cls, regressor: sparse.csr_array | np.ndarray) -> "PointWeights":
        """Pack a regressor (K, V), sparse or dense."""
        rows = sparse.csr_array(regressor, copy=True)
        rows.sum_duplicates()
        columns = sparse.csr_array(rows.T)
        tensors = []
        for matrix in (rows, columns):
            matrix.sort_indices()
            tensors += [
                torch.from_numpy(matrix.indices.astype(np.int32)),
                torch.from_numpy(matrix.data.copy()),
                torch.from_numpy(matrix.indptr.astype(np.int32)),
            ]
        return cls(*tensors)

    to = moved


def regress_points(vertices: Tensor, weights: PointWeights) -> Tensor:
    """Return ``p_k = sum over v of r_kv x_v``, differentiable to any order in the vertices.

    Args:
        vertices: (B, V, 3) [m].
        weights: the regressor r, in the same floating type and on the same device.

    Returns:
        (B, K, 3) [m].
    """
    return REGRESSION(vertices, *weights)[0]


def _reference(
    vertices: Tensor, indices: Tensor, values: Tensor, starts: Tensor, *_: Tensor
) -> tuple[Tensor]:
    # A dense product, because index_add sums in no fixed order on CUDA.
    point = torch.bucketize(torch.arange(len(indices), device=indices.device), starts[1:], right=True)
    regressor = values.new_zeros(len(starts) - 1, vertices.shape[1])
    return (regressor.index_put((point, indices.long()), values) @ vertices,)


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3 = t.scalar, t.vec3

    @t.kernel
    def regress(
        vertices: wp.array2d[vec3],
        indices: wp.array[int],
        values: wp.array[scalar],
        starts: wp.array[int],
        points_out: wp.array2d[vec3],
    ):
        b, k, lane = wp.tid()
        total = vec3()
        for i in range(starts[k] + lane, starts[k + 1], wp.block_dim()):
            total += values[i] * vertices[b, indices[i]]
        # A tree over the threads of one block: the same order in every run.
        wp.tile_store(points_out[b], wp.tile_reduce(wp.add, wp.tile(total, preserve_type=True)), offset=k)

    @t.kernel
    def spread(
        grad: wp.array2d[vec3],
        points: wp.array[int],
        values: wp.array[scalar],
        starts: wp.array[int],
        d_vertices_out: wp.array2d[vec3],
    ):
        b, v = wp.tid()
        total = vec3()
        for i in range(starts[v], starts[v + 1]):
            total += values[i] * grad[b, points[i]]
        d_vertices_out[b, v] = total

    return SimpleNamespace(regress=regress, spread=spread)


def _value(vertices: Tensor, indices: Tensor, values: Tensor, starts: Tensor, *_: Tensor) -> tuple[Tensor]:
    batch, num_points = len(vertices), len(starts) - 1
    points = vertices.new_empty(batch, num_points, 3)
    kernel, packed = _KERNELS[vertices.dtype].regress, pack_entries(vertices, 1)
    launch(kernel, (batch, num_points), packed, indices, values, starts, points, tiled=True)
    return (points,)


def _gradient(wants, grads, vertices, indices, values, starts, points, values_by_vertex, starts_by_vertex):
    d_vertices = torch.empty(vertices.shape, dtype=vertices.dtype, device=vertices.device)
    kernel, grad = _KERNELS[vertices.dtype].spread, pack_entries(grads[0], 1)
    launch(kernel, tuple(vertices.shape[:2]), grad, points, values_by_vertex, starts_by_vertex, d_vertices)
    return (d_vertices,)


REGRESSION = Operator(
    "regress_points",
    rows=("positions",),
    constants=tuple(f"Tensor {name}" for name in PointWeights._fields),
    num_outputs=1,
    reference=_reference,
    value=_value,
    gradient=_gradient,
    shapes=lambda positions, indices, values, starts, *_: ((positions.shape[0], starts.shape[0] - 1, 3),),
    row_shapes=lambda *constants: ((constants[-1].shape[0] - 1, 3),),
)
