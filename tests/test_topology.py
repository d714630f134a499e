"""Other topologies: maps, the files of meshes and maps, fits through a map, and `agebody convert-mesh`."""

import pickle
import re
import struct

import numpy as np
import pytest
import torch
import trimesh
from bodies import random_body
from typer.testing import CliRunner

import agebody
from agebody.assets.asset import AssetError
from agebody.assets.io import save_asset
from agebody.fitting import fit_vertices
from agebody.mesh import MeshFile, TopologyMap
from agebody.people import random_people
from agebody.pipelines.cli import app
from agebody.pipelines.cli.meshes import _describe

AWAY = torch.tensor([-2.5, 1.2, 8.0])
TURN = torch.tensor([1.0, -1.0, -1.0])


def spread(faces, template, count, seed=0):
    """Map a body to random points all over its surface, as many per area everywhere."""
    generator = np.random.default_rng(seed)
    corners = template[faces].astype(float)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    places = generator.choice(len(faces), count, p=areas / areas.sum())
    return places, generator.dirichlet([1, 1, 1], count)


@pytest.fixture(scope="module", params=["mannequin", "anny"])
def body(request):
    return agebody.SMPLA(request.getfixturevalue(f"{request.param}_asset"))


@pytest.fixture(scope="module")
def mannequin(mannequin_asset):
    return agebody.SMPLA(mannequin_asset)


@pytest.fixture(scope="module")
def small():
    return agebody.SMPLA(random_body(num_vertices=60))


def map_of(body, count):
    places, weights = spread(body.asset.faces, body.asset.template, count)
    return TopologyMap(body.asset.faces[places], weights, body.num_vertices)


def load_vertices(path):
    with np.load(path) as file:
        return file["vertices"]


def test_a_body_survives_another_topology(body):
    """To the vertices of another topology and back to parameters, with the age that nobody stated."""
    topology = map_of(body, 2000)
    truth = random_people(body, 2, seed=2).parameters
    with torch.no_grad():
        posed = body(truth).vertices
        given = topology(posed)
        fit = fit_vertices(body, given, topology=topology)
        found = body(fit.parameters).vertices
    assert fit.report.converged.all()
    assert (found - posed).norm(dim=-1).max() < 5e-4
    assert (topology(found) - given).norm(dim=-1).max() < 5e-4
    assert (fit.parameters.age_offset - truth.age_offset).abs().max() < 0.02
    torch.testing.assert_close(fit.error, (topology(found) - given).norm(dim=-1).mean(-1), atol=1e-6, rtol=0)


def test_a_known_age_and_missing_vertices(mannequin):
    topology = map_of(mannequin, 900)
    truth = random_people(mannequin, 1, seed=4).parameters
    given = topology(mannequin(truth).vertices)
    weights = torch.ones(1, 900)
    weights[:, ::3] = 0
    fit = fit_vertices(
        mannequin,
        torch.where(weights[..., None] > 0, given, torch.nan),
        weights=weights,
        age_offset=truth.age_offset,
        topology=topology,
    )
    assert (mannequin(fit.parameters).vertices - mannequin(truth).vertices).norm(dim=-1).max() < 1e-3
    assert torch.equal(fit.parameters.age_offset, truth.age_offset)


def test_meshes_that_lie_on_each_other_are_mapped():
    """A finer mesh in another order holds the coarse one's vertices, and so in every pose and shape."""
    sphere = trimesh.creation.icosphere(2)
    template, faces = np.asarray(sphere.vertices), np.asarray(sphere.faces)
    fine, finer = trimesh.remesh.subdivide(template, faces)
    order = np.random.default_rng(0).permutation(len(fine))
    rank = np.argsort(order)
    source, triangles = torch.from_numpy(fine[order]), torch.from_numpy(rank[finer])
    back = TopologyMap.from_meshes(source, triangles, torch.from_numpy(template), backend="torch")
    assert (len(back), back.num_source_vertices) == (len(template), len(fine))
    moved = torch.from_numpy(template) * torch.tensor([1.1, 0.9, 1.0]) + 0.3 * torch.from_numpy(
        template
    ).roll(1, 1)
    middle = trimesh.remesh.subdivide(moved.numpy(), faces)[0]
    torch.testing.assert_close(back(torch.from_numpy(middle[order])), moved, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mesh: 1000 * mesh, "target: expected vertices on the source, .*in one unit, place and pose"),
        (lambda mesh: mesh + 1, "target: expected vertices on the source"),
        (lambda mesh: mesh / 0, "target: expected finite numbers"),
    ],
)
def test_meshes_that_lie_elsewhere_are_refused(change, message):
    sphere = trimesh.creation.icosphere(1)
    source, faces = torch.tensor(sphere.vertices), torch.tensor(sphere.faces)
    with pytest.raises(ValueError, match=message):
        TopologyMap.from_meshes(source, faces, change(source), backend="torch")


def test_a_map_is_a_weighted_mean(small):
    topology = map_of(small, 40)
    mesh = torch.randn(2, 60, 3, dtype=torch.float64, requires_grad=True)
    expected = np.stack([topology.matrix() @ one for one in mesh.detach().numpy()])
    np.testing.assert_allclose(topology(mesh).detach(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(topology, mesh[:1].detach().requires_grad_())
    with pytest.raises(ValueError, match=r"vertices: expected shape \(\*batch, 60, 3\)"):
        topology(mesh[:, :59])


# Files -------------------------------------------------------------------------------------------------


def test_maps_of_mhr_and_own_ones_are_read(small, tmp_path):
    places, weights = spread(small.asset.faces, small.asset.template, 40)
    np.savez(tmp_path / "mhr.npz", triangle_ids=places, baryc_coords=weights)
    mesh = trimesh.Trimesh(small.asset.template, small.asset.faces, process=False)
    mesh.export(tmp_path / "faces.ply")
    read = TopologyMap.from_file(tmp_path / "mhr.npz", faces=small.asset.faces)
    same = TopologyMap.from_file(tmp_path / "mhr.npz", faces=tmp_path / "faces.ply")
    read.save(tmp_path / "own.npz")
    own = TopologyMap.from_file(tmp_path / "own.npz")
    for other in (read, same, own):
        assert np.array_equal(other.corners, small.asset.faces[places])
        np.testing.assert_allclose(other.barycentric, weights, atol=1e-15)
        assert other.num_source_vertices == 60
    with pytest.raises(FileExistsError):
        own.save(tmp_path / "own.npz")


def broken(**changes):
    arrays = {"triangle_ids": np.arange(4), "baryc_coords": np.full((4, 3), 1 / 3)} | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (broken(baryc_coords=None), r"not a map of topologies: .* it holds triangle_ids"),
        (broken(triangle_ids=np.arange(4.0)), "triangle_ids"),
        (broken(triangle_ids=np.array([0, 1, 2, 9999])), "faces are not those of its source"),
        (broken(triangle_ids=np.arange(3)), r"barycentric: expected shape \(3, 3\)"),
        (broken(baryc_coords=np.full((4, 3), 0.5)), "weights of 0 or more that add up to 1"),
        (broken(baryc_coords=np.full((4, 3), np.nan)), "barycentric: .*finite"),
        (broken(baryc_coords=np.ones((4, 3), int)), "expected a floating type, got int64"),
        (broken(triangle_ids=np.zeros(0, int), baryc_coords=np.zeros((0, 3))), "at least one vertex"),
    ],
)
def test_wrong_maps_are_refused(small, tmp_path, arrays, message):
    np.savez(tmp_path / "map.npz", **arrays)
    with pytest.raises(AssetError, match=rf"map\.npz: .*{message}"):
        TopologyMap.from_file(tmp_path / "map.npz", faces=small.asset.faces)


def test_a_map_of_triangles_needs_them(small, tmp_path):
    np.savez(tmp_path / "map.npz", **broken())
    with pytest.raises(AssetError, match=r"map\.npz: names triangles of its source; give faces="):
        TopologyMap.from_file(tmp_path / "map.npz")
    with pytest.raises(
        ValueError, match="topology: expected a map from the body's 60 vertices, got one from 9"
    ):
        fit_vertices(
            small,
            torch.zeros(4, 3),
            topology=TopologyMap(np.zeros((4, 3), int), np.eye(4)[:, :3] * 0 + 1 / 3, 9),
        )


@pytest.fixture
def meshes():
    generator = np.random.default_rng(1)
    return generator.normal(size=(2, 60, 3)).astype(np.float32), generator.integers(0, 60, (30, 3))


def write_mesh(path, vertices, faces):
    trimesh.Trimesh(vertices, faces, process=False).export(path)


WRITERS = {
    "a.npz": lambda path, v, f: np.savez(path, vertices=v, faces=f),
    "b.npz": lambda path, v, f: np.savez(path, verts=v, f=f),
    "c.ply": write_mesh,
    "d.obj": write_mesh,
    "e.obj": lambda path, v, f: path.write_text(
        "".join(f"v {x} {y} {z} 0.5 0.5 0.5\nvt 0 {x}\n" for x, y, z in v)
        + "".join(f"f {a + 1}/1/1 {b - len(v)}/2 {c + 1}//3\n" for a, b, c in f)
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_meshes_keep_the_order_of_their_file(tmp_path, meshes, name):
    vertices, faces = meshes[0][0], meshes[1]
    WRITERS[name](tmp_path / name, vertices, faces)
    read = MeshFile.from_file(tmp_path / name)
    assert read.transl is None
    torch.testing.assert_close(read.vertices, torch.from_numpy(vertices), atol=1e-6, rtol=0)
    assert torch.equal(read.faces, torch.from_numpy(faces))


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"\xef\xbb\xbf# Blender\n", b"o body\r\n"])
def test_the_first_vertex_counts_whatever_is_before_it(tmp_path, start):
    (tmp_path / "a.obj").write_bytes(start + b"v 1 0 0 .5 .5 .5\r\nv 2 0 0\r\nv 3 0 0\r\nf 1/1 2/2 3/3\r\n")
    found = MeshFile.from_file(tmp_path / "a.obj")
    assert found.vertices[:, 0].tolist() == [1, 2, 3]
    assert found.faces.tolist() == [[0, 1, 2]]


CORNERS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
POLYGONS = {
    "triangles": ([[0, 1, 2], [0, 2, 3]], [[0, 1, 2], [0, 2, 3]]),
    "quads": ([[0, 1, 2, 3]], [[0, 1, 2], [0, 2, 3]]),
    "mixed": ([[0, 1, 2], [3, 2, 1, 0], [2, 3, 0]], [[0, 1, 2], [3, 2, 1], [3, 1, 0], [2, 3, 0]]),
    "lines and points": ([[0, 1], [], [2], [0, 1, 2]], [[0, 1, 2]]),
    "none": ([], None),
}


def write_ply(path, polygons, form, extra, end="\n"):
    """Write a PLY as other programs do, with single values and lists around those that are read."""
    order = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    kinds = {"float": "f", "double": "d", "uchar": "B", "int": "i", "short": "h"}
    data = bytearray()

    def put(*values):  # of pairs: type, value
        for kind, value in values:
            data.extend(struct.pack(order + kinds[kind], value) if order else f"{value} ".encode())
        data.extend(b"" if order else end.encode())

    vertex = (
        ["double x", "float nx", "double y", "double z", "uchar red"]
        if extra
        else ["float x", "float y", "float z"]
    )
    face = [
        "property short flags",
        "property list int int vertex_index",
        "property list uchar float texcoord",
    ]
    face = face if extra else ["property list uchar int vertex_indices"]
    lines = ["ply", f"format {form} 1.0", "comment by hand", f"element vertex {len(CORNERS)}"]
    lines += [f"property {one}" for one in vertex] + [f"element face {len(polygons)}", *face]
    lines += ["element edge 1", "property int vertex1"] * extra + ["end_header"]
    data.extend(end.join([*lines, ""]).encode())
    for x, y, z in CORNERS:
        put(
            *(
                [("double", x), ("float", 0.5), ("double", y), ("double", z), ("uchar", 9)]
                if extra
                else [("float", x), ("float", y), ("float", z)]
            )
        )
    for i, polygon in enumerate(polygons):
        corners = [("int", corner) for corner in polygon]
        coordinates = [("float", 0.5)] * (i % 3)
        put(
            *(
                [("short", 7), ("int", len(corners)), *corners, ("uchar", len(coordinates)), *coordinates]
                if extra
                else [("uchar", len(corners)), *corners]
            )
        )
    if extra:
        put(("int", 1))
    path.write_bytes(data)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("name", POLYGONS)
def test_polygons_become_triangles(tmp_path, name, form, extra):
    polygons, expected = POLYGONS[name]
    write_ply(tmp_path / "a.ply", polygons, form, extra, end="\r\n" if extra else "\n")
    (tmp_path / "a.obj").write_text(
        "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS)
        + "".join(f"f {' '.join(str(i + 1) for i in polygon)}  # a polygon\n" for polygon in polygons)
    )
    for path in (tmp_path / "a.ply", tmp_path / "a.obj"):
        found = MeshFile.from_file(path)
        assert found.vertices.tolist() == [list(corner) for corner in CORNERS]
        assert (None if found.faces is None else found.faces.tolist()) == expected
    whole = (tmp_path / "a.ply").read_bytes()
    shorter = whole.rsplit(None, 1)[0] if form == "ascii" else whole[:-2]
    for damaged in (shorter, whole + b"1 2"):
        (tmp_path / "a.ply").write_bytes(damaged)
        with pytest.raises(
            AssetError, match=r"a\.ply: a damaged ply \((less|more) data than its header says"
        ):
            MeshFile.from_file(tmp_path / "a.ply")


def test_a_line_of_an_obj_may_continue(tmp_path):
    (tmp_path / "a.obj").write_bytes(b"v 0 0 0\nv 1 0 \\\n 0\nv 1 1 0\nf 1 \\\r\n 2 3\n")
    assert MeshFile.from_file(tmp_path / "a.obj").faces.tolist() == [[0, 1, 2]]


def test_outputs_of_sam_3d_body_are_read(tmp_path, meshes):
    """One person per npz, or a pickled or stored list of people as its code returns them."""
    people = [{"pred_vertices": mesh, "pred_cam_t": AWAY.numpy(), "bbox": np.zeros(4)} for mesh in meshes[0]]
    np.savez(tmp_path / "one.npz", **people[0])
    one = MeshFile.from_file(tmp_path / "one.npz")
    assert one.vertices.shape == (60, 3)
    assert one.faces is None
    assert torch.equal(one.transl, AWAY)
    (tmp_path / "all.pkl").write_bytes(pickle.dumps(people))
    both = MeshFile.from_file(tmp_path / "all.pkl")
    assert torch.equal(both.vertices, torch.from_numpy(meshes[0]))
    assert torch.equal(both.transl, AWAY.expand(2, 3))


PLY = b"ply\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.stl", b"solid", r"expected a mesh with the suffix \.npz"),
        ("a.obj", b"# nothing\n", "holds no vertices"),
        ("a.obj", b"v 0 0\nf 1 1 1\n", "vertices: expected shape"),
        ("a.obj", b"v 0 x 0\n", "a damaged obj"),
        ("a.obj", b"v 0 0 nan\n", "vertices: .*finite"),
        ("a.obj", b"v 0 0 0\nf 1 2 3\n", "faces: "),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 9999\n", "a damaged ply"),
        ("a.ply", PLY + b"format ascii 2\nend_header\n", "holds no vertices"),
        ("a.ply", PLY + b"format ascii\nelement vertex 1\nend_header\n1 2 3", "a damaged ply"),
        ("a.ply", PLY + b"format big 1.0\nend_header\n", "a damaged ply"),
        ("a.ply", PLY + b"property float x\nend_header\n", "a damaged ply"),
        ("a.ply", PLY + b"element vertex 9999999999999\nproperty float x\nend_header\n1", "a damaged ply"),
        (
            "a.ply",
            PLY + b"element face 1\nproperty list int int vertex_index\nend_header\n-1",
            "a damaged ply",
        ),
        (
            "a.ply",
            PLY + b"element face 1\nproperty list int int vertex_index\nend_header\nnan",
            "a damaged ply",
        ),
        ("a.ply", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.obj", b"<!DOCTYPE html>", "a web page"),
        ("a.obj", b"PK\3\4", "a packed archive"),
        ("a.npy", b"\x93NUMPY", "an array in it is damaged"),
    ],
)
def test_wrong_meshes_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AssetError, match=rf"{re.escape(name)}: .*{message}"):
        MeshFile.from_file(tmp_path / name)


# The command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(mannequin, tmp_path_factory):
    """A person as SAM 3D Body and MHR write it, the maps, and the body."""
    place = tmp_path_factory.mktemp("meshes")
    places, weights = spread(mannequin.asset.faces, mannequin.asset.template, 900)
    topology = TopologyMap(mannequin.asset.faces[places], weights, mannequin.num_vertices)
    truth = random_people(mannequin, 1, seed=5).parameters
    with torch.no_grad():
        upright = topology(mannequin(truth).vertices)[0]
    faces = np.arange(900).reshape(300, 3)
    np.savez(place / "sam.npz", pred_vertices=(TURN * upright).numpy(), pred_cam_t=AWAY.numpy())
    np.savez(place / "sam2.npz", pred_vertices=upright.numpy())
    np.savez(place / "mhr.npz", vertices=(100 * upright).numpy(), faces=faces)
    np.savez(place / "map.npz", triangle_ids=places, baryc_coords=weights)
    save_asset(mannequin.asset, place / "body.safetensors")
    return place, upright, truth


def run(*arguments):
    return CliRunner().invoke(app, ["convert-mesh", *map(str, arguments)])


def test_people_of_sam_3d_body_get_an_age(files, mannequin, tmp_path):
    place, _, truth = files
    given = [place / "sam.npz", "--map", place / "map.npz", "--body", place / "body.safetensors"]
    done = run(*given, "--flip", "yz", "-o", tmp_path / "people.npz")
    assert done.exit_code == 0, done.output
    assert "age offset" in done.stdout
    with np.load(tmp_path / "people.npz") as file:
        found = dict(file)
    assert abs(found["age_offset"][0] - float(truth.age_offset)) < 0.02
    parameters = agebody.BodyParameters(
        *(torch.from_numpy(found[name]) for name in agebody.BodyParameters._fields if name in found)
    )
    assert (mannequin(parameters).vertices - mannequin(truth).vertices).norm(dim=-1).max() < 5e-4
    again = run(*given, "-o", tmp_path / "people.npz")
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr


def test_people_stand_before_the_camera(files, tmp_path):
    place, upright, _ = files
    done = run(place / "sam.npz", "--camera", "-o", tmp_path / "a.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(load_vertices(tmp_path / "a.npz")[0], TURN * upright + AWAY, atol=1e-5)


def test_a_map_that_does_not_belong_is_noted(small):
    vertices = small().vertices[None]
    wrong, right = fit_vertices(small, vertices.flip(1)), fit_vertices(small, vertices)
    assert any("does the map belong to random" in line for line in _describe(wrong, small)[1])
    assert not any("map" in line for line in _describe(right, small)[1])


def test_a_body_becomes_the_other_topology(files, mannequin, tmp_path):
    """Posed vertices of the body, through the map alone, are the other topology's."""
    place, upright, truth = files
    np.savez(tmp_path / "posed.npz", vertices=mannequin(truth).vertices.detach().numpy())
    faces = ["--faces", place / "mhr.npz"]
    body = tmp_path / "rest.ply"
    write_mesh(body, mannequin.asset.template, mannequin.asset.faces)
    done = run(
        tmp_path / "posed.npz", "--map", place / "map.npz", "--faces", body, *faces, "-o", tmp_path / "a.ply"
    )
    assert done.exit_code == 0, done.output
    torch.testing.assert_close(MeshFile.from_file(tmp_path / "a.ply").vertices, upright, atol=1e-5, rtol=0)


def test_units_are_stated(files, tmp_path):
    place, upright, _ = files
    refused = run(place / "mhr.npz", "-o", tmp_path / "a.npz")
    assert refused.exit_code == 1
    assert "mhr.npz: the mesh is" in refused.stderr
    assert "--units" in refused.stderr
    done = run(place / "mhr.npz", "--units", "cm", "-o", tmp_path / "a.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(load_vertices(tmp_path / "a.npz")[0], upright, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{p}/sam.npz", "--body", "{p}/body.safetensors", "-o", "{o}/a.npz"],
            "has 900 vertices, .*6890; give --map",
        ),
        (["{p}/sam.npz", "--map", "{p}/map.npz", "-o", "{o}/a.npz"], "give such a mesh by --faces"),
        (["{p}/sam.npz", "-o", "{o}/a.ply"], "needs the triangles of 900 vertices"),
        (["{p}/sam.npz", "-o", "{o}/a.stl"], "expected one of the suffixes"),
        (["{p}/sam.npz", "--age-offset", "1", "-o", "{o}/a.npz"], "belongs to the body"),
        (["{p}/mhr.npz", "--camera", "--units", "cm", "-o", "{o}/a.npz"], "has no pred_cam_t"),
        (
            ["{p}/sam.npz", "{p}/sam2.npz", "-o", "{o}/a.obj", "--faces", "{p}/mhr.npz"],
            "holds one body, got 2",
        ),
        (["{p}/sam.npz", "--units", "km", "-o", "{o}/a.npz"], "expected m, cm, mm, got 'km'"),
        (["{p}/sam.npz", "--flip", "z", "-o", "{o}/a.npz"], "expected xy, yz, xz"),
    ],
)
def test_wrong_uses_are_one_line(files, tmp_path, arguments, message):
    done = run(*(part.format(p=files[0], o=tmp_path) for part in arguments))
    assert done.exit_code in (1, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []
