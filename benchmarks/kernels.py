"""Each Warp kernel, forward and backward, against its roofline: bytes and operations counted by hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ceilings import Ceilings, measure
from harness import Session, attempt
from peers import LAYOUT, reason
from torch import Tensor

import agebody
from agebody.assets.asset import BodyAsset

BATCHES = {"cpu": (256, 1024), "cuda": (1024, 4096, 16384)}
TOLERANCE = 1e-4
"""Relative to the largest entry: float32 sums over up to 20,670 products."""
FLOAT = 4
"""Bytes of a float32, and of an int32."""

# Operations of the parts that kernels are made of; a multiply-add is two.
MATRIX_VECTOR = 15
MATRIX_MATRIX = 45
RODRIGUES = 40
"""A squared length, a sine and a cosine, nine entries."""
AFFINE = MATRIX_VECTOR + 3


@dataclass(frozen=True)
class Cost:
    """Cost of one call, if every input is read once and every output written once."""

    numbers: float
    flops: float


@dataclass(frozen=True)
class Case:
    """An operator on the built-in body: its inputs for a batch, and their cost."""

    rows: Callable[[int], tuple[Tensor, ...]]
    constants: tuple[Any, ...]
    forward: Callable[[int], Cost]
    backward: Callable[[int], Cost]


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def rest_shape(kernels: Any, asset: BodyAsset) -> Case:
    """The product of the layer from betas and age to the rest joints."""
    betas, width = 10, 3 * asset.num_joints
    anchors = len(asset.age_offsets)
    count = 1 + betas + anchors
    inputs, outputs = betas + 1, count + width
    constants = (
        _normal(count, width),
        *kernels.AgeAnchors.build(asset.age_offsets.tolist()).to(dtype=torch.float32),
    )
    return Case(
        lambda batch: (_normal(batch, betas), _normal(batch)),
        constants,
        lambda batch: Cost(batch * (inputs + outputs) + count * width, 2 * batch * count * width),
        lambda batch: Cost(batch * (2 * inputs + outputs) + count * width, 2 * batch * count * width),
    )


def kinematics(kernels: Any, asset: BodyAsset, *, entry: tuple[int, ...]) -> Case:
    joints, size = asset.num_joints, int(np.prod(entry))
    from_vectors = len(entry) == 1
    outputs = 24 + (9 if from_vectors else 0)
    turn = RODRIGUES if from_vectors else 0
    return Case(
        lambda batch: (0.3 * _normal(batch, joints, *entry), _normal(batch, joints, 3)),
        tuple(kernels.JointTree.build(asset.parents.tolist())),
        lambda batch: Cost(
            batch * joints * (size + 3 + outputs), batch * joints * (turn + MATRIX_MATRIX + 2 * AFFINE)
        ),
        # Gradients of the outputs come in, and twice the inputs' numbers; the products are done transposed,
        # once for the rotation and once for its descendants.
        lambda batch: Cost(
            batch * joints * (2 * (size + 3) + outputs),
            batch * joints * 2 * (turn + MATRIX_MATRIX + 2 * AFFINE),
        ),
    )


def skinning(kernels: Any, asset: BodyAsset) -> Case:
    vertices, joints, width = asset.num_vertices, asset.num_joints, asset.skin_joints.shape[1]
    small = 12 * joints + 3
    packed = kernels.SkinningWeights.pack(asset.skin_joints, asset.skin_weights.astype(np.float32), joints)
    blend = vertices * 24 * width
    return Case(
        lambda batch: (_normal(batch, vertices, 3), _normal(batch, joints, 3, 4), _normal(batch, 3)),
        tuple(packed),
        lambda batch: Cost(
            batch * (6 * vertices + small) + 2 * vertices * width, batch * (blend + vertices * (AFFINE + 3))
        ),
        # Vertices, their gradients and the transforms come in; gradients of all three inputs go out.
        lambda batch: Cost(
            batch * (9 * vertices + 2 * small) + 4 * vertices * width,
            batch * (2 * blend + vertices * (MATRIX_VECTOR + 9 + 3)),
        ),
    )


def regression(kernels: Any, asset: BodyAsset) -> Case:
    _, matrix = agebody.LAYOUTS[LAYOUT].resolve(asset)
    points, entries = matrix.shape[0], matrix.nnz
    touched = len(np.unique(matrix.indices))
    packed = kernels.PointWeights.pack(matrix.astype(np.float32))
    vertices = asset.num_vertices
    return Case(
        lambda batch: (_normal(batch, vertices, 3),),
        tuple(packed),
        lambda batch: Cost(batch * 3 * (touched + points) + 2 * entries, 6 * batch * entries),
        lambda batch: Cost(batch * 3 * (vertices + points) + 2 * entries, 6 * batch * entries),
    )


def blend_and_skin(kernels: Any, asset: BodyAsset) -> Case:
    module = importlib.import_module("blend_skin")
    skin = skinning(kernels, asset)
    vertices, joints = asset.num_vertices, asset.num_joints
    count = 1 + 10 + (0 if asset.posedirs is None else asset.posedirs.shape[2])
    directions = module.Directions.pack(_normal(count, vertices, 3).numpy())
    product = 2 * count * 3 * vertices

    def cost(batch: int, skin: Cost, saved: int, products: int) -> Cost:
        """Skinning plus the inputs of the rest surface, which stays inside the kernel."""
        numbers = skin.numbers - saved * batch * 3 * vertices + products * count * (batch + 3 * vertices)
        return Cost(numbers, skin.flops + products * batch * product)

    return Case(
        lambda batch: (_normal(batch, count), _normal(batch, joints, 3, 4), _normal(batch, 3)),
        (directions.matrix, *skin.constants),
        lambda batch: cost(batch, skin.forward(batch), 1, 1),
        # The rest surface is recomputed, and the gradient of the coefficients is a second product.
        lambda batch: cost(batch, skin.backward(batch), 2, 2),
    )


CASES: dict[str, Callable[[Any, BodyAsset], Case]] = {
    "rest_shape": rest_shape,
    "forward_kinematics_of_vectors": partial(kinematics, entry=(3,)),
    "forward_kinematics_of_matrices": partial(kinematics, entry=(3, 3)),
    "linear_blend_skinning": skinning,
    "regress_points": regression,
    "blend_and_skin": blend_and_skin,
}
"""Cases by the name of the operator."""


def operators(kernels: Any) -> dict[str, Any]:
    """Return all operators of the package, and the fused one that is not in it yet.

    Raises:
        ValueError: one of them has no case here.
    """
    fused = importlib.import_module("blend_skin").BLEND_SKIN
    found = {**kernels.OPERATORS, fused.name: fused}
    if missing := set(found) - set(CASES):
        raise ValueError(f"count bytes and operations of {', '.join(sorted(missing))}")
    return found


def to(device: torch.device, values: tuple[Any, ...]) -> list[Any]:
    return [value.to(device) if isinstance(value, Tensor) else value for value in values]


def check(operator: Any, case: Case, device: torch.device) -> None:
    rows, constants = to(device, case.rows(3)), to(device, case.constants)
    references = operator.reference(*rows, *constants)
    for ours, reference in zip(operator(*rows, *constants), references, strict=True):
        error = float((ours - reference).abs().max() / reference.abs().max())
        if not error <= TOLERANCE:
            raise ValueError(f"wrong answer: {error:.2g} of the largest entry")


def time(session: Session, operator: Any, case: Case, ceilings: Ceilings, batch: int) -> None:
    rows, constants = to(session.device, case.rows(batch)), to(session.device, case.constants)
    forward = partial(operator, *rows, *constants)
    name = operator.name
    failure = attempt(forward)
    if failure is not None:
        session.note(batch, name, failed=failure)
        return
    grads = [torch.ones_like(output) for output in forward()]
    backward = getattr(torch.ops.agebody, f"{name}_backward")
    calls = {
        name: forward,
        f"{name} backward": partial(backward, *grads, *rows, *constants, [True] * len(rows)),
    }
    first = len(session.rows)
    session.time(batch, calls)
    costs = {name: case.forward(batch), f"{name} backward": case.backward(batch)}
    for row in session.rows[first:]:
        cost = costs[row["contender"]]
        row["bytes"], row["flops"] = FLOAT * cost.numbers, cost.flops
        row["roofline_s"] = ceilings.seconds(num_bytes=row["bytes"], flops=row["flops"])


def main() -> None:
    session = Session("kernels", __doc__, batches=BATCHES, seconds=2.0)
    try:
        kernels = importlib.import_module("agebody_kernels")
    except ImportError as error:
        raise SystemExit(f"the kernels cannot be imported: {reason(error)}") from error
    ceilings = measure(session.device, session.seconds)
    session.extra["ceilings"] = ceilings.as_dict()
    with torch.no_grad():
        for name, operator in operators(kernels).items():
            try:
                case = CASES[name](kernels, session.asset)
                check(operator, case, session.device)
            except RuntimeError as error:
                session.absent[name] = reason(error)
                continue
            for batch in session.batches:
                time(session, operator, case, ceilings, batch)
    session.finish()


if __name__ == "__main__":
    main()
