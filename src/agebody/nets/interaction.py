"""A body's joints and mesh from a clip: attention between joint tokens and a few marker tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import expect, read_sizes
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout, get_layout
from agebody.mesh.markers import MarkerSet
from agebody.nets.bands import Attention, AttentionBlock, TimeBands


class MeshPose(NamedTuple):
    """Predictions of a `MeshPoseInteraction`, relative to the root [m], of one frame or of all."""

    joints: Float[Tensor, "*batch J 3"]
    markers: Float[Tensor, "*batch K 3"]
    vertices: Float[Tensor, "*batch V 3"]
    lifted: Float[Tensor, "B T J 3"]
    """The joints of every frame before the interaction, for a loss of their own."""


class MeshPoseInteraction(nn.Module):
    """Mesh and pose from a clip of features and joints, for any body (after arXiv 2510.18267).

    1. *Features*: projected to the width, then `TimeBands`.
    2. *Lifting*: a token per joint and frame, of its coordinates and the frame's features; attention among
       the joints of a frame and among the frames of a joint, by turns; joints in 3D.
    3. *Interaction*: tokens of the joints and of the markers, each marker beginning at the joint nearest to
       it. In every block both kinds see themselves and each other, normalised with a scale and shift that
       the features give; then their displacements are read out.
    4. *Mesh*: the fixed matrix of the markers, with nothing to learn.

    The paper publishes the steps and that the tokens are few and updated in parallel, from the same inputs.
    The wavelet, all sizes, the lifter's blocks, the form of the interaction and virtual markers as its tokens
    are this implementation's choices. PMCE (You et al., ICCV 2023), from which the paper starts, is near to
    ``markers`` of 431 vertices and ``bands=False``, except for its recurrent network over the features, its
    tokens, which each block makes anew from coordinates, and its learned upsampling. It is parallel too.

    Args:
        body: the layer, whose rest pose determines the joint nearest to each marker.
        markers: of the body.
        layout: of the joints, with its root.
        features: F.
        frames: T.
        coordinates: 2 for joints in the image, as `cameras.to_crop` gives them, or 3.
        width: channels of all tokens.
        depth: pairs of attention blocks of the lifter.
        blocks: of the interaction.
        heads: of the attention.
        parallel: joints and markers see what both were before the block; else the markers see the joints'
            update.
        bands: see `TimeBands`.

    A checkpoint has the learned weights alone: nothing of the body or the markers.
    """

    nearest: Tensor

    def __init__(
        self,
        body: BodyModel,
        markers: MarkerSet,
        layout: str | KeypointLayout = "smpl24",
        *,
        features: int,
        frames: int,
        coordinates: int = 2,
        width: int = 64,
        depth: int = 2,
        blocks: int = 3,
        heads: int = 4,
        parallel: bool = True,
        bands: bool = True,
    ) -> None:
        super().__init__()
        expect_body(body)
        if coordinates not in (2, 3):
            raise ValueError(f"coordinates: expected 2 or 3, got {coordinates}")
        read_sizes(features=features, frames=frames, width=width, depth=depth, blocks=blocks, heads=heads)
        if body.num_vertices != markers.num_vertices:
            raise ValueError(
                f"markers: expected those of a body of {body.num_vertices} vertices, "
                f"got {markers.num_vertices}"
            )
        layout = get_layout(layout)
        joints = len(layout)
        self.sizes = {"features": (frames, features), "joints": (frames, joints, coordinates)}
        with torch.no_grad():
            places = body.keypoints(layout)
            distances = torch.cdist(body.keypoints(markers.layout), places)
        self.register_buffer("nearest", distances.argmin(-1), persistent=False)
        self.markers, self.layout, self.parallel = markers, layout, read_flag("parallel", parallel)

        self.project = nn.Linear(features, width)
        self.time = TimeBands(width, frames, heads=heads, bands=bands)
        self.embed_joints = nn.Linear(coordinates, width)
        self.joint_position = nn.Parameter(0.02 * torch.randn(joints, width))
        self.frame_position = nn.Parameter(0.02 * torch.randn(frames, 1, width))
        self.lifter = nn.ModuleList(AttentionBlock(width, heads) for _ in range(2 * depth))
        self.lift = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3, bias=False))  # centred below

        self.embed_places = nn.Linear(3, width)
        self.marker_position = nn.Parameter(0.02 * torch.randn(len(markers), width))
        self.interaction = nn.ModuleList(
            nn.ModuleList(_Update(width, heads) for _ in range(2)) for _ in range(blocks)
        )
        self.move = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3)) for _ in range(2))

    def forward(
        self, features: Float[Tensor, "B T F"], joints: Float[Tensor, "B T J D"], *, every: bool = False
    ) -> MeshPose:
        """Predict joints and mesh.

        Args:
            features: of the images of a clip, a vector per frame.
            joints: of the clip.
            every: of every frame, (B, T, ...); else of the middle one, T // 2, (B, ...).
        """
        for name, given in (("features", features), ("joints", joints)):
            if expect(name, given, *self.sizes[name]).dim() != len(self.sizes[name]) + 1:
                raise ValueError(f"{name}: expected one batch dimension, got shape {tuple(given.shape)}")
        features, joints = (part.to(self.frame_position.dtype) for part in (features, joints))
        hybrid = self.time(self.project(features))
        tokens = self.embed_joints(joints) + self.joint_position + self.frame_position + hybrid[:, :, None]
        shape = tokens.shape
        for among_joints, among_frames in zip(self.lifter[0::2], self.lifter[1::2], strict=True):
            tokens = among_joints(tokens.flatten(0, 1)).unflatten(0, (-1, shape[1])).transpose(1, 2)
            tokens = among_frames(tokens.flatten(0, 1)).unflatten(0, (-1, shape[2])).transpose(1, 2)
        lifted = self.lift(tokens)
        lifted = lifted - self.layout.center(lifted)

        middle = shape[1] // 2
        picked = [part if every else part[:, middle : middle + 1] for part in (tokens, lifted, hybrid)]
        people, places, feature = (part.flatten(0, 1) for part in picked)
        start = places[:, self.nearest]
        tokens = people + self.embed_places(places), self.embed_places(start) + self.marker_position
        for block in self.interaction:
            tokens = self._interact(block, tokens, feature)
        moved, markers = (
            place + move(part) for place, move, part in zip((places, start), self.move, tokens, strict=True)
        )
        found = (moved, markers, self.markers.to_vertices(markers))
        if every:
            found = tuple(part.unflatten(0, (-1, shape[1])) for part in found)
        return MeshPose(found[0], found[1], found[2], lifted)

    def _interact(
        self, block: nn.Module, tokens: tuple[Tensor, Tensor], feature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the updated tokens of joints and markers."""
        update_joints, update_markers = block.children()
        joints, markers = tokens
        updated = update_joints(joints, markers, feature)
        return updated, update_markers(markers, joints if self.parallel else updated, feature)


class _Update(nn.Module):
    """Self- and cross-attention of tokens, normalised by the features, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scales = nn.Linear(width, 4 * width)
        nn.init.zeros_(self.scales.weight)
        nn.init.zeros_(self.scales.bias)

    def forward(
        self, tokens: Float[Tensor, "B N C"], others: Float[Tensor, "B M C"], feature: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B N C"]:
        """Return the updated tokens."""
        scale, shift, scale_last, shift_last = self.scales(feature)[:, None].chunk(4, -1)
        context = self.norm(torch.cat((tokens, others), 1)) * (1 + scale) + shift
        tokens = tokens + self.attention(context[:, : tokens.shape[1]], context)
        return tokens + self.perceptron(self.norm(tokens) * (1 + scale_last) + shift_last)
