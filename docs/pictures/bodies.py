"""Bodies: ages, the mannequin, keypoint layouts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw

import agebody
from agebody import rotations
from agebody.age import AgeCurve
from agebody.age.growth import ADULT_YEARS
from agebody.cameras import Camera
from agebody.draw import lineup, render
from agebody.draw.meshes import PALETTE
from agebody.draw.pictures import contact_sheet
from agebody.measure import stature
from agebody.mesh import PartMap
from agebody.people import pose
from agebody.pipelines.demo import run_demo


def draw_ages(path: Path, width: int) -> None:
    """Draw the demo's picture, smaller: Anny at six ages."""
    with tempfile.TemporaryDirectory() as folder:
        run_demo(agebody.anny_body(), Path(folder), width=max(width, 1600))
        with Image.open(Path(folder) / "ages.png") as picture:
            size = (width, round(picture.height * width / picture.width))
            picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def draw_growing(path: Path, width: int) -> None:
    """Draw Anny as it grows from newborn to adult, in a picture that moves; small ones have few frames."""
    asset = agebody.anny_body()
    curve = AgeCurve.from_asset(asset)
    moments = np.array([moment for moment, *_ in GROWING])
    poses = [pose(name, asset.joint_names, heading=heading) for *_, name, heading in GROWING]
    angles = torch.from_numpy(np.array(poses)).float()
    times = np.linspace(0, moments[-1], 72 if width > 300 else 6)
    years = np.interp(times, moments, [age for _, age, *_ in GROWING])
    left = np.searchsorted(moments, times, side="right").clip(1, len(moments) - 1) - 1
    share = torch.from_numpy((times - moments[left]) / (moments[left + 1] - moments[left])).float()
    share = (share * share * (3 - 2 * share))[:, None, None]  # ease in and out
    matrices = rotations.axis_angle_to_matrix(angles)
    step = rotations.matrix_to_axis_angle(matrices[left].mT @ matrices[left + 1])
    turned = matrices[left] @ rotations.axis_angle_to_matrix(share * step)
    offsets = curve.years_to_offset(torch.from_numpy(years).float())
    body = agebody.SMPLA(asset, pose_format="matrix")
    with torch.no_grad():
        heights = stature(body.shape(age_offset=offsets).rest_vertices).tolist()
        bodies = body(age_offset=offsets, global_orient=turned[:, 0], body_pose=turned[:, 1:]).vertices
    look = {"size": (width, width), "scale": 0.4 * width, "spacing": 1.0, "text_size": width / 20}
    frames = [
        Image.fromarray(
            lineup(one, asset.faces, titles=[f"{_in_words(age)}\n{tall:.2f} m"], light_rays=8, **look).rgba
        ).convert("RGB")
        for one, age, tall in zip(bodies[:, None], years, heights, strict=True)
    ]
    pause = [80] * (len(frames) - 1) + [1500]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=pause, loop=0, quality=70, method=6
    )


GROWING = (
    (0.0, 0.0, "lying", 1.25),
    (0.6, 0.0, "kicking", 1.1),
    (1.4, 0.8, "sitting", 0.45),
    (2.2, 1.5, "crawling", 0.75),
    (3.2, 4.0, "standing", 0.35),
    (4.2, 6.0, "cheering", 0.3),
    (5.2, 9.0, "running", 0.8),
    (6.2, 13.0, "waving", 0.15),
    (7.4, ADULT_YEARS, "hand on hip", -0.4),
)
"""Moment, age [years], pose and heading [rad] of a person that grows."""


def _in_words(years: float) -> str:
    if years < 1.95:
        return "newborn" if years < 1 / 24 else f"{12 * years:.0f} months"
    return "adult" if years > ADULT_YEARS - 0.5 else f"{years:.0f} years"


def draw_mannequin(path: Path, width: int) -> None:
    """Draw the mannequin from adult to infant, then with single betas at +2."""
    body = agebody.SMPLA(agebody.mannequin())
    standing = torch.from_numpy(pose("standing", body.asset.joint_names)).float()
    named = ("stature", "weight", "leg_length", "shoulder_width", "muscularity")
    betas = torch.zeros(len(named), body.num_betas)
    for row, name in enumerate(named):
        betas[row, body.asset.metadata.shape_names.index(name)] = 2
    ages = torch.linspace(0, 1, len(named))
    posed = {"global_orient": standing[0], "body_pose": standing[1:]}
    rows = []
    for output, titles in (
        (body(age_offset=ages, **posed), [f"age offset {age:.2f}" for age in ages.tolist()]),
        (body(betas=betas, **posed), [f"{name} +2" for name in named]),
    ):
        look = {"spacing": 1.0, "scale": width / 5.4, "text_size": width / 65, "background": None}
        size = (width, round(0.42 * width))
        rows.append(lineup(output.vertices, body.faces, size=size, titles=titles, **look))
    _save(contact_sheet(rows).rgba, path)


def draw_keypoints(path: Path, width: int) -> None:
    """Draw four layouts on one body."""
    body = agebody.SMPLA(agebody.anny_body())
    arms = torch.zeros(body.num_joints - 1, 3)
    for side, sign in (("left", -1.0), ("right", 1.0)):
        arms[body.asset.joint_names.index(f"{side}_shoulder") - 1, 2] = sign * 0.6
    shown = ("smpl24", "coco17", "openpose25", "hmr2_44")
    size = (width // len(shown), round(0.36 * width))
    camera = Camera.look_at((0.0, -0.05, 9.0), (0.0, -0.05, 0.0), size=size, fov=0.235)
    vertices = body(body_pose=arms).vertices
    look = {"colors": ["#d8d0c6"], "background": ("#f3efe9", "#e4ded6")}
    picture = render(vertices, body.faces, camera, size=size, **look)
    cells = [
        _with_points(picture.rgba, camera, body, arms, name, color)
        for name, color in zip(shown, np.array(PALETTE)[[0, 3, 4, 5]], strict=True)
    ]
    _save(np.concatenate(cells, axis=1), path)


def draw_hands(path: Path, width: int) -> None:
    """Draw four poses of a hand, each at three ages and as large: from above and from the thumb's side."""
    body = agebody.SMPLA(agebody.anny_body(hands=True))
    curve = agebody.age.AgeCurve.from_asset(body.asset)
    means, components = (torch.tensor(x[0]) for x in (body.asset.hand_means, body.asset.hand_components))
    rows = body.asset.pose_parts["left_hand"]
    pointing = 4.5 * components[0]
    pointing[:9] = 0
    hands = [torch.zeros(45), means, 2 * components[0], pointing]
    poses = torch.zeros(len(hands), body.num_joints - 1, 3)
    poses[:, rows] = torch.stack(hands).view(-1, 15, 3)
    cells = []
    for years in (30, 4, 0):
        out = body(body_pose=poses, age_offset=curve.years_to_offset(years))
        names = body.asset.joint_names
        wrist, knuckle = (out.joints[0, names.index(f"left_{name}")] for name in ("wrist", "middle1"))
        centre = wrist + 1.1 * (knuckle - wrist)
        away = 30 * float((knuckle - wrist).norm()) * torch.tensor([0.25, 0.75, 0.6])
        size = (width // len(hands), round(0.2 * width))
        camera = Camera.look_at(centre + away, centre, size=size, fov=0.085)
        look = {"colors": ["#d8d0c6"], "background": ("#f3efe9", "#e4ded6")}
        cells.append(
            np.concatenate(
                [render(v[None], body.faces, camera, size=size, **look).rgba for v in out.vertices], 1
            )
        )
    _save(np.concatenate(cells), path)


def draw_parts(path: Path, width: int) -> None:
    """Draw one part per joint, seven and six parts, on an adult and on an infant."""
    body = agebody.SMPLA(agebody.mannequin())
    standing = torch.from_numpy(pose("standing", body.asset.joint_names)).float()
    hues = np.array([ImageColor.getrgb(color) for color in PALETTE]) / 255
    bodies, colors, titles = [], [], []
    for starts, title in ((None, "one per joint"), (7, "seven"), (6, "six")):
        parts = PartMap.from_joints(body.asset, starts)
        for age in (0.0, 1.0):
            output = body(global_orient=standing[0], body_pose=standing[1:], age_offset=torch.tensor(age))
            bodies.append(output.vertices)
            colors.append(hues[parts.vertices % len(hues)])
            titles.append(title if age == 0 else "")
    size = (width, round(0.42 * width))
    look = {"spacing": 0.75, "scale": width / 4.9, "text_size": width / 55}
    _save(lineup(bodies, body.faces, size=size, colors=colors, titles=titles, **look).rgba, path)


def _with_points(
    rgba: np.ndarray, camera: Camera, body: agebody.SMPLA, arms: torch.Tensor, name: str, color: str
) -> np.ndarray:
    """Draw a layout's points and edges over a picture, at four times the size for antialiasing."""
    layout = agebody.LAYOUTS[name]
    points = camera.project(body.keypoints(layout, body_pose=arms)).pixels.numpy()
    small = Image.fromarray(rgba).convert("RGB")
    large = small.resize([4 * n for n in small.size], Image.Resampling.LANCZOS)
    draw, radius = ImageDraw.Draw(large), 4 * small.width / 75
    dark = tuple(round(0.6 * part) for part in ImageColor.getrgb(color))
    for start, end in layout.edges:
        ends = [tuple(4 * points[i]) for i in (start, end)]
        draw.line(ends, fill=color, width=round(0.7 * radius))
    for x, y in 4 * points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=dark, width=3)
    draw.text((2 * small.width, 4 * 0.03 * small.height), name, fill="#4a4540", anchor="ma",
              font_size=4 * small.width / 14)  # fmt: skip
    return np.asarray(large.resize(small.size, Image.Resampling.LANCZOS))


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).convert("RGB").save(path, optimize=True)


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "ages.png": (draw_ages, 1200),
    "growing.webp": (draw_growing, 480),
    "keypoints.png": (draw_keypoints, 1000),
    "mannequin.png": (draw_mannequin, 1000),
    "hands.png": (draw_hands, 1100),
    "parts.png": (draw_parts, 900),
}
"""File name -> function that draws it, and its width [pixels]."""
