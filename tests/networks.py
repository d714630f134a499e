"""Weights that follow from their names alone, and what every network must be able to do."""

import math

import torch
from torch import nn

Tensors = tuple[torch.Tensor, ...]


def wave(name: str, *shape: int) -> torch.Tensor:
    """Return numbers that follow from a name and a shape, of about the size of new weights."""
    count = torch.arange(math.prod(shape))
    numbers = (count * (count + sum(map(ord, name))) % 9973 / 9973 - 0.5).reshape(shape) * 12**0.5
    spread = 1.0 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5
    if name.endswith("running_var"):
        numbers = numbers.abs() + 0.5
    return (spread * numbers).to(torch.get_default_dtype())


def filled(module: nn.Module) -> nn.Module:
    """Give a module such weights, and return it in evaluation mode."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(wave(name, *tensor.shape))
    return module.eval()


def onnx_outputs(module: nn.Module, example: Tensors, given: Tensors, path) -> list[torch.Tensor]:
    """Export a module with a batch of any size; return what onnxruntime gets from another batch."""
    import onnxruntime

    shapes = [{0: torch.export.Dim("batch")}] * len(example)
    torch.onnx.export(module, example, dynamo=True, dynamic_shapes=shapes, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path)
    names = [part.name for part in session.get_inputs()]
    found = session.run(None, dict(zip(names, (part.numpy() for part in given), strict=True)))
    return [torch.from_numpy(part) for part in found]
