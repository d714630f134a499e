"""From features to a body: a backbone, a head and a body layer as one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import expect, read_count
from agebody.parameters import BodyParameters
from agebody.rotations import matrix_to_axis_angle, rotation_6d_to_matrix

Readouts = Mapping[str, Tensor]
"""What a head reads out of features, by name: "pose" (*batch, 6 J), "betas" (*batch, N or N + 1), "camera"
(*batch, 3), "expression" (*batch, E) of a body that has one, and any others."""


class Prediction(NamedTuple):
    """The body and the camera that a network predicts for each person."""

    global_orient: Float[Tensor, "*batch 3 3"]
    """Root rotation in the axes of a camera: x right, y down, z forward."""
    body_pose: Float[Tensor, "*batch J 3 3"]
    """Rotations of all joints but the root, relative to their parents."""
    betas: Float[Tensor, "*batch N"]
    age_offset: Float[Tensor, "*batch"] | None
    """None for a body of one age; 0 where the head reads none."""
    camera: Float[Tensor, "*batch 3"]
    """Weak-perspective (s, tx, ty) in the crop, see `weak_to_translation`."""
    extras: dict[str, Tensor]
    """The head's other read-outs by name."""
    expression: Float[Tensor, "*batch E"] | None = None
    """None for a body without expressions; 0 where the head reads none."""

    def arguments(self) -> dict[str, Tensor]:
        """Return what a layer with ``pose_format="matrix"`` takes, and an objective compares, by name."""
        named = {name: value for name, value in self._asdict().items() if name not in ("camera", "extras")}
        return {name: value for name, value in named.items() if value is not None}

    def parameters(self, transl: Float[Tensor, "*batch 3"] | None = None) -> BodyParameters:
        """Return the body in axis-angle vectors.

        Args:
            transl: translation [m], such as ``weak_to_translation(prediction.camera, box, camera)``;
                0 if not given.
        """
        return BodyParameters(
            matrix_to_axis_angle(self.global_orient),
            matrix_to_axis_angle(self.body_pose),
            self.betas if self.expression is None else torch.cat((self.betas, self.expression), -1),
            torch.zeros_like(self.camera[..., 0]) if self.age_offset is None else self.age_offset,
            torch.zeros_like(self.camera) if transl is None else transl,
        )


def read_prediction(readouts: Readouts, body: BodyModel) -> Prediction:
    """Interpret the read-outs of a head for a body.

    Args:
        readouts: "pose": 6D rotations of all joints, the root's first, each the first two columns of its
            matrix one after the other; "betas": those of the body, and, for a body of every age, the age
            offset after them (without it the age offset is 0); "camera": (s, tx, ty). If the pose leaves out
            the fingers, the last joints of SMPL-H and SMPL-X, "hands" has them, left before right.
        body: the layer.

    Raises:
        ValueError: a read-out is missing, or has another size than the body needs.
    """
    expect_body(body)
    missing = [name for name in ("pose", "betas", "camera") if name not in readouts]
    if missing:
        raise ValueError(f"readouts: missing {', '.join(missing)}")
    joints, count = body.num_joints, body.num_betas
    names, pose = {"pose", "betas", "camera"}, expect("pose", readouts["pose"], None)
    if pose.shape[-1] < 6 * joints and "hands" in readouts:
        names.add("hands")
        pose = torch.cat((pose, readouts["hands"]), -1)
    pose = expect("pose", pose, 6 * joints)
    betas, camera = expect("betas", readouts["betas"], None), expect("camera", readouts["camera"], 3)
    sizes = (count, count + 1) if body.age_anchors else (count,)
    if betas.shape[-1] not in sizes:
        raise ValueError(
            f"betas: expected {' or '.join(map(str, sizes))} numbers for this body, got {betas.shape[-1]}"
        )
    rotations = rotation_6d_to_matrix(pose.unflatten(-1, (joints, 6)))
    age = None
    if body.age_anchors:
        age = betas[..., count] if betas.shape[-1] > count else torch.zeros_like(camera[..., 0])
    expression = None
    if body.num_expression:
        names.add("expression")
        unread = camera.new_zeros(*camera.shape[:-1], body.num_expression)
        expression = expect("expression", readouts.get("expression", unread), body.num_expression)
    return Prediction(
        rotations[..., 0, :, :],
        rotations[..., 1:, :, :],
        betas[..., :count],
        age,
        camera,
        {name: value for name, value in readouts.items() if name not in names},
        expression,
    )


def start_readouts(body: BodyModel | int, num_shape: int = 10) -> dict[str, Tensor]:
    """Return the read-outs of a body at rest, upright before the camera, for a head to start from.

    Args:
        body: the layer, or its number of joints.
        num_shape: shape numbers for a number of joints. A body of every age has its age offset behind its
            betas, and starts as an adult.

    Returns:
        "pose" (6 J), "betas" and "camera", which has (0.9, 0, 0): about the size of a standing person in
        HMR's crops. A body of expressions has "expression" too.
    """
    others = {}
    read_count("num_shape", num_shape)
    if not isinstance(body, int):
        expect_body(body)
        if body.num_expression:
            others["expression"] = torch.zeros(body.num_expression)
        body, num_shape = body.num_joints, body.num_betas + bool(body.age_anchors)
    pose = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(body)
    pose[4] = -1  # a body's +y is up, a camera's is down
    camera = torch.tensor([0.9, 0.0, 0.0])
    return {"pose": pose, "betas": torch.zeros(num_shape), "camera": camera, **others}


def expect_matrix_body(body: Any) -> None:
    """Check that an argument is a layer of rotation matrices."""
    if expect_body(body).pose_format != "matrix":
        raise ValueError(f'body: expected a layer with pose_format="matrix", got {body.pose_format!r}')


class Regressor(nn.Module):
    """A network from crops of people to their bodies.

    Args:
        backbone: images (B, 3, H, W) to features, such as a `ViT`'s map (B, C, h, w); any callable.
        head: ``head(features, condition)`` returns `Readouts`.
        body: a layer with ``pose_format="matrix"``: an adult, an infant, or a body of every age.
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Tensor],
        head: Callable[[Tensor, Tensor | None], Readouts],
        body: BodyModel,
    ) -> None:
        super().__init__()
        expect_matrix_body(body)
        self.backbone, self.head, self.body = backbone, head, body

    def forward(
        self, images: Float[Tensor, "B 3 H W"], condition: Float[Tensor, "B K"] | None = None
    ) -> Prediction:
        """Predict the body of each person.

        Args:
            images: crops, normalised as the backbone expects.
            condition: numbers that the head takes beside the features, such as `box_condition`.
        """
        return read_prediction(self.head(self.backbone(images), condition), self.body)
