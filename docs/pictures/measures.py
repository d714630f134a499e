"""Measurements drawn on a body, and the growth of bodies compared with people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw

import agebody
from agebody.age import AgeCurve, Sex, median_head_circumference, median_stature, stature_at_percentile
from agebody.cameras import Camera
from agebody.draw import Picture, render
from agebody.draw.meshes import stand_in_row
from agebody.measure import MEASUREMENTS, Distance, Girth, Height, Measurements, find_landmarks

LENGTH, GIRTH, INK = "#2f6f8f", "#b4452f", "#4a4540"
HIDDEN = 0.01  # m behind the skin: not drawn
HEIGHTS = ("stature", "sitting_height", "head_height", "crotch_height")


def draw_measures(path: Path, width: int) -> None:
    """Draw heights and lengths (left) and girths (right) of an adult and a newborn, scaled to one height."""
    asset = agebody.anny_body()
    body = agebody.SMPLA(asset)
    measure = Measurements(asset)
    cells = []
    for kind in ("lengths", "girths"):
        for age in (0.0, 1.0):
            rest = body.shape(age_offset=age).rest_vertices
            size = (round(0.25 * width), round(0.25 * width))
            cells.append(_panel(asset, measure, rest, size, kind))
    picture = np.concatenate(cells, axis=1)
    Image.fromarray(picture).resize((width, len(picture) * width // picture.shape[1])).save(
        path, optimize=True
    )


def _panel(
    asset: agebody.BodyAsset, measure: Measurements, rest: torch.Tensor, size: tuple[int, int], kind: str
) -> np.ndarray:
    (vertices,), _ = stand_in_row([rest.numpy().astype(float)], spacing=1.0)
    moved = torch.from_numpy(vertices).float()
    wide, high = np.ptp(vertices[:, 0]), np.ptp(vertices[:, 1])
    fov = 0.12
    view = 1.06 * max(high, wide * size[1] / size[0])
    eye = (0.0, 0.5 * high, view / fov)
    camera = Camera.look_at(eye, (0, 0.5 * high, 0), size=size, fov=fov)
    look = {"colors": ["#d8d0c6"], "background": ("#f3efe9", "#e4ded6")}
    canvas = _Canvas(render(vertices, asset.faces, camera, size=size, **look), camera, size)
    points = _points(asset, moved)
    for name, what in MEASUREMENTS.items():
        if kind == "girths" and isinstance(what, Girth):
            section = measure.section(name, moved)
            canvas.lines(
                section.starts[section.cut].numpy(), section.ends[section.cut].numpy(), GIRTH, hide=True
            )
        elif kind == "lengths" and isinstance(what, Distance):
            chain = np.stack([points[point] for point in what.points])  # pyright: ignore[reportArgumentType]
            canvas.lines(chain[:-1], chain[1:], LENGTH, dots=True)
    if kind == "lengths":
        for i, name in enumerate(HEIGHTS):
            what = MEASUREMENTS[name]
            assert isinstance(what, Height)
            ends = [
                high if end == "top" else 0.0 if end == "ground" else points[end][1]
                for end in (what.upper, what.lower)
            ]
            x = wide * (0.19 + 0.08 * i)
            canvas.bracket(x, *ends, 0.015 * high)
    return canvas.shrunk()


def _points(asset: agebody.BodyAsset, rest: torch.Tensor) -> dict[str, np.ndarray]:
    found = find_landmarks(asset)
    places = dict(zip(asset.joint_names, asset.joint_regressor @ rest.numpy(), strict=True))
    return places | dict(zip(found.names, found.matrix @ rest.numpy(), strict=True))


class _Canvas:
    """Draw lines over a picture, at four times the size for antialiasing."""

    def __init__(self, picture: Picture, camera: Camera, size: tuple[int, int]) -> None:
        self.camera, self.size, self.depth = camera, size, picture.depth
        image = Image.fromarray(picture.rgba).convert("RGB")
        self.image = image.resize([4 * n for n in size], Image.Resampling.LANCZOS)
        self.draw = ImageDraw.Draw(self.image)
        self.width = max(4, round(4 * size[1] / 190))

    def lines(
        self, starts: np.ndarray, ends: np.ndarray, color: str, *, hide: bool = False, dots: bool = False
    ) -> None:
        for start, end in zip(self._project(starts), self._project(ends), strict=True):
            if hide and self._is_behind((start + end) / 2):
                continue
            self.draw.line([*map(tuple, (4 * start[:2], 4 * end[:2]))], fill=color, width=self.width)
            for x, y in (4 * start[:2], 4 * end[:2]) if dots else ():
                r = self.width
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def bracket(self, x: float, upper: float, lower: float, tick: float) -> None:
        """Draw a vertical line with end marks."""
        pairs = [((x, upper), (x, lower))] + [((x - tick, y), (x + tick, y)) for y in (upper, lower)]
        starts, ends = (np.array([[*pair[i], 0.0] for pair in pairs]) for i in (0, 1))
        self.lines(starts, ends, LENGTH)

    def _project(self, points: np.ndarray) -> np.ndarray:
        found = self.camera.project(torch.from_numpy(points).float())
        return torch.cat((found.pixels, found.depth[:, None]), -1).numpy()

    def _is_behind(self, point: np.ndarray) -> bool:
        column, row = (int(np.clip(n, 0, m - 1)) for n, m in zip(point[:2], self.size, strict=True))
        return point[2] > self.depth[row, column] + HIDDEN

    def shrunk(self) -> np.ndarray:
        return np.asarray(self.image.resize(self.size, Image.Resampling.LANCZOS))


# What is known of people (WHO; a Dutch growth study and tables of artists' proportions, both secondary).
SITTING = {0: 0.692, 0.5: 0.671, 1: 0.648, 2: 0.604, 4: 0.555, 6: 0.541, 8: 0.531, 12: 0.513, 18: 0.515}
HEADS = {0: 4.1, 1: 4.8, 2: 5.3, 4: 5.7, 6: 6.2, 8: 6.7, 10: 7.0, 14: 7.6, 19: 7.9}


def draw_growth(path: Path, width: int) -> None:
    """Plot stature, proportions and head circumference by age: two bodies, and people."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), dpi=width / 10, layout="constrained")
    figure.patch.set_facecolor("#fbfaf8")
    stature, sitting, heads, girth = axes.flat
    years = np.concatenate([np.linspace(0, 2, 17), np.linspace(2.5, 19, 34)])
    sexes: tuple[tuple[Sex, str], ...] = (("female", "girls"), ("male", "boys"))
    for (sex, label), color in zip(sexes, ("#a98598", "#7c9fa6"), strict=True):
        low, high = (stature_at_percentile(np.full_like(years, p), years, sex=sex) for p in (3.0, 97.0))
        stature.fill_between(years, 100 * low, 100 * high, color=color, alpha=0.3, lw=0)
        stature.plot(years, 100 * median_stature(years, sex=sex), color=color, lw=1.2, label=f"{label}, WHO")
    early = years[years <= 5]
    girth.plot(early, 100 * median_head_circumference(early), color=INK, lw=1.2, label="WHO, girls and boys")
    sitting.plot([*SITTING], [*SITTING.values()], "o", ms=4, color=INK, label="Dutch children")
    heads.plot([*HEADS], [*HEADS.values()], "o", ms=4, color=INK, label="tables of proportions")
    bodies = ((agebody.anny_body(), "Anny", "#b4452f"), (agebody.mannequin(), "mannequin", "#97a883"))
    for asset, name, color in bodies:
        curve = AgeCurve.from_asset(asset)
        offsets = torch.from_numpy(curve.years_to_offset(years)).float()
        rest = agebody.SMPLA(asset).shape(age_offset=offsets).rest_vertices
        measured = ("stature", "sitting_height", "head_height", "head_circumference")
        tall, seat, head, around = Measurements(asset, measured)(rest).numpy().T
        for axis, value in (
            (stature, 100 * tall), (sitting, seat / tall), (heads, tall / head), (girth, 100 * around),
        ):  # fmt: skip
            axis.plot(years, value, color=color, lw=1.8, label=name)
    for axis, title in (
        (stature, "stature [cm], 3rd to 97th percentile"), (sitting, "sitting height / stature"),
        (heads, "heads in stature"), (girth, "head circumference [cm]"),
    ):  # fmt: skip
        axis.set_title(title, loc="left", color=INK)
        axis.set_facecolor("#fbfaf8")
        axis.set_xlim(0, 19.3)
        axis.legend(frameon=False, fontsize=8)
    for axis in (heads, girth):
        axis.set_xlabel("age [years]")
    figure.savefig(path)
    plt.close(figure)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "measures.png": (draw_measures, 1200),
    "growth.png": (draw_growth, 1000),
}
"""File name -> function that draws it, and its width [pixels]."""
