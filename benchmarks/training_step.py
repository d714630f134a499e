"""HMR2's training step without its backbone: head, body, projection, losses, and all gradients."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import Session
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

import agebody
from agebody import cameras, nets
from agebody.assets.io import export_smpl
from agebody.losses import hmr2_objective
from agebody.people import random_people
from agebody.pipelines.bench import load_smplx
from agebody.pipelines.train import predicted_values
from agebody.rotations import axis_angle_to_matrix

LAYOUT, TOKENS, CHANNELS = "hmr2_44", 192, 1280
TOLERANCE = 2e-4
"""Largest difference of two gradients, as a share of the largest entry."""
HEAD, BODY = "head and body", "body alone"


class Step:
    """Inputs of both sides: features, boxes and labels of people."""

    def __init__(self, body: agebody.SMPL, batch: int, device: torch.device) -> None:
        people = random_people(body, batch, seed=1)
        p = people.parameters
        matrices = axis_angle_to_matrix(torch.cat((p.global_orient[:, None], p.body_pose), 1))
        points = body.keypoints(LAYOUT, p)
        side = people.size.amax(-1).float()
        corners = torch.stack(
            (people.camera.center - side[:, None] / 2, people.camera.center + side[:, None] / 2), 1
        )
        self.box, self.camera = corners.flatten(1).to(device), people.camera.to(device)
        pixels = people.camera.project(points).pixels
        self.target = {
            "keypoints_2d": cameras.to_crop(pixels, self.box.cpu()),
            "keypoints_2d_weights": torch.rand(batch, 44),
            "keypoints_3d": points,
            "keypoints_3d_weights": torch.ones(batch, 44),
            "global_orient": matrices[:, 0],
            "body_pose": matrices[:, 1:],
            "betas": p.betas,
            **{f"{name}_weights": torch.ones(batch) for name in ("global_orient", "body_pose", "betas")},
        }
        self.target = {name: value.to(device) for name, value in self.target.items()}
        self.features = torch.randn(batch, TOKENS, CHANNELS).to(device)
        weak = torch.tensor([0.9, 0.0, 0.0]).expand(batch, 3)
        noise = 0.1 * torch.randn(batch, 24, 6) + nets.start_readouts(24, 10)["pose"].reshape(24, 6)
        self.readouts = {
            "pose": noise.flatten(1).to(device),
            "betas": torch.zeros(batch, 10).to(device),
            "camera": weak.to(device),
        }


def ours(body: agebody.SMPL, step: Step, readouts: dict[str, Tensor], objective: nn.Module) -> Tensor:
    """Return the loss as a user of agebody computes it."""
    prediction = nets.read_prediction(readouts, body)
    return objective(predicted_values(prediction, body, step.box, step.camera), step.target).total


def theirs(
    layer: nn.Module, regressor: tuple[Tensor, Tensor], step: Step, readouts: dict[str, Tensor]
) -> Tensor:
    """Return the same loss in plain torch around smplx, without checks or safeguards."""
    batch, target = readouts["pose"].shape[0], step.target
    first, second = readouts["pose"].view(batch, 24, 2, 3).unbind(2)
    x = normalize(first, dim=-1)
    y = normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    matrices = torch.stack((x, y, torch.cross(x, y, dim=-1)), -1)
    out = layer(
        betas=readouts["betas"], body_pose=matrices[:, 1:], global_orient=matrices[:, :1], pose2rot=False
    )
    joints, rows = regressor
    points = torch.where((joints >= 0)[:, None], out.joints[:, joints.clamp(min=0)], rows @ out.vertices)
    scale, tx, ty = readouts["camera"].unbind(-1)
    side = step.box[:, 2] - step.box[:, 0]
    focal, center = step.camera.focal, (step.box[:, :2] + step.box[:, 2:]) / 2
    depth = 2 * focal[:, 0] / (side * scale + 1e-9)
    offset = 2 * (center - step.camera.center) / (side * scale + 1e-9)[:, None]
    moved = points + torch.stack((tx + offset[:, 0], ty + offset[:, 1], depth), -1)[:, None]
    pixels = focal[:, None] * moved[..., :2] / moved[..., 2:] + step.camera.center[:, None]
    flat = (pixels - center[:, None]) / side[:, None, None]
    rooted = points - points[:, 39:40]
    true = target["keypoints_3d"] - target["keypoints_3d"][:, 39:40]
    terms = (
        0.05 * (rooted - true).abs().sum(),
        0.01 * (target["keypoints_2d_weights"][..., None] * (flat - target["keypoints_2d"]).abs()).sum(),
        0.001 * (matrices[:, 0] - target["global_orient"]).square().sum(),
        0.001 * (matrices[:, 1:] - target["body_pose"]).square().sum(),
        0.0005 * (readouts["betas"] - target["betas"]).square().sum(),
    )
    return sum(terms)  # pyright: ignore


def published_head(head: nets.DecoderHead, features: Tensor) -> dict[str, Tensor]:
    """Return the read-outs of the same weights by the usual attention, with keys and values of all tokens."""

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (8, 64)).transpose(1, 2)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(heads(query), heads(key), heads(value)).transpose(1, 2).flatten(2)

    decoder = head.transformer
    x = (decoder.to_token_embedding(features.new_zeros(features.shape[0], 1)) + decoder.pos_embedding[:, 0])[
        :, None
    ]
    for own, cross, perceptron in decoder.transformer["layers"]:
        x = x + own.fn.to_out(attention(*own.fn.to_qkv(own.norm(x)).chunk(3, -1)))
        keys = cross.fn.to_kv(features).chunk(2, -1)
        x = x + cross.fn.to_out(attention(cross.fn.to_q(cross.norm(x)), *keys))
        x = x + perceptron(x)
    return {name: head.read(name, x[:, 0]) for name in head.sizes}


def gradients(loss: Callable[[dict[str, Tensor]], Tensor], readouts: dict[str, Tensor]) -> list[Tensor]:
    """Return the gradients of a loss with respect to read-outs."""
    leaves = {name: value.detach().requires_grad_() for name, value in readouts.items()}
    return list(torch.autograd.grad(loss(leaves), list(leaves.values())))


def network_gradients(
    loss: Callable[[dict[str, Tensor]], Tensor],
    read: Callable[[Tensor], dict[str, Tensor]],
    features: Tensor,
    weights: list[nn.Parameter],
) -> list[Tensor]:
    """Return the gradients with respect to features and the weights of the head."""
    leaf = features.detach().requires_grad_()
    return list(torch.autograd.grad(loss(read(leaf)), [leaf, *weights], allow_unused=True))


def main() -> None:
    session = Session("training_step", __doc__, batches={"cpu": (16, 48), "cuda": (48, 256)}, seconds=20.0)
    torch.manual_seed(0)
    body = agebody.SMPL(session.asset, pose_format="matrix", device=session.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "SMPL_NEUTRAL.pkl"
        export_smpl(session.asset, path)
        layer = load_smplx(path, session.device)
    joints, rows = agebody.LAYOUTS[LAYOUT].resolve(session.asset)
    regressor = (
        torch.from_numpy(joints[:, 0]).to(session.device),
        torch.from_numpy(rows.toarray()).to(session.device, torch.float32),
    )
    objective = hmr2_objective().without("adversarial")
    head = nets.DecoderHead.preset("hmr2").to(session.device)
    weights = [p for p in head.parameters() if p.requires_grad]
    for batch in session.batches:
        step = Step(body, batch, session.device)
        losses = {
            "agebody torch": partial(ours, body, step, objective=objective),
            "smplx": partial(theirs, layer, regressor, step),
        }
        readers = {"agebody torch": head, "smplx": partial(published_head, head)}
        runs = {
            BODY: {name: partial(gradients, loss, step.readouts) for name, loss in losses.items()},
            HEAD: {
                name: partial(network_gradients, loss, readers[name], step.features, weights)
                for name, loss in losses.items()
            },
        }
        for which, functions in runs.items():
            one, other = (function() for function in functions.values())
            for found, expected in zip(one, other, strict=True):
                if found is None or expected is None:
                    continue
                error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
                if not error <= TOLERANCE:
                    raise SystemExit(f"{which}: gradients differ by {error:.3g} of the largest")
            session.time(batch, functions, which=which)
    session.finish()


if __name__ == "__main__":
    main()
