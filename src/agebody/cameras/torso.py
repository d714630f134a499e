"""Initial placement of a person: depth from the size of the torso in the image (SMPLify)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.cameras.camera import Camera, expect_camera
from agebody.checks import Weights, apply_mask, broadcast, expand_weights, expect, read_positive, safe_norm
from agebody.keypoints import KeypointLayout, get_layout

TORSO = (("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"))
"""Edges whose length changes little with pose: SMPLify's."""

LEAST_LENGTH = 1.0
"""Length [pixels] to which shorter torsos in the image are clamped."""


def torso_translation(
    points: Float[Tensor, "*points K 3"],
    keypoints: Float[Tensor, "*batch K 2"],
    camera: Camera,
    layout: str | KeypointLayout,
    *,
    weights: Weights = None,
    unseen: float = 5.0,
) -> Float[Tensor, "*out 3"]:
    """Return the translation [m] that puts the middle of a person's torso where the image shows it.

    Its depth is f times the mean length of the torso's edges in 3D over that in the image: exact if both
    edges are parallel to the image; a torso that leans towards the camera appears farther. It is positive and
    finite, since a torso shorter than a pixel counts as one pixel long. SMPLify itself starts on the optical
    axis and optimises x and y.

    Args:
        points: of the body, anywhere, in the camera's orientation [m]; the translation is to be added.
        keypoints: the same points in the image [pixels].
        camera: of the image; f is the mean of fx and fy. Its pose is ignored, its distortion used.
        layout: of both; must have left and right ``shoulder`` and ``hip``.
        weights: confidences or a mask, (*batch, K). An edge weighs the product of its ends.
        unseen: depth of people without any edge of weight, who are put on the optical axis [m].

    Source: Bogo et al., "Keep it SMPL", ECCV 2016.
    """
    expect_camera(camera)
    body, image, edge_weights = _edges(points, keypoints, layout, weights)
    lengths = [safe_norm(ends[..., 0, :] - ends[..., 1, :]) for ends in (body, image)]
    real, length = (_mean(part[..., None], edge_weights)[..., 0] for part in lengths)
    depth = expect("camera.focal", camera.focal, 2).mean(-1) * real / length.clamp(min=LEAST_LENGTH)
    seen = (edge_weights > 0).any(-1)
    depth = torch.where(seen, depth, read_positive("unseen", unseen, "a depth", " [m]"))
    middle, shown = (_mean(ends.mean(-2), edge_weights) for ends in (body, image))
    shown = torch.where(seen[..., None], shown, camera.center)
    lens = camera._replace(rotation=None, translation=None)
    return lens.unproject(shown[..., None, :], depth[..., None])[..., 0, :] - middle


def _edges(
    points: Tensor, keypoints: Tensor, layout: str | KeypointLayout, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ends of the torso's edges on body and image, (*batch, 2, 2, D), and the edges' weights."""
    layout = get_layout(layout)
    missing = sorted({name for edge in TORSO for name in edge} - {*layout.names})
    if missing:
        raise ValueError(f"layout: {layout.name!r} has no {', '.join(missing)}")
    index = [layout.names.index(name) for edge in TORSO for name in edge]
    body, image = expect("points", points, len(layout), 3), expect("keypoints", keypoints, len(layout), 2)
    broadcast(points=body.shape[:-2], keypoints=image.shape[:-2])
    entries = image.shape[:-1]
    trust = expand_weights(weights, entries)
    trust = image.new_ones(entries) if trust is None else trust
    body, image = (
        torch.stack([part[..., i, :] for i in index], -2).unflatten(-2, (len(TORSO), 2))
        for part in (apply_mask(body, trust, 1), apply_mask(image, trust, 1))
    )
    first, second = (torch.stack([trust[..., i] for i in ends], -1) for ends in (index[::2], index[1::2]))
    return body, image, (first * second).to(image)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over the edges; 0 where none has weight."""
    total = weights.sum(-1)[..., None]
    return (values * weights[..., None]).sum(-2) / torch.where(total > 0, total, 1)
