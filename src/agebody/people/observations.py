"""Simulated keypoint detections of people: noise, missing points and outliers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.assets.asset import BodyAsset
from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.cameras.boxes import box_around
from agebody.checks import expand_to, expect_numbers, read_share
from agebody.engine.batched import building
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout, get_layout, joint_layout, limbs
from agebody.mesh.closest import visible_vertices
from agebody.people.sampling import Draws, People

HIDDEN_NOISE = 3.0
"""Factor of the noise of occluded points, which the detector guesses."""


class Observations(NamedTuple):
    """Detections of N people, with the ground truth."""

    keypoints: Float[Tensor, "N K 2"]
    """[pixels]; 0 where a point is not found, as COCO and OpenPose write it."""
    weights: Float[Tensor, "N K"]
    """Confidences from 0 (not found) to 1."""
    exact: Float[Tensor, "N K 2"]
    """True pixels of the points, visible or not."""
    points: Float[Tensor, "N K 3"]
    """The points in camera coordinates [m]."""
    visible: Bool[Tensor, "N K"]
    """Whether a point is within the image and not occluded (by the person's own body only if simulated)."""
    wrong: Bool[Tensor, "N K"]
    """Whether a detection belongs to another place: swapped, another person's, or stray."""
    depth: Float[Tensor, " N"]
    """z of the pelvis [m], as a depth sensor would give it."""


@building()
def observe(
    body: BodyModel,
    people: People,
    *,
    layout: str | KeypointLayout = "coco17",
    seed: int = 0,
    noise: float | Tensor = 2.0,
    self_occlusion: bool = False,
    occluders: float = 0.0,
    dropped: float = 0.0,
    swapped: float = 0.0,
    borrowed: float = 0.0,
    stray: float = 0.0,
) -> Observations:
    """Simulate a keypoint detector, with a separate rate for each kind of error.

    Points outside the image are not found. Half of the occluded points are not found; the others, and points
    behind the person's own body, are guessed with ``HIDDEN_NOISE`` times the noise.

    Confidences are uniform: 0.7 to 1 for visible points, 0.3 to 0.7 for guessed points, and 0.2 to 0.9 for
    wrong points, because detectors do not know that these are wrong.

    Args:
        body: the layer of the people.
        people: from `random_people`.
        layout: of the keypoints.
        seed: of the random numbers.
        noise: standard deviation of each coordinate [pixels]: a number, or one per point that broadcasts to
            (N, K).
        self_occlusion: compute which points the person's own body hides; takes 20 to 50 ms per person.
        occluders: share of people behind a box that hides a fifth to a half of their extent from one side,
            most often from below, as tables do.
        dropped: share of points that are not found.
        swapped: share of people with left and right exchanged in the legs, the arms or the whole body.
        borrowed: share of people with a fifth to a half of their points taken from a person beside them.
        stray: share of points placed anywhere within the person's box, enlarged by a half.
    """
    expect_body(body)
    if not isinstance(people, People):
        raise TypeError(f"people: expected those of random_people, got {type(people).__name__}")
    shares = (occluders, dropped, swapped, borrowed, stray)
    for name, share in zip(("occluders", "dropped", "swapped", "borrowed", "stray"), shares, strict=True):
        read_share(name, share)
    layout = get_layout(layout)
    draw, count, number = Draws(seed), len(people.years), len(layout)
    sd = _noise(noise, count, number)
    with torch.no_grad():
        parameters = people.parameters
        points = body.keypoints(layout, parameters).double().cpu()
        root = body.keypoints(joint_layout("pelvis"), parameters)[:, 0, 2]
        unhidden = torch.ones(count, number, dtype=torch.bool)
        if read_flag("self_occlusion", self_occlusion):
            unhidden = _unhidden(body, people, layout)
    camera, extent = people.camera.to("cpu", torch.float64), people.size.double().cpu()
    seen = camera.project(points, size=extent)
    exact, in_image = seen.pixels, seen.visible
    box = box_around(exact)
    behind = _behind_occluders(exact, box, occluders, draw)
    visible = in_image & unhidden & ~behind
    found = in_image & ~(behind & draw.chance(count, number, 0.5)) & ~draw.chance(count, number, dropped)

    sd = sd[..., None] * torch.where(visible, 1.0, HIDDEN_NOISE)[..., None]
    noisy = exact + sd * draw.normal(count, number, 2)
    others = _beside(exact, box, draw)
    source = _swap(layout, swapped, count, draw)
    given = noisy.gather(1, source[..., None].expand(-1, -1, 2))
    found = found.gather(1, source)
    some = draw.uniform(count, 0.2, 0.5)[:, None]
    lent = draw.chance(count, 1, borrowed) & (draw.uniform(count, 0, 1, number) < some)
    given = torch.where(lent[..., None], others, given)
    anywhere = draw.chance(count, number, stray)
    low, high = box_around(exact, scale=1.5)[:, None].split(2, -1)
    given = torch.where(anywhere[..., None], low + (high - low) * draw.uniform(count, 0, 1, number, 2), given)
    wrong = ((source != torch.arange(number)) | lent | anywhere) & found

    sure, guessed = draw.uniform(count, 0.7, 1, number), draw.uniform(count, 0.3, 0.7, number)
    confidence = torch.where(visible, sure, guessed)
    confidence = torch.where(wrong, draw.uniform(count, 0.2, 0.9, number), confidence)
    like = people.years
    return Observations(
        keypoints=torch.where(found[..., None], given, 0).to(like),
        weights=torch.where(found, confidence, 0).to(like),
        exact=exact.to(like),
        points=points.to(like),
        visible=visible.to(like.device),
        wrong=wrong.to(like.device),
        depth=root,
    )


def _noise(noise: float | Tensor, count: int, number: int) -> Float[Tensor, "N K"]:
    given = expect_numbers("noise", noise, torch.empty(0, dtype=torch.float64)).detach()
    sd = expand_to("noise", given, (count, number))
    if not ((sd >= 0) & sd.isfinite()).all():
        raise ValueError(f"noise: expected a number of 0 or more, got {noise}")
    return sd


def _unhidden(body: BodyModel, people: People, layout: KeypointLayout) -> Bool[Tensor, "N K"]:
    """Return whether 4 of the 40 vertices nearest to a point in the rest pose are visible."""
    near = skin_near(body.asset, layout)
    seen = []
    for start in range(0, len(people.years), 16):
        some = people.select(slice(start, start + 16))
        vertices = body(some.parameters).vertices
        clear = visible_vertices(vertices, body.faces, vertices.new_zeros(3)).cpu()
        seen.append(clear[:, near].sum(-1) >= 4)
    return torch.cat(seen)


def skin_near(asset: BodyAsset, layout: KeypointLayout) -> Tensor:
    """Return the (K, 40) vertices nearest to each point in the rest pose."""
    joints, rows = layout.resolve(asset)
    template = asset.template.astype(np.float64)
    rest = asset.joint_regressor @ template
    points = np.where(joints[:, :1] >= 0, rest[np.maximum(joints, 0)].mean(1), rows @ template)
    distances = np.linalg.norm(points[:, None] - template, axis=-1)
    return torch.from_numpy(np.argsort(distances, axis=1)[:, :40].copy())


def _behind_occluders(pixels: Tensor, box: Tensor, share: float, draw: Draws) -> Bool[Tensor, "N K"]:
    count = len(pixels)
    low, high = box[:, None].split(2, -1)
    x, y = ((pixels - low) / (high - low).clamp(min=1e-9)).unbind(-1)  # 0 to 1 within the box
    depth = draw.uniform(count, 0.2, 0.5)[:, None]
    side = torch.bucketize(draw.uniform(count, 0, 1), torch.tensor([0.6, 0.8]).double())[:, None]
    hidden = torch.where(side == 0, y > 1 - depth, torch.where(side == 1, x < depth, x > 1 - depth))
    return hidden & draw.chance(count, 1, share)


def _beside(pixels: Tensor, box: Tensor, draw: Draws) -> Float[Tensor, "N K 2"]:
    """Return points of another person of the same size, half to one and a half box sizes to the side."""
    count = len(pixels)
    other = (torch.arange(count) + 1) % count
    low, high = box[:, None].split(2, -1)
    extent = (high - low).amax(-1, keepdim=True).clamp(min=1e-9)
    theirs = (pixels - (low + high) / 2) / extent
    way = torch.where(draw.chance(count, 1, 0.5), 1.0, -1.0) * draw.uniform(count, 0.5, 1.5, 1)
    shift = torch.stack((way, draw.uniform(count, -0.2, 0.2, 1)), -1)
    return (low + high) / 2 + extent * (theirs[other] + shift)


def _swap(layout: KeypointLayout, share: float, count: int, draw: Draws) -> Tensor:
    """Return the (N, K) point whose place each point reports."""
    own, flip = torch.arange(len(layout)), torch.tensor(layout.flip)
    arms, legs = torch.from_numpy(limbs(layout))
    sets = torch.stack((legs, arms, torch.ones_like(legs)))
    which = sets[(draw.uniform(count, 0, 1) * 3).long()] & draw.chance(count, 1, share)
    return torch.where(which, flip, own)
