"""The containers and conversions that code around smplx imports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse

__all__ = [
    "ModelOutput",
    "SMPLHOutput",
    "SMPLOutput",
    "Struct",
    "to_np",
    "to_tensor",
]

Tensor: TypeAlias = torch.Tensor
Array: TypeAlias = np.ndarray


@dataclass
class ModelOutput:
    """What a model gives; fields can be set, and read like those of an object or a dict."""

    vertices: Tensor | None = None
    joints: Tensor | None = None
    full_pose: Tensor | None = None
    global_orient: Tensor | None = None
    transl: Tensor | None = None
    v_shaped: Tensor | None = None

    def __getitem__(self, key: str) -> Any:
        """A field by name."""
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """A field by name, or the default where there is none of that name."""
        return getattr(self, key, default)

    def __iter__(self) -> Iterator[str]:
        """Names of all fields, as `keys`."""
        return self.keys()

    def keys(self) -> Iterator[str]:
        """Names of all fields, those that are None included."""
        return (field.name for field in fields(self))

    def values(self) -> Iterator[Any]:
        """Values of all fields."""
        return (self[key] for key in self.keys())

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names and values of all fields."""
        return ((key, self[key]) for key in self.keys())


@dataclass
class SMPLOutput(ModelOutput):
    """What SMPL gives."""

    betas: Tensor | None = None
    body_pose: Tensor | None = None


@dataclass
class SMPLHOutput(SMPLOutput):
    """SMPL's output with hands, which HMR2's wrapper of SMPL declares as its own."""

    left_hand_pose: Tensor | None = None
    right_hand_pose: Tensor | None = None


class Struct(SimpleNamespace):
    """Attributes from keywords: a model file's entries for ``data_struct``."""


def to_np(array: Any, dtype: Any = np.float32) -> np.ndarray:
    """A dense NumPy copy of an array, a chumpy object or a SciPy sparse matrix."""
    return np.array(array.toarray() if sparse.issparse(array) else array, dtype=dtype)


def to_tensor(array: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor as it is, anything else as a tensor of that dtype."""
    return array if isinstance(array, torch.Tensor) else torch.tensor(array, dtype=dtype)
