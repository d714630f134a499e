"""Lens distortion: OpenCV's radial and tangential terms, with an inverse, and without folds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.checks import expect, expect_values, safe_norm

COEFFICIENTS = (4, 5, 8, 12, 14)
"""Possible numbers of coefficients: (k1, k2, p1, p2), then k3, then (k4, k5, k6), in OpenCV's order. Its thin
prism and tilt, which follow, must be 0: OpenCV returns 14 numbers for every rational model."""

RADIAL_STEPS, STEPS = 32, 24
"""Steps of the inverse: for the radius, possibly from far away, then for the point. Near the solution each
step doubles the digits, but before it only halves the error where a lens nearly flattens."""


def distort(
    points: Float[Tensor, "*batch K 2"], distortion: Float[Tensor, "*camera k"]
) -> tuple[Float[Tensor, "*out K 2"], Bool[Tensor, "*out K"]]:
    """Return where a lens shows points of the plane at depth 1, both without unit, and which are in its view.

    With r^2 = x^2 + y^2 and the factor L = (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6):

        x' = x L + 2 p1 x y + p2 (r^2 + 2 x^2),   y' = y L + p1 (r^2 + 2 y^2) + 2 p2 x y

    The polynomials describe the lens as far as r L grows and L is moderate. Farther out they fold: points
    outside the view would return into the picture; or they explode: one point beside the camera would
    outweigh all others. From that radius (see `field_limit`) the function continues along each ray from the
    middle in proportion to r, so it is continuous, and nothing returns. Gradients take that radius as
    constant.

    Args:
        points: x / z and y / z.
        distortion: (k1, k2, p1, p2[, k3[, k4, k5, k6]]).

    Source: OpenCV, "Camera Calibration and 3D Reconstruction".
    """
    lens, points = _lens(distortion), expect("points", points, None, 2)
    share, inside = _inwards(points, lens)
    return _polynomials(points * share, lens) / share, inside


def undistort(
    points: Float[Tensor, "*batch K 2"], distortion: Float[Tensor, "*camera k"]
) -> Float[Tensor, "*out K 2"]:
    """Invert `distort` by Newton's method: first for the radius, between bounds, then for the point.

    The number of steps is fixed. Only the last two are differentiated, which makes first and second
    derivatives exact in both arguments. Towards the limit of the lens's view the inverse steepens; at it, it
    has no derivative.

    Args:
        points: image points as a lens shows them, at depth 1, without unit.
        distortion: as in `distort`.
    """
    lens = _lens(distortion)
    seen = expect("points", points, None, 2)
    with torch.no_grad():
        fixed = _Lens(*(part.detach() for part in lens))
        found = _undistort_radius(seen.detach(), fixed)
        for _ in range(STEPS - 2):
            found = _newton_step(found, seen.detach(), fixed)
    for _ in range(2):
        found = _newton_step(found, seen, lens)
    return found


def field_limit(distortion: Float[Tensor, "*camera k"]) -> Float[Tensor, "*camera"]:
    """Return the radius at depth 1 up to which r L grows, the edge of the lens's view; infinite without one.

    It is the first positive root of the derivative of r L(r^2), or, if that comes first, where L reaches 10.
    The search ends at r = 1000 (89.9 degrees), in steps of 2 %, and misses a fall and rise within one step.
    It has no gradient.
    """
    limit = _lens(distortion).limit
    return torch.where(limit < GRID[1], limit.sqrt(), torch.inf)


LARGEST_FACTOR = 10.0
"""L up to which a lens is used: no lens enlarges the edge of its picture tenfold."""


class _Lens(NamedTuple):
    """Coefficients that broadcast to the points, and the limit of r^2."""

    radial: Float[Tensor, "*camera 6"]
    """k1, k2, k3, k4, k5, k6."""
    tangential: Float[Tensor, "*camera 2"]
    limit: Float[Tensor, "*camera"]
    """Of r^2: finite, as the powers in L overflow."""


def _lens(distortion: Tensor) -> _Lens:
    coefficients = expect("distortion", distortion, None)
    count = coefficients.shape[-1]
    if count not in COEFFICIENTS:
        raise ValueError(
            "distortion: expected 4, 5 or 8 coefficients (k1, k2, p1, p2[, k3[, k4, k5, k6]]), "
            f"got shape {tuple(coefficients.shape)}"
        )
    if count > 8:
        expect_values(distortion=(coefficients[..., 8:] == 0, "no thin prism and no tilt, zeros after k6"))
    full = torch.nn.functional.pad(coefficients[..., :8], (0, max(8 - count, 0)))
    k1, k2, p1, p2, *rest = full.unbind(-1)
    radial = torch.stack((k1, k2, *rest), -1)
    return _Lens(radial, torch.stack((p1, p2), -1), _limit(radial.detach()))


def _limit(radial: Float[Tensor, "*camera 6"]) -> Float[Tensor, "*camera"]:
    """Return the smallest s = r^2 at which d(r N / D) / dr is 0 or L = N / D is large, or the grid's end."""
    k1, k2, k3, k4, k5, k6 = radial.unbind(-1)
    # N D + 2 s (N' D - N D'), which has the derivative's sign; powers 1 to 6 of s, as the constant is 1.
    slope = torch.stack(
        (
            3 * k1 - k4,
            5 * k2 - 3 * k5 + k1 * k4,
            7 * k3 - 5 * k6 + 3 * k2 * k4 - k1 * k5,
            5 * k3 * k4 - 3 * k1 * k6 + k2 * k5,
            3 * k3 * k5 - k2 * k6,
            k3 * k6,
        ),
        -1,
    )
    # M D - N, from M - 1 at s = 0: negative before a pole, unless N is, and then r L has turned before.
    upper, lower = (torch.stack(k, -1) for k in ((k1, k2, k3), (k4, k5, k6)))
    large = (LARGEST_FACTOR * lower - upper) / (LARGEST_FACTOR - 1)
    others = torch.nn.functional.pad(torch.stack((large, lower), -2), (0, 3))
    turns, wide, poles = _first_roots(torch.cat((slope[..., None, :], others), -2)).unbind(-1)
    # A pole that a root of N cancels to rounding is none.
    there = torch.where(poles < torch.inf, poles, 1)
    value = 1 + there * (k1 + there * (k2 + there * k3))
    fall = (k4 + there * (2 * k5 + there * 3 * k6)).abs()
    cancelled = (poles < torch.inf) & (value.abs() <= 64 * torch.finfo(there.dtype).eps * there * fall)
    return torch.minimum(turns, torch.where(cancelled, torch.inf, wide)).clamp(max=GRID[1])


GRID = (1e-3, 1e6, 512)
"""Grid of the root search in s = r^2: 0, then first value, last value, and their number in steps of 4 %. The
sixth power of the last is still a number in float32."""

REFINEMENTS, PARTS = 8, 64
"""How often the step with the root is divided, and into how many parts: 48 bits, after 5 of the grid."""


def _first_roots(coefficients: Float[Tensor, "*camera n"]) -> Float[Tensor, "*camera"]:
    """Return the smallest s > 0 at which 1 + a1 s + ... + an s^n turns negative; infinite if it never does.

    No eigenvalues: a GPU would be waited for. A fixed grid and its refinements are a fixed number of steps.
    """
    first, last, count = GRID
    like = {"dtype": coefficients.dtype, "device": coefficients.device}
    grid = torch.logspace(math.log10(first), math.log10(last), count, **like)
    grid = torch.cat((grid.new_zeros(1), grid)).expand(*coefficients.shape[:-1], count + 1)
    low, high, found = _first_negative(coefficients, grid)
    parts = torch.linspace(0, 1, PARTS + 1, **like)
    for _ in range(REFINEMENTS):
        low, high, _ = _first_negative(coefficients, torch.lerp(low, high, parts))
    return torch.where(found, high, torch.inf)[..., 0]


def _first_negative(coefficients: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value before the first with a negative polynomial, that one, and whether there is any."""
    value = torch.zeros_like(s)
    for a in reversed(coefficients.unbind(-1)):
        value = (value + a[..., None]) * s
    negative = value < -1
    at = negative.int().argmax(-1, keepdim=True)
    before, here = (s.gather(-1, i) for i in ((at - 1).clamp(min=0), at))
    return before, here, negative.any(-1, keepdim=True)


def _factor(s: Tensor, radial: Tensor) -> tuple[Tensor, Tensor]:
    """Return L and its derivative by s = r^2."""
    k1, k2, k3, k4, k5, k6 = (k[..., None] for k in radial.unbind(-1))
    upper = 1 + s * (k1 + s * (k2 + s * k3))
    lower = 1 + s * (k4 + s * (k5 + s * k6))
    upper_slope = k1 + s * (2 * k2 + s * 3 * k3)
    lower_slope = k4 + s * (2 * k5 + s * 3 * k6)
    return upper / lower, (upper_slope * lower - upper * lower_slope) / (lower * lower)


def _inwards(points: Tensor, lens: _Lens) -> tuple[Tensor, Tensor]:
    """Return the factor that brings each point into the lens's view (1 inside it), and which are inside."""
    s = (points * points).sum(-1)
    outside = s > lens.limit[..., None]
    limit = torch.where(outside, lens.limit[..., None], 1)
    return (limit / torch.where(outside, s, 1)).sqrt()[..., None], ~outside


def _polynomials(points: Tensor, lens: _Lens) -> Tensor:
    squared = points * points
    s = squared.sum(-1, keepdim=True)
    factor, _ = _factor(s[..., 0], lens.radial)
    tilt = lens.tangential[..., None, :]  # of y and of x
    across = 2 * points.prod(-1, keepdim=True) * tilt
    return points * factor[..., None] + across + tilt.flip(-1) * (s + 2 * squared)


def _undistort_radius(seen: Tensor, lens: _Lens) -> Tensor:
    """Invert without tangential terms: r L(r^2) = |seen| in the lens's view, proportional outside."""
    shown = safe_norm(seen)
    limit = lens.limit[..., None].sqrt()
    at_limit, _ = _factor(limit * limit, lens.radial)
    low, high = torch.broadcast_tensors(torch.zeros_like(shown), limit)
    r, moved = torch.minimum(shown, limit), torch.full_like(high, torch.inf)
    for _ in range(RADIAL_STEPS):
        factor, slope = _factor(r * r, lens.radial)
        excess = r * factor - shown
        low, high = torch.where(excess < 0, r, low), torch.where(excess < 0, high, r)
        step = excess / (factor + 2 * r * r * slope)
        # Halve the bounds where Newton's step leaves them, or is not half as long as the last.
        slow = (r - step < low) | (r - step > high) | (2 * step.abs() > moved)
        step = torch.where(slow, r - (low + high) / 2, step)
        r, moved = r - step, step.abs()
    outside = shown > limit * at_limit
    r = torch.where(outside, shown / at_limit, r)
    return seen * torch.where(shown > 0, r / torch.where(shown > 0, shown, 1), 1)[..., None]


def _newton_step(found: Tensor, seen: Tensor, lens: _Lens) -> Tensor:
    """Take one step towards the points that the lens shows at ``seen``."""
    share, inside = _inwards(found, lens)
    inner = found * share
    shown = _polynomials(inner, lens)
    x, y = inner.unbind(-1)
    p1, p2 = (p[..., None] for p in lens.tangential.unbind(-1))
    factor, slope = _factor(x * x + y * y, lens.radial)
    a = factor + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    b = c = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    d = factor + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
    # Outside, the part along the ray from the middle is proportional: J (I - n n^T) + shown n^T / r there.
    outside = ~inside
    r = torch.where(outside, x * x + y * y, 1).sqrt()
    n, m = x / r, y / r
    along, down = (shown / r[..., None]).unbind(-1)
    along, down = along - a * n - b * m, down - c * n - d * m
    a, b = torch.where(outside, a + along * n, a), torch.where(outside, b + along * m, b)
    c, d = torch.where(outside, c + down * n, c), torch.where(outside, d + down * m, d)
    e, f = (shown / share - seen).unbind(-1)
    return found - torch.stack((d * e - b * f, a * f - c * e), -1) / (a * d - b * c)[..., None]
