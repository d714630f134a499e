"""Collect the packages of tests and benchmarks except torch, for a machine without a package index.

The versions are those of this environment; the wheels are those of the other machine's Python on Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TESTS = ("pytest", "hypothesis", "beartype", "packaging", "rtree")  # trimesh's searches need rtree
PEERS = ("smplx", "body-models", "smplfitter", "anny")
ROOTS = ("agebody", "warp-lang", *TESTS, *PEERS)
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")


def needed(skipped: set[str]) -> dict[str, str]:
    """Return the version of every package that the roots need here, except torch and its dependencies."""
    skipped = skipped | {"torch", "agebody"} | _requirements("torch")
    found: dict[str, str] = {}
    waiting = [name for root in ROOTS for name in (root, *_requirements(root))]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found or name in skipped:
            continue
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:
            continue  # for another platform, or of an extra
        waiting += _requirements(name)
    return found


def listed(there: Path) -> set[str]:
    """Return the names in a list of packages, as ``pip freeze`` or ``pip list --format=freeze`` prints it."""
    lines = (line.split("#")[0].strip() for line in there.read_text().splitlines())
    return {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("-")}


def _requirements(name: str) -> set[str]:
    listed = (Requirement(line) for line in distribution(name).requires or ())
    return {canonicalize_name(r.name) for r in listed if r.marker is None or r.marker.evaluate({"extra": ""})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/gpu-packages"))
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python")
    parser.add_argument("--skip", nargs="*", default=[], help="packages that are there already")
    parser.add_argument("--there", type=Path, help="list of the other machine's packages: pip freeze's")
    options = parser.parse_args()
    skipped = set(options.skip) | (listed(options.there) if options.there else set())
    pinned = [f"{name}=={version}" for name, version in sorted(needed(skipped).items())]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", options.python, "--dest", folder]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        command += pinned
        subprocess.run(command, check=True)
        options.output.mkdir(parents=True, exist_ok=True)
        for wheel in sorted(Path(folder).glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(options.output)
            print(wheel.name)


if __name__ == "__main__":
    main()
