"""Lens distortion: OpenCV's radial and tangential terms, with an inverse, and without folds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.reduction import expect, safe_norm

COEFFICIENTS = (4, 5, 8)
"""How many there may be: (k1, k2, p1, p2), then k3, then (k4, k5, k6), in OpenCV's order."""

RADIAL_STEPS, STEPS = 32, 6
"""Of the inverse: for the radius, maybe from far away, then for the point, whose digits each step doubles."""


def distort(
    points: Float[Tensor, "*batch K 2"], distortion: Float[Tensor, "*camera k"]
) -> Float[Tensor, "*out K 2"]:
    """Where a lens shows points of the image plane at depth 1, both without unit.

    With r^2 = x^2 + y^2 and the factor L = (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6):

        x' = x L + 2 p1 x y + p2 (r^2 + 2 x^2),   y' = y L + p1 (r^2 + 2 y^2) + 2 p2 x y

    The polynomials describe the lens as far as r L grows. Farther out they fold: points outside the view
    would come back into the picture. From that radius on (see `field_limit`) the function goes on along each
    ray from the middle in proportion to r, so it stays continuous, and nothing comes back. Gradients take
    that radius as constant.

    Args:
        points: x / z and y / z.
        distortion: (k1, k2, p1, p2[, k3[, k4, k5, k6]]).

    Raises:
        TypeError, ValueError: an argument has another type or shape.

    Source: OpenCV, "Camera Calibration and 3D Reconstruction".
    """
    lens = _lens(distortion)
    return _distort(expect("points", points, None, 2), lens)


def undistort(
    points: Float[Tensor, "*batch K 2"], distortion: Float[Tensor, "*camera k"]
) -> Float[Tensor, "*out K 2"]:
    """The inverse of `distort`, by Newton's method: first for the radius, between bounds, then for the point.

    The number of steps is fixed. The last two are differentiated, which makes first and second derivatives
    right in both arguments. Towards the limit of the lens's view the inverse steepens; at it, it has no
    derivative.

    Args:
        points: image points as a lens shows them, at depth 1, without unit.
        distortion: as in `distort`.

    Raises:
        TypeError, ValueError: an argument has another type or shape.
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
    """Radius at depth 1 up to which r L grows: the edge of the lens's view; infinite where it always grows.

    It is the smallest positive root of the derivative of r L(r^2), or just below the pole of L if that comes
    first. Has no gradient. Eigenvalues are computed for it, for which a GPU is waited for.
    """
    return _lens(distortion).limit.sqrt()


BELOW_POLE = 0.9
"""Share of r^2 at a pole of L up to which the lens is believed: L is finite there."""


class _Lens(NamedTuple):
    """Coefficients that broadcast to the points, and the limit of r^2."""

    radial: Float[Tensor, "*camera 6"]
    """k1, k2, k3, k4, k5, k6."""
    tangential: Float[Tensor, "*camera 2"]
    limit: Float[Tensor, "*camera"]


def _lens(distortion: Tensor) -> _Lens:
    coefficients = expect("distortion", distortion, None)
    count = coefficients.shape[-1]
    if count not in COEFFICIENTS:
        raise ValueError(
            "distortion: expected 4, 5 or 8 coefficients (k1, k2, p1, p2[, k3[, k4, k5, k6]]), "
            f"got shape {tuple(coefficients.shape)}"
        )
    full = torch.nn.functional.pad(coefficients, (0, 8 - count))
    k1, k2, p1, p2, *rest = full.unbind(-1)
    radial = torch.stack((k1, k2, *rest), -1)
    return _Lens(radial, torch.stack((p1, p2), -1), _limit(radial.detach()))


def _limit(radial: Float[Tensor, "*camera 6"]) -> Float[Tensor, "*camera"]:
    """Smallest s = r^2 at which d(r N / D) / dr is zero or D nearly, with N and D the cubics of L in s."""
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
    return torch.minimum(_first_root(slope), BELOW_POLE * _first_root(torch.stack((k4, k5, k6), -1)))


def _first_root(coefficients: Float[Tensor, "*camera n"]) -> Float[Tensor, "*camera"]:
    """Smallest positive root of 1 + a1 s + ... + an s^n; infinite if there is none.

    In t = 1 / s the polynomial is monic whatever vanishes, so its companion matrix always exists.
    """
    n = coefficients.shape[-1]
    shift = torch.eye(n, dtype=coefficients.dtype, device=coefficients.device)[:-1]
    companion = torch.cat((-coefficients[..., None, :], shift.expand(*coefficients.shape[:-1], n - 1, n)), -2)
    roots = torch.linalg.eigvals(companion)
    tolerance = torch.finfo(coefficients.dtype).eps ** 0.5
    real = (roots.imag.abs() <= tolerance * roots.real) & (roots.real > 0)
    return 1 / torch.where(real, roots.real, 0).amax(-1)


def _factor(s: Tensor, radial: Tensor) -> tuple[Tensor, Tensor]:
    """L and its derivative by s = r^2."""
    k1, k2, k3, k4, k5, k6 = (k[..., None] for k in radial.unbind(-1))
    upper = 1 + s * (k1 + s * (k2 + s * k3))
    lower = 1 + s * (k4 + s * (k5 + s * k6))
    upper_slope = k1 + s * (2 * k2 + s * 3 * k3)
    lower_slope = k4 + s * (2 * k5 + s * 3 * k6)
    return upper / lower, (upper_slope * lower - upper * lower_slope) / (lower * lower)


def _inwards(points: Tensor, lens: _Lens) -> Tensor:
    """What brings each point into the lens's view: 1 inside it, limit / r outside."""
    s = (points * points).sum(-1)
    outside = s > lens.limit[..., None]
    limit = torch.where(outside, lens.limit[..., None], 1)
    return (limit / torch.where(outside, s, 1)).sqrt()[..., None]


def _distort(points: Tensor, lens: _Lens) -> Tensor:
    share = _inwards(points, lens)
    return _polynomials(points * share, lens) / share


def _polynomials(points: Tensor, lens: _Lens) -> Tensor:
    squared = points * points
    s = squared.sum(-1, keepdim=True)
    factor, _ = _factor(s[..., 0], lens.radial)
    tilt = lens.tangential[..., None, :]  # of y and of x
    across = 2 * points.prod(-1, keepdim=True) * tilt
    return points * factor[..., None] + across + tilt.flip(-1) * (s + 2 * squared)


def _undistort_radius(seen: Tensor, lens: _Lens) -> Tensor:
    """The inverse without tangential terms: r L(r^2) = |seen| in the lens's view, proportional outside."""
    shown = safe_norm(seen)
    limit = lens.limit[..., None].sqrt()
    at_limit, _ = _factor(torch.where(limit < torch.inf, limit, 0) ** 2, lens.radial)
    low, high = torch.broadcast_tensors(torch.zeros_like(shown), limit)
    r, moved = torch.minimum(shown, limit), torch.full_like(high, torch.inf)
    for _ in range(RADIAL_STEPS):
        factor, slope = _factor(r * r, lens.radial)
        excess = r * factor - shown
        low, high = torch.where(excess < 0, r, low), torch.where(excess < 0, high, r)
        step = excess / (factor + 2 * r * r * slope)
        # Halve the bounds where Newton's step leaves them, or is not half as long as the last.
        slow = (r - step < low) | (r - step > high) | (2 * step.abs() > moved)
        step = torch.where(slow & (high < torch.inf), r - (low + high) / 2, step)
        r, moved = r - step, step.abs()
    outside = shown > limit * at_limit
    r = torch.where(outside, shown / at_limit, r)
    return seen * torch.where(shown > 0, r / torch.where(shown > 0, shown, 1), 1)[..., None]


def _newton_step(found: Tensor, seen: Tensor, lens: _Lens) -> Tensor:
    """One step towards the points that the lens shows where they are seen."""
    share = _inwards(found, lens)
    inner = found * share
    shown = _polynomials(inner, lens)
    x, y = inner.unbind(-1)
    p1, p2 = (p[..., None] for p in lens.tangential.unbind(-1))
    factor, slope = _factor(x * x + y * y, lens.radial)
    a = factor + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    b = c = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    d = factor + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
    # Outside, the part along the ray from the middle is proportional: J (I - n n^T) + shown n^T / r there.
    outside = share[..., 0] < 1
    r = torch.where(outside, x * x + y * y, 1).sqrt()
    n, m = x / r, y / r
    along, down = (shown / r[..., None]).unbind(-1)
    along, down = along - a * n - b * m, down - c * n - d * m
    a, b = torch.where(outside, a + along * n, a), torch.where(outside, b + along * m, b)
    c, d = torch.where(outside, c + down * n, c), torch.where(outside, d + down * m, d)
    e, f = (shown / share - seen).unbind(-1)
    return found - torch.stack((d * e - b * f, a * f - c * e), -1) / (a * d - b * c)[..., None]
