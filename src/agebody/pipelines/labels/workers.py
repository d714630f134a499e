"""Workers of Ray that do many jobs with one body each."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from agebody.annotations.people import AnnotationError
from agebody.body import BodyModel

_RESTARTS = 2
"""Restarts of a worker that the system kills, as it does when memory runs out."""
_OBJECT_STORE = 512 << 20
"""Bytes that local workers share: the body."""


@contextmanager
def start_ray(address: str | None, workers: int | None) -> Iterator[Any]:
    """Yield Ray: the one that this process has started, or one that ends with the block.

    Raises:
        ImportError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's next default, of which it warns
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            'several workers need Ray, which is not installed; pip install "agebody[ray]"'
        ) from error
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(
            address="local",
            num_cpus=workers or count_cpus(),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            **quiet,
        )
    else:
        ray.init(address=address, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Bad(NamedTuple):
    """Why a job cannot be done."""

    why: str


class Done(NamedTuple):
    """The result of a job."""

    worker: str
    result: Any


class _Task(NamedTuple):
    """The part of a job that is the same for all."""

    body: list[Any]
    """Ray's reference to the layer, on the CPU. In a list: Ray would else fetch it for each job."""
    cuda: bool
    function: Callable[..., Any]
    call: dict[str, Any]
    """Arguments of the function besides the body and what differs per job."""


class _Worker:
    """A worker, which does one job after the other with its own body."""

    body: BodyModel | None = None

    def start(self) -> None:
        """Do nothing: its return shows that the worker has started."""

    def do(self, task: _Task, job: Any) -> Done | Bad:
        import ray

        if self.body is None:  # the worker has just started, or restarted
            torch.set_num_threads(1)
            body: BodyModel = ray.get(task.body[0])
            self.body = body.to("cuda") if task.cuda else body
        try:
            result = task.function(self.body, job, **task.call)
        except AnnotationError as error:
            return Bad(str(error))
        node = ray.get_runtime_context().get_node_id()
        return Done(f"{node[:8]}-{os.getpid()}", result)


def run_jobs(
    ray: Any,
    body: BodyModel,
    function: Callable[..., Any],
    jobs: Sequence[Any],
    call: dict[str, Any],
    workers: int | None,
) -> Generator[tuple[Any, Done | Bad], None, None]:
    """Yield each job with its result as soon as it is ready. A worker has one job at a time.

    Args:
        ray: from `start_ray`.
        body: the layer. One on a CUDA device gives each worker a device of its own.
        function: called with the body, the job and ``call``; its `AnnotationError` is the result `Bad`.
        jobs: what differs.
        call: arguments that are the same for all jobs.
        workers: how many; as many as there are CPUs, or, for a body on CUDA, GPUs, if None.

    Raises:
        RuntimeError: a worker was ended by the system again and again.
    """
    cuda = body.device.type == "cuda"
    there = int(ray.cluster_resources().get("GPU" if cuda else "CPU", 0))
    if not there:
        raise ValueError(f"body: on {body.device}, and Ray has no {'GPU' if cuda else 'CPU'}")
    needs = {"num_cpus": 0 if cuda else 1, "num_gpus": 1 if cuda else 0}
    kind = ray.remote(_Worker).options(**needs, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
    task = _Task([ray.put(copy.deepcopy(body).cpu() if cuda else body)], cuda, function, call)
    count = min(workers or there, there, len(jobs))
    actors = [kind.remote() for _ in range(count)]
    queue = deque(jobs)
    # A worker gets its first job when it has started, so that one that waits for a CPU holds none back.
    running: dict[Any, tuple[Any, Any]] = {actor.start.remote(): (actor, None) for actor in actors}
    left = len(jobs)
    try:
        while left:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            actor, job = running.pop(ready)
            outcome = _get(ray, ready, job)
            if job is not None:
                left -= 1
                yield job, outcome
            if queue:
                job = queue.popleft()
                running[actor.do.remote(task, job)] = actor, job
    finally:
        for actor in actors:
            ray.kill(actor)


def _get(ray: Any, ready: Any, job: Any) -> Any:
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        what = "before it began" if job is None else f"{1 + _RESTARTS} times at {job}"
        raise RuntimeError(f"a worker was ended {what}; has the machine enough memory? {error}") from None
