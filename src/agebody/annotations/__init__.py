"""People in files: detectors' keypoints, annotation files, photographs."""

from agebody.annotations.people import AnnotationError

__all__ = ["AnnotationError"]
