"""Virtual markers: a few vertices of a body, and a fixed matrix from these to all vertices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.assets.asset import AssetError, check_finite, check_indices, check_shape
from agebody.assets.container import PathLike, naming, read_raw
from agebody.assets.own_files import read_names, write_own_file
from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import expect_values, read_count, read_nonnegative, read_tensor
from agebody.engine.batched import product
from agebody.engine.exact import ExactBuffers
from agebody.files import read_flag
from agebody.keypoints import KeypointLayout
from agebody.parameters import BodyParameters

FORMAT_VERSION = 1
HEADER_KEY = "agebody_markers"
"""The one entry of the safetensors ``__metadata__``: JSON text with everything that is not an array."""
ASYMMETRY = 0.01
"""Largest median distance from a mirrored vertex to the nearest one, as a share of the template's extent."""
SUM_ERROR = 1e-4
"""Largest difference of a row's sum from 1: 0.1 mm for a body 1 m away from the origin."""
CHOICE_SD = 3e-3
"""Standard deviation of a marker's coordinate [m] for which markers are chosen, or more if more is given."""
SKETCH = 200
"""Number of random directions that approximate all meshes while markers are chosen."""
SUM_WEIGHT = 1e3
"""Weight of the equation that non-negative weights add up to 1, relative to the largest marker row."""


class MarkerSet(ExactBuffers):
    """K virtual markers of a body (Ma et al., CVPR 2023), and the matrix from markers to vertices.

    Markers are vertices; every vertex is a weighted sum of markers with weights that add up to 1, so a moved
    body has moved markers, exactly. One matrix serves all people and poses.

    Args:
        vertex_ids: (K,) vertex of each marker.
        matrix: (V, K), rows add up to 1.
        names: of the markers; left and right ones begin with ``left_`` and ``right_``.

    Raises:
        AssetError: the arrays do not fit together.

    The arrays are non-persistent buffers, so a checkpoint of a network with markers has no data of a licensed
    body. They stay in float32 or float64 where the network around them has 16 bits.
    """

    vertex_ids: Tensor
    matrix: Tensor
    layout: KeypointLayout
    """The markers as keypoints, for `BodyModel.keypoints`, which gives them without the mesh, and fits."""

    def __init__(
        self, vertex_ids: Int[np.ndarray, " K"], matrix: Float[np.ndarray, "V K"], names: Sequence[str]
    ) -> None:
        super().__init__()
        vertex_ids, matrix, names = np.asarray(vertex_ids), np.asarray(matrix), tuple(names)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise AssetError(f"names: expected different ones, got {', '.join(twice)} several times")
        check_shape("matrix", matrix.shape, (None, len(names)))
        check_shape("vertex_ids", vertex_ids.shape, (len(names),))
        check_indices("vertex_ids", vertex_ids, len(matrix))
        if matrix.dtype.kind != "f":
            raise AssetError(f"matrix: expected a floating type, got {matrix.dtype}")
        check_finite("matrix", matrix)
        if np.abs(matrix.sum(1) - 1).max(initial=0) > SUM_ERROR:
            raise AssetError("matrix: expected rows that add up to 1")
        count, rows = len(names), np.arange(len(names))
        one_hot = scipy.sparse.csr_array((np.ones(count), (rows, vertex_ids)), shape=(count, len(matrix)))
        self.layout = KeypointLayout.from_regressor(one_hot, names, name="markers", root=rows.tolist())
        self.keep({"vertex_ids": vertex_ids.astype(np.int64), "matrix": matrix.astype(np.float64)})

    def __len__(self) -> int:
        """Return the number of markers K."""
        return len(self.layout)

    def extra_repr(self) -> str:
        """Return the text that `print` shows."""
        return f"{len(self)} markers, {self.num_vertices} vertices, dtype={self.matrix.dtype}"

    @property
    def num_vertices(self) -> int:
        """Number of vertices V of the body."""
        return len(self.exact["matrix"])

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each marker."""
        return self.layout.names

    def markers(self, vertices: Float[Tensor, "*batch V 3"]) -> Float[Tensor, "*batch K 3"]:
        """Return the markers of meshes [m]; from parameters, ``body.keypoints(markers.layout, ...)``."""
        mesh = read_tensor("vertices", vertices, (self.num_vertices, 3), self.matrix)
        return mesh[..., self.vertex_ids, :]

    def to_vertices(self, markers: Float[Tensor, "*batch K 3"]) -> Float[Tensor, "*batch V 3"]:
        """Return the meshes of markers [m]."""
        return product(self.matrix, read_tensor("markers", markers, (len(self), 3), self.matrix))

    @classmethod
    def learn(
        cls,
        body: BodyModel,
        people: BodyParameters,
        count: int = 64,
        *,
        noise_sd: float = 1e-3,
        convex: bool = False,
        symmetric: bool = True,
        batch_size: int = 64,
    ) -> MarkerSet:
        """Choose markers on a body, and solve for the matrix, in closed form.

        Meshes are divided by their size, so a newborn counts as much as an adult. Each marker is the vertex
        that explains most of the remaining variance, and the matrix is the least squares solution
        with rows that add up to 1.

        Args:
            body: the layer.
            people: some hundred, of all ages and poses that the markers are for, such as
                ``random_people(body, 400).parameters``.
            count: K.
            noise_sd: standard deviation of a marker's coordinate [m] for which the mesh is to be best. The
                smaller it is, the more are errors of markers amplified.
            convex: weights of 0 or more (non-negative least squares). A vertex is then between its markers
                and never errs by more than the worst of them does, but the mesh of exact markers is worse.
            symmetric: markers in pairs, left and right, and people seen in the mirror as well. For bodies
                with a symmetric template.
            batch_size: bodies posed at a time, which bounds memory.

        Returns:
            Markers on the CPU, in the body's dtype.
        """
        template = expect_body(body).asset.template.astype(np.float64)
        read_count("count", count, len(template), body.asset.metadata.name, least=1)
        noise_sd = read_nonnegative("noise_sd", noise_sd, "a length", unit=" [m]")
        read_count("batch_size", batch_size, least=1)
        symmetric, convex = read_flag("symmetric", symmetric), read_flag("convex", convex)
        sizes = (people.body_pose.shape[-2], people.betas.shape[-1])
        if sizes != (body.num_joints - 1, body.num_betas):
            raise ValueError(
                f"people: expected {body.num_joints} joints and {body.num_betas} betas, as the body has, "
                f"got {sizes[0] + 1} and {sizes[1]}"
            )
        expect_values(people=(people.vector().isfinite(), "finite numbers"))
        partner = _mirror_vertices(template) if symmetric else np.arange(len(template))
        vector = people.vector()
        flat = BodyParameters.from_vector(vector.reshape(-1, vector.shape[-1]), body)
        everyone = [flat, flat.mirrored(body.asset.joint_names)] if symmetric else [flat]
        rows, scales = [], []
        with torch.no_grad():
            for start in (slice(i, i + batch_size) for i in range(0, len(flat.betas), batch_size)):
                for some in everyone:
                    mesh = body(some.map(lambda part, start=start: part[start])).vertices.double()
                    mesh = mesh - mesh.mean(1, keepdim=True)
                    scale = 1 / mesh.square().sum(-1).mean(1).sqrt()
                    rows.append((scale[:, None, None] * mesh).mT.flatten(0, 1).cpu().numpy())
                    scales.append(scale.cpu().numpy())
        if not rows:
            raise ValueError("people: expected at least one")
        meshes = np.concatenate(rows)
        unit = np.sqrt(3 * np.square(np.concatenate(scales)).sum())  # noise of 1 m in all equations
        chosen = _choose(meshes, partner, count, unit * max(noise_sd, CHOICE_SD))
        matrix = (_convex if convex else _affine)(meshes[:, chosen], meshes, unit * noise_sd)
        return cls(np.array(chosen), matrix, _names(chosen, partner, template)).to(body.dtype)

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write the markers as a safetensors file, which is written completely or not at all.

        What is learned from a licensed body is derived from it, and so is the file.

        Raises:
            FileExistsError: the file exists and `overwrite` is False.
            OSError: the file cannot be written there.
        """
        names = {"names": list(self.names)}
        write_own_file(self.exact, HEADER_KEY, FORMAT_VERSION, names, path, overwrite=overwrite)

    @classmethod
    def from_file(cls, path: PathLike) -> MarkerSet:
        """Read a file of `save`; nothing in it is run.

        Raises:
            AssetError: the file is missing, unreadable, damaged, hostile, or of another kind.
        """
        with naming(path):
            raw = read_raw(path)
            header = None if raw.own is None else raw.own.description(HEADER_KEY, FORMAT_VERSION)
            if header is None:
                raise AssetError("not a file of virtual markers; MarkerSet.save writes them")
            ids, matrix = raw.content.get("vertex_ids"), raw.content.get("matrix")
            if not isinstance(ids, np.ndarray) or not isinstance(matrix, np.ndarray):
                raise AssetError("vertex_ids or matrix missing; get or save the file again")
            return cls(ids, matrix, read_names("names", header.get("names")))


def _mirror_vertices(template: Float[np.ndarray, "V 3"]) -> Int[np.ndarray, " V"]:
    """Return the vertex nearest to the mirror image of each vertex at x = 0."""
    distance, partner = scipy.spatial.KDTree(template).query(template * [-1, 1, 1])
    if np.median(distance) > ASYMMETRY * np.ptp(template, axis=0).max():
        raise ValueError(
            "symmetric: the template is not symmetric about x = 0; use symmetric=False for this body"
        )
    return np.asarray(partner)


def _choose(
    meshes: Float[np.ndarray, "M V"], partner: Int[np.ndarray, " V"], count: int, noise: float
) -> list[int]:
    """Return vertices that explain most of all others, one pair after the other, where markers have noise.

    With noise, a marker beside another one adds little, however much of the rest it spans, so the chosen ones
    are spread over the body. The noise is that of a row of least squares, see `_affine`.
    """
    if len(meshes) > SKETCH:  # of hundreds of people, some 200 directions explain all but 0.1 mm
        random = np.random.default_rng(0).normal(size=(len(meshes), SKETCH))
        meshes = np.linalg.qr(meshes @ (meshes.T @ random))[0].T @ meshes
    paired = partner[partner] == np.arange(len(partner))
    middle = partner == np.arange(len(partner))
    left, chosen = meshes, list[int]()
    while len(chosen) < count:
        size = np.square(left).sum(0)
        gain = (left * (left @ left.T @ left)).sum(0) / (size + noise**2)
        score = np.where(paired, gain + gain[partner], -np.inf)
        if count - len(chosen) == 1 and middle.any():  # the last one has no partner
            score = np.where(middle, score, -np.inf)
        score[chosen] = -np.inf
        best = int(score.argmax())
        for vertex in dict.fromkeys((best, int(partner[best]))):
            column, total = left[:, vertex], np.square(left[:, vertex]).sum()
            if total > 0:
                kept = 1 - np.sqrt(noise**2 / (total + noise**2))
                left = left - (kept / total) * column[:, None] * (column @ left)
            chosen.append(vertex)
    return chosen[:count]


def _affine(
    markers: Float[np.ndarray, "M K"], meshes: Float[np.ndarray, "M V"], noise: float
) -> Float[np.ndarray, "V K"]:
    """Return the weights of least squares that add up to 1.

    About the markers' mean the equations have no part along (1, ..., 1), and neither has their shortest
    solution x, so the weights are x + 1 / K.
    """
    count = markers.shape[1]
    mean = markers.mean(1, keepdims=True)
    equations = np.concatenate((markers - mean, noise * np.eye(count)))
    targets = np.concatenate((meshes - mean, np.zeros((count, meshes.shape[1]))))
    found = np.linalg.lstsq(equations, targets, rcond=None)[0]
    return (found + (1 - found.sum(0)) / count).T


def _convex(
    markers: Float[np.ndarray, "M K"], meshes: Float[np.ndarray, "M V"], noise: float
) -> Float[np.ndarray, "V K"]:
    """Return the weights of least squares that are 0 or more and add up to 1."""
    count = markers.shape[1]
    basis, factor = np.linalg.qr(np.concatenate((markers, noise * np.eye(count))))
    targets = basis[: len(meshes)].T @ meshes
    heavy = SUM_WEIGHT * np.abs(factor).max()
    equations = np.concatenate((factor, np.full((1, count), heavy)))
    found = np.array([scipy.optimize.nnls(equations, np.append(target, heavy))[0] for target in targets.T])
    return found / found.sum(1, keepdims=True)


def _names(
    chosen: Sequence[int], partner: Int[np.ndarray, " V"], template: Float[np.ndarray, "V 3"]
) -> list[str]:
    """Return ``left_3`` and ``right_3`` for the fourth pair; ``marker_4`` for one in the middle."""
    numbers = {vertex: i for i, vertex in enumerate(dict.fromkeys(min(v, int(partner[v])) for v in chosen))}
    names = []
    for vertex in chosen:
        other = int(partner[vertex])
        side = (
            "marker" if other == vertex else "left" if template[vertex, 0] > template[other, 0] else "right"
        )
        names.append(f"{side}_{numbers[min(vertex, other)]}")
    return names
