"""`agebody shard` and `agebody fit-shards`: fits of many people, from shards to labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agebody.files import make_folder
from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, fail, note, running, say, show_count

if TYPE_CHECKING:
    from agebody.pipelines.labels.at_scale import DatasetReport


@app.command()
def shard(
    keypoints: Annotated[
        list[Path],
        typer.Argument(show_default=False, help="Files of keypoints, or folders, as for `agebody fit`."),
    ],
    output: options.OutputFolder,
    images: options.Images = None,
    annotations: options.Annotations = None,
    layout: options.Layout = None,
    size: options.ImageSize = None,
    people_per_shard: Annotated[int, typer.Option(min=1, help="Largest number of people per shard.")] = 4096,
    overwrite: options.Overwrite = False,
) -> None:
    """Cut files of keypoints into shards, for `agebody fit-shards`.

    Writes **NAME-00000.parquet** and so on for each file NAME. The people of one image are in one shard.

    Example: `agebody shard day1.json day2.json -o people`
    """
    from agebody.annotations import read_people, write_shards

    names = [path.resolve().stem for path in keypoints]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(f"two files are named {twice[0]}, so their shards would have the same names")
    with running() as bars:
        make_folder(output)
        show = show_count(bars, "shards", len(keypoints))
        written, notes = [], []
        for done, (path, name) in enumerate(zip(keypoints, names, strict=True)):
            show(done)
            found = read_people(
                path,
                layout=layout,
                images=images,
                size=options.parse_size(size),
                annotations=annotations,
            )
            paths = write_shards(
                found, output, prefix=name, people_per_shard=people_per_shard, overwrite=overwrite
            )
            written.append(f"{path}: {len(found)} people in {len(paths)} shards")
            left_out = ", ".join(f"{why} {count}" for why, count in found.left_out)
            notes += [f"{path}: left out: {left_out}"] if left_out else []
            notes += [f"{path}: {line}" for line in found.notes]
    for line in notes:
        note(line)
    for line in written:
        say(line)


@app.command()
def fit_shards(
    shards: Annotated[
        str,
        typer.Argument(show_default=False, help="A folder of shards, or a pattern such as **'people/a-*'**."),
    ],
    output: options.OutputFolder,
    body: options.Body = "anny",
    address: Annotated[
        str | None, options.option("Address of a Ray cluster; by default this machine alone.")
    ] = None,
    workers: Annotated[
        int | None, options.option("Number of workers; by default one per CPU or GPU.", min=1)
    ] = None,
    layout: options.Layout = None,
    focal: options.Focal = None,
    fov: options.Fov = None,
    age_offset: options.AgeOffset = None,
    age_class: options.AgeClassName = None,
    years: options.Years = None,
    min_confidence: options.MinConfidence = 0.0,
    batch_size: options.BatchSize = 256,
    device: Annotated[str, typer.Option(help="cpu, or cuda: one GPU per worker.")] = "cpu",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out shards that cannot be read, and report them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace labels that were made with other settings.")
    ] = False,
) -> None:
    """Fit bodies to many people with Ray, and resume where it was stopped.

    Writes a shard of labels for each shard of people, and **report.json**. To resume after an interruption,
    give the same command again: finished shards are not repeated.

    Example: `agebody fit-shards people --body ages.safetensors -o labels`
    """
    from agebody.pipelines.labels import fit_dataset

    given: dict[str, Any] = options.read_lens(focal, fov)
    given |= options.read_ages(age_offset, age_class, years)
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if address is None:
        options.check_device(device)
    with running(ValueError) as bars:
        make_folder(output)
        layer = options.make_layer(options.load_body(body, bars), device=device)
        task = bars.add_task("fitting", total=None)

        def show(report: DatasetReport) -> None:
            speed = report.people_per_second
            title = "fitting" if speed is None else f"{speed:.0f} people/s"
            bars.update(task, description=title, total=report.people, completed=report.people_done)

        report = fit_dataset(
            layer,
            shards,
            output,
            layout=layout,
            address=address,
            workers=workers,
            skip_bad=skip_bad,
            overwrite=overwrite,
            progress=show,
            **given,
            min_confidence=min_confidence,
            batch_size=batch_size,
        )
    for line in options.one_age(layer):
        note(line)
    for path, why in report.bad.items():
        note(f"left out: {why if path in why else f'{path}: {why}'}")
    print(
        f"{report.shards_done} of {report.shards} shards done, {report.shards_found_done} of them before; "
        f"{report.people_kept} of {report.people_done} people kept"
    )
    if report.people_fitted:
        print(
            f"{report.people_fitted} people in {report.seconds:.1f} s by {len(report.workers)} workers: "
            f"{report.people_per_second:.1f} per second"
        )
    say(f"wrote {output / 'report.json'}")
