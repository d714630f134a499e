"""Ranges of motion of human joints, and priors made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.checks import (
    Reduction,
    Weights,
    apply_mask,
    expect,
    floating,
    read_dtype,
    read_number,
    read_rotations,
    read_texts,
    reduce,
)
from agebody.engine.exact import read_device
from agebody.losses.parameters import visible_matrices
from agebody.losses.pose_priors import BODY_JOINTS, MahalanobisPrior
from agebody.rotations import PoseFormat, axis_angle_to_matrix, check_format


class JointRange(NamedTuple):
    """Lowest and highest angle of a joint about the body's axes in its T-pose [degrees].

    +x points to the body's left, +y up, +z forward. See `swing_twist` for the angles.
    """

    twist: Literal["x", "y", "z"]
    """The axis along the bone that the joint moves."""
    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float]


def _both_sides(**left: JointRange) -> dict[str, JointRange]:
    """Return ranges of left joints, and their mirror images on the right."""
    ranges = {}
    for name, (twist, x, y, z) in left.items():
        ranges[f"left_{name}"] = JointRange(twist, x, y, z)
        ranges[f"right_{name}"] = JointRange(twist, x, (-y[1], -y[0]), (-z[1], -z[0]))
    return ranges


ADULT_RANGES: Mapping[str, JointRange] = {
    # Trunk and neck: + x bends forward, + y turns to the left, + z leans to the left.
    "spine1": JointRange("y", (-10, 30), (-10, 10), (-12, 12)),
    "spine2": JointRange("y", (-10, 25), (-15, 15), (-12, 12)),
    "spine3": JointRange("y", (-10, 25), (-20, 20), (-11, 11)),
    "neck": JointRange("y", (-35, 30), (-35, 35), (-25, 25)),
    "head": JointRange("y", (-40, 30), (-45, 45), (-20, 20)),
    **_both_sides(
        # Legs: - x flexes the hip and + x the knee; + y turns the toes out; + z spreads the legs.
        hip=JointRange("y", (-130, 30), (-45, 45), (-30, 60)),
        knee=JointRange("y", (-5, 150), (-25, 35), (-10, 10)),
        ankle=JointRange("z", (-38, 50), (-25, 20), (-35, 20)),
        foot=JointRange("z", (-70, 45), (-10, 10), (-10, 10)),
        # Arms, out to the side and palms down: - y swings forward, + z upward, + x turns thumbs down.
        # A collar is clavicle and scapula in one. From arms that hang to arms overhead these turn up by 60,
        # half of it before the T-pose; shoulders are drawn down by 10 more.
        collar=JointRange("x", (-40, 20), (-30, 30), (-40, 45)),
        shoulder=JointRange("x", (-110, 90), (-130, 60), (-95, 90)),
        # The hinge of an elbow is tilted by the carrying angle, so that flexing it by 130 twists it by 60.
        elbow=JointRange("x", (-90, 60), (-150, 5), (-90, 90)),
        wrist=JointRange("x", (-70, 20), (-20, 35), (-80, 70)),
        hand=JointRange("x", (-10, 10), (-15, 15), (-90, 45)),
    ),
}
"""Ranges of adults, by joint.

Source: handbooks of the American Academy of Orthopaedic Surgeons and the American Medical Association (Norkin
and White), and Soucie et al. 2011; for ankles Bennell et al. 1998 (lunges), for collars the scapulohumeral
rhythm (Inman, Saunders and Abbott 1944).
"""

INFANT_RANGES: Mapping[str, JointRange] = {
    **ADULT_RANGES,
    "neck": JointRange("y", (-35, 35), (-50, 50), (-35, 35)),
    "head": JointRange("y", (-40, 35), (-60, 60), (-35, 35)),
    **_both_sides(
        hip=JointRange("y", (-140, 0), (-70, 90), (-30, 85)),
        knee=JointRange("y", (0, 150), (-25, 35), (-10, 10)),
        ankle=JointRange("z", (-60, 40), (-25, 20), (-35, 20)),
        shoulder=JointRange("x", (-130, 90), (-130, 85), (-95, 90)),
        elbow=JointRange("x", (-90, 60), (-155, 5), (-90, 90)),
        wrist=JointRange("x", (-70, 20), (-20, 35), (-92, 85)),
    ),
}
"""Ranges of newborns, by joint: wider except for hips and knees, which do not fully straighten yet."""


class JointLimits(NamedTuple):
    """Limits of the angles of J joints."""

    axes: Int[Tensor, " J"]
    """The axis of each joint's twist: 0, 1 or 2."""
    low: Float[Tensor, "*batch J 3"]
    """Lowest angles about x, y and z [rad]; -inf for a joint without limits."""
    high: Float[Tensor, "*batch J 3"]
    """Highest angles about x, y and z [rad]; inf for a joint without limits."""


def joint_limits(
    joint_names: Sequence[str] = BODY_JOINTS,
    *,
    age_offset: float | Float[Tensor, "*batch"] = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> JointLimits:
    """Return limits of joints by name, from those of adults at age offset 0 to those of newborns at 1.

    Joints without a range of their own, such as fingers, have no limits.

    Args:
        joint_names: J joints, such as ``body.asset.joint_names[1:]``.
        age_offset: a number, or (*batch) for limits (*batch, J, 3); clamped to [0, 1].
        dtype: of the limits; that of the age offset if it is a tensor.
        device: of the limits; that of the age offset if it is a tensor.
    """
    joint_names = read_texts("joint_names", joint_names)
    ranges = [(ADULT_RANGES.get(name), INFANT_RANGES.get(name)) for name in joint_names]
    if not any(adult for adult, _ in ranges):
        raise ValueError(
            f"joint_names: expected some of {', '.join(ADULT_RANGES)}, got {', '.join(joint_names) or 'none'}"
        )
    if isinstance(age_offset, Tensor):
        age = expect("age_offset", floating(age_offset)).clamp(0, 1)[..., None, None, None]
    else:
        offset = read_number("age_offset", age_offset, "a number", finite=False)
        age = torch.tensor(min(max(offset, 0.0), 1.0), dtype=read_dtype(dtype), device=read_device(device))
    free = [(-math.inf, math.inf)] * 3
    bounds = [[free if limits is None else limits[1:] for limits in pair] for pair in ranges]
    adult, infant = torch.deg2rad(torch.tensor(bounds, dtype=age.dtype, device=age.device)).unbind(1)
    both = torch.where(adult.isinf(), adult, adult + age * (infant - adult))
    axes = ["xyz".index(adult.twist) if adult else 0 for adult, _ in ranges]
    return JointLimits(torch.tensor(axes, device=age.device), both[..., 0], both[..., 1])


def swing_twist(
    rotations: Float[Tensor, "*batch 3 3"], axes: Int[Tensor, "*axes"]
) -> Float[Tensor, "*batch 3"]:
    """Return the angles of rotations: a swing of the bone's direction, after a twist about the bone.

    A rotation is factored as R = swing twist. The twist turns about the bone's axis, one of x, y and z; its
    angle is that axis's component. The swing is the shortest rotation to the bone's new direction; its
    axis-angle vector has the two other components. To first order the three angles are the axis-angle vector;
    where only one of them is not zero they equal it exactly. Unlike Euler angles they treat both directions
    of the swing alike, and their only singularity is a bone turned by 180 degrees (Baerlocher and Boulic
    2000, "Parametrization and range of motion of the ball-and-socket joint").

    Args:
        rotations: (*batch, 3, 3).
        axes: broadcast to (*batch): 0, 1 or 2 for a bone along x, y or z.

    Returns:
        (*batch, 3) angles about x, y and z [rad], from -pi to pi.
    """
    return angles_and_cosine(expect("rotations", rotations, 3, 3), axes)[0]


def clamp_to_limits(
    rotations: Float[Tensor, "*batch J 3 3"], limits: JointLimits
) -> Float[Tensor, "*batch J 3 3"]:
    """Return rotations with the angles of `swing_twist` clamped to their limits."""
    angles = swing_twist(rotations, limits.axes).clamp(limits.low, limits.high)
    is_twist = torch.arange(3, device=rotations.device) == limits.axes[:, None]
    swing, twist = torch.where(is_twist, 0, angles), torch.where(is_twist, angles, 0)
    return axis_angle_to_matrix(swing) @ axis_angle_to_matrix(twist)


def joint_limits_excess(
    body_pose: Float[Tensor, "*pose"],
    limits: JointLimits | None = None,
    *,
    pose_format: PoseFormat = "axis_angle",
    weights: Weights = None,
) -> Float[Tensor, "*batch J 3"]:
    """Return how far the angles of `swing_twist` are above (+) or below (-) their limits, else 0 [rad].

    These are the residuals of `joint_limits_loss`. Where the bone swings by more than 150 degrees, the excess
    of the twist fades out, because there is no twist at 180.

    Args:
        body_pose: (*batch, J, *entry), or flat (*batch, J * entry).
        limits: of the J joints, from `joint_limits`; those of SMPL's 23 for adults if None.
        pose_format: "axis_angle", "matrix", "quaternion" or "rotation_6d".
        weights: broadcast to (*batch, J); the excess of rotations of weight 0 is 0.
    """
    check_format(pose_format)
    body_pose = expect("body_pose", body_pose)
    if limits is None:
        limits = joint_limits(dtype=body_pose.dtype, device=body_pose.device)
    if limits.low.dtype != body_pose.dtype:
        raise TypeError(f"limits: expected {body_pose.dtype}, as the pose, got {limits.low.dtype}")
    pose = read_rotations("body_pose", body_pose, pose_format, len(limits.axes), body_pose)
    matrices = visible_matrices("body_pose", pose, pose_format, weights)
    angles, cosine = angles_and_cosine(matrices, limits.axes)
    there = share_of_twist(cosine)
    fade = there * there * (3 - 2 * there)
    is_twist = torch.arange(3, device=pose.device) == limits.axes[:, None]
    excess = beyond(angles, limits)
    return apply_mask(torch.where(is_twist, fade[..., None] * excess, excess), weights, 1)


def joint_limits_loss(
    body_pose: Float[Tensor, "*pose"],
    limits: JointLimits | None = None,
    *,
    pose_format: PoseFormat = "axis_angle",
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*left"]:
    """Return squared angles by which joints exceed their ranges of motion [rad^2], one entry per joint.

    It is 0 within the limits, and grows smoothly beyond them, without a jump in its gradient. Arguments as of
    `joint_limits_excess`; "none" gives (*batch, J).
    """
    excess = joint_limits_excess(body_pose, limits, pose_format=pose_format, weights=weights)
    return reduce(excess.square().sum(-1), weights, reduction)


def joint_limits_prior(
    joint_names: Sequence[str] = BODY_JOINTS,
    *,
    mean: Float[Tensor, "J 3"] | None = None,
    age_offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> MahalanobisPrior:
    """Return a prior made from the ranges: poses spread evenly over them, as a normal distribution.

    Each angle has the mean and the variance of the uniform distribution over its range: the middle, and a
    twelfth of the squared width. Angles are independent, and are read from the axis-angle vector, which
    equals `swing_twist` to first order. The energy of evenly spread poses is 3 J on average.

    Args:
        joint_names: the joints of the poses; those without a range are left free.
        mean: another mean (J, 3) [rad], such as a standing pose; the variance is then about this mean.
        age_offset: 0 for adults to 1 for newborns.
        dtype: as of `MahalanobisPrior`.
        device: as of `MahalanobisPrior`.
    """
    names = tuple(joint_names)
    limits = joint_limits(names, age_offset=age_offset, dtype=torch.float64, device="cpu")
    known = [j for j, name in enumerate(names) if name in ADULT_RANGES]
    low, high = (bound[known].flatten() for bound in limits[1:])
    middle, width = (low + high) / 2, high - low
    centre = middle
    if mean is not None:
        centre = expect("mean", mean, len(names), 3)[known].flatten().to(middle)
    variance = width.square() / 12 + (middle - centre).square()
    kept = [names[j] for j in known]
    prior = MahalanobisPrior(centre, torch.diag(variance.rsqrt()), kept, dtype=dtype, device=device)
    return prior if len(kept) == len(names) else prior.for_joints(names)


FADE = math.radians(150)
"""Swing beyond which the twist counts less and less."""
_SERIES = tuple(float(x) for x in np.cumprod([1.0, *(2 * n / (2 * n + 1) for n in range(1, 13))]))
"""Coefficients of t / sin t in powers of sin^2(t / 2)."""
_SMALL = 0.0625
"""sin^2(t / 2) below which the series is used; the first dropped term is 1e-16 of the sum."""
_ANTIPODE = 1e-3
"""sin t below which the direction of a swing by nearly 180 degrees is taken as constant, without a gradient.
"""


def beyond(angles: Float[Tensor, "*batch J 3"], limits: JointLimits) -> Float[Tensor, "*batch J 3"]:
    """Return how far angles are above (+) or below (-) their limits [rad]."""
    return (angles - limits.high).clamp(min=0) - (limits.low - angles).clamp(min=0)


def share_of_twist(cosine: Tensor) -> Tensor:
    """Return 1 up to a swing of 150 degrees, given by its cosine, then linear in it to 0 at 180."""
    return ((1 + cosine) / (1 + math.cos(FADE))).clamp(0, 1)


def angles_and_cosine(rotations: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angles of `swing_twist`, and the cosine of the swing's."""
    # With the bone's axis first and the others after it in cyclic order, every bone is along "x".
    xyz = torch.arange(3, device=rotations.device)
    shape = rotations.shape[:-1]
    order, back = ((axes[..., None] + xyz) % 3).expand(shape), ((xyz - axes[..., None]) % 3).expand(shape)
    matrix = rotations.take_along_dim(order[..., None], -2).take_along_dim(order[..., None, :], -1)
    cosine = matrix[..., 0, 0]
    swing = _swing(-matrix[..., 2, 0], matrix[..., 1, 0], cosine)
    # Both are 2 cos^2(swing / 2) times the sine and the cosine of the twist.
    sine, along = matrix[..., 2, 1] - matrix[..., 1, 2], matrix[..., 1, 1] + matrix[..., 2, 2]
    undefined = (sine == 0) & (along == 0)
    twist = torch.atan2(sine, torch.where(undefined, 1, along))
    angles = torch.stack((twist, *swing), -1)
    return angles.take_along_dim(back, -1), cosine


def _swing(u: Tensor, v: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Return the swing's axis-angle vector from its axis times its sine, and its cosine."""
    half = (1 - cosine) / 2  # sin^2(t / 2)
    small = half < _SMALL
    series, power = torch.full_like(half, _SERIES[-1]), torch.where(small, half, 0)
    for coefficient in reversed(_SERIES[:-1]):
        series = series * power + coefficient
    squared = u * u + v * v
    straight = squared == 0  # no rotation, or one by 180 degrees, whose axis is arbitrary: u's
    sine = torch.sqrt(torch.where(small | straight, 1, squared))
    angle = torch.atan2(torch.where(straight, 0, sine), torch.where(small, 1, cosine))
    parts = []
    for part, fallback in ((u, 1), (v, 0)):
        direction = torch.where(straight, fallback, part / sine)
        direction = torch.where(~small & (sine < _ANTIPODE), direction.detach(), direction)
        parts.append(torch.where(small, series * part, angle * direction))
    return parts[0], parts[1]
