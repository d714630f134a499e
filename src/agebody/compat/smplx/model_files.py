"""Find and read the body that smplx's arguments describe: a file, a folder, a `BodyAsset`, or arrays."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from agebody.assets.asset import AssetError, BodyAsset
from agebody.assets.container import RawFile, is_path, naming, read_path, to_array
from agebody.assets.io import add_infant, load_asset
from agebody.assets.official import read_body

OFFERED = "agebody.compat.smplx offers SMPL, SMPLH, SMPLX, MANO, their layers, create and build_layer"

ModelPath = str | os.PathLike[str] | BodyAsset


def resolve_type(model_path: ModelPath, model_type: str) -> ModelPath:
    """Return the path of a model of a type; files are recognised by their content, not by ``model_type``."""
    if isinstance(model_path, BodyAsset) or not read_path(model_path).is_dir():
        return model_path
    inside = read_path(model_path) / model_type
    return inside if inside.is_dir() else model_path


def read_asset(
    model_path: ModelPath, data_struct: Any, gender: str, kind: str = "smpl", ext: str | None = None
) -> BodyAsset:
    """Return the body of smplx's arguments: the entries of ``data_struct``, or a file, folder or asset."""
    if data_struct is not None:
        entries = {name: value for name, value in vars(data_struct).items() if not name.startswith("_")}
        arrays = {name: _plain(value) for name, value in entries.items()}
        with naming("data_struct"):
            asset = read_body(RawFile(Path(f"data_struct_{gender}"), "memory", arrays, b""))
        return asset.replace(metadata=dataclasses.replace(asset.metadata, name="data_struct", sources={}))
    if isinstance(model_path, BodyAsset):
        return model_path
    if not is_path(model_path):
        kind = type(model_path).__name__
        raise TypeError(f"model_path: expected a file, a folder or a BodyAsset, got {kind}")
    path = read_path(model_path)
    return load_asset(_file_of(path, gender, kind, ext) if path.is_dir() else path)


def _plain(value: Any) -> Any:
    """Return chumpy objects and tensors as arrays; arrays and sparse matrices unchanged."""
    return to_array(value) if hasattr(value, "__array__") else value


def _file_of(folder: Path, gender: str, kind: str, ext: str | None) -> Path:
    """Return the model of a gender in a folder; the newest version of those with official names."""
    name = f"{kind.upper()}_{gender.upper()}"
    first = ext or "npz" if kind == "smplx" else "pkl" if kind == "smpl" else ext  # smplx's SMPL ignores ext
    for suffix in (f".{first}", ".pkl", ".npz", ".safetensors"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    official = re.compile(rf"basicmodel_({gender}|{gender[:1]})_lbs_.*\.(pkl|npz)", re.IGNORECASE)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in files if kind == "smpl" and official.fullmatch(path.name)]
    if not found:
        letters = "neutral" if gender == "neutral" else gender[:1]
        inside = ", ".join(path.name for path in files[:8]) or "no files"
        other = (
            f", or the official name basicmodel_{letters}_lbs_10_207_0_v1.1.0.pkl" if kind == "smpl" else ""
        )
        raise AssetError(
            f"{folder}: expected {name}.pkl, .npz or .safetensors{other}; it holds {inside}; give the file "
            "itself, or put it there under such a name"
        )
    return found[-1]


def add_kid_template(asset: BodyAsset, kid_template_path: str | os.PathLike[str]) -> BodyAsset:
    """Return the body with an infant template at age offset 1, its own or that of a file."""
    if os.fspath(kid_template_path):
        asset = add_infant(asset, kid_template_path)
    if asset.age_offsets.tolist() != [1.0]:
        raise ValueError(
            f"age='kid': expected one age template, at offset 1, but {asset.metadata.name!r} has them at "
            f"{asset.age_offsets.tolist()}; give smpl_kid_template.npy or a SMIL model as kid_template_path, "
            "or use agebody.SMPLA, which takes any number of them"
        )
    return asset
