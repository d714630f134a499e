"""Do many jobs with one body: in this process, or on workers of Ray, of which some may be lost meanwhile."""

from __future__ import annotations

import copy
import errno
import heapq
import logging
import math
import os
import platform
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, no_type_check, runtime_checkable

import torch

from agebody.body import BodyModel
from agebody.files import first_line

_PAUSES = (1.0, 2.0, 4.0)
"""Seconds until a job is tried again, after its first, second and each later failure."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors of the system that another attempt would meet again."""
_PROBE = 3.0
"""Seconds that a cluster has to answer."""
_START = 20.0
"""Seconds that an interrupted start of Ray has to come to its end."""
_OBJECT_STORE = 512 << 20
"""Bytes that local workers share: the body."""
_MISSING = 'several workers need Ray, which is not installed; pip install "agebody[ray]"'


class Cluster(NamedTuple):
    """Where work is done: as it is, on all CPUs of this machine, with Ray.

    A Ray that this process has started already is used, and left running.
    """

    workers: int | None = None
    """How many at once; as many as there are CPUs, or, on CUDA, GPUs, if None. 1 without an address is this
    process, which needs no Ray."""
    address: str | None = None
    """Of a Ray cluster, such as ``"head:6379"``, ``"ray://head:10001"`` or ``"auto"``; else the variable
    ``RAY_ADDRESS`` counts; else Ray is started on this machine and stopped at the end."""
    device: str | None = None
    """Of the workers, which may have a GPU when this machine has none; that of the body if None. Each has a
    CUDA device of its own."""
    num_gpus: float = 1.0
    """GPUs of each worker on CUDA; .5 lets two share one."""
    memory: int | None = None
    """What Ray reserves for each worker [bytes]."""
    runtime_env: Mapping[str, Any] | None = None
    """Of Ray's workers, such as ``{"pip": [...]}`` or ``{"env_vars": {...}}``."""
    max_retries: int = 5
    """How often a job is tried again when its worker is lost, or memory or a drive fails."""


ALL_CPUS, THIS_PROCESS = Cluster(), Cluster(workers=1)


class Done(NamedTuple):
    """The result of a job, and who made it."""

    worker: str
    result: Any


class Failed(NamedTuple):
    """Why a job is not done."""

    error: Exception
    again: bool = False
    """Whether the reason may pass, such as a lost worker or a network drive that does not answer."""


class Schedule:
    """Decide which job is next, and which failure is final.

    It starts nothing and reads no clock, so that a simulation runs the same decisions as a cluster.

    Args:
        jobs: in the order in which they are begun.
        max_retries: how often a job is tried again after a failure that may pass.
    """

    def __init__(self, jobs: Iterable[Any], max_retries: int = ALL_CPUS.max_retries) -> None:
        self._queue = deque(jobs)
        self._later: list[tuple[float, int, Any]] = []
        self._failures: dict[Any, int] = {}
        self._max_retries, self._number = max_retries, 0
        self.running = 0

    @property
    def left(self) -> int:
        """Return how many jobs have no final result."""
        return len(self._queue) + len(self._later) + self.running

    def take(self, now: float) -> Any:
        """Return the next job at a time [s], or None. A job that is due again comes before new ones."""
        if self._later and self._later[0][0] <= now:
            job = heapq.heappop(self._later)[2]
        elif self._queue:
            job = self._queue.popleft()
        else:
            return None
        self.running += 1
        return job

    def due(self) -> float:
        """Return when a job that failed is tried again [s]; infinity if none is waiting."""
        return self._later[0][0] if self._later else math.inf

    def settle(self, job: Any, outcome: Done | Failed, now: float) -> bool:
        """Note an outcome; return whether it is final."""
        self.running -= 1
        failures = self._failures.get(job, 0)
        if isinstance(outcome, Done) or not outcome.again or failures >= self._max_retries:
            return True
        self._failures[job] = failures + 1
        self._number += 1
        pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
        heapq.heappush(self._later, (now + pause, self._number, job))
        return False


@runtime_checkable
class Workers(Protocol):
    """What does the jobs."""

    def window(self) -> int:
        """Return how many jobs should be started at once; more than run, so that no worker waits for one."""
        ...

    def now(self) -> float:
        """Return the time [s]."""
        ...

    def start(self, job: Any) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> Sequence[tuple[Any, Done | Failed]]:
        """Return what has ended, after a while at most."""
        ...


def run_jobs(
    workers: Workers,
    jobs: Iterable[Any],
    max_retries: int = ALL_CPUS.max_retries,
    idle: Callable[[], None] = lambda: None,
) -> Generator[tuple[Any, Done | Failed], None, None]:
    """Yield each job with its final result as soon as it is there.

    Args:
        workers: from `start_workers`.
        jobs: what differs; hashable.
        max_retries: as of `Schedule`.
        idle: called about once a second while nothing ends.

    Raises:
        OSError: the disk of the results is full or may only be read, so no job can be done.
        RuntimeError: workers differ from this process.
    """
    schedule = Schedule(jobs, max_retries)
    while schedule.left:
        now, window = workers.now(), workers.window()
        while schedule.running < window and (job := schedule.take(now)) is not None:
            workers.start(job)
        due = schedule.due() - now if schedule.running < window else math.inf
        ended = workers.wait(min(max(due, 0.0), 1.0))
        for job, outcome in ended:
            error = outcome.error if isinstance(outcome, Failed) else None
            if isinstance(error, OSError) and error.errno in _FULL:
                raise error
            if schedule.settle(job, outcome, workers.now()):
                yield job, outcome
        if not ended:
            idle()


class _Here:
    """This process, which does one job after the other with one thread, as a worker of Ray does."""

    def __init__(self, body: BodyModel, function: Callable[..., Any], call: Mapping[str, Any]) -> None:
        self._do = lambda job: function(body, job, **call)
        self._next: deque[Any] = deque()

    def window(self) -> int:
        return 1

    def now(self) -> float:
        return time.monotonic()

    def start(self, job: Any) -> None:
        self._next.append(job)

    def wait(self, seconds: float) -> list[tuple[Any, Done | Failed]]:
        if not self._next:
            time.sleep(seconds)
            return []
        job = self._next.popleft()
        try:
            return [(job, Done(f"{platform.node()}-{os.getpid()}", self._do(job)))]
        except Exception as error:
            return [(job, Failed(error, _may_pass(error)))]


class _Ray:
    """Tasks of Ray, which finds a worker for each, and another node if one is lost."""

    def __init__(self, ray: Any, shared: Any, options: dict[str, Any], most: int | None, kind: str) -> None:
        self._ray, self._shared, self._most, self._kind = ray, shared, most, kind
        # Ray would repeat tasks that ran out of memory without end, so all attempts are counted here.
        self._task = ray.remote(_entry(_describe_machine(kind))).options(
            max_retries=0, scheduling_strategy="SPREAD", **options
        )
        self._running: dict[Any, Any] = {}
        self._share = max(options.get("num_gpus", 1.0) if kind == "GPU" else 1.0, 1e-3)

    def slots(self) -> int:
        """Return how many jobs the cluster can do at once."""
        return int(self._ray.cluster_resources().get(self._kind, 0) / self._share)

    def window(self) -> int:
        return self._most or max(8, 2 * self.slots())

    def now(self) -> float:
        return time.monotonic()

    def start(self, job: Any) -> None:
        self._running[self._task.remote(self._shared, job)] = job

    def wait(self, seconds: float) -> list[tuple[Any, Done | Failed]]:
        if not self._running:
            time.sleep(seconds)
            return []
        try:
            ready, _ = self._ray.wait(list(self._running), timeout=max(seconds, 0.05))
        except self._ray.exceptions.RayError as error:
            raise ConnectionError(f"the Ray cluster is gone: {first_line(error)}") from None
        return [(self._running.pop(reference), self._get(reference)) for reference in ready]

    def _get(self, reference: Any) -> Done | Failed:
        errors = self._ray.exceptions
        try:
            outcome = self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Failed(cause, _may_pass(cause))
        except (errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            raise RuntimeError(f"Ray cannot start a worker: {first_line(error)}") from None
        except errors.RayError as error:  # the worker, its node or its memory is gone
            why = "is there enough memory for each?" if self._kind == "CPU" else "see its log"
            return Failed(RuntimeError(f"its worker ended ({type(error).__name__}); {why}"), again=True)
        if isinstance(outcome, str):
            raise RuntimeError(outcome)
        return Done(*outcome)

    def cancel(self) -> None:
        """End the jobs that run, with the processes that do them."""
        for reference in self._running:
            with suppress(Exception):
                self._ray.cancel(reference, force=True)


def _may_pass(error: Exception) -> bool:
    full = isinstance(error, OSError) and (error.errno in _FULL or isinstance(error, _LASTING))
    return isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError)) and not full


def _describe_machine(kind: str) -> dict[str, str]:
    """Return what must be equal on all workers, for equal results."""
    found = {"agebody": version("agebody"), "torch": str(torch.__version__).partition("+")[0]}
    if kind == "CPU":
        found["instructions"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return found


def _entry(expected: dict[str, str]) -> Callable[..., Any]:
    """Return the function that workers run.

    Being nested, it travels by value, and can speak on a machine where agebody is missing or another.
    """

    @no_type_check  # what checks types at run time could not travel
    def do(shared: Sequence[Any], job: Any) -> tuple[str, Any] | str:
        import platform

        where = f"node {platform.node()}"
        try:
            from agebody.pipelines import jobs
        except ImportError as error:
            return f"{where}: {error}; install agebody {expected['agebody']} there"
        found = jobs._describe_machine("CPU" if "instructions" in expected else "GPU")
        for name, wanted in expected.items():
            if found[name] != wanted:
                advice = "set ATEN_CPU_CAPABILITY alike" if name == "instructions" else "install one version"
                return f"{where}: {name} is {found[name]}, here {wanted}; {advice} on all machines"
        return jobs._do(shared[0], job)

    return do


_KEPT: dict[str, tuple[BodyModel, Callable[..., Any], dict[str, Any]]] = {}
"""What this process works with, by Ray's reference to it."""


def _do(packed: Any, job: Any) -> tuple[str, Any]:
    """Do a job in a worker, which unpacks the body for its first one."""
    import ray
    from ray import cloudpickle

    key = packed.hex()
    if key not in _KEPT:
        torch.set_num_threads(1)
        body, function, call, device = cloudpickle.loads(ray.get(packed))
        _KEPT.clear()
        _KEPT[key] = body.to(device), function, call
    body, function, call = _KEPT[key]
    result = function(body, job, **call)
    return f"{ray.get_runtime_context().get_node_id()[:8]}-{os.getpid()}", result


@contextmanager
def start_workers(
    body: BodyModel,
    function: Callable[..., Any],
    call: Mapping[str, Any],
    cluster: Cluster,
) -> Iterator[Workers]:
    """Yield what `run_jobs` needs: this process for one worker without an address, else Ray.

    Args:
        body: the layer.
        function: called with the body, the job and ``call``.
        call: arguments that are the same for all jobs.
        cluster: where.

    Raises:
        ConnectionError: no cluster answers at the address.
        ImportError: Ray is not installed.
        ValueError: Ray on this machine has no such device or memory, or the runtime environment is wrong.
    """
    cluster = check_cluster(cluster)
    device, address = cluster.device or body.device.type, cluster.address
    if _is_here(cluster):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as each worker has, so that the results are the same
        try:
            yield _Here(_moved(body, device), function, call)
        finally:
            torch.set_num_threads(threads)
        return
    kind = "GPU" if device.startswith("cuda") else "CPU"
    options = {"num_cpus": 1} if kind == "CPU" else {"num_cpus": 0, "num_gpus": cluster.num_gpus}
    options |= {} if cluster.memory is None else {"memory": cluster.memory}
    with _start_ray(cluster) as ray:
        packed = ray.cloudpickle.dumps((_moved(body, "cpu"), function, dict(call), device))
        pool = _Ray(ray, [ray.put(packed)], options, cluster.workers, kind)
        if address is None and not pool.slots():
            raise ValueError(f"device: expected one that Ray finds here, got {device}: it has no {kind}")
        most = ray.cluster_resources().get("memory", 0)
        if address is None and (cluster.memory or 0) > most:
            raise ValueError(f"memory: expected at most the {most / 2**30:.1f} GiB that Ray finds free here")
        try:
            yield pool
        finally:
            pool.cancel()


def check_cluster(cluster: Cluster) -> Cluster:
    """Return a cluster with its address, that of ``RAY_ADDRESS`` if it states none.

    Raises:
        ConnectionError: no cluster answers at the address.
        ImportError: Ray is not installed.
        ValueError: a number is too small, or the runtime environment is wrong.
    """
    cluster = cluster._replace(address=cluster.address or os.environ.get("RAY_ADDRESS") or None)
    if cluster.workers is not None and cluster.workers < 1:
        raise ValueError(f"workers: expected at least 1, got {cluster.workers}")
    if cluster.max_retries < 0:
        raise ValueError(f"max_retries: expected at least 0, got {cluster.max_retries}")
    unknown = set(cluster.runtime_env or ())
    if _is_here(cluster):
        if unknown:
            raise ValueError("runtime_env: expected none for one worker here, which is this process")
        return cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's next default, of which it warns
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what Ray's servers log, else on stdout
    try:
        import ray
        from ray.runtime_env import RuntimeEnv
    except ImportError as error:
        raise ImportError(_MISSING) from error
    unknown -= RuntimeEnv.known_fields
    if unknown and "RAY_RUNTIME_ENV_PLUGINS" not in os.environ:
        raise ValueError(f"runtime_env: expected names that Ray knows, such as env_vars, got {min(unknown)}")
    if cluster.address not in (None, "local") and not ray.is_initialized():
        _probe(cluster.address)
    return cluster


def _is_here(cluster: Cluster) -> bool:
    """Return whether the work is done in this process."""
    return cluster.address is None and cluster.workers == 1


def _moved(body: BodyModel, device: str) -> BodyModel:
    return body if body.device == torch.device(device) else copy.deepcopy(body).to(device)


@contextmanager
def _start_ray(cluster: Cluster) -> Iterator[Any]:
    """Yield Ray: the one that this process has started, or one that ends with the block."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    where: dict[str, Any] = {
        "address": cluster.address or "local",
        "runtime_env": {**(cluster.runtime_env or {})},
    }
    if where["address"] == "local":
        where |= {"num_cpus": cluster.workers or count_cpus()}
        where |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    begun: Future[Any] = Future()
    ended = threading.Event()

    def start() -> None:
        try:
            begun.set_result(ray.init(**where, log_to_driver=False, logging_level=logging.ERROR))
        except TypeError as error:  # Ray converts what it is given before it connects
            begun.set_exception(ValueError(f"runtime_env: {first_line(error)}"))
        except Exception as error:
            # A token that is missing, another version of Ray or of Python, a cluster that has just ended.
            why = f"{where['address']}: Ray cannot be used: {first_line(error)}"
            begun.set_exception(ConnectionError(why))
        ended.wait()  # Ray's servers end with the thread that started them

    # A signal would cut the start in two, and what has started would stay. Outside the main thread, Ray also
    # leaves Python's handlers of signals as they are.
    try:
        threading.Thread(target=start, daemon=True).start()
        begun.result()
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGTERM)  # Python's; that of Ray in C++ prints its stack
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
        yield ray
    finally:
        with suppress(Exception):
            begun.exception(_START)
        ray.shutdown()
        ended.set()


def _probe(address: str) -> None:
    """Refuse an address at which no cluster answers; Ray itself would try for most of a minute.

    Ray's servers speak gRPC, so what listens must answer the preface of HTTP/2 (RFC 9113, 3.4) with SETTINGS.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", which Ray looks up on this machine
    until = time.monotonic() + _PROBE
    advice = "give the address that `ray status` or the head node states"
    if int(port) > 65535:
        raise ConnectionError(f"{address}: expected a port up to 65535; {advice}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE) as link:
            link.settimeout(max(until - time.monotonic(), 0.1))
            link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            answer = link.recv(9)
    except socket.gaierror:
        raise ConnectionError(f"{address}: there is no machine named {host}; {advice}") from None
    except OSError as error:
        why = "did not answer within 3 s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ConnectionError(f"{address}: no Ray cluster: {why.lower()}; {advice}") from None
    if len(answer) < 4 or answer[3] != 4:
        raise ConnectionError(f"{address}: something else than a Ray cluster answers; {advice}")


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_part(jobs: Sequence[Path], index: int, count: int) -> list[Path]:
    """Return the jobs of one of several calls that share the work, as tasks of a Slurm array do."""
    if not 0 <= index < count:
        raise ValueError(f"index: expected 0 to {count - 1}, got {index}")
    return list(jobs[index::count])
