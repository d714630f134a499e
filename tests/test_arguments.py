"""Every public function that takes a body, its asset or a camera refuses another thing in one line."""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import bodies
import numpy as np
import pytest
import torch
from model_files import small_smplx
from test_context import (
    BODY,
    EXAMPLES,
    FACES,
    INSIDE,
    LAYER,
    LENS_OF,
    MESH,
    OF_BODIES,
    PIXELS,
    POINTS,
    POSE,
    POSE54,
    SOLID,
    VECTORS,
    WHO,
    YEARS,
    is_refusal,
)

import agebody
from agebody import annotations, checks, draw, fitting, losses, measure, mesh, metrics, nets, optim, people
from agebody.age import AgeCurve, median_stature, percentile
from agebody.annotations import MotionClip
from agebody.cameras import Camera, convert_box, square_box, to_crop
from agebody.crowd import HeightPrior, is_far, place_people, rescale
from agebody.fitting import fit_measurements, fit_vertices
from agebody.keypoints import get_layout
from agebody.losses import joint_limits, keypoints_3d_loss, plane_loss, scan_to_mesh_loss
from agebody.measure import plane_section, stature
from agebody.metrics import jitter, oks
from agebody.people import observe, random_people
from agebody.pipelines.evaluate import evaluate_files
from agebody.pipelines.release import write_release
from agebody.pipelines.synthesis import Recipe
from agebody.pipelines.train import Augmentation, Filters, TrainingData, TrainingSettings

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


CORNERS, FACE, NAN = torch.eye(3), torch.tensor([[0, 1, 2]]), math.nan
TWO = torch.ones(1, 2)
ONES = torch.ones(len(WHO.transl))


def prior_of(mean: float) -> HeightPrior:
    return HeightPrior(torch.full((1, 2), mean), torch.ones(1, 2))


WRONG = (
    (median_stature, "years", (240, "3", None, True, torch.tensor([3.0, 240.0]))),
    (lambda x: is_far(torch.ones(2), x, (64, 48)), "focal", (0, "a", torch.zeros(2))),
    (lambda x: Camera.from_fov(x, (64, 48)), "fov", ([1.0], "1", None, NAN, 60)),
    (Camera.guess, "size", (("64", "48"), (64, np.int64(0)), torch.tensor([0, 48]), 64, (1, NAN))),
    (lambda x: to_crop(torch.ones(3, 2), x), "box", (torch.tensor([9.0, 9, 4, 4]),)),
    (lambda x: square_box(torch.ones(4), crop=x), "crop", ((-1, 2), (0, 0), "ab", (NAN, 1))),
    (lambda x: convert_box(x, "xyxy", "xywh"), "box", (torch.tensor([[0.0, 9, 4, 4]]),)),
    (lambda x: plane_section(CORNERS, FACE, CORNERS[0], x), "normal", (torch.zeros(3),)),
    (lambda x: plane_section(CORNERS, FACE, CORNERS[0], CORNERS[1], capacity=x), "capacity", (0, 1.5, "a")),
    (stature, "rest_vertices", (torch.ones(0, 3), torch.ones(2, 0, 3))),
    (
        lambda x: keypoints_3d_loss(CORNERS, CORNERS, reduction=x),
        "reduction",
        (["mean"], CORNERS, None, np.ones(2)),
    ),
    (get_layout, "layout", (["nose"], None, "coco", np.ones(2))),
    (lambda x: place_people(TWO, TWO, TWO, prior_of(x)), "prior.mean", (1700.0,)),
    (WHO.mirrored, "joint_names", (BODY, BODY.asset, None, "pelvis", ["pelvis"], [1] * 24)),
    (lambda x: rescale(BODY, WHO, x, LENS_OF), "scale", ([1.0], None, torch.ones(3), -ONES, ONES.double())),
    (lambda x: rescale(BODY, WHO, ONES, LENS_OF, root=x), "root", ([[0.0, 0, 1]], ONES, WHO.transl.double())),
    (lambda x: rescale(BODY, WHO, ONES, LENS_OF, child=x), "child", ([True], ONES, torch.ones(3) > 0)),
    (lambda x: place_people(TWO, x, TWO, prior_of(1.0)), "rendered_depth", (2500 * TWO, 0 * TWO)),
)


@pytest.mark.parametrize(("function", "name", "wrong"), WRONG)
def test_wrong_values_are_named(function, name, wrong, unchecked):
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected") as caught:
            function(value)
        assert "\n" not in str(caught.value)


OPTIONS = {
    "seed": ("a", None, 1.5, -1),
    "size": (5, "ab", (64,), (0, 3)),
    "extent": (3, (1,), ("a", "b"), (0.9, 0.3), (0, 1)),
    "fov": (60, (40, 60), (0, 1)),
    "ages": ("a", None, -1, (1, 2, 3), (3, NAN), (0, 240)),
    "posture_years": (3, [1, 2], torch.ones(3)),
    "together": (2, [1, 2], [1.5, 0.5], "a"),
    **dict.fromkeys(("truncated", "heading", "pose_sd"), ("a", None, -1, NAN)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_random_people_are_named(name, mannequin_asset, unchecked):
    body = agebody.SMPLA(mannequin_asset)
    for value in OPTIONS[name]:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
            random_people(body, 2, **{name: value})


def test_options_of_observations_are_named(mannequin_asset, unchecked):
    body = agebody.SMPLA(mannequin_asset)
    people = random_people(body, 1)
    with pytest.raises(TypeError, match="^people: expected those of random_people, got tuple"):
        observe(body, (1, 2))
    for name in ("noise", "occluders", "dropped", "swapped", "borrowed", "stray", "seed"):
        for value in ("a", None, -1):
            with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
                observe(body, people, **{name: value})


def test_gradients_of_similarity_are_finite_at_an_area_of_zero(unchecked):
    pred, area = torch.full((1, 17, 2), 3000.0, requires_grad=True), torch.zeros(1, requires_grad=True)
    value = oks(pred, torch.zeros(1, 17, 2), area)
    value.backward()
    assert value == 0
    assert (pred.grad == 0).all()
    assert (area.grad == 0).all()


def test_unknown_layouts_are_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="expected one of smpl24, .*, got 'coco'"):
        agebody.LAYOUTS["coco"]


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


NEEDED = {"layout": "smpl24", "size": (64, 48), "kind": "contact", "direction": "camera_to_world"}


def _with_tensors() -> Iterator[Any]:
    """Functions, their arguments that are tensors, and values for the others that they need."""
    for path, function in [each for module in MODULES if module != "optim" for each in _callables(module)]:
        every = inspect.signature(function).parameters.values()
        needed = [
            p for p in every if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        kinds = {p.name: str(p.annotation) for p in needed}
        tensors = [name for name, kind in kinds.items() if "Tensor" in kind and "ndarray" not in kind]
        if tensors and not hasattr(function, "__dataclass_fields__"):
            others = {
                name: GOOD.get(kind.rpartition(".")[2].strip("'"), NEEDED.get(name, 1))
                for name, kind in kinds.items()
            }
            yield pytest.param(function, tensors, others, id=path)


@pytest.mark.parametrize(("function", "tensors", "others"), list(_with_tensors()))
def test_lists_are_no_tensors(function, tensors, others, unchecked):
    with pytest.raises((TypeError, ValueError), match=f"^({'|'.join(others)}).*: expected"):
        function(**others | {name: [[0.0, 0.0, 0.0]] for name in tensors})


@pytest.mark.parametrize(
    "name", ["betas", "body_pose", "global_orient", "transl", "age_offset", "expression"]
)
def test_lists_are_no_inputs_of_a_layer(name, unchecked):
    for body in (GOOD["BodyModel"], agebody.SMPLX(small_smplx())):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            body(**{name: [0.0] * 10})


# Options: keyword arguments, and positional ones with a default, that are numbers, counts or choices.
MADE: dict[str, Callable[..., Any]] = {
    "join_pose": partial(agebody.join_pose, small_smplx(), body=POSE[:, :63]),
    "split_pose": partial(agebody.split_pose, small_smplx(), POSE54),
    "age.AgeCurve.from_asset": partial(AgeCurve.from_asset, BODY.asset),
    "SMPL": partial(agebody.SMPL, ASSET),
    "save_asset": partial(agebody.save_asset, ASSET, "body.safetensors"),
    "annotations.save_motion": partial(
        annotations.save_motion, MotionClip(WHO.map(lambda part: part[:1]), 30.0), BODY, "motion.npz"
    ),
    "cameras.Camera.guess": partial(Camera.guess, (64, 48)),
    "cameras.Camera.from_fov": partial(Camera.from_fov, 1.0, (64, 48)),
    "cameras.Camera.look_at": partial(Camera.look_at, (0.0, 0.0, 3.0), (0.0, 0.0, 0.0), size=(64, 48)),
    "crowd.HeightPrior.of_age": partial(HeightPrior.of_age, YEARS),
    "crowd.HeightPrior.of_age_offset": partial(
        HeightPrior.of_age_offset, YEARS / 50, AgeCurve.from_asset(BODY.asset)
    ),
    "crowd.HeightPrior.of_class": partial(HeightPrior.of_class, LAYER),
    "draw.save_html": partial(draw.save_html, BODY, "body.html"),
    "draw.save_mesh": partial(draw.save_mesh, MESH[0], BODY.asset.faces, "body.obj"),
    "draw.lineup": partial(draw.lineup, MESH[:1], BODY.asset.faces, size=(32, 24)),
    "draw.render": partial(draw.render, MESH[:1], BODY.asset.faces, LENS_OF, size=(16, 12)),
    "draw.save_rigged": partial(draw.save_rigged, BODY, "body.glb"),
    "fitting.Cloud.from_depth": partial(fitting.Cloud.from_depth, torch.ones(12, 16), LENS_OF),
    "losses.MahalanobisPrior": partial(losses.MahalanobisPrior, torch.zeros(3), torch.eye(3), ["a"]),
    "losses.MaxMixturePrior": partial(
        losses.MaxMixturePrior, torch.zeros(2, 3), torch.eye(3).expand(2, -1, -1), torch.ones(2) / 2, ["a"]
    ),
    "losses.MahalanobisPrior.from_poses": partial(
        losses.MahalanobisPrior.from_poses, VECTORS[:, 0], ("left_hip",)
    ),
    "losses.MaxMixturePrior.from_poses": partial(
        losses.MaxMixturePrior.from_poses, torch.cat((VECTORS, -VECTORS))[:, 0], joint_names=("left_hip",)
    ),
    "losses.Objective": partial(losses.Objective, {}),
    "losses.PoseDiscriminator": losses.PoseDiscriminator,
    **{f"losses.{name}": getattr(losses, name) for name in losses.__all__ if name.endswith("_objective")},
    "losses.smplify_x_objective": partial(losses.smplify_x_objective, 1),
    "losses.joint_limits": losses.joint_limits,
    "losses.joint_limits_prior": losses.joint_limits_prior,
    "losses.part_vertices": partial(losses.part_vertices, BODY.asset, "feet", facing=(0.0, -1.0, 0.0)),
    "measure.Measurements": partial(measure.Measurements, BODY.asset, {}),
    "mesh.Exclusions.of_body": partial(mesh.Exclusions.of_body, ASSET),
    "mesh.MarkerSet.learn": partial(mesh.MarkerSet.learn, BODY, WHO),
    "mesh.TopologyMap.from_meshes": partial(mesh.TopologyMap.from_meshes, SOLID, FACES, INSIDE),
    "metrics.keypoint_ap": partial(
        metrics.keypoint_ap, PIXELS, torch.ones(2), LAYER, PIXELS, 1000 * torch.ones(2), LAYER
    ),
    "metrics.oks_sigmas": partial(metrics.oks_sigmas, "coco17"),
    "nets.DecoderHead": partial(nets.DecoderHead, {"a": 3}, channels=8, width=8, depth=1, heads=2),
    "nets.FieldOfView": nets.FieldOfView,
    "nets.IterativeHead": partial(nets.IterativeHead, {"a": torch.zeros(3)}, channels=8, width=8),
    "nets.Lifter": partial(nets.Lifter, width=8, blocks=1),
    "nets.MeshPoseInteraction": partial(
        nets.MeshPoseInteraction,
        BODY,
        mesh.MarkerSet(np.arange(4), np.full((BODY.num_vertices, 4), 0.25), list("abcd")),
        "coco17",
        features=4,
        frames=4,
        width=8,
    ),
    "nets.start_readouts": partial(nets.start_readouts, BODY),
    "nets.PartAttentionHead": partial(nets.PartAttentionHead, {"pose": 12}, channels=8, width=8),
    "optim.Points": partial(optim.Points, "coco17", POINTS, torch.ones(2, 17)),
    "optim.Reprojection": partial(
        optim.Reprojection, "coco17", PIXELS[:, None], torch.ones(2, 1, 17), LENS_OF, torch.ones(2, 1)
    ),
    "optim.fit_bodies": partial(optim.fit_bodies, BODY, {"shape": optim.ShapePrior()}, [optim.Stage()], WHO),
    "optim.minimize": partial(
        optim.minimize,
        lambda x, rows: optim.Quadratic.of(x, torch.eye(3).expand(len(x), -1, -1)),
        torch.zeros(2, 3),
    ),
    "people.pose": partial(people.pose, "standing", BODY.asset.joint_names[1:]),
    "pipelines.evaluate.evaluate_files": partial(evaluate_files, "pred.npz", "target.npz"),
    "pipelines.release.write_release": partial(write_release, [], BODY, "release"),
    "pipelines.synthesis.Recipe": Recipe,
    "pipelines.train.Augmentation": Augmentation,
    "pipelines.train.Filters": Filters,
    "pipelines.train.TrainingData": partial(TrainingData, "shards"),
    "pipelines.train.TrainingSettings": partial(TrainingSettings, 3),
}
"""Calls with few arguments of what is neither among the examples of `test_context` nor in `ELSEWHERE`."""
PIPELINES = ("evaluate", "labels", "release", "synthesis", "train")
ELSEWHERE = {
    *(f"annotations.{name}" for name in ("join_views", "read_people", "save_people", "write_shards")),
    *("detect.detect_people", "draw.LiveView", "measure.Girth"),
    *(f"pipelines.labels.{name}_annotations" for name in ("fit", "predict")),
    *(f"pipelines.labels.{name}" for name in ("fit_dataset", "fit_shard", "place_labels")),
    *(f"pipelines.labels.save_training_{name}" for name in ("npz", "shards")),
    *("pipelines.release.photos_from_labels", "pipelines.synthesis.synthesize"),
    "pipelines.train.refit_shards",
}
"""What needs files, people in files or a server before its options are read."""


def _called(
    path: str, run: Callable[..., Any], given: tuple[Any, ...] = ()
) -> tuple[Any, Callable[..., Any]]:
    """A public function, and a call of it by an example, with other options."""
    function: Any = agebody
    for part in path.split("."):
        owner, function = function, getattr(function, part)
    if path in MADE or getattr(run, "func", run) is function:
        return function, lambda **options: run(*given, **options)
    name = path.rpartition(".")[2]

    def call(**options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, lambda *args, **its: function(*args, **{**its, **options}))
            return run(*given)

    return function, call


CALLS = {
    **{path: _called(path, *example) for path, example in EXAMPLES.items()},
    **{
        f"{path}.{name}": _called(f"{path}.{name}", OF_BODIES[name])
        for path in ("crowd", "fitting", "losses", "people")
        for name in importlib.import_module(f"agebody.{path}").__all__
        if name in OF_BODIES
    },
    **{path: _called(path, call) for path, call in MADE.items()},
}


def _wrong(function: Any, parameter: inspect.Parameter) -> tuple[Any, ...]:
    """Values that no option of such a type takes; none for other types."""
    made = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    names = {"Weights": None, **vars(importlib.import_module(made.__module__))}
    try:
        kind = (
            eval(parameter.annotation, names)
            if isinstance(parameter.annotation, str)
            else parameter.annotation
        )
    except (NameError, TypeError):  # imported for the type checker alone
        return ()
    kinds = set(get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else (kind,))
    none = () if type(None) in kinds else (None,)
    if any(get_origin(each) is Literal for each in kinds):
        return ("no such", 3, ["a"], *none)
    kinds -= {type(None)}
    if kinds == {float}:
        return ("a", "1", [1.0, 2.0], NAN, True, *none)
    if kinds == {int}:
        return ("3", 1.5, NAN, -1, True, [1], *none)
    if kinds == {bool}:
        return ("no", 2, [True], torch.ones(2), *none)
    if kinds == {torch.dtype}:
        return ("float32", float, torch.int64, 3)
    return ("a", ["a"]) if float in kinds else ()


OPTIONS_OF_ALL = [
    (path, call, parameter.name, wrong)
    for path, (function, call) in CALLS.items()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.default is not parameter.empty and (wrong := _wrong(function, parameter))
]


def test_every_public_function_with_such_options_is_called():
    with_options = {
        path
        for module in (*MODULES, *(f"pipelines.{name}" for name in PIPELINES))
        for path, function in _callables(module)
        if any(
            parameter.default is not parameter.empty and _wrong(function, parameter)
            for parameter in inspect.signature(function).parameters.values()
        )
    }
    assert with_options - CALLS.keys() == ELSEWHERE
    assert len(OPTIONS_OF_ALL) > 250


def test_wrong_options_are_named(unchecked):
    unnamed = []
    for path, call, name, wrong in OPTIONS_OF_ALL:
        for value in wrong:
            try:
                call(**{name: value})
            except Exception as error:
                if is_refusal(error) and re.match(rf"{name}\b", str(error)):
                    continue
                outcome = repr(error)
            else:
                outcome = "taken"
            unnamed.append(f"{path}({name}={value!r}): {outcome}"[:200])
    assert not unnamed, "\n".join(unnamed)


@pytest.mark.parametrize("shape", [(2, 72), (2, 24, 3)])
def test_a_pose_with_its_root_gets_a_hint(shape):
    with pytest.raises(ValueError, match="body_pose: .*; pass the root as global_orient"):
        checks.read_rotations("body_pose", torch.zeros(shape), "axis_angle", 23, torch.zeros(1))


def test_points_with_confidences_get_a_hint():
    with pytest.raises(ValueError, match="keypoints: .*; pass confidences as weights"):
        checks.expect("keypoints", torch.zeros(2, 17, 3), 17, 2)
