"""Calibrated cameras: files as their programs write them, people across views, and one fit of all views."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_detect import run

import agebody
from agebody.annotations import AnnotationError, Cameras, ImageEntry, join_views, read_cameras
from agebody.annotations.people import make_people
from agebody.annotations.views import find_views, join_groups, nearest_points, view_frames
from agebody.cameras import Camera
from agebody.parameters import BodyParameters
from agebody.people import pose
from agebody.pipelines.labels import fit_annotations, load_labels
from agebody.rotations import axis_angle_to_matrix

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
samples = importlib.import_module("fuzz_samples")

SIZE = 640, 480
LENS = (-0.1, 0.02, 0.001, -0.001)
NAMES = "cam01", "cam02", "cam03"


# --- files


def opencv_pixels(points, matrix, lens, turn, place):
    return cv2.projectPoints(
        np.asarray(points), np.asarray(turn), np.asarray(place), matrix, np.asarray(lens)
    )


def test_pose2sim_calibrations_project_as_opencv(tmp_path):
    path = tmp_path / "calib.toml"
    path.write_text(samples.cameras_files()["TOML"] + "[metadata]\nadjusted = false\n")
    cameras = read_cameras(path)
    assert cameras.names == ("a", "b")
    assert cameras.sizes == (SIZE, SIZE)
    points = torch.tensor([[0.2, -0.5, 2.0], [-0.4, 0.1, 3.0]]).double()
    ours = cameras.camera.map(lambda part: part[0]).project(points).pixels
    matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    theirs, _ = opencv_pixels(points, matrix, [-0.1, 0.01, 0, 0], [0.1, 0.2, 0.3], [0, 1, 3.0])
    np.testing.assert_allclose(ours, theirs[:, 0] + 0.5, atol=1e-6)  # their first pixel is around (0, 0)


QUALISYS = """<?xml version='1.0'?><calibration><cameras>
<camera active="1" model="Miqus Video" serial="22"><fov_video left="10" top="20" right="649" bottom="499"/>
<transform r11="0" r12="1" r13="0" r21="0" r22="0" r23="1" r31="1" r32="0" r33="0" x="4000" y="0" z="1000"/>
<intrinsic focalLengthU="32000" focalLengthV="32064" centerPointU="21120" centerPointV="16640"
 radialDistortion1="-0.05" radialDistortion2="0.1" radialDistortion3="0.01" tangentalDistortion1="0.001"
 tangentalDistortion2="0.002" skew="0"/></camera>
<camera active="1" model="Miqus M3" serial="23"/><camera active="0" model="Miqus Video" serial="24"/>
</cameras></calibration>"""


def test_a_calibration_of_qualisys_is_in_millimetres_subpixels_and_axes_of_opengl(tmp_path):
    path = tmp_path / "a.qca.txt"
    path.write_text(QUALISYS)
    cameras = read_cameras(path)
    assert cameras.names == ("22",)
    assert cameras.sizes == (SIZE,)
    camera = cameras.camera.map(lambda part: part[0])
    torch.testing.assert_close(camera.position, torch.tensor([4.0, 0, 1]).double())
    assert camera.focal.tolist() == [500, 501]
    assert camera.center.tolist() == [320.5, 240.5]
    assert camera.distortion is not None
    assert camera.distortion[:5].tolist() == [-0.05, 0.1, 0.001, 0.002, 0.01]
    # It looks along -x of the world, with z up.
    seen = camera._replace(distortion=None).project(
        torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 1, 1]]).double()
    )
    np.testing.assert_allclose(seen.depth, 4)
    np.testing.assert_allclose(seen.pixels[0], (320.5, 240.5))
    assert seen.pixels[1, 1] < 240
    assert seen.pixels[2, 0] > 320


def opencv_storage(path, **values):
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for key, value in values.items():
        storage.write(key, value)
    storage.release()
    return path


def test_files_that_opencv_writes_are_read(tmp_path):
    matrix = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    turns, places = np.array([[[0.1], [0.2], [0.3]], [[0], [0], [0]]]), np.array([[[1.0], [2], [3]]] * 2)
    given = {"Ks": np.stack([matrix] * 2), "Rs": turns, "Ts": places, "distortions": np.arange(10) * 1e-3}
    path = opencv_storage(
        tmp_path / "a.yaml",
        **given,
        models=np.zeros(2, int),
        image_sizes=np.array([SIZE] * 2),
        cam_ids=["l", "r"],
    )
    found = read_cameras(path)
    assert found.names == ("l", "r")
    assert found.sizes == (SIZE, SIZE)
    rotation = found.camera.rotation
    assert rotation is not None
    assert found.camera.distortion is not None
    torch.testing.assert_close(rotation, axis_angle_to_matrix(torch.from_numpy(turns[..., 0])))
    np.testing.assert_allclose(found.camera.distortion[1], [5e-3, 6e-3, 7e-3, 8e-3, 9e-3, 0, 0, 0])
    opencv_storage(tmp_path / "intri.yml", names=["01"], K_01=matrix, dist_01=np.zeros((1, 5)))
    opencv_storage(tmp_path / "extri.yml", names=["01"], R_01=turns[0], T_01=places[0])
    (tmp_path / "a.yaml").unlink()
    found = read_cameras(tmp_path)
    assert found.names == ("01",)
    assert found.sizes == (None,)
    np.testing.assert_allclose(found.camera.position[0], -cv2.Rodrigues(turns[0])[0].T @ places[0][:, 0])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("TOML", "matrix", "matrices", "no cameras: no table with a matrix"),
        ("TOML", "rotation", "r", r"\[a\]: expected rotation, as Pose2Sim writes them"),
        ("TOML", "fisheye = false", "fisheye = true", r"\[a\]: fisheye lenses are not read"),
        ("TOML", "[500.0, 0.0", "[-500.0, 0.0", "camera a: intrinsics: expected"),
        ("TOML", "0.1, 0.2, 0.3", "0.1, nan, 0.3", "camera a: rotation: expected 3 or 9 finite numbers"),
        ("TOML", "0.1, 0.2, 0.3", "90.0, 0.0, 0.0", "camera a: rotation: expected an axis .* in radians"),
        ("TOML", "[500.0, 0.0", "[0.78, 0.0", "camera a: matrix: expected focal lengths in pixels"),
        ("TOML", 'name = "b"', 'name = "b\\nc"', "name: expected the name of a camera"),
        ("TOML", 'name = "b"', 'name = "a"', "expected different names, got a more than once"),
        (
            "TOML",
            'name = "b"',
            'name = "../b"',
            "name: expected the name of a camera, for the names of files",
        ),
        ("TOML", "[640, 480]", '["a", 480]', "camera a: size: expected width and height"),
        ("TOML", "name", "a" + ".a" * 20_000, "not a calibration"),
        ("TOML", "[500.0, 0.0", "[inf, 0.0", "camera a: matrix: expected 9 finite numbers"),
        ("TOML", "=", "", "not a calibration; expected a TOML of Pose2Sim or Anipose"),
        ("XML", "<calibration>", "<!DOCTYPE a><calibration>", "expected no document type"),
        ("XML", "calibration>", "kalibration>", "not a calibration of Qualisys, but <kalibration>"),
        ("XML", "fov_video", "fov", "camera a: expected <fov_video>"),
        ("XML", 'z="3000"', "", "camera a: transform: expected numbers x, y, z"),
        ("YAML", "Ks", "Kt", "Ks: missing"),
        ("YAML", "sizes: [2, 3, 3]", "sizes: [7, 3, 3]", "Ks: expected a matrix of OpenCV's"),
    ],
)
def test_a_wrong_calibration_is_one_line_that_names_it(tmp_path, name, old, new, message):
    path, text = tmp_path / "calib", samples.cameras_files()[name]
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(AnnotationError, match=f"calib: .*{message}") as error:
        read_cameras(path)
    assert str(error.value).count("calib: ") == 1
    assert "\n" not in str(error.value)


# --- views


def rig():
    """Three cameras about the origin, with a lens."""
    eyes = [
        Camera.look_at(eye, (0, 0, 0), size=SIZE, fov=0.9)
        for eye in ((-2.0, 0.3, 3.0), (0.5, 0.2, 3.0), (2.5, 0.4, 2.0))
    ]
    camera = Camera(*(torch.stack(parts) for parts in list(zip(*eyes, strict=True))[:4])).to(torch.float64)
    lens = torch.nn.functional.pad(torch.tensor(LENS).double(), (0, 4)).expand(3, 8)
    return Cameras(NAMES, camera._replace(distortion=lens), (SIZE,) * 3)


@pytest.fixture(scope="module")
def body():
    return agebody.SMPLA(agebody.mannequin())


def walkers(body, frames=2):
    """A child and an adult who walk past each other: parameters and pixels (2, T, V, 17, 2)."""
    names = body.asset.joint_names
    turn = torch.from_numpy(pose("walking", names)).float().expand(2, frames, -1, 3)
    way = torch.linspace(-0.03, 0.03, frames)
    place = torch.stack(
        (torch.stack((way - 0.5, way - 0.5)), torch.zeros(2, frames), torch.zeros(2, frames)), -1
    )
    place[1, :, 0] = 0.5 - way
    place[1, :, 2] = -0.4
    age = torch.tensor([0.5, 0.0])[:, None].expand(2, frames)
    people = BodyParameters.zeros(body, 2, frames)._replace(
        body_pose=turn[..., 1:, :], global_orient=turn[..., 0, :], transl=place, age_offset=age
    )
    points = body.keypoints("coco17", people).double()
    return people, rig().camera.project(points[:, :, None]).pixels


def seen_by(pixels, view, order, size=SIZE):
    """People of one view, in an order that says nothing of who they are."""
    count = pixels.shape[1]
    points = torch.cat((pixels[:, :, view], torch.ones(*pixels.shape[:2], 17, 1)), -1)[list(order)]
    return make_people(
        Path(NAMES[view]),
        points.transpose(0, 1).reshape(-1, 17, 3).numpy(),
        agebody.LAYOUTS["coco17"].names,
        None,
        images=[ImageEntry(f"{i:03}.jpg", i, size) for i in range(count)],
        image=np.repeat(np.arange(count), len(order)),
    )


def test_people_are_matched_over_views_and_fitted_once(body):
    people, pixels = walkers(body)
    views = {NAMES[i]: seen_by(pixels, i, order) for i, order in enumerate(((0, 1), (1, 0), (0, 1)))}
    found, cameras = join_views(views, rig())
    assert found.tracks is not None
    assert found.images[2].name == "cam02/000.jpg"
    who = np.tile([0, 1], 2), np.tile([1, 0], 2), np.tile([0, 1], 2)
    np.testing.assert_array_equal(found.tracks == found.tracks[0], np.concatenate(who) == 0)
    assert [part.tolist() for part in view_frames(found, NAMES)] == [
        np.repeat([0, 1, 2], 4).tolist(),
        np.tile(np.repeat([0, 1], 2), 3).tolist(),
    ]
    labels = fit_annotations(body, found, cameras=cameras, motion_sd=0.3)
    assert labels.converged.all()
    assert labels.reprojection.max() < 2
    adult = body.shape(people.map(lambda part: part[1, 0])).rest_vertices[:, 1]
    assert abs(labels.stature[1] - float(adult.max() - adult.min())) < 0.02
    fitted = labels.parameters(body)
    joints = body(fitted).joints.double()
    camera = rig().camera.map(lambda part: part[view_frames(found, NAMES)[0]])
    world = camera.to_world(joints)
    truth = body(people).joints.double()
    rows = torch.from_numpy(np.concatenate(who)), torch.from_numpy(view_frames(found, NAMES)[1])
    assert (world - truth[rows]).norm(dim=-1).max() < 0.06
    assert (world[rows[0] == 0].unflatten(0, (3, 2)).diff(dim=0)).abs().max() < 1e-4  # one pose of all views
    own = labels.camera()
    assert own.distortion is not None
    torch.testing.assert_close(
        own.project(body.keypoints("coco17", fitted)).pixels.float(),
        torch.from_numpy(labels.keypoints).float(),
    )


def test_rays_and_groups():
    eye, other = torch.zeros(3), torch.tensor([0.0, 1.0, 0.0])
    ahead, up = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    assert torch.dist(*nearest_points(eye, ahead, other, up)) == 1
    assert torch.dist(*nearest_points(eye, ahead, other, -ahead)) == 1  # parallel
    assert torch.dist(*nearest_points(eye, ahead, other, torch.tensor([0.0, 1.0, 0.0]))) == 1  # meet behind
    gain = np.array([[0, 3, -1, 0], [3, 0, 2, 0], [-1, 2, 0, -np.inf], [0, 0, -np.inf, 0.0]])
    np.testing.assert_array_equal(join_groups(gain), [0, 0, 0, 1])
    gain[0, 2] = gain[2, 0] = -np.inf
    np.testing.assert_array_equal(join_groups(gain), [0, 0, 1, 2])


def test_views_of_other_sizes_are_scaled_and_of_other_shapes_refused(body):
    _, pixels = walkers(body, 1)
    views = {NAMES[i]: seen_by(pixels / 2, i, (0, 1), (320, 240)) for i in range(3)}
    found, cameras = join_views(views, rig())
    torch.testing.assert_close(cameras.camera.focal, rig().camera.focal / 2)
    assert cameras.sizes == ((320, 240),) * 3
    assert found.notes[0].startswith("camera cam01: 320 x 240 pixels, calibrated were 640 x 480")
    # A picture of 480 x 360 with margins of 2 pixels above and below.
    narrow = {NAMES[i]: seen_by(pixels, i, (0, 1), (480, 364)) for i in range(3)}
    _, cameras = join_views(narrow, rig())
    torch.testing.assert_close(
        cameras.camera.center, 0.75 * rig().camera.center + torch.tensor([0, 2]).double()
    )
    views["cam02"] = seen_by(pixels, 1, (0, 1), (480, 640))
    with pytest.raises(AnnotationError, match="camera cam02: images of 480 x 640 .*cropped or turned"):
        join_views(views, rig())


def test_views_that_do_not_belong_together_are_refused(body):
    _, pixels = walkers(body, 2)
    views = {NAMES[i]: seen_by(pixels, i, (0, 1)) for i in range(3)}
    fewer = views | {"cam03": seen_by(pixels[:, :1], 2, (0, 1))}
    with pytest.raises(
        AnnotationError, match="as many frames of each camera.* got 2 of cam01, 2 of cam02, 1"
    ):
        join_views(fewer, rig())
    with pytest.raises(ValueError, match="found: expected people of cameras cam01, cam02, cam03"):
        join_views({"cam01": views["cam01"]}, rig())
    found, cameras = join_views(views, rig())
    with pytest.raises(ValueError, match="cameras: expected motion_sd with them"):
        fit_annotations(body, found, cameras=cameras)
    strange = replace(found, images=tuple(image._replace(name="a.jpg") for image in found.images))
    with pytest.raises(AnnotationError, match=r"image a\.jpg: expected a folder named like a camera"):
        view_frames(strange, NAMES)


@pytest.mark.parametrize("unit", [100.0, 1000.0])
def test_calibrations_that_are_not_in_metres_are_refused(body, unit):
    _, pixels = walkers(body)
    views = {name: seen_by(pixels, i, (0, 1)) for i, name in enumerate(NAMES)}
    cameras = rig()
    scaled = cameras.camera._replace(translation=unit * cameras.camera.translation)
    with pytest.raises(AnnotationError, match="must be in metres, so divide those in millimetres by 1000"):
        join_views(views, cameras._replace(camera=scaled))


def test_files_belong_to_cameras_by_their_names(tmp_path):
    cameras = rig()._replace(names=("int_cam1_img", "cam2", "cam10"))
    for name in ("cam1_json", "cam2", "cam10.mp4", "notes.txt"):
        path = tmp_path / name
        path.mkdir() if not path.suffix else path.write_bytes(b"")
    found = find_views(tmp_path, cameras)
    assert [path.name for path in found.values()] == ["cam1_json", "cam2", "cam10.mp4"]
    (tmp_path / "cam2.json").write_text("")
    with pytest.raises(AnnotationError, match=r"cam2 and cam2\.json are both of camera cam2; expected one"):
        find_views(tmp_path, cameras)
    (tmp_path / "cam2.json").rename(tmp_path / "cam3.json")
    with pytest.raises(
        AnnotationError, match=r"cam3\.json: of no camera; they are int_cam1_img, cam2, cam10"
    ):
        find_views(tmp_path, cameras)
    (tmp_path / "cam3.json").unlink()
    (tmp_path / "cam2").rmdir()
    with pytest.raises(
        AnnotationError, match=r"no video or keypoints of camera cam2, got cam10\.mp4, cam1_json"
    ):
        find_views(tmp_path, cameras)
    with pytest.raises(AnnotationError, match="expected a folder with a video"):
        find_views(tmp_path / "cam10.mp4", cameras)


# --- the command


def write_rig(path):
    """Write the cameras as Pose2Sim does."""
    cameras, lines = rig(), []
    for i, name in enumerate(NAMES):
        camera = cameras.camera.map(lambda part, i=i: part[i])
        assert camera.rotation is not None
        assert camera.translation is not None
        matrix = camera.intrinsics.clone()
        matrix[:2, 2] -= 0.5
        turn = cv2.Rodrigues(camera.rotation.numpy())[0].ravel().tolist()
        lines += [f'[{name}]\nname = "{name}"\nsize = [640.0, 480.0]\nmatrix = {matrix.tolist()}']
        lines += [
            f"distortions = {list(LENS)}\nrotation = {turn}\ntranslation = {camera.translation.tolist()}"
        ]
    path.write_text("\n".join(lines))
    return path


def test_the_command_fits_folders_of_openpose_of_all_cameras(body, tmp_path, unchecked):
    _, pixels = walkers(body, 2)
    calibration = write_rig(tmp_path / "calib.toml")
    for view, name in enumerate(NAMES):
        folder = tmp_path / "pose" / f"{name}_json"
        folder.mkdir(parents=True)
        for t in range(2):
            points = torch.cat((pixels[0, t, view], torch.ones(17, 1)), -1)
            document = {"people": [{"pose_keypoints_2d": points.flatten().tolist()}]}
            (folder / f"{name}_{t:012}_keypoints.json").write_text(json.dumps(document))
    args = "fit", tmp_path / "pose", "--cameras", calibration, "--body", "mannequin", "-o", tmp_path / "out"
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    assert "6 of 6 detections kept, of 1 person, in 6 images" in result.stdout
    labels = load_labels(tmp_path / "out" / "labels.npz")
    assert labels.image_ids[0] == "cam01/cam01_000000000000"
    assert set(labels.track) == {0}
    np.testing.assert_allclose(labels.distortion[:, :4], [LENS] * 6, rtol=1e-5)
    assert labels.reprojection.max() < 2
    assert not labels.flags["age_unknown"].any()
    before = sorted(tmp_path.rglob("*"))
    for more, message in [
        (("--focal", 500, "--overwrite"), "it belongs to images of one camera, not to --cameras"),
        (("--shards", "--overwrite"), "it needs images of one camera, not --cameras"),
        ((), "labels.npz: exists"),
    ]:
        result = run(*args, *more)
        assert result.exit_code != 0
        assert message in " ".join(result.stderr.replace("│", " ").split())
    films = [tmp_path / "out" / f"overlay_{name}.mp4" for name in ("cam01", "holiday")]
    for film in films:
        film.write_bytes(b"film")
    assert run(*args, "--overwrite").exit_code == 0
    assert [film.exists() for film in films] == [False, True]  # only the first is of a camera of the labels
    films[1].unlink()
    next((tmp_path / "pose" / "cam02_json").iterdir()).unlink()
    result = run(*args, "--overwrite")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert (
        "as many frames of each camera, at the same times, got 2 of cam01, 1 of cam02, 2 of cam03"
        in result.stderr
    )
    assert len(before) == len([*tmp_path.rglob("*")]) + 1
