"""Metrics that add up over batches and processes, with torchmetrics' interface: ``agebody[metrics]``.

Each takes what its function takes, batch by batch, and computes the mean over all entries that count, as if
they had come at once: the states are a sum in float64 and a count, added over processes. Without entries it
is NaN. Numbers of 16 bits are computed with in float32.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from agebody.age import AGE_CLASSES, age_class
from agebody.checks import Weights, at_least_float32, expect
from agebody.keypoints import KeypointLayout
from agebody.metrics import pose, world
from agebody.metrics.average_precision import keypoint_ap
from agebody.metrics.correctness import HEAD_SHARE, mpckh, pck
from agebody.metrics.depth import MISS_PENALTY, DepthRelations, depth_relations
from agebody.metrics.matching import detection_scores, nmje
from agebody.metrics.pose import Errors, Layout, Root
from agebody.metrics.similarity import oks, oks_sigmas


class _Sums(Metric):
    """A metric whose states are sums.

    Metrics of a `torchmetrics.MetricCollection` whose states are equal after the first batch share them from
    then on, and sums may be equal by chance. So the class of a metric and its arguments are a state, too.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    _arguments: str

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Notes the arguments."""
        made = super().__new__(cls)
        given = [*map(repr, args), *(f"{name}={value!r}" for name, value in options.items())]
        made._arguments = ", ".join(given)
        return made

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        name = f"{type(self).__module__}.{type(self).__qualname__}({self._arguments})"
        # Bytes: the collection's tolerance is less than one.
        identity = torch.tensor(list(hashlib.sha256(name.encode()).digest()), dtype=torch.uint8)
        self.add_state("identity", identity, dist_reduce_fx="max")

    def extra_repr(self) -> str:
        """The arguments, as they were given."""
        return self._arguments


class MeanMetric(_Sums):
    """The mean of something over all entries: write `errors`, and the rest is here.

    Args:
        options: of `torchmetrics.Metric`, such as ``dist_sync_on_step``.
    """

    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def errors(self, *args: Any, **kwargs: Any) -> Errors:
        """One number an entry, and which of them count."""

    def widened_errors(self, *args: Any, **kwargs: Any) -> Errors:
        """`errors`, of float32 where float16 or bfloat16 is given."""
        return self.errors(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Adds a batch; arguments as of the function of this name."""
        values, counted = self.widened_errors(*args, **kwargs)
        self.total += _kept(values, counted).sum()
        self.count += values.numel() if counted is None else counted.sum()

    def compute(self) -> Float[Tensor, ""]:
        """The mean so far, float64."""
        return self.total / self.count


class MPJPE(MeanMetric):
    """`agebody.metrics.mpjpe` over batches; options as there."""

    def __init__(self, *, layout: Layout, root: Root = None, **options: Any) -> None:
        super().__init__(**options)
        self.layout, self.root = layout, root

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a person."""
        return pose.mpjpe_errors(pred, target, layout=self.layout, root=self.root, weights=weights)


class NMPJPE(MPJPE):
    """`agebody.metrics.n_mpjpe` over batches; options as there."""

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a person."""
        return pose.n_mpjpe_errors(pred, target, layout=self.layout, root=self.root, weights=weights)


class PAMPJPE(MeanMetric):
    """`agebody.metrics.pa_mpjpe` over batches."""

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a person."""
        return pose.pa_mpjpe_errors(pred, target, weights=weights)


class PVE(MeanMetric):
    """`agebody.metrics.pve` over batches."""

    def errors(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        pred_root: Tensor | None,
        target_root: Tensor | None,
        weights: Weights = None,
    ) -> Errors:
        """One number a person."""
        return pose.pve_errors(pred, target, pred_root=pred_root, target_root=target_root, weights=weights)


class PAPVE(PAMPJPE):
    """`agebody.metrics.pa_pve` over batches."""


class StatureError(MeanMetric):
    """`agebody.metrics.stature_error` over batches; options as there."""

    def __init__(self, *, relative: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.relative = relative

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a person."""
        return pose.stature_errors(pred, target, relative=self.relative, weights=weights)


class WMPJPE(MeanMetric):
    """`agebody.metrics.w_mpjpe` over sequences; options as there."""

    def __init__(self, *, segment: int | None = world.SEGMENT, **options: Any) -> None:
        super().__init__(**options)
        self.segment = segment

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a frame."""
        return world.w_mpjpe_errors(pred, target, segment=self.segment, weights=weights)


class WAMPJPE(WMPJPE):
    """`agebody.metrics.wa_mpjpe` over sequences; options as there."""

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a frame."""
        return world.wa_mpjpe_errors(pred, target, segment=self.segment, weights=weights)


class RootTrajectoryError(MeanMetric):
    """`agebody.metrics.root_trajectory_error` over sequences."""

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a frame."""
        return world.root_trajectory_errors(pred, target, weights=weights)


class AccelerationError(MeanMetric):
    """`agebody.metrics.acceleration_error` over sequences; options as there."""

    def __init__(self, *, fps: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.fps = fps

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One number a frame."""
        return world.acceleration_errors(pred, target, fps=self.fps, weights=weights)


class PCK(MeanMetric):
    """`agebody.metrics.pck` over batches; options as there."""

    higher_is_better = True

    def __init__(self, threshold: float, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = threshold

    def errors(
        self, pred: Tensor, target: Tensor, *, reference: Tensor | None = None, weights: Weights = None
    ) -> Errors:
        """1 for each keypoint that is right, 0 for the others."""
        values = pck(pred, target, self.threshold, reference=reference, weights=weights, reduction="none")
        return Errors(values, None if weights is None else (weights != 0).expand(values.shape))


class MPCKh(MeanMetric):
    """`agebody.metrics.mpckh` over batches; options as there."""

    higher_is_better = True

    def __init__(self, *, threshold: float = HEAD_SHARE, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = threshold

    def errors(self, pred: Tensor, target: Tensor, *, weights: Weights = None) -> Errors:
        """One share a person."""
        values = mpckh(pred, target, threshold=self.threshold, weights=weights, reduction="none")
        return Errors(values, _visible(pred, weights) >= 2)


class OKS(MeanMetric):
    """`agebody.metrics.oks` over batches of matched people; options as there."""

    higher_is_better = True

    def __init__(self, *, sigmas: Any = "coco17", **options: Any) -> None:
        super().__init__(**options)
        self.sigmas = sigmas

    def errors(self, pred: Tensor, target: Tensor, area: Tensor, *, weights: Weights = None) -> Errors:
        """One similarity a person."""
        values = oks(pred, target, area, sigmas=self.sigmas, weights=weights, reduction="none")
        return Errors(values, _visible(pred, weights) >= 1)


class _Normalized(MeanMetric):
    """A mean error of those who were found, over the F1 score of finding them."""

    false_positives: Tensor
    missed: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("false_positives", "missed"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, *args: Any, false_positives: int, missed: int, **kwargs: Any) -> None:
        """Adds a batch.

        Args:
            args: of the error: matched people.
            false_positives: predictions without a person.
            missed: people without a prediction.
            kwargs: of the error.
        """
        super().update(*args, **kwargs)
        self.false_positives += false_positives
        self.missed += missed

    def compute(self) -> Float[Tensor, ""]:
        """The error so far over F1; NaN if nobody was matched."""
        counts = (self.count, self.false_positives, self.missed)
        found = detection_scores(*(int(number) for number in counts))
        mean = super().compute()
        return mean.new_tensor(nmje(mean.item(), found.f1)) if self.count else mean


class NMJE(_Normalized, MPJPE):
    """`agebody.metrics.nmje` over batches: `MPJPE` over F1; options as of `MPJPE`."""


class NMVE(_Normalized, PVE):
    """`agebody.metrics.nmve` over batches: `PVE` over F1."""


class PCDR(_Sums):
    """`agebody.metrics.pcdr` over batches of images.

    Args:
        by_age: take ``age_classes`` and compute one rate a class by its name, and ``"all"``.
        threshold, same_layer, penalty: as of `agebody.metrics.pcdr`.
        options: of `torchmetrics.Metric`.
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
        self.by_age, self.threshold, self.same_layer, self.penalty = by_age, threshold, same_layer, penalty
        rates = 1 + len(AGE_CLASSES) * by_age
        for name in DepthRelations._fields:
            self.add_state(name, torch.zeros(rates, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        age_classes: Tensor | None = None,
        weights: Weights = None,
        missed: Tensor | None = None,
    ) -> None:
        """Adds a batch of images; arguments as of `agebody.metrics.depth_relations`.

        Raises:
            ValueError: age classes are missing, or were not asked for.
        """
        if self.by_age != (age_classes is not None):
            wanted = "indices of classes" if self.by_age else "None"
            raise ValueError(f"age_classes: expected {wanted} with by_age={self.by_age}")
        pred, target = _widened(pred), _widened(target)
        given: dict[str, Any] = {
            "weights": weights, "missed": missed, "threshold": self.threshold, "same_layer": self.same_layer,
        }  # fmt: skip
        counts = [part[..., None] for part in depth_relations(pred, target, **given)]
        if age_classes is not None:
            of_classes = depth_relations(pred, target, age_classes=age_classes, **given)
            counts = [torch.cat(parts, -1) for parts in zip(of_classes, counts, strict=True)]
        for name, part in zip(DepthRelations._fields, counts, strict=True):
            setattr(self, name, getattr(self, name) + part.double().reshape(-1, part.shape[-1]).sum(0))

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The rate so far, NaN without pairs."""
        rates = DepthRelations(self.right, self.pairs, self.missed).rate(penalty=self.penalty)
        if not self.by_age:
            return rates[0]
        return dict(zip([*(kind.name for kind in AGE_CLASSES), "all"], rates, strict=True))


class KeypointAveragePrecision(Metric):
    """`agebody.metrics.keypoint_ap` over batches: detections and people are kept until it is computed.

    Args:
        sigmas, max_detections: as there.
        options: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

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
        """Adds images; arguments as of the function. Parts of an image may come in different batches.

        Raises:
            TypeError, ValueError: keypoints are not of a floating type, or not as many as the sigmas.
        """
        for name, points in (("pred", pred), ("target", target)):
            expect(name, points, self.points, 2)
        people = target.shape[:-1]
        # Every batch has every state, of one type: those of all processes are put together.
        given = {
            "pred": pred, "scores": scores, "pred_images": pred_images,
            "target": target, "areas": areas, "target_images": target_images,
            "weights": target.new_ones(people) if weights is None else (weights != 0).expand(people),
            "boxes": target.new_full((len(target), 4), torch.nan) if boxes is None else boxes,
            "crowd": torch.zeros_like(areas) if crowd is None else crowd,
            "pred_areas": torch.full_like(scores, torch.nan) if pred_areas is None else pred_areas,
        }  # fmt: skip
        for name, value in given.items():
            getattr(self, name).append(value.detach().to(_DETECTION_STATES[name][1]))

    def sync(self, *args: Any, **options: Any) -> None:
        """As of every metric; a process without images takes part with none, rather than with nothing."""
        for name in _DETECTION_STATES:
            if not len(getattr(self, name)):
                setattr(self, name, [self._nothing(name)])
        super().sync(*args, **options)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """COCO's ten numbers by name; NaN before any person."""
        together = {}
        for name in _DETECTION_STATES:
            parts = getattr(self, name)
            # Lists of one's own, one tensor of all processes.
            together[name] = parts if isinstance(parts, Tensor) else torch.cat([self._nothing(name), *parts])
        numbers = keypoint_ap(**together, sigmas=self.sigmas, max_detections=self.max_detections)
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in numbers._asdict().items()
        }

    def _nothing(self, name: str) -> Tensor:
        """The state of no images."""
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


class ByAgeClass(_Sums):
    """One of the metrics above for each of ``AGE_CLASSES``, and for all.

    Args:
        metric: says how errors are computed; its own states are not used. What it computes is their mean:
            `NMJE` and `NMVE`, which count people without a match, too, are none of these.
        options: of `torchmetrics.Metric`.

    Raises:
        TypeError: the metric is not a mean of errors.
    """

    total: Tensor
    count: Tensor

    def __init__(self, metric: MeanMetric, **options: Any) -> None:
        kind = type(metric)
        if not issubclass(kind, MeanMetric) or kind.compute is not MeanMetric.compute:
            raise TypeError(f"metric: expected one that computes a mean of errors, got {kind.__name__}")
        super().__init__(**options)
        self.metric = metric
        classes = len(AGE_CLASSES)
        self.add_state("total", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        *args: Any,
        age_classes: Int[Tensor, "*batch"] | None = None,
        age_offset: Float[Tensor, "*batch"] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds a batch.

        Args:
            args: of the metric.
            age_classes: (*batch), indices into ``AGE_CLASSES``, of people or of sequences. Whoever has
                another, such as -1, does not count.
            age_offset: (*batch), true age offsets, instead.
            kwargs: of the metric.

        Raises:
            ValueError: not one of the two was given, or it does not fit the entries.
        """
        classes = age_classes if age_offset is None else age_class(age_offset)
        if classes is None or (age_classes is not None and age_offset is not None):
            raise ValueError("age_classes: expected either age_classes or age_offset")
        values, counted = self.metric.widened_errors(*args, **kwargs)
        shape = tuple(classes.shape)
        if tuple(values.shape[: len(shape)]) != shape:
            raise ValueError(
                f"age_classes: expected one for each of {tuple(values.shape)} entries, got {shape}"
            )
        ids = torch.arange(len(AGE_CLASSES), device=values.device)
        member = classes.reshape(*shape, *[1] * (values.dim() - len(shape)), 1) == ids
        member = member.expand(*values.shape, -1)
        if counted is not None:
            member = member & counted[..., None]
        self.total += _kept(values[..., None], member).reshape(-1, len(ids)).sum(0)
        self.count += member.reshape(-1, len(ids)).sum(0)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """The mean of each class by its name, NaN for those without entries, and ``"all"``."""
        means = {kind.name: self.total[i] / self.count[i] for i, kind in enumerate(AGE_CLASSES)}
        return means | {"all": self.total.sum() / self.count.sum()}


def _widened(value: Any) -> Any:
    """Tensors of 16 bits in float32, all else as it is."""
    return at_least_float32(value) if isinstance(value, Tensor) else value


def _kept(values: Tensor, counted: Tensor | None) -> Tensor:
    """In float64, without what does not count."""
    values = values.detach().double()
    return values if counted is None else torch.where(counted, values, 0)


def _visible(points: Tensor, weights: Tensor | None) -> Tensor:
    """How many points of each person have weight."""
    if weights is None:
        return points.new_full(points.shape[:-2], points.shape[-2])
    return (weights != 0).expand(points.shape[:-1]).sum(-1)
