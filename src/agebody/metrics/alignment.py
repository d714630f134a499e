"""Alignments that remove a root, a scale, a rigid motion or a similarity before errors are measured."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import Weights, apply_mask, at_least_float32, expect, expect_pair
from agebody.engine.batched import is_forward_nested, own_precision, product
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout, get_layout
from agebody.rotations import quaternion_to_matrix


class Similarity(NamedTuple):
    """``x -> scale * rotation @ x + translation``."""

    rotation: Float[Tensor, "*batch 3 3"]
    """Acts on column vectors, with determinant +1."""
    scale: Float[Tensor, "*batch"]
    translation: Float[Tensor, "*batch 3"]

    def apply(self, points: Float[Tensor, "*batch N 3"]) -> Float[Tensor, "*batch N 3"]:
        """Return the moved points."""
        turned = product(points, (self.scale[..., None, None] * self.rotation).mT)
        return turned + self.translation[..., None, :]


def procrustes(
    pred: Float[Tensor, "*batch N 3"],
    target: Float[Tensor, "*batch N 3"],
    *,
    weights: Weights = None,
    with_scale: bool = True,
) -> Similarity:
    """Return the least-squares similarity, or rigid motion, from points to a target.

    Rotations are proper, whatever the points: a mirrored target is approached, not reached. Where the points
    do not determine the motion (they coincide, or are on a line), one of the best is returned, with scale 1
    if they coincide, and gradients are bounded: undetermined directions have none.

    Args:
        pred: points to move.
        target: corresponding points.
        weights: of the squared distances, broadcast to (*batch, N).
        with_scale: a similarity; False keeps the scale at 1, for a rigid motion.

    Source: Umeyama, IEEE TPAMI 13(4), 1991; the rotation by Horn's quaternions, JOSA A 4(4), 1987.
    """
    pred, target, weights = read_points(pred, target, weights)
    mean = _WeightedMean(pred, weights)
    pred, target = apply_mask(pred, weights, 1), apply_mask(target, weights, 1)
    from_center, to_center = mean.of(pred), mean.of(target)
    start, end = pred - from_center[..., None, :], target - to_center[..., None, :]
    spread, extent = mean.product(start, start), mean.product(end, end)
    covariance = mean.outer(end, start)
    rotation = _nearest_rotation(covariance, spread.detach().sqrt() * extent.detach().sqrt())
    scale = torch.ones_like(spread)
    if read_flag("with_scale", with_scale):
        # A spread within rounding, of these coordinates or relative to the target, determines no scale.
        rounding = (8 * torch.finfo(pred.dtype).eps) ** 2
        far = (from_center * from_center).sum(-1)
        decided = spread > rounding * torch.maximum(far, extent)
        gain = (rotation * covariance).sum((-2, -1))
        scale = torch.where(decided, gain / torch.where(decided, spread, 1), scale)
    turned = (rotation * from_center[..., None, :]).sum(-1)
    return Similarity(rotation, scale, to_center - scale[..., None] * turned)


def procrustes_align(
    pred: Float[Tensor, "*batch N 3"],
    target: Float[Tensor, "*batch N 3"],
    *,
    weights: Weights = None,
    with_scale: bool = True,
) -> Float[Tensor, "*batch N 3"]:
    """Return the points moved by `procrustes`, 0 where they have weight 0; arguments as there."""
    pred, target, weights = read_points(pred, target, weights)
    motion = procrustes(pred, target, weights=weights, with_scale=with_scale)
    return apply_mask(motion.apply(apply_mask(pred, weights, 1)), weights, 1)


def best_scale(
    pred: Float[Tensor, "*batch N 3"], target: Float[Tensor, "*batch N 3"], *, weights: Weights = None
) -> Float[Tensor, "*batch"]:
    """Return the factor that brings points closest to a target about the origin; 1 if all are there.

    Arguments as of `procrustes`.
    """
    pred, target, weights = read_points(pred, target, weights)
    mean = _WeightedMean(pred, weights)
    pred, target = apply_mask(pred, weights, 1), apply_mask(target, weights, 1)
    spread, gain = mean.product(pred, pred), mean.product(pred, target)
    decided = spread > 0
    return torch.where(decided, gain / torch.where(decided, spread, 1), 1)


def root_of(
    points: Float[Tensor, "*batch K 3"],
    *,
    layout: str | KeypointLayout | None,
    root: Sequence[str] | Sequence[int] | None = None,
) -> Float[Tensor, "*batch 3"]:
    """Return the root: the mean of its points.

    Args:
        points: of a layout.
        layout: of the points, or its name; None for points without a layout.
        root: names of the root points in the layout, by default its own; or their indices.
    """
    points = expect("points", points, None, 3)
    return points[..., root_points(layout, root, points.shape[-2]), :].mean(-2)


def root_points(
    layout: str | KeypointLayout | None, root: Sequence[str] | Sequence[int] | None, num_points: int
) -> list[int]:
    """Return the indices of the root points in a set of so many; arguments as of `root_of`."""
    known = None if layout is None else get_layout(layout)
    if known is not None and len(known) != num_points:
        raise ValueError(f"layout: {known.name!r} has {len(known)} points, got {num_points}")
    if root is None:
        if known is None:
            raise ValueError("layout: expected a layout, or root points, got None")
        return list(known.root)
    names = () if known is None else known.names
    try:
        wanted: tuple[Any, ...] = () if isinstance(root, str) else tuple(root)
        chosen = [names.index(point) if point in names else operator.index(point) for point in wanted]
    except TypeError:
        chosen = []
    if not chosen or not all(-num_points <= point < num_points for point in chosen):
        what = f"{num_points} points" if known is None else f"{known.name!r}, or their names"
        raise ValueError(f"root: expected a list of indices of {what}, got {root!r}")
    return chosen


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation R, det R = +1, that maximises tr(Rᵀ M): the one nearest to the matrix M.

    Derivatives of every order are those of the exact solution; where it is not unique, or nearly not, they
    are damped, as in the pseudo-inverse. Matrices with NaN or infinite entries give the identity.
    """
    matrix = at_least_float32(matrix)
    return _nearest_rotation(matrix, matrix.detach().abs().amax((-2, -1)))


def _nearest_rotation(
    matrix: Float[Tensor, "*batch 3 3"], size: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation; derivatives are damped where the matrix is small beside ``size``.

    A positive factor does not change the rotation, so ``size`` itself needs no derivative.
    """
    if is_forward_nested():
        raise NotImplementedError(
            "forward mode within forward mode would be wrong here, as torch drops tangents; take one of the "
            "two derivatives in reverse mode, as torch.func.hessian does"
        )
    function = _NearestRotation if torch.compiler.is_compiling() else _WithForwardMode
    return function.apply(matrix / torch.where(size > 0, size, 1)[..., None, None])


class _NearestRotation(torch.autograd.Function):
    """With M = R P, P symmetric, dR = R [ω]ₓ where (tr(P) 1 - P) ω = vee(Rᵀ dM - dMᵀ R)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        finite = matrix.isfinite().all(-1).all(-1)[..., None, None]
        _, vectors = torch.linalg.eigh(_quaternion_form(torch.where(finite, matrix, 0)))
        return quaternion_to_matrix(vectors[..., -1])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        matrix, rotation = ctx.saved_tensors
        return _turn(matrix, rotation, grad_outputs[0])


class _WithForwardMode(_NearestRotation):
    """The same, with the forward mode that torch.compile does not support."""

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def jvp(ctx, *grad_inputs: Tensor) -> Tensor:
        matrix, rotation = ctx.saved_tensors
        return _turn(matrix, rotation, grad_inputs[0])


def _turn(
    matrix: Float[Tensor, "*batch 3 3"],
    rotation: Float[Tensor, "*batch 3 3"],
    change: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch 3 3"]:
    """Return the change of the rotation for a change of the matrix; the derivative is its own transpose."""
    with own_precision(matrix.device):
        return rotation @ _hat(_solve_spin(matrix, rotation, _vee(rotation.mT @ change)))


def _solve_spin(
    matrix: Float[Tensor, "*batch 3 3"], rotation: Float[Tensor, "*batch 3 3"], b: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Return K (K² + d²)⁻¹ b for K = tr(P) 1 - P, whose eigenvalues are sums of two singular values of M.

    It is the real part of (K + i d)⁻¹ b, and solved as such: K² would lose half of the digits. M has size 1,
    and d is the root of the rounding error: an eigenvalue t that is rounding alone gains 1 at most, and the
    gain 1 / t of any other changes by (d / t)², at t = 0.01 by 1e-3 in float32 and by 2e-12 in float64.
    """
    symmetric = rotation.mT @ matrix
    one = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    k = symmetric.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * one - symmetric
    d = torch.finfo(matrix.dtype).eps ** 0.5 * one.expand_as(k)
    both = torch.cat((torch.cat((k, -d), -1), torch.cat((d, k), -1)), -2)
    right = torch.cat((b, torch.zeros_like(b)), -1)[..., None]
    return torch.linalg.solve_ex(both, right)[0][..., :3, 0]


def _vee(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the vector of the matrix less its transpose."""
    skew = matrix - matrix.mT
    return torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1)


def _hat(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(*vector.shape, 3)


def _quaternion_form(m: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4 4"]:
    """Return the symmetric N with qᵀ N q = tr(R(q)ᵀ M) for every unit quaternion q = (x, y, z, w)."""
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    one = torch.eye(3, dtype=m.dtype, device=m.device)
    block = m + m.mT - trace[..., None, None] * one
    axis = _vee(m)
    upper = torch.cat((block, axis[..., None]), -1)
    return torch.cat((upper, torch.cat((axis, trace[..., None]), -1)[..., None, :]), -2)


def read_points(
    pred: Tensor, target: Tensor, weights: Tensor | None, dims: int = 1
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return points of one shape in at least float32, with ``dims`` dimensions of entries, and weights."""
    expect("pred", pred, *[None] * dims, 3)
    return expect_pair(pred, target, weights, 3)


class _WeightedMean:
    """Means over the points of each set; without weights they cost no pass over the points."""

    def __init__(self, points: Float[Tensor, "*batch N 3"], weights: Tensor | None) -> None:
        self.weights = None if weights is None else weights.to(points.dtype)[..., None]
        self.total: Any = max(points.shape[-2], 1)
        if self.weights is not None:
            total = self.weights.sum((-2, -1))
            self.total = torch.where(total > 0, total, 1)

    def of(self, points: Float[Tensor, "*batch N 3"]) -> Float[Tensor, "*batch 3"]:
        """Return the centre."""
        return self._weighed(points).sum(-2) / self._total(1)

    def product(
        self, a: Float[Tensor, "*batch N 3"], b: Float[Tensor, "*batch N 3"]
    ) -> Float[Tensor, "*batch"]:
        """Return the mean of the inner products."""
        return (self._weighed(a) * b).sum((-2, -1)) / self.total

    def outer(
        self, a: Float[Tensor, "*batch N 3"], b: Float[Tensor, "*batch N 3"]
    ) -> Float[Tensor, "*batch 3 3"]:
        """Return the mean of the outer products."""
        return product(self._weighed(a).mT, b) / self._total(2)

    def _weighed(self, points: Tensor) -> Tensor:
        return points if self.weights is None else self.weights * points

    def _total(self, dims: int) -> Any:
        return self.total if self.weights is None else self.total[(..., *[None] * dims)]
