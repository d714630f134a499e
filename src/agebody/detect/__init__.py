"""People in photographs: detectors of keypoints, as one protocol over well-kept runtimes."""

from agebody.detect.detector import Detections, Detector
from agebody.detect.loading import load_detector
from agebody.detect.photographs import detect_people

__all__ = [
    "Detections",
    "Detector",
    "detect_people",
    "load_detector",
]
