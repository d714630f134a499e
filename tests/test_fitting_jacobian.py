import copy
from typing import Any

import numpy as np
import pytest
import torch
from bodies import pose_body, random_body
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import sparse
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from agebody import LAYOUTS, SMPL, SMPLA, AssetError, KeypointLayout
from agebody.optim import jacobian
from agebody.optim.jacobian import KeypointDerivatives, KeypointJacobian, SurfaceJacobian
from agebody.optim.posed import Turns
from agebody.optim.state import by_all
from agebody.parameters import BodyParameters
from agebody.rotations import inverse_right_jacobian, to_matrix

DOUBLE = torch.float64
# Sums of some hundred numbers of the size of 1 in float64; derivatives of half turns are of the size of 10.
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
PARTS = "pose", "betas", "age_offset"

RANDOM_BODIES = {
    "one template": lambda: SMPLA(random_body(), dtype=DOUBLE),
    "many templates": lambda: SMPLA(random_body(age_offsets=(-0.5, 0.3, 0.6, 1.0)), dtype=DOUBLE),
    "template not at 1": lambda: SMPLA(random_body(age_offsets=(0.5,)), dtype=DOUBLE),
    "scaled correctives": lambda: SMPLA(random_body(), dtype=DOUBLE, infant_corrective_scale=0.35),
    "no correctives": lambda: SMPLA(random_body(posedirs=False), dtype=DOUBLE),
    "one age": lambda: SMPL(random_body(), dtype=DOUBLE),
    "no betas": lambda: SMPL(random_body(), dtype=DOUBLE, num_betas=0),
    "one joint": lambda: SMPLA(random_body(parents=(-1,), posedirs=False), dtype=DOUBLE),
    "chain": lambda: SMPLA(random_body(parents=(-1, 0, 1, 2, 3)), dtype=DOUBLE),
}


def mixed_layout(asset):
    """Joints and points of the surface, in no order, one of them of weights that do not sum to 1."""
    own = KeypointLayout.from_regressor(
        sparse.csr_array(([0.7, 0.9, -0.2, 1.0], ([0, 0, 0, 1], [3, 5, 0, 7])), (2, asset.num_vertices)),
        ("three", "one"),
        name="own",
    )
    sources = (
        ("joints", asset.joint_names[-1]), ("mixed", "three"), ("joints", asset.joint_names[0]),
        ("mixed", "one"), ("coco17", "nose"),
    )  # fmt: skip
    return KeypointLayout("mixed", tuple("abcde"), sources, regressor=own.regressor)


@pytest.fixture(params=RANDOM_BODIES)
def body(request):
    return RANDOM_BODIES[request.param]()


def arguments(body, batch=3, seed=0):
    """Pose, betas, age and place; the first body has joints that are turned by nothing and by half a turn."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=DOUBLE)  # noqa: E731
    pose = 0.8 * normal(batch, body.num_joints, 3)
    if batch:
        pose[0, 0] = torch.tensor([0.0, torch.pi, 0.0])
        pose[0, 1:2] = 0
    return pose, normal(batch, body.num_betas), 1.5 * normal(batch), normal(batch, 3)


def posed(body, pose, betas, age, transl):
    """The parameters of one body."""
    return BodyParameters(pose[0], pose[1:], betas, age, transl)


def assert_equals_forward_mode(found, function, given):
    """Against forward mode through the layer, body by body."""
    for i in range(len(given[0])):
        one = [part[i] for part in given]
        torch.testing.assert_close(found.points[i], function(*one), **EXACT)
        for part, expected in zip(PARTS, torch.func.jacfwd(function, (0, 1, 2))(*one), strict=True):
            torch.testing.assert_close(getattr(found, part)[i], expected, **EXACT)


def assert_equals_along(found, function, given):
    """Against one derivative along a random direction, of all parameters at once: for large bodies."""
    generator = torch.Generator().manual_seed(1)
    change = [torch.randn(part.shape, generator=generator, dtype=DOUBLE) for part in given]
    points, expected = torch.func.jvp(function, tuple(given), tuple(change))[:2]
    torch.testing.assert_close(found.points, points, **EXACT)
    pose, betas, age, transl = change
    got = (
        torch.einsum("bkxjc,bjc->bkx", found.pose, pose) + (found.betas @ betas[:, None, :, None])[..., 0]
        + found.age_offset * age[:, None, None] + found.transl[..., None] * transl[:, None]
    )  # fmt: skip
    torch.testing.assert_close(got, expected, **EXACT)


def batched(function):
    """Of a flat batch: the joints stand second."""

    def of_batch(pose, betas, age, transl):
        parameters = BodyParameters(pose[:, 0], pose[:, 1:], betas, age, transl)
        return function(parameters)

    return of_batch


def test_keypoints_of_any_body_equal_forward_mode(body):
    layout, given = mixed_layout(body.asset), arguments(body)
    found = KeypointJacobian(body, layout)(*given)
    assert_equals_forward_mode(found, lambda *one: body.keypoints(layout, posed(body, *one)), given)


@pytest.mark.parametrize("name", list(LAYOUTS)[:7])  # those of SMPL's joints
@pytest.mark.parametrize("which", ["mannequin", "anny"])
def test_keypoints_of_real_bodies_equal_forward_mode(request, which, name):
    body = SMPLA(
        request.getfixturevalue(f"{which}_asset"), dtype=DOUBLE, infant_corrective_scale=0.35, num_betas=4
    )
    given = arguments(body)
    found = KeypointJacobian(body, name)(*given)
    assert_equals_along(found, batched(lambda p: body.keypoints(name, p)), given)


def test_a_joint_does_not_move_with_its_own_rotation(mannequin_asset):
    body = SMPLA(mannequin_asset)
    given = [part.float() for part in arguments(body)]
    by_pose = KeypointJacobian(body, "smpl24")(*given).pose
    for joint in range(body.num_joints):
        assert (by_pose[:, joint, :, joint] == 0).all()


@pytest.mark.parametrize("age", [-0.7, -0.5, 0.0, 0.15, 0.3, 0.6, 1.0, 1.3])
def test_ages_at_anchors_between_and_beyond(age):
    body = RANDOM_BODIES["many templates"]()
    pose, betas, _, transl = arguments(body)
    given = pose, betas, torch.full((len(pose),), age, dtype=DOUBLE), transl
    found = KeypointJacobian(body, "coco17")(*given)
    assert_equals_along(found, batched(lambda p: body.keypoints("coco17", p)), given)


def surface_points(body, batch=3, count=7, seed=2):
    """Corners of faces, their shares (which need not sum to 1) and directions."""
    generator = torch.Generator().manual_seed(seed)
    faces = torch.randint(len(body.faces), (batch, count), generator=generator)
    return body.faces[faces], *(torch.randn(2, batch, count, 3, generator=generator, dtype=DOUBLE))


def surface_derivatives(body, given, corners, shares=None):
    """Points of the surface and all of their derivatives, from rows along the three axes."""
    surface = SurfaceJacobian(body)
    posed = surface.posed(*given)
    axes = torch.eye(3, dtype=body.dtype)
    found = [surface.rows(posed, corners, shares, along=a.expand(*corners.shape[:2], 3)) for a in axes]
    split = BodyParameters.from_vector(torch.stack([each.rows for each in found], 2), body)
    pose = torch.cat((split.global_orient[..., None, :], split.body_pose), -2)
    mass = split.transl.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(split.transl, torch.diag_embed(mass), rtol=0, atol=0)
    return KeypointDerivatives(found[0].points, pose, split.betas, split.age_offset, mass[..., 0])


def test_points_of_any_surface_equal_forward_mode(body):
    given = arguments(body)
    corners, shares, _ = surface_points(body)

    def points(i, pose, betas, age, transl):
        vertices = body(posed(body, pose, betas, age, transl)).vertices
        return (shares[i][..., None] * vertices[corners[i]]).sum(-2)

    found = surface_derivatives(body, given, corners, shares)
    for i in range(len(corners)):
        one = type(found)(*(part[i : i + 1] for part in found))
        assert_equals_forward_mode(one, lambda *one, i=i: points(i, *one), [p[i : i + 1] for p in given])


@pytest.mark.parametrize("which", ["mannequin", "anny"])
def test_points_of_real_surfaces_equal_forward_mode(request, which):
    body = SMPLA(request.getfixturevalue(f"{which}_asset"), dtype=DOUBLE, infant_corrective_scale=0.35)
    given = arguments(body, batch=2)
    vertices = torch.randint(body.num_vertices, (2, 300), generator=torch.Generator().manual_seed(0))
    found = surface_derivatives(body, given, vertices[..., None])
    chosen = lambda p: body(p).vertices[torch.arange(2)[:, None], vertices]  # noqa: E731
    assert_equals_along(found, batched(chosen), given)


def test_rows_are_linear_in_their_direction(body):
    given = arguments(body)
    corners, shares, along = surface_points(body)
    surface = SurfaceJacobian(body)
    whole = surface_derivatives(body, given, corners, shares)
    found = surface.rows(surface.posed(*given), corners, shares, along=along)
    torch.testing.assert_close(found.points, whole.points, **EXACT)
    torch.testing.assert_close(found.rows, torch.einsum("bsx,bsxp->bsp", along, by_all(whole)), **EXACT)


def test_small_changes_of_a_body_posed_vertex_by_vertex():
    """Against the formulas in NumPy, without the layer: central differences, good to the cube root of eps."""
    asset = random_body(parents=(-1, 0, 1, 1))
    body = SMPLA(asset, dtype=DOUBLE)
    given = arguments(body, batch=1)
    given[2][0] = 0.4
    found = surface_derivatives(body, given, torch.arange(body.num_vertices)[None, :, None])
    generator = np.random.default_rng(0)
    h = 1e-5
    for _ in range(5):
        change = [generator.normal(size=part.shape[1:]) for part in given]
        vertices = []
        for sign in (1, -1):
            moved = [part[0].numpy() + sign * h * c for part, c in zip(given, change, strict=True)]
            vertices.append(pose_body(asset, moved[1], moved[0], moved[3], float(moved[2]))[0])
        expected = torch.from_numpy((vertices[0] - vertices[1]) / (2 * h))
        by_pose, by_betas, by_age, by_transl = (torch.as_tensor(c) for c in change)
        got = (
            torch.einsum("kxjc,jc->kx", found.pose[0], by_pose) + found.betas[0] @ by_betas
            + found.age_offset[0] * by_age + by_transl
        )  # fmt: skip
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


def test_work_in_pieces_is_the_same_work(monkeypatch):
    body = RANDOM_BODIES["scaled correctives"]()
    given, points = arguments(body, batch=5), surface_points(body, batch=5)[:2]
    whole = surface_derivatives(body, given, *points)
    for entries in (1, 2 * points[0].shape[1]):
        monkeypatch.setattr(jacobian, "ENTRIES", entries)
        torch.testing.assert_close(surface_derivatives(body, given, *points), whole, **EXACT)


vector = st.tuples(*[st.floats(-1, 1)] * 3).map(lambda v: torch.tensor(v, dtype=DOUBLE))


@given(vector, st.floats(0, 12))
@example(torch.zeros(3, dtype=DOUBLE), 1.0)
@example(torch.tensor([1e-200, 0.0, 0.0], dtype=DOUBLE), 1.0)
@example(torch.tensor([0.0, 1e-8, 0.0], dtype=DOUBLE), 1.0)
@example(torch.tensor([0.25, 0.0, 0.0], dtype=DOUBLE), 1.0 - 1e-12)
@example(torch.tensor([0.0, 0.25, 0.0], dtype=DOUBLE), 1.0 + 1e-12)
@example(torch.tensor([0.0, 0.0, torch.pi], dtype=DOUBLE), 1.0)
@example(torch.tensor([0.0, 0.0, torch.pi], dtype=DOUBLE), 2.0)
@example(torch.tensor([1.0, 0.5, 0.875], dtype=DOUBLE), 11.0)
def test_forms_of_turns(direction, length):
    """The right Jacobian ``J = int_0^1 exp(-s [v]x) ds`` is read from one exponential of twice the size."""
    v = direction * length
    block = np.zeros((6, 6))
    block[:3, :3] = np.cross(np.eye(3), -v.numpy())  # -[v]x
    block[:3, 3:] = np.eye(3)
    expected = torch.from_numpy(expm(block)[:3, 3:])
    turns = Turns.of(v.view(1, 1, 3))
    torch.testing.assert_close(turns.jacobians[0, 0], expected, rtol=0, atol=1e-13)
    # Not by expm, whose squarings err by 2e-13 on turns of 16 rad: a hundred times more than ours.
    turn = torch.from_numpy(Rotation.from_rotvec(v.numpy()).as_matrix())
    torch.testing.assert_close(turns.matrices[0, 0], turn, rtol=0, atol=2e-14)
    torch.testing.assert_close(to_matrix(turns.quaternions[0, 0], "quaternion"), turn, rtol=0, atol=2e-14)
    if v.norm() <= 3.1416:
        inverse = torch.linalg.inv(expected)
        torch.testing.assert_close(inverse_right_jacobian(v), inverse, rtol=0, atol=1e-12)


def test_float32_is_as_exact_as_its_numbers(mannequin_asset):
    double, single = SMPLA(mannequin_asset, dtype=DOUBLE), SMPLA(mannequin_asset)
    given = arguments(double)
    corners, shares, along = surface_points(double)
    # Levers are of 2 m, sums of up to 220 numbers that partly cancel: some tens of roundings of 1e-7.
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    rounded: Any = [part.float() for part in given]
    found = KeypointJacobian(single, "openpose25")(*rounded)
    assert found.pose.dtype == torch.float32
    torch.testing.assert_close(found, KeypointJacobian(double, "openpose25")(*given), **close)
    surface, exact = SurfaceJacobian(single), SurfaceJacobian(double)
    rows = surface.rows(surface.posed(*rounded), corners, shares.float(), along=along.float())
    torch.testing.assert_close(rows, exact.rows(exact.posed(*given), corners, shares, along=along), **close)


def test_repeats_to_the_bit_and_does_not_depend_on_neighbours(mannequin_asset):
    body = SMPLA(mannequin_asset, dtype=DOUBLE)
    given = arguments(body, batch=4)
    found = KeypointJacobian(body, "coco17")
    torch.testing.assert_close(found(*given), KeypointJacobian(body, "coco17")(*given), rtol=0, atol=0)
    alone = found(*(part[2:3] for part in given))
    torch.testing.assert_close(alone, type(alone)(*(part[2:3] for part in found(*given))), **EXACT)


@pytest.mark.parametrize("name", ["coco17", "smpl24"])
def test_no_people(mannequin_asset, name):
    body = SMPLA(mannequin_asset, infant_corrective_scale=0.35)
    given = [part.float() for part in arguments(body, batch=0)]
    found = KeypointJacobian(body, name)(*given)
    count = len(LAYOUTS[name])
    assert found.points.shape == (0, count, 3)
    assert found.pose.shape == (0, count, 3, 24, 3)
    assert found.betas.shape == (0, count, 3, 10)
    assert found.age_offset.shape == (0, count, 3)


@pytest.mark.parametrize(("batch", "count"), [(0, 5), (2, 0), (0, 0)])
def test_no_points(batch, count):
    body = RANDOM_BODIES["scaled correctives"]()
    given = arguments(body, batch=batch)
    corners, shares, along = surface_points(body, batch, count)
    surface = SurfaceJacobian(body)
    rows = surface.rows(surface.posed(*given), corners, shares, along=along).rows
    assert rows.shape == (batch, count, 19)


@pytest.mark.parametrize("make", [lambda body: KeypointJacobian(body, "smpl24"), SurfaceJacobian])
def test_two_bodies_with_a_switch_are_refused(make, mannequin_asset):
    body = SMPLA(mannequin_asset, smil=mannequin_asset.at_age(1.0))
    with pytest.raises(ValueError, match="body: expected one body, got two"):
        make(body)


def test_a_layout_that_the_body_lacks_is_refused():
    body = SMPL(random_body())
    with pytest.raises(AssetError, match="has no joint"):
        KeypointJacobian(body, "smpl24")


def test_holds_no_licensed_numbers_and_can_be_copied(mannequin_asset):
    body = SMPLA(mannequin_asset)
    given = [part.float() for part in arguments(body)]
    found = KeypointJacobian(body, "coco17")
    assert not found.state_dict()
    assert not SurfaceJacobian(body).state_dict()
    assert not list(found.children())
    torch.testing.assert_close(copy.deepcopy(found)(*given), found(*given), rtol=0, atol=0)
