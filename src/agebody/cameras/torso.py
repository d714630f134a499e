"""Where a person stands, to begin with: depth from how large the torso shows (SMPLify)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.cameras.camera import Camera
from agebody.checks import Weights, apply_mask, expand_weights, expect, safe_norm
from agebody.keypoints import KeypointLayout, get_layout

TORSO = (("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"))
"""Edges whose length changes little with pose: SMPLify's."""

LEAST_LENGTH = 1.0
"""Length [pixels] as which a shorter torso in the image counts."""


def torso_depth(
    points: Float[Tensor, "*points K 3"],
    keypoints: Float[Tensor, "*batch K 2"],
    camera: Camera,
    layout: str | KeypointLayout,
    *,
    weights: Weights = None,
    unseen: float = 5.0,
) -> Float[Tensor, "*out"]:
    """Depth of a person [m]: f times the mean length of the torso's edges on the body over that in the image.

    Exact where both edges are parallel to the image; a torso that leans towards the camera counts as farther.

    Args:
        points: of the body, in any place and orientation [m].
        keypoints: where they are in the image [pixels].
        camera: what the image was taken with; f is the mean of fx and fy.
        layout: of both; must have left and right ``shoulder`` and ``hip``.
        weights: confidences or a mask, (*batch, K). An edge weighs the product of its ends; points of weight
            0 are ignored even where they are NaN.
        unseen: depth given to persons without any edge that weighs something [m].

    Returns:
        Positive and finite. A torso that shows shorter than a pixel counts as one pixel long.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or the layout lacks a point.

    Source: Bogo et al., "Keep it SMPL", ECCV 2016.
    """
    body, image, edge_weights = _edges(points, keypoints, layout, weights)
    lengths = [safe_norm(ends[..., 0, :] - ends[..., 1, :]) for ends in (body, image)]
    real, shown = (_mean(length[..., None], edge_weights)[..., 0] for length in lengths)
    depth = expect("camera.focal", camera.focal, 2).mean(-1) * real / shown.clamp(min=LEAST_LENGTH)
    return torch.where((edge_weights > 0).any(-1), depth, unseen)


def torso_translation(
    points: Float[Tensor, "*points K 3"],
    keypoints: Float[Tensor, "*batch K 2"],
    camera: Camera,
    layout: str | KeypointLayout,
    *,
    weights: Weights = None,
    unseen: float = 5.0,
) -> Float[Tensor, "*out 3"]:
    """Translation that puts the middle of the torso at `torso_depth`, where it shows in the image [m].

    Added to points in camera coordinates. SMPLify itself begins on the optical axis and lets the optimiser
    find x and y. Persons whose torso is not seen are put on the axis.

    Args:
        points: of the body, in the camera's orientation [m].
        keypoints: as in `torso_depth`.
        camera: as there; its pose plays no part, its distortion does.
        layout: as there.
        weights: as there.
        unseen: as there.
    """
    depth = torso_depth(points, keypoints, camera, layout, weights=weights, unseen=unseen)
    body, image, edge_weights = _edges(points, keypoints, layout, weights)
    middle, shown = (_mean(ends.mean(-2), edge_weights) for ends in (body, image))
    shown = torch.where((edge_weights > 0).any(-1)[..., None], shown, camera.center)
    lens = camera._replace(rotation=None, translation=None)
    return lens.unproject(shown[..., None, :], depth[..., None])[..., 0, :] - middle


def _edges(
    points: Tensor, keypoints: Tensor, layout: str | KeypointLayout, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the torso's edges on the body and in the image, (*batch, 2, 2, D), and the edges' weights."""
    layout = get_layout(layout)
    missing = sorted({name for edge in TORSO for name in edge} - {*layout.names})
    if missing:
        raise ValueError(f"layout: {layout.name!r} has no {', '.join(missing)}")
    index = [layout.names.index(name) for edge in TORSO for name in edge]
    body, image = expect("points", points, len(layout), 3), expect("keypoints", keypoints, len(layout), 2)
    entries = image.shape[:-1]
    trust = expand_weights(image.new_ones(()) if weights is None else weights, entries)
    assert trust is not None  # as weights were given
    body, image = (
        torch.stack([part[..., i, :] for i in index], -2).unflatten(-2, (len(TORSO), 2))
        for part in (apply_mask(body, trust, 1), apply_mask(image, trust, 1))
    )
    first, second = (torch.stack([trust[..., i] for i in ends], -1) for ends in (index[::2], index[1::2]))
    return body, image, (first * second).to(image)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the edges; 0 where none weighs anything."""
    total = weights.sum(-1)[..., None]
    return (values * weights[..., None]).sum(-2) / torch.where(total > 0, total, 1)
