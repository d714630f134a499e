"""Made-up COCO keypoint files with everything that makes their evaluation hard."""

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def synthetic_coco(seed: int, *, images: int = 20) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results.

    Crowds, people without keypoints, of all sizes; misses, duplicates, equal scores, more than 20 detections
    in an image, and images without anybody.
    """
    r = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def detect(image: int, points: np.ndarray) -> None:
        row = np.concatenate([points, np.ones((17, 1))], 1).ravel().tolist()
        score = round(float(r.random()), 1)
        results.append({"image_id": image, "category_id": 1, "keypoints": row, "score": score})

    for i in range(images):
        image = 3 * i + 5
        for person in range(r.integers(0, 6)):
            side = float(r.choice([20, 60, 150, 300]))
            corner = r.uniform(0, 400, 2)
            points, visibility = corner + r.uniform(0, side, (17, 2)), r.integers(0, 3, 17)
            if r.random() < 0.15 or (i, person) == (0, 0):
                visibility[:] = 0
            shown = np.where(visibility[:, None] > 0, points, 0)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": 1,
                    "keypoints": np.concatenate([shown, visibility[:, None]], 1).ravel().tolist(),
                    "num_keypoints": int((visibility > 0).sum()), "iscrowd": int(r.random() < 0.12),
                    "area": side * side * r.uniform(0.3, 0.8), "bbox": [*corner.tolist(), side, side],
                }
            )  # fmt: skip
            for _ in range(r.integers(0, 4)):
                detect(image, points + r.normal(0, side * r.choice([0.01, 0.05, 0.1]), points.shape))
        for _ in range(25 if i == 1 else 0):
            detect(image, r.uniform(0, 600, 2) + r.uniform(0, 100, (17, 2)))
    r.shuffle(results)  # pyright: ignore[reportArgumentType]
    listed = [{"id": 3 * i + 5, "width": 1000, "height": 1000} for i in range(images)]
    return {
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }, results


def pycocotools_numbers(annotations: dict[str, Any], results: Any) -> np.ndarray:
    """COCO's ten numbers by its own code, NaN where it says -1."""
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats == -1, np.nan, evaluation.stats)
