"""Tables from files: their numbers are those of the functions; wrong files are named in one line."""

import json
import math
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from coco_files import synthetic_coco
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from agebody import SMPLA
from agebody.age import AGE_CLASSES
from agebody.annotations import AnnotationError
from agebody.metrics import (
    detection_scores,
    keypoint_ap,
    match_keypoints,
    mpckh,
    mpjpe,
    pa_mpjpe,
    pcdr,
    pve,
)
from agebody.people import pose
from agebody.pipelines.cli import app
from agebody.pipelines.evaluate import evaluate_files
from agebody.pipelines.evaluate.bootstrap import ratio_intervals, resample
from agebody.pipelines.evaluate.coco import read_coco
from agebody.pipelines.evaluate.files import read_bodies
from agebody.pipelines.evaluate.infantnet import infantnet_table
from agebody.pipelines.evaluate.relative_human import relative_human_tables
from agebody.pipelines.evaluate.table import Intervals

RUNNER = CliRunner()
NAMES = [kind.name for kind in AGE_CLASSES]
AGES = torch.tensor([0.0, 0.0, 0.3, 0.6, 0.9, 1.0, 0.9, 0.0])
FEW, NONE = Intervals(resamples=50), Intervals(resamples=0)


@pytest.fixture(scope="module")
def bodies(mannequin_asset):
    """Eight people in three images: the truth and, without the fifth, a prediction, as arrays."""
    generator = torch.Generator().manual_seed(0)
    body = SMPLA(mannequin_asset)
    kinds = ("standing", "walking", "crawling", "sitting")
    angles = torch.stack(
        [torch.tensor(pose(kind, mannequin_asset.joint_names)) for kind in 2 * kinds]
    ).float()
    transl = torch.tensor([[0.8 * i, 0.0, 4 + i % 3] for i in range(8)])
    found = []
    for noise, offsets in ((0.0, AGES), (0.1, 0.8 * AGES)):
        turned = angles + noise * torch.randn(angles.shape, generator=generator)
        posed = {"global_orient": turned[:, 0], "body_pose": turned[:, 1:], "age_offset": offsets}
        out = body(**posed, transl=transl)
        points = body.keypoints("coco17", **posed, transl=transl)
        found.append((out.joints, out.vertices[:, ::20], 1000 * points[..., :2] / points[..., 2:]))
    (joints, vertices, pixels), guessed = found
    low, high = pixels.amin(1), pixels.amax(1)
    truth = {
        "ids": np.array([f"p{i}" for i in range(8)]), "image_ids": np.array([0, 0, 0, 1, 1, 1, 1, 2]),
        "joints": joints.numpy(), "vertices": vertices.numpy(), "keypoints": pixels.numpy(),
        "depth_layers": np.array([0, 1, 2, 0, 1, 2, 0, 0]), "age_offset": AGES.numpy(),
        "areas": (high - low).prod(-1).numpy(),
    }  # fmt: skip
    kept = np.array([7, 0, 1, 2, 3, 5, 6])
    pred = {
        "ids": truth["ids"][kept], "image_ids": truth["image_ids"][kept],
        "joints": guessed[0][kept].numpy(), "vertices": guessed[1][kept].numpy(),
        "keypoints": guessed[2][kept].numpy(), "scores": np.linspace(0.1, 0.9, 7),
        "depth": (transl[kept, 2] + 0.3 * torch.randn(7, generator=generator)).numpy(),
    }  # fmt: skip
    return truth, pred, kept


@pytest.fixture
def files(bodies, tmp_path):
    """Writes both, changed as wanted, and gives their paths: prediction, truth."""

    def write(*, pred=None, truth=None, without=()):
        paths = []
        for name, arrays, changes in (("pred", bodies[1], pred), ("truth", bodies[0], truth)):
            arrays = {**arrays, **(changes or {})}
            left = {key: value for key, value in arrays.items() if (name, key) not in without}
            np.savez(tmp_path / f"{name}.npz", **left)
            paths.append(tmp_path / f"{name}.npz")
        return paths

    return write


def run(*arguments):
    return RUNNER.invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def double(array):
    return torch.from_numpy(np.asarray(array)).double()


def both(bodies, key):
    """Arrays of the people who were found, row by row."""
    truth, pred, kept = bodies
    return double(pred[key]), double(truth[key][kept])


def test_pose_table_has_the_numbers_of_the_functions(bodies, files):
    table = infantnet_table(*map(read_bodies, files()), intervals=FEW)
    joints, surface = both(bodies, "joints"), both(bodies, "vertices")
    roots = {"pred_root": joints[0][:, 0], "target_root": joints[1][:, 0]}
    expected = {
        "MPJPE": mpjpe(*joints, layout="smpl24", reduction="none"),
        "PA-MPJPE": pa_mpjpe(*joints, reduction="none"),
        "PVE": pve(*surface, **roots, reduction="none"),
        "PA-PVE": pa_mpjpe(*surface, reduction="none"),
    }
    classes = np.array([0, 0, 1, 2, 3, 3, 3, 0])
    assert [row.name for row in table.rows] == ["baby", "kid", "teen", "adult", "all"]
    for name, errors in expected.items():
        for row in (*NAMES, "all"):
            members = np.ones(7, bool) if row == "all" else classes[bodies[2]] == NAMES.index(row)
            cell = table[row, name]
            assert cell.n == members.sum()
            assert cell.value == pytest.approx(errors[members].mean().item(), abs=1e-14)
            assert math.isnan(cell.low) or cell.low <= cell.value <= cell.high
    assert [(row.people, row.missed) for row in table.rows] == [(3, 1), (1, 0), (1, 0), (3, 0), (8, 1)]
    assert math.isnan(table["kid", "MPJPE"].low)  # one image: nothing to draw again
    assert any("1 of 8 people have no prediction" in note for note in table.notes)


def test_masked_joints_do_not_count_whatever_they_hold(bodies, files):
    weights = np.ones((8, 24))
    weights[0, 0], weights[1, 5] = 0, 0  # a pelvis, a knee
    joints = bodies[0]["joints"].copy()
    joints[weights == 0] = np.nan
    table = infantnet_table(
        *map(read_bodies, files(truth={"joints": joints, "joint_weights": weights})), intervals=NONE
    )
    rows = np.array([1, 2, 3, 4, 5, 6, 0])  # of the prediction, person 7 last
    pred, target = (part[rows] for part in both(bodies, "joints"))
    seen = double(weights)[bodies[2]][rows]
    expected = mpjpe(pred, target, layout="smpl24", weights=seen)
    assert table["all", "MPJPE"].value == pytest.approx(expected.item(), abs=1e-14)
    assert table["all", "MPJPE"].n == table["all", "PVE"].n == 6
    assert table["all", "PA-MPJPE"].n == 7


@pytest.mark.parametrize("by", ["ids", "keypoints"])
def test_people_table_has_the_numbers_of_the_functions(bodies, files, by):
    truth, pred, kept = bodies
    without = () if by == "ids" else (("pred", "ids"), ("truth", "ids"))
    people = [read_bodies(path) for path in files(without=without)]
    table, detection = relative_human_tables(*people, intervals=FEW)
    depth, missed = torch.zeros(8), torch.ones(8)
    depth[kept], missed[kept] = torch.from_numpy(pred["depth"]), 0
    images = torch.tensor([[0, 1, 2, -1], [3, 4, 5, 6], [7, -1, -1, -1]])
    there = images >= 0
    layers, ages = torch.from_numpy(truth["depth_layers"]), torch.tensor([0, 0, 1, 2, 3, 3, 3, 0])
    given = {"weights": there, "missed": (missed[images] > 0) & there}
    expected = pcdr(depth[images], layers[images], **given).item()
    assert table["all", "PCDR"].value == pytest.approx(expected, rel=1e-6)  # there float32
    assert table["all", "PCDR"].n == 6
    by_age = pcdr(depth[images], layers[images], age_classes=torch.where(there, ages[images], -1), **given)
    for name, share in zip(NAMES, by_age.tolist(), strict=True):
        np.testing.assert_allclose(table[name, "PCDR"].value, share, rtol=1e-6)
    keypoints = both(bodies, "keypoints")
    assert table["all", "mPCKh"].value == pytest.approx(mpckh(*keypoints).item(), abs=1e-14)
    scores = detection_scores(7, 0, 1)
    for column, value in zip(("precision", "recall", "F1"), scores, strict=True):
        assert detection["all", column].value == pytest.approx(value, rel=1e-12)
    numbers = keypoint_ap(
        keypoints[0], double(pred["scores"]), torch.from_numpy(pred["image_ids"]),
        double(truth["keypoints"]), double(truth["areas"]), torch.from_numpy(truth["image_ids"]),
    )  # fmt: skip
    assert detection["all", "AP"].value == pytest.approx(numbers.AP, abs=1e-12)
    assert detection["all", "AR large"].value == pytest.approx(numbers.AR_large, abs=1e-12)


def test_unknown_layers_are_in_no_pair_and_true_depths_do_as_well(bodies, files):
    layers = bodies[0]["depth_layers"].copy()
    layers[0] = -1  # of three in its image
    table, _ = relative_human_tables(*map(read_bodies, files(truth={"depth_layers": layers})), intervals=NONE)
    assert table["all", "PCDR"].n == 4
    depth = np.linspace(2, 6, 8)
    pred, truth = depth[bodies[2]].copy(), depth.copy()
    truth[1] = truth[0] + 0.1  # as far as the other, within the threshold
    pred[bodies[2].tolist().index(1)] = truth[0]
    paths = files(pred={"depth": pred + 10}, truth={"depth": truth}, without=[("truth", "depth_layers")])
    table, _ = relative_human_tables(*map(read_bodies, paths), intervals=NONE)
    assert table["all", "PCDR"].value == pytest.approx(6 / 6.3)  # all right, one missed
    assert table["all", "PCDR"].n == 6


def test_spare_predictions_are_false_positives(bodies, files):
    without = (("pred", "ids"), ("truth", "ids"))
    twice = {key: np.concatenate([value, value[:1]]) for key, value in bodies[1].items()}
    twice["keypoints"][-1] += 5000
    _, detection = relative_human_tables(
        *map(read_bodies, files(pred=twice, without=without)), intervals=NONE
    )
    assert detection["all", "precision"].value == pytest.approx(7 / 8)
    assert detection["all", "recall"].value == pytest.approx(7 / 8)


def test_matching_is_that_of_the_function(bodies, files):
    """Two people change places in the image: keypoints say so, ids do not."""
    swapped = bodies[1]["keypoints"].copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    truth, pred = bodies[0]["keypoints"], swapped[1:4]
    found = match_keypoints(double(pred), double(truth[:3]))
    assert found.target.tolist() == [1, 0, 2]
    change = {"pred": {"keypoints": swapped}}
    by_ids, _ = relative_human_tables(*map(read_bodies, files(**change)), intervals=NONE)
    assert by_ids["all", "mPCKh"].value < 1
    without = (("pred", "ids"), ("truth", "ids"))
    by_points, _ = relative_human_tables(*map(read_bodies, files(**change, without=without)), intervals=NONE)
    assert by_points["all", "mPCKh"].value > by_ids["all", "mPCKh"].value


def test_invisible_people_and_unknown_ages_are_reported(bodies, files):
    keypoints = np.concatenate([bodies[0]["keypoints"], np.ones((8, 17, 1))], -1)
    keypoints[2] = 0
    keypoints[1, 3] = [np.nan, np.nan, 0]
    ages = np.array(["adult", "", "teen", "kid", "baby", "baby", "baby", "adult"])
    paths = files(
        truth={"keypoints": keypoints, "age_class": ages},
        without=[("truth", "age_offset"), ("pred", "ids"), ("truth", "ids")],
    )
    table, _ = relative_human_tables(*map(read_bodies, paths), intervals=NONE)
    assert any("1 people without a visible keypoint" in note for note in table.notes)
    assert any("1 people of unknown age" in note for note in table.notes)
    assert table.rows[-1].people == 7
    assert [row.people for row in table.rows if row.name == "teen"] == [0]
    assert math.isnan(table["teen", "mPCKh"].value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("age_class", np.array([0, 0, 1, 2, 3, 3, 3, 0])),
        ("age_class", np.array(["adult", "adult", "teen", "kid", "baby", "baby", "baby", "adult"])),
        ("years", np.array([40.0, 19, 10, 4.5, 0.5, 0, 1, 25])),
    ],
)
def test_ages_may_be_given_in_every_way(files, key, values):
    expected = read_bodies(files()[1]).age_classes
    paths = files(truth={key: values}, without=[("truth", "age_offset")])
    np.testing.assert_array_equal(read_bodies(paths[1]).age_classes, expected)


def test_a_stated_class_counts_before_the_most_exact_age(files):
    """As in labels, whose age offset was fitted: that of 1.5 years is a baby's on some bodies."""
    expected = read_bodies(files()[1]).age_classes
    other = {"years": np.full(8, 4.0), "age_class": np.array(["", "baby"])[[0, 1, 0, 0, 0, 0, 0, 0]]}
    found = read_bodies(files(truth=other)[1]).age_classes
    np.testing.assert_array_equal(found, [expected[0], NAMES.index("baby"), *expected[2:]])


def test_without_ages_there_is_one_row_and_without_ids_rows_are_people(bodies, files):
    kept = {key: value[bodies[2]] for key, value in bodies[0].items()}
    without = [("truth", "age_offset"), ("pred", "ids"), ("truth", "ids")]
    table = infantnet_table(*map(read_bodies, files(truth=kept, without=without)), intervals=NONE)
    assert [row.name for row in table.rows] == ["all"]
    expected = mpjpe(*both(bodies, "joints"), layout="smpl24")
    assert table["all", "MPJPE"].value == pytest.approx(expected.item(), abs=1e-14)


@pytest.mark.parametrize("seed", [0, 4])
def test_coco_table_has_the_numbers_of_the_function(tmp_path, seed):
    annotations, results = synthetic_coco(seed)
    other = results[0] | {"category_id": 7}
    (tmp_path / "truth.json").write_text(json.dumps(annotations))
    (tmp_path / "pred.json").write_text(json.dumps([*results, other]))
    (table,) = evaluate_files(tmp_path / "pred.json", tmp_path / "truth.json", resamples=20)
    truth = annotations["annotations"]
    target, pred = (
        double([e["keypoints"] for e in entries]).reshape(-1, 17, 3) for entries in (truth, results)
    )
    expected = keypoint_ap(
        pred[..., :2], double([r["score"] for r in results]), torch.tensor([r["image_id"] for r in results]),
        target[..., :2], double([p["area"] for p in truth]), torch.tensor([p["image_id"] for p in truth]),
        weights=target[..., 2], boxes=double([p["bbox"] for p in truth]),
        crowd=torch.tensor([p["iscrowd"] for p in truth]) > 0,
    )  # fmt: skip
    for column, cell, value in zip(table.columns, table.rows[0].cells, expected, strict=True):
        assert column.unit == "%"
        assert cell.value == pytest.approx(value, abs=1e-12)
        assert cell.low <= cell.high
    assert any("1 detections of other categories" in note for note in table.notes)


def test_boxes_of_results_say_how_large_they_are(tmp_path):
    annotations, results = synthetic_coco(1)
    boxed = [result | {"bbox": [0, 0, 10, 10]} for result in results]
    paths = tmp_path / "pred.json", tmp_path / "truth.json"
    paths[0].write_text(json.dumps(boxed))
    paths[1].write_text(json.dumps(annotations))
    areas = np.concatenate([image.pred_areas for image in read_coco(*paths).categories[0]])
    assert (areas == 100).all()


def test_resampling_draws_with_replacement():
    counts = np.concatenate(list(resample(7, 1000, 3)))
    assert counts.shape == (1000, 7)
    assert (counts.sum(1) == 7).all()
    # Each count is binomial, of mean 1 and variance 6/7: five standard errors of a mean of 1000.
    np.testing.assert_allclose(counts.mean(0), 1, atol=5 * np.sqrt(6 / 7 / 1000))
    np.testing.assert_array_equal(np.concatenate(list(resample(7, 1000, 3))), counts)
    assert (np.concatenate(list(resample(7, 1000, 4))) != counts).any()


def test_intervals_are_those_of_scipy():
    from scipy.stats import bootstrap

    r = np.random.default_rng(0)
    below = r.integers(1, 5, 40).astype(float)
    above = below * r.normal(2, 0.5, 40)
    expected = bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        random_state=r,
    ).confidence_interval
    low, high = ratio_intervals(above[:, None], below[:, None], resamples=4000, seed=0)
    # Ends of 4000 draws scatter by about 4 % of the interval's width.
    width = expected.high - expected.low
    np.testing.assert_allclose([low[0], high[0]], expected, atol=0.12 * width)


@given(clusters=st.integers(1, 6), seed=st.integers(0, 99))
def test_intervals_hold_the_means_and_say_nothing_of_too_few(clusters, seed):
    r = np.random.default_rng(seed)
    below = r.integers(0, 2, (clusters, 3)).astype(float)
    low, high = ratio_intervals(below * 5.0, below, resamples=30, seed=seed)
    enough = (below > 0).sum(0) > 1
    np.testing.assert_array_equal(np.isnan(low), ~enough)
    assert (low[enough] == 5).all()
    assert (high[enough] == 5).all()
    assert np.isnan(ratio_intervals(below, below, resamples=0, seed=0)).all()


def test_the_command_prints_tables_or_json(files):
    result = run(*files(), "--bootstrap", 40, "--seed", 1)
    assert result.exit_code == 0, result.output
    for word in ("InfantNet", "Relative Human", "Detection", "baby", "PCDR", "1 of 8", "95 %"):
        assert word in result.stdout
    tables = json.loads(run(*files(), "--json", "--bootstrap", 40, "--seed", 1).stdout)
    assert [table["table"] for table in tables] == ["InfantNet", "Relative Human", "Detection"]
    cell = tables[0]["rows"][-1]["cells"]["MPJPE"]
    table = infantnet_table(*map(read_bodies, files()), intervals=Intervals(40, 1))
    assert (cell["value"], *cell["interval"], cell["n"]) == table["all", "MPJPE"]
    assert f"{1e3 * cell['value']:.1f} (7)" in result.stdout
    assert tables[0]["rows"][1]["cells"]["MPJPE"]["interval"] is None
    assert tables[0]["columns"][0] == {"name": "MPJPE", "unit": "m"}


def test_a_class_without_people_is_shown_as_such(files):
    paths = files(truth={"age_offset": np.zeros(8)})
    result = run(*paths, "--table", "infantnet", "--bootstrap", 0)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "baby" in line]
    assert "nobody" in line
    assert "0.0" not in line
    assert "95 %" not in result.stdout
    assert "PCDR" not in result.stdout


def test_the_command_reads_coco(tmp_path):
    annotations, results = synthetic_coco(2)
    (tmp_path / "truth.json").write_text(json.dumps(annotations))
    (tmp_path / "pred.json").write_text(json.dumps(results))
    result = run(tmp_path / "pred.json", tmp_path / "truth.json", "--bootstrap", 5)
    assert result.exit_code == 0, result.output
    assert "AP medium [%]" in result.stdout


def object_array(value):
    array = np.empty(8, dtype=object)
    array[:] = value
    return array


BAD_TRUTHS = [
    (
        {"ids": np.array(["a", "b", "a", *"cdefg"][:8])},
        "truth.npz: ids: expected different ids, got a more than once",
    ),
    ({"ids": np.arange(8) / 2}, "truth.npz: ids: expected integers or strings, got float64"),
    ({"ids": object_array("x")}, "truth.npz: ids: Python objects are not loaded"),
    ({"joints": np.zeros((8, 24))}, "truth.npz: joints: expected shape (N, any, 3), got (8, 24)"),
    ({"joints": np.zeros((7, 24, 3))}, "truth.npz: joints: expected 8 people, as in ids, got 7"),
    ({"joints": np.full((8, 24, 3), np.nan)}, "truth.npz: joints: NaN or infinite for id p0"),
    ({"joints": np.full((8, 24, 3), "1")}, "truth.npz: joints: expected numbers"),
    ({"joints": np.zeros((8, 23, 3))}, "pred.npz: joints: expected 23 a person"),
    ({"joint_weights": np.zeros((8, 3))}, "truth.npz: joint_weights: expected shape (8, 24), got (8, 3)"),
    ({"layout": np.array("smpl")}, "truth.npz: layout: expected one of smpl24"),
    ({"layout": np.array("coco17")}, "truth.npz: joints: expected the 17 of coco17, got 24"),
    ({"vertices": np.zeros((8, 5, 3))}, "pred.npz: vertices: expected 5 a person"),
    ({"keypoints": np.zeros((8, 17, 4))}, "truth.npz: keypoints: expected shape (N, K, 2) or (N, K, 3)"),
    ({"keypoints": np.zeros((8, 16, 2))}, "pred.npz: keypoints: expected 16 a person"),
    ({"depth_layers": np.zeros(8)}, "truth.npz: depth_layers: expected integers, got float64"),
    ({"age_offset": np.full(8, "old")}, "truth.npz: age_offset: expected a finite number, got 'old'"),
    ({"ids": np.arange(8)}, "pred.npz: ids: expected integers, as in"),
    ({"crowd": np.ones(8)}, "truth.npz: crowd: expected booleans, got float64"),
    (
        {"vertices": np.zeros((8, 0, 3))},
        "vertices: expected at least one point per person, got shape (8, 0, 3)",
    ),
    ({"keypoints": np.zeros((8, 0, 3))}, "truth.npz: keypoints: expected at least one point per person"),
    ({"joint_weights": -np.ones((8, 24))}, "truth.npz: joint_weights: expected at least 0, got -1"),
    ({"areas": np.arange(-1, 7)}, "truth.npz: areas: expected at least 0, got -1"),
    ({"depth_layers": np.full(8, -2)}, "truth.npz: depth_layers: expected at least -1, got -2"),
    ({"age_offset": np.full(8, np.inf)}, "truth.npz: age_offset: expected a finite number, got inf (row 0)"),
    ({"ids": np.array([b"\xff", *b"abcdefg"], "S1")}, "truth.npz: ids: expected strings in UTF-8"),
]


@pytest.mark.parametrize(("change", "message"), BAD_TRUTHS)
def test_bad_truths_are_named_in_one_line(files, change, message):
    assert_one_line_error(run(*files(truth=change), "--bootstrap", 0), message)


@pytest.mark.parametrize("years", [-0.5, 130.0, np.inf])
def test_age_groups_without_people(files, years):
    paths = files(truth={"years": np.full(8, years)}, without=[("truth", "age_offset")])
    message = f"truth.npz: years: expected a number from 0 to below 130, got {years} (row 0)"
    assert_one_line_error(run(*paths, "--bootstrap", 0), message)


def test_bounds_are_inside_and_bytes_are_text(files):
    truth = {
        "years": np.array([0, 129.9, np.nan, 1, 2, 3, 4, 5]), "joint_weights": np.zeros((8, 24)),
        "depth_layers": np.full(8, -1), "areas": np.zeros(8),
        "ids": np.array([f"é{i}".encode() for i in range(8)]),
    }  # fmt: skip
    people = read_bodies(files(truth=truth, without=[("truth", "age_offset")])[1])
    assert people.get("age_classes")[:3].tolist() == [NAMES.index("baby"), NAMES.index("adult"), -1]
    assert people.name_of(7) == "id é7"


def npy(header, data=b""):
    """An array's file with a header of one's own."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def described(shape, kind="<f8"):
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("joints.npy", b"no array", "joints: cannot be read (an array in it is damaged"),
        ("joints.npy", npy("{'descr':"), "joints: an array of records, or one with a damaged header"),
        ("joints.npy", npy("-" * 9000 + "1"), "joints: an array of records, or one with a damaged header"),
        ("joints.npy", npy(described((10**11, 24, 3)), bytes(8)), "joints: cannot be read (truncated: the"),
        ("joints.npy", npy(described((-1, -24, 3)), bytes(576)), "joints: an array of records"),
        ("joints.npy", npy(described((1,), "|O"), b"."), "joints: Python objects are not loaded"),
    ],
)  # fmt: skip
def test_members_that_are_no_arrays(tmp_path, name, content, message):
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(AnnotationError, match=re.escape(f"odd.npz: {message}")):
        read_bodies(tmp_path / "odd.npz")


def test_ambiguous_layouts_must_be_named(bodies, files):
    changes = {
        "truth": {"joints": bodies[0]["joints"][:, :17]},
        "pred": {"joints": bodies[1]["joints"][:, :17]},
    }
    paths = files(**changes)
    options = ("--table", "infantnet", "--bootstrap", 0)
    assert_one_line_error(run(*paths, *options), "layout: missing; 17 joints may be coco17 or h36m17")
    table = infantnet_table(*map(read_bodies, paths), layout="coco17", intervals=NONE)
    expected = mpjpe(*(joints[:, :17] for joints in both(bodies, "joints")), layout="coco17")
    assert table["all", "MPJPE"].value == pytest.approx(expected.item(), abs=1e-14)
    assert run(*paths, *options, "--layout", "coco17").exit_code == 0
    changes["truth"]["layout"] = np.array("h36m17")
    assert run(*files(**changes), *options).exit_code == 0
    few = {name: {"joints": change["joints"][:, :3]} for name, change in changes.items()}
    assert_one_line_error(run(*files(**few), *options), "3 joints are of no known layout")


def test_points_of_two_layouts_are_not_compared(bodies, files):
    """Even if both have as many."""
    names = {"truth": "coco17", "pred": "h36m17"}
    three = {
        name: {"joints": each["joints"][:, :17], "layout": np.array(names[name])}
        for name, each in zip(names, bodies[:2], strict=True)
    }
    expected = "pred.npz: layout: expected 'coco17', as in"
    assert_one_line_error(run(*files(**three), "--table", "infantnet", "--bootstrap", 0), expected)
    two = {name: {"keypoint_layout": np.array(names[name])} for name in names}
    expected = "pred.npz: keypoint_layout: expected 'coco17', as in"
    assert_one_line_error(run(*files(**two), "--table", "relative-human", "--bootstrap", 0), expected)


BAD_PREDICTIONS = [
    ({"ids": np.array(["p0", "p1", "p2", "p3", "q", "r", "p4"])}, "pred.npz: ids: q is nobody of"),
    (
        {"ids": np.array([f"p{i % 6}" for i in range(7)])},
        "pred.npz: ids: expected different ids, got p0 more than once",
    ),
    ({"depth": np.array([1.0, 2, np.inf, 4, 5, 6, 7])}, "pred.npz: depth: NaN or infinite for id p1"),
    ({"scores": np.ones((7, 1))}, "pred.npz: scores: expected shape (N), got (7, 1)"),
]


@pytest.mark.parametrize(("change", "message"), BAD_PREDICTIONS)
def test_bad_predictions_are_named_in_one_line(files, change, message):
    assert_one_line_error(run(*files(pred=change), "--bootstrap", 0), message)


def test_missing_parts_are_named(files, tmp_path):
    assert_one_line_error(run(*files(without=[("pred", "ids")]), "--table", "infantnet"), "ids: missing")
    no_ids = [("pred", "ids"), ("truth", "ids")]
    assert_one_line_error(run(*files(without=no_ids), "--table", "infantnet"), "expected 8 people")
    unseen = {"image_ids": np.array([9, 0, 0, 0, 1, 1, 1])}
    assert_one_line_error(run(*files(pred=unseen, without=no_ids)[:1], tmp_path / "truth.npz", "--table",
                              "relative-human"), "image_ids: 9 is no image of")  # fmt: skip
    for key in ("joints", "depth"):
        paths = files(without=[("pred", key)])
        table = {"joints": "infantnet", "depth": "relative-human"}[key]
        assert_one_line_error(run(*paths, "--table", table), f"pred.npz: {key}: missing")
    nothing = files(without=[("pred", "joints"), ("pred", "depth")])
    assert_one_line_error(run(*nothing), "no table can be made")
    _, detection = relative_human_tables(
        *map(read_bodies, files(without=[("truth", "areas")])), intervals=NONE
    )
    assert detection.notes == ("no AP: truth.npz has no areas",)


def test_files_of_another_kind_are_named(tmp_path, files):
    pred, truth = files()
    for name, content in (
        ("noise.npz", b"noise"),
        ("pickle.npz", pickle.dumps({"ids": 1})),
        ("empty.npz", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert_one_line_error(run(tmp_path / name, truth), f"{name}: not an npz file")
    np.save(tmp_path / "array.npy", np.ones(3))
    assert_one_line_error(run(tmp_path / "array.npy", truth), "array.npy: not an npz file")
    (tmp_path / "cut.npz").write_bytes(pred.read_bytes()[:-200])
    assert_one_line_error(run(tmp_path / "cut.npz", truth), "cut.npz: not an npz file")
    np.savez(tmp_path / "other.npz", nothing=np.ones(3))
    assert_one_line_error(run(pred, tmp_path / "other.npz"), "other.npz: no key is known")
    np.savez(tmp_path / "nobody.npz", joints=np.ones((0, 24, 3)))
    assert_one_line_error(
        run(pred, tmp_path / "nobody.npz"), "nobody.npz: expected people, got an empty file"
    )
    assert_one_line_error(run(tmp_path / "none.npz", truth), "none.npz")
    assert_one_line_error(run(pred, tmp_path / "truth.json"), "pred.npz: table coco: expected COCO's .json")
    assert_one_line_error(run(pred, truth, "--table", "coco"), "pred.npz: table coco: expected COCO's .json")
    assert run(pred, truth, "--table", "table").exit_code == 2
    assert run(pred, truth, "--layout", "smpl").exit_code == 2


def coco_change(change):
    annotations, results = synthetic_coco(1)
    change(annotations, results)
    return annotations, results


def test_bad_coco_files_are_named_in_one_line(tmp_path):
    pred, truth = tmp_path / "pred.json", tmp_path / "truth.json"

    def write(change):
        annotations, results = coco_change(change)
        truth.write_text(json.dumps(annotations))
        pred.write_text(json.dumps(results))
        return run(pred, truth, "--bootstrap", 0)

    cases = [
        (
            lambda a, r: a.pop("images"),
            "truth.json: images: expected a list, as in COCO's files, got nothing",
        ),
        (lambda a, r: r[3].pop("score"), "pred.json: results[3]: score: missing"),
        (
            lambda a, r: r[3].update(score="high"),
            "pred.json: results[3]: score: expected a number, got 'high'",
        ),
        (
            lambda a, r: r[1].update(image_id=1),
            "results[1]: image_id: expected the id of one of the images of ",
        ),
        (lambda a, r: r[1].update(keypoints=[1, 2, 3]), "results[1]: keypoints: expected 51 numbers, got 3"),
        (
            lambda a, r: r[1].update(keypoints=[math.nan] * 51),
            "results[1]: keypoints: expected finite numbers x, y, v",
        ),
        (
            lambda a, r: a["annotations"][1].update(id=None),
            "annotations[1]: id: expected a number or a string",
        ),
        (lambda a, r: a["images"][1].update(id="a"), "images: id: expected numbers or strings, got both"),
        (
            lambda a, r: a["annotations"][0].update(bbox=[1, 2]),
            "annotations[0] (id 1): bbox: expected x, y, width, height in pixels, got [1, 2]",
        ),
        (
            lambda a, r: [a["annotations"][1].pop(key) for key in ("area", "bbox")],
            "annotations[1] (id 2): area: missing, and bbox, too",
        ),
        (
            lambda a, r: a["annotations"][2].update(area="5"),
            "annotations[2] (id 3): area: expected a number, got '5'",
        ),
        (lambda a, r: r[3].update(image_id=10**30), "results[3]: image_id: expected the id of one of"),
        (lambda a, r: r[3].update(image_id=[5]), "results[3]: image_id: expected the id of one of"),
        (
            lambda a, r: [row.update(segmentation="x") for row in r],
            "results[0]: segmentation: expected compressed run lengths, got 'x'",
        ),
        (lambda a, r: a["annotations"][2].update(iscrowd="0"), "iscrowd: expected 0 or 1, got '0'"),
        (lambda a, r: r[3].update(score=10**400), "results[3]: score: expected a number, got 1000"),
        (lambda a, r: r[3].update(category_id=[1]), "results[3]: category_id: expected a number or"),
        (lambda a, r: a.update(categories=5), "truth.json: categories: expected a list, got 5"),
        (
            lambda a, r: a["categories"][0].update(keypoints=[1] * 17),
            "truth.json: categories: keypoints: expected a list of names, got [1, 1, ",
        ),
    ]
    for change, message in cases:
        assert_one_line_error(write(change), message)
    pred.write_text('{"a": 1}')
    assert_one_line_error(run(pred, truth), "pred.json: expected COCO results")
    for text, message in (
        ("[", "not a JSON file"),
        ("[" * 100_000, "lists or objects are nested too deep"),
        ("9" * 5000, "cannot be read: Exceeds the limit (4300"),
    ):
        pred.write_text(text)
        assert_one_line_error(run(pred, truth), f"pred.json: {message}")


def assert_one_line_error(result, message):
    assert result.exit_code == 1, result.output
    assert not isinstance(result.exception, Exception), result.exception
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert message in line, line


def test_functions_name_wrong_arguments(files, unchecked):
    with pytest.raises(ValueError, match="table: expected one of auto, .*, got 'all'"):
        evaluate_files(*files(), table="all")
    with pytest.raises(ValueError, match="layout: expected"):
        evaluate_files(*files(), layout="smpl")
    with pytest.raises(AnnotationError, match="not an npz file"):
        evaluate_files(__file__, files()[1])


HIPS = ("left_hip", "right_hip")


def changed(bodies, weights):
    """Arrays of the found people: joints of both, and weights, in the order of the truth."""
    rows = np.argsort(bodies[2])
    pred, target = (part[rows] for part in both(bodies, "joints"))
    return pred, target, double(weights)[np.sort(bodies[2])]


@pytest.mark.parametrize("root", [("pelvis",), HIPS])
def test_a_named_root_may_have_weight_0_and_is_still_the_root(bodies, files, root):
    """As the pelvis of Human3.6M beside the 14 points of LSP, which alone are counted."""
    weights = np.ones((8, 24))
    weights[:, :3] = 0  # pelvis and hips
    paths = files(truth={"joint_weights": weights})
    (table,) = evaluate_files(*paths, table="infantnet", root=root, resamples=0)
    pred, target, seen = changed(bodies, weights)
    points = [bodies_layout().index(name) for name in root]
    pred, target = (part - part[:, points].mean(1, keepdim=True) for part in (pred, target))
    expected = (pred - target).norm(dim=-1)[:, 3:].mean(1)
    assert table["all", "MPJPE"].value == pytest.approx(expected.mean().item(), abs=1e-12)
    assert table["all", "MPJPE"].n == table["all", "PVE"].n == 7
    direct = mpjpe(*changed(bodies, weights)[:2], layout="smpl24", root=root, weights=seen)
    assert direct.item() == pytest.approx(expected.mean().item(), abs=1e-12)
    printed = run(*paths, "--bootstrap", 0, "--json", *[part for name in root for part in ("--root", name)])
    cell = json.loads(printed.stdout)[0]["rows"][-1]["cells"]["MPJPE"]
    assert cell["value"] == table["all", "MPJPE"].value


def bodies_layout():
    from agebody import LAYOUTS

    return LAYOUTS["smpl24"].names


def test_without_a_named_root_its_weight_is_said_to_be_0(files):
    weights = np.ones((8, 24))
    weights[:, 0] = 0
    (table,) = evaluate_files(*files(truth={"joint_weights": weights}), table="infantnet", resamples=0)
    assert table["all", "MPJPE"].n == 0
    assert "7 people whose root has weight 0 do not count in MPJPE and PVE; see --root" in table.notes


def test_people_without_a_named_root_do_not_count(bodies, files):
    weights, joints = np.ones((8, 24)), bodies[0]["joints"].copy()
    weights[2, 1], joints[2, 1] = 0, np.nan
    paths = files(truth={"joints": joints, "joint_weights": weights})
    (table,) = evaluate_files(*paths, table="infantnet", root=HIPS, resamples=0)
    assert table["all", "MPJPE"].n == table["all", "PVE"].n == 6
    assert math.isfinite(table["all", "MPJPE"].value)
    assert_one_line_error(
        run(*paths, "--root", "hip"), "truth.npz: root: expected a list of indices of 'smpl24'"
    )


@pytest.mark.parametrize("by", ["ids", "keypoints"])
def test_invalid_people_do_not_count(bodies, files, by):
    """AGORA leaves out who is hidden too much; nobody misses them."""
    valid = np.arange(8) != 4  # who is not found, either
    valid[1] = False
    without = () if by == "ids" else (("pred", "ids"), ("truth", "ids"))
    people = [read_bodies(path) for path in files(truth={"valid": valid}, without=without)]
    table, detection = relative_human_tables(*people, intervals=NONE)
    assert (table.rows[-1].people, table.rows[-1].missed) == (6, 0)
    assert detection["all", "recall"].value == 1
    assert detection["all", "precision"].value == pytest.approx(1 if by == "ids" else 6 / 7)
    assert "2 people are not valid and do not count" in table.notes
    if by == "ids":
        poses = infantnet_table(*people, intervals=NONE)
        assert (poses.rows[-1].people, poses.rows[-1].missed, poses["all", "MPJPE"].n) == (6, 0, 6)


@pytest.mark.parametrize(
    ("name", "factor"), [("joints", 1000), ("joints", 100), ("vertices", 1000), ("depth", 1000)]
)
@pytest.mark.parametrize("file", ["pred", "truth"])
def test_millimetres_are_refused(bodies, files, name, factor, file):
    arrays = bodies[1] if file == "pred" else bodies[0]
    if name == "depth":
        change = {name: np.full(len(arrays["joints"]), 4.0) * factor}
    else:
        change = {name: arrays[name] * factor}
    result = run(*files(**{file: change}))
    assert_one_line_error(result, f"{file}.npz: {name}: expected metres, got people of ")


def published_scores(counts, missed, false):
    """Precision, recall and F1 as Relative Human's code has them, from numbers of predictions."""
    right = counts - missed
    return [round(right / (right + part), 2) for part in (false, missed, 0.5 * (false + missed))]


def test_relative_human_as_published(bodies, files):
    """Hidden keypoints at (-2, -2) blow boxes up, so that people far from there are not found."""
    keypoints = np.concatenate([bodies[0]["keypoints"] + 900, np.ones((8, 17, 1))], -1)
    keypoints[::2, :6, 2] = 0
    keypoints[1, 1:, 2] = 0
    paths = files(
        pred={"keypoints": bodies[1]["keypoints"] + 900}, truth={"keypoints": keypoints},
        without=[("pred", "ids"), ("truth", "ids")],
    )  # fmt: skip
    ours = evaluate_files(*paths, table="relative-human", resamples=0)
    theirs = evaluate_files(*paths, table="relative-human-published", resamples=0)
    assert [table.name for table in theirs] == ["Relative Human, as published", "Detection, as published"]
    assert theirs[0].rows[-1].missed > ours[0].rows[-1].missed
    missed, count = theirs[0].rows[-1].missed, 7
    false = count - (8 - missed)
    expected = published_scores(count, missed, false)
    found = [theirs[1]["all", name].value for name in ("precision", "recall", "F1")]
    assert found == expected


def test_one_visible_keypoint_counts_as_minus_1_as_published(bodies, files):
    keypoints = np.concatenate([bodies[0]["keypoints"] + 900, np.ones((8, 17, 1))], -1)
    keypoints[0, 1:, 2] = 0
    paths = files(pred={"keypoints": bodies[1]["keypoints"] + 900}, truth={"keypoints": keypoints})
    ours, theirs = (
        evaluate_files(*paths, table=name, resamples=0)[0]["all", "mPCKh"]
        for name in ("relative-human", "relative-human-published")
    )
    assert (ours.n, theirs.n) == (6, 7)
    assert theirs.value == pytest.approx((6 * ours.value - 1) / 7)
