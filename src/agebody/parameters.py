"""The parameters of a body: its pose, place and identity as one tuple, and as one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import AssetError, BodyAsset, expect_asset
from agebody.assets.official import HANDS_FROM
from agebody.checks import (
    broadcast,
    expand_to,
    expect,
    flatten,
    read_count,
    read_rotations,
    read_tensor,
    read_texts,
)
from agebody.engine.batched import product
from agebody.files import read_flag
from agebody.keypoints import mirror_order
from agebody.rotations import mirror

GROUPS = ("global_orient", "body_pose", "betas", "age_offset", "transl")
"""Groups of parameters, in their order in a vector."""


@runtime_checkable
class BodySizes(Protocol):
    """Sizes, dtype and device of a body, as `BodyParameters` needs them; every `BodyModel` has them."""

    num_joints: int

    @property
    def num_coefficients(self) -> int:
        """Number of betas and expression coefficients."""
        ...

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
    sizes = (3, 3 * (body.num_joints - 1), body.num_coefficients, 1, 3)
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
    """Shape coefficients, then those of the expression, if the layer has any."""
    age_offset: Float[Tensor, "*batch"]
    """Ignored by a body of one age."""
    transl: Float[Tensor, "*batch 3"]
    """[m]"""

    @classmethod
    def zeros(cls, body: BodySizes, *batch: int) -> BodyParameters:
        """Return the mean person in the rest pose at the origin."""
        shapes = ((3,), (body.num_joints - 1, 3), (body.num_coefficients,), (), (3,))
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
        """Return these bodies mirrored at x = 0 of the world, for a symmetric body.

        They project to the flipped image of a camera that looks along z, flipped about its principal point,
        with keypoints in the order of `KeypointLayout.flip`.

        Args:
            joint_names: of the body, the root's first: ``body.asset.joint_names``.
        """
        count = self.body_pose.shape[-2] + 1
        if len(read_texts("joint_names", joint_names)) != count:
            raise ValueError(f"joint_names: expected {count}, the root's first, got {len(joint_names)}")
        order = list(mirror_order(joint_names[1:]))
        across = self.transl.new_tensor([-1.0, 1.0, 1.0])
        return self._replace(
            global_orient=mirror(self.global_orient),
            body_pose=mirror(self.body_pose[..., order, :]),
            transl=across * self.transl,
        )


def join_pose(
    asset: BodyAsset,
    *,
    num_hand_components: int | None = None,
    flat_hand_mean: bool = False,
    **parts: Tensor | None,
) -> Float[Tensor, "*batch J 3"]:
    """Join the parts of a pose to the ``body_pose`` of a layer; missing parts have no rotation.

    Args:
        asset: the body, ``layer.asset``; its `BodyAsset.pose_parts` names the parts.
        num_hand_components: number of principal components that the hands are given by; None for angles.
        flat_hand_mean: whether a hand of zeros is flat. If False, as in smplx, it has the asset's mean pose,
            also where it is not given.
        parts: axis-angle vectors (*batch, joints, 3), or flat (*batch, 3 * joints), of each part; a hand
            (*batch, num_hand_components) with components.

    Raises:
        AssetError: the asset has no hand means or components.
    """
    rows = expect_asset(asset).pose_parts
    unknown = [name for name in parts if name not in rows]
    if unknown:
        raise TypeError(f"{unknown[0]}: {asset.metadata.name!r} has the parts {', '.join(rows)}")
    like = next((expect(name, part) for name, part in parts.items() if part is not None), torch.zeros(()))
    hands = hand_bases(asset, num_hand_components, flat_hand_mean)
    found: dict[str, Tensor] = {}
    for name, part in rows.items():
        count, (mean, components) = part.stop - part.start, hands.get(name, (None, None))
        if components is None:
            pose = read_rotations(name, parts.get(name), "axis_angle", count, like)
        else:
            pose = read_tensor(name, parts.get(name), components.shape[:1], like)
            pose = product(pose, like.new_tensor(components)).unflatten(-1, (count, 3))
        found[name] = pose if mean is None else pose + like.new_tensor(mean).view(count, 3)
    batch = broadcast(**{name: pose.shape[:-2] for name, pose in found.items()})
    return torch.cat([pose.expand(*batch, -1, -1) for pose in found.values()], -2)


def split_pose(
    asset: BodyAsset,
    body_pose: Float[Tensor, "*batch J 3"] | Float[Tensor, "*batch _"],
    *,
    num_hand_components: int | None = None,
    flat_hand_mean: bool = False,
) -> dict[str, Tensor]:
    """Return the parts of a ``body_pose`` by their names, (*batch, joints, 3) each; inverts `join_pose`.

    Arguments are those of `join_pose`. Hands by components, (*batch, num_hand_components), are the closest
    ones, since a pose need not lie in their span.
    """
    pose = read_rotations(
        "body_pose",
        body_pose,
        "axis_angle",
        expect_asset(asset).num_joints - 1,
        expect("body_pose", body_pose),
    )
    found = {name: pose[..., rows, :] for name, rows in asset.pose_parts.items()}
    for name, (mean, components) in hand_bases(asset, num_hand_components, flat_hand_mean).items():
        if mean is not None:
            found[name] = found[name] - pose.new_tensor(mean).view(-1, 3)
        if components is not None:
            inverse = np.linalg.pinv(components.astype(np.float64))
            found[name] = product(found[name].flatten(-2), torch.from_numpy(inverse).to(pose))
    return found


def hand_bases(
    asset: BodyAsset, num_components: int | None, flat: bool, argument: str = "num_hand_components"
) -> dict[str, tuple[np.ndarray | None, np.ndarray | None]]:
    """Return the mean of each hand, and its components, where they are used."""
    hands = [name for name in asset.pose_parts if "hand" in name]
    flat = read_flag("flat_hand_mean", flat)
    means = components = None
    if num_components is not None and not hands:
        read_count(argument, num_components)
    if hands and not flat:
        means = _required(asset, "hand_means", "give flat_hand_mean=True")
    if hands and num_components is not None:
        components = _required(asset, "hand_components", "give the angles of all joints")
        count = read_count(argument, num_components, components.shape[1], asset.metadata.name)
        components = components[:, :count]
    return {
        name: (None if means is None else means[i], None if components is None else components[i])
        for i, name in enumerate(hands)
    }


def _required(asset: BodyAsset, field: str, instead: str) -> np.ndarray:
    found = getattr(asset, field)
    if found is None:
        raise AssetError(f"{asset.metadata.name!r} has no {field}: {instead}, or load them; {HANDS_FROM}")
    return found


def check_identity(
    parameters: BodyParameters, num_betas: int | None = None, *, argument: str = "parameters"
) -> None:
    """Raise ValueError unless a batch of frames has one identity, which a file of one person has."""
    for name, part in (("betas", parameters.betas[:, :num_betas]), ("age_offset", parameters.age_offset)):
        spread = float((part - part[:1]).abs().max()) if part.numel() else 0.0
        if spread > 1e-6:
            raise ValueError(
                f"{argument}.{name}: a file has one person, so expected one identity in all frames; they "
                f"differ by up to {spread:.3g} (give their mean)"
            )


def read_start(
    body: BodySizes, start: BodyParameters, batch: Sequence[int], *, argument: str = "start"
) -> BodyParameters:
    """Return checked parameters, such as a start, broadcast to a batch that is flattened."""
    if not isinstance(start, BodyParameters):
        raise TypeError(f"{argument}: expected BodyParameters, got {type(start).__name__}")
    found = []
    for (name, part), like in zip(start._asdict().items(), BodyParameters.zeros(body, 1), strict=True):
        entry = like.shape[1:]
        part = expect(f"{argument}.{name}", part, *entry).detach().to(like)
        if not part.isfinite().all():
            raise ValueError(f"{argument}.{name}: expected finite numbers")
        part = expand_to(f"{argument}.{name}", part, (*batch, *entry))
        found.append(flatten(part, (*batch,), len(entry)))
    return BodyParameters(*found)
