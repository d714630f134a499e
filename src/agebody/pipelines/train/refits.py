"""SPIN's loop (Kolotouros et al., ICCV 2019): fits that start at predictions become the labels of shards."""

from __future__ import annotations

import errno
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from agebody.assets.unpickle import loads
from agebody.cameras import from_crop
from agebody.files import make_folder, replacing
from agebody.fitting import fit_keypoints
from agebody.fitting.observed import MIN_POINTS
from agebody.nets import Regressor
from agebody.pipelines.labels.predicting import START_SD, crop_size_of, predict_parameters
from agebody.pipelines.labels.samples import (
    add_files,
    find_shards,
    index_shard,
    open_shard,
    read_about,
    read_members,
)
from agebody.pipelines.labels.training import dump_people
from agebody.pipelines.train.data import LAYOUT, TrainingData
from agebody.pipelines.train.shards import IMAGE, PEOPLE

_Fields = dict[str, Any]
"""Of one person in a shard, by name."""


class Refitted(NamedTuple):
    """What `refit_shards` did."""

    people: int
    """Who was fitted."""
    replaced: int
    """Whose label was worse than the fit."""
    labelled: int
    """Who of these has a pose for a label now."""


def refit_shards(
    network: Regressor,
    shards: str | PathLike[str] | Sequence[str | PathLike[str]],
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
    """Fit the people of shards from where a network sees them, and write shards with the better labels.

    For each person the better of the label and the fit is kept, by the mean distance of its keypoints from
    the observed ones, which the new shards state as ``fit_error`` [pixels]. A label without it, as those of
    4D-Humans, is taken to be the truth, as is that of a synthetic person. Another call with the new shards
    and a network that learned from them is the next round. Shards are written one by one, each whole.

    Args:
        network: on its device; it is put into evaluation mode.
        shards: a folder, or files, as for `TrainingData`.
        output: another folder. Its shards have the images, part maps and people of these, for `TrainingData`
            and the training code of HMR2, and no ``labels.json``, so that `TrainingShards` refuses them.
        crop_size: height and width of the crops [pixels]; by default ``network.backbone.image_size``.
        largest_error: of a label, as a share of the side of the person's box. Others have weight 0, as have
            the betas of people of unknown age on a body of every age.
        start_sd: how far the prediction may be off, as in `fit_keypoints`; empty to only start there.
        batch_size: people fitted at a time.
        overwrite: replace shards of the output.
        progress: called with the number of people done.
        options: others of `fit_keypoints`, such as ``stages``.

    Raises:
        AnnotationError: a shard is damaged, or nobody in it shows enough keypoints.
        FileExistsError: a shard is there, and ``overwrite`` is false.
        OSError: a file cannot be read or written.
    """
    if not 0 < largest_error < math.inf:
        raise ValueError(f"largest_error: expected a share above 0, got {largest_error}")
    height, width = crop_size_of(network) if crop_size is None else crop_size
    paths, folder = find_shards(shards), make_folder(output)
    for path in paths:
        new = folder / path.name
        if new.exists() and (not overwrite or new.samefile(path)):
            raise FileExistsError(errno.EEXIST, "exists; give another folder, or overwrite=True", new)
    if not network.body.age_anchors:
        start_sd = {name: sd for name, sd in start_sd.items() if name != "age_offset"}
    options = {"standard_errors": False, "start_sd": start_sd, **options}
    network.eval()
    counts = np.zeros(3, int)
    for path in paths:
        data = TrainingData(path, size=(width, height))
        fits: dict[int, dict[int, _Fields]] = defaultdict(dict)
        for first in range(0, data.people[0], batch_size):
            rows = range(first, min(first + batch_size, data.people[0]))
            for row, fields in zip(rows, _fit(network, data, rows, largest_error, options), strict=True):
                _, number, members = data.find_files(*data.find(row))
                fits[members[PEOPLE].start][number] = fields
            progress(int(counts[0]) + rows.stop)
        about = read_about(path) | {"refitted": True}
        with replacing(folder / path.name) as temporary, open_shard(temporary, about) as tar:
            for key, members in index_shard(path, (IMAGE, PEOPLE)).items():
                files = read_members(path, members)
                files.pop("labels.json", None)  # of the bodies before
                people = loads(files[PEOPLE])
                for number, fields in fits[members[PEOPLE].start].items():
                    counts += _improve(people[number], fields)
                add_files(tar, key, files | {PEOPLE: dump_people(people)})
    return Refitted(*counts.tolist())


def _fit(
    network: Regressor, data: TrainingData, rows: range, largest_error: float, options: Mapping[str, Any]
) -> Iterator[_Fields]:
    """Yield people as in a shard, fitted from where the network sees them."""
    body, count = network.body, len(rows)
    hands = body.num_joints > 24  # SMPL's last two joints are in their place
    batch = data.__getitems__(rows).to(body.device)
    target, box = batch.target, batch.box
    start = predict_parameters(network, batch.images.to(body.dtype), box, batch.camera)
    aged, seen = torch.ones(count, dtype=torch.bool, device=body.device), target["keypoints_2d_weights"]
    if body.age_anchors:
        known, kind = target["age_offset_weights"] > 0, target["age_class"] >= 0
        aged = known | kind
        # Of a stated class, an age offset may be that of the last fit.
        age = torch.where(known & ~kind, target["age_offset"], torch.nan)
        options = {"age_offset": age, "age_class": target["age_class"], **options}
    pixels = from_crop(target["keypoints_2d"], box)
    fit = fit_keypoints(body, pixels, batch.camera, weights=seen, layout=LAYOUT, start=start, **options)
    found = fit.parameters
    with torch.no_grad():
        points = body.keypoints(LAYOUT, found)
    error = torch.where((seen > 0).sum(-1) >= MIN_POINTS, fit.error, torch.inf)
    good = error <= largest_error * (box[:, 2] - box[:, 0])
    sized, betas = good & aged, F.pad(found.betas[:, : min(body.num_betas, 10)], (0, 10))[:, :10]
    age = found.age_offset * bool(body.age_anchors)
    pose = torch.cat((found.global_orient[:, None], found.body_pose), 1)[:, : 22 if hands else 24]
    made = {
        "body_pose": F.pad(pose.flatten(1), (0, 72 - 3 * pose.shape[1])),  # hands that no point shows
        "betas": torch.cat((betas, age[:, None]), 1),
        "keypoints_3d": torch.cat((points, sized[:, None, None].expand(-1, points.shape[1], 1)), 2),
        "fit_error": error,
        "has_body_pose": good,
        "has_betas": sized,
    }
    arrays = {name: part.float().cpu().numpy() for name, part in made.items()}
    return ({name: array[i] for name, array in arrays.items()} for i in range(count))


def _improve(person: _Fields, fields: _Fields) -> tuple[int, bool, bool]:
    """Give a person of a shard the fit where it is better; return what `Refitted` counts."""
    labelled = float(np.sum(person["has_body_pose"])) > 0
    better = fields["fit_error"] < float(person.get("fit_error", 0 if labelled else math.inf))
    if better:
        measured = "fit_error" not in person and (np.asarray(person["keypoints_3d"])[..., 3] > 0).any()
        person |= fields | ({"keypoints_3d": person["keypoints_3d"]} if measured else {})
    return 1, bool(better), bool(np.sum(person["has_body_pose"]) > 0)
