"""Change the stature of bodies by one coefficient each, in the same place of the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.cameras import Camera
from agebody.cameras.camera import expect_camera
from agebody.checks import expand_to, expect, expect_dtype, expect_tensor, expect_values
from agebody.engine.batched import own_precision
from agebody.measure import stature
from agebody.parameters import BodyParameters

CHILD_HEIGHT = 1.45
"""Height below which DTO treats a body as a child, whatever its class [m]."""
AGE_BOUNDS = (-0.05, 1.0)
BETA_BOUNDS = (-8.0, 8.0)
"""Bounds of the first beta."""
LAYOUT = "smpl24"
"""Keypoints that are kept in place in the image."""


class Rescaled(NamedTuple):
    """Bodies of another stature."""

    parameters: BodyParameters
    height: Float[Tensor, "*batch"]
    """Stature in the rest pose [m]."""
    by_age: Bool[Tensor, "*batch"]
    """Whether the age offset was changed (or else the first beta)."""
    exact: Bool[Tensor, "*batch"]
    """Whether the stature is the requested one to 0.1 mm; false where the coefficient reached its bound."""
    pixels: Float[Tensor, "*batch"]
    """Root mean square displacement of the keypoints in the image [pixels]."""


def rest_height(
    body: BodyModel, betas: Float[Tensor, "*batch N"], age_offset: Float[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch"]:
    """Return the stature of a body in its rest pose [m], which is DTO's h.

    Args:
        body: the layer.
        betas: of each person.
        age_offset: of each person; zero if None.
    """
    age_offset = age_offset if expect_body(body).age_anchors else None
    return stature(body.shape(betas=betas, age_offset=age_offset).rest_vertices)


def rescale(
    body: BodyModel,
    parameters: BodyParameters,
    scale: Float[Tensor, "*batch"],
    camera: Camera,
    *,
    root: Float[Tensor, "*batch 3"] | None = None,
    child: Bool[Tensor, "*batch"] | None = None,
) -> Rescaled:
    """Find bodies whose rest height is ``scale`` times what it was, at the same place of the image.

    The age offset of a child or the first beta of an adult is changed until the stature is right. As in DTO,
    people of ``child`` who shrink, and all who end below ``CHILD_HEIGHT``, are children; without ages, all
    are adults.

    A smaller adult is not a child, nor a child a small adult: only a separate scale factor
    (``scale * vertices`` in camera coordinates) keeps the projection exactly. Here the root joint is moved
    along its ray to ``scale`` times its depth, and then the body sideways to the best agreement of its
    keypoints with those before; ``pixels`` is their remaining displacement.

    Args:
        body: the layer.
        parameters: in camera coordinates, of one batch.
        scale: s, from `place_people`.
        camera: intrinsics, which broadcast to the batch.
        root: new place of the root joint [m], from `refine_crowd`; ``scale`` times its old place if None.
        child: whether each person is a child by class; all false if None.
    """
    expect_body(body)
    expect_camera(camera, posed=False, of_fit=True)
    scale = expect("scale", scale)
    for name, given, *entry in (("scale", scale), ("root", root, 3)):
        if given is not None:
            expect_dtype(name, expect(name, given, *entry), parameters.transl, "that of the parameters")
    batch = parameters.transl.shape[:-1]
    if scale.shape != batch:
        raise ValueError(f"scale: expected shape {tuple(batch)}, one per person, got {tuple(scale.shape)}")
    if child is not None and expand_to("child", expect_tensor("child", child), batch).dtype != torch.bool:
        raise TypeError(f"child: expected a torch.Tensor of booleans, got {child.dtype}")
    if not body.num_betas and not body.age_anchors:
        raise ValueError("body: expected betas or ages, it has neither")
    expect_values(scale=((scale > 0) & scale.isfinite(), "finite numbers above 0"))
    wanted = scale * rest_height(body, parameters.betas, parameters.age_offset)
    by_age = torch.zeros_like(scale, dtype=torch.bool)
    if body.age_anchors:
        shrinks = torch.zeros_like(by_age) if child is None else child & (scale < 1)
        by_age = shrinks | (wanted < CHILD_HEIGHT) if body.num_betas else torch.ones_like(by_age)
    betas, age_offset = _of_height(body, parameters, wanted, by_age)
    before = body.keypoints(LAYOUT, parameters)
    changed = parameters._replace(betas=betas, age_offset=age_offset)
    changed = _in_place(body, parameters, changed, scale, root, before)
    after = body.keypoints(LAYOUT, changed)
    moved = camera.project(after).pixels - camera.project(before).pixels
    height = rest_height(body, betas, age_offset)
    exact = (height - wanted).abs() < 1e-4
    return Rescaled(changed, height, by_age, exact, moved.square().sum(-1).mean(-1).sqrt())


@torch.inference_mode(False)
def _of_height(
    body: BodyModel, parameters: BodyParameters, wanted: Tensor, by_age: Tensor
) -> tuple[Tensor, Tensor]:
    """Find betas and age offset of a stature by Newton's method on a piecewise linear function."""
    # Tensors of inference mode have no gradient.
    parameters, by_age = parameters.map(torch.clone), by_age.clone()
    first = parameters.betas[..., 0] if body.num_betas else torch.zeros_like(wanted)
    start = torch.where(by_age, parameters.age_offset, first).detach()

    def identity(value: Tensor) -> tuple[Tensor, Tensor]:
        age = torch.where(by_age, value, parameters.age_offset)
        if not body.num_betas:
            return parameters.betas, age
        beta = torch.where(by_age, first, value)
        return torch.cat((beta[..., None], parameters.betas[..., 1:]), -1), age

    value, target = start, wanted.detach().clone()
    low = torch.minimum(torch.where(by_age, AGE_BOUNDS[0], BETA_BOUNDS[0]).to(start), start)
    high = torch.maximum(torch.where(by_age, AGE_BOUNDS[1], BETA_BOUNDS[1]).to(start), start)
    for _ in range(12):
        with torch.enable_grad(), own_precision(body.device):
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
) -> BodyParameters:
    """Move the root joint to its place, then the body sideways by least squares in the image."""
    if root is None:
        root = scale[..., None] * (_rest_root(body, old) + old.transl)
    transl = root - _rest_root(body, new)
    after = body.keypoints(LAYOUT, new._replace(transl=transl))
    depth = after[..., 2:]
    gap = before[..., :2] / before[..., 2:] - after[..., :2] / depth
    sideways = (gap / depth).sum(-2) / (1 / depth.square()).sum(-2)
    return new._replace(transl=transl + torch.cat((sideways, torch.zeros_like(sideways[..., :1])), -1))


def _rest_root(body: BodyModel, parameters: BodyParameters) -> Tensor:
    return body.shape(parameters).rest_joints[..., 0, :]
