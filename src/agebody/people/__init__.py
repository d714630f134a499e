"""Everyday poses, random people of every age, and what a keypoint detector sees of them."""

from agebody.people.observations import Observations, observe
from agebody.people.poses import POSES, pose
from agebody.people.sampling import People, random_people

__all__ = ["POSES", "Observations", "People", "observe", "pose", "random_people"]
