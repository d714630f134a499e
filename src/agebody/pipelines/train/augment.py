"""Augmentations of HMR2 as geometry: picture, keypoints, pose and camera change consistently.

A picture is flipped and turned about the principal point of its camera, not about the middle of the person:
what a camera sees is then exactly what the same camera sees of the mirrored and turned person, and only the
crop moves. So the projection of augmented points in space gives the augmented points of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.cameras import Camera, box_around, convert_box, square_box
from agebody.checks import read_number, read_share
from agebody.keypoints import KeypointLayout, get_layout, mirror_order
from agebody.rotations import mirror


@dataclass(frozen=True)
class Augmentation:
    """How strongly people and their pictures are varied; the defaults are those of HMR2's public code."""

    scale: float = 0.3
    """Standard deviation of the size of the box, as a share of it; clipped at one."""
    rotation: float = math.radians(30)
    """Standard deviation of turns in the image plane [rad]; clipped at two."""
    rotated: float = 0.6
    """Share of people that are turned."""
    shift: float = 0.02
    """Standard deviation of the box's place, as a share of its side; clipped at one."""
    shifted: float = 0.5
    """Share of boxes that are moved."""
    flipped: float = 0.5
    """Share of people that are mirrored."""
    color: float = 0.2
    """Largest change of the brightness of a colour channel, as a share of it."""
    focused: float = 0.1
    """Share of boxes that show a part of the person alone: the upper body, the head, an arm, the legs."""

    def __post_init__(self) -> None:
        """Check all numbers."""
        for name in ("rotated", "shifted", "flipped", "focused"):
            read_share(name, getattr(self, name))
        for name in ("scale", "rotation", "shift", "color"):
            most = math.inf if name == "rotation" else math.nextafter(1, 0)
            read_number(name, getattr(self, name), "0 or more, and shares below 1", 0, most)


NO_AUGMENTATION = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Draw(NamedTuple):
    """The augmentations of N people."""

    scale: Float[Tensor, " N"]
    """Factor of the box."""
    rotation: Float[Tensor, " N"]
    """Turn of the picture, clockwise as it is shown [rad]."""
    shift: Float[Tensor, "N 2"]
    """Of the box, in shares of its side."""
    flip: Bool[Tensor, " N"]
    color: Float[Tensor, "N 3"]
    """Factor of each channel."""
    focus: Int[Tensor, " N"]
    """Row of ``FOCUS``; -1 for the whole person."""


_FOCUS = (
    (0.2, 1.32, "nose neck eye ear shoulder elbow wrist hip head jaw thorax spine pelvis"),
    (0.1, 1.44, "nose neck eye ear shoulder head jaw"),
    (0.1, 1.56, "nose neck eye ear shoulder head jaw"),
    (0.1, 1.32, "shoulder hip neck thorax spine pelvis"),
    (0.1, 1.32, "right_shoulder right_elbow right_wrist"),
    (0.1, 1.32, "left_shoulder left_elbow left_wrist"),
    (0.1, 1.32, "hip knee ankle heel toe pelvis"),
    (0.1, 1.32, "right_hip right_knee right_ankle right_heel right_big_toe right_small_toe"),
    (0.1, 1.32, "left_hip left_knee left_ankle left_heel left_big_toe left_small_toe"),
)
"""Parts of a person that a box may show alone: their probability, the box's side in sizes of the part, and
what the names of their points have in them. Those of HMR2, which crops only people with all limbs visible."""


def draw_augmentation(augmentation: Augmentation, seeds: Sequence[Sequence[int]]) -> Draw:
    """Draw the augmentation of each person from a seed of its own: numbers, 0 or more."""
    a, rows = augmentation, []
    for seed in seeds:
        rng = np.random.default_rng(list(seed))
        normal, share, color = rng.normal(size=4), rng.random(5), rng.uniform(-1, 1, 3)
        scale = 1 + a.scale * np.clip(normal[0], -1, 1)
        rotation = a.rotation * np.clip(normal[1], -2, 2) * (share[0] < a.rotated)
        shift = a.shift * np.clip(normal[2:], -1, 1) * (share[1] < a.shifted)
        focus = np.searchsorted(np.cumsum([chance for chance, _, _ in _FOCUS])[:-1], share[4], side="right")
        focus = focus if share[3] < a.focused else -1
        rows.append((scale, rotation, *shift, share[2] < a.flipped, *(1 + a.color * color), focus))
    table = torch.tensor(np.array(rows, np.float64).reshape(-1, 9), dtype=torch.float32)
    return Draw(table[:, 0], table[:, 1], table[:, 2:4], table[:, 4] > 0.5, table[:, 5:8], table[:, 8].long())


class Examples(NamedTuple):
    """N people, each in an image of its own: all that an augmentation moves."""

    box: Float[Tensor, "N 4"]
    """Corners of the square crop [pixels]."""
    keypoints_2d: Float[Tensor, "N K 2"]
    """[pixels]"""
    keypoints_2d_weights: Float[Tensor, "N K"]
    keypoints_3d: Float[Tensor, "N K 3"]
    """In camera coordinates [m]."""
    keypoints_3d_weights: Float[Tensor, "N K"]
    global_orient: Float[Tensor, "N 3 3"]
    """In camera coordinates."""
    body_pose: Float[Tensor, "N J 3"]
    """Axis-angle vectors of the other joints."""
    camera: Camera
    """Of the images; without pose and distortion."""


def augment(
    people: Examples, draw: Draw, joint_names: Sequence[str], *, layout: str | KeypointLayout = "hmr2_44"
) -> tuple[Examples, Float[Tensor, "N 2 3"]]:
    """Flip, turn and crop people; their cameras stay as they are.

    Args:
        people: before.
        draw: the augmentation of each.
        joint_names: of the body, the root's first.
        layout: of the keypoints.

    Returns:
        The people, and the affine maps (N, 2, 3) from the changed images to the given ones [pixels]: what
        `crop_image` needs.
    """
    layout, order = get_layout(layout), list(mirror_order(joint_names[1:]))
    focal, center = people.camera.focal, people.camera.center
    side = torch.where(draw.flip, -1.0, 1.0)
    cos, sin = torch.cos(draw.rotation), torch.sin(draw.rotation)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    turn = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, one), -1).unflatten(-1, (3, 3))
    across = torch.diag_embed(torch.stack((side, one, one), -1))
    move = turn @ across
    # In the image: x' = o + F R S F^-1 (x - o), with different focal lengths along x and y too.
    linear = focal[:, :, None] * move[:, :2, :2] / focal[:, None, :]
    offset = center - (linear @ center[..., None])[..., 0]

    def moved(points: Tensor) -> Tensor:
        return points @ linear.mT + offset[:, None]

    box = _focused(people, draw.focus, layout)
    flip = torch.tensor(layout.flip)
    switch = torch.where(draw.flip[:, None], flip, torch.arange(len(layout)))

    def switched(values: Tensor) -> Tensor:
        index = switch if values.dim() == 2 else switch[..., None].expand_as(values)
        return values.gather(1, index)

    middle, extent = convert_box(box, "xyxy", "cxcywh").split(2, -1)
    extent = extent * draw.scale[:, None]
    middle = moved(middle[:, None])[:, 0] + draw.shift * extent
    root = torch.where(draw.flip[:, None, None], mirror(people.global_orient, "matrix"), people.global_orient)
    pose = torch.where(draw.flip[:, None, None], mirror(people.body_pose[:, order]), people.body_pose)
    inverse = torch.linalg.inv(linear)
    back = torch.cat((inverse, -(inverse @ offset[..., None])), -1)
    changed = people._replace(
        box=convert_box(torch.cat((middle, extent), -1), "cxcywh", "xyxy"),
        keypoints_2d=switched(moved(people.keypoints_2d)),
        keypoints_2d_weights=switched(people.keypoints_2d_weights),
        keypoints_3d=switched(people.keypoints_3d @ move.mT),
        keypoints_3d_weights=switched(people.keypoints_3d_weights),
        global_orient=turn @ root,
        body_pose=pose,
    )
    return changed, back


def _focused(people: Examples, focus: Tensor, layout: KeypointLayout) -> Tensor:
    """Return the boxes; for crops of a part, around that part if a person has two of its points."""
    members = torch.tensor(
        [[any(part in name for part in parts.split()) for name in layout.names] for _, _, parts in _FOCUS]
    )
    kept = members[focus.clamp(min=0)] & (people.keypoints_2d_weights > 0) & (focus >= 0)[:, None]
    near = square_box(box_around(people.keypoints_2d, weights=kept))
    margin = torch.tensor([margin for _, margin, _ in _FOCUS])[focus.clamp(min=0), None]
    middle, extent = convert_box(near, "xyxy", "cxcywh").split(2, -1)
    near = convert_box(torch.cat((middle, margin * extent), -1), "cxcywh", "xyxy")
    width = margin * extent[:, :1]
    enough = (kept.sum(-1, keepdim=True) > 1) & (width > (people.box[:, 2:3] - people.box[:, :1]) / 20)
    return torch.where(enough, near, people.box)
