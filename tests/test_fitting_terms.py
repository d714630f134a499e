"""Terms of fits: cost, gradient and normal matrix against formulas and autograd; stages; free."""

from typing import Any

import pytest
import torch
from torch import Tensor

import agebody
from agebody.cameras import Camera
from agebody.keypoints import joint_layout
from agebody.losses import (
    MahalanobisPrior,
    MaxMixturePrior,
    gmof,
    huber,
    hyperextension_prior,
    joint_limits,
    joint_limits_prior,
)
from agebody.losses.limits import JointLimits, joint_limits_excess
from agebody.optim.least_squares import Stop
from agebody.optim.limits import JointLimitPrior, bone_frames, excess_and_jacobian
from agebody.optim.posed import Turns
from agebody.optim.problem import Stage, add_blocks
from agebody.optim.stages import fit_bodies
from agebody.optim.standard_errors import _cut_variance, _stature_gradient
from agebody.optim.state import FreeVariables, State
from agebody.optim.terms import (
    Depth,
    HyperextensionPrior,
    ParameterPrior,
    Points,
    PosePrior,
    Reprojection,
    Robust,
    ShapePrior,
    project,
    robust_weights,
)
from agebody.parameters import GROUPS, BodyParameters, group_slices
from agebody.rotations import matrix_to_axis_angle, to_matrix

DOUBLE = torch.float64
SIZE = (640.0, 480.0)


@pytest.fixture(scope="module")
def body(mannequin_asset) -> agebody.SMPLA:
    return agebody.SMPLA(mannequin_asset, dtype=DOUBLE)


def random_vector(body: agebody.BodyModel, count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    pose = 0.4 * torch.randn(count, body.num_joints - 1, 3, dtype=DOUBLE)
    parameters = BodyParameters(
        torch.randn(count, 3, dtype=DOUBLE),
        pose,
        torch.randn(count, body.num_betas, dtype=DOUBLE),
        torch.rand(count, dtype=DOUBLE),
        torch.tensor([0.0, 0.0, 4.0], dtype=DOUBLE) + 0.3 * torch.randn(count, 3, dtype=DOUBLE),
    )
    return parameters.vector()


def posed(body: agebody.BodyModel, vector: Tensor, layout: str) -> Tensor:
    parameters = BodyParameters.from_vector(vector, body)
    return body.keypoints(layout, parameters)


def check(body, term, cost, count=3, groups=GROUPS, joints=None, vector=None):
    """Cost and gradient are those of a formula, rows choose bodies, and the curvature is not negative."""
    vector = random_vector(body, count) if vector is None else vector
    rows = torch.tensor([2, 0])
    free = FreeVariables(body, groups, joints)
    block = term(State(body, vector[rows], rows, free))
    quadratic = add_blocks([(2.0, block)], len(rows), len(free), vector)
    vector = vector.clone().requires_grad_()
    expected = 2 * cost(vector)
    torch.testing.assert_close(quadratic.cost, expected[rows].detach(), rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected.sum(), vector)
    gradient = gradient[rows][:, free.columns]
    scale = gradient.abs().max()
    assert scale > 0
    torch.testing.assert_close(quadratic.gradient, gradient, rtol=1e-8, atol=1e-10 * float(scale))
    assert (torch.linalg.eigvalsh(quadratic.normal) > -1e-9 * float(scale)).all()
    return quadratic


def camera(count: int, *, posed: bool = False, distortion: bool = False) -> Camera:
    torch.manual_seed(7)
    found = Camera.guess(SIZE, dtype=DOUBLE).expand(count)
    found = found._replace(focal=found.focal * torch.linspace(0.9, 1.2, count, dtype=DOUBLE)[:, None])
    if posed:
        turns = to_matrix(0.3 * torch.randn(count, 3, dtype=DOUBLE), "axis_angle")
        found = found._replace(rotation=turns, translation=0.2 * torch.randn(count, 3, dtype=DOUBLE))
    if distortion:
        found = found._replace(distortion=torch.tensor([0.1, -0.02, 0.003, -0.002], dtype=DOUBLE))
    return found


@pytest.mark.parametrize("robust", ["gmof", "huber", None])
@pytest.mark.parametrize("kind", ["plain", "posed", "distorted"])
def test_reprojection(body, robust, kind):
    count, views = 3, 2
    torch.manual_seed(1)
    seen = camera(count, posed=kind == "posed", distortion=kind == "distorted").map(lambda t: t)
    keypoints = 200 + 150 * torch.randn(count, views, 17, 2, dtype=DOUBLE)
    weights = torch.rand(count, views, 17, dtype=DOUBLE)
    weights[:, :, 3] = 0
    keypoints[:, :, 3] = torch.nan
    unit = 1 + torch.rand(count, views, dtype=DOUBLE)
    lens = seen.expand(count) if kind != "distorted" else seen._replace(distortion=seen.distortion)
    lens = lens.expand(count).map(lambda part: part[:, None])
    term = Reprojection("coco17", keypoints, weights, lens, unit, robust=robust, robust_scale=30.0)

    def cost(vector: Tensor) -> Tensor:
        pixels = lens.project(posed(body, vector, "coco17")[:, None]).pixels
        offsets = torch.where((weights > 0)[..., None], (pixels - keypoints) / unit[..., None, None], 0)
        penalty = {"gmof": lambda r: gmof(r, 30.0), "huber": lambda r: huber(r, 30.0), None: torch.square}
        return (weights[..., None] * penalty[robust](offsets)).sum((1, 2, 3)) / 2

    check(body, term, cost)
    check(body, term, cost, groups=("body_pose", "age_offset"), joints=("left_knee", "neck"))


def test_the_normal_matrix_without_robustness_is_that_of_gauss_and_newton(body):
    count = 3
    keypoints = 200 + 150 * torch.randn(count, 1, 17, 2, dtype=DOUBLE)
    weights = torch.rand(count, 1, 17, dtype=DOUBLE)
    lens = camera(count).map(lambda part: part[:, None])
    unit = torch.ones(count, 1, dtype=DOUBLE)
    term = Reprojection("coco17", keypoints, weights, lens, unit, robust=None)
    vector, rows = random_vector(body, count), torch.arange(count)
    found = term(State(body, vector, rows, FreeVariables(body)))

    def residuals(one: Tensor, index: int) -> Tensor:
        pixels = lens.map(lambda part: part[index, 0]).project(posed(body, one[None], "coco17")[0]).pixels
        return (weights[index, 0].sqrt()[:, None] * (pixels - keypoints[index, 0])).flatten()

    for index in range(count):
        jacobian = torch.func.jacfwd(residuals)(vector[index], index)
        torch.testing.assert_close(found.normal[index], jacobian.T @ jacobian, rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize("robust", ["gmof", "huber", None])
def test_points(body, robust):
    torch.manual_seed(2)
    points = torch.randn(3, 24, 3, dtype=DOUBLE) + torch.tensor([0.0, 0, 4], dtype=DOUBLE)
    weights = torch.rand(3, 24, dtype=DOUBLE)
    weights[:, 5], points[:, 5] = 0, torch.nan

    def cost(vector: Tensor) -> Tensor:
        offsets = torch.where((weights > 0)[..., None], posed(body, vector, "smpl24") - points, 0)
        distance = offsets.square().sum(-1).clamp(min=1e-30).sqrt()
        penalty = {"gmof": lambda r: gmof(r, 0.3), "huber": lambda r: huber(r, 0.3), None: torch.square}
        return (weights * penalty[robust](distance)).sum(1) / 2

    check(body, Points("smpl24", points, weights, robust=robust, robust_scale=0.3), cost)


@pytest.mark.parametrize("placed", [False, True])
def test_depth_is_that_of_the_root_along_the_optical_axis(body, placed):
    lens = camera(3, posed=placed)
    depth = torch.tensor([3.0, torch.nan, 5.0], dtype=DOUBLE)

    def cost(vector: Tensor) -> Tensor:
        z = lens.to_camera(posed(body, vector, "smpl24"))[:, 0, 2]
        return torch.where(depth.isnan(), 0, ((z - depth.nan_to_num(0)) / 0.02) ** 2) / 2

    check(body, Depth(depth, 0.02, lens), cost)


def test_priors_of_poses(body):
    names = body.asset.joint_names[1:]
    torch.manual_seed(3)
    samples = 0.5 * torch.randn(400, len(names), 3, dtype=DOUBLE)
    priors = [
        joint_limits_prior(names, dtype=DOUBLE),
        MahalanobisPrior.from_poses(samples, names, dtype=DOUBLE),
        MaxMixturePrior.from_poses(samples, 3, names, dtype=DOUBLE),
        MahalanobisPrior.from_poses(samples[:, :12], names[:12], dtype=DOUBLE),  # knows twelve joints
    ]
    for prior in priors:
        whole = prior.for_joints(names)

        def cost(vector: Tensor, whole=whole) -> Tensor:
            pose = BodyParameters.from_vector(vector, body).body_pose
            return whole(pose, reduction="none") / 2

        check(body, PosePrior(prior, body), cost)
        check(body, PosePrior(prior, body), cost, joints=("left_hip", "right_hip", "neck"))


def test_limits(body):
    ages = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    names = body.asset.joint_names[1:]
    limits = joint_limits(names, age_offset=ages)
    vector = random_vector(body, 3)
    vector[:, 3 : 3 + 69] *= 3

    def cost(vector: Tensor) -> Tensor:
        excess = joint_limits_excess(BodyParameters.from_vector(vector, body).body_pose, limits)
        return (excess / 0.1).square().sum((1, 2)) / 2

    check(body, JointLimitPrior(body, ages, sd=0.1), cost, vector=vector)
    check(body, JointLimitPrior(body, ages, sd=0.1), cost, vector=vector, joints=("left_hip", "left_knee"))


@pytest.mark.parametrize("reach", [0.5, 1.5, 2.9])
def test_slopes_of_limits_are_those_of_autograd(reach):
    limits = joint_limits(dtype=DOUBLE)
    torch.manual_seed(4)
    pose = torch.nn.functional.normalize(torch.randn(100, 23, 3, dtype=DOUBLE), dim=-1)
    pose = reach * torch.rand(100, 23, 1, dtype=DOUBLE) * pose
    excess, slopes = twist_first(pose, limits)
    order = bone_frames(limits.axes, pose)[1][None]
    expected = joint_limits_excess(pose, limits).take_along_dim(order, -1)
    torch.testing.assert_close(excess, expected, rtol=0, atol=1e-14)
    assert (excess != 0).any()
    for i, axis in enumerate(torch.eye(3, dtype=DOUBLE)):
        column = torch.func.jvp(
            lambda p: joint_limits_excess(p, limits), (pose,), (axis.expand(pose.shape),)
        )[1]
        column = column.take_along_dim(order, -1)
        torch.testing.assert_close(slopes[..., i], column, rtol=0, atol=1e-11)


def twist_first(pose: Tensor, limits: JointLimits) -> tuple[Tensor, Tensor]:
    frames, order = bone_frames(limits.axes, pose)
    bounds = (bound.take_along_dim(order, -1).expand(pose.shape) for bound in limits[1:])
    return excess_and_jacobian(Turns.of(pose), frames, *bounds)


def test_slopes_of_limits_at_rest_and_at_half_turns_are_finite():
    whole = joint_limits(dtype=DOUBLE)
    narrow = JointLimits(whole.axes, torch.full_like(whole.low, 0.1), torch.full_like(whole.high, 0.2))
    rest = torch.zeros(1, 23, 3, dtype=DOUBLE)
    _, slopes = twist_first(rest, narrow)
    torch.testing.assert_close(slopes, bone_frames(whole.axes, rest)[0].expand_as(slopes))
    for axis in range(3):
        pose = rest.clone()
        pose[..., axis] = torch.pi
        assert twist_first(pose, narrow)[1].isfinite().all()


def test_bend_shape_and_age(body):
    names = body.asset.joint_names[1:]
    read = lambda vector: BodyParameters.from_vector(vector, body)  # noqa: E731
    bend = lambda v: hyperextension_prior(read(v).body_pose, joint_names=names, reduction="none") / 2  # noqa: E731
    check(body, HyperextensionPrior(body), bend)
    check(body, ShapePrior(), lambda v: read(v).betas.square().sum(-1) / 2)
    weights = torch.linspace(0.5, 2, body.num_betas, dtype=DOUBLE)
    check(body, ShapePrior(weights), lambda v: (weights * read(v).betas.square()).sum(-1) / 2)
    expected = torch.tensor([0.3, torch.nan, 0.9], dtype=DOUBLE)

    def age(vector: Tensor) -> Tensor:
        off = (read(vector).age_offset - expected.nan_to_num(0)) / 0.1
        return torch.where(expected.isnan(), 0, off.square()) / 2

    check(body, ParameterPrior("age_offset", expected, 0.1), age)


@pytest.mark.parametrize("group", GROUPS)
def test_starts_as_evidence(body, group):
    """Half of the squared differences in standard deviations; of rotations, of the angle between them."""
    value = getattr(BodyParameters.from_vector(random_vector(body, 3, seed=5), body), group)
    sd = 0.1 + torch.rand(value.shape, dtype=DOUBLE)

    def cost(vector: Tensor) -> Tensor:
        mine = getattr(BodyParameters.from_vector(vector, body), group)
        difference = mine - value
        if group in ("global_orient", "body_pose"):
            between = to_matrix(value, "axis_angle").mT @ to_matrix(mine, "axis_angle")
            difference = matrix_to_axis_angle(between)
        return (difference / sd).square().reshape(3, -1).sum(-1) / 2

    check(body, ParameterPrior(group, value, sd), cost)
    others = FreeVariables(body, [name for name in GROUPS if name != group])
    state = State(body, random_vector(body, 3), torch.arange(3), others)
    assert ParameterPrior(group, value, sd)(state) is None


def test_statures_grow_by_their_gradient(body):
    parameters = BodyParameters.from_vector(random_vector(body, 3), body)
    found = _stature_gradient(body, parameters)
    betas, age = parameters.betas.requires_grad_(), parameters.age_offset.requires_grad_()
    tall = agebody.measure.stature(body.shape(betas=betas, age_offset=age).rest_vertices)
    by_betas, by_age = torch.autograd.grad(tall.sum(), (betas, age))
    torch.testing.assert_close(found["betas"], by_betas)
    torch.testing.assert_close(found["age_offset"][:, 0], by_age)


def test_variances_within_bounds_are_integrals():
    for sd, mode, low, high in ((0.1, 0.3, 0.0, 1.0), (0.5, 0.0, 0.0, 1.0), (40.0, 0.2, -0.05, 0.45)):
        grid = torch.linspace(low, high, 200001, dtype=DOUBLE)
        density = torch.exp(-((grid - mode) / sd).square() / 2)
        expected = (density * (grid - mode).square()).sum() / density.sum()
        args = (torch.tensor([x], dtype=DOUBLE) for x in (sd**2, mode, low, high))
        torch.testing.assert_close(_cut_variance(*args)[0], expected, rtol=1e-3, atol=0)
    one = torch.ones(1, dtype=DOUBLE)
    assert _cut_variance(one, one, one, one) == 0  # it is known
    torch.testing.assert_close(
        _cut_variance(one * torch.nan, 0 * one, 0 * one, one), one / 3, rtol=1e-3, atol=0
    )


def test_terms_of_fixed_variables_are_left_out(body):
    free = FreeVariables(body, ("transl",))
    state = State(body, random_vector(body, 2), torch.arange(2), free)
    prior = PosePrior(joint_limits_prior(body.asset.joint_names[1:], dtype=DOUBLE), body)
    ages = torch.zeros(2, dtype=DOUBLE)
    limits = JointLimitPrior(body, ages)
    for term in (
        prior,
        ShapePrior(),
        HyperextensionPrior(body),
        ParameterPrior("age_offset", ages, 1.0),
        limits,
    ):
        assert term(state) is None


def test_projection_is_the_cameras_also_behind_it():
    torch.manual_seed(5)
    points = torch.randn(50, 3, dtype=DOUBLE)
    points[:, 2] = torch.linspace(-2, 3, 50, dtype=DOUBLE)
    for lens in (camera(1), camera(1, posed=True), camera(1, distortion=True)):
        lens = lens.map(lambda part: part[0] if part.shape[:1] == (1,) else part)
        pixels, slopes = project(lens, points)
        torch.testing.assert_close(pixels, lens.project(points).pixels)
        for i, axis in enumerate(torch.eye(3, dtype=DOUBLE)):
            tangent = axis.expand(points.shape)
            column = torch.func.jvp(lambda p, lens=lens: lens.project(p).pixels, (points,), (tangent,))[1]
            torch.testing.assert_close(slopes[..., i], column)


def test_weights_of_robust_costs():
    squared = torch.tensor([0.0, 0.25, 1.0, 100.0], dtype=DOUBLE, requires_grad=True)
    costs: tuple[tuple[Robust, Any], ...] = (("gmof", gmof), ("huber", huber))
    for robust, reference in costs:
        cost, weights = robust_weights(squared, robust, 0.7)
        torch.testing.assert_close(cost, reference(squared.sqrt(), 0.7))
        (slope,) = torch.autograd.grad(cost.sum(), squared)
        torch.testing.assert_close(weights, slope)


@pytest.mark.usefixtures("unchecked")
def test_unknown_names(body):
    with pytest.raises(ValueError, match="groups.*global_orient.*got pose"):
        FreeVariables(body, ("pose",))
    with pytest.raises(ValueError, match="joints.*got tail"):
        FreeVariables(body, joints=("tail",))
    with pytest.raises(ValueError, match="groups"):
        FreeVariables(agebody.SMPL(body.asset), ("age_offset",))
    with pytest.raises(ValueError, match="robust.*got 'cauchy'"):
        robust_weights(torch.ones(1), "cauchy", 1.0)  # pyright: ignore
    with pytest.raises(ValueError, match="stages"):
        fit_bodies(body, {}, [], BodyParameters.zeros(body, 1))
    other = agebody.SMPLA(body.asset, num_betas=3, dtype=DOUBLE)
    terms, start = {"shape": ShapePrior()}, BodyParameters.zeros(body, 1)
    with pytest.raises(ValueError, match="start"):
        fit_bodies(body, terms, [Stage()], BodyParameters.zeros(other, 1))
    for stage, message in (
        (Stage({"shaep": 1.0}), "expected names of terms .shape., got shaep"),
        (Stage({"shape": -1.0}), "expected a weight of 0 or more of 'shape', got -1.0"),
        (Stage(scales={"shape": 2.0}), "expected scales of terms with a robust cost, got one of 'shape'"),
        (Stage(scales={"points": 0.0}), "expected names of terms"),
    ):
        with pytest.raises(ValueError, match=f"stages: {message}"):
            fit_bodies(body, terms, [stage], start)


def test_parameters_as_a_vector(body):
    vector = random_vector(body, 4)
    parameters = BodyParameters.from_vector(vector, body)
    assert torch.equal(parameters.vector(), vector)
    assert [part.shape[0] for part in parameters] == [4] * 5
    ends = [part.stop for part in group_slices(body).values()]
    assert ends[-1] == vector.shape[1]
    assert list(group_slices(body)) == list(GROUPS)


def test_each_body_for_itself(body):
    """Bodies meet their targets, one whose target is not finite stays, and nobody sees another."""
    truth = BodyParameters.from_vector(random_vector(body, 4, seed=8), body)
    target = body.keypoints("smpl24", truth)
    target[2] = torch.inf
    start = truth._replace(body_pose=truth.body_pose + 0.1, transl=truth.transl + 0.05)
    term = Points("smpl24", target, torch.ones(4, 24, dtype=DOUBLE))
    groups = ("global_orient", "body_pose", "transl")
    stage = Stage(groups=groups, max_iterations=60, cost_tolerance=1e-10)
    parameters, report = fit_bodies(body, {"points": term}, [stage], start)
    assert report.stop[2] == Stop.NOT_FINITE
    assert report.converged.tolist() == [True, True, False, True]
    assert torch.equal(parameters.body_pose[2], start.body_pose[2])
    errors = (body.keypoints("smpl24", parameters) - target).norm(dim=-1).amax(1)
    assert errors[[0, 1, 3]].max() < 1e-5
    assert torch.equal(parameters.betas, start.betas)  # not free
    torch.testing.assert_close(report.terms["points"], report.cost)


def test_bounds(body):
    """The age offset and betas stay within their ranges."""
    count = 3
    start = BodyParameters.zeros(body, count)
    wanted = torch.tensor([-3.0, 0.4, 7.0], dtype=DOUBLE)
    bounds = torch.zeros(count), torch.tensor([1.0, 1.0, 0.8])
    stages = [Stage(groups=("age_offset",))]
    parameters, report = fit_bodies(
        body, {"age": ParameterPrior("age_offset", wanted, 0.1)}, stages, start, age_bounds=bounds
    )
    torch.testing.assert_close(parameters.age_offset, torch.tensor([0.0, 0.4, 0.8], dtype=DOUBLE))
    assert report.converged.all()
    layout = joint_layout("pelvis")
    assert layout is joint_layout("pelvis")
    assert layout is not joint_layout("head")
