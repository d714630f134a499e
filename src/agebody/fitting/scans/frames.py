"""Observations of a sequence: clouds padded to one size, cameras, landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.checks import apply_mask, expect, read_confidences
from agebody.engine.backend import BackendName
from agebody.fitting.scans.clouds import Cloud, Plane
from agebody.keypoints import KeypointLayout
from agebody.losses import plane_height
from agebody.mesh.closest import rows_of, tree_order

MAX_SPREAD = 10.0
"""Scans with a larger standard deviation of a coordinate are not in metres."""
BELOW = 0.01
"""Scans whose median point is farther below the plane are refused [m]."""


class Frames(NamedTuple):
    """Observations of F frames, in one world."""

    points: Float[Tensor, "F N 3"]
    """Scans, padded to the same size [m]."""
    weights: Float[Tensor, "F N"]
    """0 for padding."""
    camera: Camera
    """One for all frames, or one per frame."""
    keypoints: Float[Tensor, "F K 2"] | None = None
    """Landmarks in the images [pixels]."""
    confidences: Float[Tensor, "F K"] | None = None
    plane: Plane | None = None


def read_frames(
    body: BodyModel,
    scans: Sequence[Cloud | Tensor],
    camera: Camera,
    keypoints: Tensor | None,
    weights: Tensor | None,
    layout: KeypointLayout,
    plane: Plane | None,
) -> Frames:
    """Check the observations of `fit_scans` and return them as one batch."""
    clouds = [scan.points if isinstance(scan, Cloud) else scan for scan in scans]
    if not clouds:
        raise ValueError("scans: expected at least one, got none")
    for i, cloud in enumerate(clouds):
        expect(f"scans[{i}]", cloud, None, 3)
        if cloud.dim() != 2 or cloud.dtype != body.dtype:
            raise ValueError(
                f"scans[{i}]: expected {body.dtype} (N, 3), got {cloud.dtype} {tuple(cloud.shape)}"
            )
        if not cloud.isfinite().all():
            raise ValueError(f"scans[{i}]: expected finite points; leave out holes")
        if len(cloud) > 1 and (spread := float(cloud.std(0).max())) > MAX_SPREAD:
            advice = "divide millimetres by 1000, and leave out strays"
            raise ValueError(
                f"scans[{i}]: expected points of a person in metres, got an SD of {spread:.3g}; {advice}"
            )
    frames, most = len(clouds), max(1, *map(len, clouds))
    points, there = clouds[0].new_zeros(frames, most, 3), clouds[0].new_zeros(frames, most)
    for i, cloud in enumerate(clouds):
        points[i, : len(cloud)], there[i, : len(cloud)] = cloud, 1
    if camera.focal.dim() > 1 and len(camera.focal) != frames:
        raise ValueError(f"camera: expected one, or one per frame ({frames}), got {len(camera.focal)}")
    if plane is not None and not (plane.normal.isfinite().all() and plane.offset.isfinite().all()):
        raise ValueError("plane: expected finite numbers")
    if plane is not None and not abs(float(plane.normal.norm()) - 1) < 1e-3:
        raise ValueError(f"plane: expected a normal of length 1, got {float(plane.normal.norm()):g}")
    if plane is not None:
        shown = points[there != 0]
        shown = shown if len(shown) else camera.position.reshape(-1, 3)
        height = float(plane_height(shown, plane.normal, plane.offset).median())
        if height < -BELOW:
            what = "half of the points" if there.any() else "no points and the camera"
            raise ValueError(
                f"plane: expected the scans above it, got {what} more than {-height:.2g} m below; turn it "
                "round by Plane(-plane.normal, -plane.offset), or give fit_plane the camera as towards="
            )
    if keypoints is None:
        if weights is not None:
            raise ValueError("weights: expected None without keypoints")
        return Frames(points, there, camera, plane=plane)
    keypoints = expect("keypoints", keypoints, len(layout), 2)
    if keypoints.dtype != body.dtype:
        raise TypeError(f"keypoints: expected {body.dtype}, as the body, got {keypoints.dtype}")
    if keypoints.shape[:-2] != (frames,):
        raise ValueError(
            f"keypoints: expected shape ({frames}, {len(layout)}, 2), got {tuple(keypoints.shape)}"
        )
    confidences = read_confidences(weights, keypoints[..., 0])
    keypoints = apply_mask(keypoints, confidences, 1)
    if not keypoints.isfinite().all():
        raise ValueError("keypoints: expected finite pixels where weights are not 0")
    return Frames(points, there, camera, keypoints, confidences, plane)


def draw_points(
    points: Float[Tensor, "F N 3"], weights: Float[Tensor, "F N"], count: int
) -> tuple[Float[Tensor, "F S 3"], Float[Tensor, "F S"]]:
    """Draw at most ``count`` points of each scan, with a fixed seed."""
    generator = torch.Generator("cpu").manual_seed(0)
    order = torch.rand(weights.shape, generator=generator, dtype=torch.float32, device="cpu").to(points)
    chosen = torch.where(weights != 0, order, -1).topk(min(count, weights.shape[1]), 1).indices
    return rows_of(points, chosen), weights.gather(1, chosen)


def order_points(
    points: Float[Tensor, "F N 3"], weights: Float[Tensor, "F N"], backend: BackendName
) -> tuple[Float[Tensor, "F N 3"], Float[Tensor, "F N"]]:
    """Return the points of each scan in a `tree_order`, which searches them faster."""
    order = tree_order(points[:, :, None].expand(-1, -1, 3, -1), backend=backend)
    return rows_of(points, order), weights.gather(1, order)
