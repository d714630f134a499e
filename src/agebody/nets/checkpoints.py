"""Published and own weights of networks, read as data and matched name by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agebody.assets.asset import AssetError
from agebody.assets.container import PathLike, naming, opened_tensors
from agebody.body import BodyModel
from agebody.losses import PoseDiscriminator
from agebody.nets.decoder import HEAD_SIZE, DecoderHead
from agebody.nets.readouts import layer_names, readout_of
from agebody.nets.regressor import Regressor, expect_matrix_body
from agebody.nets.spin_pare import translate_pare, translate_spin
from agebody.nets.vit import VIT_SIZES, ViT, ViTSize

Weights = dict[str, Tensor]

WHERE = (
    "The weights of HMR2 come with the code of 4D-Humans and those of AionHMR with its own, both on GitHub; "
    "those of CameraHMR come from camerahmr.is.tue.mpg.de, those of SPIN and PARE with their code on GitHub"
)


class Checkpoint(NamedTuple):
    """Result of `load_checkpoint`."""

    network: Regressor
    """In evaluation mode."""
    family: str
    """Which network it is, such as "AionHMR"."""
    discriminator: PoseDiscriminator | None
    """That of the network's training, if the file has it."""
    left_out: tuple[str, ...]
    """Unused content of the file: arrays of a body, other networks, training state."""


class Family(NamedTuple):
    """How the weights of one kind of network are recognised and used."""

    name: str
    mark: re.Pattern[str]
    """Matches the name of a tensor that only this kind has, behind the prefix of a trainer's network."""
    translate: Callable[[Weights], Weights]
    """Converts names and the order of 6D rotations to those of a `Regressor`."""
    build: Callable[[Weights, BodyModel], tuple[str, Regressor]]
    """Returns which network it is, from translated weights, and a new one on the device "meta"."""
    optional: re.Pattern[str] = re.compile(r"(?!)")
    """Matches translated names of tensors that are left out where the network has none of the name."""


def read_checkpoint(path: PathLike) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, of torch or safetensors, without running anything of it.

    Args:
        path: a state dict, or a file of Lightning or a training script, which has it as "state_dict",
            "model", "model_state_dict" or "module", or as its only entry of named tensors.

    Raises:
        AssetError: the file is missing, damaged, hostile, or has no named tensors.
    """
    with naming(path):
        return _read(path)[0]


def load_checkpoint(
    path: PathLike, body: BodyModel | None = None, *, network: Regressor | None = None
) -> Checkpoint:
    """Return the network whose weights a file holds, with a body as its last layer.

    Reads the files of HMR2, AionHMR and CameraHMR, and those of your own training of a `Regressor` with a
    `ViT` and a `DecoderHead`; with ``network`` also those of SPIN (`IterativeHead`) and PARE
    (`PartAttentionHead`), whose backbones are yours, and of any other `Regressor`. Nothing in the file is
    run. A network that reads no age offset predicts adults of a body of every age.

    Args:
        path: of Lightning, torch or safetensors.
        body: a layer with ``pose_format="matrix"``, and as many joints and betas as the network predicts.
        network: takes the weights, in place of a new network with ``body``: one with a backbone of your own,
            or whose sizes cannot be inferred from its weights.

    Raises:
        AssetError: the file cannot be read, is that of another network or of another body, or lacks tensors
            or has unknown ones, which are listed.
    """
    if (body is None) == (network is None):
        raise ValueError("body: expected a body, or else a network")
    if network is None:
        expect_matrix_body(body)
    with naming(path):
        tensors, beside = _read(path)
        tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
        judge = {name: tensor for name, tensor in tensors.items() if name.startswith("discriminator.")}
        found = [(m[1], f) for f in FAMILIES for m in map(f.mark.match, tensors) if m]
        prefix, family = min(found, key=lambda pair: len(pair[0]), default=("", None))
        several = sorted({other.removesuffix(".")[:100] for other, _ in found})
        if prefix and len(several) > 1:
            raise AssetError(
                f"holds the weights of several networks, {', '.join(several)}; save those of one"
            )
        weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        weights = {n: t for n, t in weights.items() if n not in judge and not _LEFT_OUT.match(n)}
        left_out = [n for n in tensors if n not in judge and n.removeprefix(prefix) not in weights]
        if family is not None:
            weights = _translated(family, weights)
        if network is not None:
            name = type(network.head).__name__
        elif family is None:
            raise AssetError(_looks_like(list(tensors)))
        else:
            assert body is not None
            name, network = family.build(weights, body)
        if family is not None:
            own = network.state_dict().keys()
            unused = [name for name in weights if name not in own and family.optional.match(name)]
            weights = {name: tensor for name, tensor in weights.items() if name not in unused}
            left_out += unused
        _assign(network, weights)
        discriminator = _discriminator(judge) if judge else None
    return Checkpoint(network.eval(), name, discriminator, (*left_out, *beside))


def _translated(family: Family, weights: Weights) -> Weights:
    try:
        return family.translate(weights)
    except (RuntimeError, IndexError, KeyError, StopIteration):
        raise AssetError(f"tensors whose names or shapes are not those of {family.name}") from None


def _read(path: PathLike) -> tuple[Weights, tuple[str, ...]]:
    with opened_tensors(path, WHERE) as (arrays, beside):
        return {name: _tensor(name, array) for name, array in arrays}, beside


def _tensor(name: str, array: object) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise AssetError(f"{name}: {getattr(array, 'reason', 'not an array of numbers')}")
    return torch.from_numpy(array.copy())


_WRAPPERS = re.compile(
    r"^((module|_orig_mod|model|network|_forward_module)\.)+"
    r"|\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\."
)
"""Prefixes that wrappers of networks, and of parts of them, add to names."""

_LEFT_OUT = re.compile(r"(smplx?(_(layer|gt)\w*)?|cam_model|keypoint_head)\.|(initialized|n_averaged)$")
"""Tensors beside a network's weights: bodies of its training, other networks."""

_STRANGERS = (
    (r"(backbone\.)?patch_embed\.proj", "a backbone without a head"),
    (r"discriminator\.|D_conv1", "a discriminator without its network"),
    (r"head\.dec_kp", "CameraHMR's dense keypoints"),
    (r"(encoder|decoder)\.layers|class_embed", "a detection transformer"),
    (r"backbone\.stage\d|(final_layer|fc\d?)\.", "a convolutional network"),
)


def _looks_like(names: list[str]) -> str:
    """Describe a file of unknown weights."""
    fitting = (what for mark, what in _STRANGERS if any(re.match(mark, name) for name in names))
    what = next(fitting, f"an unknown network ({', '.join(name[:100] for name in names[:3])}, ...)")
    return f"{len(names)} tensors of {what}; expected those of {', '.join(f.name for f in FAMILIES)}"


def _assign(network: Regressor, weights: Weights) -> None:
    """Load weights into a network; one error lists all mismatches."""
    own = network.state_dict()
    other = [
        name
        for name in own.keys() & weights.keys()
        if [n for n in own[name].shape if n != 1] != [n for n in weights[name].shape if n != 1]
    ]
    bad = [
        name
        for name in own.keys() & weights.keys()
        if own[name].is_floating_point()
        and not (weights[name].is_floating_point() and weights[name].isfinite().all())
    ]
    wrong = {
        "missing": own.keys() - weights.keys(),
        "unknown": weights.keys() - own.keys(),
        "of another shape": other,
        "not of finite numbers": bad,
    }
    parts = [f"{len(names)} {what} ({_listed(names)})" for what, names in wrong.items() if names]
    if parts:
        raise AssetError(f"tensors that do not fit the network: {', '.join(parts)}")
    made = {}
    for name, tensor in own.items():
        device = "cpu" if tensor.is_meta else tensor.device
        made[name] = weights[name].reshape(tensor.shape).to(device, tensor.dtype)
    network.load_state_dict(made, assign=True)


def _listed(names: Collection[str]) -> str:
    """Return names of tensors, those of all blocks as one."""
    counts = Counter(re.sub(r"(blocks|layers)\.\d+", r"\1.*", name[:100]) for name in sorted(names))
    shown = [name if count == 1 else f"{name} {count}x" for name, count in counts.items()]
    return ", ".join(shown[:30] + ["..."] * (len(shown) > 30))


def _discriminator(tensors: Weights) -> PoseDiscriminator:
    tensors = {name.removeprefix("discriminator."): tensor for name, tensor in tensors.items()}
    joints = sum(bool(re.fullmatch(r"pose_out\.\d+\.weight", name)) for name in tensors)
    judge = PoseDiscriminator(
        joints or _side(tensors, "joint_bias", 0, 23),
        _side(tensors, "betas_fc1.weight", 1, _side(tensors, "shape.0.weight", 1, 10)),
        joint_features=_side(tensors, "joint.0.weight", 0, 32),
        pose_features=_side(tensors, "pose.0.weight", 0, 1024),
    )
    try:
        judge.load_state_dict(tensors)
    except (RuntimeError, IndexError) as error:
        raise AssetError(f"discriminator: {' '.join(str(error).split())[:300]}") from None
    return judge


def _translate_decoder(weights: Weights) -> Weights:
    """Rename the head; the order of numbers of HMR2 and its relatives is the same.

    The public code of CameraHMR's SMPL-X form leaves jaw and eyes at rest, whatever the head reads for them.
    """
    made = {re.sub(r"^smplx?_head\.", "head.", name): tensor for name, tensor in weights.items()}
    if "head.dechandpose.bias" in made.keys() - weights.keys():
        rest = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(3)
        for name, value in (("decpose.weight", 0), ("decpose.bias", 0), ("init_body_pose", rest)):
            tensor = made.get(f"head.{name}", rest)
            if 150 in tensor.shape:  # six numbers of root, 21 joints, jaw and eyes
                made[f"head.{name}"] = tensor = tensor.clone()
                tensor.narrow(tensor.shape.index(150), 132, 18)[...] = value
    return made


def _build_decoder(weights: Weights, body: BodyModel) -> tuple[str, Regressor]:
    """Return HMR2 or one of its relatives, from the shapes of its weights."""
    head = {
        name.removeprefix("head."): tensor for name, tensor in weights.items() if name.startswith("head.")
    }
    readouts: dict[str, Tensor | int] = {}
    for layer in dict.fromkeys(m[1] for m in map(re.compile(r"(dec\w+)\.(?:weight|bias)$").match, head) if m):
        name = readout_of(layer)
        size = _side(head, f"{layer}.bias", 0, _side(head, f"{layer}.weight", 0, 1))
        start = head.get(layer_names(name)[1])
        readouts[name] = size if start is None else start.to(torch.get_default_dtype())
    missing = [layer_names(name)[0] for name in ("pose", "betas", "camera") if name not in readouts]
    if missing:
        raise AssetError(f"tensors that do not fit the network: missing the layers {', '.join(missing)}")
    sizes = {name: v if isinstance(v, int) else v.numel() for name, v in readouts.items()}
    kind = next(name for name, wanted in _DECODERS.items() if wanted.items() <= sizes.items())
    _expect_body(kind, sizes, body)
    token = _side(head, "transformer.to_token_embedding.weight", 1, 1)
    start_names = tuple(
        name for name in ("pose", "betas", "camera") if isinstance(readouts.get(name), Tensor)
    )
    starts = sum(sizes[name] for name in start_names)
    blocks = "transformer.transformer.layers."
    size = _vit_size(weights)
    with torch.device("meta"):
        decoder = DecoderHead(
            readouts,
            channels=size.width,
            condition=token - starts if token >= starts else token if token > 1 else 0,
            token_starts=start_names if token >= starts else (),
            width=_side(head, "transformer.pos_embedding", -1, 1024),
            depth=_blocks(head, blocks),
            heads=_side(head, f"{blocks}0.1.fn.to_q.weight", 0, 512) // HEAD_SIZE,
        )
        return kind, Regressor(ViT(size, image_size=_image_size(weights)), decoder, body)


_DECODERS: dict[str, dict[str, int]] = {
    "CameraHMR-X": {"hands": 180},
    "CameraHMR": {"keypoints": 88},
    "AionHMR": {"pose": 144, "betas": 11},
    "HMR2": {"pose": 144, "betas": 10},
    "Regressor": {},
}
"""Network -> sizes of read-outs that identify it; the first match counts."""


def _expect_body(kind: str, sizes: dict[str, int], body: BodyModel) -> None:
    betas = (body.num_betas, body.num_betas + 1) if body.age_anchors else (body.num_betas,)
    joints = (sizes["pose"] + sizes.get("hands", 0) * (sizes["pose"] < 6 * body.num_joints)) / 6
    if joints != body.num_joints or sizes["betas"] not in betas:
        raise AssetError(
            f"{kind} predicts {joints:g} joints and {sizes['betas']} shape numbers; the body has "
            f"{body.num_joints} joints and {' or '.join(map(str, betas))}"
        )


def _vit_size(weights: Weights) -> ViTSize:
    width, depth = (
        _side(weights, "backbone.patch_embed.proj.weight", 0, 1280),
        _blocks(weights, "backbone.blocks."),
    )
    for size in VIT_SIZES.values():
        if (size.width, size.depth) == (width, depth):
            return size
    raise AssetError(
        f"a backbone of {depth} blocks of width {width}, which is not one of ViTPose's; pass network=, a "
        "network with that backbone"
    )


def _image_size(weights: Weights) -> tuple[int, int]:
    """Return the size of ViTPose's upright images, 4 to 3, from the number of positions."""
    unit = round(((_side(weights, "backbone.pos_embed", 1, 193) - 1) / 12) ** 0.5) or 1
    return 64 * unit, 48 * unit


def _side(weights: Weights, name: str, axis: int, missing: int) -> int:
    """Return a size of a tensor; the published one if there is no such tensor, an error later."""
    tensor = weights.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.dim() > axis and tensor.numel() else missing


def _blocks(weights: Weights, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def _of_your_own(backbone: str, head: str) -> Callable[[Weights, BodyModel], tuple[str, Regressor]]:
    """Return the request for a network whose backbone is not part of this library."""

    def build(weights: Weights, body: BodyModel) -> tuple[str, Regressor]:
        raise ValueError(
            "body: the backbone is not part of this library; from Python, pass network= instead, "
            f"nets.Regressor({backbone}, nets.{head}, body)"
        )

    return build


def _mark(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"((?:\w+\.)*?){pattern}")


_SPIN = "IterativeHead(nets.start_readouts(24, 10))"
_PARE = 'PartAttentionHead({"pose": 144, "betas": 10, "camera": 3})'

FAMILIES = (
    Family(
        "HMR2, AionHMR, CameraHMR",
        _mark(r"(smpl_head|smplx_head|head)\.transformer\.to_token_embedding\.weight$"),
        _translate_decoder,
        _build_decoder,
    ),
    Family(
        "PARE",
        _mark(r"head\.pose_mlp\."),
        translate_pare,
        _of_your_own("your HRNet", _PARE),
        re.compile(r"head\.(init_\w+|temperature)$"),
    ),
    Family("SPIN", _mark(r"(head\.)?init_pose$"), translate_spin, _of_your_own("your ResNet-50", _SPIN)),
)
