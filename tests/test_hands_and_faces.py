"""SMPL-H, SMPL-X and MANO by the native layers, compared with smplx on synthetic files of their sizes."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import smplx
import torch
from model_files import (
    write_kid_template,
    write_mano_pkl,
    write_smpl_npz,
    write_smpl_pkl,
    write_smplh_npz,
    write_smplh_pkl,
    write_smplx_npz,
)

import agebody
from agebody import MANO, SMPLA, SMPLH, SMPLX, AssetError, BodyParameters, join_pose, load_asset, split_pose
from agebody.engine import surface

ATOL = 1e-5
SMALL = {"num_vertices": 150, "num_betas": 20}


def theirs(name, path, **options):
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(smplx, name)(str(path), **options)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected, atol=ATOL):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bodies")
    write_smplx_npz(folder / "SMPLX_NEUTRAL.npz")
    old = {"family": "smplx", "num_vertices": 10475, "num_betas": 20}
    write_smpl_pkl(folder / "SMPLX_OLD.pkl", hands=True, chumpy=False, **old)
    write_kid_template(folder / "smplx_kid_template.npy", num_vertices=10475)
    write_smplh_pkl(folder / "SMPLH_FEMALE.pkl", chumpy=False, num_betas=16)
    write_mano_pkl(folder / "MANO_RIGHT.pkl", chumpy=False)
    return folder


@pytest.fixture(scope="module")
def assets(folder):
    return {
        "smplx": load_asset(folder / "SMPLX_NEUTRAL.npz", infant_template=folder / "smplx_kid_template.npy"),
        "old": load_asset(folder / "SMPLX_OLD.pkl"),
        "smplh": load_asset(folder / "SMPLH_FEMALE.pkl"),
        "mano": load_asset(folder / "MANO_RIGHT.pkl"),
    }


@pytest.fixture
def small(tmp_path):
    write_smplx_npz(tmp_path / "SMPLX_NEUTRAL.npz", **SMALL)
    return load_asset(tmp_path / "SMPLX_NEUTRAL.npz")


class TestAsParityWithSmplx:
    @pytest.mark.parametrize("flat_hand_mean", [False, True])
    @pytest.mark.parametrize("use_pca", [False, True])
    def test_smplx_of_every_age(self, folder, assets, use_pca, flat_hand_mean):
        peer = theirs(
            "SMPLX", folder / "SMPLX_NEUTRAL.npz", use_pca=use_pca, flat_hand_mean=flat_hand_mean, age="kid",
            kid_template_path=str(folder / "smplx_kid_template.npy"), use_face_contour=True, num_pca_comps=12,
        )  # fmt: skip
        count = 12 if use_pca else 45
        parts = {"body": 63, "jaw": 3, "left_eye": 3, "right_eye": 3, "left_hand": count, "right_hand": count}
        pose = {name: 0.4 * normal(4, n, seed=i) for i, (name, n) in enumerate(parts.items())}
        given = {"betas": normal(4, 10), "expression": normal(4, 10), "transl": normal(4, 3)}
        given |= {"global_orient": 0.7 * normal(4, 3, seed=9)}
        age = torch.tensor([0.0, 0.3, 0.7, 1.1])
        every = [*pose.values(), *given.values(), age]
        for tensor in every:
            tensor.requires_grad_()
        named = {"body": "body_pose", "left_eye": "leye_pose", "right_eye": "reye_pose"}
        expected = peer(
            **{named.get(name, f"{name}_pose"): part for name, part in pose.items()},
            **given | {"betas": torch.cat((given["betas"], age[:, None]), 1)},
        )
        body = SMPLX(assets["smplx"])
        assert (body.num_betas, body.num_expression, body.num_coefficients) == (10, 10, 20)
        joined = join_pose(
            body.asset, num_hand_components=12 if use_pca else None, flat_hand_mean=flat_hand_mean, **pose
        )
        out = body(body_pose=joined, age_offset=age, **given)
        static = body.keypoints("smplx127", body_pose=joined, age_offset=age, **given)
        contour = body.face_contour(body_pose=joined, age_offset=age, **given)
        close(out.vertices, expected.vertices)
        close(torch.cat((static, contour), 1), expected.joints)
        pull = [normal(*x.shape, seed=3) for x in (expected.vertices, expected.joints)]
        found = torch.autograd.grad([out.vertices, torch.cat((static, contour), 1)], every, pull)
        for mine, peers in zip(
            found, torch.autograd.grad([expected.vertices, expected.joints], every, pull), strict=True
        ):
            close(mine / peers.abs().max(), peers / peers.abs().max(), 2 * ATOL)  # of two roundings

        again = split_pose(
            body.asset, joined, num_hand_components=12 if use_pca else None, flat_hand_mean=flat_hand_mean
        )
        assert again.keys() == pose.keys()
        for name, part in pose.items():
            close(again[name].flatten(-2) if again[name].dim() == 3 else again[name], part)

    def test_contour_at_every_turn(self, folder, assets):
        """The table is entered at whole degrees: just beside the middle between them, both agree."""
        peer = theirs("SMPLX", folder / "SMPLX_NEUTRAL.npz", use_face_contour=True, flat_hand_mean=True)
        body = SMPLX(assets["smplx"], num_betas=0)
        degrees = torch.tensor(
            [-170.0, -91, -45, -39.4, -38.6, -1.2, -0.4, 0, 0.4, 0.6, 17.2, 38.6, 39.4, 95]
        )
        turn = torch.stack([torch.zeros(14), torch.deg2rad(degrees), torch.zeros(14)], 1)
        rest = {name: getattr(peer, name).expand(14, -1) for name, _ in peer.named_parameters()}
        expected = peer(**rest | {"global_orient": turn}).joints[:, 127:]
        close(body.face_contour(global_orient=turn), expected)
        static = body.keypoints("smplx144", global_orient=turn)[:, 127:]
        close(static[7], expected[7])
        assert (static[3] - expected[3]).norm(dim=-1).max() > 0.05

    def test_smplh_and_mano(self, folder, assets):
        for name, file, kind, layer, layout, count in (
            ("SMPLH", "SMPLH_FEMALE.pkl", "smplh", SMPLH, "smplh73", 73),
            ("MANO", "MANO_RIGHT.pkl", "mano", MANO, "mano21", 16),
        ):
            peer = theirs(name, folder / file, num_pca_comps=9)
            sizes = {"body": 63, "left_hand": 9, "right_hand": 9} if name == "SMPLH" else {"hand": 9}
            pose = {part: 0.4 * normal(3, size, seed=i) for i, (part, size) in enumerate(sizes.items())}
            given = {"betas": normal(3, 10), "global_orient": normal(3, 3, seed=5), "transl": normal(3, 3)}
            expected = peer(**{f"{part}_pose": value for part, value in pose.items()}, **given)
            body = layer(assets[kind])
            joined = join_pose(body.asset, num_hand_components=9, **pose)
            close(body(body_pose=joined, **given).vertices, expected.vertices)
            close(body.keypoints(layout, body_pose=joined, **given)[:, :count], expected.joints)
            if name == "MANO":
                tips = expected.vertices[:, list(smplx.vertex_ids.vertex_ids["mano"].values())]
                close(body.keypoints(layout, body_pose=joined, **given)[:, 16:], tips)

    def test_old_files_have_ten_betas_and_ten_expressions(self, folder, assets):
        peer = theirs("SMPLX", folder / "SMPLX_OLD.pkl", ext="pkl", flat_hand_mean=True)
        body = SMPLX(assets["old"])
        assert (body.asset.num_betas, body.asset.num_expression) == (10, 10)
        given = {"betas": normal(1, 10), "expression": normal(1, 10, seed=1)}
        expected = peer(**given)
        close(body(**given).vertices, expected.vertices)
        assert body.asset.num_betas + body.asset.num_expression == body.asset.shapedirs.shape[2]


class TestLayouts:
    def test_whole_body_layouts_use_the_points_of_smplx(self, assets):
        body = SMPLX(assets["smplx"])
        given = {"betas": normal(2, 10), "body_pose": 0.3 * normal(2, 54, 3), "age_offset": 0.4}
        points = dict(
            zip(agebody.LAYOUTS["smplx144"].names, body.keypoints("smplx144", **given).unbind(1), strict=True)
        )
        for layout in ("coco133", "openpose137"):
            found = dict(
                zip(agebody.LAYOUTS[layout].names, body.keypoints(layout, **given).unbind(1), strict=True)
            )
            for name, point in found.items():
                side = name.partition("_")[0]
                same = {f"{side}_hand_root": f"{side}_wrist", f"{side}_pupil": f"{side}_eye"}.get(name, name)
                if same not in ("neck", "mid_hip"):
                    close(point, points[same], 1e-6)
            middle = (points["left_shoulder"] + points["right_shoulder"]) / 2
            close(found.get("neck", middle), middle, 1e-6)
        mesh = body(**given)
        close(body.regress("coco133", mesh.vertices, mesh.joints), body.keypoints("coco133", **given))

    def test_order_of_coco_wholebody(self):
        names = agebody.LAYOUTS["coco133"].names
        assert names[:17] == agebody.LAYOUTS["coco17"].names
        assert names[17:23] == agebody.LAYOUTS["openpose25"].names[19:]
        assert (names[23], names[31], names[39]) == ("right_contour_1", "contour_middle", "left_contour_1")
        assert (names[40], names[53], names[59], names[71]) == (
            "right_eye_brow1", "nose4", "right_eye1", "right_mouth_1",
        )  # fmt: skip
        assert names[91:96] == ("left_hand_root", "left_thumb1", "left_thumb2", "left_thumb3", "left_thumb")
        assert (names[99], names[132]) == ("left_index", "right_pinky")
        names = agebody.LAYOUTS["openpose137"].names
        assert names[:25] == agebody.LAYOUTS["openpose25"].names
        assert (names[25], names[46], names[67]) == ("left_hand_root", "right_hand_root", "right_contour_1")
        assert names[135:] == ("right_pupil", "left_pupil")

    @pytest.mark.parametrize("layout", ["coco17", "openpose25"])
    def test_body_layouts_on_all_bodies(self, assets, layout):
        for kind in ("smplx", "smplh"):
            body = SMPLA(assets["smplx"]) if kind == "smplx" else agebody.SMPL(assets["smplh"])
            assert body.keypoints(layout).shape == (len(agebody.LAYOUTS[layout]), 3)

    def test_missing_parts_of_a_body_are_named(self, assets, mannequin_asset):
        with pytest.raises(
            AssetError, match=r"'coco133': the smplh body .* has no regressor set 'contour17'"
        ):
            SMPLH(assets["smplh"]).keypoints("coco133")
        with pytest.raises(AssetError, match="'smplh52': the mannequin body .* has no joint 'left_index1'"):
            SMPLA(mannequin_asset).keypoints("smplh52")
        with pytest.raises(AssetError, match="the mannequin body .* has no contour of a face; SMPL-X has"):
            SMPLA(mannequin_asset).face_contour()


class TestLayers:
    def test_expression_is_an_argument_or_follows_the_betas(self, small):
        body = SMPLX(small, num_betas=4, num_expression=3)
        betas, expression = normal(2, 4), normal(2, 3, seed=1)
        both = torch.cat((betas, expression), 1)
        expected = body(betas=betas, expression=expression).vertices
        close(body(betas=both).vertices, expected, 0)
        close(body(BodyParameters.zeros(body, 2)._replace(betas=both)).vertices, expected, 0)
        close(body.shape(betas=betas, expression=expression).rest_vertices, expected)
        close(body.shape(BodyParameters.zeros(body, 2)._replace(betas=both)).rest_vertices, expected)
        one = body(betas=betas[:1], expression=expression).vertices
        close(one, body(betas=torch.cat((betas[:1].expand(2, 4), expression), 1)).vertices, 0)
        rest = torch.from_numpy(small.template + small.shapedirs[..., 10:13] @ expression[0].numpy()).float()
        close(body(expression=expression[0]).vertices, rest)
        assert BodyParameters.zeros(body).betas.shape == (7,)
        without = SMPLX(small, num_expression=0)
        assert without(expression=torch.zeros(2, 0)).vertices.shape[0] == 2
        with pytest.raises(ValueError, match=r"betas: expected shape \(\*batch, 4\), got \(2, 5\)"):
            body(betas=both[:, :5])
        with pytest.raises(ValueError, match="expression: SMPL was made without expressions; use SMPLX"):
            agebody.SMPL(small)(expression=expression)
        with pytest.raises(ValueError, match="num_expression: expected 0 to 10, what 'SMPLX_NEUTRAL' has"):
            SMPLX(small, num_expression=11)

    @pytest.mark.parametrize("count", [1.5, "3", True, -1, float("nan")])
    def test_counts_are_whole_numbers(self, small, count, unchecked):
        for make, name, most in (
            (lambda: SMPLX(small, num_expression=count), "num_expression", 10),
            (lambda: SMPLX(small, num_betas=count), "num_betas", 10),
            (lambda: join_pose(small, num_hand_components=count), "num_hand_components", 45),
        ):
            with pytest.raises(
                ValueError, match=f"^{name}: expected 0 to {most}, what 'SMPLX_NEUTRAL' has, got"
            ):
                make()

    def test_only_their_own_files(self, small, assets):
        with pytest.raises(ValueError, match=r"'SMPLX_NEUTRAL' is SMPL-X; SMPLH needs SMPLH_female\.pkl"):
            SMPLH(small)
        with pytest.raises(ValueError, match=r"is SMPL-H; SMPLX needs SMPLX_NEUTRAL\.npz \(smpl-x"):
            SMPLX(assets["smplh"])
        with pytest.raises(ValueError, match=r"is SMPL-X; MANO needs MANO_RIGHT\.pkl"):
            MANO(small)

    def test_age_of_any_layer(self, assets):
        a, b = SMPLX(assets["smplx"]), SMPLA(assets["smplx"], num_expression=10)
        given = {"betas": normal(2, 10), "expression": normal(2, 10), "age_offset": torch.tensor([0.4, 1.0])}
        close(a(**given).vertices, b(**given).vertices, 0)
        with pytest.raises(ValueError, match="age_offset: SMPLX has one age"):
            SMPLX(assets["old"])(age_offset=0.3)


class TestPoses:
    def test_parts(self, small, assets, mannequin_asset):
        assert small.pose_parts == {
            "body": slice(0, 21), "jaw": slice(21, 22), "left_eye": slice(22, 23), "right_eye": slice(23, 24),
            "left_hand": slice(24, 39), "right_hand": slice(39, 54),
        }  # fmt: skip
        assert assets["mano"].pose_parts == {"hand": slice(0, 15)}
        assert mannequin_asset.pose_parts == {"body": slice(0, 23)}
        names = {f"joint{k}" if k == 40 else name: k for k, name in enumerate(small.joint_names)}
        assert small.replace(joint_names=tuple(names), hand_means=None, hand_components=None).pose_parts == {
            "body": slice(0, 54)
        }

    def test_nothing_given_is_the_mean(self, small):
        pose = join_pose(small)
        assert not pose[:24].any()
        close(pose[24:].reshape(2, 45), torch.tensor(small.hand_means).float())
        assert not join_pose(small, flat_hand_mean=True).any()
        assert not split_pose(small, pose)["left_hand"].any()

    def test_batches_types_and_autocast(self, small):
        hand = normal(5, 1, 6)
        expected = join_pose(small, body=normal(3, 63), left_hand=hand, num_hand_components=6)
        assert expected.shape == (5, 3, 54, 3)
        with torch.autocast("cpu", torch.bfloat16):
            close(join_pose(small, body=normal(3, 63), left_hand=hand, num_hand_components=6), expected, 0)
        given = {"jaw": normal(2, 1, 3).double(), "num_hand_components": 6}
        assert join_pose(small, **given).dtype == torch.float64

    def test_refusals(self, small, assets, tmp_path, unchecked):
        with pytest.raises(TypeError, match="hand: 'SMPLX_NEUTRAL' has the parts body, jaw, left_eye"):
            join_pose(small, hand=normal(45))
        with pytest.raises(ValueError, match=r"left_hand: expected shape \(\*batch, 6\), got \(45,\)"):
            join_pose(small, left_hand=normal(45), num_hand_components=6)
        with pytest.raises(
            ValueError, match="num_hand_components: expected 0 to 45, what 'SMPLX_NEUTRAL' has"
        ):
            join_pose(small, num_hand_components=46)
        for make in (join_pose, split_pose):
            with pytest.raises(
                TypeError, match=r"^asset: expected a BodyAsset, got SMPLX; give its \.asset$"
            ):
                make(SMPLX(small), **{} if make is join_pose else {"body_pose": normal(162)})
        with pytest.raises(
            ValueError, match=r"^body_pose: expected shape .*\(\*batch, 162\) .*, got \(2, 60\)$"
        ):
            split_pose(small, normal(2, 60))
        write_smplh_npz(tmp_path / "model.npz", num_vertices=120)
        amass = load_asset(tmp_path / "model.npz")
        with pytest.raises(AssetError, match="'model' has no hand_means: give flat_hand_mean=True, or load"):
            join_pose(amass)
        with pytest.raises(AssetError, match=r"'model' has no hand_components: .*SMPLH_female\.pkl"):
            join_pose(amass, flat_hand_mean=True, num_hand_components=6)
        assert not join_pose(amass, flat_hand_mean=True).any()


class TestFiles:
    @pytest.mark.parametrize("kind", ["old", "mano", "smplh"])
    @pytest.mark.parametrize("to", ["own", "npz", "pkl"])
    def test_hands_and_faces_survive(self, assets, tmp_path, kind, to):
        asset = assets[kind]
        path = tmp_path / {"own": "body.safetensors", "npz": "body.npz", "pkl": "body.pkl"}[to]
        write = {"own": agebody.save_asset, "npz": agebody.export_smpl, "pkl": agebody.export_smpl}[to]
        write(asset, path)
        again = load_asset(path)
        assert again.num_expression == asset.num_expression
        for name in ("hand_means", "hand_components", "contour_faces", "contour_weights"):
            expected = getattr(asset, name)
            found = getattr(again, name)
            assert (found is None) == (expected is None)
            if expected is not None:
                np.testing.assert_array_equal(found, expected)
        assert again.regressors.keys() == asset.regressors.keys()
        for name, regressor in asset.regressors.items():
            assert again.regressors[name].names == regressor.names
            np.testing.assert_allclose(again.regressors[name].matrix.toarray(), regressor.matrix.toarray())

    def test_smplx_loads_the_export(self, assets, tmp_path):
        agebody.export_smpl(assets["old"], tmp_path / "SMPLX_NEUTRAL.npz")
        peer = theirs("SMPLX", tmp_path / "SMPLX_NEUTRAL.npz", flat_hand_mean=True)
        close(peer().joints[0], SMPLX(assets["old"]).keypoints("smplx127"))

    def test_report(self, folder):
        report = agebody.inspect_asset(folder / "SMPLX_OLD.pkl")
        assert (report.num_betas, report.num_expression, report.num_hand_components) == (10, 10, 45)
        assert report.pose_parts == {
            "body": 21, "jaw": 1, "left_eye": 1, "right_eye": 1, "left_hand": 15, "right_hand": 15,
        }  # fmt: skip
        assert report.regressors == {"surface21": 21, "face51": 51, "contour17": 17}
        assert any("the mean hand pose is not applied" in problem for problem in report.problems)

    @pytest.mark.parametrize(
        ("change", "cause"),
        [
            ({"hands_componentsl": np.zeros(0)}, "hands_componentsl: missing, although there is hands_c.*r"),
            ({"lmk_bary_coords": np.full((51, 3), 2 / 3)}, "lmk_bary_coords: .* sum 1, got .* 1 off"),
            ({"dynamic_lmk_bary_coords": np.zeros((79, 17, 3))}, "dynamic_lmk_bary_coords: .* of sum 1"),
            ({"hands_meanl": None}, "hands_meanl: missing, although there is hands_meanr"),
            ({"hands_componentsr": None}, "hands_componentsr: missing, although there is hands_componentsl"),
            ({"hands_meanl": np.zeros(44)}, r"hands_meanl: expected shape \(45\), got \(44\)"),
            ({"hands_componentsl": np.zeros((45, 48))}, r"hands_componentsl: expected shape \(any, 45\)"),
            ({"hands_componentsr": np.zeros((6, 45))}, r"hands_componentsr: expected shape \(45, 45\)"),
            ({"hands_meanr": np.full(45, np.nan)}, "hand_means: 45 entries are NaN"),
            ({"lmk_faces_idx": np.full(51, 10**6)}, "lmk_faces_idx: expected indices 0 to"),
            ({"lmk_faces_idx": np.arange(50)}, r"lmk_faces_idx: expected shape \(51\), got \(50\)"),
            ({"lmk_bary_coords": None}, "lmk_bary_coords: missing, although there is lmk_faces_idx"),
            ({"dynamic_lmk_faces_idx": np.zeros((78, 17), int)}, "dynamic_lmk_faces_idx: expected shape"),
            ({"dynamic_lmk_bary_coords": np.zeros((79, 17))}, "dynamic_lmk_bary_coords: expected shape"),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("unchecked")
    def test_bad_entries_are_named(self, tmp_path, change, cause):
        path = tmp_path / "SMPLX_NEUTRAL.npz"
        arrays = write_smplx_npz(path, **SMALL) | change
        np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
        with pytest.raises(AssetError, match=rf"SMPLX_NEUTRAL\.npz: {cause}"):
            load_asset(path)

    def test_files_without_hands_and_faces(self, tmp_path):
        arrays = write_smpl_npz(tmp_path / "a.npz", family="smplh", num_vertices=120)
        empty = {f"hands_components{side}": np.zeros(0) for side in "lr"}
        np.savez(tmp_path / "b.npz", **arrays, **empty)
        for name in ("a", "b"):
            asset = load_asset(tmp_path / f"{name}.npz")
            assert asset.hand_means is asset.hand_components is asset.contour_faces is None
        problems = agebody.inspect_asset(tmp_path / "a.npz").problems
        assert any(problem.startswith("no hand means and components") for problem in problems)

    @pytest.mark.usefixtures("unchecked")
    def test_wrong_arrays_of_an_asset(self, small):
        with pytest.raises(AssetError, match="hand_means: missing, although there are hand_components"):
            small.replace(hand_means=None)
        with pytest.raises(AssetError, match=r"hand_means: expected shape \(2, 45\), got \(1, 45\)"):
            small.replace(hand_means=small.hand_means[:1])
        with pytest.raises(AssetError, match="contour_faces, contour_weights: expected both or neither"):
            small.replace(contour_weights=None)


@pytest.mark.parametrize("batch", [1, 5])
def test_correctives_per_part(small, monkeypatch, batch):
    """Rows that are zero outside of some blocks, before and after others, with and without a base surface."""
    monkeypatch.setattr(surface, "PRODUCT", 1)
    directions = small.posedirs.copy()
    directions[20:, :, 40:60], directions[:30, :, 300:], directions[60:90, :, 300:] = 0, 0, 0
    directions[60:, :, 470:] = 0
    all_directions = np.concatenate((small.template[None], directions.transpose(2, 0, 1)))
    made = surface.PosedSurface(all_directions, small.dense_weights(), dtype=torch.float64, block=10)
    assert len(made.products) > 2
    entries = sum((r[1] - r[0]) * (c.stop - c.start) for r, c in made.products)
    assert entries < 0.85 * made.directions.numel()
    coefficients, transforms = normal(batch, 487).double(), normal(batch, 55, 3, 4, seed=1).double()
    coefficients[:, 0] = 1
    given = (coefficients, transforms, normal(batch, 3, seed=2).double())
    base = made.rest(coefficients[:, :5])
    for inputs in (given, (coefficients[:, 5:], *given[1:], base)):
        inputs = [x.detach().requires_grad_() for x in inputs]
        skinned = torch.einsum("vj,bjxy->bvxy", torch.tensor(small.dense_weights()), inputs[1])
        rest = inputs[0] @ made.directions[487 - inputs[0].shape[1] :]
        rest = made.vertices(rest if len(inputs) == 3 else rest + inputs[3])
        expected = (skinned[..., :3] @ rest[..., None])[..., 0] + skinned[..., 3] + inputs[2][:, None]
        found = made(*inputs)
        close(found, expected, 1e-12)
        pull = normal(*found.shape, seed=4).double()
        for mine, plain in zip(
            torch.autograd.grad(found, inputs, pull), torch.autograd.grad(expected, inputs, pull), strict=True
        ):
            close(mine, plain, 1e-10)
