"""Accuracy of the lifter, and of fits that start from it, on the held-out people of `fitting_accuracy`."""

from __future__ import annotations

import time
from typing import Any

import torch
from fitting_accuracy import ALL, BATCHES, BODIES, HELD_OUT_SEED, SCENARIOS, Run, Scenario, errors, summary
from harness import Session

import agebody
from agebody.age import AGE_CLASSES, age_class
from agebody.body import BodyModel
from agebody.fitting import fit_keypoints
from agebody.nets import Lifter, fit_lifted
from agebody.people import observe, random_people

TIMED = 64
"""People of the fits from nothing, which are here for their time; `fitting_accuracy` has all of them."""


def run(
    body: BodyModel, net: Lifter, scenario: Scenario, count: int, seed: int = HELD_OUT_SEED
) -> dict[str, tuple[Run, dict[str, float]]]:
    """Return runs, and shares of statures within one and two standard deviations."""
    people = random_people(body, count, seed=seed, truncated=scenario.truncated)
    seen = observe(body, people, seed=seed, **scenario.observed)
    known: dict[str, Any] = {}
    if "depth" in scenario.known:
        known["depth"] = seen.depth
    if "class" in scenario.known:
        known["age_class"] = age_class(people.parameters.age_offset)
    start = time.perf_counter()
    found = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, size=people.size, **known)
    lifted = time.perf_counter() - start
    start = time.perf_counter()
    given = body, seen.keypoints, people.camera
    fit = fit_lifted(net, *given, weights=seen.weights, size=people.size, **known).fit
    both = time.perf_counter() - start
    rows = slice(0, TIMED)
    some = people.select(rows)
    told = {name: value[rows] for name, value in known.items()}
    start = time.perf_counter()
    fit_keypoints(body, seen.keypoints[rows], some.camera, weights=seen.weights[rows], **told)
    alone = (time.perf_counter() - start) * count / TIMED
    within = {}
    for group in ("age_offset", "transl", "betas"):
        error = (getattr(found.parameters, group) - getattr(people.parameters, group)).abs()
        for k in (1, 2):
            within[f"lifter_{group}_within_{k}"] = float((error < k * found.sd[group]).double().mean())
    return {
        "lifter": (
            Run(people, seen, fit._replace(parameters=found.parameters, standard_errors=None), lifted),
            {},
        ),
        "fit from the lifter": (Run(people, seen, fit, both), {**within, "fit_alone_s": alone}),
    }


def main() -> None:
    session = Session("lifter_accuracy", __doc__, batches=BATCHES)
    count = session.batches[0] if not session.options.quick else 16
    net = Lifter.load()
    for name, make in BODIES.items():
        body = agebody.SMPLA(make(), device=session.device)
        run(body, net, SCENARIOS["clean"], 16, seed=0)  # warm up
        for key, scenario in SCENARIOS.items():
            for way, (found, shares) in run(body, net, scenario, count).items():
                values = errors(body, found)
                kinds = age_class(found.people.parameters.age_offset)
                groups = {ALL: torch.ones_like(kinds, dtype=torch.bool)}
                groups |= {kind.name: kinds == i for i, kind in enumerate(AGE_CLASSES)}
                for group, rows in groups.items():
                    about = {"which": group, "title": scenario.title, "people": int(rows.sum())}
                    result = summary(values, rows) | (shares if group == ALL else {})
                    session.note(count, f"{name}, {key}, {way}", **about, median_s=found.seconds, **result)
                    if group == ALL:
                        print(
                            f"{name}, {key}, {way}:", {k: round(v, 3) for k, v in result.items()}, flush=True
                        )
    session.finish()


if __name__ == "__main__":
    main()
