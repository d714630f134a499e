"""Where a fit to keypoints begins: the best of everyday poses seen from all sides, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.cameras.distortion import undistort
from agebody.fitting.observed import Observed
from agebody.keypoints import KeypointLayout
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.parameters import BodyParameters
from agebody.people.poses import POSES, pose
from agebody.rotations import from_matrix

PROTOTYPES = ("standing", "walking", "cheering", "sitting", "crawling", "lying")
"""Poses that are tried, each without its turn of the whole body."""

DEPTHS = (0.2, 200.0)
"""Nearest and farthest start [m]."""

_YAWS = 8
_PITCHES = (-60.0, -25.0, 0.0, 25.0, 60.0)


class Views(NamedTuple):
    """Candidates: poses of people, each turned to be seen from one side."""

    rotations: Float[Tensor, "C 3 3"]
    """Of the whole body, to camera coordinates."""
    body_pose: Float[Tensor, "C J 3"]
    points: Float[Tensor, "B C K 3"]
    """In camera coordinates about the root joint [m]."""


class Start(NamedTuple):
    """Where to begin."""

    parameters: BodyParameters
    """(count, B, ...), in camera coordinates."""
    misfit: Float[Tensor, "count B"]
    """What the similarity leaves of the keypoints' spread: 0 to 1."""


def candidate_views(body: BodyModel, layout: KeypointLayout, age_offset: Float[Tensor, " B"]) -> Views:
    """Prototype poses of people of these ages, seen from eight sides, and from above and below."""
    names = body.asset.joint_names
    kinds = [kind for kind in PROTOTYPES if set(POSES[kind]) <= set(names)]
    poses = [torch.from_numpy(pose(kind, names)[1:]).to(age_offset) for kind in kinds]
    poses = torch.stack(poses or [age_offset.new_zeros(len(names) - 1, 3)])
    turns = _viewing_rotations().to(age_offset)
    mean = BodyParameters.zeros(body, len(age_offset), 1)
    shaped = body.shape(mean._replace(age_offset=age_offset[:, None]))
    points = shaped.keypoints(layout, body_pose=poses, pose_format="axis_angle")
    points = (points - shaped.rest_joints[..., :1, :]).expand(len(age_offset), -1, -1, -1)
    seen = points[:, :, None] @ turns.mT  # (B, poses, turns, K, 3)
    return Views(turns.repeat(len(poses), 1, 1), poses.repeat_interleave(len(turns), 0), seen.flatten(1, 2))


def start_from_keypoints(
    body: BodyModel,
    layout: KeypointLayout,
    keypoints: Float[Tensor, "B K 2"],
    weights: Float[Tensor, "B K"],
    camera: Camera,
    age_offset: Float[Tensor, " B"],
    *,
    count: int = 2,
) -> Start:
    """The views that fit best, each by the similarity of the image plane that brings it onto the keypoints.

    Its turn rolls the body about the optical axis, its scale s is one over the depth, in normalised image
    coordinates, and its shift says where the body stands. The first view is the best of all; each further one
    is the best of those that face another way than those before it, by more than 90 degrees: SMPLify's flip.

    Args:
        body: of the people.
        layout: of the keypoints.
        keypoints: (B, K, 2) [pixels], finite.
        weights: (B, K).
        camera: (B, ...); its pose plays no part.
        age_offset: (B,).
        count: how many starts a person.
    """
    views = candidate_views(body, layout, age_offset)
    image = (keypoints - camera.center[..., None, :]) / camera.focal[..., None, :]
    if camera.distortion is not None:
        image = undistort(image, camera.distortion)
    share = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    image_mean = (share[..., None] * image).sum(-2)  # (B, 2)
    plane = views.points[..., :2]
    plane_mean = (share[:, None, :, None] * plane).sum(-2)  # (B, C, 2)
    x, y = (share[:, None, :, None] * (plane - plane_mean[..., None, :])).unbind(-1)
    u, v = (image - image_mean[:, None])[:, None].unbind(-1)
    # As complex numbers: z = sum conj(p) q / sum |p|^2 turns and scales p onto q.
    along, across = (x * u + y * v).sum(-1), (x * v - y * u).sum(-1)
    spread = (x * plane[..., 0] + y * plane[..., 1]).sum(-1)
    total = (share[:, None] * (u * u + v * v)).sum(-1)
    tiny = torch.finfo(spread.dtype).tiny
    spread = spread.clamp(min=tiny)
    misfit = 1 - (along * along + across * across) / (spread * total).clamp(min=tiny)
    misfit = torch.where(total > 0, misfit, 1).nan_to_num(1.0)

    everyone = torch.arange(len(keypoints), device=keypoints.device)
    angle = torch.atan2(across, along)
    rolled = _roll(angle) @ views.rotations
    depth = (spread / torch.hypot(along, across).clamp(min=tiny)).nan_to_num(DEPTHS[1]).clamp(*DEPTHS)
    facing = rolled[..., 2]
    found, left = [], misfit
    mean = BodyParameters.zeros(body, len(age_offset))._replace(age_offset=age_offset)
    pelvis = body.shape(mean).rest_joints[..., 0, :]
    for _ in range(count):
        best = left.argmin(-1)
        z = depth[everyone, best]
        turn = rolled[everyone, best]
        middle = torch.cat((plane_mean[everyone, best], plane_mean.new_zeros(len(z), 1)), -1)
        middle = (_roll(angle[everyone, best]) @ middle[..., None])[..., :2, 0]
        place = torch.cat((image_mean * z[:, None] - middle, z[:, None]), -1)
        orient = from_matrix(turn, "axis_angle")
        betas = pelvis.new_zeros(len(z), body.num_betas)
        found.append(
            (
                BodyParameters(orient, views.body_pose[best], betas, age_offset, place - pelvis),
                misfit[everyone, best],
            )
        )
        same_way = (facing * facing[everyone, best][:, None]).sum(-1) >= 0
        left = torch.where(same_way, torch.inf, left)
    parameters = BodyParameters(*(torch.stack(parts) for parts in zip(*(p for p, _ in found), strict=True)))
    return Start(parameters, torch.stack([m for _, m in found]))


def starts_in_world(
    body: BodyModel,
    seen: Observed,
    prior: MahalanobisPrior | MaxMixturePrior,
    joints: Sequence[str] | None,
    count: int,
) -> BodyParameters:
    """Starts (count * B, ...) in the world of the cameras, the best of all people first.

    Args:
        body: of the people.
        seen: B people.
        prior: at whose mean the joints are that are not free.
        joints: those that are; all if None. See `seen_joints`.
        count: starts a person.
    """
    found = start_from_keypoints(
        body, seen.layout, seen.keypoints, seen.weights, seen.camera, seen.ages[:, 2], count=count
    )
    cameras = seen.camera.map(lambda part: part.repeat(count, *[1] * (part.dim() - 1)))
    placed = found.parameters.map(lambda part: part.flatten(0, 1))
    if joints is not None and isinstance(prior, MahalanobisPrior):
        names = body.asset.joint_names[1:]
        unseen = [j for j, name in enumerate(names) if name not in joints]
        mean = placed.body_pose.new_zeros(3 * len(names))
        mean[prior.columns] = prior.mean
        placed.body_pose[:, unseen] = mean.unflatten(0, (-1, 3))[unseen]
    return to_world(body, placed, cameras)


def to_world(body: BodyModel, parameters: BodyParameters, camera: Camera) -> BodyParameters:
    """Bodies in camera coordinates, moved to the world of a camera with a pose."""
    if camera.rotation is None and camera.translation is None:
        return parameters
    rotation = camera.rotation
    if rotation is None:
        rotation = torch.eye(3, dtype=body.dtype, device=body.device).expand(len(parameters.betas), 3, 3)
    place = None if camera.translation is None else -(rotation.mT @ camera.translation[..., None])[..., 0]
    orient, transl = body.shape(parameters).move(
        rotation.mT, place, global_orient=parameters.global_orient, transl=parameters.transl,
        pose_format="axis_angle",
    )  # fmt: skip
    return parameters._replace(global_orient=orient, transl=transl)


def _viewing_rotations() -> Float[Tensor, "T 3 3"]:
    """Turns of an upright body (y up) to camera axes (y down): about its axis, then towards the camera."""
    flip = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=torch.float64)
    found = []
    for pitch in _PITCHES:
        c, s = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
        lean = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
        for k in range(_YAWS):
            c, s = math.cos(2 * math.pi * k / _YAWS), math.sin(2 * math.pi * k / _YAWS)
            turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
            found.append(lean @ flip @ turn)
    return torch.stack(found)


def _roll(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """A turn about the optical axis."""
    c, s = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack((c, -s, zero, s, c, zero, zero, zero, one), -1).unflatten(-1, (3, 3))
