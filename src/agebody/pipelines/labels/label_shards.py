"""Labels as shards: Parquet files that say what they were made of, and how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agebody.annotations.people import AnnotationError, fail
from agebody.annotations.shards import (
    METADATA,
    from_lists,
    import_pyarrow,
    read_metadata,
    read_table,
    to_lists,
)
from agebody.files import replacing
from agebody.pipelines.labels.records import FLAG, TERM, Labels, concatenate_labels

_ABOUT = ("body", "joint_names", "keypoint_layout")
"""Fields of `Labels` that are the same for all people."""


class ShardRecord(NamedTuple):
    """What a shard of labels says of itself."""

    source_sha256: str
    """Of the bytes of the shard of people."""
    settings: dict[str, Any]
    """How the bodies were fitted: values of JSON."""
    people: int
    kept: int
    converged: int


def save_label_shard(
    path: str | PathLike[str], labels: Labels, source_sha256: str, settings: dict[str, Any]
) -> ShardRecord:
    """Write labels as a shard, whole or not at all. The same labels are the same bytes.

    Raises:
        OSError: the file cannot be written.
        ImportError: PyArrow is not installed.
    """
    pyarrow = import_pyarrow()
    record = ShardRecord(
        source_sha256, settings, len(labels), int(labels.kept.sum()), int(labels.converged.sum())
    )
    arrays = _arrays(labels)
    about = {
        **{name: getattr(labels, name) for name in _ABOUT},
        "shapes": {name: array.shape[1:] for name, array in arrays.items()},
        "record": record._asdict(),
    }
    table = pyarrow.table({name: _to_column(array) for name, array in arrays.items()})
    table = table.replace_schema_metadata({METADATA: json.dumps(about)})
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    return record


def _arrays(labels: Labels) -> dict[str, np.ndarray]:
    arrays = {
        entry.name: getattr(labels, entry.name)
        for entry in fields(labels)
        if entry.name not in (*_ABOUT, "terms", "flags")
    }
    arrays |= {TERM + name: values for name, values in labels.terms.items()}
    return arrays | {FLAG + name: values for name, values in labels.flags.items()}


def _to_column(array: np.ndarray) -> Any:
    return import_pyarrow().array(array) if array.ndim == 1 else to_lists(array)


def load_label_shards(shards: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Labels:
    """Labels of a folder of shards, or of some of them, one after the other by their names.

    Raises:
        AnnotationError: a file is no shard of labels or is damaged, there are none, or they are of different
            bodies or layouts.
        OSError: a file cannot be read.
        ImportError: PyArrow is not installed.
    """
    if isinstance(shards, (str, PathLike)):
        folder = Path(shards)
        paths = sorted(folder.glob("[!.]*.parquet")) if folder.is_dir() else [folder]
        if not paths:
            fail(folder, "expected shards, *.parquet, in the folder")
    else:
        paths = [Path(shard) for shard in shards]
    try:
        return concatenate_labels([_load(path) for path in paths])
    except AnnotationError:
        raise
    except ValueError as error:
        raise AnnotationError(f"{paths[0].parent}: {error}") from None


def _load(path: Path) -> Labels:
    table = read_table(path)
    about = read_metadata(path, table.schema)
    if not {*_ABOUT, "shapes"} <= about.keys():
        fail(path, "no shard of labels")
    arrays = {}
    for name in table.column_names:
        column, shape = table[name], about["shapes"].get(name, [])
        array = from_lists(column) if shape else column.to_numpy()
        assert array is not None  # as they were written in one size
        array = array.reshape(len(column), *shape)
        arrays[name] = array.astype(str) if array.dtype == object else array
    names = {entry.name for entry in fields(Labels)} - {*_ABOUT, "terms", "flags"}
    missing = ", ".join(sorted(names - arrays.keys()))
    if missing:
        fail(path, f"the shard of labels is not complete; it has no {missing}")
    return Labels(
        **{name: arrays[name] for name in names},
        body=about["body"],
        joint_names=tuple(about["joint_names"]),
        keypoint_layout=about["keypoint_layout"],
        terms={name.removeprefix(TERM): array for name, array in arrays.items() if name.startswith(TERM)},
        flags={name.removeprefix(FLAG): array for name, array in arrays.items() if name.startswith(FLAG)},
    )  # fmt: skip


def hash_file(path: str | PathLike[str]) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def find_record(path: Path, source: Path, settings: dict[str, Any]) -> ShardRecord | None:
    """The record of a shard of labels that is there and whole; None if it must be made.

    The file is read to its end: the checksums of its pages tell what was damaged after it was written.

    Raises:
        AnnotationError: it is there and was made otherwise: of another file, or with other settings.
    """
    if not path.exists():
        return None
    try:
        table = read_table(path)
    except AnnotationError:
        return None  # cut off or damaged where it was copied or stored
    about = read_metadata(path, table.schema)
    try:
        record = ShardRecord(**about["record"])
    except (KeyError, TypeError):
        fail(path, "exists, and is no shard of labels; overwrite replaces it")
    differ = [
        f"{name}: {record.settings.get(name)}, not {settings.get(name)}"
        for name in sorted(record.settings.keys() | settings.keys())
        if record.settings.get(name) != settings.get(name)
    ]
    if differ:
        fail(path, f"exists, and was made with {'; '.join(differ)}; overwrite replaces it")
    if record.source_sha256 != hash_file(source):
        fail(path, f"exists, and was made of another {source.name}; overwrite replaces it")
    return record if table.num_rows == record.people else None
