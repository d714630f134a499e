"""Computation of the body layers: identity, kinematics, skinned surface, keypoints, and their backends."""
