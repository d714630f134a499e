"""Fit shards of people, one or all, locally or on a cluster; interrupted calls can be resumed."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from agebody.annotations.people import AnnotationError
from agebody.annotations.shards import Shards, count_people, find_shards, import_pyarrow, read_shard
from agebody.body import BodyModel
from agebody.files import as_os_error, read_flag, replacing, sha256
from agebody.pipelines.jobs.backends import set_metrics, start_workers
from agebody.pipelines.jobs.cluster import ALL_CPUS, Cluster, check_cluster
from agebody.pipelines.jobs.schedule import Failed, choose_part, run_jobs
from agebody.pipelines.labels.fitting import fit_annotations
from agebody.pipelines.labels.label_shards import ShardRecord, find_record, save_label_shard
from agebody.pipelines.labels.settings import describe_settings
from agebody.pipelines.outputs import make_output
from agebody.stores import to_path

_HEARTBEAT = 5.0
"""Seconds between two writings of the report."""
_EXPIRES, _EXPIRES_LOCAL = 60.0, 900.0
"""Seconds after which a call that wrote no report is taken to have ended; a process that fits shards itself
writes none meanwhile."""
_READERS = 8
"""Threads that read footers, mostly waiting for the drive."""


class ShardResult(NamedTuple):
    """The result of one shard."""

    output: Path
    record: ShardRecord
    fitted: bool
    """False if the labels existed."""
    seconds: float


@dataclass
class DatasetReport:
    """Progress and speed of the fit of a data set."""

    shards: int
    """All shards."""
    shards_done: int = 0
    """Shards whose labels exist."""
    shards_found_done: int = 0
    """Shards whose labels existed before this call."""
    people: int = 0
    """People in shards that are not bad, with or without labels."""
    people_done: int = 0
    people_kept: int = 0
    people_converged: int = 0
    people_of_unknown_age: int = 0
    people_fitted: int = 0
    """People fitted by this call."""
    seconds: float = 0.0
    """Since the start of the call, including the start of its workers."""
    people_per_second: float | None = None
    """Speed of this call; None if it fitted nobody."""
    workers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Shards, people, seconds of work and people per second of each worker."""
    bad: dict[str, str] = field(default_factory=dict)
    """Why shards were left out, by their paths."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the fit."""

    @property
    def shards_left(self) -> int:
        """Shards without labels that are not bad."""
        return self.shards - self.shards_done - len(self.bad)

    def save(self, path: str | PathLike[str], running: Mapping[str, Any] | None = None) -> None:
        """Write the report as JSON, whole or not at all; ``running`` names the process that works on it."""
        document = {**asdict(self), "shards_left": self.shards_left, "running": running}
        text = json.dumps(document, indent=2) + "\n"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _count(self, record: ShardRecord) -> None:
        self.shards_done += 1
        self.people_done += record.people
        self.people_kept += record.kept
        self.people_converged += record.converged
        self.people_of_unknown_age += record.age_unknown

    def _add(self, worker: str, result: ShardResult, seconds: float) -> None:
        """Count one more shard; ``seconds`` is the time since the start of the call."""
        self._count(result.record)
        self.seconds = round(seconds, 3)
        if not result.fitted:  # another process was faster
            return
        self.people_fitted += result.record.people
        self.people_per_second = _rate(self.people_fitted, seconds)
        its = self.workers.setdefault(worker, {"shards": 0, "people": 0, "seconds": 0.0})
        its["shards"] += 1
        its["people"] += result.record.people
        its["seconds"] = round(its["seconds"] + result.seconds, 3)
        its["people_per_second"] = _rate(its["people"], its["seconds"])


def _rate(people: float, seconds: float) -> float:
    """Return people per second to four significant digits, however slow the machine is."""
    return float(f"{people / max(seconds, 1e-3):.4g}")


def fit_shard(
    body: BodyModel,
    shard: str | PathLike[str],
    output: str | PathLike[str],
    *,
    layout: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ShardResult:
    """Fit a body to everyone in one shard of people, and write a shard of labels of the same name.

    Existing complete labels of the same people and settings are kept, so the function may be called for any
    shard, in any order, by any number of processes, any number of times.

    Args:
        body: the layer; an `SMPLA` for people of all ages.
        shard: a Parquet file, as `read_shard` reads it. Its focal lengths and ages take precedence over those
            of the options.
        output: an existing folder for the labels.
        layout: of the keypoints, as in `read_shard`.
        overwrite: replace labels that were made from other people or with other settings.
        options: of `fit_annotations`, such as ``fov`` or ``batch_size``, and of `fit_keypoints`.

    Raises:
        AnnotationError: the shard is bad, or existing labels were made from other people or settings.
        OSError: a file cannot be read or written.
        ImportError: PyArrow is not installed.
    """
    began = time.perf_counter()
    shard = to_path(shard)
    output = _output(shard, to_path(output))
    settings = describe_settings(body, layout, options)
    record = _find(output, shard, settings, overwrite)
    if record is not None:
        return ShardResult(output, record, False, time.perf_counter() - began)
    source = sha256(shard)
    labels = fit_annotations(body, read_shard(shard, layout=layout), **options)
    record = save_label_shard(labels, source, settings, output)
    return ShardResult(output, record, True, time.perf_counter() - began)


def _output(shard: Path, folder: Path) -> Path:
    if os.path.realpath(str(folder)) == os.path.dirname(os.path.realpath(str(shard))):  # also of a store
        raise ValueError(f"output: expected another folder than that of the shards, got {folder}")
    return folder / shard.with_suffix(".parquet").name


def _find(
    output: Path, shard: Path, settings: dict[str, Any], overwrite: bool, verify: bool = True
) -> ShardRecord | None:
    try:
        with as_os_error(shard, "read"):
            return find_record(output, shard, settings, verify=verify)
    except AnnotationError:
        if not read_flag("overwrite", overwrite):
            raise
        return None


def report_name(index: int | None, count: int | None) -> str:
    """Return the name of the report of a call, which may be one of several that share the shards."""
    return "report.json" if index is None else f"report-{index}-of-{count}.json"


def list_shards(shards: Shards) -> list[Path]:
    """Return the files of a folder or of a pattern with ``*``, ordered by name, or the given files.

    Raises:
        AnnotationError: there are none, or two have one name.
    """
    found = find_shards(shards, ".parquet")
    names: dict[str, Path] = {}
    for path in found:
        if names.setdefault(path.stem, path) is not path:
            raise AnnotationError(f"{path}: its labels would have the name of those of {names[path.stem]}")
    return found


def fit_dataset(
    body: BodyModel,
    shards: Shards,
    output: str | PathLike[str],
    *,
    layout: str | None = None,
    cluster: Cluster = ALL_CPUS,
    part: tuple[int, int] | None = None,
    skip_bad: bool = False,
    verify: bool = False,
    overwrite: bool = False,
    progress: Callable[[DatasetReport], None] = lambda report: None,
    **options: Any,
) -> DatasetReport:
    """Fit a body to everyone in many shards, each as in `fit_shard`, in this process or with Ray.

    The folder of labels is the only record of finished work: a shard of labels is written as a whole, and its
    metadata state what it was made from. After this process, a worker or a machine was killed, another call
    fits the missing shards; unfinished work leaves no files. On the same kind of machine, the files are
    byte-identical to those of an uninterrupted call.

    Args:
        body: the layer.
        shards: a folder, a pattern such as ``"people/*-0001?.parquet"``, or files.
        output: the folder of the labels and of ``report.json``; it is created where missing.
        layout: of the keypoints, as in `read_shard`.
        cluster: where; the files must be under the same paths on all of its machines.
        part: i of n, from 0: only each n-th shard, for calls that share the work without Ray, such as the
            tasks of a Slurm array. Each has its own report, ``report-i-of-n.json``.
        skip_bad: leave out shards that cannot be fitted, and report them. Else they end the call: those whose
            columns are wrong before anything is fitted.
        verify: read finished labels to their end, and their people; else their sizes and footers count.
        overwrite: replace labels that were made from other people or with other settings.
        progress: called with the report so far, at the beginning and after each shard.
        options: as in `fit_shard`.

    Raises:
        AnnotationError: there are no shards, one is bad, or existing labels were made from other people or
            settings.
        RuntimeError: the worker of a shard was lost more than ``max_retries`` times, or a machine of the
            cluster has another version of agebody or torch, or another kind of CPU.
        ConnectionError: no cluster answers at the address.
        OSError: a file cannot be read or written, or another call fits these shards.
        ImportError: Ray or PyArrow is not installed.
    """
    began = time.perf_counter()
    cluster = check_cluster(cluster)
    import_pyarrow()
    folder = to_path(output).absolute()
    found = list_shards(shards)
    if part is not None:
        found = choose_part(found, *part)
    paths = {path.absolute(): _output(path, folder) for path in found}
    settings = describe_settings(body, layout, options)
    settings["device"] = torch.device(cluster.device or settings["device"]).type
    make_output(folder, "agebody fit-shards")
    report = DatasetReport(len(paths), settings=settings)
    lasts = _EXPIRES_LOCAL if cluster.is_local else _EXPIRES
    lease = _Lease(folder / report_name(*part or (None, None)), lasts)

    def show() -> None:
        report.seconds = round(time.perf_counter() - began, 3)
        lease.save(report)
        set_metrics(people_done=report.people_done, shards_left=report.shards_left)
        progress(report)

    skip_bad, verify = read_flag("skip_bad", skip_bad), read_flag("verify", verify)
    todo = _find_unfinished(report, paths, skip_bad, overwrite, verify, lambda: progress(report))
    progress(report)
    if todo:
        call = {"output": folder, "layout": layout, "overwrite": overwrite, **options}
        largest_first = sorted(todo, key=lambda path: -todo[path])
        with (
            start_workers(body, fit_shard, call, cluster) as pool,
            closing(run_jobs(pool, largest_first, cluster.max_retries, show)) as done,
        ):
            show()
            try:
                for path, outcome in done:
                    if isinstance(outcome, Failed):
                        error = _named(path, outcome.error)
                        if not skip_bad:
                            raise error
                        report.bad[str(path)] = str(error)
                        report.people -= todo[path]
                    else:
                        report._add(outcome.worker, outcome.result, time.perf_counter() - began)
                    show()
            except BaseException:
                with suppress(OSError):  # as of a full disk
                    lease.save(report, final=True)
                raise
    report.seconds = round(time.perf_counter() - began, 3)
    lease.save(report, final=True)
    return report


def _named(path: Path, error: Exception) -> Exception:
    """Return an error that names the shard, as those of files and settings do already."""
    return RuntimeError(f"{path}: {error}") if isinstance(error, (RuntimeError, MemoryError)) else error


class _Lease:
    """The report of a running call, which keeps a second call from the same shards.

    Raises:
        FileExistsError: another call is running.
    """

    def __init__(self, path: Path, lasts: float) -> None:
        self._path, self._lasts, self._saved = path, lasts, -math.inf
        self._by = {"host": platform.node(), "pid": os.getpid()}
        try:
            running = json.loads(path.read_text(encoding="utf-8"))["running"]
            host, pid, left = running["host"], int(running["pid"]), float(running["until"]) - time.time()
        except (OSError, ValueError, KeyError, TypeError):
            return  # none, or one that has ended
        here = host == self._by["host"] and os.name == "posix"
        if left > 0 and not (here and (pid == os.getpid() or not _is_process(pid))):
            reason = f"process {pid} on {host} fits these shards; wait for it, {left:.0f} s if it was killed"
            raise FileExistsError(errno.EEXIST, reason, str(path))

    def save(self, report: DatasetReport, final: bool = False) -> None:
        """Write the report every few seconds, and at the end."""
        if final or time.monotonic() - self._saved > _HEARTBEAT:
            until = round(time.time() + self._lasts, 1)
            report.save(self._path, None if final else {**self._by, "until": until})
            self._saved = time.monotonic()


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _find_unfinished(
    report: DatasetReport,
    paths: Mapping[Path, Path],
    skip_bad: bool,
    overwrite: bool,
    verify: bool,
    show: Callable[[], None],
) -> dict[Path, int]:
    """Count finished shards, and return the others with their numbers of people."""

    def look(path: Path) -> ShardRecord | AnnotationError | int:
        try:
            record, differs = _find(paths[path], path, report.settings, overwrite, verify), None
        except AnnotationError as error:
            record, differs = None, error
        try:
            people = record or count_people(path)
        except AnnotationError as error:  # the people are damaged, so what their labels say does not count
            if not skip_bad:
                raise
            return error
        if differs is not None:
            raise differs
        return people

    todo = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for path, found in zip(paths, pool.map(look, paths), strict=True):
            if isinstance(found, AnnotationError):
                report.bad[str(path)] = str(found)
            elif isinstance(found, ShardRecord):
                report.people += found.people
                report._count(found)
                report.shards_found_done += 1
            else:
                report.people += found
                todo[path] = found
            show()
    return todo
