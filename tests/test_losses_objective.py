"""Objectives: sums of named terms; the published ones against their formulas, person by person."""

import math

import numpy as np
import pytest
import torch

from agebody.keypoints import LAYOUTS
from agebody.losses.objective import LossTerm, Objective
from agebody.losses.priors import hyperextension_prior
from agebody.losses.published import (
    aionhmr_fitting_objective,
    aionhmr_objective,
    hmr2_objective,
    metric_aware_objective,
    smplify_x_objective,
)
from agebody.rotations import axis_angle_to_matrix

PEOPLE = 4
K = 44


def square(name):
    return lambda prediction, target, reduction: (prediction[name] - target[name]).square().sum()


def regression(seed=0, people=PEOPLE):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(people, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "keypoints_2d": draw(K, 2),
        "keypoints_3d": draw(K, 3),
        "global_orient": axis_angle_to_matrix(draw(3)),
        "body_pose": axis_angle_to_matrix(draw(23, 3)),
        "betas": draw(10),
        "age_offset": draw().abs(),
        "scores": draw(25),
    }


def labels(seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(PEOPLE, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    target = {k: v for k, v in regression(seed).items() if k != "scores"}
    confidences = draw(K) * (draw(K) > 0.3)
    known = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    root = (draw(K) > 0.3).double()
    root[:, LAYOUTS["hmr2_44"].root[0]] = 1
    weights = {"keypoints_2d": confidences, "keypoints_3d": root}
    weights |= dict.fromkeys(("global_orient", "body_pose", "betas"), known)
    return target | {f"{name}_weights": value for name, value in weights.items()}


def hmr2_by_hand(prediction, target, weights, *, age):
    """The sums of HMR2's public code, one person and one keypoint after the other."""
    p, t = ({k: v.numpy() for k, v in given.items()} for given in (prediction, target))
    terms = dict.fromkeys(weights, 0.0)
    root = LAYOUTS["hmr2_44"].root[0]
    for i in range(PEOPLE):
        for k in range(K):
            flat = np.abs(p["keypoints_2d"][i, k] - t["keypoints_2d"][i, k]).sum()
            terms["keypoints_2d"] += t["keypoints_2d_weights"][i, k] * flat
            one = p["keypoints_3d"][i, k] - p["keypoints_3d"][i, root]
            other = t["keypoints_3d"][i, k] - t["keypoints_3d"][i, root]
            terms["keypoints_3d"] += t["keypoints_3d_weights"][i, k] * np.abs(one - other).sum()
        for name in ("global_orient", "body_pose", "betas"):
            error = ((p[name][i] - t[name][i]) ** 2).sum()
            if name == "betas" and age:
                error += (p["age_offset"][i] - t["age_offset"][i]) ** 2
            terms[name] += t[f"{name}_weights"][i] * error
        terms["adversarial"] += ((p["scores"][i] - 1) ** 2).sum() / PEOPLE
    return {name: weights[name] * value for name, value in terms.items()}


HMR2 = {
    "keypoints_3d": 0.05, "keypoints_2d": 0.01, "global_orient": 0.001, "body_pose": 0.001, "betas": 0.0005,
    "adversarial": 0.0005,
}  # fmt: skip
AIONHMR = HMR2 | {"keypoints_2d": 0.02, "global_orient": 0.005, "betas": 0.0015}


@pytest.mark.parametrize(
    ("objective", "weights", "age"),
    [(hmr2_objective(), HMR2, False), (aionhmr_objective(), AIONHMR, True)],
    ids=["hmr2", "aionhmr"],
)
def test_objectives_sum_as_the_published_code(objective, weights, age):
    prediction, target = regression(), labels()
    expected = hmr2_by_hand(prediction, target, weights, age=age)
    report = objective(prediction, target)
    assert {name: term.item() for name, term in report.terms.items()} == pytest.approx(expected)
    assert report.total.item() == pytest.approx(sum(expected.values()))
    each = objective(prediction, target, reduction="none")
    assert each.total.shape == (PEOPLE,)
    torch.testing.assert_close(each.total.sum(), report.total)


@pytest.mark.parametrize("objective", [hmr2_objective(), aionhmr_objective()], ids=["hmr2", "aionhmr"])
def test_zero_at_the_truth(objective):
    truth = labels()
    report = objective(truth | {"scores": torch.ones(PEOPLE, 25)}, truth)
    assert report.total.item() == pytest.approx(0, abs=1e-12)


def test_unknown_targets_may_be_nan():
    prediction, target = regression(), labels()
    for value in prediction.values():
        value.requires_grad_()
    for name in ("global_orient", "body_pose", "betas"):
        target[name][1] = torch.nan
    target["keypoints_2d"][target["keypoints_2d_weights"] == 0] = torch.nan
    target["keypoints_3d"][target["keypoints_3d_weights"] == 0] = torch.nan
    report = hmr2_objective()(prediction, target)
    clean = hmr2_objective()(prediction, labels())
    torch.testing.assert_close(report.total, clean.total)
    grads = torch.autograd.grad(report.total, [v for k, v in prediction.items() if k != "age_offset"])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    "objective", [aionhmr_objective(), metric_aware_objective(age=True)], ids=["aionhmr", "ma"]
)
def test_an_age_may_be_unknown_where_betas_are_known(objective):
    objective = objective.without(*(set(objective.terms) - {"betas"}))
    prediction = {"betas": torch.ones(3, 10), "age_offset": torch.ones(3, requires_grad=True)}
    target = {"betas": torch.zeros(3, 10), "age_offset": torch.tensor([0.5, torch.nan, 0.5])}
    target["age_offset_weights"] = torch.tensor([1.0, 0.0, 1.0])
    each = objective(prediction, target, reduction="none").total
    assert each.isfinite().all()
    assert each[1] < each[0] == each[2]
    assert torch.autograd.grad(each.sum(), prediction["age_offset"])[0][1] == 0


def test_a_root_may_be_unknown_where_the_pose_is_known():
    objective = metric_aware_objective()
    objective = objective.without(*(set(objective.terms) - {"pose"}))
    prediction = {"global_orient": torch.ones(2, 3), "body_pose": torch.ones(2, 23, 3)}
    target = {"global_orient": torch.full((2, 3), torch.nan), "body_pose": torch.zeros(2, 23, 3)}
    target |= {
        "global_orient_weights": torch.tensor([0.0, 0.0]),
        "body_pose_weights": torch.tensor([1.0, 0.0]),
    }
    assert objective(prediction, target).total.item() == pytest.approx(5 * 23 / 24)


def test_people_without_a_visible_root_are_not_in_the_mean():
    prediction, target = regression(people=2), regression(seed=1, people=2)
    target["keypoints_3d_weights"] = torch.ones(2, K)
    target["keypoints_3d_weights"][1, LAYOUTS["hmr2_44"].root[0]] = 0
    objective = hmr2_objective()
    objective = objective.without(*(set(objective.terms) - {"keypoints_3d"}))
    one = objective(prediction, target, reduction="sum").total
    torch.testing.assert_close(objective(prediction, target, reduction="mean").total, one)


def test_metric_aware_takes_means_of_people():
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    known = torch.tensor([True, False, True, True, True])
    image = torch.tensor([0, 0, 0, 1, 1])

    def sample():
        return {
            "keypoints_2d": 100 * draw(5, 24, 2), "keypoints_3d": draw(5, 24, 3), "global_orient": draw(5, 3),
            "body_pose": draw(5, 23, 3), "betas": draw(5, 10), "age_offset": draw(5), "fov": draw(2),
            "depth": 0.5 * draw(5),
        }  # fmt: skip

    prediction, target = sample(), sample()
    mask = torch.rand(5, 24, generator=generator) < 0.7
    mask[:, 0] = True
    given = target | {
        "image": image, "betas_weights": known, "body_pose_weights": known, "global_orient_weights": known,
        "keypoints_2d_weights": mask,
    }  # fmt: skip
    terms = metric_aware_objective(age=True)(prediction, given).terms

    p, t = ({k: v.numpy() for k, v in s.items()} for s in (prediction, target))
    pose = [
        np.abs(
            np.vstack(
                (p["global_orient"][i][None] - t["global_orient"][i], p["body_pose"][i] - t["body_pose"][i])
            )
        ).mean()
        for i in (0, 2, 3, 4)
    ]
    assert terms["pose"].item() == pytest.approx(5 * np.mean(pose))
    scale = [2.56, 1.28, 0.64, 0.64] + 6 * [0.32] + [10.0]
    betas = [
        np.mean(
            scale * np.abs(np.append(p["betas"][i] - t["betas"][i], p["age_offset"][i] - t["age_offset"][i]))
        )
        for i in (0, 2, 3, 4)
    ]
    assert terms["betas"].item() == pytest.approx(3 * np.mean(betas))
    rooted = (p["keypoints_3d"] - p["keypoints_3d"][:, :1]) - (t["keypoints_3d"] - t["keypoints_3d"][:, :1])
    assert terms["keypoints_3d"].item() == pytest.approx(8 * np.abs(rooted).mean())
    flat = np.abs(p["keypoints_2d"] - t["keypoints_2d"]) / 1288 * mask.numpy()[..., None]
    assert terms["keypoints_2d"].item() == pytest.approx(40 * flat.mean())
    pairs = []
    for i in range(5):
        for j in range(i + 1, 5):
            gap = t["depth"][i] - t["depth"][j]
            if image[i] == image[j] and abs(gap) <= 1:
                pairs.append(math.log(1 + abs(p["depth"][i] - p["depth"][j] - gap)))
    assert terms["relative_depth"].item() == pytest.approx(0.5 * np.mean(pairs))
    fov = [(3 if a > b else 1) * (a - b) ** 2 for a, b in zip(p["fov"], t["fov"], strict=True)]
    assert terms["fov"].item() == pytest.approx(0.5 * sum(fov))
    with pytest.raises(ValueError, match="'relative_depth' has no value per person"):
        metric_aware_objective(age=True)(prediction, given, reduction="none")


def test_metric_aware_divides_image_errors_by_everybody():
    """Also by those who show no point, as its code divides by all annotated people."""
    prediction, target = ({"keypoints_2d": part} for part in torch.randn(2, 10, 24, 2).double())
    objective = metric_aware_objective()
    objective = objective.without(*(set(objective.terms) - {"keypoints_2d"}))
    mask = torch.ones(10, 24)
    mask[3] = 0
    target["keypoints_2d"][3] = torch.nan
    found = objective(prediction, target | {"keypoints_2d_weights": mask}).total
    errors = (prediction["keypoints_2d"] - target["keypoints_2d"]).abs().nan_to_num() / 1288
    assert found.item() == pytest.approx(40 * errors.mean().item())


def test_aionhmr_fitting_leaves_out_frames_that_are_not_seen():
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    latent, points = draw(2, 6, 8), draw(2, 6, 5, 3)
    seen = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0]]).double()
    latent[seen == 0], points[seen == 0] = torch.nan, torch.nan
    latent.requires_grad_()
    objective = aionhmr_fitting_objective().without("keypoints_2d", "shape_prior")
    target = {"latent_pose_weights": seen, "keypoints_3d_weights": seen}
    total, terms = objective({"latent_pose": latent, "keypoints_3d": points}, target)
    expected = 0.04 * sum((latent[i, t] ** 2).sum() for i in range(2) for t in range(6) if seen[i, t])
    torch.testing.assert_close(terms["pose_prior"], expected)
    steps = [(i, t) for i in range(2) for t in range(5) if seen[i, t] and seen[i, t + 1]]
    expected = 0.5 * sum(((points[i, t + 1] - points[i, t]) ** 2).sum() for i, t in steps)
    torch.testing.assert_close(terms["smoothness"], expected)
    total.backward()
    assert (latent.grad[seen == 0] == 0).all()


def test_priors_leave_out_people_of_weight_0():
    pose = torch.randn(3, 23, 3).double()
    pose[1] = torch.nan
    objective = smplify_x_objective(2).without("keypoints_2d", "pose_prior", "shape_prior")
    known = {"body_pose_weights": torch.tensor([1.0, 0, 1])}
    found = objective({"body_pose": pose}, known)
    torch.testing.assert_close(found.total, objective({"body_pose": pose[::2]}).total)
    with pytest.raises(ValueError, match="betas_weights: weights without the tensor that they weight"):
        objective({"body_pose": pose}, known | {"betas_weights": torch.ones(3)})


def test_aionhmr_fitting_adds_up_a_video():
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    frames = 6
    prediction = {
        "keypoints_2d": 100 * draw(2, frames, 25, 2), "keypoints_3d": draw(2, frames, 22, 3),
        "latent_pose": draw(2, frames, 32), "betas": draw(2, 10), "age_offset": draw(2),
    }  # fmt: skip
    confidences = torch.rand(2, frames, 25, generator=generator, dtype=torch.float64)
    target = {"keypoints_2d": 100 * draw(2, frames, 25, 2), "keypoints_2d_weights": confidences}
    report = aionhmr_fitting_objective(smoothness=10)(prediction, target)
    p = {k: v.numpy() for k, v in prediction.items()}
    squared = (p["keypoints_2d"] - target["keypoints_2d"].numpy()) ** 2
    robust = confidences.numpy()[..., None] ** 2 * (100**2 * squared / (100**2 + squared))
    expected = {
        "keypoints_2d": 0.001 * robust.sum(),
        "pose_prior": 0.04 * (p["latent_pose"] ** 2).sum(),
        "shape_prior": 0.05 * frames * ((p["betas"] ** 2).sum() + (p["age_offset"] ** 2).sum()),
        "smoothness": 10 * 0.5 * (np.diff(p["keypoints_3d"], axis=1) ** 2).sum(),
    }
    assert {name: term.item() for name, term in report.terms.items()} == pytest.approx(expected)
    each = aionhmr_fitting_objective(smoothness=10)(prediction, target, reduction="none").total
    assert each.shape == (2,)
    torch.testing.assert_close(each.sum(), report.total)


def test_squares_of_sixteen_bits_do_not_overflow():
    latent = torch.full((7, 32), 60.0)  # whose squares sum to 115200, above 65504
    objective = aionhmr_fitting_objective().without("keypoints_2d", "shape_prior", "smoothness")
    assert objective({"latent_pose": latent.half()}).total.item() == pytest.approx(0.04 * 7 * 32 * 60**2)


@pytest.mark.parametrize(
    ("stage", "pose", "shape", "intersection"),
    [(0, 404, 100, 0), (1, 404, 50, 0), (2, 57.4, 10, 0), (3, 4.78, 5, 0.01), (4, 4.78, 5, 1)],
)
def test_smplify_x_squares_its_weights_but_one(stage, pose, shape, intersection):
    generator = torch.Generator().manual_seed(stage)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    confidences = torch.rand(3, 25, generator=generator, dtype=torch.float64)
    prediction = {
        "keypoints_2d": 80 * draw(3, 25, 2), "body_pose": 0.3 * draw(3, 23, 3), "betas": draw(3, 10),
        "vertices": draw(3, 7, 3),
    }  # fmt: skip
    target = {"keypoints_2d": 80 * draw(3, 25, 2), "keypoints_2d_weights": confidences}
    objective = smplify_x_objective(
        stage, data_weight=2.0,
        pose_prior=lambda body_pose: body_pose.square().sum((-2, -1)),
        intersection=lambda vertices: vertices.abs().sum((-2, -1)),
    )  # fmt: skip
    report = objective(prediction, target)
    squared = (prediction["keypoints_2d"] - target["keypoints_2d"]) ** 2
    robust = confidences[..., None] ** 2 * (1e4 * squared / (1e4 + squared))
    expected = {
        "keypoints_2d": 4 * robust.sum(),
        "pose_prior": pose**2 * (prediction["body_pose"] ** 2).sum(),
        "shape_prior": shape**2 * (prediction["betas"] ** 2).sum(),
        "hyperextension_prior": 3.17 * pose * hyperextension_prior(prediction["body_pose"], reduction="sum"),
        "intersection": intersection * prediction["vertices"].abs().sum(),
    }
    expected = {name: value.item() for name, value in expected.items() if value != 0}
    assert {name: term.item() for name, term in report.terms.items()} == pytest.approx(expected)
    each = objective(prediction, target, reduction="none").total
    torch.testing.assert_close(each.sum(), report.total)


def test_smplify_x_takes_a_latent_pose():
    objective = smplify_x_objective(0)
    assert objective.terms["pose_prior"].prediction == ("latent_pose",)
    given = {
        "keypoints_2d": torch.zeros(2, 3, 2), "body_pose": torch.zeros(2, 23, 3), "betas": torch.zeros(2, 10),
        "latent_pose": torch.full((2, 4), 2.0),
    }  # fmt: skip
    report = objective(given, {"keypoints_2d": torch.zeros(2, 3, 2)})
    assert report.terms["pose_prior"].item() == pytest.approx(404**2 * 32)
    with pytest.raises(ValueError, match="stage: expected 0 to 4, got 5"):
        smplify_x_objective(5)


def test_terms_are_weighted_and_left_out():
    objective = Objective(
        {"a": LossTerm(2.0, square("a"), ("a",), ("a",)), "b": LossTerm(0.0, square("b"), ("b",), ("b",))}
    )
    prediction, target = {"a": torch.ones(3)}, {"a": torch.zeros(3)}
    total, terms = objective(prediction, target)
    assert total == 6
    assert set(terms) == {"a"}
    assert objective.reweighted(a=5)(prediction, target).total == 15
    assert objective.weights == {"a": 2.0, "b": 0.0}
    assert objective.without("b").weights == {"a": 2.0}
    assert "a=2" in repr(objective)


def test_modules_in_terms_move_with_the_objective():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(2))

        def forward(self, prediction, target, reduction):
            return (self.scale * prediction["x"]).sum()

    objective = Objective({"x": LossTerm(1.0, Scaled(), ("x",))}).double()
    assert objective({"x": torch.ones(2, dtype=torch.float64)}).total.dtype == torch.float64
    assert objective.reweighted(x=3)({"x": torch.ones(2, dtype=torch.float64)}).total == 6


def test_errors():
    objective = hmr2_objective()
    prediction, target = regression(), labels()
    with pytest.raises(
        ValueError, match=r"prediction: the term 'adversarial' needs scores; .*without\('adversarial'\)"
    ):
        objective({k: v for k, v in prediction.items() if k != "scores"}, target)
    with pytest.raises(ValueError, match="target: the term 'betas' needs betas"):
        objective(prediction, {k: v for k, v in target.items() if k != "betas"})
    with pytest.raises(ValueError, match="terms: expected some of keypoints_3d, .*, got keypoint"):
        objective.without("keypoint")
    with pytest.raises(ValueError, match="target: beta_weights: weights without the tensor that they weight"):
        objective(prediction, target | {"beta_weights": torch.ones(PEOPLE)})
    with pytest.raises(ValueError, match="got pose"):
        objective.reweighted(pose=1.0)
    with pytest.raises(ValueError, match="at least one term"):
        Objective({})({})


def test_age_class_loss_applies_where_the_offset_is_unlabelled():
    objective = aionhmr_objective(age_class_weight=0.5)
    term = objective.terms["age_class"]
    age = torch.tensor([0.9, 0.9, 0.9, 0.3])
    target = {
        "age_class": torch.tensor([0, 0, -1, 1]),
        "age_offset_weights": torch.tensor([0.0, 1.0, 0.0, 0.0]),
    }
    found = term.loss({"age_offset": age}, target, "none")
    assert found[0] == pytest.approx(0.81)  # an adult; the second one's offset is labelled
    assert found[1:3].tolist() == [0, 0]
    assert term.weight == 0.5
    assert "age_class" not in aionhmr_objective().terms
