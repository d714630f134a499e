"""Closest points on meshes: which triangle is nearest, by torch or Warp, and where on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agebody.checks import at_least_float32, expect, expect_dtype, flatten, safe_norm
from agebody.engine.backend import BackendName, check_backend, choose_search, load_kernels
from agebody.engine.batched import own_precision
from agebody.mesh.search import expect_faces, register

PAIRS = 1 << 21
"""Point-triangle pairs that the torch search compares together: some 50 MB."""
EXACT_PAIRS = 1 << 17
"""Number of those whose exact distances are computed at a time."""
ORDERED_BY = 8
"""Number of meshes that decide on one order of their faces."""
EDGE = 1e-6
"""Margin of triangles, in barycentric coordinates, so that no ray passes between two neighbours."""


class ClosestPoints(NamedTuple):
    """Closest points on a mesh."""

    distance: Float[Tensor, "*batch N"]
    """[m], not negative; its gradient is zero for a point on the mesh."""
    point: Float[Tensor, "*batch N 3"]
    """On the mesh [m]."""
    face: Int[Tensor, "*batch N"]
    """Row of ``faces``."""
    barycentric: Float[Tensor, "*batch N 3"]
    """Weights of the face's corners, not negative, of sum 1."""


def closest_points(
    points: Float[Tensor, "*#batch N 3"],
    vertices: Float[Tensor, "*#batch V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    backend: BackendName = "auto",
) -> ClosestPoints:
    """Find the point of a mesh that is closest to each given point.

    The search finds the triangle; the point on it is computed in torch. So distance and point are
    differentiable to any order in points and vertices, while the triangle stays the same.

    Args:
        points: [m].
        vertices: [m]; leading dimensions broadcast. One mesh for many points is searched as one.
        faces: ids of vertices, the same for all meshes.
        backend: of the search: "warp" traverses a tree of boxes, "torch" compares all pairs and is much
            slower; "auto" is Warp where it is installed.

    Returns:
        A named tuple of ``distance`` [m], of gradient zero on the mesh; ``point`` [m]; ``face``, the row of
        ``faces``; and ``barycentric``, the weights of its corners, 0 or more, of sum 1.

    Raises:
        ImportError: Warp is chosen and not installed.
    """
    points, vertices = at_least_float32(points), at_least_float32(vertices)
    face = closest_faces(points, vertices, faces, backend=backend)
    corners = corners_of(vertices, faces, face)
    barycentric = closest_barycentric(points.expand(*face.shape, 3), corners)
    point = interpolate(corners, barycentric)
    return ClosestPoints(safe_norm(points - point), point, face, barycentric)


def closest_faces(
    points: Float[Tensor, "*#batch N 3"],
    vertices: Float[Tensor, "*#batch V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    among: Bool[Tensor, "*#batch F"] | None = None,
    ordered: bool = False,
    backend: BackendName = "auto",
) -> Int[Tensor, "*batch N"]:
    """Return the triangle of a mesh that is nearest to each point; any one of several at the same distance.

    Args:
        points: [m].
        vertices: [m]; leading dimensions broadcast.
        faces: ids of vertices, the same for all meshes; at least one. Triangles without area count as well.
        among: faces that are searched, all if None. The answer for a mesh without any is face 0.
        ordered: whether faces are in a `tree_order`, which makes a search faster and changes no distance.
        backend: ``"auto"`` is Warp where it is installed, and torch elsewhere. Warp traverses a tree of
            boxes that is built at every call; torch compares all points with all triangles and is much
            slower. In float64 both search in float64, else in float32.
    """
    points = expect("points", points, None, 3)
    vertices = expect("vertices", vertices, None, 3)
    expect_dtype("vertices", vertices, points, "that of points")
    faces = expect_faces(faces, vertices.shape[-2], least=1)
    triangles = vertices.detach()[..., faces, :]
    return _search(points, triangles, among, ordered, backend)


def tree_order(triangles: Float[Tensor, "B F 3 C"], *, backend: BackendName = "auto") -> Int[Tensor, "B F"]:
    """Return an order of triangles of any number of coordinates in which neighbours are near each other."""
    if choose_search(backend, triangles.device) == "warp":
        return load_kernels().tree_order(triangles)
    return torch.arange(triangles.shape[1], device=triangles.device).expand(triangles.shape[:2])


def order_faces(
    vertices: Float[Tensor, "*batch V 3"], faces: Int[Tensor, "F 3"], *, backend: BackendName = "auto"
) -> Int[Tensor, "F 3"]:
    """Return the faces in a `tree_order` that suits all these meshes, wherever they move."""
    meshes = flatten(vertices.detach(), None, 2)
    if not meshes.numel() or not len(faces):
        return faces
    some = meshes[:: -(-len(meshes) // ORDERED_BY)]
    # Coordinates of several meshes side by side: neighbours are neighbours on each of them.
    return faces[tree_order(some.transpose(0, 1).flatten(1)[None, faces], backend=backend)[0]]


def nearest_points(
    points: Float[Tensor, "*#batch N 3"],
    cloud: Float[Tensor, "*#batch S 3"],
    *,
    weights: Float[Tensor, "*#batch S"] | Bool[Tensor, "*#batch S"] | None = None,
    ordered: bool = False,
    backend: BackendName = "auto",
) -> Int[Tensor, "*batch N"]:
    """Return the point of a cloud that is nearest to each point; any one of several at the same distance.

    Args:
        points: [m].
        cloud: [m], at least one point; leading dimensions broadcast.
        weights: points of the cloud of weight 0 are ignored, even NaN. The answer for a cloud without
            others is 0.
        ordered: whether the cloud is in a `tree_order`.
        backend: as in `closest_faces`; a point is a triangle with three equal corners.
    """
    points = expect("points", points, None, 3)
    cloud = expect("cloud", cloud, None, 3)
    expect_dtype("cloud", cloud, points, "that of points")
    if cloud.shape[-2] == 0:
        raise ValueError("cloud: expected at least one point, got none")
    itself = torch.arange(cloud.shape[-2], device=cloud.device)[:, None].expand(-1, 3)
    among = None if weights is None else weights != 0
    return closest_faces(points, cloud, itself, among=among, ordered=ordered, backend=backend)


def closest_barycentric(
    points: Float[Tensor, "*batch 3"], triangles: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch 3"]:
    """Return barycentric coordinates of the point of a triangle that is nearest to a point.

    Exact also for triangles without area. Values and derivatives are never NaN.

    Source: the regions of a triangle, as in Ericson, Real-Time Collision Detection (2005), 5.1.5.
    """
    inner = _inner_coordinates(points, triangles)
    with torch.no_grad():
        starts, ends = triangles, triangles.roll(-1, -2)
        along = _along(points[..., None, :], starts, ends)
        away = starts + along[..., None] * (ends - starts) - points[..., None, :]
        edge = (away * away).sum(-1).argmin(-1, keepdim=True)
        corner = torch.arange(3, device=points.device)
        first, second = corner == edge, corner == (edge + 1) % 3
    on_edge = _along(points, _pick(triangles, first), _pick(triangles, second))[..., None]
    outer = torch.where(first, 1 - on_edge, torch.where(second, on_edge, 0))
    return torch.where((inner >= 0).all(-1, keepdim=True), inner, outer)


def interpolate(
    corners: Float[Tensor, "*batch 3 3"], barycentric: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Return the point of each triangle with these barycentric coordinates."""
    return (barycentric[..., None] * corners).sum(-2)


def corners_of(
    vertices: Float[Tensor, "*#batch V 3"], faces: Int[Tensor, "F 3"], face: Int[Tensor, "*#batch N"]
) -> Float[Tensor, "*batch N 3 3"]:
    """Return the corners of triangles."""
    return rows_of(vertices, faces.long()[face].flatten(-2)).unflatten(-2, (-1, 3))


def rows_of(
    tensor: Float[Tensor, "*#batch V 3"], rows: Int[Tensor, "*#batch N"]
) -> Float[Tensor, "*batch N 3"]:
    """Return rows of each batch by their indices.

    Indices must be int64: torch 2.13 misreads narrower ones that are expanded.
    """
    batch = torch.broadcast_shapes(tensor.shape[:-2], rows.shape[:-1])
    index = rows[..., None].expand(*batch, -1, 3)
    return tensor.expand(*batch, -1, -1).gather(-2, index)


def visible_vertices(
    vertices: Float[Tensor, "*#batch V 3"],
    faces: Int[Tensor, "F 3"],
    eye: Float[Tensor, "*#batch 3"],
    *,
    backend: BackendName = "auto",
) -> Bool[Tensor, "*batch V"]:
    """Return the vertices visible to a camera: one of their triangles faces it, and no other occludes it.

    Vertices that are not finite, and all that an eye not finite sees, are not visible.

    Args:
        vertices: [m].
        faces: ids of vertices, counter-clockwise seen from outside, the same for all meshes.
        eye: position of the camera [m]; zeros for vertices in camera coordinates.
        backend: of the search for occluders, as in `closest_points`.
    """
    vertices = expect("vertices", vertices, None, 3)
    eye = expect("eye", eye, 3)
    expect_dtype("eye", eye, vertices, "that of vertices")
    faces = expect_faces(faces, vertices.shape[-2], least=1)
    batch = torch.broadcast_shapes(vertices.shape[:-2], eye.shape[:-1])
    dtype = _search_type(vertices)
    mesh = (
        _finite(vertices.detach().to(dtype))
        .expand(*batch, -1, -1)
        .reshape(batch.numel(), *vertices.shape[-2:])
    )
    eyes = _finite(eye.detach().to(dtype)).expand(*batch, 3).reshape(batch.numel(), 3)
    triangles = mesh[:, faces]
    a, b, c = triangles.unbind(2)
    towards = (torch.linalg.cross(b - a, c - a) * (eyes[:, None] - a)).sum(-1) > 0
    facing = torch.zeros(mesh.shape[:2], dtype=torch.uint8, device=mesh.device)
    facing = facing.scatter_reduce(
        1, faces.flatten().expand(len(mesh), -1), towards.byte().repeat_interleave(3, 1), "amax"
    )
    clear = torch.ops.agebody.clear_sights(mesh, faces, eyes, check_backend(backend))
    known = vertices.isfinite().all(-1) & eye.isfinite().all(-1)[..., None]
    return (facing.bool() & clear).reshape(*batch, vertices.shape[-2]) & known


def _inner_coordinates(points: Tensor, triangles: Tensor) -> Tensor:
    """Return barycentric coordinates of projections on the plane; negative for triangles without area."""
    a, b, c = triangles.unbind(-2)
    ab, ac, ap = b - a, c - a, points - a
    normal = torch.linalg.cross(ab, ac)
    area = (normal * normal).sum(-1)
    # The sine of its narrowest corner at a, against rounding of the normal.
    least = (16 * torch.finfo(points.dtype).eps) ** 2 * (ab * ab).sum(-1) * (ac * ac).sum(-1)
    flat = area <= least
    area = torch.where(flat, 1, area)
    v = (torch.linalg.cross(ap, ac) * normal).sum(-1) / area
    w = (torch.linalg.cross(ab, ap) * normal).sum(-1) / area
    return torch.where(flat[..., None], -1, torch.stack((1 - v - w, v, w), -1))


def _along(points: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Return where on segments points are nearest, from 0 to 1; 0 on a segment without length."""
    way = ends - starts
    length = (way * way).sum(-1)
    none = length == 0
    return torch.where(none, 0, ((points - starts) * way).sum(-1) / torch.where(none, 1, length)).clamp(0, 1)


def _pick(triangles: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen[..., None], triangles, 0).sum(-2)


def _finite(tensor: Tensor) -> Tensor:
    """Replace numbers that are not finite by 0: NaN of weight 0 must not affect a search."""
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)


def _search_type(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _search(
    points: Tensor, triangles: Tensor, among: Tensor | None, ordered: bool, backend: BackendName
) -> Tensor:
    dtype = _search_type(triangles)
    points, triangles = _finite(points.detach().to(dtype)), _finite(triangles.to(dtype))
    if among is not None:
        triangles = torch.where(among[..., None, None], triangles, torch.nan)  # which searches leave out
    (n, _), meshes = points.shape[-2:], triangles.shape[:-3]
    batch = torch.broadcast_shapes(points.shape[:-2], meshes)
    points = points.expand(*batch, n, 3)
    if meshes.numel() == 1:
        flat = (points.reshape(1, batch.numel() * n, 3), triangles.reshape(1, -1, 3, 3))
    else:
        triangles = triangles.expand(*batch, -1, 3, 3)
        flat = (points.reshape(batch.numel(), n, 3), triangles.flatten(0, len(batch) - 1))
    face = torch.ops.agebody.closest_triangles(*flat, check_backend(backend), ordered).reshape(*batch, n)
    return face if among is None else torch.where(among.any(-1, keepdim=True), face, 0)


def _closest_triangles(
    points: Tensor, triangles: Tensor, backend: BackendName, ordered: bool = False
) -> Tensor:
    if choose_search(backend, points.device) == "warp":
        return load_kernels().closest_triangles(points, triangles, ordered=ordered)
    found = torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device)
    for p, t, out in zip(points, triangles, found, strict=True):
        kept = (~t.isnan().flatten(1).any(1)).nonzero()[:, 0]
        rows = max(1, PAIRS // max(1, len(kept)))
        for start in range(0, len(p) if len(kept) else 0, rows):
            with own_precision(p.device):
                out[start : start + rows] = kept[_closest_of_all(p[start : start + rows], t[kept])]
    return found


def _closest_of_all(points: Tensor, triangles: Tensor) -> Tensor:
    """Return the nearest of F triangles (n) for n points, the smallest index of several.

    A triangle lies in a ball of radius r around its centroid m. With u the distance to any one triangle, only
    those with ``|p - m| <= u + r`` can be nearer; their squared distances are a product of matrices.
    """
    origin = triangles.mean((0, 1))
    points, triangles = points - origin, triangles - origin
    middles, radii = _balls(triangles)
    squares = middles.square().sum(-1)
    first = torch.addmm(squares, points, -2 * middles.T).argmin(1)  # any triangle gives a bound
    reach = torch.sqrt(_squared_distance(points, triangles[first]))
    left = torch.cat((points, reach[:, None]), 1)
    right = torch.cat((middles, radii[:, None]), 1)
    size = points.square().sum(-1)
    slack = 16 * torch.finfo(points.dtype).eps * (size + reach.square() + (squares + radii.square()).max())
    over = _add_products(squares - radii.square(), left, -2 * right)
    point, triangle = (over <= (reach.square() - size + slack)[:, None]).nonzero(as_tuple=True)
    distance = torch.cat(
        [
            _squared_distance(points[p], triangles[t])
            for p, t in zip(point.split(EXACT_PAIRS), triangle.split(EXACT_PAIRS), strict=True)
        ]
    )
    least = points.new_full((len(points),), torch.inf).scatter_reduce(0, point, distance, "amin")
    nearest = torch.where(distance == least[point], triangle, len(triangles))
    return first.scatter_reduce(0, point, nearest, "amin", include_self=False)


def _balls(triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Return centroids (F, 3) and distances to the farthest corner (F)."""
    middles = triangles.mean(1)
    return middles, (triangles - middles[:, None]).norm(dim=-1).amax(1)


def _add_products(base: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``base + rows @ columns.T`` (n, F) for (n, K) and (F, K), in the precision of their type.

    Where a user allows it, products round float32 numbers to TF32's or bfloat16's few bits; sums never do.
    """
    if rows.dtype == torch.float64 or (rows.device.type == "cpu" and _multiplies_exactly()):
        return torch.addmm(base, rows, columns.T)
    for row, column in zip(rows.unbind(1), columns.unbind(1), strict=True):
        base = torch.addcmul(base, row[:, None], column)
    return base


def _multiplies_exactly() -> bool:
    """Return whether float32 products on the CPU have full precision, by torch's settings."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set for this device alone, by torch's newer attributes
        return False


def _squared_distance(points: Tensor, triangles: Tensor) -> Tensor:
    return (points - interpolate(triangles, closest_barycentric(points, triangles))).square().sum(-1)


def _clear_sights(vertices: Tensor, faces: Tensor, eyes: Tensor, backend: BackendName) -> Tensor:
    if choose_search(backend, vertices.device) == "warp":
        return load_kernels().clear_sights(vertices, faces, eyes)
    clear = torch.ones(vertices.shape[:2], dtype=torch.bool, device=vertices.device)
    rows = max(1, PAIRS // len(faces))
    for mesh, eye, out in zip(vertices, eyes, clear, strict=True):
        for start in range(0, len(mesh), rows):
            here = torch.arange(start, min(start + rows, len(mesh)), device=mesh.device)
            with own_precision(mesh.device):
                out[here] = ~_blocked(mesh, faces, eye, here)
    return clear


def _blocked(mesh: Tensor, faces: Tensor, eye: Tensor, here: Tensor) -> Tensor:
    """Return whether segments from n vertices to the eye hit a triangle; tests bounding spheres first."""
    origin = mesh.mean(0)
    mesh, eye = mesh - origin, eye - origin
    triangles = mesh[faces]
    middles, radii = _balls(triangles)
    starts, ways = mesh[here], eye - mesh[here]
    lengths = ways.square().sum(-1, keepdim=True)
    reach = middles.square().sum(-1) - radii.square()
    along = _add_products(-(ways * starts).sum(-1, keepdim=True), ways, middles)
    share = (along / torch.where(lengths == 0, 1, lengths)).clamp(0, 1)
    over = _add_products(reach, starts, -2 * middles) - share * (2 * along - share * lengths)
    size = starts.square().sum(-1, keepdim=True)
    near = over <= 64 * torch.finfo(mesh.dtype).eps * (lengths + size + reach.abs().max()) - size
    vertex, triangle = near.nonzero(as_tuple=True)
    blocked = torch.zeros(len(here), dtype=torch.uint8, device=mesh.device)
    for v, t in zip(vertex.split(EXACT_PAIRS), triangle.split(EXACT_PAIRS), strict=True):
        others = (faces[t] != here[v, None]).all(-1)
        met = _meets(starts[v], ways[v], triangles[t]) & others
        blocked = blocked.scatter_reduce(0, v, met.byte(), "amax")
    return blocked.bool()


def _meets(starts: Tensor, ways: Tensor, triangles: Tensor) -> Tensor:
    """Return whether segments, without their ends, intersect triangles (Moeller and Trumbore 1997)."""
    a, b, c = triangles.unbind(-2)
    ab, ac, from_a = b - a, c - a, starts - a
    across, lift = torch.linalg.cross(ways, ac), torch.linalg.cross(from_a, ab)
    determinant = (ab * across).sum(-1)
    parallel = determinant == 0
    u, v, reach = (
        (x * y).sum(-1) / torch.where(parallel, 1, determinant)
        for x, y in ((from_a, across), (ways, lift), (ac, lift))
    )
    return ~parallel & (u >= -EDGE) & (v >= -EDGE) & (u + v <= 1 + EDGE) & (reach > 0) & (reach < 1)


def _vmap(name: str, batched: tuple[int, ...]) -> Any:
    """Flatten two batch dimensions into one; arguments at ``batched`` have one of their own."""

    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        if any(dim is not None for i, dim in enumerate(in_dims) if i not in batched):
            raise ValueError(f"{name}: torch.func.vmap over faces is not supported")
        spread = [
            (a.expand(size, *a.shape) if dim is None else a.movedim(dim, 0)) if i in batched else a
            for i, (a, dim) in enumerate(zip(arguments, in_dims, strict=True))
        ]
        inner = spread[0].shape[1]
        flat = [a.flatten(0, 1) if i in batched else a for i, a in enumerate(spread)]
        return getattr(torch.ops.agebody, name)(*flat).unflatten(0, (size, inner)), 0

    return vmap


register(
    "closest_triangles",
    "(Tensor points, Tensor triangles, str backend, bool ordered=False) -> Tensor",
    _closest_triangles,
    lambda points, *_: points.new_empty(points.shape[:2], dtype=torch.int64),
).register_vmap(_vmap("closest_triangles", (0, 1)))
register(
    "clear_sights",
    "(Tensor vertices, Tensor faces, Tensor eyes, str backend) -> Tensor",
    _clear_sights,
    lambda vertices, *_: vertices.new_empty(vertices.shape[:2], dtype=torch.bool),
).register_vmap(_vmap("clear_sights", (0, 2)))
