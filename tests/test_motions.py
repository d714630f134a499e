"""Motions of one person in files: AMASS's of SMPL-H and SMPL-X, and back."""

import numpy as np
import pytest
import torch
from bodies import random_body
from model_files import PARENTS

import agebody
from agebody.annotations import AnnotationError, MotionClip, read_motion, save_motion
from agebody.assets.asset import Metadata
from agebody.assets.official import JOINT_NAMES
from agebody.body import SMPL, SMPLH, SMPLX


def small(family, *, num_betas=16, **options):
    """A body of a family with few vertices."""
    asset = random_body(num_vertices=60, parents=PARENTS[family], num_betas=num_betas, **options)
    names = JOINT_NAMES[family]
    return asset.replace(joint_names=names, metadata=Metadata(name=f"small {family}", kind=family))


BODIES = {
    "smpl": SMPL(small("smpl", num_betas=10), dtype=torch.float64),
    "smplh": SMPLH(small("smplh"), num_betas=16, dtype=torch.float64),
    "smplx": SMPLX(small("smplx"), num_betas=16, dtype=torch.float64),
}


def amass(family, frames=4, seed=0):
    """What AMASS's files have, as its papers and their tools describe them."""
    rng = np.random.default_rng(seed)
    width = 3 * len(JOINT_NAMES[family])
    arrays = {
        "trans": rng.normal(size=(frames, 3)),
        "gender": np.array("female"),
        "betas": rng.normal(size=16),
        "poses": 0.3 * rng.normal(size=(frames, width)),
    }
    if family == "smplh":
        return arrays | {"mocap_framerate": np.array(120.0), "dmpls": rng.normal(size=(frames, 8))}
    ends = {"root_orient": 3, "pose_body": 66, "pose_jaw": 69, "pose_eye": 75, "pose_hand": 165}
    start = 0
    for name, end in ends.items():
        arrays[name] = arrays["poses"][:, start:end]
        start = end
    stated = {"surface_model_type": np.array("smplx"), "mocap_frame_rate": np.array(60), "num_betas": 16}
    objects = {"markers_latent_vids": np.array({"A": 3}, object), "latent_labels": np.array(["A", "B"])}
    return arrays | stated | objects


@pytest.mark.parametrize("family", ["smplh", "smplx"])
def test_the_numbers_of_a_file_are_those_of_the_body(tmp_path, family):
    arrays, body = amass(family), BODIES[family]
    np.savez(tmp_path / "a.npz", **arrays)
    clip = read_motion(tmp_path / "a.npz", body)
    found = clip.parameters
    assert (clip.fps, clip.gender, clip.up, clip.notes) == (
        {"smplh": 120.0}.get(family, 60.0),
        "female",
        "z",
        (),
    )
    pose = np.concatenate((found.global_orient, found.body_pose.flatten(1)), 1)
    np.testing.assert_array_equal(pose, arrays["poses"])
    np.testing.assert_array_equal(found.transl, arrays["trans"])
    np.testing.assert_array_equal(found.betas, np.tile(arrays["betas"], (4, 1)))
    assert body(found).vertices.isfinite().all()


def test_parts_named_as_in_smplx_are_the_pose_they_make(tmp_path):
    """As the parameters of GVHMR's fits, which have no hands, or of SMPLer-X's."""
    arrays = amass("smplx")
    ends = (0, 3, 66, 69, 72, 75, 120, 165)
    names = (
        "global_orient",
        "body_pose",
        "jaw_pose",
        "leye_pose",
        "reye_pose",
        "left_hand_pose",
        "right_hand_pose",
    )
    parts = {n: arrays["poses"][:, a:b] for n, a, b in zip(names, ends, ends[1:], strict=False)}
    np.savez(tmp_path / "a.npz", transl=arrays["trans"], betas=arrays["betas"], **parts)
    clip, body = read_motion(tmp_path / "a.npz", BODIES["smplx"]), agebody.SMPLA(agebody.mannequin())
    pose = torch.cat((clip.parameters.global_orient, clip.parameters.body_pose.flatten(1)), 1)
    np.testing.assert_array_equal(pose, arrays["poses"])
    np.testing.assert_array_equal(clip.parameters.betas[0], arrays["betas"])
    assert (clip.up, clip.notes) == ("y", ())
    np.savez(tmp_path / "b.npz", **{name: parts[name] for name in names[:2]}, betas=arrays["betas"])
    clip = read_motion(tmp_path / "b.npz", body)
    np.testing.assert_allclose(clip.parameters.body_pose[:, :21].flatten(1), parts["body_pose"], rtol=1e-6)
    assert not clip.parameters.body_pose[:, 21:].any()
    assert not clip.parameters.betas.any()
    assert clip.notes == ("betas of SMPL-X, left out: mannequin has others",)


def test_lists_of_one_gender_and_rate_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", **amass("smplh") | {"gender": ["male"], "mocap_framerate": [25.0]})
    clip = read_motion(tmp_path / "a.npz", BODIES["smplh"])
    assert (clip.gender, clip.fps) == ("male", 25.0)


def test_parts_alone_are_the_pose_they_make(tmp_path):
    arrays = amass("smplx")
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **{k: v for k, v in arrays.items() if k != "poses"})
    for a, b in zip(
        *(read_motion(tmp_path / n, BODIES["smplx"]).parameters for n in ("a.npz", "b.npz")), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_joints_go_by_their_names_from_family_to_family(tmp_path):
    arrays = amass("smplx")
    np.savez(tmp_path / "a.npz", **arrays)
    whole = dict(zip(JOINT_NAMES["smplx"], arrays["poses"].reshape(4, 55, 3).transpose(1, 0, 2), strict=True))
    for family, notes in (
        ("smplh", "jaw, left_eye, right_eye"),
        ("smpl", "jaw, left_eye, right_eye, 30 more"),
    ):
        body = BODIES[family]
        clip = read_motion(tmp_path / "a.npz", body)
        for i, name in enumerate(body.asset.joint_names[1:]):
            np.testing.assert_array_equal(clip.parameters.body_pose[:, i], whole.get(name, np.zeros((4, 3))))
        assert not clip.parameters.betas.any()
        assert any(notes in note for note in clip.notes)
        assert any(note.startswith("betas of SMPL-X, left out") for note in clip.notes)
    few = SMPLX(BODIES["smplx"].asset)
    assert read_motion(tmp_path / "a.npz", few).notes == ("the last 6 betas, left out: the body has 10",)


def test_up_is_turned_with_the_whole_body(tmp_path):
    body = BODIES["smplh"]
    np.savez(tmp_path / "a.npz", **amass("smplh"))
    clip = read_motion(tmp_path / "a.npz", body)
    turned = clip.turned(body, "y")
    expected = body(clip.parameters).vertices[..., [0, 2, 1]] * torch.tensor([1, 1, -1])
    torch.testing.assert_close(body(turned.parameters).vertices, expected)
    back = turned.turned(body, "z")
    torch.testing.assert_close(body(back.parameters).vertices, body(clip.parameters).vertices)
    assert clip.turned(body, "z") is clip


@pytest.mark.parametrize("family", BODIES)
@pytest.mark.parametrize("up", ["y", "z"])
def test_write_read_round_trip(tmp_path, family, up):
    body = BODIES[family]
    rng = torch.Generator().manual_seed(1)
    some = agebody.BodyParameters.zeros(body, 5).map(
        lambda t: 0.4 * torch.randn(t.shape, generator=rng).double()
    )
    some = some._replace(betas=some.betas[:1].expand(5, -1), age_offset=torch.full((5,), 0.3).double())
    save_motion(MotionClip(some, 25.0, "male", up), body, tmp_path / "a.npz")
    again = read_motion(tmp_path / "a.npz", body)
    assert (again.fps, again.gender, again.up, again.notes) == (25.0, "male", "z", ())
    turned = again.turned(body, up).parameters
    torch.testing.assert_close(body(turned).vertices, body(some).vertices)
    ages = 0.3 if body.age_anchors else 0.0
    torch.testing.assert_close(again.parameters.age_offset, torch.full((5,), ages).double())
    with np.load(tmp_path / "a.npz") as file:  # as AMASS's own tools read them
        assert file["betas"].shape == (16,)
        assert file["poses"].shape == (5, 3 * body.num_joints)
        assert file["trans"].shape == (5, 3)
        if family == "smplx":
            whole = [file[name] for name in ("root_orient", "pose_body", "pose_jaw", "pose_eye", "pose_hand")]
            np.testing.assert_array_equal(np.concatenate(whole, 1), file["poses"])
            assert (float(file["mocap_frame_rate"]), float(file["mocap_time_length"])) == (25.0, 0.2)
        else:
            assert float(file["mocap_framerate"]) == 25.0
            assert file["dmpls"][:, :8].shape == (5, 8)
    with pytest.raises(FileExistsError):
        save_motion(MotionClip(some, 25.0), body, tmp_path / "a.npz")


def test_expressions_may_change_over_time(tmp_path):
    names = (*(f"beta{i}" for i in range(16)), *(f"expression{i}" for i in range(10)))
    asset = small("smplx", num_betas=26)
    asset = asset.replace(metadata=Metadata(name="x", kind="smplx", shape_names=names))
    body = SMPLX(asset, num_betas=16, dtype=torch.float64)
    some = agebody.BodyParameters.zeros(body, 3)
    some.betas[:, 16:] = torch.randn(3, 10).double()
    some.betas[:, :16] = torch.randn(16).double()
    save_motion(MotionClip(some, 30.0), body, tmp_path / "a.npz")
    torch.testing.assert_close(read_motion(tmp_path / "a.npz", body).parameters.betas, some.betas)


DAMAGES = {
    "poses: expected angles of a frame": {"poses": np.zeros((4, 150))},
    "trans: expected 4 frames, as in poses, got 3": {"trans": np.zeros((3, 3))},
    "trans: expected shape (N, 3)": {"trans": np.zeros((4, 4))},
    "poses: expected axis-angle vectors (frames, joints, 3), or flat, got shape (4, 52, 3, 3)": {
        "poses": np.zeros((4, 52, 3, 3))
    },
    "poses: expected finite numbers": {"poses": np.full((4, 156), np.nan)},
    "poses: expected numbers, got <U1": {"poses": np.full((4, 156), "x")},
    "poses: Python objects are not loaded": {"poses": np.array([{}] * 4, object)},
    "at least one frame, got none": {"poses": np.zeros((0, 156)), "trans": np.zeros((0, 3)), "dmpls": 0},
    "betas: expected the betas of all frames, or of each of 4, got (3, 16)": {"betas": np.zeros((3, 16))},
    "fps: expected frames per second above 0, got 0": {"mocap_framerate": np.array(0.0)},
    "poses: expected axis-angle vectors in radians, got 90": {"poses": np.full((4, 156), -90.0)},
    "trans: expected metres, got 1500": {"trans": np.full((4, 3), 1500)},
    "fps: expected frames per second above 0, got 1, 2": {"mocap_framerate": np.arange(1, 3)},
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path, message):
    np.savez(tmp_path / "a.npz", **amass("smplh") | DAMAGES[message])
    with pytest.raises(AnnotationError) as error:
        read_motion(tmp_path / "a.npz", BODIES["smplh"])
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'a.npz'}: ")
    assert "\n" not in str(error.value)


def test_files_of_shapes_and_of_labels_are_distinguished(tmp_path):
    arrays = amass("smplx")
    np.savez(tmp_path / "stagei.npz", betas=arrays["betas"], gender="male", latent_labels=["a"])
    np.savez(tmp_path / "labels.npz", transl=np.zeros((2, 3)), focal=np.ones((2, 2)))
    np.savez(
        tmp_path / "3dpw_test.npz", imgname=["a", "b"], gender=["m", "f"], pose=np.zeros((2, 72))
    )  # of SPIN
    np.savez(tmp_path / "dances.npz", smpl_poses=np.zeros((2, 72)), smpl_trans=np.zeros((2, 3)))
    np.savez(tmp_path / "other.npz", rotvec=np.zeros((2, 53, 3)), transl=np.zeros((2, 3)))
    np.save(tmp_path / "a.npy", np.zeros((2, 72)))
    torch.save({"poses": torch.zeros(2, 72)}, tmp_path / "a.pt")
    np.savez(tmp_path / "whole.npz", **arrays)
    for name, content in (
        ("a.pkl", b"\x80\x04]q"),
        ("page.npz", b"<!doctype html>"),
        ("empty.npz", b""),
        ("cut.npz", (tmp_path / "whole.npz").read_bytes()[:999]),
        ("a.json", b'{"poses": []}'),
    ):
        (tmp_path / name).write_bytes(content)
    for name, why in (
        ("stagei.npz", "shape of a person"),
        ("labels.npz", "cameras"),
        ("3dpw_test.npz", "people in images, to train or test networks with; a motion is of one"),
        ("dances.npz", "not a motion; expected poses, .*, got smpl_poses, smpl_trans"),
        ("other.npz", "not a motion; expected poses, .*, got rotvec, transl"),
        ("a.npy", "not an npz file, .*; this is a single array"),
        ("a.pt", "not an npz file, .*; this is a file of torch"),
        ("a.pkl", "not an npz file, .*; this is a pickle"),
        ("page.npz", "not an npz file, .*; this is a web page"),
        ("empty.npz", "not an npz file, .*; this one is empty"),
        ("cut.npz", "not an npz file, .*; this one is damaged or truncated"),
        ("a.json", "not an npz file, .*; this is a JSON text"),
    ):
        with pytest.raises(AnnotationError, match=why):
            read_motion(tmp_path / name, BODIES["smplx"])
    own = SMPL(random_body(), dtype=torch.float64)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(AnnotationError, match="random has none of the joints of SMPL-X"):
        read_motion(tmp_path / "a.npz", own)


def test_poses_may_have_an_axis_of_joints_or_not(tmp_path):
    body, arrays = BODIES["smplh"], amass("smplh")
    pose = np.random.default_rng(1).normal(size=(4, body.num_joints - 1, 3))
    found = []
    for entries in (
        arrays,
        arrays | {"poses": arrays["poses"].reshape(4, -1, 3)},
        {"body_pose": pose},
        {"body_pose": pose.reshape(4, -1)},
    ):
        np.savez(tmp_path / "a.npz", **entries)
        found.append(read_motion(tmp_path / "a.npz", body).parameters.body_pose)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], torch.from_numpy(pose))
    torch.testing.assert_close(found[2], found[3])
    np.savez(tmp_path / "a.npz", body_pose=np.zeros((4, 60)))
    with pytest.raises(AnnotationError, match="body_pose: expected the 51 joints of .*, got 20"):
        read_motion(tmp_path / "a.npz", body)


def test_other_arrays_beside_a_pose_are_named(tmp_path):
    """And betas may be one person's, beside the poses of frames."""
    arrays = {"global_orient": np.ones((4, 3)), "betas": np.arange(10.0), "jaw_pose": np.ones((4, 3))}
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_motion(tmp_path / "a.npz", BODIES["smplx"])
    assert found.notes == ("arrays that are not read: jaw_pose",)
    assert found.parameters.betas[:, :10].tolist() == 4 * [list(range(10))]
    assert found.parameters.global_orient.eq(1).all()


def test_unwritable_output_is_refused(tmp_path):
    body = BODIES["smplh"]
    still = MotionClip(agebody.BodyParameters.zeros(body, 2), 30.0)
    two = still.parameters._replace(betas=torch.eye(2, 16).double())
    for message, clip, layer, name in (
        (r"motion\.parameters\.betas: a file has one person", still._replace(parameters=two), body, "a.npz"),
        (
            r"motion\.fps: expected frames per second above 0, got None",
            still._replace(fps=None),
            body,
            "a.npz",
        ),
        (r"a\.pkl: expected the suffix \.npz", still, body, "a.pkl"),
        ("body: expected the joints of SMPL", still, SMPL(random_body()), "a.npz"),
        (
            r"motion\.parameters: expected frames",
            MotionClip(agebody.BodyParameters.zeros(body), 30.0),
            body,
            "a.npz",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            save_motion(clip, layer, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_clip_becomes_a_rigged_file_by_the_command(tmp_path):
    from test_rigged import export

    agebody.save_asset(small("smplh"), tmp_path / "h.safetensors")
    np.savez(tmp_path / "clip_poses.npz", **amass("smplh"))
    given = (tmp_path / "h.safetensors", "--motion", tmp_path / "clip_poses.npz", "-o", tmp_path / "a.bvh")
    result = export(*given)
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "a.bvh").read_text()
    assert "Frames: 4" in text
    assert f"Frame Time: {1 / 120:.4f}"[:17] in text
    mannequin = export("mannequin", "--motion", tmp_path / "clip_poses.npz", "-o", tmp_path / "b.glb")
    assert mannequin.exit_code == 0, mannequin.stderr
    assert "joints that mannequin lacks, left out: left_index1" in mannequin.stderr
