"""Shards of people and of labels, and the fit of many of them, killed and resumed."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from clusters import local_ray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

import agebody
from agebody import files
from agebody.age import parse_ages
from agebody.annotations import AnnotationError, ImageEntry, People, read_shard, write_shards
from agebody.annotations.arrays import Key, read_arrays
from agebody.keypoints import LAYOUTS
from agebody.losses import joint_limits_prior
from agebody.people import observe, random_people
from agebody.pipelines.cli import app
from agebody.pipelines.jobs.backends import start_workers
from agebody.pipelines.jobs.cluster import Cluster
from agebody.pipelines.jobs.schedule import run_jobs
from agebody.pipelines.labels import (
    fit_annotations,
    fit_dataset,
    fit_shard,
    load_label_shards,
)
from agebody.pipelines.labels.at_scale import _rate, list_shards
from agebody.pipelines.labels.label_shards import find_record
from agebody.pipelines.labels.records import concatenate_labels
from agebody.pipelines.labels.settings import describe_settings
from agebody.stores import to_path

pytestmark = pytest.mark.usefixtures("unchecked")

SIZE = (640, 480)
COUNT, A_SHARD = 12, 2
SHARDS = COUNT // A_SHARD


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset)


@pytest.fixture(scope="module")
def annotations(body):
    """Two people an image, of whom some ages are known in years and some by class."""
    people = random_people(body, COUNT, seed=5, size=SIZE)
    seen = observe(body, people, seed=5, noise=1.0)
    weights = seen.weights.double().numpy()
    rows = np.arange(COUNT)
    return People(
        Path("keypoints.json"),
        LAYOUTS["coco17"],
        tuple(ImageEntry(f"day/{i}.jpg", i, SIZE) for i in range(COUNT // 2)),
        image=rows // 2,
        ids=100 + rows,
        keypoints=np.where(weights[..., None] > 0, seen.keypoints.double().numpy(), 0),
        weights=weights,
        boxes=np.where(rows[:, None] % 3 == 0, np.array([1.0, 2.0, 300.0, 400.5]), np.nan),
        ages=parse_ages(
            age_offset=np.where(rows == 4, 0.25, np.nan),
            years=np.where(rows % 2 == 0, people.years.double().numpy(), np.nan),
            age_class=np.where(rows == 5, 2, -1),
        ),
    )


@pytest.fixture(scope="module")
def people(annotations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_shards(annotations, folder, people_per_shard=A_SHARD)
    return folder


def assert_same_people(found, expected):
    for name, one, other in zip(found.ages._fields, found.ages, expected.ages, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name, strict=True)
    for entry in fields(People):
        one, other = getattr(found, entry.name), getattr(expected, entry.name)
        if isinstance(one, np.ndarray) and entry.name != "image":
            np.testing.assert_array_equal(one, other, err_msg=entry.name, strict=True)
    names = [[people.images[i].name for i in people.image] for people in (found, expected)]
    assert names[0] == names[1]
    assert found.layout is expected.layout


def assert_same_labels(found, expected):
    for entry in fields(found):
        one, other = getattr(found, entry.name), getattr(expected, entry.name)
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key, strict=True)
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=entry.name)
            assert one.dtype.kind == other.dtype.kind
        else:
            assert one == other, entry.name


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.parquet"))}


# --- shards of people


def test_shards_are_the_people_that_were_written(people, annotations):
    paths = sorted(people.iterdir())
    assert [path.name for path in paths] == [f"people-{i:05d}.parquet" for i in range(SHARDS)]
    for i, path in enumerate(paths):
        rows = np.arange(A_SHARD * i, A_SHARD * (i + 1))
        assert_same_people(read_shard(path), annotations.select(rows))


def test_images_are_never_split_and_no_person_is_lost(annotations, tmp_path):
    """Images of 1, 5, 2, 2 and 2 people, which the file names in another order."""
    image = np.array([3, 0, 1, 1, 4, 1, 1, 1, 2, 3, 2, 4])
    paths = write_shards(replace(annotations, image=image, images=annotations.images[:5]), tmp_path,
                         people_per_shard=4)  # fmt: skip
    shards = [read_shard(path) for path in paths]
    assert [len(shard) for shard in shards] == [1, 5, 4, 2]
    images = [{entry.name for entry in shard.images} for shard in shards]
    assert sum(map(len, images)) == len(set.union(*images)) == 5
    ids = np.concatenate([shard.ids for shard in shards])
    assert ids.tolist() == (100 + np.argsort(image, kind="stable")).tolist()


def test_shards_are_not_replaced_unasked_and_none_of_before_are_left(annotations, tmp_path):
    write_shards(annotations, tmp_path, people_per_shard=A_SHARD)
    (tmp_path / "people-x.parquet").touch()
    with pytest.raises(FileExistsError, match=r"exists; pass overwrite=True .*people-00000\.parquet"):
        write_shards(annotations, tmp_path)
    write_shards(annotations, tmp_path, prefix="more")
    write_shards(annotations, tmp_path, overwrite=True)
    left = ["more-00000.parquet", "people-00000.parquet", "people-x.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    for wrong in ("", "../a", ".a", "a/b"):
        with pytest.raises(ValueError, match="prefix"):
            write_shards(annotations, tmp_path, prefix=wrong)
    with pytest.raises(ValueError, match="people_per_shard"):
        write_shards(annotations, tmp_path, people_per_shard=0)
    unsized = replace(annotations, images=tuple(e._replace(size=None) for e in annotations.images))
    with pytest.raises(AnnotationError, match=r"day/0\.jpg: its size is unknown"):
        write_shards(unsized, tmp_path, prefix="new")


def columns(**changes):
    """Two people as another program may write them; a change of None leaves a column out."""
    row = [float(i) for i in range(34)]
    found = {
        "image": ["a.jpg", "b.jpg"],
        "image_width": [640, 320],
        "image_height": [480, 240],
        "id": [7, 8],
        "keypoints": [row, row],
        "weights": [[0.5] * 17, [1.0] * 17],
    } | changes
    return {name: values for name, values in found.items() if values is not None}


def write(path, metadata=None, **changes):
    table = pa.table(columns(**changes))
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_shards_of_other_programs(tmp_path):
    """Variable lists, float32, unsigned sizes, large strings, further columns, null for what is not known."""
    found = read_shard(
        write(
            tmp_path / "a.parquet",
            image=pa.array(["a.jpg", "b.jpg"], pa.large_string()),
            image_width=pa.array([640, 320], pa.uint16()),
            keypoints=pa.array([[float(i) for i in range(34)]] * 2, pa.large_list(pa.float32())),
            camera=["x", "y"],
            years=pa.nulls(2),
            age_months=[None, 6.0],
            ageGroup=["x", "y"],
            age_class=["Baby", None],
            box=[None, [1.0, 2.0, 3.0, 4.0]],
        )
    )
    assert found.layout is LAYOUTS["coco17"]
    assert found.keypoints.dtype == np.float64
    assert found.keypoints[0, 1].tolist() == [2, 3]
    assert found.ages.age_class.tolist() == [3, -1]
    np.testing.assert_array_equal(found.ages.years, [np.nan, 0.5])
    assert found.notes == ("not read as ages: ageGroup; expected age_offset, age_months, years, age_class",)
    assert np.isnan(found.boxes[0]).all()
    assert found.boxes[1].tolist() == [1, 2, 3, 4]
    named = {b"agebody": json.dumps({"keypoint_layout": "openpose25"}).encode()}
    points = {"keypoints": [[3.0] * 50] * 2, "weights": [[1.0] * 25] * 2}
    assert read_shard(write(tmp_path / "b.parquet", named, **points)).layout is LAYOUTS["openpose25"]
    fewer = read_shard(tmp_path / "b.parquet", layout="coco17")
    assert fewer.layout is LAYOUTS["coco17"]
    assert "mid_hip" in fewer.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, "column weights: missing; there are image, image_width"),
        ({"id": ["7", "8"]}, "column id: expected integer, got string"),
        ({"keypoints": [1.0, 2.0]}, "column keypoints: expected list of floats, got double"),
        ({"keypoints": [[1, 2]] * 2}, "column keypoints: expected list of floats, got list<"),
        ({"years": ["3", "4"]}, "column years: expected float, got string"),
        ({"id": [7, 7]}, "column id, row 1: expected different ids, got 7"),
        ({"id": [7, None]}, "column id, row 1: expected a value, got null"),
        ({"keypoints": [[1.0] * 34, [1.0] * 30]}, "column keypoints: expected lists of one length"),
        ({"keypoints": [[1.0] * 32] * 2}, "column keypoints: expected x, y of 17 points"),
        ({"keypoints": [[1.0] * 34, [math.nan] * 34]}, "column keypoints, row 1: expected finite pixels"),
        ({"weights": [[1.0] * 17, [1.5] * 17]}, "column weights, row 1: expected confidences from 0 to 1"),
        ({"weights": [[1.0] * 17, [math.nan] * 17]}, "column weights, row 1"),
        ({"image": ["a.jpg", "../b.jpg"]}, "column image, row 1: expected a path inside"),
        ({"image": ["a.jpg", ""]}, "column image, row 1"),
        ({"image_width": [640, 2_000_000]}, "column image_width, row 1: .* up to 1000000"),
        ({"image": ["a.jpg", "b\0.jpg"]}, "column image, row 1: expected a path inside"),
        ({"keypoints": [[1.0] * 34, [1e9] * 34]}, "column keypoints, row 1: expected pixels up to"),
        ({"image_height": [480, 0]}, "column image_height, row 1: expected a number of pixels above 0"),
        ({"image": ["a.jpg", "a.jpg"]}, r"row 1: a.jpg has two sizes, \(640, 480\) and \(320, 240\)"),
        ({"box": [None, [3.0, 2.0, 1.0, 4.0]]}, "column box, row 1: expected x0, y0, x1, y1"),
        ({"box": [[1.0, 2.0, 3.0], None]}, "column box, row 0: expected x0, y0, x1, y1"),
        ({"keypoints": [[0.5] * 34] * 2}, "keypoints: all coordinates lie between 0 and 1, as shares"),
        ({"box": [[0.1, 0.2, 0.3, 0.4], None]}, "boxes: all coordinates lie between 0 and 1, as shares"),
        ({"box": [[300.0, 200.0, 400.0, 300.0], None]}, "boxes: 1 of 1 are far from all keypoints"),
        ({"focal": [500.0, 0.0]}, "column focal, row 1: expected a length above 0, got 0.0"),
        ({"age_class": ["baby", "old"]}, "age_class, row 1: expected adult, .* or 0 to 3, got 'old'"),
        ({"age_offset": [0.5, math.inf]}, "column age_offset, row 1: expected a finite number, got inf"),
        ({"years": [1.0, -1.0]}, "column years, row 1: expected a number from 0 to below 130, got -1.0"),
        ({"years": [1.0, 130.0]}, "column years, row 1: expected a number from 0 to below 130, got 130.0"),
        ({"keypoints": [[1.0] * 8] * 2, "weights": [[1.0] * 4] * 2}, "expected 14, 15, .*137, 308 keypoints"),
    ],
)  # fmt: skip
def test_invalid_shards_are_named(tmp_path, changes, message):
    path = write(tmp_path / "bad.parquet", **changes)
    with pytest.raises(AnnotationError, match=rf"bad\.parquet: .*{message}"):
        read_shard(path)


def test_damaged_files_are_named(tmp_path):
    whole = write(tmp_path / "whole.parquet").read_bytes()
    for name, data in (
        ("empty", b""),
        ("text", b"no parquet at all"),
        ("cut", whole[: len(whole) // 2]),
        ("head", b"PAR1" + bytes(len(whole) - 8) + b"PAR1"),
    ):
        (tmp_path / f"{name}.parquet").write_bytes(data)
        with pytest.raises(AnnotationError, match=rf"{name}\.parquet: not a Parquet file, or a damaged one"):
            read_shard(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError):
        read_shard(tmp_path / "none.parquet")
    with pytest.raises(AnnotationError, match="metadata: agebody: expected a JSON object"):
        read_shard(write(tmp_path / "metadata.parquet", {b"agebody": b"no"}))
    layout = {b"agebody": b'{"keypoint_layout": "none"}'}
    with pytest.raises(AnnotationError, match="metadata: keypoint_layout"):
        read_shard(write(tmp_path / "layout.parquet", layout))


@given(
    count=st.integers(1, 9),
    most=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=20)
def test_any_people_come_back(tmp_path_factory, count, most, data):
    number = st.floats(2, 1e6) | st.floats(-1e6, -1)  # from 0 to 1 they are taken for shares
    weights = data.draw(hnp.arrays(float, (count, 17), elements=st.sampled_from([0.0, 0.25, 1.0])))
    keypoints = data.draw(hnp.arrays(float, (count, 17, 2), elements=number))
    image = data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, 3)))
    written = People(
        Path("x"), LAYOUTS["coco17"], tuple(ImageEntry(f"{i}.png", i, (9, 7)) for i in range(4)),
        image=image, ids=np.arange(count) + 2**40, keypoints=np.where(weights[..., None] > 0, keypoints, 0),
        weights=weights, boxes=np.full((count, 4), np.nan), ages=parse_ages(shape=(count,)),
        focal=data.draw(st.sampled_from([None, np.arange(1.0, count + 1)])),
    )  # fmt: skip
    paths = write_shards(written, tmp_path_factory.mktemp("any"), people_per_shard=most)
    order = np.argsort(image, kind="stable")
    first = 0
    for path in paths:
        shard = read_shard(path)
        assert_same_people(shard, written.select(order[first : first + len(shard)]))
        first += len(shard)
    assert first == count


# --- one shard


@pytest.fixture(scope="module")
def one(people, body, tmp_path_factory):
    """The labels of the third shard, and what was said of them."""
    folder = tmp_path_factory.mktemp("one")
    return folder, fit_shard(body, people / "people-00002.parquet", folder)


def test_labels_of_a_shard_are_those_of_its_people(one, people, body, annotations):
    folder, result = one
    found = load_label_shards(folder)
    assert_same_labels(found, fit_annotations(body, annotations.select(np.arange(4, 6))))
    assert result.output == folder / "people-00002.parquet"
    assert result.fitted
    assert (result.record.people, result.record.kept) == (2, found.kept.sum())
    assert result.record.converged == found.converged.sum()
    assert found.age_offset[0] == 0.25  # the ages were read
    assert load_label_shards(result.output).ids.tolist() == [104, 105]


def test_finished_work_is_not_repeated(one, people, body):
    folder, result = one
    before = result.output.stat()
    again = fit_shard(body, people / "people-00002.parquet", folder, overwrite=True)
    assert not again.fitted
    assert again.record == result.record
    assert result.output.stat().st_mtime_ns == before.st_mtime_ns
    assert result.output.stat().st_ino == before.st_ino


def test_labels_made_otherwise_are_refused(one, people, body, mannequin_asset, tmp_path):
    folder, result = one
    shard = people / "people-00002.parquet"
    refused = "people-00002.parquet: exists, and was made with "
    for options, message in (
        ({"fov": 0.9}, "fov: None, not 0.9; pass overwrite=True to replace it"),
        ({"batch_size": 1}, "batch_size: 256, not 1"),
        ({"layout": "coco17"}, "layout: None, not coco17"),
        ({"years": 3.0, "min_confidence": 0.1}, "min_confidence: 0.0, not 0.1; years: None, not 3.0"),
    ):
        with pytest.raises(AnnotationError, match=refused + message):
            fit_shard(body, shard, folder, **options)
    with pytest.raises(AnnotationError, match=refused + r"body_sha256: \w+, not \w+"):
        fit_shard(agebody.SMPLA(mannequin_asset, num_betas=3), shard, folder)
    with pytest.raises(AnnotationError, match=refused + "dtype: float32, not float64"):
        fit_shard(agebody.SMPLA(mannequin_asset, dtype=torch.float64), shard, folder)
    other = tmp_path / "people-00002.parquet"
    other.write_bytes((people / "people-00001.parquet").read_bytes())
    with pytest.raises(AnnotationError, match="was made from another people-00002.parquet"):
        fit_shard(body, other, folder)
    assert bytes_of(folder) == {result.output.name: result.output.read_bytes()}


def test_overwrite_replaces_results_of_other_settings(one, people, body, tmp_path):
    shard = people / "people-00002.parquet"
    output = tmp_path / shard.name
    output.write_bytes(one[1].output.read_bytes())
    assert fit_shard(body, shard, tmp_path, fov=0.9, overwrite=True).fitted
    focal = load_label_shards(output).focal
    np.testing.assert_allclose(focal, SIZE[1] / 2 / math.tan(0.45), rtol=1e-6)
    pq.write_table(pa.table({"a": [1]}), output)
    with pytest.raises(AnnotationError, match="exists, and is not a shard of labels"):
        fit_shard(body, shard, tmp_path)
    with pytest.raises(AnnotationError, match="not a shard of labels"):
        load_label_shards(output)


def test_labels_that_were_cut_off_are_made_again(one, people, body, tmp_path):
    whole = one[1].output.read_bytes()
    output = tmp_path / one[1].output.name
    for length in (0, 100, len(whole) - 1):
        output.write_bytes(whole[:length])
        assert fit_shard(body, people / output.name, tmp_path).fitted
        assert output.read_bytes() == whole
    damage(output)  # with its footer as it was
    assert fit_shard(body, people / output.name, tmp_path).fitted
    assert output.read_bytes() == whole


def rows_of(count, **columns):
    return pa.table({name: pa.array([value] * count) for name, value in columns.items()})


@pytest.mark.parametrize(
    "table",
    [rows_of(100_000, number=1), rows_of(100_000, numbers=[1.0, 1.0]), rows_of(2_000, text="a" * 4000)],
)
def test_small_files_of_many_values_are_refused_before_they_are_read(tmp_path, monkeypatch, table):
    monkeypatch.setattr("agebody.annotations.shards.FREE_BYTES", 0)
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 20_000
    for read in (read_shard, load_label_shards):
        with pytest.raises(AnnotationError, match=r"a\.parquet: (a damaged Parquet file|column image)"):
            read(path)


def test_small_archives_of_many_values_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, betas=np.zeros((1, 100_000)), extra=np.zeros(10))
    assert read_arrays(path, {"betas": Key((None,))})["betas"].shape == (1, 100_000)
    monkeypatch.setattr("agebody.annotations.arrays.FREE_BYTES", 0)
    with pytest.raises(AnnotationError, match=r"a\.npz: a damaged npz file"):
        read_arrays(path, {"betas": Key((None,))})
    assert read_arrays(path, {"extra": Key()})["extra"].shape == (10,)
    np.savez(path, image_ids=np.array(["a" * 5000]))
    with pytest.raises(AnnotationError, match=r"image_ids: expected strings of up to 4096 characters"):
        read_arrays(path, {"image_ids": Key(kind="text")})


def label_document(path, change):
    """Write a shard of labels again, with other columns or metadata."""
    table = pq.read_table(path)
    columns = {name: table[name] for name in table.column_names}
    about = json.loads(table.schema.metadata[b"agebody"])
    change(columns, about)
    pq.write_table(pa.table(columns).replace_schema_metadata({b"agebody": json.dumps(about)}), path)


HOSTILE_LABELS = {
    "above": lambda columns, about: columns.update(image_ids=pa.array(["../a.jpg"] * len(columns["ids"]))),
    "absolute": lambda columns, about: columns.update(image_ids=pa.array(["/a.jpg"] * len(columns["ids"]))),
    "no names": lambda columns, about: columns.update(image_ids=pa.nulls(len(columns["ids"]), pa.string())),
    "numbers": lambda columns, about: columns.update(image_ids=columns["ids"]),
    "two sizes": lambda columns, about: columns.update(
        image_ids=pa.array(["a.jpg"] * len(columns["ids"])),
        image_sizes=pa.array([[9, 9 + i] for i in range(len(columns["ids"]))]),
    ),
    "negative shape": lambda columns, about: about["shapes"].update(betas=[-1]),
    "huge shape": lambda columns, about: about["shapes"].update(betas=[2**70]),
    "shape of text": lambda columns, about: about["shapes"].update(betas=["10"]),
    "shape of nothing": lambda columns, about: about["shapes"].update(betas=None),
    "shapes": lambda columns, about: about.update(shapes=3),
    "flat": lambda columns, about: columns.update(betas=columns["age_offset"]),
    "text": lambda columns, about: columns.update(kept=pa.array(["yes"] * len(columns["ids"]))),
    "not finite": lambda columns, about: columns.update(
        age_offset=pa.array([math.nan] * len(columns["ids"]))
    ),
    "names": lambda columns, about: about.update(joint_names=3),
    "few names": lambda columns, about: about.update(joint_names=["pelvis"]),
    "layout": lambda columns, about: about.update(keypoint_layout="none"),
    "other layout": lambda columns, about: about.update(keypoint_layout="openpose25"),
    "body": lambda columns, about: about.update(body=["mannequin"]),
}


@pytest.mark.parametrize("kind", HOSTILE_LABELS)
def test_labels_that_do_not_fit_together_are_refused(one, tmp_path, kind):
    path = tmp_path / "a.parquet"
    path.write_bytes(one[1].output.read_bytes())
    assert len(load_label_shards(path))
    label_document(path, HOSTILE_LABELS[kind])
    with pytest.raises(AnnotationError, match=r"a\.parquet: ") as caught:
        load_label_shards(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"record": {"people": 1}}', b"{", b"\xff"])
def test_metadata_that_is_not_ours_is_refused(one, tmp_path, text):
    path = tmp_path / "a.parquet"
    pq.write_table(pq.read_table(one[1].output).replace_schema_metadata({b"agebody": text}), path)
    with pytest.raises(AnnotationError, match=r"a\.parquet: "):
        load_label_shards(path)
    with pytest.raises(AnnotationError, match=r"a\.parquet: (metadata|exists, and is not a shard of labels)"):
        find_record(path, one[1].output, {})


def test_damaged_labels_are_not_read(one, tmp_path):
    """What a changed bit does to a page, its checksum tells; in a page's header it may do nothing."""
    whole, refused = load_label_shards(one[0]), 0
    data = bytearray(one[1].output.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for at in range(50, len(data) - footer, (len(data) - footer) // 20):
        changed = bytearray(data)
        changed[at] ^= 0x10
        (tmp_path / "a.parquet").write_bytes(changed)
        try:
            assert_same_labels(load_label_shards(tmp_path), whole)
        except AnnotationError as error:
            refused += "a.parquet: not a Parquet file, or a damaged one" in str(error)
    assert refused > 10


def test_focal_lengths_of_a_shard_count(people, body, tmp_path):
    (tmp_path / "in").mkdir()
    for folder in "abc":
        (tmp_path / folder).mkdir()
    table = pq.read_table(people / "people-00000.parquet")
    shard = tmp_path / "in" / "a.parquet"
    pq.write_table(table.append_column("focal", pa.array([900.0, None])), shard)
    guess = math.hypot(*SIZE)
    for folder, options, other in (
        ("a", {}, guess),
        ("b", {"focal": 700.0}, 700.0),
        ("c", {"fov": 0.9}, SIZE[1] / 2 / math.tan(0.45)),
    ):
        fit_shard(body, shard, tmp_path / folder, **options)
        focal = load_label_shards(tmp_path / folder).focal
        np.testing.assert_allclose(focal, [[900, 900], [other, other]], rtol=1e-6)
    given = read_shard(shard)
    with pytest.raises(ValueError, match="focal, fov"):
        fit_annotations(body, given, focal=900.0, fov=0.9)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="focal: expected a length above 0"):
            fit_annotations(body, given, focal=wrong)


def test_settings_distinguish_bodies_and_options(body, mannequin_asset):
    plain = describe_settings(body, None, {})
    assert plain == describe_settings(
        agebody.SMPLA(mannequin_asset), None, {"focal": None, "batch_size": 256}
    )
    body.keypoints("openpose25")  # makes its points and keeps them
    assert describe_settings(body, None, {}) == plain
    assert json.loads(json.dumps(plain)) == plain
    changed = replace(mannequin_asset, template=mannequin_asset.template * 1.001)
    others = [
        describe_settings(agebody.SMPLA(changed), None, {}),
        describe_settings(agebody.SMPLA(mannequin_asset, infant_corrective_scale=0.35), None, {}),
        describe_settings(agebody.SMPL(mannequin_asset), None, {}),
    ]
    names = body.asset.joint_names[1:]
    mean = torch.zeros(len(names), 3)
    priors = [
        joint_limits_prior(names),
        joint_limits_prior(names),
        joint_limits_prior(names, mean=mean + 0.1),
    ]
    priors = [describe_settings(body, None, {"pose_prior": prior}) for prior in priors]
    assert priors[0] == priors[1]
    distinct = [json.dumps(one, sort_keys=True) for one in (plain, *others, *priors[1:])]
    assert len(set(distinct)) == len(distinct)
    with pytest.raises(TypeError, match="colour: expected an option of fit_annotations or fit_keypoints"):
        describe_settings(body, None, {"colour": 1})
    with pytest.raises(TypeError, match="stages: expected numbers"):
        describe_settings(body, None, {"stages": [object()]})


def test_shards_are_found(people, tmp_path):
    assert [path.name for path in list_shards(str(people / "*-0000[12].parquet"))] == [
        "people-00001.parquet", "people-00002.parquet",
    ]  # fmt: skip
    assert list_shards(people / "people-00001.parquet") == [people / "people-00001.parquet"]
    assert len(list_shards(people)) == SHARDS
    for nothing in (tmp_path, tmp_path / "none", str(tmp_path / "*.parquet"), []):
        with pytest.raises(AnnotationError, match="expected"):
            list_shards(nothing)
    with pytest.raises(AnnotationError, match="its labels would have the name of those of"):
        list_shards([people / "people-00001.parquet", tmp_path / "people-00001.parquet"])
    with pytest.raises(AnnotationError, match="expected shards: a folder"):
        load_label_shards(tmp_path)


@pytest.mark.parametrize("fixed", [True, False])
def test_empty_shards_give_empty_labels(expected, body, people, tmp_path, fixed):
    """What other programs write may have lists without a length, and so any number of keypoints."""
    given, folder = tmp_path / "people", tmp_path / "labels"
    given.mkdir()
    name, *_ = expected
    (given / name).write_bytes((people / name).read_bytes())
    table = pq.read_table(given / name).slice(0, 0)
    if not fixed:
        table = pa.table({entry: write_nobody(table[entry]) for entry in table.column_names})
    pq.write_table(table, given / "nobody.parquet")
    assert len(read_shard(given / "nobody.parquet", layout="openpose25")) == 0
    report = fit_dataset(body, given, folder, cluster=Cluster(1))
    assert (report.shards_done, report.people, report.bad) == (2, A_SHARD, {})
    assert bytes_of(folder)[name] == expected[name]
    again = fit_dataset(body, given, folder, cluster=Cluster(1), verify=True)
    assert (again.shards_found_done, again.people_done) == (2, A_SHARD)
    (folder / name).rename(tmp_path / name)
    assert len(load_label_shards(folder)) == 0
    (tmp_path / name).rename(folder / name)
    assert_same_labels(load_label_shards(folder), load_label_shards(folder / name))


def write_nobody(column):
    lists = pa.types.is_fixed_size_list(column.type)
    return pa.array([], pa.list_(pa.float64()) if lists else column.type)


def test_a_full_disk_ends_the_call_and_another_resumes(expected, body, people, tmp_path, monkeypatch):
    """Data reach a full disk only when they are written out."""
    sync = files._sync

    def full(path):
        if len(bytes_of(tmp_path)) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        with pytest.raises(OSError, match=r"No space left on device.*people-00002\.parquet"):
            fit_dataset(body, people, tmp_path, cluster=Cluster(1))
    assert sorted(os.listdir(tmp_path)) == ["people-00000.parquet", "people-00001.parquet", "report.json"]
    assert fit_dataset(body, people, tmp_path, cluster=Cluster(1)).shards_found_done == 2
    assert bytes_of(tmp_path) == expected


# --- stores


@pytest.fixture
def store(request, monkeypatch):
    """The address of an empty store: of memory, or of a server of S3 on this machine."""
    upath = pytest.importorskip("upath")
    if request.param == "memory":
        memory = upath.UPath("memory://labels").fs
        yield "memory://labels"
        memory.store.clear()
        return
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    pytest.importorskip("s3fs")
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    upath.UPath("s3://bucket").fs.clear_instance_cache()
    with suppress(FileExistsError):
        upath.UPath("s3://bucket").fs.mkdir("bucket")
    yield "s3://bucket/data"
    server.stop()


@pytest.mark.parametrize("store", ["memory", "s3"], indirect=True)
def test_shards_are_read_from_a_store_and_labels_written_to_it(store, expected, body, people):
    given, folder = to_path(f"{store}/people"), to_path(f"{store}/labels")
    for path in people.iterdir():
        (given / path.name).parent.mkdir(parents=True, exist_ok=True)
        (given / path.name).write_bytes(path.read_bytes())
    kill = interrupt_after(2)
    with pytest.raises(KeyboardInterrupt):
        fit_dataset(body, f"{store}/people", f"{store}/labels", cluster=Cluster(1), progress=kill)
    assert bytes_of(folder) == dict(list(expected.items())[:2])
    report = fit_dataset(body, f"{store}/people", f"{store}/labels", cluster=Cluster(1))
    assert (report.shards_found_done, report.shards_done) == (2, SHARDS)
    assert bytes_of(folder) == expected
    assert {path.name for path in folder.iterdir()} == {*expected, "report.json"}
    assert json.loads((folder / "report.json").read_text())["shards_done"] == SHARDS
    assert len(list_shards(f"{store}/people/people-0000[0-2]*")) == 3
    assert load_label_shards(f"{store}/labels").ids.tolist() == list(range(100, 100 + COUNT))
    assert not fit_shard(body, f"{store}/people/people-00001.parquet", f"{store}/labels").fitted
    (folder / "people-00003.parquet").write_bytes(expected["people-00003.parquet"][:-9])  # cut off
    again = fit_dataset(body, f"{store}/people", f"{store}/labels", cluster=Cluster(1), verify=True)
    assert (again.shards_found_done, bytes_of(folder)) == (SHARDS - 1, expected)
    places = f"{store}/people", "-o", f"{store}/labels"
    result = run("fit-shards", *places, "--body", "mannequin", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert f"wrote {store}/labels/report.json" in result.stdout
    with pytest.raises(AnnotationError, match=f"{store}/none: expected shards"):
        list_shards(f"{store}/none")


def interrupt_after(shards):
    def interrupt(report):
        if report.shards_done == shards:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_store_that_refuses_is_named(store, body, people, monkeypatch):
    with pytest.raises(OSError, match="s3://nobody/labels/report.json") as error:
        fit_dataset(body, people, "s3://nobody/labels", cluster=Cluster(1))
    assert "\n" not in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    to_path(store).fs.clear_instance_cache()
    with pytest.raises(OSError, match=r"cannot be read \(Could not connect to the endpoint.*data/people'"):
        list_shards(f"{store}/people")
    with pytest.raises(OSError, match=r"cannot be read \(Could not connect to the endpoint.*a.parquet'"):
        read_shard(f"{store}/people/a.parquet")


def test_stores_that_cannot_be_reached_are_refused(body, people, tmp_path, monkeypatch):
    for address, said in (("nothing://a/b", "expected a path, or the address of a store"),):
        pytest.importorskip("upath")
        with pytest.raises(ValueError, match=f"{address}: {said}"):
            fit_dataset(body, people, address, cluster=Cluster(1))
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(ImportError, match=r's3://b/x: .*pip install "agebody\[stores\]"'):
        fit_dataset(body, people, "s3://b/x", cluster=Cluster(1))
    result = run("shard", tmp_path / "keypoints.json", "-o", "s3://b/x")
    assert result.exit_code == 1
    assert "s3://b/x" in result.stderr


# --- all shards, with Ray


@pytest.fixture(scope="module")
def session():
    """A Ray of one CPU for all tests, which calls use and leave running."""
    with local_ray(1) as ray:
        yield ray


@pytest.fixture(scope="module")
def whole(body, people, tmp_path_factory):
    """All labels, made without Ray and without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    for path in people.iterdir():
        fit_shard(body, path, folder)
    return folder


@pytest.fixture(scope="module")
def expected(whole):
    return bytes_of(whole)


KILLED = """
import json, os, pathlib, signal, sys
import agebody
from agebody.pipelines.labels import Cluster, fit_dataset

def kill(report):
    if report.shards_done == 2:
        pathlib.Path(sys.argv[3]).write_text(json.dumps(list(report.workers)))
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    body = agebody.SMPLA(agebody.mannequin())
    fit_dataset(body, sys.argv[1], sys.argv[2], cluster=Cluster(address=sys.argv[4]), progress=kill)
"""


def wait_for(done, seconds=60.0):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.1)
    assert done()


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_call_is_resumed(session, expected, body, people, tmp_path):
    """The process that ran it is ended in the middle, and its workers with it; nothing is lost or twice."""
    folder, started = tmp_path / "labels", tmp_path / "workers"
    (tmp_path / "killed.py").write_text(KILLED)
    address = session.get_runtime_context().gcs_address
    killed = subprocess.run(
        [sys.executable, tmp_path / "killed.py", people, folder, started, address], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (worker,) = json.loads(started.read_text())
    wait_for(lambda: not runs(int(worker.rpartition("-")[2])))
    done = {folder / name: (folder / name).stat() for name in bytes_of(folder)}
    assert 2 <= len(done) < SHARDS  # the third may have become whole meanwhile
    report = fit_dataset(body, people, folder)
    assert session.is_initialized()  # it was there before, and is left running
    assert {path: path.stat() for path in done} == done
    assert (report.shards_found_done, report.shards_done, report.shards_left) == (len(done), SHARDS, 0)
    assert report.people_fitted == COUNT - A_SHARD * len(done)
    assert bytes_of(folder) == expected
    assert sorted(os.listdir(folder)) == [*bytes_of(folder), "report.json"]
    found = load_label_shards(folder)
    assert found.ids.tolist() == list(range(100, 100 + COUNT))


def test_all_labels_are_those_of_each_shard(whole, body, annotations):
    parts = [annotations.select(np.arange(i, i + A_SHARD)) for i in range(0, COUNT, A_SHARD)]
    fits = concatenate_labels([fit_annotations(body, part) for part in parts])
    assert_same_labels(load_label_shards(whole), fits)


@pytest.fixture(scope="module")
def killed_worker(session, body, people, tmp_path_factory):
    """A call whose first worker is killed after its first shard, and the reports that it gave."""
    folder = tmp_path_factory.mktemp("worker") / "new"
    reports = []

    def kill(report):
        if not reports or reports[-1].shards_done < report.shards_done:
            reports.append(replace(report))
        else:
            return
        if report.shards_done == 1:
            (name,) = report.workers
            os.kill(int(name.rpartition("-")[2]), signal.SIGKILL)

    return folder, fit_dataset(body, people, folder, progress=kill), reports


def test_killed_workers_are_restarted(killed_worker, expected):
    folder, report, _ = killed_worker
    assert len(report.workers) == 2
    assert bytes_of(folder) == expected


def test_report_says_how_far_and_how_fast(killed_worker):
    folder, report, reports = killed_worker
    saved = json.loads((folder / "report.json").read_text())
    labels = load_label_shards(folder)
    assert (saved["shards"], saved["shards_done"], saved["shards_left"]) == (SHARDS, SHARDS, 0)
    assert (saved["people"], saved["people_done"], saved["people_fitted"]) == (COUNT, COUNT, COUNT)
    assert (saved["people_kept"], saved["people_converged"]) == (labels.kept.sum(), labels.converged.sum())
    assert saved["people_of_unknown_age"] == labels.flags["age_unknown"].sum()
    assert saved["settings"] == report.settings
    assert sum(worker["shards"] for worker in saved["workers"].values()) == SHARDS
    assert sum(worker["people"] for worker in saved["workers"].values()) == COUNT
    for worker in saved["workers"].values():
        assert 0 < worker["seconds"] < saved["seconds"]
        assert worker["people_per_second"] == pytest.approx(worker["people"] / worker["seconds"], rel=0.01)
    # the call ends some time after the last shard
    assert COUNT / saved["seconds"] <= saved["people_per_second"] * 1.01
    assert [now.shards_done for now in reports] == list(range(SHARDS + 1))
    assert [now.shards_left for now in reports] == list(range(SHARDS, -1, -1))
    assert reports[0].people_per_second is None


@pytest.mark.parametrize(("people", "seconds"), [(4, 38.5), (1, 997.0), (4096, 0.4), (3, 0.5)])
def test_rates_keep_their_digits_on_slow_machines(people, seconds):
    """Rounded to two decimals, 0.1039 people per second were 0.1."""
    assert _rate(people, seconds) == pytest.approx(people / seconds, rel=5e-4)


def test_an_interrupted_call_leaves_whole_shards_and_no_workers(session, expected, body, people, tmp_path):
    def interrupt(report):
        if report.shards_done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_dataset(body, people, tmp_path, progress=interrupt)
    wait_for(lambda: session.available_resources().get("CPU") == 1)  # the workers gave it back
    done = bytes_of(tmp_path)
    assert 1 <= len(done) <= 2
    assert done.items() <= expected.items()
    assert json.loads((tmp_path / "report.json").read_text())["shards_done"] == 1


def test_a_job_that_ends_its_worker_is_given_up_and_the_others_are_done(session, body):
    def work(body, job):
        if job == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * job

    with start_workers(body, work, {}, Cluster()) as pool:
        found = dict(run_jobs(pool, [1, "poison", 2], max_retries=1))
    assert [found[job].result for job in (1, 2)] == [2, 4]
    assert "its worker ended (WorkerCrashedError)" in str(found["poison"].error)


def test_calls_share_the_shards(expected, body, people, tmp_path):
    """As the tasks of a Slurm array do, without Ray."""
    for i in range(2):
        report = fit_dataset(body, people, tmp_path, cluster=Cluster(1), part=(i, 2))
        assert (report.shards, report.shards_done) == (SHARDS // 2, SHARDS // 2)
        assert (tmp_path / f"report-{i}-of-2.json").exists()
    assert bytes_of(tmp_path) == expected


def test_finished_shards_are_known_by_their_footers(expected, body, people, tmp_path):
    """Damage inside a file is found with verify, or by whoever reads the labels."""
    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    (name, *_) = expected
    damage(tmp_path / name)
    assert fit_dataset(body, people, tmp_path, cluster=Cluster(1)).shards_found_done == SHARDS
    report = fit_dataset(body, people, tmp_path, cluster=Cluster(1), verify=True)
    assert (report.shards_found_done, report.shards_done) == (SHARDS - 1, SHARDS)
    assert bytes_of(tmp_path) == expected


def damage(path):
    """What the footer does not tell."""
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)


def test_bad_shards_end_the_call_or_are_reported(expected, body, people, tmp_path):
    given, folder = tmp_path / "people", tmp_path / "labels"
    given.mkdir()
    for path in sorted(people.iterdir())[:4]:
        (given / path.name).write_bytes(path.read_bytes())
    names = [path.name for path in sorted(given.iterdir())]
    damage(given / names[1])
    column = given / names[2]
    pq.write_table(pq.read_table(column).drop_columns("weights"), column)
    with pytest.raises(AnnotationError, match=f"{names[2]}: column weights: missing"):
        fit_dataset(body, given, folder, cluster=Cluster(1))
    assert bytes_of(folder) == {}  # it was seen before anything was fitted
    others = [given / names[i] for i in (0, 1, 3)]
    with pytest.raises(AnnotationError, match=f"{names[1]}: not a Parquet file, or a damaged one") as error:
        fit_dataset(body, others, folder, cluster=Cluster(1))
    assert "\n" not in str(error.value)
    assert bytes_of(folder) == {names[0]: expected[names[0]]}
    report = fit_dataset(body, given, folder, cluster=Cluster(1), skip_bad=True)
    assert {Path(path).name: why.split(": ")[1] for path, why in report.bad.items()} == {
        names[1]: "not a Parquet file, or a damaged one",
        names[2]: "column weights",
    }
    assert (report.shards, report.shards_done, report.shards_left, report.people) == (4, 2, 0, 4)
    assert bytes_of(folder) == {name: expected[name] for name in (names[0], names[3])}
    assert json.loads((folder / "report.json").read_text())["bad"] == report.bad


def test_options_are_those_of_the_fit(expected, body, people, tmp_path):
    with pytest.raises(ValueError, match="min_confidence: expected a share from 0 to 1, got 2"):
        fit_dataset(body, people, tmp_path, cluster=Cluster(1), min_confidence=2)
    with pytest.raises(TypeError, match="colour: expected an option"):
        fit_dataset(body, people, tmp_path, cluster=Cluster(1), colour=2)
    with pytest.raises(ValueError, match="workers: expected a whole number of 1 or more"):
        fit_dataset(body, people, tmp_path, cluster=Cluster(0))
    with pytest.raises(ValueError, match="output: expected another folder"):
        fit_dataset(body, people, people)
    assert bytes_of(tmp_path) == {}
    (name, data), *_ = expected.items()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AnnotationError, match=f"{name}: exists, and was made with fov: None, not 0.9"):
        fit_dataset(body, people, tmp_path, cluster=Cluster(1), fov=0.9)
    assert bytes_of(tmp_path) == {name: data}


def test_leftovers_of_kills_are_removed(whole, body, people):
    """Once they are old: another process may be writing one."""
    folder = whole
    # Those of another machine, whose locks may not be seen here, once they are old.
    names = ("agebody-00000000-0123456789ab", "agebody-00000000-0123456789ac", "other")
    old, new, other = (folder / f".{name}.parquet" for name in names)
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    before = bytes_of(folder)
    report = fit_dataset(body, people, folder)
    assert not old.exists()
    for path in (new, other):
        path.unlink()
    assert (report.shards_found_done, report.people_fitted, report.people_per_second) == (SHARDS, 0, None)
    assert bytes_of(folder) == before


# --- the command line, and what is not installed


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def coco(annotations, path):
    points = np.concatenate((annotations.keypoints, 2.0 * (annotations.weights > 0)[..., None]), -1)
    people = [
        {"id": int(i), "image_id": int(image), "category_id": 1, "keypoints": row.flatten().tolist()}
        for i, image, row in zip(annotations.ids, annotations.image, points, strict=True)
    ]
    images = [
        {"id": i, "file_name": entry.name, "width": SIZE[0], "height": SIZE[1]}
        for i, entry in enumerate(annotations.images)
    ]
    people.append({"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 1, "keypoints": [0] * 51})
    path.write_text(json.dumps({"images": images, "annotations": people}))
    return path


def test_commands(annotations, tmp_path):
    given = coco(annotations.select(np.arange(4)), tmp_path / "day.json")
    result = run("shard", given, "-o", tmp_path / "people", "--people-per-shard", 2)
    assert result.exit_code == 0, result.output
    assert "4 people in 2 shards" in result.stdout
    assert "day.json: left out: crowd 1" in result.stderr
    labels = ("-o", tmp_path / "labels", "--body", "mannequin", "--workers", 1)
    result = run("fit-shards", tmp_path / "people", *labels, "--years", 30)
    assert result.exit_code == 0, result.output
    assert "2 of 2 shards done, 0 of them before" in result.stdout
    assert "4 people in " in result.stdout
    found = load_label_shards(tmp_path / "labels")
    assert found.ids.tolist() == [100, 101, 102, 103]
    assert (found.age_offset < 0.1).all()
    again = run("fit-shards", tmp_path / "people", *labels, "--years", 30)
    assert "2 of 2 shards done, 2 of them before" in again.stdout
    for arguments, code, message in (
        (
            ("fit-shards", tmp_path / "people", *labels),
            1,
            "made with years: 30.0, not None; give --overwrite",
        ),
        (("fit-shards", tmp_path / "none", *labels), 1, "expected shards"),
        (("fit-shards", tmp_path / "people", *labels, "--age-class", "old"), 2, "--age-class"),
        (("fit-shards", tmp_path / "people", *labels, "--focal", 9, "--fov", 9), 2, "--fov"),
        (("fit-shards", tmp_path / "people", *labels, "--device", "tpu"), 2, "--device"),
        (("shard", given, "-o", tmp_path / "people"), 1, "day-00000.parquet: exists"),
        (("shard", given, tmp_path / "other" / "day.json", "-o", tmp_path), 1, "two files are named day"),
        (("shard", tmp_path / "none.json", "-o", tmp_path / "new"), 1, "none.json"),
    ):
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert message in result.stderr
        if code == 1:
            (line,) = result.stderr.strip().splitlines()
            assert line.startswith("error: ")
    shards = ("fit-shards", tmp_path / "people/day-00000.parquet", "-o", tmp_path / "unknown")
    told = run(*shards, "--body", "mannequin", "--workers", 1)
    assert "2 people of unknown age: their statures and depths are guesses" in told.stderr
    bad = tmp_path / "people" / "day-00001.parquet"
    bad.write_bytes(b"no")
    result = run("fit-shards", tmp_path / "people", *labels, "--years", 30, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert f"left out: {bad}: not a Parquet file" in result.stderr


def test_without_the_extra_it_is_named(body, people, annotations, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(ImportError, match=r"pip install .?agebody\[ray\]"):
            fit_dataset(body, people, tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for call in (
        lambda: fit_dataset(body, people, tmp_path),
        lambda: fit_shard(body, people / "people-00000.parquet", tmp_path),
        lambda: write_shards(annotations, tmp_path),
        lambda: read_shard(people / "people-00000.parquet"),
    ):
        with pytest.raises(ImportError, match=r"pip install .?agebody\[ray\]"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_labels_load_neither_ray_nor_pyarrow():
    heavy = "[m for m in ('ray', 'pyarrow', 'pandas') if m in sys.modules]"
    code = f"import sys, agebody.pipelines.labels; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
