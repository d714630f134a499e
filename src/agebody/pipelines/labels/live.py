"""People in a stream of pictures: each picture is fitted in a few steps from the previous one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from agebody.annotations.people import People, join_people
from agebody.annotations.tracks import link_people
from agebody.body import BodyModel
from agebody.fitting.frames import AIONHMR
from agebody.nets import Lifter
from agebody.nets.lifter import Estimate
from agebody.optim.stages import Fit
from agebody.parameters import BodyParameters
from agebody.pipelines.labels.fitting import fit_people, lift, make_labels, people_cameras, with_ages
from agebody.pipelines.labels.quality import flag_labels
from agebody.pipelines.labels.records import Labels
from agebody.rotations import compose

STEPS = 3
"""Steps of a fit per picture."""
MEMORY = 4
"""Longest gap in the track of a person [pictures]."""
TURN_SD = 0.15
"""Standard deviation of a joint's rotation between two pictures [rad]."""
SHAPE_SD = {"betas": 0.1, "age_offset": 0.02}
"""Standard deviations of the shape of the previous picture, as a prior."""


class Stream:
    """Fits bodies to the people of one picture after another.

    The pose starts at the mean of the lifter's estimate and the previous pose, weighted by their variances,
    which is also a prior of the fit; shape, age and translation start at their previous values.

    Args:
        body: an `SMPLA`, or a layer of one age, with SMPL's joints.
        lifter: the lifter, as from `Lifter.load`.
        steps: number of iterations per fit.
        focal, fov: focal length or field of view of the camera, as in `fit_annotations`.
        ages: ages of people, as in `fit_annotations`.
    """

    def __init__(
        self,
        body: BodyModel,
        lifter: Lifter,
        *,
        steps: int = STEPS,
        focal: float | None = None,
        fov: float | None = None,
        **ages: Any,
    ) -> None:
        self.body, self.lifter, self.lens, self.ages = body, lifter, (focal, fov), ages
        self.stages = (AIONHMR[-1]._replace(max_iterations=steps),)
        self._seen: list[tuple[People, BodyParameters]] = []
        self._count = 0

    @torch.inference_mode()
    def __call__(self, people: People) -> Labels:
        """Return the labels of the people of the next picture; ``track`` identifies them over time."""
        people = with_ages(self.body, people, **self.ages)
        people, before, known = self._link(people)
        camera = people_cameras(self.body, people, *self.lens)
        fit = self._fit(people, camera, before, known)
        self._seen = [*self._seen[1 - MEMORY :], (people, fit.parameters)]
        return flag_labels(make_labels(self.body, people, camera, fit))

    def _fit(self, people: People, camera: Any, before: BodyParameters | None, known: Tensor) -> Fit:
        guess = lift(self.lifter, self.body, people, camera)
        start, sd = _from_before(guess, before, known)
        if not self.body.age_anchors:
            del sd["age_offset"]
        given = {"start": start, "start_sd": sd, "stages": self.stages, "standard_errors": False}
        return fit_people(self.body, people, camera, **given)

    def _link(self, people: People) -> tuple[People, BodyParameters | None, Bool[Tensor, " N"]]:
        """Return people with their tracks, their previous bodies, and who has one."""
        past = [each for each, _ in self._seen]
        joined = link_people(join_people([*past, people]), gap=MEMORY)
        assert joined.tracks is not None
        new = joined.tracks[len(joined) - len(people) :]
        old = joined.tracks[: len(joined) - len(people)]
        rows = np.array([np.flatnonzero(old == each)[-1] if each in old else -1 for each in new], dtype=int)
        known = rows >= 0
        names = [each.tracks for each in past if each.tracks is not None]
        tracks = np.concatenate([*names, np.zeros(1, dtype=np.int64)])[rows]
        tracks[~known] = self._count + np.arange((~known).sum())
        self._count += int((~known).sum())
        before = None
        if known.any():
            bodies = BodyParameters(*map(torch.cat, zip(*(each for _, each in self._seen), strict=True)))
            before = bodies.map(lambda part: part[torch.from_numpy(rows)])
        return replace(people, tracks=tracks), before, torch.from_numpy(known)


def _from_before(
    guess: Estimate, before: BodyParameters | None, known: Bool[Tensor, " N"]
) -> tuple[BodyParameters, dict[str, Tensor]]:
    """Return the starts of fits, and their standard deviations as a prior."""
    start = guess.parameters
    sd = guess.start_sd | {
        name: torch.full_like(getattr(start, name), 1e3)  # no prior of a new person
        for name in SHAPE_SD
    }
    if before is None:
        return start, sd
    known = known.to(start.transl.device)
    found = {}
    for name in start._fields:
        here, there = getattr(start, name), getattr(before, name)
        chosen = known.view(-1, *[1] * (here.dim() - 1))
        if name in guess.start_sd:
            own = guess.start_sd[name]
            share = TURN_SD**2 / (TURN_SD**2 + own.square())  # of the estimate
            there = compose(there, share * compose(-there, here))
            sd[name] = torch.where(chosen, own * share.sqrt(), own)
        elif name in SHAPE_SD:
            sd[name] = torch.where(chosen, SHAPE_SD[name], sd[name])
        found[name] = torch.where(chosen, there, here)
    return BodyParameters(**found), sd
