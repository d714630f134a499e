"""Evenly spread points, and patches of mesh vertices around them, whose centers are keypoints of a body."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.assets.asset import BodyAsset
from agebody.engine.batched import building
from agebody.keypoints import KeypointLayout
from agebody.mesh.topology import TopologyMap

PATCHES = 200
"""Approximate number of patches per mesh."""
MIN_PATCHES = 5
"""Per part that one joint moves."""


class Patches(NamedTuple):
    """Groups of vertices, and their centers."""

    layout: KeypointLayout
    """The patches' centers, as points of a body."""
    owner: Int[Tensor, " V"]
    """The patch of each vertex."""

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
@building()
def find_patches(asset: BodyAsset, topology: TopologyMap | None = None) -> Patches:
    """Return about ``PATCHES`` compact patches of vertices, each moved most by one joint.

    With a topology, patches are of the vertices that it maps to, each with the vertex that weighs most in it.
    """
    part = asset.strongest_joints()
    owner = np.zeros(asset.num_vertices, int)
    count = 0
    for joint in np.unique(part):
        own = np.flatnonzero(part == joint)
        places = torch.from_numpy(asset.template[own].astype(np.float64))
        share = round(PATCHES * len(own) / asset.num_vertices)
        first = int((places - places.mean(0)).norm(dim=-1).argmax())
        owner[own] = count + farthest_points(places, max(MIN_PATCHES, share), first)[1].numpy()
        count = owner.max() + 1
    if topology is not None:
        strongest = topology.barycentric.argmax(1)[:, None]
        _, owner = np.unique(
            owner[np.take_along_axis(topology.corners, strongest, 1)[:, 0]], return_inverse=True
        )
        count = owner.max() + 1
    sizes = np.bincount(owner)
    rows = scipy.sparse.csr_array((1 / sizes[owner], (owner, np.arange(len(owner)))), (count, len(owner)))
    if topology is not None:
        rows = rows @ topology.matrix()
    names = [f"patch {number}" for number in range(count)]
    return Patches(KeypointLayout.from_regressor(rows, names, name="patches"), torch.from_numpy(owner))


def farthest_points(
    points: Float[Tensor, "N D"], count: int, first: int = 0
) -> tuple[Int[Tensor, " S"], Int[Tensor, " N"]]:
    """Return rows of evenly spread points, at most all, and which of these is the nearest to each point.

    Each is the farthest from those before it, of which ``first`` is the first (Gonzalez, "Clustering to
    minimize the maximum intercluster distance", 1985).
    """
    chosen: list[int] = []
    nearest = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    least = torch.full_like(points[:, 0], torch.inf)
    for number in range(min(count, len(points))):
        chosen.append(int(least.argmax()) if chosen else first)
        squared = (points - points[chosen[-1]]).square().sum(-1)
        nearest = torch.where(squared < least, number, nearest)
        least = torch.minimum(squared, least)
        least[chosen[-1]] = -1  # below the distance of its duplicates, so that no row is chosen twice
    return torch.tensor(chosen, device=points.device), nearest
