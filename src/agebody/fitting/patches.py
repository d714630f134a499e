"""Vertices of a mesh grouped in patches, whose centers are points of a body."""

from __future__ import annotations

import functools

import numpy as np
import scipy
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.assets.asset import BodyAsset
from agebody.body import BodyModel
from agebody.keypoints import KeypointLayout

PATCHES = 200
"""About how many patches of vertices stand for a mesh."""
MIN_PATCHES = 5
"""Per part that one joint moves."""


class Patches(nn.Module):
    """Groups of vertices, and their centers.

    Args:
        body: the layer.
        layout: the patches' centers; see `patch_layout`.
    """

    owner: Tensor

    def __init__(self, body: BodyModel, layout: KeypointLayout) -> None:
        super().__init__()
        self.layout = layout
        _, rows = layout.resolve(body.asset)
        owner = torch.from_numpy(rows.tocsc().indices.astype(np.int64))
        self.register_buffer("owner", owner.to(body.device), persistent=False)

    def sums(self, entries: Float[Tensor, "B V D"]) -> Float[Tensor, "B K D"]:
        """Return sums over each patch."""
        found = entries.new_zeros(len(entries), len(self.layout), entries.shape[-1])
        return found.index_add_(1, self.owner, entries)

    def centers(
        self, vertices: Float[Tensor, "B V 3"], weights: Float[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B K 3"]:
        """Return weighted means; zero where all weights of a patch are."""
        weights = torch.ones_like(vertices[..., 0]) if weights is None else weights
        sums = self.sums(torch.cat((weights[..., None] * vertices, weights[..., None]), -1))
        return sums[..., :3] / torch.where(sums[..., 3:] > 0, sums[..., 3:], 1)


@functools.lru_cache(maxsize=8)
def patch_layout(asset: BodyAsset) -> KeypointLayout:
    """Return the centers of about ``PATCHES`` compact patches of vertices, each moved most by one joint."""
    part = asset.strongest_joints()
    owner = np.zeros(asset.num_vertices, int)
    count = 0
    for joint in np.unique(part):
        own = np.flatnonzero(part == joint)
        places = asset.template[own].astype(np.float64)
        share = round(PATCHES * len(own) / asset.num_vertices)
        owner[own] = count + _spread(places, min(len(own), max(MIN_PATCHES, share)))
        count = owner.max() + 1
    rows = np.zeros((count, asset.num_vertices))
    rows[owner, np.arange(asset.num_vertices)] = 1
    rows /= rows.sum(1, keepdims=True)
    names = [f"patch {number}" for number in range(count)]
    return KeypointLayout.from_regressor(scipy.sparse.csr_array(rows), names, name="patches")


def _spread(places: np.ndarray, count: int) -> np.ndarray:
    """Return the nearest of ``count`` seeds per place; each seed is the place farthest from the others."""
    nearest, distance = np.zeros(len(places), int), np.full(len(places), np.inf)
    seed = int(np.linalg.norm(places - places.mean(0), axis=1).argmax())
    for number in range(count):
        away = np.linalg.norm(places - places[seed], axis=1)
        closer = away < distance
        nearest[closer], distance[closer] = number, away[closer]
        seed = int(distance.argmax())
    return nearest
