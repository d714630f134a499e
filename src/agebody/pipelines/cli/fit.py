"""Fitting on the command line: from keypoints to labels."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agebody.files import replacing
from agebody.pipelines.cli.app import (
    app,
    check_device,
    clear_errors,
    fail,
    find_body,
    make_folder,
    progress_bar,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from agebody.body import BodyModel
    from agebody.pipelines.labels import Annotations, Labels

_NUM_BETAS = 10
"""What training code has place for."""
_FILES = ("labels.npz", "train.npz", "report.json", "report.md")


@app.command()
def fit(
    keypoints: Annotated[
        Path,
        typer.Argument(
            show_default=False,
            help="COCO annotations or results, or OpenPose's **\\*_keypoints.json**: a folder, or one.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", show_default=False, help="Folder for the files; it is created where missing."
        ),
    ],
    body: Annotated[
        str,
        typer.Option(
            help="**anny** (free, realistic), **mannequin** (built in), or the path of a body file. Training "
            "code wants SMPL's, with an infant template for children."
        ),
    ] = "anny",
    images: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Folder of the images; for sizes, overlays and shards."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(show_default=False, help="What the keypoints are, such as coco17, if no names say so."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", show_default=False, help="Of images whose size nothing says, such as 1920x1080."
        ),
    ] = None,
    focal: Annotated[
        float | None,
        typer.Option(
            min=1.0, show_default=False, help="Focal length [pixels]; the image's diagonal if not given."
        ),
    ] = None,
    fov: Annotated[
        float | None,
        typer.Option(
            min=1.0, max=179.0, show_default=False, help="Vertical field of view [degrees], instead."
        ),
    ] = None,
    age_offset: Annotated[
        float | None,
        typer.Option(
            show_default=False,
            help="Of everyone whose age the file does not say: 0 adult, 1 infant.",
        ),
    ] = None,
    age_class: Annotated[
        str | None,
        typer.Option(show_default=False, help="The same: **adult**, **teen**, **kid** or **baby**."),
    ] = None,
    years: Annotated[float | None, typer.Option(show_default=False, help="The same, age in years.")] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Keypoints below it do not count.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="People fitted at a time.")] = 256,
    device: Annotated[str, typer.Option(help="Where the fit runs: cpu, cuda, cuda:1, ...")] = "cpu",
    overlays: Annotated[
        int, typer.Option(min=0, help="Images to draw the fits over, evenly from all; 0 for none.")
    ] = 20,
    shards: Annotated[
        bool, typer.Option("--shards", help="Write **.tar** shards with the images, too, for training.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Fit bodies to the keypoints of people in images, and write labels to train with.

    Writes **labels.npz** (everything), **train.npz** (what the code of HMR2 and AionHMR reads),
    **report.json** and **report.md**, and **overlays/**. Every person is flagged by the rules of InfantNet,
    CamSMPLify and SPIN; who has no flag is kept.

    Example: `agebody fit keypoints.json --body ages.safetensors --images photos -o labels`
    """
    from agebody.pipelines.labels import fit_annotations, read_keypoints

    check_layout(layout)
    check_ages(age_offset=age_offset, age_class=age_class, years=years)
    check_finite({"--focal": focal, "--fov": fov, "--age-offset": age_offset, "--years": years,
                  "--min-confidence": min_confidence})  # fmt: skip
    refuse_both({"--focal": focal, "--fov": fov})
    refuse_both({"--age-offset": age_offset, "--age-class": age_class, "--years": years})
    if shards and images is None:
        raise typer.BadParameter("give the images: --images DIR", param_hint="--shards")
    check_device(device)
    drawn = overlays if images is not None else 0
    if drawn and importlib.util.find_spec("embreex") is None:
        fail("overlays need `pip install agebody[render]`; --overlays 0 leaves them out")
    with clear_errors(), progress_bar() as progress:
        found = read_keypoints(keypoints, layout=layout, images=images, size=parse_size(size))
        make_folder(output)
        _refuse_existing(output, overwrite)
        layer = find_layer(body, device, progress)
        if shards and not _trains(layer):
            fail(f"shards are for bodies of SMPL's 24 joints, not for {layer.asset.metadata.name}")
        task = progress.add_task("fitting", total=len(found))
        began = time.perf_counter()
        labels = fit_annotations(
            layer, found, focal=focal, fov=None if fov is None else math.radians(fov), age_offset=age_offset,
            age_class=age_class, years=years, min_confidence=min_confidence, batch_size=batch_size,
            progress=lambda people: progress.update(task, completed=people),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        _remove_earlier(output)
        summary, written = _write(output, layer, labels, found, seconds)
        astray: dict[str, str] = {}
        if shards and images is not None:
            written += _write_shards(output / "shards", layer, labels, images, astray, progress)
        if drawn and images is not None:
            written += _write_overlays(output / "overlays", layer, labels, images, drawn, astray, progress)
    _show(summary, layer)
    for note in (*found.notes, *(f"{name}: {why}" for name, why in list(astray.items())[:5])):
        typer.echo(f"note: {note}", err=True)
    if len(astray) > 5:
        typer.echo(f"note: {len(astray) - 5} more images could not be used", err=True)
    for name in written:
        print(f"wrote {output / name}")


def check_layout(layout: str | None) -> None:
    """Refuse a ``--layout`` that does not exist."""
    from agebody.keypoints import LAYOUTS

    if layout is not None and layout not in LAYOUTS:
        raise typer.BadParameter(f"expected {', '.join(LAYOUTS)}, got {layout!r}", param_hint="--layout")


def check_ages(**ages: Any) -> None:
    """Refuse ages that cannot be."""
    from agebody.age import AgeError, parse_ages

    try:
        parse_ages(**ages)
    except AgeError as error:
        raise typer.BadParameter(error.problem, param_hint=f"--{error.name.replace('_', '-')}") from None


def check_finite(options: dict[str, float | None]) -> None:
    """Refuse infinity and NaN, which pass for numbers."""
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise typer.BadParameter(f"expected a finite number, got {value}", param_hint=name)


def refuse_both(options: dict[str, Any]) -> None:
    """Refuse options of which each excludes the others."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"expected one of {', '.join(given)}", param_hint=given[1])


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Width and height of a ``--size``."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", text.strip())
    if found is None:
        raise typer.BadParameter(
            f"expected width x height, such as 1920x1080, got {text!r}", param_hint="--size"
        )
    return int(found[1]), int(found[2])


def _refuse_existing(output: Path, overwrite: bool) -> None:
    """Also what this call would not write: it would stand beside labels of which it was not made."""
    there = [name for name in (*_FILES, "overlays", "shards") if (output / name).exists()]
    if there and not overwrite:
        fail(f"{output / there[0]}: exists; --overwrite replaces it")


def _remove_earlier(output: Path) -> None:
    """What an earlier call wrote, and nothing else: it is of other labels."""
    from agebody.annotations.photographs import SUFFIXES

    found = [output / name for name in _FILES]
    found += (output / "shards").glob("[0-9]" * 6 + ".tar")
    found += [
        path
        for path in (output / "overlays").glob("*.png")
        if Path(path.stem).suffix.lower() in SUFFIXES  # the whole name of a photograph stands before
    ]
    for path in found:
        path.unlink(missing_ok=True)
    for name in ("shards", "overlays"):
        folder = output / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def find_layer(body: str, device: str, progress: Progress) -> BodyModel:
    """The layer of a ``--body`` option that people are fitted with."""
    from agebody.body import SMPL, SMPLA

    asset = find_body(body, progress)
    kind = SMPLA if asset.has_age else SMPL
    return kind(asset, num_betas=min(_NUM_BETAS, asset.num_betas), device=device)


def _write(
    output: Path, body: BodyModel, labels: Labels, found: Annotations, seconds: float
) -> tuple[dict[str, Any], list[str]]:
    from agebody.pipelines.labels import save_training_npz, summarize, to_markdown

    written: list[str] = list(_FILES)
    labels.save(output / "labels.npz", overwrite=True)
    if _trains(body):
        save_training_npz(body, labels, output / "train.npz", overwrite=True)
    else:
        written.remove("train.npz")
    summary = summarize(labels, found, seconds)
    for name, text in (
        ("report.json", json.dumps(summary, indent=2) + "\n"),
        ("report.md", to_markdown(summary)),
    ):
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return summary, written


def _trains(body: BodyModel) -> bool:
    """Whether training code has the joints of this body."""
    from agebody.assets.asset import SMPL_JOINT_NAMES

    return body.asset.joint_names == SMPL_JOINT_NAMES


def _write_shards(
    folder: Path, body: BodyModel, labels: Labels, images: Path, astray: dict[str, str], progress: Progress
) -> list[str]:
    import numpy as np

    from agebody.pipelines.labels import save_training_shards

    folder.mkdir(exist_ok=True)
    task = progress.add_task("shards", total=len(np.unique(labels.image_ids)))
    paths = save_training_shards(
        folder, body, labels, images,
        unreadable=lambda name, error: astray.update({name: str(error)}),
        progress=lambda done: progress.update(task, completed=done),
    )  # fmt: skip
    return [f"{folder.name}/{path.name}" for path in paths]


def _write_overlays(
    folder: Path,
    body: BodyModel,
    labels: Labels,
    images: Path,
    count: int,
    astray: dict[str, str],
    progress: Progress,
) -> list[str]:
    """Of images that can be read; their names are those of the images, with folders in them."""
    import numpy as np
    from PIL import Image

    from agebody.annotations import AnnotationError
    from agebody.annotations.photographs import read_photograph
    from agebody.pipelines.labels import draw_overlay

    folder.mkdir(exist_ok=True)
    names = np.unique(labels.image_ids)
    names = names[np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))]
    task = progress.add_task("overlays", total=len(names))
    written = 0
    for name in map(str, names):
        people = labels.select(np.flatnonzero(labels.image_ids == name))
        width, height = people.image_sizes[0].tolist()
        try:
            picture = draw_overlay(body, people, read_photograph(images / name, (width, height)))
        except (AnnotationError, OSError) as error:
            astray[name] = str(error)
        else:
            with replacing(folder / (re.sub(r"[/\\]", "__", name) + ".png")) as temporary:
                Image.fromarray(picture).save(temporary)
            written += 1
        progress.advance(task)
    return [f"{folder.name}/ ({written} images)"] if written else []


def _show(summary: dict[str, Any], body: BodyModel) -> None:
    table = Table(
        title=f"{summary['kept']} of {summary['people']} people kept, in {summary['images']} images",
        title_justify="left",
        caption_justify="left",
    )
    for i, heading in enumerate(("age class", "people", "kept", "median error [px]", "median age offset")):
        table.add_column(Text(heading), justify="right" if i else "left")
    for row in summary["ages"]:
        numbers = [row["median_reprojection_px"], row["median_age_offset"]]
        table.add_row(
            row["age_class"], str(row["people"]), str(row["kept"]),
            *("–" if number is None else f"{number:.2f}" for number in numbers),
        )  # fmt: skip
    lines = [f"{summary['seconds']:.1f} s, {summary['people_per_second']} people a second"]
    flags = [f"{name} {count}" for name, count in summary["flags"].items() if count]
    lines += [f"flags: {', '.join(flags)}"] if flags else []
    left_out = [f"{why} {count}" for why, count in summary["left_out"].items()]
    lines += [f"left out: {', '.join(left_out)}"] if left_out else []
    if summary["images_without_people"]:
        lines.append(f"images without people: {summary['images_without_people']}")
    if not _trains(body):
        lines.append(f"no train.npz: {summary['body']} has other joints than SMPL's 24")
    elif body.asset.metadata.kind not in ("smpl", "smil"):
        lines.append(f"betas are those of {summary['body']}; training code takes them for SMPL's")
    table.caption = Text("\n".join(lines), justify="left")
    Console().print(table)
