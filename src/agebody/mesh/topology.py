"""Maps from the vertices of one topology to those of another: weighted means of the corners of triangles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.assets.asset import AssetError, check_finite, check_indices, check_shape
from agebody.assets.container import PathLike, Unread, is_path, naming, read_raw, to_array
from agebody.checks import expect, expect_tensor, expect_values
from agebody.engine.backend import BackendName
from agebody.files import save_npz
from agebody.mesh.closest import closest_points, interpolate
from agebody.mesh.reading import MeshFile

SUM_ERROR = 1e-4
"""Largest difference of a vertex's weights from a sum of 1, and of a weight from 0 to 1."""
MAX_AWAY = 0.05
"""Largest median distance of one mesh from another that it is to lie on, as a share of the extent."""
MHR = ("triangle_ids", "baryc_coords")
"""Arrays of the maps that come with MHR, by triangles of the source, whose corners are in another file."""
OWN = ("corners", "barycentric", "num_source_vertices")
"""Arrays of a file of `TopologyMap.save`."""


@dataclass(frozen=True, eq=False)
class TopologyMap:
    """The vertices of one topology as points on the surface of another.

    Raises:
        AssetError: the arrays do not fit together.
    """

    corners: np.ndarray
    """(N, 3): the vertices of the source whose weighted mean each vertex is."""
    barycentric: np.ndarray
    """(N, 3): their weights, 0 or more, of sum 1."""
    num_source_vertices: int

    def __post_init__(self) -> None:
        """Check the arrays, and keep them in one type."""
        corners, barycentric = np.asarray(self.corners), np.asarray(self.barycentric)
        check_shape("corners", corners.shape, (None, 3))
        check_indices("corners", corners, self.num_source_vertices)
        check_shape("barycentric", barycentric.shape, (len(corners), 3))
        if barycentric.dtype.kind != "f":
            raise AssetError(f"barycentric: expected a floating type, got {barycentric.dtype}")
        check_finite("barycentric", barycentric)
        if len(corners) == 0:
            raise AssetError("corners: expected at least one vertex, got none")
        if barycentric.min() < -SUM_ERROR or np.abs(barycentric.sum(1) - 1).max() > SUM_ERROR:
            raise AssetError("barycentric: expected weights of 0 or more that add up to 1")
        object.__setattr__(self, "corners", corners.astype(np.int64))
        object.__setattr__(self, "barycentric", barycentric.astype(np.float64))

    def __call__(self, vertices: Float[Tensor, "*batch V 3"]) -> Float[Tensor, "*batch N 3"]:
        """Return meshes of the source in the other topology, in the same unit; differentiable."""
        mesh = expect("vertices", vertices, self.num_source_vertices, 3)
        weights = torch.from_numpy(self.barycentric).to(mesh)
        corners = mesh[..., torch.from_numpy(self.corners).to(mesh.device), :]
        return interpolate(corners, weights.expand(*corners.shape[:-2], 3))

    def __len__(self) -> int:
        """Return the number of vertices of the other topology."""
        return len(self.corners)

    def matrix(self) -> scipy.sparse.csr_array:
        """Return the map as a sparse (N, V) matrix."""
        rows = np.repeat(np.arange(len(self)), 3)
        entries = self.barycentric.ravel(), (rows, self.corners.ravel())
        return scipy.sparse.csr_array(entries, (len(self), self.num_source_vertices))

    @classmethod
    def from_meshes(
        cls,
        source: Float[Tensor, "V 3"],
        faces: Int[Tensor, "F 3"],
        target: Float[Tensor, "N 3"],
        *,
        backend: BackendName = "auto",
    ) -> TopologyMap:
        """Map a mesh to another one that lies on it: the same person in the same pose.

        Such pairs are SOMA's ``base_body.obj`` and ``SOMA_wrap.obj`` of a body, or a mesh and what a program
        of registration made of it.

        Args:
            source: vertices of the one topology.
            faces: its triangles.
            target: vertices of the other one; each becomes the nearest point of the source.
            backend: of the search, as in `closest_points`.

        Raises:
            ValueError: the target does not lie on the source.
        """
        expect_values(target=(expect_tensor("target", target).isfinite(), "finite numbers"))
        near = closest_points(target, source, faces, backend=backend)
        away, extent = near.distance.median(), (source.amax(-2) - source.amin(-2)).max()
        if away > MAX_AWAY * extent:
            raise ValueError(
                f"target: expected vertices on the source, got a median distance of {away:.3g} from it at an "
                f"extent of {extent:.3g}; give both in one unit, place and pose"
            )
        weights = near.barycentric.detach().double().cpu().numpy()
        return cls(faces.long()[near.face].cpu().numpy(), weights, source.shape[-2])

    @classmethod
    def from_file(cls, path: PathLike, *, faces: Any = None) -> TopologyMap:
        """Read a map of MHR's repository, or a file of `save`; nothing in it is run.

        MHR publishes ``mhr2smpl_mapping.npz``, ``mhr2smplx_mapping.npz`` and their inverses, ``smpl2mhr`` and
        ``smplx2mhr``, in ``tools/mhr_smpl_conversion/assets`` of github.com/facebookresearch/MHR: for each
        vertex its triangle, ``triangle_ids`` (N), and the weights of its corners, ``baryc_coords`` (N, 3).

        Args:
            path: the file.
            faces: (F, 3) triangles of the source, or a file with them, for MHR's files, which do not hold
                them. MHR's own are in ``mhr_face_mask.ply`` beside the maps.

        Raises:
            AssetError: the file is missing, unreadable, damaged, hostile, or of another kind, or faces are
                missing or do not belong to it.
        """
        with naming(path):
            places, barycentric, count = read_map(path)
            if count is not None:
                return cls(places, barycentric, count)
            if faces is None:
                raise AssetError(
                    "names triangles of its source; give faces= of that, for MHR's those of mhr_face_mask.ply"
                )
            triangles = _triangles(faces)
            check_shape("faces", triangles.shape, (None, 3))
            check_shape(MHR[0], places.shape, (None,))
            try:
                check_indices(MHR[0], places, len(triangles))
            except AssetError as error:
                raise AssetError(f"{error}; the faces are not those of its source") from None
            return cls(triangles[places], barycentric, int(triangles.max()) + 1)

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write the map as an ``.npz``, completely or not at all.

        Raises:
            FileExistsError: the file exists and ``overwrite`` is false.
            OSError: the file cannot be written.
        """
        save_npz({name: getattr(self, name) for name in OWN}, path, overwrite=overwrite)


class MapFile(NamedTuple):
    """Arrays of a file of a map."""

    places: np.ndarray
    """(N, 3) vertices, or (N) triangles, of the source."""
    barycentric: np.ndarray
    num_source_vertices: int | None
    """None for places that are triangles."""


def read_map(path: PathLike) -> MapFile:
    """Read the arrays of a map of either kind."""
    content = read_raw(path).content
    if not isinstance(content, Mapping):
        raise AssetError(f"{_EXPECTED}, got one array or object")
    if set(OWN) <= set(content):
        places, barycentric, count = (_array(content, name) for name in OWN)
        if count.shape != () or count.dtype.kind not in "iu":
            raise AssetError(f"{OWN[2]}: expected one whole number, got {count.dtype} {count.shape}")
        return MapFile(places, barycentric, int(count))
    if not set(MHR) <= set(content):
        shown = ", ".join(sorted(map(str, content))[:12]) or "nothing"
        raise AssetError(f"{_EXPECTED}; it holds {shown}")
    places, barycentric = (_array(content, name) for name in MHR)
    return MapFile(places, barycentric, None)


def _triangles(faces: Any) -> np.ndarray:
    found = MeshFile.from_file(faces).faces if is_path(faces) else faces
    if found is None:
        raise AssetError(f"faces: {faces} holds no triangles")
    return np.asarray(to_array(found))


_EXPECTED = (
    f"not a map of topologies: expected arrays {' and '.join(MHR)}, as in MHR's files, or a file that "
    "TopologyMap.save wrote"
)


def _array(content: Mapping[Any, Any], name: str) -> np.ndarray:
    value = content[name]
    if not isinstance(value, np.ndarray):
        what = value.reason if isinstance(value, Unread) else f"a {type(value).__name__}"
        raise AssetError(f"{name}: expected an array of numbers, got {what}")
    return value
