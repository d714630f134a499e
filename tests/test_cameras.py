"""The camera and its lens, against formulas written again in NumPy."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from agebody.cameras import Camera, distortion, field_limit
from agebody.cameras.camera import fov_to_focal
from agebody.cameras.distortion import undistort

F64 = torch.float64
LENSES = {
    "barrel": (-0.3, 0.1, 0.002, -0.001, 0.01),
    "strong barrel": (-0.5, 0.0, 0.0, 0.0),
    "pincushion": (0.3, 0.1, 0.0, 0.01, 0.05),
    "rational": (1.2, 0.3, 0.001, -0.002, 0.02, 1.5, 0.6, 0.1),
    "pole": (0.0, 0.0, 0.0, 0.0, 0.0, -0.8, 0.0, 0.0),
}
lenses = pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES.keys())


def tensor(values):
    return torch.tensor(values, dtype=F64)


def distort(points, lens):
    return distortion.distort(points, lens)[0]


def camera(seed=0, batch=(), lens=None):
    """A camera some metres in front of the origin, which looks past it."""
    generator = np.random.default_rng(seed)
    rotation = Rotation.from_rotvec(generator.normal(scale=0.2, size=(math.prod(batch), 3))).as_matrix()
    shift = generator.normal(size=(*batch, 3)) * 0.2 + [0, 0, 4]
    return Camera(
        focal=tensor(generator.uniform(400, 600, (*batch, 2))),
        center=tensor(generator.uniform(200, 300, (*batch, 2))),
        rotation=tensor(rotation.reshape(*batch, 3, 3)),
        translation=tensor(shift),
        distortion=None if lens is None else tensor(lens),
    )


def opencv_distort(x, y, coefficients):
    """The formula of OpenCV's documentation, one point at a time."""
    k1, k2, p1, p2, k3, k4, k5, k6 = [*coefficients, 0, 0, 0, 0][:8]
    r2 = x * x + y * y
    factor = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
        y * factor + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
    )


def disc(radius, count=40, seed=0):
    """Points up to a radius."""
    generator = np.random.default_rng(seed)
    angle, r = generator.uniform(0, 2 * np.pi, count), radius * np.sqrt(generator.uniform(0, 1, count))
    return tensor(np.stack([r * np.cos(angle), r * np.sin(angle)], -1))


# Projection


@pytest.mark.parametrize("lens", [None, LENSES["barrel"], LENSES["rational"]])
def test_projection_is_the_formula(lens):
    cameras = camera(batch=(2,), lens=lens)
    points = tensor(np.random.default_rng(1).normal(size=(3, 2, 5, 3)))
    found = cameras.project(points)
    for i, j, k in np.ndindex(3, 2, 5):
        x, y, z = cameras.rotation[j].numpy() @ points[i, j, k].numpy() + cameras.translation[j].numpy()
        u, v = x / z, y / z
        if lens is not None:
            u, v = opencv_distort(u, v, lens)
        expected = np.array([u, v]) * cameras.focal[j].numpy() + cameras.center[j].numpy()
        # Some ten operations, each with an error of 1e-16 of numbers up to 1e3.
        np.testing.assert_allclose(found.pixels[i, j, k], expected, rtol=0, atol=1e-11)
        assert found.depth[i, j, k].item() == pytest.approx(z, abs=1e-14)


def test_bevs_camera_has_its_published_focal_length():
    focal = Camera.from_fov(math.radians(60), (512, 512)).focal
    assert focal.tolist() == pytest.approx([443.4, 443.4], abs=0.01)
    # The top of the field of view is the top of the image.
    above = torch.tensor([[0.0, -math.tan(math.radians(30)), 1.0]])
    assert Camera.from_fov(math.radians(60), (512, 512)).project(above).pixels[0].tolist() == pytest.approx(
        [256, 0], abs=1e-3
    )


@given(
    fov=st.floats(0.05, 3.0),
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    axis=st.sampled_from(["vertical", "horizontal", "diagonal"]),
)
def test_fields_of_view_and_focal_lengths_are_inverses(fov, width, height, axis):
    focal = fov_to_focal(tensor(fov), (width, height), axis=axis)
    extent = {"vertical": height, "horizontal": width, "diagonal": math.hypot(width, height)}[axis]
    assert focal.item() == pytest.approx(extent / 2 / math.tan(fov / 2))
    camera = Camera(focal.expand(2), tensor([width / 2, height / 2]))
    assert camera.fov((width, height), axis=axis).item() == pytest.approx(fov)
    batch = Camera.from_fov(tensor([fov, 1.0]), (width, height), axis=axis)
    torch.testing.assert_close(batch.fov((width, height), axis=axis), tensor([fov, 1.0]))


def test_each_side_of_an_image_has_its_field_of_view():
    camera = Camera(tensor([100, 50]), tensor([100, 50]))
    edges = camera.unproject(tensor([[0.0, 0.0], [200, 100]]), torch.ones(2, dtype=torch.float64))
    for axis, kept in (("horizontal", [0, 2]), ("vertical", [1, 2]), ("diagonal", [0, 1, 2])):
        first, second = torch.nn.functional.normalize(edges[:, kept], dim=-1)
        expected = torch.acos((first * second).sum())
        torch.testing.assert_close(camera.fov((200, 100), axis=axis), expected)


def test_cliffs_guess_is_the_diagonal():
    guess = Camera.guess((1600, 900))
    assert guess.focal.tolist() == pytest.approx([math.hypot(1600, 900)] * 2)
    assert guess.center.tolist() == [800, 450]
    batch = Camera.guess(tensor([[640, 480], [100, 100]]))
    torch.testing.assert_close(batch.focal[:, 0], tensor([800, math.sqrt(2) * 100]))
    angle = guess.fov((1600, 900), axis="diagonal")
    assert math.degrees(angle) == pytest.approx(53.13, abs=0.01)


def test_points_are_visible_in_front_and_inside():
    view = Camera(tensor([100, 100]), tensor([50, 40]))
    points = tensor(
        [[0, 0, 1], [0, 0, -1], [0, 0, 0.05], [0.49, 0, 1], [0.5, 0, 1], [-0.5, 0, 1], [0, 0.41, 1]]
    )
    projection = view.project(points, size=(100, 80))
    assert projection.visible.tolist() == [True, False, False, True, False, True, False]
    assert view.project(points).visible.tolist() == [True, False, False, True, True, True, True]
    assert projection.depth.tolist() == points[:, 2].tolist()
    assert view.project(points, size=tensor([[100, 80], [10, 10]])).visible.sum(-1).tolist() == [3, 0]


@pytest.mark.parametrize("lens", [None, *LENSES.values()])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_values_are_bounded_at_and_behind_the_camera(lens, dtype):
    view = Camera(tensor([1000, 1000]), tensor([500, 500]), distortion=None if lens is None else tensor(lens))
    view = view.to(dtype)
    depths = [-1e6, -10.0, -1.0, -1e-3, -1e-20, 0.0, 1e-20, 1e-3, 0.1, 0.2, 1e6]
    points = torch.tensor([[0.5, -0.3, z] for z in depths], dtype=dtype, requires_grad=True)
    projection = view.project(points)
    (gradient,) = torch.autograd.grad(projection.pixels.abs().sum(), points)
    assert projection.pixels.isfinite().all()
    assert gradient.isfinite().all()
    assert projection.visible[:8].sum() == 0
    if lens is None:
        # As promised: 1 / Z < 2 / near and slope <= 1 / near^2, with f = 1000 and near = 0.1 m.
        assert (projection.pixels - 500).abs().max() <= 1000 * 0.5 * 2 / 0.1
        assert gradient[:, :2].abs().max() <= 1000 * 2 / 0.1 * (1 + 1e-6)
        assert gradient[:, 2].abs().max() <= 1000 * 0.8 / 0.1**2 * (1 + 1e-6)


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_lens_moves_points_beside_and_behind_the_camera_little(lens, dtype):
    plain = Camera(tensor([1000, 1200]), tensor([0, 0])).to(dtype)
    depth, side = torch.meshgrid(
        torch.tensor([-1e6, -2.0, -0.1, 0.0, 0.05, 0.3], dtype=dtype),
        torch.tensor([0.1, 1.0, 30.0, 1e4], dtype=dtype),
        indexing="ij",
    )
    points = torch.stack((side, -0.7 * side, depth), -1).reshape(-1, 3).requires_grad_()
    found = []
    for view in (plain, plain._replace(distortion=torch.tensor(lens, dtype=dtype))):
        pixels = view.project(points).pixels
        found.append((pixels.norm(dim=-1), *torch.autograd.grad(pixels.abs().sum(), points)))
    (near, slopes), (moved, lens_slopes) = found
    assert (moved <= 12 * near).all()  # tenfold by the radial factor, the rest by the tangential terms
    # Just inside the limit, where L = 10, the slope of r L is L + r dL/dr: 70 for r^6, and 190 for the pole.
    assert (lens_slopes.abs().amax(-1) <= 200 * slopes.abs().amax(-1)).all()


def test_projection_is_smooth_at_the_near_plane_and_perspective_beyond():
    view = Camera(tensor([1.0, 1.0]), tensor([0.0, 0.0]))

    def inverse(depth):
        return view.project(torch.stack((torch.ones_like(depth), depth, depth), -1)[None], near=0.5).pixels[0]

    depth = tensor([0.5 - 1e-9, 0.5, 0.5 + 1e-9]).requires_grad_()
    values = torch.stack([inverse(d) for d in depth])[:, 0]
    (slopes,) = torch.autograd.grad(values.sum(), depth)
    torch.testing.assert_close(values, torch.full((3,), 2.0, dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close(slopes, torch.full((3,), -4.0, dtype=F64), rtol=0, atol=1e-7)
    assert inverse(tensor(3.0))[0].item() == pytest.approx(1 / 3)
    below = torch.linspace(-20, 0.5, 400, dtype=F64)
    values = torch.stack([inverse(d)[0] for d in below])
    assert (values.diff() < 0).all()
    assert values.max() < 4


def test_the_gradient_brings_a_point_from_behind_into_view():
    view = Camera(tensor([500, 500]), tensor([250, 250]))
    target = tensor([[300.0, 280.0]])
    point = tensor([[0.4, 0.3, -1.0]]).requires_grad_()
    optimizer = torch.optim.Adam([point], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (view.project(point).pixels - target).abs().sum().backward()
        optimizer.step()
    projection = view.project(point, size=(500, 500))
    assert projection.visible.all()
    assert (projection.pixels - target).abs().max() < 5


@pytest.mark.parametrize("lens", [None, *LENSES.values()])
def test_unprojection_inverts_projection(lens):
    cameras = camera(batch=(3,), lens=lens)
    size = tensor([[600.0, 600.0]])
    pixels = tensor(np.random.default_rng(2).uniform(0, 500, (3, 7, 2)))
    depth = tensor(np.random.default_rng(3).uniform(0.2, 9, (3, 7)))
    points = cameras.unproject(pixels, depth)
    projection = cameras.project(points, size=size)
    keep = projection.visible  # outside the view of a lens, see the tests of lenses
    assert keep.float().mean() > 0.6
    torch.testing.assert_close(projection.pixels[keep], pixels[keep], rtol=0, atol=1e-8)
    torch.testing.assert_close(projection.depth, depth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lens", [None, LENSES["barrel"]])
def test_gradients_of_projection(lens):
    points = torch.tensor(
        [[0.3, 0.2, 0.1], [-0.5, 0.4, -3.2], [0.2, 0.3, -4.4], [0.1, 0.5, -9]], dtype=F64, requires_grad=True
    )
    base = camera(lens=lens)
    parts = [part.clone().requires_grad_() for part in base if part is not None]

    def pixels(points, *parts):
        return Camera(*parts).project(points).pixels

    # The limit of the lens counts as constant, so its coefficients have exact gradients inside it only.
    seen = base.project(points).visible
    assert seen.tolist() == [True, True, False, False]
    assert torch.autograd.gradcheck(pixels, (points[:2].detach().requires_grad_(), *parts))
    assert torch.autograd.gradcheck(lambda p: pixels(p, *base[:4]), (points,))
    assert torch.autograd.gradgradcheck(lambda p: pixels(p, *base), (points[:2].detach().requires_grad_(),))


def test_world_and_camera_coordinates():
    cameras = camera(batch=(2,))
    points = tensor(np.random.default_rng(4).normal(size=(2, 4, 3)))
    homogeneous = torch.cat((points, torch.ones(2, 4, 1, dtype=F64)), -1)
    expected = (homogeneous @ cameras.world_to_camera.mT)[..., :3]
    torch.testing.assert_close(cameras.to_camera(points), expected)
    torch.testing.assert_close(cameras.to_world(expected), points)
    at_camera = cameras.to_camera(cameras.position[:, None])
    torch.testing.assert_close(at_camera, torch.zeros_like(at_camera), rtol=0, atol=1e-14)
    still = Camera(tensor([1, 1]), tensor([0, 0]))
    torch.testing.assert_close(still.world_to_camera, torch.eye(4, dtype=F64))
    assert still.to_camera(points) is points


def test_matrices_and_back():
    cameras = camera(batch=(2, 3), lens=LENSES["barrel"])
    again = Camera.from_matrix(cameras.intrinsics, cameras.world_to_camera, distortion=cameras.distortion)
    for part, expected in zip(again, cameras, strict=True):
        torch.testing.assert_close(part, expected)
    assert Camera.from_matrix(cameras.intrinsics).rotation is None
    torch.testing.assert_close(
        Camera.from_matrix(cameras.intrinsics, cameras.world_to_camera[..., :3, :]).translation,
        cameras.translation,
    )


def test_look_at_puts_the_target_in_the_middle_and_up_above():
    view = Camera.look_at((1.0, 2.0, 3.0), (0.0, 1.0, -1.0), size=(200, 100), fov=0.5)
    target, above = view.project(torch.tensor([[0.0, 1, -1], [0, 1.1, -1]])).pixels.tolist()
    assert target == pytest.approx([100, 50], abs=1e-4)
    assert above[0] == pytest.approx(100, abs=1e-4)
    assert above[1] < 50
    assert view.position.tolist() == pytest.approx([1, 2, 3], abs=1e-6)
    assert torch.det(view.rotation).item() == pytest.approx(1)
    assert view.fov((200, 100)).item() == pytest.approx(0.5)
    eyes = tensor([[1, 2, 3], [-4, 0, 1]])
    batch = Camera.look_at(eyes, (0.0, 0.0, 0.0), size=(10, 10), fov=tensor([0.5, 1]))
    torch.testing.assert_close(batch.position, eyes)
    assert batch.focal.shape == (2, 2)


def test_resizing_and_cropping_move_the_image_with_the_points():
    cameras = camera(batch=(2,), lens=LENSES["barrel"])
    points = tensor(np.random.default_rng(5).normal(size=(2, 6, 3)))
    pixels = cameras.project(points).pixels
    torch.testing.assert_close(cameras.resized(0.25).project(points).pixels, pixels * 0.25)
    both = tensor([[0.5, 2.0]])
    torch.testing.assert_close(cameras.resized(both).project(points).pixels, pixels * both)
    box = tensor([[10, 20, 110, 170], [-5, -5, 45, 95]])
    torch.testing.assert_close(cameras.cropped(box).project(points).pixels, pixels - box[:, None, :2])
    resized = cameras.cropped(box, size=(224, 256)).project(points).pixels
    scale = tensor([[[2.24, 256 / 150]], [[224 / 50, 2.56]]])
    torch.testing.assert_close(resized, (pixels - box[:, None, :2]) * scale)


@pytest.mark.parametrize("size", [None, (640, 480), tensor([640, 480])])
@pytest.mark.parametrize("points", [(5, 3), (1, 5, 3), (3, 5, 3)], ids=str)
@pytest.mark.parametrize("batched", [*Camera._fields, "nothing"])
def test_every_part_of_a_camera_may_alone_have_a_batch(batched, points, size):
    whole = camera(batch=(3,))._replace(distortion=tensor([LENSES["barrel"], [0.1] * 5, [-0.1] * 5]))
    one = Camera(*(part[0] for part in whole))
    mixed = one if batched == "nothing" else one._replace(**{batched: getattr(whole, batched)})
    cloud = tensor(np.random.default_rng(6).normal(size=points))
    found = mixed.project(cloud, size=size)
    batch = torch.broadcast_shapes(() if batched == "nothing" else (3,), points[:-2])
    assert found.pixels.shape == (*batch, 5, 2)
    assert found.depth.shape == found.visible.shape == (*batch, 5)
    for i in range(batch[0] if batch else 0):
        single = one if batched == "nothing" else one._replace(**{batched: getattr(whole, batched)[i]})
        expected = single.project(cloud.expand(batch[0], 5, 3)[i], size=size)
        for part, other in zip(found, expected, strict=True):
            torch.testing.assert_close(part[i], other)
    back = mixed.unproject(found.pixels, found.depth)
    assert back.shape == (*batch, 5, 3)


def test_batches_of_guesses_angles_and_crops_see_one_cloud():
    cloud = torch.ones(2, 3)
    angles = torch.tensor([0.5, 0.6, 0.7, 0.8])
    sizes = torch.tensor([[640.0, 480], [100, 100], [30, 20]])
    boxes = torch.tensor([[0.0, 0, 100, 50], [10, 10, 60, 70], [5, 5, 6, 6]])
    one = Camera.guess((640, 480))
    for cameras in (
        Camera.from_fov(angles, (640, 480)),
        Camera.guess(sizes),
        one.cropped(boxes),
        one._replace(focal=one.focal.expand(3, 2)).cropped(boxes[0]),
        one.cropped(boxes, size=(224, 256)),
    ):
        found = cameras.project(cloud)
        for i in range(len(cameras.center)):
            expected = Camera(cameras.focal[i], cameras.center[i]).project(cloud)
            for part, other in zip(found, expected, strict=True):
                torch.testing.assert_close(part[i], other)


def test_numbers_are_not_rounded_on_their_way_into_a_camera():
    angle = math.radians(37)
    focal = 240 / math.tan(angle / 2)
    # One float64 rounding each in half an angle, tangent and quotient: some 1e-16 of the value.
    exact = {"rel": 1e-15, "abs": 0}
    size = (640, 480)
    eye = tensor([1, 2, 3])
    for view in (
        Camera.look_at(eye, (0.0, 0.0, 0.0), size=size, fov=angle),
        Camera.look_at((1.0, 2.0, 3.0), eye * 0, size=size, fov=angle),
        Camera.look_at((1.0, 2.0, 3.0), (0.0, 0.0, 0.0), size=size, fov=tensor(angle)),
        Camera.look_at(eye.float(), (0.0, 0.0, 0.0), size=size, fov=tensor(angle)),
        Camera.from_fov(angle, size, dtype=F64),
        Camera.from_fov(angle, tensor(size)),
        Camera.from_fov(tensor(angle), size),
    ):
        assert {part.dtype for part in view if part is not None} == {F64}
        assert view.focal.tolist() == pytest.approx([focal, focal], **exact)
        assert view.center.tolist() == [320, 240]
    assert Camera.guess((1601, 900), dtype=F64).focal[0].item() == pytest.approx(
        math.hypot(1601, 900), **exact
    )
    assert Camera.from_fov(tensor(angle), size, dtype=torch.float32).focal.dtype == torch.float32
    for view in (Camera.guess(size), Camera.from_fov(angle, size), Camera.guess(torch.tensor(size))):
        assert view.focal.dtype == view.center.dtype == torch.float32
    assert Camera.guess(torch.tensor(size)).focal.tolist() == [800, 800]
    assert Camera.guess(torch.tensor(size), dtype=F64).focal.dtype == F64


def test_matrices_of_cameras_whose_parts_broadcast():
    focal, center = tensor([[[500, 510]], [[600, 610]]]), tensor([[1, 2], [3, 4], [5, 6]])
    view = Camera(focal, center, translation=torch.zeros(2, 3, 3, dtype=F64))
    assert view.intrinsics.shape == (2, 3, 3, 3)
    assert view.intrinsics[1, 2].tolist() == [[600, 0, 5], [0, 610, 6], [0, 0, 1]]
    points = tensor([[0.1, -0.2, 2.0]])
    shown = points @ view.intrinsics.mT
    torch.testing.assert_close(view.project(points).pixels, shown[..., :2] / 2)


def test_float32_batches_and_transforms_of_torch():
    view = camera(lens=LENSES["barrel"]).to(torch.float32)
    points = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    together = view.project(points).pixels
    assert together.dtype == torch.float32
    by_vmap = torch.func.vmap(lambda p: view.project(p).pixels)(points)
    torch.testing.assert_close(by_vmap, together)
    # Other sums of float32 numbers up to 1e3: 1e-7 of them, times the steepness 1e1 of a point near the lens.
    double = view.to(F64).project(points.double()).pixels
    torch.testing.assert_close(together.double(), double, rtol=0, atol=2e-2)
    empty = view.project(torch.zeros(0, 5, 3))
    assert empty.pixels.shape == (0, 5, 2)
    assert empty.visible.shape == (0, 5)


# Lenses


@lenses
def test_distortion_is_opencvs_formula(lens):
    points = disc(0.9 * min(field_limit(tensor(lens)).item(), 1.2))
    expected = [opencv_distort(x, y, lens) for x, y in points.tolist()]
    torch.testing.assert_close(distort(points, tensor(lens)), tensor(expected), rtol=1e-13, atol=1e-15)


@lenses
def test_the_limit_is_where_the_radius_stops_growing(lens):
    limit = field_limit(tensor(lens)).item()
    radial = [*lens, 0, 0, 0, 0][:8]
    radial[2] = radial[3] = 0
    r = np.linspace(0, min(limit, 3.0), 2001)
    shown, _ = opencv_distort(r, 0 * r, radial)
    assert (np.diff(shown) > 0).all()
    if math.isfinite(limit):
        beyond, _ = opencv_distort(np.array([limit, limit + 1e-3]), np.zeros(2), radial)
        assert beyond[1] < beyond[0] or beyond[1] > 10 * limit


def test_limits_of_rational_lenses():
    k = np.random.default_rng(0).uniform(-0.3, 0.3, (60, 6))
    s = np.linspace(0, 25, 200_001)
    limits = field_limit(tensor(np.insert(k, [2, 2], 0, axis=1)))
    finite = 0
    for (k1, k2, k3, k4, k5, k6), limit in zip(k, limits.tolist(), strict=True):
        lower = 1 + k4 * s + k5 * s**2 + k6 * s**3
        pole = s[lower <= 0].min(initial=np.inf)
        shown = np.sqrt(s) * (1 + k1 * s + k2 * s**2 + k3 * s**3) / lower
        turn = s[1:][(np.diff(shown) <= 0) & (s[1:] < pole)].min(initial=np.inf)
        wide = s[1:][shown[1:] >= 10 * np.sqrt(s[1:])].min(initial=np.inf)
        expected = math.sqrt(min(turn, pole, wide))
        if limit < 5 or expected < 5:
            finite += 1
            assert limit == pytest.approx(
                expected, abs=1e-2
            )  # the grid's step is 1e-4 of s, flat at the turn
    assert finite > 30


def test_limits_are_the_roots_that_numpy_finds():
    k = np.random.default_rng(1).uniform(-0.3, 0.3, (100, 6)) * np.logspace(0, -4, 100)[:, None]
    found = field_limit(tensor(np.insert(k, [2, 2], 0, axis=1))).tolist()
    farthest = 0.0
    for (k1, k2, k3, k4, k5, k6), limit in zip(k, found, strict=True):
        upper, lower = np.poly1d([k3, k2, k1, 1]), np.poly1d([k6, k5, k4, 1])
        slope = upper * lower + np.poly1d([2, 0]) * (upper.deriv() * lower - upper * lower.deriv())

        def first(polynomial):
            roots = polynomial.roots
            # Real ones come without imaginary part, or in pairs apart by the root of the rounding error.
            real = roots.real[(np.abs(roots.imag) < 1e-7 * np.abs(roots)) & (roots.real > 0)]
            return real.min(initial=np.inf)

        expected = math.sqrt(min(first(slope), first(10 * lower - upper)))
        # Simple roots: the rounding error of a sum of seven terms, over a slope of some hundredths of them.
        assert limit == pytest.approx(expected, rel=1e-11)
        farthest = max(farthest, limit if math.isfinite(limit) else 0)
    assert farthest > 10  # weak lenses fold far out


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("k1", [-1e4, -1.0, -1e-3, -1e-5])
def test_limits_near_and_far(k1, dtype):
    found = field_limit(torch.tensor([k1, 0, 0, 0], dtype=dtype)).item()
    assert found == pytest.approx(math.sqrt(-1 / (3 * k1)), rel=4 * torch.finfo(dtype).eps)


def test_limits_of_known_lenses():
    limits = field_limit(tensor([[-0.3, 0, 0, 0], [0.3, 0.1, 0, 0], [0, 0, 0, 0], [-0.2, -0.1, 0.3, -0.2]]))
    # 1 - 0.9 s = 0; 1 + 0.3 s + 0.1 s^2 = 10; none; 1 - 0.6 s - 0.5 s^2 = 0.
    wide = math.sqrt(-1.5 + math.sqrt(2.25 + 90))
    expected = [math.sqrt(1 / 0.9), wide, math.inf, math.sqrt(-0.6 + math.sqrt(0.36 + 2))]
    assert limits.tolist() == pytest.approx(expected)
    assert field_limit(tensor(LENSES["pole"])).item() == pytest.approx(math.sqrt(0.9 / 0.8))


@lenses
def test_points_outside_the_view_do_not_fold_back(lens):
    coefficients = tensor(lens)
    r = torch.linspace(0, 50, 3000, dtype=F64)
    direction = tensor([math.cos(0.4), math.sin(0.4)])
    shown = distort(r[:, None] * direction, coefficients)
    assert (shown.norm(dim=-1).diff() > 0).all()
    limit = field_limit(coefficients)
    if limit < 50:
        outside = Camera(tensor([1, 1]), tensor([0, 0]), distortion=coefficients).project(
            torch.cat((1.01 * limit * direction, tensor([1.0])))[None]
        )
        assert not outside.visible.any()
        just = limit * torch.tensor([[1 - 1e-9], [1 + 1e-9]], dtype=F64) * direction
        # Steps of 2e-9, times a slope of 2e4 for the lens with a pole and of less than 100 for others.
        atol = 1e-4 if lens is LENSES["pole"] else 1e-6
        torch.testing.assert_close(*distort(just, coefficients), rtol=0, atol=atol)


@lenses
def test_undistortion_inverts_distortion(lens):
    coefficients = tensor(lens)
    limit = min(field_limit(coefficients).item(), 1.5)
    # At 0.95 of the limit the slope of r L is about 0.1: of the digits of float64 one is lost.
    inside = disc(0.95 * limit, 300)
    torch.testing.assert_close(
        undistort(distort(inside, coefficients), coefficients), inside, rtol=0, atol=1e-13
    )
    far = disc(4.0, 300)
    far = far[(far.norm(dim=-1) / field_limit(coefficients) - 1).abs() > 0.05]
    torch.testing.assert_close(undistort(distort(far, coefficients), coefficients), far, rtol=0, atol=1e-11)


@given(
    k=st.lists(st.floats(-0.4, 0.4), min_size=5, max_size=5),
    p=st.lists(st.floats(-0.02, 0.02), min_size=2, max_size=2),
    x=st.floats(-0.8, 0.8),
    y=st.floats(-0.8, 0.8),
)
@settings(max_examples=40)
def test_undistortion_of_any_lens(k, p, x, y):
    lens = tensor([k[0], k[1], *p, *k[2:], 0.0])
    point = tensor([[x, y]])
    if point.norm() < 0.8 * field_limit(lens):
        torch.testing.assert_close(undistort(distort(point, lens), lens), point, rtol=0, atol=1e-12)


def test_undistortion_where_a_lens_nearly_flattens():
    lens = tensor(
        [-0.6308810433372618, -0.0071728517600875225, -0.002145498388463746, 0.0007148998569792082,
         0.11187699648105527, -0.1960220989718182, 0.00358299806093004, 0.01502080640259495]
    )  # fmt: skip
    # The inverse without tangential terms is far off, and from there six of Newton's steps miss it by 0.17.
    point = tensor([[0.505486053725314, 0.8879643396947724]])
    # The least slope of the lens here is 0.04: the rounding error of 1e-16 over that, some times.
    torch.testing.assert_close(undistort(distort(point, lens), lens), point, rtol=0, atol=2e-14)


@lenses
def test_gradients_of_lenses(lens):
    coefficients = tensor(lens).requires_grad_()
    limit = min(field_limit(coefficients).item(), 1.0)
    inside = disc(0.8 * limit, 2).requires_grad_()
    shown = distort(inside, coefficients).detach().requires_grad_()
    for function, points in ((distort, inside), (undistort, shown)):
        assert torch.autograd.gradcheck(function, (points, coefficients), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (points, coefficients), fast_mode=True)
    outside = (inside.detach() + 4).requires_grad_()
    fixed = coefficients.detach()
    seen = distort(outside, fixed).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: distort(p, fixed), (outside,))
    assert torch.autograd.gradcheck(lambda p: undistort(p, fixed), (seen,))


def test_lenses_of_a_batch_are_those_of_each():
    batch = tensor([[*lens, 0, 0, 0, 0][:8] for lens in LENSES.values()])
    points = disc(1.5, 20).expand(len(batch), 20, 2)
    together, back = distort(points, batch), undistort(points, batch)
    for i, lens in enumerate(LENSES.values()):
        torch.testing.assert_close(together[i], distort(points[i], tensor(lens)))
        torch.testing.assert_close(back[i], undistort(points[i], tensor(lens)))


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Camera.from_matrix(torch.ones(3, 3)), ValueError, "no skew"),
        (lambda: Camera.from_matrix(tensor([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])), ValueError, "no skew"),
        (lambda: Camera.from_matrix(-torch.eye(3)), ValueError, "fx, fy > 0"),
        (lambda: Camera.from_matrix(tensor([[1, 0, math.inf], [0, 1, 0], [0, 0, 1]])), ValueError, "fx, fy"),
        (
            lambda: Camera.from_matrix(torch.eye(3), torch.full((3, 4), math.nan).fill_diagonal_(1)),
            ValueError, "world_to_camera: expected a",
        ),
        (
            lambda: Camera.from_matrix(torch.eye(3), torch.eye(4).index_fill(1, torch.tensor(3), math.nan)),
            ValueError, "world_to_camera: expected a finite last column",
        ),
        (lambda: camera().resized(0.0), ValueError, "scale: expected a number above 0, got 0.0"),
        (lambda: camera(batch=(3,)).resized(tensor([[1]] * 4)), ValueError, "scale (4,)"),
        (lambda: camera(batch=(3,)).cropped(tensor([[0, 0, 1, 1]] * 4)), ValueError, "box (4,)"),
        (lambda: camera(batch=(3,)).undistort(tensor([[[1, 1]]] * 4)), ValueError, "pixels (4,)"),
        (
            lambda: camera(batch=(3,)).project(tensor([[1, 1, 1]]), size=tensor([[1, 1]] * 4)),
            ValueError, "points (3,), size (4,)",
        ),
        (lambda: Camera.from_matrix(torch.eye(4)), ValueError, "intrinsics: expected shape (*batch, 3, 3)"),
        (lambda: Camera.from_matrix(torch.eye(3), torch.eye(3)), ValueError, "world_to_camera: expected"),
        (lambda: Camera.from_matrix(torch.eye(3), torch.ones(2, 4)), ValueError, "(*batch, 3, 4)"),
        (lambda: Camera.from_matrix(torch.eye(3), torch.ones(4, 4)), ValueError, "expected a rotation"),
        (lambda: Camera.from_matrix(torch.eye(3), -torch.eye(4)), ValueError, "expected a rotation"),
        (lambda: Camera.from_fov(4.0, (1, 1)), ValueError, "fov: expected an angle between 0 and pi"),
        (lambda: Camera.from_fov(1.0, (1, 1), axis="up"), ValueError, "axis: expected one of vertical"),
        (lambda: Camera.from_fov(torch.tensor(True), (1, 1)), TypeError, "fov: expected a floating type"),
        (
            lambda: Camera.look_at(torch.tensor([0, 0, 1]), (0, 0, 0), size=(1, 1)),
            TypeError, "eye: expected a floating type, got torch.int64",
        ),
        (lambda: Camera.look_at((0, 1), (0, 0, 0), size=(1, 1)), ValueError, "eye: expected shape"),
        (lambda: Camera.look_at((0, 0, 1), (0, 0, 0), size=(1, 1), fov=4.0), ValueError, "fov: expected"),
        (lambda: Camera.look_at((0, 0, 0), (0, 0, 0), size=(1, 1)), ValueError, "two different points"),
        (lambda: Camera.look_at((0, 5, 0), (0, 0, 0), size=(1, 1)), ValueError, "two different points"),
        (lambda: camera().project(torch.zeros(3)), ValueError, "points: expected shape (*batch, any, 3)"),
        (lambda: camera().project(torch.zeros(1, 3).int()), TypeError, "points: expected a floating type"),
        (lambda: camera().project(torch.zeros(1, 3), near=0.0), ValueError, "near: expected"),
        (lambda: Camera(5000.0, torch.zeros(2)).project(torch.zeros(1, 3)), TypeError, "focal: expected"),
        (lambda: camera(lens=(0.1, 0.2)).project(torch.zeros(1, 3, dtype=F64)), ValueError, "4, 5 or 8"),
        (lambda: camera().project(torch.zeros(1, 3)), TypeError, "points: expected torch.float64"),
        (lambda: camera().unproject(torch.zeros(2, 3), torch.zeros(2)), ValueError, "pixels: expected shape"),
        (
            lambda: camera().unproject(tensor([[0.0, 0.0]] * 3), torch.zeros(2, dtype=F64)),
            ValueError,
            "batch dimensions do not broadcast: pixels (3,), depth (2,)",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, message, unchecked):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_points_that_opencv_inverts_are_visible_and_equal():
    """Whole pictures of random lenses, rational ones with poles and all 14 coefficients included."""
    cv2 = pytest.importorskip("cv2")
    if tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 10):
        pytest.skip("its undistortPoints has no criteria to stop")
    rng = np.random.default_rng(0)
    focal, center = (500.0, 510.0), (330.0, 250.0)
    matrix = np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]])
    grid = np.stack(np.meshgrid(np.linspace(0.5, 639.5, 12), np.linspace(0.5, 479.5, 10)), -1).reshape(
        -1, 1, 2
    )
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-12)
    compared = poles = 0
    for _ in range(150):
        lens = np.zeros((1, 14))
        lens[0, :8] = rng.normal(size=8) * [0.3, 0.3, 1e-3, 1e-3, 0.3, 0.4, 0.4, 0.3]
        plane = cv2.undistortPoints(grid, matrix, lens, None, None, None, stop)
        points = np.concatenate((plane, np.ones_like(plane[..., :1])), -1)
        shown = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, lens)[0]
        if not np.abs(shown - grid).max() < 1e-6:
            continue
        compared += 1
        poles += bool(1 + lens[0, 5:8] @ [4, 16, 64] < 0)  # the denominator is negative at r = 2
        camera = Camera.from_matrix(tensor(matrix), distortion=tensor(lens))
        found = camera.project(tensor(points[:, 0]), size=(640, 480))
        assert found.pixels.shape == (len(grid), 2)
        assert found.visible.all(), lens
        torch.testing.assert_close(found.pixels, tensor(shown[:, 0]), rtol=0, atol=1e-6)
        back = camera.unproject(tensor(grid[:, 0]), torch.ones(len(grid), dtype=F64))
        torch.testing.assert_close(back, tensor(points[:, 0]), rtol=0, atol=1e-7)
    assert compared > 30
    assert poles > 5


def test_sizes_and_angles_in_other_units_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"size: expected \(width, height\), got \(480, 640, 3\)"):
        Camera.guess((480, 640, 3))
    for size in ((0, 0), (640, -1), (float("nan"), 480), (640, float("inf"))):
        with pytest.raises(ValueError, match="size: expected width and height above 0"):
            Camera.guess(size)
    with pytest.raises(ValueError, match=r"size: expected shape \(\*batch, 2\)"):
        Camera.guess(torch.tensor([480, 640, 3]))
    for fov in (60.0, torch.tensor(60.0), torch.tensor([1.0, -0.1])):
        with pytest.raises(ValueError, match=r"fov: expected .*between 0 and pi \[rad\], not degrees"):
            Camera.from_fov(fov, (640, 480))
    with pytest.raises(ValueError, match=r"fov: expected angles between 0 and pi \[rad\]"):
        fov_to_focal(torch.tensor([60.0]), (640, 480))


def test_parts_that_are_no_tensors_are_named(unchecked):
    camera = Camera(torch.tensor([500.0, 500.0]), torch.tensor([320.0, 240.0]))
    for name, value in (
        ("rotation", np.eye(3)),
        ("translation", [0, 0, 1]),
        ("distortion", np.zeros((1, 5))),
    ):
        with pytest.raises(TypeError, match=rf"{name}: expected a torch\.Tensor, got {type(value).__name__}"):
            camera._replace(**{name: value}).project(torch.ones(5, 3))
    with pytest.raises(ValueError, match="axis: expected one of vertical, horizontal, diagonal, got 'x'"):
        camera.fov((640, 480), axis="x")


def test_batches_that_do_not_fit_are_named():
    camera = Camera(torch.full((4, 2), 500.0), torch.full((4, 2), 256.0), translation=torch.zeros(4, 3))
    message = r"batch dimensions do not broadcast: camera.focal \(4,\).*\(3,\)"
    for call in (
        lambda: camera.project(torch.ones(3, 5, 3)),
        lambda: camera.to_camera(torch.ones(3, 5, 3)),
        lambda: camera.to_world(torch.ones(3, 5, 3)),
        lambda: camera.unproject(torch.ones(3, 5, 2), torch.ones(3, 5)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("count", [12, 14])
def test_longer_rows_of_opencv_are_taken_if_the_rest_is_zero(count):
    row = torch.zeros(1, count)
    row[0, :5] = torch.tensor([0.1, -0.05, 1e-3, 0.0, 0.01])
    plain = Camera(torch.tensor([500.0, 500.0]), torch.tensor([320.0, 240.0]), distortion=row[0, :8])
    points = torch.tensor([[0.3, 0.2, 1.0], [-0.4, 0.1, 1.0]])
    torch.testing.assert_close(plain._replace(distortion=row).project(points), plain.project(points))
    row[0, 8] = 0.1
    with pytest.raises(ValueError, match="distortion: expected no thin prism and no tilt"):
        plain._replace(distortion=row).project(points)
