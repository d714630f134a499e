"""The inputs of an objective, and the discriminator that is trained beside the network."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera, project_weak, to_crop
from agebody.checks import expect
from agebody.engine.batched import at_least_float32
from agebody.keypoints import KeypointLayout
from agebody.losses import PoseDiscriminator, adversarial_loss
from agebody.nets import Prediction
from agebody.rotations import axis_angle_to_matrix


class RealBodies(NamedTuple):
    """Recorded people, such as motion capture: the real examples of a discriminator."""

    body_pose: Float[Tensor, "N J 3"]
    """Axis-angle vectors of all joints but the root."""
    betas: Float[Tensor, "N S"]
    age_offset: Float[Tensor, " N"] | None = None
    """None if ages are unknown: the discriminator then sees only betas."""


def predicted_values(
    prediction: Prediction,
    body: BodyModel,
    box: Float[Tensor, "N 4"],
    camera: Camera,
    *,
    layout: str | KeypointLayout = "hmr2_44",
) -> dict[str, Tensor]:
    """Return the predicted tensors of an objective by name.

    These are the arguments of the body, the head's other outputs, ``keypoints_3d`` [m] and ``keypoints_2d``,
    in the box from -1/2 to 1/2.

    Args:
        prediction: of the network.
        body: its layer.
        box: corners of the square crops in the image [pixels].
        camera: of the whole images.
        layout: of the keypoints.
    """
    arguments: dict[str, Any] = {n: at_least_float32(value) for n, value in prediction.arguments().items()}
    points = body.keypoints(layout, **arguments)
    pixels = project_weak(points, at_least_float32(prediction.camera), box, camera).pixels
    return {
        **{name: at_least_float32(value) for name, value in prediction.extras.items()},
        **arguments,
        "keypoints_3d": points,
        "keypoints_2d": to_crop(pixels, box),
    }


class Adversary:
    """A discriminator, its optimiser, and its real examples.

    Its inputs are betas, or betas and age offset if it has one input more. From recorded adults alone it
    would learn that an age offset above 0 is not real, so it then needs recorded people with ages.
    """

    def __init__(self, discriminator: PoseDiscriminator, real: RealBodies, num_betas: int) -> None:
        self.aged = discriminator.num_betas == num_betas + 1
        if discriminator.num_betas not in (num_betas, num_betas + 1):
            raise ValueError(
                f"discriminator: expected {num_betas} betas, or {num_betas + 1} with the age offset, "
                f"got {discriminator.num_betas}"
            )
        expect("real.body_pose", real.body_pose, discriminator.num_joints, 3)
        expect("real.betas", real.betas, num_betas)
        if self.aged and real.age_offset is None:
            raise ValueError(
                "real.age_offset: a discriminator that judges the age offset needs recorded people of known "
                f"ages; without them give it num_betas={num_betas}"
            )
        self.discriminator, self.real = discriminator, real

    def scores(self, predicted: dict[str, Tensor]) -> Tensor:
        """Return the scores of predicted bodies; no gradient reaches the discriminator's weights."""
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        inputs = predicted["body_pose"], self._identity(predicted)
        return torch.func.functional_call(self.discriminator, frozen, inputs)

    def loss(self, predicted: dict[str, Tensor]) -> Tensor:
        """Return the loss of the discriminator itself, against as many recorded people drawn at random."""
        made = {
            name: predicted[name].detach()
            for name in ("body_pose", "betas", "age_offset")
            if name in predicted
        }
        count = made["betas"].shape[0]
        rows = torch.randint(self.real.betas.shape[0], (count,))
        real = {
            name: part[rows].to(made["betas"])
            for name, part in self.real._asdict().items()
            if part is not None
        }
        pose = axis_angle_to_matrix(real["body_pose"])
        both = self.discriminator(
            torch.cat((made["body_pose"], pose)), torch.cat((self._identity(made), self._identity(real)))
        )
        return adversarial_loss(both[:count], False) + adversarial_loss(both[count:], True)

    def _identity(self, values: dict[str, Tensor]) -> Tensor:
        if not self.aged:
            return values["betas"]
        return torch.cat((values["betas"], values["age_offset"][..., None]), -1)
