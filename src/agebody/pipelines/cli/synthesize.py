"""`agebody synthesize`: synthetic people of every age in images, with all labels."""

from __future__ import annotations

from typing import Annotated

import typer

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, running, say


@app.command()
def synthesize(
    output: options.OutputFolder,
    body: options.Body = "anny",
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1000,
    people: Annotated[
        str, options.option("People per image: a number, or a range such as 1-3.", metavar="N-M")
    ] = "1",
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Size of the images, such as 256x256.")
    ] = "256x256",
    layout: Annotated[str, typer.Option(help="Layout of the keypoints.")] = "hmr2_44",
    occluders: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of people with a thing in front of them.")
    ] = 0.2,
    truncated: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of people partly beyond a border of the image.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    images_per_shard: Annotated[int, typer.Option(min=1, help="Number of images per shard.")] = 250,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace shards that were made with other settings.")
    ] = False,
) -> None:
    """Draw random people of every age, as shards of images, labels, masks, part maps and depth for training.

    Writes **000000.tar** and so on. To resume after an interruption, give the same command again: finished
    shards are not repeated.

    Example: `agebody synthesize --count 10000 --people 1-3 -o people`
    """
    from agebody.pipelines.synthesis import Recipe
    from agebody.pipelines.synthesis import synthesize as draw

    sides = options.parse_size(size)
    if sides is None:
        raise typer.BadParameter(f"expected width x height, such as 256x256, got {size!r}")
    with running(ValueError) as bars:
        recipe = Recipe(
            count=count,
            people=_read_range(people),
            size=sides,
            seed=seed,
            layout=layout,
            occluders=occluders,
            truncated=truncated,
            images_per_shard=images_per_shard,
        )
        asset = options.load_body(body, bars)
        layer = options.make_layer(asset, num_betas=min(asset.num_betas, 10))
        task = bars.add_task("drawing", total=count)
        paths = draw(
            layer, output, recipe, overwrite=overwrite, progress=lambda n: bars.update(task, completed=n)
        )
    say(f"wrote {count} images in {len(paths)} shards to {output}")


def _read_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise ValueError(f"people: expected a number, or a range such as 1-3, got {text!r}") from None
