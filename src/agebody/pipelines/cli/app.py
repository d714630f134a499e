"""The application: what commands have in common. Each file beside this one adds its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from agebody.assets.asset import BodyAsset

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


def find_body(name: str, progress: Progress) -> BodyAsset:
    """The body of a ``--body`` option: a built-in one by name, or a file."""
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


def check_device(name: str) -> None:
    """Refuse a ``--device`` that is not there."""
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


def make_folder(folder: Path) -> None:
    """Create the folder and write in it, before anything that takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fail(f"{folder}: cannot write files there: {error.strerror}")


def progress_bar() -> Progress:
    """Bars on standard error that vanish at the end."""
    columns = (TextColumn("{task.description:>14}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_interactive)


@contextmanager
def clear_errors(*expected: type[Exception]) -> Iterator[None]:
    """End with one line for what users can put right: bad files, missing extras, folders that refuse.

    Args:
        expected: further errors that say what is wrong with a user's file.
    """
    from agebody.annotations import AnnotationError
    from agebody.assets.asset import AssetError

    try:
        yield
    except (AnnotationError, AssetError, ImportError, OSError, *expected) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End with one line on standard error and exit code 1."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(1)
