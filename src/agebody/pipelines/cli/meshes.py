"""`agebody convert-mesh`: meshes of other body models to bodies with an age, and to other topologies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from agebody.pipelines.cli import options
from agebody.pipelines.cli.app import app, fail, note, running, say
from agebody.pipelines.outputs import amount

if TYPE_CHECKING:
    from torch import Tensor

    from agebody.body import BodyModel
    from agebody.fitting import Fit
    from agebody.mesh import MeshFile, TopologyMap

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
FLIPS = ("xy", "yz", "xz")
"""Two axes that change sign together: a half turn about the third."""
SIZES = (0.2, 3.0)
"""Extent of a person along one axis, from a newborn that is curled up to an adult's reach [m]."""


@app.command("convert-mesh")
def convert_mesh(
    inputs: Annotated[
        list[Path],
        options.argument(
            "Files of vertices of one topology: **.npz**, **.npy**, **.pkl**, **.obj** or **.ply**.", "IN"
        ),
    ],
    output: Annotated[
        Path,
        options.option(
            "File to write: **.npz** (with a body its parameters), **.glb**, **.obj** or **.ply**.",
            "--output",
            "-o",
        ),
    ],
    map_file: Annotated[
        Path | None,
        options.option(
            "Map between the meshes and the body, in either direction: MHR's **smpl2mhr_mapping.npz** and "
            "others, or one of TopologyMap.save.",
            "--map",
        ),
    ] = None,
    body: Annotated[
        str | None,
        options.option("Body to fit to the meshes: **anny**, **mannequin**, or the path of a body file."),
    ] = None,
    faces: Annotated[
        list[Path] | None,
        options.option(
            "Mesh with the triangles of a topology whose files have none, such as MHR's "
            "**mhr_face_mask.ply**; may be repeated."
        ),
    ] = None,
    units: Annotated[
        str, options.choice(UNITS, "Unit of the vertices: **m**, **cm** (MHR's own) or **mm**.")
    ] = "m",
    flip: Annotated[
        str | None,
        options.option(
            "Axes to turn round: **yz** makes SAM 3D Body's people stand with +y up.",
            check=options.one_of(FLIPS),
        ),
    ] = None,
    camera: Annotated[
        bool,
        typer.Option(
            "--camera", help="Place people before the camera, by **pred_cam_t** of SAM 3D Body's files."
        ),
    ] = False,
    age_offset: options.AgeOffset = None,
    age_class: options.AgeClassName = None,
    years: options.Years = None,
    device: options.Device = "cpu",
    overwrite: options.Overwrite = False,
) -> None:
    """Convert meshes of another body model: to a body with an age offset, or to another topology.

    With **--body**, the body is fitted to the vertices: pose, shape, age and place. Without, the vertices of
    the other topology are written.

    Example: `agebody convert-mesh sam3d/*.npz --map smpl2mhr_mapping.npz --body ages.safetensors --flip yz -o
    people.npz`
    """
    from agebody.draw.mesh_files import MESH_SUFFIXES, save_mesh
    from agebody.files import save_npz
    from agebody.fitting import fit_vertices
    from agebody.mesh import MeshFile

    suffix = options.check_suffix(output, ".npz", *MESH_SUFFIXES)
    ages = options.read_ages(age_offset, age_class, years)
    stated = options.given_options(ages)
    if stated and body is None:
        options.refuse(stated[0], "it belongs to the body that --body names")
    triangles: dict[int, Any] = {}
    with running() as bars:
        options.check_output(output, (*inputs, map_file, *(faces or ())), overwrite)
        read = {path: MeshFile.from_file(path) for path in inputs}
        for mesh in (*map(MeshFile.from_file, faces or ()), *read.values()):
            if mesh.faces is not None:
                known = int(mesh.faces.max()) + 1 if mesh.vertices is None else mesh.vertices.shape[-2]
                triangles.setdefault(known, mesh.faces)
        vertices, files = _join(read, UNITS[units], flip or "", camera)
        if suffix in (".obj", ".ply") and len(vertices) > 1:
            fail(f"{output}: a {suffix} file holds one body, got {len(vertices)}; use .glb or .npz")
        if body is None:
            topology = None if map_file is None else _read_map(map_file, vertices, None, triangles)
            vertices = vertices if topology is None else topology(vertices)
            shown = triangles.get(vertices.shape[-2])
            if suffix != ".npz" and shown is None:
                fail(
                    f"{output}: needs the triangles of {vertices.shape[-2]} vertices; give --faces or --body"
                )
            arrays: dict[str, Any] = {"vertices": vertices, "files": files}
            arrays |= {} if shown is None else {"faces": shown}
            text, notes = f"{len(vertices)} meshes of {vertices.shape[-2]} vertices", []
        else:
            asset = options.load_body(body, bars)
            age = options.read_age_offset(asset, ages)
            layer = options.make_layer(asset, device=device)
            triangles[asset.num_vertices] = asset.faces
            topology = None
            if map_file is not None:
                topology = _read_map(map_file, vertices, layer, triangles)
                if topology.num_source_vertices == vertices.shape[-2] and len(topology) == layer.num_vertices:
                    vertices, topology = topology(vertices), None
            elif vertices.shape[-2] != layer.num_vertices:
                fail(
                    f"{inputs[0]}: has {vertices.shape[-2]} vertices, {asset.metadata.name} has "
                    f"{layer.num_vertices}; give --map"
                )
            bars.add_task("fitting", total=None)
            fit = fit_vertices(layer, vertices.to(layer.device), topology=topology, age_offset=age)
            arrays = {**fit.parameters._asdict(), "error": fit.error, "files": files}
            arrays |= {"converged": fit.report.converged, "accepted": fit.report.accepted}
            shown, text, notes = asset.faces, *_describe(fit, layer)
            if suffix != ".npz":
                vertices = layer(fit.parameters).vertices
        if suffix == ".npz":
            save_npz(arrays, output, overwrite=overwrite)
        else:
            save_mesh(vertices, shown, output, overwrite=overwrite)
    for line in notes:
        note(line)
    say(f"wrote {output}: {text}")


def _join(read: dict[Path, MeshFile], unit: float, flip: str, camera: bool) -> tuple[Tensor, np.ndarray]:
    """Return all meshes (B, V, 3) [m], and the file that each is from."""
    import torch

    meshes, files = [], []
    for path, mesh in read.items():
        if mesh.vertices is None:
            fail(f"{path}: holds triangles and no vertices; give it with --faces")
        if camera and mesh.transl is None:
            fail(f"{path}: has no pred_cam_t, by which --camera places people")
        several = unit * mesh.vertices.reshape(-1, *mesh.vertices.shape[-2:])
        extent = float((several.amax(1) - several.amin(1)).amax())
        if not SIZES[0] <= extent <= SIZES[1]:
            fail(f"{path}: the mesh is {extent:.3g} m large, which no person is; give its unit with --units")
        if camera and mesh.transl is not None:
            several = several + mesh.transl.reshape(-1, 1, 3)
        if meshes and several.shape[1] != meshes[0].shape[1]:
            fail(
                f"{path}: has {several.shape[1]} vertices, the files before it have {meshes[0].shape[1]}; "
                "convert one topology at a time"
            )
        meshes.append(several)
        files += [str(path)] * len(several)
    signs = torch.tensor([-1.0 if axis in flip else 1.0 for axis in "xyz"])
    return signs * torch.cat(meshes), np.array(files)


def _read_map(
    path: Path, vertices: Tensor, layer: BodyModel | None, triangles: dict[int, Any]
) -> TopologyMap:
    """Return a map from the meshes, to the body's vertices if there is one, or from those to the meshes."""
    from agebody.assets.container import naming
    from agebody.mesh import TopologyMap
    from agebody.mesh.topology import read_map

    count, own = vertices.shape[-2], None if layer is None else layer.num_vertices
    with naming(path):
        found = read_map(path)
    source = count if own is None or len(found.places) != count else own
    if found.num_source_vertices is None and source not in triangles:
        fail(
            f"{path}: names triangles of a mesh of {source} vertices; give such a mesh by --faces, for MHR's "
            "mhr_face_mask.ply"
        )
    topology = TopologyMap.from_file(path, faces=triangles.get(source))
    ends = (topology.num_source_vertices, len(topology))
    if not (ends[0] == count and own in (None, ends[1])) and ends != (own, count):
        what = "" if layer is None else f", and {layer.asset.metadata.name} has {own}"
        fail(f"{path}: maps {ends[0]} vertices to {ends[1]}; the meshes have {count}{what}")
    return topology


def _describe(fit: Fit, layer: BodyModel) -> tuple[str, list[str]]:
    """Return a line on what was fitted, and notes."""
    error, count = 1e3 * fit.error, len(fit.error)
    text = amount(count, "people")
    text += f", vertices {error.median():.1f} mm from those given, {error.max():.1f} mm at most"
    if layer.age_anchors:
        text += f", age offset {fit.parameters.age_offset.median():.2f}"
    text += " (median)" if count > 1 else ""
    notes, failed = options.one_age(layer), fit.report.accepted.logical_not().sum()
    if failed:
        notes.append(
            f"{failed} of {count} fits are far from the vertices, or of improbable shapes: does the map "
            f"belong to {layer.asset.metadata.name}, and are unit and axes right (--units, --flip)?"
        )
    return text, notes
