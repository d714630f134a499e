import json
import os

import numpy as np
import pytest
import torch
import trimesh
from trimesh.creation import box, icosphere

from agebody.draw import save_mesh
from agebody.draw.meshes import to_linear
from agebody.files import replacing, save_npz

BALL = icosphere(subdivisions=2)
VERTICES, FACES = np.asarray(BALL.vertices), np.asarray(BALL.faces)


def read_glb(path):
    """Return the JSON tree and the binary part of a .glb file."""
    data = path.read_bytes()
    end = 20 + int.from_bytes(data[12:16], "little")
    return json.loads(data[20:end]), data[end + 8 :]


def glb_colors(path):
    """Return the vertex colours (V, 4) of each mesh in a .glb file."""
    tree, binary = read_glb(path)
    colors = {}
    for mesh in tree["meshes"]:
        accessor = tree["accessors"][mesh["primitives"][0]["attributes"]["COLOR_0"]]
        start = tree["bufferViews"][accessor["bufferView"]].get("byteOffset", 0)
        values = np.frombuffer(binary, np.uint8, 4 * accessor["count"], start)
        colors[mesh["name"]] = values.reshape(-1, 4)
    return colors


@pytest.mark.parametrize(("suffix", "tolerance"), [(".obj", 1e-7), (".ply", 1e-7), (".glb", 1e-7)])
def test_every_format_round_trips(tmp_path, suffix, tolerance):
    # .obj prints eight digits, .ply and .glb hold float32: both within 1e-7 for coordinates up to 1
    path = tmp_path / f"body{suffix}"
    save_mesh(VERTICES, FACES, path, colors=["#c08060"])
    mesh = trimesh.load(path, process=False, force="mesh")
    np.testing.assert_allclose(mesh.vertices, VERTICES, atol=tolerance)
    np.testing.assert_array_equal(mesh.faces, FACES)
    np.testing.assert_allclose(mesh.vertex_normals, VERTICES, atol=0.02)  # smooth: those of the sphere itself
    color = np.array([0xC0, 0x80, 0x60]) / 255
    expected = to_linear(color) if suffix == ".glb" else color
    colors = glb_colors(path)["body_0"] if suffix == ".glb" else mesh.visual.vertex_colors
    np.testing.assert_allclose(colors[0, :3] / 255, expected, atol=1 / 255)
    assert os.listdir(tmp_path) == [path.name]


def test_several_named_bodies_share_a_glb(tmp_path):
    cube = box((1, 2, 3))
    tensors = torch.tensor(VERTICES, requires_grad=True)
    path = tmp_path / "people.glb"
    save_mesh([tensors, cube.vertices], [torch.tensor(FACES), cube.faces], path, names=["anna", "ben"])
    scene = trimesh.load_scene(path)
    assert set(scene.geometry) == {"anna", "ben"}
    assert {"anna", "ben"} <= set(scene.graph.nodes)
    np.testing.assert_allclose(scene.geometry["anna"].vertices, VERTICES, atol=1e-7)
    np.testing.assert_array_equal(scene.geometry["ben"].extents, [1, 2, 3])
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        save_mesh(VERTICES, FACES, path)
    assert set(trimesh.load_scene(path).geometry) == {"anna", "ben"}
    save_mesh(np.stack([VERTICES] * 3), FACES, path, overwrite=True)
    assert set(trimesh.load_scene(path).geometry) == {"body_0", "body_1", "body_2"}


def test_bodies_in_a_glb_are_not_metal(tmp_path):
    """Without a material glTF 2.0 takes metallicFactor 1, with which viewers show black bodies."""
    path = tmp_path / "people.glb"
    save_mesh(np.stack([VERTICES] * 2), FACES, path, colors=["red", "#c08060"])
    tree, _ = read_glb(path)
    for mesh, color in zip(tree["meshes"], ([255, 0, 0, 255], [134, 55, 30, 255]), strict=True):
        (primitive,) = mesh["primitives"]
        material = tree["materials"][primitive["material"]]["pbrMetallicRoughness"]
        assert material == {"metallicFactor": 0, "roughnessFactor": 0.8}
        assert glb_colors(path)[mesh["name"]][0].tolist() == color


def test_a_color_for_each_vertex_is_kept(tmp_path):
    colors = np.linspace(0, 1, VERTICES.size).reshape(-1, 3)
    save_mesh(VERTICES, FACES, tmp_path / "a.ply", colors=[colors])
    mesh = trimesh.load(tmp_path / "a.ply", process=False)
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3] / 255, colors, atol=0.51 / 255)


def test_npz_round_trips(tmp_path):
    arrays = {"betas": torch.arange(3.0, requires_grad=True), "names": ["a", "b"], "age": 4.0}
    save_npz(arrays, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["betas"].tolist() == [0, 1, 2]
        assert archive["names"].tolist() == ["a", "b"]
        assert archive["age"] == 4
    with pytest.raises(ValueError, match="what: expected an array of numbers or text, got dict"):
        save_npz({"what": {}}, tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"a\.npy: expected the suffix \.npz, got '\.npy'"):
        save_npz({"a": 1}, tmp_path / "a.npy")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_npz({"a": 1}, tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.stl", {}, r"a\.stl: expected one of the suffixes \.glb, \.obj, \.ply, got '\.stl'"),
        (
            "a.obj",
            {"vertices": np.stack([VERTICES] * 2)},
            r"a\.obj: a \.obj file holds one body, got 2; use \.glb",
        ),
        ("a.glb", {"names": ["x", "y"]}, "names: expected 1 different names"),
        (
            "a.glb",
            {"vertices": np.stack([VERTICES] * 2), "names": ["x", "x"]},
            "names: expected 2 different names",
        ),
        ("a.glb", {"faces": FACES + 1}, r"faces\[0\]: expected ids from 0 to 161, got 1 to 162"),
        ("a.glb", {"vertices": []}, "vertices: expected at least one body"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        save_mesh(path=tmp_path / name, **{"vertices": VERTICES, "faces": FACES, **options})
    assert os.listdir(tmp_path) == []


def interrupted_write(path):
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folders_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist; create it first"):
        save_mesh(VERTICES, FACES, tmp_path / "nowhere" / "a.glb")
    (tmp_path / "b.glb").mkdir()
    with pytest.raises(IsADirectoryError, match=r"expected a file, got a folder; add a file name.*b\.glb"):
        save_mesh(VERTICES, FACES, tmp_path / "b.glb")


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refuse(self, **options):  # root may write anywhere, so the refusal of the system is played
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(PermissionError, match=r"cannot write in the folder .*\(Permission denied\).*a\.glb"):
        save_mesh(VERTICES, FACES, tmp_path / "a.glb")
