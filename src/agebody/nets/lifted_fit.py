"""Fits that begin at the lifter's estimates, with arms or legs of the other side where that is likelier."""

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
from agebody.cameras import Camera
from agebody.cameras.camera import Size, as_size, expect_camera
from agebody.checks import Weights, expand_weights, expect
from agebody.fitting.frames import AIONHMR, fit_keypoints
from agebody.keypoints import KeypointLayout, get_layout
from agebody.nets.lifter import Estimate, Lifter
from agebody.optim.problem import Stage
from agebody.optim.stages import Fit, join_fits

ARMS = ("shoulder", "elbow", "wrist", "hand")
LEGS = ("hip", "knee", "ankle", "foot", "heel", "toe")
EXCHANGED = 1 / 30
"""Share of people whose arms a detector gives to the other side, and of those whose legs: an exchange must
reduce the cost, which is minus the logarithm of a probability, by that of these odds."""


class LiftedFit(NamedTuple):
    """Fits from estimates, and the points that they were fitted to."""

    fit: Fit
    """Errors are distances from the points of ``source``."""
    source: Int[Tensor, "*batch K"]
    """Which of the keypoints is the point of each name: another one where sides were exchanged."""


@torch.no_grad()
def fit_lifted(
    lifter: Lifter,
    body: BodyModel,
    keypoints: Float[Tensor, "*batch K 2"],
    camera: Camera,
    *,
    layout: str | KeypointLayout = "coco17",
    weights: Weights = None,
    size: Size | None = None,
    stages: Sequence[Stage] = AIONHMR[-1:],
    **options: Any,
) -> LiftedFit:
    """Fit bodies to keypoints from the lifter's estimates, which are evidence.

    Detectors give arms or legs to the wrong side, and a twisted body fits these points, too. So where the
    lifter trusts the points more with the sides of arms, or of legs, exchanged, people are also fitted to
    these, and what is more probable is kept. If a whole person is exchanged, no points of one image tell.

    Args:
        lifter: such as `Lifter.load` returns.
        body, keypoints, camera, layout, weights: as in `fit_keypoints`.
        size: width and height of the images [pixels], which tell whether somebody is cut off.
        stages: the last one of `AIONHMR` alone is enough.
        options: of `fit_keypoints`, but no start.
    """
    expect_body(body)
    expect_camera(camera)
    layout = get_layout(layout)
    batch = expect("keypoints", keypoints, len(layout), 2).shape[:-2]
    trust = expand_weights(keypoints.new_ones(()) if weights is None else weights, keypoints.shape[:-1])
    assert trust is not None  # as weights were given
    size = None if size is None else as_size(size, keypoints)

    def flat(value: Any, *entry: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.expand(*batch, *entry).reshape(-1, *entry)

    points, trust, size = flat(keypoints, *keypoints.shape[-2:]), flat(trust, len(layout)), flat(size, 2)
    lens = camera.expand(*batch).map(lambda part: part.reshape(-1, *part.shape[len(batch) :]))
    options = tree_map(flat, options)

    def given(rows: Tensor, source: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of some people, each of whose points is that of a source."""
        some = {"weights": trust[rows][:, source], "layout": layout}
        some |= tree_map(lambda part: part[rows] if isinstance(part, Tensor) else part, options)
        return [body, points[rows][:, source], lens.map(lambda part: part[rows])], some

    def estimate(source: Tensor) -> tuple[Estimate, Tensor]:
        """Return everybody's estimates, and how far they trust all points together."""
        where, some = given(every, source)
        known = {name: some.get(name) for name in ("age_offset", "age_class", "years", "depth")}
        found = lifter.estimate(*where, **known, layout=layout, weights=some["weights"], size=size)
        sure = found.trust.clamp(min=torch.finfo(found.trust.dtype).tiny).log()
        return found, torch.where(some["weights"] > 0, sure, 0).sum(-1)

    def fit(rows: Tensor, source: Tensor, found: Estimate) -> Fit:
        where, some = given(rows, source)
        start, sd = tree_map(lambda part: part[rows], (found.parameters, found.start_sd))
        return fit_keypoints(*where, **some, start=start, start_sd=sd, stages=stages)

    own = torch.arange(len(layout), device=points.device)
    every = torch.arange(len(points), device=points.device)
    source = own.repeat(len(points), 1)
    first, sure = estimate(own)
    best = fit(every, own, first)
    cost, odds = best.report.cost, math.log(1 / EXCHANGED - 1)
    for exchange in exchanges(layout, own):
        found, other = estimate(exchange)
        rows = ((other > sure) & (cost > odds)).nonzero()[:, 0]  # no cost is below 0
        if not len(rows):
            continue
        new = fit(rows, exchange, found)
        gained = new.report.cost + odds < cost[rows]
        cost = cost.index_put((rows[gained],), new.report.cost[gained] + odds)
        source = source.index_put((rows[gained],), exchange)
        spent = best.report.iterations.index_add(0, rows, new.report.iterations)
        best = _replace_rows(best, rows[gained], _select(new, gained))
        best = best._replace(report=best.report._replace(iterations=spent))
    return LiftedFit(join_fits([best], batch), source.reshape(*batch, len(layout)))


def exchanges(layout: KeypointLayout, own: Int[Tensor, " K"]) -> Iterator[Int[Tensor, " K"]]:
    """Yield for the arms, then for the legs, the point that each point is with left and right exchanged."""
    flip = own.new_tensor(layout.flip)
    for parts in (ARMS, LEGS):
        limb = own.new_tensor([any(part in name for part in parts) for name in layout.names]).bool()
        source = torch.where(limb, flip, own)
        if not torch.equal(source, own):
            yield source


def _select(fit: Fit, rows: Tensor) -> Fit:
    return tree_map(lambda part: part[rows] if isinstance(part, Tensor) else part, fit)


def _replace_rows(fit: Fit, rows: Tensor, new: Fit) -> Fit:
    def put(old: Any, value: Any) -> Any:
        return old.index_put((rows,), value) if isinstance(old, Tensor) else old

    return tree_map(put, fit, new)
