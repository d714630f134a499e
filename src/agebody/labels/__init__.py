"""Training labels: from files of keypoints to bodies, and to the files that training code reads."""

from agebody.labels.annotations import Annotations, ImageEntry, LabelError
from agebody.labels.fitting import fit_annotations
from agebody.labels.quality import RULES, flag_labels
from agebody.labels.reading import read_keypoints
from agebody.labels.records import Labels, concatenate_labels, load_labels

__all__ = [
    "RULES",
    "Annotations",
    "ImageEntry",
    "LabelError",
    "Labels",
    "concatenate_labels",
    "fit_annotations",
    "flag_labels",
    "load_labels",
    "read_keypoints",
]
