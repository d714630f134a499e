"""Virtual markers: what they keep exactly, how far the mesh is off, files, and networks around them."""

import json

import numpy as np
import pytest
import torch
from bodies import random_body
from safetensors.numpy import save
from torch import nn

from agebody import SMPL, SMPLA, BodyParameters
from agebody.assets.asset import AssetError
from agebody.assets.own_files import NO_CHECKSUM, with_checksum
from agebody.fitting import fit_points
from agebody.mesh import MarkerSet
from agebody.people import random_people

BODY = SMPLA(random_body(num_vertices=40), dtype=torch.float64)


def people(count, seed=0):
    gen = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(part.shape, generator=gen, dtype=part.dtype) for part in BodyParameters.zeros(BODY, count)
    ]
    return BodyParameters(*drawn)._replace(age_offset=drawn[3].sigmoid())


@pytest.fixture(scope="module")
def markers():
    return MarkerSet.learn(BODY, people(50), 12, symmetric=False)


@pytest.fixture(scope="module")
def trained(mannequin_asset):
    body = SMPLA(mannequin_asset)
    return body, MarkerSet.learn(body, random_people(body, 80, seed=1).parameters, 32)


def test_a_moved_body_has_moved_markers(markers):
    mesh = torch.randn(2, 3, 12, 3, dtype=torch.float64)
    there = torch.tensor([100.0, -50.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(markers.to_vertices(mesh + there), markers.to_vertices(mesh) + there)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    torch.testing.assert_close(markers.to_vertices(mesh @ turn), markers.to_vertices(mesh) @ turn)


def test_the_matrix_solves_the_constrained_least_squares():
    """Against Lagrange's equations of the same weighted, damped sum, written down here."""
    group, noise = people(50), 0.02
    found = MarkerSet.learn(BODY, group, 6, symmetric=False, noise_sd=noise)
    mesh = BODY(group).vertices.numpy()
    scale = 1 / np.sqrt(np.square(mesh - mesh.mean(1, keepdims=True)).sum(-1).mean(1))
    rows = (scale[:, None, None] * mesh).transpose(0, 2, 1).reshape(150, -1)
    chosen = rows[:, found.vertex_ids.numpy()]
    damped = chosen.T @ chosen + 3 * noise**2 * np.square(scale).sum() * np.eye(6)
    bordered = np.block([[damped, np.ones((6, 1))], [np.ones((1, 6)), np.zeros((1, 1))]])
    solved = np.linalg.solve(bordered, np.concatenate((chosen.T @ rows, np.ones((1, rows.shape[1])))))[:6]
    np.testing.assert_allclose(found.matrix.numpy(), solved.T, atol=1e-9)


def test_as_many_markers_as_vertices_give_the_mesh():
    found = MarkerSet.learn(BODY, people(60), 40, symmetric=False, noise_sd=0)
    mesh = BODY(people(3, seed=1)).vertices
    torch.testing.assert_close(found.to_vertices(found.markers(mesh)), mesh, atol=1e-8, rtol=0)


def test_a_convex_vertex_never_errs_by_more_than_its_worst_marker():
    found = MarkerSet.learn(BODY, people(50), 12, symmetric=False, convex=True)
    assert (found.matrix >= 0).all()
    torch.testing.assert_close(found.matrix.sum(1), torch.ones(40, dtype=torch.float64))
    noise = torch.randn(12, 3, dtype=torch.float64)
    moved = found.to_vertices(noise)
    assert moved.norm(dim=-1).max() <= noise.norm(dim=-1).max() + 1e-12


def test_unseen_people_of_every_age(trained):
    body, markers = trained
    mesh = body(random_people(body, 16, seed=2).parameters).vertices
    error = (markers.to_vertices(markers.markers(mesh)) - mesh).norm(dim=-1)
    assert 0.001 < error.mean() < 0.012  # 8 mm after 400 people


def test_left_and_right_markers_come_in_pairs(trained):
    body, markers = trained
    template = body.asset.template[markers.vertex_ids.numpy()]
    flip = list(markers.layout.flip)
    np.testing.assert_allclose(template[flip], template * [-1, 1, 1], atol=1e-6)
    left = [name.startswith("left_") for name in markers.names]
    assert (template[left, 0] > 0).all()
    assert sum(left) == len(markers.layout.pairs) > 8
    person = random_people(body, 4, seed=3).parameters
    mirrored = body(person.mirrored(body.asset.joint_names)).vertices
    expected = markers.markers(body(person).vertices)[:, flip] * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(markers.markers(mirrored), expected, atol=1e-5, rtol=0)


def test_markers_are_keypoints_and_fits_take_them(trained):
    body, markers = trained
    person = random_people(body, 4, seed=4).parameters
    points = body.keypoints(markers.layout, person)
    mesh = body(person).vertices
    torch.testing.assert_close(points, markers.markers(mesh), atol=1e-5, rtol=0)
    fit = fit_points(body, points, markers.layout)
    assert (body(fit.parameters).vertices - mesh).norm(dim=-1).mean() < 0.004


def test_learning_repeats_to_the_bit(markers):
    again = MarkerSet.learn(BODY, people(50), 12, symmetric=False, batch_size=50)
    assert torch.equal(again.vertex_ids, markers.vertex_ids)
    torch.testing.assert_close(again.matrix, markers.matrix, rtol=0, atol=1e-12)


def test_a_file_gives_the_same_markers(markers, tmp_path):
    path = tmp_path / "markers.safetensors"
    markers.save(path)
    read = MarkerSet.from_file(path).double()
    assert torch.equal(read.matrix, markers.matrix)
    assert torch.equal(read.vertex_ids, markers.vertex_ids)
    assert read.names == markers.names
    with pytest.raises(FileExistsError, match="overwrite=True"):
        markers.save(path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(AssetError, match="damaged: .*checksum"):
        MarkerSet.from_file(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        ({"matrix": np.ones((3, 1))}, {"names": ["a"]}, "vertex_ids or matrix missing"),
        (
            {"matrix": np.ones((3, 1)), "vertex_ids": np.array([3])},
            {"names": ["a"]},
            "expected indices 0 to 2",
        ),
        (
            {"matrix": np.ones((3, 2)), "vertex_ids": np.array([1])},
            {"names": ["a"]},
            "matrix: expected shape",
        ),
        (
            {"matrix": np.full((3, 1), np.nan), "vertex_ids": np.array([1])},
            {"names": ["a"]},
            "matrix: 3 entries",
        ),
        ({"matrix": np.full((3, 1), 2.0), "vertex_ids": np.array([1])}, {"names": ["a"]}, "add up to 1"),
        ({"matrix": np.full((3, 1), 1), "vertex_ids": np.array([1])}, {"names": ["a"]}, "floating"),
        ({"matrix": np.ones(1)}, {"names": ["a"], "format_version": 9}, "install a newer one"),
        ({"matrix": np.ones((3, 1))}, None, "not a file of virtual markers"),
    ],
)
def test_files_of_another_kind_are_refused(tensors, header, words, tmp_path, unchecked):
    text = (
        {}
        if header is None
        else {"agebody_markers": json.dumps({"format_version": 1, **NO_CHECKSUM, **header})}
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_checksum(save(tensors, text)))
    with pytest.raises(AssetError, match=rf"a\.safetensors: .*{words}"):
        MarkerSet.from_file(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count: expected 1 to 40"),
        ({"count": 41}, "count: expected 1 to 40"),
        ({"count": 3.5}, "count: expected 1 to 40"),
        ({"noise_sd": -1.0}, "noise_sd"),
        ({"symmetric": True}, "symmetric: the template is not symmetric"),
        ({"people": people(50).map(lambda part: part[:0])}, "people: expected at least one"),
        ({"batch_size": 0}, "batch_size: expected a whole number of 1 or more"),
        (
            {"people": people(2)._replace(betas=torch.full((2, BODY.num_betas), torch.nan))},
            "people: expected finite",
        ),
        (
            {"people": people(2)._replace(betas=torch.zeros(2, 1))},
            "people: expected .* betas, as the body has",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named(options, words):
    given = {"people": people(2), "count": 12, "symmetric": False, **options}
    with pytest.raises(ValueError, match=words):
        MarkerSet.learn(BODY, **given)


def test_lists_are_markers_and_names_are_different(unchecked):
    matrix = np.eye(3)[[0, 1, 2, 0]]
    assert MarkerSet([0, 1, 2], matrix.tolist(), ["a", "b", "c"]).names == ("a", "b", "c")
    with pytest.raises(AssetError, match="names: expected different ones, got a several times"):
        MarkerSet([0, 1, 2], matrix, ["a", "b", "a"])


def test_meshes_of_another_body_are_refused(markers):
    with pytest.raises(ValueError, match="vertices: expected shape"):
        markers.markers(torch.zeros(39, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match="markers: expected torch.float64"):
        markers.to_vertices(torch.zeros(12, 3))


@pytest.mark.parametrize("change", ["half", "bfloat16", "to_empty", "double then half"])
def test_networks_with_markers_keep_their_numbers(markers, change):
    made = MarkerSet(markers.vertex_ids.numpy(), markers.matrix.numpy(), markers.names)
    network = nn.Sequential(made, nn.Linear(2, 2))
    assert not [name for name in network.state_dict() if name.startswith("0.")]
    if change == "to_empty":
        network.to_empty(device="cpu")
    for step in () if change == "to_empty" else change.split(" then "):
        getattr(network, step)()
    with torch.autocast("cpu", torch.bfloat16):
        mesh = made.to_vertices(torch.ones(12, 3, dtype=made.dtype))
    torch.testing.assert_close(mesh, torch.ones(40, 3, dtype=made.dtype), rtol=0, atol=1e-5)
    assert made.matrix.dtype == (torch.float64 if "double" in change else torch.float32)
    torch.testing.assert_close(made.matrix.double(), markers.matrix, rtol=0, atol=1e-6)


def test_markers_of_one_age(mannequin_asset):
    body = SMPL(mannequin_asset)
    grown = random_people(body, 20, ages=(20.0, 60.0), seed=0).parameters
    assert len(MarkerSet.learn(body, grown, 9)) == 9
