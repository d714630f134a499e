"""Convert SPIN's and PARE's weights to the names and the order of numbers of this library's heads."""

from __future__ import annotations

import re

import torch
from torch import Tensor

Weights = dict[str, Tensor]
COLUMNS = (0, 2, 4, 1, 3, 5)
"""Six numbers of SPIN and PARE, row by row of two columns, in the order here, one column after the other."""

_SPIN_HEAD = re.compile(r"(head\.)?(fc[12]|dec\w+)\.(weight|bias)$")
_STARTS = {"init_pose": "init_body_pose", "init_shape": "init_betas", "init_cam": "init_cam"}
_PARE_LAYERS = {
    "keypoint_deconv_layers": "part_branch",
    "keypoint_final_layer": "part_logits",
    "smpl_deconv_layers": "body_branch",
    "smpl_final_layer": "narrow",
    "shape_mlp": "decshape",
    "cam_mlp": "deccam",
}


def translate_spin(weights: Weights) -> Weights:
    """Return SPIN's weights, or those of a relative with the same head, such as PARE's baseline."""
    made = {}
    states = sum(tensor.shape[0] for name, tensor in weights.items() if re.search(r"dec\w+\.bias$", name))
    for name, tensor in weights.items():
        own = name.removeprefix("head.")
        if own in _STARTS:
            made[f"head.{_STARTS[own]}"] = _columns(tensor, 1) if own == "init_pose" else tensor
        elif _SPIN_HEAD.match(name):
            if own.startswith("decpose."):
                tensor = _columns(tensor, 0)
            elif own == "fc1.weight":  # takes the pose so far, behind the features and any condition
                fixed, pose, others = tensor.tensor_split((-states, _pose_size(weights) - states), 1)
                tensor = torch.cat((fixed, _columns(pose, 1), others), 1)
            made[f"head.{own}"] = tensor
        else:
            made[name if name.startswith("backbone.") else f"backbone.{name}"] = tensor
    return made


def translate_pare(weights: Weights) -> Weights:
    """Return PARE's weights; its means are used if its configuration says so."""
    made = {}
    pose = weights["head.pose_mlp.weight"].flatten(3).squeeze(0).squeeze(-1).permute(2, 0, 1)
    parts = pose.shape[0]
    for name, tensor in weights.items():
        own = name.removeprefix("head.")
        layer, _, rest = own.partition(".")
        if not name.startswith("head."):
            made[name] = tensor
        elif layer in _PARE_LAYERS:
            if own in ("shape_mlp.weight", "cam_mlp.weight"):  # features of one part after the other
                tensor = tensor.unflatten(1, (-1, parts)).mT.flatten(1)
            made[f"head.{_PARE_LAYERS[layer]}.{rest}"] = tensor
        elif own == "init_pose":  # PARE takes its mean for the first numbers of all joints, then the second
            made["head.init_body_pose"] = tensor.reshape(6, parts).T[:, COLUMNS].reshape(1, -1)
        elif own == "pose_mlp.weight":
            made["head.pose_weight"] = pose[:, COLUMNS]
        else:
            made[f"head.{_STARTS.get(own, own)}"] = tensor
    return made


def _pose_size(weights: Weights) -> int:
    return next(tensor.shape[0] for name, tensor in weights.items() if name.endswith("decpose.bias"))


def _columns(tensor: Tensor, axis: int) -> Tensor:
    order = 6 * torch.arange(tensor.shape[axis] // 6)[:, None] + torch.tensor(COLUMNS)
    return tensor.index_select(axis, order.flatten())
