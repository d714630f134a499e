"""The vertices that are appended to the joints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.landmarks import SURFACE21
from agebody.compat.smplx.arrays import WatchedArrays
from agebody.compat.smplx.vertex_ids import short_name
from agebody.keypoints import KeypointLayout

_FACE, _FEET, _HANDS = SURFACE21[:5], SURFACE21[5:11], SURFACE21[11:]


class VertexJointSelector(WatchedArrays):
    """Append vertices of the face, and optionally of feet and finger tips, to the joints.

    Args:
        vertex_ids: vertex of each point, under the names of `vertex_ids`; None selects no points.
        use_hands: whether to append the ten finger tips.
        use_feet_keypoints: whether to append toes and heels.
        kwargs: other options of a model, which are ignored.
    """

    extra_joints_idxs: Tensor
    layout: KeypointLayout | None = None
    """The joints and vertices as a layout, in the model that was built with them."""

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
        self.ids = [int(vertex_ids[name]) for name in names]
        self._put("extra_joints_idxs", self._originals()["extra_joints_idxs"], torch.long)
        self._watch(["extra_joints_idxs"])

    def _originals(self) -> dict[str, np.ndarray]:
        return {"extra_joints_idxs": np.array(self.ids, np.int64)}

    def is_original(self) -> bool:
        """Return whether the vertices are still those of the layout."""
        return self.layout is not None and not self._changed(["extra_joints_idxs"])

    def forward(
        self, vertices: Float[Tensor, "B V 3"], joints: Float[Tensor, "B J 3"]
    ) -> Float[Tensor, "B K 3"]:
        """Return the joints, then the selected vertices."""
        return torch.cat((joints, vertices.index_select(1, self._array("extra_joints_idxs"))), 1)
