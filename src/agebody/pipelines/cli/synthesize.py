"""`agebody synthesize`: synthetic people of every age in images, with all labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, running, say, show_count
from agebody.pipelines.outputs import amount


def _read_range(text: str) -> tuple[float, float]:
    first, _, last = text.partition("-")
    try:
        found = float(first), float(last or first)
    except ValueError:
        found = math.nan, math.nan
    if not all(map(math.isfinite, found)):
        raise typer.BadParameter(f"expected a number, or a range such as 1-3, got {text!r}")
    return found


def _check_range(value: str | None) -> str | None:
    if value is not None and not min(_read_range(value)) > 0:
        raise typer.BadParameter(f"expected numbers above 0, got {value!r}")
    return value


def _check_whole(value: str) -> str:
    if any(number != int(number) for number in _read_range(value)):
        raise typer.BadParameter(f"expected a whole number, or a range such as 1-3, got {value!r}")
    return value


@app.command()
def synthesize(
    output: options.OutputFolder,
    body: options.Body = "anny",
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1000,
    people: Annotated[
        str, typer.Option(metavar="N-M", callback=_check_whole, help="People per image, such as 1 or 1-3.")
    ] = "1",
    size: Annotated[
        str, typer.Option(metavar="WxH", callback=options.check_size, help="Size of the images.")
    ] = "256x256",
    ages: Annotated[
        str, typer.Option(help="Age classes or years with weights, such as **baby:2,kid,20-60:0.5**.")
    ] = "balanced",
    matched: Annotated[
        bool, typer.Option("--matched", help="Postures independent of age; else babies lie and crawl.")
    ] = False,
    fov: Annotated[
        str | None,
        options.option(
            "Vertical field of view [degrees]; 35-65 by default.", check=_check_range, metavar="N-M"
        ),
    ] = None,
    focal: Annotated[
        str | None,
        options.option("Focal length [pixels], instead of --fov.", check=_check_range, metavar="N-M"),
    ] = None,
    occluders: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of people with an object in front of them.")
    ] = 0.2,
    truncated: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of people partly beyond a border of the image.")
    ] = 0.2,
    backgrounds: Annotated[
        Path | None, options.option("Folder of photographs without people; patterns by default.")
    ] = None,
    layout: options.Layout = "hmr2_44",
    parts: Annotated[int, typer.Option(help="Parts of the part maps: 24, 7 or 6.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    images_per_shard: Annotated[int, typer.Option(min=1, help="Number of images per shard.")] = 250,
    workers: options.Workers = 1,
    address: Annotated[
        str | None, options.option("Address of a Ray cluster; by default this machine alone.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace shards that were made with other settings.")
    ] = False,
) -> None:
    """Draw random people of every age, as shards of images, labels, masks, part maps and depth for training.

    Writes **000000.tar** and so on, and **labels.npz**. To resume after an interruption, give the same
    command again: finished shards are not repeated.

    Example: `agebody synthesize --count 10000 --people 1-3 -o people`
    """
    from agebody.pipelines.jobs.cluster import Cluster
    from agebody.pipelines.synthesis import Recipe
    from agebody.pipelines.synthesis import synthesize as draw

    options.check_exclusive(fov=fov, focal=focal)
    with running(ValueError, RuntimeError) as bars:
        sides = options.parse_size(size) or (256, 256)
        least, most = map(int, _read_range(people))
        angles = _read_range(fov or "35-65")
        if focal is not None:
            low, high = (math.degrees(2 * math.atan2(sides[1] / 2, f)) for f in _read_range(focal)[::-1])
            angles = low, high
        recipe = Recipe(
            count=count,
            people=(least, most),
            size=sides,
            seed=seed,
            ages=ages,
            matched=matched,
            fov=angles,
            occluders=occluders,
            truncated=truncated,
            backgrounds=None if backgrounds is None else str(backgrounds),
            layout=layout or "hmr2_44",
            parts=parts,
            images_per_shard=images_per_shard,
        )
        asset = options.load_body(body, bars)
        layer = options.make_layer(asset, num_betas=min(asset.num_betas, 10))
        paths = draw(
            layer,
            output,
            recipe,
            cluster=Cluster(workers, address),
            overwrite=overwrite,
            progress=show_count(bars, "drawing", count),
        )
    say(f"wrote {amount(count, 'images')} in {amount(len(paths), 'shards')} to {output}")
