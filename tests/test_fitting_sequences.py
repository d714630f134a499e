"""One person in many images: videos, several cameras, photographs."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import agebody
from agebody.cameras import Camera
from agebody.fitting import start as start_module
from agebody.fitting.clips import Clips
from agebody.fitting.frames import AIONHMR, fit_keypoints, fit_sequence
from agebody.fitting.observed import read_observed
from agebody.fitting.start import best_path, triangulate
from agebody.optim import Stage
from agebody.optim.least_squares import Stop
from agebody.optim.motion import Motion
from agebody.optim.problem import Problem
from agebody.parameters import BodyParameters
from agebody.people import pose, random_people
from agebody.rotations import axis_angle_to_matrix, matrix_to_axis_angle


@pytest.fixture(scope="module")
def body(mannequin_asset) -> agebody.SMPLA:
    return agebody.SMPLA(mannequin_asset)


class Clip(NamedTuple):
    """Somebody who walks past a camera and cheers."""

    parameters: BodyParameters
    pixels: Tensor
    camera: Camera


def make_clip(body: agebody.SMPLA, frames: int, *, age: float = 0.4, seed: int = 0, views: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(frames) / 40
    start, end = (
        torch.from_numpy(pose(kind, body.asset.joint_names)[1:]).float() for kind in ("walking", "cheering")
    )
    share = (0.5 - 0.5 * torch.cos(2 * torch.pi * time))[:, None, None]
    zero = torch.zeros_like(time)
    turn = axis_angle_to_matrix(torch.stack((zero, 0.5 + 0.8 * time, zero), -1))
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    parameters = BodyParameters(
        matrix_to_axis_angle(upright @ turn),
        (1 - share) * start + share * end,
        (0.7 * torch.randn(10, generator=generator)).expand(frames, -1),
        torch.full((frames,), age),
        torch.stack((time - 0.4, 0.1 + zero, 3.5 + 0.3 * time), -1),
    )
    points = body.keypoints("coco17", parameters)
    camera = Camera(torch.tensor([800.0, 800.0]), torch.tensor([480.0, 360.0]))
    if views:  # on a circle about a point before the first of them
        angle = 1.3 * torch.arange(views) / max(1, views - 1)
        rotation = axis_angle_to_matrix(torch.stack((0 * angle, angle, 0 * angle), -1))
        middle = torch.tensor([0.0, 0.0, 3.5])
        camera = Camera(*camera[:2], rotation, middle - rotation @ middle)
        points = points[:, None]
    return Clip(parameters, camera.project(points).pixels, camera)


def joints(body: agebody.SMPLA, parameters: BodyParameters) -> Tensor:
    return body.keypoints("smpl24", parameters)


def errors(body: agebody.SMPLA, found: BodyParameters, truth: BodyParameters) -> Tensor:
    """(T) root-aligned errors of joints [m]."""
    a, b = joints(body, found), joints(body, truth)
    return (a - a[..., :1, :] - b + b[..., :1, :]).norm(dim=-1).mean(-1)


FRAMES = 8


@pytest.fixture(scope="module")
def noisy(body):
    """A clip with noise, points and frames that are missing; its frames fitted alone, and together."""
    clip = make_clip(body, FRAMES)
    generator = torch.Generator().manual_seed(1)
    weights = (torch.rand(FRAMES, 17, generator=generator) > 0.25).float()
    weights[3:5] = 0
    seen = clip.pixels + 4 * torch.randn(clip.pixels.shape, generator=generator)
    seen = torch.where(weights[..., None] > 0, seen, torch.nan)
    alone = fit_keypoints(body, seen, clip.camera, weights=weights, noise=4.0)
    together = fit_sequence(body, seen, clip.camera, weights=weights, noise=4.0)
    return clip, weights, alone, together


def test_clips_are_better_than_their_frames(body, noisy):
    clip, weights, alone, together = noisy
    seen = weights.sum(-1) > 0
    frame, sequence = (errors(body, fit.parameters, clip.parameters) for fit in (alone, together))
    assert together.report.converged
    # Three quarters of the error are a wide margin: it is about a half.
    assert sequence[seen].mean() < 0.75 * frame[seen].mean()
    # Where nobody is seen a frame alone knows nothing; between its neighbours it is as good as these.
    assert sequence[~seen].max() < 2 * sequence[seen].mean()
    steps = lambda fit: joints(body, fit.parameters).diff(dim=0).norm(dim=-1)  # noqa: E731
    assert steps(together).mean() < 0.5 * steps(alone).mean()


def test_shape_and_age_are_shared(noisy):
    found = noisy[-1].parameters
    assert (found.betas == found.betas[0]).all()
    assert (found.age_offset == found.age_offset[0]).all()
    assert found.body_pose.std(0).max() > 0.1


def test_reprojection_and_terms_are_of_the_result(body, noisy):
    clip, weights, _, fit = noisy
    points = body.keypoints("coco17", fit.parameters)
    generator = torch.Generator().manual_seed(1)
    torch.rand(FRAMES, 17, generator=generator)
    seen = clip.pixels + 4 * torch.randn(clip.pixels.shape, generator=generator)
    off = weights * (clip.camera.project(points).pixels - seen).norm(dim=-1)
    expected = off.sum(-1) / weights.sum(-1)  # NaN where the person is not seen
    torch.testing.assert_close(fit.error, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    torch.testing.assert_close(sum(fit.report.terms.values()), fit.report.cost, rtol=1e-4, atol=1e-4)
    rest = body.keypoints("smpl24", betas=fit.parameters.betas[0], age_offset=fit.parameters.age_offset[0])
    tall, grown = ((r[15] - r[[7, 8]].mean(0)).norm() for r in (rest, body.keypoints("smpl24")))
    moves = joints(body, fit.parameters).diff(dim=0).square().sum() / 2 / (0.1 * tall / grown) ** 2
    torch.testing.assert_close(fit.report.terms["motion"], moves, rtol=1e-3, atol=0)


def test_several_cameras_see_to_the_millimetre(body):
    clip = make_clip(body, 1, age=0.7, views=3)
    fit = fit_sequence(body, clip.pixels, clip.camera, views=True, noise=0.05)
    assert fit.error.shape == (1, 3)
    assert fit.error.max() < 0.1
    # Of the points that were seen. How forearms and trunk are twisted in between, priors decide.
    points = [body.keypoints("coco17", p) for p in (fit.parameters, clip.parameters)]
    assert (points[0] - points[1]).norm(dim=-1).max() < 2e-3


def test_several_cameras_over_time(body):
    clip = make_clip(body, 3, age=0.2, views=2)
    fit = fit_sequence(body, clip.pixels, clip.camera, views=True, noise=0.5)
    assert fit.error.shape == (3, 2)
    points = [body.keypoints("coco17", p) for p in (fit.parameters, clip.parameters)]
    assert (points[0] - points[1]).norm(dim=-1).mean() < 4e-3  # a pixel is 4 mm there


def test_the_same_mistakes_in_every_frame_are_no_more_evidence(body):
    clip = make_clip(body, 1, age=0.3)
    generator = torch.Generator().manual_seed(2)
    seen = clip.pixels + 6 * torch.randn(clip.pixels.shape, generator=generator)
    one, many = (
        fit_sequence(body, seen.expand(frames, -1, -1), clip.camera, motion_sd=None, noise=6.0)
        for frames in (1, 12)
    )
    for sd, repeated in zip(one.standard_errors, many.standard_errors, strict=True):
        assert 0.6 < repeated.mean() / sd.mean() < 1.05  # of 12 independent frames, 0.3
    few, all_betas = (fit.parameters.betas.square().sum(-1).mean() for fit in (one, many))
    assert all_betas < 2.5 * few


def test_photographs_share_a_shape_and_nothing_else(body):
    clip = make_clip(body, 4, age=0.6)
    pixels = clip.pixels[[0, 2, 1, 3]]
    fit = fit_sequence(body, clip.pixels, clip.camera, motion_sd=None)
    mixed = fit_sequence(body, pixels, clip.camera, motion_sd=None)
    assert "motion" not in fit.report.terms
    # Rows of a batch take other paths through products of matrices; both are at one minimum.
    torch.testing.assert_close(mixed.report.cost, fit.report.cost, rtol=1e-2, atol=0)
    torch.testing.assert_close(
        mixed.parameters.age_offset[0], fit.parameters.age_offset[0], rtol=0, atol=0.05
    )


def test_clips_of_different_lengths(body):
    long, short = make_clip(body, 3), make_clip(body, 2, age=0.7, seed=1)
    padded = torch.full((2, 3, 17, 2), torch.nan)
    padded[0], padded[1, :2] = long.pixels, short.pixels
    weights = torch.ones(2, 3, 17)
    weights[1, 2:] = 0
    lengths = torch.tensor([3, 2])
    fit = fit_sequence(body, padded, long.camera, weights=weights, lengths=lengths)
    alone = fit_sequence(body, short.pixels, short.camera)
    for both in fit.parameters:
        assert torch.equal(both[1, 2], both[1, 1])
    torch.testing.assert_close(fit.report.cost[1], alone.report.cost, rtol=1e-2, atol=0)
    apart = (joints(body, fit.parameters.map(lambda t: t[1, :2])) - joints(body, alone.parameters)).norm(
        dim=-1
    )
    assert apart.max() < 0.02  # the last per cent of the cost
    chunks = fit_sequence(body, padded, long.camera, weights=weights, lengths=lengths, batch_size=1)
    torch.testing.assert_close(chunks.report.cost, fit.report.cost, rtol=1e-2, atol=0)


def test_known_values_stay_with_their_people(body):
    clip = make_clip(body, 2)
    pixels = clip.pixels.expand(3, -1, -1, -1)
    quick: dict[str, Any] = {"stages": QUICK}
    fit = fit_sequence(body, pixels, clip.camera, age_offset=torch.tensor([0.1, 0.5, torch.nan]), **quick)
    assert fit.parameters.age_offset[:2].unique(dim=1).flatten().tolist() == pytest.approx([0.1, 0.5])
    by_class = fit_sequence(body, pixels[:2], clip.camera, age_class=torch.tensor([0, 3]), **quick)
    low, high = by_class.parameters.age_offset[:, 0].tolist()
    assert -0.05 <= low <= 0.15
    assert 0.75 <= high <= 1
    depth = joints(body, clip.parameters)[:, 0, 2] * 0.7
    near = fit_sequence(body, clip.pixels, clip.camera, depth=depth, start=clip.parameters)
    torch.testing.assert_close(joints(body, near.parameters)[:, 0, 2], depth, rtol=0, atol=0.05)


QUICK = (Stage(max_iterations=6),)
"""For what does not depend on how good a fit is."""


def test_depths_of_some_people_count_in_every_chunk(body):
    clip = make_clip(body, 1)
    pixels = clip.pixels.expand(2, -1, -1, -1)
    depth = torch.tensor([[2.0], [torch.nan]])
    start = clip.parameters.map(lambda part: part.expand(2, *part.shape))
    fits = [
        fit_sequence(body, pixels, clip.camera, depth=depth, start=start, stages=QUICK, batch_size=size)
        for size in (1, 256)
    ]
    for fit in fits:
        assert joints(body, fit.parameters)[0, 0, 0, 2] == pytest.approx(2, abs=0.1)
        assert fit.report.terms["depth"][1] == 0
    torch.testing.assert_close(fits[0].report.cost, fits[1].report.cost, rtol=1e-2, atol=0)


def test_no_clips(body):
    camera = make_clip(body, 1).camera
    fit = fit_sequence(body, torch.zeros(2, 0, 3, 17, 2), camera)
    assert fit.error.shape == (2, 0, 3)
    assert fit.report.cost.shape == (2, 0)
    assert fit.parameters.body_pose.shape == (2, 0, 3, 23, 3)


def test_neither_autocast_nor_gradients_get_in(body):
    clip = make_clip(body, 2, views=2)
    find = lambda pixels: fit_sequence(  # noqa: E731
        body, pixels, clip.camera, views=True, stages=QUICK
    )
    expected = find(clip.pixels)
    with torch.autocast("cpu", torch.bfloat16):
        fit = find(clip.pixels.clone().requires_grad_())
    assert torch.equal(fit.error, expected.error)
    assert not any(part.requires_grad for part in (*fit.parameters, fit.error, fit.report.cost))


def test_starts_weigh_motion_as_the_term_does(body, monkeypatch):
    clip = make_clip(body, 4)
    given = read_observed(body, clip.pixels, clip.camera, "coco17", None, None, (0.9, None, None), None, 0.01)
    clips = Clips(body, given, torch.ones(1, 4, dtype=torch.bool), 1, 0.1, None)
    weighed = []

    def path_of(costs, places, times):
        path = best_path(costs, places, times)
        moves = np.diff(places[np.arange(4), path], axis=0)
        weighed.append(np.square(moves).sum() / 2)
        return path

    monkeypatch.setattr(start_module, "best_path", path_of)
    start = clips._start(())[1]
    problem = Problem(body, {"motion": Motion(body, 0.1)}, QUICK[0], start.vector(), clips.present)
    cost = problem.costs(problem.pack(start.vector()))["motion"]
    assert weighed == pytest.approx(cost.tolist(), rel=1e-3)


def test_no_visible_people(body):
    clip = make_clip(body, 2)
    fit = fit_sequence(body, clip.pixels * torch.nan, clip.camera, weights=torch.zeros(17), stages=QUICK)
    assert not fit.report.converged
    assert all(part.isfinite().all() for part in fit.parameters)


def test_start_is_where_the_fit_begins(body):
    clip = make_clip(body, 3)
    fit = fit_sequence(body, clip.pixels, clip.camera, start=clip.parameters, noise=1.0)
    assert errors(body, fit.parameters, clip.parameters).max() < 0.05


def test_no_fit_costs_more_than_its_starts(body):
    """Neither than the frames fitted alone, nor than what was given, however bad the stages between are."""
    clip = make_clip(body, 4, seed=2)
    given = (
        body,
        clip.pixels + 3 * torch.randn(clip.pixels.shape, generator=torch.manual_seed(0)),
        clip.camera,
    )
    still = (AIONHMR[-1]._replace(max_iterations=0),)
    alone = fit_keypoints(*given, noise=3.0)
    fit = fit_sequence(*given, noise=3.0)
    from_frames = fit_sequence(*given, noise=3.0, start=alone.parameters, stages=still)
    assert fit.report.cost <= from_frames.report.cost
    assert fit.report.converged
    good = fit.parameters
    astray = (AIONHMR[0]._replace(weights={"pose": 0.0, "limits": 0.0}, max_iterations=30), *still)
    kept = fit_sequence(*given, noise=3.0, start=good, stages=astray)
    before = fit_sequence(*given, noise=3.0, start=good, stages=still)
    assert kept.report.cost <= before.report.cost * (1 + 1e-6)
    short = fit_sequence(*given, noise=3.0, stages=tuple(s._replace(max_iterations=1) for s in AIONHMR))
    assert not short.report.converged
    assert short.report.stop == Stop.ITERATIONS


@pytest.mark.parametrize("motion_sd", [None, 0.05])
def test_gradients_of_chains_equal_differences_of_costs(mannequin_asset, motion_sd):
    body = agebody.SMPLA(mannequin_asset, dtype=torch.float64)
    small = make_clip(agebody.SMPLA(mannequin_asset), 3)
    pixels, camera = small.pixels.double(), small.camera.to("cpu", torch.float64)
    weights = torch.ones(17, dtype=torch.float64)
    given = read_observed(body, pixels, camera, "coco17", weights, 5.0, (None, None, None), None, 0.01)
    clips = Clips(body, given, torch.ones(1, 3, dtype=torch.bool), 1, motion_sd, None)
    vector = small.parameters.map(lambda part: part.double()[None] + 0.1).vector()
    terms = clips.terms()
    if motion_sd is not None:
        terms["motion"] = Motion(body, motion_sd)
    weights = {name: weight for name, weight in AIONHMR[1].weights.items() if name in terms}
    problem = Problem(body, terms, AIONHMR[1]._replace(weights=weights), vector, clips.present)
    x = problem.pack(vector)
    rows = torch.tensor([0])
    model = problem.quadratize(x, rows)
    torch.testing.assert_close(problem.unpack(x), vector)
    far = problem.quadratize(x + 0.1, rows)
    for place, cost in ((x, model.cost), (x + 0.1, far.cost)):  # where it costs least, and elsewhere
        torch.testing.assert_close(sum(problem.costs(place).values()), cost)
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for _ in range(4):
        way = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        ahead, behind = (problem.quadratize(x + sign * step * way, rows).cost for sign in (1, -1))
        # Central differences: cut off at step², rounded at 1e-16 cost / step.
        torch.testing.assert_close(
            (ahead - behind) / (2 * step), (model.gradient * way).sum(-1), rtol=1e-5, atol=1e-4
        )
        assert (way * model.product(way)).sum() > 0


def test_best_path_is_the_cheapest_of_all():
    generator = np.random.default_rng(0)
    for _ in range(5):
        costs, places = generator.random((5, 3)), generator.random((5, 3, 2, 3))
        times = np.array([0, 1, 3, 4, 7])

        def total(path, costs=costs, places=places, times=times):
            own = sum(costs[t, s] for t, s in enumerate(path))
            for t in range(4):
                move = places[t + 1, path[t + 1]] - places[t, path[t]]
                own += (move**2).sum() / (2 * 0.7**2 * (times[t + 1] - times[t]))
            return own

        best = min(itertools.product(range(3), repeat=5), key=total)
        assert best_path(costs, places / 0.7, times).tolist() == list(best)


def test_triangulation(body):
    clip = make_clip(body, 2, views=3)
    points = body.keypoints("coco17", clip.parameters)
    weights = torch.ones(2, 3, 17)
    weights[0, 1:, 4] = 0  # one camera
    weights[1, 0, 5] = 0  # two
    camera = clip.camera.map(lambda part: part.expand(2, 3, *part.shape[part.dim() > 1 :]))
    found, trust = triangulate(clip.pixels, weights, camera)
    assert trust[0, 4] == 0
    assert trust[1, 5] == 2
    seen = trust > 0
    torch.testing.assert_close(found[seen], points[seen], rtol=0, atol=1e-4)
    same = camera.map(lambda part: part[:, :1].expand_as(part))
    assert (triangulate(clip.pixels[:, :1].expand_as(clip.pixels), torch.ones(2, 3, 17), same)[1] == 0).all()


def test_standard_errors_of_photographs_bear_one_in_which_nobody_is_seen(body):
    """What the others tell of age and stature stays known; only the depth in that one is not."""
    people = random_people(body, 3, seed=3)
    one = people.parameters
    one = one._replace(betas=one.betas[:1].expand(3, -1), age_offset=one.age_offset[2].expand(3))
    pixels = people.camera.project(body.keypoints("coco17", one)).pixels
    weights = torch.ones(3, 17)
    weights[1] = 0
    errors = fit_sequence(body, pixels, people.camera, weights=weights, motion_sd=None).standard_errors
    others = people.camera.map(lambda part: part[[0, 2]])
    expected = fit_sequence(body, pixels[[0, 2]], others, motion_sd=None).standard_errors
    for name in ("age_offset", "stature"):
        ratio = getattr(errors, name) / getattr(expected, name)
        assert 1 <= ratio.square() <= 3 / 2  # priors count once per frame at most, and here are three
    assert errors.depth.isinf().tolist() == [False, True, False]


def test_errors_of_arguments(body, unchecked):
    clip = make_clip(body, 3)
    pixels, camera = clip.pixels, clip.camera
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"motion_sd": 0.0}, "motion_sd"),
        ({"batch_size": 0}, "batch_size"),
        ({"lengths": torch.tensor(4)}, "lengths: expected 1 to 3"),
        ({"lengths": torch.tensor([3])}, "lengths: expected shape"),
        ({"age_class": torch.tensor([0])}, "age_class"),
        ({"age_offset": torch.zeros(2)}, "age_offset"),
        ({"stages": ()}, "stages"),
        ({"start": clip.parameters.map(lambda part: part[:2])}, "start.global_orient"),
        (
            {"start": clip.parameters.map(lambda part: part * torch.nan)},
            "start.global_orient: expected finite",
        ),
        ({"age_offset": math.inf}, "age_offset: expected a finite number"),
        ({"views": True}, r"keypoints: expected shape \(\*batch, any, any, 17, 2\)"),
    ]
    for bad, name in wrong:
        with pytest.raises(ValueError, match=name):
            fit_sequence(body, pixels, camera, **bad)
    with pytest.raises(ValueError, match=r"depth: expected None with views"):
        fit_sequence(body, pixels[:, None], camera, views=True, depth=torch.ones(3))
    with pytest.raises(ValueError, match=r"keypoints: expected shape \(\*batch, any, 17, 2\)"):
        fit_sequence(body, pixels[:, :16], camera)
    with pytest.raises(ValueError, match=r"keypoints: expected a frame at least"):
        fit_sequence(body, pixels[:0], camera)
    with pytest.raises(ValueError, match="keypoints: .*; pass confidences as weights"):
        fit_sequence(body, torch.cat((pixels, pixels[..., :1]), -1), camera)
    with pytest.raises(TypeError, match=r"keypoints: expected a torch.Tensor, got ndarray"):
        fit_sequence(body, pixels.numpy(), camera)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"age_class: expected a torch.Tensor of integers, got list"):
        fit_sequence(body, pixels, camera, age_class=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"lengths: expected a torch.Tensor of integers, got list"):
        fit_sequence(body, pixels, camera, lengths=[3])  # type: ignore[arg-type]
