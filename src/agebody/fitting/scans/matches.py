"""What is found on a body and then held for some evaluations of its energy, such as what a scanner sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.engine.backend import BackendName
from agebody.mesh.closest import closest_faces, rows_of


class Matches(NamedTuple):
    """What stays as it is for some evaluations."""

    visible: Bool[Tensor, "F V"]
    """Vertices that the scanner can see."""
    faces: Int[Tensor, "F T"]
    """Faces all of whose corners are visible, filled up with others of them."""
    num_faces: Int[Tensor, " F"]
    """How many there are."""
    meets: Bool[Tensor, " F"]
    """Whether a body meets itself; only looked at where that has a weight."""
    foretold: Float[Tensor, "F J 3"]
    """Joints as the frames before foretell them [m]."""
    known: Float[Tensor, " F"]
    """1 where they are known, 0 in the first frame."""


def visible_faces(
    visible: Bool[Tensor, "F V"], faces: Int[Tensor, "T 3"]
) -> tuple[Int[Tensor, "F S"], Int[Tensor, " F"]]:
    """Faces all of whose corners are visible, filled up to the same number, and how many there are."""
    among = visible[:, faces].all(-1)
    counts = among.sum(1)
    found = among.byte().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(counts.max()))]
    places = torch.arange(found.shape[1], device=found.device)
    return torch.where(places < counts[:, None], found, found[:, :1]), counts


def closest_of_some(
    points: Float[Tensor, "b S 3"],
    mesh: Float[Tensor, "b V 3"],
    faces: Int[Tensor, "T 3"],
    matches: Matches,
    rows: Int[Tensor, " b"],
    *,
    backend: BackendName,
) -> Int[Tensor, "b S"]:
    """The nearest of the visible faces. As a mesh of their own: a search sorts whatever it is given."""
    some = matches.faces[rows]
    alone = rows_of(mesh, faces[some].flatten(1))
    each = torch.arange(alone.shape[1], device=faces.device).view(-1, 3)
    return some.gather(1, closest_faces(points, alone, each, backend=backend))
