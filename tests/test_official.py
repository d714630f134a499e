"""Every published file format is read completely and exactly; other files are recognised and refused."""

import contextlib
import io
import os
import pickle
import zipfile
import zlib
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import smplx.utils
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import (
    PARENTS,
    as_tensor,
    python2_dumps,
    random_arrays,
    random_regressor,
    save_torch,
    write_bev_packs,
    write_gmm_prior,
    write_kid_template,
    write_mano_pkl,
    write_smil_pkl,
    write_smil_pose_prior,
    write_smpl_npz,
    write_smpl_pkl,
    write_smplh_npz,
    write_smplx_npz,
)
from numpy.testing import assert_array_equal
from safetensors.numpy import save as safetensors_save
from scipy import sparse

from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError
from agebody.assets.io import load_asset, save_asset
from agebody.assets.landmarks import EXTRA9, H36M17_BEV, J19, SURFACE21_SMPL_VERTICES
from agebody.assets.official import JOINT_NAMES

SMALL = 120


def assert_holds(body, arrays):
    """The body has exactly the numbers of the file, in the file's precision."""
    for name, got in (
        ("v_template", body.template),
        ("shapedirs", body.shapedirs),
        ("posedirs", body.posedirs),
    ):
        assert got.dtype == arrays[name].dtype
        assert_array_equal(got, arrays[name])
    weights = body.dense_weights()
    assert weights.dtype == arrays["weights"].dtype
    assert_array_equal(weights, arrays["weights"])
    assert_array_equal(body.faces, arrays["f"])
    regressor = arrays["J_regressor"]
    assert body.joint_regressor.dtype == regressor.dtype
    assert_array_equal(
        body.joint_regressor.toarray(), regressor.toarray() if sparse.issparse(regressor) else regressor
    )


@pytest.mark.parametrize(
    ("name", "write", "options", "kind", "num_joints"),
    [
        ("SMPL_FEMALE.pkl", write_smpl_pkl, {}, "smpl", 24),
        ("basicmodel_f_lbs_10_207_0_v1.1.0.pkl", write_smpl_pkl, {"num_betas": 300}, "smpl", 24),
        ("female_plain.pkl", write_smpl_pkl, {"chumpy": False}, "smpl", 24),
        ("female_single.pkl", write_smpl_pkl, {"dtype": np.float32}, "smpl", 24),
        ("female_dense.pkl", write_smpl_pkl, {"dense": True}, "smpl", 24),
        ("smil_female.pkl", write_smil_pkl, {}, "smil", 24),
        ("SMPL_FEMALE.npz", write_smpl_npz, {}, "smpl", 24),
        ("SMPLH_FEMALE.npz", write_smplh_npz, {}, "smplh", 52),
        ("SMPLH_FEMALE.pkl", write_smpl_pkl, {"family": "smplh"}, "smplh", 52),
        ("SMPLX_FEMALE.npz", write_smplx_npz, {}, "smplx", 55),
        ("MANO_FEMALE.pkl", write_mano_pkl, {}, "mano", 16),
    ],
)
def test_every_family_and_container(tmp_path, name, write, options, kind, num_joints):
    arrays = write(tmp_path / name, **{"num_vertices": SMALL} | options)
    body = load_asset(tmp_path / name)
    assert_holds(body, arrays)
    assert body.metadata.kind == kind
    assert body.metadata.gender == "female"
    assert "non-commercial" in body.metadata.license
    assert body.num_joints == num_joints
    assert body.joint_names == JOINT_NAMES["smpl" if kind == "smil" else kind]
    assert_array_equal(body.parents, PARENTS["smpl" if kind == "smil" else kind])
    assert list(body.metadata.sources) == [name]
    assert len(body.metadata.sources[name]) == 64
    assert not body.has_age


def test_joint_names_match_smplx():
    """smplx lists the joints of each file, then landmarks; its names of the eyes have a suffix."""
    joint_names = pytest.importorskip("smplx.joint_names")
    for family, listed in (
        ("smplx", "JOINT_NAMES"),
        ("smplh", "SMPLH_JOINT_NAMES"),
    ):
        expected = [name.removesuffix("_smplhf") for name in getattr(joint_names, listed)]
        assert list(JOINT_NAMES[family]) == expected[: len(JOINT_NAMES[family])]


def test_smpl_topology_brings_its_surface_points(tmp_path):
    arrays = write_smpl_pkl(tmp_path / "SMPL_NEUTRAL.pkl")
    body = load_asset(tmp_path / "SMPL_NEUTRAL.pkl")
    assert body.metadata.topology == "smpl"
    assert len(body.faces) == 13776
    points = body.regressors["surface21"]
    assert points.names == tuple(SURFACE21_SMPL_VERTICES)
    assert_array_equal(
        points.matrix @ body.template, arrays["v_template"][list(SURFACE21_SMPL_VERTICES.values())]
    )


def test_smplx_names_its_expressions(tmp_path):
    write_smplx_npz(tmp_path / "SMPLX_NEUTRAL.npz", num_vertices=SMALL)
    names = load_asset(tmp_path / "SMPLX_NEUTRAL.npz").metadata.shape_names
    assert (names[0], names[299], names[300], names[399]) == (
        "beta0",
        "beta299",
        "expression0",
        "expression99",
    )


def test_hmr_copy_brings_its_keypoints(tmp_path):
    arrays = write_smpl_pkl(tmp_path / "hmr.pkl", num_vertices=SMALL, cocoplus=True)
    points = load_asset(tmp_path / "hmr.pkl").regressors["cocoplus19"]
    assert_array_equal(points.matrix.toarray(), arrays["cocoplus_regressor"].toarray())
    assert points.names[14] == "nose"


def test_other_joint_trees_load_as_custom(tmp_path):
    write_smpl_pkl(tmp_path / "model.pkl", family="flame", num_vertices=SMALL)
    body = load_asset(tmp_path / "model.pkl")
    assert (body.metadata.kind, body.num_joints, body.joint_names[4]) == ("custom", 5, "joint4")


@pytest.mark.parametrize("legacy", [False, True])
def test_bev_packs(tmp_path, legacy):
    packs = write_bev_packs(tmp_path, num_vertices=SMALL)
    for name, pack, kind in zip(
        ("SMPLA_NEUTRAL.pth", "smil_packed_info.pth"), packs, ("smpl", "smil"), strict=True
    ):
        if legacy:
            tensors = {key: torch.from_numpy(value) for key, value in pack.items()}
            torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=False)
        body = load_asset(tmp_path / name)
        posedirs = pack["posedirs"].reshape(207, SMALL, 3).transpose(1, 2, 0)
        assert_holds(body, pack | {"posedirs": posedirs})
        assert body.metadata.kind == kind
        assert_array_equal(body.parents, PARENTS["smpl"])
        for key, names, regressor in (
            ("extra9", EXTRA9, "J_regressor_extra9"),
            ("h36m17", H36M17_BEV, "J_regressor_h36m17"),
        ):
            assert body.regressors[key].names == names
            assert_array_equal(body.regressors[key].matrix.toarray(), pack[regressor])
        surface = body.regressors["surface21"].matrix @ body.template
        assert_array_equal(surface, body.template[pack["extra_joints_index"]])
    smpla = load_asset(tmp_path / "SMPLA_NEUTRAL.pth")
    assert_array_equal(smpla.age_offsets, [1])
    assert_array_equal(smpla.age_templates[0], smpla.template + packs[0]["smpla_shapedirs"][..., 10])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_kid_template_is_centred(tmp_path, dtype):
    write_smpl_pkl(tmp_path / "SMPL_NEUTRAL.pkl", dtype=dtype)
    kid = write_kid_template(tmp_path / "smpl_kid_template.npy")
    body = load_asset(tmp_path / "SMPL_NEUTRAL.pkl", infant_template=tmp_path / "smpl_kid_template.npy")
    assert_array_equal(body.age_offsets, [1])
    assert body.age_templates.dtype == dtype
    assert_array_equal(body.age_templates[0], (kid - kid.mean(axis=0)).astype(dtype))
    assert list(body.metadata.sources) == ["SMPL_NEUTRAL.pkl", "smpl_kid_template.npy"]
    assert "AGORA" in body.metadata.license
    given = load_asset(tmp_path / "SMPL_NEUTRAL.pkl", infant_template=kid)
    assert_array_equal(given.age_templates, body.age_templates)


def test_smil_file_serves_as_kid_template(tmp_path):
    """SMIL's model in place of the kid template is a common mistake with a clear meaning."""
    write_smpl_pkl(tmp_path / "SMPL_NEUTRAL.pkl", num_vertices=SMALL)
    smil = write_smil_pkl(tmp_path / "smil_web.pkl", num_vertices=SMALL)
    body = load_asset(tmp_path / "SMPL_NEUTRAL.pkl", infant_template=tmp_path / "smil_web.pkl")
    template = smil["v_template"]
    assert_array_equal(body.age_templates[0], template - template.mean(axis=0))
    assert "SMIL" in body.metadata.license
    save_asset(load_asset(tmp_path / "smil_web.pkl"), tmp_path / "smil.safetensors")
    again = load_asset(tmp_path / "SMPL_NEUTRAL.pkl", infant_template=tmp_path / "smil.safetensors")
    assert_array_equal(again.age_templates, body.age_templates)


def test_regressor_files(tmp_path):
    write_smpl_pkl(tmp_path / "SMPL_NEUTRAL.pkl", num_vertices=SMALL)
    rng = np.random.default_rng(0)
    j19, extra9, h36m, own = (random_regressor(rows, SMALL, rng).toarray() for rows in (19, 9, 17, 2))
    (tmp_path / "SMPL_to_J19.pkl").write_bytes(pickle.dumps(j19, 2))
    np.save(tmp_path / "J_regressor_extra.npy", extra9)
    np.savez(tmp_path / "J_regressor_h36m.npz", h36m)
    files = {"j19": "SMPL_to_J19.pkl", "extra9": "J_regressor_extra.npy", "h36m17": "J_regressor_h36m.npz"}
    body = load_asset(
        tmp_path / "SMPL_NEUTRAL.pkl",
        regressors={name: tmp_path / file for name, file in files.items()} | {"own": own},
    )
    for name, expected in (("j19", j19), ("extra9", extra9), ("h36m17", h36m), ("own", own)):
        assert_array_equal(body.regressors[name].matrix.toarray(), expected)
    assert body.regressors["j19"].names == J19
    assert body.regressors["own"].names == ("own_0", "own_1")
    assert set(files.values()) < set(body.metadata.sources)


def test_gender_comes_from_the_name_or_the_caller(tmp_path):
    for name, gender in (
        ("basicModel_neutral_lbs_10_207_0_v1.0.0.pkl", "neutral"),
        ("basicmodel_m_lbs_10_207_0_v1.0.0.pkl", "male"),
        ("basicModel_f_lbs_10_207_0_v1.0.0.pkl", "female"),
        ("male/model.pkl", "male"),
        ("body.pkl", "neutral"),
        ("SMPL_FEMALE (1).pkl", "female"),
        ("SMPL-MALE.pkl", "male"),
        ("smpl female.v1.1.pkl", "female"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_smpl_pkl(tmp_path / name, num_vertices=SMALL)
        assert load_asset(tmp_path / name).metadata.gender == gender
        assert load_asset(tmp_path / name, gender="female").metadata.gender == "female"
    with pytest.raises(ValueError, match="gender: expected one of"):
        load_asset(tmp_path / "body.pkl", gender="F")


def npz_bytes(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zip_bytes(compression=zipfile.ZIP_STORED, /, **entries):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def torch_bytes(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


NOT_BODIES = {
    "empty": (b"", "empty; download it again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page.*log in"),
    "html after a mark": (b"\xef\xbb\xbf<!-- page --><HTML>", "web page.*log in"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page.*log in"),
    "fbx": (b"Kaydara FBX Binary  \x00", "FBX scene; get the model itself"),
    "obj": (b"# made by hand\n\nv 0.1 0.2 0.3\nf 1 2 3\n", "OBJ mesh"),
    "ply": (b"ply\nformat ascii 1.0\n", "PLY mesh"),
    "glb": (b"glTF\x02\x00\x00\x00", "glTF scene"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "packed archive; unpack it"),
    "zip": (
        zip_bytes(**{"SMPL/models/readme.txt": "hello"}),
        "packed archive; unpack it.*SMPL/models/readme.txt",
    ),
    "json": (b'{"poses": [1]}', "JSON text; get the model itself, .* or a network's weights"),
    "noise": (b"\x00\x01\x02 hello", "not a pickle, npz"),
    "text": (b"hello", "not a pickle, npz"),
    "kid template": (npy_bytes(np.zeros((6890, 3))), "kid template, not a body; give it as infant_template"),
    "regressor": (npy_bytes(np.zeros((19, 6890))), "give it in regressors"),
    "single array": (npy_bytes(np.zeros(3)), "single array"),
    "object array": (npy_bytes(np.array([{}])), "holds a list, not a body"),
    "object that runs": (npy_bytes(np.array(Hostile())), "array of objects .*names 'posix.system'"),
    "matlab": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "MATLAB or HDF5 file; get the model itself"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "MATLAB or HDF5 file"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(20), "packed archive; unpack it"),
    "tar": (bytes(1).rjust(257, b"a") + b"ustar\x0000", "packed archive; unpack it"),
    "parquet": (b"PAR1" + bytes(20), "this is a table"),
    "picture": (b"\x89PNG\r\n\x1a\n", "a picture"),
    "joblib": (b"\x80\x03cjoblib.numpy_pickle\nNumpyArrayWrapper\n.", "joblib file; read it with joblib"),
    "joblib, compressed": (zlib.compress(bytes(20)), "packed by zlib, as joblib.dump does"),
    "tensors in a pickle": (pickle.dumps({"v_template": torch.zeros(2)}), "in Python's own pickle"),
    "pickle with buffers outside": (
        pickle.dumps(np.zeros(9), 5, buffer_callback=lambda _: False),
        "out-of-band buffers.*buffer_callback",
    ),
    "torchscript": (zip_bytes(**{"a/data.pkl": b"", "a/code/b.py": b""}), "compiled torch program"),
    "other packing": (
        zip_bytes(zipfile.ZIP_LZMA, **{"v_template.npy": npy_bytes(np.zeros(3))}),
        "no body file",
    ),
    "truncated npy": (npy_bytes(np.zeros(99))[:-8], "truncated"),
    "npy that promises too much": (npy_bytes(np.zeros(2)).replace(b"(2,)", b"(9,)"), "truncated"),
    "npy of another header": (npy_bytes(np.zeros(2)).replace(b"'<f8'", b"'<zz'"), "dtype zz"),
    "npy of records": (npy_bytes(np.zeros(2, [("a", "f4")])), "array of records"),
    "npy of endless digits": (
        npy_bytes(np.zeros(2)).replace(b"(2,), }" + b" " * 40, b"(2" + b"2" * 45),
        "array of rec",
    ),
    "truncated npz": (npz_bytes(a=np.zeros(9))[:-30], "damaged or truncated"),
    "motion": (npz_bytes(poses=np.zeros((5, 72)), trans=np.zeros((5, 3))), "motion"),
    "list": (pickle.dumps([1]), "holds a list"),
    "hostile": (pickle.dumps(Hostile()), "names 'posix.system'|names 'nt.system'"),
    "hostile torch": (torch_bytes({"v_template": Hostile()}), "names 'posix.system'.*a torch file"),
    "torch bomb": (
        torch_bytes({"v_template": torch.zeros(1).expand(2**14, 2**16)}),
        "many times its own size",
    ),
    "checkpoint": (torch_bytes({"state_dict": {"w": torch.zeros(2)}, "epoch": 3}), "training checkpoint"),
    "truncated torch": (torch_bytes({"w": torch.zeros(99)})[:-80], "damaged or truncated"),
    "torch tensor": (torch_bytes(torch.zeros(3)), r"single array of shape \(3,\)"),
    "other dict": (pickle.dumps({"a": 1}), "v_template, f, .* missing; it holds a"),
    "dict in a list": (pickle.dumps([{"a": 1}]), "holds a list"),
    "nested": (pickle.dumps({"a": {"b": {"v_template": 1}}}), "v_template, f, .* missing; it holds a"),
    "bytes keys": (pickle.dumps({b"v_template": 1}), "missing"),
}


def test_errors_do_not_repeat_the_file(tmp_path):
    data = bytearray(npz_bytes(v_template=np.zeros((9999, 3))))
    data[26:28] = (60_000).to_bytes(2, "little")  # length of the entry's name
    (tmp_path / "body.npz").write_bytes(data)
    with pytest.raises(AssetError, match="damaged or truncated") as caught:
        load_asset(tmp_path / "body.npz")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("what", NOT_BODIES)
def test_other_formats_are_named(tmp_path, what, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, cause = NOT_BODIES[what]
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(AssetError, match=rf"model\.pkl: .*({cause})"):
        load_asset(tmp_path / "model.pkl")
    assert not (tmp_path / "ran").exists()


def test_priors_are_not_bodies(tmp_path):
    write_smil_pose_prior(tmp_path / "smil_pose_prior.pkl")
    with pytest.raises(AssetError, match=r"SMIL's pose prior, not a body; the body is in smil_web\.pkl"):
        load_asset(tmp_path / "smil_pose_prior.pkl")
    write_gmm_prior(tmp_path / "gmm_08.pkl")
    with pytest.raises(AssetError, match="mixture pose prior"):
        load_asset(tmp_path / "gmm_08.pkl")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl: no such file.*smpl\.is\.tue\.mpg\.de"):
        load_asset(tmp_path / "SMPL_NEUTRAL.pkl")
    with pytest.raises(AssetError, match="a folder, not a file; it holds no files"):
        load_asset(tmp_path)
    (tmp_path / "SMPL_MALE.pkl").touch()
    with pytest.raises(AssetError, match=r"it holds SMPL_MALE\.pkl"):
        load_asset(tmp_path)
    with pytest.raises(AssetError, match="cannot be read"):
        load_asset(tmp_path / "SMPL_MALE.pkl" / "inside")


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "SMPL_MALE.pkl"
    write_smpl_pkl(path, num_vertices=SMALL)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", refuse)
    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(AssetError, match=r"SMPL_MALE\.pkl: cannot be read: Permission denied"):
        load_asset(path)


def broken(**changes):
    """Write a small SMPL file with some entries replaced, or left out where None."""
    arrays = random_arrays(num_vertices=SMALL) | changes
    arrays["J_regressor"] = sparse.csc_matrix(arrays["J_regressor"])
    return pickle.dumps({name: value for name, value in arrays.items() if value is not None}, 4)


GOOD = random_arrays(num_vertices=SMALL)
NAN = np.where(np.arange(SMALL)[:, None] == 3, np.nan, GOOD["v_template"])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"v_template": None}, "v_template missing"),
        ({"v_template": NAN}, "template: 3 entries are NaN"),
        ({"v_template": GOOD["v_template"][:, :2]}, r"v_template: expected shape \(any, 3\)"),
        ({"v_template": [1, 2]}, "v_template: expected floating-point numbers, got int64"),
        ({"v_template": [[1.0], 2]}, "v_template: expected an array, got list"),
        ({"v_template": np.zeros((SMALL, 3), int)}, "v_template: expected floating"),
        ({"f": GOOD["f"] + 100}, "faces: expected indices 0 to 119"),
        ({"f": GOOD["f"] + 0.5}, "f: expected whole numbers"),
        ({"f": np.full((2, 3), np.inf)}, "f: expected whole numbers"),
        ({"f": np.array([["a", "b", "c"]])}, "f: expected whole numbers"),
        ({"f": GOOD["f"].ravel()}, r"faces: expected shape \(any, 3\)"),
        ({"weights": GOOD["weights"] * 2}, "sum to 2; expected 1"),
        ({"weights": -GOOD["weights"]}, "non-negative"),
        ({"weights": GOOD["weights"][:, :20]}, r"weights: expected shape \(120, 24\), got \(120, 20\)"),
        ({"weights": GOOD["weights"] * np.nan}, "NaN"),
        ({"shapedirs": GOOD["shapedirs"][:50]}, r"shapedirs: expected shape \(120, 3, any\)"),
        ({"posedirs": GOOD["posedirs"][..., :90]}, "posedirs for 24 joints: expected shape"),
        ({"posedirs": GOOD["posedirs"][..., :93]}, "STAR model"),
        ({"J_regressor": GOOD["J_regressor"][:, :50]}, "J_regressor: expected shape"),
        ({"J_regressor": np.full((24, SMALL), np.inf)}, "joint_regressor: .* NaN or infinite"),
        ({"kintree_table": np.zeros((3, 24), int)}, "kintree_table: expected shape"),
        ({"kintree_table": GOOD["kintree_table"][:, ::-1]}, "in order in its second row"),
        ({"kintree_table": np.zeros((2, 0), int)}, "kintree_table: expected shape"),
        ({"kintree_table": np.arange(24) + 1}, "expected the root first"),
        ({"kintree_table": np.arange(24)}, "a parent must come before its child"),
        ({"v_template": GOOD["v_template"] * 1e300}, r"template: expected numbers up to 1e\+06, got"),
        ({"v_template": 1000 * GOOD["v_template"]}, "the template measures 1700; in metres a body measures"),
        ({"v_template": GOOD["v_template"][:, [0, 2, 1]]}, "0.50 m along y and 1.70 m along z, so that"),
        ({"shapedirs": 1000 * GOOD["shapedirs"]}, "shapedirs: a beta of 1 moves a vertex by"),
        ({"v_template": 0 * GOOD["v_template"]}, "the template measures 0; in metres a body measures"),
        ({"posedirs": GOOD["posedirs"] * 1e30}, r"posedirs: expected numbers up to 1e\+06"),
        ({"J_regressor": GOOD["J_regressor"] * 1e30}, r"joint_regressor: expected numbers up to 1e\+06"),
        ({"kintree_table": np.array([-1, *range(2, 25)])}, "a parent must come before its child"),
        ({"extra_joints_index": np.arange(21) + 110}, "extra_joints_index: expected (shape|indices)"),
        ({"extra_joints_index": np.arange(20)}, "extra_joints_index: expected (shape|indices)"),
        ({"cocoplus_regressor": np.ones((5, SMALL))}, "expected 14 or 19 rows"),
        ({"J_regressor_extra9": np.ones((8, SMALL))}, "expected 9 rows"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_wrong_arrays_are_named(tmp_path, changes, cause):
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    path.write_bytes(broken(**changes))
    with pytest.raises(AssetError, match=rf"SMPL_NEUTRAL\.pkl: .*{cause}"):
        load_asset(path)


def test_flame_is_a_head(tmp_path):
    write_smpl_pkl(tmp_path / "generic_model.pkl", family="flame", num_vertices=5023)
    with pytest.raises(AssetError, match="FLAME head, not a body"):
        load_asset(tmp_path / "generic_model.pkl")


WRAPPED = {
    "savez of the dict": lambda entries: npz_bytes(entries=np.array(entries, object)),
    "savez without a name": lambda entries: npz_bytes(arr_0=np.array(entries, object)),
    "dict in a dict": lambda entries: pickle.dumps({"smpl": entries}),
    "dict in a list": lambda entries: pickle.dumps([entries]),
    "matrices": lambda entries: pickle.dumps(
        entries | {name: entries[name].view(np.matrix) for name in ("weights", "J_regressor")}
    ),
    "lists": lambda entries: pickle.dumps({name: getattr(v, "tolist", v)() for name, v in entries.items()}),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("how", WRAPPED)
def test_bodies_are_found_in_other_containers(tmp_path, how):
    entries = random_arrays(num_vertices=SMALL)
    entries["J_regressor"] = entries["J_regressor"].toarray()
    (tmp_path / "SMPL.dat").write_bytes(WRAPPED[how](entries))
    assert_holds(load_asset(tmp_path / "SMPL.dat"), entries)


def test_needed_object_arrays_of_other_things_are_refused(tmp_path):
    arrays = random_arrays(num_vertices=SMALL)
    np.savez(tmp_path / "SMPL.npz", **arrays | {"J_regressor": np.array(["a", {}], object)})
    with pytest.raises(AssetError, match="J_regressor: expected an array, got list"):
        load_asset(tmp_path / "SMPL.npz")
    np.savez(tmp_path / "SMPL.npz", **arrays | {"J_regressor": np.array(Hostile(), object)})
    with pytest.raises(AssetError, match="J_regressor is an array of objects that cannot be read .*system"):
        load_asset(tmp_path / "SMPL.npz")


def as_struct(arrays):
    """Return the arrays as attributes of smplx's container."""
    return smplx.utils.Struct(**arrays)


def pickled(protocol):
    return lambda arrays: pickle.dumps(arrays, protocol)


def sparse_as(kind):
    """Return a writer of SMPL's regressor in a format of SciPy."""
    return lambda arrays: pickle.dumps(arrays | {"J_regressor": kind(arrays["J_regressor"].toarray())})


def with_arrays(change):
    """Return a writer of a pickle in which every array was changed."""
    return lambda arrays: pickle.dumps(
        {name: change(value) if isinstance(value, np.ndarray) else value for name, value in arrays.items()}
    )


def safetensors_bytes(arrays):
    dense = arrays | {"J_regressor": arrays["J_regressor"].toarray()}
    return safetensors_save({name: np.ascontiguousarray(value) for name, value in dense.items()})


def tensors_of(arrays):
    dense = arrays | {"J_regressor": arrays["J_regressor"].toarray()}
    return {name: as_tensor(value) for name, value in dense.items()}


PRODUCERS = {
    **{f"pickle protocol {protocol}": pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    "protocol 5 of NumPy 1": lambda x: pickle.dumps(x, 5).replace(
        b"\x94\x8c\x13numpy._core.numeric", b"\x94\x8c\x12numpy.core.numeric"
    ),
    "Python 2": python2_dumps,
    "read as bytes and written again": lambda x: pickle.dumps({k.encode(): v for k, v in x.items()}),
    "OrderedDict": lambda x: pickle.dumps(OrderedDict(x)),
    "OrderedDict of Python 2": lambda x: (
        b"\x80\x02ccollections\nOrderedDict\n(" + pickle.dumps([list(p) for p in x.items()], 2)[2:-1] + b"tR."
    ),
    "smplx's Struct": lambda x: pickle.dumps(as_struct(x)),
    "a namespace": lambda x: pickle.dumps(SimpleNamespace(**x)),
    "npz of the pickle": lambda x: npz_bytes(**x),
    "npy of the pickle": lambda x: npy_bytes(np.array(x, object)),
    "safetensors": safetensors_bytes,
    "torch, of arrays": lambda x: torch_bytes(x),
    "torch, of tensors": lambda x: torch_bytes(tensors_of(x)),
    "torch, of parameters": lambda x: torch_bytes(
        {k: torch.nn.Parameter(v, v.is_floating_point()) for k, v in tensors_of(x).items()}
    ),
    "torch, transposed": lambda x: torch_bytes(
        tensors_of(x) | {"v_template": tensors_of(x)["v_template"].T.contiguous().T}
    ),
    "Fortran order": with_arrays(np.asfortranarray),
    "big-endian": with_arrays(lambda a: a.astype(a.dtype.newbyteorder(">"))),
    "every second number": with_arrays(lambda a: np.repeat(a, 2, axis=-1)[..., ::2]),
    "float32 joints": lambda x: pickle.dumps(x | {"kintree_table": x["kintree_table"].astype(np.float32)}),
    "uint64 joints": lambda x: pickle.dumps(
        x | {"kintree_table": np.stack([np.array(PARENTS["smpl"]), np.arange(24)]).astype(np.uint64)}
    ),
    "tiny negative weights": lambda x: pickle.dumps(
        x | {"weights": np.where(x["weights"] == 0, -1e-9, x["weights"])}
    ),
    **{
        f"regressor as {name}": sparse_as(getattr(sparse, name))
        for form in ("csc", "csr", "coo", "lil", "dok", "bsr", "dia")
        for name in (f"{form}_array", f"{form}_matrix")
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("producer", PRODUCERS)
def test_models_rewritten_by_other_programs(tmp_path, producer):
    arrays = random_arrays(num_vertices=SMALL)
    arrays["J_regressor"] = sparse.csc_matrix(arrays["J_regressor"])
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    path.write_bytes(PRODUCERS[producer](dict(arrays)))
    body = load_asset(path)
    weights = body.dense_weights()
    assert abs(weights - arrays["weights"]).max() < 2e-9
    assert_array_equal(body.parents, PARENTS["smpl"])
    assert_holds(body, arrays | {"weights": weights})


def test_bfloat16_and_half_precision_are_read(tmp_path):
    arrays = tensors_of({**random_arrays(num_vertices=SMALL), "kintree_table": np.array(PARENTS["smpl"])})
    for dtype in (torch.bfloat16, torch.float16):
        short = {
            name: value.to(dtype) for name, value in arrays.items() if name in ("v_template", "posedirs")
        }
        torch.save(arrays | short, tmp_path / "a.pth")
        body = load_asset(tmp_path / "a.pth")
        assert body.template.dtype == np.float32
        assert_array_equal(body.template, short["v_template"].float().numpy())


@pytest.mark.parametrize("entry", ["~/SMPL_NEUTRAL.pkl", "bytes"])
def test_paths_in_other_forms(tmp_path, monkeypatch, entry):
    write_smpl_pkl(tmp_path / "SMPL_NEUTRAL.pkl", num_vertices=SMALL)
    kid = write_kid_template(tmp_path / "kid.npy", num_vertices=SMALL)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = os.fsencode(tmp_path / "SMPL_NEUTRAL.pkl") if entry == "bytes" else entry
    points = random_regressor(17, SMALL, np.random.default_rng(0))
    forms = [points.toarray(), points, torch.from_numpy(points.toarray()), points.toarray().tolist()]
    expected = load_asset(tmp_path / "SMPL_NEUTRAL.pkl", infant_template=kid, regressors={"h36m17": forms[0]})
    for template, form in zip((kid, torch.tensor(kid), "~/kid.npy", kid.tolist()), forms, strict=True):
        body = load_asset(path, infant_template=template, regressors={"h36m17": form})
        assert_array_equal(body.age_templates, expected.age_templates)
        assert (body.regressors["h36m17"].matrix != expected.regressors["h36m17"].matrix).nnz == 0


@pytest.mark.usefixtures("unchecked")
def test_non_paths_are_named(tmp_path):
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    write_smpl_pkl(path, num_vertices=SMALL)
    with path.open("rb") as file:
        with pytest.raises(AssetError, match="path: expected the path of a file, got a BufferedReader"):
            load_asset(file)
        with pytest.raises(AssetError, match="infant_template: expected an array, or the path.*Buffered"):
            load_asset(path, infant_template=file)
        with pytest.raises(AssetError, match="expected an array, or the path of a file, got a int"):
            load_asset(path, regressors={"own": 3})
    with pytest.raises(AssetError, match="cannot be read: .*embedded null"):
        load_asset("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AssetError, match="pipe: a pipe or a device, not a file"):
        load_asset(tmp_path / "pipe")


def test_unneeded_entries_are_not_read(tmp_path, monkeypatch):
    arrays = random_arrays(num_vertices=SMALL)
    arrays["J_regressor"] = arrays["J_regressor"].toarray()
    np.savez_compressed(tmp_path / "SMPL.npz", **arrays, extra=np.zeros(2**20))
    read = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: read.append(name.filename) or original(self, name)
    )
    load_asset(tmp_path / "SMPL.npz")
    assert "v_template.npy" in read
    assert "extra.npy" not in read


def test_damage_to_packed_files_is_found_by_checksum(tmp_path):
    """In an npz file and in a file of torch, which both are zip files."""
    arrays = random_arrays(num_vertices=SMALL)
    template = arrays["v_template"].tobytes()
    for name, write in (("npz", npz_bytes), ("torch", lambda **x: torch_bytes(tensors_of(x)))):
        arrays["J_regressor"] = sparse.csc_matrix(arrays["J_regressor"])
        content = write(**arrays)
        assert content.count(template) == 1
        changed = content.replace(template, template[:8] + b"\x01" + template[9:])
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(AssetError, match=rf"{name}: .*damaged or truncated \(Bad CRC-32"):
            load_asset(tmp_path / name)


def test_wrong_infant_templates(tmp_path):
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    write_smpl_pkl(path, num_vertices=SMALL)
    cases = [
        (
            np.zeros((10475, 3)),
            r"infant_template: .*\(SMPL-X's topology\) does not fit a body of 120 vertices",
        ),
        (np.zeros(3), "does not fit"),
        (np.zeros((SMALL, 3), int), "expected an array of floating-point vertices"),
        (np.full((SMALL, 3), np.nan), "template: 360 entries are NaN"),
        (
            534 * np.random.default_rng(0).random((SMALL, 3)),
            "infant_template: the template measures 5[0-9.]+; in metres",
        ),
        (path, r"SMPL_NEUTRAL\.pkl: this is 1\.70 m tall, an adult"),
        (GOOD["v_template"], r"infant_template: this is 1\.70 m tall, an adult"),
        (
            0.3 * GOOD["v_template"][:, [0, 2, 1]],
            "infant_template: .* so that it lies down; turn its y axis up",
        ),
        (tmp_path / "nothing.npy", r"nothing\.npy: no such file"),
    ]
    for infant, cause in cases:
        with pytest.raises(AssetError, match=cause):
            load_asset(path, infant_template=infant)
    write_bev_packs(tmp_path, num_vertices=SMALL)
    with pytest.raises(AssetError, match="brings its own age templates"):
        load_asset(tmp_path / "SMPLA_NEUTRAL.pth", infant_template=np.zeros((SMALL, 3)))


@pytest.mark.usefixtures("unchecked")
def test_wrong_regressors(tmp_path):
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    write_smpl_pkl(path, num_vertices=SMALL)
    np.save(tmp_path / "j19.npy", np.ones((19, SMALL + 1)))
    with pytest.raises(AssetError, match=r"j19\.npy: regressors\['j19'\]: expected shape \(any, 120\)"):
        load_asset(path, regressors={"j19": tmp_path / "j19.npy"})
    with pytest.raises(
        AssetError, match=r"expected 17 rows \(pelvis, ... right_wrist\), got shape \(19, 120\)"
    ):
        load_asset(path, regressors={"h36m17": np.ones((19, SMALL))})
    with pytest.raises(AssetError, match=r"expected a matrix of shape \(points, vertices\)"):
        load_asset(path, regressors={"own": np.ones(SMALL)})
    for wrong in (tmp_path / "j19.npy", [np.ones((19, SMALL))], {3: np.ones((19, SMALL))}):
        with pytest.raises(TypeError, match="regressors: expected a dict of names"):
            load_asset(path, regressors=wrong)


def test_files_larger_than_any_body_are_refused(tmp_path):
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(AssetError, match="no body file is larger"):
        load_asset(path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            with archive.open(f"a{i}.npy", "w", force_zip64=True) as file:
                file.write(bytes(2**20))
    patched = bomb.getvalue()
    for offset in _central_sizes(patched):
        patched = patched[:offset] + (2**30).to_bytes(4, "little") + patched[offset + 4 :]
    (tmp_path / "bomb.npz").write_bytes(patched)
    with pytest.raises(AssetError, match="unpacks to"):
        load_asset(tmp_path / "bomb.npz")


def _central_sizes(content):
    """Return the positions of the unpacked sizes in a zip's directory."""
    position = content.find(b"PK\x01\x02")
    while position >= 0:
        yield position + 24
        position = content.find(b"PK\x01\x02", position + 4)


def test_recognised_by_content_not_by_name(tmp_path):
    arrays = write_smpl_npz(tmp_path / "model.npz", num_vertices=SMALL)
    os.rename(tmp_path / "model.npz", tmp_path / "model.pkl")
    assert_holds(load_asset(tmp_path / "model.pkl"), arrays)
    save_torch(tmp_path / "model.bin", arrays | {"kintree_table": np.array(PARENTS["smpl"])})
    assert load_asset(tmp_path / "model.bin").joint_names == SMPL_JOINT_NAMES


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    """Return a body in every container, as bytes."""
    folder = tmp_path_factory.mktemp("containers")
    write_smpl_pkl(folder / "a.pkl", num_vertices=12, num_betas=1)
    arrays = write_smpl_npz(folder / "a.npz", num_vertices=12, num_betas=1)
    save_torch(folder / "a.pth", arrays | {"kintree_table": np.array(PARENTS["smpl"])})
    np.save(folder / "a.npy", arrays["v_template"])
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.usefixtures("unchecked")
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_fail_cleanly(containers, tmp_path_factory, data):
    """A file with damage at any place loads, or raises an AssetError."""
    content = bytearray(data.draw(st.sampled_from(containers)))
    at_an_end = st.integers(0, 300) | st.integers(max(0, len(content) - 1500), len(content) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        position = min(data.draw(at_an_end | st.integers(0, len(content) - 1)), len(content) - 1)
        if data.draw(st.integers(0, 9)):
            content[position] = data.draw(st.integers(0, 255))
        else:
            del content[max(1, position) :]
    path = tmp_path_factory.mktemp("mutated") / "body"
    path.write_bytes(content)
    with contextlib.suppress(AssetError):
        load_asset(path)


def test_torch_does_not_read_its_own_files(tmp_path, monkeypatch):
    """Its reader could run code of a file up to 2.5 (CVE-2025-32434), and unfolds what it is told to."""
    write_bev_packs(tmp_path, num_vertices=SMALL)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load"))
    assert load_asset(tmp_path / "SMPLA_NEUTRAL.pth").has_age
