"""Closest points: against trimesh, against a grid of each triangle, both searches against each other."""

import math

import pytest
import torch
import trimesh
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody import rotations
from agebody.engine.backend import has_warp
from agebody.mesh import closest as proximity
from agebody.mesh.closest import (
    closest_barycentric,
    closest_faces,
    closest_points,
    interpolate,
    nearest_points,
    tree_order,
    visible_vertices,
)

DOUBLE = torch.float64
BACKENDS = ["torch", pytest.param("warp", marks=pytest.mark.skipif(not has_warp(), reason="needs Warp"))]
on_backends = pytest.mark.parametrize("backend", BACKENDS)
DEGENERATE = {
    "a point": [[1.0, 2, 3], [1, 2, 3], [1, 2, 3]],
    "a segment, the first corner twice": [[0.0, 0, 0], [0, 0, 0], [2, 0, 0]],
    "a segment, the last corner twice": [[0.0, 0, 0], [2, 0, 0], [2, 0, 0]],
    "a segment, first and last corner alike": [[0.0, 0, 0], [2, 0, 0], [0, 0, 0]],
    "three corners in a line": [[0.0, 0, 0], [2, 0, 0], [0.5, 0, 0]],
    "three corners in a line, the first inside": [[1.0, 1, 1], [0, 0, 0], [3, 3, 3]],
    "flat up to rounding": [[0.0, 0, 0], [1, 1e-17, 0], [0.3, 0, 1e-18]],
}


def random(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def icosphere(subdivisions=2, dtype=DOUBLE):
    sphere = trimesh.creation.icosphere(subdivisions)
    return torch.tensor(sphere.vertices, dtype=dtype), torch.tensor(sphere.faces)


def surface_of(asset, dtype=DOUBLE):
    return torch.tensor(asset.template, dtype=dtype), torch.tensor(asset.faces)


def near_surface(vertices, faces, count, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    face = torch.randint(len(faces), (count,), generator=generator)
    share = torch.rand(count, 3, generator=generator, dtype=vertices.dtype)
    share = share / share.sum(-1, keepdim=True)
    normal = torch.randn(count, 3, generator=generator, dtype=vertices.dtype)
    return interpolate(vertices[faces[face]], share) + noise * normal


def smallest_on_a_grid(points, triangles, steps=30):
    """Distance to a triangle by trying points of it: never too small, and too large by less than a step."""
    u, v = torch.meshgrid(*2 * [torch.linspace(0, 1, steps + 1, dtype=DOUBLE)], indexing="ij")
    inside = u + v <= 1 + 1e-9
    weights = torch.stack((1 - u - v, u, v), -1)[inside]
    tried = torch.einsum("wc,...cd->...wd", weights, triangles)
    return (tried - points[..., None, :]).norm(dim=-1).amin(-1)


class TestOnATriangle:
    def test_no_point_of_a_grid_is_nearer(self):
        points, triangles = 2 * random(100, 3), random(100, 3, 3, seed=1)
        weights = closest_barycentric(points, triangles)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(100, dtype=DOUBLE), rtol=0, atol=1e-14)
        found = (points - interpolate(triangles, weights)).norm(dim=-1)
        tried = smallest_on_a_grid(points, triangles)
        step = (triangles - triangles.roll(1, -2)).norm(dim=-1).amax(-1) / 30
        assert (found <= tried + 1e-14).all()
        assert (found >= tried - step).all()
        regions = {tuple((w > 0).tolist()) for w in weights}
        assert len(regions) == 7  # three corners, three edges, the inside

    @pytest.mark.parametrize("name", DEGENERATE)
    def test_without_area(self, name):
        triangle = torch.tensor(DEGENERATE[name], dtype=DOUBLE).expand(50, 3, 3)
        points = 2 * random(50, 3)
        weights = closest_barycentric(points, triangle)
        assert (weights >= 0).all()
        found = (points - interpolate(triangle, weights)).norm(dim=-1)
        tried = smallest_on_a_grid(points, triangle)
        assert (found <= tried + 1e-14).all()
        torch.testing.assert_close(found, tried, rtol=0, atol=0.1 * math.sqrt(12))

    @pytest.mark.parametrize("name", DEGENERATE)
    def test_derivatives_without_area_are_finite(self, name):
        triangle = torch.tensor(DEGENERATE[name], dtype=DOUBLE).expand(20, 3, 3).clone().requires_grad_()
        points = torch.cat((random(18, 3), triangle[:1, 0].detach(), triangle[:1].detach().mean(1)))
        points.requires_grad_()
        distance = (points - interpolate(triangle, closest_barycentric(points, triangle))).square().sum()
        first = torch.autograd.grad(distance, (points, triangle), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (points, triangle))
        assert all(g.isfinite().all() for g in (*first, *second))

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_slivers_in_float32(self, scale):
        """Of height h: what is lost by taking them for an edge is at most h."""
        height = 10.0 ** torch.arange(-8, 0, dtype=DOUBLE).repeat_interleave(50)
        points, triangles = 0.2 * random(400, 3), random(400, 3, 3, seed=3)
        triangles[:, 2] = (
            triangles[:, 0] + 0.3 * (triangles[:, 1] - triangles[:, 0]) + height[:, None] * triangles[:, 2]
        )
        points, triangles = scale * points, scale * triangles
        exact = (points - interpolate(triangles, closest_barycentric(points, triangles))).norm(dim=-1)
        single = closest_barycentric(points.float(), triangles.float()).double()
        found = (points - interpolate(triangles, single)).norm(dim=-1)
        # Weights are good to some eps over the angle of the sliver; they move the point along it.
        assert ((found - exact).abs() <= 1e-5 * scale).all()

    def test_derivatives(self):
        points, triangles = 2 * random(4, 3, seed=5), random(4, 3, 3, seed=6)
        inputs = (points.requires_grad_(), triangles.requires_grad_())
        nearest = lambda p, t: interpolate(t, closest_barycentric(p, t))  # noqa: E731
        assert torch.autograd.gradcheck(nearest, inputs)
        assert torch.autograd.gradgradcheck(nearest, inputs)


class TestClosestPoints:
    @on_backends
    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
    def test_as_trimesh_finds_them(self, mannequin_asset, backend, dtype):
        vertices, faces = surface_of(mannequin_asset, dtype)
        points = torch.cat(
            [near_surface(vertices, faces, 20, noise, seed=i) for i, noise in enumerate((0, 0.01, 0.3))]
        )
        found = closest_points(points, vertices, faces, backend=backend)
        mesh = trimesh.Trimesh(vertices.double().numpy(), faces.numpy(), process=False)
        _, distance, _ = trimesh.proximity.closest_point(mesh, points.double().numpy())
        # trimesh takes the first of candidates that are alike up to some 1e-5 m, so it may be farther.
        rounding = 1e-6 if dtype == torch.float32 else 1e-13
        difference = found.distance.double() - torch.from_numpy(distance)
        assert difference.max() <= rounding
        assert difference.min() >= -1e-4
        assert difference.abs().median() <= rounding
        torch.testing.assert_close(
            interpolate(vertices[faces[found.face]], found.barycentric), found.point, rtol=0, atol=rounding
        )
        torch.testing.assert_close((points - found.point).norm(dim=-1), found.distance, rtol=0, atol=rounding)
        assert found.distance.dtype == dtype
        assert found.face.dtype == torch.int64

    def test_of_a_sphere(self):
        """Points outside of a fine sphere see themselves moved to it."""
        vertices, faces = icosphere(4)
        directions = torch.nn.functional.normalize(random(200, 3), dim=-1)
        found = closest_points(3 * directions, vertices, faces)
        # The triangles cut the ball at a depth of 1 - cos(half an edge), less than (0.08 / 2)^2.
        torch.testing.assert_close(found.distance, torch.full((200,), 2.0, dtype=DOUBLE), rtol=0, atol=2e-3)
        torch.testing.assert_close(found.point, directions, rtol=0, atol=0.05)

    @settings(max_examples=15)
    @given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([torch.float32, DOUBLE]))
    def test_both_searches_agree(self, seed, count, dtype):
        """On triangles of any size, some without area, that cross each other."""
        vertices = random(2, 12, 3, seed=seed, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        faces = torch.randint(12, (count, 3), generator=generator)
        points = 2 * random(2, 20, 3, seed=seed + 1, dtype=dtype)
        backends = ("torch", "warp") if has_warp() else ("torch",)
        found = [closest_points(points, vertices, faces, backend=name).distance for name in backends]
        exact = smallest_distance(points.double(), vertices.double(), faces)
        for distance in found:
            # Lengths of about 5 are squared and rooted: of small distances half of the digits remain.
            atol = 2e-3 if dtype == torch.float32 else 1e-7
            torch.testing.assert_close(distance.double(), exact, rtol=1e-5, atol=atol)

    @pytest.mark.skipif(not has_warp(), reason="needs Warp")
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 1000])
    def test_trees_of_every_size(self, count):
        points, triangles = random(3, 40, 3), random(3, count, 3, 3, seed=1)
        search = torch.ops.agebody.closest_triangles
        assert torch.equal(search(points, triangles, "warp"), search(points, triangles, "torch"))
        order = tree_order(triangles, backend="warp")
        assert torch.equal(order.sort(1).values, torch.arange(count).expand(3, -1))
        ordered = triangles.gather(1, order[..., None, None].expand(-1, -1, 3, 3))
        found = order.gather(1, search(points, ordered, "warp", True))
        assert torch.equal(found, search(points, triangles, "torch"))

    @pytest.mark.skipif(not has_warp(), reason="needs Warp")
    @pytest.mark.parametrize("count", [5, 31, 33, 100, 1000, 1025])
    def test_a_tree_of_ordered_triangles_is_as_tight_as_one_of_its_own(self, count):
        """Boxes of nodes whose ends are those of neighbours would contain triangles from far away."""
        from agebody_kernels.closest import BoxTree

        triangles = random(2, count, 1, 3) + random(2, count, 3, 3, seed=1) / 20
        order = tree_order(triangles, backend="warp")
        ordered = triangles.take_along_dim(order[..., None, None], 1)
        own, found = BoxTree.build(triangles), BoxTree.build(ordered, ordered=True)
        sizes = [(tree.upper - tree.lower)[:, 1:].sum() for tree in (own, found)]
        assert sizes[1] < 1.1 * sizes[0]

    @on_backends
    def test_far_and_huge(self, backend):
        """The pruning of candidates must not rest on numbers of one size."""
        vertices, faces = icosphere(1)
        points = random(50, 3)
        here = closest_faces(points, vertices, faces, backend=backend)
        for scale, offset in ((1e4, 0.0), (1e-4, 0.0), (1.0, 1e4)):
            found = closest_points(scale * points + offset, scale * vertices + offset, faces, backend=backend)
            first = closest_points(points, vertices, faces, backend=backend)
            torch.testing.assert_close(
                found.distance, scale * first.distance, rtol=1e-9, atol=1e-10 * (scale + offset)
            )
        single = closest_points(points.float() + 100, vertices.float() + 100, faces, backend=backend)
        exact = closest_points(points, vertices, faces).distance
        torch.testing.assert_close(single.distance.double(), exact, rtol=0, atol=5e-5)
        assert (here == closest_faces(points, vertices, faces, backend=backend)).all()

    @on_backends
    def test_closest_points_move_with_the_input(self, backend):
        vertices, faces = icosphere(1)
        points = random(60, 3)
        turn = rotations.to_matrix(random(3, seed=2), "axis_angle")
        shift = random(3, seed=3)
        still = closest_points(points, vertices, faces, backend=backend)
        moved = closest_points(points @ turn.T + shift, vertices @ turn.T + shift, faces, backend=backend)
        torch.testing.assert_close(moved.distance, still.distance, rtol=0, atol=1e-13)
        torch.testing.assert_close(moved.point, still.point @ turn.T + shift, rtol=0, atol=1e-12)

    @on_backends
    def test_points_of_the_mesh_are_at_no_distance(self, backend):
        vertices, faces = icosphere(1)
        vertices.requires_grad_()
        points = vertices.detach()[faces].mean(1).requires_grad_()
        found = closest_points(points, vertices, faces, backend=backend)
        torch.testing.assert_close(found.distance, torch.zeros(len(faces), dtype=DOUBLE), rtol=0, atol=1e-15)
        assert (found.face == torch.arange(len(faces))).all()
        at_corners = closest_points(vertices, vertices, faces, backend=backend)
        (gradient,) = torch.autograd.grad(at_corners.distance.sum(), vertices)
        assert gradient.isfinite().all()

    @on_backends
    def test_batches_broadcast(self, backend):
        vertices, faces = icosphere(0)
        meshes = vertices + 0.3 * random(2, 3, 1, 3)
        points = random(3, 5, 3, seed=1)
        found = closest_points(points, meshes, faces, backend=backend)
        assert [tuple(t.shape) for t in found] == [(2, 3, 5), (2, 3, 5, 3), (2, 3, 5), (2, 3, 5, 3)]
        for i in range(2):
            for j in range(3):
                alone = closest_points(points[j], meshes[i, j], faces, backend=backend)
                for together, one in zip(found, alone, strict=True):
                    torch.testing.assert_close(together[i, j], one)
        one_mesh = closest_points(points, vertices, faces, backend=backend)
        assert one_mesh.face.shape == (3, 5)
        torch.testing.assert_close(
            one_mesh.distance, closest_points(points, vertices.expand(3, -1, -1), faces).distance
        )
        many = closest_points(points[0], meshes, faces, backend=backend)
        torch.testing.assert_close(
            many.distance[1, 2], closest_points(points[0], meshes[1, 2], faces).distance
        )

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
    def test_faces_of_any_integer_type(self, dtype):
        vertices, faces = icosphere(1)
        expected = closest_points(random(2, 9, 3), vertices, faces)
        found = closest_points(random(2, 9, 3), vertices, faces.to(dtype))
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
        seen = visible_vertices(vertices, faces.to(dtype), 3 * vertices[0])
        assert torch.equal(seen, visible_vertices(vertices, faces, 3 * vertices[0]))
        assert not visible_vertices(vertices, faces, torch.nan * vertices[0]).any()

    @on_backends
    def test_nothing_in_nothing_out(self, backend):
        vertices, faces = icosphere(0)
        assert closest_points(random(0, 3), vertices, faces, backend=backend).distance.shape == (0,)
        empty = closest_points(random(4, 0, 3), vertices.expand(4, -1, -1), faces, backend=backend)
        assert empty.point.shape == (4, 0, 3)
        none = closest_points(random(0, 5, 3), vertices.expand(0, -1, -1), faces, backend=backend)
        assert none.barycentric.shape == (0, 5, 3)

    @on_backends
    def test_nan_stays_where_it_is(self, backend):
        vertices, faces = icosphere(0)
        points = random(2, 4, 3)
        broken = points.clone()
        broken[0, 1] = math.nan
        broken[1, 2, 0] = math.inf
        found = closest_points(broken, vertices, faces, backend=backend)
        exact = closest_points(points, vertices, faces, backend=backend)
        good = torch.ones(2, 4, dtype=torch.bool)
        good[0, 1] = good[1, 2] = False
        assert torch.equal(found.distance[good], exact.distance[good])
        assert not found.distance[~good].isfinite().any()

    @on_backends
    def test_among_some_faces(self, backend):
        vertices, faces = icosphere(1)
        points = random(2, 30, 3)
        among = torch.rand(2, len(faces), generator=torch.Generator().manual_seed(0)) < 0.3
        found = closest_faces(points, vertices, faces, among=among, backend=backend)
        for i in range(2):
            few = faces[among[i]]
            expected = closest_points(points[i], vertices, few).distance
            corners = vertices[faces[found[i]]]
            nearest = interpolate(corners, closest_barycentric(points[i], corners))
            torch.testing.assert_close((points[i] - nearest).norm(dim=-1), expected)
            assert among[i, found[i]].all()
        nothing = closest_faces(points, vertices, faces, among=torch.zeros_like(among), backend=backend)
        assert (nothing == 0).all()


def smallest_distance(points, vertices, faces):
    """To all triangles, one after the other, without any search."""
    distances = []
    for face in faces:
        triangle = vertices[:, face][:, None].expand(*points.shape[:2], 3, 3)
        distances.append((points - interpolate(triangle, closest_barycentric(points, triangle))).norm(dim=-1))
    return torch.stack(distances).amin(0)


class TestDerivatives:
    @on_backends
    def test_to_second_order(self, backend):
        vertices = random(5, 3)
        faces = torch.tensor([[0, 1, 2], [0, 2, 3], [2, 3, 4]])
        points = 1.5 * random(2, 2, 3, seed=1)
        inputs = (points.requires_grad_(), vertices.requires_grad_())

        def values(p, v):
            found = closest_points(p, v, faces, backend=backend)
            return found.distance, found.point

        assert torch.autograd.gradcheck(values, inputs)
        assert torch.autograd.gradgradcheck(values, inputs)

    def test_the_gradient_points_away_from_the_mesh(self, mannequin_asset):
        vertices, faces = surface_of(mannequin_asset)
        points = near_surface(vertices, faces, 50, 0.05).requires_grad_()
        found = closest_points(points, vertices, faces)
        (gradient,) = torch.autograd.grad(found.distance.sum(), points)
        away = torch.nn.functional.normalize(points - found.point, dim=-1)
        torch.testing.assert_close(gradient, away.detach(), rtol=0, atol=1e-10)

    def test_function_transforms(self):
        vertices, faces = icosphere(0)
        points = random(4, 5, 3)
        total = lambda p, v: closest_points(p, v, faces).distance.sum()  # noqa: E731
        expected = closest_points(points, vertices, faces).distance.sum(-1)
        for in_dims, mesh in (((0, None), vertices), ((0, 0), vertices.expand(4, -1, -1))):
            torch.testing.assert_close(torch.func.vmap(total, in_dims=in_dims)(points, mesh), expected)
        gradient = torch.func.grad(total)(points[0], vertices)
        leaf = points[0].clone().requires_grad_()
        total(leaf, vertices).backward()
        torch.testing.assert_close(gradient, leaf.grad)
        tangent = random(5, 3, seed=4)
        _, slope = torch.func.jvp(lambda p: total(p, vertices), (points[0],), (tangent,))
        torch.testing.assert_close(slope, (gradient * tangent).sum())
        with pytest.raises(ValueError, match="vmap over faces"):
            torch.func.vmap(lambda f: visible_vertices(vertices, f, points[0, 0]))(faces.expand(2, -1, -1))

    @on_backends
    @pytest.mark.parametrize("name", ["closest_triangles", "clear_sights"])
    def test_operators(self, name, backend):
        vertices, faces = icosphere(0)
        mesh = vertices.expand(2, -1, -1).contiguous()
        given_ = {
            "closest_triangles": (random(2, 5, 3), mesh[:, faces], backend),
            "clear_sights": (mesh, faces, random(2, 3), backend),
        }
        torch.library.opcheck(getattr(torch.ops.agebody, name).default, given_[name])


class TestNearestPoints:
    @on_backends
    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
    def test_as_cdist_finds_them(self, backend, dtype):
        points, cloud = random(2, 40, 3, dtype=dtype), random(2, 300, 3, seed=1, dtype=dtype)
        found = nearest_points(points, cloud, backend=backend)
        assert torch.equal(found, torch.cdist(points.double(), cloud.double()).argmin(-1))

    @on_backends
    def test_entries_of_weight_0_do_not_count(self, backend):
        points, cloud = random(3, 10, 3), random(3, 50, 3, seed=1)
        weights = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) * (torch.arange(50) % 3 > 0)
        weights[2] = 0
        hidden = torch.where((weights == 0)[..., None], math.nan, cloud)
        found = nearest_points(points, hidden, weights=weights, backend=backend)
        away = torch.cdist(points, cloud).masked_fill((weights == 0)[:, None], math.inf)
        assert torch.equal(found[:2], away[:2].argmin(-1))
        assert (found[2] == 0).all()

    @on_backends
    def test_many_points_at_one_place(self, backend):
        """Scans mark what they did not see by zeros: a tree must not grow deep over them."""
        cloud = torch.cat((torch.zeros(3000, 3, dtype=DOUBLE), random(5, 3) + 5))
        found = nearest_points(torch.cat((random(20, 3), cloud[-5:])), cloud, backend=backend)
        assert (found[:20] < 3000).all()
        assert found[20:].tolist() == list(range(3000, 3005))


class TestVisibility:
    @on_backends
    @pytest.mark.parametrize("distance", [1.5, 3.0, 100.0])
    def test_of_a_sphere(self, backend, distance):
        """A point x of the unit ball is seen from e where x . e > 1."""
        vertices, faces = icosphere(3)
        eye = distance * torch.nn.functional.normalize(random(3), dim=-1)
        seen = visible_vertices(vertices, faces, eye, backend=backend)
        product = vertices @ eye / distance
        edge = 0.15  # a triangle reaches that far around the horizon
        assert seen[product > 1 / distance + edge].all()
        assert not seen[product < 1 / distance - edge].any()
        assert 0 < seen.sum() < len(vertices)

    @on_backends
    def test_surfaces_in_front_occlude(self, backend):
        sphere, faces = icosphere(2)
        behind = 0.5 * sphere + torch.tensor([0.0, 0, 4])
        beside = sphere + torch.tensor([10.0, 0, 4])
        vertices = torch.cat((sphere, behind, beside))
        all_faces = torch.cat([faces + i * len(sphere) for i in range(3)])
        seen = visible_vertices(
            vertices, all_faces, torch.tensor([0.0, 0, -5], dtype=DOUBLE), backend=backend
        )
        first, second, third = seen.unflatten(0, (3, -1)).any(-1).tolist()
        assert (first, second, third) == (True, False, True)

    @pytest.mark.skipif(not has_warp(), reason="needs Warp")
    def test_both_searches_agree(self, mannequin_asset):
        vertices, faces = surface_of(mannequin_asset)
        few = closest_faces(vertices.new_tensor([[0.4, 0.3, 0.1]]), vertices, faces)  # any part will do
        near = (vertices - vertices[faces[few[0], 0]]).norm(dim=-1) < 0.2
        kept = faces[near[faces].all(-1)]
        eyes = torch.tensor([[0.0, 0, 3], [1, 2, 0.5]], dtype=DOUBLE)
        by_warp = visible_vertices(vertices, kept, eyes, backend="warp")
        by_torch = visible_vertices(vertices, kept, eyes, backend="torch")
        assert torch.equal(by_warp, by_torch)
        assert by_warp[0].any()
        assert not torch.equal(by_warp[0], by_warp[1])

    @on_backends
    def test_as_trimesh_casts_rays(self, mannequin_asset, backend):
        vertices, faces = surface_of(mannequin_asset)
        body = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)
        head = vertices[:, 1] > 0.5  # which is small enough for torch
        body.update_faces(head[faces].all(-1).numpy())
        body.remove_unreferenced_vertices()
        vertices, faces = torch.tensor(body.vertices), torch.tensor(body.faces)
        eye = torch.tensor([0.3, 0.6, 2.0], dtype=DOUBLE)
        seen = visible_vertices(vertices, faces, eye, backend=backend)
        ways = eye - vertices
        starts = vertices + 1e-4 * ways / ways.norm(dim=-1, keepdim=True)
        free = ~torch.from_numpy(body.ray.intersects_any(starts.numpy(), ways.numpy()))
        facing = (torch.tensor(body.vertex_normals) * ways).sum(-1) / ways.norm(dim=-1)
        clear = facing.abs() > 0.3  # at the horizon the two rules differ
        expected = (facing > 0) & free
        assert (seen == expected)[clear].double().mean() > 0.995  # rays that graze

    @on_backends
    def test_batches(self, backend):
        vertices, faces = icosphere(1)
        eyes = 3 * torch.nn.functional.normalize(random(2, 3, 3), dim=-1)
        seen = visible_vertices(vertices, faces, eyes, backend=backend)
        assert seen.shape == (2, 3, len(vertices))
        assert torch.equal(seen[1, 2], visible_vertices(vertices, faces, eyes[1, 2], backend=backend))


@pytest.mark.skipif(not has_warp(), reason="needs Warp")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
def test_device_kernels_equal_torch(mannequin_asset, device, dtype):
    vertices, faces = surface_of(mannequin_asset, dtype)
    points = torch.stack([near_surface(vertices, faces, 200, 0.05, seed).to(dtype) for seed in (0, 1)])
    expected = closest_points(points, vertices, faces, backend="torch").distance
    moved = [tensor.to(device) for tensor in (points, vertices, faces)]
    found = closest_points(*moved, backend="warp")
    assert found.distance.device.type == device
    torch.testing.assert_close(found.distance.cpu(), expected, rtol=0, atol=1e-6)
    eye = torch.tensor([0.3, 0.2, 3.0], dtype=dtype)
    seen = visible_vertices(moved[1], moved[2], eye.to(device), backend="warp").cpu()
    # Rays that graze an edge may be decided either way.
    assert (seen != visible_vertices(vertices, faces, eye, backend="torch")).float().mean() < 1e-3


@pytest.mark.parametrize("setting", ["high", "mkldnn"])
def test_the_torch_searches_are_exact_where_products_may_be_rounded(mannequin_asset, monkeypatch, setting):
    """Products keep 10 bits, as with TF32 on a GPU; head and feet are far from where both centre a mesh."""
    vertices, faces = surface_of(mannequin_asset, torch.float32)
    kept = faces[vertices[faces].mean(1)[:, 1].abs() > 0.8]
    points = near_surface(vertices, kept, 50, 1e-3)
    eye = torch.tensor([[0.3, 0.2, 3.0]])
    multiply, rounded = torch.addmm, []

    def find():
        nearest = closest_faces(points, vertices, kept, backend="torch")[0]
        return nearest, visible_vertices(vertices, kept, eye, backend="torch")

    def coarse(base, *factors):
        rounded.append(base.shape)
        return multiply(
            base, *(((f.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for f in factors)
        )

    expected = find()
    monkeypatch.setattr(torch, "addmm", coarse)
    before = torch.get_float32_matmul_precision()
    try:
        if setting == "high":
            torch.set_float32_matmul_precision("high")
        elif hasattr(torch.backends.mkldnn, "matmul"):
            torch.backends.mkldnn.matmul.fp32_precision = "tf32"
        else:
            pytest.skip("this torch has one setting for all devices")
        found = find()
    finally:
        if hasattr(torch.backends.mkldnn, "matmul"):
            torch.backends.mkldnn.matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision(before)
    assert rounded  # the first guess may be any
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"points": [[0.0, 0, 0]]}, TypeError, "points: expected a torch.Tensor, got list"),
            ({"points": torch.zeros(4, 2)}, ValueError, r"points: expected shape \(\*batch, any, 3\)"),
            ({"vertices": torch.zeros(4, 3).long()}, TypeError, "vertices: expected a floating type"),
            ({"faces": torch.zeros(4, 3)}, TypeError, "faces: expected .* of integers, got torch.float32"),
            ({"faces": torch.zeros(0, 3).long()}, ValueError, r"faces: .* at least one face, got \(0, 3\)"),
            ({"faces": torch.zeros(4).long()}, ValueError, r"faces: expected shape \(F, 3\)"),
            ({"points": torch.zeros(2, 3).double()}, TypeError, "vertices: expected torch.float64"),
            ({"faces": torch.tensor([[0, 1, 4]])}, ValueError, "faces: expected ids from 0 to 3, got 0 to 4"),
            ({"faces": torch.tensor([[0, 1, -1]])}, ValueError, "faces: expected ids from 0 to 3, got -1 to"),
            ({"backend": "cuda"}, ValueError, "backend: expected one of auto, torch, warp, got 'cuda'"),
        ],
    )  # fmt: skip
    def test_name_the_argument(self, unchecked, changes, error, message):
        arguments = {
            "points": torch.zeros(2, 3),
            "vertices": torch.zeros(4, 3),
            "faces": torch.zeros(1, 3).long(),
        }
        arguments |= changes
        backend = arguments.pop("backend", "auto")
        with pytest.raises(error, match=message):
            closest_points(**arguments, backend=backend)

    def test_an_empty_cloud(self):
        with pytest.raises(ValueError, match="cloud: expected at least one point, got none"):
            nearest_points(torch.zeros(2, 3), torch.zeros(0, 3))

    def test_without_warp(self, monkeypatch):
        vertices, faces = icosphere(0)
        monkeypatch.setattr("agebody.engine.backend.has_warp", lambda: False)
        monkeypatch.setattr(proximity, "load_kernels", lambda: pytest.fail("not to be loaded"))
        assert closest_faces(random(3, 3), vertices, faces).shape == (3,)
        with pytest.raises(ImportError, match="warp-lang is not installed"):
            closest_faces(random(3, 3), vertices, faces, backend="warp")
