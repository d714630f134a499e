"""Bodies on the command line: demo, inspect, convert, bench, warmup."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agebody.pipelines.cli.app import (
    app,
    check_device,
    clear_errors,
    fail,
    find_body,
    make_folder,
    progress_bar,
)

if TYPE_CHECKING:
    from agebody.pipelines.bench import Report


@app.command()
def demo(
    body: Annotated[
        str,
        typer.Option(
            help="**anny** (free, realistic), **mannequin** (built in), or the path of a body file."
        ),
    ] = "anny",
    device: Annotated[str, typer.Option(help="Where the body runs: cpu, cuda, cuda:1, ...")] = "cpu",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the files; it is created where missing.")
    ] = Path("."),
    width: Annotated[int, typer.Option(min=64, max=4096, help="Width of the picture [pixels].")] = 1600,
) -> None:
    """Pose a body at six ages, time it, and write **ages.png**, **ages.glb** and **ages.npz**.

    The free body is built once, which takes a minute or two, and kept in the cache folder of the system;
    set AGEBODY_CACHE to choose another.
    """
    with clear_errors(), progress_bar() as progress:
        check_device(device)
        make_folder(output)
        asset = find_body(body, progress)
        from agebody.pipelines.demo import run_demo

        task = progress.add_task("posing")
        rows = run_demo(
            asset, output, device=device, width=width,
            progress=lambda stage, part: progress.update(task, description=stage, completed=100 * part),
        )  # fmt: skip
    table = Table("age", title=f"{asset.metadata.name} on {device}", title_justify="left")
    for heading in ("age offset", "stature [m]", "WHO median [m]", "forward [ms]", "backward [ms]"):
        table.add_column(Text(heading), justify="right")  # as text: a unit in brackets is no markup
    for row in rows:
        table.add_row(
            row.name, f"{row.age_offset:.3f}", f"{row.stature:.3f}", f"{row.who_median:.3f}",
            f"{1e3 * row.forward:.2f}", f"{1e3 * row.backward:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for name in ("ages.png", "ages.glb", "ages.npz"):
        console.print(f"wrote {output / name}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="A body file of any kind, licensed or free.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a body file is: its kind, sizes, ages, licence, and what is wrong with it.

    Nothing in the file is ever run. The exit code is 1 where the file is no usable body.
    """
    from agebody.assets.report import inspect_asset

    with clear_errors():
        report = inspect_asset(file)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        table = Table(show_header=False, title=str(file), title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in dataclasses.asdict(report).items():
            if name != "path" and value not in (None, (), {}, []):
                table.add_row(name.replace("num_", "").replace("_", " "), _readable(value))
        if report.num_vertices is not None and not report.problems:
            table.add_row("problems", "none")
        Console().print(table)
    if report.num_vertices is None:
        raise typer.Exit(1)


@app.command()
def convert(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN...",
            show_default=False,
            help="The body file to read; after it, to give the body ages, its infant: "
            "smpl_kid_template.npy or a SMIL file.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="The file to write: **.safetensors** (this library's format, complete), **.npz** or "
            "**.pkl** (SMPL's entries; the .pkl opens in smplx).",
        ),
    ],
    regressor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            show_default=False,
            help="Add a keypoint regressor, such as h36m17=J_regressor_h36m.npy; may be repeated.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output where it exists.")] = False,
) -> None:
    """Join a body file with its infant template and regressors, and write it as one file.

    Example: `agebody convert SMPL_NEUTRAL.pkl smpl_kid_template.npy -o ages.safetensors`
    """  # fmt: skip
    from agebody.assets.io import export_smpl_npz, export_smpl_pkl, load_asset, save_asset

    writers = {".safetensors": save_asset, ".npz": export_smpl_npz, ".pkl": export_smpl_pkl}
    write = writers.get(output.suffix.lower())
    if write is None:
        raise typer.BadParameter(
            f"expected the suffix {', '.join(writers)}, got {output.name!r}", param_hint="--output"
        )
    regressors: dict[str, Path] = {}
    for item in regressor or []:
        name, separator, path = item.partition("=")
        if not (name and separator and path):
            raise typer.BadParameter(f"expected NAME=FILE, got {item!r}", param_hint="--regressor")
        regressors[name] = Path(path)
    if len(inputs) > 2:
        raise typer.BadParameter(
            f"expected a body and at most one infant, got {len(inputs)} files", param_hint="IN"
        )
    with clear_errors():
        infant = inputs[1] if len(inputs) == 2 else None
        asset = load_asset(inputs[0], infant_template=infant, regressors=regressors)
        write(asset, output, overwrite=force)
    print(f"wrote {output}: {asset!r}")
    if write is not save_asset and (asset.has_age or asset.regressors):
        print(
            f"note: {output.suffix} has no place for age templates and regressors; .safetensors keeps them",
            file=sys.stderr,
        )


@app.command()
def bench(
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")] = "cpu",
    backend: Annotated[str, typer.Option(help="What computes the body: auto, torch or warp.")] = "auto",
    seconds: Annotated[
        float, typer.Option(min=0, help="For each subject at each number of bodies [s].")
    ] = 1.0,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1, show_default=False, help="Number of bodies; may be repeated. 1, 64 and 1024 if not given."
        ),
    ] = None,
) -> None:
    """Time the built-in body on this machine, beside smplx where it is installed.

    Answers are compared before anything is timed. The floor is the blend-shape product alone, which no layer
    of this kind can do without.
    """
    from agebody.engine.backend import BackendName

    names = get_args(BackendName)
    if backend not in names:
        raise typer.BadParameter(f"expected {', '.join(names)}, got {backend!r}", param_hint="--backend")
    check_device(device)
    with clear_errors(), progress_bar() as progress:
        from agebody.assets.mannequin import mannequin
        from agebody.pipelines.bench import run_bench

        task = progress.add_task("building")
        report = run_bench(
            mannequin(), device=device, backend=cast(BackendName, backend),
            batches=tuple(batch or (1, 64, 1024)), seconds=seconds,
            progress=lambda stage, part: progress.update(task, description=stage, completed=100 * part),
        )  # fmt: skip
    _show_bench(report)


@app.command()
def warmup(
    device: Annotated[
        str | None,
        typer.Option(show_default=False, help="cpu, cuda, cuda:1, ... All there are if not given."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the layers they are for: **float32**, **float64** or **both**.")
    ] = "float32",
) -> None:
    """Compile the kernels of `backend="warp"` ahead, so that no first call waits for them.

    Warp keeps what it has compiled in the cache folder of the user, so once a machine is enough.
    """
    import torch

    types = {"float32": [torch.float32], "float64": [torch.float64], "both": [torch.float32, torch.float64]}
    if dtype not in types:
        raise typer.BadParameter(f"expected {', '.join(types)}, got {dtype!r}", param_hint="--dtype")
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device is not None:
        check_device(device)
        devices = [device]
    table = Table("kernels", "dtype", "device", caption="Milliseconds where compiled before.")
    table.add_column("seconds", justify="right")
    with clear_errors(), progress_bar() as progress:
        from agebody.engine.backend import load_kernels

        kernels = load_kernels()
        task = progress.add_task("starting", total=None)
        for place in devices:
            try:
                seconds = kernels.warmup(
                    place, types[dtype], progress=lambda name: progress.update(task, description=name)
                )
            except RuntimeError as error:
                fail(str(error))
            for name, time in seconds.items():
                *_, subject, scalar = name.split(".")
                table.add_row(subject, scalar, place, f"{time:.2f}")
    Console().print(table)


def _readable(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} ({count})" for name, count in value.items())
    if isinstance(value, (list, tuple)):
        text = all(isinstance(item, str) for item in value)
        return "\n".join(value) if text else ", ".join(f"{item:.4g}" for item in value)
    return str(value)


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _show_bench(report: Report) -> None:
    table = Table(
        title=f"agebody ({report.backend}) on {report.device}: µs a body, medians",
        title_justify="left",
        caption="ratio: smplx's time over agebody's; floor: the blend-shape product alone",
        caption_justify="left",
    )
    table.add_column("subject", no_wrap=True)
    for heading in ("bodies", "smplx", "agebody", "ratio", "floor", "× floor"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        peer, ours, floor = (
            "–" if timing is None else _short(1e6 * timing.median / row.batch)
            for timing in (row.peer, row.agebody, row.floor)
        )
        speedup, over_floor = (
            "–" if ratio is None else f"{ratio:.2f}" for ratio in (row.speedup, row.over_floor)
        )
        table.add_row(row.subject, str(row.batch), peer, ours, speedup, floor, over_floor)
    console = Console()
    console.print(table)
    if report.largest_difference is None:
        print("smplx is not installed: `pip install smplx` adds the ratio to it")
    else:
        print(f"vertices of agebody and smplx differ by at most {1e6 * report.largest_difference:.2f} µm")
