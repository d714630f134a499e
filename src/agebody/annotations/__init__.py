"""People in files: keypoints of detectors, annotation files, shards of many people."""

from agebody.annotations.calibration import Cameras, read_cameras
from agebody.annotations.motions import MotionClip, read_motion, save_motion
from agebody.annotations.people import AnnotationError, ImageEntry, People
from agebody.annotations.reading import read_people
from agebody.annotations.shards import read_shard, write_shards
from agebody.annotations.views import Views, join_views
from agebody.annotations.writing import save_people

__all__ = [
    "AnnotationError",
    "Cameras",
    "ImageEntry",
    "MotionClip",
    "People",
    "Views",
    "join_views",
    "read_cameras",
    "read_motion",
    "read_people",
    "read_shard",
    "save_motion",
    "save_people",
    "write_shards",
]
