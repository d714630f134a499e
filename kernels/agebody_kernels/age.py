"""Rest shapes from betas and age offset, with a switch to an infant body.

AGORA (Patel et al., CVPR 2021) interpolates two templates by an age offset; here there can be any number of
templates. BEV (Sun et al., CVPR 2022) switches to SMIL above an age offset.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import warp as wp
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, launch, moved
from agebody_kernels._operator import Operator

BODIES = wp.constant(4)
"""Bodies per thread, one after the other, while the thread's column of the directions is in cache."""


class AgeAnchors(NamedTuple):
    """The age templates of a body, and the switch to an infant body."""

    knots: Tensor
    """(A + 1) age offsets of the templates in ascending order, 0 (the template itself) among them."""
    slots: Tensor
    """(A + 1) int32, index of the age template at each knot; -1 for the template itself."""
    num_infant_betas: int
    """Betas of the infant body, whose directions follow those of the adult; -1 without an infant body."""
    threshold: float
    """Age offset above which the infant body is used."""
    transition: float
    """Width of the interval of age offsets around it over which the two are blended; 0 is a switch."""

    @classmethod
    def build(
        cls,
        anchors: Sequence[float] = (),
        *,
        num_infant_betas: int = -1,
        threshold: float = 0.8,
        transition: float = 0.0,
    ) -> "AgeAnchors":
        """Build the constants from the age offsets of the age templates, ascending, none of them 0.

        Raises:
            ValueError: the age offsets are not finite, not ascending by more than 1e-6, or contain 0; the
                transition is negative.
        """
        anchors = list(anchors)
        gaps = np.diff(sorted([0.0, *anchors]))
        if sorted(anchors) != anchors or not (np.isfinite(gaps).all() and (gaps > 1e-6).all()):
            raise ValueError(f"anchors: expected ascending age offsets other than 0, got {anchors}")
        if transition < 0:
            raise ValueError(f"transition: expected a width of 0 or more, got {transition}")
        knots = sorted([0.0, *anchors])
        slots = [anchors.index(knot) if knot in anchors else -1 for knot in knots]
        knots_, slots_ = torch.tensor(knots, dtype=torch.float64), torch.tensor(slots, dtype=torch.int32)
        return cls(knots_, slots_, num_infant_betas, threshold, transition)

    to = moved


def rest_shape(
    betas: Tensor, age_offset: Tensor, directions: Tensor, ages: AgeAnchors
) -> tuple[Tensor, Tensor]:
    """Return the coefficients of a body's directions and their product; differentiable to any order.

    The coefficients are 1, the betas, and the weights of the differences of the age templates from the
    template. These weights are piecewise linear in the age offset and extrapolate beyond the outer knots; at
    a knot the derivative is that of the piece above. With an infant body all of these are multiplied by
    1 - s, and s * (1, first betas) follow, where the share s is 0 below the threshold and 1 above it.

    Args:
        betas: (B, N).
        age_offset: (B), 0 adult, 1 infant.
        directions: (C, M) rows of the template, of the betas, of the differences of the age templates, and
            of the infant's template and betas; M coordinates of vertices, joints or both [m].
        ages: constants on the same device and in the same floating type.

    Returns:
        (B, C) coefficients, and (B, M) rest shape, ``coefficients @ directions`` [m].
    """
    return REST_SHAPE(betas, age_offset, directions, *ages)


def _num_coefficients(betas: Tensor, knots: Tensor, num_infant_betas: int) -> int:
    return betas.shape[1] + knots.shape[0] + (1 + num_infant_betas if num_infant_betas >= 0 else 0)


def _reference(
    betas: Tensor,
    age: Tensor,
    directions: Tensor,
    knots: Tensor,
    slots: Tensor,
    num_infant_betas: int,
    threshold: float,
    transition: float,
) -> tuple[Tensor, Tensor]:
    parts = [torch.ones_like(age)[:, None], betas]
    if len(knots) > 1:
        piece = torch.searchsorted(knots[1:-1].contiguous(), age.detach().contiguous(), right=True)
        low, high = knots[piece], knots[piece + 1]
        progress = ((age - low) / (high - low))[:, None]
        slot = torch.arange(len(knots) - 1, device=age.device)
        zero = torch.zeros_like(progress)
        parts.append(
            torch.where(slots[piece + 1][:, None] == slot, progress, zero)
            + torch.where(slots[piece][:, None] == slot, 1 - progress, zero)
        )
    coefficients = torch.cat(parts, 1)
    if num_infant_betas >= 0:
        infant = torch.cat((torch.ones_like(age)[:, None], betas[:, :num_infant_betas]), 1)
        share = _infant_share(age, threshold, transition)[:, None]
        coefficients = torch.cat(((1 - share) * coefficients, share * infant), 1)
    return coefficients, coefficients @ directions


def _infant_share(age: Tensor, threshold: float, transition: float) -> Tensor:
    if transition == 0:
        return (age > threshold).to(age.dtype)
    x = ((age - threshold) / transition + 0.5).clamp(0, 1)
    return x * x * (3 - 2 * x)


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar = t.scalar
    vec2 = wp.types.vector(2, scalar)
    zero, half, one, two, three, six = (scalar(x) for x in (0.0, 0.5, 1.0, 2.0, 3.0, 6.0))

    @t.func
    def piece_of(age: scalar, knots: wp.array[scalar]):
        piece = wp.int32(0)  # a variable, not a constant
        for i in range(1, knots.shape[0] - 1):
            if age >= knots[i]:
                piece = i
        return piece

    @t.func
    def share_of(age: scalar, threshold: scalar, transition: scalar):
        # The infant's share s and ds/dage: a step, or x^2 (3 - 2x), whose derivative is 6 x (1 - x).
        share, slope = zero, zero
        if transition == zero:
            if age > threshold:
                share = one
        else:
            x = wp.clamp((age - threshold) / transition + half, zero, one)
            share = x * x * (three - two * x)
            slope = six * x * (one - x) / transition
        return vec2(share, slope)

    @t.func
    def coefficient(
        c: int,
        b: int,
        betas: wp.array2d[scalar],
        age: scalar,
        knots: wp.array[scalar],
        slots: wp.array[int],
        piece: int,
        infant: bool,
        share: scalar,
    ):
        # Coefficient number c: those of the adult, then those of the infant.
        num_betas = betas.shape[1]
        num_adult = num_betas + knots.shape[0]
        value, factor = one, one
        row = c
        if infant:
            factor = one - share
        if c >= num_adult:
            row = c - num_adult
            factor = share
        if row > num_betas:
            slot = row - num_betas - 1
            value = zero
            if slots[piece + 1] == slot:
                value = (age - knots[piece]) / (knots[piece + 1] - knots[piece])
            elif slots[piece] == slot:
                value = (knots[piece + 1] - age) / (knots[piece + 1] - knots[piece])
        elif row > 0:
            value = betas[b, row - 1]
        return factor * value

    @t.kernel
    def shape(
        betas: wp.array2d[scalar],
        age: wp.array[scalar],
        directions: wp.array2d[scalar],
        knots: wp.array[scalar],
        slots: wp.array[int],
        infant: bool,
        threshold: scalar,
        transition: scalar,
        coefficients_out: wp.array2d[scalar],
        rest_out: wp.array2d[scalar],
    ):
        # The first C threads write one coefficient each, the other M one column of the rest shape each.
        group, n = wp.tid()
        num_coefficients = coefficients_out.shape[1]
        for i in range(BODIES):
            b = group * BODIES + i
            if b < betas.shape[0]:
                piece = piece_of(age[b], knots)
                share = share_of(age[b], threshold, transition)[0]
                if n < num_coefficients:
                    coefficients_out[b, n] = coefficient(
                        n, b, betas, age[b], knots, slots, piece, infant, share
                    )
                else:
                    column = n - num_coefficients
                    total = zero
                    for c in range(num_coefficients):
                        total += directions[c, column] * coefficient(
                            c, b, betas, age[b], knots, slots, piece, infant, share
                        )
                    rest_out[b, column] = total

    @t.kernel
    def pull(
        d_coefficients: wp.array2d[scalar],
        betas: wp.array2d[scalar],
        age: wp.array[scalar],
        knots: wp.array[scalar],
        slots: wp.array[int],
        num_infant_betas: int,
        threshold: scalar,
        transition: scalar,
        d_betas_out: wp.array2d[scalar],
        d_age_out: wp.array[scalar],
    ):
        b = wp.tid()
        num_betas = betas.shape[1]
        num_adult = num_betas + knots.shape[0]
        infant = num_infant_betas >= 0
        share = vec2(zero, zero)
        if infant:
            share = share_of(age[b], threshold, transition)
        for n in range(num_betas):
            g = (one - share[0]) * d_coefficients[b, 1 + n]
            if infant and n < num_infant_betas:
                g += share[0] * d_coefficients[b, num_adult + 1 + n]
            d_betas_out[b, n] = g
        slope = zero
        piece = piece_of(age[b], knots)
        if knots.shape[0] > 1:
            width = knots[piece + 1] - knots[piece]
            if slots[piece + 1] >= 0:
                slope += d_coefficients[b, 1 + num_betas + slots[piece + 1]] / width
            if slots[piece] >= 0:
                slope -= d_coefficients[b, 1 + num_betas + slots[piece]] / width
            slope *= one - share[0]
        if infant:
            turned = zero
            for c in range(num_adult):
                turned -= d_coefficients[b, c] * coefficient(
                    c, b, betas, age[b], knots, slots, piece, False, zero
                )
            for c in range(1 + num_infant_betas):
                turned += d_coefficients[b, num_adult + c] * coefficient(
                    num_adult + c, b, betas, age[b], knots, slots, piece, True, one
                )
            slope += share[1] * turned
        d_age_out[b] = slope

    return SimpleNamespace(shape=shape, pull=pull)


def _value(betas, age, directions, knots, slots, num_infant_betas, threshold, transition):
    batch, columns = len(betas), directions.shape[1]
    num_coefficients = _num_coefficients(betas, knots, num_infant_betas)
    coefficients, rest = betas.new_empty(batch, num_coefficients), betas.new_empty(batch, columns)
    grid = -(-batch // int(BODIES)), num_coefficients + columns
    infant = num_infant_betas >= 0, threshold, transition
    launch(
        _KERNELS[betas.dtype].shape, grid, betas, age, directions, knots, slots, *infant, coefficients, rest
    )
    return coefficients, rest


def _gradient(wants, grads, betas, age, directions, knots, slots, num_infant_betas, threshold, transition):
    d_coefficients = torch.addmm(grads[0], grads[1], directions.T)
    d_betas, d_age = betas.new_empty(betas.shape), age.new_empty(age.shape)
    ages = knots, slots, num_infant_betas, threshold, transition
    launch(_KERNELS[betas.dtype].pull, len(betas), d_coefficients, betas, age, *ages, d_betas, d_age)
    return d_betas, d_age


def _shapes(betas: Tensor, age: Tensor, directions: Tensor, knots: Tensor, slots: Tensor, *rest: Any):
    batch = betas.shape[0]
    return (batch, _num_coefficients(betas, knots, rest[0])), (batch, directions.shape[1])


def _row_shapes(directions: Tensor, knots: Tensor, slots: Tensor, num_infant_betas: int, *_: Any):
    infant = 1 + num_infant_betas if num_infant_betas >= 0 else 0
    num_betas = directions.shape[0] - knots.shape[0] - infant
    if num_infant_betas > num_betas:
        raise ValueError(
            f"num_infant_betas: expected at most {num_betas}, as many as {directions.shape[0]} directions "
            f"leave, got {num_infant_betas}"
        )
    return (num_betas,), ()


_NUMBERS = ("int num_infant_betas", "float threshold", "float transition")

REST_SHAPE = Operator(
    "rest_shape",
    rows=("betas", "age_offset"),
    constants=("Tensor directions", "Tensor knots", "Tensor slots", *_NUMBERS),
    num_outputs=2,
    reference=_reference,
    value=_value,
    gradient=_gradient,
    shapes=_shapes,
    row_shapes=_row_shapes,
)
