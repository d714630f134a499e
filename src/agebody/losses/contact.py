"""Losses between a body and a plane, such as a table that it lies on or the ground that it stands on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.assets.asset import BodyAsset, expect_asset
from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    broadcast,
    expand_weights,
    expect,
    expect_choice,
    expect_values,
    read_number,
    reduce,
    safe_norm,
    to_number,
)
from agebody.losses.robust import Penalty, penalize

_PARTS = {
    "feet": ("left_ankle", "right_ankle", "left_foot", "right_foot"),
    "trunk": ("pelvis", "spine1", "spine2", "spine3"),
}
"""The joints that move a part; a body may lack some of them."""


def plane_height(
    points: Float[Tensor, "*#batch N 3"], normal: Float[Tensor, "*#batch 3"], offset: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch N"]:
    """Return the height of points above the plane ``normal . x = offset`` [m], negative below it.

    Args:
        points: [m].
        normal: points away from the solid side; of any length but zero.
        offset: for a normal of length 1, the height of the plane above the origin [m].
    """
    return _height(*_expect(points, normal, offset), None)


def plane_loss(
    points: Float[Tensor, "*#batch N 3"],
    normal: Float[Tensor, "*#batch 3"],
    offset: Float[Tensor, "*#batch"],
    *,
    kind: Literal["penetration", "contact"],
    weights: Weights = None,
    penalty: Penalty = "l2",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return the cost of each point n at the height h_n above a plane (SMIL, Hesse et al., MICCAI 2018).

    - "penetration": ``w_n p(max(0, -h_n))``, no point may be below the plane. The inside term of SMIL's table
      energy, where p is the square.
    - "contact": ``w_n p(h_n)``, points should touch the plane. Its close term, where the points are on the
      back and p is `gmof`, so that parts far from the table are not drawn to it. With the soles, and a mask
      of the frames in which a foot stands, it keeps feet on the ground; `part_vertices` selects points.

    Args:
        points: usually all vertices of a body, or those that touch [m].
        normal: see `plane_height`.
        offset: see `plane_height`.
        kind: "penetration" or "contact".
        weights: broadcast to (*batch, N).
        penalty: p, of heights [m].
        reduction: over points, including those above the plane.
    """
    expect_choice("kind", kind, ("penetration", "contact"))
    points, normal, offset = _expect(points, normal, offset)
    weights = expand_weights(weights, points.shape[:-1])
    height = _height(points, normal, offset, weights)
    return reduce(penalize(height if kind == "contact" else torch.relu(-height), penalty), weights, reduction)


def part_vertices(
    asset: BodyAsset,
    joints: Sequence[str] | Literal["feet", "trunk"],
    *,
    facing: tuple[float, float, float] | None = None,
    within: float = math.pi / 3,
) -> Int[Tensor, " K"]:
    """Return ids of vertices that move most with one of the joints, and face a direction in the rest pose.

    The soles are ``part_vertices(asset, "feet", facing=(0, -1, 0))``, the back is ``part_vertices(asset,
    "trunk", facing=(0, 0, -1))``: bodies of this family stand upright along +y and look along +z.

    Args:
        asset: a body.
        joints: names, or "feet" or "trunk" for the joints of these that the body has.
        facing: a direction, of any length but zero; None keeps all.
        within: largest angle between it and a vertex's normal [rad].
    """
    expect_asset(asset)
    if isinstance(joints, str):
        if joints not in _PARTS:
            raise ValueError(f"joints: expected names, or one of {', '.join(_PARTS)}, got {joints!r}")
        joints = [name for name in _PARTS[joints] if name in asset.joint_names]
    missing = [name for name in joints if name not in asset.joint_names]
    if missing:
        raise ValueError(
            f"joints: expected names among {', '.join(asset.joint_names)}, got {', '.join(missing)}"
        )
    chosen = np.isin(asset.strongest_joints(), [asset.joint_names.index(name) for name in joints])
    if facing is not None:
        length = math.hypot(*(to_number(part) for part in facing))
        within = read_number("within", within, "an angle from 0 to pi [rad], not degrees", 0, math.pi)
        if not length > 0:
            raise ValueError(f"facing: expected a direction, got {facing}")
        normals = _rest_normals(asset)
        sizes = np.linalg.norm(normals, axis=1)
        chosen &= (normals @ np.array(facing) >= math.cos(within) * length * sizes) & (sizes > 0)
    return torch.from_numpy(np.flatnonzero(chosen))


def _rest_normals(asset: BodyAsset) -> Float[np.ndarray, "V 3"]:
    """Return area-weighted sums of the normals of the triangles around each vertex."""
    a, b, c = asset.template[asset.faces].astype(np.float64).transpose(1, 0, 2)
    normals = np.zeros((asset.num_vertices, 3))
    np.add.at(normals, asset.faces, np.cross(b - a, c - a)[:, None])
    return normals


def _expect(points: Tensor, normal: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check arguments, and expand them to one batch."""
    points = expect("points", points, None, 3)
    normal = expect("normal", normal, 3)
    offset = expect("offset", offset)
    batch = broadcast(points=points.shape[:-2], normal=normal.shape[:-1], offset=offset.shape)
    return points.expand(*batch, -1, 3), normal.expand(*batch, 3), offset.expand(batch)


def _height(points: Tensor, normal: Tensor, offset: Tensor, weights: Tensor | None) -> Tensor:
    """Return heights; 0 for points of weight 0."""
    points = apply_mask(points, weights, 1)
    normals = apply_mask(normal[..., None, :].expand(points.shape), weights, 1)
    offsets = apply_mask(offset[..., None].expand(points.shape[:-1]), weights)
    lengths = safe_norm(normals)
    if lengths.device.type == "cpu":  # elsewhere, the device would have to be waited for
        known = lengths != 0 if weights is None else (lengths != 0) | (weights == 0)
        expect_values(normal=(known, "vectors of any length but zero"))
    return ((points * normals).sum(-1) - offsets) / torch.where(lengths == 0, 1, lengths)
