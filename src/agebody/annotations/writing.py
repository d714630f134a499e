"""Write people as COCO's annotations, which `read_people` reads."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np

from agebody.age import AGE_CLASSES, UNKNOWN
from agebody.annotations.people import People
from agebody.files import replacing


def save_people(people: People, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Write people as a JSON file of COCO's annotations, whole or not at all; `read_people` reads it.

    The third number of a keypoint is its weight. Focal lengths and what was left out are not written.

    Raises:
        AnnotationError: the size of an image is unknown.
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: it cannot be written.
    """
    people.image_sizes()
    layout = people.layout
    images = [
        {"id": i + 1, "file_name": image.name, "width": image.size[0], "height": image.size[1]}
        for i, image in enumerate(people.images)
        if image.size is not None
    ]
    person = {
        "id": 1,
        "name": "person",
        "keypoints": layout.names,
        "skeleton": np.add(layout.edges, 1).tolist(),
    }
    document = {
        "images": images,
        "annotations": [_entry(people, i) for i in range(len(people))],
        "categories": [person],
    }
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _entry(people: People, i: int) -> dict[str, Any]:
    points = np.concatenate((people.keypoints[i], people.weights[i, :, None]), 1)
    entry: dict[str, Any] = {
        "id": int(people.ids[i]),
        "image_id": int(people.image[i]) + 1,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": int((people.weights[i] > 0).sum()),
        "keypoints": points.round(4).ravel().tolist(),
    }
    if not np.isnan(people.boxes[i]).any():
        low, high = people.boxes[i].reshape(2, 2)
        entry["bbox"] = [*low.round(3).tolist(), *(high - low).round(3).tolist()]
        entry["area"] = float(np.prod(high - low).round(3))
    ages = people.ages
    numbers = {"score": people.scores, "age_offset": ages.age_offset, "years": ages.years}
    for name, values in numbers.items():
        if values is not None and not np.isnan(values[i]):
            entry[name] = round(float(values[i]), 6)
    if ages.age_class[i] != UNKNOWN:
        entry["age_class"] = AGE_CLASSES[ages.age_class[i]].name
    if people.tracks is not None and people.tracks[i] >= 0:
        entry["track_id"] = int(people.tracks[i])
    return entry
