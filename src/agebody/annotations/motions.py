"""Motions of one person in npz files: AMASS's and MoSh++'s, and frames of `BodyParameters`."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Float

from agebody.annotations.arrays import Key, read_arrays
from agebody.annotations.people import fail, shorten
from agebody.assets.official import GENDERS, JOINT_NAMES, TITLES
from agebody.body import BodyModel
from agebody.body.model import expect_body
from agebody.checks import read_positive
from agebody.files import check_suffix, replacing
from agebody.parameters import BodyParameters, check_identity, read_start

Axis = Literal["y", "z"]

_FAMILIES = {3 * len(JOINT_NAMES[name]): name for name in ("smpl", "smplh", "smplx")}
"""The body by the number of angles in a frame: 72, 156, 165."""
_PARTS = {"root_orient": 3, "pose_body": 63, "pose_jaw": 3, "pose_eye": 6, "pose_hand": 90}
"""The parts of SMPL-X's pose, in its order; the first two and the last of SMPL-H's."""
_SMPLX = {"global_orient": 3, "body_pose": 63, "jaw_pose": 3, "leye_pose": 3, "reye_pose": 3}
_SMPLX |= {"left_hand_pose": 45, "right_hand_pose": 45}
"""The parts of SMPL-X's pose as the package smplx names them, in the order of the pose."""
_RATES = ("mocap_framerate", "mocap_frame_rate", "fps")
_FRAMES = ("global_orient", "body_pose", "betas", "age_offset", "transl")
_ANY = Key(None, whole=True)
_KEYS = {
    "poses": Key(None),
    **{name: Key((size,)) for name, size in _PARTS.items()},
    "trans": Key((3,)),
    "expression": Key((None,)),
    **dict.fromkeys(("betas", "age_offset", *_RATES), _ANY),
    "gender": Key(None, "text", whole=True),
    "surface_model_type": Key(kind="name"),
    **dict.fromkeys(_SMPLX, Key(None)),
    "global_orient": Key((3,)),
    "transl": Key((3,)),
}
_OTHERS = {
    "focal": "labels are in the coordinates of cameras",
    "imgname": "people in images, to train or test networks with",
}
"""Arrays of files of another kind, and what these are."""
_DMPLS = 8
"""Soft-tissue coefficients that AMASS's files have per frame."""
_BETAS = 16
"""Betas that AMASS's files have."""
_RADIANS = 4 * math.pi, "axis-angle vectors in radians"
_LIMITS = {
    **dict.fromkeys(("poses", *_PARTS, "global_orient", "body_pose"), _RADIANS),
    **dict.fromkeys(("trans", "transl"), (1000.0, "metres")),
}
"""Largest number of an array, and its unit: degrees and millimetres are larger."""
_Z_TO_Y = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))


class MotionClip(NamedTuple):
    """One person over time."""

    parameters: BodyParameters
    """(T, ...), a frame each."""
    fps: float | None = None
    """Frames per second; None where the file does not say it."""
    gender: str = "neutral"
    """Gender of the body that the betas belong to."""
    up: Axis = "z"
    """The axis that points up: z in AMASS, y in animation programs and in a body's rest pose."""
    notes: tuple[str, ...] = ()
    """Parts of the file that the body cannot show."""

    def turned(self, body: BodyModel, up: Axis) -> MotionClip:
        """Return the same motion with another axis up; x stays."""
        if up not in ("y", "z"):
            raise ValueError(f"up: expected 'y' or 'z', got {up!r}")
        if up == self.up:
            return self
        turn = torch.tensor(_Z_TO_Y, dtype=body.dtype, device=body.device)
        turned = body.move(self.parameters, turn if up == "y" else turn.mT)
        return self._replace(parameters=turned, up=up)


class RecordedMotion(NamedTuple):
    """The content of a file, for any body."""

    path: Path
    family: str | None
    """"smpl", "smplh" or "smplx"; None of frames of `BodyParameters`."""
    pose: Float[np.ndarray, "T J 3"] | None
    """Rotations of the family's joints, the root's first; None without a family."""
    arrays: dict[str, np.ndarray]
    frames: int
    up: Axis
    unread: tuple[str, ...] = ()
    """Arrays of a file of frames of `BodyParameters` that are none of its fields."""

    @property
    def num_betas(self) -> int:
        """Number of shape coefficients in the file."""
        return self.arrays["betas"].shape[-1] if "betas" in self.arrays else 0

    @property
    def fps(self) -> float | None:
        """Frames per second, if they are stated."""
        rates = [self.arrays[name].reshape(-1) for name in _RATES if name in self.arrays]
        if rates and not (len(rates[0]) == 1 and np.isfinite(rates[0][0]) and rates[0][0] > 0):
            fail(
                self.path,
                f"fps: expected frames per second above 0, got {shorten([f'{n:g}' for n in rates[0]])}",
            )
        return float(rates[0][0]) if rates else None

    def on(self, body: BodyModel) -> MotionClip:
        """Return the motion of a body."""
        notes = [f"arrays that are not read: {shorten(self.unread)}"] if self.unread else []
        names = body.asset.joint_names
        pose = self._pose(names, body.asset.metadata.name, notes)
        betas = np.zeros((self.frames, body.num_coefficients))
        given = self._betas(body, notes)
        betas[:, : given.shape[1]] = given
        if "expression" in self.arrays and body.num_expression:
            some = self.arrays["expression"][:, : body.num_expression]
            betas[:, body.num_betas : body.num_betas + some.shape[1]] = some
        age = np.broadcast_to(self.arrays.get("age_offset", np.zeros(())), (self.frames,))
        place = self.arrays.get("trans", self.arrays.get("transl", np.zeros((self.frames, 3))))
        parts = (pose[:, 0], pose[:, 1:], betas, age, place)
        found = BodyParameters(*(torch.from_numpy(np.array(p)).to(body.device, body.dtype) for p in parts))
        gender = str(self.arrays.get("gender", "neutral")).lower().strip("[']")  # or a list of one
        return MotionClip(
            found,
            self.fps,
            gender if gender in GENDERS else "neutral",
            self.up,
            tuple(notes),
        )

    def _pose(self, names: tuple[str, ...], body: str, notes: list[str]) -> Float[np.ndarray, "T J 3"]:
        found = np.zeros((self.frames, len(names), 3))
        if self.family is None or self.pose is None:
            found[:, 0] = self.arrays.get("global_orient", 0.0)
            given = self.arrays.get("body_pose", found[:, 1:])
            if given.size != found[:, 1:].size:
                joints = f"{len(names) - 1} joints of {body}"
                fail(self.path, f"body_pose: expected the {joints}, got {given.shape[1] / 3:g}")
            found[:, 1:] = given.reshape(found[:, 1:].shape)
            return found
        own = JOINT_NAMES[self.family]
        shared = [name for name in own if name in names]
        if not shared:
            fail(self.path, f"{body} has none of the joints of {TITLES[self.family]}")
        found[:, [names.index(name) for name in shared]] = self.pose[:, [own.index(name) for name in shared]]
        moved = np.any(self.pose, (0, 2)).tolist()
        lost = [name for name, moves in zip(own, moved, strict=True) if moves and name not in names]
        if lost:
            notes.append(f"joints that {body} lacks, left out: {shorten(lost, 3)}")
        return found

    def _betas(self, body: BodyModel, notes: list[str]) -> Float[np.ndarray, "T N"]:
        """Return the betas that fit a body."""
        given = np.atleast_2d(self.arrays.get("betas", np.zeros((1, 0))))
        if self.family is None:
            if given.shape[1] > body.num_coefficients:
                number = body.num_coefficients
                fail(self.path, f"betas: expected up to {number}, as the body has, got {given.shape[1]}")
            return given
        name, kind = body.asset.metadata.name, body.asset.metadata.kind
        stated = str(self.arrays.get("surface_model_type", self.family))
        owner = self.family if stated.startswith(self.family) else stated
        if kind != owner:
            if given.any():
                notes.append(f"betas of {TITLES.get(owner, owner)}, left out: {name} has others")
            return given[:, :0]
        rest = given[:, body.num_betas :]
        if rest.any():
            notes.append(f"the last {rest.shape[1]} betas, left out: the body has {body.num_betas}")
        return given[:, : body.num_betas]


def read_motion(path: str | PathLike[str], body: BodyModel) -> MotionClip:
    """Read a motion as parameters of a body, with the numbers that the file has.

    Files are AMASS's, of SMPL-H (``poses`` of 156 angles), SMPL-X (165, or ``pose_body`` and so on) and SMPL
    (72); and npz files with arrays named as the fields of `BodyParameters`, or as in the package smplx, a row
    per frame, of which those that are missing are zeros. Joints are found by their names, so that a body
    without fingers shows the rest of a motion. Betas are used where the body is of the family of the file;
    DMPLs are not.

    Args:
        path: the file.
        body: the layer. AMASS's files have 16 betas: ``SMPLH(path, num_betas=16)``.

    Raises:
        AnnotationError: the file is none of a motion, or damaged.
        OSError: it cannot be read.
    """
    expect_body(body)
    return load_motion(path).on(body)


def load_motion(path: str | PathLike[str]) -> RecordedMotion:
    """Read a motion for any body; see `read_motion`."""
    path = Path(path)
    arrays = read_arrays(
        path,
        _KEYS,
        rows="frames",
        written_by="AMASS or numpy.savez writes it",
        refuse=lambda names: next(
            (
                f"{what}; a motion is of one person in space"
                for name, what in _OTHERS.items()
                if name in names
            ),
            "",
        ),
    )
    for name in {"poses", *_SMPLX} & {*arrays}:  # of rows, or of rows and joints
        shape = arrays[name].shape
        if not (len(shape) == 2 and shape[1] % 3 == 0) and not (len(shape) == 3 and shape[2] == 3):
            fail(path, f"{name}: expected axis-angle vectors (frames, joints, 3), or flat, got shape {shape}")
        arrays[name] = arrays[name].reshape(shape[0], math.prod(shape[1:]))
    up: Axis = "z" if {"poses", *_PARTS} & {*arrays} else "y"
    if "body_pose" in arrays and arrays["body_pose"].shape[1] == _SMPLX["body_pose"]:
        count = len(arrays["body_pose"])
        parts = [arrays.pop(name, np.zeros((count, size))) for name, size in _SMPLX.items()]
        arrays.setdefault("poses", np.concatenate(parts, 1))
    angles = [name for name in ("poses", *_PARTS) if name in arrays]
    rows = [name for name in arrays if name in _KEYS and _KEYS[name].by_row]
    betas = arrays.get("betas", np.zeros((0, 0)))
    if not rows and betas.ndim == 1:
        advice = "get its *_poses.npz or *_stageii.npz"
        fail(path, f"the shape of a person without a motion, as AMASS's shape.npz and *_stagei.npz; {advice}")
    with ZipFile(path) as archive:
        stated = [name.removesuffix(".npy")[:40] for name in archive.namelist()]
    known = {*_KEYS} - {*[*_SMPLX][2:]}
    unread = () if angles else tuple(name for name in stated if name not in known)
    moves = any(name in arrays for name in (("global_orient", "body_pose") if unread else _FRAMES))
    if not angles and not moves and (unread or not rows):
        expected = f"expected poses, as in AMASS, or arrays named {', '.join(_FRAMES)}"
        fail(path, f"not a motion; {expected}, got {shorten(stated)}")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            fail(path, f"{name}: expected finite numbers")
        most = float(np.abs(array).max(initial=0)) if name in _LIMITS else 0.0
        if name in _LIMITS and most > _LIMITS[name][0]:
            fail(path, f"{name}: expected {_LIMITS[name][1]}, got {most:g}")
    some = [arrays[name] for name in ("betas", "age_offset") if name in arrays and arrays[name].ndim]
    frames = len(arrays[rows[0]]) if rows else max((len(a) for a in some if a.ndim < 3), default=1)
    if not frames:
        fail(path, "expected at least one frame, got none")
    for name, dims in (("betas", 2), ("age_offset", 1)):
        array = arrays.get(name, np.zeros(()))
        if name in arrays and (
            array.ndim not in (dims - 1, dims) or (array.ndim == dims and len(array) not in (1, frames))
        ):
            entry = "betas" if dims == 2 else "number"
            fail(
                path, f"{name}: expected the {entry} of all frames, or of each of {frames}, got {array.shape}"
            )
    family, pose = _read_pose(path, arrays)
    return RecordedMotion(path, family, pose, arrays, frames, up, unread)


def _read_pose(
    path: Path, arrays: dict[str, np.ndarray]
) -> tuple[str | None, Float[np.ndarray, "T J 3"] | None]:
    """Return the family of the file and its pose; neither of frames of `BodyParameters`."""
    if "poses" in arrays:
        flat = arrays["poses"]
        family = _FAMILIES.get(flat.shape[1])
        if family is None:
            known = ", ".join(f"{size} ({TITLES[name]})" for size, name in _FAMILIES.items())
            fail(path, f"poses: expected angles of a frame, {known}, got {flat.shape[1]}")
        return family, flat.reshape(len(flat), -1, 3)
    given = [name for name in _PARTS if name in arrays]
    if not given:
        return None, None
    family = "smplh" if str(arrays.get("surface_model_type")).startswith("smplh") else "smplx"
    names = ("root_orient", "pose_body", "pose_hand") if family == "smplh" else tuple(_PARTS)
    frames = len(arrays[given[0]])
    parts = [arrays.get(name, np.zeros((frames, _PARTS[name]))) for name in names]
    return family, np.concatenate(parts, 1).reshape(frames, -1, 3)


def save_motion(
    motion: MotionClip, body: BodyModel, path: str | PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a motion as AMASS has it, z up, for SMPL-H or SMPL-X; of SMPL, with 72 angles.

    Betas are filled up to 16 with zeros. A key ``age_offset`` has the age, which other tools ignore: to them
    a child is an adult with the child's betas. ``read_motion`` reads it.

    Args:
        motion: with frames per second.
        body: the layer, with the joints of SMPL, SMPL-H or SMPL-X.
        path: the file, .npz.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: it cannot be written.
    """
    expect_body(body)
    families = [name for name in _FAMILIES.values() if JOINT_NAMES[name] == body.asset.joint_names]
    if not families:
        expected = "the joints of SMPL, SMPL-H or SMPL-X"
        raise ValueError(f"body: expected {expected}, got {body.asset.metadata.name!r} with other ones")
    fps = read_positive("motion.fps", motion.fps, "frames per second")
    check_suffix(path, ".npz")
    frames = motion.parameters.transl.shape[0] if motion.parameters.transl.dim() == 2 else 0
    if not frames:
        raise ValueError("motion.parameters: expected frames (T, ...)")
    with torch.no_grad():
        flat = read_start(body, motion.parameters, (frames,), argument="motion.parameters")
        if not body.age_anchors:
            flat = flat._replace(age_offset=torch.zeros_like(flat.age_offset))
        check_identity(flat, body.num_betas, argument="motion.parameters")
        found = motion._replace(parameters=flat).turned(body, "z").parameters
    arrays = {name: part.double().cpu().numpy() for name, part in found._asdict().items()}
    betas, expression = np.split(arrays["betas"], [body.num_betas], 1)
    age = arrays["age_offset"]
    pose = np.concatenate((arrays["global_orient"], arrays["body_pose"].reshape(frames, -1)), 1)
    content: dict[str, Any] = {
        "trans": arrays["transl"],
        "gender": np.array(motion.gender),
        "betas": np.pad(betas[0], (0, max(0, _BETAS - betas.shape[1]))),
        "poses": pose,
    }
    kind = body.asset.metadata.kind
    if families[0] == "smplx" or kind != families[0]:
        content["surface_model_type"] = np.array(kind)
    if families[0] == "smplx":
        ends = np.cumsum(list(_PARTS.values()))[:-1]
        content |= dict(zip(_PARTS, np.split(pose, ends, 1), strict=True))
        content |= {
            "mocap_frame_rate": np.array(fps),
            "mocap_time_length": np.array(frames / fps),
            "num_betas": np.array(len(content["betas"])),
        }
    else:
        content["mocap_framerate"] = np.array(fps)
        content["dmpls"] = np.zeros((frames, _DMPLS))
    if expression.any():
        content["expression"] = expression
    if age.any():
        content["age_offset"] = age[0]
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **content)
