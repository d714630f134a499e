"""`agebody live`: people in front of a camera, or in a video, frame by frame."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from agebody.files import replacing
from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, fail, note, running, say
from agebody.pipelines.cli.detect import DEFAULT
from agebody.pipelines.outputs import amount

TITLE = "agebody: q ends"


@app.command()
def live(
    video: Annotated[Path | None, options.argument("A video, instead of a camera.", "VIDEO")] = None,
    output: Annotated[
        Path | None, options.option("Video to write, **.mp4**, instead of a window.", "--output", "-o")
    ] = None,
    camera: Annotated[
        int | None, options.option("Number of the camera; 0, the first, if there is no video.", min=0)
    ] = None,
    detector: options.DetectorName = None,
    body: options.Body = "anny",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each fit.")] = 3,
    focal: options.Focal = None,
    fov: options.Fov = None,
    age_offset: options.AgeOffset = None,
    age_class: options.AgeClassName = None,
    years: options.Years = None,
    device: options.Device = "cpu",
    overwrite: options.Overwrite = False,
) -> None:
    """Fit bodies to the people in front of a camera, or in a video, frame by frame, and draw them.

    Each fit takes a few steps from the previous frame and the lifter's estimate. For labels, `agebody fit
    VIDEO` is better: it fits each person over all frames. **q** closes the window; Ctrl-C also ends.

    Examples: `agebody live --detector movenet:multipose.tflite`,
    `agebody live clip.mp4 --detector rtmo:rtmo-s.onnx -o drawn.mp4`
    """
    from agebody.annotations.videos import USUAL_RATE, Video, camera_frames, is_video, write_video
    from agebody.assets.asset import SMPL_JOINT_NAMES
    from agebody.detect import load_detector
    from agebody.detect.detector import DetectorError
    from agebody.engine.backend import is_installed
    from agebody.nets import Lifter
    from agebody.pipelines.labels.live import Stream

    if video is not None and camera is not None:
        options.refuse("--camera", "expected a camera or a video, not both")
    given = options.read_lens(focal, fov) | options.read_ages(age_offset, age_class, years)
    if output is not None and output.suffix.lower() != ".mp4":
        options.refuse("-o", f"expected a name that ends in .mp4, got {output.name}")
    if not is_installed("embreex"):
        fail('drawing needs embreex; pip install "agebody[render]"')
    marks: list[tuple[float, ...]] = []
    with running(DetectorError) as bars:
        if output is not None:
            options.check_output(output, (video,), overwrite)
        if video is not None and not is_video(video):
            video.stat()
            fail(f"{video}: expected a video; `agebody fit` takes photographs")
        source = None if video is None else Video(video)
        window = None if output is not None else _open_window()
        finder = load_detector(detector or DEFAULT)
        layer = options.make_layer(options.load_body(body, bars), device=device)
        if tuple(layer.asset.joint_names) != SMPL_JOINT_NAMES:
            fail(f"live needs a body with SMPL's 24 joints, got {layer.asset.metadata.name}")
        stream = Stream(layer, Lifter.load().to(layer.device), steps=steps, **given)
        frames = camera_frames(camera or 0) if source is None else source.frames()
        name = video or Path(f"camera {camera or 0}")
        pictures = _draw(frames, name, finder, stream, marks)
        if output is not None:
            with replacing(output, overwrite=overwrite) as temporary:
                write_video(temporary, pictures, USUAL_RATE if source is None else source.rate)
        else:
            _show(window, pictures)
        end = time.perf_counter()
    if not marks:
        fail("ended before the first picture")
    whole, spent = (end - marks[0][0]) / len(marks), np.diff(marks).mean(0)
    names = "detecting", "fitting", "drawing", f"reading and {'showing' if output is None else 'writing'}"
    parts = zip(names, (*spent, whole - spent.sum()), strict=True)
    said = ", ".join(f"{name} {1e3 * each:.0f} ms" for name, each in parts)
    say(f"{amount(len(marks), 'pictures')}, {1 / whole:.1f} frames a second: {said} (means)")
    if output is not None:
        say(f"wrote {output}")
    for line in options.one_age(layer):
        note(line)


def _draw(
    frames: Iterator[tuple[int, Any]], source: Path, finder: Any, stream: Any, marks: list[tuple[float, ...]]
) -> Iterator[Any]:
    """Yield pictures with the people found in them, and record when each step ends; Ctrl-C ends them."""
    from agebody.detect.photographs import detect_frame
    from agebody.pipelines.labels.overlays import IN_VIDEOS, draw_overlay

    try:
        for number, image in frames:
            start = time.perf_counter()
            people = detect_frame(finder, image, source, number)
            detected = time.perf_counter()
            labels = stream(people)
            fitted = time.perf_counter()
            picture = draw_overlay(stream.body, labels, image, **IN_VIDEOS)
            marks.append((start, detected, fitted, time.perf_counter()))
            yield picture
    except KeyboardInterrupt:
        if not marks:
            raise


def _open_window() -> Any:
    """Return OpenCV with an open window, or end the command if none can be."""
    from agebody.annotations.videos import load_opencv

    cv2 = load_opencv("a window", "opencv-python")
    # OpenCV's libraries of windows end the process where there is no display.
    shown = sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    try:
        if not shown:
            fail("there is no display for a window; give -o FILE.mp4")
        cv2.namedWindow(TITLE)
    except cv2.error:
        fail("this OpenCV has no windows; give -o FILE.mp4, or install opencv-python in its place")
    return cv2


def _show(cv2: Any, pictures: Iterator[Any]) -> None:
    for picture in pictures:
        cv2.imshow(TITLE, picture[..., ::-1])
        if cv2.waitKey(1) & 0xFF == ord("q"):
            break
    cv2.destroyAllWindows()
