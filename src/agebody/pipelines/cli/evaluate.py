"""Evaluation on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agebody.files import replacing
from agebody.pipelines.cli.app import app, clear_errors, progress_bar

if TYPE_CHECKING:
    from agebody.pipelines.evaluate import Cell, Column
    from agebody.pipelines.evaluate import Table as Evaluation


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
    from agebody.keypoints import LAYOUTS
    from agebody.pipelines.evaluate import TableName, evaluate_files

    for option, value, known in (("--table", table, get_args(TableName)), ("--layout", layout, LAYOUTS)):
        if value is not None and value not in known:
            raise typer.BadParameter(f"expected {', '.join(known)}, got {value!r}", param_hint=option)
    with clear_errors(), progress_bar() as progress:
        progress.add_task("comparing", total=None)
        tables = evaluate_files(
            pred, target, table=cast(TableName, table), layout=layout, resamples=resamples, seed=seed
        )
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
