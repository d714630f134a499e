"""Linear blend skinning alone, at SMPL's size, by agebody and the peers, forward and with gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from ceilings import measure
from harness import Session
from peers import reason
from torch import Tensor

from agebody import rotations
from agebody.engine.deform import linear_blend_skinning

BATCHES = {"cpu": (64, 256), "cuda": (64, 1024, 4096)}
TOLERANCE = 1e-5
"""[m], or relative for gradients: rounding of sums of four products in float32."""

Skin = Callable[[Tensor, Tensor], Tensor]
"""((B, V, 3) vertices [m], (B, J, 4, 4) transforms) -> (B, V, 3) [m]."""


class Weights(NamedTuple):
    """Skinning weights of the built-in body, at most four per vertex."""

    joints: Tensor
    """(V, W) int64"""
    shares: Tensor
    """(V, W)"""
    dense: Tensor
    """(V, J)"""


def definition(weights: Weights) -> Skin:
    return lambda vertices, transforms: linear_blend_skinning(vertices, transforms[..., :3, :], weights.dense)


def agebody_warp(weights: Weights) -> Skin:
    from agebody_kernels import skinning

    num_joints = weights.dense.shape[1]
    packed = skinning.SkinningWeights.pack(
        weights.joints.cpu().numpy(), weights.shares.cpu().numpy(), num_joints
    ).to(weights.dense.device, torch.float32)

    def skin(vertices: Tensor, transforms: Tensor) -> Tensor:
        still = vertices.new_zeros(len(vertices), 3)
        return skinning.linear_blend_skinning(vertices, transforms[..., :3, :], still, packed)

    return skin


def anny_torch(weights: Weights) -> Skin:
    from anny.skinning.skinning import dense_linear_blend_skinning

    return lambda vertices, transforms: dense_linear_blend_skinning(vertices, weights.dense, transforms)


def anny_warp(weights: Weights) -> Skin:
    from anny.skinning.warp_skinning import linear_blend_skinning as skin

    joints = weights.joints.int()
    return lambda vertices, transforms: skin(vertices, weights.shares, joints, transforms)


def body_models(kernels: str, weights: Weights) -> Skin:
    from body_models._common.skinning import CompactSkinning
    from body_models._runtime import TorchRuntime

    runtime = TorchRuntime(kernel_backend=kernels)
    packed = runtime._materialize(CompactSkinning(weights.joints.int(), weights.shares))
    if isinstance(packed, torch.nn.Module):
        packed = packed.to(weights.dense.device)
    return lambda vertices, transforms: runtime._compact_linear_blend_skinning(
        vertices, transforms, skinning=packed
    )


SKINS: dict[str, Callable[[Weights], Skin]] = {
    "agebody definition": definition,
    "agebody warp": agebody_warp,
    "anny torch": anny_torch,
    "anny warp": anny_warp,
    "body-models torch": partial(body_models, "torch"),
    "body-models warp": partial(body_models, "warp"),
}


def inputs(batch: int, num_vertices: int, num_joints: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    normal = partial(torch.randn, generator=generator)
    transforms = torch.eye(4).repeat(batch, num_joints, 1, 1)
    transforms[..., :3, :3] = rotations.to_matrix(normal(batch, num_joints, 3), "axis_angle")
    transforms[..., :3, 3] = 0.3 * normal(batch, num_joints, 3)
    return 0.5 * normal(batch, num_vertices, 3).to(device), transforms.to(device)


def gradients(skin: Skin, vertices: Tensor, transforms: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    wanted = (vertices.detach().requires_grad_(), transforms.detach().requires_grad_())
    return torch.autograd.grad(skin(*wanted), wanted, weights)


def check(skin: Skin, truth: Skin, vertices: Tensor, transforms: Tensor) -> None:
    weights = torch.ones_like(vertices)
    ours = (skin(vertices, transforms), *gradients(skin, vertices, transforms, weights))
    exact = (vertices.double(), transforms.double())
    theirs = (truth(*exact), *gradients(truth, *exact, weights.double()))
    for a, b in zip(ours, theirs, strict=True):
        error = float((a - b).abs().max() / b.abs().max())
        if not error <= TOLERANCE:
            raise ValueError(f"wrong answer: {error:.2g} of the largest entry")


def main() -> None:
    session = Session("skinning", __doc__, batches=BATCHES)
    asset, device = session.asset, session.device
    dense = torch.from_numpy(asset.dense_weights()).to(device)
    weights = Weights(
        torch.from_numpy(asset.skin_joints.astype(np.int64)).to(device),
        torch.from_numpy(asset.skin_weights).to(device, torch.float32),
        dense.float(),
    )
    exact = definition(weights._replace(dense=dense.double()))
    sizes = (asset.num_vertices, asset.num_joints)
    skins: dict[str, Skin] = {}
    for name, make in SKINS.items():
        try:
            skin = make(weights)
            check(skin, exact, *inputs(2, *sizes, device))
        except Exception as error:
            session.absent[name] = reason(error)
        else:
            skins[name] = skin
    ceilings = measure(device, session.seconds)
    session.extra |= {"ceilings": ceilings.as_dict(), "weights_width": weights.joints.shape[1]}
    for batch in session.batches:
        vertices, transforms = inputs(batch, *sizes, device)
        up = torch.ones_like(vertices)
        # Vertices are read and written, transforms read; weights stay in a cache.
        num_bytes = 4 * (2 * vertices.numel() + 12 * batch * asset.num_joints)
        with torch.no_grad():
            session.time(
                batch,
                {name: partial(skin, vertices, transforms) for name, skin in skins.items()},
                which="forward",
                bytes=num_bytes,
            )
        session.time(
            batch,
            {name: partial(gradients, skin, vertices, transforms, up) for name, skin in skins.items()},
            which="forward + backward",
        )
    session.finish()


if __name__ == "__main__":
    main()
