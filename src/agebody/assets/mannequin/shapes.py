"""From the figure's shapes to a signed distance: ellipsoids blended into one surface, of adult or infant.

Coordinates are computed with +, -, *, / and sqrt alone, in a fixed order and never through BLAS, so that the
surface is bitwise identical on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from agebody.assets.mannequin import figure
from agebody.assets.mannequin.figure import Digit, Shape

INFANT_SOFTNESS = 1.4
"""Factor on the width of the infant's blends, beyond its size."""
DIGIT_BLEND = 0.004
"""Width of the blend of a digit into the hand or foot [m]."""
SOLE_BLEND = 0.012
"""Width of the rounding of the foot's edge against the ground [m]."""


def piecewise(
    x: Float[np.ndarray, "*n"], knots: Sequence[float], values: Sequence[float]
) -> Float[np.ndarray, "*n"]:
    """Interpolate linearly between ascending knots, and extrapolate beyond both ends."""
    slopes = [(v1 - v0) / (k1 - k0) for (k0, v0), (k1, v1) in pairwise(zip(knots, values, strict=True))]
    out = values[0] + slopes[0] * (x - knots[0])
    for k, before, after in zip(knots[1:], slopes, slopes[1:], strict=False):
        out = out + (after - before) * np.maximum(x - k, 0.0)
    return out


class Ruler:
    """Maps points and sizes of the adult to those of the infant, along one limb."""

    def __init__(self, name: str) -> None:
        self.along, self.knots = figure.RULERS[name]
        self.marks = [k.adult[self.along] for k in self.knots]
        self.across = [axis for axis in range(3) if axis != self.along]

    def _read(self, s: Float[np.ndarray, "*n"], what: str, axis: int) -> Float[np.ndarray, "*n"]:
        if what == "scale":
            s = np.clip(s, self.marks[0], self.marks[-1])
        return piecewise(s, self.marks, [getattr(knot, what)[axis] for knot in self.knots])

    def points(self, p: Float[np.ndarray, "3 N"]) -> Float[np.ndarray, "3 N"]:
        """Return the infant's points for the adult's."""
        s, out = p[self.along], np.empty_like(p)
        out[self.along] = self._read(s, "infant", self.along)
        for which, axis in enumerate(self.across):
            offset = p[axis] - self._read(s, "adult", axis)
            out[axis] = self._read(s, "infant", axis) + offset * self._read(s, "scale", which)
        return out

    def ellipsoid(self, p: Sequence[float], r: Sequence[float]) -> tuple[list[float], list[float]]:
        """Return the infant's centre and radii of an ellipsoid, by mapping its ends along the limb."""
        ends = np.array([p, p], float).T
        ends[self.along] += [-r[self.along], r[self.along]]
        ends = self.points(ends)[self.along]
        center = self.points(np.array([p], float).T)[:, 0]
        center[self.along] = 0.5 * (ends[0] + ends[1])
        radii = np.array(r, float)
        radii[self.along] = 0.5 * (ends[1] - ends[0])
        for which, axis in enumerate(self.across):
            radii[axis] = r[axis] * self._read(np.array([p[self.along]]), "scale", which)[0]
        return center.tolist(), radii.tolist()

    def shape(self, shape: Shape) -> Shape:
        """Return the infant's shape for the adult's."""
        (a, ra), (b, rb) = self.ellipsoid(shape.a, shape.ra), self.ellipsoid(shape.b, shape.rb)
        blend = shape.blend * INFANT_SOFTNESS * (ra[self.across[0]] / shape.ra[self.across[0]])
        ra, rb = ([shape.infant * x for x in r] for r in (ra, rb))
        return shape._replace(a=tuple(a), b=tuple(b), ra=tuple(ra), rb=tuple(rb), blend=blend)


def _digit_shape(digit: Digit) -> Shape:
    root, tip = np.array(digit.root), np.array(digit.tip)
    end = tip + (root - tip) * (digit.thick[1] / length(tip - root))
    size = zip(digit.thick, digit.wide, strict=True)
    ra, rb = ((t, t, w) if digit.ruler == "arm" else (w, t, t) for t, w in size)
    return Shape(digit.region, digit.ruler, digit.root, ra, tuple(end.tolist()), rb, DIGIT_BLEND)


def shapes_of(infant: bool) -> dict[str, list[Shape]]:
    """Return the shapes that form each region of the mesh, mirrored where they reach across the middle."""
    digits = [*figure.FINGERS, figure.THUMB, *figure.TOES]
    everything = [*figure.SHAPES, *map(_digit_shape, digits)]
    if infant:
        rulers = {name: Ruler(name) for name in figure.RULERS}
        everything = [rulers[shape.ruler].shape(shape) for shape in everything]
    parts = dict(figure.PARTS)
    for digit in digits:
        parts[digit.region] = ("foot" if digit.ruler == "leg" else "hand", digit.region)
    both = {}
    for region, wanted in parts.items():
        both[region] = []
        for shape in (s for s in everything if s.part in wanted):
            both[region].append(shape)
            reach = min(shape.a[0] - shape.ra[0], shape.b[0] - shape.rb[0]) - abs(shape.blend)
            if region in ("head", "torso", "joined") and shape.a[0] > 0 and reach < 0:
                a, b = ((-p[0], *p[1:]) for p in (shape.a, shape.b))
                both[region].append(shape._replace(a=a, b=b))
    return both


def dot(v: np.ndarray, w: np.ndarray) -> Any:
    """Return the products of vectors (3, ...), summed in a fixed order."""
    x = v * w
    return x[0] + x[1] + x[2]


def length(v: np.ndarray) -> Any:
    """Return the lengths of vectors (3, ...)."""
    return np.sqrt(dot(v, v))


def _distance_to(p: Float[np.ndarray, "3 N"], shape: Shape) -> Float[np.ndarray, " N"]:
    """Return the distance to a swept ellipsoid: exact where it is zero, of first order near there."""
    a, radii = np.array(shape.a)[:, None], np.array(shape.ra)[:, None]
    q, axis = p - a, np.array(shape.b)[:, None] - a
    if shape.a != shape.b:
        h = np.minimum(np.maximum(dot(q, axis) / dot(axis, axis), 0.0), 1.0)
        q = q - h * axis
        radii = radii + h * (np.array(shape.rb)[:, None] - radii)
    scaled = q / radii
    k0, k1 = length(scaled), length(scaled / radii)
    return k0 * (k0 - 1.0) / (k1 + 1e-9)


def _blend(f: np.ndarray, g: np.ndarray, width: float) -> np.ndarray:
    """Return the smooth minimum of two distances (quadratic; Quilez, "smooth minimum")."""
    h = np.maximum(width - np.abs(f - g), 0.0)
    return np.minimum(f, g) - h * h / (4.0 * width)


def distance(p: Float[np.ndarray, "3 N"], region: str, shapes: Sequence[Shape]) -> Float[np.ndarray, " N"]:
    """Return the signed distance to the surface of a region, negative inside."""
    f = np.full(p.shape[1], 1.0)
    for shape in shapes:
        d = _distance_to(p, shape)
        f = -_blend(-f, d, -shape.blend) if shape.blend < 0 else _blend(f, d, shape.blend)
    if region == "foot" or region.endswith("toe"):
        f = -_blend(-f, p[1] + SOLE_BLEND / 4, SOLE_BLEND)
    return f
