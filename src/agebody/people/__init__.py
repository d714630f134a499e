"""Everyday poses, random people of every age, and simulated keypoint detections."""

from agebody.people.observations import observe
from agebody.people.poses import POSES, pose
from agebody.people.sampling import People, random_people

__all__ = ["POSES", "People", "observe", "pose", "random_people"]
