"""Shards of synthetic people; interrupted calls can be resumed."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agebody.age import UNKNOWN
from agebody.annotations.people import AnnotationError, fail
from agebody.body import BodyModel
from agebody.cameras.camera import Camera
from agebody.files import make_folder, replacing
from agebody.keypoints import get_layout
from agebody.measure import stature
from agebody.parameters import BodyParameters
from agebody.people import People, random_people
from agebody.pipelines.labels.records import Labels
from agebody.pipelines.labels.samples import add_sample, encode, open_shard, read_about
from agebody.pipelines.labels.training import pickle_people, training_arrays
from agebody.pipelines.synthesis.recipe import Recipe
from agebody.pipelines.synthesis.scenes import VISIBLE, Studio

DEFAULT = Recipe()
_BATCH = 64


def synthesize(
    body: BodyModel,
    output: str | PathLike[str],
    recipe: Recipe = DEFAULT,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Draw random people of every age, and write images and labels as shards, which `TrainingShards` reads.

    A shard is written as a whole, and states what it was made with, so after an interruption another call
    makes the missing shards. On the same kind of machine, the files are equal to the byte to those of an
    uninterrupted call.

    Args:
        body: the layer, of SMPL's joints and up to 10 betas; an `SMPLA` for people of all ages.
        output: the folder of the shards, ``000000.tar`` and on; it is created where missing.
        recipe: what the images show.
        overwrite: replace shards that were made with another recipe or body.
        progress: called with the number of images that are there, after each shard.

    Returns:
        The shards.

    Raises:
        AnnotationError: there are shards that were made otherwise.
        ImportError: embreex is missing; install ``agebody[render]``.
        OSError: a file cannot be written.
    """
    folder = make_folder(output)
    starts = range(0, recipe.count, recipe.images_per_shard)
    paths = [folder / f"{number:06d}.tar" for number in range(len(starts))]
    stated = recipe.describe(body)
    done = {path: _is_there(path, stated, overwrite) for path in paths}
    _refuse_others(folder, paths)
    studio = Studio(body, get_layout(recipe.layout))
    for number, path in enumerate(paths):
        if not done[path]:
            with replacing(path) as temporary, open_shard(temporary, stated) as tar:
                _fill(tar, body, studio, recipe, number)
        progress(min((number + 1) * recipe.images_per_shard, recipe.count))
    return paths


def _is_there(path: Path, stated: dict[str, Any], overwrite: bool) -> bool:
    """Return whether a shard is there and complete."""
    if not path.exists():
        return False
    try:
        found = read_about(path)
    except AnnotationError:
        return False  # truncated while it was copied
    differ = [
        f"{name}: {found.get(name)}, not {stated.get(name)}"
        for name in sorted(found.keys() | stated.keys())
        if found.get(name) != stated.get(name)
    ]
    if differ and not overwrite:
        fail(path, f"exists, and was made with {'; '.join(differ)}; pass overwrite=True to replace it")
    return not differ


def _refuse_others(folder: Path, paths: list[Path]) -> None:
    others = sorted({*folder.glob("[!.]*.tar")} - {*paths})
    if others:
        fail(others[0], "is no shard of this call, and would be read with them; give another folder")


def _fill(tar: tarfile.TarFile, body: BodyModel, studio: Studio, recipe: Recipe, number: int) -> None:
    start = number * recipe.images_per_shard
    images = min(recipe.images_per_shard, recipe.count - start)
    rng = np.random.default_rng([recipe.seed, number])
    counts = rng.integers(recipe.people[0], recipe.people[1] + 1, images)
    image = np.repeat(np.arange(images), counts)
    found = random_people(
        body,
        len(image),
        seed=int(rng.integers(2**62)),
        size=recipe.size,
        extent=recipe.extent,
        truncated=recipe.truncated,
    )
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    names = [f"{start + i:08d}.jpg" for i in range(images)]
    labels, vertices, camera = _labels(body, found, recipe.layout, [names[i] for i in image], first[image])
    views = []
    for i in range(images):
        rows = slice(first[i], first[i] + counts[i])
        views.append(
            studio.view(
                vertices[rows].numpy(),
                labels.keypoints[rows],
                _row(camera, int(first[i])),
                recipe.size,
                np.random.default_rng([recipe.seed, number, i]),
                occluders=recipe.occluders,
            )
        )
    hidden = np.concatenate([view.hidden for view in views])
    labels.observed[..., 2] = hidden == VISIBLE
    arrays = training_arrays(body, labels)
    for i, view in enumerate(views):
        rows = range(first[i], first[i] + counts[i])
        maps = {"mask": view.mask, "parts": view.parts, "depth": view.depth}
        add_sample(
            tar,
            names[i].split(".")[0],
            encode(view.image, "JPEG"),
            labels.select(np.array(rows)),
            pickle_people(arrays, rows),
            hidden=view.hidden,
            maps=maps,
        )


def _row(camera: Camera, row: int) -> Camera:
    return camera.map(lambda part: part[row])


def _batches(parameters: BodyParameters) -> Iterator[BodyParameters]:
    for parts in zip(*(part.split(_BATCH) for part in parameters), strict=True):
        yield BodyParameters(*parts)


def _labels(body: BodyModel, found: People, layout: str, names: list[str], first: Any) -> Any:
    focal = found.camera.focal
    camera = found.camera.map(lambda part: part[first]).to("cpu", torch.float64)
    with torch.no_grad():
        root = body.keypoints("smpl24", found.parameters)[:, 0, 2]
        shift = root * (focal[first, 1] / focal[:, 1] - 1)
        transl = found.transl.clone()
        transl[:, 2] += shift
        parameters = found.parameters._replace(transl=transl)
        vertices = torch.cat([body(part).vertices for part in _batches(parameters)])
        shaped = body.shape(parameters)
        points = shaped.keypoints(layout, parameters).double()
        joints = shaped.keypoints("smpl24", parameters)
        tall = stature(shaped.rest_vertices)
        keypoints = camera.project(points).pixels
        outline = camera.project(vertices.double()).pixels
    sizes = found.size.cpu().numpy()
    low, high = outline.amin(1).numpy(), outline.amax(1).numpy()
    count = len(tall)
    zero = np.zeros(count, np.float32)
    labels = Labels(
        body=body.asset.metadata.name,
        joint_names=tuple(body.asset.joint_names),
        keypoint_layout=layout,
        ids=np.arange(count),
        image_ids=np.array(names),
        image_sizes=sizes.astype(int),
        **{name: part.cpu().numpy() for name, part in parameters._asdict().items()},
        focal=camera.focal.float().numpy(),
        center=camera.center.float().numpy(),
        observed=np.concatenate((keypoints.numpy(), np.ones((*keypoints.shape[:2], 1))), -1),
        keypoints=keypoints.float().numpy(),
        joints=joints.numpy(),
        depth=joints[:, 0, 2].numpy(),
        boxes=np.concatenate((np.clip(low, 0, sizes), np.clip(high, 0, sizes)), 1),
        scores=zero + 1,
        reprojection=zero,
        start_reprojection=zero,
        converged=np.ones(count, bool),
        iterations=np.zeros(count, int),
        stop=np.full(count, "synthetic"),
        cost=zero,
        kept=np.ones(count, bool),
        age_known=np.ones(count, bool),
        age_class=np.full(count, UNKNOWN),
        age_offset_sd=zero,
        stature=tall.numpy(),
        stature_sd=zero,
        depth_sd=zero,
    )
    return labels, vertices, camera
