"""People of one image in one space: placement against its formula, its guards, rescaling, refinement."""

import importlib
import json
import math
import re
import shutil
from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import minimize as scipy_minimize
from scipy.stats import linregress
from typer.testing import CliRunner

import agebody
from agebody.age import AgeCurve, median_stature, stature_sd
from agebody.cameras import Camera
from agebody.crowd import (
    Deviations,
    HeightPrior,
    height_class,
    is_far,
    mask_depths,
    place_people,
    refine_crowd,
    rescale,
    rest_height,
    surface_depth,
)
from agebody.crowd.depths import _is_low
from agebody.crowd.height_prior import HEIGHT_CLASSES
from agebody.draw import render
from agebody.losses import part_vertices
from agebody.mesh import penetration
from agebody.mesh.penetrations import find_penetrations
from agebody.parameters import BodyParameters
from agebody.people import pose
from agebody.pipelines.cli import app

MILLIMETRE = 1e-3
UPRIGHT = (math.pi, 0.0, 0.0)
"""Turns a body upright before a camera whose y axis points down; it faces the camera."""


def crowd(seed=0, images=6, people=5):
    """True depths and statures, and what a single-person fit makes of them: another size, the same image."""
    generator = torch.Generator().manual_seed(seed)
    depth = 2 + 6 * torch.rand(images, people, generator=generator, dtype=torch.float64)
    height = 0.6 + 1.3 * torch.rand(images, people, generator=generator, dtype=torch.float64)
    wrong = torch.exp(0.3 * torch.randn(images, people, generator=generator, dtype=torch.float64))
    return depth, height, wrong


def prior_at(height, sd=0.07):
    return HeightPrior(height, torch.full_like(height, sd))


def dto_line(d, z, h, mean, sd, spread, slopes, correlations, least):
    """DTO's rules for one group: slope, shift, who is on the line, their number and deviation."""
    dropped = []
    believed = [i for i in range(len(d)) if correlations[i] > 0.5]
    if believed:
        least = np.average(slopes[believed], weights=correlations[believed])
    for _ in range(10):
        left = [i for i in range(len(d)) if i not in dropped]
        a = b = c = e = f = 0.0
        for i in left:
            w, q = sd[i] ** -2, h[i] / z[i]
            a, b, c = a + w * q**2 * d[i] ** 2, b + w * q**2 * d[i], c + w * q**2
            e, f = e + w * q * d[i] * mean[i], f + w * q * mean[i]
        slope, shift = (c * e - b * f) / (a * c - b**2), (a * f - b * e) / (a * c - b**2)
        if slope < least or np.std(d[left]) < np.mean(spread[left]):
            slope, shift = least, (f - b * least) / c
        elif len(left) == 2:
            return slope, shift, left, 0, 0.0
        height = h * (slope * d + shift) / z
        excess = {i: height[i] - 2.1 if slope * d[i] + shift > 0 else np.inf for i in left}
        worst = max(left, key=excess.__getitem__)
        if excess[worst] <= 0:
            break
        if len(left) == 2:
            return 0.0, 0.0, [], 0, 0.0
        dropped.append(worst)
    return slope, shift, left, len(left), np.mean(np.abs(height - mean)[left] / sd[left])


def dto(d, z, h, mean, sd, spread, slopes, correlations, far, low_d, low_z, least, use_down):
    """DTO's scales of the people of one image, and who is placed."""
    scale, placed = np.ones(len(d)), np.zeros(len(d), bool)
    d, z = d.copy(), z.copy()
    others = mean, sd, spread, slopes, correlations
    near, behind = np.flatnonzero(~far), np.flatnonzero(far)
    last = None if len(near) == 0 else z[near].max()
    if len(near) >= 2:
        group = [part[near] for part in others]
        found = dto_line(d[near], z[near], h[near], *group, least)
        down = dto_line(low_d[near], low_z[near], h[near], *group, least)
        if use_down and down[3] >= found[3] and down[4] < found[4]:
            found, d[near], z[near] = down, low_d[near], low_z[near]
        slope, shift, left, _, _ = found
        if left:
            last = (slope * d[near] + shift).max()
        for i in near[left]:
            scale[i], placed[i] = (slope * d[i] + shift) / z[i], True
    if len(behind) >= 2:
        slope, shift, left, _, _ = dto_line(
            d[behind], z[behind], h[behind], *(part[behind] for part in others), least
        )
        if last is not None:
            shift = max(shift, last - (slope * d[behind]).min())
        for i in behind[left]:
            factor = (slope * d[i] + shift) / z[i]
            if last is None or h[i] * factor <= 2.1:
                scale[i], placed[i] = factor, True
    return scale, placed


class TestPlacePeople:
    @pytest.mark.parametrize("use_down", [True, False])
    def test_follows_the_rules_of_dto(self, use_down):
        """Written a second time, image by image; in some everybody is near, in some low pixels count."""
        images, people, seen = 200, 6, {"dropped": 0, "pair": 0, "far": 0, "down": 0}
        for seed in range(images):
            r = np.random.default_rng(seed)
            n = int(r.integers(1, people + 1))
            true, mean = r.uniform(2, 9, n), r.choice([0.8, 1.1, 1.5, 1.65, 1.8], n)
            h, z = mean * r.uniform(0.7, 1.4, n), true * r.uniform(0.6, 1.5, n)
            d, far = true / 300 * r.uniform(0.6, 1.3, n), r.random(n) < r.choice([0, 0.5])
            far &= true > np.median(true)
            given = {
                "sd": r.uniform(0.07, 0.16, n), "spread": r.uniform(0, 0.006, n),
                "slopes": r.uniform(20, 400, n), "correlations": r.uniform(0, 1, n), "far": far,
                "low_d": d * r.uniform(0.9, 1.1, n), "low_z": z * r.uniform(0.95, 1.05, n),
            }  # fmt: skip
            scale, placed = dto(d, z, h, mean, **given, least=20.0, use_down=use_down)
            sd, spread, slopes, correlations, _, low_d, low_z = (
                torch.from_numpy(part) for part in given.values()
            )
            found = place_people(
                *(torch.from_numpy(part) for part in (d, z, h)),
                HeightPrior(torch.from_numpy(mean), sd),
                far=torch.from_numpy(far), spread=spread, body_slope=slopes, body_correlation=correlations,
                low_depth=low_d, low_rendered_depth=low_z, use_down=use_down, min_slope=20.0,
            )  # fmt: skip
            np.testing.assert_array_equal(found.placed, placed, err_msg=str(seed))
            np.testing.assert_allclose(found.scale, scale, rtol=1e-6, err_msg=str(seed))
            np.testing.assert_allclose(found.depth, z * scale, rtol=1e-6)
            other = dto(d, z, h, mean, **given, least=20.0, use_down=not use_down)[0]
            seen["down"] += not np.allclose(scale, other)
            seen["dropped"] += placed.any() and not placed.all()
            seen["far"] += (placed & far).any()
            seen["pair"] += found.people[0].item() == 2 and not found.bounded[0].item()
        assert min(seen.values()) > 5, seen

    @given(
        st.integers(0, 100), st.floats(0.01, 100), st.floats(-3, 30),
        st.sampled_from([torch.float32, torch.float64]),
    )  # fmt: skip
    def test_exact_depths_and_heights_give_the_true_layout(self, seed, unit, origin, dtype):
        depth, height, wrong = (part.to(dtype) for part in crowd(seed))
        found = place_people((depth + origin) / unit, depth / wrong, height / wrong, prior_at(height))
        assert found.placed.all()
        assert (found.depth - depth).abs().max() < MILLIMETRE
        assert (found.height - height).abs().max() < MILLIMETRE
        assert torch.allclose(found.slope[:, 0], depth.new_tensor(unit), rtol=1e-3)
        assert found.depth.dtype == dtype

    def test_solves_the_published_equations(self):
        depth, height, wrong = crowd(1)
        z, h = depth / wrong, height / wrong
        noise = np.random.default_rng(1)
        d = depth * (1 + 0.05 * torch.from_numpy(noise.normal(size=depth.shape)))
        mean, sd = height + 0.1, 0.05 + 0.1 * torch.from_numpy(noise.random(height.shape))
        found = place_people(d, z, h, HeightPrior(mean, sd), max_height=100.0)
        w, q = 1 / sd**2, h / z
        a, b, c, e_d, e = (
            t.sum(1) for t in (w * q**2 * d**2, w * q**2 * d, w * q**2, w * q * d * mean, w * q * mean)
        )
        slope, shift = (c * e_d - b * e) / (a * c - b**2), (a * e - b * e_d) / (a * c - b**2)
        assert torch.allclose(found.slope[:, 0], slope)
        assert torch.allclose(found.shift[:, 0], shift)
        expected = ((h * (slope[:, None] * d + shift[:, None]) / z - mean) / sd).abs().mean(1)
        assert torch.allclose(found.deviation, expected)

    def test_is_the_minimum_that_scipy_finds(self):
        depth, height, wrong = crowd(2, images=1)
        z, h, d = (t[0].numpy() for t in (depth / wrong, height / wrong, depth * 0.5 + 0.1))
        mean = height[0].numpy() * np.array([1.1, 0.95, 1.0, 1.02, 0.9])
        cost = lambda v: (((h * (v[0] * d + v[1]) / z - mean) / 0.07) ** 2).sum()  # noqa: E731
        best = scipy_minimize(cost, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
        one = lambda array: torch.from_numpy(array)  # noqa: E731
        found = place_people(one(d), one(z), one(h), prior_at(one(mean)))
        assert (found.slope[0].item(), found.shift[0].item()) == pytest.approx(best.x, rel=1e-5)

    def test_the_least_slope_holds_and_the_shift_is_the_best_then(self):
        depth, height, wrong = crowd(3)
        z, h = depth / wrong, height / wrong
        found = place_people(depth, z, h, prior_at(height), min_slope=1.5, max_height=100.0)
        q = h / z
        assert found.bounded[:, 0].all()
        assert not found.bounded[:, 1].any()
        expected = ((q * height).sum(1) - 1.5 * (q**2 * depth).sum(1)) / (q**2).sum(1)
        assert torch.allclose(found.shift[:, 0], expected)

    def test_the_least_slope_is_that_of_the_bodies_that_can_be_believed(self):
        depth, height, wrong = crowd(4, images=1)
        slopes = torch.tensor([[2.0, 3.0, 100.0, 100.0, torch.nan]]).double()
        correlations = torch.tensor([[0.9, 0.6, 0.4, -0.9, torch.nan]]).double()
        given = (depth, depth / wrong, height / wrong, prior_at(height))
        found = place_people(*given, body_slope=slopes, body_correlation=correlations, max_height=100.0)
        assert found.slope[0, 0].item() == pytest.approx((0.9 * 2 + 0.6 * 3) / 1.5)
        unsure = place_people(
            *given, body_slope=slopes, body_correlation=correlations * 0, min_slope=1.25, max_height=9.0
        )
        assert unsure.slope[0, 0].item() == 1.25

    def test_people_in_one_plane_take_the_least_slope(self):
        height = torch.tensor([1.2, 1.7, 1.8]).double()
        depth = torch.tensor([4.0, 4.05, 4.1]).double()
        spread = torch.full_like(depth, 0.1)
        free = place_people(depth, depth, height, prior_at(height * 1.1), min_slope=1.0)
        plane = place_people(depth, depth, height, prior_at(height * 1.1), min_slope=1.0, spread=spread)
        assert not free.bounded[0]
        assert plane.bounded[0]
        assert plane.slope[0] == 1
        # All of one depth: nothing else is possible, and nothing is infinite.
        same = place_people(torch.full_like(depth, 4), depth, height, prior_at(height))
        assert same.bounded[0]
        assert same.depth.isfinite().all()

    @pytest.mark.parametrize("name", ["height", "prior__mean"])
    def test_statures_of_another_unit_are_refused(self, name):
        given = {"height": torch.tensor([1.2, 1.7, 1.8]), "prior__mean": torch.tensor([1.2, 1.7, 1.8])}
        given[name] = 100 * given[name]
        height, prior = given["height"], HeightPrior(given["prior__mean"], 0.1 * torch.ones(3))
        message = f"{name.replace('__', '.')}: expected statures in metres, above 0 and up to 5"
        with pytest.raises(ValueError, match=message):
            place_people(torch.full((3,), 4.0), torch.full((3,), 4.0), height, prior)
        points = torch.rand(3, 5, 3) + torch.tensor([0, 0, 9.0])
        with pytest.raises(ValueError, match=message):
            refine_crowd(points, Camera.guess((640.0, 480.0)), points[:, 0], height=height, prior=prior)

    @pytest.mark.parametrize("factor", [100, 1000])
    def test_points_of_another_unit_are_refused(self, factor):
        points = factor * (torch.randn(3, 5, 3) + torch.tensor([0, 0, 9.0]))
        with pytest.raises(ValueError, match=r"points: expected .* people up to 5 m tall, in metres"):
            refine_crowd(points, Camera.guess((640.0, 480.0)), points[:, 0])

    def test_too_tall_people_are_dropped_worst_first(self):
        depth, height, _ = crowd(5, images=1)
        height = torch.full_like(height, 1.7)
        seen = depth.clone()
        seen[0, 1] += 4.0  # the depth map saw what is behind
        prior = prior_at(height)
        prior.sd[0, 1] = 0.3
        found = place_people(seen, depth, height, prior)
        assert found.placed.tolist() == [[True, False, True, True, True]]
        assert (found.depth - depth).abs().max() < MILLIMETRE
        assert found.people.tolist() == [[4, 0]]
        kept = place_people(seen, depth, height, prior, max_height=100.0)
        assert (kept.depth - depth).abs().max() > 0.1

    def test_people_stay_in_front_of_the_camera(self):
        depth = torch.tensor([1.0, 5.0, 6.0, 7.0]).double()
        seen = torch.tensor([-30.0, 5.0, 6.0, 7.0]).double()
        height = torch.full_like(depth, 1.7)
        found = place_people(
            seen, depth, height, HeightPrior(height, torch.tensor([10.0, 0.01, 0.01, 0.01]).double())
        )
        assert found.placed.tolist() == [False, True, True, True]
        assert (found.depth > 0).all()

    def test_less_than_two_people_stay_where_they_are(self):
        depth, height, wrong = crowd(6, images=3, people=2)
        weights = torch.tensor([[1, 1], [1, 0], [0, 0]])
        found = place_people(depth, depth / wrong, height / wrong, prior_at(height), weights=weights.double())
        assert found.placed.tolist() == [[True, True], [False, False], [False, False]]
        assert found.scale[1].tolist() == [1, 1]
        assert found.depth[1].tolist() == [(depth / wrong)[1, 0].item(), 0]
        assert found.deviation.isnan().tolist() == [False, True, True]
        # Two of whom one is a giant: a line through both has their likely heights, unless its slope is held;
        # then the giant is dropped, and the other alone is no line.
        given = depth[0], depth[0], torch.tensor([1.7, 1.7]).double()
        giants = prior_at(torch.tensor([1.7, 3.0]).double(), 0.01)
        assert place_people(*given, giants).placed.all()
        assert not place_people(*given, giants, min_slope=50.0).placed.any()

    def test_far_people_have_a_line_of_their_own_behind_the_near(self):
        depth = torch.tensor([3.0, 4.0, 12.0, 14.0]).double()
        height = torch.full_like(depth, 1.7)
        far = torch.tensor([False, False, True, True])
        seen = torch.where(far, depth / 2, depth)  # the map has no one scale
        found = place_people(seen, depth / 1.1, height / 1.1, prior_at(height), far=far)
        assert (found.depth - depth).abs().max() < MILLIMETRE
        assert torch.allclose(found.slope, torch.tensor([1.0, 2.0]).double())
        # Far people whom their prior takes for dwarfs would stand among the near ones.
        dwarfs = HeightPrior(torch.tensor([1.7, 1.7, 0.4, 0.4]).double(), torch.full_like(depth, 0.07))
        moved = place_people(seen, depth, height, dwarfs, far=far)
        assert moved.depth[2].item() == pytest.approx(4.0)
        assert (moved.depth[2:] >= moved.depth[:2].max() - 1e-9).all()

    def test_the_far_group_is_moved_by_all_of_its_people(self):
        """Also by one who was dropped: here a giant who is the first of the far."""
        depth = torch.tensor([3.0, 6.0, 5.0, 6.5, 7.0, 7.5]).double()
        height = torch.tensor([1.7, 1.7, 3.0, 1.7, 1.7, 1.7]).double()
        far = torch.tensor([False, False, True, True, True, True])
        prior = HeightPrior(
            torch.full_like(height, 1.7), torch.tensor([0.07, 0.07, 9, 0.07, 0.07, 0.07]).double()
        )
        found = place_people(depth, depth, height, prior, far=far)
        assert found.placed.tolist() == [True, True, False, True, True, True]
        np.testing.assert_allclose(
            found.depth[3:] - depth[3:], 1.0, rtol=1e-6
        )  # from 5 m to 6 m; lengths were float32

    def test_absent_people_are_not_looked_at(self):
        depth, height, wrong = crowd(7)
        there = torch.ones_like(depth)
        there[:, 2] = 0
        parts = []
        for fill in (torch.nan, torch.inf, 5.0):
            given = [t.clone() for t in (depth, depth / wrong, height / wrong, height)]
            for tensor in given:
                tensor[:, 2] = fill
            leaves = [tensor.requires_grad_() for tensor in given]
            found = place_people(*leaves[:3], prior_at(leaves[3]), weights=there, spread=leaves[0] * 0.01)
            gradients = torch.autograd.grad(found.depth.square().sum(), leaves)
            assert all(g.isfinite().all() and (g[:, 2] == 0).all() for g in gradients)
            parts.append((found.depth, found.scale, found.height, *gradients))
        assert all(torch.equal(a, b) for other in parts[1:] for a, b in zip(parts[0], other, strict=True))
        assert (parts[0][0][:, 2] == 0).all()
        assert (parts[0][1][:, 2] == 1).all()

    def test_gradients(self):
        depth, height, wrong = crowd(8, images=2, people=4)
        far = torch.tensor([[False, False, True, True], [False] * 4])

        def places(d, z, h, mean, sd):
            found = place_people(d, z, h, HeightPrior(mean, sd), far=far, max_height=50.0, min_slope=0.1)
            return found.depth, found.scale, found.height, found.deviation

        given = [
            t.requires_grad_()
            for t in (depth * 0.7, depth / wrong, height / wrong, height + 0.05, height * 0.05)
        ]
        assert torch.autograd.gradcheck(places, given)

    def test_images_do_not_see_each_other(self):
        depth, height, wrong = crowd(9)
        all_at_once = place_people(
            depth[:, None],
            (depth / wrong)[:, None],
            (height / wrong)[:, None],
            prior_at(height[:, None] * 1.02),
        )
        for i in range(len(depth)):
            one = place_people(depth[i], (depth / wrong)[i], (height / wrong)[i], prior_at(height[i] * 1.02))
            assert torch.allclose(all_at_once.depth[i, 0], one.depth)

    def test_order_of_people_changes_nothing_and_weights_repeat_them(self):
        depth, height, wrong = crowd(10)
        noisy = depth + 0.3 * torch.sin(7 * depth)
        given = (noisy, depth / wrong, height / wrong, height * 1.03)
        turned = [t.flip(-1) for t in given]
        found, back = (place_people(*g[:3], prior_at(g[3]), max_height=50.0) for g in (given, turned))
        assert torch.allclose(found.depth, back.depth.flip(-1))
        twice = [torch.cat((t, t[:, :1]), 1) for t in given]
        weights = torch.tensor([2.0, 1, 1, 1, 1]).double()
        heavy = place_people(*given[:3], prior_at(given[3]), max_height=50.0, weights=weights)
        again = place_people(*twice[:3], prior_at(twice[3]), max_height=50.0)
        assert torch.allclose(heavy.slope, again.slope)

    def test_compiles_and_batches(self):
        depth, height, wrong = crowd(11)
        plain = lambda d, z, h: place_people(d, z, h, prior_at(height[0])).depth  # noqa: E731
        each = torch.stack([plain(*row) for row in zip(depth, depth / wrong, height / wrong, strict=True)])
        assert torch.allclose(torch.func.vmap(plain)(depth, depth / wrong, height / wrong), each)

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        depth, height, _ = crowd(12)
        prior = prior_at(height)
        with pytest.raises(ValueError, match=r"height: expected the shape of depth"):
            place_people(depth, depth, height[:, :1], prior)
        with pytest.raises(TypeError, match="depth: expected a floating type"):
            place_people(depth.long(), depth, height, prior)
        with pytest.raises(ValueError, match="body_slope, body_correlation: expected both or neither"):
            place_people(depth, depth, height, prior, body_slope=depth)
        with pytest.raises(ValueError, match="far: expected booleans"):
            place_people(depth, depth, height, prior, far=depth)
        for none in ({"min_slope": math.nan}, {"max_height": math.nan}, {"max_height": 0.0}):
            with pytest.raises(ValueError, match=f"^{next(iter(none))}: expected a"):
                place_people(depth, depth, height, prior, **none)
        with pytest.raises(ValueError, match="weights: expected a shape that broadcasts"):
            place_people(depth, depth, height, prior, weights=depth[:, :3])

    @pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (0, 0)])
    def test_no_people_are_placed(self, shape):
        nothing = torch.zeros(shape, dtype=torch.float64)
        found = place_people(nothing, nothing, nothing, HeightPrior(nothing, nothing), far=nothing > 0)
        assert found.depth.shape == shape
        assert found.slope.shape == (*shape[:-1], 2)
        assert found.deviation.isnan().all()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("depth", math.nan), ("depth", math.inf), ("rendered_depth", -2.0), ("rendered_depth", 0.0),
            ("rendered_depth", math.nan), ("height", 0.0), ("height", math.inf), ("prior.mean", math.nan),
            ("prior.sd", 0.0), ("prior.sd", -0.1), ("weights", -1.0), ("weights", math.nan),
        ],
    )  # fmt: skip
    def test_impossible_values_are_named(self, name, value):
        depth, height, _ = crowd(13, images=2)
        given = {
            "depth": depth, "rendered_depth": depth.clone(), "height": height, "prior.mean": height.clone(),
            "prior.sd": torch.full_like(height, 0.1), "weights": torch.ones_like(height),
        }  # fmt: skip
        given[name][1, 2] = value

        def place():
            prior = HeightPrior(given["prior.mean"], given["prior.sd"])
            return place_people(
                given["depth"], given["rendered_depth"], given["height"], prior, weights=given["weights"]
            )

        with pytest.raises(ValueError, match=f"{re.escape(name)}: expected (finite|statures)"):
            place()
        given["weights"][1, 2] = 0  # who is not there is not looked at
        assert place().depth.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_unknown_classes_and_sexes():
    years = torch.tensor([3.0, 30.0])
    for sex in (5, -1):
        for function in (HeightPrior.of_age, height_class):
            with pytest.raises(ValueError, match="sex: expected indices into SEXES, 0 to 2"):
                function(years, sex=torch.tensor([0, sex]))
    with pytest.raises(ValueError, match=r"the shape of an image array is \(height, width, channels\)"):
        is_far(years, 1000.0, (400, 600, 3))
    for none in (-1.0, 130.0):
        with pytest.raises(ValueError, match="years: expected ages from 0 to below 130"):
            height_class(torch.tensor([3.0, none]))
    with pytest.raises(ValueError, match="classes: expected indices from 0 to 5"):
        HeightPrior.of_class(torch.tensor([6]))


def test_is_far():
    # 2 m at 20 m with f = 1000: 100 pixels, a quarter of 400.
    depth = torch.tensor([19.9, 20.1])
    assert is_far(depth, 1000.0, (600.0, 400.0)).tolist() == [False, True]
    assert is_far(depth, 1000.0, torch.tensor([[600, 400], [60, 40]])).tolist() == [False, False]


class TestHeightPrior:
    def test_classes_of_the_paper(self):
        years = torch.tensor([0.5, 2.99, 3.0, 7.9, 8.0, 14.9, 15.0, 40.0, torch.nan])
        names = [HEIGHT_CLASSES[i].name for i in height_class(years)]
        assert names == ["under 3"] * 2 + ["3 to 8"] * 2 + ["8 to 15"] * 2 + ["adult"] * 3
        grown = height_class(torch.tensor([30.0, 30.0, 30.0, 5.0]), sex=torch.tensor([0, 1, 2, 1]))
        assert [HEIGHT_CLASSES[i].name for i in grown] == ["adult", "woman", "man", "3 to 8"]
        prior = HeightPrior.of_class(grown, dtype=torch.float64)
        assert prior.mean.tolist() == [1.715, 1.647, 1.784, 1.122]
        assert prior.sd.tolist() == [0.1, 0.0707, 0.0759, 0.12]

    def test_by_age_is_the_who(self):
        years = torch.tensor([0.0, 4.5, 12.0, 60.0]).double()
        for number, sex in enumerate(("neutral", "female", "male")):
            prior = HeightPrior.of_age(years, sex=torch.full((4,), number))
            assert torch.allclose(prior.mean, median_stature(years, sex=sex))
            assert torch.allclose(prior.sd, stature_sd(years, sex=sex))
        assert torch.equal(HeightPrior.of_age(years).mean, median_stature(years))

    def test_an_uncertain_age_widens_it_where_people_grow(self):
        years = torch.tensor([4.0, 40.0]).double()
        sure, unsure = HeightPrior.of_age(years), HeightPrior.of_age(years, years_sd=1.0)
        growth = (median_stature(5.0) - median_stature(3.0)) / 2
        assert unsure.sd[0].item() == pytest.approx(math.hypot(stature_sd(4.0), growth))
        assert unsure.sd[1] == sure.sd[1]

    def test_by_age_offset(self, mannequin_asset):
        curve = AgeCurve.from_asset(mannequin_asset)
        years = torch.tensor([1.0, 6.0, 12.0]).double()
        prior = HeightPrior.of_age_offset(curve.years_to_offset(years), curve)
        assert torch.allclose(prior.mean, median_stature(years))
        assert (prior.sd > stature_sd(years)).all()
        exact = HeightPrior.of_age_offset(curve.years_to_offset(years), curve, offset_sd=0.0)
        assert torch.allclose(exact.sd, stature_sd(years))

    def test_towards_a_height(self):
        prior = HeightPrior(torch.tensor([1.7, 1.1]), torch.tensor([0.1, 0.1]))
        moved = prior.towards(torch.tensor([1.8, 1.3]), share=torch.tensor([0.5, 0.0]))
        assert moved.mean.tolist() == pytest.approx([1.75, 1.1])
        assert torch.equal(moved.sd, prior.sd)

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        years = torch.tensor([3.0])
        with pytest.raises(TypeError, match="sex: expected a torch.Tensor of integers"):
            HeightPrior.of_age(years, sex=torch.tensor([1.0]))
        with pytest.raises(ValueError, match="sex: expected shape"):
            height_class(years, sex=torch.tensor([1, 1]))


class TestMaskDepths:
    @staticmethod
    def maps(seed=0):
        """A body's depth over a mask, and a depth map that is an affine function of it, tilted."""
        generator = np.random.default_rng(seed)
        body = 4 + 0.2 * generator.random((1, 40, 30))
        masks = np.zeros((1, 40, 30), bool)
        masks[0, 5:35, 8:20] = True
        tilt = 0.02 * np.arange(40)[:, None]
        depth = (body[0] - 1.0) / 3.0 + tilt
        return torch.from_numpy(depth), torch.from_numpy(body), torch.from_numpy(masks)

    def test_means_and_slope(self):
        depth, body, masks = self.maps()
        found = mask_depths(depth, body, masks)
        inside = masks[0]
        assert found.pixels.item() == inside.sum()
        assert found.depth.item() == pytest.approx(depth[inside].mean().item())
        assert found.rendered_depth.item() == pytest.approx(body[0][inside].mean().item())
        assert found.spread.item() == pytest.approx(depth[inside].std(correction=0).item())
        rows = np.nonzero(inside.numpy())[0]
        low = torch.from_numpy(rows >= np.percentile(rows, 90))
        assert found.low_depth.item() == pytest.approx(depth[inside][low].mean().item())
        assert found.low_rendered_depth.item() == pytest.approx(body[0][inside][low].mean().item())
        # The tilt of the ground is no relief of the body.
        assert found.slope.item() == pytest.approx(3.0)
        assert found.correlation.item() == pytest.approx(1.0)

    @given(seed=st.integers(0, 10**6), share=st.sampled_from([0.01, 0.1, 0.5]))
    def test_the_lowest_pixels_are_those_of_numpys_percentile(self, seed, share):
        seen = np.random.default_rng(seed).random((2, 13, 7)) < share
        low = (torch.from_numpy(seen) & _is_low(torch.from_numpy(seen))).numpy()
        for mask, found in zip(seen, low, strict=True):
            rows, columns = np.nonzero(mask)
            expected = np.zeros_like(mask)
            if len(rows):
                kept = rows >= np.percentile(rows, 90)
                expected[rows[kept], columns[kept]] = True
            np.testing.assert_array_equal(found, expected)

    def test_slope_is_the_regression_of_rows(self):
        depth, body, masks = self.maps(1)
        depth = depth + 0.01 * torch.sin(100 * body[0])
        found = mask_depths(depth, body, masks)
        rows = [
            (d[m] - d[m].mean(), b[m] - b[m].mean())
            for d, b, m in zip(depth, body[0], masks[0], strict=True)
            if m.any()
        ]
        line: Any = linregress(torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows]))
        assert found.slope.item() == pytest.approx(line.slope)
        assert found.correlation.item() == pytest.approx(line.rvalue)

    def test_depths_before_or_behind_the_body_are_masked(self):
        depth, body, masks = self.maps(2)
        clean = mask_depths(depth, body, masks)
        wall = depth.clone()
        wall[10:13, 8:20] = 50.0  # the mask spills over the wall
        wall[14, 9] = torch.nan
        found = mask_depths(wall, body, masks)
        assert found.pixels.item() == clean.pixels.item() - 3 * 12 - 1
        left = masks[0].clone()
        left[10:13] = left[14, 9] = False
        assert found.depth.item() == pytest.approx(depth[left].mean().item())
        bumped = body.clone()
        bumped[0, 20, 10] += 0.5  # an arm that is elsewhere: the slope changes little, the pixel goes
        assert mask_depths(depth, bumped, masks).pixels.item() < clean.pixels.item()

    def test_pixels_without_a_body_do_not_count(self):
        depth, body, masks = self.maps(3)
        part = body.clone()
        part[0, :20] = torch.inf
        assert mask_depths(depth, part, masks).pixels.item() == masks[0, 20:].sum()
        nobody = mask_depths(depth, body, masks & False)
        assert [value.item() for value in nobody] == [0] * 8

    def test_one_map_of_all_people(self):
        depth, body, masks = self.maps(4)
        both = torch.cat((masks, masks.roll(8, -1) & ~masks))
        shared = mask_depths(depth, body, both)
        each = mask_depths(depth, body.expand(2, -1, -1), both)
        assert all(torch.equal(a, b) for a, b in zip(shared, each, strict=True))
        batch = mask_depths(depth.expand(3, -1, -1), body.expand(3, -1, -1, -1), both.expand(3, -1, -1, -1))
        assert torch.equal(batch.depth, shared.depth.expand(3, -1))

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self):
        depth, body, masks = self.maps()
        with pytest.raises(TypeError, match="masks: expected a torch.Tensor of booleans"):
            mask_depths(depth, body, masks.double())
        with pytest.raises(ValueError, match="masks: expected shape"):
            mask_depths(depth, body, masks[:, :-1])


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, dtype=torch.float64)


def standing(body, age_offset, places, name="standing", ground=1.3):
    """People upright on the plane y = ground, in camera coordinates."""
    count = len(age_offset)
    angles = torch.from_numpy(pose(name, body.asset.joint_names))[1:].to(body.dtype)
    parameters = BodyParameters.zeros(body, count)._replace(
        global_orient=torch.tensor(UPRIGHT, dtype=body.dtype).expand(count, 3),
        body_pose=angles.expand(count, -1, -1),
        age_offset=torch.as_tensor(age_offset, dtype=body.dtype),
    )
    low = body(parameters).vertices[..., 1].amax(-1)
    x, z = torch.as_tensor(places, dtype=body.dtype).unbind(-1)
    return parameters._replace(transl=torch.stack((x, ground - low, z), -1))


CAMERA = Camera(torch.tensor([700.0, 700.0]).double(), torch.tensor([320.0, 240.0]).double())


class TestSurfaceDepth:
    def test_is_the_mean_of_a_picture(self, body):
        people = standing(body, [0.0, 0.6], [(0.3, 4.0), (-0.3, 3.0)], ground=0.9)
        vertices = body(people).vertices
        found = surface_depth(vertices, body.faces)
        for person, depth in zip(vertices, found, strict=True):
            picture = render(person, body.faces, CAMERA, size=(640, 480), light_rays=0)
            # The mean over some 10,000 pixel centres of a relief of 10 cm.
            assert depth.item() == pytest.approx(picture.depth[picture.instance == 0].mean(), abs=2e-3)

    def test_moves_with_the_body(self, body):
        people = standing(body, [0.0], [(0.0, 4.0)])
        vertices = body(people).vertices
        scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        depth = surface_depth(scale * vertices, body.faces)
        assert torch.allclose(depth, 1.3 * surface_depth(vertices, body.faces))
        (slope,) = torch.autograd.grad(depth.sum(), scale)
        assert slope.item() == pytest.approx(depth.item() / 1.3)


class TestRescale:
    @pytest.mark.parametrize("name", ["mannequin", "anny"])
    def test_statures_and_places(self, name, body, anny_asset):
        layer = body if name == "mannequin" else agebody.SMPLA(anny_asset, dtype=torch.float64)
        people = standing(layer, [0.0, 0.0, 0.0, 0.5, 0.9], [(0.3, 4.0)] * 5)
        scale = torch.tensor([1.0, 1.05, 0.6, 1.1, 0.9], dtype=torch.float64)
        found = rescale(layer, people, scale, CAMERA)
        before = rest_height(layer, people.betas, people.age_offset)
        assert torch.allclose(found.height, scale * before, atol=1e-6)
        assert found.exact.all()
        assert found.by_age.tolist() == [False, False, True, True, True]
        roots = [layer(p).joints[:, 0] for p in (people, found.parameters)]
        assert torch.allclose(roots[1][:, 2], scale * roots[0][:, 2])
        assert torch.equal(found.parameters.body_pose, people.body_pose)
        assert found.pixels[0] < 1e-9
        # Adults are scaled nearly alike; a child has another build than an adult of its size.
        assert found.pixels[1] < 3
        assert found.pixels.max() < 15

    def test_sideways_is_the_best(self, body):
        people = standing(body, [0.0], [(0.4, 4.0)])
        found = rescale(body, people, torch.tensor([0.55], dtype=torch.float64), CAMERA)
        before = body.keypoints("smpl24", people)

        def squares(shift):
            moved = found.parameters._replace(transl=found.parameters.transl + shift)
            after = body.keypoints("smpl24", moved)
            return (CAMERA.project(after).pixels - CAMERA.project(before).pixels).square().sum().item()

        steps = 1e-3 * torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64)
        assert all(squares(step) > squares(0 * step) for step in steps)

    def test_a_child_that_shrinks_changes_its_age(self, body):
        people = standing(body, [0.0, 0.0], [(0.0, 4.0)] * 2)
        scale = torch.tensor([0.9, 0.9], dtype=torch.float64)
        found = rescale(body, people, scale, CAMERA, child=torch.tensor([True, False]))
        assert found.by_age.tolist() == [True, False]
        assert found.parameters.age_offset[0] > 0.1
        assert found.parameters.betas[1, 0] != 0
        assert found.parameters.betas[0, 0] == 0

    def test_says_where_it_cannot(self, body):
        people = standing(body, [0.9], [(0.0, 3.0)])
        found = rescale(body, people, torch.tensor([0.5], dtype=torch.float64), CAMERA)
        assert not found.exact.any()
        assert found.parameters.age_offset.item() == 1.0

    def test_the_root_can_be_given(self, body):
        people = standing(body, [0.0], [(0.0, 4.0)])
        root = torch.tensor([[0.1, 0.2, 5.0]], dtype=torch.float64)
        found = rescale(body, people, torch.ones(1, dtype=torch.float64), CAMERA, root=root)
        assert body(found.parameters).joints[0, 0, 2].item() == pytest.approx(5.0)

    def test_a_body_of_one_age(self, mannequin_asset):
        adult = agebody.SMPL(mannequin_asset, dtype=torch.float64)
        people = BodyParameters.zeros(adult, 1)._replace(
            transl=torch.tensor([[0.0, 0, 4]], dtype=torch.float64)
        )
        found = rescale(adult, people, torch.tensor([0.95], dtype=torch.float64), CAMERA)
        assert found.exact.all()
        assert not found.by_age.any()

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self, body):
        people = standing(body, [0.0], [(0.0, 4.0)])
        scale = torch.ones(1, dtype=torch.float64)
        with pytest.raises(ValueError, match="scale: expected shape"):
            rescale(body, people, torch.ones(2, dtype=torch.float64), CAMERA)
        with pytest.raises(TypeError, match=r"child: expected a torch.Tensor of booleans, got torch.float64"):
            rescale(body, people, scale, CAMERA, child=torch.zeros_like(scale))
        with pytest.raises(ValueError, match="camera: expected no rotation"):
            rescale(body, people, scale, CAMERA._replace(translation=torch.zeros(3)))
        for wrong in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="scale: expected finite numbers above 0"):
                rescale(body, people, wrong * scale, CAMERA)


class TestRefine:
    @staticmethod
    def scene(body):
        """An adult, a child and an infant side by side on one ground, apart from one another."""
        people = standing(body, [0.0, 0.4, 0.75], [(-0.9, 4.0), (0.0, 4.5), (0.9, 5.0)])
        out = body(people)
        points = body.keypoints("coco17", people)
        soles = out.vertices[:, part_vertices(body.asset, "feet", facing=(0, -1, 0))]
        return people, out, points, soles

    def test_the_truth_stays(self, body):
        people, out, points, soles = self.scene(body)
        height = rest_height(body, people.betas, people.age_offset)
        found = refine_crowd(
            points, CAMERA, out.joints[:, 0], feet=soles, height=height, prior=prior_at(height),
            layer=torch.tensor([0, 1, 2]), vertices=out.vertices, faces=body.faces,
        )  # fmt: skip
        assert found.converged
        assert found.cost < 1e-12
        assert torch.allclose(found.apply(out.vertices), out.vertices, atol=1e-6)
        assert torch.allclose(found.normal, torch.tensor([0.0, -1, 0]).double(), atol=1e-6)
        assert found.offset.item() == pytest.approx(-1.3, abs=1e-6)
        # In float32, in which rounding of pixels is the whole cost.
        single, focal = points[:1].float(), torch.tensor([500.0, 500.0])
        assert refine_crowd(single, Camera(focal, focal / 2), single[:, 0]).converged

    def test_wrong_sizes_come_back_to_the_ground(self, body):
        people, out, points, soles = self.scene(body)
        height = rest_height(body, people.betas, people.age_offset)
        scale = torch.tensor([1.1, 0.92, 1.12], dtype=torch.float64)
        wrong = lambda t: t * scale[:, None, None]  # noqa: E731
        root = wrong(out.joints)[:, 0]
        found = refine_crowd(
            wrong(points), CAMERA, root, feet=wrong(soles), height=scale * height, prior=prior_at(height),
        )  # fmt: skip
        error = (found.new_root - out.joints[:, 0])[:, 2].abs()
        assert found.converged
        # The ground and the priors together take away more than half of what was wrong.
        assert error.sum() < 0.5 * (root - out.joints[:, 0])[:, 2].abs().sum()
        pixels = [CAMERA.project(p).pixels for p in (points, found.apply(wrong(points)))]
        assert (pixels[0] - pixels[1]).norm(dim=-1).mean() < 1

    def test_sizes_are_held_without_a_prior(self, body):
        _, out, points, soles = self.scene(body)
        found = refine_crowd(points * 1.1, CAMERA, 1.1 * out.joints[:, 0], feet=soles * 1.2)
        assert torch.equal(found.scale, torch.ones(3, dtype=torch.float64))
        assert found.cost > 0

    def test_order(self, body):
        _, out, points, _ = self.scene(body)
        layer = torch.tensor([1, 0, -1])  # the second is the nearer one
        found = refine_crowd(points, CAMERA, out.joints[:, 0], layer=layer)
        before, after = out.joints[:, 0, 2], found.new_root[:, 2]
        assert after[1] - after[0] < before[1] - before[0]
        assert after[2] == pytest.approx(before[2].item())
        strict = Deviations(order=0.001, depth=1.0, pixels=100.0)
        found = refine_crowd(points, CAMERA, out.joints[:, 0], layer=layer, deviations=strict)
        assert found.new_root[0, 2] - found.new_root[1, 2] == pytest.approx(0.3, abs=0.01)

    def test_people_leave_one_another(self, body):
        people = standing(body, [0.0, 0.3], [(0.0, 4.0), (0.25, 4.1)])
        out = body(people)
        points = body.keypoints("coco17", people)
        inside = find_penetrations(out.vertices.float(), body.faces)
        height = rest_height(body, people.betas, people.age_offset)
        found = refine_crowd(
            points, CAMERA, out.joints[:, 0], vertices=out.vertices, faces=body.faces, height=height,
            prior=prior_at(height),
        )  # fmt: skip
        after = find_penetrations(found.apply(out.vertices).float(), body.faces)
        assert len(inside.image) > 20
        assert len(after.image) < len(inside.image) / 4
        pixels = [CAMERA.project(p).pixels for p in (points, found.apply(points))]
        assert (pixels[0] - pixels[1]).norm(dim=-1).mean() < 3  # the standard deviation it was given

    def test_people_of_weight_0_stay_where_they_are(self, body):
        (points, camera, root), given = self.too_large(body, 1.05)
        found = refine_crowd(points, camera, root, weights=torch.tensor([1, 0, 1]).double(), **given)
        assert torch.equal(found.new_root[1], root[1])
        assert torch.allclose(found.apply(points)[1], points[1])
        assert not torch.allclose(found.new_root[0], root[0])

    @pytest.mark.parametrize(
        ("place", "sizes"), [((0.1, 4.0), True), ((0.1, 4.0), False), ((0.4, 4.02), True)], ids=str
    )
    def test_people_deep_in_one_another_come_apart(self, body, place, sizes):
        """Arms stretched out sideways, one body in the other; the nearest way out differs by vertex."""
        people = standing(body, [0.0, 0.0], [(0.0, 4.0), place])
        out = body(people)
        points = body.keypoints("coco17", people)
        height = rest_height(body, people.betas, people.age_offset)
        given: dict[str, Any] = {"vertices": out.vertices, "faces": body.faces}
        if sizes:
            given |= {"height": height, "prior": prior_at(height)}
        start = refine_crowd(points, CAMERA, out.joints[:, 0], max_iterations=0, **given)
        found = refine_crowd(points, CAMERA, out.joints[:, 0], **given)
        before = penetration(out.vertices.float(), body.faces).depth.amax(-1)
        after = penetration(found.apply(out.vertices).float(), body.faces).depth.amax(-1)
        assert before.max() > 0.07
        assert after.max() < (0.005 if sizes else 0.02)
        assert found.penetration is not None
        assert torch.allclose(found.penetration, after.double(), atol=1e-4)
        assert bool(found.converged) == (after.max() <= 0.01)
        assert found.cost < start.cost

    @pytest.mark.parametrize("apart", [0.0, 0.005, 0.05])
    def test_people_in_one_place_are_not_resolved(self, body, apart):
        """The vertices of a body inside itself are deep nowhere, so the nearest way out leads into it."""
        people = standing(body, [0.0, 0.0], [(0.0, 4.0), (apart, 4.0)])
        out = body(people)
        found = refine_crowd(
            body.keypoints("coco17", people),
            CAMERA,
            out.joints[:, 0],
            vertices=out.vertices,
            faces=body.faces,
        )
        moved = found.apply(out.vertices)
        together = (moved[0] - moved[1]).norm(dim=-1).mean() < 0.05
        assert not found.converged
        assert together == (apart < 0.05)

    def test_fixed_people_in_collision_are_reported(self, body):
        people = standing(body, [0.0, 0.3], [(0.0, 4.0), (0.1, 4.0)])
        out = body(people)
        points = body.keypoints("coco17", people)
        found = refine_crowd(
            points, CAMERA, out.joints[:, 0], vertices=out.vertices, faces=body.faces,
            deviations=Deviations(pixels=0.01, depth=1e-3),
        )  # fmt: skip
        assert not found.converged
        assert found.penetration is not None
        assert found.penetration.max() > 0.03

    LEVELS = (
        ((), 0.0, [0] * 6),
        ((2,), 0.5, [0, 0, -1, 0, 0, 0]),
        ((1, 2), 0.8, [0, 1, 1, 0, 0, 0]),
        ((0, 2, 4), 0.3, [1, 0, 1, 0, 1, 0]),
        ((0, 2, 4), 0.5, [1, 0, 1, 0, 1, 0]),
    )

    @pytest.mark.parametrize(("lifted", "by", "expected"), LEVELS, ids=[str(case[:2]) for case in LEVELS])
    @pytest.mark.parametrize("noise", [0.0, 0.05])
    def test_ground_with_a_step(self, body, lifted, by, expected, noise):
        """People above the others are not pulled down, nor pull the others up."""
        places = [(-2 + 0.8 * i, 4 + depth) for i, depth in enumerate((0.9, 1.2, 0.2, 1.8, 0.6, 1.4))]
        people = standing(body, [0.0, 0.3, 0.6, 0.0, 0.2, 0.75], places)
        rise = torch.zeros(6, 3, dtype=torch.float64)
        rise[list(lifted), 1] = -by
        people = people._replace(transl=people.transl + rise)
        out = body(people)
        size = torch.exp(noise * torch.randn(6, generator=torch.Generator().manual_seed(0)).double())
        wrong = lambda t: size[:, None, None] * t  # noqa: E731
        height = rest_height(body, people.betas, people.age_offset)
        found = refine_crowd(
            wrong(body.keypoints("coco17", people)), CAMERA, wrong(out.joints)[:, 0], height=size * height,
            prior=prior_at(height),
            feet=wrong(out.vertices[:, part_vertices(body.asset, "feet", facing=(0, -1, 0))]),
        )  # fmt: skip
        assert found.level.tolist() == expected
        assert found.held.tolist() == [level >= 0 for level in expected]
        assert found.step.item() == pytest.approx(by if 1 in expected else 0, abs=0.05 if noise else 1e-6)
        error = (found.new_root[:, 2] / out.joints[:, 0, 2] - 1).abs()
        given = (size - 1).abs()
        assert error.mean() <= 0.7 * given.mean() + 1e-6
        assert error.max() <= given.max() + 1e-6
        assert found.converged

    @staticmethod
    def too_large(body, factor):
        """People drawn larger by a factor, and what is known of them."""
        people, out, points, soles = TestRefine.scene(body)
        height = rest_height(body, people.betas, people.age_offset)
        given = {"feet": soles * factor, "height": height * factor, "prior": prior_at(height, 0.05)}
        return (points * factor, CAMERA, out.joints[:, 0] * factor), given

    def test_images_do_not_see_each_other_and_absent_people_are_not_looked_at(self, body):
        one, more = self.too_large(body, 1.05)
        other, rest = self.too_large(body, 0.9)
        alone = refine_crowd(*one, **more)
        both = lambda a, b: torch.stack((b, a))  # noqa: E731
        batch = refine_crowd(
            both(one[0], other[0]), CAMERA, both(one[2], other[2]), feet=both(more["feet"], rest["feet"]),
            height=both(more["height"], rest["height"]),
            prior=HeightPrior(*map(both, more["prior"], rest["prior"])),
        )  # fmt: skip
        assert torch.allclose(batch.new_root[1], alone.new_root, atol=1e-6)
        ghost = lambda t: torch.cat((t, torch.full_like(t[:1], torch.nan)))  # noqa: E731
        haunted = refine_crowd(
            ghost(one[0]), CAMERA, ghost(one[2]), feet=ghost(more["feet"]), height=ghost(more["height"]),
            prior=HeightPrior(*map(ghost, more["prior"])), weights=torch.tensor([1, 1, 1, 0]).double(),
        )  # fmt: skip
        assert torch.allclose(haunted.new_root[:3], alone.new_root, atol=1e-6)
        assert haunted.new_root[3].isnan().all()
        assert haunted.held.tolist() == [True, True, True, False]
        assert haunted.cost.item() == pytest.approx(alone.cost.item())

    def test_derivatives(self, body, monkeypatch):
        """The gradient against differences, of all terms; depths have one where a search finds the same."""
        module: Any = importlib.import_module("agebody.crowd.refine")

        people, out, points, soles = self.scene(body)
        height = rest_height(body, people.betas, people.age_offset)
        caught = {}

        def catch(quadratize, start, **options):
            caught.update(quadratize=quadratize, start=start)
            return module_minimize(quadratize, start, **options)

        module_minimize = module.minimize
        monkeypatch.setattr(module, "minimize", catch)
        crossed = out.vertices - torch.tensor([[-0.7, 0, 0.4], [0, 0, 0], [0.7, 0, 0.4]]).double()[:, None]
        refine_crowd(
            points * 1.05, CAMERA._replace(distortion=torch.tensor([0.05, 0.01, 0, 0]).double()),
            out.joints[:, 0], feet=soles, height=height, prior=prior_at(height * 1.1),
            layer=torch.tensor([1, 0, 0]), vertices=crossed, faces=body.faces, max_iterations=1,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        x = caught["start"] + 0.01 * torch.randn(
            caught["start"].shape, generator=generator, dtype=torch.float64
        )
        rows = torch.zeros(1, dtype=torch.long)
        found = caught["quadratize"](x, rows)
        step = 1e-6
        ways = step * torch.eye(x.shape[1], dtype=torch.float64)
        cost = lambda at: caught["quadratize"](at, rows).cost  # noqa: E731
        slopes = torch.stack([(cost(x + way) - cost(x - way)) / (2 * step) for way in ways], -1)
        assert torch.allclose(found.gradient, slopes, rtol=1e-5, atol=1e-4 * slopes.abs().max().item())
        assert torch.linalg.eigvalsh(found.normal).min() > -1e-6 * found.normal.abs().max()

    @pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
    def test_no_people_are_refined(self, shape):
        points, root = (torch.zeros(*shape, *entry, dtype=torch.float64) for entry in ((17, 3), (3,)))
        found = refine_crowd(points, CAMERA, root, feet=points)
        assert found.new_root.shape == root.shape
        assert found.normal.shape == (*shape[:-1], 3)
        assert found.terms.keys() == {"pixels", "depth", "ground", "tilt"}
        assert found.converged.all()

    @pytest.mark.usefixtures("unchecked")
    def test_errors(self, body):
        _, out, points, _ = self.scene(body)
        root = out.joints[:, 0]
        spoiled = points.clone()
        spoiled[1, 3] = torch.nan
        seen = CAMERA.project(points.flatten(0, 1)).pixels.unflatten(0, points.shape[:2])
        wrong: tuple[tuple[str, tuple[Any, Any, Any], dict[str, Any]], ...] = (
            ("up: expected a direction", (points, CAMERA, root), {"up": (0.0, 0.0, 0.0)}),
            ("points: expected finite places", (spoiled, CAMERA, root), {}),
            ("points: expected finite places", (-points, CAMERA, root), {}),
            ("root: expected finite places", (points, CAMERA, -root), {}),
            ("pixels: expected finite", (points, CAMERA, root), {"pixels": seen * torch.nan}),
            (
                "pixel_weights: expected finite",
                (points, CAMERA, root),
                {"pixels": seen, "pixel_weights": -torch.ones_like(seen[..., 0])},
            ),
            ("weights: expected finite", (points, CAMERA, root), {"weights": -torch.ones_like(root[:, 0])}),
            ("feet: expected finite", (points, CAMERA, root), {"feet": spoiled}),
            (
                "prior.sd: expected finite",
                (points, CAMERA, root),
                {"height": root[:, 2], "prior": HeightPrior(root[:, 2], 0 * root[:, 2])},
            ),
        )
        for message, arguments, options in wrong:
            with pytest.raises(ValueError, match=message):
                refine_crowd(*arguments, **options)
        nowhere = torch.full_like(seen, torch.nan)
        nothing = torch.zeros_like(seen[..., 0])
        found = refine_crowd(points, CAMERA, root, pixels=nowhere, pixel_weights=nothing)
        assert torch.allclose(found.new_root, root)
        with pytest.raises(ValueError, match=r"root: expected shape \(3, 3\)"):
            refine_crowd(points, CAMERA, root[:2])
        with pytest.raises(ValueError, match="height, prior: expected both or neither"):
            refine_crowd(points, CAMERA, root, height=root[:, 0])
        with pytest.raises(ValueError, match="vertices, faces: expected both or neither"):
            refine_crowd(points, CAMERA, root, vertices=out.vertices)
        with pytest.raises(
            ValueError, match=r"feet: expected at least one point of each person, got \(.*0, 3"
        ):
            refine_crowd(points, CAMERA, root, feet=points[:, :0])
        mistakes: dict[str, Any] = {
            "layer": root[:, 0],
            "up": (0, 1),
            "prior": (1.7, 0.1),
            "deviations": {"pixels": 3.0},
            "feet": points.float(),
            "max_iterations": 1.5,
        }
        for name, mistake in mistakes.items():
            with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
                refine_crowd(points, CAMERA, root, **{name: mistake})
        for name, none in (("pixels", 0.0), ("depth", math.nan), ("ground_reach", -0.1)):
            with pytest.raises(ValueError, match=f"^deviations.{name}: expected a standard deviation"):
                refine_crowd(points, CAMERA, root, deviations=Deviations(**{name: none}))


@pytest.fixture(scope="module")
def files(body, tmp_path_factory):
    """An image of three people, its truth, and LABELS in which everybody has the wrong size."""
    from agebody.pipelines.labels import Labels

    folder = tmp_path_factory.mktemp("crowd")
    (folder / "depth").mkdir()
    (folder / "masks").mkdir()
    truth = standing(body, [0.0, 0.45, 0.8], [(-0.7, 3.5), (0.1, 4.2), (0.8, 3.0)], ground=1.0)
    wrong = torch.tensor([1.1, 1.25, 1.5], dtype=torch.float64)
    vertices = body(truth).vertices
    picture = render(vertices, body.faces, CAMERA, size=(640, 480), light_rays=0)
    depth = np.where(np.isfinite(picture.depth), picture.depth, 9.0)
    np.save(folder / "depth" / "a.npy", depth)
    np.save(folder / "masks" / "a.npy", picture.instance + 1)
    start = rescale(body, truth, wrong, CAMERA).parameters
    people = {name: tensor.numpy() for name, tensor in start._asdict().items()}
    out = body(start)
    pixels = CAMERA.project(body.keypoints("coco17", truth)).pixels
    count = 3
    jaxtyping.config.update("jaxtyping_disable", True)  # the command's own errors are what is tested
    labels = Labels(
        body=body.asset.metadata.name, joint_names=tuple(body.asset.joint_names), keypoint_layout="coco17",
        ids=np.arange(7, 10), image_ids=np.array(["a.jpg"] * count),
        image_sizes=np.array([[640, 480]] * count),
        **people, focal=CAMERA.focal.expand(count, 2).numpy(), center=CAMERA.center.expand(count, 2).numpy(),
        distortion=np.zeros((count, 8)),
        observed=np.concatenate((pixels.numpy(), np.ones((count, 17, 1))), -1), keypoints=pixels.numpy(),
        joints=out.joints.numpy(), depth=out.joints[:, 0, 2].numpy(), boxes=np.zeros((count, 4)),
        scores=np.ones(count), reprojection=np.zeros(count), start_reprojection=np.zeros(count),
        converged=np.ones(count, bool), iterations=np.ones(count, int), stop=np.array(["COST"] * count),
        cost=np.zeros(count), kept=np.ones(count, bool),
        age_known=np.zeros(count, bool), age_class=np.full(count, -1), age_offset_sd=np.zeros(count),
        stature=np.ones(count), stature_sd=np.zeros(count), depth_sd=np.zeros(count),
        track=np.full(count, -1),
    )  # fmt: skip
    labels.save(folder / "labels.npz")
    jaxtyping.config.update("jaxtyping_disable", False)
    ages = AgeCurve.from_asset(body.asset).offset_to_years(truth.age_offset)
    known = {str(7 + i): {"years": float(age)} for i, age in enumerate(ages)}
    (folder / "people.json").write_text(json.dumps(known))
    return folder, truth, body(truth).joints[:, 0, 2].numpy()


def in_folder(path):
    """Replace a file by a folder that holds it."""
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(content)


def with_nan_bodies(path):
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"betas": np.full_like(arrays["betas"], np.nan)})


@pytest.mark.usefixtures("unchecked")
class TestCommand:
    @staticmethod
    def run(folder, *options):
        arguments = [
            "crowd",
            str(folder / "labels.npz"),
            "--depth",
            str(folder / "depth"),
            "--body",
            "mannequin",
        ]
        return CliRunner().invoke(app, [*arguments, *options])

    def test_places_people(self, files, body, tmp_path):
        from agebody.pipelines.labels import load_labels

        folder, truth, depth = files
        output = tmp_path / "out.npz"
        result = self.run(
            folder, "-o", str(output), "--masks", str(folder / "masks"),
            "--people", str(folder / "people.json"), "--json", "--views", str(tmp_path / "views"),
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        before, after = load_labels(folder / "labels.npz"), load_labels(output)
        # The priors are those of the WHO, not of these three people: some percent.
        assert np.abs(np.log(after.depth / depth)).max() < 0.06
        assert np.abs(np.log(before.depth / depth)).max() > 0.3
        heights = [
            rest_height(body, torch.from_numpy(betas), torch.from_numpy(ages)).numpy()
            for betas, ages in (
                (truth.betas.numpy(), truth.age_offset.numpy()),
                (after.betas, after.age_offset),
            )
        ]
        assert np.abs(np.log(heights[1] / heights[0])).max() < 0.06
        np.testing.assert_allclose(after.stature, heights[1], rtol=0.01)
        assert after.reprojection.max() < 12
        (row,) = json.loads(result.stdout)
        assert [person["placed"] for person in row["people"]] == [True] * 3
        assert row["people"][0]["id"] == 7
        assert (tmp_path / "views" / "a.png").is_file()

    @pytest.mark.parametrize(("kind", "people"), [("npy", 3), ("png", 3), ("png", 1)])
    def test_a_map_in_metres_places_everybody_where_it_says(self, files, tmp_path, kind, people):
        """Also one person alone, whom no map of unknown unit could place; priors and ages change nothing."""
        from agebody.pipelines.labels import load_labels

        folder, _, depth = files
        there = tmp_path / "there"
        shutil.copytree(folder, there)
        load_labels(folder / "labels.npz").select(np.arange(people)).save(
            there / "labels.npz", overwrite=True
        )
        given = ["-o", str(tmp_path / "o.npz"), "--json"]
        if kind == "npy":
            given.append("--metric")
        else:
            metres = np.load(there / "depth" / "a.npy")
            (there / "depth" / "a.npy").unlink()
            Image.fromarray(np.rint(1000 * metres).astype(np.uint16)).save(there / "depth" / "a.png")
        result = self.run(there, *given)
        assert result.exit_code == 0, result.output
        assert np.abs(load_labels(tmp_path / "o.npz").depth / depth[:people] - 1).max() < 0.01
        (row,) = json.loads(result.stdout)
        assert row["slope"] == [1, 0]
        assert [person["placed"] for person in row["people"]] == [True] * people

    def test_unplaced_people_are_reported(self, files, tmp_path):
        from agebody.pipelines.labels import load_labels

        folder, _, _ = files
        there = tmp_path / "there"
        shutil.copytree(folder, there)
        output = tmp_path / "o.npz"
        millimetres = 1000 * np.load(folder / "depth" / "a.npy")
        np.save(there / "depth" / "a.npy", millimetres)
        result = self.run(there, "-o", str(output), "--metric")
        assert result.exit_code == 1
        assert "image a.jpg: depth: expected metres, got" in result.stderr
        result = self.run(there, "-o", str(output), "--metric", "--disparity")
        assert result.exit_code != 0
        assert "--metric" in result.stderr
        load_labels(folder / "labels.npz").select(np.arange(1)).save(there / "labels.npz", overwrite=True)
        result = self.run(there, "-o", str(output))
        assert result.exit_code == 1
        assert "nobody could be placed: a map of unknown unit needs two people" in result.stderr
        assert not output.exists()
        far = np.load(folder / "depth" / "a.npy")
        far[:, :240] += 9  # behind the first person, who would be a giant there
        np.save(there / "depth" / "a.npy", far)
        shutil.copy(folder / "labels.npz", there / "labels.npz")
        result = self.run(there, "-o", str(output), "--metric")
        assert result.exit_code == 0
        assert "note: 1 of 3 people were not placed" in result.stderr

    def test_disparity_and_covered_pixels(self, files, tmp_path):
        from agebody.pipelines.labels import load_labels

        folder, _, depth = files
        (tmp_path / "disparity").mkdir()
        np.save(tmp_path / "disparity" / "a.npy", 300 / np.load(folder / "depth" / "a.npy"))
        result = self.run(
            folder, "-o", str(tmp_path / "o.npz"), "--depth", str(tmp_path / "disparity"), "--disparity",
            "--people", str(folder / "people.json"), "--refine",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert np.abs(np.log(load_labels(tmp_path / "o.npz").depth / depth)).max() < 0.1

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: (f / "depth" / "a.npy").unlink(), "expected a.npy or a.png in it"),
            (
                lambda f: np.save(f / "depth" / "a.npy", np.zeros((4, 4, 3))),
                r"expected numbers of shape \(H, W\)",
            ),
            (lambda f: np.save(f / "depth" / "a.npy", np.ones((480, 480))), "the map of a.jpg has 480 x 480"),
            (lambda f: (f / "depth" / "a.npy").write_bytes(b"no array"), "cannot be read"),
            (lambda f: (f / "people.json").write_text("{"), "not a JSON file"),
            (lambda f: (f / "people.json").write_text('{"7": {"years": -1}}'), "expected .*years"),
            (lambda f: (f / "people.json").write_text('{"70": {"years": 3}}'), "such as 7, got 70"),
            (lambda f: (f / "labels.npz").write_bytes(b"PK"), "not an npz file"),
            (lambda f: in_folder(f / "labels.npz"), "labels.npz: a folder, not a file; it holds labels.npz"),
            (
                lambda f: with_nan_bodies(f / "labels.npz"),
                r"labels.npz: betas: expected finite numbers",
            ),
            (lambda f: np.save(f / "masks" / "a.npy", np.full((480, 640), 9)), "has a person 9"),
        ],
    )
    def test_errors_name_the_cause(self, files, tmp_path, spoil, message):
        folder = tmp_path / "copy"
        shutil.copytree(files[0], folder)
        spoil(folder)
        output = tmp_path / "out.npz"
        result = self.run(
            folder,
            "-o",
            str(output),
            "--masks",
            str(folder / "masks"),
            "--people",
            str(folder / "people.json"),
        )
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert re.search(message, result.output), result.output
        assert list(tmp_path.iterdir()) == [folder]

    def two_images(self, files, tmp_path, names):
        """LABELS of two images with one person each, and a depth map of each, one twice as far."""
        from agebody.pipelines.labels import load_labels

        labels = load_labels(files[0] / "labels.npz").select(slice(0, 2))
        (tmp_path / "in").mkdir()
        replace(labels, image_ids=np.array(names)).save(tmp_path / "in" / "labels.npz")
        depth = np.load(files[0] / "depth" / "a.npy")
        for name, factor in zip(names, (1, 2), strict=True):
            path = (tmp_path / "in" / "depth" / name).with_suffix(".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, factor * depth)
        return tmp_path / "in"

    def test_maps_and_pictures_are_those_in_the_folder_of_the_image(self, files, tmp_path, monkeypatch):
        labels = importlib.import_module("agebody.pipelines.labels.place_images")
        given = []

        def place(body, people, depth, **options):
            given.append(depth.min())
            return place_labels(body, people, depth, **options)

        place_labels = labels.place_labels
        monkeypatch.setattr(labels, "place_labels", place)
        folder = self.two_images(files, tmp_path, ["one/a.jpg", "two/a.jpg"])
        views = ("--metric", "--views", str(tmp_path / "views"))
        result = self.run(folder, "-o", str(tmp_path / "out.npz"), *views)
        assert result.exit_code == 0, result.output
        assert given[1] == pytest.approx(2 * given[0])
        assert sorted(p.name for p in (tmp_path / "views").iterdir()) == ["one__a.png", "two__a.png"]
        shutil.move(folder / "depth" / "one" / "a.npy", folder / "depth" / "a.npy")
        (folder / "depth" / "two" / "a.npy").unlink()
        result = self.run(folder, "-o", str(tmp_path / "none.npz"))
        assert result.exit_code == 1
        assert "would be the map of one/a.jpg and of two/a.jpg" in result.output

    def test_never_overwrites_unasked_or_its_own_input(self, files, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(files[0], folder)
        labels, output = folder / "labels.npz", tmp_path / "out.npz"
        before = labels.read_bytes()
        for options, message in (
            (("-o", str(labels)), "that the command reads"),
            (("-o", str(labels), "--overwrite"), "that the command reads"),
            (("-o", str(labels / "out.npz")), "cannot write in this folder"),
        ):
            result = self.run(folder, *options)
            assert result.exit_code == 1
            assert message in result.output
        output.write_bytes(b"mine")
        result = self.run(folder, "-o", str(output))
        assert result.exit_code == 1
        assert "exists; give --overwrite to replace it" in result.output
        (tmp_path / "views").mkdir()
        (tmp_path / "views" / "a.png").write_bytes(b"mine")
        views = ("--views", str(tmp_path / "views"))
        assert self.run(folder, "-o", str(tmp_path / "new.npz"), *views).exit_code == 1
        assert output.read_bytes() == (tmp_path / "views" / "a.png").read_bytes() == b"mine"
        assert labels.read_bytes() == before

    def test_people_are_flagged_as_they_are_now(self, files, body):
        """Whoever stands elsewhere in the image than the keypoints is kept no more."""
        from agebody.pipelines.labels import load_labels, place_labels

        labels = load_labels(files[0] / "labels.npz").select(slice(0, 1))
        far = labels.observed + np.array([1000.0, 0, 0])
        labels = replace(labels, observed=far, boxes=np.array([[0.0, 0, 300, 300]]))
        assert labels.kept.all()
        depth = np.load(files[0] / "depth" / "a.npy")
        found = place_labels(body, labels, depth).labels
        assert found.flags["infantnet"].all()
        assert not found.kept.any()
