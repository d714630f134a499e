"""Bodies from joints, keypoints in space and vertices, against the bodies that these came from."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

import agebody
from agebody.engine.deform import age_coefficients
from agebody.fitting.inverse_kinematics import (
    CarriedPoints,
    Known,
    solve_identity,
    to_local,
    to_world,
    turn_towards,
)
from agebody.fitting.patches import PATCHES, find_patches
from agebody.fitting.points import fit_points, fit_vertices
from agebody.keypoints import LAYOUTS
from agebody.losses import joint_limits
from agebody.losses.limits import joint_limits_excess
from agebody.optim.least_squares import Stop
from agebody.people import random_people
from agebody.rotations import axis_angle_to_matrix

EXACT_MESH = 1e-4
"""[m] What is asked of noiseless vertices; float32 allows some 1e-6."""
EXACT_JOINTS = 1e-3
"""[m] What is asked of noiseless joints."""


@pytest.fixture(scope="module")
def mannequin(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, backend="torch")


@pytest.fixture(scope="module", params=["mannequin", "anny"])
def body(request):
    return agebody.SMPLA(request.getfixturevalue(f"{request.param}_asset"), backend="torch")


def people(body, count: int = 10, seed: int = 3) -> agebody.BodyParameters:
    """Of every age, newborns among them, in all postures."""
    return random_people(body, count, seed=seed).parameters


def largest(found: Tensor, true: Tensor) -> Tensor:
    return (found - true).norm(dim=-1).amax(-1)


def test_vertices_give_the_body_back(body):
    truth = people(body)
    vertices = body(truth).vertices
    fit = fit_vertices(body, vertices)
    assert fit.report.converged.all()
    assert largest(body(fit.parameters).vertices, vertices).max() < EXACT_MESH
    assert fit.error.max() < EXACT_MESH
    # Anny has a shape direction that is much like growth; the mannequin has not.
    if body.asset.metadata.kind == "mannequin":
        assert (fit.parameters.age_offset - truth.age_offset).abs().max() < 0.01
        assert (fit.parameters.betas - truth.betas).abs().max() < 0.1


def test_bodies_far_from_everyday_poses(body):
    torch.manual_seed(0)
    turned = 0.5 * torch.randn(8, body.num_joints - 1, 3)
    truth = {
        "body_pose": turned, "global_orient": 2 * torch.randn(8, 3), "transl": 3 * torch.randn(8, 3),
        "betas": torch.randn(8, body.num_betas), "age_offset": torch.linspace(0, 1, 8),
    }  # fmt: skip
    vertices = body(**truth).vertices
    assert fit_vertices(body, vertices).error.max() < EXACT_MESH


def test_joints_give_joints_back(body):
    truth = people(body)
    joints = body(truth).joints
    fit = fit_points(body, joints)
    found = body(fit.parameters).joints
    assert fit.report.converged.all()
    assert (found - joints).norm(dim=-1).mean(-1).max() < EXACT_JOINTS
    torch.testing.assert_close(fit.error, (found - joints).norm(dim=-1).mean(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["coco17", "openpose25"])
def test_sparse_layouts(mannequin, layout):
    truth = people(mannequin, 6)
    points = mannequin.keypoints(layout, truth)
    fit = fit_points(mannequin, points, layout)
    assert fit.error.max() < EXACT_JOINTS


@pytest.mark.parametrize("layout", ["h36m17", "coco17"])
def test_points_of_another_skeleton_break_no_necks(mannequin, anny_asset, layout):
    """Motion capture has bones of other lengths than the body. A neck or a wrist turned the wrong way round
    would meet its points a little better."""
    other = agebody.SMPLA(anny_asset)
    people = random_people(other, 16, seed=77)
    fit = fit_points(mannequin, other.keypoints(layout, people.parameters), layout)
    assert fit.error.max() < 0.02
    pose, age = fit.parameters.body_pose, fit.parameters.age_offset
    names = mannequin.asset.joint_names[1:]
    excess = joint_limits_excess(pose, joint_limits(names, age_offset=age)).rad2deg().abs().amax(-1)
    assert excess.amax(1).mean() < 20
    necks = [names.index(name) for name in ("neck", "head")]
    assert excess[:, necks].max() < 15
    assert pose[:, necks].norm(dim=-1).max() < 1.5
    assert pose.norm(dim=-1).max() <= torch.pi


def test_undetermined_rotations_stay_at_rest(mannequin):
    """A head that is turned about its own axis has its joints where they were."""
    head = mannequin.asset.joint_names.index("head")
    pose = torch.zeros(mannequin.num_joints - 1, 3)
    axis_free = torch.tensor([0.0, 0.8, 0.0])
    pose[head - 1] = axis_free
    points = mannequin(body_pose=pose).joints
    fit = fit_points(mannequin, points, betas=torch.zeros(10), age_offset=0.0)
    assert fit.error < EXACT_JOINTS
    assert fit.parameters.body_pose[head - 1].norm() < 0.05
    told = fit_vertices(mannequin, mannequin(body_pose=pose).vertices, age_offset=0.0)
    torch.testing.assert_close(told.parameters.body_pose[head - 1], axis_free, atol=1e-2, rtol=0)


@pytest.mark.parametrize("layout", ["coco17", "smpl24"])
def test_rounding_errors_turn_no_joint(mannequin, layout):
    """The start of a fit: a collar or an ankle has one point of COCO, which determines no rotation."""
    points = mannequin.keypoints(layout, people(mannequin))
    points = points + 0.005 * torch.randn(points.shape, generator=torch.Generator().manual_seed(1))
    nearby = points + 1e-6 * torch.randn(points.shape, generator=torch.Generator().manual_seed(2))
    first, second = (fit_points(mannequin, given, layout, max_iterations=0) for given in (points, nearby))
    assert largest(mannequin(first.parameters).joints, mannequin(second.parameters).joints).max() < 0.02
    assert first.error.mean() < 0.015


def test_noise_averages_out_over_a_mesh(mannequin):
    """86 unknowns share the noise of 3 V coordinates: the best that any estimate can do is sqrt(86 / 3 V)."""
    torch.manual_seed(1)
    vertices = mannequin(people(mannequin, 4)).vertices
    noise = 0.005
    fit = fit_vertices(mannequin, vertices + noise * torch.randn_like(vertices), sd=noise)
    found = mannequin(fit.parameters).vertices
    rms = (found - vertices).square().mean().sqrt()
    unknowns = fit.parameters.vector().shape[-1]
    assert rms < 1.5 * noise * math.sqrt(unknowns / vertices[0].numel())


def test_noisy_joints_make_probable_bodies(mannequin):
    torch.manual_seed(1)
    truth = people(mannequin, 8)
    joints = mannequin(truth).joints
    noisy = joints + 0.02 * torch.randn_like(joints)
    trusting, wary = (fit_points(mannequin, noisy, sd=sd) for sd in (1e-3, 0.02))
    assert wary.error.mean() > trusting.error.mean()
    assert wary.parameters.betas.norm(dim=-1).mean() < trusting.parameters.betas.norm(dim=-1).mean()
    error = lambda fit: (mannequin(fit.parameters).joints - joints).norm(dim=-1).mean()  # noqa: E731
    assert error(wary) < error(trusting)


def test_holes_in_a_mesh(body):
    """A person cut by the border of an image: a third of the vertices, and a tenth of the others."""
    truth = people(body, 2)
    vertices = body(truth).vertices
    torch.manual_seed(0)
    weights = (vertices[..., 1] < vertices[..., 1].quantile(0.66, dim=-1, keepdim=True)) & (
        torch.rand(vertices.shape[:-1]) < 0.9
    )
    holes = torch.where(weights[..., None], vertices, torch.nan)
    fit = fit_vertices(body, holes, weights=weights)
    assert fit.error.max() < 3e-4  # patches that are seen in part are known less well
    error = (body(fit.parameters).vertices - vertices).norm(dim=-1)
    assert error[weights].quantile(0.99) < 1e-3  # where a hand is cut off, a few vertices hardly weigh
    filled = fit_vertices(body, torch.where(weights[..., None], vertices, 7.0), weights=weights)
    assert torch.equal(filled.parameters.vector(), fit.parameters.vector())


def test_missing_joints(mannequin):
    """Other joints of each person, up to half of them."""
    points = mannequin(people(mannequin, 6, seed=11)).joints
    torch.manual_seed(0)
    weights = (torch.rand(6, 24) > torch.linspace(0, 0.5, 6)[:, None]).float()
    fit = fit_points(mannequin, torch.where(weights[..., None] > 0, points, torch.nan), weights=weights)
    assert fit.parameters.vector().isfinite().all()
    assert fit.error.max() < EXACT_JOINTS
    filled = fit_points(mannequin, torch.where(weights[..., None] > 0, points, 7.0), weights=weights)
    assert torch.equal(filled.parameters.vector(), fit.parameters.vector())


def test_a_moved_person_is_the_same_person(mannequin):
    vertices = mannequin(people(mannequin, 3)).vertices
    rotation = torch.from_numpy(Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()).float()
    moved = vertices @ rotation.T + torch.tensor([30.0, -4.0, 12.0])
    here, there = fit_vertices(mannequin, vertices), fit_vertices(mannequin, moved)
    torch.testing.assert_close(there.parameters.betas, here.parameters.betas, atol=2e-2, rtol=0)
    torch.testing.assert_close(there.parameters.body_pose, here.parameters.body_pose, atol=2e-2, rtol=0)
    assert there.error.max() < EXACT_MESH


def test_known_values_are_fixed(mannequin):
    truth = people(mannequin, 4)
    truth.betas[0, 0] = 6.5  # beyond what is ever found
    vertices = mannequin(truth).vertices
    fit = fit_vertices(mannequin, vertices, betas=truth.betas, age_offset=truth.age_offset)
    assert torch.equal(fit.parameters.betas, truth.betas)
    assert torch.equal(fit.parameters.age_offset, truth.age_offset)
    assert fit.error.max() < EXACT_MESH
    ages = torch.tensor([torch.nan, 0.5, torch.nan, 0.0])
    some = fit_points(mannequin, mannequin(truth).joints, age_offset=ages)
    known = ~ages.isnan()
    assert torch.equal(some.parameters.age_offset[known], ages[known])
    assert some.parameters.age_offset.isfinite().all()
    double = agebody.SMPLA(mannequin.asset, dtype=torch.float64)
    exact = fit_points(double, double().joints[None], age_offset=0.3, max_iterations=0)
    assert exact.parameters.age_offset.item() == 0.3


def test_leading_dimensions_and_chunks(mannequin):
    joints = mannequin(people(mannequin, 6)).joints
    whole = fit_points(mannequin, joints)
    shaped = fit_points(mannequin, joints.reshape(2, 3, 24, 3), batch_size=4)
    assert shaped.error.shape == shaped.report.converged.shape == (2, 3)
    assert shaped.parameters.body_pose.shape == (2, 3, 23, 3)
    # Products of other sizes round otherwise, and what joints do not tell follows the rounding.
    torch.testing.assert_close(shaped.error.flatten(), whole.error, atol=1e-4, rtol=0)
    alone = fit_points(mannequin, joints[0])
    assert alone.error.shape == ()
    assert alone.parameters.betas.shape == (10,)
    nobody = fit_points(mannequin, joints[:0])
    assert nobody.error.shape == (0,)
    assert nobody.parameters.transl.shape == (0, 3)


def test_neither_autocast_nor_gradients_get_in(mannequin_asset):
    body = agebody.SMPLA(mannequin_asset, backend="torch")
    joints = body(people(body, 2)).joints
    with torch.autocast("cpu", torch.bfloat16):  # what is made once a layout is made here
        inside = fit_points(body, joints.clone().requires_grad_())
    outside = fit_points(agebody.SMPLA(mannequin_asset, backend="torch"), joints)
    assert torch.equal(inside.parameters.vector(), outside.parameters.vector())
    assert not inside.error.requires_grad


def test_a_broken_body_fails_alone(mannequin):
    joints = mannequin(people(mannequin, 3)).joints
    broken = joints.clone()
    broken[1, 4, 0] = torch.nan
    weights = torch.ones(3, 24)
    weights[2, 2:] = 0
    fit = fit_points(mannequin, broken, weights=weights)
    assert fit.report.converged.tolist() == [True, False, False]
    assert fit.report.stop[1] == Stop.NOT_FINITE
    assert fit.parameters.vector().isfinite().all()
    assert fit.error.isnan().tolist() == [False, True, False]
    assert fit.error[0] < EXACT_JOINTS


def test_bodies_of_one_age(mannequin_asset):
    body = agebody.SMPL(mannequin_asset, backend="torch", num_betas=0, dtype=torch.float64)
    torch.manual_seed(0)
    vertices = body(body_pose=0.3 * torch.randn(2, 23, 3).double()).vertices
    fit = fit_vertices(body, vertices)
    assert fit.error.max() < 1e-6
    assert fit.parameters.betas.shape == (2, 0)
    with pytest.raises(ValueError, match="age_offset: this body has one age"):
        fit_vertices(body, vertices, age_offset=0.0)


def test_points_in_one_place_are_no_body(mannequin):
    """Missing people are zeros in many files."""
    joints = torch.stack((mannequin().joints, torch.zeros(24, 3)))
    assert fit_points(mannequin, joints).report.converged.tolist() == [True, False]


@pytest.mark.usefixtures("unchecked")
def test_errors(mannequin, mannequin_asset):
    joints = torch.zeros(2, 24, 3)
    with pytest.raises(ValueError, match="vertices: expected shape"):
        fit_vertices(mannequin, joints)
    with pytest.raises(ValueError, match="points: expected shape"):
        fit_points(mannequin, joints[:, :20])
    tall = mannequin().vertices
    for scale in (100, 1000):
        with pytest.raises(ValueError, match=r"vertices: expected metres, got points .* from their mean"):
            fit_vertices(mannequin, scale * tall)
        with pytest.raises(ValueError, match="points: expected metres"):
            fit_points(mannequin, scale * mannequin().joints[None].expand(2, 24, 3))
    with pytest.raises(TypeError, match="topology: expected a TopologyMap, such as .* got str"):
        fit_vertices(mannequin, tall, topology="smpl2mhr_mapping.npz")
    with pytest.raises(TypeError, match="points: expected a floating type"):
        fit_points(mannequin, joints.long())
    with pytest.raises(ValueError, match="weights: expected finite"):
        fit_points(mannequin, joints, weights=torch.full((24,), -1.0))
    with pytest.raises(ValueError, match="weights: expected a shape"):
        fit_points(mannequin, joints, weights=torch.ones(3))
    with pytest.raises(ValueError, match="sd"):
        fit_points(mannequin, joints, sd=0.0)
    with pytest.raises(ValueError, match="batch_size"):
        fit_points(mannequin, joints, batch_size=0)
    with pytest.raises(ValueError, match="broadcast"):
        fit_points(mannequin, joints, age_offset=torch.zeros(3))
    with pytest.raises(ValueError, match="betas"):
        fit_points(mannequin, joints, betas=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="betas: expected finite"):
        fit_points(mannequin, joints, betas=torch.full((10,), torch.nan))
    with pytest.raises(ValueError, match="age_offset: expected finite"):
        fit_vertices(mannequin, torch.zeros(6890, 3), age_offset=math.inf)
    two = agebody.SMPLA(mannequin_asset, smil=mannequin_asset.at_age(1.0), backend="torch")
    with pytest.raises(ValueError, match="smil="):
        fit_points(two, joints)


def exact(body) -> agebody.SMPLA:
    return agebody.SMPLA(body.asset, backend="torch", dtype=torch.float64)


@pytest.mark.parametrize("layout", ["smplx45", "coco17"])
def test_points_are_affine_in_the_identity(body, layout):
    body = exact(body)
    carried = CarriedPoints(body, LAYOUTS[layout])
    torch.manual_seed(0)
    pose = torch.randn(3, body.num_joints, 3).double()
    local = axis_angle_to_matrix(pose)
    world = to_world(carried, local)
    torch.testing.assert_close(to_local(carried, world), local, atol=1e-12, rtol=0)
    turned: dict[str, Any] = {"global_orient": pose[:, 0], "body_pose": pose[:, 1:]}
    betas, age = torch.randn(3, body.num_betas).double(), torch.tensor([0.1, 0.6, 0.97]).double()
    change = torch.cat((betas, age_coefficients(age, body.age_anchors)), -1)
    found = (carried.directions(world)[..., 1:] @ change[:, None, :, None])[..., 0]
    expected = body.keypoints(layout, **turned, betas=betas, age_offset=age) - body.keypoints(
        layout, **turned
    )
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_identity_is_the_best_of_all_ages(body):
    """Against least squares in the betas at every age of a grid."""
    body = exact(body)
    carried = CarriedPoints(body, LAYOUTS["smplx45"])
    torch.manual_seed(0)
    world = to_world(carried, axis_angle_to_matrix(0.5 * torch.randn(5, body.num_joints, 3).double()))
    directions = carried.directions(world)
    missing = 0.1 * torch.randn(5, 45, 3).double()
    weights = torch.rand(5, 45).double()
    sd, unknown = 0.01, torch.full((5,), torch.nan).double()
    found = solve_identity(carried, directions, missing, weights, Known(None, unknown), sd=sd)

    def cost(rows: np.ndarray, ages: Tensor) -> np.ndarray:
        """(5, ages), betas and translation at their best."""
        costs = np.empty((5, len(ages)))
        for row, (column, age) in itertools.product(rows, enumerate(ages)):
            growth = age_coefficients(age, body.age_anchors)
            aim = missing[row] - directions[row, ..., 1 + body.num_betas :] @ growth
            columns = torch.cat((directions[row, ..., 1 : 1 + body.num_betas],
                                 torch.eye(3).double().expand(45, 3, 3)), -1)  # fmt: skip
            root = weights[row].sqrt()[:, None, None]
            prior = torch.cat((sd * torch.eye(body.num_betas), torch.zeros(body.num_betas, 3)), 1).double()
            system = torch.cat(((root * columns).flatten(0, 1), prior))
            right = torch.cat(((root[..., 0] * aim).flatten(), torch.zeros(body.num_betas).double()))
            best = torch.linalg.lstsq(system, right[:, None]).solution
            costs[row, column] = (system @ best - right[:, None]).square().sum()
        return costs

    grid = torch.linspace(0, 1, 41).double()
    lowest = cost(np.arange(5), grid).min(1)
    for row in range(5):
        own = cost(np.array([row]), found.age_offset[row : row + 1])[row, 0]
        assert own <= lowest[row] * (1 + 1e-9)
    assert ((found.age_offset >= 0) & (found.age_offset <= 1)).all()


def test_turns_of_rigid_parts(mannequin):
    """Points that turn as one turn every joint so; a joint that carries nothing seen follows its parent."""
    carried = CarriedPoints(mannequin, LAYOUTS["smplx45"])
    source = mannequin.keypoints("smplx45")[None]
    rotation = torch.from_numpy(Rotation.from_rotvec([0.3, 2.0, -1.0]).as_matrix()).float()
    turns = turn_towards(carried, source, source @ rotation.T + 0.3, torch.ones(1, 45), prior=1e-3)
    # Off by what the prior does to a forearm, whose points are nearly on a line.
    torch.testing.assert_close(turns, rotation.expand_as(turns), atol=5e-3, rtol=0)
    arm = mannequin.asset.joint_names.index("left_shoulder")
    pose = torch.zeros(1, 23, 3)
    pose[0, arm - 1, 2] = -1.2
    weights = torch.ones(1, 45)
    hidden = [
        i for i, name in enumerate(LAYOUTS["smplx45"].names) if "left_hand" in name or "left_wrist" in name
    ]
    hidden += [i for i in range(24, 45) if "left" in LAYOUTS["smplx45"].names[i]]
    weights[:, hidden] = 0
    turns = turn_towards(carried, source, mannequin.keypoints("smplx45", body_pose=pose), weights, prior=1e-3)
    expected = torch.from_numpy(Rotation.from_rotvec([0, 0, -1.2]).as_matrix()).float()
    for name in ("left_shoulder", "left_elbow", "left_wrist", "left_hand"):
        found = turns[0, mannequin.asset.joint_names.index(name)]
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_patches_cover_the_mesh(body):
    layout = find_patches(body.asset).layout
    assert layout is find_patches(body.asset).layout
    _, rows = layout.resolve(body.asset)
    owners = rows.tocsc()
    assert (np.diff(owners.indptr) == 1).all()  # every vertex is in one patch
    np.testing.assert_allclose(rows.sum(1), 1)
    assert 0.8 * PATCHES < len(layout) < 1.8 * PATCHES
    part = body.asset.skin_joints[np.arange(body.num_vertices), body.asset.skin_weights.argmax(1)]
    first = np.zeros(len(layout), int)
    first[owners.indices] = part
    assert (first[owners.indices] == part).all()  # and every patch in one part


def test_only_probable_people_where_the_points_are_are_accepted(body):
    """Solvers converge on wrong points as well."""
    truth, generator = people(body, 6), torch.Generator().manual_seed(0)
    joints, vertices = body(truth).joints, body(truth).vertices
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    half = torch.arange(joints.shape[1]) % 2
    mixed = torch.where(half[:, None] > 0, joints, joints.roll(1, 0))
    moved = joints + 0.5 * torch.nn.functional.one_hot(torch.tensor(20), joints.shape[1])[:, None]
    noise = 0.02 * torch.randn(joints.shape, generator=generator)
    right = [
        fit_points(body, joints),
        fit_points(body, joints * -mirror),  # a half turn: upside down
        fit_points(body, joints + noise, sd=0.02),
        fit_vertices(body, vertices),
    ]
    wrong = [
        fit_points(body, points)
        for points in (
            joints * mirror,
            3 * joints,
            joints.flip(1),
            mixed,
            moved,
            joints * torch.tensor([1, 1, 0]),
        )
    ] + [
        fit_points(body, joints, age_offset=4.0),
        fit_points(body, joints, weights=(torch.arange(joints.shape[1]) == 0).float()),
        fit_vertices(body, vertices * mirror),
        fit_vertices(body, vertices.flip(1)),
        fit_vertices(body, 1.5 * vertices),
    ]
    assert sum(int(fit.report.converged.sum()) for fit in wrong) > 30
    assert [int(fit.report.accepted.sum()) for fit in right] == [6] * len(right)
    assert [int(fit.report.accepted.sum()) for fit in wrong] == [0] * len(wrong)
