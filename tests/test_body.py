import copy
import math
import pickle
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import pose_body, random_body
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import write_kid_template, write_smpl_pkl

import agebody
from agebody import SMIL, SMPL, SMPLA, BodyParameters, rotations
from agebody.body.model import MOST_TABLES

DOUBLE = torch.float64
ARGUMENTS = ("betas", "body_pose", "global_orient", "transl", "age_offset")


@pytest.fixture(scope="module")
def smpl_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smpl")
    write_smpl_pkl(folder / "SMPL_NEUTRAL.pkl", chumpy=False)
    write_kid_template(folder / "kid_template.npy")
    return folder


@pytest.fixture(scope="module")
def smpl_asset(smpl_files):
    return agebody.load_asset(
        smpl_files / "SMPL_NEUTRAL.pkl", infant_template=smpl_files / "kid_template.npy"
    )


@pytest.fixture(scope="module")
def body():
    return SMPLA(random_body())


@pytest.fixture(scope="module")
def bodies():
    """An adult with ages, and an infant of its topology."""
    return random_body(num_vertices=20), random_body(num_vertices=20, age_offsets=(), num_betas=5, seed=3)


def arguments(body, batch=(), *, scale=1.0, seed=0, dtype=DOUBLE):
    """Random arguments of every kind, axis-angle."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn((*batch, *shape), generator=generator, dtype=DOUBLE).to(dtype)  # noqa: E731
    return {
        "betas": normal(body.num_betas),
        "body_pose": scale * normal(body.num_joints - 1, 3),
        "global_orient": scale * normal(3),
        "transl": normal(3),
        "age_offset": 0.5 + 0.4 * normal(),
    }


def assert_bitwise_equal(got, expected):
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


class TestParameters:
    """`BodyParameters` in place of arguments by name."""

    @pytest.mark.parametrize("pose_format", ["axis_angle", "matrix", "quaternion", "rotation_6d"])
    def test_axis_angle_whatever_the_pose_format(self, pose_format):
        body = SMPLA(random_body(), dtype=DOUBLE, pose_format=pose_format)
        given_ = arguments(body, (2, 3))
        parameters = BodyParameters(**given_)
        expected = body(**given_, pose_format="axis_angle")
        assert_bitwise_equal(body(parameters), expected)
        points = body.keypoints("coco17", **given_, pose_format="axis_angle")
        assert torch.equal(body.keypoints("coco17", parameters), points)
        shaped = body.shape(parameters)
        by_name = body.shape(betas=given_["betas"], age_offset=given_["age_offset"])
        assert torch.equal(shaped.rest_vertices, by_name.rest_vertices)
        pose = {k: given_[k] for k in ("body_pose", "global_orient", "transl")}
        assert_bitwise_equal(shaped(parameters), by_name(**pose, pose_format="axis_angle"))
        torch.testing.assert_close(shaped.keypoints("coco17", parameters), points)

    def test_broadcast(self):
        body = SMPLA(random_body(), dtype=DOUBLE)
        given_ = arguments(body, (5,))
        one = {k: v[0] for k, v in given_.items() if k in ("betas", "age_offset")}
        assert_bitwise_equal(body(BodyParameters(**given_ | one)), body(**given_ | one))
        rest = body(BodyParameters.zeros(body, 4))
        torch.testing.assert_close(rest.vertices, body().vertices.expand(4, -1, 3))

    def test_one_age(self, bodies):
        """The age offset of parameters is left out for a body of one age."""
        adult = SMPL(bodies[0], dtype=DOUBLE)
        given_ = arguments(adult, (2,))
        by_name = {k: v for k, v in given_.items() if k != "age_offset"}
        assert_bitwise_equal(adult(BodyParameters(**given_)), adult(**by_name))
        found, expected = adult.shape(BodyParameters(**given_)), adult.shape(betas=given_["betas"])
        assert torch.equal(found.rest_joints, expected.rest_joints)

    def test_two_parts(self, bodies):
        adult, infant = bodies
        body = SMPLA(adult, smil=infant, dtype=DOUBLE, pose_format="matrix")
        given_ = arguments(body, (4,))
        assert_bitwise_equal(body(BodyParameters(**given_)), body(**given_, pose_format="axis_angle"))

    def test_derivatives_and_transforms(self):
        body = SMPLA(random_body(), dtype=DOUBLE, pose_format="quaternion")
        parameters = BodyParameters(**arguments(body, (2,)))
        vector = parameters.vector()
        read = lambda v: body.keypoints("coco17", BodyParameters.from_vector(v, body))  # noqa: E731
        assert torch.autograd.gradcheck(read, vector.clone().requires_grad_())
        torch.testing.assert_close(torch.func.vmap(read)(vector), read(vector))
        vertices = torch.func.vmap(lambda p: body(p).vertices)(parameters)
        torch.testing.assert_close(vertices, body(parameters).vertices)
        torch.testing.assert_close(torch.func.jacrev(read)(vector), torch.func.jacfwd(read)(vector))
        assert BodyParameters.from_vector(vector, body).map(torch.clone).vector().equal(vector)

    @pytest.mark.usefixtures("unchecked")
    def test_parameters_and_names_are_an_error(self):
        body = SMPLA(random_body())
        zeros = BodyParameters.zeros(body)
        both = r"parameters: expected BodyParameters or arguments by name, got both"
        with pytest.raises(ValueError, match=both):
            body(zeros, betas=zeros.betas)
        with pytest.raises(ValueError, match=both):
            body.keypoints("coco17", zeros, pose_format="axis_angle")
        with pytest.raises(ValueError, match=both):
            body.shape(zeros, age_offset=0.5)
        with pytest.raises(ValueError, match=both):
            body.shape()(zeros, transl=zeros.transl)
        with pytest.raises(TypeError, match=r"parameters: expected BodyParameters, got Tensor; .* betas="):
            body(zeros.betas)
        wider = BodyParameters.zeros(SMPLA(random_body(num_betas=5)))
        with pytest.raises(ValueError, match=r"betas: expected shape \(\*batch, 3\), got \(5,\)"):
            body(wider)


class TestAgainstTheFormula:
    @pytest.mark.parametrize("age_offsets", [(1.0,), (0.2, 0.6, 1.0), (-0.5, 1.0)])
    @pytest.mark.parametrize("parents", [(-1,), (-1, 0, 1, 1, 0, 4), (-1, 0, 0, 1, 2, 1)])
    def test_float64(self, parents, age_offsets):
        asset = random_body(parents=parents, age_offsets=age_offsets, num_vertices=40)
        body = SMPLA(asset, dtype=DOUBLE)
        given_ = arguments(body, (4,), scale=1.5)
        given_["age_offset"] = torch.tensor([age_offsets[0], 0.0, 0.55, 1.0], dtype=DOUBLE)
        out = body(**given_)
        for i in range(4):
            rotvecs = torch.cat((given_["global_orient"][i, None], given_["body_pose"][i]))
            vertices, joints = pose_body(
                asset, given_["betas"][i].numpy(), rotvecs.numpy(), given_["transl"][i].numpy(),
                float(given_["age_offset"][i]),
            )  # fmt: skip
            np.testing.assert_allclose(out.vertices[i], vertices, rtol=0, atol=1e-10)
            np.testing.assert_allclose(out.joints[i], joints, rtol=0, atol=1e-10)

    def test_more_vertices_than_one_block_and_more_bodies_than_one_piece(self):
        asset = random_body(num_vertices=1000, parents=tuple(range(-1, 9)))
        body = SMPLA(asset, dtype=DOUBLE)
        given_ = arguments(body, (300,))
        out = body(**given_).vertices
        for i in (0, 255, 256, 299):
            rotvecs = torch.cat((given_["global_orient"][i, None], given_["body_pose"][i])).numpy()
            # The formula interpolates between anchors only: take the offset inside them.
            age = float(given_["age_offset"][i].clamp(0, 1))
            inside = body(**{k: v[i] for k, v in given_.items()} | {"age_offset": age}).vertices
            expected, _ = pose_body(
                asset, given_["betas"][i].numpy(), rotvecs, given_["transl"][i].numpy(), age
            )
            np.testing.assert_allclose(inside, expected, rtol=0, atol=1e-10)
            single = body(**{k: v[i] for k, v in given_.items()}).vertices
            np.testing.assert_allclose(out[i], single, rtol=0, atol=1e-12)

    def test_outputs_are_named(self):
        body = SMPLA(random_body(), dtype=DOUBLE)
        given_ = arguments(body, (2,))
        out = body(**given_)
        torch.testing.assert_close(out.joint_transforms[..., :3, 3], out.joints)
        assert torch.equal(
            out.joint_transforms[..., 3, :], torch.tensor([0, 0, 0, 1.0]).double().expand(2, 4, 4)
        )
        torch.testing.assert_close(out.full_pose[:, 1:], rotations.axis_angle_to_matrix(given_["body_pose"]))
        torch.testing.assert_close(out.joint_transforms[:, 0, :3, :3], out.full_pose[:, 0])

    def test_age_offset_beyond_the_anchors_is_linear(self):
        body = SMPLA(random_body(age_offsets=(0.4, 1.0)), dtype=DOUBLE)
        at = lambda a: body(age_offset=a).vertices  # noqa: E731
        torch.testing.assert_close(at(1.5), at(1.0) + (at(1.0) - at(0.7)) * 0.5 / 0.3)
        torch.testing.assert_close(at(-0.2), at(0.0) - (at(0.4) - at(0.0)) * 0.5)

    def test_gradient_at_an_anchor_is_that_of_the_piece_above(self):
        body = SMPLA(random_body(age_offsets=(0.4, 1.0)), dtype=DOUBLE)
        slope = torch.func.jacrev(lambda a: body(age_offset=a).vertices)
        torch.testing.assert_close(slope(torch.tensor(0.4).double()), slope(torch.tensor(0.41).double()))


# smplx unpickles SciPy's matrices under the names of their time.
@pytest.mark.filterwarnings("ignore:Please import")
class TestAgainstPeers:
    """On SMPL-sized random models. 4e-6 m: about 30 roundings of a metre in float32."""

    @staticmethod
    def smplx_model(smpl_files, age, dtype):
        import smplx

        return smplx.SMPL(
            str(smpl_files / "SMPL_NEUTRAL.pkl"), age=age,
            kid_template_path=str(smpl_files / "kid_template.npy"), num_betas=10,
            dtype=dtype, create_betas=False, create_body_pose=False, create_global_orient=False,
            create_transl=False,
        )  # fmt: skip

    @pytest.mark.parametrize("age", ["adult", "kid"])
    @pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 4e-6), (DOUBLE, 1e-6)])
    def test_smplx(self, smpl_files, smpl_asset, age, dtype, atol):
        peer = self.smplx_model(smpl_files, age, dtype)
        body = SMPLA(smpl_asset, dtype=dtype)
        given_ = arguments(body, (5,), dtype=dtype)
        if age == "adult":
            given_["age_offset"] = torch.zeros(5, dtype=dtype)
        for value in given_.values():
            value.requires_grad_()
        ours = body(**given_)
        joints45 = body.keypoints("smplx45", **given_)
        betas = given_["betas"]
        if age == "kid":
            betas = torch.cat((betas, given_["age_offset"][:, None]), 1)
        theirs = peer(
            betas=betas, body_pose=given_["body_pose"].flatten(1), global_orient=given_["global_orient"],
            transl=given_["transl"],
        )  # fmt: skip
        torch.testing.assert_close(ours.vertices, theirs.vertices, rtol=0, atol=atol)
        torch.testing.assert_close(joints45, theirs.joints, rtol=0, atol=atol)
        weights = torch.randn_like(theirs.vertices) / len(smpl_asset.template)
        wanted = [v for k, v in given_.items() if age == "kid" or k != "age_offset"]
        for a, b in zip(
            torch.autograd.grad((ours.vertices * weights).sum(), wanted),
            torch.autograd.grad((theirs.vertices * weights).sum(), wanted),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=atol)

    def test_smplfitter(self, smpl_files, smpl_asset):
        from smplfitter.pt import BodyModel

        (smpl_files / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl").write_bytes(
            (smpl_files / "SMPL_NEUTRAL.pkl").read_bytes()
        )
        peer = BodyModel("smpl", "neutral", model_root=str(smpl_files))
        body = SMPLA(smpl_asset)
        given_ = arguments(body, (5,), dtype=torch.float32)
        theirs = peer(
            pose_rotvecs=torch.cat((given_["global_orient"], given_["body_pose"].flatten(1)), 1),
            shape_betas=given_["betas"], trans=given_["transl"], kid_factor=given_["age_offset"],
        )  # fmt: skip
        ours = body(**given_)
        torch.testing.assert_close(ours.vertices, theirs["vertices"], rtol=0, atol=4e-6)
        torch.testing.assert_close(ours.joints, theirs["joints"], rtol=0, atol=4e-6)

    def test_body_models(self, smpl_files, smpl_asset):
        Peer = pytest.importorskip("body_models.smpl.torch", reason="needs Python 3.11").SMPL
        peer = Peer(model_path=smpl_files / "SMPL_NEUTRAL.pkl")
        body = SMPL(smpl_asset)
        given_ = arguments(SMPLA(smpl_asset), (5,), dtype=torch.float32)
        del given_["age_offset"]
        theirs = peer.forward_vertices(
            given_["body_pose"], pelvis_rotation=given_["global_orient"], shape=given_["betas"],
            global_translation=given_["transl"],
        )  # fmt: skip
        torch.testing.assert_close(body(**given_).vertices, theirs, rtol=0, atol=4e-6)

    @pytest.mark.parametrize("aligned", [False, True])
    def test_bev_parser(self, tmp_path, aligned):
        """BEV: SMIL with the first 10 betas where the offset exceeds 0.8, and 71 regressed joints."""
        from model_files import write_bev_packs

        write_bev_packs(tmp_path)
        smpla = agebody.load_asset(tmp_path / "SMPLA_NEUTRAL.pth")
        smil = agebody.load_asset(tmp_path / "smil_packed_info.pth")
        body = SMPLA(smpla, smil=smil, dtype=DOUBLE)
        given_ = arguments(body, (4,))
        given_["age_offset"] = torch.tensor([0.0, 0.79, 0.81, 1.0], dtype=DOUBLE)
        del given_["transl"]
        points = body.keypoints("bev71", **given_)
        vertices = body(**given_).vertices
        layout = agebody.LAYOUTS["bev71"]
        if aligned:
            root = layout.center(points)
            points, vertices = points - root, vertices - root
        for i, age in enumerate(given_["age_offset"].tolist()):
            pack = torch.load(
                tmp_path / ("smil_packed_info.pth" if age > 0.8 else "SMPLA_NEUTRAL.pth"), weights_only=True
            )
            asset = smil if age > 0.8 else smpla
            rotvecs = torch.cat((given_["global_orient"][i, None], given_["body_pose"][i])).numpy()
            posed, joints = pose_body(
                asset, given_["betas"][i].numpy(), rotvecs, np.zeros(3), 0.0 if age > 0.8 else age
            )
            rows = [posed[pack["extra_joints_index"].long()]]
            rows += [
                pack[name].double().numpy() @ posed for name in ("J_regressor_extra9", "J_regressor_h36m17")
            ]
            expected = np.concatenate([joints, *rows])
            if aligned:
                root = expected[45:47].mean(axis=0)
                expected, posed = expected - root, posed - root
            np.testing.assert_allclose(points[i], expected, rtol=0, atol=1e-9)
            np.testing.assert_allclose(vertices[i], posed, rtol=0, atol=1e-9)


@pytest.mark.slow
class TestDerivatives:
    @staticmethod
    def body(**options):
        return SMPLA(random_body(num_vertices=5, num_betas=2, parents=(-1, 0, 1)), dtype=DOUBLE, **options)

    @pytest.mark.parametrize("name", ARGUMENTS)
    @pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 3.0])
    def test_gradcheck_and_gradgradcheck(self, name, scale):
        body = self.body()
        given_ = arguments(body, (2,), scale=scale)
        given_[name].requires_grad_()

        def values(value):
            changed = given_ | {name: value}
            out = body(**changed)
            moving = (out.joint_transforms, out.full_pose) if name in ("body_pose", "global_orient") else ()
            parts = (out.vertices, out.joints, body.keypoints(TEST_LAYOUT, **changed), *moving)
            numbers = torch.cat([part.flatten() for part in parts])
            # A few sums with random weights: what is wrong in one number is wrong in all of them.
            mix = torch.randn(12, len(numbers), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
            return mix @ numbers

        assert torch.autograd.gradcheck(values, given_[name], check_forward_ad=True)
        assert torch.autograd.gradgradcheck(values, given_[name], fast_mode=True)

    @pytest.mark.parametrize("name", ["quaternion", "rotation_6d", "matrix"])
    def test_other_pose_formats(self, name):
        body = self.body()
        given_ = arguments(body, (2,))
        matrices = rotations.axis_angle_to_matrix(given_["body_pose"])
        pose = rotations.from_matrix(matrices, name).requires_grad_()
        run = lambda pose: body(body_pose=pose, pose_format=name).vertices  # noqa: E731
        torch.testing.assert_close(run(pose), body(body_pose=given_["body_pose"]).vertices)
        torch.testing.assert_close(run(pose.flatten(-1 - len(rotations.ENTRY_SHAPES[name]))), run(pose))
        assert torch.autograd.gradcheck(run, pose)
        assert torch.autograd.gradgradcheck(run, pose, fast_mode=True)

    @pytest.mark.parametrize(("shaped", "numpy_entries"), [(False, 0), (True, 1 << 20)])
    def test_fast_gradients_equal_those_of_the_definition(self, shaped, numpy_entries, monkeypatch):
        monkeypatch.setattr("agebody.engine.batched.NUMPY_ENTRIES", numpy_entries)
        asset = random_body(num_vertices=700, parents=tuple(range(-1, 7)))
        body = SMPLA(asset, dtype=DOUBLE)
        given_ = {k: v.requires_grad_() for k, v in arguments(body, (290,)).items()}

        def gradients():
            identity = {k: given_[k] for k in ("betas", "age_offset")}
            pose = {k: v for k, v in given_.items() if k not in identity}
            out = body.shape(**identity)(**pose) if shaped else body(**given_)
            return torch.autograd.grad((out.vertices.sin() * out.joints.sum()).sum(), tuple(given_.values()))

        fast = gradients()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        for a, b in zip(fast, gradients(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    def test_gradients_repeat_to_the_bit(self, smpl_asset):
        body = SMPLA(smpl_asset)
        given_ = {k: v.requires_grad_() for k, v in arguments(body, (70,), dtype=torch.float32).items()}
        once = lambda: torch.autograd.grad(body(**given_).vertices.square().sum(), tuple(given_.values()))  # noqa: E731
        for a, b in zip(once(), once(), strict=True):
            assert torch.equal(a, b)

    def test_hessian_of_a_fit_by_every_mode(self):
        body = self.body()
        target = torch.ones(5, 3, dtype=DOUBLE)
        pose = torch.zeros(2, 3, dtype=DOUBLE)
        energy = lambda pose: (body(body_pose=pose).vertices - target).square().sum()  # noqa: E731
        reverse = torch.func.jacrev(torch.func.jacrev(energy))(pose)
        torch.testing.assert_close(torch.func.hessian(energy)(pose), reverse)
        torch.testing.assert_close(torch.autograd.functional.hessian(energy, pose), reverse)
        assert reverse.abs().max() > 0


class TestBatches:
    @settings(deadline=None, max_examples=30)
    @given(st.data())
    def test_any_leading_dims_broadcast(self, data):
        body = SMPLA(random_body(), dtype=DOUBLE)
        full = data.draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
        given_, flat = {}, {}
        for seed, name in enumerate(ARGUMENTS):
            # An age offset with more dims than betas and a last one of 1 would be read as (*batch, 1).
            longest = len(given_["betas"].shape) - 1 if name == "age_offset" else len(full)
            start = len(full) - data.draw(st.integers(0, longest))
            dims = tuple(data.draw(st.sampled_from([n, 1])) for n in full[start:])
            value = arguments(body, dims, seed=seed)[name]
            given_[name] = value
            entry = value.shape[len(dims) :]
            flat[name] = torch.broadcast_to(value, (*full, *entry)).reshape(math.prod(full), *entry)
        # Broadcasting is decided by all arguments: make sure that one has every dim.
        given_["transl"] = flat["transl"].reshape(*full, 3)
        out, expected = body(**given_), body(**flat)
        for a, b in zip(out, expected, strict=True):
            torch.testing.assert_close(a, b.reshape(*full, *b.shape[1:]))
        points = body.keypoints(TEST_LAYOUT, **given_)
        torch.testing.assert_close(points, body.keypoints(TEST_LAYOUT, **flat).reshape(points.shape))

    def test_nothing_given_is_the_rest_pose(self, mannequin_asset):
        out = SMPLA(mannequin_asset)()
        torch.testing.assert_close(out.vertices, torch.tensor(mannequin_asset.template), atol=1e-6, rtol=0)

    def test_age_offset_with_and_without_a_last_dimension(self):
        body = SMPLA(random_body())
        ages, betas = torch.rand(4), torch.randn(4, 3)
        expected = body(age_offset=ages, betas=betas).vertices
        assert torch.equal(body(age_offset=ages[:, None], betas=betas).vertices, expected)
        assert body(age_offset=ages[:, None]).vertices.shape[0] == 4
        assert body(age_offset=0.5).vertices.shape == (12, 3)
        assert body(age_offset=ages.reshape(4, 1), betas=betas.reshape(1, 4, 3)).vertices.shape[:2] == (4, 4)

    @pytest.mark.parametrize("batch", [(0,), (3, 0)])
    def test_empty(self, batch):
        body = SMPLA(random_body(), dtype=DOUBLE)
        given_ = {k: v.requires_grad_() for k, v in arguments(body, batch).items()}
        out = body(**given_)
        assert out.vertices.shape == (*batch, 12, 3)
        points = body.keypoints(TEST_LAYOUT, **given_)
        assert points.shape == (*batch, 4, 3)
        (out.vertices.sum() + points.sum()).backward()
        assert given_["betas"].grad.shape == given_["betas"].shape

    @pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
    @pytest.mark.slow
    def test_workspace_does_not_grow_with_the_batch(self):
        script = """if True:
            import re, torch, agebody
            from pathlib import Path
            read = lambda: Path("/proc/self/status").read_text()
            status = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+) kB", read())[1])
            body = agebody.SMPLA(agebody.mannequin())
            torch.set_grad_enabled(False)
            body()
            for count in (512, 2048):
                pose = torch.zeros(count, 69)
                Path("/proc/self/clear_refs").write_text("5")
                before = status("VmRSS")
                vertices = body(body_pose=pose).vertices
                print(status("VmHWM") - before - vertices.nbytes)
                del vertices
        """
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        small, large = map(int, result.stdout.split())
        # Beside the result, a body more costs its pose and transforms (20 kB), not surfaces (83 kB each).
        assert large - small < 1536 * 40_000
        assert small < 60e6


class TestInput:
    @pytest.fixture(autouse=True)
    def _unchecked(self, unchecked):
        pass

    @pytest.mark.parametrize(
        ("name", "value", "error", "message"),
        [
            ("betas", torch.zeros(2, 4), ValueError, r"betas: expected shape \(\*batch, 3\), got \(2, 4\)"),
            ("betas", np.zeros(3), TypeError, r"betas: expected a torch.Tensor, got ndarray"),
            ("betas", torch.zeros(3).double(), TypeError, "betas: expected torch.float32.*got torch.float64"),
            ("betas", torch.zeros(3, dtype=torch.int64), TypeError, "betas: expected torch.float32"),
            ("transl", torch.zeros(2), ValueError, r"transl: expected shape \(\*batch, 3\), got \(2,\)"),
            (
                "transl",
                torch.zeros(3, device="meta"),
                ValueError,
                "transl: expected a tensor on cpu.*got meta",
            ),
            (
                "body_pose",
                torch.zeros(8),
                ValueError,
                r"body_pose: expected shape \(\*batch, 3, 3\) or \(\*batch, 9\)",
            ),
            ("global_orient", torch.zeros(4), ValueError, r"global_orient: expected shape \(\*batch, 3\)"),
            ("age_offset", "old", TypeError, "age_offset: expected a torch.Tensor, got str"),
        ],
    )
    def test_each_argument_is_checked_and_named(self, body, name, value, error, message):
        with pytest.raises(error, match=message):
            body(**{name: value})

    def test_batches_that_do_not_fit(self, body):
        with pytest.raises(ValueError, match=r"do not broadcast: .*body_pose \(4,\).*transl \(3,\)"):
            body(body_pose=torch.zeros(4, 9), transl=torch.zeros(3, 3))

    def test_pose_format(self, body):
        with pytest.raises(ValueError, match="pose_format"):
            body(pose_format="euler")
        with pytest.raises(ValueError, match="pose_format='matrix'"):
            body(body_pose=torch.zeros(3, 3), pose_format="matrix")

    def test_construction(self):
        asset = random_body()
        with pytest.raises(ValueError, match="num_betas: expected 0 to 3"):
            SMPLA(asset, num_betas=4)
        with pytest.raises(TypeError, match=r"float32 or torch\.float64, got torch\.float16"):
            SMPLA(asset, dtype=torch.float16)
        with pytest.raises(TypeError, match=r"corrective_dtype: expected torch\.bfloat16.*got torch\.int8"):
            SMPLA(asset, corrective_dtype=torch.int8)
        with pytest.raises(ValueError, match="backend: expected one of auto, torch, warp, got 'numpy'"):
            SMPLA(asset, backend="numpy")
        with pytest.raises(ValueError, match="no age templates"):
            SMPLA(random_body(age_offsets=()))
        with pytest.raises(ValueError, match=r"adult.*at_age\(1\.0\)"):
            SMIL(asset)
        with pytest.raises(ValueError, match="smil: expected 12 vertices and 4 joints, got 13 and 4"):
            SMPLA(asset, smil=random_body(num_vertices=13, age_offsets=()))
        with pytest.raises(ValueError, match="age_offset: SMPL has one age"):
            SMPL(asset)(age_offset=torch.zeros(1))

    @pytest.mark.parametrize("value", [True, np.bool_(True), np.array("1"), "1", [1.0]])
    def test_an_age_that_is_no_number(self, bodies, value):
        with pytest.raises(TypeError, match=r"age_offset: expected a torch\.Tensor, got"):
            SMPLA(bodies[0])(age_offset=value)


class TestInfants:
    def test_hard_switch(self, bodies):
        body = SMPLA(bodies[0], smil=bodies[1], dtype=DOUBLE)
        alone, smil = SMPLA(bodies[0], dtype=DOUBLE), SMIL(bodies[1], dtype=DOUBLE, num_betas=3)
        given_ = arguments(body, (3,))
        given_["age_offset"] = torch.tensor([0.0, 0.8, 0.81], dtype=DOUBLE, requires_grad=True)
        out = body(**given_)
        without_age = {k: v for k, v in given_.items() if k != "age_offset"}
        for got, adult, infant in zip(out, alone(**given_), smil(**without_age), strict=True):
            assert torch.equal(got[:2], adult[:2])
            assert torch.equal(got[2], infant[2])
        gradient = torch.autograd.grad(out.vertices.square().sum(), given_["age_offset"])[0]
        assert gradient[2] == 0
        assert (gradient[:2] != 0).all()

    def test_smooth_switch_is_smooth_and_meets_both_bodies(self, bodies):
        body = SMPLA(bodies[0], smil=bodies[1], transition=0.2, dtype=DOUBLE)
        hard = SMPLA(bodies[0], smil=bodies[1], dtype=DOUBLE)
        given_ = arguments(body)
        at = lambda b, a: b(**given_ | {"age_offset": a}).vertices  # noqa: E731
        for age in (0.0, 0.7, 0.9, 1.0):
            torch.testing.assert_close(at(body, age), at(hard, age))
        ages = torch.linspace(0.6, 1.0, 401, dtype=DOUBLE)
        path = at(body, ages)
        jump = at(hard, ages).diff(dim=0).abs().max()
        assert path.diff(dim=0).abs().max() < 0.05 * jump
        age = torch.tensor(0.85, dtype=DOUBLE, requires_grad=True)
        assert torch.autograd.gradcheck(lambda a: at(body, a), age)
        assert torch.autograd.gradgradcheck(lambda a: at(body, a), age)

    def test_switch_in_keypoints_and_shaped_bodies(self, bodies):
        body = SMPLA(bodies[0], smil=bodies[1], transition=0.2, dtype=DOUBLE)
        given_ = arguments(body, (6,))
        given_["age_offset"] = torch.linspace(0.6, 1, 6, dtype=DOUBLE)
        shaped = body.shape(betas=given_.pop("betas"), age_offset=given_["age_offset"])
        identity = {"betas": arguments(body, (6,))["betas"], "age_offset": given_.pop("age_offset")}
        out = body(**identity, **given_)
        torch.testing.assert_close(shaped(**given_).vertices, out.vertices)
        torch.testing.assert_close(
            shaped.keypoints(TEST_LAYOUT, **given_), body.keypoints(TEST_LAYOUT, **identity, **given_)
        )
        torch.testing.assert_close(shaped.rest_vertices, body(**identity).vertices)
        torch.testing.assert_close(shaped.rest_joints, body(**identity).joints)

    def test_infant_corrective_scale(self, bodies):
        asset = bodies[0]
        body = SMPLA(asset, infant_corrective_scale=0.35, dtype=DOUBLE)
        given_ = arguments(body)
        for age in (0.0, 0.5, 1.0):
            scale = 0.35 * age + (1 - age)
            expected = SMPLA(asset.replace(posedirs=asset.posedirs * scale), dtype=DOUBLE)
            given_["age_offset"] = torch.tensor(age, dtype=DOUBLE)
            torch.testing.assert_close(body(**given_).vertices, expected(**given_).vertices)
            torch.testing.assert_close(
                body.keypoints(TEST_LAYOUT, **given_), expected.keypoints(TEST_LAYOUT, **given_)
            )

    def test_smil_of_a_body_with_ages(self, mannequin_asset):
        infant = SMIL(mannequin_asset.at_age(1.0))
        torch.testing.assert_close(
            infant().vertices, SMPLA(mannequin_asset)(age_offset=1.0).vertices, rtol=0, atol=1e-6
        )


class TestShapedBody:
    def test_equals_the_body(self, mannequin_asset):
        body = SMPLA(mannequin_asset)
        given_ = arguments(body, (3,), dtype=torch.float32, scale=0.3)
        shaped = body.shape(betas=given_["betas"], age_offset=given_["age_offset"])
        pose = {k: given_[k] for k in ("body_pose", "global_orient", "transl")}
        # 2e-6 m: the same sums in another order.
        torch.testing.assert_close(shaped(**pose).vertices, body(**given_).vertices, rtol=0, atol=2e-6)
        torch.testing.assert_close(shaped.keypoints("coco17", **pose), body.keypoints("coco17", **given_))

    def test_one_identity_many_poses_and_back(self):
        body = SMPLA(random_body(), dtype=DOUBLE)
        betas = torch.randn(3, dtype=DOUBLE, requires_grad=True)
        poses = torch.randn(5, 2, 9, dtype=DOUBLE)
        several = body.shape(betas=betas, age_offset=0.3)(body_pose=poses)
        assert several.vertices.shape == (5, 2, 12, 3)
        direct = body(betas=betas, age_offset=0.3, body_pose=poses)
        torch.testing.assert_close(several.vertices, direct.vertices)
        (a,) = torch.autograd.grad(several.vertices.square().sum(), betas)
        (b,) = torch.autograd.grad(direct.vertices.square().sum(), betas)
        torch.testing.assert_close(a, b)
        posed = lambda b: body.shape(betas=b)(body_pose=poses[:2]).vertices  # noqa: E731
        assert torch.autograd.gradcheck(posed, betas)
        assert torch.autograd.gradgradcheck(posed, betas, fast_mode=True)

    @pytest.mark.parametrize(
        ("people", "poses"), [((4, 1), (5,)), ((6,), (2, 6)), ((1,), (3,)), ((), (2, 3)), ((0,), (0,))]
    )
    def test_identities_and_poses_broadcast(self, people, poses):
        body = SMPLA(random_body(), dtype=DOUBLE)
        betas, pose = torch.randn((*people, 3), dtype=DOUBLE), torch.randn((*poses, 9), dtype=DOUBLE)
        out = body.shape(betas=betas)(body_pose=pose)
        torch.testing.assert_close(out.vertices, body(betas=betas, body_pose=pose).vertices)

    @pytest.mark.parametrize("pose_format", ["axis_angle", "quaternion", "matrix", "rotation_6d"])
    def test_move_is_a_rigid_motion(self, pose_format):
        body = SMPLA(random_body(), dtype=DOUBLE, pose_format=pose_format)
        given_ = arguments(body, (3,))
        shaped = body.shape(betas=given_["betas"], age_offset=given_["age_offset"])
        pose = rotations.from_matrix(rotations.axis_angle_to_matrix(given_["body_pose"]), pose_format)
        root = rotations.from_matrix(rotations.axis_angle_to_matrix(given_["global_orient"]), pose_format)
        turn = rotations.axis_angle_to_matrix(torch.tensor([0.3, -1.0, 2.0], dtype=DOUBLE))
        shift = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
        before = shaped(body_pose=pose, global_orient=root, transl=given_["transl"])
        orient, transl = shaped.move(turn, shift, global_orient=root, transl=given_["transl"])
        after = shaped(body_pose=pose, global_orient=orient, transl=transl)
        torch.testing.assert_close(after.vertices, before.vertices @ turn.mT + shift)


class TestPrecision:
    def test_double_is_the_files_own_precision(self):
        asset = random_body()
        late = SMPLA(asset).double()
        early = SMPLA(asset, dtype=DOUBLE)
        assert late.dtype == DOUBLE
        given_ = arguments(early, (2,))
        assert torch.equal(late(**given_).vertices, early(**given_).vertices)
        assert torch.equal(late.keypoints(TEST_LAYOUT, **given_), early.keypoints(TEST_LAYOUT, **given_))
        assert torch.equal(late.float()(**arguments(late, dtype=torch.float32)).vertices,
                           SMPLA(asset)(**arguments(late, dtype=torch.float32)).vertices)  # fmt: skip

    def test_parts_of_a_network_change_together(self):
        asset = random_body()
        network = torch.nn.ModuleDict({"body": SMPLA(asset, smil=asset.at_age(1.0), transition=0.1)})
        network.to(DOUBLE)
        assert network["body"].infant.dtype == DOUBLE
        assert torch.equal(
            network["body"].infant.surface.directions,
            SMIL(asset.at_age(1.0), dtype=DOUBLE).surface.directions,
        )

    def test_half_precision_is_refused(self):
        with pytest.raises(TypeError, match="autocast"):
            SMPLA(random_body(), dtype=torch.float16)

    def test_autocast_changes_nothing(self):
        body = SMPLA(random_body())
        given_ = arguments(body, (2,), dtype=torch.float32)
        expected, points = body(**given_), body.keypoints(TEST_LAYOUT, **given_)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for a, b in zip(body(**given_), expected, strict=True):
                assert torch.equal(a, b)
            assert torch.equal(body.keypoints(TEST_LAYOUT, **given_), points)
            from_head = torch.nn.Linear(2, 3)(torch.ones(2))
            assert from_head.dtype == torch.bfloat16
            assert body(betas=from_head).vertices.dtype == torch.float32
        shaped = body.shape(betas=given_["betas"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert shaped(transl=given_["transl"]).vertices.dtype == torch.float32

    def test_correctives_keep_their_dtype_and_pass_gradients(self, mannequin_asset):
        low = SMPL(mannequin_asset, corrective_dtype=torch.bfloat16)
        assert low.surface.correctives.dtype == torch.bfloat16
        low.to(torch.float32)
        assert low.surface.correctives.dtype == torch.bfloat16
        pose = torch.full((2, 69), 0.2, requires_grad=True)
        a, b = (
            torch.autograd.grad(body(body_pose=pose).vertices[:, ::7].sum(), pose)[0]
            for body in (low, SMPL(mannequin_asset))
        )
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


class TestModule:
    def test_a_checkpoint_carries_nothing_of_the_asset(self):
        body = SMPLA(random_body(), smil=random_body(age_offsets=()))
        body.keypoints(TEST_LAYOUT)
        assert body.state_dict() == {}
        assert list(body.parameters()) == []

    def test_deepcopy_and_pickle(self):
        body = SMPLA(random_body(), pose_format="quaternion")
        given_ = {"betas": torch.randn(2, 3), "age_offset": torch.rand(2)}
        expected = body(**given_).vertices
        for twin in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
            assert torch.equal(twin(**given_).vertices, expected)
            assert twin.pose_format == "quaternion"
        assert copy.deepcopy(body).asset is body.asset

    def test_layouts_first_used_in_inference_mode_can_be_trained_through_later(self):
        body = SMPLA(random_body())
        with torch.inference_mode():
            expected = body.keypoints(TEST_LAYOUT)
        betas = torch.zeros(1, 3, requires_grad=True)
        body.keypoints(TEST_LAYOUT, betas=betas).sum().backward()
        assert betas.grad is not None
        assert betas.grad.abs().sum() > 0
        assert torch.equal(body.keypoints(TEST_LAYOUT), expected)

    def test_layouts_that_are_thrown_away_do_not_pile_up(self):
        body = SMPLA(random_body())
        for _ in range(MOST_TABLES + 3):
            body.keypoints(replace(TEST_LAYOUT))
        assert len(body.points) == MOST_TABLES
        points, tables = body.keypoints(TEST_LAYOUT), list(body.points.values())
        assert tables[-1].layout is TEST_LAYOUT
        assert torch.equal(body.keypoints(TEST_LAYOUT), points)
        assert list(body.points.values()) == tables  # the second time it was there

    def test_path_as_asset(self, smpl_files, smpl_asset):
        assert torch.equal(SMPL(smpl_files / "SMPL_NEUTRAL.pkl")().vertices, SMPL(smpl_asset)().vertices)

    def test_threads(self, mannequin_asset):
        body = SMPLA(mannequin_asset)
        jobs = [arguments(body, (3,), seed=i, dtype=torch.float32) for i in range(8)]
        expected = [(body(**job).vertices, SMPLA(mannequin_asset).keypoints("coco17", **job)) for job in jobs]
        results: list = [None] * len(jobs)

        def work(i):
            for _ in range(5):
                results[i] = (body(**jobs[i]).vertices, body.keypoints("coco17", **jobs[i]))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for got, wanted in zip(results, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))

    def test_repr_shows_the_sizes(self):
        assert "vertices=12" in repr(SMPLA(random_body()))


TEST_LAYOUT = agebody.KeypointLayout(
    "test",
    ("a", "b", "c", "d"),
    (("joints", "joint2"), ("coco17", "nose"), ("h36m17", "head"), ("joints", "joint0")),
)
