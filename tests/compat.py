"""Run the fast tests with the oldest and the newest versions that pyproject.toml allows: `make compat`.

The newest versions are installed for every Python that is found, the oldest for the oldest Python alone, as
few old releases have wheels for newer ones. Environments are kept in `build/compat`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [line.split()[-1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
USERS = [extra for extra in PROJECT["optional-dependencies"] if extra not in ("dev", "docs")]
"""Extras whose lower bounds are promised to users; tools of the tests may be of any version."""


def lowest_versions() -> list[str]:
    """Return pip's constraint for the lower bound of each dependency and of each extra for users."""
    extras = PROJECT["optional-dependencies"]
    requirements = PROJECT["dependencies"] + [line for extra in USERS for line in extras[extra]]
    bounds = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line) for line in requirements)
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


def works(python: str) -> bool:
    """Return whether a command starts; those of a version manager are there without their Python."""
    path = shutil.which(python)
    return path is not None and subprocess.run([path, "--version"], capture_output=True).returncode == 0


def check(python: str, versions: str) -> bool:
    """Install agebody for one Python, run the fast tests, and return whether they passed."""
    folder = ROOT / "build" / "compat" / f"{python}-{versions}"
    run = str(folder / "bin" / "python")
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(lowest_versions() if versions == "oldest" else []) + "\n")
    commands = (
        [python, "-m", "venv", str(folder)],
        [run, "-m", "pip", "install", "--quiet", "-c", str(constraints), "-e", f"{ROOT}[dev]"],
        [run, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow"],
    )
    return all(subprocess.run(command, cwd=ROOT).returncode == 0 for command in commands)


def main() -> None:
    """Check every Python that is found, and print a line per environment."""
    found = [f"python{version}" for version in PYTHONS if works(f"python{version}")]
    if not found:
        sys.exit(f"none of Python {', '.join(PYTHONS)} is on the PATH")
    passed = True
    for python, versions in [(found[0], "oldest"), *((python, "newest") for python in found)]:
        ok = check(python, versions)
        print(f"{python}, {versions} versions: {'passed' if ok else 'FAILED'}")
        passed &= ok
    sys.exit(not passed)


if __name__ == "__main__":
    main()
