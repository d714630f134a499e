"""People of photographs and videos: read, detect, and merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from agebody.annotations.duplicates import leave_out_duplicates
from agebody.annotations.people import AnnotationError, ImageEntry, People, fail, make_people
from agebody.annotations.photographs import Photographs, read_exif_focals, read_photograph
from agebody.annotations.videos import Video, frame_name, is_video
from agebody.checks import read_count
from agebody.detect.detector import Detections, Detector, DetectorError
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout


def detect_people(
    detector: Detector,
    images: str | Path,
    *,
    layout: str | KeypointLayout | None = None,
    exif: bool = True,
    every: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> People:
    """Return the people of photographs, or of the frames of a video; each person of an image occurs once.

    Photographs are turned upright by their EXIF orientation. Of detections of one person the best is kept.
    Pictures are read one at a time, and not kept.

    Args:
        detector: a detector, as from `load_detector`, or any callable of the protocol.
        images: a folder of photographs, with its subfolders, or one, or a video. Frames have the names
            000001.jpg and so on, as ``ffmpeg -i VIDEO %06d.jpg`` names them.
        layout: layout of the keypoints; None: found by their names.
        exif: whether focal lengths are read from the photographs.
        every: every n-th photograph or frame alone.
        progress: called with the number of photographs done and their number.

    Raises:
        AnnotationError: there is no photograph, none can be read, or the names fit no layout.
        ImportError: OpenCV, which reads videos, is missing; install ``agebody[video]``.
        DetectorError: the detector returns something else than `Detections` of the image.
        OSError: the only photograph cannot be read.
    """
    path = Path(images)
    read_count("every", every, least=1)
    exif = read_flag("exif", exif)
    entries: list[ImageEntry] = []
    found: list[Detections] = []
    unread: list[str] = []
    pictures = _read_video if is_video(path) else _read_photographs
    for i, (name, image) in enumerate(pictures(path, every, unread, progress)):
        found.append(_check(detector, detector(image), name))
        entries.append(ImageEntry(name, i + 1, (image.shape[1], image.shape[0])))
    if not entries and unread:
        fail(path, f"no photograph can be read; {unread[0]}")
    notes = [*unread[:3], *([f"{len(unread) - 3} more images could not be read"] if unread[3:] else [])]
    made = _make_people(path, detector, found, entries, layout, notes)
    return read_exif_focals(made, path) if exif else made


def detect_frame(detector: Detector, image: UInt8[np.ndarray, "H W 3"], path: Path, number: int) -> People:
    """Return the people of one frame of a video or a camera, without duplicates; frames count from 0."""
    name = frame_name(number)
    found = _check(detector, detector(image), name)
    entry = ImageEntry(name, number + 1, (image.shape[1], image.shape[0]))
    return _make_people(path, detector, [found], [entry], None, ())


def _make_people(
    path: Path,
    detector: Detector,
    found: Sequence[Detections],
    entries: Sequence[ImageEntry],
    layout: str | KeypointLayout | None,
    notes: Sequence[str],
) -> People:
    """Return what was detected in each image as people, without duplicates."""
    people = Detections.join(found)
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
    return leave_out_duplicates(made)


def _read_photographs(
    path: Path, every: int, unread: list[str], progress: Callable[[int, int], None]
) -> Iterator[tuple[str, Any]]:
    """Yield names and pixels of photographs; record those that cannot be read."""
    photographs = Photographs(path)
    if not photographs.names:
        fail(path, f"no photographs; there are {photographs.describe()}")
    names = photographs.names[::every]
    for i, name in enumerate(names):
        progress(i, len(names))
        try:
            image = read_photograph(photographs.folder / name)
        except (AnnotationError, OSError) as error:
            if photographs.one:
                raise
            unread.append(str(error))
            continue
        yield name, image


def _read_video(
    path: Path, every: int, unread: list[str], progress: Callable[[int, int], None]
) -> Iterator[tuple[str, Any]]:
    """Yield names and pixels of frames; record where a damaged video ends."""
    video, last = Video(path), 0
    for last, image in video.frames(every):
        progress(last, max(video.count, last + 1))
        yield frame_name(last), image
    if last + 2 * every < video.count:  # files may state a frame too many
        unread.append(f"{path}: damaged after frame {last + 1} of {video.count}; the rest is left out")


def _check(detector: Detector, found: Any, name: str) -> Detections:
    """Check detections against the protocol; drop people without a keypoint of positive confidence."""
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
