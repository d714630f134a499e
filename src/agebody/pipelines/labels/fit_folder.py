"""The folder that `agebody fit` writes: labels, training files, reports and overlays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from agebody.annotations.people import AnnotationError, People, fail
from agebody.annotations.photographs import SUFFIXES, read_photograph
from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.body import BodyModel
from agebody.files import replacing
from agebody.pipelines.labels.overlays import draw_overlay
from agebody.pipelines.labels.records import Labels
from agebody.pipelines.labels.summary import summarize, to_markdown
from agebody.pipelines.labels.training import save_training_npz, save_training_shards

FILES = ("labels.npz", "train.npz", "report.json", "report.md")


class Written(NamedTuple):
    """What was written."""

    summary: dict[str, Any]
    """The content of report.json."""
    files: list[str]
    """Names of files, and of the folder of overlays."""
    unusable: dict[str, str]
    """Images that could not be read -> the reason."""


def has_training_joints(body: BodyModel) -> bool:
    """Return whether training code can use the joints of a body."""
    return body.asset.joint_names == SMPL_JOINT_NAMES


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write beside files of earlier labels, even those that would not be replaced.

    Raises:
        AnnotationError: there are such files, and ``overwrite`` is false.
    """
    for name in (*FILES, "overlays", "shards"):
        if (folder / name).exists() and not overwrite:
            fail(folder / name, "exists; --overwrite replaces it")


def empty_folder(folder: Path) -> None:
    """Delete what an earlier call wrote, and nothing else, because it belongs to other labels."""
    found = [folder / name for name in FILES]
    found += (folder / "shards").glob("[0-9]" * 6 + ".tar")
    # The name of an overlay contains the whole name of its photograph.
    overlays = (folder / "overlays").glob("*.png")
    found += [path for path in overlays if Path(path.stem).suffix.lower() in SUFFIXES]
    for path in found:
        path.unlink(missing_ok=True)
    for name in ("shards", "overlays"):
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()


def write_folder(
    folder: Path,
    body: BodyModel,
    labels: Labels,
    people: People,
    *,
    seconds: float,
    images: Path | None = None,
    overlays: int = 0,
    shards: bool = False,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Written:
    """Write labels first and pictures last, each file whole or not at all.

    Args:
        folder: an existing folder.
        body: the layer that the labels were made with.
        labels: the fits.
        people: what they were fitted to.
        seconds: duration of the fit.
        images: the folder of the images; overlays and shards need it.
        overlays: number of images to draw fits over, evenly spaced.
        shards: write training shards with the images, too.
        progress: called with the stage, and the fraction of it that is done.
    """
    files: list[str] = [*FILES]
    unusable: dict[str, str] = {}
    labels.save(folder / "labels.npz", overwrite=True)
    if has_training_joints(body):
        save_training_npz(body, labels, folder / "train.npz", overwrite=True)
    else:
        files.remove("train.npz")
    summary = summarize(labels, people, seconds)
    texts = {"report.json": json.dumps(summary, indent=2) + "\n", "report.md": to_markdown(summary)}
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if shards and images is not None:
        (folder / "shards").mkdir(exist_ok=True)
        total = len(np.unique(labels.image_ids))
        paths = save_training_shards(
            folder / "shards",
            body,
            labels,
            images,
            unreadable=lambda name, error: unusable.update({name: str(error)}),
            progress=lambda done: progress("shards", done / total),
        )
        files += [f"shards/{path.name}" for path in paths]
    if overlays and images is not None:
        count = _write_overlays(folder / "overlays", body, labels, images, overlays, unusable, progress)
        files += [f"overlays/ ({count} images)"] if count else []
    return Written(summary, files, unusable)


def _write_overlays(
    folder: Path,
    body: BodyModel,
    labels: Labels,
    images: Path,
    count: int,
    unusable: dict[str, str],
    progress: Callable[[str, float], None],
) -> int:
    """Draw overlays, named like their images with folders in the name; return how many were written."""
    folder.mkdir(exist_ok=True)
    names = np.unique(labels.image_ids)
    names = names[np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))]
    written = 0
    for done, name in enumerate(map(str, names)):
        progress("overlays", done / len(names))
        people = labels.select(np.flatnonzero(labels.image_ids == name))
        width, height = people.image_sizes[0].tolist()
        try:
            picture = draw_overlay(body, people, read_photograph(images / name, (width, height)))
        except (AnnotationError, OSError) as error:
            unusable[name] = str(error)
            continue
        with replacing(folder / (re.sub(r"[/\\]", "__", name) + ".png")) as temporary:
            Image.fromarray(picture).save(temporary)
        written += 1
    return written
