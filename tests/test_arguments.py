"""Every public function that takes a body, its asset or a camera refuses another thing in one line."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import bodies
import numpy as np
import pytest
import torch

import agebody
from agebody.age import AgeCurve, median_stature, percentile
from agebody.cameras import Camera
from agebody.fitting import fit_measurements, fit_vertices
from agebody.losses import joint_limits, plane_loss, scan_to_mesh_loss
from agebody.metrics import jitter
from agebody.people import random_people

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


@pytest.mark.parametrize(
    "kind",
    [
        *(int, np.float16, np.float32, np.float64, np.int64, np.array, torch.tensor),
        *(lambda x: np.array(float(x)), lambda x: torch.tensor(float(x)).double()),
    ],
)
def test_numbers_may_have_any_type(kind, unchecked, mannequin_asset):
    body, curve = agebody.SMPLA(mannequin_asset), AgeCurve.from_asset(mannequin_asset)
    vertices = body().vertices
    for call in (
        lambda x: body(age_offset=x).joints,
        lambda x: body.shape(age_offset=x).rest_joints,
        lambda x: body.keypoints("coco17", age_offset=x),
        curve.years_to_offset,
        curve.offset_to_years,
        median_stature,
        lambda x: percentile(x, x),
        lambda x: joint_limits(age_offset=x).low,
        lambda x: mannequin_asset.at_age(x).template,
        lambda x: fit_measurements(body, {"stature": x}, age_offset=x).betas,
        lambda x: fit_vertices(body, vertices, age_offset=x, sd=x, max_iterations=1).parameters.transl,
        lambda x: Camera.from_fov(x, (64, 48)).focal,
        lambda x: jitter(vertices.expand(9, -1, -1), fps=x),
    ):
        np.testing.assert_allclose(np.asarray(call(kind(1))), np.asarray(call(1.0)), rtol=1e-5, atol=1e-6)


def test_values_of_no_meaning_are_refused(mannequin_asset, unchecked):
    points = torch.rand(4, 3)
    with pytest.raises(ValueError, match="normal: expected vectors of any length but zero"):
        plane_loss(points, torch.zeros(3), torch.tensor(0.0), kind="contact")
    nobody = {"kind": "contact", "weights": torch.zeros(4)}
    assert plane_loss(points, torch.zeros(3), torch.tensor(0.0), **nobody) == 0
    seen = torch.ones(5, dtype=torch.bool)
    with pytest.raises(ValueError, match="visible: expected 4 vertices, got 5"):
        scan_to_mesh_loss(points, points, torch.tensor([[0, 1, 2]]), visible=seen)
    with pytest.raises(ValueError, match="stature: expected metres, up to 5"):
        AgeCurve.from_asset(mannequin_asset).stature_to_offset(110)
    for ages in ((0, 240), torch.tensor([240.0])):
        with pytest.raises(ValueError, match="ages: expected .* from 0 to below 130 years"):
            random_people(agebody.SMPLA(mannequin_asset), 1, ages=ages)
