"""Random people have the requested ages, places and poses; observations have the requested errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import agebody
from agebody.age import AgeCurve, age_class
from agebody.age.growth import ADULT_YEARS
from agebody.keypoints import LAYOUTS
from agebody.losses import joint_limits
from agebody.losses.limits import joint_limits_excess
from agebody.people import POSES, observe, random_people
from agebody.people.poses import MORE_POSES
from agebody.people.sampling import POSTURES

DOUBLE = torch.float64
COCO = LAYOUTS["coco17"]


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, dtype=DOUBLE)


@pytest.fixture(scope="module")
def crowd(body):
    return random_people(body, 200, seed=1)


def keypoints_of(body, people, layout="coco17"):
    return body.keypoints(layout, people.parameters)


class TestPeople:
    def test_ages_are_balanced_and_those_of_the_offsets(self, body, crowd):
        counts = torch.bincount(age_class(crowd.parameters.age_offset), minlength=4)
        assert counts.tolist() == [50] * 4
        curve = AgeCurve.from_asset(body.asset)
        offset = curve.years_to_offset(crowd.years)
        assert torch.allclose(
            crowd.parameters.age_offset, offset.clamp(max=1)
        )  # newborns are no younger than the body
        grown = crowd.parameters.age_offset < 1
        years = curve.offset_to_years(crowd.parameters.age_offset)
        assert torch.allclose(years[grown], crowd.years.clamp(max=ADULT_YEARS)[grown])

    def test_ages_may_be_given(self, body):
        years = torch.tensor([0.0, 0.4, 7.0, 30.0])
        assert torch.equal(random_people(body, 4, ages=years).years, years.double())
        drawn = random_people(body, 50, ages=(2.0, 5.0)).years
        assert 2 <= drawn.min() < 2.6
        assert 4.4 < drawn.max() <= 5

    def test_gradients_stop_at_ages(self, body):
        years = torch.tensor([4.0, 30.0], requires_grad=True)
        people = random_people(body, 2, ages=years)
        assert torch.equal(people.years, years.detach().double())
        assert not people.parameters.transl.requires_grad

    def test_poses_keep_within_the_joints_ranges(self, crowd, body):
        limits = joint_limits(body.asset.joint_names[1:], age_offset=crowd.parameters.age_offset)
        excess = joint_limits_excess(crowd.parameters.body_pose, limits).abs()
        # Turning a clamped swing and twist into a rotation and back costs some roundings.
        assert excess.max() < 1e-9
        assert crowd.parameters.body_pose.norm(dim=-1).mean() > math.radians(15)

    @pytest.mark.parametrize(("joint", "axis", "sign"), [("hip", 0, 1), ("shoulder", 1, -1)])
    def test_both_sides_are_moved_alike(self, crowd, body, joint, axis, sign):
        names = body.asset.joint_names[1:]
        left, right = (
            crowd.parameters.body_pose[:, names.index(f"{side}_{joint}"), axis] for side in ("left", "right")
        )
        assert stats.ks_2samp(left, sign * right).pvalue > 0.01  # 0.001 where nobody is mirrored  # pyright: ignore[reportAttributeAccessIssue]

    @pytest.mark.parametrize(
        ("years", "upright"), [((0.0, 0.3), (0, 0.2)), ((8.0, 60.0), (0.8, 1))], ids=["infants", "grown"]
    )
    def test_infants_lie_and_others_stand(self, body, years, upright):
        people = random_people(body, 80, ages=years, seed=2)
        joints = keypoints_of(body, people, "smpl24")
        spine = torch.nn.functional.normalize(joints[:, 12] - joints[:, 0], dim=-1)
        share = (spine[:, 1] < -0.7).double().mean()  # y points down
        assert upright[0] <= share <= upright[1]

    def test_headings_are_all_around_unless_bounded(self, body, crowd):
        def facing(people):  # cosine of the angle from the camera to where the chest points
            turned = agebody.rotations.axis_angle_to_matrix(people.parameters.global_orient)
            return -turned[:, 2, 2]

        adults = crowd.select(crowd.years > 20)
        assert facing(adults).min() < -0.8
        assert facing(adults).max() > 0.8
        turned = facing(random_people(body, 60, ages=(20, 60), heading=math.radians(30), seed=3))
        assert (turned > 0.5).double().mean() > 0.9

    def test_everybody_is_before_the_camera_and_nearly_whole_in_the_image(self, body, crowd):
        joints = keypoints_of(body, crowd, "smpl24")
        seen = crowd.camera.project(joints, size=crowd.size)
        assert (seen.depth > 0.2).all()
        assert seen.visible.double().mean() > 0.98

    def test_the_truncated_are_partly_outside(self, body):
        people = random_people(body, 60, truncated=1.0, seed=4)
        seen = people.camera.project(keypoints_of(body, people, "smpl24"), size=people.size)
        outside = 1 - seen.visible.double().mean(-1)
        assert (outside > 0).double().mean() > 0.6
        assert outside.mean() < 0.4

    def test_size_in_the_image_is_as_requested(self, body):
        people = random_people(body, 40, ages=(20, 60), extent=(0.5, 0.5), pose_sd=0, seed=5)
        rest = body(betas=people.parameters.betas, age_offset=people.parameters.age_offset).vertices[..., 1]
        tall = rest.amax(-1) - rest.amin(-1)
        depth = keypoints_of(body, people, "smpl24")[..., 2]
        middle = (depth.amin(-1) + depth.amax(-1)) / 2
        share = people.camera.focal[:, 1] * tall / middle / people.size[:, 1]
        # Further only where the image could not hold an arm's span or a lying body.
        assert (share < 0.5 + 1e-9).all()
        assert (share > 0.5 - 1e-9).double().mean() > 0.8

    def test_betas_are_normal_and_smaller_in_the_small(self, body, crowd):
        grown = crowd.parameters.betas[crowd.parameters.age_offset == 0]
        assert 0.9 < grown.std() < 1.05
        curve = AgeCurve.from_asset(body.asset)
        young = crowd.years < 1
        share = curve.years_to_stature(crowd.years[young]) / curve.years_to_stature(19.0)
        assert 0.9 < (crowd.parameters.betas[young] / share[:, None]).std() < 1.05

    def test_seeds_repeat_and_differ(self, body, crowd):
        again, other = (random_people(body, 200, seed=seed) for seed in (1, 2))
        assert torch.equal(again.parameters.global_orient, crowd.parameters.global_orient)
        assert torch.equal(again.parameters.transl, crowd.parameters.transl)
        assert not torch.equal(other.parameters.transl, crowd.parameters.transl)

    def test_float32_has_the_same_people(self, mannequin_asset, body):
        single = random_people(agebody.SMPLA(mannequin_asset), 20, seed=6)
        assert single.parameters.transl.dtype == torch.float32
        exact = random_people(body, 20, seed=6)
        # Distances come from a float32 body: some roundings of 5 m.
        assert torch.allclose(single.parameters.transl.double(), exact.parameters.transl, atol=1e-5)

    def test_a_body_of_one_age_has_adults_only(self, mannequin_asset):
        body = agebody.SMPL(mannequin_asset)
        people = random_people(body, 8)
        assert (people.years >= ADULT_YEARS).all()
        assert (people.parameters.age_offset == 0).all()
        assert keypoints_of(body, people).shape == (8, 17, 3)
        with pytest.raises(ValueError, match="one age"):
            random_people(body, 2, ages=(3, 30))

    def test_select_takes_the_cameras_too(self, body, crowd):
        some = crowd.select([3, 1])
        assert torch.equal(some.years, crowd.years[[3, 1]])
        assert torch.equal(some.camera.focal, crowd.camera.focal[[3, 1]])
        assert torch.equal(crowd.select(crowd.years > 18).years, crowd.years[crowd.years > 18])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"count": 0}, "count: expected a whole number of 1 or more"),
            ({"count": 2.5}, "count: expected a whole number of 1 or more, got 2.5"),
            ({"ages": "old"}, 'ages: expected "balanced"'),
            ({"ages": (5.0, 2.0)}, "ages: expected two ascending"),
            ({"ages": torch.ones(3)}, r"ages: expected shape \(2,\)"),
            ({"ages": torch.tensor([5.0, math.nan])}, "ages: expected finite"),
            ({"ages": torch.tensor([-5.0, 3.0])}, "ages: expected finite"),
            ({"ages": (5.0, math.inf)}, "ages: expected two ascending"),
            ({"size": (0, 0)}, "size: expected width"),
            ({"heading": math.nan}, "heading: expected an angle"),
            ({"pose_sd": -1.0}, "pose_sd: expected a finite number"),
            ({"truncated": 1.5}, "truncated: expected a share"),
            ({"extent": (0.9, 0.3)}, "extent: expected two ascending"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_errors(self, body, options, message):
        with pytest.raises(ValueError, match=message):
            random_people(body, **{"count": 2, **options})

    def test_postures_name_poses_and_cover_all_ages(self):
        assert {name for kind in POSTURES for name in (kind.root, *kind.limbs)} <= {*POSES, *MORE_POSES}
        years = np.linspace(0, 100, 401)
        total = sum(np.interp(years, kind.years, kind.shares) for kind in POSTURES)
        assert total.min() > 0.5  # pyright: ignore[reportAttributeAccessIssue]


class TestObservations:
    def test_exact_points_are_those_of_the_body(self, body, crowd):
        seen = observe(body, crowd, noise=0)
        pixels = crowd.camera.project(keypoints_of(body, crowd)).pixels
        torch.testing.assert_close(seen.exact, pixels)
        found = seen.weights > 0
        torch.testing.assert_close(seen.keypoints[found], pixels[found])
        pelvis = body(crowd.select(slice(5)).parameters).joints[:, 0, 2]
        torch.testing.assert_close(seen.depth[:5], pelvis)

    def test_noise_is_normal_and_as_large_as_asked(self, body, crowd):
        seen = observe(body, crowd, noise=3.0, seed=1)
        error = (seen.keypoints - seen.exact)[seen.weights > 0].flatten()
        assert stats.kstest(error / 3, "norm").pvalue > 0.01

    def test_points_outside_the_image_are_missing(self, body):
        people = random_people(body, 40, truncated=1.0, seed=4)
        seen = observe(body, people)
        inside = ((seen.exact >= 0) & (seen.exact < people.size[:, None])).all(-1)
        assert not inside.all()
        assert torch.equal(seen.weights > 0, inside)
        assert (seen.keypoints[~inside] == 0).all()

    def test_requested_shares(self, body, crowd):
        def found(**options):
            return observe(body, crowd, seed=3, **options)

        # 200 people of 17 points: a share of points is known to 0.008, one of people to 0.035 (SD).
        assert (found(dropped=0.3).weights == 0).double().mean() == pytest.approx(0.3, abs=0.02)
        assert found(stray=0.2).wrong.double().mean() == pytest.approx(0.2, abs=0.02)
        lent = found(borrowed=0.4).wrong.double().mean(-1)
        assert (lent > 0).double().mean() == pytest.approx(0.4, abs=0.1)
        assert lent[lent > 0].mean() == pytest.approx(0.35, abs=0.05)
        behind = ~found(occluders=1.0).visible
        assert behind.any(-1).double().mean() > 0.9
        assert 0.15 < behind.double().mean() < 0.6

    def test_the_swapped_report_the_other_side(self, body, crowd):
        seen = observe(body, crowd, noise=0, swapped=1.0, seed=2)
        flip = torch.tensor(COCO.flip)
        reported = (seen.weights > 0) & seen.wrong
        torch.testing.assert_close(seen.keypoints[reported], seen.exact[:, flip][reported])
        assert not seen.wrong[:, COCO.names.index("nose")].any()
        knee, wrist = COCO.names.index("left_knee"), COCO.names.index("left_wrist")
        legs, arms = seen.wrong[:, knee], seen.wrong[:, wrist]
        for kind in (legs & arms, legs & ~arms, arms & ~legs):
            assert kind.double().mean() == pytest.approx(1 / 3, abs=0.1)

    def test_swapped_points_outside_the_image_are_missing(self, body):
        people = random_people(body, 40, truncated=1.0, seed=4)
        seen = observe(body, people, noise=0, swapped=1.0, seed=2)
        reported = seen.weights > 0
        inside = (seen.keypoints >= 0) & (seen.keypoints <= people.size[:, None])
        assert inside[reported].all()
        assert not reported.all()

    def test_confidence_reflects_visibility_not_errors(self, body, crowd):
        seen = observe(body, crowd, occluders=0.5, stray=0.1, dropped=0.1, seed=4)
        assert ((seen.weights == 0) | (seen.weights >= 0.2)).all()
        good = seen.visible & ~seen.wrong & (seen.weights > 0)
        assert seen.weights[good].min() >= 0.7
        guessed = ~seen.visible & ~seen.wrong & (seen.weights > 0)
        assert seen.weights[guessed].max() <= 0.7
        assert seen.weights[seen.wrong].max() > 0.7
        assert not (seen.wrong & (seen.weights == 0)).any()

    def test_the_body_hides_its_far_side(self, body):
        someone = random_people(body, 1, ages=(25, 30), seed=0)
        frontal = someone.parameters._replace(
            global_orient=torch.tensor([[math.pi, 0.0, 0.0]], dtype=DOUBLE),
            body_pose=torch.zeros_like(someone.parameters.body_pose),
            transl=torch.tensor([[0.0, 0.0, 4.0]], dtype=DOUBLE),
        )
        front = someone._replace(parameters=frontal)
        names = list(COCO.names)
        seen = dict(zip(names, observe(body, front, self_occlusion=True).visible[0].tolist(), strict=True))
        assert all(seen[name] for name in ("nose", "left_eye", "right_eye", "left_wrist", "right_ankle"))
        back = torch.tensor([0.0, 0.0, math.pi], dtype=DOUBLE)  # seen from behind, still upright
        turned = someone._replace(parameters=frontal._replace(global_orient=back[None]))
        hidden = observe(body, turned, self_occlusion=True).visible[0]
        seen = dict(zip(names, hidden.tolist(), strict=True))
        assert not any(seen[name] for name in ("nose", "left_eye", "right_eye"))
        assert all(seen[name] for name in ("left_wrist", "right_ankle", "left_shoulder"))

    @settings(max_examples=15)
    @given(
        count=st.integers(1, 4), seed=st.integers(0, 500),
        layout=st.sampled_from(["coco17", "openpose25", "smpl24"]),
        shares=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 5),
    )  # fmt: skip
    def test_always_finite_and_of_one_shape(self, body, count, seed, layout, shares):
        names = ("occluders", "dropped", "swapped", "borrowed", "stray")
        people = random_people(body, count, seed=seed)
        seen = observe(body, people, layout=layout, seed=seed, **dict(zip(names, shares, strict=True)))
        number = len(LAYOUTS[layout])
        assert seen.keypoints.shape == (count, number, 2)
        assert seen.weights.shape == seen.visible.shape == seen.wrong.shape == (count, number)
        assert all(part.isfinite().all() for part in seen)
        assert (seen.keypoints[seen.weights == 0] == 0).all()

    @pytest.mark.parametrize(
        "options",
        [{"dropped": -0.1}, {"stray": 2.0}, {"noise": -1.0}, {"noise": math.inf}],
    )
    def test_errors(self, body, crowd, options):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            observe(body, crowd.select(slice(2)), **options)


def test_newborns_are_no_younger_than_the_body(mannequin_asset, anny_asset):
    """Of an age offset that fits can find."""
    for asset in (mannequin_asset, anny_asset):
        people = random_people(agebody.SMPLA(asset), 20, ages=(0.0, 0.05), seed=1)
        assert people.parameters.age_offset.max() <= 1
        assert people.parameters.age_offset.min() > 0.85


def test_people_together_share_a_camera(body):
    people = random_people(body, 6, ages=(20.0, 30.0), seed=2, together=[1, 3, 2])
    focal = people.camera.focal[:, 0]
    assert [len(part.unique()) for part in focal.split([1, 3, 2])] == [1, 1, 1]
    assert len(focal.unique()) == 3
    level = random_people(body, 30, posture_years=torch.full((30,), 30.0), seed=2, together=[30])
    trunks = body(level.parameters).joints[:, [0, 12]].diff(dim=1)[:, 0]
    ups = torch.nn.functional.normalize(trunks, dim=-1)
    alone = body(random_people(body, 30, posture_years=torch.full((30,), 30.0), seed=2).parameters)
    spread = torch.nn.functional.normalize(alone.joints[:, [0, 12]].diff(dim=1)[:, 0], dim=-1)
    assert ups.std(0).norm() < spread.std(0).norm()
    assert (random_people(body, 6, fov=(1.0, 1.0)).camera.focal - 480 / math.tan(0.5)).abs().max() < 0.01


@pytest.mark.parametrize("wrong", [{"together": [1, 3]}, {"together": [6, 0]}, {"fov": (0.0, 1.0)}])
def test_wrong_images_are_refused(body, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        random_people(body, 6, **wrong)
