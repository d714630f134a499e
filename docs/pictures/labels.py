"""Training labels: a photograph with its keypoints, and the bodies that were fitted to them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import agebody
from agebody.annotations import read_people
from agebody.cameras import Camera
from agebody.draw import render
from agebody.people import pose
from agebody.pipelines.labels import fit_annotations
from agebody.pipelines.labels.overlays import draw_overlay

SIZE = 960, 680
FAMILY = {"waving": (0.0, 0.85, 0.4), "walking": (0.5, -0.15, -0.5), "sitting": (0.9, -0.95, 0.5)}
"""Pose -> age offset, place to the right [m], heading [rad]."""


def draw_labels(path: Path, width: int) -> None:
    """Draw a family, simulated keypoints, and the bodies that `agebody fit` returns."""
    body = agebody.SMPLA(agebody.mannequin())
    poses = [pose(name, body.asset.joint_names, heading=turn) for name, (_, _, turn) in FAMILY.items()]
    angles = torch.from_numpy(np.stack(poses)).float()
    given = {
        "global_orient": angles[:, 0],
        "body_pose": angles[:, 1:],
        "age_offset": torch.tensor([offset for offset, _, _ in FAMILY.values()]),
    }
    ground = body(**given).vertices[..., 1].amin(-1)
    given["transl"] = torch.stack([torch.tensor([x, 0.0, 0.0]) for _, x, _ in FAMILY.values()])
    given["transl"][:, 1] -= ground
    camera = Camera.look_at((0.0, 1.3, 4.2), (0.0, 0.92, 0.0), size=SIZE, fov=0.56)
    photo = render(
        body(**given).vertices, body.faces, camera, size=SIZE, colors=["#cfc7bd"] * len(FAMILY),
        background=("#dfe7ea", "#b9ab98"), ground=0.0,
    ).rgba[..., :3]  # fmt: skip
    points = camera.project(body.keypoints("coco17", **given)).pixels
    points = points + 2 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    document = {
        "images": [{"id": 0, "file_name": "family.jpg", "width": SIZE[0], "height": SIZE[1]}],
        "annotations": [
            {"id": i, "image_id": 0, "keypoints": [v for x, y in rows for v in (x, y, 2)], "age_class": kind}
            for i, (rows, kind) in enumerate(zip(points.tolist(), ("adult", "kid", "baby"), strict=True))
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keypoints.json"
        file.write_text(json.dumps(document))
        labels = fit_annotations(body, read_people(file))
    picture = Image.fromarray(draw_overlay(body, labels, photo, max_side=max(SIZE)))
    picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS).save(
        path, optimize=True
    )


IMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {"labels.png": (draw_labels, 1200)}
"""File name -> function that draws it, and its width [pixels]."""
