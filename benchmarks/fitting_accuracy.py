"""Accuracy of fits to held-out random people, by scenario and age class."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from harness import Session
from rich.console import Console
from rich.table import Table
from torch import Tensor

import agebody
from agebody.age import AGE_CLASSES, age_class
from agebody.body import BodyModel
from agebody.fitting import Fit, fit_keypoints
from agebody.measure import stature
from agebody.metrics import mpjpe, pa_mpjpe
from agebody.parameters import BodyParameters
from agebody.people import People, observe, random_people
from agebody.people.observations import Observations

HELD_OUT_SEED = 30_000
"""First held-out seed: tests, examples and tuning use smaller ones."""
NOT_CREDIBLE = 16.0
"""[pixels] Mean distance from the true places of the visible points above which a fit has failed.

InfantNet uses the reported points, which cannot distinguish a bad fit from a wrong point.
"""
ALL = "all"
BATCHES = {"cpu": (320,), "cuda": (320,)}


class Scenario(NamedTuple):
    """Detections, and other known values."""

    title: str
    observed: Mapping[str, Any]
    """Options of `observe`."""
    known: tuple[str, ...] = ()
    """Some of "depth", "class" and "years"."""
    truncated: float = 0.0


HARD = {
    "self_occlusion": True,
    "occluders": 0.4,
    "dropped": 0.1,
    "swapped": 0.1,
    "borrowed": 0.1,
    "stray": 0.03,
}
SCENARIOS = {
    "clean": Scenario("2 px of noise", {}),
    "depth": Scenario("2 px of noise, depth known", {}, ("depth",)),
    "class": Scenario("2 px of noise, age class known", {}, ("class",)),
    "hard": Scenario("occluded, dropped and wrong points", HARD, truncated=0.2),
    "hard, class": Scenario(
        "occluded, dropped and wrong points, age class known", HARD, ("class",), truncated=0.2
    ),
}
BODIES = {"mannequin": agebody.mannequin, "anny": agebody.anny_body}
CONTENDERS = [f"{body}, {scenario}" for body in BODIES for scenario in SCENARIOS]


class Run(NamedTuple):
    """One scenario on one body: the people, their observations and the fits."""

    people: People
    seen: Observations
    fit: Fit
    seconds: float


def run(body: BodyModel, scenario: Scenario, count: int, seed: int = HELD_OUT_SEED) -> Run:
    people = random_people(body, count, seed=seed, truncated=scenario.truncated)
    seen = observe(body, people, seed=seed, **scenario.observed)
    known: dict[str, Any] = {}
    if "depth" in scenario.known:
        known["depth"] = seen.depth
    if "class" in scenario.known:
        known["age_class"] = age_class(people.parameters.age_offset)
    if "years" in scenario.known:
        known["years"] = people.years
    start = time.perf_counter()
    fit = fit_keypoints(body, seen.keypoints, people.camera, weights=seen.weights, **known)
    return Run(people, seen, fit, time.perf_counter() - start)


def errors(body: BodyModel, found: Run) -> dict[str, Tensor]:
    """Return errors per person [pixels, metres or shares]."""
    people, seen, fit = found.people, found.seen, found.fit
    with torch.no_grad():
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(people.years), 64):
            rows = slice(start, start + 64)
            ours, theirs = fit.parameters.map(lambda part, rows=rows: part[rows]), people.select(rows)
            parts.append(_errors(body, ours, theirs.parameters))
        result = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        points = body.keypoints("coco17", fit.parameters)
    offsets = (people.camera.project(points).pixels - seen.exact).norm(dim=-1)
    shown = seen.visible & (seen.weights > 0)
    result["true_px"] = (offsets * shown).sum(-1) / shown.sum(-1).clamp(min=1)
    result["px"] = fit.error
    result["age"] = (fit.parameters.age_offset - people.parameters.age_offset).abs()
    sd = fit.standard_errors
    if sd is not None:  # errors in units of their standard errors
        result["stature_units"] = result["off"] / sd.stature
        result["age_units"] = torch.where(result["age"] == 0, 0, result["age"] / sd.age_offset)
    result["converged"] = fit.report.converged.double()
    result["failed"] = (~fit.report.converged | (result["true_px"] > NOT_CREDIBLE)).double()
    return result


def _errors(body: BodyModel, ours: BodyParameters, theirs: BodyParameters) -> dict[str, Tensor]:
    a, b = body(ours), body(theirs)

    def origin(out):
        return out.vertices - out.joints[..., :1, :]

    tall = [stature(body.shape(given).rest_vertices) for given in (ours, theirs)]
    return {
        "mpjpe": mpjpe(a.joints, b.joints, layout="smpl24", reduction="none"),
        "pa_mpjpe": pa_mpjpe(a.joints, b.joints, reduction="none"),
        "pve": (origin(a) - origin(b)).norm(dim=-1).mean(-1),
        "off": (tall[0] - tall[1]).abs(),
        "stature": (tall[0] - tall[1]).abs() / tall[1],
        "z": (a.joints[:, 0, 2] - b.joints[:, 0, 2]).abs() / b.joints[:, 0, 2],
    }


def summary(values: Mapping[str, Tensor], rows: Tensor) -> dict[str, float]:
    """Return medians, means of 3D errors, and the shares of failed and converged fits of some people."""

    def of(name):
        return values[name][rows].double()

    medians = {
        f"{name}_median": float(of(name).median()) for name in ("px", "true_px", "stature", "age", "z")
    }
    means = {
        f"{name}_mean": float(of(name).mean()) for name in ("mpjpe", "pa_mpjpe", "pve", "converged", "failed")
    }
    within = {
        f"{name}_within_{k}": float((of(f"{name}_units") < k).double().mean())
        for name in ("stature", "age")
        for k in (1, 2)
        if f"{name}_units" in values
    }
    return (
        medians
        | means
        | within
        | {"px_90": float(of("px").quantile(0.9)), "mpjpe_median": float(of("mpjpe").median())}
    )


def main() -> None:
    session = Session("fitting_accuracy", __doc__, batches=BATCHES)
    count = session.batches[0] if not session.options.quick else 16
    for name, make in BODIES.items():
        body = agebody.SMPLA(make(), device=session.device)
        run(body, SCENARIOS["clean"], 16, seed=0)  # warm up: tables of derivatives are made at the first call
        for key, scenario in SCENARIOS.items():
            found = run(body, scenario, count)
            values = errors(body, found)
            kinds = age_class(found.people.parameters.age_offset)
            groups = {ALL: torch.ones_like(kinds, dtype=torch.bool)}
            groups |= {kind.name: kinds == i for i, kind in enumerate(AGE_CLASSES)}
            for group, rows in groups.items():
                session.note(
                    count,
                    f"{name}, {key}",
                    which=group,
                    title=scenario.title,
                    people=int(rows.sum()),
                    median_s=found.seconds,
                    **summary(values, rows),
                )
            _show(name, scenario.title, [row for row in session.rows if row["contender"] == f"{name}, {key}"])
    session.finish()


def _show(body: str, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{body}: {title}; {rows[0]['batch'] / rows[0]['median_s']:.0f} people/s")
    for heading in (
        "age",
        "px",
        "true px",
        "px 90 %",
        "MPJPE",
        "median",
        "PA",
        "PVE",
        "stature %",
        "z %",
        "age offset",
        "converged %",
        "failed %",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["which"],
            *(f"{row[k]:.1f}" for k in ("px_median", "true_px_median", "px_90")),
            *(f"{1e3 * row[k]:.0f}" for k in ("mpjpe_mean", "mpjpe_median", "pa_mpjpe_mean", "pve_mean")),
            f"{100 * row['stature_median']:.1f}",
            f"{100 * row['z_median']:.1f}",
            f"{row['age_median']:.2f}",
            f"{100 * row['converged_mean']:.1f}",
            f"{100 * row['failed_mean']:.1f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
