"""Weak perspective: conversions of networks' outputs for a crop to translations before a perspective camera.

Three numbers give the place of the body's origin in the crop, in a form and order that differ by network.
Each converts to a translation [m], to be added to the body's points in camera coordinates.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.cameras.boxes import convert_box
from agebody.cameras.camera import (
    NEAR,
    Camera,
    Projection,
    Size,
    as_size,
    expect_camera,
    inverse_depth,
    not_empty,
)
from agebody.checks import broadcast, expect, expect_dtype, read_nonnegative, read_positive, to_number

LEAST_SCALE = 0.01
"""Scale s of a crop below which 1 / s is continued by its tangent: a person is less than a hundredth of the
crop wide."""

BEV_LEAST = 1e-3
"""The same of BEV's 1 / depth: 1000 m."""
MAHMR_RESOLUTION = 1288.0
"""Longer side of Metric-Aware HMR's input [pixels]."""
MAHMR_LEAST = 1e-6
"""Smallest scale of Metric-Aware HMR."""


def weak_to_translation(
    weak: Float[Tensor, "*batch 3"], box: Float[Tensor, "*boxes 4"], camera: Camera
) -> Float[Tensor, "*out 3"]:
    """Convert (s, tx, ty) of HMR, SPIN, HMR2, CLIFF, CameraHMR to a translation in the full image's camera.

    In the crop, with coordinates from -1 to 1, the body appears at s (X + tx), s (Y + ty). With the box's
    centre c and side b, the principal point o and the focal length f (CLIFF, ECCV 2022):

        tz = 2 f / (b s),   (x, y) = (tx, ty) + 2 (c - o) / (b s)

    If the box is the whole image and o its middle, this is HMR2's crop camera: (tx, ty, 2 f / (res s)). If fx
    and fy differ, tz takes their mean, and the body's origin keeps its place in the image.

    Args:
        weak: scale s and tx, ty. Below s = 0.01, 1 / s is continued by its tangent, so tz is positive, finite
            and differentiable for every s. To train s itself, project by `project_weak`.
        box: corners of the square crop in the image [pixels]; otherwise b is the longer side.
        camera: of the full image. Its pose and distortion are ignored.
    """
    expect_camera(camera)
    scale, shift = expect("weak", weak, 3).split((1, 2), -1)
    center, side, focal = _crop(box, camera)
    broadcast(weak=scale.shape[:-1], box=side.shape[:-1], camera=focal.shape[:-1])
    inverse = _inverse_scale(scale)
    depth = 2 * focal.mean(-1, keepdim=True) * inverse / side
    shown = center + shift / inverse * side / 2
    across = shown * depth / focal
    return torch.cat((across, depth.expand_as(across[..., :1])), -1)


def project_weak(
    points: Float[Tensor, "*points K 3"],
    weak: Float[Tensor, "*batch 3"],
    box: Float[Tensor, "*boxes 4"],
    camera: Camera,
    *,
    size: Size | None = None,
) -> Projection:
    """Project points of a body, without its translation, by the (s, tx, ty) of `weak_to_translation`.

    The same pixels for a person in front of the camera, but from 1 / tz = b s / (2 f), which is smooth at
    s = 0: with u = X / tz + tx b s / (2 f) + (c - o) / f and d = 1 + Z / tz,

        x = f u / d + o

    so a network whose s is 0 or negative (a mirrored person) has gradients of the usual size that lead back.
    1 / d is continued by its point reflection, as in `Camera.project`: nearer than 0.1 m, and for s < 0 below
    d = 1/2.

    Args:
        points: of the body, relative to the origin that ``weak`` places [m].
        weak: scale s and tx, ty.
        box: corners of the square crop in the image [pixels]; otherwise b is the longer side.
        camera: of the full image. Its pose and distortion are ignored.
        size: width and height [pixels], as in `Camera.project`.

    Returns:
        Pixels, depth (infinite for s = 0, negative for s < 0) and which points are visible.
    """
    expect_camera(camera)
    points = expect("points", points, None, 3)
    scale, shift = expect("weak", weak, 3)[..., None, :].split((1, 2), -1)
    expect_dtype("weak", scale, points, "that of points")
    center, side, focal = (part[..., None, :] for part in _crop(box, camera))
    expect_dtype("camera.focal", focal, points, "that of points")
    broadcast(points=points.shape[:-2], weak=scale.shape[:-2], box=side.shape[:-2], camera=focal.shape[:-2])
    inverse = side * scale / (2 * focal.mean(-1, keepdim=True))
    across = points[..., :2] * inverse + (shift * scale * side / 2 + center) / focal
    relative = 1 + points[..., 2:] * inverse
    near = torch.where(inverse > 0, NEAR * inverse, 0.5).detach()
    ahead = relative >= near
    pixels = (
        across * inverse_depth(relative, near) * focal
        + expect("camera.center", camera.center, 2)[..., None, :]
    )
    visible = (ahead & (inverse > 0))[..., 0]
    if size is not None:
        visible = visible & ((pixels >= 0) & (pixels < as_size(size, pixels)[..., None, :])).all(-1)
    far = inverse == 0
    depth = torch.where(far, torch.inf, relative / torch.where(far, 1, inverse))
    return Projection(pixels, depth[..., 0], visible)


def translation_to_weak(
    translation: Float[Tensor, "*batch 3"], box: Float[Tensor, "*boxes 4"], camera: Camera
) -> Float[Tensor, "*out 3"]:
    """Invert `weak_to_translation`, for translations [m] with z > 0 and s >= 0.01."""
    expect_camera(camera)
    shift, depth = expect("translation", translation, 3).split((2, 1), -1)
    center, side, focal = _crop(box, camera)
    scale = 2 * focal.mean(-1, keepdim=True) / (side * depth)
    shift = (shift * focal / depth - center) * 2 / (side * scale)
    return torch.cat((scale.expand_as(shift[..., :1]), shift), -1)


def bev_to_translation(
    cam: Float[Tensor, "*batch 3"], *, fov: float = math.pi / 3, epsilon: float = 0.0
) -> Float[Tensor, "*batch 3"]:
    """Convert (s, y, x) of BEV (CVPR 2022), in this order: z = 1 / (s tan(fov / 2)), (x, y) / s.

    BEV sees the whole image, padded to a square: its camera is ``Camera.from_fov(fov, (512, 512))``, with f =
    443.4 pixels.

    Args:
        cam: scale, then the place of the body's origin in the padded image, from -1 to 1, **y first**.
        fov: field of view of the padded image [rad].
        epsilon: added to s tan(fov / 2). BEV's code decodes with 1e-3, and encodes with 0.
    """
    if not 0 < to_number(fov) < math.pi:
        raise ValueError(f"fov: expected an angle between 0 and pi [rad], not degrees, got {fov}")
    epsilon = read_nonnegative("epsilon", epsilon, "a number")
    scale, y, x = expect("cam", cam, 3).unbind(-1)
    tangent = math.tan(fov / 2)
    depth = _inverse_scale(scale * tangent + epsilon, BEV_LEAST)
    return torch.stack((x * depth * tangent, y * depth * tangent, depth), -1)


def mahmr_to_translation(
    raw: Float[Tensor, "*batch 3"], focal: Float[Tensor, "*focals"], *, resolution: float = MAHMR_RESOLUTION
) -> Float[Tensor, "*out 3"]:
    """Convert (x, y, a) of Metric-Aware HMR's head, in this order, to a translation.

    s = 2 sigmoid(a) + 1e-6, (tx, ty) = (x, y) / s, tz = 2 f / (resolution s): the depth is always positive.

    Args:
        raw: output of the network.
        focal: focal length [pixels]; from the network's vertical field of view by `Camera.from_fov`.
        resolution: longer side of the network's input [pixels].
    """
    read_positive("resolution", resolution, "a side", " [pixels]")
    shift, a = expect("raw", raw, 3).split((2, 1), -1)
    focal = expect("focal", focal)
    broadcast(raw=shift.shape[:-1], focal=focal.shape)
    scale = 2 * torch.sigmoid(a) + MAHMR_LEAST
    shift, depth = torch.broadcast_tensors(shift / scale, 2 * focal[..., None] / (resolution * scale))
    return torch.cat((shift, depth[..., :1]), -1)


def _inverse_scale(scale: Tensor, least: float = LEAST_SCALE) -> Tensor:
    """Return 1 / s, below a least scale its tangent there."""
    usual = scale >= least
    held = torch.where(usual, least, scale)
    return torch.where(usual, 1 / torch.where(usual, scale, 1), 2 / least - held / least**2)


def _crop(box: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Return the box's centre from the principal point, its longer side, and the focal lengths."""
    center, size = convert_box(box, "xyxy", "cxcywh").split(2, -1)
    focal = expect("camera.focal", camera.focal, 2)
    side = not_empty(size.amax(-1, keepdim=True))
    return center - expect("camera.center", camera.center, 2), side, focal
