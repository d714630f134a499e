"""agebody view: bodies and people in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, note, running, say, show_stages


@app.command()
def view(
    what: Annotated[
        str,
        options.argument(
            f"{options.BUILT_IN_HELP}, the path of a body file, or **labels.npz** of `agebody fit`.",
            "BODY|LABELS",
        ),
    ],
    output: options.OutputFile,
    images: Annotated[
        Path | None,
        options.option(
            "Photographs' folder or video of the labels, which the page then shows behind the people."
        ),
    ] = None,
    body: Annotated[
        str | None,
        options.option("The body of the labels, if it is not one of the free ones.", metavar="NAME|FILE"),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write an HTML page that shows a body of every age, or the people of labels; it needs no network.

    A page of a body has its numbers, so only bodies with a free licence are written. A page of labels has
    posed surfaces, and photographs only with `--images`.

    Examples: `agebody view anny -o body.html`, `agebody view out/labels.npz --images photos -o people.html`
    """
    options.check_suffix(output, ".html", ".htm")
    for name, value in (("--images", images), ("--body", body)):
        if value is not None and what in options.BUILT_IN:
            options.refuse(name, "it belongs to labels")
    labelled = images is not None or body is not None or _are_labels(Path(what))
    options.check_output(output, (Path(what), images), overwrite)
    with running(ValueError) as bars:
        if labelled:
            from agebody.pipelines.labels import load_labels
            from agebody.pipelines.labels.view import save_labels_html

            path = Path(what)
            labels = load_labels(path)
            layer = options.load_layer(body, path, labels, bars)
            problems = save_labels_html(
                layer,
                labels,
                output,
                images=images,
                overwrite=overwrite,
                progress=show_stages(bars, "drawing"),
            )
        else:
            from agebody.draw import save_html

            asset = options.load_body(what, bars)
            save_html(
                options.make_layer(asset, num_betas=min(asset.num_betas, 10)), output, overwrite=overwrite
            )
            problems = []
    say(f"wrote {output}")
    for problem in problems:
        note(f"not shown: {problem}")


def _are_labels(path: Path) -> bool:
    """Return whether a file has the arrays of labels, and not of a body."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as file:
            return "image_ids.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
