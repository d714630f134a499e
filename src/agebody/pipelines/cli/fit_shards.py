"""The fit of many people on the command line: files to shards, shards to labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agebody.pipelines.cli.app import app, check_device, clear_errors, fail, make_folder, progress_bar
from agebody.pipelines.cli.fit import (
    check_ages,
    check_finite,
    check_layout,
    find_layer,
    parse_size,
    refuse_both,
)

if TYPE_CHECKING:
    from agebody.pipelines.labels import DatasetReport


@app.command()
def shard(
    keypoints: Annotated[
        list[Path],
        typer.Argument(show_default=False, help="Files of keypoints, or folders, as of `agebody fit`."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", show_default=False, help="Folder for the shards; it is created where missing."
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(show_default=False, help="Folder of the images; for their sizes.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(show_default=False, help="What the keypoints are, such as coco17, if no names say so."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", show_default=False, help="Of images whose size nothing says, such as 1920x1080."
        ),
    ] = None,
    people_per_shard: Annotated[
        int, typer.Option(min=1, help="How many people a shard has, at most.")
    ] = 4096,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Cut files of keypoints into shards, for `agebody fit-shards`.

    Writes **NAME-00000.parquet** and on for each file NAME. People of one image stand in one shard.

    Example: `agebody shard day1.json day2.json -o people`
    """
    from agebody.pipelines.labels import read_keypoints, write_shards

    check_layout(layout)
    names = [path.resolve().stem for path in keypoints]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(f"two files are named {twice[0]}, and so would be their shards")
    with clear_errors(), progress_bar() as progress:
        make_folder(output)
        task = progress.add_task("shards", total=len(keypoints))
        written, notes = [], []
        for path, name in zip(keypoints, names, strict=True):
            found = read_keypoints(path, layout=layout, images=images, size=parse_size(size))
            paths = write_shards(
                found, output, prefix=name, people_per_shard=people_per_shard, overwrite=overwrite
            )
            written.append(f"{path}: {len(found)} people in {len(paths)} shards")
            left_out = ", ".join(f"{why} {count}" for why, count in found.left_out)
            notes += [f"{path}: left out: {left_out}"] if left_out else []
            notes += [f"{path}: {note}" for note in found.notes]
            progress.advance(task)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    for line in written:
        print(line)


@app.command()
def fit_shards(
    shards: Annotated[
        str,
        typer.Argument(show_default=False, help="A folder of shards, or a pattern such as **'people/a-*'**."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", show_default=False, help="Folder for the labels; it is created where missing."
        ),
    ],
    body: Annotated[
        str,
        typer.Option(help="**anny** (free, realistic), **mannequin** (built in), or the path of a file."),
    ] = "anny",
    address: Annotated[
        str | None,
        typer.Option(show_default=False, help="Of a Ray cluster; this machine alone if not given."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="As many as CPUs, or GPUs, if not given.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(show_default=False, help="Of the keypoints, if the shards do not say.")
    ] = None,
    focal: Annotated[
        float | None,
        typer.Option(min=1.0, show_default=False, help="Focal length [pixels], where a shard has none."),
    ] = None,
    fov: Annotated[
        float | None,
        typer.Option(min=1.0, max=179.0, show_default=False, help="Vertical field of view [degrees]."),
    ] = None,
    age_offset: Annotated[
        float | None,
        typer.Option(show_default=False, help="Of all whose age a shard does not say."),
    ] = None,
    age_class: Annotated[
        str | None,
        typer.Option(show_default=False, help="The same: **adult**, **teen**, **kid** or **baby**."),
    ] = None,
    years: Annotated[float | None, typer.Option(show_default=False, help="The same, age in years.")] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Keypoints below it do not count.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="People fitted at a time.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, or cuda: a device for each worker.")] = "cpu",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out shards that cannot be read, and report them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace labels that were made with other settings.")
    ] = False,
) -> None:
    """Fit bodies to many people with Ray, and go on where it was stopped.

    Writes a shard of labels for each shard of people, and **report.json**. To go on after a kill, give
    the same command again: what is there is not done twice.

    Example: `agebody fit-shards people --body ages.safetensors -o labels`
    """
    from agebody.pipelines.labels import fit_dataset

    check_layout(layout)
    check_ages(age_offset=age_offset, age_class=age_class, years=years)
    check_finite({"--focal": focal, "--fov": fov, "--age-offset": age_offset, "--years": years,
                  "--min-confidence": min_confidence})  # fmt: skip
    refuse_both({"--focal": focal, "--fov": fov})
    refuse_both({"--age-offset": age_offset, "--age-class": age_class, "--years": years})
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if address is None:
        check_device(device)
    with clear_errors(ValueError), progress_bar() as progress:
        make_folder(output)
        layer = find_layer(body, device, progress)
        task = progress.add_task("fitting", total=None)

        def show(report: DatasetReport) -> None:
            speed = (
                "fitting" if report.people_per_second is None else f"{report.people_per_second:.0f} people/s"
            )
            progress.update(task, description=speed, total=report.people, completed=report.people_done)

        report = fit_dataset(
            layer, shards, output, layout=layout, address=address, workers=workers, skip_bad=skip_bad,
            overwrite=overwrite, progress=show, focal=focal, fov=None if fov is None else math.radians(fov),
            age_offset=age_offset, age_class=age_class, years=years, min_confidence=min_confidence,
            batch_size=batch_size,
        )  # fmt: skip
    for path, why in report.bad.items():
        typer.echo(f"left out: {why if path in why else f'{path}: {why}'}", err=True)
    print(
        f"{report.shards_done} of {report.shards} shards done, {report.shards_found_done} of them before; "
        f"{report.people_kept} of {report.people_done} people kept"
    )
    if report.people_fitted:
        print(
            f"{report.people_fitted} people in {report.seconds:.1f} s by {len(report.workers)} workers: "
            f"{report.people_per_second:.1f} a second"
        )
    print(f"wrote {output / 'report.json'}")
