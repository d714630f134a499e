"""Rigged files, read by a second reader: skinning and kinematics are written again here, from the formats."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
import trimesh
from bodies import random_body
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

import agebody
from agebody.annotations.videos import Video
from agebody.assets.io import save_asset
from agebody.draw import save_rigged
from agebody.parameters import BodyParameters
from agebody.pipelines.cli import app

MANNEQUIN = agebody.mannequin()
PLAIN = agebody.SMPLA(MANNEQUIN.replace(posedirs=None))
"""The layer without pose blend shapes, which files cannot have."""
TYPES = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
SIZES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class Glb:
    """A .glb file as arrays, by glTF 2.0."""

    def __init__(self, path):
        data = path.read_bytes()
        magic, version, length, size, kind = np.frombuffer(data, "<u4", 5).tolist()
        assert (magic, version, length, kind) == (0x46546C67, 2, len(data), 0x4E4F534A)
        self.tree = json.loads(data[20 : 20 + size])
        start = 28 + size
        binary = int.from_bytes(data[start - 8 : start - 4], "little")
        assert data[start - 4 : start] == b"BIN\0"
        assert start + binary == length
        assert not start % 4
        self.binary = data[start:]
        self.mesh, self.skin = self.tree["meshes"][0], self.tree["skins"][0]
        primitive = self.mesh["primitives"][0]
        self.attributes = {name: self.array(i) for name, i in primitive["attributes"].items()}
        self.faces = self.array(primitive["indices"]).reshape(-1, 3)
        self.targets = [self.array(target["POSITION"]) for target in primitive.get("targets", ())]

    def array(self, index):
        accessor = self.tree["accessors"][index]
        view = self.tree["bufferViews"][accessor["bufferView"]]
        count = accessor["count"] * SIZES[accessor["type"]]
        assert not view["byteOffset"] % 4
        found = np.frombuffer(self.binary, TYPES[accessor["componentType"]], count, view["byteOffset"])
        found = found.reshape(accessor["count"], -1)
        if "min" in accessor:
            np.testing.assert_array_equal(found.min(0), np.float32(accessor["min"]))
            np.testing.assert_array_equal(found.max(0), np.float32(accessor["max"]))
        return found

    def frames(self):
        """Return translations (N, J, 3) and rotations (N, J, 4) of the nodes, one of each without motion."""
        joints = [self.tree["nodes"][j] for j in self.skin["joints"]]
        places = np.array([[node["translation"] for node in joints]])
        turns = np.array([[node["rotation"] for node in joints]])
        for motion in self.tree.get("animations", ()):
            count = len(self.array(motion["samplers"][0]["input"]))
            places, turns = places.repeat(count, 0), turns.repeat(count, 0)
            for channel in motion["channels"]:
                values = self.array(motion["samplers"][channel["sampler"]]["output"])
                part = {"translation": places, "rotation": turns}[channel["target"]["path"]]
                part[:, self.skin["joints"].index(channel["target"]["node"])] = values
        return places, turns

    def posed(self, weights=(), joint_moves=None):
        """Return the skinned vertices (N, V, 3) of every frame; rest joints may move by (J, 3)."""
        surface = self.attributes["POSITION"] + sum(
            w * target for w, target in zip(weights, self.targets, strict=False)
        )
        places, turns = self.frames()
        inverse = self.array(self.skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1).copy()
        parents = {child: j for j, n in enumerate(self.tree["nodes"]) for child in n.get("children", ())}
        if joint_moves is not None:
            inverse[:, :3, 3] -= joint_moves
            places = places + [
                m - (joint_moves[parents[j]] if j in parents else 0) for j, m in enumerate(joint_moves)
            ]
        found = []
        for place, turn in zip(places, turns, strict=True):
            world = {}
            for j in self.skin["joints"]:
                local = np.eye(4)
                local[:3, :3], local[:3, 3] = Rotation.from_quat(turn[j]).as_matrix(), place[j]
                world[j] = world[parents[j]] @ local if j in parents else local
            skin = np.stack([world[j] for j in self.skin["joints"]]) @ inverse
            blend = np.einsum("vw,vwab->vab", self.attributes["WEIGHTS_0"], skin[self.attributes["JOINTS_0"]])
            found.append(np.einsum("vab,vb->va", blend[:, :3, :3], surface) + blend[:, :3, 3])
        return np.stack(found)


def moving(body, count, age_offset=0.0, seed=0):
    """Frames of one person with random rotations of every joint."""
    generator = torch.Generator().manual_seed(seed)
    rest = BodyParameters.zeros(body, count)
    drawn = rest.map(lambda part: 0.4 * torch.randn(part.shape, generator=generator, dtype=part.dtype))
    return drawn._replace(
        betas=drawn.betas[:1].expand(count, -1), age_offset=torch.full_like(rest.age_offset, age_offset)
    )


@pytest.mark.parametrize("age_offset", [0.0, 0.45, 1.0, 1.1])
def test_skinning_of_the_file_is_the_layer_without_correctives(tmp_path, age_offset):
    frames = moving(PLAIN, 3, age_offset, seed=int(10 * age_offset))
    error = save_rigged(PLAIN, tmp_path / "a.glb", parameters=frames, fps=25)
    file = Glb(tmp_path / "a.glb")
    np.testing.assert_allclose(file.posed(), PLAIN(frames).vertices.numpy(), atol=2e-6)  # float32
    assert error < 2e-6
    times = file.array(file.tree["animations"][0]["samplers"][0]["input"])
    np.testing.assert_allclose(times[:, 0], [0, 0.04, 0.08], rtol=1e-6)
    names = [node["name"] for node in file.tree["nodes"]]
    assert names == [*MANNEQUIN.joint_names, "mannequin"]


def test_a_single_pose_is_that_of_the_nodes(tmp_path):
    pose = moving(PLAIN, 1).map(lambda part: part[0])
    save_rigged(PLAIN, tmp_path / "a.glb", parameters=pose)
    file = Glb(tmp_path / "a.glb")
    assert "animations" not in file.tree
    np.testing.assert_allclose(file.posed()[0], PLAIN(pose).vertices.numpy(), atol=2e-6)


def test_the_error_is_that_of_correctives_and_of_four_joints(tmp_path):
    for asset in (MANNEQUIN, random_body(num_vertices=40, parents=(-1, 0, 1, 2, 3, 4, 0, 6))):
        body = agebody.SMPLA(asset)
        frames = moving(body, 11)  # more than are posed at once
        error = save_rigged(body, tmp_path / "a.glb", parameters=frames, overwrite=True)
        far = np.linalg.norm(Glb(tmp_path / "a.glb").posed() - body(frames).vertices.numpy(), axis=-1)
        assert error == pytest.approx(far.max(), rel=1e-3)
        assert error > 1e-3


@pytest.mark.parametrize("age_offsets", [(1.0,), (-0.5, 0.4, 1.0)])
def test_morph_targets_are_other_betas_and_ages(tmp_path, age_offsets):
    asset = random_body(age_offsets=age_offsets, posedirs=False)  # of four joints
    body = agebody.SMPLA(asset)
    start = moving(body, 2, 0.3)
    save_rigged(body, tmp_path / "a.glb", parameters=start, morph_targets=True)
    file = Glb(tmp_path / "a.glb")
    assert file.mesh["extras"]["targetNames"] == [
        *("beta_0", "beta_1", "beta_2"),
        *(f"age_offset_{a:g}" for a in age_offsets),
    ]
    assert file.mesh["weights"] == [0] * len(file.targets)
    other = start._replace(betas=start.betas + torch.tensor([0.5, -1.0, 2.0]))
    other = other._replace(age_offset=torch.full((2,), 0.9))
    knots = sorted([0.0, *age_offsets])
    hats = [
        np.interp(0.9, knots, np.eye(len(knots))[knots.index(a)])
        - np.interp(0.3, knots, np.eye(len(knots))[knots.index(a)])
        for a in age_offsets
    ]
    weights = np.array([0.5, -1.0, 2.0, *hats])
    moves = np.einsum("t,tjc->jc", weights, np.array(file.mesh["extras"]["targetJoints"]))
    expected = body(other).vertices.numpy()
    np.testing.assert_allclose(file.posed(weights, moves), expected, atol=1e-5)
    assert np.abs(file.posed(weights) - expected).max() > 0.01  # joints that stay are not the other body's


def test_targets_have_the_names_of_the_shape_directions(tmp_path):
    save_rigged(agebody.SMPLA(MANNEQUIN, num_betas=2), tmp_path / "a.glb")
    names = Glb(tmp_path / "a.glb").mesh["extras"]["targetNames"]
    assert names == ["stature", "weight", "age_offset_1"]


def test_the_shape_space_of_a_licensed_body_is_written_only_when_asked_for(tmp_path):
    for license in ("unknown", "Apache-2.0; infant template: SMIL model licence"):
        metadata = dataclasses.replace(MANNEQUIN.metadata, name="mine", license=license)
        body = agebody.SMPLA(MANNEQUIN.replace(metadata=metadata))
        save_rigged(body, tmp_path / "a.glb", overwrite=True)
        file = Glb(tmp_path / "a.glb")
        assert not file.targets
        assert file.tree["asset"]["copyright"] == f"mine: {license}"
    save_rigged(body, tmp_path / "a.glb", morph_targets=True, overwrite=True)
    assert len(Glb(tmp_path / "a.glb").targets) == 11
    save_rigged(agebody.SMPLA(MANNEQUIN), tmp_path / "a.glb", morph_targets=False, overwrite=True)
    assert not Glb(tmp_path / "a.glb").targets


def test_file_satisfies_validators(tmp_path):
    asset = random_body(num_vertices=30, parents=(-1, 0, 1, 2, 3, 4))
    faces = asset.faces[(asset.faces != 7).all(1)]  # a vertex without a triangle has no normal
    save_rigged(agebody.SMPL(asset.replace(faces=faces)), tmp_path / "a.glb")
    file = Glb(tmp_path / "a.glb")
    weights, joints = file.attributes["WEIGHTS_0"], file.attributes["JOINTS_0"]
    np.testing.assert_allclose(weights.sum(1, dtype=np.float64), 1, atol=2e-7)
    assert (joints[weights == 0] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(file.attributes["NORMAL"], axis=1), 1, atol=1e-6)
    few = random_body(num_vertices=9, parents=(-1, 0))
    save_rigged(agebody.SMPL(few), tmp_path / "b.glb")
    assert Glb(tmp_path / "b.glb").attributes["JOINTS_0"].shape == (9, 4)


def test_rotations_do_not_jump_to_the_other_quaternion(tmp_path):
    count = 40
    angles = (torch.linspace(0, 4 * np.pi, count) + np.pi) % (2 * np.pi) - np.pi  # as fits return them
    turns = angles[:, None] * torch.tensor([0.0, 0.6, 0.8])
    frames = BodyParameters.zeros(PLAIN, count)._replace(global_orient=turns)
    save_rigged(PLAIN, tmp_path / "a.glb", parameters=frames)
    _, found = Glb(tmp_path / "a.glb").frames()
    assert (found[1:, 0] * found[:-1, 0]).sum(-1).min() > 0.9


def test_trimesh_reads_the_surface_and_the_material(tmp_path):
    save_rigged(PLAIN, tmp_path / "a.glb", color="#ff0000")
    mesh = trimesh.load(tmp_path / "a.glb", process=False, force="mesh")
    np.testing.assert_allclose(mesh.vertices, MANNEQUIN.template, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, MANNEQUIN.faces)
    assert mesh.visual.material.metallicFactor == 0
    np.testing.assert_array_equal(mesh.visual.material.baseColorFactor, [255, 0, 0, 255])


def bvh_joints(path):
    """Return the positions (N, J, 3) of the joints of a .bvh file, by name, and its frame time."""
    head, motion = path.read_text().split("MOTION\n")
    names, offsets, parents, channels, above, end = [], [], [], [], [], False
    for word, *rest in (line.split() for line in head.splitlines()):
        if word in ("ROOT", "JOINT"):
            names += rest
            parents.append(above[-1] if above else -1)
        elif word == "End":
            end = True
        elif word == "{":
            above.append(len(names) - 1)
        elif word == "}":
            above.pop()
            end = False
        elif word == "OFFSET" and not end:
            offsets.append(np.array(rest, float))
        elif word == "CHANNELS":
            channels.append(rest[1:])
    count, time, *rows = motion.splitlines()
    rows = np.array([row.split() for row in rows], float)
    assert count == f"Frames: {len(rows)}"
    found = np.zeros((len(rows), len(names), 3))
    for n, row in enumerate(rows):
        values, world = iter(row), []
        for j, parent in enumerate(parents):
            local = np.eye(4)
            local[:3, 3] = offsets[j]
            for channel in channels[j]:
                step, value = np.eye(4), next(values)
                if channel.endswith("position"):
                    step["XYZ".index(channel[0]), 3] = value
                else:
                    step[:3, :3] = Rotation.from_euler(channel[0].lower(), value, degrees=True).as_matrix()
                local = local @ step
            world.append(world[parent] @ local if parent >= 0 else local)
        found[n] = [matrix[:3, 3] for matrix in world]
    return dict(zip(names, found.transpose(1, 0, 2), strict=True)), float(time.split(": ")[1])


def test_bvh_has_the_joints_of_the_layer(tmp_path):
    body = agebody.SMPLA(MANNEQUIN)
    frames = moving(body, 4, 0.6)
    assert save_rigged(body, tmp_path / "a.bvh", parameters=frames, fps=50) == 0
    found, time = bvh_joints(tmp_path / "a.bvh")
    assert time == pytest.approx(0.02)
    expected = body(frames).joints.numpy()
    for j, name in enumerate(MANNEQUIN.joint_names):
        np.testing.assert_allclose(found[name], expected[:, j], atol=1e-5)  # six digits


def frames_of_two():
    return moving(PLAIN, 2)._replace(betas=torch.eye(2, 10))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.fbx", {}, r"a\.fbx: expected one of the suffixes \.glb, \.bvh, got '\.fbx'"),
        ("a.glb", {"fps": 0}, "fps: expected a number of frames per second above 0"),
        ("a.glb", {"color": [2, 0, 0]}, "color: expected red, green and blue from 0 to 1"),
        ("a.glb", {"color": np.zeros((5, 3))}, "color: expected one colour"),
        ("a.bvh", {"morph_targets": True}, "morph_targets: a .bvh has no surface"),
        ("a.glb", {"parameters": frames_of_two()}, "parameters.betas: a file has one person"),
        ("a.glb", {"parameters": BodyParameters.zeros(PLAIN, 2, 3)}, r"parameters: expected one body"),
        ("a.glb", {"parameters": BodyParameters.zeros(PLAIN, 0)}, r"parameters: expected one body"),
        (
            "a.glb",
            {"parameters": BodyParameters.zeros(PLAIN)._replace(transl=torch.full((3,), torch.nan))},
            r"parameters\.transl: expected finite numbers",
        ),
        (
            "a.glb",
            {"parameters": BodyParameters.zeros(PLAIN)._replace(betas=torch.zeros(4))},
            r"parameters\.betas: expected shape \(\*batch, 10\), got \(4,\)",
        ),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        save_rigged(PLAIN, tmp_path / name, **options)
    assert os.listdir(tmp_path) == []


def test_bodies_without_one_skeleton_are_refused(tmp_path, unchecked):
    with pytest.raises(TypeError, match="parameters"):
        save_rigged(PLAIN, tmp_path / "a.glb", parameters={})
    two = agebody.SMPLA(MANNEQUIN, smil=MANNEQUIN.at_age(1.0))
    with pytest.raises(ValueError, match=r"body: blends two bodies \(smil=...\)"):
        save_rigged(two, tmp_path / "a.glb")
    (tmp_path / "a.glb").write_text("mine")
    with pytest.raises(FileExistsError):
        save_rigged(PLAIN, tmp_path / "a.glb")
    assert (tmp_path / "a.glb").read_text() == "mine"


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_command_writes_an_identity_and_a_motion(tmp_path):
    body = agebody.SMPLA(MANNEQUIN)
    motion = moving(body, 3, 0.8)
    np.savez(tmp_path / "m.npz", **{name: part.numpy() for name, part in motion._asdict().items()})
    path = tmp_path / "a.glb"
    result = export("mannequin", "--motion", tmp_path / "m.npz", "-o", path, "--fps", 10)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {path}: mannequin, 24 joints\n"
    assert "mm from the body's own" in result.stderr
    expected = agebody.SMPLA(MANNEQUIN.replace(posedirs=None))(motion).vertices.numpy()
    np.testing.assert_allclose(Glb(path).posed(), expected, atol=2e-6)
    result = export("mannequin", "--years", 4, "--betas", "1,-1", "-o", path, "--overwrite")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    offset = agebody.age.AgeCurve.from_asset(MANNEQUIN).years_to_offset(4.0)
    betas = torch.tensor([1.0, -1.0] + [0.0] * 8)
    np.testing.assert_allclose(
        Glb(path).posed()[0], body(betas=betas, age_offset=offset).vertices.numpy(), atol=2e-6
    )
    moved = ("--motion", tmp_path / "m.npz", "--age-class", "kid", "-o", path, "--overwrite")
    assert export("mannequin", *moved).exit_code == 0
    assert Glb(path).tree["asset"]["extras"]["age_offset"] == pytest.approx(0.6)


def test_the_command_draws_a_motion_as_a_video(tmp_path):
    body = agebody.SMPLA(MANNEQUIN)
    clip = BodyParameters.zeros(body, 2)
    clip = clip._replace(transl=torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))
    np.savez(tmp_path / "m.npz", **{name: part.numpy() for name, part in clip._asdict().items()})
    path = tmp_path / "a.mp4"
    given = ("mannequin", "--motion", tmp_path / "m.npz", "-o", path)
    result = export(*given, "--fps", 10)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    film = Video(path)
    assert (film.count, film.rate) == (2, 10)
    # Where the two frames differ, the body is left in the first and right in the second.
    first, second = (pixels.astype(float).sum(-1) for _, pixels in film.frames())
    changed = np.abs(first - second) > 150
    darker = (first < second) & changed
    columns = np.arange(640)[None].repeat(640, 0)
    assert columns[darker].max() < columns[changed & ~darker].min()
    for wrong in (("mannequin", "-o", tmp_path / "b.mp4"), (*given, "--overwrite", "--morph-targets")):
        result = export(*wrong)
        assert result.exit_code == 1
        assert "a video shows a motion and holds no morph targets" in result.stderr


def test_command_names_the_licence_of_the_data(tmp_path):
    metadata = dataclasses.replace(MANNEQUIN.metadata, name="mine", license="research only")
    save_asset(MANNEQUIN.replace(metadata=metadata), tmp_path / "b.safetensors")
    result = export(tmp_path / "b.safetensors", "-o", tmp_path / "a.glb")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "note: the file contains data of mine under its licence: research only",
        "note: it has no morph targets, which are the body's shape space; --morph-targets writes them",
    ]
    result = export(tmp_path / "b.safetensors", "-o", tmp_path / "c.glb", "--morph-targets")
    assert len(Glb(tmp_path / "c.glb").targets) == 11
    assert result.stderr.count("note:") == 1


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({"body_pose": np.zeros((2, 5, 3))}, (), "body_pose: expected the 23 joints of mannequin, got 5"),
        ({"betas": np.zeros((2, 40))}, (), "betas: expected up to 10, as the body has, got 40"),
        ({"transl": np.full((2, 3), np.nan)}, (), "transl: expected finite numbers"),
        ({"transl": np.zeros((0, 3))}, (), "expected at least one frame, got none"),
        (
            {"transl": np.zeros((2, 3)), "focal": np.ones((2, 2))},
            (),
            "labels are in the coordinates of cameras",
        ),
        ({"joints": np.zeros((2, 72))}, (), "not a motion; expected poses, as in AMASS, or arrays named"),
        ({"poses": np.zeros((2, 63))}, (), "72 (SMPL), 156 (SMPL-H), 165 (SMPL-X), got 63"),
        ({"betas": np.zeros(16)}, (), "the shape of a person without a motion"),
        ({}, ("--betas", "1,x"), "expected numbers such as 1.5,0,-1, got '1,x'"),
        ({}, ("--years", "4", "--age-offset", "0.5"), "expected one of --age-offset, --years"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, arrays, arguments, message):
    np.savez(tmp_path / "m.npz", **arrays)
    given = ("--motion", tmp_path / "m.npz") if arrays else ()
    result = export("mannequin", *given, *arguments, "-o", tmp_path / "a.glb")
    assert result.exit_code in (1, 2)
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert os.listdir(tmp_path) == ["m.npz"]
