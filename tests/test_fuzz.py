"""Damaged and hostile files, given to every reader in child processes: a part of benchmarks/fuzz.py."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
fuzz = importlib.import_module("fuzz")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads /proc")


@pytest.mark.usefixtures("unchecked")
def test_every_reader_refuses_damage_in_one_line():
    failures, given = fuzz.fuzz(150, seed=3)
    assert failures == []
    assert len(given) > 30


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
