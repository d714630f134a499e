"""Read and write pose priors: SMPLify's mixture, SMIL's Gaussian, and this library's own files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError, check_finite, check_shape
from agebody.assets.container import PathLike, Unread, is_path, naming, read_path, read_raw
from agebody.assets.own_files import OwnFile, read_names, write_own_file

FORMAT_VERSION = 2
HEADER_KEY = "agebody_prior"
"""The one entry of the safetensors ``__metadata__``: JSON text with everything that is not an array."""

LARGEST = 1e12
"""Largest number in a prior: its square is finite in float32."""

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


Prior = TypeVar("Prior", Gaussian, Mixture)


def read_prior(path: PathLike, cls: type[Prior]) -> Prior:
    """Read a file of `write_prior`, or a published prior; nothing in a file is run.

    A `Gaussian` is in ``smil_pose_prior.pkl`` (SMIL), or its arrays as npz. The attributes of its object are
    ``mean`` (69), ``prec`` (69, R) and ``prefix``, 3: the number of angles of the root, before those of the
    body. Neither the object's class nor ``chumpy`` is needed. A `Mixture` is in ``gmm_08.pkl`` (SMPLify), or
    its arrays as npz: ``means`` (K, 69), ``covars`` (K, 69, 69) and ``weights`` (K).
    """
    with naming(path):
        content, entries, names = _read(path, cls)
        prefix = content.get("prefix", PREFIX)
        if cls is Gaussian and (not isinstance(prefix, (int, np.integer)) or prefix != PREFIX):
            raise AssetError(
                f"prefix: expected {PREFIX}, the angles of the root, got {prefix!r}; "
                "this is a prior of another kind of pose than SMPL's"
            )
        size = 3 * len(names)
        gaussian, mixture = ((size,), (size, None)), ((None, size), (None, size, size), (None,))
        shapes = zip(entries, gaussian if cls is Gaussian else mixture, strict=True)
        arrays: list[Any] = [_floats(content, name, shape) for name, shape in shapes]
        return cls._make([*arrays, names])


def write_prior(prior: Gaussian | Mixture, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a prior as a safetensors file; errors as of `write_own_file`."""
    header = {"kind": _kind(type(prior)), "joint_names": list(prior.joint_names)}
    tensors = {name: np.ascontiguousarray(getattr(prior, name)) for name in prior._fields[:-1]}
    write_own_file(tensors, HEADER_KEY, FORMAT_VERSION, header, path, overwrite=overwrite)


_BODY = SMPL_JOINT_NAMES[1:]
_WHERE = {
    Gaussian: "smil_pose_prior.pkl comes with SMIL, from s.fhg.de/smil",
    Mixture: "gmm_08.pkl comes with SMPLify, from smplify.is.tue.mpg.de",
}
_FOREIGN = {Gaussian: ("mean", "prec"), Mixture: ("means", "covars", "weights")}
"""Entries of the published files, in the order of the fields."""
_TITLES = {Gaussian: "SMIL's pose prior, smil_pose_prior.pkl", Mixture: "SMPLify's pose prior, gmm_08.pkl"}
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
    if raw.own is not None:
        return content, cls._fields[:-1], _own_names(raw.own, cls)
    if not isinstance(content, Mapping):
        raise AssetError(f"this holds a {type(content).__name__}, not a pose prior; {where}")
    if missing := [name for name in _FOREIGN[cls] if name not in content]:
        raise AssetError(_what_else(content, cls, missing))
    return content, _FOREIGN[cls], _BODY


def _what_else(content: Mapping[Any, Any], cls: type[Gaussian] | type[Mixture], missing: list[str]) -> str:
    """Describe a file that is not the wanted prior, and what to do."""
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


def _own_names(own: OwnFile, cls: type[Gaussian] | type[Mixture]) -> tuple[str, ...]:
    """Return the joints of a file of `write_prior`, after checking its header and its checksum."""
    header = own.description(HEADER_KEY, FORMAT_VERSION, unchecked=1)
    if header is None:
        raise AssetError("a safetensors file of something else than a pose prior; get the prior's own file")
    kind = header.get("kind")
    if kind != _kind(cls):
        reader = {"gaussian": "MahalanobisPrior", "mixture": "MaxMixturePrior"}.get(str(kind))
        advice = f"open it with {reader}.from_file" if reader else "install a newer agebody"
        raise AssetError(f"this is a prior of kind {kind!r}, expected {_kind(cls)!r}; {advice}")
    return read_names("joint_names", header.get("joint_names"))
