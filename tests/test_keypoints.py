import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from bodies import random_body
from scipy import sparse

from agebody import LAYOUTS, SMPLA, AssetError, KeypointLayout
from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.assets.landmarks import H36M17
from agebody.keypoints import get_layout
from agebody.people import random_people
from agebody.rotations import from_matrix, mirror, to_matrix

DOUBLE = torch.float64
SIZES = {
    "smpl24": 24,
    "smplx45": 45,
    "openpose25": 25,
    "coco17": 17,
    "h36m17": 17,
    "bev71": 71,
    "hmr2_44": 44,
}
WITH_HANDS = {
    "smplh52": 52,
    "smplh73": 73,
    "smplx127": 127,
    "smplx144": 144,
    "mano21": 21,
    "coco133": 133,
    "openpose137": 137,
}
"""Layouts that SMPL's joints do not suffice for; in test_hands_and_faces.py."""


@pytest.fixture(scope="module", params=["mannequin", "anny"])
def asset(request):
    return request.getfixturevalue(f"{request.param}_asset")


def posed(asset) -> tuple[Any, dict[str, Any]]:
    body = SMPLA(asset, dtype=DOUBLE)
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=DOUBLE)  # noqa: E731
    return body, {
        "betas": normal(3, 10),
        "body_pose": 0.5 * normal(3, 69),
        "global_orient": normal(3, 3),
        "transl": normal(3, 3),
        "age_offset": normal(3).abs(),
    }


@pytest.mark.parametrize("name", SIZES)
def test_equals_regressing_the_posed_mesh(asset, name):
    body, given = posed(asset)
    out = body(**given)
    joints, regressor = LAYOUTS[name].resolve(asset)
    surface = torch.as_tensor(regressor.toarray()).double() @ out.vertices
    middles = out.joints[:, np.maximum(joints, 0)].mean(2)
    expected = torch.where(torch.as_tensor(joints[:, :1] >= 0), middles, surface)
    got = body.keypoints(name, **given)
    assert got.shape == (3, SIZES[name], 3)
    # The keypoint regressors are stored in float32 or float64; sums are in float64.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SIZES)
def test_left_is_left_on_every_body(asset, name):
    """At rest +x is the body's left: a swapped or misnamed point shows at once."""
    points = SMPLA(asset).keypoints(name)
    layout = LAYOUTS[name]
    assert layout.pairs
    for left, right in layout.pairs:
        assert points[left, 0] > 0.01 > -0.01 > points[right, 0], (layout.names[left], layout.names[right])


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("age", [0.0, 0.5, 1.0])
def test_points_are_where_their_names_say(asset, name, age):
    body = SMPLA(asset)
    points = dict(zip(LAYOUTS[name].names, body.keypoints(name, age_offset=age), strict=True))
    height = lambda name: float(points[name][1])  # noqa: E731
    order = [
        ["left_ankle", "left_knee", "left_hip", "left_shoulder"],
        ["right_ankle", "right_knee", "right_hip", "right_shoulder"],
        ["pelvis", "spine1", "spine2", "spine3", "neck", "head"],
        ["left_heel", "left_ankle"],
        ["left_shoulder", "nose", "left_eye"],
        ["pelvis_mpii", "spine_h36m", "thorax_mpii", "jaw_h36m", "head_top_lsp"],
        ["pelvis_h36m17", "spine_h36m17", "neck_h36m17", "nose_h36m17", "head_h36m17"],
    ]
    for chain in order:
        present = [name for name in chain if name in points]
        assert [height(n) for n in present] == sorted(height(n) for n in present), present
    if "nose" in points and name != "h36m17":
        assert points["nose"][2] > points["left_ear"][2]


def test_layout_tables_are_consistent():
    for name, layout in LAYOUTS.items():
        assert name == layout.name
        assert (
            len(layout)
            == (SIZES | WITH_HANDS)[name]
            == len(layout.names)
            == len(layout.sources)
            == len(set(layout.names))
        )
        assert sorted(layout.flip) == list(range(len(layout)))
        assert all(layout.flip[layout.flip[i]] == i for i in range(len(layout)))
        assert all(0 <= i < len(layout) and 0 <= j < len(layout) and i != j for i, j in layout.edges)
        # Edges of the left side have their mirror image on the right.
        edges = {frozenset(edge) for edge in layout.edges}
        assert edges == {frozenset(layout.flip[i] for i in edge) for edge in edges}
    assert LAYOUTS["smpl24"].names == SMPL_JOINT_NAMES


def test_published_index_maps():
    """Indices that public code hard-codes."""
    assert [LAYOUTS["smplx45"].names.index(n) for n in LAYOUTS["hmr2_44"].names[:25]] == [
        24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
    ]  # fmt: skip
    assert LAYOUTS["bev71"].names[45:47] == ("right_hip_lsp", "left_hip_lsp")
    assert LAYOUTS["hmr2_44"].names[25 + 14] == "pelvis_mpii"
    # SPIN's H36M_TO_J17 takes the file's rows to LSP's order; BEV's packs are stored after it.
    h36m_to_j17 = [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9]
    assert LAYOUTS["bev71"].names[54:] == tuple(f"{H36M17[i]}_h36m17" for i in h36m_to_j17)
    assert [H36M17[i] for i in h36m_to_j17[:6]] == [
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
    ]  # fmt: skip


def test_center_is_the_mean_of_the_root():
    points = torch.randn(2, 17, 3)
    torch.testing.assert_close(LAYOUTS["coco17"].center(points)[:, 0], (points[:, 11] + points[:, 12]) / 2)


def test_own_regressor():
    asset = random_body(num_vertices=30)
    matrix = sparse.random_array((2, 30), density=0.3, rng=np.random.default_rng(0), format="csr")
    layout = KeypointLayout.from_regressor(matrix, ("left_tip", "right_tip"), edges=[(0, 1)])
    assert layout.flip == (1, 0)
    body = SMPLA(asset, dtype=DOUBLE)
    pose = torch.randn(4, 9, dtype=DOUBLE)
    expected = torch.as_tensor(matrix.toarray()) @ body(body_pose=pose).vertices
    torch.testing.assert_close(body.keypoints(layout, body_pose=pose), expected)
    # Another layout of the same name is another layout.
    other = KeypointLayout.from_regressor(2 * matrix.toarray(), ("left_tip", "right_tip"))
    torch.testing.assert_close(body.keypoints(other, body_pose=pose), 2 * expected)


@pytest.mark.parametrize("backend", ["torch", "warp"])
@pytest.mark.parametrize("name", SIZES)
def test_from_a_mesh_as_from_a_pose(name, backend, mannequin_asset):
    body = SMPLA(mannequin_asset, backend=backend, dtype=DOUBLE)
    generator = torch.Generator().manual_seed(0)
    pose = 0.3 * torch.randn(2, 1, 69, generator=generator, dtype=DOUBLE)
    betas = torch.randn(3, 10, generator=generator, dtype=DOUBLE, requires_grad=True)
    out = body(betas=betas, body_pose=pose)
    got, expected = (
        body.regress(name, out.vertices, out.joints), body.keypoints(name, betas=betas, body_pose=pose),
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(got.shape, generator=generator, dtype=DOUBLE)
    a, b = (torch.autograd.grad(points, betas, upstream, retain_graph=True)[0] for points in (got, expected))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", ["torch", "warp"])
@pytest.mark.parametrize("name", SIZES)
def test_nobody_has_no_points(name, backend, mannequin_asset):
    body = SMPLA(mannequin_asset, backend=backend)
    betas = torch.zeros(2, 0, 10, requires_grad=True)
    points = body.keypoints(name, betas=betas)
    assert points.shape == (2, 0, len(get_layout(name)), 3)
    assert body.regress(name, *body(betas=betas)[:2]).shape == points.shape
    points.sum().backward()
    assert betas.grad is not None
    with torch.no_grad():
        assert body.keypoints(name, betas=betas).shape == points.shape


def test_a_mesh_alone_does_where_no_point_is_a_joint(mannequin_asset, unchecked):
    body = SMPLA(mannequin_asset)
    out = body()
    torch.testing.assert_close(body.regress("h36m17", out.vertices), body.keypoints("h36m17"))
    with pytest.raises(ValueError, match="joints: points of layout 'smpl24' are joints of the body"):
        body.regress("smpl24", out.vertices)
    with pytest.raises(ValueError, match=r"vertices: expected shape \(\*batch, 6890, 3\), got \(5, 3\)"):
        body.regress("h36m17", torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"do not broadcast: vertices \(2,\), joints \(3,\)"):
        body.regress("smpl24", out.vertices.expand(2, -1, -1), out.joints.expand(3, -1, -1))


def test_copies_of_a_body_take_the_layout_that_is_asked_for():
    body = SMPLA(random_body(), dtype=DOUBLE)
    layout = KeypointLayout.from_regressor(np.eye(12)[:1], ("tip",), name="a name with. a dot")
    expected = body.keypoints(layout)
    for twin in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
        (key,) = twin.points
        other = KeypointLayout.from_regressor(np.eye(12)[5:6], ("tip",))
        twin.points[f"posed {id(other)}"] = twin.points[key]  # as if the address had been given out again
        torch.testing.assert_close(twin.keypoints(other), body().vertices[5:6])
        torch.testing.assert_close(twin.keypoints(layout), expected)


def test_a_bodys_own_set_of_the_layouts_name_comes_first(mannequin_asset):
    joints, _ = LAYOUTS["coco17"].resolve(mannequin_asset)
    assert (joints == -1).all()
    without = {k: v for k, v in mannequin_asset.regressors.items() if k != "coco17"}
    joints, _ = LAYOUTS["coco17"].resolve(mannequin_asset.replace(regressors=without))
    assert (joints[5:] >= 0).all()


@pytest.mark.parametrize("own", [True, False])
def test_openpose_has_the_points_of_coco_and_the_middles_of_shoulders_and_hips(asset, own):
    """As its output has them; with or without a regressor of COCO's points, in every pose and from a mesh.

    A mesh is moved by the sums of the regressor's rows, which are 1 in float32.
    """
    if not own:
        asset = asset.replace(regressors={k: v for k, v in asset.regressors.items() if k != "coco17"})
    body, given = posed(asset)
    coco = dict(zip(LAYOUTS["coco17"].names, body.keypoints("coco17", **given).unbind(1), strict=True))
    out = body(**given)
    for points in (
        body.keypoints("openpose25", **given),
        body.regress("openpose25", out.vertices, out.joints),
    ):
        found = dict(zip(LAYOUTS["openpose25"].names, points.unbind(1), strict=True))
        for name, expected in coco.items():
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-7)
        for name, part in (("neck", "shoulder"), ("mid_hip", "hip")):
            middle = (coco[f"left_{part}"] + coco[f"right_{part}"]) / 2
            torch.testing.assert_close(found[name], middle, rtol=0, atol=1e-7)
    smpl = body.keypoints("hmr2_44", **given)
    torch.testing.assert_close(smpl[:, [1, 8]], out.joints[:, [12, 0]])


def test_missing_parts_of_a_body_are_named(unchecked):
    asset = random_body()
    with pytest.raises(AssetError, match=r"'smpl24'.*'random' has no joint 'pelvis'"):
        SMPLA(asset).keypoints("smpl24")
    bare = asset.replace(regressors={})
    with pytest.raises(AssetError, match=r"no regressor set 'h36m17'; attach one with load_asset"):
        SMPLA(bare).keypoints("h36m17")
    with pytest.raises(AssetError, match=r"made for 5 vertices, 'random' has 12"):
        SMPLA(asset).keypoints(KeypointLayout.from_regressor(np.ones((1, 5)), ("a",)))
    with pytest.raises(ValueError, match="layout: expected a KeypointLayout or one of smpl24.*'coco18'"):
        get_layout("coco18")
    with pytest.raises(ValueError, match="names: expected 1 names"):
        KeypointLayout.from_regressor(np.ones((1, 5)), ("a", "b"))


def test_noses_of_human36m_lie_between_neck_and_head(mannequin_asset, anny_asset):
    """As in its skeleton of 121 and 115 mm; COCO's nose is on the surface, 190 to 220 mm from the neck."""
    names = LAYOUTS["h36m17"].names
    for asset in (mannequin_asset, anny_asset):
        points = SMPLA(asset).keypoints("h36m17")
        neck, nose, head = (points[names.index(name)] for name in ("neck", "nose", "head"))
        assert 0.105 < (nose - neck).norm() < 0.14
        assert 0.105 < (nose - head).norm() < 0.14
        assert nose[2] > max(neck[2], head[2])


@pytest.mark.parametrize("pose_format", ["axis_angle", "matrix", "quaternion", "rotation_6d"])
def test_mirrored_poses_have_mirrored_points(mannequin_asset, pose_format):
    body = SMPLA(mannequin_asset, dtype=torch.float64)
    people = random_people(body, 4, seed=2).parameters
    layout = LAYOUTS["smplx45"]
    expected = body.keypoints(layout, people)[:, list(layout.flip)] * torch.tensor([-1.0, 1, 1])
    names = body.asset.joint_names
    torch.testing.assert_close(body.keypoints(layout, people.mirrored(names)), expected, atol=1e-6, rtol=0)
    order = list(LAYOUTS["smpl24"].flip)
    whole = torch.cat((people.global_orient[:, None], people.body_pose), 1)
    pose = from_matrix(to_matrix(whole, "axis_angle"), pose_format)
    flipped = to_matrix(mirror(pose[:, order], pose_format), pose_format)
    found = people.mirrored(names)
    wanted = torch.cat((found.global_orient[:, None], found.body_pose), 1)
    torch.testing.assert_close(flipped, to_matrix(wanted, "axis_angle"))
    twice = found.mirrored(names)
    assert all(torch.equal(a, b) for a, b in zip(twice, people, strict=True))
    with pytest.raises(ValueError, match="joint_names: expected 24, the root's first, got 23"):
        people.mirrored(names[1:])
    with pytest.raises(ValueError, match="expected shape"):
        mirror(torch.zeros(5), pose_format)
