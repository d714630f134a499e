"""smplx's SMPLH, SMPLX and MANO compared with smplx itself, on random bodies of their sizes."""

import contextlib
import copy
import io
import warnings

import numpy as np
import pytest
import smplx as theirs
import torch
from model_files import (
    write_kid_template,
    write_mano_pkl,
    write_smpl_pkl,
    write_smplh_npz,
    write_smplh_pkl,
    write_smplx_npz,
)

import agebody
from agebody import AssetError
from agebody.compat import smplx as ours

ATOL = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("smplx", "smplh", "mano"):
        (folder / name).mkdir()
    write_smplx_npz(folder / "smplx" / "SMPLX_NEUTRAL.npz", num_betas=20)
    write_smplh_pkl(folder / "smplh" / "SMPLH_NEUTRAL.pkl", chumpy=False)
    for side in ("LEFT", "RIGHT"):
        write_mano_pkl(folder / "mano" / f"MANO_{side}.pkl", chumpy=False, seed=len(side))
    write_kid_template(folder / "smplx_kid_template.npy", num_vertices=10475)
    write_kid_template(folder / "smpl_kid_template.npy")
    return folder


def make(module, function, *args, **options):
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(module, function)(*args, **options)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(model, batch=3):
    """Random values of all parameters of a model."""
    return {
        name: 0.4 * normal(batch, parameter.shape[1], seed=i).requires_grad_()
        for i, (name, parameter) in enumerate(model.named_parameters())
        if name != "body_pose" or parameter.shape[1] > 3
    }


def assert_same(ours, theirs):
    assert list(ours.keys()) == list(theirs.keys())
    for name, value in theirs.items():
        found = ours[name]
        assert (found is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(found, value, rtol=0, atol=ATOL, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_gradients(ours, theirs, given):
    """Compare gradients with smplx's in float64: each differs by 1e-5 of its largest entry at most.

    smplx's own in float32 differ from these by as much.
    """
    doubled = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    for output in ("vertices", "joints"):
        found, expected = (
            torch.autograd.grad(
                (points := getattr(model(**values), output)), [*values.values()], pull(points)
            )
            for model, values in ((ours, given), (theirs, doubled))
        )
        for name, mine, peers in zip(given, found, expected, strict=True):
            largest = peers.abs().max()
            torch.testing.assert_close(
                mine / largest, peers / largest, rtol=0, atol=ATOL, check_dtype=False,
                msg=lambda m, n=name, o=output: f"{o} by {n}: {m}",
            )  # fmt: skip


def pull(points):
    """Return random numbers of the shape and type of points."""
    return normal(*points.shape, seed=7).to(points)


KID = {"age": "kid", "kid": True}
CASES = [
    ("smplx", {}),
    ("smplx", {"use_pca": False, "flat_hand_mean": True, "use_face_contour": True, "num_betas": 5}),
    ("smplx", {"num_pca_comps": 12, "use_face_contour": True, **KID}),
    ("smplh", {}),
    ("smplh", {"use_pca": False, **KID}),
    ("smplh", {"flat_hand_mean": True, "num_pca_comps": 45}),
    ("mano", {}),
    ("mano", {"is_rhand": False, "flat_hand_mean": True, "num_pca_comps": 45}),
    ("mano", {"is_rhand": False, "use_pca": False}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_as_smplx(folder, kind, options):
    options = dict(options)
    if options.pop("kid", False):
        name = "smplx_kid_template.npy" if kind == "smplx" else "smpl_kid_template.npy"
        options["kid_template_path"] = str(folder / name)
    if kind == "smplx":
        options["ext"] = "npz"
    a, b = (make(module, "create", str(folder), kind, **options) for module in (ours, theirs))
    assert {n: p.shape for n, p in a.named_parameters()} == {n: p.shape for n, p in b.named_parameters()}
    assert a.name() == b.name()
    for name in (
        "NUM_JOINTS",
        "NUM_BODY_JOINTS",
        "num_betas",
        "num_expression_coeffs",
        "is_rhand",
        "use_pca",
    ):
        assert getattr(a, name, None) == getattr(b, name, None), name
    for name, buffer in b.named_buffers():
        if name != "vertex_joint_selector.extra_joints_idxs":
            torch.testing.assert_close(a.get_buffer(name), buffer, rtol=0, atol=1e-7)
    for name in ("np_left_hand_components", "np_right_hand_components", "np_hand_components"):
        assert hasattr(a, name) == hasattr(b, name)
        np.testing.assert_allclose(getattr(a, name, 0), getattr(b, name, 0), atol=1e-7)
    a.load_state_dict(b.state_dict())
    given = parameters(b)
    out, expected = (model(**given, return_full_pose=True) for model in (a, b))
    assert_same(out, expected)
    torch.testing.assert_close(a(**given, return_verts=False).joints, out.joints, rtol=0, atol=ATOL)
    assert_same_gradients(a, copy.deepcopy(b).double(), given)
    with torch.no_grad():
        assert_same(a(), b())
        v_template = a.v_template + 0.1
        a.v_template, b.v_template = v_template, v_template
        assert_same(a(**given), b(**given))


@pytest.mark.parametrize("kind", ["smplx", "smplh", "mano"])
def test_layers(folder, kind):
    options = {"ext": "npz", "use_face_contour": True} if kind == "smplx" else {}
    a, b = (make(module, "build_layer", str(folder), kind, **options) for module in (ours, theirs))
    assert not list(a.parameters())
    a.load_state_dict(b.state_dict())
    counts = {"global_orient": 1, **a._poses}
    rotate = agebody.rotations.axis_angle_to_matrix
    given = {name: rotate(0.5 * normal(2, n, 3, seed=n)) for name, n in counts.items()}
    given |= {"betas": normal(2, 10), "transl": normal(2, 3)}
    given |= {"expression": normal(2, 10)} if kind == "smplx" else {}
    assert_same(a(**given, return_full_pose=True), b(**given, return_full_pose=True))
    assert_same(a(), b())


def test_layers_take_the_options_of_configurations(folder):
    """HaMeR passes ``create_body_pose=False`` to MANO's layer; others pass the same options to all."""
    options = {"gender": "neutral", "num_hand_joints": 15, "create_body_pose": False}
    a, b = (
        make(module, "MANOLayer", model_path=str(folder / "mano"), **options) for module in (ours, theirs)
    )
    given = {"betas": normal(2, 10), "global_orient": torch.eye(3).repeat(2, 1, 1, 1)}
    assert_same(a(**given), b(**given))
    extras = {f"create_{name}": False for name in ("expression", "jaw_pose", "left_hand_pose")}
    ours.create(str(folder), "mano", **extras)
    assert not list(ours.build_layer(str(folder), "smplh", create_expression=False).parameters())
    with pytest.raises(ValueError, match="^create_betas: expected False for a layer, which has no"):
        ours.build_layer(str(folder), "smplx", create_betas=True)


@pytest.mark.parametrize(
    ("kind", "name", "usual"),
    [("smpl", "SMPL_NEUTRAL", "pkl"), ("smplh", "SMPLH_NEUTRAL", "pkl"), ("smplx", "SMPLX_NEUTRAL", "npz"),
     ("mano", "MANO_RIGHT", "pkl")],
)  # fmt: skip
def test_ext_chooses_among_the_files_of_a_folder(tmp_path, kind, name, usual):
    """smplx's SMPL has no choice: its files are pickles."""
    options = {"family": kind, "num_vertices": 150, "num_betas": 20, "hands": kind != "smpl"}
    templates = {
        "pkl": write_smpl_pkl(tmp_path / f"{name}.pkl", **options, seed=1, chumpy=False)["v_template"]
    }
    arrays = write_smpl_pkl(tmp_path / "other.pkl", **options, seed=2, chumpy=False)
    arrays["J_regressor"] = arrays["J_regressor"].toarray()
    np.savez(tmp_path / f"{name}.npz", **arrays)
    templates["npz"] = arrays["v_template"]
    for ext, taken in (("pkl", "pkl"), ("npz", "pkl" if kind == "smpl" else "npz"), (None, usual)):
        model = ours.create(tmp_path, kind, **({"ext": ext} if ext else {}))
        np.testing.assert_allclose(model.v_template, templates[taken], atol=1e-6)
    (tmp_path / f"{name}.pkl").unlink()
    ours.create(tmp_path, kind, ext="pkl")  # the only one


def test_joint_mappers_receive_the_joints_of_smplx(folder):
    seen = []

    def mapper(joints, vertices=None):
        seen.append(None if vertices is None else vertices.shape)
        return joints[:, [126, 3]] * 2

    path = str(folder / "smplx" / "SMPLX_NEUTRAL.npz")
    a, b = (make(module, "create", path, joint_mapper=mapper) for module in (ours, theirs))
    given = parameters(b)
    assert_same(a(**given), b(**given))
    assert_same(a(**given, return_verts=False), b(**given, return_verts=False))
    assert set(seen) == {(3, 10475, 3)}


def test_hands_that_are_changed_count(folder):
    model = ours.create(str(folder / "mano" / "MANO_LEFT.pkl"))
    before = model(betas=torch.ones(1, 10)).vertices
    model.shapedirs[:, 0, :] *= -1  # as public code mends the left hand
    assert (model(betas=torch.ones(1, 10)).vertices - before).abs().max() > 0.01
    assert not model.is_rhand
    assert model.gender == "neutral"
    assert ours.create(str(folder / "mano" / "MANO_RIGHT.pkl")).is_rhand


@pytest.mark.parametrize(("kid", "pose2rot"), [(True, True), (False, False)])
def test_agora_evaluates_people_from_their_parameters(folder, kid, pose2rot):
    """Models by gender, adults and kids; layers for matrices; betas cut to 11 for kids, 10 for adults."""
    options = {"model_type": "smplx", "gender": "neutral", "ext": "npz", "use_pca": False}
    options |= {"age": "kid", "kid_template_path": str(folder / "smplx_kid_template.npy")} if kid else {}
    counts = {"global_orient": 1, "body_pose": 21, "left_hand_pose": 15, "right_hand_pose": 15}
    counts |= {"jaw_pose": 1, "leye_pose": 1, "reye_pose": 1}
    person = {name: 0.4 * normal(1, 3 * count, seed=count) for name, count in counts.items()}
    if not pose2rot:
        rotate = agebody.rotations.axis_angle_to_matrix
        person = {name: rotate(pose.view(1, -1, 3)) for name, pose in person.items()}
    person |= {"betas": normal(1, 11), "expression": normal(1, 10), "transl": normal(1, 3)}
    person["betas"] = person["betas"][:, : 11 if kid else 10]
    function = "create" if pose2rot else "build_layer"
    out, expected = (
        make(module, function, str(folder), **options)(**person, pose2rot=pose2rot)
        for module in (ours, theirs)
    )
    assert_same(out, expected)


def test_slahmr_makes_smplh_of_an_npz_without_hands(folder, tmp_path):
    write_smplh_npz(tmp_path / "model.npz", num_betas=16)
    entries = dict(np.load(tmp_path / "model.npz", allow_pickle=True))
    structs = []
    for module in (ours, theirs):
        struct = module.utils.Struct(**entries)
        struct.hands_componentsl = struct.hands_componentsr = np.zeros(0)
        struct.hands_meanl = struct.hands_meanr = np.zeros(45)
        padding = np.zeros((*struct.shapedirs.shape[:2], 300 - 16))
        struct.shapedirs = np.concatenate([struct.shapedirs, padding], axis=-1)
        options = {"num_betas": 16, "batch_size": 2, "use_pca": False, "data_struct": struct}
        options |= {"model_type": "smplh", "num_expression_coeffs": 10, "flat_hand_mean": False}
        options["vertex_ids"] = module.vertex_ids.vertex_ids["smplh"]
        options |= {"age": "kid", "kid_template_path": str(folder / "smpl_kid_template.npy")}
        structs.append(make(module, "SMPLH", str(tmp_path / "model.npz"), **options))
    a, b = structs
    assert a.num_betas == b.num_betas == 17
    given = {name: value for name, value in parameters(b, 2).items() if "hand" not in name}
    hands = {"left_hand_pose": None, "right_hand_pose": None, "jaw_pose": None, "leye_pose": None}
    out, expected = (model(**given, **hands, return_full_pose=True) for model in (a, b))
    assert_same(out, expected)
    assert out.joints[:, : a.NUM_JOINTS + 1].shape[1] == 52


def test_wrong_files_say_which_to_get(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"expected 55 joints, got 52 .* which is SMPL-H; SMPL-X needs SMPLX_"
    ):
        ours.SMPLX(folder / "smplh" / "SMPLH_NEUTRAL.pkl")
    with pytest.raises(AssetError, match=r"expected SMPLX_MALE\.pkl, .npz or .safetensors; it holds SMPLX_N"):
        ours.create(str(folder), "smplx", gender="male")
    write_smplh_npz(tmp_path / "model.npz", num_vertices=120)
    with pytest.raises(AssetError, match=r"'model' has no hand_means: .* SMPLH_female\.pkl"):
        ours.SMPLH(tmp_path / "model.npz")
    with pytest.raises(AssetError, match="'model' has no hand_components"):
        ours.SMPLH(tmp_path / "model.npz", flat_hand_mean=True)
    ours.SMPLH(tmp_path / "model.npz", flat_hand_mean=True, use_pca=False)
    with pytest.raises(NotImplementedError, match="FLAME is not offered"):
        ours.create(str(folder), "flame")
    model = ours.create(str(folder / "smplx" / "SMPLX_NEUTRAL.npz"))
    with pytest.raises(ValueError, match=r"left_hand_pose: expected shape \(B, 6\), got \(1, 45\)"):
        model(left_hand_pose=torch.zeros(1, 45))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_smplx_npz(folder / "SMPLX.npz", num_vertices=150, num_betas=20)
    write_smplh_pkl(folder / "SMPLH.pkl", num_vertices=150, chumpy=False)
    write_mano_pkl(folder / "MANO.pkl", num_vertices=100, chumpy=False)
    return {path.stem: agebody.load_asset(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pca_comps": 60}, "num_pca_comps: expected 0 to 45, what '{name}' has, got 60"),
        ({"num_pca_comps": 1.5}, "num_pca_comps: expected 0 to 45, what '{name}' has, got 1.5"),
        ({"num_pca_comps": "6"}, "num_pca_comps: expected 0 to 45, what '{name}' has, got '6'"),
        ({"num_betas": 1.5}, "num_betas: expected a whole number of 0 or more, got 1.5"),
        ({"batch_size": -1}, "batch_size: expected a whole number of 0 or more, got -1"),
        ({"joint_mapper": 3}, "joint_mapper: expected a function of the joints, got int"),
        ({"transl": "far"}, "transl: expected numbers (B, 3), got str"),
        ({"model_path": None}, "model_path: expected a file, a folder or a BodyAsset, got NoneType"),
        ({"age": "baby"}, "age: expected 'adult' or 'kid', got 'baby'"),
    ],
)
@pytest.mark.parametrize("kind", ["SMPLH", "SMPLX", "MANO"])
@pytest.mark.usefixtures("unchecked")
def test_wrong_options_name_themselves(small, kind, options, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(ours, kind)(**{"model_path": small[kind]} | options)
    assert str(caught.value) == message.format(name=small[kind].metadata.name)


@pytest.mark.usefixtures("unchecked")
def test_wrong_counts_of_expressions_and_types_name_themselves(small, folder):
    for count in (1.5, -1, "10"):
        with pytest.raises(
            ValueError, match="^num_expression_coeffs: expected a whole number of 0 or more, got"
        ):
            ours.SMPLX(small["SMPLX"], num_expression_coeffs=count)
    with pytest.raises(ValueError, match="^model_type: expected one of smpl, .*, got 'none'$"):
        ours.create(str(folder), None)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["SMPLH", "SMPLX", "MANO"])
def test_the_output_of_networks_under_autocast_is_taken(small, kind, dtype, changed):
    model = getattr(ours, kind)(small[kind])
    if changed:
        model.v_template = model.v_template + 0.1
    given = {name: value.detach().to(dtype) for name, value in parameters(model).items()}
    expected = model(**{name: value.float() for name, value in given.items()})
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found = model(**given)
            shaped = model.forward_shape(given["betas"]).vertices
        torch.testing.assert_close(found.vertices, expected.vertices, rtol=0, atol=0)
        torch.testing.assert_close(found.joints, expected.joints, rtol=0, atol=0)
        torch.testing.assert_close(shaped, model.forward_shape(given["betas"].float()).vertices)


@pytest.mark.parametrize("kind", ["SMPLH", "SMPLX", "MANO"])
@pytest.mark.parametrize("changed", [False, True])
def test_a_model_that_was_never_called_compiles(small, kind, changed, unchecked):
    torch._dynamo.reset()
    model = getattr(ours, kind)(small[kind], **{"use_face_contour": True} if kind == "SMPLX" else {})
    if changed:
        model.v_template = model.v_template + 0.1
    given = parameters(model)
    compiled = torch.compile(model, backend="eager")
    found = compiled(**given, return_verts=False).joints, compiled(**given).vertices
    expected = model(**given)
    torch.testing.assert_close(found, (expected.joints, expected.vertices), rtol=0, atol=4e-6)
