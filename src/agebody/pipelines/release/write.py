"""From photographs and fits to a folder that can be shared."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agebody.annotations.videos import load_opencv
from agebody.body import BodyModel
from agebody.checks import read_count
from agebody.files import read_flag, replacing, save_npz
from agebody.keypoints import KeypointLayout, get_layout
from agebody.pipelines.jobs.backends import run_all
from agebody.pipelines.jobs.cluster import THIS_PROCESS, Cluster, check_cluster
from agebody.pipelines.release.files import (
    MANIFEST,
    check_replaceable,
    coco_annotation,
    coco_category,
    describe_files,
    new_folder,
    save_clip,
    save_picture,
)
from agebody.pipelines.release.manifest import FORMAT, make_manifest
from agebody.pipelines.release.options import (
    Background,
    Counts,
    ImageFormat,
    Options,
    RegionRule,
    Shape,
    Unfitted,
)
from agebody.pipelines.release.photos import Photo, ReleaseError, read_pixels
from agebody.pipelines.release.scene import Scene, compose, make_scene

MESH_BACKGROUND = (243, 239, 233)
"""The colour behind bodies in pictures that show nothing of a photograph."""

Report = Callable[[str, float], None]
"""Called with what is being done, and how much of it is done, 0 to 1."""


class Release(NamedTuple):
    """What was written; ``sources`` is for its writer alone."""

    manifest: dict[str, Any]
    """The content of manifest.json."""
    sources: dict[str, Path]
    """Name of each released picture -> its photograph; no file of the release contains this."""


class Place(NamedTuple):
    """The place of a photograph in the release."""

    image_id: int
    photo: Photo
    """With its people in random order."""
    numbers: tuple[int, ...]
    """One per person, constant throughout a sequence for people with a track."""
    sequence_id: int | None = None
    frame: int | None = None
    """Index among the released frames of the sequence."""

    @property
    def name(self) -> str:
        """Name of its files, without suffix."""
        return f"{self.image_id:06d}"


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
    key: str | PathLike[str] | None = None,
    cluster: Cluster = THIS_PROCESS,
    overwrite: bool = False,
    progress: Report = lambda stage, fraction: None,
) -> Release:
    """Write a folder in which bodies stand in for the people of photographs, as AionHMR shares its data.

    It holds ``images/`` (bodies over what is left of the photographs; not with background "none"),
    ``meshes/`` (bodies alone), ``clips/`` (bodies alone as a video, one per sequence), ``parameters/`` (one
    .npz per picture), ``annotations.json`` (COCO keypoints) and ``manifest.json`` (what was removed, and
    how). Only listed people are hidden; photographs without listed people are left out. The photographs
    themselves are only read.

    Args:
        photos: what to release, each photograph once, with everybody in it.
        body: the body of the fits.
        output: the folder to write; it appears when everything is written.
        background: "blank", "inpaint" or "none"; see `Background`.
        region: what is hidden of a person: "auto", "box", "mask" or "mesh"; see `RegionRule`.
        margin: share of its longer side by which a box grows on each side before it is hidden.
        dilation: share of the longer side of its box by which a mask grows.
        shape: how much of a person's shape is passed on in parameters and pictures: "mean", "coarse" or
            "exact"; see `generalize`.
        unfitted: what happens to a photograph with a person who has no fit; see `Unfitted`.
        layout: layout of the keypoints.
        image_format: "png" or "jpg", for ``images/``.
        fps: frames per second of the clips.
        seed: seed of the order of pictures and people. The seed and the list of photographs reveal which
            picture is which; None chooses an order that cannot be repeated.
        key: a new JSON file outside of the folder, for the owner alone, with the photograph of each picture.
            It is written with the folder, or not at all, and is never replaced.
        cluster: where pictures are drawn; several workers need Ray.
        overwrite: replace the folder if it is a release that nobody has changed or added to.
        progress: see `Report`.

    Raises:
        ReleaseError: a photograph cannot be released as it is listed.
        ImportError: embreex or OpenCV is missing; install ``agebody[release]``.
        FileExistsError: the folder or the key exists and may not be replaced.
        OSError: a file cannot be read or written.
        RuntimeError: a worker was repeatedly killed by the system.
    """
    options = Options(
        background, region, margin, dilation, shape, unfitted, get_layout(layout), image_format, fps
    )
    if seed is not None:
        read_count("seed", seed)
    if background == "inpaint":
        load_opencv("inpainting", "agebody[release]")  # fail before anything is written
    check_places(output, key, overwrite=read_flag("overwrite", overwrite))
    cluster = check_cluster(cluster)
    counts = Counts()
    with ExitStack() as undo, new_folder(output, overwrite=overwrite) as folder, _new_key(key, undo) as keys:
        places = arrange(choose(photos, options, counts), np.random.default_rng(seed))
        if not places:
            raise ReleaseError("no photograph is left to release")
        call = {"folder": folder, "options": options}
        progress("drawing", 0)
        written = run_all(
            body,
            _write_picture,
            places,
            call,
            cluster,
            lambda its: progress("drawing", len(its) / len(places)),
        )
        images, annotations = [], []
        for image, entries, its in map(written.__getitem__, places):
            images.append(image)
            annotations += [{"id": len(annotations) + i + 1} | entry for i, entry in enumerate(entries)]
            counts.add(its)
        _write_clips(places, folder, options, counts, progress)
        index = {"info": {"description": FORMAT}, "images": images, "annotations": annotations}
        _write_json(folder / "annotations.json", index | {"categories": [coco_category(options.layout)]})
        progress("writing", 1)
        manifest = make_manifest(body.asset, options, counts, describe_files(folder))
        _write_json(folder / MANIFEST, manifest, indent=2)
        sources = {place.name: Path(place.photo.path) for place in places}
        if keys is not None:
            _write_json(keys, {name: str(path) for name, path in sources.items()}, indent=2)
    return Release(manifest, sources)


def check_places(output: str | PathLike[str], key: str | PathLike[str] | None, *, overwrite: bool) -> None:
    """Refuse, before anything that takes long, places that cannot be written.

    Raises:
        ReleaseError: the key would be in the folder.
        FileExistsError: the folder or the key exists and may not be replaced.
    """
    target = Path(os.path.realpath(output))
    if target.is_dir():
        check_replaceable(target, overwrite)
    if key is None:
        return
    place = Path(os.path.realpath(key))
    if target in (place, *place.parents):
        raise ReleaseError(f"{key}: the key must not be in the folder that is shared; give another place")
    if os.path.lexists(key):
        problem = "the file exists; a key is never replaced, so give another name"
        raise FileExistsError(errno.EEXIST, problem, str(key))


@contextmanager
def _new_key(path: str | PathLike[str] | None, undo: ExitStack) -> Iterator[Path | None]:
    """Yield the temporary file of a key, which is in place before the folder, and goes if that fails."""
    if path is None:
        yield None
        return
    with replacing(path, overwrite=False, private=True) as temporary:
        yield temporary
    undo.push(lambda kind, error, trace: None if kind is None else Path(path).unlink())


def choose(photos: Sequence[Photo], options: Options, counts: Counts) -> list[Photo]:
    """Return the photographs to release: each once, with people, and all of them fitted unless allowed.

    A photograph without listed people may show people who were not detected, so it is left out.

    Raises:
        ReleaseError: a photograph is listed twice or damaged, or has a person without a fit and that is
            refused.
        OSError: a photograph cannot be read.
    """
    seen: dict[str, Photo] = {}
    chosen = []
    for photo in photos:
        same = photo
        if options.background != "none" and (photo.people or photo.hide):
            same = seen.setdefault(_fingerprint(photo), photo)
        if same is not photo:
            raise ReleaseError(
                f"{photo.path}: the same picture as {same.path}; one could show what the other hides, "
                "so list it once, with everybody in it"
            )
        missing = sum(person.parameters is None for person in photo.people)
        if not photo.people:
            counts.photographs_left_out_without_people += 1
        elif missing and options.unfitted == "refuse":
            raise ReleaseError(
                f"{photo.path}: {missing} of {len(photo.people)} people have no fit; "
                'choose unfitted="drop" to leave such pictures out, or "blank" to hide these people'
            )
        elif missing and options.unfitted == "drop":
            counts.photographs_left_out_unfitted += 1
        else:
            chosen.append(photo)
    return chosen


def _fingerprint(photo: Photo) -> str:
    """Hash the pixels of a photograph, so that the same pixels in another file format are the same."""
    try:
        rgb = read_pixels(photo.path).rgb
    except ReleaseError as error:
        raise ReleaseError(f"{photo.path}: {error}") from None
    return hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest()


def arrange(photos: Sequence[Photo], rng: np.random.Generator) -> list[Place]:
    """Put photographs and sequences in random order, frames in their own, people in random order."""
    groups: dict[object, list[Photo]] = {}
    for i, photo in enumerate(photos):
        groups.setdefault((photo.sequence,) if photo.sequence is not None else i, []).append(photo)
    keys = list(groups)
    sequence_ids, image_ids = itertools.count(1), itertools.count(1)
    places = []
    for index in rng.permutation(len(keys)):
        group = groups[keys[index]]
        sequence_id = None if group[0].sequence is None else next(sequence_ids)
        tracks = sorted({str(person.track) for photo in group for person in photo.people} - {"None"})
        numbers = dict(zip(tracks, rng.permutation(len(tracks)).tolist(), strict=True))
        for frame, photo in enumerate(group):
            others = itertools.count(len(tracks))
            people = [
                (person, numbers[str(person.track)] if person.track is not None else next(others))
                for person in photo.people
            ]
            people = [people[i] for i in rng.permutation(len(people))]
            shuffled = replace(photo, people=[person for person, _ in people])
            in_sequence = (None, None) if sequence_id is None else (sequence_id, frame)
            places.append(
                Place(next(image_ids), shuffled, tuple(number for _, number in people), *in_sequence)
            )
    return places


def _write_picture(
    body: BodyModel, place: Place, *, folder: Path, options: Options
) -> tuple[dict[str, Any], list[dict[str, Any]], Counts]:
    """Write the files of one picture; return its image and annotations for the index, and what is counted."""
    try:
        scene = make_scene(place.photo, place.numbers, body, options)
    except ReleaseError as error:
        raise ReleaseError(f"{place.photo.path}: {error}") from None
    bodies, people = scene.bodies, place.photo.people
    drawn = f"meshes/{place.name}.png"
    plain = np.broadcast_to(np.array(MESH_BACKGROUND, np.uint8), (scene.size[1], scene.size[0], 3))
    save_picture(compose(bodies.picture.rgba, plain), _file(folder, drawn))
    if scene.background is not None:
        drawn = f"images/{place.name}.{options.image_format}"
        save_picture(compose(bodies.picture.rgba, scene.background), _file(folder, drawn))
    tracks = [
        number if person.track is not None and place.frame is not None else None
        for person, number in zip(people, place.numbers, strict=True)
        if person.parameters is not None
    ]
    outlines = [bodies.picture.instance == i for i in range(len(tracks))]
    seen = [i for i, outline in enumerate(outlines) if outline.any()]
    entries = [
        coco_annotation(
            image_id=place.image_id,
            row=row,
            outline=outlines[i],
            keypoints=bodies.keypoints[i],
            visibility=bodies.visibility[i],
            box=bodies.boxes[i],
            age_class=None if bodies.age_classes is None else bodies.age_classes[i],
            track_id=tracks[i],
        )
        for row, i in enumerate(seen)
    ]
    _save_parameters(scene, seen, _file(folder, f"parameters/{place.name}.npz"))
    image = {"id": place.image_id, "file_name": drawn, "width": scene.size[0], "height": scene.size[1]}
    if place.frame is not None:
        image |= {"sequence_id": place.sequence_id, "frame": place.frame}
    counts = Counts(
        pictures=1,
        bodies=len(seen),
        people_out_of_view=len(tracks) - len(seen),
        people_hidden_without_body=len(people) - len(tracks),
        photographs_of_predicting_formats=int(scene.predicted),
        photographs_hidden_both_ways_up=int(scene.hidden_both_ways),
    )
    return image, entries, counts


def _save_parameters(scene: Scene, people: list[int], path: Path) -> None:
    """Write the people of the annotations, in their order, and the camera, as float32."""
    arrays = {name: part[people] for name, part in scene.bodies.parameters._asdict().items()}
    arrays |= {name: part for name, part in scene.lens._asdict().items() if part is not None}
    arrays = {name: part.detach().cpu().float().numpy() for name, part in arrays.items()}
    save_npz(arrays | {"size": np.array(scene.size)}, path)


def _write_clips(
    places: Sequence[Place], folder: Path, options: Options, counts: Counts, progress: Report
) -> None:
    """Write a clip of bodies alone per sequence."""
    sequences: dict[int, list[Path]] = {}
    for place in places:
        if place.sequence_id is not None:
            sequences.setdefault(place.sequence_id, []).append(folder / f"meshes/{place.name}.png")
    for number, frames in sequences.items():
        progress("clips", counts.clips / len(sequences))
        save_clip(frames, _file(folder, f"clips/{number:04d}.webp"), fps=options.fps)
        counts.clips += 1


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")
