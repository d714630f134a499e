"""The posed surface of many bodies: the maths of `deform`, computed in blocks that fit the cache.

Vertices are divided into blocks. For some blocks at a time, one matrix product gives their rest surface from
all the coefficients (betas, age, pose feature), four small ones blend the columns of the transforms of the
few joints that each block touches, and three fused multiply-adds skin it while all are still in cache. Only
the result has the size of the batch. Coordinates are planes (x of all vertices of a block, then y, then z),
so that every step runs along vertices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.engine import halfprecision
from agebody.engine.batched import BatchedFunction, product

BLOCK = 288
"""Vertices per block: few enough to touch few joints, enough for each step to outweigh its call."""
BODIES = 256
"""Bodies per chunk: bounds the workspace to about 4 MB, whatever the batch."""
PIECE = 192
"""Blocks times bodies of a piece of a smaller batch: few enough for its workspace to stay in cache."""
PRODUCT = 1 << 20
"""Entries of the directions that a matrix product of its own must save."""


class PosedSurface(nn.Module):
    """Directions and skinning weights of one body, packed in blocks of vertices.

    The directions are displacements for one unit of each coefficient. The last coefficients may have
    ``correctives`` instead, which are kept and multiplied in ``corrective_dtype``, torch.bfloat16 or
    torch.float16 (see `halfprecision`). Other than on the CPU all vertices are one block, to save launches.
    """

    directions: Tensor
    correctives: Tensor | None
    weights: Tensor
    joints: Tensor
    scatter: Tensor

    def __init__(
        self,
        directions: Float[np.ndarray, "C V 3"],
        weights: Float[np.ndarray, "V J"],
        *,
        dtype: torch.dtype,
        correctives: Float[np.ndarray, "P V 3"] | None = None,
        corrective_dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        block: int = BLOCK,
    ) -> None:
        super().__init__()
        self.num_vertices, num_joints = weights.shape
        if device is not None and device.type != "cpu":
            block = self.num_vertices
        block = min(block, self.num_vertices)
        blocks = -(-self.num_vertices // block)
        padding = blocks * block - self.num_vertices

        def planes(array: np.ndarray) -> Tensor:
            padded = np.pad(array, ((0, 0), (0, padding), (0, 0)))
            padded = padded.reshape(len(array), blocks, block, 3).swapaxes(2, 3)
            return torch.from_numpy(padded.reshape(len(array), -1)).to(dtype)

        low = None
        if correctives is not None:
            assert corrective_dtype is not None
            assert dtype == torch.float32
            low = halfprecision.factor(planes(correctives), corrective_dtype)
        weights = np.pad(weights, ((0, padding), (0, 0))).reshape(blocks, block, num_joints)
        touched = [np.flatnonzero(w.any(axis=0)) for w in weights]
        self.widths = tuple(map(len, touched))
        joints = np.zeros((blocks, max(self.widths)), dtype=np.int64)
        packed = np.zeros((blocks, max(self.widths), block))
        for i, t in enumerate(touched):
            joints[i, : len(t)] = t
            packed[i, : len(t)] = weights[i][:, t].T
        scatter = joints == np.arange(num_joints)[:, None, None]
        moved = planes(directions)
        self.products = _products((moved.unflatten(1, (blocks, -1)) != 0).any(2).numpy(), 3 * block)
        for name, tensor in (
            ("directions", moved),
            ("correctives", low),
            ("weights", torch.from_numpy(packed).to(dtype)),
            ("joints", torch.from_numpy(joints)),
            ("scatter", torch.from_numpy(scatter).to(dtype)),
        ):
            self.register_buffer(name, None if tensor is None else tensor.to(device), persistent=False)

    def rest(self, coefficients: Tensor) -> Tensor:
        """Return the rest surface in planes, (B, blocks * 3 * block), for the first coefficients."""
        directions = self.directions[: coefficients.shape[-1]]
        # The template, in metres, is added apart, as in `_blend`.
        return coefficients[:, :1] * directions[:1] + product(coefficients[:, 1:], directions[1:])

    def vertices(self, planes: Tensor) -> Tensor:
        """Return a surface in planes as vertices (B, V, 3)."""
        planes = planes.unflatten(-1, (len(self.weights), 3, -1)).transpose(-1, -2)
        return planes.flatten(1, 2)[:, : self.num_vertices]

    def forward(
        self, coefficients: Tensor, transforms: Tensor, translation: Tensor, base: Tensor | None = None
    ) -> Tensor:
        """Return the posed vertices.

        Args:
            coefficients: (B, C'), the last C' of the C + P coefficients.
            transforms: (B, J, 3, 4) skinning transforms.
            translation: (B, 3) [m].
            base: surface of the other coefficients, from `rest`, for B bodies or for one.

        Returns:
            (B, V, 3) [m].
        """
        left_out = 0
        if base is not None:
            base = base.expand(len(coefficients), -1)
            num_correctives = 0 if self.correctives is None else halfprecision.length(self.correctives)
            left_out = len(self.directions) + num_correctives - coefficients.shape[1]
        packed = _Packed(
            self.directions[left_out:] if left_out else self.directions,
            self.correctives,
            self.weights,
            self.joints,
            self.scatter,
            self.widths,
            tuple(
                (slice(*(max(0, row - left_out) for row in rows)), columns) for rows, columns in self.products
            ),
            self.num_vertices,
        )
        inputs = (coefficients, transforms, translation)
        return _SURFACE(packed, *(inputs if base is None else (*inputs, base)))[0]


class _Packed(NamedTuple):
    directions: Tensor
    correctives: Tensor | None
    weights: Tensor
    joints: Tensor
    scatter: Tensor
    widths: tuple[int, ...]
    """Joints that each block touches."""
    products: tuple[tuple[slice, slice], ...]
    """Rows and columns of the directions to multiply; see `_products`."""
    num_vertices: int

    @property
    def block(self) -> int:
        return self.weights.shape[2]

    def factors(self, piece: _Piece) -> Iterator[tuple[slice, Tensor, slice]]:
        """Yield rows, the directions in them, and their columns in a piece; the first has all columns."""
        first, last = piece.columns.start, piece.columns.stop
        for rows, columns in self.products:
            start, stop = max(first, columns.start), min(last, columns.stop)
            if start < stop:
                yield rows, self.directions[rows, start:stop], slice(start - first, stop - first)


def _products(used: np.ndarray, plane: int) -> list[tuple[tuple[int, int], slice]]:
    """Return rows and columns of the directions outside of which they are zero.

    A published body with hands moves a finger's vertices alone by the fingers' pose blend shapes, which are
    more than half of all rows. One product has the first rows and all columns, others each a run of
    consecutive blocks, ``plane`` columns each, that need more (``used``), where that saves `PRODUCT` entries
    each.
    """
    heights = (used * np.arange(1, len(used) + 1)[:, None]).max(0).clip(1)
    found, least = [], np.inf
    for low in np.unique(heights):
        parts = [((0, int(low)), slice(0, plane * len(heights)))]
        for start, stop in np.flatnonzero(np.diff(heights > low, prepend=False, append=False)).reshape(-1, 2):
            rows = low + np.flatnonzero(used[low:, start:stop].any(1))
            parts.append(((int(rows[0]), int(rows[-1]) + 1), slice(int(start) * plane, int(stop) * plane)))
        cost = sum((rows[1] - rows[0]) * (c.stop - c.start) + PRODUCT for rows, c in parts)
        if cost < least:
            found, least = parts, cost
    return found


def _definition(
    packed: _Packed, coefficients: Tensor, transforms: Tensor, translation: Tensor, base: Tensor | None = None
) -> tuple[Tensor]:
    """Compute all blocks at once, in differentiable steps."""
    directions = packed.directions
    if packed.correctives is not None:
        directions = torch.cat((directions, halfprecision.matrix(packed.correctives)))
    posed = _blend(coefficients, directions) if base is None else base + coefficients @ directions
    posed = posed.unflatten(-1, (len(packed.widths), 3, packed.block)).transpose(0, 1)
    rows = transforms.permute(1, 0, 3, 2)[packed.joints].flatten(2)
    blended = (rows.transpose(1, 2) @ packed.weights).unflatten(1, (-1, 4, 3))
    skinned = blended[:, :, 3] + (blended[:, :, :3] * posed[:, :, :, None]).sum(2)
    vertices = skinned.permute(1, 0, 3, 2).flatten(1, 2)[:, : packed.num_vertices]
    return (vertices + translation[:, None],)


def _blend(coefficients: Tensor, directions: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the product; the template, in metres, is added apart, since CUDA may round factors to TF32."""
    if not coefficients.is_cuda:
        return torch.mm(coefficients, directions, out=out)
    template = coefficients[:, :1] * directions[:1]
    return torch.addmm(template, coefficients[:, 1:], directions[1:], out=out)


class _Piece(NamedTuple):
    """Bodies and blocks to work on together, so that the workspace stays in cache."""

    bodies: slice
    blocks: slice
    columns: slice
    """Of the planes of all blocks."""
    num_bodies: int
    num_blocks: int
    width: int
    """Rows of weights that its blocks need."""
    kept: slice
    """Where its entries are in what a pass keeps of all pieces."""


def _pieces(batch: int, packed: _Packed) -> Iterator[_Piece]:
    group = max(1, min(len(packed.widths), PIECE // max(batch, 1)))
    plane = 3 * packed.block
    for first in range(0, batch, BODIES):
        last = min(first + BODIES, batch)
        for start in range(0, len(packed.widths), group):
            stop = min(start + group, len(packed.widths))
            columns = slice(start * plane, stop * plane)
            sizes = last - first, stop - start, max(packed.widths[start:stop])
            begin = plane * (first * len(packed.widths) + start * (last - first))
            kept = slice(begin, begin + plane * sizes[0] * sizes[1])
            yield _Piece(slice(first, last), slice(start, stop), columns, *sizes, kept)


class _Workspace:
    """The buffers of one pass over all pieces, and the steps that forward and backward share."""

    def __init__(self, packed: _Packed, coefficients: Tensor, base: Tensor | None) -> None:
        self.coefficients, self.base, self.packed = coefficients, base, packed
        if packed.correctives is not None:
            self.coefficients, self.feature = coefficients.tensor_split((len(packed.directions),), 1)
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of that shape in memory that all pieces share; the first piece is the largest."""
        held = self.buffers.get(name)
        if held is None:
            held = self.buffers[name] = self.coefficients.new_empty(shape)
        return held if held.shape == shape else held.view(-1)[: math.prod(shape)].view(shape)

    def posed(self, piece: _Piece, out: Tensor) -> Tensor:
        """Return the rest surface with pose correctives of one piece, (blocks, bodies, 3, block)."""
        coefficients, packed = self.coefficients[piece.bodies], self.packed
        (first, directions, _), *others = packed.factors(piece)
        if self.base is None:
            _blend(coefficients[:, first], directions, out=out)
        else:
            torch.addmm(self.base[piece.bodies, piece.columns], coefficients[:, first], directions, out=out)
        for rows, directions, columns in others:
            out[:, columns].addmm_(coefficients[:, rows], directions)
        if packed.correctives is not None:
            out += halfprecision.product(self.feature[piece.bodies], packed.correctives[:, piece.columns])
        return out.view(piece.num_bodies, piece.num_blocks, 3, packed.block).transpose(0, 1)

    def blend(self, piece: _Piece, transforms: Tensor, order: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield the means of the joints' (J, K, B, 3) rows or columns at every vertex of one piece.

        Each is (blocks, bodies, 3, block). Those of several bodies have the same memory, but for the first.
        """
        weights = self.packed.weights[piece.blocks, : piece.width]
        joints = self.packed.joints[piece.blocks, : piece.width]
        vectors = transforms[:, :, piece.bodies].flatten(2)[joints]
        shape = (piece.num_blocks, piece.num_bodies, 3, self.packed.block)
        if piece.num_bodies == 1:  # in one call, which is 2 % faster in all
            found = torch.bmm(vectors.flatten(2).mT, weights).unflatten(1, (-1, 1, 3)).unbind(1)
            yield from (found[index] for index in order)
            return
        for i, index in enumerate(order):
            out = self.buffer("blended" if i else "first", *shape)
            torch.bmm(vectors[:, :, index].mT, weights, out=out.flatten(1, 2))
            yield out

    def place(self, vertices: Tensor, piece: _Piece) -> Iterator[tuple[slice, Tensor]]:
        """Yield a piece of (B, V, 3) vertices as planes (blocks, bodies, 3, block), then a short last."""
        block, num_vertices = self.packed.block, self.packed.num_vertices
        start, stop = piece.blocks.start, min(piece.blocks.stop, num_vertices // block)
        whole = max(0, stop - start)
        if whole:
            part = vertices[piece.bodies, start * block : stop * block]
            yield slice(0, whole), part.view(piece.num_bodies, whole, block, 3).permute(1, 0, 3, 2)
        if whole < piece.num_blocks:
            part = vertices[piece.bodies, (start + whole) * block :]
            yield slice(whole, whole + 1), part.mT[None]


def _value(
    packed: _Packed,
    keep: bool,
    coefficients: Tensor,
    transforms: Tensor,
    translation: Tensor,
    base: Tensor | None = None,
) -> tuple[tuple[Tensor], tuple[Tensor, ...]]:
    """Compute the vertices piece by piece; the posed rest surfaces are kept for the gradient."""
    batch, plane = coefficients.shape[0], 3 * packed.block
    work, columns = _Workspace(packed, coefficients, base), transforms.permute(1, 3, 0, 2).contiguous()
    vertices = _large(coefficients, batch, packed.num_vertices, 3)
    kept = _large(coefficients, batch * len(packed.widths) * plane) if keep else None
    for piece in _pieces(batch, packed):
        shape = (piece.num_bodies, piece.num_blocks * plane)
        memory = work.buffer("posed", *shape) if kept is None else kept[piece.kept].view(shape)
        # One column of the transforms at a time, so that all stays in the cache.
        coordinates = work.posed(piece, memory).unsqueeze(2).unbind(3)
        blended = work.blend(piece, columns, (3, 0, 1, 2))
        skinned = next(blended)
        for column, coordinate in zip(blended, coordinates, strict=True):
            skinned.addcmul_(column, coordinate)
        shifts = translation[piece.bodies].T[..., None].unbind()
        for part, planes in work.place(vertices, piece):
            found = skinned[part, ..., : planes.shape[-1]].unbind(2)
            # Each coordinate apart: the innermost loop of all at once would have three steps.
            for coordinate, shift, out in zip(found, shifts, planes.unbind(2), strict=True):
                torch.add(coordinate, shift, out=out)
    return (vertices,), () if kept is None else (kept,)


def _gradient(
    packed: _Packed,
    wants: tuple[bool, ...],
    kept: tuple[Tensor, ...],
    grads: tuple[Tensor],
    coefficients: Tensor,
    transforms: Tensor,
    translation: Tensor,
    base: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Compute the gradient piece by piece; sums over vertices and blocks run in a fixed order."""
    batch, block, plane = coefficients.shape[0], packed.block, 3 * packed.block
    work = _Workspace(packed, coefficients, base)
    rows_of_rotations = transforms[..., :3].permute(1, 2, 0, 3).contiguous()
    # Transposed: a product of one body then runs along the rows of the directions.
    d_coefficients = coefficients.new_zeros(coefficients.shape[::-1])
    d_columns = transforms.new_zeros(4, transforms.shape[1], batch, 3)
    sums = translation.new_empty(len(packed.widths), batch, 3)
    d_base = torch.empty_like(base) if base is not None and wants[3] else None
    for piece in _pieces(batch, packed):
        bodies, blocks = piece.bodies, piece.blocks
        shape = (piece.num_bodies, piece.num_blocks * plane)
        if kept:
            posed = kept[0][piece.kept].view(piece.num_bodies, -1, 3, block).transpose(0, 1)
        else:
            posed = work.posed(piece, work.buffer("posed", *shape))
        d_skinned = work.buffer("d_skinned", piece.num_blocks, piece.num_bodies, 3, block)
        if blocks.stop == len(packed.widths):
            d_skinned[-1, ..., packed.num_vertices - (blocks.stop - 1) * block :] = 0
        for part, planes in work.place(grads[0], piece):
            d_skinned[part, ..., : planes.shape[-1]].copy_(planes)
        if wants[2]:
            torch.sum(d_skinned, -1, out=sums[blocks, bodies])
        if wants[0] or d_base is not None:
            d_planes = work.buffer("d_planes", *shape)
            d_posed = d_planes.view(piece.num_bodies, -1, 3, block).transpose(0, 1)
            first, *others = d_skinned.unsqueeze(2).unbind(3)
            blended = work.blend(piece, rows_of_rotations, (0, 1, 2))
            torch.mul(next(blended), first, out=d_posed)
            for row, other in zip(blended, others, strict=True):
                d_posed.addcmul_(row, other)
            if d_base is not None:
                d_base[bodies, piece.columns] = d_planes
            for rows, directions, columns in packed.factors(piece):
                d_coefficients[rows, bodies].addmm_(directions, d_planes[:, columns].T)
            if packed.correctives is not None:
                d_coefficients[len(packed.directions) :, bodies] += halfprecision.transposed_product(
                    d_planes, packed.correctives[:, piece.columns]
                ).T
        if wants[1]:
            weights = packed.weights[blocks, : piece.width]
            gathered = transforms.new_empty(4, piece.num_blocks, piece.width, 3 * piece.num_bodies)
            moments = work.buffer("blended", *d_skinned.shape)
            for axis in range(4):
                if axis < 3:
                    torch.mul(posed[:, :, axis, None], d_skinned, out=moments)
                shares = (moments if axis < 3 else d_skinned).flatten(1, 2).mT
                torch.bmm(weights, shares, out=gathered[axis])
            scatter = packed.scatter[:, blocks, : piece.width].flatten(1)
            d_columns[:, :, bodies] += (scatter @ gathered.flatten(1, 2)).unflatten(2, (-1, 3))
    found = d_coefficients.T, d_columns.permute(2, 1, 3, 0), sums.sum(0) if wants[2] else None
    return found if base is None else (*found, d_base)


_SURFACE = BatchedFunction(1, _definition, _value, _gradient)


def _large(like: Tensor, *shape: int) -> Tensor:
    """Return uninitialised memory; NumPy asks for huge pages, without which first access is slow."""
    if like.is_cpu and math.prod(shape) >= _LARGE:
        return torch.from_numpy(np.empty(shape, like.detach().numpy().dtype))
    return like.new_empty(shape)


_LARGE = 1 << 20
"""Entries: 4 MB of float32, below which NumPy does not ask."""
