"""Named keypoint layouts: names, edges, and the source of each point on a body."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import scipy
from jaxtyping import Bool, Float
from torch import Tensor

from agebody.assets.asset import SMPL_JOINT_NAMES, SMPL_PARENTS, AssetError, BodyAsset, Regressor
from agebody.assets.landmarks import (
    COCO17,
    CONTOUR17,
    EXTRA9,
    FACE51,
    H36M17,
    H36M17_BEV,
    J19,
    SURFACE21,
    TIPS5,
)
from agebody.assets.official import JOINT_NAMES


def mirror_order(names: Sequence[str]) -> tuple[int, ...]:
    """Return the index of each name's mirror image: left and right exchanged, all others themselves."""
    index = {name: i for i, name in enumerate(names)}
    mirrored = []
    for i, name in enumerate(names):
        side, _, rest = name.partition("_")
        other = {"left": f"right_{rest}", "right": f"left_{rest}"}.get(side)
        mirrored.append(i if other is None else index.get(other, i))
    return tuple(mirrored)


@dataclass(frozen=True, eq=False)
class KeypointLayout:
    """A named, ordered set of keypoints.

    Args:
        name: name of the layout. Where a body has a regressor set of this name with the
            same points, the whole layout is taken from it.
        names: name of each point; left and right ones begin with ``left_`` and ``right_``.
        sources: where each point comes from on any other body: ``"joints"``, a regressor set, or a layout,
            and the name of the joint or point in it. A point with several names is the middle of them.
        edges: pairs of points joined by a line in drawings.
        root: points whose mean is the origin of root-relative coordinates.
        regressor: points that the layout defines itself, as a regressor set of its name.
    """

    name: str
    names: tuple[str, ...]
    sources: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[int, int], ...] = ()
    root: tuple[int, ...] = (0,)
    regressor: Regressor | None = None

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.names)

    def __repr__(self) -> str:
        """Return name and size."""
        return f"KeypointLayout({self.name!r}, {len(self)} points)"

    @property
    def flip(self) -> tuple[int, ...]:
        """Index of each point's mirror image: left and right exchanged, all others themselves."""
        return mirror_order(self.names)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(left, right) indices of the points that have a mirror image."""
        return tuple((i, j) for i, j in enumerate(self.flip) if i != j and self.names[i].startswith("left_"))

    def center(self, points: Float[Tensor, "*batch K 3"]) -> Float[Tensor, "*batch 1 3"]:
        """Return the root of the points: subtract it for root-relative coordinates (BEV's ``root_align``)."""
        return points[..., list(self.root), :].mean(-2, keepdim=True)

    @classmethod
    def from_regressor(
        cls,
        matrix: Any,
        names: Sequence[str],
        *,
        name: str = "custom",
        edges: Iterable[tuple[int, int]] = (),
        root: Sequence[int] = (0,),
    ) -> KeypointLayout:
        """Build a layout whose points are rows of a (K, V) matrix, dense or SciPy sparse."""
        matrix = scipy.sparse.csr_array(np.asarray(matrix) if not scipy.sparse.issparse(matrix) else matrix)
        if matrix.shape[0] != len(names):
            raise ValueError(
                f"names: expected {matrix.shape[0]} names, one per row of the matrix, got {len(names)}"
            )
        names = tuple(names)
        sources = tuple((name, point) for point in names)
        return cls(name, names, sources, tuple(edges), tuple(root), Regressor(names, matrix))

    def resolve(self, asset: BodyAsset) -> tuple[np.ndarray, scipy.sparse.csr_array]:
        """Find the points on one body.

        Returns:
            (K, M) joints of which each point is the mean, -1 for points of the surface; and the (K, V)
            regressor of those, with empty rows for joints.

        Raises:
            AssetError: the body lacks a joint or a regressor set that the layout needs.
        """
        sets = dict(asset.regressors)
        if self.regressor is not None:
            made_for = cast(tuple[int, int], self.regressor.matrix.shape)[1]
            if made_for != asset.num_vertices:
                raise AssetError(
                    f"keypoint layout {self.name!r} is made for {made_for} vertices, "
                    f"{asset.metadata.name!r} has {asset.num_vertices}"
                )
            sets[self.name] = self.regressor
        own = sets.get(self.name)
        sources = (
            self.sources if own is None or own.names != self.names else [(self.name, n) for n in self.names]
        )
        joints: list[list[int]] = []
        rows = [scipy.sparse.csr_array((1, asset.num_vertices))] * len(self)
        for i, (group, *points) in enumerate(sources):
            found = [_find_point(group, point, sets) for point in points]
            carriers = {where for where, _ in found}
            if carriers == {"joints"}:
                for _, point in found:
                    if point not in asset.joint_names:
                        raise AssetError(self._lacks(asset, f"joint {point!r}"))
                joints.append([asset.joint_names.index(point) for _, point in found])
                continue
            for where, point in found:
                if where not in sets or point not in sets[where].names:
                    raise AssetError(
                        self._lacks(asset, f"regressor set {where!r}")
                        + f"; attach one with load_asset(..., regressors={{{where!r}: FILE}})"
                    )
            parts = [sets[where].matrix[[sets[where].names.index(point)]] for where, point in found]
            rows[i] = parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) / len(parts)
            joints.append([-1])
        width = max(map(len, joints), default=1)  # one joint is the mean of itself and itself
        repeated = [(several * width)[:width] for several in joints]
        return np.array(repeated).reshape(len(self), width), scipy.sparse.csr_array(scipy.sparse.vstack(rows))

    def _lacks(self, asset: BodyAsset, what: str) -> str:
        body = f"the {asset.metadata.kind} body {asset.metadata.name!r}"
        return f"keypoint layout {self.name!r}: {body} has no {what}"


def _find_point(group: str, point: str, sets: dict[str, Regressor]) -> tuple[str, str]:
    """Return where a point is, a regressor set or ``"joints"``, and its name there."""
    if group in sets or group not in LAYOUTS:
        return group, point
    layout = LAYOUTS[group]
    place, name = layout.sources[layout.names.index(point)]
    return place, name


def _edges(names: Sequence[str], *chains: str) -> tuple[tuple[int, int], ...]:
    """Return the edges along chains of names; a chain with * stands for its left and its right form."""
    edges = []
    for chain in chains:
        for side in ("left", "right") if "*" in chain else ("",):
            points = [names.index(point.replace("*", side)) for point in chain.split()]
            edges += itertools.pairwise(points)
    return tuple(dict.fromkeys(edges))


def _from(group: str, names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the sources of points of one group."""
    return tuple((group, name) for name in names)


_SMPL24_SOURCES = _from("joints", SMPL_JOINT_NAMES)
_SMPL24_EDGES = tuple((parent, joint) for joint, parent in enumerate(SMPL_PARENTS) if parent >= 0)
_SURFACE_SOURCES = _from("surface21", SURFACE21)

_SURFACE_CHAINS = (
    "head nose",
    "nose *_eye *_ear",
    "*_ankle *_heel",
    "*_foot *_big_toe",
    "*_foot *_small_toe",
)
_SMPLX45_NAMES = SMPL_JOINT_NAMES + SURFACE21
_SMPLX45_EDGES = _SMPL24_EDGES + _edges(
    _SMPLX45_NAMES, *_SURFACE_CHAINS, *(f"*_wrist *_{tip}" for tip in TIPS5)
)

_OPENPOSE25_TABLE = """
    nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist
    mid_hip right_hip right_knee right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear
    left_ear left_big_toe left_small_toe left_heel right_big_toe right_small_toe right_heel
"""
_OPENPOSE25 = tuple(_OPENPOSE25_TABLE.split())
_OPENPOSE25_EDGES = _edges(
    _OPENPOSE25,
    "nose neck mid_hip",
    "neck *_shoulder *_elbow *_wrist",
    "mid_hip *_hip *_knee *_ankle",
    "nose *_eye *_ear",
    "*_ankle *_heel",
    "*_ankle *_big_toe *_small_toe",
)


_MIDDLES = {
    "neck": ("coco17", "left_shoulder", "right_shoulder"),
    "mid_hip": ("coco17", "left_hip", "right_hip"),
}
"""OpenPose is trained on COCO's points; its neck and MidHip are the middles of COCO's shoulders and hips."""

_OPENPOSE25_SOURCES = tuple(
    _MIDDLES.get(name, ("coco17" if name in COCO17 else "surface21", name)) for name in _OPENPOSE25
)
_COCO17_CHAINS = (
    "*_shoulder *_elbow *_wrist",
    "*_hip *_knee *_ankle",
    "nose *_eye *_ear",
    "left_shoulder right_shoulder right_hip left_hip left_shoulder",
)

_HMR2_25 = tuple("pelvis" if name == "mid_hip" else name for name in _OPENPOSE25)
"""What HMR2 and SPIN take for OpenPose's points: neck and pelvis are SMPL's joints."""


def _joint_or_surface(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(("surface21" if name in SURFACE21 else "joints", name) for name in names)


_FACE68 = CONTOUR17 + FACE51
_FACE68_SOURCES = _from("contour17", CONTOUR17) + _from("face51", FACE51)
_JOINTS55 = tuple(f"{name}_smplhf" if name.endswith("_eye") else name for name in JOINT_NAMES["smplx"])
_SMPLX127 = _JOINTS55 + SURFACE21 + FACE51
_SMPLX127_SOURCES = _from("joints", JOINT_NAMES["smplx"]) + _SURFACE_SOURCES + _from("face51", FACE51)
_FINGER_CHAINS = [f"*_wrist *_{tip}1 *_{tip}2 *_{tip}3 *_{tip}" for tip in TIPS5]
_BODY22_EDGES = tuple(edge for edge in _SMPL24_EDGES if max(edge) < 22)


def _hand21(side: str) -> tuple[str, ...]:
    """Return the points of a hand as OpenPose and COCO-WholeBody order them: the wrist, then the fingers."""
    fingers = (f"{side}_{tip}{k}" for tip in TIPS5 for k in ("1", "2", "3", ""))
    return (f"{side}_hand_root", *fingers)


def _hand21_sources(side: str) -> tuple[tuple[str, ...], ...]:
    return (("joints", f"{side}_wrist"), *_joint_or_surface(_hand21(side)[1:]))


_FINGERS21 = ["*_wrist *_hand_root", *(c.replace("*_wrist", "*_hand_root") for c in _FINGER_CHAINS)]
_FEET6 = SURFACE21[5:11]
_COCO133 = COCO17 + _FEET6 + _FACE68 + _hand21("left") + _hand21("right")
_OPENPOSE137 = (*_OPENPOSE25, *_hand21("left"), *_hand21("right"), *_FACE68, "right_pupil", "left_pupil")


class _Layouts(dict[str, KeypointLayout]):
    """Layouts by name; an unknown name is refused with the known ones."""

    def __missing__(self, name: Any) -> KeypointLayout:
        raise KeyError(f"expected one of {', '.join(self)}, got {name!r}")


LAYOUTS: dict[str, KeypointLayout] = _Layouts(
    (layout.name, layout)
    for layout in (
        KeypointLayout("smpl24", SMPL_JOINT_NAMES, _SMPL24_SOURCES, _SMPL24_EDGES),
        KeypointLayout("smplx45", _SMPLX45_NAMES, _SMPL24_SOURCES + _SURFACE_SOURCES, _SMPLX45_EDGES),
        KeypointLayout("openpose25", _OPENPOSE25, _OPENPOSE25_SOURCES, _OPENPOSE25_EDGES, root=(8,)),
        KeypointLayout(
            "coco17", COCO17, _joint_or_surface(COCO17), _edges(COCO17, *_COCO17_CHAINS), root=(11, 12)
        ),
        KeypointLayout(
            "h36m17",
            H36M17,
            _from("h36m17", H36M17),
            _edges(
                H36M17,
                "pelvis spine neck nose head",
                "neck *_shoulder *_elbow *_wrist",
                "pelvis *_hip *_knee *_ankle",
            ),
        ),
        KeypointLayout(
            "bev71",
            _SMPLX45_NAMES + EXTRA9 + tuple(f"{name}_h36m17" for name in H36M17_BEV),
            _SMPL24_SOURCES + _SURFACE_SOURCES + _from("extra9", EXTRA9) + _from("h36m17", H36M17_BEV),
            _SMPLX45_EDGES,
            root=(45, 46),
        ),
        KeypointLayout(
            "hmr2_44",
            _HMR2_25 + tuple(f"{name}_j19" if name in _HMR2_25 else name for name in J19),
            _joint_or_surface(_HMR2_25) + _from("j19", J19),
            _OPENPOSE25_EDGES,
            root=(25 + J19.index("pelvis_mpii"),),
        ),
        KeypointLayout(
            "smplh52",
            JOINT_NAMES["smplh"],
            _from("joints", JOINT_NAMES["smplh"]),
            _BODY22_EDGES + _edges(JOINT_NAMES["smplh"], *(c.rpartition(" ")[0] for c in _FINGER_CHAINS)),
        ),
        KeypointLayout(
            "smplh73",
            JOINT_NAMES["smplh"] + SURFACE21,
            _from("joints", JOINT_NAMES["smplh"]) + _SURFACE_SOURCES,
            _BODY22_EDGES + _edges(JOINT_NAMES["smplh"] + SURFACE21, *_SURFACE_CHAINS, *_FINGER_CHAINS),
        ),
        KeypointLayout(
            "smplx127",
            _SMPLX127,
            _SMPLX127_SOURCES,
            _BODY22_EDGES + _edges(_SMPLX127, *_SURFACE_CHAINS, *_FINGER_CHAINS),
        ),
        KeypointLayout(
            "smplx144",
            _SMPLX127 + CONTOUR17,
            _from("joints", JOINT_NAMES["smplx"])
            + _SURFACE_SOURCES
            + _FACE68_SOURCES[17:]
            + _FACE68_SOURCES[:17],
            _BODY22_EDGES
            + _edges(_SMPLX127 + CONTOUR17, *_SURFACE_CHAINS, *_FINGER_CHAINS, " ".join(CONTOUR17)),
        ),
        KeypointLayout(
            "mano21",
            JOINT_NAMES["mano"] + TIPS5,
            _from("joints", JOINT_NAMES["mano"]) + _from("tips5", TIPS5),
            _edges(JOINT_NAMES["mano"] + TIPS5, *(c.replace("*_", "") for c in _FINGER_CHAINS)),
        ),
        KeypointLayout(
            "coco133",
            _COCO133,
            _from("coco17", COCO17)
            + _joint_or_surface(_FEET6)
            + _FACE68_SOURCES
            + _hand21_sources("left")
            + _hand21_sources("right"),
            _edges(
                _COCO133,
                *_COCO17_CHAINS,
                "*_ankle *_heel",
                "*_ankle *_big_toe *_small_toe",
                " ".join(CONTOUR17),
                *_FINGERS21,
            ),
            root=(11, 12),
        ),
        KeypointLayout(
            "openpose137",
            _OPENPOSE137,
            _OPENPOSE25_SOURCES
            + _hand21_sources("left")
            + _hand21_sources("right")
            + _FACE68_SOURCES
            + (("surface21", "right_eye"), ("surface21", "left_eye")),
            _OPENPOSE25_EDGES + _edges(_OPENPOSE137, " ".join(CONTOUR17), *_FINGERS21),
            root=(8,),
        ),
    )
)
"""The built-in layouts by name.

smplx45, smplh73 and smplx127 have the joints that smplx returns for SMPL, SMPL-H and SMPL-X, smplx144 the
contour too, mano21 MANO's joints and finger tips; bev71 has those of BEV and ROMP, hmr2_44 those of HMR2.
openpose25 has what OpenPose writes: its neck and mid_hip are middles, those of hmr2_44 are SMPL's joints.
"""


def contour_layout(asset: BodyAsset) -> KeypointLayout:
    """Return the vertices among which the contour of a face moves, named by their numbers.

    Raises:
        AssetError: the body has no contour.
    """
    if asset.contour_faces is None:
        raise AssetError(
            f"the {asset.metadata.kind} body {asset.metadata.name!r} has no contour of a face; SMPL-X has"
        )
    used = np.unique(asset.faces[asset.contour_faces])
    rows = scipy.sparse.csr_array(
        (np.ones(len(used)), (np.arange(len(used)), used)), shape=(len(used), asset.num_vertices)
    )
    return KeypointLayout.from_regressor(rows, [str(vertex) for vertex in used], name="contour vertices")


@cache
def joint_layout(*names: str) -> KeypointLayout:
    """Return joints of a body as a layout, the same object for the same names."""
    return KeypointLayout("joints", names, _from("joints", names))


def limbs(layout: KeypointLayout) -> Bool[np.ndarray, "2 K"]:
    """Return which points are of arms, and which of legs, by their names."""
    parts = ("shoulder", "elbow", "wrist", "hand"), ("hip", "knee", "ankle", "foot", "heel", "toe")
    return np.array([[any(part in name for part in limb) for name in layout.names] for limb in parts])


def get_layout(layout: str | KeypointLayout) -> KeypointLayout:
    """Return a layout by name, or the given layout."""
    if isinstance(layout, KeypointLayout):
        return layout
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(f"layout: expected a KeypointLayout or one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout]
