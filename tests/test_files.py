"""Files and folders are replaced whole or not at all, whatever fails, and whoever else writes."""

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agebody import files
from agebody.files import (
    flat_names,
    make_folder,
    remove_leftovers,
    replacing,
    replacing_files,
    replacing_folder,
    save_npz,
)
from agebody.pipelines.cli import app
from agebody.pipelines.outputs import refuse_others

OLD, NEW = b"old", b"new" * 5000


def write_file(place, overwrite=True):
    with replacing(place / "a.bin", overwrite=overwrite) as temporary:
        temporary.write_bytes(NEW)


def write_folder(place):
    with replacing_folder(place / "a", check=lambda folder: None) as temporary:
        (temporary / "in").mkdir()
        for name in ("x", "in/y"):
            (temporary / name).write_bytes(NEW)


def write_files(place):
    folder = make_folder(place / "a")
    with replacing_files(folder, stale=lambda: [folder / "in/z"]) as temporary:
        (temporary / "in").mkdir()
        for name in ("x", "in/y"):
            (temporary / name).write_bytes(NEW)


def content(place):
    """Return what a user finds: temporary names are hidden."""
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and ".agebody-" not in str(path.relative_to(place))
    }


WRITERS = {
    "file": (write_file, {"a.bin": OLD}, {"a.bin": NEW}),
    "new file": (lambda place: write_file(place, overwrite=False), {}, {"a.bin": NEW}),
    "folder": (write_folder, {"a/x": OLD, "a/in/z": OLD}, {"a/x": NEW, "a/in/y": NEW}),
    "new folder": (write_folder, {}, {"a/x": NEW, "a/in/y": NEW}),
    "files": (
        write_files,
        {"a/x": OLD, "a/in/z": OLD, "a/mine": OLD},
        {"a/x": NEW, "a/in/y": NEW, "a/mine": OLD},
    ),
    "new files": (write_files, {}, {"a/x": NEW, "a/in/y": NEW}),
}
CALLS = ("replace", "rename", "link", "fsync", "mkdir", "chmod", "open", "scandir", "sendfile", "write")


def prepare(place, old):
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, data in old.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def fail_at(monkeypatch, number, failure):
    """Let the call of this number fail, of all that change files; return the list of calls made."""
    made = []

    def wrap(name, call):
        def counted(*args, **options):
            made.append(name)
            if len(made) == number:
                failure()
            return call(*args, **options)

        return counted

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return made


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(params=["in one step", "in two"])
def exchange(request, monkeypatch):
    if request.param == "in two":
        monkeypatch.setattr(files.ctypes, "CDLL", lambda name: None)
    return request.param


@pytest.mark.parametrize("failure", [no_space, interrupt])
@pytest.mark.parametrize("kind", WRITERS)
def test_after_any_failing_call_the_old_or_the_new_file_is_whole(
    tmp_path, monkeypatch, exchange, kind, failure
):
    write, old, new = WRITERS[kind]
    place = tmp_path / "place"
    outcomes, unnamed = [], []
    for number in range(1, 100):
        prepare(place, old)
        with monkeypatch.context() as patch:
            made = fail_at(patch, number, failure)
            try:
                write(place)
                outcomes.append("written")
            except OSError as error:
                unnamed += [error] if ".agebody" in str(error) or not error.filename else []
                outcomes.append("failed")
            except KeyboardInterrupt:
                outcomes.append("failed")
        found = content(place)
        assert found == new or (outcomes[-1] == "failed" and found == old), (made, found)
        if len(made) < number:
            break
        for folder in (place, place / "a"):
            remove_leftovers(folder)
        assert not [path for path in place.rglob("*") if ".agebody-" in path.name], made
    assert not unnamed
    assert outcomes[-1] == "written"
    assert outcomes.count("failed") >= 2


@pytest.mark.parametrize("kind", WRITERS)
def test_whenever_the_process_is_killed_each_file_is_whole_and_leftovers_go(tmp_path, monkeypatch, kind):
    write, old, new = WRITERS[kind]
    place = tmp_path / "place"
    for number in range(1, 100):
        prepare(place, old)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: the child only writes
            child = os.fork()
        if child == 0:
            with monkeypatch.context() as patch:
                fail_at(patch, number, lambda: os._exit(9))
                write(place)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        found = content(place)
        if kind in ("files", "new files"):  # each file for itself
            assert all(found[name] in (OLD, NEW) for name in found)
            assert found.keys() >= old.keys() & new.keys()
        else:
            assert found in (old, new)
        if not killed:
            assert found == new
            break
        files._swept.clear()
        write(place)  # the next process that writes there
        assert content(place) == new
        assert not [path for path in place.rglob("*") if ".agebody-" in path.name]
    assert number > 4


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_and_is_an_error_of_the_file(tmp_path, kind):
    write, old, new = WRITERS[kind]
    place = tmp_path / "place"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (0, 1, 4095, len(NEW) - 1, len(NEW)):
        prepare(place, old)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            write(place)
            problem = None
        except OSError as error:
            problem = error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert content(place) == (new if limit == len(NEW) else old)
        assert (problem is None) == (limit == len(NEW))
        if problem is not None:
            assert str(problem.filename).startswith(str(place / "a"))
            assert "cannot be written (File too large)" in problem.strerror
            assert "agebody-" not in str(problem)


def refuse(path):
    raise FileExistsError(errno.EEXIST, "not this one", str(path))


def refuse_existing(path):
    if path.exists():
        refuse(path)


@pytest.mark.parametrize("kind", ["file", "folder", "files"])
def test_two_writers_of_one_new_file_or_folder_do_not_replace_each_other(tmp_path, kind):
    (tmp_path / "b").mkdir()

    def write():
        if kind == "file":
            return replacing(tmp_path / "a", overwrite=False)
        if kind == "folder":
            return replacing_folder(tmp_path / "a", check=refuse)
        return replacing_files(tmp_path / "b", check=lambda: refuse_existing(tmp_path / "b/x"), stale=list)

    def write_both():
        with write() as one:
            with write() as other:
                (other if kind == "file" else other / "x").write_bytes(NEW)
            (one if kind == "file" else one / "x").write_bytes(OLD)

    with pytest.raises(FileExistsError, match=r"not this one|overwrite=True"):
        write_both()
    assert content(tmp_path) == {{"file": "a", "folder": "a/x", "files": "b/x"}[kind]: NEW}


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    def write(number):
        files._swept.clear()  # so that all of them look for leftovers among the files of the others
        with replacing(tmp_path / "a") as temporary:
            temporary.write_bytes(bytes([number]) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (found,) = tmp_path.iterdir()
    assert len(set(found.read_bytes())) == 1
    assert found.stat().st_size == 1000


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "a"
    path.write_bytes(OLD)
    path.chmod(mode)
    with replacing(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == mode | 0o600
        temporary.write_bytes(NEW)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    with replacing(tmp_path / "key", private=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_only_leftovers_are_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "in").mkdir(parents=True)
    names = [".agebody", ".agebody-1", ".hidden-0123456789ab.npz", "agebody-0123456789ab"]
    for name in names:
        (tmp_path / name).write_bytes(OLD)
    (tmp_path / f"{files._OURS}0123456789ab").symlink_to(elsewhere)
    (tmp_path / f"{files._OURS}0123456789ac").mkdir()
    (tmp_path / f"{files._OURS}0123456789ac/x").write_bytes(OLD)
    other = tmp_path / ".agebody-00000000-0123456789ab.npz"  # of another machine: perhaps at work
    other.write_bytes(OLD)
    with replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(NEW)
        remove_leftovers(tmp_path)
        assert temporary.exists()
        assert other.exists()
    os.utime(other, (0, 0))
    remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names, "elsewhere", "a", f"{files._OURS}0123456789ab"}
    assert (elsewhere / "in").is_dir()


@pytest.mark.parametrize("name", ["n" * 251 + ".npz", "ä" * 125 + ".npz", "a." + "b" * 240, ".npz"])
def test_every_legal_name_can_be_written(tmp_path, name):
    with replacing(tmp_path / name) as temporary:
        temporary.write_bytes(NEW)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="File name too long"), replacing(tmp_path / ("n" * 256)):
        pass
    if name.endswith("n.npz"):
        save_npz({"a": np.zeros(2)}, tmp_path / name, overwrite=True)
        assert np.load(tmp_path / name)["a"].tolist() == [0, 0]


def test_flat_names_are_different_and_legal(tmp_path):
    names = ["a/b.jpg", "a__b.jpg", "A/B.jpg", "a\\b.jpg", "c.jpg", "d" * 250 + ".j", "ö" * 124 + "/é" * 50]
    found = flat_names(names, ".png")
    assert list(found) == sorted(names)
    assert found["c.jpg"] == "c.jpg.png"
    assert found["A/B.jpg"] == "A__B.jpg.png"
    for name in found.values():
        (tmp_path / name.casefold()).write_bytes(OLD)
    assert len(list(tmp_path.iterdir())) == len(names)
    assert flat_names(reversed(names), ".png") == found


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT"])
def test_terminated_commands_clean_up(tmp_path, name):
    script = f"""
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # whatever ran the tests may have had them ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from agebody.pipelines.cli import app, main
from agebody.files import replacing

@app.command()
def wait():
    with replacing(Path({str(tmp_path)!r}) / "a") as temporary:
        temporary.write_bytes(b"half")
        print("ready", flush=True)
        time.sleep(60)

sys.argv = ["agebody", "wait"]
main()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(getattr(signal, f"SIG{name}"))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + getattr(signal, f"SIG{name}")
    assert list(tmp_path.iterdir()) == []
    assert b"Traceback" not in error


def test_folders_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(OSError, match="a file of that name exists"):
        make_folder(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write in this folder"):
        make_folder(tmp_path / "file/in")
    with (
        pytest.raises(FileExistsError, match="a file of that name exists"),
        replacing_folder(tmp_path / "file", check=lambda folder: None),
    ):
        pass
    for write in (lambda path: replacing(path), lambda path: replacing_folder(path, check=lambda f: None)):
        with (
            pytest.raises(FileNotFoundError, match="does not exist; create it first"),
            write(tmp_path / "no/a"),
        ):
            pass
    assert make_folder(tmp_path / "new/one") == Path(tmp_path / "new/one")
    assert list((tmp_path / "new/one").iterdir()) == []


@pytest.mark.parametrize("write", [make_folder, lambda path: save_npz({"a": OLD}, path / "a.npz")])
def test_addresses_of_stores_are_refused(tmp_path, monkeypatch, write):
    """``s3://bucket/name`` is no local folder ``s3:``, unless there is one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="expected a path of this machine") as error:
        write(Path("s3://bucket/name"))
    assert error.value.errno == errno.EINVAL
    assert list(tmp_path.iterdir()) == []
    Path("s3:").mkdir()
    make_folder(Path("s3://bucket/name"))


MADE = {
    "agebody release": {"manifest.json": '{"format": "agebody-release-1"}'},
    "agebody fit": {"labels.npz": "", "report.json": "", "report.md": ""},
    "training shards": {"000000.tar": "", "labels.npz": ""},
    "agebody fit-shards": {"a-00000.parquet": "", "report-3-of-64.json": ""},
    "agebody shard": {"a-00000.parquet": ""},
    "a training": {"checkpoint.pt": "", "log.jsonl": ""},
}
COMMANDS = {
    "agebody fit": ("fit", "people.json", "--overwrite"),
    "agebody fit-shards": ("fit-shards", "people", "--overwrite", "--body", "mannequin"),
    "agebody shard": ("shard", "people.json", "--overwrite"),
    "training shards": ("synthesize", "--overwrite", "--body", "mannequin"),
    "agebody demo": ("demo", "--body", "mannequin"),
}


ALIKE = {("agebody shard", "agebody fit-shards")}
"""Labels that were moved without their report look like people."""


@pytest.mark.parametrize(
    ("kind", "command"), [(a, b) for a in MADE for b in COMMANDS if a != b and (a, b) not in ALIKE]
)
def test_commands_refuse_folders_of_other_commands(tmp_path, kind, command):
    for name, text in MADE[kind].items():
        (tmp_path / name).write_text(text)
    result = CliRunner().invoke(app, [*COMMANDS[command], "-o", str(tmp_path)])
    assert result.stderr == f"error: {tmp_path}: holds results of {kind}; give another folder\n"
    assert {path.name for path in tmp_path.iterdir()} == set(MADE[kind])


def test_a_manifest_of_something_else_is_no_release(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "app"}')
    refuse_others(tmp_path, "agebody fit")
