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

UNSIGNED = {"sha256": "0" * 64}
"""The entry of the description that `signed` fills in; it comes before any file's checksum."""
_ENTRY = b'\\"sha256\\": \\"%s\\"'


class Signed(NamedTuple):
    """The header of a safetensors file with metadata, and all bytes of the file, for its checksum."""

    header: dict[str, Any]
    data: bytes

    def text(self, key: str) -> Any:
        """Return the JSON value in an entry of the metadata; None where there is no such entry."""
        metadata = self.header["__metadata__"]
        try:
            return json.loads(metadata[key]) if key in metadata else None
        except (TypeError, ValueError, RecursionError) as error:
            raise AssetError(f"its description is damaged ({error}); get or save the file again") from error

    def check(self, texts: dict[str, Any]) -> None:
        """Raise an `AssetError` where the file does not give the checksum of its description."""
        digest = str(texts.get("sha256"))
        unsigned = self.data.replace(_ENTRY % digest.encode(), _ENTRY % (b"0" * 64), 1)
        if hashlib.sha256(unsigned).hexdigest() != digest:
            raise AssetError("damaged: its bytes do not give its checksum; get or save the file again")

    def description(self, key: str, newest: int, *, unsigned: int | None = None) -> dict[str, Any] | None:
        """Return the description after checking version and checksum; None for a file of another kind.

        Args:
            key: entry of the metadata that holds the description.
            newest: the newest known version.
            unsigned: the version without a checksum, if there is one.
        """
        texts = self.text(key)
        if not isinstance(texts, dict):
            return None
        check_version(texts.get("format_version"), newest)
        if texts.get("format_version") != unsigned:
            self.check(texts)
        return texts


def check_version(version: Any, newest: int) -> None:
    """Raise an `AssetError` for a version of a file format that is newer than the newest known one."""
    if isinstance(version, int) and version > newest:
        raise AssetError(f"format version {version}; this agebody reads up to {newest}: install a newer one")


def signed(content: bytes) -> bytes:
    """Return a safetensors file with its checksum: SHA-256 of the file with `UNSIGNED` in its header."""
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(_ENTRY % (b"0" * 64), _ENTRY % digest.encode(), 1)


def write_signed(
    tensors: Mapping[str, np.ndarray],
    key: str,
    version: int,
    description: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
) -> None:
    """Write arrays and their description, completely or not at all.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written there.
    """
    header = {"format_version": version, **UNSIGNED, **description}
    content = signed(save(dict(tensors), {key: json.dumps(header)}))
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)
