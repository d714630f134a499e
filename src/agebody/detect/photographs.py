"""People of photographs: read, detect, and merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agebody.annotations.doubles import leave_out_doubles
from agebody.annotations.people import AnnotationError, ImageEntry, People, fail, make_people
from agebody.annotations.photographs import Photographs, read_exif_focals, read_photograph
from agebody.detect.detector import Detections, Detector, DetectorError
from agebody.keypoints import KeypointLayout


def detect_people(
    detector: Detector,
    images: str | Path,
    *,
    layout: str | KeypointLayout | None = None,
    exif: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> People:
    """Return the people of photographs, each of them once.

    Photographs are turned upright by their EXIF orientation. Of detections of one person the best is kept.

    Args:
        detector: such as `load_detector` returns, or any of the protocol.
        images: a folder of photographs, with its subfolders, or one.
        layout: of the keypoints; if None, found by their names.
        exif: whether focal lengths are read from the photographs.
        progress: called with the number of photographs done and their number.

    Raises:
        AnnotationError: there is no photograph, none can be read, or the names fit no layout.
        DetectorError: the detector returns something else than `Detections` of the image.
        OSError: the only photograph cannot be read.
    """
    path = Path(images)
    photographs = Photographs(path)
    if not photographs.names:
        fail(path, f"no photographs; there are {photographs.describe()}")
    entries: list[ImageEntry] = []
    found: list[Detections] = []
    unread: list[str] = []
    for i, name in enumerate(photographs.names):
        progress(i, len(photographs.names))
        try:
            image = read_photograph(photographs.folder / name)
        except (AnnotationError, OSError) as error:
            if photographs.one:
                raise
            unread.append(str(error))
            continue
        found.append(_check(detector, detector(image), name))
        entries.append(ImageEntry(name, i + 1, (image.shape[1], image.shape[0])))
    if not entries:
        fail(path, f"no photograph can be read; {unread[0]}")
    people = Detections.join(found)
    notes = [*unread[:3], *([f"{len(unread) - 3} more images could not be read"] if unread[3:] else [])]
    made = make_people(
        path,
        people.keypoints,
        detector.names,
        layout,
        images=entries,
        image=np.repeat(np.arange(len(entries)), [len(one.scores) for one in found]),
        boxes=people.boxes,
        scores=people.scores,
        notes=notes,
    )
    made = leave_out_doubles(made)
    return read_exif_focals(made, path) if exif else made


def _check(detector: Detector, found: Any, name: str) -> Detections:
    """Return detections if they are what the protocol says; without people that have no sure keypoint."""
    shapes = (len(detector.names), 3), (4,), ()
    try:
        parts = [np.asarray(part, dtype=float) for part in Detections(*found)]
    except (TypeError, ValueError):
        parts = []
    count = len(parts[0]) if parts and parts[0].ndim else 0
    if [part.shape for part in parts] != [(count, *shape) for shape in shapes]:
        expected = ", ".join(str(("N", *shape)).replace("'", "") for shape in shapes)
        raise DetectorError(f"{name}: expected keypoints, boxes and scores of shapes {expected}")
    if not all(np.isfinite(part).all() for part in parts):
        raise DetectorError(f"{name}: the detector returns numbers that are not finite")
    return Detections(*parts).select(np.asarray((parts[0][..., 2] > 0).any(1)))
