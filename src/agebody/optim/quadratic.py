"""Quadratic models of costs, of single problems and of chains of frames, and solvers of their equations."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Model(Protocol):
    """Costs of b problems of N variables at one point, to second order.

    A NamedTuple of tensors with the batch first, or None. `minimize` uses these members alone.
    """

    @property
    def cost(self) -> Tensor:
        """(b)"""
        ...

    @property
    def gradient(self) -> Tensor:
        """(b, N)"""
        ...

    def diagonal(self) -> Float[Tensor, "b N"]:
        """Return the diagonal of the normal matrix."""
        ...

    def product(self, vector: Float[Tensor, "b N"]) -> Float[Tensor, "b N"]:
        """Return the normal matrix times a vector."""
        ...

    def solve(
        self, target: Float[Tensor, "b N"], damping: Float[Tensor, "b N"], fixed: Bool[Tensor, "b N"] | None
    ) -> Float[Tensor, "b N"]:
        """Return p with ``(normal + diag(damping)) p = target`` over the variables that are not fixed.

        p is 0 in fixed variables, and NaN where the matrix is not positive definite.
        """
        ...


class Quadratic(NamedTuple):
    """Costs of b problems of N variables, to second order."""

    cost: Float[Tensor, " b"]
    """Half of the sum of the squared residuals r."""
    gradient: Float[Tensor, "b N"]
    """Jᵀr"""
    normal: Float[Tensor, "b N N"]
    """JᵀJ"""

    @classmethod
    def of(
        cls,
        residuals: Float[Tensor, "b M"],
        jacobian: Float[Tensor, "#b M N"],
        cost: Float[Tensor, " b"] | None = None,
    ) -> Quadratic:
        """Return the quadratic of residuals and their Jacobian; ``cost`` replaces half of their squares."""
        cost = residuals.square().sum(-1) / 2 if cost is None else cost
        normal = (jacobian.mT @ jacobian).expand(len(residuals), -1, -1)
        return cls(cost, (residuals[:, None] @ jacobian)[:, 0], normal)

    def diagonal(self) -> Tensor:
        """See `Model`."""
        return self.normal.diagonal(dim1=-2, dim2=-1)

    def product(self, vector: Tensor) -> Tensor:
        """See `Model`."""
        return (self.normal @ vector[..., None])[..., 0]

    def solve(self, target: Tensor, damping: Tensor, fixed: Tensor | None) -> Tensor:
        """See `Model`; by Cholesky decomposition."""
        if fixed is not None:
            target, damping = torch.where(fixed, 0, target), torch.where(fixed, 1, damping)
        matrix = _zero_fixed(self.normal, fixed, fixed)
        matrix.diagonal(dim1=-2, dim2=-1).add_(damping)
        factor, definite = _factor(matrix)
        solution = _solve_upper(factor, _solve_lower(factor, target[..., None]))[..., 0]
        return torch.where(definite[:, None], solution, torch.nan)

    def solve_frames(self, own: Tensor, shared: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """See `ChainQuadratic.solve_frames`; of one frame that shares nothing."""
        return self.solve(own[:, 0], torch.zeros_like(own[:, 0]), fixed)[:, None], shared


class ChainQuadratic(NamedTuple):
    """Costs of b chains of T frames, to second order.

    Each frame has n variables of its own, coupled to those of the next frame, and all frames share s
    variables. As one vector of N = T n + s: frame after frame, then the shared variables. The normal matrix
    is block tridiagonal with a border, and a step costs as much as T problems of n variables.
    """

    cost: Float[Tensor, " b"]
    frame_gradient: Float[Tensor, "b T n"]
    shared_gradient: Float[Tensor, "b s"]
    blocks: Float[Tensor, "b T n n"]
    """Normal matrix of each frame."""
    coupling: Float[Tensor, "b T-1 n n"] | None
    """Frame by next frame; None where frames are coupled by the shared variables alone."""
    border: Float[Tensor, "b T n s"]
    """Variables of a frame by shared variables."""
    shared: Float[Tensor, "b s s"]
    """Normal matrix of the shared variables."""

    @property
    def gradient(self) -> Tensor:
        """(b, T n + s)"""
        return self._join(self.frame_gradient, self.shared_gradient)

    def diagonal(self) -> Tensor:
        """See `Model`."""
        return self._join(self.blocks.diagonal(dim1=-2, dim2=-1), self.shared.diagonal(dim1=-2, dim2=-1))

    def product(self, vector: Tensor) -> Tensor:
        """See `Model`."""
        own, shared = (part[..., None] for part in self._split(vector))
        frames = self.blocks @ own + self.border @ shared[:, None]
        if self.coupling is not None:
            frames[:, :-1] += self.coupling @ own[:, 1:]
            frames[:, 1:] += self.coupling.mT @ own[:, :-1]
        return self._join(frames[..., 0], ((self.border.mT @ own).sum(1) + self.shared @ shared)[..., 0])

    def solve(self, target: Tensor, damping: Tensor, fixed: Tensor | None) -> Tensor:
        """See `Model`; by block Cholesky along the frames, and a Schur complement of the shared variables."""
        target = target if fixed is None else torch.where(fixed, 0, target)
        own_target, shared_target = self._split(target)
        factors, links, sides, schur_factor, definite = self._factor(own_target[..., None], damping, fixed)
        by_border, by_target = sides[..., :-1], sides[..., -1:]
        rest = shared_target[..., None] - (by_border.mT @ by_target).sum(1)
        shared = _solve_upper(schur_factor, _solve_lower(schur_factor, rest))
        own = _solve_chain_upper(factors, links, by_target - by_border @ shared[:, None])
        solution = self._join(own[..., 0], shared[..., 0])
        return torch.where(definite[:, None], solution, torch.nan)

    def solve_frames(
        self, own: Float[Tensor, "b T n"], shared: Float[Tensor, "b T s"], fixed: Bool[Tensor, "b N"]
    ) -> tuple[Float[Tensor, "b T n"], Float[Tensor, "b T s"]]:
        """Return, for a target of each frame, the solution's part in that frame and in the shared variables.

        The target of frame t is ``own[:, t]`` there, 0 in other frames, and ``shared[:, t]``. All together
        cost as much as one `solve`: the other parts of each solution are not computed.
        With A = UᵀU the matrix of the frames, the diagonal blocks of its inverse are
        ``F⁻¹ (1 + L Z Lᵀ) F⁻ᵀ``, of U's blocks F and L in a row and the next frame's Z.
        """
        zeros = torch.zeros_like(fixed, dtype=own.dtype)
        factors, links, by_border, schur_factor, definite = self._factor(
            own[..., None][..., :0], zeros, fixed
        )
        border = _solve_chain_upper(factors, links, by_border)
        unit = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
        whitened = _solve_lower(factors, own[..., None])
        if links is not None:
            lower = _solve_lower(factors, unit.expand_as(factors))
            block, found = torch.zeros_like(factors[:, 0]), []
            for t in range(own.shape[1] - 1, -1, -1):
                link = links[:, t] if t < links.shape[1] else torch.zeros_like(block)
                middle = unit + link @ block @ link.mT
                found.append(middle @ whitened[:, t])
                block = lower[:, t].mT @ middle @ lower[:, t]
            whitened = torch.stack(found[::-1], 1)
        rest = shared - (border.mT @ own[..., None])[..., 0]
        shared = _solve_upper(schur_factor, _solve_lower(schur_factor, rest.mT)).mT
        own = (_solve_upper(factors, whitened) - border @ shared[..., None])[..., 0]
        known = definite[:, None, None]
        return torch.where(known, own, torch.nan), torch.where(known, shared, torch.nan)

    def _factor(
        self, sides: Float[Tensor, "b T n _"], damping: Tensor, fixed: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Return U's two diagonals, U⁻ᵀ times border and sides, the factor of the Schur complement."""
        damping = damping if fixed is None else torch.where(fixed, 1, damping)
        fixed_own, fixed_shared = (None, None) if fixed is None else self._split(fixed)
        own_damping, shared_damping = self._split(damping)
        fixed_columns = None if fixed_shared is None else fixed_shared[:, None]
        border = _zero_fixed(self.border, fixed_own, fixed_columns)
        blocks = _zero_fixed(self.blocks, fixed_own, fixed_own)
        blocks.diagonal(dim1=-2, dim2=-1).add_(own_damping)
        schur = _zero_fixed(self.shared, fixed_shared, fixed_shared)
        schur.diagonal(dim1=-2, dim2=-1).add_(shared_damping)
        coupling = self.coupling
        if coupling is not None and fixed_own is not None:
            coupling = _zero_fixed(coupling, fixed_own[:, :-1], fixed_own[:, 1:])

        factors, links, sides, definite = _factor_chain(blocks, coupling, torch.cat((border, sides), -1))
        by_border = sides[..., : border.shape[-1]]
        schur_factor, schur_definite = _factor(schur - (by_border.mT @ by_border).sum(1))
        return factors, links, sides, schur_factor, definite & schur_definite

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        frames, own = self.frame_gradient.shape[1:]
        return vector[:, : frames * own].unflatten(1, (frames, own)), vector[:, frames * own :]

    def _join(self, own: Tensor, shared: Tensor) -> Tensor:
        return torch.cat((own.flatten(1), shared), 1)


def _zero_fixed(matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Return a copy with zeros in the rows and columns of fixed variables."""
    if rows is None or columns is None:
        return matrix.clone()
    return torch.where(rows[..., None] | columns[..., None, :], 0, matrix)


def _factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return U with UᵀU = matrix, and success. (On the CPU, torch finds the upper factor faster.)"""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=True)
    return factor, info == 0


def _solve_lower(factor: Tensor, sides: Tensor) -> Tensor:
    """Return the inverse of Uᵀ times the right-hand sides."""
    return torch.linalg.solve_triangular(factor.mT, sides, upper=False)


def _solve_upper(factor: Tensor, sides: Tensor) -> Tensor:
    """Return the inverse of U times the right-hand sides."""
    return torch.linalg.solve_triangular(factor, sides, upper=True)


def _factor_chain(
    blocks: Tensor, coupling: Tensor | None, sides: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the block bidiagonal U with UᵀU the block tridiagonal matrix, by its two diagonals.

    Also returns the inverse of Uᵀ times the right-hand sides, and success.
    """
    if coupling is None:
        factors, definite = _factor(blocks)
        return factors, None, _solve_lower(factors, sides), definite.all(1)
    factors, links, solved, flags = [], [], [], []
    block, side = blocks[:, 0], sides[:, 0]
    for t in range(blocks.shape[1]):
        factor, definite = _factor(block)
        factors.append(factor)
        flags.append(definite)
        solved.append(_solve_lower(factor, side))
        if t + 1 < blocks.shape[1]:
            link = _solve_lower(factor, coupling[:, t])
            links.append(link)
            block = blocks[:, t + 1] - link.mT @ link
            side = sides[:, t + 1] - link.mT @ solved[-1]
    links = torch.stack(links, 1) if links else coupling
    return torch.stack(factors, 1), links, torch.stack(solved, 1), torch.stack(flags, 1).all(1)


def _solve_chain_upper(factors: Tensor, links: Tensor | None, sides: Tensor) -> Tensor:
    """Return the inverse of the chain's U times the right-hand sides."""
    if links is None:
        return _solve_upper(factors, sides)
    found = [_solve_upper(factors[:, -1], sides[:, -1])]
    for t in range(factors.shape[1] - 2, -1, -1):
        found.append(_solve_upper(factors[:, t], sides[:, t] - links[:, t] @ found[-1]))
    return torch.stack(found[::-1], 1)
