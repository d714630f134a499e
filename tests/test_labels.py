import io
import json
import math
import pickle
import pickletools
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_files import synthetic_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

import agebody
from agebody.age import AGE_CLASSES, age_class
from agebody.annotations import AnnotationError, read_people
from agebody.annotations.orders import order_by_title, plain_name
from agebody.annotations.photographs import read_photograph
from agebody.cameras import Camera
from agebody.keypoints import LAYOUTS
from agebody.metrics import pa_mpjpe
from agebody.nets import Lifter
from agebody.optim.stages import Fit, FitReport
from agebody.optim.standard_errors import StandardErrors
from agebody.people import observe, random_people
from agebody.pipelines.evaluate import evaluate_files
from agebody.pipelines.labels import (
    TrainingShards,
    fit_annotations,
    load_labels,
    save_training_npz,
    save_training_shards,
)
from agebody.pipelines.labels.overlays import draw_overlay
from agebody.pipelines.labels.quality import flag_labels
from agebody.pipelines.labels.records import LATER, concatenate_labels
from agebody.pipelines.labels.summary import summarize, to_markdown, unknown_ages
from agebody.pipelines.labels.training import _observed, training_arrays

COCO17 = LAYOUTS["coco17"].names
COCO18 = order_by_title("COCO of OpenPose").names
COUNT = 6
SIZE = (640, 480)


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset)


@pytest.fixture(scope="module")
def people(body):
    return random_people(body, COUNT, seed=7, size=SIZE)


@pytest.fixture(scope="module")
def observed(body, people):
    return observe(body, people, seed=7, noise=1.0)


def coco_document(observed, *, names=COCO17, ages=None):
    """Two people an image."""
    points = torch.cat((observed.keypoints, 2.0 * (observed.weights > 0)[..., None]), -1)
    images = [
        {"id": i, "file_name": f"day/{i}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in range(COUNT // 2)
    ]
    annotations = [
        {"id": 100 + i, "image_id": i // 2, "category_id": 1, "keypoints": row.flatten().tolist()}
        | ({} if ages is None else ages[i])
        for i, row in enumerate(points)
    ]
    categories = [{"id": 1, "name": "person", "keypoints": list(names)}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def write(tmp_path):
    def write(document, name="keypoints.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


@pytest.fixture
def knows_the_truth(monkeypatch, people):
    """In place of the fit: the people themselves. Collects what the fit was asked."""
    calls = []

    def fit(body, keypoints, camera, **options):
        first = sum(len(call["keypoints"]) for call in calls)
        rows = slice(first, first + len(keypoints))
        calls.append({"keypoints": keypoints, "camera": camera, **options})
        some = people.select(rows)
        parameters = some.parameters
        count = len(keypoints)
        zero, yes = torch.zeros(count), torch.ones(count, dtype=torch.bool)
        report = FitReport(yes, zero.long() + 9, zero.long() + 1, zero + 2, {"keypoints": zero + 2}, yes)
        sure = StandardErrors(zero + 1e-3, zero + 0.02, zero + 0.1)
        return Fit(parameters, report, zero + 1, zero + 20, sure)

    monkeypatch.setattr("agebody.pipelines.labels.fitting.fit_keypoints", fit)
    return calls


@pytest.fixture
def labels(body, observed, write, knows_the_truth):
    return fit_annotations(body, read_people(write(coco_document(observed))))


# --- files of keypoints


def test_coco_annotations_are_those_that_pycocotools_reads(write, capsys):
    document, _ = synthetic_coco(3)
    for image in document["images"]:
        image["file_name"] = f"{image['id']:012d}.jpg"
    path = write(document)
    found = read_people(path)
    theirs = COCO(str(path))
    capsys.readouterr()  # pycocotools prints
    wanted = [one for one in theirs.loadAnns(theirs.getAnnIds(iscrowd=False)) if any(one["keypoints"][2::3])]  # pyright: ignore[reportGeneralTypeIssues]
    assert found.ids.tolist() == [one["id"] for one in wanted]
    for row, one in enumerate(wanted):
        points = np.array(one["keypoints"]).reshape(17, 3)  # pyright: ignore[reportGeneralTypeIssues]
        np.testing.assert_array_equal(found.weights[row], points[:, 2] > 0)
        seen = points[:, 2] > 0
        np.testing.assert_array_equal(found.keypoints[row][seen], points[seen, :2])
        x, y, width, height = one["bbox"]
        np.testing.assert_allclose(found.boxes[row], (x, y, x + width, y + height))
        image = theirs.loadImgs(one["image_id"])[0]
        assert found.images[found.image[row]].id == image["id"]
        assert found.images[found.image[row]].size == (1000, 1000)
    left_out = dict(found.left_out)
    assert left_out["crowd"] == sum(one["iscrowd"] for one in document["annotations"])
    assert len(found) + sum(left_out.values()) == len(document["annotations"])


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RShoulder", "right_shoulder"), ("right shoulder", "right_shoulder"),
        ("shoulder_r", "right_shoulder"), ("Left-Ankle", "left_ankle"), ("LBigToe", "left_big_toe"),
        ("MidHip", "mid_hip"), ("midhip", "mid_hip"), ("nose", "nose"),
        ("l_eye", "left_eye"), ("Nose", "nose"), ("left_hip", "left_hip"), ("leftElbow", "left_elbow"),
    ],
)  # fmt: skip
def test_names_of_keypoints_are_understood(written, name):
    assert plain_name(written) == name


@settings(max_examples=30)
@given(st.permutations(range(17)), st.integers(4, 17))
def test_keypoints_are_matched_by_name(tmp_path_factory, order, count):
    names = [COCO17[i].upper().replace("_", " ") for i in order[:count]]
    points = [value for i in order[:count] for value in (10.0 * i, 10.0 * i + 1, 2)]
    document = {
        "images": [{"id": "a", "file_name": "a.png", "width": 9, "height": 8}],
        "annotations": [{"id": 5, "image_id": "a", "category_id": 3, "keypoints": points}],
        "categories": [{"id": 3, "name": "child", "keypoints": names}],
    }
    path = tmp_path_factory.mktemp("coco") / "a.json"
    path.write_text(json.dumps(document))
    found = read_people(path, layout="coco17")
    for i in range(17):
        there = i in order[:count]
        assert found.weights[0, i] == there
        assert found.keypoints[0, i].tolist() == ([10.0 * i, 10.0 * i + 1] if there else [0, 0])


def test_names_that_no_layout_has_are_left_over_and_said(write, observed):
    document = coco_document(observed, names=("head top", *COCO17[1:]))
    found = read_people(write(document))
    assert found.layout.name == "coco17"
    assert not found.weights[:, 0].any()
    assert "head top" in found.notes[0]
    whole = read_people(write(coco_document(observed)), layout="openpose25")
    assert whole.layout.name == "openpose25"
    hip = LAYOUTS["openpose25"].names.index("left_hip")
    np.testing.assert_allclose(whole.keypoints[:, hip], observed.keypoints[:, 11].double(), rtol=1e-6)
    assert not whole.weights[:, LAYOUTS["openpose25"].names.index("mid_hip")].any()


def test_confidences_weigh_as_they_are_and_no_more_than_one(write):
    points = [(float(i), 2.0, weight) for i, weight in enumerate(np.linspace(0, 1.2, 17))]
    path = write([{"image_id": "a.jpg", "keypoints": np.ravel(points).tolist(), "score": 1.0}])
    Image.new("RGB", (40, 30)).save(path.parent / "a.jpg")
    found = read_people(path, images=path.parent)
    np.testing.assert_allclose(found.weights[0], np.minimum(np.linspace(0, 1.2, 17), 1))
    assert found.images[0].size == (40, 30)


def test_results_find_their_images_by_number_and_by_name(write, tmp_path):
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(folder / "000000000139.jpg")
    Image.new("RGB", (60, 20)).save(folder / "b" / "c.png")
    points = [1.0, 2.0, 0.5] * 17
    other = [9.0, 2.0, 0.5] * 17
    named = ((139, points), ("b/c.png", points), ("000000000139.jpg", other))
    results = [{"image_id": key, "keypoints": values} for key, values in named]
    found = read_people(write(results), images=folder)
    assert [found.images[i].name for i in found.image] == ["000000000139.jpg", "b/c.png", "000000000139.jpg"]
    assert [found.images[i].size for i in found.image] == [(30, 20), (60, 20), (30, 20)]
    with pytest.raises(
        AnnotationError, match=r"results\[0\]: image_id: expected .*, got 7; .*000000000139.jpg"
    ):
        read_people(write([{"image_id": 7, "keypoints": points}]), images=folder)
    with pytest.raises(AnnotationError, match="no images; give their folder"):
        read_people(write(results))


@pytest.mark.parametrize(("size", "names"), [(25, LAYOUTS["openpose25"].names), (18, COCO18)])
def test_openpose_folders(tmp_path, size, names):
    rng = np.random.default_rng(0)
    frames = {
        f"clip_{i:012d}": [rng.uniform(1, 9, (size, 3)) / (1, 1, 9) for _ in range(i)] for i in range(3)
    }
    for stem, poses in frames.items():
        listed = [{"pose_keypoints_2d": pose.ravel().tolist()} for pose in [*poses, np.zeros((size, 3))]]
        (tmp_path / f"{stem}_keypoints.json").write_text(json.dumps({"version": 1.3, "people": listed}))
    found = read_people(tmp_path, size=(1920, 1080))
    assert found.layout.name == "openpose25"
    assert [entry.name for entry in found.images] == list(frames)
    assert found.image.tolist() == [1, 2, 2]
    assert {entry.size for entry in found.images} == {(1920, 1080)}
    assert dict(found.left_out) == {"no labelled keypoint": 3}
    poses = [pose for listed in frames.values() for pose in listed]
    for row, pose in enumerate(poses):
        for i, name in enumerate(LAYOUTS["openpose25"].names):
            here = names.index(name) if name in names else None
            weight = 0 if here is None else pose[here, 2]
            assert found.weights[row, i] == pytest.approx(weight)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 6)).save(images / "other.png")
    with pytest.raises(AnnotationError, match=r"clip_000000000000_keypoints.json: no image clip_0+\.\*"):
        read_people(tmp_path, images=images)


def test_ages_are_read_however_they_are_given(write, observed):
    ages = [
        {"age_offset": 0.5}, {"age_class": "Kid"}, {"age_class": 3},
        {"years": 4}, {"age": 7.5}, {"age": "baby"},
    ]  # fmt: skip
    found = read_people(write(coco_document(observed, ages=ages)))
    np.testing.assert_array_equal(found.ages.age_offset, [0.5] + 5 * [math.nan])
    assert found.ages.age_class.tolist() == [-1, 2, 3, -1, -1, 3]
    np.testing.assert_array_equal(found.ages.years, [math.nan] * 3 + [4, 7.5, math.nan])


def test_the_most_exact_age_counts(write, observed):
    ages = [
        {"age_offset": 0.5, "years": 4, "age_class": "baby"}, {"years": 4, "age_class": 3, "age": "kid"},
        {"age": 7, "age_months": "48"}, {"age": "kid", "age_class": 3}, {"years": None, "age": 5},
        {"age_class": ""},
    ]  # fmt: skip
    found = read_people(write(coco_document(observed, ages=ages))).ages
    np.testing.assert_array_equal(found.age_offset, [0.5] + 5 * [math.nan])
    np.testing.assert_array_equal(found.years, [math.nan, 4, 4, math.nan, 5, math.nan])
    assert found.age_class.tolist() == [-1, -1, -1, 3, -1, -1]


@pytest.mark.parametrize(
    ("fields", "unread"),
    [
        ({"age_group": "child"}, "age_group"),
        ({"ageGroup": 1, "months": 18, "birth_year": 2020}, "ageGroup, birth_year, months"),
        ({"attributes": {"age": "2", "occluded": False}}, "attributes.age"),
        ({"image_usage": 1, "attributes": ["age"], "stage": 2, "damaged": True}, None),
        ({"age_offset": 0.3, "age_months": 18, "years": 3, "age_class": "kid", "age": 3}, None),
    ],
)
def test_ages_in_fields_of_other_names_are_not_lost_silently(write, observed, fields, unread):
    document = coco_document(observed)
    document["annotations"][2] |= fields
    notes = [note for note in read_people(write(document)).notes if "ages" in note]
    expected = f"not read as ages: {unread}; expected age_offset, age_months, years, age_class"
    assert notes == ([] if unread is None else [expected])


def test_people_count_in_the_class_of_the_age_that_was_stated(body, observed, write):
    """A body may have the median stature of a year at an offset of another class than the published one."""
    ages = [{"years": 1.5}, {"age_months": 18}, {"years": 1.45}, {"age_class": "kid"}, {"age_offset": 0.76}]
    document = coco_document(observed, ages=[*ages, {"years": 30}])
    labels = fit_annotations(body, read_people(write(document)))
    assert labels.age_class.tolist() == labels.classes().tolist() == [2, 2, 3, 2, 3, 0]
    assert [row["people"] for row in summarize(labels)["ages"]] == [1, 0, 3, 2]
    assert not labels.flags["age_bound"][[0, 1, 2, 4, 5]].any()
    unstated = replace(labels, age_class=np.full(len(labels), -1))
    assert unstated.classes().tolist() == age_class(labels.age_offset).tolist()


def mutate(document, change):
    exec(change, {"d": document})
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("del d['images']", "images: expected a list"),
        ("d['annotations'] = {}", "annotations: expected a list"),
        (
            "d['annotations'][1]['keypoints'].pop()",
            r"annotations\[1\] \(id 101\): keypoints: expected finite",
        ),
        (
            "d['annotations'][1]['keypoints'] += [0, 0, 0]",
            r"\(id 101\): keypoints: expected 51 numbers, got 54",
        ),
        ("d['annotations'][1]['keypoints'][0] = 'x'", r"\(id 101\): keypoints: expected finite"),
        ("d['annotations'][1]['keypoints'][0] = float('nan')", r"\(id 101\): keypoints: expected finite"),
        ("d['annotations'][1]['keypoints'][2] = -1", "expected confidences of at least 0, got -1"),
        ("d['annotations'][1]['image_id'] = 77", r"\(id 101\): image_id: expected .* of the images, got 77"),
        (
            "d['annotations'][1]['image_id'] = [1]",
            r"\(id 101\): image_id: expected .* of the images, got \[1\]",
        ),
        (
            "d['annotations'][1]['image_id'] = {'id': 1}",
            r"image_id: expected .* of the images, got {'id': 1}",
        ),
        (
            "d['annotations'][1]['keypoints'][0] = 1e308",
            r"\(id 101\): keypoints: expected pixels up to 1000000",
        ),
        ("d['annotations'][1]['keypoints'][0] = -(10**30)", r"\(id 101\): keypoints: expected pixels up to"),
        (
            "d['annotations'][1]['bbox'] = [0, 0, 10**30, 5]",
            r"\(id 101\): bbox: expected x, y, width, height",
        ),
        (
            "d['annotations'][1]['id'] = 100",
            r"annotations\[1\] \(id 100\): id: expected different ids, got 100 more than once",
        ),
        ("d['annotations'][1] = 3", r"annotations\[1\]: expected an object, got 3"),
        ("d['annotations'][1]['bbox'] = [1, 2, 3]", r"\(id 101\): bbox: expected x, y, width, height"),
        ("d['annotations'][1]['bbox'] = [1, 2, -3, 4]", r"\(id 101\): bbox"),
        (
            "d['annotations'][1]['years'] = 200",
            r"\(id 101\): years: expected a number from 0 to below 130, got 200",
        ),
        ("d['annotations'][1]['age_class'] = 'old'", r"\(id 101\): age_class: expected adult, teen"),
        (
            "d['annotations'][1]['age'] = 130",
            r"\(id 101\): age: expected years from 0 to below 130, .*, got 130",
        ),
        (
            "d['annotations'][1]['age'] = 'old'",
            r"\(id 101\): age: expected years .*, adult, teen, .* got 'old'",
        ),
        ("d['images'][1]['id'] = 0", "images: expected different ids, got 0 more than once"),
        (
            "d['images'][1]['file_name'] = '../a.jpg'",
            r"images\[1\] \(id 1\): file_name: expected a path inside",
        ),
        (
            "d['images'][1]['file_name'] = '/../a.jpg'",
            r"images\[1\] \(id 1\): file_name: expected a path inside",
        ),
        (
            "d['images'][1]['file_name'] = 'a\\0.jpg'",
            r"images\[1\] \(id 1\): file_name: expected a path inside",
        ),
        (
            "d['images'][1]['file_name'] = 'a\\ud800.jpg'",
            r"images\[1\] \(id 1\): file_name: expected a path inside",
        ),
        ("d['images'][1]['width'] = 10**12", r"images\[1\] \(id 1\): width, height: .* up to 1000000"),
        ("d['images'][1]['width'] = 0", r"images\[1\] \(id 1\): width, height: expected two positive"),
        ("del d['images'][1]['height']", r"images\[1\] \(id 1\): width, height: expected two positive"),
        (
            "[i.pop('width') and i.pop('height') for i in d['images']]",
            "day/0.jpg: the file does not state its size",
        ),
        (
            "d['categories'][0]['keypoints'][0] = 'left_eye'",
            "expected different names, got left_eye more than once",
        ),
        ("d['categories'][0]['keypoints'] = list('abcdefghijklmnopq')", "expected names of coco17, got a, b"),
        (
            "d['categories'][0]['name'] = 'ape'; d['categories'] += [dict(id=2, name='a', keypoints=['b'])]",
            "of one category.*ape, a",
        ),
    ],
)
def test_wrong_annotations_are_named(write, observed, change, message):
    path = write(mutate(coco_document(observed), change))
    with pytest.raises(AnnotationError, match=message) as error:
        read_people(path)
    assert str(path) in str(error.value)


def test_integer_coordinates_are_read(write, observed):
    """COCO's own annotations have no other."""
    document = coco_document(observed)
    for one in document["annotations"]:
        one["keypoints"] = [round(number) for number in one["keypoints"]]
        one["bbox"] = [0, 0, 900, 900]
    found = read_people(write(document))
    for name in ("keypoints", "weights", "boxes"):
        assert getattr(found, name).dtype == np.float64, name
    np.testing.assert_array_equal(found.keypoints, np.rint(found.keypoints))
    results = write([one | {"image_id": "0.jpg"} for one in document["annotations"]], "results.json")
    images = results.parent / "photos"
    images.mkdir()
    Image.new("RGB", SIZE).save(images / "0.jpg")
    np.testing.assert_array_equal(read_people(results, images=images).keypoints, found.keypoints)


@pytest.mark.parametrize("text", ["", "[1, 2", "3", '"x"', "[[]]", "[" * 100_000, "[" + "1" * 5000 + "]"])
def test_files_without_keypoints_are_named(write, text):
    path = write(text)
    with pytest.raises(AnnotationError) as error:
        read_people(path, images=path.parent)
    assert str(path) in str(error.value)


def test_unnamed_keypoints_are_known_by_their_number(write, observed):
    document = coco_document(observed)
    del document["categories"]
    assert read_people(write(document)).layout.name == "coco17"
    for one in document["annotations"]:
        one["keypoints"] = one["keypoints"][: 3 * 13]
    with pytest.raises(AnnotationError, match="names of the 13 keypoints"):
        read_people(write(document))


def test_people_in_images_that_cannot_be_read_are_left_out(write, observed, tmp_path):
    document = coco_document(observed)
    for image in document["images"]:
        del image["width"], image["height"]
    folder = tmp_path / "photos" / "day"
    folder.mkdir(parents=True)
    Image.new("RGB", SIZE).save(folder / "0.jpg")
    Image.new("RGB", SIZE).save(folder / "2.jpg")
    (folder / "1.jpg").write_bytes(b"no image")
    found = read_people(write(document), images=folder.parent)
    assert found.ids.tolist() == [100, 101, 104, 105]
    assert dict(found.left_out) == {"in an image that cannot be read": 2}
    assert found.image_sizes().tolist() == [list(SIZE)] * 4
    (folder / "1.jpg").unlink()
    with pytest.raises(
        AnnotationError, match=r"images: 1 not found \(day/1.jpg\); .* has 2 images, such as day/0.jpg"
    ):
        read_people(write(document), images=folder.parent)


# --- the fit


def test_people_of_a_file_are_fitted(body, people, observed, write):
    """The real fit, with the true focal lengths' middle and ages in years."""
    ages = [{"years": float(years)} for years in people.years]
    document = coco_document(observed, ages=ages)
    for i, one in enumerate(document["annotations"]):
        one["image_id"] = i
    document["images"] = [
        {"id": i, "file_name": f"{i}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in range(COUNT)
    ]
    labels = fit_annotations(body, read_people(write(document)))
    # 1 px of noise on each coordinate is 1.25 px of mean distance; the fit follows some of it.
    assert np.median(labels.reprojection) < 2
    assert labels.kept.sum() >= COUNT - 1
    # What an age in years is expected to be on this body, to three times its standard deviation.
    np.testing.assert_allclose(labels.age_offset, people.parameters.age_offset, atol=0.15)
    assert (labels.start_reprojection > labels.reprojection).all()
    camera = Camera(torch.from_numpy(labels.focal), torch.from_numpy(labels.center))
    assert torch.equal(camera.focal, Camera.guess(SIZE).focal.expand(COUNT, 2))
    np.testing.assert_allclose(labels.depth, labels.joints[:, 0, 2])


def test_fits_begin_at_the_lifter(body, people, observed, write):
    """At the points that matter: the poses are nearer to the truth, and the ages of the file count."""
    document = coco_document(observed, ages=[{"years": float(years)} for years in people.years])
    found = read_people(write(document))
    alone, lifted = fit_annotations(body, found), fit_annotations(body, found, lifter=Lifter.load())

    def error(labels):
        pose = {"body_pose": torch.from_numpy(labels.body_pose), "betas": torch.from_numpy(labels.betas)}
        points = body(**pose, age_offset=torch.from_numpy(labels.age_offset)).joints
        truth = people.parameters
        return pa_mpjpe(points, body(truth).joints, reduction="none")

    assert error(lifted).median() < error(alone).median()
    assert (lifted.iterations < alone.iterations).mean() > 0.6
    np.testing.assert_allclose(lifted.age_offset, people.parameters.age_offset, atol=0.15)


def test_fits_over_time_begin_at_the_lifter(body, people, observed, write):
    """Frames of one person who hardly moves: the same optimum, or a better one, in fewer steps."""
    found = read_people(write(coco_document(observed)))
    count = 3
    people_of, times = np.repeat(np.arange(count), 3), np.tile(np.arange(3), count)
    images = tuple(found.images[0]._replace(name=f"{time}.jpg") for time in range(3))
    noise = np.random.default_rng(0).normal(size=(3 * count, len(found.layout), 2))
    clips = replace(
        found.select(people_of),
        images=images,
        image=times,
        tracks=people_of,
        keypoints=found.keypoints[people_of] + noise,
    )
    alone, lifted = (
        fit_annotations(body, clips, motion_sd=0.02, lifter=lifter) for lifter in (None, Lifter.load())
    )
    assert (lifted.cost < alone.cost + 0.1).all()
    assert lifted.cost.mean() < alone.cost.mean()
    assert lifted.iterations.mean() < 0.8 * alone.iterations.mean()


def test_labels_are_the_fitted_body_before_its_camera(labels, body, people, observed):
    points = body.keypoints("coco17", people.parameters)
    camera = Camera(torch.from_numpy(labels.focal), torch.from_numpy(labels.center))
    np.testing.assert_allclose(labels.keypoints, camera.project(points).pixels, atol=1e-3)
    output = body(people.parameters)
    np.testing.assert_allclose(labels.joints, output.joints, atol=1e-5)
    assert labels.ids.tolist() == list(range(100, 100 + COUNT))
    assert labels.image_ids.tolist() == [f"day/{i // 2}.jpg" for i in range(COUNT)]
    np.testing.assert_array_equal(labels.observed[..., 2], observed.weights > 0)
    # The box around what was observed.
    for row in range(COUNT):
        seen = labels.observed[row][labels.observed[row, :, 2] > 0, :2]
        low, high = labels.boxes[row, :2], labels.boxes[row, 2:]
        np.testing.assert_allclose(low, seen.min(0))
        np.testing.assert_allclose(high, seen.max(0))


def test_known_ages_reach_the_fit(body, observed, write, knows_the_truth):
    ages = [{"age_offset": 0.5}, {"age_class": "kid"}, {}, {"years": 4}, {}, {}]
    found = read_people(write(coco_document(observed, ages=ages)))
    done = []
    labels = fit_annotations(
        body, found, fov=0.8, age_class="baby", batch_size=4, progress=done.append, noise=3.0
    )
    assert done == [4, 6]
    assert [len(call["keypoints"]) for call in knows_the_truth] == [4, 2]
    first, second = knows_the_truth
    np.testing.assert_allclose(first["age_offset"], [0.5, math.nan, math.nan, math.nan])
    assert first["age_class"].tolist() == [-1, 2, 3, -1]
    np.testing.assert_allclose(first["years"], [math.nan, math.nan, math.nan, 4])
    assert second["age_class"].tolist() == [3, 3]
    assert first["noise"] == 3.0
    focal = SIZE[1] / 2 / math.tan(0.4)
    np.testing.assert_allclose(first["camera"].focal, focal, rtol=1e-6)
    np.testing.assert_allclose(labels.center, [[320, 240]] * COUNT)
    knows_the_truth.clear()
    fit_annotations(body, found, focal=700.0)
    assert (knows_the_truth[0]["camera"].focal == 700).all()
    assert knows_the_truth[0]["age_class"].tolist() == [-1, 2, -1, -1, -1, -1]


def test_keypoints_of_little_confidence_do_not_count(body, observed, write, knows_the_truth):
    document = coco_document(observed)
    for one in document["annotations"]:
        one["keypoints"][2] = 0.25  # of the nose
    found = read_people(write(document))
    fit_annotations(body, found)
    assert (knows_the_truth[0]["weights"][:, 0] == 0.25).all()
    knows_the_truth.clear()
    labels = fit_annotations(body, found, min_confidence=0.3)
    assert (knows_the_truth[0]["weights"][:, 0] == 0).all()
    assert (labels.observed[:, 0, 2] == 0).all()


def test_unfittable_input_is_refused(body, mannequin_asset, observed, write):
    found = read_people(write(coco_document(observed)))
    for options, message in (
        ({"focal": 1.0, "fov": 1.0}, "focal, fov: expected one"),
        ({"focal": math.nan}, "focal: expected a length above 0"),
        ({"age_class": "old"}, "age_class: expected adult"),
        ({"years": 130.0}, "years: expected a number from 0 to below 130"),
        ({"min_confidence": 2.0}, "min_confidence"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_annotations(body, found, **options)  # pyright: ignore[reportArgumentType]
    adult = agebody.SMPL(mannequin_asset)
    with pytest.raises(AnnotationError, match="ages are given, and mannequin has only one"):
        fit_annotations(adult, found, years=3.0)
    document = coco_document(observed)
    for one in document["annotations"]:
        one["iscrowd"] = 1
    nobody = fit_annotations(body, read_people(write(document)))
    assert len(nobody) == 0
    assert nobody.keypoints.shape == (0, 17, 2)


# --- labels


def assert_same(one, other):
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        if isinstance(value, dict):
            assert value.keys() == theirs.keys()
            for key in value:
                np.testing.assert_array_equal(value[key], theirs[key])
        else:
            np.testing.assert_array_equal(value, theirs)


def test_labels_are_kept_whole_by_files_and_batches(labels, tmp_path):
    labels.save(tmp_path / "labels.npz")
    assert_same(labels, load_labels(tmp_path / "labels.npz"))
    rows = [labels.select(slice(0, 2)), labels.select(np.arange(2, 5)), labels.select(labels.ids == 105)]
    assert_same(labels, concatenate_labels(rows))
    with pytest.raises(ValueError, match="at least one"):
        concatenate_labels([])


def test_a_file_of_labels_is_a_file_of_predictions(labels, tmp_path):
    labels.save(tmp_path / "labels.npz")
    tables = evaluate_files(tmp_path / "labels.npz", tmp_path / "labels.npz", resamples=0)
    assert {table.name for table in tables} >= {"InfantNet", "Relative Human"}


def test_files_without_labels_are_named(labels, tmp_path):
    path = tmp_path / "labels.npz"
    for content in (b"", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        with pytest.raises(AnnotationError, match=r"labels.npz: not an npz file, as agebody fit"):
            load_labels(path)
    labels.save(path, overwrite=True)
    arrays = dict(np.load(path))
    np.savez(path, **{name: array for name, array in arrays.items() if name != "betas"})
    with pytest.raises(AnnotationError, match="not complete; it has no betas"):
        load_labels(path)
    np.savez(path, **arrays | {"transl": arrays["transl"][:, :2]})
    with pytest.raises(AnnotationError, match=r"transl: expected shape \(N, 3\), got \(6, 2\)"):
        load_labels(path)
    np.savez(path, poses=np.zeros((2, 72)), trans=np.zeros((2, 3)), betas=np.zeros(10))  # a motion
    with pytest.raises(AnnotationError, match="not a file of labels; it has no body, joint_names"):
        load_labels(path)


# --- quality flags


def moved(labels, dx, *, weights=1.0, start=0.0, **changes):
    """All keypoints observed, and those of the body to the right of them; a box of 240 x 480 pixels."""
    count, points = labels.observed.shape[:2]
    observed = np.zeros((count, points, 3))
    observed[..., :2] = np.linspace(10, 400, points)[None, :, None]
    observed[..., 0] += 40 * (np.arange(points) % 2)  # on no line
    observed[..., 2] = weights
    keypoints = observed[..., :2] + np.array([dx, 0])
    boxes = np.tile([10.0, 10.0, 250.0, 490.0], (count, 1))
    return replace(
        labels, observed=observed, keypoints=keypoints, boxes=boxes,
        reprojection=np.full(count, float(dx)), start_reprojection=np.full(count, start),
        betas=np.zeros_like(labels.betas), image_ids=np.arange(count).astype(str), **changes,
    )  # fmt: skip


def gmof(pixels):
    return 100**2 * pixels**2 / (100**2 + pixels**2)


def test_infantnets_rule(labels):
    """16 pixels of a person of 480, and as much of smaller and larger ones."""
    for scale in (0.25, 1.0, 8.0):
        for pixels, flagged in ((15.9, False), (16.0, True)):
            found = moved(labels, scale * pixels)
            found = replace(found, boxes=scale * found.boxes)
            assert (flag_labels(found).flags["infantnet"] == flagged).all()
    assert flag_labels(moved(labels, math.nan)).flags["infantnet"].all()


def test_camsmplifys_rule(labels):
    """0.005 x 17 keypoints x GMoF in a crop of 768 pixels around 1.2 times the box's 480."""
    crop = 768 / (1.2 * 480)
    loss = lambda dx: 0.005 * 17 * gmof(dx * crop)  # noqa: E731
    edge = next(dx for dx in np.arange(1, 60, 0.01) if loss(dx) > 30)
    flag = lambda dx, **options: flag_labels(moved(labels, dx, **options)).flags["camsmplify"]  # noqa: E731
    assert not flag(edge - 0.02).any()
    assert flag(edge + 0.02).all()
    # From a start whose loss is above 100, the limit is 50.
    hard = next(dx for dx in np.arange(1, 300, 0.01) if loss(dx) > 50)
    far = next(dx for dx in np.arange(1, 900, 0.1) if loss(dx) > 100)
    assert not flag(hard - 0.02, start=far + 0.2).any()
    assert flag(hard + 0.02, start=far + 0.2).all()
    assert flag(hard - 0.02, start=far - 0.2).all()
    # Keypoints of confidence 0.7 and less do not count.
    assert not flag(edge + 0.02, weights=0.7).any()


def test_spins_rule(labels):
    crop = 224 / (1.2 * 480)
    edge = next(dx for dx in np.arange(1, 60, 0.01) if gmof(dx * crop) > 100)
    flag = lambda dx, **options: flag_labels(moved(labels, dx, **options)).flags["spin"]  # noqa: E731
    assert not flag(edge - 0.02).any()
    assert flag(edge + 0.02).all()
    # Squared confidences weigh the cost; missing keypoints do not dilute it.
    unsure = next(dx for dx in np.arange(1, 60, 0.01) if 0.9**2 * gmof(dx * crop) > 100)
    assert not flag(unsure - 0.02, weights=0.9).any()
    assert flag(unsure + 0.02, weights=0.9).all()
    some = np.where(np.arange(17) < 8, 1.0, 0.0)
    assert flag(edge + 0.02, weights=some).all()


def test_other_rules_and_kept_people(labels):
    fine = flag_labels(moved(labels, 1.0))
    assert fine.kept.all()
    assert not np.any(list(fine.flags.values()))
    few = np.where(np.arange(17) < 7, 1.0, 0.29)
    assert flag_labels(moved(labels, 1.0, weights=few)).flags["few_keypoints"].all()  # pyright: ignore[reportArgumentType]
    few[7] = 0.3
    assert not flag_labels(moved(labels, 1.0, weights=few)).flags["few_keypoints"].any()  # pyright: ignore[reportArgumentType]
    betas = np.zeros_like(labels.betas)
    betas[2, 4] = -3.01
    betas[3, 4] = 3.0
    strange = flag_labels(replace(moved(labels, 1.0), betas=betas))
    assert strange.flags["betas"].tolist() == [False, False, True, False, False, False]
    stopped = flag_labels(moved(labels, 1.0, converged=np.array([True, False] * 3)))
    assert stopped.kept.tolist() == [True, False] * 3


NAMES = LAYOUTS["coco17"].names
LEG = ("right_knee", "right_ankle")


def observed_with(labels, change, *points):
    """The observed keypoints with those of these names, or all, changed."""
    observed = labels.observed.copy()
    rows = [NAMES.index(name) for name in points] or slice(None)
    observed[:, rows] = change(observed[:, rows])
    return {"observed": observed}


@pytest.mark.parametrize(
    ("flag", "change", "kept"),
    [
        ("too_small", lambda fine: observed_with(fine, lambda p: p * [0, 0, 1]), False),  # all at one pixel
        (
            "too_small",
            lambda fine: observed_with(fine, lambda p: p * [1 / 640, 1 / 640, 1]),
            False,
        ),  # in shares
        ("too_small", lambda fine: observed_with(fine, lambda p: p * [0, 1, 1]), False),  # all in one column
        ("too_small", lambda fine: observed_with(fine, lambda p: p[..., [1, 1, 2]]), False),  # on a diagonal
        ("duplicate", lambda fine: {"image_ids": np.array(["a"] * 6)}, False),
        ("too_near", lambda fine: {"depth": 0.69 * fine.stature}, True),
        ("unseen_limb", lambda fine: observed_with(fine, lambda p: 0 * p, "left_elbow", "left_wrist"), True),
        ("unseen_limb", lambda fine: observed_with(fine, lambda p: p * [1, 1, 0.29], *LEG), True),  # a guess
        ("unseen_limb", lambda fine: {"image_sizes": 0 * fine.image_sizes + 200}, True),  # it is cut off
        ("outside_picture", lambda fine: {"image_sizes": 0 * fine.image_sizes + 390}, True),
        ("age_unknown", lambda fine: age(fine, 0.1, sd=0.2, known=False), True),
        ("age_unknown", lambda fine: age(fine, 0.5, sd=math.inf, known=False), True),
        ("age_bound", lambda fine: age(fine, -0.05, kind=0), True),
        ("age_bound", lambda fine: age(fine, 0.45, kind=2), True),
    ],
)
def test_rules_of_size_age_and_view(labels, flag, change, kept):
    fine = moved(labels, 1.0)
    fine = replace(fine, **age(fine, 0.6), depth=3 * fine.stature)
    good = flag_labels(fine)
    assert good.kept.all()
    assert not np.any(list(good.flags.values()))
    found = flag_labels(replace(fine, **change(fine)))
    assert found.flags[flag][1:].all()  # of two alike, the first stays
    assert (found.kept[1:] == kept).all()


def age(labels, offset, *, sd=0.05, known=True, kind=-1):
    columns = {"age_offset": offset, "age_offset_sd": sd, "age_known": known, "age_class": kind}
    columns["stature_sd"] = 0.2  # from one camera, whose pictures do not tell size
    return {name: np.full(len(labels), value) for name, value in columns.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 0.1, "sd": 0.2},  # the age was given
        {"offset": 0.95, "sd": 0.05, "known": False},  # a baby, nothing else
        {"offset": 0.1, "sd": math.nan, "known": False},  # a file from before there were standard errors
        {"offset": 0.3, "kind": 1},
    ],
)
def test_ages_that_are_no_reason_for_a_flag(labels, changes):
    found = flag_labels(replace(moved(labels, 1.0), **age(labels, **changes)))
    assert not (found.flags["age_unknown"] | found.flags["age_bound"]).any()


def test_sizes_from_several_cameras_are_not_flagged(labels):
    """The same span of ages is a flag where the stature is a guess, and none where it is known to 3 %."""
    fine = replace(moved(labels, 1.0), **age(labels, 0.1, sd=0.2, known=False))
    assert flag_labels(fine).flags["age_unknown"].all()
    sure = replace(fine, stature_sd=0.02 * fine.stature)
    assert not flag_labels(sure).flags["age_unknown"].any()


def test_two_people_in_one_place_are_two_if_they_are_apart(labels):
    """The better of two detections of one person stays; somebody a body's width away is another."""
    fine = moved(labels, 1.0)
    observed = fine.observed.copy()
    observed[3:, :, 0] += 60
    scores = np.array([0.5, 0.9, 0.7, 0.8, 0.6, 0.4])
    found = flag_labels(replace(fine, observed=observed, scores=scores, image_ids=np.array(["a"] * 6)))
    assert found.flags["duplicate"].tolist() == [True, False, True, False, True, True]


def test_people_of_unknown_age_are_reported(body, people, observed, write):
    """Without ages nobody's class is sure, and the standard errors of statures say how unsure."""
    document = coco_document(observed)
    unknown = fit_annotations(body, read_people(write(document)))
    known = fit_annotations(body, read_people(write(document)), years=30.0)
    assert not unknown.age_known.any()
    assert unknown.flags["age_unknown"].sum() >= COUNT / 2
    assert not known.flags["age_unknown"].any()
    assert known.age_known.all()
    assert np.median(known.stature_sd) < np.median(unknown.stature_sd)
    line = unknown_ages(summarize(unknown)["flags"]["age_unknown"])
    assert len(line) == 1
    assert re.match(r"\d+ people of unknown age: their statures and depths are guesses; give --age", line[0])
    assert line[0] in to_markdown(summarize(unknown))
    assert unknown_ages(summarize(known)["flags"]["age_unknown"]) == []
    bounded = fit_annotations(body, read_people(write(document)), age_class="adult")
    assert (bounded.age_class == 0).all()


def test_files_from_before_standard_errors_are_read(labels, tmp_path):
    labels.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        old = {name: array for name, array in file.items() if name not in LATER}
    np.savez(tmp_path / "old.npz", **old)
    found = load_labels(tmp_path / "old.npz")
    assert np.isnan(found.stature_sd).all()
    assert not flag_labels(found).flags["age_unknown"].any()


# --- files for training


def test_training_arrays_are_read_by_hmr2(labels, body):
    labels = replace(labels, kept=np.array([True, True, True, True, True, False]))
    arrays = training_arrays(body, labels)
    assert arrays["imgname"].tolist() == labels.image_ids.tolist()
    assert arrays["personid"].tolist() == [0, 1] * 3
    assert arrays["body_pose"].shape == (COUNT, 72)
    # Their layer: betas of 11 with the age last, pose with the root first, in camera coordinates.
    pose = torch.from_numpy(arrays["body_pose"]).unflatten(-1, (24, 3))
    betas = torch.from_numpy(arrays["betas"])
    output = body(
        betas=betas[:, :10], age_offset=betas[:, 10], global_orient=pose[:, 0], body_pose=pose[:, 1:]
    )
    rooted = torch.from_numpy(labels.joints - labels.joints[:, :1])
    torch.testing.assert_close(output.joints - output.joints[:, :1], rooted, atol=1e-5, rtol=0)
    # The root that they subtract from 3D keypoints, and its confidence.
    points = np.concatenate((arrays["body_keypoints_3d"], arrays["extra_keypoints_3d"]), 1)
    assert points.shape == (COUNT, 44, 4)
    assert points[:, :, 3].tolist() == [[1.0] * 44] * 5 + [[0.0] * 44]
    expected = body.regress("hmr2_44", output.vertices, output.joints) - output.joints[:, :1]
    found = points[..., :3] - labels.joints[:, :1]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert arrays["has_body_pose"].tolist() == arrays["has_betas"].tolist() == [1, 1, 1, 1, 1, 0]
    unknown = replace(labels, flags=labels.flags | {"age_unknown": np.arange(COUNT) == 1})
    arrays_of_unknown = training_arrays(body, unknown)
    assert arrays_of_unknown["has_body_pose"].tolist() == [1, 1, 1, 1, 1, 0]
    assert arrays_of_unknown["has_betas"].tolist() == [1, 0, 1, 1, 1, 0]
    assert arrays_of_unknown["body_keypoints_3d"][:, 0, 3].tolist() == [1, 0, 1, 1, 1, 0]
    # COCO's points, by name, in OpenPose's order; the others have no confidence.
    openpose = LAYOUTS["openpose25"].names
    for i, name in enumerate(openpose):
        here = labels.observed[:, COCO17.index(name)] if name in COCO17 else np.zeros((COUNT, 3))
        np.testing.assert_allclose(arrays["body_keypoints_2d"][:, i], here, rtol=1e-6)
    assert not arrays["extra_keypoints_2d"].any()
    low, high = labels.boxes[:, :2], labels.boxes[:, 2:]
    np.testing.assert_allclose(arrays["center"], (low + high) / 2, rtol=1e-6)
    np.testing.assert_allclose(arrays["scale"], 1.2 * (high - low), rtol=1e-6)


def test_training_files_have_no_openpose_neck_and_mid_hip(labels):
    """The training code compares points 1 and 8 with SMPL's joints, which lie elsewhere."""
    seen = np.arange(COUNT * 25 * 3, dtype=float).reshape(COUNT, 25, 3) + 1
    openpose = replace(labels, keypoint_layout="openpose25", observed=seen, keypoints=seen[..., :2])
    found = _observed(openpose)
    kept = [i for i in range(25) if i not in (1, 8)]
    np.testing.assert_array_equal(found[:, kept], seen[:, kept].astype(np.float32))
    assert not found[:, [1, 8]].any()
    assert not found[:, 25:].any()


def test_training_files_need_smpls_joints_and_ten_betas(labels, body, mannequin_asset, tmp_path):
    with pytest.raises(ValueError, match=r"expected a body of SMPL's 24 joints, or .* hands, got 2 joints"):
        training_arrays(body, replace(labels, joint_names=("a", "b")))
    with pytest.raises(ValueError, match="expected 10 betas, got 12"):
        training_arrays(body, replace(labels, betas=np.ones((COUNT, 12))))
    # Without the points that hold the pelvis, nothing in 3D is trusted.
    regressors = {name: r for name, r in mannequin_asset.regressors.items() if name != "j19"}
    without = agebody.SMPLA(mannequin_asset.replace(regressors=regressors))
    arrays = training_arrays(without, replace(labels, kept=np.ones(COUNT, bool)))
    assert not arrays["body_keypoints_3d"].any()
    assert arrays["has_betas"].all()
    save_training_npz(body, labels, tmp_path / "train.npz")
    with np.load(tmp_path / "train.npz", allow_pickle=False) as file:
        assert set(file.files) == set(training_arrays(body, labels))


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photos"
    (folder / "day").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(COUNT // 2):
        pixels = rng.integers(0, 255, (SIZE[1] // 16, SIZE[0] // 16, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize(SIZE)
        if i == 1:  # stored as a camera does, on its side
            exif = Image.Exif()
            exif[274] = 6
            photo.transpose(Image.Transpose.ROTATE_90).save(folder / f"day/{i}.jpg", exif=exif, quality=95)
        else:
            photo.save(folder / f"day/{i}.jpg", quality=95)
    return folder


def test_shards_are_read_by_webdataset(labels, body, photographs, tmp_path):
    done = []
    paths = save_training_shards(
        tmp_path, body, labels, photographs, images_per_shard=2, progress=done.append
    )
    assert [path.name for path in paths] == ["000000.tar", "000001.tar"]
    assert done == [1, 2, 3]
    arrays = training_arrays(body, labels)
    row = 0
    for path in paths:
        with tarfile.open(path) as tar:
            members = {entry.name: tar.extractfile(entry).read() for entry in tar.getmembers()}  # pyright: ignore[reportOptionalMemberAccess]
        keys = dict.fromkeys(name.split(".", 1)[0] for name in members)  # as webdataset groups them
        assert set(members) == {
            f"{key}.{part}" for key in keys for part in ("jpg", "data.pyd", "labels.json")
        }
        for key in keys:
            with Image.open(io.BytesIO(members[f"{key}.jpg"])) as image:
                image.load()
                assert image.size == SIZE
                pixels = np.asarray(image).astype(int)
            shown = read_photograph(photographs / str(labels.image_ids[row])).astype(int)
            # Written once more as JPEG, of quality 95, where it was turned.
            assert np.abs(pixels - shown).mean() < 2
            people = pickle.loads(members[f"{key}.data.pyd"])
            assert isinstance(people, list)
            for one in people:
                np.testing.assert_allclose(200 * one["scale"], arrays["scale"][row], rtol=1e-6)
                np.testing.assert_array_equal(one["center"], arrays["center"][row])
                np.testing.assert_array_equal(one["betas"], arrays["betas"][row])
                np.testing.assert_array_equal(one["keypoints_2d"][:25], arrays["body_keypoints_2d"][row])
                np.testing.assert_array_equal(one["keypoints_3d"][25:], arrays["extra_keypoints_3d"][row])
                assert one["keypoints_2d"].flags.writeable  # they are augmented in place
                assert float(one["has_betas"]) == arrays["has_betas"][row]
                assert one["body_pose"].shape == (72,)
                assert one["extra_info"] == {"personid": row % 2}
                row += 1
            words = {argument for code, argument, _ in pickletools.genops(members[f"{key}.data.pyd"])
                     if "UNICODE" in code.name}  # fmt: skip
            assert not any("numpy." in word or "_core" in word for word in words)  # pyright: ignore[reportOperatorIssue]
    assert row == COUNT
    read = TrainingShards(paths).labels()
    assert read.keypoint_layout == labels.keypoint_layout
    for name, array in labels.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name].astype(array.dtype), array)
    upright = (photographs / "day/0.jpg").read_bytes()
    with tarfile.open(paths[0]) as tar:
        assert tar.extractfile("000000_day_0.jpg").read() == upright  # pyright: ignore[reportOptionalMemberAccess]


def test_shards_without_an_image(labels, body, photographs, tmp_path):
    (photographs / "day/1.jpg").write_bytes(b"no image")
    with pytest.raises(AnnotationError, match=r"1\.jpg: not an image"):
        save_training_shards(tmp_path, body, labels, photographs)
    assert not list(tmp_path.glob("*.tar"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    lost = []
    save_training_shards(
        tmp_path, body, labels, photographs, unreadable=lambda name, error: lost.append(name)
    )
    assert lost == ["day/1.jpg"]
    with tarfile.open(tmp_path / "000000.tar") as tar:
        assert len(tar.getnames()) == 6


# --- report and pictures


def test_errors_of_no_points_are_nan_and_such_people_are_not_kept(body, observed, write, tmp_path):
    """0 would read as a perfect fit; training files have it, as NaN would spoil means and comparisons."""
    document = coco_document(observed)
    document["annotations"][1]["keypoints"][2::3] = [0.25] * 17
    labels = fit_annotations(body, read_people(write(document)), min_confidence=0.3)
    nobody = [False, True] + [False] * (COUNT - 2)
    assert np.isnan(labels.reprojection).tolist() == np.isnan(labels.start_reprojection).tolist() == nobody
    assert not labels.kept[1]
    assert labels.kept[0]
    labels.save(tmp_path / "labels.npz")
    read = load_labels(tmp_path / "labels.npz")
    np.testing.assert_array_equal(read.reprojection, labels.reprojection)
    error = training_arrays(body, read)["fit_error"]
    assert error[1] == 0
    assert (error[0] > 0) & np.isfinite(error).all()
    assert np.isfinite(summarize(read)["median_reprojection_px"])
    assert "median reprojection error [px] | –" in to_markdown(summarize(read.select(slice(1, 2))))


def test_summary_counts_people_once_each(labels, body, observed, write, people):
    found = read_people(write(coco_document(observed)))
    summary = json.loads(json.dumps(summarize(labels, found, seconds=2.0)))
    assert (summary["people"], summary["images"], summary["people_per_second"]) == (COUNT, 3, 3.0)
    assert summary["images_without_people"] == 0
    assert summary["stop"] == {"cost": COUNT}
    assert sum(row["people"] for row in summary["ages"]) == COUNT
    highs = [kind.high for kind in AGE_CLASSES[:-1]]
    kinds = np.searchsorted(highs, people.parameters.age_offset.numpy())
    assert [row["people"] for row in summary["ages"]] == np.bincount(kinds, minlength=4).tolist()
    text = to_markdown(summary)
    assert text.startswith(f"# Labels: {summary['kept']} of {COUNT} people kept")
    assert all(f"| {name} |" in text for name in summary["flags"])
    nobody = summarize(labels.select(slice(0, 0)))
    assert nobody["median_reprojection_px"] is None
    assert "–" in to_markdown(nobody)


def test_overlays_show_the_body_where_it_is(labels, body):
    photo = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    one = replace(labels.select(slice(0, 1)), kept=np.array([True]))
    picture = draw_overlay(body, one, photo)
    assert picture.shape == (SIZE[1], 2 * SIZE[0] + 6, 3)
    before, after = picture[:, : SIZE[0]], picture[:, SIZE[0] + 6 :]
    drawn = (after != 128).any(-1)
    rows, columns = np.nonzero(drawn)
    x0, y0, x1, y1 = one.boxes[0]
    # The body covers the box around its keypoints, and little more than head, hands and feet beyond.
    slack = 0.35 * max(x1 - x0, y1 - y0)
    assert abs(columns.min() - max(x0, 0)) < slack
    assert abs(rows.max() - min(y1, SIZE[1])) < slack
    assert (before != 128).any(-1).sum() < drawn.sum()
    assert (before != 128).any()
    wrong = draw_overlay(body, replace(one, kept=np.array([False])), photo)[:, SIZE[0] + 6 :].astype(int)
    redder = lambda a: (a[..., 0] - a[..., 2])[drawn].mean()  # noqa: E731
    assert redder(wrong) > redder(after.astype(int)) + 20
    small = draw_overlay(body, one, photo, max_side=100)
    assert small.shape == (75, 206, 3)
    with pytest.raises(ValueError, match="photograph: expected 640 x 480 pixels, got 480 x 640"):
        draw_overlay(body, one, photo.swapaxes(0, 1))
