"""Videos: frames are read one at a time by OpenCV, whose wheels include FFmpeg."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from agebody.annotations.people import fail

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts")
"""Suffixes of videos."""
_BEGINNINGS = re.compile(
    rb"....(ftyp|moov|mdat|wide|free|skip)|RIFF....AVI |\x1a\x45\xdf\xa3|"
    rb"\x00\x00\x01[\xba\xb3]|\x47.{187}\x47",
    re.DOTALL,
)
"""Beginnings of MP4, MOV, AVI, Matroska, WebM and MPEG. FFmpeg would also open playlists of other files."""
_SILENT = 0
"""OpenCV's LOG_LEVEL_SILENT."""
USUAL_RATE = 30.0
"""Frames per second of a video that does not state it, and of a folder of frames."""


def load_opencv(purpose: str, package: str) -> Any:
    """Import ``cv2``."""
    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # FFmpeg's AV_LOG_QUIET: errors are said once, by us
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f'{purpose} needs OpenCV, which is not installed; pip install "{package}"'
        ) from error
    return cv2


def is_video(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a video."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def frame_name(number: int) -> str:
    """Return the name of a frame, counted from 0, that ``ffmpeg -i VIDEO %06d.jpg`` gives it."""
    return f"{number + 1:06d}.jpg"


def frame_rate(path: Path) -> float:
    """Return the frames per second of a video, or those assumed for a folder of frames."""
    return Video(path).rate if is_video(path) else USUAL_RATE


class Video:
    """A video file, whose frames are read from its beginning.

    Raises:
        AnnotationError: it is not a video, or damaged.
        ImportError: OpenCV is missing; install ``agebody[video]``.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        cv2 = load_opencv("a video", "agebody[video]")
        with path.open("rb") as file:
            if not _BEGINNINGS.match(file.read(400)):
                fail(path, "not a video that is read; expected MP4, MOV, AVI, MKV, WebM or MPEG")
        with self._opened() as capture:
            rate, count = (capture.get(each) for each in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if math.isfinite(rate) and 0.1 <= rate <= 1000 else USUAL_RATE
        """Frames per second."""
        self.count = int(count) if 0 < count < 1e9 else 0
        """Number of frames as the file states it; 0 if it does not."""

    def frames(self, every: int = 1) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
        """Yield the number, from 0, and the upright RGB picture of every n-th frame, up to a damaged one."""
        with self._opened() as capture:
            number = 0
            while capture.grab():
                if number % every == 0:
                    good, picture = capture.retrieve()
                    if good:
                        yield number, np.ascontiguousarray(picture[..., ::-1])
                number += 1
        if not number:
            fail(self.path, "no frame can be read; the video is damaged, or of a codec that OpenCV lacks")

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        cv2 = load_opencv("a video", "agebody[video]")
        with _silent(cv2):
            capture = cv2.VideoCapture(_name(self.path), cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                fail(self.path, "the video is damaged, or of a codec that OpenCV lacks")
            yield capture
        finally:
            capture.release()


def camera_frames(number: int) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Yield the number, from 0, and the RGB picture of each frame of a camera, until it is unplugged."""
    cv2 = load_opencv("a camera", "agebody[video]")
    with _silent(cv2):
        capture = cv2.VideoCapture(number)
    try:
        good, picture = capture.read() if capture.isOpened() else (False, None)
        if not good or picture is None:
            raise OSError(
                19, "there is no such camera, or another program has it; give a video", f"camera {number}"
            )
        count = 0
        while good:
            yield count, np.ascontiguousarray(picture[..., ::-1])
            good, picture = capture.read()
            count += 1
    finally:
        capture.release()


def write_video(path: Path, frames: Iterator[UInt8[np.ndarray, "H W 3"]], rate: float) -> int:
    """Write RGB pictures of one size as VP9 in MP4, one at a time; return their number.

    The last row or column of an odd size is there twice, since OpenCV would leave it out.
    """
    cv2 = load_opencv("a video", "agebody[video]")
    writer, written = None, 0
    for picture in frames:
        odd = [(0, side % 2) for side in picture.shape[:2]]
        if any(map(any, odd)):
            picture = np.pad(picture, (*odd, (0, 0)), mode="edge")
        if writer is None:
            height, width = picture.shape[:2]
            writer = cv2.VideoWriter(
                _name(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"vp09"), rate, (width, height)
            )
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
        written += 1
    if writer is not None:
        writer.release()
        if not path.is_file() or Video(path).count < written:
            raise OSError(5, "the video cannot be written; is the disk full?", str(path))
    return written


def _name(path: Path) -> str:
    """Return the absolute name of a file for OpenCV, which crashes at names that are not UTF-8."""
    try:
        return str(path.absolute()).encode().decode()
    except UnicodeEncodeError:
        fail(path, "OpenCV opens names in UTF-8 alone; rename the file or its folder")


@contextmanager
def _silent(cv2: Any) -> Iterator[None]:
    """Keep OpenCV from logging errors that are raised anyway."""
    log = getattr(cv2.utils, "logging", cv2)  # where OpenCV 5 has it alone, and 4.9 not at all
    before = log.getLogLevel()
    log.setLogLevel(_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)
