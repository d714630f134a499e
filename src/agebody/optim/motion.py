"""Motion of joints between the frames of a clip, as a term of a fit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import HAND_JOINTS
from agebody.body import BodyModel
from agebody.checks import apply_mask
from agebody.keypoints import KeypointLayout, get_layout, joint_layout
from agebody.optim.state import State
from agebody.parameters import BodyParameters

_SMPL24 = get_layout("smpl24")
_BODY22 = _SMPL24.names[:22]
_HEAD = _SMPL24.names.index("head")
_ANKLES = [_SMPL24.names.index(name) for name in ("left_ankle", "right_ankle")]


class Moves(NamedTuple):
    """Residuals between consecutive frames of b clips; their derivative by both frames is after - before."""

    residuals: Float[Tensor, "b T-1 M"]
    before: Float[Tensor, "b T-1 M F"]
    """By the variables of the first frame."""
    after: Float[Tensor, "b T-1 M F"]
    """By the variables of the second frame, with the derivative of the size."""


class Motion:
    """Motion of all joints in the world, ``½ Σ |J_t+1 - J_t|² / (sd · size)²`` (AionHMR, SLAHMR).

    The size is that of the skeleton at rest, relative to an adult's. Without this normalisation, small and
    near people would cost less, although images do not determine size and depth.

    Args:
        body: the layer.
        sd: standard deviation of a coordinate of a joint's move from frame to frame, of an adult [m].
    """

    def __init__(self, body: BodyModel, sd: float) -> None:
        self.sd = sd
        self.joints, self.shares = moving_joints(body)
        self.adult = skeleton_length(body.keypoints(self.joints))

    def moves(self, state: State, present: Tensor) -> Moves:
        """Return residuals and derivatives.

        Args:
            state: bodies of b clips, frame after frame.
            present: (b, T) frames that belong to each clip, the first ones.
        """
        frames = present.shape[1]
        points, jacobian = state.points(self.joints)
        points, jacobian = points * self.shares[:, None], jacobian * self.shares[:, None, None]
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
        points, jacobian = State(state.body, rest.vector(), state.rows[::frames], state.free).points(
            self.joints
        )
        axis = points[:, _HEAD] - points[:, _ANKLES].mean(1)
        length = axis.norm(dim=-1)
        by_points = jacobian[:, _HEAD] - jacobian[:, _ANKLES].mean(1)
        by_all = ((axis / length[:, None])[:, None] @ by_points)[:, 0]
        shape = state.free.shape_slice()
        by_shape = by_all.new_zeros(by_all.shape)
        by_shape[:, shape] = by_all[:, shape]
        return length / self.adult, by_shape / self.adult


def moving_joints(body: BodyModel) -> tuple[KeypointLayout, Float[Tensor, " K"]]:
    """Return the joints whose motion is penalised, and their factors: SMPL's, and the fingers' if any.

    Of a finger it is the last joint. The five of a hand count together as SMPL's joint of the hand does.
    """
    names = body.asset.joint_names
    last = tuple(name for part in HAND_JOINTS.values() for name in part if name in names and name[-1] == "3")
    layout = _SMPL24 if set(_SMPL24.names[22:]) <= set(names) or not last else joint_layout(*_BODY22, *last)
    shares = [1.0 if name in _SMPL24.names else 5**-0.5 for name in layout.names]
    return layout, torch.tensor(shares, dtype=body.dtype, device=body.device)


def skeleton_length(joints: Float[Tensor, "*batch J 3"]) -> Float[Tensor, "*batch"]:
    """Return the distance from the ankles to the head, of `moving_joints` at rest [m]."""
    return (joints[..., _HEAD, :] - joints[..., _ANKLES, :].mean(-2)).norm(dim=-1)
