import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trimesh.creation import box, icosphere

import agebody
from agebody.cameras import Camera
from agebody.draw import Picture, lineup, render, save_mesh
from agebody.draw.pictures import contact_sheet

SIZE = (96, 72)
FOCAL, CENTER = (110.0, 105.0), (50.3, 33.9)
CAMERA = Camera(*torch.tensor([FOCAL, CENTER], dtype=torch.float64))
CUBE = box((1, 1, 1))
CUBE_VERTICES, CUBE_FACES = np.asarray(CUBE.vertices), np.asarray(CUBE.faces)


@pytest.fixture(scope="module")
def sphere():
    mesh = icosphere(subdivisions=5, radius=0.5)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def pixel_rays():
    """Direction (z = 1) of the ray through each pixel's centre."""
    width, height = SIZE
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    return np.stack([(columns - CENTER[0]) / FOCAL[0], (rows - CENTER[1]) / FOCAL[1], np.ones_like(rows)], -1)


def look_at(eye, target):
    eye, target = torch.tensor([eye, target], dtype=torch.float64)
    return Camera.look_at(eye, target, size=SIZE)


def test_depth_and_outline_of_a_sphere_agree_with_the_formula(sphere):
    center = np.array([0.1, -0.05, 2.0])
    picture = render(sphere[0] + center, sphere[1], CAMERA, size=SIZE)
    rays = pixel_rays()
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


@pytest.mark.parametrize(
    ("place", "share"),
    [((0, 0, 5.0), 0.25), ((-2.3, -1.6, 5.0), 0.25), ((9, 9, 5.0), 0.01), ((0, 0, 0.2), 1), ((0, 0, -5), 1)],
)
def test_rays_are_traced_where_bodies_are_with_the_same_result(sphere, monkeypatch, place, share):
    scene, traced = agebody.draw.raycast.Scene, []
    trace = scene.trace
    monkeypatch.setattr(scene, "trace", lambda self, u, v: traced.append(len(u)) or trace(self, u, v))
    vertices = np.stack([sphere[0] + place, 0.8 * sphere[0] + place])
    found = render(vertices, sphere[1], CAMERA, size=SIZE)
    assert traced[0] <= share * SIZE[0] * SIZE[1]
    monkeypatch.setattr(scene, "window", lambda self, size: (slice(0, size[1]), slice(0, size[0])))
    expected = render(vertices, sphere[1], CAMERA, size=SIZE)
    for name in ("rgba", "depth", "instance", "triangle"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@given(angle=st.floats(-3, 3), shift=st.floats(-0.4, 0.4))
@settings(max_examples=15, deadline=None)
def test_depth_and_triangles_of_a_cube_agree_with_its_planes(angle, shift):
    placed = look_at((2.5 * np.sin(angle), 1, 2.5 * np.cos(angle)), (shift, 0, 0))
    camera = placed._replace(focal=CAMERA.focal, center=CAMERA.center)
    picture = render(CUBE_VERTICES, CUBE_FACES, camera, size=SIZE, light_rays=0)
    seen = picture.instance == 0
    assert seen.any()
    pose = camera.world_to_camera.numpy()
    corners = (CUBE_VERTICES @ pose[:3, :3].T + pose[:3, 3])[CUBE_FACES[picture.triangle[seen]]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    ray = pixel_rays()[seen]
    expected = (normal * corners[:, 0]).sum(-1) / (normal * ray).sum(-1)
    assert ((normal * ray).sum(-1) < 0).all()  # only faces that look at the camera
    np.testing.assert_allclose(picture.depth[seen], expected, rtol=2e-5)  # float32 rays


TURNED = CAMERA._replace(
    rotation=torch.tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64),
    translation=torch.tensor([0.1, -0.2, 0.4], dtype=torch.float64),
)


@given(
    x=st.floats(-0.6, 0.6),
    y=st.floats(-0.4, 0.4),
    z=st.floats(1.5, 4),
    lens=st.sampled_from([None, (-0.3, 0.1, 0.01, -0.02), (0.2, 0.0, 0.0, 0.0, 0.1)]),
)
@settings(max_examples=20, deadline=None)
def test_a_projected_point_lands_on_its_pixel(x, y, z, lens):
    camera = TURNED._replace(distortion=None if lens is None else torch.tensor(lens, dtype=torch.float64))
    point = camera.to_world(torch.tensor([[x, y, z]], dtype=torch.float64))
    u, v = camera.project(point).pixels[0].tolist()
    half = 0.4 * z / 105  # of a square just smaller than a pixel
    right, down, _ = camera.rotation.numpy() * half
    square = point.numpy() + np.array([-right - down, right - down, right + down, -right + down])
    picture = render(square, np.array([[0, 1, 2], [0, 2, 3]]), camera, size=SIZE, light_rays=0)
    hit = np.argwhere(picture.instance == 0)

    def covered(at):
        return {int(np.floor(at - 0.9)), int(np.floor(at - 0.1)), int(np.floor(at + 0.9))}

    assert all(column in covered(u) and row in covered(v) for row, column in hit)
    column, row = int(np.floor(u)), int(np.floor(v))
    if abs(u - column - 0.5) < 0.25 and abs(v - row - 0.5) < 0.25 and 0 <= column < 96 and 0 <= row < 72:
        assert [row, column] in hit.tolist()


def test_a_body_is_drawn_where_its_vertices_are_projected(mannequin_asset):
    body = agebody.SMPLA(mannequin_asset, dtype=torch.float64)
    vertices = body(betas=torch.ones(10, dtype=torch.float64), age_offset=0.4).vertices
    camera = look_at((0.8, 0.3, 3.5), (0.1, -0.3, 0))
    camera = camera._replace(distortion=torch.tensor([-0.8, 0.3, 0.02, -0.01], dtype=torch.float64))
    picture = render(vertices, body.faces, camera, size=SIZE, light_rays=0)
    pixels, _, visible = camera.project(vertices, size=SIZE)
    assert visible.all()
    rows, columns = np.nonzero(picture.instance == 0)
    assert len(rows) > 400
    # The centre of each pixel lies in the image of the triangle that is drawn there.
    corners = pixels.numpy()[body.faces[picture.triangle[rows, columns]]]
    a, b, c = (corners[:, i] - np.stack([columns + 0.5, rows + 0.5], -1) for i in range(3))

    def cross(u, v):
        return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

    areas = np.stack([cross(a, b), cross(b, c), cross(c, a)])
    # The lens bends the edges of a triangle of some pixels by far less than 0.01 pixels.
    longest = np.linalg.norm(np.stack([a - b, b - c, c - a]), axis=-1).max()
    assert (areas * np.sign(areas.sum(0)) > -0.01 * longest).all()
    plain = camera._replace(distortion=None).project(vertices, size=SIZE).pixels
    assert (plain - pixels).abs().max() > 1.5  # the distortion matters here


def test_the_nearer_body_hides_the_farther(sphere):
    offsets = np.array([[0.6, 0, 3.0], [0, 0, 2.0], [-0.9, 0, 4.0]])
    bodies = sphere[0] + offsets[:, None]
    together = render(bodies, sphere[1], CAMERA, size=SIZE)
    alone = np.stack([render(body, sphere[1], CAMERA, size=SIZE).depth for body in bodies])
    np.testing.assert_array_equal(together.depth, alone.min(0))
    nearest = np.where(np.isfinite(alone.min(0)), alone.argmin(0), -1)
    np.testing.assert_array_equal(together.instance, nearest)
    assert set(np.unique(together.instance)) == {-1, 0, 1, 2}
    assert together.triangle.max() < len(sphere[1])


def test_bodies_with_their_own_faces_and_tensors_are_drawn_alike(sphere):
    bodies = [sphere[0] + [0.3, 0, 2.0], CUBE_VERTICES * 0.5 + [-0.4, 0, 2.0]]
    arrays = render(bodies, [sphere[1], CUBE_FACES], CAMERA, size=SIZE)
    tensors = render(
        [torch.tensor(body, requires_grad=True) for body in bodies],
        (torch.tensor(sphere[1]), torch.tensor(CUBE_FACES)),
        CAMERA,
        size=SIZE,
    )
    assert set(np.unique(arrays.instance)) == {-1, 0, 1}
    np.testing.assert_array_equal(arrays.rgba, tensors.rgba)


def test_the_same_call_gives_the_same_bytes(sphere):
    camera = look_at((0, 1, 3), (0, 0.4, 0))
    first, second = (
        render(sphere[0] + [0, 0.5, 0], sphere[1], camera, size=SIZE, ground=0.0) for _ in range(2)
    )
    assert first.rgba.tobytes() == second.rgba.tobytes()
    assert first.depth.tobytes() == second.depth.tobytes()


def test_an_empty_scene_is_background():
    picture = render(np.zeros((0, 4, 3)), np.zeros((0, 3), int), CAMERA, size=SIZE, background="#336699")
    assert (picture.rgba == [0x33, 0x66, 0x99, 255]).all()
    assert (picture.instance == -1).all()
    assert (picture.triangle == -1).all()
    nothing = render([], [], CAMERA, size=SIZE, background=None, ground=-1.0)
    assert (nothing.rgba == 0).all()


def test_outlines_are_smooth_and_photographs_stay_as_they_are(sphere):
    photograph = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
    picture = render(sphere[0] + [0, 0, 2.0], sphere[1], CAMERA, size=SIZE, background=photograph)
    far = np.ones((72, 96), bool)
    for row, column in np.argwhere(picture.instance == 0):
        far[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = False
    np.testing.assert_array_equal(picture.rgba[far][:, :3], photograph[far])
    clear = render(sphere[0] + [0, 0, 2.0], sphere[1], CAMERA, size=SIZE, background=None)
    alpha = clear.rgba[..., 3]
    assert ((alpha > 0) & (alpha < 255)).any()
    # Alpha sums to the area of the outline, about pi f_x f_y r^2 / (z^2 - r^2) pixels, within the error of
    # four samples a pixel at each end of a row.
    area = 110 * 105 * np.pi * 0.25 / (4 - 0.25)
    assert alpha.sum() / 255 == pytest.approx(area, rel=0.005)


def test_an_edge_between_coplanar_surfaces_is_invisible():
    # Two squares in one plane, of one colour: their common edge is smoothed, and must look like the rest.
    left = np.array([[-1.0, -1, 2], [0, -1, 2], [0, 1, 2], [-1, 1, 2]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    pair = [left, left + np.array([1, 0, 0])]
    picture = render(pair, faces, CAMERA, size=SIZE, colors=["tan", "tan"], light_rays=0)
    column = int(CENTER[0])
    across = picture.rgba[36, column - 8 : column + 8].astype(int)
    assert set(np.unique(picture.instance[36, column - 8 : column + 8])) == {0, 1}
    assert np.abs(np.diff(across, axis=0)).max() <= 1


def test_the_ground_is_dark_below_a_body_and_transparent_far_away(sphere):
    camera = look_at((0, 2, 5), (0, 0.2, 0))
    picture = render(sphere[0] + [0, 0.5, 0], sphere[1], camera, size=SIZE, ground=0.0, background=None)
    spot = torch.tensor([[0.25, 0, 0.3]], dtype=torch.float64)
    u, v = camera.project(spot).pixels[0].int().tolist()
    assert picture.instance[v, u] == -1
    assert picture.rgba[v, u, 3] > 40
    assert (picture.rgba[-1, [0, -1], 3] == 0).all()
    unlit = render(
        sphere[0] + [0, 0.5, 0], sphere[1], camera, size=SIZE, ground=0.0, background=None, light_rays=0
    )
    assert unlit.rgba[v, u, 3] == 0


def test_bodies_have_the_given_colours(sphere):
    bodies = sphere[0] + np.array([[-0.4, 0, 3], [0.4, 0, 3]])[:, None]
    per_vertex = np.where(sphere[0][:, 1:2] < 0, [1.0, 0, 0], [0, 0, 1.0])  # y is down: the upper half is red
    picture = render(bodies, sphere[1], CAMERA, size=SIZE, colors=["lime", per_vertex])

    def mean(mask):
        return picture.rgba[mask][:, :3].mean(0)

    rows = np.arange(72)[:, None]
    assert mean(picture.instance == 0).argmax() == 1
    assert mean((picture.instance == 1) & (rows < 30)).argmax() == 0
    assert mean((picture.instance == 1) & (rows > 38)).argmax() == 2


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": (0, 0)}, "size: expected a width and a height"),
        ({"size": 5}, "size: expected a width and a height"),
        ({"size": (float("nan"), 3)}, "size: expected a width and a height"),
        ({"spacing": -1}, "spacing: expected a number above 0, got -1"),
        ({"scale": -3}, "scale: expected a number above 0, got -3"),
        ({"scale": float("nan")}, "scale: expected a number above 0, got nan"),
        ({"titles": ["a"], "text_size": 100}, "size, text_size: expected room above the titles"),
        ({"background": np.zeros((80, 3))}, "background: expected a uint8 image of shape"),
        ({"background": np.zeros((40, 80), np.uint8)}, "background: expected a uint8 image of shape"),
        ({"background": [[[0.5, 0.5, 0.5]]]}, "background: expected one colour, or two"),
    ],
)
def test_a_row_without_room_or_scale_names_the_argument(given, message, unchecked):
    with pytest.raises(ValueError, match=message) as error:
        lineup(CUBE_VERTICES, CUBE_FACES, **{"size": (80, 40), **given})
    assert "\n" not in str(error.value)


def test_bodies_of_one_point_or_one_plane(tmp_path):
    with pytest.raises(ValueError, match="spacing: expected a number above 0, got 0"):
        lineup(CUBE_VERTICES[:1], np.zeros((0, 3), int))
    flat = lineup(CUBE_VERTICES * [1, 0, 1], CUBE_FACES, size=(80, 40))
    assert (flat.instance == 0).any()
    with pytest.raises(ValueError, match="one triangle or more of each body"):
        save_mesh([CUBE_VERTICES, CUBE_VERTICES], [CUBE_FACES, CUBE_FACES[:0]], tmp_path / "a.glb")
    assert not list(tmp_path.iterdir())


def test_tensors_that_numpy_does_not_have_are_drawn():
    corners = torch.from_numpy(CUBE_VERTICES) + torch.tensor([0, 0, 2])
    pictures = [
        render(corners.to(kind), CUBE_FACES, CAMERA, size=SIZE) for kind in (torch.bfloat16, torch.float64)
    ]
    np.testing.assert_array_equal(pictures[0].rgba, pictures[1].rgba)


def test_contact_sheet_lays_pictures_out_and_shows_the_background_through(sphere):
    tiles = [
        render(sphere[0] + [0, 0, 2 + i], sphere[1], CAMERA, size=SIZE, background=None) for i in range(3)
    ]
    sheet = contact_sheet(tiles, columns=2, background="white", title="title", title_size=10)
    assert sheet.rgba.shape == (20 + 2 * 72, 2 * 96, 4)
    assert (sheet.rgba[-1, -1] == 255).all()
    np.testing.assert_array_equal(sheet.depth[20:92, 96:], tiles[1].depth)
    np.testing.assert_array_equal(sheet.instance[92:, :96], tiles[2].instance)
    alone = render(sphere[0] + [0, 0, 2], sphere[1], CAMERA, size=SIZE, background="white")
    difference = sheet.rgba[20:92, :96].astype(int) - alone.rgba
    assert np.abs(difference).max() <= 2  # the tile was rounded to 8 bits once before
    with pytest.raises(ValueError, match="at least one of each"):
        contact_sheet([])


def test_save_writes_images_whole_or_not_at_all(tmp_path, sphere, unchecked):
    picture = render(sphere[0] + [0, 0, 2.0], sphere[1], CAMERA, size=SIZE)
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
    "camera": CAMERA,
    "size": SIZE,
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
        ({"size": (0, 5)}, "size: expected a width and a height of at least one pixel"),
        (
            {"camera": CAMERA._replace(focal=CAMERA.focal[None])},
            r"camera\.focal: expected one camera, not a batch",
        ),
        ({"camera": CAMERA._replace(focal=-CAMERA.focal)}, "intrinsics: expected"),
        (
            {"camera": CAMERA._replace(translation=torch.full((3,), np.nan))},
            r"camera\.translation: 3 entries",
        ),
        ({"camera": CAMERA._replace(rotation=-torch.eye(3))}, "expected a rotation"),
        ({"light_rays": -1}, "light_rays: expected a whole number of 0 or more, got -1"),
        ({"ground": float("nan")}, "ground: expected a height in metres, got nan"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        render(**{**GOOD, **change})


def test_without_embreex_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(ImportError, match=r"agebody\[render\]"):
        render(**GOOD)
