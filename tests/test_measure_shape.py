import numpy as np
import pytest
import torch

import agebody
from agebody.fitting import fit_measurements
from agebody.measure import A2B_MEASUREMENTS, MEASUREMENTS, Measurements

MANY = tuple(name for name in MEASUREMENTS if not name.startswith("right_"))
FEW = ("stature", "sitting_height", "shoulder_breadth", "waist_circumference", "hip_circumference")


@pytest.fixture(scope="module")
def body(mannequin_asset):
    return agebody.SMPLA(mannequin_asset, dtype=torch.float64)


def people(body, count, *, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    betas = spread * torch.randn(count, body.num_betas, generator=generator, dtype=body.dtype)
    return betas, torch.linspace(0.05, 0.95, count, dtype=body.dtype)


def measured(body, names, betas, age):
    measure = Measurements(body.asset, names, dtype=body.dtype)
    values = measure(body.shape(betas=betas, age_offset=age).rest_vertices)
    return dict(zip(measure.names, values.unbind(-1), strict=True))


def test_bodies_are_recovered_from_their_measures(body):
    betas, age = people(body, 3, spread=0.8)
    targets = measured(body, MANY, betas, age)
    fit = fit_measurements(body, targets)
    # The prior's pull, sd^2 |b| over the change of a measure by one beta, 1e-8 m^2 * 3 / 1e-3 m.
    assert fit.residual.abs().max() < 3e-5
    assert fit.converged.all()
    assert fit.met.all()
    assert fit.report() == "72 of 72 measurements met"
    torch.testing.assert_close(fit.betas, betas, rtol=0, atol=0.02)
    torch.testing.assert_close(fit.age_offset, age, rtol=0, atol=1e-3)
    again = measured(body, MANY, fit.betas, fit.age_offset)
    torch.testing.assert_close(torch.stack([*again.values()], -1), fit.achieved)


def test_the_free_body_of_all_ages_in_single_precision(anny_asset):
    body = agebody.SMPLA(anny_asset)
    betas, age = people(body, 3, spread=0.7, seed=2)
    fit = fit_measurements(body, measured(body, FEW, betas, age))
    assert fit.residual.abs().max() < 1e-3
    assert fit.betas.dtype == torch.float32


def test_a2b_measures_can_be_fitted(body):
    betas, age = people(body, 2, spread=0.5, seed=1)
    fit = fit_measurements(body, measured(body, A2B_MEASUREMENTS, betas, age), definitions=A2B_MEASUREMENTS)
    assert fit.residual.abs().max() < 3e-5
    assert fit.names == tuple(A2B_MEASUREMENTS)


def objective(body, fit, targets, sd):
    """As the docstring says it, through the layer and autograd."""
    betas, age = fit.betas.clone().requires_grad_(), fit.age_offset.clone().requires_grad_()
    got = measured(body, tuple(targets), betas, age)
    terms = [((got[name] - target) / sd) ** 2 for name, target in targets.items()]
    return torch.stack([*terms, (betas**2).sum(-1)]).sum(), betas, age


def test_results_are_minima_of_the_stated_cost(body):
    """With few and rough targets, where the prior has its say."""
    targets = {"stature": 1.45, "waist_circumference": 0.75, "head_circumference": 0.54}
    fit = fit_measurements(body, targets, sd=0.01)
    value, betas, age = objective(body, fit, targets, 0.01)
    by_betas, by_age = torch.autograd.grad(value, (betas, age))
    # The objective's curvature is 1 and more by betas and 1e3 and more by age: this far from its minimum.
    assert by_betas.abs().max() < 1e-4
    assert by_age.abs() < 1e-3
    for step in (0.02, -0.02):
        for i in range(body.num_betas):
            other = fit.betas + step * torch.eye(body.num_betas, dtype=body.dtype)[i]
            assert objective(body, fit._replace(betas=other), targets, 0.01)[0] > value
        aged = fit._replace(age_offset=fit.age_offset + step)
        assert objective(body, aged, targets, 0.01)[0] > value


def test_rough_targets_give_more_probable_bodies(body):
    targets = {"stature": 1.8, "waist_circumference": 1.1}
    norms = [fit_measurements(body, targets, age_offset=0.0, sd=sd).betas.norm() for sd in (1e-4, 0.01, 0.1)]
    assert norms[0] > norms[1] > norms[2] > 0


def test_zero_weights_leave_the_mean_body(body):
    nothing = {"stature": 0.0}
    fit = fit_measurements(body, {"stature": 1.0}, weights=nothing, age_offset=torch.tensor([0.2, 0.4]))
    assert fit.betas.tolist() == [[0.0] * 10] * 2
    assert fit.age_offset.tolist() == pytest.approx([0.2, 0.4])
    assert fit.achieved.shape == (2, 1)


def test_stature_alone_is_read_as_age(body):
    fit = fit_measurements(body, {"stature": torch.tensor([0.6, 1.2])})
    assert fit.met.all()
    assert (fit.age_offset > 0.3).all()
    assert fit.age_offset[0] > fit.age_offset[1]
    assert fit.betas.norm(dim=-1).max() < 1  # a child, not a tiny adult


def test_improbable_shapes_are_reported(body):
    fit = fit_measurements(body, {"stature": torch.tensor([1.7, 3.0])}, age_offset=0.0)
    assert fit.met.all()
    torch.testing.assert_close(fit.sd, fit.betas.norm(dim=-1))
    assert fit.sd[0] < 1
    assert fit.sd[1] > 10
    first, line = fit.report().splitlines()
    assert first == "2 of 2 measurements met"
    assert line == f"  body 1: an improbable shape, {fit.sd[1]:.1f} standard deviations from the mean"
    assert fit_measurements(body, {"stature": 1.7}).report() == "1 of 1 measurements met"


def test_contradictions_are_reported(body):
    targets = {"stature": 1.7, "sitting_height": 0.9, "crotch_height": torch.tensor([0.8, 1.2])}
    fit = fit_measurements(body, targets, age_offset=0.0)
    assert fit.converged.all()
    assert fit.met.tolist() == [[True] * 3, [False] * 3]
    # Stature is the sum of the other two: 0.4 m too much are shared alike by the least squares.
    np.testing.assert_allclose(fit.residual[1].abs(), 0.4 / 3, atol=2e-3)
    assert fit.report().splitlines()[0] == "3 of 6 measurements met; not met:"
    assert "body 1: stature: asked 1700.0 mm, is 18" in fit.report()


def test_ages_stay_within_their_bounds(body):
    giant = fit_measurements(body, {"stature": 2.3})
    assert giant.age_offset == 0
    tiny = {"stature": 0.4, "head_circumference": 0.3}
    fit = fit_measurements(body, tiny, sd=0.01)
    assert fit.age_offset == 1
    # Its betas are the best for that age, so those of a fit to which the age is given.
    given = fit_measurements(body, tiny, sd=0.01, age_offset=1.0)
    torch.testing.assert_close(fit.betas, given.betas, rtol=0, atol=1e-5)
    teens = fit_measurements(body, {"stature": torch.tensor([0.8, 1.9])}, age_bounds=(0.15, 0.45))
    assert teens.age_offset.tolist() == pytest.approx([0.45, 0.15])
    assert teens.converged.all()


def test_a_target_far_from_the_mean_shape_moves_the_betas_that_it_depends_on(body):
    """With fewer targets than betas, damped steps keep the proportions of the prior."""
    fit = fit_measurements(body, {"stature": 0.8}, age_bounds=(0.15, 0.45))
    assert fit.met.all()
    assert fit.converged.all()
    taller = fit_measurements(body, {"stature": 0.8 + 1e-3}, age_bounds=(0.15, 0.45)).betas - fit.betas
    # The least change of betas for a stature lies along its gradient, in standard deviations.
    cosine = torch.nn.functional.cosine_similarity(fit.betas, taller, dim=0).abs()
    assert cosine > 0.999
    assert fit.betas.abs().argmax() == 0


def test_a_known_age_is_kept(body):
    ages = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    fit = fit_measurements(body, {"stature": 1.2}, age_offset=ages)
    assert torch.equal(fit.age_offset, ages)
    assert fit.betas.norm(dim=-1)[1] < fit.betas.norm(dim=-1)[[0, 2]].min()


def test_bodies_of_one_age(mannequin_asset):
    adult = agebody.SMPL(mannequin_asset, dtype=torch.float64)
    fit = fit_measurements(adult, {"stature": 1.8})
    assert fit.met.all()
    assert fit.age_offset == 0
    with pytest.raises(ValueError, match="age_offset: this body has one age"):
        fit_measurements(adult, {"stature": 1.8}, age_offset=0.0)


def test_weight_0_is_ignored(body):
    nan = torch.tensor([float("nan"), 0.8], dtype=torch.float64)
    masked = fit_measurements(
        body,
        {"stature": 1.6, "waist_circumference": nan},
        weights={"waist_circumference": torch.tensor([0.0, 1.0])},
    )
    alone = fit_measurements(body, {"stature": 1.6})
    torch.testing.assert_close(masked.betas[0], alone.betas, rtol=0, atol=1e-6)
    assert masked.residual.isnan().tolist() == [[False, True], [False, False]]
    assert masked.met.all()
    assert masked.report().startswith("3 of 3 measurements met")
    assert torch.isfinite(torch.cat([masked.betas.flatten(), masked.achieved.flatten()])).all()


def test_each_body_is_solved_for_itself_and_the_same_every_time(body):
    betas, age = people(body, 6, spread=0.5, seed=4)
    targets = measured(body, FEW, betas, age)
    grid = {name: value.reshape(2, 3) for name, value in targets.items()}
    fit, again = fit_measurements(body, grid), fit_measurements(body, grid)
    assert fit.betas.shape == (2, 3, 10)
    assert fit.residual.shape == (2, 3, len(FEW))
    assert torch.equal(fit.betas, again.betas)
    one = fit_measurements(body, {name: value[1, 2] for name, value in grid.items()})
    # A batch sums in another order, and steps end a little elsewhere in the flat of the minimum.
    torch.testing.assert_close(one.betas, fit.betas[1, 2], rtol=0, atol=1e-4)
    assert fit_measurements(body, {"stature": torch.zeros(0)}).betas.shape == (0, 10)


def test_impossible_targets_still_give_a_body(body):
    targets = {"stature": torch.tensor([0.01, 0.02]), "waist_circumference": 3.0}
    fit = fit_measurements(body, targets, max_iterations=10)
    assert torch.isfinite(
        torch.cat([part.flatten() for part in (fit.betas, fit.age_offset, fit.achieved)])
    ).all()
    assert torch.equal(fit.met, fit.residual.abs() <= 1e-3)


def test_wrong_arguments_are_named(body, mannequin_asset, unchecked):
    with pytest.raises(ValueError, match=r"targets: expected names out of stature, .*got \['weight'\]"):
        fit_measurements(body, {"weight": 70.0})
    with pytest.raises(ValueError, match=r"weights: expected names out of stature, got \['arm_span'\]"):
        fit_measurements(body, {"stature": 1.7}, weights={"arm_span": 1.0})
    with pytest.raises(ValueError, match="targets: expected at least one measurement"):
        fit_measurements(body, {})
    for wrong in (0.0, -1.7, 5.1, 172.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"targets\['stature'\]: expected metres, above 0 and up to 5"):
            fit_measurements(body, {"stature": torch.tensor([1.7, wrong])})
    with pytest.raises(ValueError, match=r"targets\['stature'\]: expected metres"):
        fit_measurements(body, {"stature": float("nan")})
    with pytest.raises(ValueError, match="weights: expected finite numbers of 0 or more"):
        fit_measurements(body, {"stature": 1.7}, weights={"stature": -1.0})
    for name, values in (("sd", (0.0, float("inf"))), ("tolerance", (-1e-3, float("nan")))):
        for wrong in values:
            with pytest.raises(ValueError, match=f"{name}: expected a length"):
                fit_measurements(body, {"stature": 1.7}, **{name: wrong})
    for wrong in ("1.7", None, [1.7, None]):
        with pytest.raises(TypeError, match=r"targets\['stature'\]: expected numbers, got "):
            fit_measurements(body, {"stature": wrong})
    with pytest.raises(ValueError, match="age_offset: expected finite numbers"):
        fit_measurements(body, {"stature": 1.7}, age_offset=float("nan"))
    with pytest.raises(ValueError, match="sd: expected a length above 0"):
        fit_measurements(body, {"stature": 1.7}, sd=0.0)
    with pytest.raises(ValueError, match="age_bounds: expected two ascending offsets"):
        fit_measurements(body, {"stature": 1.7}, age_bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"targets\['arm_span'\]"):
        fit_measurements(body, {"stature": torch.ones(2), "arm_span": torch.ones(3)})
    two = agebody.SMPLA(mannequin_asset, smil=mannequin_asset.at_age(1.0))
    with pytest.raises(ValueError, match="body: expected one body, got two"):
        fit_measurements(two, {"stature": 1.7})
