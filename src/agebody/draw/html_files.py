"""Write HTML files that a browser opens without a network: a body with its numbers, or posed people.

The page is in ``viewer/``: ``body.js`` computes what the layer computes, ``view.js`` draws it with WebGL 2.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from agebody.age import AgeCurve, median_head_circumference
from agebody.age.growth import Sex, growth_by_months
from agebody.assets.asset import AssetError, BodyAsset, sparse_weights
from agebody.body import BodyModel
from agebody.cameras import field_limit
from agebody.draw.meshes import PALETTE
from agebody.draw.rigged_files import FREE_LICENSES, check_single, direction_names
from agebody.files import replacing
from agebody.keypoints import LAYOUTS
from agebody.measure import Girth, Height, Measurements
from agebody.people import POSES, pose

_MEASURES = [
    "stature",
    "sitting_height",
    "crotch_height",
    "arm_span",
    "shoulder_breadth",
    "hip_breadth",
    "head_height",
    "head_circumference",
    "neck_circumference",
    "chest_circumference",
    "waist_circumference",
    "hip_circumference",
]
"""Measurements of a page, in its order; those of limbs are left out."""
_UPRIGHT = (1, -1, -1)
"""Signs that turn a camera's axes into the page's: y up, cameras look along -z."""
_MAKERS = {
    "mannequin": "agebody.mannequin()",
    "Anny": "agebody.anny_body()",
    "Anny-hands": "agebody.anny_body(hands=True)",
}
"""Python code of the free bodies, by the first words of their names."""


def save_html(body: BodyModel, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Write a page that shows the body at every age, shape and everyday pose, and measures it.

    The page is one file that any browser opens, without a network. It holds the body's numbers, and computes
    what the layer computes, within 0.1 mm.

    Args:
        body: the layer; its betas and expressions are those that the page can change. Measurements beside
            stature are shown where the body has their landmarks (`find_landmarks`), poses where it has
            SMPL's joints, layouts of keypoints where it has their points.
        path: the file.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    check_single(body)
    metadata = body.asset.metadata
    if metadata.license not in FREE_LICENSES:
        raise ValueError(
            f"body: the page would hold the shape space of {metadata.name!r}, and its licence, "
            f"{metadata.license!r}, is not one of {', '.join(FREE_LICENSES)}; show posed bodies by save_mesh"
        )
    block = _Block()
    about = _describe(body, block)
    _write(metadata.name, about, block, path, overwrite=overwrite)


class Scene(NamedTuple):
    """The people that a camera sees at one time."""

    title: str
    vertices: Sequence[Float[np.ndarray, "V 3"]]
    """Vertices of each person, in camera coordinates: +x right, +y down, +z forward [m]."""
    names: Sequence[str]
    """A line about each person."""
    colors: Sequence[str]
    """Colour of each person, as a hexadecimal number."""
    size: tuple[int, int]
    """Width and height of the image [pixels]."""
    focal: tuple[float, float]
    """[pixels]"""
    center: tuple[float, float]
    """Principal point [pixels]."""
    image: bytes | None = None
    """The photograph as a JPEG; None shows none."""
    distortion: Sequence[float] = ()
    """Lens distortion, as in `Camera`; people are drawn where the lens shows them."""


def save_scenes_html(
    scenes: Sequence[Scene],
    faces: Int[np.ndarray, "F 3"],
    path: str | PathLike[str],
    *,
    title: str,
    license: str,
    rate: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write a page that shows posed people as their cameras see them, and from all around.

    It holds posed surfaces, rounded to 1/32767 of a person's extent, and no body. The ``license`` is that of
    the body; frames in their order have a ``rate`` per second, images without an order have none.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    block = _Block()
    about = {
        "kind": "scenes",
        "name": title,
        "license": license,
        "rate": rate,
        "faces": block.add(faces, "u4"),
        "scenes": [_describe_scene(scene, block) for scene in scenes],
    }
    _write(title, about, block, path, overwrite=overwrite)


def _describe_scene(scene: Scene, block: _Block) -> dict[str, Any]:
    people = []
    for vertices, name, color in zip(scene.vertices, scene.names, scene.colors, strict=True):
        upright = np.asarray(vertices, float) * _UPRIGHT
        shift = (upright.min(0) + upright.max(0)) / 2
        rounded = block.add_directions((upright - shift)[None])
        people.append({"name": name, "color": color, **rounded, "shift": shift.tolist()})
    image = None if scene.image is None else base64.b64encode(scene.image).decode()
    about = {"title": scene.title, "people": people, "image": image}
    if any(scene.distortion):
        limit = float(field_limit(torch.tensor(scene.distortion, dtype=torch.float64)))
        padded = [*scene.distortion[:8], *[0.0] * (8 - len(scene.distortion))]
        about["lens"] = {"coefficients": padded, "limit": min(limit, 1e6)}
    return about | {"size": scene.size, "focal": scene.focal, "center": scene.center}


class _Block:
    """The arrays of a page, compressed as one block; equal arrays are stored once."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.found: dict[tuple[str, bytes], dict[str, Any]] = {}

    def add(self, values: np.ndarray, kind: str) -> dict[str, Any]:
        """Append an array and return its reference in the JSON."""
        array = np.ascontiguousarray(values, f"<{kind}").ravel()
        planes = array.view(np.uint8).reshape(-1, array.itemsize).T.tobytes()  # deflates better by bytes
        if (kind, planes) not in self.found:
            self.found[kind, planes] = {"packed": [kind, len(self.raw), array.size]}
            self.raw += planes
        return self.found[kind, planes]

    def add_directions(self, directions: np.ndarray) -> dict[str, Any]:
        """Append directions (C, V, 3) in 16 bits, each in steps of its own [m]."""
        flat = directions.reshape(len(directions), -1)
        steps = np.abs(flat).max(1, initial=0) / 32767
        values = np.rint(flat / np.where(steps > 0, steps, 1)[:, None])
        return {"values": self.add(values, "i2"), "steps": steps.tolist()}

    def text(self) -> str:
        """Return the block as text."""
        return base64.b64encode(zlib.compress(bytes(self.raw), 9)).decode()


def _describe(body: BodyModel, block: _Block) -> dict[str, Any]:
    """Return the data of a body for a page."""
    asset = body.asset
    ids = "u2" if body.num_vertices < 2**16 else "u4"
    names = direction_names(body)
    joints, weights = sparse_weights(asset.dense_weights())
    return {
        "kind": "body",
        "name": asset.metadata.name,
        "license": asset.metadata.license,
        "maker": _MAKERS.get(asset.metadata.name.split(" ")[0], "agebody.load_asset(FILE)"),
        "layer": type(body).__name__,
        "color": PALETTE[0],
        "betas": names[: body.num_coefficients],
        "numBetas": body.num_betas,
        "anchors": list(body.age_anchors),
        "infantCorrectiveScale": body.infant_corrective_scale,
        "parents": asset.parents.tolist(),
        "jointNames": list(asset.joint_names),
        "faces": block.add(asset.faces, ids),
        "directions": block.add_directions(body.identity_directions),
        "jointDirections": block.add(body.joint_directions, "f4"),
        "correctives": None if asset.posedirs is None else block.add_directions(body.corrective_directions),
        "skinning": {
            "width": joints.shape[1],
            "joints": block.add(joints, "u2"),
            "weights": block.add(weights, "f4"),
        },
        "measures": _measures(asset, block, ids),
        "layouts": _layouts(asset, block, ids),
        "poses": {
            name: pose(name, asset.joint_names).ravel().round(6).tolist()
            for name, joints in POSES.items()
            if set(joints) <= set(asset.joint_names)
        },
        "ages": _ages(asset) if body.age_anchors else None,
    }


def _measures(asset: BodyAsset, block: _Block, ids: str) -> list[dict[str, Any]]:
    """Return the measurements as rows over the vertices, and the triangles of girths."""
    try:
        measure = Measurements(asset, _MEASURES)
    except AssetError:  # has no such landmarks
        return [{"name": "stature", "kind": "height", "ends": ["top", "ground"], "rows": [], "faces": None}]
    found = []
    for (name, what), gauge in zip(measure.definitions.items(), measure.all_gauges(), strict=True):
        arrays = {key: tensor.numpy() for key, tensor in gauge.named_buffers()}
        rows = [
            {"ids": arrays["vertices"][row != 0].tolist(), "weights": row[row != 0].tolist()}
            for row in arrays["rows"]
        ]
        faces = block.add(arrays["vertices"][arrays["faces"]], ids) if "faces" in arrays else None
        kind = type(what).__name__.lower()
        ends = [what.upper, what.lower] if isinstance(what, Height) else None
        tape = what.tape if isinstance(what, Girth) else None
        found.append({"name": name, "kind": kind, "ends": ends, "rows": rows, "faces": faces, "tape": tape})
    return found


def _layouts(asset: BodyAsset, block: _Block, ids: str) -> list[dict[str, Any]]:
    """Return the layouts that the body has."""
    found = []
    for name, layout in LAYOUTS.items():
        try:
            joints, regressor = layout.resolve(asset)
        except AssetError:  # is for other bodies
            continue
        found.append(
            {
                "name": name,
                "names": list(layout.names),
                "edges": [list(edge) for edge in layout.edges],
                "joints": joints.tolist(),
                "starts": regressor.indptr.tolist(),
                "vertices": block.add(regressor.indices, ids),
                "weights": block.add(regressor.data, "f4"),
            }
        )
    return found


def _ages(asset: BodyAsset) -> dict[str, Any]:
    """Return the body's ages in years, and the WHO's medians, as lines through points."""
    gender = asset.metadata.gender
    sex: Sex = gender if gender in ("female", "male") else "neutral"  # pyright: ignore[reportAssignmentType]
    curve, growth = AgeCurve.from_asset(asset), growth_by_months(sex)
    head = np.arange(5 * 12 + 1) / 12
    return {
        "years": _rounded(curve.years),
        "offsets": _rounded(curve.offsets),
        "who": {
            "years": _rounded(growth.years),
            "median": _rounded(growth.median),
            "sd": _rounded(growth.sd),
        },
        "head": {"years": _rounded(head), "median": _rounded(median_head_circumference(head, sex=sex))},
    }


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 7).tolist()


def _write(
    title: str, about: dict[str, Any], block: _Block, path: str | PathLike[str], *, overwrite: bool
) -> None:
    """Write the page: scripts, JSON and numbers in the places of its template."""
    folder = files("agebody.draw") / "viewer"
    page, style, body, view = (
        (folder / name).read_text("utf-8") for name in ("page.html", "page.css", "body.js", "view.js")
    )
    text = json.dumps(about, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":  # names may hold anything, and a script ends at </script>
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    parts = {"TITLE": escape(title), "STYLE": style, "BODY": body, "VIEW": view, "ABOUT": text}
    parts["NUMBERS"] = block.text()
    pieces = page.split("@@")  # text, name, text, name, ..., text
    content = "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))
    with replacing(Path(path), overwrite=overwrite) as temporary:
        temporary.write_text(content, "utf-8")
