"""Describe the settings that labels depend on besides the keypoints, to recognise finished work."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import scipy
import torch
from torch import nn

from agebody.body import SMPLA, BodyModel
from agebody.fitting.frames import fit_keypoints
from agebody.keypoints import get_layout
from agebody.pipelines.labels.fitting import fit_annotations

_NOT_OPTIONS = "body people progress options keypoints camera layout weights start depth depth_sd motion_sd"
"""Arguments of `fit_annotations` and `fit_keypoints` that differ per person, or are not settings."""


def describe_settings(body: BodyModel, layout: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return how bodies are fitted as JSON values, which are equal for equal settings in any process.

    Arrays, layers and priors are represented by the SHA-256 of their contents, missing options by their
    defaults. No layout is that of each file.
    """
    known = {
        name: parameter.default
        for function in (fit_keypoints, fit_annotations)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _NOT_OPTIONS.split()
    }
    for name in options:
        if name not in known:
            raise TypeError(f"{name}: expected an option of fit_annotations or fit_keypoints")
    found: dict[str, Any] = {
        "agebody": version("agebody"),
        **describe_body(body),
        "layout": None if layout is None else get_layout(layout).name,
    }
    for name, default in known.items():
        value = options.get(name, default)
        plain = value is None or isinstance(value, (bool, int, float, str))
        found[name] = value if plain else f"sha256:{_sha256(name, value)}"
    return found


def describe_body(body: BodyModel) -> dict[str, Any]:
    """Return the properties of a layer that results depend on, as JSON values."""
    arrays = {entry.name: getattr(body.asset, entry.name) for entry in fields(body.asset)}
    del arrays["metadata"]
    scale = body.infant_corrective_scale if isinstance(body, SMPLA) else None
    return {
        "body": body.asset.metadata.name,
        "body_sha256": _sha256("body", (type(body).__qualname__, body.num_betas, scale, arrays)),
        "dtype": str(body.dtype).removeprefix("torch."),
        "device": body.device.type,
        "backend": body.backend,
    }


def describe_differences(stated: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return which settings of a file are not those wanted; empty if all are."""
    return "; ".join(
        f"{name}: {stated.get(name)}, not {wanted.get(name)}"
        for name in sorted(stated.keys() | wanted.keys())
        if stated.get(name) != wanted.get(name)
    )


def _sha256(name: str, value: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest.update, name, value)
    return digest.hexdigest()


def _feed(update: Any, name: str, value: Any) -> None:
    """Feed a value to the hash, its type first, so that different values give different bytes."""
    update(f"<{type(value).__qualname__}>".encode())
    if value is None or isinstance(value, (bool, int, float, str)):
        update(repr(value).encode())
    elif isinstance(value, np.ndarray):
        update(f"{value.dtype.str}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, torch.Tensor):
        _feed(update, name, value.numpy(force=True))
    elif scipy.sparse.issparse(value):
        _feed(update, name, tuple(scipy.sparse.find(value)) + tuple(value.shape))
    elif isinstance(value, nn.Module):
        _feed(update, name, dict(sorted([*value.named_buffers(), *value.named_parameters()])))
        plain = (bool, int, float, str, tuple)
        kept = {key: part for key, part in vars(value).items() if key[0] != "_" and isinstance(part, plain)}
        _feed(update, name, {key: part for key, part in kept.items() if key != "training"})
    elif isinstance(value, Mapping):
        for key in sorted(value):
            _feed(update, key, key)
            _feed(update, key, value[key])
    elif is_dataclass(value):
        for entry in fields(value):
            _feed(update, f"{name}.{entry.name}", getattr(value, entry.name))
    elif isinstance(value, Sequence):
        for part in value:
            _feed(update, name, part)
    else:
        raise TypeError(f"{name}: expected numbers, names, arrays or layers, got {type(value).__name__}")
    update(b"</>")
