"""`agebody evaluate`: predictions compared with the truth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, running, show_table

if TYPE_CHECKING:
    from agebody.pipelines.evaluate import Table as Evaluation
    from agebody.pipelines.evaluate.table import Cell, Column


@app.command()
def evaluate(
    pred: Annotated[Path, options.argument("Predictions: an **.npz**, or COCO results.", "PRED")],
    target: Annotated[Path, options.argument("The truth: an **.npz**, or COCO annotations.", "GT")],
    table: Annotated[
        str,
        options.choice(
            "pipelines.evaluate.run:TableName",
            "**infantnet**, **relative-human**, the same as **relative-human-published**, **coco**, "
            "or **auto**: all that the files allow.",
        ),
    ] = "auto",
    layout: options.Layout = None,
    root: Annotated[
        list[str] | None,
        options.option(
            "Joint by whose position MPJPE and PVE align, also where its weight is 0; several times for the "
            "middle of several. By default the layout's root."
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resamples for 95 % intervals; 0 for no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Compare predictions with the truth: errors, depth order and keypoints, by age class.

    The page "Evaluation" of the documentation describes the files. Intervals are from resampling images
    with all of their people.
    """
    from agebody.pipelines.evaluate import evaluate_files

    with running() as bars:
        bars.add_task("comparing", total=None)
        given: dict[str, Any] = {"table": table, "layout": layout, "root": root or None}
        tables = evaluate_files(pred, target, **given, resamples=resamples, seed=seed)
    if as_json:
        print(json.dumps([each.as_dict() for each in tables], indent=2))
        return
    for each in tables:
        _show(each)


def _show(table: Evaluation) -> None:
    with_intervals = any(not math.isnan(cell.low) for row in table.rows for cell in row.cells)
    below = "; below: 95 % interval" if with_intervals else ""
    captions = [f"in brackets: number of values{below}", *table.notes]
    headings = [f"{column.name} [{column.unit}]" for column in table.columns]
    lines = [["", "people", "missed", *headings]]
    for row in table.rows:
        if row.people:
            cells = [_with_interval(*pair) for pair in zip(row.cells, table.columns, strict=True)]
            lines.append([row.name, str(row.people), str(row.missed), *cells])
        else:
            lines.append([row.name, "nobody", *["–"] * (len(headings) + 1)])
    if len(headings) > 4:  # too wide, so transpose
        lines = [list(column) for column in zip(*lines, strict=True)]
    show_table(lines[0], lines[1:], title=table.name, caption="\n".join(captions))


def _with_interval(cell: Cell, column: Column) -> str:
    if math.isnan(cell.value):
        return "–"
    value, low, high = (column.scale * number for number in cell[:3])
    interval = "" if math.isnan(low) else f"\n{low:.1f}–{high:.1f}"
    return f"{value:.1f} ({cell.n}){interval}"
