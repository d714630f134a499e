"""Models in files, run by LiteRT and ONNX Runtime; errors are one line each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from agebody.detect.detector import DetectorError
from agebody.files import first_line

INSTALL = 'pip install "agebody[detect]"'


def read_model(path: Path) -> bytes:
    """Return the content of a file of weights.

    Raises:
        DetectorError: there is none.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise DetectorError(f"{path}: no such file of weights; agebody ships none, download it first")
    return path.read_bytes()


class LiteModel:
    """A TensorFlow Lite model, whose inputs are resized as they come.

    Args:
        name: what errors call it.
        content: bytes of the file.
    """

    def __init__(self, name: str, content: bytes) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImportError(f"{name} needs ai-edge-litert: {INSTALL}") from None
        self.name = name
        try:
            self._model = Interpreter(model_content=content, num_threads=os.cpu_count() or 1)
        except (ValueError, RuntimeError):
            raise DetectorError(f"{name}: not a TensorFlow Lite model, or a damaged one") from None
        self.inputs = [tuple(map(int, one["shape_signature"])) for one in self._model.get_input_details()]
        self.outputs = [tuple(map(int, one["shape_signature"])) for one in self._model.get_output_details()]
        self.dtype = np.dtype(self._model.get_input_details()[0]["dtype"])

    def __call__(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for the one input, which is cast to the type that the model takes."""
        given = self._model.get_input_details()[0]
        if tuple(given["shape"]) != array.shape:
            self._model.resize_tensor_input(given["index"], array.shape, strict=True)
        self._model.allocate_tensors()
        self._model.set_tensor(given["index"], array.astype(self.dtype))
        self._model.invoke()
        return [self._model.get_tensor(one["index"]) for one in self._model.get_output_details()]


class OnnxModel:
    """An ONNX model of one input, on the GPU if ONNX Runtime has one."""

    def __init__(self, name: str, content: bytes) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError(f"{name} needs onnxruntime: {INSTALL}") from None
        self.name = name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, too
        known = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [one for one in known if one in onnxruntime.get_available_providers()]
        try:
            self._model = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # types of ONNX Runtime's own, which it does not export
            why = first_line(error)
            raise DetectorError(f"{name}: not a model that ONNX Runtime can run: {why}") from None
        self.inputs = [_shape(one) for one in self._model.get_inputs()]
        self.outputs = [_shape(one) for one in self._model.get_outputs()]

    def __call__(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for the one input."""
        try:
            found = self._model.run(None, {self._model.get_inputs()[0].name: array})
        except Exception as error:
            raise DetectorError(f"{self.name}: the model fails: {first_line(error)}") from None
        return [np.asarray(one) for one in found]


def _shape(one: Any) -> tuple[int, ...]:
    """Return the shape of an input or output, -1 where it is not fixed."""
    return tuple(size if isinstance(size, int) and size > 0 else -1 for size in one.shape)


def expect_model(model: LiteModel | OnnxModel, what: str, expected: str, fits: bool) -> None:
    """Refuse a model whose inputs and outputs are not those of a kind."""
    if not fits:
        shapes = f"{model.inputs} -> {model.outputs}"
        raise DetectorError(f"{model.name}: not a model of {what}; expected {expected}, got {shapes}")
