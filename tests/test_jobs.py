"""Jobs for many workers: which is next, what is tried again, and what ends the call."""

import errno
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import types
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import agebody
from agebody.pipelines.jobs import backends, cluster
from agebody.pipelines.jobs.backends import start_workers
from agebody.pipelines.jobs.cluster import Cluster, check_cluster
from agebody.pipelines.jobs.schedule import Done, Failed, Schedule, choose_part, run_jobs
from agebody.pipelines.labels import fit_dataset
from agebody.pipelines.synthesis import synthesize


class Scripted:
    """One worker on a clock of its own, whose outcomes are given in advance."""

    def __init__(self, outcomes, size=1):
        self.outcomes = {job: list(its) for job, its in outcomes.items()}
        self.size, self.time, self.running, self.began = size, 0.0, [], []

    def window(self):
        return self.size

    def now(self):
        return self.time

    def start(self, job):
        self.running.append(job)
        self.began.append((job, self.time))

    def wait(self, seconds):
        if not self.running:
            self.time += seconds
            return []
        self.time += 0.25
        job = self.running.pop(0)
        outcome = self.outcomes[job].pop(0)
        return [(job, Done("one", job) if outcome is None else outcome)]


def lost():
    return Failed(RuntimeError("its worker ended"), retry=True)


def test_jobs_begin_in_their_order_and_again_after_pauses():
    workers = Scripted({"a": [lost(), lost(), lost(), lost(), None], "b": [None], "c": [None]})
    found = list(run_jobs(workers, ["a", "b", "c"]))
    assert [(job, type(outcome)) for job, outcome in found] == [("b", Done), ("c", Done), ("a", Done)]
    began = [now for job, now in workers.began if job == "a"]
    pauses = [round(later - now - 0.25, 2) for now, later in pairwise(began)]
    assert pauses == [1, 2, 4, 4]
    assert [job for job, _ in workers.began][:3] == ["a", "b", "c"]  # nothing waits for the pause


@pytest.mark.parametrize("retries", [0, 2])
def test_a_job_fails_after_its_last_attempt_and_the_others_are_done(retries):
    workers = Scripted({1: [lost()] * 9, 2: [None], 3: [Failed(ValueError("bad"))]})
    found = dict(run_jobs(workers, [1, 2, 3], max_retries=retries))
    assert isinstance(found[1], Failed)
    assert [job for job, _ in workers.began].count(1) == 1 + retries
    assert [job for job, _ in workers.began].count(3) == 1  # its reason lasts
    assert found[2] == Done("one", 2)


def test_a_full_disk_ends_the_call():
    full = Failed(OSError(errno.ENOSPC, "No space left on device", "labels/a"))
    workers = Scripted({1: [None], 2: [full], 3: [None]})
    with pytest.raises(OSError, match="No space left"):
        list(run_jobs(workers, [1, 2, 3]))
    assert [job for job, _ in workers.began] == [1, 2]


def test_the_window_bounds_started_jobs():
    schedule = Schedule(range(5))
    assert [schedule.take(0.0) for _ in range(6)] == [0, 1, 2, 3, 4, None]
    assert (schedule.running, schedule.left) == (5, 5)
    assert schedule.record(3, Done("one", None), 0.0)
    assert not schedule.record(4, lost(), 0.0)
    assert (schedule.running, schedule.left, schedule.due()) == (3, 4, 1.0)
    assert schedule.take(0.5) is None
    assert schedule.take(1.0) == 4


def test_a_cluster_that_loses_its_workers_takes_little_longer(monkeypatch):
    """Each of 64 workers is lost about once an hour, and is away for two minutes."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    found = importlib.import_module("cluster").simulate(3000, 64, 3600.0, 120.0)
    assert (found["done"], found["twice"]) == (3000, 0)
    assert found["lost"] > 10
    assert found["ratio"] < 1.1


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (TimeoutError("the drive"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError("a"), False),
        (PermissionError("a"), False),
        (ValueError("a"), False),
    ],
)
def test_transient_failures_are_retried(mannequin_asset, error, again):
    def fail(body, job):
        raise error

    body = agebody.SMPL(mannequin_asset)
    with start_workers(body, fail, {}, Cluster(1)) as pool:
        pool.start(1)
        assert pool.wait(0.0) == [(1, Failed(error, again))]


def test_another_version_on_a_worker_is_named():
    do = backends._entry({"agebody": "9.9", "torch": str(torch.__version__).partition("+")[0]})
    said = do([None], 1)
    assert isinstance(said, str)
    assert "agebody is " in said
    assert "here 9.9; install one version on all machines" in said
    assert os.uname().nodename in said


@pytest.fixture
def listener():
    """Listens on a port, and answers what is asked with what the test gives."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers = []

        def serve():
            try:
                link, _ = server.accept()
            except OSError:
                return
            with link:
                link.recv(100)
                if answers:
                    link.sendall(answers[0])
                else:
                    time.sleep(0.5)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", answers


def test_addresses_without_a_cluster_fail_within_seconds(listener, monkeypatch):
    address, _ = listener
    monkeypatch.setattr(cluster, "_PROBE", 0.3)
    with pytest.raises(ConnectionError, match="no Ray cluster: did not answer"):
        cluster.probe(address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for where, said in (
        (f"127.0.0.1:{free}", "no Ray cluster: connection refused"),
        (f"ray://127.0.0.1:{free}", "no Ray cluster: connection refused"),
        ("no-such-machine.invalid:6379", "no machine named no-such-machine.invalid"),
        ("127.0.0.1:99999", "expected a port"),
    ):
        with pytest.raises(ConnectionError, match=said):
            cluster.probe(where)


@pytest.mark.parametrize("start", [fit_dataset, synthesize])
def test_an_address_is_refused_before_a_folder_is_made(ray, mannequin_asset, tmp_path, start):
    given = [tmp_path / "people"] if start is fit_dataset else []
    with pytest.raises(ConnectionError, match="127.0.0.1:1: no Ray cluster: connection refused"):
        start(agebody.SMPL(mannequin_asset), *given, tmp_path / "new", cluster=Cluster(address="127.0.0.1:1"))
    assert list(tmp_path.iterdir()) == ray.said == []


SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
REFUSED = b"\x00\x0bgrpc-status\x0216\x00\x0cgrpc-message>InvalidAuthToken: Authentication token is missing"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "something else than a Ray cluster"),
        (SETTINGS, None),
        (SETTINGS + REFUSED, "wants a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"),
    ],
)
def test_servers_that_refuse_a_call_or_do_not_speak_its_protocol_are_told_apart(
    listener, answer, said, monkeypatch
):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # which Ray sets where it starts a cluster
    address, answers = listener
    answers.append(answer)
    refused = pytest.raises(ConnectionError, match=f"^{address}: [^\n]*{said}[^\n]*$")
    with refused if said else nullcontext():
        cluster.probe(address)


def test_a_token_that_is_given_is_left_to_ray(listener, monkeypatch):
    address, answers = listener
    answers.append(SETTINGS + REFUSED)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster.probe(address)


def test_parts_share_the_jobs():
    paths = [Path(str(i)) for i in range(10)]
    parts = [choose_part(paths, i, 4) for i in range(4)]
    assert sorted(path for part in parts for path in part) == sorted(paths)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match="index: expected 0 to 3, got 4"):
        choose_part(paths, 4, 4)


def test_a_claim_is_that_of_a_process_that_lives(tmp_path):
    from agebody.pipelines.labels.at_scale import DatasetReport, _Lease

    path = tmp_path / "report.json"
    _Lease(path, 60.0).save(DatasetReport(3))
    _Lease(path, 60.0)  # our own
    saved = json.loads(path.read_text())
    for changes, refused in (
        ({"pid": os.getppid()}, True),
        ({"pid": 2**22 - 3}, False),  # no such process
        ({"pid": os.getppid(), "until": time.time() - 1}, False),  # a number that was given again
        ({"host": "another"}, True),
        ({"host": "another", "until": time.time() - 1}, False),
    ):
        path.write_text(json.dumps({**saved, "running": {**saved["running"], **changes}}))
        if refused:
            with pytest.raises(FileExistsError, match=r"process \d+ on .* fits these shards; wait for it"):
                _Lease(path, 60.0)
        else:
            _Lease(path, 60.0)
    for text in ("no", "[]", '{"running": null}'):
        path.write_text(text)
        _Lease(path, 60.0)


@pytest.fixture
def ray(monkeypatch):
    """Stand in for Ray: says what is called, and may be interrupted as it starts."""
    said, signals = [], []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore in the background

    def init(runtime_env, **where):
        if "TypeError" in str(runtime_env):
            raise TypeError("env_vars: not text\nmore")
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
        said.append("started")

    fake = types.ModuleType("ray")
    fake.__dict__.update(init=init, is_initialized=lambda: False, shutdown=lambda: said.append("ended"))
    fields = {"RuntimeEnv": types.SimpleNamespace(known_fields={"env_vars"})}
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.runtime_env", types.SimpleNamespace(**fields))
    yield types.SimpleNamespace(said=said, signals=signals)
    signal.signal(signal.SIGINT, before)


def test_a_start_that_is_interrupted_is_ended_as_a_whole(ray):
    ray.signals.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), backends._start_ray(Cluster(2)):
        pass
    assert ray.said == ["started", "ended"]


def test_a_start_that_fails_becomes_one_line(ray, monkeypatch):
    def init(**where):
        raise ConnectionError("gone\nmore")

    monkeypatch.setattr(sys.modules["ray"], "init", init)
    said = pytest.raises(ConnectionError, match="^a:1: Ray cannot be used: gone$")
    with said, backends._start_ray(Cluster(2, "a:1")):
        pass


@pytest.mark.parametrize(("silent", "gone"), [(29.0, False), (31.0, True)])
def test_a_head_that_does_not_answer_ends_the_call(monkeypatch, silent, gone):
    """Ray would end the process a minute after its head, without a report that says so."""
    heads, now = [], [0.0]

    def probe(address):
        heads.append(address)
        if now[0]:
            raise ConnectionError(address)

    monkeypatch.setattr(backends, "probe", probe)
    monkeypatch.setattr(backends._Ray, "now", lambda self: now[0])
    module = SimpleNamespace(
        remote=lambda function: SimpleNamespace(options=lambda **given: None),
        get_runtime_context=lambda: SimpleNamespace(gcs_address="head:1"),
        cluster_resources=lambda: {} if now[0] else {"CPU": 6},
    )
    pool = backends._Ray(module, None, {}, None, "CPU")
    now[0] = silent
    if gone:
        with pytest.raises(ConnectionError, match="head:1: the Ray cluster is gone: its head did not answer"):
            pool.window()
    else:
        assert pool.window() == 12
    assert heads == ["head:1"] * 2


@pytest.mark.parametrize("wrong", ["env_var", "env_vars"])
def test_runtime_environments_that_ray_cannot_use_are_named(ray, wrong):
    refused = pytest.raises(ValueError, match=f"^runtime_env: .*{wrong}[^\n]*$")
    with refused, backends._start_ray(check_cluster(Cluster(2, runtime_env={wrong: "TypeError"}))):
        pass
    assert "started" not in ray.said


def test_handlers_of_signals_are_set_again_after_ray_has_started(ray, monkeypatch):
    again = []
    monkeypatch.setattr(backends.signal, "signal", lambda *handler: again.append(handler))
    with backends._start_ray(Cluster(2)):
        assert again == [(signal.SIGTERM, signal.getsignal(signal.SIGTERM))]


def test_one_worker_here_has_no_environment_of_ray(mannequin_asset, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    body, env = agebody.SMPL(mannequin_asset), {"env_vars": {"A": "1"}}
    refused = pytest.raises(ValueError, match="runtime_env: expected none")
    with refused, start_workers(body, print, {}, Cluster(1, runtime_env=env)):
        pass


@pytest.mark.parametrize("connected", [True, False])
def test_metrics_are_set_where_there_is_a_cluster(ray, monkeypatch, connected):
    found = {}
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: connected)
    monkeypatch.setattr(
        backends, "_gauge", lambda name: SimpleNamespace(set=partial(found.__setitem__, name))
    )
    backends.set_metrics(people_done=12, shards_left=3)
    assert found == ({"people_done": 12, "shards_left": 3} if connected else {})
