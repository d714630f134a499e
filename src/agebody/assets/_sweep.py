"""From a figure's numbers to a mesh: rays leave a quad net and stop at the surface that its shapes melt into.

Only +, -, *, / and sqrt touch a coordinate, in a fixed order and never through BLAS, so that every machine
rounds alike and the mesh is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from agebody.assets import _figure as figure
from agebody.assets._figure import Digit, LimbRow, Shape, TrunkRow

CAST_START = 5e-4
"""Where on its ray a vertex starts [m]: just off the bone, where the distance to it is not yet defined."""
CAST_STEPS = 16
INFANT_SOFTNESS = 1.4
"""How much wider the infant's shapes melt than its size alone would say."""
EASE = 0.6
"""Share of the way to its neighbours' middle that a vertex moves at a junction, in each step."""
UNTANGLE_STEPS, EASE_STEPS = 6, 10
LONGEST_STEP = 0.004
"""How far a vertex may be brought back to the surface at once [m]."""
DIGIT_BLEND = 0.004
"""Width of the melt of a digit into the hand or foot [m]."""
CROWN_RISE = 0.03
"""How far the middle of the crown's aims stands above its border [m]."""
SOLE_BLEND = 0.012
"""Width of the rounding of the foot's edge against the ground [m]."""


def circle(degrees: Float[np.ndarray, "*n"]) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Sine and cosine by their power series: the C library's differ in the last bit between machines."""
    x = (degrees - 360.0 * np.floor(degrees / 360.0 + 0.5)) * (np.pi / 180.0)
    sine, cosine = np.zeros_like(x), np.zeros_like(x)
    for n in range(26, 0, -2):
        cosine = 1.0 - (cosine if n < 26 else 1.0) * x * x / (n * (n - 1))
        sine = 1.0 - (sine if n < 26 else 1.0) * x * x / (n * (n + 1))
    return sine * x, cosine


def piecewise(
    x: Float[np.ndarray, "*n"], knots: Sequence[float], values: Sequence[float]
) -> Float[np.ndarray, "*n"]:
    """Linear interpolation between ascending knots, extended beyond both ends."""
    slopes = [
        (v1 - v0) / (k1 - k0) for k0, k1, v0, v1 in zip(knots, knots[1:], values, values[1:], strict=False)
    ]
    out = values[0] + slopes[0] * (x - knots[0])
    for k, before, after in zip(knots[1:], slopes, slopes[1:], strict=False):
        out = out + (after - before) * np.maximum(x - k, 0.0)
    return out


class Ruler:
    """Carries points and sizes from the adult to the infant, along one limb."""

    def __init__(self, name: str) -> None:
        """Read the table of that name."""
        self.along, self.knots = figure.RULERS[name]
        self.marks = [k.adult[self.along] for k in self.knots]
        self.across = [axis for axis in range(3) if axis != self.along]

    def _read(self, s: Float[np.ndarray, "*n"], what: str, axis: int) -> Float[np.ndarray, "*n"]:
        if what == "scale":
            s = np.clip(s, self.marks[0], self.marks[-1])
        return piecewise(s, self.marks, [getattr(knot, what)[axis] for knot in self.knots])

    def points(self, p: Float[np.ndarray, "3 N"]) -> Float[np.ndarray, "3 N"]:
        """The infant's points for the adult's."""
        s, out = p[self.along], np.empty_like(p)
        out[self.along] = self._read(s, "infant", self.along)
        for which, axis in enumerate(self.across):
            offset = p[axis] - self._read(s, "adult", axis)
            out[axis] = self._read(s, "infant", axis) + offset * self._read(s, "scale", which)
        return out

    def ellipsoid(self, p: Sequence[float], r: Sequence[float]) -> tuple[list[float], list[float]]:
        """The infant's center and radii of an ellipsoid: its ends along the limb are carried over."""
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
        """The infant's shape for the adult's."""
        (a, ra), (b, rb) = self.ellipsoid(shape.a, shape.ra), self.ellipsoid(shape.b, shape.rb)
        blend = shape.blend * INFANT_SOFTNESS * (ra[self.across[0]] / shape.ra[self.across[0]])
        ra, rb = ([shape.infant * x for x in r] for r in (ra, rb))
        return shape._replace(a=tuple(a), b=tuple(b), ra=tuple(ra), rb=tuple(rb), blend=blend)


def _digit_shape(digit: Digit) -> Shape:
    """A digit as one tapering capsule."""
    root, tip = np.array(digit.root), np.array(digit.tip)
    end = tip + (root - tip) * (digit.thick[1] / _length(tip - root))
    size = zip(digit.thick, digit.wide, strict=True)
    ra, rb = ((t, t, w) if digit.ruler == "arm" else (w, t, t) for t, w in size)
    return Shape(digit.region, digit.ruler, digit.root, ra, tuple(end.tolist()), rb, DIGIT_BLEND)


def shapes(infant: bool) -> dict[str, list[Shape]]:
    """The shapes that each region of the mesh follows, mirrored where they reach over the middle."""
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
                flip = lambda p: (-p[0], p[1], p[2])  # noqa: E731
                both[region].append(shape._replace(a=flip(shape.a), b=flip(shape.b)))
    return both


def _dot(v: np.ndarray, w: np.ndarray) -> Any:
    x = v * w
    return x[0] + x[1] + x[2]


def _length(v: np.ndarray) -> Any:
    return np.sqrt(_dot(v, v))


def _cross(v: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.stack([v[1] * w[2] - v[2] * w[1], v[2] * w[0] - v[0] * w[2], v[0] * w[1] - v[1] * w[0]])


def _distance_to(p: Float[np.ndarray, "3 N"], shape: Shape) -> Float[np.ndarray, " N"]:
    """Distance to a swept ellipsoid, exact in its zero and of first order near it."""
    a, radii = np.array(shape.a)[:, None], np.array(shape.ra)[:, None]
    q, axis = p - a, np.array(shape.b)[:, None] - a
    if shape.a != shape.b:
        h = np.minimum(np.maximum(_dot(q, axis) / _dot(axis, axis), 0.0), 1.0)
        q = q - h * axis
        radii = radii + h * (np.array(shape.rb)[:, None] - radii)
    scaled = q / radii
    k0, k1 = _length(scaled), _length(scaled / radii)
    return k0 * (k0 - 1.0) / (k1 + 1e-9)


def _melt(f: np.ndarray, g: np.ndarray, width: float) -> np.ndarray:
    """Smooth minimum (quadratic; Quilez, "smooth minimum")."""
    h = np.maximum(width - np.abs(f - g), 0.0)
    return np.minimum(f, g) - h * h / (4.0 * width)


def distance(p: Float[np.ndarray, "3 N"], region: str, melted: Sequence[Shape]) -> Float[np.ndarray, " N"]:
    """Signed distance to the surface of a region, negative inside."""
    f = np.full(p.shape[1], 1.0)
    for shape in melted:
        d = _distance_to(p, shape)
        f = -_melt(-f, d, -shape.blend) if shape.blend < 0 else _melt(f, d, shape.blend)
    if region == "foot" or region.endswith("toe"):
        f = -_melt(-f, p[1] + SOLE_BLEND / 4, SOLE_BLEND)
    return f


Row = TypeVar("Row", TrunkRow, LimbRow)


class Net(NamedTuple):
    """Half a body's quads, with the ray on which each vertex lies."""

    origin: Float[np.ndarray, "3 H"]
    aim: Float[np.ndarray, "3 H"]
    """Points in the adult's space."""
    region: Int[np.ndarray, " H"]
    regions: tuple[str, ...]
    quads: Int[np.ndarray, "Q 4"]
    around: Int[np.ndarray, "H K"]
    """Vertices one edge away; short rows repeat the vertex itself."""
    seam: Bool[np.ndarray, " H"]
    """Vertices in the plane x = 0."""
    webs: Int[np.ndarray, "W 3"]
    """A vertex between two digits, and the two it lies between."""
    rings: dict[str, list[np.ndarray]]
    """Rows of the trunk (front to back), leg and arm (closed), and of each digit."""


class _Weaver:
    """Collects the vertices and quads of a net."""

    def __init__(self) -> None:
        self.origin: list[np.ndarray] = []
        self.aim: list[np.ndarray] = []
        self.region: list[np.ndarray] = []
        self.quads: list[np.ndarray] = []
        self.webs: list[tuple[int, int, int]] = []
        self.rings: dict[str, list[np.ndarray]] = {}
        self.regions: list[str] = []
        self.count = 0

    def points(self, origin: np.ndarray, aim: np.ndarray, region: str) -> np.ndarray:
        """Add vertices on the rays from origin through aim."""
        if region not in self.regions:
            self.regions.append(region)
        n = aim.shape[1]
        self.origin.append(np.broadcast_to(origin.reshape(3, -1), (3, n)))
        self.aim.append(aim)
        self.region.append(np.full(n, self.regions.index(region)))
        self.count += n
        return np.arange(self.count - n, self.count)

    def strip(self, below: np.ndarray, above: np.ndarray, closed: bool = False) -> None:
        """Quads between two rows of vertices."""
        if closed:
            below, above = np.append(below, below[0]), np.append(above, above[0])
        self.quads.append(np.stack([below[:-1], below[1:], above[1:], above[:-1]], axis=1))

    def grid(self, ids: np.ndarray) -> None:
        """Quads of a rectangular patch."""
        for low, high in pairwise(ids):
            self.strip(low, high)


def _mix(a: Any, b: Any, t: float) -> Any:
    """Linear interpolation of numbers and of tuples of them."""
    if isinstance(a, tuple):
        return tuple(_mix(x, y, t) for x, y in zip(a, b, strict=True))
    return a + t * (b - a)


def _between(rows: Sequence[Row]) -> list[Row]:
    """Every row of a table that gives only some, by linear interpolation."""
    out = [rows[0]]
    for before, after in pairwise(rows):
        out += [
            type(after)(*_mix(tuple(before), tuple(after), i / after.rows)) for i in range(1, after.rows + 1)
        ]
    return out


def _trunk(weaver: _Weaver) -> None:
    rows: list[TrunkRow] = _between(figure.TRUNK_ROWS)
    plain, face = np.array(figure.TRUNK_ANGLES, float), np.array(figure.FACE_ANGLES, float)
    hole_row, hole_column = figure.ARM_HOLE_ROW, figure.ARM_HOLE_COLUMN
    ids = np.full((len(rows), len(plain)), -1)
    aim = np.empty((3, len(plain)))
    for i, row in enumerate(rows):
        sine, cosine = circle(plain + row.face * (face - plain))
        end = np.where(cosine > 0, row.front, row.back)
        height = sine * sine * row.side + cosine * cosine * end
        y, z = row.axis
        aim = np.stack([row.radius * row.aspect * sine, height, z + row.radius * cosine])
        aim[0, [0, -1]] = 0.0
        keep = np.ones(len(plain), bool)
        if hole_row < i < hole_row + 6:
            keep[hole_column + 1 : hole_column + 4] = False
        region = "head" if i >= figure.HEAD_FROM_ROW else "torso"
        ids[i, keep] = weaver.points(np.array([0.0, y, z]), aim[:, keep], region)
    for i, (low, high) in enumerate(pairwise(ids)):
        if hole_row <= i < hole_row + 6:
            weaver.strip(low[: hole_column + 1], high[: hole_column + 1])
            weaver.strip(low[hole_column + 4 :], high[hole_column + 4 :])
        else:
            weaver.strip(low, high)
    weaver.rings["trunk"] = list(ids)

    # The crown: half a 12 x 12 patch whose border is the last row, its aims blended from that border (Coons).
    border = [(c, 0) for c in range(6)] + [(6, c) for c in range(12)] + [(6 - c, 12) for c in range(7)]
    patch, rim = np.full((7, 13), -1), np.zeros((3, 13, 13))
    for k, (i, j) in enumerate(border):
        patch[i, j] = ids[-1, k]
        rim[:, 6 + i, j] = aim[:, k]
        rim[:, 6 - i, j] = aim[:, k] * [-1.0, 1.0, 1.0]
    u, v = np.arange(13.0)[:, None] / 12, np.arange(13.0)[None, :] / 12
    crown = (1 - u) * rim[:, :1] + u * rim[:, -1:] + (1 - v) * rim[:, :, :1] + v * rim[:, :, -1:]
    for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        crown = crown - rim[:, i, j][:, None, None] * (u if i else 1 - u) * (v if j else 1 - v)
    crown[1] += CROWN_RISE * (16 * u * (1 - u) * v * (1 - v))
    crown[0, 6] = 0.0
    y, z = rows[-1].axis
    inner = crown[:, 6:12, 1:12].reshape(3, -1)
    patch[:6, 1:12] = weaver.points(np.array([0.0, y, z]), inner, "head").reshape(6, 11)
    weaver.grid(patch[::-1])
    weaver.rings["crown"] = [ids[-1]]


def _boxed(angles: np.ndarray, columns: int, box: float, wide: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat and thick coordinate of a ring of 2 (columns + 2) vertices; angle 0 is the middle of the top."""
    sine, cosine = circle(angles)
    n = len(angles)
    step = np.round(angles / 360.0 * n) % n
    half = columns // 2
    corner = np.minimum(np.minimum(step, n - step), np.abs(step - n // 2))  # columns from the middle
    flat = np.where(step < n / 2, 1.0, -1.0) * np.minimum(corner / half, 1.0)
    side = (corner == half + 1) | (np.minimum(step, n - step) == half + 1)
    flat = np.where(side, np.where(step < n / 2, 1.12, -1.12), flat)
    thick = np.where(side, 0.0, np.where(cosine > 0, 1.0, -1.0) * 0.8)
    return wide * (sine + box * (flat - sine)), cosine + box * (thick - cosine)


def _digits(
    weaver: _Weaver, end: np.ndarray, digits: Sequence[Digit], rows: Sequence[tuple[float, float]]
) -> None:
    """Close the end of a limb, a ring from the first digit's upper corner over the top, with digits."""
    columns = sum(d.columns for d in digits)
    top, far = end[: columns + 1], end[columns + 1]
    bottom, mid = end[columns + 2 : 2 * columns + 3][::-1], end[-1]
    start = 0
    for digit in digits:
        stop = start + digit.columns
        if stop == columns:
            after = far
        else:
            after = weaver.points(np.zeros(3), np.ones((3, 1)), digit.region)[0]
            weaver.webs.append((after, top[stop], bottom[stop]))
        _digit(
            weaver,
            np.concatenate([top[start : stop + 1], [after], bottom[start : stop + 1][::-1], [mid]]),
            digit,
            rows,
        )
        start, mid = stop, after


def _digit(weaver: _Weaver, ring: np.ndarray, digit: Digit, rows: Sequence[tuple[float, float]]) -> None:
    """A tube of rows from a ring that starts at an upper corner, closed by a patch two quads thick."""
    root, tip = np.array(digit.root), np.array(digit.tip)
    along = (tip - root) / _length(tip - root)
    flat = np.array([along[2], 0.0, -along[0]])
    flat = flat / _length(flat)
    up = np.array([along[1] * flat[2], along[2] * flat[0] - along[0] * flat[2], -along[1] * flat[0]])
    n, columns = len(ring), digit.columns
    sine, cosine = circle((np.arange(n) - columns / 2) * 360.0 / n)
    end = tip - along * digit.thick[1]
    rings = [ring]
    for fraction, lean in rows:
        thick, wide = (size[0] + fraction * (size[1] - size[0]) for size in (digit.thick, digit.wide))
        center = (root + fraction * (end - root))[:, None]
        aim = center + flat[:, None] * (wide * sine) + up[:, None] * (thick * cosine)
        rings.append(weaver.points(center, aim + along[:, None] * (thick * lean), digit.region))
        weaver.strip(rings[-1], rings[-2], closed=True)
    spread = np.arange(1.0, columns) * (1.2 / columns) - 0.6
    aim = tip[:, None] + flat[:, None] * (spread * digit.wide[1])
    cap = weaver.points(end, aim, digit.region)
    last = rings[-1]
    top, far, bottom, near = last[: columns + 1], last[columns + 1], last[columns + 2 : -1][::-1], last[-1]
    weaver.grid(np.stack([bottom, np.concatenate([[near], cap, [far]]), top]))
    weaver.rings[digit.region] = rings


def _leg(weaver: _Weaver) -> None:
    z = np.array([-0.045, 0.0, 0.045])
    crotch = weaver.points(np.array([0.0, 0.90, 0.0]), np.stack([0 * z, 0 * z + 0.80, z]), "torso")
    ring = np.concatenate([weaver.rings["trunk"][0], crotch])
    angles = 90.0 + (np.arange(len(ring)) - 12) * 360.0 / len(ring)
    rings = [ring]
    for i, row in enumerate(_between(figure.LEG_ROWS)):
        flat, front = _boxed(angles, 12, row.box, row.wide)
        sine, cosine = circle(np.array([row.tilt]))
        center = np.array(row.center)[:, None]
        aim = center + np.stack([0.06 * flat, 0.06 * sine * front + row.lift * flat, 0.06 * cosine * front])
        core = center + np.stack([0.018 * row.box * flat, 0 * flat, 0 * flat])
        rings.append(weaver.points(core, aim, "foot" if i >= figure.FOOT_FROM_ROW else "leg"))
        weaver.strip(rings[-1], rings[-2], closed=True)
    weaver.rings["leg"] = rings
    _digits(weaver, np.roll(rings[-1], 1), figure.TOES, figure.TOE_ROWS)


def _arm(weaver: _Weaver) -> None:
    trunk, low, front = weaver.rings["trunk"], figure.ARM_HOLE_ROW, figure.ARM_HOLE_COLUMN
    hole = [(6, 2), (6, 1), *((r, 0) for r in range(6, -1, -1)), (0, 1), (0, 2), (0, 3)]
    hole += [*((r, 4) for r in range(7)), (6, 3)]
    rings = [np.array([trunk[low + r][front + c] for r, c in hole])]  # from the top forward
    n, thumb = len(hole), figure.THUMB_HOLE_ROW
    for i, row in enumerate(_between(figure.ARM_ROWS), start=1):
        flat, up = _boxed(np.arange(n) * 360.0 / n, 8, row.box, row.wide)
        center = np.array(row.center)[:, None]
        aim = center + np.stack([-row.lift * up, 0.05 * up, 0.05 * flat])
        core = center + np.stack([0 * up, 0 * up, 0.025 * row.box * (1 - 1 / row.wide) * flat])
        keep = np.arange(n) != (5 if i == thumb + 1 else -1)
        ids = np.full(n, -1)
        ids[keep] = weaver.points(core[:, keep], aim[:, keep], "hand" if i >= figure.HAND_FROM_ROW else "arm")
        if i in (thumb + 1, thumb + 2):  # open between columns 4 and 6, at the front
            weaver.strip(np.roll(rings[-1], -6)[:-1], np.roll(ids, -6)[:-1])
        else:
            weaver.strip(rings[-1], ids, closed=True)
        rings.append(ids)
    weaver.rings["arm"] = rings
    _digits(weaver, rings[-1][(4 - np.arange(n)) % n], figure.FINGERS, figure.DIGIT_ROWS)
    a, b, c = rings[thumb : thumb + 3]
    _digit(
        weaver, np.array([a[4], b[4], c[4], c[5], c[6], b[6], a[6], a[5]]), figure.THUMB, figure.DIGIT_ROWS
    )


def net() -> Net:
    """The quads of the left half and the rays of its vertices."""
    weaver = _Weaver()
    _trunk(weaver)
    _leg(weaver)
    _arm(weaver)
    aim, quads = np.concatenate(weaver.aim, axis=1), np.concatenate(weaver.quads)
    return Net(
        origin=np.concatenate(weaver.origin, axis=1),
        aim=aim,
        region=np.concatenate(weaver.region),
        regions=tuple(weaver.regions),
        quads=quads,
        around=neighbours(quads, weaver.count),
        seam=aim[0] == 0.0,
        webs=np.array(weaver.webs),
        rings=weaver.rings,
    )


def ruler_of(region: str) -> str:
    """The ruler that a region of the mesh lies on."""
    if region in ("head", "torso"):
        return "spine"
    return "leg" if region in ("leg", "foot") or region.endswith("toe") else "arm"


def surface(net: Net, infant: bool) -> Float[np.ndarray, "3 H"]:
    """The half body's vertices: rays cast to the surface, then evened out where limbs meet the trunk."""
    melted = shapes(infant)
    members = [(name, np.flatnonzero(net.region == i)) for i, name in enumerate(net.regions)]
    out = np.empty_like(net.aim)
    for name, ids in members:
        origin, aim = net.origin[:, ids], net.aim[:, ids]
        if infant:
            ruler = Ruler(ruler_of(name))
            origin, aim = ruler.points(origin), ruler.points(aim)
        ray = aim - origin
        ray = ray / (_length(ray) + 1e-12)
        t = np.full(len(ids), CAST_START)
        for _ in range(CAST_STEPS):
            t = np.maximum(t - distance(origin + t * ray, name, melted[name]), 0.0)
        out[:, ids] = origin + t * ray
    web, top, bottom = net.webs.T
    out[:, web] = 0.5 * (out[:, top] + out[:, bottom])
    out[0, net.seam] = 0.0
    return _even_out(net, out, melted)


def neighbours(quads: Int[np.ndarray, "Q 4"], count: int) -> Int[np.ndarray, "H K"]:
    """Vertices one edge away, a row a vertex; short rows repeat the vertex itself."""
    edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    start = np.searchsorted(edges[:, 0], np.arange(count + 1))
    slot = np.arange(len(edges)) - start[edges[:, 0]]
    out = np.repeat(np.arange(count)[:, None], slot.max() + 1, axis=1)
    out[edges[:, 0], slot] = edges[:, 1]
    return out


def normals(p: Float[np.ndarray, "3 H"], quads: Int[np.ndarray, "Q 4"]) -> Float[np.ndarray, "3 H"]:
    """Unit normals of the vertices of a quad mesh, weighted by area."""
    d, e = p[:, quads[:, 2]] - p[:, quads[:, 0]], p[:, quads[:, 3]] - p[:, quads[:, 1]]
    cross = _cross(d, e)
    corners = quads.T.ravel()
    out = np.stack([np.bincount(corners, np.tile(c, 4), p.shape[1]) for c in cross])
    return out / (_length(out) + 1e-30)


def near(around: Int[np.ndarray, "H K"], seeds: Int[np.ndarray, " S"], steps: int) -> Float[np.ndarray, " H"]:
    """1 at the seeds, falling to 0 over so many edges."""
    out = np.zeros(len(around))
    out[seeds] = 1.0
    for _ in range(steps):
        out = np.maximum(out, out[around].max(axis=1) - 1.0 / (steps + 1))
    return out


def _ease(net: Net) -> Float[np.ndarray, " H"]:
    """How freely each vertex slides: most where two limbs' rays meet."""
    leg, arm = net.rings["leg"], net.rings["arm"]
    digits = np.concatenate([net.webs.ravel(), net.rings["thumb"][0], arm[-1], leg[-1]])
    places = (
        (net.rings["crown"][0], 3),
        (arm[0], 5),
        (leg[0], 5),
        (digits, 2),
        (np.concatenate(leg[figure.FOOT_FROM_ROW : -3]), 2),
    )
    ease = np.zeros(len(net.around))
    for seeds, steps in places:
        ease = np.maximum(ease, near(net.around, seeds, steps))
    return EASE * ease


def _even_out(
    net: Net, p: Float[np.ndarray, "3 H"], melted: dict[str, list[Shape]]
) -> Float[np.ndarray, "3 H"]:
    """Slide the vertices around the junctions towards the middle of their neighbours, along the surface."""
    around, ease = net.around, _ease(net)
    degree = (around != np.arange(len(around))[:, None]).sum(axis=1)
    home = np.array([figure.JOINED.get(name, name) for name in net.regions])[net.region]
    moved = np.flatnonzero(ease > 0)
    members = [(name, moved[home[moved] == name]) for name in sorted(set(home[moved]))]
    for step in range(UNTANGLE_STEPS + EASE_STEPS):
        total = p[:, around[:, 0]]
        for k in range(1, around.shape[1]):
            total = total + p[:, around[:, k]]
        mean = (total - (around.shape[1] - degree) * p) / degree
        p = p + ease * (mean - p)
        p[0, net.seam] = 0.0
        if step < UNTANGLE_STEPS:  # off the surface first, so that rows that crossed come apart
            continue
        normal = normals(p, net.quads)
        normal[0, net.seam] = 0.0
        for name, ids in members:
            back = np.clip(distance(p[:, ids], name, melted[name]), -LONGEST_STEP, LONGEST_STEP)
            p[:, ids] = p[:, ids] - back * normal[:, ids]
    return p
