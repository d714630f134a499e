"""Random people of every age: who they are, how they hold themselves, and what a detector would see of them.

What tests, benchmarks and demonstrations of fitting run on, where the truth is known to the last digit. Poses
are everyday ones, blended limb by limb and shaken, so that they have a distribution of their own: no prior of
`agebody.losses` was made from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from agebody.age import ADULT_YEARS, AGE_CLASSES, AgeCurve
from agebody.assets.asset import BodyAsset
from agebody.body import BodyModel
from agebody.cameras.boxes import box_around
from agebody.cameras.camera import Camera
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses.limits import JointLimits, joint_limits, swing_twist
from agebody.measure.lengths import stature
from agebody.mesh.closest import visible_vertices
from agebody.people.poses import POSES, Angles
from agebody.rotations import axis_angle_to_matrix, matrix_to_axis_angle

Ages = Literal["balanced"] | tuple[float, float] | Float[Tensor, " N"]
"""How old people are [years]: as many of each of the ``AGE_CLASSES``; evenly between two ages; or given.

Within a class "balanced" is even in years, too.
"""

OLDEST = 80.0
"""[years] Of people drawn by "balanced"; a body does not change any more from 19 years on."""


class People(NamedTuple):
    """N people, each before a camera of their own, whose coordinates are the world's."""

    years: Float[Tensor, " N"]
    global_orient: Float[Tensor, "N 3"]
    body_pose: Float[Tensor, "N J 3"]
    """Axis-angle vectors of all joints but the root [rad]."""
    betas: Float[Tensor, "N S"]
    age_offset: Float[Tensor, " N"]
    """0 where the body has one age."""
    transl: Float[Tensor, "N 3"]
    """[m]"""
    camera: Camera
    size: Float[Tensor, "N 2"]
    """Width and height of each image [pixels]."""

    def arguments(self, body: BodyModel) -> dict[str, Any]:
        """What ``body(**arguments, pose_format="axis_angle")`` takes."""
        names = (
            "global_orient",
            "body_pose",
            "betas",
            "transl",
            *(("age_offset",) if body.age_anchors else ()),
        )
        return {name: getattr(self, name) for name in names}

    def select(self, rows: slice | Sequence[int] | Tensor) -> People:
        """Some of the people."""
        return self.map(lambda part: part[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> People:
        """A function of each tensor, those of the camera included."""
        seen = {name: function(part) for name, part in self.camera._asdict().items() if part is not None}
        parts = {name: function(part) for name, part in self._asdict().items() if name != "camera"}
        return People(**parts, camera=Camera(**seen))


class Observations(NamedTuple):
    """What a detector says of N people, and what it should have said."""

    keypoints: Float[Tensor, "N K 2"]
    """[pixels]; 0 where a point is not found, as COCO and OpenPose write it."""
    weights: Float[Tensor, "N K"]
    """Confidences from 0, not found, to 1."""
    exact: Float[Tensor, "N K 2"]
    """Where the points are [pixels], seen or not."""
    points: Float[Tensor, "N K 3"]
    """The same in camera coordinates [m]."""
    visible: Bool[Tensor, "N K"]
    """Within the image, and nothing stands before it: no occluder, and no part of the person if looked at."""
    wrong: Bool[Tensor, "N K"]
    """Reported with a confidence, and of another place: swapped, another person's, or anywhere."""
    depth: Float[Tensor, " N"]
    """z of the pelvis [m]: what a depth sensor or a known place would give."""


def random_people(
    body: BodyModel,
    count: int,
    *,
    ages: Ages = "balanced",
    seed: int = 0,
    size: tuple[int, int] = (1280, 960),
    fov: tuple[float, float] = (math.radians(35), math.radians(65)),
    extent: tuple[float, float] = (0.3, 0.9),
    heading: float = math.pi,
    truncated: float = 0.0,
    shape_sd: float = 1.0,
    pose_sd: float = 1.0,
) -> People:
    """Random people of every age, the same ones for the same seed on every device.

    - *Age offset*: that of the age in years on this body (`AgeCurve`).
    - *Shape*: betas normal, within 2.5 SD; the SD shrinks with the median stature of the age, for betas are
      centimetres, and a newborn varies by fewer of these.
    - *Pose*: upright, sitting, crawling or lying as is usual at the age (`POSTURES`: newborns lie and kick,
      and crawl from half a year on). Two everyday poses are blended with a share for the legs and trunk and
      one for each arm, half of the people are mirrored, every joint is turned by a random rotation
      (`POSE_SD`), and what is then beyond the range of motion of the age is put back to its limit.
    - *Orientation*: any heading; a body leans by 4 degrees and the camera by 3 (SD). The camera looks down:
      by 5 degrees on those who stand, 12 on those who sit, 30 on those who crawl and 55 on those who lie
      (SD 8, 8, 10 and 15, within -10 and 88), and on children under 6 years by up to 12 more. Those who lie
      may be upside down in the image.
    - *Camera*: square pixels, its axis in the middle of the image. The vertical field of view is uniform.
      The stature is a share of the image's height that is uniform in its logarithm, and this decides the
      distance, but for people whom the image could not hold, who are further away. They are anywhere in it.

    Args:
        body: a layer with SMPL's joints.
        count: N.
        ages: see `Ages`. A body of one age takes none but adults.
        seed: of the random numbers.
        size: width and height of the images [pixels].
        fov: least and largest vertical field of view [rad].
        extent: least and largest stature over the height of the image, were the person upright.
        heading: how far people may be turned away from the camera, to either side [rad].
        truncated: share of people of whom up to two fifths lie beyond one border of the image.
        shape_sd: of an adult's betas.
        pose_sd: factor of the random rotations of joints.

    Raises:
        ValueError: a number is not what is said here, or the body lacks a joint of SMPL's.
    """
    if count < 1:
        raise ValueError(f"count: expected 1 or more, got {count}")
    for name, (low, high), top in (("fov", fov, math.pi), ("extent", extent, math.inf)):
        if not 0 < low <= high < top:
            raise ValueError(
                f"{name}: expected two ascending numbers between 0 and {top:.3g}, got {low}, {high}"
            )
    if not all(0 < side < math.inf for side in size):
        raise ValueError(f"size: expected a width and a height above 0, got {size[0]}, {size[1]}")
    for name, number in (("heading", heading), ("shape_sd", shape_sd), ("pose_sd", pose_sd)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}: expected a number of 0 or more, got {number}")
    _expect_share("truncated", truncated)
    draw = _Draws(seed)
    curve = AgeCurve.from_asset(body.asset) if body.age_anchors else None
    years = _ages(ages, count, curve, draw)
    offset = curve.years_to_offset(years) if curve else torch.zeros_like(years)
    growth = curve.years_to_stature(years) if curve else torch.ones_like(years)
    grown = curve.years_to_stature(ADULT_YEARS) if curve else 1.0
    betas = draw.normal(count, body.num_betas).clamp(-2.5, 2.5) * (shape_sd * growth / grown)[:, None]

    postures = _choose_postures(years, draw)
    rotations = _poses(postures, body.asset.joint_names, offset, pose_sd, draw)
    rotations[:, 0] = _facing(postures, years, heading, draw) @ rotations[:, 0]
    pose = matrix_to_axis_angle(rotations)

    width, height = (float(n) for n in size)
    focal = height / 2 / torch.tan(draw.uniform(count, *fov) / 2)
    share = torch.exp(draw.uniform(count, math.log(extent[0]), math.log(extent[1])))
    place, beyond = draw.uniform(count, 0, 1, 2), draw.uniform(count, 0, 1, 3)
    camera = Camera(
        focal[:, None].expand(-1, 2), torch.tensor([width / 2, height / 2]).double().expand(count, 2)
    )
    found = People(
        years, pose[:, 0], pose[:, 1:], betas, offset, torch.zeros(count, 3).double(), camera,
        torch.tensor([width, height]).double().expand(count, 2),
    )  # fmt: skip
    found = _cast(found, body)
    with torch.no_grad():
        standing = body(betas=found.betas, **({"age_offset": found.age_offset} if curve else {}))
        tall = stature(standing.vertices).double().cpu()
        points = body.keypoints("smpl24", **found.arguments(body)).double().cpu()
    extremes = torch.stack((points.amin(-2), points.amax(-2)))
    points = points - extremes.mean(0)[:, None]
    distance = focal * tall / (share * height)
    # No point comes nearer than a fifth of the distance, however an arm reaches for the camera.
    distance = torch.maximum(distance, -1.25 * points[..., 2].amin(-1))
    room = torch.tensor([width, height]).double()
    for _ in range(3):  # further away where the points would not fit; each turn comes closer
        distance = distance * (_half_extent(points, focal, distance) / (0.49 * room)).amax(-1).clamp(min=1)
    target = _place_in_image(room, _half_extent(points, focal, distance), place, beyond, truncated)
    at = (target - camera.center) / focal[:, None] * distance[:, None]
    transl = torch.cat((at, distance[:, None]), -1) - extremes.mean(0)
    return found._replace(transl=transl.to(found.betas))


def observe(
    body: BodyModel,
    people: People,
    *,
    layout: str | KeypointLayout = "coco17",
    seed: int = 0,
    noise: float = 2.0,
    self_occlusion: bool = False,
    occluders: float = 0.0,
    dropped: float = 0.0,
    swapped: float = 0.0,
    borrowed: float = 0.0,
    stray: float = 0.0,
    hidden_noise: float = 3.0,
) -> Observations:
    """What a detector of keypoints would say of people: noise, gaps and blunders, each with its own number.

    Points outside the image are not found. Of points that an occluder hides, half are not found, the others
    are guessed: with ``hidden_noise`` times the noise, as are those behind the person's own body.

    Confidences are uniform: from 0.7 to 1 for points that are seen, from 0.3 to 0.7 for those that are
    guessed, and from 0.2 to 0.9 for wrong ones, which detectors do not know to be wrong.

    Args:
        body: whose people they are.
        people: from `random_people`.
        layout: of the keypoints.
        seed: of the random numbers.
        noise: standard deviation of each coordinate [pixels].
        self_occlusion: look which points the person's own body hides, which takes 20 to 50 ms a person.
        occluders: share of people behind a box that hides a fifth to a half of their extent from one side,
            most often from below, as tables do.
        dropped: share of points that are not found.
        swapped: share of people of whom left and right are exchanged, in the legs, in the arms or in all.
        borrowed: share of people of whom a fifth to a half of the points are those of somebody beside them.
        stray: share of points that lie anywhere within the person's box, enlarged by a half.
        hidden_noise: see above.

    Raises:
        ValueError: a share is not from 0 to 1, a noise is negative, or the body lacks the layout's points.
    """
    shares = {
        "occluders": occluders,
        "dropped": dropped,
        "swapped": swapped,
        "borrowed": borrowed,
        "stray": stray,
    }
    for name, share in shares.items():
        _expect_share(name, share)
    for name, sd in (("noise", noise), ("hidden_noise", hidden_noise)):
        if not 0 <= sd < math.inf:
            raise ValueError(f"{name}: expected a number of 0 or more, got {sd}")
    layout = get_layout(layout)
    draw, count, number = _Draws(seed), len(people.years), len(layout)
    with torch.no_grad():
        posed = body.shape(
            **{k: v for k, v in people.arguments(body).items() if k in ("betas", "age_offset")}
        )
        moves = {
            "global_orient": people.global_orient,
            "body_pose": people.body_pose,
            "transl": people.transl,
        }
        points = posed.keypoints(layout, **moves, pose_format="axis_angle").double().cpu()
        root = posed.keypoints("smpl24", **moves, pose_format="axis_angle")[:, 0, 2]
        bare = torch.ones(count, number, dtype=torch.bool)
        if self_occlusion:
            bare = _unhidden(body, people, layout)
    camera, extent = people.camera.to("cpu", torch.float64), people.size.double().cpu()
    seen = camera.project(points, size=extent)
    exact, in_image = seen.pixels, seen.visible
    box = box_around(exact)
    behind = _behind_occluders(exact, box, occluders, draw)
    visible = in_image & bare & ~behind
    found = in_image & ~(behind & draw.chance(count, number, 0.5)) & ~draw.chance(count, number, dropped)

    shifted = exact + noise * torch.where(visible, 1.0, hidden_noise)[..., None] * draw.normal(
        count, number, 2
    )
    others = _beside(exact, box, draw)
    source = _swap(layout, swapped, count, draw)
    given = shifted.gather(1, source[..., None].expand(-1, -1, 2))
    found = found.gather(1, source)
    wrong = source != torch.arange(number)
    some = draw.uniform(count, 0.2, 0.5)[:, None]
    lent = draw.chance(count, 1, borrowed) & (draw.uniform(count, 0, 1, number) < some)
    given = torch.where(lent[..., None], others, given)
    anywhere = draw.chance(count, number, stray)
    low, high = box_around(exact, scale=1.5)[:, None].split(2, -1)
    given = torch.where(anywhere[..., None], low + (high - low) * draw.uniform(count, 0, 1, number, 2), given)
    wrong = (wrong | lent | anywhere) & found

    confidence = torch.where(
        visible, draw.uniform(count, 0.7, 1, number), draw.uniform(count, 0.3, 0.7, number)
    )
    confidence = torch.where(wrong, draw.uniform(count, 0.2, 0.9, number), confidence)
    like = people.betas
    return Observations(
        torch.where(found[..., None], given, 0).to(like), torch.where(found, confidence, 0).to(like),
        exact.to(like), points.to(like), visible.to(like.device), wrong.to(like.device), root,
    )  # fmt: skip


class Posture(NamedTuple):
    """A way of keeping one's body, how usual it is at which age, and how a camera looks at it."""

    name: str
    root: str
    """The pose whose root turns the body."""
    limbs: tuple[str, ...]
    """Poses that are blended."""
    years: tuple[float, ...]
    shares: tuple[float, ...]
    """Among all postures at those ages, linear between them; made to sum to one."""
    elevation: tuple[float, float]
    """Mean and SD of how far the camera looks down [degrees]."""
    roll: float
    """SD of how the camera is turned about its axis [degrees]."""


def _both(**left: Angles) -> dict[str, Angles]:
    """Angles of left joints, and their mirror images on the right."""
    sides = {f"left_{name}": angles for name, angles in left.items()}
    return sides | {f"right_{name}": (x, -y, -z) for name, (x, y, z) in left.items()}


MORE_POSES: dict[str, dict[str, Angles]] = {
    "on a chair": {
        **_both(hip=(-86, 4, 6), knee=(84, 0, 0)),
        **_both(shoulder=(-30, -12, -58), elbow=(0, -58, 0), collar=(0, 0, -4)),
        "spine1": (6, 0, 0),
        "head": (6, 0, 0),
    },
    "squatting": {
        **_both(hip=(-112, 14, 14), knee=(118, 0, 0), ankle=(-18, 0, 0)),
        **_both(shoulder=(-14, -52, -34), elbow=(0, -30, 0)),
        "spine1": (22, 0, 0),
        "spine2": (12, 0, 0),
        "head": (-22, 0, 0),
    },
    "reaching": {
        "spine1": (14, 10, 0),
        "spine3": (6, 12, 0),
        "right_shoulder": (0, 74, 12),
        "right_elbow": (0, 16, 0),
        "left_shoulder": (8, 12, -58),
        "left_elbow": (0, -34, 0),
        "left_hip": (-18, 4, 0),
        "left_knee": (16, 0, 0),
        "head": (-4, -10, 0),
    },
    "hands together": {
        **_both(collar=(0, 0, -4), shoulder=(-30, -34, -58), elbow=(0, -96, 0)),
        **_both(hip=(0, 4, -2), knee=(4, 0, 0)),
        "head": (14, 0, 0),
    },
    "prone": {
        "pelvis": (84, 0, 0),
        **_both(hip=(6, 18, 16), knee=(18, 0, 0), ankle=(34, 0, 0)),
        **_both(shoulder=(0, -40, -12), elbow=(0, -86, 0)),
        "spine3": (-14, 0, 0),
        "neck": (-24, 0, 0),
        "head": (-26, 0, 0),
    },
}  # fmt: skip
"""Everyday poses besides those of `agebody.people.poses`."""

_UPRIGHT = (
    "standing", "at ease", "hand on hip", "walking", "waving", "cheering", "running", "reaching",
    "hands together",
)  # fmt: skip
POSTURES = (
    Posture("upright", "standing", _UPRIGHT, (0.8, 1, 2, 4), (0, 0.3, 0.6, 0.7), (5, 8), 3),
    Posture(
        "sitting", "sitting", ("sitting", "on a chair"), (0.4, 0.6, 1, 4), (0, 0.3, 0.3, 0.2), (12, 8), 3
    ),
    Posture("squatting", "squatting", ("squatting",), (1, 2, 12, 30), (0, 0.1, 0.05, 0.02), (12, 8), 3),
    Posture("crawling", "crawling", ("crawling",), (0.5, 0.8, 1.5, 3), (0, 0.3, 0.15, 0.02), (30, 10), 4),
    Posture("prone", "prone", ("prone",), (0, 0.3, 1, 4), (0.15, 0.25, 0.1, 0.02), (55, 15), 60),
    Posture("lying", "lying", ("lying", "kicking"), (0.4, 0.8, 1.5, 3), (0.85, 0.4, 0.1, 0), (55, 15), 60),
    Posture("stretched out", "lying", ("standing", "at ease"), (1, 4), (0, 0.05), (55, 15), 60),
)
"""What people do, by age."""

POSE_SD: dict[str, float] = {
    "spine1": 4, "spine2": 4, "spine3": 4, "neck": 6, "head": 9, "collar": 4, "shoulder": 18, "elbow": 16,
    "wrist": 12, "hand": 5, "hip": 10, "knee": 12, "ankle": 7, "foot": 4, "pelvis": 4,
}  # fmt: skip
"""Standard deviation of the components of the random turn of each joint, left or right [degrees]."""

_LIMBS = (
    ("pelvis", "spine", "neck", "head", "hip", "knee", "ankle", "foot"),
    ("left_collar", "left_shoulder", "left_elbow", "left_wrist", "left_hand"),
    ("right_collar", "right_shoulder", "right_elbow", "right_wrist", "right_hand"),
)
"""What is blended with one share: a part of the joints' names."""


class _Draws:
    """Random numbers in float64 on the CPU, whatever the body's device."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, count: int, low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *more, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def chance(self, count: int, number: int, share: float) -> Tensor:
        return self.uniform(count, 0, 1, number) < share


def _ages(ages: Ages, count: int, curve: AgeCurve | None, draw: _Draws) -> Tensor:
    if isinstance(ages, Tensor):
        if ages.shape != (count,):
            raise ValueError(f"ages: expected shape ({count},), got {tuple(ages.shape)}")
        years = ages.detach().double().cpu()
        if not ((years >= 0) & years.isfinite()).all():
            raise ValueError("ages: expected finite ages from 0 up")
        youngest = float(years.min())
    elif ages == "balanced":
        if curve is None:
            return draw.uniform(count, ADULT_YEARS, OLDEST)
        highs = [float(curve.offset_to_years(kind.low)) for kind in AGE_CLASSES]
        lows = [float(curve.offset_to_years(kind.high)) for kind in AGE_CLASSES]
        highs[0], lows[-1] = OLDEST, 0.0
        # As many of each class as of any other, to one; among them in any order.
        which = (torch.arange(count) % len(AGE_CLASSES))[torch.argsort(draw.uniform(count, 0, 1))]
        low, high = torch.tensor([lows, highs], dtype=torch.float64)[:, which]
        return low + (high - low) * draw.uniform(count, 0, 1)
    elif isinstance(ages, str):
        raise ValueError(f'ages: expected "balanced", two ages or a tensor, got {ages!r}')
    else:
        low, high = ages
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"ages: expected two ascending ages from 0 up, got {low}, {high}")
        years = draw.uniform(count, low, high)
        youngest = low
    if curve is None and youngest < ADULT_YEARS:
        raise ValueError(f"ages: the body has one age; expected {ADULT_YEARS:g} years or more")
    return years


def _choose_postures(years: Tensor, draw: _Draws) -> list[Posture]:
    shares = np.stack([np.interp(years.numpy(), kind.years, kind.shares) for kind in POSTURES], -1)
    bounds = torch.from_numpy(np.cumsum(shares / shares.sum(-1, keepdims=True), -1))
    chosen = (draw.uniform(len(years), 0, 1)[:, None] > bounds[:, :-1]).sum(-1)
    return [POSTURES[i] for i in chosen.tolist()]


def _table(name: str, joint_names: Sequence[str]) -> Float[Tensor, "J 3 3"]:
    """Rotations of a pose."""
    pose = {**POSES, **MORE_POSES}[name]
    angles = np.array([pose.get(joint, (0.0, 0.0, 0.0)) for joint in joint_names])
    return torch.from_numpy(Rotation.from_euler("XYZ", angles, degrees=True).as_matrix())


def _poses(
    postures: list[Posture], joint_names: Sequence[str], age_offset: Tensor, pose_sd: float, draw: _Draws
) -> Float[Tensor, "N J 3 3"]:
    """Rotations of all joints; the root's as if the person faced +z."""
    count, names = len(postures), list(joint_names)
    needed = {joint for pose in (*POSES.values(), *MORE_POSES.values()) for joint in pose}
    if missing := sorted(needed - set(names)):
        raise ValueError(f"body: expected SMPL's joints; it has no {', '.join(missing)}")
    tables = {name: _table(name, names) for name in {*POSES, *MORE_POSES}}
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
    blended = torch.where(mirrored[..., None, None], _mirror(blended, names), blended)
    sd = [next((sd for part, sd in POSE_SD.items() if part in name), 0.0) for name in names]
    turn = pose_sd * torch.tensor(sd).double().deg2rad()[:, None] * draw.normal(count, len(names), 3)
    shaken = blended @ axis_angle_to_matrix(turn)
    limits = joint_limits(names[1:], age_offset=age_offset)
    return torch.cat((shaken[:, :1], _within(shaken[:, 1:], limits)), 1)


def _mirror(rotations: Float[Tensor, "N J 3 3"], names: list[str]) -> Float[Tensor, "N J 3 3"]:
    """Left and right exchanged: (x, y, z) becomes (x, -y, -z) of the other side's joint."""
    other = {"left": "right", "right": "left"}
    twin = [
        names.index(f"{other[side]}_{rest}")
        if (side := name.partition("_")[0]) in other and (rest := name.partition("_")[2])
        else i
        for i, name in enumerate(names)
    ]
    sign = torch.tensor([-1.0, 1.0, 1.0], dtype=rotations.dtype)
    return sign[:, None] * rotations[:, twin] * sign


def _within(rotations: Float[Tensor, "N J 3 3"], limits: JointLimits) -> Float[Tensor, "N J 3 3"]:
    """Rotations with angles beyond their limits put back to these."""
    angles = swing_twist(rotations, limits.axes).clamp(limits.low, limits.high)
    twists = torch.arange(3) == limits.axes[:, None]
    swing, twist = torch.where(twists, 0, angles), torch.where(twists, angles, 0)
    return axis_angle_to_matrix(swing) @ axis_angle_to_matrix(twist)


def _facing(postures: list[Posture], years: Tensor, heading: float, draw: _Draws) -> Float[Tensor, "N 3 3"]:
    """From a body that faces +z with +y up to camera coordinates."""
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
    return rolls @ looks_down @ flip @ upright


def _half_extent(points: Float[Tensor, "N K 3"], focal: Tensor, distance: Tensor) -> Float[Tensor, "N 2"]:
    """How far the points and a margin for skin and hair reach from the middle of the image [pixels]."""
    depth = points[..., 2:] + distance[:, None, None]
    return 1.15 * (focal[:, None, None] * points[..., :2] / depth).abs().amax(-2)


def _place_in_image(
    size: Float[Tensor, " 2"], half: Float[Tensor, "N 2"], place: Tensor, beyond: Tensor, truncated: float
) -> Float[Tensor, "N 2"]:
    """Where the middle of each person is: within the image, in its middle if too large, or over a border."""
    room = (size - 2 * half).clamp(min=0)
    inside = (size - room) / 2 + room * place
    side = (beyond[:, 1] * 4).long()  # left, right, top, bottom
    out = half * (1 - 0.8 * beyond[:, 2:])  # up to 0.4 of the whole extent is beyond
    axis, far = side // 2, side % 2 == 1
    over = inside.clone()
    rows = torch.arange(len(half))
    over[rows, axis] = torch.where(far, size[axis] - out[rows, axis], out[rows, axis])
    return torch.where((beyond[:, 0] < truncated)[:, None], over, inside)


def _unhidden(body: BodyModel, people: People, layout: KeypointLayout) -> Bool[Tensor, "N K"]:
    """Whether a camera sees skin next to a point: four of the 40 vertices nearest to it in the rest pose."""
    near = _skin_near(body.asset, layout)
    seen = []
    for start in range(0, len(people.years), 16):
        some = people.select(slice(start, start + 16))
        vertices = body(**some.arguments(body), pose_format="axis_angle").vertices
        clear = visible_vertices(vertices, body.faces, vertices.new_zeros(3)).cpu()
        seen.append(clear[:, near].sum(-1) >= 4)
    return torch.cat(seen)


def _skin_near(asset: BodyAsset, layout: KeypointLayout) -> Tensor:
    """(K, 40) vertices next to each point in the rest pose."""
    joints, rows = layout.resolve(asset)
    template = asset.template.astype(np.float64)
    rest = asset.joint_regressor @ template
    points = np.where((joints >= 0)[:, None], rest[np.maximum(joints, 0)], rows @ template)
    distances = np.linalg.norm(points[:, None] - template, axis=-1)
    return torch.from_numpy(np.argsort(distances, axis=1)[:, :40].copy())


def _behind_occluders(pixels: Tensor, box: Tensor, share: float, draw: _Draws) -> Bool[Tensor, "N K"]:
    count = len(pixels)
    low, high = box[:, None].split(2, -1)
    where = (pixels - low) / (high - low).clamp(min=1e-9)  # 0 to 1 within the box
    depth = draw.uniform(count, 0.2, 0.5)[:, None]
    side = torch.bucketize(draw.uniform(count, 0, 1), torch.tensor([0.6, 0.8]).double())[:, None]
    hidden = torch.where(
        side == 0,
        where[..., 1] > 1 - depth,
        torch.where(side == 1, where[..., 0] < depth, where[..., 0] > 1 - depth),
    )
    return hidden & draw.chance(count, 1, share)


def _beside(pixels: Tensor, box: Tensor, draw: _Draws) -> Float[Tensor, "N K 2"]:
    """Points of somebody else, as large, half to one and a half widths or heights beside."""
    count = len(pixels)
    other = (torch.arange(count) + 1) % count
    low, high = box[:, None].split(2, -1)
    extent = (high - low).amax(-1, keepdim=True).clamp(min=1e-9)
    theirs = (pixels - (low + high) / 2) / extent
    way = torch.where(draw.chance(count, 1, 0.5), 1.0, -1.0) * draw.uniform(count, 0.5, 1.5, 1)
    shift = torch.stack((way, draw.uniform(count, -0.2, 0.2, 1)), -1)
    return (low + high) / 2 + extent * (theirs[other] + shift)


def _swap(layout: KeypointLayout, share: float, count: int, draw: _Draws) -> Tensor:
    """(N, K) whose place each point reports."""
    own, flip = torch.arange(len(layout)), torch.tensor(layout.flip)
    legs = torch.tensor(
        [any(p in name for p in ("hip", "knee", "ankle", "foot", "heel", "toe")) for name in layout.names]
    )
    arms = torch.tensor(
        [any(p in name for p in ("shoulder", "elbow", "wrist", "hand")) for name in layout.names]
    )
    sets = torch.stack((legs, arms, torch.ones_like(legs)))
    which = sets[(draw.uniform(count, 0, 1) * 3).long()] & draw.chance(count, 1, share)
    return torch.where(which, flip, own)


def _expect_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: expected a share from 0 to 1, got {share}")


def _cast(people: People, body: BodyModel) -> People:
    return people.map(lambda part: part.to(body.device, body.dtype))
