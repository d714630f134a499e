"""Boxes around people, and points in them: full frame, crop, and crop-normalised coordinates.

Boxes are (*batch, 4) pixels, by default as corners (x0, y0, x1, y1). Pixels begin at 0: an image, and a crop
of it, span [0, W] x [0, H]. A box without extent, such as `box_around` gives for nobody, is taken for one of
1 pixel, so that people whose weight is 0 stay finite.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.cameras.camera import Camera, Size, as_size, expect_camera, not_empty
from agebody.checks import (
    Weights,
    apply_mask,
    broadcast,
    expand_weights,
    expect,
    expect_choice,
    expect_values,
    read_positive,
)

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
"""Corners; first corner and size (COCO's); centre and size."""


def convert_box(
    box: Float[Tensor, "*batch 4"], source: BoxFormat, target: BoxFormat
) -> Float[Tensor, "*batch 4"]:
    """Convert a box to another format: "xyxy", "xywh" or "cxcywh"."""
    for name, box_format in (("source", source), ("target", target)):
        expect_choice(name, box_format, get_args(BoxFormat))
    first, second = (_corners(box) if source == "xyxy" else expect("box", box, 4)).split(2, -1)
    if source == "cxcywh":
        first = first - second / 2
    size = second - first if source == "xyxy" else second
    if target == "xyxy":
        return torch.cat((first, first + size), -1)
    return torch.cat((first if target == "xywh" else first + size / 2, size), -1)


def square_box(
    box: Float[Tensor, "*batch 4"], *, scale: float = 1.0, crop: tuple[float, float] = (1, 1)
) -> Float[Tensor, "*batch 4"]:
    """Return the square around the same centre whose side is the box's longer side times a scale.

    Args:
        box: corners [pixels].
        scale: margin around a person; 1.2 is usual.
        crop: width and height of a crop, whatever their unit, that is as high, or as wide, as the square,
            and in its middle; it shows the whole box.
    """
    read_positive("scale", scale)
    center, size = convert_box(box, "xyxy", "cxcywh").split(2, -1)
    width, height = (read_positive("crop", side, "a width and a height") for side in crop)
    size = size * (max(width, height) / size.new_tensor((width, height)))
    half = size.amax(-1, keepdim=True) * (scale / 2)
    return torch.cat((center - half, center + half), -1)


def box_around(
    keypoints: Float[Tensor, "*batch K 2"], *, weights: Weights = None, scale: float = 1.0
) -> Float[Tensor, "*batch 4"]:
    """Return the box around keypoints, enlarged about its centre.

    Args:
        keypoints: in the image [pixels], at least one.
        weights: confidences or a mask, (*batch, K). Points of weight 0 are ignored, even NaN; without any
            other, all four corners are 0.
        scale: size of the box over that of the keypoints' extent.
    """
    read_positive("scale", scale)
    points = expect("keypoints", keypoints, None, 2)
    if points.shape[-2] == 0:
        raise ValueError(f"keypoints: expected one or more, got shape {tuple(points.shape)}")
    weights = expand_weights(weights, points.shape[:-1])
    if weights is None:
        low, high = points.amin(-2), points.amax(-2)
    else:
        kept = (weights != 0)[..., None]
        points, some = apply_mask(points, weights, 1), kept.any(-2)
        low = torch.where(some, torch.where(kept, points, torch.inf).amin(-2), 0)
        high = torch.where(some, torch.where(kept, points, -torch.inf).amax(-2), 0)
    center, half = (low + high) / 2, (high - low) * (scale / 2)
    return torch.cat((center - half, center + half), -1)


def to_crop(
    points: Float[Tensor, "*points K 2"],
    box: Float[Tensor, "*batch 4"],
    *,
    size: Size | None = None,
    limit: float = 0.5,
) -> Float[Tensor, "*out K 2"]:
    """Convert image points to coordinates of a crop: pixels after resizing it, or normalised coordinates.

    `Camera.cropped` is the camera that projects to the pixels.

    Args:
        points: in the full image [pixels].
        box: corners of the crop in it [pixels].
        size: width and height of the crop after resizing [pixels]; None for normalised coordinates.
        limit: where normalised coordinates end: from -limit to limit over the box. 0.5 as in HMR2, or 1 as in
            HMR and SPIN.
    """
    points, low, extent = _in_window(points, box)
    share = (points - low) / extent
    limit = read_positive("limit", limit)
    return (share - 0.5) * (2 * limit) if size is None else share * as_size(size, low)[..., None, :]


def from_crop(
    points: Float[Tensor, "*points K 2"],
    box: Float[Tensor, "*batch 4"],
    *,
    size: Size | None = None,
    limit: float = 0.5,
) -> Float[Tensor, "*out K 2"]:
    """Convert coordinates of a crop to points of the full image; the inverse of `to_crop`."""
    points, low, extent = _in_window(points, box)
    limit = read_positive("limit", limit)
    share = points / (2 * limit) + 0.5 if size is None else points / as_size(size, low)[..., None, :]
    return low + share * extent


def box_condition(
    box: Float[Tensor, "*batch 4"], camera: Camera, *, normalization: Literal["plain", "h36m"] = "plain"
) -> Float[Tensor, "*batch 3"]:
    """Return the position of a crop in its image as input of a network: angles from the optical axis.

    With the box's centre c and side b, and the camera's principal point o and focal length f:

    - "plain": ((c - o) / f, b / f), equation (5) of CLIFF (ECCV 2022), and the input of CameraHMR (3DV 2025);
    - "h36m": (2.8 (c - o) / f, (b - 0.24 f) / (0.06 f)), the input of CLIFF's released networks: the same,
      scaled to about [-1, 1] by statistics of Human3.6M.

    Both take o for the middle of the image. f is the mean of fx and fy. If the box is not square, b is the
    longer side.

    Args:
        box: corners [pixels].
        camera: of the full image; without calibration, `Camera.guess`.
        normalization: "plain" or "h36m".
    """
    expect_camera(camera)
    expect_choice("normalization", normalization, ("plain", "h36m"))
    center, size = convert_box(box, "xyxy", "cxcywh").split(2, -1)
    focal = expect("camera.focal", camera.focal, 2).mean(-1, keepdim=True)
    offset = (center - expect("camera.center", camera.center, 2)) / focal
    side = size.amax(-1, keepdim=True) / focal
    if normalization == "h36m":
        offset, side = 2.8 * offset, (side - 0.24) / 0.06
    return torch.cat((offset, side.expand_as(offset[..., :1])), -1)


def _corners(box: Tensor) -> Tensor:
    box = expect("box", box, 4)
    first, second = box.split(2, -1)
    ordered = "corners (x0, y0, x1, y1) in ascending order; convert_box converts other boxes"
    expect_values(wait=False, box=(~(second < first), ordered))
    return box


def _in_window(points: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return points that have the batch of a box, and its first corner and size, (*batch, 1, 2)."""
    points = expect("points", points, None, 2)
    low, high = _corners(box)[..., None, :].split(2, -1)
    broadcast(points=points.shape[:-2], box=low.shape[:-2])
    return points, low, not_empty(high - low)
