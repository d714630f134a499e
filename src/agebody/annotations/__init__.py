"""People in files: detectors' keypoints, annotation files, photographs."""
