"""The architecture as a test: which module may import which, and what `import agebody` loads."""

import ast
import functools
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "agebody"
ORDER = [
    "stores",
    "files",
    "assets",
    "engine.batched",
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
    "nets",
    "draw",
    "annotations",
    "detect",
    "compat",
    "pipelines.outputs",
    "pipelines.jobs",
    "pipelines.evaluate",
    "pipelines.labels",
    "pipelines.train",
    "pipelines.release",
    "pipelines.synthesis",
    "pipelines.bench",
    "pipelines.demo",
    "pipelines.cli",
    "__main__",
]
"""Modules and packages in the order of imports: each imports only from those before it. Imports within a
package have no cycles."""


@functools.cache
def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): p
        for p in SOURCE.rglob("*.py")
        if p.parent != SOURCE or p.name != "__init__.py"
    }


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def package_of(name: str) -> str:
    return next((r for r in ORDER if name == r or name.startswith(f"{r}.")), name)


def place(name: str) -> int:
    return ORDER.index(package_of(name))


@functools.cache
def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agebody"):
            base = (node.module or "").removeprefix("agebody").lstrip(".")
            known = modules()
            names = {".".join(filter(None, (base, alias.name))) for alias in node.names}
            found |= {n for n in names if n in known} or ({base} if base in known else set())
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("agebody.") for a in node.names if a.name.startswith("agebody.")}
    return found


def test_every_module_has_its_place():
    assert {package_of(name) for name in modules()} - {"pipelines"} == set(ORDER)


@pytest.mark.parametrize("name", sorted(modules().keys() - {"pipelines"}))
def test_imports_point_one_way(name):
    for other in imported(modules()[name]):
        same_package = package_of(name) == package_of(other)
        assert same_package or place(other) < place(name), f"{name} imports {other}, later in ORDER"


def test_imports_have_no_cycles():
    graphlib.TopologicalSorter({name: imported(path) - {name} for name, path in modules().items()}).prepare()


def test_the_check_sees_imports():
    assert {"engine.backend", "assets.asset", "keypoints"} <= imported(SOURCE / "body" / "model.py")


PUBLIC_UNDERSCORES = {"_replace", "_asdict", "_fields", "_make", "_apply", "_modules", "_buffers"}
"""Names of named tuples, and of torch's modules."""


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC_UNDERSCORES


@functools.cache
def defined(tree: ast.Module) -> set[str]:
    """Private names that a module defines: functions, classes, variables, attributes of self."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return found


def foreign_privates(tree: ast.Module, known: set[str]) -> set[str]:
    """Private names that a module reads and that are not known; those of libraries by name of the module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in known:
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if private(alias.name) and alias.name not in known}
    return found


INTERNALS = {
    "engine.batched": {"torch._C", "torch._C._len_torch_dispatch_stack", "forward_ad._current_level"}
    | {"torch._C._are_functorch_transforms_active", "torch._C._functorch", "torch._C._dispatch_keys"}
    | {"torch._C._vmapmode_increment_nesting", "torch._C._vmapmode_decrement_nesting"}
    | {"torch._add_batch_dim", "torch._remove_batch_dim"}
    | {"torch._C._get_tracing_state", "torch._C._set_tracing_state", "_disable_current_modes"},
    "compat.smplx.arrays": {"self._parameters", "tensor._version"},
    "compat.smplx.smpl": {
        "self.get_submodule(owner)._non_persistent_buffers_set",
        "_disable_current_modes",
    },
}
"""Internals of torch for which there is no public name."""


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_reads_private_names_of_another_package(name):
    siblings = [path for other, path in modules().items() if package_of(other) == package_of(name)]
    known = set().union(*(defined(parsed(path)) for path in siblings))
    assert foreign_privates(parsed(modules()[name]), known) <= INTERNALS.get(name, set())


def test_the_check_sees_private_names():
    tree = ast.parse("from a import _b\nclass C:\n    def _d(self): self._e = f._g(self._d, t._replace())")
    assert foreign_privates(tree, defined(tree)) == {"_b", "f._g"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_can_be_imported_and_runs_nothing(name, capsys):
    importlib.import_module(f"agebody.{name}")  # as programs that list what a package has do, without an end
    assert capsys.readouterr() == ("", "")


def test_import_loads_nothing_heavy():
    heavy = "warp trimesh typer rich embreex PIL anny roma onnx ray pyarrow cv2 agebody_kernels sympy "
    heavy += "scipy.interpolate scipy.stats scipy.optimize scipy.special scipy.linalg scipy.cluster "
    heavy += "scipy.spatial scipy.sparse"
    code = "import sys, torch; before = set(sys.modules); import agebody; "
    code += f"print([name for name in '{heavy}'.split() if name in set(sys.modules) - before])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


FORBIDDING = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torchmetrics", "warp", "pillow_heif"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Forbid())
import agebody
from agebody.annotations.photographs import HEIC, _refused

assert set(HEIC) <= set(_refused())
for load in (
    lambda: __import__("agebody.metrics.streaming"),
    lambda: agebody.SMPLA(agebody.mannequin(), backend="warp"),
):
    try:
        load()
    except ImportError as error:
        print(error)
"""


def test_missing_packages_are_named_with_their_extra():
    """Also where the import system forbids them."""
    command = [sys.executable, "-c", FORBIDDING]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert "needs torchmetrics" in first
    assert 'pip install "agebody[metrics]"' in first
    assert 'pip install "agebody[warp]"' in second
