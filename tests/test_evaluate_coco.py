"""AP of files whose fields are as other people write them: equal to pycocotools' if it takes the file."""

import copy
import json

import numpy as np
import pytest
from coco_files import pycocotools_numbers, synthetic_coco
from pycocotools import mask

from agebody.annotations.coco import read_run_lengths
from agebody.metrics.similarity import CROWDPOSE14, oks_sigmas
from agebody.pipelines.evaluate import evaluate_files

COLUMNS = [f"{kind}{part}" for kind in ("AP", "AR") for part in ("", "50", "75", " medium", " large")]
ROUNDING = 1e-13
NAMES = [f"p{i}" for i in range(17)]


def each(rows, key, change):
    for row in rows:
        row[key] = change(row[key])


def some(r, rows, share=0.2):
    return [row for row in rows if r.random() < share]


def points(row):
    return np.array(row["keypoints"], dtype=float).reshape(-1, 3)


def write_points(row, values):
    row["keypoints"] = values.ravel().tolist()


def rename_images(change):
    def apply(r, a, d):
        each(a["images"], "id", change)
        each([*a["annotations"], *d], "image_id", change)

    return apply


def hide_with_nan(r, a, d):
    for row in a["annotations"]:
        values = points(row)
        values[values[:, 2] == 0, :2] = np.nan
        write_points(row, values)


def third_numbers(values, rows="annotations"):
    def apply(r, a, d):
        for row in a["annotations"] if rows == "annotations" else d:
            one = points(row)
            one[:, 2] = r.choice(values, len(one))
            write_points(row, one)

    return apply


def second_category(name="2"):
    def apply(r, a, d):
        a["categories"].append({"id": name, "name": "dog"})
        for row in [*some(r, a["annotations"], 0.4), *some(r, d, 0.4)]:
            row["category_id"] = name

    return apply


def a_dog_without_points(r, a, d):
    a["categories"].insert(0, {"id": 7, "name": "dog"})
    for row in some(r, a["annotations"]):
        row.update(category_id=7, keypoints=[], num_keypoints=0)


def unlisted_category(r, a, d):
    for row in [*some(r, a["annotations"]), *some(r, d)]:
        row["category_id"] = 9


def unlisted_image(r, a, d):
    for row in some(r, a["annotations"]):
        row["image_id"] = 10**6


def without_points(r, a, d):
    for row in some(r, a["annotations"]):
        row.update(keypoints=[], num_keypoints=0)


def miscounted(r, a, d):
    for row in some(r, a["annotations"], 0.4):
        row["num_keypoints"] = int(r.choice([0, 5]))


def duplicate_ids(r, a, d):
    for row in some(r, a["annotations"]):
        row["id"] = r.choice(a["annotations"])["id"]


def areas(*values):
    def apply(r, a, d):
        for row in some(r, a["annotations"], 0.4):
            row["area"] = values[r.integers(len(values))]

    return apply


def scores(*values):
    def apply(r, a, d):
        for row in some(r, d, 0.7):
            row["score"] = values[r.integers(len(values))]

    return apply


def boxes(first):
    def apply(r, a, d):
        for row in d[first:]:
            row["bbox"] = [*r.uniform(0, 99, 2), *r.choice([-5, 20, 50, 200], 2).tolist()]

    return apply


def segmentations(r, a, d):
    for row in d:
        shape = np.zeros((150, 150), np.uint8, order="F")
        shape[: r.integers(150), 3 : r.integers(150)] = 1
        shape[r.random(shape.shape) < 0.01] ^= 1
        found = mask.encode(shape)
        row["segmentation"] = {"size": found["size"], "counts": found["counts"].decode()}


CHANGES = {
    "float ids": lambda r, a, d: each(a["annotations"], "id", float),
    "string ids": lambda r, a, d: each(a["annotations"], "id", str),
    "ids from 0": lambda r, a, d: each(a["annotations"], "id", lambda i: i - 6),
    "string ids from 0": lambda r, a, d: each(a["annotations"], "id", lambda i: str(i - 6)),
    "duplicate ids": duplicate_ids,
    "string images": rename_images(str),
    "float images": rename_images(float),
    "negative images": rename_images(lambda i: -i),
    "images twice": lambda r, a, d: a["images"].extend(copy.deepcopy(a["images"][::2])),
    "images in another order": lambda r, a, d: r.shuffle(a["images"]),
    "unlisted images": unlisted_image,
    "unlisted categories": unlisted_category,
    "null categories": lambda r, a, d: [
        row.update(category_id=None) for row in some(r, [*a["annotations"], *d])
    ],
    "two categories": second_category(2),
    "two categories by name": lambda r, a, d: (
        each([*a["annotations"], *d], "category_id", str), each(a["categories"], "id", str),
        second_category("dog")(r, a, d),
    ),
    "a category without points": a_dog_without_points,
    "points of another name": lambda r, a, d: a["categories"][0].update(keypoints=list(NAMES)),
    "no points": without_points,
    "num_keypoints of another number": miscounted,
    "iscrowd is a boolean": lambda r, a, d: each(a["annotations"], "iscrowd", bool),
    "iscrowd is a float": lambda r, a, d: each(a["annotations"], "iscrowd", float),
    "ignore": lambda r, a, d: [row.update(ignore=1) for row in some(r, a["annotations"])],
    "visibilities": third_numbers([-1, 0, 0.5, 3]),
    "confidences of 0": third_numbers([0.0, -0.1], "results"),
    "nan where hidden": hide_with_nan,
    "strange areas": areas(0, 0.0, -7.5, True, 1e12, float("inf")),
    "scores of few values": scores(0, 1, True, 0.5),
    "scores out of range": scores(-3.0, 1e300, float("inf"), float("-inf"), 7),
    "boxes": boxes(0),
    "boxes but in the first": boxes(1),
    "segmentations": segmentations,
    "detections twice": lambda r, a, d: d.extend(copy.deepcopy(d[::3])),
    "nobody found": lambda r, a, d: d.__delitem__(slice(1, None)),
}  # fmt: skip


def numbers(tmp_path, annotations, results):
    paths = tmp_path / "pred.json", tmp_path / "truth.json"
    paths[0].write_text(json.dumps(results))
    paths[1].write_text(json.dumps(annotations))
    (table,) = evaluate_files(*paths, resamples=0)
    return table


def assert_equal_to_pycocotools(tmp_path, annotations, results):
    table = numbers(tmp_path, annotations, results)
    found = [table["all", name].value for name in COLUMNS]
    expected = pycocotools_numbers(copy.deepcopy(annotations), copy.deepcopy(results))
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_counts_as_in_pycocotools(tmp_path, name):
    for seed in range(2):
        annotations, results = synthetic_coco(seed, images=8)
        CHANGES[name](np.random.default_rng(seed), annotations, results)
        assert_equal_to_pycocotools(tmp_path, annotations, results)


@pytest.mark.parametrize("seed", range(12))
def test_so_do_several_strange_fields_together(tmp_path, seed):
    r = np.random.default_rng(seed)
    annotations, results = synthetic_coco(seed, images=8)
    chosen = r.choice(list(CHANGES), 4, replace=False)
    for name in chosen:
        CHANGES[name](r, annotations, results)
    try:
        pycocotools_numbers(copy.deepcopy(annotations), copy.deepcopy(results))
    except (TypeError, ValueError, KeyError):
        pytest.skip(f"pycocotools does not take {chosen}")
    assert_equal_to_pycocotools(tmp_path, annotations, results)


def test_changes_to_numbers_are_noted(tmp_path):
    annotations, results = synthetic_coco(0, images=8)
    r = np.random.default_rng(0)
    for name in (
        "ids from 0",
        "duplicate ids",
        "unlisted images",
        "unlisted categories",
        "points of another name",
    ):
        CHANGES[name](r, annotations, results)
    annotations["annotations"][-1].update(id=0, num_keypoints=3, iscrowd=0, image_id=5, category_id=1)
    notes = " ".join(numbers(tmp_path, annotations, results).notes)
    for part in ("id 0", "of a later one", "not listed", "other categories", "by their place"):
        assert part in notes
    annotations, results = synthetic_coco(0, images=8)
    annotations["categories"] = []
    assert np.isnan(pycocotools_numbers(copy.deepcopy(annotations), results)).all()
    assert "nobody in pycocotools" in " ".join(numbers(tmp_path, annotations, results).notes)


def crowdpose(seed):
    """Made-up CrowdPose: 14 points, no areas, and how crowded each image is."""
    annotations, results = synthetic_coco(seed, images=12)
    for row in [*annotations["annotations"], *results]:
        row["keypoints"] = row["keypoints"][: 3 * 14]
    for row in annotations["annotations"]:
        del row["area"]
        row["num_keypoints"] = int((points(row)[:, 2] > 0).sum())
    for i, row in enumerate(annotations["images"]):
        row["crowdIndex"] = [0.0, 0.2, 0.5, 0.8, 1.0][i % 5]
    annotations["categories"][0]["keypoints"] = [*CROWDPOSE14[:12], "head", "neck"]
    return annotations, results


def test_without_areas_that_of_a_person_is_a_share_of_the_box_and_crowded_images_have_an_ap(
    tmp_path, monkeypatch
):
    annotations, results = crowdpose(4)
    table = numbers(tmp_path, annotations, results)
    assert "annotations have no area: 0.53 of their box" in " ".join(table.notes)
    sigmas = np.array(oks_sigmas(CROWDPOSE14))
    monkeypatch.setattr("pycocotools.cocoeval.Params.setKpParams", with_sigmas(sigmas), raising=True)
    for row in annotations["annotations"]:
        row["area"] = 0.53 * row["bbox"][2] * row["bbox"][3]
    found = [table["all", name].value for name in COLUMNS]
    np.testing.assert_allclose(found, pycocotools_numbers(annotations, results), rtol=0, atol=ROUNDING)
    ranges = {"easy": [0.0], "medium": [0.2, 0.5], "hard": [0.8, 1.0]}
    for name, values in ranges.items():
        part = copy.deepcopy(annotations)
        part["images"] = [row for row in part["images"] if row["crowdIndex"] in values]
        ids = {row["id"] for row in part["images"]}
        kept = [row for row in results if row["image_id"] in ids]
        expected = pycocotools_numbers(part, kept)[0]
        assert table["all", f"AP {name} crowd"].value == pytest.approx(expected, abs=ROUNDING)


def with_sigmas(sigmas):
    from pycocotools.cocoeval import Params

    original = Params.setKpParams

    def apply(self):
        original(self)
        self.kpt_oks_sigmas = sigmas

    return apply


def test_run_lengths_are_those_of_pycocotools():
    r = np.random.default_rng(0)
    for _ in range(20):
        shape = np.asfortranarray(r.random((40, 70)) < r.choice([0.001, 0.1, 0.9]), np.uint8)
        counts = mask.encode(shape)["counts"].decode()
        lengths = read_run_lengths(counts)
        assert sum(lengths) == shape.size
        assert sum(lengths[1::2]) == shape.sum()
