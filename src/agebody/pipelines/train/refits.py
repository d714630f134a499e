"""SPIN's loop (Kolotouros et al., ICCV 2019): fits started at predictions become the labels of shards."""

from __future__ import annotations

import errno
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from agebody.age import Ages
from agebody.annotations.people import ImageEntry, People
from agebody.annotations.shards import Shards, find_shards
from agebody.assets.unpickle import loads
from agebody.body import BodyModel
from agebody.cameras import from_crop
from agebody.checks import read_positive
from agebody.files import read_flag, replacing
from agebody.fitting.observed import MIN_POINTS
from agebody.keypoints import get_layout
from agebody.nets import Regressor
from agebody.pipelines.labels.fitting import fit_people, make_labels, replace_bodies
from agebody.pipelines.labels.predicting import START_SD, crop_size_of, predict_parameters
from agebody.pipelines.labels.quality import flag_labels
from agebody.pipelines.labels.records import Labels, concatenate_labels
from agebody.pipelines.labels.samples import (
    IMAGE,
    LABELS,
    PEOPLE,
    add_files,
    index_shard,
    open_shard,
    read_about,
    read_labels,
    read_members,
    write_labels,
)
from agebody.pipelines.labels.training import NUM_BETAS, dump_people, shard_person, training_arrays
from agebody.pipelines.outputs import make_output
from agebody.pipelines.train.data import LAYOUT, NobodyError, TrainingData
from agebody.pipelines.train.shards import WEIGHTS

_FIT = ("body_pose", "betas", "keypoints_3d", "fit_error", "has_body_pose", "has_betas")
"""Fields of a person in a shard that a fit replaces, beside those of fingers and face."""
_CAMERA = ("focal", "center", "distortion")
_REPORT = ("start_reprojection", "converged", "iterations", "stop", "cost", "terms")
_ERRORS = ("age_offset_sd", "stature_sd", "depth_sd")


class Refitted(NamedTuple):
    """What `refit_shards` did."""

    people: int
    """Number of people who were fitted."""
    replaced: int
    """Number of people whose label was worse than the fit."""
    labelled: int
    """Number of people with a pose label now."""


def refit_shards(
    network: Regressor,
    shards: Shards,
    output: str | PathLike[str],
    *,
    crop_size: tuple[int, int] | None = None,
    largest_error: float = 0.04,
    start_sd: Mapping[str, float] = START_SD,
    batch_size: int = 64,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda people: None,
    **options: Any,
) -> Refitted:
    """Fit the people of shards from a network's predictions, and write shards with the better labels.

    For each person the better of the label and the fit is kept, by the mean distance of its keypoints from
    the observed ones, which the new shards state as ``fit_error`` [pixels]. A label without it, as those of
    4D-Humans, is taken to be the truth, as is that of a synthetic person. Fingers and faces, of which no
    points are fitted, stay as they are labelled; else they are the network's, of weight 0. Another call with
    the new shards and a network that learned from them is the next round. Shards are written one by one, each
    whole; one in which nobody shows enough keypoints is copied.

    Args:
        network: on its device; it is put into evaluation mode.
        shards: a folder, or files, as for `TrainingData`.
        output: another folder. Its shards have all that these have; ``labels.json`` stays out of shards whose
            labels are of another body than the network's.
        crop_size: height and width of the crops [pixels]; by default ``network.backbone.image_size``.
        largest_error: of a label, as a share of the side of the person's box. Others have weight 0, as have
            the betas of people of unknown age on a body of every age.
        start_sd: how far the prediction may be off, as in `fit_keypoints`; empty to only start there.
        batch_size: people fitted at a time.
        overwrite: replace shards of the output.
        progress: called with the number of people done.
        options: others of `fit_keypoints`, such as ``stages``.

    Raises:
        AnnotationError: a shard is damaged.
        FileExistsError: a shard is there, and ``overwrite`` is false.
        OSError: a file cannot be read or written.
    """
    read_positive("largest_error", largest_error, "a share")
    height, width = crop_size_of(network) if crop_size is None else crop_size
    paths, folder = find_shards(shards, ".tar"), make_output(output, "training shards")
    for path in paths:
        new = folder / path.name
        if new.exists() and (not read_flag("overwrite", overwrite) or new.samefile(path)):
            raise FileExistsError(errno.EEXIST, "exists; give another folder, or overwrite=True", new)
    if not network.body.age_anchors:
        start_sd = {name: sd for name, sd in start_sd.items() if name != "age_offset"}
    options = {"standard_errors": False, "start_sd": start_sd, **options}
    network.eval()
    counts = np.zeros(3, int)
    for path in paths:
        parts: list[Labels] = []
        rows: dict[int, dict[int, int]] = defaultdict(dict)
        with suppress(NobodyError):
            data = TrainingData(path, size=(width, height))
            for first in range(0, data.people[0], batch_size):
                some = range(first, min(first + batch_size, data.people[0]))
                parts.append(_fit(network, data, some, largest_error, options))
                for row in some:
                    _, number, members = data.find_files(*data.find(row))
                    rows[members[PEOPLE].start][number] = row
                progress(int(counts[0]) + some.stop)
        fits = concatenate_labels(parts) if parts else None
        counts += _write(path, folder / path.name, network.body, fits, rows)
    return Refitted(*counts.tolist())


def _fit(
    network: Regressor, data: TrainingData, rows: range, largest_error: float, options: Mapping[str, Any]
) -> Labels:
    """Return people of shards, fitted from the network's predictions; those that are labels are kept."""
    body, batch = network.body, data.__getitems__(rows).to(network.body.device)
    start = predict_parameters(network, batch.images.to(body.dtype), batch.box, batch.camera)
    target = {name: value.cpu() for name, value in batch.target.items()}
    box, kind = batch.box.cpu(), target["age_class"]
    # Of a stated class, an age offset may be that of the last fit.
    age = torch.where((target["age_offset_weights"] > 0) & (kind < 0), target["age_offset"], torch.nan)
    people = People(
        data.paths[0],
        get_layout(LAYOUT),
        (ImageEntry("", 0, (1, 1)),),  # of labels that no image is compared with
        image=np.zeros(len(rows), int),
        ids=np.array(rows),
        keypoints=from_crop(target["keypoints_2d"], box).numpy(),
        weights=target["keypoints_2d_weights"].numpy(),
        boxes=box.numpy(),
        ages=Ages(age.numpy(), np.full(len(rows), math.nan), kind.numpy()),
    )
    fit = fit_people(body, people, batch.camera, start=start, **options)
    labels = make_labels(body, people, batch.camera, fit)
    error = np.where((people.weights > 0).sum(1) >= MIN_POINTS, labels.reprojection, math.inf)
    kept = error <= largest_error * (people.boxes[:, 2] - people.boxes[:, 0])
    return replace(labels, reprojection=error, kept=kept, flags={"age_unknown": ~labels.age_known})


def _write(
    path: Path, new: Path, body: BodyModel, fits: Labels | None, rows: Mapping[int, Mapping[int, int]]
) -> np.ndarray:
    """Write a shard with the better of its labels and the fits; return what `Refitted` counts.

    ``rows`` are those of the fits, by the place of each image's list of people, and their numbers in it.
    """
    counts = np.zeros(3, int)
    arrays = {} if fits is None else training_arrays(body, _with_few_betas(body, fits))
    with replacing(new) as temporary, open_shard(temporary, read_about(path) | {"refitted": True}) as tar:
        for key, members in index_shard(path, (IMAGE, PEOPLE)).items():
            files = read_members(path, members)
            people, better = loads(files[PEOPLE]), {}
            for number, row in rows[members[PEOPLE].start].items() if fits is not None else ():
                if _improve(people[number], arrays, row):
                    better[number] = row
                counts += (1, number in better, np.sum(people[number]["has_body_pose"]) > 0)
            files[PEOPLE] = dump_people(people)
            if LABELS in files and fits is not None:
                labels, hidden = read_labels(path, files.pop(LABELS))
                if _is_of(labels, fits):
                    files[LABELS] = write_labels(_replace(body, labels, fits, better), hidden)
            add_files(tar, key, files)
    return counts


def _with_few_betas(body: BodyModel, fits: Labels) -> Labels:
    """Return fits without the betas that shards cannot have."""
    betas = fits.betas.copy()
    betas[:, NUM_BETAS : body.num_betas] = 0
    return replace(fits, betas=betas)


def _improve(person: dict[str, Any], arrays: Mapping[str, np.ndarray], row: int) -> bool:
    """Give a person of a shard the fit where it is better; return whether it is."""
    labelled = float(np.sum(person["has_body_pose"])) > 0
    if not arrays["fit_error"][row] < float(person.get("fit_error", 0 if labelled else math.inf)):
        return False
    measured = "fit_error" not in person and (np.asarray(person["keypoints_3d"])[..., 3] > 0).any()
    stays = {"keypoints_3d"} if measured else set()
    for name, weight in WEIGHTS.items():
        stays |= {name, weight} if np.sum(person.get(weight, 0)) > 0 else set()
    replaced = {*_FIT, *WEIGHTS, *WEIGHTS.values()} - stays
    person |= {name: value for name, value in shard_person(arrays, row).items() if name in replaced}
    return True


def _is_of(labels: Labels, fits: Labels) -> bool:
    """Return whether labels are of the body of the fits."""
    names = (labels.body, labels.joint_names, labels.betas.shape[1])
    return names == (fits.body, fits.joint_names, fits.betas.shape[1])


def _replace(body: BodyModel, labels: Labels, fits: Labels, better: Mapping[int, int]) -> Labels:
    """Return the labels of an image with some rows from fits."""
    if not better:
        return labels
    rows = np.array([*better])
    made = fits.select(np.array([*better.values()]))
    its = {name: getattr(made, name) for name in (*_CAMERA, *_REPORT, *_ERRORS)}
    part = replace(labels.select(rows), **its)
    part = replace_bodies(body, part, made.parameters(body), made.camera().to(body.device, body.dtype))
    others = np.setdiff1d(np.arange(len(labels)), rows)
    order = np.argsort(np.concatenate((rows, others)))
    whole = flag_labels(concatenate_labels([part, labels.select(others)]).select(order))
    kept = np.where(np.isin(np.arange(len(labels)), rows), whole.kept, labels.kept)
    return replace(whole, kept=kept)
