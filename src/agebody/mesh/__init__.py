"""Queries on triangle meshes: closest points, collisions, inside tests; parts, markers, other topologies."""

from agebody.mesh.closest import closest_points, visible_vertices
from agebody.mesh.collisions import Exclusions, find_collisions
from agebody.mesh.markers import MarkerSet
from agebody.mesh.parts import PartMap
from agebody.mesh.penetrations import contains, penetration, winding_number
from agebody.mesh.reading import MeshFile
from agebody.mesh.topology import TopologyMap

__all__ = [
    "Exclusions",
    "MarkerSet",
    "MeshFile",
    "PartMap",
    "TopologyMap",
    "closest_points",
    "contains",
    "find_collisions",
    "penetration",
    "visible_vertices",
    "winding_number",
]
