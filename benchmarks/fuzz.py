"""Give damaged and hostile files to every reader: each must succeed, or fail in one line that names the file.

    python benchmarks/fuzz.py --count 3000 --seed 0

Files are read in child processes, with 2 GB of memory and 10 s each. A failure is: an error of another type
than the library's, a message of several lines or without the file's name, a killed process, or a file that
appears because code of the damaged file was run.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fuzz_samples import CANARY, Run, Sample, make_samples, npy, npz, saved

from agebody.age.classes import AgeError
from agebody.annotations import AnnotationError
from agebody.assets.asset import AssetError

MEMORY = 2 * 2**30
SECONDS = 10
BATCH = 50
"""Files per child process."""
ERRORS = (AssetError, AnnotationError, AgeError, OSError)


class Failure(NamedTuple):
    """A file that was neither read nor refused correctly."""

    reader: str
    file: str
    what: str


def mutate(sample: Sample, rng: np.random.Generator, folder: Path) -> bytes:
    """Return the content with damage of a random kind."""
    content = bytearray(sample.content)
    ways: list[Callable[[bytearray, np.random.Generator], bytes]] = [flip, cut, header, repeat, swap]
    if content[:1] in (b"{", b"["):
        ways += [fields, fields, fields]
    if rng.random() < 0.1:
        return hostile(rng, folder)
    return ways[rng.integers(len(ways))](content, rng)


def flip(content: bytearray, rng: np.random.Generator) -> bytes:
    """Change some bytes."""
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(len(content))] = rng.integers(256)
    return bytes(content)


def cut(content: bytearray, rng: np.random.Generator) -> bytes:
    """Keep the beginning, or the end."""
    place = int(rng.integers(len(content)))
    return bytes(content[:place] if rng.random() < 0.8 else content[place:])


def header(content: bytearray, rng: np.random.Generator) -> bytes:
    """Change bytes at the ends, or digits to larger numbers, where formats keep their sizes."""
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 5)):
            place = int(rng.integers(min(200, len(content))))
            content[place if rng.random() < 0.5 else -1 - place] = rng.integers(256)
        return bytes(content)
    digits = [i for i, byte in enumerate(content[:4096]) if 48 <= byte < 58]
    if digits:
        place = digits[rng.integers(len(digits))]
        content[place : place + 1] = b"9" * int(rng.choice([1, 2, 5, 12, 30]))
    return bytes(content)


def repeat(content: bytearray, rng: np.random.Generator) -> bytes:
    """Write a piece again, at another place."""
    start, place = (int(rng.integers(len(content))) for _ in range(2))
    piece = content[start : start + int(rng.integers(1, 64))] * int(rng.choice([1, 2, 50]))
    return bytes(content[:place] + piece + content[place:])


def swap(content: bytearray, rng: np.random.Generator) -> bytes:
    """Exchange two pieces."""
    a, b = sorted(int(rng.integers(len(content))) for _ in range(2))
    size = int(rng.integers(1, 32))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    return bytes(content)


VALUES = [
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 2**63, 10**400, "", "x" * 300, "../a", "\x00",
    "[/x]", [], {}, [[]], [None], {"a": {}}, "1", [1, 2, 3], -0.5,
]  # fmt: skip


def fields(content: bytearray, rng: np.random.Generator) -> bytes:
    """Change a random entry of a JSON document, drop it, or nest it deeply."""
    document = json.loads(bytes(content))
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[rng.integers(len(keys))]
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    what = rng.random()
    if what < 0.1:
        text = json.dumps(document).replace(json.dumps(place[key]), "[" * 100_000, 1)
        return text.encode()
    if what < 0.25:
        del place[key]
    elif what < 0.35 and isinstance(place, dict):
        place[str(key) + "x"] = place.pop(key)
    else:
        place[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(document).encode()


def hostile(rng: np.random.Generator, folder: Path) -> bytes:
    """Return a file that runs a command in a careless reader, or expands to many times its size."""
    run = Run(folder)
    wide = torch.zeros(1).expand(2**15, 2**15)
    kinds: list[Callable[[], bytes]] = [
        lambda: pickle.dumps(run, int(rng.integers(6))),
        lambda: pickle.dumps({"v_template": run}),
        lambda: npz({"v_template": np.array(run, object)}),
        lambda: npy(np.array([run], object)),
        lambda: saved({"v_template": run}),
        lambda: saved({"v_template": wide, "f": wide}),
        lambda: pickle.dumps({i * (2**61 - 1): 0 for i in range(20_000)}),
        lambda: b"[" * 10**6,
        lambda: b'{"a":' * 10**5,
        lambda: b"\x80\x04" + b"]" * 10**5 + b".",
        lambda: b"%!PS\n(" + run.path.encode() + b") (w) file\n",
        lambda: squeezed(),
        lambda: bytes(rng.integers(0, 256, 500, dtype=np.uint8)),
        lambda: b"",
    ]
    return kinds[rng.integers(len(kinds))]()


def squeezed() -> bytes:
    """Return a small zip file of arrays that unpack to half a gigabyte."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("v_template", "joints", "ids", "mean"):
            with archive.open(f"{name}.npy", "w") as entry:
                entry.write(npy(np.zeros(0)).replace(b"(0,), }" + b" " * 7, b"(16777216,), }"))
                for _ in range(128):
                    entry.write(bytes(2**20))
    return stream.getvalue()


def outcomes(jobs: Sequence[tuple[Sample, Path]]) -> list[str]:
    """Read files in a child process, and in a new one if it dies; return the failures."""
    found: list[str] = []
    while len(found) < len(jobs):
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            report(jobs[len(found) :], send)
        os.close(send)
        with os.fdopen(receive) as stream:
            found += [json.loads(line) for line in stream]
        _, status = os.waitpid(child, 0)
        if len(found) < len(jobs):
            found.append(f"killed by signal {os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}")
    return found


def report(jobs: Sequence[tuple[Sample, Path]], send: int) -> None:
    """Read files in this process and write one line for each; does not return."""
    try:
        limit_memory()
        sys.stderr = sys.stdout = io.StringIO()
        for sample, path in jobs:
            signal.alarm(SECONDS)
            what = judged(sample, path)
            signal.alarm(0)
            if (path.parent / CANARY).exists():
                os.rmdir(path.parent / CANARY)
                what = "it ran what the file holds"
            os.write(send, f"{json.dumps(what[-4000:])}\n".encode())
    finally:
        os._exit(0)


def limit_memory() -> None:
    """Allow this process 2 GB beyond what it has."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def judged(sample: Sample, path: Path) -> str:
    """Return "" for a file that is read or refused correctly, else the failure."""
    try:
        sample.read(path)
    except ERRORS as error:
        message = str(error)
        if "\n" in message:
            return f"a message of several lines: {message!r}"
        if path.name not in message:
            return f"a message without the file's name: {message!r}"
        return "" if len(message) < 2000 else f"a message of {len(message)} characters"
    except BaseException:  # what it is, is the finding
        return traceback.format_exc()
    return ""


def fuzz(count: int, seed: int, *, only: str = "") -> tuple[list[Failure], Counter[str]]:
    """Read ``count`` damaged files; return the failures, and the number of files per reader."""
    failures: list[Failure] = []
    given: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        samples = [s for s in make_samples(Path(name)) if only in s.name]
        work = Path(name, "work")
        work.mkdir()
        jobs = [(sample, work / f"whole-{i}{sample.suffix}") for i, sample in enumerate(samples)]
        for sample, path in jobs:
            path.write_bytes(sample.content)
        for number in range(count):
            sample = samples[number % len(samples)]
            given[sample.name] += 1
            jobs.append((sample, work / f"damaged-{number}{sample.suffix}"))
            jobs[-1][1].write_bytes(mutate(sample, np.random.default_rng((seed, number)), work))
        for start in range(0, len(jobs), BATCH):
            batch = jobs[start : start + BATCH]
            for (sample, path), what in zip(batch, outcomes(batch), strict=True):
                if what:
                    failures.append(Failure(sample.name, path.name, what))
    return failures, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a sample's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    failures, given = fuzz(options.count, options.seed, only=options.only)
    for failure in failures:
        print(f"--- {failure.reader}, {failure.file}\n{failure.what}")
    print(f"{sum(given.values())} files for {len(given)} readers in {time.perf_counter() - start:.0f} s")
    raise SystemExit(f"{len(failures)} failures" if failures else 0)


if __name__ == "__main__":
    main()
