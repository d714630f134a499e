"""Saving and loading are exact, atomic and fast; smplx loads the exported files."""

import contextlib
import hashlib
import json
import os
import pickle
import re
import threading

import numpy as np
import pytest
import smplx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import (
    random_arrays,
    write_kid_template,
    write_smil_pose_prior,
    write_smpl_npz,
    write_smpl_pkl,
)
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.numpy import save
from scipy import sparse

from agebody.assets.asset import AssetError, BodyAsset, Metadata, Regressor
from agebody.assets.io import HEADER_KEY, export_smpl, load_asset, save_asset
from agebody.assets.own_files import NO_CHECKSUM, with_checksum
from agebody.assets.report import find_problems, inspect_asset


def random_body(
    rng, *, num_vertices=9, num_joints=3, num_betas=2, num_ages=1, width=2, posedirs=True, dtype=np.float64
):
    """Return a valid body of arbitrary sizes."""
    floats = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    weights = rng.uniform(0.1, 1, (num_vertices, width))

    def matrix(rows):
        return sparse.csr_array(floats(rows, num_vertices) * rng.integers(0, 2, (rows, num_vertices)))

    return BodyAsset(
        template=floats(num_vertices, 3),
        faces=rng.integers(0, num_vertices, (num_vertices, 3)),
        parents=np.array([-1, *(rng.integers(0, j) for j in range(1, num_joints))]),
        joint_names=tuple(f"jöint {j}" for j in range(num_joints)),
        joint_regressor=matrix(num_joints),
        skin_joints=rng.integers(0, num_joints, (num_vertices, width)),
        skin_weights=(weights / weights.sum(axis=1, keepdims=True)).astype(dtype),
        shapedirs=floats(num_vertices, 3, num_betas),
        posedirs=floats(num_vertices, 3, 9 * (num_joints - 1)) if posedirs else None,
        age_offsets=np.arange(1, num_ages + 1, dtype=dtype),
        age_templates=floats(num_ages, num_vertices, 3) if num_ages else None,
        regressors={
            "": Regressor((), matrix(0)),
            "eyes.data": Regressor(("l", "r"), matrix(2)),
        },
        metadata=Metadata(
            name="ünnamed",
            license="CC0",
            shape_names=tuple(f"s{i}" for i in range(num_betas)),
            sources={"a.pkl": "0" * 64},
        ),
    )  # fmt: skip


def assert_identical(got, expected):
    """Equal to the bit, including the metadata."""
    for name in (
        "template",
        "faces",
        "parents",
        "skin_joints",
        "skin_weights",
        "shapedirs",
        "posedirs",
        "age_offsets",
        "age_templates",
    ):
        left, right = getattr(got, name), getattr(expected, name)
        if right is None:
            assert left is None
        else:
            assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    matrices = [(got.joint_regressor, expected.joint_regressor)]
    assert list(got.regressors) == list(expected.regressors)
    for key, regressor in expected.regressors.items():
        assert got.regressors[key].names == regressor.names
        matrices.append((got.regressors[key].matrix, regressor.matrix))
    for left, right in matrices:
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        for part in ("data", "indices", "indptr"):
            assert_array_equal(getattr(left, part), getattr(right, part))
    assert got.joint_names == expected.joint_names
    assert got.metadata == expected.metadata


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_vertices=st.integers(1, 20),
    num_joints=st.integers(1, 6),
    num_betas=st.integers(0, 4),
    num_ages=st.integers(0, 3),
    width=st.integers(1, 4),
    posedirs=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_round_trip_is_bitwise(tmp_path_factory, seed, **sizes):
    path = tmp_path_factory.mktemp("round") / "body.any-suffix"
    body = random_body(np.random.default_rng(seed), **sizes)
    save_asset(body, path)
    assert_identical(load_asset(path), body)


def test_saving_is_deterministic(tmp_path):
    body = random_body(np.random.default_rng(0))
    save_asset(body, tmp_path / "a")
    save_asset(load_asset(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loaded_arrays_are_read_only(tmp_path):
    save_asset(random_body(np.random.default_rng(0)), tmp_path / "a")
    with pytest.raises(ValueError, match="read-only"):
        load_asset(tmp_path / "a").template[0] = 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loading_copies_no_large_array(tmp_path, dtype):
    """All of them are views of the bytes that were read."""
    write_smpl_pkl(tmp_path / "SMPL_NEUTRAL.pkl", dtype=dtype)
    kid = write_kid_template(tmp_path / "kid.npy")
    body = load_asset(tmp_path / "SMPL_NEUTRAL.pkl", infant_template=kid)
    save_asset(body, tmp_path / "body.safetensors")
    again = load_asset(tmp_path / "body.safetensors")
    assert_identical(again, body)
    large = ("template", "skin_weights", "shapedirs", "posedirs", "age_templates")
    assert {type(getattr(again, name).base) for name in large} == {bytes}


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_save_leaves_the_old_file_whole(tmp_path, monkeypatch, where, error):
    path = tmp_path / "body.safetensors"
    old, new = (random_body(np.random.default_rng(seed)) for seed in (0, 1))
    save_asset(old, path)

    def interrupt(*_args):
        raise error

    monkeypatch.setattr(os, where, interrupt)
    for write, place in ((save_asset, path), (export_smpl, tmp_path / "a.npz")):
        with pytest.raises(error):
            write(new, place, overwrite=True)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    monkeypatch.undo()
    assert_identical(load_asset(path), old)
    save_asset(new, path, overwrite=True)
    assert_identical(load_asset(path), new)


def test_where_saving_is_refused(tmp_path, monkeypatch):
    body = random_body(np.random.default_rng(0))
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist; create it first"):
        save_asset(body, tmp_path / "nowhere" / "body.safetensors")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(IsADirectoryError, match="expected a file, got a folder; add a file name"):
        save_asset(body, tmp_path)
    path = tmp_path / "body.safetensors"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        save_asset(body, path)
    assert path.read_text() == "precious"

    def read_only(*_args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match="cannot write in the folder") as caught:
        save_asset(body, path, overwrite=True)
    assert caught.value.filename == str(path)
    assert path.read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write in this folder"):
        save_asset(random_body(np.random.default_rng(0)), tmp_path / "body")
    tmp_path.chmod(0o700)


def test_saving_through_a_link_keeps_the_link(tmp_path):
    save_asset(random_body(np.random.default_rng(0)), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    body = random_body(np.random.default_rng(1))
    save_asset(body, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_identical(load_asset(tmp_path / "real"), body)


def test_new_files_follow_the_umask(tmp_path):
    (tmp_path / "plain").touch()
    save_asset(random_body(np.random.default_rng(0)), tmp_path / "body")
    assert (tmp_path / "body").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_concurrent_saves_and_loads(tmp_path):
    """Readers see one of the bodies complete while others write."""
    path = tmp_path / "body.safetensors"
    bodies = [random_body(np.random.default_rng(seed), num_vertices=2000) for seed in range(3)]
    sums = [body.template.sum() for body in bodies]
    save_asset(bodies[0], path)
    failures = []

    def work(body):
        try:
            for _ in range(10):
                save_asset(body, path, overwrite=True)
                assert load_asset(path).template.sum() in sums
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def own_file(path, part, change):
    """Return a saved body with a change to its metadata, its texts or its tensors."""
    save_asset(random_body(np.random.default_rng(0)), path)
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = json.loads(file.metadata()[HEADER_KEY])
    if part == "tensors":
        change(tensors)
    if part == "texts":
        change(texts)
    metadata = {HEADER_KEY: json.dumps(texts | NO_CHECKSUM if "sha256" in texts else texts)}
    if part == "header":
        change(metadata)
    path.write_bytes(with_checksum(save(tensors, metadata)))


@pytest.mark.parametrize(
    ("part", "change", "cause"),
    [
        ("header", lambda x: x.clear() or x.update(format="pt"), "not a body: v_template, f, .* missing"),
        ("header", lambda x: x.update({HEADER_KEY: "{"}), "its description is damaged"),
        ("header", lambda x: x.update({HEADER_KEY: "[" * 100_000}), "its description is damaged"),
        ("header", lambda x: x.update({HEADER_KEY: "[]"}), "expected a JSON object"),
        ("texts", lambda x: x.update(format_version=4), "format version 4; .* install a newer one"),
        ("texts", lambda x: x.update(format_version=0), "format_version: expected 1 to 3, got 0"),
        ("texts", lambda x: x.pop("sha256"), "do not give its checksum"),
        ("texts", lambda x: x.pop("format_version"), "format_version: expected 1 to 3, got None"),
        ("texts", lambda x: x.pop("joint_names"), "joint_names: expected a list of names"),
        ("texts", lambda x: x.update(joint_names="abc"), "joint_names: expected a list of names"),
        ("texts", lambda x: x.update(joint_names=["a", "a", "b"]), "joint_names: expected 3 different"),
        ("texts", lambda x: x.update(joint_names=["a", "b"]), "joint_names: expected 3 different names"),
        ("texts", lambda x: x.update(extra=1), "extra: not an entry of a body"),
        ("texts", lambda x: x["metadata"].update(kind=3), "metadata: expected texts"),
        ("texts", lambda x: x["metadata"].pop("kind"), "metadata: expected name, kind, .*, got name, topol"),
        ("texts", lambda x: x["metadata"].update(sources=[]), "sources: expected a JSON object"),
        ("texts", lambda x: x["metadata"]["sources"].update(b=3), "metadata: expected texts"),
        ("texts", lambda x: x.pop("regressors"), "regressors: expected a JSON object, got nothing"),
        ("texts", lambda x: x["regressors"].update(toes=["a"]), "regressors.toes.data: expected an array"),
        ("tensors", lambda x: x.pop("template"), "template: expected an array, got nothing"),
        ("tensors", lambda x: x.pop("joint_regressor.indptr"), "indptr: expected an array, got nothing"),
        ("tensors", lambda x: x.update(other=np.zeros(1)), "other: not an entry of a body"),
        ("tensors", lambda x: x.update(template=np.zeros((9, 2))), "template: expected shape .any, 3., got"),
        ("tensors", lambda x: x.update(template=np.zeros(9)), "template: expected shape .any, 3., got .9."),
        ("tensors", lambda x: x.update(template=np.zeros((9, 3), np.float16)), "or float64, got float16"),
        ("tensors", lambda x: x.update(template=np.full((9, 3), np.nan)), "template: 27 entries are NaN"),
        ("tensors", lambda x: x.update(template=np.zeros((8, 3))), "not a sparse matrix|expected shape"),
        ("tensors", lambda x: x["joint_regressor.indices"].fill(9), "joint_regressor: not a sparse matrix"),
        ("tensors", lambda x: x["joint_regressor.indices"].fill(-1), "joint_regressor: not a sparse"),
        ("tensors", lambda x: x["joint_regressor.indptr"].fill(7), "joint_regressor: not a sparse"),
        ("tensors", lambda x: x["skin_weights"].fill(1), "sum to 2; expected 1"),
        ("tensors", lambda x: x["faces"].fill(9), "faces: expected indices 0 to 8"),
    ],
)  # fmt: skip
def test_damaged_files_of_ours_have_a_cause(tmp_path, part, change, cause):
    path = tmp_path / "body.safetensors"
    own_file(path, part, change)
    with pytest.raises(AssetError, match=rf"body\.safetensors: .*({cause})"):
        load_asset(path)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_damage_to_files_of_ours_is_overlooked(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("mutated") / "body.safetensors"
    save_asset(random_body(np.random.default_rng(0)), path)
    whole = path.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[position] = data.draw(st.integers(0, 255))
        else:
            del content[max(1, position) :]
    path.write_bytes(content)
    with pytest.raises(AssetError) if content != whole else contextlib.nullcontext():
        load_asset(path)


def test_files_of_the_first_version_are_read(tmp_path):
    """They have no checksum."""
    path = tmp_path / "body.safetensors"
    own_file(path, "texts", lambda x: x.pop("sha256") and x.update(format_version=1))
    assert_identical(load_asset(path), random_body(np.random.default_rng(0)))


def numpy_lbs(arrays, betas, pose):
    """Compute SMPL's formula (Loper 2015) from the entries of a file, in float64."""
    rotations = np.stack([rodrigues(vector) for vector in pose.reshape(-1, 3)])
    shaped = arrays["v_template"] + arrays["shapedirs"] @ betas
    joints = arrays["J_regressor"] @ shaped
    posed = shaped + arrays["posedirs"] @ (rotations[1:] - np.eye(3)).ravel()
    parents = arrays["kintree_table"][0].astype(np.int64)
    world = []
    for joint, rotation in enumerate(rotations):
        local = np.eye(4)
        local[:3, :3] = rotation
        local[:3, 3] = joints[joint] - (joints[parents[joint]] if joint else 0)
        world.append(world[parents[joint]] @ local if joint else local)
    world = np.stack(world)
    world[:, :3, 3] -= np.einsum("jab,jb->ja", world[:, :3, :3], joints)
    blended = np.einsum("vj,jab->vab", arrays["weights"], world)
    return np.einsum("vab,vb->va", blended[:, :3, :3], posed) + blended[:, :3, 3]


def rodrigues(vector):
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize("container", ["npz", "pkl"])
def test_smplx_loads_the_export(tmp_path, container, capsys):
    arrays = write_smpl_pkl(tmp_path / "model.pkl")
    body = load_asset(tmp_path / "model.pkl")
    path = tmp_path / f"SMPL_NEUTRAL.{container}"
    if container == "npz":
        export_smpl(body, path)
        with np.load(path) as entries:
            model = smplx.SMPL("", data_struct=smplx.utils.Struct(**entries), dtype=torch.float64)
    else:
        export_smpl(body, path)
        model = smplx.create(str(path), dtype=torch.float64)
    rng = np.random.default_rng(0)
    betas, pose = rng.normal(size=10), rng.normal(size=72)
    got = model(
        betas=torch.tensor(betas[None]),
        global_orient=torch.tensor(pose[None, :3]),
        body_pose=torch.tensor(pose[None, 3:]),
    ).vertices[0]
    expected = numpy_lbs(arrays | {"J_regressor": arrays["J_regressor"].toarray()}, betas, pose)
    # smplx keeps some arrays through float32 and adds 1e-8 to the rotation vector: up to 1e-6 m
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_exports_load_back(tmp_path, suffix):
    write_smpl_pkl(tmp_path / "model.pkl", num_vertices=100)
    body = load_asset(tmp_path / "model.pkl")
    export_smpl(body, tmp_path / f"SMPL_NEUTRAL{suffix}")
    again = load_asset(tmp_path / f"SMPL_NEUTRAL{suffix}")
    with pytest.raises(ValueError, match=r"body\.h5: expected one of the suffixes .npz, .pkl, got '.h5'"):
        export_smpl(body, tmp_path / "body.h5")
    for name in ("template", "faces", "parents", "shapedirs", "posedirs"):
        assert_array_equal(getattr(again, name), getattr(body, name))
    assert_array_equal(again.dense_weights(), body.dense_weights())
    assert_array_equal(again.joint_regressor.toarray(), body.joint_regressor.toarray())


def test_export_without_pose_blend_shapes(tmp_path):
    export_smpl(random_body(np.random.default_rng(0), posedirs=False), tmp_path / "a.npz")
    posedirs = load_asset(tmp_path / "a.npz").posedirs
    assert posedirs is not None
    assert not posedirs.any()


def test_report_of_a_sound_body(tmp_path):
    path = tmp_path / "SMPL_FEMALE.pkl"
    write_smpl_pkl(path, dtype=np.float32)
    write_kid_template(tmp_path / "smpl_kid_template.npy")
    report = inspect_asset(path)
    assert report.variant == "SMPL model (pickle)"
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (report.num_vertices, report.num_faces, report.num_joints, report.num_betas) == (
        6890,
        13776,
        24,
        10,
    )
    assert (report.dtype, report.gender, report.regressors) == ("float32", "female", {"surface21": 21})
    assert [problem for problem in report.problems if "no age template" not in problem] == []
    save_asset(load_asset(path, infant_template=tmp_path / "smpl_kid_template.npy"), tmp_path / "ours")
    ours = inspect_asset(tmp_path / "ours")
    assert (ours.variant, ours.age_offsets, ours.problems) == ("SMPL model (agebody format 3)", (1.0,), [])


def test_report_says_that_hands_are_flat(tmp_path):
    arrays = random_arrays(family="smplh", num_vertices=90)
    arrays["J_regressor"] = arrays["J_regressor"].toarray()
    for extra, said in (({}, False), ({"hands_meanl": np.ones(45), "hands_meanr": np.ones(45)}, True)):
        np.savez(tmp_path / "model.npz", **arrays, **extra)
        problems = inspect_asset(tmp_path / "model.npz").problems
        assert any("flat_hand_mean=True" in problem for problem in problems) is said


def test_report_of_files_without_a_body(tmp_path):
    write_kid_template(tmp_path / "smpl_kid_template.npy", num_vertices=6890)
    write_smil_pose_prior(tmp_path / "smil_pose_prior.pkl")
    (tmp_path / "page.html").write_text("<html>")
    for name, what in (
        ("smpl_kid_template.npy", "kid template"),
        ("smil_pose_prior.pkl", "pose prior"),
        ("page.html", "web page"),
    ):
        report = inspect_asset(tmp_path / name)
        assert report.variant == "not a body"
        assert report.num_vertices is None
        assert what in report.problems[0]
        assert str(tmp_path) not in report.problems[0]
    with pytest.raises(AssetError, match="no such file"):
        inspect_asset(tmp_path / "nothing.pkl")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "SMPL.npz"
    write_smpl_npz(path, num_vertices=100)
    return load_asset(path, infant_template=random_arrays(num_vertices=100, stature=0.5)["v_template"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda b: {"template": b.template * 1000}, r"template measures 1700; in metres"),
        (lambda b: {"template": b.template / 100}, r"template measures 0\.017"),
        (lambda b: {"faces": b.faces[1:]}, "not closed: 3 edges"),
        (lambda b: {"faces": np.concatenate([b.faces, b.faces[:1]])}, "not closed"),
        (lambda b: {"faces": b.faces[:, ::-1]}, "inside out"),
        (lambda b: {"template": np.concatenate([b.template, b.template[:1]])}, "1 vertices belong"),
        (lambda b: {"skin_weights": b.skin_weights * 1.0001}, "of 100 vertices do not sum to 1"),
        (lambda b: {"shapedirs": b.shapedirs * (np.arange(10) < 7)}, "3 of 10 shape directions are zero"),
        (lambda b: {"joint_regressor": b.joint_regressor * 1.01}, r"joint_regressor: 24 rows .* 0\.01"),
        (lambda b: {"regressors": {"p": Regressor(("a",), b.joint_regressor[:1] * 2)}}, "regressor p: 1"),
        (lambda b: {"posedirs": b.posedirs.astype(np.float32)}, "mixed precision: .*posedirs float32"),
        (lambda b: {"posedirs": None}, "no pose blend shapes"),
        (lambda b: {"age_offsets": np.zeros(0), "age_templates": None}, "no age template"),
    ],
)  # fmt: skip
def test_problems_are_reported(sound, change, problem):
    assert find_problems(sound) == []
    changes = change(sound)
    if len(changes.get("template", sound.template)) > 100:
        changes |= {
            "skin_joints": np.concatenate([sound.skin_joints, sound.skin_joints[:1]]),
            "skin_weights": np.concatenate([sound.skin_weights, sound.skin_weights[:1]]),
            "shapedirs": np.concatenate([sound.shapedirs, sound.shapedirs[:1]]),
            "posedirs": np.concatenate([sound.posedirs, sound.posedirs[:1]]),
            "age_templates": np.concatenate([sound.age_templates, sound.age_templates[:, :1]], axis=1),
            "joint_regressor": sparse.csr_array(sparse.hstack([sound.joint_regressor, np.zeros((24, 1))])),
        }
    found = find_problems(sound.replace(**changes))
    assert any(re.search(problem, text) for text in found), found


def test_assets_pickle_exactly(tmp_path):
    body = random_body(np.random.default_rng(0))
    assert_identical(pickle.loads(pickle.dumps(body)), body)
