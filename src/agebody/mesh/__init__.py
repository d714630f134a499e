"""Queries on triangle meshes: closest points, visibility, collisions, inside tests."""

from agebody.mesh.closest import ClosestPoints, closest_points, nearest_points, visible_vertices
from agebody.mesh.collisions import (
    Collisions,
    Exclusions,
    Penetration,
    contains,
    find_collisions,
    penetration,
    winding_number,
)

__all__ = [
    "ClosestPoints",
    "Collisions",
    "Exclusions",
    "Penetration",
    "closest_points",
    "contains",
    "find_collisions",
    "nearest_points",
    "penetration",
    "visible_vertices",
    "winding_number",
]
