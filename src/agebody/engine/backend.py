"""Choice of the implementation that computes a body, and the implementation over Warp's kernels.

The torch implementation is in `identity`, `kinematics`, `surface` and `points`; the classes here have the
same interface. No other module imports the kernels.
"""

from __future__ import annotations

import importlib.util
import reprlib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody import rotations
from agebody.assets.asset import BodyAsset, sparse_weights
from agebody.engine import halfprecision
from agebody.engine.batched import BatchedFunction, is_differentiated, is_traced, is_transformed
from agebody.engine.deform import pose_feature
from agebody.engine.identity import RestJoints
from agebody.engine.kinematics import KinematicTree
from agebody.engine.points import MeshPoints
from agebody.engine.surface import PosedSurface
from agebody.keypoints import KeypointLayout
from agebody.rotations import PoseFormat

BackendName = Literal["auto", "torch", "warp"]

BODIES = 512
"""Number of bodies per chunk in Warp's forward pass without gradients."""


class Parts(NamedTuple):
    """The classes that make up a body."""

    rest_joints: type[RestJoints]
    tree: type[KinematicTree] | type[WarpTree]
    surface: type[PosedSurface] | type[WarpSurface]
    mesh_points: type[MeshPoints]


def check_backend(backend: Any) -> str:
    """Return the name of a backend; raise ValueError for an unknown one."""
    if not isinstance(backend, str) or backend not in get_args(BackendName):
        known = ", ".join(get_args(BackendName))
        raise ValueError(f"backend: expected one of {known}, got {reprlib.repr(backend)}")
    return backend


def choose_backend(backend: str, device: torch.device) -> Literal["torch", "warp"]:
    """Return the implementation that a name selects; "auto" is Warp on CUDA and torch elsewhere.

    Raises:
        ImportError: Warp is chosen and not installed.
    """
    check_backend(backend)
    if backend == "warp":
        if not has_warp():
            raise ImportError(
                "backend='warp': the package warp-lang is not installed; "
                "pip install \"agebody[warp]\", or use backend='torch'"
            )
        if device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"backend='warp': its kernels run on cpu and cuda, got {device}; use backend='torch'"
            )
        return "warp"
    if backend == "torch" or device.type != "cuda":
        return "torch"
    if not has_warp():
        warnings.warn(
            "backend='auto': warp-lang is not installed, so that bodies on CUDA are computed by torch, "
            "which is slower; pip install \"agebody[warp]\", or choose backend='torch'",
            stacklevel=3,
        )
        return "torch"
    return "warp"


def choose_search(backend: str, device: torch.device) -> Literal["torch", "warp"]:
    """Choose as `choose_backend`, but for mesh searches, where Warp is also faster on the CPU."""
    if backend == "auto" and device.type == "cpu":
        return "warp" if has_warp() else "torch"
    return choose_backend(backend, device)


def has_warp() -> bool:
    """Return whether Warp is installed."""
    return is_installed("warp")


def is_installed(package: str) -> bool:
    """Return whether a package is there, without importing it."""
    with suppress(ImportError):  # of an import system that forbids it
        return importlib.util.find_spec(package) is not None
    return False


def get_parts(backend: Literal["torch", "warp"]) -> Parts:
    """Return the classes that make up a body."""
    if backend == "torch":
        return Parts(RestJoints, KinematicTree, PosedSurface, MeshPoints)
    return Parts(WarpRestJoints, WarpTree, WarpSurface, WarpMeshPoints)


def load_kernels() -> ModuleType:
    """Return the package of kernels.

    Raises:
        ImportError: Warp is not installed.
    """
    choose_backend("warp", torch.device("cpu"))
    kernels = importlib.import_module("agebody_kernels")
    if not _FUNCTIONS:
        _FUNCTIONS.update({name: _as_function(operator) for name, operator in kernels.OPERATORS.items()})
    return kernels


class WarpRestJoints(RestJoints):
    """`RestJoints` in one launch."""

    def __init__(self, directions: np.ndarray, age_anchors: Sequence[float], *, dtype: torch.dtype) -> None:
        super().__init__(directions, age_anchors, dtype=dtype)
        self.ages = _Constants(load_kernels().AgeAnchors.build(age_anchors).to(dtype=dtype))

    def forward(
        self, betas: Float[Tensor, "*batch N"], age_offset: Float[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch C"], Float[Tensor, "*batch J 3"]]:
        """Return the coefficients, and the rest joints [m]."""
        constants = (self.directions.flatten(1), *self.ages.values())
        batch, count = age_offset.shape, age_offset.numel()
        coefficients, joints = _compute(
            "rest_shape", constants, betas.reshape(count, betas.shape[-1]), age_offset.reshape(count)
        )
        coefficients = coefficients.reshape(*batch, coefficients.shape[-1])
        return coefficients, joints.reshape(*batch, *self.directions.shape[1:])


class WarpTree(nn.Module):
    """`KinematicTree` in one launch, Rodrigues' formula included."""

    def __init__(self, parents: Sequence[int], correctives: bool = True) -> None:
        super().__init__()
        self.correctives = correctives
        self.joints = _Constants(load_kernels().JointTree.build(parents))

    def pose(
        self, pose: Float[Tensor, "B J ..."], pose_format: PoseFormat, rest_joints: Float[Tensor, "B J 3"]
    ) -> tuple[
        Float[Tensor, "B J 3 3"], Float[Tensor, "B J 3 4"], Float[Tensor, "B J 3 4"], Float[Tensor, "B P"]
    ]:
        """Return matrices, world and skinning transforms, and pose feature, as `KinematicTree.pose`."""
        joints = self.joints.values()
        if pose_format == "axis_angle":
            matrices, world, skinning = _compute("forward_kinematics_of_vectors", joints, pose, rest_joints)
        else:
            matrices = rotations.to_matrix(pose, pose_format)
            world, skinning = _compute("forward_kinematics_of_matrices", joints, matrices, rest_joints)
        feature = pose_feature(matrices) if self.correctives else matrices.new_empty(len(matrices), 0)
        return matrices, world, skinning, feature


class WarpSurface(nn.Module):
    """`PosedSurface` as one matrix product in torch, and a kernel that skins the result.

    The template is added to the product instead of being part of it: where the user allows TF32 products, it
    stays exact, and only displacements are rounded. Arguments as there.
    """

    directions: Tensor
    correctives: Tensor | None

    def __init__(
        self,
        directions: np.ndarray,
        weights: np.ndarray,
        *,
        dtype: torch.dtype,
        correctives: np.ndarray | None = None,
        corrective_dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.num_vertices, num_joints = weights.shape
        flat = torch.from_numpy(np.ascontiguousarray(directions)).flatten(1)
        self.register_buffer("directions", _aligned(flat.to(device, dtype)), persistent=False)
        if correctives is None or corrective_dtype is None:
            self.correctives = None
        else:
            flat = torch.from_numpy(np.ascontiguousarray(correctives)).flatten(1)
            low = halfprecision.factor(flat, corrective_dtype).to(device)
            self.register_buffer("correctives", _aligned(low), persistent=False)
        packed = load_kernels().SkinningWeights.pack(*sparse_weights(weights), num_joints)
        self.weights = _Constants(packed.to(device, dtype))

    def rest(self, coefficients: Tensor) -> Tensor:
        """Return the rest surface (B, 3 V) for the first coefficients."""
        rows, count = coefficients.shape
        return _BLEND(self.directions[1:count], coefficients[:, 1:], self.directions[:1].expand(rows, -1))[0]

    def vertices(self, rest: Tensor) -> Tensor:
        """Return a rest surface as vertices (B, V, 3)."""
        return rest.unflatten(-1, (self.num_vertices, 3))

    def forward(
        self, coefficients: Tensor, transforms: Tensor, translation: Tensor, base: Tensor | None = None
    ) -> Tensor:
        """Return the posed vertices (B, V, 3) [m]; arguments as in `PosedSurface.forward`."""
        if base is None:
            base, coefficients = self.directions[:1], coefficients[:, 1:]
        inputs = (coefficients, transforms, translation, base)
        if not (is_traced(*inputs) or is_differentiated(*inputs)):
            return self._posed(*inputs)
        rest = self._rest(coefficients, base).unflatten(-1, (self.num_vertices, 3))
        return _compute("linear_blend_skinning", self.weights.values(), rest, transforms, translation)[0]

    def _rest(self, coefficients: Tensor, base: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the rest surface with pose correctives (B, 3 V): base plus displacements."""
        extra = 0 if self.correctives is None else halfprecision.length(self.correctives)
        plain = coefficients[:, : coefficients.shape[1] - extra]
        directions = self.directions[len(self.directions) - plain.shape[1] :]
        if out is None:
            rest = _BLEND(directions, plain, base.expand(len(plain), -1))[0]
        else:
            rest = torch.addmm(_row(base), plain, directions, out=out)
        if self.correctives is None:
            return rest
        if out is not None:
            return halfprecision.product(
                coefficients[:, plain.shape[1] :], self.correctives, base=rest, out=out
            )
        return _PRODUCT(self.correctives, coefficients[:, plain.shape[1] :], rest)[0]

    def _posed(self, coefficients: Tensor, transforms: Tensor, translation: Tensor, base: Tensor) -> Tensor:
        """Return the posed vertices in chunks, which bounds memory and keeps rest surfaces in cache."""
        batch = len(coefficients)
        vertices = coefficients.new_empty(batch, self.num_vertices, 3)
        held = coefficients.new_empty(min(batch, BODIES), self.directions.stride(0))
        held = held[:, : 3 * self.num_vertices]
        joints, weights = self.weights.values()[:2]
        for start in range(0, batch, BODIES):
            part = slice(start, min(start + BODIES, batch))
            rest = held[: part.stop - part.start]
            self._rest(coefficients[part], base if len(base) == 1 else base[part], rest)
            surface = rest.view(-1, self.num_vertices, 3)
            load_kernels().skin_into(
                vertices[part], surface, transforms[part], translation[part], joints, weights
            )
        return vertices


def _aligned(matrix: Tensor) -> Tensor:
    """Return a matrix whose rows begin at multiples of 16 bytes: products of others are slower on CUDA."""
    columns = matrix.shape[1]
    return nn.functional.pad(matrix, (0, -columns % (16 // matrix.element_size())))[:, :columns]


def _row(base: Tensor) -> Tensor:
    """Return a base whose rows are one row (1 or B, N) as that row (N).

    On CUDA a product adds a row itself, but a matrix is first copied into the result.
    """
    return base[0] if len(base) and (len(base) == 1 or base.stride(0) == 0) else base


_BLEND = BatchedFunction(
    1,
    definition=lambda directions, x, base: (torch.addmm(base, x, directions),),
    value=lambda directions, keep, x, base: ((torch.addmm(_row(base), x, directions),), ()),
    gradient=lambda directions, wants, kept, grads, x, base: (
        grads[0] @ directions.T if wants[0] else None,
        grads[0],
    ),
)
_PRODUCT = BatchedFunction(
    1,
    definition=lambda factor, x, base: (base + x @ halfprecision.matrix(factor),),
    value=lambda factor, keep, x, base: ((halfprecision.product(x, factor, base=base),), ()),
    gradient=lambda factor, wants, kept, grads, x, base: (
        halfprecision.transposed_product(grads[0], factor) if wants[0] else None,
        grads[0],
    ),
)


class WarpMeshPoints(MeshPoints):
    """`MeshPoints` in one launch, over the sparse regressor."""

    def __init__(
        self, asset: BodyAsset, layout: KeypointLayout, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(asset, layout, dtype=dtype, device=device)
        self.sparse = _Constants(load_kernels().PointWeights.pack(self.regressor).to(device, dtype))

    def from_surface(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B K 3"]:
        """Return the weighted sums of vertices; zero where a point is a joint."""
        return _compute("regress_points", self.sparse.values(), vertices)[0]


class _Constants(nn.Module):
    """A kernel's constants, with tensors as buffers that move with the layer."""

    def __init__(self, constants: tuple[Any, ...]) -> None:
        super().__init__()
        self.others = tuple(None if isinstance(c, Tensor) else c for c in constants)
        for i, constant in enumerate(constants):
            if isinstance(constant, Tensor):
                self.register_buffer(f"constant{i}", constant, persistent=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        load_kernels()  # registers the operators, which a compiler needs for an unpickled layer
        super().__setstate__(state)

    def values(self) -> tuple[Any, ...]:
        """Return the constants in their order."""
        return tuple(
            self._buffers[f"constant{i}"] if other is None else other for i, other in enumerate(self.others)
        )


def _compute(name: str, constants: tuple[Any, ...], *rows: Tensor) -> tuple[Tensor, ...]:
    """Return an operator's outputs: the operator itself while compiling, else its batched function."""
    if torch.compiler.is_compiling() and not is_transformed():
        found = getattr(torch.ops.agebody, name)(*rows, *constants)
        return found if isinstance(found, tuple) else (found,)
    return _FUNCTIONS[name](constants, *rows)


_FUNCTIONS: dict[str, BatchedFunction] = {}
"""The operators as batched functions, defined by their reference implementations; see `load_kernels`."""


def _as_function(operator: Any) -> BatchedFunction:
    return BatchedFunction(
        operator.num_outputs,
        definition=lambda constants, *rows: operator.reference(*rows, *constants),
        value=lambda constants, keep, *rows: (operator.value(*rows, *constants), ()),
        gradient=lambda constants, wants, kept, grads, *rows: operator.gradient(
            wants, grads, *rows, *constants
        ),
    )
