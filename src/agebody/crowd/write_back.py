"""A scale written back into a body: another stature by one coefficient, in the same place of the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.checks import expect
from agebody.crowd.values import expect_values
from agebody.keypoints import KeypointLayout
from agebody.measure import stature
from agebody.parameters import BodyParameters

CHILD_HEIGHT = 1.45
"""Below which DTO takes a body for a child's, whatever its class [m]."""


class WrittenBack(NamedTuple):
    """People of other statures."""

    parameters: BodyParameters
    height: Float[Tensor, "*batch"]
    """Stature in the rest pose [m]."""
    by_age: Bool[Tensor, "*batch"]
    """Whose age offset was changed; of the others the first beta."""
    exact: Bool[Tensor, "*batch"]
    """Whether the stature is the wanted one, to 0.1 mm; it is not where the coefficient met its bound."""
    pixels: Float[Tensor, "*batch"]
    """How far the keypoints moved in the image, root mean square [pixels]."""


def rest_height(
    body: BodyModel, betas: Float[Tensor, "*batch N"], age_offset: Float[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch"]:
    """Stature of a body in its rest pose [m], which is DTO's h.

    Args:
        body: the layer.
        betas: of each person.
        age_offset: of each person; zero if None.
    """
    ages = {"age_offset": age_offset} if body.age_anchors else {}
    return stature(body.shape(betas=betas, **ages).rest_vertices)


def write_back(
    body: BodyModel,
    parameters: BodyParameters,
    scale: Float[Tensor, "*batch"],
    camera: Camera,
    *,
    root: Float[Tensor, "*batch 3"] | None = None,
    child: Bool[Tensor, "*batch"] | None = None,
    layout: str | KeypointLayout = "smpl24",
    age_bounds: tuple[float, float] = (-0.05, 1.0),
    beta_bounds: tuple[float, float] = (-8.0, 8.0),
) -> WrittenBack:
    """Bodies whose rest height is ``scale`` times what it was, where they were in the image.

    The age offset of a child, the first beta of an adult is changed until the stature is right. As with DTO,
    a child is who is said to be one and shrinks, and whoever ends below ``CHILD_HEIGHT``; on a body without
    ages all are adults.

    A smaller adult is no child, and a child no small adult: the projection is kept exactly only with the
    scale as a factor of its own, ``scale * vertices`` in camera coordinates. Here the root joint is moved
    along its ray to ``scale`` times its depth, then the body sideways to where its keypoints agree best with
    what they were in the image. How much they still moved is in ``pixels``.

    Args:
        body: the layer.
        parameters: in camera coordinates, of one batch.
        scale: s, of `place_people`.
        camera: intrinsics, which broadcast to the batch.
        root: where the root joint is to be [m], as `refine_crowd` finds it; at ``scale`` times its place
            if None.
        child: who is a child by class; nobody if None.
        layout: keypoints that are to stay where they are.
        age_bounds: of the age offset.
        beta_bounds: of the first beta.

    Raises:
        TypeError: the scale is no tensor of a floating type.
        ValueError: shapes differ, a scale is not finite and above 0, the body has neither ages nor betas, or
            the camera has a pose of its own.
    """
    expect("scale", scale)
    batch = parameters.transl.shape[:-1]
    if scale.shape != batch:
        raise ValueError(f"scale: expected shape {tuple(batch)}, one a person, got {tuple(scale.shape)}")
    if camera.rotation is not None or camera.translation is not None:
        raise ValueError(
            "camera: expected no rotation and translation; give parameters in camera coordinates"
        )
    if not body.num_betas and not body.age_anchors:
        raise ValueError("body: expected betas or ages, it has neither")
    expect_values(scale=((scale > 0) & scale.isfinite(), "finite numbers above 0"))
    wanted = scale * rest_height(body, parameters.betas, parameters.age_offset)
    by_age = torch.zeros_like(scale, dtype=torch.bool)
    if body.age_anchors:
        shrinks = torch.zeros_like(by_age) if child is None else child & (scale < 1)
        by_age = shrinks | (wanted < CHILD_HEIGHT) if body.num_betas else torch.ones_like(by_age)
    low, high = (torch.where(by_age, *pair) for pair in zip(age_bounds, beta_bounds, strict=True))
    betas, age_offset = _of_height(body, parameters, wanted, by_age, low.to(scale), high.to(scale))
    changed = parameters._replace(betas=betas, age_offset=age_offset)
    before = body.keypoints(layout, **parameters.arguments(body), pose_format="axis_angle")
    changed = _in_place(body, parameters, changed, scale, root, before, layout)
    after = body.keypoints(layout, **changed.arguments(body), pose_format="axis_angle")
    moved = camera.project(after).pixels - camera.project(before).pixels
    height = rest_height(body, betas, age_offset)
    return WrittenBack(
        changed, height, by_age, (height - wanted).abs() < 1e-4, moved.square().sum(-1).mean(-1).sqrt()
    )


def _of_height(
    body: BodyModel, parameters: BodyParameters, wanted: Tensor, by_age: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Betas and age offset of a stature, by Newton's method on a function that is piecewise linear."""
    first = parameters.betas[..., 0] if body.num_betas else torch.zeros_like(wanted)
    start = torch.where(by_age, parameters.age_offset, first).detach()

    def identity(value: Tensor) -> tuple[Tensor, Tensor]:
        age = torch.where(by_age, value, parameters.age_offset)
        if not body.num_betas:
            return parameters.betas, age
        beta = torch.where(by_age, first, value)
        return torch.cat((beta[..., None], parameters.betas[..., 1:]), -1), age

    value, target = start, wanted.detach()
    low, high = torch.minimum(low, start), torch.maximum(high, start)
    for _ in range(12):
        with torch.enable_grad():
            value = value.detach().requires_grad_()
            height = rest_height(body, *identity(value))
            (slope,) = torch.autograd.grad(height.sum(), value)
        gap = (target - height).detach()
        value = value.detach()
        if (gap.abs() < 1e-7).all():
            break
        step = torch.where(slope == 0, 0, gap / torch.where(slope == 0, 1, slope))
        value = torch.minimum(torch.maximum(value + step, low), high)
    return identity(value)


def _in_place(
    body: BodyModel,
    old: BodyParameters,
    new: BodyParameters,
    scale: Tensor,
    root: Tensor | None,
    before: Tensor,
    layout: str | KeypointLayout,
) -> BodyParameters:
    """The root joint to its place; then sideways, by least squares in the image."""
    if root is None:
        root = scale[..., None] * (_rest_root(body, old) + old.transl)
    transl = root - _rest_root(body, new)
    after = body.keypoints(layout, **new._replace(transl=transl).arguments(body), pose_format="axis_angle")
    depth = after[..., 2:]
    gap = before[..., :2] / before[..., 2:] - after[..., :2] / depth
    sideways = (gap / depth).sum(-2) / (1 / depth.square()).sum(-2)
    return new._replace(transl=transl + torch.cat((sideways, torch.zeros_like(sideways[..., :1])), -1))


def _rest_root(body: BodyModel, parameters: BodyParameters) -> Tensor:
    ages = {"age_offset": parameters.age_offset} if body.age_anchors else {}
    return body.shape(betas=parameters.betas, **ages).rest_joints[..., 0, :]
