"""Stature, and measurements of rest surfaces by their definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from agebody.assets.asset import AssetError, BodyAsset, Regressor, expect_asset
from agebody.assets.landmarks import LANDMARKS
from agebody.checks import expect, safe_norm
from agebody.engine.batched import product
from agebody.engine.exact import ExactBuffers
from agebody.measure.definitions import (
    GROUND,
    MEASUREMENTS,
    TOP,
    Definition,
    Distance,
    Girth,
    Height,
    Marked,
    Point,
)
from agebody.measure.landmarks import LANDMARK_SET, Parts, find_landmarks, rows_by_name
from agebody.measure.sections import Section, gap, plane_section, section_length

_SMPLX = 10475  # vertices
_ROOM = 768  # least capacity of a section [triangles], ...
_SPARE = 4  # ... or this many times those that it cuts of the asset's own surfaces
_CLOSED = 1e-4  # m: gap below which an outline is closed
_BRIDGED = 0.25  # share of an outline that a tape may bridge where the part ends, as at the armpits


def stature(rest_vertices: Float[Tensor, "*batch V 3"]) -> Float[Tensor, "*batch"]:
    """Return the height from the lowest to the highest vertex along +y [m] of a body in its rest pose.

    Vertices of equal height share the gradient.
    """
    height = expect("rest_vertices", rest_vertices, None, 3)[..., 1]
    if height.shape[-1] == 0:
        raise ValueError(f"rest_vertices: expected one or more, got shape {tuple(rest_vertices.shape)}")
    return height.amax(-1) - height.amin(-1)


class Measurements(ExactBuffers):
    """Measures bodies of one asset.

    Called with rest surfaces (`ShapedBody.rest_vertices`), not with posed ones: a measurement is a property
    of shape and age, not of the pose. Values are differentiable in the vertices.

    Args:
        asset: the body; of a layer, its ``asset``.
        definitions: names from `MEASUREMENTS`, or definitions by name, such as `A2B_MEASUREMENTS`; by default
            all of `MEASUREMENTS`. Points are landmarks (`find_landmarks`) or joints of the asset.
        dtype: torch.float32 or torch.float64.
        device: of the bodies.

    Raises:
        AssetError: the body lacks a joint or a landmark, or a girth's section is not closed.
    """

    names: tuple[str, ...]
    """Name of each measurement, in the order of the values."""

    def __init__(
        self,
        asset: BodyAsset,
        definitions: Mapping[str, Definition] | Sequence[str] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        expect_asset(asset)
        self.definitions = _chosen(definitions)
        self.names = tuple(self.definitions)
        self.num_vertices = asset.num_vertices
        self.keep({"_like": np.zeros(0)}, dtype, device)
        points, parts = _Points(asset), Parts(asset)
        self.gauges = nn.ModuleList(
            _gauge(name, what, asset, points, parts).to(device=device, dtype=dtype)
            for name, what in self.definitions.items()
        )

    def forward(self, rest_vertices: Float[Tensor, "*batch V 3"]) -> Float[Tensor, "*batch M"]:
        """Return every measurement [m], in the order of ``names``."""
        rest_vertices = expect("rest_vertices", rest_vertices, self.num_vertices, 3)
        if rest_vertices.dtype != self.dtype:
            raise TypeError(f"rest_vertices: expected {self.dtype}, got {rest_vertices.dtype}")
        values = [gauge(rest_vertices[..., gauge.vertices, :]) for gauge in self.all_gauges()]
        return torch.stack(values, -1) if values else rest_vertices.new_zeros(*rest_vertices.shape[:-2], 0)

    def all_gauges(self) -> list[Gauge]:
        """Return one module per measurement, called with the vertices of its ids."""
        return cast("list[Gauge]", list(self.gauges))

    def extra_repr(self) -> str:
        """Return the size, for print."""
        return f"{len(self.names)} measurements, dtype={self.dtype}"

    def section(self, name: str, rest_vertices: Float[Tensor, "*batch V 3"]) -> Section:
        """Return the outline of a girth, to draw it."""
        gauge = dict(zip(self.names, self.all_gauges(), strict=True)).get(name)
        if not isinstance(gauge, _GirthGauge):
            girths = [key for key, what in self.definitions.items() if isinstance(what, Girth)]
            raise ValueError(f"name: expected one of {', '.join(girths)}, got {name!r}")
        return gauge.section(rest_vertices[..., gauge.vertices, :])[0]


def _chosen(definitions: Mapping[str, Definition] | Sequence[str] | None) -> dict[str, Definition]:
    if definitions is None:
        return dict(MEASUREMENTS)
    if isinstance(definitions, Mapping):
        return dict(definitions)
    names = [definitions] if isinstance(definitions, str) else definitions
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown or isinstance(definitions, str):
        raise ValueError(
            f"definitions: expected a sequence of names out of {', '.join(MEASUREMENTS)}, "
            f"got {unknown or definitions!r}"
        )
    return {name: MEASUREMENTS[name] for name in definitions}


class _Points:
    """Rows over the vertices of points by name."""

    def __init__(self, asset: BodyAsset) -> None:
        self.asset = asset
        brought = asset.regressors.get(LANDMARK_SET)
        self.brought = {} if brought is None else rows_by_name(brought)
        self.joints = rows_by_name(Regressor(asset.joint_names, asset.joint_regressor))

    @cached_property
    def found(self) -> dict[str, Float[np.ndarray, " V"]]:
        return rows_by_name(find_landmarks(self.asset))

    def row(self, point: Point) -> Float[np.ndarray, " V"]:
        if isinstance(point, Marked):
            if self.asset.num_vertices == _SMPLX and not self.brought.keys() & {*point.landmarks}:
                return np.bincount(point.smplx_vertices, minlength=_SMPLX) / len(point.smplx_vertices)
            point = point.landmarks
        if not isinstance(point, str):
            return np.mean([self.row(name) for name in point], axis=0)
        for known in (self.brought, self.joints):
            if point in known:
                return known[point]
        if point in LANDMARKS:
            return self.found[point]
        raise AssetError(f"{self.asset.metadata.name}: has no landmark or joint {point!r}")


def _gauge(name: str, what: Definition, asset: BodyAsset, points: _Points, parts: Parts) -> Gauge:
    match what:
        case Height():
            return _HeightGauge(what, points)
        case Distance():
            return _DistanceGauge(what, points)
        case Girth():
            gauge = _GirthGauge(what, points, parts)
            gauge.fit_capacity(name, asset)
            return gauge


class Gauge(ExactBuffers):
    """One measurement, as a function of the vertices that it uses.

    It has its own vertices so that the gradients of many measurements can be computed at once.
    """

    vertices: Tensor
    """Ids of its vertices."""


class _DistanceGauge(Gauge):
    rows: Tensor

    def __init__(self, what: Distance, points: _Points) -> None:
        super().__init__()
        if len(what.points) < 2:
            raise ValueError(f"points: expected two or more, got {what.points}")
        rows = np.stack([points.row(point) for point in what.points])
        used = np.flatnonzero(rows.any(0))
        self.keep({"vertices": used, "rows": rows[:, used]}, torch.float64)

    def forward(self, vertices: Tensor) -> Tensor:
        points = product(self.rows, vertices)
        return safe_norm(points.diff(dim=-2)).sum(-1)


class _HeightGauge(Gauge):
    rows: Tensor

    def __init__(self, what: Height, points: _Points) -> None:
        super().__init__()
        self.ends = what.upper, what.lower
        whole = TOP in self.ends or GROUND in self.ends
        size = points.asset.num_vertices
        rows = [np.zeros(size) if end in (TOP, GROUND) else points.row(end) for end in self.ends]
        used = np.arange(size) if whole else np.flatnonzero(np.any(rows, axis=0))
        self.keep({"vertices": used, "rows": np.stack(rows)[:, used]}, torch.float64)

    def forward(self, vertices: Tensor) -> Tensor:
        height = vertices[..., 1]
        upper, lower = (
            height.amax(-1) if end == TOP else height.amin(-1) if end == GROUND else (height * row).sum(-1)
            for end, row in zip(self.ends, self.rows, strict=True)
        )
        return upper - lower


class _GirthGauge(Gauge):
    faces: Tensor
    rows: Tensor
    """The point in the plane, then the two points of its normal."""

    def __init__(self, what: Girth, points: _Points, parts: Parts) -> None:
        super().__init__()
        missing = [joint for joint in what.parts if joint not in points.joints]
        named = [joint for joint in what.parts if joint not in missing]
        if not named:
            raise AssetError(f"{points.asset.metadata.name}: has no joint {', '.join(missing)}")
        self.tape = what.tape
        self.capacity: int | None = None
        rows = np.stack([points.row(point) for point in (what.at, *(what.along or ()))])
        faces = parts.faces(named)
        used = np.union1d(faces, np.flatnonzero(rows.any(0)))
        local = np.searchsorted(used, faces)
        self.keep({"vertices": used, "faces": local, "rows": rows[:, used]}, torch.float64)

    def forward(self, vertices: Tensor) -> Tensor:
        section, normal = self.section(vertices)
        return section_length(section, tape=normal if self.tape else None)

    def section(self, vertices: Tensor) -> tuple[Section, Tensor]:
        points = product(self.rows, vertices)
        origin = points[..., 0, :]
        if len(self.rows) == 1:
            normal = torch.zeros_like(origin)
            normal[..., 1] = 1
        else:
            normal = points[..., 2, :] - points[..., 1, :]
        return plane_section(vertices, self.faces, origin, normal, capacity=self.capacity), normal

    def fit_capacity(self, name: str, asset: BodyAsset) -> None:
        """Check the plane on the asset's own surfaces, and set the capacity from the triangles it cuts."""
        surfaces = [asset.template[None]] + ([asset.age_templates] if asset.age_templates is not None else [])
        vertices = torch.from_numpy(np.concatenate(surfaces).astype(np.float64))
        section, _ = self.section(vertices[:, self.vertices])
        counts = section.cut.sum(-1)
        allowed = _BRIDGED * section_length(section) if self.tape else _CLOSED
        if counts.min() == 0 or (gap(section) > allowed).any():
            raise AssetError(
                f"{asset.metadata.name}: the plane of {name!r} does not cut its part all around; bring other "
                "landmarks, or name more joints of the part"
            )
        self.capacity = max(_ROOM, _SPARE * int(counts.max()))
