"""Run the fast tests with the oldest and the newest versions that pyproject.toml allows: `make compat`.

The newest versions are installed for every Python found on this machine, the oldest for the oldest Python, since few old
releases have wheels for newer ones. Environments are kept in `build/compat`.
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
PYTHONS = [
    line.rsplit("::", 1)[1].strip() for line in PROJECT["classifiers"] if "Python ::" in line
]  # as the metadata promises
USERS = ("free", "metrics", "ray", "release", "render", "warp")
"""Extras whose lower bounds are promised to users; tools of the tests may be of any version."""


def lowest_versions() -> list[str]:
    """Return a pip constraint `name==version` per lower bound of the dependencies and of the users' extras."""
    extras = PROJECT["optional-dependencies"]
    requirements = PROJECT["dependencies"] + [line for extra in USERS for line in extras[extra]]
    bounds = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line) for line in requirements)
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


def check(python: str, oldest: bool) -> bool:
    """Install agebody for one Python, run the fast tests, and return whether they passed."""
    folder = ROOT / "build" / "compat" / f"{Path(python).name}-{'oldest' if oldest else 'newest'}"
    run = str(folder / "bin" / "python")
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(lowest_versions() if oldest else []) + "\n")
    for command in (
        [python, "-m", "venv", str(folder)],
        [run, "-m", "pip", "install", "--quiet", "-c", str(constraints), "-e", f"{ROOT}[dev]"],
        [run, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow"],
    ):
        if subprocess.run(command, cwd=ROOT).returncode:
            return False
    return True


def main() -> None:
    """Check every Python that is found, and print a line per environment."""
    found = [path for version in PYTHONS if (path := shutil.which(f"python{version}"))]
    if not found:
        sys.exit(f"no Python of {', '.join(PYTHONS)} is on the PATH")
    cases = [(found[0], True), *((python, False) for python in found)]
    results = [(python, oldest, check(python, oldest)) for python, oldest in cases]
    for python, oldest, passed in results:
        print(f"{Path(python).name:12} {'oldest' if oldest else 'newest'}  {'passed' if passed else 'FAILED'}")
    if not all(passed for *_, passed in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
