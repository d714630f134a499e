"""Intersecting triangles of a body, and exclusions of pairs.

Pairs of triangles are discrete and have no gradient; `agebody.losses` makes penalties of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.assets.asset import BodyAsset, expect_asset
from agebody.checks import expect_integers, expect_tensor, flatten, read_count
from agebody.engine.backend import BackendName, check_backend
from agebody.engine.trees import unflatten
from agebody.files import read_flag
from agebody.mesh.search import check_mesh, expect_ids

TOUCHING_PARTS = (
    ("spine3", "left_shoulder"),
    ("spine3", "right_shoulder"),
    ("spine2", "left_shoulder"),
    ("spine2", "right_shoulder"),
    ("left_hip", "right_hip"),
    ("neck", "jaw"),
)
"""Parts, named by their joints, that touch in ordinary poses; SMPLify-X leaves them out."""

CAPACITY = 1024
"""Number of pairs per body for which memory is reserved first; with more of them, the search is repeated."""


class Collisions(NamedTuple):
    """Pairs of triangles that intersect."""

    pairs: Int[Tensor, "*batch M 2"]
    """Ids of two faces, the smaller first, in ascending order; padded with -1."""
    num_pairs: Int[Tensor, "*batch"]
    """Number of pairs of each body."""


@dataclass(frozen=True, eq=False)
class Exclusions:
    """Pairs of triangles whose intersection is no collision. Those that share a vertex are always excluded.

    Made by `of_body`, `of_parts` or `of_pairs`.
    """

    parts: Int[Tensor, " F"]
    """The part of each face."""
    related: Bool[Tensor, "N N"]
    """Pairs of parts whose faces are not compared; symmetric."""
    keys: Int[Tensor, " K"]
    """Single pairs of faces, as ``first * F + second`` with first < second; ascending."""

    @classmethod
    def of_parts(cls, parts: Int[Tensor, " F"], related: Bool[Tensor, "N N"]) -> Exclusions:
        """Make exclusions from the part of each face and a table of the parts that are not compared."""
        expect_integers("parts", parts)
        if parts.dim() != 1:
            raise ValueError(f"parts: expected shape (F), got {tuple(parts.shape)}")
        if related.dtype != torch.bool:
            raise TypeError(f"related: expected booleans, got {related.dtype}")
        if related.dim() != 2 or not torch.equal(related, related.mT):
            raise ValueError(f"related: expected a symmetric table (N, N), got {tuple(related.shape)}")
        expect_ids("parts", parts, len(related))
        return cls(parts.int(), related, torch.zeros(0, dtype=torch.int64, device=parts.device))

    @classmethod
    def of_pairs(cls, pairs: Int[Tensor, "*batch 2"], num_faces: int) -> Exclusions:
        """Make exclusions from pairs of faces, such as the collisions of another pose; -1 is ignored."""
        read_count("num_faces", num_faces)
        device = expect_tensor("pairs", pairs).device
        parts = torch.zeros(num_faces, dtype=torch.int32, device=device)
        return cls.of_parts(parts, torch.zeros(1, 1, dtype=torch.bool, device=device)).and_pairs(pairs)

    @classmethod
    def of_body(
        cls,
        asset: BodyAsset,
        *,
        within: int = 1,
        touching: Iterable[tuple[str, str]] = TOUCHING_PARTS,
        rest: bool = True,
        backend: BackendName = "auto",
    ) -> Exclusions:
        """Exclude intersections that a body has in ordinary poses and in its file.

        A face belongs to the joint that moves it most. Faces of one joint, of joints that are neighbours in
        the kinematic tree, and of parts that touch anyway are not compared.

        Args:
            asset: the body.
            within: largest number of bones between neighbours.
            touching: pairs of names of joints; those that the body lacks are ignored.
            rest: whether to exclude the pairs of faces that intersect in the rest pose, at any age.
            backend: of the search for those.

        Source: the filter of SMPLify-X (Pavlakos et al., CVPR 2019).
        """
        faces = torch.from_numpy(np.array(expect_asset(asset).faces))
        read_count("within", within)
        parts = torch.from_numpy(asset.dense_weights()[asset.faces].sum(1).argmax(1))
        excluded = cls.of_parts(parts, _related(asset, within, touching))
        if read_flag("rest", rest):
            shapes = [asset.template, *([] if asset.age_templates is None else asset.age_templates)]
            vertices = torch.from_numpy(np.stack(shapes))
            excluded = excluded.and_pairs(
                find_collisions(vertices, faces, exclude=excluded, backend=backend).pairs
            )
        return excluded

    def and_pairs(self, pairs: Int[Tensor, "*batch 2"]) -> Exclusions:
        """Return these exclusions and further pairs of faces."""
        expect_integers("pairs", pairs)
        if pairs.shape[-1:] != (2,):
            raise ValueError(f"pairs: expected shape (*batch, 2), got {tuple(pairs.shape)}")
        pairs = pairs.reshape(-1, 2).long()
        pairs = pairs[(pairs >= 0).all(-1)].sort(-1).values
        expect_ids("pairs", pairs, len(self.parts))
        keys = pairs[:, 0] * len(self.parts) + pairs[:, 1]
        return replace(self, keys=torch.cat([self.keys, keys]).unique())

    def to(self, device: torch.device | str) -> Exclusions:
        """Return the exclusions on another device."""
        return Exclusions(self.parts.to(device), self.related.to(device), self.keys.to(device))


def find_collisions(
    vertices: Float[Tensor, "*batch V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    exclude: Exclusions | None = None,
    max_collisions: int | None = None,
    backend: BackendName = "auto",
) -> Collisions:
    """Find the pairs of triangles of each mesh that intersect.

    Triangles that share a vertex, only touch, or lie in one plane do not count, nor do triangles that are not
    finite.

    Args:
        vertices: of one mesh or of a batch [m].
        faces: triangles, the same in all meshes.
        exclude: pairs that do not count.
        max_collisions: fixed size of the result, in pairs per body; if None, that of the body with most.
        backend: "warp" searches a tree of boxes, "torch" blocks of them; "auto" is Warp where it is
            installed.

    Returns:
        A named tuple of ``pairs`` (*batch, M, 2), ids of two faces, the smaller first, padded with -1; and
        ``num_pairs`` (*batch).

    Raises:
        RuntimeError: a body has more than ``max_collisions`` pairs.
    """
    vertices, faces = check_mesh(vertices, faces)
    batch = vertices.shape[:-2]
    bodies = flatten(vertices.detach(), None, 2)
    if exclude is None:
        exclude = Exclusions.of_pairs(faces.new_zeros(0, 2), len(faces))
    elif not isinstance(exclude, Exclusions):
        raise TypeError(f"exclude: expected Exclusions, got {type(exclude).__name__}")
    elif len(exclude.parts) != len(faces):
        raise ValueError(f"exclude: expected exclusions of {len(faces)} faces, got {len(exclude.parts)}")
    exclude = exclude.to(bodies.device)
    if max_collisions is not None:
        read_count("max_collisions", max_collisions)
    find = functools.partial(
        torch.ops.agebody.colliding_faces,
        *(bodies, faces, exclude.parts, exclude.related, exclude.keys),
        backend=check_backend(backend),
    )
    keys, count = find(capacity=CAPACITY if max_collisions is None else max_collisions)
    most = int(count.max()) if len(count) else 0
    if max_collisions is None:
        if most > keys.shape[1]:
            keys, count = find(capacity=most)
        keys = keys[:, :most]
    elif most > max_collisions:
        raise RuntimeError(
            f"max_collisions: expected at most {max_collisions} pairs of triangles that intersect, "
            f"got {most} in body {int(count.argmax())} of the batch"
        )
    empty = torch.arange(keys.shape[1], device=keys.device) >= count[:, None]
    pairs = torch.stack([keys // len(faces), keys % len(faces)], -1).masked_fill(empty[..., None], -1)
    return unflatten(Collisions(pairs, count), batch)


def _related(asset: BodyAsset, within: int, touching: Iterable[tuple[str, str]]) -> Bool[Tensor, "J J"]:
    steps = np.eye(asset.num_joints, dtype=bool)
    child = np.arange(1, asset.num_joints)
    steps[child, asset.parents[1:]] = steps[asset.parents[1:], child] = True
    related = np.linalg.matrix_power(steps, within)
    for pair in touching:
        if set(pair) <= set(asset.joint_names):
            i, j = (asset.joint_names.index(name) for name in pair)
            related[i, j] = related[j, i] = True
    return torch.from_numpy(related)
