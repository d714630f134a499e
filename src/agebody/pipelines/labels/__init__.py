"""Training labels: from files of keypoints to bodies, and to the files that training code reads."""

from agebody.annotations.people import Annotations, ImageEntry
from agebody.annotations.reading import read_keypoints
from agebody.annotations.shards import read_shard, write_shards
from agebody.pipelines.labels.at_scale import DatasetReport, ShardResult, fit_dataset, fit_shard
from agebody.pipelines.labels.fitting import fit_annotations
from agebody.pipelines.labels.label_shards import ShardRecord, load_label_shards
from agebody.pipelines.labels.overlays import draw_overlay
from agebody.pipelines.labels.placing import PlacedLabels, place_labels
from agebody.pipelines.labels.quality import RULES, flag_labels
from agebody.pipelines.labels.records import Labels, concatenate_labels, load_labels
from agebody.pipelines.labels.summary import summarize, to_markdown
from agebody.pipelines.labels.training import save_training_npz, save_training_shards, training_arrays

__all__ = [
    "RULES",
    "Annotations",
    "DatasetReport",
    "ImageEntry",
    "Labels",
    "PlacedLabels",
    "ShardRecord",
    "ShardResult",
    "concatenate_labels",
    "draw_overlay",
    "fit_annotations",
    "fit_dataset",
    "fit_shard",
    "flag_labels",
    "load_label_shards",
    "load_labels",
    "place_labels",
    "read_keypoints",
    "read_shard",
    "save_training_npz",
    "save_training_shards",
    "summarize",
    "to_markdown",
    "training_arrays",
    "write_shards",
]
