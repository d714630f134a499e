"""Tiny networks in files: ONNX that finds people as RTMO and RTMPose do, by formulas; and a regressor."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import agebody
from agebody.nets import DecoderHead, Regressor, ViT, ViTSize, start_readouts

OPSET = [helper.make_opsetid("", 17)]


def save(path, nodes, size, outputs, **constants):
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *size[::-1]])
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(nodes, "tiny", [given], found, initial)
    onnx.save(helper.make_model(graph, opset_imports=OPSET, ir_version=8), path)


def save_rtmo(path, points, scores, *, size=(64, 64), box=(0.0, 0.0, 8.0, 8.0)):
    """Write a network that finds people at fixed points (N, K, 3) of its input, whatever the image."""
    boxes = np.array([[*box, score] for score in scores], np.float32).reshape(1, -1, 5)
    points = np.asarray(points, np.float32)[None]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["boxes", "nothing"], ["dets"]),
        helper.make_node("Add", ["points", "nothing"], ["keypoints"]),
    ]
    shapes = {"dets": [None, None, 5], "keypoints": [None, None, points.shape[2], 3]}
    save(path, nodes, size, shapes, boxes=boxes, points=points, zero=np.float32(0))


def save_rtmpose(path, *, size=(48, 64), count=17):
    """Write a network that puts every keypoint at the brightest pixel of its input."""
    nodes = []
    for axis in "xy":
        axes = [1, 2] if axis == "x" else [1, 3]
        nodes += [
            helper.make_node("ReduceMax", ["input"], [f"{axis}1"], axes=axes, keepdims=0),
            helper.make_node("Reshape", [f"{axis}1", f"{axis}shape1"], [f"{axis}2"]),
            helper.make_node("Tile", [f"{axis}2", f"{axis}twice"], [f"{axis}3"]),
            helper.make_node("Reshape", [f"{axis}3", f"{axis}shape2"], [f"{axis}4"]),
            helper.make_node("Tile", [f"{axis}4", f"{axis}count"], [f"simcc_{axis}"]),
        ]
    constants = {}
    for axis, side in (("x", size[0]), ("y", size[1])):
        constants |= {
            f"{axis}shape1": np.array([-1, side, 1]),
            f"{axis}twice": np.array([1, 1, 2]),
            f"{axis}shape2": np.array([-1, 1, 2 * side]),
            f"{axis}count": np.array([1, count, 1]),
        }
    shapes = {"simcc_x": [None, None, 2 * size[0]], "simcc_y": [None, None, 2 * size[1]]}
    save(path, nodes, size, shapes, **constants)


TINY = ViTSize(32, 1, 2)
"""A size that `load_checkpoint` knows while it is in ``VIT_SIZES``."""


def save_network(path, num_betas=10):
    """Write a network of random weights for a body of every age, told where its crops are."""
    body = agebody.SMPLA(agebody.mannequin(), pose_format="matrix", num_betas=num_betas)
    torch.manual_seed(0)
    head = DecoderHead(start_readouts(body), channels=32, width=32, depth=1, heads=1, condition=3)
    save_file(Regressor(ViT(TINY, image_size=(64, 48)), head, body).state_dict(), path)
