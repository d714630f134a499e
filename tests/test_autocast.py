"""Under autocast, searches, measures, cameras and metrics compute in their arguments' precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from agebody import SMPL, SMPLA, cameras, fitting, losses, mannequin, measure, metrics, rotations
from agebody.losses.parameters import rotation_angle
from agebody.measure.sections import Section
from agebody.mesh import closest as proximity
from agebody.metrics.alignment import Similarity, best_scale, nearest_rotation


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PRED, TARGET = _normal(3, 17, 3), _normal(3, 17, 3, seed=1)
TURNS = rotations.axis_angle_to_matrix(_normal(3, 3, seed=2))
PLACES = _normal(3, 3, seed=3)
CAMERA = cameras.Camera(torch.full((2,), 500.0), torch.full((2,), 256.0), TURNS, PLACES + 6)
FACES = torch.arange(900).reshape(300, 3)
SCRAPS = (_normal(300, 1, 3) + 0.03 * _normal(300, 3, 3, seed=5)).flatten(0, 1)
SECTION = Section(PRED, PRED.roll(1, -2), torch.ones(3, 17, dtype=torch.bool))
POSES = 0.3 * _normal(40, 69, seed=4)
GAUSSIAN = losses.MahalanobisPrior.from_poses(POSES)
MIXTURE = losses.MaxMixturePrior.from_poses(POSES, 2)

CASES: dict[str, Callable[[], Any]] = {
    "procrustes": lambda: metrics.procrustes(PRED, TARGET),
    "similarity": lambda: Similarity(TURNS, torch.ones(3), PLACES).apply(PRED),
    "best_scale": lambda: best_scale(PRED, TARGET),
    "pa_mpjpe": lambda: metrics.pa_mpjpe(PRED, TARGET),
    "n_mpjpe": lambda: metrics.mpjpe(PRED, TARGET, layout="coco17", scale=True),
    "w_mpjpe": lambda: metrics.w_mpjpe(PRED, TARGET),
    "root_trajectory_error": lambda: metrics.root_trajectory_error(PRED, TARGET),
    "oks": lambda: metrics.oks(PRED[..., :2], TARGET[..., :2], torch.ones(3)),
    "closest_points": lambda: proximity.closest_points(_normal(2000, 3), SCRAPS, FACES, backend="torch"),
    "visible_vertices": lambda: proximity.visible_vertices(SCRAPS, FACES, PLACES, backend="torch"),
    "tape_length": lambda: measure.section_length(SECTION, tape=PLACES),
    "to_camera": lambda: CAMERA.to_camera(PRED),
    "to_world": lambda: CAMERA.to_world(PRED),
    "project": lambda: CAMERA.project(PRED),
    "position": lambda: CAMERA.position,
    "look_at": lambda: cameras.Camera.look_at(PLACES, PLACES.roll(1, 0), size=(64, 64)),
    "from_matrix": lambda: cameras.Camera.from_matrix(CAMERA.intrinsics, CAMERA.world_to_camera),
    "convert_extrinsics": lambda: cameras.convert_extrinsics(
        CAMERA.world_to_camera, "agebody", "opengl", direction="world_to_camera", result="camera_to_world"
    ),
    "axis_angle_to_matrix": lambda: rotations.axis_angle_to_matrix(_normal(3000, 3)),
    "rotation_angle": lambda: rotation_angle(TURNS, TURNS.roll(1, 0)),
    "normal prior": lambda: (GAUSSIAN(POSES), GAUSSIAN.residuals(POSES)),
    "mixture prior": lambda: (MIXTURE(POSES), MIXTURE.residuals(POSES)),
}


def _in_autocast(compute: Callable[[], Any]) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return compute()


@pytest.mark.parametrize("name", CASES)
def test_nothing_changes(name):
    torch.testing.assert_close(_in_autocast(CASES[name]), CASES[name](), rtol=0, atol=0, equal_nan=True)


def test_measurements(mannequin_asset):
    body = SMPL(mannequin_asset)
    surface = body.shape(betas=0.5 * _normal(2, 10)).rest_vertices
    of_body = measure.Measurements(mannequin_asset)
    expected = of_body(surface)
    torch.testing.assert_close(_in_autocast(lambda: of_body(surface)), expected, rtol=0, atol=0)

    asked = {"stature": expected[:, of_body.names.index("stature")]}
    found = _in_autocast(lambda: fitting.fit_measurements(body, asked))
    torch.testing.assert_close(found[1:], fitting.fit_measurements(body, asked)[1:], rtol=0, atol=0)


def test_gradient_of_an_alignment():
    def gradient() -> Tensor:
        points = PRED.clone().requires_grad_()
        rotation = nearest_rotation(points[:, :3])
        return torch.autograd.grad((rotation * TURNS).sum(), points)[0]

    torch.testing.assert_close(_in_autocast(gradient), gradient(), rtol=0, atol=0)


BODY = SMPLA(mannequin())
SHAPES = {"betas": (10,), "age_offset": (), "body_pose": (23, 3), "global_orient": (3,), "transl": (3,)}
GIVEN = {name: 0.3 * _normal(2, *shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
OF_BODIES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "vertices": lambda given: BODY(**given).vertices,
    "joint_transforms": lambda given: BODY(**given).joint_transforms,
    "keypoints": lambda given: BODY.keypoints("coco17", **given),
    "regress": lambda given: BODY.regress("coco17", BODY(**given).vertices),
    "rest surface": lambda given: BODY.shape(betas=given["betas"]).rest_vertices,
    "move": lambda given: BODY.shape(betas=given["betas"]).move(TURNS[:2], transl=given["transl"])[1],
    "normal prior": lambda given: GAUSSIAN(given["body_pose"]),
    "mixture prior": lambda given: MIXTURE(given["body_pose"]),
}


@pytest.mark.parametrize("name", OF_BODIES)
def test_a_backward_pass(name):
    given = {name: part.clone().requires_grad_() for name, part in GIVEN.items()}
    points = OF_BODIES[name](given)
    pull = torch.full_like(points, 0.7)

    def gradients() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(points, [*given.values()], pull, retain_graph=True, allow_unused=True)

    found, expected = (
        [g for g in way() if g is not None] for way in (lambda: _in_autocast(gradients), gradients)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
