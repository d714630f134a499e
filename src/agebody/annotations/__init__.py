"""People in files: keypoints of detectors, annotation files, shards of many people."""

from agebody.annotations.people import AnnotationError, ImageEntry, People
from agebody.annotations.reading import read_people
from agebody.annotations.shards import read_shard, write_shards

__all__ = ["AnnotationError", "ImageEntry", "People", "read_people", "read_shard", "write_shards"]
