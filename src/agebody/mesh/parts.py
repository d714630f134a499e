"""Parts of a body, such as head and limbs: which vertices they cover, and which joints they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from agebody.assets.asset import BodyAsset, expect_asset

_LIMBS = {
    "left_arm": "left_shoulder",
    "right_arm": "right_shoulder",
    "left_leg": "left_hip",
    "right_leg": "right_hip",
}
_STARTS: Mapping[int, Mapping[str, str]] = {
    6: {"head": "neck", "trunk": "pelvis", **_LIMBS},
    7: {"head": "neck", "upper_trunk": "spine2", "lower_trunk": "pelvis", **_LIMBS},
}
"""Names of six and of seven parts, and the joint at which each begins; collars belong to the trunk."""


@dataclass(frozen=True, eq=False)
class PartMap:
    """Parts of a body.

    A picture of the parts, in which a pixel that shows no person is 0 and one that shows part p is p + 1, is
    the usual supervision of part attention.
    """

    names: tuple[str, ...]
    """Name of each part p; those of two sides begin with ``left_`` and ``right_``, see `mirror_order`."""
    vertices: Int[np.ndarray, " V"]
    """The part that each vertex lies on."""
    joints: Int[np.ndarray, " J"]
    """The part that shows the rotation of each joint."""

    @classmethod
    def from_joints(cls, asset: BodyAsset, starts: Mapping[str, str] | int | None = None) -> PartMap:
        """Divide a body by the joint that moves each vertex most.

        Args:
            asset: a body.
            starts: 6 for head, trunk and limbs, 7 for the trunk in two; or the joint at which each part
                begins, by the part's name: a part reaches to the next such joints, and one of them is the
                root. None: one part per joint.
        """
        expect_asset(asset)
        if starts is None:
            starts = {name: name for name in asset.joint_names}
        elif isinstance(starts, int):
            starts = _STARTS.get(starts, starts)
        if not isinstance(starts, Mapping):
            raise TypeError(f"starts: expected 6, 7 or a joint by each part's name, got {starts!r}")
        unknown = [joint for joint in starts.values() if joint not in asset.joint_names]
        if unknown:
            raise ValueError(
                f"starts: expected joints among {', '.join(asset.joint_names)}, got {', '.join(unknown)}"
            )
        begins = {asset.joint_names.index(joint): part for part, joint in enumerate(starts.values())}
        if 0 not in begins or len(begins) < len(starts):
            raise ValueError(f"starts: expected different joints, {asset.joint_names[0]} among them")
        joints = np.zeros(asset.num_joints, int)
        for joint, parent in enumerate(asset.parents):
            joints[joint] = begins.get(joint, joints[parent])
        return cls(tuple(starts), joints[asset.strongest_joints()], joints)

    @classmethod
    def from_vertices(
        cls, asset: BodyAsset, vertices: np.ndarray | Sequence[int], names: Sequence[str]
    ) -> PartMap:
        """Divide a body by the part of each vertex.

        A joint is shown by the part whose vertices it moves most: by the sum of their skinning weights. A
        joint without weights is shown by its parent's part.

        Args:
            asset: a body.
            vertices: the part (V,) that each vertex lies on, from 0.
            names: name of each part.
        """
        expect_asset(asset)
        vertices = np.asarray(vertices)
        if vertices.shape != (asset.num_vertices,) or vertices.dtype.kind not in "iu":
            raise ValueError(
                f"vertices: expected {asset.num_vertices} whole numbers, one per vertex of the body, "
                f"got {vertices.dtype} of shape {vertices.shape}"
            )
        if vertices.min() < 0 or vertices.max() >= len(names):
            raise ValueError(
                f"vertices: expected parts 0..{len(names) - 1}, one per name, "
                f"got {vertices.min()}..{vertices.max()}"
            )
        if isinstance(names, str) or len(set(names)) < len(names):
            raise ValueError(f"names: expected a sequence of different names, got {names!r}")
        shares = np.zeros((len(names), asset.num_joints))
        np.add.at(shares, vertices, asset.dense_weights())
        joints = shares.argmax(0)
        for joint in np.flatnonzero(shares.sum(0) == 0):
            joints[joint] = joints[max(0, asset.parents[joint])]
        return cls(tuple(names), vertices.astype(int), joints)
