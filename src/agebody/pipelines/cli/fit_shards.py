"""`agebody shard` and `agebody fit-shards`: fits of many people, from shards to labels."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, fail, note, running, say, show_count
from agebody.pipelines.outputs import amount, make_output
from agebody.stores import to_path

if TYPE_CHECKING:
    from agebody.pipelines.labels.at_scale import DatasetReport

_SAY_EVERY = 30.0
"""Seconds between two lines where no bar can be shown."""


@app.command()
def shard(
    keypoints: Annotated[
        list[Path], options.argument("Files of keypoints, or folders, as for `agebody fit`.", "KEYPOINTS")
    ],
    output: options.OutputFolder,
    images: options.Images = None,
    annotations: options.Annotations = None,
    layout: options.Layout = None,
    size: options.ImageSize = None,
    people_per_shard: Annotated[int, typer.Option(min=1, help="Largest number of people per shard.")] = 4096,
    overwrite: options.Overwrite = False,
) -> None:
    """Split files of keypoints into shards, for `agebody fit-shards`.

    Writes **NAME-00000.parquet** and so on for each file NAME. The people of one image are in one shard.

    Example: `agebody shard day1.json day2.json -o people`
    """
    from agebody.annotations import read_people, write_shards

    names = [Path(os.path.realpath(path)).stem for path in keypoints]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(f"two files are named {twice[0]}, so their shards would have the same names")
    with running() as bars:
        make_output(output, "agebody shard")
        show = show_count(bars, "shards", len(keypoints))
        written, notes = [], []
        for done, (path, name) in enumerate(zip(keypoints, names, strict=True)):
            show(done)
            found = read_people(
                path, layout=layout, images=images, size=options.parse_size(size), annotations=annotations
            )
            paths = write_shards(
                found, output, prefix=name, people_per_shard=people_per_shard, overwrite=overwrite
            )
            written.append(f"{path}: {amount(len(found), 'people')} in {amount(len(paths), 'shards')}")
            left_out = ", ".join(f"{why} {count}" for why, count in found.left_out)
            notes += [f"{path}: left out: {left_out}"] if left_out else []
            notes += [f"{path}: {line}" for line in found.notes]
    for line in notes:
        note(line)
    for line in written:
        say(line)


def _check_kind(value: str) -> str:
    """Return the value of an option; "cuda" is allowed without a GPU here, as the cluster may have some."""
    if value.startswith("cuda:"):
        raise typer.BadParameter(f"expected cpu or cuda, because each worker gets its own GPU, got {value!r}")
    return value if value == "cuda" else str(options.check_device(value))


@app.command()
def fit_shards(
    shards: Annotated[
        str, options.argument("A folder of shards, or a pattern such as **'people/a-*'**.", "SHARDS")
    ],
    output: options.OutputFolder,
    body: options.Body = "anny",
    address: Annotated[
        str | None,
        options.option(
            "Address of a Ray cluster, such as **head:6379**; by default **RAY_ADDRESS**, else this machine."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        options.option("Shards at once; by default one per CPU or GPU. 1 here needs no Ray.", min=1),
    ] = None,
    layout: options.Layout = None,
    focal: options.Focal = None,
    fov: options.Fov = None,
    age_offset: options.AgeOffset = None,
    age_class: options.AgeClassName = None,
    years: options.Years = None,
    min_confidence: options.MinConfidence = 0.0,
    batch_size: options.BatchSize = 256,
    device: Annotated[
        str, typer.Option(callback=_check_kind, help="cpu, or cuda: one GPU per worker.")
    ] = "cpu",
    num_gpus: Annotated[
        float, typer.Option(min=0.01, help="GPUs per worker with **--device cuda**; 0.5 lets two share one.")
    ] = 1.0,
    memory: Annotated[
        float | None, options.option("GiB of memory that Ray reserves per worker.", min=0.01)
    ] = None,
    runtime_env: Annotated[
        Path | None, options.option("JSON or YAML file with the runtime environment of Ray's workers.")
    ] = None,
    max_retries: Annotated[
        int, typer.Option(min=0, help="Further attempts at a shard whose worker is lost or out of memory.")
    ] = 5,
    index: Annotated[
        int | None,
        options.option("Number of this call, from 0, of the **--count** that share the work.", min=0),
    ] = None,
    count: Annotated[int | None, options.option("Number of calls that share the work.", min=1)] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out shards that cannot be fitted, and report them.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read finished labels to their ends, not only their footers.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace labels that were made with other settings.")
    ] = False,
) -> None:
    """Fit bodies to many people, on all cores or a cluster, and resume where it was stopped.

    Writes a shard of labels for each shard of people, and **report.json**. To resume after an interruption,
    give the same command again: finished shards are not repeated. Without Ray, several calls share the work
    by **--index** and **--count**.

    Example: `agebody fit-shards people --body ages.safetensors -o labels`
    """
    from agebody.pipelines.jobs.cluster import Cluster, check_cluster
    from agebody.pipelines.labels import fit_dataset
    from agebody.pipelines.labels.at_scale import report_name
    from agebody.pipelines.labels.summary import unknown_ages

    given: dict[str, Any] = options.read_lens(focal, fov)
    given |= options.read_ages(age_offset, age_class, years)
    if (index is None) != (count is None):
        options.refuse("--index", "expected both --index and --count")
    with running(ValueError, RuntimeError) as bars:
        cluster = check_cluster(
            Cluster(
                workers,
                address,
                device,
                num_gpus,
                memory=None if memory is None else int(memory * 2**30),
                runtime_env=None if runtime_env is None else _read_runtime_env(runtime_env),
                max_retries=max_retries,
            )
        )
        if cluster.address is None:
            options.check_device(device)
        folder = make_output(to_path(output), "agebody fit-shards")
        layer = options.make_layer(options.load_body(body, bars))
        task = bars.add_task("fitting", total=None)
        interactive, said = not bars.disable, time.monotonic()

        def show(report: DatasetReport) -> None:
            nonlocal said
            speed = report.people_per_second
            title = "fitting" if speed is None else f"{speed:.0f} people/s"
            bars.update(task, description=title, total=report.people, completed=report.people_done)
            if not interactive and time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                note(_progress_line(report))

        report = fit_dataset(
            layer,
            shards,
            folder,
            layout=layout,
            cluster=cluster,
            part=None if index is None or count is None else (index, count),
            skip_bad=skip_bad,
            verify=verify,
            overwrite=overwrite,
            progress=show,
            **given,
            min_confidence=min_confidence,
            batch_size=batch_size,
        )
    for line in (*options.one_age(layer), *unknown_ages(report.people_of_unknown_age)):
        note(line)
    for path, why in report.bad.items():
        note(f"left out: {why if path in why else f'{path}: {why}'}")
    print(
        f"{report.shards_done} of {report.shards} shards done, {report.shards_found_done} of them before; "
        f"{report.people_kept} of {report.people_done} people kept"
    )
    if report.people_fitted:
        people, by = amount(report.people_fitted, "people"), amount(len(report.workers), "workers")
        print(f"{people} in {report.seconds:.1f} s by {by}: {report.people_per_second:.1f} per second")
    say(f"wrote {folder / report_name(index, count)}")


def _progress_line(report: DatasetReport) -> str:
    """Return the progress of a call as a line of a log."""
    line = f"{report.shards_done} of {report.shards} shards done, {len(report.bad)} left out"
    speed = report.people_per_second
    if not speed:
        return f"{line}; waiting for the first shard"
    hours, rest = divmod(int((report.people - report.people_done) / speed), 3600)
    return f"{line}; {speed:.1f} people/s, about {hours} h {rest // 60:02d} min left"


def _read_runtime_env(path: Path) -> dict[str, Any]:
    """Return Ray's runtime environment; Ray brings the reader of YAML, of which JSON is a part."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError('--runtime-env needs Ray; pip install "agebody[ray]"') from error
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected names and values of a runtime environment, as JSON or YAML")
    return found
