"""Pose priors as files: SMPLify's mixture, SMIL's Gaussian, and those that this library wrote."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError
from agebody.assets.container import PathLike, is_safetensors, naming, read_raw
from agebody.files import replacing

FORMAT_VERSION = 1
HEADER_KEY = "agebody_prior"
"""The one entry of the safetensors ``__metadata__``: JSON text with everything that is not an array."""

PREFIX = 3
"""Angles of the root, which stand before those of the body in a pose of the SMPL family."""


class Gaussian(NamedTuple):
    """A normal distribution of poses, by its whitening: E = |(pose - mean) factor|^2."""

    mean: Float[np.ndarray, " D"]
    """Axis-angle vectors of the joints, one after the other [rad]."""
    factor: Float[np.ndarray, "D R"]
    """A factor of the precision, ``factor @ factor.T``; SMIL's file calls it ``prec``."""
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

    The attributes of SMIL's object are ``mean`` (69), ``prec`` (69, R) and ``prefix``, 3: the angles before
    those of the body. Nothing in a file is ever run, and neither the object's class nor ``chumpy`` is needed.

    Raises:
        AssetError: the file is missing, unreadable, damaged, hostile, or of another kind; the message names
            it, what it is, and what to do.
    """
    with naming(path):
        if is_safetensors(path):
            tensors, names = _read_own(path, Gaussian)
            size = 3 * len(names)
            factor = _floats(tensors, "factor", (size, None))
            return Gaussian(_floats(tensors, "mean", (size,)), factor, names)
        content = _read_foreign(path)
        _expect_kind(content, {"mean", "prec"}, "SMIL's pose prior, smil_pose_prior.pkl", "MahalanobisPrior")
        prefix = content.get("prefix", PREFIX)
        if not isinstance(prefix, (int, np.integer)) or prefix != PREFIX:
            raise AssetError(
                f"prefix: expected {PREFIX}, the angles of the root, got {prefix!r}; "
                "this is a prior of another kind of pose than SMPL's"
            )
        size = 3 * len(_BODY)
        mean = _floats(content, "mean", (size,))
        return Gaussian(mean, _floats(content, "prec", (size, None)), _BODY)


def read_mixture(path: PathLike) -> Mixture:
    """Read ``gmm_08.pkl`` (SMPLify), its arrays as npz, or a file of `write_prior`.

    The entries of SMPLify's file are ``means`` (K, 69), ``covars`` (K, 69, 69) and ``weights`` (K). Nothing
    in a file is ever run.

    Raises:
        AssetError: the file is missing, unreadable, damaged, hostile, or of another kind; the message names
            it, what it is, and what to do.
    """
    with naming(path):
        if is_safetensors(path):
            tensors, names = _read_own(path, Mixture)
            size = 3 * len(names)
            means = _floats(tensors, "means", (None, size))
            covariances = _floats(tensors, "covariances", (len(means), size, size))
            return Mixture(means, covariances, _floats(tensors, "weights", (len(means),)), names)
        content = _read_foreign(path)
        _expect_kind(
            content, {"means", "covars", "weights"}, "SMPLify's pose prior, gmm_08.pkl", "MaxMixturePrior"
        )
        size = 3 * len(_BODY)
        means = _floats(content, "means", (None, size))
        covariances = _floats(content, "covars", (len(means), size, size))
        return Mixture(means, covariances, _floats(content, "weights", (len(means),)), _BODY)


def write_prior(prior: Gaussian | Mixture, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a prior as a safetensors file, which appears whole or not at all.

    Raises:
        FileExistsError: the file is there and `overwrite` is False.
        FileNotFoundError, IsADirectoryError, PermissionError, OSError: the file cannot be written there.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "kind": _kind(type(prior)),
        "joint_names": list(prior.joint_names),
    }
    tensors = {
        name: np.ascontiguousarray(getattr(prior, name)) for name in prior._fields if name != "joint_names"
    }
    content = save(tensors, {HEADER_KEY: json.dumps(header)})
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)


_BODY = SMPL_JOINT_NAMES[1:]
_WHERE = {
    "Gaussian": "smil_pose_prior.pkl comes with SMIL, from s.fhg.de/smil",
    "Mixture": "gmm_08.pkl comes with SMPLify, from smplify.is.tue.mpg.de",
}


def _kind(cls: type[Gaussian] | type[Mixture]) -> str:
    return cls.__name__.lower()


def _read_foreign(path: PathLike) -> dict[Any, Any]:
    if not os.path.exists(path):
        raise AssetError(f"no such file; {'; '.join(_WHERE.values())}; each needs a free registration")
    raw = read_raw(path)
    if not isinstance(raw.content, dict):
        raise AssetError(
            f"this holds a {type(raw.content).__name__}, not a pose prior; {'; '.join(_WHERE.values())}"
        )
    return raw.content


def _expect_kind(content: dict[Any, Any], wanted: set[str], what: str, reader: str) -> None:
    """That the file holds what is wanted; else what it is."""
    missing = sorted(wanted - content.keys())
    if not missing:
        return
    if {"mean", "prec"} <= content.keys():
        raise AssetError("this is SMIL's pose prior, one Gaussian; open it with MahalanobisPrior.from_file")
    if {"means", "covars"} <= content.keys():
        raise AssetError("this is SMPLify's mixture of Gaussians; open it with MaxMixturePrior.from_file")
    if {"v_template", "shapedirs"} & content.keys():
        raise AssetError(f"this is a body, not a pose prior; give {reader} {what}")
    shown = ", ".join(sorted(map(str, content))[:12]) or "nothing"
    raise AssetError(f"this is not {what}: {', '.join(missing)} missing; it holds {shown}")


def _floats(content: dict[Any, Any], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of finite numbers, in float64."""
    if name not in content:
        raise AssetError(f"{name} is missing; get or save the file again")
    value = content[name]
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        what = f"{value.dtype} numbers" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise AssetError(f"{name}: expected an array of floating point numbers, got {what}")
    if value.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, value.shape, strict=True)
    ):
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise AssetError(f"{name}: expected shape ({expected}), got {value.shape}")
    if not np.isfinite(value).all():
        raise AssetError(f"{name}: {np.count_nonzero(~np.isfinite(value))} entries are NaN or infinite")
    return value.astype(np.float64)


def _read_own(
    path: PathLike, cls: type[Gaussian] | type[Mixture]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata.get(HEADER_KEY, "null"))
    except (TypeError, AttributeError) as error:  # as NumPy knows no 16- and 8-bit floats of the format
        raise AssetError(f"expected arrays of float32 or float64 ({error}); save it anew") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise AssetError(f"damaged or truncated ({error}); get or save the file again") from error
    if not isinstance(header, dict):
        raise AssetError("a safetensors file of something else than a pose prior; get the prior's own file")
    version, kind, names = (header.get(key) for key in ("format_version", "kind", "joint_names"))
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise AssetError(
            f"format version {version}; this agebody reads up to {FORMAT_VERSION}: install a newer one"
        )
    if kind != _kind(cls):
        reader = {"gaussian": "MahalanobisPrior", "mixture": "MaxMixturePrior"}.get(str(kind))
        advice = f"open it with {reader}.from_file" if reader else "install a newer agebody"
        raise AssetError(f"this is a prior of kind {kind!r}, expected {_kind(cls)!r}; {advice}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AssetError("joint_names: expected a list of names; get or save the file again")
    return tensors, tuple(names)
