"""Detectors by name, or as KIND:PATH of a file of weights."""

from __future__ import annotations

import re
from pathlib import Path

from agebody.detect.blazepose import BlazePose
from agebody.detect.detector import Detector, DetectorError
from agebody.detect.movenet import MoveNet
from agebody.detect.rtm import Rtmlib, Rtmo, Rtmpose

FILES = {
    "movenet": (MoveNet, "FILE.tflite"),
    "blazepose": (BlazePose, "FILE.task"),
    "rtmo": (Rtmo, "FILE.onnx"),
    "rtmpose": (Rtmpose, "FILE.onnx"),
}
"""Kinds of detectors in files."""


def load_detector(name: str) -> Detector:
    """Return a detector by name, or of a file of weights; agebody ships none.

    - ``rtmlib``, ``rtmlib:performance``, ``rtmlib:lightweight``: YOLOX and RTMPose with feet, of the package
      rtmlib, which downloads its weights at the first use.
    - ``rtmo:FILE.onnx``: RTMO, all people at once; 17 keypoints, or whatever number the file has.
    - ``rtmpose:FILE.onnx``: RTMPose, one person; with ``KIND:FILE+rtmpose:FILE.onnx`` all people that another
      detector finds.
    - ``movenet:FILE.tflite``: MoveNet, MultiPose (at most six people at each of two sizes) or SinglePose.
    - ``blazepose:FILE.task``: MediaPipe's pose landmarker; or its landmarks alone, ``FILE.tflite``, with
      ``pose_detection.tflite`` beside them.

    Raises:
        DetectorError: the name is not known, or the file is missing, damaged, or of another model.
        ImportError: the runtime of the model is missing; install ``agebody[detect]``.
        OSError: a file cannot be read.
    """
    first, plus, second = re.fullmatch(r"(.*?)(?:(\+)rtmpose:(.+))?", name, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    if plus:
        return Rtmpose(Path(second), load_detector(first))
    kind, colon, path = name.partition(":")
    if kind == "rtmlib":
        return Rtmlib(path) if colon else Rtmlib()
    if kind in FILES and path:
        return FILES[kind][0](Path(path))
    expected = ", ".join(("rtmlib", *(f"{kind}:{file}" for kind, (_, file) in FILES.items())))
    raise DetectorError(f"detector: expected {expected}, got {name!r}")
