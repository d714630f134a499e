"""Training: rows of shards, augmentations against the geometry, the loop, and that it can be resumed."""

import io
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import with_fingers
from PIL import Image
from torch import nn

import agebody
from agebody import cameras, losses, measure, nets
from agebody.age import age_class, parse_ages
from agebody.annotations import AnnotationError
from agebody.annotations.people import ImageEntry, make_people
from agebody.cameras import Camera
from agebody.detect.windows import crop_image
from agebody.keypoints import LAYOUTS, mirror_order
from agebody.mesh import PartMap
from agebody.people import random_people
from agebody.pipelines.labels import TrainingShards, save_training_shards
from agebody.pipelines.labels.fitting import as_fit, make_labels, replace_bodies
from agebody.pipelines.labels.samples import index_shard, read_members
from agebody.pipelines.train import (
    Augmentation,
    Filters,
    RealBodies,
    Source,
    TrainingData,
    TrainingSettings,
    predicted_values,
    refit_shards,
    train,
)
from agebody.pipelines.train.augment import Examples, augment, draw_augmentation
from agebody.pipelines.train.data import batches
from agebody.pipelines.train.run import TrainingError
from agebody.rotations import axis_angle_to_matrix

SIZE = (160, 120)
OTHER = replace(agebody.mannequin().metadata, name="another")


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, pose_format="matrix")


def drawn_people(body, count, seed=0):
    return random_people(body, count, seed=seed, size=SIZE, extent=(0.4, 0.8))


def records(body, people):
    """Return the people as the training code's dictionaries, each with dots at the keypoints in its image."""
    points = body.keypoints("hmr2_44", people.parameters).float()
    pixels = people.camera.project(points).pixels
    boxes = cameras.box_around(pixels, scale=1.1)
    found = []
    for i in range(len(people.years)):
        ones = torch.ones(44, 1)
        found.append(
            {
                "center": ((boxes[i, :2] + boxes[i, 2:]) / 2).numpy(),
                "scale": ((boxes[i, 2:] - boxes[i, :2]) / 200).numpy(),
                "keypoints_2d": torch.cat((pixels[i], ones), -1).numpy(),
                "keypoints_3d": torch.cat((points[i], ones), -1).numpy(),
                "body_pose": torch.cat(
                    (people.parameters.global_orient[i], people.parameters.body_pose[i].flatten())
                ).numpy(),
                "betas": torch.cat(
                    (people.parameters.betas[i], people.parameters.age_offset[i, None])
                ).numpy(),
                "has_body_pose": np.float32(1),
                "has_betas": np.float32(1),
                "focal": people.camera.focal[i].numpy(),
                "principal_point": people.camera.center[i].numpy(),
                "extra_info": {"personid": 0},
            }
        )
    return found


def picture(record):
    """Draw each keypoint that is in the image as a dot of its own brightness."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for k, (x, y, _) in enumerate(record["keypoints_2d"]):
        if 0 <= x < SIZE[0] and 0 <= y < SIZE[1]:
            pixels[int(y), int(x)] = 80 + 4 * k
    return pixels


def write_shard(path, people):
    with tarfile.open(path, "w") as tar:
        for i, several in enumerate(people):
            stream = io.BytesIO()
            Image.fromarray(picture(several[0])).save(stream, format="JPEG")
            for name, data in (
                (f"{i:03d}.jpg", stream.getvalue()),
                (f"{i:03d}.data.pyd", pickle.dumps(several)),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(body, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    found = records(body, drawn_people(body, 12))
    write_shard(folder / "a.tar", [found[:2], found[2:3], found[3:5]])
    write_shard(folder / "b.tar", [[one] for one in found[5:]])
    return folder


STRONG = Augmentation(rotated=1.0, shifted=1.0, shift=0.2, focused=0.3)


@pytest.mark.parametrize("stretch", [1.0, 1.3])
def test_augmented_points_in_space_project_to_the_augmented_points_of_the_image(body, stretch):
    people = drawn_people(body, 64)
    camera = people.camera._replace(
        focal=people.camera.focal * torch.tensor([1.0, stretch]),
        center=people.camera.center + torch.tensor([7.0, -4.0]),
    )
    points = body.keypoints("hmr2_44", people.parameters)
    pixels = camera.project(points).pixels
    before = Examples(
        cameras.square_box(cameras.box_around(pixels)),
        pixels,
        torch.ones(64, 44),
        points,
        torch.ones(64, 44),
        axis_angle_to_matrix(people.parameters.global_orient),
        people.parameters.body_pose,
        camera,
    )
    draw = draw_augmentation(STRONG, [(7, row) for row in range(64)])
    after, back = augment(before, draw, body.asset.joint_names)
    torch.testing.assert_close(
        camera.project(after.keypoints_3d).pixels, after.keypoints_2d, atol=2e-2, rtol=1e-4
    )
    # The body in the changed pose has the changed points.
    made = body.keypoints(
        "hmr2_44",
        global_orient=after.global_orient,
        body_pose=axis_angle_to_matrix(after.body_pose),
        betas=people.parameters.betas,
        age_offset=people.parameters.age_offset,
    )
    torch.testing.assert_close(
        made - made.mean(1, keepdim=True),
        after.keypoints_3d - after.keypoints_3d.mean(1, keepdim=True),
        atol=3e-3,  # the mannequin is symmetric to a millimetre
        rtol=0,
    )
    # The affine maps lead back to the given points, left and right exchanged where the picture is flipped.
    order = torch.where(draw.flip[:, None], torch.tensor(agebody.LAYOUTS["hmr2_44"].flip), torch.arange(44))
    returned = (back[:, :, :2] @ after.keypoints_2d.mT).mT + back[:, None, :, 2]
    torch.testing.assert_close(
        returned, pixels.gather(1, order[..., None].expand(-1, -1, 2)), atol=1e-2, rtol=1e-4
    )
    assert draw.flip.any()
    assert (draw.focus >= 0).any()
    assert draw.rotation.abs().max() > 0.5


def test_augmented_crops_match_their_keypoints(body):
    """A blob at a keypoint of the image is at the augmented keypoint of the crop, whatever is drawn."""
    people = drawn_people(body, 16, seed=3)
    points = body.keypoints("hmr2_44", people.parameters)
    pixels = people.camera.project(points).pixels
    ones = torch.ones(16, 44)
    before = Examples(
        cameras.square_box(cameras.box_around(pixels), scale=1.5),
        pixels,
        ones,
        points,
        ones,
        axis_angle_to_matrix(people.parameters.global_orient),
        people.parameters.body_pose,
        people.camera,
    )
    weak = Augmentation(rotated=1.0, shifted=1.0, focused=0.0)
    draw = draw_augmentation(weak, [(row,) for row in range(16)])
    after, back = augment(before, draw, body.asset.joint_names)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    flip = agebody.LAYOUTS["hmr2_44"].flip
    for i in range(16):
        blob = np.exp(-((x - float(pixels[i, 0, 0])) ** 2 + (y - float(pixels[i, 0, 1])) ** 2) / 8)
        image = Image.fromarray(np.uint8(np.repeat(255 * blob[..., None], 3, 2)))
        size = (96, 128)
        crop = crop_image(image, after.box[i], size, back[i])[..., 0].astype(float)
        found = after.keypoints_2d[i, flip[0] if draw.flip[i] else 0]
        side = float(after.box[i, 2] - after.box[i, 0])
        place = (found - after.box[i, :2]).numpy() * 128 / side - np.array([(128 - 96) / 2, 0])
        if (place < 6).any() or (place > np.array(size) - 6).any():
            continue
        v, u = np.mgrid[: size[1], : size[0]] + 0.5
        middle = np.array([(crop * u).sum(), (crop * v).sum()]) / crop.sum()
        np.testing.assert_allclose(middle, place, atol=0.5)


@pytest.mark.parametrize(
    ("focus", "x", "y", "side"),  # middle and side by HMR2's public code for these points
    [
        (0, 190.0, 205.0, 541.2),
        (1, 190.0, 205.0, 590.4),
        (2, 190.0, 205.0, 639.6),
        (3, 180.0, 177.5, 464.64),
        (4, 184.0, 195.0, 443.52),
        (5, 228.0, 240.0, 369.6),
        (6, 196.0, 220.0, 541.2),
        (7, 198.0, 247.5, 491.04),
        (8, 148.0, 205.0, 501.6),
    ],
)
def test_crops_of_a_part_are_those_of_hmr2(body, focus, x, y, side):
    k = torch.arange(44.0)
    points = torch.stack((k * k % 97 * 4, k**3 % 89 * 5), -1)[None]
    camera, box = Camera.guess((400, 450)).expand(1), torch.tensor([[0.0, 0, 400, 400]])
    nothing = torch.zeros(1, 44, 3), torch.zeros(1, 44)
    one = Examples(
        box, points, torch.ones(1, 44), *nothing, torch.eye(3)[None], torch.zeros(1, 23, 3), camera
    )
    draw = draw_augmentation(Augmentation(0, 0, 0, 0, 0, 0, 0, 0), [(0,)])._replace(
        focus=torch.tensor([focus])
    )
    found, _ = augment(one, draw, body.asset.joint_names)
    torch.testing.assert_close(
        found.box, torch.tensor([[x - side / 2, y - side / 2, x + side / 2, y + side / 2]])
    )


def test_small_crops_of_large_photographs_do_not_alias():
    """One pixel of a checkerboard in eight, or all of them: a crop of an eighth is grey."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8))
    crop = crop_image(image, torch.tensor([0.0, 0, 512, 512]), (64, 64))
    assert abs(crop.astype(float) - 127.5).max() < 4
    stream = io.BytesIO()
    ramp = np.tile(np.arange(512) / 2, (512, 1)).astype(np.uint8)
    Image.fromarray(np.repeat(ramp[..., None], 3, 2)).save(stream, "JPEG", quality=95)
    for size in ((64, 64), (16, 16)):  # a ramp tells where each pixel comes from
        crop = crop_image(Image.open(stream), torch.tensor([0.0, 0, 512, 512]), size)
        step = 512 / size[0]
        np.testing.assert_allclose(crop[5, 2:-2, 0], (np.arange(size[0]) + 0.5)[2:-2] * step / 2, atol=2)


def test_rows_are_functions_of_seed_and_number(shards):
    data = TrainingData(shards, size=(48, 64), augmentation=Augmentation(), seed=5)
    assert data.people == [12]
    whole = data.__getitems__(range(30))
    apart = [data[row] for row in range(30)]
    for name, value in whole.target.items():
        assert torch.equal(
            value,
            torch.cat([one.target[name] for one in apart]),
        ), name
    assert torch.equal(whole.images, torch.cat([one.images for one in apart]))
    parts = [
        list(batches(data, 5, first=first, steps=3, rank=rank, processes=2, workers=workers))
        for first, rank, workers in ((0, 0, 0), (0, 1, 0), (0, 1, 2))
    ]
    assert [row for batch in zip(*parts[:2], strict=True) for one in batch for row in one.rows.tolist()] == [
        *range(30)
    ]
    assert all(torch.equal(a.images, b.images) for a, b in zip(parts[1], parts[2], strict=True))
    other = TrainingData(shards, size=(48, 64), augmentation=Augmentation(), seed=6)
    assert other.fingerprint() != data.fingerprint() != TrainingData(shards, size=(48, 64)).fingerprint()
    # Everyone comes once before anyone comes again.
    for turn in range(3):
        assert {data.find(row)[1] for row in range(12 * turn, 12 * turn + 12)} == {*range(12)}


def test_people_without_hands_have_no_labels_of_fingers(shards):
    target = TrainingData(shards, size=(8, 8), family="smplh")[0].target
    assert target["body_pose"].shape == (1, 51, 3, 3)
    assert target["body_pose_weights"].tolist() == [[1.0] * 21 + [0.0] * 30]


def test_sources_are_mixed_by_weight(shards):
    data = TrainingData(
        [Source(shards / "a.tar", 3.0), Source([shards / "b.tar"], 1.0, "adult")], size=(8, 8)
    )
    drawn = [data.find(row)[0] for row in range(2000)]
    assert drawn.count(0) == 1500
    assert drawn[:100].count(1) > 10
    assert data.people == [5, 7]


def test_targets_are_the_labels_before_the_camera(shards, body):
    """Projecting the points of a row gives its keypoints in the crop; and so does the body of its labels."""
    data = TrainingData(shards, size=(48, 64), augmentation=STRONG, seed=1)
    batch = data.__getitems__(range(24))
    target = batch.target
    pixels = batch.camera.project(target["keypoints_3d"]).pixels
    inside = cameras.to_crop(pixels, batch.box)
    torch.testing.assert_close(inside, target["keypoints_2d"], atol=2e-3, rtol=1e-3)
    assert batch.images.shape == (24, 3, 64, 48)
    assert (target["age_offset_weights"] == 1).all()
    made = body.keypoints(
        "hmr2_44", **{k: target[k] for k in ("global_orient", "body_pose", "betas", "age_offset")}
    )
    known = target["keypoints_3d"]
    error = (made - made[:, 39:40]) - (known - known[:, 39:40])
    assert error.norm(dim=-1).max() < 5e-3


def test_part_maps_follow_the_augmentation(body, shards, tmp_path):
    """Each keypoint is drawn as a part of its own: in the changed map its part is where the keypoint is."""
    layout = agebody.LAYOUTS["hmr2_44"]
    names = ("left_wrist", "right_wrist", "nose", "left_ankle", "right_ankle")
    chosen = [layout.names.index(name) for name in names]
    people = records(body, drawn_people(body, 6, seed=4))
    path = tmp_path / "a.tar"
    write_shard(path, [people])
    parts, mask = np.zeros((2, SIZE[1], SIZE[0]), np.uint8)
    for n, record in enumerate(people):
        for k in chosen:
            x, y = record["keypoints_2d"][k, :2].astype(int)
            area = slice(max(y - 4, 0), max(y + 5, 0)), slice(max(x - 4, 0), max(x + 5, 0))
            parts[area], mask[area] = k + 1, n + 1
    with tarfile.open(path, "a") as tar:
        for suffix, picture_ in (("parts", parts), ("mask", mask)):
            stream = io.BytesIO()
            Image.fromarray(picture_).save(stream, "PNG")
            entry = tarfile.TarInfo(f"000.{suffix}.png")
            entry.size = len(stream.getvalue())
            tar.addfile(entry, io.BytesIO(stream.getvalue()))
    map_of = PartMap(layout.names, np.zeros(body.num_vertices, int), np.zeros(body.num_joints, int))
    sources = [Source(path, 10.0), Source(shards / "b.tar", 1.0)]
    data = TrainingData(
        sources, size=(192, 256), augmentation=STRONG, parts=map_of, parts_size=(96, 128), seed=2
    )
    batch = data.__getitems__(range(60))
    assert batch.target["parts"].shape == (60, 128, 96)
    seen = 0
    for row, (shown, points) in enumerate(
        zip(batch.target["parts"], batch.target["keypoints_2d"], strict=True)
    ):
        source, person = data.find(row)
        if source == 1:
            assert (shown == -100).all()  # no maps in that shard
            continue
        assert {*shown.unique().tolist()} <= {0, *(k + 1 for k in chosen)}
        for k, twin in zip(chosen, mirror_order(names), strict=True):
            x, y = (points[k] * 128 + torch.tensor([48.0, 64.0])).int().tolist()
            for before in (k, chosen[twin]):  # which of the two was drawn there depends on the mirror
                u, v = people[person]["keypoints_2d"][before, :2].astype(int)
                if not (0 <= u < SIZE[0] and 0 <= v < SIZE[1] and mask[v, u] == person + 1):
                    break
                if parts[v, u] != before + 1:
                    break
            else:
                if 0 <= x < 96 and 0 <= y < 128:
                    assert shown[y, x] == k + 1
                    seen += 1
    assert seen > 60
    other = PartMap(("whole",), np.zeros(body.num_vertices, int), np.zeros(body.num_joints, int))
    with pytest.raises(AnnotationError, match="expected part maps of 1 parts"):
        TrainingData(path, size=(48, 64), parts=other).__getitems__([0])
    with pytest.raises(ValueError, match="parts_size: expected a fraction"):
        TrainingData(path, size=(48, 64), parts=other, parts_size=(48, 48))


def test_unknown_values_have_weight_0(body, tmp_path):
    found = records(body, drawn_people(body, 6))
    found[0]["has_betas"] = np.float32(0)
    found[1]["betas"][2] = 3.5
    found[2]["betas"] = found[2]["betas"][:10]  # as HMR2 writes it: no age
    found[3]["keypoints_2d"][4:, 2] = 0.2
    found[4]["keypoints_2d"][5:, 2] = 0.2
    found[5]["has_body_pose"] = np.float32(0)
    for one in found:
        one["age_class"] = 2 if one is found[5] else -1
        del one["focal"], one["principal_point"]
    write_shard(tmp_path / "0.tar", [[one] for one in found])
    data = TrainingData([Source(tmp_path, age_class="adult")], size=(48, 64))
    assert data.left_out == 1
    assert data.people == [5]
    rows = {data.find(row)[1]: data[row] for row in range(5)}
    weights = {
        name: [float(rows[i].target[f"{name}_weights"]) for i in range(5)]
        for name in ("betas", "age_offset", "body_pose", "global_orient")
    }
    assert weights["betas"] == [0, 0, 1, 1, 1]
    assert weights["age_offset"] == [0, 0, 0, 1, 1]
    assert weights["body_pose"] == weights["global_orient"] == [1, 1, 1, 1, 0]
    assert [int(rows[i].target["age_class"]) for i in range(5)] == [0, -1, 0, -1, 2]
    assert int((rows[3].target["keypoints_2d_weights"] > 0).sum()) == 5
    guess = Camera.guess(SIZE)
    assert torch.equal(rows[0].camera.focal[0], guess.focal)


def test_hmr2s_camera_sees_the_crop_alone(shards):
    data = TrainingData(shards, size=(48, 64), crop_camera=True)
    batch = data.__getitems__(range(3))
    weak = torch.tensor([[0.8, 0.1, -0.2]]).expand(3, 3)
    place = cameras.weak_to_translation(weak, batch.box, batch.camera)
    expected = torch.tensor([[0.1, -0.2, 2 * 5000 / (256 * 0.8)]]).expand(3, 3)
    torch.testing.assert_close(place, expected, rtol=1e-4, atol=1e-4)


class Head(nn.Module):
    """Read linear numbers out of pooled features."""

    def __init__(self, body):
        super().__init__()
        self.joints = body.num_joints
        self.read = nn.Linear(8, 6 * self.joints + body.num_betas + 1 + 3)
        self.drop = nn.Dropout(0.2)
        nn.init.normal_(self.read.weight, std=0.01)
        nn.init.zeros_(self.read.bias)

    def forward(self, features, condition):
        features = self.drop(features.mean((-2, -1)))
        if condition is not None:
            features = features + condition.sum(-1, keepdim=True)
        pose, betas, camera = self.read(features).split((6 * self.joints, 11, 3), -1)
        start = pose.new_tensor([1.0, 0, 0, 0, -1, 0]).repeat(self.joints)
        start[6:] = start.new_tensor([1.0, 0, 0, 0, 1, 0]).repeat(self.joints - 1)
        return {"pose": pose + start, "betas": betas, "camera": camera + camera.new_tensor([0.9, 0, 0])}


def network(body, seed=0):
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())
    return nets.Regressor(backbone, Head(body), body)


@pytest.fixture(scope="module")
def adversary(body):
    people = drawn_people(body, 50, seed=9)
    return RealBodies(people.parameters.body_pose, people.parameters.betas)


def run(body, data, folder, steps, adversary=None, progress=lambda line: None, net=None, **options):
    settings = TrainingSettings(
        steps, batch_size=4, learning_rate=1e-3, log_every=2, save_every=3, workers=0, **options
    )
    net = net or network(body)
    objective = losses.aionhmr_objective()
    torch.manual_seed(1)
    judge = losses.PoseDiscriminator(23, 10, pose_features=16) if adversary else None
    if adversary is None:
        objective = objective.without("adversarial")
    trained = train(
        net, data, objective, folder, settings, discriminator=judge, real=adversary, progress=progress
    )
    return trained, net, judge


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_resumed_training_is_that_of_one_piece_to_the_bit(body, shards, tmp_path, adversary):
    data = TrainingData(shards, size=(48, 64), augmentation=Augmentation(), seed=2)
    whole, net, judge = run(body, data, tmp_path / "whole", 8, adversary)
    run(body, data, tmp_path / "parts", 4, adversary)
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6}) + "\n")  # of steps that were done, but not saved
    torch.manual_seed(123)  # what else is drawn does not matter
    parts, net_of_parts, judge_of_parts = run(
        body, data, tmp_path / "parts", 8, adversary, net=network(body, seed=5)
    )
    assert parts.steps == 8
    assert whole.terms == parts.terms
    assert same(net.state_dict(), net_of_parts.state_dict())
    assert same(judge.state_dict(), judge_of_parts.state_dict())
    assert same(whole.averaged, parts.averaged)
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "people_per_second"}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [2, 4, 6, 8]
    assert {"discriminator", "adversarial", "total", "gradient", "betas"} <= set(logs[0][0])
    again, _, _ = run(body, data, tmp_path / "parts", 8, adversary)  # nothing is left to do
    assert again.steps == 8
    assert same(again.averaged, parts.averaged)


def test_checkpoints_hold_no_array_of_the_body(body, shards, tmp_path):
    data = TrainingData(shards, size=(48, 64))
    _, net, _ = run(body, data, tmp_path, 1)
    found = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(found["state_dict"]) == {name for name, _ in net.named_parameters()} | {
        f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert set(found["averaged"]) == set(found["state_dict"])
    assert (tmp_path / "checkpoint.pt").stat().st_size < 200_000


def test_the_average_follows_the_weights(body, shards, tmp_path):
    data = TrainingData(shards, size=(48, 64))
    start = {name: value.clone() for name, value in network(body).state_dict().items()}
    trained, net, _ = run(body, data, tmp_path, 1, ema=0.25)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(trained.averaged[name], 0.25 * start[name] + 0.75 * value)
    none, _, _ = run(body, data, tmp_path / "none", 1, ema=None)
    assert none.averaged is None


def test_bfloat16_learns_and_float16_wants_a_gpu(body, shards, tmp_path):
    data = TrainingData(shards, size=(48, 64))
    trained, net, _ = run(body, data, tmp_path, 3, precision="bfloat16")
    exact, _, _ = run(body, data, tmp_path / "exact", 3)
    assert trained.terms["total"] == pytest.approx(exact.terms["total"], rel=0.02)
    assert trained.terms["total"] != exact.terms["total"]
    assert all(value.dtype != torch.bfloat16 for value in net.state_dict().values())
    with pytest.raises(ValueError, match="float16.*needs a GPU"):
        run(body, data, tmp_path / "half", 3, precision="float16")


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(body, shards, tmp_path, adversary):
    data = TrainingData(shards, size=(48, 64))
    net = network(body)
    before = {name: value.clone() for name, value in net.named_parameters()}
    with torch.no_grad():
        net.head.read.bias[-1] = before["head.read.bias"][-1] = torch.inf
    with pytest.raises(
        TrainingError, match=r"step 1: not finite: keypoints_2d, total; .*rows \[0, 1, 2, 3\]"
    ):
        run(body, data, tmp_path, 2, net=net)
    assert same(before, dict(net.named_parameters()))
    assert not (tmp_path / "checkpoint.pt").exists()
    net, real = network(body), RealBodies(adversary.body_pose / 0, adversary.betas)
    before = {name: value.clone() for name, value in net.named_parameters()}
    with pytest.raises(TrainingError, match="step 1: not finite: discriminator; no weight was changed"):
        run(body, data, tmp_path, 2, real, net=net)
    assert same(before, dict(net.named_parameters()))


def test_other_settings_are_not_resumed(body, shards, tmp_path):
    data = TrainingData(shards, size=(48, 64))
    run(body, data, tmp_path, 1)
    with pytest.raises(TrainingError, match=r"other settings: weight_decay \(0.0001, now 0.5\)"):
        run(body, data, tmp_path, 2, weight_decay=0.5)
    with pytest.raises(TrainingError, match=r"other settings: data"):
        run(body, TrainingData(shards, size=(48, 64), seed=1), tmp_path, 2)
    larger = network(body)
    larger.head.read = nn.Linear(8, 6 * 24 + 14, bias=False)
    with pytest.raises(TrainingError, match=r"of another network: .*head.read.bias"):
        run(body, data, tmp_path, 2, net=larger)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"checkpoint.pt: not a checkpoint of a training, or damaged"):
        run(body, data, tmp_path, 2)


def test_an_adversary_judges_ages_only_where_they_are_known(body, shards, tmp_path, adversary):
    data = TrainingData(shards, size=(48, 64))
    settings = TrainingSettings(1, batch_size=2)
    objective = losses.aionhmr_objective()
    judge = losses.PoseDiscriminator(23, 11, pose_features=16)
    with pytest.raises(ValueError, match="real.age_offset: .*num_betas=10"):
        train(network(body), data, objective, tmp_path, settings, discriminator=judge, real=adversary)
    aged = adversary._replace(age_offset=torch.rand(50))
    train(network(body), data, objective, tmp_path, settings, discriminator=judge, real=aged, progress=len)
    with pytest.raises(ValueError, match='objective has the term "adversarial"'):
        train(network(body), data, objective, tmp_path, settings)


def test_validation_sees_the_averaged_weights(body, shards, tmp_path):
    data, seen = TrainingData(shards, size=(48, 64)), []

    def validate(net):
        assert not net.training
        torch.rand(3)
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return {"mpjpe": 1.5}

    net = network(body)
    settings = TrainingSettings(2, batch_size=2, learning_rate=1e-3, save_every=1)
    objective = losses.aionhmr_objective().without("adversarial")
    trained = train(net, data, objective, tmp_path, settings, validate=validate, progress=len)
    assert same(seen[-1], trained.averaged)
    assert net.training
    assert len(seen) == 2
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["mpjpe"] == 1.5


def test_predicted_values_are_those_of_the_body(body, shards):
    batch = TrainingData(shards, size=(48, 64)).__getitems__(range(3))
    net = network(body)
    prediction = net(batch.images)
    values = predicted_values(prediction, body, batch.box, batch.camera)
    transl = cameras.weak_to_translation(prediction.camera, batch.box, batch.camera)
    points = body.keypoints("hmr2_44", **prediction.arguments(), transl=transl)
    inside = cameras.to_crop(batch.camera.project(points).pixels, batch.box)
    torch.testing.assert_close(values["keypoints_2d"], inside, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("betas"), "betas: is missing"),
        (lambda one: one.update(betas=np.zeros(7)), r"betas: expected shape \(11,\), got \(7,\)"),
        (lambda one: one.update(keypoints_2d=np.zeros((17, 3))), r"keypoints_2d: expected shape \(44, 3\)"),
        (lambda one: one.update(center=np.full(2, np.nan)), "center, scale: expected a box"),
        (lambda one: one.update(age_class=9), "age_class: expected -1 to 3, got 9"),
        (lambda one: one.update(body_pose="lots"), "body_pose: is not numbers"),
    ],
)
def test_damaged_people_are_refused_by_name(body, tmp_path, change, message):
    found = records(body, drawn_people(body, 1))
    change(found[0])
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.jpg", b""), ("a.data.pyd", pickle.dumps(found))):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(AnnotationError, match=f"0.tar: a person at byte [0-9]+: {message}"):
        TrainingData(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda data: data[: len(data) // 2], lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_images_that_are_damaged_or_of_another_format_are_refused(body, tmp_path, change):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, "JPEG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        people = pickle.dumps(records(body, drawn_people(body, 1)))
        for name, data in (("a.jpg", change(stream.getvalue())), ("a.data.pyd", people)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(AnnotationError, match=r"0\.tar: an image is damaged"):
        TrainingData(tmp_path)[0]


def test_damaged_shards_are_refused_by_name(shards, tmp_path):
    whole = (shards / "a.tar").read_bytes()
    with tarfile.open(shards / "a.tar") as tar:
        second = tar.getmembers()[2].offset  # of the second image
    for content, message in (
        (b"nothing" * 200, "0.tar: not a tar file"),
        (whole[: len(whole) // 2], "0.tar: .*(ends too early|damaged)"),
        (whole[:second], "0.tar: .*ends too early"),
        (whole[:second] + b"?" + whole[second + 1 :], f"0.tar: .*damaged.* at byte {second} or"),
        (whole[:second] + bytes(512) + whole[second + 512 :], f"0.tar: .*damaged.* at byte {second} or"),
        (whole + whole, "0.tar: .*several in one"),
        (b"\0" * 10240, "0.tar: nobody in these shards"),
    ):
        (tmp_path / "0.tar").write_bytes(content)
        with pytest.raises(AnnotationError, match=message):
            TrainingData(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match="expected shards"):
        TrainingData(tmp_path / "empty")
    with pytest.raises(ValueError, match="sources: expected at least one Source"):
        TrainingData([])
    with pytest.raises(ValueError, match="age_class: expected one of adult, teen, kid, baby"):
        TrainingData([Source(shards, age_class="senior")])
    with pytest.raises(AnnotationError, match="shows enough keypoints"):
        TrainingData(shards, filters=Filters(visible=45))


def test_settings_and_augmentations_are_checked(unchecked):
    for name, value in (
        ("steps", 0),
        ("ema", 1.0),
        ("precision", "int8"),
        ("learning_rate", 0.0),
        ("decay", "step"),
    ):
        with pytest.raises(ValueError, match=name):
            TrainingSettings(**{"steps": 1, name: value})
    with pytest.raises(ValueError, match="flipped"):
        Augmentation(flipped=1.5)
    with pytest.raises(ValueError, match="scale"):
        Augmentation(scale=1.0)
    rates = [TrainingSettings(10, warmup=2, decay="cosine").rate(step) for step in (0, 1, 5, 10)]
    assert rates == pytest.approx([0.5, 0.5 + 0.5 * np.cos(np.pi / 10), 0.5, 0])


def test_spins_loop_keeps_the_better_of_fit_and_label(body, tmp_path):
    """What is not known is fitted; truth, measured points and better labels stay; shards tell the error."""
    people = records(body, drawn_people(body, 6, seed=4))
    for one in people[1:5]:
        one["has_body_pose"] = one["has_betas"] = np.float32(0)
    for one in people[1:3]:
        one["age_class"] = np.int32(age_class(torch.tensor(one["betas"][10])))
        one["body_pose"], one["betas"] = np.zeros(72, np.float32), np.zeros(11, np.float32)
        one["keypoints_3d"] = np.zeros((44, 4), np.float32)
    people[3]["keypoints_2d"][5:, 2] = 0  # too few for HMR2's filter of four points and more
    people[4]["keypoints_2d"][4:, 2] = 0
    people[5]["fit_error"] = np.float32(0.001)
    write_shard(tmp_path / "a.tar", [people[:3], people[3:]])
    net, first, second = network(body), tmp_path / "first", tmp_path / "second"
    options = {"crop_size": (64, 48), "start_sd": {"body_pose": 0.5}, "batch_size": 2}
    done = []
    found = refit_shards(net, tmp_path / "a.tar", first, progress=done.append, **options)
    assert done[-1] == found.people == 5
    assert found.replaced == 3
    again = refit_shards(net, first, second, **options)
    assert (again.people, again.replaced, again.labelled) == (5, 0, found.labelled)
    assert (first / "a.tar").read_bytes() == (second / "a.tar").read_bytes()
    now = people_of(first / "a.tar")
    for i in (0, 4, 5):
        assert now[i].keys() == people[i].keys()
        assert all(np.array_equal(now[i][name], people[i][name]) for name in ("body_pose", "keypoints_3d"))
    np.testing.assert_array_equal(now[3]["keypoints_3d"], people[3]["keypoints_3d"])
    for one in now[1:3]:
        layer = agebody.SMPLA(body.asset)
        pose = torch.from_numpy(one["body_pose"]).view(24, 3)
        points = layer.keypoints(
            "hmr2_44",
            betas=torch.from_numpy(one["betas"][:10]),
            age_offset=float(one["betas"][10]),
            global_orient=pose[0],
            body_pose=pose[1:],
        )
        seen = torch.from_numpy(one["keypoints_3d"])
        torch.testing.assert_close(points - points[0], seen[:, :3] - seen[0, :3], atol=1e-5, rtol=0)
        camera = Camera(torch.from_numpy(one["focal"]), torch.from_numpy(one["principal_point"]))
        off = camera.project(seen[:, :3]).pixels - torch.from_numpy(one["keypoints_2d"][:, :2])
        assert off.norm(dim=-1).mean() == pytest.approx(float(one["fit_error"]), rel=0.05)
        good = one["fit_error"] <= 0.04 * max(one["scale"]) * 200
        assert one["has_body_pose"] == one["has_betas"] == seen[0, 3] == good
    assert not (second / "a.tar").samefile(first / "a.tar")
    for folder, overwrite in ((second, False), (first, True)):
        with pytest.raises(FileExistsError, match="exists; give another folder"):
            refit_shards(net, first, folder, overwrite=overwrite, **options)


def labelled_shard(folder, body, people, spoilt):
    """Write two photographs of two people each as a shard with labels; some labels are bodies at rest."""
    pixels = people.camera.project(body.keypoints("hmr2_44", people.parameters)).pixels
    images = [ImageEntry(f"{name}.jpg", name, SIZE) for name in "ab"]
    found = make_people(
        folder,
        torch.cat((pixels, torch.ones(4, 44, 1)), -1).double().numpy(),
        LAYOUTS["hmr2_44"].names,
        "hmr2_44",
        images=images,
        image=[0, 0, 1, 1],
        ages=parse_ages(age_offset=people.parameters.age_offset.numpy()),
    )
    labels = make_labels(body, found, people.camera, as_fit(people.parameters, torch.zeros(4)))
    pose = labels.body_pose.copy()
    pose[spoilt] = 0
    labels = replace(labels, body_pose=pose, kept=np.ones(4, bool))
    labels = replace_bodies(body, labels, labels.parameters(body), people.camera)
    for name in "ab":
        Image.fromarray(np.full((SIZE[1], SIZE[0], 3), ord(name), np.uint8)).save(folder / f"{name}.jpg")
    (folder / "shards").mkdir()
    save_training_shards(folder / "shards", body, labels, folder)
    return labels


def people_of(path):
    places = index_shard(path, ("jpg", "data.pyd")).values()
    return [one for place in places for one in pickle.loads(read_members(path, place)["data.pyd"])]


def test_better_fits_are_the_labels_of_images_too(body, tmp_path):
    """One row per image is improved; the others, and what else the shard has, stay as they are."""
    before = labelled_shard(tmp_path, body, drawn_people(body, 4, seed=4), [1, 3])
    net, options = network(body), {"crop_size": (64, 48), "start_sd": {}}
    assert refit_shards(net, tmp_path / "shards", tmp_path / "new", **options).replaced == 2
    after = TrainingShards(tmp_path / "new").labels()
    assert (before.reprojection[[1, 3]] > 2).all()
    assert (after.reprojection[[1, 3]] < before.reprojection[[1, 3]]).all()
    assert set(after.stop[[1, 3]]) <= {"cost", "iterations"}
    for name in ("body_pose", "transl", "keypoints", "joints", "stature", "kept", "observed", "ids", "boxes"):
        np.testing.assert_allclose(getattr(after, name)[[0, 2]], getattr(before, name)[[0, 2]], atol=1e-5)
    np.testing.assert_array_equal(after.observed, before.observed)
    for row, one in zip(range(4), people_of(tmp_path / "new/000000.tar"), strict=True):
        pose = np.concatenate((after.global_orient[row, None], after.body_pose[row])).ravel()
        np.testing.assert_allclose(one["body_pose"], pose, atol=1e-6)
        assert one["fit_error"] == pytest.approx(after.reprojection[row], rel=1e-4)
    tall = measure.stature(body.shape(after.parameters(body)).rest_vertices)
    np.testing.assert_allclose(after.stature, tall, rtol=1e-5)
    # Of another body, labels would be wrong, and are left out.
    other = network(agebody.SMPLA(agebody.mannequin().replace(metadata=OTHER), pose_format="matrix"))
    refit_shards(other, tmp_path / "shards", tmp_path / "other", **options)
    with pytest.raises(AnnotationError, match=r"there is no .*labels\.json"):
        TrainingShards(tmp_path / "other")


def test_shards_in_which_nobody_is_seen_are_copied(body, shards, tmp_path):
    people = records(body, drawn_people(body, 1))
    people[0]["keypoints_2d"][3:, 2] = 0
    write_shard(tmp_path / "c.tar", [people])
    paths, options = [tmp_path / "c.tar", shards / "a.tar"], {"crop_size": (64, 48)}
    found = refit_shards(network(body), paths, tmp_path / "new", **options)
    assert found.people == 5
    (one,) = people_of(tmp_path / "new/c.tar")
    assert all(np.array_equal(one[name], people[0][name]) for name in people[0])


@pytest.mark.parametrize("known", [True, False])
def test_fingers_stay_as_labelled_or_are_those_of_the_network(body, tmp_path, known):
    wide = agebody.SMPLA(with_fingers(body.asset), pose_format="matrix")
    people = records(body, drawn_people(body, 2, seed=4))
    for one in people:
        one["has_body_pose"] = np.float32(0)
        one |= {"left_hand_pose": np.full(45, 0.1, np.float32), "has_left_hand_pose": np.float32(known)}
    write_shard(tmp_path / "a.tar", [people])
    refit_shards(network(wide), tmp_path / "a.tar", tmp_path / "new", crop_size=(64, 48))
    for one in people_of(tmp_path / "new/a.tar"):
        assert one["has_body_pose"].shape == ()
        assert (one["has_left_hand_pose"], one["has_right_hand_pose"]) == (known, 0)
        assert (one["left_hand_pose"] == np.float32(0.1)).all() == known
        assert one["right_hand_pose"].shape == (45,)
        assert np.abs(one["right_hand_pose"]).max() > 0


def plain_network(body):
    """A network whose rows do not depend on each other, nor on what else is drawn."""
    net = network(body)
    net.backbone, net.head.drop = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU()), nn.Identity()
    torch.manual_seed(0)
    net.backbone[0].reset_parameters()
    net.unused = nn.Linear(2, 2)
    return net


def train_one_of_two(rank, folder, shards):
    """Train as one of two processes, each with half of the people of a step; what it starts from differs."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    body = agebody.SMPLA(agebody.mannequin(), pose_format="matrix")
    net = plain_network(body)
    if rank:
        with torch.no_grad():
            net.head.read.weight.add_(1)
    data = TrainingData(shards, size=(48, 64), augmentation=Augmentation(), seed=2)
    settings = TrainingSettings(3, batch_size=2, learning_rate=1e-3, weight_decay=0.0)
    objective = losses.aionhmr_objective().without("adversarial")
    train(net, data, objective, folder / "both", settings, progress=lambda line: None)
    torch.save(net.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_all_people(body, shards, tmp_path):
    torch.multiprocessing.spawn(train_one_of_two, (tmp_path, shards), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second)
    net = plain_network(body)
    data = TrainingData(shards, size=(48, 64), augmentation=Augmentation(), seed=2)
    settings = TrainingSettings(3, batch_size=4, learning_rate=1e-3, weight_decay=0.0)
    objective = losses.aionhmr_objective().without("adversarial")
    start = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, data, objective, tmp_path / "one", settings, progress=lambda line: None)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-4)
    assert not torch.equal(start["head.read.weight"], first["head.read.weight"])
    assert [
        line["step"] for line in map(json.loads, (tmp_path / "both/log.jsonl").read_text().splitlines())
    ] == [3]
