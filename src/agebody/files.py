"""Write files and folders atomically: what exists is kept until its replacement is complete.

Everything is written under a temporary name in the folder of its place, and renamed when it is complete. A
process locks what it writes, so that the next one can remove the leftovers of one that was killed. In a store
such as S3, which has no names to change, a file appears when all of it has been sent.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import reprlib
import secrets
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from agebody.stores import AnyPath, is_stored, refuse_address

try:
    import fcntl
except ImportError:  # Windows, where leftovers stay
    fcntl = None

_OURS = f".agebody-{zlib.crc32(platform.node().encode()):08x}-"
"""The beginning of temporary names of this machine."""
_TEMPORARY = re.compile(r"\.agebody-[0-9a-f]{8}-[0-9a-f]{12}(\.[^.]*)?")
_FOREIGN_AGE = 3600.0
"""Seconds after which a temporary name of another machine, which may not see our locks, is a leftover."""
_MAX_NAME = 255
"""Longest name of a file [bytes]."""
_NUMBERS = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT}
"""Of errors of stores, which may have none."""
_EXCHANGE = 2
"""Linux's RENAME_EXCHANGE and macOS's RENAME_SWAP."""

_swept: set[Path] = set()
_made: list[Path] = []
"""Folders that `make_folder` created, the innermost of each call first."""


@contextmanager
def replacing(path: AnyPath, *, overwrite: bool = True, private: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` when the block succeeds and is deleted when it fails.

    It is in the folder of ``path``, with the same suffix; links are followed to their target. A file that is
    replaced keeps its permissions. What is written to a store is sent at once. Errors of the block that name
    no file, as those of a full disk, name this one.

    Args:
        path: the file.
        overwrite: replace an existing file.
        private: a new file can be read by its owner alone.

    Raises:
        IsADirectoryError: the path is a folder.
        FileNotFoundError: its folder does not exist.
        FileExistsError: the file exists, or another process has written it, and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    overwrite = read_flag("overwrite", overwrite)
    if is_stored(path):
        if not overwrite and path.exists():
            _refuse_existing(path)
        with tempfile.TemporaryDirectory() as folder, as_os_error(path):
            temporary = Path(folder) / path.name
            yield temporary
            path.fs.pipe_file(path.path, temporary.read_bytes())
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder; add a file name", str(path))
    _check_parent(target, path)
    if target.exists() and not overwrite:
        _refuse_existing(path)
    suffix = target.suffix if len(os.fsencode(target.suffix)) < 20 else ""
    with as_os_error(path), _temporary(target.parent, path, suffix=suffix) as temporary:
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        if private and not target.exists():
            mode = 0o600
        _set_mode(temporary, mode | 0o600)
        yield temporary
        _sync(temporary)
        _set_mode(temporary, mode)
        if overwrite:
            os.replace(temporary, target)
        else:
            _place_new(temporary, target, path)


@contextmanager
def replacing_folder(path: AnyPath, *, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path``, at once, when the block succeeds.

    It is deleted when the block fails.

    Args:
        path: the folder, which may exist.
        check: called with the existing folder, before the block and after it; raises an error unless it may
            be deleted with all that is in it.

    Raises:
        FileExistsError: the path exists and may not be replaced.
        FileNotFoundError: the parent folder does not exist.
        OSError: the folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target, check)
    _check_parent(target, path)
    with as_os_error(path), _temporary(target.parent, path, folder=True) as temporary:
        yield temporary
        _sync(temporary)
        if _check_replaceable(target, check):
            _exchange(temporary, target)
            try:
                check(temporary)
            except OSError:  # another process has put something into it in the meantime
                os.rename(temporary, target.with_name(f"{target.name[:100]}.old-{secrets.token_hex(6)}"))
        else:
            os.rename(temporary, target)  # which fails if another process has filled it in the meantime


@contextmanager
def replacing_files(
    folder: AnyPath, *, check: Callable[[], None] = lambda: None, stale: Callable[[], Iterable[Path]]
) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``folder``, all or none, when the block succeeds.

    Only if the process is killed just while they move, some are in place and others are not.

    Args:
        folder: an existing folder; what else is in it stays.
        check: called before files move; raises an error if they may not.
        stale: returns files of the folder that are deleted unless they are replaced, and their folders with
            them if nothing else is in those.

    Raises:
        OSError: a file cannot be written.
    """
    target = Path(os.path.realpath(folder))
    with as_os_error(folder), _temporary(target, folder, folder=True) as temporary:
        yield temporary
        _sync(temporary)
        with _locking(target):
            check()
            names = sorted(p.relative_to(temporary) for p in temporary.rglob("*") if not p.is_dir())
            left = [path for path in stale() if path.relative_to(folder) not in names]
            _move_files(temporary, target, names)
            for path in left:
                path.unlink(missing_ok=True)
            for parent in {path.parent for path in left} - {Path(folder)}:
                with suppress(OSError):  # something else is in it
                    parent.rmdir()


@contextmanager
def replacing_shards(folder: AnyPath, pattern: str, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``folder`` in place of those of a pattern, all or none.

    Raises:
        FileExistsError: there are such files, and ``overwrite`` is false.
        OSError: a file cannot be written.
    """

    def existing() -> list[Path]:
        return sorted(Path(folder).glob(pattern))

    def check() -> None:
        if not read_flag("overwrite", overwrite) and (there := existing()):
            problem = "exists; pass overwrite=True to replace all shards of such names"
            raise FileExistsError(errno.EEXIST, problem, str(there[0]))

    check()
    with replacing_files(folder, check=check, stale=existing) as new:
        yield new


def make_folder(path: AnyPath) -> Path:
    """Create a folder where it is missing, and check that files can be written in it.

    Raises:
        OSError: it cannot be created, or nothing can be written in it.
    """
    if is_stored(path):
        return path  # a store has no folders, and says at the first file who may not write
    folder = Path(path)
    refuse_address(path)
    _made.extend(place for place in (folder, *folder.parents) if not os.path.lexists(place))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file of that name exists" if isinstance(error, FileExistsError) else error.strerror
        raise OSError(error.errno, f"cannot write in this folder ({reason})", str(path)) from None
    remove_leftovers(folder)
    with as_os_error(folder), _temporary(folder, folder):
        return folder


@contextmanager
def leaving_no_folders() -> Iterator[None]:
    """Remove the folders that `make_folder` creates in the block if it fails, where nothing is in them."""
    before = len(_made)
    try:
        yield
    except BaseException:
        for folder in _made[before:]:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of processes that were killed while they were writing."""
    _swept.add(folder)
    try:
        found = [entry for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for entry in found:
        with suppress(OSError):  # among them the lock of a process that still writes
            age = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if not entry.name.startswith(_OURS) and age < _FOREIGN_AGE:
                continue
            descriptor = _lock(Path(entry.path))
            if descriptor is not None:
                _remove(Path(entry.path))
                os.close(descriptor)


def read_flag(name: str, value: Any) -> bool:
    """Check that a value is True or False, or equals one of them as 0 and 1 do, and return it as a bool."""
    if getattr(value, "shape", ()) != () or value not in (True, False):
        raise TypeError(f"{name}: expected True or False, got {reprlib.repr(value)}")
    return bool(value)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_suffix(path: AnyPath, *known: str) -> str:
    """Return the suffix of a file to write in lower case, one of those known, or raise ValueError."""
    suffix = Path(path).suffix
    if suffix.lower() not in known:
        what = "one of the suffixes" if len(known) > 1 else "the suffix"
        raise ValueError(f"{path}: expected {what} {', '.join(known)}, got {suffix!r}")
    return suffix.lower()


def save_npz(arrays: Mapping[str, Any], path: AnyPath, *, overwrite: bool = False) -> None:
    """Write named arrays or tensors to a compressed ``.npz``, atomically.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is false.
        OSError: the file cannot be written.
    """
    check_suffix(path, ".npz")
    values = {
        name: value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        for name, value in arrays.items()
    }
    for name, value in values.items():
        if value.dtype == object:
            got = type(arrays[name]).__name__
            raise ValueError(f"{name}: expected an array of numbers or text, got {got}")
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **values)  # pyright: ignore[reportArgumentType]


def sha256(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file as hexadecimal digits, and its number of bytes."""
    digest = hashlib.sha256()
    with as_os_error(path, "read"), path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest(), stream.tell()


def flat_names(names: Iterable[str], suffix: str) -> dict[str, str]:
    """Return a file name without folders for each relative path: all different, none too long.

    ``a/b.jpg`` becomes ``a__b.jpg`` and the suffix. Where two would be one name, on any file system, or a
    name would be too long, a hash of the path is put before its own suffix.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names):
        flat = re.sub(r"[/\\]", "__", name)
        if (flat + suffix).casefold() in taken or len(os.fsencode(flat + suffix)) > _MAX_NAME:
            stem, ending = os.path.splitext(flat)
            short = os.fsencode(stem)[:120].decode("utf-8", "ignore")
            flat = f"{short}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{ending[:16]}"
        found[name] = flat + suffix
        taken.add(found[name].casefold())
    return found


@contextmanager
def _temporary(parent: Path, path: AnyPath, *, suffix: str = "", folder: bool = False) -> Iterator[Path]:
    """Create a file or folder with a temporary name, lock it, and delete it afterwards if it still exists."""
    if parent not in _swept:
        remove_leftovers(parent)
    while True:
        temporary = parent / f"{_OURS}{secrets.token_hex(6)}{suffix}"
        try:
            temporary.mkdir() if folder else temporary.touch(exist_ok=False)
        except OSError as error:
            where = "this folder" if parent == Path(path) else f"the folder {parent}"
            raise OSError(error.errno, f"cannot write in {where} ({error.strerror})", str(path)) from None
        descriptor = None
        try:
            taken = False  # by another process, for a leftover, before it was locked
            try:
                descriptor = _lock(temporary)
            except (BlockingIOError, FileNotFoundError):
                taken = True
            if not taken and os.path.lexists(temporary):
                yield temporary
                return
        finally:
            if descriptor is not None:
                os.close(descriptor)
            with suppress(OSError):
                _remove(temporary)


def _lock(path: Path) -> int | None:
    """Return the descriptor of a lock on a file or folder; None where the system has no locks.

    Raises:
        BlockingIOError: another process has it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


@contextmanager
def _locking(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that only one process at a time moves files into it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def as_os_error(path: AnyPath, done: str = "written") -> Iterator[None]:
    """Name ``path`` in errors that name no file, or a temporary one; what stores raise becomes OSError."""
    try:
        yield
    except Exception as error:
        foreign = type(error).__module__.partition(".")[0] not in ("agebody", "builtins", "pyarrow")
        if not isinstance(error, OSError) and not (is_stored(path) and foreign):
            raise
        name, number = getattr(error, "filename", None), getattr(error, "errno", None)
        if name is not None and _OURS not in str(name):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        if not reason.startswith("cannot be"):
            reason = f"cannot be {done} ({reason})"
        number = number or _NUMBERS.get(type(error), errno.EIO)
        raise OSError(number, reason, str(path)) from error


def _check_parent(target: Path, path: AnyPath) -> None:
    refuse_address(path)
    if not target.parent.is_dir():
        reason = f"the folder {target.parent} does not exist; create it first"
        raise FileNotFoundError(errno.ENOENT, reason, str(path))


def _check_replaceable(target: Path, check: Callable[[Path], None]) -> bool:
    """Return whether the folder exists; raise FileExistsError where it may not be replaced."""
    if not os.path.lexists(target):
        return False
    if not target.is_dir():
        raise FileExistsError(errno.EEXIST, "a file of that name exists", str(target))
    check(target)
    return True


def _refuse_existing(path: AnyPath) -> NoReturn:
    raise FileExistsError(errno.EEXIST, "the file exists; pass overwrite=True to replace it", str(path))


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with suppress(OSError):  # file systems without permissions
            path.chmod(mode)


def _sync(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk; a full one may fail only then."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if not file.is_dir():
            with file.open("rb+") as written:
                os.fsync(written.fileno())


def _place_new(temporary: Path, target: Path, path: AnyPath) -> None:
    """Rename a complete file to its name, unless that is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        _refuse_existing(path)
    except OSError:  # file systems without links
        if os.path.lexists(target):
            _refuse_existing(path)
        os.rename(temporary, target)


def _move_files(source: Path, target: Path, names: Iterable[Path]) -> None:
    """Move files into a folder, old ones in return; undo it if one cannot be moved."""
    done: list[tuple[Path, bool]] = []
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            replaced = os.path.lexists(target / name)
            if replaced:
                _exchange(source / name, target / name)
            else:
                os.rename(source / name, target / name)
            done.append((name, replaced))
    except BaseException:
        for name, replaced in reversed(done):
            if replaced:
                os.replace(source / name, target / name)
            else:
                (target / name).unlink()
        raise


def _exchange(one: Path, other: Path) -> None:
    """Exchange two files or two folders, in one step where the system can."""
    names = os.fsencode(one), os.fsencode(other)
    library = ctypes.CDLL(None) if os.name == "posix" else None
    call = getattr(library, "renamex_np" if sys.platform == "darwin" else "renameat2", None)
    if call is not None:
        here = -100  # AT_FDCWD
        arguments = names if sys.platform == "darwin" else (here, names[0], here, names[1])
        if call(*arguments, ctypes.c_uint(_EXCHANGE)) == 0:
            return
    aside = other.with_name(f"{other.name[:100]}.old-{secrets.token_hex(6)}")  # a name to be found by
    try:
        if other.is_dir():
            os.rename(other, aside)
        else:
            shutil.copy2(other, aside)
        os.replace(one, other)
        os.rename(aside, one)
    except BaseException:
        if not os.path.lexists(one):
            os.rename(other, one)
        if not os.path.lexists(other):
            os.rename(aside, other)
        _remove(aside)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
