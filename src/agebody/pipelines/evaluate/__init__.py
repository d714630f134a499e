"""Compare files of predictions and truths: the tables of the benchmarks."""

from agebody.pipelines.evaluate.run import evaluate_files
from agebody.pipelines.evaluate.table import Table

__all__ = ["Table", "evaluate_files"]
