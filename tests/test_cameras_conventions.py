"""Conventions of others, against what their documentation says, written out."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from agebody.cameras import (
    Camera,
    convert_axes,
    convert_extrinsics,
    convert_pixels,
    from_pytorch3d,
    to_pytorch3d,
)

F64 = torch.float64
AXES = ("agebody", "opencv", "colmap", "opengl", "blender", "pytorch3d")

# Where right, down and forward point in each, as its documentation says.
DIRECTIONS = {
    "agebody": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "opencv": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "colmap": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "opengl": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "blender": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "pytorch3d": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
}


def tensor(values):
    return torch.tensor(values, dtype=F64)


def pose(seed=0, batch=()):
    generator = np.random.default_rng(seed)
    matrix = np.zeros((*batch, 4, 4))
    rotations = Rotation.from_rotvec(generator.normal(size=(math.prod(batch), 3))).as_matrix()
    matrix[..., :3, :3] = rotations.reshape(*batch, 3, 3)
    matrix[..., :3, 3] = generator.normal(size=(*batch, 3))
    matrix[..., 3, 3] = 1
    return tensor(matrix)


@pytest.mark.parametrize("source", AXES)
@pytest.mark.parametrize("target", AXES)
def test_right_down_and_forward_stay_so(source, target):
    found = convert_axes(tensor(DIRECTIONS[source]), source, target)
    assert found.tolist() == [list(map(float, axis)) for axis in DIRECTIONS[target]]


@given(st.sampled_from(AXES), st.sampled_from(AXES), st.integers(0, 100))
def test_poses_move_points_as_axes_do(source, target, seed):
    matrix = pose(seed, (2,))
    world = tensor(np.random.default_rng(seed).normal(size=(2, 1, 3)))

    def moved(matrix):
        return (world @ matrix[..., :3, :3].mT) + matrix[..., None, :3, 3]

    to_camera = convert_extrinsics(matrix, source, target, direction="world_to_camera")
    torch.testing.assert_close(moved(to_camera), convert_axes(moved(matrix), source, target))
    # The same camera the other way round.
    inverse = torch.linalg.inv(matrix)
    to_world = convert_extrinsics(inverse, source, target, direction="camera_to_world")
    torch.testing.assert_close(to_world, torch.linalg.inv(to_camera))
    torch.testing.assert_close(to_world[..., :3, 3], inverse[..., :3, 3])
    turned = {"direction": "world_to_camera", "result": "camera_to_world"}
    torch.testing.assert_close(convert_extrinsics(matrix, source, target, **turned), to_world)
    turned = {"direction": "camera_to_world", "result": "world_to_camera"}
    torch.testing.assert_close(convert_extrinsics(inverse, source, target, **turned), to_camera)
    assert (torch.det(to_world[..., :3, :3]) > 0).all()
    back = convert_extrinsics(to_camera[..., :3, :], target, source, direction="world_to_camera")
    torch.testing.assert_close(back, matrix)


def test_inverse_of_poses():
    matrix = pose(3, (2, 2))
    turned = {"direction": "world_to_camera", "result": "camera_to_world"}
    for part in (matrix, matrix[..., :3, :]):
        found = convert_extrinsics(part, "agebody", "agebody", **turned)
        torch.testing.assert_close(found, torch.linalg.inv(matrix))


def test_blender_cameras_project_as_in_blender():
    # Blender's default camera orientation looks down; one at (0, -5, 1), turned by 90 degrees about x, looks
    # along +y with z up.
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    turned[:3, 3] = (0, -5, 1)
    pose = convert_extrinsics(
        tensor(turned), "blender", "agebody", direction="camera_to_world", result="world_to_camera"
    )
    camera = Camera.from_matrix(tensor([[500, 0, 320], [0, 500, 240], [0, 0, 1]]), pose)
    ahead, right, above = camera.project(tensor([[0, 0, 1], [1, 0, 1], [0, 0, 2]])).pixels.tolist()
    assert ahead == pytest.approx([320, 240])
    assert right == pytest.approx([420, 240])
    assert above == pytest.approx([320, 140])


def test_pixel_centres():
    first = torch.zeros(1, 2, dtype=F64)  # where OpenCV has the centre of the first pixel
    for name in ("agebody", "colmap", "pytorch3d"):
        assert convert_pixels(first, "opencv", name).tolist() == [[0.5, 0.5]]
        assert convert_pixels(first + 0.5, name, "opencv").tolist() == [[0.0, 0.0]]
        assert convert_pixels(first, name, "agebody").tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (512, 512)])
def test_pytorch3ds_cameras_see_the_same(size):
    camera = Camera.from_matrix(
        tensor([[[500, 0, 300], [0, 520, 250], [0, 0, 1]]]).expand(2, 3, 3), pose(1, (2,))
    )
    points = camera.to_world(
        tensor(np.random.default_rng(0).normal(size=(2, 5, 3))) * 0.5 + tensor([0, 0, 4])
    )
    theirs = to_pytorch3d(camera, size)
    assert theirs._fields == ("R", "T", "focal_length", "principal_point")
    # PyTorch3D: row vectors; +x left, +y up; NDC in half the shorter side; screen from the top left corner.
    view = points @ theirs.R + theirs.T[:, None]
    ndc = theirs.focal_length[:, None] * view[..., :2] / view[..., 2:] + theirs.principal_point[:, None]
    screen = tensor(size) / 2 - ndc * min(size) / 2
    torch.testing.assert_close(screen, camera.project(points).pixels)
    for part, expected in zip(from_pytorch3d(theirs, size), camera, strict=True):
        if expected is not None:
            torch.testing.assert_close(part, expected)
    assert (torch.det(theirs.R) > 0).all()


def test_sizes_of_a_batch():
    camera = Camera(tensor([[500, 500], [500, 500]]), tensor([[320, 240], [320, 240]]))
    sizes = tensor([[640, 480], [400, 800]])
    both = to_pytorch3d(camera, sizes)
    for i, size in enumerate(((640, 480), (400, 800))):
        one = to_pytorch3d(Camera(camera.focal[i], camera.center[i]), size)
        torch.testing.assert_close(both.focal_length[i], one.focal_length)
        torch.testing.assert_close(both.principal_point[i], one.principal_point)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convert_axes(torch.zeros(3), "opencv", "unreal"), "target: expected one of agebody, opencv"),
        (lambda: convert_axes(torch.zeros(2), "opencv", "opengl"), "points: expected shape (*batch, 3)"),
        (
            lambda: convert_pixels(torch.zeros(2), "opengl", "opencv"),
            "source: expected one of agebody, opencv",
        ),
        (
            lambda: convert_extrinsics(torch.eye(3), "opencv", "opengl", direction="world_to_camera"),
            "matrix: ",
        ),
        (
            lambda: convert_extrinsics(torch.eye(4), "opencv", "opengl", direction="inwards"),
            "direction: expected",
        ),
        (
            lambda: to_pytorch3d(Camera.guess((1, 1))._replace(distortion=torch.zeros(4)), (1, 1)),
            "expected no distortion",
        ),
    ],
)
def test_errors_name_the_argument(call, message, unchecked):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
