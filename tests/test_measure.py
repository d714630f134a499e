import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial import ConvexHull

import agebody
from agebody.assets.asset import AssetError, Regressor
from agebody.measure import (
    A2B_MEASUREMENTS,
    MEASUREMENTS,
    Distance,
    Girth,
    Height,
    Measurements,
    find_landmarks,
    stature,
)


@given(
    batch=st.lists(st.integers(0, 3), max_size=3),
    vertices=st.integers(1, 20),
    shift=st.floats(-5, 5),
    seed=st.integers(0, 99),
)
def test_stature_is_the_extent_along_y_wherever_the_body_stands(batch, vertices, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    body = torch.rand(*batch, vertices, 3, generator=generator, dtype=torch.float64)
    height = stature(body)
    assert height.shape == tuple(batch)
    y = body[..., 1]
    assert torch.equal(height, y.max(-1).values - y.min(-1).values)
    torch.testing.assert_close(stature(body + shift), height, rtol=0, atol=1e-14 * 10)


def test_the_gradient_is_on_the_highest_and_the_lowest_vertex_and_shared_in_a_tie():
    body = torch.tensor([[0.0, 2, 0], [1, 2, 0], [0, 1, 5], [3, 0, 0]], requires_grad=True)
    height = stature(body)
    height.backward()
    assert height.item() == 2
    assert body.grad is not None
    assert body.grad.tolist() == [[0, 0.5, 0], [0, 0.5, 0], [0, 0, 0], [0, -1, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stature_keeps_the_dtype(dtype):
    assert stature(torch.zeros(4, 7, 3, dtype=dtype)).dtype == dtype


class Case:
    """A body of an asset, its measurements, and some people."""

    def __init__(self, asset, definitions=None):
        self.asset = asset
        self.body = agebody.SMPLA(asset, dtype=torch.float64)
        self.measure = Measurements(asset, definitions, dtype=torch.float64)
        self.faces = asset.faces

    def people(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        betas = torch.randn(count, self.body.num_betas, generator=generator, dtype=torch.float64)
        ages = torch.linspace(0, 1, count, dtype=torch.float64)
        return self.body.shape(betas=0.7 * betas, age_offset=ages).rest_vertices

    def named(self, vertices):
        return dict(zip(self.measure.names, self.measure(vertices).unbind(-1), strict=True))


@pytest.fixture(scope="module", params=["mannequin", "anny"])
def case(request, mannequin_asset, anny_asset):
    return Case(mannequin_asset if request.param == "mannequin" else anny_asset)


def test_names_are_36_twice():
    assert len(MEASUREMENTS) == len(A2B_MEASUREMENTS) == 36
    assert sum(isinstance(what, Girth) for what in A2B_MEASUREMENTS.values()) == 13
    for name in MEASUREMENTS:
        assert name.replace("left_", "right_") in MEASUREMENTS


# A2B's points by vertices of SMPL-X: at which a landmark of the mannequin's is put, and its measurements.
_SMPLX = {
    "head_top": 8976, "forehead": 1980, "chin": 8793, "neck_front": 8940, "cervicale": 5484,
    "suprasternale": 5519, "navel": 5939, "navel_back": 5941, "left_ear": 6, "right_ear": 616,
    "left_acromion": 4442, "right_acromion": 7218, "left_wrist_back": 4823, "right_wrist_back": 7559,
    "left_wrist_palm": 4713, "right_wrist_palm": 7449, "left_olecranon": 4273, "right_olecranon": 7017,
    "left_fingertip": 5058, "right_fingertip": 7794, "left_hand": 5169, "right_hand": 7905,
    "left_thelion": 3572, "right_thelion": 8340, "left_trochanter": 3958, "right_trochanter": 6706,
    "left_buttock": 5949, "left_patella": 3673, "right_patella": 6434, "left_malleolus": 5880,
    "right_malleolus": 8574, "left_heel": 8846, "right_heel": 8635, "left_toe_tip": 5770,
    "right_toe_tip": 8463, "left_small_toe_tip": 5780, "right_small_toe_tip": 8474, "left_ball": 5904,
    "right_ball": 8598, "left_upper_arm_level": 4042, "right_upper_arm_level": 6788,
    "left_forearm_level": 4530, "right_forearm_level": 7266, "left_thigh_level": 3577,
    "right_thigh_level": 6338, "left_calf_level": 3732,
}  # fmt: skip
_SMPLX_HEIGHTS = {
    "height length": ([8976], [8846, 8635]),
    "torso height from back length": ([5484], [5941]),
    "head length": ([8976], [5484]),
    "lateral neck length": ([6, 616], [5484]),
}
_SMPLX_LENGTHS = {
    "shoulder width length": ([4442], [7218]),
    "torso height from front length": ([5519], [5939]),
    "midline neck length": ([8793], [5519]),
    "left hand length": ([4823], [5058, 5169]),
    "right hand length": ([7559], [7794, 7905]),
    "left arm length": ([4442], [4823]),
    "right arm length": ([7218], [7559]),
    "left forearm length": ([4713], [4273]),
    "right forearm length": ([7449], [7017]),
    "left thigh length": ([3958], [3673]),
    "right thigh length": ([6706], [6434]),
    "left calf length": ([3673], [5880]),
    "right calf length": ([6434], [8574]),
    "left footwidth length": ([5780], [5770]),
    "right footwidth length": ([8474], [8463]),
    "left heel to ball length": ([8846], [5904]),
    "right heel to ball length": ([8635], [8598]),
    "left heel to toe length": ([8846], [5770]),
    "right heel to toe length": ([8635], [8463]),
}
_SMPLX_GIRTHS = {
    "waist circumference": ([5939, 5941], "pelvis", "spine3"),
    "chest circumference": ([3572, 8340], "pelvis", "spine3"),
    "hip circumference": ([5949], "pelvis", "spine3"),
    "head circumference": ([1980], "pelvis", "spine3"),
    "neck circumference": ([8940], "head", "spine2"),
    "left arm circumference": ([4042], "left_shoulder", "left_elbow"),
    "right arm circumference": ([6788], "right_shoulder", "right_elbow"),
    "left forearm circumference": ([4530], "left_elbow", "left_wrist"),
    "right forearm circumference": ([7266], "right_elbow", "right_wrist"),
    "left thigh circumference": ([3577], "pelvis", "spine3"),
    "right thigh circumference": ([6338], "pelvis", "spine3"),
    "left calf circumference": ([3732], "pelvis", "spine3"),
    "right calf circumference": ([3732], "pelvis", "spine3"),
}


@pytest.fixture(scope="module")
def of_smplx_size(mannequin_asset):
    """The mannequin with SMPL-X's number of vertices, the vertex next to each landmark at A2B's place."""
    template, found = mannequin_asset.template, find_landmarks(mannequin_asset)
    distance = np.linalg.norm((found.matrix @ template)[:, None] - template, axis=-1)
    places = dict.fromkeys(range(len(template)))
    for name, vertex in _SMPLX.items():
        nearest = np.argsort(distance[found.names.index(name)] if name in found.names else template[:, 2])
        places[next(v for v in nearest if places[v] is None)] = vertex
    rest = iter(sorted(set(range(10475)) - set(_SMPLX.values())))
    new = np.array([next(rest) if place is None else place for place in places.values()])
    old = np.zeros(10475, int)
    old[new] = np.arange(len(template))
    regressor = sparse.lil_array((mannequin_asset.num_joints, 10475))
    regressor[:, new] = mannequin_asset.joint_regressor.toarray()
    return mannequin_asset.replace(
        template=template[old], faces=new[mannequin_asset.faces], shapedirs=mannequin_asset.shapedirs[old],
        posedirs=None, age_templates=mannequin_asset.age_templates[:, old], regressors={},
        joint_regressor=sparse.csr_array(regressor), skin_joints=mannequin_asset.skin_joints[old],
        skin_weights=mannequin_asset.skin_weights[old],
    )  # fmt: skip


def test_a2b_on_smplx_has_the_vertices_of_its_code(of_smplx_size):
    case = Case(of_smplx_size, A2B_MEASUREMENTS)
    vertices = case.people(3)
    got = case.named(vertices)
    assert set(got) == {*_SMPLX_HEIGHTS, *_SMPLX_LENGTHS, *_SMPLX_GIRTHS}
    for name, ends in _SMPLX_HEIGHTS.items():
        upper, lower = (vertices[:, ids, 1].mean(1) for ids in ends)
        torch.testing.assert_close(got[name], upper - lower)
    for name, ends in _SMPLX_LENGTHS.items():
        start, end = (vertices[:, ids].mean(1) for ids in ends)
        torch.testing.assert_close(got[name], (start - end).norm(dim=-1))
    joints = torch.tensor(of_smplx_size.joint_regressor.toarray(), dtype=torch.float64) @ vertices
    for name, (ids, *axis) in _SMPLX_GIRTHS.items():
        start, end = (joints[:, of_smplx_size.joint_names.index(joint)] for joint in axis)
        section = case.measure.section(name, vertices)
        off = ((section.starts - vertices[:, ids].mean(1)[:, None]) * (end - start)[:, None]).sum(-1)
        assert off[section.cut].abs().max() < 1e-12
        assert (got[name] > 0.05).all()


def test_a_landmark_that_is_brought_comes_before_a2bs_vertex(of_smplx_size):
    row = sparse.csr_array(np.eye(1, 10475))
    asset = of_smplx_size.replace(regressors={"landmarks": Regressor(("chin",), row)})
    case = Case(asset, {"neck": A2B_MEASUREMENTS["midline neck length"]})
    vertices = case.people(2)
    torch.testing.assert_close(
        case.named(vertices)["neck"], (vertices[:, 0] - vertices[:, 5519]).norm(dim=-1)
    )


_ARM = ("upper_arm_length", "forearm_length", "hand_length")


def test_lengths_are_distances_of_landmarks_and_joints(case):
    vertices = case.people(4)
    found = find_landmarks(case.asset)
    points = torch.tensor(found.matrix.toarray(), dtype=torch.float64) @ vertices
    points = dict(zip(found.names, points.unbind(-2), strict=True))
    regressor = torch.tensor(case.asset.joint_regressor.toarray(), dtype=torch.float64)
    joints = dict(zip(case.asset.joint_names, (regressor @ vertices).unbind(-2), strict=True))
    got, ground = case.named(vertices), vertices[..., 1].amin(-1)
    expected = {
        "stature": vertices[..., 1].amax(-1) - ground,
        "sitting_height": points["head_top"][:, 1] - points["crotch"][:, 1],
        "crotch_height": points["crotch"][:, 1] - ground,
        "shoulder_breadth": (points["left_acromion"] - points["right_acromion"]).norm(dim=-1),
        "left_thigh_length": (joints["left_hip"] - joints["left_knee"]).norm(dim=-1),
        "right_hand_length": (joints["right_wrist"] - points["right_fingertip"]).norm(dim=-1),
        "arm_span": sum(value for name, value in got.items() if name.endswith(_ARM))
        + (joints["left_shoulder"] - joints["right_shoulder"]).norm(dim=-1),
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-12, msg=name)


def outlines(vertices, faces, origin, normal):
    mesh = trimesh.Trimesh(vertices.numpy(), faces, process=False)
    section = mesh.section(plane_origin=origin, plane_normal=normal)
    return [section.vertices[curve.points] for curve in section.entities]


def test_girths_are_those_of_the_whole_meshs_sections(case):
    """Of the loops in which the plane cuts the whole mesh, the one around the part; by trimesh and Qhull."""
    people = case.people(2, seed=3)[:1]  # a newborn's arms reach down to its chest
    found = find_landmarks(case.asset)
    for vertices in people:
        got = case.named(vertices)
        points = dict(zip(found.names, found.matrix @ vertices.numpy(), strict=True))
        joints = dict(zip(case.asset.joint_names, case.asset.joint_regressor @ vertices.numpy(), strict=True))
        up = np.array([0.0, 1, 0])
        for name, at in (("waist", "navel"), ("hip", "left_buttock"), ("chest", "left_thelion")):
            other = points["navel_back" if at == "navel" else at.replace("left", "right")]
            level = (points[at] + other) / 2
            loops = outlines(vertices, case.faces, level, up)
            trunk = np.concatenate([loop for loop in loops if abs(loop[:, 0]).max() < 0.3])
            # A tape may pass by corners at which it turns by less than 1.5 degrees.
            hull = ConvexHull(trunk[:, [0, 2]]).area
            assert got[f"{name}_circumference"].item() == pytest.approx(hull, rel=2e-5), name
        for name, at, start, end in (
            ("left_thigh", "left_thigh_level", "left_hip", "left_knee"),
            ("right_calf", "right_calf_level", "right_knee", "right_ankle"),
            ("left_upper_arm", "left_upper_arm_level", "left_shoulder", "left_elbow"),
            ("right_wrist", "right_wrist_level", "right_elbow", "right_wrist"),
        ):
            axis = joints[end] - joints[start]
            loops = outlines(vertices, case.faces, points[at], axis)
            centre = joints[start] + axis * ((points[at] - joints[start]) @ axis) / (axis @ axis)
            around = min(loops, key=lambda loop: np.linalg.norm(loop.mean(0) - centre))
            length = np.linalg.norm(np.diff(around, axis=0), axis=1).sum()
            # trimesh merges what lies within 1e-8 m, at some 50 corners
            assert got[f"{name}_circumference"].item() == pytest.approx(length, abs=5e-7), name


def test_measures_scale_and_do_not_depend_on_the_place(case):
    vertices = case.people(2)
    values = case.measure(vertices)
    torch.testing.assert_close(case.measure(1.7 * vertices), 1.7 * values, rtol=1e-9, atol=0)
    moved = vertices + torch.tensor([0.3, -2.0, 0.7], dtype=torch.float64)
    # Rows of joint regressors, of weights up to 30 in float32, sum to 1 within 4e-6 / 2, times 2 m.
    torch.testing.assert_close(case.measure(moved), values, rtol=0, atol=4e-6)


def test_both_sides_of_a_mirror_image_body_are_equal(case):
    got = case.named(case.body.shape(age_offset=torch.tensor([0.0, 0.6], dtype=torch.float64)).rest_vertices)
    for name in (name.removeprefix("left_") for name in got if name.startswith("left_")):
        # What is left is which triangle beside the plane of symmetry the crotch was found on.
        torch.testing.assert_close(got[f"left_{name}"], got[f"right_{name}"], rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    ("ratio", "of", "low", "high"),
    [  # 2.5th to 97.5th percentile of men and women together, about, of ANSUR II
        ("sitting_height", "stature", 0.49, 0.56),
        ("crotch_height", "stature", 0.44, 0.52),
        ("shoulder_breadth", "stature", 0.20, 0.26),
        ("head_circumference", "stature", 0.30, 0.36),
        ("arm_span", "stature", 0.94, 1.11),
        ("waist_circumference", "hip_circumference", 0.70, 1.05),
    ],
)
def test_adults_have_the_proportions_of_people(case, ratio, of, low, high):
    got = case.named(case.body.shape().rest_vertices)
    assert low < (got[ratio] / got[of]).item() < high


def test_measurements_grow_with_the_body(case):
    ages = torch.linspace(1, 0, 9, dtype=torch.float64)
    values = case.measure(case.body.shape(age_offset=ages).rest_vertices)
    assert (values[-1] > values[0]).all()
    names = list(case.measure.names)
    for name in ("stature", "crotch_height", "head_circumference", "left_foot_length", "arm_span"):
        assert (values[:, names.index(name)].diff() > 0).all(), name


def test_gradients_through_the_layer_are_those_of_finite_differences(case):
    few = ("stature", "arm_span", "waist_circumference", "neck_circumference", "left_calf_circumference")
    measure = Measurements(case.asset, few, dtype=torch.float64)
    betas = torch.full((10,), 0.3, dtype=torch.float64, requires_grad=True)
    age = torch.tensor(0.43, dtype=torch.float64, requires_grad=True)
    values = lambda b, a: measure(case.body.shape(betas=b, age_offset=a).rest_vertices)  # noqa: E731
    # Sections have kinks where the plane passes a vertex: small steps stay clear of them.
    assert torch.autograd.gradcheck(values, (betas, age), eps=1e-8, atol=1e-6)


@settings(max_examples=10)
@given(batch=st.lists(st.integers(0, 3), max_size=3))
def test_any_leading_dims(mannequin_asset, batch):
    measure = Measurements(mannequin_asset, ("stature", "hip_breadth", "chest_circumference"))
    vertices = torch.from_numpy(mannequin_asset.template.copy()).float()
    values = measure((1 + torch.rand(batch))[..., None, None] * vertices)
    assert values.shape == (*batch, 3)
    torch.testing.assert_close(
        values / values[..., :1], (measure(vertices) / measure(vertices)[0]).expand(*batch, 3)
    )


def test_no_measurement_is_an_empty_row(mannequin_asset):
    assert Measurements(mannequin_asset, ())(torch.zeros(2, 6890, 3)).shape == (2, 0)


def test_state_dict_is_empty(mannequin_asset):
    assert not Measurements(mannequin_asset, ("stature", "waist_circumference")).state_dict()


def test_custom_definitions(mannequin_asset):
    own = {
        "trunk": Height("suprasternale", "crotch"),
        "reach": Distance(("nose_tip", "left_fingertip")),
        "thigh, taut": Girth("left_thigh_level", ("left_hip", "left_knee"), tape=True),
    }
    with pytest.raises(AssetError, match="has no landmark or joint 'nose_tip'"):
        Measurements(mannequin_asset, own)
    own["reach"] = Distance((("left_shoulder", "right_shoulder"), "left_fingertip"))
    template = torch.from_numpy(mannequin_asset.template.copy()).float()
    trunk, reach, taut = Measurements(mannequin_asset, own)(template).tolist()
    assert 0.5 < trunk < 0.7
    assert 0.8 < reach < 0.9
    skin = Girth("left_thigh_level", ("left_hip", "left_knee"))
    along_skin = Measurements(mannequin_asset, {"thigh": skin})(template).item()
    assert 0.98 * along_skin < taut <= along_skin


def test_sections_can_be_drawn(case):
    vertices = case.people(2)
    section = case.measure.section("left_calf_circumference", vertices)
    length = (section.ends - section.starts).norm(dim=-1).sum(-1)
    torch.testing.assert_close(length, case.named(vertices)["left_calf_circumference"])
    with pytest.raises(ValueError, match="name: expected one of head_circumference, .*, got 'stature'"):
        case.measure.section("stature", vertices)


def test_wrong_arguments_are_named(mannequin_asset, unchecked):
    with pytest.raises(
        ValueError, match=r"definitions: expected a sequence of names out of stature, .*got \['weight'\]"
    ):
        Measurements(mannequin_asset, ("stature", "weight"))
    with pytest.raises(ValueError, match="got 'stature'"):
        Measurements(mannequin_asset, "stature")
    with pytest.raises(TypeError, match=r"dtype: expected torch.float32 or torch.float64, got torch.float16"):
        Measurements(mannequin_asset, dtype=torch.float16)
    measure = Measurements(mannequin_asset, ("stature",))
    with pytest.raises(ValueError, match=r"rest_vertices: expected shape \(\*batch, 6890, 3\), got \(5, 3\)"):
        measure(torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"rest_vertices: expected torch.float32, got torch.float64"):
        measure(torch.zeros(6890, 3, dtype=torch.float64))
    with pytest.raises(AssetError, match="the plane of 'half' does not cut its part all around"):
        Measurements(mannequin_asset, {"half": Girth("navel", ("spine2",), ("left_hip", "right_hip"))})
    with pytest.raises(AssetError, match="has no joint tail"):
        Measurements(mannequin_asset, {"tail": Girth("navel", ("tail",))})
    with pytest.raises(ValueError, match="points: expected two or more"):
        Measurements(mannequin_asset, {"none": Distance(("navel",))})


@pytest.mark.parametrize("change", ["half", "bfloat16", "double", "to_empty"])
def test_networks_with_measures_keep_their_numbers(mannequin_asset, change):
    names = ["stature", "waist_circumference"]
    measure = Measurements(mannequin_asset, names)
    network = torch.nn.Sequential(measure, torch.nn.Linear(2, 2))
    getattr(network, change)(**{"device": "cpu"} if change == "to_empty" else {})
    dtype = torch.float64 if change == "double" else torch.float32
    assert measure.dtype == dtype
    surface = torch.tensor(mannequin_asset.template, dtype=dtype)
    assert torch.equal(measure(surface), Measurements(mannequin_asset, names, dtype=dtype)(surface))
