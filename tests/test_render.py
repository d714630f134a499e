import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trimesh.creation import box, icosphere

from agebody.render import Camera, Picture, contact_sheet, lineup, render

SIZE = (96, 72)
INTRINSICS = np.array([[110.0, 0, 50.3], [0, 105.0, 33.9], [0, 0, 1]])
CUBE = box((1, 1, 1))
CUBE_VERTICES, CUBE_FACES = np.asarray(CUBE.vertices), np.asarray(CUBE.faces)


@pytest.fixture(scope="module")
def sphere():
    mesh = icosphere(subdivisions=5, radius=0.5)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def pixel_rays(camera):
    """Direction (z = 1) of the ray through each pixel's centre."""
    width, height = camera.size
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    return np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(camera.intrinsics).T


def test_depth_and_outline_of_a_sphere_are_those_of_the_formula(sphere):
    camera = Camera(INTRINSICS, SIZE)
    center = np.array([0.1, -0.05, 2.0])
    picture = render(sphere[0] + center, sphere[1], camera)
    rays = pixel_rays(camera)
    a, b, c = (rays**2).sum(-1), rays @ center, center @ center - 0.25
    discriminant = b**2 - a * c
    # A triangle of the icosphere (edge 0.02) lies at most edge^2 / (6 r) = 0.13 mm inside the sphere; that
    # moves the outline, where depth is ill-conditioned, by less than 0.01 pixels: only there may they differ.
    grazing = np.abs(discriminant) < 2 * 0.5 * 1.5e-4 * a
    assert np.count_nonzero(grazing) < 10
    assert ((picture.instance == 0) == (discriminant > 0))[~grazing].all()
    inside = (discriminant > 0.1 * a * 0.25) & ~grazing
    expected = (b - np.sqrt(np.maximum(discriminant, 0))) / a
    np.testing.assert_allclose(picture.depth[inside], expected[inside], atol=5e-4)
    assert np.isinf(picture.depth[picture.instance < 0]).all()


@given(
    angle=st.floats(-3, 3),
    shift=st.floats(-0.4, 0.4),
    skew=st.floats(-5, 5),
)
@settings(max_examples=15, deadline=None)
def test_depth_and_triangles_of_a_cube_are_those_of_its_planes(angle, shift, skew):
    intrinsics = INTRINSICS + np.array([[0, skew, 0], [0, 0, 0], [0, 0, 0]])
    camera = Camera(
        intrinsics,
        SIZE,
        Camera.look_at(
            (2.5 * np.sin(angle), 1, 2.5 * np.cos(angle)), (shift, 0, 0), size=SIZE
        ).world_to_camera,
    )
    picture = render(CUBE_VERTICES, CUBE_FACES, camera)
    seen = picture.instance == 0
    assert seen.any()
    corners = camera.to_camera(CUBE_VERTICES)[CUBE_FACES[picture.triangle[seen]]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    ray = pixel_rays(camera)[seen]
    expected = (normal * corners[:, 0]).sum(-1) / (normal * ray).sum(-1)
    assert ((normal * ray).sum(-1) < 0).all()  # only faces that look at the camera
    np.testing.assert_allclose(picture.depth[seen], expected, rtol=2e-5)  # float32 rays


@given(x=st.floats(-0.6, 0.6), y=st.floats(-0.4, 0.4), z=st.floats(1.5, 4))
@settings(max_examples=20, deadline=None)
def test_a_projected_point_lands_on_its_pixel(x, y, z):
    camera = Camera(INTRINSICS, SIZE, np.array([[0, 0, 1, 0.1], [0, 1, 0, -0.2], [-1, 0, 0, 0.4]]))
    point = (np.array([x, y, z]) - camera.world_to_camera[:3, 3]) @ camera.world_to_camera[:3, :3]
    u, v, depth = camera.project(point)
    assert depth == pytest.approx(z)
    assert (u, v) == pytest.approx((110 * x / z + 50.3, 105 * y / z + 33.9))
    half = 0.4 * z / 105  # of a square just smaller than a pixel
    right, down = camera.world_to_camera[0, :3] * half, camera.world_to_camera[1, :3] * half
    square = point + np.array([-right - down, right - down, right + down, -right + down])
    picture = render(square, np.array([[0, 1, 2], [0, 2, 3]]), camera)
    hit = np.argwhere(picture.instance == 0)
    covered = lambda at: {int(np.floor(at - 0.9)), int(np.floor(at - 0.1)), int(np.floor(at + 0.9))}  # noqa: E731
    assert all(column in covered(u) and row in covered(v) for row, column in hit)
    column, row = int(np.floor(u)), int(np.floor(v))
    if abs(u - column - 0.5) < 0.35 and abs(v - row - 0.5) < 0.35 and 0 <= column < 96 and 0 <= row < 72:
        assert [row, column] in hit.tolist()


def test_the_nearer_body_hides_the_farther(sphere):
    camera = Camera(INTRINSICS, SIZE)
    offsets = np.array([[0.6, 0, 3.0], [0, 0, 2.0], [-0.9, 0, 4.0]])
    bodies = sphere[0] + offsets[:, None]
    together = render(bodies, sphere[1], camera)
    alone = np.stack([render(body, sphere[1], camera).depth for body in bodies])
    np.testing.assert_array_equal(together.depth, alone.min(0))
    nearest = np.where(np.isfinite(alone.min(0)), alone.argmin(0), -1)
    np.testing.assert_array_equal(together.instance, nearest)
    assert set(np.unique(together.instance)) == {-1, 0, 1, 2}
    assert together.triangle.max() < len(sphere[1])


def test_bodies_with_their_own_faces_and_tensors_are_drawn_alike(sphere):
    camera = Camera(INTRINSICS, SIZE)
    bodies = [sphere[0] + [0.3, 0, 2.0], CUBE_VERTICES * 0.5 + [-0.4, 0, 2.0]]
    arrays = render(bodies, [sphere[1], CUBE_FACES], camera)
    tensors = render(
        [torch.tensor(body, requires_grad=True) for body in bodies],
        (torch.tensor(sphere[1]), torch.tensor(CUBE_FACES)),
        camera,
    )
    assert set(np.unique(arrays.instance)) == {-1, 0, 1}
    np.testing.assert_array_equal(arrays.rgba, tensors.rgba)


def test_the_same_call_gives_the_same_bytes(sphere):
    camera = Camera.look_at((0, 1, 3), (0, 0.4, 0), size=SIZE)
    first, second = (render(sphere[0] + [0, 0.5, 0], sphere[1], camera, ground=0.0) for _ in range(2))
    assert first.rgba.tobytes() == second.rgba.tobytes()
    assert first.depth.tobytes() == second.depth.tobytes()


def test_an_empty_scene_is_background():
    picture = render(
        np.zeros((0, 4, 3)), np.zeros((0, 3), int), Camera(INTRINSICS, SIZE), background="#336699"
    )
    assert (picture.rgba == [0x33, 0x66, 0x99, 255]).all()
    assert (picture.instance == -1).all()
    assert (picture.triangle == -1).all()
    nothing = render([], [], Camera(INTRINSICS, SIZE), background=None, ground=-1.0)
    assert (nothing.rgba == 0).all()


def test_outlines_are_smooth_and_photographs_stay_as_they_are(sphere):
    camera = Camera(INTRINSICS, SIZE)
    photograph = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
    picture = render(sphere[0] + [0, 0, 2.0], sphere[1], camera, background=photograph)
    far = np.ones((72, 96), bool)
    for row, column in np.argwhere(picture.instance == 0):
        far[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = False
    np.testing.assert_array_equal(picture.rgba[far][:, :3], photograph[far])
    clear = render(sphere[0] + [0, 0, 2.0], sphere[1], camera, background=None)
    alpha = clear.rgba[..., 3]
    assert ((alpha > 0) & (alpha < 255)).any()
    # Alpha sums to the area of the outline, about pi f_x f_y r^2 / (z^2 - r^2) pixels, within the error of
    # four samples a pixel at each end of a row.
    area = 110 * 105 * np.pi * 0.25 / (4 - 0.25)
    assert alpha.sum() / 255 == pytest.approx(area, rel=0.005)


def test_an_edge_between_like_surfaces_does_not_show():
    # Two squares in one plane, of one colour: their common edge is smoothed, and must look like the rest.
    left = np.array([[-1.0, -1, 2], [0, -1, 2], [0, 1, 2], [-1, 1, 2]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    pair = [left, left + np.array([1, 0, 0])]
    picture = render(pair, faces, Camera(INTRINSICS, SIZE), colors=["tan", "tan"], light_rays=0)
    column = int(INTRINSICS[0, 2])
    across = picture.rgba[36, column - 8 : column + 8].astype(int)
    assert set(np.unique(picture.instance[36, column - 8 : column + 8])) == {0, 1}
    assert np.abs(np.diff(across, axis=0)).max() <= 1


def test_the_ground_is_darker_under_a_body_and_clear_far_away(sphere):
    camera = Camera.look_at((0, 2, 5), (0, 0.2, 0), size=SIZE)
    picture = render(sphere[0] + [0, 0.5, 0], sphere[1], camera, ground=0.0, background=None)
    u, v, _ = camera.project(np.array([0.25, 0, 0.3])).astype(int)
    assert picture.instance[v, u] == -1
    assert picture.rgba[v, u, 3] > 40
    assert (picture.rgba[-1, [0, -1], 3] == 0).all()
    unlit = render(sphere[0] + [0, 0.5, 0], sphere[1], camera, ground=0.0, background=None, light_rays=0)
    assert unlit.rgba[v, u, 3] == 0


def test_colours_are_the_given_ones(sphere):
    camera = Camera(INTRINSICS, SIZE)
    bodies = sphere[0] + np.array([[-0.4, 0, 3], [0.4, 0, 3]])[:, None]
    per_vertex = np.where(sphere[0][:, 1:2] < 0, [1.0, 0, 0], [0, 0, 1.0])  # y is down: the upper half is red
    picture = render(bodies, sphere[1], camera, colors=["lime", per_vertex])
    mean = lambda mask: picture.rgba[mask][:, :3].mean(0)  # noqa: E731
    rows = np.arange(72)[:, None]
    assert mean(picture.instance == 0).argmax() == 1
    assert mean((picture.instance == 1) & (rows < 30)).argmax() == 0
    assert mean((picture.instance == 1) & (rows > 38)).argmax() == 2


def test_look_at_puts_the_target_in_the_middle_and_up_above():
    camera = Camera.look_at((1, 2, 3), (0, 1, -1), size=(200, 100), vertical_fov=0.5)
    u, v, depth = camera.project(np.array([0.0, 1, -1]))
    assert (u, v) == pytest.approx((100, 50))
    assert depth == pytest.approx(np.sqrt(18))
    above = camera.project(np.array([0, 1.1, -1]))
    assert above[1] < 50
    assert above[0] == pytest.approx(100)
    assert 2 * np.arctan(50 / camera.intrinsics[1, 1]) == pytest.approx(0.5)


def test_lineup_keeps_order_scale_and_ground(sphere):
    bodies = [sphere[0] * size + [7, 3, -2] for size in (0.5, 1.0, 1.5)]
    picture = lineup(bodies, sphere[1], size=(300, 120), titles=["a", "b\nc", "d"], text_size=10)
    found = [np.argwhere(picture.instance == i) for i in range(3)]
    columns = [pixels[:, 1].mean() for pixels in found]
    assert np.diff(columns) == pytest.approx((columns[2] - columns[0]) / 2, rel=0.02)
    heights = np.array([np.ptp(pixels[:, 0]) + 1 for pixels in found])
    assert heights / heights[1] == pytest.approx([0.5, 1, 1.5], abs=0.06)
    scaled = lineup(bodies, sphere[1], size=(300, 120), scale=40)
    assert np.ptp(np.argwhere(scaled.instance == 2)[:, 0]) + 1 == pytest.approx(1.5 * 40, abs=2)
    assert picture.rgba[-14:, :, :3].min() < 140  # ink


def test_contact_sheet_lays_pictures_out_and_shows_the_background_through(sphere):
    camera = Camera(INTRINSICS, SIZE)
    tiles = [render(sphere[0] + [0, 0, 2 + i], sphere[1], camera, background=None) for i in range(3)]
    sheet = contact_sheet(tiles, columns=2, background="white", title="title", title_size=10)
    assert sheet.rgba.shape == (20 + 2 * 72, 2 * 96, 4)
    assert (sheet.rgba[-1, -1] == 255).all()
    np.testing.assert_array_equal(sheet.depth[20:92, 96:], tiles[1].depth)
    np.testing.assert_array_equal(sheet.instance[92:, :96], tiles[2].instance)
    alone = render(sphere[0] + [0, 0, 2], sphere[1], camera, background="white")
    difference = sheet.rgba[20:92, :96].astype(int) - alone.rgba
    assert np.abs(difference).max() <= 2  # the tile was rounded to 8 bits once before
    with pytest.raises(ValueError, match="at least one of each"):
        contact_sheet([])


def test_save_writes_images_whole_or_not_at_all(tmp_path, sphere, unchecked):
    picture = render(sphere[0] + [0, 0, 2.0], sphere[1], Camera(INTRINSICS, SIZE))
    picture.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture.rgba)
    picture.save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == SIZE
    with pytest.raises(ValueError, match=r"a\.xyz: expected the suffix of an image"):
        picture.save(tmp_path / "a.xyz")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; create it first"):
        picture.save(tmp_path / "nowhere" / "a.png")
    broken = Picture(np.zeros((2, 2, 2, 4), np.uint8), picture.depth, picture.instance, picture.triangle)
    with pytest.raises(TypeError):
        broken.save(tmp_path / "a.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jpg", "a.png"]
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture.rgba)


GOOD = {
    "vertices": CUBE_VERTICES + np.array([0, 0, 3]),
    "faces": CUBE_FACES,
    "camera": Camera(INTRINSICS, SIZE),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": np.full((8, 3), np.nan)}, r"vertices\[0\]: 24 entries are NaN"),
        ({"vertices": np.zeros((8, 2))}, r"vertices\[0\]: expected shape \(V, 3\), got \(8, 2\)"),
        ({"faces": CUBE_FACES + 1}, r"faces\[0\]: expected ids from 0 to 7, got 1 to 8"),
        ({"faces": CUBE_FACES * 1.0}, r"faces\[0\]: expected integers of shape \(F, 3\), got float64"),
        (
            {"faces": [CUBE_FACES, CUBE_FACES]},
            "faces: expected one array, or one for each of 1 bodies, got 2",
        ),
        ({"colors": ["red", "blue"]}, "colors: expected one for each of 1 bodies, got 2"),
        ({"colors": ["reddish"]}, r"colors\[0\]: expected a colour's name or hex code, got 'reddish'"),
        ({"colors": [(255, 0, 0)]}, r"colors\[0\]: expected red, green and blue from 0 to 1"),
        ({"colors": [np.zeros((7, 3))]}, r"colors\[0\]: expected shape \(3,\) or \(8, 3\), got \(7, 3\)"),
        ({"background": np.zeros((72, 96, 3))}, r"background: expected a uint8 image of shape \(72, 96, 3\)"),
        ({"light_rays": -1}, "light_rays: expected 0 or more, got -1"),
        ({"ground": float("nan")}, "ground: expected a height in metres, got nan"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        render(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(4), SIZE), "intrinsics: expected"),
        ((-np.eye(3), SIZE), "intrinsics: expected"),
        ((INTRINSICS, (0, 5)), "size: expected"),
        ((INTRINSICS, SIZE, np.eye(3)), "world_to_camera: expected shape"),
        ((INTRINSICS, SIZE, np.diag([1.0, 1, -1, 1])), "world_to_camera: expected a rotation"),
    ],
)
def test_bad_cameras_are_named(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Camera(*arguments)


def test_look_at_refuses_views_without_a_direction():
    with pytest.raises(ValueError, match="eye, target: expected two different points"):
        Camera.look_at((0, 0, 0), (0, 0, 0), size=SIZE)
    with pytest.raises(ValueError, match="eye, target: expected two different points"):
        Camera.look_at((0, 5, 0), (0, 0, 0), size=SIZE)
    with pytest.raises(ValueError, match="vertical_fov"):
        Camera.look_at((0, 0, 1), (0, 0, 0), size=SIZE, vertical_fov=4.0)


def test_without_embreex_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(ImportError, match=r"agebody\[render\]"):
        render(**GOOD)
