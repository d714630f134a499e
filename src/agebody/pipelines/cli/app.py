"""The application, its progress bars, and its errors, which are one line each."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from agebody.files import leaving_no_folders

_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
"""Click's ClickException, also where typer brings its own Click."""
_CLICK: Any = importlib.import_module(_USAGE_ERROR.__module__.replace("exceptions", "globals"))
_ADVICE = {
    "pass overwrite=True": "give --overwrite",
    "load it with one: load_asset(..., infant_template=...)": "`agebody convert BODY INFANT` adds one",
}
"""Advice in errors of the library -> advice on the command line."""
_EMPTY = re.compile(r"(--[\w-]+=)?\s*")
_HOME = re.compile(r"^((?:--[\w-]+=)?(?:\w+[:=])?)~(?=/|$)")
"""The home folder at the beginning of a path, which may follow an option or a kind: ``--body=~/a.npz``."""
_INTERRUPTED = 130
"""Exit code of commands that Ctrl-C ended."""


class _Output(io.FileIO):
    """Standard output whose reader may end early, as head does: the command finishes its work."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what is still buffered raises no more
            if not isinstance(error, BrokenPipeError):
                raise
            return super().write(data)


class _Commands(TyperGroup):
    """Commands whose errors are one line each, and which signals end as Ctrl-C does: they clean up."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Refuse empty arguments, which paths take for the current folder, and expand ~ as shells may not."""
        if any(_EMPTY.fullmatch(arg) for arg in args):
            raise typer.BadParameter("an argument is empty; is a variable of the shell not set?")
        home = os.path.expanduser("~")
        args = [_HOME.sub(lambda match: match[1] + home, arg) for arg in args]
        return super().make_context(info_name, args, *rest, **extra)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by who started the program, as by `>&-`
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if sys.stdout is sys.__stdout__:
            sys.stdout = io.TextIOWrapper(
                io.BufferedWriter(_Output(sys.stdout.fileno(), "w", closefd=False)),
                encoding=sys.stdout.encoding,
                line_buffering=sys.stdout.isatty(),
            )
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # names of files may have characters that a terminal lacks
                stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
        if re.fullmatch("0*1?[0-9]", os.environ.get("COLUMNS", "")):
            del os.environ["COLUMNS"]  # of no real terminal; in so few columns, rich prints nothing or bits
        with _stopping() as stopped:
            try:
                code = super().main(*args, standalone_mode=False, **extra)
                sys.stdout.flush()
            except _USAGE_ERROR as error:
                code = _report_usage(error)
            except (typer.Abort, KeyboardInterrupt):
                code = _INTERRUPTED
            except MemoryError:
                code = _print_error("not enough memory")
            except OSError as error:
                code = _print_error(describe(error))
        if code == _INTERRUPTED:
            print("error: interrupted", file=sys.stderr)
            code = 128 + stopped[0] if stopped else code
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="agebody",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app()


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Interrupt the program on SIGTERM, or when its terminal is closed; yield which signal it was."""
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> NoReturn:
        stopped.append(number)
        raise KeyboardInterrupt

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # not under nohup
    for number in ours:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _report_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        _print_error(error.format_message())
    return error.exit_code


def _print_error(message: str) -> int:
    print(f"error: {plain(message)}", file=sys.stderr)
    return 1


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

    columns = (TextColumn("{task.description:>14}", markup=False), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    try:
        bars = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        shown = (
            bars if console.is_interactive else nullcontext()
        )  # old versions of rich end with an empty line
        with leaving_no_folders(), shown:
            yield bars
    except typer.Exit:  # a RuntimeError, whose message has been printed
        raise
    except (AnnotationError, AssetError, ImportError, OSError, *errors) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise
        fail(describe(error))


def describe(error: Exception) -> str:
    """Return an error message for the command line: the file first, options by their names."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
        if reason[1:2].islower():  # the system begins with a capital letter
            reason = reason[0].lower() + reason[1:]
        message = reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
    for said, done in _ADVICE.items():
        message = message.replace(said, done)
    context = _CLICK.get_current_context(silent=True)
    parameters = context.command.params if context else ()
    options = {one.name: one.opts[0] for one in parameters if one.opts[0].startswith("-")}
    for name, option in options.items():
        message = re.sub(rf"(?<![\w.-]){name}=True", option, message)
        message = re.sub(rf'(?<![\w.-]){name}="([\w-]+)"', rf"{option} \1", message)
    names, colon, rest = message.partition(": ")  # of arguments, or a file
    found = [options.get(name) for name in names.split(", ")]
    return message if None in found else ", ".join(map(str, found)) + colon + rest


def plain(message: str) -> str:
    """Return a message as one line, without the control characters that names of files may have."""
    return "".join(
        char if char.isprintable() else " " if char.isspace() else repr(char)[1:-1]
        for char in message.strip()
    )


def show_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    caption: str = "",
    justify: Literal["left", "right"] = "right",
) -> None:
    """Print a table, with a heading if any is not empty; ``justify`` is that of all columns but the first."""
    table = Table(show_header=any(headings), title=Text(plain(title)), title_justify="left")
    table.caption, table.caption_justify = Text(caption), "left"
    for i, heading in enumerate(headings):  # as text, since a unit in brackets would be markup
        table.add_column(Text(heading), justify=justify if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


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
    raise typer.Exit(_print_error(message))


def note(message: str) -> None:
    """Print a line on standard error."""
    print(f"note: {plain(message)}", file=sys.stderr)


def say(message: str) -> None:
    """Print a line on standard output."""
    print(plain(message))
