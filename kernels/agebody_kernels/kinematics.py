"""Forward kinematics from axis-angle vectors or matrices.

Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 1, 3 and 4.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import warp as wp
from torch import Tensor

from agebody_kernels._interop import KernelSet, Types, launch, moved, pack_entries
from agebody_kernels._operator import Operator

SMALL = 0.0625
"""Squared angle [rad^2] below which power series are used: the first term left out is 4e-17 of the sum."""
# Series in s = t^2 of sin(t) / t and of (1 - cos(t)) / t^2, and of their derivatives in s.
_SINE = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(7))
_VERSINE = tuple((-1) ** n / math.factorial(2 * n + 2) for n in range(7))
_SINE_SLOPE = tuple(n * c for n, c in enumerate(_SINE))[1:]
_VERSINE_SLOPE = tuple(n * c for n, c in enumerate(_VERSINE))[1:]


class JointTree(NamedTuple):
    """A joint tree as parents, as paths from the root, and as children.

    N is the total length of the paths.
    """

    parents: list[int]
    """Parent of each of the J joints; -1 for the root, which is first. Parents come before children."""
    above: Tensor
    """(J) int32, the parents as a tensor."""
    paths: Tensor
    """(N) int32, the joints from the root to each joint, one path after the other."""
    path_starts: Tensor
    """(J + 1) int32, where the path of each joint starts."""
    children: Tensor
    """(J - 1) int32, children of each joint, grouped by joint."""
    child_starts: Tensor
    """(J + 1) int32, where the children of each joint start."""

    @classmethod
    def build(cls, parents: Sequence[int]) -> "JointTree":
        """Build the tree from the parent of each joint.

        Raises:
            ValueError: the root is not first, or a parent does not come before its child.
        """
        if not parents or parents[0] != -1 or any(not 0 <= p < j for j, p in enumerate(parents) if j):
            raise ValueError(f"parents: expected -1, then for each joint one before it, got {list(parents)}")
        paths: list[list[int]] = []
        for joint, parent in enumerate(parents):
            paths.append([*(paths[parent] if joint else []), joint])
        children = [[j for j, p in enumerate(parents) if p == joint] for joint in range(len(parents))]
        tensors = [torch.tensor(parents, dtype=torch.int32)]
        for lists in (paths, children):
            tensors.append(torch.tensor([j for entry in lists for j in entry], dtype=torch.int32))
            starts = [0]
            for entry in lists:
                starts.append(starts[-1] + len(entry))
            tensors.append(torch.tensor(starts, dtype=torch.int32))
        return cls(list(parents), *tensors)

    to = moved


def forward_kinematics(
    rotations: Tensor, rest_joints: Tensor, tree: JointTree
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the world and skinning transforms; differentiable to any order, also at zero rotation.

    ``G_0 = [R_0 | J_0]``, ``G_j = G_parent(j) [R_j | J_j - J_parent(j)]``, and A_j moves the rest joint J_j
    to the origin and then applies G_j.

    Args:
        rotations: (B, J, 3) axis-angle vectors [rad], or (B, J, 3, 3) matrices.
        rest_joints: (B, J, 3) [m].
        tree: the joint tree, on the same device.

    Returns:
        Matrices (B, J, 3, 3): the given ones, or those of the vectors by Rodrigues' formula; world transforms
        G (B, J, 3, 4); skinning transforms A (B, J, 3, 4).

    Source: SMPL (Loper et al., SIGGRAPH Asia 2015), eq. 1, 3 and 4.
    """
    if rotations.dim() == 3:
        return AXIS_ANGLE(rotations, rest_joints, *tree)
    return rotations, *MATRIX(rotations, rest_joints, *tree)


def _rodrigues(v: Tensor) -> Tensor:
    s = (v * v).sum(-1)[..., None]
    small = s < SMALL
    t = torch.sqrt(torch.where(small, 1.0, s))
    a = torch.where(small, _polynomial(s, _SINE), torch.sin(t) / t)
    b = torch.where(small, _polynomial(s, _VERSINE), 2 * (torch.sin(t / 2) / t) ** 2)
    x, y, z = (a * v).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=v.dtype, device=v.device)
    return (1 - b * s)[..., None] * identity + cross + (b * v)[..., None] * v[..., None, :]


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _reference(
    rotations: Tensor, rest_joints: Tensor, parents: Sequence[int], *_: Tensor
) -> tuple[Tensor, Tensor]:
    world: list[Tensor] = []
    for joint, parent in enumerate(parents):
        turn, move = rotations[:, joint], rest_joints[:, joint]
        if joint:
            offset = (move - rest_joints[:, parent])[..., None]
            above = world[parent]
            move = (above[..., :3] @ offset)[..., 0] + above[..., 3]
            turn = above[..., :3] @ turn
        world.append(torch.cat((turn, move[..., None]), -1))
    stacked = torch.stack(world, 1)
    origin = stacked[..., 3] - (stacked[..., :3] @ rest_joints[..., None])[..., 0]
    return stacked, torch.cat((stacked[..., :3], origin[..., None]), -1)


def _reference_of_vectors(vectors: Tensor, rest_joints: Tensor, *tree: Any) -> tuple[Tensor, Tensor, Tensor]:
    matrices = _rodrigues(vectors)
    return matrices, *_reference(matrices, rest_joints, *tree)


def _constants(values: Sequence[float], scalar: Any) -> Any:
    return wp.types.vector(len(values), scalar)(*values)


@KernelSet
def _KERNELS(t: Types) -> SimpleNamespace:
    scalar, vec3, mat33, mat34 = t.scalar, t.vec3, t.mat33, t.mat34
    vec2, vec4 = wp.types.vector(2, scalar), wp.types.vector(4, scalar)
    small = scalar(SMALL)
    one, two, half = scalar(1.0), scalar(2.0), scalar(0.5)
    sine, versine = _constants(_SINE, scalar), _constants(_VERSINE, scalar)
    sine_slope, versine_slope = _constants(_SINE_SLOPE, scalar), _constants(_VERSINE_SLOPE, scalar)

    @t.func
    def factors(s: scalar):
        # a = sin(t) / t and b = (1 - cos(t)) / t^2 = 2 sin(t / 2)^2 / t^2 for t^2 = s
        a, b = sine[6], versine[6]
        if s < small:
            for i in range(6):
                a = a * s + sine[5 - i]
                b = b * s + versine[5 - i]
        else:
            angle = wp.sqrt(s)
            chord = wp.sin(half * angle) / angle
            a = wp.sin(angle) / angle
            b = two * chord * chord
        return vec2(a, b)

    @t.func
    def slopes(s: scalar, a: scalar, b: scalar):
        # da/ds = (cos(t) - a) / 2s and db/ds = (a / 2 - b) / s, which lose digits for small s
        da, db = sine_slope[5], versine_slope[5]
        if s < small:
            for i in range(5):
                da = da * s + sine_slope[4 - i]
                db = db * s + versine_slope[4 - i]
        else:
            da = (one - b * s - a) / (two * s)
            db = (half * a - b) / s
        return vec2(da, db)

    @t.func
    def rodrigues(v: vec3):
        # R = cos(t) I + a [v]x + b v v^T with cos(t) = 1 - b s
        s = wp.dot(v, v)
        f = factors(s)
        return f[1] * wp.outer(v, v) + (one - f[1] * s) * wp.identity(n=3, dtype=scalar) + wp.skew(f[0] * v)

    @t.func
    def rodrigues_gradient(v: vec3, g: mat33):
        s = wp.dot(v, v)
        f = factors(s)
        d = slopes(s, f[0], f[1])
        turn = vec3(g[2, 1] - g[1, 2], g[0, 2] - g[2, 0], g[1, 0] - g[0, 1])
        spread = g * v
        trace = g[0, 0] + g[1, 1] + g[2, 2]
        # The derivative along v: d(cos t)/ds = -a / 2, and ds/dv = 2 v.
        along = wp.dot(turn, v) * d[0] + wp.dot(spread, v) * d[1] - half * f[0] * trace
        return f[0] * turn + f[1] * (spread + wp.transpose(g) * v) + two * along * v

    @t.func
    def attach(r: mat33, x: vec3):
        m = mat34()
        for i in range(3):
            m[i] = vec4(r[i, 0], r[i, 1], r[i, 2], x[i])
        return m

    @t.func
    def turn_of(m: mat34):
        return mat33(m[0, 0], m[0, 1], m[0, 2], m[1, 0], m[1, 1], m[1, 2], m[2, 0], m[2, 1], m[2, 2])

    @t.func
    def move_of(m: mat34):
        return vec3(m[0, 3], m[1, 3], m[2, 3])

    def pose_kernel(name: str, rotation: Any, as_matrix: wp.Function) -> wp.Kernel:
        # A thread walks the whole path from the root to its joint: some five products more per thread than
        # level by level, but no thread waits for another one.
        def pose(
            rotations: wp.array2d[rotation],
            rest: wp.array2d[vec3],
            paths: wp.array[int],
            path_starts: wp.array[int],
            matrices_out: wp.array2d[mat33],
            world_out: wp.array2d[mat34],
            skinning_out: wp.array2d[mat34],
        ):
            b, j = wp.tid()
            first, last = path_starts[j], path_starts[j + 1]
            root = paths[first]
            here = rest[b, root]
            local = as_matrix(rotations[b, root])
            turn = local
            move = here
            for i in range(first + 1, last):
                joint = paths[i]
                move += turn * (rest[b, joint] - here)
                here = rest[b, joint]
                local = as_matrix(rotations[b, joint])
                turn = turn * local
            matrices_out[b, j] = local
            world_out[b, j] = attach(turn, move)
            skinning_out[b, j] = attach(turn, move - turn * here)

        pose.__qualname__ = name  # Warp's name of the kernel, of which a module can hold only one
        return t.kernel(pose)

    @t.func
    def itself(m: mat33):
        return m

    # The gradient of each joint's world transform, from the leaves to the root. For a child c of joint j,
    # G_c = G_j L_c with L_c = [R_c | J_c - J_j], so that dG_j += dG_c L_c^T. Children come after parents.
    @t.kernel
    def gather(
        d_world: wp.array2d[mat34],
        d_skinning: wp.array2d[mat34],
        matrices: wp.array2d[mat33],
        rest: wp.array2d[vec3],
        children: wp.array[int],
        child_starts: wp.array[int],
        total_out: wp.array2d[mat34],
    ):
        b = wp.tid()
        num_joints = rest.shape[1]
        for i in range(num_joints):
            j = num_joints - 1 - i
            here = rest[b, j]
            s = d_skinning[b, j]
            move = move_of(d_world[b, j]) + move_of(s)
            turn = turn_of(d_world[b, j]) + turn_of(s) - wp.outer(move_of(s), here)
            for c in range(child_starts[j], child_starts[j + 1]):
                child = children[c]
                g = total_out[b, child]
                turn += turn_of(g) * wp.transpose(matrices[b, child]) + wp.outer(
                    move_of(g), rest[b, child] - here
                )
                move += move_of(g)
            total_out[b, j] = attach(turn, move)

    @t.func
    def to_parent(g: vec3, world: wp.array2d[mat34], parents: wp.array[int], b: int, j: int):
        moved = g
        if parents[j] >= 0:
            moved = wp.transpose(turn_of(world[b, parents[j]])) * g
        return moved

    @t.kernel
    def pull(
        total: wp.array2d[mat34],
        d_skinning: wp.array2d[mat34],
        world: wp.array2d[mat34],
        parents: wp.array[int],
        children: wp.array[int],
        child_starts: wp.array[int],
        d_matrices_out: wp.array2d[mat33],
        d_rest_out: wp.array2d[vec3],
    ):
        b, j = wp.tid()
        turn = turn_of(total[b, j])
        if parents[j] >= 0:
            turn = wp.transpose(turn_of(world[b, parents[j]])) * turn
        d_matrices_out[b, j] = turn
        move = to_parent(move_of(total[b, j]), world, parents, b, j)
        for c in range(child_starts[j], child_starts[j + 1]):
            move -= to_parent(move_of(total[b, children[c]]), world, parents, b, children[c])
        d_rest_out[b, j] = move - wp.transpose(turn_of(world[b, j])) * move_of(d_skinning[b, j])

    @t.kernel
    def pull_vectors(
        d_local: wp.array2d[mat33],
        d_matrices: wp.array2d[mat33],
        vectors: wp.array2d[vec3],
        d_vectors_out: wp.array2d[vec3],
    ):
        b, j = wp.tid()
        d_vectors_out[b, j] = rodrigues_gradient(vectors[b, j], d_local[b, j] + d_matrices[b, j])

    pose_vectors = pose_kernel("pose_vectors", vec3, rodrigues)
    pose_matrices = pose_kernel("pose_matrices", mat33, itself)
    kernels = {"gather": gather, "pull": pull, "pull_vectors": pull_vectors}
    return SimpleNamespace(pose_vectors=pose_vectors, pose_matrices=pose_matrices, **kernels)


def _pose(kernel: wp.Kernel, rotations: Tensor, rest: Tensor, paths: Tensor, starts: Tensor) -> list[Tensor]:
    batch, num_joints = rest.shape[:2]
    outputs = [rest.new_empty(batch, num_joints, 3, n) for n in (3, 4, 4)]
    launch(kernel, (batch, num_joints), rotations, rest, paths, starts, *outputs)
    return outputs


def _pull(matrices, world, rest, d_world, d_skinning, above, children, child_starts):
    """Return the gradients of local matrices (B, J, 3, 3) and rest joints (B, J, 3)."""
    kernels, tree = _KERNELS[rest.dtype], (children, child_starts)
    total, found = torch.empty_like(world), (world.new_empty(matrices.shape), world.new_empty(rest.shape))
    launch(kernels.gather, len(rest), d_world, d_skinning, matrices, rest, *tree, total)
    launch(kernels.pull, tuple(rest.shape[:2]), total, d_skinning, world, above, *tree, *found)
    return found


def _value_of_vectors(vectors, rest, parents, above, paths, starts, *_):
    kernel = _KERNELS[rest.dtype].pose_vectors
    return tuple(_pose(kernel, pack_entries(vectors, 1), pack_entries(rest, 1), paths, starts))


def _gradient_of_vectors(wants, grads, vectors, rest, parents, above, paths, starts, children, child_starts):
    kernels = _KERNELS[rest.dtype]
    vectors, rest = pack_entries(vectors, 1), pack_entries(rest, 1)
    d_matrices, d_world, d_skinning = (pack_entries(g, 2) for g in grads)
    matrices, world, _ = _pose(kernels.pose_vectors, vectors, rest, paths, starts)
    d_local, d_rest = _pull(matrices, world, rest, d_world, d_skinning, above, children, child_starts)
    d_vectors = world.new_empty(vectors.shape)
    launch(kernels.pull_vectors, tuple(rest.shape[:2]), d_local, d_matrices, vectors, d_vectors)
    return d_vectors, d_rest


def _value_of_matrices(matrices, rest, parents, above, paths, starts, *_):
    kernel = _KERNELS[rest.dtype].pose_matrices
    return tuple(_pose(kernel, pack_entries(matrices, 2), pack_entries(rest, 1), paths, starts)[1:])


def _gradient_of_matrices(
    wants, grads, matrices, rest, parents, above, paths, starts, children, child_starts
):
    matrices, rest = pack_entries(matrices, 2), pack_entries(rest, 1)
    d_world, d_skinning = (pack_entries(g, 2) for g in grads)
    world = _pose(_KERNELS[rest.dtype].pose_matrices, matrices, rest, paths, starts)[1]
    return _pull(matrices, world, rest, d_world, d_skinning, above, children, child_starts)


def _shapes(rest: Tensor, *columns: int) -> tuple[tuple[int, ...], ...]:
    return tuple((rest.shape[0], rest.shape[1], 3, n) for n in columns)


_TREE = ("int[] parents", *(f"Tensor {name}" for name in JointTree._fields[1:]))

AXIS_ANGLE = Operator(
    "forward_kinematics_of_vectors",
    rows=("vectors", "rest_joints"),
    constants=_TREE,
    num_outputs=3,
    reference=_reference_of_vectors,
    value=_value_of_vectors,
    gradient=_gradient_of_vectors,
    shapes=lambda vectors, rest, *_: _shapes(rest, 3, 4, 4),
    row_shapes=lambda parents, *_: ((len(parents), 3), (len(parents), 3)),
)

MATRIX = Operator(
    "forward_kinematics_of_matrices",
    rows=("matrices", "rest_joints"),
    constants=_TREE,
    num_outputs=2,
    reference=_reference,
    value=_value_of_matrices,
    gradient=_gradient_of_matrices,
    shapes=lambda matrices, rest, *_: _shapes(rest, 4, 4),
    row_shapes=lambda parents, *_: ((len(parents), 3, 3), (len(parents), 3)),
)
