"""Fits that start from the lifter's estimates, with exchanged arms or legs where that is more probable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.cameras import Camera, box_around
from agebody.cameras.camera import Size, as_size, expect_camera
from agebody.checks import Weights, expect, flatten, read_confidences
from agebody.engine.trees import put_rows, take_rows, unflatten, without_gradients
from agebody.fitting.frames import AIONHMR, fit_keypoints
from agebody.keypoints import KeypointLayout, get_layout, limbs
from agebody.nets.lifter import Estimate, Lifter
from agebody.optim.problem import Stage
from agebody.optim.stages import Fit, fit_error

EXCHANGED = 1 / 30
"""Share of people whose arms a detector exchanges, and of those whose legs: an exchange must reduce the cost,
a negative log-probability, by more than the logarithm of these odds."""
FAR = 0.02
"""Mean distance of keypoints from a fit, as a share of the larger side of the box around them, above which
another fit is tried: twice the usual noise of keypoints."""


class LiftedFit(NamedTuple):
    """Fits from estimates, and the points that they were fitted to."""

    fit: Fit
    """``error`` counts all points of ``source``, also those of others; ``start_error`` is without these."""
    source: Int[Tensor, "*batch K"]
    """Which of the keypoints is the point of each name: another one where sides were exchanged."""


@without_gradients
def fit_lifted(
    lifter: Lifter,
    body: BodyModel,
    keypoints: Float[Tensor, "*batch K 2"],
    camera: Camera,
    *,
    layout: str | KeypointLayout = "coco17",
    weights: Weights = None,
    size: Size | None = None,
    stages: Sequence[Stage] = AIONHMR[1:],
    **options: Any,
) -> LiftedFit:
    """Fit bodies to keypoints from the lifter's estimates, which are also priors.

    Keypoints whose ``trust`` is 0 are left out: those far from the estimate, which belong to other people,
    and those of least confidence.

    Detectors exchange left and right arms or legs, and a twisted body fits these points, too. So where the
    lifter trusts the points more with the sides of arms, or of legs, exchanged, people are also fitted to
    these, and the more probable fit is kept. The exchange of a whole person cannot be detected in one image.

    Args:
        lifter: such as `Lifter.load` returns.
        body, keypoints, camera, layout, weights: as in `fit_keypoints`.
        size: width and height of the images [pixels], which determine whether a person is truncated.
        stages: the last one is enough for most people. All are run for those whose keypoints it leaves far
            from the body, as in real photographs, where estimates are farther off than in training; the
            cheaper fit is kept.
        options: of `fit_keypoints`, but no start.
    """
    expect_body(body)
    expect_camera(camera, of_fit=True)
    layout = get_layout(layout)
    batch = expect("keypoints", keypoints, len(layout), 2).shape[:-2]
    confidences = read_confidences(weights, keypoints[..., 0])
    size = None if size is None else as_size(size, keypoints)

    def flat(value: Any, entry_dims: int = 0) -> Any:
        return flatten(value, batch, entry_dims) if isinstance(value, Tensor) else value

    points, confidences, size = flat(keypoints, 2), flat(confidences, 1), flat(size, 1)
    lens = camera.expand(*batch).map(lambda part: flatten(part, batch, part.dim() - len(batch)))
    options = tree_map(flat, options)
    own = torch.arange(len(layout), device=points.device)
    every = torch.arange(len(points), device=points.device)

    def given(rows: Tensor, source: Tensor, weights: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of some people, each of whose points is that of a source."""
        some = {"weights": weights[rows][:, source], "layout": layout}
        return [body, points[rows][:, source], take_rows(lens, rows)], some | take_rows(options, rows)

    def estimate(source: Tensor, weights: Tensor) -> Estimate:
        """Return all estimates."""
        where, some = given(every, source, weights)
        known = {name: some.get(name) for name in ("age_offset", "age_class", "years", "depth")}
        return lifter.estimate(*where, **known, layout=layout, weights=some["weights"], size=size)

    first = estimate(own, confidences)
    used = torch.where(first.trust > 0, confidences, 0)

    def certainty(found: Estimate, source: Tensor) -> Tensor:
        """Return the log-probability that all points are right."""
        sure = found.trust.clamp(min=torch.finfo(found.trust.dtype).tiny).log()
        return torch.where(used[:, source] > 0, sure, 0).sum(-1)

    def fit(rows: Tensor, source: Tensor, found: Estimate, stages: Sequence[Stage]) -> Fit:
        where, some = given(rows, source, used)
        start, sd = take_rows((found.parameters, found.start_sd), rows)
        return fit_keypoints(*where, **some, start=start, start_sd=sd, stages=stages)

    sure, best = certainty(first, own), fit(every, own, first, stages[-1:])
    cost, source = best.report.cost, own.repeat(len(points), 1)

    def consider(rows: Tensor, other: Tensor, found: Estimate, odds: float) -> None:
        """Fit some people in all stages to the points of a source, and keep what is more probable."""
        nonlocal best, cost, source
        if not len(rows):
            return
        new = fit(rows, other, found, stages)
        gained = new.report.cost + odds < cost[rows]
        cost = cost.index_put((rows[gained],), new.report.cost[gained] + odds)
        source = source.index_put((rows[gained],), other)
        spent = best.report.iterations.index_add(0, rows, new.report.iterations)
        best = put_rows(best, rows[gained], take_rows(new, gained))
        best = best._replace(report=best.report._replace(iterations=spent))

    low, high = box_around(points, weights=used).split(2, -1)
    if len(stages) > 1:
        consider((best.error > FAR * (high - low).amax(-1)).nonzero()[:, 0], own, first, 0.0)
    odds = math.log(1 / EXCHANGED - 1)
    for exchange in exchanges(layout, own):
        found = estimate(exchange, used)
        rows = (certainty(found, exchange) > sure) & (cost > odds)  # no cost is below 0
        consider(rows.nonzero()[:, 0], exchange, found, odds)
    pixels = lens.project(body.keypoints(layout, best.parameters)).pixels
    observed = points.gather(1, source[..., None].expand_as(points))
    confidences = confidences.gather(1, source)
    best = best._replace(error=fit_error(pixels, observed, confidences))
    return unflatten(LiftedFit(best, source), batch)


def exchanges(layout: KeypointLayout, own: Int[Tensor, " K"]) -> Iterator[Int[Tensor, " K"]]:
    """Yield for the arms, then for the legs, the indices of points with left and right exchanged."""
    flip = own.new_tensor(layout.flip)
    for limb in torch.from_numpy(limbs(layout)).to(own.device):
        source = torch.where(limb, flip, own)
        if not torch.equal(source, own):
            yield source
