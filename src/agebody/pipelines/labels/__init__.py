"""Make training labels: fit bodies to keypoints, judge the fits, and write files for training code."""

from agebody.pipelines.jobs.cluster import Cluster
from agebody.pipelines.labels.at_scale import fit_dataset, fit_shard
from agebody.pipelines.labels.fitting import fit_annotations
from agebody.pipelines.labels.label_shards import load_label_shards
from agebody.pipelines.labels.overlays import draw_overlay
from agebody.pipelines.labels.placing import place_labels
from agebody.pipelines.labels.predicting import predict_annotations
from agebody.pipelines.labels.quality import flag_labels
from agebody.pipelines.labels.records import Labels, load_labels
from agebody.pipelines.labels.samples import Sample, TrainingShards
from agebody.pipelines.labels.training import save_training_npz, save_training_shards

__all__ = [
    "Cluster",
    "Labels",
    "Sample",
    "TrainingShards",
    "draw_overlay",
    "fit_annotations",
    "fit_dataset",
    "fit_shard",
    "flag_labels",
    "load_label_shards",
    "load_labels",
    "place_labels",
    "predict_annotations",
    "save_training_npz",
    "save_training_shards",
]
