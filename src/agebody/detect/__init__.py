"""Detectors of people and their keypoints in photographs: one protocol over several runtimes."""

from agebody.detect.detector import Detections, Detector
from agebody.detect.loading import load_detector
from agebody.detect.photographs import detect_people

__all__ = [
    "Detections",
    "Detector",
    "detect_people",
    "load_detector",
]
