"""Quality of fits to scans: distances, coverage and landmarks, and the limits of accepted frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import apply_mask, safe_norm
from agebody.engine.backend import BackendName
from agebody.fitting.scans.frames import Frames
from agebody.fitting.scans.terms import ScanTerms
from agebody.mesh.closest import closest_points, nearest_points, rows_of, visible_vertices
from agebody.optim.stages import BETA_BOUND
from agebody.parameters import BodyParameters

MAX_REPROJECTION = 16.0
"""Largest mean reprojection error of the frames that InfantNet keeps [pixels]."""
MAX_OUTLIERS, MAX_UNCOVERED = 0.1, 0.1
"""Largest shares of outliers, and of uncovered vertices, of accepted frames."""
NEAR = 0.03
"""Largest distance from the surface of points that are counted as points of the body [m]."""


class Quality(NamedTuple):
    """Numbers of F frames, as in `ScanReport`."""

    s2m: Float[Tensor, " F"]
    outliers: Float[Tensor, " F"]
    uncovered: Float[Tensor, " F"]
    largest_beta: Float[Tensor, " F"]
    reprojection: Float[Tensor, " F"] | None

    def excess(self, max_s2m: float) -> Float[Tensor, " F"]:
        """Return the largest ratio of a number to its limit: below 1 if accepted, infinite for NaN."""
        limits = max_s2m, MAX_OUTLIERS, MAX_UNCOVERED, BETA_BOUND - 1e-3, MAX_REPROJECTION
        ratios = [part / limit for part, limit in zip(self, limits, strict=True) if part is not None]
        return torch.stack(ratios).nan_to_num(nan=torch.inf).amax(0)


def measure(maker: ScanTerms, parameters: BodyParameters, vertices: Float[Tensor, "F V 3"]) -> Quality:
    """Measure the bodies of all frames."""
    body, backend, seen = maker.body, maker.backend, maker.seen
    reprojection = None
    if seen.keypoints is not None and seen.confidences is not None:
        pixels = seen.camera.project(body.keypoints(maker.layout, parameters)).pixels
        known = seen.confidences != 0
        reprojection = safe_norm(apply_mask(pixels - seen.keypoints, known, 1)).sum(1) / known.sum(1)
    return Quality(
        *distances(vertices, body.faces, seen, backend),
        _uncovered(vertices, body.faces, seen, maker.eye, backend),
        parameters.betas.abs().amax(-1),
        reprojection,
    )


def distances(vertices: Tensor, faces: Tensor, seen: Frames, backend: BackendName) -> tuple[Tensor, Tensor]:
    """Return the mean distance of near points from the surface [m] and the share of the other points."""
    there = seen.weights != 0
    found = closest_points(seen.points, vertices, faces, backend=backend).distance
    near = there & (found < NEAR)
    mean = torch.where(near, found, 0).sum(1) / near.sum(1)
    return mean, (there & ~near).sum(1) / there.sum(1).clamp(min=1)


def _uncovered(vertices: Tensor, faces: Tensor, seen: Frames, eye: Tensor, backend: BackendName) -> Tensor:
    """Return the share of the vertices facing the camera that are far from the scan."""
    visible = visible_vertices(vertices, faces, eye, backend=backend)
    a, b, c = vertices[:, faces].unbind(2)
    area = (torch.linalg.cross(b - a, c - a).norm(dim=-1) * visible[:, faces].all(-1)).sum(1) / 2
    count = (seen.weights != 0).sum(1)
    spacing = torch.sqrt(area / count.clamp(min=1))
    nearest = nearest_points(vertices, seen.points, weights=seen.weights, backend=backend)
    far = safe_norm(rows_of(seen.points, nearest) - vertices) > NEAR + spacing[:, None]
    far = far | (count == 0)[:, None]
    return (far & visible).sum(1) / visible.sum(1).clamp(min=1)
