"""`agebody release`: a folder that can be shared, with bodies in place of people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, note, running, say, show_stages
from agebody.pipelines.outputs import amount


@app.command()
def release(
    images: Annotated[Path, options.argument("The folder of the photographs.", "IMAGES")],
    labels: Annotated[Path, options.argument("Who is in them: the **.npz** of `agebody fit`.", "LABELS")],
    output: Annotated[Path, options.option("Folder to write; a new one.", "--output", "-o")],
    body: options.BodyOfLabels = None,
    background: Annotated[
        str,
        options.choice(
            "pipelines.release.options:Background",
            "What is left of a photograph: **blank** (all but people, who are painted over), "
            "**inpaint** (the same, painted from their surroundings) or **none**.",
        ),
    ] = "blank",
    region: Annotated[
        str,
        options.choice(
            "pipelines.release.options:RegionRule",
            "What is hidden of a person: **auto** (the whole box, and the mask if there is one), "
            "**box**, **mask** (the mask without the box, for masks known to be complete), or **mesh** "
            "(without box and mask, the fit alone).",
        ),
    ] = "auto",
    masks: Annotated[
        Path | None, options.option("Folder with a mask per photograph, NAME.png, black where nobody is.")
    ] = None,
    hide: Annotated[Path | None, options.option("COCO annotations; each of their boxes is hidden.")] = None,
    margin: Annotated[
        float,
        typer.Option(
            min=0, callback=options.check_finite, help="Share of its longer side by which a box grows."
        ),
    ] = 0.2,
    dilation: Annotated[
        float,
        typer.Option(
            min=0, callback=options.check_finite, help="Share of its box's longer side a mask grows by."
        ),
    ] = 0.05,
    shape: Annotated[
        str,
        options.choice(
            "pipelines.release.options:Shape",
            "How much of people's shape is passed on: **mean**, **coarse** or **exact**.",
        ),
    ] = "coarse",
    unfitted: Annotated[
        str,
        options.choice(
            "pipelines.release.options:Unfitted",
            "A photograph with a person whose fit is flagged: **refuse** (stop), **drop** (leave it "
            "out) or **blank** (hide the person).",
        ),
    ] = "refuse",
    image_format: Annotated[
        str,
        options.choice(
            "pipelines.release.options:ImageFormat",
            "Format of pictures with backgrounds: **png** or **jpg**.",
        ),
    ] = "png",
    sequences: Annotated[
        bool,
        typer.Option(
            "--sequences", help="Each folder of photographs is a video, with frames ordered by name."
        ),
    ] = False,
    fps: Annotated[
        float,
        typer.Option(min=1, max=1000, callback=options.check_finite, help="Frames per second of clips."),
    ] = 25.0,
    seed: Annotated[
        int | None, options.option("Seed of the new order; by default it cannot be repeated.", min=0)
    ] = None,
    key: Annotated[
        Path | None,
        options.option(
            "New file that says which picture was which photograph. Never share it; it is never replaced."
        ),
    ] = None,
    workers: options.Workers = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a release; nothing else is ever replaced.")
    ] = False,
) -> None:
    """Write a folder that can be shared: bodies in place of the people of photographs.

    Only people in the labels or in --hide are hidden. Look at the pictures before you share them.

    Example: `agebody release photos/ out/labels.npz -o shared/`
    """
    choices: dict[str, Any] = {"background": background, "region": region, "shape": shape}
    choices |= {"unfitted": unfitted, "image_format": image_format}
    with running(RuntimeError) as bars:
        from agebody.pipelines.jobs.cluster import Cluster
        from agebody.pipelines.labels import load_labels
        from agebody.pipelines.release import photos_from_labels, write_release
        from agebody.pipelines.release.write import check_places

        check_places(output, key, overwrite=overwrite)
        given = load_labels(labels)
        layer = options.load_layer(body, labels, given, bars)
        photos = photos_from_labels(given, images, body=layer, masks=masks, hide=hide, sequences=sequences)
        made = write_release(
            photos,
            layer,
            output,
            **choices,
            margin=margin,
            dilation=dilation,
            fps=fps,
            seed=seed,
            key=key,
            cluster=Cluster(workers),
            overwrite=overwrite,
            progress=show_stages(bars, "reading"),
        )
    counts = made.manifest["counts"]
    shown = ("pictures", "bodies", "clips")
    say(f"wrote {output}: {', '.join(amount(counts[name], name) for name in shown)}")
    for name, number in counts.items():
        if name not in shown and number:
            say(f"{name.replace('_', ' ')}: {number}")
    if background != "none":
        people = "the labels" if hide is None else "the labels and of --hide"
        note(f"only the people of {people} are hidden; look at every picture before you share it")
