"""The least-squares problem of one stage of a fit: its variables, bounds and cost."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.checks import apply_mask, expect_numbers, expect_values
from agebody.optim.motion import Motion, Moves
from agebody.optim.quadratic import ChainQuadratic, Quadratic
from agebody.optim.state import Block, FreeVariables, State, Term
from agebody.parameters import GROUPS, group_slices


class Stage(NamedTuple):
    """One stage of a fit: weights of the terms and free variables."""

    weights: Mapping[str, float] = {}
    """By name of a term, a factor of its cost: 1 if missing, 0 leaves it out."""
    scales: Mapping[str, float] = {}
    """By name of a term, a factor of its robust scale: 1 if missing."""
    groups: Sequence[str] = GROUPS
    """Which parameters are free; see `FreeVariables`."""
    joints: Sequence[str] | None = None
    """Which joints of the pose are free; all if None."""
    max_iterations: int = 30
    cost_tolerance: float = 1e-4
    """The stage ends when a step reduces the cost by less than this fraction."""


REPEATED = 0.5
"""Share of the variance of a keypoint's error that the frames of a clip have in common; of BlazePose
0.5, and of MoveNet 0.7, measured with four calibrated cameras."""


class Problem:
    """The least-squares problem of one stage.

    The variables of a clip are those of each frame, then the shared ones. A single body is a clip of one
    frame that shares nothing.

    Errors of a detector are correlated between frames. If the errors of T frames share a fraction ρ of their
    variance, they determine shared variables as T / (1 + (T - 1) ρ) independent frames would (Kish 1965). As
    frames keep their full weight, terms of shared variables alone count ``repeats = 1 + (T - 1) ρ`` times.
    ρ is ``repeated``.
    """

    def __init__(
        self,
        body: BodyModel,
        terms: Mapping[str, Term | Motion],
        stage: Stage,
        vectors: Float[Tensor, "C T P"],
        present: Bool[Tensor, "C T"],
        repeated: float = REPEATED,
    ) -> None:
        self.body, self.vectors, self.present = body, vectors, present
        self.free = FreeVariables(body, stage.groups, stage.joints)
        self.frames = vectors.shape[1]
        self.repeats = 1 + repeated * (present.sum(1).to(vectors) - 1).clamp(min=0)
        self._weights: dict[str, float] = {}
        self.motion: tuple[str, float, Motion] | None = None
        self.terms: list[tuple[str, float, Term]] = []
        for name, term in terms.items():
            weight = stage.weights.get(name, 1.0)
            if not weight:
                continue
            self._weights[name] = weight
            if isinstance(term, Motion):
                self.motion = (name, weight, term) if self.frames > 1 else None
            else:
                self.terms.append((name, weight, _scaled(term, stage.scales.get(name, 1.0))))
        every = torch.arange(len(self.free), device=vectors.device)
        self.shape = self.free.shape_slice() if self.frames > 1 else slice(0, 0)
        self.shared = every[self.shape]
        self.own = torch.cat((every[: self.shape.start], every[self.shape.stop :]))
        self._columns = self.free.columns[self.own], self.free.columns[self.shared]
        self._names: tuple[str, ...] = ()
        self._parts: Tensor | None = None
        self._at = self.pack(vectors)
        self._lowest = vectors.new_full((len(vectors),), torch.nan)  # of none yet

    def pack(self, vectors: Float[Tensor, "C t P"]) -> Float[Tensor, "C N"]:
        """Return the variables of clips; the shared ones are read from the first frame."""
        free = vectors[..., self.free.columns].expand(-1, self.frames, -1)
        return torch.cat((free[..., self.own].flatten(1), free[:, 0, self.shared]), 1)

    def unpack(self, x: Float[Tensor, "b N"], rows: Tensor | None = None) -> Float[Tensor, "b T P"]:
        """Return all parameters of clips, or of those with the indices ``rows``."""
        vectors = self.vectors if rows is None else self.vectors[rows]
        split = self.frames * len(self.own)
        own, shared = x[:, :split].unflatten(1, (self.frames, -1)), x[:, None, split:]
        vectors = vectors.index_copy(-1, self._columns[0], own)
        if self.frames == 1:
            return vectors
        return vectors.index_copy(-1, self._columns[1], shared.expand(-1, self.frames, -1))

    def quadratize(self, x: Tensor, rows: Tensor) -> Quadratic | ChainQuadratic:
        """Return the weighted sum of the terms of some clips; see `minimize`."""
        state = self._state(x, rows)
        present = self.present if self.frames == 1 else self.present[rows]
        by_frame, by_clip, parts = [], [], {}
        for name, weight, term in self.terms:
            block = term(state)
            if block is None:
                continue
            if self.frames == 1:
                parts[name] = block.cost
            elif self._per_clip(block):
                repeats = self.repeats[rows]
                first = [part if len(part) == 1 else part[:: self.frames] for part in block[:3]]
                cost, gradient, normal = (repeats[(..., *[None] * (p.dim() - 1))] * p for p in first)
                by_clip.append((weight, Block(cost, gradient, normal, block.where)))
                parts[name] = cost
                continue
            else:
                parts[name] = apply_mask(block.cost.view_as(present), present).sum(1)
            by_frame.append((weight, block))
        frames = add_blocks(by_frame, len(state.rows), len(self.free), x)
        if self.frames == 1:
            self._note(x, rows, frames.cost, parts)
            return frames
        clips = add_blocks(by_clip, len(rows), len(self.free), x)
        cost, gradient, normal = (
            apply_mask(part.unflatten(0, present.shape), present, part.dim() - 1) for part in frames
        )
        by_own, by_shared = normal[..., self.own, :], (normal.sum(1) + clips.normal)[:, self.shared]
        model = ChainQuadratic(
            cost.sum(1) + clips.cost,
            gradient[..., self.own],
            (gradient.sum(1) + clips.gradient)[:, self.shared],
            by_own[..., self.own],
            None,
            by_own[..., self.shared],
            by_shared[..., self.shared],
        )
        if self.motion is not None:
            name, weight, motion = self.motion
            moves = motion.moves(state, present)
            parts[name] = moves.residuals.square().sum((1, 2)) / 2
            model = self._add_motion(model, moves, weight)
        self._note(x, rows, model.cost, parts)
        return model

    def costs(self, x: Tensor) -> dict[str, Float[Tensor, " C"]]:
        """Return the part of each term in the cost; without an evaluation where `minimize` ended."""
        if self._parts is None or (self._at != x).any():
            self._lowest.fill_(torch.nan)
            self.quadratize(x, torch.arange(len(x), device=x.device))
        assert self._parts is not None
        pairs = zip(self._names, self._parts.unbind(1), strict=True)
        return {name: self._weights[name] * part for name, part in pairs}

    def _note(self, x: Tensor, rows: Tensor, cost: Tensor, parts: dict[str, Tensor]) -> None:
        """Record costs of terms, without weights, of clips whose cost decreased: `minimize` goes on there."""
        if self._parts is None:
            self._names, self._parts = tuple(parts), x.new_zeros(len(self._at), len(parts))
        lower = ~(cost >= self._lowest[rows])
        if parts and lower.any():
            rows = rows[lower]
            self._lowest[rows], self._at[rows] = cost[lower], x[lower]
            self._parts[rows] = torch.stack(tuple(parts.values()), 1)[lower]

    def _state(self, x: Tensor, rows: Tensor) -> State:
        vectors = self.unpack(x, rows)
        bodies = rows
        if self.frames > 1:
            bodies = (rows[:, None] * self.frames + torch.arange(self.frames, device=x.device)).flatten()
        return State(self.body, vectors.flatten(0, 1), bodies, self.free)

    def _per_clip(self, block: Block) -> bool:
        """Return whether a block depends on shared variables alone."""
        shape, where = self.shape, block.where
        return shape.start <= where.start and where.stop <= shape.stop

    def _add_motion(self, model: ChainQuadratic, moves: Moves, weight: float) -> ChainQuadratic:
        """Add the motion: coupling of consecutive frames, and of both with the shared variables."""
        root = weight**0.5
        residuals, before, after = (root * part for part in moves)
        first, second = before[..., self.own], after[..., self.own]
        drift = (after - before)[..., self.shared]
        model.frame_gradient[:, :-1] -= _row_product(residuals, first)
        model.frame_gradient[:, 1:] += _row_product(residuals, second)
        model.blocks[:, :-1] += first.mT @ first
        model.blocks[:, 1:] += second.mT @ second
        model.border[:, :-1] -= first.mT @ drift
        model.border[:, 1:] += second.mT @ drift
        return model._replace(
            cost=model.cost + residuals.square().sum((1, 2)) / 2,
            shared_gradient=model.shared_gradient + _row_product(residuals, drift).sum(1),
            coupling=-(first.mT @ second),
            shared=model.shared + (drift.mT @ drift).sum(1),
        )


def add_blocks(blocks: Iterable[tuple[float, Block]], batch: int, size: int, like: Tensor) -> Quadratic:
    """Return the weighted sum of blocks, over all free variables."""
    total = Quadratic(like.new_zeros(batch), like.new_zeros(batch, size), like.new_zeros(batch, size, size))
    for weight, (cost, gradient, normal, where) in blocks:
        total.cost.add_(cost, alpha=weight)
        total.gradient[:, where].add_(gradient, alpha=weight)
        start, strides = where.start * (size + 1), total.normal.stride()
        if normal.dim() == 2:
            part = total.normal.as_strided((batch, normal.shape[1]), (strides[0], size + 1), start)
        elif normal.dim() == 4:
            shape = batch, *normal.shape[1:]
            part = total.normal.as_strided(shape, (strides[0], 3 * (size + 1), size, 1), start)
        else:
            part = total.normal[:, where, where]
        part.add_(normal, alpha=weight)
    return total


def parameter_bounds(
    body: BodyModel,
    like: Float[Tensor, "C T P"],
    ages: tuple[float | Tensor, float | Tensor],
    beta_bound: float | Float[Tensor, "C N"],
) -> tuple[Float[Tensor, "C 1 P"], Float[Tensor, "C 1 P"]]:
    """Return lower and upper bounds of all parameters."""
    low, high = torch.full_like(like[:, :1], -torch.inf), torch.full_like(like[:, :1], torch.inf)
    slices = group_slices(body)
    largest = expect_numbers("beta_bound", beta_bound, like)
    expect_values(beta_bound=(largest >= 0, "numbers of 0 or more"))
    largest = largest[:, None] if largest.dim() else largest
    low[..., slices["betas"]], high[..., slices["betas"]] = -largest, largest
    if body.age_anchors:
        for bound, age in zip((low, high), ages, strict=True):
            age = torch.as_tensor(age, dtype=like.dtype, device=like.device)
            bound[:, 0, slices["age_offset"]] = age.expand(len(like))[:, None]
    return low, high


def _scaled(term: Any, scale: float) -> Term:
    """Return the same term with its robust scale multiplied."""
    if scale == 1:
        return term
    found = copy.copy(term)
    found.robust_scale = scale * term.robust_scale
    return found


def _row_product(residuals: Tensor, jacobian: Tensor) -> Tensor:
    return (residuals[..., None, :] @ jacobian)[..., 0, :]
