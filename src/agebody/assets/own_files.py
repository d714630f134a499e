"""Files in this library's format: safetensors with a description in JSON and a checksum of the whole file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from agebody.assets.asset import AssetError
from agebody.files import replacing

NO_CHECKSUM = {"sha256": "0" * 64}
"""The entry of the description that `with_checksum` fills in; it comes before any file's checksum."""
_ENTRY = b'\\"sha256\\": \\"%s\\"'


class OwnFile(NamedTuple):
    """The header of a safetensors file with metadata, and all bytes of the file, for its checksum."""

    header: dict[str, Any]
    data: bytes

    def _check(self, texts: dict[str, Any]) -> None:
        """Raise an `AssetError` where the file does not give the checksum of its description."""
        digest = str(texts.get("sha256"))
        blank = self.data.replace(_ENTRY % digest.encode(), _ENTRY % (b"0" * 64), 1)
        if hashlib.sha256(blank).hexdigest() != digest:
            raise AssetError("damaged: its bytes do not give its checksum; get or save the file again")

    def description(self, key: str, newest: int, *, unchecked: int | None = None) -> dict[str, Any] | None:
        """Return the description after checking version and checksum; None for a file of another kind.

        The entry ``key`` of the metadata holds the description; versions up to ``newest`` are known, and one,
        ``unchecked``, has no checksum.
        """
        metadata = self.header["__metadata__"]
        if key not in metadata:
            return None
        try:
            texts = json.loads(metadata[key])
        except (TypeError, ValueError, RecursionError) as error:
            raise AssetError(f"its description is damaged ({error}); get or save the file again") from error
        if not isinstance(texts, dict):
            raise AssetError("its description: expected a JSON object; get or save the file again")
        version = texts.get("format_version")
        if type(version) is not int or version < 1:
            raise AssetError(
                f"format_version: expected 1 to {newest}, got {version!r}; get or save the file again"
            )
        if version > newest:
            raise AssetError(
                f"format version {version}; this agebody reads up to {newest}: install a newer one"
            )
        if version != unchecked or "sha256" in texts:
            self._check(texts)
        return texts


def read_names(name: str, value: Any) -> tuple[str, ...]:
    """Return a list of names in a description as a tuple; raise an `AssetError` for anything else."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise AssetError(
            f"{name}: expected a list of names, got {repr(value)[:80]}; get or save the file again"
        )
    return tuple(value)


def with_checksum(content: bytes) -> bytes:
    """Return a safetensors file with its checksum: SHA-256 of the file with `NO_CHECKSUM` in its header."""
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(_ENTRY % (b"0" * 64), _ENTRY % digest.encode(), 1)


def write_own_file(
    tensors: Mapping[str, np.ndarray],
    key: str,
    version: int,
    description: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
) -> None:
    """Write arrays and their description, completely or not at all."""
    header = {"format_version": version, **NO_CHECKSUM, **description}
    content = with_checksum(save(dict(tensors), {key: json.dumps(header)}))
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)
