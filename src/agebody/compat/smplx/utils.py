"""The containers and conversions of smplx.utils."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import scipy
import torch

__all__ = [
    "MANOOutput",
    "ModelOutput",
    "SMPLHOutput",
    "SMPLOutput",
    "SMPLXOutput",
    "Struct",
    "to_np",
    "to_tensor",
]

Tensor: TypeAlias = torch.Tensor
Array: TypeAlias = np.ndarray


@dataclass
class ModelOutput:
    """The output of a model; fields can be set, and read as attributes or as entries."""

    vertices: Tensor | None = None
    joints: Tensor | None = None
    full_pose: Tensor | None = None
    global_orient: Tensor | None = None
    transl: Tensor | None = None
    v_shaped: Tensor | None = None

    def __getitem__(self, key: str) -> Any:
        """Return a field by name."""
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field by name, or the default."""
        return getattr(self, key, default)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all fields."""
        return self.keys()

    def keys(self) -> Iterator[str]:
        """Iterate over the names of all fields, including those that are None."""
        return (field.name for field in fields(self))

    def values(self) -> Iterator[Any]:
        """Iterate over the values of all fields."""
        return (self[key] for key in self.keys())

    def items(self) -> Iterator[tuple[str, Any]]:
        """Iterate over names and values of all fields."""
        return ((key, self[key]) for key in self.keys())


@dataclass
class SMPLOutput(ModelOutput):
    """The output of SMPL."""

    betas: Tensor | None = None
    body_pose: Tensor | None = None


@dataclass
class SMPLHOutput(SMPLOutput):
    """The output of SMPL-H; hands as angles, less the mean pose."""

    left_hand_pose: Tensor | None = None
    right_hand_pose: Tensor | None = None


@dataclass
class SMPLXOutput(SMPLHOutput):
    """The output of SMPL-X."""

    expression: Tensor | None = None
    jaw_pose: Tensor | None = None


@dataclass
class MANOOutput(ModelOutput):
    """The output of MANO; the hand as angles, less the mean pose."""

    betas: Tensor | None = None
    hand_pose: Tensor | None = None


@dataclass
class FLAMEOutput(ModelOutput):
    """The output of FLAME, for annotations and results of your own."""

    betas: Tensor | None = None
    expression: Tensor | None = None
    jaw_pose: Tensor | None = None
    neck_pose: Tensor | None = None


class Struct(SimpleNamespace):
    """Attributes from keywords: the entries of a model file for ``data_struct``."""


def to_np(array: Any, dtype: Any = np.float32) -> np.ndarray:
    """Return a dense NumPy copy of an array, a chumpy object or a SciPy sparse matrix."""
    return np.array(array.toarray() if scipy.sparse.issparse(array) else array, dtype=dtype)


def to_tensor(array: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return tensors unchanged, and other arrays as tensors of a dtype."""
    return array if isinstance(array, torch.Tensor) else torch.tensor(array, dtype=dtype)


def find_joint_kin_chain(joint_id: int, kinematic_tree: Any) -> list[Any]:
    """Return a joint, its parent, and so on up to the root."""
    chain = []
    while joint_id != -1:
        chain.append(joint_id)
        joint_id = kinematic_tree[joint_id]
    return chain


def rot_mat_to_euler(rot_mats: Tensor) -> Tensor:
    """Return the angle about y of rotation matrices (B, 3, 3), as Euler angles about x, y and z have it."""
    cosine = (rot_mats[:, 0, 0].square() + rot_mats[:, 1, 0].square()).sqrt()
    return torch.atan2(-rot_mats[:, 2, 0], cosine)
