"""From files of predictions and truths to the tables of the benchmarks."""

from agebody.pipelines.evaluate.average_precision import Detections, coco_table
from agebody.pipelines.evaluate.coco import read_coco
from agebody.pipelines.evaluate.files import People, read_people
from agebody.pipelines.evaluate.infantnet import infantnet_table
from agebody.pipelines.evaluate.relative_human import relative_human_tables
from agebody.pipelines.evaluate.run import TableName, evaluate_files
from agebody.pipelines.evaluate.table import Cell, Column, Intervals, Row, Table

__all__ = [
    "Cell",
    "Column",
    "Detections",
    "Intervals",
    "People",
    "Row",
    "Table",
    "TableName",
    "coco_table",
    "evaluate_files",
    "infantnet_table",
    "read_coco",
    "read_people",
    "relative_human_tables",
]
