"""Everyday poses, random people of every age, and what a detector sees of them."""

from agebody.people.poses import POSES, pose
from agebody.people.random_people import MORE_POSES, POSTURES, Observations, People, observe, random_people

__all__ = ["MORE_POSES", "POSES", "POSTURES", "Observations", "People", "observe", "pose", "random_people"]
