"""Every public function that takes a body, its asset or a camera refuses another thing in one line."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import bodies
import pytest

import agebody

MODULES = (
    *("age", "annotations", "cameras", "crowd", "detect", "draw", "fitting"),
    *("losses", "measure", "mesh", "metrics", "nets", "optim", "people"),
)
ASSET = bodies.random_body()
GOOD = {
    "BodyAsset": ASSET,
    "BodyModel": agebody.SMPLA(ASSET),
    "Camera": agebody.cameras.Camera.guess((640, 480)),
}
KINDS = {"BodyAsset": "a BodyAsset", "BodyModel": "a layer such as SMPLA", "Camera": "a Camera"}


def _callables(path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    module = importlib.import_module(f"agebody.{path}")
    for name in module.__all__:
        member = getattr(module, name)
        if inspect.isclass(member):
            if not issubclass(member, (tuple, Exception)):  # results and errors
                yield f"{path}.{name}", member
            for method, made in vars(member).items():
                if isinstance(made, classmethod) and not method.startswith("_"):
                    yield f"{path}.{name}.{method}", getattr(member, method)
        elif callable(member):
            yield f"{path}.{name}", member


def _required(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """The parameters that have to be a body, an asset or a camera, and which of these."""
    for parameter in inspect.signature(function).parameters.values():
        kind = str(parameter.annotation).rpartition(".")[2].strip("'")
        if kind in KINDS and parameter.default is parameter.empty:
            yield parameter.name, kind


CASES = [
    pytest.param(function, name, kind, id=f"{path}-{name}")
    for module in MODULES
    for path, function in _callables(module)
    for name, kind in _required(function)
]


def test_the_table_finds_them():
    assert len(CASES) > 40


@pytest.mark.parametrize(("function", "name", "kind"), CASES)
def test_another_thing_is_named(function, name, kind, unchecked):
    kinds = dict(_required(function))
    others = {
        other.name: GOOD.get(kinds.get(other.name, ""))
        for other in inspect.signature(function).parameters.values()
        if other.default is other.empty and other.kind is not other.VAR_POSITIONAL
    }
    for wrong in (None, "body.npz", GOOD["BodyAsset" if kind == "BodyModel" else "BodyModel"]):
        with pytest.raises(TypeError) as caught:
            function(**others | {name: wrong})
        assert str(caught.value).startswith(f"{name}: expected {KINDS[kind]}, got {type(wrong).__name__}")


def test_the_advice_fits(unchecked):
    with pytest.raises(TypeError, match="make one of it, such as SMPLA"):
        agebody.crowd.rest_height(ASSET, None)
    with pytest.raises(TypeError, match=r"give its \.asset"):
        agebody.measure.find_landmarks(GOOD["BodyModel"])


def test_parts_are_a_mapping(unchecked):
    with pytest.raises(TypeError, match="starts: expected 6, 7 or a joint by each part's name, got"):
        agebody.mesh.PartMap.from_joints(ASSET, ["joint0"])
