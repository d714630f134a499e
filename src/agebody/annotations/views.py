"""People seen by several calibrated cameras: files of the cameras, and matches of people between views."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agebody.annotations.calibration import Cameras
from agebody.annotations.people import People, fail, join_people, shorten
from agebody.annotations.tracks import GAP, frame_numbers, frame_order, link_people
from agebody.annotations.videos import is_video
from agebody.cameras import Camera

SAME_PLACE = 0.15
"""Median distance of the rays through the keypoints of two views, below which they are one person's [m]."""
LARGEST = 10.0
"""Median distance of keypoints from the middle of a person, above which the unit is not metres [m]."""
SAMPLES = 64
"""Frames in which two tracks are compared, at most."""
STRETCH = 0.02
"""Largest difference of aspect ratios between a view and its calibration, such as by a video's margins."""


class Views(NamedTuple):
    """People of several cameras; the images of each are in a folder of its name."""

    people: People
    """With ``tracks``: one person has the same in all views."""
    cameras: Cameras
    """Cameras for images of the sizes that the views have."""


def find_views(folder: Path, cameras: Cameras) -> dict[str, Path]:
    """Return what each camera has in a folder: a video, a folder, or a file of keypoints, of its name.

    A name may have more before and after it, set off by a space or a sign, as ``cam01_json``. A camera
    ``int_cam01_img`` of Pose2Sim has the name ``cam01``.

    Raises:
        AnnotationError: a camera has none, or several, or one belongs to no camera.
    """
    if not folder.is_dir():
        fail(folder, "expected a folder with a video, or the keypoints, of each camera")
    there = [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and (path.is_dir() or is_video(path) or path.suffix.lower() == ".json")
    ]
    names = ", ".join(cameras.names)
    found: dict[str, Path] = {}
    for path in there:
        stem = path.name if path.is_dir() else path.stem
        fitting = [name for name in cameras.names if name == stem] or [
            name for name in cameras.names if _within(re.sub("^int_|_img$", "", name), stem)
        ]
        if len(fitting) != 1:
            what = f"of no camera; they are {names}" if not fitting else f"of {' and of '.join(fitting)}"
            fail(path, f"{what}; name videos, or folders of keypoints, as the calibration names cameras")
        (name,) = fitting
        if name in found:
            fail(folder, f"{found[name].name} and {path.name} are both of camera {name}; expected one")
        found[name] = path
    missing = [name for name in cameras.names if name not in found]
    if missing:
        got = shorten([path.name for path in there])
        fail(
            folder,
            f"no video or keypoints of camera {', '.join(missing)}, got {got}; leave the camera out of the "
            "calibration, or add them",
        )
    return {name: found[name] for name in cameras.names}


def _within(part: str, whole: str) -> bool:
    return re.search(rf"(?<![^\W_]){re.escape(part)}(?![^\W_])", whole) is not None


def join_views(found: Mapping[str, People], cameras: Cameras, *, gap: int = GAP) -> Views:
    """Return the people of synchronised cameras as one, with a track per person.

    In each view people are followed over the frames (tracks of files stay). Tracks of different views whose
    keypoints lie on rays that meet are one person. Intrinsics are scaled to the sizes of the images, in which
    the view may have narrow margins.

    Args:
        found: per name of a camera, the people of its frames, as many in each view.
        cameras: the cameras of these names.
        gap: frames for which a view may lose a person.

    Raises:
        AnnotationError: there are fewer than two cameras, or their frames differ in number or size, or the
            keypoints differ, or the calibration is not in metres.
    """
    first = found[next(iter(found))] if found else None
    if first is None or len(found) < 2 or set(found) != set(cameras.names):
        raise ValueError(
            f"found: expected people of cameras {', '.join(cameras.names)}, two or more, got {list(found)}"
        )
    counts = {name: len(people.images) for name, people in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        fail(first.path.parent, f"expected as many frames of each camera, at the same times, got {told}")
    if len({people.layout for people in found.values()}) > 1:
        told = ", ".join(f"{people.layout.name} of {name}" for name, people in found.items())
        fail(first.path.parent, f"expected the same keypoints of each camera, got {told}")
    views = [found[name] for name in cameras.names]
    cameras, notes = _scaled(views, cameras)
    views = [link_people(people, gap=gap) for people in views]
    tracks, reach = _match(views, cameras.camera)
    if reach > LARGEST:
        fail(
            first.path.parent,
            f"keypoints are {reach:.0f} m from the middle of a person; the translations of the calibration "
            "must be in metres, so divide those in millimetres by 1000",
        )
    joined = join_people([_in_folder(one, name) for one, name in zip(views, cameras.names, strict=True)])
    changes = {"tracks": np.concatenate(tracks), "notes": (*joined.notes, *notes), "path": first.path.parent}
    return Views(replace(joined, **changes), cameras)


def _in_folder(people: People, folder: str) -> People:
    """Return people whose images are in a folder of that name."""
    images = (one._replace(name=f"{folder}/{one.name}", id=f"{folder}/{one.id}") for one in people.images)
    return replace(people, images=tuple(images))


def view_frames(
    people: People, names: tuple[str, ...]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Return which camera sees each person, and in which of its frames."""
    place = {name: i for i, name in enumerate(names)}
    views = np.array([place.get(Path(image.name).parts[0], -1) for image in people.images], dtype=np.int64)
    if (views < 0).any():
        name = people.images[int(np.argmax(views < 0))].name
        fail(people.path, f"image {name}: expected a folder named like a camera ({', '.join(names)})")
    order = np.array(frame_order(people), dtype=np.int64)
    frames = np.zeros(len(views), dtype=np.int64)
    for view in range(len(names)):
        own = order[views[order] == view]
        frames[own] = np.arange(len(own))
    return views[people.image], frames[people.image]


def _scaled(views: list[People], cameras: Cameras) -> tuple[Cameras, tuple[str, ...]]:
    """Return the cameras of images of the sizes that the views have, and what to note."""
    sizes, notes = [], []
    scale, shift = torch.ones_like(cameras.camera.focal[:, :1]), torch.zeros_like(cameras.camera.focal)
    for i, (name, people, calibrated) in enumerate(zip(cameras.names, views, cameras.sizes, strict=True)):
        own = {image.size for image in people.images}
        if len(own) != 1 or None in own:
            fail(people.path, f"camera {name}: expected images of one size, got {len(own)} sizes")
        (size,) = own
        assert size is not None
        sizes.append(size)
        if calibrated is None or size == calibrated:
            continue
        across, down = size[0] / calibrated[0], size[1] / calibrated[1]
        got = f"{size[0]} x {size[1]} pixels, calibrated were {calibrated[0]} x {calibrated[1]}"
        if abs(across / down - 1) > STRETCH:
            fail(people.path, f"camera {name}: images of {got}: of another shape, so cropped or turned")
        notes.append(f"camera {name}: {got}; taken for a smaller or larger picture of the same view")
        scale[i] = min(across, down)
        shift[i] = torch.tensor(size) / 2 - scale[i] * torch.tensor(calibrated) / 2  # of a letterbox
    camera = cameras.camera.resized(scale)
    camera = camera._replace(center=camera.center + shift)
    return cameras._replace(camera=camera, sizes=tuple(sizes)), tuple(notes)


def _match(views: list[People], camera: Camera) -> tuple[list[Int[np.ndarray, " N"]], float]:
    """Return the number of each person, the same in all views, and how large people are [m]."""
    rays = [_rays(people, camera.map(lambda part, i=i: part[i])) for i, people in enumerate(views)]
    keys: list[tuple[int, int]] = []
    rows: list[dict[int, int]] = []  # of each track, by frame
    for view, people in enumerate(views):
        assert people.tracks is not None
        frames = frame_numbers(people)
        for track in np.unique(people.tracks):
            own = np.flatnonzero(people.tracks == track)
            keys.append((view, int(track)))
            rows.append(dict(zip(frames[own].tolist(), own.tolist(), strict=True)))
    count = len(keys)
    gain, reaches = np.zeros((count, count)), list[float]()
    for a in range(count):
        for b in range(a):
            common = sorted(rows[a].keys() & rows[b].keys())
            if keys[a][0] == keys[b][0]:
                gain[a, b] = gain[b, a] = -np.inf if common else 0
                continue
            some = common[:: 1 + len(common) // SAMPLES]
            parts = ((views[keys[i][0]], rays[keys[i][0]], [rows[i][t] for t in some]) for i in (a, b))
            (one, (eye, to), its), (other, (other_eye, other_to), others) = parts
            both = (one.weights[its] > 0) & (other.weights[others] > 0)
            near, other_near = nearest_points(eye, to[its], other_eye, other_to[others])
            shown = torch.from_numpy(both)
            apart = (near - other_near)[shown].norm(dim=-1)
            if len(apart):
                middle = near.masked_fill(~shown[..., None], math.nan).nanmedian(1, keepdim=True).values
                reaches.append(float((near - middle)[shown].norm(dim=-1).median()))
                gain[a, b] = gain[b, a] = len(common) * (1 - min(float(apart.median()) / SAME_PLACE, 2))
    person = join_groups(gain)
    number = dict(zip(keys, person.tolist(), strict=True))
    tracks = [
        np.array([number[view, track] for track in people.tracks.tolist()], dtype=np.int64)
        for view, people in enumerate(views)
        if people.tracks is not None
    ]
    return tracks, float(np.median(reaches or [0.0]))


def join_groups(gain: Float[np.ndarray, "N N"]) -> Int[np.ndarray, " N"]:
    """Return the number of each thing's group: the two groups that gain most are joined while any gain.

    Args:
        gain: gain of putting two things into one group, symmetric; a group gains the sum of its pairs.
    """
    total = gain.copy()
    np.fill_diagonal(total, -np.inf)
    group = np.arange(len(gain))
    while len(gain):
        a, b = np.unravel_index(total.argmax(), total.shape)
        if not total[a, b] > 0:
            break
        total[a] += total[b]
        total[:, a] = total[a]
        total[b], total[:, b], total[a, a] = -np.inf, -np.inf, -np.inf
        group[group == b] = a
    return np.unique(group, return_inverse=True)[1]


def _rays(people: People, camera: Camera) -> tuple[Float[Tensor, " 3"], Float[Tensor, "N K 3"]]:
    """Return where a camera is, and the directions of keypoints from it, of length 1."""
    points = torch.from_numpy(people.keypoints)
    eye = camera.position
    to = camera.unproject(points, torch.ones_like(points[..., 0])) - eye
    return eye, to / to.norm(dim=-1, keepdim=True)


def nearest_points(
    eye: Float[Tensor, " 3"],
    to: Float[Tensor, "*batch 3"],
    other_eye: Float[Tensor, " 3"],
    other_to: Float[Tensor, "*batch 3"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Return where rays, which begin at their eyes, are nearest each other; directions have length 1."""
    between = other_eye - eye
    cosine = (to * other_to).sum(-1)
    along, back = (to * between).sum(-1), (other_to * between).sum(-1)
    sine = (1 - cosine * cosine).clamp(min=1e-9)
    far = ((along - cosine * back) / sine).clamp(min=0)
    other_far = (far * cosine - back).clamp(min=0)
    far = (along + other_far * cosine).clamp(min=0)
    return eye + far[..., None] * to, other_eye + other_far[..., None] * other_to
