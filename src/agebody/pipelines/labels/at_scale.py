"""Fit shards of people, one at a time or all with Ray; interrupted calls can be resumed."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from agebody.annotations.people import AnnotationError
from agebody.annotations.shards import count_people, import_pyarrow, read_shard
from agebody.body import BodyModel
from agebody.files import remove_leftovers, replacing
from agebody.pipelines.labels.fitting import fit_annotations
from agebody.pipelines.labels.label_shards import ShardRecord, find_record, hash_file, save_label_shard
from agebody.pipelines.labels.settings import describe_settings
from agebody.pipelines.labels.workers import Bad, run_jobs, start_ray

REPORT = "report.json"

Shards = str | PathLike[str] | Sequence[str | PathLike[str]]


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

    def save(self, path: str | PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all."""
        text = json.dumps({**asdict(self), "shards_left": self.shards_left}, indent=2) + "\n"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _count(self, record: ShardRecord) -> None:
        self.shards_done += 1
        self.people_done += record.people
        self.people_kept += record.kept
        self.people_converged += record.converged

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
    return float(f"{people / seconds:.4g}")


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
        shard: a Parquet file, as `read_shard` reads it. Where it has focal lengths and ages, these
            count, and those of the options are for everyone else.
        output: an existing folder for the labels.
        layout: of the keypoints, as in `read_shard`.
        overwrite: replace labels that were made from other people or with other settings.
        options: of `fit_annotations`, such as ``fov`` or ``batch_size``, and of `fit_keypoints`.

    Raises:
        AnnotationError: the shard is bad, or labels are there that were made otherwise.
        OSError: a file cannot be read or written.
        ImportError: PyArrow is not installed.
    """
    began = time.perf_counter()
    shard, output = Path(shard), _output(Path(shard), Path(output))
    settings = describe_settings(body, layout, options)
    record = _find(output, shard, settings, overwrite)
    if record is not None:
        return ShardResult(output, record, False, time.perf_counter() - began)
    source = hash_file(shard)
    labels = fit_annotations(body, read_shard(shard, layout=layout), **options)
    record = save_label_shard(labels, source, settings, output)
    return ShardResult(output, record, True, time.perf_counter() - began)


def _output(shard: Path, folder: Path) -> Path:
    if folder.resolve() == shard.resolve().parent:
        raise ValueError(f"output: expected another folder than that of the shards, got {folder}")
    return folder / shard.with_suffix(".parquet").name


def _find(output: Path, shard: Path, settings: dict[str, Any], overwrite: bool) -> ShardRecord | None:
    try:
        return find_record(output, shard, settings)
    except AnnotationError:
        if not overwrite:
            raise
        return None


def list_shards(shards: Shards) -> list[Path]:
    """Return the files of a folder or of a pattern with ``*``, ordered by name, or the given files.

    Raises:
        AnnotationError: there are none, or two have one name.
    """
    if isinstance(shards, (str, PathLike)):
        path = Path(shards)
        if path.is_dir():
            found = sorted(path.glob("[!.]*.parquet"))
        else:
            found = [path] if path.exists() else sorted(map(Path, glob.glob(os.fspath(shards))))
        if not found:
            raise AnnotationError(f"{path}: expected shards: a folder with *.parquet, a pattern, or one file")
    else:
        found = [Path(shard) for shard in shards]
        if not found:
            raise AnnotationError("shards: expected at least one")
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
    address: str | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Callable[[DatasetReport], None] = lambda report: None,
    **options: Any,
) -> DatasetReport:
    """Fit a body to everyone in many shards with workers of Ray, each shard as in `fit_shard`.

    The folder of labels is the only record of finished work: a shard of labels is written as a whole, and its
    metadata state what it was made from. After this process, a worker or a machine was killed, another call
    fits the missing shards; unfinished work leaves no files. On the same kind of machine, the files are equal
    to the byte to those of an uninterrupted call.

    A Ray that this process has started already is used, and left running. On a cluster, the files must be
    under the same paths everywhere.

    Args:
        body: the layer. One on a CUDA device gives each worker a device of its own.
        shards: a folder, a pattern such as ``"people/*-0001?.parquet"``, or files.
        output: the folder of the labels and of ``report.json``; it is created where missing.
        layout: of the keypoints, as in `read_shard`.
        address: of a Ray cluster, such as ``"ray://head:10001"`` or ``"auto"``; None starts Ray on this
            machine and stops it at the end.
        workers: how many; as many as there are CPUs, or, for a body on CUDA, GPUs, if None.
        skip_bad: leave out shards that cannot be read, and report them. Else they end the call: those whose
            columns are wrong before anything is fitted.
        overwrite: replace labels that were made from other people or with other settings.
        progress: called with the report so far, at the beginning and after each shard.
        options: as in `fit_shard`.

    Raises:
        AnnotationError: there are no shards, one is bad, or labels are there that were made otherwise.
        RuntimeError: a worker was ended by the system again and again.
        OSError: a file cannot be read or written.
        ImportError: Ray or PyArrow is not installed.
    """
    began = time.perf_counter()
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    import_pyarrow()
    folder = Path(output).absolute()
    paths = {path.absolute(): _output(path, folder) for path in list_shards(shards)}
    settings = describe_settings(body, layout, options)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    report = DatasetReport(len(paths), settings=settings)
    todo = _take_stock(report, paths, skip_bad, overwrite)
    progress(report)
    if todo:
        call = {"output": folder, "layout": layout, "overwrite": overwrite, **options}
        with (
            start_ray(address, workers) as ray,
            closing(run_jobs(ray, body, fit_shard, list(todo), call, workers)) as done,
        ):
            for path, outcome in done:
                if isinstance(outcome, Bad):
                    if not skip_bad:
                        raise AnnotationError(outcome.why)
                    report.bad[str(path)] = outcome.why
                    report.people -= todo[path]
                else:
                    report._add(outcome.worker, outcome.result, time.perf_counter() - began)
                report.save(folder / REPORT)
                progress(report)
    report.seconds = round(time.perf_counter() - began, 3)
    report.save(folder / REPORT)
    return report


def _take_stock(
    report: DatasetReport, paths: Mapping[Path, Path], skip_bad: bool, overwrite: bool
) -> dict[Path, int]:
    """Count finished shards, and return the others with their numbers of people."""
    todo = {}
    for path, output in paths.items():
        try:
            people = count_people(path)
        except AnnotationError as error:
            if not skip_bad:
                raise
            report.bad[str(path)] = str(error)
            continue
        report.people += people
        record = _find(output, path, report.settings, overwrite)
        if record is None:
            todo[path] = people
        else:
            report._count(record)
            report.shards_found_done += 1
    return todo
