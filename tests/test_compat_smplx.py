"""The names of smplx compared with smplx itself, on random bodies of SMPL's size."""

import contextlib
import copy
import dataclasses
import importlib
import io
import os
import pickle
import re
import warnings

import numpy as np
import pytest
import smplx as theirs
import smplx.joint_names
import smplx.lbs
import smplx.utils
import smplx.vertex_ids
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import (
    random_arrays,
    random_regressor,
    write_kid_template,
    write_mano_pkl,
    write_smil_pkl,
    write_smpl_npz,
    write_smpl_pkl,
    write_smplh_npz,
)

import agebody
from agebody import AssetError
from agebody.compat import smplx as ours

DOUBLE = torch.float64
# About 30 roundings of a metre in float32; in float64 smplx itself is 3e-7 off.
ATOL = {torch.float32: 4e-6, DOUBLE: 1e-6}
TYPES_CHECKED = os.environ.get("AGEBODY_TYPECHECK", "1") == "1"
SMALL = {"num_vertices": 150, "chumpy": False}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smpl")
    write_smpl_pkl(folder / "SMPL_NEUTRAL.pkl", chumpy=False)
    write_kid_template(folder / "smpl_kid_template.npy")
    np.save(folder / "J_regressor_extra.npy", random_regressor(9, 6890, np.random.default_rng(9)).toarray())
    return folder


@pytest.fixture(scope="module")
def make(folder):
    """Make our model or theirs from the same file."""

    def make(module, name="SMPL", **options):
        paths = {"model_path": str(folder), "kid_template_path": str(folder / "smpl_kid_template.npy")}
        # smplx prints its number of betas, and reads by names that SciPy deprecates.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return getattr(module, name)(**paths | options)

    return make


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "SMPL_NEUTRAL.pkl"
    write_smpl_pkl(path, **SMALL)
    return path


def arguments(model, batch=4, *, matrices=False, dtype=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(batch, *shape, generator=generator, dtype=DOUBLE)  # noqa: E731
    values = {
        "betas": normal(model.num_betas),
        "body_pose": 0.5 * normal(23, 3),
        "global_orient": normal(1, 3),
        "transl": normal(3),
    }
    for name in ("body_pose", "global_orient"):
        rotate = agebody.rotations.axis_angle_to_matrix
        values[name] = rotate(values[name]) if matrices else values[name].flatten(1)
    return {name: value.to(dtype or model.dtype) for name, value in values.items()}


def assert_same(ours, theirs, atol):
    assert list(ours.keys()) == list(theirs.keys())
    for name, value in theirs.items():
        if value is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(
                ours[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


class TestModel:
    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
    @pytest.mark.parametrize("age", ["adult", "kid"])
    def test_outputs_gradients_and_attributes(self, make, age, dtype):
        a, b = (make(module, age=age, dtype=dtype) for module in (ours, theirs))
        assert a.num_betas == b.num_betas == (11 if age == "kid" else 10)
        for name in (
            "v_template",
            "shapedirs",
            "posedirs",
            "J_regressor",
            "parents",
            "lbs_weights",
            "faces_tensor",
        ):
            mine, peers = getattr(a, name), getattr(b, name)
            assert mine.dtype == peers.dtype
            # smplx reads through float32 whatever the dtype.
            torch.testing.assert_close(mine, peers, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(a.faces, b.faces)
        assert a.faces.dtype == b.faces.dtype
        for name in (
            "NUM_JOINTS",
            "NUM_BODY_JOINTS",
            "SHAPE_SPACE_DIM",
            "dtype",
            "batch_size",
            "gender",
            "age",
        ):
            assert getattr(a, name) == getattr(b, name)
        for call in ("get_num_verts", "get_num_faces", "name"):
            assert getattr(a, call)() == getattr(b, call)()
        assert {n: p.shape for n, p in a.named_parameters()} == {n: p.shape for n, p in b.named_parameters()}

        given_ = {name: value.requires_grad_() for name, value in arguments(a).items()}
        out, expected = (model(**given_, return_full_pose=True) for model in (a, b))
        assert_same(out, expected, ATOL[dtype])
        generator = torch.Generator().manual_seed(1)
        pull = [
            torch.randn(x.shape, generator=generator, dtype=dtype) / x.shape[1]
            for x in (out.vertices, out.joints)
        ]
        for name, mine, peers in zip(
            given_,
            torch.autograd.grad([out.vertices, out.joints], list(given_.values()), pull),
            torch.autograd.grad([expected.vertices, expected.joints], list(given_.values()), pull),
            strict=True,
        ):
            torch.testing.assert_close(
                mine, peers, rtol=0, atol=ATOL[dtype], msg=lambda m, n=name: f"{n}: {m}"
            )

    @pytest.mark.parametrize("age", ["adult", "kid"])
    def test_layer(self, make, age):
        a, b = (make(module, "SMPLLayer", age=age) for module in (ours, theirs))
        assert not list(a.parameters())
        given_ = arguments(a, matrices=True)
        assert_same(
            a(**given_, return_full_pose=True), b(**given_, return_full_pose=True), ATOL[torch.float32]
        )
        flat = given_ | {
            "global_orient": given_["global_orient"][:, 0],
            "body_pose": given_["body_pose"].flatten(1),
        }
        flat |= {"pose2rot": True, "return_full_pose": True}
        assert_same(a(**flat), b(**flat), ATOL[torch.float32])
        assert_same(a(return_full_pose=True), b(return_full_pose=True), ATOL[torch.float32])
        for name, value in given_.items():
            assert_same(a(**{name: value}), b(**{name: value}), ATOL[torch.float32])

    def test_ways_to_call(self, make):
        mapper = lambda joints: joints[:, [24, 3, 0]] * 2 + 1  # noqa: E731
        for options in (
            {},
            {"use_hands": False},
            {"use_hands": False, "use_feet_keypoints": False},
            {"joint_mapper": mapper},
            {"create_transl": False},
            {"num_betas": 4, "model_type": "smpl", "use_face_contour": True},
            {"vertex_ids": {name: 3 * i for i, name in enumerate(theirs.vertex_ids.vertex_ids["smplh"])}},
        ):
            a, b = (make(module, **options) for module in (ours, theirs))
            given_, matrices = arguments(a), arguments(a, matrices=True)
            for call in (
                {},
                {"return_verts": False},
                {"betas": given_["betas"][:1]},
                {
                    "body_pose": given_["body_pose"].unflatten(1, (23, 3)),
                    "global_orient": given_["global_orient"][:, None],
                },
                {
                    "body_pose": matrices["body_pose"],
                    "global_orient": matrices["global_orient"],
                    "pose2rot": False,
                },
                {"get_skin": True, "return_full_pose": True},
            ):
                call = given_ | call
                if options.get("create_transl") is False:
                    del call["transl"]
                assert_same(a(**call), b(**call), ATOL[torch.float32])
            torch.testing.assert_close(
                a(**given_, return_verts=False).joints, a(**given_).joints, rtol=0, atol=ATOL[torch.float32]
            )
            assert_same(a(), b(), ATOL[torch.float32])
            assert_same(a.forward_shape(given_["betas"]), b.forward_shape(given_["betas"]), 1e-6)

    @pytest.mark.parametrize("age", ["adult", "kid"])
    def test_template_of_the_caller(self, make, age):
        template = random_arrays(seed=8)["v_template"]
        template = torch.from_numpy(template).float()
        a, b = (make(module, age=age, v_template=template) for module in (ours, theirs))
        given_ = arguments(a)
        assert_same(a(**given_), b(**given_), ATOL[torch.float32])

    def test_parameters_with_values(self, make):
        values = {name: value.numpy() for name, value in arguments(make(ours), 3).items()}
        a, b = (make(module, batch_size=3, **values) for module in (ours, theirs))
        assert_same(a(), b(), ATOL[torch.float32])
        a().vertices.sum().backward()
        assert all(parameter.grad is not None for parameter in a.parameters())
        for model in (a, b):
            model.reset_params(betas=values["betas"])
        assert_same(a(), b(), ATOL[torch.float32])
        assert not a.body_pose.any()

    @pytest.mark.parametrize("struct", [ours.utils.Struct, theirs.utils.Struct])
    def test_data_struct(self, make, small, struct):
        arrays = random_arrays(**{k: v for k, v in SMALL.items() if k != "chumpy"})
        model = make(ours, data_struct=struct(**arrays, bs_type="lrotmin", unread=object()))
        expected = ours.SMPL(small)
        given_ = arguments(expected)
        torch.testing.assert_close(model(**given_).vertices, expected(**given_).vertices)

    @pytest.mark.parametrize("dtype", [DOUBLE, torch.float16, torch.long])
    def test_translations_of_any_type(self, make, dtype):
        """As NumPy and literals give them; smplx adds them in place."""
        a, b = (make(module) for module in (ours, theirs))
        assert_same(*(m(transl=torch.tensor([[1, 2, 5]], dtype=dtype)) for m in (a, b)), 4e-6)

    def test_shapes_that_smplx_does_not_broadcast(self, small):
        model = ours.SMPL(small)
        given_ = arguments(model)
        expected = model(**given_ | {"global_orient": torch.zeros(4, 3), "transl": torch.zeros(4, 3)})
        out = model(betas=given_["betas"], body_pose=given_["body_pose"])
        torch.testing.assert_close(out.vertices, expected.vertices)
        assert model(transl=torch.zeros(0, 3)).vertices.shape == (0, 150, 3)
        assert ours.SMPLLayer(small)(betas=torch.zeros(0, 10)).joints.shape == (0, 24, 3)

    def test_no_vertices_no_mesh(self, small, monkeypatch):
        model = ours.SMPL(small)
        joints = model().joints
        monkeypatch.setattr(type(model._layer.surface), "forward", None)
        torch.testing.assert_close(model(return_verts=False).joints, joints)

    def test_autocast_changes_nothing(self, kid):
        given_ = arguments(kid)
        expected = kid(**given_)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = kid(**given_)
        assert torch.equal(out.vertices, expected.vertices)

    @pytest.mark.skipif(TYPES_CHECKED, reason="a compiler cannot see through a run-time type checker")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("source", ["mannequin", "file", "changed"])
    def test_compiles_whole(self, mannequin_asset, small, source):
        """Also a model whose arrays are views of a file's bytes, and one like another that is not changed."""
        model = ours.SMPL(mannequin_asset, age="kid") if source == "mannequin" else ours.SMPL(small)
        if source == "changed":
            torch.compile(ours.SMPL(small), fullgraph=True, backend="eager")(**arguments(model))
            model.shapedirs *= -1
        given_ = arguments(model)
        out = torch.compile(model, fullgraph=True, backend="eager")(**given_)
        torch.testing.assert_close(out.vertices, model(**given_).vertices, rtol=0, atol=ATOL[torch.float32])

    @pytest.fixture
    def kid(self, small, tmp_path):
        write_kid_template(tmp_path / "kid.npy", num_vertices=150)
        return ours.SMPL(small, age="kid", kid_template_path=tmp_path / "kid.npy")


_IMPORTS = """
import smplx
from smplx import SMPL
from smplx import SMPL, SMPLH, SMPLX, MANO
from smplx import SMPL as _SMPL, SMPLLayer as _SMPLLayer
from smplx import SMPLHLayer, SMPLXLayer, MANOLayer, FLAMELayer, FLAME
from smplx import create, build_layer
from smplx import lbs as lbs
from smplx import body_models, vertex_ids, joint_names, utils, vertex_joint_selector
from smplx.body_models import SMPL, SMPLX, SMPLH, SMPLOutput, ModelOutput
from smplx.body_models import SMPLXOutput, SMPLHOutput, MANOOutput, Struct, to_np, to_tensor, Tensor, Array
from smplx.body_models import VertexJointSelector, VERTEX_IDS, blend_shapes, vertices2landmarks, lbs
from smplx.utils import Struct, to_np, to_tensor, Tensor, Array, SMPLOutput, SMPLHOutput, SMPLXOutput
from smplx.utils import find_joint_kin_chain, rot_mat_to_euler, ModelOutput, MANOOutput, FLAMEOutput
from smplx.lbs import batch_rigid_transform, batch_rodrigues, blend_shapes, lbs, transform_mat
from smplx.lbs import vertices2landmarks, find_dynamic_lmk_idx_and_bcoords, vertices2joints
from smplx.joint_names import JOINT_NAMES, SMPLH_JOINT_NAMES
from smplx.vertex_ids import vertex_ids as VERTEX_IDS
from smplx.vertex_joint_selector import VertexJointSelector
"""
IMPORTS = _IMPORTS.strip().splitlines()
"""Lines of SPIN, VIBE, PARE, WHAM, TRAM, 4D-Humans, SLAHMR, GVHMR, BEDLAM, EFT, EasyMocap and others."""

_OTHERS = """
absolute_import annotations division print_function Dict List NewType Optional Tuple Union dataclass fields
asdict np nn os osp pickle torch F
"""
OTHERS_OF_SMPLX = set(_OTHERS.split())

PROJECTS = {
    "joints mapped and regressed, axis-angle or matrices": """
from smplx import SMPL as _SMPL
from smplx.body_models import SMPLOutput
from smplx.lbs import vertices2joints

class Body(_SMPL):
    def __init__(self, *args, **kwargs):
        super(Body, self).__init__(*args, **kwargs)
        self.register_buffer("J_regressor_extra", torch.from_numpy(np.load(EXTRA)).float())
        self.joint_map = torch.tensor([50, 24, 12, 3, 45], dtype=torch.long)

    def forward(self, *args, **kwargs):
        kwargs["get_skin"] = True
        out = super(Body, self).forward(*args, **kwargs)
        extra = vertices2joints(self.J_regressor_extra, out.vertices)
        joints = torch.cat([out.joints, extra], dim=1)[:, self.joint_map, :]
        return SMPLOutput(vertices=out.vertices, global_orient=out.global_orient, body_pose=out.body_pose,
                          joints=joints, betas=out.betas, full_pose=out.full_pose)

body = Body(FOLDER, batch_size=4, create_transl=False)
given = arguments(body)
result = body(betas=given["betas"], body_pose=given["body_pose"], global_orient=given["global_orient"])
given = arguments(body, matrices=True)
del given["transl"]
again = body(**given, pose2rot=False)
results = [result.vertices, result.joints, again.joints]
""",
    "a layer whose output is changed": """
import smplx
from smplx.lbs import vertices2joints
from smplx.utils import SMPLOutput

class Wrapper(smplx.SMPLLayer):
    def __init__(self, *args, joint_regressor_extra=None, update_hips=False, **kwargs):
        super(Wrapper, self).__init__(*args, **kwargs)
        extra = np.load(joint_regressor_extra)
        self.register_buffer("joint_regressor_extra", torch.tensor(extra, dtype=torch.float32))
        self.register_buffer("joint_map", torch.tensor([24, 12, 17, 1, 2]))
        self.update_hips = update_hips

    def forward(self, *args, **kwargs) -> SMPLOutput:
        out = super(Wrapper, self).forward(*args, **kwargs)
        joints = out.joints[:, self.joint_map, :]
        if self.update_hips:
            joints[:, [3, 4]] = joints[:, [3, 4]] + 0.25 * (joints[:, [3, 4]] - joints[:, [4, 3]])
        out.joints = torch.cat([joints, vertices2joints(self.joint_regressor_extra, out.vertices)], dim=1)
        return out

options = dict(joint_regressor_extra=EXTRA, num_body_joints=23, gender="neutral")
body = Wrapper(model_path=FOLDER, update_hips=True, **options)
given = {k: v.float() for k, v in arguments(body, matrices=True).items() if k != "transl"}
out = body(**given, pose2rot=False)
results = [out.vertices, out.joints, torch.from_numpy(body.faces.astype(np.int64))]
""",
    "lbs over the model's arrays": """
import smplx
from smplx.lbs import lbs, batch_rodrigues, blend_shapes, vertices2joints
from smplx.vertex_ids import vertex_ids

body = smplx.create(FOLDER_ABOVE, model_type="smpl", gender="neutral", batch_size=4, ext="pkl")
given = arguments(body)
pose = torch.cat([given["global_orient"], given["body_pose"]], dim=1)
arrays = (body.v_template, body.shapedirs, body.posedirs, body.J_regressor, body.parents, body.lbs_weights)
vertices, joints = lbs(given["betas"], pose, *arrays)
rotations = batch_rodrigues(pose.view(-1, 3)).view(4, -1, 3, 3)
again, _ = lbs(given["betas"], rotations, *arrays, pose2rot=False)
rest = vertices2joints(body.J_regressor, body.v_template + blend_shapes(given["betas"], body.shapedirs))
results = [vertices, joints, again, rest, vertices[:, vertex_ids["smplh"]["nose"]]]
""",
    "a fit of the model's parameters": """
import smplx

body = smplx.SMPL(FOLDER, batch_size=2, age="kid", kid_template_path=KID)
optimizer = torch.optim.SGD([body.betas, body.body_pose, body.global_orient, body.transl], lr=1e-3)
target = body(transl=torch.ones(2, 3)).joints.detach()
for _ in range(3):
    optimizer.zero_grad()
    loss = ((body(return_full_pose=True)["joints"] - target) ** 2).sum()
    loss.backward()
    optimizer.step()
results = [body.betas.detach(), body.body_pose.detach(), body.transl.detach(), loss.detach()]
""",
}


@pytest.mark.parametrize("project", PROJECTS)
def test_projects_run_unchanged(project, folder, tmp_path):
    (tmp_path / "smpl").symlink_to(folder)
    values = {
        "FOLDER": str(folder), "FOLDER_ABOVE": str(tmp_path), "EXTRA": str(folder / "J_regressor_extra.npy"),
        "KID": str(folder / "smpl_kid_template.npy"), "np": np, "torch": torch, "arguments": arguments,
    }  # fmt: skip
    code = PROJECTS[project]
    swapped = code.replace("from smplx", "from agebody.compat.smplx")
    swapped = swapped.replace("import smplx\n", "import agebody.compat.smplx as smplx\n")
    mine, peers = dict(values), dict(values)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(swapped, mine)
        assert printed.getvalue() == ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            exec(code, peers)
    for a, b in zip(mine["results"], peers["results"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ATOL[torch.float32])


def test_spin_era_output():
    """SPIN imports the output by the name that it had up to smplx 0.1.13."""
    from agebody.compat.smplx.body_models import ModelOutput

    out = ModelOutput(vertices=None, betas=torch.ones(1), body_pose=torch.zeros(1))
    assert out["betas"] is out.betas
    assert out.get("missing", 3) == 3
    assert dict(out.items())["body_pose"] is out.body_pose


WRITES = {
    "v_template += (data)": "m.v_template.data += up",
    "v_template = (data)": "m.v_template.data = m.v_template.data + up",
    "v_template copy_ (data)": "m.v_template.data.copy_(m.v_template + up)",
    "v_template mul_ (data)": "m.v_template.data.mul_(1.1)",
    "v_template by NumPy": "m.v_template.numpy()[:] += 0.1",
    "v_template by NumPy, of detach": "m.v_template.detach().cpu().numpy()[3:50, 1] *= 2",
    "v_template in place": "m.v_template += up",
    "v_template, one vertex": "m.v_template[7] = 3.0",
    "v_template, mirrored": "m.v_template.data = m.v_template.data.flip(0)",
    "v_template, kept and written later": "t = m.v_template; m(); m(); t.data += up",
    "v_template, a view kept": "t = m.v_template.data[10:]; m(); t += up[10:]",
    "v_template replaced": "m.v_template = m.v_template + up",
    "v_template registered again": "m.register_buffer('v_template', m.v_template + up)",
    "v_template as a parameter": "m.v_template = torch.nn.Parameter(m.v_template + up)",
    "v_template by set_": "m.v_template.set_(m.v_template + up)",
    "v_template in the dict of buffers": "m._buffers['v_template'] = m.v_template + up",
    "v_template through buffers": "[b.data.add_(0.1) for b in m.buffers() if b.shape == up.shape]",
    "v_template through get_buffer": "m.get_buffer('v_template').data += up",
    "fewer betas": "m.shapedirs.data = m.shapedirs.data[:, :, :4]; n = 4",
    "no correctives": "m.posedirs.data.zero_()",
    "weights": "m.lbs_weights.data = m.lbs_weights.data.roll(1, 0)",
    "joints": "m.J_regressor.data[3] = 0; m.J_regressor.data[3, 7] = 1",
    "moved, then written": "m = m.double(); m.v_template.data += up.double(); m = m.float()",
    "written, then moved": "m.v_template.data += up; m = m.double().float()",
    "copied, then written": "m = copy.deepcopy(m); m.v_template.data += up",
}


class TestArraysReplaced:
    @pytest.mark.parametrize("write", WRITES)
    def test_every_way_to_write_counts_as_in_smplx(self, make, write):
        models, betas = [], 10
        for module in (ours, theirs):
            scope = {"m": make(module), "up": torch.full((6890, 3), 0.1), "torch": torch, "copy": copy}
            with torch.no_grad():
                exec(WRITES[write], scope)
            models.append(scope["m"])
            betas = scope.get("n", betas)
        given_ = arguments(models[0])
        given_["betas"] = given_["betas"][:, :betas]
        out, expected = (model(**given_) for model in models)
        assert models[0]._replaced()
        assert_same(out, expected, 2e-5)
        assert_same(models[0](**given_, return_verts=False), models[1](**given_, return_verts=False), 2e-5)

    def test_a_look_changes_nothing(self, small):
        model = ours.SMPL(small)
        for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights"):
            getattr(model, name).sum()
        list(model.buffers())
        before = model().vertices
        assert not model._replaced()
        assert torch.equal(model().vertices, before)
        model.v_template.data += 1
        assert model._replaced() == {"v_template"}
        model.v_template.data -= 1
        assert (model().vertices - before).abs().max() < 1e-5

    def test_an_array_that_wants_a_gradient_gets_one(self, small):
        model = ours.SMPL(small)
        model.v_template.requires_grad_()
        model().vertices.sum().backward()
        assert model.v_template.grad.abs().min() > 0

    def test_replicas_follow_changed_buffers(self, small):
        for change in (False, True):
            model = ours.SMPL(small)
            if change:
                model.v_template.data += 0.1
            replica = model._replicate_for_data_parallel()
            for name, buffer in model._buffers.items():
                replica._buffers[name] = buffer.clone()
            replica.vertex_joint_selector = model.vertex_joint_selector._replicate_for_data_parallel()
            assert replica._replaced() == ({"v_template"} if change else set())

    def test_arrays_return_to_a_model_that_lost_its_memory(self, small):
        expected, model = ours.SMPL(small), ours.SMPL(small)
        torch.nn.Sequential(model)._apply(lambda tensor: torch.empty_like(tensor).fill_(7))  # as to_empty
        for name, buffer in model._buffers.items():
            assert torch.equal(buffer, expected.get_buffer(name)), name
        assert not model._replaced()

    def test_made_in_inference_mode_and_trained_through(self, small):
        with torch.inference_mode():
            model = ours.SMPLLayer(small)
        betas = torch.zeros(2, 10, requires_grad=True)
        model(betas=betas).joints.square().sum().backward()
        assert betas.grad is not None
        assert betas.grad.abs().min() > 0

    @pytest.mark.parametrize("kind", [ours.SMPL, ours.SMPLLayer])
    def test_exported_programs_give_the_same_for_any_batch(self, small, kind, unchecked):
        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.body = kind(small)

            def forward(self, pose):
                pose = pose if kind is ours.SMPL else ours.lbs.batch_rodrigues(pose)
                return self.body(body_pose=pose[:, 1:], global_orient=pose[:, :1]).joints

        network, batch = Network(), torch.export.Dim("batch")
        example, others = torch.randn(3, 24, 3), torch.randn(5, 24, 3)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
        torch.testing.assert_close(program.module()(others), network(others))

    def test_autocast_changes_nothing_either(self, small):
        model = ours.SMPL(small)
        model.v_template.data += 0.1
        given_ = arguments(model)
        regressor = torch.rand(3, 150)
        calls = (
            lambda: model(**given_).vertices,
            lambda: model.forward_shape(given_["betas"]).vertices,
            lambda: ours.lbs.vertices2joints(regressor, model(**given_).vertices),
            lambda: ours.lbs.batch_rodrigues(given_["global_orient"]),
        )
        for call in calls:
            expected = call()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(call(), expected)

    def test_template_with_gradient(self, small):
        model = ours.SMPL(small)
        given_ = arguments(model)
        before = model(**given_)
        offsets = torch.zeros_like(model.v_template).requires_grad_()
        model.v_template = model.v_template + offsets
        out = model(**given_)
        torch.testing.assert_close(out.vertices, before.vertices, rtol=0, atol=4e-6)
        torch.testing.assert_close(out.joints, before.joints, rtol=0, atol=4e-6)
        out.vertices.sum().backward()
        assert offsets.grad is not None
        assert offsets.grad.abs().min() > 0

    @pytest.mark.parametrize("name", ["v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights"])
    def test_every_array_counts_and_stays_replaced(self, small, name):
        model = ours.SMPL(small)
        given_ = arguments(model)
        before = model(**given_).vertices
        if name == "J_regressor":
            model.register_buffer(name, getattr(model, name).flip(1))
        else:
            setattr(model, name, getattr(model, name).flip(0))
        out = model(**given_).vertices
        assert (out - before).abs().max() > 1e-2
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(**given_).vertices, out)
        wide = {name: value.double() for name, value in given_.items()}
        torch.testing.assert_close(model.double()(**wide).vertices.float(), out, rtol=0, atol=4e-6)

    @pytest.mark.parametrize("name", ["v_template", "J_regressor", "vertex_joint_selector.extra_joints_idxs"])
    def test_writes_in_place_count(self, small, name):
        model = ours.SMPL(small, vertex_ids=dict.fromkeys(ours.vertex_ids.vertex_ids["smplh"], 0))
        before = model(return_verts=False).joints
        array = model.get_buffer(name)
        array += 1 if array.dtype == torch.long else 0.1
        out = model(return_verts=False).joints
        assert (out - before).abs().max() > 1e-3
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double()):
            torch.testing.assert_close(other(return_verts=False).joints.float(), out, rtol=0, atol=4e-6)

    def test_nothing_else_counts(self, small):
        model = ours.SMPL(small)
        for other in (
            model,
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            model.double(),
            model.float(),
        ):
            assert not other._replaced()
        with torch.no_grad():
            for buffer in model.buffers():  # as DistributedDataParallel does before every forward
                buffer.copy_(buffer.clone())
        assert not model._replaced()
        with torch.inference_mode():
            model = ours.SMPL(small)
            model()
        assert not model._replaced()

    def test_change_of_precision_takes_the_files_own(self, small):
        model = ours.SMPL(small).double()
        exact = ours.SMPL(small, dtype=DOUBLE)
        given_ = arguments(exact)
        assert torch.equal(model(**given_).vertices, exact(**given_).vertices)

    def test_selected_vertices(self, small):
        model = ours.SMPL(small)
        model.vertex_joint_selector.extra_joints_idxs = torch.tensor([7, 5], dtype=torch.int32)
        for return_verts in (True, False):
            out = model(**arguments(model), return_verts=return_verts)
            torch.testing.assert_close(out.joints[:, 24:], model(**arguments(model)).vertices[:, [7, 5]])
        model.vertex_joint_selector = lambda_module(lambda vertices, joints: joints[:, :1])
        assert model(return_verts=False).joints.shape == (1, 1, 3)


def lambda_module(function):
    module = torch.nn.Module()
    module.forward = function
    return module


class TestCheckpoints:
    def test_only_parameters_are_kept(self, small):
        assert set(ours.SMPL(small).state_dict()) == {"betas", "global_orient", "body_pose", "transl"}
        assert not ours.SMPLLayer(small).state_dict()

    def test_one_of_smplx_loads(self, make):
        peer = torch.nn.ModuleDict({"smpl": make(theirs), "head": torch.nn.Linear(2, 2)})
        own = torch.nn.ModuleDict({"smpl": make(ours), "head": torch.nn.Linear(2, 2)})
        torch.nn.init.normal_(peer["smpl"].betas)
        state = peer.state_dict()
        assert "smpl.v_template" in state
        own.load_state_dict(state, strict=True)
        assert torch.equal(own["smpl"].betas, peer["smpl"].betas)
        assert torch.equal(own["head"].weight, peer["head"].weight)
        assert "smpl.v_template" in state
        state["smpl.other"] = torch.zeros(1)
        with pytest.raises(RuntimeError, match=r"Unexpected key.*smpl\.other"):
            own.load_state_dict(state, strict=True)

    def test_another_body_is_said(self, make, small):
        state = {f"smpl.{key}": value for key, value in make(theirs, "SMPLLayer").state_dict().items()}
        own = torch.nn.ModuleDict({"smpl": ours.SMPLLayer(small)})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            own.load_state_dict(state)
        said = [str(warning.message).split(":")[0] for warning in caught]
        assert {"smpl.v_template", "smpl.J_regressor", "smpl.faces_tensor"} <= set(said)

    def test_a_subclass_keeps_its_own(self, small):
        class Body(ours.SMPL):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.register_buffer("J_regressor", torch.zeros(24, 150))

        state = Body(small).state_dict()
        assert "J_regressor" in state
        state["J_regressor"] = torch.ones(24, 150)
        body = Body(small)
        body.load_state_dict(state)
        assert bool(body.J_regressor.all())


class TestFunctions:
    """Values and gradients of each function of `lbs`, compared with smplx's."""

    @staticmethod
    def compare(name, atol, *tensors, **options):
        a, b = (getattr(module, name)(*tensors, **options) for module in (ours.lbs, theirs.lbs))
        a, b = (x if isinstance(x, tuple) else (x,) for x in (a, b))
        wanted = [t for t in tensors if t.requires_grad]
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=atol)
        pull = [torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) for x in a]
        grads = [torch.autograd.grad(out, wanted, pull, allow_unused=True) for out in (a, b)]
        for x, y in zip(*grads, strict=True):
            torch.testing.assert_close(x, y, rtol=atol, atol=atol)

    @settings(deadline=None, max_examples=25)
    @given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), st.booleans(), st.integers(0, 1000))
    def test_lbs(self, batch, num_betas, num_joints, pose2rot, seed):
        num_vertices = 11
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=DOUBLE)  # noqa: E731
        parents = torch.tensor(
            [-1] + [int(torch.randint(0, j, (1,), generator=generator)) for j in range(1, num_joints)]
        )
        betas, template = normal(batch, num_betas), normal(num_vertices, 3)
        shapedirs, posedirs = normal(num_vertices, 3, num_betas), normal(9 * num_joints - 9, 3 * num_vertices)
        regressor, weights = (
            normal(num_joints, num_vertices).softmax(1),
            normal(num_vertices, num_joints).softmax(1),
        )
        pose = normal(batch, 3 * num_joints)
        if not pose2rot:
            pose = agebody.rotations.axis_angle_to_matrix(pose.unflatten(1, (num_joints, 3))).detach()
        tensors = [t.requires_grad_() for t in (betas, pose, template, shapedirs, posedirs, regressor)]
        # Sizes here are metres, not millimetres: smplx's 1e-8 in each vector adds up along the tree.
        self.compare("lbs", 1e-5, *tensors, parents, weights.requires_grad_(), pose2rot=pose2rot)
        rotations, joints = (
            normal(batch, num_joints, 3, 3).requires_grad_(),
            normal(batch, num_joints, 3).requires_grad_(),
        )
        self.compare("batch_rigid_transform", 1e-9, rotations, joints, parents, dtype=DOUBLE)
        self.compare("blend_shapes", 1e-12, betas, shapedirs)
        self.compare("vertices2joints", 1e-12, regressor, normal(batch, num_vertices, 3).requires_grad_())
        self.compare("batch_rodrigues", 1e-6, normal(batch, 3).requires_grad_())
        self.compare(
            "transform_mat", 0, normal(batch, 3, 3).requires_grad_(), normal(batch, 3, 1).requires_grad_()
        )
        corners = torch.randint(0, num_vertices, (8, 3), generator=generator)
        chosen = torch.randint(0, 8, (batch, 6), generator=generator)
        vertices, coordinates = (
            normal(batch, num_vertices, 3).requires_grad_(),
            normal(batch, 6, 3).requires_grad_(),
        )
        self.compare("vertices2landmarks", 1e-12, vertices, corners, chosen, coordinates)

    def test_batches_of_one_broadcast(self, small):
        model = ours.SMPL(small)
        arrays = [
            getattr(model, n)
            for n in ("v_template", "shapedirs", "posedirs", "J_regressor", "parents", "lbs_weights")
        ]
        given_ = arguments(model)
        pose = torch.cat((given_["global_orient"], given_["body_pose"]), 1)
        for betas, poses in ((given_["betas"][:1], pose), (given_["betas"], pose[:1])):
            vertices, joints = ours.lbs.lbs(betas, poses, *arrays)
            expected = ours.lbs.lbs(betas.expand(4, -1), poses.expand(4, -1), *arrays)
            torch.testing.assert_close((vertices, joints), expected)

    def test_no_rotation_has_two_derivatives(self):
        zero = torch.zeros(1, 3, dtype=DOUBLE, requires_grad=True)
        assert torch.equal(ours.lbs.batch_rodrigues(zero)[0], torch.eye(3, dtype=DOUBLE))
        assert torch.autograd.gradgradcheck(ours.lbs.batch_rodrigues, zero)

    def test_first_call_in_inference_mode_does_not_harm_later_ones(self):
        joints, parents = torch.rand(2, 13, 3), torch.arange(-1, 12)
        rotations = torch.eye(3).repeat(2, 13, 1, 1)
        with torch.inference_mode():
            ours.lbs.batch_rigid_transform(rotations, joints, parents)
        joints.requires_grad_()
        run = lambda r: ours.lbs.batch_rigid_transform(r, joints, parents)[0]  # noqa: E731
        _, slope = torch.func.jvp(run, (rotations,), (rotations,))
        assert slope.isfinite().all()


class TestNames:
    def test_vertex_ids_and_joint_names(self):
        assert ours.vertex_ids.vertex_ids["smplh"] == theirs.vertex_ids.vertex_ids["smplh"]
        assert theirs.joint_names.SMPLH_JOINT_NAMES == ours.joint_names.SMPLH_JOINT_NAMES
        smpl = ours.joint_names.SMPL_JOINT_NAMES
        assert len(smpl) == 45
        assert smpl[:22] == theirs.joint_names.SMPLH_JOINT_NAMES[:22]
        assert smpl[24:] == theirs.joint_names.SMPLH_JOINT_NAMES[52:]

    def test_conversions(self):
        from scipy import sparse

        matrix = sparse.csc_matrix(np.eye(3))
        for a, b in ((ours.utils, theirs.utils),):
            np.testing.assert_array_equal(a.to_np(matrix), b.to_np(matrix))
            assert a.to_np([1, 2]).dtype == b.to_np([1, 2]).dtype
            assert torch.equal(a.to_tensor(np.arange(3)), b.to_tensor(np.arange(3)))
        tensor = torch.arange(3)
        assert ours.utils.to_tensor(tensor) is tensor
        assert ours.utils.Struct(a=1).a == 1

    def test_functions_of_a_chain_and_of_angles(self):
        parents = torch.tensor([-1, 0, 1, 1, 3])
        for joint in range(5):
            chains = [m.utils.find_joint_kin_chain(joint, parents) for m in (ours, theirs)]
            assert [int(x) for x in chains[0]] == [int(x) for x in chains[1]]
        vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        turns = agebody.rotations.axis_angle_to_matrix(vectors)
        torch.testing.assert_close(ours.utils.rot_mat_to_euler(turns), theirs.utils.rot_mat_to_euler(turns))

    def test_names_of_smplx(self):
        assert ours.joint_names.JOINT_NAMES == theirs.joint_names.JOINT_NAMES
        for name in ("SMPLOutput", "SMPLHOutput", "SMPLXOutput", "MANOOutput", "FLAMEOutput", "ModelOutput"):
            fields = {field.name for field in dataclasses.fields(getattr(ours.utils, name))}
            expected = {field.name for field in dataclasses.fields(getattr(theirs.utils, name))}
            assert fields == expected, name

    @pytest.mark.parametrize("module", ["", ".body_models", ".lbs", ".utils", ".joint_names", ".vertex_ids"])
    def test_every_public_name_of_smplx_can_be_imported(self, module):
        peer, own = (importlib.import_module(f"{root}{module}") for root in ("smplx", "agebody.compat.smplx"))
        names = [name for name in vars(peer) if not name.startswith("_") and name not in OTHERS_OF_SMPLX]
        missing = [name for name in names if not hasattr(own, name)]
        assert not missing

    @pytest.mark.parametrize("line", IMPORTS)
    def test_imports_of_public_projects(self, line):
        exec(line.replace("smplx", "agebody.compat.smplx", 1), {})

    def test_flame_can_be_named_but_not_made(self, small):
        for cls in (ours.FLAME, ours.FLAMELayer):
            assert not isinstance(ours.SMPL(small), cls)
            with pytest.raises(NotImplementedError, match=r"^FLAME is not offered; agebody\.compat\.smplx"):
                cls("models", gender="neutral")
        with pytest.raises(AttributeError, match=r"'Nothing'; agebody\.compat\.smplx offers SMPL, SMPLH"):
            _ = ours.Nothing


class TestFiles:
    def test_the_official_name_of_a_missing_file(self, tmp_path):
        for gender, letters in (("neutral", "neutral"), ("male", "m"), ("female", "f")):
            with pytest.raises(AssetError, match=rf"name basicmodel_{letters}_lbs_10_207_0_v1\.1\.0\.pkl"):
                ours.SMPL(tmp_path, gender=gender)

    def test_paths_in_the_users_folder_and_tensors(self, small, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        (tmp_path / "smpl").mkdir()
        (tmp_path / "smpl" / "SMPL_NEUTRAL.pkl").write_bytes(small.read_bytes())
        expected = ours.SMPL(small)().vertices
        for model in (ours.create("~"), ours.SMPL("~/smpl"), ours.SMPL("~/smpl/SMPL_NEUTRAL.pkl")):
            assert torch.equal(model().vertices, expected)
        arrays = random_arrays(num_vertices=150)
        arrays["J_regressor"] = torch.from_numpy(arrays["J_regressor"].toarray()).requires_grad_()
        struct = ours.utils.Struct(**arrays)
        torch.testing.assert_close(ours.SMPL("", data_struct=struct)().vertices, expected)

    def test_names_in_a_folder(self, small, tmp_path):
        names = (
            "SMPL_MALE.pkl", "basicModel_f_lbs_10_207_0_v1.0.0.pkl", "basicmodel_f_lbs_10_207_0_v1.1.0.pkl",
        )  # fmt: skip
        (tmp_path / "smpl").mkdir()
        for name in names:
            (tmp_path / "smpl" / name).write_bytes(small.read_bytes())
        name_of = lambda model: model._layer.asset.metadata.name + ".pkl"  # noqa: E731
        assert name_of(ours.create(tmp_path, gender="male")) == names[0]
        assert name_of(ours.create(str(tmp_path), "smpl", gender="female")) == names[2]
        assert name_of(ours.SMPL(tmp_path / "smpl", gender="male")) == names[0]
        assert name_of(ours.build_layer(tmp_path / "smpl" / names[1])) == names[1]
        assert isinstance(ours.build_layer(tmp_path / "smpl", gender="male"), ours.SMPLLayer)
        assert isinstance(ours.build_layer(tmp_path / "smpl", "SMPL", gender="male"), ours.SMPLLayer)
        with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl.*it holds SMPL_MALE\.pkl"):
            ours.create(tmp_path)

    def test_every_kind_of_file(self, small, tmp_path):
        write_smpl_npz(tmp_path / "SMPL_NEUTRAL.npz", num_vertices=150)
        write_smpl_pkl(tmp_path / "SMPL_MALE.pkl", num_vertices=150)
        asset = agebody.load_asset(small)
        agebody.save_asset(asset, tmp_path / "SMPL_FEMALE.safetensors")
        expected = ours.SMPL(asset)
        given_ = arguments(expected)
        for gender in ("neutral", "male", "female"):
            model = ours.SMPL(tmp_path, gender=gender)
            torch.testing.assert_close(model(**given_).vertices, expected(**given_).vertices)

    def test_number_of_betas(self, tmp_path):
        """smplx's rule: 10 of a small shape space, up to 300 of the full one."""
        for available, wanted, number in (
            (10, 300, 10),
            (20, 20, 10),
            (300, 300, 300),
            (300, 16, 16),
            (5, 10, 5),
        ):
            path = tmp_path / f"SMPL_{available}.pkl"
            write_smpl_pkl(path, num_vertices=60, num_betas=available, chumpy=False)
            model = ours.SMPL(path, num_betas=wanted)
            assert model.num_betas == model.betas.shape[1] == model.shapedirs.shape[2] == number
        model = ours.SMPL(tmp_path / "SMPL_20.pkl", num_betas=16)
        with pytest.raises(ValueError, match=r"got \(2, 16\); smplx takes 10 of the 20 in the file$"):
            model(betas=torch.zeros(2, 16))

    def test_smil_as_kid_template(self, small, tmp_path):
        smil = write_smil_pkl(tmp_path / "smil_web.pkl", num_vertices=150)["v_template"]
        np.save(tmp_path / "kid.npy", smil)
        models = [ours.SMPL(small, tmp_path / name, age="kid") for name in ("smil_web.pkl", "kid.npy")]
        given_ = arguments(models[0])
        torch.testing.assert_close(*(model(**given_).vertices for model in models))

    def test_bodies_of_the_library(self, mannequin_asset):
        model = ours.SMPL(mannequin_asset, age="kid")
        infant = model(betas=torch.eye(11)[10:])
        assert infant.joints.shape == (1, 45, 3)
        expected = agebody.SMPLA(mannequin_asset)(age_offset=1.0)
        torch.testing.assert_close(infant.vertices[0], expected.vertices)
        # A vertex stands for each point: where the body takes a mean of several, it is one of them.
        points = agebody.SMPLA(mannequin_asset).keypoints("smplx45", age_offset=1.0)
        assert (infant.joints[0] - points).norm(dim=-1).max() < 0.01


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    def test_other_models(self, tmp_path):
        write_smplh_npz(tmp_path / "SMPLH_MALE.npz", num_vertices=150)
        write_mano_pkl(tmp_path / "MANO_RIGHT.pkl", num_vertices=150)
        for name, kind in (("SMPLH_MALE.npz", "SMPL-H"), ("MANO_RIGHT.pkl", "MANO")):
            with pytest.raises(ValueError, match=rf"which is {kind}; SMPL needs SMPL_NEUTRAL\.pkl"):
                ours.SMPL(tmp_path / name)
        with pytest.raises(AssetError, match=r"expected SMPLX_NEUTRAL\.pkl, .* it holds MANO_RIGHT\.pkl"):
            ours.create(tmp_path, "smplx")
        with pytest.raises(
            ValueError, match="model_type: expected one of smpl, smplh, smplx, mano, flame, got"
        ):
            ours.create(tmp_path, "star")

    def test_age(self, small):
        with pytest.raises(ValueError, match="age: expected 'adult' or 'kid', got 'baby'"):
            ours.SMPL(small, age="baby")
        with pytest.raises(ValueError, match=r"has them at \[\]; give smpl_kid_template\.npy"):
            ours.SMPL(small, age="kid")
        with pytest.raises(AssetError, match=r"missing\.npy"):
            ours.SMPL(small, age="kid", kid_template_path="missing.npy")
        ours.SMPL(small, kid_template_path="missing.npy")

    def test_files(self, tmp_path):
        with pytest.raises(AssetError, match=r"missing\.pkl"):
            ours.SMPL(tmp_path / "missing.pkl")
        with pytest.raises(AssetError, match="data_struct: this is not a body: v_template"):
            ours.SMPL("", data_struct=ours.utils.Struct(f=np.zeros((1, 3))))

    def test_arguments(self, small):
        model = ours.SMPL(small, create_body_pose=False)
        with pytest.raises(
            ValueError, match="body_pose: expected a tensor, or a model made with create_body_pose"
        ):
            model()
        with pytest.raises(
            ValueError, match=r"body_pose: expected axis-angle of shape \(B, 23, 3\), got \(2, 72\)"
        ):
            model(body_pose=torch.zeros(2, 72))
        with pytest.raises(ValueError, match=r"global_orient: expected axis-angle .* pose2rot=False"):
            model(body_pose=torch.zeros(2, 69), global_orient=torch.eye(3)[None])
        with pytest.raises(
            ValueError, match=r"body_pose: expected rotation matrices .*MANOLayer take matrices"
        ):
            ours.SMPLLayer(small)(body_pose=torch.zeros(2, 69))
        with pytest.raises(ValueError, match=r"batches of one size, or of 1, got .*'betas': 3"):
            model(betas=torch.zeros(3, 10), body_pose=torch.zeros(2, 69))
        for name, shape, width in (
            ("betas", (2, 9), 10),
            ("betas", (2, 16), 10),
            ("betas", (10,), 10),
            ("betas", (2, 1, 10), 10),
            ("transl", (3,), 3),
            ("transl", (2, 1, 3), 3),
            ("transl", (2, 4), 3),
        ):
            with pytest.raises(
                ValueError, match=re.escape(f"{name}: expected shape (B, {width}), got {shape}")
            ):
                model(**{"body_pose": torch.zeros(2, 69), name: torch.zeros(shape)})
        with pytest.raises(ValueError, match=r"betas: expected shape \(B, 10\), got \(2, 16\)"):
            model.forward_shape(torch.zeros(2, 16))
        kid = ours.SMPL(agebody.mannequin(), age="kid")
        with pytest.raises(ValueError, match=r"betas: expected shape \(B, 11\), got \(1, 10\)"):
            kid(betas=torch.ones(1, 10))
        given_ = {"betas": np.zeros((1, 10)), "body_pose": np.zeros((1, 69)), "transl": np.zeros((1, 3))}
        for name, value in given_.items():
            with pytest.raises(TypeError, match=f"{name}: expected a torch.Tensor, got ndarray"):
                model(**{"body_pose": torch.zeros(1, 69), name: value})
        with pytest.raises(
            TypeError, match="batch_rodrigues: expected arguments of torch.Tensor, got ndarray"
        ):
            ours.lbs.batch_rodrigues(np.zeros((4, 3)))
        ids = {name: 0 for name in ours.vertex_ids.vertex_ids["smplh"] if name != "nose"}
        with pytest.raises(ValueError, match=r"vertex_ids: expected a vertex for each .*\['nose'\] missing"):
            ours.SMPL(small, vertex_ids=ids)
