"""The vertices that are appended to the joints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.assets.landmarks import SURFACE21
from agebody.compat.smplx.vertex_ids import short_name

_FACE, _FEET, _HANDS = SURFACE21[:5], SURFACE21[5:11], SURFACE21[11:]


class VertexJointSelector(nn.Module):
    """Append vertices of the face, and optionally of feet and finger tips, to the joints.

    Args:
        vertex_ids: vertex of each point, under the names of `vertex_ids`; None selects no points.
        use_hands: whether to append the ten finger tips.
        use_feet_keypoints: whether to append toes and heels.
        kwargs: other options of a model, which are ignored.
    """

    extra_joints_idxs: Tensor

    def __init__(
        self,
        vertex_ids: Mapping[str, int] | None = None,
        use_hands: bool = True,
        use_feet_keypoints: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        points = _FACE + (_FEET if use_feet_keypoints else ()) + (_HANDS if use_hands else ())
        names = [] if vertex_ids is None else [short_name(point) for point in points]
        vertex_ids = vertex_ids or {}
        missing = [name for name in names if name not in vertex_ids]
        if missing:
            raise ValueError(f"vertex_ids: expected a vertex for each of {names}, {missing} missing")
        ids = torch.tensor([int(vertex_ids[name]) for name in names], dtype=torch.long)
        self.register_buffer("extra_joints_idxs", ids, persistent=False)

    def forward(
        self, vertices: Float[Tensor, "B V 3"], joints: Float[Tensor, "B J 3"]
    ) -> Float[Tensor, "B K 3"]:
        """Return the joints, then the selected vertices."""
        return torch.cat((joints, vertices.index_select(1, self.extra_joints_idxs)), 1)
