"""Objectives: weighted sums of named losses, and a report of what each term contributed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from torch import Tensor, nn

from agebody.checks import Reduction, expect_choice, read_number

Values = Mapping[str, Any]
"""Tensors by name: what a network or a fit predicts, or what is known."""


class LossTerm(NamedTuple):
    """One loss of an objective."""

    weight: float
    loss: Callable[[Values, Values, Reduction], Tensor]
    """``(prediction, target, reduction)`` -> a number, or (*batch) if the reduction, over people, is "none".
    Parameters and buffers of a module become those of the objective."""
    prediction: tuple[str, ...]
    """Names that it needs of the prediction."""
    target: tuple[str, ...] = ()
    """Names that it needs of the target. Weights are looked up by the loss, and may be missing."""


class ObjectiveReport(NamedTuple):
    """The value of an objective."""

    total: Tensor
    """A number, or (*batch)."""
    terms: dict[str, Tensor]
    """The weighted terms, which sum to the total."""


class Objective(nn.Module):
    """A weighted sum of named losses.

    Prediction and target are mappings of tensors by name, such as ``keypoints_2d``, ``body_pose`` or
    ``betas``. Confidences and masks are in the target beside their values, such as ``keypoints_2d_weights``.

        objective = hmr2_objective().reweighted(keypoints_2d=0.02).without("adversarial")
        total, terms = objective(prediction, target)

    Args:
        terms: by name.
        reduction: over people, the default of a call.
    """

    def __init__(self, terms: Mapping[str, LossTerm], *, reduction: Reduction = "mean") -> None:
        super().__init__()
        expect_choice("reduction", reduction, get_args(Reduction))
        for name, term in terms.items():
            read_number(f"terms[{name!r}].weight", term.weight)
        self.reduction: Reduction = reduction
        self.terms = dict(terms)
        found = {name: term.loss for name, term in self.terms.items() if isinstance(term.loss, nn.Module)}
        if found:
            self.modules_of_terms = nn.ModuleDict(found)

    def forward(
        self, prediction: Values, target: Values | None = None, *, reduction: Reduction | None = None
    ) -> ObjectiveReport:
        """Return the sum, and its terms. Terms of weight 0 are left out.

        Args:
            prediction: tensors by name.
            target: tensors by name.
            reduction: over people; "none" gives one number per person, which some terms refuse.
        """
        reduction = reduction or self.reduction
        target = {} if target is None else target
        values = {}
        for name, term in self.terms.items():
            if term.weight == 0:
                continue
            for side, given, needed in (
                ("prediction", prediction, term.prediction),
                ("target", target, term.target),
            ):
                missing = [key for key in needed if key not in given]
                if missing:
                    raise ValueError(
                        f"{side}: the term {name!r} needs {', '.join(missing)}; give it, or leave the term "
                        f"out: objective.without({name!r})"
                    )
            values[name] = term.weight * term.loss(prediction, target, reduction)
        weighted = {*target, *(name for term in self.terms.values() for name in term.prediction)}
        unmatched = [key for key in target if key.endswith("_weights") and key[:-8] not in weighted]
        if unmatched:
            raise ValueError(f"target: {', '.join(unmatched)}: weights without the tensor that they weight")
        if not values:
            raise ValueError("terms: an objective needs at least one term with a weight other than 0")
        return ObjectiveReport(sum(values.values()), values)  # pyright: ignore

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term."""
        return {name: term.weight for name, term in self.terms.items()}

    def reweighted(self, **weights: float) -> Objective:
        """Return the same objective with other weights for some of its terms."""
        self._check(*weights)
        terms = {
            name: term._replace(weight=weights.get(name, term.weight)) for name, term in self.terms.items()
        }
        return Objective(terms, reduction=self.reduction)

    def without(self, *names: str) -> Objective:
        """Return the same objective with some of its terms left out."""
        self._check(*names)
        terms = {name: term for name, term in self.terms.items() if name not in names}
        return Objective(terms, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Return the weights, for print."""
        return ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items())

    def _check(self, *names: str) -> None:
        unknown = [name for name in names if name not in self.terms]
        if unknown:
            raise ValueError(f"terms: expected some of {', '.join(self.terms)}, got {', '.join(unknown)}")
