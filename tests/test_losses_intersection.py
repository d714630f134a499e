"""Losses of bodies in themselves or one another: values by hand, gradients by differences, descent."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collisions import SEARCHES, box, rotation, sphere, together

import agebody
from agebody.losses import person_intersection_loss, self_intersection_loss
from agebody.losses.intersection import conic_distance_field
from agebody.mesh import Exclusions, find_collisions, penetration
from agebody.people import pose

DOUBLE = torch.float64
in_both = pytest.mark.parametrize("backend", SEARCHES)


def by_hand(point, corners, sigma):
    """The field of Tzionas et al. at one point, with the circle through the corners by trigonometry."""
    a, b, c = corners
    angles = [
        math.acos((q - p) @ (r - p) / np.linalg.norm(q - p) / np.linalg.norm(r - p))
        for p, q, r in ((a, b, c), (b, c, a), (c, a, b))
    ]
    radius = np.linalg.norm(c - b) / (2 * math.sin(angles[0]))
    shares = np.sin(2 * np.array(angles))
    center = shares @ corners / shares.sum()
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    x = normal @ (point - center)
    if x >= sigma:
        return 0.0
    phi = np.linalg.norm(np.cross(point - center, normal)) / (-radius / sigma * x + radius)
    if phi >= 1:
        return 0.0
    if x <= -sigma:
        upsilon = -x + 1 - sigma
    else:
        upsilon = -(1 - 2 * sigma) / (4 * sigma**2) * x**2 - x / (2 * sigma) + (3 - 2 * sigma) / 4
    return abs((1 - phi) * upsilon) ** 2


def two_spheres(distance=1.2, subdivisions=2):
    """One mesh of two, and which vertices are the second's."""
    vertices, faces = together(sphere(subdivisions), sphere(subdivisions, center=(distance, 0.13, 0.07)))
    return vertices, faces, torch.arange(len(vertices)) >= len(vertices) // 2


class TestConicDistanceField:
    @settings(max_examples=40, database=None)
    @given(
        numbers=st.lists(st.floats(-1, 1), min_size=12, max_size=12),
        sigma=st.sampled_from([1e-4, 0.05, 0.5, 0.9]),
    )
    def test_by_hand(self, numbers, sigma):
        numbers = np.array(numbers).reshape(4, 3)
        corners = numbers[:3] + np.eye(3)  # not flat
        area = np.linalg.norm(np.cross(corners[1] - corners[0], corners[2] - corners[0]))
        if area < 1e-2:
            return
        point = corners.mean(0) + 0.5 * numbers[3]
        field = conic_distance_field(torch.from_numpy(point)[None], torch.from_numpy(corners), sigma)
        # Slim triangles have large circles, whose roundings 1 / sigma makes larger.
        assert field.item() == pytest.approx(by_hand(point, corners, sigma), rel=1e-6, abs=1e-9)

    @pytest.mark.parametrize("sigma", [1e-4, 0.1, 0.5])
    def test_on_the_axis(self, sigma):
        """There, Phi is 0: 1 - sigma + depth below, 1 and 0 at sigma below and above, continuous."""
        corners = torch.tensor([[1.0, 0, 0], [-0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0]], dtype=DOUBLE)
        depth = torch.tensor([0.7, 2.0, 1.0, 0.0, -1.0, -1.5], dtype=DOUBLE) * torch.tensor(
            [1.0, *[sigma] * 5], dtype=DOUBLE
        )
        points = torch.stack([0 * depth, 0 * depth, -depth], -1)
        field = conic_distance_field(points, corners, sigma)
        upsilon = [1 - sigma + 0.7, 1 + sigma, 1.0, (3 - 2 * sigma) / 4, 0.0, 0.0]
        torch.testing.assert_close(field, torch.tensor(upsilon, dtype=DOUBLE) ** 2, rtol=1e-12, atol=1e-15)
        edge = torch.tensor([[0.0, 0, -sigma * (1 - 1e-9)], [0.0, 0, sigma * (1 - 1e-9)]], dtype=DOUBLE)
        expected = torch.tensor([1.0, 0.0], dtype=DOUBLE)
        torch.testing.assert_close(conic_distance_field(edge, corners, sigma), expected, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("sigma", [0.05, 0.5])
    def test_gradients(self, sigma):
        torch.manual_seed(1)
        corners = torch.randn(6, 3, 3, dtype=DOUBLE)
        points = corners.mean(1, keepdim=True) + 0.2 * torch.randn(6, 4, 3, dtype=DOUBLE)
        inputs = (points.requires_grad_(), corners.requires_grad_())
        assert (conic_distance_field(*inputs, sigma) > 0).double().mean() > 0.3
        assert torch.autograd.gradcheck(lambda p, c: conic_distance_field(p, c, sigma), inputs)

    def test_flat_triangles_have_no_cone(self):
        corners = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0]], [[1.0, 1, 1]] * 3]).requires_grad_()
        points = torch.zeros(2, 5, 3).requires_grad_()
        field = conic_distance_field(points, corners)
        field.sum().backward()
        assert field.max() == 0
        assert points.grad.abs().max() == corners.grad.abs().max() == 0

    def test_shapes(self):
        assert conic_distance_field(torch.zeros(7, 3), torch.rand(3, 3)).shape == (7,)
        assert conic_distance_field(torch.zeros(7, 3), torch.rand(4, 1, 3, 3)).shape == (4, 1, 7)
        assert conic_distance_field(torch.zeros(2, 0, 3), torch.rand(2, 3, 3)).shape == (2, 0)
        with pytest.raises(ValueError, match="sigma: expected a length above 0, got 0"):
            conic_distance_field(torch.zeros(7, 3), torch.rand(3, 3), 0.0)


class TestSelfIntersection:
    @in_both
    def test_sum_over_pairs(self, backend):
        vertices, faces, _ = two_spheres(subdivisions=1)
        expected = 0.0
        for first, second in vertices[faces[find_collisions(vertices, faces).pairs]].numpy():
            for cone, corners in ((first, second), (second, first)):
                expected += sum(by_hand(corner, cone, 0.2) ** 2 for corner in corners)
        loss = self_intersection_loss(vertices, faces, sigma=0.2, backend=backend)
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        assert expected > 0.1

    @in_both
    def test_apart_is_zero_with_a_gradient(self, backend):
        vertices, faces, _ = two_spheres(distance=2.5)
        loss = self_intersection_loss(vertices.requires_grad_(), faces, backend=backend)
        loss.backward()
        assert loss == 0
        assert vertices.grad.abs().max() == 0

    def test_motion_and_gradient(self):
        vertices, faces, _ = two_spheres()
        moved = vertices @ rotation().T + torch.tensor([3.0, -1.0, 2.0], dtype=DOUBLE)
        loss = self_intersection_loss(vertices.requires_grad_(), faces, sigma=0.01)
        torch.testing.assert_close(self_intersection_loss(moved, faces, sigma=0.01), loss, rtol=1e-8, atol=0)
        (grad,) = torch.autograd.grad(loss, vertices)
        size = grad.abs().sum()
        torch.testing.assert_close(grad.sum(0) / size, torch.zeros(3, dtype=DOUBLE), rtol=0, atol=1e-12)
        turn = torch.linalg.cross(vertices, grad).sum(0) / size
        torch.testing.assert_close(turn, torch.zeros(3, dtype=DOUBLE), rtol=0, atol=1e-12)

    def test_gradient_by_differences(self):
        """While the same pairs meet; of two tetrahedra."""
        vertices, faces = together(sphere(0), sphere(0, center=(1.5, 0.1, 0.2)))
        assert torch.autograd.gradcheck(
            lambda v: self_intersection_loss(v, faces, sigma=0.3),
            (vertices.requires_grad_(),),
            fast_mode=True,
        )

    @in_both
    @pytest.mark.parametrize("sigma", [1e-4, 1e-2])
    def test_descent_separates(self, backend, sigma):
        """One sphere moves as a whole, by steps of 2 cm, the way that it should."""
        vertices, faces, second = two_spheres(distance=1.6)
        shift = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
        losses = []
        for _ in range(40):
            moved = vertices + second[:, None] * shift
            loss = self_intersection_loss(moved, faces, sigma=sigma, backend=backend)
            losses.append(loss.item())
            if loss == 0:
                break
            (grad,) = torch.autograd.grad(loss, shift)
            with torch.no_grad():
                shift -= 0.02 * grad / grad.norm()
        assert losses[0] > 1
        assert losses[-1] == 0
        assert find_collisions(moved, faces).num_pairs == 0
        away = shift.detach() / shift.norm()
        assert away @ torch.tensor([1.6, 0.13, 0.07], dtype=DOUBLE) / 1.61 > 0.95

    def test_a_hand_leaves_the_hip(self, mannequin_asset):
        body = agebody.SMPLA(mannequin_asset)
        exclude = Exclusions.of_body(mannequin_asset)
        angles = torch.from_numpy(pose("hand on hip", mannequin_asset.joint_names)).float().requires_grad_()
        optimizer = torch.optim.Adam([angles], lr=0.01)
        first = angles.detach().clone()
        for _ in range(12):
            vertices = body(global_orient=angles[0], body_pose=angles[1:]).vertices
            loss = self_intersection_loss(vertices, body.faces, exclude=exclude)
            if loss == 0:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss == 0
        moved = (angles.detach() - first).norm(dim=-1)
        assert moved.max() < 0.15

    @in_both
    def test_batches_weights_and_reductions(self, backend):
        vertices, faces, _ = two_spheres(subdivisions=1)
        bodies = torch.stack([vertices, 1.1 * vertices, vertices.roll(1, -1), torch.nan * vertices])[:, None]
        each = torch.stack([self_intersection_loss(body, faces) for body in bodies[:3, 0]])
        weights = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=DOUBLE)[:, None]
        bodies.requires_grad_()
        options = {"weights": weights, "backend": backend}
        terms = self_intersection_loss(bodies, faces, reduction="none", **options)
        assert terms.shape == (4, 1)
        expected = torch.stack([each[0], each[1] / 2, 0 * each[0], 0 * each[0]])[:, None]
        torch.testing.assert_close(terms, expected, rtol=1e-12, atol=0)
        total = self_intersection_loss(bodies, faces, reduction="sum", **options)
        torch.testing.assert_close(total, expected.sum(), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            self_intersection_loss(bodies, faces, **options), expected.sum() / 1.5, rtol=1e-12, atol=0
        )
        (grad,) = torch.autograd.grad(total, bodies)
        assert grad.isfinite().all()
        assert grad[2:].abs().max() == 0
        assert grad[:2].abs().amax((1, 2, 3)).min() > 0

    def test_nan_vertices_give_nan(self):
        vertices, faces, _ = two_spheres(subdivisions=1)
        vertices[3, 1] = torch.nan
        assert self_intersection_loss(vertices, faces).isnan()

    def test_exclusions_and_room(self):
        vertices, faces, _ = two_spheres(subdivisions=1)
        found = find_collisions(vertices, faces)
        exclude = Exclusions.of_pairs(found.pairs, len(faces))
        assert self_intersection_loss(vertices, faces, exclude=exclude) == 0
        with pytest.raises(RuntimeError, match="max_collisions"):
            self_intersection_loss(vertices, faces, max_collisions=int(found.num_pairs) - 1)

    def test_empty_batch(self):
        vertices, faces, _ = two_spheres(subdivisions=1)
        none = vertices.expand(0, -1, -1)
        assert self_intersection_loss(none, faces) == 0
        assert self_intersection_loss(none, faces, reduction="none").shape == (0,)


class TestPersonIntersection:
    @in_both
    @pytest.mark.parametrize("form", ["squared", "linear"])
    def test_of_boxes(self, backend, form):
        vertices, faces = box()
        shift = torch.tensor([1.3, 0.23, -0.37], dtype=DOUBLE)
        people = torch.stack([vertices, 0.9 * vertices + shift, vertices + 10])
        terms = person_intersection_loss(people, faces, form=form, reduction="none", backend=backend)
        power = 2 if form == "squared" else 1
        expected = torch.zeros(3, 3, dtype=DOUBLE)
        expected[0, 1] = ((0.9 - (people[0] - shift).abs()).amin(-1).clamp(min=0) ** power).sum()
        expected[1, 0] = ((1 - people[1].abs()).amin(-1).clamp(min=0) ** power).sum()
        torch.testing.assert_close(terms, expected, rtol=1e-12, atol=1e-15)
        mean = person_intersection_loss(people, faces, form=form, backend=backend)
        torch.testing.assert_close(mean, expected.sum() / 6, rtol=1e-12, atol=0)
        assert terms[0, 1] > 0.01

    def test_is_the_measured_depth(self):
        vertices, faces = sphere(2)
        people = vertices + torch.rand(2, 3, 1, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
        depth = penetration(people, faces).depth
        for form, power in (("squared", 2), ("linear", 1)):
            terms = person_intersection_loss(people, faces, form=form, reduction="none")
            torch.testing.assert_close(terms, (depth**power).sum(-1), rtol=1e-12, atol=0)

    @settings(max_examples=8, database=None, deadline=None)
    @given(order=st.permutations(range(3)), seed=st.integers(0, 20))
    def test_symmetry_scale_and_motion(self, order, seed):
        vertices, faces = sphere(1)
        shifts = torch.rand(3, 1, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
        people = vertices + 1.5 * shifts
        terms = person_intersection_loss(people, faces, reduction="none")
        again = person_intersection_loss(people[order], faces, reduction="none")
        torch.testing.assert_close(again, terms[order][:, order], rtol=1e-12, atol=1e-15)
        turn, shift = rotation(seed), torch.tensor([4.0, 0.0, -7.0], dtype=DOUBLE)
        moved = person_intersection_loss(3 * people @ turn.T + shift, faces, reduction="none")
        torch.testing.assert_close(moved, 9 * terms, rtol=1e-9, atol=1e-12)

    @in_both
    @pytest.mark.parametrize("form", ["squared", "linear"])
    def test_gradient_pushes_apart(self, backend, form):
        vertices, faces = sphere(2)
        way = torch.tensor([1.5, 0.3, -0.2], dtype=DOUBLE)
        people = torch.stack([vertices, vertices + way]).requires_grad_()
        loss = person_intersection_loss(people, faces, form=form, backend=backend)
        (grad,) = torch.autograd.grad(loss, people)
        first, second = -grad.sum(1)
        torch.testing.assert_close(first, -second, rtol=0, atol=1e-12)
        assert second @ way / second.norm() / way.norm() > 0.99

    @pytest.mark.parametrize("form", ["squared", "linear"])
    def test_gradient_by_differences(self, form):
        """While the same vertices are inside, and the same faces nearest."""
        vertices, faces = sphere(1)
        torch.manual_seed(0)
        people = torch.stack([vertices, vertices + torch.tensor([1.2, 0.31, 0.17], dtype=DOUBLE)])
        people = (people + 0.02 * torch.randn_like(people)).requires_grad_()

        def loss(people):
            return person_intersection_loss(people, faces, form=form)

        assert loss(people) > 0
        assert torch.autograd.gradcheck(loss, (people,), fast_mode=True)

    @in_both
    def test_descent_reaches_zero(self, backend):
        """Two people, each of them moved as a whole: by Newton's law they part alike."""
        vertices, faces = sphere(2)
        people = torch.stack([vertices, vertices + torch.tensor([1.5, 0.3, -0.2], dtype=DOUBLE)])
        shift = torch.zeros(2, 1, 3, dtype=DOUBLE, requires_grad=True)
        optimizer = torch.optim.SGD([shift], lr=0.02)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = person_intersection_loss(people + shift, faces, reduction="sum", backend=backend)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
        assert losses[0] > 1
        assert losses[-1] < 1e-4 * losses[0]
        assert all(b < a or a == 0 for a, b in itertools.pairwise(losses))
        torch.testing.assert_close(shift[0], -shift[1], rtol=0, atol=1e-12)
        assert penetration(people + shift, faces).depth.max() < 0.02

    @in_both
    def test_weights_and_nan(self, backend):
        vertices, faces = sphere(1)
        people = (
            (vertices + torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)[:, None, None])
            .expand(2, -1, -1, -1)
            .clone()
        )
        weights = torch.tensor([[1.0, 0.5, 1.0], [1.0, 0.0, 1.0]], dtype=DOUBLE)
        every = person_intersection_loss(people, faces, reduction="none")
        people[1, 1] = torch.nan
        people.requires_grad_()
        options = {"weights": weights, "backend": backend}
        terms = person_intersection_loss(people, faces, reduction="none", **options)
        assert terms.shape == (2, 3, 3)
        pairs = weights[..., None] * weights[..., None, :]
        torch.testing.assert_close(terms, every * pairs, rtol=1e-12, atol=0)
        mean = person_intersection_loss(people, faces, **options)
        # pairs of the first image: 1 of weight 1, 2 of 1/2; of the second: 1 of weight 1; each in both orders
        torch.testing.assert_close(mean, (every * pairs).sum() / 6, rtol=1e-12, atol=0)
        (grad,) = torch.autograd.grad(mean, people)
        assert grad.isfinite().all()
        assert grad[1, 1].abs().max() == 0
        assert grad[1, 0].abs().max() > 0
        masked = person_intersection_loss(people, faces, weights=weights > 0, backend=backend)
        torch.testing.assert_close(masked, (every * (pairs > 0)).sum() / 8, rtol=1e-12, atol=0)
        assert person_intersection_loss(people, faces, backend=backend).isnan()

    def test_apart_alone_and_empty(self):
        vertices, faces = sphere(1)
        people = torch.stack([vertices, vertices + 5]).requires_grad_()
        loss = person_intersection_loss(people, faces)
        loss.backward()
        assert loss == 0
        assert people.grad.abs().max() == 0
        assert person_intersection_loss(people[:1], faces) == 0
        assert person_intersection_loss(people[:0], faces) == 0
        assert person_intersection_loss(people.expand(0, -1, -1, -1), faces, reduction="none").shape == (
            0,
            2,
            2,
        )

    def test_bodies_part(self, mannequin_asset):
        """Two standing people whose arms are in one another's."""
        body = agebody.SMPLA(mannequin_asset)
        angles = torch.from_numpy(pose("standing", mannequin_asset.joint_names)).float()
        standing = body(global_orient=angles[0], body_pose=angles[1:]).vertices
        transl = torch.tensor([[0.0, 0, 0], [0.55, 0, 0.02]], requires_grad=True)
        optimizer = torch.optim.SGD([transl], lr=1e-2)
        first = penetration(standing + transl[:, None], body.faces).depth.max()
        for _ in range(12):
            optimizer.zero_grad()
            person_intersection_loss(standing + transl[:, None], body.faces, reduction="sum").backward()
            optimizer.step()
        last = penetration(standing + transl[:, None], body.faces).depth.max()
        assert first > 0.02
        assert last < 0.5 * first

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        vertices, faces = sphere(0)
        people = vertices.expand(2, -1, -1)
        with pytest.raises(ValueError, match="form: expected one of squared, linear, got 'cubic'"):
            person_intersection_loss(people, faces, form="cubic")
        with pytest.raises(
            ValueError, match=r"vertices: expected shape \(\*batch, any, any, 3\), got \(12, 3\)"
        ):
            person_intersection_loss(vertices, faces)
        with pytest.raises(ValueError, match="weights: expected a shape that broadcasts to"):
            person_intersection_loss(people, faces, weights=torch.ones(3))
        with pytest.raises(ValueError, match="reduction: expected one of"):
            self_intersection_loss(vertices, faces, reduction="max")
        with pytest.raises(ValueError, match="sigma: expected a length above 0, got -1"):
            self_intersection_loss(vertices, faces, sigma=-1.0)
