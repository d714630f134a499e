"""Depths of the people of one image: depth-conditioned translation optimisation (DTO), in closed form.

A fit of one person determines the width of the body's image, and hardly its distance: twice the size at twice
the distance looks the same. All people together provide two more cues: how far behind each other they stand,
from a depth map up to scale and shift, and the likely stature of each. With d the mean of the depth map over
a person, z the mean depth of the fitted body and h its stature, a body of stature mu would be at
t = mu z / h. DTO places all people on one line z' = X d + Y, the most likely one through these points (d, t),
and scales each body about the camera centre by s = z' / z, which changes no pixel.

Source: Wang et al., Towards metric-aware multi-person mesh recovery by jointly optimizing human crowd in
camera space, 2025. Constants that the paper does not give are those of its public code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.age.values import TALLEST
from agebody.cameras.camera import Size, as_size
from agebody.checks import (
    Weights,
    apply_mask,
    expand_weights,
    expect,
    expect_numbers,
    expect_values,
    read_number,
    read_positive,
)
from agebody.crowd.height_prior import HeightPrior, is_stature
from agebody.files import read_flag

DISPARITY_MIN_SLOPE = 20.0
"""DTO's smallest slope for the reciprocal of Depth Anything V2's relative disparity. It does not apply to
other depth maps: for a map in metres the slope is near 1."""
MIN_CORRELATION = 0.5
"""Smallest correlation of the reliefs for which the slope of a body is used."""
FARTHEST = 1000.0
"""Depths of which all are larger are in another unit [m]."""
MIN_PEOPLE = 2
MAX_DROPPED = 10
"""How many people may be dropped per group because they would be too tall."""
MIN_SHARE = 0.25
"""Share of the shorter side of the image that 2 m must cover for a person to count as near."""


class Placement(NamedTuple):
    """Depths of all people in one space.

    People who could not be placed keep their depth and height, with scale 1; people of weight 0 have depth
    and height 0.
    """

    depth: Float[Tensor, "*images P"]
    """z' [m]"""
    scale: Float[Tensor, "*images P"]
    """s = z' / z"""
    height: Float[Tensor, "*images P"]
    """h' = s h [m]"""
    placed: Bool[Tensor, "*images P"]
    """Whether a person is on the line of the group."""
    slope: Float[Tensor, "*images 2"]
    """X of the near and the far group, metres per unit of the depth map; 0 if a group was not solved."""
    shift: Float[Tensor, "*images 2"]
    """Y of the near and the far group [m]."""
    bounded: Bool[Tensor, "*images 2"]
    """Whether the slope is at its lower bound: people stand in one plane, or their heights give less."""
    people: Int[Tensor, "*images 2"]
    """Number of people on each line. A line of two with a free slope fits both priors exactly, so it is not
    overdetermined."""
    deviation: Float[Tensor, "*images"]
    """Mean of |h' - mu| / sigma over the placed people; NaN if there are none."""


def place_people(
    depth: Float[Tensor, "*images P"],
    rendered_depth: Float[Tensor, "*images P"],
    height: Float[Tensor, "*images P"],
    prior: HeightPrior,
    *,
    weights: Weights = None,
    far: Bool[Tensor, "*images P"] | None = None,
    spread: Float[Tensor, "*images P"] | None = None,
    body_slope: Float[Tensor, "*images P"] | None = None,
    body_correlation: Float[Tensor, "*images P"] | None = None,
    low_depth: Float[Tensor, "*images P"] | None = None,
    low_rendered_depth: Float[Tensor, "*images P"] | None = None,
    use_down: bool = True,
    min_slope: float = 0.0,
    max_height: float = 2.1,
) -> Placement:
    """Compute the most likely depths of all people of each image.

        min over X, Y of  sum_i  ((h_i (X d_i + Y) / z_i - mu_i) / sigma_i)^2

    Vectorised over images, near and far groups and people, and differentiable in all lengths. Values are
    checked with one device synchronisation, but not while compiling or inside a torch.func transform.

    Guards, applied to each group in this order:

    - X is at least X_min: the mean of the slopes of the bodies with a correlation above ``MIN_CORRELATION``,
      weighted by it, or ``min_slope`` without such bodies.
    - If the standard deviation of the depths of people is below that within a body (their mean ``spread``),
      they stand in one plane: X = X_min.
    - While anyone would be taller than ``max_height`` or behind the camera, the worst person is dropped and
      the rest solved again, up to ``MAX_DROPPED`` times; a group of two is then not solved. Two people on a
      line with a free slope have the mean statures of their priors, whatever these are.
    - With ``use_down``, the near group is solved a second time from the depths of the lowest tenth of each
      person's pixels, near the ground. This line counts if as many people are on it and their mean deviation
      is smaller; a line of two with a free slope does not count.
    - Groups of fewer than two are not solved. The far group is moved back as a whole until the first of all
      far people is as far as the last of all near ones; people who then would be too tall are dropped.

    Args:
        depth: d, mean of the depth map over each person, in any unit; grows away from the camera.
        rendered_depth: z, mean depth of each fitted body [m].
        height: h, stature of each body in its rest pose [m].
        prior: mu and sigma of each person [m], of the same shape.
        weights: broadcast to the people; people of weight 0 are ignored, even NaN. A weight multiplies
            1 / sigma^2.
        far: people too far for one line through all, see `is_far`; all near if None.
        spread: standard deviation of the depth map within each person; zero if None.
        body_slope: metres per unit of the depth map within each body.
        body_correlation: reliability of these slopes.
        low_depth: d of the lowest tenth of each person's pixels, as `mask_depths` returns it.
        low_rendered_depth: z of these pixels [m].
        use_down: solve the near group a second time by these, as DTO's code does, which helps where the
            ground is clear; without them it has no effect.
        min_slope: X_min if no body determines it [metres per unit of the depth map]. 0 keeps the order of
            the depth map; ``DISPARITY_MIN_SLOPE`` is DTO's.
        max_height: largest plausible stature [m].
    """
    depth = expect("depth", depth, None)
    given = {
        "rendered_depth": rendered_depth,
        "height": height,
        "prior.mean": prior.mean,
        "prior.sd": prior.sd,
        "spread": spread,
        "body_slope": body_slope,
        "body_correlation": body_correlation,
        "low_depth": low_depth,
        "low_rendered_depth": low_rendered_depth,
    }
    for name, tensor in given.items():
        if tensor is not None and expect(name, tensor, None).shape != depth.shape:
            raise ValueError(
                f"{name}: expected the shape of depth, {tuple(depth.shape)}, got {tuple(tensor.shape)}"
            )
    min_slope = read_number("min_slope", min_slope)
    max_height = read_positive("max_height", max_height, "a length", " [m]", finite=False)
    if (body_slope is None) != (body_correlation is None):
        raise ValueError("body_slope, body_correlation: expected both or neither")
    if (low_depth is None) != (low_rendered_depth is None):
        raise ValueError("low_depth, low_rendered_depth: expected both or neither")
    if far is not None and (far.dtype != torch.bool or far.shape != depth.shape):
        raise ValueError(
            f"far: expected booleans of shape {tuple(depth.shape)}, got {far.dtype} {tuple(far.shape)}"
        )
    weights = expand_weights(weights, depth.shape)
    confidence = torch.ones_like(depth) if weights is None else weights.to(depth.dtype)
    present = confidence != 0
    near = (present & (rendered_depth <= FARTHEST)).any(-1, keepdim=True)
    length = "finite lengths above 0 of all people of non-zero weight"
    someone = f"{length}, and someone within {FARTHEST:g} m of the camera"
    statures = f"statures in metres, above 0 and up to {TALLEST:g}, of all people of non-zero weight"
    expect_values(
        weights=((confidence >= 0) & confidence.isfinite(), "finite numbers of 0 or more"),
        depth=(~present | depth.isfinite(), "finite depths of all people of non-zero weight"),
        rendered_depth=(~present | (_is_length(rendered_depth) & near), someone),
        height=(~present | is_stature(height), statures),
        prior__mean=(~present | is_stature(prior.mean), statures),
        prior__sd=(~present | _is_length(prior.sd), length),
    )
    z, h, mean = (apply_mask(t, present) for t in (rendered_depth, height, prior.mean))
    safe_h, sd = (torch.where(present, t, 1) for t in (height, prior.sd))
    behind = torch.zeros_like(present) if far is None else far
    members = torch.stack((present & ~behind, present & behind), -2)
    lower = _lower_bound(members, body_slope, body_correlation, min_slope, depth.dtype)

    def people_at(given: Tensor, rendered: Tensor) -> _People:
        seen_at = torch.where(present, rendered, 1)
        return _People(
            depth=apply_mask(given, present)[..., None, :],
            rendered_depth=apply_mask(rendered, present)[..., None, :],
            height=h[..., None, :],
            likely_height=mean[..., None, :],
            sd=sd[..., None, :],
            likely_depth=(mean * seen_at / safe_h)[..., None, :],
            precision=(confidence * (safe_h / (sd * seen_at)).square())[..., None, :],
            spread=(torch.zeros_like(h) if spread is None else apply_mask(spread, present))[..., None, :],
        )

    people = people_at(depth, rendered_depth)
    fitted, line = _solve(people, members, lower, max_height)
    if read_flag("use_down", use_down) and low_depth is not None and low_rendered_depth is not None:
        expect_values(
            low_depth=(~present | low_depth.isfinite(), "finite depths of all people of non-zero weight"),
            low_rendered_depth=(~present | _is_length(low_rendered_depth), length),
        )
        down = people_at(low_depth, low_rendered_depth)
        second = _solve(down, members, lower, max_height)
        (count, far_off), (second_count, second_far_off) = (
            _quality(people, fitted, line),
            _quality(down, *second),
        )
        better = (second_count >= count) & (second_far_off < far_off)
        better = better & (torch.arange(2, device=better.device) == 0)  # of the near group alone
        each = better[..., None]
        people = _People(*(torch.where(each, b, a) for a, b in zip(people, down, strict=True)))
        fitted = torch.where(each, second[0], fitted)
        line = _Line(*(torch.where(better, b, a) for a, b in zip(line, second[1], strict=True)))
    line = _far_behind_near(people, members, fitted, line)
    found = line.slope[..., None] * people.depth + line.shift[..., None]
    followed = members[..., :1, :].any(-1) & (torch.arange(2, device=depth.device) == 1)
    free = _is_free_pair(fitted, line) & ~followed
    valid = fitted & (free[..., None] | (_excess(people, found, max_height) <= 0))
    placed = valid.any(-2)
    scale = torch.where(valid, found / torch.where(valid, people.rendered_depth, 1), 0).sum(-2)
    scale = torch.where(placed, scale, 1)
    deviations = torch.where(placed, (h * scale - mean).abs() / sd, 0).sum(-1)
    count = placed.sum(-1)
    return Placement(
        depth=z * scale,
        scale=scale,
        height=h * scale,
        placed=placed,
        slope=line.slope,
        shift=line.shift,
        bounded=line.bounded,
        people=fitted.sum(-1),
        deviation=torch.where(count > 0, deviations / count.clamp(min=1), torch.nan),
    )


def is_far(
    rendered_depth: Float[Tensor, "*people"], focal: float | Float[Tensor, "*#people"], size: Size
) -> Bool[Tensor, "*people"]:
    """Return which people are so far away that 2 m cover less than a quarter of the shorter image side.

    DTO's rule. For a reciprocal disparity of Depth Anything V2, DTO also counts people beyond 0.02 as far.

    Args:
        rendered_depth: mean depth of each body [m].
        focal: focal length [pixels].
        size: width and height of the image [pixels].
    """
    rendered_depth = expect("rendered_depth", rendered_depth)
    focal = expect_numbers("focal", focal, rendered_depth)
    expect_values(wait=False, focal=(focal > 0, "pixels above 0"))
    return 2 * focal < MIN_SHARE * as_size(size, rendered_depth).amin(-1) * rendered_depth


def _is_length(tensor: Tensor) -> Tensor:
    return (tensor > 0) & tensor.isfinite()


class _People(NamedTuple):
    """Inputs per person, (*images, 1, P)."""

    depth: Tensor
    rendered_depth: Tensor
    height: Tensor
    likely_height: Tensor
    sd: Tensor
    likely_depth: Tensor
    """Depth at which the body would have the mean stature of its prior [m]."""
    precision: Tensor
    """1 / variance of the likely depth."""
    spread: Tensor


class _Line(NamedTuple):
    """A line per group, (*images, 2)."""

    slope: Tensor
    shift: Tensor
    bounded: Tensor


def _fit(people: _People, fitted: Tensor, lower: Tensor) -> _Line:
    """Regress likely depths on depths, with a lower bound on the slope.

    Equal to DTO's solution by the sums A to E, but with centred variables: DTO's sums lose all digits when
    people stand close together.
    """
    weights = torch.where(fitted, people.precision, 0)
    total = weights.sum(-1, keepdim=True)
    share = weights / torch.where(total > 0, total, 1)
    mean = (share * people.depth).sum(-1, keepdim=True)
    likely = (share * people.likely_depth).sum(-1, keepdim=True)
    away = people.depth - mean
    variance = (share * away.square()).sum(-1)
    covariance = (share * away * (people.likely_depth - likely)).sum(-1)
    rounding = (8 * torch.finfo(mean.dtype).eps * mean[..., 0]).square()
    flat = (variance <= rounding) | _is_plane(people, fitted)
    slope = covariance / torch.where(flat, 1, variance)
    solved = fitted.sum(-1) >= MIN_PEOPLE
    bounded = solved & (flat | ~(slope >= lower))
    slope = torch.where(solved, torch.where(bounded, lower, slope), 0)
    return _Line(slope, torch.where(solved, likely[..., 0] - slope * mean[..., 0], 0), bounded)


def _is_plane(people: _People, fitted: Tensor) -> Tensor:
    """Return whether the depths of people vary less than those within a body."""
    count = fitted.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(fitted, people.depth, 0).sum(-1, keepdim=True) / count
    variance = torch.where(fitted, (people.depth - mean).square(), 0).sum(-1) / count[..., 0]
    spread = torch.where(fitted, people.spread, 0).sum(-1) / count[..., 0]
    return variance < spread.square()


def _lower_bound(
    members: Tensor, slope: Tensor | None, correlation: Tensor | None, default: float, dtype: torch.dtype
) -> Tensor:
    """Return X_min of each group."""
    if slope is None or correlation is None:
        return torch.full(members.shape[:-1], default, dtype=dtype, device=members.device)
    believed = members & (correlation > MIN_CORRELATION)[..., None, :]
    weights, slopes = (torch.where(believed, t[..., None, :], 0) for t in (correlation, slope))
    total = weights.sum(-1)
    mean = (weights * slopes).sum(-1) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, mean, default)


@torch.no_grad()
def _without_outliers(people: _People, members: Tensor, lower: Tensor, max_height: float) -> Tensor:
    """Return which people remain after dropping those who would be too tall."""
    places = torch.arange(members.shape[-1], device=members.device)
    fitted = members & (members.sum(-1, keepdim=True) >= MIN_PEOPLE)
    for _ in range(min(MAX_DROPPED, members.shape[-1])):
        line = _fit(people, fitted, lower)
        found = line.slope[..., None] * people.depth + line.shift[..., None]
        asked = fitted & ~_is_free_pair(fitted, line)[..., None]
        excess = torch.where(asked, _excess(people, found, max_height), -torch.inf)
        worst, index = excess.max(-1, keepdim=True)
        too_few = fitted.sum(-1, keepdim=True) <= MIN_PEOPLE
        fitted = fitted & ~((worst > 0) & ((places == index) | too_few))
    return fitted


def _solve(people: _People, members: Tensor, lower: Tensor, max_height: float) -> tuple[Tensor, _Line]:
    """Return which people are on the line of each group, and the lines."""
    fitted = _without_outliers(people, members, lower, max_height)
    return fitted, _fit(people, fitted, lower)


def _is_free_pair(fitted: Tensor, line: _Line) -> Tensor:
    """Return whether a line is of two people whose slope is free, so that both have their likely heights."""
    return (fitted.sum(-1) == MIN_PEOPLE) & ~line.bounded


def _quality(people: _People, fitted: Tensor, line: _Line) -> tuple[Tensor, Tensor]:
    """Return how many people are on each line, and their mean deviation; 0 of both for a free pair."""
    height = people.height * (line.slope[..., None] * people.depth + line.shift[..., None])
    height = height / torch.where(people.rendered_depth == 0, 1, people.rendered_depth)
    counted = fitted & ~_is_free_pair(fitted, line)[..., None]
    deviation = torch.where(counted, (height - people.likely_height).abs() / people.sd, 0).sum(-1)
    count = counted.sum(-1)
    return count, deviation / count.clamp(min=1)


def _excess(people: _People, found: Tensor, max_height: float) -> Tensor:
    """Return by how much bodies at these depths would be too tall [m]; infinite behind the camera."""
    height = people.height * found / torch.where(people.rendered_depth == 0, 1, people.rendered_depth)
    return torch.where(found > 0, height - max_height, torch.inf)


def _far_behind_near(people: _People, members: Tensor, fitted: Tensor, line: _Line) -> _Line:
    """Move the far line back to the last of the near people."""
    if members.shape[-1] == 0:
        return line
    near, far = members.unbind(-2)
    depth, rendered = people.depth[..., 0, :], people.rendered_depth[..., 0, :]
    solved = fitted[..., 0, :].any(-1)
    on_line = line.slope[..., :1] * depth + line.shift[..., :1]
    last = torch.where(near, torch.where(solved[..., None], on_line, rendered), -torch.inf).amax(-1)
    first = torch.where(far, line.slope[..., 1:] * people.depth[..., -1, :] + line.shift[..., 1:], torch.inf)
    first = first.amin(-1)
    both = near.any(-1) & fitted[..., 1, :].any(-1)
    gap = torch.where(both, last, 0) - torch.where(both, first, 0)
    moved = torch.stack((torch.zeros_like(gap), torch.relu(gap)), -1)
    return line._replace(shift=line.shift + moved)
