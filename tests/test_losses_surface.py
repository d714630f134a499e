"""Losses between a surface and a scan: against sums written out, by masks, motions and gradients."""

import math
from functools import partial

import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody import rotations
from agebody.losses import gmof, huber, mesh_to_scan_loss, scan_to_mesh_loss

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def icosphere(subdivisions=1):
    sphere = trimesh.creation.icosphere(subdivisions)
    return torch.tensor(sphere.vertices, dtype=DOUBLE), torch.tensor(sphere.faces)


def bodies(*batch, seed=0):
    vertices, faces = icosphere()
    return vertices + 0.1 * random(*batch, *vertices.shape, seed=seed), faces


class TestScanToMesh:
    @pytest.mark.parametrize(
        ("penalty", "cost"),
        [
            ("l2", lambda d: d**2),
            ("l1", lambda d: d),
            (partial(gmof, rho=0.3), lambda d: 0.09 * d**2 / (0.09 + d**2)),
        ],
    )
    def test_as_trimesh_measures(self, penalty, cost):
        vertices, faces = bodies()
        scan = random(40, 3, seed=1)
        mesh = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)
        distance = torch.from_numpy(trimesh.proximity.closest_point(mesh, scan.numpy())[1])
        terms = scan_to_mesh_loss(vertices, scan, faces, penalty=penalty, reduction="none")
        # trimesh takes candidates within some 1e-5 of each other for equally near.
        torch.testing.assert_close(terms, cost(distance), rtol=0, atol=1e-4)
        for reduction in ("sum", "mean"):
            total = scan_to_mesh_loss(vertices, scan, faces, penalty=penalty, reduction=reduction)
            torch.testing.assert_close(total, getattr(terms, reduction)())

    def test_a_scan_of_the_surface_is_0(self):
        vertices, faces = bodies()
        vertices.requires_grad_()
        scan = vertices.detach()[faces].mean(1)
        loss = scan_to_mesh_loss(vertices, scan, faces, reduction="sum")
        loss.backward()
        assert loss < 1e-28
        torch.testing.assert_close(vertices.grad, torch.zeros_like(vertices), rtol=0, atol=1e-14)

    def test_derivatives(self):
        vertices, faces = random(5, 3), torch.tensor([[0, 1, 2], [0, 2, 3], [2, 3, 4]])
        scan = 1.5 * random(2, 2, 3, seed=1)
        weights = torch.tensor([[1.0, 0.3], [0, 2]], dtype=DOUBLE)
        inputs = (vertices.requires_grad_(), scan.requires_grad_())
        loss = lambda v, s: scan_to_mesh_loss(v, s, faces, weights=weights, penalty=partial(gmof, rho=0.5))  # noqa: E731
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)

    def test_a_step_down_the_gradient_helps(self):
        vertices, faces = bodies(3)
        scan = random(3, 30, 3, seed=1)
        vertices.requires_grad_()
        before = scan_to_mesh_loss(vertices, scan, faces)
        (gradient,) = torch.autograd.grad(before, vertices)
        assert scan_to_mesh_loss(vertices - 0.5 * gradient, scan, faces) < before

    def test_far_points_stop_pulling(self):
        vertices, faces = bodies()
        vertices.requires_grad_()

        def pull(distance):
            scan = torch.tensor([[0.0, 0, 1 + distance]], dtype=DOUBLE)
            loss = scan_to_mesh_loss(vertices, scan, faces, penalty=partial(gmof, rho=0.1))
            return torch.autograd.grad(loss, vertices)[0].norm()

        assert pull(10.0) < 1e-3 * pull(0.1)

    def test_a_motion_changes_nothing(self):
        vertices, faces = bodies(2)
        scan = random(2, 9, 3, seed=1)
        turn, shift = rotations.to_matrix(random(3, seed=2), "axis_angle"), random(3, seed=3)
        still = scan_to_mesh_loss(vertices, scan, faces, reduction="none")
        moved = scan_to_mesh_loss(vertices @ turn.T + shift, scan @ turn.T + shift, faces, reduction="none")
        torch.testing.assert_close(moved, still, rtol=0, atol=1e-13)
        larger = scan_to_mesh_loss(3 * vertices, 3 * scan, faces, reduction="none")
        torch.testing.assert_close(larger, 9 * still, rtol=0, atol=1e-12)

    @settings(max_examples=12)
    @given(st.integers(0, 1000), st.sampled_from(["none", "mean", "sum"]), st.booleans())
    def test_weight_0_is_ignored(self, seed, reduction, boolean):
        vertices, faces = bodies(3, seed=seed)
        scan = random(3, 6, 3, seed=seed + 1)
        kept = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed)) < 0.6
        kept[2] = False
        weights = kept if boolean else kept * (1 + torch.rand(3, 6, dtype=DOUBLE))
        broken, body = torch.where(kept[..., None], scan, math.nan), vertices.clone()
        body[2] = math.nan  # of the body whose scan weighs nothing
        broken.requires_grad_()
        body.requires_grad_()
        found = scan_to_mesh_loss(body, broken, faces, weights=weights, reduction=reduction)
        plain = scan_to_mesh_loss(vertices, scan, faces, reduction="none")
        terms = torch.where(kept, weights * plain, 0)
        expected = {"none": terms, "sum": terms.sum(), "mean": terms.sum() / weights.sum().clamp(min=1)}[
            reduction
        ]
        torch.testing.assert_close(found, expected)
        gradients = torch.autograd.grad(found.sum(), (body, broken))
        assert all(g.isfinite().all() for g in gradients)
        assert not gradients[0][2].any()
        assert not gradients[1][~kept].any()

    def test_only_observed_points_count(self):
        vertices, faces = bodies(2)
        scan = random(2, 20, 3, seed=1)
        visible = vertices[..., 2] > 0
        visible[1] = False
        terms = scan_to_mesh_loss(vertices, scan, faces, visible=visible, reduction="none")
        front = faces[(vertices[0, :, 2] > 0)[faces].all(-1)]
        torch.testing.assert_close(
            terms[0], scan_to_mesh_loss(vertices[0], scan[0], front, reduction="none"), rtol=1e-12, atol=1e-14
        )
        assert (terms[0] >= scan_to_mesh_loss(vertices[0], scan[0], faces, reduction="none") - 1e-14).all()
        assert not terms[1].any()
        mean = scan_to_mesh_loss(vertices, scan, faces, visible=visible)
        torch.testing.assert_close(mean, terms[0].mean())

    def test_shapes(self):
        vertices, faces = bodies(2, 3)
        scan = random(3, 5, 3, seed=1)
        terms = scan_to_mesh_loss(vertices, scan, faces, reduction="none")
        assert terms.shape == (2, 3, 5)
        alone = scan_to_mesh_loss(vertices[1, 2], scan[2], faces, reduction="none")
        torch.testing.assert_close(terms[1, 2], alone)
        assert scan_to_mesh_loss(vertices[0, 0], scan, faces, reduction="none").shape == (3, 5)
        nothing = scan_to_mesh_loss(vertices, scan[:, :0], faces)
        assert nothing == 0
        single = scan_to_mesh_loss(vertices.float(), scan.float(), faces)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), terms.mean(), rtol=1e-5, atol=0)


class TestMeshToScan:
    @pytest.mark.parametrize(
        ("penalty", "cost"),
        [
            ("l2", lambda d: d**2),
            (partial(huber, delta=0.2), lambda d: torch.where(d < 0.2, d**2, 0.4 * d - 0.04)),
        ],
    )
    def test_as_all_pairs_say(self, penalty, cost):
        vertices, _ = bodies(2)
        scan = random(2, 50, 3, seed=1)
        weights = torch.rand(2, vertices.shape[1], generator=torch.Generator().manual_seed(0)) - 0.3
        weights = weights.clamp(min=0).double()
        distance = torch.cdist(vertices, scan).amin(-1)
        found = mesh_to_scan_loss(vertices, scan, weights=weights, penalty=penalty)
        torch.testing.assert_close(found, (weights * cost(distance)).sum() / weights.sum())

    def test_derivatives(self):
        vertices, scan = random(2, 4, 3), random(2, 6, 3, seed=1)
        there = torch.tensor([True] * 5 + [False])
        loss = lambda v, s: mesh_to_scan_loss(v, s, scan_weights=there, penalty=partial(gmof, rho=1.0))  # noqa: E731
        inputs = (vertices.requires_grad_(), scan.requires_grad_())
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)

    @settings(max_examples=12)
    @given(st.integers(0, 1000), st.sampled_from(["none", "mean", "sum"]))
    def test_weight_0_is_left_out(self, seed, reduction):
        vertices, scan = random(3, 5, 3, seed=seed), random(3, 8, 3, seed=seed + 1)
        generator = torch.Generator().manual_seed(seed)
        kept, there = torch.rand(3, 5, generator=generator) < 0.6, torch.rand(3, 8, generator=generator) < 0.6
        there[1, 0] = True
        there[2] = False  # an empty scan
        body = torch.where(kept[..., None], vertices, math.nan).requires_grad_()
        broken = torch.where(there[..., None], scan, math.nan).requires_grad_()
        found = mesh_to_scan_loss(body, broken, weights=kept, scan_weights=there, reduction=reduction)
        away = torch.cdist(vertices, scan).masked_fill(~there[:, None], math.inf).amin(-1)
        counted = kept & away.isfinite()
        terms = torch.where(counted, away, 0) ** 2
        expected = {"none": terms, "sum": terms.sum(), "mean": terms.sum() / counted.sum().clamp(min=1)}
        torch.testing.assert_close(found, expected[reduction])
        gradients = torch.autograd.grad(found.sum(), (body, broken))
        assert all(g.isfinite().all() for g in gradients)
        assert not gradients[0][~counted].any()
        assert not gradients[1][~there].any()

    def test_shapes(self):
        vertices, _ = bodies(2, 3)
        scan = random(3, 5, 3, seed=1)
        terms = mesh_to_scan_loss(vertices, scan, reduction="none")
        assert terms.shape == vertices.shape[:-1]
        torch.testing.assert_close(
            terms[1, 2], mesh_to_scan_loss(vertices[1, 2], scan[2], reduction="none"), rtol=1e-12, atol=0
        )

    @pytest.mark.parametrize("scan_weights", [None, torch.zeros(3, 0)])
    def test_an_empty_scan_does_not_count(self, scan_weights):
        body = bodies(2)[0].requires_grad_()
        scan = body.new_zeros(3, 1, 0, 3) if scan_weights is None else body.new_zeros(3, 2, 0, 3)
        scan_weights = None if scan_weights is None else scan_weights[:, None]
        terms = mesh_to_scan_loss(body, scan, scan_weights=scan_weights, reduction="none")
        assert terms.shape == (3, *body.shape[:-1])
        assert not terms.any()
        mean = mesh_to_scan_loss(body, scan, scan_weights=scan_weights)
        assert mean == 0
        assert not torch.autograd.grad(mean, body)[0].any()


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"scan": torch.zeros(4, 2)}, ValueError, r"scan: expected shape \(\*batch, any, 3\)"),
            ({"scan": None}, TypeError, "scan: expected a torch.Tensor, got NoneType"),
            (
                {"vertices": torch.zeros(2, 9, 3), "scan": torch.zeros(3, 4, 3)},
                ValueError, r"broadcast.*vertices \(2,\), scan \(3,\)",
            ),
            ({"weights": torch.zeros(5)}, ValueError, r"weights: expected a shape that broadcasts to \(4,\)"),
            ({"penalty": "huber"}, ValueError, "penalty: expected 'l1', 'l2' or a function"),
            ({"reduction": "max"}, ValueError, "reduction: expected one of"),
            ({"backend": "numpy"}, ValueError, "backend: expected one of auto, torch, warp"),
        ],
    )  # fmt: skip
    def test_name_the_argument(self, unchecked, changes, error, message):
        arguments = {"vertices": torch.zeros(4, 3), "scan": torch.zeros(4, 3)} | changes
        with pytest.raises(error, match=message):
            scan_to_mesh_loss(**arguments, faces=torch.zeros(1, 3).long())
        with pytest.raises(error, match=message):
            mesh_to_scan_loss(**arguments)
