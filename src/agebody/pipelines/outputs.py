"""Results of commands: which one wrote a folder, so that no other writes into it, and how many there are."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from agebody.files import make_folder
from agebody.stores import AnyPath, is_stored

_KINDS = {
    "agebody release": (r"manifest\.json",),
    "agebody fit": (r"report\.md",),
    "training shards": (r"\d{6}\.tar",),
    "agebody fit-shards": (r"report(-\d+-of-\d+)?\.json", r".*\.parquet"),
    "agebody shard": (r".*-\d{5}\.parquet",),
    "a training": (r"checkpoint\.pt",),
}
"""What writes a folder -> patterns of files that tell it; the first kind that has all."""


def make_output(folder: AnyPath, kind: str) -> Path:
    """Create the folder of a command's results with `make_folder`, unless it holds others.

    Raises:
        FileExistsError: it holds results of another kind.
        OSError: it cannot be created, or nothing can be written in it.
    """
    refuse_others(folder, kind)
    return make_folder(folder)


def refuse_others(folder: AnyPath, kind: str) -> None:
    """Refuse a folder that holds results of another kind, which would be replaced or mixed with new ones.

    A manifest is that of a release only if it says so.

    Raises:
        FileExistsError: it is such a folder.
    """
    if is_stored(folder) or not Path(folder).is_dir():
        return
    names = set(os.listdir(folder))
    with suppress(OSError):
        if b'"agebody-release-' not in (Path(folder) / "manifest.json").read_bytes():
            names.discard("manifest.json")

    def has(pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in names)

    found = next((name for name, patterns in _KINDS.items() if all(map(has, patterns))), kind)
    if found != kind and (found, kind) != ("agebody shard", "agebody fit-shards"):  # labels without a report
        raise FileExistsError(errno.EEXIST, f"holds results of {found}; give another folder", str(folder))


def amount(number: int, noun: str) -> str:
    """Return a number of things, such as "2 images", "1 image" or "1 person"."""
    one = {"people": "person", "bodies": "body"}.get(noun, noun[:-1])
    return f"{number} {one if number == 1 else noun}"
