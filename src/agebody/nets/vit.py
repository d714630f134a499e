"""ViTPose's vision transformer, under the names of the published weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from agebody.nets.images import expect_images, expect_normalized


class ViTSize(NamedTuple):
    """Sizes of a vision transformer."""

    width: int
    """Channels of a token."""
    depth: int
    """Blocks."""
    heads: int
    drop_path: float = 0.0
    """Stochastic depth: probability of dropping the last block in training; lower in earlier blocks."""


VIT_SIZES = {
    "S": ViTSize(384, 12, 12, 0.1),
    "B": ViTSize(768, 12, 12, 0.3),
    "L": ViTSize(1024, 24, 16, 0.5),
    "H": ViTSize(1280, 32, 16, 0.55),
}
"""Those of ViTPose; HMR2, AionHMR and CameraHMR have "H"."""


class ViT(nn.Module):
    """A vision transformer from crops of people to a map of features.

    Patches of 16 x 16 pixels, taken with a margin of 2 pixels at each side, become tokens; blocks of
    self-attention and an MLP of 4 times the width follow. ViTPose (Xu et al., NeurIPS 2022), whose
    first row of positions is added to all tokens.

    Args:
        size: a name of ViTPose, "S", "B", "L" or "H", or the numbers.
        image_size: height and width [pixels], multiples of 16.
    """

    def __init__(self, size: str | ViTSize = "H", *, image_size: tuple[int, int] = (256, 192)) -> None:
        super().__init__()
        if isinstance(size, str):
            if size not in VIT_SIZES:
                raise ValueError(f"size: expected one of {', '.join(VIT_SIZES)} or a ViTSize, got {size!r}")
            size = VIT_SIZES[size]
        if not isinstance(size, ViTSize):
            raise TypeError(f"size: expected one of {', '.join(VIT_SIZES)} or a ViTSize, got {size!r}")
        if size.heads < 1 or size.width % size.heads:
            raise ValueError(f"size: expected a width that is a multiple of the heads, got {size}")
        sides = image_size if isinstance(image_size, Sequence) else ()
        if len(sides) != 2 or any(side < PATCH or side % PATCH or side != int(side) for side in sides):
            raise ValueError(f"image_size: expected height and width, multiples of {PATCH}, got {image_size}")
        self.image_size, self.num_channels = (int(sides[0]), int(sides[1])), size.width
        self.grid = (self.image_size[0] // PATCH, self.image_size[1] // PATCH)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size.width, PATCH, PATCH, padding=2)})
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, size.width))
        shares = [size.drop_path * i / max(size.depth - 1, 1) for i in range(size.depth)]
        self.blocks = nn.ModuleList(_Block(size.width, size.heads, share) for share in shares)
        self.last_norm = nn.LayerNorm(size.width, eps=1e-6)
        self._range_seen = False
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Float[Tensor, "B C h w"]:
        """Return a feature per patch.

        Args:
            images: (B, 3, H, W) of ``image_size``, normalised as `normalize_images` does. Of square crops of
                that height the middle columns are taken, as HMR2 does: 192 of 256.

        Returns:
            (B, C, H / 16, W / 16), tokens one after the other in memory.
        """
        height, width = self.image_size
        images = expect_images(images, (height, width), (height, max(height, width)))
        if images.device.type == "cpu" or not self._range_seen:  # elsewhere it would wait for the device
            expect_normalized(images)
            self._range_seen = True
        margin = (images.shape[-1] - width) // 2
        images = images[..., margin : margin + width].to(self.pos_embed.dtype)
        tokens = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = tokens + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            tokens = block(tokens)
        return self.last_norm(tokens).transpose(1, 2).unflatten(-1, self.grid)


PATCH = 16
"""Side of a patch [pixels]."""


def attend(
    query: Float[Tensor, "B N C"], key: Float[Tensor, "B M C"], value: Float[Tensor, "B M C"], heads: int
) -> Float[Tensor, "B N C"]:
    """Return multi-head attention; the heads are adjacent in the channels."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.heads, self.drop_path = heads, drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropped(self.seen(self.norm1(tokens)))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.dropped(self.mlp["fc2"](hidden))

    def seen(self, tokens: Tensor) -> Tensor:
        return self.attn["proj"](attend(*self.attn["qkv"](tokens).chunk(3, -1), heads=self.heads))

    def dropped(self, update: Tensor) -> Tensor:
        """Drop the update for some people in training, and scale it up for the others."""
        if not self.training or self.drop_path == 0:
            return update
        kept = update.new_empty(update.shape[0], 1, 1).bernoulli_(1 - self.drop_path)
        return update * kept / (1 - self.drop_path)
