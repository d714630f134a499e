"""Damaged and hostile files, given to every reader in child processes: a part of benchmarks/fuzz.py."""

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

import pytest

import agebody

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
fuzz = importlib.import_module("fuzz")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads /proc")


@pytest.mark.usefixtures("unchecked")
def test_every_reader_refuses_damage_in_one_line():
    failures, given = fuzz.fuzz(150, seed=3)
    assert failures == []
    assert len(given) > 30


def readers():
    """Code and name of the public functions that read a file."""
    walked = pkgutil.walk_packages(agebody.__path__, "agebody.")
    packages = [each.name for each in walked if each.ispkg]
    for package in ("agebody", *packages):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            found = {name: member}
            if inspect.isclass(member):
                own = {k: inspect.getattr_static(member, k) for k in dir(member)}
                found = {f"{name}.{k}": getattr(member, k) for k, v in own.items() if type(v) is classmethod}
            for path, function in found.items():
                if path.split(".")[-1].startswith(("read_", "load", "inspect_", "from_file")):
                    code = inspect.unwrap(getattr(function, "__func__", function)).__code__
                    given = inspect.signature(function).parameters
                    if next(iter(given), "") in ("path", "shards", "file"):
                        yield code, f"{package}.{path}"


@pytest.mark.usefixtures("unchecked")
def test_every_public_reader_has_a_sample(tmp_path):
    called = set()
    samples = fuzz.make_samples(tmp_path)
    sys.setprofile(lambda frame, event, _: called.add(frame.f_code) if event == "call" else None)
    try:
        for i, sample in enumerate(samples):
            path = tmp_path / f"{i}{sample.suffix}"
            path.write_bytes(sample.content)
            sample.read(path)
    finally:
        sys.setprofile(None)
    names = dict(readers())
    assert len(names) > 12
    assert [name for code, name in names.items() if code not in called] == []


def careless(path):
    import pickle

    return pickle.loads(path.read_bytes())


def greedy(path):
    return bytearray(3 * 2**30)


def slow(path):
    while True:
        pass


def wordy(path):
    raise fuzz.AssetError(f"{path}: two\nlines")


def nameless(path):
    raise fuzz.AssetError("damaged")


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (careless, "ran what the file holds"),
        (greedy, "MemoryError"),
        (slow, "killed by signal 14"),
        (wordy, "several lines"),
        (nameless, "without the file's name"),
        (lambda path: {}["a"], "KeyError"),
        (lambda path: None, ""),
    ],
)
def test_the_check_can_fail(tmp_path, monkeypatch, read, what):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    path = tmp_path / "file"
    path.write_bytes(fuzz.pickle.dumps(fuzz.Run(tmp_path)))
    sound, tried = (fuzz.Sample("a file", b"", reader) for reader in (lambda path: None, read))
    before, found, after = fuzz.outcomes([(sound, path), (tried, path), (sound, path)])
    assert what in found
    assert bool(found) is bool(what)
    assert before == after == ""
