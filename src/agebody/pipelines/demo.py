"""One body at six ages: posed, timed, and written as a picture, a scene and arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agebody.age import AgeCurve, median_stature
from agebody.age.growth import ADULT_YEARS
from agebody.assets.asset import BodyAsset
from agebody.body import SMPLA
from agebody.draw import Picture, lineup, save_mesh
from agebody.draw.meshes import PALETTE, stand_in_row
from agebody.draw.pictures import contact_sheet
from agebody.files import save_npz
from agebody.measure import stature
from agebody.people import pose
from agebody.pipelines.bench import forward_and_gradient, interleaved, vertices_of

SPACING = 1.25
"""Distance between neighbours [m]."""
SECONDS = 0.15
"""For timing the body at each age [s]."""


class Person(NamedTuple):
    """One age of the demo, with name and heading [rad] of a calm and of a lively pose."""

    name: str
    years: float
    calm: tuple[str, float]
    lively: tuple[str, float]


PEOPLE = (
    Person("newborn", 0, ("lying", 1.25), ("kicking", 1.1)),
    Person("1 year", 1, ("sitting", 0.45), ("crawling", 0.75)),
    Person("4 years", 4, ("standing", 0.35), ("cheering", 0.3)),
    Person("8 years", 8, ("hand on hip", 0.3), ("running", 0.8)),
    Person("12 years", 12, ("at ease", 0.3), ("waving", 0.15)),
    Person("adult", ADULT_YEARS, ("standing", 0.3), ("walking", 0.75)),
)


@dataclass(frozen=True)
class Row:
    """Results of the demo for one age."""

    name: str
    age_offset: float
    stature: float
    """[m]"""
    who_median: float
    """[m]"""
    forward: float
    """Time per body [s]."""
    backward: float
    """Time per body [s]."""


def run_demo(
    asset: BodyAsset,
    folder: Path,
    *,
    device: str = "cpu",
    width: int = 1600,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
) -> list[Row]:
    """Pose the body at six ages, run it forward and backward, and write ages.png, ages.glb and ages.npz."""
    progress("posing", 0)
    curve = AgeCurve.from_asset(asset)
    body = SMPLA(asset, device=device)
    age_offset = torch.tensor(
        [curve.years_to_offset(float(person.years)) for person in PEOPLE], device=device
    )
    angles = [[pose(name, asset.joint_names, heading=heading) for name, heading in row] for row in _rows()]
    full_pose = torch.tensor(np.array(angles), dtype=torch.float32, device=device)
    with torch.no_grad():
        heights = stature(body.shape(age_offset=age_offset).rest_vertices)
        output = body(age_offset=age_offset, global_orient=full_pose[:, :, 0], body_pose=full_pose[:, :, 1:])
    progress("timing", 0.1)
    times = [_time(body, offset, angle) for offset, angle in zip(age_offset, full_pose[0], strict=True)]
    rows = [
        Row(person.name, offset, height, median_stature(float(person.years)), *seconds)
        for person, offset, height, seconds in zip(
            PEOPLE, age_offset.tolist(), heights.tolist(), times, strict=True
        )
    ]
    progress("drawing", 0.2)
    vertices = output.vertices.cpu().numpy()
    picture = _picture(vertices, asset, rows, width)
    progress("writing", 0.9)
    picture.save(folder / "ages.png")
    _save_scene(folder / "ages.glb", vertices, asset)
    arrays = {
        "names": [person.name for person in PEOPLE],
        "poses": [[name for name, _ in row] for row in _rows()],
        "years": [person.years for person in PEOPLE],
        "age_offset": age_offset,
        "stature": heights,
        "global_orient": full_pose[:, :, 0],
        "body_pose": full_pose[:, :, 1:],
        "vertices": vertices,
        "joints": output.joints,
        "joint_names": asset.joint_names,
        "faces": asset.faces,
    }
    save_npz(arrays, folder / "ages.npz", overwrite=True)
    progress("done", 1)
    return rows


def _rows() -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    return [person.calm for person in PEOPLE], [person.lively for person in PEOPLE]


def _time(body: SMPLA, age_offset: Tensor, full_pose: Tensor) -> tuple[float, float]:
    """Return the median times of a forward pass, and of what a backward pass adds, for one body [s]."""
    given = {"age_offset": age_offset, "global_orient": full_pose[0], "body_pose": full_pose[1:]}
    weights = age_offset.new_ones(body.num_vertices, 3)
    forward = vertices_of(body)
    passes = {
        "forward": lambda: forward(**given),
        "both": lambda: forward_and_gradient(forward, given, weights),
    }
    times = interleaved(passes, device=body.device, seconds=SECONDS)
    return times["forward"].median, times["both"].median - times["forward"].median


def _picture(vertices: np.ndarray, asset: BodyAsset, rows: list[Row], width: int) -> Picture:
    tall = float(np.ptp(vertices[..., 1], axis=-1).max())
    scale = width / (SPACING * (len(PEOPLE) + 0.7))
    height, text = round(1.18 * tall * scale), width / 80
    titles = [f"{row.name}\n{row.stature:.2f} m" for row in rows]
    look = {"spacing": SPACING, "scale": scale, "background": None, "text_size": text}
    calm = lineup(vertices[0], asset.faces, size=(width, height), **look)
    lively = lineup(vertices[1], asset.faces, size=(width, height + round(3 * text)), titles=titles, **look)
    return contact_sheet([calm, lively], title="One body, newborn to adult", title_size=width / 44)


def _save_scene(path: Path, vertices: np.ndarray, asset: BodyAsset) -> None:
    bodies, names = [], []
    for row, poses, depth in zip(vertices, _rows(), (0.0, 1.5), strict=True):
        bodies += stand_in_row(list(row), spacing=SPACING, depth=depth)[0]
        names += [f"{person.name} {name}" for person, (name, _) in zip(PEOPLE, poses, strict=True)]
    colors = 2 * PALETTE[: len(PEOPLE)]
    save_mesh(bodies, asset.faces, path, names=names, colors=colors, overwrite=True)
