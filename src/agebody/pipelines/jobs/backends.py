"""Backends that run jobs: this process, or Ray tasks."""

from __future__ import annotations

import copy
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from typing import Any, no_type_check

import torch

from agebody.body import BodyModel
from agebody.files import first_line
from agebody.pipelines.jobs.cluster import Cluster, check_cluster, count_cpus, probe
from agebody.pipelines.jobs.schedule import Done, Failed, Workers, is_transient, run_jobs

_START = 20.0
"""Seconds to wait for an interrupted start of Ray."""
_ASK_EVERY, _GONE = 5.0, 30.0
"""Seconds between two calls of a cluster's head, and without an answer until it is considered lost."""
_OBJECT_STORE = 512 << 20
"""Bytes that local workers share: the body."""


class _LocalWorker:
    """Run jobs one after the other in this process, with one thread like a Ray worker."""

    def __init__(self, body: BodyModel, function: Callable[..., Any], call: Mapping[str, Any]) -> None:
        self._run_job = lambda job: function(body, job, **call)
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
            return [(job, Done(f"{platform.node()}-{os.getpid()}", self._run_job(job)))]
        except Exception as error:
            return [(job, Failed(error, is_transient(error)))]


class _Ray:
    """Run jobs as Ray tasks."""

    def __init__(self, ray: Any, shared: Any, options: dict[str, Any], most: int | None, kind: str) -> None:
        self._ray, self._shared, self._most, self._kind = ray, shared, most, kind
        # Ray would retry tasks that ran out of memory forever, so retries are counted here.
        self._task = ray.remote(_entry(_describe_environment(kind))).options(
            max_retries=0, scheduling_strategy="SPREAD", **options
        )
        self._running: dict[Any, Any] = {}
        self._share = max(options.get("num_gpus", 1.0) if kind == "GPU" else 1.0, 1e-3)
        self._head = ray.get_runtime_context().gcs_address
        try:
            probe(self._head)
        except ConnectionError:
            self._head = ""  # out of reach, behind a client's server that answers for it
        self._asked = self._answered = self.now()
        self.slots = self._count_slots()

    def _count_slots(self) -> int:
        """Return how many jobs the cluster can do at once; Ray waits for its head without end."""
        return int(self._ray.cluster_resources().get(self._kind, 0) / self._share)

    def window(self) -> int:
        now = self.now()
        if now - self._asked > _ASK_EVERY:
            self._asked = now
            try:
                probe(self._head)
                self._answered, self.slots = now, self._count_slots()
            except ConnectionError:  # it may start again; after a minute Ray ends this process
                if now - self._answered > _GONE:
                    gone = f"its head did not answer for {_GONE:.0f} s"
                    raise ConnectionError(f"{self._head}: the Ray cluster is gone: {gone}") from None
        return self._most or max(8, 2 * self.slots)

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
            return Failed(cause, is_transient(cause))
        except (errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            raise RuntimeError(f"Ray cannot start a worker: {first_line(error)}") from None
        except errors.RayError as error:  # the worker or its node was lost, or ran out of memory
            why = "is there enough memory for each?" if self._kind == "CPU" else "see its log"
            return Failed(RuntimeError(f"its worker ended ({type(error).__name__}); {why}"), retry=True)
        if isinstance(outcome, str):
            raise RuntimeError(outcome)
        return Done(*outcome)

    def cancel(self) -> None:
        """End the jobs that run, with the processes that do them."""
        for reference in self._running:
            with suppress(Exception):
                self._ray.cancel(reference, force=True)


def _describe_environment(kind: str) -> dict[str, str]:
    """Return the versions that must be the same on all workers to give the same results."""
    found = {"agebody": version("agebody"), "torch": str(torch.__version__).partition("+")[0]}
    if kind == "CPU":
        found["instructions"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return found


def _entry(expected: dict[str, str]) -> Callable[..., Any]:
    """Return the function that workers run.

    A nested function is pickled by value, so it runs where agebody is missing or has another version.
    """

    @no_type_check  # the wrapper of the run-time type checker cannot be pickled
    def do(shared: Sequence[Any], job: Any) -> tuple[str, Any] | str:
        import platform

        where = f"node {platform.node()}"
        try:
            from agebody.pipelines.jobs import backends
        except ImportError as error:
            return f"{where}: {error}; install agebody {expected['agebody']} there"
        found = backends._describe_environment("CPU" if "instructions" in expected else "GPU")
        for name, wanted in expected.items():
            if found[name] != wanted:
                advice = "set ATEN_CPU_CAPABILITY alike" if name == "instructions" else "install one version"
                return f"{where}: {name} is {found[name]}, here {wanted}; {advice} on all machines"
        return backends._run_job(shared[0], job)

    return do


@cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(f"agebody_{name}")


def set_metrics(**values: float) -> None:
    """Set gauges of Ray, ``agebody_NAME``, if this process is connected to it."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        for name, value in values.items():
            _gauge(name).set(value)


_STATE: dict[str, tuple[BodyModel, Callable[..., Any], dict[str, Any]]] = {}
"""Body, function and arguments in this worker process, by Ray's reference to them."""


def _run_job(packed: Any, job: Any) -> tuple[str, Any]:
    """Run a job in a worker; the first one unpickles the body."""
    import ray
    from ray import cloudpickle

    key = packed.hex()
    if key not in _STATE:
        torch.set_num_threads(1)
        body, function, call, device = cloudpickle.loads(ray.get(packed))
        _STATE.clear()
        _STATE[key] = body.to(device), function, call
    body, function, call = _STATE[key]
    result = function(body, job, **call)
    return f"{ray.get_runtime_context().get_node_id()[:8]}-{os.getpid()}", result


def run_all(
    body: BodyModel,
    function: Callable[..., Any],
    jobs: Iterable[Any],
    call: Mapping[str, Any],
    cluster: Cluster,
    progress: Callable[[Mapping[Any, Any]], None],
) -> dict[Any, Any]:
    """Return the result of each job, or raise the error of the first that fails."""
    results: dict[Any, Any] = {}
    with (
        start_workers(body, function, call, cluster) as workers,
        closing(run_jobs(workers, jobs, cluster.max_retries)) as outcomes,
    ):
        for job, outcome in outcomes:
            if isinstance(outcome, Failed):
                raise outcome.error
            results[job] = outcome.result
            progress(results)
    return results


@contextmanager
def start_workers(
    body: BodyModel, function: Callable[..., Any], call: Mapping[str, Any], cluster: Cluster
) -> Iterator[Workers]:
    """Yield the workers for `run_jobs`: this process for one worker without an address, else Ray.

    They call ``function(body, job, **call)``.

    Raises:
        ConnectionError: no cluster answers at the address.
        ImportError: Ray is not installed.
        ValueError: Ray on this machine has no such device or memory, or the runtime environment is wrong.
    """
    cluster = check_cluster(cluster)
    device, address = cluster.device or body.device.type, cluster.address
    if cluster.is_local:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as each worker has, so that the results are the same
        try:
            yield _LocalWorker(_to_device(body, device), function, call)
        finally:
            torch.set_num_threads(threads)
        return
    kind = "GPU" if device.startswith("cuda") else "CPU"
    options = {"num_cpus": 1} if kind == "CPU" else {"num_cpus": 0, "num_gpus": cluster.num_gpus}
    options |= {} if cluster.memory is None else {"memory": cluster.memory}
    with _start_ray(cluster) as ray:
        packed = ray.cloudpickle.dumps((_to_device(body, "cpu"), function, dict(call), device))
        pool = _Ray(ray, [ray.put(packed)], options, cluster.workers, kind)
        if address is None and not pool.slots:
            raise ValueError(f"device: expected one that Ray finds here, got {device}: it has no {kind}")
        most = ray.cluster_resources().get("memory", 0)
        if address is None and (cluster.memory or 0) > most:
            raise ValueError(f"memory: expected at most the {most / 2**30:.1f} GiB that Ray finds free here")
        try:
            yield pool
        finally:
            pool.cancel()


def _to_device(body: BodyModel, device: str) -> BodyModel:
    return body if body.device == torch.device(device) else copy.deepcopy(body).to(device)


@contextmanager
def _start_ray(cluster: Cluster) -> Iterator[Any]:
    """Yield Ray: the connection of this process, or one that is shut down after the block."""
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
            # A wrong token, another version of Ray or of Python, a cluster that has just ended.
            why = f"{where['address']}: Ray cannot be used: {first_line(error)}"
            begun.set_exception(ConnectionError(why))
        ended.wait()  # Ray's servers end with the thread that started them

    # A signal during the start would leave Ray's processes behind. Outside the main thread, Ray also leaves
    # Python's signal handlers as they are.
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
