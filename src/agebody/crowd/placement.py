"""Where the people of one image stand: depth-conditioned translation optimisation (DTO), in closed form.

A single-person fit knows how wide a body's image is, and hardly how far away the body is: twice as tall and
twice as far looks the same. Two things are known of all people together: who stands how far behind whom,
from a depth map up to its scale and shift, and how tall people are. With d the mean of the depth map over a
person, z the mean depth of the body as it was fitted and h its stature, the body of stature mu would be at
t = mu z / h. DTO puts everybody on one line z' = X d + Y through these points (d, t), the most likely one,
and scales each body about the centre of the camera by s = z' / z, which changes no pixel.

Source: Wang et al., Towards metric-aware multi-person mesh recovery by jointly optimizing human crowd in
camera space, 2025; its numbers where the paper has none are those of its public code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import Weights, apply_mask, expand_weights, expect
from agebody.crowd.height_prior import HeightPrior
from agebody.crowd.values import expect_values

DISPARITY_MIN_SLOPE = 20.0
"""DTO's least slope where the depth map is the reciprocal of Depth Anything V2's relative disparity. It has
no meaning for other maps: that of a map in metres is near 1."""
MIN_CORRELATION = 0.5
"""From which on a body's own relief says how many metres a unit of the depth map is."""
MIN_PEOPLE = 2


class Placement(NamedTuple):
    """People in one space. Who could not be placed keeps depth and height, with scale 1; who is absent has
    depth and height 0."""

    depth: Float[Tensor, "*images P"]
    """z' [m]"""
    scale: Float[Tensor, "*images P"]
    """s = z' / z"""
    height: Float[Tensor, "*images P"]
    """h' = s h [m]"""
    placed: Bool[Tensor, "*images P"]
    """Who stands on the line of the group."""
    slope: Float[Tensor, "*images 2"]
    """X of the near and the far people, metres for a unit of the depth map; 0 for a group not solved."""
    shift: Float[Tensor, "*images 2"]
    """Y of the near and the far people [m]."""
    bounded: Bool[Tensor, "*images 2"]
    """The slope is the least one: people stand in one plane, or their heights alone asked for less."""
    people: Int[Tensor, "*images 2"]
    """How many people each line goes through. One through two, with a slope of its own, rests on nothing but
    the two priors."""
    deviation: Float[Tensor, "*images"]
    """Mean of |h' - mu| / sigma over those who were placed; NaN where nobody was."""


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
    min_slope: float = 0.0,
    max_height: float = 2.1,
    max_dropped: int = 10,
) -> Placement:
    """The most likely places of all people of each image.

        min over X, Y of  sum_i  ((h_i (X d_i + Y) / z_i - mu_i) / sigma_i)^2

    Images, near and far groups and people are dimensions of one computation; it has no loop over data and is
    differentiable in all lengths. A device is waited for once, to look whether the arguments can be right;
    not where the function is compiled or within a transform of torch.func.

    Guards, in this order, for each group:

    - X is at least X_min, the mean of the slopes of bodies weighed by their correlations, of those above
      ``MIN_CORRELATION``; ``min_slope`` where there is none.
    - People whose depths differ by less (in standard deviation) than those within a body do (their mean
      ``spread``) stand in one plane: X = X_min.
    - Where somebody would be taller than ``max_height`` or behind the camera, the worst one is dropped and
      the rest solved again, ``max_dropped`` times; a group of two is then given up.
    - A group of less than two is not solved. Far people are moved back, all alike, until the first of them
      stands where the last of the near ones stands.

    Args:
        depth: d, mean of the depth map over each person, in any unit; larger is farther.
        rendered_depth: z, mean depth of each body as it was fitted [m].
        height: h, stature of each body in its rest pose [m].
        prior: mu and sigma of each person [m], of the same shape.
        weights: broadcast to the people; zero for those who are not there. A weight multiplies 1 / sigma^2.
        far: who is too far for the depth map to be of one piece with the near, see `is_far`; nobody if None.
        spread: of the depth map within each person; zero if None.
        body_slope: metres for a unit of the depth map within each body.
        body_correlation: how far that can be believed.
        min_slope: X_min where no body says it, in metres for a unit of the depth map. 0 keeps the order of
            the depth map; ``DISPARITY_MIN_SLOPE`` is DTO's.
        max_height: [m].
        max_dropped: how many people may be dropped.

    Raises:
        TypeError: an argument is no tensor of a floating type.
        ValueError: shapes differ, a slope is given without its correlation, or, of somebody who is there, a
            number is not finite, or a depth, height or deviation that was fitted is not above 0.
    """
    expect("depth", depth, None)
    given = {
        "rendered_depth": rendered_depth, "height": height, "prior.mean": prior.mean, "prior.sd": prior.sd,
        "spread": spread, "body_slope": body_slope, "body_correlation": body_correlation,
    }  # fmt: skip
    for name, tensor in given.items():
        if tensor is not None and expect(name, tensor, None).shape != depth.shape:
            raise ValueError(
                f"{name}: expected the shape of depth, {tuple(depth.shape)}, got {tuple(tensor.shape)}"
            )
    if (body_slope is None) != (body_correlation is None):
        raise ValueError("body_slope, body_correlation: expected both or neither")
    if far is not None and (far.dtype != torch.bool or far.shape != depth.shape):
        raise ValueError(
            f"far: expected booleans of shape {tuple(depth.shape)}, got {far.dtype} {tuple(far.shape)}"
        )
    weights = expand_weights(weights, depth.shape)
    there = torch.ones_like(depth, dtype=torch.bool) if weights is None else weights != 0
    _check_values(depth, rendered_depth, height, prior, there, weights)
    d, z, h, mean = (apply_mask(t, there) for t in (depth, rendered_depth, height, prior.mean))
    safe_z, safe_h, sd = (torch.where(there, t, 1) for t in (rendered_depth, height, prior.sd))
    confidence = there.to(depth.dtype) if weights is None else weights.to(depth.dtype)
    people = _People(
        d[..., None, :], z[..., None, :], h[..., None, :], (mean * safe_z / safe_h)[..., None, :],
        (confidence * (safe_h / (sd * safe_z)).square())[..., None, :],
        (torch.zeros_like(d) if spread is None else apply_mask(spread, there))[..., None, :],
    )  # fmt: skip
    behind = torch.zeros_like(there) if far is None else far
    members = torch.stack((there & ~behind, there & behind), -2)
    lower = _least_slope(members, body_slope, body_correlation, min_slope, depth.dtype)
    fitted = _without_outliers(people, members, lower, max_height, max_dropped)
    line = _fit(people, fitted, lower)
    line = _far_behind_near(people, members, fitted, line)
    found = line.slope[..., None] * people.depth + line.shift[..., None]
    right = fitted & (_excess(people, found, max_height) <= 0)
    placed = right.any(-2)
    moved = torch.where(right, found, 0).sum(-2)
    scale = torch.where(placed, moved / safe_z, 1)
    deviations = torch.where(placed, (h * scale - mean).abs() / sd, 0).sum(-1)
    count = placed.sum(-1)
    return Placement(
        torch.where(placed, moved, z), scale, h * scale, placed, line.slope, line.shift, line.bounded,
        fitted.sum(-1), torch.where(count > 0, deviations / count.clamp(min=1), torch.nan),
    )  # fmt: skip


def _check_values(
    depth: Tensor, z: Tensor, height: Tensor, prior: HeightPrior, there: Tensor, weights: Tensor | None
) -> None:
    length = "finite lengths above 0 of all who are there"
    above = lambda tensor: ~there | ((tensor > 0) & tensor.isfinite())  # noqa: E731
    trust = there if weights is None else weights
    expect_values(
        weights=((trust >= 0) & trust.isfinite(), "finite numbers from 0 on"),
        depth=(~there | depth.isfinite(), "finite depths of all who are there"),
        rendered_depth=(above(z), length),
        height=(above(height), length),
        prior__mean=(~there | prior.mean.isfinite(), "finite lengths of all who are there"),
        prior__sd=(above(prior.sd), length),
    )


def is_far(
    rendered_depth: Float[Tensor, "*people"],
    focal: float | Float[Tensor, "*#people"],
    size: tuple[float, float],
    *,
    min_share: float = 0.25,
) -> Bool[Tensor, "*people"]:
    """Who is so far that 2 m would cover less than a share of the shorter side of the image.

    DTO's rule. With a reciprocal disparity of Depth Anything V2 it also takes whoever is beyond 0.02 for far.

    Args:
        rendered_depth: mean depth of each body [m].
        focal: focal length [pixels].
        size: width and height of the image [pixels].
        min_share: the share.
    """
    expect("rendered_depth", rendered_depth)
    return 2 * focal < min_share * min(size) * rendered_depth


class _People(NamedTuple):
    """What is known of them, (*images, 1, P)."""

    depth: Tensor
    rendered_depth: Tensor
    height: Tensor
    likely_depth: Tensor
    """Where the body would have the stature of its prior's mean [m]."""
    precision: Tensor
    """1 / variance of that."""
    spread: Tensor


class _Line(NamedTuple):
    """Of each group, (*images, 2)."""

    slope: Tensor
    shift: Tensor
    bounded: Tensor


def _fit(people: _People, fitted: Tensor, lower: Tensor) -> _Line:
    """The regression of likely depths on depths, with a least slope.

    The same as DTO's solution in the sums A to E, from which the means have been taken out: those sums lose
    all digits where people stand close together.
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
    """Whether people differ in depth by less than a body does within."""
    count = fitted.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(fitted, people.depth, 0).sum(-1, keepdim=True) / count
    variance = torch.where(fitted, (people.depth - mean).square(), 0).sum(-1) / count[..., 0]
    spread = torch.where(fitted, people.spread, 0).sum(-1) / count[..., 0]
    return variance < spread.square()


def _least_slope(
    members: Tensor, slope: Tensor | None, correlation: Tensor | None, default: float, dtype: torch.dtype
) -> Tensor:
    """X_min of each group."""
    if slope is None or correlation is None:
        return torch.full(members.shape[:-1], default, dtype=dtype, device=members.device)
    believed = members & (correlation > MIN_CORRELATION)[..., None, :]
    weights, slopes = (torch.where(believed, t[..., None, :], 0) for t in (correlation, slope))
    total = weights.sum(-1)
    mean = (weights * slopes).sum(-1) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, mean, default)


@torch.no_grad()
def _without_outliers(
    people: _People, members: Tensor, lower: Tensor, max_height: float, max_dropped: int
) -> Tensor:
    """Who is left to be fitted."""
    places = torch.arange(members.shape[-1], device=members.device)
    fitted = members & (members.sum(-1, keepdim=True) >= MIN_PEOPLE)
    for _ in range(min(max_dropped, members.shape[-1])):
        line = _fit(people, fitted, lower)
        found = line.slope[..., None] * people.depth + line.shift[..., None]
        excess = torch.where(fitted, _excess(people, found, max_height), -torch.inf)
        worst, index = excess.max(-1, keepdim=True)
        too_few = fitted.sum(-1, keepdim=True) <= MIN_PEOPLE
        fitted = fitted & ~((worst > 0) & ((places == index) | too_few))
    return fitted


def _excess(people: _People, found: Tensor, max_height: float) -> Tensor:
    """By how much bodies at these depths would be too tall [m]; infinite at and behind the camera."""
    height = people.height * found / torch.where(people.rendered_depth == 0, 1, people.rendered_depth)
    return torch.where(found > 0, height - max_height, torch.inf)


def _far_behind_near(people: _People, members: Tensor, fitted: Tensor, line: _Line) -> _Line:
    """The far line moved back to where the near people end."""
    if members.shape[-1] == 0:
        return line
    near, far = members[..., 0, :], fitted[..., 1, :]
    depth, rendered = people.depth[..., 0, :], people.rendered_depth[..., 0, :]
    solved = fitted[..., 0, :].any(-1)
    on_line = line.slope[..., :1] * depth + line.shift[..., :1]
    last = torch.where(near, torch.where(solved[..., None], on_line, rendered), -torch.inf).amax(-1)
    first = torch.where(far, line.slope[..., 1:] * depth + line.shift[..., 1:], torch.inf).amin(-1)
    both = near.any(-1) & far.any(-1)
    gap = torch.where(both, last, 0) - torch.where(both, first, 0)
    moved = torch.stack((torch.zeros_like(gap), torch.relu(gap)), -1)
    return line._replace(shift=line.shift + moved)
