"""Shards of synthetic people, one at a time or all with Ray; interrupted calls can be resumed."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agebody.age import parse_ages
from agebody.annotations.people import AnnotationError, ImageEntry, fail
from agebody.annotations.people import People as Observed
from agebody.body import BodyModel
from agebody.files import read_flag, replacing
from agebody.keypoints import get_layout, joint_layout
from agebody.measure import stature
from agebody.parameters import BodyParameters
from agebody.people import People, random_people
from agebody.pipelines.jobs.backends import run_all
from agebody.pipelines.jobs.cluster import THIS_PROCESS, Cluster, check_cluster
from agebody.pipelines.labels.fitting import as_fit, make_labels
from agebody.pipelines.labels.records import Labels
from agebody.pipelines.labels.samples import TrainingShards, add_sample, encode, open_shard, read_about
from agebody.pipelines.labels.settings import describe_differences
from agebody.pipelines.labels.training import has_training_joints, pickle_people, training_arrays
from agebody.pipelines.outputs import make_output
from agebody.pipelines.synthesis.recipe import Recipe, draw_ages
from agebody.pipelines.synthesis.scenes import VISIBLE, Studio

LABELS = "labels.npz"
DEFAULT = Recipe()
_BATCH = 64
_APART = 0.3
"""Least distance between the roots of two people of an image, as a share of the sum of their statures."""
_LARGEST_SEED = 2**62


def synthesize(
    body: BodyModel,
    output: str | PathLike[str],
    recipe: Recipe = DEFAULT,
    *,
    cluster: Cluster = THIS_PROCESS,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Draw random people of every age, and write images and labels as shards, which `TrainingShards` reads.

    A shard is written as a whole, and states its settings. After an interruption, another call makes the
    missing shards; unfinished work leaves no files. On the same kind of machine, the files are byte-identical
    to those of an uninterrupted call, whatever the number of workers. When all shards exist, their labels are
    also written to ``labels.npz``, which `load_labels` and ``agebody evaluate`` read.

    Args:
        body: the layer, of SMPL's joints or its first 22 and hands, and up to 10 betas; an `SMPLA` for people
            of all ages. Of one with hands, ``layout`` may have their points, such as "coco133".
        output: the folder of the shards, ``000000.tar`` and on; it is created where missing.
        recipe: what the images show.
        cluster: where; several workers need Ray, and the same paths on all machines.
        overwrite: replace shards that were made with another recipe or body.
        progress: called with the number of finished images, at the beginning and after each shard.

    Returns:
        The shards.

    Raises:
        AnnotationError: existing shards were made with other settings, or a photograph is damaged.
        RuntimeError: a worker was repeatedly killed by the system.
        OSError: a file cannot be read or written.
        ImportError: embreex is missing, install ``agebody[render]``; or Ray is.
    """
    count = -(-recipe.count // recipe.images_per_shard)
    cluster = check_cluster(cluster._replace(workers=cluster.workers and min(cluster.workers, count)))
    names = body.asset.joint_names
    draw_ages(recipe.ages, body, 1, np.random.default_rng(0))
    random_people(body, 1, seed=recipe.seed)
    if body.num_betas > 10 or not has_training_joints(names):
        raise ValueError(
            "body: expected SMPL's 24 joints, or 22 and hands, and up to 10 betas, got "
            f"{len(names)} and {body.num_betas}; use num_betas=10"
        )
    Studio(body, recipe)  # says what is missing, before anything is written
    folder = make_output(output, "training shards").absolute()
    paths = [folder / f"{i:06d}.tar" for i in range(count)]
    others = sorted({*folder.glob("[!.]*.tar")} - {*paths})
    if others or ((folder / LABELS).exists() and not overwrite and not paths[0].exists()):
        other = others[0] if others else folder / LABELS
        fail(other, "is not of these shards, and would be read with them or replaced; give another folder")
    overwrite = read_flag("overwrite", overwrite)
    todo = [i for i, path in enumerate(paths) if not _is_there(path, recipe.describe(body, i), overwrite)]
    done = recipe.count - sum(map(recipe.images, todo))
    progress(done)
    if todo:
        call = {"folder": folder, "recipe": recipe}
        run_all(
            body, make_shard, todo, call, cluster, lambda made: progress(done + sum(map(recipe.images, made)))
        )
    if todo or not (folder / LABELS).exists():
        TrainingShards(paths).labels().save(folder / LABELS, overwrite=True)
    return paths


def make_shard(body: BodyModel, number: int, *, folder: Path, recipe: Recipe) -> None:
    """Write one shard, whole or not at all."""
    studio = Studio(body, recipe)
    path = folder / f"{number:06d}.tar"
    with replacing(path) as temporary, open_shard(temporary, recipe.describe(body, number)) as tar:
        _fill(tar, body, studio, number)


def _is_there(path: Path, stated: dict[str, Any], overwrite: bool) -> bool:
    """Return whether a shard exists and is complete."""
    if not path.exists():
        return False
    try:
        found = read_about(path)
    except AnnotationError:
        return False  # truncated while it was copied
    if not found and not overwrite:
        fail(path, "exists, and is not a shard of synthetic people; pass overwrite=True to replace it")
    differ = describe_differences(found, stated)
    if differ and not overwrite:
        fail(path, f"exists, and was made with {differ}; pass overwrite=True to replace it")
    return not differ


def _fill(tar: tarfile.TarFile, body: BodyModel, studio: Studio, number: int) -> None:
    recipe = studio.recipe
    images, start = recipe.images(number), number * recipe.images_per_shard
    rng = np.random.default_rng([recipe.seed, number])
    counts = rng.integers(recipe.people[0], recipe.people[1] + 1, images)
    image = np.repeat(np.arange(images), counts)
    ends = np.cumsum(counts)
    found = _draw_people(body, recipe, counts.tolist(), rng)
    names = [f"{start + i:08d}.jpg" for i in range(images)]
    within = np.arange(len(image)) - (ends - counts)[image]
    ids = (start + image) * recipe.people[1] + within
    labels, vertices = _labels(body, found, recipe.layout, ids, np.array(names)[image])
    rows = [np.arange(end - count, end) for count, end in zip(counts, ends, strict=True)]
    camera = found.camera.to("cpu", torch.float64)
    views = [
        studio.view(
            vertices[its].numpy(),
            labels.keypoints[its],
            camera.map(itemgetter(int(its[0]))),
            np.random.default_rng([recipe.seed, number, i]),
        )
        for i, its in enumerate(rows)
    ]
    labels.observed[..., 2] = np.concatenate([view.hidden for view in views]) == VISIBLE
    arrays = training_arrays(body, labels, true=True)
    for name, its, view in zip(names, rows, views, strict=True):
        add_sample(
            tar,
            Path(name).stem,
            encode(view.image, "JPEG"),
            labels.select(its),
            pickle_people(arrays, its.tolist()),
            hidden=view.hidden,
            maps={"mask": view.mask, "parts": view.parts, "depth": view.depth},
        )


def _draw_people(body: BodyModel, recipe: Recipe, counts: list[int], rng: np.random.Generator) -> People:
    total = sum(counts)
    ages = draw_ages(recipe.ages, body, total, rng)
    others = draw_ages(recipe.ages, body, total, rng)
    found = random_people(
        body,
        total,
        ages=ages,
        seed=int(rng.integers(_LARGEST_SEED)),
        size=recipe.size,
        extent=recipe.extent,
        truncated=recipe.truncated,
        posture_years=others if recipe.matched and isinstance(others, Tensor) else None,
        fov=tuple(np.radians(recipe.fov).tolist()),
        together=counts,
    )
    if max(counts) == 1:
        return found
    with torch.no_grad():
        roots = body.keypoints(joint_layout("pelvis"), found.parameters)[:, 0].double().cpu().numpy()
        tall = stature(body.shape(found.parameters).rest_vertices).cpu().numpy()
    ends = np.cumsum(counts)
    farther = np.ones(total)
    for count, end in zip(counts, ends, strict=True):
        for row in range(end - count + 1, end):
            before = slice(end - count, row)
            room = _APART * (tall[before] + tall[row])
            for _ in range(30):  # along the ray, so that they keep their place in the image
                away = roots[before] * farther[before, None] - roots[row] * farther[row]
                if (np.linalg.norm(away, axis=1) > room).all():
                    break
                farther[row] *= 1.08
    parameters = found.parameters
    shift = torch.from_numpy(roots * (farther - 1)[:, None]).to(parameters.transl)
    return found._replace(parameters=parameters._replace(transl=parameters.transl + shift))


def _labels(
    body: BodyModel, people: People, layout: str, ids: np.ndarray, names: np.ndarray
) -> tuple[Labels, Tensor]:
    """Return the labels of people, all keypoints with weight 1, and their vertices."""
    parameters, camera = people.parameters, people.camera.map(Tensor.double)
    with torch.no_grad():
        batches = map(BodyParameters._make, zip(*(part.split(_BATCH) for part in parameters), strict=True))
        vertices = torch.cat([body(part).vertices for part in batches])
        keypoints = camera.project(body.keypoints(layout, parameters).double()).pixels.numpy(force=True)
        outline = camera.project(vertices.double()).pixels.numpy(force=True)
    sizes, count = people.size.numpy(force=True).astype(int), len(ids)
    images, image = np.unique(names, return_inverse=True)
    observed = Observed(
        Path(),
        get_layout(layout),
        tuple(ImageEntry(str(name), i, tuple(sizes[0].tolist())) for i, name in enumerate(images)),
        image=image,
        ids=ids,
        keypoints=keypoints,
        weights=np.ones(keypoints.shape[:2]),
        boxes=np.concatenate([np.clip(corner, 0, sizes) for corner in (outline.min(1), outline.max(1))], 1),
        ages=parse_ages(shape=(count,)),
    )
    labels = make_labels(body, observed, people.camera, as_fit(parameters, torch.zeros(count)))
    known, exact = np.ones(count, bool), np.zeros(count, np.float32)
    exactly = dict.fromkeys(("age_offset_sd", "stature_sd", "depth_sd"), exact)
    labels = replace(labels, stop=np.full(count, "synthetic"), kept=known, age_known=known, **exactly)
    return labels, vertices.cpu()
