"""Labels as shards: Parquet files that state what they were made from, and how."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agebody.annotations.arrays import expect_array
from agebody.annotations.people import AnnotationError, fail
from agebody.annotations.shards import (
    Shards,
    find_shards,
    from_lists,
    import_pyarrow,
    read_footer,
    read_metadata,
    read_table,
    to_column,
    write_table,
)
from agebody.files import sha256
from agebody.pipelines.labels.records import ABOUT, Labels, concatenate_labels, find_key
from agebody.pipelines.labels.settings import describe_differences


class ShardRecord(NamedTuple):
    """What the metadata of a shard of labels state."""

    source_sha256: str
    """Of the bytes of the shard of people."""
    settings: dict[str, Any]
    """How the bodies were fitted: JSON values."""
    people: int
    kept: int
    converged: int
    source_size: int | None = None
    """Of the shard of people [bytes]."""
    age_unknown: int = 0
    """People of unknown age; 0 in shards of earlier versions, which do not state it."""


def save_label_shard(
    labels: Labels, source: tuple[str, int], settings: dict[str, Any], path: str | PathLike[str]
) -> ShardRecord:
    """Write labels as a shard, whole or not at all. Equal labels give equal bytes.

    ``source`` is SHA-256 and size of the shard of people, from `agebody.files.sha256`.
    """
    counts = len(labels), int(labels.kept.sum()), int(labels.converged.sum())
    unknown = int(labels.flags["age_unknown"].sum()) if "age_unknown" in labels.flags else 0
    record = ShardRecord(source[0], settings, *counts, source[1], unknown)
    arrays = labels.arrays()
    about = {
        **{name: getattr(labels, name) for name in ABOUT},
        "shapes": {name: array.shape[1:] for name, array in arrays.items()},
        "record": record._asdict(),
    }
    write_table({name: to_column(array) for name, array in arrays.items()}, about, path)
    return record


def load_label_shards(shards: Shards) -> Labels:
    """Read the labels of a folder of shards, ordered by name, or of the given files.

    Shards without people do not count, unless there are no others.

    Raises:
        AnnotationError: a file is not a shard of labels or is damaged, there are none, or they have different
            bodies or layouts.
        OSError: a file cannot be read.
        ImportError: PyArrow is not installed.
    """
    paths = find_shards(shards, ".parquet")
    labels = [_load(path) for path in paths]
    try:
        return concatenate_labels([part for part in labels if len(part)] or labels[:1])
    except ValueError as error:
        raise AnnotationError(f"{paths[0].parent}: {error}") from None


def _load(path: Path) -> Labels:
    table = read_table(path)
    about = read_metadata(path, table.schema)
    shapes = about.get("shapes")
    if not isinstance(shapes, dict) or len(set(table.column_names)) < table.num_columns:
        fail(path, "not a shard of labels")
    arrays = {}
    for name in table.column_names:
        key = find_key(name)
        if key is None:
            continue
        column, shape = table[name], shapes.get(name, [])
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            fail(path, f"metadata: shapes: {name}: expected sizes, got {shape}")
        if column.null_count:
            fail(path, f"column {name}: expected values, got null")
        size = math.prod(shape)
        nested = import_pyarrow().types.is_nested(column.type)
        array = from_lists(column) if nested and shape else None if nested else column.to_numpy()
        if array is None or array.size != len(column) * size:
            fail(path, f"column {name}: expected lists of {size} numbers")
        array = array.astype(str) if array.dtype == object else array
        arrays[name] = expect_array(path, name, key, array.reshape(len(column), *shape))
    for name, key in ABOUT.items():
        about[name] = expect_array(path, name, key, np.array(about.get(name, "")))
    return Labels.from_arrays(path, arrays, {name: about[name] for name in ABOUT})


def find_record(
    path: Path, source: Path, settings: dict[str, Any], *, verify: bool = True
) -> ShardRecord | None:
    """Return the record of a complete shard of labels; None if it must be made.

    The ``settings`` are as `describe_settings` returns them. To ``verify`` reads both files to their ends,
    because the checksums of pages show later damage, and those of people later changes. Else the footer of
    the labels and the size of the people count.

    Raises:
        AnnotationError: the shard was made from another file, or with other settings.
    """
    if not path.exists():
        return None
    try:
        footer = read_footer(path)
        if verify:
            read_table(path)
    except AnnotationError:
        return None  # truncated or damaged while it was copied or stored
    about = read_metadata(path, footer)
    try:
        record = ShardRecord(**about["record"])
        complete = footer.num_rows == record.people and isinstance(
            record.kept + record.converged + record.age_unknown, int
        )
        stated = dict(record.settings)
    except (KeyError, TypeError, ValueError):
        fail(path, "exists, and is not a shard of labels; pass overwrite=True to replace it")
    differ = describe_differences(stated, settings)
    if differ:
        fail(path, f"exists, and was made with {differ}; pass overwrite=True to replace it")
    same = record.source_size in (None, source.stat().st_size)
    if same and (verify or record.source_size is None):
        same = record.source_sha256 == sha256(source)[0]
    if not same:
        fail(path, f"exists, and was made from another {source.name}; pass overwrite=True to replace it")
    return record if complete else None
