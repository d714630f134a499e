"""What a cluster loses while a data set is fitted on it: the labels are the same, once, and nothing else.

Two nodes run on this machine. The tests take minutes and are run by `make faults`.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import psutil
import pytest
from cluster import observed_people

import agebody
from agebody.annotations import write_shards
from agebody.pipelines.jobs import backends
from agebody.pipelines.labels import Cluster, at_scale, fit_dataset, load_label_shards
from agebody.stores import to_path

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("unchecked", "bounded"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own processes and sockets
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SHARDS, A_SHARD = 14, 6
SECONDS = 600
"""Within which each test ends."""
STORE = 100 << 20


@pytest.fixture
def bounded():
    def stop(number, frame):
        raise TimeoutError(f"not over after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset)


@pytest.fixture(scope="module")
def people(body, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_shards(observed_people(body, SHARDS * A_SHARD, seed=5), folder, people_per_shard=A_SHARD)
    return folder


@pytest.fixture(scope="module")
def expected(body, people, tmp_path_factory):
    """The labels of one process, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    fit_dataset(body, people, folder, cluster=Cluster(1))
    return labels_of(folder)


def labels_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def written(folder):
    """Return which files are there, and when they were written."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def head():
    """A cluster of one node of one CPU."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    nodes = Nodes(initialize_head=True, head_node_args=options)
    yield nodes
    ray.shutdown()
    with suppress(Exception):
        nodes.shutdown()


@pytest.fixture
def nodes(head):
    """The same with a second node, which a test may end."""
    before = list(head.worker_nodes)
    head.add_node(num_cpus=1, object_store_memory=STORE)
    yield head
    for node in set(head.worker_nodes) - set(before):
        with suppress(Exception):
            head.remove_node(node, allow_graceful=False)


def end_node(nodes, number):
    node = max(nodes.worker_nodes, key=lambda one: one.all_processes["raylet"][0].process.pid)
    os.kill(node.all_processes["raylet"][0].process.pid, number)


def when(**events):
    """Return what is called with the report, and does things once some shards are done: ``at4=function``."""
    left = {int(name.removeprefix("at")): event for name, event in events.items()}

    def progress(report):
        for count in [count for count in left if count <= report.shards_done]:
            left.pop(count)(report)

    return progress


def fit(body, people, folder, nodes, progress=lambda report: None, **options):
    return fit_dataset(
        body, people, folder, cluster=Cluster(address=nodes.address), progress=progress, **options
    )


def assert_whole(report, folder, expected, found_done=0):
    assert (report.shards_done, report.shards_left, report.bad) == (SHARDS, 0, {})
    assert report.shards_found_done == found_done
    # Twice would be more; less is a shard whose worker was lost just after it had written.
    assert sum(its["shards"] for its in report.workers.values()) <= SHARDS - found_done
    assert labels_of(folder) == expected
    assert sorted(os.listdir(folder)) == [*expected, "report.json"]
    assert json.loads((folder / "report.json").read_text())["running"] is None
    assert len(load_label_shards(folder)) == SHARDS * A_SHARD


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_a_node_is_lost_and_another_joins(number, nodes, body, people, expected, tmp_path):
    def join(report):
        nodes.add_node(num_cpus=1, object_store_memory=STORE)

    done = {}

    def lose(report):
        end_node(nodes, number)
        done.update(written(tmp_path))

    report = fit(body, people, tmp_path, nodes, when(at4=lose, at7=join))
    assert len(report.workers) >= 2
    assert_whole(report, tmp_path, expected)
    assert len(done) >= 4
    assert written(tmp_path).items() >= done.items()


def test_workers_are_killed_on_three_shards(nodes, body, people, expected, tmp_path):
    killed = []

    def kill(report):
        pids = [int(name.rpartition("-")[2]) for name in report.workers]
        pid = next(pid for pid in pids if pid not in killed and psutil.pid_exists(pid))
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    report = fit(body, people, tmp_path, nodes, when(at2=kill, at5=kill, at8=kill))
    assert len(set(killed)) == 3
    assert len(report.workers) >= 4
    assert_whole(report, tmp_path, expected)


DRIVER = """
import os, signal, sys
import agebody
from agebody.age import parse_ages
from agebody.pipelines.jobs import backends
from agebody.pipelines.labels import Cluster, fit_dataset

def kill(report):
    if report.shards_done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

body = agebody.SMPLA(agebody.mannequin())
fit_dataset(body, sys.argv[1], sys.argv[2], cluster=Cluster(address=sys.argv[3]), progress=kill)
"""


def workers_of(nodes):
    """Return the processes of workers of all nodes that have a job."""
    found = []
    for node in (nodes.head_node, *nodes.worker_nodes):
        with suppress(psutil.Error):
            for process in psutil.Process(node.all_processes["raylet"][0].process.pid).children():
                with suppress(psutil.Error):  # it has ended
                    name = "".join(process.cmdline())
                    found += (
                        [process] if "ray::" in name and "IDLE" not in name and "Agent" not in name else []
                    )
    return found


def test_the_call_is_killed_and_given_again(nodes, body, people, expected, tmp_path):
    killed = subprocess.run([sys.executable, "-c", DRIVER, people, tmp_path, nodes.address], check=False)
    assert killed.returncode == -signal.SIGKILL
    end = time.monotonic() + 60
    while workers_of(nodes) and time.monotonic() < end:
        time.sleep(0.2)
    assert not workers_of(nodes)
    done = written(tmp_path)
    assert 5 <= len(done) < SHARDS
    report = fit(body, people, tmp_path, nodes)
    assert_whole(report, tmp_path, expected, found_done=len(done))
    assert written(tmp_path).items() >= done.items()


def poisoned(bad, work):
    """Return a `fit_shard` that does something else on one shard; nested, so that it travels by value."""

    def fit_or_fail(body, shard, output, **options):
        from agebody.pipelines.labels import fit_shard  # wrapped for these tests, it could not travel

        if shard.stem.endswith(bad):
            work()
        return fit_shard(body, shard, output, **options)

    return fit_or_fail


def test_a_shard_ends_each_worker_that_touches_it(nodes, body, people, expected, tmp_path, monkeypatch):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(at_scale, "fit_shard", poisoned("00003", die))
        cluster = Cluster(address=nodes.address, max_retries=2)
        report = fit_dataset(body, people, tmp_path, cluster=cluster, skip_bad=True)
    ((path, why),) = report.bad.items()
    assert path.endswith("people-00003.parquet")
    assert "its worker ended (WorkerCrashedError)" in why
    assert (report.shards_done, report.shards_left) == (SHARDS - 1, 0)
    assert labels_of(tmp_path) == {name: data for name, data in expected.items() if "00003" not in name}
    again = fit(body, people, tmp_path, nodes)
    assert_whole(again, tmp_path, expected, found_done=SHARDS - 1)


def test_the_disk_is_full(nodes, body, people, expected, tmp_path, monkeypatch):
    """Data reach a full disk only when they are written out."""

    def fill():
        from agebody import files

        def full(path):
            files._sync = sync
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        sync, files._sync = files._sync, full

    with monkeypatch.context() as patch:
        patch.setattr(at_scale, "fit_shard", poisoned("00008", fill))
        with pytest.raises(OSError, match=r"No space left on device.*people-00008\.parquet") as error:
            fit(body, people, tmp_path, nodes)
    assert "\n" not in str(error.value)
    done = labels_of(tmp_path)
    assert done.items() <= expected.items()
    report = fit(body, people, tmp_path, nodes)
    assert_whole(report, tmp_path, expected, found_done=report.shards_found_done)
    assert report.shards_found_done >= len(done)


def test_a_node_has_another_version(nodes, body, people, tmp_path, monkeypatch):
    described = backends._describe_environment("CPU") | {"agebody": "9.9"}
    monkeypatch.setattr(backends, "_describe_environment", lambda kind: described)
    with pytest.raises(RuntimeError, match="node .*: agebody is .*, here 9.9; install one version"):
        fit(body, people, tmp_path, nodes)
    assert os.listdir(tmp_path) == ["report.json"]


def test_nothing_is_at_the_address(body, people, tmp_path):
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="127.0.0.1:9: no Ray cluster"):
        fit_dataset(body, people, tmp_path / "new", cluster=Cluster(address="127.0.0.1:9"))
    assert time.monotonic() - began < 10
    assert not (tmp_path / "new").exists()


def test_a_call_is_ended(nodes, people, expected, body, tmp_path):
    """TERM leaves finished shards, and a report that says so."""
    command = [sys.executable, "-m", "agebody", "fit-shards", people, "-o", tmp_path, "--body", "mannequin"]
    call = subprocess.Popen([*command, "--address", nodes.address], stderr=subprocess.PIPE, text=True)
    while len(labels_of(tmp_path)) < 3 and call.poll() is None:
        time.sleep(0.2)
    call.terminate()
    _, said = call.communicate(timeout=60)
    assert call.returncode == 128 + signal.SIGTERM, said
    lines = [line for line in said.splitlines() if not line.startswith("note: ")]  # how far it is, every 30 s
    assert lines == ["error: interrupted"], said
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["running"] is None
    assert 0 < saved["shards_left"] < SHARDS
    report = fit(body, people, tmp_path, nodes)
    assert_whole(report, tmp_path, expected, found_done=report.shards_found_done)
    assert report.shards_found_done >= 3


def test_stores_that_refuse_writes(nodes, people, expected, body, monkeypatch):
    """A server of S3 on this machine, which no longer knows the key when some labels are there."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    key = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
    given = {"AWS_ENDPOINT_URL": address, **key}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    folder = to_path("s3://bucket/labels")
    folder.fs.mkdir("bucket")

    def check_keys(first):
        kind = {"Content-Type": "text/plain"}
        ask = urllib.request.Request(f"{address}/moto-api/reset-auth", str(first).encode(), kind)
        urllib.request.urlopen(ask).close()

    def call(progress=lambda report: None):
        cluster = Cluster(address=nodes.address, runtime_env={"env_vars": given})
        return fit_dataset(body, people, "s3://bucket/labels", cluster=cluster, progress=progress)

    refuse = when(at3=lambda report: check_keys(0))
    with pytest.raises(PermissionError, match=r"cannot be .*people-\d+\.parquet") as error:
        call(refuse)
    assert "\n" not in str(error.value)
    check_keys("inf")
    done = labels_of(folder)
    assert 3 <= len(done) < SHARDS
    assert done.items() <= expected.items()
    report = call()
    assert (report.shards_found_done, report.shards_done) == (len(done), SHARDS)
    assert labels_of(folder) == expected
    assert {path.name for path in folder.iterdir()} == {*expected, "report.json"}
    server.stop()
