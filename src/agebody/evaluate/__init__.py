"""From files of predictions and truths to the tables of the benchmarks."""

from agebody.evaluate.average_precision import Detections, coco_table
from agebody.evaluate.coco import read_coco
from agebody.evaluate.files import EvaluationError, People, read_people
from agebody.evaluate.infantnet import infantnet_table
from agebody.evaluate.relative_human import relative_human_tables
from agebody.evaluate.run import TableName, evaluate_files
from agebody.evaluate.table import Cell, Column, Intervals, Row, Table

__all__ = [
    "Cell",
    "Column",
    "Detections",
    "EvaluationError",
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
