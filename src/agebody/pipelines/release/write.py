"""From photographs and fits to a folder that can be shared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agebody.body import BodyModel
from agebody.draw.mesh_files import save_npz
from agebody.keypoints import KeypointLayout, get_layout
from agebody.pipelines.release.arrange import Place, arrange, choose
from agebody.pipelines.release.backgrounds import Background, load_opencv, over, plain
from agebody.pipelines.release.bodies import Shape
from agebody.pipelines.release.folder import MANIFEST, describe_files, new_folder
from agebody.pipelines.release.index import annotation, category
from agebody.pipelines.release.manifest import FORMAT, make_manifest
from agebody.pipelines.release.options import Counts, ImageFormat, Options, Unfitted
from agebody.pipelines.release.photos import Photo, ReleaseError
from agebody.pipelines.release.pictures import save_clip, save_picture
from agebody.pipelines.release.regions import RegionRule
from agebody.pipelines.release.scene import Scene, make_scene

Report = Callable[[str, float], None]
"""Called with what is being done, and how much of it is done, 0 to 1."""


class Release(NamedTuple):
    """What was written, and what only its writer may know."""

    manifest: dict[str, Any]
    """The content of manifest.json."""
    sources: dict[str, Path]
    """Name of each released picture -> its photograph. No file of the release says this."""


def write_release(
    photos: Sequence[Photo],
    body: BodyModel,
    output: str | PathLike[str],
    *,
    background: Background = "blank",
    region: RegionRule = "auto",
    margin: float = 0.2,
    dilation: float = 0.05,
    shape: Shape = "coarse",
    unfitted: Unfitted = "refuse",
    layout: str | KeypointLayout = "coco17",
    image_format: ImageFormat = "png",
    fps: float = 25.0,
    seed: int | None = None,
    overwrite: bool = False,
    progress: Report = lambda stage, fraction: None,
) -> Release:
    """Write a folder in which bodies stand in for the people of photographs, as AionHMR shares its data.

    It holds ``images/`` (bodies over what is left of the photographs; not with background "none"),
    ``meshes/`` (bodies alone), ``clips/`` (the same as a video, one a sequence), ``parameters/`` (an .npz a
    picture), ``annotations.json`` (COCO's keypoints) and ``manifest.json`` (what was removed, and how). Only
    people who are listed are hidden; photographs in which nobody is listed are left out. The photographs are
    only read.

    Args:
        photos: what to release, each photograph once, with everybody in it.
        body: the body of the fits.
        output: the folder to write; it appears when all is well.
        background: "blank", "inpaint" or "none"; see `Background`.
        region: what is hidden of a person: "auto", "box" or "mesh"; see `RegionRule`.
        margin: by how much of its longer side a box grows on each side before it is hidden.
        dilation: by how much of the longer side of its box a mask grows.
        shape: "mean", "coarse" or "exact": how much of a person's shape is passed on, in parameters and
            pictures alike; see `generalize`.
        unfitted: what becomes of a photograph with a person who has no fit; see `Unfitted`.
        layout: of the keypoints.
        image_format: "png" or "jpg", of ``images/``.
        fps: frames a second of the clips.
        seed: of the order of pictures and people. Whoever knows it and the list of photographs can tell which
            picture is which; None takes an order that nobody can repeat.
        overwrite: replace the folder if it is a release that nobody has added to or changed.
        progress: see `Report`.

    Raises:
        ReleaseError: a photograph cannot be released as it is listed.
        ValueError: an option has another value.
        ImportError: embreex or OpenCV is missing; install ``agebody[release]``.
        FileExistsError: the folder exists, and may not be replaced.
        OSError: a file cannot be read or written.
    """
    options = Options(
        background, region, margin, dilation, shape, unfitted, get_layout(layout), image_format, fps
    )
    if background == "inpaint":
        load_opencv()  # before anything is written
    counts = Counts()
    with new_folder(output, overwrite=overwrite) as folder:
        places = arrange(choose(photos, options, counts), np.random.default_rng(seed))
        if not places:
            raise ReleaseError("no photograph is left to release")
        images, annotations = [], []
        for done, place in enumerate(places):
            progress("drawing", done / len(places))
            try:
                scene = make_scene(place, body, options)
                image, entries = _write_picture(place, scene, folder, options, counts, len(annotations))
            except ReleaseError as error:
                raise ReleaseError(f"{place.photo.path}: {error}") from None
            images.append(image)
            annotations += entries
        _write_clips(places, folder, options, counts, progress)
        _write_json(
            folder / "annotations.json",
            {
                "info": {"description": FORMAT},
                "images": images,
                "annotations": annotations,
                "categories": [category(options.layout)],
            },
        )
        progress("writing", 1)
        manifest = make_manifest(body.asset, options, counts, describe_files(folder))
        _write_json(folder / MANIFEST, manifest, indent=2)
    return Release(manifest, {place.name: Path(place.photo.path) for place in places})


def _write_picture(
    place: Place, scene: Scene, folder: Path, options: Options, counts: Counts, last_id: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes the files of one picture; its entries in the index."""
    drawn = f"meshes/{place.name}.png"
    save_picture(_file(folder, drawn), over(scene.bodies.picture.rgba, plain(scene.size)))
    if scene.background is not None:
        drawn = f"images/{place.name}.{options.image_format}"
        save_picture(_file(folder, drawn), over(scene.bodies.picture.rgba, scene.background))
    bodies = scene.bodies
    tracks = [
        number if person.track is not None and place.frame is not None else None
        for person, number in place.people
        if person.parameters is not None
    ]
    seen = [i for i in range(len(tracks)) if bodies.outline(i).any()]
    entries = [
        annotation(
            annotation_id=last_id + 1 + row, image_id=place.image_id, row=row, outline=bodies.outline(i),
            keypoints=bodies.keypoints[i], visibility=bodies.visibility[i], box=bodies.boxes[i],
            age_class=None if bodies.age_classes is None else bodies.age_classes[i],
            track_id=tracks[i],
        )
        for row, i in enumerate(seen)
    ]  # fmt: skip
    _save_parameters(_file(folder, f"parameters/{place.name}.npz"), scene, seen)
    image = {"id": place.image_id, "file_name": drawn, "width": scene.size[0], "height": scene.size[1]}
    if place.frame is not None:
        image |= {"sequence_id": place.sequence_id, "frame": place.frame}
    counts.pictures += 1
    counts.bodies += len(seen)
    counts.people_out_of_view += len(tracks) - len(seen)
    counts.people_hidden_without_body += len(place.people) - len(tracks)
    counts.photographs_of_predicting_formats += scene.predicted
    counts.photographs_hidden_both_ways_up += scene.two_ways
    return image, entries


def _save_parameters(path: Path, scene: Scene, people: list[int]) -> None:
    """The rows of annotations, and the camera, as float32."""
    arrays = {name: part[people] for name, part in scene.bodies.parameters._asdict().items()}
    arrays |= {name: part for name, part in scene.lens._asdict().items() if part is not None}
    arrays = {name: part.detach().cpu().float().numpy() for name, part in arrays.items()}
    save_npz(path, **arrays, size=np.array(scene.size))


def _write_clips(
    places: Sequence[Place], folder: Path, options: Options, counts: Counts, progress: Report
) -> None:
    """One a sequence, of bodies alone."""
    sequences: dict[int, list[Path]] = {}
    for place in places:
        if place.sequence_id is not None:
            sequences.setdefault(place.sequence_id, []).append(folder / f"meshes/{place.name}.png")
    for number, frames in sequences.items():
        progress("clips", counts.clips / len(sequences))
        save_clip(_file(folder, f"clips/{number:04d}.webp"), frames, options.fps)
        counts.clips += 1


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")
