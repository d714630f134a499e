"""Pose and identity from body points in closed form: rotations by Procrustes, then linear least squares."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.body import BodyModel
from agebody.engine.deform import age_coefficients
from agebody.engine.exact import register_constants
from agebody.engine.kinematics import ancestors
from agebody.engine.points import LayoutTables, mean_of_joints
from agebody.keypoints import KeypointLayout
from agebody.metrics.alignment import nearest_rotation
from agebody.parameters import BodyParameters
from agebody.rotations import matrix_to_axis_angle

PARENT_PRIOR = 1e-3
"""Weight of the parent's rotation in the first round, relative to the joint's own points."""
STAY_PRIOR = 1e-5
"""The same in later rounds, when rotations are corrections only."""
ROUNDINGS = 64.0
"""Weight of the parent's rotation, at least, relative to the rounding errors of the points' covariance."""
ROUGH_SD = 0.02
"""[m] Standard deviation of points while rotations are rough, so that shape does not fit their errors."""
CARRIES = 1e-3
"""Smallest `CarriedPoints.grip` of a point that determines a joint's rotation."""


class CarriedPoints(nn.Module):
    """Points of a body as sums over its joints.

    A point is ``sum_j G_j m_j``. Its moments m_j are affine in the identity's coefficients (1, betas, age
    templates), and so are the places of the joints once their rotations are known.
    """

    above: Tensor
    is_joint: Tensor
    joints: Tensor
    pair_joints: Tensor
    moments: Tensor
    masses: Tensor
    grip: Tensor
    rest_joints: Tensor
    steps: Tensor
    path: Tensor

    def __init__(self, body: BodyModel, layout: KeypointLayout) -> None:
        super().__init__()
        self.layout, tables = layout, body.tables(layout)
        self.age_anchors, self.num_betas = body.age_anchors, body.num_coefficients
        parents, joints = body.asset.parents.astype(np.int64), tables.joints
        rest_joints = body.joint_directions.transpose(1, 2, 0)  # (J, 3, C)
        masses = np.zeros((len(layout), len(parents)))
        masses[tables.pair_points, tables.pair_joints] = tables.masses
        moments, pair_joints = _moments(tables, rest_joints.shape[-1])
        steps = rest_joints.copy()
        steps[1:] -= rest_joints[parents[1:]]
        path = ancestors(parents)
        depth = path.sum(1)
        levels = [np.flatnonzero(depth == level).tolist() for level in np.unique(depth)[1:]]
        self.levels = [(level, parents[level].tolist()) for level in levels]
        arrays = {
            "above": np.maximum(parents, 0),
            "is_joint": joints[:, 0] >= 0,
            "joints": np.maximum(joints, 0),
            "pair_joints": pair_joints,
            "moments": moments,
            "masses": masses,
            "grip": _grip(joints, masses, parents),
            "rest_joints": rest_joints,
            "steps": steps,
            "path": path,
        }
        register_constants(self, arrays, body.dtype, body.device)

    def directions(self, rotations: Float[Tensor, "B J 3 3"]) -> Float[Tensor, "B K 3 C"]:
        """Return the points per unit of each coefficient, given the joints' world rotations.

        Pose blend shapes, which do not depend on the identity, are left out.
        """
        steps = rotations[:, self.above] @ self.steps
        steps[:, 0] = self.steps[0]
        centers = (self.path @ steps.flatten(2)).unflatten(-1, (3, -1))
        shifts = centers - rotations @ self.rest_joints
        wide = rotations[:, self.pair_joints].transpose(2, 3).flatten(-2)  # (B, K, 3, 3 P)
        turned = (wide.transpose(0, 1).flatten(1, 2) @ self.moments).unflatten(1, (len(rotations), 3))
        found = turned.transpose(0, 1) + (self.masses @ shifts.flatten(2)).unflatten(-1, (3, -1))
        return torch.where(self.is_joint[:, None, None], mean_of_joints(centers, self.joints), found)


class Identity(NamedTuple):
    """Identity and position of bodies."""

    betas: Float[Tensor, "B N"]
    age_offset: Float[Tensor, " B"]
    transl: Float[Tensor, "B 3"]


class Known(NamedTuple):
    """The known part of an identity, which is not fitted."""

    betas: Float[Tensor, "B N"] | None
    age_offset: Float[Tensor, " B"]
    """NaN where it is fitted."""
    bounds: float | Float[Tensor, "B N"] = math.inf
    """Largest absolute value of each coefficient; 0 fixes it."""


def turn_towards(
    carried: CarriedPoints,
    source: Float[Tensor, "B K 3"],
    target: Float[Tensor, "B K 3"],
    weights: Float[Tensor, "B K"],
    *,
    prior: float,
) -> Float[Tensor, "B J 3 3"]:
    """Find the world rotation of each joint, by Procrustes over the points that move with it.

    Rotations that these do not determine (a twist about a bone, or all) follow the parent, with the ``prior``
    as its weight relative to the points; for the root, the trunk. Positions before (``source``) and after are
    both near the origin, for the sake of float32.
    """
    products = (target[..., None] * source[..., None, :]).flatten(-2)
    ones = torch.ones_like(weights)[..., None]
    sums = carried.grip.mT @ (weights[..., None] * torch.cat((products, target, source, ones), -1))
    total = sums[..., 15:]
    means = sums[..., :15] / torch.where(total > 0, total, 1)
    covariance = means[..., :9].unflatten(-1, (3, 3)) - means[..., 9:12, None] * means[..., None, 12:15]
    # A joint of one point has no covariance but rounding errors, of which the prior has to be the larger one.
    rounding = torch.finfo(means.dtype).eps * means[..., :9].norm(dim=-1)
    size = torch.maximum(covariance.flatten(-2).norm(dim=-1), ROUNDINGS / prior * rounding)[..., None, None]
    covariance = covariance / torch.where(size > 0, size, 1)
    turns = torch.empty_like(covariance[:, :-1])
    turns[:, 0] = nearest_rotation(covariance[:, 0] + prior * nearest_rotation(covariance[:, -1]))
    for joints, parents in carried.levels:
        turns[:, joints] = nearest_rotation(covariance[:, joints] + prior * turns[:, parents])
    return turns


def solve_identity(
    carried: CarriedPoints,
    directions: Float[Tensor, "B K 3 C"],
    missing: Float[Tensor, "B K 3"],
    weights: Float[Tensor, "B K"],
    known: Known,
    *,
    sd: float,
) -> Identity:
    """Find betas, age offset and translation that bring points nearest to their targets, given the rotations.

    The result is the most probable one under normal betas. The points are linear in betas, translation and
    the coefficients of the age templates. Without the former two, which are eliminated, there is a quadratic
    of the age on each piece between two templates, and the lowest of their minima is the global one.

    The directions are of `CarriedPoints.directions`; ``missing`` are the targets less the points of the mean
    adult in this pose, root joint at its rest place; ``sd`` is that of a coordinate [m].
    """
    columns = directions[..., 1:]
    betas, ages = columns[..., : carried.num_betas], columns[..., carried.num_betas :]
    place = torch.eye(3, dtype=columns.dtype, device=columns.device).expand(*missing.shape, 3)
    if known.betas is not None:
        missing = missing - (betas @ known.betas[:, None, :, None])[..., 0]
        betas = betas[..., :0]
    elif isinstance(known.bounds, Tensor):
        betas = betas * (known.bounds > 0)[:, None, None]
    count, free = ages.shape[-1], betas.shape[-1]
    root = weights.sqrt()[..., None, None]
    rows = (root * torch.cat((ages, betas, place, missing[..., None]), -1)).flatten(1, 2)
    gram = rows.mT @ rows
    normal = gram[:, count:-1, count:-1].clone()
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    diagonal[:, :free] += sd**2
    diagonal += torch.finfo(normal.dtype).eps * (1 + diagonal)  # nothing is known of a body without points
    across = gram[:, count:-1, :count]
    solved = torch.cholesky_solve(
        torch.cat((gram[:, count:-1, -1:], across), -1), torch.linalg.cholesky_ex(normal)[0]
    )
    age, found = known.age_offset.nan_to_num(0.0), solved[..., 0]
    if count:
        curve = gram[:, :count, :count] - across.mT @ solved[..., 1:]
        slope = gram[:, :count, -1] - (across.mT @ solved[..., :1])[..., 0]
        best = _best_age(curve, slope, carried.age_anchors)
        age = torch.where(known.age_offset.isnan(), best, age)
        growth = age_coefficients(age, carried.age_anchors)
        found = found - (solved[..., 1:] @ growth[..., None])[..., 0]
    return Identity(found[:, :free] if known.betas is None else known.betas, age, found[:, free:])


def age_bounds(anchors: tuple[float, ...]) -> tuple[float, float]:
    """Return the lowest and highest age offset of a body's templates."""
    return min(0.0, *anchors, 0.0), max(0.0, *anchors, 0.0)


def coefficients(identity: Identity, anchors: tuple[float, ...]) -> Float[Tensor, "B C"]:
    """Return the coefficients of the identity's directions, without the constant."""
    return torch.cat((identity.betas, age_coefficients(identity.age_offset, anchors)), -1)


def to_world(carried: CarriedPoints, local: Float[Tensor, "B J 3 3"]) -> Float[Tensor, "B J 3 3"]:
    """Invert `to_local`."""
    world = local.clone()
    for joints, parents in carried.levels:
        world[:, joints] = world[:, parents] @ local[:, joints]
    return world


def to_local(carried: CarriedPoints, rotations: Float[Tensor, "B J 3 3"]) -> Float[Tensor, "B J 3 3"]:
    """Return each joint's rotation relative to its parent, from world rotations."""
    local = rotations[:, carried.above].mT @ rotations
    local[:, 0] = rotations[:, 0]
    return local


def to_parameters(
    carried: CarriedPoints, rotations: Float[Tensor, "B J 3 3"], identity: Identity
) -> BodyParameters:
    """Convert world rotations and an identity to body parameters."""
    vectors = matrix_to_axis_angle(to_local(carried, rotations))
    return BodyParameters(vectors[:, 0], vectors[:, 1:], *identity)


def _best_age(
    curve: Float[Tensor, "B A A"], slope: Float[Tensor, "B A"], anchors: tuple[float, ...]
) -> Float[Tensor, " B"]:
    """Return the offset a that minimises ``x' C x / 2 - s' x`` with x the age coefficients at a."""
    knots = sorted({0.0, *anchors})
    ages, costs = [], []
    for start, end in itertools.pairwise(knots):
        base, far = age_coefficients(curve.new_tensor([start, end]), anchors)
        along = far - base
        bend = (along * (curve @ along)).sum(-1)
        gain = (along * (slope - curve @ base)).sum(-1)
        share = torch.where(bend > 0, gain / torch.where(bend > 0, bend, 1), 0).clamp(0, 1)
        x = base + share[:, None] * along
        ages.append(start + share * (end - start))
        costs.append((x * ((curve @ x[..., None])[..., 0] / 2 - slope)).sum(-1))
    best = torch.stack(costs, -1).argmin(-1, keepdim=True)
    return torch.stack(ages, -1).gather(-1, best)[:, 0]


def _moments(tables: LayoutTables, num_coefficients: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (K, 3 P, C) moments of each point by the P joints that may move it, and these (K, P) joints."""
    counts = tables.counts
    in_order = np.sort(counts)
    slot = np.arange(len(tables.masses)) - np.repeat(np.cumsum(in_order) - in_order, in_order)
    width = max(1, int(counts.max(initial=0)))
    joints = np.zeros((len(counts), width), dtype=np.int64)
    joints[tables.pair_points, slot] = tables.pair_joints
    moments = np.zeros((len(counts), width, 3, num_coefficients))
    moments[tables.pair_points, slot] = tables.moments[:num_coefficients].transpose(1, 2, 0)
    return moments.reshape(len(counts), 3 * width, -1), joints


def _grip(joints: np.ndarray, masses: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return how well each point determines each joint's rotation, and last the trunk's, (K, J + 1)."""
    # A point that two joints share determines each of them less.
    shares = np.clip(masses, 0, None)
    for point in np.flatnonzero(joints[:, 0] >= 0):
        # A joint is the end of its parent's part and the start of its own, so it counts for both.
        for joint in joints[point].tolist():
            shares[point, list({joint, max(0, int(parents[joint]))})] += 1 / joints.shape[1]
    grip = shares**2
    # The joints with several children, and all their ancestors.
    forks = np.flatnonzero(np.bincount(parents[1:], minlength=len(parents)) > 1)
    trunk = np.flatnonzero(ancestors(parents)[[0, *forks]].any(0))
    for joint in trunk[::-1]:
        if (grip[:, joint] > CARRIES).sum() < 2:  # it takes the points of its children
            grip[:, joint] = np.maximum(grip[:, joint], grip[:, parents == joint].max(1, initial=0))
    return np.concatenate((grip, grip[:, trunk].sum(1, keepdims=True) ** 2), 1)
