"""An experiment: blend shapes and skinning in one kernel.

No layer uses it. It becomes a kernel of the package when a measurement on a GPU shows that it is faster than
a product by cuBLAS followed by `linear_blend_skinning`.

A block multiplies a tile of bodies with a tile of vertices, one slice of coefficients after the other, and
skins the product while it is in shared memory. The posed rest surface, which is as large as the result, is
never written to memory. Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 2 and 5.

Sizes of tiles, for an H100 (228 KB of shared memory per multiprocessor, 50 MB of L2):

- ``VERTICES`` x 3 columns are 384 bytes in float32: a warp reads a slice of directions, and writes the
  surface of a body, in whole cache lines.
- 64 bodies need (64 + 96) x 4 bytes from L2 for 6144 multiply-adds, 0.1 byte each; 32 bodies would need 0.17,
  which is about what L2 delivers at full rate.
- 32 coefficients per slice: the sums, which `wp.tile_matmul` reads and writes once per slice, cost 1/16 of an
  access per multiply-add. All this takes 44 KB of shared memory per block.
- float64 takes half the bodies and half the slice: 40 KB.
- A small batch would leave most of 64 rows empty; it runs in tiles of ``FEW`` bodies.

Neighbouring blocks differ in vertices: the directions, 18 MB for SMPL, stay in L2 while the bodies pass once.

Compiled for sm_90 in float32 with blocks of 128 threads, a thread takes 164 registers with cuBLASDx's product
(95 with plain loops) and spills none: registers limit a multiprocessor to three blocks.

On the CPU one thread computes a tile in plain loops: a product by a BLAS and then `linear_blend_skinning` are
two to three times as fast at 64 and 256 bodies, seven times and more at one. This is for CUDA.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import warp as wp
from agebody_kernels._interop import KernelSet, Types, launch, pack_entries
from agebody_kernels._operator import Operator
from agebody_kernels.skinning import SKINNING, SkinningWeights
from torch import Tensor
from torch.nn.functional import pad

VERTICES = wp.constant(32)
"""Vertices per tile."""
FEW = 8
"""Bodies per tile for small batches."""
MANY = {torch.float32: 64, torch.float64: 32}
"""Bodies per tile otherwise."""
SLICE = {torch.float32: 32, torch.float64: 16}
"""Coefficients per slice."""
WORKSPACE = 1 << 26
"""Bytes of rest surface that a gradient computes at once."""


class Directions(NamedTuple):
    """The displacements of the rest surface per unit of each coefficient."""

    matrix: Tensor
    """(C', 3 V') one row per coefficient, one column per coordinate; zeros fill it up to whole tiles."""
    num_coefficients: int
    """C, rows without the filling."""
    num_vertices: int
    """V, vertices without the filling."""

    @classmethod
    def pack(cls, directions: np.ndarray) -> "Directions":
        """Pack displacements per unit of each coefficient (C, V, 3) [m]; the template has coefficient 1."""
        if directions.ndim != 3 or directions.shape[2] != 3:
            raise ValueError(f"directions: expected (C, V, 3), got {directions.shape}")
        count, vertices = directions.shape[:2]
        rows, columns = _filled(count, max(SLICE.values())), 3 * _filled(vertices, int(VERTICES))
        matrix = np.zeros((rows, columns), directions.dtype)
        matrix[:count, : 3 * vertices] = directions.reshape(count, -1)
        return cls(torch.from_numpy(matrix), count, vertices)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Directions":
        """Return a copy on another device or in another floating type."""
        return self._replace(matrix=self.matrix.to(device, dtype))


def blend_and_skin(
    coefficients: Tensor,
    transforms: Tensor,
    translation: Tensor,
    directions: Directions,
    weights: SkinningWeights,
) -> Tensor:
    """Return ``v_i' = sum over j of w_ij A_j (sum over c of k_c d_ci) + t``, differentiable to any order.

    Args:
        coefficients: (B, C).
        transforms: (B, J, 3, 4) skinning transforms.
        translation: (B, 3) [m].
        directions: of one body, in the same floating type and on the same device.
        weights: of the same body, likewise.

    Returns:
        (B, V, 3) [m].

    Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 2 and 5.
    """
    if coefficients.shape[1:] != (directions.num_coefficients,):
        raise ValueError(
            f"coefficients: expected (B, {directions.num_coefficients}), got {tuple(coefficients.shape)}"
        )
    if weights.joints.shape[1] != directions.num_vertices:
        raise ValueError(
            f"weights: expected those of {directions.num_vertices} vertices, got {weights.joints.shape[1]}"
        )
    return BLEND_SKIN(coefficients, transforms, translation, directions.matrix, *weights)[0]


def _filled(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _plain(directions: Tensor, coefficients: Tensor, joints: Tensor) -> Tensor:
    """Return the matrix (C, 3V) without its filling."""
    return directions[: coefficients.shape[1], : 3 * joints.shape[1]]


def _reference(
    coefficients: Tensor, transforms: Tensor, translation: Tensor, directions: Tensor, *weights: Tensor
) -> tuple[Tensor, ...]:
    surface = coefficients @ _plain(directions, coefficients, weights[0])
    return SKINNING.reference(surface.unflatten(1, (-1, 3)), transforms, translation, *weights)


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3, mat34 = t.scalar, t.vec3, t.mat34
    vec4 = wp.types.vector(4, scalar)
    dtype = wp.dtype_to_torch(scalar)

    def kernel_of(name: str, bodies: int) -> Any:
        rows, columns, depth = wp.constant(bodies), wp.constant(3 * int(VERTICES)), wp.constant(SLICE[dtype])

        def blend_skin(
            coefficients: wp.array2d[scalar],
            directions: wp.array2d[scalar],
            transforms: wp.array2d[mat34],
            translation: wp.array[vec3],
            joints: wp.array2d[int],
            weights: wp.array2d[scalar],
            posed_out: wp.array2d[vec3],
        ):
            group, part, lane = wp.tid()
            first, start = group * rows, part * VERTICES
            surface = wp.tile_zeros(shape=(rows, columns), dtype=scalar, storage="shared")
            for k in range(0, directions.shape[0], depth):
                # Bodies beyond the batch read as zero.
                factors = wp.tile_load(coefficients, shape=(rows, depth), offset=(first, k), storage="shared")
                part_of_directions = wp.tile_load(
                    directions,
                    shape=(depth, columns),
                    offset=(k, 3 * start),
                    storage="shared",
                    bounds_check=False,
                    aligned=True,
                )
                wp.tile_matmul(factors, part_of_directions, surface)
            for e in range(lane, rows * VERTICES, wp.block_dim()):
                row, column = e // VERTICES, e % VERTICES
                b, v = first + row, start + column
                if b < posed_out.shape[0] and v < posed_out.shape[1]:
                    m = mat34()
                    for i in range(weights.shape[0]):
                        w = weights[i, v]
                        if w == scalar(0.0):
                            break
                        m += w * transforms[b, joints[i, v]]
                    c = 3 * column
                    x = vec4(surface[row, c], surface[row, c + 1], surface[row, c + 2], scalar(1.0))
                    posed_out[b, v] = translation[b] + m * x

        blend_skin.__qualname__ = name  # Warp's name of the kernel, of which a module can hold only one
        return t.kernel(blend_skin)

    return SimpleNamespace(few=kernel_of("few", FEW), many=kernel_of("many", MANY[dtype]))


def _value(
    coefficients: Tensor,
    transforms: Tensor,
    translation: Tensor,
    directions: Tensor,
    joints: Tensor,
    weights: Tensor,
    *_: Tensor,
) -> tuple[Tensor]:
    batch, dtype = len(coefficients), coefficients.dtype
    posed = coefficients.new_empty(batch, joints.shape[1], 3)
    # Whole rows of tiles, which are loaded four numbers at once.
    filled = pad(coefficients, (0, directions.shape[0] - coefficients.shape[1]))
    kernels, many = _KERNELS[dtype], MANY[dtype]
    kernel, bodies = (kernels.few, FEW) if 2 * batch <= many else (kernels.many, many)
    grid = -(-batch // bodies), directions.shape[1] // (3 * int(VERTICES))
    moves = pack_entries(transforms, 2), pack_entries(translation, 1)
    launch(kernel, grid, filled, directions, *moves, joints, weights, posed, tiled=True)
    return (posed,)


def _gradient(wants, grads, coefficients, transforms, translation, directions, *weights):
    """Return the gradients; the rest surface is computed again, for as many bodies as `WORKSPACE` holds."""
    grad, matrix = grads[0], _plain(directions, coefficients, weights[0])
    batch, size = len(coefficients), max(matrix.shape[1], 1)
    step = max(1, WORKSPACE // (size * matrix.element_size()))
    surface = matrix.new_empty(min(step, batch), matrix.shape[1])
    d_coefficients = torch.empty_like(coefficients, memory_format=torch.contiguous_format)
    parts = []
    for start in range(0, max(batch, 1), step):
        part = slice(start, min(start + step, batch))
        rest = surface[: part.stop - start]
        if wants[1]:  # nothing else reads the surface
            # With `out`, autocast leaves the product alone.
            torch.mm(coefficients[part], matrix, out=rest)
        d_surface, *others = SKINNING.gradient(
            wants, (grad[part],), rest.unflatten(1, (-1, 3)), transforms[part], translation[part], *weights
        )
        if wants[0]:
            torch.mm(d_surface.flatten(1), matrix.T, out=d_coefficients[part])
        parts.append(others)
    d_transforms, d_translation = (
        torch.cat(found) if wanted else None
        for found, wanted in zip(zip(*parts, strict=True), wants[1:], strict=True)
    )
    return d_coefficients, d_transforms, d_translation


BLEND_SKIN = Operator(
    "blend_and_skin",
    rows=("coefficients", "transforms", "translation"),
    constants=("Tensor directions", *(f"Tensor {name}" for name in SkinningWeights._fields)),
    num_outputs=1,
    reference=_reference,
    value=_value,
    gradient=_gradient,
    shapes=lambda coefficients, transforms, translation, directions, joints, *_: (
        (coefficients.shape[0], joints.shape[1], 3),
    ),
    row_shapes=lambda directions, *weights: ((None,), *SKINNING.row_shapes(*weights)[1:]),
)
