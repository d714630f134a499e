"""From the figure's rows to a mesh: rays leave a net of quads and stop at the surface of its shapes.

As in `shapes`, all operations round equally on every machine, so the mesh is bitwise identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from agebody.assets.mannequin import figure
from agebody.assets.mannequin.figure import Digit, LimbRow, Shape, TrunkRow
from agebody.assets.mannequin.shapes import Ruler, distance, length, shapes_of

CAST_START = 5e-4
"""Where on its ray a vertex starts [m]: just off the bone, where the distance to it is undefined."""
CAST_STEPS = 16
EASE = 0.6
"""Share of the way to the mean of its neighbours that a vertex moves at a junction, in each step."""
UNTANGLE_STEPS, EASE_STEPS = 6, 10
LONGEST_STEP = 0.004
"""Largest distance by which a vertex is moved back to the surface at once [m]."""
CROWN_RISE = 0.03
"""Height of the middle of the crown's aims above its border [m]."""

Row = TypeVar("Row", TrunkRow, LimbRow)


def circle(degrees: Float[np.ndarray, "*n"]) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Return sine and cosine, by power series: the C library's differ in the last bit between machines."""
    x = (degrees - 360.0 * np.floor(degrees / 360.0 + 0.5)) * (np.pi / 180.0)
    sine, cosine = np.zeros_like(x), np.zeros_like(x)
    for n in range(26, 0, -2):
        cosine = 1.0 - (cosine if n < 26 else 1.0) * x * x / (n * (n - 1))
        sine = 1.0 - (sine if n < 26 else 1.0) * x * x / (n * (n + 1))
    return sine * x, cosine


class Net(NamedTuple):
    """The quads of half a body, and the ray on which each vertex lies."""

    origin: Float[np.ndarray, "3 H"]
    aim: Float[np.ndarray, "3 H"]
    """Points that the rays pass through, in the space of the adult."""
    region: Int[np.ndarray, " H"]
    regions: tuple[str, ...]
    quads: Int[np.ndarray, "Q 4"]
    around: Int[np.ndarray, "H K"]
    """Vertices one edge away; short rows are filled up with the vertex itself."""
    seam: Bool[np.ndarray, " H"]
    """Vertices in the plane x = 0."""
    webs: Int[np.ndarray, "W 3"]
    """Vertices between two digits, each with the two that it lies between."""
    rings: dict[str, list[np.ndarray]]
    """Rows of the trunk (front to back), of leg and arm (closed), and of each digit."""


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
        """Add quads between two rows of vertices."""
        if closed:
            below, above = np.append(below, below[0]), np.append(above, above[0])
        self.quads.append(np.stack([below[:-1], below[1:], above[1:], above[:-1]], axis=1))

    def grid(self, ids: np.ndarray) -> None:
        """Add quads of a rectangular patch."""
        for low, high in pairwise(ids):
            self.strip(low, high)


def _mix(a: Any, b: Any, t: float) -> Any:
    """Interpolate linearly between numbers, or between tuples of them."""
    if isinstance(a, tuple):
        return tuple(_mix(x, y, t) for x, y in zip(a, b, strict=True))
    return a + t * (b - a)


def _between(rows: Sequence[Row]) -> list[Row]:
    """Return all rows of a table that gives only some, by linear interpolation."""
    out = [rows[0]]
    for before, after in pairwise(rows):
        steps = (i / after.rows for i in range(1, after.rows + 1))
        out += [type(after)(*_mix(tuple(before), tuple(after), t)) for t in steps]
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

    # The crown: half a 12 x 12 patch whose border is the last row; a Coons patch blends its aims from there.
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
    """Return flat and thick coordinate of a ring of 2 (columns + 2) vertices, from the middle of the top."""
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
    """Close the end of a limb with digits; its ring runs from the first digit's upper corner over the top."""
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
        ring = np.concatenate([top[start : stop + 1], [after], bottom[start : stop + 1][::-1], [mid]])
        _digit(weaver, ring, digit, rows)
        start, mid = stop, after


def _digit(weaver: _Weaver, ring: np.ndarray, digit: Digit, rows: Sequence[tuple[float, float]]) -> None:
    """Add a tube of rows from a ring that starts at an upper corner, closed by a patch two quads thick."""
    root, tip = np.array(digit.root), np.array(digit.tip)
    along = (tip - root) / length(tip - root)
    flat = np.array([along[2], 0.0, -along[0]])
    flat = flat / length(flat)
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
    hole = np.array([a[4], b[4], c[4], c[5], c[6], b[6], a[6], a[5]])
    _digit(weaver, hole, figure.THUMB, figure.DIGIT_ROWS)


def net() -> Net:
    """Return the quads of the left half and the rays of its vertices."""
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
    """Return the ruler of a region of the mesh."""
    if region in ("head", "torso"):
        return "spine"
    return "leg" if region in ("leg", "foot") or region.endswith("toe") else "arm"


def surface(net: Net, infant: bool) -> Float[np.ndarray, "3 H"]:
    """Return the vertices of the half body: rays cast to the surface, evened out where limbs begin."""
    shapes = shapes_of(infant)
    members = [(name, np.flatnonzero(net.region == i)) for i, name in enumerate(net.regions)]
    out = np.empty_like(net.aim)
    for name, ids in members:
        origin, aim = net.origin[:, ids], net.aim[:, ids]
        if infant:
            ruler = Ruler(ruler_of(name))
            origin, aim = ruler.points(origin), ruler.points(aim)
        ray = aim - origin
        ray = ray / (length(ray) + 1e-12)
        t = np.full(len(ids), CAST_START)
        for _ in range(CAST_STEPS):
            t = np.maximum(t - distance(origin + t * ray, name, shapes[name]), 0.0)
        out[:, ids] = origin + t * ray
    web, top, bottom = net.webs.T
    out[:, web] = 0.5 * (out[:, top] + out[:, bottom])
    out[0, net.seam] = 0.0
    return _even_out(net, out, shapes)


def neighbours(quads: Int[np.ndarray, "Q 4"], count: int) -> Int[np.ndarray, "H K"]:
    """Return the vertices one edge away, one row per vertex, filled up with the vertex itself."""
    edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    start = np.searchsorted(edges[:, 0], np.arange(count + 1))
    slot = np.arange(len(edges)) - start[edges[:, 0]]
    out = np.repeat(np.arange(count)[:, None], slot.max() + 1, axis=1)
    out[edges[:, 0], slot] = edges[:, 1]
    return out


def add_neighbours(
    total: Float[np.ndarray, "C H"], values: Float[np.ndarray, "C H"], around: Int[np.ndarray, "H K"]
) -> Float[np.ndarray, "C H"]:
    """Return the total plus the values of each vertex's neighbours, in a fixed order."""
    for k in range(around.shape[1]):
        total = total + values[:, around[:, k]]
    return total


def double_areas(p: Float[np.ndarray, "3 H"], quads: Int[np.ndarray, "Q 4"]) -> Float[np.ndarray, "3 Q"]:
    """Return twice the area vector of each quad, the cross product of its diagonals."""
    v, w = p[:, quads[:, 2]] - p[:, quads[:, 0]], p[:, quads[:, 3]] - p[:, quads[:, 1]]
    return np.stack([v[1] * w[2] - v[2] * w[1], v[2] * w[0] - v[0] * w[2], v[0] * w[1] - v[1] * w[0]])


def normals(p: Float[np.ndarray, "3 H"], quads: Int[np.ndarray, "Q 4"]) -> Float[np.ndarray, "3 H"]:
    """Return unit normals of the vertices of a quad mesh, weighted by area."""
    corners = quads.T.ravel()
    out = np.stack([np.bincount(corners, np.tile(c, 4), p.shape[1]) for c in double_areas(p, quads)])
    return out / (length(out) + 1e-30)


def near(around: Int[np.ndarray, "H K"], seeds: Int[np.ndarray, " S"], steps: int) -> Float[np.ndarray, " H"]:
    """Return 1 at the seeds, falling to 0 over ``steps`` edges."""
    out = np.zeros(len(around))
    out[seeds] = 1.0
    for _ in range(steps):
        out = np.maximum(out, out[around].max(axis=1) - 1.0 / (steps + 1))
    return out


def _ease(net: Net) -> Float[np.ndarray, " H"]:
    """Return how freely each vertex slides: most where the rays of two limbs meet."""
    leg, arm = net.rings["leg"], net.rings["arm"]
    digits = np.concatenate([net.webs.ravel(), net.rings["thumb"][0], arm[-1], leg[-1]])
    foot = np.concatenate(leg[figure.FOOT_FROM_ROW : -3])
    places = ((net.rings["crown"][0], 3), (arm[0], 5), (leg[0], 5), (digits, 2), (foot, 2))
    ease = np.zeros(len(net.around))
    for seeds, steps in places:
        ease = np.maximum(ease, near(net.around, seeds, steps))
    return EASE * ease


def _even_out(
    net: Net, p: Float[np.ndarray, "3 H"], shapes: dict[str, list[Shape]]
) -> Float[np.ndarray, "3 H"]:
    """Slide the vertices near junctions along the surface, towards the mean of their neighbours."""
    around, ease = net.around, _ease(net)
    degree = (around != np.arange(len(around))[:, None]).sum(axis=1)
    home = np.array([figure.JOINED.get(name, name) for name in net.regions])[net.region]
    moved = np.flatnonzero(ease > 0)
    members = [(name, moved[home[moved] == name]) for name in sorted(set(home[moved]))]
    for step in range(UNTANGLE_STEPS + EASE_STEPS):
        total = add_neighbours(np.zeros_like(p), p, around)
        mean = (total - (around.shape[1] - degree) * p) / degree
        p = p + ease * (mean - p)
        p[0, net.seam] = 0.0
        if step < UNTANGLE_STEPS:  # not yet back to the surface, so that crossed rows can separate
            continue
        normal = normals(p, net.quads)
        normal[0, net.seam] = 0.0
        for name, ids in members:
            back = np.clip(distance(p[:, ids], name, shapes[name]), -LONGEST_STEP, LONGEST_STEP)
            p[:, ids] = p[:, ids] - back * normal[:, ids]
    return p
