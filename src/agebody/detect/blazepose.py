"""BlazePose (Google, 2020, Apache-2.0): MediaPipe's detector of people and its 33 landmarks."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from agebody.annotations.duplicates import find_duplicates
from agebody.annotations.orders import order_by_title
from agebody.detect.detector import Detections, DetectorError, boxes_of
from agebody.detect.runtimes import LiteModel, expect_model, read_model
from agebody.detect.windows import Window
from agebody.metrics.matching import box_iou

SIZE, LANDMARK_SIZE = 224, 256
"""Sides of the pictures that the two networks see [pixels]."""
CELLS = ((8, 2), (16, 2), (32, 6))
"""Strides of the detector's cells [pixels], and its boxes per cell (MediaPipe's SSD anchors)."""
LEAST_SCORE = 0.5
"""Smallest score of detections and of landmarks, as in MediaPipe."""
OVERLAP = 0.3
"""Intersection over union from which two detections are one person."""
CROP_SCALE = 1.25
"""Side of the crop over twice the distance from the hips to the circle around the person."""


class BlazePose:
    """MediaPipe's pose detector and landmarks.

    Args:
        path: a bundle (``.task``), or landmarks (``.tflite``) with ``pose_detection.tflite`` beside them.
    """

    names: Sequence[str] = order_by_title("MediaPipe").said

    def __init__(self, path: Path) -> None:
        finder, landmarks = _read_both(path)
        self._finder = LiteModel(f"{path}: the detector", finder)
        self._model = LiteModel(str(path), landmarks)
        count = sum(number * (SIZE // stride) ** 2 for stride, number in CELLS)
        expected = f"(1, {SIZE}, {SIZE}, 3) -> (1, {count}, 12), (1, {count}, 1)"
        fits = self._finder.inputs[0][1:3] == (SIZE, SIZE)
        fits = fits and {shape[1:] for shape in self._finder.outputs} == {(count, 12), (count, 1)}
        expect_model(self._finder, "MediaPipe's pose detector", expected, fits)
        fits = self._model.inputs[0][1:3] == (LANDMARK_SIZE, LANDMARK_SIZE)
        fits = fits and {(1, 195), (1, 1)} <= set(self._model.outputs)
        expected = f"(1, {LANDMARK_SIZE}, {LANDMARK_SIZE}, 3) -> (1, 195), (1, 1)"
        expect_model(self._model, "MediaPipe's pose landmarks", expected, fits)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Return the people of an image."""
        found, scores = [np.zeros((0, len(self.names), 3))], []
        for window in self._windows(image):
            outputs = {one.shape: one for one in self._model(window.cut(image)[None] / np.float32(255))}
            if outputs[1, 1].item() < LEAST_SCORE:
                continue
            points = outputs[1, 195].reshape(-1, 5)[: len(self.names)].astype(float)
            visible = 1 / (1 + np.exp(-np.clip(points[:, 3:4], -50, 50)))
            found.append(np.concatenate((window.to_image(points[:, :2]), visible), -1)[None])
            scores.append(outputs[1, 1].item())
        keypoints = np.concatenate(found)
        return Detections(keypoints, boxes_of(keypoints), np.array(scores, dtype=float))

    def _windows(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Window]:
        """Return a square about each person that is turned as the person is."""
        height, width = image.shape[:2]
        whole = Window.around(np.array([0.0, 0, width, height]), (SIZE, SIZE))
        picture = whole.cut(image)[None] / np.float32(127.5) - 1
        outputs = {one.shape[2]: one[0].astype(float) for one in self._finder(picture)}
        scores = 1 / (1 + np.exp(-np.clip(outputs[1][:, 0], -100, 100)))
        rows = np.flatnonzero(scores >= LEAST_SCORE)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        # Centre and size of a box, then points: the middle of the hips, and one on a circle around the body.
        places = outputs[12].reshape(-1, 6, 2)[rows]
        places[:, [0, 2, 3]] += _anchors()[rows, None]
        boxes = np.concatenate((places[:, 0] - places[:, 1] / 2, places[:, 0] + places[:, 1] / 2), 1)
        sides = torch.from_numpy(boxes)
        once = ~find_duplicates(box_iou(sides, sides).numpy() > OVERLAP)
        hips, ends = (whole.to_image(places[once, k]) for k in (2, 3))
        windows = []
        for (x, y), (dx, dy) in zip(hips, ends - hips, strict=True):
            side = max(2 * CROP_SCALE * math.hypot(dx, dy), 1.0)
            size = (LANDMARK_SIZE, LANDMARK_SIZE)
            windows.append(Window((x, y), LANDMARK_SIZE / side, size, math.atan2(dx, -dy)))
        return windows


def _read_both(path: Path) -> tuple[bytes, bytes]:
    """Return the files of the detector and of the landmarks."""
    content = read_model(path)
    if path.suffix.lower() != ".task":
        return read_model(path.with_name("pose_detection.tflite")), content
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            return bundle.read("pose_detector.tflite"), bundle.read("pose_landmarks_detector.tflite")
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, ValueError):
        raise DetectorError(f"{path}: not a bundle of MediaPipe's pose landmarker") from None


def _anchors() -> Float[np.ndarray, "N 2"]:
    """Return the middle of the cell of each of the detector's boxes [pixels]."""
    parts = []
    for stride, number in CELLS:
        middles = (np.arange(SIZE // stride) + 0.5) * stride
        grid = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
        parts.append(np.repeat(grid, number, axis=0))
    return np.concatenate(parts)
