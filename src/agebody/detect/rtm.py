"""RTMO and RTMPose (OpenMMLab, Apache-2.0) as ONNX files, and both with their detector by rtmlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from agebody.annotations.orders import order_by_size, order_by_title, sizes_without_names
from agebody.detect.detector import Detections, Detector, DetectorError, boxes_of
from agebody.detect.runtimes import INSTALL, OnnxModel, expect_model, read_model
from agebody.detect.windows import Window, letterbox

GREY = 114
"""Value of pixels around an image, as in training."""
MEAN, SD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of RGB pixels in training, ImageNet's."""
CROP_SCALE = 1.25
"""Size of the crop over that of a person's box."""
LEAST_SCORE = 0.3
MODES = ("performance", "balanced", "lightweight")
"""Sizes of rtmlib's networks."""


class Rtmo:
    """RTMO, which finds all people at once, as an ``.onnx`` file of MMDeploy."""

    def __init__(self, path: Path) -> None:
        self._model = OnnxModel(str(path), read_model(path))
        self._size, outputs = _probe(self._model)
        shapes = sorted((one.shape for one in outputs), key=len)
        fits = [len(shape) for shape in shapes] == [3, 4] and shapes[0][2] == 5 and shapes[1][3] == 3
        expect_model(self._model, "RTMO", "(B, 3, H, W) -> (B, N, 5), (B, N, K, 3)", fits)
        self.names = _names(self._model, shapes[1][2])

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Return the people of an image."""
        window = letterbox(image, self._size)
        picture = window.cut(image, GREY)[..., ::-1]  # trained on BGR
        boxes, points = sorted(self._model(_planes(picture)), key=np.ndim)
        boxes, points = boxes[0].astype(float), points[0, :, : len(self.names)].astype(float)
        corners = window.to_image(boxes[:, :4].reshape(-1, 2, 2)).reshape(-1, 4)
        keypoints = np.concatenate((window.to_image(points[..., :2]), points[..., 2:]), -1)
        return Detections(keypoints, corners, boxes[:, 4]).select(boxes[:, 4] >= LEAST_SCORE)


class Rtmpose:
    """RTMPose, which sees one person at a time, as an ``.onnx`` file of MMDeploy.

    Args:
        path: the file.
        finder: finds the people; without one, one person is found in the whole image, and again in the box
            around the result.
    """

    def __init__(self, path: Path, finder: Detector | None = None) -> None:
        self._model, self._finder = OnnxModel(str(path), read_model(path)), finder
        self._size, outputs = _probe(self._model)
        shapes = [one.shape for one in outputs]
        fits = [len(shape) for shape in shapes] == [3, 3] and shapes[0][1] == shapes[1][1]
        expect_model(self._model, "RTMPose", "(B, 3, H, W) -> (B, K, 2 W), (B, K, 2 H)", fits)
        self.names = _names(self._model, shapes[0][1])

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Return the people of an image."""
        if self._finder is not None:
            boxes = self._finder(image).boxes
        else:
            height, width = image.shape[:2]
            boxes = boxes_of(self._look(image, np.array([[0, 0, width, height]], dtype=float)))
        keypoints = self._look(image, boxes)
        scores = keypoints[..., 2].mean(1)
        return Detections(keypoints, boxes_of(keypoints), scores).select(scores >= LEAST_SCORE)

    def _look(
        self, image: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "N 4"]
    ) -> Float[np.ndarray, "N K 3"]:
        found = np.zeros((len(boxes), len(self.names), 3))
        for row, box in zip(found, boxes, strict=True):
            window = Window.around(box, self._size, CROP_SCALE)
            picture = (window.cut(image) - np.array(MEAN)) / SD
            bins = [one[0, : len(self.names)].astype(float) for one in self._model(_planes(picture))]
            # A classification along each axis; bins are parts of a pixel.
            per_pixel = [one.shape[1] / side for one, side in zip(bins, self._size, strict=True)]
            row[:, :2] = window.to_image(np.stack([one.argmax(1) for one in bins], -1) / per_pixel)
            row[:, 2] = np.clip(np.mean([one.max(1) for one in bins], 0), 0, 1)
        return found


class Rtmlib:
    """YOLOX and RTMPose with feet, of rtmlib, which downloads their weights at the first use.

    Args:
        mode: one of ``MODES``.
    """

    names: Sequence[str]

    def __init__(self, mode: str = "balanced") -> None:
        if mode not in MODES:
            raise DetectorError(f"rtmlib: expected {', '.join(MODES)}, got {mode!r}")
        try:
            from rtmlib import BodyWithFeet  # pyright: ignore[reportMissingImports]
        except ImportError:
            advice = f"{INSTALL}, or give a file of weights, such as --detector movenet:FILE.tflite"
            raise ImportError(f"rtmlib, which finds people in photographs, is missing; {advice}") from None
        try:
            self._model: Any = BodyWithFeet(mode=mode, backend="onnxruntime")
        except OSError as error:
            advice = "connect to the network once, or give a file of weights, as --detector rtmo:FILE.onnx"
            raise DetectorError(f"rtmlib cannot download its weights ({error}); {advice}") from None
        self.names = order_by_title("Halpe-26").said

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Return the people of an image."""
        picture = np.ascontiguousarray(image[..., ::-1])
        boxes = np.asarray(self._model.det_model(picture), dtype=float).reshape(-1, 4)
        if not len(boxes):  # it would take the whole image for a person
            return Detections(np.zeros((0, len(self.names), 3)), boxes, np.zeros(0))
        points, scores = self._model.pose_model(picture, bboxes=boxes)
        keypoints = np.concatenate((points, np.clip(scores, 0, 1)[..., None]), -1).astype(float)
        return Detections(keypoints, boxes, keypoints[..., 2].mean(1))


def _probe(model: OnnxModel) -> tuple[tuple[int, int], list[np.ndarray]]:
    """Return width and height of the input of a model, and what it returns for a black picture."""
    shape = model.inputs[0]
    fits = len(model.inputs) == 1 and len(shape) == 4 and shape[1] == 3
    expect_model(model, "RTMO or RTMPose", "one input (B, 3, H, W)", fits)
    size = (shape[3] if shape[3] > 0 else 640, shape[2] if shape[2] > 0 else 640)
    return size, model(np.zeros((1, 3, size[1], size[0]), np.float32))


def _names(model: OnnxModel, count: int) -> tuple[str, ...]:
    """Return the names of a model's keypoints, without those of face and hands."""
    order = order_by_size(count)
    expected = f"a known number of keypoints ({sizes_without_names()})"
    expect_model(model, f"people with {count} keypoints", expected, order is not None)
    assert order is not None
    return order.said


def _planes(picture: np.ndarray) -> Float[np.ndarray, "1 3 H W"]:
    return np.ascontiguousarray(np.moveaxis(picture, -1, 0)[None], dtype=np.float32)
