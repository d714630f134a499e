"""MoveNet (Google, 2021, Apache-2.0): one person, or up to six (MultiPose), COCO's keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from agebody.assets.landmarks import COCO17
from agebody.detect.detector import Detections, boxes_of
from agebody.detect.runtimes import LiteModel, expect_model, read_model
from agebody.detect.windows import Window, letterbox

SIDES = (256, 512)
"""Longer sides at which MultiPose looks at an image: 256 is what it was trained for, 512 shows small people,
and brings the number of people to twelve."""
STRIDE = 32
LEAST_SCORE = 0.25
"""Smallest score of a person, as in TensorFlow.js."""


class MoveNet:
    """MoveNet, MultiPose or SinglePose, as a ``.tflite`` file."""

    names: Sequence[str] = COCO17

    def __init__(self, path: Path) -> None:
        self._model = LiteModel(str(path), read_model(path))
        shapes = self._model.inputs[0], self._model.outputs[0]
        self._several = shapes[1] == (1, 6, 56)
        fits = shapes[1] in ((1, 6, 56), (1, 1, 17, 3)) and len(shapes[0]) == 4 and shapes[0][3] == 3
        expected = "(1, H, W, 3) -> (1, 6, 56) or (1, 1, 17, 3)"
        expect_model(self._model, "MoveNet", expected, fits and (self._several or min(shapes[0]) > 0))

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Return the people of an image."""
        height, width = image.shape[:2]
        if not self._several:
            _, rows, columns, _ = self._model.inputs[0]
            return self._look(image, letterbox(image, (columns, rows)))
        found = []
        for side in SIDES:
            scale = side / max(width, height)
            size = tuple(max(-(-round(n * scale) // STRIDE), 1) * STRIDE for n in (width, height))
            window = Window((size[0] / 2 / scale, size[1] / 2 / scale), scale, (size[0], size[1]))
            found.append(self._look(image, window))
        return Detections.join(found).merged(self.names)

    def _look(self, image: UInt8[np.ndarray, "H W 3"], window: Window) -> Detections:
        output = self._model(window.cut(image)[None])[0].astype(float)
        rows = output.reshape(-1, 56 if self._several else 51)
        points = rows[:, :51].reshape(-1, 17, 3)
        keypoints = np.concatenate((window.to_image(points[..., 1::-1] * window.size), points[..., 2:]), -1)
        if self._several:
            corners = rows[:, 51:55].reshape(-1, 2, 2)[..., ::-1] * window.size
            boxes, scores = window.to_image(corners).reshape(-1, 4), rows[:, 55]
        else:
            boxes, scores = boxes_of(keypoints), points[..., 2].mean(1)
        return Detections(keypoints, boxes, scores).select(scores >= LEAST_SCORE)
