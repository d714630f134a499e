"""The files of a release: pictures without metadata, COCO annotations, and a folder that appears whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from agebody.age import AGE_CLASSES
from agebody.files import replacing_folder, sha256
from agebody.keypoints import KeypointLayout
from agebody.pipelines.release.photos import ReleaseError

MANIFEST = "manifest.json"
EPOCH = 315532800
"""1980-01-01 UTC, the earliest time that zip archives can hold: the time of every file of a release."""
JPEG_QUALITY = 92
CLIP_SIDE = 640
"""Largest longer side of a clip [pixels]."""
PERSON = 1
"""Id of the only COCO category."""


def save_picture(rgb: UInt8[np.ndarray, "H W 3"], path: Path) -> None:
    """Write a .png or .jpg from an array, which has no metadata to pass on."""
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if path.suffix == ".jpg":
        image.save(path, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(path, "PNG")


def save_clip(frames: Sequence[Path], path: Path, *, fps: float) -> None:
    """Write an animated WebP from picture files."""
    images: list[Image.Image] = []
    size: tuple[int, int] | None = None
    for frame in frames:
        with Image.open(frame, formats=("PNG",)) as image:  # written by this release
            image.load()
            if size not in (None, image.size):
                raise ReleaseError(
                    f"the frames of a sequence: expected one size, got {size} and {image.size} [pixels]"
                )
            size = image.size
            image.thumbnail((CLIP_SIDE, CLIP_SIDE), Image.Resampling.LANCZOS)
            images.append(image.convert("RGB"))
    first, *rest = images
    duration = round(1000 / fps)
    first.save(path, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, quality=80)


def coco_category(layout: KeypointLayout) -> dict[str, Any]:
    """Return COCO's category "person" with the keypoints of a layout."""
    return {
        "id": PERSON,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(layout.names),
        "skeleton": [[start + 1, end + 1] for start, end in layout.edges],
    }


def coco_annotation(
    *,
    image_id: int,
    keypoints: np.ndarray,
    visibility: np.ndarray,
    box: np.ndarray,
    outline: Bool[np.ndarray, "H W"],
    age_class: int | None,
    track_id: int | None,
    row: int,
) -> dict[str, Any]:
    """Describe one body: its keypoints, its box in the picture, the pixels that show it, its age class."""
    height, width = outline.shape
    low = np.clip(box[:2], 0, (width, height))
    high = np.clip(box[2:], 0, (width, height))
    points = np.concatenate([np.round(keypoints, 2), visibility[:, None]], axis=1)
    entry: dict[str, Any] = {
        "image_id": image_id,
        "category_id": PERSON,
        "iscrowd": 0,
        "keypoints": [int(value) if i % 3 == 2 else value for i, value in enumerate(points.ravel().tolist())],
        "num_keypoints": int(np.count_nonzero(visibility)),
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "area": int(np.count_nonzero(outline)),
        "segmentation": run_lengths(outline),
        "row": row,
    }
    if age_class is not None:
        entry["age_class"] = AGE_CLASSES[age_class].name
    if track_id is not None:
        entry["track_id"] = track_id
    return entry


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Encode a mask as COCO's uncompressed run lengths: by columns, beginning with pixels outside it."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False)) if flat.size else np.zeros(0, int)
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def describe_files(folder: Path) -> dict[str, dict[str, str | int]]:
    """Return the size and the hash of each file, by its path in the folder."""
    files = {path: sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        path.relative_to(folder).as_posix(): {"bytes": size, "sha256": digest}
        for path, (digest, size) in files.items()
    }


@contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` when the block succeeds and is deleted when it fails.

    Only an empty folder, or one in which every file is listed in its manifest and unchanged, is replaced.

    Raises:
        FileExistsError: the path exists and may not be replaced.
        FileNotFoundError: the parent folder does not exist.
        OSError: the parent folder cannot be written in.
    """
    with replacing_folder(path, check=lambda folder: check_replaceable(folder, overwrite)) as temporary:
        yield temporary
        for file in sorted(temporary.rglob("*"), reverse=True):  # folders after their contents
            os.utime(file, (EPOCH, EPOCH))
        os.utime(temporary, (EPOCH, EPOCH))


def check_replaceable(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError for a folder that is not empty, unless it is a release and may be replaced."""
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            errno.EEXIST, "the folder exists; pass overwrite=True to replace a release", str(target)
        )
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        listed = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        listed = {}
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    for file in target.rglob("*"):
        name = file.relative_to(target).as_posix()
        if file.is_symlink():
            own = False
        elif file.is_dir():
            own = name in folders
        else:
            own = (name == MANIFEST and bool(listed)) or (name in listed and sha256(file)[0] == listed[name])
        if not own:
            raise FileExistsError(
                errno.EEXIST, f"not replaced, because {name} in it was not written by a release", str(target)
            )
