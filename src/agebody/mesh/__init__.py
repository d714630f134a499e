"""Queries on triangle meshes: closest points, visibility, collisions, inside tests; parts and markers."""

from agebody.mesh.closest import closest_points, visible_vertices
from agebody.mesh.collisions import Exclusions, find_collisions
from agebody.mesh.markers import MarkerSet
from agebody.mesh.parts import PARTS_6, PARTS_7, PartMap
from agebody.mesh.penetrations import contains, penetration, winding_number

__all__ = [
    "PARTS_6",
    "PARTS_7",
    "Exclusions",
    "MarkerSet",
    "PartMap",
    "closest_points",
    "contains",
    "find_collisions",
    "penetration",
    "visible_vertices",
    "winding_number",
]
