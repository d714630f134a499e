"""The bodies that stand in for people: in camera space, as exact in shape as wanted, seen by their camera."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.age import AGE_CLASSES, age_class
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.draw import PALETTE, Picture, render
from agebody.keypoints import KeypointLayout
from agebody.parameters import BodyParameters

Shape = Literal["mean", "coarse", "exact"]
"""How much of a person's shape, which is biometric, is passed on (see `generalize`)."""

KEPT_BETAS = 2
"""Of a coarse shape: stature and build on SMPL and on the free body."""
LARGEST_BETA = 2.0
AGE_STEP = 0.1
"""Of the age offset of a coarse shape."""


class Bodies(NamedTuple):
    """The people of one photograph as their camera sees them."""

    parameters: BodyParameters
    """N people in camera space."""
    picture: Picture
    """Bodies on a transparent background."""
    keypoints: Float[np.ndarray, "N K 2"]
    """[pixels]"""
    visibility: Int[np.ndarray, "N K"]
    """COCO's: 0 outside the picture, 1 behind somebody else, 2 otherwise. A body does not hide itself."""
    boxes: Float[np.ndarray, "N 4"]
    """Corners around each whole mesh, seen or not [pixels]; NaN where none of it is before the camera."""
    age_classes: list[int] | None
    """Indices into ``AGE_CLASSES``; None where the body has one age."""

    def outline(self, person: int) -> Bool[np.ndarray, "H W"]:
        """Where one body is seen."""
        return self.picture.instance == person


def to_camera_space(body: BodyModel, people: BodyParameters, camera: Camera) -> BodyParameters:
    """The same bodies in the axes of their camera: where it stood in the world is left behind."""
    if camera.rotation is None and camera.translation is None:
        return people
    camera = camera.to(people.transl)
    pose = camera.world_to_camera
    identity = _identity(body, people)
    global_orient, transl = body.shape(**identity).move(
        pose[:3, :3], pose[:3, 3], global_orient=people.global_orient, transl=people.transl,
        pose_format="axis_angle",
    )  # fmt: skip
    return people._replace(global_orient=global_orient, transl=transl)


def generalize(body: BodyModel, people: BodyParameters, shape: Shape) -> BodyParameters:
    """People with less of their own shape; the pelvis stays where it is.

    - ``"mean"``: betas are zero, and the age offset is that of the person's age class;
    - ``"coarse"``: two betas remain, in whole standard deviations from -2 to 2; the age offset is rounded to
      tenths;
    - ``"exact"``: nothing changes.
    """
    if shape == "exact":
        return people
    betas = torch.zeros_like(people.betas)
    age_offset = people.age_offset
    if shape == "coarse":
        betas[..., :KEPT_BETAS] = people.betas[..., :KEPT_BETAS].round().clamp(-LARGEST_BETA, LARGEST_BETA)
        age_offset = (age_offset / AGE_STEP).round() * AGE_STEP
    else:
        age_offset = age_offset.new_tensor([kind.mid for kind in AGE_CLASSES])[age_class(age_offset)]
    if not body.age_anchors:
        age_offset = people.age_offset
    changed = people._replace(betas=betas + 0.0, age_offset=age_offset + 0.0)  # no negative zeros
    before, after = (body.shape(**_identity(body, each)).rest_joints[..., 0, :] for each in (people, changed))
    return changed._replace(transl=people.transl + before - after)


@torch.no_grad()
def see(
    body: BodyModel,
    people: BodyParameters,
    lens: Camera,
    size: tuple[int, int],
    *,
    layout: KeypointLayout,
    colors: Sequence[int] = (),
) -> Bodies:
    """Draws and projects people in camera space.

    Args:
        body: their body.
        people: N of them.
        lens: a camera without rotation and translation.
        size: of the picture [pixels].
        layout: of the keypoints.
        colors: index into the palette of each; in turn if not given.
    """
    lens = lens.to("cpu", torch.float64)
    arguments = people.arguments(body)
    picture = draw(body, people, lens, size, colors=colors, light_rays=4)
    points = body.keypoints(layout, **arguments, pose_format="axis_angle").cpu().double()
    projected = lens.project(points, size=size)
    pixels, depth = projected.pixels.numpy(), projected.depth.numpy()
    visibility = np.where(projected.visible.numpy(), 2, 0)
    for person, (xy, z) in enumerate(zip(pixels, depth, strict=True)):
        seen = visibility[person] > 0
        column, row = xy[seen].astype(int).T
        other = picture.instance[row, column]
        hidden = (other >= 0) & (other != person) & (picture.depth[row, column] < z[seen])
        visibility[person, np.flatnonzero(seen)[hidden]] = 1
    pixels = np.where(visibility[..., None] > 0, pixels, 0)
    ages = age_class(people.age_offset).tolist() if body.age_anchors else None
    return Bodies(people, picture, pixels, visibility, mesh_boxes(body, people, lens), ages)


def draw(
    body: BodyModel,
    people: BodyParameters,
    lens: Camera,
    size: tuple[int, int],
    *,
    colors: Sequence[int] = (),
    light_rays: int = 0,
) -> Picture:
    """Bodies on a transparent background; arguments as of `see` and `render`."""
    vertices = _vertices(body, people).numpy()
    return render(
        vertices, body.faces.cpu().numpy(), lens, size=size, background=None, light_rays=light_rays,
        colors=[PALETTE[i % len(PALETTE)] for i in (colors or range(len(vertices)))],
    )  # fmt: skip


def mesh_boxes(body: BodyModel, people: BodyParameters, lens: Camera) -> Float[np.ndarray, "N 4"]:
    """Corners around each mesh [pixels]; NaN where none of it is before the camera."""
    projected = lens.to("cpu", torch.float64).project(_vertices(body, people))
    pixels = torch.where(projected.visible[..., None], projected.pixels, torch.nan).numpy()
    boxes = np.full((len(pixels), 4), np.nan)
    for box, xy in zip(boxes, pixels, strict=True):
        if np.isfinite(xy).any():
            box[:2], box[2:] = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    return boxes


@torch.no_grad()
def _vertices(body: BodyModel, people: BodyParameters) -> Float[Tensor, "N V 3"]:
    return body(**people.arguments(body), pose_format="axis_angle").vertices.cpu().double()


def _identity(body: BodyModel, people: BodyParameters) -> dict[str, Tensor]:
    arguments = people.arguments(body)
    return {name: arguments[name] for name in ("betas", "age_offset") if name in arguments}
