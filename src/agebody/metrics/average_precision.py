"""Average precision and recall of detected keypoints, as COCO computes them.

Decisions compare with thresholds, so everything here is NumPy in double precision, in COCO's order of
operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from agebody.checks import Weights, apply_mask, expand_weights, expect, expect_tensor, read_count
from agebody.keypoints import KeypointLayout
from agebody.metrics.similarity import SPACING, spread_of

THRESHOLDS = tuple((np.linspace(0.5, 0.95, 10)).tolist())
"""Least OKS of a correct detection, .50:.05:.95."""

AREA_RANGES = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas of people [pixels²], both ends included."""

_RECALLS = np.linspace(0, 1, 101)


class KeypointAP(NamedTuple):
    """COCO's ten numbers; NaN where no person counts, and where keypoints, scores or areas are NaN."""

    AP: float
    """Mean over the thresholds .50:.05:.95."""
    AP50: float
    AP75: float
    AP_medium: float
    AP_large: float
    AR: float
    AR50: float
    AR75: float
    AR_medium: float
    AR_large: float


class ImageResult(NamedTuple):
    """Results of one image at each threshold (.50:.05:.95), for one range of areas."""

    scores: Float[np.ndarray, " D"]
    """Scores of its detections, descending."""
    matched: Bool[np.ndarray, "T D"]
    """Whether the detection is matched to a person."""
    ignored: Bool[np.ndarray, "T D"]
    """Whether it is ignored: neither correct nor wrong."""
    people: int
    """Number of people that count."""


class KeypointImage(NamedTuple):
    """Detections and people of one image, as COCO describes them. Coordinates in pixels."""

    pred: Float[np.ndarray, "D K 2"]
    scores: Float[np.ndarray, " D"]
    pred_areas: Float[np.ndarray, " D"]
    target: Float[np.ndarray, "G K 2"]
    visible: Bool[np.ndarray, "G K"]
    areas: Float[np.ndarray, " G"]
    boxes: Float[np.ndarray, "G 4"]
    """(x, y, width, height)."""
    crowd: Bool[np.ndarray, " G"]
    """A region of several people: any number of detections may match it, and none counts."""
    ignored: Bool[np.ndarray, " G"]
    """People who are ignored: detections of them are neither correct nor wrong."""
    lost: Bool[np.ndarray, " G"]
    """People who are never found: a detection that is matched to them is wrong."""


def keypoint_similarity(image: KeypointImage, spread: Float[np.ndarray, " K"]) -> Float[np.ndarray, "D G"]:
    """Return the OKS of all pairs of one image, with ``spread`` twice the standard deviations.

    For people without a visible keypoint the distances are those of the detection's keypoints to the person's
    box, enlarged by its own size on every side.
    """
    if not len(image.target) or not len(image.pred):
        return np.zeros((len(image.pred), len(image.target)))
    variance = spread**2
    corner, size = image.boxes[:, None, :2], image.boxes[:, None, 2:]
    points = image.pred[:, None]
    outside = np.maximum(0, corner - size - points) + np.maximum(0, points - (corner + 2 * size))
    seen = np.any(image.visible, axis=1)
    difference = np.where(seen[None, :, None, None], points - image.target[None], outside)
    counted = np.logical_or(image.visible, ~seen[:, None])
    area = image.areas[None, :, None] + SPACING
    # Keypoints that are not visible may be NaN.
    squared = np.where(counted[None, ..., None], difference**2, 0).sum(-1)
    with np.errstate(over="ignore"):  # of negative areas, which no range includes
        likeness = np.where(counted, np.exp(-squared / variance / area / 2), 0)
    return likeness.sum(-1) / counted.sum(-1)


def match_image(
    image: KeypointImage,
    similarity: Float[np.ndarray, "D G"],
    *,
    area_range: tuple[float, float] = AREA_RANGES["all"],
    max_detections: int = 20,
) -> ImageResult:
    """Match the detections of one image to its people at each threshold, by descending score.

    A detection takes the free person of the largest OKS, those that count before those that do not: ignored
    people and those of another size. Detections without a person do not count where their own size is outside
    the range.
    """
    order = np.argsort(-image.scores, kind="stable")[:max_detections]
    low, high = area_range
    ignored_target = image.ignored | (image.areas < low) | (image.areas > high)
    shape = (len(THRESHOLDS), len(order))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    # An image has few of both, so Python's numbers are faster than arrays.
    counting, others = np.flatnonzero(~ignored_target).tolist(), np.flatnonzero(ignored_target).tolist()
    many, lost, rows = image.crowd.tolist(), image.lost.tolist(), similarity[order].tolist()
    for t, threshold in enumerate(THRESHOLDS):
        taken: set[int] = set()
        for d, row in enumerate(rows):
            person = _best(row, threshold, (g for g in counting if g not in taken))
            if person is None:
                person = _best(row, threshold, (g for g in others if many[g] or g not in taken))
                ignored[t, d] = person is not None
            if person is not None:
                matched[t, d] = not lost[person]
                taken.add(person)
    strange = (image.pred_areas < low) | (image.pred_areas > high)
    ignored |= ~matched & strange[order]
    return ImageResult(image.scores[order], matched, ignored, len(counting))


def _best(row: list[float], threshold: float, people: Iterable[int]) -> int | None:
    """Return the person of the largest similarity above the threshold; of ties the last, as COCO does."""
    best = None
    for person in people:
        if row[person] >= threshold:
            best, threshold = person, row[person]
    return best


class Pooled(NamedTuple):
    """The results of all images together, by descending score."""

    matched: Bool[np.ndarray, "T D"]
    ignored: Bool[np.ndarray, "T D"]
    image: Shaped[np.ndarray, " D"]
    """Index of each detection's image."""
    people: Shaped[np.ndarray, " I"]
    """Number of people that count, per image."""


def pool(results: list[ImageResult]) -> Pooled:
    """Merge the results of all images by score; ties are in the order of the images."""
    scores = np.concatenate([np.zeros(0), *(result.scores for result in results)])
    order = np.argsort(-scores, kind="stable")
    nothing = np.zeros((len(THRESHOLDS), 0), bool)
    matched, ignored = (
        np.concatenate([nothing, *(result[part] for result in results)], axis=1)[:, order] for part in (1, 2)
    )
    image = np.repeat(np.arange(len(results)), [len(result.scores) for result in results])
    people = np.array([result.people for result in results], dtype=np.int64)
    return Pooled(matched, ignored, image[order], people)


def precision_recall(
    pooled: Pooled, counts: Shaped[np.ndarray, " I"] | None = None
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Return average precision and largest recall at each threshold; NaN where no person counts.

    Args:
        pooled: the results of all images.
        counts: how often each image occurs; once by default.
    """
    people = int(pooled.people.sum() if counts is None else pooled.people @ counts)
    if people == 0:
        missing = np.full(len(THRESHOLDS), np.nan)
        return missing, missing
    # Ignored detections leave both sums unchanged, so the curve has one point for each count of them.
    counted, right = ~pooled.ignored, pooled.matched & ~pooled.ignored
    if counts is not None:
        again = counts[pooled.image]
        counted, right = np.repeat(counted, again, axis=1), np.repeat(right, again, axis=1)
    length = right.shape[1]
    if not length:
        return np.zeros(len(THRESHOLDS)), np.zeros(len(THRESHOLDS))
    found = np.cumsum(right, axis=1, dtype=np.float64)
    recall = found / people
    precision = found / (np.cumsum(counted, axis=1, dtype=np.float64) + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    sampled = np.zeros((len(THRESHOLDS), len(_RECALLS)))
    for row in range(len(THRESHOLDS)):
        at = np.searchsorted(recall[row], _RECALLS)
        reached = at < length
        sampled[row, reached] = precision[row, at[reached]]
    return sampled.mean(1), recall[:, -1]


def summarize(pooled: dict[str, Pooled], counts: Shaped[np.ndarray, " I"] | None = None) -> KeypointAP:
    """Return COCO's ten numbers from the results of all images, by the names of `AREA_RANGES`."""
    curves = {name: precision_recall(results, counts) for name, results in pooled.items()}
    numbers: list[Any] = []
    for kind in (0, 1):
        everything = curves["all"][kind]
        numbers += [everything.mean(), everything[0], everything[5]]
        numbers += [curves[name][kind].mean() for name in ("medium", "large")]
    return KeypointAP(*(float(number) for number in numbers))


def match_images(
    images: list[KeypointImage], *, spread: Float[np.ndarray, " K"], max_detections: int = 20
) -> dict[str, Pooled]:
    """Return the results of all images, for each of the `AREA_RANGES`."""
    likeness = [keypoint_similarity(image, spread) for image in images]
    return {
        name: pool(
            [
                match_image(image, similarity, area_range=span, max_detections=max_detections)
                for image, similarity in zip(images, likeness, strict=True)
            ]
        )
        for name, span in AREA_RANGES.items()
    }


def split_images(
    pred: Float[np.ndarray, "D K 2"],
    scores: Float[np.ndarray, " D"],
    pred_images: Shaped[np.ndarray, " D"],
    target: Float[np.ndarray, "G K 2"],
    areas: Float[np.ndarray, " G"],
    target_images: Shaped[np.ndarray, " G"],
    *,
    visible: Bool[np.ndarray, "G K"] | None = None,
    boxes: Float[np.ndarray, "G 4"] | None = None,
    crowd: Bool[np.ndarray, " G"] | None = None,
    ignored: Bool[np.ndarray, " G"] | None = None,
    lost: Bool[np.ndarray, " G"] | None = None,
    pred_areas: Float[np.ndarray, " D"] | None = None,
    images: Shaped[np.ndarray, " I"] | None = None,
) -> list[KeypointImage]:
    """Split the detections and people of a data set by image, in the order of the images' ids.

    Arguments as of `keypoint_ap`. All keypoints are ``visible`` by default; ``ignored``, who counts neither
    for nor against, are crowds and people without visible keypoints; nobody is ``lost``, that is, never
    found; and ``images`` are all ids that occur.
    """
    seen = np.ones(target.shape[:2], bool) if visible is None else visible
    low = np.where(seen[..., None], target, np.inf).min(1, initial=np.inf)
    high = np.where(seen[..., None], target, -np.inf).max(1, initial=-np.inf)
    around = np.where(np.any(seen, axis=1)[:, None], np.concatenate([low, high - low], 1), 0)
    boxes = around if boxes is None else np.where(np.isnan(boxes), around, boxes)
    width, height = (pred.max(1) - pred.min(1)).T
    sizes = width * height
    if pred_areas is not None:
        sizes = np.where(np.isnan(pred_areas), sizes, pred_areas)
    nobody = np.zeros(len(target), bool)
    crowd, lost = (nobody if who is None else who for who in (crowd, lost))
    if ignored is None:
        ignored = crowd | ~seen.any(1)
    if images is None:
        images = np.union1d(pred_images, target_images)
    people, detections = _by_image(target_images, images), _by_image(pred_images, images)
    return [
        KeypointImage(
            *(part[d] for part in (pred, scores, sizes)),
            *(part[g] for part in (target, seen, areas, boxes, crowd, ignored, lost)),
        )
        for d, g in zip(detections, people, strict=True)
    ]


def _by_image(of: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """Return the indices of the entries of each image, in the order of the entries."""
    order = np.argsort(of, kind="stable")
    starts, ends = (np.searchsorted(of[order], images, side=side) for side in ("left", "right"))
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]


def keypoint_ap(
    pred: Float[Tensor, "D K 2"],
    scores: Float[Tensor, " D"],
    pred_images: Shaped[Tensor, " D"],
    target: Float[Tensor, "G K 2"],
    areas: Float[Tensor, " G"],
    target_images: Shaped[Tensor, " G"],
    *,
    weights: Weights = None,
    boxes: Float[Tensor, "G 4"] | None = None,
    crowd: Shaped[Tensor, " G"] | None = None,
    pred_areas: Float[Tensor, " D"] | None = None,
    sigmas: str | KeypointLayout | tuple[float, ...] = "coco17",
    max_detections: int = 20,
) -> KeypointAP:
    """Return average precision and recall of detected keypoints over images, equal to COCO's evaluation.

    Detections are matched by descending score, each to the free person of the largest OKS, if it reaches the
    threshold. Precision is made monotone and sampled at 101 recalls. Crowds and people without visible
    keypoints count neither for nor against.

    Args:
        pred: keypoints of the detections [pixels].
        scores: confidence of each detection.
        pred_images: id of each detection's image, of any integer type.
        target: keypoints of the people [pixels].
        areas: of the people [pixels²].
        target_images: id of each person's image.
        weights: (G, K), which keypoints of the people are visible; all by default.
        boxes: (x, y, width, height) of the people, needed for people without a visible keypoint; around their
            visible keypoints by default, and where it is NaN.
        crowd: true, or 1 as COCO's iscrowd, for regions of several people; none by default.
        pred_areas: of the detections [pixels²]; of the boxes around their keypoints by default, as COCO does,
            and where it is NaN.
        sigmas: a layout with published standard deviations, or one number per keypoint.
        max_detections: number of detections per image that are evaluated, by descending score.
    """
    pred = expect("pred", pred, None, 2)
    target = expect("target", target, *pred.shape[-2:])
    for name, points in (("pred", pred), ("target", target)):
        if points.dim() != 3:
            raise ValueError(f"{name}: expected shape (people, keypoints, 2), got {tuple(points.shape)}")
    people = {"areas": areas, "target_images": target_images, "boxes": boxes, "crowd": crowd}
    detections = {"scores": scores, "pred_images": pred_images, "pred_areas": pred_areas}
    for given, length in ((detections, len(pred)), (people, len(target))):
        for name, tensor in given.items():
            shape = (length, 4) if name == "boxes" else (length,)
            if tensor is not None and expect_tensor(name, tensor).shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    read_count("max_detections", max_detections, least=1)
    people["crowd"] = None if crowd is None else crowd != 0
    spread = spread_of(sigmas, pred.double())

    def array(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        tensor = tensor.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()

    weights = expand_weights(weights, target.shape[:2])
    for decisive in (pred, scores, areas, apply_mask(target, weights, 1)):
        if decisive.isnan().any():
            return KeypointAP(*[float("nan")] * len(KeypointAP._fields))
    images = split_images(
        pred=array(pred),
        target=array(target),
        visible=None if weights is None else array(weights != 0),
        **{name: array(tensor) for name, tensor in (detections | people).items()},
    )
    return summarize(match_images(images, spread=spread.numpy(force=True), max_detections=max_detections))
