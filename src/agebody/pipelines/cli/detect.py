"""`agebody detect`, and people of other commands: from files of keypoints, or detected in photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, fail, note, running, say
from agebody.pipelines.outputs import amount

if TYPE_CHECKING:
    from rich.progress import Progress

    from agebody.annotations import People
    from agebody.annotations.calibration import Cameras
    from agebody.annotations.views import Views
    from agebody.detect.detector import Detector

DEFAULT = "rtmlib"
"""Detector of photographs if none is given."""

Given = TypeVar("Given")


@app.command()
def detect(
    photographs: Annotated[
        Path, options.argument("A folder of photographs, one photograph, or a video.", "PHOTOGRAPHS")
    ],
    output: options.OutputFile,
    detector: options.DetectorName = None,
    layout: options.Layout = None,
    every: options.Every = 1,
    overwrite: options.Overwrite = False,
) -> None:
    """Find people and their keypoints in photographs or a video, and write them as COCO's annotations.

    `agebody fit FILE --images PHOTOGRAPHS` takes the file, in which ages can be added: **years** or
    **age_class** of each annotation.

    Example: `agebody detect photos --detector movenet:multipose.tflite -o people.json`
    """
    from agebody.annotations import save_people
    from agebody.detect.detector import DetectorError

    with running(DetectorError) as bars:
        options.check_output(output, (photographs,), overwrite)
        found = _detect(bars, photographs, detector or DEFAULT, layout, every)
        save_people(found, output, overwrite=overwrite)
    for line in found.notes:
        note(line)
    for why, count in found.left_out:
        note(f"left out: {why} {count}")
    say(f"{amount(len(found), 'people')} in {len(set(found.image.tolist()))} of {len(found.images)} images")
    say(f"wrote {output}")


def choose_detector(path: Path, given: Given | None) -> Given | str | None:
    """Return the detector for a path, None if it holds keypoints.

    A folder that has files of keypoints and photographs is taken for the former, unless a detector is given.
    """
    from agebody.annotations.photographs import is_photographs
    from agebody.annotations.videos import is_video

    pictures = is_photographs(path) or is_video(path)
    if given and not pictures and path.is_file():
        problem = f"it finds people in photographs and videos, not in {path.name}; leave it out for keypoints"
        options.refuse("--detector", problem)
    return given or (DEFAULT if pictures else None)


def read_or_detect(
    bars: Progress,
    path: Path,
    *,
    detector: str | Detector | None,
    layout: str | tuple[str, ...] | None,
    images: Path | None,
    size: str | None = None,
    annotations: Path | None = None,
    boxes_suffice: bool = False,
    every: int | None = None,
) -> tuple[People, Path | None]:
    """Return the people of a file of keypoints, or with a detector those of photographs, and the images.

    Commands that take videos give ``every``.
    """
    from agebody.annotations import read_people
    from agebody.annotations.videos import is_video

    if detector is None:
        found = read_people(
            path,
            layout=layout,
            images=images,
            size=options.parse_size(size),
            annotations=annotations,
            boxes_suffice=boxes_suffice,
        )
        return found, images
    if every is None and is_video(path):
        fail(f"{path}: expected photographs, got a video; `ffmpeg -i VIDEO frames/%06d.jpg` makes them of it")
    for name, value in (("--images", images), ("--size", size), ("--annotations", annotations)):
        if value is not None:
            problem = "it belongs to files of keypoints, and people are to be detected in photographs"
            options.refuse(name, problem)
    known = layout if isinstance(layout, str) else None  # detectors name their points
    return _detect(bars, path, detector, known, every or 1), path


def read_or_detect_views(
    bars: Progress,
    folder: Path,
    cameras: Cameras,
    *,
    detector: str | Detector | None,
    layout: str | tuple[str, ...] | None,
    images: Path | None,
    size: str | None,
    every: int,
    gap: int,
) -> tuple[Views, dict[str, Path]]:
    """Return the people of synchronised cameras, and the video or folder of images of each, if any."""
    from agebody.annotations.photographs import is_photographs
    from agebody.annotations.videos import is_video
    from agebody.annotations.views import find_views, join_views

    found, videos = {}, {} if images is None else find_views(images, cameras)
    for name, path in find_views(folder, cameras).items():
        chosen = choose_detector(path, detector)
        if every > 1 and chosen is None:
            problem = "it belongs to videos and photographs, not to keypoints"
            options.refuse("--every", problem)
        known = cameras.sizes[cameras.names.index(name)]
        told = size if known is None or chosen is not None else f"{known[0]}x{known[1]}"
        found[name], _ = read_or_detect(
            bars, path, detector=chosen, layout=layout, images=None, size=told, every=every
        )
        if images is None and (is_video(path) or is_photographs(path)):
            videos[name] = path
    if videos.keys() != found.keys():
        videos = {}
    return join_views(found, cameras, gap=gap), videos


def _detect(bars: Progress, path: Path, detector: str | Detector, layout: str | None, every: int) -> People:
    from agebody.detect import detect_people, load_detector
    from agebody.pipelines.labels.quality import MIN_SIZE

    task = bars.add_task("detecting", total=None)

    def show(done: int, total: int) -> None:
        bars.update(task, total=total, completed=done)

    finder = load_detector(detector) if isinstance(detector, str) else detector
    found = detect_people(finder, path, layout=layout, exif=False, every=every, progress=show)
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).max(1, initial=0)
    small = int((sides < MIN_SIZE).sum())
    told = f"{small} people are smaller than {MIN_SIZE:g} pixels: too small to be sure of their keypoints"
    return replace(found, notes=(*found.notes, *([told] if small else ())))
