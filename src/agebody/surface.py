"""The posed surface of many bodies, block by block: the maths of `deform`, arranged for caches.

Vertices are cut into blocks. For each block, one matrix product gives its rest surface from all the
coefficients (betas, age, pose feature), a second one blends the transforms of the few joints that the
block touches, and three fused multiply-adds skin it while both are still in cache. Nothing of the size
of the batch is kept but the result. Coordinates are planes (x of all vertices, then y, then z), so that
every step runs along vertices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

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
        batch = len(coefficients)
        last = torch.cat((translation.new_zeros(batch, 3, 3), translation[..., None]), -1)
        transforms = torch.cat((transforms, last[:, None]), 1)
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
        if torch.compiler.is_compiling():
            return _surface(coefficients, transforms, base, packed)
        inputs = (coefficients, transforms, base)
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        return _Surface.apply(*inputs, packed, keep)[0]


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


def _surface(coefficients: Tensor, transforms: Tensor, base: Tensor | None, packed: _Packed) -> Tensor:
    """All blocks at once, in differentiable steps: the definition of `_Surface`."""
    posed = coefficients[:, : packed.directions.shape[1]] @ packed.directions
    if packed.correctives is not None:
        feature = coefficients[:, packed.directions.shape[1] :].to(packed.correctives.dtype)
        posed = posed + (feature @ packed.correctives).to(posed.dtype)
    posed = posed.unflatten(-1, (3, packed.block))
    if base is not None:
        posed = posed + base.transpose(0, 1).unflatten(-1, (3, packed.block))
    rows = transforms.permute(1, 0, 3, 2)[packed.joints].flatten(2)
    blended = (rows.mT @ packed.weights).unflatten(1, (-1, 4, 3))
    skinned = blended[:, :, 3] + (blended[:, :, :3] * posed[:, :, :, None]).sum(2)
    return skinned.permute(1, 0, 3, 2).flatten(1, 2)[:, : packed.num_vertices]


def _gradient(packed: _Packed, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradient of `_surface` to its coefficients, transforms and, where there is one, base."""

    def definition(coefficients: Tensor, transforms: Tensor, base: Tensor | None = None) -> Tensor:
        return _surface(coefficients, transforms, base, packed)

    return torch.func.vjp(definition, *inputs)[1](grad)


def _pieces(batch: int, num_blocks: int) -> Iterator[tuple[slice, slice]]:
    """Bodies and blocks to work on together, so that the workspace stays in cache."""
    group = max(1, min(num_blocks, 2 * BODIES // max(batch, 1)))
    for first in range(0, batch, BODIES):
        for start in range(0, num_blocks, group):
            yield slice(first, min(first + BODIES, batch)), slice(start, min(start + group, num_blocks))


class _Workspace:
    """The buffers of one pass over all pieces, and the steps that forward and backward share."""

    def __init__(
        self, coefficients: Tensor, transforms: Tensor, base: Tensor | None, packed: _Packed
    ) -> None:
        self.coefficients, self.base, self.packed = coefficients, base, packed
        self.rows = transforms.permute(1, 0, 3, 2).contiguous()
        if packed.correctives is not None:
            split = packed.directions.shape[1]
            self.coefficients = coefficients[:, :split]
            self.feature = coefficients[:, split:].to(packed.correctives.dtype)
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *shape: int) -> Tensor:
        """A reused tensor of that shape: the same memory for every piece."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.rows.new_empty(size)
        return self.buffers[name][:size].view(shape)

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
        """The vertices (B, V, 3) of one piece as planes (blocks, bodies, 3, block), then a cut-off last block."""
        block, num_vertices = self.packed.block, self.packed.num_vertices
        whole = min(blocks.stop, num_vertices // block) - blocks.start
        if whole > 0:
            first = blocks.start * block
            part = vertices[bodies, first : first + whole * block].unflatten(1, (whole, block))
            yield slice(0, whole), part.permute(1, 0, 3, 2)
        if whole < blocks.stop - blocks.start:
            part = vertices[bodies, (blocks.start + whole) * block :]
            yield slice(whole, whole + 1), part.transpose(1, 2)[None]


class _Surface(torch.autograd.Function):
    """`_surface`, piece by piece, with a backward of the same kind."""

    @staticmethod
    def forward(
        coefficients: Tensor, transforms: Tensor, base: Tensor | None, packed: _Packed, keep: bool
    ) -> tuple[Tensor, Tensor]:
        batch, plane = len(coefficients), 3 * packed.block
        work = _Workspace(coefficients, transforms, base, packed)
        vertices = coefficients.new_empty(batch, packed.num_vertices, 3)
        kept = coefficients.new_empty(batch * packed.num_blocks * plane if keep else 0)
        for bodies, blocks in _pieces(batch, packed.num_blocks):
            shape = (blocks.stop - blocks.start, bodies.stop - bodies.start, plane)
            posed = _kept_piece(kept, bodies, blocks, packed) if keep else work.buffer("posed", *shape)
            work.posed(bodies, blocks, posed)
            posed = posed.unflatten(-1, (3, packed.block))
            blended = work.blended(bodies, blocks)
            skinned = blended[:, :, 3]
            for axis in range(3):
                skinned.addcmul_(blended[:, :, axis], posed[:, :, axis : axis + 1])
            for part, planes in work.place(vertices, bodies, blocks):
                planes.copy_(skinned[part, ..., : planes.shape[-1]])
        return vertices, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        coefficients, transforms, base, packed, _ = inputs
        ctx.packed = packed
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(coefficients, transforms, base, output[1])
        ctx.save_for_forward(coefficients, transforms, base)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        coefficients, transforms, base, kept = ctx.saved_tensors
        wants_base = base is not None and ctx.needs_input_grad[2]
        grads = _SurfaceGradient.apply(grad, coefficients, transforms, base, kept, ctx.packed, wants_base)
        return *grads[:2], (grads[2] if wants_base else None), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        # The surface is linear in the rest surface and, apart from it, in the transforms.
        coefficients, transforms, base = ctx.saved_tensors
        d_coefficients, d_transforms, d_base = tangents[:3]
        result = torch.zeros((), dtype=coefficients.dtype, device=coefficients.device)
        if d_transforms is not None:
            result = result + _surface(coefficients, d_transforms, base, ctx.packed)
        if d_coefficients is not None or d_base is not None:
            if d_coefficients is None:
                d_coefficients = torch.zeros_like(coefficients)
            turning = torch.cat((transforms[..., :3], torch.zeros_like(transforms[..., 3:])), -1)
            result = result + _surface(d_coefficients, turning, d_base, ctx.packed)
        return result, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *args: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, None]]:
        tensors = _merge_batches(info.batch_size, in_dims[:3], args[:3])
        vertices, kept = _Surface.apply(*tensors, args[3], False)
        return (vertices.unflatten(0, (info.batch_size, -1)), kept), (0, None)


class _SurfaceGradient(torch.autograd.Function):
    """Gradient of `_surface`, piece by piece; its own gradient, which few ask for, comes from `_surface`."""

    @staticmethod
    def forward(
        grad: Tensor,
        coefficients: Tensor,
        transforms: Tensor,
        base: Tensor | None,
        kept: Tensor,
        packed: _Packed,
        wants_base: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, block, plane = len(coefficients), packed.block, 3 * packed.block
        work = _Workspace(coefficients, transforms, base, packed)
        num_plain = packed.directions.shape[1]
        d_coefficients = torch.zeros_like(coefficients)
        d_rows = torch.zeros_like(work.rows)
        d_base = grad.new_empty(batch if wants_base else 0, packed.num_blocks, plane)
        for bodies, blocks in _pieces(batch, packed.num_blocks):
            num_blocks, num_bodies = blocks.stop - blocks.start, bodies.stop - bodies.start
            shape = (num_blocks, num_bodies, 3, block)
            if kept.numel():
                posed = _kept_piece(kept, bodies, blocks, packed)
            else:
                posed = work.buffer("posed", num_blocks, num_bodies, plane)
                work.posed(bodies, blocks, posed)
            posed = posed.view(shape)
            d_skinned = work.buffer("d_skinned", *shape)
            d_skinned[-1, ..., packed.num_vertices - (blocks.stop - 1) * block :] = 0
            for part, planes in work.place(grad, bodies, blocks):
                d_skinned[part, ..., : planes.shape[-1]].copy_(planes)
            blended = work.blended(bodies, blocks)
            d_posed = work.buffer("d_posed", *shape)
            torch.mul(blended[:, :, :3, 0], d_skinned[:, :, None, 0], out=d_posed)
            for axis in (1, 2):
                d_posed.addcmul_(blended[:, :, :3, axis], d_skinned[:, :, None, axis])
            d_planes = d_posed.view(num_blocks, num_bodies, plane)
            if wants_base:
                d_base[bodies, blocks] = d_planes.transpose(0, 1)
            d_piece = d_coefficients[bodies]
            if num_blocks == 1:
                d_piece[:, :num_plain].addmm_(d_planes[0], packed.directions[blocks.start].mT)
            else:
                d_piece[:, :num_plain] += torch.bmm(d_planes, packed.directions[blocks].mT).sum(0)
            if packed.correctives is not None:
                low = d_planes.to(packed.correctives.dtype)
                d_piece[:, num_plain:] += torch.bmm(low, packed.correctives[blocks].mT).to(grad.dtype).sum(0)
            d_blended = blended
            torch.mul(posed[:, :, :, None], d_skinned[:, :, None], out=d_blended[:, :, :3])
            d_blended[:, :, 3].copy_(d_skinned)
            gathered = torch.bmm(packed.weights[blocks], d_blended.view(num_blocks, -1, block).mT)
            scatter = packed.scatter[blocks].transpose(0, 1).flatten(1)
            d_rows[:, bodies] += (scatter @ gathered.flatten(0, 1)).unflatten(1, (num_bodies, 4, 3))
        return d_coefficients, d_rows.permute(1, 0, 3, 2), d_base

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *_, ctx.packed, ctx.wants_base = inputs
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        inputs = [t for t in ctx.saved_tensors if t is not None]
        definition = functools.partial(_gradient, ctx.packed)
        _, pull = torch.func.vjp(definition, *inputs)
        if len(inputs) == 4 and not ctx.wants_base:
            grads = (*grads[:2], torch.zeros_like(inputs[3]))
        second = pull(grads[: len(inputs) - 1])
        return *second, *([None] * (7 - len(second)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        inputs = [t for t in ctx.saved_tensors if t is not None]
        filled = [torch.zeros_like(t) if d is None else d for t, d in zip(inputs, tangents, strict=False)]
        definition = functools.partial(_gradient, ctx.packed)
        result = torch.func.jvp(definition, tuple(inputs), tuple(filled))[1]
        return result if ctx.wants_base else (*result[:2], torch.zeros_like(inputs[1][:0]))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        tensors = _merge_batches(info.batch_size, in_dims[:4], args[:4])
        kept = args[4].new_empty(0)
        grads = _SurfaceGradient.apply(*tensors, kept, *args[5:])
        return tuple(g.unflatten(0, (info.batch_size, -1)) for g in grads), (0, 0, 0)


def _kept_piece(kept: Tensor, bodies: slice, blocks: slice, packed: _Packed) -> Tensor:
    """The piece's part of the kept surfaces, each chunk of bodies contiguous: (blocks, bodies, 3 * block)."""
    plane = 3 * packed.block
    size = (bodies.stop - bodies.start) * plane
    start = bodies.start * packed.num_blocks * plane
    piece = kept[start + blocks.start * size : start + blocks.stop * size]
    return piece.view(blocks.stop - blocks.start, bodies.stop - bodies.start, plane)


def _merge_batches(size: int, in_dims: tuple[Any, ...], tensors: tuple[Any, ...]) -> list[Any]:
    """Leading vmap dimension and batch as one batch."""
    merged = []
    for tensor, dim in zip(tensors, in_dims, strict=True):
        if tensor is not None:
            tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            tensor = tensor.flatten(0, 1)
        merged.append(tensor)
    return merged
