"""The built-in body: a valid mesh, correct proportions, and shape directions with the documented meaning."""

import hashlib
import math

import numpy as np
import pytest
import trimesh
from scipy.spatial import ConvexHull, KDTree

from agebody.assets.asset import SMPL_JOINT_NAMES, SMPL_PARENTS
from agebody.assets.landmarks import REGRESSOR_NAMES
from agebody.assets.mannequin import mannequin
from agebody.assets.mannequin.body import SHAPE_SD

# Of every array, bit for bit: the same on each machine, operating system and NumPy.
SHA256 = "236916a067f8c8ca801f9c4a3e62eab36fdd7de6760d59e083a4299b78c276ed"
JOINT = {name: i for i, name in enumerate(SMPL_JOINT_NAMES)}
AGES = ("adult", "infant")


@pytest.fixture(scope="module")
def asset():
    return mannequin()


@pytest.fixture(scope="module")
def surfaces(asset):
    """Return adult and infant in float64, so that the tests' arithmetic adds no error."""
    return {"adult": asset.template.astype(float), "infant": asset.age_templates[0].astype(float)}


@pytest.fixture(scope="module")
def mirror(surfaces):
    """Return the mirror image of each vertex."""
    adult = surfaces["adult"]
    distance, index = KDTree(adult).query(adult * [-1, 1, 1])
    assert distance.max() < 1e-6  # float32 rounding of coordinates of about 1 m
    return index


def swapped(names):
    """Return the indices that exchange left and right names."""
    other = {n: n.replace("left_", "\0").replace("right_", "left_").replace("\0", "right_") for n in names}
    return [names.index(other[n]) for n in names]


def stature(vertices):
    return float(np.ptp(vertices[:, 1]))


def crotch_height(vertices):
    """Return the height of the lowest point in the middle plane below the waist."""
    middle = vertices[np.abs(vertices[:, 0]) < 1e-7, 1]
    return float(middle.min() - vertices[:, 1].min())


def girth(vertices, faces, height):
    """Return the tape-measure girth of the trunk or head at a height above the soles."""
    section = trimesh.Trimesh(vertices, faces, process=False).section(
        [0, 1, 0], [0, vertices[:, 1].min() + height, 0]
    )
    assert section is not None
    loops = [loop[:, [0, 2]] for loop in section.discrete]
    return max(ConvexHull(loop).area for loop in loops if loop[:, 0].min() < 0 < loop[:, 0].max())


def volume(vertices, faces):
    return float(trimesh.Trimesh(vertices, faces, process=False).volume)


def posed(asset, rotations, *, correctives):
    """Pose the adult with some joints rotated, {joint: 3x3 matrix}, by SMPL's equations."""
    local = np.stack([rotations.get(name, np.eye(3)) for name in SMPL_JOINT_NAMES])
    rest = asset.template.astype(float)
    joints = asset.joint_regressor @ rest
    if correctives:
        rest = rest + asset.posedirs.astype(float) @ (local[1:] - np.eye(3)).ravel()
    turn, origin = np.empty((24, 3, 3)), np.empty((24, 3))
    for j, parent in enumerate(SMPL_PARENTS):
        above = (
            (np.eye(3), np.zeros(3), np.zeros(3))
            if parent < 0
            else (turn[parent], origin[parent], joints[parent])
        )
        turn[j], origin[j] = above[0] @ local[j], above[1] + above[0] @ (joints[j] - above[2])
    shift = origin - np.einsum("jab,jb->ja", turn, joints)
    weights = asset.dense_weights().astype(float)
    return np.einsum("vj,jab,vb->va", weights, turn, rest, optimize=True) + weights @ shift


def turned(axis, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    k = np.cross(np.eye(3), axis) * -1
    return np.eye(3) + s * k + (1 - c) * k @ k


BENDS = {"left_elbow": (0, -1, 0), "left_knee": (1, 0, 0)}


def test_has_the_size_and_skeleton_of_smpl(asset):
    assert asset.template.shape == (6890, 3)
    assert asset.faces.shape == (13776, 3)
    assert asset.shapedirs.shape == (6890, 3, 10)
    assert asset.posedirs.shape == (6890, 3, 207)
    assert asset.joint_names == SMPL_JOINT_NAMES
    assert asset.parents.tolist() == list(SMPL_PARENTS)
    assert asset.age_offsets.tolist() == [1.0]
    assert asset.metadata.kind == asset.metadata.topology == asset.metadata.name == "mannequin"
    assert asset.metadata.license == "Apache-2.0"
    assert asset.metadata.shape_names == tuple(SHAPE_SD)


def test_is_the_same_everywhere(asset):
    digest = hashlib.sha256()
    for array in (
        asset.template, asset.faces, asset.skin_joints, asset.skin_weights, asset.shapedirs, asset.posedirs,
        asset.age_templates, asset.joint_regressor.toarray(),
        *(asset.regressors[name].matrix.toarray() for name in REGRESSOR_NAMES),
    ):  # fmt: skip
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == SHA256


def test_is_built_once():
    assert mannequin() is mannequin()


@pytest.mark.parametrize("age", AGES)
def test_mesh_is_closed_and_faces_outwards(asset, surfaces, age):
    mesh = trimesh.Trimesh(surfaces[age], asset.faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert mesh.body_count == 1
    assert mesh.volume > 0
    assert mesh.area_faces.min() > 1e-7  # 0.3 mm squared: the infant's smallest, between its toes, has 2e-7


def test_faces_do_not_fold_over(asset, surfaces):
    """Neighbouring faces differ by less than a right angle, except a few between digits and at the crotch."""
    adult = surfaces["adult"]
    mesh = trimesh.Trimesh(adult, asset.faces, process=False)
    sharp = adult[mesh.face_adjacency_edges[mesh.face_adjacency_angles > math.pi / 2]].mean(axis=1)
    joints = asset.joint_regressor @ adult
    reach = np.abs(sharp[:, 0]), sharp[:, 1]
    in_hand = reach[0] > joints[JOINT["left_wrist"], 0]
    in_foot = reach[1] < joints[JOINT["left_ankle"], 1]
    in_crotch = reach[0] < 0.01
    assert (in_hand | in_foot | in_crotch).all()
    assert len(sharp) < 80


@pytest.mark.parametrize("age", AGES)
def test_left_mirrors_right(surfaces, mirror, age):
    np.testing.assert_allclose(surfaces[age][mirror], surfaces[age] * [-1, 1, 1], atol=1e-6)


def test_directions_weights_and_correctives_mirror(asset, mirror):
    flip = np.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(asset.shapedirs[mirror], asset.shapedirs * flip[:, None], atol=1e-7)
    joints = swapped(list(SMPL_JOINT_NAMES))
    weights = asset.dense_weights()
    np.testing.assert_allclose(weights[mirror], weights[:, joints], atol=1e-6)
    bends = asset.posedirs.reshape(6890, 3, 23, 3, 3)
    other = np.array(joints[1:]) - 1
    reflected = bends[:, :, other] * flip[:, None, None, None] * flip[:, None] * flip
    np.testing.assert_allclose(bends[mirror], reflected, atol=1e-6)


def test_is_centred_like_an_smpl_a_infant(surfaces):
    for vertices in surfaces.values():
        np.testing.assert_allclose(vertices.mean(axis=0), 0, atol=1e-6)


def test_stands_in_a_t_pose(asset, surfaces):
    for vertices in surfaces.values():
        at = dict(zip(SMPL_JOINT_NAMES, asset.joint_regressor @ vertices, strict=True))
        tall = stature(vertices)
        arm = at["left_wrist"] - at["left_shoulder"]
        assert arm[0] > 0.2 * tall
        assert abs(arm[1]) < 0.02 * tall
        assert abs(arm[2]) < 0.02 * tall
        assert at["left_foot"][2] > at["left_ankle"][2] + 0.03 * tall  # faces +z
        order = [at[n][1] for n in ("left_foot", "left_ankle", "left_knee", "left_hip", "pelvis", "spine1",
                                    "spine2", "spine3", "neck", "head")]  # fmt: skip
        assert order == sorted(order)


@pytest.mark.parametrize("age", AGES)
def test_joints_lie_inside(asset, surfaces, age):
    mesh = trimesh.Trimesh(surfaces[age], asset.faces, process=False)
    assert mesh.contains(asset.joint_regressor @ surfaces[age]).all()


def test_adult_proportions(asset, surfaces):
    """ANSUR II, mean of men and women: stature 1.69 m (here 1.72), sitting height .525, biacromial .231."""
    vertices = surfaces["adult"]
    joints = asset.joint_regressor @ vertices
    tall = stature(vertices)
    assert tall == pytest.approx(1.72, abs=0.01)
    assert 1 - crotch_height(vertices) / tall == pytest.approx(0.525, abs=0.015)
    # The joint's centre lies some 2 cm inside the acromion on each side.
    assert (2 * joints[JOINT["left_shoulder"], 0] + 0.04) / tall == pytest.approx(0.231, abs=0.015)
    assert girth(vertices, asset.faces, 0.945 * tall) == pytest.approx(0.57, abs=0.02)  # head
    assert girth(vertices, asset.faces, 0.62 * tall) < girth(
        vertices, asset.faces, 0.55 * tall
    )  # waist, hips
    assert 1010 * volume(vertices, asset.faces) == pytest.approx(67, abs=5)  # kg


def test_infant_proportions(asset, surfaces):
    """WHO at one month: length 0.53-0.55 m, head circumference 0.36-0.38 m, 4-5 kg; sitting height .69."""
    vertices = surfaces["infant"]
    tall = stature(vertices)
    assert tall == pytest.approx(0.534, abs=0.005)
    assert 1 - crotch_height(vertices) / tall == pytest.approx(0.69, abs=0.015)
    assert max(girth(vertices, asset.faces, f * tall) for f in (0.89, 0.9, 0.91, 0.92)) == pytest.approx(
        0.365, abs=0.012
    )
    assert 1010 * volume(vertices, asset.faces) == pytest.approx(4.5, abs=0.6)


def test_heads_in_stature_fall_with_age(surfaces):
    """7.9 in the adult, about 4.5 in the infant, and monotonic between."""
    adult = surfaces["adult"]
    middle = np.flatnonzero((np.abs(adult[:, 0]) < 1e-7) & (adult[:, 2] > 0))
    chin = middle[np.abs(adult[middle, 1] - (adult[:, 1].min() + 1.502)).argmin()]
    heads = []
    for a in (0.0, 0.3, 0.5, 0.75, 1.0):
        vertices = (1 - a) * adult + a * surfaces["infant"]
        heads.append(stature(vertices) / (vertices[:, 1].max() - vertices[chin, 1]))
    assert heads == sorted(heads, reverse=True)
    assert heads[0] == pytest.approx(7.9, abs=0.2)
    assert heads[-1] == pytest.approx(4.5, abs=0.2)


def test_weights_are_few_and_local(asset):
    weights = asset.dense_weights()
    assert np.count_nonzero(weights, axis=1).max() <= 4
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert (weights > 0).any(axis=0).all()
    # A vertex belongs to joints that are near each other in the tree: nothing tears between arm and leg.
    arm = [JOINT[n] for n in ("left_elbow", "left_wrist", "left_hand")]
    others = [
        j
        for n, j in JOINT.items()
        if "left" not in n or n in ("left_hip", "left_knee", "left_ankle", "left_foot")
    ]
    assert not ((weights[:, arm].max(axis=1) > 0) & (weights[:, others].max(axis=1) > 0)).any()


def test_weights_change_smoothly(asset):
    edges = trimesh.Trimesh(asset.template, asset.faces, process=False).edges_unique
    weights = asset.dense_weights()
    assert np.abs(weights[edges[:, 0]] - weights[edges[:, 1]]).max() < 0.45


def test_correctives_are_silent_at_rest_and_local(asset):
    posed_at_rest = posed(asset, {}, correctives=True)
    np.testing.assert_allclose(posed_at_rest, asset.template, atol=1e-6)
    feature = np.zeros((23, 3, 3))
    feature[JOINT["left_elbow"] - 1] = turned((0, -1, 0), 90) - np.eye(3)
    moved = np.linalg.norm(asset.posedirs.astype(float) @ feature.ravel(), axis=1) > 1e-4
    elbow = (asset.joint_regressor @ asset.template)[JOINT["left_elbow"]]
    assert moved.any()
    assert np.linalg.norm(asset.template[moved] - elbow, axis=1).max() < 0.12


@pytest.mark.parametrize("joint", BENDS)
@pytest.mark.parametrize("degrees", [90, 120])
def test_correctives_keep_bent_limbs_from_collapsing(asset, joint, degrees):
    """Linear blending loses volume at a bend; at most a third of that loss remains."""
    rest = volume(asset.template.astype(float), asset.faces)
    rotation = {joint: turned(BENDS[joint], degrees)}
    plain, kept = (rest - volume(posed(asset, rotation, correctives=c), asset.faces) for c in (False, True))
    assert plain > 3e-5  # 30 ml, of an elbow of some 200 ml
    assert abs(kept) < plain / 3


@pytest.mark.parametrize("name", REGRESSOR_NAMES)
def test_regressors_are_sparse_averages_of_the_right_points(asset, surfaces, name):
    regressor = asset.regressors[name]
    assert regressor.names == REGRESSOR_NAMES[name]
    assert regressor.matrix.data.min() > 0
    assert np.diff(regressor.matrix.indptr).max() <= 40
    np.testing.assert_allclose(regressor.matrix.sum(axis=1), 1, atol=1e-12)
    exchanged = swapped(list(regressor.names))
    for vertices in surfaces.values():
        points = regressor.matrix @ vertices
        np.testing.assert_allclose(points[exchanged], points * [-1, 1, 1], atol=1e-6)
        joints = asset.joint_regressor @ vertices
        for point, label in zip(points, regressor.names, strict=True):
            assert label.startswith("right_") == (point[0] < -1e-3)
            if label in JOINT and label not in ("head", "neck"):
                np.testing.assert_allclose(point, joints[JOINT[label]], atol=1e-6)


def test_joint_regressor_is_a_sparse_average(asset):
    assert asset.joint_regressor.data.min() > 0
    assert np.diff(asset.joint_regressor.indptr).max() <= 60
    np.testing.assert_allclose(asset.joint_regressor.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("age", AGES)
def test_surface_points_lie_where_their_names_say(asset, surfaces, age):
    vertices = surfaces[age]
    regressor = asset.regressors["surface21"]
    at = dict(zip(regressor.names, regressor.matrix @ vertices, strict=True))
    joints = asset.joint_regressor @ vertices
    tall, floor = stature(vertices), vertices[:, 1].min()
    head = joints[JOINT["head"]]
    assert at["nose"][2] == pytest.approx(vertices[vertices[:, 1] > head[1], 2].max(), abs=0.01 * tall)
    assert at["left_eye"][1] > at["nose"][1] > head[1]
    assert at["nose"][2] > at["left_eye"][2] > at["left_ear"][2]
    assert at["left_ear"][0] > at["left_eye"][0] > 0
    assert at["left_heel"][2] < joints[JOINT["left_ankle"], 2] < at["left_big_toe"][2]
    assert max(at[n][1] for n in ("left_heel", "left_big_toe", "left_small_toe")) - floor < 0.04 * tall
    assert at["left_small_toe"][0] > at["left_big_toe"][0]
    assert at["left_middle"][0] == pytest.approx(vertices[:, 0].max(), abs=0.005)
    assert (
        at["left_thumb"][2]
        > at["left_index"][2]
        > at["left_middle"][2]
        > at["left_ring"][2]
        > at["left_pinky"][2]
    )
    top = asset.regressors["extra9"].matrix[[3]] @ vertices
    assert top[0, 1] == pytest.approx(vertices[:, 1].max(), abs=0.005)


def shaped(asset, name, beta):
    return asset.template.astype(float) + beta * asset.shapedirs[..., list(SHAPE_SD).index(name)]


MEASURES = {
    "stature": lambda v, j, f: stature(v),
    "weight": lambda v, j, f: 1010 * volume(v, f),
    "leg_length": lambda v, j, f: crotch_height(v),
    "shoulder_width": lambda v, j, f: 2 * j[JOINT["left_shoulder"], 0],
    "hip_width": lambda v, j, f: np.ptp(v[np.abs(v[:, 1] - v[:, 1].min() - 0.90) < 0.02, 0]),
    "chest": lambda v, j, f: girth(v, f, 1.27),
    "waist": lambda v, j, f: girth(v, f, 1.07),
    "arm_length": lambda v, j, f: j[JOINT["left_wrist"], 0] - j[JOINT["left_shoulder"], 0],
    "head_size": lambda v, j, f: girth(v, f, 1.625),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_unit_of_beta_adds_its_standard_deviation(asset, surfaces, name):
    """Within 15 %: girths are measured by a straight tape, and joints move with a ring of vertices."""
    measure = lambda v: MEASURES[name](v, asset.joint_regressor @ v, asset.faces)  # noqa: E731
    gain = measure(shaped(asset, name, 1.0)) - measure(surfaces["adult"])
    assert gain > 0
    assert gain == pytest.approx(SHAPE_SD[name], rel=0.15)


def test_muscularity_thickens_the_limbs(asset, surfaces):
    thigh = lambda v: np.ptp(v[(np.abs(v[:, 1] - v[:, 1].min() - 0.70) < 0.02) & (v[:, 0] > 0), 0])  # noqa: E731
    gain = thigh(shaped(asset, "muscularity", 1.0)) - thigh(surfaces["adult"])
    assert gain == pytest.approx(2 * SHAPE_SD["muscularity"], rel=0.5)


@pytest.mark.parametrize("name", SHAPE_SD)
@pytest.mark.parametrize("beta", [-3.0, 3.0])
def test_surface_stays_plausible_at_three_deviations(asset, surfaces, name, beta):
    before = trimesh.Trimesh(surfaces["adult"], asset.faces, process=False)
    after = trimesh.Trimesh(shaped(asset, name, beta), asset.faces, process=False)
    assert after.volume > 0
    assert (np.einsum("fi,fi->f", before.face_normals, after.face_normals) > 0).all()


@pytest.mark.parametrize("a", [0.3, 0.5, 0.75])
def test_ages_between_are_bodies_too(asset, surfaces, a):
    vertices = (1 - a) * surfaces["adult"] + a * surfaces["infant"]
    mesh = trimesh.Trimesh(vertices, asset.faces, process=False)
    assert mesh.contains(asset.joint_regressor @ vertices).all()
    assert mesh.area_faces.min() > 1e-7
    assert stature(vertices) == pytest.approx((1 - a) * 1.72 + a * 0.534, abs=0.01)
