"""Objectives of published methods, with the weights that they were published with.

Names of tensors, of the prediction and of the target alike:

    keypoints_2d    (*batch, K, 2)          in the image, in the unit that the objective says
    keypoints_3d    (*batch, K, 3)          points of a layout [m]
    global_orient   (*batch, 3, 3)          root rotation; (*batch, 3) where axis-angle is said
    body_pose       (*batch, J - 1, 3, 3)   the others; (*batch, J - 1, 3) where axis-angle is said
    betas           (*batch, N)
    age_offset      (*batch)

The target may hold weights of each under its name with ``_weights`` appended: (*batch, K) for keypoints,
(*batch) for the rest, 0 for what is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.cameras.weak import MAHMR_RESOLUTION
from agebody.checks import Reduction, reduce, residual
from agebody.keypoints import KeypointLayout
from agebody.losses.adversarial import generator_loss
from agebody.losses.age import age_offset_loss
from agebody.losses.depth import fov_loss, relative_metric_loss
from agebody.losses.keypoints import keypoints_3d_loss, reprojection_loss, rooted_weights
from agebody.losses.objective import LossTerm, Objective, Values
from agebody.losses.parameters import METRIC_AWARE_BETA_WEIGHTS, betas_loss, rotation_loss
from agebody.losses.priors import hyperextension_prior
from agebody.losses.robust import Penalty, gmof
from agebody.losses.temporal import velocity_loss


def hmr2_objective(*, layout: str | KeypointLayout = "hmr2_44") -> Objective:
    """HMR2 (Goel et al., ICCV 2023), as its public code weighs it: sums over people, keypoints and entries.

    ``keypoints_2d`` in the crop, in [-1/2, 1/2]; rotations as matrices; ``scores`` (*batch, D) of a
    discriminator that judges the prediction, see `PoseDiscriminator`, divided by the number of people.

    Args:
        layout: what the 3D keypoints are; its root is where they are compared from.
    """
    return Objective(_hmr2_terms(layout, 0.05, 0.01, 0.001, 0.001, 0.0005, 0.0005), reduction="sum")


def aionhmr_objective(*, layout: str | KeypointLayout = "hmr2_44") -> Objective:
    """AionHMR's regressor: HMR2's terms with other weights, and the age offset as one more of the betas.

    Arguments and names as in `hmr2_objective`; ``age_offset`` is needed beside ``betas``, and the
    discriminator judges eleven of them.
    """
    terms = _hmr2_terms(layout, 0.05, 0.02, 0.005, 0.001, 0.0015, 0.0005)
    identity = ("betas", "age_offset")
    terms["betas"] = LossTerm(terms["betas"].weight, _identity, identity, identity)
    return Objective(terms, reduction="sum")


def aionhmr_fitting_objective(*, smoothness: float = 1.0) -> Objective:
    """AionHMR's fit of a video, after SLAHMR: reprojection, a latent pose, one identity, smooth motion.

        0.001 sum c^2 gmof(x - x'; 100) + 0.04 |z|^2 + 0.05 T |[b, a]|^2 + s / 2 sum |J_t+1 - J_t|^2

    ``keypoints_2d`` (*batch, T, K, 2) in pixels, weighed by confidences c; ``latent_pose`` (*batch, T, Z) of
    the user's own pose prior (VPoser's there); ``betas`` (*batch, N) and ``age_offset`` (*batch) of one
    person; ``keypoints_3d`` (*batch, T, K, 3) in the world [m].

    Args:
        smoothness: s; 1 in the first stage, 10 in the second.
    """
    return Objective(
        {
            "keypoints_2d": LossTerm(
                0.001, partial(_robust, entry_dims=2), ("keypoints_2d",), ("keypoints_2d",)
            ),
            "pose_prior": LossTerm(0.04, _latent_video, ("latent_pose",)),
            "shape_prior": LossTerm(0.05, _identity_of_video, ("betas", "age_offset", "keypoints_2d")),
            "smoothness": LossTerm(smoothness / 2, _motion, ("keypoints_3d",)),
        },
        reduction="sum",
    )


SMPLIFY_X_STAGES = (
    (404.0, 100.0, 0.0),
    (404.0, 50.0, 0.0),
    (57.4, 10.0, 0.0),
    (4.78, 5.0, 0.01),
    (4.78, 5.0, 1.0),
)
"""Weights of pose prior, shape prior and intersection in SMPLify-X's stages; it squares the first two."""


def smplify_x_objective(
    stage: int,
    *,
    data_weight: float = 1.0,
    pose_prior: Callable[[Tensor], Tensor] | None = None,
    joint_names: Sequence[str] = SMPL_JOINT_NAMES[1:],
    intersection: Callable[[Tensor], Tensor] | None = None,
) -> Objective:
    """One stage of SMPLify-X (Pavlakos et al., CVPR 2019), as its public code weighs it: sums over people.

        d^2 sum (w c)^2 gmof(x - x'; 100) + p^2 prior(pose) + s^2 |b|^2 + 3.17 p sum exp(s_i theta_i)^2 + i C

    with p, s and i of `SMPLIFY_X_STAGES`. ``keypoints_2d`` in pixels, with the product of joint weight w and
    confidence c for weights; ``body_pose`` in axis-angle; ``betas``; ``vertices`` (*batch, V, 3) with an
    intersection. Its terms of hands, jaw and expression have no place on these bodies.

    Args:
        stage: 0 to 4.
        data_weight: d; the public code takes 1000 / image height.
        pose_prior: ``body_pose`` (*batch, J - 1, 3) -> (*batch), such as ``partial(prior, reduction="none")``
            with a `MaxMixturePrior`. None: the square of ``latent_pose`` (*batch, Z), as with VPoser.
        joint_names: of ``body_pose``, for the prior on bent knees and elbows.
        intersection: ``vertices`` -> (*batch); left out if not given.

    Raises:
        ValueError: there is no such stage.
    """
    if not 0 <= stage < len(SMPLIFY_X_STAGES):
        raise ValueError(f"stage: expected 0 to {len(SMPLIFY_X_STAGES) - 1}, got {stage}")
    pose, shape, apart = SMPLIFY_X_STAGES[stage]
    terms = {
        "keypoints_2d": LossTerm(
            data_weight**2, partial(_robust, entry_dims=1), ("keypoints_2d",), ("keypoints_2d",)
        ),
        "pose_prior": LossTerm(pose**2, _Prior("latent_pose", _square), ("latent_pose",))
        if pose_prior is None
        else LossTerm(pose**2, _Prior("body_pose", pose_prior), ("body_pose",)),
        "shape_prior": LossTerm(shape**2, _Prior("betas", _square), ("betas",)),
        "hyperextension_prior": LossTerm(
            3.17 * pose,
            _Prior("body_pose", partial(hyperextension_prior, joint_names=joint_names, reduction="none")),
            ("body_pose",),
        ),
    }
    if intersection is not None:
        terms["intersection"] = LossTerm(apart, _Prior("vertices", intersection), ("vertices",))
    return Objective(terms, reduction="sum")


def metric_aware_objective(
    *, image_size: float = MAHMR_RESOLUTION, layout: str | KeypointLayout | None = "smpl24", age: bool = False
) -> Objective:
    """Metric-Aware HMR (Wang et al. 2025): what it learns of matched people, as its public code weighs it.

    Absolute errors: for each person their mean over joints and coordinates, over betas, over angles; then the
    mean over people who have labels. ``keypoints_2d`` in pixels; rotations in axis-angle; ``depth`` (*batch)
    [m] with ``image`` (*batch), the number of each person's image, in the target; ``fov`` (*images) vertical
    fields of view [rad], summed over images. The terms of detection (boxes, confidences, scale maps) belong
    to the detector.

    Args:
        image_size: longer side of the network's input, by which image coordinates are divided [pixels].
        layout: what the 3D keypoints are; its root is where they are compared from. None: compared as given.
        age: whether the age offset is compared too, as the eleventh of the betas.
    """
    identity = ("betas", "age_offset") if age else ("betas",)
    pose = ("global_orient", "body_pose")
    return Objective(
        {
            "pose": LossTerm(5.0, _absolute_pose, pose, pose),
            "betas": LossTerm(3.0, partial(_weighted_betas, age=age), identity, identity),
            "keypoints_3d": LossTerm(
                8.0, partial(_mean_keypoints_3d, layout=layout), ("keypoints_3d",), ("keypoints_3d",)
            ),
            "keypoints_2d": LossTerm(
                40.0, partial(_mean_keypoints_2d, unit=image_size), ("keypoints_2d",), ("keypoints_2d",)
            ),
            "relative_depth": LossTerm(0.5, _relative_depth, ("depth",), ("depth", "image")),
            "fov": LossTerm(0.5, _fov, ("fov",), ("fov",)),
        }
    )


def _hmr2_terms(
    layout: str | KeypointLayout,
    keypoints_3d: float,
    keypoints_2d: float,
    global_orient: float,
    body_pose: float,
    betas: float,
    adversarial: float,
) -> dict[str, LossTerm]:
    return {
        "keypoints_3d": LossTerm(
            keypoints_3d, partial(_keypoints_3d, layout=layout), ("keypoints_3d",), ("keypoints_3d",)
        ),
        "keypoints_2d": LossTerm(keypoints_2d, _keypoints_2d, ("keypoints_2d",), ("keypoints_2d",)),
        "global_orient": LossTerm(global_orient, _global_orient, ("global_orient",), ("global_orient",)),
        "body_pose": LossTerm(body_pose, _body_pose, ("body_pose",), ("body_pose",)),
        "betas": LossTerm(betas, _betas, ("betas",), ("betas",)),
        "adversarial": LossTerm(adversarial, _adversarial, ("scores",)),
    }


def _of_people(entries: Tensor, weights: Tensor | None, reduction: Reduction, dims: int = 1) -> Tensor:
    """From weighted terms of entries (*batch, K) to a sum a person, reduced over people who have any."""
    last = tuple(range(-dims, 0))
    if weights is not None:
        weights = (weights.expand(entries.shape) != 0).any(-1).to(entries.dtype)
        for _ in range(dims - 1):
            weights = weights.amax(-1)
    return reduce(entries.sum(last), weights, reduction)


def _keypoints_2d(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    weights = target.get("keypoints_2d_weights")
    pred, known = prediction["keypoints_2d"], target["keypoints_2d"]
    return _of_people(reprojection_loss(pred, known, weights=weights, reduction="none"), weights, reduction)


def _keypoints_3d(
    prediction: Values, target: Values, reduction: Reduction, *, layout: str | KeypointLayout | None
) -> Tensor:
    weights = target.get("keypoints_3d_weights")
    pred, known = prediction["keypoints_3d"], target["keypoints_3d"]
    entries = keypoints_3d_loss(pred, known, layout=layout, weights=weights, reduction="none")
    return _of_people(entries, rooted_weights(weights, pred, layout), reduction)


def _mean_keypoints_2d(prediction: Values, target: Values, reduction: Reduction, *, unit: float) -> Tensor:
    return _keypoints_2d(prediction, target, reduction) / (2 * unit * prediction["keypoints_2d"].shape[-2])


def _mean_keypoints_3d(
    prediction: Values, target: Values, reduction: Reduction, *, layout: str | KeypointLayout | None
) -> Tensor:
    count = 3 * prediction["keypoints_3d"].shape[-2]
    return _keypoints_3d(prediction, target, reduction, layout=layout) / count


def _global_orient(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    weights = target.get("global_orient_weights")
    return rotation_loss(
        prediction["global_orient"], target["global_orient"], weights=weights, reduction=reduction
    )


def _body_pose(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    weights = target.get("body_pose_weights")
    each = None if weights is None else weights[..., None]
    entries = rotation_loss(prediction["body_pose"], target["body_pose"], weights=each, reduction="none")
    return _of_people(entries, each, reduction)


def _betas(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    weights = target.get("betas_weights")
    return betas_loss(prediction["betas"], target["betas"], weights=weights, reduction=reduction)


def _identity(
    prediction: Values,
    target: Values,
    reduction: Reduction,
    *,
    beta_weights: tuple[float, ...] | None = None,
    age_weight: float = 1.0,
    penalty: Penalty = "l2",
) -> Tensor:
    """Betas, and the age offset as one more of them; each may be unknown."""
    of_betas = target.get("betas_weights")
    of_age = target.get("age_offset_weights", of_betas)
    scale = None if beta_weights is None else prediction["betas"].new_tensor(beta_weights)
    betas = betas_loss(
        prediction["betas"], target["betas"],
        beta_weights=scale, weights=of_betas, penalty=penalty, reduction="none",
    )  # fmt: skip
    age = age_offset_loss(
        prediction["age_offset"], target["age_offset"], weights=of_age, penalty=penalty, reduction="none"
    )
    known = None if of_betas is None or of_age is None else (of_betas != 0) | (of_age != 0)
    return reduce(betas + age_weight * age, known, reduction)


def _with_age(values: Values) -> Tensor:
    return torch.cat((values["betas"], values["age_offset"][..., None]), -1)


def _adversarial(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    """Always divided by the number of people, as HMR2 does beside its sums."""
    scores = prediction["scores"]
    if reduction == "none":
        return generator_loss(scores, reduction="none") / max(scores[..., 0].numel(), 1)
    return generator_loss(scores, reduction="mean")


class _Prior(nn.Module):
    """An energy of one of the predicted tensors, a person."""

    def __init__(self, name: str, energy: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.energy = name, energy
        # A prior that is a module moves with the objective, even if it hides in a partial.
        self.inner = next(
            (f for f in (energy, getattr(energy, "func", None)) if isinstance(f, nn.Module)), None
        )

    def forward(self, prediction: Values, target: Values, reduction: Reduction) -> Tensor:
        return reduce(self.energy(prediction[self.name]), None, reduction)


def _square(values: Tensor) -> Tensor:
    return values.square().sum(-1)


def _robust(prediction: Values, target: Values, reduction: Reduction, *, entry_dims: int) -> Tensor:
    confidences = target.get("keypoints_2d_weights")
    squared = None if confidences is None else confidences.square()
    entries = reprojection_loss(
        prediction["keypoints_2d"], target["keypoints_2d"],
        weights=squared, penalty=partial(gmof, rho=100.0), reduction="none",
    )  # fmt: skip
    return _of_people(entries, squared, reduction, dims=entry_dims)


def _latent_video(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    return reduce(prediction["latent_pose"].square().sum((-2, -1)), None, reduction)


def _identity_of_video(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    frames = prediction["keypoints_2d"].shape[-3]
    return reduce(frames * _with_age(prediction).square().sum(-1), None, reduction)


def _motion(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    return reduce(velocity_loss(prediction["keypoints_3d"], reduction="none").sum((-2, -1)), None, reduction)


def _absolute_pose(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    pred, known = (
        torch.cat((v["global_orient"][..., None, :], v["body_pose"]), -2) for v in (prediction, target)
    )
    weights = [target.get(f"{name}_weights") for name in ("global_orient", "body_pose")]
    joints = pred.new_ones(pred.shape[:-1])
    for part, given in zip((slice(1), slice(1, None)), weights, strict=True):
        if given is not None:
            joints[..., part] = given[..., None].to(joints.dtype)
    difference, joints = residual(pred, known, joints, 3)
    entries = reduce(difference.abs().mean(-1), joints, "none")
    return _of_people(entries, joints, reduction) / pred.shape[-2]


def _weighted_betas(prediction: Values, target: Values, reduction: Reduction, *, age: bool) -> Tensor:
    count = len(METRIC_AWARE_BETA_WEIGHTS)
    if age:
        options = {"beta_weights": METRIC_AWARE_BETA_WEIGHTS, "age_weight": 10.0, "penalty": "l1"}
        return _identity(prediction, target, reduction, **options) / (count + 1)
    scale = prediction["betas"].new_tensor(METRIC_AWARE_BETA_WEIGHTS)
    weights = target.get("betas_weights")
    pred, known = prediction["betas"], target["betas"]
    loss = betas_loss(pred, known, beta_weights=scale, weights=weights, penalty="l1", reduction=reduction)
    return loss / count


def _relative_depth(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    _refuse("relative_depth", reduction)
    weights = target.get("depth_weights")
    return relative_metric_loss(
        prediction["depth"], target["depth"], image=target["image"], weights=weights, reduction="mean"
    )


def _fov(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    _refuse("fov", reduction)
    return fov_loss(prediction["fov"], target["fov"], weights=target.get("fov_weights"), reduction="sum")


def _refuse(name: str, reduction: Reduction) -> None:
    if reduction == "none":
        raise ValueError(f"reduction: the term {name!r} is not one of single people; leave it out for 'none'")
