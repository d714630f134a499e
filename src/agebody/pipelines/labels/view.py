"""Write labels as a page that shows their people in their cameras."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from agebody.annotations.people import AnnotationError
from agebody.annotations.photographs import read_photograph
from agebody.annotations.tracks import name_key
from agebody.annotations.videos import USUAL_RATE, Video, frame_name, frame_rate, is_video
from agebody.body import BodyModel
from agebody.draw.html_files import Scene, save_scenes_html
from agebody.pipelines.labels.overlays import body_colors
from agebody.pipelines.labels.records import Labels
from agebody.pipelines.labels.samples import encode

_LARGEST = 1280
"""Longer side of photographs in a page [pixels]."""


def save_labels_html(
    body: BodyModel,
    labels: Labels,
    path: str | PathLike[str],
    *,
    images: str | PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> list[str]:
    """Write a page of all people of labels, image by image; return why photographs could not be shown.

    Lens distortion is left out: bodies are drawn as a camera without it sees them. ``images`` is the
    photographs' folder, or the video; without it the page shows no photograph. ``progress`` is called with
    "drawing", and the share that is done.
    """
    if not len(labels):
        raise AnnotationError("labels: expected at least one person")
    rows = labels.by_image()
    names = sorted(rows, key=name_key)
    source = None if images is None else Path(images)
    video = source is not None and is_video(source)
    frames = _frames(source, {*names}) if source is not None and video else {}
    scenes, problems = [], []
    for done, name in enumerate(names):
        people = labels.select(rows[name])
        size: tuple[int, int] = tuple(people.image_sizes[0].tolist())
        image = frames.get(name)
        if source is not None and not video:
            try:
                image = _jpeg(read_photograph(source / name, size))
            except AnnotationError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{source / name}: {error.strerror or error}")
        with torch.no_grad():
            vertices = body(people.parameters(body)).vertices.cpu().numpy()
        scenes.append(
            Scene(
                name,
                list(vertices),
                [_line(people, i) for i in range(len(people))],
                body_colors(people),
                size,
                tuple(people.focal[0].tolist()),
                tuple(people.center[0].tolist()),
                image,
                people.distortion[0].tolist(),
            )
        )
        progress("drawing", (done + 1) / len(names))
    if source is not None and all(scene.image is None for scene in scenes):
        why = problems[0] if problems else "the video has no such frames"
        raise AnnotationError(f"{source}: expected photographs or frames of the labels; {why}")
    followed = (labels.track >= 0).all()
    rate = frame_rate(source) if source is not None and video else USUAL_RATE if followed else None
    save_scenes_html(
        scenes,
        body.faces.cpu().numpy(),
        path,
        title=Path(path).stem,
        license=f"{labels.body}: {body.asset.metadata.license}",
        rate=rate,
        overwrite=overwrite,
    )
    return problems


def _line(labels: Labels, row: int) -> str:
    """Return what is known of a person."""
    parts = [f"{labels.ids[row]}"]
    if np.isfinite(labels.stature[row]):
        parts.append(f"{labels.stature[row]:.2f} m")
    parts.append(f"age offset {labels.age_offset[row]:.2f}")
    parts.append(f"{labels.depth[row]:.1f} m away")
    if not labels.kept[row]:
        parts.append("not kept")
    return ", ".join(parts)


def _frames(video: Path, wanted: set[str]) -> dict[str, bytes]:
    named = ((frame_name(number), picture) for number, picture in Video(video).frames())
    return {name: _jpeg(picture) for name, picture in named if name in wanted}


def _jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST, _LARGEST))
    return encode(np.asarray(image), "JPEG", quality=85)
