"""The folder that `agebody fit` writes: labels, training files, reports and overlays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from agebody.annotations.people import AnnotationError, People, fail
from agebody.annotations.photographs import SUFFIXES, read_photograph
from agebody.annotations.tracks import frame_order
from agebody.annotations.videos import Video, frame_name, is_video
from agebody.body import BodyModel
from agebody.files import flat_names, read_flag, replacing_files
from agebody.pipelines.labels.overlays import draw_overlay, draw_video
from agebody.pipelines.labels.records import Labels, load_labels
from agebody.pipelines.labels.summary import summarize, to_markdown
from agebody.pipelines.labels.training import has_training_joints, save_training_npz, save_training_shards
from agebody.pipelines.outputs import amount, refuse_others

VIDEO = "overlay.mp4"
"""The overlay of a video; those of several cameras are named after these, too."""
FILES = ("labels.npz", "train.npz", "report.json", "report.md")


class Written(NamedTuple):
    """Files that were written, and images that could not be used."""

    summary: dict[str, Any]
    """The content of report.json."""
    files: list[str]
    """Names of files, and of the folder of overlays."""
    unusable: dict[str, str]
    """Images that could not be read -> the reason."""


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write beside files of earlier labels, even those that would not be replaced.

    Raises:
        AnnotationError: there are such files, and ``overwrite`` is false.
        FileExistsError: the folder holds results of another command.
    """
    refuse_others(folder, "agebody fit")
    for path in (*(folder / name for name in (*FILES, "overlays", "shards")), *_existing_videos(folder)):
        if path.exists() and not read_flag("overwrite", overwrite):
            fail(path, "exists; pass overwrite=True to replace it")


def _pictures(folder: Path) -> list[Path]:
    """Return the shards and overlays that an earlier call wrote."""
    # The name of an overlay contains the suffix of its photograph.
    overlays = (folder / "overlays").glob("*.png")
    found = [path for path in overlays if Path(path.stem).suffix.lower() in SUFFIXES]
    return found + list((folder / "shards").glob("[0-9]" * 6 + ".tar"))


def _existing_videos(folder: Path) -> list[Path]:
    """Return the overlays of videos that an earlier call wrote, by the cameras that its labels name."""
    names = [VIDEO]
    with suppress(AnnotationError, OSError):
        views = {Path(name).parts[0] for name in load_labels(folder / FILES[0]).image_ids if "/" in name}
        names += [_video_name(view) for view in sorted(views)]
    return [folder / name for name in names if (folder / name).exists()]


def write_folder(
    folder: Path,
    body: BodyModel,
    labels: Labels,
    people: People,
    *,
    seconds: float,
    images: Path | Mapping[str, Path] | None = None,
    overlays: int = 0,
    video_rate: float | None = None,
    every: int = 1,
    shards: bool = False,
    overwrite: bool = False,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Written:
    """Write labels and reports, and then, if that takes long or fails, pictures: each all or none.

    Files of earlier labels are replaced or deleted; other files in the folder are kept.

    Args:
        folder: an existing folder.
        body: the layer that the labels were made with.
        labels: the fits.
        people: what they were fitted to.
        seconds: duration of the fit.
        images: the folder of the images, or a video; overlays need it, and shards a folder. Or, by its name,
            that of each of several cameras, which have an overlay each.
        overlays: number of images to draw fits over, evenly spaced.
        video_rate: frames per second of a video of all overlays, in place of pictures.
        every: the images are every n-th frame of the video.
        shards: write training shards with the images, too.
        overwrite: replace files of earlier labels.
        progress: called with the stage, and the fraction of it that is done.
    """
    files: list[str] = [*FILES]
    videos = _existing_videos(folder)  # before its labels are replaced
    unusable: dict[str, str] = {}
    summary = summarize(labels, people, seconds)
    texts = {"report.json": json.dumps(summary, indent=2) + "\n", "report.md": to_markdown(summary)}
    with replacing_files(
        folder,
        check=lambda: check_folder(folder, overwrite=overwrite),
        stale=lambda: [folder / name for name in FILES],
    ) as new:
        labels.save(new / "labels.npz")
        if has_training_joints(body.asset.joint_names):
            save_training_npz(body, labels, new / "train.npz")
        else:
            files.remove("train.npz")
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
    with replacing_files(folder, stale=lambda: [*_pictures(folder), *videos]) as new:
        if shards and isinstance(images, Path):
            (new / "shards").mkdir()
            total = len(labels.by_image())
            paths = save_training_shards(
                new / "shards",
                body,
                labels,
                images,
                unreadable=lambda name, error: unusable.update({name: str(error)}),
                progress=lambda done: progress("shards", done / total),
            )
            files += [f"shards/{path.name}" for path in paths]
        if video_rate is None and overlays and isinstance(images, Path):
            count = _write_overlays(new / "overlays", body, labels, images, overlays, unusable, progress)
            files += [f"overlays/ ({amount(count, 'images')})"] if count else []
        if video_rate is not None and images is not None:
            if isinstance(images, Path):
                views = [(VIDEO, "", images)]
            else:
                views = [(_video_name(name), f"{name}/", path) for name, path in images.items()]
            for name, view, path in views:
                frames = _read_frames(people, view, path, every, unusable, progress)
                files += [name] if draw_video(new / name, body, labels, frames, video_rate) else []
    return Written(summary, files, unusable)


def _video_name(view: str) -> str:
    return f"{Path(VIDEO).stem}_{view}.mp4"


def _read_frames(
    people: People,
    view: str,
    images: Path,
    every: int,
    unusable: dict[str, str],
    progress: Callable[[str, float], None],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and pixels of frames, one at a time."""
    if is_video(images):
        for done, (number, picture) in enumerate(Video(images).frames(every)):
            progress("overlays", done / max(len(people.images), done + 1))
            yield view + frame_name(number), picture
        return
    for done, i in enumerate(frame_order(people)):
        progress("overlays", done / len(people.images))
        name, _, size = people.images[i]
        if not name.startswith(view):
            continue
        try:
            picture = read_photograph(images / name.removeprefix(view), size)
        except (AnnotationError, OSError) as error:
            unusable[name] = str(error)
            continue
        yield name, picture


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
    folder.mkdir()
    rows = labels.by_image()
    names, flat = sorted(rows), flat_names(rows, ".png")
    chosen = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    written = 0
    for done, name in enumerate(names[i] for i in chosen):
        progress("overlays", done / len(chosen))
        people = labels.select(rows[name])
        width, height = people.image_sizes[0].tolist()
        try:
            picture = draw_overlay(body, people, read_photograph(images / name, (width, height)))
        except (AnnotationError, OSError) as error:
            unusable[name] = str(error)
            continue
        Image.fromarray(picture).save(folder / flat[name])
        written += 1
    return written
