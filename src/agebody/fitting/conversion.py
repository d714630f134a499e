"""Conversion of parameters between bodies, by shared vertices or by corresponding surface points."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from agebody.assets.asset import BodyAsset, Regressor
from agebody.body import SMPL, SMPLA, BodyModel
from agebody.body.model import expect_body
from agebody.engine.batched import building, own_precision
from agebody.fitting.patches import find_patches
from agebody.fitting.points import fit_points, fit_vertices
from agebody.keypoints import KeypointLayout
from agebody.mesh.closest import closest_points
from agebody.optim.stages import Fit
from agebody.parameters import BodyParameters

SHARED = "shared points"
"""Name of the layouts of a correspondence."""
MATCHINGS = 3
"""Number of rounds of fitting and matching."""
AGES = 21
"""Number of ages of the source whose stature is compared with the target's."""
FAR_AGE, FAR_STATURE = 0.25, 0.1
"""Difference of age offsets, and relative difference of statures, beyond which a matching is doubtful."""
ACROSS = 0.01
"""[m] Standard deviation of points that correspond only approximately."""


class Correspondence(NamedTuple):
    """Corresponding points of two bodies, a layout on each: joints, then points of the surface."""

    source: KeypointLayout
    target: KeypointLayout
    distance: Float[Tensor, " K"]
    """Distance of the surface points once the target is fitted to the source at rest [m]; 0 for joints."""
    age_offset: float = 0.0
    """Of the source, at which they were matched."""
    stature_ratio: float = 1.0
    """Stature of the target relative to that of the source, at rest, as they were matched."""


def convert(
    parameters: BodyParameters,
    source: BodyModel,
    target: BodyModel,
    *,
    correspondence: Correspondence | None = None,
    betas: Float[Tensor, "*batch N"] | None = None,
    age_offset: float | Tensor | None = None,
    sd: float | None = None,
    max_iterations: int = 60,
    batch_size: int = 256,
) -> Fit:
    """Fit another body to the same people: SMPL to SMIL and back, or to the free bodies.

    Bodies of one topology share their vertices, and the fit is that of `fit_vertices`: exact where the target
    can take that shape. Others share joints and, through `correspond`, points on the surface. These
    correspond only approximately, so the residual includes the difference of the bodies. The pose follows
    the surface instead of copying joint angles, because the bodies differ in their rest pose. Warns if the
    target has one age and people are far from it.

    Args:
        parameters: (*batch, ...) of the source.
        source, target: layers of one body each.
        correspondence: of two topologies; that of `correspond` if None, which takes some seconds once.
        betas: (*batch, N) of the target where they are known; found if None.
        age_offset: of the target, a number or (*batch), NaN where it is not known; found if None. The
            source's own is a good value if the two bodies grow similarly.
        sd: standard deviation of a coordinate [m]; 1 mm in one topology, 1 cm across two if None.
        max_iterations, batch_size: as in `fit_points`.

    Returns:
        The fit. Its residual is the mean distance of vertices, or of the points of the correspondence [m].
    """
    expect_body(source, "source")
    expect_body(target, "target")
    if (source.dtype, source.device) != (target.dtype, target.device):
        raise ValueError(
            f"target: expected a layer of {source.dtype} on {source.device} as the source, "
            f"got {target.dtype} on {target.device}"
        )
    options: dict[str, Any] = {"betas": betas, "age_offset": age_offset}
    options |= {"max_iterations": max_iterations, "batch_size": batch_size}
    with torch.no_grad(), own_precision(source.device):
        if correspondence is None and same_topology(source.asset, target.asset):
            vertices = source(parameters).vertices
            return fit_vertices(target, vertices, sd=1e-3 if sd is None else sd, **options)
        shared = correspond(source.asset, target.asset) if correspondence is None else correspondence
        if not target.age_anchors and correspondence is None:
            _warn_if_far(shared, parameters.age_offset)
        points = source.keypoints(shared.source, parameters)
    return fit_points(target, points, shared.target, sd=ACROSS if sd is None else sd, **options)


def _warn_if_far(shared: Correspondence, ages: Float[Tensor, "*batch"]) -> None:
    """Warn if bodies were matched, or people are, far from the only age of the target."""
    far = int(((ages - shared.age_offset).abs() > FAR_AGE).sum())
    if far:
        warnings.warn(
            f"target: has one age, that of the source's age offset {shared.age_offset:.2f}, and {far} of "
            f"{ages.numel()} people differ from it by more than {FAR_AGE}; expect a large Fit.error",
            stacklevel=3,
        )
    elif abs(shared.stature_ratio - 1) > FAR_STATURE:
        warnings.warn(
            f"target: is {shared.stature_ratio:.2f} times as tall as the source at any age; surface points "
            "correspond badly",
            stacklevel=3,
        )


def same_topology(first: BodyAsset, second: BodyAsset) -> bool:
    """Return whether two bodies share their vertices: their triangles, or the topology that both name.

    The order of the triangles does not matter.
    """
    if first.num_vertices != second.num_vertices:
        return False
    named = {first.metadata.topology, second.metadata.topology}
    if len(named) == 1 and named != {"custom"}:
        return True

    def ordered(faces: np.ndarray) -> np.ndarray:
        return faces[np.lexsort(faces.T)]

    return first.faces.shape == second.faces.shape and bool(
        (ordered(np.sort(first.faces, 1)) == ordered(np.sort(second.faces, 1))).all()
    )


@functools.lru_cache(maxsize=8)
@building()
def correspond(source: BodyAsset, target: BodyAsset) -> Correspondence:
    """Find shared joints, and the points on the target's surface that match vertices all over the source.

    The target is fitted to the source's rest pose by the joints whose names both have: that of its mean
    adult, or, for a target of one age, of the age whose stature is nearest to the target's. Then, in turn,
    each of the vertices is matched with the nearest point of the target's surface on the same part, and the
    target is fitted to joints and matches. The last matches are kept; a pair of bodies is computed once.
    """
    names = [name for name in source.joint_names if name in target.joint_names]
    if len(names) < 3:
        raise ValueError(
            f"target: expected joints of the source's names, found {', '.join(names) if names else 'none'}"
        )
    with torch.no_grad(), own_precision(torch.device("cpu")):
        age = 0.0 if target.has_age or not source.has_age else _nearest_age(source, target)
        aged = source.at_age(age) if source.has_age else source
        ratio = _stature(target) / _stature(aged)
        return _correspond(aged, target, names)._replace(age_offset=age, stature_ratio=ratio)


def _nearest_age(source: BodyAsset, target: BodyAsset) -> float:
    """Return the age offset at which the source is as tall as the target at rest."""
    ages = np.linspace(0, 1, AGES).tolist()
    gaps = [abs(math.log(_stature(source.at_age(age)) / _stature(target))) for age in ages]
    return ages[int(np.argmin(gaps))]


def _stature(asset: BodyAsset) -> float:
    return float(np.ptp(asset.template[:, 1]))


def _correspond(source: BodyAsset, target: BodyAsset, names: list[str]) -> Correspondence:
    body = (SMPLA if target.has_age else SMPL)(target, backend="torch")
    vertices = _scattered(source)
    part_of = _parts(source, names)[vertices]
    part_of_face = _parts(target, names)[target.faces[:, 0]]
    kept = np.isin(part_of, part_of_face)
    vertices, part_of = vertices[kept], part_of[kept]
    labels = tuple(f"vertex {vertex}" for vertex in vertices)
    on_source = _layout(names, labels, _rows(vertices[:, None], np.ones((len(vertices), 1)), source))
    points = torch.from_numpy(source.template[vertices].astype(np.float32))
    rest_joints = source.joint_regressor @ source.template
    joints = torch.from_numpy(rest_joints[[source.joint_names.index(name) for name in names]]).float()
    on_target = KeypointLayout("shared joints", tuple(names), tuple(("joints", name) for name in names))
    aim, distance = joints, np.zeros(len(vertices))
    for _ in range(MATCHINGS):
        fit = fit_points(body, aim, on_target, sd=ACROSS)
        mesh = body(fit.parameters).vertices
        corners = np.zeros((len(vertices), 3), int)
        shares, distance = np.zeros((len(vertices), 3)), np.zeros(len(vertices))
        for part in np.unique(part_of):
            own, there = np.flatnonzero(part_of == part), np.flatnonzero(part_of_face == part)
            nearest = closest_points(
                points[own], mesh, torch.from_numpy(target.faces[there].astype(np.int64))
            )
            corners[own] = target.faces[there[nearest.face.numpy()]]
            shares[own], distance[own] = nearest.barycentric.numpy(), nearest.distance.numpy()
        on_target = _layout(names, labels, _rows(corners, shares, target))
        aim = torch.cat((joints, points))
    gaps = torch.from_numpy(np.concatenate((np.zeros(len(names)), distance)))
    return Correspondence(on_source, on_target, gaps)


def _scattered(asset: BodyAsset) -> np.ndarray:
    """Return vertices all over a body: in each patch, the vertex nearest to its centre."""
    layout, patch = find_patches(asset)
    owner = patch.numpy()
    _, rows = layout.resolve(asset)
    away = np.linalg.norm(asset.template - (rows @ asset.template)[owner], axis=1)
    order = np.lexsort((away, owner))
    return order[np.unique(owner[order], return_index=True)[1]]


def _parts(asset: BodyAsset, names: list[str]) -> np.ndarray:
    """Return the named joint (V,) that moves each vertex most, or its nearest named ancestor."""
    shared = np.zeros(asset.num_joints, int)
    for joint, name in enumerate(asset.joint_names):
        shared[joint] = names.index(name) if name in names else shared[max(0, asset.parents[joint])]
    return shared[asset.strongest_joints()]


def _rows(corners: np.ndarray, shares: np.ndarray, asset: BodyAsset) -> scipy.sparse.csr_array:
    """Return (K, V) rows: points as weighted sums of a few vertices each."""
    count, width = corners.shape
    rows = np.repeat(np.arange(count), width)
    return scipy.sparse.csr_array((shares.ravel(), (rows, corners.ravel())), (count, asset.num_vertices))


def _layout(names: list[str], labels: tuple[str, ...], rows: scipy.sparse.csr_array) -> KeypointLayout:
    """Return the layout of joints, then points of the surface."""
    sources = tuple(("joints", name) for name in names) + tuple((SHARED, label) for label in labels)
    return KeypointLayout(SHARED, (*names, *labels), sources, regressor=Regressor(labels, rows))
