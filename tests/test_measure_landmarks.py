import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from bodies import random_body
from scipy import sparse
from scipy.spatial.transform import Rotation

import agebody
from agebody.assets.asset import SMPL_JOINT_NAMES, AssetError, BodyAsset, Regressor
from agebody.assets.landmarks import LANDMARKS
from agebody.measure import Measurements, find_landmarks


def places(asset: BodyAsset, surface: np.ndarray | None = None) -> dict[str, np.ndarray]:
    found = find_landmarks(asset)
    surface = asset.template if surface is None else surface
    return dict(zip(found.names, found.matrix @ surface.astype(float), strict=True))


@pytest.fixture(scope="module", params=["mannequin", "mannequin infant", "anny", "anny infant"])
def asset(request, mannequin_asset, anny_asset):
    """Adults, and infants on their own as SMIL is."""
    kind, _, age = request.param.partition(" ")
    whole = mannequin_asset if kind == "mannequin" else anny_asset
    return whole.at_age(1.0) if age else whole


def test_landmarks_are_where_they_should_be(asset):
    """Orders that hold on every standing body, in shares of its stature where a number is needed."""
    at = places(asset)
    low, high = asset.template[:, 1].min(), asset.template[:, 1].max()
    y = {name: (place[1] - low) / (high - low) for name, place in at.items()}
    z = {name: place[2] / (high - low) for name, place in at.items()}
    assert set(at) == set(LANDMARKS)
    assert y["head_top"] == pytest.approx(1, abs=1e-6)
    down = [
        "head_top",
        "forehead",
        "chin",
        "suprasternale",
        "left_thelion",
        "navel",
        "left_buttock",
        "crotch",
    ]
    down += ["left_thigh_level", "left_patella", "left_calf_level", "left_ankle_level", "left_ball"]
    assert all(y[upper] > y[lower] for upper, lower in pairwise(down))
    assert y["left_ball"] < 0.02
    out = ["left_ear", "left_acromion", "left_upper_arm_level", "left_olecranon", "left_forearm_level"]
    out += ["left_wrist_level", "left_fingertip"]
    assert all(at[a][0] < at[b][0] for a, b in pairwise(out))
    for front, back in (
        ("navel", "navel_back"), ("suprasternale", "cervicale"), ("left_patella", "left_calf_level"),
        ("left_toe_tip", "left_heel"), ("left_thelion", "left_buttock"),
    ):  # fmt: skip
        assert z[front] > z[back], (front, back)
    for middle in ("head_top", "forehead", "chin", "cervicale", "suprasternale", "navel", "crotch"):
        assert abs(at[middle][0]) < 0.005 * (high - low), middle
    assert at["left_wrist_back"][1] > at["left_wrist_palm"][1]


def test_left_and_right_mirror_each_other(asset):
    at = places(asset)
    # Where a ray meets the skin in the plane of symmetry, the triangle on either side of it is as good.
    for name in (name.removeprefix("left_") for name in at if name.startswith("left_")):
        np.testing.assert_allclose(
            at[f"left_{name}"] * [-1, 1, 1], at[f"right_{name}"], atol=2e-3, err_msg=name
        )


def test_landmarks_on_the_skin_lie_on_one_triangle_or_vertex(asset):
    found = find_landmarks(asset)
    matrix = found.matrix.toarray()
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)  # joint regressors sum to 1 in float32
    triangles = {frozenset(face) for face in asset.faces.tolist()}
    skin = [i for i, name in enumerate(found.names) if not name.endswith("_level")]
    for i in skin:
        used = np.flatnonzero(matrix[i])
        extreme = len(np.unique(matrix[i, used])) == 1  # a vertex, or several that lie as far
        assert extreme or any(set(used.tolist()) <= triangle for triangle in triangles), found.names[i]
        assert matrix[i].min() > -1e-5


def test_the_order_of_vertices_and_the_place_of_the_body_do_not_matter(mannequin_asset):
    rng = np.random.default_rng(0)
    order = rng.permutation(mannequin_asset.num_vertices)
    rank = np.argsort(order)
    shift = np.array([0.3, -1.0, 2.0], mannequin_asset.template.dtype)
    moved = mannequin_asset.replace(
        template=mannequin_asset.template[order] + shift,
        faces=rank[mannequin_asset.faces],
        joint_regressor=sparse.csr_array(mannequin_asset.joint_regressor.toarray()[:, order]),
        skin_joints=mannequin_asset.skin_joints[order],
        skin_weights=mannequin_asset.skin_weights[order],
        shapedirs=mannequin_asset.shapedirs[order],
        posedirs=None,
        age_offsets=np.zeros(0),
        age_templates=None,
        regressors={},
    )
    before, after = places(mannequin_asset), places(moved)
    # Rays that run along an edge may take either side of it; widest places step by 1 % of a bone.
    for name in before:
        np.testing.assert_allclose(after[name] - shift, before[name], atol=3e-3, err_msg=name)


def test_arms_may_hang(mannequin_asset):
    """Arms at 45 degrees: landmarks are found, and the arm span is that of the T-pose."""
    body = agebody.SMPL(mannequin_asset, dtype=torch.float64)
    pose = torch.zeros(23, 3, dtype=torch.float64)
    for side, turn in (("left", -0.8), ("right", 0.8)):
        pose[SMPL_JOINT_NAMES.index(f"{side}_shoulder") - 1, 2] = turn
    hanging = body(body_pose=pose)
    a_pose = mannequin_asset.replace(
        template=hanging.vertices.numpy(), age_offsets=np.zeros(0), age_templates=None, posedirs=None
    )
    names = ("arm_span", "left_forearm_circumference", "right_wrist_circumference", "waist_circumference")
    t, a = (
        Measurements(one, names, dtype=torch.float64)(torch.tensor(one.template, dtype=torch.float64))
        for one in (mannequin_asset, a_pose)
    )
    # The shoulder's skin, of which its joint is regressed, stays behind the joint when the arm turns.
    np.testing.assert_allclose(a, t, rtol=0.02)


def test_landmarks_of_the_asset_are_used(mannequin_asset):
    row = sparse.csr_array(([1.0], ([0], [17])), shape=(1, mannequin_asset.num_vertices))
    two = Regressor(("navel", "elbow_patch"), sparse.csr_array(sparse.vstack([row, row])))
    marked = mannequin_asset.replace(regressors={"landmarks": two})
    at, found = places(marked), places(mannequin_asset)
    np.testing.assert_array_equal(at["navel"], mannequin_asset.template[17])
    np.testing.assert_array_equal(at["elbow_patch"], mannequin_asset.template[17])
    assert all(np.array_equal(at[name], found[name]) for name in LANDMARKS if name != "navel")
    # Those that are all there already are not looked for, whatever the rest pose.
    whole = find_landmarks(mannequin_asset)
    lying = mannequin_asset.replace(
        template=Rotation.from_euler("x", -90, degrees=True).apply(mannequin_asset.template),
        regressors={"landmarks": whole},
    )
    assert (find_landmarks(lying).matrix != whole.matrix).nnz == 0


def test_landmarks_are_found_once(mannequin_asset):
    assert find_landmarks(mannequin_asset) is find_landmarks(mannequin_asset)


def test_bodies_without_landmarks_are_refused(mannequin_asset):
    with pytest.raises(
        AssetError, match="landmarks are found from SMPL's joints, and it has no left_hip, left_knee"
    ):
        find_landmarks(random_body())
    upside_down = mannequin_asset.replace(
        template=mannequin_asset.template * np.array([1, -1, -1], np.float32),
        metadata=dataclasses.replace(mannequin_asset.metadata, name="handstand"),
    )
    with pytest.raises(AssetError, match="handstand: a landmark cannot be found.*upright"):
        find_landmarks(upside_down)
