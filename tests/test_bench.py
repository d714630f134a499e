import contextlib
import itertools
import time

import pytest
import torch
from typer.testing import CliRunner

import agebody
from agebody.pipelines import bench
from agebody.pipelines.cli import app

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def exact(mannequin_asset):
    return agebody.SMPL(mannequin_asset, dtype=torch.float64)


def test_functions_are_timed_in_turn_and_slower_ones_take_longer():
    calls = []

    def wait(name, seconds):
        def function():
            calls.append(name)
            time.sleep(seconds)

        return function

    times = bench.interleaved({"short": wait("short", 0.001), "long": wait("long", 0.004)}, seconds=0.1)
    assert times["short"].median >= 0.001
    assert times["long"].median >= 0.004
    for timing in times.values():
        assert timing.low <= timing.median <= timing.high
        assert timing.calls >= bench.FEWEST_CALLS
    timed = calls[2 * bench.WARM_UP :]
    turns = [(name, len(list(group))) for name, group in itertools.groupby(timed)]
    # The order is turned round by round, so that the last of one round may be the first of the next one.
    assert {length for _, length in turns} <= {bench.CALLS_IN_TURN, 2 * bench.CALLS_IN_TURN}
    assert timed.count("short") == timed.count("long") == times["long"].calls


def test_calls_are_repeated_until_their_medians_agree(monkeypatch):
    """A clock that counts seconds: each call takes as long as told."""
    now = 0.0
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)

    def calls(duration):
        nonlocal now
        now, count = 0.0, 0

        def function():
            nonlocal now, count
            count += 1
            now += duration(count)

        return bench.interleaved({"only": function}, seconds=20)["only"].calls

    assert calls(lambda count: 1.0) == 20
    assert calls(lambda count: 1.5 if count < 10 else 1.0) > 20
    assert calls(lambda count: 1.1**count) == 18  # never stable: ends after three times as long


def test_a_slow_function_is_called_once_per_turn(monkeypatch):
    monkeypatch.setattr(bench, "SLOW", 0.0)
    calls = []
    times = bench.interleaved({"only": lambda: calls.append(1)}, seconds=0)
    assert times["only"].calls == bench.FEWEST_CALLS
    assert len(calls) == bench.WARM_UP + bench.FEWEST_CALLS


def test_cuda_times_run_from_the_end_of_one_call_to_the_end_of_the_next(monkeypatch):
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.milliseconds = clock[0]

        def elapsed_time(self, other):
            return other.milliseconds - self.milliseconds

    def work(milliseconds):
        def function():
            clock[0] += milliseconds

        return function

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = bench.interleaved({"short": work(1.0), "long": work(3.0)}, device="cuda", seconds=0)
    assert times["short"].median == pytest.approx(1e-3)
    assert times["long"].median == pytest.approx(3e-3)


def test_no_functions():
    assert bench.interleaved({}, seconds=1) == {}


def test_arguments_are_equal_in_every_call():
    first, second = bench.sample_arguments(3), bench.sample_arguments(3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    shapes = {name: tuple(value.shape) for name, value in first.items()}
    assert shapes == {"betas": (3, 10), "body_pose": (3, 69), "global_orient": (3, 3), "transl": (3, 3)}


def test_the_bound_is_the_products_alone():
    product, products = bench.blend_products(5, 7, 2)
    assert product().shape == (2, 21)
    assert [tuple(result.shape) for result in products()] == [(2, 21), (2, 5)]


def test_the_bound_has_the_size_of_the_body(exact):
    assert bench.num_coefficients(exact) == 1 + 10 + 207


def test_right_results_pass(exact, mannequin_asset):
    body = agebody.SMPL(mannequin_asset)
    difference = bench.compare(lambda **arguments: body(**arguments).vertices, exact)
    assert 0 < difference < bench.VERTEX_TOLERANCE


def test_wrong_vertices_are_found(exact, mannequin_asset):
    body = agebody.SMPL(mannequin_asset)

    def wrong(**arguments):
        vertices = body(**arguments).vertices
        shift = torch.zeros_like(vertices)
        shift[-1, -1, 0] = 2 * bench.VERTEX_TOLERANCE
        return vertices + shift

    with pytest.raises(ValueError, match=r"vertices differ by [\d.]+ mm") as error:
        bench.compare(wrong, exact)
    millimetres = float(str(error.value).split()[3])
    assert millimetres == pytest.approx(2e3 * bench.VERTEX_TOLERANCE, abs=1e-3)  # rounding of float32


def test_wrong_gradients_are_found(exact, mannequin_asset):
    body = agebody.SMPL(mannequin_asset)

    def wrong(**arguments):
        pose = arguments["body_pose"]
        half = pose.detach() + 0.5 * (pose - pose.detach())
        return body(**{**arguments, "body_pose": half}).vertices

    with pytest.raises(ValueError, match="gradient in body_pose differs by 0.5"):
        bench.compare(wrong, exact)


def test_nan_is_a_wrong_result(exact):
    with pytest.raises(ValueError, match="vertices differ"):
        bench.compare(lambda **arguments: torch.full((16, 6890, 3), torch.nan), exact)


@pytest.fixture(scope="module")
def report(mannequin_asset):
    return bench.run_bench(mannequin_asset, batches=(1, 3), seconds=0)


def test_report(report):
    assert (report.device, report.backend) == ("cpu", "torch")
    assert [row.batch for row in report.rows] == [1, 1, 1, 3, 3, 3]
    subjects = [row.subject for row in report.rows[:3]]
    assert subjects == ["forward", "forward + backward", 'keypoints("coco17")']
    assert report.largest_difference < 2 * bench.VERTEX_TOLERANCE
    for row in report.rows:
        assert row.speedup == row.peer.median / row.agebody.median
    assert [row.bound is None for row in report.rows[:3]] == [False, False, True]
    assert report.rows[0].over_bound == report.rows[0].agebody.median / report.rows[0].bound.median


def test_without_smplx_a_hint_replaces_the_ratio(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "smplx", None)
    result = RUNNER.invoke(app, ["bench", "--batch", "2", "--seconds", "0"])
    assert result.exit_code == 0, result.output
    assert "pip install smplx" in result.output
    assert "differ" not in result.output


def test_command():
    result = RUNNER.invoke(app, ["bench", "--batch", "2", "--batch", "4", "--seconds", "0"])
    assert result.exit_code == 0, result.output
    assert "agebody (torch) on cpu" in result.output
    rows = [line for line in result.output.splitlines() if line.startswith("│")]
    assert len(rows) == 6
    assert "vertices of agebody and smplx differ by at most" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "numpy"), "expected auto, torch, warp"),
        (("--device", "tpu"), "expected cpu, cuda"),
        (("--batch", "0"), "batch"),
    ],
)
def test_wrong_options(options, message):
    result = RUNNER.invoke(app, ["bench", *options])
    assert result.exit_code == 2
    assert message in result.output
