"""The architecture as a test: which module may import which, and what `import agebody` loads."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "agebody"
ORDER = [
    "files",
    "assets",
    "engine.rowwise",
    "rotations",
    "keypoints",
    "engine",
    "checks",
    "parameters",
    "body",
    "mesh",
    "measure",
    "age",
    "cameras",
    "losses",
    "metrics",
    "optim",
    "people",
    "fitting",
    "crowd",
    "draw",
    "annotations",
    "compat",
    "pipelines.evaluate",
    "pipelines.labels",
    "pipelines.release",
    "pipelines.bench",
    "pipelines.demo",
    "pipelines.cli",
    "__main__",
]
"""From left to right: a room, a file or a folder, imports only what stands before it. Inside a
folder imports go one way too, but in no order that is written down."""


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): p
        for p in SOURCE.rglob("*.py")
        if p.parent != SOURCE or p.name != "__init__.py"
    }


def room(name: str) -> str:
    return next((r for r in ORDER if name == r or name.startswith(f"{r}.")), name)


def place(name: str) -> int:
    return ORDER.index(room(name))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agebody"):
            base = (node.module or "").removeprefix("agebody").lstrip(".")
            known = modules()
            names = {".".join(filter(None, (base, alias.name))) for alias in node.names}
            found |= {n for n in names if n in known} or ({base} if base in known else set())
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("agebody.") for a in node.names if a.name.startswith("agebody.")}
    return found


def test_every_module_has_its_place():
    assert {room(name) for name in modules()} - {"pipelines"} == set(ORDER)


@pytest.mark.parametrize("name", sorted(modules().keys() - {"pipelines"}))
def test_imports_point_one_way(name):
    for other in imported(modules()[name]):
        same_room = room(name) == room(other)
        assert same_room or place(other) < place(name), f"{name} imports {other}, which stands to its right"


def test_rooms_have_no_circles():
    graphlib.TopologicalSorter({name: imported(path) - {name} for name, path in modules().items()}).prepare()


def test_the_check_sees_imports():
    assert {"engine.backend", "assets.asset", "keypoints"} <= imported(SOURCE / "body.py")


def test_import_loads_nothing_heavy():
    heavy = "warp trimesh typer rich embreex PIL anny roma onnx ray pyarrow cv2"
    code = f"import sys, agebody; print([name for name in '{heavy}'.split() if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
