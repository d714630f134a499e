"""Cases for the operators of the kernels: many sizes each, with the definition in `agebody`.

One line of `CASES` is one operator at one size. For a new kernel there is one more function that makes a
`Case`, its lines, and its names among the `SMALL` and the `OPCHECKED` ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from agebody_kernels._operator import Operator
from agebody_kernels.age import REST_SHAPE, AgeAnchors
from agebody_kernels.kinematics import AXIS_ANGLE, MATRIX, JointTree
from agebody_kernels.regression import REGRESSION, PointWeights
from agebody_kernels.skinning import SKINNING, SkinningWeights
from blend_skin import BLEND_SKIN, Directions
from scipy import sparse
from torch import Tensor

from agebody import rotations
from agebody.assets.asset import SMPL_PARENTS
from agebody.engine import deform
from agebody.engine.kinematics import KinematicTree

DOUBLE = torch.float64


class Case(NamedTuple):
    """One call of one operator, in float64 on the CPU unless moved."""

    operator: Operator
    rows: tuple[Tensor, ...]
    constants: tuple[Any, ...]
    definition: Callable[..., tuple[Tensor, ...]]
    """The same outputs of float64 rows, by the code of `agebody` that defines them."""
    roundings: float
    """Roundings of an output or a gradient; those of a long sum grow like the square root of its length."""

    def to(self, device: str, dtype: torch.dtype) -> Case:
        def move(x: Any) -> Any:
            return x.to(device, dtype if x.is_floating_point() else None) if isinstance(x, Tensor) else x

        return self._replace(rows=tuple(map(move, self.rows)), constants=tuple(map(move, self.constants)))

    def __call__(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return self.operator(*(rows or self.rows), *self.constants)

    def reference(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return self.operator.reference(*(rows or self.rows), *self.constants)

    def leaves(self) -> tuple[Tensor, ...]:
        """The rows, to be differentiated."""
        return tuple(t.detach().clone().requires_grad_() for t in self.rows)


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def skinning(
    bodies: int,
    vertices: int,
    joints: int,
    width: int,
    *,
    used: int | None = None,
    bare: int = 0,
) -> Case:
    """Skinning by up to ``width`` joints of the first ``used``; ``bare`` vertices hang on none."""
    rng = np.random.default_rng(0)
    movers = np.argsort(rng.random((vertices, used or joints)), axis=1)[:, :width]
    weights = rng.random(movers.shape) * (rng.random(movers.shape) < 0.8)  # zeros among them
    weights[:, 0] += 0.1
    weights /= weights.sum(1, keepdims=True)
    weights[:bare] = 0
    dense = torch.zeros(vertices, joints, dtype=DOUBLE)
    dense.scatter_(1, torch.from_numpy(movers), torch.from_numpy(weights))
    return Case(
        SKINNING,
        (normal(rng, bodies, vertices, 3), normal(rng, bodies, joints, 3, 4), normal(rng, bodies, 3)),
        SkinningWeights.pack(movers, weights, joints),
        lambda x, transforms, t: (deform.linear_blend_skinning(x, transforms, dense) + t[:, None],),
        roundings=width + 5 + math.sqrt(vertices),
    )


def blend_and_skin(bodies: int, vertices: int, joints: int, width: int, *, coefficients: int) -> Case:
    """Skinning, of a surface that is made of so many directions."""
    skinned, rng = skinning(bodies, vertices, joints, width), np.random.default_rng(1)
    directions = normal(rng, coefficients, vertices, 3)

    def definition(k: Tensor, transforms: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        rest = deform.rest_surface(directions.new_zeros(vertices, 3), directions.permute(1, 2, 0), k)
        return skinned.definition(rest, transforms, t)

    return Case(
        BLEND_SKIN,
        (normal(rng, bodies, coefficients), *skinned.rows[1:]),
        (Directions.pack(directions.numpy()).matrix, *skinned.constants),
        definition,
        roundings=skinned.roundings + coefficients,
    )


def axis_angle(bodies: int, parents: Sequence[int], *, angles: Sequence[float] = ()) -> Case:
    """Kinematics of random vectors, or of turns by given angles."""
    rng = np.random.default_rng(0)
    vectors = normal(rng, bodies, len(parents), 3)
    if angles:
        length = torch.tensor(angles, dtype=DOUBLE).resize_(bodies, 1, 1)
        vectors = length * torch.nn.functional.normalize(vectors, dim=-1)
    tree = KinematicTree(parents)

    def definition(vectors: Tensor, rest: Tensor) -> tuple[Tensor, ...]:
        matrices = rotations.axis_angle_to_matrix(vectors)
        return matrices, *tree(matrices, rest)

    return Case(
        AXIS_ANGLE, (vectors, normal(rng, bodies, len(parents), 3)), JointTree.build(parents), definition,
        roundings=_on_the_way(parents),
    )  # fmt: skip


def matrix(bodies: int, parents: Sequence[int], *, shear: float = 0.0) -> Case:
    """Kinematics of random rotations, or of matrices near them."""
    case, rng = axis_angle(bodies, parents), np.random.default_rng(1)
    matrices = rotations.axis_angle_to_matrix(case.rows[0])
    return case._replace(
        operator=MATRIX,
        rows=(matrices + shear * normal(rng, *matrices.shape), case.rows[1]),
        definition=KinematicTree(parents),
    )


def _on_the_way(parents: Sequence[int]) -> float:
    depth = [1] * len(parents)
    for joint, parent in enumerate(parents[1:], start=1):
        depth[joint] = depth[parent] + 1
    return 8 + 2 * max(depth)


AGES = (0.0, 1.0, 0.2, 0.6, -0.5, 0.75, -3.0, 2.5, 0.1, 0.3, 0.5, 0.74, 0.76, 0.8, 0.9)
"""On the knots, at the threshold, beyond both ends, and between."""
OFF_KNOTS = (-0.7, -0.2, 0.1, 0.33, 0.55, 0.7, 0.79, 0.93, 1.2)


def rest_shape(
    num_betas: int,
    anchors: Sequence[float],
    *,
    infant_betas: int = -1,
    transition: float = 0.0,
    columns: int = 72,
    ages: Sequence[float] = AGES,
) -> Case:
    """An age offset a body; the threshold is 0.75, which is the same number in every floating type."""
    rng, threshold = np.random.default_rng(0), 0.75
    num_infant = infant_betas + 1
    directions = normal(rng, 1 + num_betas + len(anchors) + num_infant, columns)

    def definition(betas: Tensor, age: Tensor) -> tuple[Tensor, ...]:
        one = torch.ones_like(age)[:, None]
        coefficients = torch.cat((one, betas, deform.age_coefficients(age, anchors)), 1)
        if num_infant:
            if transition:
                x = ((age - threshold) / transition + 0.5).clamp(0, 1)
                share = (x * x * (3 - 2 * x))[:, None]
            else:
                share = (age > threshold).to(age.dtype)[:, None]
            infant = torch.cat((one, betas[:, :infant_betas]), 1)
            coefficients = torch.cat(((1 - share) * coefficients, share * infant), 1)
        return coefficients, coefficients @ directions

    return Case(
        REST_SHAPE,
        (normal(rng, len(ages), num_betas), torch.tensor(ages, dtype=DOUBLE)),
        (
            directions,
            *AgeAnchors.build(
                anchors, num_infant_betas=infant_betas, threshold=threshold, transition=transition
            ),
        ),
        definition,
        roundings=12 + len(directions) + math.sqrt(columns),
    )


def regression(bodies: int, vertices: int, points: int, each: int) -> Case:
    """Points of up to ``each`` vertices; the first of them of none, the last of all."""
    rng = np.random.default_rng(0)
    dense = np.zeros((points, vertices))
    for point in range(1, points):
        dense[point, rng.integers(0, vertices, each)] = rng.standard_normal(each)
    dense[-1] = rng.standard_normal(vertices)
    weights = torch.from_numpy(dense)
    return Case(
        REGRESSION, (normal(rng, bodies, vertices, 3),), PointWeights.pack(sparse.csr_array(dense)),
        lambda x: (weights @ x,), roundings=5 + math.sqrt(max(vertices, points)),
    )  # fmt: skip


SMPL = tuple(int(p) for p in SMPL_PARENTS)
FORK, STAR, CHAIN = (-1, 0, 0, 2), (-1, *[0] * 9), tuple(range(-1, 29))
SMPLX = (*SMPL[:22], 15, 15, 15, *(20 if j % 3 == 0 else 24 + j for j in range(15)),
         *(21 if j % 3 == 0 else 39 + j for j in range(15)))  # fmt: skip
ANGLES = (0.0, 1e-12, 1e-5, 0.2499, 0.25, 0.2501, 1.0, math.pi - 1e-4, math.pi, 2 * math.pi - 1e-3, 7.0)
"""Zero; around the squared angle at which series end; half a turn and a whole one."""

CASES: dict[str, Callable[[], Case]] = {
    "skinning of no body": lambda: skinning(0, 7, 3, 2),
    "skinning of one vertex by one joint": lambda: skinning(1, 1, 1, 1),
    "skinning, small": lambda: skinning(3, 5, 3, 2),
    "skinning, a vertex without joints": lambda: skinning(2, 4, 4, 3, bare=1),
    "skinning, joints without vertices": lambda: skinning(9, 133, 7, 2, used=3),
    "skinning of SMPL": lambda: skinning(5, 6890, 24, 4),
    "skinning of SMPL-X, 24 wide": lambda: skinning(2, 10475, 55, 24),
    "blend and skin of no body": lambda: blend_and_skin(0, 7, 3, 2, coefficients=4),
    "blend and skin of one vertex": lambda: blend_and_skin(1, 1, 1, 1, coefficients=1),
    "blend and skin, small": lambda: blend_and_skin(3, 5, 3, 2, coefficients=4),
    "blend and skin of SMPL": lambda: blend_and_skin(5, 6890, 24, 4, coefficients=218),
    "vectors of no body": lambda: axis_angle(0, FORK),
    "vectors of one joint": lambda: axis_angle(3, (-1,)),
    "vectors of two joints": lambda: axis_angle(2, (-1, 0)),
    "vectors, small": lambda: axis_angle(2, FORK),
    "vectors of singular angles": lambda: axis_angle(len(ANGLES), (-1, 0), angles=ANGLES),
    "vectors of zero": lambda: axis_angle(1, SMPL, angles=(0.0,)),
    "vectors of a star": lambda: axis_angle(5, STAR),
    "vectors of a chain": lambda: axis_angle(3, CHAIN),
    "vectors of SMPL": lambda: axis_angle(33, SMPL),
    "vectors of SMPL-X": lambda: axis_angle(2, SMPLX),
    "matrices of no body": lambda: matrix(0, FORK),
    "matrices of one joint": lambda: matrix(3, (-1,)),
    "matrices of two joints": lambda: matrix(2, (-1, 0)),
    "matrices, small": lambda: matrix(2, FORK, shear=0.3),
    "matrices of a chain": lambda: matrix(3, CHAIN),
    "matrices of SMPL": lambda: matrix(33, SMPL),
    "rest shape of no body": lambda: rest_shape(3, (1.0,), ages=()),
    "rest shape without ages": lambda: rest_shape(10, ()),
    "rest shape without betas": lambda: rest_shape(0, (1.0,)),
    "rest shape of SMPL-A": lambda: rest_shape(10, (1.0,)),
    "rest shape of four anchors": lambda: rest_shape(3, (0.2, 0.6, 1.0)),
    "rest shape of anchors on both sides": lambda: rest_shape(3, (-0.5, 1.0)),
    "rest shape of anchors below": lambda: rest_shape(3, (-0.5, -0.25)),
    "rest shape with a switch": lambda: rest_shape(10, (1.0,), infant_betas=10),
    "rest shape with a switch and no infant betas": lambda: rest_shape(2, (), infant_betas=0),
    "rest shape with a transition": lambda: rest_shape(10, (0.2, 1.0), infant_betas=4, transition=0.25),
    "rest shape off its knots": lambda: rest_shape(
        2, (-0.5, 0.2, 1.0), infant_betas=1, columns=3, ages=OFF_KNOTS
    ),
    "rest shape off its knots, in transition": lambda: rest_shape(
        2, (-0.5, 0.2, 1.0), infant_betas=1, transition=0.4, columns=3, ages=OFF_KNOTS
    ),
    "rest shape of a whole surface": lambda: rest_shape(10, (1.0,), columns=20670),
    "regression of no body": lambda: regression(0, 7, 3, 2),
    "regression of one vertex": lambda: regression(1, 1, 1, 1),
    "regression, small": lambda: regression(3, 7, 3, 2),
    "regression of SMPL": lambda: regression(5, 6890, 24, 30),
    "regression of SMPL-X": lambda: regression(2, 10475, 144, 9),
}
"""By name, the operator first."""

SMALL = (
    "skinning, small", "blend and skin, small", "vectors, small", "matrices, small",
    "rest shape off its knots", "regression, small",
)  # fmt: skip
"""One of each operator, for what does not depend on sizes."""
OPCHECKED = (
    "skinning of one vertex by one joint", "blend and skin of one vertex",
    "vectors of two joints", "matrices of two joints",
    "rest shape off its knots", "regression of one vertex",
)  # fmt: skip
"""The same, smaller: torch traces what they are made of."""
DERIVED = (
    *SMALL,
    "skinning of one vertex by one joint", "skinning, a vertex without joints",
    "vectors of one joint",
    "rest shape off its knots, in transition",
    "regression of one vertex",
)  # fmt: skip
"""Those whose derivatives are compared with differences; none of them has a kink where it is."""
