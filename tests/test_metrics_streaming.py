"""Accumulators: whatever the batches and processes, the number is that of everything at once."""

import copy
import pickle
import socket
from itertools import pairwise

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from agebody import metrics
from agebody.age import AGE_CLASSES, age_class

torchmetrics = pytest.importorskip("torchmetrics")
streaming = pytest.importorskip("agebody.metrics.streaming")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(count=7, points=17, dim=3, seed=0):
    """Predictions and truth of people, some points without weight and NaN."""
    pred, target = normal(count, points, dim, seed=seed), normal(count, points, dim, seed=seed + 1)
    weights = (normal(count, points, seed=seed + 2) > -1).double()
    weights[:, 11:13] = 1  # the hips
    weights[0] = 0
    return {
        "pred": torch.where(weights[..., None] > 0, pred, torch.nan),
        "target": target,
        "weights": weights,
    }


def with_roots(given):
    return given | {"pred_root": normal(7, 3, seed=8), "target_root": normal(7, 3, seed=9)}


def films():
    pred, target = normal(7, 6, 4, 3, seed=3), normal(7, 6, 4, 3, seed=4)
    weights = torch.ones(7, 6, 1)
    weights[1, 2] = 0
    return {"pred": pred, "target": target, "weights": weights}


def images():
    missed = torch.zeros(7, 5)
    missed[2, 1] = 1
    return {
        "pred": normal(7, 5).abs(), "target": normal(7, 5, seed=1).sign().long(),
        "weights": (normal(7, 5, seed=2) > -1).double(), "missed": missed,
    }  # fmt: skip


def mean(function, **options):
    return streaming.MeanMetric(function, **options)


ROOTS = {name: value[..., 0] if name == "weights" else value[..., 0, :] for name, value in films().items()}
TENSORS = {
    "mpjpe": ({"layout": "coco17"}, people()),
    "pa_mpjpe": ({}, people()),
    "pve": ({}, with_roots(people())),
    "stature_error": (
        {"relative": True},
        {"pred": normal(7), "target": normal(7, seed=1).exp(), "weights": normal(7, seed=2).sign().relu()},
    ),
    "w_mpjpe": ({"segment": 4}, films()),
    "root_trajectory_error": ({}, ROOTS),
    "acceleration_error": ({"fps": 9}, films()),
    "jitter": ({"fps": 9}, {"points": films()["pred"], "weights": films()["weights"]}),
    "foot_sliding": ({"threshold": 2.0}, films()),
    "mrpe": (
        {},
        {"pred": normal(7, 3), "target": normal(7, 3, seed=1), "weights": normal(7, seed=2).sign().relu()},
    ),
    "mpjae": ({"pose_format": "axis_angle"}, people()),
    "joint_limit_violations": (
        {"tolerance": 0.1},
        {"body_pose": normal(7, 23, 3), "weights": (normal(7, 23, seed=2) > -1).double()},
    ),
    "joint_errors": ({"layout": "coco17", "reduction": "mean"}, people()),
    "pck_auc": ({"max_threshold": 1.0}, people(dim=2)),
    "pck": ({"threshold": 1.0}, people(dim=2)),
    "mpckh": ({"threshold": 0.4}, people(dim=2)),
    "oks": ({}, people(dim=2) | {"area": 1 + normal(7).abs()}),
    "pcod": ({"threshold": 0.1}, images() | {"target": normal(7, 5, seed=1)}),
}
CASES = {
    name: (
        mean(getattr(metrics, name), **{key: o for key, o in options.items() if key != "reduction"}),
        getattr(metrics, name),
        options,
        tensors,
    )
    for name, (options, tensors) in TENSORS.items()
} | {"pcdr": (streaming.PCDR(threshold=0.1), metrics.pcdr, {"threshold": 0.1}, images())}


def test_every_mean_is_in_the_table():
    assert {name for name in metrics.__all__ if hasattr(getattr(metrics, name), "errors")} == set(TENSORS)


def part(given, rows):
    """Some of the entries, in the order in which the metric takes them."""
    return {name: value[rows] for name, value in given.items()}


@settings(max_examples=4)
@given(cuts=st.lists(st.integers(0, 7), max_size=3), merged=st.booleans())
@pytest.mark.parametrize("name", CASES)
def test_batches_equal_all_at_once(name, cuts, merged):
    metric, function, options, arguments = CASES[name]
    expected = function(**arguments, **options).double()
    metric = metric.clone()
    bounds = [0, *sorted(cuts), 7]
    for start, end in pairwise(bounds):
        batch = part(arguments, slice(start, end))
        if merged and start:
            other = CASES[name][0].clone()
            other.update(**batch)
            metric.merge_state(other)
        else:
            metric.update(**batch)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)
    metric.reset()
    assert metric.total == 0 if name != "pcdr" else not metric.pairs.any()


@pytest.mark.parametrize("name", CASES)
def test_sums_are_float64_without_gradients(name):
    metric, _, _, arguments = CASES[name]
    metric = pickle.loads(pickle.dumps(copy.deepcopy(metric)))
    low = {
        key: (value.float() if value.is_floating_point() else value).requires_grad_(key == "pred")
        for key, value in arguments.items()
    }
    assert metric(**low).dtype == torch.float64
    assert not metric.compute().requires_grad


def test_float32_is_added_up_in_float64():
    pred, target = torch.full((100_001,), 1.1), torch.ones(100_001)
    metric = mean(metrics.stature_error)
    metric.update(pred, target)
    # Every term is the same, so their mean is, too: to less than a rounding of float32, 6e-8.
    assert metric.compute().item() == pytest.approx((pred - target)[0].item(), rel=1e-12)


def test_one_keypoint_has_no_head_size():
    given = people(dim=2)
    given["weights"][1] = 0
    given["weights"][1, 4] = 1
    given["pred"] = given["pred"].nan_to_num()
    metric = mean(metrics.mpckh)
    metric.update(**given)
    torch.testing.assert_close(metric.compute(), metrics.mpckh(**given), rtol=1e-12, atol=0)
    assert metric.count == 5


def test_options_are_given_once_or_with_the_batches(unchecked):
    given = people()
    metric = mean(metrics.mpjpe)
    metric.update(**given, layout="coco17")
    assert metric.compute() == metrics.mpjpe(**given, layout="coco17")
    with pytest.raises(TypeError, match="missing .*required .*argument: 'layout'"):
        metric.update(**given)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `reduction`"):
        mean(metrics.pa_mpjpe, reduction="none")
    with pytest.raises(TypeError, match="metric: expected a function of errors, got 'mpjpe'"):
        mean("mpjpe")


def test_custom_function():
    def height(pred, target, weights=None):
        return (pred - target)[..., 1].abs(), weights

    given = {name: value.nan_to_num() for name, value in people().items()}
    metric = mean(height, higher_is_better=False)
    for rows in (slice(0, 3), slice(3, 7)):
        metric.update(**part(given, rows))
    distance = (given["pred"] - given["target"])[..., 1].abs()
    expected = (distance * given["weights"]).sum() / given["weights"].sum()
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-12)
    assert metric.higher_is_better is False

    def other():
        def height(pred, target, weights=None):
            return (pred - target)[..., 0].abs(), weights

        return height

    with pytest.raises(ValueError, match="incoming_state"):
        mean(other()).merge_state(mean(other()))


def test_which_way_is_better():
    assert mean(metrics.pck, threshold=1.0).higher_is_better
    assert mean(metrics.pve).higher_is_better is False


def test_weights_of_people():
    given = {"pred": torch.tensor([1.0, 5.0]), "target": torch.ones(2), "weights": torch.tensor([3.0, 1.0])}
    metric = mean(metrics.stature_error)
    for row in range(2):
        metric.update(**part(given, slice(row, row + 1)))
    assert metric.compute() == metrics.stature_error(**given) == 1


@pytest.mark.parametrize("metric", [case[0] for case in CASES.values()], ids=CASES)
def test_nan_before_the_first_update(metric):
    with pytest.warns(UserWarning, match="compute.*before the ``update``"):
        assert metric.clone().compute().isnan()


def test_normalized_by_f1_of_people_not_of_their_confidences():
    pred, target, some = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0.5, 0.5, 0.25, 0, 0.5])
    metric = streaming.NormalizedError(metrics.mrpe)
    metric.update(pred, target, weights=some, false_positives=0, missed=4)
    expected = metrics.normalized_error(metrics.mrpe(pred, target, weights=some).item(), 4 / 6)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


def test_normalized_by_f1():
    given = people()
    metric = streaming.NormalizedError(metrics.mpjpe, layout="coco17")
    for rows, wrong, missed in ((slice(0, 3), 1, 0), (slice(3, 7), 2, 4)):
        metric.update(**part(given, rows), false_positives=wrong, missed=missed)
    error = metrics.mpjpe(**given, layout="coco17").item()
    f1 = metrics.detection_scores(6, 3, 4).f1  # one of the seven shows nothing
    assert metric.compute().item() == pytest.approx(metrics.normalized_error(error, f1), rel=1e-12)
    metric = streaming.NormalizedError(metrics.pve)
    metric.update(**with_roots(given), false_positives=3, missed=4)
    error = metrics.pve(**with_roots(given)).item()
    assert metric.compute().item() == pytest.approx(metrics.normalized_error(error, f1), rel=1e-12)
    metric.reset()
    metric.update(**part(with_roots(given), slice(0, 1)), false_positives=3, missed=4)
    assert metric.compute().isnan()


NAMES = [kind.name for kind in AGE_CLASSES]


@pytest.mark.parametrize("name", ["mpjpe", "acceleration_error", "pck"])
def test_by_age_class(name):
    metric, function, options, arguments = CASES[name]
    offsets = torch.tensor([0.9, 0.0, 0.1, 0.2, 0.9, 0.9, -0.3], dtype=torch.float64)
    wrapped = streaming.ByAgeClass(metric.clone())
    for rows in (slice(0, 4), slice(4, 7)):
        wrapped.update(**part(arguments, rows), age_offset=offsets[rows])
    found = wrapped.compute()
    assert list(found) == [*NAMES, "all"]
    classes = age_class(offsets)
    for i, kind in enumerate(NAMES):
        chosen = classes == i
        if chosen.any():
            expected = function(**part(arguments, chosen), **options).double()
            torch.testing.assert_close(found[kind], expected, rtol=1e-12, atol=0)
        else:
            assert found[kind].isnan()
    torch.testing.assert_close(found["all"], function(**arguments, **options).double(), rtol=1e-12, atol=0)
    wrapped.reset()
    classes[3:] = -1  # whose age is not known
    wrapped.update(**arguments, age_classes=classes)
    expected = function(**part(arguments, slice(0, 3)), **options).double()
    torch.testing.assert_close(wrapped.compute()["all"], expected, rtol=1e-12, atol=0)


def test_nan_of_one_class_stays_in_it():
    wrapped = streaming.ByAgeClass(mean(metrics.pa_mpjpe))
    pred, target = normal(2, 17, 3), normal(2, 17, 3, seed=1)
    pred[0] = torch.nan
    wrapped.update(pred, target, age_classes=torch.tensor([0, 3]))
    found = wrapped.compute()
    assert found["adult"].isnan()
    assert found["baby"].isfinite()


def test_depth_relations_by_age():
    given, classes = images(), torch.arange(35).reshape(7, 5) % 4
    metric = streaming.PCDR(by_age=True)
    for rows in (slice(0, 2), slice(2, 7)):
        metric.update(**part(given, rows), age_classes=classes[rows])
    expected = [*metrics.pcdr(**given, age_classes=classes), metrics.pcdr(**given)]
    found = metric.compute()
    assert list(found) == [*NAMES, "all"]
    torch.testing.assert_close(list(found.values()), expected, rtol=1e-12, atol=0)


def detections():
    """Of seven people in five images, with a crowd and some who were not found."""
    target = 100 * normal(7, 17, 2, seed=5)
    found = torch.tensor([0, 1, 2, 2, 4, 5])
    people = torch.tensor([0, 0, 1, 2, 2, 3, 4])
    return {
        "pred": target[found] + 9 * normal(6, 17, 2, seed=6), "scores": normal(6, seed=7).sigmoid(),
        "pred_images": people[found],
    }, {
        "target": target, "areas": 2e4 + 1e3 * normal(7, seed=8), "target_images": people,
        "weights": (normal(7, 17, seed=9) > -1).double(), "crowd": torch.arange(7) == 5,
    }  # fmt: skip


def by_image(chosen):
    found, people = detections()
    return part(found, torch.isin(found["pred_images"], chosen)) | part(
        people, torch.isin(people["target_images"], chosen)
    )


def test_average_precision():
    metric = streaming.KeypointAveragePrecision()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert all(value.isnan() for value in metric.clone().compute().values())
    for chosen in (torch.tensor([3, 1]), torch.tensor([0, 2, 4])):
        metric.update(**by_image(chosen))
    found, people = detections()
    expected = metrics.keypoint_ap(**found, **people)
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(
        expected._asdict(), abs=1e-12, nan_ok=True
    )
    assert 0.1 < expected.AP < 0.9
    boxes = {"boxes": torch.ones(7, 4, dtype=torch.float64), "pred_areas": torch.full((6,), 2e4).double()}
    metric.reset()
    metric.update(**found, **people, **boxes)
    expected = metrics.keypoint_ap(**found, **people, **boxes)
    assert metric.compute()["AP_large"].item() == pytest.approx(expected.AP_large)


def test_in_a_collection():
    collection = torchmetrics.MetricCollection(
        {"mpjpe": mean(metrics.mpjpe, layout="coco17"), "pa": streaming.ByAgeClass(mean(metrics.pa_mpjpe))}
    )
    given = people()
    collection["mpjpe"].update(**given)
    collection["pa"].update(**given, age_offset=torch.zeros(7))
    found = collection.compute()
    assert {"mpjpe", "adult", "all"} <= {name.removeprefix("pa_") for name in found}


POINTS = {
    "strict": mean(metrics.pck, threshold=0.05),
    "lax": mean(metrics.pck, threshold=0.5),
    "mpjpe": mean(metrics.mpjpe, layout="coco17"),
    "nose": mean(metrics.mpjpe, layout="coco17", root=["nose"]),
    "pa": mean(metrics.pa_mpjpe),
}
AGES = {"strict": streaming.ByAgeClass(POINTS["strict"]), "lax": streaming.ByAgeClass(POINTS["lax"])}


@pytest.mark.parametrize(("kinds", "ages"), [(POINTS, {}), (AGES, {"age_offset": torch.zeros(2)})])
def test_collections_keep_states_of_different_metrics_apart(kinds, ages):
    """All are 0 or 1 after the first batch, of people who are where they should be."""
    together = torchmetrics.MetricCollection({name: metric.clone() for name, metric in kinds.items()})
    alone = {name: metric.clone() for name, metric in kinds.items()}
    target = normal(2, 17, 3)
    for pred in (target, target + 0.1 * normal(2, 17, 3, seed=1)):
        together.update(pred, target, **ages)
        for metric in alone.values():
            metric.update(pred, target, **ages)
    found = together.compute()
    for name, metric in alone.items():
        value = metric.compute()
        if ages:
            assert found[f"{name}_all"] == value["all"]
        else:
            assert found[name] == value
    assert len(together.compute_groups) == len(kinds)


def test_a_collection_shares_the_sums_of_equal_metrics():
    strict = mean(metrics.pck, threshold=0.05, sync_on_compute=False)
    same = torchmetrics.MetricCollection({"a": strict, "b": strict.clone()})
    same.update(normal(2, 17, 3), normal(2, 17, 3))
    assert len(same.compute_groups) == 1
    expected = "MeanMetric(agebody.metrics.correctness.pck, threshold=0.05, sync_on_compute=False)"
    assert repr(copy.deepcopy(strict)) == expected


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_computed_with_in_float32(name, dtype):
    metric, _, _, arguments = CASES[name]
    low, wide = metric.clone(), metric.clone()
    rounded = {key: v.to(dtype) if v.is_floating_point() else v for key, v in arguments.items()}
    low.update(**rounded)
    wide.update(**{key: v.float() if v.is_floating_point() else v for key, v in rounded.items()})
    assert low.compute() == wide.compute()


def test_only_means_of_errors_are_split_by_age():
    with pytest.raises(TypeError, match=r"metric: expected .* a mean of errors, got NormalizedError"):
        streaming.ByAgeClass(streaming.NormalizedError(metrics.pve))


def test_boxes_and_areas_may_come_with_some_batches():
    found, there = detections()
    everywhere = {"boxes": torch.ones(7, 4), "pred_areas": torch.full((6,), 2e4)}
    metric = streaming.KeypointAveragePrecision()
    metric.update(**found, **there, **everywhere)
    more = {name: value + 10 if name.endswith("images") else value for name, value in (found | there).items()}
    metric.update(**more)
    nowhere = {name: torch.full_like(value, torch.nan) for name, value in everywhere.items()}
    expected = metrics.keypoint_ap(
        **{name: torch.cat([value, more[name]]) for name, value in (found | there).items()},
        **{name: torch.cat([value, nowhere[name]]) for name, value in everywhere.items()},
    )
    assert metric.compute()["AP"].item() == expected.AP
    expected = metrics.keypoint_ap(**found, **there)
    assert metrics.keypoint_ap(**found, **there, **nowhere) == pytest.approx(expected, abs=0, nan_ok=True)
    with pytest.raises(ValueError, match=r"target: expected shape \(\*batch, 17, 2\), got \(7, 16, 2\)"):
        metric.update(**found, **there | {"target": there["target"][:, 1:]})


def half_of_the_detections(rank):
    """All of the processes but the last say what is visible; it has others' types and nothing masked."""
    given = by_image(torch.tensor([0, 1]) if rank else torch.tensor([2, 3, 4]))
    if rank:
        return {name: v.float() if v.is_floating_point() else v for name, v in given.items()} | {
            "weights": None, "crowd": None,
        }  # fmt: skip
    return given | {
        "weights": given["weights"] > 0, "boxes": torch.ones(len(given["target"]), 4),
        "pred_areas": torch.full((len(given["pred"]),), 2e4),
    }  # fmt: skip


def average_precision_of(*ranks):
    metric = streaming.KeypointAveragePrecision()
    for rank in ranks:
        metric.update(**half_of_the_detections(rank))
    return metric.compute()


def one_process(rank, port, folder):
    """Half of the people; the second of two also has an empty batch."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    rows = slice(0, 3) if rank == 0 else slice(3, 7)
    found = []
    for name in ("mpjpe", "pcdr"):
        metric, _, _, arguments = CASES[name]
        metric = metric.clone()
        metric.update(**part(arguments, rows))
        if rank:
            metric.update(**part(arguments, slice(7, 7)))
        found.append(metric.compute())
    wrapped = streaming.ByAgeClass(mean(metrics.pa_mpjpe))
    wrapped.update(**part(people(), rows), age_offset=torch.linspace(0, 1, 7)[rows])
    found.append(wrapped.compute()["all"])
    metric = streaming.KeypointAveragePrecision()
    metric.update(**by_image(torch.tensor([0, 1]) if rank else torch.tensor([2, 3, 4])))
    found.append(metric.compute()["AP"])
    for ranks in ((0, 1), (0,), (1,)):  # who has seen anything
        metric = streaming.KeypointAveragePrecision()
        if rank in ranks:
            metric.update(**half_of_the_detections(rank))
        found.append(metric.compute())
    metric.update(**half_of_the_detections(rank))  # goes on after the others' part is given back
    found.append(metric.compute())
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(one_process, (port, str(tmp_path)), nprocs=2, start_method="fork")
    expected = [CASES[n][1](**CASES[n][3], **CASES[n][2]).double() for n in ("mpjpe", "pcdr")]
    expected.append(metrics.pa_mpjpe(**people()))
    given, there = detections()
    expected.append(torch.tensor(metrics.keypoint_ap(**given, **there).AP, dtype=torch.float64))
    both = average_precision_of(0, 1)
    expected += [both, average_precision_of(0), average_precision_of(1), average_precision_of(0, 1, 1)]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "expected either age_classes or age_offset"),
        ({"age_classes": torch.zeros(7, dtype=torch.long), "age_offset": torch.zeros(7)}, "expected either"),
        ({"age_offset": torch.zeros(6)}, r"one for each of \(7,\) entries, got \(6,\)"),
    ],
)
def test_wrong_ages(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        streaming.ByAgeClass(mean(metrics.pa_mpjpe)).update(**people(), **change)
    with pytest.raises(ValueError, match="age_classes: expected None with by_age=False"):
        streaming.PCDR().update(**images(), age_classes=torch.zeros(7, 5, dtype=torch.long))


def test_a_person_of_unknown_age_offset_counts_nowhere():
    wrapped = streaming.ByAgeClass(mean(metrics.pa_mpjpe))
    pred, target = normal(3, 17, 3), normal(3, 17, 3, seed=1)
    wrapped.update(pred, target, age_offset=torch.tensor([0.0, torch.nan, 0.9]))
    found = wrapped.compute()
    torch.testing.assert_close(found["baby"], metrics.pa_mpjpe(pred[2], target[2]).double())
    torch.testing.assert_close(found["all"], metrics.pa_mpjpe(pred[::2], target[::2]).double())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mean(metrics.mpjpe, layout="smpl24"), mean(metrics.mpjpe, layout="h36m17")),
        (mean(metrics.mpjpe, layout="smpl24"), mean(metrics.joint_errors, layout="smpl24")),
        (mean(metrics.pck, threshold=0.1), mean(metrics.pck, threshold=0.2)),
        (
            streaming.ByAgeClass(mean(metrics.pck, threshold=0.1)),
            streaming.ByAgeClass(mean(metrics.pck, threshold=0.2)),
        ),
        (streaming.PCDR(), streaming.PCDR(same_layer=0.2)),
        (
            streaming.NormalizedError(metrics.mpjpe, layout="smpl24"),
            mean(metrics.mpjpe, layout="smpl24"),
        ),
        (streaming.KeypointAveragePrecision(), streaming.KeypointAveragePrecision(max_detections=1)),
    ],
)
def test_states_of_other_arguments_are_not_merged(one, other):
    for state in (other, other.metric_state):
        with pytest.raises(ValueError, match=r"incoming_state: expected the state of another "):
            one.merge_state(state)
    one.merge_state(one.clone())
    one.merge_state(one.clone().metric_state)
