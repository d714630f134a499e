"""Fits with hands and faces: COCO's 133 points, OpenPose's 137, and bodies of 52 and 55 joints."""

import functools
import json
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import random_body, with_fingers
from model_files import PARENTS, small_smplx, write_smplx_npz
from PIL import Image
from typer.testing import CliRunner

import agebody
from agebody import BodyParameters
from agebody.assets.asset import Metadata
from agebody.assets.official import JOINT_NAMES
from agebody.cameras import Camera
from agebody.fitting import (
    AIONHMR,
    fit_keypoints,
    fit_measurements,
    fit_points,
    fit_sequence,
    fit_vertices,
)
from agebody.fitting.observed import pose_prior_of, read_observed
from agebody.fitting.whole_body import FACE_NOISE, HAND_NOISE, noise_shares
from agebody.keypoints import get_layout
from agebody.losses import hmr2_objective, joint_limits_prior
from agebody.losses.extremities import extremity_priors
from agebody.metrics import pa_mpjpe
from agebody.optim.motion import moving_joints
from agebody.people import pose, random_people
from agebody.pipelines.cli import app
from agebody.pipelines.labels.training import _hands_and_faces
from agebody.pipelines.train import TrainingData
from agebody.pipelines.train.augment import NO_AUGMENTATION
from agebody.rotations import axis_angle_to_matrix

MANNEQUIN = agebody.mannequin()
FINGERS = with_fingers(MANNEQUIN, expressions=4)
BODY = agebody.SMPLH(FINGERS, num_expression=4)
HANDS = [
    [j for j, name in enumerate(FINGERS.joint_names) if name == f"{side}_wrist" or (j > 21 and side in name)]
    for side in ("left", "right")
]
FACE, LEFT, RIGHT = slice(23, 91), slice(91, 112), slice(112, 133)


@functools.cache
def people():
    """Bodies whose hands follow the prior, their camera, and their 133 points with noise."""
    found = random_people(agebody.SMPLA(MANNEQUIN), 8, seed=5)
    rng = np.random.default_rng(0)
    truth = BodyParameters.zeros(BODY, 8)
    truth.body_pose[:, :21] = found.parameters.body_pose[:, :21]
    for names, mean, factor in extremity_priors(FINGERS):
        drawn = mean + rng.normal(size=(8, len(mean))) @ np.linalg.inv(factor)
        rows = [FINGERS.joint_names.index(name) - 1 for name in names]
        truth.body_pose[:, rows] = torch.from_numpy(drawn).float().view(8, -1, 3)
    betas = torch.cat((found.parameters.betas, torch.from_numpy(rng.normal(size=(8, 4))).float()), 1)
    truth = found.parameters._replace(body_pose=truth.body_pose, betas=betas)
    points = found.camera.project(BODY.keypoints("coco133", truth)).pixels
    size = (points.amax(1) - points.amin(1)).amax(-1)
    noise = torch.from_numpy(rng.normal(size=points.shape)).float() * 0.005 * size[:, None, None]
    return truth, found.camera, points + noise * noise_shares(BODY, get_layout("coco133"))[:, None]


@functools.cache
def fits():
    """The people, of whom the second half shows no face, fitted with hands and without."""
    truth, camera, points = people()
    weights = torch.ones(8, 133)
    weights[4:, FACE] = 0
    options = {"age_offset": truth.age_offset}
    whole = fit_keypoints(BODY, points, camera, layout="coco133", weights=weights, **options)
    return whole, fit_keypoints(BODY, points[:, :17], camera, **options)


def errors(parameters, truth, rows):
    found, expected = (BODY(each).joints[:, rows] for each in (parameters, truth))
    return 1e3 * pa_mpjpe(found, expected).mean()


class TestKeypoints:
    def test_hands_are_found_and_help_the_body(self):
        truth, *_ = people()
        whole, bare = fits()
        assert whole.report.converged.all()
        flat = whole.parameters._replace(body_pose=whole.parameters.body_pose.clone())
        flat.body_pose[:, 21:] = 0
        for rows in HANDS:
            assert errors(whole.parameters, truth, rows) < 0.65 * errors(flat, truth, rows)
            assert errors(whole.parameters, truth, rows) < 0.75 * errors(bare.parameters, truth, rows)
        body = range(22)
        assert errors(whole.parameters, truth, body) < 0.85 * errors(bare.parameters, truth, body)

    def test_an_expression_is_fitted_where_a_face_is_seen_and_0_elsewhere(self):
        truth, *_ = people()
        whole, bare = fits()
        found, expected = whole.parameters.betas[:, 10:], truth.betas[:, 10:]
        assert (found[:4] - expected[:4]).abs().max() < 0.4 < expected[:4].abs().max()
        assert not found[4:].any()
        assert not bare.parameters.betas[:, 10:].any()
        assert bare.parameters.betas[:, :10].any()

    def test_hands_that_no_point_shows_are_at_the_mean_of_their_prior(self):
        prior = pose_prior_of(BODY, None)
        mean = torch.zeros(3 * 51)
        mean[prior.columns] = prior.mean
        _, bare = fits()
        torch.testing.assert_close(bare.parameters.body_pose[:, 21:], mean.view(51, 3)[21:].expand(8, -1, -1))

    def test_openpose_and_a_given_noise(self):
        truth, camera, _ = people()
        layout = get_layout("openpose137")
        points = camera.project(BODY.keypoints(layout, truth)).pixels
        fit = fit_keypoints(BODY, points, camera, layout=layout, noise=2.0, age_offset=truth.age_offset)
        assert fit.report.converged.all()
        assert fit.error.max() < 4


def test_a_clip_of_a_moving_hand():
    """A hand that closes over five frames, of which one shows no hand."""
    names = BODY.asset.joint_names
    truth = BodyParameters.zeros(BODY, 5)
    standing = torch.from_numpy(pose("standing", names)).float()
    truth.body_pose[:] = standing[1:]
    bend = torch.linspace(0, 1, 5)
    for j, name in enumerate(names[1:]):
        if name.startswith("left_") and name[-1] in "123" and "thumb" not in name and j > 20:
            truth.body_pose[:, j, 2] = -bend
    camera = Camera.look_at((0.0, 0.2, 2.0), (0.0, 0.0, 0.0), size=(1000, 1000), fov=0.9)
    points = camera.project(BODY.keypoints("coco133", truth)).pixels
    weights = torch.ones(5, 133)
    weights[2, LEFT] = 0
    fit = fit_sequence(BODY, points, camera, layout="coco133", weights=weights, age_offset=0.0)
    assert fit.report.converged
    index = [names.index(f"left_{finger}2") - 1 for finger in ("index", "middle", "ring")]
    found = fit.parameters.body_pose[:, index, 2].mean(1)
    assert (found.diff() < 0).all()
    assert found[0] - found[-1] > 0.5


def test_motion_counts_the_fingers_of_a_hand_as_one_joint_and_smpls_joints_as_before():
    layout, shares = moving_joints(agebody.SMPLA(MANNEQUIN))
    assert layout is get_layout("smpl24")
    assert (shares == 1).all()
    layout, shares = moving_joints(BODY)
    names = layout.names
    torch.testing.assert_close(shares.square().sum(), torch.tensor(24.0))
    assert names[:22] == FINGERS.joint_names[:22]
    assert len(names) == 32
    assert set(names[22:]) == {
        f"{s}_{f}3" for s in ("left", "right") for f in ["index", "middle", "pinky", "ring", "thumb"]
    }


class TestPoints:
    def test_joints_give_the_pose_and_hold_the_expression(self):
        truth, *_ = people()
        points = BODY.keypoints("smplh52", truth)
        fit = fit_points(BODY, points, "smplh52", age_offset=truth.age_offset)
        assert fit.report.converged.all()
        assert fit.error.max() < 2e-3
        assert not fit.parameters.betas[:, 10:].any()
        assert (fit.parameters.betas[:, :10] - truth.betas[:, :10]).abs().mean() < 0.4

    def test_a_face_gives_the_expression(self):
        truth, *_ = people()
        weights = torch.ones(8, 133)
        weights[4:, FACE] = 0
        points = BODY.keypoints("coco133", truth)
        fit = fit_points(BODY, points, "coco133", weights=weights, age_offset=truth.age_offset)
        found, expected = fit.parameters.betas[:, 10:], truth.betas[:, 10:]
        assert (found[:4] - expected[:4]).abs().max() < 0.1
        assert not found[4:].any()


class TestPriors:
    def test_components_of_the_hands_are_the_directions_of_the_prior(self, tmp_path):
        write_smplx_npz(tmp_path / "SMPLX_NEUTRAL.npz", num_vertices=150, num_betas=20)
        asset = agebody.load_asset(tmp_path / "SMPLX_NEUTRAL.npz")
        body = agebody.SMPLX(asset, dtype=torch.float64)
        prior = pose_prior_of(body, None)
        resting = agebody.join_pose(asset, body=torch.zeros(21, 3).double())

        def energy(**parts):
            moved = agebody.join_pose(asset, num_hand_components=45, **parts)
            return float(prior.energies(prior.select_angles(moved)))

        base = float(prior.energies(prior.select_angles(resting)))
        for count, sd in ((0, 0.8), (4, 0.8 * np.exp(-4 / 8.6)), (44, 0.05)):
            code = torch.zeros(45).double()
            code[count] = sd
            assert energy(left_hand=code) - base == pytest.approx(1, rel=1e-4)
            assert energy(right_hand=-code) - base == pytest.approx(1, rel=1e-4)
        assert energy(jaw=torch.tensor([[0.2, 0.0, 0.0]]).double()) - base == pytest.approx(1, rel=1e-4)
        assert energy(left_eye=torch.tensor([[0.0, 0.2, 0.0]]).double()) - base == pytest.approx(1, rel=1e-4)

    @pytest.mark.parametrize("family", ["smplh", "smplx", "mano"])
    def test_every_finger_has_a_prior_without_components(self, family):
        asset = random_body(num_vertices=200, parents=PARENTS[family])
        body = agebody.SMPL(asset.replace(joint_names=JOINT_NAMES[family], metadata=Metadata(kind=family)))
        prior = pose_prior_of(body, None)
        assert len(prior.columns) == 3 * (body.num_joints - 1)
        assert (prior.factor.square().sum(1) > 0).all()

    def test_a_body_of_24_joints_is_fitted_as_before(self):
        body = agebody.SMPLA(MANNEQUIN)
        for name in ("coco17", "smplx45", "openpose25", "hmr2_44"):
            assert (noise_shares(body, get_layout(name)) == 1).all()
        names = MANNEQUIN.joint_names[1:]
        mean = torch.from_numpy(pose("standing", MANNEQUIN.joint_names)[1:])
        mean[[names.index("spine3"), names.index("head")], 1:] = 0  # of both sides alike
        before, now = joint_limits_prior(names, mean=mean), pose_prior_of(body, None)
        torch.testing.assert_close(before.mean, now.mean)
        assert torch.equal(before.factor, now.factor)


def test_noise_of_hands_and_faces_and_the_box_are_those_of_the_body():
    truth, camera, points = people()
    shares = noise_shares(BODY, get_layout("coco133"))
    assert (shares[:23] == 1).all()
    assert (shares[FACE] == FACE_NOISE).all()
    assert (shares[91:] == HAND_NOISE).all()

    def noise(layout, seen):
        ages = (truth.age_offset, None, None)
        return read_observed(BODY, seen, camera, layout, None, None, ages, None, 0.01).noise

    whole, bare = noise("coco133", points), noise("openpose25", points[:, :25])
    assert whole.shape == (8, 133)
    ratio = whole[:, 0] / noise("coco17", points[:, :17])[:, 0]
    assert ((ratio > 0.8) & (ratio < 1.6)).all()  # feet widen a box
    assert bare.shape == (8, 25)


def test_the_stages_of_aionhmr_run_on_16_betas_and_an_age_that_starts_at_an_infant():
    """SMPL-H with 16 betas and a kid template: betas start at 0, the age at 1."""
    rng = np.random.default_rng(3)
    more = 0.002 * rng.normal(size=(FINGERS.num_vertices, 3, 6))
    shapes = np.concatenate((FINGERS.shapedirs[..., :10], more), -1)
    body = agebody.SMPLH(FINGERS.replace(shapedirs=shapes, metadata=Metadata(kind="smplh")), num_betas=16)
    assert (body.num_betas, len(body.age_anchors)) == (16, 1)
    names = body.asset.joint_names
    low, high = (torch.from_numpy(pose(kind, names)).float() for kind in ("standing", "waving"))
    share = torch.linspace(0, 1, 5)[:, None, None]
    moving = (1 - share) * low + share * high
    truth = BodyParameters.zeros(body, 5)._replace(
        body_pose=moving[:, 1:],
        age_offset=torch.full((5,), 0.4),
        betas=torch.linspace(-0.6, 0.6, 16).expand(5, 16),
    )
    camera = Camera.look_at((0.0, 0.1, 2.5), (0.0, 0.0, 0.0), size=(640, 480), fov=0.8)
    points = camera.project(body.keypoints("openpose25", truth)).pixels
    weights = torch.ones(5, 25)
    weights[:, 1] = 0  # OpenPose's neck is ignored
    start = BodyParameters.zeros(body, 5)._replace(
        age_offset=torch.ones(5), body_pose=low[1:].expand(5, -1, -1)
    )
    options = {"layout": "openpose25", "weights": weights, "stages": AIONHMR, "age_prior": (0.0, 20**0.5)}
    fit = fit_sequence(body, points, camera, start=start, **options)
    found = fit.parameters
    assert found.betas.shape == (5, 16)
    assert (found.age_offset == found.age_offset[0]).all()
    assert (found.betas == found.betas[0]).all()
    assert fit.report.converged
    assert fit.error.max() < 3 < fit.start_error.max()
    error, before = (
        pa_mpjpe(body(p).joints[:, :22], body(truth).joints[:, :22]).mean() for p in (found, start)
    )
    assert error < 0.75 * before


def test_the_command_fits_hands_of_a_whole_body_file(tmp_path):
    """With hands all points are used; without, those of hands and face are left out, in a line."""
    points = people()[2]
    agebody.save_asset(FINGERS, tmp_path / "hands.safetensors")
    width, height = 1000, 1000
    rows = [
        {"image_id": "a.jpg", "category_id": 1, "score": 1.0, "years": 20}
        | {"keypoints": torch.cat((seen, torch.ones(133, 1)), 1).flatten().double().tolist()}
        for seen in points[:1]
    ]
    (tmp_path / "whole.json").write_text(json.dumps(rows))
    given = ["fit", tmp_path / "whole.json", "--size", f"{width}x{height}", "--overlays", "0", "-o"]
    for body, count, line in (
        (tmp_path / "hands.safetensors", 133, None),
        ("mannequin", 25, "110 points of the face"),
    ):
        result = CliRunner().invoke(app, [*map(str, given), str(tmp_path / f"{count}"), "--body", str(body)])
        assert result.exit_code == 0, result.output
        with np.load(tmp_path / f"{count}" / "labels.npz") as file:
            assert file["observed"].shape == (1, count, 3)
            assert file["body_pose"].shape[1] == (51 if line is None else 23)
            assert file["betas"].shape[1] == (14 if line is None else 10)
        assert ("left out" in result.stderr) == (line is not None)
        assert (line or "") in result.stderr


def test_the_command_fits_hands_that_several_cameras_see(tmp_path):
    truth = BodyParameters.zeros(BODY, 1)
    points = BODY.keypoints("coco133", truth)
    agebody.save_asset(FINGERS, tmp_path / "hands.safetensors")
    (tmp_path / "seen").mkdir()
    calibration = ""
    for name, x in (("left", -0.6), ("right", 0.6)):
        place = torch.tensor([x, 0.2, 2.6])
        eye = Camera(torch.full((2,), 900.0), torch.full((2,), 500.0), torch.eye(3), place)
        seen = torch.cat((eye.project(points).pixels[0], torch.ones(133, 1)), 1)
        row = {"image_id": "a.jpg", "category_id": 1, "score": 1.0, "keypoints": seen.flatten().tolist()}
        (tmp_path / "seen" / f"{name}.json").write_text(json.dumps([row]))
        calibration += (
            f'[{name}]\nname = "{name}"\nsize = [1000.0, 1000.0]\nrotation = [0.0, 0.0, 0.0]\n'
            "matrix = [[900.0, 0.0, 500.0], [0.0, 900.0, 500.0], [0.0, 0.0, 1.0]]\n"
            f"distortions = [0.0, 0.0, 0.0, 0.0]\ntranslation = [{x}, 0.2, 2.6]\nfisheye = false\n"
        )
    (tmp_path / "calib.toml").write_text(calibration)
    given = ["fit", tmp_path / "seen", "--cameras", tmp_path / "calib.toml", "--age-class", "adult"]
    given += ["--body", tmp_path / "hands.safetensors", "--overlays", "0", "-o", tmp_path / "labels"]
    result = CliRunner().invoke(app, [*map(str, given)])
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "labels" / "labels.npz") as file:
        assert file["observed"].shape == (2, 133, 3)
        assert file["reprojection"].max() < 1


def test_expressions_from_vertices():
    """Of random directions per vertex, patches keep the mean: errors are larger than of smooth ones."""
    truth = people()[0].map(lambda t: t[:2])
    fit = fit_vertices(BODY, BODY(truth).vertices)
    assert (BODY(fit.parameters).vertices - BODY(truth).vertices).norm(dim=-1).mean() < 1e-4
    assert (fit.parameters.betas - truth.betas)[:, BODY.num_betas :].abs().max() < 0.3
    assert truth.betas[:, BODY.num_betas :].abs().max() > 0.8


def test_measures_are_no_expressions():
    targets = {"head_circumference": 0.5, "head_height": 0.2, "stature": 1.2}
    fit = fit_measurements(BODY, targets, age_offset=0.5)
    plain = fit_measurements(agebody.SMPLH(FINGERS), targets, age_offset=0.5)
    assert fit.betas.shape == (BODY.num_betas,)
    torch.testing.assert_close(fit.betas, plain.betas, rtol=0, atol=0)
    parameters = BodyParameters.zeros(BODY)._replace(betas=fit.betas)
    assert BODY.shape(parameters).rest_vertices.shape == (BODY.num_vertices, 3)


def test_hands_go_from_labels_to_shards_and_batches(tmp_path):
    """The left hand is seen, the right one is not: its pose is no label. A flip exchanges the two."""
    points = people()[2][:1]
    seen = torch.cat((points, torch.ones(1, 133, 1)), 2)
    seen[:, RIGHT, 2] = 0
    row = {"image_id": "a.jpg", "category_id": 1, "score": 1.0, "years": 20}
    (tmp_path / "whole.json").write_text(json.dumps([row | {"keypoints": seen.flatten().double().tolist()}]))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1000, 1000)).save(tmp_path / "photos" / "a.jpg")
    agebody.save_asset(FINGERS, tmp_path / "hands.safetensors")
    given = ["fit", tmp_path / "whole.json", "--body", tmp_path / "hands.safetensors", "--overlays", "0"]
    given += ["--images", tmp_path / "photos", "--shards", "-o", tmp_path / "labels"]
    result = CliRunner().invoke(app, [*map(str, given)])
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "labels" / "labels.npz") as file:
        pose = torch.from_numpy(file["body_pose"]).float()
    assert pose[:, 21:36].abs().max() > 0.1
    with np.load(tmp_path / "labels" / "train.npz") as file:
        np.testing.assert_allclose(file["left_hand_pose"], pose[:, 21:36].flatten(1), atol=1e-6)
        assert [*file["has_left_hand_pose"], *file["has_right_hand_pose"]] == [1, 0]
        np.testing.assert_allclose(file["body_pose"][:, 3:66], pose[:, :21].flatten(1), atol=1e-6)
        assert not file["body_pose"][:, 66:].any()
    data = {"sources": tmp_path / "labels" / "shards", "size": (48, 64)}
    target = TrainingData(**data, family="smplh")[0].target
    matrices = axis_angle_to_matrix(pose)
    torch.testing.assert_close(target["body_pose"], matrices, rtol=0, atol=1e-5)
    assert target["body_pose_weights"].tolist() == [[1.0] * 36 + [0.0] * 15]
    with (
        np.load(tmp_path / "labels" / "labels.npz") as labels,
        np.load(tmp_path / "labels" / "train.npz") as file,
    ):
        np.testing.assert_allclose(file["expression"][:, :4], labels["betas"][:, 10:], atol=1e-6)
        assert file["has_expression"].tolist() == [1]
        assert "jaw_pose" not in file
        face = TrainingData(**data, family="smplx")[0].target
        assert np.abs(labels["betas"][:, 10:]).max() > 0.1
        np.testing.assert_allclose(face["expression"], file["expression"])
    assert face["expression_weights"].tolist() == [1]
    assert face["body_pose_weights"].tolist() == [[1.0] * 21 + [0.0] * 3 + [1.0] * 15 + [0.0] * 15]
    torch.testing.assert_close(face["body_pose"][:, [*range(21), *range(24, 54)]], target["body_pose"])
    flip = TrainingData(**data, family="smplh", augmentation=replace(NO_AUGMENTATION, flipped=1.0))[0].target
    mirrored = people()[0].map(lambda t: t[:1])._replace(body_pose=pose).mirrored(FINGERS.joint_names)
    expected = axis_angle_to_matrix(mirrored.body_pose)
    torch.testing.assert_close(flip["body_pose"], expected, rtol=0, atol=1e-5)
    assert flip["body_pose_weights"].tolist() == [[1.0] * 21 + [0.0] * 15 + [1.0] * 15]
    plain = TrainingData(**data)[0].target
    assert plain["body_pose"].shape == (1, 23, 3, 3)
    assert plain["body_pose_weights"].tolist() == [1.0]
    term = hmr2_objective().terms["body_pose"]
    off = target["body_pose"].new_zeros(1, 51, 3, 3)
    per_person = term.loss({"body_pose": off}, target, "sum")
    torch.testing.assert_close(per_person, (target["body_pose"][:, :36] ** 2).sum())  # in another order


class Seen(types.SimpleNamespace):
    """What shards are made of, of two people."""

    def __len__(self):
        return 2


@pytest.mark.usefixtures("unchecked")
def test_jaw_and_eyes_go_to_shards_with_the_joints_of_smplx():
    """Points of the face decide whether they are labels; of people whose truth is known they always are."""
    body = agebody.SMPLX(small_smplx())
    rng, observed = np.random.default_rng(0), np.ones((2, 133, 3))
    observed[1, FACE, 2] = 0
    pose, betas = rng.normal(size=(2, 54, 3)), rng.normal(size=(2, body.num_coefficients))
    given = {"keypoint_layout": "coco133", "joint_names": body.asset.joint_names, "observed": observed}
    given |= {"kept": np.ones(2, bool), "betas": betas, "global_orient": pose[:, 0], "body_pose": pose}
    for true, known in ((False, [1, 0]), (True, [1, 1])):
        arrays = _hands_and_faces(body, Seen(**given), true)
        for name, joint in (("jaw_pose", 21), ("leye_pose", 22), ("reye_pose", 23)):
            np.testing.assert_array_equal(arrays[name], pose[:, joint].astype(np.float32))
        assert arrays["has_jaw_pose"].tolist() == arrays["has_expression"].tolist() == known
        np.testing.assert_allclose(arrays["expression"], betas[:, 10:], rtol=1e-6)
