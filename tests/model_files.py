"""Writes synthetic body files in every published format: random numbers in the layouts of the real ones.

Each `write_*` function returns the arrays that a reader should find, under SMPL's entry names.
"""

from __future__ import annotations

import functools
import io
import pickle
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.spatial import ConvexHull, KDTree

from agebody.assets.asset import SMPL_PARENTS, BodyAsset
from agebody.assets.io import load_asset
from agebody.assets.landmarks import SURFACE21_SMPL_VERTICES

Arrays = dict[str, Any]

_HAND_PARENTS = [-1 if i % 3 == 0 else i - 1 for i in range(15)]


def _with_hands(body: tuple[int, ...]) -> tuple[int, ...]:
    """Fifteen finger joints on each wrist, three in a row a finger."""
    hands = [
        (20, 21)[side] if parent < 0 else len(body) + 15 * side + parent
        for side in (0, 1)
        for parent in _HAND_PARENTS
    ]
    return (*body, *hands)


PARENTS = {
    "smpl": SMPL_PARENTS,
    "smplh": _with_hands(SMPL_PARENTS[:22]),
    "smplx": _with_hands((*SMPL_PARENTS[:22], 15, 15, 15)),
    "mano": (-1, *(parent + 1 for parent in _HAND_PARENTS)),
    "flame": (-1, 0, 1, 1, 1),
}


def random_arrays(
    *,
    family: str = "smpl",
    num_vertices: int = 6890,
    num_betas: int = 10,
    seed: int = 0,
    stature: float = 1.7,
    dense: bool = False,
    dtype: Any = np.float64,
) -> Arrays:
    """A closed, convex random body: the entries that all of SMPL's relatives share, as plain arrays.

    Args:
        family: whose joints it has, a key of `PARENTS`.
        num_vertices: V; 6890 gives SMPL's number of faces too.
        num_betas: S.
        seed: of the random numbers.
        stature: extent along y [m].
        dense: whether every joint moves every vertex; else the four nearest do.
        dtype: of the floating arrays.
    """
    rng = np.random.default_rng(seed)
    parents = np.array(PARENTS[family])
    num_joints = len(parents)
    directions = rng.normal(size=(num_vertices, 3))
    sphere = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    template = sphere * stature * np.array([0.25, 0.5, 0.15])
    template[:, 1] *= stature / np.ptp(template[:, 1])
    regressor = random_regressor(num_joints, num_vertices, rng)
    distances, nearest = KDTree(regressor @ template).query(template, k=num_joints if dense else 4)
    closeness = rng.uniform(0.5, 1, distances.shape) / (distances + 0.05 * stature)
    weights = np.zeros((num_vertices, num_joints))
    np.put_along_axis(weights, nearest, closeness / closeness.sum(axis=1, keepdims=True), axis=1)
    return {
        "v_template": template.astype(dtype),
        "f": _outward_faces(sphere).astype(np.uint32),
        "shapedirs": (0.01 * rng.normal(size=(num_vertices, 3, num_betas))).astype(dtype),
        "posedirs": (0.001 * rng.normal(size=(num_vertices, 3, 9 * (num_joints - 1)))).astype(dtype),
        "J_regressor": regressor.astype(dtype),
        "weights": weights.astype(dtype),
        "kintree_table": np.stack([parents.astype(np.uint32), np.arange(num_joints, dtype=np.uint32)]),
    }


def hands_and_face(family: str, num_faces: int, *, seed: int = 0, dtype: Any = np.float64) -> Arrays:
    """The entries of hand poses in SMPL-H, SMPL-X and MANO files, and of the face in SMPL-X files."""
    rng = np.random.default_rng(seed + 50)
    entries: Arrays = {}
    for side in {"smplh": "lr", "smplx": "lr", "mano": ("",)}[family]:
        entries["hands_components" + side] = np.linalg.qr(rng.normal(size=(45, 45)))[0].astype(dtype)
        entries["hands_mean" + side] = (0.3 * rng.normal(size=45)).astype(dtype)
    if family == "smplx":
        entries["lmk_faces_idx"] = rng.integers(0, num_faces, 51)
        entries["lmk_bary_coords"] = rng.dirichlet(np.ones(3), 51).astype(dtype)
        entries["dynamic_lmk_faces_idx"] = rng.choice(rng.integers(0, num_faces, 100), (79, 17))
        entries["dynamic_lmk_bary_coords"] = rng.dirichlet(np.ones(3), (79, 17)).astype(dtype)
    return entries


def random_regressor(rows: int, num_vertices: int, rng: np.random.Generator) -> sparse.csc_array:
    """Points that are weighted means of eight vertices each."""
    width = min(8, num_vertices)
    columns = np.concatenate([rng.choice(num_vertices, width, replace=False) for _ in range(rows)])
    values = rng.dirichlet(np.ones(width), rows).ravel()
    return sparse.csc_array(
        (values, (np.repeat(np.arange(rows), width), columns)), shape=(rows, num_vertices)
    )


def _outward_faces(sphere: np.ndarray) -> np.ndarray:
    faces = ConvexHull(sphere).simplices
    a, b, c = (sphere[faces[:, i]] for i in range(3))
    inward = np.einsum("fi,fi->f", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, [0, 2, 1]]
    return faces


def write_smpl_pkl(
    path: Path, *, chumpy: bool = True, cocoplus: bool = False, hands: bool = False, **options: Any
) -> Arrays:
    """SMPL as Python 2 pickled it, v1.0.0 with 10 betas and v1.1.0 with 300; `options` as of `random_arrays`.

    Args:
        path: the file.
        chumpy: whether the shape directions are a chumpy object, as in the official files.
        cocoplus: whether HMR's 19 points are in it too.
        hands: whether the hands' pose space, and SMPL-X's face, are in it.
        options: see `random_arrays`.
    """
    arrays = random_arrays(**options)
    if hands:
        arrays |= hands_and_face(options["family"], len(arrays["f"]), dtype=options.get("dtype", np.float64))
    num_vertices = len(arrays["v_template"])
    regressor = sparse.csc_matrix(arrays["J_regressor"])
    entries = arrays | {
        "J_regressor": regressor,
        "J_regressor_prior": regressor,
        "weights_prior": arrays["weights"],
        "J": arrays["J_regressor"] @ arrays["v_template"],
        "vert_sym_idxs": np.arange(num_vertices),
        "pose_training_info": {"gender": "f", "versions": [1, 2]},
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }
    if chumpy:
        entries["shapedirs"] = _select(arrays["shapedirs"])
    if cocoplus:
        points = random_regressor(19, num_vertices, np.random.default_rng(19))
        arrays["cocoplus_regressor"] = points
        entries["cocoplus_regressor"] = sparse.csc_matrix(points)
    Path(path).write_bytes(python2_dumps(entries))
    return arrays


def write_smil_pkl(path: Path, **options: Any) -> Arrays:
    """`smil_web.pkl`: SMPL's layout, 20 betas, a newborn's size."""
    return write_smpl_pkl(path, **{"num_betas": 20, "stature": 0.53, "seed": 1} | options)


def write_smpl_npz(path: Path, *, family: str = "smpl", **options: Any) -> Arrays:
    """The npz form: a dense regressor, and the object arrays that no reader needs."""
    arrays = random_arrays(family=family, **options)
    arrays["J_regressor"] = arrays["J_regressor"].toarray()
    unneeded = {"pose_training_info": np.array({"a": 1}), "bs_type": np.array("lrotmin")}
    np.savez(path, **arrays, **unneeded)
    return arrays


def write_smplh_npz(path: Path, **options: Any) -> Arrays:
    """SMPL-H as AMASS uses it, without the hands' pose space."""
    return write_smpl_npz(path, family="smplh", **{"num_betas": 16} | options)


def write_smplh_pkl(path: Path, **options: Any) -> Arrays:
    """`SMPLH_female.pkl` of MANO's site, with the hands' pose space."""
    return write_smpl_pkl(path, **{"family": "smplh", "hands": True} | options)


def write_smplx_npz(path: Path, **options: Any) -> Arrays:
    """SMPL-X: 300 shape directions, then 100 expressions; older files have 10 and 10."""
    arrays = random_arrays(family="smplx", **{"num_vertices": 10475, "num_betas": 400} | options)
    arrays |= hands_and_face("smplx", len(arrays["f"]), dtype=options.get("dtype", np.float64))
    arrays["J_regressor"] = arrays["J_regressor"].toarray()
    unneeded = {"joint2num": np.array({"Pelvis": 0}), "part2num": np.array({"Pelvis": 0})}
    np.savez(path, **arrays, **unneeded)
    return arrays


@functools.cache
def small_smplx() -> BodyAsset:
    """SMPL-X of every age with 150 vertices, from files that are gone."""
    with tempfile.TemporaryDirectory() as folder:
        write_smplx_npz(Path(folder, "SMPLX_NEUTRAL.npz"), num_vertices=150, num_betas=20)
        write_kid_template(Path(folder, "smplx_kid_template.npy"), num_vertices=150)
        return load_asset(
            Path(folder, "SMPLX_NEUTRAL.npz"), infant_template=Path(folder, "smplx_kid_template.npy")
        )


def write_mano_pkl(path: Path, **options: Any) -> Arrays:
    """`MANO_RIGHT.pkl`, with chumpy and the hand's pose space."""
    defaults = {"family": "mano", "num_vertices": 778, "stature": 0.2, "hands": True}
    return write_smpl_pkl(path, **defaults | options)


def write_bev_packs(folder: Path, *, seed: int = 0, num_vertices: int = 6890) -> tuple[Arrays, Arrays]:
    """`SMPLA_NEUTRAL.pth` and `smil_packed_info.pth`; returns the entries of both as arrays."""
    rng = np.random.default_rng(seed + 100)
    surface = np.array(list(SURFACE21_SMPL_VERTICES.values())) % num_vertices
    extra = {
        "J_regressor_extra9": random_regressor(9, num_vertices, rng).toarray().astype(np.float32),
        "J_regressor_h36m17": random_regressor(17, num_vertices, rng).toarray().astype(np.float32),
        "extra_joints_index": surface,
    }
    packs = []
    for name, stature in (("SMPLA_NEUTRAL.pth", 1.7), ("smil_packed_info.pth", 0.53)):
        arrays = random_arrays(num_vertices=num_vertices, seed=seed, stature=stature, dtype=np.float32)
        num_features = arrays["posedirs"].shape[2]
        pack = arrays | extra
        pack["J_regressor"] = arrays["J_regressor"].toarray()
        pack["f"] = arrays["f"].astype(np.float32)
        pack["kintree_table"] = np.array(SMPL_PARENTS)
        pack["posedirs"] = np.ascontiguousarray(arrays["posedirs"].reshape(-1, num_features).T)
        if name.startswith("SMPLA"):
            infant = arrays["v_template"] * np.float32(0.31)
            pack["smpla_shapedirs"] = np.concatenate(
                [arrays["shapedirs"], (infant - arrays["v_template"])[..., None]], axis=2
            )
        save_torch(Path(folder) / name, pack)
        packs.append(pack)
    return packs[0], packs[1]


def write_kid_template(path: Path, *, num_vertices: int = 6890, seed: int = 2) -> np.ndarray:
    """`smpl_kid_template.npy`: vertices of an infant away from the origin; returns them."""
    template = random_arrays(num_vertices=num_vertices, seed=seed, stature=0.53)["v_template"]
    template = template + np.array([0.02, -0.3, 0.05])
    np.save(path, template)
    return template


def write_smil_pose_prior(path: Path) -> None:
    """`smil_pose_prior.pkl`: an instance of a class of the script that wrote it."""
    prior = type("Mahalanobis", (), {"__module__": "__main__"})()
    prior.mean, prior.prec, prior.prefix = np.zeros(69), np.eye(69), 3
    Path(path).write_bytes(python2_dumps(prior))


def write_gmm_prior(path: Path) -> None:
    """SMPLify's `gmm_08.pkl`."""
    prior = {
        "means": np.zeros((8, 69)),
        "covars": np.tile(np.eye(69), (8, 1, 1)),
        "weights": np.full(8, 1 / 8),
    }
    Path(path).write_bytes(python2_dumps(prior))


def save_torch(path: Path, arrays: Arrays) -> None:
    """Save arrays as a dict of tensors."""
    import torch

    torch.save({name: as_tensor(array) for name, array in arrays.items()}, path)


def as_tensor(array: np.ndarray) -> Any:
    """Return a tensor of the same numbers; unsigned indices are signed, as old versions of torch need."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.int64 if array.dtype == np.uint32 else None))


class Ch:
    """Pickles as `chumpy.ch.Ch` does."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self._dirty_vars: set[str] = {"x"}
        self._itr = None
        self._depends_on_deps = {"cache": 1}


class Select:
    """Pickles as `chumpy.reordering.Select` does."""

    def __init__(self, a: Any, idxs: np.ndarray, preferred_shape: tuple[int, ...]) -> None:
        self.a = a
        self.idxs = idxs
        self.preferred_shape = preferred_shape
        self._dirty_vars: set[str] = set()


Ch.__module__, Select.__module__ = "chumpy.ch", "chumpy.reordering"


def _select(values: np.ndarray) -> Select:
    """A chumpy selection that comes out as the values, taken from a larger array in another order."""
    everything = np.concatenate([np.zeros(5, values.dtype), values.ravel()[::-1]])
    return Select(Ch(everything), np.arange(len(everything) - 1, 4, -1), values.shape)


def python2_dumps(value: Any) -> bytes:
    """Pickle as Python 2 and NumPy 1 did: protocol 2, byte strings, the modules' former names."""
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


class _Python2Pickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin-1") if isinstance(value, str) else value
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
        else:
            self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
        self.memoize(value)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = {"builtins": "__builtin__", "copyreg": "copy_reg"}.get(obj.__module__, str(obj.__module__))
        module = module.replace("numpy._core", "numpy.core").replace("scipy.sparse._", "scipy.sparse.")
        self.write(f"c{module}\n{name or obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[types.FunctionType] = save_global
