"""The decoder head of HMR2 and its relatives: one query attends to the features, and numbers are read out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.checks import expect_choice, read_sizes, read_texts
from agebody.nets.readouts import ReadoutHead
from agebody.nets.regressor import start_readouts


class DecoderHead(ReadoutHead):
    """Read numbers out of image features by one query that attends to all of them.

    The head of HMR2 (Goel et al., ICCV 2023), with which AionHMR and CameraHMR differ in read-outs and in the
    query's token. Pre-norm blocks of attention and a perceptron update the query; one linear layer per
    read-out gives its difference from the start. The weights have the names of the published ones.

    Args:
        readouts: name -> start, or the size of a read-out without one. `start_readouts` gives those of a
            body.
        channels: of the features.
        condition: how many numbers a call gives for the token, such as 3 for `box_condition`.
        token_starts: read-outs whose starts are part of the token, after the condition.
        width: of the query.
        depth: blocks.
        heads: of the attention, of 64 numbers each.
    """

    def __init__(
        self,
        readouts: Mapping[str, Tensor | int],
        *,
        channels: int = 1280,
        condition: int = 0,
        token_starts: Sequence[str] = (),
        width: int = 1024,
        depth: int = 6,
        heads: int = 8,
    ) -> None:
        read_sizes(channels=channels, width=width, depth=depth, heads=heads)
        token_starts = read_texts("token_starts", token_starts)
        super().__init__(readouts, condition)
        unknown = [name for name in token_starts if self.start(name) is None]
        if unknown:
            raise ValueError(f"token_starts: expected read-outs that have a start, got {', '.join(unknown)}")
        self.channels, self.token_starts = channels, token_starts
        token = condition + sum(self.sizes[name] for name in token_starts)
        self.transformer = _Transformer(max(token, 1), width, channels, depth, heads)
        self.add_layers(width)

    @classmethod
    def preset(cls, name: str, **sizes: int) -> DecoderHead:
        """Return a new head of a published network, for SMPL or SMPL-X.

        Args:
            name: "hmr2"; "aionhmr", with the age offset behind 10 betas; "camerahmr", with a box condition
                and 44 keypoints of the crop; "camerahmr_x", with 15 joints of each hand and 16 betas.
            sizes: ``channels`` and the others of the class.
        """
        expect_choice("name", name, _PRESETS)
        joints, shape, others, condition, token_starts = _PRESETS[name]
        readouts = start_readouts(joints, shape) | others
        return cls(readouts, condition=condition, token_starts=token_starts, **sizes)

    def forward(
        self,
        features: Float[Tensor, "B C h w"] | Float[Tensor, "B T C"],
        condition: Float[Tensor, "B K"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the read-outs by name, each (B, size).

        Args:
            features: a map, or tokens one after the other.
            condition: the first numbers of the token; None where there are none.
        """
        like = self.transformer.pos_embedding
        context = self.expect_features(features, like, self.channels, "B C h w", "B T C")
        context = context.flatten(2).transpose(1, 2) if context.dim() == 4 else context
        people = context.shape[0]
        starts = self.starts(people)
        given = self.expect_condition(condition, context)
        parts = [] if given is None else [given]
        parts += [starts[name] for name in self.token_starts]
        token = torch.cat(parts, -1) if parts else context.new_zeros(people, 1)
        query = self.transformer(token, context)
        return {name: self.read(name, query) for name in self.sizes}


_PRESETS: dict[str, tuple[int, int, dict[str, Tensor | int], int, tuple[str, ...]]] = {
    "hmr2": (24, 10, {}, 0, ()),
    "aionhmr": (24, 11, {}, 0, ()),
    "camerahmr": (24, 10, {"keypoints": 88}, 3, ("pose", "betas", "camera")),
    "camerahmr_x": (25, 16, {"hands": start_readouts(30, 0)["pose"]}, 3, ()),
}
"""Joints and shape numbers; other read-outs; numbers of the condition, and starts in the token."""


class _Transformer(nn.Module):
    def __init__(self, token: int, width: int, channels: int, depth: int, heads: int) -> None:
        super().__init__()
        self.to_token_embedding = nn.Linear(token, width)
        self.pos_embedding = nn.Parameter(torch.randn(1, 1, width))
        blocks = (_Block(width, channels, heads) for _ in range(depth))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(blocks)})

    def forward(self, token: Tensor, context: Tensor) -> Tensor:
        query = self.to_token_embedding(token) + self.pos_embedding[:, 0]
        for block in self.transformer["layers"].children():
            query = block(query, context)
        return query


class _Block(nn.ModuleList):
    def __init__(self, width: int, channels: int, heads: int) -> None:
        parts = _SelfAttention(width, heads), _CrossAttention(width, channels, heads), _Perceptron(width)
        super().__init__(_PreNorm(width, part) for part in parts)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        own, cross, perceptron = self
        query = query + own(query)
        query = query + cross(query, context)
        return query + perceptron(query)


class _PreNorm(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, query: Tensor, *context: Tensor) -> Tensor:
        return self.fn(self.norm(query), *context)


HEAD_SIZE = 64


class _SelfAttention(nn.Module):
    """Self-attention of a single query: its own value, whatever the weights of query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = heads * HEAD_SIZE
        self.to_qkv = nn.Linear(width, 3 * self.inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(self.inner, width))

    def forward(self, query: Tensor) -> Tensor:
        return self.to_out(nn.functional.linear(query, self.to_qkv.weight[2 * self.inner :]))


class _CrossAttention(nn.Module):
    """Attention of one query to many tokens, without materialising keys and values.

    With keys K c and values V c of the tokens c, the product of q with a key is (K^T q) . c, and a weighted
    sum of values is V times that of the tokens: two products of 8 vectors with the tokens replace those of
    all tokens with K and V, 48 times fewer operations for 192 tokens.
    """

    def __init__(self, width: int, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_kv = nn.Linear(channels, 2 * heads * HEAD_SIZE, bias=False)
        self.to_q = nn.Linear(width, heads * HEAD_SIZE, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * HEAD_SIZE, width))

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        key, value = self.to_kv.weight.unflatten(0, (2, self.heads, HEAD_SIZE)).unbind()
        asked = torch.einsum("bhd,hdc->bhc", self.to_q(query).unflatten(-1, (self.heads, HEAD_SIZE)), key)
        shares = (asked @ context.mT * HEAD_SIZE**-0.5).softmax(-1)
        return self.to_out(torch.einsum("bhc,hdc->bhd", shares @ context, value).flatten(-2))


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The third place is that of the published code's dropout, which is 0 in every network.
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Identity(), nn.Linear(width, width))

    def forward(self, query: Tensor) -> Tensor:
        return self.net(query)
