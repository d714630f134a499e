"""Place the people of many images in one space per image, from folders of depth maps and masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float

from agebody.age import parse_ages
from agebody.age.classes import AgeError
from agebody.annotations.arrays import read_npy
from agebody.annotations.coco import load_json
from agebody.annotations.people import fail, is_file_name
from agebody.annotations.photographs import open_image
from agebody.body import BodyModel
from agebody.cameras import Camera
from agebody.crowd.height_prior import SEXES
from agebody.draw import Picture, render
from agebody.draw.pictures import contact_sheet
from agebody.files import flat_names, replacing
from agebody.pipelines.labels.placing import PlacedLabels, place_labels
from agebody.pipelines.labels.quality import flag_labels
from agebody.pipelines.labels.records import Labels, concatenate_labels

MAX_SIDE = 640
"""Largest longer side of the maps on which depths are compared [pixels]."""
VIEW_HEIGHT = 480
"""Height of pictures from above [pixels]."""

UNPLACED = (
    "a map of unknown unit needs two people of whom the map agrees with the bodies; "
    "a map in metres (--metric) needs one, who would not be taller than 2.1 m"
)
"""What is needed to place a person."""


def place_images(
    body: BodyModel,
    labels: Labels,
    depths: Path,
    *,
    masks: Path | None = None,
    people: Path | None = None,
    views: Path | None = None,
    disparity: bool = False,
    metric: bool = False,
    refine: bool = False,
    overwrite: bool = False,
    source: Path = Path("labels"),
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[Labels, list[dict[str, Any]]]:
    """Place the people of each image by its depth map.

    Args:
        body: the layer that the labels were made with.
        labels: people of any number of images.
        depths: folder of one map per image, .npy or .png, named like the images; see `find_maps`. Integers
            are millimetres, and so metric, unless ``disparity``.
        masks: folder of maps of 0 for nobody, 1 for the first person of the image in the labels, and so on.
        people: JSON file of ages and sexes by the id of a person, such as
            ``{"7": {"years": 4, "sex": "female"}}``.
        views: existing folder for pictures from above, before and after.
        disparity: the maps are disparities.
        metric: maps of floats are in metres; else their unit and origin are unknown.
        refine: also place people on the ground and reduce overlaps; see `place_labels`.
        overwrite: replace existing pictures.
        source: the file of the labels, which errors name.
        progress: called with the number of images done.

    Returns:
        The labels in their order, and per image its name with numbers on its people.
    """
    images = labels.by_image()
    for name in images:
        if not is_file_name(name):
            fail(source, f"expected paths of images inside a folder, got {name!r}")
    depth_files = find_maps(depths, images)
    mask_files = None if masks is None else find_maps(masks, images)
    pictures = None if views is None else _name_views(views, images, overwrite)
    known = {} if people is None else read_known_people(people)
    if people is not None and known and len(labels) and known.keys().isdisjoint(map(str, labels.ids)):
        fail(people, f"expected ids of people of {source}, such as {labels.ids[0]}, got {next(iter(known))}")
    rows: list[dict[str, Any]] = []
    parts: list[Labels] = []
    for done, (name, chosen) in enumerate(images.items()):
        progress(done)
        part = labels.select(chosen)
        width, height = map(int, part.image_sizes[0])
        depth, metres = _read_depth(depth_files[name], name, (width, height), disparity)
        shown = None if mask_files is None else _read_masks(mask_files[name], name, depth.shape, len(part))
        said = [known.get(str(number), {}) for number in part.ids]
        sex = np.array([SEXES.index(entry.get("sex", "neutral")) for entry in said], dtype=np.int64)
        try:
            found = place_labels(
                body,
                part,
                depth,
                masks=shown,
                years=parse_ages(years=[entry.get("years") for entry in said]).years,
                sex=sex,
                disparity=disparity,
                metric=metric or metres,
                refine=refine,
            )
        except ValueError as error:
            fail(source, f"image {name}: {error}")
        rows.append({"image": name, **_describe(part, found)})
        parts.append(found.labels)
        if pictures is not None:
            with replacing(pictures[name]) as temporary:
                _draw_views(body, part, found.labels).save(temporary)
    if rows and not any(person["placed"] for row in rows for person in row["people"]):
        fail(depths, f"nobody could be placed: {UNPLACED}")
    order = np.argsort(np.concatenate([np.zeros(0, int), *images.values()]))
    return concatenate_labels(parts).select(order) if parts else flag_labels(labels), rows


def find_maps(folder: Path, images: Iterable[str]) -> dict[str, Path]:
    """Return the map of each image: NAME.npy or NAME.png, in the same folders as the images or in none."""
    found: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    for name in images:
        stems = dict.fromkeys((Path(name).parent / Path(name).stem, Path(Path(name).stem)))
        tried = [folder / f"{stem}{suffix}" for stem in stems for suffix in (".npy", ".png")]
        path = next((candidate for candidate in tried if candidate.is_file()), None)
        if path is None:
            fail(folder, f"expected {' or '.join(str(one.relative_to(folder)) for one in tried)} in it")
        if path in owner:
            fail(
                path, f"would be the map of {owner[path]} and of {name}; put maps in folders like the images"
            )
        owner[path] = name
        found[name] = path
    return found


def _name_views(folder: Path, images: Iterable[str], overwrite: bool) -> dict[str, Path]:
    """Return the picture file of each image, named like it with its folders in the name."""
    stems = {name: Path(name).with_suffix("").as_posix() for name in images}
    flat = flat_names(stems.values(), ".png")
    views = {name: folder / flat[stem] for name, stem in stems.items()}
    for path in views.values():
        if path.exists() and not overwrite:
            fail(path, "exists; pass overwrite=True to replace it")
    return views


def _read_depth(
    path: Path, name: str, size: tuple[int, int], disparity: bool
) -> tuple[Float[np.ndarray, "H W"], bool]:
    """Read the depth map of an image on a grid of at most ``MAX_SIDE``; NaN where depth is unknown.

    Returns:
        The map, and whether the file says that it is in metres.
    """
    values = _read_map(path)
    millimetres = values.dtype.kind != "f" and not disparity
    values = values.astype(np.float64) / (1000.0 if millimetres else 1.0)
    values[values <= 0] = np.nan
    width, height = size
    shrink = min(1.0, MAX_SIDE / max(size))
    shape = (max(round(height * shrink), 1), max(round(width * shrink), 1))
    if not values.size or abs(values.shape[1] / values.shape[0] - width / height) > 0.02 * width / height:
        found = f"{values.shape[1]} x {values.shape[0]}"
        fail(path, f"the map of {name} has {found} pixels, the image {width} x {height}")
    values = _resample(values, shape)
    return 1 / values if disparity else values, millimetres


def _read_masks(path: Path, name: str, shape: tuple[int, ...], people: int) -> Bool[np.ndarray, "P H W"]:
    values = _read_map(path)
    if not values.size:
        fail(path, f"the map of {name} has no pixels")
    numbers = _resample(values, shape)
    if numbers.max(initial=0) > people:
        fail(path, f"{name} has a person {int(numbers.max())}, but {people} people in the labels")
    return numbers == np.arange(1, people + 1)[:, None, None]


def _read_map(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        array = read_npy(path)
    else:
        with open_image(path, ("PNG",)) as image:
            array = np.asarray(image)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        fail(path, f"expected numbers of shape (H, W), got {array.dtype} {array.shape}")
    return array


def _resample(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the nearest values on another grid; means between two bodies would be wrong."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def read_known_people(path: Path) -> dict[str, Any]:
    """Read ages and sexes of people by their id."""
    expected = 'expected {"id": {"years": number, "sex": "female", "male" or "neutral"}}'

    def wrong(what: object) -> NoReturn:
        fail(path, f"{expected}, got {what!r}")

    known = load_json(path)
    if not isinstance(known, dict):
        wrong(known)
    for entry in known.values():
        if not isinstance(entry, dict) or not set(entry) <= {"years", "sex"}:
            wrong(entry)
        try:
            parse_ages(years=entry.get("years"))
        except AgeError:
            wrong(entry)
        if entry.get("sex", "neutral") not in SEXES:
            wrong(entry)
    return known


def _describe(before: Labels, found: PlacedLabels) -> dict[str, Any]:
    """Return numbers on an image and its people as JSON values, None for those that are not finite."""

    def finite(values: Iterable[float]) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values]

    placement, written, after = found.placement, found.written, found.labels
    columns: dict[str, Any] = {
        "id": before.ids,
        "placed": placement.placed,
        "far": found.far,
        "pixels": found.depths.pixels,
        "depth_before": before.depth,
        "depth": after.depth,
        "height_before": found.height,
        "height": written.height,
        "prior_mean": found.prior.mean,
        "prior_sd": found.prior.sd,
        "moved_pixels": written.pixels,
        "exact": written.exact,
        "kept": after.kept,
    }
    if (refined := found.refined) is not None and refined.penetration is not None:
        both = torch.maximum(refined.penetration, refined.penetration.mT)
        columns |= {"held": refined.held, "penetration": both.amax(-1)}
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {
        "people": [dict(zip(columns, person, strict=True)) for person in values],
        "slope": finite(placement.slope.tolist()),
        "shift": finite(placement.shift.tolist()),
        "bounded": placement.bounded.tolist(),
        "deviation": finite([float(placement.deviation)])[0],
    }


def _draw_views(body: BodyModel, before: Labels, after: Labels) -> Picture:
    """Draw people from above before and after, at one scale; their camera is at the bottom and looks up."""
    scenes = [body(labels.parameters(body)).vertices.cpu().numpy() for labels in (before, after)]
    half_width = max(float(np.abs(scene[..., 0]).max()) for scene in scenes) + 0.5
    depth = max(float(scene[..., 2].max()) for scene in scenes) + 0.5
    distance, size = 40 * depth, (max(round(VIEW_HEIGHT * 2 * half_width / depth), 16), VIEW_HEIGHT)
    camera = Camera.look_at(
        torch.tensor((0.0, -distance, depth / 2), dtype=torch.float64),
        (0.0, 0.0, depth / 2),
        size=size,
        fov=2 * math.atan(depth / 2 / distance),
        up=(0.0, 0.0, 1.0),
    )
    faces = body.faces.cpu().numpy()
    views = [render(scene, faces, camera, size=size, light_rays=0) for scene in scenes]
    return contact_sheet(views, columns=2)
