"""Metrics that accumulate over batches and processes, with torchmetrics' interface: ``agebody[metrics]``.

`MeanMetric` takes any function of `agebody.metrics` that is a mean of errors, and its options once; then its
other arguments batch by batch. It computes the mean over all entries that count, as if they had come at
once: the states are a sum and a total weight in float64, which are added over processes. Without entries the
mean is NaN. 16-bit inputs are computed in float32."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.age import AGE_CLASSES, age_class
from agebody.checks import Weights, at_least_float32, expect, read_nonnegative
from agebody.keypoints import KeypointLayout
from agebody.metrics.average_precision import keypoint_ap
from agebody.metrics.depth import LENGTH, MISS_PENALTY, DepthRelations, depth_relations
from agebody.metrics.matching import detection_scores, normalized_error
from agebody.metrics.similarity import oks_sigmas

try:
    import torchmetrics
except ImportError as error:
    problem = (
        'agebody.metrics.streaming needs torchmetrics, which is not installed; pip install "agebody[metrics]"'
    )
    raise ImportError(problem) from error

__all__ = ["PCDR", "ByAgeClass", "KeypointAveragePrecision", "MeanMetric", "NormalizedError"]


class _Accumulator(torchmetrics.Metric):
    """A metric whose states include its class and arguments.

    A `torchmetrics.MetricCollection` lets metrics share their states if these are equal after the first
    batch, and sums may be equal by chance. So the class of a metric and its arguments are a state, too."""

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    identity: Tensor
    _arguments: str

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Keep the arguments as text."""
        made = super().__new__(cls)
        given = [*map(_text, args), *(f"{name}={_text(value)}" for name, value in options.items())]
        made._arguments = ", ".join(given)
        return made

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        name = f"{type(self).__module__}.{type(self).__qualname__}({self._arguments})"
        # Bytes: the tolerance with which the collection compares is less than one.
        identity = torch.tensor(list(hashlib.sha256(name.encode()).digest()), dtype=torch.uint8)
        self.add_state("identity", identity, dist_reduce_fx="max")

    def add_sums(self, *names: str, size: tuple[int, ...] = ()) -> None:
        """Add states that are sums, in float64."""
        for name in names:
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def merge_state(self, incoming_state: dict[str, Any] | torchmetrics.Metric) -> None:
        """Add the state of another metric of the same class and arguments; others are refused."""
        theirs = incoming_state
        if isinstance(theirs, torchmetrics.Metric):
            theirs = {"identity": getattr(theirs, "identity", None)}
        identity = theirs.get("identity")
        if not isinstance(identity, Tensor) or not torch.equal(identity.cpu(), self.identity.cpu()):
            given = f", got {incoming_state!r}" if isinstance(incoming_state, torchmetrics.Metric) else ""
            raise ValueError(f"incoming_state: expected the state of another {self!r}{given}")
        super().merge_state(incoming_state)

    def extra_repr(self) -> str:
        """Return the arguments as they were given."""
        return self._arguments


class MeanMetric(_Accumulator):
    """The mean of a metric's errors over all entries.

    Args:
        metric: a function of `agebody.metrics`, such as `agebody.metrics.mpjpe`; or one of your own that
            returns one number per entry and what each weighs, None for 1.
        higher_is_better: of a function of your own.
        options: arguments of the function that stay the same over batches, and those of
            `torchmetrics.Metric`, such as ``dist_sync_on_step``.
    """

    total: Tensor
    count: Tensor

    def __init__(
        self, metric: Callable[..., Any], *, higher_is_better: bool | None = None, **options: Any
    ) -> None:
        if not callable(metric):
            raise TypeError(f"metric: expected a function of errors, got {metric!r}")
        names = inspect.signature(metric).parameters.keys() - {"reduction"}
        own = {name: options.pop(name) for name in names & options.keys()}
        super().__init__(**options)
        self.metric, self.options, self._higher_is_better = metric, own, higher_is_better
        self.add_sums("total", "count")

    @property
    def higher_is_better(self) -> bool | None:  # pyright: ignore
        """Whether a larger mean is a better one."""
        return getattr(self.metric, "higher_is_better", self._higher_is_better)

    def widened_errors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return errors computed in at least float32, and weights for all of them in float64."""
        args, kwargs = tuple(map(_widened, args)), {name: _widened(value) for name, value in kwargs.items()}
        errors = getattr(self.metric, "errors", self.metric)
        values, weights = errors(*args, **self.options, **kwargs)
        values = values.detach().double()
        return values, torch.ones_like(values) if weights is None else weights.detach().double()

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch; arguments as of the metric's function."""
        values, weights = self.widened_errors(*args, **kwargs)
        self.total += _weighted(values, weights).sum()
        self.count += weights.sum()

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean so far, in float64."""
        return self.total / self.count


class NormalizedError(MeanMetric):
    """`agebody.metrics.normalized_error` over batches: NMJE of `mpjpe`, NMVE of `pve`.

    The mean over matched people, divided by the F1 score of the matching.

    Args:
        metric: function of the error.
        options: as of `MeanMetric`.
    """

    matched: Tensor
    false_positives: Tensor
    missed: Tensor

    def __init__(self, metric: Callable[..., Any], **options: Any) -> None:
        super().__init__(metric, **options)
        self.add_sums("matched", "false_positives", "missed")

    def update(self, *args: Any, false_positives: int, missed: int, **kwargs: Any) -> None:
        """Add a batch.

        Args:
            args: of the error, of matched people.
            false_positives: number of predictions without a person.
            missed: number of people without a prediction.
            kwargs: of the error.
        """
        values, weights = self.widened_errors(*args, **kwargs)
        self.total += _weighted(values, weights).sum()
        self.count += weights.sum()
        self.matched += (weights != 0).sum()
        self.false_positives += false_positives
        self.missed += missed

    def compute(self) -> Float[Tensor, ""]:
        """Return the error so far over F1; NaN if nobody was matched."""
        found = detection_scores(int(self.matched), int(self.false_positives), int(self.missed))
        mean = super().compute()
        return mean.new_tensor(normalized_error(mean.item(), found.f1)) if self.count else mean


class PCDR(_Accumulator):
    """`agebody.metrics.pcdr` over batches of images; arguments as there, and of `torchmetrics.Metric`.

    With ``by_age``, it takes ``age_classes``, and computes one rate per class by its name, and ``"all"``.
    """

    higher_is_better = True
    right: Tensor
    pairs: Tensor
    missed: Tensor

    def __init__(
        self,
        *,
        by_age: bool = False,
        threshold: float = 0.2,
        same_layer: float = 0.0,
        penalty: float = MISS_PENALTY,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.by_age, self.threshold = by_age, read_nonnegative("threshold", threshold, LENGTH, finite=False)
        self.same_layer = read_nonnegative("same_layer", same_layer, LENGTH, finite=False)
        self.penalty = read_nonnegative("penalty", penalty)
        self.add_sums(*DepthRelations._fields, size=(1 + len(AGE_CLASSES) * by_age,))

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        age_classes: Tensor | None = None,
        weights: Weights = None,
        missed: Tensor | None = None,
    ) -> None:
        """Add a batch of images; arguments as of `agebody.metrics.depth_relations`."""
        if self.by_age != (age_classes is not None):
            wanted = "indices of classes" if self.by_age else "None"
            raise ValueError(f"age_classes: expected {wanted} with by_age={self.by_age}")
        kinds = [None] if age_classes is None else [age_classes, None]
        for given in kinds:
            counts = depth_relations(
                _widened(pred),
                _widened(target),
                weights=weights,
                missed=missed,
                age_classes=given,
                threshold=self.threshold,
                same_layer=self.same_layer,
            )
            rates = slice(-1, None) if given is None else slice(len(AGE_CLASSES))
            for name, part in counts._asdict().items():
                state = getattr(self, name)
                state[rates] += part.reshape(-1, len(state[rates])).sum(0)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return the rate so far, NaN without pairs."""
        rates = DepthRelations(self.right, self.pairs, self.missed).rate(penalty=self.penalty)
        if not self.by_age:
            return rates[0]
        return dict(zip([*(kind.name for kind in AGE_CLASSES), "all"], rates, strict=True))


class KeypointAveragePrecision(_Accumulator):
    """`agebody.metrics.keypoint_ap` over batches: detections and people are kept until it is computed.

    Arguments as of the function, and of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, *, sigmas: Any = "coco17", max_detections: int = 20, **options: Any) -> None:
        super().__init__(**options)
        self.sigmas, self.max_detections = sigmas, max_detections
        self.points = len(oks_sigmas(sigmas) if isinstance(sigmas, (str, KeypointLayout)) else sigmas)
        for name in _DETECTION_STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        pred: Tensor,
        scores: Tensor,
        pred_images: Tensor,
        target: Tensor,
        areas: Tensor,
        target_images: Tensor,
        *,
        weights: Weights = None,
        boxes: Tensor | None = None,
        crowd: Tensor | None = None,
        pred_areas: Tensor | None = None,
    ) -> None:
        """Add images; arguments as of the function. Parts of one image may come in different batches."""
        for name, points in (("pred", pred), ("target", target)):
            expect(name, points, self.points, 2)
        people = target.shape[:-1]
        # Every batch has every state, of one type, because those of all processes are concatenated.
        if weights is None:
            weights = target.new_ones(people)
        if boxes is None:
            boxes = target.new_full((len(target), 4), torch.nan)
        if pred_areas is None:
            pred_areas = torch.full_like(scores, torch.nan)
        given = {
            "pred": pred,
            "scores": scores,
            "pred_images": pred_images,
            "target": target,
            "areas": areas,
            "target_images": target_images,
            "weights": (weights != 0).expand(people),
            "boxes": boxes,
            "crowd": torch.zeros_like(areas) if crowd is None else crowd,
            "pred_areas": pred_areas,
        }
        for name, value in given.items():
            getattr(self, name).append(value.detach().to(_DETECTION_STATES[name][1]))

    def sync(self, *args: Any, **options: Any) -> None:
        """Synchronise as every metric does; a process without images takes part with empty tensors."""
        for name in _DETECTION_STATES:
            if not len(getattr(self, name)):
                setattr(self, name, [self._empty(name)])
        super().sync(*args, **options)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Return COCO's ten numbers by name; NaN before any person."""
        together = {}
        for name in _DETECTION_STATES:
            parts = getattr(self, name)  # a list, or one tensor after synchronisation
            together[name] = parts if isinstance(parts, Tensor) else torch.cat([self._empty(name), *parts])
        numbers = keypoint_ap(**together, sigmas=self.sigmas, max_detections=self.max_detections)
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in numbers._asdict().items()
        }

    def _empty(self, name: str) -> Tensor:
        entry, dtype = _DETECTION_STATES[name]
        sizes = [self.points if size is None else size for size in entry]
        return torch.zeros(0, *sizes, dtype=dtype, device=self.device)


_DETECTION_STATES: dict[str, tuple[tuple[int | None, ...], torch.dtype]] = {
    "pred": ((None, 2), torch.float64),
    "scores": ((), torch.float64),
    "pred_images": ((), torch.int64),
    "target": ((None, 2), torch.float64),
    "areas": ((), torch.float64),
    "target_images": ((), torch.int64),
    "weights": ((None,), torch.bool),
    "boxes": ((4,), torch.float64),
    "crowd": ((), torch.bool),
    "pred_areas": ((), torch.float64),
}
"""Arguments of `keypoint_ap`: shape of an entry, in which None is the number of keypoints, and type."""


class ByAgeClass(_Accumulator):
    """A mean metric for each of ``AGE_CLASSES``, and for all.

    Args:
        metric: computes the errors; its own states are not used. `NormalizedError`, which also counts people
            without a match, is not a mean of errors.
        options: of `torchmetrics.Metric`.
    """

    total: Tensor
    count: Tensor

    def __init__(self, metric: MeanMetric, **options: Any) -> None:
        kind = type(metric)
        if not issubclass(kind, MeanMetric) or kind.compute is not MeanMetric.compute:
            raise TypeError(f"metric: expected one that computes a mean of errors, got {kind.__name__}")
        super().__init__(**options)
        self.metric = metric
        self.add_sums("total", "count", size=(len(AGE_CLASSES),))

    def update(
        self,
        *args: Any,
        age_classes: Int[Tensor, "*batch"] | None = None,
        age_offset: Float[Tensor, "*batch"] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a batch.

        Args:
            args: of the metric.
            age_classes: (*batch), indices into ``AGE_CLASSES``, of people or of sequences. Other indices,
                such as -1, do not count.
            age_offset: (*batch), true age offsets, instead.
            kwargs: of the metric.
        """
        classes = age_classes if age_offset is None else age_class(age_offset)
        if classes is None or (age_classes is not None and age_offset is not None):
            raise ValueError("age_classes: expected either age_classes or age_offset")
        values, weights = self.metric.widened_errors(*args, **kwargs)
        shape = tuple(classes.shape)
        if tuple(values.shape[: len(shape)]) != shape:
            raise ValueError(
                f"age_classes: expected one for each of {tuple(values.shape)} entries, got {shape}"
            )
        ids = torch.arange(len(AGE_CLASSES), device=values.device)
        member = classes.reshape(*shape, *[1] * (values.dim() - len(shape)), 1) == ids
        weights = weights[..., None] * member
        self.total += _weighted(values[..., None], weights).reshape(-1, len(ids)).sum(0)
        self.count += weights.reshape(-1, len(ids)).sum(0)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Return the mean of each class by its name, NaN for those without entries, and ``"all"``."""
        means = {kind.name: self.total[i] / self.count[i] for i, kind in enumerate(AGE_CLASSES)}
        return means | {"all": self.total.sum() / self.count.sum()}


def _widened(value: Any) -> Any:
    """Return 16-bit tensors in float32, all else as it is."""
    return at_least_float32(value) if isinstance(value, Tensor) else value


def _text(value: Any) -> str:
    """Return a value as text; functions by name, because addresses differ between processes."""
    name = getattr(value, "__qualname__", "<")
    return repr(value) if "<" in name else f"{value.__module__}.{name}"


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    return torch.where(weights != 0, values * weights, 0)
