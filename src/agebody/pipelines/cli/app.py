"""The application, its progress bars, and its errors, which are one line each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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


@contextmanager
def running(*errors: type[Exception]) -> Iterator[Progress]:
    """Yield progress bars on standard error; print errors that users can correct as one line.

    Args:
        errors: types of errors to print, besides those of files and of missing packages.
    """
    from agebody.annotations import AnnotationError
    from agebody.assets.asset import AssetError

    columns = (TextColumn("{task.description:>14}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bars:
            yield bars
    except (AnnotationError, AssetError, ImportError, OSError, *errors) as error:
        fail(str(error).replace("pass overwrite=True to replace", "give --overwrite to replace"))


def show_stages(bars: Progress, title: str) -> Callable[[str, float], None]:
    """Add a bar; return the function that updates it from a stage's name and the fraction done."""
    task = bars.add_task(title)
    return lambda stage, fraction: bars.update(task, description=stage, completed=100 * fraction)


def show_count(bars: Progress, title: str, total: int) -> Callable[[int], None]:
    """Add a bar; return the function that updates it from the number done."""
    task = bars.add_task(title, total=total)
    return lambda done: bars.update(task, completed=done)


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with code 1."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(1)


def note(message: str) -> None:
    """Print a line on standard error."""
    print(f"note: {message}", file=sys.stderr)
