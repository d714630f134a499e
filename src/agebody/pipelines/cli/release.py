"""Releases on the command line."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from agebody.files import replacing
from agebody.pipelines.cli.app import app, clear_errors, fail, find_body, progress_bar


@app.command()
def release(
    images: Annotated[Path, typer.Argument(show_default=False, help="The folder of the photographs.")],
    labels: Annotated[
        Path, typer.Argument(show_default=False, help="Who is in them: the **.npz** of `agebody fit`.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", show_default=False, help="The folder to write; a new one.")
    ],
    body: Annotated[
        str, typer.Option(help="The body of the fits: **anny**, **mannequin**, or the path of a body file.")
    ] = "anny",
    background: Annotated[
        str,
        typer.Option(
            help="What is left of a photograph: **blank** (all but people, who are painted over), "
            "**inpaint** (the same, painted from around them) or **none**."
        ),
    ] = "blank",
    region: Annotated[
        str,
        typer.Option(
            help="What is hidden of a person: **auto** (the whole box, and the mask if there is one), "
            "**box**, **mask** (the mask and no box, for masks known to be complete), or **mesh** (where "
            "there is neither, the fit alone)."
        ),
    ] = "auto",
    masks: Annotated[
        Path | None,
        typer.Option(
            show_default=False, help="A folder with a mask a photograph, NAME.png, black where nobody is."
        ),
    ] = None,
    hide: Annotated[
        Path | None,
        typer.Option(
            show_default=False, help="COCO annotations of which every box is hidden, fitted or not."
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, help="By which share of its longer side a box grows.")
    ] = 0.2,
    dilation: Annotated[
        float, typer.Option(min=0, help="By which share of its box's longer side a mask grows.")
    ] = 0.05,
    shape: Annotated[
        str, typer.Option(help="How much of people's shape is passed on: **mean**, **coarse** or **exact**.")
    ] = "coarse",
    unfitted: Annotated[
        str,
        typer.Option(
            help="A photograph with somebody whose fit is flagged: **refuse** (end), **drop** (leave it out) "
            "or **blank** (hide the person)."
        ),
    ] = "refuse",
    image_format: Annotated[
        str, typer.Option(help="Of pictures with backgrounds: **png** or **jpg**.")
    ] = "png",
    sequences: Annotated[
        bool,
        typer.Option(
            "--sequences", help="Each folder of photographs is a video, its frames ordered by name."
        ),
    ] = False,
    fps: Annotated[float, typer.Option(min=1, max=1000, help="Frames a second of clips.")] = 25.0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, show_default=False, help="Of the new order; one that nobody can repeat if not given."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="A new file for which picture was which photograph. Never share it; it is never replaced.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a release; nothing else is ever replaced.")
    ] = False,
) -> None:
    """Write a folder that can be shared: bodies in place of the people of photographs.

    Only people who are in the labels or in --hide are hidden. Look at the pictures before you share them.

    Example: `agebody release photos/ out/labels.npz -o shared/`
    """  # fmt: skip
    from agebody.pipelines.release.options import Background, ImageFormat, RegionRule, Shape, Unfitted

    choices: dict[str, tuple[str, Any]] = {
        "--background": (background, Background), "--region": (region, RegionRule), "--shape": (shape, Shape),
        "--unfitted": (unfitted, Unfitted), "--image-format": (image_format, ImageFormat),
    }  # fmt: skip
    for option, (value, kind) in choices.items():
        if value not in get_args(kind):
            raise typer.BadParameter(
                f"expected {', '.join(get_args(kind))}, got {value!r}", param_hint=option
            )
    for option, value in (("--margin", margin), ("--dilation", dilation), ("--fps", fps)):
        if not math.isfinite(value):
            raise typer.BadParameter(f"expected a finite number, got {value}", param_hint=option)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        fail(f"{output}: the folder exists; --overwrite replaces a release")
    if key is not None and os.path.lexists(key):
        fail(f"{key}: the file exists; a key is never replaced, so give another name")
    if key is not None and Path(os.path.realpath(output)) in Path(os.path.realpath(key)).parents:
        raise typer.BadParameter("the key must not be in the folder that is shared", param_hint="--key")
    with clear_errors(), progress_bar() as progress, ExitStack() as files:
        asset = find_body(body, progress)
        from agebody.body import SMPL, SMPLA
        from agebody.pipelines.labels import load_labels
        from agebody.pipelines.release import photos_from_labels, write_release

        layer = SMPLA(asset) if asset.has_age else SMPL(asset)
        key_file = None if key is None else files.enter_context(replacing(key, overwrite=False))
        task = progress.add_task("reading")
        photos = photos_from_labels(
            load_labels(labels), images, body=layer, masks=masks, hide=hide, sequences=sequences
        )
        made = write_release(
            photos, layer, output,
            background=cast(Background, background), region=cast(RegionRule, region), margin=margin,
            dilation=dilation, shape=cast(Shape, shape), unfitted=cast(Unfitted, unfitted),
            image_format=cast(ImageFormat, image_format), fps=fps, seed=seed, overwrite=overwrite,
            progress=lambda stage, part: progress.update(task, description=stage, completed=100 * part),
        )  # fmt: skip
        if key_file is not None:
            sources = {name: str(path) for name, path in made.sources.items()}
            key_file.chmod(0o600)
            key_file.write_text(json.dumps(sources, indent=2) + "\n")
    counts = made.manifest["counts"]
    print(
        f"wrote {output}: {counts['pictures']} pictures, {counts['bodies']} bodies, {counts['clips']} clips"
    )
    for name, number in counts.items():
        if name not in ("pictures", "bodies", "clips") and number:
            print(f"{name.replace('_', ' ')}: {number}")
    if background != "none":
        print(
            "warning: only the people of the labels"
            + ("" if hide is None else " and of --hide")
            + " are hidden; look at every picture before you share it",
            file=sys.stderr,
        )
