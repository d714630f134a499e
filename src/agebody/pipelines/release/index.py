"""The annotations of a release, in the JSON of COCO's keypoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from agebody.age import AGE_CLASSES
from agebody.keypoints import KeypointLayout

PERSON = 1
"""The id of the one category."""


def category(layout: KeypointLayout) -> dict[str, Any]:
    """COCO's category "person" with the points of a layout."""
    return {
        "id": PERSON,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(layout.names),
        "skeleton": [[start + 1, end + 1] for start, end in layout.edges],
    }


def annotation(
    *,
    annotation_id: int,
    image_id: int,
    keypoints: np.ndarray,
    visibility: np.ndarray,
    box: np.ndarray,
    outline: Bool[np.ndarray, "H W"],
    age_class: int | None,
    track_id: int | None,
    row: int,
) -> dict[str, Any]:
    """One body: its keypoints, its box in the picture, the pixels that show it, and its age class."""
    height, width = outline.shape
    low = np.clip(box[:2], 0, (width, height))
    high = np.clip(box[2:], 0, (width, height))
    points = np.concatenate([np.round(keypoints, 2), visibility[:, None]], axis=1)
    entry: dict[str, Any] = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": PERSON,
        "iscrowd": 0,
        "keypoints": [int(value) if i % 3 == 2 else value for i, value in enumerate(points.ravel().tolist())],
        "num_keypoints": int(np.count_nonzero(visibility)),
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "area": int(np.count_nonzero(outline)),
        "segmentation": run_lengths(outline),
        "row": row,
    }
    if age_class is not None:
        entry["age_class"] = AGE_CLASSES[age_class].name
    if track_id is not None:
        entry["track_id"] = track_id
    return entry


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, first of what is not in the mask."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False)) if flat.size else np.zeros(0, int)
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}
