"""Virtual markers: how far the mesh from K of its vertices is off, with exact and with noisy markers.

Learned from 400 random people of every age, measured on 200 others; beside the matrices, a fit of the body to
the noisy markers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from provenance import save_result

import agebody
from agebody.fitting import fit_points
from agebody.mesh import MarkerSet
from agebody.people import random_people

LEARN, UNSEEN, NOISE = 400, 200, 0.005
"""Numbers of people, and SD of a coordinate of a noisy marker [m]."""
MATRICES: dict[str, dict[str, Any]] = {
    "noise_sd=0": {"noise_sd": 0.0},
    "default": {},
    "noise_sd=0.005": {"noise_sd": 0.005},
    "convex=True": {"convex": True},
}
BODIES = {"mannequin": agebody.mannequin, "anny": agebody.anny_body}
RESULTS = Path(__file__).parent / "results" / "markers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markers", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS / "markers_cpu.json")
    options = parser.parse_args()
    rows = []
    for name, asset in BODIES.items():
        body = agebody.SMPLA(asset())
        people = random_people(body, LEARN, seed=1).parameters
        unseen = random_people(body, UNSEEN, seed=2).parameters
        mesh = body(unseen).vertices

        def off(found: torch.Tensor, mesh: torch.Tensor = mesh) -> float:
            return 1e3 * (found - mesh).norm(dim=-1).mean().item()

        for label, given in MATRICES.items():
            markers = MarkerSet.learn(body, people, options.markers, **given)
            points = markers.markers(mesh)
            noisy = points + NOISE * torch.randn(points.shape, generator=torch.Generator().manual_seed(3))
            row = {"body": name, "matrix": label, "exact": off(markers.to_vertices(points))}
            rows.append(row | {"noisy": off(markers.to_vertices(noisy))})
            if label == "default":
                for kind, given_points, sd in (("exact", points, 1e-3), ("noisy", noisy, NOISE)):
                    fit = fit_points(body, given_points, markers.layout, sd=sd)
                    rows.append(
                        {"body": name, "matrix": "fit_points", kind: off(body(fit.parameters).vertices)}
                    )
            print(rows[-1])
    save_result(options.output, "markers", count=options.markers, unit="mm", rows=rows)


if __name__ == "__main__":
    main()
