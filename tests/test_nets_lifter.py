"""The lifter: what it makes of keypoints, of which points and bodies, and how sure it is of it."""

import age_inclusive
import pytest
import torch
import train_lifter
from bodies import random_body
from networks import onnx_outputs
from safetensors.torch import save_file

import agebody
from agebody.age import age_class
from agebody.cameras import Camera, box_around, weak_to_translation
from agebody.fitting import fit_keypoints
from agebody.fitting.frames import AIONHMR
from agebody.keypoints import LAYOUTS, KeypointLayout
from agebody.metrics import pa_mpjpe
from agebody.nets import Lifter, fit_lifted
from agebody.nets.lifter import BONES, FEATURES, POINTS, SIZES, bone_lengths
from agebody.people import observe, random_people

COUNT = 48


@pytest.fixture(scope="module")
def net():
    return Lifter.load()


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset)


@pytest.fixture(scope="module")
def people(body):
    return random_people(body, COUNT, seed=5)


@pytest.fixture(scope="module")
def seen(body, people):
    return observe(body, people, seed=5)


def same(first, second, tolerance=2e-4):
    for name, part in first.parameters._asdict().items():
        torch.testing.assert_close(part, getattr(second.parameters, name), atol=tolerance, rtol=1e-3)


def pa(body, parameters, people):
    joints = [body.keypoints("smpl24", each) for each in (parameters, people.parameters)]
    return pa_mpjpe(*joints, reduction="none")


def test_a_short_training_falls(body):
    net, history = train_lifter.train(
        {"mannequin": body}, rounds=3, people=128, observed=2, size=32, width=64, blocks=1, say=False
    )
    assert history[2] < 0.8 * history[0]
    first, second = (
        train_lifter.train(
            {"mannequin": body}, rounds=1, people=64, observed=1, size=32, width=64, blocks=1, say=False
        )[0].state_dict()
        for _ in range(2)
    )
    for name, part in first.items():
        assert torch.equal(part, second[name]), name
    small = {"rounds": 1, "people": 128, "observed": 1, "size": 32, "say": False}
    start, losses = net.state_dict(), []
    for number, rate in ((3, 1e-4), (3, 1e-4), (4, 1e-4), (3, 1e-3)):  # of the same or other people
        further = Lifter(width=64, blocks=1)
        further.load_state_dict(start)
        found, one = train_lifter.train({"mannequin": body}, first=number, start=further, rate=rate, **small)
        assert found is further
        losses.append(one[0])
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    assert max(losses[0], losses[2]) < 0.8 * history[0]
    train_lifter.calibrate(net, {"mannequin": body}, 64)
    assert net.sd_factor.isfinite().all()
    assert not torch.equal(net.sd_factor, torch.ones_like(net.sd_factor))


class TestEstimate:
    def test_people_are_found(self, net, body, people, seen):
        found = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, size=people.size)
        error = pa(body, found.parameters, people)
        assert error.mean() < 0.06  # the mean pose is 0.2 off
        z = (found.parameters.transl - people.parameters.transl)[:, 2].abs() / people.parameters.transl[:, 2]
        assert z.median() < 0.15
        again = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, size=people.size)
        assert all(torch.equal(*pair) for pair in zip(found.parameters, again.parameters, strict=True))

    def test_a_known_age_or_depth_decides_the_size(self, net, body, people, seen):
        given = body, seen.keypoints, people.camera
        kinds = age_class(people.parameters.age_offset)
        unknown = net.estimate(*given, weights=seen.weights)
        known = net.estimate(*given, weights=seen.weights, age_class=kinds)
        assert (age_class(known.parameters.age_offset) == kinds).float().mean() > 0.99

        def error(found):
            return (found.parameters.age_offset - people.parameters.age_offset).abs().mean()

        assert error(known) < 0.6 * error(unknown)
        years = net.estimate(*given, weights=seen.weights, years=people.years)
        assert error(years) < error(known)
        far = net.estimate(*given, weights=seen.weights, depth=seen.depth)
        off = (body.keypoints("smpl24", far.parameters)[:, 0, 2] - seen.depth).abs() / seen.depth
        assert off.median() < 0.02
        assert error(far) < 0.6 * error(unknown)

    def test_standard_deviations_are_those_of_the_errors(self, net, body):
        people = random_people(body, 400, seed=6)
        seen = observe(body, people, seed=6, noise=8.0)
        found = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights)
        for name in ("age_offset", "transl", "betas"):
            error = (getattr(found.parameters, name) - getattr(people.parameters, name)).abs()
            within = (error < found.sd[name]).float().mean()
            assert 0.55 < within < 0.9, name
            assert (error < 2 * found.sd[name]).float().mean() > 0.9, name

    def test_wrong_points_are_not_trusted(self, net, body, people):
        seen = observe(body, people, seed=5, stray=0.1)
        found = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights)
        known = seen.weights > 0
        wrong, right = found.trust[seen.wrong], found.trust[known & ~seen.wrong]
        assert (wrong[:, None] < right).float().mean() > 0.8  # a stray may well fall near its place
        assert right.mean() > 0.9

    def test_points_of_somebody_else_are_left_out(self, net, body, people, seen):
        arm = [i for i, name in enumerate(LAYOUTS["coco17"].names) if name in ("left_elbow", "left_wrist")]
        box = box_around(seen.exact)
        points = seen.keypoints.clone()
        points[:, arm, 0] += 1.2 * (box[:, 2:] - box[:, :2]).amax(-1, keepdim=True)
        given = body, points, people.camera
        found = net.estimate(*given, weights=seen.weights, size=people.size)
        out = (found.trust == 0) & (seen.weights > 0)
        rows = out[:, arm].all(1) & (out.sum(1) == len(arm))
        assert rows.double().mean() > 0.8
        weights = seen.weights.clone()
        weights[:, arm] = 0
        whole, part = (
            fit_lifted(net, *given, weights=each, size=people.size).fit for each in (seen.weights, weights)
        )
        off = body(whole.parameters).joints - body(part.parameters).joints
        assert off[rows].norm(dim=-1).mean() < 1e-3  # [m]
        assert (whole.error > 20 * part.error)[rows].all()  # the arm counts in the error

    def test_a_fit_is_better_and_cheaper_from_it(self, net, body, people, seen):
        found = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, size=people.size)
        given = body, seen.keypoints, people.camera
        fit = fit_keypoints(
            *given, weights=seen.weights, start=found.parameters, start_sd=found.start_sd, stages=AIONHMR[-1:]
        )
        alone = fit_keypoints(*given, weights=seen.weights)
        assert pa(body, fit.parameters, people).mean() < 0.75 * pa(body, alone.parameters, people).mean()
        assert pa(body, fit.parameters, people).mean() < pa(body, found.parameters, people).mean()


class TestInput:
    def test_points_are_matched_by_name(self, net, body, people, seen):
        coco, pose = LAYOUTS["coco17"], LAYOUTS["openpose25"]
        points = seen.keypoints.new_full((COUNT, len(pose), 2), torch.nan)
        weights = seen.weights.new_zeros(COUNT, len(pose))
        for k, name in enumerate(coco.names):
            points[:, pose.names.index(name)] = seen.keypoints[:, k]
            weights[:, pose.names.index(name)] = seen.weights[:, k]
        found = net.estimate(body, points, people.camera, layout="openpose25", weights=weights)
        same(found, net.estimate(body, seen.keypoints, people.camera, weights=seen.weights))
        neck = pose.names.index("neck")
        moved, sure = points.clone(), weights.clone()
        moved[:, neck], sure[:, neck] = 7.0, 1.0  # OpenPose's neck is not SMPL's
        other = net.estimate(body, moved, people.camera, layout="openpose25", weights=sure)
        same(found, other)
        assert (other.trust[:, neck] == 1).all()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout_is_taken(self, net, body, people, layout):
        points = torch.full((1, len(LAYOUTS[layout]), 2), 3.0)
        if layout == "mano21":  # fingers alone
            with pytest.raises(ValueError, match="layout: the lifter knows none of its points"):
                net.estimate(body, points, Camera.guess((640, 480)), layout=layout)
            return
        found = net.estimate(body, points, Camera.guess((640, 480)), layout=layout)
        assert found.trust.shape == (1, len(LAYOUTS[layout]))

    def test_entries_of_weight_0_are_ignored(self, net, body, people, seen):
        weights = seen.weights.clone()
        weights[:, 9:11] = 0
        points = seen.keypoints.clone()
        points[:, 9:11] = torch.nan
        found = net.estimate(body, points, people.camera, weights=weights)
        same(found, net.estimate(body, points.nan_to_num(5.0), people.camera, weights=weights))

    def test_people_without_points_are_finite(self, net, body):
        found = net.estimate(
            body, torch.full((2, 17, 2), torch.nan), Camera.guess((640, 480)), weights=torch.zeros(2, 17)
        )
        assert all(part.isfinite().all() for part in (*found.parameters, *found.sd.values(), found.trust))
        empty = net.estimate(body, torch.zeros(0, 17, 2), Camera.guess((640, 480)))
        assert empty.parameters.body_pose.shape == (0, 23, 3)

    def test_batches_have_any_shape(self, net, body, people, seen):
        whole = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, size=(1280, 960))
        camera = people.camera.map(lambda part: part.reshape(6, 8, -1))
        found = net.estimate(
            body,
            seen.keypoints.reshape(6, 8, 17, 2),
            camera,
            weights=seen.weights.reshape(6, 8, 17),
            size=(1280, 960),
        )
        assert found.sd["body_pose"].shape == (6, 8, 23, 1)
        torch.testing.assert_close(found.parameters.transl.reshape(-1, 3), whole.parameters.transl)

    def test_one_person_without_a_batch_and_keypoints_of_16_bits(self, net, body, people, seen):
        camera = people.camera.map(lambda part: part[3])
        found = net.estimate(body, seen.keypoints[3], camera, weights=seen.weights[3])
        whole = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights)
        torch.testing.assert_close(found.parameters.betas, whole.parameters.betas[3], atol=1e-4, rtol=0)
        assert found.parameters.age_offset.shape == ()
        halves = net.estimate(body, seen.keypoints.half(), people.camera, weights=seen.weights)
        assert halves.parameters.betas.dtype == torch.float32

    def test_a_larger_image_shows_the_same_person(self, net, body, people, seen):
        larger = people.camera._replace(focal=2 * people.camera.focal, center=2 * people.camera.center)
        found = net.estimate(body, 2 * seen.keypoints, larger, weights=seen.weights, size=2 * people.size)
        same(
            found,
            net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, size=people.size),
            2e-3,
        )

    def test_the_world_is_that_of_the_camera(self, net, body, people, seen):
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
        turn = turn * torch.linalg.det(turn)
        posed = people.camera._replace(
            rotation=turn.expand(COUNT, 3, 3), translation=torch.tensor([0.3, 0.2, 1.0]).expand(COUNT, 3)
        )
        found = net.estimate(body, seen.keypoints, posed, weights=seen.weights)
        here = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights)
        torch.testing.assert_close(
            posed.project(body.keypoints("coco17", found.parameters)).pixels,
            people.camera.project(body.keypoints("coco17", here.parameters)).pixels,
            atol=0.05,
            rtol=1e-4,
        )

    def test_the_prediction_is_the_same_body(self, net, body, people, seen):
        box = torch.tensor([100.0, 80, 900, 700]).expand(COUNT, 4)
        found = net.estimate(body, seen.keypoints, people.camera, weights=seen.weights, box=box)
        place = weak_to_translation(found.prediction.camera, box, people.camera)
        near = found.parameters.transl[:, 2] < 2 * people.camera.focal[:, 0] / (0.011 * 800)
        torch.testing.assert_close(place[near], found.parameters.transl[near].to(place), atol=2e-3, rtol=1e-3)
        own = agebody.SMPLA(body.asset, pose_format="matrix")
        torch.testing.assert_close(
            own(**found.prediction.arguments(), transl=found.parameters.transl).vertices,
            body(found.parameters).vertices,
            atol=1e-4,
            rtol=1e-4,
        )

    def test_a_body_of_one_age_is_taken(self, net, body, people, seen):
        adult = agebody.SMPL(body.asset)
        found = net.estimate(adult, seen.keypoints, people.camera, weights=seen.weights)
        assert found.prediction.age_offset is None
        assert (found.parameters.age_offset == 0).all()
        child = agebody.SMIL(body.asset.at_age(1.0))
        near = net.estimate(child, seen.keypoints, people.camera, weights=seen.weights)
        assert (near.parameters.transl[:, 2] < 0.6 * found.parameters.transl[:, 2]).all()

    def test_a_body_without_betas_is_taken(self, net, people, seen, mannequin_asset):
        bare = agebody.SMPLA(mannequin_asset, num_betas=0)
        found = net.estimate(bare, seen.keypoints, people.camera, weights=seen.weights)
        assert found.parameters.betas.shape[-1] == 0
        assert found.parameters.transl.isfinite().all()

    def test_a_start_may_have_its_own_standard_deviation_per_person(self, body, people, seen):
        given = body, seen.keypoints[:2], people.camera.map(lambda part: part[:2])
        start = people.parameters.map(lambda part: part[:2])
        turned = start._replace(body_pose=start.body_pose + 0.2)
        sure = torch.tensor([1e-4, 1e4])[:, None, None]
        fit = fit_keypoints(*given, weights=seen.weights[:2], start=turned, start_sd={"body_pose": sure})
        kept = (fit.parameters.body_pose - turned.body_pose).abs().amax((1, 2))
        assert kept[0] < 1e-2 < kept[1]

    def test_bad_input_is_refused(self, net, body, people, seen, tmp_path, unchecked):
        given = body, seen.keypoints, people.camera
        with pytest.raises(ValueError, match="joints"):
            net.estimate(agebody.SMPLA(random_body()), *given[1:])
        with pytest.raises(ValueError, match="keypoints: expected"):
            net.estimate(body, torch.zeros(3, 16, 2), Camera.guess((640, 480)))
        with pytest.raises(ValueError, match="keypoints: expected finite"):
            net.estimate(body, torch.full((1, 17, 2), torch.nan), Camera.guess((640, 480)))
        with pytest.raises(ValueError, match="box"):
            net.estimate(*given, box=torch.zeros(COUNT, 3))
        for box in (torch.zeros(4), torch.full((4,), torch.nan), torch.tensor([9.0, 0, 5, 9])):
            with pytest.raises(ValueError, match="box: expected corners"):
                net.estimate(*given, box=box)
        for size in ((0, 0), torch.tensor([640, 0])):
            with pytest.raises(ValueError, match="size: expected width and height above 0"):
                net.estimate(*given, size=size)
        named = KeypointLayout("mine", ("tail",), (("joints", "head"),))
        with pytest.raises(ValueError, match="none of its points"):
            net.estimate(body, torch.zeros(1, 1, 2), Camera.guess((640, 480)), layout=named)
        wrong = tmp_path / "wrong.safetensors"
        wrong.write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"wrong\.safetensors: expected a lifter's weights"):
            Lifter.load(wrong)
        save_file({"a": torch.zeros(1)}, wrong)
        with pytest.raises(ValueError, match="another file"):
            Lifter.load(wrong)
        kind = {"kind": "agebody lifter", "width": "x"}
        ruined = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        ruined["embed.weight"][0, 0] = torch.nan
        for tensors, words in (({"a": torch.zeros(1)}, "other names or shapes"), (ruined, "finite weights")):
            save_file(tensors, wrong, kind)
            with pytest.raises(ValueError, match=words):
                Lifter.load(wrong)
        with pytest.raises(ValueError, match="missing"):
            Lifter.load(tmp_path / "missing.safetensors")


class TestWeights:
    def test_weights_are_small_and_state_their_origin(self, tmp_path):
        from importlib.resources import files

        from safetensors import safe_open

        path = files("agebody.nets") / "lifter.safetensors"
        assert len(path.read_bytes()) < 5e6
        with safe_open(str(path), "pt") as file:
            about = file.metadata()
        assert about["script"] == "benchmarks/train_lifter.py"
        assert len(about["commit"]) == 40
        assert {"rounds", "people", "observed", "seed", "commit", "data", "torch"} <= set(about)

    def test_saved_and_loaded_they_are_the_same(self, net, tmp_path):
        net.save(tmp_path / "mine.safetensors", {"seed": "1"})
        again = Lifter.load(tmp_path / "mine.safetensors")
        features = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(0))
        for name, part in net(features).items():
            assert torch.equal(part, again(features)[name]), name
            assert part.shape == (3, SIZES[name])

    def test_onnx_takes_any_batch(self, net, tmp_path, unchecked):
        features = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(0))
        found = onnx_outputs(net, (torch.zeros(2, FEATURES),), (features,), tmp_path / "lifter.onnx")
        for name, part in zip(SIZES, found, strict=True):
            torch.testing.assert_close(part, net(features)[name], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def lifted(net, body, people, seen):
    return fit_lifted(net, body, seen.keypoints, people.camera, weights=seen.weights, size=people.size)


def test_fits_from_the_lifter_are_those_from_its_estimates(net, body, people, seen, lifted):
    given = body, seen.keypoints, people.camera
    found = net.estimate(*given, weights=seen.weights, size=people.size)
    begin = {"start": found.parameters, "start_sd": found.start_sd, "stages": AIONHMR[-1:]}
    fit = fit_keypoints(*given, weights=seen.weights, **begin)
    own = (lifted.source == torch.arange(17)).all(1)
    assert own.sum() >= COUNT - 1  # no side is exchanged here
    torch.testing.assert_close(lifted.fit.error[own], fit.error[own], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(lifted.fit.report.cost[own], fit.report.cost[own], atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("size", "points", "most"),
    [
        # A man who lunges, seen from behind: one stage ended with both feet 100 px off.
        (
            (1004, 1504),
            "463 778 .53 461 764 .7 476 762 .56 476 765 .67 530 757 .59 487 834 .75 620 814 .83 449 949 .91 "
            "728 910 .79 386 853 .74 685 820 .21 578 1063 .81 653 1061 .8 448 1105 .22 677 1281 .61 "
            "505 1274 .52 814 1300 .66",
            9,
        ),
        # An upper body: the legs, where the detector guessed them, turned the estimate's back to the camera.
        (
            (512, 512),
            "222.3 122.7 .673 247 103 .663 204.2 99.5 .883 273.1 118.5 .672 177.9 109 .661 304.9 258.1 .61 "
            "111.2 244.1 .51 321.6 395.8 .23 79.3 411.1 .183 315.5 440.3 .082 115.8 490.2 .051 "
            "262.6 502.4 .205 126.9 495.1 .203 339.6 496.4 .03 135.2 512.9 .075 249.3 452.1 .024 "
            "188.7 408.5 .013",
            20,
        ),
    ],
)
def test_people_of_photographs_are_found(net, anny_asset, size, points, most):
    numbers = torch.tensor([float(number) for number in points.split()]).view(17, 3)
    camera = Camera.guess(torch.tensor(size))
    fit, source = fit_lifted(
        net, agebody.SMPLA(anny_asset), numbers[:, :2], camera, weights=numbers[:, 2], size=size
    )
    assert fit.error < most  # [px]
    assert torch.equal(source, torch.arange(17))


def test_the_error_of_a_fit_to_no_points_is_nan(net, body, people, seen):
    weights = seen.weights.clone()
    weights[0] = 0
    fit = fit_lifted(net, body, seen.keypoints, people.camera, weights=weights, size=people.size).fit
    assert fit.error.isnan().tolist() == fit.start_error.isnan().tolist() == [True] + [False] * (COUNT - 1)


@pytest.mark.parametrize(
    ("parts", "least"), [(("shoulder", "elbow", "wrist"), 0.8), (("hip", "knee", "ankle"), 0.6)]
)
def test_sides_of_limbs_are_exchanged_where_a_body_fits_them_better(
    net, body, people, seen, lifted, parts, least
):
    names, flip = LAYOUTS["coco17"].names, torch.tensor(LAYOUTS["coco17"].flip)
    limb = torch.tensor([any(part in name for part in parts) for name in names])
    wrong = torch.where(limb, flip, torch.arange(17))
    points, weights = seen.keypoints[:, wrong], seen.weights[:, wrong]
    rows = torch.arange(COUNT).view(2, -1)  # any leading dimensions
    camera = people.camera.map(lambda part: part[rows])
    known = {"age_class": age_class(people.parameters.age_offset)[rows], "weights": weights[rows]}
    found = fit_lifted(net, body, points[rows], camera, size=people.size[rows], noise=4.0, **known)
    assert found.source.shape == (2, COUNT // 2, 17)
    right = (found.source.view(-1, 17) == wrong).all(1)
    assert right.double().mean() > least
    given = points.gather(1, found.source.view(-1, 17)[..., None].expand(-1, -1, 2))
    torch.testing.assert_close(given[right], seen.keypoints[right])
    assert found.fit.error.view(-1)[right].median() < 1.5 * lifted.fit.error.median()


def test_points_without_sides_are_not_exchanged(net, body, people):
    names = ("pelvis", "spine2", "neck", "head")
    middle = KeypointLayout("middle", names, tuple(("joints", name) for name in names))
    camera = people.camera.map(lambda part: part[:2])
    found = fit_lifted(net, body, torch.rand(2, 4, 2) * 300, camera, layout=middle)
    assert (found.source == torch.arange(4)).all()


def test_bones_have_two_sides(body):
    rest = body.shape(betas=torch.zeros(1, body.num_betas)).rest_joints
    lengths = bone_lengths(rest)
    assert lengths.shape == (1, len(BONES))
    thigh = (rest[0, 1] - rest[0, 4]).norm(), (rest[0, 2] - rest[0, 5]).norm()
    torch.testing.assert_close(lengths[0, 6], sum(thigh) / 2)
    assert len(POINTS) == 17 + 6 + 12


def test_arms_of_the_age_inclusive_benchmark_differ_as_they_say(body, monkeypatch, capsys):
    monkeypatch.setattr(age_inclusive, "STEPS", 30)
    body = agebody.SMPLA(body.asset, pose_format="matrix")
    people = train_lifter.draw_people(body, 64, 1, unmatched=1.0)
    with torch.no_grad():
        data = age_inclusive.see(body, people, 1)
    assert not torch.equal(data.features, data.told)
    rows = []
    for arm in age_inclusive.ARMS[2:4]:  # free betas, age-inclusive
        net = age_inclusive.train(body, arm, data, 0)
        with torch.no_grad():
            given = age_inclusive.answer(body, arm, net(data.features))
            values = age_inclusive.errors(body, given, people, data)
        assert (given["age_offset"] == 0).all() == (not arm.inclusive)
        assert all(value.isfinite().all() and value.shape == (64,) for value in values.values())
        rows += [
            {"body": "mannequin", "split": "own", "contender": arm.title, "which": kind.name}
            | {name: float(value.mean()) for name, value in values.items()}
            for kind in agebody.age.AGE_CLASSES
        ]
    age_inclusive.show(rows)
    assert age_inclusive.ARMS[3].title in capsys.readouterr().out
    # The truth has no error, whatever its size.
    true = {name: getattr(people.parameters, name) for name in ("betas", "age_offset")}
    values = age_inclusive.errors(
        body,
        {**true, "global_orient": data.rotations[:, 0], "body_pose": data.rotations[:, 1:]},
        people,
        data,
    )
    assert values["mpjpe"].max() < 0.1
    assert values["surface"].max() < 0.01
    assert values["stature"].max() < 0.1
