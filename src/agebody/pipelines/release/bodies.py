"""The bodies in place of people: in camera space, with reduced detail of shape, drawn and projected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.age import AGE_CLASSES, age_class
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.draw import Picture, render
from agebody.draw.meshes import PALETTE
from agebody.keypoints import KeypointLayout
from agebody.parameters import BodyParameters
from agebody.pipelines.release.options import Shape

KEPT_BETAS = 2
"""Number of betas of a coarse shape: stature and build on SMPL and on the free body."""
MAX_BETA = 2.0
"""Bound of the betas of a coarse shape [standard deviations]."""
AGE_STEP = 0.1
"""Step of the age offset of a coarse shape."""


class Bodies(NamedTuple):
    """The people of one photograph as their camera shows them."""

    parameters: BodyParameters
    """N people in camera space."""
    picture: Picture
    """Bodies on a transparent background."""
    keypoints: Float[np.ndarray, "N K 2"]
    """[pixels]"""
    visibility: Int[np.ndarray, "N K"]
    """COCO's flag: 0 outside the picture, 1 behind another person, else 2; no body hides its own points."""
    boxes: Float[np.ndarray, "N 4"]
    """Corners around each whole mesh, visible or not [pixels]; NaN if none of it is before the camera."""
    age_classes: list[int] | None
    """Indices into ``AGE_CLASSES``; None if the body has one age."""


def generalize(body: BodyModel, people: BodyParameters, shape: Shape) -> BodyParameters:
    """Remove detail from the shapes of people; the pelvis stays in place.

    - ``"mean"``: betas are zero, and the age offset is the middle of the person's age class;
    - ``"coarse"``: two betas remain, rounded to whole standard deviations from -2 to 2, and the age offset is
      rounded to tenths;
    - ``"exact"``: nothing changes.
    """
    if shape == "exact":
        return people
    betas = torch.zeros_like(people.betas)
    age_offset = people.age_offset
    if shape == "coarse":
        betas[..., :KEPT_BETAS] = people.betas[..., :KEPT_BETAS].round().clamp(-MAX_BETA, MAX_BETA)
        age_offset = (age_offset / AGE_STEP).round() * AGE_STEP
    else:
        age_offset = age_offset.new_tensor([kind.mid for kind in AGE_CLASSES])[age_class(age_offset)]
    if not body.age_anchors:
        age_offset = people.age_offset
    changed = people._replace(betas=betas + 0.0, age_offset=age_offset + 0.0)  # no negative zeros
    before, after = (body.shape(each).rest_joints[..., 0, :] for each in (people, changed))
    return changed._replace(transl=people.transl + before - after)


@torch.no_grad()
def view_bodies(
    body: BodyModel,
    people: BodyParameters,
    lens: Camera,
    size: tuple[int, int],
    *,
    layout: KeypointLayout,
    colors: Sequence[int] = (),
) -> Bodies:
    """Draw and project people in camera space; colours of the palette are in turn by default."""
    lens = lens.to("cpu", torch.float64)
    vertices = pose_bodies(body, people)
    shades = [PALETTE[i % len(PALETTE)] for i in (colors or range(len(vertices)))]
    look = {"background": None, "light_rays": 4, "colors": shades}
    picture = render(vertices.numpy(), body.faces.cpu().numpy(), lens, size=size, **look)
    points = body.keypoints(layout, people).cpu().double()
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
    return Bodies(people, picture, pixels, visibility, mesh_boxes(vertices, lens), ages)


@torch.no_grad()
def pose_bodies(body: BodyModel, people: BodyParameters) -> Float[Tensor, "N V 3"]:
    """Return the vertices of people in float64, on the CPU [m]."""
    return body(people).vertices.cpu().double()


def mesh_boxes(vertices: Float[Tensor, "N V 3"], lens: Camera) -> Float[np.ndarray, "N 4"]:
    """Return corners around each mesh [pixels]; NaN if none of it is before the camera."""
    projected = lens.to("cpu", torch.float64).project(vertices)
    pixels = torch.where(projected.visible[..., None], projected.pixels, torch.nan).numpy()
    boxes = np.full((len(pixels), 4), np.nan)
    for box, xy in zip(boxes, pixels, strict=True):
        if np.isfinite(xy).any():
            box[:2], box[2:] = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    return boxes
