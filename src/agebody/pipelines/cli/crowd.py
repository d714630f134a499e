"""`agebody crowd`: place the people of each image in one space by a depth map."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from agebody.files import make_folder
from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, note, running, say, show_count, show_table


@app.command()
def crowd(
    labels: Annotated[Path, options.argument("An **.npz** by `agebody fit`.", "LABELS")],
    depth: Annotated[
        Path,
        options.option(
            "Folder of depth maps, one per image, named like the images, in the same folders or in none: "
            "**.npy** of floats, or **.npy** of integers and 16-bit **.png** in millimetres."
        ),
    ],
    output: options.OutputFile,
    masks: Annotated[
        Path | None,
        options.option(
            "Folder of maps of people, .npy or .png: 0 nobody, 1 the first person of the image in LABELS, "
            "and so on. By default the pixels that the bodies cover."
        ),
    ] = None,
    people: Annotated[
        Path | None,
        options.option(
            'Ages and sexes by the ids in LABELS: a JSON file such as {"7": {"years": 4, "sex": "female"}}. '
            "For others the age offset of the fit is used."
        ),
    ] = None,
    disparity: Annotated[
        bool, typer.Option("--disparity", help="The maps are disparities: take their reciprocal.")
    ] = False,
    metric: Annotated[
        bool, typer.Option("--metric", help="The maps are in metres; people are placed at these depths.")
    ] = False,
    refine: Annotated[
        bool, typer.Option("--refine", help="Also place people on the ground, and reduce overlaps.")
    ] = False,
    body: options.BodyOfLabels = None,
    views: Annotated[Path | None, options.option("Folder for pictures from above, before and after.")] = None,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Place the people of each image in one space: their depths and statures (DTO).

    Poses do not change. A child's age offset or an adult's first beta is changed until the body has its
    new stature, and the body is moved so that it covers the same pixels.
    """
    options.check_suffix(output, ".npz")
    if disparity and metric:
        options.refuse("--metric", "give one of --disparity and --metric")
    with running() as bars:
        from agebody.pipelines.labels import load_labels
        from agebody.pipelines.labels.place_images import UNPLACED, place_images

        options.check_output(output, (labels, people), overwrite)
        given = load_labels(labels)
        if views is not None:
            make_folder(views)
        import torch

        placed, rows = place_images(
            options.load_layer(body, labels, given, bars, dtype=torch.float64),
            given,
            depth,
            masks=masks,
            people=people,
            views=views,
            disparity=disparity,
            metric=metric,
            refine=refine,
            overwrite=overwrite,
            source=labels,
            progress=show_count(bars, "placing", len(given.by_image())),
        )
        placed.save(output, overwrite=overwrite)
    people_of = [person for row in rows for person in row["people"]]
    if left := sum(not person["placed"] for person in people_of):
        note(f"{left} of {len(people_of)} people were not placed: {UNPLACED}")
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _show(rows)
        say(f"wrote {output}")


def _show(rows: list[dict[str, Any]]) -> None:
    people = [person for row in rows for person in row["people"]]
    placed = [person for person in people if person["placed"]]
    moved = [person["moved_pixels"] for person in placed] or [0.0]
    change = [abs(math.log(person["depth"] / person["depth_before"])) for person in placed] or [0.0]
    lines = {
        "images": str(len(rows)),
        "people": str(len(people)),
        "placed": str(len(placed)),
        "median change of depth": f"{100 * math.expm1(float(np.median(change))):.1f} %",
        "median shift of keypoints": f"{float(np.median(moved)):.1f} px",
    }
    deep = [person["penetration"] for person in people if "penetration" in person]
    if deep:
        lines["still more than 1 cm in one another"] = str(sum(depth > 0.01 for depth in deep))
        lines["not held on the ground"] = str(sum(not person.get("held", True) for person in people))
    show_table(("", ""), lines.items(), title="people in one space")
