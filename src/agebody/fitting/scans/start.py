"""Where a fit to scans begins: landmarks in the image, lifted onto the scan, place the body in each frame."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.checks import safe_norm
from agebody.fitting.scans.frames import Frames, camera_of
from agebody.keypoints import KeypointLayout
from agebody.metrics import procrustes
from agebody.parameters import BodyParameters
from agebody.rotations import from_matrix

RADIUS = 12.0
"""Distance in the image within which a point of the scan stands for a landmark [px]."""
STIFF = ("nose", "neck", "head", "pelvis", "thorax", "spine", "eye", "ear", "shoulder", "hip")
"""Landmarks of trunk and head, which the pose moves least: words in their names."""
AGES = 9
"""Age offsets that are tried."""


def lift_landmarks(seen: Frames) -> tuple[Float[Tensor, "F K 3"], Float[Tensor, "F K"]]:
    """The point of the scan that is nearest to each landmark in the image, and the landmark's weight.

    0 where no point is near. A landmark that is hidden, or a joint within the body, is lifted onto what lies
    in front of it: good enough to begin with.
    """
    assert seen.keypoints is not None
    assert seen.confidences is not None
    points, weights = [], []
    for frame in range(len(seen.points)):
        rows = torch.tensor([frame], device=seen.points.device)
        pixels = camera_of(seen.camera, rows).project(seen.points[rows]).pixels[0]
        away = torch.cdist(torch.nan_to_num(seen.keypoints[frame]), pixels)
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
    """The mean person in one pose, moved rigidly onto the lifted landmarks of trunk and head in each frame.

    Where the body has ages and none is given, it is the one of `AGES` whose landmarks are as far from each
    other as the lifted ones. Frames with fewer than three landmarks begin as the nearest frame that has them.

    Raises:
        ValueError: no frame has three landmarks of trunk or head.
    """
    lifted, weights = lift_landmarks(seen)
    stiff = torch.tensor([any(word in name for word in STIFF) for name in layout.names], device=lifted.device)
    weights = weights * stiff
    usable = (weights != 0).sum(1) >= 3
    if not usable.any():
        raise ValueError(
            "keypoints: expected a frame with three landmarks of trunk or head on the scan, to begin with; "
            "there is none: give start="
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
    """The age whose mean person has the distances between lifted landmarks, by the median of their ratios."""
    ages = torch.linspace(0, 1, AGES).to(lifted)
    points = body.shape(age_offset=ages).keypoints(layout, body_pose=body_pose, pose_format="axis_angle")
    spans = lambda p: safe_norm(p[:, :, None] - p[:, None])  # noqa: E731
    pairs = (weights[:, :, None] * weights[:, None] != 0) & ~torch.eye(len(layout), dtype=torch.bool).to(
        weights.device
    )
    found, known = spans(lifted)[pairs], spans(points)
    misfit = [
        (found / known[i].expand(len(lifted), -1, -1)[pairs].clamp(min=1e-3)).log().median().abs()
        for i in range(len(ages))
    ]
    return ages[int(torch.stack(misfit).argmin())]
