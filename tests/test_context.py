"""Every public function under autocast, inference, tracing, other defaults, 16 bits and mixed types.

The numbers are those of a plain call in float32, or the call is refused in one line that names the argument.
A public function that is neither in `EXAMPLES` nor in `WITHOUT` fails the test.
"""

import contextlib
import functools
import importlib
import inspect
import itertools
import math
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bodies import random_body
from model_files import small_smplx
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from agebody import (
    SMPL,
    SMPLA,
    age,
    cameras,
    crowd,
    fitting,
    join_pose,
    losses,
    mannequin,
    measure,
    mesh,
    metrics,
    nets,
    people,
    rotations,
    split_pose,
)
from agebody.compat.smplx import lbs
from agebody.engine import deform
from agebody.fitting.conversion import correspond
from agebody.fitting.patches import find_patches
from agebody.optim import terms

MODULES = (
    "age",
    "cameras",
    "crowd",
    "fitting",
    "losses",
    "measure",
    "mesh",
    "metrics",
    "nets",
    "people",
    "rotations",
)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


A3, B3 = _normal(4, 17, 3), _normal(4, 17, 3, seed=1)
A2, B2 = A3[..., :2].contiguous(), B3[..., :2].contiguous()
A1, B1 = A3[..., 0].contiguous(), B3[..., 0].contiguous()
POSITIVE = A1.abs() + 0.5
VECTORS = _normal(4, 5, 3, seed=2)
MATRICES = rotations.axis_angle_to_matrix(VECTORS)
OTHERS = rotations.axis_angle_to_matrix(_normal(4, 5, 3, seed=3))
POSE = 0.3 * _normal(4, 69, seed=4)
POSE54 = 0.3 * _normal(4, 162, seed=5)
BOX = torch.tensor([[100.0, 50.0, 300.0, 350.0], [10.0, 20.0, 200.0, 180.0]])
PIXELS = 200 + 50 * _normal(2, 17, 2)
IN_FRONT = _normal(2, 17, 3) + torch.tensor([0.0, 0.0, 5.0])
WEAK = torch.tensor([[0.9, 0.1, -0.2], [0.5, 0.0, 0.3]])
LENS = torch.tensor([-0.1, 0.02, 0.001, -0.001])
RIGID = torch.cat((MATRICES[0], _normal(5, 3, 1)), -1)
SOLID = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
TWO = torch.stack((SOLID, SOLID + 0.25))
FACES = torch.tensor([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
INSIDE = 0.4 * _normal(7, 3)
UP, LEVEL = torch.tensor([0.0, 1.0, 0.0]), torch.tensor(0.2)
LAYERS = torch.tensor([[0, 0, 1, 1, 2]]).expand(4, 5)
CLASSES = torch.tensor([[0, 1, 2, 3, 0]]).expand(4, 5)
YEARS = torch.tensor([0.3, 4.0, 11.0, 30.0])
STATURES = torch.tensor([0.6, 1.0, 1.4, 1.7])


def _camera(focal: Tensor) -> cameras.Camera:
    """A camera of the precision of a tensor."""
    like = focal if isinstance(focal, Tensor) else BOX
    return cameras.Camera(like.new_full((2,), 500.0), like.new_full((2,), 256.0))


def _first(points: Tensor) -> Tensor:
    """The first point of each person, of the precision of the points."""
    return points[..., 0, :] if isinstance(points, Tensor) else A3[:, 0]


def _section(surface: Tensor) -> Any:
    up = UP.double() if getattr(surface, "dtype", None) == torch.float64 else UP
    return measure.plane_section(surface, FACES, 0.1 * up, up)


Example = tuple[Callable[..., Any], tuple[Tensor, ...]]
partial = functools.partial

EXAMPLES: dict[str, Example] = {
    "join_pose": (
        lambda body, jaw: join_pose(small_smplx(), body=body, jaw=jaw),
        (POSE[:, :63], VECTORS[:, 0]),
    ),
    "split_pose": (lambda pose: split_pose(small_smplx(), pose, num_hand_components=6), (POSE54,)),
    "age.age_class": (age.age_class, (A1,)),
    "age.median_head_circumference": (age.median_head_circumference, (YEARS[:2],)),
    "age.median_stature": (age.median_stature, (YEARS,)),
    "age.percentile": (age.percentile, (STATURES, YEARS)),
    "age.stature_at_percentile": (age.stature_at_percentile, (torch.tensor([3.0, 50, 97, 20]), YEARS)),
    "age.stature_sd": (age.stature_sd, (YEARS,)),
    "age.z_score": (age.z_score, (STATURES, YEARS)),
    "cameras.bev_to_translation": (cameras.bev_to_translation, (WEAK,)),
    "cameras.box_around": (cameras.box_around, (PIXELS,)),
    "cameras.box_condition": (lambda box: cameras.box_condition(box, _camera(box)), (BOX,)),
    "cameras.convert_axes": (lambda x: cameras.convert_axes(x, "opencv", "opengl"), (A3,)),
    "cameras.convert_box": (lambda x: cameras.convert_box(x, "xyxy", "cxcywh"), (BOX,)),
    "cameras.convert_extrinsics": (
        lambda x: cameras.convert_extrinsics(x, "opencv", "opengl", direction="world_to_camera"),
        (RIGID,),
    ),
    "cameras.convert_pixels": (lambda x: cameras.convert_pixels(x, "opencv", "agebody"), (PIXELS,)),
    "cameras.field_limit": (cameras.field_limit, (LENS,)),
    "cameras.from_crop": (partial(cameras.from_crop, size=(224, 224)), (PIXELS, BOX)),
    "cameras.mahmr_to_translation": (cameras.mahmr_to_translation, (WEAK, torch.tensor([900.0, 1100.0]))),
    "cameras.project_weak": (
        lambda points, weak, box: cameras.project_weak(points, weak, box, _camera(box)),
        (A3[:2], WEAK, BOX),
    ),
    "cameras.square_box": (cameras.square_box, (BOX,)),
    "cameras.to_crop": (partial(cameras.to_crop, size=(224, 224)), (PIXELS, BOX)),
    "cameras.torso_translation": (
        lambda points, pixels: cameras.torso_translation(points, pixels, _camera(points), "coco17"),
        (A3[:2], PIXELS),
    ),
    "cameras.weak_to_translation": (
        lambda weak, box: cameras.weak_to_translation(weak, box, _camera(box)),
        (WEAK, BOX),
    ),
    "crowd.height_class": (crowd.height_class, (YEARS,)),
    "losses.acceleration_loss": (losses.acceleration_loss, (A3,)),
    "losses.age_class_loss": (lambda x: losses.age_class_loss(x, CLASSES), (A1[:, :5],)),
    "losses.age_offset_loss": (losses.age_offset_loss, (A1, B1)),
    "losses.angular_velocity_loss": (losses.angular_velocity_loss, (MATRICES,)),
    "losses.betas_loss": (losses.betas_loss, (A1, B1)),
    "losses.tals": (partial(losses.tals, threshold=0.5), (A2,)),
    "losses.charbonnier": (partial(losses.charbonnier, epsilon=0.1), (A1,)),
    "losses.depth_layer_loss": (lambda x: losses.depth_layer_loss(x, LAYERS), (A1[:, :5],)),
    "losses.adversarial_loss": (partial(losses.adversarial_loss, real=True), (A1,)),
    "losses.fov_loss": (losses.fov_loss, (A1, B1)),
    "losses.geodesic_loss": (losses.geodesic_loss, (MATRICES, OTHERS)),
    "losses.gmof": (partial(losses.gmof, rho=100.0), (300 * A1,)),
    "losses.huber": (partial(losses.huber, delta=0.5), (A1,)),
    "losses.hyperextension_prior": (losses.hyperextension_prior, (POSE,)),
    "losses.joint_limits_loss": (losses.joint_limits_loss, (3 * POSE.unflatten(-1, (23, 3)),)),
    "losses.keypoints_3d_loss": (partial(losses.keypoints_3d_loss, layout="coco17"), (A3, B3)),
    "losses.mesh_to_scan_loss": (losses.mesh_to_scan_loss, (SOLID, INSIDE)),
    "losses.person_intersection_loss": (
        lambda x: losses.person_intersection_loss(x, FACES),
        (TWO,),
    ),
    "losses.plane_height": (losses.plane_height, (INSIDE, UP, LEVEL)),
    "losses.plane_loss": (partial(losses.plane_loss, kind="penetration"), (INSIDE, UP, LEVEL)),
    "losses.relative_metric_loss": (losses.relative_metric_loss, (A1, B1)),
    "losses.reprojection_loss": (losses.reprojection_loss, (A2, B2)),
    "losses.rotation_loss": (losses.rotation_loss, (MATRICES, OTHERS)),
    "losses.scan_to_mesh_loss": (lambda v, s: losses.scan_to_mesh_loss(v, s, FACES), (SOLID, INSIDE)),
    "losses.self_intersection_loss": (lambda x: losses.self_intersection_loss(x, FACES), (SOLID,)),
    "losses.shape_prior": (losses.shape_prior, (A1,)),
    "losses.velocity_loss": (losses.velocity_loss, (A3,)),
    "measure.plane_section": (lambda x: _section(x), (SOLID,)),
    "measure.section_length": (lambda x, up: measure.section_length(_section(x), tape=up), (SOLID, UP)),
    "measure.stature": (measure.stature, (A3,)),
    "mesh.closest_points": (lambda p, v: mesh.closest_points(p, v, FACES), (INSIDE, SOLID)),
    "mesh.contains": (lambda v, p: mesh.contains(v, FACES, p), (SOLID, INSIDE)),
    "mesh.find_collisions": (lambda x: mesh.find_collisions(x, FACES), (SOLID,)),
    "mesh.penetration": (lambda x: mesh.penetration(x, FACES), (TWO,)),
    "mesh.visible_vertices": (lambda v, e: mesh.visible_vertices(v, FACES, e), (SOLID, 5 * UP + 1)),
    "mesh.winding_number": (lambda p, v: mesh.winding_number(p, v, FACES), (INSIDE, SOLID)),
    "metrics.acceleration_error": (metrics.acceleration_error, (A3, B3)),
    "metrics.depth_relations": (metrics.depth_relations, (A1, B1)),
    "metrics.foot_sliding": (metrics.foot_sliding, (A3, B3)),
    "metrics.jitter": (metrics.jitter, (A3,)),
    "metrics.joint_errors": (partial(metrics.joint_errors, layout="coco17"), (A3, B3)),
    "metrics.match": (metrics.match, (POSITIVE,)),
    "metrics.match_keypoints": (metrics.match_keypoints, (PIXELS, PIXELS + 3)),
    "metrics.mpckh": (metrics.mpckh, (A2, B2)),
    "metrics.joint_limit_violations": (metrics.joint_limit_violations, (POSE.unflatten(-1, (23, 3)),)),
    "metrics.mpjae": (metrics.mpjae, (MATRICES, OTHERS)),
    "metrics.mpjpe": (partial(metrics.mpjpe, layout="coco17"), (A3, B3)),
    "metrics.oks": (metrics.oks, (A2, B2, POSITIVE[:, 0])),
    "metrics.pa_mpjpe": (metrics.pa_mpjpe, (A3, B3)),
    "metrics.mrpe": (metrics.mrpe, (A3[:, 0], B3[:, 0])),
    "metrics.pcdr": (metrics.pcdr, (A1, B1)),
    "metrics.pcod": (metrics.pcod, (A1, B1)),
    "metrics.pck": (partial(metrics.pck, threshold=1.5), (A3, B3)),
    "metrics.pck_auc": (partial(metrics.pck_auc, max_threshold=3.0), (A3, B3)),
    "metrics.per_joint": (metrics.per_joint, (A1,)),
    "metrics.procrustes": (metrics.procrustes, (A3, B3)),
    "metrics.pve": (
        lambda x, y: metrics.pve(x, y, pred_root=_first(x), target_root=_first(y)),
        (A3, B3),
    ),
    "metrics.root_trajectory_error": (metrics.root_trajectory_error, (A3, B3)),
    "metrics.stature_error": (metrics.stature_error, (A1, B1)),
    "metrics.reference_length": (partial(metrics.reference_length, kind="torso", layout="coco17"), (A3,)),
    "metrics.w_mpjpe": (metrics.w_mpjpe, (A3, B3)),
    "rotations.axis_angle_to_matrix": (rotations.axis_angle_to_matrix, (VECTORS,)),
    "rotations.from_matrix": (lambda x: rotations.from_matrix(x, "quaternion"), (MATRICES,)),
    "nets.normalize_images": (nets.normalize_images, (_normal(2, 3, 4, 5).sigmoid(),)),
    "rotations.matrix_to_axis_angle": (rotations.matrix_to_axis_angle, (MATRICES,)),
    "rotations.mirror": (rotations.mirror, (VECTORS,)),
    "rotations.to_matrix": (lambda x: rotations.to_matrix(x, "axis_angle"), (VECTORS,)),
}

ASSET, FIT = "takes a body, not tensors alone; layers are in test_context_layers.py", "a fit with iterations"
WITHOUT: dict[str, str] = {
    "age.parse_ages": "returns NumPy arrays",
    "cameras.from_pytorch3d": "takes another library's object",
    "cameras.to_pytorch3d": "takes a camera",
    "crowd.is_far": "two numbers a person in NumPy's manner; in test_crowd.py",
    "crowd.mask_depths": "loops over masks on the host; in test_crowd.py",
    "crowd.place_people": FIT,
    "crowd.refine_crowd": FIT,
    "crowd.rescale": ASSET,
    "crowd.rest_height": ASSET,
    "crowd.surface_depth": "an image of a renderer; in test_crowd.py",
    "fitting.convert": ASSET,
    "fitting.fit_plane": FIT,
    "fitting.fit_points": FIT,
    **{f"fitting.fit_{what}": FIT for what in ("keypoints", "measurements", "scans", "sequence", "vertices")},
    **{
        f"losses.{name}_objective": "makes a module"
        for name in ("aionhmr", "aionhmr_fitting", "hmr2", "metric_aware")
    },
    "losses.smplify_x_objective": "makes a module",
    "losses.joint_limits": "makes a table",
    "losses.joint_limits_prior": "makes a module",
    "losses.part_vertices": ASSET,
    "measure.find_landmarks": ASSET,
    "metrics.detection_scores": "takes counts",
    "metrics.keypoint_ap": "loops on the host; in test_metrics_oks.py",
    "metrics.normalized_error": "takes numbers",
    "metrics.oks_sigmas": "takes names",
    "nets.fit_lifted": FIT,
    "nets.load_checkpoint": "reads a file",
    "nets.read_checkpoint": "reads a file",
    "nets.read_prediction": ASSET,
    "nets.start_readouts": ASSET,
    "people.observe": ASSET,
    "people.pose": "takes a name",
    "people.random_people": ASSET,
}

UNTRACED: dict[str, str] = {
    **{name: "searches decide by values" for name in EXAMPLES if name.startswith("mesh.")},
    **{f"losses.{name}_loss": "searches decide by values" for name in ("mesh_to_scan", "scan_to_mesh")},
    "losses.person_intersection_loss": "searches decide by values",
    "losses.self_intersection_loss": "searches decide by values",
    **{f"measure.{name}": "sizes depend on values" for name in ("plane_section", "section_length")},
    "metrics.match": "matches on the host",
    "metrics.match_keypoints": "matches on the host",
}
"""Not traced by `torch.jit.trace`."""


def tensors(result: Any) -> list[Tensor]:
    return [part for part in pytree.tree_leaves(result) if isinstance(part, Tensor)]


def assert_same(found: Any, expected: Any, **tolerance: Any) -> None:
    found, expected = tensors(found), tensors(expected)
    assert len(found) == len(expected) > 0
    for part, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(part, reference, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))


class Refused(Exception):
    """What takes the place of a result."""


def _or_refusal(function: Callable[..., Any], given: list[Tensor]) -> Any:
    try:
        return function(*given)
    except (TypeError, ValueError) as error:
        if not is_refusal(error):
            raise
        return Refused()


def is_refusal(error: Exception) -> bool:
    """Whether an error is the library's own: one line that begins with an argument's name."""
    name, colon, _ = str(error).partition(": ")
    return (
        isinstance(error, (TypeError, ValueError))
        and bool(colon)
        and "\n" not in str(error)
        and " " not in name
    )


def test_every_public_function_has_an_example():
    functions = {"join_pose", "split_pose"}
    for path in MODULES:
        module = importlib.import_module(f"agebody.{path}")
        functions |= {f"{path}.{name}" for name in module.__all__ if inspect.isroutine(getattr(module, name))}
    assert functions == EXAMPLES.keys() | WITHOUT.keys()
    assert not EXAMPLES.keys() & WITHOUT.keys()


@pytest.fixture(params=EXAMPLES)
def example(request) -> Example:
    return EXAMPLES[request.param]


def _with_gaps(tensor: Tensor) -> Tensor:
    """The same numbers, every second of their memory; the others are NaN, or large."""
    filling = math.nan if tensor.is_floating_point() else 7777
    memory = tensor.new_full((*tensor.shape, 2), filling) if tensor.dtype != torch.bool else tensor[..., None]
    memory = memory.expand(*tensor.shape, 2).clone()
    memory[..., 0] = tensor
    return memory[..., 0]


def _by_columns(tensor: Tensor) -> Tensor:
    """The same numbers, the first dimension innermost in memory."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0) if tensor.dim() else tensor


@pytest.mark.parametrize("laid_out", [Tensor.clone, _with_gaps, _by_columns])
def test_arguments_are_read_wherever_they_lie_and_not_changed(example, laid_out):
    function, given = example
    placed, originals = [laid_out(part) for part in given], [part.clone() for part in given]
    found = function(*placed)
    for part, original in zip(placed, originals, strict=True):
        assert torch.equal(part, original)
    assert_same(found, function(*given), rtol=1e-5, atol=1e-5)


def test_results_that_callers_change_do_not_change_later_ones(example):
    function, given = example
    expected = [part.clone() for part in tensors(function(*given))]
    for part in tensors(function(*(part.clone() for part in given))):
        part.fill_(1)
    assert_same(function(*given), expected)


def test_under_autocast(example):
    function, given = example
    with torch.autocast("cpu", torch.bfloat16):
        found = function(*given)
    assert_same(found, function(*given))


def test_a_backward_pass_under_autocast(example):
    function, given = example
    found, expected = (gradients(function, given, autocast=autocast) for autocast in (True, False))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def gradients(function: Callable[..., Any], given: tuple[Any, ...], *, autocast: bool) -> list[Tensor]:
    """Derivatives of a weighted sum of all outputs; the function itself is called without autocast."""
    leaves = [part.clone().requires_grad_(part.is_floating_point()) for part in given]
    wanted = [part for part in leaves if part.requires_grad]
    outputs = [part for part in tensors(function(*leaves)) if part.requires_grad]
    pulls = [torch.linspace(0.5, 1.5, part.numel()).reshape(part.shape).to(part) for part in outputs]
    if not outputs:
        return []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = torch.autograd.grad(outputs, wanted, pulls, allow_unused=True)
    return [part for part in found if part is not None]


def test_all_ways_to_derivatives_agree(example, unchecked):
    """Along a line through the arguments; forward mode within forward mode is right, or refused."""
    function, given = example
    given = [part.double() for part in given]
    steps = [torch.sin(1.7 * torch.arange(part.numel(), dtype=torch.float64)).view_as(part) for part in given]

    def line(t: Tensor) -> Tensor:
        found = tensors(_or_refusal(function, [x + t * step for x, step in zip(given, steps, strict=True)]))
        parts = [part.reshape(-1) for part in found if part.is_floating_point()]
        sums = (part @ torch.cos(torch.arange(len(part), dtype=torch.float64)) for part in parts)
        return sum(sums, torch.zeros((), dtype=torch.float64))

    zero = torch.zeros((), dtype=torch.float64)
    value = line(zero.requires_grad_())
    if not value.requires_grad:
        return
    (first,) = torch.autograd.grad(value, zero, create_graph=True)
    second = torch.autograd.grad(first, zero)[0] if first.requires_grad else torch.zeros_like(zero)
    first, zero = first.detach(), zero.detach()
    forward, reverse = torch.func.jacfwd, torch.func.jacrev
    with forward_ad.dual_level():
        dual = line(forward_ad.make_dual(zero, torch.ones_like(zero)))
        found = [forward_ad.unpack_dual(dual).tangent.clone()]
    found += [forward(line)(zero), reverse(line)(zero)]
    found += [torch.autograd.functional.jacobian(line, zero, vectorize=True)]
    torch.testing.assert_close(found, [first] * 4, rtol=1e-6, atol=1e-6)
    for outer, inner in itertools.product((forward, reverse), repeat=2):
        with contextlib.suppress(NotImplementedError):
            found = outer(inner(line))(zero)
            torch.testing.assert_close(found, second, rtol=1e-6, atol=1e-6)


def test_in_inference_mode(example):
    function, given = example
    with torch.inference_mode():
        found = [part.clone() for part in tensors(function(*given))]
    assert_same(found, function(*given))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_with_float64_as_the_default(example):
    function, given = example
    with default_dtype(torch.float64):
        found = function(*given)
    assert_same(found, function(*given))


def test_on_another_default_device(example):
    """Nothing is made on the default device, whether that is a GPU or, as here, has no numbers."""
    function, given = example
    with torch.device("meta"):
        found = function(*given)
    assert_same(found, function(*given))


BODY = SMPLA(mannequin())
INFANT, SMALL = SMPL(BODY.asset.at_age(1.0)), SMPLA(random_body(num_vertices=60))
PEOPLE = people.random_people(BODY, 2, seed=5)
WHO = PEOPLE.parameters
SEEN = people.observe(BODY, PEOPLE)
POINTS = BODY.keypoints("coco17", WHO)
MESH = BODY(WHO).vertices
SCAN, CLOUD = MESH[0, ::7], torch.cat((_normal(500, 3)[:, :2], torch.zeros(500, 1)), 1)
LENS_OF = PEOPLE.camera.map(lambda part: part[0])
PIXEL = LENS_OF.project(POINTS[:1]).pixels
SHORT, SHORT_SCANS = (
    [stage._replace(max_iterations=2) for stage in stages]
    for stages in (fitting.SMPLIFY, fitting.SMPLIFY_KIDS)
)
CPU = torch.device("cpu")
TWICE = torch.tensor([1.1, 0.9])
DEPTHS = torch.tensor([[3.0, 4.0, 6.0]]), torch.tensor([[3.0, 4.2, 5.0]]), torch.tensor([[1.7, 1.7, 1.2]])
PRIOR = crowd.HeightPrior(DEPTHS[2], DEPTHS[2] / 10)
LAYER = torch.tensor([0, 1])
TURN = rotations.axis_angle_to_matrix(VECTORS[0, 0])

OF_BODIES: dict[str, Callable[[], Any]] = {
    "fit_keypoints": lambda: fitting.fit_keypoints(
        BODY,
        SEEN.keypoints,
        PEOPLE.camera,
        weights=SEEN.weights,
        start=WHO,
        start_sd={"betas": 0.5},
        stages=SHORT,
    )[:4],
    "fit_sequence": lambda: fitting.fit_sequence(
        BODY, SEEN.keypoints, PEOPLE.camera, weights=SEEN.weights, stages=SHORT
    )[:4],
    "fit_points": lambda: fitting.fit_points(BODY, POINTS, "coco17", max_iterations=5)[:4],
    "fit_vertices": lambda: fitting.fit_vertices(BODY, MESH, max_iterations=5)[:4],
    "fit_measurements": lambda: fitting.fit_measurements(BODY, {"stature": 1.2})[1:],
    "fit_plane": lambda: fitting.fit_plane(CLOUD),
    "fit_scans": lambda: (
        fitting.fit_scans(BODY, [SCAN], LENS_OF, keypoints=PIXEL, stages=SHORT_SCANS[:1]).vertices
    ),
    "convert": lambda: fitting.convert(WHO, BODY, INFANT, max_iterations=5)[:4],
    "refine_crowd": lambda: crowd.refine_crowd(POINTS, LENS_OF, POINTS[:, 0], layer=LAYER, max_iterations=5),
    "place_people": lambda: crowd.place_people(*DEPTHS, PRIOR),
    "rescale": lambda: crowd.rescale(BODY, WHO, TWICE, PEOPLE.camera),
    "random_people": lambda: people.random_people(BODY, 3, seed=5, together=[1, 2], truncated=0.5),
    "observe": lambda: people.observe(BODY, PEOPLE, occluders=0.5, swapped=0.5, borrowed=0.5, stray=0.5),
    "move": lambda: BODY.move(WHO, TURN),
    "joint_limits_prior": lambda: losses.joint_limits_prior(age_offset=0.5)(POSE),
    "for_joints": lambda: losses.joint_limits_prior().for_joints(BODY.asset.joint_names[1:9])(POSE[:, :24]),
    "Measurements": lambda: measure.Measurements(BODY.asset)(MESH),
}
CONTEXTS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "another device": lambda: torch.device("meta"),
}


@functools.cache
def outside(name: str) -> Any:
    return OF_BODIES[name]()


@pytest.mark.parametrize("name", OF_BODIES)
def test_results_of_functions_of_bodies_can_be_used_in_training(name):
    assert not any(part.is_inference() for part in tensors(outside(name)))


@pytest.mark.parametrize("name", OF_BODIES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_functions_of_bodies_in_contexts(name, context):
    with CONTEXTS[context]():
        found = OF_BODIES[name]()
    assert_same(found, outside(name))


CACHED: dict[Any, Callable[[Tensor], Any]] = {
    lbs._tree: lambda one: lbs.tree_of((-1, 0, 1), CPU)(one * MATRICES[:, :3], VECTORS[:, :3]),
    rotations._constants_on: lambda one: rotations.inverse_right_jacobian(one * VECTORS),
    deform._kept_age_pieces: lambda one: BODY.keypoints("smpl24", age_offset=one * VECTORS[:, 0]),
    terms._bend_signs: lambda one: one * POSE @ terms.HyperextensionPrior(BODY).signs.mT,
    find_patches: lambda one: find_patches(BODY.asset).centers(one * MESH),
    correspond: lambda one: BODY.keypoints(
        correspond(BODY.asset, INFANT.asset).source, transl=one * A3[0, :1]
    ),
}
"""Functions whose results are kept, and a use of each, differentiable by a factor of 1."""
FIRST = {**CONTEXTS, "fake tensors": FakeTensorMode, "no gradients": torch.no_grad}


def used(cached: Any) -> list[Tensor]:
    one = torch.ones((), requires_grad=True)
    found = tensors(CACHED[cached](one))
    return [*found, *torch.autograd.grad([part.sum() for part in found], one)]


@functools.cache
def used_alone(cached: Any) -> list[Tensor]:
    cached.cache_clear()
    return used(cached)


@pytest.mark.parametrize("cached", CACHED, ids=lambda cached: cached.__name__)
def test_what_is_kept_does_not_depend_on_the_transforms_of_the_first_call(cached):
    expected = used_alone(cached)
    cached.cache_clear()
    with contextlib.suppress(Exception):  # such as: a search asks for numbers, which a transform has not
        torch.func.hessian(lambda one: sum(part.sum() for part in tensors(CACHED[cached](one))))(
            torch.ones(1)
        )
    assert_same(used(cached), expected)


@pytest.mark.parametrize("cached", CACHED, ids=lambda cached: cached.__name__)
@pytest.mark.parametrize("context", FIRST)
def test_what_is_kept_does_not_depend_on_the_context_of_the_first_call(cached, context):
    expected = used_alone(cached)
    cached.cache_clear()
    with FIRST[context](), contextlib.suppress(Exception):  # such as: other tensors than fake ones are there
        CACHED[cached](torch.ones(()))
    assert_same(used(cached), expected)


def test_all_that_is_kept_is_tested():
    """The others keep NumPy arrays, layouts and numbers."""
    found = set()
    for name in (
        "assets",
        "rotations",
        "engine",
        "losses",
        "optim",
        "fitting",
        "crowd",
        "nets",
        "people",
        "compat",
    ):
        module = importlib.import_module(f"agebody.{name}")
        for part in [module, *_modules_of(module)]:
            found |= {key for key, value in vars(part).items() if hasattr(value, "cache_clear")}
    assert found - {cached.__name__ for cached in CACHED} == {"mannequin", "joint_layout"}


def _modules_of(package: Any) -> list[Any]:
    folders = getattr(package, "__path__", ())
    return [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(folders, f"{package.__name__}.")
    ]


def weighted(name: str) -> tuple[Callable[..., Any], Any] | None:
    """A call with weights of one for each entry, and these weights; None for an example that passes none."""
    function, given = EXAMPLES[name]
    module, _, own = name.rpartition(".")
    public = getattr(importlib.import_module(f"agebody.{module}".rstrip(".")), own)
    if (
        getattr(function, "func", function) is not public
        or "weights" not in inspect.signature(public).parameters
    ):
        return None
    for dims in range(given[0].dim() + 1):
        ones = torch.ones(given[0].shape[:dims])
        with contextlib.suppress(ValueError):
            function(*given, weights=ones)
            return (lambda weights: function(*given, weights=weights)), ones
    raise AssertionError(name)


def test_invalid_weights_are_refused(unchecked):
    """Negative ones would turn a loss round without a word, and NaN would count in whatever counts."""
    calls = {name: found for name in EXAMPLES if (found := weighted(name)) is not None}
    assert len(calls) > 35
    for name, (call, ones) in calls.items():
        for wrong in (-1.0, torch.nan, torch.inf):
            weights = ones.clone()
            weights.view(-1)[-1] = wrong
            with pytest.raises(ValueError, match="weights: expected finite numbers of 0 or more") as error:
                call(weights)
            assert is_refusal(error.value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_its_values_in_float32(example, dtype, unchecked):
    function, given = example
    low = [part.to(dtype) for part in given]
    found, expected = function(*low), function(*(part.float() for part in low))
    assert_same(found, expected)


@pytest.mark.parametrize(
    "other", [Tensor.numpy, Tensor.tolist, lambda _: None, lambda part: part[None, None]]
)
def test_wrong_tensors_are_refused(example, other, unchecked):
    function, given = example
    for i, part in enumerate(given):
        wrong = other(part)
        found = _or_refusal(function, [*given[:i], wrong, *given[i + 1 :]])
        if isinstance(wrong, Tensor) or wrong is None or isinstance(found, Refused):
            continue  # another batch may broadcast, and None may be a default or an unknown age
        numbers = torch.as_tensor(found, dtype=torch.float64)  # of ages, which may be numbers
        assert_same(numbers, function(*given).double(), rtol=1e-5, atol=1e-5)


def test_of_mixed_types_works_or_is_refused(example, unchecked):
    function, given = example
    for types in (
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
    ):
        mixed = [part.to(types[min(i, 1)]) for i, part in enumerate(given)]
        found = _or_refusal(function, mixed)
        if not isinstance(found, Refused):
            expected = function(*(part.double() for part in mixed))
            assert_same(found, expected, rtol=1e-3, atol=1e-3, check_dtype=False)


def test_of_nobody_means_are_unknown_and_losses_nothing(unchecked):
    for name, (function, given) in EXAMPLES.items():
        count = max((len(part) for part in given if part.dim()), default=0)
        found = _or_refusal(
            function, [part[:0] if part.dim() and len(part) == count else part for part in given]
        )
        if not isinstance(found, Refused):  # such as triangles of no vertices
            unknown = any(bool(part.isnan().any()) for part in tensors(found) if part.is_floating_point())
            assert not unknown or name.startswith("metrics."), name


METRICS = [name for name in EXAMPLES if hasattr(getattr(metrics, name.partition(".")[2], None), "errors")] + [
    "metrics.pcdr"
]


@pytest.mark.parametrize("name", METRICS)
def test_what_is_not_a_number_is_neither_right_nor_wrong(name):
    function, given = EXAMPLES[name]
    broken = given[0].clone()
    broken[0] = torch.nan
    assert function(broken, *given[1:]).isnan().any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in UNTRACED])
def test_a_trace_follows_its_inputs(name, unchecked):  # sizes are tensors while tracing
    function, given = EXAMPLES[name]
    others = [part.flip(0) if part.dim() else part + 0.1 for part in given]
    traced = torch.jit.trace(
        lambda *given: tuple(tensors(function(*given))), tuple(others), check_trace=False
    )
    expected = function(*given)
    assert_same(traced(*given), expected, rtol=1e-5, atol=1e-5)
