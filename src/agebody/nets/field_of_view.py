"""The field of view of a camera, estimated from an image of people."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from agebody.checks import expect, read_count, read_positive


class FieldOfView(nn.Module):
    """Estimate the vertical field of view of an image from its class token.

    The camera branch of Metric-Aware HMR (Wang et al. 2025): an MLP initialised near 30 degrees. The
    weights have the names of the published ones.

    Args:
        channels: of the token.
        least: smallest field of view [rad].
    """

    def __init__(self, channels: int = 768, *, least: float = 0.08) -> None:
        super().__init__()
        self.channels = read_count("channels", channels, least=1)
        self.least = read_positive("least", least, "an angle", " [rad]")
        self.layers = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))
        self.layers.append(last := nn.Linear(channels, 1))
        nn.init.xavier_uniform_(last.weight, gain=0.1)
        nn.init.constant_(last.bias, math.pi / 6)

    def forward(self, token: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch"]:
        """Return the field of view [rad], from which `Camera.from_fov` makes the camera of an image.

        The gradient is that of the estimate before it is clamped, so that a branch below ``least`` recovers.

        Args:
            token: one per image, such as the first token of DINOv2.
        """
        first: Any = self.layers[0]
        token = expect("token", token, self.channels).to(first.weight.dtype)
        for layer in self.layers[:-1]:
            token = layer(token).relu()
        found = self.layers[-1](token)[..., 0]
        return found + (found.clamp_min(self.least) - found).detach()
