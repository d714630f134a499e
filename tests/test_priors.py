"""Priors of shape and pose, against formulas written out, SciPy, and what people can do."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import multivariate_normal
from torch._subclasses import FakeTensorMode

from agebody import SMPLA, rotations
from agebody.assets.asset import SMPL_JOINT_NAMES
from agebody.losses import (
    MahalanobisPrior,
    MaxMixturePrior,
    hyperextension_prior,
    joint_limits,
    joint_limits_loss,
    joint_limits_prior,
    shape_prior,
)
from agebody.losses.densities import shrunk_covariance
from agebody.losses.limits import ADULT_RANGES, INFANT_RANGES, JointLimits, joint_limits_excess, swing_twist
from agebody.losses.priors import hyperextension_residuals
from agebody.people import POSES, pose

BODY = SMPL_JOINT_NAMES[1:]
JOINTS = ("left_knee", "right_knee")
DOUBLE = torch.float64
close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)  # some hundred products of order one


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def covariances(count, size, seed=0):
    spread = 0.4 * normal(count, size, size, seed=seed) + 0.5 * torch.eye(size, dtype=DOUBLE)
    return spread @ spread.mT


def mixture(joint_names=JOINTS, components=3, **options):
    size = 3 * len(joint_names)
    weights = torch.rand(components, generator=torch.Generator().manual_seed(1), dtype=DOUBLE) + 0.1
    arrays = normal(components, size, seed=2), covariances(components, size), weights / weights.sum()
    return MaxMixturePrior(*arrays, joint_names, **{"dtype": DOUBLE} | options)  # pyright: ignore[reportArgumentType]


def gaussian(joint_names=JOINTS, **options):
    size = 3 * len(joint_names)
    options = {"dtype": DOUBLE} | options
    return MahalanobisPrior.from_moments(normal(size), covariances(1, size)[0], joint_names, **options)


# All priors -----------------------------------------------------------------------------------------------

PRIORS = {
    "shape": (shape_prior, (4,), ()),
    "shape with age": (lambda b, **o: shape_prior(b[..., :3], b[..., 3], **o), (4,), ()),
    "hyperextension": (
        partial(hyperextension_prior, joint_names=("right_elbow", *JOINTS, "left_elbow")),
        (4, 3),
        (),
    ),
    "limits": (joint_limits_loss, (23, 3), (23,)),
    "limits, 6D": (partial(joint_limits_loss, pose_format="rotation_6d"), (23, 6), (23,)),
    "limits, quaternion": (partial(joint_limits_loss, pose_format="quaternion"), (23, 4), (23,)),
    "mixture": (mixture(), (2, 3), ()),
    "soft mixture": (mixture(soft=True), (2, 3), ()),
    "mahalanobis": (gaussian(), (2, 3), ()),
}
"""What is called, the shape of one body's argument, and the shape of its entries."""
each_prior = pytest.mark.parametrize(("prior", "shape", "entries"), PRIORS.values(), ids=PRIORS)
few = settings(max_examples=8)
batches = st.lists(st.integers(0, 3), max_size=2).map(tuple)


@each_prior
@few
@given(batch=batches, seed=st.integers(0, 999))
def test_masks_and_reductions(prior, shape, entries, batch, seed):
    x = normal(*batch, *shape, seed=seed)
    weights = torch.rand((*batch, *entries), generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    weights = torch.where(weights < 0.4, 0, weights)
    own_dims = x.dim() - weights.dim()
    hidden = (weights == 0)[(..., *[None] * own_dims)].expand_as(x)
    terms = prior(x, weights=weights, reduction="none")
    assert terms.shape == (*batch, *entries)
    close(terms, weights * prior(x, reduction="none"))
    spoiled = torch.where(hidden, torch.nan, x)
    for reduction in ("none", "sum", "mean"):
        left, right = (
            t.clone().requires_grad_()
            for t in (x, spoiled)
        )  # fmt: skip
        expected = prior(left, weights=weights, reduction=reduction)
        got = prior(right, weights=weights, reduction=reduction)
        assert torch.equal(got, expected)
        for grad, reference in zip(
            torch.autograd.grad(got.sum(), right), torch.autograd.grad(expected.sum(), left), strict=True
        ):
            assert torch.equal(grad, reference)
            assert not grad[hidden].any()
    close(prior(x, weights=weights, reduction="sum"), terms.sum())
    close(prior(x, weights=weights), terms.sum() / (weights.sum() or 1))


@each_prior
def test_gradients_are_those_of_finite_differences(prior, shape, entries):
    x = normal(2, *shape, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(prior, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(prior, x, fast_mode=True)


@each_prior
def test_a_batch_is_its_items(prior, shape, entries):
    x = normal(3, *shape, seed=5)
    one_by_one = torch.stack([prior(item) for item in x])
    close(torch.func.vmap(prior)(x), one_by_one)
    close(torch.func.vmap(torch.func.grad(prior))(x)[0], torch.func.grad(prior)(x[0]))


@each_prior
def test_precision(prior, shape, entries):
    x = normal(3, *shape, seed=6, dtype=torch.float32)
    exact = prior(x.double())
    single = copy.deepcopy(prior).float() if isinstance(prior, torch.nn.Module) else prior
    rounded = single(x)
    assert (rounded.dtype, exact.dtype) == (torch.float32, DOUBLE)
    # Differences of order one, whitened by up to ten: a few hundred roundings of float32.
    torch.testing.assert_close(rounded.double(), exact, rtol=3e-5, atol=1e-5)


@each_prior
def test_no_host_synchronisation(prior, shape, entries, unchecked):
    """Tensors without numbers in them raise where a number is asked for."""
    x, weights = normal(3, *shape), torch.ones(3, *entries, dtype=DOUBLE)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t) for t in (x, weights)]
        assert prior(fakes[0], weights=fakes[1], reduction="none").shape == (3, *entries)


@each_prior
def test_mistakes_are_named(prior, shape, entries, unchecked):
    x = normal(3, *shape)
    wrong = [
        (TypeError, "weights: expected a torch.Tensor", x, {"weights": [1.0]}),
        (ValueError, "weights: expected a shape that broadcasts", x, {"weights": torch.ones(7)}),
        (ValueError, "reduction: expected one of", x, {"reduction": "average"}),
        (TypeError, "float", x.long(), {}),
    ]
    if len(shape) == 2:
        wrong += [
            (ValueError, "body_pose: expected shape", x[:, :-1], {}),
            (TypeError, "body_pose: expected a (torch.Tensor|tensor), got list", [1.0], {}),
        ]
    for error, message, argument, options in wrong:
        with pytest.raises(error, match=message):
            prior(argument, **options)


# Shape ----------------------------------------------------------------------------------------------------


def test_shape_prior_is_the_squared_length():
    betas, age = normal(5, 10), normal(5, seed=1)
    expected = np.sum(betas.numpy() ** 2, 1)
    close(shape_prior(betas, reduction="none"), torch.from_numpy(expected))
    appended = torch.cat((betas, age[:, None]), 1)
    for offset in (age, age[:, None]):
        close(shape_prior(betas, offset, reduction="none"), appended.square().sum(1))
    weights = torch.rand(10, dtype=DOUBLE)
    weighed = shape_prior(betas, age, beta_weights=weights, age_weight=10, reduction="sum")
    close(weighed, (weights * betas**2).sum() + 10 * (age**2).sum())
    assert shape_prior(torch.zeros(3, 10)) == 0


def test_shape_prior_does_not_broadcast_ages(unchecked):
    for age in (torch.zeros(1), torch.zeros(5, 5), torch.zeros(())):
        with pytest.raises(ValueError, match=r"age_offset: expected shape \(5,\)"):
            shape_prior(torch.zeros(5, 10), age)
    with pytest.raises(ValueError, match="beta_weights: expected shape"):
        shape_prior(torch.zeros(5, 10), beta_weights=torch.ones(9))


# Bends ----------------------------------------------------------------------------------------------------


def test_hyperextension_prior_is_smplifys():
    """By index, as SMPLify-X has it: angles 55, 58, 12 and 15 of the 72, signs + - - -."""
    full = normal(4, 72)
    angles = full[:, [55, 58, 12, 15]] * torch.tensor([1.0, -1, -1, -1], dtype=DOUBLE)
    expected = torch.exp(angles) ** 2
    close(hyperextension_prior(full[:, 3:], reduction="none"), expected.sum(1))
    close(hyperextension_residuals(full[:, 3:].unflatten(-1, (23, 3))).square(), expected)


def test_hyperextension_prior_goes_by_name():
    body_pose = normal(3, 23, 3)
    shuffled = torch.randperm(23, generator=torch.Generator().manual_seed(0)).tolist()
    names = [BODY[j] for j in shuffled]
    close(hyperextension_prior(body_pose[:, shuffled], joint_names=names), hyperextension_prior(body_pose))


@pytest.mark.parametrize("which", ["mannequin_asset", "anny_asset"])
def test_signs_are_those_of_our_bodies(which, request):
    """Where a limb's end goes tells bending from hyper-extension; the prior and the limits agree with it."""
    asset = request.getfixturevalue(which)
    names = asset.joint_names
    limbs = (
        ("left_ankle", "left_knee", 0),
        ("right_ankle", "right_knee", 0),
        ("left_wrist", "left_elbow", 1),
        ("right_wrist", "right_elbow", 1),
    )
    body_pose = torch.zeros(len(limbs), 3, len(names) - 1, 3)
    for poses, (_, joint, axis) in zip(body_pose, limbs, strict=True):
        poses[:, names.index(joint) - 1, axis] = torch.tensor([-0.5, 0, 0.5])
    joints = SMPLA(asset)(body_pose=body_pose).joints
    costs = hyperextension_prior(body_pose, joint_names=names[1:], reduction="none")
    limits = joint_limits_loss(body_pose, joint_limits(names[1:]), reduction="none").sum(-1)
    for i, (end, _, _) in enumerate(limbs):
        forward = joints[i, :, names.index(end), 2]
        # Bending brings an ankle backwards and a wrist forwards.
        bent, stretched = forward.argmin(), forward.argmax()
        if "wrist" in end:
            bent, stretched = stretched, bent
        assert {int(bent), int(stretched)} == {0, 2}
        assert costs[i, bent] < costs[i, 1] == 4 < costs[i, stretched]
        assert limits[i, bent] == limits[i, 1] == 0 < limits[i, stretched]


def test_hyperextension_prior_pulls_towards_bending():
    body_pose = torch.zeros(23, 3, requires_grad=True)
    hyperextension_prior(body_pose).backward()
    assert body_pose.grad is not None
    pulls = {BODY[j]: (-row).tolist() for j, row in enumerate(body_pose.grad) if row.any()}
    assert pulls == {
        "left_knee": [2, 0, 0], "right_knee": [2, 0, 0], "left_elbow": [0, -2, 0], "right_elbow": [0, 2, 0],
    }  # fmt: skip


def test_hyperextension_prior_needs_knees_and_elbows(unchecked):
    with pytest.raises(ValueError, match="got no left_elbow, right_elbow"):
        hyperextension_prior(torch.zeros(2, 3), joint_names=JOINTS)


# Mixtures -------------------------------------------------------------------------------------------------


def test_mixture_is_smplifys_formula():
    prior = mixture()
    means, covs, weights, _ = prior.arrays
    x = normal(20, 6, seed=3)
    roots = np.sqrt(np.linalg.det(covs))
    shares = weights / ((2 * np.pi) ** (6 / 2) * (roots / roots.min()))
    delta = x.numpy()[:, None] - means
    quadratic = np.einsum("bki,kij,bkj->bk", delta, np.linalg.inv(covs), delta)
    energies = 0.5 * quadratic - np.log(shares)
    assert len(set(energies.argmin(1))) == 3  # every component is the cheapest of some pose
    close(prior(x, reduction="none"), torch.from_numpy(energies.min(1)))


@pytest.mark.parametrize("joint_names", [JOINTS, BODY])
def test_mixture_is_a_likelihood(joint_names):
    """Up to one constant, the soft energy is the negative logarithm of SciPy's density."""
    hard, soft = mixture(joint_names), mixture(joint_names, soft=True)
    means, covs, weights, _ = hard.arrays
    x = torch.tensor(means)[:, None] + 0.3 * normal(3, 4, means.shape[1], seed=3)
    logs = np.stack(
        [multivariate_normal(m, c).logpdf(x) + np.log(w)
         for m, c, w in zip(means, covs, weights, strict=True)]
    )  # fmt: skip
    constant = np.linalg.slogdet(covs)[1].min() / 2
    expected = -np.log(np.exp(logs - logs.max(0)).sum(0)) - logs.max(0) - constant
    # Whitened distances of hundreds, squared: 1e5 roundings.
    torch.testing.assert_close(soft(x, reduction="none"), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
    largest = torch.from_numpy(-logs.max(0) - constant)
    torch.testing.assert_close(hard(x, reduction="none"), largest, rtol=1e-9, atol=1e-9)
    assert (soft(x, reduction="none") <= hard(x, reduction="none") + 1e-9).all()


def test_determinants_that_no_float_holds():
    """69 angles of a thousandth of a degree, or of a hundred turns: their determinants vanish or overflow."""
    identity = torch.eye(69, dtype=DOUBLE)
    for variance in (1e-9, 1e9):
        covs = torch.stack((variance * identity, 4 * variance * identity))
        prior = MaxMixturePrior(torch.zeros(2, 69), covs, torch.tensor([0.5, 0.5]), dtype=DOUBLE)
        expected = 69 / 2 * np.log(2 * np.pi) + np.log(2)
        close(prior.constants, torch.tensor([expected, expected + 69 * np.log(2)], dtype=DOUBLE))


def test_gradient_is_that_of_the_chosen_component():
    prior = mixture()
    means, covs, _, _ = prior.arrays
    x = (torch.tensor(means) + 0.1 * normal(3, 6)).requires_grad_()
    (grad,) = torch.autograd.grad(prior(x, reduction="sum"), x)
    expected = [
        np.linalg.inv(c) @ (row - m) for c, row, m in zip(covs, x.detach().numpy(), means, strict=True)
    ]
    close(grad, torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize("prior", [mixture(), gaussian()], ids=["mixture", "mahalanobis"])
def test_residuals_are_the_roots_of_the_energy(prior):
    x = normal(7, 2, 3, seed=3)
    close(prior.residuals(x).square().sum(-1), prior(x, reduction="none"))
    jacobian = torch.func.vmap(torch.func.jacrev(prior.residuals))(x)
    grad = torch.func.vmap(torch.func.grad(prior))(x)
    close(2 * torch.einsum("br,brjc->bjc", prior.residuals(x), jacobian), grad)


def test_a_soft_mixture_has_no_residuals():
    with pytest.raises(ValueError, match="soft"):
        mixture(soft=True).residuals(normal(6))


# One normal distribution ----------------------------------------------------------------------------------


def test_mahalanobis_is_the_distance():
    mean, covariance = normal(6), covariances(1, 6)[0]
    prior = MahalanobisPrior.from_moments(mean, covariance, JOINTS, dtype=DOUBLE)
    x = normal(9, 6, seed=1)
    delta = (x - mean).numpy()
    expected = np.einsum("bi,ij,bj->b", delta, np.linalg.inv(covariance.numpy()), delta)
    close(prior(x, reduction="none"), torch.from_numpy(expected))
    close(prior(x.unflatten(-1, (2, 3)), reduction="none"), torch.from_numpy(expected))
    assert prior(mean) == 0
    rectangular = normal(6, 4)
    given_factor = MahalanobisPrior(mean, rectangular, JOINTS, dtype=DOUBLE)
    assert given_factor.residuals(x).shape == (9, 4)
    close(given_factor(x, reduction="none"), ((x - mean) @ rectangular).square().sum(-1))


def test_samples_of_the_prior_cost_their_dimension():
    """The squared Mahalanobis distance of a normal sample is chi-squared: mean D, variance 2 D."""
    prior = gaussian(BODY)
    factor = torch.tensor(prior.arrays.factor)
    samples = prior.mean + normal(4000, 69, seed=7) @ torch.linalg.inv(factor)
    assert abs(prior(samples).item() - 69) < 5 * (2 * 69 / 4000) ** 0.5


# Joints by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mixture, gaussian], ids=["mixture", "mahalanobis"])
def test_joints_go_by_name(make):
    names = ("a", "b", "c")
    prior = make(names)
    x = normal(5, 3, 3)
    moved = prior.for_joints(("c", "a", "b"))
    close(moved(x[:, [2, 0, 1]], reduction="none"), prior(x, reduction="none"))
    free = prior.for_joints(("finger", "c", "a", "toe", "b"))
    longer = normal(5, 5, 3, seed=1)
    longer[:, [2, 4, 1]] = x
    longer.requires_grad_()
    close(free(longer, reduction="none"), prior(x, reduction="none"))
    (grad,) = torch.autograd.grad(free(longer), longer)
    assert not grad[:, [0, 3]].any()
    assert grad[:, [1, 2, 4]].all()
    assert free.joint_names == ("finger", "c", "a", "toe", "b")
    assert free.for_joints(names)(x) == prior(x)


def test_joints_that_a_pose_lacks_are_integrated():
    names = ("a", "b", "c")
    kept = [6, 7, 8, 0, 1, 2]
    prior = gaussian(names)
    covariance = covariances(1, 9)[0][kept][:, kept]
    marginal = MahalanobisPrior.from_moments(prior.mean[kept], covariance, ("c", "a"), dtype=DOUBLE)
    x = normal(4, 6)
    torch.testing.assert_close(prior.for_joints(("c", "a"))(x), marginal(x), rtol=1e-9, atol=1e-9)
    several = mixture(names)
    means, covs, weights, _ = several.arrays
    expected = MaxMixturePrior(
        means[:, kept], covs[:, kept][:, :, kept], weights, ("c", "a"), dtype=DOUBLE
    )  # fmt: skip
    close(several.for_joints(("c", "a"))(x, reduction="none"), expected(x, reduction="none"))


def test_wrong_joints_are_named(unchecked):
    prior = gaussian()
    with pytest.raises(ValueError, match="knows none of jaw; it knows left_knee, right_knee"):
        prior.for_joints(["jaw"])
    with pytest.raises(ValueError, match="expected different names, got jaw twice"):
        prior.for_joints(["jaw", "jaw", "left_knee"])
    with pytest.raises(ValueError, match="expected at least one name"):
        prior.for_joints([])
    flat = MahalanobisPrior(torch.zeros(6), torch.ones(6, 1), JOINTS)
    with pytest.raises(ValueError, match="the precision: expected a positive definite"):
        flat.for_joints(["left_knee"])


# State ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mixture, gaussian], ids=["mixture", "mahalanobis"])
def test_state(make):
    prior = make(dtype=torch.float32)
    x = normal(4, 6)
    assert prior.state_dict() == {}
    assert not list(prior.parameters())
    exact = make()
    assert torch.equal(prior.double()(x), exact(x))  # from the arrays, not from float32
    for twin in (copy.deepcopy(exact), pickle.loads(pickle.dumps(exact))):
        assert torch.equal(twin(x), exact(x))
        assert torch.equal(twin.float().double()(x), exact(x))
    assert exact.to("meta").columns.device.type == "meta"


@pytest.mark.parametrize("make", [mixture, gaussian], ids=["mixture", "mahalanobis"])
def test_networks_of_16_bits_keep_their_prior(make):
    prior = make()
    x = normal(4, 6)
    before = prior(x)
    for change in (torch.nn.Module.half, torch.nn.Module.bfloat16, lambda net: net.to_empty(device="cpu")):
        change(torch.nn.Sequential(prior, torch.nn.Linear(2, 2)))
        assert torch.equal(prior(x), before)


def test_constructors_name_mistakes(unchecked):
    eye = torch.eye(6)
    for error, message, make in (
        (TypeError, "mean: expected a tensor or array", lambda: MahalanobisPrior([0.0] * 6, eye, JOINTS)),  # pyright: ignore[reportArgumentType]
        (TypeError, "got int64 numbers", lambda: MahalanobisPrior(eye[0].long(), eye, JOINTS)),
        (ValueError, r"mean: expected shape \(69\)", lambda: MahalanobisPrior(torch.zeros(6), eye)),
        (ValueError, r"factor: expected shape \(6, any\)", lambda: MahalanobisPrior(eye[0], eye[:3], JOINTS)),
        (ValueError, "factor: 36 entries are NaN", lambda: MahalanobisPrior(eye[0], eye / 0, JOINTS)),
        (ValueError, "covariance: .* symmetric", lambda: MahalanobisPrior.from_moments(
            eye[0], eye + torch.ones(6, 6).triu(), JOINTS)),
        (ValueError, "covariance: .* singular", lambda: MahalanobisPrior.from_moments(
            eye[0], 0 * eye, JOINTS)),
        (ValueError, "different names", lambda: MahalanobisPrior(eye[0], eye, ("a", "a"))),
        (TypeError, "dtype: expected", lambda: MahalanobisPrior(eye[0], eye, JOINTS, dtype=torch.float16)),
        (ValueError, "covariances: .* singular", lambda: MaxMixturePrior(
            eye[:2], torch.stack((eye, 0 * eye)), torch.ones(2) / 2, JOINTS)),
        (ValueError, "weights: expected positive", lambda: MaxMixturePrior(
            eye[:2], torch.stack((eye, eye)), torch.ones(2), JOINTS)),
        (ValueError, r"weights: expected shape \(2\)", lambda: MaxMixturePrior(
            eye[:2], torch.stack((eye, eye)), torch.ones(3) / 3, JOINTS)),
        (TypeError, "body_pose: expected torch.float32", lambda: MahalanobisPrior(
            eye[0], eye, JOINTS)(normal(6))),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            make()


def test_the_mean_may_be_a_pose():
    mean = normal(2, 3)
    prior = MahalanobisPrior(mean, torch.eye(6), JOINTS, dtype=DOUBLE)
    close(prior.mean, mean.flatten())


# From poses -----------------------------------------------------------------------------------------------


def test_shrinkage_is_ledoit_and_wolfs():
    """Sample by sample, as the paper's lemmas 3.2 to 3.5 have it."""
    x = normal(12, 5).numpy() * np.array([1, 2, 0.5, 1, 3])
    x = x - x.mean(0)
    n, p = x.shape
    inner = lambda a, b: np.trace(a @ b.T) / p  # noqa: E731
    s = x.T @ x / n
    m = inner(s, np.eye(p))
    d2 = inner(s - m * np.eye(p), s - m * np.eye(p))
    b2 = min(sum(inner(np.outer(r, r) - s, np.outer(r, r) - s) for r in x) / n**2, d2)
    expected = b2 / d2 * m * np.eye(p) + (d2 - b2) / d2 * s
    assert 0.05 < b2 / d2 < 0.95
    np.testing.assert_allclose(shrunk_covariance(x), expected, rtol=1e-12)
    np.testing.assert_allclose(shrunk_covariance(x + 7, regularization=0.0), s, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(shrunk_covariance(x, regularization=1.0), m * np.eye(p), atol=1e-12)


def test_gaussian_from_poses():
    poses = 0.3 * normal(30, 23, 3) + 0.2
    prior = MahalanobisPrior.from_poses(poses, dtype=DOUBLE)  # 30 poses, 69 angles
    close(prior.mean, poses.flatten(1).mean(0))
    precision = prior.arrays.factor @ prior.arrays.factor.T
    covariance = shrunk_covariance(poses.flatten(1).numpy())
    np.testing.assert_allclose(precision @ covariance, np.eye(69), atol=1e-12)
    same = MahalanobisPrior.from_poses(poses.flatten(1).unflatten(0, (5, 6)), dtype=DOUBLE)
    close(same(poses), prior(poses))
    # Enough poses need no help: the energy of the samples is then their dimension.
    many = normal(400, 2, 3)
    close(
        MahalanobisPrior.from_poses(many, JOINTS, regularization=0.0, dtype=DOUBLE)(many),
        torch.tensor(6.0).double(),
    )


def test_mixture_from_poses_finds_the_modes():
    centres = torch.tensor([[0.0] * 6, [2.0] * 6, [-2.0, 2, -2, 2, -2, 2]], dtype=DOUBLE)
    counts, spreads = (300, 200, 100), (0.2, 0.3, 0.4)
    poses = torch.cat(
        [c + s * normal(n, 6, seed=n) for c, n, s in zip(centres, counts, spreads, strict=True)]
    )
    prior = MaxMixturePrior.from_poses(poses, 3, JOINTS, regularization=0.0, dtype=DOUBLE)
    means, covs, weights, _ = prior.arrays
    order = np.argsort(-weights)
    np.testing.assert_allclose(weights[order], np.array(counts) / 600, atol=1e-3)
    for k, centre, count, spread in zip(order, centres, counts, spreads, strict=True):
        # Of n samples the mean errs by s / sqrt(n), a variance by s^2 sqrt(2 / n): within five of these.
        assert np.abs(means[k] - centre.numpy()).max() < 5 * spread / count**0.5
        assert np.abs(covs[k] - spread**2 * np.eye(6)).max() < 5 * spread**2 * (2 / count) ** 0.5


def test_more_iterations_improve_the_mixture():
    poses = torch.cat((normal(150, 6) @ normal(6, 6, seed=1), 1 + 0.5 * normal(150, 6, seed=2)))

    def log_likelihood(**options):
        prior = MaxMixturePrior.from_poses(poses, 4, JOINTS, regularization=0.0, tolerance=0.0, soft=True,
                                           dtype=DOUBLE, **options)  # fmt: skip
        constant = np.linalg.slogdet(prior.arrays.covariances)[1].min() / 2
        return -prior(poses).item() - constant

    scores = [log_likelihood(iterations=n) for n in (1, 2, 5, 20, 100)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 1e-3
    assert scores[-1] == log_likelihood(iterations=100)


def test_mixture_from_poses_ends_where_it_explains_itself():
    """Where expectation maximisation stops, each component has the moments of the poses in its share."""
    poses = torch.cat((normal(300, 3), 1.2 + 0.6 * normal(100, 3, seed=2)))
    prior = MaxMixturePrior.from_poses(
        poses, 2, ["a"], regularization=0.0, tolerance=1e-13, iterations=3000, dtype=DOUBLE
    )
    means, covs, weights, _ = prior.arrays
    joint = np.stack(
        [w * multivariate_normal(m, c).pdf(poses) for m, c, w in zip(means, covs, weights, strict=True)], 1
    )
    shares = joint / joint.sum(1, keepdims=True)
    assert 0.05 < (shares.min(1)).max() < 0.5  # they overlap
    assert abs(weights[0] - weights[1]) > 0.2
    # A gain below 1e-13 a pose leaves steps of about its root, times how slowly it goes.
    np.testing.assert_allclose(shares.mean(0), weights, atol=1e-4)
    np.testing.assert_allclose(shares.T @ poses.numpy() / shares.sum(0)[:, None], means, atol=1e-4)
    for share, mean, covariance in zip(shares.T, means, covs, strict=True):
        np.testing.assert_allclose(np.cov(poses.T, aweights=share, ddof=0), covariance, atol=1e-4)
        np.testing.assert_allclose(np.average(poses, axis=0, weights=share), mean, atol=1e-4)


def test_fits_name_mistakes(unchecked):
    poses = normal(30, 6)
    for message, make in (
        ("poses: expected at least 2", lambda: MahalanobisPrior.from_poses(poses[:1], JOINTS)),
        ("poses: expected at least 2 that differ", lambda: MahalanobisPrior.from_poses(
            torch.ones(9, 6), JOINTS)),
        ("poses: expected finite", lambda: MahalanobisPrior.from_poses(poses / 0, JOINTS)),
        ("poses: expected shape", lambda: MahalanobisPrior.from_poses(poses)),
        ("covariance: expected a positive definite", lambda: MahalanobisPrior.from_poses(
            poses[:3], JOINTS, regularization=0.0)),
        ("regularization: expected a share from 0 to 1", lambda: MahalanobisPrior.from_poses(
            poses, JOINTS, regularization=2.0)),
        ("poses: expected at least 31", lambda: MaxMixturePrior.from_poses(poses, 31, JOINTS)),
        ("components: expected a whole number of 1", lambda: MaxMixturePrior.from_poses(poses, 0, JOINTS)),
        ("poses: 30 are too few for 8 covariances of 6", lambda: MaxMixturePrior.from_poses(
            poses, 8, JOINTS, regularization=0.0)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()


# Swing and twist ------------------------------------------------------------------------------------------


def swing_twist_by_quaternions(rotation, axis):
    """The textbook's way: the twist is the quaternion's part along the axis."""
    quaternion = rotation.as_quat(canonical=True)
    twist = np.zeros(4)
    twist[[axis, 3]] = quaternion[[axis, 3]]
    twist = Rotation.from_quat(twist)
    return (rotation * twist.inv()).as_rotvec() + twist.as_rotvec()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_swing_and_twist_are_the_textbooks(axis):
    random = Rotation.random(200, random_state=axis)  # pyright: ignore[reportCallIssue]
    small = Rotation.from_rotvec(normal(50, 3).numpy() * 1e-4)
    turns = Rotation.concatenate([random, small, Rotation.identity()])
    got = swing_twist(torch.from_numpy(turns.as_matrix()), torch.tensor(axis))
    expected = np.array([swing_twist_by_quaternions(turn, axis) for turn in turns])
    # Matrices hold a rotation by a small angle to one rounding, near 180 degrees to its root.
    np.testing.assert_allclose(got, expected, atol=1e-10)
    others = [i for i in range(3) if i != axis]
    swing, twist = np.zeros_like(expected), np.zeros_like(expected)
    swing[:, others], twist[:, axis] = got[:, others], got[:, axis]
    again = Rotation.from_rotvec(swing) * Rotation.from_rotvec(twist)
    np.testing.assert_allclose(again.as_matrix(), turns.as_matrix(), atol=1e-10)


def test_angles_about_one_axis_are_the_axis_angle_vector():
    for axis in range(3):
        for angle in (-3.0, -0.5, -1e-9, 0.0, 0.5, 2.0, 3.1):
            vector = torch.zeros(3, dtype=DOUBLE)
            vector[axis] = angle
            matrix = rotations.axis_angle_to_matrix(vector).expand(3, 3, 3)
            close(swing_twist(matrix, torch.arange(3)), vector.expand(3, 3))


def test_derivatives_of_swing_and_twist():
    """At zero too, where the angles are the axis-angle vector to first order."""
    angles = lambda v: swing_twist(rotations.axis_angle_to_matrix(v), torch.arange(3))  # noqa: E731
    zero = torch.zeros(3, 3, dtype=DOUBLE)
    jacobian = torch.autograd.functional.jacobian(angles, zero)
    close(jacobian, torch.einsum("jk,ab->jakb", *[torch.eye(3, dtype=DOUBLE)] * 2))
    for vectors in (zero, normal(3, 3), 0.2 * normal(3, 3, seed=1), 1e-5 * normal(3, 3)):
        vectors = vectors.clone().requires_grad_()
        assert torch.autograd.gradcheck(angles, vectors)
        assert torch.autograd.gradgradcheck(angles, vectors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_half_turns_are_finite_and_cost(dtype):
    """A limb that points backwards costs whatever its axis, and nothing explodes there."""
    table = joint_limits(dtype=dtype)
    for angle in (np.pi, -np.pi, np.pi - 1e-4, 3.0, np.pi + 1e-6):
        for axis in np.concatenate([np.eye(3), normal(5, 3).numpy()]):
            vector = torch.as_tensor(angle * axis / np.linalg.norm(axis), dtype=dtype)
            body_pose = vector.expand(23, 3).clone().requires_grad_()
            terms = joint_limits_loss(body_pose, table, reduction="none")
            assert terms.isfinite().all()
            assert (terms > 0.1).all()
            (grad,) = torch.autograd.grad(terms.sum(), body_pose)
            assert grad.abs().max() < 1e5
    exact = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=dtype).diag_embed()
    turned = exact[:, None].expand(4, 23, 3, 3).clone().requires_grad_()
    terms = joint_limits_loss(turned, table, pose_format="matrix", reduction="none")
    assert not terms[0].any()
    assert (terms[1:] > 0.1).all()
    (grad,) = torch.autograd.grad(terms.sum(), turned)
    assert grad.isfinite().all()


# Limits of joints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POSES)
def test_everyday_poses_are_possible(name):
    """All but one are within the limits; a hand on the hip turns the elbow by what the shoulder should."""
    body_pose = torch.from_numpy(pose(name, SMPL_JOINT_NAMES)[1:])
    excess = joint_limits_excess(body_pose).rad2deg()
    expected = {"hand on hip": ("left_elbow", 2.0)}
    if name in expected:
        joint, degrees = expected[name]
        assert 0 < excess[BODY.index(joint)].abs().max() < degrees
        excess[BODY.index(joint)] = 0
    assert excess.abs().max() < 1e-9


@pytest.mark.parametrize("name", POSES)
def test_shoulders_may_share_an_elevation_with_the_collars(name):
    """By the rhythm of 2 to 1 that people, and SMPL's poses, move them with: arms that hang turn the collars
    down by 24 to 34 degrees from the T-pose, arms overhead turn them up."""
    body_pose = torch.from_numpy(pose(name, SMPL_JOINT_NAMES)[1:])
    for side in ("left", "right"):
        collar, shoulder = (BODY.index(f"{side}_{part}") for part in ("collar", "shoulder"))
        swing = swing_twist(rotations.axis_angle_to_matrix(body_pose[shoulder]), torch.tensor(0))
        for share in (0, 1 / 3, 1 / 2):
            body_pose[collar] = torch.stack((0 * swing[0], 0 * swing[1], share * swing[2]))
            assert joint_limits_excess(body_pose)[collar].abs().max() == 0, (side, share)
    for degrees in (-34, -24, 30):
        both = one_joint("left_collar", z=degrees) + one_joint("right_collar", z=-degrees)
        assert joint_limits_excess(both).abs().max() == 0
    assert joint_limits_excess(one_joint("left_collar", z=-60)).abs().max() > 0.3


@pytest.mark.parametrize(
    ("joint", "degrees"),
    [
        ("left_hip", {"x": 25}),  # the leg that a runner pushes off with
        ("left_hip", {"x": -95, "y": 25, "z": 20}),  # sitting cross-legged
        ("left_knee", {"x": 148}),  # sitting on one's heels
        ("right_ankle", {"x": -34}),  # the front foot of a lunge
        ("left_foot", {"x": -60}),  # tiptoe
        ("left_elbow", {"x": 32, "y": -128, "z": 22}),  # hand to the shoulder, about a tilted hinge
        ("right_shoulder", {"z": -85}),  # overhead
        ("neck", {"x": 25}),
    ],
)
def test_natural_angles_are_possible(joint, degrees):
    assert joint_limits_excess(one_joint(joint, **degrees)).abs().max() < 1e-9


def one_joint(joint, **degrees):
    body_pose = torch.zeros(23, 3, dtype=DOUBLE)
    for axis, angle in degrees.items():
        body_pose[BODY.index(joint), "xyz".index(axis)] = np.radians(angle)
    return body_pose


@pytest.mark.parametrize(
    ("joint", "degrees", "beyond"),
    [
        ("left_knee", {"x": -30}, 25),
        ("right_knee", {"x": -30}, 25),
        ("left_knee", {"z": 25}, 15),
        ("left_elbow", {"y": 35}, 30),
        ("right_elbow", {"y": -35}, 30),
        ("head", {"y": 90}, 45),
        ("neck", {"y": -90}, 55),
        ("head", {"x": -90}, 50),
        ("left_hip", {"x": 60}, 30),
        ("spine2", {"x": -50}, 40),
        ("left_ankle", {"x": -60}, 22),
        ("right_shoulder", {"y": -100}, 40),
        ("left_shoulder", {"y": 100}, 40),
    ],
)
def test_impossible_poses_cost(joint, degrees, beyond):
    terms = joint_limits_loss(one_joint(joint, **degrees), reduction="none")
    expected = torch.zeros(23, dtype=DOUBLE)
    expected[BODY.index(joint)] = np.radians(beyond) ** 2
    close(terms, expected)


def test_impossible_poses_are_pulled_back():
    body_pose = one_joint("left_knee", x=-30).requires_grad_()
    (grad,) = torch.autograd.grad(joint_limits_loss(body_pose, reduction="sum"), body_pose)
    close(grad, -2 * one_joint("left_knee", x=25))
    optimiser = torch.optim.LBFGS([body_pose], line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = joint_limits_loss(body_pose, reduction="sum")
        loss.backward()
        return loss

    optimiser.step(closure)
    assert closure() == 0
    assert body_pose.count_nonzero() == 1


def test_left_and_right_are_mirror_images():
    body_pose = 1.5 * normal(6, 23, 3)
    mirrored = [BODY.index(name.translate(str.maketrans({})).replace("left_", "?").replace("right_", "left_")
                           .replace("?", "right_")) for name in BODY]  # fmt: skip
    flip = torch.tensor([1.0, -1, -1], dtype=DOUBLE)
    for age in (0.0, 0.5, 1.0):
        table = joint_limits(age_offset=age, dtype=DOUBLE)
        terms = joint_limits_loss(body_pose, table, reduction="none")
        assert (terms > 0).float().mean() > 0.5
        twins = joint_limits_loss(body_pose[:, mirrored] * flip, table, reduction="none")
        close(twins[:, mirrored], terms)


@pytest.mark.parametrize("table", [ADULT_RANGES, INFANT_RANGES], ids=["adult", "infant"])
def test_ranges_are_sound(table):
    assert set(table) == set(BODY)
    for limits in table.values():
        assert all(-180 < low < high < 180 and low <= 0 <= high for low, high in limits[1:])


def test_spines_and_necks_add_up_to_the_clinics():
    """Thoracolumbar flexion 80, extension 30, rotation 45, lateral flexion 35; cervical 60, 75, 80 and 45."""
    total = lambda names, axis, side: sum(getattr(ADULT_RANGES[n], axis)[side] for n in names)  # noqa: E731
    trunk, neck = ("spine1", "spine2", "spine3"), ("neck", "head")
    assert [total(trunk, a, s) for a, s in (("x", 1), ("x", 0), ("y", 1), ("z", 1))] == [80, -30, 45, 35]
    assert [total(neck, a, s) for a, s in (("x", 1), ("x", 0), ("y", 1), ("z", 1))] == [60, -75, 80, 45]
    infant = [sum(getattr(INFANT_RANGES[n], a)[1] for n in neck) for a in "yz"]
    assert infant == [110, 70]  # Ohman and Beckung 2008


def test_limits_follow_the_age():
    ages = torch.tensor([0.0, 0.5, 1.0, -0.2, 1.3], dtype=DOUBLE)
    table = joint_limits(age_offset=ages)
    assert table.low.shape == table.high.shape == (5, 23, 3)
    for age, low, high in zip(ages.clamp(0, 1).tolist(), table.low, table.high, strict=True):
        for j, name in enumerate(BODY):
            adult, infant = (np.radians(np.array(t[name][1:])) for t in (ADULT_RANGES, INFANT_RANGES))
            expected = (1 - age) * adult + age * infant
            close(torch.stack((low[j], high[j]), -1), torch.from_numpy(expected))
        close(joint_limits(age_offset=age, dtype=DOUBLE).low, low)
    frog = one_joint("left_hip", z=80)
    costs = joint_limits_loss(frog.expand(5, 23, 3), table, reduction="none").sum(-1)
    assert costs[0] > costs[1] > costs[2] == 0


def test_limits_go_by_name_and_unknown_joints_are_free():
    names = ("jaw", "right_knee", "left_index1")
    table = joint_limits(names, dtype=DOUBLE)
    body_pose = 2 * normal(4, 3, 3)
    terms = joint_limits_loss(body_pose, table, reduction="none")
    assert not terms[:, [0, 2]].any()
    full = torch.zeros(4, 23, 3, dtype=DOUBLE)
    full[:, BODY.index("right_knee")] = body_pose[:, 1]
    close(terms[:, 1], joint_limits_loss(full, reduction="none")[:, BODY.index("right_knee")])
    ages = joint_limits(names, age_offset=torch.tensor([0.3]))
    assert ages.low[0, 0].isinf().all()
    assert not ages.low.isnan().any()


@pytest.mark.parametrize("pose_format", ["axis_angle", "matrix", "quaternion", "rotation_6d"])
def test_formats_agree(pose_format):
    vectors = 0.9 * normal(5, 23, 3)
    expected = joint_limits_loss(vectors, reduction="none")
    given_pose = rotations.from_matrix(rotations.axis_angle_to_matrix(vectors), pose_format)
    close(joint_limits_loss(given_pose, pose_format=pose_format, reduction="none"), expected, atol=1e-9)
    flat = given_pose.flatten(1)
    close(joint_limits_loss(flat, pose_format=pose_format, reduction="none"), expected, atol=1e-9)


def test_custom_limits():
    inf = torch.tensor(torch.inf, dtype=DOUBLE)
    low = torch.full((1, 3), -0.1, dtype=DOUBLE)
    table = JointLimits(torch.tensor([2]), low, inf.expand(1, 3))
    vector = torch.tensor([[-0.3, 0.0, 0.0]], dtype=DOUBLE)
    close(joint_limits_excess(vector, table), torch.tensor([[-0.2, 0, 0]], dtype=DOUBLE))
    close(joint_limits_loss(vector, table), torch.tensor(0.04, dtype=DOUBLE))


def test_mistakes_in_limits_are_named(unchecked):
    with pytest.raises(ValueError, match="joint_names: expected some of .*, got jaw, tail"):
        joint_limits(("jaw", "tail"))
    with pytest.raises(TypeError, match="limits: expected torch.float64, as the pose, got torch.float32"):
        joint_limits_loss(normal(23, 3), joint_limits())
    with pytest.raises(ValueError, match="pose_format: expected one of"):
        joint_limits_loss(normal(23, 3), pose_format="euler")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="age_offset: expected a floating type"):
        joint_limits(age_offset=torch.tensor([True]))


def test_prior_of_the_limits_has_the_moments_of_even_poses():
    prior = joint_limits_prior(dtype=DOUBLE)
    generator = np.random.default_rng(0)
    bounds = np.radians([ADULT_RANGES[name][1:] for name in BODY]).reshape(69, 2)
    even = torch.from_numpy(generator.uniform(bounds[:, 0], bounds[:, 1], (5000, 69)))
    close(prior.mean, torch.from_numpy(bounds.mean(1)))
    np.testing.assert_allclose(
        prior.arrays.factor @ prior.arrays.factor.T, np.diag(12 / np.ptp(bounds, axis=1) ** 2)
    )
    # An even angle's squared distance has variance 9 (1/5 - 1/9) = 0.8.
    assert abs(prior(even).item() - 69) < 5 * (69 * 0.8 / 5000) ** 0.5


def test_prior_of_the_limits_about_another_pose():
    standing = torch.from_numpy(pose("standing", SMPL_JOINT_NAMES)[1:])
    prior = joint_limits_prior(mean=standing, dtype=DOUBLE)
    assert prior(standing) == 0
    generator = np.random.default_rng(0)
    bounds = np.radians([ADULT_RANGES[name][1:] for name in BODY]).reshape(69, 2)
    even = torch.from_numpy(generator.uniform(bounds[:, 0], bounds[:, 1], (5000, 69)))
    # A squared distance from a mean anywhere in the range is at most 3 on average, squared 9 * 9 / 5.
    assert abs(prior(even).item() - 69) < 5 * (69 * 81 / 5 / 5000) ** 0.5
    assert prior(one_joint("left_knee", x=-60) + standing) > prior(one_joint("left_knee", x=20) + standing)


def test_limit_prior_separates_possible_from_impossible_poses():
    prior = joint_limits_prior(dtype=DOUBLE)
    costs = [prior(torch.from_numpy(pose(name, SMPL_JOINT_NAMES)[1:])).item() for name in POSES]
    assert max(costs) < 69
    for joint, degrees in (("left_knee", {"x": -90}), ("right_elbow", {"y": -100}), ("head", {"y": 150})):
        possible = prior(one_joint(joint))
        assert prior(one_joint(joint, **degrees)) > possible + 5


def test_prior_of_the_limits_leaves_unknown_joints_free():
    names = ("jaw", *BODY, "left_index1")
    prior = joint_limits_prior(names, dtype=DOUBLE)
    body_pose = normal(3, 25, 3)
    close(prior(body_pose), joint_limits_prior(dtype=DOUBLE)(body_pose[:, 1:-1]))
    mean = normal(25, 3)
    assert joint_limits_prior(names, mean=mean, dtype=DOUBLE)(mean) == 0
