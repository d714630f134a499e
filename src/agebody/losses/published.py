"""Objectives of published methods, with the weights that they were published with.

Names of tensors, of the prediction and of the target alike:

    keypoints_2d    (*batch, K, 2)          in the image, in the unit that the objective states
    keypoints_3d    (*batch, K, 3)          points of a layout [m]
    global_orient   (*batch, 3, 3)          root rotation; (*batch, 3) for objectives in axis-angle
    body_pose       (*batch, J - 1, 3, 3)   the other rotations; (*batch, J - 1, 3) in axis-angle
    betas           (*batch, N)
    age_offset      (*batch)

The target may hold weights of each under its name with ``_weights`` appended: (*batch, K) for keypoints,
(*batch) for the rest, or (*batch, J - 1) for ``body_pose``, 0 for what is not known. So it may for tensors of
the prediction alone, such as ``body_pose`` with a pose prior. A "mean" over people divides by the number of
people with any label, as the public code does: weights are those of a person's entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.cameras.weak import MAHMR_RESOLUTION
from agebody.checks import (
    Reduction,
    apply_mask,
    at_least_float32,
    read_count,
    read_nonnegative,
    read_positive,
    read_texts,
    reduce,
    residual,
)
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout, get_layout
from agebody.losses.adversarial import adversarial_loss
from agebody.losses.age import age_class_loss, age_offset_loss
from agebody.losses.depth import fov_loss, relative_metric_loss
from agebody.losses.keypoints import keypoints_3d_loss, reprojection_loss, rooted_weights
from agebody.losses.objective import LossTerm, Objective, Values
from agebody.losses.parameters import METRIC_AWARE_BETA_WEIGHTS, betas_loss, rotation_loss
from agebody.losses.priors import hyperextension_prior
from agebody.losses.robust import Penalty, gmof
from agebody.losses.temporal import velocity_loss


def hmr2_objective(*, layout: str | KeypointLayout = "hmr2_44") -> Objective:
    """Return the objective of HMR2 (Goel et al., ICCV 2023), weighted as its code: sums over everything.

    ``keypoints_2d`` are in the crop, in [-1/2, 1/2]; rotations are matrices; ``scores`` (*batch, D) are those
    of a discriminator that judges the prediction, see `PoseDiscriminator`, divided by the number of people.
    People with weight 0 at the root of ``keypoints_3d`` are left out of that term; the public code, which has
    no such weights in its data, aligns them by whatever values are there.

    Args:
        layout: of the 3D keypoints; they are compared relative to its root.
    """
    return Objective(_hmr2_terms(layout, 0.05, 0.01, 0.001, 0.001, 0.0005, 0.0005), reduction="sum")


def aionhmr_objective(
    *, layout: str | KeypointLayout = "hmr2_44", age_class_weight: float = 0.0
) -> Objective:
    """Return the objective of AionHMR's regressor: HMR2's, reweighted, with the age offset as a beta.

    Names and people without a root as in `hmr2_objective`; ``age_offset`` is needed beside ``betas``. The
    public code takes 0 for the age offset of everyone without a label, children among them, and its
    discriminator judges eleven betas against recorded adults. Weights of 0 and `age_class_loss` are the
    remedy of the first, a discriminator of ten betas, or recorded people of every age, that of the second.

    Args:
        layout: of the 3D keypoints; they are compared relative to its root.
        age_class_weight: of `age_class_loss`, for people of whom ``age_class`` in the target states the class
            alone; people with a weighted age offset are left out. 0.03 is twenty times that of the betas,
            because offsets outside their class are off by tenths.
    """
    read_nonnegative("age_class_weight", age_class_weight)
    terms = _hmr2_terms(layout, 0.05, 0.02, 0.005, 0.001, 0.0015, 0.0005)
    terms["betas"] = LossTerm(terms["betas"].weight, partial(_identity, age=True), WITH_AGE, WITH_AGE)
    if age_class_weight:
        terms["age_class"] = LossTerm(age_class_weight, _age_class, ("age_offset",), ("age_class",))
    return Objective(terms, reduction="sum")


def aionhmr_fitting_objective(*, smoothness: float = 1.0) -> Objective:
    """Return the objective of AionHMR's fit of a video, after SLAHMR.

        0.001 sum c^2 gmof(x - x'; 100) + 0.04 |z|^2 + 0.05 T |[b, a]|^2 + s / 2 sum |J_t+1 - J_t|^2

    ``keypoints_2d`` (*batch, T, K, 2) in pixels, weighted by the squares of confidences c; ``latent_pose``
    (*batch, T, Z) of the user's own pose prior (there VPoser's); ``betas`` (*batch, N) and ``age_offset``
    (*batch) of one person; ``keypoints_3d`` (*batch, T, K, 3) in the world [m]. The public code masks frames
    in which a person is not seen: give ``latent_pose_weights`` and ``keypoints_3d_weights`` (*batch, T) with
    the target; a step weighs the product of its two frames.

    Args:
        smoothness: s; 1 in the first stage, 10 in the second.
    """
    smoothness = read_nonnegative("smoothness", smoothness)
    return Objective(
        {
            "keypoints_2d": _compared(0.001, "keypoints_2d", ROBUST_REPROJECTION, dims=2, squared=True),
            "pose_prior": _predicted(0.04, "latent_pose", _framewise_squares, framewise=True),
            "shape_prior": LossTerm(0.05, _identity_of_video, (*WITH_AGE, "keypoints_2d")),
            "smoothness": _predicted(smoothness / 2, "keypoints_3d", _squared_steps, framewise=True),
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
"""Weights of pose prior, shape prior and intersection in the stages of SMPLify-X, which squares the first
two."""


def smplify_x_objective(
    stage: int,
    *,
    data_weight: float = 1.0,
    pose_prior: Callable[[Tensor], Tensor] | None = None,
    joint_names: Sequence[str] = SMPL_JOINT_NAMES[1:],
    intersection: Callable[[Tensor], Tensor] | None = None,
) -> Objective:
    """Return a stage of SMPLify-X (Pavlakos et al., CVPR 2019), weighted as its code: sums over people.

        d^2 sum (w c)^2 gmof(x - x'; 100) + p^2 prior(pose) + s^2 |b|^2 + 3.17 p sum exp(s_i theta_i)^2 + i C

    with p, s and i of `SMPLIFY_X_STAGES`. ``keypoints_2d`` are in pixels, their weights the products of joint
    weight w and confidence c; ``body_pose`` is in axis-angle; ``betas``; ``vertices`` (*batch, V, 3) with an
    intersection. The terms of hands, jaw and expression do not apply to these bodies.

    Args:
        stage: 0 to 4.
        data_weight: d; the public code takes 1000 / image height.
        pose_prior: ``body_pose`` (*batch, J - 1, 3) -> (*batch), such as ``partial(prior, reduction="none")``
            with a `MaxMixturePrior`. None: the square of ``latent_pose`` (*batch, Z), as with VPoser.
        joint_names: of ``body_pose``, for the hyperextension prior.
        intersection: ``vertices`` -> (*batch); None leaves the term out.
    """
    read_count("stage", stage, len(SMPLIFY_X_STAGES) - 1)
    data_weight = read_nonnegative("data_weight", data_weight)
    joint_names = read_texts("joint_names", joint_names)
    pose, shape, apart = SMPLIFY_X_STAGES[stage]
    hyperextension = partial(hyperextension_prior, joint_names=joint_names, reduction="none")
    prior = ("latent_pose", _squares) if pose_prior is None else ("body_pose", pose_prior)
    terms = {
        "keypoints_2d": _compared(data_weight**2, "keypoints_2d", ROBUST_REPROJECTION, squared=True),
        "pose_prior": _predicted(pose**2, *prior),
        "shape_prior": _predicted(shape**2, "betas", _squares),
        "hyperextension_prior": _predicted(3.17 * pose, "body_pose", hyperextension),
    }
    if intersection is not None:
        terms["intersection"] = _predicted(apart, "vertices", intersection)
    return Objective(terms, reduction="sum")


def metric_aware_objective(
    *, image_size: float = MAHMR_RESOLUTION, layout: str | KeypointLayout | None = "smpl24", age: bool = False
) -> Objective:
    """Return the objective of Metric-Aware HMR (Wang et al. 2025) on matched people, weighted as its code.

    Absolute errors: per person their mean over joints and coordinates, over betas, over angles; then the mean
    over people with labels, of ``keypoints_2d`` over all people, also those who show no point.
    ``keypoints_2d`` are in pixels; rotations in axis-angle; ``depth`` (*batch) [m] with ``image`` (*batch),
    the number of each person's image, in the target; ``fov`` (*images) are vertical fields of view [rad],
    summed over images. The terms of detection (boxes, confidences, scale maps) belong to the detector.

    Args:
        image_size: longer side of the network's input, by which image coordinates are divided [pixels].
        layout: of the 3D keypoints; they are compared relative to its root. None: as given.
        age: whether the age offset is compared too, as the eleventh of the betas.
    """
    pose = ("global_orient", "body_pose")
    identity = WITH_AGE if read_flag("age", age) else WITH_AGE[:1]
    image_size = read_positive("image_size", image_size, "a side", " [pixels]")
    of_betas = partial(
        _identity, age=age, beta_weights=METRIC_AWARE_BETA_WEIGHTS, age_weight=10.0, penalty="l1", mean=True
    )
    return Objective(
        {
            "pose": LossTerm(5.0, _absolute_pose, pose, pose),
            "betas": LossTerm(3.0, of_betas, identity, identity),
            "keypoints_3d": _points(8.0, layout, mean_over=3),
            "keypoints_2d": _compared(
                40.0, "keypoints_2d", reprojection_loss, mean_over=2 * image_size, everybody=True
            ),
            "relative_depth": LossTerm(0.5, _relative_depth, ("depth",), ("depth", "image")),
            "fov": LossTerm(0.5, _fov, ("fov",), ("fov",)),
        }
    )


WITH_AGE = ("betas", "age_offset")
ROBUST_REPROJECTION = partial(reprojection_loss, penalty=partial(gmof, rho=100.0))


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
        "keypoints_3d": _points(keypoints_3d, layout),
        "keypoints_2d": _compared(keypoints_2d, "keypoints_2d", reprojection_loss),
        "global_orient": _compared(global_orient, "global_orient", rotation_loss, dims=0),
        "body_pose": _compared(body_pose, "body_pose", rotation_loss, per_person=True),
        "betas": LossTerm(betas, _identity, ("betas",), ("betas",)),
        "adversarial": LossTerm(adversarial, _adversarial, ("scores",)),
    }


def _compared(weight: float, name: str, loss: Callable[..., Tensor], **options: Any) -> LossTerm:
    """Return the term of a tensor that prediction and target both have; options as in `_compare`."""
    return LossTerm(weight, partial(_compare, name=name, loss=loss, **options), (name,), (name,))


def _points(weight: float, layout: str | KeypointLayout | None, **options: Any) -> LossTerm:
    """Return the term of points relative to the root of a layout; people without their root do not count."""
    layout = None if layout is None else get_layout(layout)
    loss = partial(keypoints_3d_loss, layout=layout)
    return _compared(weight, "keypoints_3d", loss, rooted=layout, **options)


def _compare(
    prediction: Values,
    target: Values,
    reduction: Reduction,
    *,
    name: str,
    loss: Callable[..., Tensor],
    dims: int = 1,
    per_person: bool = False,
    squared: bool = False,
    mean_over: float | None = None,
    everybody: bool = False,
    rooted: str | KeypointLayout | None = None,
) -> Tensor:
    """Compare a tensor with its target, whose entries have ``dims`` dimensions per person.

    With ``per_person``, weights of rotations (*batch, J, 3, 3) may be (*batch); with ``squared``, weights are
    the squares of what the target has; with a layout in ``rooted``, people without its root do not count.
    """
    weights = target.get(f"{name}_weights")
    if weights is not None:
        wider = per_person and weights.dim() < prediction[name].dim() - 2
        weights = weights[..., None] if wider else weights
        weights = weights.to(prediction[name]).square() if squared else weights
        weights = rooted_weights(weights, prediction[name], rooted)
    terms = loss(prediction[name], target[name], weights=weights, reduction="none")
    return _over_people(terms, weights, reduction, dims=dims, mean_over=mean_over, everybody=everybody)


def _over_people(
    terms: Tensor,
    weights: Tensor | None,
    reduction: Reduction,
    *,
    dims: int = 1,
    mean_over: float | None = None,
    everybody: bool = False,
) -> Tensor:
    """Sum weighted terms per person, and reduce over people with an entry of any weight, or over everybody.

    With ``mean_over``, the sum is divided by the number of the person's entries times this.
    """
    counted = None if weights is None else weights.expand(terms.shape) != 0
    entries = 1
    if dims:
        terms = terms.flatten(-dims)
        entries = terms.shape[-1]
        terms = terms.sum(-1)
        counted = None if counted is None else counted.flatten(-dims).any(-1)
    total = reduce(terms, None if everybody else counted, reduction)
    return total if mean_over is None else total / (mean_over * entries)


def _identity(
    prediction: Values,
    target: Values,
    reduction: Reduction,
    *,
    age: bool = False,
    beta_weights: tuple[float, ...] | None = None,
    age_weight: float = 1.0,
    penalty: Penalty = "l2",
    mean: bool = False,
) -> Tensor:
    """Compare betas and, as one more of them, the age offset; each may be unknown."""
    betas = prediction["betas"]
    known = of_betas = target.get("betas_weights")
    scale = None if beta_weights is None else betas.new_tensor(beta_weights)
    options = {"penalty": penalty, "reduction": "none"}
    terms = betas_loss(betas, target["betas"], beta_weights=scale, weights=of_betas, **options)
    if age:
        of_age = target.get("age_offset_weights", of_betas)
        pred, true = prediction["age_offset"], target["age_offset"]
        terms = terms + age_weight * age_offset_loss(pred, true, weights=of_age, **options)
        known = None if of_betas is None or of_age is None else (of_betas != 0) | (of_age != 0)
    loss = _over_people(terms, known, reduction, dims=0)
    return loss / (betas.shape[-1] + age) if mean else loss


def _age_class(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    """Compare age offsets with classes, of people whose offset is not labelled."""
    labelled = target.get("age_offset_weights", target.get("betas_weights"))
    age = prediction["age_offset"]
    unknown = torch.zeros_like(age) if labelled is None else (labelled == 0).expand(age.shape)
    return age_class_loss(age, target["age_class"], weights=unknown, reduction=reduction)


def _adversarial(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    """Return the generator's loss, which HMR2 always divides by the number of people, beside its sums."""
    scores = prediction["scores"]
    if reduction == "none":
        return adversarial_loss(scores, True, reduction="none") / max(scores[..., 0].numel(), 1)
    return adversarial_loss(scores, True, reduction="mean")


class _Energy(nn.Module):
    """The energy of one predicted tensor, per person; if framewise, it takes weights of frames."""

    def __init__(self, name: str, energy: Callable[..., Tensor], framewise: bool) -> None:
        super().__init__()
        self.name, self.energy, self.framewise = name, energy, framewise
        # A prior that is a module moves with the objective, also inside a partial.
        inner = (energy, getattr(energy, "func", None))
        self.inner = next((f for f in inner if isinstance(f, nn.Module)), None)

    def forward(self, prediction: Values, target: Values, reduction: Reduction) -> Tensor:
        values, weights = prediction[self.name], target.get(f"{self.name}_weights")
        if self.framewise:
            return reduce(self.energy(values, weights), None, reduction)
        if weights is not None:
            values = apply_mask(values, weights, values.dim() - weights.dim())
        return reduce(self.energy(values), weights, reduction)


def _predicted(
    weight: float, name: str, energy: Callable[..., Tensor], *, framewise: bool = False
) -> LossTerm:
    return LossTerm(weight, _Energy(name, energy, framewise), (name,))


def _squares(values: Tensor) -> Tensor:
    return at_least_float32(values).square().sum(-1)


def _framewise_squares(values: Tensor, weights: Tensor | None) -> Tensor:
    return reduce(_squares(apply_mask(values, weights, 1)), weights, "none").sum(-1)


def _squared_steps(points: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None and weights.dim() < points.dim() - 1:
        weights = weights[..., None]
    return velocity_loss(points, weights=weights, reduction="none").sum((-2, -1))


def _identity_of_video(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    frames = prediction["keypoints_2d"].shape[-3]
    squares = _squares(prediction["betas"]) + prediction["age_offset"].square()
    return reduce(frames * squares, None, reduction)


def _absolute_pose(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    pred, known = (
        torch.cat((values["global_orient"][..., None, :], values["body_pose"]), -2)
        for values in (prediction, target)
    )
    weights = pred.new_ones(pred.shape[:-1])
    for name, part in (("global_orient", slice(1)), ("body_pose", slice(1, None))):
        given = target.get(f"{name}_weights")
        if given is not None:
            given = given if given.dim() == weights.dim() else given[..., None]
            weights[..., part] = given.to(weights.dtype)
    difference, _ = residual(pred, known, weights, 3)
    terms = reduce(difference.abs().sum(-1), weights, "none")
    return _over_people(terms, weights, reduction, mean_over=3)


def _relative_depth(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    _refuse("relative_depth", reduction)
    weights = target.get("depth_weights")
    return relative_metric_loss(prediction["depth"], target["depth"], image=target["image"], weights=weights)


def _fov(prediction: Values, target: Values, reduction: Reduction) -> Tensor:
    _refuse("fov", reduction)
    return fov_loss(prediction["fov"], target["fov"], weights=target.get("fov_weights"), reduction="sum")


def _refuse(name: str, reduction: Reduction) -> None:
    if reduction == "none":
        raise ValueError(f"reduction: the term {name!r} has no value per person; leave it out for 'none'")
