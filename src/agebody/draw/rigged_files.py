"""Rigged files of a body, which animation programs read: skeleton and skin in .glb, a skeleton in .bvh.

A glTF file is JSON and one block of numbers. Libraries for it (pygltflib) leave packing the numbers to the
caller, and trimesh writes no skins, so this writes both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from agebody.body import BodyModel, BodyOutput
from agebody.body.model import expect_body
from agebody.checks import broadcast, expect, read_positive
from agebody.draw.meshes import PALETTE, Color, read_color, to_linear, vertex_normals
from agebody.files import check_suffix, read_flag, replacing
from agebody.parameters import BodyParameters, check_identity, read_start

RIGGED_SUFFIXES = (".glb", ".bvh")
FREE_LICENSES = ("Apache-2.0", "CC0-1.0", "CC0-1.0 (data), Apache-2.0 (code)", "CC-BY-4.0", "MIT")
"""Licences of bodies, word for word, whose shape space is written by default."""

_JOINTS_PER_VERTEX = 4  # what every reader of glTF supports (glTF 2.0, 3.7.3.3)
_COMPONENTS = {"u1": 5121, "u2": 5123, "u4": 5125, "f4": 5126}
_TYPES = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
_VERTICES, _INDICES = 34962, 34963  # ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER
_FRAMES_AT_ONCE = 8


def save_rigged(
    body: BodyModel,
    path: str | PathLike[str],
    *,
    parameters: BodyParameters | None = None,
    fps: float = 30.0,
    morph_targets: bool | None = None,
    color: Color = PALETTE[0],
    overwrite: bool = False,
) -> float:
    """Write a body of one identity with its skeleton, posed or animated, in metres.

    A .glb (glTF 2.0) has the rest surface, a node per joint, and a skin of four joints per vertex, whose
    weights sum to 1. Its readers blend joints linearly: pose blend shapes are left out. A .bvh has the
    skeleton alone. Both contain data of the body, so its licence applies to them; a .glb names it as its
    copyright.

    Morph targets, of a .glb, displace the rest surface by one unit of each beta and expression coefficient,
    and to each age template. They are named in ``extras.targetNames`` of the mesh. A morph target cannot move
    joints: it is right in the rest pose, and for a posed body ``extras.targetJoints`` has the displacements
    of the rest joints, (targets, J, 3) [m], for programs that move the nodes. To pose another identity
    elsewhere, write it to another file.

    Args:
        body: the layer.
        path: the file; its suffix, .glb or .bvh, sets the format.
        parameters: parameters of one body: one pose, or with a batch dimension an animation. The identity
            is the same in all frames. By default the rest pose of the mean adult. +y is up, so parameters in
            camera coordinates must be converted first.
        fps: frames per second of an animation.
        morph_targets: whether a .glb has them; by default, if the licence is one of ``FREE_LICENSES``, since
            they are the body's shape space itself.
        color: sRGB colour of the skin.
        overwrite: replace an existing file.

    Returns:
        Largest distance of a posed vertex of the .glb from the layer's, over all frames [m]; 0 for a .bvh.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    check_single(body)
    suffix = check_suffix(path, *RIGGED_SUFFIXES)
    read_positive("fps", fps, "a number of frames per second")
    morph_targets = None if morph_targets is None else read_flag("morph_targets", morph_targets)
    if suffix == ".bvh" and morph_targets:
        raise ValueError("morph_targets: a .bvh has no surface; use .glb")
    shade = to_linear(read_color("color", color))
    if shade.shape != (3,):
        raise ValueError(f"color: expected one colour, got shape {shade.shape}")
    with torch.no_grad():
        frames, animated = _read_frames(body, parameters)
        rig = _Rig(body, frames)
        error = 0.0
        if suffix == ".bvh":
            content = rig.bvh(fps).encode()
        else:
            if morph_targets is None:
                morph_targets = body.asset.metadata.license in FREE_LICENSES
            content = rig.glb(fps if animated else None, morph_targets, shade)
            error = rig.error()
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)
    return error


def check_single(body: BodyModel) -> None:
    """Refuse a layer that blends two bodies."""
    if getattr(expect_body(body), "infant", None) is not None:
        raise ValueError(
            "body: blends two bodies (smil=...), and a file has one; give a layer of one of them"
        )


def direction_names(body: BodyModel) -> list[str]:
    """Return a name for each of the body's directions after the template."""
    names = body.asset.metadata.shape_names
    if names:
        used = [*names[: body.num_betas], *names[body.asset.num_betas :][: body.num_expression]]
    else:
        used = [f"beta_{k}" for k in range(body.num_betas)]
    return used + [f"age_offset_{offset:g}" for offset in body.age_anchors]


def _read_frames(body: BodyModel, parameters: BodyParameters | None) -> tuple[BodyParameters, bool]:
    """Return checked parameters with one batch dimension, of one identity, and whether it was given."""
    rest = BodyParameters.zeros(body)
    parameters = rest if parameters is None else parameters
    if not isinstance(parameters, BodyParameters):
        raise TypeError(f"parameters: expected BodyParameters, got {type(parameters).__name__}")
    batch = broadcast(
        **{
            name: expect(f"parameters.{name}", part, *like.shape).shape[: part.dim() - like.dim()]
            for (name, part), like in zip(parameters._asdict().items(), rest, strict=True)
        }
    )
    if len(batch) > 1 or 0 in batch:
        raise ValueError(
            f"parameters: expected one body, of one pose () or of at least one frame (N,), got {batch}"
        )
    frames = read_start(body, parameters, batch, argument="parameters")
    if not body.age_anchors:
        frames = frames._replace(age_offset=torch.zeros_like(frames.age_offset))
    check_identity(frames)
    return frames, bool(batch)


class _Rig:
    """A body of one identity and the frames of its pose, as arrays."""

    def __init__(self, body: BodyModel, frames: BodyParameters) -> None:
        self.body, self.frames = body, frames
        self.first = frames.map(lambda part: part[0])
        self.shaped = body.shape(self.first)
        self.surface = _array(self.shaped.rest_vertices)
        self.joints = _array(self.shaped.rest_joints)
        parents = body.asset.parents
        self.offsets = self.joints - np.where(parents[:, None] >= 0, self.joints[parents], 0)
        self.places = self.joints[0] + _array(frames.transl)
        vectors = torch.cat((frames.global_orient[:, None], frames.body_pose), 1)
        self.turns = Rotation.from_rotvec(_array(vectors).reshape(-1, 3))
        self.skin_joints, self.skin_weights = _strongest(body.asset.dense_weights().astype(np.float64))

    def error(self) -> float:
        """Return the largest distance between linear blend skinning with the file's weights and the layer."""
        largest = 0.0
        for output in self._posed():
            world = _array(output.joint_transforms)
            shift = world[..., :3, 3] - np.einsum("fjab,jb->fja", world[..., :3, :3], self.joints)
            skin = np.concatenate((world[..., :3, :3], shift[..., None]), -1)[:, self.skin_joints]
            blend = np.einsum("vw,fvwab->fvab", self.skin_weights, skin)
            moved = np.einsum("fvab,vb->fva", blend[..., :3], self.surface) + blend[..., 3]
            largest = max(largest, float(np.linalg.norm(moved - _array(output.vertices), axis=-1).max()))
        return largest

    def _posed(self) -> Iterator[BodyOutput]:
        for start in range(0, len(self.places), _FRAMES_AT_ONCE):
            rows = slice(start, start + _FRAMES_AT_ONCE)
            yield self.shaped(BodyParameters(*(part[rows] for part in self.frames)))

    def glb(self, fps: float | None, morph_targets: bool, shade: Float[np.ndarray, " 3"]) -> bytes:
        """Return a glTF file, animated if it has a rate."""
        asset, gltf = self.body.asset, _Gltf()
        count = asset.num_joints
        quaternions = _continuous(self.turns.as_quat().reshape(-1, count, 4))
        nodes: list[dict[str, Any]] = [
            {
                "name": name,
                "translation": self.offsets[j].tolist(),
                "rotation": quaternions[0, j].tolist(),
                "children": np.flatnonzero(asset.parents == j).tolist(),
            }
            for j, name in enumerate(asset.joint_names)
        ]
        nodes[0]["translation"] = self.places[0].tolist()
        for node in nodes:
            if not node["children"]:
                del node["children"]
        nodes.append({"name": asset.metadata.name, "mesh": 0, "skin": 0})
        binds = np.tile(np.eye(4), (count, 1, 1))
        binds[:, 3, :3] = -self.joints  # matrices are stored by columns
        normals = vertex_normals(self.surface, asset.faces)
        normals[~normals.any(1)] = 0.0, 1.0, 0.0  # of vertices without a triangle: zero is no direction
        primitive: dict[str, Any] = {
            "attributes": {
                "POSITION": gltf.add(self.surface, "f4", _VERTICES, bounds=True),
                "NORMAL": gltf.add(normals, "f4", _VERTICES),
                "JOINTS_0": gltf.add(self.skin_joints, "u1" if count <= 256 else "u2", _VERTICES),
                "WEIGHTS_0": gltf.add(self.skin_weights, "f4", _VERTICES),
            },
            "indices": gltf.add(asset.faces.ravel(), "u4", _INDICES),
            "material": 0,
        }
        mesh: dict[str, Any] = {"name": asset.metadata.name, "primitives": [primitive]}
        names = direction_names(self.body) if morph_targets else []
        if names:
            directions = self.body.identity_directions[1:]
            primitive["targets"] = [
                {"POSITION": gltf.add(part, "f4", _VERTICES, bounds=True)} for part in directions
            ]
            mesh["weights"] = [0.0] * len(names)
            joints = np.round(self.body.joint_directions[1:], 7).tolist()  # 0.1 µm
            mesh["extras"] = {"targetNames": names, "targetJoints": joints}
        material = {"metallicFactor": 0.0, "roughnessFactor": 0.8, "baseColorFactor": [*shade.tolist(), 1.0]}
        identity = {"betas": self.first.betas.tolist(), "age_offset": float(self.first.age_offset)}
        tree: dict[str, Any] = {
            "asset": {
                "version": "2.0",
                "generator": "agebody",
                "copyright": f"{asset.metadata.name}: {asset.metadata.license}",
                "extras": {"body": asset.metadata.name, **identity},
            },
            "scene": 0,
            "scenes": [{"nodes": [0, count]}],
            "nodes": nodes,
            "meshes": [mesh],
            "materials": [{"name": "skin", "pbrMetallicRoughness": material}],
            "skins": [
                {"joints": list(range(count)), "skeleton": 0, "inverseBindMatrices": gltf.add(binds, "f4")}
            ],
        }
        if fps is not None:
            times = gltf.add(np.arange(len(self.places)) / fps, "f4", bounds=True)
            moves = [(0, "translation", self.places)]
            moves += [(j, "rotation", quaternions[:, j]) for j in range(count)]
            tree["animations"] = [
                {
                    "name": "motion",
                    "samplers": [{"input": times, "output": gltf.add(v, "f4")} for _, _, v in moves],
                    "channels": [
                        {"sampler": i, "target": {"node": node, "path": what}}
                        for i, (node, what, _) in enumerate(moves)
                    ],
                }
            ]
        return gltf.pack(tree)

    def bvh(self, fps: float) -> str:
        """Return the skeleton and its motion as Biovision's text: metres, angles in degrees about z, x, y."""
        asset = self.body.asset
        lines, order = ["HIERARCHY"], []

        def write(joint: int, depth: int) -> None:
            indent, order_of_turns = "  " * depth, "Zrotation Xrotation Yrotation"
            root = joint == 0
            order.append(joint)
            lines.append(
                f"{indent}{'ROOT' if root else 'JOINT'} {'_'.join(asset.joint_names[joint].split())}"
            )
            lines.append(f"{indent}{{")
            # A root's offset is zero: readers do not agree whether its position is added to it.
            lines.append(f"{indent}  OFFSET {_numbers(np.zeros(3) if root else self.offsets[joint])}")
            places = "6 Xposition Yposition Zposition " if root else "3 "
            lines.append(f"{indent}  CHANNELS {places}{order_of_turns}")
            children = np.flatnonzero(asset.parents == joint).tolist()
            for child in children:
                write(child, depth + 1)
            if not children:  # drawn by programs as a bone of half the length
                lines.append(f"{indent}  End Site\n{indent}  {{")
                lines.append(f"{indent}    OFFSET {_numbers(self.offsets[joint] / 2)}\n{indent}  }}")
            lines.append(f"{indent}}}")

        write(0, 0)
        angles = self.turns.as_euler("ZXY", degrees=True).reshape(-1, asset.num_joints, 3)
        lines += ["MOTION", f"Frames: {len(angles)}", f"Frame Time: {1 / fps:.8f}"]
        for place, turns in zip(self.places, angles[:, order], strict=True):
            lines.append(f"{_numbers(place)} {_numbers(turns.ravel())}")
        return "\n".join(lines) + "\n"


class _Gltf:
    """The binary block of a glTF file, and the place of each array in it."""

    def __init__(self) -> None:
        self.binary = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: np.ndarray, kind: str, target: int | None = None, *, bounds: bool = False) -> int:
        """Append an array and return the index of its accessor."""
        array = np.ascontiguousarray(values, f"<{kind}")
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": array.nbytes}
        self.views.append(view if target is None else {**view, "target": target})
        self.binary += array.tobytes()
        self.binary += bytes(-len(self.binary) % 4)
        accessor: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": _COMPONENTS[kind],
            "count": len(array),
            "type": _TYPES[array.shape[1:]],
        }
        if bounds:
            accessor |= {
                "min": np.atleast_1d(array.min(0)).tolist(),
                "max": np.atleast_1d(array.max(0)).tolist(),
            }
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def pack(self, tree: dict[str, Any]) -> bytes:
        """Return the file: a header, a block of JSON, a block of numbers (glTF 2.0, 4.4)."""
        tree |= {"accessors": self.accessors, "bufferViews": self.views}
        tree["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        blocks = [(b"JSON", text), (b"BIN\0", bytes(self.binary))]
        body = b"".join(len(data).to_bytes(4, "little") + kind + data for kind, data in blocks)
        return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body


def _strongest(weights: Float[np.ndarray, "V J"]) -> tuple[Int[np.ndarray, "V 4"], Float[np.ndarray, "V 4"]]:
    """Return the four strongest joints of each vertex, and weights that sum to 1; of weight 0, joint 0."""
    padded = np.pad(weights.clip(0), ((0, 0), (0, max(0, _JOINTS_PER_VERTEX - weights.shape[1]))))
    joints = np.argsort(-padded, axis=1, kind="stable")[:, :_JOINTS_PER_VERTEX]
    kept = np.take_along_axis(padded, joints, 1)
    kept = (kept / kept.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
    return np.where(kept > 0, joints, 0), kept


def _continuous(quaternions: Float[np.ndarray, "N J 4"]) -> Float[np.ndarray, "N J 4"]:
    """Choose of q and -q, the same rotation, the one closer to the frame before; some readers lerp."""
    along = (quaternions * np.roll(quaternions, 1, 0)).sum(-1, keepdims=True)
    along[0] = 1.0
    return quaternions * np.where(along < 0, -1.0, 1.0).cumprod(0)


def _numbers(values: Float[np.ndarray, " N"]) -> str:
    return " ".join(f"{value:.6f}" for value in values)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
