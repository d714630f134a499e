"""Initial bodies of fits to keypoints: the best of everyday poses seen from all sides, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.fitting.observed import Observed
from agebody.fitting.whole_body import coarse_weights, noise_shares, prior_alone
from agebody.keypoints import KeypointLayout, mirror_order
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.parameters import BodyParameters
from agebody.people.poses import POSES, pose
from agebody.rotations import from_matrix, mirror

PROTOTYPES = ("standing", "walking", "cheering", "sitting", "crawling", "lying")
"""Candidate poses, without their global rotation."""

DEPTHS = (0.2, 200.0)
"""Nearest and farthest start [m]."""

_YAWS = 8
_PITCHES = (-60.0, -25.0, 0.0, 25.0, 60.0)


class Views(NamedTuple):
    """Candidates: poses, each rotated to be seen from one side."""

    rotations: Float[Tensor, "C 3 3"]
    """Of the whole body, to camera coordinates."""
    body_pose: Float[Tensor, "C J 3"]
    points: Float[Tensor, "B C K 3"]
    """In camera coordinates about the root joint [m]."""


def candidate_views(body: BodyModel, layout: KeypointLayout, age_offset: Float[Tensor, " B"]) -> Views:
    """Return prototype poses of people of these ages and their mirror images, seen from many sides.

    These are eight sides, each from above and below.
    """
    names = body.asset.joint_names
    kinds = [kind for kind in PROTOTYPES if set(POSES[kind]) <= set(names)]
    poses = [torch.from_numpy(pose(kind, names)[1:]).to(age_offset) for kind in kinds]
    poses = torch.stack(poses or [age_offset.new_zeros(len(names) - 1, 3)])
    poses = torch.cat((poses, mirror(poses[:, list(mirror_order(names[1:]))])))
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
) -> BodyParameters:
    """Return bodies (count, B, ...) in camera coordinates: the views that fit best.

    Each is placed by the similarity of the image plane onto the keypoints, which are finite.

    In normalised image coordinates, its rotation rolls the body about the optical axis, its scale is one over
    the depth, and its shift places the body. The first view is the best of all; each further one is the best
    of those that face another way than the ones before, by more than 90 degrees: SMPLify's flip.
    """
    views = candidate_views(body, layout, age_offset)
    image = camera.undistort(keypoints)
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
        betas = pelvis.new_zeros(len(z), body.num_coefficients)
        found.append(BodyParameters(orient, views.body_pose[best], betas, age_offset, place - pelvis))
        same_way = (facing * facing[everyone, best][:, None]).sum(-1) >= 0
        left = torch.where(same_way, torch.inf, left)
    return BodyParameters(*map(torch.stack, zip(*found, strict=True)))


def starts_in_world(
    body: BodyModel,
    seen: Observed,
    prior: MahalanobisPrior | MaxMixturePrior,
    joints: Sequence[str] | None,
    count: int,
) -> BodyParameters:
    """Return starts (count * B, ...) in the world of the cameras, the best of all people first.

    The ``joints`` are those that are free, all if None (see `seen_joints`); others are at the prior's mean.
    """
    trust = coarse_weights(seen.weights, noise_shares(body, seen.layout))
    found = start_from_keypoints(
        body, seen.layout, seen.keypoints, trust, seen.camera, seen.ages[:, 2], count=count
    )
    cameras = seen.camera.map(lambda part: part.repeat(count, *[1] * (part.dim() - 1)))
    placed = found.map(lambda part: part.flatten(0, 1))
    names = body.asset.joint_names[1:]
    if isinstance(prior, MahalanobisPrior):  # everyday poses say nothing of hands
        free = {*names} if joints is None else {*joints}
        unseen = [j for j, name in enumerate(names) if name not in free or name in prior_alone(body)]
        placed.body_pose[:, unseen] = mean_pose(prior, body)[unseen]
    return to_world(body, placed, cameras)


def mean_pose(prior: MahalanobisPrior, body: BodyModel) -> Float[Tensor, "J 3"]:
    """Return the mean pose of a prior of all of a body's joints; zero for joints without a prior."""
    mean = torch.zeros(3 * (body.num_joints - 1), dtype=body.dtype, device=body.device)
    mean[prior.columns] = prior.mean.to(mean)
    return mean.unflatten(0, (-1, 3))


def to_world(body: BodyModel, parameters: BodyParameters, camera: Camera) -> BodyParameters:
    """Return bodies in camera coordinates moved to the world of a camera with a pose."""
    if camera.rotation is None and camera.translation is None:
        return parameters
    return body.move(parameters, camera.world_to_camera[..., :3, :3].mT, camera.position)


def to_camera_space(body: BodyModel, parameters: BodyParameters, camera: Camera) -> BodyParameters:
    """Return the same bodies in camera coordinates, which do not depend on the camera's pose."""
    if camera.rotation is None and camera.translation is None:
        return parameters
    pose = camera.to(parameters.transl).world_to_camera
    return body.move(parameters, pose[..., :3, :3], pose[..., :3, 3])


def move_to_rays(
    body: BodyModel,
    layout: KeypointLayout,
    keypoints: Float[Tensor, "B V K 2"],
    weights: Float[Tensor, "B V K"],
    camera: Camera,
    starts: BodyParameters,
) -> BodyParameters:
    """Return starts (count * B, ...) moved to the intersection of the rays of several cameras."""
    points, confidence = triangulate(keypoints, weights, camera)
    own = body.keypoints(layout, starts)
    count = len(own) // len(points)
    points, confidence = points.repeat(count, 1, 1), confidence.repeat(count, 1)
    total = confidence.sum(-1, keepdim=True)
    shift = (confidence[..., None] * (points - own)).sum(1) / torch.where(total > 0, total, 1)
    return starts._replace(transl=starts.transl + shift)


def triangulate(
    keypoints: Float[Tensor, "*batch V K 2"], weights: Float[Tensor, "*batch V K"], camera: Camera
) -> tuple[Float[Tensor, "*batch K 3"], Float[Tensor, "*batch K"]]:
    """Return the points nearest to the rays of several cameras, and their confidence.

    Minimizes the sum of squared distances from the rays, weighted by confidence. Points are in the world [m];
    their confidence is the sum of their weights, 0 where fewer than two cameras see the point, or the rays
    are parallel.
    """
    image = camera.undistort(keypoints)
    rays = torch.cat((image, torch.ones_like(image[..., :1])), -1)
    if camera.rotation is not None:
        rays = rays @ camera.rotation
    rays = rays / rays.norm(dim=-1, keepdim=True)
    eye = torch.eye(3, dtype=rays.dtype, device=rays.device)
    across = eye - rays[..., None] * rays[..., None, :]
    normal = (weights[..., None, None] * across).sum(-4)
    target = (weights[..., None] * (across @ camera.position[..., None, :, None])[..., 0]).sum(-3)
    total = weights.sum(-2)
    # The smallest eigenvalue is about the total times the squared sine of half of the angle between the rays.
    apart = torch.linalg.eigvalsh(normal)[..., 0] > 1e-4 * total
    known = ((weights > 0).sum(-2) >= 2) & apart
    points = torch.linalg.solve(torch.where(known[..., None, None], normal, eye), target[..., None])[..., 0]
    return torch.where(known[..., None], points, 0), torch.where(known, total, 0)


def follow_frames(
    costs: Float[Tensor, "C T S"],
    joints: Float[Tensor, "C T S J 3"] | None,
    visible: Bool[Tensor, "C T"],
) -> tuple[Int[Tensor, "C T"], Int[Tensor, "C T"]]:
    """Return for each frame the nearest visible frame, and which of its S candidates to start from.

    Those are chosen that move least between frames, by the ``joints`` in standard deviations of a move from
    frame to frame; without them, the candidate of lowest cost in each frame. Visible frames show enough
    points to be fitted alone.
    """
    every = torch.arange(costs.shape[1], device=costs.device)
    frames, chosen = every.repeat(len(costs), 1), costs.argmin(-1)
    for clip, shown in enumerate(visible):
        at = shown.nonzero()[:, 0] if shown.any() else every[:1]
        after = torch.searchsorted(at, every).clamp(max=len(at) - 1)
        before = (after - 1).clamp(min=0)
        nearest = torch.where((every - at[before]).abs() <= (at[after] - every).abs(), before, after)
        frames[clip] = at[nearest]
        path = chosen[clip, at]
        if joints is not None:
            own, places = (part[clip, at].double().cpu().numpy() for part in (costs, joints))
            path = torch.from_numpy(best_path(own, places, at.cpu().numpy())).to(path)
        chosen[clip] = path[nearest]
    return frames, chosen


def best_path(costs: np.ndarray, joints: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return which of S candidates per frame make up the cheapest sequence (Viterbi).

    Costs are (T, S), joints (T, S, J, 3) in standard deviations of a move from one frame number to the next,
    and times the (T) frame numbers.
    """
    moves = joints[1:, None] - joints[:-1, :, None]  # (T - 1, from, to, J, 3)
    links = np.square(moves).sum((-2, -1)) / (2 * np.diff(times)[:, None, None])
    total, back = costs[0], []
    for own, link in zip(costs[1:], links, strict=True):
        through = total[:, None] + link
        back.append(through.argmin(0))
        total = through.min(0) + own
    path = [int(total.argmin())]
    for came_from in reversed(back):
        path.append(int(came_from[path[-1]]))
    return np.array(path[::-1])


def _viewing_rotations() -> Float[Tensor, "T 3 3"]:
    """Return rotations of an upright body (y up) to camera axes (y down): about its axis, then pitched."""
    flip = np.diag([1.0, -1, -1])
    found = []
    for pitch in _PITCHES:
        c, s = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
        lean = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        for k in range(_YAWS):
            c, s = math.cos(2 * math.pi * k / _YAWS), math.sin(2 * math.pi * k / _YAWS)
            turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
            found.append(lean @ flip @ turn)
    return torch.from_numpy(np.stack(found))


def _roll(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Return rotations about the optical axis."""
    c, s = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack((c, -s, zero, s, c, zero, zero, zero, one), -1).unflatten(-1, (3, 3))
