"""Train networks on shards of people: data, augmentation, a plain loop, and SPIN's fits in the loop."""

from agebody.pipelines.train.augment import Augmentation
from agebody.pipelines.train.data import Filters, Source, TrainingData
from agebody.pipelines.train.refits import Refitted, refit_shards
from agebody.pipelines.train.run import TrainingSettings, train
from agebody.pipelines.train.step import RealBodies, predicted_values

__all__ = [
    "Augmentation",
    "Filters",
    "RealBodies",
    "Refitted",
    "Source",
    "TrainingData",
    "TrainingSettings",
    "predicted_values",
    "refit_shards",
    "train",
]
