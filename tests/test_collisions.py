"""Triangles that meet, winding numbers, depths of penetration: against exact arithmetic and known solids."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import trimesh
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st

import agebody
from agebody.engine.backend import has_warp
from agebody.mesh import collisions, contains, find_collisions, penetration
from agebody.mesh.closest import order_faces
from agebody.mesh.collisions import Exclusions
from agebody.mesh.penetrations import find_penetrations, offsets, winding_number
from agebody.mesh.search import triangles_meet
from agebody.people import pose

DOUBLE = torch.float64
SEARCHES = ["torch", pytest.param("warp", marks=pytest.mark.skipif(not has_warp(), reason="needs Warp"))]
in_both = pytest.mark.parametrize("backend", SEARCHES)
in_dtypes = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])


def sphere(subdivisions=3, radius=1.0, center=(0.0, 0.0, 0.0)):
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    return torch.from_numpy(mesh.vertices + np.array(center)), torch.from_numpy(mesh.faces)


def box(divisions=2):
    """[-1, 1]^3 with vertices inside its sides."""
    mesh = trimesh.creation.box((2.0, 2.0, 2.0))
    for _ in range(divisions):
        mesh = mesh.subdivide()
    return torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces))


def together(*meshes):
    """Several meshes as one."""
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    faces = [faces + start for (_, faces), start in zip(meshes, starts, strict=False)]
    return torch.cat([vertices for vertices, _ in meshes]), torch.cat(faces)


def rotation(seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return torch.from_numpy(q * np.sign(np.linalg.det(q)))


def found_pairs(found):
    return {tuple(pair) for pair in found.pairs.reshape(-1, 2).tolist()} - {(-1, -1)}


@pytest.fixture(scope="module")
def bodies(mannequin_asset):
    """Of the mannequin: standing, and with a hand in its hip."""
    body = agebody.SMPLA(mannequin_asset)
    poses = [pose(name, mannequin_asset.joint_names) for name in ("standing", "hand on hip")]
    poses = torch.from_numpy(np.stack(poses)).float()
    return body(global_orient=poses[:, 0], body_pose=poses[:, 1:]).vertices, body.faces


class TestTriangles:
    @staticmethod
    def exactly(first, second):
        """By rational numbers: where an edge meets the plane of the other, and whether that is inside it."""

        def minus(p, q):
            return [x - y for x, y in zip(p, q, strict=True)]

        def cross(p, q):
            return [p[i - 2] * q[i - 1] - p[i - 1] * q[i - 2] for i in range(3)]

        def dot(p, q):
            return sum(x * y for x, y in zip(p, q, strict=True))

        for edges, (a, b, c) in ((first, second), (second, first)):
            normal = cross(minus(b, a), minus(c, a))
            for i in range(3):
                p, q = edges[i], edges[(i + 1) % 3]
                above, below = dot(normal, minus(p, a)), dot(normal, minus(q, a))
                if above * below >= 0:
                    continue
                share = Fraction(above) / (above - below)
                foot = [x + share * (y - x) for x, y in zip(p, q, strict=True)]
                sides = [dot(normal, cross(minus(e, s), minus(foot, s))) for s, e in ((a, b), (b, c), (c, a))]
                if min(sides) >= 0:
                    return True
        return False

    @settings(max_examples=120)
    @given(st.lists(st.integers(-3, 3), min_size=18, max_size=18))
    def test_against_rational_numbers(self, numbers):
        """Small integers, for which float64 is exact, and which touch, coincide and degenerate often."""
        corners = np.array(numbers).reshape(2, 3, 3)
        first, second = torch.from_numpy(corners.astype(float))
        assert triangles_meet(first, second).item() == self.exactly(*corners.tolist())

    def test_touching_and_coplanar_do_not_meet(self):
        flat = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 2, 0]])
        assert not triangles_meet(flat, flat + torch.tensor([0.3, 0.3, 0]))
        assert not triangles_meet(flat, torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 1], [1, 0.5, 1]]))
        assert triangles_meet(flat, torch.tensor([[0.5, 0.5, -0.1], [0.5, 0.5, 1], [1, 0.5, 1]]))

    def test_any_batch_and_nan(self):
        first, second = torch.randn(2, 4, 3, 3), torch.randn(4, 3, 3)
        assert triangles_meet(first, second.expand(2, 4, 3, 3)).shape == (2, 4)
        assert triangles_meet(first[0, 0], second[0]).shape == ()
        assert not triangles_meet(first[0, 0] * torch.nan, first[0, 0])


class TestCollisions:
    @in_both
    @in_dtypes
    @settings(max_examples=5, database=None)
    @given(data=st.data())
    def test_soups_against_all_pairs(self, backend, dtype, data):
        batch = data.draw(st.sampled_from([(), (2,), (2, 1)]))
        num_vertices, num_faces = data.draw(st.integers(3, 40)), data.draw(st.integers(1, 90))
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        vertices = torch.from_numpy(rng.standard_normal((*batch, num_vertices, 3))).to(dtype)
        faces = torch.from_numpy(rng.integers(0, num_vertices, (num_faces, 3)))
        found = find_collisions(vertices, faces, backend=backend)
        for body, pairs, count in zip(
            vertices.reshape(-1, num_vertices, 3),
            found.pairs.reshape(math.prod(batch), -1, 2),
            found.num_pairs.reshape(-1),
            strict=True,
        ):
            triangles = body[faces]
            meet = triangles_meet(
                triangles[:, None].expand(-1, num_faces, 3, 3), triangles.expand(num_faces, -1, 3, 3)
            )
            shared = (faces[:, None, :, None] == faces[None, :, None, :]).flatten(2).any(-1)
            expected = (meet & ~shared).triu(1).nonzero()
            assert count == len(expected)
            assert torch.equal(pairs[:count], expected)
            assert (pairs[count:] == -1).all()

    @in_both
    def test_spheres_meet_along_a_circle(self, backend):
        distance = 1.2
        vertices, faces = together(sphere(), sphere(center=(distance, 0, 0)))
        pairs = find_collisions(vertices, faces, backend=backend).pairs
        half = len(faces) // 2
        assert (pairs[:, 0] < half).all()
        assert (pairs[:, 1] >= half).all()
        triangles = vertices[faces[pairs]]
        middle = triangles.mean((1, 2))
        largest = (triangles - triangles.mean(-2, keepdim=True)).norm(dim=-1).max()
        circle = math.sqrt(1 - distance**2 / 4)
        assert (middle[:, 0] - distance / 2).abs().max() < largest
        assert (middle[:, 1:].norm(dim=-1) - circle).abs().max() < largest
        around = torch.atan2(middle[:, 1], middle[:, 2]).sort().values.diff()
        assert around.max() < 2 * largest / circle  # all the way round

    @in_both
    def test_apart_or_one_in_the_other_none_meet(self, backend):
        for other in (sphere(center=(2.1, 0, 0)), sphere(radius=0.5)):
            vertices, faces = together(sphere(), other)
            found = find_collisions(vertices, faces, backend=backend)
            assert found.pairs.shape == (0, 2)
            assert found.num_pairs == 0

    @in_both
    def test_rigid_motion(self, backend):
        vertices, faces = together(sphere(2), sphere(2, center=(1.1, 0.3, 0.2)))
        moved = vertices @ rotation().T + torch.tensor([3.0, -2.0, 5.0], dtype=DOUBLE)
        found, again = (find_collisions(v, faces, backend=backend) for v in (vertices, moved))
        assert torch.equal(found.pairs, again.pairs)
        assert found.num_pairs > 0

    @pytest.mark.skipif(not has_warp(), reason="needs Warp")
    @pytest.mark.parametrize("device", DEVICES)
    def test_both_searches_on_bodies(self, bodies, device):
        vertices, faces = bodies[0].to(device), bodies[1].to(device)
        expected = find_collisions(vertices, faces, backend="torch")
        found = find_collisions(vertices, faces, backend="warp")
        assert torch.equal(found.pairs, expected.pairs)
        assert torch.equal(found.num_pairs, expected.num_pairs)
        assert found.num_pairs.tolist() == [28, 142]

    @in_both
    def test_room(self, backend, monkeypatch):
        meshes = together(sphere(2), sphere(2, center=(1.1, 0, 0)))
        vertices = torch.stack([meshes[0], meshes[0] * torch.linspace(1, 1.3, len(meshes[0]))[:, None]])
        found = find_collisions(vertices, meshes[1], backend=backend)
        most = int(found.num_pairs.max())
        assert found.pairs.shape == (2, most, 2)
        monkeypatch.setattr(collisions, "CAPACITY", 3)
        assert torch.equal(find_collisions(vertices, meshes[1], backend=backend).pairs, found.pairs)
        wide = find_collisions(vertices, meshes[1], max_collisions=most + 5, backend=backend).pairs
        assert torch.equal(wide[:, :most], found.pairs)
        assert (wide[:, most:] == -1).all()
        with pytest.raises(RuntimeError, match=f"at most {most - 1} pairs .* got {most} in body ."):
            find_collisions(vertices, meshes[1], max_collisions=most - 1, backend=backend)

    @in_both
    def test_nonfinite_surfaces_collide_with_nothing(self, backend):
        vertices, faces = together(sphere(2), sphere(2, center=(1.1, 0, 0)))
        vertices[len(vertices) // 2 :] = torch.nan
        assert find_collisions(vertices, faces, backend=backend).num_pairs == 0

    def test_empty(self):
        faces = torch.zeros(0, 3, dtype=torch.int64)
        assert find_collisions(torch.zeros(5, 3), faces).pairs.shape == (0, 2)
        assert find_collisions(torch.zeros(0, 5, 3), faces).pairs.shape == (0, 0, 2)
        assert find_collisions(torch.zeros(0, 5, 3), torch.tensor([[0, 1, 2]])).num_pairs.shape == (0,)

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        vertices, faces = sphere(1)
        with pytest.raises(TypeError, match="vertices: expected a floating type"):
            find_collisions(faces, faces)
        with pytest.raises(ValueError, match=r"vertices: expected shape \(\*batch, any, 3\), got \(42, 2\)"):
            find_collisions(vertices[:, :2], faces)
        with pytest.raises(TypeError, match=r"faces: expected a torch.Tensor of integers, got torch.float64"):
            find_collisions(vertices, faces.double())
        with pytest.raises(TypeError, match=r"faces: expected a torch.Tensor of integers, got ndarray"):
            find_collisions(vertices, faces.numpy())
        with pytest.raises(ValueError, match=r"faces: expected shape \(F, 3\), got \(80, 2\)"):
            find_collisions(vertices, faces[:, :2])
        with pytest.raises(ValueError, match="faces: expected ids from 0 to 40, got 0 to 41"):
            find_collisions(vertices[:-1], faces)
        with pytest.raises(ValueError, match="exclude: expected exclusions of 80 faces, got 7"):
            find_collisions(vertices, faces, exclude=Exclusions.of_pairs(faces[:0, :2], 7))
        with pytest.raises(ValueError, match="max_collisions: expected a whole number of 0 or more, got -1"):
            find_collisions(vertices, faces, max_collisions=-1)
        with pytest.raises(TypeError, match="exclude: expected Exclusions, got list"):
            find_collisions(vertices, faces, exclude=[(0, 1)])
        with pytest.raises(ValueError, match="backend: expected one of"):
            find_collisions(vertices, faces, backend="cuda")


class TestExclusions:
    @in_both
    def test_pairs_and_parts(self, backend):
        vertices, faces = together(sphere(2), sphere(2, center=(1.1, 0, 0)), sphere(2, center=(0.5, 1, 0)))
        part = torch.arange(3).repeat_interleave(len(faces) // 3)
        every = find_collisions(vertices, faces, backend=backend)
        some = every.pairs[::3]
        fewer = Exclusions.of_pairs(some.flip(-1), len(faces))
        left = find_collisions(vertices, faces, exclude=fewer, backend=backend)
        assert found_pairs(left) == found_pairs(every) - {tuple(pair) for pair in some.tolist()}
        related = torch.eye(3, dtype=torch.bool)
        related[0, 2] = related[2, 0] = True
        kept = Exclusions.of_parts(part, related)
        left = find_collisions(vertices, faces, exclude=kept, backend=backend)
        expected = {(i, j) for i, j in found_pairs(every) if not related[part[i], part[j]]}
        assert 0 < len(expected) < every.num_pairs
        assert found_pairs(left) == expected
        none = find_collisions(vertices, faces, exclude=kept.and_pairs(left.pairs), backend=backend)
        assert none.num_pairs == 0

    def test_padding_forms_no_pairs(self):
        found = Exclusions.of_pairs(torch.tensor([[[0, 3], [-1, -1]], [[3, 0], [1, 2]]]), 4)
        assert found.keys.tolist() == [3, 6]

    @pytest.mark.parametrize("body", ["mannequin_asset", "anny_asset"])
    def test_rest_poses_have_no_collision(self, body, request):
        asset = request.getfixturevalue(body)
        exclude = Exclusions.of_body(asset)
        shapes = np.stack([asset.template, *asset.age_templates])
        faces = torch.from_numpy(np.array(asset.faces))
        found = find_collisions(torch.from_numpy(shapes), faces, exclude=exclude)
        assert found.num_pairs.tolist() == [0] * len(shapes)

    def test_of_a_body(self, mannequin_asset, bodies):
        standing, hand_in_hip = bodies[0]
        exclude = Exclusions.of_body(mannequin_asset)
        assert find_collisions(standing, bodies[1], exclude=exclude).num_pairs == 0
        pairs = find_collisions(hand_in_hip, bodies[1], exclude=exclude).pairs
        names = {
            tuple(sorted(mannequin_asset.joint_names[int(exclude.parts[face])] for face in pair))
            for pair in pairs
        }
        assert names
        assert all(one.startswith("left_") and one != "left_hip" for one, _ in names)  # hand or wrist
        assert all("hip" in other or other == "pelvis" or "spine" in other for _, other in names)

    def test_distance_in_the_tree(self, mannequin_asset):
        names = mannequin_asset.joint_names
        shoulder, elbow, wrist = (names.index(f"left_{name}") for name in ("shoulder", "elbow", "wrist"))
        near, far = (
            Exclusions.of_body(mannequin_asset, within=within, touching=(), rest=False).related
            for within in (1, 2)
        )
        assert near[shoulder, shoulder]
        assert near[shoulder, elbow]
        assert not near[shoulder, wrist]
        assert far[shoulder, wrist]
        hips = (names.index("left_hip"), names.index("right_hip"))
        assert not near[hips]
        assert Exclusions.of_body(mannequin_asset, rest=False).related[hips]

    def test_collisions_in_the_rest_pose(self, mannequin_asset, bodies):
        """A body that was scanned with a hand in its hip."""
        vertices, faces = bodies[0][1], bodies[1]
        asset = mannequin_asset.replace(
            template=vertices.numpy(), age_templates=None, age_offsets=np.zeros(0)
        )
        alone, known = (Exclusions.of_body(asset, rest=rest) for rest in (False, True))
        meet = find_collisions(vertices, faces, exclude=alone)
        assert len(alone.keys) == 0
        assert len(known.keys) == meet.num_pairs > 0
        assert find_collisions(vertices, faces, exclude=known).num_pairs == 0

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        parts, related = torch.tensor([0, 1, 2]), torch.eye(3, dtype=torch.bool)
        with pytest.raises(ValueError, match="parts: expected ids from 0 to 1, got 0 to 2"):
            Exclusions.of_parts(parts, related[:2, :2])
        with pytest.raises(ValueError, match=r"related: expected a symmetric table"):
            Exclusions.of_parts(parts, related.roll(1, 0))
        with pytest.raises(TypeError, match="related: expected booleans, got torch.int64"):
            Exclusions.of_parts(parts, related.long())
        with pytest.raises(TypeError, match="parts: expected a torch.Tensor of integers, got torch.float32"):
            Exclusions.of_parts(parts.float(), related)
        with pytest.raises(ValueError, match=r"pairs: expected shape \(\*batch, 2\), got \(3,\)"):
            Exclusions.of_pairs(parts, 3)
        with pytest.raises(ValueError, match="pairs: expected ids from 0 to 1, got 1 to 2"):
            Exclusions.of_pairs(parts[1:], 2)


class TestWindingNumber:
    @in_both
    @in_dtypes
    def test_of_solids(self, backend, dtype):
        """1 inside and 0 outside, as far away and as near to the surface as the type can tell."""
        vertices, faces = (t.to(dtype) if t.is_floating_point() else t for t in sphere())
        eps = torch.finfo(dtype).eps
        middles = vertices[faces].mean(1)
        normals = middles / middles.norm(dim=-1, keepdim=True)
        near = 1e4 * eps
        number = winding_number(
            torch.cat([middles - near * normals, middles + near * normals]), vertices, faces, backend=backend
        )
        # Within that of one triangle, its angle errs by eps / near; the others' errors are roundings.
        torch.testing.assert_close(
            number[: len(faces)], torch.ones_like(number[: len(faces)]), rtol=0, atol=2e-3
        )
        torch.testing.assert_close(
            number[len(faces) :], torch.zeros_like(number[len(faces) :]), rtol=0, atol=2e-3
        )
        away = torch.tensor([[0.0, 0, 0], [5, 1, 2], [1e3, -1e3, 2e3], [-1e6, 1e6, 0]], dtype=dtype)
        expected = torch.tensor([1.0, 0, 0, 0], dtype=dtype)
        number = winding_number(away, vertices, faces, backend=backend)
        torch.testing.assert_close(number, expected, rtol=0, atol=len(faces) * eps)

    @in_both
    def test_orientation_and_layers(self, backend):
        ball, inner, faces = sphere(2)[0], sphere(2, 0.5)[0], sphere(2)[1]
        points = torch.tensor([[0.1, 0.2, 0.0], [0.7, 0.0, 0.1]], dtype=DOUBLE)
        for meshes, expected in (
            ([(ball, faces.flip(-1))], [-1.0, -1.0]),
            ([(ball, faces), (inner, faces)], [2.0, 1.0]),
            ([(ball, faces), (inner, faces.flip(-1))], [0.0, 1.0]),
        ):
            number = winding_number(points, *together(*meshes), backend=backend)
            torch.testing.assert_close(number, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-12)

    @in_both
    def test_open_meshes(self, backend):
        """A rectangle 2 a x 2 b from a height h: 4 asin(a b / sqrt((a^2 + h^2) (b^2 + h^2)))."""
        a, b = 0.8, 0.3
        vertices = torch.tensor([[-a, -b, 0], [a, -b, 0], [a, b, 0], [-a, b, 0]], dtype=DOUBLE)
        faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
        height = torch.tensor([1e-3, 0.1, 0.5, 2.0, 30.0], dtype=DOUBLE)
        points = torch.stack([0 * height, 0 * height, -height], -1)
        angle = 4 * torch.asin(a * b / torch.sqrt((a * a + height**2) * (b * b + height**2)))
        number = winding_number(points, vertices, faces, backend=backend)
        torch.testing.assert_close(number, angle / (4 * torch.pi), rtol=1e-12, atol=0)
        above = winding_number(-points, vertices, faces, backend=backend)
        torch.testing.assert_close(above, -number, rtol=1e-12, atol=0)

    @in_both
    def test_batch_and_motion(self, backend):
        torch.manual_seed(0)
        vertices, faces = sphere(1)
        faces = faces[:50]  # with a hole
        meshes = vertices * torch.rand(2, 3, 1, 3, dtype=DOUBLE)
        points = torch.randn(2, 3, 7, 3, dtype=DOUBLE)
        number = winding_number(points, meshes, faces, backend=backend)
        for i, j in np.ndindex(2, 3):
            alone = winding_number(points[i, j], meshes[i, j], faces, backend=backend)
            torch.testing.assert_close(number[i, j], alone, rtol=0, atol=1e-14)
        turn, shift = rotation(), torch.tensor([1.0, 2.0, -3.0], dtype=DOUBLE)
        moved = winding_number(
            3 * points @ turn.T + shift, 3 * meshes @ turn.T + shift, faces, backend=backend
        )
        torch.testing.assert_close(moved, number, rtol=0, atol=1e-12)
        assert winding_number(points[0, 0, :0], meshes[0, 0], faces, backend=backend).shape == (0,)

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        vertices, faces = sphere(0)
        with pytest.raises(TypeError, match="points: expected torch.float64, that of vertices, got"):
            winding_number(vertices.float(), vertices, faces)
        with pytest.raises(ValueError, match=r"points: expected the batch of the vertices, \(\), got \(2,\)"):
            winding_number(vertices.expand(2, -1, -1), vertices, faces)
        with pytest.raises(ValueError, match=r"points: expected shape \(\*batch, any, 3\)"):
            contains(vertices, faces, vertices[0])


class TestContains:
    def points(self, vertices, count):
        """Near the surface and all around."""
        generator = torch.Generator().manual_seed(0)
        base = vertices[torch.randint(len(vertices), (count,), generator=generator)]
        scale = torch.tensor([0.004, 0.03, 0.2]).to(base)[torch.arange(count) % 3, None]
        return base + scale * torch.randn(count, 3, generator=generator).to(base)

    @in_both
    def test_bodies_against_rays(self, bodies, backend):
        """Of trimesh, which counts crossings; standing, the mannequin is nowhere inside itself twice."""
        pytest.importorskip("embreex")
        body, faces = bodies[0][0], bodies[1]
        points = self.points(body, 300)
        mesh = trimesh.Trimesh(body.numpy(), faces.numpy(), process=False)
        expected = torch.from_numpy(mesh.contains(points.numpy()))
        assert 0.2 < expected.double().mean() < 0.8
        assert torch.equal(contains(body, faces, points, backend=backend), expected)

    @in_both
    @pytest.mark.parametrize("body", ["mannequin_asset", "anny_asset"])
    def test_is_a_winding_number_above_one_half(self, body, request, backend):
        asset = request.getfixturevalue(body)
        vertices = torch.from_numpy(np.array(asset.template)).double()
        faces = torch.from_numpy(np.array(asset.faces))
        points = self.points(vertices, 60)
        inside = contains(vertices, faces, points, backend=backend)
        assert torch.equal(inside, winding_number(points, vertices, faces) > 0.5)

    @in_both
    def test_a_lone_triangle_holds_nothing(self, backend):
        """From nowhere it is more than half of what one sees; a tree that counted it twice would say so."""
        triangle = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
        points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
        assert winding_number(points, triangle, torch.tensor([[0, 1, 2]])).max() > 0.3
        assert not contains(triangle, torch.tensor([[0, 1, 2]]), points, backend=backend).any()

    @in_both
    @pytest.mark.parametrize("axis", range(3))
    def test_open_mesh(self, backend, axis):
        """A slim egg without its top. What is further from 1/2 than far triangles err is sure."""
        vertices, faces = sphere(4)
        faces = faces[vertices[faces].mean(1)[:, 2] < 0.2]
        around = 2.2 * torch.rand(400, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) - 1.1
        scale = torch.tensor([1.0, 0.5, 2.0], dtype=DOUBLE)
        vertices, points = ((scale * x).roll(axis, -1) for x in (vertices, around))
        number = winding_number(points, vertices, faces)
        used = vertices[faces.unique()]
        boxed = ((points >= used.amin(0)) & (points <= used.amax(0))).all(-1)
        sure = (number - 0.5).abs() > 0.08
        assert ((number > 0.58) & (number < 0.8)).sum() > 5
        assert ((number > 0.2) & (number < 0.42)).sum() > 5
        inside = contains(vertices, faces, points, backend=backend)
        assert torch.equal(inside[sure], ((number > 0.5) & boxed)[sure])

    @in_both
    def test_batch(self, backend):
        vertices, faces = sphere(2)
        meshes = vertices * torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)[:, None, None]
        points = torch.tensor([[0.0, 0.5, 0], [1.5, 0, 0], [0, 0, 2.5], [9.0, 0, 0]], dtype=DOUBLE)
        inside = contains(meshes, faces, points.expand(3, -1, -1), backend=backend)
        assert inside.tolist() == [
            [True, False, False, False],
            [True, True, False, False],
            [True] * 3 + [False],
        ]


class TestPenetration:
    @in_both
    @in_dtypes
    def test_of_boxes(self, backend, dtype):
        """Inside a box, the surface is as far as the nearest of its sides."""
        vertices, faces = box()
        shift = torch.tensor([1.3, 0.23, -0.37], dtype=DOUBLE)
        people = torch.stack([vertices, vertices * 0.9 + shift]).to(dtype)
        found = penetration(people, faces, backend=backend)
        exact = torch.zeros(2, 2, len(vertices), dtype=dtype)
        exact[0, 1] = (0.9 - (people[0] - shift.to(dtype)).abs()).amin(-1)
        exact[1, 0] = (1 - people[1].abs()).amin(-1)
        inside = exact > 1e-6
        assert torch.equal(found.inside, inside)
        assert inside[0, 1].sum() >= 5
        assert inside[1, 0].sum() >= 5
        expected = torch.where(inside, exact, 0)
        torch.testing.assert_close(found.depth, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)
        assert torch.equal(found.face >= 0, inside)
        where = inside.nonzero()
        for i, j, v in where.tolist():
            corners = people[j][faces[found.face[i, j, v]]]
            flat = torch.linalg.cross(corners[1] - corners[0], corners[2] - corners[0])
            height = flat @ (corners[0] - people[i, v]) / flat.norm()
            torch.testing.assert_close(height, expected[i, j, v], rtol=0, atol=8 * torch.finfo(dtype).eps)

    @in_both
    def test_of_spheres(self, backend):
        """Between the depths in the ball around the polyhedron and in the ball within it."""
        vertices, faces = sphere()
        people = torch.stack([vertices, vertices + torch.tensor([1.2, 0.1, 0.3], dtype=DOUBLE)])
        within = vertices[faces].mean(1).norm(dim=-1).min()
        found = penetration(people, faces, backend=backend)
        assert found.depth.diagonal().max() == 0
        for i, j in ((0, 1), (1, 0)):
            middle = people[j].mean(0)
            away = (people[i] - middle).norm(dim=-1)
            inside = found.inside[i, j]
            assert inside.sum() > 50
            assert inside[away < within].all()
            assert not inside[away > 1].any()
            depth = found.depth[i, j][inside]
            assert (depth <= 1 - away[inside]).all()
            assert (depth >= within - away[inside]).all()

    @in_both
    def test_single_entries(self, backend):
        """Images of a batch and pairs of people have nothing to do with one another."""
        vertices, faces = sphere(2)
        generator = torch.Generator().manual_seed(0)
        shifts = torch.rand(2, 2, 3, 1, 3, generator=generator, dtype=DOUBLE) * 1.2
        people = vertices + shifts
        found = penetration(people, faces, backend=backend)
        assert found.inside.flatten(-4).any(-1).sum() > 0
        for image in np.ndindex(2, 2):
            for i, j in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)):
                alone = penetration(people[image][[i, j]], faces, backend=backend)
                for of_all, of_two in zip(found, alone, strict=True):
                    assert torch.equal(of_all[image][i, j], of_two[0, 1])

    @in_both
    def test_weights(self, backend):
        vertices, faces = sphere(2)
        people = vertices + torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)[:, None, None]
        two = penetration(people[::2], faces, backend=backend)
        people[1] = torch.nan
        masked = penetration(people, faces, weights=torch.tensor([0.3, 0.0, 2.0]), backend=backend)
        assert torch.equal(masked.depth[[0, 2]][:, [0, 2]], two.depth)
        assert masked.depth[1].max() == masked.depth[:, 1].max() == 0
        gone = penetration(people, faces, backend=backend)
        assert torch.equal(gone.inside, masked.inside)
        nobody = find_penetrations(people, faces, weights=torch.tensor(False), backend=backend)
        assert len(nobody.face) == 0

    @in_both
    def test_faces_in_order_give_the_same(self, backend):
        """In an order that suits ten people, none of them moved, and one that is not there."""
        vertices, faces = sphere(2)
        people = vertices * torch.linspace(0.5, 1.5, 10, dtype=DOUBLE)[:, None, None] + rotation()[0]
        people[:3, ::7] += 0.3
        ordered = order_faces(people, faces, backend=backend)
        assert torch.equal(ordered.sort(0).values, faces.sort(0).values)
        found = find_penetrations(people, ordered, ordered=True, backend=backend)
        plain = find_penetrations(people, faces, backend=backend)
        assert len(found.face) > 100
        for one, other in zip(found[:4], plain[:4], strict=True):
            assert torch.equal(one, other)
        deep = [offsets(people, f, some).norm(dim=1) for f, some in ((ordered, found), (faces, plain))]
        torch.testing.assert_close(*deep, rtol=0, atol=1e-12)
        assert torch.equal(order_faces(people[:0], faces, backend=backend), faces)

    @in_both
    def test_gradient_leads_out(self, backend):
        """Depths grow by one metre a metre along the inner normal, of the vertex and against the triangle."""
        vertices, faces = box()
        people = torch.stack([vertices, 0.9 * vertices + torch.tensor([1.3, 0.23, -0.37], dtype=DOUBLE)])
        people.requires_grad_()
        found = penetration(people, faces, backend=backend)
        deepest = found.depth[1, 0].argmax()
        (grad,) = torch.autograd.grad(found.depth[1, 0, deepest], people)
        corners = people[0, faces[found.face[1, 0, deepest]]].detach()
        normal = torch.linalg.cross(corners[1] - corners[0], corners[2] - corners[0])
        torch.testing.assert_close(grad[1, deepest], -normal / normal.norm(), rtol=0, atol=1e-12)
        torch.testing.assert_close(grad[0].sum(0), normal / normal.norm(), rtol=0, atol=1e-12)
        assert grad[0].any(-1).nonzero()[:, 0].tolist() == sorted(
            v for v in faces[found.face[1, 0, deepest]].tolist() if grad[0, v].any()
        )

    def test_of_bodies(self, bodies):
        people = torch.stack([bodies[0][0], bodies[0][0] + torch.tensor([0.35, 0.0, 0.02])])
        found = penetration(people, bodies[1])
        assert found.inside[0, 1].sum() > 20
        assert 0.01 < found.depth.max() < 0.15  # half a trunk
        apart = people + torch.tensor([[[0.0, 0, 0]], [[1.0, 0, 0]]])
        assert penetration(apart, bodies[1]).depth.max() == 0

    def test_one_person_and_no_people(self):
        vertices, faces = sphere(1)
        assert penetration(vertices[None], faces).depth.shape == (1, 1, 42)
        assert penetration(vertices[None][:0], faces).depth.shape == (0, 0, 42)
        assert penetration(vertices.expand(0, 2, -1, -1), faces).inside.shape == (0, 2, 2, 42)

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        vertices, faces = sphere(1)
        with pytest.raises(
            ValueError, match=r"vertices: expected shape \(\*batch, any, any, 3\), got \(42, 3\)"
        ):
            penetration(vertices, faces)
        with pytest.raises(
            ValueError, match=r"weights: expected a shape that broadcasts to \(2,\), got \(3,\)"
        ):
            penetration(vertices.expand(2, -1, -1), faces, weights=torch.ones(3))


@pytest.mark.parametrize("name", ["colliding_faces", "winding_numbers", "inside_meshes"])
def test_operators_keep_torchs_rules(name):
    vertices, faces = sphere(1)
    exclude = Exclusions.of_pairs(faces[:0, :2], len(faces))
    each = torch.arange(2)
    two = torch.stack([vertices, vertices + 0.1])
    arguments = {
        "colliding_faces": (two, faces, exclude.parts, exclude.related, exclude.keys, 9, "auto"),
        "winding_numbers": (two, two, faces, "auto"),
        "inside_meshes": (two, two, faces, each, each.flip(0), False, "auto"),
    }
    torch.library.opcheck(
        getattr(torch.ops.agebody, name), arguments[name], test_utils=("test_schema", "test_faketensor")
    )
