"""Bodies from the vertices of meshes: agebody's full fit and its closed form, compared with smplfitter.

Adults, since smplfitter is given this body without its growth. Errors are those of all vertices.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Session
from peers import Files, reason
from torch import Tensor

import agebody
from agebody.fitting import fit_vertices
from agebody.people import random_people

BATCHES = {"cpu": (64, 1024), "cuda": (64, 1024)}
SEED = 20260
OURS, CLOSED = "agebody", "agebody, closed form"
ROUNDS = (1, 3)
"""Alternations of smplfitter; its default is one."""


def ours(body: agebody.SMPL, max_iterations: int) -> Callable[[Tensor], Tensor]:
    def fit(vertices: Tensor) -> Tensor:
        found = fit_vertices(body, vertices, max_iterations=max_iterations).parameters
        return body(found).vertices

    return fit


def smplfitter(files: Files, rounds: int) -> Callable[[Tensor], Tensor]:
    from smplfitter.pt import BodyFitter, BodyModel

    model = BodyModel("smpl", "neutral", model_root=str(files.folder), num_betas=10, device=files.device)
    fitter = BodyFitter(model).to(files.device)

    @torch.no_grad()
    def fit(vertices: Tensor) -> Tensor:
        found = fitter.fit(
            vertices, num_iter=rounds, beta_regularizer=0.0, requested_keys=["pose_rotvecs", "shape_betas"]
        )
        names = {"pose_rotvecs": "pose_rotvecs", "shape_betas": "shape_betas", "trans": "trans"}
        return model(**{name: found[key] for name, key in names.items()})["vertices"]

    return fit


def errors(found: Tensor, true: Tensor) -> dict[str, float]:
    distance = 1000 * (found - true).norm(dim=-1)
    return {
        "mean_mm": distance.mean().item(),
        "median_of_largest_mm": distance.amax(-1).median().item(),
        "largest_mm": distance.max().item(),
    }


def main() -> None:
    session = Session("fit_vertices", __doc__, batches=BATCHES, seconds=30.0)
    body = agebody.SMPL(session.asset, device=session.device)
    contenders = {OURS: ours(body, 60), CLOSED: ours(body, 0)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = Files.write(session.asset, Path(folder), session.device)
            contenders |= {f"smplfitter, {n} rounds": smplfitter(files, n) for n in ROUNDS}
        except Exception as error:
            session.absent["smplfitter"] = reason(error)
        session.extra["errors"] = {}
        for batch in session.batches:
            people = random_people(body, batch, ages=(19.0, 80.0), seed=SEED)
            vertices = body(people.parameters).vertices
            calls = {name: lambda fit=fit: fit(vertices) for name, fit in contenders.items()}
            found = {name: errors(call(), vertices) for name, call in calls.items()}
            session.extra["errors"][str(batch)] = found
            session.time(batch, calls)
            for name, figures in found.items():
                print(batch, name, {key: round(value, 4) for key, value in figures.items()})
    session.finish()


if __name__ == "__main__":
    main()
