"""The posed surface of many bodies, block by block: the maths of `deform`, arranged for caches.

Vertices are cut into blocks. For each block, one matrix product gives its rest surface from all the
coefficients (betas, age, pose feature), a second one blends the transforms of the few joints that the
block touches, and three fused multiply-adds skin it while both are still in cache. Nothing of the size
of the batch is kept but the result. Coordinates are planes (x of all vertices, then y, then z), so that
every step runs along vertices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agebody.rowwise import RowFunction

BLOCK = 288
"""Vertices a block: with 256 bodies, a block's surface and transforms fill a core's second-level cache."""
BODIES = 256
"""Bodies at a time: bounds the workspace to about 8 MB, whatever the batch."""


class PosedSurface(nn.Module):
    """Directions and skinning weights of one body, packed in blocks of vertices.

    Args:
        directions: (C, V, 3) displacement for one unit of each coefficient.
        correctives: (P, V, 3) the same for the last coefficients, kept and multiplied in
            ``corrective_dtype``; None where there are none.
        weights: (V, J) skinning weights.
        dtype: floating type of the result and of everything but the correctives.
    """

    directions: Tensor
    correctives: Tensor | None
    weights: Tensor
    joints: Tensor
    scatter: Tensor

    def __init__(
        self,
        directions: np.ndarray,
        weights: np.ndarray,
        *,
        dtype: torch.dtype,
        correctives: np.ndarray | None = None,
        corrective_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_vertices, num_joints = weights.shape
        block = min(BLOCK, self.num_vertices)
        blocks = -(-self.num_vertices // block)
        padding = blocks * block - self.num_vertices

        def put(name: str, array: np.ndarray, to: torch.dtype) -> None:
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)).to(to), persistent=False)

        def planes(array: np.ndarray) -> np.ndarray:
            padded = np.pad(array, ((0, 0), (0, padding), (0, 0)))
            padded = padded.reshape(len(array), blocks, block, 3).transpose(1, 0, 3, 2)
            return padded.reshape(blocks, len(array), 3 * block)

        weights = np.pad(weights, ((0, padding), (0, 0))).reshape(blocks, block, num_joints)
        touched = [np.flatnonzero(w.any(axis=0)) for w in weights]
        width = 1 + max(len(t) for t in touched)
        # Row num_joints of the transforms is the translation, which moves every vertex with weight 1.
        joints = np.full((blocks, width), num_joints)
        packed = np.zeros((blocks, width, block))
        packed[:, 0] = 1
        for i, t in enumerate(touched):
            joints[i, 1 : 1 + len(t)] = t
            packed[i, 1 : 1 + len(t)] = weights[i][:, t].T
        put("directions", planes(directions), dtype)
        if correctives is None:
            self.correctives = None
        else:
            put("correctives", planes(correctives), corrective_dtype or dtype)
        put("weights", packed, dtype)
        put("joints", joints, torch.int64)
        put("scatter", joints[:, None, :] == np.arange(num_joints + 1)[:, None], dtype)

    def rest(self, coefficients: Tensor) -> Tensor:
        """Rest surface in planes, (blocks, batch, 3 * block), from the first coefficients."""
        return coefficients @ self.directions[:, : coefficients.shape[-1]]

    def vertices(self, planes: Tensor) -> Tensor:
        """(B, V, 3) of a surface in planes."""
        planes = planes.unflatten(-1, (3, -1)).permute(1, 0, 3, 2)
        return planes.flatten(1, 2)[:, : self.num_vertices]

    def forward(
        self, coefficients: Tensor, transforms: Tensor, translation: Tensor, base: Tensor | None = None
    ) -> Tensor:
        """Posed vertices.

        Args:
            coefficients: (B, C'), the last C' of the C + P coefficients.
            transforms: (B, J, 3, 4) skinning transforms.
            translation: (B, 3) [m].
            base: what the other coefficients give, from `rest`, for B bodies or for one.

        Returns:
            (B, V, 3) [m].
        """
        batch = coefficients.shape[0]
        if base is not None:
            base = base.expand(-1, batch, -1).transpose(0, 1)
        extra = 0 if self.correctives is None else self.correctives.shape[1]
        packed = _Packed(
            self.directions[:, self.directions.shape[1] + extra - coefficients.shape[1] :],
            self.correctives,
            self.weights,
            self.joints,
            self.scatter,
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
    num_vertices: int

    @property
    def num_blocks(self) -> int:
        return len(self.weights)

    @property
    def block(self) -> int:
        return self.weights.shape[2]


def _definition(
    packed: _Packed,
    coefficients: Tensor,
    transforms: Tensor,
    translation: Tensor,
    base: Tensor | None = None,
) -> tuple[Tensor]:
    """All blocks at once, in differentiable steps."""
    posed = coefficients[:, : packed.directions.shape[1]] @ packed.directions
    if packed.correctives is not None:
        feature = coefficients[:, packed.directions.shape[1] :].to(packed.correctives.dtype)
        posed = posed + (feature @ packed.correctives).to(posed.dtype)
    if base is not None:
        posed = posed + base.transpose(0, 1)
    posed = posed.unflatten(-1, (3, packed.block))
    last = torch.nn.functional.pad(translation[:, None, :, None], (3, 0))
    rows = torch.cat((transforms, last), 1).permute(1, 0, 3, 2)[packed.joints].flatten(2)
    blended = (rows.mT @ packed.weights).unflatten(1, (-1, 4, 3))
    skinned = blended[:, :, 3] + (blended[:, :, :3] * posed[:, :, :, None]).sum(2)
    return (skinned.permute(1, 0, 3, 2).flatten(1, 2)[:, : packed.num_vertices],)


def _pieces(batch: int, num_blocks: int) -> Iterator[tuple[slice, slice]]:
    """Bodies and blocks to work on together, so that the workspace stays in cache."""
    group = max(1, min(num_blocks, 2 * BODIES // max(batch, 1)))
    for first in range(0, batch, BODIES):
        for start in range(0, num_blocks, group):
            yield slice(first, min(first + BODIES, batch)), slice(start, min(start + group, num_blocks))


class _Workspace:
    """The buffers of one pass over all pieces, and the steps that forward and backward share."""

    def __init__(
        self,
        packed: _Packed,
        coefficients: Tensor,
        transforms: Tensor,
        translation: Tensor,
        base: Tensor | None,
    ) -> None:
        self.coefficients, self.base, self.packed = coefficients, base, packed
        batch, num_joints = transforms.shape[:2]
        self.rows = transforms.new_zeros(num_joints + 1, batch, 4, 3)
        self.rows[:-1] = transforms.permute(1, 0, 3, 2)
        self.rows[-1, :, 3] = translation
        if packed.correctives is not None:
            split = packed.directions.shape[1]
            self.coefficients = coefficients[:, :split]
            self.feature = coefficients[:, split:].to(packed.correctives.dtype)
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *shape: int) -> Tensor:
        """A tensor of that shape in the same memory for every piece; the first piece is the largest."""
        held = self.buffers.get(name)
        if held is None:
            held = self.buffers[name] = self.rows.new_empty(shape)
        return held if held.shape == shape else held.view(-1)[: math.prod(shape)].view(shape)

    def posed(self, bodies: slice, blocks: slice, out: Tensor) -> None:
        """Rest surface with pose correctives of one piece, (blocks, bodies, 3 * block)."""
        coefficients, packed = self.coefficients[bodies], self.packed
        directions = packed.directions[blocks]
        if len(out) == 1:
            torch.mm(coefficients, directions[0], out=out[0])
        else:
            torch.bmm(coefficients.expand(len(out), -1, -1), directions, out=out)
        if self.base is not None:
            out += self.base[bodies, blocks].transpose(0, 1)
        if packed.correctives is not None:
            out += torch.matmul(self.feature[bodies], packed.correctives[blocks])

    def blended(self, bodies: slice, blocks: slice) -> Tensor:
        """Transforms of every vertex of one piece, (blocks, bodies, 4, 3, block), column by column."""
        rows = self.rows[:, bodies].flatten(1)[self.packed.joints[blocks]]
        num_bodies, weights = rows.shape[-1] // 12, self.packed.weights[blocks]
        out = self.buffer("blended", len(rows), num_bodies * 12, self.packed.block)
        torch.bmm(rows.mT, weights, out=out)
        return out.view(len(rows), num_bodies, 4, 3, self.packed.block)

    def place(self, vertices: Tensor, bodies: slice, blocks: slice) -> Iterator[tuple[slice, Tensor]]:
        """The piece of (B, V, 3) vertices as planes (blocks, bodies, 3, block), then a cut-off last block."""
        block, num_vertices = self.packed.block, self.packed.num_vertices
        whole = min(blocks.stop, num_vertices // block) - blocks.start
        if whole > 0:
            first = blocks.start * block
            part = vertices[bodies, first : first + whole * block].unflatten(1, (whole, block))
            yield slice(0, whole), part.permute(1, 0, 3, 2)
        if whole < blocks.stop - blocks.start:
            part = vertices[bodies, (blocks.start + whole) * block :]
            yield slice(whole, whole + 1), part.transpose(1, 2)[None]


def _value(
    packed: _Packed,
    keep: bool,
    coefficients: Tensor,
    transforms: Tensor,
    translation: Tensor,
    base: Tensor | None = None,
) -> tuple[tuple[Tensor], tuple[Tensor, ...]]:
    """Vertices, piece by piece; the posed rest surfaces are kept."""
    batch, plane = len(coefficients), 3 * packed.block
    work = _Workspace(packed, coefficients, transforms, translation, base)
    vertices = coefficients.new_empty(batch, packed.num_vertices, 3)
    kept = coefficients.new_empty(batch * packed.num_blocks * plane) if keep else None
    for bodies, blocks in _pieces(batch, packed.num_blocks):
        shape = (blocks.stop - blocks.start, bodies.stop - bodies.start, plane)
        posed = work.buffer("posed", *shape) if kept is None else _kept_piece(kept, bodies, blocks, packed)
        work.posed(bodies, blocks, posed)
        posed = posed.view(*shape[:2], 3, packed.block)
        blended = work.blended(bodies, blocks)
        skinned = blended[:, :, 3]
        for axis in range(3):
            skinned.addcmul_(blended[:, :, axis], posed[:, :, axis : axis + 1])
        for part, planes in work.place(vertices, bodies, blocks):
            planes.copy_(skinned[part, ..., : planes.shape[-1]])
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
    """Gradient of the same, piece by piece; sums over vertices and blocks run in a fixed order."""
    batch, block, plane = len(coefficients), packed.block, 3 * packed.block
    num_plain = packed.directions.shape[1]
    work = _Workspace(packed, coefficients, transforms, translation, base)
    d_coefficients = torch.zeros_like(coefficients)
    d_rows = torch.zeros_like(work.rows)
    d_base = grads[0].new_empty(batch, packed.num_blocks, plane) if base is not None and wants[3] else None
    for bodies, blocks in _pieces(batch, packed.num_blocks):
        num_blocks, num_bodies = blocks.stop - blocks.start, bodies.stop - bodies.start
        shape = (num_blocks, num_bodies, 3, block)
        if kept:
            posed = _kept_piece(kept[0], bodies, blocks, packed)
        else:
            posed = work.buffer("posed", num_blocks, num_bodies, plane)
            work.posed(bodies, blocks, posed)
        posed = posed.view(shape)
        d_skinned = work.buffer("d_skinned", *shape)
        d_skinned[-1, ..., packed.num_vertices - (blocks.stop - 1) * block :] = 0
        for part, planes in work.place(grads[0], bodies, blocks):
            d_skinned[part, ..., : planes.shape[-1]].copy_(planes)
        blended = work.blended(bodies, blocks)
        if wants[0] or d_base is not None:
            d_posed = work.buffer("d_posed", *shape)
            torch.mul(blended[:, :, :3, 0], d_skinned[:, :, None, 0], out=d_posed)
            for axis in (1, 2):
                d_posed.addcmul_(blended[:, :, :3, axis], d_skinned[:, :, None, axis])
            d_planes = d_posed.view(num_blocks, num_bodies, plane)
            if d_base is not None:
                d_base[bodies, blocks] = d_planes.transpose(0, 1)
            d_piece = d_coefficients[bodies]
            if num_blocks == 1:
                d_piece[:, :num_plain].addmm_(d_planes[0], packed.directions[blocks.start].mT)
            else:
                d_piece[:, :num_plain] += torch.bmm(d_planes, packed.directions[blocks].mT).sum(0)
            if packed.correctives is not None:
                low = d_planes.to(packed.correctives.dtype)
                d_piece[:, num_plain:] += (
                    torch.bmm(low, packed.correctives[blocks].mT).to(d_piece.dtype).sum(0)
                )
        if wants[1] or wants[2]:
            d_blended = blended
            torch.mul(posed[:, :, :, None], d_skinned[:, :, None], out=d_blended[:, :, :3])
            d_blended[:, :, 3].copy_(d_skinned)
            gathered = torch.bmm(packed.weights[blocks], d_blended.view(num_blocks, -1, block).mT)
            scatter = packed.scatter[blocks].transpose(0, 1).flatten(1)
            d_rows[:, bodies] += (scatter @ gathered.flatten(0, 1)).unflatten(1, (num_bodies, 4, 3))
    d_transforms = d_rows[:-1].permute(1, 0, 3, 2)
    found = (d_coefficients, d_transforms, d_rows[-1, :, 3])
    return found if base is None else (*found, d_base)


_SURFACE = RowFunction(1, _definition, _value, _gradient)


def _kept_piece(kept: Tensor, bodies: slice, blocks: slice, packed: _Packed) -> Tensor:
    """The piece's part of the kept surfaces, each chunk of bodies contiguous: (blocks, bodies, 3 * block)."""
    plane = 3 * packed.block
    size = (bodies.stop - bodies.start) * plane
    start = bodies.start * packed.num_blocks * plane
    piece = kept[start + blocks.start * size : start + blocks.stop * size]
    return piece.view(blocks.stop - blocks.start, bodies.stop - bodies.start, plane)
