"""Write files for training code of human mesh recovery: HMR2 (4D-Humans) and AionHMR.

Both read people with ``ImageDataset``, of ``hmr2/datasets/image_dataset.py`` in
github.com/shubham-goel/4D-Humans and ``aionhmr-b/src/datasets/image_dataset.py`` in
github.com/gioxatz/aionhmr: from one ``.npz``, or, for training, from tar shards of webdataset, where an image
is followed by a list of its people. The pelvis is the root of the body, its pose is 24 axis-angle vectors in
camera coordinates, keypoints are `LAYOUTS["hmr2_44"]` in pixels of the image. AionHMR has 11 betas: ten, and
the age offset, as in smplx's SMPL with ``age="kid"``.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from agebody.annotations.people import AnnotationError
from agebody.annotations.photographs import is_upright_jpeg, read_photograph
from agebody.assets.asset import HAND_JOINTS, SMPL_JOINT_NAMES
from agebody.assets.landmarks import TIPS5
from agebody.body import BodyModel
from agebody.checks import read_count, read_positive
from agebody.files import replacing_shards, save_npz
from agebody.fitting.whole_body import FACE, FACE_POINTS
from agebody.keypoints import get_layout
from agebody.pipelines.labels.quality import BOX_SCALE
from agebody.pipelines.labels.records import Labels
from agebody.pipelines.labels.samples import add_sample, encode

NUM_BETAS, NUM_EXPRESSION = 10, 10
SCALE_UNIT = 200.0
"""Unit of boxes in shards, since HMR [pixels]."""
_CHUNK = 256
_JOINED = ("keypoints_2d", "keypoints_3d")
_APART = {
    "imgname",
    "personid",
    "scale",
    *(f"{part}_{name}" for part in ("body", "extra") for name in _JOINED),
}
"""Arrays of which shards have something else; of all others they have the rows."""
_FINGERS = HAND_JOINTS["left_hand"] + HAND_JOINTS["right_hand"]
_FACE_JOINTS = {"jaw": "jaw_pose", "left_eye": "leye_pose", "right_eye": "reye_pose"}
_HAND_POINTS = 6
"""Points of a hand's 21 that must be seen for its pose to be a label."""


def training_arrays(
    body: BodyModel, labels: Labels, *, box_scale: float = BOX_SCALE, true: bool = False
) -> dict[str, np.ndarray]:
    """Return the arrays that `save_training_npz` writes, one row per person.

    If ``true``, hands and faces are labels even if no points show them, as for synthetic people.
    """
    box_scale = read_positive("box_scale", box_scale)
    if not has_training_joints(labels.joint_names):
        raise ValueError(
            f"labels: expected a body of SMPL's 24 joints, or of its first 22 and hands, got "
            f"{len(labels.joint_names)} joints"
        )
    shapes = labels.betas[:, : labels.betas.shape[1] - body.num_expression]
    if np.any(shapes[:, NUM_BETAS:]):
        raise ValueError(f"labels: expected {NUM_BETAS} betas, got {shapes.shape[1]}; use num_betas=10")
    count = len(labels)
    betas = np.zeros((count, NUM_BETAS + 1), np.float32)
    given = shapes[:, :NUM_BETAS]
    betas[:, : given.shape[1]] = given
    betas[:, -1] = labels.age_offset
    low, high = labels.boxes[:, :2], labels.boxes[:, 2:]
    # Of people of unknown age the pose is evidence; betas and points in metres are not.
    sized = (labels.kept & ~labels.flags.get("age_unknown", np.zeros(count, bool))).astype(np.float32)
    seen, points = _observed(labels), _points(body, labels)
    points[..., 3] *= sized[:, None]
    return {
        "imgname": labels.image_ids,
        "personid": _numbers(labels.image_ids),
        "center": ((low + high) / 2).astype(np.float32),
        "scale": ((high - low) * box_scale).astype(np.float32),
        "body_pose": _pose(labels, SMPL_JOINT_NAMES),
        "has_body_pose": labels.kept.astype(np.float32),
        "betas": betas,
        "has_betas": sized,
        "age_class": labels.age_class.astype(np.int32),
        "focal": labels.focal.astype(np.float32),
        "principal_point": labels.center.astype(np.float32),
        "body_keypoints_2d": seen[:, :25],
        "extra_keypoints_2d": seen[:, 25:],
        "body_keypoints_3d": points[:, :25],
        "extra_keypoints_3d": points[:, 25:],
        "fit_error": np.nan_to_num(labels.reprojection, nan=0, posinf=np.inf).astype(np.float32),
        **_hands_and_faces(body, labels, true),
    }


def has_training_joints(joint_names: Sequence[str]) -> bool:
    """Return whether training code can use these joints: SMPL's, or its first 22 and hands."""
    names = tuple(joint_names)
    return names == SMPL_JOINT_NAMES or (names[:22] == SMPL_JOINT_NAMES[:22] and {*names} >= {*_FINGERS})


def _pose(labels: Labels, names: Sequence[str]) -> Float[np.ndarray, "N _"]:
    """Return the axis-angle vectors of joints; zeros of those that the body lacks, such as SMPL-H's hands."""
    pose = np.concatenate((labels.global_orient[:, None], labels.body_pose), 1)
    found = np.zeros((len(labels), len(names), 3), np.float32)
    for i, name in enumerate(names):
        if name in labels.joint_names:
            found[:, i] = pose[:, labels.joint_names.index(name)]
    return found.reshape(len(labels), -1)


def _hands_and_faces(body: BodyModel, labels: Labels, true: bool) -> dict[str, np.ndarray]:
    """Return hands and face of a body that has them, with weight 0 if too few of their points are seen."""
    found: dict[str, np.ndarray] = {}
    points, joints = get_layout(labels.keypoint_layout).names, {*labels.joint_names}

    def known(own: list[bool], least: int) -> np.ndarray:
        shown = (labels.observed[:, own, 2] > 0).sum(1) >= least
        return (labels.kept & (shown | true)).astype(np.float32)

    for side in ("left", "right") if joints >= {*_FINGERS} else ():
        tips = tuple(f"{side}_{tip}" for tip in TIPS5)
        found[f"{side}_hand_pose"] = _pose(labels, HAND_JOINTS[f"{side}_hand"])
        found[f"has_{side}_hand_pose"] = known([name.startswith(tips) for name in points], _HAND_POINTS)
    face = known([name in FACE for name in points], FACE_POINTS)
    if joints >= {*_FACE_JOINTS}:
        found |= {key: _pose(labels, (name,)) for name, key in _FACE_JOINTS.items()} | {"has_jaw_pose": face}
    if body.num_expression:
        given = labels.betas[:, body.num_betas :][:, :NUM_EXPRESSION].astype(np.float32)
        given = np.pad(given, ((0, 0), (0, NUM_EXPRESSION - given.shape[1])))
        found |= {"expression": given, "has_expression": face}
    return found


def save_training_npz(
    body: BodyModel,
    labels: Labels,
    path: str | PathLike[str],
    *,
    box_scale: float = BOX_SCALE,
    overwrite: bool = False,
) -> None:
    """Write an ``.npz`` for training code, one row per person, whole or not at all.

    | key | shape | |
    |---|---|---|
    | `imgname`, `personid` | (N,) | file of the image, and the person's number in it |
    | `center`, `scale` | (N, 2) | middle of the box, and its sides times ``box_scale`` [pixels] |
    | `body_pose` | (N, 72) | root first, axis-angle; 0 for the hands of a body that has fingers |
    | `left_hand_pose`, `right_hand_pose` | (N, 45) | of a body that has fingers, as in smplx |
    | `has_left_hand_pose`, `has_right_hand_pose` | (N,) | 1 where the points of that hand are seen |
    | `jaw_pose`, `leye_pose`, `reye_pose` | (N, 3) | of a body that has them, as in smplx |
    | `expression` | (N, 10) | of a body that has them |
    | `has_jaw_pose`, `has_expression` | (N,) | 1 where points of the face are seen |
    | `betas` | (N, 11) | ten, and the age offset |
    | `has_body_pose` | (N,) | 1 for people that are kept, 0 for others |
    | `has_betas` | (N,) | the same, but 0 for people of unknown age |
    | `fit_error` | (N,) | mean distance of the keypoints from the observed ones, 0 without any [pixels] |
    | `age_class` | (N,) | index into ``AGE_CLASSES`` of who stated class or age, -1 elsewhere |
    | `focal`, `principal_point` | (N, 2) | of the camera before which the 3D keypoints are [pixels] |
    | `body_keypoints_2d`, `extra_keypoints_2d` | (N, 25, 3), (N, 19, 3) | observed: x, y, confidence |
    | `body_keypoints_3d`, `extra_keypoints_3d` | (N, 25, 4), (N, 19, 4) | of the body: x, y, z [m]; 1 |

    People that are not kept have keypoints all the same. Observed keypoints are matched by name, so COCO's
    fill 17 of OpenPose's 25; OpenPose's neck and mid_hip are not SMPL's joints, and are left out. Keypoints
    in 3D are in camera coordinates and need a body with the 19 points of "j19"; without them the root that
    the training code subtracts is missing, and all have confidence 0.

    Args:
        body: the layer that the labels were made with.
        labels: the people.
        path: the file.
        box_scale: factor by which boxes are enlarged.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    save_npz(training_arrays(body, labels, box_scale=box_scale), path, overwrite=overwrite)


def save_training_shards(
    folder: str | PathLike[str],
    body: BodyModel,
    labels: Labels,
    images: str | PathLike[str],
    *,
    box_scale: float = BOX_SCALE,
    images_per_shard: int = 1000,
    overwrite: bool = False,
    unreadable: Callable[[str, Exception], None] | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Write shards of webdataset, ``000000.tar`` and on, all or none.

    An image is ``KEY.jpg`` beside ``KEY.data.pyd``, a pickled list with a dictionary per person, and
    ``KEY.labels.json``, the same people for `TrainingShards`. JPEG files are copied as they are; others, and
    photographs that EXIF turns, are decoded, turned and written as JPEG of quality 95, because the training
    code does not turn them.

    Args:
        folder: an existing folder.
        body: the layer that the labels were made with.
        labels: the people.
        images: the folder of the images.
        box_scale: factor by which boxes are enlarged.
        images_per_shard: number of images per shard.
        overwrite: replace all shards in the folder.
        unreadable: called with the name of an image that cannot be read, and the error; the image is then
            left out. None raises the error.
        progress: called with the number of images done.

    Raises:
        AnnotationError: an image cannot be read, or has another size than the labels say.
        FileExistsError: there are shards in the folder, and ``overwrite`` is false.
        OSError: a file is missing, or cannot be written.
    """
    read_count("images_per_shard", images_per_shard, least=1)
    arrays = training_arrays(body, labels, box_scale=box_scale)
    people = labels.by_image()
    names = list(people)
    written = []

    with replacing_shards(folder, "[0-9]" * 6 + ".tar", overwrite=overwrite) as new:
        for start in range(0, len(names), images_per_shard):
            written.append(f"{start // images_per_shard:06d}.tar")
            with tarfile.open(new / written[-1], "w") as tar:
                for i, name in enumerate(names[start : start + images_per_shard], start):
                    rows = people[name]
                    key = f"{i:06d}_" + re.sub(r"[^\w-]", "_", str(Path(name).with_suffix("")))[:50]
                    width, height = labels.image_sizes[rows[0]].tolist()
                    try:
                        photograph = _jpeg(Path(images) / name, (width, height))
                    except (AnnotationError, OSError) as error:
                        if unreadable is None:
                            raise
                        unreadable(name, error)
                        continue
                    add_sample(
                        tar, key, photograph, labels.select(rows), pickle_people(arrays, rows.tolist())
                    )
                    progress(i + 1)
    return [Path(folder) / name for name in written]


def _observed(labels: Labels) -> Float[np.ndarray, "N 44 3"]:
    """Return the observed keypoints in the order of HMR2, matched by name; missing ones have confidence 0.

    A middle of several points is left out: OpenPose's neck is not SMPL's, which the training code projects.
    """
    layout = get_layout(labels.keypoint_layout)
    names = [
        name if len(source) == 2 else "" for name, source in zip(layout.names, layout.sources, strict=True)
    ]
    found = np.zeros((len(labels), 44, 3), np.float32)
    for i, name in enumerate(get_layout("hmr2_44").names):
        if name in names:
            found[:, i] = labels.observed[:, names.index(name)]
    return found


def _points(body: BodyModel, labels: Labels) -> Float[np.ndarray, "N 44 4"]:
    found = np.zeros((len(labels), 44, 4), np.float32)
    if "j19" not in body.asset.regressors:
        return found
    for first in range(0, len(labels), _CHUNK):
        rows = slice(first, first + _CHUNK)
        parameters = labels.select(rows).parameters(body)
        with torch.no_grad():
            points = body.keypoints("hmr2_44", parameters)
        found[rows, :, :3] = points.cpu().numpy()
    found[..., 3] = 1
    return found


def _numbers(images: np.ndarray) -> np.ndarray:
    """Return the number of each person within its image, counting from 0."""
    seen: dict[str, int] = {}
    numbers = np.zeros(len(images), np.int32)
    for i, name in enumerate(images):
        numbers[i] = seen[name] = seen.get(name, -1) + 1
    return numbers


def shard_person(arrays: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
    """Return one person as in a shard: all keypoints together, boxes in units of 200 pixels."""
    joined = {
        name: np.concatenate([arrays[f"{part}_{name}"][row] for part in ("body", "extra")])
        for name in _JOINED
    }
    return {
        **{name: np.asarray(values[row]) for name, values in arrays.items() if name not in _APART},
        **joined,
        "scale": arrays["scale"][row] / np.float32(SCALE_UNIT),
        "extra_info": {"personid": int(arrays["personid"][row])},
    }


class _Pickler(pickle.Pickler):
    """Pickle arrays as ``numpy.ndarray(shape, type, bytes)``: NumPy's pickles name modules of its version."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return np.ndarray, (obj.shape, obj.dtype.str, bytearray(obj.tobytes()))
        return NotImplemented


def pickle_people(arrays: dict[str, np.ndarray], rows: Iterable[int]) -> bytes:
    """Return some of the people of `training_arrays` as training code reads them from a shard."""
    return dump_people([shard_person(arrays, row) for row in rows])


def dump_people(people: list[dict[str, Any]]) -> bytes:
    """Return people as a pickle that any version of NumPy reads."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(people)
    return stream.getvalue()


def _jpeg(path: Path, size: tuple[int, int]) -> bytes:
    pixels = read_photograph(path, size)
    if is_upright_jpeg(path):
        return path.read_bytes()
    return encode(pixels, "JPEG")
