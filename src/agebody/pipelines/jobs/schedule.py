"""The order of jobs, and which failures are retried."""

from __future__ import annotations

import errno
import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from agebody.pipelines.jobs.cluster import ALL_CPUS

_PAUSES = (1.0, 2.0, 4.0)
"""Pause before the next attempt at a job, after its first, second and each later failure [s]."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_PERMANENT = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""System errors that a retry does not fix."""


class Done(NamedTuple):
    """The result of a job, and the worker that returned it."""

    worker: str
    result: Any


class Failed(NamedTuple):
    """The error of a job."""

    error: Exception
    retry: bool = False
    """Whether a retry may succeed, as after a lost worker or a network drive that did not answer."""


class Schedule:
    """Decide which job is next, and which failures are final.

    It starts no jobs and reads no clock, so a simulation runs the same decisions as a cluster.
    """

    def __init__(self, jobs: Iterable[Any], max_retries: int = ALL_CPUS.max_retries) -> None:
        self._queue = deque(jobs)
        self._later: list[tuple[float, int, Any]] = []
        self._failures: dict[Any, int] = {}
        self._max_retries, self._number = max_retries, 0
        self.running = 0

    @property
    def left(self) -> int:
        """Return the number of jobs without a final result."""
        return len(self._queue) + len(self._later) + self.running

    def take(self, now: float) -> Any:
        """Return the next job at a time [s], or None. Jobs that are due again come before new ones."""
        if self._later and self._later[0][0] <= now:
            job = heapq.heappop(self._later)[2]
        elif self._queue:
            job = self._queue.popleft()
        else:
            return None
        self.running += 1
        return job

    def due(self) -> float:
        """Return the time of the next retry [s]; infinity if there is none."""
        return self._later[0][0] if self._later else math.inf

    def record(self, job: Any, outcome: Done | Failed, now: float) -> bool:
        """Record an outcome; return whether it is final."""
        self.running -= 1
        failures = self._failures.get(job, 0)
        if isinstance(outcome, Done) or not outcome.retry or failures >= self._max_retries:
            return True
        self._failures[job] = failures + 1
        self._number += 1
        pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
        heapq.heappush(self._later, (now + pause, self._number, job))
        return False


@runtime_checkable
class Workers(Protocol):
    """A backend that runs jobs."""

    def window(self) -> int:
        """Return how many jobs to have started: more than can run, so that no worker is idle."""
        ...

    def now(self) -> float:
        """Return the time [s]."""
        ...

    def start(self, job: Any) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> Sequence[tuple[Any, Done | Failed]]:
        """Wait for at most this time [s]; return the jobs that have ended, with their outcomes."""
        ...


def run_jobs(
    workers: Workers,
    jobs: Iterable[Any],
    max_retries: int = ALL_CPUS.max_retries,
    idle: Callable[[], None] = lambda: None,
) -> Generator[tuple[Any, Done | Failed], None, None]:
    """Run jobs, which are hashable; yield each one with its final outcome as soon as it is known.

    ``idle`` is called about once a second while no job ends.

    Raises:
        OSError: the disk of the results is full or read-only.
        RuntimeError: a worker has another version of agebody or torch, or another type of CPU.
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
            if schedule.record(job, outcome, workers.now()):
                yield job, outcome
        if not ended:
            idle()


def is_transient(error: Exception) -> bool:
    """Return whether a retry may succeed: not after a full disk, a missing file or a bug."""
    full = isinstance(error, OSError) and (error.errno in _FULL or isinstance(error, _PERMANENT))
    return isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError)) and not full


def choose_part(jobs: Sequence[Path], index: int, count: int) -> list[Path]:
    """Return the jobs of one of ``count`` calls that share the work, as tasks of a Slurm array do."""
    if not 0 <= index < count:
        raise ValueError(f"index: expected 0 to {count - 1}, got {index}")
    return list(jobs[index::count])
