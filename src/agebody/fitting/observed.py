"""Observations of people in images: arguments of fits, checked and in one batch."""

from __future__ import annotations

import itertools
import math
import reprlib
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import block_diag
from torch import Tensor, nn

from agebody.age import AGE_CLASSES, UNKNOWN, AgeCurve, parse_ages
from agebody.age.values import TALLEST
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.cameras.camera import NEAR
from agebody.checks import apply_mask, expand_to, expect, expect_numbers, flatten, read_confidences
from agebody.fitting.whole_body import coarse_weights, noise_shares
from agebody.keypoints import KeypointLayout, get_layout, mirror_order
from agebody.losses import MahalanobisPrior, MaxMixturePrior, joint_limits_prior
from agebody.losses.extremities import extremity_priors
from agebody.losses.limits import ADULT_RANGES
from agebody.optim.stages import fit_error
from agebody.optim.state import keypoint_jacobian
from agebody.optim.terms import PosePrior
from agebody.parameters import BodyParameters
from agebody.people.poses import POSES, pose
from agebody.rotations import mirror

NOISE_SHARE = 0.01
"""Standard deviation of a keypoint, as a fraction of the larger side of the box around a person's."""

AGE_SD = 0.05
"""Standard deviation of an age offset that is expected from an age in years."""

UNKNOWN_AGE = (0.4, 1.0)
"""Mean and standard deviation of the age offset of an unknown person."""

MIN_NOISE = 0.1
"""Lower bound of the standard deviation of a keypoint [pixels]."""

MAX_REACH = 8.0
"""Largest side of the box around a person's keypoints, over their median distance from the median point;
points beyond belong to other people. For 98 % of people it is below 6.4."""

MIN_POINTS = 4
"""Keypoints of weight above 0 that a person must have to be fitted."""


class Observed(NamedTuple):
    """Observations of B people, and what is known of their age and depth."""

    keypoints: Float[Tensor, "B K 2"]
    weights: Float[Tensor, "B K"]
    noise: Float[Tensor, "B K"]
    ages: Float[Tensor, "B 4"]
    """Lowest, highest and expected age offset, and its standard deviation."""
    depth: Float[Tensor, " B"]
    depth_sd: Float[Tensor, " B"]
    camera: Camera
    layout: KeypointLayout
    has_depth: bool
    """Whether any depth of the whole batch is known, also where these are some of its people."""

    def extent(self) -> Float[Tensor, " B"]:
        """Return the larger side of the box around each person's points [pixels]."""
        return _extent(self.keypoints, self.weights)

    def compare(self, points: Float[Tensor, "B K 3"]) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """Return the error in the image [pixels], and whether all observed points are before the camera."""
        found = self.camera.project(points)
        ahead = (found.depth >= NEAR) | (self.weights == 0)
        return fit_error(found.pixels, self.keypoints, self.weights), ahead.all(-1)


def read_observed(
    body: BodyModel,
    keypoints: Tensor,
    camera: Camera,
    layout: str | KeypointLayout,
    weights: Tensor | None,
    noise: float | Tensor | None,
    ages: tuple[float | Tensor | None, Tensor | None, float | Tensor | None],
    depth: Tensor | None,
    depth_sd: float | Tensor,
    age_prior: tuple[float | Tensor, float | Tensor] = UNKNOWN_AGE,
) -> Observed:
    """Return the arguments of `fit_keypoints`, checked and in one flat batch."""
    layout = get_layout(layout)
    keypoints = expect("keypoints", keypoints, len(layout), 2)
    if (keypoints.dtype, keypoints.device) != (body.dtype, body.device):
        raise TypeError(
            f"keypoints: expected {body.dtype} on {body.device}, as the body, "
            f"got {keypoints.dtype} on {keypoints.device}"
        )
    batch = keypoints.shape[:-2]
    trust = read_confidences(weights, keypoints[..., 0])
    seen = apply_mask(keypoints, trust, 1)
    if not seen.isfinite().all():
        raise ValueError("keypoints: expected finite pixels where the weights are not zero")
    lens = camera.to(keypoints).expand(*batch)
    lens = lens.map(lambda part: flatten(part, batch, part.dim() - len(batch)))
    shares = noise_shares(body, layout)
    if noise is None:
        extent = _extent(seen, coarse_weights(trust, shares))
        noise = torch.where(extent > 0, extent * NOISE_SHARE, 1).clamp(min=MIN_NOISE)[..., None] * shares
    else:
        noise = _numbers("noise", noise, batch, keypoints)[..., None].expand(trust.shape)
    if not ((noise > 0) & noise.isfinite()).all():
        raise ValueError("noise: expected a standard deviation above 0 [pixels]")
    known = _numbers("depth", math.nan if depth is None else depth, batch, keypoints)
    if not (known.isnan() | ((known > 0) & known.isfinite())).all():
        raise ValueError("depth: expected metres above 0, and NaN where it is not known")
    sizes = known * _extent(seen, trust) / camera.focal.mean(-1).to(known)
    if (sizes[sizes > 0].median() if (sizes > 0).any() else 0) > TALLEST:
        middle, size = (part[sizes > 0].median().item() for part in (known, sizes))
        raise ValueError(
            f"depth: expected metres, got a median of {middle:g}, at which people would be {size:.3g} m in "
            "size; divide millimetres by 1000"
        )
    known_sd = _numbers("depth_sd", depth_sd, batch, keypoints)
    if not ((known_sd > 0) & known_sd.isfinite()).all():
        raise ValueError("depth_sd: expected a standard deviation above 0 [m]")
    return Observed(
        flatten(seen, batch, 2),
        flatten(trust, batch, 1),
        flatten(noise, batch, 1),
        flatten(_read_ages(body, *ages, age_prior, batch, keypoints), batch, 1),
        flatten(known, batch, 0),
        flatten(known_sd, batch, 0),
        lens,
        layout,
        has_depth=not bool(known.isnan().all()),
    )


def _read_ages(
    body: BodyModel,
    age_offset: float | Tensor | None,
    kinds: Tensor | None,
    years: float | Tensor | None,
    prior: tuple[float | Tensor, float | Tensor],
    batch: torch.Size,
    like: Tensor,
) -> Float[Tensor, "*batch 4"]:
    """Return lowest, highest and expected age offset and its standard deviation, per person."""
    if not body.age_anchors:
        if any(known is not None for known in (age_offset, kinds, years)):
            raise ValueError(f"age_offset, age_class, years: {type(body).__name__} has one age; use SMPLA")
        return like.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*batch, 4)
    if not isinstance(kinds, Tensor | None):
        raise TypeError(f"age_class: expected a torch.Tensor of integers, got {type(kinds).__name__}")
    ages = parse_ages(age_offset=age_offset, years=years, age_class=kinds, shape=tuple(batch))
    offset, grown, kind = (torch.from_numpy(part).to(like.device) for part in ages)
    offset, grown = offset.to(like), AgeCurve.from_asset(body.asset).years_to_offset(grown.to(like))
    mean, sd = (_numbers("age_prior", part, batch, like) for part in read_age_prior(prior))
    if not (mean.isfinite() & (sd > 0) & sd.isfinite()).all():
        raise ValueError("age_prior: expected a finite mean, and a standard deviation above 0")
    classes = like.new_tensor([[k.low, k.high, k.mid, (k.high - k.low) / 2] for k in AGE_CLASSES])
    found = torch.stack((torch.zeros_like(mean), torch.ones_like(mean), mean, sd), -1)
    found = torch.where((kind != UNKNOWN)[..., None], classes[kind.clamp(min=0)], found)
    reach = 3 * AGE_SD
    rows = torch.stack((grown - reach, grown + reach, grown, torch.full_like(grown, AGE_SD)), -1)
    found = torch.where(grown.isnan()[..., None], found, rows)
    rows = torch.stack((offset, offset, offset, torch.ones_like(offset)), -1)
    return torch.where(offset.isnan()[..., None], found, rows)


def read_age_prior(value: Any) -> tuple[float | Tensor, float | Tensor]:
    """Return the mean and the standard deviation of a prior of age offsets."""
    try:
        mean, sd = value
    except (TypeError, ValueError):
        raise TypeError(
            f"age_prior: expected a mean and a standard deviation, got {reprlib.repr(value)}"
        ) from None
    return mean, sd


def _extent(
    keypoints: Float[Tensor, "*batch K 2"], weights: Float[Tensor, "*batch K"]
) -> Float[Tensor, "*batch"]:
    """Return the larger side of the box around points of weight above 0, without strays [pixels]."""
    counts = (weights > 0)[..., None]
    points = torch.where(counts, keypoints, torch.nan)
    middle = points.nanmedian(-2, keepdim=True).values
    distance = (points - middle).norm(dim=-1).nanmedian(-1).values.nan_to_num(0.0)
    low = torch.where(counts, keypoints, torch.inf).amin(-2)
    high = torch.where(counts, keypoints, -torch.inf).amax(-2)
    side = (high - low).amax(-1)
    side = torch.where(distance > 0, side.minimum(MAX_REACH * distance), side)
    return side.clamp(min=0)


def _numbers(name: str, value: float | Tensor, batch: torch.Size, like: Tensor) -> Float[Tensor, "*batch"]:
    return expand_to(name, expect_numbers(name, value, like), batch)


def pose_prior_of(
    body: BodyModel, prior: MahalanobisPrior | MaxMixturePrior | None
) -> MahalanobisPrior | MaxMixturePrior:
    """Return a prior for the joints of a body.

    If None, `joint_limits_prior` about a standing person, and the `extremity_priors` of hands and face.
    """
    names = tuple(body.asset.joint_names[1:])
    if prior is None:
        blocks = list(extremity_priors(body.asset))
        limited = bool(set(names) & set(ADULT_RANGES))
        if not limited and not blocks:
            raise ValueError(
                f"pose_prior: the default needs joints such as {', '.join(list(ADULT_RANGES)[:3])}, and this "
                f"body has none of them; give a prior of its joints, such as {', '.join(names[:3])}"
            )
        mean = None
        if set(POSES["standing"]) <= set(body.asset.joint_names):
            mean = torch.from_numpy(pose("standing", body.asset.joint_names)[1:])
            mean = (mean + mirror(mean[list(mirror_order(names))])) / 2  # nobody's head is turned beforehand
        options: dict[str, Any] = {"dtype": body.dtype, "device": body.device}
        if limited:
            prior = joint_limits_prior(names, mean=mean, **options)
            own = prior.arrays
            blocks = [(own.joint_names, own.mean, own.factor), *blocks]
        if prior is None or len(blocks) > 1:
            members, means, factors = zip(*blocks, strict=True)
            known = tuple(itertools.chain(*members))
            prior = MahalanobisPrior(
                np.concatenate(means), np.asarray(block_diag(*factors)), known, **options
            )
    if isinstance(prior, MaxMixturePrior) and prior.soft:
        raise ValueError("pose_prior: a soft mixture is not a sum of squares; make it with soft=False")
    return (prior if prior.joint_names == names else prior.for_joints(names)).to(body.device, body.dtype)


class FreePose(nn.Module):
    """The default prior of a body's pose, and the joints that move keypoints of a layout."""

    def __init__(self, body: BodyModel, layout: KeypointLayout) -> None:
        super().__init__()
        self.layout, self.prior = layout, pose_prior_of(body, None)
        self.term = PosePrior(self.prior, body)
        self.joints = seen_joints(body, layout, self.prior)


def seen_joints(
    body: BodyModel, layout: KeypointLayout, prior: MahalanobisPrior | MaxMixturePrior
) -> list[str] | None:
    """Return the joints whose rotations move a keypoint; None, for all, if the prior correlates the others.

    Joints that move no keypoint, such as the hands with COCO's, are best at the prior's mean, if their prior
    does not depend on joints that do.
    """
    names = body.asset.joint_names
    bent = torch.linspace(-0.5, 0.5, 3 * len(names), dtype=body.dtype, device=body.device).view(1, -1, 3)
    mean = BodyParameters.zeros(body, 1)
    by_pose = keypoint_jacobian(body, layout)(bent, mean.betas, mean.age_offset, mean.transl).pose
    moving = (by_pose.abs().amax((0, 1, 2, 4)) > 1e-6)[1:]
    if moving.all() or isinstance(prior, MaxMixturePrior):
        return None
    columns = moving.repeat_interleave(3)[prior.columns]
    if (prior.factor[columns].square().sum(0) * prior.factor[~columns].square().sum(0)).any():
        return None
    return [name for name, moves in zip(names[1:], moving.tolist(), strict=True) if moves]
