"""Predictions: a network sees the right crop, and its body stands where the crop was in the photograph."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pose_models import TINY, save_network
from torch import nn
from typer.testing import CliRunner

import agebody
from agebody.annotations import AnnotationError, read_people
from agebody.assets.io import save_asset
from agebody.cameras import Camera, box_condition
from agebody.nets import Regressor, start_readouts
from agebody.nets.vit import VIT_SIZES
from agebody.people import observe, random_people
from agebody.pipelines.cli import app
from agebody.pipelines.labels import load_labels, predict_annotations
from agebody.rotations import axis_angle_to_matrix

SIZE = (160, 120)


class Finder(nn.Module):
    """Reads a body at rest whose origin is at the brightest place of the crop, at a scale of 0.8."""

    condition = 3

    def __init__(self, body):
        super().__init__()
        self.start, self.given, self.sizes = start_readouts(body), None, []

    def forward(self, images, condition):
        self.given = condition
        self.sizes.append(tuple(images.shape[2:]))
        bright = images[:, 0] - images[:, 0].amin((1, 2), keepdim=True)
        weights = (bright > bright.amax((1, 2), keepdim=True) / 2).float()
        height, width = images.shape[2:]
        side = max(height, width)
        total = weights.sum((1, 2))
        x = (weights.sum(1) * (torch.arange(width) + 0.5)).sum(1) / total - width / 2
        y = (weights.sum(2) * (torch.arange(height) + 0.5)).sum(1) / total - height / 2
        shift = torch.stack((x, y), -1) * (2 / side) / 0.8
        people = len(images)
        camera = torch.cat((torch.full((people, 1), 0.8), shift), -1)
        return {
            **{name: part.expand(people, -1) for name, part in self.start.items()},
            "camera": camera,
        }


class Eye(nn.Identity):
    image_size = (96, 72)


@pytest.fixture(scope="module")
def bodies(mannequin_asset):
    return agebody.SMPLA(mannequin_asset), agebody.SMPLA(mannequin_asset, pose_format="matrix")


@pytest.fixture
def finder(bodies):
    return Regressor(Eye(), Finder(bodies[1]), bodies[1])


def save_people(folder, boxes, **extra):
    """Write three photographs, each with a bright dot, and a file of boxes in them, in mixed order."""
    folder.mkdir(exist_ok=True)
    dots = [(40, 30), (100, 80), (70, 60)]
    for name, (x, y) in zip("abc", dots, strict=True):
        image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        image[y - 2 : y + 2, x - 2 : x + 2] = 255
        Image.fromarray(image).save(folder / f"{name}.png")
    images = [
        {"id": i, "file_name": f"{name}.png", "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate("abc")
    ]
    entries = [{"id": 9 - k, "image_id": i, "bbox": box, **extra} for k, (i, box) in enumerate(boxes)]
    (folder / "people.json").write_text(json.dumps({"images": images, "annotations": entries}))
    return read_people(folder / "people.json", boxes_suffice=True), np.array([dots[i] for i, _ in boxes])


BOXES = [(1, [80, 50, 40, 60]), (0, [30, 20, 30, 20]), (2, [-20, 10, 150, 100]), (0, [10, 5, 50, 90])]


@pytest.mark.parametrize("crop_size", [None, (64, 64), (64, 96)])
def test_bodies_stand_where_the_network_saw_them(tmp_path, bodies, finder, crop_size):
    people, dots = save_people(tmp_path / "photos", BOXES)
    done = []
    labels = predict_annotations(
        finder,
        bodies[0],
        people,
        tmp_path / "photos",
        crop_size=crop_size,
        batch_size=3,
        progress=done.append,
    )
    assert set(finder.head.sizes) == {crop_size or (96, 72)}
    assert done == [3, 4]
    assert labels.ids.tolist() == [9, 8, 7, 6]
    assert labels.image_ids.tolist() == ["b.png", "a.png", "c.png", "a.png"]
    camera = Camera(torch.from_numpy(labels.focal), torch.from_numpy(labels.center))
    origin = camera.project(torch.from_numpy(labels.transl)[:, None]).pixels[:, 0]
    np.testing.assert_allclose(origin, dots, atol=1.0)
    # The side of the square in the image, of which a metre is 0.8 / 2.
    sides = np.array([box[2:] for _, box in BOXES], dtype=float)
    shape = np.array((crop_size or (96, 72))[::-1])
    side = (sides * (shape.max() / shape)).max(1)
    np.testing.assert_allclose(labels.focal[:, 0] / labels.transl[:, 2], 0.8 * side / 2, rtol=1e-5)
    assert labels.stop.tolist() == ["predicted"] * 4
    assert labels.converged.all()


def test_networks_receive_the_box_of_the_crop(tmp_path, bodies, finder):
    people, _ = save_people(tmp_path / "photos", BOXES[:1])
    predict_annotations(finder, bodies[0], people, tmp_path / "photos", focal=150.0)
    camera = Camera(torch.tensor([[150.0, 150.0]]), torch.tensor([[80.0, 60.0]]))
    square = torch.tensor([[60.0, 40.0, 140.0, 120.0]])  # 40 x 60 in a crop of 72 x 96
    square = square.clone()
    square[:, :2], square[:, 2:] = torch.tensor([100.0, 80.0]) - 30, torch.tensor([100.0, 80.0]) + 30
    torch.testing.assert_close(finder.head.given, box_condition(square, camera))


def test_boxes_without_keypoints_are_enough(tmp_path, bodies, finder):
    people, _ = save_people(tmp_path / "photos", BOXES)
    labels = predict_annotations(finder, bodies[0], people, tmp_path / "photos")
    assert not labels.flags["few_keypoints"].any()
    assert labels.flags["too_small"].tolist() == [False, True, False, False]
    results = [{"image_id": f"{name}.png", "bbox": [30, 20, 60, 50], "score": 0.5} for name in "abc"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = read_people(tmp_path / "results.json", images=tmp_path / "photos", boxes_suffice=True)
    assert found.boxes.tolist() == [[30, 20, 90, 70]] * 3
    assert found.scores.tolist() == [0.5] * 3
    with pytest.raises(AnnotationError, match="boxes only"):
        read_people(tmp_path / "results.json", images=tmp_path / "photos")
    with pytest.raises(AnnotationError, match="boxes only"):
        read_people(tmp_path / "photos/people.json")
    shares = [{**one, "bbox": [0.2, 0.1, 0.5, 0.6]} for one in results]
    (tmp_path / "results.json").write_text(json.dumps(shares))
    with pytest.raises(AnnotationError, match="between 0 and 1"):
        read_people(tmp_path / "results.json", images=tmp_path / "photos", boxes_suffice=True)


def test_unreadable_photographs(tmp_path, bodies, finder):
    people, _ = save_people(tmp_path / "photos", BOXES)
    (tmp_path / "photos/a.png").write_bytes(b"none")
    (tmp_path / "photos/c.png").unlink()
    with pytest.raises(AnnotationError, match=r"a\.png"):
        predict_annotations(finder, bodies[0], people, tmp_path / "photos")
    why = {}
    options = {"unreadable": lambda name, error: why.update({name: error})}
    labels = predict_annotations(finder, bodies[0], people, tmp_path / "photos", **options)
    assert labels.ids.tolist() == [9]
    assert [*why] == ["a.png", "c.png"]
    (tmp_path / "photos/b.png").unlink()
    with pytest.raises(AnnotationError, match="no image can be read"):
        predict_annotations(finder, bodies[0], people, tmp_path / "photos", **options)


def test_mismatched_inputs_are_refused(tmp_path, bodies, finder, mannequin_asset):
    people, _ = save_people(tmp_path / "photos", BOXES)
    with pytest.raises(ValueError, match="body: expected that of the network, mannequin"):
        predict_annotations(finder, agebody.SMPLA(mannequin_asset, num_betas=3), people, tmp_path / "photos")
    finder.head.condition = 5
    with pytest.raises(ValueError, match="expected a condition of 3 numbers"):
        predict_annotations(finder, bodies[0], people, tmp_path / "photos")
    finder.head.condition, finder.backbone = 3, nn.Identity()
    unsure = {**start_readouts(bodies[1]), "camera": torch.full((3,), torch.nan)}
    rows = {name: part.expand(len(people), -1) for name, part in unsure.items()}
    broken = Regressor(Eye(), lambda images, condition: rows, bodies[1])
    with pytest.raises(ValueError, match="network: expected finite predictions"):
        predict_annotations(broken, bodies[0], people, tmp_path / "photos")
    with pytest.raises(ValueError, match="crop_size"):
        predict_annotations(finder, bodies[0], people, tmp_path / "photos")
    with pytest.raises(AnnotationError, match="nobody"):
        predict_annotations(finder, bodies[0], people.select(slice(0, 0)), tmp_path / "photos")


@pytest.fixture
def seen(tmp_path, bodies):
    """Photographs of nothing, with keypoints and boxes of random people, and one of a box alone."""
    people = random_people(bodies[0], 3, seed=4, size=SIZE)
    found = observe(bodies[0], people, seed=4, noise=0.2)
    (tmp_path / "photos").mkdir()
    entries = []
    for i in range(3):
        Image.new("RGB", SIZE, (90, 120, 90)).save(tmp_path / f"photos/{i}.png")
        points = torch.cat((found.keypoints[i], 2.0 * (found.weights[i] > 0)[:, None]), -1).flatten()
        entries.append({"image_id": i, "keypoints": points.tolist(), "years": float(people.years[i])})
    entries.append({"image_id": 2, "bbox": [20, 20, 60, 80]})
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(3)]
    (tmp_path / "people.json").write_text(json.dumps({"images": images, "annotations": entries}))
    return people


def test_only_people_with_keypoints_are_refined(tmp_path, bodies, seen):
    class Guess(nn.Module):
        """The truth, a little off; for the box alone, a body at rest."""

        def forward(self, images, condition):
            matrices = axis_angle_to_matrix(
                torch.cat((seen.parameters.global_orient[:, None], seen.parameters.body_pose), 1)
            )
            pose = torch.cat(
                (agebody.rotations.from_matrix(matrices, "rotation_6d").flatten(1), rest["pose"][None])
            )
            betas = torch.cat((seen.parameters.betas + 0.3, seen.parameters.age_offset[:, None]), 1)
            betas = torch.cat((betas, rest["betas"][None]))
            return {"pose": pose, "betas": betas, "camera": torch.tensor([[0.8, 0.1, 0]]).expand(4, -1)}

    rest = start_readouts(bodies[1])
    network = Regressor(Eye(), Guess(), bodies[1])
    people = read_people(tmp_path / "people.json", boxes_suffice=True)
    plain = predict_annotations(network, bodies[0], people, tmp_path / "photos")
    assert (plain.reprojection[:3] > 3).all()
    assert np.isnan(plain.stature_sd).all()
    labels = predict_annotations(network, bodies[0], people, tmp_path / "photos", refine=True)
    assert (labels.reprojection[:3] < 1.5).all()
    np.testing.assert_allclose(labels.start_reprojection[:3], plain.reprojection[:3], rtol=1e-4)
    assert labels.kept[:3].all()
    assert labels.stop.tolist()[3] == "predicted"
    assert (labels.stop[:3] != "predicted").all()
    np.testing.assert_allclose(labels.transl[3], plain.transl[3], atol=1e-5)
    np.testing.assert_allclose(labels.body_pose[3], plain.body_pose[3], atol=1e-5)


# --- the command


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


@pytest.fixture
def checkpoint(tmp_path, bodies, monkeypatch):
    """A network of random weights, as a training saves it."""
    monkeypatch.setitem(VIT_SIZES, "tiny", TINY)
    save_network(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("options", [(), ("--refine", "--batch-size", "1")])
def test_labels_of_a_checkpoint(tmp_path, mannequin_asset, seen, checkpoint, options):
    save_asset(mannequin_asset, tmp_path / "body.safetensors")
    common = ("--checkpoint", checkpoint, "--images", tmp_path / "photos", "-o", tmp_path / "out", *options)
    result = run(tmp_path / "people.json", *common, "--body", tmp_path / "body.safetensors")
    assert result.exit_code == 0, result.output
    labels = load_labels(tmp_path / "out/labels.npz")
    assert len(labels) == 4
    assert len([*(tmp_path / "out/overlays").iterdir()]) == 3
    report = json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail)
    assert report["stop"]["predicted"] == (1 if options else 4)
    again = run(tmp_path / "people.json", *common, "--body", "mannequin")
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr


def test_a_network_may_have_fewer_betas_than_the_body(tmp_path, seen, checkpoint):
    save_network(checkpoint, num_betas=6)
    given = (tmp_path / "people.json", "--images", tmp_path / "photos", "--body", "mannequin")
    given += ("--checkpoint", checkpoint, "-o", tmp_path / "out", "--overlays", 0)
    assert "predicts 24 joints and 7 shape numbers; the body has 24 joints and 10" in run(*given).stderr
    result = run(*given, "--num-betas", 6)
    assert result.exit_code == 0, result.output
    assert load_labels(tmp_path / "out/labels.npz").betas.shape == (4, 6)
    result = run(*given, "--num-betas", 11, "--overwrite")
    assert result.stderr == "error: --num-betas: expected 0 to 10, what 'mannequin' has, got 11\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("{people}", "--images", "{photos}"), "agebody ships none. The weights of HMR2 come with"),
        (("{people}", "--checkpoint", "{net}"), "--images"),
        (("{people}", "--images", "{photos}", "--checkpoint", "{net}", "--years", "3"), "--years"),
        (("{people}", "--images", "{photos}", "--checkpoint", "{people}"), "people.json"),
        (
            ("{people}", "--images", "{photos}", "--checkpoint", "{net}", "--body", "{body}"),
            "net.safetensors: AionHMR predicts 24 joints and 11 shape numbers; the body has 24 joints and 4",
        ),
        (("{nobody}", "--images", "{photos}", "--checkpoint", "{net}"), "there is nobody to predict"),
        (("{photos}", "--checkpoint", "{net}", "--detector", "rtmo:none"), "none: no such file of weights"),
    ],
)
def test_wrong_predictions_are_one_line(tmp_path, mannequin_asset, seen, checkpoint, arguments, problem):
    about = dataclasses.replace(mannequin_asset.metadata, shape_names=())
    smaller = mannequin_asset.replace(shapedirs=mannequin_asset.shapedirs[..., :4], metadata=about)
    save_asset(smaller, tmp_path / "b.safetensors")
    paths = {"people": tmp_path / "people.json", "photos": tmp_path / "photos", "net": checkpoint}
    about = json.loads(paths["people"].read_text())
    paths["nobody"] = tmp_path / "nobody.json"
    paths["nobody"].write_text(json.dumps(about | {"annotations": []}))
    given = [part.format(**paths, body=tmp_path / "b.safetensors") for part in arguments]
    given += [] if "--body" in given else ["--body", "mannequin"]
    result = run(*given, "-o", tmp_path / "out")
    assert result.exit_code in (1, 2), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert not (tmp_path / "out").exists()
