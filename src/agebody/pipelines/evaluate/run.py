"""Make tables from two files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from agebody.annotations.people import fail
from agebody.checks import expect_choice, read_count
from agebody.keypoints import get_layout
from agebody.pipelines.evaluate.coco import coco_table, read_coco
from agebody.pipelines.evaluate.files import Bodies, read_bodies
from agebody.pipelines.evaluate.infantnet import infantnet_table
from agebody.pipelines.evaluate.relative_human import relative_human_tables
from agebody.pipelines.evaluate.table import Intervals, Table

TableName = Literal["auto", "infantnet", "relative-human", "relative-human-published", "coco"]


def evaluate_files(
    pred: str | Path,
    target: str | Path,
    *,
    table: TableName = "auto",
    layout: str | None = None,
    root: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Table]:
    """Compare a file of predictions with a file of the truth.

    Args:
        pred: an npz, or a list of COCO results (.json).
        target: an npz, or COCO annotations (.json).
        table: which one; "auto" makes all for which the files have the keys.
        layout: layout of the joints, for files that do not state it.
        root: names of the joints whose mean is the root of MPJPE and PVE; the layout's own by default. A
            named root may have weight 0: it is then not part of the mean.
        resamples: number of bootstrap resamples; 0 for no intervals.
        seed: seed of the bootstrap.

    Raises:
        AnnotationError: a file is wrong, or the two do not fit.
        OSError: a file cannot be read.
    """
    pred, target = Path(pred), Path(target)
    expect_choice("table", table, get_args(TableName))
    if layout is not None:
        get_layout(layout)
    intervals = Intervals(read_count("resamples", resamples), read_count("seed", seed))
    json_files = [path.suffix.lower() == ".json" for path in (pred, target)]
    if any(json_files):
        if not all(json_files) or table not in ("auto", "coco"):
            wanted = "coco" if table == "auto" else table
            kind = "COCO's .json" if wanted == "coco" else "an npz"
            fail(pred if json_files[0] != (wanted == "coco") else target, f"table {wanted}: expected {kind}")
        return [coco_table(read_coco(pred, target), intervals=intervals)]
    if table == "coco":
        fail(pred, "table coco: expected COCO's .json")
    people = read_bodies(pred), read_bodies(target)
    tables = []
    if table == "infantnet" or (table == "auto" and all(one.has("joints") for one in people)):
        tables.append(infantnet_table(*people, layout=layout, root=root, intervals=intervals))
    if "relative-human" in table or (table == "auto" and _has_relations(*people)):
        published = table.endswith("-published")
        tables += relative_human_tables(*people, published=published, intervals=intervals)
    if not tables:
        fail(
            pred,
            "no table can be made: expected joints in both files, or depth here and image_ids in the truth",
        )
    return tables


def _has_relations(pred: Bodies, target: Bodies) -> bool:
    return (
        pred.has("depth") and target.has("image_ids") and (target.has("depth_layers") or target.has("depth"))
    )
