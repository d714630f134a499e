"""Shards of people in images: Parquet files of some thousand people each, which can be read alone."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from agebody.age import AGE_CLASSES, UNKNOWN, Ages, parse_ages
from agebody.age.classes import AgeError
from agebody.annotations.arrays import FREE_BYTES, LARGEST_RATIO
from agebody.annotations.orders import Order, order_by_size, sizes_without_names
from agebody.annotations.people import (
    MAX_PIXELS,
    AnnotationError,
    ImageEntry,
    People,
    expect_pixels,
    fail,
    is_file_name,
    make_people,
    unread_ages,
)
from agebody.checks import read_count
from agebody.files import as_os_error, first_line, replacing, replacing_shards
from agebody.keypoints import LAYOUTS, KeypointLayout, get_layout
from agebody.stores import find_paths, to_path

PEOPLE_PER_SHARD = 4096
"""A few minutes of work on one core, which are lost when a worker is killed."""

METADATA = b"agebody"
"""Key of this library in the metadata of a file; the value is JSON."""


class _Column(NamedTuple):
    kind: str
    """One of the types that `_fits` distinguishes."""
    required: bool = False


COLUMNS = {
    "image": _Column("string", required=True),
    "image_width": _Column("integer", required=True),
    "image_height": _Column("integer", required=True),
    "id": _Column("integer", required=True),
    "keypoints": _Column("list of floats", required=True),
    "weights": _Column("list of floats", required=True),
    "box": _Column("list of floats"),
    "focal": _Column("float"),
    "age_offset": _Column("float"),
    "age_class": _Column("string"),
    "age_months": _Column("float"),
    "years": _Column("float"),
    "track": _Column("integer"),
}
"""Columns of a shard of people. Those that are not required may be missing, and their values may be null."""


Shards = str | PathLike[str] | Sequence[str | PathLike[str]]


def find_shards(shards: Shards, suffix: str) -> list[Path]:
    """Return the files of a folder or of a pattern with ``*``, ordered by name, or the given files."""
    if not isinstance(shards, (str, PathLike)):
        found = [to_path(shard) for shard in shards]
        if not found:
            raise AnnotationError("shards: expected at least one")
        return found
    path = to_path(shards)
    with as_os_error(path, "read"):
        if path.is_dir():
            found = sorted(path.glob(f"[!.]*{suffix}"))
        else:
            found = [path] if path.exists() else sorted(find_paths(path))
    if not found:
        fail(path, f"expected shards: a folder with *{suffix}, a pattern, or one file")
    return found


def import_pyarrow() -> Any:
    """Import PyArrow with its Parquet files."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'shards need pyarrow, which is not installed; pip install "agebody[ray]"'
        ) from error
    return pyarrow


def write_shards(
    people: People,
    folder: str | PathLike[str],
    *,
    prefix: str = "people",
    people_per_shard: int = PEOPLE_PER_SHARD,
    overwrite: bool = False,
) -> list[Path]:
    """Write people as shards, ``PREFIX-00000.parquet`` and on, all or none.

    People of one image are in one shard, in the order of the images. Images without people are left out.

    Args:
        people: such as `read_people` returns.
        folder: an existing folder.
        prefix: of the names of the shards; several files in one folder need different ones.
        people_per_shard: most people per shard, unless one image has more.
        overwrite: replace all shards of this prefix.

    Raises:
        AnnotationError: the size of an image is unknown.
        FileExistsError: there are shards of this prefix.
        OSError: a file cannot be written.
        ImportError: PyArrow is not installed.
    """
    read_count("people_per_shard", people_per_shard, least=1)
    if not prefix or Path(prefix).name != prefix or prefix.startswith("."):
        raise ValueError(f"prefix: expected the beginning of a file name, got {prefix!r}")
    people.image_sizes()
    folder = Path(folder)

    order = np.argsort(people.image, kind="stable")
    cuts = _cuts(people.image[order], people_per_shard)
    names = []
    pattern = f"{glob.escape(prefix)}-{'[0-9]' * 5}.parquet"
    with replacing_shards(folder, pattern, overwrite=overwrite) as new:
        for number, rows in enumerate(np.split(order, cuts) if len(order) else []):
            names.append(f"{prefix}-{number:05d}.parquet")
            part = people.select(rows)
            write_table(_to_columns(part), {"keypoint_layout": part.layout.name}, new / names[-1])
    return [folder / name for name in names]


def _cuts(images: Int[np.ndarray, " N"], most: int) -> list[int]:
    """Return the rows at which shards begin, except the first: always with another image."""
    begins = [*np.flatnonzero(np.diff(images, prepend=-1)).tolist(), len(images)]
    cuts, first = [], 0
    for begin, end in pairwise(begins):
        if end - first > most and begin > first:
            cuts.append(begin)
            first = begin
    return cuts


def _to_columns(people: People) -> dict[str, Any]:
    pyarrow = import_pyarrow()
    sizes = people.image_sizes()
    classes = [None if i == UNKNOWN else AGE_CLASSES[i].name for i in people.ages.age_class]
    boxes = [None if np.isnan(row).any() else row for row in people.boxes]
    columns = {
        "image": pyarrow.array([people.images[i].name for i in people.image], pyarrow.string()),
        "image_width": pyarrow.array(sizes[:, 0], pyarrow.int32()),
        "image_height": pyarrow.array(sizes[:, 1], pyarrow.int32()),
        "id": pyarrow.array(people.ids, pyarrow.int64()),
        "keypoints": to_column(people.keypoints.reshape(len(people), -1).astype(float)),
        "weights": to_column(people.weights.astype(float)),
        "box": pyarrow.array(boxes, pyarrow.list_(pyarrow.float64())),
        "age_class": pyarrow.array(classes, pyarrow.string()),
    }
    if people.tracks is not None:
        columns["track"] = pyarrow.array(people.tracks, pyarrow.int64(), mask=people.tracks < 0)
    numbers = {"age_offset": people.ages.age_offset, "years": people.ages.years, "focal": people.focal}
    for name, values in numbers.items():
        if values is not None:
            columns[name] = pyarrow.array(values, pyarrow.float64(), from_pandas=True)  # NaN becomes null
    return columns


def write_table(columns: dict[str, Any], about: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write columns as a Parquet file with this library's metadata, whole or not at all."""
    pyarrow = import_pyarrow()
    table = pyarrow.table(columns).replace_schema_metadata({METADATA: json.dumps(about)})
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def to_column(rows: Shaped[np.ndarray, "N ..."]) -> Any:
    """Return an array as a column, whose values are lists if the array has several dimensions."""
    pyarrow = import_pyarrow()
    if rows.ndim == 1:
        return pyarrow.array(rows)
    flat = np.ascontiguousarray(rows.reshape(len(rows), math.prod(rows.shape[1:])))
    values = pyarrow.array(flat.reshape(-1))
    kind = pyarrow.list_(values.type, flat.shape[1])
    return pyarrow.FixedSizeListArray.from_arrays(values, type=kind)


def from_lists(column: Any) -> Shaped[np.ndarray, "N L"] | None:
    """Return a column of lists as an array; None if the lists have different lengths."""
    sizes = import_pyarrow().compute.list_value_length(column).to_numpy()
    size = sizes[0] if len(sizes) else getattr(column.type, "list_size", 0)
    if (sizes != size).any():
        return None
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(sizes), size)


def count_people(path: Path) -> int:
    """Return the number of people of a shard from its footer; columns are checked, their values are not."""
    rows, schema = _open(path, lambda file: (file.metadata.num_rows, file.schema_arrow))
    _check_columns(path, schema)
    return rows


def read_footer(path: Path) -> Any:
    """Return PyArrow's `FileMetaData` of a Parquet file; the values are not read."""
    return _open(path, lambda file: file.metadata)


def read_table(path: Path) -> Any:
    """Return a Parquet file as a table; the checksums of its pages are verified."""
    pyarrow = import_pyarrow()
    schema, size = _open(path, lambda file: (file.schema_arrow, _measure(file.metadata)))
    limit = FREE_BYTES + LARGEST_RATIO * path.stat().st_size
    too_much = f"a damaged Parquet file: its values would take {LARGEST_RATIO} times its size"
    if size > limit:
        fail(path, too_much)
    texts = [field.name for field in schema if _is_text(field.type)]
    table = _open(path, lambda file: file.read(), texts)  # each different text once
    for i, name in enumerate(table.column_names):
        column = table.column(i)
        if name in texts and pyarrow.types.is_dictionary(column.type):
            known = (text or "" for chunk in column.chunks for text in chunk.dictionary.to_pylist())
            longest = max(map(len, known), default=0)
            if longest * len(column) > limit:
                fail(path, too_much)
            table = table.set_column(i, name, column.cast(pyarrow.string()))
    return table


def _measure(metadata: Any) -> int:
    """Return how many bytes the pages and the numbers of a file take."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(max(8 * column.num_values, column.total_uncompressed_size) for column in columns)


def _is_text(kind: Any) -> bool:
    types = import_pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind)


def _open(path: Path, read: Any, texts: Sequence[str] = ()) -> Any:
    pyarrow = import_pyarrow()
    options = {"page_checksum_verification": True, "read_dictionary": list(texts)}
    with as_os_error(path, "read"):
        try:
            with path.open("rb") as stream, pyarrow.parquet.ParquetFile(stream, **options) as file:
                return read(file)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, pyarrow.ArrowException) or (type(error) is OSError and error.errno is None):
                fail(path, f"not a Parquet file, or a damaged one: {first_line(error)}")
            raise  # it is missing, may not be read, or its drive or store fails


def read_metadata(path: Path, schema: Any) -> dict[str, Any]:
    """Return what this library wrote into the metadata of a schema or footer; empty if it wrote nothing."""
    text = (schema.metadata or {}).get(METADATA, b"{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fail(path, f"metadata: {METADATA.decode()}: expected a JSON object")
    return found


def read_shard(path: str | PathLike[str], *, layout: str | KeypointLayout | None = None) -> People:
    """Read the people of one shard.

    Args:
        path: a Parquet file with the columns of ``COLUMNS``, written by any program; others are ignored.
        layout: of the keypoints; if None, the one of the metadata, else found by the number of keypoints.

    Raises:
        AnnotationError: the file is of another kind; the message names the column and the row.
        OSError: it cannot be read.
        ImportError: PyArrow is not installed.
    """
    path = to_path(path)
    table = read_table(path)
    _check_columns(path, table.schema)
    columns = {name: table[name] for name in COLUMNS if name in table.column_names}
    for name, column in columns.items():
        if COLUMNS[name].required and column.null_count:
            row = column.is_null().index(True).as_py()
            fail(path, f"column {name}, row {row}: expected a value, got null")
    points = _keypoints(path, columns)
    names = _names(path, table.schema, points.shape[1] if len(points) else None)
    if not len(points):  # lists of no people may have no length
        points = np.zeros((0, names.size if isinstance(names, Order) else len(names), 3))
    images, image = _images(path, columns)
    ids = columns["id"].to_numpy().astype(np.int64)
    again = ~np.isin(np.arange(len(ids)), np.unique(ids, return_index=True)[1])
    _refuse(path, "id", again, ids, "different ids")
    found = make_people(
        path,
        points,
        names,
        layout,
        images=images,
        image=image,
        ids=ids,
        boxes=_boxes(path, columns, len(ids)),
        ages=_ages(path, columns, len(ids)),
        tracks=_tracks(columns),
        focal=_focal(path, columns),
        notes=unread_ages(table.column_names),
    )
    return expect_pixels(found)


def _tracks(columns: dict[str, Any]) -> Int[np.ndarray, " N"] | None:
    if "track" not in columns or columns["track"].null_count == len(columns["track"]):
        return None
    return columns["track"].fill_null(-1).to_numpy().astype(np.int64)


def _focal(path: Path, columns: dict[str, Any]) -> Float[np.ndarray, " N"] | None:
    if "focal" not in columns:
        return None
    focal = _floats(columns["focal"])
    _refuse(path, "focal", ~np.isnan(focal) & ~((focal > 0) & np.isfinite(focal)), focal, "a length above 0")
    return None if np.isnan(focal).all() else focal


def _check_columns(path: Path, schema: Any) -> None:
    missing = [name for name, column in COLUMNS.items() if column.required and name not in schema.names]
    if missing:
        fail(path, f"column {missing[0]}: missing; there are {', '.join(schema.names) or 'none'}")
    for name, column in COLUMNS.items():
        if name not in schema.names:
            continue
        if schema.names.count(name) > 1:
            fail(path, f"column {name}: expected one, got {schema.names.count(name)}")
        kind = schema.field(name).type
        if not _fits(column, kind):
            fail(path, f"column {name}: expected {column.kind}, got {kind}")


def _fits(column: _Column, kind: Any) -> bool:
    types = import_pyarrow().types
    if column.kind == "string":
        fits = _is_text(kind)
    elif column.kind == "integer":
        fits = types.is_integer(kind)
    elif column.kind == "float":
        fits = types.is_floating(kind)
    else:
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        fits = lists and types.is_floating(kind.value_type)
    return fits or (types.is_null(kind) and not column.required)


def _refuse(
    path: Path, name: str, wrong: Bool[np.ndarray, " N"], values: Shaped[np.ndarray, "N ..."], expected: str
) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        fail(path, f"column {name}, row {row}: expected {expected}, got {values[row]}")


def _keypoints(path: Path, columns: dict[str, Any]) -> Float[np.ndarray, "N K 3"]:
    """Return x, y and weight of the keypoints."""
    rows = {}
    for name in ("keypoints", "weights"):
        found = from_lists(columns[name])
        if found is None:
            fail(path, f"column {name}: expected lists of one length")
        rows[name] = found.astype(float)
    keypoints, weights = rows["keypoints"], rows["weights"]
    if len(weights) and keypoints.shape[1] != 2 * weights.shape[1]:
        expected = f"x, y of {weights.shape[1]} points, as there are weights"
        fail(path, f"column keypoints: expected {expected}, got {keypoints.shape[1]} numbers")
    bad = ~((weights >= 0) & (weights <= 1)).all(1)
    _refuse(path, "weights", bad, weights, "confidences from 0 to 1")
    keypoints = keypoints.reshape(*weights.shape, 2)
    bad = (~np.isfinite(keypoints).all(2) & (weights > 0)).any(1)
    _refuse(path, "keypoints", bad, keypoints, "finite pixels where weights are not 0")
    bad = ((np.abs(keypoints) > MAX_PIXELS).any(2) & (weights > 0)).any(1)
    _refuse(path, "keypoints", bad, keypoints, f"pixels up to {MAX_PIXELS:.0f}")
    return np.concatenate((keypoints, weights[..., None]), -1)


def _names(path: Path, schema: Any, count: int | None) -> tuple[str, ...] | Order:
    """Return the names of the keypoints, or their known order; a file without people may have any number."""
    stated = read_metadata(path, schema).get("keypoint_layout")
    if stated is not None:
        try:
            names = get_layout(stated).names
        except (KeyError, TypeError, ValueError) as error:
            fail(path, f"metadata: keypoint_layout: {first_line(error)}")
        if count not in (None, len(names)):
            fail(path, f"column weights: expected the {len(names)} keypoints of {stated}, got {count}")
        return tuple(names)
    order = order_by_size(count or len(LAYOUTS["coco17"]))
    if order is None:
        expected = f"expected {sizes_without_names()} keypoints, or a layout in the metadata"
        fail(path, f"column weights: {expected}, got {count}")
    return order


def _images(path: Path, columns: dict[str, Any]) -> tuple[list[ImageEntry], list[int]]:
    names = [Path(name).as_posix() if name else name for name in columns["image"].to_pylist()]
    outside = np.array([not is_file_name(name) for name in names], dtype=bool)
    _refuse(path, "image", outside, np.array(names), "a path inside the folder of the images")
    sizes = []
    for name in ("image_width", "image_height"):
        numbers = columns[name].to_numpy()
        bad = (numbers < 1) | (numbers > MAX_PIXELS)
        _refuse(path, name, bad, numbers, f"a number of pixels above 0, up to {MAX_PIXELS:.0f}")
        sizes.append(numbers.tolist())
    entries: dict[str, ImageEntry] = {}
    for row, (name, *size) in enumerate(zip(names, *sizes, strict=True)):
        entry = entries.setdefault(name, ImageEntry(name, name, (size[0], size[1])))
        if entry.size != tuple(size):
            fail(path, f"column image_width, row {row}: {name} has two sizes, {entry.size} and {tuple(size)}")
    place = {name: i for i, name in enumerate(entries)}
    return list(entries.values()), [place[name] for name in names]


def _floats(column: Any) -> Float[np.ndarray, " N"]:
    """Return numbers, NaN for null."""
    return np.array(column.cast("float64").to_numpy(), dtype=float)


def _boxes(path: Path, columns: dict[str, Any], count: int) -> Float[np.ndarray, "N 4"]:
    rows = columns["box"].to_pylist() if "box" in columns else [None] * count
    wrong = np.array([row is not None and (len(row) != 4 or None in row) for row in rows], dtype=bool)
    _refuse(path, "box", wrong, np.array(rows, dtype=object), "x0, y0, x1, y1")
    boxes = np.array([[np.nan] * 4 if row is None else row for row in rows], dtype=float).reshape(-1, 4)
    known = np.asarray(~np.isnan(boxes).any(1))
    with np.errstate(invalid="ignore"):
        wrong = known & ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1))
    _refuse(path, "box", wrong, boxes, "x0, y0, x1, y1")
    return np.where(known[:, None], boxes, np.nan)


def _ages(path: Path, columns: dict[str, Any], count: int) -> Ages:
    stated: dict[str, Any] = {
        name: _floats(columns[name]) for name in ("age_offset", "age_months", "years") if name in columns
    }
    if "age_class" in columns:
        stated["age_class"] = columns["age_class"].to_pylist()
    try:
        return parse_ages(**stated, shape=(count,))
    except AgeError as error:
        fail(path, f"column {error.name}, row {error.person}: {error.problem}")
