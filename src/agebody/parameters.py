"""The parameters of a body: its pose, place and identity as one tuple, and as one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.checks import expect
from agebody.keypoints import mirror_order
from agebody.rotations import mirror

GROUPS = ("global_orient", "body_pose", "betas", "age_offset", "transl")
"""Groups of parameters, in their order in a vector."""


@runtime_checkable
class BodySizes(Protocol):
    """What `BodyParameters` needs of a body; every `BodyModel` has it."""

    num_joints: int
    num_betas: int

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of its tensors."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of its tensors."""
        ...


def group_slices(body: BodySizes) -> dict[str, slice]:
    """Return the slice of each group in a vector, in the order of ``GROUPS``."""
    sizes = (3, 3 * (body.num_joints - 1), body.num_betas, 1, 3)
    ends = list(accumulate(sizes))
    return {name: slice(end - size, end) for name, size, end in zip(GROUPS, sizes, ends, strict=True)}


class BodyParameters(NamedTuple):
    """The arguments of a body layer, all of one batch; rotations are axis-angle vectors [rad].

    ``body(parameters)`` takes them, whatever the layer's pose format is.
    """

    global_orient: Float[Tensor, "*batch 3"]
    body_pose: Float[Tensor, "*batch J 3"]
    """Rotations of all joints but the root, relative to their parents."""
    betas: Float[Tensor, "*batch N"]
    age_offset: Float[Tensor, "*batch"]
    """Ignored by a body of one age."""
    transl: Float[Tensor, "*batch 3"]
    """[m]"""

    @classmethod
    def zeros(cls, body: BodySizes, *batch: int) -> BodyParameters:
        """Return the mean person in the rest pose at the origin."""
        shapes = ((3,), (body.num_joints - 1, 3), (body.num_betas,), (), (3,))
        return cls(*(torch.zeros((*batch, *s), dtype=body.dtype, device=body.device) for s in shapes))

    @classmethod
    def from_vector(cls, vector: Float[Tensor, "*batch P"], body: BodySizes) -> BodyParameters:
        """Invert `vector`."""
        orient, pose, betas, age, transl = (vector[..., part] for part in group_slices(body).values())
        return cls(orient, pose.unflatten(-1, (-1, 3)), betas, age[..., 0], transl)

    def vector(self) -> Float[Tensor, "*batch P"]:
        """Concatenate all parameters, in the order of ``GROUPS``."""
        parts = self.global_orient, self.body_pose.flatten(-2), self.betas, self.age_offset[..., None]
        return torch.cat((*parts, self.transl), -1)

    def map(self, function: Callable[[Tensor], Tensor]) -> BodyParameters:
        """Apply a function to each tensor, such as ``lambda t: t[rows]`` over the batch."""
        return BodyParameters(*map(function, self))

    def mirrored(self, joint_names: Sequence[str]) -> BodyParameters:
        """Return these bodies as seen in a mirror at x = 0 of the world; of a body that is symmetric.

        They project to the flipped image of a camera that looks along z, flipped about its principal point,
        with keypoints in the order of `KeypointLayout.flip`.

        Args:
            joint_names: of the body, the root's first: ``body.asset.joint_names``.
        """
        count = self.body_pose.shape[-2] + 1
        if len(joint_names) != count:
            raise ValueError(f"joint_names: expected {count}, the root's first, got {len(joint_names)}")
        order = list(mirror_order(joint_names[1:]))
        across = self.transl.new_tensor([-1.0, 1.0, 1.0])
        return self._replace(
            global_orient=mirror(self.global_orient),
            body_pose=mirror(self.body_pose[..., order, :]),
            transl=across * self.transl,
        )


def read_start(body: BodySizes, start: BodyParameters, batch: Sequence[int]) -> BodyParameters:
    """Return checked starting parameters, broadcast to a batch that is flattened."""
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
