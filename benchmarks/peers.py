"""Contenders: agebody's backends and other libraries, behind one call, on one synthetic body."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import agebody
from agebody.assets.asset import BodyAsset
from agebody.assets.io import export_smpl
from agebody.pipelines.bench import load_smplx

LAYOUT = "coco17"


@dataclass(frozen=True)
class Contender:
    """A body layer. All arguments are named and shaped as in `agebody.pipelines.bench.sample_arguments`."""

    name: str
    forward: Callable[..., Tensor]
    """(betas, body_pose, global_orient, transl) -> vertices (B, V, 3) [m]."""
    keypoints: Callable[..., Tensor]
    """The same -> points (B, K, 3) [m], by the fastest documented way of the library."""
    shape: Callable[[Tensor], Callable[..., Tensor]] | None = None
    """betas -> a function of poses: (body_pose, global_orient, transl) -> vertices."""


@dataclass(frozen=True)
class Files:
    """Files of one body for each library."""

    asset: BodyAsset
    folder: Path
    device: torch.device

    @property
    def smpl(self) -> Path:
        return self.folder / "SMPL_NEUTRAL.pkl"

    @property
    def regressor(self) -> Tensor:
        """Regressor (K, V) of the points of the layout, which are all on the surface."""
        joints, rows = agebody.LAYOUTS[LAYOUT].resolve(self.asset)
        assert (joints < 0).all()
        return torch.from_numpy(rows.toarray()).to(self.device, torch.float32)

    @classmethod
    def write(cls, asset: BodyAsset, folder: Path, device: torch.device) -> Files:
        files = cls(asset, folder, device)
        export_smpl(asset, files.smpl)
        # smplfitter needs the published file names, and a kid template, which zeros turn off.
        shutil.copy(files.smpl, folder / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl")
        np.save(folder / "kid_template.npy", np.zeros_like(asset.template))
        return files


def _agebody(name: str, files: Files, backend: str) -> Contender:
    body = agebody.SMPL(files.asset, backend=backend, device=files.device)

    def shape(betas: Tensor) -> Callable[..., Tensor]:
        shaped = body.shape(betas=betas)
        return lambda **pose: shaped(**pose).vertices

    return Contender(
        name,
        lambda **given: body(**given).vertices,
        lambda **given: body.keypoints(LAYOUT, **given),
        shape,
    )


def _smplx(name: str, files: Files) -> Contender:
    layer, regressor = load_smplx(files.smpl, files.device), files.regressor
    return Contender(
        name, lambda **given: layer(**given).vertices, lambda **given: regressor @ layer(**given).vertices
    )


def _body_models(name: str, files: Files, backend: str) -> Contender:
    from body_models.smpl.torch import SMPL

    model = SMPL(model_path=files.smpl, kernel_backend=backend).to(files.device)
    points = model.prepare_point_regressor(files.regressor)

    def named(
        body_pose: Tensor, global_orient: Tensor, transl: Tensor, betas: Tensor | None = None
    ) -> dict[str, Tensor]:
        pose = {
            "body_pose": body_pose.unflatten(-1, (-1, 3)),
            "pelvis_rotation": global_orient,
            "global_translation": transl,
        }
        return pose if betas is None else pose | {"shape": betas}

    def shape(betas: Tensor) -> Callable[..., Tensor]:
        identity = model.prepare_identity(betas)
        return lambda **pose: model.forward_vertices(**named(**pose), identity=identity)

    return Contender(
        name,
        lambda **given: model.forward_vertices(**named(**given)),
        lambda **given: model.forward_points(**named(**given), point_regressor=points),
        shape,
    )


def _smplfitter(name: str, files: Files) -> Contender:
    from smplfitter.pt import BodyModel

    model = BodyModel("smpl", "neutral", model_root=str(files.folder), device=files.device)
    regressor = files.regressor

    def vertices(betas: Tensor, body_pose: Tensor, global_orient: Tensor, transl: Tensor) -> Tensor:
        pose = torch.cat((global_orient, body_pose), -1)
        return model(pose_rotvecs=pose, shape_betas=betas, trans=transl)["vertices"]

    return Contender(name, vertices, lambda **given: regressor @ vertices(**given))


def _soma(name: str, files: Files) -> Contender:
    from soma.smpl import SMPLLayer

    def make() -> Any:
        return SMPLLayer(files.folder, model_path=files.smpl, device=files.device, mode="warp")

    layer, regressor = make(), files.regressor

    def pose(model: Any, body_pose: Tensor, global_orient: Tensor, transl: Tensor) -> Tensor:
        moved = (
            transl + model._cached_bind_transforms_world[:, 0, :3, 3]
        )  # of the root joint, not of the body
        return model.pose(torch.cat((global_orient, body_pose), -1), global_translation=moved)["vertices"]

    def vertices(betas: Tensor, **given: Tensor) -> Tensor:
        layer.prepare_identity(betas)
        return pose(layer, **given)

    def shape(betas: Tensor) -> Callable[..., Tensor]:
        model = make()
        model.prepare_identity(betas)
        return partial(pose, model)

    return Contender(name, vertices, lambda **given: regressor @ vertices(**given), shape)


LOADERS: dict[str, Callable[[str, Files], Contender]] = {
    "agebody torch": lambda name, files: _agebody(name, files, "torch"),
    "agebody warp": lambda name, files: _agebody(name, files, "warp"),
    "smplx": _smplx,
    "body-models torch": lambda name, files: _body_models(name, files, "torch"),
    "body-models warp": lambda name, files: _body_models(name, files, "warp"),
    "smplfitter": _smplfitter,
    "soma warp": _soma,
}


def reason(error: BaseException) -> str:
    """Return in one line why a contender is absent."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def load(names: list[str], files: Files) -> tuple[list[Contender], dict[str, str]]:
    """Return the contenders that run, and the reason for each other one."""
    found, absent = [], {}
    for name in names:
        try:
            found.append(LOADERS[name](name, files))
        except Exception as error:
            absent[name] = reason(error)
    return found, absent
