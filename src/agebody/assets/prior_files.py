"""Read and write pose priors: SMPLify's mixture, SMIL's Gaussian, and this library's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError, check_finite, check_shape
from agebody.assets.container import (
    UNSIGNED,
    PathLike,
    Signed,
    Unread,
    check_version,
    is_path,
    naming,
    read_path,
    read_raw,
    signed,
)
from agebody.files import replacing

FORMAT_VERSION = 2
HEADER_KEY = "agebody_prior"
"""The one entry of the safetensors ``__metadata__``: JSON text with everything that is not an array."""

LARGEST = 1e12
"""Largest number in a prior: its square is a number in float32 too."""

PREFIX = 3
"""Number of angles of the root, before those of the body, in a pose of the SMPL family."""


class Gaussian(NamedTuple):
    """A normal distribution of poses, with the energy ``|(pose - mean) @ factor|^2``."""

    mean: Float[np.ndarray, " D"]
    """Axis-angle vectors of the joints, one after the other [rad]."""
    factor: Float[np.ndarray, "D R"]
    """A factor of the precision matrix, which is ``factor @ factor.T``; SMIL's file calls it ``prec``."""
    joint_names: tuple[str, ...]
    """The D / 3 joints."""


class Mixture(NamedTuple):
    """A mixture of normal distributions of poses."""

    means: Float[np.ndarray, "K D"]
    """Axis-angle vectors of the joints, one after the other [rad]."""
    covariances: Float[np.ndarray, "K D D"]
    weights: Float[np.ndarray, " K"]
    joint_names: tuple[str, ...]
    """The D / 3 joints."""


def read_gaussian(path: PathLike) -> Gaussian:
    """Read ``smil_pose_prior.pkl`` (SMIL), its arrays as npz, or a file of `write_prior`.

    The attributes of SMIL's object are ``mean`` (69), ``prec`` (69, R) and ``prefix``, 3: the number of
    angles of the root, before those of the body. Nothing in a file is run, and neither the object's class nor
    ``chumpy`` is needed.

    Raises:
        AssetError: the file is missing, unreadable, damaged, hostile, or of another kind.
    """
    with naming(path):
        content, (mean, factor), names = _read(path, Gaussian)
        prefix = content.get("prefix", PREFIX)
        if not isinstance(prefix, (int, np.integer)) or prefix != PREFIX:
            raise AssetError(
                f"prefix: expected {PREFIX}, the angles of the root, got {prefix!r}; "
                "this is a prior of another kind of pose than SMPL's"
            )
        size = 3 * len(names)
        return Gaussian(_floats(content, mean, (size,)), _floats(content, factor, (size, None)), names)


def read_mixture(path: PathLike) -> Mixture:
    """Read ``gmm_08.pkl`` (SMPLify), its arrays as npz, or a file of `write_prior`.

    The entries of SMPLify's file are ``means`` (K, 69), ``covars`` (K, 69, 69) and ``weights`` (K). Nothing
    in a file is run.

    Raises:
        AssetError: see `read_gaussian`.
    """
    with naming(path):
        content, (means_name, covariances, weights), names = _read(path, Mixture)
        size = 3 * len(names)
        means = _floats(content, means_name, (None, size))
        count = len(means)
        spread = _floats(content, covariances, (count, size, size))
        return Mixture(means, spread, _floats(content, weights, (count,)), names)


def write_prior(prior: Gaussian | Mixture, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a prior as a safetensors file, which is written completely or not at all.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        OSError: the file cannot be written there.
    """
    header = {"format_version": FORMAT_VERSION, **UNSIGNED, "kind": _kind(type(prior))}
    header["joint_names"] = list(prior.joint_names)
    tensors = {name: np.ascontiguousarray(getattr(prior, name)) for name in prior._fields[:-1]}
    content = signed(save(tensors, {HEADER_KEY: json.dumps(header)}))
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)


_BODY = SMPL_JOINT_NAMES[1:]
_WHERE = {
    Gaussian: "smil_pose_prior.pkl comes with SMIL, from s.fhg.de/smil",
    Mixture: "gmm_08.pkl comes with SMPLify, from smplify.is.tue.mpg.de",
}
_FOREIGN = {Gaussian: ("mean", "prec"), Mixture: ("means", "covars", "weights")}
"""Entries of the published files, in the order of the fields."""
_TITLES = {
    Gaussian: "SMIL's pose prior, smil_pose_prior.pkl",
    Mixture: "SMPLify's pose prior, gmm_08.pkl",
}
_READERS = {Gaussian: "MahalanobisPrior", Mixture: "MaxMixturePrior"}


def _kind(cls: type[Gaussian] | type[Mixture]) -> str:
    return cls.__name__.lower()


def _read(
    path: PathLike, cls: type[Gaussian] | type[Mixture]
) -> tuple[Mapping[Any, Any], tuple[str, ...], tuple[str, ...]]:
    """Return the entries of a prior's file, the names of those that hold its fields, and the joints."""
    where = "; ".join(_WHERE.values())
    if is_path(path) and not read_path(path).exists():
        raise AssetError(f"no such file; {where}; each needs a free registration")
    raw = read_raw(path)
    content = raw.content
    if raw.signed is not None:
        return content, cls._fields[:-1], _own_names(raw.signed, cls)
    if not isinstance(content, Mapping):
        raise AssetError(f"this holds a {type(content).__name__}, not a pose prior; {where}")
    if missing := [name for name in _FOREIGN[cls] if name not in content]:
        raise AssetError(_what_else(content, cls, missing))
    return content, _FOREIGN[cls], _BODY


def _what_else(content: Mapping[Any, Any], cls: type[Gaussian] | type[Mixture], missing: list[str]) -> str:
    """Say what a file holds that is not the wanted prior, and what to do."""
    if {"mean", "prec"} <= set(content):
        return "this is SMIL's pose prior, one Gaussian; open it with MahalanobisPrior.from_file"
    if {"means", "covars"} <= set(content):
        return "this is SMPLify's mixture of Gaussians; open it with MaxMixturePrior.from_file"
    if {"v_template", "shapedirs"} & set(content):
        return f"this is a body, not a pose prior; give {_READERS[cls]} {_TITLES[cls]}"
    shown = ", ".join(sorted(map(str, content))[:12]) or "nothing"
    return f"this is not {_TITLES[cls]}: {', '.join(missing)} missing; it holds {shown}"


def _floats(content: Mapping[Any, Any], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return an array of finite numbers, in float64."""
    if name not in content:
        raise AssetError(f"{name} is missing; get or save the file again")
    value = content[name]
    if isinstance(value, Unread):
        raise AssetError(f"{name} is {value.reason}; expected arrays of float32 or float64; save it again")
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        what = f"{value.dtype} numbers" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise AssetError(f"{name}: expected an array of floating-point numbers, got {what}")
    check_shape(name, value.shape, shape)
    check_finite(name, value, most=LARGEST)
    return value.astype(np.float64)


def _own_names(signed: Signed, cls: type[Gaussian] | type[Mixture]) -> tuple[str, ...]:
    """Return the joints of a file of `write_prior`, after checking its header and its checksum."""
    header = signed.text(HEADER_KEY)
    if not isinstance(header, dict):
        raise AssetError("a safetensors file of something else than a pose prior; get the prior's own file")
    version, kind, names = (header.get(key) for key in ("format_version", "kind", "joint_names"))
    check_version(version, FORMAT_VERSION)
    if version != 1:
        signed.check(header)
    if kind != _kind(cls):
        reader = {"gaussian": "MahalanobisPrior", "mixture": "MaxMixturePrior"}.get(str(kind))
        advice = f"open it with {reader}.from_file" if reader else "install a newer agebody"
        raise AssetError(f"this is a prior of kind {kind!r}, expected {_kind(cls)!r}; {advice}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AssetError("joint_names: expected a list of names; get or save the file again")
    return tuple(names)
