"""A clip's features in two bands of time: attention on the slow one, convolution on the fast one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from agebody.checks import expect, expect_tensor
from agebody.files import read_flag
from agebody.nets.vit import attend


def haar_split(signal: Float[Tensor, "*batch T C"]) -> tuple[Tensor, Tensor]:
    """Split a signal along time by one level of Haar's wavelet: sums and differences of pairs over sqrt(2).

    Returns:
        The low band (*batch, ceil(T / 2), C) and the high band (*batch, floor(T / 2), C). The last frame of
        an odd number is its own pair: its difference is 0 and not kept. For an even number the transform is
        orthogonal.
    """
    if expect_tensor("signal", signal).dim() < 2:
        raise ValueError(f"signal: expected shape (*batch, T, C), got {tuple(signal.shape)}")
    even, odd = signal[..., 0::2, :], signal[..., 1::2, :]
    pairs = odd.shape[-2]
    single = even[..., pairs:, :]
    return (
        torch.cat((even[..., :pairs, :] + odd, 2 * single), -2) * math.sqrt(0.5),
        (even[..., :pairs, :] - odd) * math.sqrt(0.5),
    )


def haar_join(low: Float[Tensor, "*batch L C"], high: Float[Tensor, "*batch H C"]) -> Float[Tensor, "*b T C"]:
    """Invert `haar_split`, exactly."""
    pairs, extra = high.shape[-2], low.shape[-2] - high.shape[-2]
    if extra not in (0, 1):
        raise ValueError(f"high: expected {low.shape[-2]} frames as low has, or one less, got {pairs}")
    if low.shape[-1] != high.shape[-1]:
        raise ValueError(f"high: expected {low.shape[-1]} channels as low has, got {high.shape[-1]}")
    slow = low[..., :pairs, :]
    joined = torch.stack((slow + high, slow - high), -2).flatten(-3, -2)
    return torch.cat((joined, low[..., pairs:, :]), -2) * math.sqrt(0.5)


class Attention(nn.Module):
    """Attention of tokens to a context, with several heads.

    Args:
        width: channels of both.
        heads: their number, a divisor of the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads = heads
        self.query, self.pair = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B N C"], context: Float[Tensor, "B M C"]) -> Tensor:
        """Return the update of the tokens, (B, N, C)."""
        return self.out(attend(self.query(tokens), *self.pair(context).chunk(2, -1), heads=self.heads))


class AttentionBlock(nn.Module):
    """Self-attention and an MLP, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Return the updated tokens."""
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed)
        return tokens + self.perceptron(tokens)


class TimeBands(nn.Module):
    """Refine the features of a clip of ``frames`` in a slow and a fast frequency band (arXiv 2510.18267).

    The low band of `haar_split` passes an attention block over the whole clip; the high band passes a
    convolution over three neighbours; the bands are joined again. Which wavelet, how many levels and what
    sizes the paper uses is not published: one level of Haar's is this implementation's choice.

    Without ``bands``, attention and convolution process all frames, with the same parameters but for a longer
    table of positions.
    """

    def __init__(self, width: int, frames: int, *, heads: int = 4, bands: bool = True) -> None:
        super().__init__()
        self.bands, self.frames, self.width = read_flag("bands", bands), frames, width
        self.position = nn.Parameter(0.02 * torch.randn((frames + 1) // 2 if bands else frames, width))
        self.slow = AttentionBlock(width, heads)
        self.fast = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, features: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Return the hybrid features."""
        if expect("features", features, self.frames, self.width).dim() != 3:
            raise ValueError(f"features: expected shape (B, T, C), got {tuple(features.shape)}")
        features = features.to(self.position.dtype)
        low, high = haar_split(features) if self.bands else (features, features)
        low = self.slow(low + self.position)
        if self.frames == 1 and self.bands:  # a high band of no frame
            return haar_join(low, high)
        update = F.gelu(self.fast(high.mT)).mT
        return haar_join(low, high + update) if self.bands else low + update
