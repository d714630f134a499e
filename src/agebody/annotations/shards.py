"""People in images as shards: Parquet files of some thousand, which are read alone."""

from __future__ import annotations

import json
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agebody.age import AGE_CLASSES
from agebody.annotations.people import (
    MAX_PIXELS,
    NAMES_BY_SIZE,
    UNKNOWN,
    Annotations,
    ImageEntry,
    age_class_index,
    fail,
    is_file_name,
    map_names,
)
from agebody.files import replacing
from agebody.keypoints import KeypointLayout, get_layout

PEOPLE_PER_SHARD = 4096
"""Some minutes of work on one core: what a kill may cost, and much less than a file costs to open."""

METADATA = b"agebody"
"""Key in a file's metadata; the value is JSON."""


class _Column(NamedTuple):
    kind: str
    """What `_MATCHES` knows."""
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
    "years": _Column("float"),
}
"""What a shard of people has; those that are not required may be left out, and may be null."""


def import_pyarrow() -> Any:
    """PyArrow with its Parquet files.

    Raises:
        ImportError: it is not installed.
    """
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
    annotations: Annotations,
    folder: str | PathLike[str],
    *,
    prefix: str = "people",
    people_per_shard: int = PEOPLE_PER_SHARD,
    overwrite: bool = False,
) -> list[Path]:
    """Write people as shards, ``PREFIX-00000.parquet`` and on, each whole or not at all.

    People of one image stand together, in the order of the images. Images without people are left out.

    Args:
        annotations: what `read_keypoints` gives.
        folder: where the shards go; it exists.
        prefix: of their names; files of one folder need different ones.
        people_per_shard: how many people a shard has, at most; more only where one image has more.
        overwrite: replace files that exist.

    Raises:
        ValueError: ``people_per_shard`` is below 1, or ``prefix`` is no name of a file.
        AnnotationError: an image's size is not known.
        FileExistsError: there are shards of this prefix.
        OSError: a file cannot be written.
        ImportError: PyArrow is not installed.
    """
    if people_per_shard < 1:
        raise ValueError(f"people_per_shard: expected at least 1, got {people_per_shard}")
    if not prefix or Path(prefix).name != prefix or prefix.startswith("."):
        raise ValueError(f"prefix: expected the beginning of a file's name, got {prefix!r}")
    unsized = [entry.name for entry in annotations.images if entry.size is None]
    if unsized:
        fail(annotations.path, f"image {unsized[0]}: its size is not known")
    folder = Path(folder)
    there = sorted(folder.glob(f"{prefix}-[0-9][0-9][0-9][0-9][0-9].parquet"))
    if there and not overwrite:
        raise FileExistsError(f"{there[0]}: exists; overwrite replaces all of {prefix}-*.parquet")
    order = np.argsort(annotations.image, kind="stable")
    cuts = _cuts(annotations.image[order], people_per_shard)
    written = []
    for number, rows in enumerate(np.split(order, cuts) if len(order) else []):
        path = folder / f"{prefix}-{number:05d}.parquet"
        table = _to_table(annotations.select(rows))
        with replacing(path) as temporary:
            import_pyarrow().parquet.write_table(table, temporary, compression="zstd")
        written.append(path)
    for path in set(there) - set(written):
        path.unlink()
    return written


def _cuts(images: np.ndarray, most: int) -> list[int]:
    """Where shards begin, but for the first: always with another image."""
    begins = [*np.flatnonzero(np.diff(images, prepend=-1)).tolist(), len(images)]
    cuts, first = [], 0
    for begin, end in pairwise(begins):
        if end - first > most and begin > first:
            cuts.append(begin)
            first = begin
    return cuts


def _to_table(people: Annotations) -> Any:
    pyarrow = import_pyarrow()
    images = [people.images[i] for i in people.image]
    sizes = np.array([entry.size for entry in images]).reshape(-1, 2)
    names = [kind.name for kind in AGE_CLASSES]
    float64 = pyarrow.float64()
    numbers = lambda values: pyarrow.array(values, float64, from_pandas=True)  # noqa: E731 - NaN is null
    box = people.boxes
    arrays = {
        "image": pyarrow.array([entry.name for entry in images], pyarrow.string()),
        "image_width": pyarrow.array(sizes[:, 0], pyarrow.int32()),
        "image_height": pyarrow.array(sizes[:, 1], pyarrow.int32()),
        "id": pyarrow.array(people.ids, pyarrow.int64()),
        "keypoints": to_lists(people.keypoints.astype(float)),
        "weights": to_lists(people.weights.astype(float)),
        "box": pyarrow.array(
            [None if np.isnan(row).any() else row for row in box], pyarrow.list_(float64, 4)
        ),
        "age_offset": numbers(people.age_offset),
        "age_class": pyarrow.array(
            [None if kind == UNKNOWN else names[kind] for kind in people.age_class], pyarrow.string()
        ),
        "years": numbers(people.years),
    }
    about = {"keypoint_layout": people.layout.name}
    return pyarrow.table(arrays).replace_schema_metadata({METADATA: json.dumps(about)})


def to_lists(rows: np.ndarray) -> Any:
    """Rows of equal size as a column of lists."""
    pyarrow = import_pyarrow()
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    values = pyarrow.array(flat.reshape(-1))
    kind = pyarrow.list_(values.type, flat.shape[1])
    return pyarrow.FixedSizeListArray.from_arrays(values, type=kind)


def from_lists(column: Any) -> np.ndarray | None:
    """Rows of a column of lists; None if they have different sizes."""
    sizes = import_pyarrow().compute.list_value_length(column).to_numpy()
    if len(sizes) == 0 or (sizes != sizes[0]).any():
        return None
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(sizes), -1)


def count_people(path: str | PathLike[str]) -> int:
    """How many people a shard has, from its footer; its columns are checked, not what is in them.

    Raises:
        AnnotationError: it is no Parquet file, or a column is missing or of another type.
        OSError: it cannot be read.
        ImportError: PyArrow is not installed.
    """
    footer = read_footer(Path(path))
    _check_columns(Path(path), footer.schema)
    return footer.rows


class Footer(NamedTuple):
    """What a Parquet file says of itself, at its end."""

    rows: int
    schema: Any
    """Columns, and metadata."""


def read_footer(path: Path) -> Footer:
    """The end of a Parquet file.

    Raises:
        AnnotationError: it is none.
        OSError: it cannot be read.
    """
    pyarrow = import_pyarrow()
    with path.open("rb"):
        pass  # a file that is not there, or may not be read, says so itself
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return Footer(file.metadata.num_rows, file.schema_arrow)
    except (pyarrow.ArrowException, OSError) as error:
        fail(path, f"no Parquet file, or a damaged one: {_line(error)}")


def read_table(path: Path) -> Any:
    """A Parquet file as a table.

    Raises:
        AnnotationError: it is none, or is damaged.
        OSError: it cannot be read.
    """
    pyarrow = import_pyarrow()
    read_footer(path)
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read()
    except (pyarrow.ArrowException, OSError) as error:
        fail(path, f"a damaged Parquet file: {_line(error)}")


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def read_shard(path: str | PathLike[str], *, layout: str | KeypointLayout | None = None) -> Annotations:
    """People of one shard.

    Args:
        path: a Parquet file with the columns of ``COLUMNS``, whoever wrote it; others are not looked at.
        layout: of the keypoints; what the file's metadata says if None, else what their number says.

    Raises:
        AnnotationError: the file is of another kind; the message names the column and the row.
        ValueError: there is no such layout.
        OSError: it cannot be read.
        ImportError: PyArrow is not installed.
    """
    return read_people(Path(path), layout).annotations


class People(NamedTuple):
    """What a shard has."""

    annotations: Annotations
    focal: np.ndarray | None
    """Of each person's image [pixels], NaN where it is not known; None without such a column."""


def read_people(path: Path, layout: str | KeypointLayout | None = None) -> People:
    """As `read_shard`, with focal lengths."""
    table = read_table(path)
    _check_columns(path, table.schema)
    columns = {name: table[name] for name in COLUMNS if name in table.column_names}
    if not table.num_rows:
        fail(path, "there is nobody in it")
    for name, column in columns.items():
        if COLUMNS[name].required and column.null_count:
            row = column.is_null().index(True).as_py()
            fail(path, f"column {name}, row {row}: expected a value, got null")
    keypoints, weights = _keypoints(path, columns)
    chosen, index, over = map_names(path, _names(path, table.schema, weights.shape[1]), layout)
    weights = np.where(index >= 0, weights[:, index], 0)
    images, image = _images(path, columns)
    ids = columns["id"].to_numpy().astype(np.int64)
    _refuse(path, "id", ~np.isin(np.arange(len(ids)), np.unique(ids, return_index=True)[1]), ids, "other ids")
    ages = _ages(path, columns, len(ids))
    annotations = Annotations(
        path,
        chosen,
        images,
        image=image,
        ids=ids,
        keypoints=np.where(weights[..., None] > 0, keypoints[:, index], 0),
        weights=weights,
        boxes=_boxes(path, columns, len(ids)),
        age_offset=ages["age_offset"],
        age_class=ages["age_class"],
        years=ages["years"],
        notes=(f"not points of {chosen.name}, left out: {', '.join(over)}",) if over else (),
    )
    return People(annotations, _focal(path, columns))


def _focal(path: Path, columns: dict[str, Any]) -> np.ndarray | None:
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
            fail(path, f"column {name}: there is more than one")
        kind = schema.field(name).type
        if not _matches(column, kind):
            fail(path, f"column {name}: expected {column.kind}, got {kind}")


def _matches(column: _Column, kind: Any) -> bool:
    types = import_pyarrow().types
    if column.kind == "string":
        fits = types.is_string(kind) or types.is_large_string(kind)
    elif column.kind == "integer":
        fits = types.is_integer(kind)
    elif column.kind == "float":
        fits = types.is_floating(kind)
    else:
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        fits = lists and types.is_floating(kind.value_type)
    return fits or (types.is_null(kind) and not column.required)


def _refuse(path: Path, name: str, wrong: np.ndarray, values: np.ndarray, expected: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        fail(path, f"column {name}, row {row}: expected {expected}, got {values[row]}")


def _keypoints(path: Path, columns: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    rows = {}
    for name in ("keypoints", "weights"):
        found = from_lists(columns[name])
        if found is None:
            fail(path, f"column {name}: expected lists of one length")
        rows[name] = found.astype(float)
    keypoints, weights = rows["keypoints"], rows["weights"]
    if keypoints.shape[1] != 2 * weights.shape[1]:
        fail(
            path, f"column keypoints: expected x, y of {weights.shape[1]} points, as there are weights, "
            f"got {keypoints.shape[1]} numbers",
        )  # fmt: skip
    bad = ~((weights >= 0) & (weights <= 1)).all(1)
    _refuse(path, "weights", bad, weights, "confidences from 0 to 1")
    keypoints = keypoints.reshape(len(weights), -1, 2)
    bad = (~np.isfinite(keypoints).all(2) & (weights > 0)).any(1)
    _refuse(path, "keypoints", bad, keypoints, "finite pixels where weights are not 0")
    bad = ((np.abs(keypoints) > MAX_PIXELS).any(2) & (weights > 0)).any(1)
    _refuse(path, "keypoints", bad, keypoints, f"pixels up to {MAX_PIXELS:.0f}")
    return keypoints, weights


def _names(path: Path, schema: Any, count: int) -> tuple[str, ...]:
    """Names of the keypoints, in the order of the file."""
    about = read_metadata(path, schema)
    stated = about.get("keypoint_layout")
    if stated is not None:
        try:
            names = get_layout(stated).names
        except (KeyError, TypeError, ValueError) as error:
            fail(path, f"metadata: keypoint_layout: {_line(error)}")
    else:
        names = NAMES_BY_SIZE.get(count)
    if names is None:
        sizes = ", ".join(map(str, NAMES_BY_SIZE))
        fail(path, f"column weights: expected {sizes} keypoints, or a layout in the metadata, got {count}")
    if len(names) != count:
        fail(path, f"column weights: expected the {len(names)} keypoints of {stated}, got {count}")
    return tuple(names)


def read_metadata(path: Path, schema: Any) -> dict[str, Any]:
    """What this library wrote into a file's metadata; nothing if it did not.

    Raises:
        AnnotationError: it is there, and cannot be read.
    """
    text = (schema.metadata or {}).get(METADATA)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        fail(path, f"metadata: {METADATA.decode()}: expected an object of JSON")
    return found


def _images(path: Path, columns: dict[str, Any]) -> tuple[tuple[ImageEntry, ...], np.ndarray]:
    names = columns["image"].to_pylist()
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
    return tuple(entries.values()), np.array([place[name] for name in names])


def _floats(column: Any) -> np.ndarray:
    """With NaN for null."""
    return np.array(column.cast("float64").to_numpy(), dtype=float)


def _boxes(path: Path, columns: dict[str, Any], count: int) -> np.ndarray:
    rows = columns["box"].to_pylist() if "box" in columns else [None] * count
    wrong = np.array([row is not None and (len(row) != 4 or None in row) for row in rows])
    _refuse(path, "box", wrong, np.array(rows, dtype=object), "x0, y0, x1, y1")
    boxes = np.array([[np.nan] * 4 if row is None else row for row in rows], dtype=float).reshape(-1, 4)
    known = np.asarray(~np.isnan(boxes).any(1))
    with np.errstate(invalid="ignore"):
        wrong = known & ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1))
    _refuse(path, "box", wrong, boxes, "x0, y0, x1, y1")
    return np.where(known[:, None], boxes, np.nan)


def _ages(path: Path, columns: dict[str, Any], count: int) -> dict[str, np.ndarray]:
    ages: dict[str, np.ndarray] = {}
    for name, least, most in (("age_offset", -1, 2), ("years", 0, 150)):
        values = _floats(columns[name]) if name in columns else np.full(count, np.nan)
        wrong = ~np.isnan(values) & ~((values >= least) & (values <= most))
        _refuse(path, name, wrong, values, f"a number from {least} to {most}")
        ages[name] = values
    names = columns["age_class"].to_pylist() if "age_class" in columns else [None] * count
    kinds = [UNKNOWN if name is None else age_class_index(name) for name in names]
    unknown = np.array([kind is None for kind in kinds])
    classes = ", ".join(kind.name for kind in AGE_CLASSES)
    _refuse(path, "age_class", unknown, np.array(names, dtype=object), classes)
    ages["age_class"] = np.array(kinds, dtype=np.int64)
    given = np.stack([~np.isnan(ages["age_offset"]), ~np.isnan(ages["years"]), ages["age_class"] != UNKNOWN])
    _refuse(path, "years", given.sum(0) > 1, ages["years"], "one of age_offset, age_class and years")
    return ages
