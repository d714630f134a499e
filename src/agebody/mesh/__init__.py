"""Closest points on meshes, and collisions of meshes."""
