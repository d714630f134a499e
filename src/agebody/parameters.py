"""What is fitted: a body's pose, place and identity as one tuple, and as one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.checks import expect

GROUPS = ("global_orient", "body_pose", "betas", "age_offset", "transl")
"""Groups of parameters, in the order in which they stand in a vector."""


def group_slices(body: BodyModel) -> dict[str, slice]:
    """Where each group stands in a vector, in the order of ``GROUPS``."""
    sizes = (3, 3 * (body.num_joints - 1), body.num_betas, 1, 3)
    ends = list(accumulate(sizes))
    return {name: slice(end - size, end) for name, size, end in zip(GROUPS, sizes, ends, strict=True)}


class BodyParameters(NamedTuple):
    """Arguments of a body layer, all in one batch; rotations are axis-angle vectors [rad]."""

    global_orient: Float[Tensor, "*batch 3"]
    body_pose: Float[Tensor, "*batch J 3"]
    """Of all joints but the root."""
    betas: Float[Tensor, "*batch N"]
    age_offset: Float[Tensor, "*batch"]
    """0 where the body has one age."""
    transl: Float[Tensor, "*batch 3"]
    """[m]"""

    @classmethod
    def zeros(cls, body: BodyModel, *batch: int) -> BodyParameters:
        """The mean person in the rest pose at the origin."""
        make = lambda *shape: torch.zeros((*batch, *shape), dtype=body.dtype, device=body.device)  # noqa: E731
        return cls(make(3), make(body.num_joints - 1, 3), make(body.num_betas), make(), make(3))

    @classmethod
    def from_vector(cls, vector: Float[Tensor, "*batch P"], body: BodyModel) -> BodyParameters:
        """The inverse of `vector`."""
        orient, pose, betas, age, transl = (vector[..., part] for part in group_slices(body).values())
        return cls(orient, pose.unflatten(-1, (-1, 3)), betas, age[..., 0], transl)

    def vector(self) -> Float[Tensor, "*batch P"]:
        """All parameters side by side, in the order of ``GROUPS``."""
        parts = self.global_orient, self.body_pose.flatten(-2), self.betas, self.age_offset[..., None]
        return torch.cat((*parts, self.transl), -1)

    def arguments(self, body: BodyModel) -> dict[str, Tensor]:
        """What ``body(**arguments, pose_format="axis_angle")`` takes."""
        found = self._asdict()
        if not body.age_anchors:
            del found["age_offset"]
        return found

    def map(self, function: Callable[[Tensor], Tensor]) -> BodyParameters:
        """A function of each tensor, such as ``lambda t: t[rows]`` over the batch."""
        return BodyParameters(*map(function, self))


def read_start(body: BodyModel, start: BodyParameters, batch: Sequence[int]) -> BodyParameters:
    """Bodies to begin from, checked, in one flat batch.

    Raises:
        TypeError, ValueError: a part is not of finite floats, or its shape does not broadcast to the batch.
    """
    found = []
    for (name, part), like in zip(start._asdict().items(), BodyParameters.zeros(body, 1), strict=True):
        entry = like.shape[1:]
        part = expect(f"start.{name}", part, *entry).detach().to(like)
        if not part.isfinite().all():
            raise ValueError(f"start.{name}: expected finite numbers")
        try:
            found.append(part.expand((*batch, *entry)).reshape(-1, *entry))
        except RuntimeError:
            raise ValueError(
                f"start.{name}: expected a shape that broadcasts to {(*batch, *entry)}, "
                f"got {tuple(part.shape)}"
            ) from None
    return BodyParameters(*found)
