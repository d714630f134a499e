"""Motion of joints between the frames of a clip, as a term of a fit."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.checks import apply_mask
from agebody.keypoints import get_layout
from agebody.optim.state import State
from agebody.parameters import BodyParameters

JOINTS = get_layout("smpl24")
"""The points whose motion is smooth."""

_HEAD = JOINTS.names.index("head")
_ANKLES = [JOINTS.names.index(name) for name in ("left_ankle", "right_ankle")]


class Moves(NamedTuple):
    """Residuals between consecutive frames of b clips; their derivative by both frames is after - before."""

    residuals: Float[Tensor, "b T-1 M"]
    before: Float[Tensor, "b T-1 M F"]
    """By the variables of the first frame."""
    after: Float[Tensor, "b T-1 M F"]
    """By the variables of the second frame, and what depends on the size."""


class Motion:
    """Motion of all joints in the world, ``½ Σ |J_t+1 - J_t|² / (sd · size)²`` (AionHMR, SLAHMR).

    The size is that of the skeleton at rest, an adult's being 1. In metres alone, motion would cost less the
    smaller and nearer the person is, which images cannot tell.

    Args:
        body: the layer.
        sd: standard deviation of a coordinate of a joint's move from frame to frame, of an adult [m].
    """

    def __init__(self, body: BodyModel, sd: float) -> None:
        self.sd = sd
        self.adult = skeleton_length(body.keypoints(JOINTS))

    def moves(self, state: State, present: Tensor) -> Moves:
        """Return residuals and derivatives.

        Args:
            state: bodies of b clips, frame after frame.
            present: (b, T) frames that belong to each clip, the first ones.
        """
        frames = present.shape[1]
        points, jacobian = state.points(JOINTS)
        size, size_jacobian = self._size(state, frames)
        scale = (size * self.sd)[:, None, None]
        places = points.flatten(1).unflatten(0, (-1, frames))
        jacobian = jacobian.flatten(1, 2).unflatten(0, (-1, frames)) / scale[..., None]
        both = present[:, 1:]
        residuals = apply_mask(places.diff(dim=1), both, 1) / scale
        before, after = (apply_mask(part, both, 2) for part in (jacobian[:, :-1], jacobian[:, 1:]))
        by_size = residuals[..., None] * (size_jacobian / size[:, None])[:, None, None]
        return Moves(residuals, before, after - by_size)

    def _size(self, state: State, frames: int) -> tuple[Float[Tensor, " b"], Float[Tensor, "b F"]]:
        """Return the skeleton's length as a multiple of the mean adult's, and its derivatives."""
        first = state.parameters.map(lambda part: part[::frames])
        rest = BodyParameters.zeros(state.body, len(first.betas))
        rest = rest._replace(betas=first.betas, age_offset=first.age_offset)
        points, jacobian = State(state.body, rest.vector(), state.rows[::frames], state.free).points(JOINTS)
        axis = points[:, _HEAD] - points[:, _ANKLES].mean(1)
        length = axis.norm(dim=-1)
        by_points = jacobian[:, _HEAD] - jacobian[:, _ANKLES].mean(1)
        by_all = ((axis / length[:, None])[:, None] @ by_points)[:, 0]
        shape = state.free.shape_slice()
        by_shape = by_all.new_zeros(by_all.shape)
        by_shape[:, shape] = by_all[:, shape]
        return length / self.adult, by_shape / self.adult


def skeleton_length(joints: Float[Tensor, "*batch J 3"]) -> Float[Tensor, "*batch"]:
    """Return the distance from the ankles to the head, of `JOINTS` at rest [m]."""
    return (joints[..., _HEAD, :] - joints[..., _ANKLES, :].mean(-2)).norm(dim=-1)
