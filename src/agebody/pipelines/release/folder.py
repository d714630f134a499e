"""Folders that appear whole or not at all, and replace nothing but one of their own kind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
EPOCH = 315532800
"""1980-01-01 UTC, the first moment that a zip archive knows: the time of every file of a release."""


@contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` if the block ends well, and vanishes if not.

    Only an empty folder, or one in which every file is listed in its manifest and unchanged, is replaced.

    Raises:
        FileExistsError: there is something already, and it may not be replaced.
        FileNotFoundError: the folder above does not exist.
        OSError: that cannot be written in.
    """
    target = Path(os.path.realpath(path))
    old = _replaceable(target, overwrite)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"the folder {target.parent} does not exist; create it first", str(path)
        )
    token = secrets.token_hex(6)
    temporary = target.with_name(f".{target.name}-{token}")
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*"), reverse=True):  # folders after what is in them
            os.utime(file, (EPOCH, EPOCH))
        os.utime(temporary, (EPOCH, EPOCH))
        if old is None:
            os.rename(temporary, target)
        else:
            _swap(temporary, target, target.with_name(f".{target.name}-{token}-old"), old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, str | int]]:
    """Size and hash of each file, by its path in the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


def _replaceable(target: Path, overwrite: bool) -> list[str] | None:
    """The files of the folder that may be deleted; None where there is no folder."""
    if not os.path.lexists(target):
        return None
    if not target.is_dir():
        raise FileExistsError(errno.EEXIST, "there is a file of that name", str(target))
    if not overwrite:
        raise FileExistsError(
            errno.EEXIST, "the folder exists; pass overwrite=True to replace a release", str(target)
        )
    try:
        listed = {name: str(entry["sha256"]) for name, entry in _listed(target / MANIFEST).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        listed = {}
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    found = []
    for file in target.rglob("*"):
        name = file.relative_to(target).as_posix()
        if file.is_symlink():
            own = False
        elif file.is_dir():
            own = name in folders
        else:
            own = (name == MANIFEST and bool(listed)) or (name in listed and sha256(file) == listed[name])
            found.append(name)
        if not own:
            raise FileExistsError(
                errno.EEXIST, f"not replaced, for {name} in it was not written by a release", str(target)
            )
    return found


def _listed(manifest: Path) -> dict[str, dict[str, str | int]]:
    return json.loads(manifest.read_text())["files"]


def _swap(new: Path, target: Path, aside: Path, old: list[str]) -> None:
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise
    for name in old:
        (aside / name).unlink()
    for folder in sorted((p for p in aside.rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    aside.rmdir()
