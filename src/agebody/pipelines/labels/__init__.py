"""Make training labels: fit bodies to keypoints, flag bad fits, and write files for training code."""

from agebody.pipelines.jobs.cluster import Cluster
from agebody.pipelines.labels.at_scale import fit_dataset, fit_shard
from agebody.pipelines.labels.fitting import fit_annotations
from agebody.pipelines.labels.label_shards import load_label_shards
from agebody.pipelines.labels.placing import place_labels
from agebody.pipelines.labels.predicting import predict_annotations
from agebody.pipelines.labels.records import Labels, load_labels
from agebody.pipelines.labels.samples import TrainingShards
from agebody.pipelines.labels.training import save_training_npz, save_training_shards

__all__ = [
    "Cluster",
    "Labels",
    "TrainingShards",
    "fit_annotations",
    "fit_dataset",
    "fit_shard",
    "load_label_shards",
    "load_labels",
    "place_labels",
    "predict_annotations",
    "save_training_npz",
    "save_training_shards",
]
