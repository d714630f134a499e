"""Random people of every age, for tests, benchmarks and demonstrations with exact ground truth.

Poses are everyday poses, blended limb by limb and perturbed. No prior of `agebody.losses` was made from this
distribution.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from agebody.age import AGE_CLASSES, AgeCurve
from agebody.age.growth import ADULT_YEARS
from agebody.age.values import MAX_YEARS
from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.cameras.camera import Camera, as_size
from agebody.checks import (
    expect_tensor,
    read_count,
    read_nonnegative,
    read_number,
    read_range,
    read_share,
)
from agebody.engine.batched import building
from agebody.keypoints import joint_layout, mirror_order
from agebody.losses.extremities import extremity_priors
from agebody.losses.limits import clamp_to_limits, joint_limits
from agebody.measure.measurements import stature
from agebody.parameters import BodyParameters
from agebody.people.poses import MORE_POSES, POSES
from agebody.rotations import axis_angle_to_matrix, matrix_to_axis_angle, mirror

Ages = Literal["balanced"] | tuple[float, float] | Float[Tensor, " N"]
"""Ages [years]: equally many people of each of the ``AGE_CLASSES`` ("balanced"), a uniform range, or one age
per person. Within a class, "balanced" is uniform in years, too."""

OLDEST = 80.0
"""Largest age drawn by "balanced" [years]; a body no longer changes from 19 years on."""
FOV = (math.radians(35), math.radians(65))
"""Smallest and largest vertical field of view [rad]."""


class People(NamedTuple):
    """N people, each with a camera of their own at the origin of the world."""

    years: Float[Tensor, " N"]
    parameters: BodyParameters
    """Of their bodies; the age offset is 0 if the body has one age."""
    camera: Camera
    size: Float[Tensor, "N 2"]
    """Width and height of each image [pixels]."""

    def select(self, rows: slice | Sequence[int] | Tensor) -> People:
        """Return some of the people."""
        return self.map(lambda part: part[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> People:
        """Apply a function to each tensor, including those of parameters and camera."""
        parameters, camera = self.parameters.map(function), self.camera.map(function)
        return People(function(self.years), parameters, camera, function(self.size))


@building()
def random_people(
    body: BodyModel,
    count: int,
    *,
    ages: Ages = "balanced",
    seed: int = 0,
    size: tuple[int, int] = (1280, 960),
    extent: tuple[float, float] = (0.3, 0.9),
    heading: float = math.pi,
    truncated: float = 0.0,
    pose_sd: float = 1.0,
    posture_years: Tensor | None = None,
    fov: tuple[float, float] = FOV,
    together: Sequence[int] | None = None,
) -> People:
    """Draw random people of every age; the same seed gives the same people on every device.

    - *Age offset*: from the age in years, on this body (`AgeCurve`).
    - *Shape*: normal betas, clipped at 2.5 SD. The SD is proportional to the median stature at the age,
      because betas are centimetres and newborns vary by fewer of them.
    - *Pose*: upright, sitting, crawling or lying, with the frequencies of the age (``POSTURES``; newborns lie
      and kick, and children crawl from half a year on). Two everyday poses are blended with one share for
      legs and trunk and one for each arm, half of the people are mirrored, each joint is rotated at random
      (``POSE_SD``), and angles beyond the range of motion of the age are clamped to it. Fingers, jaw and
      eyes follow the priors of fits; an expression is normal.
    - *Orientation*: uniform heading; the body leans by 4 degrees and the camera by 3 (SD). The camera looks
      down by 5 degrees on people who stand, 12 on those who sit, 30 on those who crawl and 55 on those who
      lie (SD 8, 8, 10 and 15; clipped to -10 and 88), and by up to 12 more on children under 6 years. People
      who lie may be upside down in the image.
    - *Camera*: square pixels, principal point in the middle of the image, vertical field of view uniform in
      ``FOV``. The logarithm of the stature's share of the image height is uniform and determines the
      distance; people who would not fit into the image are farther away. Their place in it is uniform.

    Args:
        body: a layer with SMPL's joints.
        count: N.
        ages: see `Ages`. A body of one age accepts only adults.
        seed: of the random numbers.
        size: width and height of the images [pixels].
        extent: smallest and largest stature as a share of the image height, for an upright person.
        heading: largest turn away from the camera, to either side [rad].
        truncated: share of people with up to two fifths of their extent beyond one border of the image.
        pose_sd: factor of the random rotations of joints.
        posture_years: (N) ages whose postures and camera views the people take; their own if None. With ages
            independent of these, posture carries no information about age.
        fov: smallest and largest vertical field of view [rad].
        together: number of people per image, one after the other, whose sum is N; one each if None. People of
            one image share its field of view, and the camera looks down as it would on the first of them.
    """
    expect_body(body)
    read_count("count", count, least=1)
    extent = read_range("extent", extent, "numbers above 0", math.ulp(0))
    as_size(size, torch.empty(0))
    heading = read_number("heading", heading, "an angle from 0 to 2 pi [rad], not degrees", 0, 2 * math.pi)
    pose_sd = read_nonnegative("pose_sd", pose_sd)
    read_share("truncated", truncated)
    fov = read_range("fov", fov, "angles above 0 and below pi", math.ulp(0), math.pi)
    first = _first_of_image(together, count)
    draw = Draws(seed)
    curve = AgeCurve.from_asset(body.asset) if body.age_anchors else None
    years = _ages(ages, count, curve, draw)
    offset = curve.years_to_offset(years) if curve else torch.zeros_like(years)
    offset = offset.clamp(max=max(0.0, *body.age_anchors, 0.0))  # newborns are no younger than the template
    growth = curve.years_to_stature(years) if curve else torch.ones_like(years)
    grown = curve.years_to_stature(ADULT_YEARS) if curve else 1.0
    betas = draw.normal(count, body.num_betas).clamp(-2.5, 2.5) * (growth / grown)[:, None]
    if body.num_expression:
        betas = torch.cat((betas, draw.normal(count, body.num_expression).clamp(-2.5, 2.5)), -1)

    posture_years = years if posture_years is None else _given_years("posture_years", posture_years, count)
    postures = _choose_postures(posture_years, draw)
    rotations = _poses(postures, body.asset.joint_names, offset, pose_sd, draw)
    rotations[:, 0] = _facing(postures, posture_years, heading, first, draw) @ rotations[:, 0]
    pose = matrix_to_axis_angle(rotations)
    for joints, mean, factor in extremity_priors(body.asset):
        own = [body.asset.joint_names.index(name) for name in joints]
        far = draw.normal(count, len(mean)).clamp(-2.5, 2.5) @ torch.from_numpy(np.linalg.inv(factor))
        pose[:, own] = (torch.from_numpy(mean) + pose_sd * far).unflatten(-1, (-1, 3))

    image = torch.tensor([float(side) for side in size]).double()
    height = image[1]
    focal = (height / 2 / torch.tan(draw.uniform(count, *fov) / 2))[first]
    share = torch.exp(draw.uniform(count, math.log(extent[0]), math.log(extent[1])))
    place, beyond = draw.uniform(count, 0, 1, 2), draw.uniform(count, 0, 1, 3)
    found = People(
        years=years,
        parameters=BodyParameters(pose[:, 0], pose[:, 1:], betas, offset, torch.zeros(count, 3)),
        camera=Camera(focal[:, None].expand(-1, 2), (image / 2).expand(count, 2)),
        size=image.expand(count, 2),
    ).map(lambda part: part.to(body.device, body.dtype))
    with torch.no_grad():
        tall = stature(body.shape(found.parameters).rest_vertices).double().cpu()
        points = body.keypoints(joint_layout(*body.asset.joint_names), found.parameters).double().cpu()
    middle = torch.stack((points.amin(-2), points.amax(-2))).mean(0)
    points = points - middle[:, None]
    distance = focal * tall / (share * height)
    # No point comes closer than a fifth of the distance, even if an arm reaches for the camera.
    distance = torch.maximum(distance, -1.25 * points[..., 2].amin(-1))
    for _ in range(3):  # farther away if the points would not fit; each iteration comes closer to fitting
        distance = distance * (_half_extent(points, focal, distance) / (0.49 * image)).amax(-1).clamp(min=1)
    target = _place_in_image(image, _half_extent(points, focal, distance), place, beyond, truncated)
    at = (target - image / 2) / focal[:, None] * distance[:, None]
    transl = torch.cat((at, distance[:, None]), -1) - middle
    return found._replace(parameters=found.parameters._replace(transl=transl.to(found.years)))


class Posture(NamedTuple):
    """Everyday poses of one kind, their frequency by age, and the camera's angles."""

    name: str
    root: str
    """The pose whose root rotation turns the body."""
    limbs: tuple[str, ...]
    """Poses that are blended."""
    years: tuple[float, ...]
    shares: tuple[float, ...]
    """Relative frequencies at those ages, linear in between."""
    elevation: tuple[float, float]
    """Mean and SD of the angle by which the camera looks down [degrees]."""
    roll: float
    """SD of the rotation of the camera about its axis [degrees]."""


_UPRIGHT = (
    "standing",
    "at ease",
    "hand on hip",
    "walking",
    "waving",
    "cheering",
    "running",
    "reaching",
    "hands together",
)
_SEATED = ("sitting", "on a chair")
POSTURES = (
    Posture("upright", "standing", _UPRIGHT, (0.8, 1, 2, 4), (0, 0.3, 0.6, 0.7), (5, 8), 3),
    Posture("sitting", "sitting", _SEATED, (0.4, 0.6, 1, 4), (0, 0.3, 0.3, 0.2), (12, 8), 3),
    Posture("squatting", "squatting", ("squatting",), (1, 2, 12, 30), (0, 0.1, 0.05, 0.02), (12, 8), 3),
    Posture("crawling", "crawling", ("crawling",), (0.5, 0.8, 1.5, 3), (0, 0.3, 0.15, 0.02), (30, 10), 4),
    Posture("prone", "prone", ("prone",), (0, 0.3, 1, 4), (0.15, 0.25, 0.1, 0.02), (55, 15), 60),
    Posture("lying", "lying", ("lying", "kicking"), (0.4, 0.8, 1.5, 3), (0.85, 0.4, 0.1, 0), (55, 15), 60),
    Posture("stretched out", "lying", ("standing", "at ease"), (1, 4), (0, 0.05), (55, 15), 60),
)

_LIMB_SD = {"collar": 4, "shoulder": 18, "elbow": 16, "wrist": 12, "hand": 5, "hip": 10, "knee": 12}
POSE_SD: dict[str, float] = {**_LIMB_SD, "ankle": 7, "foot": 4, "pelvis": 4, "spine": 4, "neck": 6, "head": 9}
"""Standard deviation of the components of each joint's random rotation [degrees], by a part of its name."""

_LIMBS = (
    ("pelvis", "spine", "neck", "head", "hip", "knee", "ankle", "foot"),
    ("left_collar", "left_shoulder", "left_elbow", "left_wrist", "left_hand"),
    ("right_collar", "right_shoulder", "right_elbow", "right_wrist", "right_hand"),
)
"""Joints that are blended with the same share, by parts of their names."""


class Draws:
    """Random numbers in float64 on the CPU, independent of the device of the body."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(read_count("seed", seed, 2**63 - 1))

    def uniform(self, count: int, low: float, high: float, *more: int) -> Tensor:
        """Draw (count, *more) uniform numbers."""
        return low + (high - low) * torch.rand(count, *more, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def chance(self, count: int, number: int, share: float) -> Bool[Tensor, "count number"]:
        """Draw booleans that are true with a probability."""
        return self.uniform(count, 0, 1, number) < share


def _ages(ages: Ages, count: int, curve: AgeCurve | None, draw: Draws) -> Tensor:
    if isinstance(ages, Tensor):
        years = _given_years("ages", ages, count)
        youngest = float(years.min())
    elif isinstance(ages, str) and ages == "balanced":
        if curve is None:
            return draw.uniform(count, ADULT_YEARS, OLDEST)
        ranges = torch.tensor(class_years(curve), dtype=torch.float64)
        # Equally many per class, up to one, in random order.
        which = (torch.arange(count) % len(AGE_CLASSES))[torch.argsort(draw.uniform(count, 0, 1))]
        low, high = ranges[which].unbind(-1)
        return low + (high - low) * draw.uniform(count, 0, 1)
    elif isinstance(ages, str):
        raise ValueError(f'ages: expected "balanced", two ages or a tensor, got {ages!r}')
    else:
        what = f"ages from 0 to below {MAX_YEARS:g} years, a tensor or 'balanced'"
        low, high = read_range("ages", ages, what, below=MAX_YEARS)
        years = draw.uniform(count, low, high)
        youngest = low
    if curve is None and youngest < ADULT_YEARS:
        raise ValueError(f"ages: the body has one age; expected {ADULT_YEARS:g} years or more")
    return years


def _given_years(name: str, given: Tensor, count: int) -> Float[Tensor, " N"]:
    if expect_tensor(name, given).shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), got {tuple(given.shape)}")
    years = given.detach().double().cpu()
    if not ((years >= 0) & (years < MAX_YEARS)).all():
        raise ValueError(f"{name}: expected finite ages from 0 to below {MAX_YEARS:g} years")
    return years


def class_years(curve: AgeCurve) -> list[tuple[float, float]]:
    """Return the youngest and the oldest age of each of the ``AGE_CLASSES`` on a body [years]."""
    highs = [float(curve.offset_to_years(kind.low)) for kind in AGE_CLASSES]
    lows = [float(curve.offset_to_years(kind.high)) for kind in AGE_CLASSES]
    return list(zip([*lows[:-1], 0.0], [OLDEST, *highs[1:]], strict=True))


def _first_of_image(together: Sequence[int] | None, count: int) -> Int[Tensor, " N"]:
    """Return, for each person, the first person of the same image."""
    try:
        sizes = torch.ones(count) if together is None else torch.tensor([*map(operator.index, together)])
    except TypeError:
        sizes = torch.zeros(1)
    sizes = sizes.long()
    if min(sizes.tolist(), default=0) < 1 or sizes.sum() != count:
        raise ValueError(f"together: expected numbers of 1 or more whose sum is {count}, got {together}")
    return (sizes.cumsum(0) - sizes).repeat_interleave(sizes)


def _choose_postures(years: Tensor, draw: Draws) -> list[Posture]:
    shares = np.stack([np.interp(years.numpy(), kind.years, kind.shares) for kind in POSTURES], -1)
    bounds = torch.from_numpy(np.cumsum(shares / shares.sum(-1, keepdims=True), -1))
    chosen = (draw.uniform(len(years), 0, 1)[:, None] > bounds[:, :-1]).sum(-1)
    return [POSTURES[i] for i in chosen.tolist()]


def _poses(
    postures: list[Posture], joint_names: Sequence[str], age_offset: Tensor, pose_sd: float, draw: Draws
) -> Float[Tensor, "N J 3 3"]:
    """Return rotations of all joints; the root's for a person who faces +z."""
    count, names, poses = len(postures), list(joint_names), {**POSES, **MORE_POSES}
    needed = {joint for pose in poses.values() for joint in pose}
    if missing := sorted(needed - set(names)):
        raise ValueError(f"body: expected SMPL's joints; it has no {', '.join(missing)}")
    angles = np.array([[pose.get(joint, (0.0, 0.0, 0.0)) for joint in names] for pose in poses.values()])
    matrices = Rotation.from_euler("XYZ", angles.reshape(-1, 3), degrees=True).as_matrix()
    tables = dict(zip(poses, torch.from_numpy(matrices.reshape(*angles.shape, 3)), strict=True))
    picks = draw.uniform(count, 0, 1, 2)
    pairs = [
        [tables[kind.limbs[int(u * len(kind.limbs))]] for u in row]
        for kind, row in zip(postures, picks.tolist(), strict=True)
    ]
    first, second = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
    limb = [next((i for i, parts in enumerate(_LIMBS) if any(p in name for p in parts)), 0) for name in names]
    share = draw.uniform(count, 0, 1, len(_LIMBS))[:, limb]
    way = matrix_to_axis_angle(first.mT @ second)
    blended = first @ axis_angle_to_matrix(share[..., None] * way)
    blended[:, 0] = torch.stack([tables[kind.root][0] for kind in postures])
    mirrored = draw.chance(count, 1, 0.5)
    blended = torch.where(
        mirrored[..., None, None], mirror(blended[:, list(mirror_order(names))], "matrix"), blended
    )
    sd = [next((sd for part, sd in POSE_SD.items() if part in name), 0.0) for name in names]
    turn = pose_sd * torch.tensor(sd).double().deg2rad()[:, None] * draw.normal(count, len(names), 3)
    perturbed = blended @ axis_angle_to_matrix(turn)
    limits = joint_limits(names[1:], age_offset=age_offset)
    return torch.cat((perturbed[:, :1], clamp_to_limits(perturbed[:, 1:], limits)), 1)


def _facing(
    postures: list[Posture], years: Tensor, heading: float, first: Int[Tensor, " N"], draw: Draws
) -> Float[Tensor, "N 3 3"]:
    """Return rotations from a body that faces +z with +y up to camera coordinates.

    The camera of an image looks as it would at its first person.
    """
    count = len(postures)
    mean, sd = torch.tensor([kind.elevation for kind in postures]).double().unbind(-1)
    down = (mean + 12 * (1 - years / 6).clamp(min=0) + sd * draw.normal(count)).clamp(-10, 88)
    roll = torch.tensor([kind.roll for kind in postures]).double() * draw.normal(count)
    turn = draw.uniform(count, -heading, heading)
    zero = torch.zeros_like(turn)
    upright = axis_angle_to_matrix(torch.stack((zero, turn, zero), -1))
    looks_down = axis_angle_to_matrix(torch.stack((down.deg2rad(), zero, zero), -1))
    rolls = axis_angle_to_matrix(torch.stack((zero, zero, roll.deg2rad()), -1))
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64).diag()
    return (rolls @ looks_down @ flip)[first] @ upright


def _half_extent(points: Float[Tensor, "N K 3"], focal: Tensor, distance: Tensor) -> Float[Tensor, "N 2"]:
    """Return how far the points, with a margin for skin and hair, reach from the image centre [pixels]."""
    depth = points[..., 2:] + distance[:, None, None]
    return 1.15 * (focal[:, None, None] * points[..., :2] / depth).abs().amax(-2)


def _place_in_image(
    size: Float[Tensor, " 2"], half: Float[Tensor, "N 2"], place: Tensor, beyond: Tensor, truncated: float
) -> Float[Tensor, "N 2"]:
    """Return the centre of each person: within the image, in its middle if too large, or across a border."""
    room = (size - 2 * half).clamp(min=0)
    inside = (size - room) / 2 + room * place
    side = (beyond[:, 1] * 4).long()  # left, right, top, bottom
    out = half * (1 - 0.8 * beyond[:, 2:])  # up to 0.4 of the whole extent is beyond
    axis, far = side // 2, side % 2 == 1
    over = inside.clone()
    rows = torch.arange(len(half))
    over[rows, axis] = torch.where(far, size[axis] - out[rows, axis], out[rows, axis])
    return torch.where((beyond[:, 0] < truncated)[:, None], over, inside)
