"""SPIN's loop (Kolotouros et al., ICCV 2019): fits that start at predictions become labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.checks import Weights
from agebody.fitting import fit_keypoints
from agebody.keypoints import KeypointLayout
from agebody.parameters import BodyParameters
from agebody.rotations import axis_angle_to_matrix


class PseudoTruth(NamedTuple):
    """The best body known of each person, and how far its keypoints are off."""

    parameters: BodyParameters
    error: Float[Tensor, " N"]
    """Mean distance between its keypoints and those observed, weighted by confidence [pixels]; infinite where
    no body is known."""

    @classmethod
    def none(cls, body: BodyModel, count: int) -> PseudoTruth:
        """Return that nothing is known of so many people."""
        zeros = BodyParameters.zeros(body, count)
        return cls(zeros, zeros.age_offset + torch.inf)

    def select(self, rows: Tensor) -> PseudoTruth:
        """Return some of the people."""
        return PseudoTruth(self.parameters.map(lambda part: part[rows]), self.error[rows])

    def replaced(self, rows: Tensor, others: PseudoTruth) -> PseudoTruth:
        """Return everyone, with others in the place of some."""
        pairs = zip(self.parameters, others.parameters, strict=True)
        parts = BodyParameters(*(mine.index_copy(0, rows, part) for mine, part in pairs))
        return PseudoTruth(parts, self.error.index_copy(0, rows, others.error))

    def target(self, largest_error: float, *, largest_beta: float = 3.0) -> dict[str, Tensor]:
        """Return labels for an objective; of weight 0 where the error is larger, and SPIN's rule for betas.

        Args:
            largest_error: of labels that count [pixels].
            largest_beta: people with a larger one have no label of betas and age offset.
        """
        p = self.parameters
        good = (self.error <= largest_error).to(p.betas)
        usual = good * (p.betas.abs() <= largest_beta).all(-1)
        found = {
            "global_orient": axis_angle_to_matrix(p.global_orient),
            "body_pose": axis_angle_to_matrix(p.body_pose),
            "betas": p.betas,
            "age_offset": p.age_offset,
        }
        weights = {name: usual if name in ("betas", "age_offset") else good for name in found}
        return found | {f"{name}_weights": weight for name, weight in weights.items()}


def refit(
    body: BodyModel,
    known: PseudoTruth,
    predicted: BodyParameters,
    keypoints: Float[Tensor, "N K 2"],
    camera: Camera,
    *,
    weights: Weights = None,
    layout: str | KeypointLayout = "hmr2_44",
    start_sd: Mapping[str, float | Tensor] | None = None,
    **options: Any,
) -> PseudoTruth:
    """Fit people from where a network sees them, and keep for each the better of the fit and what is known.

    Args:
        body: the layer.
        known: of these people.
        predicted: with the translation: ``prediction.parameters(weak_to_translation(...))``.
        keypoints: observed [pixels].
        camera: of the images.
        weights: confidences (N, K), as in `fit_keypoints`.
        layout: of the keypoints.
        start_sd: how far the prediction may be off, as in `fit_keypoints`; None only starts there.
        options: others of `fit_keypoints`, such as ``stages`` or ``age_class``.
    """
    fit = fit_keypoints(
        body, keypoints, camera, weights=weights, layout=layout, start=predicted, start_sd=start_sd, **options
    )
    counted = torch.ones_like(keypoints[..., 0]) if weights is None else weights.expand_as(keypoints[..., 0])
    enough = (counted != 0).sum(
        -1
    ) >= 4  # without these, a fit stays at its start, and its error says nothing
    better = enough & (fit.error < known.error)
    pairs = zip(fit.parameters, known.parameters, strict=True)
    parts = (torch.where(better.reshape(-1, *[1] * (new.dim() - 1)), new, old) for new, old in pairs)
    return PseudoTruth(BodyParameters(*parts), torch.where(better, fit.error, known.error))
