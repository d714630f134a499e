"""Starts of a fit to scans: a fit to the landmarks in the images, or a body moved onto lifted landmarks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.checks import safe_norm
from agebody.fitting.frames import fit_keypoints
from agebody.fitting.scans.frames import Frames
from agebody.keypoints import KeypointLayout
from agebody.metrics import procrustes
from agebody.parameters import BodyParameters
from agebody.rotations import from_matrix

RADIUS = 12.0
"""Largest distance in the image between a landmark and the point of the scan for it [pixels]."""
STIFF = ("nose", "neck", "head", "pelvis", "thorax", "spine", "eye", "ear", "shoulder", "hip")
"""Landmarks of trunk and head, which move least with the pose: parts of their names."""
AGES = 9
"""Number of age offsets that are tried."""


DEPTH_SD = 0.05
"""Of the root about the median depth of the scan [m]."""


def start_from_images(
    body: BodyModel, seen: Frames, layout: KeypointLayout, age_offset: Float[Tensor, ""] | None
) -> BodyParameters:
    """Fit each frame's landmarks at the median depth of its scan; with the mean shape and the median age.

    Robust to wrong landmarks, and finds the pose, with the prior of `fit_keypoints`.
    """
    assert seen.keypoints is not None
    depth = torch.where(seen.weights != 0, seen.camera.to_camera(seen.points)[..., 2], torch.nan)
    found = fit_keypoints(
        body,
        seen.keypoints,
        seen.camera,
        layout=layout,
        weights=seen.confidences,
        age_offset=age_offset,
        depth=depth.nanmedian(1).values,
        depth_sd=DEPTH_SD,
    ).parameters
    age = found.age_offset.median().expand(len(depth)).clone()
    return found._replace(betas=torch.zeros_like(found.betas), age_offset=age)


def lift_landmarks(seen: Frames) -> tuple[Float[Tensor, "F K 3"], Float[Tensor, "F K"]]:
    """Return the point of the scan that is nearest to each landmark in the image, and the landmark's weight.

    The weight is 0 if no point is near. A hidden landmark, or a joint inside the body, is lifted onto the
    surface in front of it, which is good enough for a start.
    """
    assert seen.keypoints is not None
    assert seen.confidences is not None
    points, weights = [], []
    pixels = seen.camera.project(seen.points).pixels
    for frame in range(len(seen.points)):
        away = torch.cdist(torch.nan_to_num(seen.keypoints[frame]), pixels[frame])
        away = torch.where(seen.weights[frame] != 0, away, torch.inf)
        distance, nearest = away.min(1)
        points.append(seen.points[frame, nearest])
        weights.append(torch.where(distance <= RADIUS, seen.confidences[frame], 0))
    return torch.stack(points), torch.stack(weights)


def start_from_landmarks(
    body: BodyModel,
    seen: Frames,
    layout: KeypointLayout,
    body_pose: Float[Tensor, "J 3"],
    age_offset: Float[Tensor, ""] | None,
) -> BodyParameters:
    """Move the mean person in one pose rigidly onto the lifted landmarks of trunk and head of each frame.

    If the body has ages and none is given, the age whose distances between landmarks agree best with those
    of the lifted ones is chosen. Frames with fewer than three landmarks start like the nearest frame with
    three.
    """
    lifted, weights = lift_landmarks(seen)
    stiff = torch.tensor([any(word in name for word in STIFF) for name in layout.names], device=lifted.device)
    weights = weights * stiff
    usable = (weights != 0).sum(1) >= 3
    if not usable.any():
        raise ValueError(
            "keypoints: expected a frame with three landmarks of trunk or head on the scan, got none; "
            "give start="
        )
    frames = torch.arange(len(lifted), device=lifted.device)
    apart = (frames[:, None] - frames).abs() + len(frames) * ~usable
    source = apart.argmin(1)
    parameters = BodyParameters.zeros(body, len(lifted))
    parameters = parameters._replace(body_pose=body_pose.expand(len(lifted), -1, -1).clone())
    if body.age_anchors:
        age = age_offset if age_offset is not None else _age(body, layout, body_pose, lifted, weights)
        parameters = parameters._replace(age_offset=age.expand(len(lifted)).clone())
    shaped = body.shape(parameters)
    points = shaped.keypoints(layout, parameters)
    motion = procrustes(points, lifted, weights=weights, with_scale=False)
    orient = from_matrix(motion.rotation, "axis_angle")
    root = shaped.rest_joints[:, 0]
    transl = (motion.rotation @ root[..., None])[..., 0] + motion.translation - root
    return parameters._replace(global_orient=orient[source], transl=transl[source])


def _age(
    body: BodyModel, layout: KeypointLayout, body_pose: Tensor, lifted: Tensor, weights: Tensor
) -> Tensor:
    """Return the age whose distances between landmarks fit best, by the median of their ratios."""
    ages = torch.linspace(0, 1, AGES, dtype=lifted.dtype, device=lifted.device)
    points = body.shape(age_offset=ages).keypoints(layout, body_pose=body_pose, pose_format="axis_angle")
    spans, known = (safe_norm(p[:, :, None] - p[:, None]) for p in (lifted, points))
    same = torch.eye(len(layout), dtype=torch.bool, device=weights.device)
    pairs = (weights[:, :, None] * weights[:, None] != 0) & ~same
    misfit = [
        (spans[pairs] / of_age.expand_as(spans)[pairs].clamp(min=1e-3)).log().median().abs()
        for of_age in known
    ]
    return ages[int(torch.stack(misfit).argmin())]
