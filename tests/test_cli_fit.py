import json
import math
import os
import tarfile

import numpy as np
import pytest
import torch
from bodies import random_body
from PIL import Image
from typer.testing import CliRunner

import agebody
from agebody import save_asset
from agebody.annotations import read_people, read_shard, write_shards
from agebody.keypoints import LAYOUTS
from agebody.people import observe, random_people
from agebody.pipelines.cli import app
from agebody.pipelines.labels import load_labels

SIZE = (320, 240)
COUNT = 3
FILES = ["labels.npz", "report.json", "report.md", "train.npz"]


def run(*arguments):
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def assert_one_line_error(result, message):
    assert result.exit_code == 1
    assert not isinstance(result.exception, Exception), result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.fixture(scope="module")
def data(mannequin_asset, tmp_path_factory):
    """Photographs of nothing, with a person's keypoints in each, and an image without people."""
    folder = tmp_path_factory.mktemp("data")
    body = agebody.SMPLA(mannequin_asset)
    people = random_people(body, COUNT, seed=11, size=SIZE)
    seen = observe(body, people, seed=11, noise=0.5)
    (folder / "photos").mkdir()
    for i in range(COUNT + 1):
        Image.new("RGB", SIZE, (90, 120, 90)).save(folder / "photos" / f"{i}.jpg")
    points = torch.cat((seen.keypoints, 2.0 * (seen.weights > 0)[..., None]), -1).flatten(1).tolist()
    document = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in range(COUNT + 1)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "keypoints": row, "years": float(people.years[i])}
            for i, row in enumerate(points)
        ]
        + [{"id": 9, "image_id": 0, "category_id": 1, "iscrowd": 1, "keypoints": [0] * 51}],
        "categories": [{"id": 1, "name": "person", "keypoints": list(LAYOUTS["coco17"].names)}],
    }
    (folder / "keypoints.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "new"
    options = ("--body", "mannequin", "--images", data / "photos", "--overlays", 2, "--shards")
    return output, run(data / "keypoints.json", *options, "-o", output)


def test_fit_writes_labels_and_a_summary(fitted, data):
    output, result = fitted
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(output)) == sorted([*FILES, "overlays", "shards"])
    assert all(f"wrote {output / name}" in result.stdout for name in FILES)
    labels = load_labels(output / "labels.npz")
    assert labels.image_ids.tolist() == [f"{i}.jpg" for i in range(COUNT)]
    assert labels.kept.any()
    report = json.loads((output / "report.json").read_text())
    assert report["people"] == COUNT
    assert report["kept"] == labels.kept.sum()
    assert report["left_out"] == {"crowd": 1}
    assert report["images_without_people"] == 1
    assert f"{report['kept']} of {COUNT} people kept" in result.stdout
    assert "left out: crowd 1" in result.stdout
    assert "training code takes them for SMPL's" in result.stdout
    assert (output / "report.md").read_text().startswith("# Labels")
    with np.load(output / "train.npz", allow_pickle=False) as train:
        assert train["betas"].shape == (COUNT, 11)
        np.testing.assert_array_equal(train["has_body_pose"], labels.kept)
        np.testing.assert_array_equal(train["has_betas"], labels.kept & ~labels.flags["age_unknown"])
    with tarfile.open(output / "shards" / "000000.tar") as tar:
        assert len(tar.getnames()) == 3 * COUNT
    pictures = sorted(os.listdir(output / "overlays"))
    assert pictures == ["0.jpg.png", "2.jpg.png"]  # evenly from all
    with Image.open(output / "overlays" / pictures[0]) as picture:
        assert picture.size == (2 * SIZE[0] + 6, SIZE[1])
        assert np.ptp(np.asarray(picture)) > 100


def test_keypoints_in_whole_pixels_are_fitted_and_sharded(data, tmp_path):
    """COCO's own annotations have integers alone."""
    document = json.loads((data / "keypoints.json").read_text())
    document["annotations"] = document["annotations"][:1]
    points = document["annotations"][0]["keypoints"]
    document["annotations"][0]["keypoints"] = [round(number) for number in points]
    (tmp_path / "whole.json").write_text(json.dumps(document))
    result = run(tmp_path / "whole.json", "--body", "mannequin", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert load_labels(tmp_path / "out" / "labels.npz").observed.dtype.kind == "f"
    (shard,) = write_shards(read_people(tmp_path / "whole.json"), tmp_path)
    assert np.allclose(read_shard(shard).keypoints, np.reshape(points, (-1, 3))[:, :2], atol=0.5)


def test_fit_replaces_files_only_with_overwrite(fitted, data):
    output, _ = fitted
    before = (output / "labels.npz").read_bytes()
    result = run(data / "keypoints.json", "--body", "mannequin", "-o", output)
    assert_one_line_error(result, "labels.npz: exists; give --overwrite to replace it")
    assert (output / "labels.npz").read_bytes() == before
    options = ("--body", "mannequin", "--overwrite", "--min-confidence", 0.5, "--fov", 40)
    assert run(data / "keypoints.json", *options, "-o", output).exit_code == 0
    assert (output / "labels.npz").read_bytes() != before
    focal = load_labels(output / "labels.npz").focal
    np.testing.assert_allclose(focal, SIZE[1] / 2 / np.tan(np.radians(20)), rtol=1e-6)


def test_overwriting_removes_all_earlier_files(data, tmp_path, monkeypatch, fitted):
    labels = load_labels(fitted[0] / "labels.npz")
    monkeypatch.setattr("agebody.pipelines.labels.fit_annotations", lambda *arguments, **options: labels)
    output = tmp_path / "out"
    for name in ("000000.tar", "000001.tar", "mine.tar"):
        (output / "shards").mkdir(parents=True, exist_ok=True)
        (output / "shards" / name).touch()
    for name in ("old__9.jpg.png", "mine.png"):
        (output / "overlays").mkdir(exist_ok=True)
        (output / "overlays" / name).touch()
    arguments = (data / "keypoints.json", "--body", "mannequin", "-o", output)
    assert_one_line_error(run(*arguments), "overlays: exists; give --overwrite to replace it")
    result = run(*arguments, "--overwrite")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(output)) == sorted([*FILES, "overlays", "shards"])
    assert os.listdir(output / "shards") == ["mine.tar"]
    assert os.listdir(output / "overlays") == ["mine.png"]


@pytest.mark.parametrize(
    "where", ["fit_annotations", "fit_folder.save_training_npz", "fit_folder.draw_overlay"]
)
def test_an_interrupted_fit_leaves_nothing_half_written(data, tmp_path, monkeypatch, where, fitted):
    labels = load_labels(fitted[0] / "labels.npz")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("agebody.pipelines.labels.fit_annotations", lambda *arguments, **options: labels)
    monkeypatch.setattr(f"agebody.pipelines.labels.{where}", interrupted)
    options = ("--body", "mannequin", "--images", data / "photos", "--shards", "-o", tmp_path / "out")
    result = run(data / "keypoints.json", *options)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["error: interrupted"]
    # Labels do not wait for pictures, and pictures come all or none; a folder for nothing goes again.
    assert (tmp_path / "out").exists() == ("overlay" in where)
    assert "overlay" not in where or sorted(os.listdir(tmp_path / "out")) == FILES
    earlier = tmp_path / "earlier"
    (earlier / "overlays").mkdir(parents=True)
    for name in ("labels.npz", "report.md", "overlays/9.jpg.png"):
        (earlier / name).write_text("earlier")
    assert run(data / "keypoints.json", *options[:-1], earlier, "--overwrite").exit_code == 130
    found = {
        path.name for path in earlier.rglob("*") if path.is_file() and path.read_text("latin1") == "earlier"
    }
    assert found == {"9.jpg.png"} if "overlay" in where else {"labels.npz", "report.md", "9.jpg.png"}


def test_unusable_images_are_reported(data, tmp_path, monkeypatch, fitted):
    labels = load_labels(fitted[0] / "labels.npz")
    monkeypatch.setattr("agebody.pipelines.labels.fit_annotations", lambda *arguments, **options: labels)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.jpg").write_bytes(b"no image")
    Image.new("RGB", (SIZE[1], SIZE[0])).save(photos / "1.jpg")
    options = ("--body", "mannequin", "--images", photos, "-o", tmp_path / "out", "--shards")
    assert_one_line_error(run(data / "keypoints.json", *options), "images: 1 not found (2.jpg)")
    assert not (tmp_path / "out").exists()
    (photos / "2.jpg").write_bytes(b"")
    result = run(data / "keypoints.json", *options)
    assert result.exit_code == 0, result.output
    assert "note: 0.jpg: " in result.stderr
    assert "not an image that can be read" in result.stderr
    assert "the image has 240 x 320 pixels, the annotations are of 320 x 240" in result.stderr
    assert not (tmp_path / "out" / "overlays").exists()
    with tarfile.open(tmp_path / "out" / "shards" / "000000.tar") as tar:
        assert tar.getnames() == []


def test_fit_names_wrong_options_and_files(data, tmp_path, monkeypatch):
    keypoints = data / "keypoints.json"
    output = ("--body", "mannequin", "-o", tmp_path / "out")
    assert_one_line_error(run(tmp_path / "none.json", *output), "none.json")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(run(tmp_path / "empty", *output), "_keypoints.json")
    (tmp_path / "text.json").write_text("no")
    assert_one_line_error(run(tmp_path / "text.json", *output), "not a JSON file")
    document = json.loads(keypoints.read_text())
    crowd = [{**one, "iscrowd": 1} for one in document["annotations"]]
    (tmp_path / "crowd.json").write_text(json.dumps({**document, "annotations": crowd}))
    count = f"nobody to fit (crowd: {len(crowd)})"
    assert_one_line_error(run(tmp_path / "crowd.json", *output), count)
    assert_one_line_error(run(keypoints, "--body", tmp_path / "none.pkl", "-o", tmp_path / "out"), "none.pkl")
    assert_one_line_error(
        run(keypoints, *output, "--images", tmp_path / "none"), "expected a folder of images"
    )
    assert_one_line_error(
        run(keypoints, "--body", "mannequin", "-o", keypoints), "cannot write in this folder"
    )
    for options, option in (
        (("--layout", "coco18"), "--layout"),
        (("--age-class", "old"), "--age-class"),
        (("--focal", 500, "--fov", 50), "--fov"),
        (("--years", 3, "--age-offset", 0.5), "--years"),
        (("--size", "big"), "--size"),
        (("--device", "tpu"), "--device"),
        (("--device", "mps"), "float64"),
        (("--shards",), "--shards"),
        (("--fov", 180), "--fov"),
        (("--focal", "inf"), "--focal"),
        (("--fov", "nan"), "--fov"),
        (("--years", "nan"), "--years"),
    ):
        result = run(keypoints, *output, *options)
        assert result.exit_code == 2, options
        assert option in result.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_one_line_error(run(keypoints, *output, "--images", data / "photos"), "agebody[render]")


def test_the_lifter_needs_the_joints_that_it_learnt(data, tmp_path, fitted):
    body = tmp_path / "joints.safetensors"
    save_asset(random_body(), body)
    result = run(data / "keypoints.json", "--body", body, "-o", tmp_path / "out", "--lifter")
    assert_one_line_error(result, "--lifter needs a body with SMPL's 24 joints")


def test_openpose_folders_and_bodies_of_one_age(data, tmp_path, monkeypatch, fitted):
    seen = {}
    labels = load_labels(fitted[0] / "labels.npz")

    def fit(body, annotations, **options):
        seen.update(options, body=body, annotations=annotations)
        return labels

    monkeypatch.setattr("agebody.pipelines.labels.fit_annotations", fit)
    folder = tmp_path / "frames"
    folder.mkdir()
    person = {"pose_keypoints_2d": [5.0, 6.0, 0.9] * 25}
    (folder / "0_keypoints.json").write_text(json.dumps({"people": [person]}))
    body = tmp_path / "adult.npz"
    agebody.export_smpl(agebody.mannequin(), body)
    result = run(folder, "--body", body, "--size", "64x48", "--focal", 90, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert isinstance(seen["body"], agebody.SMPL)
    assert seen["annotations"].images[0].size == (64, 48)
    assert (seen["focal"], seen["fov"]) == (90, None)
    assert "takes them for SMPL's" not in result.stdout
    assert "has one age: everybody is fitted as an adult" in result.stderr
    again = run(folder, "--body", "mannequin", "--size", "64x48", "-o", tmp_path / "ages")
    assert "has one age" not in again.stderr


def test_depths_in_metres_place_people(data, tmp_path):
    """A flat map of 4 m: everybody who is not a giant there stands at 4 m."""
    (tmp_path / "depth").mkdir()
    for i in range(COUNT):
        flat = np.full((SIZE[1], SIZE[0]), 4000, np.uint16)
        Image.fromarray(flat).save(tmp_path / "depth" / f"{i}.png")
    options = ("--body", "mannequin", "--depth", tmp_path / "depth")
    result = run(data / "keypoints.json", *options, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    depth = load_labels(tmp_path / "out" / "labels.npz").depth
    placed = np.abs(depth - 4) < 0.3
    assert placed.any()
    assert (
        placed.all() or f"{(~placed).sum()} of {COUNT} people were not placed by their depth" in result.stderr
    )
    (tmp_path / "depth" / "0.png").unlink()
    assert_one_line_error(run(data / "keypoints.json", *options, "-o", tmp_path / "two"), "0.npy or 0.png")
    assert not (tmp_path / "two").exists()


def test_focal_lengths_of_exif(data, tmp_path):
    """FocalLengthIn35mmFilm counts where no focal length is given, and that is said."""
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = 28
    for i in range(COUNT + 1):
        Image.new("RGB", SIZE).save(tmp_path / "photos" / f"{i}.jpg", exif=exif if i else Image.Exif())
    options = ("--body", "mannequin", "--images", tmp_path / "photos", "--overlays", 0)
    result = run(data / "keypoints.json", *options, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"{COUNT - 1} of {COUNT + 1} images are from their EXIF" in result.stderr
    focal = load_labels(tmp_path / "out" / "labels.npz").focal
    diagonal = math.hypot(*SIZE)
    np.testing.assert_allclose(focal[0], diagonal, rtol=1e-6)  # the guess of those without
    np.testing.assert_allclose(focal[1:], 28 / math.hypot(36, 24) * diagonal, rtol=1e-6)
    result = run(data / "keypoints.json", *options, "--focal", 900, "-o", tmp_path / "given")
    assert "EXIF" not in result.stderr
    np.testing.assert_allclose(load_labels(tmp_path / "given" / "labels.npz").focal, 900)


def test_heic_is_refused_with_advice(data, tmp_path, monkeypatch):
    monkeypatch.setattr("agebody.annotations.photographs._refused", lambda: (".heic", ".avif"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    for images in (tmp_path / "photos", tmp_path / "photos" / "0.HEIC"):
        result = run(data / "keypoints.json", "--body", "mannequin", "--images", images, "-o", tmp_path / "o")
        assert_one_line_error(result, "HEIC")
        assert (
            "convert it to JPEG first, as by `magick photo.heic photo.jpg`, or pip install" in result.stderr
        )


def test_results_with_their_annotations_and_one_image(data, tmp_path, monkeypatch, fitted):
    seen = []
    labels = load_labels(fitted[0] / "labels.npz")

    def fit(body, annotations, **options):
        seen.append(annotations)
        return labels.select(slice(1))

    monkeypatch.setattr("agebody.pipelines.labels.fit_annotations", fit)
    document = json.loads((data / "keypoints.json").read_text())
    row = document["annotations"][0]
    results = [{"image_id": 0, "category_id": 1, "keypoints": row["keypoints"], "score": 1.0}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    options = ("--body", "mannequin", "--annotations", data / "keypoints.json")
    result = run(tmp_path / "results.json", *options, "-o", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert [(image.name, image.size) for image in seen[0].images] == [("0.jpg", SIZE)]
    options = ("--body", "mannequin", "--images", data / "photos" / "0.jpg", "--overlays", 1)
    result = run(tmp_path / "results.json", *options, "-o", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "b" / "overlays").iterdir()]
    assert_one_line_error(
        run(tmp_path / "results.json", "--body", "mannequin", "-o", tmp_path / "c"),
        "no images; give their folder",
    )
