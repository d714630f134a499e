"""Planes: heights and their costs against formulas, and vertices that touch, chosen from a body."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody import rotations
from agebody.losses import (
    gmof,
    part_vertices,
    plane_height,
    plane_loss,
)

DOUBLE = torch.float64
UP = torch.tensor([0.0, 1, 0], dtype=DOUBLE)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


plane_penetration_loss = partial(plane_loss, kind="penetration")
plane_contact_loss = partial(plane_loss, kind="contact")


def on_the_floor(height):
    """Loss arguments of points above the floor at y = 0.5."""
    points = torch.zeros(len(height), 3, dtype=DOUBLE)
    points[:, 1] = 0.5 + torch.tensor(height, dtype=DOUBLE)
    return points, UP, torch.tensor(0.5, dtype=DOUBLE)


class TestHeights:
    def test_of_a_floor(self):
        height = [-0.3, 0.0, 2.0]
        torch.testing.assert_close(plane_height(*on_the_floor(height)), torch.tensor(height, dtype=DOUBLE))

    def test_is_the_distance_from_three_points_of_the_plane(self):
        """The height of a tetrahedron: three times its volume over the area of its base."""
        corners, points = random(4, 3, 3), random(4, 7, 3, seed=1)
        a, b, c = corners.unbind(1)
        normal = torch.linalg.cross(b - a, c - a)
        offset = (normal * a).sum(-1)
        volume = torch.linalg.det(torch.stack(torch.broadcast_tensors(
            (b - a)[:, None], (c - a)[:, None], points - a[:, None]), -2)) / 6  # fmt: skip
        expected = 3 * volume / (normal.norm(dim=-1) / 2)[:, None]
        torch.testing.assert_close(plane_height(points, normal, offset), expected)
        torch.testing.assert_close(plane_height(points, 7 * normal, 7 * offset), expected)

    def test_moves_along(self):
        points, normal, offset = random(5, 3), random(3, seed=1), random(1, seed=2)[0]
        turn, shift = rotations.to_matrix(random(3, seed=3), "axis_angle"), random(3, seed=4)
        moved = plane_height(points @ turn.T + shift, turn @ normal, offset + turn @ normal @ shift)
        torch.testing.assert_close(moved, plane_height(points, normal, offset))

    def test_broadcasts(self):
        found = plane_height(random(2, 1, 5, 3), random(3, 3, seed=1), random(3, seed=2))
        assert found.shape == (2, 3, 5)
        assert plane_height(random(0, 3), UP, random(())).shape == (0,)


class TestCosts:
    def test_below_costs_the_square_of_the_depth(self):
        terms = plane_penetration_loss(*on_the_floor([-0.3, -0.1, 0.0, 0.2]), reduction="none")
        torch.testing.assert_close(terms, torch.tensor([0.09, 0.01, 0, 0], dtype=DOUBLE))

    def test_touching_costs_on_both_sides(self):
        arguments = on_the_floor([-0.3, 0.0, 0.2])
        terms = plane_contact_loss(*arguments, reduction="none")
        torch.testing.assert_close(terms, torch.tensor([0.09, 0, 0.04], dtype=DOUBLE))
        robust = plane_contact_loss(*arguments, penalty=partial(gmof, rho=0.1), reduction="sum")
        expected = sum(0.01 * h**2 / (0.01 + h**2) for h in (0.3, 0.2))
        torch.testing.assert_close(robust, torch.tensor(expected, dtype=DOUBLE))

    def test_the_gradient_lifts_out_of_the_plane(self):
        points, normal, offset = on_the_floor([-0.3, 0.2])
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(plane_penetration_loss(points, normal, offset), points)
        assert gradient[0, 1] < 0
        assert not gradient[1].any()
        assert not gradient[:, [0, 2]].any()

    @pytest.mark.parametrize("loss", [plane_penetration_loss, plane_contact_loss])
    def test_derivatives(self, loss):
        inputs = (random(2, 4, 3), random(3, seed=1), random(2, seed=2))
        inputs = tuple(t.requires_grad_() for t in inputs)
        weights = torch.tensor([1.0, 0, 2, 0.5], dtype=DOUBLE)
        function = partial(loss, weights=weights)
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)

    @settings(max_examples=20)
    @given(
        st.integers(0, 1000),
        st.sampled_from(["none", "mean", "sum"]),
        st.sampled_from([plane_penetration_loss, plane_contact_loss]),
    )
    def test_weight_0_is_ignored(self, seed, reduction, loss):
        points, normal, offset = (
            random(3, 5, 3, seed=seed),
            random(3, 3, seed=seed + 1),
            random(3, seed=seed + 2),
        )
        kept = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
        kept[1] = False
        broken = [torch.where(kept[..., None], points, math.nan), normal.clone(), offset.clone()]
        broken[1][1], broken[2][1] = math.nan, math.nan
        broken = [t.requires_grad_() for t in broken]
        found = loss(*broken, weights=kept, reduction=reduction)
        terms = torch.where(kept, loss(points, normal, offset, reduction="none"), 0)
        expected = {"none": terms, "sum": terms.sum(), "mean": terms.sum() / kept.sum().clamp(min=1)}
        torch.testing.assert_close(found, expected[reduction])
        gradients = torch.autograd.grad(found.sum(), broken)
        assert all(g.isfinite().all() for g in gradients)
        assert not gradients[0][~kept].any()


class TestParts:
    def test_soles_of_a_body(self, mannequin_asset):
        soles = part_vertices(mannequin_asset, "feet", facing=(0, -1, 0)).numpy()
        template = mannequin_asset.template
        ground = template[:, 1].min()
        assert template[soles, 1].max() < ground + 0.1  # not above the ankles
        assert np.argmin(template[:, 1]) in soles
        feet = part_vertices(mannequin_asset, "feet").numpy()
        assert set(soles) < set(feet)
        assert (template[soles, 0] > 0).sum() == pytest.approx(len(soles) / 2, abs=2)  # of both feet

    def test_the_back_of_a_body(self, mannequin_asset):
        back = part_vertices(mannequin_asset, "trunk", facing=(0, 0, -1)).numpy()
        front = part_vertices(mannequin_asset, "trunk", facing=(0, 0, 1)).numpy()
        template = mannequin_asset.template
        assert template[back, 2].max() < template[front, 2].mean()
        assert len(back) > 100

    def test_are_those_of_the_dense_weights(self, mannequin_asset):
        joint = mannequin_asset.joint_names.index("head")
        expected = np.flatnonzero(mannequin_asset.dense_weights().argmax(1) == joint)
        found = part_vertices(mannequin_asset, ["head"])
        assert found.dtype == torch.int64
        assert found.tolist() == expected.tolist()

    def test_an_angle(self, mannequin_asset):
        sizes = [
            len(part_vertices(mannequin_asset, "trunk", facing=(0, 0, -2.5), within=angle))
            for angle in (0.2, math.pi / 3, math.pi)
        ]
        assert sizes[0] < sizes[1] < sizes[2] == len(part_vertices(mannequin_asset, "trunk"))


class TestErrors:
    def test_name_the_argument(self, unchecked, mannequin_asset):
        points, normal, offset = torch.zeros(4, 3), torch.zeros(3), torch.zeros(())
        with pytest.raises(ValueError, match=r"points: expected shape \(\*batch, any, 3\)"):
            plane_height(points[:, :2], normal, offset)
        with pytest.raises(TypeError, match="offset: expected a torch.Tensor, got float"):
            plane_height(points, normal, 0.0)
        with pytest.raises(ValueError, match=r"broadcast.*points \(\), normal \(2,\), offset \(3,\)"):
            plane_height(points, normal.expand(2, 3), offset.expand(3))
        with pytest.raises(ValueError, match=r"weights: expected a shape that broadcasts to \(4,\)"):
            plane_contact_loss(points, normal, offset, weights=torch.zeros(3))
        with pytest.raises(ValueError, match="kind: expected one of penetration, contact, got 'touch'"):
            plane_loss(points, normal, offset, kind="touch")
        with pytest.raises(ValueError, match="joints: expected names among pelvis, .*, got tail"):
            part_vertices(mannequin_asset, ["head", "tail"])
        with pytest.raises(ValueError, match="joints: expected names, or one of feet, trunk, got 'hands'"):
            part_vertices(mannequin_asset, "hands")
        with pytest.raises(ValueError, match="facing: expected a direction"):
            part_vertices(mannequin_asset, "feet", facing=(0, 0, 0))
