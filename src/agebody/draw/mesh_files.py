"""Mesh files of bodies that other programs read: .glb, .obj and .ply."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from agebody.draw.meshes import Color, body_colors, read_meshes, to_linear, vertex_normals
from agebody.files import check_suffix, replacing

MESH_SUFFIXES = (".glb", ".obj", ".ply")


def save_mesh(
    vertices: Any,
    faces: Any,
    path: str | PathLike[str],
    *,
    names: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
    overwrite: bool = False,
) -> None:
    """Write bodies to a mesh file in metres, +y up, with smooth normals and vertex colours.

    Args:
        vertices: ``(V, 3)`` for one body, ``(B, V, 3)`` for several, or a sequence of ``(V_i, 3)`` [m], as
            arrays or tensors.
        faces: ``(F, 3)`` vertex ids that all bodies share, or one such array per body.
        path: the file; its suffix sets the format. .glb holds any number of bodies, .obj and .ply one.
        names: a different name per body, for its node in a .glb; body_0, body_1, ... by default.
        colors: one sRGB colour per body, or one ``(V_i, 3)`` array per body with a colour for each vertex;
            ``PALETTE`` in turn by default.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    from trimesh import Scene, Trimesh
    from trimesh.exchange.export import export_mesh

    suffix = check_suffix(path, *MESH_SUFFIXES)
    bodies, triangles = read_meshes(vertices, faces)
    if not bodies:
        raise ValueError(f"{path}: vertices: expected at least one body")
    if suffix != ".glb" and len(bodies) != 1:
        raise ValueError(f"{path}: a {suffix} file holds one body, got {len(bodies)}; use .glb")
    if suffix == ".glb" and not all(map(len, triangles)):
        raise ValueError(f"{path}: faces: expected one triangle or more of each body, for a .glb file")
    names = [f"body_{i}" for i in range(len(bodies))] if names is None else list(names)
    if len(names) != len(bodies) or len(set(names)) != len(names):
        raise ValueError(f"names: expected {len(bodies)} different names, got {names}")
    scene = Scene()
    for name, body, face, color in zip(names, bodies, triangles, body_colors(colors, bodies), strict=True):
        shade = to_linear(color) if suffix == ".glb" else color  # glTF 2.0, 3.7.2.1: COLOR_0 is linear
        normals, pixels = vertex_normals(body, face), np.rint(255 * shade).astype(np.uint8)
        mesh = Trimesh(body, face, vertex_normals=normals, vertex_colors=pixels, process=False)
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    data = scene if suffix == ".glb" else scene.geometry[names[0]]
    options: dict[str, Any] = {
        ".glb": {"include_normals": True, "tree_postprocessor": _add_material},
        ".obj": {"include_normals": True},
        ".ply": {"vertex_normal": True},
    }[suffix]
    with replacing(path, overwrite=overwrite) as temporary:
        export_mesh(data, temporary, file_type=suffix[1:], **options)


def _add_material(tree: dict[str, Any]) -> None:
    """Give every mesh of a glTF tree skin: without a material it is a metal, which viewers show black."""
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.8}}]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0
